"""Checkpoints of Dive into Deep Learning."""

from mlx_transformer.weights.families.spec import NameTable, attention_names, stack_names

D2L_ENCODER: NameTable = {
    **attention_names("self_attention", "attention", "W_q", "W_k", "W_v", "W_o"),
    "self_attention_residual.norm": "addnorm1.ln",
    "feed_forward.up_proj": "ffn.dense1",
    "feed_forward.down_proj": "ffn.dense2",
    "feed_forward_residual.norm": "addnorm2.ln",
}

D2L_DECODER: NameTable = {
    **D2L_ENCODER,
    **attention_names("self_attention", "attention1", "W_q", "W_k", "W_v", "W_o"),
    **attention_names("cross_attention", "attention2", "W_q", "W_k", "W_v", "W_o"),
    "cross_attention_residual.norm": "addnorm2.ln",
    "feed_forward_residual.norm": "addnorm3.ln",
}

D2L_NAMES: NameTable = {
    **stack_names(D2L_ENCODER, D2L_DECODER, "encoder.blks.block{i}", "decoder.blks.block{i}"),
    "source_embedding.weight": "encoder.embedding.weight",
    "target_embedding.weight": "decoder.embedding.weight",
    "output": "decoder.dense",
}
