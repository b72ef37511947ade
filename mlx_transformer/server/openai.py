"""The API of OpenAI: chat and text completions of sequence-to-sequence models, and embeddings."""

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.messages import short_repr
from mlx_transformer.server.batching import Work
from mlx_transformer.server.fields import Fields
from mlx_transformer.server.models import CountedLine, LoadedModel, ModelStore
from mlx_transformer.server.settings import RequestError, ServerSettings
from mlx_transformer.server.translation import PendingText, all_results, limit_time, submit_texts

MAX_CHOICES = 16
MAX_TOKENS = 1_000_000
MAX_SEED = 2**32 - 1
MAX_STOPS = 4
Choice = Callable[[int, str, str | None], dict[str, Any]]  # an index, a text and a finish reason


class Shape(NamedTuple):
    """Names and choices of an answer as a whole, and of the events of a stream."""

    answer: str
    event: str
    choice: Choice
    delta: Choice


class OpenAIAPI:
    """The endpoints of OpenAI."""

    def __init__(self, store: ModelStore, settings: ServerSettings) -> None:
        self._store, self._settings = store, settings
        self._created = int(time.time())

    async def models(self, request: Request) -> JSONResponse:
        """Return the models of the server."""
        return JSONResponse({"object": "list", "data": list(map(self._describe, self._store.names))})

    async def model(self, request: Request) -> JSONResponse:
        """Return one of the models."""
        return JSONResponse(self._describe(self._store.choose(request.path_params["name"])))

    async def chat_completions(self, fields: Fields) -> Response:
        """Generate from the last message of the user."""
        source = last_user_message(fields)
        return await self._complete(fields, [source], CHAT)

    async def completions(self, fields: Fields) -> Response:
        """Generate from a prompt, or from each of a list of prompts."""
        return await self._complete(fields, fields.texts("prompt"), TEXT)

    async def embeddings(self, fields: Fields) -> JSONResponse:
        """Embed a text, or each of a list of texts."""
        texts, name = fields.texts("input"), self._store.choose(fields.text("model"))
        encoding = fields.text("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise RequestError(400, f"encoding_format must be float or base64, not {short_repr(encoding)}.")
        if fields.get("dimensions") is not None:
            raise RequestError(400, "dimensions must be left out: vectors have the width of the model.")
        source, target = self._languages(name, fields, generates=False)

        def prepare(loaded: LoadedModel) -> tuple[None, list[CountedLine], Work]:
            return None, [loaded.count(SourceLine(text, source, target)) for text in texts], Work(None)

        _, counts, futures = await asyncio.to_thread(self._store.submit, name, prepare)
        results = await asyncio.gather(*map(asyncio.wrap_future, futures))
        if errors := [result.error for result in results if result.error]:
            raise RequestError(500, f"A text has no vector: {errors[0]}")
        rows = [
            {"object": "embedding", "index": index, "embedding": _encode_vector(result.vector, encoding)}
            for index, result in enumerate(results)
        ]
        usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
        return JSONResponse({"object": "list", "data": rows, "model": name, "usage": usage})

    def _describe(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "mlx_transformer"}

    async def _complete(self, fields: Fields, sources: list[str], shape: Shape) -> Response:
        """Generate from sources."""
        name = self._store.choose(fields.text("model"))
        languages = self._languages(name, fields)
        options, is_stream, stops = search_options(fields), fields.flag("stream"), stop_sequences(fields)
        count = options.get("num_hypotheses", 1)
        if is_stream and count > 1:
            raise RequestError(400, f"n must be 1 with stream, not {count}.")
        pending = await submit_texts(self._store, name, sources, languages, options)
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}
        prompt_tokens = sum(text.num_tokens for text in pending)
        if is_stream:
            extra = fields.get("stream_options")
            wants_usage = isinstance(extra, dict) and extra.get("include_usage") is True
            parts = limit_time(_stream(pending, prompt_tokens, wants_usage, stops, shape), self._settings.timeout)
            events = _events(parts, head | {"object": shape.event})
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        results = [result for row in await all_results(pending, count) for result in row]
        cut = [cut_text(result.text, stops) for result in results]
        choices = [
            shape.choice(i, text, "stop" if is_cut else result.finish_reason)
            for i, (result, (text, is_cut)) in enumerate(zip(results, cut, strict=True))
        ]
        usage = _usage(prompt_tokens, sum(result.num_tokens for result in results))
        return JSONResponse(head | {"object": shape.answer, "choices": choices, "usage": usage})

    def _languages(self, name: str, fields: Fields, generates: bool = True) -> tuple[str | None, str | None]:
        """Return the model's codes of the languages that a request names."""
        named = fields.text("source_language"), fields.text("target_language")
        return self._store.languages[name].resolve(*named, generates=generates)


