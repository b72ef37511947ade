"""Training on pairs in memory: as on the same pairs in a file, and resumed from the run folder."""

import dataclasses
from pathlib import Path

import pytest
from support.training_cases import interrupt_at, log_events, run_options, runs_equal

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.training.run_directory import RunDirectory, load_run_options

pytestmark = pytest.mark.cpu
BREAKS = "one\ttwo\r\nthree\rfour\nfive"


def read_pairs(specs):
    (path,) = specs
    return [tuple(line.split("\t")) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def pairs(options):
    """The pairs of the corpora of `options`."""
    return {name: read_pairs(vars(options)[name]) for name in ("train", "valid")}


@pytest.fixture
def in_memory(options, pairs, tmp_path):
    return dataclasses.replace(options, **pairs, output=str(tmp_path / "pairs"))


def test_a_run_on_pairs_equals_one_on_files(finished, in_memory, pairs):
    mt.train(in_memory)
    assert runs_equal(finished.output, in_memory.output)
    stored = load_run_options(in_memory.output)
    assert {name: read_pairs(vars(stored)[name]) for name in pairs} == pairs
    assert log_events(in_memory.output, "start")[0]["config"]["train"] == [
        str(Path(in_memory.output, "train-pairs.tsv"))
    ]


def test_any_iterable_of_pairs_is_read_once(options, pairs):
    config = dataclasses.replace(options, train=(list(pair) for pair in pairs["train"]), valid=iter(pairs["valid"]))
    assert list(config.train) == pairs["train"] and list(config.valid) == pairs["valid"]


def test_one_spec_and_a_list_of_specs_stand_for_a_tuple(options):
    config = dataclasses.replace(options, train="a.tsv", valid=["b.tsv", "c.tsv"])
    assert config.train == ("a.tsv",) and config.valid == ("b.tsv", "c.tsv")


@pytest.mark.parametrize("passed_again", [False, True])
def test_a_stopped_run_resumes_with_or_without_its_pairs(finished, in_memory, passed_again):
    with pytest.raises(KeyboardInterrupt):
        mt.train(in_memory, interrupt_at(6))
    config = in_memory if passed_again else load_run_options(in_memory.output)
    mt.train(dataclasses.replace(config, resume=True))
    assert runs_equal(finished.output, in_memory.output)


def test_a_moved_run_resumes_from_the_command_line(finished, in_memory, tmp_path):
    mt.train(dataclasses.replace(in_memory, steps=4))
    Path(in_memory.output).rename(tmp_path / "moved::here")
    main(
        ["train", "--output", str(tmp_path / "moved::here"), "--resume", "--steps", "12", "--json"],
        standalone_mode=False,
    )
    assert runs_equal(finished.output, tmp_path / "moved::here")


def test_other_pairs_are_refused_and_the_file_is_kept(in_memory, pairs):
    mt.train(dataclasses.replace(in_memory, steps=4))
    file = Path(in_memory.output, "train-pairs.tsv")
    before = file.read_bytes()
    with pytest.raises(ValueError, match="their contents have changed: restore the files or pairs, or start another"):
        mt.train(dataclasses.replace(in_memory, train=pairs["train"][1:], resume=True))
    assert file.read_bytes() == before


def test_damaged_files_are_refused_without_the_pairs_and_restored_with_them(finished, in_memory):
    mt.train(dataclasses.replace(in_memory, steps=4))
    file = Path(in_memory.output, "train-pairs.tsv")
    before = file.read_bytes()
    file.write_bytes(before[:-20])
    stored = dataclasses.replace(load_run_options(in_memory.output), steps=12, resume=True)
    with pytest.raises(ValueError, match="their contents have changed"):
        mt.train(stored)
    file.unlink()
    with pytest.raises(FileNotFoundError, match="train-pairs.tsv does not exist"):
        mt.train(stored)
    mt.train(dataclasses.replace(in_memory, resume=True))
    assert file.read_bytes() == before and runs_equal(finished.output, in_memory.output)


def test_tabs_and_line_ends_inside_texts_become_spaces(in_memory, pairs):
    config = dataclasses.replace(in_memory, train=[*pairs["train"], (BREAKS, "\ufeff \u2028\x0b\x85x")], max_length=60)
    mt.train(dataclasses.replace(config, steps=2))
    with open(Path(config.output, "train-pairs.tsv"), encoding="utf-8", newline="") as file:
        assert file.read().split("\n")[-2:] == ["one two three four five\t\ufeff \u2028\x0b\x85x", ""]
    mt.train(dataclasses.replace(load_run_options(config.output), steps=3, resume=True))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("", "a"), "the source must not be empty"),
        (("a", " \u200b"), "the target must not be empty"),
        (("a\0", "b"), "the source must be text, but it has NUL characters"),
        (("a", "b\ud800"), "the target must be UTF-8, but it has the bytes"),
    ],
)
def test_bad_pairs_are_named_or_skipped(in_memory, pairs, pair, message):
    train_pairs = [*pairs["train"][:40], pair, *pairs["train"][40:]]
    with pytest.raises(ValueError, match=rf"^train\[40\]: {message}.*; correct it, or skip such lines with"):
        mt.train(dataclasses.replace(in_memory, train=train_pairs))
    assert not Path(in_memory.output).exists()
    mt.train(dataclasses.replace(in_memory, train=train_pairs, steps=1, skip_bad_lines=True))
    assert read_pairs([Path(in_memory.output, "train-pairs.tsv")]) == pairs["train"]


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        (None, "not None"),
        (5, "not 5"),
        (b"a.tsv", "not b'a.tsv'"),
        ({"I see.": "Je vois."}, "not {'I see.': 'Je vois.'}"),
        ([("I see.",)], r"train[0] is ('I see.',)"),
        ([("I see.", "Je vois."), ("a", "b", "c")], "train[1] is ('a', 'b', 'c')"),
        ([("I see.", None)], "train[0] is ('I see.', None)"),
        (["a.tsv", ("I see.", "Je vois.")], "train[0] is 'a.tsv'"),
        ([("I see.", "Je vois."), "ab"], "train[1] is 'ab'"),
        ([{"en": "I see.", "fr": "Je vois."}], "train[0] is {'en': 'I see.', 'fr': 'Je vois.'}"),
    ],
)
def test_other_things_are_refused_with_what_is_right(options, corpora, message):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(options, train=corpora)
    rule = "train must be a corpus such as 'pairs.tsv', a list of corpora, or pairs of strings (source, target)"
    assert str(error.value).startswith(rule) and message in str(error.value)


def test_a_file_that_is_not_of_a_run_is_kept(in_memory):
    file = Path(in_memory.output, "valid-pairs.tsv")
    file.parent.mkdir()
    file.write_text("mine\n")
    with pytest.raises(FileExistsError, match="valid-pairs.tsv exists and is not of a run, it would be lost"):
        mt.train(in_memory)
    assert [*file.parent.iterdir()] == [file] and file.read_text() == "mine\n"


def test_a_new_run_removes_the_pairs_of_an_earlier_one(tmp_path):
    run = RunDirectory(str(tmp_path / "run"))
    run.folder.mkdir()
    for name in ("train", "valid"):
        run.pairs_file(name).write_text("a\tb\n")
    config = dataclasses.replace(run_options(tmp_path), valid=(str(run.pairs_file("valid")),))
    run.prepare(config, 0, {}, {})
    assert not run.pairs_file("train").exists() and run.pairs_file("valid").exists()
