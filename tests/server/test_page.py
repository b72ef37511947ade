"""The endpoint of the page, and its static files."""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from support.http_server import hold_batches, serve
from support.tiny_models import config, random_model

import mlx_transformer as mt
from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.server.page import STATIC_PATHS

TIRED = "I am very tired today."
LONG = "The house is small. It rains a lot today. She reads a book in the garden.  " * 6  # it is split
TEXT = f"  Good morning!\n\n{LONG}{TIRED}\n"
PAIR = {"source": "en", "target": "fr"}


def translate(client, text, **fields):
    answer = client.post("/page/translate", {"text": text} | fields)
    assert answer.status == 200, answer.json
    return answer.json


def sentences(answer):
    return [piece for piece in answer["pieces"] if "alignment" in piece]


@pytest.mark.parametrize("pair", [PAIR, {}])
def test_the_pieces_are_the_text_and_its_translation(client, pair):
    answer = translate(client, TEXT, **pair)
    assert "".join(piece["source"] for piece in answer["pieces"]) == TEXT
    assert "".join(piece["text"] for piece in answer["pieces"]) == answer["text"]
    assert answer["text"] == client.translate(TEXT).json["translatedText"]
    assert len(sentences(answer)) > 4


def test_sentences_have_the_alignments_of_the_library(client, bundled):
    answer = translate(client, f"Good morning!\n{TIRED}")
    hypotheses = mt.generate_hypotheses(*bundled, ["Good morning!", TIRED], alignment=AlignmentConfig())
    assert [piece["alignment"] for piece in sentences(answer)] == [[*map(list, row[0].alignment)] for row in hypotheses]
    assert sentences(answer)[1]["alignment"] == [[i, i] for i in range(5)]


def test_alternatives_differ_after_the_prefix(client, bundled):
    answer = translate(client, TIRED, prefix="Je suis", alternatives=4)
    texts = [option["text"] for option in sentences(answer)[0]["alternatives"]]
    options = {"alternatives": True, "num_hypotheses": 4, "target_prefix": "Je suis"}
    (expected,) = mt.generate_hypotheses(*bundled, [TIRED], **options)
    assert texts == [hypothesis.text for hypothesis in expected]
    assert len({text.split()[2] for text in texts}) == 4
    assert all(option["alignment"] for option in sentences(answer)[0]["alternatives"])


def test_alternatives_keep_the_words_of_the_prefix(client):
    # The next token may belong to the last word of the prefix.
    answer = translate(client, TIRED, prefix="Je suis fatigu", alternatives=8)
    (piece,) = sentences(answer)
    assert piece["text"].startswith("Je suis fatigué")
    assert all(option["text"].split()[:3] == ["Je", "suis", "fatigu"] for option in piece["alternatives"])


def test_alternatives_that_look_alike_are_there_once(client):
    texts = [
        option["text"]
        for option in sentences(translate(client, TIRED, prefix="Je suis très", alternatives=8))[0]["alternatives"]
    ]
    assert len(texts) == len(set(texts)) > 4


def test_a_prefix_is_continued(client, bundled):
    answer = translate(client, TIRED, prefix="Je me sens")
    assert answer["text"] == mt.generate(*bundled, TIRED, target_prefix="Je me sens")
    assert answer["text"].startswith("Je me sens ")


def test_requests_of_the_page_have_the_limits_of_the_server(bundled):
    with serve(lambda name: bundled, max_characters=10, api_keys=("secret",)) as client:
        assert client.post("/page/translate", {"text": "Hello"}).status == 403
        for field in ("text", "prefix"):
            answer = client.post("/page/translate", {"text": "Hello", "api_key": "secret"} | {field: "x" * 11})
            assert answer.status == 413 and "at most 10 characters" in answer.json["error"]
        assert client.post("/page/translate", {"text": "Hello", "api_key": "secret"}).status == 200


def test_requests_of_the_page_share_batches_and_the_queue(bundled):
    with serve(lambda name: bundled, small_batches=False, max_queue=3) as client, ThreadPoolExecutor(4) as pool:
        with hold_batches(client) as entered:
            first = pool.submit(translate, client, "Good morning!")
            assert entered.wait(10)
            texts = [("Hello.", {}), ("I love you.", {}), (TIRED, {"prefix": "Je me sens"})]
            waiting = [pool.submit(translate, client, text, **fields) for text, fields in texts]
            client.wait_for("waiting_sentences", 3)
            refused = client.post("/page/translate", {"text": "Hello."})
            assert refused.status == 503 and int(refused.headers["retry-after"]) > 0
        answers = [future.result()["text"] for future in (first, *waiting)]
        assert client.metric("sentences_total") == 4
        assert client.metric("batch_sentences_sum") > client.metric("batch_sentences_count")
    assert answers[:3] == mt.generate(*bundled, ["Good morning!", "Hello.", "I love you."])
    assert answers[3] == mt.generate(*bundled, TIRED, target_prefix="Je me sens")


def test_pieces_are_not_empty(client):
    assert translate(client, "Hello.")["pieces"] == [
        {"source": "Hello.", "text": "Bonjour.", "alignment": [[0, 0]]},
    ]


@pytest.mark.parametrize(
    "fields",
    [{"text": 1}, {"text": "a", "prefix": 2}, {"text": "a", "alternatives": 11}, {"source": "en", "target": "de"}],
)
def test_wrong_fields_are_refused_in_one_line(client, fields):
    answer = client.post("/page/translate", fields)
    assert answer.status == 400 and "\n" not in answer.json["error"]
    assert translate(client, "") == {"text": "", "pieces": []}


def test_a_sentence_without_a_result_is_an_error(client, monkeypatch):
    def fail(*arguments, **options):
        yield [Hypothesis([], -math.inf, "error", "", error="its logits are not finite")]

    monkeypatch.setattr("mlx_transformer.server.models.generate_hypotheses", fail)
    answer = client.post("/page/translate", {"text": TIRED})
    assert answer.status == 500 and "its logits are not finite" in answer.json["error"]


def test_a_model_that_does_not_generate_is_refused(client):
    encoder = random_model(replace(config(), decoder=None))
    with serve(lambda name: (encoder, client.store.get("bundled").tokenizer)) as other:
        answer = other.post("/page/translate", {"text": TIRED})
        assert answer.status == 400 and "decoder" in answer.json["error"]


@pytest.mark.parametrize("path", STATIC_PATHS)
def test_static_files_are_served_with_a_strict_policy(client, path):
    answer = client.get(path)
    assert answer.status == 200 and len(answer.body) > 100
    policy = answer.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'self'" and "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    content = answer.body.decode().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//\w+\.|innerHTML|insertAdjacentHTML|\sstyle=|\son\w+=|\beval\b", content)


def test_only_the_files_of_the_page_are_served(client):
    for path in ("/page/", "/page/page.py", "/page/../page.py", "/page/%2e%2e/page.py", "/index.html"):
        assert client.get(path).status == 404
