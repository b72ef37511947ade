"""How a model is trained: the options of a run, as plain data. This file imports nothing of MLX."""

from dataclasses import dataclass
from typing import Literal

from mlx_transformer.fields import check_positive, check_types


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
        check_types(self)
        check_positive(self, "steps", "batch_tokens", "vocab_size", "learning_rate", "warmup_steps", "clip_norm")
        check_positive(self, "valid_every", "log_every", "max_length")
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
