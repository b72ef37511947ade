"""Logits processors against loops over tokens, at every history length, compiled and uncompiled."""

import math

import mlx.core as mx
import numpy as np
import pytest
from support import tiny_models

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.inputs import DecodingInputs
from mlx_transformer.decoding.logits_processors import (
    MAX_SUPPRESSED,
    process_best_logits,
    process_logits,
    reads_all_logits,
    repetition_penalty,
)
from mlx_transformer.model.reductions import top_k

VOCAB, ROWS, CAPACITY, START, EOS = 7, 5, 12, 2, 1
NEG_INF = -math.inf
MODEL = tiny_models.config(target_vocab_size=8, source_vocab_size=8, pad_id=VOCAB)  # padding lies past the scores


def plain(logprobs, search, source, history, limit, first, prefix):
    """Apply the processors of transformers 5 in order to one row; the history begins with the start token.

    Then comes the prefix, which no limit counts.
    """
    scores = np.array(logprobs, np.float64)
    length, history = len(history), list(history)
    generated = length - len(prefix)
    if generated < 1:
        return np.where(np.arange(VOCAB) == prefix[length - 1], 0, NEG_INF)
    if search.repetition_penalty != 1:
        for token in set(history):
            scores[token] *= search.repetition_penalty if scores[token] < 0 else 1 / search.repetition_penalty
    size = search.no_repeat_ngram_size
    for i in range(length - size + 1 if size else 0):
        if history[i : i + size - 1] == history[length - size + 1 :]:
            scores[history[i + size - 1]] = NEG_INF
    size = search.source_no_repeat_ngram_size
    for i in range(len(source) - size + 1 if size else 0):
        if size <= length + 1 and source[i : i + size - 1] == history[length - size + 1 :]:
            scores[source[i + size - 1]] = NEG_INF
    for *begin, last in search.bad_words:
        if length > len(begin) and history[length - len(begin) :] == begin:
            scores[last] = NEG_INF
    if generated < search.min_tokens:
        scores[EOS] = NEG_INF
    for rule, token, here in (
        (search.forced_bos_id, first, length == 1),
        (search.forced_eos_id, search.forced_eos_id, generated == limit),
    ):
        if rule is not None and here:
            scores[:] = NEG_INF
            scores[token] = 0
    scores[list(search.suppress_ids)] = NEG_INF
    if search.renormalize:
        scores -= np.log(np.exp(scores).sum())
    return scores


def requests(source, max_new_tokens, min_new_tokens, first, prefixes):
    """Decoding inputs with one row per source."""
    prefix_length = max(map(len, prefixes))
    padded = [prefix + [0] * (prefix_length - len(prefix)) for prefix in prefixes]
    rows, columns = (
        len(source),
        (max_new_tokens, [min_new_tokens] * len(source), first, padded, list(map(len, prefixes))),
    )
    max_new_tokens, min_new_tokens, first, prefixes, lengths = (
        mx.array(np.reshape(c, (rows, -1)).astype(np.int32)) for c in columns
    )
    keys, required_ids, in_phrase = mx.zeros((rows, 2), mx.uint32), mx.zeros((rows, 0)), mx.zeros((rows, 0))
    return DecodingInputs(
        mx.array(source), max_new_tokens, min_new_tokens, first, prefixes, lengths, keys, required_ids, in_phrase
    )


RULES = {
    "ngram 1": {"no_repeat_ngram_size": 1},
    "ngram 2": {"no_repeat_ngram_size": 2},
    "ngram 3": {"no_repeat_ngram_size": 3},
    "ngram longer than all": {"no_repeat_ngram_size": 40},
    "source ngram 1": {"source_no_repeat_ngram_size": 1},
    "source ngram 2": {"source_no_repeat_ngram_size": 2},
    "source ngram 3": {"source_no_repeat_ngram_size": 3},
    "source ngram longer than the source": {"source_no_repeat_ngram_size": 10},
    "penalty": {"repetition_penalty": 1.7},
    "reward": {"repetition_penalty": 0.5},
    "words": {"bad_words": ((3,), (4, 5), (2, 6), (3, 3, 4), (5, 5, 5, 0))},
    "minimum": {"min_tokens": 4},
    "forced": {"forced_bos_id": 4, "forced_eos_id": 1},
    "forced although bad": {"forced_bos_id": 4, "bad_words": ((4,),)},
    "suppressed": {"suppress_ids": (0, 5)},
    "all": {
        "no_repeat_ngram_size": 3,
        "source_no_repeat_ngram_size": 2,
        "repetition_penalty": 1.3,
        "bad_words": ((4, 5), (6,)),
        "min_tokens": 3,
        "forced_bos_id": 3,
        "forced_eos_id": 1,
        "suppress_ids": (0,),
        "renormalize": True,
    },
}


