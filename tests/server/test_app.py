"""Who may use the server, time limits, clients that leave, metrics, and errors in the shape of the API."""

import http.client
import json
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from support.http_server import hold_batches, serve

JSON = {"Content_Type": "application/json"}
FORM = {"Content_Type": "application/x-www-form-urlencoded"}
HELLO = {"q": "Hello", "source": "en", "target": "fr"}
SURROGATE = b'{"q": "\\ud800", "source": "en", "target": "fr"}'
DEEP = b'{"q": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Hello"}

# Path, body (data is sent as JSON), headers, and the status of the answer.
HOSTILE = [
    ("/translate", b"", JSON, 400),
    ("/translate", b"{", JSON, 400),
    ("/translate", b"nonsense", JSON, 400),
    ("/translate", b"\xff\xfe\xfa", JSON, 400),
    ("/translate", b'{"q": NaN}', JSON, 400),
    ("/translate", b'{"q": ' + b"1" * 10_000 + b"}", JSON, 400),
    ("/translate", DEEP, JSON, 400),
    ("/translate", SURROGATE, JSON, 400),
    ("/translate", b'{"q": "Hello", "source": "en", "target": "\\ud800"}', JSON, 400),
    ("/translate", [], JSON, 400),
    ("/translate", None, JSON, 400),
    ("/translate", "text", JSON, 400),
    ("/translate", {}, JSON, 400),
    ("/translate", HELLO | {"q": None}, JSON, 400),
    ("/translate", HELLO | {"q": 1}, JSON, 400),
    ("/translate", HELLO | {"q": {"a": 1}}, JSON, 400),
    ("/translate", HELLO | {"q": [1]}, JSON, 400),
    ("/translate", HELLO | {"q": [["Hello"]]}, JSON, 400),
    ("/translate", HELLO | {"q": ["Hello", None]}, JSON, 400),
    ("/translate", HELLO | {"source": ""}, JSON, 400),
    ("/translate", HELLO | {"source": None}, JSON, 400),
    ("/translate", HELLO | {"source": ["en"]}, JSON, 400),
    ("/translate", HELLO | {"target": 5}, JSON, 400),
    ("/translate", HELLO | {"target": "x" * 100_000}, JSON, 400),
    ("/translate", HELLO | {"target": "fr\r\nX-Evil: 1"}, JSON, 400),
    ("/translate", HELLO | {"format": "pdf"}, JSON, 400),
    ("/translate", HELLO | {"format": 1}, JSON, 400),
    ("/translate", HELLO | {"alternatives": -1}, JSON, 400),
    ("/translate", HELLO | {"alternatives": 10_000}, JSON, 400),
    ("/translate", HELLO | {"alternatives": 1.5}, JSON, 400),
    ("/translate", HELLO | {"alternatives": "2"}, JSON, 400),
    ("/translate", HELLO | {"alternatives": True}, JSON, 400),
    ("/translate", b'{"q": "Hello", "source": "en", "target": "fr", "alternatives": 1e999}', JSON, 400),
    ("/translate", HELLO | {"api_key": []}, JSON, 400),
    ("/translate", HELLO | {"q": "x" * 20_001}, JSON, 413),
    ("/translate", HELLO | {"q": ["x"] * 129}, JSON, 413),
    ("/translate", b'{"q": "' + b"x" * 4_000_001, JSON, 413),
    ("/translate", b"q=%ff&source=en&target=fr", FORM, 400),
    ("/translate", b"&" * 2000 + b"a=b", FORM, 400),
    ("/translate", b"{}", FORM, 400),
    (
        "/translate",
        b"q=a&source=en&target=fr&alternatives=x",
        FORM,
        400,
    ),
    ("/translate", b"--x--", {"Content_Type": "multipart/form-data; boundary=x"}, 400),
    ("/translate", b"q", {"Content_Type": "text/plain"}, 415),
    ("/detect", {}, JSON, 400),
    ("/translate_file", b"", JSON, 400),
    ("/translate/", HELLO, JSON, 404),
    ("/../etc/passwd", b"", JSON, 404),
    ("/health", b"", JSON, 405),
    (CHAT, b"{", JSON, 400),
    (CHAT, {}, JSON, 400),
    (CHAT, {"messages": "Hello"}, JSON, 400),
    (CHAT, {"messages": []}, JSON, 400),
    (CHAT, {"messages": ["Hello"]}, JSON, 400),
    (CHAT, {"messages": [{"role": "user"}]}, JSON, 400),
    (CHAT, {"messages": [{"role": "user", "content": 1}]}, JSON, 400),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, JSON, 400),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, JSON, 400),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 20_001}]}, JSON, 413),
    (CHAT, {"messages": [USER], "model": "other"}, JSON, 404),
    (CHAT, {"messages": [USER], "model": 1}, JSON, 400),
    (CHAT, {"messages": [USER], "n": 0}, JSON, 400),
    (CHAT, {"messages": [USER], "n": 1000}, JSON, 400),
    (CHAT, {"messages": [USER], "n": 2, "stream": True}, JSON, 400),
    (CHAT, {"messages": [USER], "stream": "yes"}, JSON, 400),
    (CHAT, {"messages": [USER], "max_tokens": 0}, JSON, 400),
    (CHAT, {"messages": [USER], "max_tokens": "5"}, JSON, 400),
    (CHAT, {"messages": [USER], "temperature": -1}, JSON, 400),
    (CHAT, {"messages": [USER], "temperature": 1e-9}, JSON, 400),
    (CHAT, {"messages": [USER], "temperature": 1, "top_p": 0}, JSON, 400),
    (CHAT, {"messages": [USER], "temperature": 1, "seed": -1}, JSON, 400),
    (CHAT, {"messages": [USER], "source_language": "de"}, JSON, 400),
    ("/v1/completions", {"prompt": [1, 2, 3]}, JSON, 400),
    ("/v1/completions", {"prompt": None}, JSON, 400),
    ("/v1/embeddings", {"input": [[1, 2]]}, JSON, 400),
    ("/v1/embeddings", {"input": "a", "dimensions": 5}, JSON, 400),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, JSON, 400),
    ("/v1/nonsense", {}, JSON, 404),
]


