"""Tiny models with random weights, of every setting that changes the network."""

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_transformer.config.model import AverageAttentionConfig, ModelConfig, StackConfig
from mlx_transformer.model.fused_projections import fuse_projections, split_projections
from mlx_transformer.model.transformer import Transformer


def stack(**changes):
    return StackConfig(**{"num_layers": 1, "num_heads": 2, "mlp_dims": 24, "max_length": 40, **changes})


def config(**changes):
    vocabularies = {"source_vocab_size": 19, "target_vocab_size": 19}
    return ModelConfig(**{**vocabularies, "dims": 16, "encoder": stack(), "decoder": stack(), **changes})


SETTINGS = {
    "post_norm": config(),
    "pre_norm": config(
        encoder=stack(norm_first=True, final_norm=True, num_layers=2),
        decoder=stack(norm_first=True, final_norm=True),
        output_bias=True,
        activation="silu",
    ),
    "learned_positions": config(
        encoder=stack(positions="learned", final_norm=True),
        decoder=stack(positions="learned", final_norm=True, num_layers=2),
        share_embeddings=False,
        target_vocab_size=17,
        tie_output=False,
        output_bias=True,
        activation="gelu",
    ),
    "relative_positions": config(
        encoder=stack(
            positions="relative", num_buckets=8, max_distance=5, norm_first=True, final_norm=True, num_layers=2
        ),
        decoder=stack(positions="relative", num_buckets=6, max_distance=4, num_layers=2, scale_embeddings=False),
        norm="rms",
        norm_bias=False,
        gated_mlp=True,
        activation="gelu_tanh",
        attention_scale=0.5,
        attention_bias=False,
        attention_out_bias=True,
        logit_scale=0.5,
    ),
    "ssru": config(
        encoder=stack(num_layers=2),
        decoder=stack(num_layers=2, positions="none"),
        decoder_self_attention="ssru",
        ssru_projection=True,
    ),
    "average": config(
        decoder=stack(num_layers=2),
        decoder_self_attention="average",
        average_attention=AverageAttentionConfig(mlp_dims=20, mlp_layers=3, activation="silu"),
    ),
    "queries_only": config(
        encoder=stack(norm_first=True, norm_queries_only=True, final_norm=True, mlp_layers=3),
        decoder=stack(norm_first=True, norm_queries_only=True, final_norm=True, num_layers=2, mlp_layers=4),
        attention_projection=False,
        activation="quick_gelu",
    ),
    "odd_ones": config(
        encoder=stack(positions="none", embedding_norm="after", residual_scale=1.3, final_norm=True),
        decoder=stack(
            positions="relative",
            bias_each_layer=True,
            embedding_norm="before",
            num_layers=2,
            num_buckets=8,
            max_distance=6,
        ),
        norm="deviation",
        activation="tanh",
    ),
    "unequal_stacks": config(
        encoder=stack(norm_first=True, num_heads=4, mlp_dims=20, max_length=30, scale_embeddings=False),
        decoder=stack(num_layers=2, num_heads=3, mlp_dims=28),
        head_dims=6,
        share_embeddings=False,
        source_vocab_size=13,
        attention_bias=False,
        mlp_bias=False,
        norm_bias=False,
    ),
}


def random_model(config, seed=0, gain=1.0, eos_bias=0.0):
    """Return a model in evaluation mode without zero or unit parameters; `gain` scales its logits."""
    model = Transformer(config)
    model.eval()
    rng = np.random.default_rng(seed)
    values = {}
    in_files = tree_unflatten(list(split_projections(model.trainable_parameters()).items()))
    for name, old in tree_flatten(in_files):
        value = rng.standard_normal(old.shape)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * value
        elif name.endswith("bias"):
            value = 0.3 * value
        elif name.split(".")[0] in ("source_embedding", "target_embedding", "output"):
            value = gain * value / np.sqrt(config.dims)
        elif "positions" not in name:
            value = 1.2 * value / np.sqrt(old.shape[-1])
        values[name] = mx.array(value.astype(np.float32))
    model.update(tree_unflatten(list(fuse_projections(values).items())))
    if config.output_bias:
        bias = model.output_bias if config.tie_output else model.output.bias
        bias[config.eos_id] = eos_bias
    mx.eval(model.parameters())
    return model


def random_sources(config, lengths, seed=0):
    """Return random source ids that end with the end token."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(3, config.source_vocab_size, n - 1).tolist(), config.eos_id] for n in lengths]


def padded(sources, config, length=0):
    """Return sources as one array, padded on the right to the longest source or to `length`."""
    length = max(length, *map(len, sources))
    return mx.array([row + [config.pad_id] * (length - len(row)) for row in sources], mx.int32)


def random_targets(config, rows, length, seed=0):
    """Return random target ids that begin with the start token."""
    ids = np.random.default_rng(seed).integers(3, config.target_vocab_size, (rows, length))
    ids[:, 0] = config.start_id
    return mx.array(ids.astype(np.int32))
