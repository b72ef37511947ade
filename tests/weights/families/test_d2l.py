"""Converted checkpoints of Dive into Deep Learning equal a forward pass in torch."""

import pytest
from support.framework_reference import Reference, check_logits, check_searches, interleaved_sinusoids, random_state

from mlx_transformer.weights import convert

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


D2L = {
    **{f"encoder_self_{letter}": f"encoder.blks.block{{i}}.attention.W_{letter}" for letter in "qkvo"},
    **{f"decoder_self_{letter}": f"decoder.blks.block{{i}}.attention1.W_{letter}" for letter in "qkvo"},
    **{f"decoder_cross_{letter}": f"decoder.blks.block{{i}}.attention2.W_{letter}" for letter in "qkvo"},
    "self_norm": "{s}.blks.block{i}.addnorm1.ln",
    "cross_norm": "{s}.blks.block{i}.addnorm2.ln",
    "encoder_mlp_norm": "encoder.blks.block{i}.addnorm2.ln",
    "decoder_mlp_norm": "decoder.blks.block{i}.addnorm3.ln",
    "up": "{s}.blks.block{i}.ffn.dense1",
    "down": "{s}.blks.block{i}.ffn.dense2",
    "embedding": "{s}.embedding",
    "output": "decoder.dense",
}


@pytest.mark.slow
def test_d2l(tmp_path, tolerance):
    state = random_state(D2L, bias=False)
    table = interleaved_sinusoids(1000)
    reference = Reference(
        state,
        D2L,
        heads={"encoder": 4, "decoder": 4},
        pre={"encoder": False, "decoder": False},
        positions={"encoder": table, "decoder": table},
        pad_id=1,
    )
    torch.save(state, tmp_path / "d2l.pt")
    settings = {"pad_id": 1, "start_id": 2, "eos_id": 3}
    model = check_logits(reference, tmp_path / "d2l.pt", tolerance, settings=settings)
    assert not model.config.attention_bias and model.config.mlp_bias
    check_searches(reference, model, tolerance)
    with pytest.raises(ValueError, match="not specify pad_id, eos_id, start_id: use convert --set pad_id="):
        convert.load(tmp_path / "d2l.pt")
