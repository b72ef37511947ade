"""Model folders: exact round trips, one-line errors for damage, and safe replacement."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.paths import ROOT

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.model import ModelConfig, QuantizationConfig, StackConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.model import precision, quantization
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage.files import MAX_BYTES
from mlx_transformer.tokenization.tokenizer import Tokenizer

STACK = StackConfig(num_layers=1, num_heads=2, mlp_dims=64, max_length=12, positions="learned", final_norm=True)
CONFIG = ModelConfig(288, 288, 64, STACK, dataclasses.replace(STACK, positions="sinusoidal", norm_first=True))
SEARCH = SearchConfig(beam_size=3, length_penalty=0.5, suppress_ids=(0, 2))
SOURCE = mx.array([[5, 6, 7, 1], [8, 1, 0, 0]], mx.int32)
TARGET = mx.array([[2, 9, 10], [2, 11, 12]], mx.int32)


def make_model(config=CONFIG):
    mx.random.seed(7)
    model = Transformer(config, SEARCH)
    # Biases and norms begin alike: give every array values of its own.
    noise = [(name, array + 0.02 * mx.random.normal(array.shape)) for name, array in tree_flatten(model.parameters())]
    model.load_weights(noise)
    model.eval()
    return model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["ab cd ef gh", "ij kl mn"] * 3
    return Tokenizer.train(texts, texts, 288)


@pytest.fixture
def folder(tmp_path, model, tokenizer):
    model_folder.save(tmp_path / "model", model, tokenizer)
    return tmp_path / "model"


@pytest.mark.parametrize("umask", [0o002, 0o027, 0o077])
def test_permissions_are_those_of_the_umask(tmp_path, model, tokenizer, umask):
    previous = os.umask(umask)
    try:
        model_folder.save(tmp_path / "new" / "model", model, tokenizer)
    finally:
        os.umask(previous)
    paths = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert len(paths) > 4
    for path in paths:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def arrays_of(model):
    return split_projections(model.parameters())


def same_bits(first, second):
    return first.keys() == second.keys() and all(
        array.dtype == second[name].dtype and mx.array_equal(array, second[name]) for name, array in first.items()
    )


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(folder, change):
    """Edit a folder's config.json."""
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refused(folder, told, kind=ValueError):
    """Check that loading a folder fails with one short line that matches."""
    with pytest.raises(kind, match=told) as caught:
        model_folder.load(folder)
    message = str(caught.value)
    assert len(message) < 800 and message.count("\n") == 0
    return message


class TestBits:
    def test_save_and_load_keep_every_bit(self, folder, model, tokenizer):
        loaded, loaded_tokenizer = model_folder.load(folder)
        assert same_bits(arrays_of(loaded), arrays_of(model))
        assert (loaded.config, loaded.search_defaults) == (CONFIG, SEARCH)
        assert not loaded.training and loaded is not model
        assert loaded_tokenizer.encode("ab kl") == tokenizer.encode("ab kl")
        assert mx.array_equal(loaded(SOURCE, TARGET), model(SOURCE, TARGET))

    def test_every_model_option_is_restored(self, tmp_path):
        config = dataclasses.replace(
            CONFIG,
            target_vocab_size=310,
            share_embeddings=False,
            tie_output=False,
            output_bias=True,
            attention_bias=False,
            norm_bias=False,
        )
        model = make_model(config)
        model_folder.save(tmp_path / "model", model)
        loaded, tokenizer = model_folder.load(tmp_path / "model")
        assert tokenizer is None and loaded.config == config
        assert same_bits(arrays_of(loaded), arrays_of(model))

    def test_model_loaded_in_one_thread_runs_in_another(self, folder, model):
        loaded, _ = model_folder.load(folder)
        logits = []
        thread = threading.Thread(target=lambda: logits.append(np.array(loaded(SOURCE, TARGET))))
        thread.start()
        thread.join()
        np.testing.assert_allclose(logits[0], np.array(model(SOURCE, TARGET)), atol=1e-5)

    def test_load_does_not_consume_random_numbers(self, folder, model, tmp_path):
        mx.random.seed(3)
        expected = mx.random.uniform().item()
        mx.random.seed(3)
        loaded, _ = model_folder.load(folder)
        model_folder.save(tmp_path / "again", loaded)
        assert mx.random.uniform().item() == expected

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_low_precision(self, tmp_path, model, dtype):
        before = arrays_of(model)
        model_folder.save(tmp_path / "model", model, dtype=dtype)
        assert same_bits(arrays_of(model), before)  # saving leaves the model as it is
        rounded = {name: array.astype(precision.DTYPES[dtype]) for name, array in before.items()}
        assert same_bits(mx.load(str(tmp_path / "model" / "model.safetensors")), rounded)
        assert same_bits(arrays_of(model_folder.load(tmp_path / "model", dtype)[0]), rounded)
        assert same_bits(arrays_of(model_folder.load(tmp_path / "model", precision.DTYPES[dtype])[0]), rounded)

    @pytest.mark.cpu
    def test_the_cpu_computes_in_float32_by_default(self, tmp_path, model):
        model_folder.save(tmp_path / "model", model, dtype=mx.float16)
        loaded, _ = model_folder.load(tmp_path / "model")
        assert {array.dtype for array in arrays_of(loaded).values()} == {mx.float32}

    @pytest.mark.parametrize("dtype", ["float64", "int8", ""])
    def test_other_dtypes_are_rejected(self, tmp_path, model, folder, dtype):
        told = f"dtype must be one of float32, float16, bfloat16, not {dtype!r}"
        with pytest.raises(ValueError, match=told):
            model_folder.save(tmp_path / "other", model, dtype=dtype)
        with pytest.raises(ValueError, match="dtype must be one of"):
            model_folder.load(folder, dtype or "half")
        assert not (tmp_path / "other").exists()


