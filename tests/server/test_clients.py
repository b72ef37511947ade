"""Requests of the clients of docs/clients.md that are no Python packages, as their sources write them."""

from urllib.parse import urlencode

import pytest

import mlx_transformer as mt

TEXT = "Where is the station?"
BOUNDARY = "----boundary"
JSON = {"Content_Type": "application/json"}
FORM = {"Content_Type": "application/x-www-form-urlencoded"}
MULTIPART = {"Content_Type": f"multipart/form-data; boundary={BOUNDARY}"}


def post(client, body, **headers):
    answer = client.request("POST", "/translate", body, **headers)
    assert answer.status == 200, answer.body
    return answer.json


def multipart(fields):
    """A form as FormData of browsers and curl -F send it."""
    parts = (f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
    return "".join(f"--{BOUNDARY}\r\n{part}" for part in parts).encode() + f"--{BOUNDARY}--\r\n".encode()


def test_the_page_of_libretranslate(client, bundled):
    """It needs all targets among the codes, and takes its first choice from the settings."""
    languages = {row["code"]: row for row in client.get("/languages").json}
    assert all(target in languages for row in languages.values() for target in row["targets"])
    chosen = client.get("/frontend/settings").json["language"]
    assert chosen["target"]["code"] in languages[chosen["source"]["code"]]["targets"]
    fields = {"q": TEXT, "source": "en", "target": "fr", "format": "text", "alternatives": 3, "api_key": ""}
    answer = post(client, multipart(fields), **MULTIPART)
    assert answer["translatedText"] == mt.generate(*bundled, TEXT) and len(answer["alternatives"]) == 3
    refused = client.request("POST", "/suggest", multipart({"q": TEXT, "s": "Où ?"}), **MULTIPART)
    assert refused.status == 403 and "error" in refused.json


def test_libretranslate_sh(client, bundled):
    fields = {"q": TEXT, "source": "en", "target": "fr"}
    assert post(client, multipart(fields), **MULTIPART) == {"translatedText": mt.generate(*bundled, TEXT)}


def test_libretranslate_mcp(client, bundled):
    fields = {"q": TEXT, "source": "en", "target": "fr", "alternatives": "3"}
    answer = post(client, urlencode(fields), **FORM)
    assert answer["translatedText"] == mt.generate(*bundled, TEXT) and len(answer["alternatives"]) == 3


def test_translate_you(client, bundled):
    """Its fields are parameters of the address, and the body is empty."""
    fields = {"q": TEXT, "source": "en", "target": "fr", "api_key": "", "format": "text", "alternatives": 3}
    answer = client.request("POST", f"/translate?{urlencode(fields)}", b"")
    assert answer.json["translatedText"] == mt.generate(*bundled, TEXT) and len(answer.json["alternatives"]) == 3


def test_discourse(client):
    """It asks for both languages among the codes, and translates the HTML of a post."""
    assert {"en", "fr"} <= {row["code"] for row in client.get("/languages").json}
    fields = {"q": f"<p>{TEXT}</p>", "source": "en", "target": "fr", "format": "html", "api_key": ""}
    assert post(client, urlencode(fields), **FORM) == {"translatedText": "<p>Où est la gare ?</p>"}


def test_libretranslate_for_php(client, bundled):
    """Its GET requests have a body, and the text whose language it detects is a parameter of the address."""
    assert client.request("GET", "/languages", multipart({}), **MULTIPART).json[1]["code"] == "fr"
    fields = {"q": TEXT, "format": "html", "source": "en", "target": "fr"}
    assert post(client, multipart(fields), **MULTIPART) == {"translatedText": mt.generate(*bundled, TEXT)}
    pytest.importorskip("py3langid", reason="the library that detects languages is not installed")
    answer = client.request("POST", f"/detect?{urlencode({'q': TEXT})}", multipart({}), **MULTIPART)
    assert answer.json[0]["language"] == "en"


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
