"""Progress: a command says what it is doing when nothing else appears for a second."""

import io
import logging
import time
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support import echo_model

import mlx_transformer as mt
from mlx_transformer.cli import main, progress
from mlx_transformer.cli.progress import activity

LIBRARY = logging.getLogger("mlx_transformer.training.trainer")
LONG = 0.3  # seconds; longer than the delay of these tests


@pytest.fixture(autouse=True)
def short_delay(monkeypatch):
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
            assert "\rCompiling (0 s)" in stream.getvalue()
        *_, last = filter(None, stream.getvalue().split("\r"))
        assert not last.strip()

    def test_short_activities_that_follow_one_another_are_shown_after_the_delay(self, stderr):
        stream = stderr()
        with activity.running():
            for _ in range(30):
                activity.show("Reading")
                time.sleep(LONG / 30)
        assert "\rReading (0 s)" in stream.getvalue()

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


@pytest.fixture
def invoke(monkeypatch):
    """Runs a command on a terminal, with slow functions of the library."""
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: True, raising=False)

    def slow(name):
        function = getattr(mt, name)

        def call(*arguments, **options):
            time.sleep(LONG)
            return function(*arguments, **options)

        monkeypatch.setitem(vars(mt), name, call)

    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments], input="a\tA\n")

    echo_model.install(monkeypatch.setitem)
    monkeypatch.setitem(vars(mt), "train", lambda *arguments, **options: "best")
    for name in ("load", "generate_hypotheses", "score", "convert", "train"):
        slow(name)
    return run


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("generate", "one"), ("Loading the bundled model", "Generating; the first batch compiles")),
        (("generate", "--stream", "one"), ("Loading the bundled model",)),
        (("score",), ("Loading the bundled model", "Scoring; the first batch compiles")),
        (("evaluate", "dates:test"), ("Loading the bundled model", "Generating; the first batch compiles")),
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
        assert f"\r{text}" in result.stderr


def test_training_says_what_it_is_doing_before_its_first_step(tmp_path, caplog):
    caplog.set_level("INFO", logger="mlx_transformer")
    options = {"num_layers": 1, "dims": 64, "mlp_dims": 64, "steps": 1, "batch_tokens": 256, "valid_every": 1}
    Path(tmp_path / "pairs.tsv").write_text("un deux\tone two\n" * 20)
    spec = (str(tmp_path / "pairs.tsv"),)
    with mx.stream(mx.cpu):
        mt.train(mt.TrainingConfig(spec, spec, str(tmp_path / "run"), **options, bleu_sentences=0))
    texts = [record.message for record in caplog.records if record.levelname == "INFO"]
    assert texts == [
        "Reading the corpora",
        "Learning a vocabulary from 20 pairs",
        "Tokenising the corpora",
        "Compiling the model and training the first steps; progress is shown after 20",
        "Validating",
    ]
