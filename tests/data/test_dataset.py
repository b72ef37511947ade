"""A corpus holds the ids of its pairs, in files; batches hold every pair once, within budget, in few shapes."""

import os
import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from support.paths import ROOT
from support.peak_memory import growth

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.data import batch_sampler, dataset
from mlx_transformer.data.batch_sampler import iterate_batches, validation_batches
from mlx_transformer.data.dataset import TokenizedCorpus, TokenSequences
from mlx_transformer.data.parallel_corpus import SentencePair, read_pairs
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary

PAD, EOS, START = Tokenizer.pad_id, Tokenizer.eos_id, Tokenizer.start_id
TATOEBA = ROOT.parent / "shared/data/tatoeba-en-fr/train.tsv.gz"


def sentences(lengths: np.ndarray, rng: np.random.Generator, first: int | None = None) -> TokenSequences:
    """Make sentences of the given lengths, the end token counted, the first token, if any, not."""
    lengths = lengths + (first is not None)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(3, 30000, offsets[-1]).astype(np.int32)
    ids[offsets[1:] - 1] = EOS
    if first is not None:
        ids[offsets[:-1]] = first
    return TokenSequences(ids, offsets)


def corpus_of(
    source: np.ndarray, target: np.ndarray, seed: int = 0, start: int = START, pad: int = PAD
) -> TokenizedCorpus:
    """Make a corpus of pairs of such lengths."""
    rng = np.random.default_rng(seed)
    return TokenizedCorpus(sentences(source, rng), sentences(target, rng, start), 0, pad, EOS)


def make_corpus(size: int, *, longest: int = 256, seed: int = 0, start: int = START, pad: int = PAD) -> TokenizedCorpus:
    """Make a corpus whose lengths are spread as in real text: log-normal, correlated between the sides."""
    rng = np.random.default_rng(seed)
    common = rng.normal(2.6, 0.5, size)
    lengths = [np.clip(np.exp(common + rng.normal(0, 0.2, size)), 2, longest).astype(int) for _ in range(2)]
    return corpus_of(*lengths, seed, start, pad)


def row(side: TokenSequences, i: int) -> list[int]:
    return side.ids[side.offsets[i] : side.offsets[i + 1]].tolist()


def pairs_of(corpus: TokenizedCorpus) -> Counter:
    return Counter((tuple(row(corpus.source, i)), tuple(row(corpus.target, i))) for i in range(len(corpus)))


def pairs_in(found: list, pad: int = PAD) -> Counter:
    """Count the pairs in batches, all after the end token cut off; rows that only fill a batch are left out."""
    counter: Counter = Counter()
    for batch in found:
        for source, target in zip(batch.source.tolist(), batch.target.tolist(), strict=True):
            ends = [ids.index(EOS) + 1 if EOS in ids else 0 for ids in (source, target)]
            assert set(source[ends[0] :] + target[ends[1] :]) <= {pad}
            if ends[1]:
                counter[tuple(source[: ends[0]]), tuple(target[: ends[1]])] += 1
            else:
                assert ends[0] == 1  # a lone end token to nothing
    return counter


def shapes(found: list) -> dict:
    return Counter((batch.source.shape[1], batch.target.shape[1]) for batch in found)


@pytest.fixture
def small_windows(monkeypatch):
    """Large corpora, in small."""
    monkeypatch.setattr(dataset, "SHUFFLE_WINDOW", 1000)


# Corpus


def test_corpus_holds_the_ids_of_each_pair():
    pairs = read_pairs("dates:valid").pairs * 10  # more than one chunk
    tokenizer = Tokenizer.train([source for source, _ in pairs], [target for _, target in pairs], 400, shared=False)
    corpus = TokenizedCorpus.build(iter(pairs), tokenizer)
    assert len(corpus) == len(pairs) and corpus.dropped == 0
    for i in (0, 1, 8191, 8192, 9999):
        assert row(corpus.source, i) == tokenizer.encode(pairs[i][0])
        assert row(corpus.target, i) == [START, *tokenizer.encode_target(pairs[i][1])]
    assert corpus.num_target_tokens == sum(len(ids) for ids in tokenizer.encode_target_batch([t for _, t in pairs]))
    assert (corpus.pad_id, corpus.eos_id) == (PAD, EOS)


def test_corpus_drops_and_counts_pairs_too_long_on_either_side():
    tokenizer = Tokenizer.train(["1 2"], ["1 2"], 270)
    pairs = [("1" * source, "2" * target) for source, target in ((4, 4), (5, 4), (4, 5), (1, 1))]
    corpus = TokenizedCorpus.build(pairs, tokenizer, max_tokens=len(tokenizer.encode("1111")))
    assert (len(corpus), corpus.dropped) == (2, 2)
    assert corpus.source.longest == corpus.target.longest - 1 == len(tokenizer.encode("1111"))
    with pytest.raises(ValueError, match="No pair is left of 4: all exceed 1 tokens"):
        TokenizedCorpus.build(pairs, tokenizer, max_tokens=1)


