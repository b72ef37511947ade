"""Converted checkpoints of JoeyNMT equal a forward pass in torch."""

import pytest
from support.framework_reference import (
    LAYERS,
    Reference,
    check_logits,
    check_searches,
    interleaved_sinusoids,
    random_state,
    without,
)

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.weights.conversion_plan import fields_from_config
from mlx_transformer.weights.families import FAMILIES

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


JOEY = {
    f"{stack}_{part}": name
    for stack, attention, norms in (
        ("encoder", {"self": "src_src_att"}, {"self_norm": "layer_norm"}),
        (
            "decoder",
            {"self": "trg_trg_att", "cross": "src_trg_att"},
            {"self_norm": "x_layer_norm", "cross_norm": "dec_layer_norm"},
        ),
    )
    for part, name in {
        **{
            f"{kind}_{letter}": f"{stack}.layers.{{i}}.{module}.{layer}"
            for kind, module in attention.items()
            for letter, layer in zip("qkvo", ("q_layer", "k_layer", "v_layer", "output_layer"), strict=True)
        },
        **{norm: f"{stack}.layers.{{i}}.{name}" for norm, name in norms.items()},
        "up": f"{stack}.layers.{{i}}.feed_forward.pwff_layer.0",
        "down": f"{stack}.layers.{{i}}.feed_forward.pwff_layer.3",
        "mlp_norm": f"{stack}.layers.{{i}}.feed_forward.layer_norm",
        "embedding": {"encoder": "src_embed.lut", "decoder": "trg_embed.lut"}[stack],
        "final_norm": f"{stack}.layer_norm",
    }.items()
} | {"output": "decoder.output_layer"}


JOEY_YAML = """
name: tiny
model:
    tied_embeddings: false
    encoder: {{type: transformer, num_heads: 2, {encoder}embeddings: {{embedding_dim: 16{scale}}}}}
    decoder: {{type: transformer, num_heads: 4, {decoder}embeddings: {{embedding_dim: 16{scale}}}}}
"""


def convert_joeynmt(tmp_path, tolerance, config, *, final_norms, **options):
    """Save a checkpoint with a config.yaml, and compare its conversion with the reference."""
    names = JOEY if final_norms else without(JOEY, "final_norm")
    state = random_state(names, output_bias=False)
    table = interleaved_sinusoids(50)
    positions = {"encoder": table, "decoder": table}
    heads = {"encoder": 2, "decoder": 4}
    reference = Reference(state, names, heads=heads, eps=1e-6, positions=positions, pad_id=1, **options)
    buffers = {f"{stack}.pe.pe": table[None] for stack in LAYERS}
    (tmp_path / "config.yaml").write_text(config)
    torch.save({"steps": 10, "model_state": state | buffers, "optimizer_state": {}}, tmp_path / "best.ckpt")
    return reference, check_logits(reference, tmp_path / "best.ckpt", tolerance)


@pytest.mark.parametrize("kind", ["pre", "post"])
@pytest.mark.slow
def test_joeynmt(kind, tmp_path, tolerance):
    pre = kind == "pre"
    encoder, decoder = ("", "") if pre else ("alpha: 1.7, ", "alpha: 2.0, ")
    config = JOEY_YAML.format(
        encoder=f"layer_norm: {kind}, {encoder}",
        decoder=f"layer_norm: {kind}, {decoder}",
        scale=", scale: true" if pre else "",
    )
    config += "testing: {beam_size: 7, beam_alpha: 1.0}" if pre else "testing: {n_best: 1}"
    reference, model = convert_joeynmt(
        tmp_path,
        tolerance,
        config,
        final_norms=pre,
        pre={"encoder": pre, "decoder": pre},
        scale=pre,
        alpha={"encoder": 1.0, "decoder": 1.0} if pre else {"encoder": 1.7, "decoder": 2.0},
    )
    assert model.search_defaults == SearchConfig(beam_size=7 if pre else 1)
    assert (model.config.pad_id, model.config.start_id, model.config.eos_id) == (1, 2, 3)
    check_searches(reference, model, tolerance)


@pytest.mark.parametrize("final_norms", [True, False])
def test_joeynmt_without_layer_norm_setting(final_norms, tmp_path, tolerance):
    """Old versions are pre-norm with final norms; in new ones the encoder is pre-norm and the decoder post-norm."""
    config = JOEY_YAML.format(encoder="", decoder="", scale="")
    pre = {"encoder": True, "decoder": final_norms}
    convert_joeynmt(tmp_path, tolerance, config, final_norms=final_norms, pre=pre, scale=False)


def test_joeynmt_stacks_must_have_the_same_activation():
    heads = {"encoder_num_heads": 2, "decoder_num_heads": 2, "encoder_activation": "gelu"}
    assert fields_from_config(FAMILIES["joeynmt"], heads | {"decoder_activation": "gelu"})["activation"] == "gelu"
    with pytest.raises(ValueError, match="Both stacks must have the same activation, not gelu, relu"):
        fields_from_config(FAMILIES["joeynmt"], heads)
