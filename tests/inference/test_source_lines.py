"""Lists of texts at every public entry: an item that is not a string is named, or is an error of its line."""

import pytest
from support.tiny_models import config, random_model

import mlx_transformer as mt
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.tokenization.vocabulary import WordVocabulary

WORDS = ["<pad>", "</s>", "<s>", "one", "two"]
BAD = [None, float("nan"), 3, b"one", ["one"]]


@pytest.fixture(scope="module")
def model():
    return random_model(config(source_vocab_size=len(WORDS), target_vocab_size=len(WORDS)))


@pytest.fixture(scope="module")
def tokenizer():
    return mt.Tokenizer(WordVocabulary({word: i for i, word in enumerate(WORDS)}, 0))


# Name of the argument in the message, and a call with the argument.
ENTRIES = {
    "generate": ("texts", lambda model, tokenizer, texts: mt.generate(model, tokenizer, texts)),
    "generate_hypotheses": (
        "texts",
        lambda model, tokenizer, texts: list(mt.generate_hypotheses(model, tokenizer, texts)),
    ),
    "score, sources": (
        "sources",
        lambda model, tokenizer, texts: list(mt.score(model, tokenizer, texts, ["one"] * 3)),
    ),
    "score, targets": (
        "targets",
        lambda model, tokenizer, texts: list(mt.score(model, tokenizer, ["one"] * 3, texts)),
    ),
    "encode_batch": ("texts", lambda model, tokenizer, texts: tokenizer.encode_batch(texts)),
    "encode_target_batch": ("texts", lambda model, tokenizer, texts: tokenizer.encode_target_batch(texts)),
    "train, sources": ("sources", lambda model, tokenizer, texts: mt.Tokenizer.train(texts, ["one"], 300)),
    "train, targets": ("targets", lambda model, tokenizer, texts: mt.Tokenizer.train(["one"], texts, 300)),
    "prefixes": (
        "target_prefix",
        lambda model, tokenizer, texts: mt.generate(model, tokenizer, ["one"] * 3, target_prefix=texts),
    ),
    "languages": (
        "source_language",
        lambda model, tokenizer, texts: mt.generate(model, tokenizer, ["one"] * 3, source_language=texts),
    ),
    "languages of targets": (
        "target_language",
        lambda model, tokenizer, texts: tokenizer.encode_target_batch(["one"] * 3, texts),
    ),
}
OPTIONAL = ("prefixes", "languages", "languages of targets")  # whose items may be None


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_an_item_that_is_not_a_string(model, tokenizer, entry, bad):
    name, call = ENTRIES[entry]
    if bad is not None or entry not in OPTIONAL:
        good = None if entry in OPTIONAL else "one"
        of_line = rf"Line 2: (The text|{name})|Pair 2: The {name.removesuffix('s')}"
        with pytest.raises(ValueError, match=rf"^({name}\[1\]|{of_line}) must be a string, not .*\.$"):
            call(model, tokenizer, [good, bad, good])


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("texts", [3, b"one", float("nan")])
def test_an_argument_that_is_not_a_list(model, tokenizer, entry, texts):
    name, call = ENTRIES[entry]
    with pytest.raises(ValueError, match=f"^{name} must be a list of strings, not .*: put a single text in a list"):
        call(model, tokenizer, texts)


TOKENIZER_ENTRIES = ("encode_batch", "encode_target_batch", "train, sources", "train, targets")


@pytest.mark.parametrize(
    ("entry", "texts"),
    [(entry, text) for entry in TOKENIZER_ENTRIES for text in ("one", None)]
    + [(entry, None) for entry in ("generate", "generate_hypotheses", "score, sources", "score, targets")],
)
def test_a_tokenizer_refuses_a_single_text_and_all_refuse_none(model, tokenizer, entry, texts):
    name, call = ENTRIES[entry]
    with pytest.raises(ValueError, match=f"^{name} must be a list of strings, not .*: put a single text in a list"):
        call(model, tokenizer, texts)


