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


def trace_back(links: np.ndarray, places: np.ndarray, lengths: np.ndarray, vocab: int) -> np.ndarray:
    """The tokens of finished hypotheses, (batch, hypotheses, steps); those from a hypothesis' length on mean nothing.

    Args:
        links: For each step the place of each living hypothesis, beam of its parent x vocab + its newest token, (steps,
            batch, beams).
        places: The last place of each finished hypothesis, (batch, hypotheses).
        lengths: At how many tokens it finished, (batch, hypotheses).
        vocab: Size of the vocabulary.
    """
    ids = np.zeros((*places.shape, len(links)), np.int64)
    place = places
    for step in reversed(range(len(links))):
        place = np.where(lengths == step + 1, places, place)
        ids[..., step] = place % vocab
        if step:
            place = np.take_along_axis(links[step - 1], place // vocab, axis=1)
    return ids
