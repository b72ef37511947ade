"""Lines without a result: each gets its own error, and the others are unaffected."""

import dataclasses
from dataclasses import replace

import mlx.core as mx
import pytest
import tokenizers
from support.tiny_models import config, random_model

import mlx_transformer as mt
from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.inference import engine, scoring
from mlx_transformer.inference.line_errors import bisect_on_error
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.texts import TextError

WORDS = ["ab", "cde", "fg", "hijk", "l", "mno"]
LINES = ["ab cde", "fg z", "", "l mno hijk", "z z z", "mno", "ab fg z hijk", "cde"]
BAD = [1, 4, 6]  # lines with a z, whose embedding is NaN
NOT_FINITE = "Search found no hypothesis: the model's logits are not finite"
SEARCHES = {
    "greedy": SearchConfig(max_tokens=5),
    "beam": SearchConfig(beam_size=3, num_hypotheses=2, max_tokens=5),
    "sampling": SearchConfig(temperature=1.0, max_tokens=5),
}


@pytest.fixture(scope="module")
def tokenizer():
    texts = [" ".join(WORDS)] * 3
    return mt.Tokenizer.train(texts, texts, 290, target_languages=["en", "fr"])


@pytest.fixture(scope="module")
def model(tokenizer):
    size = tokenizer.source_vocab_size
    model = random_model(config(source_vocab_size=size, target_vocab_size=size, share_embeddings=False), gain=3)
    for token in set(tokenizer.encode("z", None, "fr")) - set(tokenizer.encode("ab", None, "fr")):
        model.source_embedding.weight[token] = mx.nan
    return model


def generate(model, tokenizer, lines, search=SEARCHES["greedy"], **options):
    options = {"target_language": "fr", "return_errors": True} | options
    return list(mt.generate_hypotheses(model, tokenizer, lines, search, **options))


def without_scores(hypotheses):
    return [replace(h, score=pytest.approx(h.score, abs=1e-5)) for h in hypotheses]


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("batch_tokens", [4096, 64])
def test_lines_with_logits_that_are_not_finite_get_errors_and_the_others_their_results(
    model, tokenizer, search, batch_tokens
):
    results = generate(model, tokenizer, LINES, search, batch_tokens=batch_tokens)
    for number, (line, hypotheses) in enumerate(zip(LINES, results, strict=True)):
        if number in BAD:
            (hypothesis,) = hypotheses
            assert hypothesis.error.startswith(NOT_FINITE)
            assert (hypothesis.ids, hypothesis.text, hypothesis.finish_reason) == ([], "", "error")
        else:
            alone = generate(model, tokenizer, [line], search, first_line=number)
            assert hypotheses == without_scores(alone[0])


def test_alignments_and_token_scores_skip_lines_with_errors(model, tokenizer):
    results = generate(model, tokenizer, LINES, alignment=AlignmentConfig(), token_scores=True)
    assert [i for i, (h, *_) in enumerate(results) if h.error] == BAD
    assert all(h.alignment is not None and h.token_scores is not None for h, *_ in results if not h.error)


def test_without_return_errors_the_results_before_the_error_are_delivered(model, tokenizer):
    results = generate(model, tokenizer, LINES[:4], return_errors=True)
    generator = mt.generate_hypotheses(model, tokenizer, LINES, SEARCHES["greedy"], target_language="fr")
    assert next(generator) == without_scores(results[0])
    with pytest.raises(ValueError, match=f"^Line 2: {NOT_FINITE}"):
        next(generator)
    with pytest.raises(ValueError, match=f"^Line 2: {NOT_FINITE}"):
        mt.generate(model, tokenizer, LINES, SEARCHES["greedy"], target_language="fr")


def test_unknown_language_and_invalid_text_are_errors_of_their_lines(model, tokenizer):
    lines = [SourceLine("ab", target_language=code) for code in ("fr", "de", "en", None)]
    lines.insert(1, SourceLine("\ud800", target_language="fr"))
    errors = [hypotheses[0].error for hypotheses in generate(model, tokenizer, lines)]
    assert [bool(error) for error in errors] == [False, True, True, False, True]
    assert "surrogate" in errors[1] and "got 'de'" in errors[2] and "needs the target language" in errors[4]


