"""Tokenised corpora: ids of all pairs, languages, dropped pairs, storage in files, and fingerprints."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from support.corpora import EOS, PAD, START, sequence_ids
from support.peak_memory import growth

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.data.batch_sampler import epoch_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import SentencePair, read_pairs
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary


def make_number_tokenizer(size: int, **fields) -> Tokenizer:
    """Make a tokenizer whose words are their ids in figures; the last four ids are en, fr, de and padding."""
    codes = {"en": size - 4, "fr": size - 3, "de": size - 2}
    config = TokenizerConfig(pad_id=size - 1, skip_ids=(0, 1, 2), languages=codes, **fields)
    return Tokenizer(WordVocabulary({str(i): i for i in range(size)}, 0), None, config)


TAGGED = [
    SentencePair("5 6", "7", "en", "fr"),
    SentencePair("8", "9", "fr", "de"),
    SentencePair("5", "5 5", "en", "de"),
]


MEMORY = """
from mlx_transformer.data.parallel_corpus import ParallelCorpora
from mlx_transformer.data.batch_sampler import epoch_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.tokenization.tokenizer import Tokenizer
corpus = TokenizedCorpus.build(ParallelCorpora([source]), Tokenizer.train(["source"], ["target"], 300))
for batch in epoch_batches(corpus, 512, seed=0):
    pass
