"""Checkpoints of Marian itself, of type transformer, whose decoder may have SSRUs or average attention.

Matrices are stored transposed. The decoder begins with a vector of zeros, so that a row of zeros is added to the
embeddings, for the start token and for padding; all tables get the same number of rows.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_transformer.config.model import STACK_LIMITS, ModelConfig
from mlx_transformer.messages import short_repr
from mlx_transformer.weights.families import transforms
from mlx_transformer.weights.families.spec import FINAL_NORMS, STACKS, Family, NameTable, Source

logger = logging.getLogger(__name__)
MAX_LENGTH = 1024  # of models without a table of positions, which only bounds memory
# The logit of a token that has no probability, within the range of float16; label smoothing adds a share of it.
NEVER = -1000.0
UNK_ID = 1  # which Marian generates only if it is told to
# Options of Marian's search without a counterpart, and their usual values.
IGNORED_OPTIONS = {"word-penalty": 0, "skip-cost": False}
FIRST_PRE_NORM = (1, 11, 0)  # the version from which pre-norm self-attention normalises keys and values too
FIRST_EXACT_GELU = (1, 12, 3)
ACTIVATIONS = ("relu", "swish", "gelu", "sigmoid")
AVERAGE = "average-attention"  # a value of transformer-decoder-autoreg
TABLES = ("Wemb", "encoder_Wemb", "decoder_Wemb", "decoder_ff_logit_out_Wt")


def _linear(layer: str, weight: str, bias: str) -> NameTable:
    return {f"{layer}.weight": (weight, mx.transpose), f"{layer}.bias": (bias, transforms.flatten_bias)}


def _norm(norm: str, *names: str) -> NameTable:
    """Return the names of a normalisation after a sublayer, or before it."""
    ends = {"weight": ("ln_scale", "ln_scale_pre", "rms_scale", "rms_scale_pre"), "bias": ("ln_bias", "ln_bias_pre")}
    sources: dict[str, list[Source]] = {
        leaf: [(f"{name}_{end}", transforms.flatten_bias) for name in names for end in ends[leaf]] for leaf in ends
    }
    return {f"{norm}.{leaf}": source for leaf, source in sources.items()}


def _feed_forward(network: str, prefix: str, depth: int) -> NameTable:
    """Return the names of a feed-forward network."""
    projections = ["up_proj", *(f"hidden_projs.{i}" for i in range(depth - 2)), "down_proj"]
    names: NameTable = {}
    for end, projection in enumerate(projections, 1):
        names |= _linear(f"{network}.{projection}", f"{prefix}_W{end}", f"{prefix}_b{end}")
    return names


def _layer(stack: str, depths: dict[str, int], index: int | str = "{i}", number: int | str = "{number}") -> NameTable:
    """Return the names of a layer; Marian counts layers from one. See `marian_names` for `depths`."""
    ours, theirs = f"{stack}.layers.{index}", f"{stack}_l{number}"
    names: NameTable = {}
    attentions = {"self_attention": "self"} | ({"cross_attention": "context"} if stack == "decoder" else {})
    for attention, part in attentions.items():
        for projection, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            prefix = f"{theirs}_{part}"
            names |= _linear(f"{ours}.{attention}.{projection}_proj", f"{prefix}_W{letter}", f"{prefix}_b{letter}")
        ends = [f"{part}_Wo", *(["rnn_ffn", "rnn", "aan_ffn"] if part == "self" and stack == "decoder" else [])]
        names |= _norm(f"{ours}.{attention}_residual.norm", *(f"{theirs}_{end}" for end in ends))
    names |= _feed_forward(f"{ours}.feed_forward", f"{theirs}_ffn", depths.get(stack, 2))
    if stack == "decoder":
        names |= {f"{ours}.ssru.input_proj.weight": (f"{theirs}_rnn_W", mx.transpose)}
        names |= _linear(f"{ours}.ssru.forget_proj", f"{theirs}_rnn_Wf", f"{theirs}_rnn_bf")
        names |= _linear(f"{ours}.ssru.out_proj", f"{theirs}_rnn_Wo", f"{theirs}_rnn_bo")
        average = f"{ours}.average_attention"
        names |= _feed_forward(f"{average}.network", f"{theirs}_aan", depths.get(AVERAGE, 2))
        names |= _linear(f"{average}.input_gate", f"{theirs}_aan_Wi", f"{theirs}_aan_bi")
        names |= _linear(f"{average}.mean_gate", f"{theirs}_aan_Wf", f"{theirs}_aan_bf")
    return names | _norm(f"{ours}.feed_forward_residual.norm", f"{theirs}_ffn_ffn")


def pad_rows(array: mx.array, rows: int | None = None, value: float = 0.0) -> mx.array:
    """Append rows of a value to a table, or values to a bias, up to a number of rows; one if None."""
    count = 1 if rows is None else rows - array.shape[0]
    return mx.pad(array, [(0, count), *[(0, 0)] * (array.ndim - 1)], constant_values=value)


def make_bias(table: mx.array, rows: int | None = None) -> mx.array:
    """Return the bias of an output layer without one: zero, but in the rows that are added to its table."""
    return pad_rows(mx.zeros(table.shape[0]), rows, NEVER)


def marian_names(depths: dict[str, int], rows: int | None = None) -> NameTable:
    """Return the names of all tensors; tables get a number of rows, one more than they have if None.

    `depths` are the numbers of layers of feed-forward networks, of each stack and of AVERAGE; two where there is none.
    """
    pad: Callable[..., mx.array] = partial(pad_rows, rows=rows)
    names: NameTable = {}
    for stack in STACKS:
        names |= _layer(stack, depths)
        names |= _norm(f"{stack}.norm", f"{stack}_top") | _norm(f"{stack}.embedding_norm", f"{stack}_emb")
        names[f"{stack}.positions.weight"] = "Wpos"
    return names | {
        "source_embedding.weight": [("encoder_Wemb", pad), ("Wemb", pad)],
        "target_embedding.weight": [("decoder_Wemb", pad), ("Wemb", pad)],
        "output.weight": [
            ("decoder_ff_logit_out_Wt", pad),
            ("decoder_ff_logit_out_W", lambda array: pad(array.T)),
        ],
        # So that the added rows have no share of the probabilities.
        "output.bias": ("decoder_ff_logit_out_b", lambda array: pad(array.flatten(), value=NEVER)),
    }


def adapt(family: Family, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> Family:
    """Return the family for a checkpoint with its names of tensors.

    They depend on the sizes of its vocabularies, the depths of its feed-forward networks, and on tied layers.

    Raises:
        ValueError: If a vocabulary is factored, a depth is not supported, or the tied layers are not one for each
            layer.
    """
    tables = {name: shapes[name][0] for name in TABLES if len(shapes.get(name, ())) == 2}
    check_vocabularies(settings, tables)
    rows = max(tables.values()) + 1 if len(set(tables.values())) > 1 else None
    depths = {stack: mlp_layers(settings, stack) for stack in STACKS}
    if settings.get("transformer-decoder-autoreg") == AVERAGE:
        depths[AVERAGE] = network_depth(settings, "transformer-aan-depth", least=1)
    names = marian_names(depths, rows)
    for index, number in enumerate(tied_layers(settings)):
        names |= _layer("decoder", depths, index, number)
    if settings.get("output-omit-bias"):  # the added rows need one nevertheless
        names["output.bias"] = [(table, partial(make_bias, rows=rows)) for table in reversed(TABLES)]
    return replace(family, names=names)


def check_vocabularies(settings: dict[str, Any], tables: dict[str, int]) -> None:
    """Raise ValueError if a vocabulary has more words than its table has rows, because words have factors."""
    sizes = settings.get("dim-vocabs")
    numbers = [size for size in sizes if type(size) is int] if isinstance(sizes, list) else []
    if numbers and tables and max(numbers) > max(tables.values()):
        raise ValueError(
            f"A checkpoint with {max(numbers)} words and {max(tables.values())} embeddings has a factored vocabulary, "
            "which is not supported: choose a model with a SentencePiece vocabulary."
        )


def tied_layers(settings: dict[str, Any]) -> list[int]:
    """Return the number of the layer whose weights each decoder layer has; none if all have their own."""
    numbers, depth = settings.get("transformer-tied-layers") or [], settings.get("dec-depth")
    if not isinstance(numbers, list) or not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"transformer-tied-layers must be numbers of layers, not {short_repr(numbers)}: correct them.")
    if numbers and (len(numbers) != depth or depth > STACK_LIMITS["num_layers"]):
        raise ValueError(
            f"transformer-tied-layers must be one for each of the {short_repr(depth)} decoder layers, not "
            f"{len(numbers)}: correct them."
        )
    return numbers


def network_depth(settings: dict[str, Any], option: str, least: int = 2) -> int:
    """Return the number of layers of a feed-forward network, which an option gives."""
    depth, limit = settings.get(option), STACK_LIMITS["mlp_layers"]
    if depth is None:
        return 2
    if type(depth) is not int or not least <= depth <= limit:
        raise ValueError(
            f"A checkpoint with {option} {short_repr(depth)} cannot be converted: it must be a number from {least} to "
            f"{limit}; choose another model."
        )
    return depth


def mlp_layers(settings: dict[str, Any], stack: str) -> int:
    """Return the number of layers of a stack's feed-forward networks: zero in the decoder is that of the encoder."""
    option = "transformer-decoder-ffn-depth"
    return network_depth(settings, option if stack == "decoder" and settings.get(option) else "transformer-ffn-depth")


