"""What the README tells a newcomer to type works, and gives what the README says."""

import contextlib
import ctypes.util
import io
import json
import os
import re
import shlex
import subprocess
import sys

import mlx.core as mx
import pytest
import tokenizers
from click.testing import CliRunner
from conftest import ROOT
from mlx.utils import tree_flatten
from support.hub_server import Hub
from support.texts import CORPUS
from support.tiny_checkpoints import nllb, opus_mt, t5

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.cli.commands import generate, train
from mlx_transformer.pretrained import hub
from mlx_transformer.pretrained.loading import BUNDLED_MODEL
from mlx_transformer.training.run_directory import RunDirectory
from mlx_transformer.weights.families.huggingface import FAMILIES

README = (ROOT / "README.md").read_text()
bundled = pytest.mark.skipif(not (BUNDLED_MODEL / "config.json").exists(), reason="the bundled model is not here")


def section(heading: str) -> str:
    """What stands under a heading, up to the next of its level."""
    level = heading.split()[0]
    return README.split(f"\n{heading}", 1)[1].split(f"\n{level} ", 1)[0]


def block(heading: str, language: str) -> str:
    """The first code block in a language under a heading."""
    return re.search(rf"```{language}\n(.*?)```", section(f"## {heading}"), re.DOTALL)[1]


def run(arguments: list[str]) -> str:
    """What a command of ours prints."""
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@bundled
def test_the_first_command_gives_the_sentence_that_the_readme_shows():
    arguments = shlex.split(block("Start", "console"))
    command = arguments[arguments.index(".venv/bin/mlx-transformer") + 1 :]
    shown = re.search(r"It answers `(.+?)`", README)[1]
    assert command == ["generate", "Where is the station?"]
    assert run(command) == shown + "\n"