"""


def test_corpus_holds_the_ids_of_each_pair():
    pairs = read_pairs("dates:valid").pairs * 10  # more than one chunk
    tokenizer = Tokenizer.train([source for source, _ in pairs], [target for _, target in pairs], 400, shared=False)
    corpus = TokenizedCorpus.build(iter(pairs), tokenizer)
    assert len(corpus) == len(pairs) and corpus.num_dropped == 0
    for i in (0, 1, 8191, 8192, 9999):
        assert sequence_ids(corpus.source, i) == tokenizer.encode(pairs[i][0])
        assert sequence_ids(corpus.target, i) == [START, *tokenizer.encode_target(pairs[i][1])]
    assert corpus.num_target_tokens == sum(len(ids) for ids in tokenizer.encode_target_batch([t for _, t in pairs]))
    assert (corpus.pad_id, corpus.eos_id) == (PAD, EOS)


def test_too_long_pairs_are_dropped_and_counted():
    tokenizer = Tokenizer.train(["1 2"], ["1 2"], 270)
    pairs = [("1" * source, "2" * target) for source, target in ((4, 4), (5, 4), (4, 5), (1, 1))]
    corpus = TokenizedCorpus.build(pairs, tokenizer, max_tokens=len(tokenizer.encode("1111")))
    assert (len(corpus), corpus.num_dropped) == (2, 2)
    assert corpus.source.max_length == corpus.target.max_length - 1 == len(tokenizer.encode("1111"))
    with pytest.raises(ValueError, match="At least one pair must fit 1 tokens, but all 4 are longer"):
        TokenizedCorpus.build(pairs, tokenizer, max_tokens=1)


@pytest.mark.parametrize(("size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32), (100, np.uint16)])
def test_language_tokens_and_large_ids_are_stored(size, dtype):
    en, fr, de = size - 4, size - 3, size - 2
    generated = TokenizedCorpus.build(
        TAGGED, make_number_tokenizer(size, source_language="before", target_language="first")
    )
    assert [sequence_ids(generated.source, i) for i in range(3)] == [[en, 5, 6, 1], [fr, 8, 1], [en, 5, 1]]
    assert [sequence_ids(generated.target, i) for i in range(3)] == [[2, fr, 7, 1], [2, de, 9, 1], [2, de, 5, 5, 1]]
    started = TokenizedCorpus.build(
        TAGGED, make_number_tokenizer(size, source_language="after", target_language="start")
    )
    assert [sequence_ids(started.source, i) for i in range(3)] == [[5, 6, 1, en], [8, 1, fr], [5, 1, en]]
    assert [sequence_ids(started.target, i) for i in range(3)] == [[fr, 7, 1], [de, 9, 1], [de, 5, 5, 1]]
    assert generated.num_target_tokens == 10 and started.num_target_tokens == 7
    only_target = [pair._replace(source_language=None) for pair in TAGGED]
    written = TokenizedCorpus.build(only_target, make_number_tokenizer(size, target_language="source"))
    assert [sequence_ids(written.source, i) for i in range(3)] == [[fr, 5, 6, 1], [de, 8, 1], [de, 5, 1]]
    assert generated.source.ids.dtype == generated.target.ids.dtype == dtype
    (batch,) = epoch_batches(generated, 64)
    assert generated.pad_id == batch.source[1, -1] == size - 1 and batch.source.dtype == batch.target.dtype == np.int32


def test_a_missing_language_raises():
    with pytest.raises(ValueError, match="needs the target language"):
        TokenizedCorpus.build(
            [SentencePair("5", "6", "en")],
            make_number_tokenizer(100, source_language="before", target_language="first"),
        )


def test_source_prefix_is_added_once():
    corpus = TokenizedCorpus.build([("5", "6"), ("9 5", "6")], make_number_tokenizer(100), source_prefix="9 ")
    assert [sequence_ids(corpus.source, i) for i in range(2)] == [[9, 5, 1]] * 2


def test_ids_are_stored_in_unnamed_files(tmp_path, monkeypatch):
    for name in ("folder", "default"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "default"))

    def pairs():
        yield from [("5 6 7", "8 9")] * 20_000
        assert not [path for folder in tmp_path.iterdir() for path in folder.iterdir()]  # even while they are written

    for name, folder in (("folder", tmp_path / "folder"), ("default", None)):
        corpus = TokenizedCorpus.build(pairs(), make_number_tokenizer(100), folder=folder)
        assert not corpus.source.ids.flags.owndata and not corpus.target.offsets.flags.owndata
        if os.path.exists("/proc/self/maps"):
            maps = Path("/proc/self/maps").read_text().splitlines()
            assert len([line for line in maps if str(tmp_path / name) in line and "(deleted)" in line]) == 4
        del corpus
    with pytest.raises(FileNotFoundError):
        TokenizedCorpus.build(pairs(), make_number_tokenizer(100), folder=tmp_path / "none")


@pytest.mark.slow
def test_a_corpus_is_not_held_in_memory(tmp_path):
    growths = []
    for size in (20_000, 400_000):
        path = tmp_path / f"{size}.tsv"
        path.write_text("".join(f"source {i}\ttarget {i}\n" for i in range(size)))
        growths.append(growth(MEMORY, path))
        path.unlink()
    # Mapped pages and the batches of a window take about 120 bytes per pair; the texts would add 210.
    assert growths[1] - growths[0] < 90e6


@pytest.mark.parametrize("side", [0, 1])
def test_fingerprint_detects_a_changed_token(side):
    tokenizer = Tokenizer.train(["ab cd"], ["ab cd"], 261)
    pairs = [["ab", "cd"], ["cd", "ab"]]
    first = TokenizedCorpus.build(pairs, tokenizer).fingerprint
    pairs[1][side] = "ef"
    assert TokenizedCorpus.build(pairs, tokenizer).fingerprint != first


def test_usual_lengths_are_those_of_nearly_all_pairs():
    """Of 10,000 pairs 10 are longer, and 10 are relatively shorter."""
    tokenizer = make_number_tokenizer(50)
    sources = [20] * 9990 + [40] * 10
    targets = [30] * 9980 + [5] * 10 + [60] * 10
    pairs = [("7 " * (source - 1), "7 " * target) for source, target in zip(sources, targets, strict=True)]
    assert TokenizedCorpus.build(pairs, tokenizer).usual_lengths() == (20, pytest.approx(1.5, abs=0.01))
    few = TokenizedCorpus.build([("7 " * 8, "7")], tokenizer).usual_lengths()
    assert few == (9, 0.0)  # too short to tell a ratio
