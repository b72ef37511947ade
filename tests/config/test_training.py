"""Valid and invalid values of TrainingConfig, and the sizes of new models."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
from support.configs import TRAINING

from mlx_transformer.config.training import NEW_MODEL_OPTIONS, PRESETS, ModelSize


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[
            ({name: 0}, f"{name} must be more than 0, not 0")
            for name in ("steps", "batch_tokens", "vocab_size", "learning_rate", "warmup_steps", "accumulate")
        ],
        *[
            ({name: -1}, f"{name} must be more than 0, not -1")
            for name in ("valid_every", "log_every", "max_length", "keep", "average_checkpoints")
        ],
        *[
            ({name: -1}, f"{name} must not be negative: -1")
            for name in ("weight_decay", "clip_norm", "samples", "patience")
        ],
        ({"attention_dropout": 1}, "attention_dropout must be at least 0 and below 1, not 1"),
        ({"activation_dropout": -1}, "activation_dropout must be at least 0 and below 1, not -1"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers, at least 0 and below 1, not .0.9, 1.0"),
        ({"betas": (0.5, 0.9), "optimizer": "adafactor"}, "'adafactor' has no betas: leave them out"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"weight_decay": 0.1}, "optimizer 'adam' has no weight decay: use adamw"),
        *[
            (
                {"schedule": name, "steps": 9, "warmup_steps": 9},
                "warmup_steps must be less than steps with this schedule: 9 is not",
            )
            for name in ("cosine", "linear")
        ],
        ({"bleu_sentences": 0, "best_by": "chrf"}, "best_by 'chrf' needs sentences to translate"),
        ({"average_checkpoints": 5}, "keep must be at least average_checkpoints: 2 is less than 5"),
        ({"init": "it", "freeze": ("head",)}, "freeze must be any of encoder, .*, not 'head'"),
        ({"freeze": ("encoder",)}, "freeze only applies to fine-tuning: set init as well"),
        ({"init": "it", "preset": "tiny"}, "preset cannot be changed in fine-tuning: leave it out with init"),
        (
            {"init": "it", "vocab_size": 9},
            "vocab_size cannot be changed in fine-tuning: leave it out with init",
        ),
        ({"dims": 512, "num_heads": 7}, "num_heads must divide dims: 7 does not divide 512"),
        ({"decoder_layers": 0}, "decoder_layers must be more than 0, not 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, not 1.0"),
        ({"ema_decay": 1}, "ema_decay must be at least 0 and below 1, not 1"),
        ({"dropout": -0.5}, "dropout must be at least 0 and below 1, not -0.5"),
        ({"preset": "huge"}, "preset must be one of tiny, small, base, big, not 'huge'"),
        ({"output": ""}, "output must be the path of a run folder, not an empty one"),
        ({"output": 5}, "output must be str . Path, not 5"),
        ({"init": b"it"}, "init must be str . Path . None, not b'it'"),
        ({"train": ()}, "at least one training and one validation corpus"),
        ({"valid": ()}, "one validation corpus: set train and valid"),
        ({"batch_tokens": 100}, "batch_tokens must be at least max_length.*100 is less than 256"),
        ({"mlp_layers": 1}, "mlp_layers must be at least 2, not 1"),
        ({"seed": -1}, "seed must be at least 0 and below 2\\*\\*32, not -1"),
        ({"seed": 1 << 32}, "seed must be at least 0 and below 2\\*\\*32, not 4294967296"),
        ({"bleu_sentences": -1}, "bleu_sentences must not be negative: -1"),
        ({"bleu_sentences": 0}, "best_by 'bleu' needs sentences to translate: set bleu_sentences above 0"),
    ],
)
def test_invalid_values_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TRAINING, **changes)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_heads_of_64(name):
    assert PRESETS[name].dims % 64 == 0 and PRESETS[name].layers > 0 and PRESETS[name].mlp_dims > 0


def test_fine_tuning_cannot_change_the_model():
    other = {"preset": "tiny", "norm_first": False, "activation": "gelu", "shared_vocabulary": False}
    other["decoder_self_attention"] = "ssru"
    for name in NEW_MODEL_OPTIONS:
        with pytest.raises(ValueError, match=f"{name} cannot be changed in fine-tuning: leave it out with init"):
            replace(TRAINING, init="it", **{name: other.get(name, 4)})
    assert {*NEW_MODEL_OPTIONS} == {
        *("preset", "num_layers", "decoder_layers", "dims", "mlp_dims", "mlp_layers", "num_heads", "norm_first"),
        *("activation", "decoder_self_attention", "vocab_size", "shared_vocabulary"),
    }


def test_values_at_their_limits_are_valid():
    config = replace(TRAINING, keep=3, average_checkpoints=3, batch_tokens=256, max_length=256)
    assert replace(config, schedule="cosine", steps=10, warmup_steps=9).warmup_steps == 9


def test_size_is_the_preset_s_unless_overridden():
    assert replace(TRAINING, preset="tiny").size == ModelSize(2, 2, 128, 512, 2)
    assert replace(TRAINING, preset="tiny", num_layers=4, dims=192).size == ModelSize(4, 4, 192, 512, 3)
    assert replace(TRAINING, decoder_layers=1, dims=32, mlp_dims=7).size == ModelSize(3, 1, 32, 7, 1)
    assert replace(TRAINING, num_heads=8).size.heads == 8


@pytest.mark.parametrize("changes", [{"output": "r\udce9"}, {"train": ("a", "r\udce9")}, {"valid": ("r\udce9",)}])
def test_paths_that_options_toml_cannot_hold_are_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"^{name} must be a path in UTF-8, not 'r.*udce9': rename"):
        replace(TRAINING, **changes)


def test_path_objects_become_strings():
    config = replace(TRAINING, train=Path("a.tsv"), valid=[Path("b.tsv"), "c.tsv"], output=Path("run"))
    assert (config.train, config.valid, config.output) == (("a.tsv",), ("b.tsv", "c.tsv"), "run")
    assert replace(config, init=Path("model")).init == "model"


def test_the_representation_has_a_number_instead_of_pairs_in_memory():
    config = replace(TRAINING, train=[("a", "b")] * 2000, valid=[("a", "b")])
    assert repr(config).startswith("TrainingConfig(train=<2,000 pairs>, valid=<1 pairs>, output=")
    assert repr(TRAINING).startswith(f"TrainingConfig(train={TRAINING.train!r}, valid={TRAINING.valid!r}, output=")
    assert eval(repr(TRAINING), {"TrainingConfig": type(TRAINING)}) == TRAINING
