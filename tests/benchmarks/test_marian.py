"""The table of parity with Marian's forward pass."""

from click.testing import CliRunner

from benchmarks.marian import main


def test_every_decoder_and_format_is_compared():
    result = CliRunner().invoke(main, ["--sources", "1"])
    assert result.exit_code == 0, result.output
    rows = [
        line.split("|")
        for line in result.output.splitlines()
        if line.startswith(("| post-norm", "| pre-norm", "| SSRU"))
    ]
    assert len(rows) == 24 and all(float(row[4]) < 1e-3 for row in rows)
