"""Checkpoints of known shapes with random weights, as transformers has them, and sources for them; torch is not needed.

Random weights as they are usually drawn say one token for ever, so that equal outputs would prove nothing. These are
drawn such that outputs vary (`variation`), and such that padding and end token, whose rows are zero, never win.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

SHARPNESS = 3.0  # standard deviation of an attention's scores
LONGER = 4  # embeddings of frequent tokens, so many times
GREATEST_SHARE, LEAST_SHARE = 1 / 2, 1 / 8  # distinct tokens of an output's tokens: 4 to 16 of 32


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, and how its weights are drawn.

    Attributes:
        kind: "marian" (post-norm, sinusoidal positions) or "t5" (pre-norm, relative positions).
        layers: Layers of the encoder, and of the decoder.
        dims: Width of the residual stream.
        heads: Attention heads.
        mlp: Width of the feed-forward network.
        vocab: Rows of the embedding table, which source, target and output share.
        frequent: Tokens whose embeddings are longer, so that they win more often.
        attention: Standard deviation of what attention adds to the residual stream, over that of an embedding.
        gain: The same of the feed-forward network; it must be the largest, or an output repeats its first token.
        seed: Of the random numbers.
    """

    kind: str
    layers: int
    dims: int
    heads: int
    mlp: int
    vocab: int
    frequent: int
    attention: float
    gain: float
    seed: int

    @property
    def pad_id(self) -> int:
        """Padding, which is also the decoder's first input."""
        return self.vocab - 1 if self.kind == "marian" else 0

    @property
    def eos_id(self) -> int:
        """The end token."""
        return 0 if self.kind == "marian" else 1


SHAPES = {
    "marian": Shape("marian", 6, 512, 8, 2048, 32001, frequent=16, attention=0.3, gain=3.0, seed=0),
    "t5": Shape("t5", 6, 512, 8, 2048, 32128, frequent=32, attention=4.0, gain=80.0, seed=3),
    "marian-tiny": Shape("marian", 2, 64, 4, 128, 301, frequent=32, attention=0.5, gain=6.0, seed=2),
    "t5-tiny": Shape("t5", 2, 64, 4, 128, 300, frequent=24, attention=4.0, gain=80.0, seed=5),
}


def settings(shape: Shape, positions: int) -> dict[str, object]:
    """The config.json of a shape, for outputs of up to so many positions."""
    ids = {"pad_token_id": shape.pad_id, "decoder_start_token_id": shape.pad_id, "eos_token_id": shape.eos_id}
    common = {"vocab_size": shape.vocab, "d_model": shape.dims, "tie_word_embeddings": True, "dtype": "float32", **ids}
    if shape.kind == "t5":
        sizes = {"d_kv": shape.dims // shape.heads, "d_ff": shape.mlp, "num_heads": shape.heads}
        layers = {"num_layers": shape.layers, "num_decoder_layers": shape.layers, "n_positions": positions}
        layers |= {"layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32}
        names = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "feed_forward_proj": "relu"}
        return common | sizes | layers | names
    sides = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", shape.layers), ("attention_heads", shape.heads), ("ffn_dim", shape.mlp))
    }
    names = {"model_type": "marian", "architectures": ["MarianMTModel"], "activation_function": "swish"}
    rest = {"max_position_embeddings": positions, "scale_embedding": True, "forced_eos_token_id": None}
    return common | sides | names | rest


def weights(shape: Shape) -> dict[str, np.ndarray]:
    """The tensors of a shape by their names in transformers."""
    return (t5_weights if shape.kind == "t5" else marian_weights)(shape, np.random.default_rng(shape.seed))


def normal(generator: np.random.Generator, rows: int, columns: int, spread: float) -> np.ndarray:
    """A matrix that makes vectors of `spread` standard deviation of those of 1, and nothing of what is constant."""
    matrix = generator.standard_normal((rows, columns), np.float32) * np.float32(spread / columns**0.5)
    return matrix - matrix.mean(axis=1, keepdims=True)


