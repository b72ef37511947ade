"""Parallel corpora: every pair is read once per iteration, bad lines are reported, specs set files and languages."""

import gzip
import itertools
from pathlib import Path

import pytest
from support.peak_memory import growth

from mlx_transformer.data.parallel_corpus import ParallelCorpora, SentencePair, absolute_spec, read_pairs


def write(path: Path, content: bytes) -> str:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def write_numbered(path: Path, count: int, first: int = 0) -> str:
    return write(path, "".join(f"source {i}\ttarget {i}\n" for i in range(first, first + count)).encode())


def test_line_ends_compression_and_byte_order_mark_do_not_change_the_pairs(tmp_path):
    pairs = [("a cat", "un chat"), (" two\u2028lines\x0c\x85", "deux \x0b lignes"), ("3", "trois ")]
    columns = {
        "pairs.tsv": ["\t".join(pair) for pair in pairs],
        "en": [source for source, _ in pairs],
        "fr": [target for _, target in pairs],
    }
    for variant in itertools.product([b"\n", b"\r\n"], ["", ".gz"], [b"", b"\xef\xbb\xbf"], [True, False]):
        line_end, suffix, byte_order_mark, ends_with_line_end = variant
        files = []
        for name, lines in columns.items():
            content = line_end.join(line.encode() for line in lines) + line_end * ends_with_line_end
            files.append(write(tmp_path / (name + suffix), byte_order_mark + content))
        assert read_pairs(files[0]) == read_pairs("::".join(files[1:])) == (pairs, 0, None, None), variant


