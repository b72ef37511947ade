"""Reading pairs loses or invents none; batches hold every pair once, within budget, in few shapes."""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mlx_transformer.data import Corpus, Sentences, batches, read_pairs
from mlx_transformer.tokenizer import Tokenizer

PAD, EOS, START = Tokenizer.pad_id, Tokenizer.eos_id, Tokenizer.start_id
TATOEBA = Path(__file__).parents[2] / "shared/data/tatoeba-en-fr/train.tsv.gz"


def write(path: Path, content: bytes) -> str:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def sentences(lengths: np.ndarray, rng: np.random.Generator) -> Sentences:
    """Make sentences of the given lengths, the end token counted."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(3, 30000, offsets[-1]).astype(np.int32)
    ids[offsets[1:] - 1] = EOS
    return Sentences(ids, offsets)


def make_corpus(size: int, *, longest: int = 256, seed: int = 0) -> Corpus:
    """Make a corpus whose lengths are spread as in real text: log-normal, correlated between the sides."""
    rng = np.random.default_rng(seed)
    common = rng.normal(2.6, 0.5, size)
    lengths = [np.clip(np.exp(common + rng.normal(0, 0.2, size)), 2, longest).astype(int) for _ in range(2)]
    return Corpus(sentences(lengths[0], rng), sentences(lengths[1], rng), 0)


def pairs_of(corpus: Corpus) -> Counter:
    ends = zip(corpus.source.offsets[1:], corpus.target.offsets[1:], strict=True)
    starts = zip(corpus.source.offsets, corpus.target.offsets, strict=False)
    return Counter(
        (tuple(corpus.source.ids[i:k].tolist()), tuple(corpus.target.ids[j:m].tolist()))
        for (i, j), (k, m) in zip(starts, ends, strict=False)
    )


def pairs_in(found: list) -> Counter:
    """Count the pairs in batches, padding and start cut off; rows that only fill a batch are left out."""
    counter: Counter = Counter()
    for batch in found:
        for source, target in zip(batch.source, batch.target, strict=True):
            if target.any():
                assert target[0] == START
                counter[tuple(np.trim_zeros(source, "b").tolist()), tuple(np.trim_zeros(target[1:], "b").tolist())] += 1
            else:
                assert source[0] == EOS and not source[1:].any()
    return counter


def shapes(found: list) -> dict:
    return Counter((batch.source.shape[1], batch.target.shape[1]) for batch in found)


# Reading


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_files_give_the_same_pairs_however_written(tmp_path, ending, suffix, mark, last):
    pairs = [("a cat", "un chat"), (" two\u2028lines\x0c\x85", "deux \x0b lignes"), ("3", "trois ")]

    def file(name, lines):
        content = ending.join(line.encode() for line in lines) + (ending if last else b"")
        return write(tmp_path / (name + suffix), mark + content)

    table = file("pairs.tsv", ["\t".join(pair) for pair in pairs])
    two = file("en", [source for source, _ in pairs]) + "::" + file("fr", [target for _, target in pairs])
    assert read_pairs(table) == (pairs, 0)
    assert read_pairs(two) == (pairs, 0)


BAD_LINES = [
    (b"no tab here", "one tab, between source and target, but has 0"),
    (b"", "but has 0"),
    (b"one\ttwo\tthree", "but has 2"),
    (b"\tcible", "the source must not be empty"),
    (b"source\t \xc2\xa0", "the target must not be empty"),
    (b"source\tcible \xff", r"the target must be UTF-8, but b'\\xff' is not"),
    (b"\xed\xa0\x80\tcible", "the source must be UTF-8"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_line_is_named_or_counted(tmp_path, line, message):
    spec = write(tmp_path / "pairs.tsv", b"a\tb\n" + line + b"\nc\td\n" + line + b"\n")
    with pytest.raises(ValueError, match=rf"pairs\.tsv, line 2: .*{message}.*--skip-bad-lines"):
        read_pairs(spec)
    assert read_pairs(spec, skip_bad_lines=True) == ([("a", "b"), ("c", "d")], 2)


def test_bad_line_of_two_files_takes_its_partner_along(tmp_path):
    source = write(tmp_path / "en", b"a\n\nc\nd\n")
    target = write(tmp_path / "fr", b"A\nB\nC\t\xff\nD\n")
    with pytest.raises(ValueError, match="en::.*fr, line 2: the source must not be empty"):
        read_pairs(f"{source}::{target}")
    assert read_pairs(f"{source}::{target}", skip_bad_lines=True) == ([("a", "A"), ("d", "D")], 2)


def test_two_files_may_hold_tabs(tmp_path):
    spec = write(tmp_path / "en", b"a\tb\n") + "::" + write(tmp_path / "fr", b"A\tB\n")
    assert read_pairs(spec).pairs == [("a\tb", "A\tB")]


@pytest.mark.parametrize(("first", "second", "ended"), [(3, 5, "source"), (5, 3, "target")])
def test_lines_that_only_one_of_two_files_has_are_bad(tmp_path, first, second, ended):
    spec = write(tmp_path / "en", b"a\n" * first) + "::" + write(tmp_path / "fr", b"b\n" * second)
    with pytest.raises(ValueError, match=rf"en::.*fr, line 4: the {ended} file has no such line"):
        read_pairs(spec)
    assert read_pairs(spec, skip_bad_lines=True) == ([("a", "b")] * 3, 2)


def test_file_without_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"empty\.tsv must hold at least one pair: found none, 0 bad"):
        read_pairs(write(tmp_path / "empty.tsv", b""))
    with pytest.raises(ValueError, match="found none, 2 bad lines"):
        read_pairs(write(tmp_path / "bad.tsv", b"x\ny\n"), skip_bad_lines=True)


@pytest.mark.parametrize("spec", ["{}/none.tsv", "{}/none.gz", "{}/none.en::{}/none.fr"])
def test_missing_file_is_named(tmp_path, spec):
    with pytest.raises(FileNotFoundError, match=r"there is no .*none\.[a-z]+;"):
        read_pairs(spec.format(tmp_path, tmp_path))


def test_damaged_gzip_is_named(tmp_path):
    whole = gzip.compress("".join(f"{i * i}\t{i}\n" for i in range(5000)).encode())
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for name, content in (
        ("cut", whole[:-20]),
        ("plain", b"a\tb\n"),
        ("flipped", bytes(flipped)),
        ("noise", whole[:10] + b"\xff" * 50),
    ):
        path = tmp_path / f"{name}.tsv.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.tsv\.gz must be a whole gzip file"):
            read_pairs(str(path), skip_bad_lines=True)


def test_dates_are_held_out_by_split_or_by_name():
    train = {target for _, target in read_pairs("dates").pairs}
    valid = {target for _, target in read_pairs("dates", split="valid").pairs}
    test = {target for _, target in read_pairs("dates:test").pairs}
    assert not train & valid and not train & test and not valid & test
    assert read_pairs("dates:valid").pairs == read_pairs("dates", split="valid").pairs
    with pytest.raises(ValueError, match="got 'dev'"):
        read_pairs("dates:dev")


# Corpus


def test_corpus_holds_the_ids_of_each_pair():
    pairs = read_pairs("dates:valid").pairs * 10  # more than one chunk
    tokenizer = Tokenizer.train([source for source, _ in pairs], [target for _, target in pairs], 400, shared=False)
    corpus = Corpus.build(pairs, tokenizer)
    assert len(corpus) == len(pairs) and corpus.dropped == 0
    for i in (0, 1, 8191, 8192, 9999):
        start, end = corpus.source.offsets[i : i + 2]
        assert corpus.source.ids[start:end].tolist() == tokenizer.encode(pairs[i][0])
        start, end = corpus.target.offsets[i : i + 2]
        assert corpus.target.ids[start:end].tolist() == tokenizer.encode_target(pairs[i][1])
    assert corpus.num_target_tokens == sum(len(ids) for ids in tokenizer.encode_target_batch([t for _, t in pairs]))
    assert corpus.source.ids.dtype == corpus.target.ids.dtype == np.int32


def test_corpus_drops_and_counts_pairs_too_long_on_either_side():
    tokenizer = Tokenizer.train(["1 2"], ["1 2"], 270)
    pairs = [("1" * source, "2" * target) for source, target in ((4, 4), (5, 4), (4, 5), (1, 1))]
    corpus = Corpus.build(pairs, tokenizer, max_tokens=len(tokenizer.encode("1111")))
    assert (len(corpus), corpus.dropped) == (2, 2)
    assert corpus.source.lengths.max() == len(tokenizer.encode("1111"))
    with pytest.raises(ValueError, match="No pair is left of 4: all exceed 1 tokens"):
        Corpus.build(pairs, tokenizer, max_tokens=1)


# Batches


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(("size", "batch_tokens"), [(1, 512), (2, 1), (7, 4096), (500, 512), (5000, 2048), (5000, 100)])
def test_every_pair_comes_once(size, batch_tokens, seed):
    corpus = make_corpus(size)
    assert pairs_in(list(batches(corpus, batch_tokens, seed=seed, epoch=3))) == pairs_of(corpus)


def test_batches_keep_to_the_budget_and_use_it():
    corpus = make_corpus(20000)
    for batch in batches(corpus, 2048, seed=0):
        longer = max(batch.source.shape[1], batch.target.shape[1] - 1)
        assert len(batch.source) == len(batch.target) <= 2048 // longer
        assert len(batch.source) == 2048 // longer or longer <= 8  # less only where the corpus has fewer so short
        assert batch.source.dtype == batch.target.dtype == np.int32


def test_a_shape_has_one_number_of_rows_and_shapes_are_few():
    corpus = make_corpus(50000)
    found = [batch for epoch in range(3) for batch in batches(corpus, 2048, seed=0, epoch=epoch)]
    assert len({(batch.source.shape, batch.target.shape) for batch in found}) == len(shapes(found)) < 70


def test_no_shape_is_longer_than_the_longest_sentence():
    corpus = make_corpus(3000, longest=25)
    assert corpus.source.lengths.max() == 25
    assert max(max(shape[0], shape[1] - 1) for shape in shapes(list(batches(corpus, 512, seed=0)))) == 25


def test_little_is_padding():
    corpus = make_corpus(50000)
    found = list(batches(corpus, 2048, seed=0))
    positions = sum(batch.source.size + batch.target[:, 1:].size for batch in found)
    assert (len(corpus.source.ids) + len(corpus.target.ids)) / positions > 0.88


def test_one_very_long_pair_makes_no_others_long():
    rng = np.random.default_rng(0)
    lengths = np.full(1000, 10)
    for longest in ((250, 10), (10, 250), (250, 250)):
        source, target = (sentences(np.append(lengths, longest[side]), rng) for side in range(2))
        corpus = Corpus(source, target, 0)
        assert len(list(batches(corpus, 2048))) <= 1000 // 204 + 2


def test_seed_and_epoch_decide_the_batches():
    corpus = make_corpus(3000)

    def sequence(**choice):
        return [(batch.source.tolist(), batch.target.tolist()) for batch in batches(corpus, 512, **choice)]

    first = sequence(seed=1, epoch=0)
    assert first == sequence(seed=1, epoch=0)
    for other in (sequence(seed=1, epoch=1), sequence(seed=2, epoch=0), sequence()):
        # Not the order of the batches alone, but also who is with whom.
        assert sorted(map(str, other)) != sorted(map(str, first))


def test_seeded_order_mixes_lengths_and_no_seed_sorts_them():
    corpus = make_corpus(20000)
    shuffled = [batch.target.shape[1] for batch in batches(corpus, 1024, seed=0)]
    plain = [max(batch.source.shape[1], batch.target.shape[1] - 1) for batch in batches(corpus, 1024)]
    assert abs(np.corrcoef(shuffled, np.arange(len(shuffled)))[0, 1]) < 0.3
    assert np.corrcoef(plain, np.arange(len(plain)))[0, 1] > 0.8


@pytest.mark.skipif(not TATOEBA.exists(), reason=f"needs the corpus {TATOEBA.name}, which is not in the repository")
def test_real_text_in_few_shapes_with_little_padding():
    pairs, skipped = read_pairs(str(TATOEBA))
    tokenizer = Tokenizer.train([source for source, _ in pairs], [target for _, target in pairs], 4000)
    corpus = Corpus.build(pairs, tokenizer)
    found = list(batches(corpus, 2048, seed=0))
    positions = sum(batch.source.size + batch.target[:, 1:].size for batch in found)
    assert skipped == 0 and len(shapes(found)) < 60
    assert (len(corpus.source.ids) + len(corpus.target.ids)) / positions > 0.88
    assert tokenizer.decode_batch(tokenizer.encode_target_batch([text for _, text in pairs[:5000]])) == [
        text for _, text in pairs[:5000]
    ]
