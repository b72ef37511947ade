"""The API of LibreTranslate: texts and HTML by language codes."""

import asyncio
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import JSONResponse

from mlx_transformer.config.tokenizer import AUTO
from mlx_transformer.documents.content import has_letters
from mlx_transformer.documents.translation import ENDINGS
from mlx_transformer.messages import short_repr
from mlx_transformer.server.detection import Detection, detect, detect_source
from mlx_transformer.server.fields import Fields
from mlx_transformer.server.language_codes import distinct_codes, language_name
from mlx_transformer.server.models import ModelStore
from mlx_transformer.server.settings import RequestError, ServerSettings
from mlx_transformer.server.translation import all_results, submit_texts

MAX_ALTERNATIVES = 10


def _format(detection: Detection) -> dict[str, Any]:
    return {"confidence": round(100 * detection.probability, 1), "language": detection.language}


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
        is_list = isinstance(fields.get("q"), list)
        answer: dict[str, Any] = {}
        has_language = True
        if source == AUTO and (sources := self._store.sources(target)):
            detection = await asyncio.to_thread(detect_source, " ".join(texts), sources, target)
            answer["detectedLanguage"] = [_format(detection)] * len(texts) if is_list else _format(detection)
            source, has_language = detection.language, any(map(has_letters, texts))
        if not has_language or self._store.is_same_language(source, target):
            if count:
                answer["alternatives"] = [[] for _ in texts] if is_list else []
            return JSONResponse(answer | {"translatedText": fields.get("q")})
        name, *codes = self._store.find(source, target)
        options = {"num_hypotheses": count + 1} if count else {}
        pending = await submit_texts(self._store, name, texts, (codes[0], codes[1]), options, kind == "html")
        results = await all_results(pending, count + 1)
        rows = [list(dict.fromkeys(result.text for result in row)) for row in results]  # different texts
        answer["translatedText"] = [best for best, *_ in rows] if is_list else rows[0][0]
        if count:
            answer["alternatives"] = [others for _, *others in rows] if is_list else rows[0][1:]
        return JSONResponse(answer)

    async def detect(self, fields: Fields) -> JSONResponse:
        """Detect the language of a text, or of a list of texts together, among those that the models read."""
        if not (text := " ".join(fields.texts("q"))):
            raise fields.missing("q")
        return JSONResponse([_format(await asyncio.to_thread(detect, text, self._store.sources()))])

    async def suggest(self, fields: Fields) -> NoReturn:
        """Refuse a better translation, as LibreTranslate does where nobody collects them."""
        raise RequestError(403, "Suggestions are disabled on this server.")

    async def languages(self, request: Request) -> JSONResponse:
        """Return all languages, each with the targets of texts in it."""
        targets: dict[str, dict[str, None]] = {}
        for languages in self._store.languages.values():
            codes = distinct_codes(languages.targets)
            for source in distinct_codes(languages.sources) if codes else ():
                others = dict.fromkeys(code for code in codes if code != source)
                targets.setdefault(source, {}).update(others)
            for code in codes:
                targets.setdefault(code, {})
        return JSONResponse(
            [{"code": code, "name": language_name(code), "targets": list(others)} for code, others in targets.items()]
        )

    async def frontend_settings(self, request: Request) -> JSONResponse:
        """Return what LibreTranslate's clients ask for before they show a form."""
        has_keys = bool(self._settings.api_keys)
        pairs = (
            (a, b) for each in self._store.languages.values() for a in each.sources for b in each.targets if a != b
        )
        source, target = next(pairs, ("", ""))
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
                    "source": {"code": source, "name": language_name(source)},
                    "target": {"code": target, "name": language_name(target)},
                },
            }
        )