BAD_LINES = [
    (b"no tab here", "one tab, between source and target, but it has 0"),
    (b"", "but it has 0"),
    (b"one\ttwo\tthree", "but it has 2"),
    (b"\tcible", "the source must not be empty"),
    (b"source\t \xc2\xa0", "the target must not be empty"),
    (b"source\tcible \xff", r"the target must be UTF-8, but it has the bytes b'\\xff'"),
    (b"\xed\xa0\x80\tcible", "the source must be UTF-8"),
    (b"source\tcib\0le", "the target must be text, but it has NUL characters"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_raises_or_is_skipped(tmp_path, line, message):
    spec = write(tmp_path / "pairs.tsv", b"a\tb\n" + line + b"\nc\td\n" + line + b"\n")
    with pytest.raises(ValueError, match=rf"pairs\.tsv, line 2: .*{message}.*; correct it\.$"):
        read_pairs(spec)
    assert read_pairs(spec, skip_bad_lines=True) == ([("a", "b"), ("c", "d")], 2, None, None)


def test_a_bad_line_of_two_files_skips_its_counterpart(tmp_path):
    source = write(tmp_path / "en", b"a\n\nc\nd\n")
    target = write(tmp_path / "fr", b"A\nB\nC\t\xff\nD\n")
    with pytest.raises(ValueError, match="en::.*fr, line 2: the source must not be empty"):
        read_pairs(f"{source}::{target}")
    assert read_pairs(f"{source}::{target}", skip_bad_lines=True) == ([("a", "A"), ("d", "D")], 2, None, None)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be", "latin-1"])
def test_a_corpus_in_another_encoding_raises_although_bad_lines_are_skipped(tmp_path, encoding):
    text = "Une fenêtre\tA window\nLa porte\tThe door\nÇa va\tFine\nà côté\tbeside\n" * 100
    other = write(tmp_path / "good.txt", b"a\n" * 400)
    spec = write(tmp_path / "pairs.tsv", text.encode(encoding))
    for corpus in (spec, f"{spec}::{other}", f"{other}::{spec}"):
        with pytest.raises(ValueError, match=r"pairs\.tsv must be text in UTF-8, but seems to be in .* iconv -f"):
            read_pairs(corpus, skip_bad_lines=True)


def test_a_part_of_a_corpus_in_utf_16_is_skipped(tmp_path):
    content = b"a\tb\n" * 50_000 + "c\td\n".encode("utf-16-le") * 3
    pairs = read_pairs(write(tmp_path / "pairs.tsv", content), skip_bad_lines=True)
    assert set(pairs.pairs) == {("a", "b")} and pairs.skipped >= 3


def test_a_spec_chooses_columns(tmp_path):
    deck = write(tmp_path / "deck.tsv", "Hi.\tSalut.\tCC-BY 2.0\nRun!\tCours\u202f!\tCC-BY 2.0\n".encode())
    assert read_pairs(f"{deck}:1,2").pairs == [("Hi.", "Salut."), ("Run!", "Cours\u202f!")]
    assert read_pairs(f"en:fr={deck}:2,1") == ([("Salut.", "Hi."), ("Cours\u202f!", "Run!")], 0, "en", "fr")
    with pytest.raises(ValueError, match=r"deck.tsv has 3 columns: choose those of .*deck.tsv:1,2"):
        read_pairs(deck)
    with pytest.raises(ValueError, match="must be two columns, not both 1: correct"):
        read_pairs(f"{deck}:1,1")
    with pytest.raises(ValueError, match="line 1: a line must have a column 4, but it has 3 columns; correct it"):
        read_pairs(f"{deck}:4,1")
    with pytest.raises(FileNotFoundError, match=r"none\.tsv does not exist"):
        read_pairs(f"{tmp_path}/none.tsv:1,2")


def test_a_file_whose_name_ends_like_columns_is_a_file(tmp_path):
    assert read_pairs(write(tmp_path / "pairs:1,2", b"a\tb\n")).pairs == [("a", "b")]


def test_blank_lines_of_a_table_with_columns(tmp_path):
    deck = write(tmp_path / "deck.tsv", b"a\tb\tc\n\n")
    assert read_pairs(f"{deck}:1,3", allow_blank=True).pairs == [("a", "c"), ("", "")]
    assert read_pairs(f"{deck}:1,3", skip_bad_lines=True) == ([("a", "c")], 1, None, None)


@pytest.mark.parametrize(
    ("spec", "absolute"),
    [
        ("a.tsv", "{}/a.tsv"),
        ("en:fr=a.tsv:3,1", "en:fr={}/a.tsv:3,1"),
        (":fr=x/a.en::../a.fr", ":fr={}/x/a.en::{parent}/a.fr"),
        ("dates", "dates"),
        ("dates:test", "dates:test"),
        ("dates::x", "{}/dates::{}/x"),
        ("/a.tsv", "/a.tsv"),
        ("a::", "{}/a::"),
    ],
)
def test_absolute_specs(tmp_path, monkeypatch, spec, absolute):
    monkeypatch.chdir(tmp_path)
    assert absolute_spec(spec) == absolute.replace("{}", str(tmp_path)).format(parent=tmp_path.parent)
    assert absolute_spec(absolute_spec(spec)) == absolute_spec(spec)


def test_two_files_may_hold_tabs(tmp_path):
    spec = write(tmp_path / "en", b"a\tb\n") + "::" + write(tmp_path / "fr", b"A\tB\n")
    assert read_pairs(spec).pairs == [("a\tb", "A\tB")]


@pytest.mark.parametrize(("first", "second", "ended"), [(3, 5, "source"), (5, 3, "target")])
def test_lines_without_a_counterpart_are_bad(tmp_path, first, second, ended):
    spec = write(tmp_path / "en", b"a\n" * first) + "::" + write(tmp_path / "fr", b"b\n" * second)
    with pytest.raises(ValueError, match=rf"en::.*fr, line 4: the {ended} file has fewer lines"):
        read_pairs(spec)
    assert read_pairs(spec, skip_bad_lines=True) == ([("a", "b")] * 3, 2, None, None)


def test_a_file_without_pairs_raises(tmp_path):
    with pytest.raises(ValueError, match=r"empty\.tsv must contain at least one pair: it has none, and 0 bad"):
        read_pairs(write(tmp_path / "empty.tsv", b""))
    with pytest.raises(ValueError, match="it has none, and 2 bad lines; in line 2 a line must have one tab"):
        read_pairs(write(tmp_path / "bad.tsv", b"x\ny\n"), skip_bad_lines=True)


@pytest.mark.parametrize("spec", ["{}/none.tsv", "{}/none.gz", "{}/none.en::{}/none.fr"])
def test_a_missing_file_raises(tmp_path, spec):
    good = write(tmp_path / "good.tsv", b"a\tb\n")
    with pytest.raises(FileNotFoundError, match=r"corpus file .*none\.[a-z]+ does not exist;"):
        ParallelCorpora([good, spec.format(tmp_path, tmp_path)])


def test_a_damaged_gzip_file_raises(tmp_path):
    intact = gzip.compress("".join(f"{i * i}\t{i}\n" for i in range(5000)).encode())
    flipped = bytearray(intact)
    flipped[len(intact) // 2] ^= 0xFF
    for name, content in (
        ("cut", intact[:-20]),
        ("plain", b"a\tb\n"),
        ("flipped", bytes(flipped)),
        ("noise", intact[:10] + b"\xff" * 50),
    ):
        path = tmp_path / f"{name}.tsv.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.tsv\.gz must be a complete gzip file"):
            read_pairs(str(path), skip_bad_lines=True)


def test_dates_are_split_by_argument_or_name():
    train = {target for _, target in read_pairs("dates").pairs}
    valid = {target for _, target in read_pairs("dates", split="valid").pairs}
    test = {target for _, target in read_pairs("dates:test").pairs}
    assert not train & valid and not train & test and not valid & test
    assert read_pairs("dates:valid").pairs == read_pairs("dates", split="valid").pairs
    with pytest.raises(ValueError, match="not 'dev'"):
        ParallelCorpora(["dates:dev"])


# Several SPECs


def test_corpora_can_be_iterated_several_times(tmp_path):
    first, second = write_numbered(tmp_path / "a.tsv", 3), write_numbered(tmp_path / "b.tsv.gz", 2, first=3)
    corpora = ParallelCorpora([first, "dates:valid", second])
    dates = read_pairs("dates:valid").pairs
    numbers = [(f"source {i}", f"target {i}") for i in range(5)]
    for _ in range(2):
        pairs = list(corpora)
        assert pairs == [SentencePair(*pair) for pair in numbers[:3] + dates + numbers[3:]]
    one, other = iter(corpora), iter(corpora)
    assert [next(one), next(one), next(other), next(one)] == [SentencePair(*numbers[i]) for i in (0, 1, 0, 2)]


def test_bad_lines_are_counted_in_each_iteration(tmp_path):
    specs = [write(tmp_path / name, b"x\na\tb\n\n") for name in ("a.tsv", "b.tsv")]
    corpora = ParallelCorpora(specs, skip_bad_lines=True)
    assert corpora.skipped == 0
    for _ in range(2):
        assert list(corpora) == [SentencePair("a", "b")] * 2
        assert corpora.skipped == 4
    with pytest.raises(ValueError, match=r"a\.tsv, line 1: a line must have one tab"):
        list(ParallelCorpora(specs))


def test_one_of_several_corpora_without_pairs_raises(tmp_path):
    corpora = ParallelCorpora([write_numbered(tmp_path / "a.tsv", 3), write(tmp_path / "b.tsv", b"")])
    with pytest.raises(ValueError, match=r"b\.tsv must contain at least one pair"):
        list(corpora)


@pytest.mark.parametrize("size", [1, 2, 100, 1500])
def test_a_sample_is_spread_evenly(tmp_path, size):
    half = size // 2
    specs = [write_numbered(tmp_path / "a.tsv", size - half)]
    specs += [write_numbered(tmp_path / "b.tsv", half, first=size - half)] if half else []
    for count in (0, 1, 2, 7, 99, 100, 101, 1000):
        sample = [int(pair.source.split()[1]) for pair in ParallelCorpora(specs).sample(count)]
        assert len(sample) == min(size, count) and sample == sorted(set(sample)), count
        if count:
            gaps = [after - before for before, after in zip([-1, *sample], [*sample, size], strict=True)]
            assert max(gaps) <= 3 * size / count + 1, count


# Languages


@pytest.mark.parametrize(
    ("prefix", "source", "target"),
    [("en:fr=", "en", "fr"), ("eng_Latn:zh-Hans=", "eng_Latn", "zh-Hans"), (":fr=", None, "fr"), ("en:=", "en", None)],
)
@pytest.mark.parametrize("kind", ["table", "two", "dates:test"])
def test_a_spec_sets_language_codes(tmp_path, prefix, source, target, kind):
    one = write_numbered(tmp_path / "pairs.tsv", 2)
    spec = {"table": one, "two": f"{one}::{one}"}.get(kind, kind)
    corpora = ParallelCorpora([prefix + spec])
    expected = [SentencePair(*pair, source, target) for pair in read_pairs(spec).pairs]
    assert list(corpora) == expected and expected
    assert corpora.source_languages == [source] * (source is not None)
    assert corpora.target_languages == [target] * (target is not None)
    assert read_pairs(prefix + spec) == (read_pairs(spec).pairs, 0, source, target)


def test_languages_of_several_specs_are_sorted(tmp_path):
    path = write_numbered(tmp_path / "pairs.tsv", 1)
    corpora = ParallelCorpora([f"{pair}={path}" for pair in ("en:fr", "en:de", "de:fr", "aa:cs", "zz:zh")])
    assert corpora.source_languages == ["aa", "de", "en", "zz"]
    assert corpora.target_languages == ["cs", "de", "fr", "zh"]
    assert [pair[2:] for pair in corpora] == [("en", "fr"), ("en", "de"), ("de", "fr"), ("aa", "cs"), ("zz", "zh")]
    assert ParallelCorpora([path]).source_languages == ParallelCorpora([path]).target_languages == []


@pytest.mark.parametrize(("first", "second", "side"), [("en:fr=", "", "source"), ("en:fr=", "en:=", "target")])
def test_either_all_specs_or_none_have_a_language(tmp_path, first, second, side):
    path = write_numbered(tmp_path / "pairs.tsv", 1)
    with pytest.raises(ValueError, match=f"all corpora or none must have a {side} language: {second}.* has none"):
        ParallelCorpora([first + path, second + path])


@pytest.mark.parametrize("spec", ["", "::", "a::", "::b", "en:fr=", ":=dates", "en:fr=::b"])
def test_an_incomplete_spec_raises(spec):
    with pytest.raises(ValueError, match=f"must name its files and languages: '{spec}' lacks one; use FILE.tsv"):
        ParallelCorpora([spec])


def test_errors_name_the_spec_with_its_languages(tmp_path):
    path = write(tmp_path / "pairs.tsv", b"a\tb\nc\n")
    with pytest.raises(ValueError, match=rf"^en:fr={path}, line 2: "):
        list(ParallelCorpora([f"en:fr={path}"]))


def test_a_file_name_may_look_like_a_language_prefix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_numbered(tmp_path / "a:b=c.tsv", 1)
    assert ParallelCorpora(["./a:b=c.tsv"]).source_languages == []
    write_numbered(tmp_path / "dates", 1)
    assert read_pairs("dates::dates").pairs == [("source 0\ttarget 0", "source 0\ttarget 0")]


# Memory

READ = """
from mlx_transformer.data.parallel_corpus import ParallelCorpora
corpora = ParallelCorpora([source])
sum(1 for pair in corpora)
corpora.sample(100)
"""


def test_reading_holds_only_the_sample_in_memory(tmp_path):
    assert growth(READ, write_numbered(tmp_path / "pairs.tsv", 200_000)) < 10e6
