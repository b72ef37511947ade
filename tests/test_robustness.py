"""The command line with long inputs, many lines, odd characters, terminals and memory limits."""

import contextlib
import fcntl
import json
import os
import pty
import random
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from mlx.utils import tree_map
from support import echo_model
from support.paths import ROOT

import mlx_transformer as mt
from mlx_transformer.cli import main, run_stats
from mlx_transformer.cli.input_lines import InputLine
from mlx_transformer.cli.results import LineResult
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.inference.source_lines import SourceLine

CONTROLS = (
    "nul\x00 escape\x1b[2J return\r feed\x0b\x0c separators\x1c\x1e next\x85 line\u2028 paragraph\u2029 mark\ufeff."
)
WORDS = ["a", "short", "line", "of", "words", "and", "one", "that", "is", "longer"]
LONG = 100_000  # characters


@pytest.fixture(autouse=True)
def uncompiled():
    """Compilation is disabled, because it takes seconds and does not matter here."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module")
def tiny():
    """A tiny untrained model whose targets depend on the source, with its tokenizer."""
    mx.random.seed(0)
    tokenizer = mt.Tokenizer.train([" ".join(WORDS)] * 3, [" ".join(WORDS)], 300)
    stack = mt.StackConfig(num_layers=1, num_heads=1, mlp_dims=16, max_length=40)
    size = tokenizer.source_vocab_size
    model = mt.Transformer(mt.ModelConfig(size, size, dims=16, encoder=stack, decoder=stack))
    model.update(tree_map(lambda array: array + 0.5 * mx.random.normal(array.shape), model.parameters()))
    model.eval()
    return model, tokenizer


@pytest.fixture
def generate(tiny, monkeypatch):
    """Run `generate` in this process with the tiny model; returns standard output and standard error."""
    monkeypatch.setitem(vars(mt), "load", lambda *arguments, **options: tiny)

    def run(*arguments, stdin="", status=0):
        result = CliRunner().invoke(main, ["generate", "--max-tokens", "3", *map(str, arguments)], input=stdin.encode())
        assert result.exit_code == status, (result.output, result.exception)
        return result.stdout_bytes.decode(), result.stderr

    return run


@pytest.fixture
def echo(monkeypatch):
    """Run `generate` in this process with the fake model."""
    echo_model.install(monkeypatch.setitem)

    def run(*arguments, stdin="", status=0):
        result = CliRunner().invoke(main, ["generate", *map(str, arguments)], input=stdin.encode())
        assert result.exit_code == status, (result.output, result.exception)
        return result.stdout_bytes.decode(), result.stderr

    return run


def prose(characters):
    generator = random.Random(0)
    text = ""
    while len(text) < characters:
        text += " ".join(generator.choices(WORDS, k=generator.randint(2, 9))).capitalize() + ". "
    return text[:characters]


class TestOddLines:
    @pytest.mark.parametrize("options", [(), ("--split-sentences",), ("--json",), ("--split-sentences", "--json")])
    def test_one_output_line_per_input_line(self, generate, options):
        texts = [
            CONTROLS,
            "",
            " \t",
            "\r",
            "\x00",
            "\u2028",
            "\x85 \x85",
            "\u200b",
            "a line.\x0bA line.",
            "one" + "\x1c" * 99,
        ]
        as_json = "--json" in options
        stdin = "".join(f"{json.dumps(text) if as_json else text}\n" for text in texts)
        printed, message = generate(*options, stdin=stdin)
        rows = printed.removesuffix("\n").split("\n")
        assert len(rows) == len(texts) and printed.endswith("\n")
        assert "Traceback" not in message
        if as_json:
            assert all(json.loads(row)["finish_reason"] in ("stop", "length") for row in rows)

    def test_control_characters_pass_through(self, echo):
        for options in ((), ("--split-sentences",)):
            assert echo(*options, stdin=f"{CONTROLS}\nx\n")[0] == f"{CONTROLS.upper()}\nX\n"


class TestLongLines:
    @pytest.mark.parametrize("text", [prose(LONG), "word " * (LONG // 5), "x" * LONG, "長" * LONG, "… " * LONG])
    def test_long_line_is_truncated_quickly_with_a_warning(self, generate, text):
        start = time.process_time()
        printed, message = generate(stdin=f"{text}\na line\n")
        assert (
            printed.count("\n") == 2
            and message
            == "Warning: Line 1 is longer than the model can read and was cut: shorten it, or give --split-sentences.\n"
        )
        assert time.process_time() - start < 5

    def test_white_space_does_not_make_a_line_too_long(self, generate):
        for space in (" ", "\u00a0", "\u200b"):
            printed, message = generate(stdin=f"{space * LONG}a line\na line\n")
            assert message == "" and len(set(printed.splitlines())) == 1

    def test_split_sentences_reads_the_whole_line(self, generate, tiny):
        """Every sentence gives the text that it gives on its own."""
        text = prose(20_000)
        start = time.process_time()
        printed, message = generate("--split-sentences", "--json", stdin=f"{json.dumps(text)}\n")
        assert time.process_time() - start < 20
        found = json.loads(printed)
        assert message == "" and not found["truncated"]
        assert " ".join(part["source"] for part in found["sentences"]) == text.strip()
        assert " ".join(part["text"] for part in found["sentences"]) == found["text"].strip()
        assert [token for part in found["sentences"] for token in part["tokens"]] == found["tokens"]
        sources = [part["source"] for part in found["sentences"][:5]]
        alone, _ = generate(stdin="".join(f"{source}\n" for source in sources))
        assert alone == "".join(part["text"].replace("\n", " ") + "\n" for part in found["sentences"][:5])

    def test_source_prefix_counts_in_sentence_length(self, generate):
        arguments = ("--split-sentences", "--strict", "--source-prefix", "one two three four five: ")
        assert generate(*arguments, stdin=f"{prose(500)}\n{'x' * 30}\n")[1] == ""

    def test_word_of_a_hundred_thousand_letters(self, generate):
        start = time.process_time()
        printed, message = generate("--split-sentences", "--strict", stdin="x" * LONG + "\n")
        assert printed.count("\n") == 1 and message == ""
        assert time.process_time() - start < 20


class TestManyLines:
    def test_read_ahead_is_limited(self, tiny):
        read = given = furthest = 0

        def lines():
            nonlocal read
            for number in range(10_000):
                read += 1
                yield WORDS[number % 10]

        for _ in mt.generate_hypotheses(*tiny, lines(), mt.SearchConfig(max_tokens=1)):
            given += 1
            furthest = max(furthest, read - given + 1)
        assert given == 10_000 and furthest < 5_000


class TestSplit:
    def test_white_space_is_kept(self, echo):
        text = "  One. Two!  Three?\tFour \n\n \nMr. Five.\u3000"
        assert echo("--split-sentences", stdin=f"{text}\n")[0] == f"{text.upper()}\n"

    def test_each_sentence_is_searched_separately(self, echo):
        printed, _ = echo("--split-sentences", "--source-prefix", ">", stdin="One. Two.  Three.\n\nFour.\n")
        assert printed == ">ONE. >TWO.  >THREE.\n>\n>FOUR.\n"

    def test_json(self, echo):
        (line,) = echo("--split-sentences", "--json", stdin='{"id": 1, "text": "One. Two."}\n')[0].splitlines()
        parts = [
            {"source": text, "text": text.upper(), "score": -0.5, "tokens": list(text.upper())}
            for text in ("One.", "Two.")
        ]
        ended = {"finish_reason": "stop", "truncated": False, "too_short": False}
        assert json.loads(line) == {
            "id": 1,
            "text": "ONE. TWO.",
            "score": -1.0,
            "tokens": list("ONE.TWO."),
            "sentences": [part | ended for part in parts],
            **ended,
        }

    def test_languages_of_each_line(self, echo):
        lines = [{"text": "A. B."}, {"text": "C.", "source_language": "de"}, {"text": "D. E.", "target_language": "it"}]
        stdin = "".join(f"{json.dumps(line)}\n" for line in lines)
        printed, _ = echo(
            "--split-sentences", "--json", "--source-language", "en", "--target-language", "fr", stdin=stdin
        )
        texts = [json.loads(line)["text"] for line in printed.splitlines()]
        assert texts == ["en>fr A. B.", "de>fr C.", "en>it D. E."]

    def test_sentence_language_option(self, echo):
        text = "Am 3. Mai. Dann, d. h. Hr. Müller, ging er."
        for options, count in (((), 3), (("--sentence-language", "de"), 2), (("--source-language", "deu_Latn"), 2)):
            printed, _ = echo("--split-sentences", "--json", *options, stdin=f"{json.dumps(text)}\n")
            assert len(json.loads(printed)["sentences"]) == count

    def test_line_with_an_error_is_one_error_and_the_others_are_complete(self, echo):
        lines = [
            {"text": "One. Two."},
            {"text": "One.", "target_prefix": "x"},
            {"text": "Hm. ValueError: bad. No."},
            "A.",
        ]
        stdin = "".join(f"{json.dumps(line)}\n" for line in lines)
        printed, message = echo("--split-sentences", "--json", stdin=stdin, status=1)
        first, second, third, fourth = map(json.loads, printed.splitlines())
        assert (first["text"], fourth["text"]) == ("ONE. TWO.", "A.")
        assert second == {"error": "Line 2 cannot be split and have a target prefix: leave out one of them."}
        assert third == {"error": "Line 3: bad."}
        assert message == f'Error: 2 of the results have an "error"; the first: {second["error"]}\n'

    def test_several_hypotheses_are_rejected(self, echo):
        _, message = echo("--split-sentences", "--num-hypotheses", 2, "One.", status=2)
        assert "Error: --split-sentences gives one text per line: leave out --num-hypotheses." in message

    def test_best_of_several_hypotheses_is_used(self, echo):
        assert echo("--split-sentences", "--task", "shout", "One.")[0] == "hey: ONE.\n"

    def test_only_lines_longer_than_the_training_are_split_by_default(self, echo, monkeypatch):
        config = TokenizerConfig(max_sentence_tokens=11)
        monkeypatch.setattr(echo_model.EchoTokenizer, "config", config)
        stdin = '"  One.  Two. "\n" One.  Two.  "\n"One. Two.  "\n{"text": "One. Two. Three.", "target_prefix": "A"}\n'
        rows = [json.loads(line) for line in echo("--json", stdin=stdin)[0].splitlines()]
        assert [len(row.get("sentences", [])) for row in rows] == [2, 2, 0, 0]
        assert [row["text"] for row in rows] == ["  ONE.  TWO. ", " ONE.  TWO.  ", "ONE. TWO.  ", "AONE. TWO. THREE."]
        for options in (["--no-split-sentences"], ["--num-hypotheses", "2"]):
            assert "sentences" not in echo("--json", *options, stdin=stdin)[0]

    def test_results_that_are_too_short_are_reported(self, echo):
        printed, message = echo("--json", "--verbose", stdin='"One"\n"short"\n"short"\n')
        assert [json.loads(line)["too_short"] for line in printed.splitlines()] == [False, True, True]
        assert message.endswith("Much too short for their sources: Line 2, Line 3.\n")
        _, message = echo("--verbose", stdin="short\n" * 22)
        assert message.endswith(", Line 19, Line 20 and 2 more.\n")
        assert "too short" not in echo("--verbose", stdin="One\n")[1]


class TestTerminal:
    """The progress bar is drawn on terminals only, and never among results."""

    @staticmethod
    def shown(tmp_path, *arguments, **streams):
        """Return what a terminal shows while a command reads a file."""
        (tmp_path / "in").write_text("one\ntwo\n")
        terminal, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # without a width no bar is drawn
        streams = {"stdout": end, "stderr": end, "stdin": subprocess.DEVNULL} | streams
        command = [sys.executable, str(Path(echo_model.__file__)), "generate", "-i", str(tmp_path / "in"), *arguments]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **streams)
        os.close(end)
        output = b""
        # Linux tells the end of a terminal by an error.
        with contextlib.suppress(OSError):
            while chunk := os.read(terminal, 1 << 16):
                output += chunk
        os.close(terminal)
        assert process.wait() == 0
        return output.decode()

    def test_no_progress_bar_when_results_share_the_terminal(self, tmp_path):
        assert self.shown(tmp_path) == "ONE\r\nTWO\r\n"
        assert self.shown(tmp_path, "-o", "-") == "ONE\r\nTWO\r\n"

    def test_progress_bar_beside_redirected_results(self, tmp_path):
        with (tmp_path / "out").open("wb") as file:
            assert "2/2" in self.shown(tmp_path, stdout=file)
        assert (tmp_path / "out").read_text() == "ONE\nTWO\n"
        assert "2/2" in self.shown(tmp_path, "-o", str(tmp_path / "out"))

    def test_no_progress_bar_without_a_terminal(self, tmp_path):
        with (tmp_path / "log").open("wb") as log:
            assert self.shown(tmp_path, stderr=log) == "ONE\r\nTWO\r\n"
        assert (tmp_path / "log").read_bytes() == b""


class TestVerbose:
    def test_counts(self, echo):
        for options, sentences in (((), 2), (("--split-sentences",), 3)):
            printed, message = echo("--verbose", *options, stdin="One. Two.\n\nThree.\n")
            assert printed == "ONE. TWO.\n\nTHREE.\n"
            counts, memory = message.splitlines()
            assert counts.startswith(f"{sentences} sentences, ") and "tokens/s" in counts
            assert memory.startswith("MLX memory: ")

    def test_seconds_and_memory(self, monkeypatch):
        clock = iter([10.0, 10.5, 12.0])
        monkeypatch.setattr("time.perf_counter", lambda: next(clock))
        monkeypatch.setattr(mx, "get_active_memory", lambda: 2_000_000)
        monkeypatch.setattr(mx, "get_peak_memory", lambda: 1_234_000_000)
        counted = run_stats.RunStats(time.perf_counter())
        answer = LineResult(InputLine("Line 1", SourceLine("a"), {}), [mt.Hypothesis([1] * 1000, 0.0, "stop", "b")])
        assert list(counted.watch([answer, answer])) == [answer, answer]
        assert counted.lines() == (
            "2 sentences, 2,000 tokens in 2.00 s (1,000 tokens/s), first result after 0.50 s.\n"
            "MLX memory: 2 MB now, 1,234 MB at its peak."
        )

    def test_empty_input(self, echo):
        assert echo("--verbose")[1].startswith("0 sentences, 0 tokens")


class TestMemoryLimit:
    @pytest.fixture
    def limits(self, monkeypatch):
        """Fake memory limits of MLX with a cache of 1 GB."""
        now = {"memory": 8 * 10**9, "cache": 10**9}

        def setter(name):
            def set_limit(size):
                before, now[name] = now[name], size
                return before

            return set_limit

        monkeypatch.setattr(mx, "set_memory_limit", setter("memory"))
        monkeypatch.setattr(mx, "set_cache_limit", setter("cache"))
        return now

    @pytest.mark.parametrize(
        ("size", "memory", "cache"),
        [
            ("512MB", 512 * 10**6, 512 * 10**6),
            ("1.5gb", 1_500_000_000, 10**9),
            ("2 GiB", 2**31, 10**9),
            ("100k", 10**5, 10**5),
        ],
    )
    def test_sizes(self, echo, limits, size, memory, cache):
        assert echo("--memory-limit", size, "one")[0] == "ONE\n"
        assert limits == {"memory": memory, "cache": cache}

    @pytest.mark.parametrize("size", ["4", "0GB", "-1GB", "4XB", "GB", "", "1e3MB"])
    def test_invalid_sizes(self, echo, limits, size):
        _, message = echo("--memory-limit", size, "one", status=2)
        assert f"{size!r} must be a number above 0 with a unit, such as 512MB or 4GB." in message

    def test_low_memory_limit_does_not_change_results(self, generate):
        expected = generate(stdin="a line\n")
        memory, cache = mx.set_memory_limit(10**9), mx.set_cache_limit(10**6)
        try:
            assert generate("--memory-limit", "1KB", stdin="a line\n") == expected
            assert mx.set_memory_limit(10**9) == mx.set_cache_limit(10**6) == 1000
        finally:
            mx.set_memory_limit(memory)
            mx.set_cache_limit(cache)