class TestQuantization:
    @pytest.fixture(params=[8, 4])
    def quantized(self, request, tmp_path, model, tokenizer):
        model_folder.save(tmp_path / "quantized", model, tokenizer, quantize=request.param)
        return tmp_path / "quantized", request.param

    def test_quantised_file_is_smaller_and_the_config_says_so(self, quantized, folder, model):
        path, bits = quantized
        sizes = [(place / "model.safetensors").stat().st_size for place in (path, folder)]
        assert sizes[0] < sizes[1] * {8: 0.5, 4: 0.35}[bits]
        config = json.loads((path / "config.json").read_text())
        assert config["quantization"] == {"bits": bits, "group_size": 64}
        assert json.loads((folder / "config.json").read_text())["quantization"] is None
        assert quantization.quantization_of(model) is None  # saving leaves the model as it is

    def test_positions_and_norms_are_not_quantised(self, quantized, model):
        stored = mx.load(str(quantized[0] / "model.safetensors"))
        plain = arrays_of(model)
        kept = {name: stored[name] for name in plain if "norm" in name or "positions" in name or name.endswith("bias")}
        assert same_bits(kept, {name: plain[name] for name in kept}) and len(kept) > 10
        others = {name for name in plain.keys() - kept.keys()}
        assert {stored[name].dtype for name in others} == {mx.uint32}
        assert {f"{name.removesuffix('weight')}scales" for name in others} <= stored.keys()

    @pytest.mark.cpu
    def test_cpu_dequantises_with_small_error(self, quantized, model):
        path, bits = quantized
        loaded, _ = model_folder.load(path)
        assert quantization.quantization_of(loaded) is None
        assert {array.dtype for array in arrays_of(loaded).values()} == {mx.float32}
        assert {name: a.shape for name, a in arrays_of(loaded).items()} == {
            name: a.shape for name, a in arrays_of(model).items()
        }
        logits, expected = loaded(SOURCE, TARGET), model(SOURCE, TARGET)
        error = mx.abs(logits - expected).mean() / mx.abs(expected).mean()
        assert 0 < error.item() < {8: 0.02, 4: 0.3}[bits]

    def test_dequantised_weights_equal_those_of_quantised_layers(self, quantized):
        path, bits = quantized
        model = Transformer(CONFIG)
        quantization.quantize_weights(model, QuantizationConfig(bits))
        model_folder.read_weights(model, path / "model.safetensors")
        model.eval()
        expected = model(SOURCE, TARGET)
        quantization.dequantize(model)
        assert not any(isinstance(module, nn.QuantizedLinear) for module in model.modules())
        assert mx.allclose(model(SOURCE, TARGET), expected, atol=1e-4)

    def test_quantised_model_is_saved_without_change(self, quantized, tmp_path):
        path, bits = quantized
        model = Transformer(CONFIG, SEARCH)
        quantization.quantize_weights(model, QuantizationConfig(bits))
        model_folder.read_weights(model, path / "model.safetensors")
        model_folder.save(tmp_path / "again", model)
        assert (tmp_path / "again" / "config.json").read_bytes() == (path / "config.json").read_bytes()
        first, second = (mx.load(str(place / "model.safetensors")) for place in (path, tmp_path / "again"))
        assert same_bits(first, second)

    def test_quantised_model_can_be_requantised(self, quantized, tmp_path):
        path, bits = quantized
        model = Transformer(CONFIG, SEARCH)
        quantization.quantize_weights(model, QuantizationConfig(bits))
        model_folder.save(tmp_path / "other", model, quantize=12 - bits)
        assert model_folder.read_config(tmp_path / "other").quantization == QuantizationConfig(12 - bits)
        assert quantization.quantization_of(model) == QuantizationConfig(bits)

    def test_float16_and_quantised(self, tmp_path, model):
        model_folder.save(tmp_path / "both", model, dtype="float16", quantize=8)
        stored = mx.load(str(tmp_path / "both" / "model.safetensors"))
        assert {array.dtype for array in stored.values()} == {mx.float16, mx.uint32}

    def test_unquantisable_widths_are_rejected(self, tmp_path):
        model = Transformer(dataclasses.replace(CONFIG, encoder=dataclasses.replace(STACK, mlp_dims=40)))
        with pytest.raises(ValueError, match=r"multiples of 64: encoder.*feed_forward.down_proj has 40"):
            model_folder.save(tmp_path / "model", model, quantize=8)
        with pytest.raises(ValueError, match="bits must be one of 4, 8, not 3"):
            model_folder.save(tmp_path / "model", make_model(), quantize=3)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems have only names in UTF-8")