def operations(settings: dict[str, Any], name: str) -> str:
    """Return the operations of transformer-preprocess, -postprocess, -postprocess-emb or -postprocess-top.

    Dropout is left out.
    """
    value = settings.get(f"transformer-{name}")
    return "".join(letter for letter in str("" if value is None else value) if letter != "d")


def norm_kind(settings: dict[str, Any]) -> str:
    """Return the kind of normalisation; ValueError if there is more than one."""
    names = ("preprocess", "postprocess", "postprocess-emb", "postprocess-top")
    letters = {letter for name in names for letter in operations(settings, name)}
    if {"n", "r"} <= letters:
        raise ValueError(
            "A checkpoint with layer normalisation (n) and RMSNorm (r) cannot be converted: all norms must be of one "
            "kind; choose another model."
        )
    return "rms" if "r" in letters else "layer"


def norm_first(settings: dict[str, Any]) -> bool:
    """Return whether layers are pre-norm; ValueError for norms elsewhere and for highway connections."""
    before, after, top = (operations(settings, name) for name in ("preprocess", "postprocess", "postprocess-top"))
    letter = "r" if norm_kind(settings) == "rms" else "n"
    if (before, after) not in (("", f"a{letter}"), (letter, "a")) or top not in ("", letter):
        raise ValueError(
            f"A checkpoint with transformer-preprocess {short_repr(before)}, -postprocess {short_repr(after)} and "
            f"-postprocess-top {short_repr(top)} cannot be converted: the first two must be '' and 'a{letter}' or "
            f"'{letter}' and 'a', the last one '' or '{letter}'; choose another model."
        )
    return before == letter


