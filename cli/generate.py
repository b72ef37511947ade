"""`generate`: text or JSON lines in, the model's hypotheses out, in order, as soon as they are there."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import click

import mlx_transformer as mt

WINDOW_BYTES = 1 << 20
EARLY_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}
DTYPES = ["float32", "float16", "bfloat16"]

model_option = click.option(
    "--model", "-m", metavar="MODEL", help="Model folder. Default: the bundled English-French model."
)
beam_option = click.option("--beam-size", type=int, help="Beams of the search; 1 is greedy. Default: the model's.")
penalty_option = click.option(
    "--length-penalty", type=float, help="Exponent of the length that divides a score. Default: the model's."
)
batch_option = click.option(
    "--batch-tokens", type=click.IntRange(min=1), help="Padded source tokens x beams in one batch."
)
dtype_option = click.option(
    "--dtype", type=click.Choice(DTYPES), help="Numbers to compute in. Default: the best for the device."
)


class Line(NamedTuple):
    """One line of input: what error messages call it, its text, and the JSON fields that go back with the result."""

    name: str
    text: str
    fields: dict[str, Any]


@click.command("generate", short_help="Lines in, hypotheses out.")
@click.argument("texts", metavar="[TEXT]...", nargs=-1)
@model_option
@click.option("--input", "-i", "source", type=click.Path(dir_okay=False), help="File to read; - is standard input.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, writable=True), help="File to write.")
@beam_option
@click.option("--num-hypotheses", type=int, help="Best hypotheses to give for each line. Default: the model's.")
@penalty_option
@click.option("--max-tokens", type=int, help="Most tokens to generate, the end token counted. Default: the model's.")
@click.option("--min-tokens", type=int, help="Fewest tokens to generate, the end token counted.")
@click.option("--early-stopping", type=click.Choice(list(EARLY_STOPPING)), help="When a beam search may end early.")
@batch_option
@click.option("--scores", is_flag=True, help="Write SCORE, a tab, then the text.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines in and out; see above.")
@click.option("--strict", is_flag=True, help="A source that is too long for the model is an error; else it is cut.")
@dtype_option
def command(
    texts: tuple[str, ...],
    model: str | None,
    source: str | None,
    output: str | None,
    batch_tokens: int | None,
    scores: bool,
    as_json: bool,
    strict: bool,
    dtype: str | None,
    **search: Any,
) -> None:
    """Generate from each TEXT, or from each line of --input or standard input.

    One line out for each line in, in order, blank lines kept; with --num-hypotheses N, N lines for each line in, best
    first (empty ones where the search found fewer). Only a newline separates lines. Standard input is answered as it
    arrives, a file in large windows. Scores are natural logarithms, divided by length ** length penalty.

    With --json an input line is a JSON string, or an object {"text": ..., "id": ...} whose "id", any value, may be left
    out and is handed back; a TEXT is plain. Each result is one line:

    \b
    {"id": ..., "text": ..., "score": ..., "tokens": [...], "finish_reason": "stop" or "length", "truncated": ...}
    {"id": ..., "hypotheses": [{"text": ..., ...}, ...]}       with --num-hypotheses 2 or more
    """  # noqa: D301 (click needs the backspace)
    check_paths(texts, source, output)
    network, tokenizer = mt.load(model, dtype=dtype)
    if tokenizer is None:
        raise ValueError(f"generate needs a model folder with a tokenizer: {model} has none.")
    config = search_config(network.search_defaults, search)
    options: dict[str, Any] = {"batch_tokens": batch_tokens} if batch_tokens else {}
    windows: Iterable[list[bytes]] = [[os.fsencode(text) for text in texts]] if texts else read_windows(source)
    lines = parse_windows(windows, as_json and not texts, "TEXT" if texts else "Line")

    def results() -> Iterator[bytes]:
        for window in lines:
            found = mt.generate_hypotheses(network, tokenizer, [line.text for line in window], config, **options)
            for line, hypotheses in zip(window, found, strict=True):
                if hypotheses[0].truncated:
                    tell_cut(line, strict)
                if as_json:
                    yield format_json(line, hypotheses, config.num_hypotheses, tokenizer)
                else:
                    yield format_text(hypotheses, config.num_hypotheses, scores)

    write(output, with_progress(results(), source))


def check_paths(texts: tuple[str, ...], source: str | None, output: str | None) -> None:
    """Refuse, before the model is loaded, what cannot work."""
    if texts and source is not None:
        raise click.UsageError("Give TEXT or --input, not both.")
    if source not in (None, "-"):
        Path(str(source)).open("rb").close()
    if output is None:
        return
    if not Path(output).absolute().parent.is_dir():
        raise FileNotFoundError(f"--output needs an existing folder: {Path(output).parent} is none.")
    if source not in (None, "-") and Path(output).exists() and os.path.samefile(str(source), output):
        raise ValueError(f"--output must be another file than --input: both are {output}.")


def search_config(defaults: mt.SearchConfig, given: dict[str, Any]) -> mt.SearchConfig:
    """The model's own search settings, with what the command line asks for."""
    changes = {name: value for name, value in given.items() if value is not None}
    if "early_stopping" in changes:
        changes["early_stopping"] = EARLY_STOPPING[changes["early_stopping"]]
    if "num_hypotheses" in changes and "beam_size" not in changes:
        changes["beam_size"] = max(defaults.beam_size, changes["num_hypotheses"])
    elif "beam_size" in changes and "num_hypotheses" not in changes:
        changes["num_hypotheses"] = min(defaults.num_hypotheses, max(1, changes["beam_size"]))
    return dataclasses.replace(defaults, **changes)


