"""The command line: lines in and out, what users are told, exit statuses, pipes and Ctrl-C."""

import contextlib
import dataclasses
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from mlx.utils import tree_map
from support import echo_model
from support.paths import ROOT

import mlx_transformer as mt
from mlx_transformer.cli import input_lines, main, options
from mlx_transformer.cli.commands import evaluate, train
from mlx_transformer.config.training import TrainingConfig

ECHO = [sys.executable, str(Path(echo_model.__file__))]


@pytest.fixture
def echo(monkeypatch):
    """Runs the command line in this process with the stand-in for a model."""
    echo_model.install(monkeypatch.setitem)

    def invoke(*arguments, stdin=b"", status=0):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
        assert result.exit_code == status, result.output
        return result

    return invoke


def error_line(result):
    """The one line that a failure prints."""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def start():
    """Starts the command line in a process of its own; one that hangs is killed, so that its test fails."""
    with contextlib.ExitStack() as stack:

        def begin(*arguments, **options):
            pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
            # With PYTHONUNBUFFERED a forgotten flush would go unseen.
            environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""} | options.pop("env", {})
            process = stack.enter_context(subprocess.Popen([*ECHO, *arguments], env=environment, **pipes | options))
            timer = threading.Timer(30, process.kill)
            timer.start()
            stack.callback(process.kill)
            stack.callback(timer.cancel)
            return process

        yield begin


def test_a_limit_of_the_user_lowers_the_models_least_length():
    defaults = mt.SearchConfig(min_tokens=30, max_tokens=60)
    assert options.search_config(defaults, {"max_tokens": 20, "min_tokens": None}).min_tokens == 20
    with pytest.raises(ValueError, match="min_tokens must not exceed max_tokens: 25 > 20; lower min_tokens"):
        options.search_config(defaults, {"max_tokens": 20, "min_tokens": 25})


class TestOptions:
    @pytest.mark.parametrize(
        "given, told",
        [
            (["--alignment-layer", "1"], "--alignment-layer has no effect on its own: give --alignments as well"),
            (
                ["--sentence-language", "fr"],
                "--sentence-language has no effect on its own: give --split-sentences",
            ),
            (["--seed", "1"], "--seed has no effect on its own: give --temperature as well"),
            (["--alternatives"], "give --num-hypotheses 2 or more as well"),
            (["--stream", "--json"], "--stream writes plain text as it is generated: leave out --json"),
            (["--stream", "--beam-size", "0"], "leave out --beam-size 0"),
            (["--stream", "--num-hypotheses", "2"], "leave out --num-hypotheses 2"),
            (["--split-sentences", "--target-prefix", "a"], "leave out --target-prefix"),
            (["--split-sentences", "--num-hypotheses", "-3"], "leave out --num-hypotheses"),
        ],
    )
    def test_what_does_nothing_or_cannot_be_is_misuse(self, echo, given, told):
        assert told in " ".join(echo("generate", "one", *given, status=2).stderr.split())

    def test_columns(self, echo):
        options = ("generate", "--scores", "--alignments", "one two", "three")
        assert echo(*options).stdout == "-0.5000\tONE TWO\t0-0 1-1\n-0.5000\tTHREE\t0-0\n"
        row = json.loads(echo(*options[:-1], "--json").stdout)
        assert row["alignment"] == [[0, 0], [1, 1]] and row["token_scores"] == [-0.5] * 7

    def test_a_stream_is_the_text(self, echo):
        assert echo("generate", "--stream", "--target-prefix", ">", stdin=b"one\n\ntwo").stdout == ">ONE\n>\n>TWO\n"

    def test_each_line_may_begin_as_it_likes(self, echo):
        stdin = b'{"text": "one", "target_prefix": "A "}\n"two"\n'
        rows = echo("generate", "--json", "--target-prefix", "B ", stdin=stdin).stdout.splitlines()
        assert [json.loads(row)["text"] for row in rows] == ["A ONE", "B TWO"]

    def test_what_is_drawn_is_not_the_best_of_more(self):
        defaults = mt.SearchConfig(beam_size=4)
        drawn = options.search_config(defaults, {"temperature": 0.5, "num_hypotheses": None})
        assert (drawn.beam_size, drawn.num_hypotheses) == (1, 1)
        others = options.search_config(defaults, {"alternatives": True, "num_hypotheses": 3})
        assert (others.beam_size, others.num_hypotheses) == (3, 3)


