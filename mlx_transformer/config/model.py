"""Configuration of a model: its stacks, its dimensions and how its weights are quantised."""

from dataclasses import dataclass
from typing import Literal

from mlx_transformer.config.serialization import (
    check_at_least,
    check_at_most,
    check_padding,
    check_positive,
    check_shares,
    check_types,
)

DTYPE_NAMES = ("float32", "float16", "bfloat16")

# Far above any real model: a file that claims more would only exhaust memory.
STACK_LIMITS = {"num_layers": 1000, "num_heads": 1024, "mlp_dims": 2**17, "mlp_layers": 100, "max_length": 2**22}

STACK_LIMITS |= {"num_buckets": 2**12, "max_distance": 2**16}

MODEL_LIMITS = {"source_vocab_size": 2**24, "target_vocab_size": 2**24, "dims": 2**17, "head_dims": 2**17}

Activation = Literal["relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "sigmoid", "tanh"]

MAX_POSITIONS = 2**24  # max_length x dims of a position table: 16384 positions of 1024, 64 MiB


@dataclass(frozen=True)
class StackConfig:
    """Configuration of one stack of layers: the encoder or the decoder.

    Attributes:
        num_layers: Number of layers.
        num_heads: Number of attention heads.
        mlp_dims: Width of the feed-forward network.
        mlp_layers: Number of linear layers of the feed-forward network, at least 2 (Marian's transformer-ffn-depth).
        norm_first: Normalise before each sublayer (pre-norm) instead of after the residual sum (post-norm).
        norm_queries_only: Pre-norm self-attention normalises only its queries, not its keys and values (Marian before
            1.11).
        final_norm: Normalise once more after the last layer.
        positions: "sinusoidal" (fixed) or "learned" (trained) position embeddings, "relative" attention biases by
            bucketed distance (T5, mT5, umT5), or "none".
        max_length: Longest sequence in tokens: the number of rows of the position table.
        scale_embeddings: Multiply token embeddings by sqrt(dims) before positions are added.
        embedding_norm: Normalise embeddings "after" positions are added (BART, mBART), "before" (decoder of
            Blenderbot-small), or not at all ("none").
        residual_scale: Factor of the shortcut in residual connections (JoeyNMT).
        num_buckets: Number of buckets of relative positions.
        max_distance: Distance from which on relative positions share the last bucket.
        bias_each_layer: Each layer has its own table of relative position biases (umT5), instead of one per stack.
    """

    num_layers: int
    num_heads: int
    mlp_dims: int
    mlp_layers: int = 2
    norm_first: bool = False
    norm_queries_only: bool = False
    final_norm: bool = False
    positions: Literal["sinusoidal", "learned", "relative", "none"] = "sinusoidal"
    max_length: int = 512
    scale_embeddings: bool = True
    embedding_norm: Literal["none", "before", "after"] = "none"
    residual_scale: float = 1.0
    num_buckets: int = 32
    max_distance: int = 128
    bias_each_layer: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "num_layers", "num_heads", "mlp_dims", "max_length", "num_buckets", "max_distance")
        check_at_least(self, {"mlp_layers": 2})
        check_at_most(self, STACK_LIMITS)
        if self.norm_queries_only and not self.norm_first:
            raise ValueError("norm_queries_only needs norm_first: set that to true, or leave it out.")
        if self.positions == "relative" and (self.num_buckets < 4 or self.num_buckets % 2):
            raise ValueError(f"num_buckets must be even and at least 4, not {self.num_buckets}.")
        if self.positions == "relative" and self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"max_distance must be more than half of num_buckets: {self.max_distance} is not more than "
                f"{self.num_buckets // 2}."
            )


Pooling = Literal["mean", "first", "last"]


@dataclass(frozen=True)
class PoolingConfig:
    """How the encoder's hidden states of a text become one vector.

    Attributes:
        mode: The "mean" over all tokens, or the "first" or "last" token.
        projection_dims: Width of a linear layer after pooling; None for no such layer.
        projection_bias: That layer has a bias.
        projection_activation: Activation function after that layer.
        normalize: Divide the vector by its Euclidean length.
    """

    mode: Pooling = "mean"
    projection_dims: int | None = None
    projection_bias: bool = False
    projection_activation: Literal["none", "relu", "gelu", "gelu_tanh", "silu", "tanh"] = "none"
    normalize: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.projection_dims is not None:
            check_positive(self, "projection_dims")
        check_at_most(self, {"projection_dims": MODEL_LIMITS["dims"]})


