"""Options of a training run and the sizes of new models."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from mlx_transformer.config.adapter import AdapterConfig
from mlx_transformer.config.serialization import check_at_least, check_positive, check_shares, check_types
from mlx_transformer.messages import is_unicode, short_repr

# A corpus spec or several, or pairs of source and target in memory.
Corpora = str | Path | Iterable[str | Path] | Iterable[tuple[str, str]]

# Part that can be frozen -> its submodules and arrays in the model.
FREEZABLE_PARTS = {
    "encoder": ("encoder",),
    "decoder": ("decoder",),
    "embeddings": ("source_embedding", "target_embedding"),
    "output": ("output", "output_bias"),
}
# Options of a new model, which fine-tuning takes from the initial model instead.
NEW_MODEL_OPTIONS = (
    *("preset", "num_layers", "decoder_layers", "dims", "mlp_dims", "mlp_layers", "num_heads", "norm_first"),
    *("activation", "decoder_self_attention", "vocab_size", "shared_vocabulary"),
)

# Options of an adapter, beside its rank.
ADAPTER_OPTIONS = (
    *("lora_alpha", "lora_dropout", "lora_targets", "lora_layers", "dora", "rslora", "lora_modules_to_save"),
)

# Options that add copies of training pairs, see mlx_transformer.data.augmentation.
AUGMENTATIONS = "join_sentences uppercase lowercase drop_final_punctuation copy_numbers copy_names".split()


@dataclass(frozen=True)
class TrainingConfig:
    """The options of a training run, which writes a run folder with the best and the latest model.

    Attributes:
        train: Training corpus: a TSV file, SOURCE_FILE::TARGET_FILE or "dates"; files may be gzipped. A prefix such as
            "en:fr=" sets the languages, ":3,1" after a TSV file the columns of source and target. In Python also a list
            of these, or pairs of strings, which the run folder then holds.
        valid: Validation corpus, in the same format.
        output: Run folder: best/ and last/ are model folders, log.jsonl is the log.
        init: Model to fine-tune, with its own tokenizer: a model folder, a PyTorch checkpoint or a hub name
            (owner/name).
        freeze: Parts not to train: any of encoder, decoder, embeddings and output, separated by commas.
        lora_rank: Train a low-rank adapter (LoRA) of this rank and not the model of init, which may be quantised. The
            run's result is an adapter folder.
        lora_alpha: Scale of the adapter, relative to its rank; by default twice the rank.
        lora_dropout: Dropout rate of the inputs of the adapter.
        lora_targets: Linear layers that the adapter changes, separated by commas: attention, mlp, or names such as
            query_proj or decoder.*.value_proj.
        lora_layers: Adapt the last layers of each stack only; by default all.
        dora: Also learn the magnitude of each output (DoRA).
        rslora: Divide the scale by the root of the rank, which suits high ranks (rsLoRA).
        lora_modules_to_save: Parts to train in full and to write with the adapter, separated by commas: embeddings,
            output, or names of modules.
        source_prefix: Text to put before every source, as T5 models expect.
        preset: Size of a new model.
        num_layers: Number of encoder layers, and of decoder layers unless decoder_layers is set; by default the
            preset's.
        decoder_layers: Number of decoder layers; by default the same as the encoder's.
        dims: Model width; by default the preset's.
        mlp_dims: Width of the feed-forward networks; by default the preset's.
        mlp_layers: Number of linear layers of the feed-forward networks, at least 2.
        num_heads: Number of attention heads; by default one per 64 of the model width.
        norm_first: Normalise before each sublayer (pre-norm), which trains more easily, instead of after it.
        activation: Activation function of the feed-forward networks.
        decoder_self_attention: First sublayer of the decoder's layers: attention, or one that makes generation faster,
            the recurrent unit ssru or average, which attends to all earlier positions alike.
        vocab_size: Maximum size of the subword vocabulary.
        shared_vocabulary: Share one vocabulary and one embedding table between source and target.
        steps: Number of optimizer updates.
        batch_tokens: Tokens per batch, including padding, counted on the longer of source and target.
        accumulate: Batches per update: gradients are accumulated, so memory use is that of one batch.
        optimizer: Optimizer.
        betas: Decay rates of the first and second moment of the gradient.
        weight_decay: Decoupled weight decay of matrices, multiplied by the learning rate; not available with adam.
        learning_rate: Peak learning rate, reached after warm-up.
        warmup_steps: Steps of linear warm-up from 0 to the peak learning rate.
        schedule: Learning rate after warm-up: inverse square root of the step, cosine or linear decay to 0 at the last
            step, or constant.
        label_smoothing: Probability mass spread evenly over the vocabulary.
        dropout: Dropout rate of embeddings and of each sublayer's output.
        attention_dropout: Dropout rate of attention weights.
        activation_dropout: Dropout rate inside the feed-forward networks.
        clip_norm: Maximum norm of the gradient; 0 turns clipping off.
        ema_decay: Decay per step of the exponential moving average of the weights, which is validated and saved; 0
            turns it off.
        average_checkpoints: Validate and save the mean of the last N checkpoints.
        compute_dtype: Data type of the forward and backward pass; weights, their average and the optimizer state stay
            in float32.
        recompute: Recompute layers in the backward pass instead of storing their activations (gradient checkpointing).
        seed: Random seed; the same seed gives the same run.
        valid_every: Steps between validations; each one writes a checkpoint.
        log_every: Steps between log entries.
        bleu_sentences: Validation sentences to translate, with the model's search settings, for BLEU, chrF and exact
            match; 0 for none.
        samples: Translations to show at each validation.
        best_by: Metric that selects the best model: token accuracy, loss (which label smoothing can worsen while
            translations improve), BLEU or chrF (which need sacrebleu).
        patience: Stop after this many validations without improvement; 0 to train for all steps.
        keep: Checkpoints to keep; if the latest is damaged, a run resumes from an earlier one.
        max_length: Maximum sentence length in tokens; longer pairs are dropped.
        join_sentences: Share of training pairs of which a copy is added, joined with one to three others on a line.
        uppercase: Share of training pairs of which a copy in capitals is added.
        lowercase: Share of training pairs of which a copy with a source in lower case is added.
        drop_final_punctuation: Share of training pairs, and of added copies, of which a copy without final punctuation
            is added.
        copy_numbers: Share of training pairs of which a copy with other numbers on both sides is added, if both have
            the same.
        copy_names: Share of training pairs of which a copy with a made-up name or surname at a name of both sides, or
            with another mail or web address, is added.
        recase: Let the model generate from lines in capitals as from the same in lower case, and put the results in
            capitals. This changes no training pair.
        skip_bad_lines: Skip and count malformed lines of the corpora instead of stopping.
        resume: Resume the run in the output folder from its latest checkpoint, with its own options.
    """

    train: Corpora
    valid: Corpora
    output: str | Path
    init: str | Path | None = None
    freeze: tuple[str, ...] = ()
    lora_rank: int | None = None
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ("attention", "mlp")
    lora_layers: int | None = None
    dora: bool = False
    rslora: bool = False
    lora_modules_to_save: tuple[str, ...] = ()
    source_prefix: str = ""
    preset: str = "small"
    num_layers: int | None = None
    decoder_layers: int | None = None
    dims: int | None = None
    mlp_dims: int | None = None
    mlp_layers: int = 2
    num_heads: int | None = None
    norm_first: bool = True
    activation: Literal["relu", "gelu", "silu"] = "relu"
    decoder_self_attention: Literal["attention", "ssru", "average"] = "attention"
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
    join_sentences: float = 0.0
    uppercase: float = 0.0
    lowercase: float = 0.0
    drop_final_punctuation: float = 0.0
    copy_numbers: float = 0.0
    copy_names: float = 0.0
    recase: bool = False
    skip_bad_lines: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("train", "valid"):
            specs, pairs = split_corpora(name, vars(self)[name])
            object.__setattr__(self, name, specs or pairs)
        for name in ("output", "init"):
            object.__setattr__(self, name, path_text(vars(self)[name]))
        check_types(self)
        check_positive(self, "steps", "batch_tokens", "accumulate", "vocab_size", "learning_rate", "warmup_steps")
        check_positive(self, "average_checkpoints", "valid_every", "log_every", "keep", "max_length")
        check_shares(self, "label_smoothing", "dropout", "attention_dropout", "activation_dropout", "ema_decay")
        for name in AUGMENTATIONS:
            if not 0 <= vars(self)[name] <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {vars(self)[name]}.")
        for name in ("weight_decay", "clip_norm", "bleu_sentences", "samples", "patience"):
            if vars(self)[name] < 0:
                raise ValueError(f"{name} must not be negative: {vars(self)[name]}.")
        if not self.train or not self.valid:
            raise ValueError("Training needs at least one training and one validation corpus: set train and valid.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2**32, not {self.seed}.")
        self._check_paths()
        self._check_optimizer()
        self._check_model()
        self._check_adapter()
        self._check_validation()

    def _check_paths(self) -> None:
        """Check that there is an output, and that options.toml can hold the paths."""
        if not self.output:
            raise ValueError("output must be the path of a run folder, not an empty one: check what names it.")
        paths = {name: split_corpora(name, vars(self)[name])[0] for name in ("train", "valid")}
        for name, texts in (paths | {"output": (self.output,), "init": (self.init or "",)}).items():
            for text in map(str, texts):
                if not is_unicode(text):
                    raise ValueError(f"{name} must be a path in UTF-8, not {short_repr(text)}: rename the folder.")

    def _check_optimizer(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers, at least 0 and below 1, not {self.betas}.")
        if self.optimizer == "adafactor" and self.betas != (0.9, 0.98):
            raise ValueError("optimizer 'adafactor' has no betas: leave them out.")
        if self.weight_decay and self.optimizer == "adam":
            raise ValueError("optimizer 'adam' has no weight decay: use adamw, or leave weight_decay out.")
        if self.schedule in ("cosine", "linear") and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps must be less than steps with this schedule: {self.warmup_steps} is not less than "
                f"{self.steps}."
            )
        if self.batch_tokens < self.max_length:
            raise ValueError(
                f"batch_tokens must be at least max_length, so that the longest sentence fits in a batch: "
                f"{self.batch_tokens} is less than {self.max_length}."
            )

    def _check_model(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, not {short_repr(self.preset)}.")
        if unknown := [name for name in self.freeze if name not in FREEZABLE_PARTS]:
            raise ValueError(f"freeze must be any of {', '.join(FREEZABLE_PARTS)}, not {short_repr(unknown[0])}.")
        if self.freeze and self.init is None:
            raise ValueError("freeze only applies to fine-tuning: set init as well.")
        if self.init is not None:
            if changed := self._changed(NEW_MODEL_OPTIONS):
                raise ValueError(f"{changed[0]} cannot be changed in fine-tuning: leave it out with init.")
            return
        for name in ("num_layers", "decoder_layers", "dims", "mlp_dims", "num_heads"):
            if vars(self)[name] is not None:
                check_positive(self, name)
        check_at_least(self, {"mlp_layers": 2})
        size = self.size
        if size.dims % size.heads:
            raise ValueError(f"num_heads must divide dims: {size.heads} does not divide {size.dims}.")

    def _check_adapter(self) -> None:
        if self.lora_rank is None:
            if changed := self._changed(ADAPTER_OPTIONS):
                raise ValueError(f"{changed[0]} is an option of adapters: set lora_rank as well, or leave it out.")
        elif self.init is None:
            raise ValueError("lora_rank only applies to fine-tuning: set init as well.")
        elif self.recase:
            raise ValueError("recase is an option of models and not of adapters: leave it out with lora_rank.")
        _ = self.adapter

    @property
    def adapter(self) -> AdapterConfig | None:
        """The adapter to train, if there is one."""
        if self.lora_rank is None:
            return None
        try:
            return AdapterConfig(
                rank=self.lora_rank,
                alpha=2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha,
                dropout=self.lora_dropout,
                targets=self.lora_targets,
                layers=self.lora_layers,
                dora=self.dora,
                rslora=self.rslora,
                modules_to_save=self.lora_modules_to_save,
                base_model=str(self.init),
                source_prefix=self.source_prefix,
            )
        except ValueError as error:
            raise ValueError(f"lora_{error}") from None  # begins with the name of a field

    def _changed(self, names: Iterable[str]) -> list[str]:
        """Return which of some options do not have their defaults."""
        defaults = {item.name: item.default for item in fields(self) if item.default is not MISSING}
        return [name for name in names if vars(self)[name] != defaults[name]]

    def _check_validation(self) -> None:
        if self.best_by in ("bleu", "chrf") and not self.bleu_sentences:
            raise ValueError(f"best_by {self.best_by!r} needs sentences to translate: set bleu_sentences above 0.")
        if self.keep < self.average_checkpoints:
            raise ValueError(
                f"keep must be at least average_checkpoints: {self.keep} is less than {self.average_checkpoints}."
            )

    def __repr__(self) -> str:
        """Return the call that makes this object, with the number of pairs instead of pairs in memory."""
        values = {item.name: repr(vars(self)[item.name]) for item in fields(self)}
        for name in ("train", "valid"):
            if pairs := split_corpora(name, vars(self)[name])[1]:
                values[name] = f"<{len(pairs):,} pairs>"
        return f"TrainingConfig({', '.join(f'{name}={value}' for name, value in values.items())})"

    @property
    def size(self) -> "ModelSize":
        """The size of a new model: the preset's, unless an option overrides it."""
        preset = PRESETS[self.preset]
        layers, dims = self.num_layers or preset.layers, self.dims or preset.dims
        heads = self.num_heads or max(dims // 64, 1)
        return ModelSize(layers, self.decoder_layers or layers, dims, self.mlp_dims or preset.mlp_dims, heads)


def split_corpora(name: str, corpora: Corpora) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the specs and the pairs of corpora, one of them empty; errors call the corpora `name`."""
    rule = f"{name} must be a corpus such as 'pairs.tsv', a list of corpora, or pairs of strings (source, target)"
    if isinstance(corpora, str | os.PathLike):
        return (path_text(corpora),), ()
    if isinstance(corpora, bytes | Mapping) or not isinstance(corpora, Iterable):
        raise ValueError(f"{rule}, not {short_repr(corpora)}.")
    items: tuple = tuple(map(path_text, corpora))
    if all(isinstance(item, str) for item in items):
        return items, ()
    for index, item in enumerate(items):
        if not (isinstance(item, tuple | list) and [isinstance(text, str) for text in item] == [True, True]):
            raise ValueError(f"{rule}: {name}[{index}] is {short_repr(item)}.")
    return (), tuple((source, target) for source, target in items)


def path_text(value: Any) -> Any:
    """Return a path object as a string; anything else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@dataclass(frozen=True)
class ModelSize:
    """The size of a new model."""

    layers: int
    decoder_layers: int
    dims: int
    mlp_dims: int
    heads: int


@dataclass(frozen=True)
class Preset:
    """A named model size: `layers` encoder and decoder layers, attention heads of 64."""

    dims: int
    layers: int
    mlp_dims: int


PRESETS = {
    "tiny": Preset(dims=128, layers=2, mlp_dims=512),
    "small": Preset(
        dims=256, layers=3, mlp_dims=512
    ),  # narrow feed-forward networks, for corpora of tens of thousands of pairs
    "base": Preset(dims=512, layers=6, mlp_dims=2048),
    "big": Preset(dims=1024, layers=6, mlp_dims=4096),
}
