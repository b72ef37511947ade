"""Random checkpoints of common model shapes in the format of transformers, and random sources; torch is not needed.

A model with the usual random initialisation repeats a single token, so equal outputs would prove nothing. These
weights are scaled so that outputs vary (see `outputs_vary`). The embeddings of padding and EOS are zero, so neither is
generated.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

ATTENTION_SCORE_STD = 3.0  # standard deviation of attention scores
FREQUENT_TOKEN_SCALE = 4  # factor by which embeddings of frequent tokens are longer
MAX_DISTINCT_SHARE, MIN_DISTINCT_SHARE = 1 / 2, 1 / 8  # distinct tokens per generated token: 4 to 16 of 32


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and the scales of its random weights.

    Attributes:
        family: "marian" (post-norm, sinusoidal positions) or "t5" (pre-norm, relative positions).
        layers: Layers of each stack.
        dims: Width of the residual stream.
        num_heads: Attention heads.
        mlp_dims: Width of the feed-forward network.
        vocab_size: Rows of the embedding table shared by source, target and output.
        num_frequent: Number of tokens with longer embeddings, which are generated more often.
        attention_gain: Standard deviation of the output of attention relative to that of an embedding.
        mlp_gain: The same for the feed-forward network; it must be larger, or outputs repeat their first token.
        seed: Seed of the random weights.
    """

    family: str
    layers: int
    dims: int
    num_heads: int
    mlp_dims: int
    vocab_size: int
    num_frequent: int
    attention_gain: float
    mlp_gain: float
    seed: int

    @property
    def pad_id(self) -> int:
        """The padding id, which also starts the decoder."""
        return self.vocab_size - 1 if self.family == "marian" else 0

    @property
    def eos_id(self) -> int:
        """The EOS id."""
        return 0 if self.family == "marian" else 1


SHAPES = {
    "marian": Shape("marian", 6, 512, 8, 2048, 32001, num_frequent=16, attention_gain=0.3, mlp_gain=3.0, seed=0),
    "t5": Shape("t5", 6, 512, 8, 2048, 32128, num_frequent=32, attention_gain=4.0, mlp_gain=80.0, seed=3),
    "marian-tiny": Shape("marian", 2, 64, 4, 128, 301, num_frequent=32, attention_gain=0.5, mlp_gain=6.0, seed=2),
    "t5-tiny": Shape("t5", 2, 64, 4, 128, 300, num_frequent=24, attention_gain=4.0, mlp_gain=80.0, seed=5),
}


def hf_config(shape: Shape, positions: int) -> dict[str, object]:
    """Return the config.json of a shape for sequences of at most `positions` tokens."""
    ids = {"pad_token_id": shape.pad_id, "decoder_start_token_id": shape.pad_id, "eos_token_id": shape.eos_id}
    common = {
        "vocab_size": shape.vocab_size,
        "d_model": shape.dims,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **ids,
    }
    if shape.family == "t5":
        sizes = {"d_kv": shape.dims // shape.num_heads, "d_ff": shape.mlp_dims, "num_heads": shape.num_heads}
        layers = {"num_layers": shape.layers, "num_decoder_layers": shape.layers, "n_positions": positions}
        layers |= {"layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32}
        names = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "feed_forward_proj": "relu"}
        return common | sizes | layers | names
    sides = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", shape.layers), ("attention_heads", shape.num_heads), ("ffn_dim", shape.mlp_dims))
    }
    names = {"model_type": "marian", "architectures": ["MarianMTModel"], "activation_function": "swish"}
    rest = {"max_position_embeddings": positions, "scale_embedding": True, "forced_eos_token_id": None}
    return common | sides | names | rest


def hf_tensors(shape: Shape) -> dict[str, np.ndarray]:
    """Return random tensors of a shape by their names in transformers."""
    return (t5_tensors if shape.family == "t5" else marian_tensors)(shape, np.random.default_rng(shape.seed))


def random_matrix(generator: np.random.Generator, rows: int, columns: int, std: float) -> np.ndarray:
    """Return a matrix that maps unit-variance vectors to standard deviation `std` and constant vectors to zero."""
    matrix = generator.standard_normal((rows, columns), np.float32) * np.float32(std / columns**0.5)
    return matrix - matrix.mean(axis=1, keepdims=True)