@bundled
def test_the_library_block_runs():
    code = block("In your app", "python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    first, *rest = printed.getvalue().splitlines()
    assert (
        first.startswith("Je ")
        and first.endswith("aime.")
        and len(rest) == 2
        and all(line.count("(") == 2 for line in rest)
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


@bundled
def test_the_searches_print_what_stands_beside_them():
    lines = block("What a search can do", "console").splitlines()
    commands = [line.partition("   #")[0].split(" | ") for line in lines]
    printed = []
    for *before, command in commands:
        stdin = re.search("printf '(.*)'", before[0])[1].replace("\\t", "\t").replace("\\n", "\n") if before else None
        arguments = shlex.split(command.partition(" # ")[0])
        result = CliRunner().invoke(main, arguments[1:], input=stdin, catch_exceptions=False)
        assert arguments[0] == "mlx-transformer" and result.exit_code == 0, result.output
        printed.append(result.stdout.splitlines())
    best, drawn, streamed, begun, others, aligned, score = printed
    assert len(best) == 2 and best[0].startswith("-0.1423\tOù se trouve")
    assert drawn[0].endswith("?") and len(streamed) == 1
    assert all(text.startswith("Je suis") for text in begun + others) and len(set(others)) == 4
    assert aligned[0].endswith("\t0-0 1-1 2-2 3-3 4-4")
    assert score == ["-1.8598"]


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "linux" and not ctypes.util.find_library("openblas"), reason="without OpenBLAS this takes an hour"
)
def test_the_training_block_learns_dates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = block("Train your own", "console").replace("\\\n", " ").splitlines()
    train, evaluate, generate = [shlex.split(line)[1:] for line in lines]
    assert len(block("Train your own", "console").splitlines()) <= 5
    run(train)
    scores = run(evaluate)
    assert float(re.search(r"exact\D+([\d.]+)", scores)[1]) >= 99, scores
    assert run(generate) == "1987-03-03\n"


def test_every_way_to_train_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = section("## Train your own").replace("\\\n", " ")
    commands = re.findall(r"^mlx-transformer (train .*)$", text, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        _, *arguments = shlex.split(command)
        context = train.command.make_context("train", arguments)
        given = {name: value for name, value in context.params.items() if train.is_given(context, name)}
        if not given.get("resume"):
            assert train.make_training_config(given).output == given["output"]


@bundled
def test_pictures_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RunDirectory("runs/dates").folder.mkdir(parents=True)
    entries = [{"event": "step", "step": step, "loss": 5 / step} for step in (1, 2)]
    RunDirectory("runs/dates").log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    commands = re.findall(r"^mlx-transformer ((?:plot|attention) .*)$", README, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        run(shlex.split(command))
        assert (tmp_path / shlex.split(command)[-1]).read_text().lstrip().startswith("<?xml")
    for name in re.findall(r'<img src="(.+?)"', README):
        assert (ROOT / name).is_file()


def test_the_table_of_models_is_complete_and_its_commands_can_be_typed():
    rows = re.findall(r"^\| (?!family|--)(.+?) \| (.+?) \|$", section("## Models to try"), re.MULTILINE)
    names = " ".join(name for name, _ in rows).lower()
    assert [name for name in FAMILIES if {"torch": "nn.transformer"}.get(name, name) not in names] == []
    commands = [shlex.split(re.match("`(.+?)`", text)[1]) for _, text in rows if text.startswith("`")]
    assert len(commands) == len(rows) - 1
    for command in commands:
        options = generate.command.make_context("generate", ["--model", *command]).params
        assert hub.is_repository_id(options["model"]) or command == ["checkpoint.pt"]
        assert options["texts"] or options["source"] == "articles.txt" or command == ["checkpoint.pt"]


FOLLOWED = ("OPUS-MT", "NLLB", "T5", "An nn.Transformer of your own", "In Python")


def test_every_block_of_the_guide_is_followed_by_a_test():
    parts = section("## From a torch checkpoint").split("\n### ")
    assert [part for part in parts if part.startswith(FOLLOWED) and "```" not in part] == []
    assert [part for part in parts if not part.startswith(FOLLOWED) and "```" in part] == []


class Newcomer:
    """Somebody who types what the guide shows, block by block, in a folder with a file english.txt."""

    def __init__(self, folder, server):
        self.work, self.server = folder / "work", server
        self.work.mkdir()
        (self.work / "english.txt").write_text("Where is the station?\n\nI love you.\n")
        command = folder / "bin" / "mlx-transformer"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlx_transformer "$@"\n')
        command.chmod(0o755)
        self.environment = {
            "PATH": f"{command.parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "HF_ENDPOINT": server.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MLX_DISABLE_COMPILE": "1",
        }

    def type(self, language, code):
        """The lines that a block prints, and what it says on standard error."""
        command = ["bash", "-euc", code] if language == "console" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=self.work, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr

    def follow(self, heading):
        """Do all that stands under a heading, and give the lines that each block prints."""
        assert heading in FOLLOWED
        blocks = re.findall(r"```(\w+)\n(.*?)```", section(f"### {heading}"), re.DOTALL)
        results = [self.type(*found) for found in blocks]
        assert [told for _, told in results if told] == []
        return [lines for lines, _ in results]

    def translated(self, name="french.txt"):
        """Whether a file has a text where english.txt has one."""
        texts = [(self.work / file).read_text().split("\n") for file in ("english.txt", name)]
        return [bool(line) for line in texts[0]] == [bool(line) for line in texts[1]]


@pytest.fixture
def newcomer(tmp_path):
    server = Hub()
    yield Newcomer(tmp_path, server)
    server.stop()


def published(newcomer, tmp_path, name, make):
    """Put a tiny checkpoint on the server under a real name."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    newcomer.server.publish(name, make(folder))


@pytest.mark.torch
def test_the_guide_to_opus_mt(newcomer, tmp_path):
    published(newcomer, tmp_path, "Helsinki-NLP/opus-mt-en-fr", opus_mt)
    (first,), nothing = newcomer.follow("OPUS-MT")
    assert first and nothing == [] and newcomer.translated()
    newcomer.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # where nobody listens
    (again,), told = newcomer.type("console", block("From a torch checkpoint", "console"))
    assert again == first and "cannot be reached" in told and "What was loaded last is used" in told


@pytest.mark.torch
def test_the_guide_to_nllb(newcomer, tmp_path):
    published(newcomer, tmp_path, "facebook/nllb-200-distilled-600M", nllb)
    (info,) = newcomer.follow("NLLB")
    assert any("quantised to 8 bits" in line for line in info) and any("3: deu_Latn" in line for line in info)
    assert max(map(len, info[1:])) < 120 and newcomer.translated()
    ((both, other),) = newcomer.follow("In Python")
    french, mixed = (eval(line) for line in (both, other))  # noqa: S307
    assert all(french) and french[0] == mixed[0] and french[1] != mixed[1]
    assert french == [line for line in (newcomer.work / "french.txt").read_text().splitlines() if line]


@pytest.mark.torch
def test_the_guide_to_t5(newcomer, tmp_path):
    published(newcomer, tmp_path, "google-t5/t5-small", t5)
    ((task, *summaries),) = newcomer.follow("T5")
    assert task and [bool(line) for line in summaries] == [True, False, True]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_guide_to_a_model_of_ones_own(newcomer):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    vocabulary = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<pad>", "<s>", "</s>"], show_progress=False
    )
    vocabulary.train_from_iterator(CORPUS, trainer)
    vocabulary.save(str(newcomer.work / "tokenizer.json"))
    size = vocabulary.get_vocab_size()
    parts = {
        "transformer": torch.nn.Transformer(64, 8, 2, 2, 64, batch_first=True),
        "src_tok_emb": torch.nn.Embedding(size, 64),
        "tgt_tok_emb": torch.nn.Embedding(size, 64),
        "generator": torch.nn.Linear(64, size),
    }
    torch.save(torch.nn.ModuleDict(parts).state_dict(), newcomer.work / "mine.pt")
    others = {"transformer": "core", "src_tok_emb": "words_in"}
    renamed = {others.get(name, name): part for name, part in parts.items()}
    torch.save(torch.nn.ModuleDict(renamed).state_dict(), newcomer.work / "odd.pt")
    *nothing, ids, none, text = newcomer.follow("An nn.Transformer of your own")
    assert nothing == [[], []] and none == []
    assert all(re.fullmatch(r"\[\d.+\] -\d.*", line) for line in ids) and len(ids) == 2
    assert len(text) == 1 and text[0]
    models = [mt.load(newcomer.work / name) for name in ("mine", "odd")]
    ours, same = (dict(tree_flatten(model.parameters())) for model, _ in models)
    assert all(mx.array_equal(array, same[name]) for name, array in ours.items())
    assert models[0][1].source_vocab_size == size and models[1][1] is None