class TestLanguagesAndTasks:
    def test_languages_of_all_lines(self, echo):
        arguments = ("generate", "--source-language", "en", "--target-language", "fr")
        assert echo(*arguments, stdin=b"one\ntwo\n").stdout == "en>fr ONE\nen>fr TWO\n"

    def test_json_lines_have_their_own(self, echo):
        stdin = (
            b'{"text": "one", "source_language": "de", "id": 3}\n"two"\n{"text": "three", "target_language": "it"}\n'
        )
        result = echo("generate", "--json", "--source-language", "en", "--target-language", "fr", stdin=stdin)
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["text"] for row in rows] == ["de>fr ONE", "en>fr TWO", "en>it THREE"]
        assert rows[0]["id"] == 3 and "source_language" not in rows[0]

    def test_a_language_is_a_code(self, echo):
        result = echo("generate", "--json", stdin=b'{"text": "one", "source_language": 5}\n', status=1)
        assert 'Line 1 must have a string as "source_language", not 5.' in error_line(result)

    def test_a_prefix(self, echo):
        assert echo("generate", "--source-prefix", "now: ", "one").stdout == "now: ONE\n"

    def test_a_task_has_its_prefix_and_its_search(self, echo):
        assert echo("generate", "--task", "shout", "one").stdout == "hey: ONE\nhey: ONE!\n"
        assert echo("generate", "--task", "shout", "--source-prefix", "", "--beam-size", "1", "one").stdout == "ONE\n"

    def test_an_unknown_task(self, echo):
        result = echo("generate", "--task", "sing", "one", status=1)
        assert "--task must be one of shout, not 'sing'; or give --source-prefix." in error_line(result)

    def test_evaluate_has_them_too(self, echo, tmp_path):
        (tmp_path / "test.tsv").write_text("one\ten>fr hey: ONE\ntwo\tno\n")
        languages = ("--source-language", "en", "--target-language", "fr", "--task", "shout")
        assert json.loads(echo("evaluate", tmp_path / "test.tsv", *languages, "--json").stdout)["exact_match"] == 0.5


