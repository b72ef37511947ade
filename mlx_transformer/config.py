"""Plain data that says what a model is, how it is searched and how it is trained.

Frozen dataclasses, validated when they are made, to and from JSON. This file imports nothing of MLX.
"""

import dataclasses
import math
import types
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

Config = TypeVar("Config")
DTYPE_NAMES = ("float32", "float16", "bfloat16")
BATCH_TOKENS = 4096  # padded source positions x beams of a batch in generation


@dataclass(frozen=True)
class StackConfig:
    """One stack of layers: the encoder or the decoder.

    Attributes:
        num_layers: Number of layers.
        num_heads: Attention heads of each layer.
        mlp_dims: Width of the feed-forward network.
        norm_first: Normalise before each sublayer (pre-norm) instead of after the residual sum (post-norm).
        final_norm: Normalise once more after the last layer.
        positions: "sinusoidal" rows are fixed, "learned" rows are trained.
        max_length: Rows of the position table, the longest sequence in tokens.
        scale_embeddings: Multiply token embeddings by sqrt(dims) before positions are added.
    """

    num_layers: int
    num_heads: int
    mlp_dims: int
    norm_first: bool = False
    final_norm: bool = False
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    max_length: int = 512
    scale_embeddings: bool = True

    def __post_init__(self) -> None:
        _check_types(self)
        _check_positive(self, "num_layers", "num_heads", "mlp_dims", "max_length")


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
        mlp_bias: The feed-forward network has biases.
        norm_bias: Layer normalisation has a bias.
        norm_eps: Added to the variance in layer normalisation.
        activation: Non-linearity of the feed-forward network.
        dropout: Share of activations dropped in training, on embeddings and on each sublayer's output.
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
    mlp_bias: bool = True
    norm_bias: bool = True
    norm_eps: float = 1e-5
    activation: Literal["relu", "gelu", "silu"] = "relu"
    dropout: float = 0.1
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 2

    def __post_init__(self) -> None:
        _check_types(self)
        _check_positive(self, "source_vocab_size", "target_vocab_size", "dims")
        if self.head_dims is not None:
            _check_positive(self, "head_dims")
        for stack in (self.encoder, self.decoder):
            if self.head_dims is None and self.dims % stack.num_heads:
                raise ValueError(f"num_heads must divide dims: {stack.num_heads} does not divide {self.dims}.")
        if self.share_embeddings and self.source_vocab_size != self.target_vocab_size:
            raise ValueError(
                "Shared embeddings need vocabularies of one size: "
                f"{self.source_vocab_size} is not {self.target_vocab_size}; set share_embeddings to false."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}.")
        smallest = min(self.source_vocab_size, self.target_vocab_size)
        for name in ("pad_id", "eos_id", "start_id"):
            if not 0 <= vars(self)[name] < (self.target_vocab_size if name == "start_id" else smallest):
                raise ValueError(f"{name} must be a row of the vocabulary: {vars(self)[name]} is none of {smallest}.")


