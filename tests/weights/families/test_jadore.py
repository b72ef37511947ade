"""Converted checkpoints of jadore801120/attention-is-all-you-need-pytorch equal a forward pass in torch."""

import argparse
import re

import pytest
from support.framework_reference import (
    DIMS,
    Reference,
    attention_names,
    check_logits,
    check_searches,
    encode_source,
    random_state,
)

from mlx_transformer.weights import convert
from mlx_transformer.weights.inspection import inspect_checkpoint
from mlx_transformer.weights.parameter_map import ConversionError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

PARTS = ("w_qs", "w_ks", "w_vs", "fc")
JADORE = {
    **attention_names(self="{s}.layer_stack.{i}.slf_attn", cross="{s}.layer_stack.{i}.enc_attn", names=PARTS),
    "self_norm": "{s}.layer_stack.{i}.slf_attn.layer_norm",
    "cross_norm": "{s}.layer_stack.{i}.enc_attn.layer_norm",
    "mlp_norm": "{s}.layer_stack.{i}.pos_ffn.layer_norm",
    "embedding_norm": "{s}.layer_norm",
    "up": "{s}.layer_stack.{i}.pos_ffn.w_1",
    "down": "{s}.layer_stack.{i}.pos_ffn.w_2",
    "encoder_embedding": "encoder.src_word_emb",
    "decoder_embedding": "decoder.trg_word_emb",
    "output": "trg_word_prj",
}
HEADS, HEAD_DIMS = 2, 6


def write_checkpoint(path, tied=True, scaled="prj", **changes):
    """Write a random model in the project's layout: heads wider than dims / heads, post-norm, normalised embeddings."""
    state = random_state(JADORE, bias=False, output_bias=False)
    for name in state:
        part = name.split(".")[-2]
        if part in PARTS:
            width = HEADS * HEAD_DIMS
            state[name] = 0.35 * torch.randn((DIMS, width) if part == "fc" else (width, DIMS))
    if tied:
        state["trg_word_prj.weight"] = state["decoder.trg_word_emb.weight"]
    positions = {stack: 0.5 * torch.randn(30, DIMS) for stack in ("encoder", "decoder")}
    reference = Reference(
        state,
        JADORE,
        heads={"encoder": HEADS, "decoder": HEADS},
        pre={"encoder": False, "decoder": False},
        eps=1e-6,
        positions=positions,
        pad_id=1,
        scale=tied and scaled == "emb",
        logit_scale=DIMS**-0.5 if tied and scaled == "prj" else 1.0,
    )
    buffers = {f"{stack}.position_enc.pos_table": table[None] for stack, table in positions.items()}
    settings = {"n_head": HEADS, "d_k": HEAD_DIMS, "d_v": HEAD_DIMS, "src_pad_idx": 1, "trg_pad_idx": 1}
    settings |= {"proj_share_weight": tied, "embs_share_weight": False, "scale_emb_or_prj": scaled, **changes}
    settings = argparse.Namespace(**{name: value for name, value in settings.items() if value is not None})
    torch.save({"epoch": 3, "settings": settings, "model": state | buffers}, path)
    return reference


def write_early_checkpoint(path):
    """Write a random model as the code of 2018: convolutions, biases, other names; padding is 0 and has a position."""
    names = {part: name.replace("trg_word", "tgt_word") for part, name in JADORE.items() if part != "embedding_norm"}
    state = random_state(names, output_bias=False)
    state["tgt_word_prj.weight"] = state["decoder.tgt_word_emb.weight"]
    tables = {stack: 0.5 * torch.randn(31, DIMS) for stack in ("encoder", "decoder")}
    reference = Reference(
        state,
        names,
        heads={"encoder": HEADS, "decoder": HEADS},
        pre={"encoder": False, "decoder": False},
        positions={stack: table[1:] for stack, table in tables.items()},
        pad_id=0,
        scale=False,
        logit_scale=DIMS**-0.5,
    )
    kernels = {name: value[..., None] for name, value in state.items() if re.search(r"w_[12]\.weight$", name)}
    model = state | kernels | {f"{stack}.position_enc.weight": table for stack, table in tables.items()}
    width = DIMS // HEADS
    settings = argparse.Namespace(n_head=HEADS, d_k=width, d_v=width, proj_share_weight=True, max_token_seq_len=30)
    torch.save({"epoch": 3, "settings": settings, "model": model}, path)
    return reference


