"""LibreTranslate's API: its own client, forms and JSON, HTML, and answers equal to those of the library."""

import re
from urllib.parse import urlencode

import pytest
from support.http_server import serve

import mlx_transformer as mt
from mlx_transformer.server import detection as server_detection

TEXTS = ["Good morning!", "Where is the station?", "I love you."]
LONG = "The house is small. It rains a lot today. She reads a book in the garden.  " * 10 + "He left."


def test_a_text_and_a_list_are_translated_as_by_the_library(client, bundled):
    expected = mt.generate(*bundled, TEXTS)
    assert client.translate(TEXTS).json == {"translatedText": expected}
    assert client.translate(TEXTS[0]).json == {"translatedText": expected[0]}


def test_a_long_text_is_split_as_by_the_library(client, bundled):
    expected = mt.generate(*bundled, LONG)
    assert expected.count(".") > 25
    assert client.translate(LONG).json == {"translatedText": expected}


def test_line_ends_and_blank_lines_stay(client, bundled):
    first, second = mt.generate(*bundled, TEXTS[:2])
    text = f"{TEXTS[0]}\r\n\r\n  \n{TEXTS[1]}\n"
    assert client.translate(text).json["translatedText"] == f"{first}\r\n\r\n  \n{second}\n"
    assert client.translate("").json == {"translatedText": ""}
    assert client.translate([]).json == {"translatedText": []}


def test_alternatives_are_different_texts_with_the_best_first(client, bundled):
    answer = client.translate("Good morning!", alternatives=2).json
    texts = [answer["translatedText"], *answer["alternatives"]]
    assert len(texts) == len(set(texts)) == 3
    (best, *others) = next(mt.generate_hypotheses(*bundled, ["Good morning!"], num_hypotheses=3))
    assert texts == [hypothesis.text for hypothesis in (best, *others)]
    assert client.translate(["Good morning!"] * 2, alternatives=2).json == {
        "translatedText": [texts[0]] * 2,
        "alternatives": [texts[1:]] * 2,
    }


def test_a_form_is_translated(client, bundled):
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    answer = client.request("POST", "/translate", "q=Good+morning%21&source=en&target=fr&alternatives=1", **form)
    assert answer.json["translatedText"] == client.translate("Good morning!", alternatives=1).json["translatedText"]
    both = client.request("POST", "/translate", "q=I+love+you.&q=Good+morning%21&source=en&target=fr", **form)
    assert both.json["translatedText"] == mt.generate(*bundled, ["I love you.", "Good morning!"])


def test_html_keeps_its_markup(client, bundled):
    text = (
        '<!doctype html><p class="a" hidden>\n  I love you. <br/><IMG src=x alt="A cat"><b>Good morning!</b></p>'
        "<script>if (a < b) {}</script><code>the code</code><!-- the note -->&nbsp;&lt;"
    )
    love, morning = mt.generate(*bundled, ["I love you.", "Good morning!"])
    expected = text.replace("I love you.", love).replace("Good morning!", morning)
    assert client.translate(text, format="html").json == {"translatedText": expected}


@pytest.mark.parametrize(
    ("html", "words"),
    [
        ("I bought a <b>red car</b> yesterday.", "<b>voiture rouge</b>"),
        ("<p>I have a <a href='x>y'>big <i>red</i> house</a>.\n</p>", "rouge<i></i></a>"),
        ("Use <code>a &lt; b</code> in the <b>morning</b>.", "<code>a &lt; b</code>"),
        ("I love <span translate=no>Boston</span>.", "<span translate=no>Boston</span>"),
        ("I love you.<img src=x> <b>Good morning!", "<img src=x>"),
        ("</b>I <b>love <i>you</b></i>.", "</b>"),
    ],
)
def test_inline_markup_of_html_is_placed_by_alignment(client, bundled, html, words):
    answer = client.translate(html, format="html").json["translatedText"]
    assert words in answer
    assert sorted(re.findall("<[^>]*>", answer)) == sorted(re.findall("<[^>]*>", html))
    sentence = re.sub("<code>.*</code>", "", html)
    if "<code>" not in html and "<img" not in html:
        plain = mt.generate(*bundled, " ".join(re.sub("<[^>]*>", "", sentence.replace("x>y", "")).split()))
        assert " ".join(re.sub("<[^>]*>", "", answer.replace("x>y", "")).split()) == plain
    several = client.translate(html, format="html", alternatives=2).json
    for text in (several["translatedText"], *several["alternatives"]):
        assert sorted(re.findall("<[^>]*>", text)) == sorted(re.findall("<[^>]*>", html))


