"""The command train: options, configuration files, progress and JSON."""

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.command_line import error_line

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.cli.commands import train
from mlx_transformer.cli.progress import activity
from mlx_transformer.config.training import TrainingConfig

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

    def test_progress_lines_of_a_run(self, monkeypatch):
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

    @pytest.mark.parametrize(("beams", "search"), [(1, "greedy search"), (4, "4 beams")])
    def test_the_search_of_validation_is_named(self, monkeypatch, beams, search):
        entry = ENTRIES[0] | {"search": {"beam_size": beams}}
        monkeypatch.setitem(vars(mt), "train", lambda config, report: report(entry))
        arguments = "train --train a.tsv --valid v.tsv --output run --bleu-sentences".split()
        line = f"validation translates up to 1,500 sentences with the model's {search}"
        assert line in CliRunner().invoke(main, [*arguments, "1500"]).output.splitlines()
        assert "translates" not in CliRunner().invoke(main, [*arguments, "0"]).output

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

    def test_command_line_overrides_the_config_file(self, configs):
        result = CliRunner().invoke(
            main, "train --config run/options.toml --output new --seed 5 --betas 0.8 0.9".split()
        )
        assert result.exit_code == 0, result.output
        own = {"preset": "tiny", "steps": 7, "seed": 5, "betas": (0.8, 0.9)}
        assert configs == [TrainingConfig(train=("a.tsv",), valid=("v.tsv",), output="new", **own)]

    def test_config_file_may_set_the_output(self, configs):
        result = CliRunner().invoke(main, "train --config run/options.toml".split())
        assert result.exit_code == 0 and configs[0].output == "moved"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("steps = ", "options.toml must be TOML, with a line `name = value` per option"),
            ("stepps = 3", "options.toml has unknown fields: stepps. Similar ones are steps"),
            ("steps = 'many'", "steps must be int, not 'many'"),
            ("output = 3\nresume = true", "output must be a string, the folder of the run, not 3"),
        ],
    )
    def test_bad_config_files_are_reported(self, configs, text, message):
        Path("run/options.toml").write_text(text)
        named = "" if text.startswith("output") else "--output new"
        arguments = f"train --config run/options.toml {named} --train a.tsv --valid b.tsv"
        result = CliRunner().invoke(main, arguments.split())
        assert result.exit_code == 1 and message in error_line(result)
        result = CliRunner().invoke(main, arguments.replace("options", "absent").split())
        assert result.exit_code == 1 and "The options file run/absent.toml does not exist" in error_line(result)

    def test_a_misspelt_required_option_is_named_as_unknown(self, configs):
        Path("run/options.toml").write_text('trian = ["a.tsv"]\nvalid = ["b.tsv"]\noutput = "new"\n')
        result = CliRunner().invoke(main, "train --config run/options.toml".split())
        assert result.exit_code == 1
        assert "run/options.toml has unknown fields: trian. Similar ones are train" in error_line(result)

    def test_parts_to_freeze_are_separated_by_commas(self, configs):
        arguments = "train --train a --valid b --output new --init model --freeze encoder,embeddings"
        CliRunner().invoke(main, arguments.split())
        assert configs[0].freeze == ("encoder", "embeddings")

    def test_resumed_run_uses_its_own_options(self, configs):
        result = CliRunner().invoke(main, "train --output run --resume --steps 9".split())
        assert result.exit_code == 0, result.output
        own = {"preset": "tiny", "steps": 9, "seed": 3, "resume": True}
        assert configs == [TrainingConfig(train=("a.tsv",), valid=("v.tsv",), output="run", **own)]

    def test_option_set_to_its_default_counts_as_given(self, configs):
        CliRunner().invoke(main, "train --output run --resume --steps 10000".split())
        assert configs[0].steps == TrainingConfig.steps

    def test_resuming_a_missing_run(self, tmp_path):
        result = CliRunner().invoke(main, ["train", "--resume", "--output", str(tmp_path / "absent")])
        assert result.exit_code == 1 and str(tmp_path / "absent") in error_line(result)

    def test_invalid_values_are_reported(self):
        arguments = "train --train dates --valid dates --output run --dropout 2"
        result = CliRunner().invoke(main, arguments.split())
        assert result.exit_code == 2 and "dropout must be at least 0 and below 1, not 2.0" in error_line(result)

    def test_resumed_run_reads_a_config_file(self, configs):
        Path("more.toml").write_text("keep = 5\nsteps = 8\n")
        result = CliRunner().invoke(main, "train --output run --resume --config more.toml --steps 9".split())
        assert result.exit_code == 0, result.output
        assert (configs[0].keep, configs[0].steps, configs[0].seed) == (5, 9, 3)

    def test_spaces_around_parts_to_freeze(self, configs):
        CliRunner().invoke(
            main, [*"train --train a --valid b --output new --init model --freeze".split(), "encoder, output,"]
        )
        assert configs[0].freeze == ("encoder", "output")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("", "Missing --train, --valid, --output"),
            ("--train a --output new", "Missing --valid"),
            ("--train a --valid b", "Missing --output"),
            ("--resume", "Missing --output"),
        ],
    )
    def test_missing_options_are_named(self, configs, arguments, message):
        result = CliRunner().invoke(main, ["train", *arguments.split()])
        assert result.exit_code == 2 and f"{message}: only --resume works without --train and --valid." in result.output
        assert configs == []

    def test_resumed_run_reports_its_step_and_how_to_resume(self, monkeypatch):
        def fake(config, report):
            report(ENTRIES[0] | {"step": 1500, "too_long": 0})
            report(ENTRIES[3])
            return Path("best")

        monkeypatch.setitem(vars(mt), "train", fake)
        result = CliRunner().invoke(main, ["train", "--train", "a", "--valid", "b", "--output", "my run"])
        assert result.output.splitlines()[:2] == [
            "1,234 parameters to train, 5 pairs, resumed at step 1,500",
            "Stopped and saved after step 3: resume with mlx-transformer train --output 'my run' --resume",
        ]

    def test_texts_in_json_are_readable(self, monkeypatch):
        monkeypatch.setitem(vars(mt), "train", lambda config, report: report({"event": "x", "text": "é"}))
        result = CliRunner().invoke(main, ["train", "--train", "a", "--valid", "b", "--output", "run", "--json"])
        assert result.output == '{"event": "x", "text": "é"}\n'

    def test_progress_bar_starts_at_the_resumed_step_and_is_closed(self, monkeypatch):
        bars = []

        def fake(config, report):
            report(ENTRIES[0] | {"step": 4, "steps": 10})
            for step in (6, 8):
                report(ENTRIES[1] | {"step": step, "steps": 10})
            bars.append(report.bar)
            assert activity._bar is report.bar
            raise ValueError("lost")

        monkeypatch.setitem(vars(mt), "train", fake)
        monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True, raising=False)
        result = CliRunner().invoke(main, ["train", "--train", "a", "--valid", "b", "--output", "run"])
        (bar,) = bars
        assert (bar._first, bar.done, bar.total) == (6, 8, 10) and activity._bar is None, result.output
        assert "8/10 steps" in result.stderr and "80%" in result.stderr