class TestLines:
    def test_one_line_out_for_each_line_in_blank_ones_kept(self, echo):
        assert echo("generate", stdin=b"one\n\n  \ntwo\n\n").stdout_bytes == b"ONE\n\n  \nTWO\n\n"

    def test_the_last_line_may_lack_its_newline(self, echo):
        assert echo("generate", stdin=b"one\ntwo").stdout_bytes == b"ONE\nTWO\n"

    def test_no_line_in_no_line_out(self, echo):
        assert echo("generate").stdout_bytes == b""

    def test_only_a_newline_separates_lines(self, echo):
        line = "a\u2028b\x0bc\x85d\x1ee\rf"
        assert echo("generate", stdin=f"{line}\nx\n".encode()).stdout_bytes.decode() == f"{line.upper()}\nX\n"

    def test_files_from_windows(self, echo):
        assert echo("generate", stdin=b"\xef\xbb\xbfone\r\n\r\ntwo\r\n").stdout_bytes == b"ONE\n\nTWO\n"

    def test_windows_of_input_join_without_a_seam(self, echo, monkeypatch):
        monkeypatch.setattr("mlx_transformer.cli.input_lines.READ_BYTES", 3)
        stdin = "".join(f"line {i}\n" * (i % 3) for i in range(50)).encode()
        assert echo("generate", stdin=stdin).stdout_bytes == stdin.upper()

    def test_a_byte_order_mark_alone_is_no_line(self, echo, monkeypatch):
        monkeypatch.setattr("mlx_transformer.cli.input_lines.READ_BYTES", 2)
        assert echo("generate", stdin=b"\xef\xbb\xbf").stdout == ""
        assert echo("generate", stdin=b"\xef\xbb\xbfone").stdout == "ONE\n"

    def test_a_byte_order_mark_is_stripped_from_the_first_line_of_a_stream_only(self):
        mark = b"\xef\xbb\xbf"
        assert list(input_lines.iterate_lines(io.BytesIO(mark + b"a\n" + mark + b"b"))) == [[b"a"], [mark + b"b"]]

    def test_a_long_line_is_joined_once(self):
        class Pieces(io.BytesIO):
            """A mebibyte that arrives in eights."""

            def read1(self, size):
                return super().read1(8)

        line = b"x" * (1 << 20)
        start = time.process_time()
        assert list(input_lines.iterate_lines(Pieces(line))) == [[line]]
        assert time.process_time() - start < 2  # a quarter of a second; joining at each piece copies 64 GiB

    def test_texts_of_the_command_line(self, echo):
        assert echo("generate", "one", "", "two\nlines").stdout == "ONE\n\nTWO LINES\n"

    def test_input_and_output_files(self, echo, tmp_path):
        (tmp_path / "in").write_text("one\ntwo\n")
        assert echo("generate", "-i", tmp_path / "in", "-o", tmp_path / "out").stdout == ""
        assert (tmp_path / "out").read_text() == "ONE\nTWO\n"

    def test_an_empty_input_makes_an_empty_output(self, echo, tmp_path):
        echo("generate", "-o", tmp_path / "out")
        assert (tmp_path / "out").read_text() == ""

    def test_a_dash_is_standard_input_and_output(self, echo, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert echo("generate", "-i", "-", "-o", "-", stdin=b"one\n").stdout == "ONE\n"
        assert list(tmp_path.iterdir()) == []

    def test_scores_and_several_hypotheses(self, echo):
        result = echo("generate", "--scores", "--num-hypotheses", "2", stdin=b"one\n\n")
        assert result.stdout == "-0.5000\tONE\n-1.5000\tONE!\n0.0000\t\n\n"

    def test_a_cut_source_is_told(self, echo):
        result = echo("generate", stdin=b"short\n" + b"x" * 101)
        assert result.stderr.startswith("Warning: Line 2 is longer") and result.stderr.count("\n") == 1
        assert result.stdout == "SHORT\n" + "X" * 100 + "\n"

    def test_strict_makes_it_an_error(self, echo):
        result = echo("generate", "--strict", stdin=b"short\n" + b"x" * 101, status=1)
        assert "Line 2 is longer than the model can read" in error_line(result) and result.stdout == "SHORT\n"

    def test_a_beam_grows_with_the_hypotheses_asked_for(self):
        config = options.search_config(mt.SearchConfig(), {"num_hypotheses": 3, "early_stopping": "never"})
        assert (config.beam_size, config.num_hypotheses, config.early_stopping) == (3, 3, "never")

    def test_a_greedy_search_of_a_model_with_several_hypotheses(self):
        defaults = mt.SearchConfig(beam_size=4, num_hypotheses=4)
        assert options.search_config(defaults, {"beam_size": 1}).num_hypotheses == 1


class TestJson:
    def test_objects_and_strings(self, echo):
        result = echo("generate", "--json", stdin=b'{"id": 7, "text": "h\xc3\xa9"}\n"a\\nb"\n\n')
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert rows[0] == {
            "id": 7,
            "text": "HÉ",
            "score": -0.5,
            "tokens": ["H", "É"],
            "finish_reason": "stop",
            "truncated": False,
        }
        assert [row["text"] for row in rows] == ["HÉ", "A\nB", ""]

    def test_several_hypotheses_stand_in_one_line(self, echo):
        (line,) = echo("generate", "--json", "--num-hypotheses", "2", "one").stdout.splitlines()
        assert [row["text"] for row in json.loads(line)["hypotheses"]] == ["ONE", "ONE!"]

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            ("{", "Line 2 must be JSON: .* column 2"),
            ("[1]", "Line 2 must be a JSON string or an object .* not \\[1\\]"),
            ('{"id": 1}', "Line 2 must be a JSON string or an object"),
            ('{"text": 1}', "Line 2 must be a JSON string or an object"),
            ('{"text": "", "beam": 1}', "may have the names .*, not beam"),
            ('"\\ud800"', "Line 2 must be Unicode text"),
            ("[" * 200_000, "Line 2 must be JSON, .* nested too deeply"),
            ('{"text": "", "id": NaN}', "Line 2 .* finite numbers"),
            ('{"text": "", "id": [-Infinity]}', "Line 2 .* finite numbers"),
            ('{"text": "", "id": 1e999}', "Line 2 .* finite numbers"),
            ('{"text": "", "id": ' + "9" * 5000 + "}", "Line 2 .* numbers of at most 4300 digits"),
        ],
    )
    def test_bad_lines(self, echo, line, told):
        result = echo("generate", "--json", stdin=f'"good"\n{line}\n'.encode(), status=1)
        assert re.search(told, error_line(result))


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

    def test_the_output_may_not_be_the_input(self, echo, tmp_path):
        (tmp_path / "file").write_text("one\n")
        line = error_line(echo("generate", "-i", tmp_path / "file", "-o", tmp_path / "file", status=1))
        assert "--output and the input must be different files" in line
        assert (tmp_path / "file").read_text() == "one\n"

    @pytest.mark.parametrize("name", ["file", "link"])
    def test_the_output_may_not_be_what_standard_input_is(self, start, tmp_path, name):
        (tmp_path / "file").write_text("one\n")
        (tmp_path / "link").symlink_to("file")
        with (tmp_path / "file").open("rb") as stdin:
            process = start("generate", "-o", str(tmp_path / name), stdin=stdin)
            assert b"--output and the input must be different files" in process.communicate()[1]
        assert process.returncode == 1 and (tmp_path / "file").read_text() == "one\n"

    def test_the_input_may_not_be_where_results_gather(self, echo, tmp_path):
        (tmp_path / "out.partial").write_text("one\n")
        line = error_line(echo("generate", "-i", tmp_path / "out.partial", "-o", tmp_path / "out", status=1))
        assert (
            "--output and the input must be different files" in line
            and (tmp_path / "out.partial").read_text() == "one\n"
        )

    @pytest.mark.parametrize("model", ["no-tokenizer", None])
    def test_a_model_without_tokenizer(self, echo, monkeypatch, model):
        monkeypatch.setitem(vars(mt), "load", lambda *arguments, **options: (echo_model.EchoModel(), None))
        arguments = ["-m", model] * bool(model)
        for command in (["generate", "one"], ["evaluate", "dates:test"]):
            line = error_line(echo(*command, *arguments, status=1))
            assert f"{model or 'the bundled model'} has none" in line

    def test_impossible_search_options(self, echo):
        result = echo("generate", "--beam-size", "2", "--num-hypotheses", "3", "one", status=1)
        assert "num_hypotheses must not exceed beam_size: 3 is more than 2" in error_line(result)

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
    def test_misuse_is_status_2(self, echo, arguments):
        assert "Usage: " in echo(*arguments, status=2).stderr

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
    def test_only_a_command_with_batches_is_told_of_them(self, echo, monkeypatch, tmp_path, command):
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

    def test_a_line_of_error_for_errors_without_words(self, echo, monkeypatch):
        def fail(*arguments, **options):
            raise ValueError("two\n  lines")

        monkeypatch.setitem(vars(mt), "load", fail)
        assert error_line(echo("generate", "one", status=1)) == "Error: two lines\n"

    @pytest.mark.parametrize(
        "error", [ValueError("a\x1b[2J\u202e\udcff\n b"), OSError(2, "gone", "a\x1b[2J\u202e\udcff b")]
    )
    def test_what_a_terminal_would_obey_is_written_out(self, echo, monkeypatch, error):
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


