"""Tests of the command that measures generation."""

from click.testing import CliRunner

from benchmarks import generate


def test_batches_are_comma_separated_integers():
    assert generate.parse_integers(None, None, "1,16") == [1, 16]
    result = CliRunner().invoke(generate.main, ["--batches", "1,x"])
    assert result.exit_code == 2 and "comma-separated integers" in result.output


def test_a_failed_part_does_not_stop_the_others():
    def fail():
        raise ValueError("no model")

    assert "no model" in generate.try_part(fail).text
