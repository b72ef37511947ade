"""Configs: conversion to and from JSON, types, and validation of values."""

import dataclasses
import json
from dataclasses import replace

import pytest

from mlx_transformer.config.folder import FolderConfig
from mlx_transformer.config.model import ModelConfig, QuantizationConfig, StackConfig
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.config.serialization import from_dict, to_dict
from mlx_transformer.config.training import NEW_MODEL_OPTIONS, PRESETS, ModelSize, TrainingConfig

STACK = StackConfig(num_layers=2, num_heads=4, mlp_dims=64)
MODEL = ModelConfig(
    source_vocab_size=300,
    target_vocab_size=400,
    dims=32,
    encoder=STACK,
    decoder=StackConfig(1, 2, 16, norm_first=True, final_norm=True, positions="learned", max_length=9),
    share_embeddings=False,
    head_dims=24,
    dropout=0,
    activation="silu",
)
SEARCH = SearchConfig(beam_size=4, num_hypotheses=2, max_tokens=9, early_stopping="never", suppress_ids=(0, 2))
TRAINING = TrainingConfig(train=("a.tsv", "b::c"), valid=("dates",), output="run", best_by="bleu", seed=3)
QUANTIZATION = QuantizationConfig(bits=4, group_size=32)
TASK = TaskConfig("summarization", "summarize: ", SEARCH)
FOLDER = FolderConfig(format_version=1, model=MODEL, search=SEARCH, quantization=QUANTIZATION, tasks=(TASK,))
CONFIGS = [STACK, MODEL, SEARCH, TRAINING, QUANTIZATION, TASK, FOLDER]


def kind_of(config):
    return type(config).__name__


@pytest.mark.parametrize("config", CONFIGS, ids=kind_of)
def test_configs_survive_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config))), "it") == config


@pytest.mark.parametrize("config", CONFIGS, ids=kind_of)
def test_a_config_is_frozen_and_hashable(config):
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)


@pytest.mark.parametrize("config", CONFIGS, ids=kind_of)
def test_fields_with_defaults_may_be_omitted(config):
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING and field.name != "share_embeddings":
            data = {name: value for name, value in to_dict(config).items() if name != field.name}
            if field.name == "beam_size":
                data["num_hypotheses"] = 1
            assert vars(from_dict(type(config), data, "it"))[field.name] == field.default


@pytest.mark.parametrize("config", CONFIGS, ids=kind_of)
def test_unknown_and_missing_fields_are_named(config):
    data = to_dict(config)
    with pytest.raises(ValueError, match="^it has unknown fields: beams, widht. The known ones are .*"):
        from_dict(type(config), data | {"widht": 1, "beams": 2}, "it")
    for field in dataclasses.fields(config):
        if field.default is dataclasses.MISSING:
            with pytest.raises(ValueError, match=f"^it lacks the fields {field.name}"):
                from_dict(type(config), {k: v for k, v in data.items() if k != field.name}, "it")


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_a_config_must_be_a_json_object(data):
    with pytest.raises(ValueError, match=f"^it must be an object with fields, not {data!r}".replace("[", r"\[")):
        from_dict(ModelConfig, data, "it")
    with pytest.raises(ValueError, match="^it: decoder must be (an object with fields|StackConfig), not "):
        from_dict(ModelConfig, to_dict(MODEL) | {"decoder": data}, "it")


