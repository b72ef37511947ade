"""Every code block of the README and of docs/ runs, and prints what the page shows.

The blocks of a page run in order in an empty folder: ```python in one namespace, ```console in a shell, where the hub
has tiny models and `train` takes two steps. A ```text block right after one of them shows its output: "..." stands for
anything, decimals may differ by 0.01, and "Error: ..." means that the command fails. Other ```text blocks are not run.
A block with a title, ```python title="FILE", is an excerpt: its lines stand in that file, "..." for lines left out.
"""

import html
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest
import tokenizers
from click.testing import CliRunner
from mlx.utils import tree_flatten
from support.hub_server import Hub
from support.pages import PAGES, README, Block, read_blocks, write_python
from support.paths import ROOT, TESTS
from support.pictures import assert_same_drawing, assert_same_figure
from support.texts import CORPUS
from support.tiny_checkpoints import nllb, opus_mt, t5

import mlx_transformer as mt
from mlx_transformer import blas
from mlx_transformer.cli import main
from mlx_transformer.cli.commands import generate, train
from mlx_transformer.pretrained import cache
from mlx_transformer.weights.families import FAMILIES
from tests.test_structure import PARTS

IMAGES = ROOT / "docs" / "images"
needs_fast_blas = pytest.mark.skipif(
    sys.platform == "linux" and not blas.find_blas(), reason="too slow without a fast BLAS"
)
SLOW = ("README.md", "index.md", "models.md", "converting.md", "generating.md", "training.md", "transformer.md")
MARKS = {name: [pytest.mark.slow] for name in SLOW} | {"transformer.md": [pytest.mark.slow, needs_fast_blas]}
MAX_README_LINES = 180
MAX_LIBRARY_LINES = 10
HUB = {
    "Helsinki-NLP/opus-mt-en-fr": opus_mt,
    "facebook/nllb-200-distilled-600M": nllb,
    "google-t5/t5-small": t5,
}
FILES = {
    "english.txt": "Where is the station?\n\nI love you.\n",
    "articles.tsv": "The station is closed today.\tClosed.\nThe train was late again.\tLate.\n",
    "pairs.tsv": "I love you.\tJe t'aime.\nGood morning!\tBonjour !\n",
    "others.tsv": "I love you.\tIch liebe dich.\nGood morning!\tGuten Morgen!\n",
    "dev.tsv": "I love you.\tJe vous aime.\nI love you.\tJe t'aime.\nSee you tomorrow.\tÀ demain.\n",
    "bad.tsv": "I love you.\tJe t'aime.\nGood morning!\n",
    "corpus.en": "I love you.\nGood morning!\n",
    "corpus.fr": "Je t'aime.\nBonjour !\n",
}
# The command as installed, but for the length of a training. A resumed run has its own options.
COMMAND = f"""\
#!{sys.executable}
import sys
from mlx_transformer.cli import main
arguments = sys.argv[1:]
if arguments[:1] == ["train"] and "--resume" not in arguments:
    arguments += "--steps 2 --valid-every 2 --bleu-sentences 2 --batch-tokens 512".split()
main(arguments, prog_name="mlx-transformer")
"""
# Nothing is installed: a new environment is an empty folder.
INSTALLERS = {
    "python3": '#!/bin/sh\n[ "$*" = "-m venv .venv" ] && mkdir -p .venv/bin && touch .venv/bin/activate\n',
    "pip": '#!/bin/sh\n[ "$1" = install ]\n',
}
# Runs after the blocks of docs/transformer.md, on their variables.
DRAWING = f"""\
import pathlib, runpy
pathlib.Path("pictures").mkdir()
runpy.run_path({str(IMAGES / "draw_transformer.py")!r})["draw"](globals(), pathlib.Path("pictures"))
"""
DECIMAL = re.compile(r"-?\d+\.\d+")


def check_excerpt(block: Block, page: str) -> None:
    """Compare an excerpt with its file."""
    text = (ROOT / block.title).read_text()
    for part in re.split(r"^ *\.\.\.\n", block.code, flags=re.MULTILINE):
        assert part.strip() and part in text, f"{page}, line {block.line}: not in {block.title}:\n{part}"


def normalize(text: str) -> str:
    """Replace decimals by a sign and white space, no-break spaces too, by one space."""
    return " ".join(DECIMAL.sub("#", text).split())


