"""Valid and invalid values of ModelConfig, StackConfig and QuantizationConfig."""

import dataclasses
from dataclasses import replace

import pytest
from support.configs import MODEL, QUANTIZATION, STACK

from mlx_transformer.config.model import STACK_LIMITS, ModelConfig, StackConfig


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        *[(STACK, {name: 0}, f"{name} must be more than 0, not 0") for name in ("num_layers", "num_heads", "mlp_dims")],
        (STACK, {"num_layers": 1001}, "num_layers must be at most 1000, not 1001"),
        *[(STACK, {name: 10**12}, f"{name} must be at most [0-9]+, not 1000000000000") for name in STACK_LIMITS],
        (STACK, {"mlp_layers": 1}, "mlp_layers must be at least 2, not 1"),
        (STACK, {"max_length": -1}, "max_length must be more than 0, not -1"),
        *[
            (MODEL, {name: 10**12}, f"{name} must be at most [0-9]+, not 1000000000000")
            for name in ("source_vocab_size", "target_vocab_size", "dims", "head_dims")
        ],
        (
            MODEL,
            {"dims": 2**17, "encoder": replace(STACK, max_length=513)},
            "max_length x dims must be at most 16777216",
        ),
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
        (MODEL, {"eos_id": 0}, "pad_id must differ from eos_id, .* both are 0; set pad_id to a token that no text"),
        (MODEL, {"extra_eos_ids": (3, 400)}, "extra_eos_ids must be a token id from 0 to 399, not 400"),
        (MODEL, {"extra_eos_ids": (3, 0)}, "extra_eos_ids must not contain pad_id 0, which is never generated"),
        (
            MODEL,
            {"gated_mlp": True, "decoder": replace(STACK, mlp_layers=3)},
            "Gated feed-forward networks have two layers: set mlp_layers to 2, not 3, or gated_mlp to false",
        ),
        (MODEL, {"attention_dropout": 1}, "attention_dropout must be at least 0 and below 1, not 1"),
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