@pytest.mark.parametrize("config", CONFIGS, ids=kind_of)
def test_every_field_checks_its_type(config):
    for field in dataclasses.fields(config):
        for value in ({}, b"1", object()):
            with pytest.raises(ValueError, match=f"^{field.name} must be .*, not "):
                dataclasses.replace(config, **{field.name: value})


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (STACK, "num_layers", True),
        (STACK, "num_layers", 2.0),
        (STACK, "num_layers", "2"),
        (STACK, "num_layers", None),
        (STACK, "norm_first", 1),
        (STACK, "norm_first", "false"),
        (STACK, "positions", "rotary"),
        (STACK, "positions", None),
        (MODEL, "norm_eps", "1e-5"),
        (MODEL, "dropout", False),
        (MODEL, "head_dims", 2.5),
        (MODEL, "activation", "swish"),
        (SEARCH, "early_stopping", "always"),
        (SEARCH, "early_stopping", 1),
        (SEARCH, "suppress_ids", (1, "2")),
        (SEARCH, "suppress_ids", (1, True)),
        (SEARCH, "max_tokens", False),
        (TRAINING, "train", "a.tsv"),
        (TRAINING, "best_by", "rouge"),
    ],
)
def test_type_errors_name_the_field_and_its_value(config, name, value):
    expected = repr(value).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {expected}"):
        dataclasses.replace(config, **{name: value})


def test_an_int_is_accepted_for_a_float():
    assert dataclasses.replace(SEARCH, length_penalty=2).length_penalty == 2


def test_json_lists_become_tuples():
    assert from_dict(SearchConfig, {"suppress_ids": [0, 2]}, "it").suppress_ids == (0, 2)
    with pytest.raises(ValueError, match=r"^it: beam_size must be int, not \(1,\)"):
        from_dict(SearchConfig, {"beam_size": [1]}, "it")


