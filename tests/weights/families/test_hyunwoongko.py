"""Converted checkpoints of hyunwoongko/transformer equal a forward pass in torch."""

import pytest
from support.framework_reference import (
    Reference,
    attention_names,
    check_logits,
    check_searches,
    encode_source,
    interleaved_sinusoids,
    random_state,
    rename_norms,
)

from mlx_transformer.weights.inspection import inspect_checkpoint

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

PARTS = ("w_q", "w_k", "w_v", "w_concat")
HYUNWOONGKO = {
    **attention_names(self="{s}.layers.{i}.self_attention", cross="{s}.layers.{i}.enc_dec_attention", names=PARTS),
    **{
        f"encoder_self_{letter}": f"encoder.layers.{{i}}.attention.{part}"
        for letter, part in zip("qkvo", PARTS, strict=True)
    },
    "self_norm": "{s}.layers.{i}.norm1",
    "cross_norm": "{s}.layers.{i}.norm2",
    "encoder_mlp_norm": "encoder.layers.{i}.norm2",
    "decoder_mlp_norm": "decoder.layers.{i}.norm3",
    "up": "{s}.layers.{i}.ffn.linear1",
    "down": "{s}.layers.{i}.ffn.linear2",
    "embedding": "{s}.emb.tok_emb",
    "output": "decoder.linear",
}


def write_checkpoint(path):
    """Write a random model in the project's layout: 8 heads, post-norm, embeddings that are not scaled."""
    state = random_state(HYUNWOONGKO, seed=1)
    table = interleaved_sinusoids(256)
    torch.save(rename_norms(state, "gamma", "beta"), path)
    return Reference(
        state,
        HYUNWOONGKO,
        heads={"encoder": 8, "decoder": 8},
        pre={"encoder": False, "decoder": False},
        eps=1e-12,
        positions={"encoder": table, "decoder": table},
        scale=False,
        pad_id=1,
    )


def test_logits_need_no_settings(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "model-2.5.pt")
    assert inspect_checkpoint(tmp_path / "model-2.5.pt")[1].family == "hyunwoongko"
    model = check_logits(reference, tmp_path / "model-2.5.pt", tolerance)
    assert (model.config.pad_id, model.config.start_id, model.config.eos_id) == (1, 2, 3)


def test_searches(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "model-2.5.pt")
    check_searches(reference, check_logits(reference, tmp_path / "model-2.5.pt", tolerance), tolerance)


def test_start_and_end_tokens_are_around_a_source(tmp_path):
    write_checkpoint(tmp_path / "model-2.5.pt")
    assert encode_source(tmp_path / "model-2.5.pt", tmp_path) == [2, 9, 8, 3]
