"""Lexically constrained beam search: targets with required phrases (Hokamp and Liu 2017, "grid beam search").

A sentence whose phrases have n tokens in all has n + 1 banks of beams: those of bank i have generated the first i of
these tokens. A beam stays in its bank with any token, unless it is inside a phrase, and enters the next bank with the
token that it requires. Only beams of the last bank end; ends in other banks are dropped. Sentences with fewer required
tokens than others of their batch begin in a later bank.
"""

import mlx.core as mx
import numpy as np

from mlx_transformer.decoding.inputs import DecodingInputs
from mlx_transformer.decoding.logits_processors import NEG_INF
from mlx_transformer.model.positions import constant_arange


def end_words(
    scores: mx.array, backpointers: mx.array, inputs: DecodingInputs, continues_word: mx.array, banks: int
) -> mx.array:
    """Mask tokens that would continue the word at the end of a phrase.

    Args:
        scores: Scores of all tokens, (rows, vocab).
        backpointers: The last backpointer of each beam, (batch, beams).
        inputs: The inputs of the search.
        continues_word: Whether a token continues the word before it, bool (vocab,).
        banks: Number of banks.
    """
    beams = backpointers.shape[1]
    bank_of = constant_arange(beams, np.uint32) // (beams // banks)
    has_entered = backpointers // scores.shape[1] // (beams // banks) < bank_of
    return mx.where(has_entered.reshape(-1, 1) & ~inputs.in_phrase & continues_word, NEG_INF, scores)


def enter_next_bank(
    totals: mx.array, scores: mx.array, normalizer: mx.array, inputs: DecodingInputs, banks: int
) -> tuple[mx.array, mx.array]:
    """Continue each beam with the token that it requires.

    Args:
        totals: Sum of log-probabilities of each beam, (batch, beams).
        scores: Scores of all tokens, (rows, vocab).
        normalizer: See `process_logits`.
        inputs: The inputs of the search.
        banks: Number of banks.

    Returns:
        Sums of log-probabilities and backpointers of the beams that each bank receives from the one before it,
        (batch x banks, beams / banks).
    """
    (batch, beams), vocab = totals.shape, scores.shape[1]
    tokens = mx.maximum(inputs.required_ids, 0)
    logprobs = mx.take_along_axis(scores, tokens, axis=1) - normalizer
    totals = totals + mx.where(inputs.required_ids < 0, NEG_INF, logprobs).reshape(batch, beams)
    backpointers = tokens.astype(mx.uint32).reshape(batch, beams) + vocab * constant_arange(beams, np.uint32)

    def shift(array: mx.array, first: float) -> mx.array:
        array = array.reshape(batch, banks, -1)
        array = mx.concatenate([mx.full_like(array[:, :1], first), array[:, :-1]], axis=1)
        return array.reshape(batch * banks, -1)

    return shift(totals, NEG_INF), shift(backpointers, 0)
