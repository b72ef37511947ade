"""Models by name and language pair; loaded on demand, the least recently used unloaded beyond a limit of memory."""

import copy
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from support.http_server import hold_batches, serve
from support.shortlist_files import shortlist_bytes
from support.tiny_models import config, random_model

import mlx_transformer as mt
from mlx_transformer.server.metrics import Metrics
from mlx_transformer.server.models import Languages, ModelName, ModelStore
from mlx_transformer.server.settings import RequestError
from mlx_transformer.weights.formats.lexical_shortlist import parse_shortlist

WORDS = ["ab cde fg hijk l mno"] * 3
CODES = ["eng_Latn", "fra_Latn", "zho_Hans", "zho_Hant"]


@pytest.fixture(scope="module")
def multilingual():
    tokenizer = mt.Tokenizer.train(WORDS, WORDS, 320, source_languages=CODES, target_languages=CODES)
    size = tokenizer.source_vocab_size
    return random_model(config(source_vocab_size=size, target_vocab_size=size), 1, gain=3), tokenizer


def make_model(seed):
    tokenizer = mt.Tokenizer.train(WORDS, WORDS, 300)
    size = tokenizer.source_vocab_size
    return random_model(config(source_vocab_size=size, target_vocab_size=size), seed, gain=3), tokenizer


class Size:
    """Loads models, all of the same size, and records their names."""

    def __init__(self):
        self.loaded, self.loads = make_model(1), []
        store = ModelStore([ModelName("one", None)], Metrics(), load_model=lambda name: self.loaded)
        self.bytes = store.get("one").num_bytes
        store.close()

    def load(self, name):
        self.loads.append(name)
        model, tokenizer = self.loaded
        return copy.copy(model), tokenizer


@pytest.mark.parametrize(
    ("text", "name", "pair"),
    [
        (None, "bundled", None),
        ("Helsinki-NLP/opus-mt-de-en", "Helsinki-NLP/opus-mt-de-en", None),
        ("runs/best", "runs/best", None),
        ("en-de=runs/best", "runs/best", ("en", "de")),
        ("ast-es=a=b", "a=b", ("ast", "es")),
    ],
)
def test_models_are_named_with_or_without_their_languages(text, name, pair):
    assert ModelName.parse(text) == ModelName(name, pair)


def test_codes_of_a_multilingual_model(multilingual):
    _, tokenizer = multilingual
    languages = Languages.of(None, tokenizer)
    assert list(languages.sources) == ["en", "fr", "zh-Hans", "zh-Hant", *CODES]
    assert languages.find("en", "fr-FR") == ("eng_Latn", "fra_Latn")
    for code in ("zho_hant", "zh-Hant", "ZH_HANT", "zh-TW", "zt"):
        assert languages.find("eng_Latn", code) == ("eng_Latn", "zho_Hant")
    for code in ("zh", "zho", "cmn", "zh-cn", "zh-Hans", "zh-SG"):
        assert languages.find("en", code) == ("eng_Latn", "zho_Hans")
    assert languages.find("en", "de") is None
    assert languages.resolve("en", "zho_Hans") == ("eng_Latn", "zho_Hans")
    with pytest.raises(RequestError, match=r"source_language must be one of en, .*, not None"):
        languages.resolve(None, "fr")


def test_a_multilingual_model_is_served(multilingual):
    model, tokenizer = multilingual
    expected = mt.generate(model, tokenizer, "ab cde", source_language="eng_Latn", target_language="fra_Latn")
    with serve(lambda name: multilingual, names=["many"]) as client:
        assert client.translate("ab cde").json == {"translatedText": expected}
        languages = {"source_language": "en", "target_language": "fra_Latn"}
        answer = client.post("/v1/completions", {"prompt": "ab cde"} | languages)
        assert answer.json["choices"][0]["text"] == expected
        refused = client.post("/v1/completions", {"prompt": "ab cde"})
        assert refused.status == 400 and "source_language must be one of en" in refused.json["error"]["message"]
        english = next(row for row in client.get("/languages").json if row["code"] == "en")
        assert english["targets"] == ["fr", "zh-Hans", "zh-Hant"]
        assert english["name"] == "English"
        chosen = client.get("/frontend/settings").json["language"]
        assert (chosen["source"]["code"], chosen["target"]["code"]) == ("en", "fr")