@dataclass(frozen=True)
class AverageAttentionConfig:
    """Average attention, which can replace self-attention in the decoder; see `AverageAttention`.

    Attributes:
        mlp_dims: Width of the feed-forward network of the mean; None for the mean itself.
        mlp_layers: Number of linear layers of this network, at least 2.
        activation: Its activation function.
        gated: The input and the result of the network are weighted by gates.
    """

    mlp_dims: int | None = None
    mlp_layers: int = 2
    activation: Activation = "relu"
    gated: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        if self.mlp_dims is not None:
            check_positive(self, "mlp_dims")
        check_at_least(self, {"mlp_layers": 2})
        check_at_most(self, {name: STACK_LIMITS[name] for name in ("mlp_dims", "mlp_layers")})


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of an encoder-decoder Transformer, or of an encoder alone.

    Attributes:
        source_vocab_size: Rows of the source embedding table.
        target_vocab_size: Rows of the target embedding table; the number of logits.
        dims: Width of the residual stream.
        encoder: The encoder's stack.
        decoder: The decoder's stack; None for an encoder alone, which embeds texts.
        head_dims: Width of an attention head; None for dims / num_heads.
        share_embeddings: Source and target share one embedding table.
        tie_output: The output layer uses the target embedding table as its weight.
        output_bias: The output layer has a bias.
        decoder_self_attention: The first sublayer of decoder layers: "attention"; "ssru", the simpler simple recurrent
            unit of small, fast models (Kim et al. 2019; Marian's transformer-decoder-autoreg rnn); or "average", the
            average attention of earlier ones (Zhang et al. 2018).
        ssru_projection: The SSRU has an output projection (Marian's transformer-rnn-projection).
        average_attention: Configuration of average attention; None without it.
        attention_bias: The attention projections have biases.
        attention_out_bias: The output projection of attention has a bias; None for the value of attention_bias
            (OpenNMT-py).
        attention_projection: Attention has an output projection; false for Marian's transformer-no-projection.
        attention_scale: Factor of the query-key products; None for head_dims ** -0.5 (T5 uses 1).
        mlp_bias: The feed-forward networks have biases.
        gated_mlp: The feed-forward networks have an activated gate (T5 v1.1, mT5).
        norm: "layer" normalisation; "rms", without mean and bias (T5); or "deviation", which divides by the unbiased
            standard deviation plus norm_eps (Annotated Transformer).
        norm_bias: Layer normalisation has a bias.
        norm_eps: Epsilon added to the variance in normalisation.
        logit_scale: Factor of the last hidden state before the output layer (T5 v1.0 uses dims ** -0.5).
        activation: Activation function of the feed-forward networks.
        overflows_float16: Activations exceed the range of float16 (T5, Pegasus), so float16 is refused by default.
        dropout: Dropout rate of embeddings and of each sublayer's output.
        attention_dropout: Dropout rate of attention weights.
        activation_dropout: Dropout rate inside the feed-forward networks, after the activation.
        pad_id: The padding token, on the right of short sequences.
        eos_id: The end-of-sequence token.
        start_id: The decoder's start token.
        extra_eos_ids: Further tokens that end a generated target.
        pooling: How texts are embedded; None for a model that was not trained for it.
    """

    source_vocab_size: int
    target_vocab_size: int
    dims: int
    encoder: StackConfig
    decoder: StackConfig | None
    head_dims: int | None = None
    share_embeddings: bool = True
    tie_output: bool = True
    output_bias: bool = False
    decoder_self_attention: Literal["attention", "ssru", "average"] = "attention"
    ssru_projection: bool = False
    average_attention: AverageAttentionConfig | None = None
    attention_bias: bool = True
    attention_out_bias: bool | None = None
    attention_projection: bool = True
    attention_scale: float | None = None
    mlp_bias: bool = True
    gated_mlp: bool = False
    norm: Literal["layer", "rms", "deviation"] = "layer"
    norm_bias: bool = True
    norm_eps: float = 1e-5
    logit_scale: float = 1.0
    activation: Activation = "relu"
    overflows_float16: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 2
    extra_eos_ids: tuple[int, ...] = ()
    pooling: PoolingConfig | None = None

    @property
    def stacks(self) -> dict[str, StackConfig]:
        """The stacks that the model has, by their names."""
        return {"encoder": self.encoder} | ({} if self.decoder is None else {"decoder": self.decoder})

    def require_decoder(self) -> StackConfig:
        """Return the decoder's stack; ValueError for an encoder alone."""
        if self.decoder is None:
            raise ValueError(
                "Generation, scoring, attention and training need a decoder, but this model is an encoder alone: embed "
                "texts with it by embed (mt.embed), or choose another model."
            )
        return self.decoder

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All tokens that end a generated target."""
        return (self.eos_id, *self.extra_eos_ids)

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "source_vocab_size", "target_vocab_size", "dims")
        check_at_most(self, MODEL_LIMITS)
        if self.head_dims is not None:
            check_positive(self, "head_dims")
        for stack in self.stacks.values():
            if stack.positions in ("sinusoidal", "learned") and stack.max_length * self.dims > MAX_POSITIONS:
                raise ValueError(
                    f"max_length x dims must be at most {MAX_POSITIONS}: {stack.max_length} x {self.dims} is more."
                )
            if self.head_dims is None and self.dims % stack.num_heads:
                raise ValueError(f"num_heads must divide dims: {stack.num_heads} does not divide {self.dims}.")
            if self.gated_mlp and stack.mlp_layers != 2:
                raise ValueError(
                    f"Gated feed-forward networks have two layers: set mlp_layers to 2, not {stack.mlp_layers}, or "
                    "gated_mlp to false."
                )
            if not self.attention_projection and self.head_dims not in (None, self.dims // stack.num_heads):
                raise ValueError(
                    "Attention without an output projection must be as wide as dims: set head_dims to "
                    f"{self.dims // stack.num_heads}, or attention_projection to true."
                )
        if self.share_embeddings and self.source_vocab_size != self.target_vocab_size:
            raise ValueError(
                "Shared embeddings need vocabularies of one size: "
                f"{self.source_vocab_size} is not {self.target_vocab_size}; set share_embeddings to false."
            )
        if self.decoder is None and (not self.share_embeddings or not self.tie_output or self.output_bias):
            raise ValueError(
                "A model without a decoder has no output layer: set share_embeddings and tie_output to true, and "
                "output_bias to false."
            )
        check_shares(self, "dropout", "attention_dropout", "activation_dropout")
        self._check_decoder_self_attention()
        self._check_tokens()
        if self.norm == "rms" and self.norm_bias:
            raise ValueError("norm 'rms' has no bias: set norm_bias to false.")
        if self.norm == "deviation" and not self.norm_bias:
            raise ValueError("norm 'deviation' has a bias: set norm_bias to true.")

    def _check_decoder_self_attention(self) -> None:
        kind = self.decoder_self_attention
        if self.ssru_projection and kind != "ssru":
            raise ValueError("ssru_projection needs decoder_self_attention 'ssru': set it, or leave it out.")
        if (self.average_attention is not None) != (kind == "average"):
            raise ValueError(
                "average_attention belongs to decoder_self_attention 'average': set both, or leave both out."
            )
        if kind == "attention":
            return
        if self.decoder is None:
            raise ValueError(f"decoder_self_attention {kind!r} needs a decoder, but the model has none: leave it out.")
        if self.decoder.positions == "relative":
            raise ValueError(
                f"decoder_self_attention {kind!r} has no relative positions: set the decoder's positions to "
                "sinusoidal, learned or none."
            )

    def _check_tokens(self) -> None:
        smallest = min(self.source_vocab_size, self.target_vocab_size)
        ids = [("pad_id", self.pad_id, smallest), ("eos_id", self.eos_id, smallest)]
        ids.append(("start_id", self.start_id, self.target_vocab_size))
        ids += [("extra_eos_ids", token, self.target_vocab_size) for token in self.extra_eos_ids]
        for name, token, vocab_size in ids:
            if not 0 <= token < vocab_size:
                raise ValueError(f"{name} must be a token id from 0 to {vocab_size - 1}, not {token}.")
        check_padding(self.pad_id, self.eos_id)
        if self.pad_id in self.extra_eos_ids:
            raise ValueError(
                f"extra_eos_ids must not contain pad_id {self.pad_id}, which is never generated: remove it."
            )


@dataclass(frozen=True)
class QuantizationConfig:
    """Configuration of weight quantisation: groups of weights share a scale and an offset.

    Attributes:
        bits: Bits per weight, 4 or 8.
        group_size: Weights per group.
    """

    bits: int
    group_size: int = 64

    def __post_init__(self) -> None:
        check_types(self)
        for name, choices in (("bits", (4, 8)), ("group_size", (32, 64, 128))):
            if vars(self)[name] not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, not {vars(self)[name]}.")