def test_word_that_a_vocabulary_without_an_unknown_token_lacks_is_an_error_of_its_line(model):
    """Such a vocabulary is the default of the tokenizers library."""
    words = {token: i for i, token in enumerate(["<pad>", "</s>", "<s>", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    size = model.config.source_vocab_size
    settings = TokenizerConfig(source_vocab_size=size, target_vocab_size=size, clean_up=True)
    results = generate(model, mt.Tokenizer(HFVocabulary(tokenizer), config=settings), LINES, target_language=None)
    for number, (hypothesis,) in enumerate(results):
        if number in BAD:
            assert hypothesis.error.startswith(
                "A text cannot be split into tokens: WordLevel error: Missing [UNK] token"
            )
        else:
            assert hypothesis.error is None


def test_prefix_that_fills_the_limit_is_an_error_of_its_line(model, tokenizer):
    results = generate(model, tokenizer, ["ab", "cde", "fg"], target_prefix=["l", "mno " * 40, None])
    assert [bool(h.error) for h, *_ in results] == [False, True, False]
    assert "A target prefix must be shorter than the decoder's 40 positions" in results[1][0].error
    assert results[0] == without_scores(generate(model, tokenizer, ["ab"], target_prefix="l")[0])


@pytest.mark.parametrize("error", [RuntimeError("[malloc] Unable to allocate 8 bytes."), MemoryError()])
def test_line_that_exceeds_memory_is_its_own_error(model, tokenizer, monkeypatch, error):
    expected = generate(model, tokenizer, ["ab cde", "l mno", "fg"])
    search = engine.generate_ids

    def limited(model, source, **arguments):
        if max(map(len, arguments["prefix_ids"])) > 4 or source.shape[0] > 2:
            raise error
        return search(model, source, **arguments)

    monkeypatch.setattr(engine, "generate_ids", limited)
    results = generate(model, tokenizer, ["ab cde", "hijk", "l mno", "fg"], target_prefix=[None, "ab " * 9, None, None])
    assert [h.error for h, *_ in results] == [None, "It does not fit in memory: shorten or split it.", None, None]
    assert [results[0], *results[2:]] == [without_scores(row) for row in expected]


def test_errors_that_concern_no_line_are_raised_at_once(model, tokenizer, monkeypatch):
    def broken(*arguments, **options):
        raise errors.pop()

    for options, message in (
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"alignment": AlignmentConfig(layers=(9,))}, "layer"),
        ({"search": SearchConfig(forced_bos_id=10**6)}, "forced_bos_id"),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, tokenizer, LINES, **options)
    monkeypatch.setattr(engine, "generate_ids", broken)
    errors = [RuntimeError("a bug"), ValueError("a bug")]
    for error in errors[::-1]:
        with pytest.raises(type(error), match="a bug"):
            generate(model, tokenizer, LINES)
    assert not errors


def test_language_of_all_lines_is_checked_once(model, tokenizer, monkeypatch):
    calls = []
    encode = tokenizer.encode_batch
    monkeypatch.setattr(tokenizer, "encode_batch", lambda *arguments: calls.append(arguments) or encode(*arguments))
    for scored in (False, True):
        with pytest.raises(ValueError, match="^A language must be one of .*got 'de'"):
            if scored:
                list(mt.score(model, tokenizer, LINES, LINES, target_language="de", return_errors=True))
            else:
                generate(model, tokenizer, LINES, target_language="de")
    assert calls == []


def test_pairs_without_a_score_get_errors_and_the_others_their_scores(model, tokenizer, monkeypatch):
    targets = ["l", "ab", "fg", "\ud800", "mno", "cde", "l", "ab cde"]

    def score(sources, targets, **options):
        return list(mt.score(model, tokenizer, sources, targets, target_language="fr", **options))

    results = score(LINES, targets, return_errors=True)
    assert [i for i, result in enumerate(results) if result.error] == [1, 3, 4, 6]
    assert "Scores must be finite" in results[1].error and "surrogate" in results[3].error
    for number in (0, 2, 5, 7):
        (alone,) = score([LINES[number]], [targets[number]])
        assert results[number] == dataclasses.replace(
            alone,
            score=pytest.approx(alone.score, abs=1e-5),
            token_scores=pytest.approx(alone.token_scores, abs=1e-5),
        )
    with pytest.raises(ValueError, match="^Pair 2: Scores must be finite"):
        score(LINES, targets)
    compute = scoring.score_ids

    def limited(model, source, target, alignment):
        if source.shape[0] > 1:
            raise MemoryError
        return compute(model, source, target, alignment)

    monkeypatch.setattr(scoring, "score_ids", limited)
    assert [result.error for result in score(["ab", "cde", "l"], ["l", "ab", "fg"])] == [None] * 3


def test_a_batch_is_halved_down_to_the_items_that_fail():
    calls = []

    def run(items):
        calls.append(items)
        if 5 in items:
            raise TextError("five")
        return [2 * item for item in items]

    assert bisect_on_error(run, list(range(8)), lambda item, error: f"{item}: {error}") == [
        0,
        2,
        4,
        6,
        8,
        "5: five",
        12,
        14,
    ]
    assert calls == [list(range(8)), [0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [6, 7]]