@dataclass(frozen=True)
class SearchConfig:
    """How targets are searched for; scores and stopping follow the beam search of transformers 5.

    Attributes:
        beam_size: Living hypotheses of a sentence; 1 is greedy search.
        num_hypotheses: How many hypotheses are returned for a sentence, best first.
        max_tokens: Most generated tokens, the end token counted; None for 2 x the source tokens + 50. Never more
            than the decoder has positions.
        min_tokens: Fewest generated tokens, the end token counted.
        length_penalty: Exponent alpha in score = sum of log-probabilities / length ** alpha, the end token counted.
        early_stopping: When a sentence with beam_size finished hypotheses ends. False: when the best living hypothesis,
            scored at its present length, falls behind the worst finished one. True: at once. "never": as False, but
            with a positive length_penalty scored at max_tokens, the best that a living one could still reach.
        suppress_ids: Tokens that are never generated.
    """

    beam_size: int = 1
    num_hypotheses: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    suppress_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_types(self)
        _check_positive(self, "beam_size", "num_hypotheses")
        if self.num_hypotheses > self.beam_size:
            raise ValueError(
                f"num_hypotheses must not exceed beam_size: {self.num_hypotheses} is more than {self.beam_size}; "
                "ask for a larger beam."
            )
        if self.max_tokens is not None:
            _check_positive(self, "max_tokens")
            if self.min_tokens > self.max_tokens:
                raise ValueError(f"min_tokens must not exceed max_tokens: {self.min_tokens} > {self.max_tokens}.")
        if self.min_tokens < 0:
            raise ValueError(f"min_tokens must not be negative: {self.min_tokens}.")
        if any(token < 0 for token in self.suppress_ids):
            raise ValueError(f"suppress_ids must be token ids, none below 0: {min(self.suppress_ids)}.")


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
        _check_types(self)
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
    """

    format_version: int
    model: ModelConfig
    search: SearchConfig
    quantization: QuantizationConfig | None = None

    def __post_init__(self) -> None:
        _check_types(self)


@dataclass(frozen=True)
class TrainingConfig:
    """A training run: corpora in, a run folder with the best and the last model out.

    Attributes:
        train: Corpora to train on: a TSV file, SOURCE_FILE::TARGET_FILE, or "dates"; .gz or plain.
        valid: Corpora to validate on, written likewise.
        output: The run folder: best/ and last/ are model folders, log.jsonl is the log.
        preset: A row of PRESETS, the size of the model.
        steps: Optimizer updates.
        batch_tokens: Padded positions of a batch on its longer side.
        vocab_size: Most pieces of the subword vocabulary.
        shared_vocabulary: One vocabulary and embedding table for both languages.
        learning_rate: The highest rate, reached after warm-up; then it falls with the inverse square root of the step.
        warmup_steps: Steps over which the rate rises from 0.
        label_smoothing: Share of the probability that is spread evenly over the vocabulary.
        dropout: Share of activations dropped.
        clip_norm: Largest norm of the gradient.
        ema_decay: Decay a step of the moving average of the weights, which is what is validated and kept; 0 for none.
        seed: The same seed gives the same run.
        valid_every: Steps between validations.
        log_every: Steps between lines of the log.
        bleu_sentences: Validation sentences translated for BLEU and exact matches; 0 for none.
        best_by: What decides which model is the best: validation's token accuracy, loss (which label smoothing
            worsens while translations still get better), or BLEU (needs sacrebleu).
        max_length: Longest sentence in tokens; longer ones are left out of training.
        skip_bad_lines: Count and skip bad lines of the corpora instead of stopping.
        resume: Go on with the run in `output`, with its own options, from its last checkpoint.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...]
    output: str
    preset: str = "small"
    steps: int = 10_000
    batch_tokens: int = 4096
    vocab_size: int = 8000
    shared_vocabulary: bool = True
    learning_rate: float = 1e-3
    warmup_steps: int = 1000
    label_smoothing: float = 0.1
    dropout: float = 0.1
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    valid_every: int = 500
    log_every: int = 20
    bleu_sentences: int = 500
    best_by: Literal["accuracy", "loss", "bleu"] = "accuracy"
    max_length: int = 256
    skip_bad_lines: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        _check_types(self)
        _check_positive(self, "steps", "batch_tokens", "vocab_size", "learning_rate", "warmup_steps", "clip_norm")
        _check_positive(self, "valid_every", "log_every", "max_length")
        for name in ("label_smoothing", "dropout", "ema_decay"):
            if not 0 <= vars(self)[name] < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {vars(self)[name]}.")
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {self.preset!r}.")
        if self.best_by == "bleu" and not self.bleu_sentences:
            raise ValueError("best_by 'bleu' needs sentences to translate: bleu_sentences must not be 0.")
        if not self.train or not self.valid:
            raise ValueError("A training run needs at least one corpus to train on and one to validate on.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2**32, not {self.seed}.")
        if self.bleu_sentences < 0:
            raise ValueError(f"bleu_sentences must not be negative: {self.bleu_sentences}.")
        if self.batch_tokens < self.max_length:
            raise ValueError(
                f"A batch must hold the longest sentence: batch_tokens {self.batch_tokens} is less than max_length "
                f"{self.max_length}."
            )


@dataclass(frozen=True)
class Preset:
    """The size of a model to train: pre-norm, `layers` layers on each side, heads of 64."""

    dims: int
    layers: int
    mlp_dims: int


PRESETS = {
    "tiny": Preset(dims=128, layers=2, mlp_dims=512),
    "small": Preset(dims=256, layers=3, mlp_dims=512),  # narrow inside, for corpora of some ten thousand pairs
    "base": Preset(dims=512, layers=6, mlp_dims=2048),
    "big": Preset(dims=1024, layers=6, mlp_dims=4096),
}


def to_dict(config: Any) -> dict[str, Any]:
    """Plain data for JSON."""
    return dataclasses.asdict(config)


def from_dict(kind: type[Config], data: Any, name: str) -> Config:
    """The config of class `kind` that `data` (from JSON) describes; `name` says in errors where it stood.

    Raises:
        ValueError: If a field is unknown, missing or of the wrong kind.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{name} must be an object with fields, not {data!r}.")
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(data.keys() - fields.keys()):
        raise ValueError(f"{name} has unknown fields: {', '.join(unknown)}. The known ones are {', '.join(fields)}.")
    required = {key for key, item in fields.items() if item.default is dataclasses.MISSING}
    if missing := sorted(required - data.keys()):
        raise ValueError(f"{name} lacks the fields {', '.join(missing)}.")
    values = dict(data)
    for key, value in data.items():
        kinds = get_args(fields[key].type) or (fields[key].type,)
        nested = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        if nested and value is not None:
            values[key] = from_dict(nested[0], value, f"{name}: {key}")  # type: ignore[arg-type]
        elif isinstance(value, list):
            values[key] = tuple(value)
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _matches(value: Any, kind: Any) -> bool:
    """Whether `value` is of the annotated `kind`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_matches(value, arg) for arg in args)
    if origin is Literal:
        return type(value) is str and value in args
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(item, args[0]) for item in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _check_types(config: Any) -> None:
    for item in dataclasses.fields(config):
        value = vars(config)[item.name]
        if not _matches(value, item.type):
            kind = item.type.__name__ if isinstance(item.type, type) else str(item.type).replace("typing.", "")
            raise ValueError(f"{item.name} must be {kind}, not {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{item.name} must be a finite number, not {value}.")


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        if vars(config)[name] <= 0:
            raise ValueError(f"{name} must be more than 0, not {vars(config)[name]}.")