def marian_weights(shape: Shape, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """See `weights`."""
    dims, found = shape.dims, {"final_logits_bias": np.zeros((1, shape.vocab), np.float32)}
    found["model.shared.weight"] = table(shape, generator, dims**-0.5)
    for side, attentions in (("encoder", ["self_attn"]), ("decoder", ["self_attn", "encoder_attn"])):
        for layer in (f"model.{side}.layers.{number}" for number in range(shape.layers)):
            sizes = {"fc1": (shape.mlp, dims, 1.0), "fc2": (dims, shape.mlp, 2 * shape.gain)}
            for name in attentions:
                spreads = {"q": SHARPNESS, "k": 1.0, "v": 1.0, "out": shape.attention}
                sizes |= {f"{name}.{part}_proj": (dims, dims, spread) for part, spread in spreads.items()}
            for name, (rows, columns, spread) in sizes.items():
                found[f"{layer}.{name}.weight"] = normal(generator, rows, columns, spread)
                found[f"{layer}.{name}.bias"] = np.zeros(rows, np.float32)
            for name in (*attentions, "final"):
                found[f"{layer}.{name}_layer_norm.weight"] = np.ones(dims, np.float32)
                found[f"{layer}.{name}_layer_norm.bias"] = np.zeros(dims, np.float32)
    return found


def t5_weights(shape: Shape, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """See `weights`; attention is not scaled, so queries are, and the residual stream is never normalised."""
    dims, found = shape.dims, {"shared.weight": table(shape, generator, 1.0)}
    for side, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        bias = generator.standard_normal((32, shape.heads), np.float32)
        found[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = bias
        for block in (f"{side}.block.{number}" for number in range(shape.layers)):
            sizes = {}
            for number, name in enumerate(attentions):
                spreads = {"q": SHARPNESS * (shape.dims // shape.heads) ** -0.5, "k": 1, "v": 1, "o": shape.attention}
                sizes |= {f"layer.{number}.{name}.{part}": (dims, dims, spread) for part, spread in spreads.items()}
            mlp = f"layer.{len(attentions)}.DenseReluDense"
            sizes |= {f"{mlp}.wi": (shape.mlp, dims, 1.0), f"{mlp}.wo": (dims, shape.mlp, shape.gain)}
            found |= {f"{block}.{name}.weight": normal(generator, *size) for name, size in sizes.items()}
            norms = (f"{block}.layer.{number}.layer_norm.weight" for number in range(len(attentions) + 1))
            found |= {name: np.ones(dims, np.float32) for name in norms}
        found[f"{side}.final_layer_norm.weight"] = np.ones(dims, np.float32)
    return found


def table(shape: Shape, generator: np.random.Generator, spread: float) -> np.ndarray:
    """Embeddings, with zeros for padding and end token."""
    rows = generator.standard_normal((shape.vocab, shape.dims), np.float32) * np.float32(spread)
    rows[2 : 2 + shape.frequent] *= LONGER
    rows[[shape.pad_id, shape.eos_id]] = 0
    return rows


def write_checkpoint(shape: Shape, folder: Path, positions: int = 1024) -> None:
    """Write a checkpoint as transformers saves one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings(shape, positions)))
    arrays = {name: mx.array(array) for name, array in weights(shape).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "pt"})


def random_sources(shape: Shape, batch: int, length: int, seed: int = 0) -> np.ndarray:
    """Token ids without padding and end token, int32 (batch, length)."""
    ids = np.random.default_rng(seed).integers(2, shape.vocab - 1, (batch, length))
    return ids.astype(np.int32)


def variation(outputs: list[list[int]]) -> tuple[int, int, int]:
    """How many distinct tokens outputs have: the fewest, the median, the most."""
    distinct = sorted(len(set(ids)) for ids in outputs)
    return distinct[0], distinct[len(distinct) // 2], distinct[-1]


def varied(outputs: list[list[int]]) -> bool:
    """Whether equal outputs prove something: they neither repeat a token for ever nor are all alike."""
    shares = sorted(len(set(ids)) / len(ids) for ids in outputs)
    alike = len(outputs) > 1 and len(set(map(tuple, outputs))) == 1
    return LEAST_SHARE <= shares[len(shares) // 2] <= GREATEST_SHARE and not alike