class TestOutput:
    """--output: nothing is lost, whatever happens."""

    @pytest.fixture
    def out(self, tmp_path):
        (tmp_path / "out").write_text("precious")
        return tmp_path / "out"

    def test_a_run_that_fails_leaves_an_existing_file_and_tells_where_its_results_are(self, echo, out):
        result = echo("generate", "--strict", "-o", out, stdin=b"one\n" + b"x" * 101, status=1)
        assert f"The results so far are in {out}.partial." in error_line(result)
        assert out.read_text() == "precious" and Path(f"{out}.partial").read_text() == "ONE\n"

    def test_results_are_visible_as_they_come_and_kept_at_ctrl_c(self, start, out):
        process = start("generate", "-o", str(out))
        process.stdin.write(b"one\n")
        process.stdin.flush()
        partial = Path(f"{out}.partial")
        while process.poll() is None and not (partial.exists() and partial.read_text()):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        told = f"Interrupted. The results so far are in {partial}.\n"
        assert process.communicate()[1].decode() == told and process.returncode == 130
        assert out.read_text() == "precious" and partial.read_text() == "ONE\n"

    def test_a_run_that_succeeds_replaces_a_file_and_keeps_its_mode(self, echo, out):
        out.chmod(0o640)
        echo("generate", "-o", out, "one")
        assert out.read_text() == "ONE\n" and out.stat().st_mode & 0o777 == 0o640
        assert os.listdir(out.parent) == ["out"]

    def test_a_link_stays_a_link(self, echo, out):
        link = out.with_name("link")
        link.symlink_to("out")
        echo("generate", "-o", link, "one")
        assert link.is_symlink() and out.read_text() == "ONE\n"

    def test_devices_are_written_to_directly(self, start, tmp_path):
        assert start("generate", "one", "-o", "/dev/stdout").communicate() == (b"ONE\n", b"")
        assert start("generate", "one", "-o", "/dev/null").communicate() == (b"", b"")
        assert not list(Path("/dev").glob("*.partial"))
        with (tmp_path / "log").open("ab") as log:
            log.write(b"before\n")
            log.flush()
            start("generate", "one", "-o", "/dev/stdout", stdout=log).wait()
        assert (tmp_path / "log").read_text() == "before\nONE\n" and os.listdir(tmp_path) == ["log"]

    def test_named_pipes_of_input_and_output(self, start, tmp_path):
        for name in ("in", "out"):
            os.mkfifo(tmp_path / name)
        results = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
        writer = subprocess.Popen(["sh", "-c", "echo one > in"], cwd=tmp_path)
        process = start("generate", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"))
        assert process.wait() == 0 and os.read(results, 100) == b"ONE\n"
        os.close(results)
        writer.kill()
        writer.wait()


class TestPipes:
    @pytest.mark.parametrize("options", [(), ("--split-sentences",)], ids=["whole", "split"])
    def test_each_line_is_answered_as_it_arrives(self, start, options):
        process = start("generate", *options)
        for line in (b"one\n", b"\n", b"two\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line.upper()
        assert process.communicate()[0] == b"" and process.returncode == 0

    def test_a_closed_pipe_ends_quietly(self, start):
        endless = "import sys\ntry:\n while True: print('one')\nexcept OSError: sys.stdout = None"
        producer = subprocess.Popen([sys.executable, "-c", endless], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process = start("generate", stdin=producer.stdout)
        producer.stdout.close()
        assert process.stdout.readline() == b"ONE\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
        process.stderr.close()
        producer.kill()
        producer.wait()

    @pytest.mark.parametrize("waiting", [True, False], ids=["waiting", "after a line"])
    def test_ctrl_c_ends_cleanly(self, start, waiting):
        process = start("generate")
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ONE\n"
        if not waiting:
            process.stdin.write(b"two")
            process.stdin.flush()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
        assert (output, errors, process.returncode) == (b"", b"Interrupted.\n", 130)

    def test_any_locale(self, start):
        process = start("generate", env={"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"})
        assert process.communicate("ŝ\n".encode())[0] == "Ŝ\n".encode()


ENTRIES = [
    {"event": "start", "step": 0, "parameters": 1234, "pairs": 5, "too_long": 2},
    {"event": "step", "step": 2, "steps": 4, "loss": 1.5, "perplexity": 4.48, "tokens_per_second": 1e4}
    | {"learning_rate": 1e-3, "gradient_norm": 1.0, "memory": 1.25e9, "seconds_left": 3661.2},
    {"event": "validation", "step": 2, "loss": 1.25, "token_accuracy": 0.5, "best": True}
    | {"samples": [{"source": "Hi", "reference": "Salut", "hypothesis": "Sal"}]},
    {"event": "stopped", "step": 3, "signal": 2},
    {"event": "end", "step": 4, "reason": "patience"},
]


class TestTrain:
    def test_every_field_is_an_option_with_the_default_of_the_dataclass(self):
        options = {option.name: option for option in train.command.params}
        for field in dataclasses.fields(TrainingConfig):
            assert options[field.name].help, field.name
            if field.default is not dataclasses.MISSING:
                assert options[field.name].default == field.default

    def test_a_run_is_reported_in_lines(self, monkeypatch):
        def fake(config, report):
            for entry in ENTRIES:
                report(entry)
            assert config.train == ("a.tsv", "b.tsv") and config.steps == 4 and not config.shared_vocabulary
            return Path("run/best")

        monkeypatch.setitem(vars(mt), "train", fake)
        arguments = "train --train a.tsv --train b.tsv --valid v.tsv --output run --steps 4 --no-shared-vocabulary"
        result = CliRunner().invoke(main, arguments.split())
        assert result.output.splitlines() == [
            "1,234 parameters to train, 5 pairs, 2 skipped because they are too long",
            "step 2/4 loss 1.500 perplexity 4.5 tokens/s 10,000 rate 1.00e-03 gradient 1.00 memory 1.25GB left 1:01:01",
            "validation at step 2: loss 1.2500 token_accuracy 0.5000 (best)",
            "      Hi",
            "    = Salut",
            "    > Sal",
            "Stopped and saved after step 3: resume with mlx-transformer train --output run --resume",
            "Ended at step 4: no better validation among the last 0.",
            "Best model: run/best",
        ]
        result = CliRunner().invoke(main, [*arguments.split(), "--json"])
        assert [json.loads(line) for line in result.output.splitlines()] == ENTRIES

    @pytest.fixture
    def configs(self, monkeypatch, tmp_path):
        """The configurations that the command trains; a run in `run` has options of its own."""
        trained = []
        monkeypatch.setitem(vars(mt), "train", lambda config, report: trained.append(config) or Path("run/best"))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "run").mkdir()
        former = 'train = ["a.tsv"]\nvalid = ["v.tsv"]\noutput = "moved"\npreset = "tiny"\nsteps = 7\nseed = 3\n'
        (tmp_path / "run" / "options.toml").write_text(former)
        return trained

    def test_options_in_a_file_come_after_those_given(self, configs):
        result = CliRunner().invoke(
            main, "train --config run/options.toml --output new --seed 5 --betas 0.8 0.9".split()
        )
        assert result.exit_code == 0, result.output
        own = {"preset": "tiny", "steps": 7, "seed": 5, "betas": (0.8, 0.9)}
        assert configs == [TrainingConfig(train=("a.tsv",), valid=("v.tsv",), output="new", **own)]

    def test_the_run_may_be_named_in_the_file(self, configs):
        result = CliRunner().invoke(main, "train --config run/options.toml".split())
        assert result.exit_code == 0 and configs[0].output == "moved"

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("steps = ", "options.toml must be TOML, with a line `name = value` per option"),
            ("stepps = 3", "options.toml has unknown fields: stepps. The known ones are train, valid"),
            ("steps = 'many'", "steps must be int, not 'many'"),
            ("output = 3\nresume = true", "output must be a string, the folder of the run, not 3"),
        ],
    )
    def test_a_bad_file_of_options_is_told(self, configs, text, told):
        Path("run/options.toml").write_text(text)
        named = "" if text.startswith("output") else "--output new"
        arguments = f"train --config run/options.toml {named} --train a.tsv --valid b.tsv"
        result = CliRunner().invoke(main, arguments.split())
        assert result.exit_code == 1 and told in error_line(result)
        result = CliRunner().invoke(main, arguments.replace("options", "absent").split())
        assert result.exit_code == 1 and "The options file run/absent.toml does not exist" in error_line(result)

    def test_parts_to_freeze_are_separated_by_commas(self, configs):
        arguments = "train --train a --valid b --output new --init model --freeze encoder,embeddings"
        CliRunner().invoke(main, arguments.split())
        assert configs[0].freeze == ("encoder", "embeddings")

    def test_a_run_goes_on_with_its_own_options(self, configs):
        result = CliRunner().invoke(main, "train --output run --resume --steps 9".split())
        assert result.exit_code == 0, result.output
        own = {"preset": "tiny", "steps": 9, "seed": 3, "resume": True}
        assert configs == [TrainingConfig(train=("a.tsv",), valid=("v.tsv",), output="run", **own)]

    def test_an_option_with_its_default_counts_as_given(self, configs):
        CliRunner().invoke(main, "train --output run --resume --steps 10000".split())
        assert configs[0].steps == TrainingConfig.steps

    def test_a_run_that_is_not_there(self, tmp_path):
        result = CliRunner().invoke(main, ["train", "--resume", "--output", str(tmp_path / "absent")])
        assert result.exit_code == 1 and str(tmp_path / "absent") in error_line(result)

    def test_a_wrong_value_is_told(self):
        arguments = "train --train dates --valid dates --output run --dropout 2"
        result = CliRunner().invoke(main, arguments.split())
        assert result.exit_code == 1 and "dropout must be at least 0 and below 1, not 2.0" in error_line(result)


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
        assert "BLEU         100.00" in output and "exact match  100.00%" in output
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

    def test_a_blank_line_in_one_of_several_files_is_no_reference(self, echo, tmp_path):
        arguments = self.files(tmp_path, sources="a b c d\ne f g h\n", one="A B C D\n\n", two="X\r\nE F G H\r\n")
        figures = json.loads(echo("evaluate", *arguments, "--json").stdout)
        assert (figures["sentences"], figures["references"], figures["exact_match"]) == (2, 3, 1)
        assert figures["bleu"] == pytest.approx(100)

    @pytest.mark.parametrize(
        ("sources", "one", "two", "told"),
        [
            ("a\nb\n", "A\n\n", "A\n \n", "line 2 of .*sources.gz has no reference"),
            ("a\n\n", "A\nB\n", "A\nB\n", "line 2 of .*sources.gz has no source"),
            ("a\nb\n", "A\nB\n", "A\n", "sources.gz has 2 and .*two.gz has 1"),
            ("", "", "", "sources.gz must have at least one source"),
        ],
    )
    def test_files_that_do_not_fit(self, echo, tmp_path, sources, one, two, told):
        arguments = self.files(tmp_path, sources=sources, one=one, two=two)
        assert re.search(told, error_line(echo("evaluate", *arguments, status=1)))

    def test_files_that_cannot_be_read(self, echo, tmp_path):
        arguments = self.files(tmp_path, sources="a\n", one="A\n")
        path, data = arguments[1], arguments[1].read_bytes()
        for damaged in (data[:-4], b"no gzip", data[:10] + b"\xff" * 4 + data[14:]):
            path.write_bytes(damaged)
            assert f"{path} must be a complete gzip file" in error_line(echo("evaluate", *arguments, status=1))
        path.write_bytes(gzip.compress(b"good\n\xff\n"))
        assert f"{path}, line 2, must be valid UTF-8" in error_line(echo("evaluate", *arguments, status=1))

    def test_a_cut_source_is_told(self, echo, tmp_path):
        result = echo("evaluate", *self.files(tmp_path, sources="a\n" + "x" * 101 + "\n", one="A\nX\n"))
        assert result.stderr == f'Warning: "{"x" * 40}..." is longer than the model can read and was cut.\n'

    def test_without_sacrebleu_exact_matches_are_counted(self, echo, monkeypatch, tmp_path):
        monkeypatch.setattr("mlx_transformer.metrics.has_sacrebleu", lambda: False)
        arguments = self.files(tmp_path, sources="a\nb\n", one="A\nX\n")
        result = echo("evaluate", *arguments)
        assert [line.split()[0] for line in result.stdout.splitlines()] == ["exact", "sentences", "seconds"]
        assert "50.00%" in result.stdout and "pip install sacrebleu" in result.stderr
        figures = json.loads(echo("evaluate", *arguments, "--json").stdout)
        assert figures.keys() == {"exact_match", "sentences", "references", "seconds"}


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

    def test_alignments(self, echo):
        result = echo("score", "--alignments", stdin=self.PAIRS.encode())
        assert result.stdout == "-5.0000\t0-0\n0.0000\t\n-17.0000\t0-0 1-1\n"

    def test_json(self, echo):
        (row,) = echo("score", "--json", "--alignments", stdin=b"\xc3\xa9 a\t\xc3\xa9\n").stdout.splitlines()
        expected = {"score": -4.0, "tokens": ["é"], "token_scores": [-1.0] * 4, "truncated": False}
        assert json.loads(row) == expected | {"alignment": [[0, 0]]} and "é" in row
        assert json.loads(echo("score", "--json", stdin="é a\té".encode()).stdout) == expected

    def test_windows_of_two_files_join_without_a_seam(self, echo, two_files, monkeypatch):
        monkeypatch.setattr("mlx_transformer.cli.commands.score.PAIRS_PER_WINDOW", 3)
        options = two_files("".join("a" * i + "\n" for i in range(10)), "\n" * 10)
        assert echo("score", *options).stdout == "".join(f"{-float(i):.4f}\n" for i in range(10)).replace("-0.", "0.")

    def test_languages_prefixes_and_tasks(self, echo):
        languages = ("--source-language", "en", "--target-language", "fr")
        assert echo("score", *languages, "--source-prefix", "now: ", stdin=b"a\tb\n").stdout == "-12.0000\n"
        assert echo("score", "--task", "shout", stdin=b"a\tb\n").stdout == "-7.0000\n"

    def test_each_pair_is_answered_as_it_arrives(self, start):
        process = start("score")
        for line in (b"one\tun\n", b"\t\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == (b"0.0000\n" if line == b"\t\n" else b"-5.0000\n")
        assert process.communicate()[0] == b"" and process.returncode == 0

    def test_a_cut_pair_is_told(self, echo):
        result = echo("score", stdin=b"a\tb\na\t" + b"x" * 101)
        assert result.stderr.startswith("Warning: Line 2 is longer than the model can read and was cut.")

    @pytest.mark.parametrize(
        ("stdin", "told"),
        [
            (b"a\tb\nno tab\n", "Line 2 must be a source, one tab and a target, but has 0 tabs: correct the line."),
            (b"a\tb\tc\n", "Line 1 must be a source, one tab and a target, but has 2 tabs"),
            (b"\n", "Line 1 must be a source, one tab and a target"),
            (b"a\tb\na\t\xff\n", "Line 2 must be valid UTF-8: byte 3 is 0xff"),
        ],
    )
    def test_lines_that_are_no_pairs(self, echo, stdin, told):
        assert told in error_line(echo("score", stdin=stdin, status=1))

    @pytest.mark.parametrize(
        ("source", "target", "name", "lines"), [("a\nb\nc\n", "a\n", "target", 1), ("", "a\n", "source.gz", 0)]
    )
    def test_files_of_unequal_numbers_of_lines(self, echo, two_files, source, target, name, lines):
        line = error_line(echo("score", *two_files(source, target), status=1))
        assert f"{name} ends after line {lines}: align them again." in line

    def test_files_that_cannot_be_read(self, echo, two_files, tmp_path):
        options = two_files("a\n", "b\n")
        options[3].write_bytes(b"\xff\n")
        assert f"{options[3]}, line 1, must be valid UTF-8" in error_line(echo("score", *options, status=1))
        options[1].write_bytes(b"no gzip")
        assert f"{options[1]} must be a complete gzip file" in error_line(echo("score", *options, status=1))
        for arguments in (("--input", tmp_path / "absent"), (*options[:3], tmp_path / "absent")):
            line = error_line(echo("score", *arguments, status=1))
            assert f"{tmp_path / 'absent'}: No such file or directory." in line

    @pytest.mark.parametrize(
        "arguments", [("--source", "x"), ("--target", "x"), ("--source", "x", "--target", "y", "--input", "z")]
    )
    def test_misuse_is_status_2(self, echo, arguments):
        assert "Give --source with --target, or --input" in echo("score", *arguments, status=2).stderr

    def test_results_take_the_place_of_a_file_when_all_are_there(self, echo, two_files, tmp_path):
        (tmp_path / "out").write_text("precious")
        result = echo("score", "-o", tmp_path / "out", stdin=b"a\tb\nbad\n", status=1)
        assert (tmp_path / "out").read_text() == "precious" and "The results so far are in" in error_line(result)
        echo("score", "-o", tmp_path / "out", stdin=b"a\tb\n")
        assert (tmp_path / "out").read_text() == "-2.0000\n"
        options = two_files("a\n", "b\n")
        for path in (options[1], options[3]):
            line = error_line(echo("score", *options, "-o", path, status=1))
            assert "--output and the input must be different files" in line
        assert options[3].read_text() == "b\n"


def test_evaluate_takes_the_search_options_of_generate():
    names = {option.name for option in evaluate.command.params}
    assert {"beam_size", "length_penalty", "batch_tokens", "memory_limit", "model", "dtype"} <= names


LINES = ["a short line", "", "the third of March, 1987", "a short line", "one line that is a good deal longer"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    mx.random.seed(2)
    tokenizer = mt.Tokenizer.train(LINES, LINES, 300)
    stack = mt.StackConfig(num_layers=1, num_heads=1, mlp_dims=16, max_length=40)
    size = tokenizer.source_vocab_size
    model = mt.Transformer(mt.ModelConfig(size, size, dims=16, encoder=stack, decoder=stack))
    # Larger weights than training starts from, so that different sources have different targets.
    model.update(tree_map(lambda array: array + 0.5 * mx.random.normal(array.shape), model.parameters()))
    folder = tmp_path_factory.mktemp("model") / "tiny"
    mt.save(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def uncompiled():
    """What is tested here does not depend on compilation, which takes seconds."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.usefixtures("uncompiled")
class TestWithAModel:
    """The same commands with a real, tiny, untrained model."""

    @staticmethod
    def invoke(*arguments, stdin=None, status=0):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
        assert result.exit_code == status, (result.output, result.exception)
        return result

    def test_lines_keep_their_places(self, folder):
        options = ("--model", folder, "--max-tokens", "8")
        result = self.invoke("generate", *options, stdin="\n".join(LINES))
        assert result.stdout.count("\n") == len(LINES)
        alone = [self.invoke("generate", *options, line).stdout for line in LINES[:5]] * 3
        assert result.stdout == "".join(alone)
        assert alone[1] == "\n" and alone[0] != alone[2]

    def test_json_has_scores_and_tokens(self, folder):
        result = self.invoke("generate", "-m", folder, "--json", "--beam-size", "2", "--max-tokens", "4", "a line")
        row = json.loads(result.stdout)
        assert len(row["tokens"]) <= 4 and row["score"] <= 0 and row["finish_reason"] in ("stop", "length")

    def test_a_source_longer_than_the_model_reads(self, folder):
        stdin = "a line\n" + "long " * 100
        result = self.invoke("generate", "-m", folder, "--max-tokens", "2", stdin=stdin)
        assert "Warning: Line 2 is longer" in result.stderr and result.stdout.count("\n") == 2
        assert "Line 2 is longer" in error_line(
            self.invoke("generate", "-m", folder, "--strict", stdin=stdin, status=1)
        )

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_dtypes(self, folder, dtype):
        assert self.invoke("generate", "-m", folder, "--dtype", dtype, "--max-tokens", "2", "a line").stdout

    def test_evaluate(self, folder, tmp_path):
        (tmp_path / "test.tsv").write_text("a short line\tanother\na short line\tone more\n")
        figures = json.loads(self.invoke("evaluate", "-m", folder, tmp_path / "test.tsv", "--json").stdout)
        assert figures["sentences"] == 1 and figures["references"] == 2 and figures["exact_match"] == 0

    def test_score(self, folder):
        stdin = "a short line\tthe third\n\t\na line\tanother\n"
        result = self.invoke("score", "-m", folder, "--json", "--alignments", stdin=stdin)
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["tokens"][-1] for row in rows] == ["</s>"] * 3 and rows[1]["tokens"] == ["</s>"]
        assert all(row["score"] == pytest.approx(sum(row["token_scores"])) and row["score"] < 0 for row in rows)
        assert {j for _, j in rows[0]["alignment"]} == {0, 1} and rows[1]["alignment"] == []
        layer = ("--alignments", "--alignment-layer", "1")
        told = "A layer of an alignment must be from 0 to 0, not 1."
        assert told in error_line(self.invoke("score", "-m", folder, *layer, stdin=stdin, status=1))

    def test_info(self, folder):
        facts = json.loads(self.invoke("info", folder, "--json").stdout)
        assert facts["config"]["dims"] == 16 and facts["stored_dtype"] == ["float32"] and facts["format_version"] == 1
        assert facts["fused_attention"]["decoder"] == {"head_dims": 16, "step": False, "long": False}
        arrays = json.loads(self.invoke("info", folder, "--json").stdout)["parameters"]
        text = self.invoke("info", folder).stdout
        assert f"{arrays:,} in float32" in text and "head size 16; on Metal not fused" in text

    def test_info_of_a_stranger_s_model_keeps_to_its_lines(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "odd")
        config = json.loads((folder / "config.json").read_text())
        search = config["search"]
        config["tasks"] = [{"name": "a\x1b[2J\nb", "source_prefix": "", "search": search}]
        (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
        text = self.invoke("info", tmp_path / "odd").stdout
        assert r"task              a\x1b[2J\nb: sources begin" in text and "\x1b" not in text

    def test_info_counts_the_parameters_of_a_quantised_model(self, tmp_path, monkeypatch):
        stack = mt.StackConfig(num_layers=1, num_heads=2, mlp_dims=64, max_length=8)
        model = mt.Transformer(mt.ModelConfig(64, 64, dims=64, head_dims=64, encoder=stack, decoder=stack))
        mt.save(tmp_path / "model", model, quantize=8)
        monkeypatch.setattr("mlx_transformer.model.precision.dequantize", lambda model: None)  # as on a GPU
        facts = json.loads(self.invoke("info", tmp_path / "model", "--json").stdout)
        assert facts["parameters"] == model.num_parameters and "uint32" in facts["dtype"]
        assert facts["fused_attention"]["encoder"]["head_dims"] == 64

    def test_damaged_folders(self, folder, tmp_path):
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        weights = (folder / "model.safetensors").read_bytes()
        for size in (0, 7, 100, len(weights) // 2, len(weights) - 1):
            (broken / "model.safetensors").write_bytes(weights[:size])
            for command in (("generate", "one", "-m"), ("info",), ("evaluate", "dates", "-m")):
                assert "model.safetensors" in error_line(self.invoke(*command, broken, status=1))
        (broken / "model.safetensors").unlink()
        assert "model.safetensors" in error_line(self.invoke("info", broken, status=1))

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ('"format_version": 1', '"format_version": 99', "upgrade"),
            ('"dims"', '"dmis"', "unknown fields: dmis"),
            ('"dims": 16', '"dims": "16"', "dims must be int"),
            ("{", "", "must be JSON"),
        ],
    )
    def test_damaged_configs(self, folder, tmp_path, old, new, told):
        broken = tmp_path / "broken"
        shutil.copytree(folder, broken)
        text = (broken / "config.json").read_text()
        (broken / "config.json").write_text(text.replace(old, new, 1))
        assert told in error_line(self.invoke("generate", "one", "-m", broken, status=1))

    def test_a_missing_folder(self, tmp_path):
        for command in (("generate", "one", "-m"), ("info",), ("evaluate", "dates", "-m")):
            assert str(tmp_path / "absent") in error_line(self.invoke(*command, tmp_path / "absent", status=1))
