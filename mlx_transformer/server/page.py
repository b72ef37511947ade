"""The page for people at `/`: its static files, and the endpoint that translates what they type."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.inference.sentence_splitting import Paragraph, join_sentences
from mlx_transformer.server.fields import Fields
from mlx_transformer.server.libretranslate import MAX_ALTERNATIVES
from mlx_transformer.server.models import ModelStore
from mlx_transformer.server.translation import submit_texts

STATIC = Path(__file__).parent / "static"
STATIC_PATHS = {
    "/": "index.html",
    "/spec": "spec.json",  # of LibreTranslate's API
    **{f"/page/{name}": name for name in ("page.css", "page.js", "icon.svg")},
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


async def show_file(request: Request) -> FileResponse:
    """Return the static file of a path; the browser loads nothing from other hosts for it."""
    return FileResponse(STATIC / STATIC_PATHS[request.url.path], headers=HEADERS)


class Page:
    """The endpoint of the page."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store

    async def translate(self, fields: Fields) -> JSONResponse:
        """Translate `text`, with word alignments.

        The fields `source` and `target` are languages; without them, the first model translates. With `alternatives`,
        each sentence has up to that many texts that begin with `prefix` and differ in the token after it.
        """
        fields.check_text("text", text := fields.text("text", ""))
        fields.check_text("prefix", prefix := fields.text("prefix", ""))
        count = fields.integer("alternatives", 0, MAX_ALTERNATIVES) or 0
        name, languages = self._find_model(fields.text("source"), fields.text("target"))
        search = {"alternatives": True, "num_hypotheses": count} if count else {}
        texts, alignment = [text or ""], AlignmentConfig()
        (pending,) = await submit_texts(
            self._store, name, texts, languages, search, target_prefix=prefix or None, alignment=alignment
        )
        pieces: list[dict[str, Any]] = []
        for line in await pending.lines():
            pieces += [_blank(line, line)] if isinstance(line, str) else _format_line(*line, prefix if count else None)
        pieces = [piece for piece in pieces if piece["source"] or piece["text"]]
        return JSONResponse({"text": "".join(piece["text"] for piece in pieces), "pieces": pieces})

    def _find_model(self, source: str | None, target: str | None) -> tuple[str, tuple[str | None, str | None]]:
        """Return the name of a model and its own codes of the languages; of the first model if none are named."""
        if source and target:
            name, *codes = self._store.find(source, target)
            return name, (codes[0], codes[1])
        name = self._store.choose(None)
        return name, self._store.languages[name].resolve(source or None, target or None)


def _format_line(paragraph: Paragraph, rows: list[list[Hypothesis]], prefix: str | None) -> Iterable[dict[str, Any]]:
    """Yield the sentences of a line and what is between them; joined, the pieces are the line and its result.

    Sentences come with alternatives that begin with the words of the prefix, unless it is None.
    """
    texts = [row[0].text or "" for row in rows]
    joined = join_sentences(paragraph, texts)
    position = 0
    for sentence, space, text, row in zip(paragraph.sentences, paragraph.spaces, texts, rows, strict=False):
        start = joined.index(text, position)
        yield _blank(space, joined[position:start])
        position = start + len(text)
        piece = _format_hypothesis(row[0]) | {"source": sentence}
        if prefix is not None:
            others = {other.text: _format_hypothesis(other) for other in row if _begins_with(other.text or "", prefix)}
            piece["alternatives"] = [*others.values()]
        yield piece
    yield _blank(paragraph.spaces[-1], joined[position:])


def _begins_with(text: str, prefix: str) -> bool:
    """Whether a text begins with the words of a prefix; the next token may also have changed its last word."""
    words = prefix.split()
    return text.split()[: len(words)] == words


def _blank(source: str, text: str) -> dict[str, Any]:
    return {"source": source, "text": text}


def _format_hypothesis(hypothesis: Hypothesis) -> dict[str, Any]:
    return {"text": hypothesis.text, "alignment": hypothesis.alignment}
