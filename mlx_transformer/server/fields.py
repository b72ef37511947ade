"""Bodies of requests: read within limits, parsed as JSON or forms, their fields checked."""

import asyncio
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from python_multipart import parse_form
from python_multipart.exceptions import FormParserError
from starlette.requests import Request

from mlx_transformer.messages import short_repr
from mlx_transformer.server.settings import RequestError, ServerSettings

MAX_FORM_FIELDS = 1000
SEND = 'send JSON with the header "Content-Type: application/json"'


class UploadedFile(NamedTuple):
    """A file of a form."""

    name: str
    data: bytes


class Fields:
    """The fields of a request's body.

    Attributes:
        base_url: The address of the server, as the client calls it.
    """

    def __init__(
        self, values: Mapping[str, Any], settings: ServerSettings, is_form: bool = False, base_url: str = ""
    ) -> None:
        self._values, self._settings, self._is_form, self.base_url = values, settings, is_form, base_url

    def get(self, name: str) -> Any:
        """Return a field of any type; None if it is missing."""
        return self._values.get(name)

    def text(self, name: str, default: str | None = None) -> str | None:
        """Return a field that is a string."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise RequestError(400, f"{name} must be a string, not {short_repr(value)}.")
        return default if value is None else value

    def file(self, name: str) -> UploadedFile:
        """Return a file of a form."""
        if not isinstance(value := self._values.get(name), UploadedFile):
            raise RequestError(400, f"Invalid request: missing {name}: send a form (multipart/form-data) with a file.")
        return value

    def required_text(self, name: str) -> str:
        """Return a field that is a string and not empty."""
        if not (value := self.text(name)):
            raise self.missing(name)
        return value

    def missing(self, name: str) -> RequestError:
        """Return the error of a field that is missing."""
        remedy = f"{SEND}, or a form" if self._is_form else "it is a field of the JSON object"
        return RequestError(400, f"Invalid request: missing {name} parameter; {remedy}.")

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a field that is a number in a range; None if it is missing."""
        value = self._values.get(name)
        if isinstance(value, str) and self._is_form:
            value = _parse_number(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise RequestError(400, f"{name} must be a number from {low:g} to {high:g}, not {short_repr(value)}.")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """Return a field that is a whole number in a range; None if it is missing."""
        value = self.number(name, low, high)
        if value is not None and value != int(value):
            raise RequestError(400, f"{name} must be a whole number, not {short_repr(value)}.")
        return None if value is None else int(value)

    def flag(self, name: str) -> bool:
        """Return a field that is true or false; False if it is missing."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise RequestError(400, f"{name} must be true or false, not {short_repr(value)}.")
        return bool(value)

    def texts(self, name: str) -> list[str]:
        """Return a field that is a text or a list of texts, within the limits of the server."""
        value = self._values.get(name)
        if value is None:
            raise self.missing(name)
        texts = value if isinstance(value, list) else [value]
        if len(texts) > self._settings.max_texts:
            raise RequestError(
                413,
                f"{name} must have at most {self._settings.max_texts} texts, not {len(texts)}: send several requests.",
            )
        for text in texts:
            self.check_text(name, text)
        return texts

    def check_text(self, name: str, text: object) -> None:
        """Raise RequestError for a text that is no string, or too long."""
        limit = self._settings.max_characters
        if not isinstance(text, str):
            raise RequestError(400, f"{name} must be a string or a list of strings, not {short_repr(text)}.")
        if len(text) > limit:
            raise RequestError(
                413, f"A text must have at most {limit:,} characters, not {len(text):,}: send it in parts."
            )


async def read_fields(request: Request, settings: ServerSettings) -> Fields:
    """Read and parse the body of a request; parameters of the address are fields too, unless the body is JSON.

    Raises:
        RequestError: If it is too large, or neither JSON nor a form.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > settings.max_body:
            raise RequestError(413, f"A request must have at most {settings.max_body:,} bytes: send several requests.")
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    query, values = request.scope["query_string"], None
    if kind == "multipart/form-data":
        values = await asyncio.to_thread(_parse_multipart, request.headers["content-type"], bytes(body))
    elif kind == "application/x-www-form-urlencoded" or (query and not body):
        values = _parse_form(bytes(body))
    if values is not None:
        return Fields(values | _parse_form(query), settings, is_form=True, base_url=str(request.base_url))
    if kind != "application/json" and not kind.endswith("+json"):
        raise RequestError(415, f"A request must be JSON or a URL-encoded form, not {short_repr(kind)}: {SEND}.")
    return Fields(_parse_json(bytes(body)), settings)


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(400, f"The request must be valid JSON: {reason}.") from None
    if not isinstance(values, dict):
        raise RequestError(400, f"The request must be a JSON object, not {short_repr(values)}.")
    return values


def _parse_form(body: bytes) -> dict[str, Any]:
    try:
        values = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS, errors="strict")
    except ValueError as error:
        raise RequestError(400, f"The request must be a URL-encoded form in UTF-8: {error}.") from None
    return {name: texts[0] if len(texts) == 1 else texts for name, texts in values.items()}


def _parse_multipart(content_type: str, body: bytes) -> dict[str, Any]:
    values: dict[str, Any] = {}

    def add_field(field: Any) -> None:
        _check_count(values)
        values[field.field_name.decode()] = (field.value or b"").decode()

    def add_file(file: Any) -> None:
        _check_count(values)
        file.file_object.seek(0)
        values[file.field_name.decode()] = UploadedFile((file.file_name or b"").decode(), file.file_object.read())

    headers = {"Content-Type": content_type.encode(), "Content-Length": str(len(body)).encode()}
    try:
        parse_form(headers, io.BytesIO(body), add_field, add_file)
    except (FormParserError, ValueError) as error:
        raise RequestError(400, f"The request must be a form (multipart/form-data): {error}.") from None
    return values


def _check_count(values: dict[str, Any]) -> None:
    if len(values) >= MAX_FORM_FIELDS:
        raise ValueError(f"there are more than {MAX_FORM_FIELDS} fields")


def _parse_number(text: str) -> float | str | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text
