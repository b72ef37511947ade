"""The option --adapter of the commands, the command fuse, and their errors."""

import json
import shutil
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from support.tiny_models import config, random_model, stack

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.model.adapters import adapter_arrays, set_adapter_arrays

TEXTS = ["ab cde", "fg hijk l mno"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, its copy in 8 and 4 bits, another model, and two adapters of the first, one with a source prefix."""
    root = tmp_path_factory.mktemp("adapters")
    mx.random.seed(1)
    texts = ["ab cde fg hijk l mno"] * 3
    tokenizer = mt.Tokenizer.train(texts, texts, 300)
    size, side = tokenizer.source_vocab_size, stack(mlp_dims=64)
    wide = config(dims=64, source_vocab_size=size, target_vocab_size=size, encoder=side, decoder=side)
    for name, seed in (("base", 1), ("other", 2)):
        mt.save(root / name, random_model(wide, seed, gain=3), tokenizer)
    for bits in (8, 4):
        mt.convert(root / "base", root / f"base-{bits}", quantize=bits)
    for name, changes in (("first", {"dora": True}), ("second", {"source_prefix": "mno "})):
        model, _ = mt.load(root / "base")
        mt.add_adapter(model, replace(mt.AdapterConfig(rank=2, alpha=4.0), **changes))
        rng = np.random.default_rng(len(name))
        noise = {
            name: array + mx.array(0.5 * rng.standard_normal(array.shape).astype(np.float32))
            for name, array in adapter_arrays(model).items()
        }
        set_adapter_arrays(model, noise, "test")
        mt.save_adapter(root / name, model)
    return root


def run(*arguments, status=0):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == status, result.output
    return result.output if status else result.stdout


def error(*arguments, status=1):
    output = run(*arguments, status=status)
    assert output.count("\n") == 1 and output.startswith("Error: ")
    return output


def score(model, *options):
    """The log-probability of a pair."""
    files = {"source": "ab cde", "target": "fg l"}
    for name, text in files.items():
        with open(name, "w") as file:
            file.write(text + "\n")
    return float(run("score", "--model", model, "--source", "source", "--target", "target", *options))


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_commands_use_the_adapter(folders):
    base, adapter = folders / "base", ("--adapter", folders / "first")
    model, tokenizer = mt.load(base, adapter=folders / "first")
    assert run("generate", "-m", base, *adapter, "--max-tokens", 5, *TEXTS).splitlines() == mt.generate(
        model, tokenizer, TEXTS, max_tokens=5
    )
    assert abs(score(base) - score(base, *adapter)) > 0.01
    (expected,) = mt.score(model, tokenizer, ["ab cde"], ["fg l"])
    assert score(base, *adapter) == pytest.approx(expected.score, abs=1e-3)
    with open("test.tsv", "w") as file:
        file.writelines(
            f"{text}\t{target}\n" for text, target in zip(TEXTS, mt.generate(model, tokenizer, TEXTS), strict=True)
        )
    results = json.loads(run("evaluate", "-m", base, *adapter, "--json", "test.tsv"))
    assert results["exact_match"] == 1
    vectors = [json.loads(run("embed", "-m", base, *options, "ab"))["embedding"] for options in ((), adapter)]
    assert not np.allclose(*vectors, atol=1e-3)
    run("attention", "-m", base, *adapter, "-o", "picture.svg", "ab cde")


def test_info_describes_the_adapter(folders):
    facts = json.loads(run("info", folders / "base", "--adapter", folders / "first", "--json"))
    assert facts["adapter"]["rank"] == 2 and facts["adapter"]["base_model"] == str(folders / "base")
    text = run("info", folders / "base", "--adapter", folders / "first")
    assert f"DoRA of rank 2, scale 2, of attention, mlp: {facts['adapter']['parameters']:,} parameters" in text


def test_an_adapter_brings_its_source_prefix(folders):
    base, adapter = folders / "base", ("--adapter", folders / "second")
    assert score(base, *adapter) == score(base, *adapter, "--source-prefix", "mno ")
    assert abs(score(base, *adapter) - score(base, *adapter, "--source-prefix", "fg ")) > 0.01


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_fused_model_computes_what_the_adapter_does(folders, name):
    run("fuse", folders / "base", folders / name, "fused")
    assert abs(score("fused") - score(folders / "base", "--adapter", folders / name)) <= 1e-3  # printed with 4 digits
    model, _ = mt.load(folders / "base", adapter=folders / name)
    source, target = mx.array([[5, 6, 7, 1]]), mx.array([[2, 9, 10]])
    assert mx.abs(mt.load("fused")[0](source, target) - model(source, target)).max() < 1e-4


@pytest.mark.parametrize("bits", [8, 4])
def test_fuse_quantises_again(folders, bits):
    run("fuse", folders / f"base-{bits}", folders / "first", "fused")
    run("fuse", folders / "base", folders / "first", "requantized", "--quantize", bits)
    for folder in ("fused", "requantized"):
        assert json.loads(run("info", folder, "--json"))["quantization"]["bits"] == bits
    run("fuse", folders / "base", folders / "first", "half", "--dtype", "float16")
    assert json.loads(run("info", "half", "--json"))["stored_dtype"] == ["float16"]


def test_fuse_rounds_merged_weights_once(folders):
    """Stored in 8 bits, the merged weights of a 4-bit model are not rounded to 4 bits before."""
    model, _ = mt.load(folders / "base-4", adapter=folders / "first")
    source, target = mx.array([[5, 6, 7, 1]]), mx.array([[2, 9, 10]])
    errors = []
    for options in ((), ("--quantize", 8)):
        run("fuse", folders / "base-4", folders / "first", "fused", "--force", *options)
        errors.append(mx.abs(mt.load("fused")[0](source, target) - model(source, target)).max().item())
    assert errors[1] < errors[0] / 4


def test_errors_of_adapters(folders, tmp_path):
    base, first = folders / "base", folders / "first"
    generate = ("generate", "hello", "--model")
    message = error(*generate, folders / "other", "--adapter", first)
    assert f"{first} is an adapter of {base} (weights " in message and f"not of {folders / 'other'} (weights" in message
    assert "is a model, not an adapter: give it as the model" in error(*generate, base, "--adapter", base)
    assert (
        f"{first} is an adapter, not a model: give its base, {base}, as the model, and {first} as the adapter"
        in error(*generate, first)
    )
    assert "nowhere has none: check the path" in error(*generate, base, "--adapter", "nowhere")
    shutil.copytree(first, "damaged")
    arrays = mx.load("damaged/adapters.safetensors")
    mx.save_safetensors("nan.safetensors", {name: array * mx.nan for name, array in arrays.items()})
    shutil.move("nan.safetensors", "damaged/adapters.safetensors")
    assert "does not match its checksum" in error(*generate, base, "--adapter", "damaged")
    (tmp_path / "damaged" / "SHA256SUMS").unlink()
    assert "must be finite: train the adapter again" in error(*generate, base, "--adapter", "damaged")


def test_errors_of_fuse(folders):
    base, first = folders / "base", folders / "first"
    run("fuse", base, first, "fused")
    assert "fused already exists: choose another name, or use --force" in error("fuse", base, first, "fused")
    run("fuse", base, first, "fused", "--force")
    assert "is the source" in error("fuse", base, first, base, "--force")
    assert "exists and is not a model folder" in error("fuse", base, first, first, "--force")
    assert "is an adapter of" in error("fuse", folders / "other", first, "new")
    assert "is a model, not an adapter" in error("fuse", base, base, "new")


def test_errors_of_training(folders):
    with open("pairs.tsv", "w") as file:
        file.write("ab cde\tfg\n" * 4)
    train = ("train", "--init", folders / "base", "--train", "pairs.tsv", "--valid", "pairs.tsv", "--output", "run")
    for options, message in {
        ("--lora-alpha", "8"): "--lora-alpha is an option of adapters: set --lora-rank as well, or leave it out.",
        ("--dora",): "--dora is an option of adapters: set --lora-rank as well",
        ("--lora-rank", "99"): "--lora-rank must be at most the width of each layer, 64 of",
        ("--lora-rank", "4", "--lora-targets", "mpl"): "but 'mpl' matches none. Similar ones are mlp",
        ("--lora-rank", "4", "--freeze", "encoder,decoder"): "--freeze must leave something to train",
    }.items():
        assert message in error(*train, *options, status=2 if message.startswith("--") or "matches" in message else 1)
    assert "is an adapter, not a model" in error(*train[:2], folders / "first", *train[3:])