def test_a_single_text_is_a_list_of_one(model, tokenizer):
    search = mt.SearchConfig(max_tokens=3)
    (expected,) = mt.generate_hypotheses(model, tokenizer, ["one two"], search)
    for text in ("one two", SourceLine("one two")):
        assert list(mt.generate_hypotheses(model, tokenizer, text, search)) == [expected]
    scores = [list(mt.score(model, tokenizer, *pair)) for pair in (("one two", "two"), (["one two"], ["two"]))]
    assert scores[0] == scores[1] and len(scores[0]) == 1
    with pytest.raises(ValueError, match="number 2 has no source"):
        list(mt.score(model, tokenizer, "one", ["two", "one"]))


@pytest.mark.parametrize("bad", [*BAD, ["one", "two"]], ids=repr)
def test_a_single_text_that_is_not_a_string(model, tokenizer, bad):
    calls = [
        lambda: list(mt.stream_generate(model, tokenizer, bad)),
        lambda: tokenizer.encode(bad),
        lambda: tokenizer.encode_target(bad),
        lambda: mt.generate(model, tokenizer, [SourceLine("one"), SourceLine(bad)]),
    ]
    for call, name in zip(calls, ("The text", r"texts\[0\]", r"texts\[0\]", "Line 2: The text"), strict=True):
        with pytest.raises(ValueError, match=rf"^{name} must be a string, not "):
            call()


def test_languages_of_a_new_tokenizer_are_a_list():
    for side in ("source", "target"):
        with pytest.raises(ValueError, match=f"^{side}_languages must be a list of strings, not 'en'"):
            mt.Tokenizer.train(["one"], ["un"], 300, **{f"{side}_languages": "en"})


@pytest.mark.parametrize("count", [2, 2048])
def test_results_before_a_bad_line_are_delivered(model, tokenizer, count):
    texts = ["one"] * count + [None, "two"]
    for call in (
        mt.generate_hypotheses(model, tokenizer, texts, max_tokens=1),
        mt.score(model, tokenizer, texts, texts),
    ):
        delivered = []
        with pytest.raises(ValueError, match=rf"(Line|Pair) {count + 1}: The (text|source) must be a string, not None"):
            delivered.extend(call)
        assert len(delivered) == count


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_a_line_that_is_not_a_string_costs_no_other_its_result(model, tokenizer, bad):
    def generate(texts, **options):
        return list(mt.generate_hypotheses(model, tokenizer, texts, max_tokens=2, return_errors=True, **options))

    one, two = generate(["one", "two"])
    for results in (generate(["one", bad, "two"]), generate(["one", SourceLine(bad), "two"], batch_tokens=1)):
        assert results == [one, results[1], two]
        assert results[1][0].error == f"The text must be a string, not {bad!r}."
    if bad is not None:
        for name in ("target_prefix", "source_language", "target_language"):
            results = generate(["one", "one", "two"], **{name: [None, bad, None]})
            assert results == [one, results[1], two]
            assert results[1][0].error == f"{name} must be a string, not {bad!r}."


def test_a_pair_that_is_not_of_strings_costs_no_other_its_score(model, tokenizer):
    def score(sources, targets):
        return list(mt.score(model, tokenizer, sources, targets, return_errors=True))

    results = score(["one", None, "two", "one"], ["one", "two", 3, "two"])
    assert [result.error for result in results[1:3]] == [
        "The source must be a string, not None.",
        "The target must be a string, not 3.",
    ]
    assert [results[0], results[3]] == score(["one", "one"], ["one", "two"])


def test_subclasses_of_strings_and_any_iterable_are_texts(model, tokenizer):
    class Text(str):
        pass

    expected = mt.generate(model, tokenizer, ["one", "two"])
    assert mt.generate(model, tokenizer, (Text(text) for text in ("one", "two"))) == expected
    assert tokenizer.encode_batch((Text("one"),)) == tokenizer.encode_batch(["one"])