def check_output(block: Block, result: dict, page: str) -> None:
    """Compare what a block printed with what its page shows."""
    where = f"{page}, line {block.line}"
    shown = block.output
    fails = shown is not None and shown.startswith("Error:")
    assert result["status"] in ((1, 2) if fails else (0,)), f"{where}: {result['stderr']}"
    if shown is None:
        return
    printed = result["stderr" if fails else "stdout"]
    pattern = ".*".join(map(re.escape, normalize(shown).split("...")))
    same = re.fullmatch(pattern, normalize(printed)) is not None
    assert same, f"{where} shows\n{shown}\nbut it prints\n{printed}"
    if "..." not in shown:
        numbers, expected = ([float(n) for n in DECIMAL.findall(text)] for text in (printed, shown))
        assert numbers == pytest.approx(expected, abs=0.01), f"{where}: {numbers} for {expected}"


class Workplace:
    """An empty folder with a few files, a command line, and a hub on loopback."""

    def __init__(self, folder: Path, server: Hub):
        self.folder = folder / "work"
        self.folder.mkdir()
        for name, text in FILES.items():
            (self.folder / name).write_text(text)
        programs = folder / "bin"
        programs.mkdir()
        for name, program in {"mlx-transformer": COMMAND, **INSTALLERS}.items():
            (programs / name).write_text(program)
            (programs / name).chmod(0o755)
        kept = {name: os.environ[name] for name in ("LD_PRELOAD", "OPENBLAS_NUM_THREADS") if name in os.environ}
        self.environment = kept | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "HF_ENDPOINT": server.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MLX_DISABLE_COMPILE": "1",
        }

    def run(self, page: str, blocks: list[Block]) -> list[dict]:
        """Run blocks; for each, its exit status and what it printed."""
        program = [sys.executable, str(TESTS / "support" / "run_page.py"), page]
        lines = json.dumps([block[:3] for block in blocks])
        result = subprocess.run(
            program, input=lines, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A hub that serves tiny checkpoints under the names of real ones."""
    server = Hub()
    for name, make in HUB.items():
        server.publish(name, make(tmp_path_factory.mktemp("checkpoint")))
    yield server
    server.stop()


@pytest.fixture
def workplace(tmp_path, server):
    workplace = Workplace(tmp_path, server)
    write_torch_models(workplace.folder)
    return workplace


def write_torch_models(folder: Path) -> None:
    """Write mine.pt and odd.pt, one nn.Transformer under common and under other names, and vocabularies for them."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    vocabulary = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<pad>", "<s>", "</s>"], show_progress=False
    )
    vocabulary.train_from_iterator(CORPUS, trainer)
    vocabulary.save(str(folder / "tokenizer.json"))
    special = ["<unk>", "<pad>", "<s>", "</s>"]
    (folder / "german.txt").write_text("\n".join([*special, "ich", "liebe", "dich", "."]))
    (folder / "english.json").write_text(json.dumps([*special, "i", "love", "you", "."]))
    size = vocabulary.get_vocab_size()
    parts = {
        "transformer": torch.nn.Transformer(64, 8, 2, 2, 64, batch_first=True),
        "src_tok_emb": torch.nn.Embedding(size, 64),
        "tgt_tok_emb": torch.nn.Embedding(size, 64),
        "generator": torch.nn.Linear(64, size),
    }
    torch.save(torch.nn.ModuleDict(parts).state_dict(), folder / "mine.pt")
    others = {"transformer": "core", "src_tok_emb": "words_in"}
    renamed = {others.get(name, name): part for name, part in parts.items()}
    torch.save(torch.nn.ModuleDict(renamed).state_dict(), folder / "odd.pt")


def check_files(folder: Path, blocks: list[Block]) -> None:
    """Check the files that commands were told to write: pictures, and a line for each line of english.txt."""
    console = "\n".join(block.code for block in blocks if block.language == "console")
    for name in re.findall(r"--output (\S+\.svg)", console):
        assert (folder / name).read_text().lstrip().startswith("<?xml")
    if "--output french.txt" in console:
        english, french = ((folder / name).read_text().split("\n") for name in ("english.txt", "french.txt"))
        assert [bool(line) for line in english] == [bool(line) for line in french]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("path", [pytest.param(path, id=path.name, marks=MARKS.get(path.name, [])) for path in PAGES])
def test_the_blocks_of_a_page_run_and_print_what_it_shows(path, workplace):
    page = path.relative_to(ROOT).as_posix()
    blocks = read_blocks(path.read_text())
    assert {block.language for block in blocks} <= {"python", "console", "text"}
    blocks = [block for block in blocks if block.runs]
    if path.name == "transformer.md":
        blocks.append(Block("python", 0, DRAWING))
    results = workplace.run(page, blocks)
    for block, result in zip(blocks, results, strict=False):
        check_output(block, result, page)
    assert len(results) == len(blocks)
    check_files(workplace.folder, blocks)
    checks = {"models.md": check_models, "converting.md": check_own_models, "transformer.md": check_drawings}
    if (check := checks.get(path.name)) is not None:
        check(workplace.folder, dict(zip((block.code.split("\n")[0] for block in blocks), results, strict=True)))


