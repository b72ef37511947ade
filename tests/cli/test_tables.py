"""Tables: fitted to the terminal, plain lines in files and pipes."""

import io
import re
from datetime import datetime
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.own_models import own_tensors, write_tensors
from support.paths import ROOT

from mlx_transformer.cli import main
from mlx_transformer.cli.commands import cache, info, train
from mlx_transformer.cli.tables import fit_to_terminal, format_storage, print_fields, print_table
from mlx_transformer.config.training import TrainingConfig
from mlx_transformer.pretrained.cache import CachedModel

FIELDS = [("folder", "models/en-fr (format 2)"), ("languages", "3: " + " ".join(["eng_Latn", "fra_Latn"] * 12))]
WIDTHS = [80, 120, 160]


@pytest.fixture
def screen(monkeypatch):
    """Returns what a function prints on a terminal of a width, without colours."""

    def show(width, function, *arguments, **options):
        stream = io.StringIO()
        stream.isatty = lambda: True
        monkeypatch.setenv("COLUMNS", str(width))
        with monkeypatch.context() as context:
            context.setattr("sys.stdout", stream)
            function(*arguments, **options)
        return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()

    return show


@pytest.mark.parametrize("width", WIDTHS)
def test_fields_are_wrapped_to_the_terminal(screen, width):
    lines = screen(width, print_fields, FIELDS, 18)
    assert all(len(line.rstrip()) <= width for line in lines)
    assert lines[0].split() == ["folder", *FIELDS[0][1].split()]
    assert " ".join(lines[1:]).split() == ["languages", *FIELDS[1][1].split()]
    assert all(line.startswith(" " * 11) for line in lines[2:])
    assert 2 <= len(lines) <= 5


def test_fields_are_plain_lines_in_a_pipe(capsys):
    print_fields(FIELDS, width=18)
    name, value = FIELDS[1]
    assert capsys.readouterr().out == f"{'folder':<18}{FIELDS[0][1]}\n{name:<18}{value}\n"
    print_fields(FIELDS, width=18, wrap=60)
    first, *others = capsys.readouterr().out.splitlines()[1:]
    assert first.startswith("languages         3: eng_Latn") and all(line.startswith(" " * 18) for line in others)
    assert all(len(line) <= 60 for line in [first, *others])


@pytest.mark.parametrize("width", [30, 48, 60, 80])
def test_paths_and_words_are_never_broken(screen, width):
    path, signature = "/my models/" + "long_name" * 3, "nrefs:1|case:mixed|version:2.6.0"
    fields = [
        ("folder", Path(path)),
        ("BLEU", "100.00"),
        ("BLEU signature", signature),
        ("settings", "beam size 4 " * 9),
    ]
    lines = screen(width, print_fields, fields, 16)
    assert sum(path in line for line in lines) == sum(signature in line for line in lines) == 1
    if len(path) + 16 > width:
        assert lines[:2] == ["folder", f"  {path}"]
    else:
        assert lines[0] == f"folder          {path}"
    assert all(len(line) <= width for line in lines if path not in line and signature not in line)
    model = "Helsinki-NLP/opus-mt-en-de"
    lines = screen(width, print_table, [("last used", "model", "size"), ("2026-01-01 10:00", model, "12.3 MB")])
    assert sum(model in line for line in lines) == sum("12.3 MB" in line for line in lines) == 1
    assert all(len(line) <= width for line in lines if model not in line)


def test_info_names_the_languages_and_the_types(capsys):
    text = CliRunner().invoke(main, ["info"]).stdout
    assert "languages         en to fr\n" in text and "never generates <s> (id 2)" in text
    assert "stored in         float16, matrices quantised to 8 bits\n" in text
    assert "uint32" not in text
    assert format_storage(["float32"], None) == "float32"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_rows_that_do_not_fit_are_printed_in_two_lines_or_as_fields(screen, width):
    name, shape = "decoder.layers.{0-11}.cross_attention.key_proj.weight", "1024 x 1024"
    rows = [("name", "tensors", "shape", "type"), (name, 12, shape, "float32"), ("scale", 1, "one value", "float16")]
    lines = screen(width, print_table, rows)
    if width >= 100:
        assert [re.split("  +", line.strip()) for line in lines] == [[str(cell) for cell in row] for row in rows]
    else:
        assert lines[0::2] == [f"  {row[0]}" for row in rows]
        assert [re.split("  +", line.strip()) for line in lines[1::2]] == [
            [str(cell) for cell in row[1:]] for row in rows
        ]
        assert len({line.index(row[2]) for line, row in zip(lines[1::2], rows, strict=True)}) == 1
    assert all(len(line) <= width for line in lines if name not in line)
    assert screen(30, print_table, rows)[-5:] == [
        "name     scale",
        "tensors  1",
        "shape    one value",
        "type     float16",
        "",
    ]


def test_a_long_name_is_apart_from_its_value(screen, capsys):
    fields = [("fits blenderbot-small", "88 tensors"), ("files", "a")]
    print_fields(fields, width=18)
    assert capsys.readouterr().out == f"fits blenderbot-small 88 tensors\n{'files':<18}a\n"
    assert screen(80, print_fields, fields, 18) == ["fits blenderbot-small  88 tensors", f"{'files':<23}a"]
    assert screen(80, print_fields, [], 18) == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", [["info", "--tensors"], ["convert", "--dry-run"]])
