"""Tokenised corpora with random ids and sentence lengths, for tests of batches."""

from collections import Counter

import numpy as np

from mlx_transformer.data.dataset import TokenizedCorpus, TokenSequences
from mlx_transformer.tokenization.tokenizer import Tokenizer

PAD, EOS, START = Tokenizer.pad_id, Tokenizer.eos_id, Tokenizer.start_id


def make_sequences(lengths: np.ndarray, rng: np.random.Generator, first: int | None = None) -> TokenSequences:
    """Make sentences of these lengths, which include the end token but not the `first` token, if there is one."""
    lengths = lengths + (first is not None)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(3, 30000, offsets[-1]).astype(np.int32)
    ids[offsets[1:] - 1] = EOS
    if first is not None:
        ids[offsets[:-1]] = first
    return TokenSequences(ids, offsets)


def make_corpus_of_lengths(
    source: np.ndarray, target: np.ndarray, seed: int = 0, start: int = START, pad: int = PAD
) -> TokenizedCorpus:
    """Make a corpus of pairs with these lengths."""
    rng = np.random.default_rng(seed)
    return TokenizedCorpus(make_sequences(source, rng), make_sequences(target, rng, start), 0, pad, EOS)


def make_corpus(size: int, *, longest: int = 256, seed: int = 0, start: int = START, pad: int = PAD) -> TokenizedCorpus:
    """Make a corpus with lengths as in real text: log-normal, and correlated between source and target."""
    rng = np.random.default_rng(seed)
    common = rng.normal(2.6, 0.5, size)
    lengths = [np.clip(np.exp(common + rng.normal(0, 0.2, size)), 2, longest).astype(int) for _ in range(2)]
    return make_corpus_of_lengths(*lengths, seed, start, pad)


def sequence_ids(sequences: TokenSequences, i: int) -> list[int]:
    return sequences.ids[sequences.offsets[i] : sequences.offsets[i + 1]].tolist()


def count_corpus_pairs(corpus: TokenizedCorpus) -> Counter:
    return Counter(
        (tuple(sequence_ids(corpus.source, i)), tuple(sequence_ids(corpus.target, i))) for i in range(len(corpus))
    )