@pytest.mark.parametrize(
    "rules, prefixed, compiled",
    [
        *((rules, prefixed, False) for rules in RULES for prefixed in (False, True)),
        pytest.param("all", True, True, marks=pytest.mark.slow),
    ],
)
def test_processors_equal_plain_loops(rules, prefixed, compiled, tolerance):
    search = SearchConfig(beam_size=2, **RULES[rules])
    rng = np.random.default_rng(0)
    history = rng.integers(2, VOCAB, (ROWS, CAPACITY + 1))
    history[:, 0] = START
    limits, first = np.array([3, 5, 12, 7, 4]), np.array([4, 3, 4, 6, 5])
    source = rng.integers(2, VOCAB, (ROWS, 9))
    source[:, 1:4] = history[:, 3:6]
    source[:, 5] = START
    lengths = (0, 1, 3, 7, 2) if prefixed else [0] * ROWS
    prefixes = [past[1 : 1 + length].tolist() for past, length in zip(history, lengths, strict=True)]
    inputs = requests(source, limits, search.min_tokens, first, prefixes)

    def run(logits, inputs, history, length):
        scores, normalizer = process_logits(logits, search, MODEL, inputs, history, length)
        return scores - normalizer

    if compiled:
        run = mx.compile(run)
    else:
        mx.disable_compile()
    changed = 0
    every = [[length] * ROWS for length in range(1, CAPACITY + 1)]
    every += [np.roll(np.arange(1, CAPACITY + 1), shift)[:ROWS] for shift in range(CAPACITY)]  # each row another one
    for lengths in every:
        logits = rng.standard_normal((ROWS, VOCAB)) * 2
        logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        results = np.array(
            run(
                mx.array(logits.astype(np.float32)),
                inputs,
                mx.array(history.astype(np.int32)),
                mx.array(lengths, mx.int32)[:, None],
            )
        )
        expected = [
            plain(row, search, read.tolist(), past[:length].tolist(), limit, token, prefix)
            for row, read, past, length, limit, token, prefix in zip(
                logprobs, source, history, lengths, limits, first, prefixes, strict=True
            )
        ]
        np.testing.assert_allclose(results, expected, atol=tolerance(1e-5))
        changed += int((np.abs(results - logprobs) > 1e-3).any())
    mx.enable_compile()
    assert (changed > 0) == (prefixed or "longer" not in rules)


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("rules", ["minimum", "forced", "forced although bad", "suppressed"])
def test_the_best_logits_have_the_scores_of_all_logits(rules, prefixed):
    search, k = SearchConfig(beam_size=2, **RULES[rules]), 2
    assert not reads_all_logits(search, MODEL)
    rng = np.random.default_rng(0)
    prefixes = [[5, 6, 3], [4], [], [3, 3], [6]] if prefixed else [[]] * ROWS
    inputs = requests(rng.integers(2, VOCAB, (ROWS, 9)), [3, 5, 12, 7, 4], search.min_tokens, [4, 3, 4, 6, 5], prefixes)
    for length in range(1, CAPACITY + 1):
        logits, lengths = mx.array(rng.standard_normal((ROWS, VOCAB)).astype(np.float32)), mx.full((ROWS, 1), length)
        every, expected_normalizer = process_logits(logits, search, MODEL, inputs, mx.zeros((ROWS, 0)), lengths)
        scores, tokens, normalizer = process_best_logits(logits, k, search, MODEL, inputs, lengths)
        best, order = top_k(scores, k)
        expected, expected_tokens = top_k(every, k)
        assert mx.array_equal(best, expected) and mx.array_equal(normalizer, expected_normalizer)
        tokens, is_finite = mx.take_along_axis(tokens, order, axis=1), expected > NEG_INF
        assert mx.array_equal(mx.where(is_finite, tokens, 0), mx.where(is_finite, expected_tokens, 0))


