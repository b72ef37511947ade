"""The command score."""

import gzip
import json

import pytest
from support.command_line import error_line


class TestScore:
    PAIRS = "one\tun\n\t\nthe car\tla voiture\n"

    @pytest.fixture
    def two_files(self, tmp_path):
        """Options for files of a source and a target text."""

        def write(source, target):
            for name, text in (("source.gz", gzip.compress(source.encode())), ("target", target.encode())):
                (tmp_path / name).write_bytes(text)
            return "--source", tmp_path / "source.gz", "--target", tmp_path / "target"

        return write

    def test_pairs_of_standard_input_and_of_files(self, echo, tmp_path, two_files):
        expected = "-5.0000\n0.0000\n-17.0000\n"
        assert echo("score", stdin=self.PAIRS.encode()).stdout == expected
        assert echo("score", "--input", "-", stdin=self.PAIRS.replace("\n", "\r\n").encode()).stdout == expected
        (tmp_path / "pairs.tsv").write_text(self.PAIRS)
        (tmp_path / "pairs.tsv.gz").write_bytes(gzip.compress(self.PAIRS.encode()))
        for name in ("pairs.tsv", "pairs.tsv.gz"):
            assert echo("score", "--input", tmp_path / name).stdout == expected
        assert echo("score", *two_files("one\n\nthe car\n", "un\n\nla voiture")).stdout == expected
        assert echo("score", *two_files("", "")).stdout == "" == echo("score").stdout

    def test_blank_lines_are_pairs_of_empty_texts(self, echo, two_files):
        expected = "-2.0000\n0.0000\n0.0000\n-2.0000\n"
        assert echo("score", stdin=b"a\tb\n\n\r\nc\td\n").stdout == expected
        assert echo("score", *two_files("a\n\n\nc\n", "b\n\n\nd\n")).stdout == expected

    def test_alignments(self, echo):
        result = echo("score", "--alignments", stdin=self.PAIRS.encode())
        assert result.stdout == "-5.0000\t0-0\n0.0000\t\n-17.0000\t0-0 1-1\n"

    def test_json(self, echo):
        (row,) = echo("score", "--json", "--alignments", stdin=b"\xc3\xa9 a\t\xc3\xa9\n").stdout.splitlines()
        expected = {"score": -4.0, "tokens": ["é"], "token_scores": [-1.0] * 4, "truncated": False}
        assert json.loads(row) == expected | {"alignment": [[0, 0]]} and "é" in row
        assert json.loads(echo("score", "--json", stdin="é a\té".encode()).stdout) == expected

    def test_windows_of_two_files_join_seamlessly(self, echo, two_files, monkeypatch):
        monkeypatch.setattr("mlx_transformer.cli.commands.score.PAIRS_PER_WINDOW", 3)
        options = two_files("".join("a" * i + "\n" for i in range(10)), "\n" * 10)
        assert echo("score", *options).stdout == "".join(f"{-float(i):.4f}\n" for i in range(10)).replace("-0.", "0.")

    def test_languages_prefixes_and_tasks(self, echo):
        languages = ("--source-language", "en", "--target-language", "fr")
        assert echo("score", *languages, "--source-prefix", "now: ", stdin=b"a\tb\n").stdout == "-12.0000\n"
        assert echo("score", "--task", "shout", stdin=b"a\tb\n").stdout == "-7.0000\n"

    def test_each_pair_is_processed_as_it_arrives(self, start):
        process = start("score")
        for line in (b"one\tun\n", b"\t\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == (b"0.0000\n" if line == b"\t\n" else b"-5.0000\n")
        assert process.communicate()[0] == b"" and process.returncode == 0

    def test_truncated_pair_is_reported(self, echo):
        result = echo("score", stdin=b"a\tb\na\t" + b"x" * 101)
        assert result.stderr.startswith("Warning: Line 2 is longer than the model can read and was cut.")

    @pytest.mark.parametrize(
        ("stdin", "message"),
        [
            (
                b"a\tb\nno tab\n",
                "Line 2 must be a source, one tab and a target, but has 0 tabs: correct the line, or select two",
            ),
            (b"a\tb\tc\n", "Line 1 must be a source, one tab and a target, but has 2 tabs"),
            (b"a\tb\na\t\xff\n", "Line 2 must be valid UTF-8: byte 3 is 0xff"),
        ],
    )
    def test_bad_line_has_an_empty_result_and_an_error(self, echo, stdin, message):
        result = echo("score", stdin=stdin + b"c\td\n", status=1)
        assert message in error_line(result)
        assert result.stdout.splitlines() == ["-2.0000"] * stdin.startswith(b"a\tb\n") + ["", "-2.0000"]

    def test_bad_pairs_in_json(self, echo):
        result = echo("score", "--json", stdin=b"a\tb\nValueError: reason\tb\nbad\n", status=1)
        assert error_line(result) == 'Error: 2 of the results have an "error"; the first: Line 2: reason\n'
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert rows[0]["score"] == -2 and rows[1] == {"error": "Line 2: reason"}
        assert list(rows[2]) == ["error"] and rows[2]["error"].startswith("Line 3 must be a source, one tab")

    @pytest.mark.parametrize(
        ("source", "target", "name", "lines"), [("a\nb\nc\n", "a\n", "target", 1), ("", "a\n", "source.gz", 0)]
    )
    def test_files_of_unequal_numbers_of_lines(self, echo, two_files, source, target, name, lines):
        line = error_line(echo("score", *two_files(source, target), status=2))
        assert f"{name} ends after line {lines}: align them again." in line

    def test_unreadable_files(self, echo, two_files, tmp_path):
        options = two_files("a\n", "b\n")
        options[3].write_bytes(b"\xff\n")
        assert f"{options[3]}, line 1 must be valid UTF-8" in error_line(echo("score", *options, status=1))
        options[1].write_bytes(b"no gzip")
        assert f"{options[1]} must be a complete gzip file" in error_line(echo("score", *options, status=1))
        for arguments in (("--input", tmp_path / "absent"), (*options[:3], tmp_path / "absent")):
            line = error_line(echo("score", *arguments, status=1))
            assert f"{tmp_path / 'absent'}: No such file or directory." in line

    @pytest.mark.parametrize(
        "arguments", [("--source", "x"), ("--target", "x"), ("--source", "x", "--target", "y", "--input", "z")]
    )
    def test_usage_errors_have_status_2(self, echo, arguments):
        assert "Give --source with --target, or --input" in echo("score", *arguments, status=2).stderr

    def test_output_file_is_replaced_when_complete(self, echo, two_files, tmp_path):
        (tmp_path / "out").write_text("precious")
        result = echo("score", *two_files("a\n", ""), "-o", tmp_path / "out", status=2)
        assert (tmp_path / "out").read_text() == "precious" and "equally many lines" in error_line(result)
        echo("score", "-o", tmp_path / "out", stdin=b"a\tb\n")
        assert (tmp_path / "out").read_text() == "-2.0000\n"
        options = two_files("a\n", "b\n")
        for path in (options[1], options[3]):
            line = error_line(echo("score", *options, "-o", path, status=2))
            assert "--output and the input must be different files" in line
        assert options[3].read_text() == "b\n"
