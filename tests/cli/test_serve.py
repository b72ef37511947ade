"""The command serve: it starts, answers, and ends at signals; its errors are one line."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from support.command_line import error_line
from support.paths import ROOT

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.cli.commands.serve import read_shortlists

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
FIELDS = {"source": "en", "target": "fr"}


def run(*arguments):
    return CliRunner().invoke(main, ["serve", *arguments])


@contextmanager
def running_server(*arguments):
    """Start the command on a free port; yield the process, its port, and after the end its standard error."""
    command = [sys.executable, "-m", "mlx_transformer", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    server = SimpleNamespace(process=process, lines=[])
    try:
        for line in process.stderr:
            server.lines.append(line)
            if match := re.search(r"http://\S+:(\d+)", line):
                server.port = int(match[1])
                break
        yield server
    finally:
        process.kill()
        server.lines += process.stderr.readlines()
        process.wait()
        process.stderr.close()
        process.stdout.close()


def request(port, method, path, fields=None):
    """Send a request; return the status and the text of its answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        connection.request(method, path, json.dumps(fields), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()


def num_sentences(port):
    return re.search(r"_sentences_total{.*} (\S+)", request(port, "GET", "/metrics")[1])[1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_signal_ends_the_server_after_what_runs(number, status):
    texts = [f"The train number {i} was late again, and my sister missed the last bus to the city." for i in range(120)]
    fields = FIELDS | {"q": texts, "alternatives": 3}
    with running_server() as server:
        # MLX compiles kernels for the CPU by system(3), during which SIGINT is ignored.
        request(server.port, "POST", "/translate", fields)
        before = num_sentences(server.port)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(request(server.port, "POST", "/translate", fields)))
        thread.start()
        while num_sentences(server.port) == before:
            pass
        server.process.send_signal(number)
        while True:
            try:
                socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
            except OSError:
                break
        assert not answers, "the request ended before new ones were refused"
        thread.join()
        ((code, answer),) = answers
        results = json.loads(answer)["translatedText"]
        assert code == 200 and len(results) == len(texts) and all(results)
        assert server.process.wait(30) == status
    expected = ["Interrupted.\n"] if number == signal.SIGINT else []
    assert server.lines[1:] == expected


def test_nothing_is_logged_but_the_address(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("one\n\n two \n")
    with running_server("--api-key-file", str(keys), "--model", "de-en=bundled") as server:
        for text in ("My secret", "x" * 30_000):  # the key is looked at first
            assert request(server.port, "POST", "/translate", FIELDS | {"q": text})[0] == 403
        for key, status in (("one", 400), ("two", 400), ("three", 403)):
            fields = FIELDS | {"q": "My secret", "api_key": key}  # the server translates German to English
            assert request(server.port, "POST", "/translate", fields)[0] == status
        server.process.terminate()
        server.process.wait(30)
    assert server.lines == [f"Serving bundled on http://127.0.0.1:{server.port}\n"]


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        line = error_line(run("--port", str(port)))
    assert f"127.0.0.1, port {port}: Address already in use" in line and "--port" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "nowhere.invalid"], "nowhere.invalid"),
        (["--port", "0", "--model", "no/such folder"], "no/such folder"),
        (["--port", "0", "--api-key-file", "{empty}"], "at least one"),
        (["--port", "0", "--max-texts", "0"], "--max-texts"),
        (["--port", "0", "--max-body", "many"], "many"),
        (["--port", "0", "--timeout", "0"], "--timeout"),
        (["--port", "70000"], "--port"),
        (["--port", "0", "--shortlist", "{empty}.none"], "empty.none"),
        (["--port", "0", "--shortlist", "{empty}"], "a shortlist must be a binary one of Marian"),
        (["--port", "0", "--shortlist", "a.bin", "--shortlist", "b.bin"], "once for a model of bundled, not 'b.bin'"),
        (
            ["--port", "0", "--model", "a", "--model", "b", "--shortlist", "x.bin"],
            "MODEL=FILE, once for a model of a, b",
        ),
    ],
)
def test_wrong_options_are_one_line(tmp_path, arguments, words):
    (tmp_path / "empty").write_text("\n")
    line = error_line(run(*(argument.format(empty=tmp_path / "empty") for argument in arguments)))
    assert words in line


def test_shortlists_are_those_of_the_models_that_they_name(monkeypatch):
    monkeypatch.setattr(mt, "read_shortlist", str)
    read = partial(read_shortlists, ["a", "a=b", "c"])
    assert read(("a=x", "a=b=y=z")) == {"a": "x", "a=b": "y=z"}
    assert read_shortlists(["a"], ("x=y",)) == read_shortlists(["a"], ("a=x=y",)) == {"a": "x=y"}
    assert read(()) == {}


def test_without_the_extra_its_installation_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("mlx_transformer.server")]:
        monkeypatch.delitem(sys.modules, name)
    line = error_line(run("--port", "0"))
    assert "uvicorn" in line and "serve]" in line