def test_a_path_that_is_not_utf8_is_written_and_read(tmp_path, model, tokenizer):
    """MLX takes no such path."""
    folder = tmp_path / os.fsdecode(b"mod\xe8le")
    model_folder.save(folder, model, tokenizer)
    loaded, _ = model_folder.load(folder)
    assert mx.array_equal(loaded(SOURCE, TARGET), model(SOURCE, TARGET))


class TestDamage:
    @pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
    def test_truncated_weights(self, folder, kept):
        path = folder / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
        refused(folder, f"{path} must be a complete safetensors file, copy it again: ")

    @pytest.mark.parametrize(
        "data", [b"garbage " * 99, b"\0" * 999, b"\xff" * 999, (9).to_bytes(8, "little") + b"x" * 99]
    )
    def test_garbage(self, folder, data):
        (folder / "model.safetensors").write_bytes(data)
        refused(folder, "must be a complete safetensors file, copy it again: ")

    def test_missing_files_and_folders(self, folder, tmp_path):
        refused(tmp_path / "nowhere", f"{tmp_path / 'nowhere'} has none: check the path", FileNotFoundError)
        (folder / "model.safetensors").unlink()
        refused(folder, f"{folder / 'model.safetensors'} is missing: copy the model folder again", FileNotFoundError)
        (folder / "config.json").unlink()
        refused(folder, f"{folder} has none", FileNotFoundError)

    def test_a_folder_without_a_tokenizer(self, folder):
        for name in ("tokenizer.json", "vocabulary.json"):
            (folder / name).unlink()
        assert model_folder.load(folder)[1] is None

    @pytest.mark.parametrize("text", ["", "{", '{"format_version": 1,', "\udcff", "[" * 100_000, "1" * 6000])
    def test_config_must_be_json(self, folder, text):
        (folder / "config.json").write_text(text, errors="surrogateescape")
        refused(folder, f"{folder / 'config.json'} must be JSON: ")

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda c: c.update(format_version=3), "format_version 3, newer than 2, .*: upgrade mlx_transformer"),
            (lambda c: c.update(format_version=99, new_field=1), "format_version 99, newer than 2"),
            (lambda c: c.update(format_version="1"), "format_version must be int, not '1'"),
            (
                lambda c: c.pop("format_version"),
                "must be that of a model folder, but it has no format_version: check the path",
            ),
            (lambda c: c.update(modle=c.pop("model")), "unknown fields: modle. Similar ones are model"),
            (lambda c: c.pop("model"), "lacks the fields model"),
            (lambda c: c["model"].update(width=3), "model has unknown fields: width. Known ones are .*dims"),
            (lambda c: c["model"].update(dims="64"), "model: dims must be int, not '64'"),
            (lambda c: c["model"].pop("dims"), "model lacks the fields dims"),
            (lambda c: c["model"]["encoder"].update(num_heads=-2), "encoder: num_heads must be more than 0, not -2"),
            (lambda c: c["model"]["decoder"].update(norm=1), "decoder has unknown fields: norm"),
            (lambda c: c["search"].update(beam_size=0), "search: beam_size must be more than 0, not 0"),
            (lambda c: c["search"].update(beams=2), "search has unknown fields: beams"),
            (lambda c: c.update(search=[]), r"search must be an object with fields, not \[\]"),
            (lambda c: c.update(quantization="yes"), "quantization must be an object with fields, not 'yes'"),
            (lambda c: c.update(quantization={"bits": "8"}), "quantization: bits must be int, not '8'"),
            (lambda c: c.update(quantization={"bits": 5}), "quantization: bits must be one of 4, 8, not 5"),
            (lambda c: c.update(quantization={"bit": 8}), "quantization has unknown fields: bit"),
            (lambda c: c.update(quantization={"bits": 8, "group_size": 0}), "group_size must be one of .*, not 0"),
        ],
    )
    def test_config_with_an_invalid_field(self, folder, change, told):
        edit(folder, change)
        assert str(folder / "config.json") in refused(folder, told)

    def test_oversized_config(self, folder):
        with (folder / "config.json").open("wb") as file:
            file.truncate(MAX_BYTES + 1)  # sparse
        refused(folder, "must have at most [0-9]+ bytes, not")

    @pytest.mark.parametrize("name, value", [("num_layers", 3_000_000), ("max_length", 2 * 10**9)])
    def test_absurd_sizes_are_rejected_before_allocation(self, folder, monkeypatch, name, value):
        monkeypatch.setattr(model_folder, "Transformer", None)
        edit(folder, lambda config: config["model"]["encoder"].update({name: value}))
        refused(folder, f"encoder: {name} must be at most [0-9]+, not {value}")

    @pytest.mark.parametrize("data", ["[]", "3", '"text"', "null"])
    def test_config_must_be_an_object(self, folder, data):
        (folder / "config.json").write_text(data)
        refused(folder, re.escape(f"{folder / 'config.json'} must be an object with fields, not "))

    def test_all_mismatched_names_and_shapes_are_reported(self, folder):
        path = folder / "model.safetensors"
        weights = mx.load(str(path))
        missing = [name for name in sorted(weights) if "feed_forward" in name][:6]
        weights = {name: array for name, array in weights.items() if name not in missing}
        weights["extra.weight"] = weights["other"] = mx.zeros(2)
        weights["encoder.norm.weight"] = mx.zeros(63)
        mx.save_safetensors(str(path), weights)
        message = refused(folder, f"{path} does not hold the arrays of its config.json")
        assert f"6 missing ({missing[0]} and 5 more)" in message
        assert "2 unexpected (extra.weight, other)" in message
        assert "1 of another shape (encoder.norm.weight (63,) instead of (64,))" in message

    @pytest.mark.parametrize("changes", [["missing"], ["missing", "unexpected"], ["missing", "unexpected", "shape"]])
    def test_lists_of_mismatches_are_short(self, folder, changes):
        path = folder / "model.safetensors"
        weights = mx.load(str(path))
        names = [name for name in sorted(weights) if "attention" in name][:6]
        if "unexpected" in changes:
            weights |= {f"{name}.as.of.another.model": weights[name] for name in names}
        if "shape" in changes:
            weights |= {name: mx.zeros(weights[name].size) for name in sorted(weights) if "feed_forward" in name}
        weights = {name: array for name, array in weights.items() if name not in names}
        mx.save_safetensors(str(path), weights)
        message = refused(folder, f"does not hold the arrays .*: {len(names)} missing \\({names[0][:30]}")
        assert len(message) - len(str(folder)) <= 300

    @pytest.mark.parametrize("dtype", [mx.int32, mx.uint32, mx.uint8, mx.bool_])
    def test_weights_that_are_no_floats(self, folder, dtype):
        path = folder / "model.safetensors"
        weights = mx.load(str(path))
        mx.save_safetensors(str(path), weights | {"encoder.norm.weight": weights["encoder.norm.weight"].astype(dtype)})
        name = str(dtype).removeprefix("mlx.core.")
        told = refused(folder, f"{path} does not hold the arrays .*: 1 of another type")
        assert f"(encoder.norm.weight {name} instead of float32)" in told

    @pytest.mark.parametrize("dtype", [mx.float32, mx.int32])
    def test_packed_weights_that_are_not_packed(self, tmp_path, model, dtype):
        model_folder.save(tmp_path / "model", model, quantize=8)
        path = tmp_path / "model" / "model.safetensors"
        weights = mx.load(str(path))
        name = next(name for name, array in weights.items() if array.dtype == mx.uint32)
        mx.save_safetensors(str(path), weights | {name: weights[name].view(dtype)})
        refused(tmp_path / "model", rf"1 of another type \({name} .* instead of uint32\)")

    @pytest.mark.parametrize("shift", [-256, 256])
    def test_arrays_that_overlap_or_leave_a_gap(self, folder, shift):
        path = folder / "model.safetensors"
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        entry = header["decoder.norm.weight"]
        entry["data_offsets"] = [offset + shift for offset in entry["data_offsets"]]
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
        refused(folder, f"{path} must have one array after the other, but one starts at [0-9]+ instead of [0-9]+")

    def test_bytes_after_the_last_array(self, folder):
        with (folder / "model.safetensors").open("ab") as file:
            file.write(b"more")
        refused(folder, "must end with its last array, but 4 bytes follow it")

    def test_swapped_arrays_of_one_shape(self, folder):
        path = folder / "model.safetensors"
        weights = mx.load(str(path))
        names = [f"encoder.layers.0.self_attention.{name}_proj.weight" for name in ("query", "key")]
        first, second = (weights[name] for name in names)
        mx.save_safetensors(str(path), weights | dict(zip(names, (second, first), strict=True)))
        refused(folder, f"{path} does not match its checksum in SHA256SUMS: copy it again, or delete SHA256SUMS if")
        (folder / "SHA256SUMS").unlink()
        model_folder.load(folder)

    def test_large_weights_are_not_verified_at_every_load(self, folder, monkeypatch):
        (folder / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
        size = (folder / "model.safetensors").stat().st_size
        monkeypatch.setattr(model_folder, "MAX_BYTES_TO_VERIFY", size - 1)
        model_folder.load(folder)
        monkeypatch.setattr(model_folder, "MAX_BYTES_TO_VERIFY", size)
        refused(folder, "does not match its checksum")

    def test_weights_that_get_shorter_while_they_are_read(self, folder, monkeypatch, tmp_path):
        prepare = model_folder.prepare_for_inference

        def truncate(*arguments, **options):
            os.truncate(folder / "model.safetensors", 3000)
            prepare(*arguments, **options)

        monkeypatch.setattr(model_folder, "prepare_for_inference", truncate)
        with pytest.raises(OSError, match=f"{folder / 'model.safetensors'} could not be read completely: it changed"):
            model_folder.load(folder)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.json", "SHA256SUMS"])
    def test_pipes_and_folders_with_the_names_of_files(self, folder, name):
        (folder / name).unlink(missing_ok=True)  # models trained here have no vocabulary.json
        os.mkfifo(folder / name)
        refused(folder, f"{folder / name} must be a file, not a folder, device or pipe")
        (folder / name).unlink()
        (folder / name).mkdir()
        refused(folder, f"{folder / name} must be a file, not a folder, device or pipe")

    @pytest.mark.parametrize("read", ["read_model", "read_config"])
    def test_a_folder_that_is_replaced_while_it_is_read(self, folder, model, monkeypatch, read):
        """Its files would not belong together, or some would be missing."""
        original = vars(model_folder)[read]

        def replace(*arguments):
            result = original(*arguments)
            monkeypatch.undo()
            model_folder.save(folder, model)
            return result

        for load in (model_folder.load, lambda path: model_folder.convert_model_folder(path, folder.parent / "other")):
            monkeypatch.setattr(model_folder, read, replace)
            with pytest.raises(OSError, match=f"{folder} was replaced while it was read: repeat the command"):
                load(folder)
        assert not (folder.parent / "other").exists()

    def test_quantised_weights_without_a_quantised_config(self, tmp_path, model):
        model_folder.save(tmp_path / "model", model, quantize=8)
        edit(tmp_path / "model", lambda config: config.update(quantization=None))
        refused(tmp_path / "model", r"unexpected \(.*biases.*of another shape")

    def test_a_tokenizer_larger_than_the_weights(self, folder, tokenizer):
        texts = [f"{a}{b} {b}{a}" for a in "abcdefghijklm" for b in "nopqrstuvw"]
        large = Tokenizer.train(texts, texts, 400)
        assert large.source_vocab_size > 300
        large.save(folder)
        refused(
            folder,
            rf"vocabulary of {folder} does not match .*: it has {large.source_vocab_size} source pieces, the model 288",
        )
        Tokenizer(tokenizer.source, large.source).save(folder)
        refused(folder, f"it has {large.source_vocab_size} target pieces, the model 288")

    def test_a_tokenizer_with_other_special_tokens(self, folder):
        edit(folder, lambda data: data["model"].update(start_id=5))
        refused(folder, "it has 2 as start_id, the model 5")

    def test_a_damaged_tokenizer(self, folder):
        (folder / "tokenizer.json").write_text("{")
        refused(folder, f"{folder / 'tokenizer.json'} must hold a tokenizer: ")


class TestReplacing:
    def test_existing_folder_is_replaced_completely(self, folder, model, tmp_path):
        model_folder.save(folder, model)
        assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "config.json", "model.safetensors"]
        assert list(tmp_path.iterdir()) == [folder]

    def test_parent_folders_are_created(self, tmp_path, model):
        model_folder.save(tmp_path / "a" / "b" / "model", model)
        assert model_folder.load(tmp_path / "a" / "b" / "model")[0].config == CONFIG

    def test_relative_string_paths(self, tmp_path, model, monkeypatch):
        monkeypatch.chdir(tmp_path)
        model_folder.save("model", model)
        assert model_folder.load("model")[0].config == CONFIG

    def test_saving_through_a_link_replaces_its_target(self, folder, model, tmp_path):
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        model_folder.save(tmp_path / "link", model)
        assert (tmp_path / "link").is_symlink() and not (folder / "tokenizer.json").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"]


