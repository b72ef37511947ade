"""Lexical shortlists: the target tokens that are likely for the tokens of a source (Marian's, Firefox's)."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

FIRST_MULTIPLE = 8  # Marian fills up the list to a multiple of 8 tokens


@dataclass(frozen=True)
class LexicalShortlist:
    """The likely target tokens of each source token, and the most frequent ones, which are always on the list.

    Attributes:
        num_first: The first tokens of the target vocabulary, its most frequent ones, are on every list.
        offsets: Where the list of each source token begins in `targets`, with the end of the last one.
        targets: Target token ids, list by list.
    """

    num_first: int
    offsets: np.ndarray
    targets: np.ndarray

    def ids(self, sources: Iterable[list[int]], vocab_size: int, shared: bool) -> np.ndarray:
        """Return the target tokens of a batch of sources, increasing, as Marian chooses them.

        Args:
            sources: Token ids of the sources.
            vocab_size: Number of target tokens.
            shared: Whether source and target share a vocabulary, so that source tokens may be copied.

        Raises:
            ValueError: If the list has tokens that the vocabulary does not have.
        """
        if self.targets.size and (highest := self.targets.max()) >= vocab_size:
            raise ValueError(
                f"A shortlist must have tokens of the model's vocabulary of {vocab_size}, not {highest}: use the one "
                "that was made for this model."
            )
        is_listed = np.arange(vocab_size) < self.num_first
        source_ids = np.unique([token for ids in sources for token in ids]).astype(np.int64)
        if shared:
            is_listed[source_ids] = True
        for token in source_ids[source_ids < len(self.offsets) - 1].tolist():
            is_listed[self.targets[self.offsets[token] : self.offsets[token + 1]]] = True
        others = np.flatnonzero(~is_listed)
        is_listed[others[others >= self.num_first][: -is_listed.sum() % FIRST_MULTIPLE]] = True
        return np.flatnonzero(is_listed)
