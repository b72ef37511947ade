"""Converted checkpoints of The Annotated Transformer equal a forward pass in torch."""

import pytest
from support.framework_reference import (
    Reference,
    attention_names,
    check_logits,
    check_searches,
    interleaved_sinusoids,
    random_state,
    with_old_norms,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


ANNOTATED = {
    **attention_names(
        self="{s}.layers.{i}.self_attn",
        cross="{s}.layers.{i}.src_attn",
        names=[f"linears.{number}" for number in range(4)],
    ),
    "self_norm": "{s}.layers.{i}.sublayer.0.norm",
    "cross_norm": "{s}.layers.{i}.sublayer.1.norm",
    "encoder_mlp_norm": "encoder.layers.{i}.sublayer.1.norm",
    "decoder_mlp_norm": "decoder.layers.{i}.sublayer.2.norm",
    "up": "{s}.layers.{i}.feed_forward.w_1",
    "down": "{s}.layers.{i}.feed_forward.w_2",
    "encoder_embedding": "src_embed.0.lut",
    "decoder_embedding": "tgt_embed.0.lut",
    "final_norm": "{s}.norm",
    "output": "generator.proj",
}


@pytest.mark.parametrize("norm", ["deviation", "layer"])
@pytest.mark.slow
def test_annotated_transformer(norm, tmp_path, tolerance):
    state = random_state(ANNOTATED)
    state = with_old_norms(state) if norm == "deviation" else state
    table = interleaved_sinusoids(50)
    reference = Reference(
        state,
        ANNOTATED,
        heads={"encoder": 8, "decoder": 8},
        pre={"encoder": True, "decoder": True},
        norm=norm,
        eps=1e-6 if norm == "deviation" else 1e-5,
        positions={"encoder": table, "decoder": table},
        pad_id=2,
    )
    buffers = {"src_embed.1.pe": table[None], "tgt_embed.1.pe": table[None]}
    torch.save({f"module.{name}": value for name, value in (state | buffers).items()}, tmp_path / "multi30k.pt")
    model = check_logits(reference, tmp_path / "multi30k.pt", tolerance)
    assert (model.config.start_id, model.config.eos_id, model.config.pad_id) == (0, 1, 2)
    check_searches(reference, model, tolerance)
