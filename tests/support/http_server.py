"""A server of the package on a free port of loopback, in a thread, and a client of the standard library for it."""

import copy
import http.client
import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import uvicorn

from mlx_transformer.server import batching
from mlx_transformer.server.app import create_app
from mlx_transformer.server.metrics import Metrics
from mlx_transformer.server.models import ModelName, ModelStore
from mlx_transformer.server.settings import ServerSettings


class Answer(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Client(NamedTuple):
    port: int
    store: ModelStore

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def request(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.request("GET", path, **headers)

    def post(self, path, data, **headers):
        """Post JSON."""
        return self.request("POST", path, json.dumps(data), **{"Content_Type": "application/json"} | headers)

    def translate(self, q, **fields):
        return self.post("/translate", {"q": q, "source": "en", "target": "fr"} | fields)

    def metric(self, name, label=""):
        """The sum of a metric over its labels, or those that contain a text."""
        lines = self.get("/metrics").body.decode()
        pattern = rf"^mlx_transformer_{name}(?:\{{.*{re.escape(label)}.*\}})? (\S+)$"
        return sum(map(float, re.findall(pattern, lines, re.MULTILINE)))

    def wait_for(self, name, value, label=""):
        """Wait until a metric has a value."""
        end = time.monotonic() + 20
        while (current := self.metric(name, label)) != value:
            assert time.monotonic() < end, f"{name} is {current}, not {value}"
            time.sleep(0.01)


@contextmanager
def hold_batches(client, name="bundled"):
    """Let the batches of a model wait until the end of the block; yield an event that is set when one waits."""
    worker = vars(client.store.get(name))["_worker"]
    run = vars(worker)["_run"]
    entered, released = threading.Event(), threading.Event()

    def wait_and_run(*arguments):
        entered.set()
        assert released.wait(60)
        return run(*arguments)

    vars(worker)["_run"] = wait_and_run
    try:
        yield entered
    finally:
        released.set()
        vars(worker)["_run"] = run


@contextmanager
def serve(load_model, names=("bundled",), memory_limit=None, small_batches=True, **settings):
    """Serve models, each loaded by `load_model`; yield a client. Without small batches, a model has one thread."""
    share = batching.SMALL_SHARE if small_batches else 10**9
    with mock.patch.object(batching, "SMALL_SHARE", share):
        yield from _serve(load_model, names, memory_limit, ServerSettings(**settings))


def _serve(load_model, names, memory_limit, settings):
    metrics = Metrics()
    parsed = [name if isinstance(name, ModelName) else ModelName.parse(name) for name in names]

    def load_copy(name):
        model, tokenizer = load_model(name)
        return copy.copy(model), tokenizer  # a model has one engine

    store = ModelStore(parsed, metrics, memory_limit, settings.max_queue, load_copy)
    config = uvicorn.Config(create_app(store, settings, metrics), log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield Client(listener.getsockname()[1], store)
    finally:
        server.should_exit = True
        thread.join()