def test_html_entities_are_read_and_written(client, bundled):
    (expected,) = mt.generate(*bundled, ["I love you & him."])
    answer = client.translate("<i>I love you &amp; him.</i>", format="html").json["translatedText"]
    assert answer == f"<i>{expected.replace('&', '&amp;')}</i>"
    assert "&" in expected


@pytest.mark.parametrize("code", ["EN", "en-US", "en_GB"])
def test_codes_may_have_regions(client, code):
    assert client.translate("Good morning!", source=code).status == 200


def test_fields_may_be_parameters_of_the_address(client, bundled):
    expected = {"translatedText": mt.generate(*bundled, "Good morning!")}
    query = "q=Good+morning%21&source=en&target=fr"
    assert client.request("POST", f"/translate?{query}").json == expected
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert client.request("POST", "/translate?source=en&target=fr", "q=Good+morning%21", **form).json == expected
    answer = client.post(f"/translate?{query}", {})  # JSON
    assert answer.status == 400 and "missing q" in answer.json["error"]
    assert client.request("POST", "/translate?q=%ff").status == 400


def test_suggestions_are_refused_as_by_libretranslate(client):
    answer = client.post("/suggest", {"q": "Hello", "s": "Salut", "source": "en", "target": "fr"})
    assert (answer.status, answer.json) == (403, {"error": "Suggestions are disabled on this server."})


def test_the_specification_is_of_what_the_server_answers(client):
    spec = client.get("/spec").json
    assert spec["swagger"] == "2.0" and client.post("/spec", {}).status == 405
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    for path, ((method, operation),) in ((path, methods.items()) for path, methods in spec["paths"].items()):
        parameters = [
            spec["parameters"][each["$ref"].split("/")[-1]] if "$ref" in each else each
            for each in operation.get("parameters", [])
        ]
        examples = {each["name"]: each["x-example"] for each in parameters if "x-example" in each}
        required = {each["name"] for each in parameters if each.get("required")}
        for name in required - ({"q"} if path == "/translate" else set()):  # its text may be empty
            answer = client.request(method.upper(), path, urlencode(examples | {name: ""}), **form)
            assert answer.status == 400 and "missing" in answer.json["error"]
        answer = client.request(method.upper(), path, urlencode(examples), **form)
        if required <= set(examples) and answer.status != 501:  # without a file and the extra detect
            schema = operation["responses"]["200"]["schema"]
            assert answer.status == 200 and isinstance(answer.json, list) is (schema["type"] == "array")
            assert "properties" not in schema or set(answer.json) <= set(schema["properties"])


def test_languages_and_settings(client):
    assert client.get("/languages").json == [
        {"code": "en", "name": "English", "targets": ["fr"]},
        {"code": "fr", "name": "French", "targets": []},  # clients look targets up among the codes
    ]
    settings = client.get("/frontend/settings").json
    assert settings["charLimit"] == 20_000 and settings["keyRequired"] is False
    assert settings["filesTranslation"] and ".srt" in settings["supportedFilesFormat"]
    assert settings["language"]["target"] == {"code": "fr", "name": "French"}
    assert client.get("/health").json == {"status": "ok"}


@pytest.mark.parametrize(("source", "target"), [("fr", "en"), ("en", "de"), ("auto", "de"), ("xx", "xx")])
def test_unknown_languages_are_answered_with_what_the_models_do(client, source, target):
    answer = client.translate("Hello", source=source, target=target)
    assert answer.status == 400 and "\n" not in answer.json["error"]
    assert "en to fr" in answer.json["error"]


def test_languages_are_detected(client):
    pytest.importorskip("py3langid", reason="py3langid is not installed (the extra detect)")
    (detection,) = client.post("/detect", {"q": "Where is the station?"}).json
    assert detection["language"] == "en" and detection["confidence"] > 80
    assert client.post("/detect", {"q": ["Where is", "the station?"]}).json == [detection]
    assert [client.post("/detect", {"q": q}).status for q in ("", [], ["", 1])] == [400, 400, 400]
    (other,) = client.post("/detect", {"q": "Où est la gare, s'il vous plaît ?"}).json
    assert other["language"] == "en" and other["confidence"] < 20  # the only one that the model reads
    answer = client.translate("Where is the station?", source="auto").json
    assert answer == {"translatedText": "Où est la gare ?", "detectedLanguage": detection}
    answer = client.translate(["Where is the station?", "I love you."], source="auto", alternatives=1).json
    assert [each["language"] for each in answer["detectedLanguage"]] == ["en", "en"]
    assert answer["translatedText"][0] == "Où est la gare ?"


