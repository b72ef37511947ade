"""Help in groups, other names and spellings of commands and options, and shell completion."""

import dataclasses
import re
import subprocess
import sys

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner
from support.command_line import error_line, leaf_commands
from support.paths import ROOT

from mlx_transformer.cli import main
from mlx_transformer.cli.help import name_options
from mlx_transformer.config.training import TrainingConfig

COMMANDS = leaf_commands()


def help_of(echo, command):
    return echo(*command.split(), "--help").stdout


class TestGroups:
    @pytest.mark.parametrize("name", sorted(COMMANDS))
    def test_every_option_is_in_a_group(self, echo, name):
        options = [param for param in COMMANDS[name].params if isinstance(param, click.Option)]
        assert options and all(vars(option).get("help_group") for option in options)
        lines = help_of(echo, name).splitlines()
        groups = [*dict.fromkeys(option.help_group for option in options), "Help"]
        assert [line[:-1] for line in lines if line[:-1] in groups] == groups

    def test_the_common_options_of_generate_come_first(self, echo):
        names = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", help_of(echo, "generate"), re.MULTILINE)
        first = names[:10]
        assert first[0] == "--model"
        assert {"--source-language", "--target-language", "--input", "--output"} <= set(first)

    def test_every_field_of_a_training_run_is_an_option(self):
        names = {param.name for param in main.commands["train"].params}
        assert names - {"file", "as_json"} == {field.name for field in dataclasses.fields(TrainingConfig)}

    @pytest.mark.parametrize("name", sorted(COMMANDS))
    def test_defaults_are_shown_in_one_way(self, echo, name):
        text = " ".join(help_of(echo, name).split())
        assert "[default: (" not in text and "by default" not in text
        for param in COMMANDS[name].params:
            assert "efault:" not in (vars(param).get("help") or ""), param.name

    def test_help_of_train_names_options_as_they_are_spelled(self, echo):
        text = help_of(echo, "train")
        assert "--decoder-layers is set" in text and "decoder_layers" not in text
        assert "[default: the preset's]" in text

    @pytest.mark.parametrize("width", [80, 100])
    def test_lines_fit_the_terminal(self, width):
        text = CliRunner().invoke(main, ["--help-all"], terminal_width=width).stdout
        assert [line for line in text.splitlines() if len(line) > width] == []

    def test_the_help_of_all_commands(self, echo):
        text = echo("--help-all").stdout
        for name in COMMANDS:
            assert (f"Usage: main {name} [OPTIONS]" in text) == (name != "translate")
        assert "--beam-size INTEGER" in text and "--warmup-steps INTEGER" in text

    def test_help_imports_neither_mlx_nor_rich(self):
        program = (
            "import sys; from mlx_transformer.cli import main\n"
            "main(['generate', '--help'], standalone_mode=False)\n"
            "print({'mlx', 'rich', 'tqdm', 'numpy'} & set(sys.modules))"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
        assert result.stdout.splitlines()[-1] == "set()"


class TestAlias:
    def test_translate_is_generate(self, echo):
        assert echo("translate", "one").stdout == "ONE\n"
        assert echo("translate", "--help").stdout.startswith("Usage: main translate [OPTIONS] [TEXT]...")

    def test_too_little_memory_names_batch_tokens(self, echo):
        message = "[malloc] Unable to allocate 4294967296 bytes."
        result = echo("translate", stdin=f"one\nRuntimeError: {message}\n".encode(), status=1)
        assert "lower --batch-tokens" in error_line(result)


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--nonsense"], "No such option"),
            (["nonsense"], "No such command 'nonsense'"),
            (["genrate"], "No such command 'genrate'. Similar ones are generate."),
            (["generate", "--beamsize", "2"], "No such option '--beamsize'. Similar ones are --beam-size."),
            (["score", "--aligments"], "Similar ones are --alignments, --alignment-head, --alignment-layer."),
            (
                ["attention", "I", "see", "-o", "a.png"],
                "(see). Put a TEXT with spaces in quotes, and its target after --t",
            ),
            (["info", "my", "model"], "(model). Put an argument with spaces in quotes."),
            (["score", "a"], "(a). This command takes only options."),
            (["generate", "--beam-size", "x"], "Invalid value for '--beam-size': 'x' is not a valid integer."),
            (["attention"], "Missing"),
            (["models", "list", "x"], "Got unexpected extra argument (x). This command takes only options."),
            (["models", "--fro", "fr"], "No such option '--fro'. Similar ones are --from, --to."),
            (["generate", "--input", "x", "one"], "Give TEXT or --input, not both."),
        ],
    )
    def test_usage_errors_have_one_line_that_names_the_help(self, echo, arguments, text):
        line = error_line(echo(*arguments, status=2))
        command = f"main {arguments[0]}" if arguments[0] in main.commands else "main"
        command += {"list": " list", "--fro": " search"}.get(arguments[1], "") if command == "main models" else ""
        assert text in line and re.search(rf"[^.]\. See {command} --help\.\n$", line)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("generate", "--beam-size", 2, "--num-hypotheses", 3), "--num-hypotheses must not exceed --beam-size"),
            (("generate", "--top-k", 5), "--top-k only affects sampling"),
            (("generate", "--alternatives", "--num-hypotheses", 2, "--temperature", 1), "leave out --temperature 1"),
            (("generate", "--max-tokens", 2, "--min-tokens", 3), "lower --min-tokens, or raise --max-tokens"),
        ],
    )
    def test_errors_of_the_search_name_options_as_they_are_spelled(self, echo, arguments, text):
        line = error_line(echo(*arguments, "one", status=2))
        assert text in line and "_" not in line

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (["--warmup-steps", 9, "--steps", 5, "--schedule", "cosine"], "--warmup-steps must be less than steps"),
            (["--batch-tokens", 9], "--batch-tokens must be at least --max-length"),
            (["--dims", 100, "--num-heads", 3], "--num-heads must divide"),
            (["--optimizer", "adam", "--weight-decay", 1], "or leave --weight-decay out"),
        ],
    )
    def test_errors_of_a_recipe_name_options_as_they_are_spelled(self, echo, options, text):
        line = error_line(echo("train", "--train", "dates", "--valid", "dates", "--output", "x", *options, status=2))
        assert text in line and "_" not in line

    @pytest.mark.parametrize(
        "message",
        [
            "config.json: beam_size must be more than 0, not 0.",
            'Line 1 may have the names "text", "target_language", not x.',
            "Where beam_size is a word of a text.",
        ],
    )
    def test_fields_of_files_keep_their_names(self, message):
        assert name_options(message, main.commands["generate"]) == message

    @pytest.mark.parametrize(
        ("command", "message", "expected"),
        [
            ("convert", "x already exists: use force to replace it.", "x already exists: use --force to replace it."),
            (
                "convert",
                "quantised already: leave out quantize, or y.",
                "quantised already: leave out --quantize, or y.",
            ),
            ("train", "freeze only helps here: set init as well.", "--freeze only helps here: set --init as well."),
            ("train", "No run: start one without resume.", "No run: start one without --resume."),
            ("train", "x holds a run: set resume, or y.", "x holds a run: set --resume, or y."),
        ],
    )
    def test_remedies_name_options_as_they_are_spelled(self, command, message, expected):
        assert name_options(message, main.commands[command]) == expected

    def test_paths_and_values_in_a_message_about_an_option_are_kept(self):
        message = "beam_size must be below max_tokens, see runs/beam_size/x and 'top_k', not --beam-size 3 beam_size=4"
        expected = (
            "--beam-size must be below --max-tokens, see runs/beam_size/x and 'top_k', not --beam-size 3 beam_size=4"
        )
        assert name_options(message, main.commands["generate"]) == expected

    @pytest.mark.parametrize("text", ["-5 degrees", "- Hello!", "--- a ---"])
    def test_a_text_that_begins_with_a_dash(self, echo, text):
        line = error_line(echo("generate", text, status=2))
        assert "A TEXT that begins with a dash stands after --" in line
        assert echo("generate", "--", text).stdout == f"{text.upper()}\n"

    def test_a_misspelt_option_is_no_text(self, echo):
        assert "stands after --" not in error_line(echo("generate", "--beam-sise", "3", status=2))
        assert "stands after --" not in error_line(echo("info", "-z", status=2))