def read_windows(source: str | None) -> Iterator[list[bytes]]:
    """Lines of a file or of standard input: all that one read gives, so whoever types gets an answer to each line."""
    if source in (None, "-"):
        if sys.stdin.isatty():
            click.echo("Reading lines from the terminal; Ctrl-D ends.", err=True)
        yield from split_lines(sys.stdin.buffer)
    else:
        with Path(str(source)).open("rb") as file:
            yield from split_lines(file)


def split_lines(stream: Any) -> Iterator[list[bytes]]:
    """The complete lines that have arrived, at least one at a time; the last line may lack its newline."""
    rest = b""
    while chunk := stream.read1(WINDOW_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
    if rest:
        yield [rest]


def parse_windows(windows: Iterable[list[bytes]], as_json: bool, noun: str) -> Iterator[list[Line]]:
    """Decode each line, counting from 1."""
    parse: Callable[[str, str], Line] = parse_json if as_json else lambda name, text: Line(name, text, {})
    numbers = itertools.count(1)
    for window in windows:
        yield [parse(name, decode(name, line)) for line in window for name in [f"{noun} {next(numbers)}"]]


def decode(name: str, line: bytes) -> str:
    """UTF-8 without the byte order mark and the carriage return that files from Windows have."""
    try:
        text = line.decode("utf-8-sig" if name == "Line 1" else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} must be valid UTF-8: byte {error.start + 1} is {line[error.start]:#04x}. Convert it with iconv."
        ) from error
    return text.removesuffix("\r")


def parse_json(name: str, line: str) -> Line:
    """A JSON string, or an object with "text" and perhaps "id"; a blank line is a blank text."""
    try:
        value = json.loads(line) if line.strip() else ""
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name} must be JSON: {error.msg} at column {error.colno}. Leave out --json for text."
        ) from error
    fields = {"text": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise ValueError(f'{name} must be a JSON string or an object with a string "text": got {line:.60}.')
    if unknown := sorted(fields.keys() - {"text", "id"}):
        raise ValueError(f'{name} may have "text" and "id", no other names: got {", ".join(unknown)}.')
    text = fields.pop("text")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f'{name} must be Unicode text: its "text" holds half of a surrogate pair.')
    return Line(name, text, fields)


def tell_cut(line: Line, strict: bool) -> None:
    """Say on standard error that the model did not see the whole source, or make it an error."""
    from tqdm import tqdm

    fault = f"{line.name} is longer than the model can read"
    if strict:
        raise ValueError(f"{fault}: shorten or split it, or leave out --strict to have it cut.")
    tqdm.write(f"Warning: {fault} and was cut; --strict makes this an error.", file=sys.stderr)


def format_text(hypotheses: list[mt.Hypothesis], count: int, scores: bool) -> bytes:
    """`count` lines; a newline inside a text would break the count, so it becomes a space."""
    texts = [(hypothesis.text or "").replace("\n", " ") for hypothesis in hypotheses]
    if scores:
        texts = [f"{hypothesis.score:.4f}\t{text}" for hypothesis, text in zip(hypotheses, texts, strict=True)]
    texts += [""] * (count - len(texts))
    return "".join(f"{text}\n" for text in texts).encode("utf-8", "replace")


def format_json(line: Line, hypotheses: list[mt.Hypothesis], count: int, tokenizer: mt.Tokenizer) -> bytes:
    """One line; the single best hypothesis lies flat in the object, an n-best list under "hypotheses"."""
    rows = [
        {
            "text": hypothesis.text,
            "score": hypothesis.score,
            "tokens": tokenizer.tokens(hypothesis.ids),
            "finish_reason": hypothesis.finish_reason,
            "truncated": hypothesis.truncated,
        }
        for hypothesis in hypotheses
    ]
    result = line.fields | (rows[0] if count == 1 else {"hypotheses": rows})
    return (json.dumps(result, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def with_progress(results: Iterable[bytes], source: str | None) -> Iterable[bytes]:
    """A bar on standard error where that is a terminal and the number of lines is known."""
    if source in (None, "-") or not Path(str(source)).is_file() or not sys.stderr.isatty():
        return results
    from tqdm import tqdm

    with Path(str(source)).open("rb") as file:
        total = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(WINDOW_BYTES), b""))
    bar: Iterable[bytes] = tqdm(results, total=total, unit=" lines", file=sys.stderr)
    return bar


def write(output: str | None, results: Iterable[bytes]) -> None:
    """Write and flush each result; a file is opened when the first is there, so a failure before leaves it alone."""
    if output is None:
        copy(results, sys.stdout.buffer)
        return
    results = iter(results)
    first = list(itertools.islice(results, 1))
    with Path(output).open("wb") as file:
        copy(itertools.chain(first, results), file)


def copy(results: Iterable[bytes], stream: BinaryIO | io.BufferedWriter) -> None:
    """Write each result as it comes."""
    for result in results:
        stream.write(result)
        stream.flush()