def test_what_is_in_a_checkpoint_fits_the_terminal(screen, tmp_path, command, width):
    path = write_tensors(tmp_path / "odd.safetensors", own_tensors() | {"transformer.odd.weight": mx.zeros(3)})
    options = ["--ignore", "odd"] if command[0] == "convert" else []
    lines = screen(width, main, [*command, str(path), *options], standalone_mode=False)
    texts = [line for line in lines if str(path) not in line]
    assert all(len(line) <= width for line in texts) and len(texts) > 10
    assert ("setting" if command[0] == "convert" else "shape") in " ".join(texts[:6]).split()


def test_cells_are_escaped(screen, capsys):
    rows = [("name", "value"), ("a[red]\x1b[2J", "b\nc")]
    print_table(rows)
    for lines in (capsys.readouterr().out.splitlines(), screen(80, print_table, rows)):
        assert [line.split() for line in lines] == [["name", "value"], [r"a[red]\x1b[2J", r"b\nc"]]


def test_info_has_words_instead_of_pythons_names(screen):
    for options in ([], ["--verbose"]):
        text = CliRunner().invoke(main, ["info", *options]).stdout
        settings = text[text.index("search defaults") :]
        assert "beam size 4" in settings and not re.search(r"None|True|False|_|\(\)", settings)
    assert "max tokens none" in settings


def test_settings_in_words():
    search = {"beam_size": 1, "max_tokens": None, "early_stopping": True, "suppress_ids": [2, 7], "top_p": 0.5}
    expected = "beam size 1, early stopping yes, never generates <s> (id 2), id 7, top p 0.5; everything else as in a"
    assert info.search_facts(search, {2: "<s>"}, verbose=False) == f"{expected} new model"
    assert info.setting_phrase("forced_bos_id", 5, {5: "fra_Latn"}) == "begins with fra_Latn (id 5)"
    assert info.setting_phrase("forced_eos_id", None, {}) == "forced eos id none"
    assert info.setting_phrase("suppress_ids", list(range(30)), {}).endswith("id 19 and 10 more")
    assert info.setting_text([[1, 2], [3]]) == "1 2, 3"
    assert info.setting_text(list(range(30))).endswith("19 and 10 more")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_cache_is_a_table_on_a_terminal(screen, monkeypatch, capsys, tmp_path, width):
    monkeypatch.setenv("MLX_TRANSFORMER_CACHE", str(tmp_path))
    models = [CachedModel("google-t5/t5-small", "0123456789" * 4, ["main"], True, "", 123_456_789, 1e9, Path("x"))]
    monkeypatch.setattr("mlx_transformer.pretrained.cache.cached_models", lambda: models)
    used = datetime.fromtimestamp(1e9).strftime("%Y-%m-%d %H:%M")
    monkeypatch.setattr(CachedModel, "precision", "float16")
    names, row, total = screen(width, cache.print_cache, False)
    assert re.split("  +", names.strip()) == ["last used", "model", "commit", "revisions", "precision", "size"]
    assert re.split("  +", row.strip()) == [used, "google-t5/t5-small", "01234567", "main", "float16", "123.5 MB"]
    cache.print_cache(False)
    assert capsys.readouterr().out.splitlines()[0] == (
        f" 123.5 MB  last used {used}  google-t5/t5-small 01234567 (main) float16"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_validation_is_a_table_with_samples_cut_to_the_terminal(screen, capsys, width):
    figures = {"loss": 1.5, "token_accuracy": 0.25, "exact_match": 0.5, "bleu": 12.0, "chrf": 34.5}
    sample = {"source": "a" * 300, "reference": "電" * 300, "hypothesis": "short"}
    event = {"event": "validation", "step": 500, "best": True, "samples": [sample], **figures}
    progress = train.Progress(TrainingConfig(("a",), ("b",), "run"))
    lines = screen(width, progress, event)
    assert lines[0] == "validation at step 500: (best)"
    assert re.split("  +", lines[1].strip()) == ["loss", "token accuracy", "exact match", "bleu", "chrf"]
    assert lines[2].split() == ["1.5000", "0.2500", "0.5000", "12.00", "34.50"]
    assert lines[3] == "      " + "a" * (width - 7) + "…" and lines[5] == "    > short"
    assert lines[4].startswith("    = 電") and width - 8 <= len(lines[4]) + lines[4].count("電") <= width
    progress(event)
    plain = capsys.readouterr().out.splitlines()
    assert plain[0].startswith("validation at step 500: loss 1.5000 token_accuracy 0.2500") and "a" * 300 in plain[1]


def test_lines_are_cut_on_a_terminal_only(capsys):
    assert fit_to_terminal("a" * 200) == "a" * 200


def test_nothing_imports_tqdm():
    assert "tqdm" not in "".join(path.read_text() for path in (ROOT / "cli").rglob("*.py"))
