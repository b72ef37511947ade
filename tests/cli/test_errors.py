"""Errors of the command line: one line with a remedy, and the exit status."""

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.command_line import error_line
from support.tiny_models import config, random_model

import mlx_transformer as mt
from mlx_transformer.cli import main


class TestErrors:
    def test_invalid_utf8_names_the_line(self, echo):
        line = error_line(echo("generate", stdin=b"good\nbad \xff\n", status=1))
        assert "Line 2 must be valid UTF-8: byte 5 is 0xff" in line

    def test_a_missing_input_file(self, echo, tmp_path):
        line = error_line(echo("generate", "--input", tmp_path / "absent", status=1))
        assert f"{tmp_path / 'absent'}: No such file or directory." in line

    def test_a_missing_output_folder(self, echo, tmp_path):
        line = error_line(echo("generate", "--output", tmp_path / "absent" / "out", "one", status=1))
        assert "--output must be in an existing folder" in line

    def test_output_must_not_be_the_input(self, echo, tmp_path):
        (tmp_path / "file").write_text("one\n")
        line = error_line(echo("generate", "-i", tmp_path / "file", "-o", tmp_path / "file", status=2))
        assert "--output and the input must be different files" in line
        assert (tmp_path / "file").read_text() == "one\n"

    @pytest.mark.parametrize("name", ["file", "link"])
    def test_output_must_not_be_the_file_behind_standard_input(self, start, tmp_path, name):
        (tmp_path / "file").write_text("one\n")
        (tmp_path / "link").symlink_to("file")
        with (tmp_path / "file").open("rb") as stdin:
            process = start("generate", "-o", str(tmp_path / name), stdin=stdin)
            assert b"--output and the input must be different files" in process.communicate()[1]
        assert process.returncode == 2 and (tmp_path / "file").read_text() == "one\n"

    def test_a_model_without_tokenizer(self, tmp_path):
        mt.save(tmp_path / "bare", random_model(config()))
        for command in (["generate", "one"], ["evaluate", "dates:test"]):
            result = CliRunner().invoke(main, [*command, "-m", str(tmp_path / "bare")])
            assert result.exit_code == 1 and f"{tmp_path / 'bare'} has none" in error_line(result)

    def test_impossible_search_options(self, echo):
        result = echo("generate", "--beam-size", "2", "--num-hypotheses", "3", "one", status=2)
        assert "--num-hypotheses must not exceed --beam-size: 3 is more than 2" in error_line(result)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("generate", "--input", "x", "one"),
            ("generate", "--beam-size", "many"),
            ("generate", "--nonsense"),
            ("nonsense",),
            ("train",),
            ("train", "--output", "run", "--train", "dates"),
            ("train", "--resume"),
            ("evaluate",),
            ("evaluate", "x.tsv", "--sources", "y"),
            ("evaluate", "--sources", "y"),
        ],
    )
    def test_usage_errors_have_status_2(self, echo, arguments):
        error_line(echo(*arguments, status=2))

    def test_a_bug_keeps_its_traceback(self, start):
        process = start("generate", "bug", stdin=subprocess.DEVNULL)
        assert b"Traceback" in process.communicate()[1] and process.returncode == 1

    @pytest.mark.parametrize(
        "message",
        [
            "[malloc] Unable to allocate 4294967296 bytes.",
            "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size",
        ],
    )
    def test_too_little_memory(self, echo, message):
        result = echo("generate", stdin=f"one\nRuntimeError: {message}\n".encode(), status=1)
        assert error_line(result) == "Error: The model and one batch do not fit in memory: lower --batch-tokens.\n"

    @pytest.mark.parametrize("command", ["info", "convert"])
    def test_memory_error_names_batch_tokens_only_where_the_option_exists(self, echo, monkeypatch, tmp_path, command):
        def fail(*arguments, **options):
            raise RuntimeError("[malloc] Unable to allocate 4294967296 bytes.")

        monkeypatch.setattr("mlx_transformer.pretrained.loading.find_torch_checkpoint", fail)
        monkeypatch.setattr("mlx_transformer.pretrained.loading.find_model", fail)
        arguments = [tmp_path, tmp_path / "new"][: 1 + (command == "convert")]
        line = error_line(echo(command, *arguments, status=1))
        assert "does not fit in memory" in line and "--batch-tokens" not in line

    def test_other_runtime_errors_are_bugs(self, echo):
        result = echo("generate", "RuntimeError: a bug", status=1)
        assert result.stderr == "" and str(result.exception) == "a bug"

    def test_errors_without_a_message_print_their_type(self, echo, monkeypatch):
        def fail(*arguments, **options):
            raise ValueError("two\n  lines")

        monkeypatch.setitem(vars(mt), "load", fail)
        assert error_line(echo("generate", "one", status=1)) == "Error: two lines\n"

    @pytest.mark.parametrize(
        "error", [ValueError("a\x1b[2J\u202e\udcff\n b"), OSError(2, "gone", "a\x1b[2J\u202e\udcff b")]
    )
    def test_control_characters_in_errors_are_escaped(self, echo, monkeypatch, error):
        def fail(*arguments, **options):
            raise error

        monkeypatch.setitem(vars(mt), "load", fail)
        assert r"Error: a\x1b[2J\u202e\udcff b" in error_line(echo("generate", "one", status=1))

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
    def test_a_full_disk_behind_standard_output(self, start):
        with open("/dev/full", "wb") as full:
            process = start("generate", "one", stdin=subprocess.DEVNULL, stdout=full)
            assert process.communicate()[1] == b"Error: No space left on device.\n"
        assert process.returncode == 1