@pytest.mark.parametrize("distinct", [3, 1000])
def test_the_best_logits_are_enough_if_all_suppressed_tokens_and_end_tokens_are_better(distinct):
    """With as few tokens as needed, several end tokens, padding among the columns, and ties."""
    vocab, k = 20, 4
    config = tiny_models.config(target_vocab_size=vocab, source_vocab_size=vocab, extra_eos_ids=(5, 9))
    search = SearchConfig(beam_size=2, suppress_ids=(7, 8), bad_words=((6,),), min_tokens=2)
    never = [config.pad_id, *config.eos_ids, 6, 7, 8]
    logits = np.random.default_rng(0).integers(0, distinct, (ROWS, vocab)).astype(np.float32)
    logits[:, never] += distinct
    inputs = requests(np.full((ROWS, 3), 3), [9] * ROWS, search.min_tokens, [0] * ROWS, [[]] * ROWS)
    scores, tokens, _ = process_best_logits(mx.array(logits), k, search, config, inputs, mx.array([[1]]))
    assert scores.shape == (ROWS, k + len(never))
    logits[:, never] = NEG_INF
    best, order = top_k(scores, k)
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    assert mx.take_along_axis(tokens, order, axis=1).tolist() == expected.tolist()
    assert best.tolist() == np.take_along_axis(logits, expected, axis=1).tolist()


@pytest.mark.parametrize("rules", [{}, {"no_repeat_ngram_size": 2}, {"renormalize": True}], ids=str)
def test_all_logits_are_read_only_if_many_may_change(rules):
    config = tiny_models.config(target_vocab_size=20, source_vocab_size=20)
    reserved = {config.pad_id, *config.eos_ids}
    others = [token for token in range(20) if token not in reserved]
    for count in range(len(others)):
        search = SearchConfig(beam_size=2, suppress_ids=tuple(others[:count]), **rules)
        assert reads_all_logits(search, config) == (bool(rules) or len(reserved) + count > MAX_SUPPRESSED)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("rules", ["minimum", "forced", "suppressed", "penalty"])
def test_16_bit_logits_are_processed_as_if_they_were_float32(rules, dtype):
    """And without a normalizer they stay 16-bit, because their order is all that counts."""
    search = SearchConfig(**RULES[rules])
    inputs = requests(np.full((ROWS, 9), 3), [3, 5, 12, 7, 4], search.min_tokens, [4] * ROWS, [[]] * ROWS)
    logits = mx.array(np.random.default_rng(0).standard_normal((ROWS, VOCAB))).astype(dtype)
    history = mx.full((ROWS, CAPACITY + 1), START)
    for length in range(1, CAPACITY + 1):
        settings = search, MODEL, inputs, history, mx.full((ROWS, 1), length)
        for normalize in (True, False):
            scores, normalizer = process_logits(logits, *settings, normalize)
            expected, expected_normalizer = process_logits(logits.astype(mx.float32), *settings, normalize)
            assert mx.array_equal(scores, expected) and mx.array_equal(normalizer, expected_normalizer)
        assert scores.dtype == (mx.float32 if rules == "penalty" else dtype)  # without a normalizer


def test_repetition_penalty_divides_positive_scores_and_ignores_unfilled_history():
    scores = mx.array([[1.0, -1.0, 2.0, -2.0]])
    results = repetition_penalty(scores, 2.0, mx.array([[1, 2, 3, 0]]), mx.array(2))
    assert results.tolist() == [[1.0, -2.0, 1.0, -2.0]]


def test_ids_outside_the_vocabulary_are_ignored():
    """Such ids come from users' settings and from larger source vocabularies; MLX does not check bounds."""
    search = SearchConfig(source_no_repeat_ngram_size=1, bad_words=((3,), (10**6,), (2, 2**30)))
    source = mx.array([[4, 10**6, 5 * 10**8]])
    inputs = requests(source, [9], 0, [0], [[]])
    results, _ = process_logits(mx.zeros((1, VOCAB)), search, MODEL, inputs, mx.array([[START, 0, 0]]), mx.array(1))
    assert [i for i, score in enumerate(results[0].tolist()) if score == NEG_INF] == [3, 4]
