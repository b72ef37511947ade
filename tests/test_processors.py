"""The rules that change log-probabilities, against loops over tokens, at every length of a history and compiled too."""

import math

import mlx.core as mx
import numpy as np
import pytest
import tiny_models

from mlx_transformer.config import SearchConfig
from mlx_transformer.processors import penalize, process

VOCAB, ROWS, CAPACITY, START, EOS = 7, 5, 12, 2, 1
NEVER = -math.inf
MODEL = tiny_models.config(target_vocab_size=8, source_vocab_size=8, pad_id=VOCAB)  # padding lies past the scores


def plain(logprobs, search, history, limit):
    """The rules one after another, as transformers 5 has them, for one row; the history begins with the start token."""
    scores = np.array(logprobs, np.float64)
    length, history = len(history), list(history)
    if search.repetition_penalty != 1:
        for token in set(history):
            scores[token] *= search.repetition_penalty if scores[token] < 0 else 1 / search.repetition_penalty
    size = search.no_repeat_ngram_size
    for place in range(length - size + 1 if size else 0):
        if history[place : place + size - 1] == history[length - size + 1 :]:
            scores[history[place + size - 1]] = NEVER
    for *begin, last in search.bad_words:
        if length > len(begin) and history[length - len(begin) :] == begin:
            scores[last] = NEVER
    if length < search.min_tokens:
        scores[EOS] = NEVER
    for forced, here in ((search.forced_bos_id, length == 1), (search.forced_eos_id, length == limit)):
        if forced is not None and here:
            scores[:] = NEVER
            scores[forced] = 0
    scores[list(search.suppress_ids)] = NEVER
    if search.renormalize:
        scores -= np.log(np.exp(scores).sum())
    return scores


RULES = {
    "ngram 1": {"no_repeat_ngram_size": 1},
    "ngram 2": {"no_repeat_ngram_size": 2},
    "ngram 3": {"no_repeat_ngram_size": 3},
    "ngram longer than all": {"no_repeat_ngram_size": 40},
    "penalty": {"repetition_penalty": 1.7},
    "reward": {"repetition_penalty": 0.5},
    "words": {"bad_words": ((3,), (4, 5), (2, 6), (3, 3, 4), (5, 5, 5, 0))},
    "minimum": {"min_tokens": 4},
    "forced": {"forced_bos_id": 4, "forced_eos_id": 1},
    "forced although bad": {"forced_bos_id": 4, "bad_words": ((4,),)},
    "suppressed": {"suppress_ids": (0, 5)},
    "all": {
        "no_repeat_ngram_size": 3,
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
    "rules, compiled", [*((rules, False) for rules in RULES), pytest.param("all", True, marks=pytest.mark.slow)]
)
def test_rules_are_those_of_plain_loops(rules, compiled, tolerance):
    search = SearchConfig(beam_size=2, **RULES[rules])
    rng = np.random.default_rng(0)
    history = rng.integers(2, VOCAB, (ROWS, CAPACITY + 1))
    history[:, 0] = START
    limits = np.array([3, 5, 12, 7, 4])

    def run(logprobs, history, length, limits):
        return process(logprobs, search, MODEL, history, length, limits)

    if compiled:
        run = mx.compile(run)
    else:
        mx.disable_compile()
    changed = 0
    for length in range(1, CAPACITY + 1):
        logits = rng.standard_normal((ROWS, VOCAB)) * 2
        logprobs = (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)
        found = np.array(
            run(
                mx.array(logprobs),
                mx.array(history.astype(np.int32)),
                mx.array(length, mx.int32),
                mx.array(limits.astype(np.int32)),
            )
        )
        expected = [
            plain(row, search, past[:length].tolist(), limit)
            for row, past, limit in zip(logprobs, history, limits, strict=True)
        ]
        np.testing.assert_allclose(found, expected, atol=tolerance(1e-5))
        changed += int((found != logprobs).any())
    mx.enable_compile()
    assert (changed > 0) == (rules != "ngram longer than all")


def test_positive_scores_are_divided_and_unfilled_places_do_not_count():
    scores = mx.array([[1.0, -1.0, 2.0, -2.0]])
    found = penalize(scores, 2.0, mx.array([[1, 2, 3, 0]]), mx.array(2))
    assert found.tolist() == [[1.0, -2.0, 1.0, -2.0]]
