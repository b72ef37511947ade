"""Translation of files: LibreTranslate's POST /translate_file, and the address at which the result waits."""

import asyncio
import secrets
import threading
from pathlib import PurePath
from typing import NamedTuple
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlx_transformer.documents.translation import translate_document
from mlx_transformer.server.fields import Fields
from mlx_transformer.server.models import ModelStore
from mlx_transformer.server.settings import RequestError

MAX_DOCUMENTS = 16  # translated documents that are kept; the oldest goes first


class TranslatedFile(NamedTuple):
    """A translated document that waits to be fetched."""

    name: str
    data: bytes


class DocumentAPI:
    """The endpoints for files."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._files: dict[str, TranslatedFile] = {}  # by tokens that cannot be guessed, the oldest first
        self._lock = threading.Lock()  # one document at a time

    async def translate_file(self, fields: Fields) -> JSONResponse:
        """Translate the file of a form, and return the address of the result."""
        file, target = fields.file("file"), fields.required_text("target")
        name, *codes = self._store.find(fields.required_text("source"), target)
        token, translated = secrets.token_urlsafe(24), PurePath(file.name)

        def translate() -> None:
            with self._lock:
                loaded = self._store.get(name)
                document = translate_document(
                    loaded.model,
                    loaded.tokenizer,
                    file.data,
                    file.name,
                    source_language=codes[0],
                    target_language=codes[1],
                    document_language=target,
                )
                self._files[token] = TranslatedFile(f"{translated.stem}_{target}{translated.suffix}", document.data)
                for oldest in list(self._files)[:-MAX_DOCUMENTS]:
                    del self._files[oldest]

        await asyncio.to_thread(translate)
        return JSONResponse({"translatedFileUrl": f"{fields.base_url}download_file/{token}"})

    async def download_file(self, request: Request) -> Response:
        """Return a translated document."""
        if (file := self._files.get(request.path_params["token"])) is None:
            raise RequestError(404, "There is no such file, or it is too old: translate the document again.")
        disposition = f"attachment; filename*=UTF-8''{quote(file.name)}"
        headers = {"Content-Disposition": disposition, "X-Content-Type-Options": "nosniff"}
        return Response(file.data, media_type="application/octet-stream", headers=headers)
