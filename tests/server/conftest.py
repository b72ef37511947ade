"""The bundled model, loaded once, and a server of it."""

import pytest
from support.http_server import serve

import mlx_transformer as mt


@pytest.fixture(scope="session")
def bundled():
    return mt.load()


@pytest.fixture(scope="session")
def client(bundled):
    with serve(lambda name: bundled, hosts=("localhost", "127.0.0.1")) as client:
        yield client