def check_models(folder: Path, results: dict[str, dict]) -> None:
    """Check what the page on models cannot show of tiny models with random weights."""
    info = results["mlx-transformer convert facebook/nllb-200-distilled-600M nllb --quantize 8"]["stdout"].splitlines()
    assert any("quantised to 8 bits" in line for line in info) and any("3: deu_Latn" in line for line in info)
    assert max(map(len, info[1:])) < 120
    task, *summaries = next(r for code, r in results.items() if "--task" in code)["stdout"].splitlines()
    assert task and [bool(line) for line in summaries] == [True, False, True]


def check_drawings(folder: Path, results: dict[str, dict]) -> None:
    """Check that the pictures of docs/transformer.md are those that its variables give now."""
    stored = sorted(IMAGES.glob("transformer-*.svg"))
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == [path.name for path in stored]
    for path in stored:
        tolerance = 25 if path.name == "transformer-dates.svg" else 1  # of a model that is trained on any machine
        assert_same_drawing(folder / "pictures" / path.name, path, tolerance)


def check_own_models(folder: Path, results: dict[str, dict]) -> None:
    """Check that mine.pt and odd.pt, the same model, were converted to the same weights."""
    ids = results["import mlx_transformer as mt"]["stdout"].splitlines()
    assert len(ids) == 2 and all(re.fullmatch(r"\[\d.+\] -\d.*", line) for line in ids)
    model, tokenizer = mt.load(folder / "mine")
    ours, same = (dict(tree_flatten(one.parameters())) for one in (model, mt.load_model(folder / "odd")))
    assert all(mx.array_equal(array, same[name]) for name, array in ours.items())
    assert tokenizer.source_vocab_size == ours["source_embedding.weight"].shape[0]
    with pytest.raises(ValueError, match="must have a tokenizer, but .*odd has none"):
        mt.load(folder / "odd")


@pytest.mark.slow
def test_the_python_of_all_pages_passes_a_strict_type_checker(tmp_path):
    expected = write_python(tmp_path)
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--config-file=",
            "--cache-dir=cache",
            "--follow-imports=silent",
            ".",
        ],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    errors = set(re.findall(r"^(\S+): error: ", result.stdout, re.MULTILINE))
    assert errors == expected, result.stdout + result.stderr


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_excerpts_of_a_page_are_in_their_files(path):
    for block in read_blocks(path.read_text()):
        if block.title is not None:
            check_excerpt(block, path.relative_to(ROOT).as_posix())


def test_an_excerpt_that_is_not_in_its_file_is_found():
    code = "class Memory(NamedTuple):\n...\nclass Attention(nn.Module):\n"
    for lines, right in ((code, True), (code.replace("Memory", "Remembrance"), False), ("", False)):
        (block,) = read_blocks(f'```python title="mlx_transformer/model/transformer.py"\n{lines}```')
        with nullcontext() if right else pytest.raises(AssertionError, match="page.md, line 1"):
            check_excerpt(block, "page.md")


@pytest.mark.slow
@needs_fast_blas
def test_the_training_of_the_readme_learns_dates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in read_blocks(README.read_text()) if "--train dates" in block.code)
    lines = block.code.replace("\\\n", " ").splitlines()
    train, evaluate, generate = (CliRunner().invoke(main, shlex.split(line)[1:]) for line in lines)
    assert train.exit_code == 0, train.output
    assert float(re.search(r"exact\D+([\d.]+)", evaluate.stdout)[1]) >= 99, evaluate.output
    assert generate.stdout == "1987-03-03\n"


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= MAX_README_LINES
    (library,) = (block.code for block in read_blocks(text) if block.language == "python")
    assert len([line for line in library.splitlines() if line.strip()]) <= MAX_LIBRARY_LINES