def test_early_versions_need_no_settings(tmp_path, tolerance):
    reference = write_early_checkpoint(tmp_path / "trained.chkpt")
    model = check_logits(reference, tmp_path / "trained.chkpt", tolerance)
    assert (model.config.pad_id, model.config.start_id, model.config.eos_id) == (0, 2, 3)
    convert.convert(tmp_path / "trained.chkpt", tmp_path / "folder")


@pytest.mark.parametrize("tied, scaled", [(True, "prj"), (True, "emb"), (True, "none"), (False, "prj"), (False, "emb")])
def test_logits_need_no_settings(tied, scaled, tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "model.chkpt", tied, scaled)
    assert inspect_checkpoint(tmp_path / "model.chkpt")[1].family == "jadore"
    model = check_logits(reference, tmp_path / "model.chkpt", tolerance)
    assert (model.config.pad_id, model.config.start_id, model.config.eos_id) == (1, 2, 3)
    assert model.config.tie_output == tied and model.config.head_dims == HEAD_DIMS


def test_heads_are_as_wide_as_the_projections_of_bare_weights(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "model.chkpt")
    torch.save(torch.load(tmp_path / "model.chkpt", weights_only=False)["model"], tmp_path / "bare.pt")
    model = check_logits(reference, tmp_path / "bare.pt", tolerance, settings={"num_heads": HEADS})
    assert model.config.head_dims == HEAD_DIMS
    with pytest.raises(ConversionError, match=r"w_qs.weight \(12, 16\) instead of \(16, 16\)"):
        convert.load(tmp_path / "bare.pt")


def test_logits_are_scaled_by_default(tmp_path, tolerance):
    """Files from before January 2021 have no scale_emb_or_prj."""
    reference = write_checkpoint(tmp_path / "model.chkpt", scale_emb_or_prj=None)
    assert check_logits(reference, tmp_path / "model.chkpt", tolerance).config.logit_scale == DIMS**-0.5


def test_other_scaling_is_an_error(tmp_path):
    write_checkpoint(tmp_path / "model.chkpt", scale_emb_or_prj="both")
    with pytest.raises(ValueError, match="A checkpoint with scale_emb_or_prj 'both' cannot be converted"):
        convert.load(tmp_path / "model.chkpt")


def test_padding_is_that_of_the_settings(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "model.chkpt", src_pad_idx=0, trg_pad_idx=0)
    reference.pad_id = 0
    assert check_logits(reference, tmp_path / "model.chkpt", tolerance).config.pad_id == 0


def test_searches(tmp_path, tolerance):
    reference = write_checkpoint(tmp_path / "model.chkpt")
    check_searches(reference, check_logits(reference, tmp_path / "model.chkpt", tolerance), tolerance)


def test_values_of_another_width_are_an_error(tmp_path):
    write_checkpoint(tmp_path / "model.chkpt", d_v=4)
    with pytest.raises(ValueError, match="d_v must be d_k, 6, not 4: .* cannot be converted"):
        convert.load(tmp_path / "model.chkpt")


def test_start_and_end_tokens_are_around_a_source(tmp_path):
    write_checkpoint(tmp_path / "model.chkpt")
    specials = ("<unk>", "<blank>", "<s>", "</s>")
    assert encode_source(tmp_path / "model.chkpt", tmp_path, specials, specials) == [2, 9, 8, 3]
