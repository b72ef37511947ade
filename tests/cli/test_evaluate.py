"""The command evaluate."""

import gzip
import json
import re

import pytest
from sacrebleu.metrics import BLEU
from support.command_line import error_line

from mlx_transformer.cli.commands import evaluate


class TestEvaluate:
    def test_all_references_of_a_source_count(self, echo, tmp_path):
        lines = ["a b c d\tA B C D", "e f g h\tX", "e f g h\tE F G H", "i j k l\tY"]
        (tmp_path / "test.tsv").write_text("\n".join(lines) + "\n")
        figures = json.loads(echo("evaluate", tmp_path / "test.tsv", "--json").stdout)
        assert (figures["sentences"], figures["references"]) == (3, 4)
        assert figures["exact_match"] == pytest.approx(2 / 3)
        assert "nrefs:var" in figures["bleu_signature"] and "version:" in figures["chrf_signature"]

    def test_files_of_sources_and_references(self, echo, tmp_path):
        for name, text in {"source": "a b c d\na b c d\n", "one": "A B C D\nX\n", "two": "Y\nA B C D\n"}.items():
            (tmp_path / name).write_text(text)
        paths = ["--sources", tmp_path / "source", "--references", tmp_path / "one", "--references", tmp_path / "two"]
        output = echo("evaluate", *paths).stdout
        assert "BLEU            100.00" in output and "exact match     100.00%" in output
        assert "2 with 4 references" in output

    @staticmethod
    def files(folder, **texts):
        """Files of sources and references whose paths would mislead a SPEC, as options."""
        arguments = []
        for name, text in texts.items():
            path = folder / f"a::{name}.gz"
            path.write_bytes(gzip.compress(text.encode()))
            arguments += ["--sources" if name == "sources" else "--references", path]
        return arguments

    def test_blank_line_in_one_reference_file_is_not_a_reference(self, echo, tmp_path):
        arguments = self.files(tmp_path, sources="a b c d\ne f g h\n", one="A B C D\n\n", two="X\r\nE F G H\r\n")
        figures = json.loads(echo("evaluate", *arguments, "--json").stdout)
        assert (figures["sentences"], figures["references"], figures["exact_match"]) == (2, 3, 1)
        assert figures["bleu"] == pytest.approx(100)

    @pytest.mark.parametrize(
        ("sources", "one", "two", "message"),
        [
            ("a\nb\n", "A\n\n", "A\n \n", "line 2 of .*sources.gz has no reference"),
            ("a\nb\n", "A\nB\n", "A\n", "sources.gz has 2 and .*two.gz has 1"),
            ("", "", "", "sources.gz must have at least one source with a reference"),
            ("\n\n", "\n\n", "\n\n", "sources.gz must have at least one source with a reference"),
        ],
    )
    def test_mismatched_files_are_rejected(self, echo, tmp_path, sources, one, two, message):
        arguments = self.files(tmp_path, sources=sources, one=one, two=two)
        assert re.search(message, error_line(echo("evaluate", *arguments, status=1)))

    @pytest.mark.parametrize("form", ["lines", "two files", "table"])
    def test_blank_lines(self, echo, tmp_path, form):
        """Lines that are blank on both sides do not count; a blank source with a reference is an empty translation."""
        sources, references = ["a b c d", "", " ", "e f g h", ""], ["A B C D", " ", "", "E F G H", "I J K L"]
        table = map("\t".join, zip(sources, references, strict=True))
        for name, lines in (("s", sources), ("r", references), ("t", table)):
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        source, reference, table = (tmp_path / name for name in "srt")
        arguments = {
            "lines": ["--sources", source, "--references", reference],
            "two files": [f"{source}::{reference}"],
            "table": [table],
        }[form]
        result = echo("evaluate", "--json", *arguments)
        figures = json.loads(result.stdout)
        assert (figures["sentences"], figures["references"]) == (3, 3)
        assert figures["exact_match"] == pytest.approx(2 / 3)
        expected = BLEU().corpus_score(["A B C D", "E F G H", ""], [["A B C D", "E F G H", "I J K L"]])
        assert figures["bleu"] == pytest.approx(expected.score)
        assert ": 2 left out, 1 with a reference counted as empty translations." in result.stderr
        translated = echo("generate", "--input", source).stdout.split("\n")[:-1]
        assert len(translated) == len(references)

    def test_empty_lines_of_a_table_are_blank_pairs(self, echo, tmp_path):
        (tmp_path / "test.tsv").write_text("a\tA\n\n \nb\tB\n")
        figures = json.loads(echo("evaluate", "--json", tmp_path / "test.tsv").stdout)
        assert (figures["sentences"], figures["exact_match"]) == (2, 1)

    def test_a_source_without_a_reference_names_its_line(self, echo, tmp_path):
        (tmp_path / "test.tsv").write_text("a\tA\n\nb\t\n")
        line = error_line(echo("evaluate", tmp_path / "test.tsv", status=1))
        assert f"line 3 of {tmp_path / 'test.tsv'} has no reference" in line

    def test_unreadable_files(self, echo, tmp_path):
        arguments = self.files(tmp_path, sources="a\n", one="A\n")
        path, data = arguments[1], arguments[1].read_bytes()
        for damaged in (data[:-4], b"no gzip", data[:10] + b"\xff" * 4 + data[14:]):
            path.write_bytes(damaged)
            assert f"{path} must be a complete gzip file" in error_line(echo("evaluate", *arguments, status=1))
        path.write_bytes(gzip.compress(b"good\n\xff\n"))
        assert f"{path}, line 2, must be valid UTF-8" in error_line(echo("evaluate", *arguments, status=1))

    def test_source_without_a_result_is_named(self, echo, tmp_path):
        (tmp_path / "test.tsv").write_text("one\tONE\nValueError: reason\tTWO\n")
        line = error_line(echo("evaluate", tmp_path / "test.tsv", status=1))
        assert line == 'Error: "ValueError: reason" has no result: reason\n'

    def test_truncated_source_is_reported(self, echo, tmp_path):
        result = echo("evaluate", *self.files(tmp_path, sources="a\n" + "x" * 101 + "\n", one="A\nX\n"))
        assert result.stderr == f'Warning: "{"x" * 40}..." is longer than the model can read and was cut.\n'

    def test_without_sacrebleu_exact_matches_are_counted(self, echo, monkeypatch, tmp_path):
        monkeypatch.setattr("mlx_transformer.metrics.has_sacrebleu", lambda: False)
        arguments = self.files(tmp_path, sources="a\nb\n", one="A\nX\n")
        result = echo("evaluate", *arguments)
        assert [line.split()[0] for line in result.stdout.splitlines()] == ["exact", "sentences", "seconds"]
        assert "50.00%" in result.stdout and "pip install " in result.stderr
        figures = json.loads(echo("evaluate", *arguments, "--json").stdout)
        assert figures.keys() == {"exact_match", "sentences", "references", "seconds"}


def test_evaluate_takes_the_search_options_of_generate():
    names = {option.name for option in evaluate.command.params}
    assert {"beam_size", "length_penalty", "batch_tokens", "memory_limit", "model", "dtype"} <= names