FULL_DISK = """
import resource, signal, sys
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.model import precision
import mlx.core as mx
mx.set_default_device(mx.cpu)
model, tokenizer = model_folder.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    model_folder.save(sys.argv[1], model, tokenizer)
except OSError as error:
    sys.exit(f"OSError: {error}")
"""


SAVED_BEFORE = {"model.safetensors": ["config.json"], "tokenizer.json": ["config.json", "model.safetensors"]}


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
@pytest.mark.parametrize("full", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_full_disk(tmp_path, full):
    """The size limit is just below each file's size in turn, so that this file cannot be written."""
    texts = [f"{a}{b} {b}{a}" for a in "abcdefghijklm" for b in "nopqrstuvw"]
    tokenizer = Tokenizer.train(texts, texts, 600)
    vocab_size = tokenizer.source_vocab_size
    small = StackConfig(num_layers=1, num_heads=1, mlp_dims=4, max_length=4)
    folder = tmp_path / "model"
    config = ModelConfig(vocab_size, vocab_size, 2 if full == "tokenizer.json" else 64, small, small)
    model_folder.save(folder, Transformer(config), tokenizer)
    before = contents(tmp_path)
    limit = (folder / full).stat().st_size - 10
    assert full == "config.json" or limit > max(len(before[Path("model") / name]) for name in SAVED_BEFORE[full])
    command = [sys.executable, "-c", FULL_DISK, str(folder), str(limit)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 1, result.stderr
    told = result.stderr.strip()
    assert told.startswith("OSError: ") and told.count("\n") == 0
    if full == "model.safetensors":
        assert (
            f"{full} could not be written completely, is the disk full?" in told and "/.model.replacement/new" in told
        )
    else:
        assert "File too large" in told
    assert contents(tmp_path) == before and list(tmp_path.iterdir()) == [folder]
