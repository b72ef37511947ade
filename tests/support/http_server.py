"""A server of the package on a free port of loopback, in a thread, and a client of the standard library for it."""

import http.client
import json
import re
import socket
import threading
from contextlib import contextmanager
from typing import NamedTuple

import uvicorn

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

    def metric(self, name):
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").body.decode()
        return sum(map(float, re.findall(rf"^mlx_transformer_{name}(?:\{{.*\}})? (\S+)$", lines, re.MULTILINE)))


@contextmanager
def serve(load_model, names=("bundled",), memory_limit=None, **settings):
    """Serve models, each loaded by `load_model`; yield a client."""
    settings = ServerSettings(**settings)
    metrics = Metrics()
    parsed = [ModelName.parse(name) for name in names]
    store = ModelStore(parsed, metrics, memory_limit, settings.max_queue, load_model)
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
