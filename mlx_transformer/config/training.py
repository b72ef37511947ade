"""How a model is trained: the options of a run, as plain data. This file imports nothing of MLX."""

from dataclasses import MISSING, dataclass, fields
from typing import Literal

from mlx_transformer.config.serialization import check_positive, check_shares, check_types

# What can be frozen -> its places in the model.
FREEZABLE_PARTS = {
    "encoder": ("encoder",),
    "decoder": ("decoder",),
    "embeddings": ("source_embedding", "target_embedding"),
    "output": ("output", "output_bias"),
}
# What makes a new model, and is settled where one is trained further.
NEW_MODEL_OPTIONS = (
    *("preset", "num_layers", "decoder_layers", "dims", "mlp_dims", "num_heads", "norm_first", "activation"),
    *("vocab_size", "shared_vocabulary"),
)


@dataclass(frozen=True)
class TrainingConfig:
    """A training run: corpora in, a run folder with the best and the last model out.

    Attributes:
        train: Corpora to train on: a TSV file, SOURCE_FILE::TARGET_FILE, or "dates"; .gz or plain. With "en:fr=" before
            it, the model is told these languages.
        valid: Corpora to validate on, written likewise.
        output: The run folder: best/ and last/ are model folders, log.jsonl is the log.
        init: Train this model further, with its own tokenizer: a folder, a torch checkpoint, or owner/name on the hub.
        freeze: Parts that stay as they are: encoder, decoder, embeddings, output, separated by commas.
        source_prefix: What every source begins with, as T5 wants it.
        preset: The size of a new model.
        num_layers: Layers of the encoder, and of the decoder, if not the preset's.
        decoder_layers: Layers of the decoder, if not as many as the encoder has.
        dims: Width of the residual stream, if not the preset's.
        mlp_dims: Width of the feed-forward networks, if not the preset's.
        num_heads: Attention heads, if not one for each 64 of the width.
        norm_first: Normalise before each sublayer, which trains more easily, instead of after it.
        activation: Non-linearity of the feed-forward networks.
        vocab_size: Most pieces of the subword vocabulary.
        shared_vocabulary: One vocabulary and embedding table for both languages.
        steps: Optimizer updates.
        batch_tokens: Padded positions of a batch on its longer side.
        accumulate: Batches of an update, one after the other: as one larger batch, with the memory of one of them.
        optimizer: What makes an update of a gradient.
        betas: Decay of the first and the second moment of the gradient.
        weight_decay: What matrices lose in an update, times the learning rate; not with adam.
        learning_rate: The highest rate, reached after warm-up.
        warmup_steps: Steps over which the rate rises from 0.
        schedule: How the rate falls after warm-up: with the inverse square root of the step, along half a cosine or a
            line to 0 at the last step, or not at all.
        label_smoothing: Share of the probability that is spread evenly over the vocabulary.
        dropout: Share of activations dropped, of embeddings and of each sublayer's output.
        attention_dropout: Share of attention's weights dropped.
        activation_dropout: Share dropped inside the feed-forward networks.
        clip_norm: Largest norm of the gradient; 0 for none.
        ema_decay: Decay a step of the moving average of the weights, which is what is validated and kept; 0 for none.
        average_checkpoints: What is validated and kept is the mean of so many of the last checkpoints.
        compute_dtype: Numbers to compute gradients in; weights, their average and the optimizer stay in float32.
        recompute: Compute layers twice instead of keeping all that they make in memory for the gradient.
        seed: The same seed gives the same run.
        valid_every: Steps between validations, after each of which a checkpoint is written.
        log_every: Steps between lines of the log.
        bleu_sentences: Validation sentences translated for BLEU, chrF and exact matches; 0 for none.
        samples: How many of them are shown at each validation.
        best_by: What decides which model is the best: validation's token accuracy, loss (which label smoothing
            worsens while translations still get better), BLEU or chrF (which need sacrebleu).
        patience: End after so many validations without a better one; 0 to go on to the last step.
        keep: Checkpoints that are kept; from the one before it a run goes on if the last is damaged.
        max_length: Longest sentence in tokens; longer ones are left out of training.
        skip_bad_lines: Count and skip bad lines of the corpora instead of stopping.
        resume: Go on with the run in `output`, with its own options, from its last checkpoint.
    """

    train: tuple[str, ...]
    valid: tuple[str, ...]
    output: str
    init: str | None = None
    freeze: tuple[str, ...] = ()
    source_prefix: str = ""
    preset: str = "small"
    num_layers: int | None = None
    decoder_layers: int | None = None
    dims: int | None = None
    mlp_dims: int | None = None
    num_heads: int | None = None
    norm_first: bool = True
    activation: Literal["relu", "gelu", "silu"] = "relu"
    vocab_size: int = 8000
    shared_vocabulary: bool = True
    steps: int = 10_000
    batch_tokens: int = 4096
    accumulate: int = 1
    optimizer: Literal["adam", "adamw", "adafactor", "lion"] = "adam"
    betas: tuple[float, ...] = (0.9, 0.98)
    weight_decay: float = 0.0
    learning_rate: float = 1e-3
    warmup_steps: int = 1000
    schedule: Literal["inverse_sqrt", "cosine", "linear", "constant"] = "inverse_sqrt"
    label_smoothing: float = 0.1
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    average_checkpoints: int = 1
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    recompute: bool = False
    seed: int = 0
    valid_every: int = 500
    log_every: int = 20
    bleu_sentences: int = 500
    samples: int = 3
    best_by: Literal["accuracy", "loss", "bleu", "chrf"] = "accuracy"
    patience: int = 0
    keep: int = 2
    max_length: int = 256
    skip_bad_lines: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "steps", "batch_tokens", "accumulate", "vocab_size", "learning_rate", "warmup_steps")
        check_positive(self, "average_checkpoints", "valid_every", "log_every", "keep", "max_length")
        check_shares(self, "label_smoothing", "dropout", "attention_dropout", "activation_dropout", "ema_decay")
        for name in ("weight_decay", "clip_norm", "bleu_sentences", "samples", "patience"):
            if vars(self)[name] < 0:
                raise ValueError(f"{name} must not be negative: {vars(self)[name]}.")
        if not self.train or not self.valid:
            raise ValueError("A training run needs at least one corpus to train on and one to validate on.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2**32, not {self.seed}.")
        self._check_optimizer()
        self._check_model()
        self._check_validation()

    def _check_optimizer(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers, at least 0 and below 1, not {self.betas}.")
        if self.optimizer == "adafactor" and self.betas != (0.9, 0.98):
            raise ValueError("optimizer 'adafactor' has no betas: leave them out.")
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError("optimizer 'adam' has no weight decay: choose adamw, or leave weight_decay out.")
        if self.schedule in ("cosine", "linear") and self.warmup_steps >= self.steps:
            raise ValueError(
                f"A schedule that ends with the run must have steps after warm-up: warmup_steps {self.warmup_steps} is "
                f"not less than steps {self.steps}."
            )
        if self.batch_tokens < self.max_length:
            raise ValueError(
                f"A batch must hold the longest sentence: batch_tokens {self.batch_tokens} is less than max_length "
                f"{self.max_length}."
            )

    def _check_model(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {self.preset!r}.")
        if unknown := [name for name in self.freeze if name not in FREEZABLE_PARTS]:
            raise ValueError(f"freeze takes {', '.join(FREEZABLE_PARTS)}: {unknown[0]!r} is none of them.")
        if self.freeze and self.init is None:
            raise ValueError("Only a model that has learned something has parts to freeze: give init as well.")
        if self.init is not None:
            defaults = {item.name: item.default for item in fields(self) if item.default is not MISSING}
            if given := [name for name in NEW_MODEL_OPTIONS if vars(self)[name] != defaults[name]]:
                raise ValueError(f"A model that is trained further has its own {given[0]}: leave it out with init.")
            return
        for name in ("num_layers", "decoder_layers", "dims", "mlp_dims", "num_heads"):
            if vars(self)[name] is not None:
                check_positive(self, name)
        size = self.size
        if size.dims % size.heads:
            raise ValueError(f"num_heads must divide dims: {size.heads} does not divide {size.dims}.")

    def _check_validation(self) -> None:
        if self.best_by in ("bleu", "chrf") and not self.bleu_sentences:
            raise ValueError(f"best_by {self.best_by!r} needs sentences to translate: bleu_sentences must not be 0.")
        if self.keep < self.average_checkpoints:
            raise ValueError(
                f"A mean of {self.average_checkpoints} checkpoints needs them: keep {self.keep} is less than "
                "average_checkpoints."
            )

    @property
    def size(self) -> "ModelSize":
        """The size of a new model: the preset's, where nothing else is asked for."""
        preset = PRESETS[self.preset]
        layers, dims = self.num_layers or preset.layers, self.dims or preset.dims
        heads = self.num_heads or max(dims // 64, 1)
        return ModelSize(layers, self.decoder_layers or layers, dims, self.mlp_dims or preset.mlp_dims, heads)


@dataclass(frozen=True)
class ModelSize:
    """The size of a model to train."""

    layers: int
    decoder_layers: int
    dims: int
    mlp_dims: int
    heads: int


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