def test_languages_are_detected_as_listed(multilingual):
    pytest.importorskip("py3langid", reason="py3langid is not installed (the extra detect)")
    with serve(lambda name: multilingual, names=["many"]) as client:
        (detection,) = client.post("/detect", {"q": "Where is the station?"}).json
    assert detection["language"] == "en"


def test_models_have_shortlists_of_their_own():
    model, tokenizer = make_model(1)
    shortlist = parse_shortlist(shortlist_bytes([[tokenizer.source_vocab_size - 1]], num_first=10))
    names = [ModelName("one", ("en", "fr"), shortlist), ModelName("two", ("fr", "en"))]
    with serve(lambda name: (model, tokenizer), names=names) as client:
        limited, whole = (client.translate("ab cde", source=s, target=t).json for s, t in (("en", "fr"), ("fr", "en")))
    assert limited["translatedText"] == mt.generate(model, tokenizer, "ab cde", shortlist=shortlist)
    assert whole["translatedText"] == mt.generate(model, tokenizer, "ab cde") != limited["translatedText"]


def test_requests_that_wait_together_share_a_shortlist():
    model, tokenizer = make_model(1)
    shortlist = parse_shortlist(shortlist_bytes([[]], num_first=tokenizer.source_vocab_size))
    texts, sizes = ["ab", "cde", "fg", "hijk", "l", "mno"], []
    with serve(lambda name: (model, tokenizer), names=[ModelName("one", ("en", "fr"), shortlist)]) as client:
        run = vars(worker := vars(client.store.get("one"))["_worker"])["_run"]
        vars(worker)["_run"] = lambda work, lines, first: (sizes.append(len(lines)), run(work, lines, first))[1]
        with ThreadPoolExecutor(len(texts)) as pool:
            with hold_batches(client, "one"):
                answers = []
                for num_held in (1, 2):  # both threads of the model
                    answers.append(pool.submit(client.translate, texts[num_held - 1]))
                    client.wait_for("sentences_total", num_held)
                answers += [pool.submit(client.translate, text) for text in texts[2:]]
                client.wait_for("waiting_sentences", 4)
            translated = [answer.result().json["translatedText"] for answer in answers]
    assert translated == mt.generate(model, tokenizer, texts)
    assert sorted(sizes) == [1, 1, 4]


def test_a_shortlist_of_another_model_is_refused_at_the_start():
    shortlist = parse_shortlist(shortlist_bytes([[100_000]]))
    with pytest.raises(ValueError, match="must have tokens of the model's vocabulary"):
        ModelStore([ModelName("one", None, shortlist)], Metrics(), load_model=lambda name: make_model(1))


def test_the_first_model_for_a_pair_answers():
    models = {"one": make_model(1), "two": make_model(2), "three": make_model(3)}
    with serve(models.__getitem__, names=["en-fr=one", "en-fr=two", "de-en=three"]) as client:
        for source, target, name in (("en", "fr", "one"), ("de", "en", "three")):
            answer = client.translate("ab cde", source=source, target=target)
            assert answer.json["translatedText"] == mt.generate(*models[name], "ab cde")
        answer = client.post("/v1/completions", {"prompt": "ab cde", "model": "two"})
        assert answer.json["choices"][0]["text"] == mt.generate(*models["two"], "ab cde")
        assert client.translate("ab", source="de", target="fr").status == 400
        targets = {row["code"]: row["targets"] for row in client.get("/languages").json}
        assert targets == {"en": ["fr"], "fr": [], "de": ["en"]}


def test_a_model_is_named_once():
    names = [ModelName("en-fr", None), ModelName("en-fr", ("en", "de"))]
    with pytest.raises(ValueError, match="A model can be served once, but en-fr is named twice"):
        ModelStore(names, Metrics(), load_model=lambda name: make_model(1))


