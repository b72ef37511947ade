"""Batches contain every pair once, within the token budget, in few shapes and in a reproducible order."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from support.corpora import EOS, PAD, count_corpus_pairs, make_corpus, make_corpus_of_lengths, sequence_ids
from support.paths import ROOT

from mlx_transformer.data import batch_sampler, dataset
from mlx_transformer.data.batch_sampler import epoch_batches, iterate_batches
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import read_pairs
from mlx_transformer.tokenization.normalization import make_normalizer
from mlx_transformer.tokenization.tokenizer import Tokenizer

TATOEBA = ROOT.parent / "shared/data/tatoeba-en-fr/train.tsv.gz"


def count_batch_pairs(batches: list, pad: int = PAD) -> Counter:
    """Count the pairs in batches, without padding and without rows that only fill up a batch."""
    counter: Counter = Counter()
    for batch in batches:
        for source, target in zip(batch.source.tolist(), batch.target.tolist(), strict=True):
            ends = [ids.index(EOS) + 1 if EOS in ids else 0 for ids in (source, target)]
            assert set(source[ends[0] :] + target[ends[1] :]) <= {pad}
            if ends[1]:
                counter[tuple(source[: ends[0]]), tuple(target[: ends[1]])] += 1
            else:
                assert ends[0] == 1  # only an end token
    return counter


def count_shapes(batches: list) -> Counter:
    return Counter((batch.source.shape[1], batch.target.shape[1]) for batch in batches)


@pytest.fixture
def small_windows(monkeypatch):
    """Let small corpora have several windows, as large ones do."""
    monkeypatch.setattr(dataset, "SHUFFLE_WINDOW", 1000)


def assert_equal_batches(first, second):
    assert np.array_equal(first.source, second.source) and np.array_equal(first.target, second.target)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("size", "batch_tokens"), [(1, 512), (2, 1), (7, 4096), (500, 512), (5000, 2048), (5000, 100)])
def test_every_pair_occurs_once(size, batch_tokens, seed):
    corpus = make_corpus(size)
    assert count_batch_pairs(list(epoch_batches(corpus, batch_tokens, seed=seed, epoch=3))) == count_corpus_pairs(
        corpus
    )


def test_batches_fill_their_token_budget():
    corpus = make_corpus(20000)
    for batch in epoch_batches(corpus, 2048, seed=0):
        longer = max(batch.source.shape[1], batch.target.shape[1] - 1)
        assert len(batch.source) == len(batch.target) <= 2048 // longer
        assert len(batch.source) == 2048 // longer or longer <= 8  # the corpus has few very short pairs
        assert batch.source.dtype == batch.target.dtype == np.int32


def test_shapes_are_few_and_have_one_number_of_rows():
    corpus = make_corpus(50000)
    batches = [batch for epoch in range(3) for batch in epoch_batches(corpus, 2048, seed=0, epoch=epoch)]
    assert len({(batch.source.shape, batch.target.shape) for batch in batches}) == len(count_shapes(batches)) < 70


def test_no_shape_is_longer_than_the_longest_sentence():
    corpus = make_corpus(3000, longest=25)
    assert corpus.source.max_length == 25
    assert max(max(shape[0], shape[1] - 1) for shape in count_shapes(list(epoch_batches(corpus, 512, seed=0)))) == 25


def test_padding_is_limited():
    corpus = make_corpus(50000)
    batches = list(epoch_batches(corpus, 2048, seed=0))
    positions = sum(batch.source.size + batch.target[:, 1:].size for batch in batches)
    assert (len(corpus.source.ids) + corpus.num_target_tokens) / positions > 0.88


def test_one_very_long_pair_does_not_lengthen_other_batches():
    lengths = np.full(1000, 10)
    for max_length in ((250, 10), (10, 250), (250, 250)):
        corpus = make_corpus_of_lengths(*(np.append(lengths, max_length[side]) for side in range(2)))
        assert len(list(epoch_batches(corpus, 2048))) <= 1000 // 204 + 2


def test_seed_and_epoch_determine_the_batches():
    corpus = make_corpus(3000)

    def batches(**order):
        return [(batch.source.tolist(), batch.target.tolist()) for batch in epoch_batches(corpus, 512, **order)]

    first = batches(seed=1, epoch=0)
    assert first == batches(seed=1, epoch=0)
    for other in (batches(seed=1, epoch=1), batches(seed=2, epoch=0), batches()):
        # Not only the order of the batches differs, but also which pairs they combine.
        assert sorted(map(str, other)) != sorted(map(str, first))


def test_batches_are_shuffled_with_a_seed_and_sorted_without():
    corpus = make_corpus(20000)
    shuffled = [batch.target.shape[1] for batch in epoch_batches(corpus, 1024, seed=0)]
    unshuffled = [max(batch.source.shape[1], batch.target.shape[1] - 1) for batch in epoch_batches(corpus, 1024)]
    assert abs(np.corrcoef(shuffled, np.arange(len(shuffled)))[0, 1]) < 0.3
    assert np.corrcoef(unshuffled, np.arange(len(unshuffled)))[0, 1] > 0.8


def test_every_epoch_has_the_same_shapes(small_windows):
    corpus = make_corpus(5500)
    epochs = [
        Counter(b.source.shape + b.target.shape for b in epoch_batches(corpus, 512, seed=s, epoch=s)) for s in range(3)
    ]
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(epochs[0]) < 60


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("size", [1000, 1001, 4321])
def test_every_pair_occurs_once_with_several_windows(small_windows, size, seed):
    corpus = make_corpus(size)
    batches = list(epoch_batches(corpus, 512, seed=seed, epoch=1))
    assert count_batch_pairs(batches) == count_corpus_pairs(corpus)
    # Only the last batch of each octave of lengths may not be full.
    assert sum(EOS not in batch.target[-1] for batch in batches) <= 8


def test_windows_mix_the_whole_corpus(small_windows):
    """Every part of an epoch has pairs from the whole corpus, in an order that depends on the seed."""
    corpus = make_corpus(20_000)
    first = [next(iterate_batches(corpus, 512, seed))[0].pair_indices for seed in range(10)]
    assert len({tuple(members) for members in first}) == 10
    part = np.concatenate([position.pair_indices for position, _ in islice(iterate_batches(corpus, 512, 0), 30)])
    assert 0.4 < np.mean(part < 10_000) < 0.6
    assert np.histogram(part, 10, (0, 20_000))[0].min() > 0.05 * len(part)
    # Without a seed each window is sorted separately, so that memory is bounded.
    lengths = [batch.source.shape[1] for batch in epoch_batches(corpus, 512)]
    assert sum(before > 3 * after for before, after in zip(lengths, lengths[1:], strict=False)) == 19


def test_pairs_are_combined_at_random():
    corpus = make_corpus_of_lengths(np.full(1000, 9), np.full(1000, 9))
    for seed in range(5):
        members = next(iterate_batches(corpus, 500, seed))[0].pair_indices
        assert len(set(np.diff(members) % 1000)) > len(members) // 2  # not an arithmetic progression


@pytest.mark.parametrize("size", [1, 2, 3, 900, 4321])
def test_iterate_batches_yields_one_epoch_after_another(small_windows, size):
    corpus = make_corpus(size)
    epochs = [list(epoch_batches(corpus, 256, seed=7, epoch=epoch)) for epoch in range(3)]
    positions = [(epoch, index) for epoch, batches in enumerate(epochs) for index in range(len(batches))]
    expected = [batch for batches in epochs for batch in batches]
    stream = list(islice(iterate_batches(corpus, 256, 7), len(expected)))
    assert [(position.epoch, position.batch_index) for position, _ in stream] == positions
    for (position, batch), other in zip(stream, expected, strict=True):
        assert_equal_batches(batch, other)
        assert [sequence_ids(corpus.source, i) for i in position.pair_indices] == [
            ids[: ids.index(EOS) + 1] for ids in batch.source[: len(position.pair_indices)].tolist()
        ]
    assert len(epochs[0]) == len(epochs[1]) == len(epochs[2])


@pytest.mark.parametrize("every", [1, 2, 3])
def test_skipping_batches_does_not_change_the_following_ones(small_windows, every, monkeypatch):
    corpus = make_corpus(2500)
    stream = list(islice(iterate_batches(corpus, 256, 7), 700))
    assert stream[-1][0].epoch >= 2
    built = []
    build = batch_sampler._build_batch
    monkeypatch.setattr(batch_sampler, "_build_batch", lambda corpus, spec: built.append(spec) or build(corpus, spec))
    for skip in (0, 1, 57, 199, 200, 201, 399, 400, 555):
        built.clear()
        batches = list(islice(iterate_batches(corpus, 256, 7, skip=skip, every=every), 10))
        for (position, batch), (expected, other) in zip(batches, stream[skip::every], strict=False):
            assert position[:2] == expected[:2] and np.array_equal(position.pair_indices, expected.pair_indices)
            assert_equal_batches(batch, other)
        assert len(built) == 10
    for skip in (0, 1, 130):
        later = list(epoch_batches(corpus, 256, seed=7, skip=skip))
        for batch, (_, other) in zip(later, stream[skip:], strict=False):
            assert_equal_batches(batch, other)
        assert len(later) == len(list(epoch_batches(corpus, 256))) - skip
    assert list(epoch_batches(corpus, 256, skip=10_000)) == []


def test_skipping_many_epochs_plans_only_one(monkeypatch):
    corpus = make_corpus(2500)
    planned = []
    batch_specs = batch_sampler.BatchSampler.batch_specs
    monkeypatch.setattr(
        batch_sampler.BatchSampler,
        "batch_specs",
        lambda sampler, *epoch: planned.append(epoch) or batch_specs(sampler, *epoch),
    )
    position, _ = next(iterate_batches(corpus, 256, 7, skip=10**9))
    assert planned == [(7, position.epoch)] and position.epoch > 10**6


@pytest.mark.parametrize("pad", [0, 58100])
def test_the_start_token_may_be_the_padding_token(pad):
    corpus = make_corpus(700, start=pad, pad=pad)
    batches = list(epoch_batches(corpus, 512, seed=0))
    assert count_batch_pairs(batches, pad) == count_corpus_pairs(corpus)
    assert all((batch.target[:, 0] == pad).all() for batch in batches)


@pytest.mark.slow
@pytest.mark.skipif(not TATOEBA.exists(), reason=f"needs the corpus {TATOEBA.name}, which is not in the repository")
def test_real_text_needs_few_shapes_and_little_padding():
    pairs, skipped, *_ = read_pairs(str(TATOEBA))
    tokenizer = Tokenizer.train([source for source, _ in pairs], [target for _, target in pairs], 4000)
    corpus = TokenizedCorpus.build(pairs, tokenizer)
    batches = list(epoch_batches(corpus, 2048, seed=0))
    positions = sum(batch.source.size + batch.target[:, 1:].size for batch in batches)
    assert skipped == 0 and len(count_shapes(batches)) < 60
    assert (len(corpus.source.ids) + corpus.num_target_tokens) / positions > 0.88
    targets = [text for _, text in pairs[:5000]]
    normalize = make_normalizer().normalize_str
    assert tokenizer.decode_batch(tokenizer.encode_target_batch(targets)) == [normalize(text) for text in targets]
