"""The command train: what it names where something is missing, its bar, its JSON."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import mlx_transformer as mt
from mlx_transformer.cli import main
from tests.cli.test_commands import ENTRIES
from tests.cli.test_commands import TestTrain as Original


class TestTrain:
    configs = Original.configs

    def test_a_run_goes_on_with_options_of_a_file(self, configs):
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
        ("arguments", "told"),
        [
            ("", "Missing --train, --valid, --output"),
            ("--train a --output new", "Missing --valid"),
            ("--train a --valid b", "Missing --output"),
            ("--resume", "Missing --output"),
        ],
    )
    def test_what_is_missing_is_named(self, configs, arguments, told):
        result = CliRunner().invoke(main, ["train", *arguments.split()])
        assert result.exit_code == 2 and f"{told}: only --resume works without --train and --valid." in result.output
        assert configs == []

    def test_a_resumed_run_says_from_where_and_how_to_go_on(self, monkeypatch):
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

    def test_the_bar_of_a_terminal_begins_where_the_run_does_and_is_closed(self, monkeypatch):
        bars = []

        def fake(config, report):
            for step in (6, 8):
                report(ENTRIES[1] | {"step": step, "steps": 10})
            bars.append(report.bar)
            raise ValueError("lost")

        monkeypatch.setitem(vars(mt), "train", fake)
        monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True, raising=False)
        result = CliRunner().invoke(main, ["train", "--train", "a", "--valid", "b", "--output", "run"])
        (bar,) = bars
        assert (bar.initial, bar.n, bar.total, bar.disable) == (6, 8, 10, True), result.output
