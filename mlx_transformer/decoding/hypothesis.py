"""What a search finds: hypotheses, read off the links that it left behind."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Hypothesis:
    """A candidate target.

    Attributes:
        ids: Token ids, without start and end tokens; a target prefix is their beginning.
        score: Sum of log-probabilities (natural logarithm) / length ** length_penalty, the end token counted, a target
            prefix not.
        finish_reason: "stop" for an end token, "length" where max_tokens was reached.
        text: The text, where a tokenizer was given.
        truncated: Whether the source was cut to the length that the model can read.
        token_scores: Natural logarithm of the probability of each of the ids, and of the end token where there is one,
            by the model alone, if asked for.
        alignment: Pairs of source and target words, or tokens, if asked for.
    """

    ids: list[int]
    score: float
    finish_reason: str
    text: str | None = None
    truncated: bool = False
    token_scores: list[float] | None = None
    alignment: list[tuple[int, int]] | None = None


def backtrace(backpointers: np.ndarray, last: np.ndarray, lengths: np.ndarray, vocab: int) -> np.ndarray:
    """Follow backpointers from the last token of each finished hypothesis to its first.

    Args:
        backpointers: For each step and beam, parent beam x vocab + token, (steps, batch, beams).
        last: The backpointer at which each hypothesis finished, (batch, hypotheses).
        lengths: Number of tokens of each hypothesis, (batch, hypotheses).
        vocab: Size of the vocabulary.

    Returns:
        Token ids, (batch, hypotheses, steps); entries beyond a hypothesis' length are undefined.
    """
    ids = np.zeros((*last.shape, len(backpointers)), np.int64)
    current = last
    for step in reversed(range(len(backpointers))):
        current = np.where(lengths == step + 1, last, current)
        ids[..., step] = current % vocab
        if step:
            current = np.take_along_axis(backpointers[step - 1], current // vocab, axis=1)
    return ids
