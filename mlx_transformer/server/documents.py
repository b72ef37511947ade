"""Translation of files: LibreTranslate's POST /translate_file, and the address at which the result waits."""

import asyncio
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from itertools import chain
from pathlib import PurePath
from typing import Any, NamedTuple
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.tokenizer import AUTO
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.documents.translation import find_format, language_tag, run_translator
from mlx_transformer.documents.translator import ATOM, Translator
from mlx_transformer.inference.line_errors import raise_first_error
from mlx_transformer.inference.sentence_splitting import Paragraph, combine_hypotheses
from mlx_transformer.inference.source_lines import make_source_lines
from mlx_transformer.server.batching import Work
from mlx_transformer.server.detection import detect_source
from mlx_transformer.server.fields import Fields, UploadedFile
from mlx_transformer.server.models import CountedLine, LoadedModel, ModelStore
from mlx_transformer.server.settings import RequestError

DOCUMENTS_AT_ONCE = 2  # others wait, so that threads remain for other requests
TEXTS_AT_ONCE = 256  # of a document in the queue
WAIT_FOR_ROOM = 1.0  # seconds until a document that has begun tries a full queue again
MAX_DOCUMENTS = 16  # translated documents that are kept; the oldest goes first
Choice = tuple[str, str | None, str | None]  # the name of a model, and its own codes of the languages


class TranslatedFile(NamedTuple):
    """A translated document that waits to be fetched."""

    name: str
    data: bytes


class SameLanguageError(Exception):
    """The texts of a document are in the target language."""


class QueuedSearch:
    """Searches the texts of a document by the queue of a model, a part at a time, so that others find room."""

    def __init__(self, store: ModelStore, source: str, target: str) -> None:
        """Choose a model.

        Args:
            store: The models.
            source: A source language, or AUTO to detect that of the first texts.
            target: The target language.

        Raises:
            RequestError: If no model translates the languages.
            SameLanguageError: If they are the same.
        """
        if store.is_same_language(source, target):
            raise SameLanguageError
        self._store, self._target = store, target
        is_detected = source == AUTO and store.sources(target)
        self._choice: Choice | None = None if is_detected else store.find(source, target)
        self._futures: list[Future[list[Hypothesis]]] = []
        self._has_begun = self._is_cancelled = False

    def __call__(self, texts: Sequence[str], aligned: bool) -> Iterator[Hypothesis]:
        """Return the hypothesis of each text; see `Translator`.

        Raises:
            CancelledError: If `cancel` was called.
            RequestError: If the queue is full at the beginning; later parts wait for room. If the language of the texts
                cannot be detected.
            SameLanguageError: If it is the target language.
            ValueError: If a text has no result.
        """
        self._choice = choice = self._choice or self._choose(texts)
        parts = (texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE))
        results = chain.from_iterable(self._search(choice, part, aligned) for part in parts)
        return raise_first_error(results, lambda best: best.error, "Text")

    def cancel(self) -> None:
        """Drop the texts that wait, and take no more."""
        self._is_cancelled = True
        for future in self._futures:
            future.cancel()

    def _choose(self, texts: Sequence[str]) -> Choice:
        """Return the model for the language of texts."""
        detection = detect_source(" ".join(texts), self._store.sources(self._target), self._target)
        if self._store.is_same_language(detection.language, self._target):
            raise SameLanguageError
        return self._store.find(detection.language, self._target)

    def _search(self, choice: Choice, texts: Sequence[str], aligned: bool) -> Iterator[Hypothesis]:
        name, source, target = choice

        def prepare(loaded: LoadedModel) -> tuple[list[Paragraph], list[CountedLine], Work]:
            paragraphs = list(map(loaded.split, make_source_lines(texts, source, target)))
            lines = [each.line._replace(text=sentence) for each in paragraphs for sentence in each.sentences]
            alignment = AlignmentConfig(cover_source=True) if aligned else None
            return paragraphs, list(map(loaded.count, lines)), loaded.make_work({}, alignment, copied=(ATOM,))

        paragraphs, _, self._futures = self._submit(name, prepare)
        remaining = iter(self._futures)
        for paragraph in paragraphs:
            yield combine_hypotheses(paragraph, [next(remaining).result()[0] for _ in paragraph.sentences])

    def _submit(self, name: str, prepare: Any) -> Any:
        while True:
            if self._is_cancelled:
                raise CancelledError
            try:
                submitted = self._store.submit(name, prepare)
                self._has_begun = True
                return submitted
            except RequestError:
                if not self._has_begun:
                    raise
                time.sleep(WAIT_FOR_ROOM)


class DocumentAPI:
    """The endpoints for files."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._files: dict[str, TranslatedFile] = {}  # by tokens that cannot be guessed, the oldest first
        self._slots = asyncio.Semaphore(DOCUMENTS_AT_ONCE)

    async def translate_file(self, fields: Fields) -> JSONResponse:
        """Translate the file of a form, and return the address of the result."""
        file, target = fields.file("file"), fields.required_text("target")
        try:
            data = await self._translate(file, fields.required_text("source"), target)
        except SameLanguageError:
            data = file.data
        token, translated = secrets.token_urlsafe(24), PurePath(file.name)
        self._files[token] = TranslatedFile(f"{translated.stem}_{target}{translated.suffix}", data)
        for oldest in list(self._files)[:-MAX_DOCUMENTS]:
            del self._files[oldest]
        return JSONResponse({"translatedFileUrl": f"{fields.base_url}download_file/{token}"})

    async def _translate(self, file: UploadedFile, source: str, target: str) -> bytes:
        """Return a document in the target language."""
        find_format(file.name)
        search = QueuedSearch(self._store, source, target)
        translator = Translator(search, language_tag(target))
        async with self._slots:
            try:
                document = await asyncio.to_thread(run_translator, translator, file.data, file.name)
            finally:
                search.cancel()
        return document.data

    async def download_file(self, request: Request) -> Response:
        """Return a translated document."""
        if (file := self._files.get(request.path_params["token"])) is None:
            raise RequestError(404, "There is no such file, or it is too old: translate the document again.")
        plain = re.sub(r"[^ !#-\[\]-~]", "_", file.name)  # for clients that do not know filename*, such as curl
        disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(file.name)}"
        headers = {"Content-Disposition": disposition, "X-Content-Type-Options": "nosniff"}
        return Response(file.data, media_type="application/octet-stream", headers=headers)