def test_embeddings_need_no_target_language(multilingual):
    with serve(lambda name: multilingual) as client:
        fields = {"model": "bundled", "input": WORDS[0], "source_language": "eng_Latn"}
        assert client.post("/v1/embeddings", fields).status == 200
        answer = client.post("/v1/completions", {"model": "bundled", "prompt": WORDS[0], "source_language": "eng_Latn"})
        assert answer.status == 400


def test_an_encoder_alone_only_embeds():
    model, tokenizer = make_model(1)
    encoder = random_model(replace(model.config, decoder=None), 1)
    with serve(lambda name: (encoder, tokenizer), names=["en-fr=encoder"]) as client:
        answer = client.post("/v1/embeddings", {"input": "ab cde"})
        assert answer.json["data"][0]["embedding"] == pytest.approx(mt.embed(encoder, tokenizer, "ab cde").tolist())
        refused = client.translate("ab cde")
        assert refused.status == 400 and "encoder alone" in refused.json["error"]


def test_the_least_recently_used_model_is_unloaded_and_loaded_again():
    size = Size()
    store = ModelStore(list(map(ModelName.parse, "abc")), Metrics(), 2 * size.bytes, load_model=size.load)
    assert size.loads == ["a", "b", "c"]
    assert list(store._loaded) == ["b", "c"]
    store.get("b")
    store.get("a")
    assert list(store._loaded) == ["b", "a"]
    assert size.loads == ["a", "b", "c", "a"]
    store.close()
    assert list(store._loaded) == []


def test_one_model_is_loaded_whatever_the_limit():
    size = Size()
    store = ModelStore(list(map(ModelName.parse, "ab")), Metrics(), 1, load_model=size.load)
    for name in "abba":
        store.get(name)
        assert list(store._loaded) == [name]
    store.close()


def test_a_model_finishes_what_waits_before_it_is_unloaded():
    models = {"one": make_model(1), "two": make_model(2)}
    with serve(models.__getitem__, names=["en-fr=one", "de-en=two"], memory_limit=1, small_batches=False) as client:
        with ThreadPoolExecutor(8) as pool:
            pairs = [("en", "fr", "one"), ("de", "en", "two")] * 8
            answers = [pool.submit(client.translate, "ab cde", source=s, target=t) for s, t, _ in pairs]
            expected = {name: mt.generate(*model, "ab cde") for name, model in models.items()}
            for answer, (_, _, name) in zip(answers, pairs, strict=True):
                assert answer.result().json == {"translatedText": expected[name]}
        assert client.metric("model_loads_total") > 2
        assert client.metric("loaded_models") == 1


def test_an_unloaded_model_with_a_running_batch_answers_first():
    models = {"one": make_model(1), "two": make_model(2)}
    with (
        serve(models.__getitem__, names=["de-en=two", "en-fr=one"], memory_limit=1) as client,
        ThreadPoolExecutor() as pool,
    ):
        with hold_batches(client, "one") as entered:
            first = pool.submit(client.translate, "ab cde")
            assert entered.wait(10)
            second = pool.submit(client.translate, "ab cde", source="de", target="en")
            assert client.get("/health").status == 200
            assert not second.done()
        assert first.result().status == second.result().status == 200


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape("nowhere")):
        ModelStore([ModelName.parse(str(tmp_path / "nowhere"))], Metrics())


@pytest.mark.parametrize(
    ("source", "target", "is_same"),
    [("en", "eng_Latn", True), ("fra_Latn", "fr", True), ("en", "fr", False), ("fr", "fr", True), ("xx", "xx", False)],
)
def test_codes_of_one_language_are_the_same_in_any_model(source, target, is_same):
    own = {"en": "eng_Latn", "fr": "fra_Latn"}
    tables = [own | {code: code for code in own.values()}, {"en": "en", "fr": "fr"}]
    for order in tables, tables[::-1]:
        store = SimpleNamespace(languages={n: Languages(table, table) for n, table in enumerate(order)})
        assert ModelStore.is_same_language(store, source, target) == is_same
