"""Every command that reads text reads the same kinds of files, and names the encoding of others."""

import codecs
import gzip
import json

import pytest
from support.command_line import error_line

from mlx_transformer.training.run_directory import read_options_file

LINES = ["One café", "two", "drei"]
KINDS = {
    "plain": lambda text: text.encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
    "mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "old Mac": lambda text: text.replace("\n", "\r").encode(),
    "all": lambda text: gzip.compress(codecs.BOM_UTF8 + text.replace("\n", "\r").removesuffix("\r").encode()),
}
FOREIGN = {
    "UTF-16": ("\ufeff" + "Ça va\tBien\n" * 5).encode("utf-16-le"),
    "UTF-16BE": ("Ça va\tBien\n" * 5).encode("utf-16-be"),
    "UTF-32LE": ("Ça va\tBien\n" * 5).encode("utf-32-le"),
    "WINDOWS-1252": ("Ça va\tBien\n" * 5).encode("latin-1"),
}


def arguments(command, folder, suffix, encode):
    """Write the files that a command reads; returns its options."""
    columns = {"source": LINES, "target": [line.upper() for line in LINES]}
    columns["pairs"] = ["\t".join(pair) for pair in zip(*columns.values(), strict=True)]
    files = {name: folder / f"{name}{suffix}" for name in columns}
    for name, path in files.items():
        path.write_bytes(encode("".join(f"{line}\n" for line in columns[name])))
    return [option.format(**files) for option in command]


COMMANDS = {
    "generate": ["generate", "--input", "{source}"],
    "score": ["score", "--input", "{pairs}"],
    "score two files": ["score", "--source", "{source}", "--target", "{target}"],
    "evaluate": ["evaluate", "--json", "{pairs}"],
    "evaluate two files": ["evaluate", "--json", "{source}::{target}"],
    "evaluate lines": ["evaluate", "--json", "--sources", "{source}", "--references", "{target}"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_command_reads_every_kind_of_text_file(echo, tmp_path, command, kind):
    suffix = ".gz" if kind in ("gzip", "all") else ".txt"
    printed = echo(*arguments(COMMANDS[command], tmp_path, suffix, KINDS[kind])).stdout
    if command == "generate":
        assert printed.splitlines() == [line.upper() for line in LINES]
    elif command.startswith("score"):
        assert printed.splitlines() == [f"-{2 * len(line)}.0000" for line in LINES]
    else:
        figures = json.loads(printed)
        assert (figures["sentences"], figures["exact_match"]) == (3, 1)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("encoding", FOREIGN)
def test_every_command_names_the_encoding_and_iconv(echo, tmp_path, command, encoding):
    result = echo(*arguments(COMMANDS[command], tmp_path, ".txt", lambda text: FOREIGN[encoding]), status=1)
    assert f"seems to be in {encoding}: convert it with iconv -f {encoding} -t UTF-8." in error_line(result)
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["generate", "score"])
def test_standard_input_in_another_encoding(echo, command):
    for encoding, content in FOREIGN.items():
        result = echo(command, stdin=content, status=1)
        assert f"Standard input must be text in UTF-8, but seems to be in {encoding}" in error_line(result)
    result = echo(command, stdin=gzip.compress(b"a\tb\n"), status=1)
    assert "Standard input must be text, but is gzip data: decompress it" in error_line(result)


def test_options_of_a_run_may_have_any_line_ends_and_a_mark(tmp_path):
    path = tmp_path / "options.toml"
    for encode in KINDS.values():
        if (content := encode('steps = 5\npreset = "tiny"\n'))[:2] != b"\x1f\x8b":
            path.write_bytes(content)
            assert read_options_file(path) == {"steps": 5, "preset": "tiny"}
    path.write_bytes("steps = 5\n".encode("utf-16"))
    with pytest.raises(ValueError, match="options.toml must be text in UTF-8, but seems to be in UTF-16: .* iconv"):
        read_options_file(path)
