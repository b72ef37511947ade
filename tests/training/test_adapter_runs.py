"""Training of adapters: only they change, are kept and written, and runs of all recipes resume exactly."""

import dataclasses
import os
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from support.training_cases import (
    bitwise_equal,
    fine_tuning_options,
    flatten,
    interrupt_at,
    log_events,
    make_batch,
    run_options,
    runs_equal,
    write_corpora,
)

import mlx_transformer as mt
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.checkpoints.adapter_folder import read_adapter
from mlx_transformer.data.dataset import TokenizedCorpus
from mlx_transformer.data.parallel_corpus import ParallelCorpora
from mlx_transformer.training.builders import build_model_and_tokenizer
from mlx_transformer.training.run_directory import RunDirectory
from mlx_transformer.training.train_state import TrainState
from mlx_transformer.training.trainer import train
from mlx_transformer.training.validation import validate

pytestmark = pytest.mark.cpu

LORA = {"lora_rank": 4, "steps": 8, "best_by": "loss"}
# Each has other state to save and restore.
VARIANTS = [
    {"lora_dropout": 0.3, "accumulate": 2},
    {"dora": True, "lora_layers": 1, "optimizer": "adamw", "weight_decay": 0.1, "ema_decay": 0.0},
    {"rslora": True, "lora_modules_to_save": ("embeddings",), "lora_targets": ("mlp", "decoder.*.value_proj")},
    {"average_checkpoints": 2, "keep": 3, "schedule": "cosine", "ema_decay": 0.0, "freeze": ("encoder",)},
    {"compute_dtype": "float16", "recompute": True, "patience": 1, "valid_every": 2, "lora_dropout": 0.2},
]


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """The base as it was trained, and quantised to 8 and 4 bits."""
    folder = tmp_path_factory.mktemp("bases")
    best = train(run_options(write_corpora(folder), mlp_dims=64))
    for bits in (8, 4):
        mt.convert(best, folder / f"base-{bits}", quantize=bits)
    return {None: best, 8: folder / "base-8", 4: folder / "base-4"}


def adapter_options(options, base, **changes):
    return fine_tuning_options(options, base, **LORA | changes)


def base_arrays(model):
    adapted = model.trainable_parameters()
    return {name: array for name, array in flatten(model).items() if name not in flatten(adapted)}


def validation_loss(options, model, tokenizer):
    corpus = TokenizedCorpus.build(ParallelCorpora(options.valid), tokenizer, options.max_length)
    return validate(model, corpus, options.batch_tokens)["loss"]


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_result_is_an_adapter_of_the_base(options, bases, bits):
    options = adapter_options(options, bases[bits])
    best = train(options)
    losses = [entry["loss"] for entry in log_events(options.output, "validation")]
    assert losses[-1] < losses[0] - 0.001
    config, arrays = read_adapter(best)
    assert (config.rank, config.alpha, config.base_model) == (4, 8.0, str(bases[bits]))
    (start,) = log_events(options.output, "start")
    assert start["parameters"] == sum(array.size for array in arrays.values())
    assert all(
        array.dtype == mx.float32 and name.rpartition(".")[2].startswith("lora_") for name, array in arrays.items()
    )
    assert validation_loss(options, *mt.load(bases[bits], adapter=best)) == pytest.approx(losses[-1], abs=1e-4)


@pytest.mark.parametrize("bits", [None, 4])
def test_checkpoints_hold_the_adapter_and_no_base(options, bases, bits):
    options = adapter_options(options, bases[bits])
    train(options)
    run = RunDirectory(options.output)
    _, arrays = read_adapter(run.best)
    sizes = sum(array.nbytes for array in arrays.values())
    for checkpoint in run.checkpoints():
        assert not (checkpoint / "model.safetensors").exists()
        assert os.path.getsize(checkpoint / "adapters.safetensors") < sizes + 20_000
        assert os.path.getsize(checkpoint / "training.safetensors") < 3 * sizes + 60_000  # two moments and the average


@pytest.mark.parametrize("bits", [None, 4])
def test_the_base_stays_as_it_is_in_memory(options, bases, bits):
    options = adapter_options(options, bases[bits], weight_decay=0.1, optimizer="adamw")
    model, _ = build_model_and_tokenizer(options, None)
    state = TrainState(model, options)
    packed = [name for name, array in flatten(model).items() if array.dtype == mx.uint32]
    assert len(packed) == (bits is not None) * (1 + 5 + 8)  # embeddings, a layer of the encoder, one of the decoder
    before, trained = base_arrays(model), flatten(model.trainable_parameters())
    for _ in range(2):
        state.update([make_batch()])
    assert bitwise_equal(before, base_arrays(model))
    assert all(
        not mx.array_equal(array, trained[name]) for name, array in flatten(model.trainable_parameters()).items()
    )
    assert flatten(state.optimizer.state).keys() >= {f"{name}.m" for name in trained}
    assert not any("linear" in name for name in flatten(state.optimizer.state) | flatten(state.ema_weights))