def version(settings: dict[str, Any], option: str) -> tuple[int, ...]:
    """Return the version of Marian that trained a model, on which the meaning of an option depends."""
    text = settings.get("version")
    match = re.match(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})", text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(
            f"A checkpoint with {option} needs Marian's version among its options, such as v1.12.0, not "
            f"{short_repr(text)}: use the file that Marian wrote."
        )
    return tuple(map(int, match.groups()))


def norm_queries_only(settings: dict[str, Any]) -> bool:
    """Return whether self-attention normalises its queries only."""
    return norm_first(settings) and version(settings, "transformer-preprocess n") < FIRST_PRE_NORM


def activation(settings: dict[str, Any], option: str = "transformer-ffn-activation") -> str:
    """Return the activation that an option gives; gelu was first an approximation."""
    name = settings.get(option) or "swish"
    if name == "gelu" and version(settings, f"{option} gelu") < FIRST_EXACT_GELU:
        return "quick_gelu"
    return transforms.activation(name)


def decoder_self_attention(settings: dict[str, Any]) -> str:
    """Return the first sublayer of decoder layers; ValueError for a recurrent one that is no plain SSRU."""
    if average_attention(settings) is not None:
        return "average"
    if settings.get("transformer-decoder-autoreg") != "rnn":
        return "attention"
    cell, has_norm = settings.get("dec-cell"), settings.get("layer-normalization")
    if cell != "ssru" or has_norm:
        what = f"dec-cell {cell}" + (" with layer-normalization" if has_norm else "")
        raise ValueError(
            f"A decoder with {what} cannot be converted: only ssru without layer-normalization is supported."
        )
    return "ssru"


