"""What a model is and how it is searched: frozen dataclasses of plain data, validated when they are made.

To and from JSON. This file imports nothing of MLX.
"""

from dataclasses import dataclass
from typing import Literal

from mlx_transformer.fields import check_at_most, check_positive, check_shares, check_types

DTYPE_NAMES = ("float32", "float16", "bfloat16")
MAX_BEAM_SIZE = 1024
MIN_TEMPERATURE = 1e-6  # divided by less, logits leave the range of float32
BATCH_TOKENS = 4096  # padded source positions x beams of a batch in generation

# Far more than any model has: a file that claims more would only fill the memory.
STACK_LIMITS = {"num_layers": 1000, "num_heads": 1024, "mlp_dims": 2**17, "max_length": 2**22}
STACK_LIMITS |= {"num_buckets": 2**16, "max_distance": 2**20}
MODEL_LIMITS = {"source_vocab_size": 2**24, "target_vocab_size": 2**24, "dims": 2**17, "head_dims": 2**17}
MAX_POSITIONS = 2**26  # numbers of a table of positions


@dataclass(frozen=True)
class StackConfig:
    """One stack of layers: the encoder or the decoder.

    Attributes:
        num_layers: Number of layers.
        num_heads: Attention heads of each layer.
        mlp_dims: Width of the feed-forward network.
        norm_first: Normalise before each sublayer (pre-norm) instead of after the residual sum (post-norm).
        final_norm: Normalise once more after the last layer.
        positions: "sinusoidal" rows are fixed, "learned" rows are trained; "relative" ones are a bias of attention for
            each bucket of distances (T5, mT5, umT5).
        max_length: Rows of the position table, the longest sequence in tokens.
        scale_embeddings: Multiply token embeddings by sqrt(dims) before positions are added.
        embedding_norm: Normalise embeddings "after" positions are added to them (BART, mBART) or "before" (the
            decoder of Blenderbot-small).
        residual_scale: Factor of a sublayer's input in the residual sum (JoeyNMT).
        num_buckets: Buckets of relative positions.
        max_distance: Relative positions further apart than this are alike.
        bias_each_layer: Every layer has a table of relative positions of its own (umT5), instead of one for the stack.
    """

    num_layers: int
    num_heads: int
    mlp_dims: int
    norm_first: bool = False
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
        check_at_most(self, STACK_LIMITS)
        if self.positions == "relative" and (self.num_buckets < 4 or self.num_buckets % 2):
            raise ValueError(f"num_buckets must be even and at least 4, not {self.num_buckets}.")
        if self.positions == "relative" and self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"max_distance must be more than half of num_buckets: {self.max_distance} is not more than "
                f"{self.num_buckets // 2}."
            )


