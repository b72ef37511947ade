"""The HTTP application: routes, who may use them, time limits, and errors in the shape of the API that was called."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_transformer.messages import short_repr
from mlx_transformer.server.documents import DocumentAPI
from mlx_transformer.server.fields import Fields, read_fields
from mlx_transformer.server.libretranslate import LibreTranslateAPI
from mlx_transformer.server.metrics import Metrics
from mlx_transformer.server.models import ModelStore
from mlx_transformer.server.openai import OpenAIAPI
from mlx_transformer.server.page import STATIC_PATHS, Page, show_file
from mlx_transformer.server.settings import RequestError, ServerSettings

CLIENT_LEFT = 499  # as nginx counts it; nobody reads the answer
OPENAI_PREFIX = "/v1/"
PORT = re.compile(r":\d+$")
Handler = Callable[[Fields], Awaitable[Response]]
ERROR_CODES = {401: "invalid_api_key", 404: "not_found", 413: "too_large"}


def create_app(store: ModelStore, settings: ServerSettings, metrics: Metrics) -> Starlette:
    """Return the application.

    Args:
        store: The models; they are unloaded when the application shuts down.
        settings: Limits, and who may use the server.
        metrics: The metrics of the store, which get those of requests.
    """
    libretranslate, openai, guard = LibreTranslateAPI(store, settings), OpenAIAPI(store, settings), Guard(settings)
    page, documents = Page(store), DocumentAPI(store)
    posts: dict[str, Handler] = {
        "/translate": libretranslate.translate,
        "/translate_file": documents.translate_file,
        "/detect": libretranslate.detect,
        "/suggest": libretranslate.suggest,
        "/v1/chat/completions": openai.chat_completions,
        "/v1/completions": openai.completions,
        "/v1/embeddings": openai.embeddings,
        "/page/translate": page.translate,
    }

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.format(), media_type=CONTENT_TYPE_LATEST)

    gets = {
        "/health": health,
        "/metrics": show_metrics,
        "/languages": libretranslate.languages,
        "/frontend/settings": libretranslate.frontend_settings,
        "/v1/models": guard.wrap_get(openai.models),
        **dict.fromkeys(STATIC_PATHS, show_file),
    }
    paths = {*posts, *gets}
    middleware = [Middleware(Gate, settings=settings, metrics=metrics, paths=paths)]
    if settings.cors_origins:
        methods, headers = ("GET", "POST"), ("Authorization", "Content-Type")
        cors = Middleware(CORSMiddleware, settings.cors_origins, allow_methods=methods, allow_headers=headers)
        middleware.append(cors)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(store.close)

    app = Starlette(
        routes=[
            *(Route(path, guard.wrap_post(handler), methods=["POST"]) for path, handler in posts.items()),
            *(Route(path, handler, methods=["GET"]) for path, handler in gets.items()),
            Route("/v1/models/{name:path}", guard.wrap_get(openai.model), methods=["GET"]),
            Route("/download_file/{token}", documents.download_file, methods=["GET"]),
        ],
        middleware=middleware,
        exception_handlers={kind: handle_error for kind in (RequestError, HTTPException, ClientDisconnect, Exception)},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class Guard:
    """Lets only requests pass that have a key, and only for a time."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings

    def wrap_get(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint that needs a key."""

        async def endpoint(request: Request) -> Response:
            self._check_key(request, None)
            return await handler(request)

        return endpoint

    def wrap_post(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint for the fields of a request; its work ends with its time, or when the client leaves."""

        async def endpoint(request: Request) -> Response:
            try:
                fields = await asyncio.wait_for(read_fields(request, self._settings), self._settings.timeout)
            except asyncio.TimeoutError:
                raise RequestError(408, f"The request did not arrive in {self._settings.timeout:g} seconds.") from None
            self._check_key(request, fields)
            try:
                return await self._finish(request, handler(fields))
            except ValueError as error:  # from the library, about an argument that comes from the request
                raise RequestError(400, " ".join(str(error).split())) from error

        return endpoint

    async def _finish(self, request: Request, work: Awaitable[Response]) -> Response:
        """Return the answer; RequestError if it takes too long, or the client leaves."""
        answer, left = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait({answer, left}, timeout=self._settings.timeout, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if left.done():
                raise ClientDisconnect
            raise RequestError(504, f"The answer took longer than {self._settings.timeout:g} seconds: send less text.")
        finally:
            answer.cancel()
            left.cancel()

    def _check_key(self, request: Request, fields: Fields | None) -> None:
        """Raise RequestError unless a request has a key, in the header Authorization or the field api_key."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = (fields.text("api_key") if fields else None) or ""
        if not self._settings.is_allowed(key.strip()):
            is_openai = request.url.path.startswith(OPENAI_PREFIX)
            raise RequestError(
                401 if is_openai else 403, "Invalid API key." if key else "This server needs an API key."
            )


class Gate:
    """ASGI middleware: counts requests, and refuses those that are addressed to another host."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._hosts, self._metrics, self._paths = app, settings.hosts, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        request = Request(scope)
        host = PORT.sub("", request.headers.get("host", "")).lower()
        path = scope["path"] if scope["path"] in self._paths else "other"
        try:
            if self._hosts and host not in self._hosts:  # as after DNS rebinding by a web page
                error = RequestError(421, f"This server is local: it is not {short_repr(host)}, but {self._hosts[0]}.")
                await error_response(request, error)(scope, receive, watch)
            else:
                await self._app(scope, receive, watch)
        finally:
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - start)


async def handle_error(request: Request, error: Exception) -> Response:
    """Return the answer to a request that failed."""
    if isinstance(error, ClientDisconnect):
        error = RequestError(CLIENT_LEFT, "The client left.")
    if isinstance(error, HTTPException):
        status, message = error.status_code, f"{error.detail}: {request.method} {short_repr(request.url.path)}."
        error = RequestError(status, message, headers=dict(error.headers or {}))
    if not isinstance(error, RequestError):
        error = RequestError(500, "The server failed: its log has the reason.")
    return error_response(request, error)


def error_response(request: Request, error: RequestError) -> Response:
    """Return an error in the shape of the API that was called."""
    message = str(error)
    if not request.url.path.startswith(OPENAI_PREFIX):
        return JSONResponse({"error": message}, error.status, error.headers)
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    code = error.code or ERROR_CODES.get(error.status)
    content = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(content, error.status, error.headers)