def words(size: int, **fields) -> Tokenizer:
    """Make a tokenizer whose words are the numbers of their ids; the last four are en, fr, de and padding."""
    codes = {"en": size - 4, "fr": size - 3, "de": size - 2}
    config = TokenizerConfig(pad_id=size - 1, skip_ids=(0, 1, 2), languages=codes, **fields)
    return Tokenizer(WordVocabulary({str(i): i for i in range(size)}, 0), None, config)


TAGGED = [
    SentencePair("5 6", "7", "en", "fr"),
    SentencePair("8", "9", "fr", "de"),
    SentencePair("5", "5 5", "en", "de"),
]


@pytest.mark.parametrize(("size", "kind"), [(2**16, np.uint16), (2**16 + 1, np.int32), (100, np.uint16)])
def test_corpus_tells_languages_and_holds_any_id(size, kind):
    en, fr, de = size - 4, size - 3, size - 2
    generated = TokenizedCorpus.build(TAGGED, words(size, source_language="before", target_language="first"))
    assert [row(generated.source, i) for i in range(3)] == [[en, 5, 6, 1], [fr, 8, 1], [en, 5, 1]]
    assert [row(generated.target, i) for i in range(3)] == [[2, fr, 7, 1], [2, de, 9, 1], [2, de, 5, 5, 1]]
    started = TokenizedCorpus.build(TAGGED, words(size, source_language="after", target_language="start"))
    assert [row(started.source, i) for i in range(3)] == [[5, 6, 1, en], [8, 1, fr], [5, 1, en]]
    assert [row(started.target, i) for i in range(3)] == [[fr, 7, 1], [de, 9, 1], [de, 5, 5, 1]]
    assert generated.num_target_tokens == 10 and started.num_target_tokens == 7
    only_target = [pair._replace(source_language=None) for pair in TAGGED]
    written = TokenizedCorpus.build(only_target, words(size, target_language="source"))
    assert [row(written.source, i) for i in range(3)] == [[fr, 5, 6, 1], [de, 8, 1], [de, 5, 1]]
    assert generated.source.ids.dtype == generated.target.ids.dtype == kind
    (batch,) = validation_batches(generated, 64)
    assert generated.pad_id == batch.source[1, -1] == size - 1 and batch.source.dtype == batch.target.dtype == np.int32


def test_a_missing_language_is_named():
    with pytest.raises(ValueError, match="needs the target language"):
        TokenizedCorpus.build(
            [SentencePair("5", "6", "en")], words(100, source_language="before", target_language="first")
        )


def test_sources_begin_with_the_prefix_once():
    corpus = TokenizedCorpus.build([("5", "6"), ("9 5", "6")], words(100), source_prefix="9 ")
    assert [row(corpus.source, i) for i in range(2)] == [[9, 5, 1]] * 2


def test_ids_lie_in_files_without_a_name(tmp_path, monkeypatch):
    for place in ("folder", "default"):
        (tmp_path / place).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "default"))

    def pairs():
        yield from [("5 6 7", "8 9")] * 20_000
        assert not [path for place in tmp_path.iterdir() for path in place.iterdir()]  # nor while they are written

    for place, folder in (("folder", tmp_path / "folder"), ("default", None)):
        corpus = TokenizedCorpus.build(pairs(), words(100), folder=folder)
        assert not corpus.source.ids.flags.owndata and not corpus.target.offsets.flags.owndata
        if os.path.exists("/proc/self/maps"):
            maps = Path("/proc/self/maps").read_text().splitlines()
            assert len([line for line in maps if str(tmp_path / place) in line and "(deleted)" in line]) == 4
        del corpus
    with pytest.raises(FileNotFoundError):
        TokenizedCorpus.build(pairs(), words(100), folder=tmp_path / "none")


MEMORY = """
from mlx_transformer.data.parallel_corpus import ParallelCorpora
from mlx_transformer.data.batch_sampler import validation_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.tokenization.tokenizer import Tokenizer
corpus = TokenizedCorpus.build(ParallelCorpora([source]), Tokenizer.train(["source"], ["target"], 300))
for batch in validation_batches(corpus, 512, seed=0):
    pass
"""


@pytest.mark.slow
def test_a_corpus_is_not_held_in_memory(tmp_path):
    grown = []
    for size in (20_000, 400_000):
        path = tmp_path / f"{size}.tsv"
        path.write_text("".join(f"source {i}\ttarget {i}\n" for i in range(size)))
        grown.append(growth(MEMORY, path))
        path.unlink()
    # Mapped pages of the files and a window's plan are some 120 bytes a pair; its texts alone would be 210 more.
    assert grown[1] - grown[0] < 90e6