@dataclass(frozen=True)
class ModelConfig:
    """An encoder-decoder Transformer.

    Attributes:
        source_vocab_size: Rows of the source embedding table.
        target_vocab_size: Rows of the target embedding table, and the number of logits.
        dims: Width of the residual stream.
        encoder: The encoder's stack.
        decoder: The decoder's stack.
        head_dims: Width of one attention head; None for dims / num_heads.
        share_embeddings: Source and target read one embedding table.
        tie_output: The output layer is the target embedding table.
        output_bias: The output layer has a bias.
        attention_bias: The projections of attention have biases.
        attention_out_bias: The last of these projections has one; None for the same as the others (OpenNMT-py).
        attention_scale: Factor of the queries' products with the keys; None for head_dims ** -0.5 (T5 has 1).
        mlp_bias: The feed-forward network has biases.
        gated_mlp: The feed-forward network multiplies two projections, one of them activated (T5 v1.1, mT5).
        norm: "layer" normalisation, "rms" without mean and bias (T5), or "deviation", which divides by the unbiased
            standard deviation plus norm_eps (Annotated Transformer).
        norm_bias: Normalisation has a bias.
        norm_eps: Added to the variance in normalisation.
        logit_scale: Factor of the last hidden state before the output layer (T5 v1.0 has dims ** -0.5).
        activation: Non-linearity of the feed-forward network.
        overflows_float16: Activations leave the range of float16 (T5), which is not used unless it is insisted on.
        dropout: Share of activations dropped in training, on embeddings and on each sublayer's output.
        attention_dropout: Share of attention's weights dropped in training.
        activation_dropout: Share dropped in training inside the feed-forward network, after its non-linearity.
        pad_id: Fills up short sequences on the right.
        eos_id: Ends a sequence.
        start_id: The decoder's first input.
    """

    source_vocab_size: int
    target_vocab_size: int
    dims: int
    encoder: StackConfig
    decoder: StackConfig
    head_dims: int | None = None
    share_embeddings: bool = True
    tie_output: bool = True
    output_bias: bool = False
    attention_bias: bool = True
    attention_out_bias: bool | None = None
    attention_scale: float | None = None
    mlp_bias: bool = True
    gated_mlp: bool = False
    norm: Literal["layer", "rms", "deviation"] = "layer"
    norm_bias: bool = True
    norm_eps: float = 1e-5
    logit_scale: float = 1.0
    activation: Literal["relu", "gelu", "gelu_tanh", "silu", "tanh"] = "relu"
    overflows_float16: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 2

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "source_vocab_size", "target_vocab_size", "dims")
        check_at_most(self, MODEL_LIMITS)
        if self.head_dims is not None:
            check_positive(self, "head_dims")
        for stack in (self.encoder, self.decoder):
            if stack.positions in ("sinusoidal", "learned") and stack.max_length * self.dims > MAX_POSITIONS:
                raise ValueError(
                    f"max_length x dims must be at most {MAX_POSITIONS}: {stack.max_length} x {self.dims} is more."
                )
            if self.head_dims is None and self.dims % stack.num_heads:
                raise ValueError(f"num_heads must divide dims: {stack.num_heads} does not divide {self.dims}.")
        if self.share_embeddings and self.source_vocab_size != self.target_vocab_size:
            raise ValueError(
                "Shared embeddings need vocabularies of one size: "
                f"{self.source_vocab_size} is not {self.target_vocab_size}; set share_embeddings to false."
            )
        check_shares(self, "dropout", "attention_dropout", "activation_dropout")
        smallest = min(self.source_vocab_size, self.target_vocab_size)
        for name in ("pad_id", "eos_id", "start_id"):
            if not 0 <= vars(self)[name] < (self.target_vocab_size if name == "start_id" else smallest):
                raise ValueError(f"{name} must be a row of the vocabulary: {vars(self)[name]} is none of {smallest}.")
        if self.norm == "rms" and self.norm_bias:
            raise ValueError("norm 'rms' has no bias: set norm_bias to false.")
        if self.norm == "deviation" and not self.norm_bias:
            raise ValueError("norm 'deviation' has a bias: set norm_bias to true.")