@pytest.mark.parametrize(("path", "body", "headers", "status"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_wrong_request_is_answered_with_one_line(client, path, body, headers, status):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.request("POST", path, body, **headers)
    assert answer.status == status, answer.body[:300]
    error = answer.json["error"]
    message = error["message"] if path.startswith("/v1/") else error
    assert 10 < len(message) < 300 and message.isprintable()
    assert message.endswith(".") and "Traceback" not in message
    if path.startswith("/v1/"):
        assert error.keys() == {"message", "type", "param", "code"}


def test_the_server_lives_on_after_raw_nonsense(client):
    for data in (b"\x00\xff" * 500, b"GET /health HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1000).startswith(b"HTTP/1.1 4")
    assert client.translate("Good morning!").status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:5000", "[::1]:80", ""])
def test_a_request_to_another_name_is_refused(client, host):
    answer = client.get("/languages", Host=host)
    assert answer.status == 421 and "local" in answer.json["error"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:5000"])
def test_a_request_to_this_machine_is_answered(client, host):
    assert client.get("/health", Host=host).status == 200


def test_web_pages_read_answers_only_if_the_server_allows_it(client, bundled):
    origin = {"Origin": "https://page.example"}
    assert "access-control-allow-origin" not in client.get("/languages", **origin).headers
    with serve(lambda name: bundled, cors_origins=("https://page.example",)) as open_client:
        answer = open_client.get("/languages", **origin)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        other = open_client.get("/languages", Origin="https://other.example").headers
        assert "access-control-allow-origin" not in other
        preflight = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
        assert open_client.request("OPTIONS", "/translate", **origin, **preflight).status == 200


def test_an_answer_that_takes_too_long_is_given_up(bundled):
    with serve(lambda name: bundled, small_batches=False, timeout=0.3) as client:
        with hold_batches(client):
            assert client.translate("Good morning!").status == 504
            answer = client.translate(["I love you."] * 5)  # these wait, and are dropped
            assert answer.status == 504 and "0.3 seconds" in answer.json["error"]
            stream = client.post(CHAT, {"messages": [USER], "stream": True})
            assert stream.status == 200 and b"0.3 seconds" in stream.body and b"[DONE]" not in stream.body
        client.wait_for("waiting_sentences", 0)
        assert client.metric("sentences_total") == 1


def test_a_request_that_does_not_arrive_is_given_up(bundled):
    with serve(lambda name: bundled, timeout=0.3) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as connection:
            head = b"POST /translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
            connection.sendall(head)
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
def test_the_sentences_of_a_client_that_leaves_are_dropped(bundled, fields):
    body = json.dumps({"prompt": ["Good morning!", "Hello."]} | fields)
    with serve(lambda name: bundled, small_batches=False) as client, ThreadPoolExecutor(1) as pool:
        with hold_batches(client) as entered:
            first = pool.submit(client.translate, "I love you.")
            assert entered.wait(10)
            with closing(http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)) as connection:
                connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
                client.wait_for("waiting_sentences", 2)
            client.wait_for("request_seconds_count", 1, "/v1/completions")
        assert first.result().status == 200
        client.wait_for("waiting_sentences", 0)
        assert client.metric("sentences_total") == 1


def test_a_failure_of_the_server_is_500_without_its_reason(bundled):
    with serve(lambda name: bundled) as client:
        worker = vars(client.store.get("bundled"))["_worker"]
        vars(worker)["_run"] = lambda *arguments: 1 / 0
        for path, data in (("/translate", HELLO), ("/v1/completions", {"prompt": "Hello"})):
            answer = client.post(path, data)
            assert answer.status == 500 and b"division" not in answer.body and b"its log" in answer.body
        assert client.get("/health").status == 200


def test_metrics_count_requests_by_path_and_status(bundled):
    with serve(lambda name: bundled) as client:
        client.translate(["Good morning!", "Hello."])
        client.translate("Hello", target="de")
        for number in range(5):
            client.get(f"/unknown/{number}")
        text = client.get("/metrics").body.decode()
        assert 'mlx_transformer_requests_total{path="/translate",status="200"} 1.0' in text
        assert 'mlx_transformer_requests_total{path="/translate",status="400"} 1.0' in text
        assert 'mlx_transformer_requests_total{path="other",status="404"} 5.0' in text
        assert 'mlx_transformer_waiting_sentences{model="bundled"} 0.0' in text
        assert "mlx_transformer_loaded_models 1.0" in text
        assert "unknown" not in text and "Good" not in text


def test_no_text_is_logged(bundled, caplog):
    caplog.set_level(logging.DEBUG)
    with serve(lambda name: bundled) as client:
        client.translate("My secret is safe.")
        client.translate("My secret is safe.", target="de")
        client.post(CHAT, {"messages": [{"role": "user", "content": "My secret is safe."}]})
    assert "secret" not in caplog.text