# Batches


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("size", "batch_tokens"), [(1, 512), (2, 1), (7, 4096), (500, 512), (5000, 2048), (5000, 100)])
def test_every_pair_comes_once(size, batch_tokens, seed):
    corpus = make_corpus(size)
    assert pairs_in(list(validation_batches(corpus, batch_tokens, seed=seed, epoch=3))) == pairs_of(corpus)


def test_batches_keep_to_the_budget_and_use_it():
    corpus = make_corpus(20000)
    for batch in validation_batches(corpus, 2048, seed=0):
        longer = max(batch.source.shape[1], batch.target.shape[1] - 1)
        assert len(batch.source) == len(batch.target) <= 2048 // longer
        assert len(batch.source) == 2048 // longer or longer <= 8  # less only where the corpus has fewer so short
        assert batch.source.dtype == batch.target.dtype == np.int32


def test_a_shape_has_one_number_of_rows_and_shapes_are_few():
    corpus = make_corpus(50000)
    found = [batch for epoch in range(3) for batch in validation_batches(corpus, 2048, seed=0, epoch=epoch)]
    assert len({(batch.source.shape, batch.target.shape) for batch in found}) == len(shapes(found)) < 70


def test_no_shape_is_longer_than_the_longest_sentence():
    corpus = make_corpus(3000, longest=25)
    assert corpus.source.longest == 25
    assert max(max(shape[0], shape[1] - 1) for shape in shapes(list(validation_batches(corpus, 512, seed=0)))) == 25


def test_little_is_padding():
    corpus = make_corpus(50000)
    found = list(validation_batches(corpus, 2048, seed=0))
    positions = sum(batch.source.size + batch.target[:, 1:].size for batch in found)
    assert (len(corpus.source.ids) + corpus.num_target_tokens) / positions > 0.88


def test_one_very_long_pair_makes_no_others_long():
    lengths = np.full(1000, 10)
    for longest in ((250, 10), (10, 250), (250, 250)):
        corpus = corpus_of(*(np.append(lengths, longest[side]) for side in range(2)))
        assert len(list(validation_batches(corpus, 2048))) <= 1000 // 204 + 2


def test_seed_and_epoch_decide_the_batches():
    corpus = make_corpus(3000)

    def sequence(**choice):
        return [(batch.source.tolist(), batch.target.tolist()) for batch in validation_batches(corpus, 512, **choice)]

    first = sequence(seed=1, epoch=0)
    assert first == sequence(seed=1, epoch=0)
    for other in (sequence(seed=1, epoch=1), sequence(seed=2, epoch=0), sequence()):
        # Not the order of the batches alone, but also who is with whom.
        assert sorted(map(str, other)) != sorted(map(str, first))


def test_seeded_order_mixes_lengths_and_no_seed_sorts_them():
    corpus = make_corpus(20000)
    shuffled = [batch.target.shape[1] for batch in validation_batches(corpus, 1024, seed=0)]
    plain = [max(batch.source.shape[1], batch.target.shape[1] - 1) for batch in validation_batches(corpus, 1024)]
    assert abs(np.corrcoef(shuffled, np.arange(len(shuffled)))[0, 1]) < 0.3
    assert np.corrcoef(plain, np.arange(len(plain)))[0, 1] > 0.8


def test_an_epoch_has_the_same_shapes_whatever_its_order(small_windows):
    corpus = make_corpus(5500)
    epochs = [
        Counter(b.source.shape + b.target.shape for b in validation_batches(corpus, 512, seed=s, epoch=s))
        for s in range(3)
    ]
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(epochs[0]) < 60


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("size", [1000, 1001, 4321])
def test_every_pair_comes_once_of_large_corpora(small_windows, size, seed):
    corpus = make_corpus(size)
    found = list(validation_batches(corpus, 512, seed=seed, epoch=1))
    assert pairs_in(found) == pairs_of(corpus)
    # Only the last batch of each octave of lengths is not full.
    assert sum(EOS not in batch.target[-1] for batch in found) <= 8


def test_windows_mix_the_whole_corpus(small_windows):
    """Of two corpora, one after the other, each part of an epoch has both; the order differs from epoch to epoch."""
    corpus = make_corpus(20_000)
    first = [next(iterate_batches(corpus, 512, seed))[0].members for seed in range(10)]
    assert len({tuple(members) for members in first}) == 10
    part = np.concatenate([place.members for place, _ in islice(iterate_batches(corpus, 512, 0), 30)])
    assert 0.4 < np.mean(part < 10_000) < 0.6
    assert np.histogram(part, 10, (0, 20_000))[0].min() > 0.05 * len(part)
    # A window at a time, so that memory is bounded.
    plain = [batch.source.shape[1] for batch in validation_batches(corpus, 512)]
    assert sum(before > 3 * after for before, after in zip(plain, plain[1:], strict=False)) == 19


