"""Progress: a command says what it is doing when nothing else appears for a second."""

import io
import logging
import re
import time
from pathlib import Path

import mlx.core as mx
import pytest
import rich.live  # noqa: F401 (imported with the first drawing, which takes too long for these tests)
from click.testing import CliRunner
from support import echo_model

import mlx_transformer as mt
from mlx_transformer.cli import main, progress
from mlx_transformer.cli.progress import Bar, activity, describe_first_batch, terminal
from mlx_transformer.pretrained import loading

LIBRARY = logging.getLogger("mlx_transformer.training.trainer")
ERASED = "\x1b[2K"
LONG = 0.3  # seconds; longer than the delay of these tests


@pytest.fixture(autouse=True)
def short_delay(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(progress, "DELAY", 0.05)


class Terminal(io.StringIO):
    def __init__(self, terminal=True):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.fixture
def stderr(monkeypatch):
    def replace(terminal=True):
        stream = Terminal(terminal)
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    return replace


class TestActivity:
    def test_a_long_activity_of_the_library_is_shown_with_its_seconds_and_erased(self, stderr):
        stream = stderr()
        with activity.running():
            LIBRARY.info("Compiling")
            time.sleep(LONG)
            assert "Compiling (0 s)" in stream.getvalue()
        assert stream.getvalue().endswith(ERASED)

    def test_short_activities_that_follow_one_another_are_shown_after_the_delay(self, stderr):
        stream = stderr()
        with activity.running():
            for _ in range(30):
                activity.show("Reading")
                time.sleep(LONG / 30)
        assert "Reading (0 s)" in stream.getvalue()

    def test_nothing_is_shown_after_the_end_of_an_activity(self, stderr):
        stream = stderr()
        with activity.running():
            activity.show("Loading")
            activity.clear()
            time.sleep(LONG)
        assert stream.getvalue() == ""

    @pytest.mark.parametrize(("plain", "text"), [(True, "Reading\n"), (False, "")])
    def test_without_a_terminal_it_is_one_line_or_none(self, stderr, plain, text):
        stream = stderr(terminal=False)
        with activity.running():
            activity.plain = plain
            activity.show("Reading")
            time.sleep(LONG)
        assert stream.getvalue() == text

    def test_waiting_for_input_is_no_activity(self, stderr):
        def slow_input():
            for _ in range(2):
                time.sleep(LONG)
                yield "line"

        stream = stderr()
        with activity.running():
            activity.clear()
            for _ in activity.during(slow_input(), "Generating"):
                activity.clear()  # the result is written
        assert stream.getvalue() == ""

    def test_warnings_are_printed_once(self, stderr):
        stream = stderr()
        with activity.running():
            LIBRARY.warning("Careful")
        assert stream.getvalue() == "Warning: Careful\n"
        assert activity not in logging.getLogger("mlx_transformer").handlers

    def test_what_is_drawn_is_erased_although_standard_error_was_held_back(self, stderr):
        # As while a tokenizer is loaded: standard error is a pipe for a moment, to hold back reports of panics.
        stream = stderr()
        with activity.running():
            activity.show("Loading")
            time.sleep(LONG)
            stream.isatty = lambda: False
            time.sleep(LONG)
            stream.isatty = lambda: True
        assert stream.getvalue().endswith(ERASED)

    def test_a_dumb_terminal_is_not_drawn_on(self, stderr, monkeypatch):
        monkeypatch.setenv("TERM", "dumb")
        stream = stderr()
        with activity.running(), activity.bar(2, "lines"):
            activity.show("Loading")
            time.sleep(LONG)
        assert stream.getvalue() == ""


@pytest.mark.parametrize("width", [40, 80, 120, 160])
class TestBar:
    FIGURES = ["loss 3.214", "perplexity 24.9", "tokens/s 12,345", "rate 1.00e-03", "gradient 1.23", "memory 1.23GB"]

    @pytest.fixture
    def lines(self, width, monkeypatch):
        """The lines of a bar at 250 of 1,000 steps."""
        monkeypatch.setenv("COLUMNS", str(width))
        stream = Terminal()
        bar = Bar(1000, "steps")
        bar.update(250, self.FIGURES)
        monkeypatch.setattr(bar, "_time", lambda: "0:01:02 left")
        terminal(stream).print(bar)
        return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()

    def test_the_bar_takes_the_rest_of_the_width(self, lines, width):
        assert all(len(line) <= width for line in lines) and len(lines) == 2
        count, bar, share = lines[0].removesuffix(" 0:01:02 left").rsplit(" ", 2)
        assert (count, share) == ("250/1,000 steps", "25%") and set(bar) <= set("━╸╺")
        assert len(lines[0]) == width and len(bar) >= (20 if width >= 80 else 5)

    def test_figures_that_do_not_fit_are_left_out_as_a_whole(self, lines, width):
        shown = lines[1].strip().split("  ")
        assert shown[:2] == self.FIGURES[:2] and set(shown) <= set(self.FIGURES)
        assert (shown == self.FIGURES) == (width >= 120)


class TestLinesAndBars:
    def test_lines_are_printed_above_the_bar_which_stays_at_the_end(self, stderr, capsys):
        stream = stderr()
        with activity.running():
            with activity.bar(2, "lines") as bar:
                time.sleep(LONG)
                activity.print_line("Warning: short", err=True)
                bar.update(2)
        text = stream.getvalue()
        before, after = text.split("Warning: short\n")
        assert "0/2 lines" in before and before.endswith(ERASED)
        assert "2/2 lines" in after and not after.rstrip().endswith(ERASED)
        assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is shown again

    def test_no_colour(self, monkeypatch):
        texts = []
        for value in (None, "1"):
            monkeypatch.delenv("NO_COLOR", raising=False)
            if value:
                monkeypatch.setenv("NO_COLOR", value)
            stream = Terminal()
            terminal(stream).print(Bar(2, "lines", done=1))
            texts.append(stream.getvalue())
        colour = re.compile(r"\x1b\[[0-9;]*3\d")
        assert colour.search(texts[0]) and not colour.search(texts[1])


@pytest.mark.parametrize(
    ("system", "cold", "text"),
    [("linux", True, "first run on this machine"), ("linux", False, "first batch"), ("darwin", True, "first batch")],
)
def test_a_cold_first_run_says_so(tmp_path, monkeypatch, system, cold, text):
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if not cold:
        (tmp_path / "mlx" / "1.0" / "cpu").mkdir(parents=True)
        (tmp_path / "mlx" / "1.0" / "cpu" / "kernel.so").write_bytes(b"")
    assert text in describe_first_batch("Generating")


@pytest.fixture
def invoke(monkeypatch):
    """Runs a command on a terminal, with slow functions of the library."""
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True, raising=False)

    def slow(module, name):
        function = getattr(module, name)

        def call(*arguments, **options):
            time.sleep(LONG)
            return function(*arguments, **options)

        monkeypatch.setitem(vars(module), name, call)

    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments], input="a\tA\n")

    echo_model.install(monkeypatch.setitem)
    monkeypatch.setitem(vars(mt), "train", lambda *arguments, **options: "best")
    for name in ("load", "generate_hypotheses", "score", "convert", "train"):
        slow(mt, name)
    slow(loading, "load_path")  # the command info loads with the facts of the folder
    return run


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("generate", "one"), ("Loading the bundled model", "Generating; the first ")),
        (("generate", "--stream", "one"), ("Loading the bundled model",)),
        (("score",), ("Loading the bundled model", "Scoring; the first ")),
        (("evaluate", "dates:test"), ("Loading the bundled model", "Generating; the first ")),
        (("attention", "one", "-o", "a.svg"), ("Loading the bundled model",)),
        (("info",), ("Loading the bundled model",)),
        (("convert", "absent.pt", "new"), ("Converting absent.pt",)),
        (("train", "--train", "dates", "--valid", "dates", "--output", "run"), ("Starting",)),
    ],
    ids=lambda value: value[0] if value[0].islower() else "",
)
def test_every_command_says_what_it_is_doing(invoke, tmp_path, monkeypatch, arguments, texts):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    for text in texts:
        assert text in result.stderr