def average_attention(settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of average attention, None without it; ValueError where other layers than ours have it.

    Marian takes the mean before a pre-norm, and leaves out the last layer of a network that is as wide as the model.
    """
    if settings.get("transformer-decoder-autoreg") != AVERAGE:
        return None
    width = 2048 if settings.get("transformer-dim-aan") is None else settings["transformer-dim-aan"]
    depth = network_depth(settings, "transformer-aan-depth", least=1)
    if norm_first(settings):
        raise ValueError(
            f"A decoder with {AVERAGE} and transformer-preprocess {operations(settings, 'preprocess')} cannot be "
            "converted: average attention is supported in post-norm layers; choose another model."
        )
    if depth > 1 and width == settings["tensors"].get("dims"):
        raise ValueError(
            f"A decoder with {AVERAGE} and transformer-dim-aan {width} cannot be converted: its network must have "
            "another width than the model; choose another model."
        )
    return {
        "mlp_dims": width if depth > 1 else None,
        "mlp_layers": max(depth, 2),
        "activation": activation(settings, "transformer-aan-activation"),
        "gated": not settings.get("transformer-aan-nogate"),
    }


def without_positions(settings: dict[str, Any], value: Any) -> Any:
    """Return the value of a setting for a model without positions, None for others."""
    return value if settings.get("transformer-disable-position-embeddings") else None


def last_id(settings: dict[str, Any]) -> int:
    """Return the id of the added row, which is padding and the start token."""
    size: int = settings["tensors"]["target_vocab_size"]
    return size - 1


def suppressed_ids(settings: dict[str, Any], config: ModelConfig) -> tuple[int, ...]:
    """Return the tokens that are never generated: added rows, and unknown words unless they are allowed."""
    sizes = settings.get("dim-vocabs")
    size = sizes[-1] if isinstance(sizes, list) and sizes and type(sizes[-1]) is int else config.start_id
    added = range(min(size, config.start_id), config.target_vocab_size)
    for name, usual in IGNORED_OPTIONS.items():
        if (value := settings.get(name)) not in (None, usual):
            logger.warning("Marian's option %s %s has no counterpart and is ignored.", name, value)
    return (*added, *(() if settings.get("allow-unk") else (UNK_ID,)))


def length_penalty(settings: dict[str, Any], config: ModelConfig) -> Any:
    """Return the exponent of the length; true is 1. A value that is no number is refused as a search setting."""
    value = settings.get("normalize") or 0
    return float(value) if isinstance(value, int | float) else value


MARIAN = Family(
    marian_names({}),
    {
        "num_heads": "transformer-heads",
        "activation": activation,
        "norm": norm_kind,
        "norm_bias": lambda settings: norm_kind(settings) == "layer",
        "norm_first": norm_first,
        **{f"{stack}.mlp_layers": partial(mlp_layers, stack=stack) for stack in STACKS},
        "encoder.norm_queries_only": norm_queries_only,
        "decoder.norm_queries_only": lambda settings: (
            decoder_self_attention(settings) == "attention" and norm_queries_only(settings)
        ),
        "decoder_self_attention": decoder_self_attention,
        "average_attention": average_attention,
        "positions": partial(without_positions, value="none"),
        "scale_embeddings": partial(without_positions, value=False),
        "max_length": lambda settings: settings["tensors"].get("encoder.max_length", MAX_LENGTH),
        "pad_id": last_id,
        "start_id": last_id,
    },
    constants={"eos_id": 0, "norm_eps": 1e-6, "output_bias": True},
    presence=FINAL_NORMS
    | {
        "attention_projection": ("encoder.layers.0.self_attention.out_proj.weight", True, False),
        "ssru_projection": ("decoder.layers.0.ssru.out_proj.weight", True, False),
    }
    | {
        f"{stack}.{setting}": (f"{stack}.{parameter}.weight", present, absent)
        for stack in STACKS
        for setting, parameter, present, absent in (
            ("embedding_norm", "embedding_norm", "after", "none"),
            ("positions", "positions", "learned", "sinusoidal"),
            ("scale_embeddings", "positions", False, True),
        )
    },
    sinusoids=transforms.sinusoidal_tensor2tensor,
    supported={
        "type": ("transformer",),
        "right-left": (False,),
        "transformer-decoder-autoreg": ("self-attention", "rnn", AVERAGE),
        "transformer-ffn-activation": ACTIVATIONS,
        "transformer-aan-activation": ACTIVATIONS,
        "transformer-pool": (False,),
        "transformer-disable-position-embeddings": (False, True),
        "transformer-attention-mask": ("default",),
        "lemma-dim-emb": (0,),
        "ulr": (False,),
    },
    search={
        "beam_size": lambda settings, _: settings.get("beam-size", 12),
        "length_penalty": length_penalty,
        "max_length_ratio": lambda settings, _: settings.get("max-length-factor", 3),
        "suppress_ids": suppressed_ids,
    },
    adapt=adapt,
    ignored=("*_QuantMultA",),  # multipliers of inputs, for products of integers
)
