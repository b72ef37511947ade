"""The API of LibreTranslate: texts and HTML by language codes."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from mlx_transformer.config.tokenizer import AUTO
from mlx_transformer.documents.translation import ENDINGS
from mlx_transformer.inference.language_detection import is_installed, rank_language
from mlx_transformer.messages import short_repr
from mlx_transformer.server.fields import Fields
from mlx_transformer.server.language_names import NAMES
from mlx_transformer.server.models import ModelStore
from mlx_transformer.server.settings import RequestError, ServerSettings
from mlx_transformer.server.translation import all_results, submit_texts

MAX_ALTERNATIVES = 10


def _detection(language: str, probability: float) -> dict[str, Any]:
    return {"confidence": round(100 * probability, 1), "language": language}


class LibreTranslateAPI:
    """The endpoints of LibreTranslate."""

    def __init__(self, store: ModelStore, settings: ServerSettings) -> None:
        self._store, self._settings = store, settings

    async def translate(self, fields: Fields) -> JSONResponse:
        """Translate a text, or each of a list of texts; see LibreTranslate's POST /translate."""
        texts = fields.texts("q")
        source, target = fields.required_text("source"), fields.required_text("target")
        if (kind := fields.text("format") or "text") not in ("text", "html"):
            raise RequestError(400, f"format must be text or html, not {short_repr(kind)}.")
        count = fields.integer("alternatives", 0, MAX_ALTERNATIVES) or 0
        is_detected = source == AUTO and bool(self._store.sources(target))
        detected = await self._detect(" ".join(texts), target) if is_detected else None
        name, *codes = self._store.find(detected[0] if detected else source, target)
        options = {"num_hypotheses": count + 1} if count else {}
        pending = await submit_texts(self._store, name, texts, (codes[0], codes[1]), options, kind == "html")
        results = await all_results(pending, count + 1)
        rows = [list(dict.fromkeys(result.text for result in row)) for row in results]  # different texts
        is_list = isinstance(fields.get("q"), list)
        answer: dict[str, Any] = {"translatedText": [best for best, *_ in rows] if is_list else rows[0][0]}
        if detected:
            answer["detectedLanguage"] = _detection(*detected)
        if count:
            answer["alternatives"] = [others for _, *others in rows] if is_list else rows[0][1:]
        return JSONResponse(answer)

    async def detect(self, fields: Fields) -> JSONResponse:
        """Detect the language of a text, among those that the models read."""
        return JSONResponse([_detection(*await self._detect(fields.required_text("q"), None))])

    async def _detect(self, text: str, target: str | None) -> tuple[str, float]:
        """Return the language of a text, among those that a model translates to a target, with its probability."""
        if not is_installed():
            raise RequestError(
                501,
                "This server does not detect languages: give the source language, see /languages, or install the extra "
                "detect where it runs.",
            )
        ranked = await asyncio.to_thread(rank_language, text, self._store.sources(target))
        if ranked is None:
            raise RequestError(400, "The language of the text cannot be detected: give it as source, see /languages.")
        return ranked

    async def languages(self, request: Request) -> JSONResponse:
        """Return the source languages with their targets."""
        targets: dict[str, dict[str, None]] = {}
        for languages in self._store.languages.values():
            for source in languages.sources:
                others = dict.fromkeys(target for target in languages.targets if target != source)
                targets.setdefault(source, {}).update(others)
        known = [
            {"code": source, "name": NAMES.get(source, source), "targets": list(codes)}
            for source, codes in targets.items()
            if codes
        ]
        return JSONResponse(known)

    async def frontend_settings(self, request: Request) -> JSONResponse:
        """Return what LibreTranslate's clients ask for before they show a form."""
        has_keys = bool(self._settings.api_keys)
        first = next((pair for pair in self._store.languages.values() if pair.sources and pair.targets), None)
        source, target = (next(iter(first.sources)), next(iter(first.targets))) if first else ("", "")
        return JSONResponse(
            {
                "charLimit": self._settings.max_characters,
                "frontendTimeout": 500,
                "apiKeys": has_keys,
                "keyRequired": has_keys,
                "suggestions": False,
                "filesTranslation": True,
                "supportedFilesFormat": list(ENDINGS),
                "language": {
                    "source": {"code": source, "name": NAMES.get(source, source)},
                    "target": {"code": target, "name": NAMES.get(target, target)},
                },
            }
        )