class TestTraining:
    """The bar of training appears before the first step, which may take a minute."""

    STEP = {"loss": 1.0, "perplexity": 2.7, "tokens_per_second": 9.0, "learning_rate": 1e-3, "gradient_norm": 1.0}

    @pytest.fixture
    def train(self, monkeypatch):
        """Trains on a terminal from a step to the last of 100, and waits before its first log entry about steps."""

        def replace(step):
            def run(config, report):
                shared = {"step": step, "steps": 100}
                report({"event": "start", "parameters": 5, "pairs": 7} | shared)
                LIBRARY.info("Compiling the first step")
                time.sleep(LONG)
                if step < 100:
                    report(
                        {"event": "step", "memory": 1, "seconds_left": 1.0} | self.STEP | shared | {"step": step + 20}
                    )
                    time.sleep(LONG)
                return "best"

            monkeypatch.setitem(vars(mt), "train", run)
            monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True, raising=False)
            return CliRunner().invoke(main, ["train", "--train", "a", "--valid", "a", "--output", "run"]).stderr

        return replace

    @pytest.mark.parametrize("step", [0, 40])
    def test_the_bar_is_there_while_the_first_step_is_compiled(self, train, step):
        before, after = train(step).split(f"{step + 20}/100 steps", 1)
        assert f"{step}/100 steps" in before and "Compiling the first step" in before
        assert "loss 1.000" in after and "Compiling" not in after

    def test_a_run_without_further_steps_has_no_bar(self, train):
        assert "100/100 steps" not in train(100)


def test_the_time_left_does_not_count_the_compilation(monkeypatch):
    clock = iter([0, 60, 70])  # 10 seconds for 10 steps, after a minute
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    bar = Bar(100, "steps")
    bar.update(20)
    bar.start_clock()
    bar.update(30)
    assert bar._time() == "0:01:10 left"


def test_training_says_what_it_is_doing_before_its_first_step(tmp_path, caplog):
    caplog.set_level("INFO", logger="mlx_transformer")
    options = {"num_layers": 1, "dims": 64, "mlp_dims": 64, "steps": 3, "batch_tokens": 256, "valid_every": 3}
    Path(tmp_path / "pairs.tsv").write_text("un deux\tone two\n" * 20)
    spec = (str(tmp_path / "pairs.tsv"),)
    with mx.stream(mx.cpu):
        mt.train(mt.TrainingConfig(spec, spec, str(tmp_path / "run"), **options, bleu_sentences=0))
    texts = [record.message for record in caplog.records if record.levelname == "INFO"]
    assert texts == [
        "Reading the corpora",
        "Learning a vocabulary from 20 pairs",
        "Tokenising the corpora",
        "Compiling the first step",
        "Training; loss and speed are shown every 20 steps",
        "Validating",
    ]