def marian_tensors(shape: Shape, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the tensors of a Marian model."""
    dims, tensors = shape.dims, {"final_logits_bias": np.zeros((1, shape.vocab_size), np.float32)}
    tensors["model.shared.weight"] = embedding_table(shape, generator, dims**-0.5)
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        for layer in (f"model.{side}.layers.{number}" for number in range(shape.layers)):
            sizes = {"fc1": (shape.mlp_dims, dims, 1.0), "fc2": (dims, shape.mlp_dims, 2 * shape.mlp_gain)}
            for name in attentions:
                stds = {"q": ATTENTION_SCORE_STD, "k": 1.0, "v": 1.0, "out": shape.attention_gain}
                sizes |= {f"{name}.{part}_proj": (dims, dims, std) for part, std in stds.items()}
            for name, (rows, columns, std) in sizes.items():
                tensors[f"{layer}.{name}.weight"] = random_matrix(generator, rows, columns, std)
                tensors[f"{layer}.{name}.bias"] = np.zeros(rows, np.float32)
            for name in (*attentions, "final"):
                tensors[f"{layer}.{name}_layer_norm.weight"] = np.ones(dims, np.float32)
                tensors[f"{layer}.{name}_layer_norm.bias"] = np.zeros(dims, np.float32)
    return tensors


def t5_tensors(shape: Shape, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the tensors of a T5; its attention is unscaled, so the query projections are scaled instead."""
    dims, tensors = shape.dims, {"shared.weight": embedding_table(shape, generator, 1.0)}
    for side, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        bias = generator.standard_normal((32, shape.num_heads), np.float32)
        tensors[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = bias
        for block in (f"{side}.block.{number}" for number in range(shape.layers)):
            sizes = {}
            for number, name in enumerate(attentions):
                stds = {
                    "q": ATTENTION_SCORE_STD * (shape.dims // shape.num_heads) ** -0.5,
                    "k": 1,
                    "v": 1,
                    "o": shape.attention_gain,
                }
                sizes |= {f"layer.{number}.{name}.{part}": (dims, dims, std) for part, std in stds.items()}
            mlp = f"layer.{len(attentions)}.DenseReluDense"
            sizes |= {f"{mlp}.wi": (shape.mlp_dims, dims, 1.0), f"{mlp}.wo": (dims, shape.mlp_dims, shape.mlp_gain)}
            tensors |= {f"{block}.{name}.weight": random_matrix(generator, *size) for name, size in sizes.items()}
            norms = (f"{block}.layer.{number}.layer_norm.weight" for number in range(len(attentions) + 1))
            tensors |= {name: np.ones(dims, np.float32) for name in norms}
        tensors[f"{side}.final_layer_norm.weight"] = np.ones(dims, np.float32)
    return tensors


def embedding_table(shape: Shape, generator: np.random.Generator, std: float) -> np.ndarray:
    """Return embeddings with zero rows for padding and EOS."""
    rows = generator.standard_normal((shape.vocab_size, shape.dims), np.float32) * np.float32(std)
    rows[2 : 2 + shape.num_frequent] *= FREQUENT_TOKEN_SCALE
    rows[[shape.pad_id, shape.eos_id]] = 0
    return rows


def write_checkpoint(shape: Shape, folder: Path, positions: int = 1024) -> None:
    """Write a checkpoint in the format of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config(shape, positions)))
    arrays = {name: mx.array(array) for name, array in hf_tensors(shape).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "pt"})


def random_sources(shape: Shape, batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Return random token ids without padding or EOS, int32 (batch, length)."""
    ids = np.random.default_rng(seed).integers(2, shape.vocab_size - 1, (batch, length))
    return ids.astype(np.int32)


def distinct_token_counts(outputs: list[list[int]]) -> tuple[int, int, int]:
    """Return the minimum, median and maximum number of distinct tokens of outputs."""
    distinct = sorted(len(set(ids)) for ids in outputs)
    return distinct[0], distinct[len(distinct) // 2], distinct[-1]


def outputs_vary(outputs: list[list[int]]) -> bool:
    """Return whether outputs are varied enough for their equality with another system's to be meaningful."""
    shares = sorted(len(set(ids)) / len(ids) for ids in outputs)
    identical = len(outputs) > 1 and len(set(map(tuple, outputs))) == 1
    return MIN_DISTINCT_SHARE <= shares[len(shares) // 2] <= MAX_DISTINCT_SHARE and not identical