def test_errors_in_a_nested_config_name_its_path():
    for side in ("encoder", "decoder"):
        data = to_dict(MODEL)
        data[side] = {**data[side], "num_layers": "six"}
        with pytest.raises(ValueError, match=f"^config: model: {side}: num_layers must be int, not 'six'"):
            from_dict(ModelConfig, data, "config: model")
        data[side] = {"mlp_dims": 64}
        with pytest.raises(ValueError, match=f"^model: {side} lacks the fields num_heads, num_layers"):
            from_dict(ModelConfig, data, "model")


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        *[(STACK, {name: 0}, f"{name} must be more than 0, not 0") for name in ("num_layers", "num_heads", "mlp_dims")],
        (STACK, {"num_layers": 1001}, "num_layers must be at most 1000, not 1001"),
        *[
            (STACK, {name: 10**12}, f"{name} must be at most [0-9]+, not 1000000000000")
            for name in ("num_layers", "num_heads", "mlp_dims", "max_length", "num_buckets", "max_distance")
        ],
        *[
            (MODEL, {name: 10**12}, f"{name} must be at most [0-9]+, not 1000000000000")
            for name in ("source_vocab_size", "target_vocab_size", "dims", "head_dims")
        ],
        (
            MODEL,
            {"dims": 2**17, "encoder": replace(STACK, max_length=513)},
            "max_length x dims must be at most 67108864",
        ),
        (STACK, {"max_length": -1}, "max_length must be more than 0, not -1"),
        (MODEL, {"source_vocab_size": 0}, "source_vocab_size must be more than 0, not 0"),
        (MODEL, {"target_vocab_size": -7}, "target_vocab_size must be more than 0, not -7"),
        (MODEL, {"dims": 0}, "dims must be more than 0, not 0"),
        (MODEL, {"head_dims": 0}, "head_dims must be more than 0, not 0"),
        (MODEL, {"head_dims": None, "dims": 30}, "num_heads must divide dims: 4 does not divide 30"),
        (MODEL, {"share_embeddings": True}, "vocabularies of one size: 300 is not 400; set share_embeddings to false"),
        (MODEL, {"dropout": 1}, "dropout must be at least 0 and below 1, not 1"),
        (MODEL, {"dropout": -0.1}, "dropout must be at least 0 and below 1, not -0.1"),
        (MODEL, {"pad_id": -1}, "pad_id must be a token id from 0 to 299, not -1"),
        (MODEL, {"eos_id": 400}, "eos_id must be a token id from 0 to 299, not 400"),
        (MODEL, {"start_id": 1000}, "start_id must be a token id from 0 to 399, not 1000"),
        (SEARCH, {"beam_size": 0}, "beam_size must be more than 0, not 0"),
        (SEARCH, {"num_hypotheses": 0}, "num_hypotheses must be more than 0, not 0"),
        (SEARCH, {"num_hypotheses": 5}, "num_hypotheses must not exceed beam_size: 5 is more than 4; .* larger beam"),
        (SEARCH, {"max_tokens": 0}, "max_tokens must be more than 0, not 0"),
        (SEARCH, {"min_tokens": -2}, "min_tokens must not be negative: -2"),
        (SEARCH, {"max_length_ratio": 0.0}, "max_length_ratio must be more than 0, not 0"),
        (SEARCH, {"min_length_ratio": -0.5}, "min_length_ratio must not be negative: -0.5"),
        *[
            (SEARCH, {"temperature": 1.0, **{name: -1}}, f"{name} must not be negative: -1")
            for name in ("temperature", "top_k", "min_p", "seed")
        ],
        (SEARCH, {"temperature": 1e-39}, "temperature must be 0, or at least 1e-06, not 1e-39"),
        (SEARCH, {"temperature": 1.0, "top_p": 0.0}, "top_p must be more than 0 and at most 1, not 0.0"),
        (SEARCH, {"temperature": 1.0, "min_p": 1.5}, "min_p must be at most 1, not 1.5"),
        (SEARCH, {"seed": 1 << 32}, "seed must be less than 2\\*\\*32, not 4294967296"),
        (SEARCH, {"top_k": 5}, "top_k only affects sampling: set a temperature above 0"),
        (
            SEARCH,
            {"temperature": 1.0, "alternatives": True},
            "alternatives cannot be sampled: leave out temperature 1.0",
        ),
        *[
            (TRAINING, {name: 0}, f"{name} must be more than 0, not 0")
            for name in ("steps", "batch_tokens", "vocab_size", "learning_rate", "warmup_steps", "accumulate")
        ],
        *[
            (TRAINING, {name: -1}, f"{name} must be more than 0, not -1")
            for name in ("valid_every", "log_every", "max_length", "keep", "average_checkpoints")
        ],
        *[
            (TRAINING, {name: -1}, f"{name} must not be negative: -1")
            for name in ("weight_decay", "clip_norm", "samples", "patience")
        ],
        (TRAINING, {"attention_dropout": 1}, "attention_dropout must be at least 0 and below 1, not 1"),
        (TRAINING, {"activation_dropout": -1}, "activation_dropout must be at least 0 and below 1, not -1"),
        (MODEL, {"attention_dropout": 1}, "attention_dropout must be at least 0 and below 1, not 1"),
        (TRAINING, {"betas": (0.9, 1.0)}, "betas must be two numbers, at least 0 and below 1, not .0.9, 1.0"),
        (TRAINING, {"betas": (0.5, 0.9), "optimizer": "adafactor"}, "'adafactor' has no betas: leave them out"),
        (TRAINING, {"betas": (0.9,)}, "betas must be two numbers"),
        (TRAINING, {"weight_decay": 0.1}, "optimizer 'adam' has no weight decay: use adamw"),
        *[
            (TRAINING, {"schedule": name, "steps": 9, "warmup_steps": 9}, "warmup_steps 9 is not less than steps 9")
            for name in ("cosine", "linear")
        ],
        (TRAINING, {"bleu_sentences": 0, "best_by": "chrf"}, "best_by 'chrf' needs sentences to translate"),
        (TRAINING, {"average_checkpoints": 5}, "keep must be at least average_checkpoints: 2 is less than 5"),
        (TRAINING, {"init": "it", "freeze": ("head",)}, "freeze must be any of encoder, .*, not 'head'"),
        (TRAINING, {"freeze": ("encoder",)}, "freeze only applies to fine-tuning: set init as well"),
        (TRAINING, {"init": "it", "preset": "tiny"}, "preset cannot be changed in fine-tuning: leave it out with init"),
        (
            TRAINING,
            {"init": "it", "vocab_size": 9},
            "vocab_size cannot be changed in fine-tuning: leave it out with init",
        ),
        (TRAINING, {"dims": 512, "num_heads": 7}, "num_heads must divide dims: 7 does not divide 512"),
        (TRAINING, {"decoder_layers": 0}, "decoder_layers must be more than 0, not 0"),
        (TRAINING, {"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, not 1.0"),
        (TRAINING, {"ema_decay": 1}, "ema_decay must be at least 0 and below 1, not 1"),
        (TRAINING, {"dropout": -0.5}, "dropout must be at least 0 and below 1, not -0.5"),
        (TRAINING, {"preset": "huge"}, "preset must be one of tiny, small, base, big, not 'huge'"),
        (TRAINING, {"train": ()}, "at least one training and one validation corpus"),
        (TRAINING, {"valid": ()}, "one validation corpus: set train and valid"),
        (TRAINING, {"batch_tokens": 100}, "batch_tokens 100 is less than max_length 256"),
        (TRAINING, {"seed": -1}, "seed must be at least 0 and below 2\\*\\*32, not -1"),
        (TRAINING, {"seed": 1 << 32}, "seed must be at least 0 and below 2\\*\\*32, not 4294967296"),
        (TRAINING, {"bleu_sentences": -1}, "bleu_sentences must not be negative: -1"),
        (TRAINING, {"bleu_sentences": 0}, "best_by 'bleu' needs sentences to translate: set bleu_sentences above 0"),
        (QUANTIZATION, {"bits": 0}, "bits must be one of 4, 8, not 0"),
        (QUANTIZATION, {"group_size": -1}, "group_size must be one of 32, 64, 128, not -1"),
    ],
)
def test_invalid_values_raise(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


def test_the_largest_models_are_within_the_limits():
    """ByT5 and MADLAD with dims of 4,096, T5 with 128 heads and mlp_dims of 65,536, LED with 16,384 positions."""
    wide = StackConfig(48, 128, 65536, positions="relative", max_length=8192)
    assert ModelConfig(256512, 256512, 4096, wide, wide, head_dims=128).dims == 4096
    long = StackConfig(12, 16, 4096, positions="learned", max_length=16384)
    assert ModelConfig(50265, 50265, 1024, long, long).encoder.max_length == 16384


def test_num_heads_need_not_divide_dims_if_head_dims_is_set():
    assert dataclasses.replace(MODEL, dims=30).head_dims == 24


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_heads_of_64(name):
    assert PRESETS[name].dims % 64 == 0 and PRESETS[name].layers > 0 and PRESETS[name].mlp_dims > 0


def test_fine_tuning_cannot_change_the_model():
    other = {"preset": "tiny", "norm_first": False, "activation": "gelu", "shared_vocabulary": False}
    for name in NEW_MODEL_OPTIONS:
        with pytest.raises(ValueError, match=f"{name} cannot be changed in fine-tuning: leave it out with init"):
            replace(TRAINING, init="it", **{name: other.get(name, 4)})
    assert {*NEW_MODEL_OPTIONS} == {
        *("preset", "num_layers", "decoder_layers", "dims", "mlp_dims", "num_heads", "norm_first", "activation"),
        *("vocab_size", "shared_vocabulary"),
    }


def test_values_at_their_limits_are_valid():
    config = replace(TRAINING, keep=3, average_checkpoints=3, batch_tokens=256, max_length=256)
    assert replace(config, schedule="cosine", steps=10, warmup_steps=9).warmup_steps == 9


def test_size_is_the_preset_s_unless_overridden():
    assert replace(TRAINING, preset="tiny").size == ModelSize(2, 2, 128, 512, 2)
    assert replace(TRAINING, preset="tiny", num_layers=4, dims=192).size == ModelSize(4, 4, 192, 512, 3)
    assert replace(TRAINING, decoder_layers=1, dims=32, mlp_dims=7).size == ModelSize(3, 1, 32, 7, 1)
    assert replace(TRAINING, num_heads=8).size.heads == 8