@pytest.mark.parametrize("bits", [None, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(options, bases, bits, tmp_path):
    check_resuming(adapter_options(options, bases[bits]), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("bits", [None, 8])
def test_resuming_is_exact_for_all_options(options, bases, bits, changes, tmp_path):
    check_resuming(adapter_options(options, bases[bits], **changes), tmp_path)


def check_resuming(options, tmp_path):
    resumed = dataclasses.replace(options, output=str(tmp_path / "resumed"), log_every=1)
    train(options)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(dataclasses.replace(resumed, resume=resume), interrupt_at(1, 3))
    train(dataclasses.replace(resumed, resume=True))
    assert runs_equal(options.output, resumed.output)
    assert log_events(options.output, "validation") == log_events(resumed.output, "validation")


def test_the_average_is_validated_and_written(options, bases):
    options = adapter_options(options, bases[None], ema_decay=0.9)
    best = train(options)
    (*_, average) = [entry["loss"] for entry in log_events(options.output, "validation")]
    last = validation_loss(options, *mt.load(bases[None], adapter=Path(options.output) / "last"))
    assert validation_loss(options, *mt.load(bases[None], adapter=best)) == pytest.approx(average, abs=1e-4)
    assert abs(last - average) > 1e-3


def test_modules_to_save_are_trained_in_full(options, bases):
    best = train(adapter_options(options, bases[4], lora_modules_to_save=("embeddings",), lora_targets=("mlp",)))
    _, arrays = read_adapter(best)
    base = mt.load_model(bases[4])
    assert arrays["source_embedding.weight"].shape == base.source_embedding.weight.shape
    assert not mx.allclose(arrays["source_embedding.weight"], base.source_embedding.weight, atol=1e-4)


def test_frozen_parts_get_no_update(options, bases):
    best = train(adapter_options(options, bases[None], freeze=("encoder",)))
    _, arrays = read_adapter(best)
    changed = {name.partition(".")[0] for name, array in arrays.items() if name.endswith("lora_b") and array.any()}
    assert changed == {"decoder"}


def test_the_source_prefix_of_a_run_is_that_of_its_adapter(options, bases):
    best = train(adapter_options(options, bases[None], source_prefix="ab ", steps=1))
    _, tokenizer = mt.load(bases[None], adapter=best)
    assert tokenizer.config.source_prefix == "ab "
    assert mt.load(bases[None])[1].config.source_prefix == ""


def test_an_adapter_resumes_on_its_own_base_only(options, bases, tmp_path):
    model, tokenizer = mt.load(bases[None])
    mt.save(tmp_path / "base", model, tokenizer)
    options = adapter_options(options, tmp_path / "base", steps=1)
    train(options)
    model.decoder.norm.weight += 1
    model_folder.save(tmp_path / "base", model, tokenizer)
    with pytest.raises(ValueError, match=r"last is an adapter of .*base \(weights .*load it on its own base"):
        train(dataclasses.replace(options, resume=True, steps=2))


def test_a_run_resumes_with_a_base_that_was_moved(options, bases, tmp_path):
    shutil.copytree(bases[4], tmp_path / "base")
    options = adapter_options(options, tmp_path / "base", steps=1)
    train(options)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="there is none at .*base"):
        train(dataclasses.replace(options, resume=True, steps=2))
    best = train(dataclasses.replace(options, resume=True, steps=2, init=str(tmp_path / "moved")))
    assert read_adapter(best)[0].base_model == str(tmp_path / "moved")


def test_a_damaged_checkpoint_and_a_damaged_best_are_set_aside(options, bases, tmp_path):
    options = adapter_options(options, bases[None], keep=2)
    expected = dataclasses.replace(options, output=str(tmp_path / "expected"))
    train(expected)
    with pytest.raises(KeyboardInterrupt):
        train(options, interrupt_at(6))
    run = RunDirectory(options.output)
    for folder in (run.last, run.best):
        (folder / "adapters.safetensors").write_bytes(b"")
    train(dataclasses.replace(options, resume=True))
    assert runs_equal(expected.output, options.output)
    assert (run.folder / "damaged-last").exists() and (run.folder / "damaged-best").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": None, "lora_alpha": 3.0}, "lora_alpha is an option of adapters: set lora_rank as well"),
        ({"lora_rank": None, "dora": True}, "dora is an option of adapters: set lora_rank as well"),
        ({"lora_rank": 0}, "lora_rank must be more than 0, not 0"),
        ({"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1"),
        ({"lora_targets": ()}, "lora_targets must name a layer, unless other parts"),
        ({"init": None}, "lora_rank only applies to fine-tuning: set init as well"),
        ({"recase": True}, "recase is an option of models and not of adapters"),
    ],
)
def test_options_that_do_not_fit_together(options, bases, changes, message):
    with pytest.raises(ValueError, match=message):
        adapter_options(options, bases[None], **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_rank": 65}, "lora_rank must be at most the width of each layer, 64 of .*, not 65"),
        ({"lora_targets": ("q_proj",)}, "lora_targets must name linear layers of the model, but 'q_proj' matches none"),
        ({"lora_modules_to_save": ("outputs",)}, "lora_modules_to_save must name modules of the model, .*are output"),
        ({"freeze": ("encoder", "decoder")}, "freeze must leave something to train, but nothing is left without"),
        ({"lora_layers": 2}, "lora_layers must be at most 1"),
    ],
)
def test_adapters_that_do_not_fit_the_model(options, bases, changes, message):
    options = adapter_options(options, bases[None], **changes)
    with pytest.raises(ValueError, match=message):
        train(options)
    assert not Path(options.output).exists()


def test_a_run_of_an_adapter_is_no_model(options, bases):
    train(adapter_options(options, bases[None], steps=1))
    message = (
        f"is an adapter, not a model: give its base, {bases[None]}, as the model, and {options.output}/best as the"
    )
    with pytest.raises(ValueError, match=message):
        mt.load(options.output)
    with pytest.raises(
        ValueError, match=f"{options.output} is a training run, not an adapter: use {options.output}/best"
    ):
        mt.load(bases[None], adapter=options.output)
