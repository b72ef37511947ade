"""Requests of the clients of docs/clients.md that are no Python packages, as their sources write them."""

from urllib.parse import urlencode

import pytest

import mlx_transformer as mt

TEXT = "Where is the station?"
JSON = {"Content_Type": "application/json"}
FORM = {"Content_Type": "application/x-www-form-urlencoded"}


def post(client, body, **headers):
    answer = client.request("POST", "/translate", body, **headers)
    assert answer.status == 200, answer.body
    return answer.json


def test_subtitle_edit(client, bundled):
    """Its JSON begins with a field of escaped text, and its answer may not have markup."""
    body = b'{"q": "Where is the station?\\u003cbr /\\u003eHello!", "source": "en", "target": "fr"}'
    assert "gare" in post(client, body, accept="application/json", **JSON)["translatedText"]
    broken = b'{"q": "Hello", "source": "en", "target": "fr" "api_key": "x" }'  # with a key
    assert client.request("POST", "/translate", broken, **JSON).status == 400


def test_twp(client, bundled):
    pytest.importorskip("py3langid", reason="the library that detects languages is not installed")
    fields = {"q": TEXT, "source": "auto", "target": "fr", "format": "text", "api_key": "any"}
    answer = post(client, urlencode(fields), **FORM)
    assert answer["translatedText"] == mt.generate(*bundled, TEXT)
    assert answer["detectedLanguage"]["language"] == "en"


def test_kiss_translator_and_pot(client, bundled):
    expected = {"translatedText": mt.generate(*bundled, TEXT)}
    assert client.translate(TEXT, format="text").json == expected
    assert client.translate(TEXT, format="text", api_key="any").json == expected


def test_pantran(client, bundled):
    assert {"code": "en", "name": "English", "targets": ["fr"]} in client.get("/languages").json
    assert client.translate(TEXT, api_key=None).json == {"translatedText": mt.generate(*bundled, TEXT)}


def test_the_openai_service_of_pot(client, bundled):
    body = {"model": "bundled", "stream": False, "temperature": 0, "messages": [{"role": "user", "content": TEXT}]}
    answer = client.post("/v1/chat/completions", body, Authorization="Bearer ")
    assert answer.json["choices"][0]["message"]["content"] == mt.generate(*bundled, TEXT)
