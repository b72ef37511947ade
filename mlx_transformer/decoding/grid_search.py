"""Lexically constrained beam search: targets with required phrases (Hokamp and Liu 2017, "grid beam search").

A sentence whose phrases have n tokens in all has n + 1 banks of beams: those of bank i have generated the first i of
these tokens. A beam stays in its bank with any token, unless it is inside a phrase, and enters the next bank with the
token that it requires. Only beams of the last bank end; ends in other banks are dropped. Sentences with fewer required
tokens than others of their batch begin in a later bank.
"""

import mlx.core as mx
import numpy as np

from mlx_transformer.decoding.inputs import DecodingInputs
from mlx_transformer.decoding.logits_processors import NEG_INF, vocab_size
from mlx_transformer.model.positions import constant_arange
from mlx_transformer.model.shortlist import Shortlist, ids_to_columns


def end_words(
    scores: mx.array,
    backpointers: mx.array,
    inputs: DecodingInputs,
    continues_word: mx.array,
    banks: int,
    shortlist: Shortlist | None,
) -> mx.array:
    """Mask tokens that would continue the word at the end of a phrase.

    Args:
        scores: Scores of all tokens, (rows, columns).
        backpointers: The last backpointer of each beam, (batch, beams).
        inputs: The inputs of the search.
        continues_word: Whether a token continues the word before it, bool (vocab,).
        banks: Number of banks.
        shortlist: The tokens of the columns; None for all tokens in their order.
    """
    beams = backpointers.shape[1]
    bank_of = constant_arange(beams, np.uint32) // (beams // banks)
    has_entered = backpointers // continues_word.shape[0] // (beams // banks) < bank_of
    if shortlist is not None:
        continues_word = mx.take(continues_word, shortlist.ids)
    return mx.where(has_entered.reshape(-1, 1) & ~inputs.in_phrase & continues_word, NEG_INF, scores)


def enter_next_bank(
    totals: mx.array,
    scores: mx.array,
    normalizer: mx.array,
    inputs: DecodingInputs,
    banks: int,
    shortlist: Shortlist | None,
) -> tuple[mx.array, mx.array]:
    """Continue each beam with the token that it requires.

    Args:
        totals: Sum of log-probabilities of each beam, (batch, beams).
        scores: Scores of all tokens, (rows, columns).
        normalizer: See `process_logits`.
        inputs: The inputs of the search.
        banks: Number of banks.
        shortlist: See `end_words`; it has the required tokens.

    Returns:
        Sums of log-probabilities and backpointers of the beams that each bank receives from the one before it,
        (batch x banks, beams / banks).
    """
    (batch, beams), vocab = totals.shape, vocab_size(scores, shortlist)
    tokens = mx.maximum(inputs.required_ids, 0)
    is_required = inputs.required_ids >= 0
    columns = mx.where(is_required, ids_to_columns(tokens, shortlist), 0)
    logprobs = mx.take_along_axis(scores, columns, axis=1) - normalizer
    totals = totals + mx.where(is_required, logprobs, NEG_INF).reshape(batch, beams)
    backpointers = tokens.astype(mx.uint32).reshape(batch, beams) + vocab * constant_arange(beams, np.uint32)

    def shift(array: mx.array, first: float) -> mx.array:
        array = array.reshape(batch, banks, -1)
        array = mx.concatenate([mx.full_like(array[:, :1], first), array[:, :-1]], axis=1)
        return array.reshape(batch * banks, -1)

    return shift(totals, NEG_INF), shift(backpointers, 0)