def last_user_message(fields: Fields) -> str:
    """Return the text of the last message whose role is user; all others are ignored."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RequestError(400, f"messages must be a list of objects, not {short_repr(messages)}.")
    contents = [message.get("content") for message in messages if message.get("role") == "user"]
    if not contents:
        raise RequestError(400, 'messages must have one whose role is "user": its content is the source text.')
    content = contents[-1]
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise RequestError(400, "The parts of a message must be texts: this model reads nothing else.")
        content = "".join(map(str, parts))
    fields.check_text("content", content)
    return content


def search_options(fields: Fields) -> dict[str, Any]:
    """Return the fields of a search configuration that a request sets."""
    limit = fields.integer("max_completion_tokens", 1, MAX_TOKENS) or fields.integer("max_tokens", 1, MAX_TOKENS)
    temperature = fields.number("temperature", 0, 2)
    options: dict[str, Any] = {"max_tokens": limit, "num_hypotheses": fields.integer("n", 1, MAX_CHOICES)}
    if temperature:
        options |= {"temperature": float(temperature), "seed": fields.integer("seed", 0, MAX_SEED)}
        top_p = fields.number("top_p", 0, 1)
        options |= {"top_p": None if top_p is None else float(top_p)}
    return {name: value for name, value in options.items() if value is not None}


def stop_sequences(fields: Fields) -> list[str]:
    """Return the texts before which an answer ends."""
    value = fields.get("stop")
    stops = value if isinstance(value, list) else [] if value is None else [value]
    if len(stops) > MAX_STOPS or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestError(400, f"stop must be a text or at most {MAX_STOPS} of them, not {short_repr(value)}.")
    return stops


def cut_text(text: str, stops: list[str]) -> tuple[str, bool]:
    """Return a text up to the first of its stops, and whether it has one."""
    ends = [text.index(stop) for stop in stops if stop in text]
    return text[: min(ends, default=None)], bool(ends)


async def _stream(
    pending: list[PendingText], prompt_tokens: int, wants_usage: bool, stops: list[str], shape: Shape
) -> AsyncIterator[dict[str, Any]]:
    """Yield what differs between events: the sentences of each text, and the reasons why texts end."""
    num_tokens = 0
    try:
        for index, text in enumerate(pending):
            finish_reason, written = "stop", ""
            async for part in text.stream():
                num_tokens += part.num_tokens
                whole, is_cut = cut_text(written + part.text, stops)
                yield {"choices": [shape.delta(index, whole[len(written) :], None)]}
                if is_cut:
                    finish_reason = "stop"
                    break
                finish_reason = part.finish_reason if part.finish_reason != "stop" else finish_reason
                written = whole
            yield {"choices": [shape.delta(index, "", finish_reason)]}
        if wants_usage:
            yield {"choices": [], "usage": _usage(prompt_tokens, num_tokens)}
    finally:
        for future in (future for text in pending for future in text.futures()):
            future.cancel()


async def _events(parts: AsyncIterator[dict[str, Any]], head: dict[str, Any]) -> AsyncIterator[str]:
    """Yield server-sent events; an error is the last one, otherwise [DONE]."""
    try:
        async for part in parts:
            yield _event(head | part)
        yield "data: [DONE]\n\n"
    except RequestError as error:
        yield _event({"error": {"message": str(error), "type": "server_error", "param": None, "code": error.code}})


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def _chat_choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, "finish_reason": finish_reason, "logprobs": None}


def _chat_delta(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    delta = {} if finish_reason else {"role": "assistant", "content": text}
    return {"index": index, "delta": delta, "finish_reason": finish_reason, "logprobs": None}


def _text_choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": None}


CHAT = Shape("chat.completion", "chat.completion.chunk", _chat_choice, _chat_delta)
TEXT = Shape("text_completion", "text_completion", _text_choice, _text_choice)


def _encode_vector(vector: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(str(value)) for value in vector]
