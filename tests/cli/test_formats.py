"""The formats of input and output are chosen apart from one another."""

import json

import pytest
from support.command_line import error_line

LINES = {"text": b"one\n", "json": b'{"id": 7, "text": "one"}\n'}


@pytest.mark.parametrize("source", ["text", "json"])
@pytest.mark.parametrize("target", ["text", "json"])
@pytest.mark.parametrize("both", [True, False])
def test_formats_of_input_and_output(echo, source, target, both):
    options = ["--json"] * both
    options += ["--input-format", source] if not both or source == "text" else []
    options += ["--output-format", target] if not both or target == "text" else []
    output = echo("generate", *options, stdin=LINES[source]).stdout
    if target == "text":
        assert output == "ONE\n"
    else:
        result = json.loads(output)
        assert result["text"] == "ONE" and result.get("id") == (7 if source == "json" else None)


def test_errors_of_lines_stand_where_the_output_format_has_room(echo):
    result = echo("generate", "--input-format", "json", stdin=b"nothing\n", status=1)
    assert result.stdout == "\n" and "Line 1 must be JSON" in result.stderr and "--input-format text" in result.stderr
    result = echo("generate", "--output-format", "json", stdin=b"\xff\n", status=1)
    assert "Line 1 must be valid UTF-8" in json.loads(result.stdout)["error"]


def test_json_cannot_be_streamed_but_read(echo):
    for options in (["--json"], ["--output-format", "json"]):
        assert f"leave out {' '.join(options)}." in error_line(echo("generate", "--stream", *options, "one", status=2))
    assert echo("generate", "--stream", "--input-format", "json", stdin=LINES["json"]).stdout == "ONE\n"
