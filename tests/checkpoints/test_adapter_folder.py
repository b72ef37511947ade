"""Adapter folders: exact round trips, the right base only, one-line errors, and safe replacement."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from support.tiny_models import config, random_model, stack
from support.training_cases import bitwise_equal

import mlx_transformer as mt
from mlx_transformer.checkpoints.adapter_folder import read_adapter, save_adapter
from mlx_transformer.config.adapter import AdapterConfig
from mlx_transformer.model.adapters import adapter_arrays, add_adapter, remove_adapter, set_adapter_arrays
from mlx_transformer.storage.checksums import CHECKSUM_FILE
from mlx_transformer.storage.files import sha256_of

WORDS = ["ab", "cde", "fg", "hijk", "l", "mno"]
LINES = ["ab cde", "fg hijk l mno", "l", "mno mno ab fg cde hijk l"]
ADAPTER = AdapterConfig(rank=3, alpha=6.0, dropout=0.1, targets=("attention", "decoder.*.up_proj"))
EMBEDDINGS = AdapterConfig(rank=2, alpha=8.0, layers=1, dora=True, rslora=True, modules_to_save=("embeddings",))


@pytest.fixture(scope="module")
def tokenizer():
    texts = [" ".join(WORDS)] * 3
    return mt.Tokenizer.train(texts, texts, 300)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / "base"
    size = tokenizer.source_vocab_size
    wide = config(
        dims=64, source_vocab_size=size, target_vocab_size=size, encoder=stack(mlp_dims=64), decoder=stack(mlp_dims=64)
    )
    mt.save(folder, random_model(wide, gain=3), tokenizer)
    return folder


def write_adapter(folder, base, adapter=ADAPTER, seed=0):
    """Write an adapter with random values for a model folder."""
    model, _ = mt.load(base)
    add_adapter(model, adapter)
    rng = np.random.default_rng(seed)
    arrays = {
        name: mx.array((np.array(array) + 0.3 * rng.standard_normal(array.shape)).astype(np.float32))
        for name, array in adapter_arrays(model).items()
    }
    set_adapter_arrays(model, arrays, "test")
    save_adapter(folder, model)
    return model


@pytest.fixture
def adapters(tmp_path, base):
    for name, adapter in (("first", ADAPTER), ("second", EMBEDDINGS)):
        write_adapter(tmp_path / name, base, adapter)
    return tmp_path / "first", tmp_path / "second"


def outputs(model, tokenizer):
    """Texts and scores of a search."""
    hypotheses = mt.generate_hypotheses(model, tokenizer, LINES, beam_size=2, max_tokens=8)
    return [(hypothesis.text, hypothesis.score) for (hypothesis,) in hypotheses]


@pytest.mark.parametrize("adapter", [ADAPTER, EMBEDDINGS])
def test_round_trip(tmp_path, base, adapter):
    model = write_adapter(tmp_path / "adapter", base, adapter)
    stored, arrays = read_adapter(tmp_path / "adapter")
    checksum = sha256_of(base / "model.safetensors")
    assert stored == replace(adapter, base_model=str(base), base_checksum=checksum)
    assert bitwise_equal(arrays, adapter_arrays(model))
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        CHECKSUM_FILE,
        "adapter_config.json",
        "adapters.safetensors",
    ]


def test_the_configuration_is_that_of_mlx_lm(adapters):
    fields = json.loads((adapters[0] / "adapter_config.json").read_text())
    assert fields["fine_tune_type"] == "lora" and fields["num_layers"] == -1
    parameters = {"rank": 3, "scale": 2.0, "dropout": 0.1, "keys": ["attention", "decoder.*.up_proj"]}
    assert fields["lora_parameters"] | parameters == fields["lora_parameters"]
    assert json.loads((adapters[1] / "adapter_config.json").read_text())["fine_tune_type"] == "dora"


def test_several_adapters_in_turn_on_one_model(base, adapters, tokenizer):
    """Loaded one after the other, removed, and each loaded together with the model."""
    model, _ = mt.load(base)
    results = {None: outputs(model, tokenizer)}
    for adapter in (*adapters, *adapters):
        mt.load_adapter(model, adapter)
        result = outputs(model, tokenizer)
        assert result == results.setdefault(adapter, result)
    for adapter in adapters:
        assert outputs(*mt.load(base, adapter=adapter)) == results[adapter]
    mt.remove_adapter(model)
    assert outputs(model, tokenizer) == results[None]
    assert len(set(map(tuple, results.values()))) == 3


def test_threads_share_a_model_with_an_adapter(base, adapters):
    model, tokenizer = mt.load(base, "float16", adapter=adapters[0])
    expected = [mt.generate(model, tokenizer, line, beam_size=3, max_tokens=6) for line in LINES]
    model, tokenizer = mt.load(base, "float16", adapter=adapters[0])
    with ThreadPoolExecutor(4) as executor:
        results = executor.map(lambda line: mt.generate(model, tokenizer, line, beam_size=3, max_tokens=6), LINES * 3)
        assert list(results) == expected * 3


def test_loading_does_not_consume_random_numbers(base, adapters):
    model, _ = mt.load(base)
    mx.random.seed(5)
    expected = mx.random.normal((3,))
    mx.random.seed(5)
    mt.load_adapter(model, adapters[0])
    assert mx.array_equal(mx.random.normal((3,)), expected)


@pytest.mark.parametrize(
    "options", [{"dtype": "float16"}, {"quantize": 4}, {"quantize": 8, "dtype": "bfloat16"}], ids=str
)
def test_copies_in_other_precisions_have_the_same_adapters(tmp_path, base, adapters, options):
    mt.convert(base, tmp_path / "copy", **options)
    model, tokenizer = mt.load(tmp_path / "copy", options.get("dtype"), adapter=adapters[0])
    assert mt.generate(model, tokenizer, LINES, max_tokens=4)
    arrays = dict(tree_flatten(model.parameters())).values()
    assert {array.dtype for array in arrays} == {model.dtype}
    mt.convert(tmp_path / "copy", tmp_path / "again")
    mt.load(tmp_path / "again", adapter=adapters[0])


def test_another_base_is_refused_by_name(tmp_path, base, adapters):
    other = tmp_path / "other"
    model, tokenizer = mt.load(base)
    model.decoder.layers[0].feed_forward.up_proj.bias += 1
    mt.save(other, model, tokenizer)
    message = (
        rf"{adapters[0]} is an adapter of {base} \(weights \w+\), not of {other} \(weights \w+\): load it on its own"
    )
    with pytest.raises(ValueError, match=message):
        mt.load(other, adapter=adapters[0])


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("is_loaded", [True, False])
def test_weights_changed_in_memory_are_not_those_of_the_file(tmp_path, base, adapters, in_place, is_loaded):
    """The adapter of a model that was trained after it was loaded does not name the original as its base."""
    model, tokenizer = mt.load(base, adapter=adapters[0] if is_loaded else None)
    if in_place:
        model.decoder.layers[0].feed_forward_residual.norm.weight += 1
    else:
        model.update(tree_map(lambda array: array + 0.001, model.parameters()))
    if not is_loaded:
        mt.add_adapter(model, ADAPTER)
    save_adapter(tmp_path / "adapter", model)
    stored, _ = read_adapter(tmp_path / "adapter")
    assert (stored.base_model, stored.base_checksum) == (None, None)
    mt.remove_adapter(model)
    mt.save(tmp_path / "tuned", model, tokenizer)
    assert mt.load(tmp_path / "tuned", adapter=tmp_path / "adapter")
    with pytest.raises(ValueError, match="load it on its own base"):
        mt.load(tmp_path / "tuned", adapter=adapters[0])


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}, {"quantize": 8}], ids=str)
def test_copies_written_by_save_have_the_same_adapters(tmp_path, base, adapters, options):
    model, tokenizer = mt.load(base, adapter=adapters[1])
    mt.remove_adapter(model)
    mt.save(tmp_path / "copy", model, tokenizer, **options)
    assert mt.load(tmp_path / "copy", adapter=adapters[0])
    mt.save(tmp_path / "copy", *mt.load(tmp_path / "copy"))  # over its own source
    assert mt.load(tmp_path / "copy", adapter=adapters[1])


def test_the_source_prefix_of_an_adapter_goes_with_it(tmp_path, base):
    prefixes = {"first": "ab ", "second": "cde ", "plain": ""}
    for name, prefix in prefixes.items():
        write_adapter(tmp_path / name, base, replace(ADAPTER, source_prefix=prefix))
    model, tokenizer = mt.load(base)
    tokenizer.config = replace(tokenizer.config, source_prefix="mno ")
    for name in ("first", "second", "plain", "second"):
        mt.load_adapter(model, tmp_path / name, tokenizer)
        assert tokenizer.config.source_prefix == (prefixes[name] or "mno ")
    (tmp_path / "plain" / "adapters.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="plain"):
        mt.load_adapter(model, tmp_path / "plain", tokenizer)
    change_config(tmp_path / "first", lora_parameters={"rank": 65, "alpha": 65, "scale": 1, "dropout": 0, "keys": []})
    (tmp_path / "first" / CHECKSUM_FILE).unlink()
    with pytest.raises(ValueError, match="first"):
        mt.load_adapter(model, tmp_path / "first", tokenizer)
    assert tokenizer.config.source_prefix == "cde "
    mt.remove_adapter(model)
    assert tokenizer.config.source_prefix == "mno "
    mt.load_adapter(model, tmp_path / "second", tokenizer)
    mt.fuse_adapter(model)
    assert tokenizer.config.source_prefix == "cde "


def test_an_unknown_base_is_allowed(tmp_path, base):
    model = write_adapter(tmp_path / "adapter", base)
    model.weights_source = None
    save_adapter(tmp_path / "adapter", model)
    assert mt.load_adapter(mt.load_model(base), tmp_path / "adapter").base_model is None


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_arrays(folder, change):
    arrays = mx.load(str(folder / "adapters.safetensors"))
    mx.eval(arrays)
    mx.save_safetensors(str(folder / "adapters.safetensors"), change(arrays))


DAMAGES = {
    "format_version 2, newer than 1": lambda folder: change_config(folder, format_version=2),
    "has unknown fields: typo": lambda folder: change_config(folder, typo=1),
    "num_layers must be int": lambda folder: change_config(folder, num_layers="all"),
    "layers must be more than 0": lambda folder: change_config(folder, num_layers=0),
    "fine_tune_type must be one of": lambda folder: change_config(folder, fine_tune_type="full"),
    "must be JSON": lambda folder: (folder / "adapter_config.json").write_text("{"),
    "it has no format_version": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "adapter_config.json, but": lambda folder: (folder / "adapter_config.json").unlink(),
    "adapters.safetensors is missing": lambda folder: (folder / "adapters.safetensors").unlink(),
    "must be a complete safetensors file": lambda folder: (folder / "adapters.safetensors").write_bytes(b"x"),
    "must be finite": lambda folder: change_arrays(folder, lambda arrays: {k: v * mx.nan for k, v in arrays.items()}),
    "1 missing": lambda folder: change_arrays(folder, lambda arrays: dict(list(arrays.items())[1:])),
    "must have the shape": lambda folder: change_arrays(folder, lambda arrays: {k: v[1:] for k, v in arrays.items()}),
    "rank must be at most the width of each layer, 64": lambda folder: change_config(
        folder, lora_parameters={"rank": 65, "alpha": 65, "scale": 1, "dropout": 0, "keys": ["attention"]}
    ),
    "scale must be that of rank and alpha, 2, not 3": lambda folder: change_config(
        folder, lora_parameters={"rank": 3, "alpha": 6, "scale": 3, "dropout": 0, "keys": ["attention"]}
    ),
    "does not match its checksum": lambda folder: (folder / CHECKSUM_FILE).write_text(
        re.sub(r"\w{64}  adapters", "0" * 64 + "  adapters", (folder / CHECKSUM_FILE).read_text())
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_an_error_and_the_model_stays(base, adapters, message):
    model, tokenizer = mt.load(base, adapter=adapters[1])
    before = outputs(model, tokenizer)
    if "checksum" not in message:
        (adapters[0] / CHECKSUM_FILE).unlink()
    DAMAGES[message](adapters[0])
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        mt.load_adapter(model, adapters[0])
    assert str(adapters[0]) in str(error.value) and "\n" not in str(error.value)
    assert outputs(model, tokenizer) == before


def test_a_folder_of_the_other_kind_is_named(tmp_path, base, adapters):
    with pytest.raises(
        ValueError, match=f"{adapters[0]} is an adapter, not a model: give its base, {base}, as the model"
    ):
        mt.load(adapters[0])
    with pytest.raises(ValueError, match=f"{base} is a model, not an adapter: give it as the model"):
        mt.load(base, adapter=base)
    with pytest.raises(FileNotFoundError, match="has none: check the path"):
        mt.load(base, adapter=tmp_path / "nowhere")


def test_folders_of_the_other_kind_are_not_replaced(tmp_path, base, adapters):
    model, tokenizer = mt.load(base, adapter=adapters[0])
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    with pytest.raises(FileExistsError, match="copy exists and is not an adapter folder"):
        save_adapter(copy, model)
    save_adapter(adapters[0], model)
    remove_adapter(model)
    with pytest.raises(FileExistsError, match="first exists and is not a model folder"):
        mt.save(adapters[0], model, tokenizer)
    (adapters[0] / "notes.txt").write_text("mine")
    mt.load_adapter(model, adapters[1])
    with pytest.raises(FileExistsError, match="do not belong to the adapter and would be lost"):
        save_adapter(adapters[0], model)


def test_a_fused_model_is_no_base_any_more(tmp_path, base, adapters):
    model, tokenizer = mt.load(base, adapter=adapters[0])
    expected = outputs(model, tokenizer)
    mt.fuse_adapter(model)
    for (text, score), (fused_text, fused_score) in zip(expected, outputs(model, tokenizer), strict=True):
        assert text == fused_text and abs(score - fused_score) < 1e-4
    mt.save(tmp_path / "fused", model, tokenizer)
    with pytest.raises(ValueError, match="load it on its own base"):
        mt.load(tmp_path / "fused", adapter=adapters[0])