def test_the_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(((?!https?:)[^)]+)\)", README.read_text())
    assert {f"docs/{path.name}" for path in PAGES[1:]} <= set(links)
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_pictures_of_the_pages_are_there_and_small():
    shown = {path.parent / name for path in PAGES for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", path.read_text())}
    pictures = {path for path in IMAGES.iterdir() if path.suffix not in (".py", ".jsonl")}
    assert shown == pictures
    assert [path.name for path in pictures if path.stat().st_size > 150_000] == []


@pytest.mark.slow
def test_the_pictures_show_what_the_commands_print(tmp_path, monkeypatch, capsys):
    """All commands of docs/images/draw.py; of the training, which takes minutes, the log is shown and drawn."""
    draw = SimpleNamespace(**runpy.run_path(str(IMAGES / "draw.py")))
    monkeypatch.chdir(tmp_path)
    Path("english.txt").write_text(draw.ENGLISH)
    log = IMAGES / "dates.jsonl"
    Path("runs/dates").mkdir(parents=True)
    Path("runs/dates/log.jsonl").write_bytes(log.read_bytes())
    terminal = html.unescape(re.sub(r"<[^>]+>", "", (IMAGES / "terminal.svg").read_text())).replace("\xa0", " ")
    progress = train.Progress(mt.TrainingConfig(train="dates", valid="dates", output="runs/dates"))
    for line in log.read_text().splitlines():
        progress(json.loads(line))
    lines = draw.shorten(capsys.readouterr().out.splitlines(), (3, 5))  # and "Best model: ..."
    assert len(lines) == 9 and [line for line in lines if normalize(line) not in normalize(terminal)] == []
    shown = [command for command in draw.COMMANDS if "runs/dates" not in command]
    assert len(shown) == 3
    for command in shown:
        arguments, _, source = command.partition(" < ")
        result = CliRunner().invoke(main, shlex.split(arguments)[1:], input=source and Path(source).read_bytes())
        lines = result.stdout.replace("\u202f", " ").replace("\t", " ").splitlines()
        assert lines and [line for line in lines if normalize(line) not in normalize(terminal)] == [], command
    for picture, command in draw.PICTURES.items():
        CliRunner().invoke(main, shlex.split(command)[1:])
        assert_same_figure(tmp_path / picture, IMAGES / picture)


def test_the_reference_lists_every_public_name():
    listed = re.findall(r"^::: mlx_transformer\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(mt._MODULES)


def test_the_page_on_architecture_describes_the_packages_as_they_are():
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "mlx_transformer"
    paths = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert paths and [path for path in paths if not (package / path).exists() and not (ROOT / path).is_dir()] == []
    described = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    floors = [floor for floor in PARTS if not any(name.startswith("__") for name in floor)]
    assert sorted(described) == sorted(set().union(*floors))
    rule = text.split("## Import rule", 1)[1].split("```text\n", 1)[1].split("```", 1)[0]
    assert [set(line.split(" | ")) for line in rule.splitlines()] == floors


def test_the_table_of_models_is_complete_and_its_commands_can_be_typed():
    text = (ROOT / "docs" / "models.md").read_text().split("\n## Supported families", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (?!family|--)(.+?) \| (.+?) \|$", text, re.MULTILINE)
    names = " ".join(name for name, _ in rows).lower()
    assert [name for name in FAMILIES if {"torch": "nn.transformer"}.get(name, name) not in names] == []
    commands = [shlex.split(re.match("`(.+?)`", text)[1]) for _, text in rows if text.startswith("`")]
    assert len(commands) == len(rows) - 1
    for command in commands:
        options = generate.command.make_context("generate", ["--model", *command]).params
        assert cache.is_repository_id(options["model"]) or command == ["checkpoint.pt"]
        assert options["texts"] or options["source"] == "articles.txt" or command == ["checkpoint.pt"]


BLOCKS = {
    "decimals agree": ("```console\nprintf 'a 1.234 b'\n```\n```text\na 1.23 b\n```", True),
    "decimals differ": ("```console\nprintf 'a 1.3 b'\n```\n```text\na 1.2 b\n```", False),
    "dots stand for anything": ("```console\nprintf 'a b c'\n```\n\n```text\na ... c\n```", True),
    "a text elsewhere is no output": ("```console\nprintf 'a b'\n```\nElsewhere:\n```text\nc\n```", True),
    "another output": ("```python\nprint(1)\n```\n```text\n2\n```", False),
    "one namespace": ("```python\nx = 1\n```\n```python\nprint(x)\n```\n```text\n1\n```", True),
    "one folder": ("```console\necho 1 > x\n```\n```python\nprint(open('x').read())\n```\n```text\n1\n```", True),
    "an exception": ("```python\n1 / 0\n```", False),
    "a command fails": ("```console\nfalse\n```", False),
    "a command fails as shown": ("```console\necho 'Error: no.' >&2; exit 1\n```\n```text\nError: no.\n```", True),
    "no error where one is shown": ("```console\ntrue\n```\n```text\nError: no.\n```", False),
}


@pytest.mark.parametrize(("text", "right"), BLOCKS.values(), ids=BLOCKS)
def test_a_block_that_does_not_print_what_its_page_shows_is_found(text, right, workplace):
    blocks = [block for block in read_blocks(text) if block.runs]
    results = workplace.run("page.md", blocks)
    with nullcontext() if right else pytest.raises(AssertionError, match="page.md, line 1"):
        for block, result in zip(blocks, results, strict=True):
            check_output(block, result, "page.md")