def test_pairs_meet_at_random():
    corpus = corpus_of(np.full(1000, 9), np.full(1000, 9))
    for seed in range(5):
        members = next(iterate_batches(corpus, 500, seed))[0].members
        assert len(set(np.diff(members) % 1000)) > len(members) // 2  # no progression with one step


@pytest.mark.parametrize("size", [1, 2, 3, 900, 4321])
def test_a_stream_gives_one_epoch_after_the_other(small_windows, size):
    corpus = make_corpus(size)
    epochs = [list(validation_batches(corpus, 256, seed=7, epoch=epoch)) for epoch in range(3)]
    places = [(epoch, number) for epoch, found in enumerate(epochs) for number in range(len(found))]
    expected = [batch for found in epochs for batch in found]
    read = list(islice(iterate_batches(corpus, 256, 7), len(expected)))
    assert [(place.epoch, place.number) for place, _ in read] == places
    for (place, batch), other in zip(read, expected, strict=True):
        same_batch(batch, other)
        assert [row(corpus.source, i) for i in place.members] == [
            ids[: ids.index(EOS) + 1] for ids in batch.source[: len(place.members)].tolist()
        ]
    assert len(epochs[0]) == len(epochs[1]) == len(epochs[2])


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_stream_that_begins_later_goes_on_as_if_it_had_not(small_windows, every, monkeypatch):
    corpus = make_corpus(2500)
    whole = list(islice(iterate_batches(corpus, 256, 7), 700))
    assert whole[-1][0].epoch >= 2
    filled = []
    fill = batch_sampler._make_batch
    monkeypatch.setattr(batch_sampler, "_make_batch", lambda corpus, place: filled.append(place) or fill(corpus, place))
    for skip in (0, 1, 57, 199, 200, 201, 399, 400, 555):
        filled.clear()
        read = list(islice(iterate_batches(corpus, 256, 7, skip=skip, every=every), 10))
        for (place, batch), (other_place, other) in zip(read, whole[skip::every], strict=False):
            assert place[:2] == other_place[:2] and np.array_equal(place.members, other_place.members)
            same_batch(batch, other)
        assert len(filled) == 10
    for skip in (0, 1, 130):
        later = list(validation_batches(corpus, 256, seed=7, skip=skip))
        for batch, (_, other) in zip(later, whole[skip:], strict=False):
            same_batch(batch, other)
        assert len(later) == len(list(validation_batches(corpus, 256))) - skip
    assert list(validation_batches(corpus, 256, skip=10_000)) == []


def test_a_distant_epoch_is_reached_at_once(monkeypatch):
    corpus = make_corpus(2500)
    planned = []
    places = batch_sampler.BatchSampler.places
    monkeypatch.setattr(
        batch_sampler.BatchSampler, "places", lambda plan, *epoch: planned.append(epoch) or places(plan, *epoch)
    )
    place, _ = next(iterate_batches(corpus, 256, 7, skip=10**9))
    assert planned == [(7, place.epoch)] and place.epoch > 10**6


def same_batch(one, other):
    assert np.array_equal(one.source, other.source) and np.array_equal(one.target, other.target)


@pytest.mark.parametrize("pad", [0, 58100])
def test_the_start_token_may_be_the_padding(pad):
    corpus = make_corpus(700, start=pad, pad=pad)
    found = list(validation_batches(corpus, 512, seed=0))
    assert pairs_in(found, pad) == pairs_of(corpus)
    assert all((batch.target[:, 0] == pad).all() for batch in found)


@pytest.mark.skipif(not TATOEBA.exists(), reason=f"needs the corpus {TATOEBA.name}, which is not in the repository")
def test_real_text_in_few_shapes_with_little_padding():
    pairs, skipped, *_ = read_pairs(str(TATOEBA))
    tokenizer = Tokenizer.train([source for source, _ in pairs], [target for _, target in pairs], 4000)
    corpus = TokenizedCorpus.build(pairs, tokenizer)
    found = list(validation_batches(corpus, 2048, seed=0))
    positions = sum(batch.source.size + batch.target[:, 1:].size for batch in found)
    assert skipped == 0 and len(shapes(found)) < 60
    assert (len(corpus.source.ids) + corpus.num_target_tokens) / positions > 0.88
    assert tokenizer.decode_batch(tokenizer.encode_target_batch([text for _, text in pairs[:5000]])) == [
        text for _, text in pairs[:5000]
    ]
