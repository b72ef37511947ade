"""Hypotheses, the results of a search, and their reconstruction from backpointers."""

from dataclasses import dataclass

import numpy as np

from mlx_transformer.tokenization.texts import TextError


@dataclass(frozen=True)
class Hypothesis:
    """A candidate target.

    Attributes:
        ids: Token ids without start and end tokens; they begin with the target prefix, if there is one.
        score: Sum of log-probabilities (natural logarithm) / length ** length_penalty. The length includes the end
            token; a target prefix counts in neither.
        finish_reason: "stop" for an end token, "length" if max_tokens was reached, "error" if there is no result.
        text: The decoded text, if a tokenizer was given.
        truncated: Whether the source was truncated to the model's maximum length.
        too_short: Whether the target is much shorter than the model's training suggests: something is probably missing.
        missing_terms: Terms of a glossary, or text to copy, that the target should have but has not.
        token_scores: Log-probability under the model of each id, and of the end token if there is one; on request.
        alignment: Pairs of aligned source and target words (or tokens); on request.
        end_id: The end token that stopped the search, which is not among `ids`; None if there is none.
        error: Why a text has no result, if errors are returned instead of raised.
    """

    ids: list[int]
    score: float
    finish_reason: str
    text: str | None = None
    truncated: bool = False
    too_short: bool = False
    missing_terms: tuple[str, ...] = ()
    token_scores: list[float] | None = None
    alignment: list[tuple[int, int]] | None = None
    end_id: int | None = None
    error: str | None = None


class NoHypothesisError(TextError):
    """The search found no hypothesis for some of the sources.

    Attributes:
        hypotheses: The hypotheses of each source; empty lists for those without any.
    """

    reason = "the model's logits are not finite, or all tokens are suppressed: compute in float32, check suppress_ids"

    def __init__(self, hypotheses: list[list[Hypothesis]]) -> None:
        rows = [str(row) for row, found in enumerate(hypotheses) if not found]
        super().__init__(f"Search found no hypothesis for source {', '.join(rows)}: {self.reason}.")
        self.hypotheses = hypotheses


def backtrace(
    backpointers: np.ndarray, last: np.ndarray, lengths: np.ndarray, vocab: int, starts: np.ndarray
) -> np.ndarray:
    """Follow backpointers from the last token of each finished hypothesis to its first.

    Args:
        backpointers: For each step and beam, parent beam x vocab + token, (steps, batch, beams).
        last: The backpointer at which each hypothesis finished, (batch, hypotheses).
        lengths: Number of tokens of each hypothesis, (batch, hypotheses).
        vocab: Size of the vocabulary.
        starts: The step at which the hypotheses of each row begin, (batch,).

    Returns:
        Token ids, (batch, hypotheses, longest); entries beyond a hypothesis' length are undefined.
    """
    steps = np.minimum(starts + np.arange(lengths.max())[:, None], len(backpointers) - 1)
    backpointers = np.take_along_axis(backpointers, steps[..., None], axis=0)
    ids = np.zeros((*last.shape, len(backpointers)), np.int64)
    current = last
    for step in reversed(range(len(backpointers))):
        current = np.where(lengths == step + 1, last, current)
        ids[..., step] = current % vocab
        if step:
            current = np.take_along_axis(backpointers[step - 1], current // vocab, axis=1)
    return ids
