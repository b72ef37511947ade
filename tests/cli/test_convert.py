"""`convert` and `info --tensors` on a checkpoint of one's own."""

import json
import re

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.command_line import error_line
from support.own_models import assert_parameters, own_parameters, own_tensors, write_tensors, write_torch

import mlx_transformer as mt
from mlx_transformer.cli import main


@pytest.fixture(autouse=True)
def uncompiled():
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture
def mine(tmp_path):
    return write_tensors(tmp_path / "mine.safetensors", own_tensors())


def invoke(*arguments, status=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def test_convert_prints_what_was_assumed_and_how_to_change_it(mine, tmp_path):
    result = invoke("convert", mine, tmp_path / "new", "--set", "num_heads=2")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("family            torch: ") and lines[0].endswith("tensors fit, below transformer.")
    assert lines[1] == "Assumed, because the file does not show it:"
    table = {line.split()[0]: line for line in lines[3:]}
    assert "num_heads" not in table
    assert table["norm_first"].split()[:2] == ["norm_first", "false"]
    assert table["norm_first"].endswith("convert --set norm_first=...")
    assert_parameters(mt.load_model(tmp_path / "new"), own_parameters())
    assert not (tmp_path / "new" / "vocabulary.json").exists()


def test_convert_prints_what_was_read_from_settings(tmp_path):
    path = write_torch(tmp_path / "mine.pt", own_tensors(), args={"nhead": 4, "act": 3, "activation": "GELU"})
    lines = invoke("convert", path, "--dry-run").stdout.splitlines()
    assert lines[1] == "settings read     num_heads 4, activation gelu"


def test_a_dry_run_needs_no_destination_and_writes_nothing(mine, tmp_path):
    assert invoke("convert", mine, "--dry-run").stdout == invoke("convert", mine, tmp_path / "new", "--dry-run").stdout
    assert list(tmp_path.iterdir()) == [mine]
    assert "Missing argument 'DESTINATION'" in invoke("convert", mine, status=2).stderr
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").touch()
    assert "is not a model folder" in error_line(invoke("convert", mine, tmp_path / "new", "--dry-run", status=1))


def test_errors_list_twenty_tensors_or_all(tmp_path):
    odd = {f"transformer.odd_{chr(97 + i)}.weight": mx.zeros(3) for i in range(25)}
    path = write_tensors(tmp_path / "odd.safetensors", own_tensors() | odd)
    *details, more, error = invoke("convert", path, tmp_path / "new", status=1).stderr.splitlines()
    assert len(details) == 20 and more == "and 5 more; --verbose lists them"
    assert all(line.startswith("unexpected transformer.odd_") for line in details)
    assert error.startswith("Error: The tensors do not fit the family torch: 25 unexpected (")
    *details, error = invoke("convert", path, tmp_path / "new", "--verbose", status=1).stderr.splitlines()
    assert len(details) == 25
    invoke("convert", path, tmp_path / "new", "--ignore", r"\.odd_")
    assert_parameters(mt.load_model(tmp_path / "new"), own_parameters())


def test_rename_on_the_command_line(tmp_path):
    tensors = own_tensors()
    tensors["first.weight"] = tensors.pop("src_tok_emb.weight")
    tensors["second.weight"] = mx.zeros((19, 16))
    path = write_tensors(tmp_path / "odd.safetensors", tensors)
    first, second, *_ = invoke("convert", path, tmp_path / "new", status=1).stderr.splitlines()
    assert "source_embedding.weight: looked for src_tok_emb.weight" in first and "second.weight, first.weight" in first
    invoke("convert", path, tmp_path / "new", "--rename", "^first=source_embedding", "--ignore", "^second")
    assert_parameters(mt.load_model(tmp_path / "new"), own_parameters())


def test_info_lists_tensors_of_a_file_that_cannot_be_converted(tmp_path):
    path = write_tensors(tmp_path / "any.safetensors", {"blocks.0.w": mx.zeros((2, 3)), "blocks.1.w": mx.zeros((2, 3))})
    lines = invoke("info", path).stdout.splitlines()
    assert lines[1] == "tensors           2, 0.0 MB"
    assert lines[3].split() == ["blocks.{0-1}.w", "2", "2", "x", "3", "float32", "0.0", "MB"]
    assert lines[-1].startswith("conversion        ")
    facts = json.loads(invoke("info", path, "--json").stdout)
    assert facts["error"] in lines[-1] and facts["tensors"][0]["name"] == "blocks.{0-1}.w"


def test_info_lists_tensors_settings_and_families(mine):
    output = invoke("info", mine, "--tensors").stdout
    assert "transformer.encoder.layers.{0-1}.linear1.weight" in output
    assert f"fits torch        {len(own_tensors())} tensors, below transformer.; 0 do not fit" in output
    assert invoke("info", "--tensors").stdout.count("\n") > 20  # the bundled model


def test_a_conversion_prints_the_precision_of_what_it_wrote(mine, tmp_path):
    size = r"0\.\d MB"
    result = invoke("convert", "bundled", tmp_path / "half", "--dtype", "float16")
    assert result.stderr == f"Model: {tmp_path / 'half'}, 10.8 MB in float16, matrices quantised to 8 bits\n"
    assert re.fullmatch(rf"Model: .*/full, {size} in float32\n", invoke("convert", mine, tmp_path / "full").stderr)


def test_info_names_a_bad_path(tmp_path):
    assert "there is no" in error_line(invoke("info", tmp_path / "absent.pt", "--tensors", status=1))


def test_adapters_are_converted_to_those_of_peft_and_back(tmp_path):
    model = mt.load_model()
    mt.add_adapter(model, mt.AdapterConfig(rank=2, alpha=3.0, targets=("value_proj",)))
    mt.save_adapter(tmp_path / "ours", model)
    invoke("convert", tmp_path / "ours", tmp_path / "peft", "--base", "bundled")
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 2, 3.0)
    assert settings["base_model_name_or_path"] == "bundled"
    assert invoke("generate", "--adapter", tmp_path / "peft", "I love you.").stdout == "Je t'aime.\n"
    to_peft = ("convert", tmp_path / "ours", tmp_path / "peft", "--base", "bundled")
    assert "--force replaces adapter folders only" in invoke(*to_peft, "--force", status=2).stderr
    arguments = ("convert", tmp_path / "peft", tmp_path / "again", "--base", "bundled")
    invoke(*arguments)
    assert "already exists" in error_line(invoke(*arguments, status=1))
    invoke(*arguments, "--force")
    arrays, again = (mx.load(str(tmp_path / name / "adapters.safetensors")) for name in ("ours", "again"))
    assert arrays.keys() == again.keys() and all(mx.array_equal(arrays[name], again[name]) for name in arrays)
    assert (
        "it takes no other options"
        in invoke("convert", tmp_path / "peft", tmp_path / "x", "--base", "bundled", "--quantize", 8, status=2).stderr
    )
    assert "convert --base MODEL" in error_line(invoke("convert", tmp_path / "peft", tmp_path / "x", status=1))
    assert not (tmp_path / "x").exists()