class TestCompletion:
    @pytest.fixture
    def complete(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        cache = tmp_path / "cache"
        monkeypatch.setenv("MLX_TRANSFORMER_CACHE", str(cache))
        for folder in ("nllb", "runs/dates/best", "runs/dates/last", ".hidden/model", "a/b/c/too-deep"):
            (tmp_path / folder).mkdir(parents=True)
            (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / "runs" / "dates" / "options.toml").write_text("")
        (tmp_path / "notes").mkdir()

        def run(*arguments):
            completion = BashComplete(main, {}, "mlx-transformer", "_MLX_TRANSFORMER_COMPLETE")
            *before, incomplete = arguments
            return [(item.type, item.value) for item in completion.get_completions(before, incomplete)]

        return run

    @pytest.mark.parametrize(
        ("incomplete", "expected"),
        [
            ("", ["nllb", "runs/dates/best", "runs/dates/last", "bundled"]),
            ("bun", ["bundled"]),
            ("r", ["runs/dates/best", "runs/dates/last"]),
            ("runs/dates/b", ["runs/dates/best"]),
            ("./n", ["./nllb"]),
            (".h", [".hidden/model"]),
            ("a/b/", ["a/b/c/too-deep"]),
        ],
    )
    def test_model_folders(self, complete, incomplete, expected):
        assert complete("generate", "--model", incomplete) == [("plain", name) for name in expected]

    @pytest.mark.parametrize("command", [["info"], ["convert"], ["train", "--init"], ["translate", "-m"]])
    def test_models_of_other_options(self, complete, command):
        assert ("plain", "nllb") in complete(*command, "n")

    def test_files_where_there_is_no_model(self, complete):
        assert complete("generate", "--model", "x") == [("file", "x")]

    def test_runs(self, complete, tmp_path):
        assert complete("plot", "r") == [("plain", "runs/dates")]
        assert complete("train", "--output", "") == [("plain", "runs/dates")]
        assert complete("train", "--output", "new") == [("dir", "new")]
        assert complete("plot", f"{tmp_path}/ru") == [("plain", f"{tmp_path}/runs/dates")]

    def test_models_of_the_hub_in_the_cache(self, complete, monkeypatch):
        models = [type("Model", (), {"repository": "google-t5/t5-small"})] * 2
        monkeypatch.setattr("mlx_transformer.cli.completion.cached_models", lambda: models)
        assert complete("generate", "--model", "goo") == [("plain", "google-t5/t5-small")]
        assert complete("cache", "--remove", "") == [("plain", "google-t5/t5-small")]
        assert complete("models", "remove", "") == [("plain", "google-t5/t5-small")]

    def test_known_models_and_the_commands_for_them(self, complete):
        assert complete("models", "download", "facebook/m2m100_4") == [("plain", "facebook/m2m100_418M")]
        assert [name for _, name in complete("models", "")] == ["search", "download", "list", "remove"]
        assert ("plain", "grammar") in complete("models", "--task", "")