def test_texts_without_letters_are_in_no_language_and_stay(client):
    pytest.importorskip("py3langid", reason="py3langid is not installed (the extra detect)")
    none = {"confidence": 0.0, "language": "en"}
    assert client.post("/detect", {"q": "12:30"}).json == [none]
    answer = client.translate("12:30", source="auto").json
    assert answer == {"translatedText": "12:30", "detectedLanguage": none}
    answer = client.translate(["12:30", "♪"], source="auto", alternatives=1).json
    assert answer == {
        "translatedText": ["12:30", "♪"],
        "detectedLanguage": [none, none],
        "alternatives": [[], []],
    }


def test_a_language_that_cannot_be_detected(bundled):
    pytest.importorskip("py3langid", reason="py3langid is not installed (the extra detect)")
    with serve(lambda name: bundled, names=["qaa-fr=a"]) as client:
        for answer in (client.post("/detect", {"q": "Hello"}), client.translate("Hello", source="auto")):
            assert answer.status == 400 and "cannot be detected" in answer.json["error"]


def test_detection_needs_packages(client, monkeypatch):
    monkeypatch.setattr(server_detection, "is_installed", lambda: False)
    for answer in (client.post("/detect", {"q": "Hello"}), client.translate("Hello", source="auto")):
        assert answer.status == 501 and "does not detect languages" in answer.json["error"]


def test_libretranslatepy_is_answered(client, bundled):
    libretranslatepy = pytest.importorskip("libretranslatepy", reason="the client libretranslatepy is not installed")
    api = libretranslatepy.LibreTranslateAPI(client.url)
    assert api.translate("Where is the station?", "en", "fr") == mt.generate(*bundled, "Where is the station?")
    assert [language["code"] for language in api.languages()] == ["en", "fr"]


def test_libretranslatepy_has_a_key(bundled):
    libretranslatepy = pytest.importorskip("libretranslatepy", reason="the client libretranslatepy is not installed")
    with serve(lambda name: bundled, api_keys=("secret", "other")) as client:
        api = libretranslatepy.LibreTranslateAPI(client.url, "other")
        assert api.translate("Good morning!", "en", "fr") == mt.generate(*bundled, "Good morning!")
        for fields in ({}, {"api_key": "wrong"}, {"api_key": ""}, {"api_key": "sécret\ud800"}):
            answer = client.translate("Good morning!", **fields)
            assert answer.status == 403 and "API key" in answer.json["error"]
        assert client.translate("Good morning!", api_key=1).status == 400
        assert client.get("/frontend/settings").json["keyRequired"] is True


@pytest.mark.parametrize(
    ("text", "source", "is_same"),
    [
        ("Je t'aime beaucoup, mon amour.", "auto", True),
        ("Je t'aime beaucoup, mon amour.", "fr", True),
        ("Je t'aime beaucoup, mon amour.", "fr_FR", True),
        ("I love you.", "auto", False),
        ("Image", "auto", False),  # both languages have the word
    ],
)
def test_a_text_in_the_target_language_stays_as_it_is(client, text, source, is_same):
    pytest.importorskip("py3langid", reason="py3langid is not installed (the extra detect)")
    answer = client.translate(text, source=source, alternatives=1).json
    assert (answer["translatedText"] == text) == is_same
    assert bool(answer["alternatives"]) != is_same
    assert client.translate([text], source=source).json["translatedText"] == [answer["translatedText"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<p><img src="a.png"> I love you.</p>', '<p><img src="a.png"> Je t\'aime.</p>'),
        ("<p>I love you. <img src=x></p>", "<p>Je t'aime. <img src=x></p>"),
        ("<p>I <!-- c -->love <b>you</b>.</p>", "<p>Je <!-- c -->t'<b>aime</b>.</p>"),
        ("<p><!--c-->I love you.<!--d--></p>", "<p><!--c-->Je t'aime.<!--d--></p>"),
        ("<!-- nur --><p> <b> </b> </p>", "<!-- nur --><p> <b> </b> </p>"),
    ],
)
def test_comments_and_empty_elements_of_html_do_not_cut_sentences(client, text, expected):
    assert client.translate(text, format="html").json["translatedText"] == expected