@dataclass(frozen=True)
class SearchConfig:
    """How targets are searched for; scores and stopping follow the beam search of transformers 5.

    Attributes:
        beam_size: Living hypotheses of a sentence; 1 is greedy search.
        num_hypotheses: How many hypotheses are returned for a sentence, best first.
        max_tokens: Most generated tokens, the end token counted; None for 2 x the source tokens + 50, unless a
            max_length_ratio is given. Never more than the decoder has positions.
        min_tokens: Fewest generated tokens, the end token counted.
        length_penalty: Exponent alpha in score = sum of log-probabilities / length ** alpha, the end token counted.
        early_stopping: When a sentence with beam_size finished hypotheses ends. False: when the best living hypothesis,
            scored at its present length, falls behind the worst finished one. True: at once. "never": as False, but
            with a positive length_penalty scored at max_tokens, the best that a living one could still reach.
        suppress_ids: Tokens that are never generated.
        bad_words: Sequences of tokens that are never generated.
        no_repeat_ngram_size: No sequence of so many tokens comes twice, the start token counted; 0 for no such rule.
        source_no_repeat_ngram_size: No sequence of so many tokens of the source is generated; 0 for no such rule.
        repetition_penalty: Log-probabilities of tokens that were generated, or started with, are multiplied by it;
            with a beam of one it is the logits (divided by it where positive), before they are normalised.
        forced_bos_id: The first token, whatever its probability; it scores 0 and counts in the length.
        forced_eos_id: The token at the place where max_tokens is reached, likewise.
        renormalize: Normalise log-probabilities once more after all these rules.
        max_length_ratio: Most generated tokens for each token of the source, both with their end token.
        min_length_ratio: Fewest, likewise.
        temperature: 0 searches for the most probable targets. Otherwise beam_size targets are drawn at random,
            independently of one another, from probabilities with this temperature; the scores are those without it.
        top_k: Draw from the k most probable tokens; 0 for all.
        top_p: Draw from the fewest most probable tokens that together have this probability.
        min_p: Draw from the tokens that have at least this share of the probability of the most probable one.
        seed: What is drawn depends on it, on the line, the position and the hypothesis, and on nothing else.
        alternatives: The beam_size most probable tokens are tried at the first place (after the prefix, if there is
            one), and each is continued greedily. The hypotheses are in the order of these tokens.
    """

    beam_size: int = 1
    num_hypotheses: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    suppress_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    no_repeat_ngram_size: int = 0
    source_no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    forced_bos_id: int | None = None
    forced_eos_id: int | None = None
    renormalize: bool = False
    max_length_ratio: float | None = None
    min_length_ratio: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    alternatives: bool = False

    @property
    def joint(self) -> bool:
        """Whether the beams of a sentence compete; otherwise each goes its own way."""
        return self.beam_size > 1 and not self.temperature and not self.alternatives

    @property
    def reads_history(self) -> bool:
        """Whether a rule looks at the tokens before."""
        ngrams = self.no_repeat_ngram_size or self.source_no_repeat_ngram_size
        return bool(ngrams) or self.repetition_penalty != 1 or any(len(word) > 1 for word in self.bad_words)

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "beam_size", "num_hypotheses")
        if self.beam_size > MAX_BEAM_SIZE:
            raise ValueError(f"beam_size must be at most {MAX_BEAM_SIZE}, not {self.beam_size}.")
        if self.num_hypotheses > self.beam_size:
            raise ValueError(
                f"num_hypotheses must not exceed beam_size: {self.num_hypotheses} is more than {self.beam_size}; "
                "ask for a larger beam."
            )
        if self.max_tokens is not None:
            check_positive(self, "max_tokens")
            if self.min_tokens > self.max_tokens:
                raise ValueError(
                    f"min_tokens must not exceed max_tokens: {self.min_tokens} > {self.max_tokens}; lower min_tokens."
                )
        check_positive(self, "repetition_penalty")
        if self.max_length_ratio is not None:
            check_positive(self, "max_length_ratio")
        for name in ("min_tokens", "min_length_ratio", "no_repeat_ngram_size", "source_no_repeat_ngram_size"):
            if vars(self)[name] < 0:
                raise ValueError(f"{name} must not be negative: {vars(self)[name]}.")
        if any(token < 0 for token in self.suppress_ids):
            raise ValueError(f"suppress_ids must be token ids, none below 0: {min(self.suppress_ids)}.")
        if not all(self.bad_words):
            raise ValueError("bad_words must be sequences of at least one token: one of them is empty.")
        self._check_sampling()

    def _check_sampling(self) -> None:
        for name in ("temperature", "top_k", "min_p", "seed"):
            if vars(self)[name] < 0:
                raise ValueError(f"{name} must not be negative: {vars(self)[name]}.")
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature must be 0, or at least {MIN_TEMPERATURE}, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be more than 0 and at most 1, not {self.top_p}.")
        if self.min_p > 1:
            raise ValueError(f"min_p must be at most 1, not {self.min_p}.")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be less than 2**32, not {self.seed}.")
        filtered = [name for name, none in (("top_k", 0), ("top_p", 1), ("min_p", 0)) if vars(self)[name] != none]
        if filtered and not self.temperature:
            raise ValueError(f"{filtered[0]} is for drawing at random: give a temperature above 0 as well.")
        if self.alternatives and self.temperature:
            raise ValueError(f"alternatives are not drawn: leave out temperature {self.temperature}.")


@dataclass(frozen=True)
class TaskConfig:
    """One of several tasks that a model was trained for, as T5 was.

    Attributes:
        name: Its name.
        source_prefix: What its sources begin with.
        search: How its targets are searched for.
    """

    name: str
    source_prefix: str
    search: SearchConfig

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True)
class QuantizationConfig:
    """How weights are stored in few bits: groups of neighbours share a scale and an offset.

    Attributes:
        bits: Bits of a weight.
        group_size: Weights of a group.
    """

    bits: int
    group_size: int = 64

    def __post_init__(self) -> None:
        check_types(self)
        for name, choices in (("bits", (4, 8)), ("group_size", (32, 64, 128))):
            if vars(self)[name] not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, not {vars(self)[name]}.")


@dataclass(frozen=True)
class FolderConfig:
    """The config.json of a model folder.

    Attributes:
        format_version: Raised when an older version of the package could not read the folder.
        model: What the model is.
        search: The search that it was made for.
        quantization: How its weights are quantised, None if they are not.
        tasks: The tasks that it was trained for.
    """

    format_version: int
    model: ModelConfig
    search: SearchConfig
    quantization: QuantizationConfig | None = None
    tasks: tuple[TaskConfig, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
