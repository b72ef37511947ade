"""Configuration of a search, and of the tasks that a checkpoint was trained for."""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from mlx_transformer.config.serialization import check_positive, check_type, check_types

if sys.version_info >= (3, 11):
    from typing import Unpack as Unpack
else:
    from typing_extensions import Unpack as Unpack

MAX_BEAM_SIZE = 1024

MIN_TEMPERATURE = 1e-6  # with lower temperatures logits overflow float32

BATCH_TOKENS = 4096  # padded source positions x beams per batch in generation


@dataclass(frozen=True)
class SearchConfig:
    """Configuration of decoding; scores and stopping follow the beam search of transformers 5.

    Attributes:
        beam_size: Number of beams per sentence; 1 is greedy search.
        num_hypotheses: Number of hypotheses to return per sentence, best first.
        max_tokens: Maximum number of generated tokens, including the end token, limited by the decoder's positions.
            None for 2 x source tokens + 50 (at least min_tokens), or for the limit of max_length_ratio if that is set.
        min_tokens: Minimum number of generated tokens, including the end token.
        length_penalty: Exponent alpha in score = sum of log-probabilities / length ** alpha; the length includes the
            end token.
        early_stopping: When to stop a sentence that has beam_size finished hypotheses. False: once the best unfinished
            hypothesis, scored at its current length, is worse than the worst finished one. True: at once. "never": as
            False, but with a positive length_penalty unfinished hypotheses are scored at max_tokens, the best score
            that they can still reach.
        suppress_ids: Tokens that are never generated.
        bad_words: Token sequences that are never generated.
        no_repeat_ngram_size: Size of the n-grams, start token included, that may occur only once; 0 for no limit.
        source_no_repeat_ngram_size: Size of the source n-grams that are never generated; 0 for no limit.
        repetition_penalty: Factor of the log-probabilities of tokens already generated, or of the start token. With a
            beam of one, it applies to logits instead (positive ones are divided by it), before they are normalised.
        forced_bos_id: The first generated token; it scores 0 and counts in the length.
        forced_eos_id: The last token when max_tokens is reached; it scores 0 and counts in the length.
        renormalize: Renormalise log-probabilities after all logits processors.
        max_length_ratio: Maximum number of generated tokens per source token, both including the end token.
        min_length_ratio: Minimum number of generated tokens per source token, both including the end token.
        temperature: 0 searches for the most probable targets. A positive value samples beam_size targets independently;
            scores are log-probabilities at temperature 1.
        top_k: Sample from the k most probable tokens; 0 for all.
        top_p: Sample from the smallest set of most probable tokens whose probabilities sum to at least top_p.
        min_p: Sample from tokens with at least this fraction of the most probable token's probability.
        seed: Random seed; samples depend on it and on line, position and hypothesis only.
        alternatives: Continue each of the beam_size most probable first tokens (after the prefix, if any) greedily. The
            hypotheses are in the order of these tokens.
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
    def is_beam_search(self) -> bool:
        """Whether the beams of a sentence compete, as opposed to greedy search, sampling and alternatives."""
        return self.beam_size > 1 and not self.temperature and not self.alternatives

    @property
    def reads_history(self) -> bool:
        """Whether a logits processor needs the tokens generated so far."""
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
                    f"min_tokens must not exceed max_tokens: {self.min_tokens} > {self.max_tokens}; lower min_tokens, "
                    "or raise max_tokens."
                )
        check_positive(self, "repetition_penalty")
        if self.max_length_ratio is not None:
            check_positive(self, "max_length_ratio")
            if self.min_length_ratio > self.max_length_ratio:
                raise ValueError(
                    "min_length_ratio must not exceed max_length_ratio: "
                    f"{self.min_length_ratio} > {self.max_length_ratio}; lower min_length_ratio."
                )
        for name in ("min_tokens", "min_length_ratio", "no_repeat_ngram_size", "source_no_repeat_ngram_size"):
            if vars(self)[name] < 0:
                raise ValueError(f"{name} must not be negative: {vars(self)[name]}.")
        self._check_tokens()
        self._check_sampling()

    def _check_tokens(self) -> None:
        if any(token < 0 for token in self.suppress_ids):
            raise ValueError(f"suppress_ids must be token ids of at least 0, not {min(self.suppress_ids)}.")
        if not all(self.bad_words):
            raise ValueError("bad_words must be sequences of at least one token: one of them is empty.")
        for name in ("forced_bos_id", "forced_eos_id"):
            if vars(self)[name] in self.suppress_ids:
                raise ValueError(
                    f"{name} must not be suppressed: {vars(self)[name]} is one of suppress_ids; remove it there."
                )

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
            raise ValueError(f"{filtered[0]} only affects sampling: set a temperature above 0 as well.")
        if self.alternatives and self.temperature:
            raise ValueError(f"alternatives cannot be sampled: leave out temperature {self.temperature}.")


class SearchOptions(TypedDict, total=False):
    """The fields of a SearchConfig as keyword arguments, for functions that search."""

    beam_size: int
    num_hypotheses: int
    max_tokens: int | None
    min_tokens: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    suppress_ids: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...]
    no_repeat_ngram_size: int
    source_no_repeat_ngram_size: int
    repetition_penalty: float
    forced_bos_id: int | None
    forced_eos_id: int | None
    renormalize: bool
    max_length_ratio: float | None
    min_length_ratio: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    alternatives: bool


def change_search(search: SearchConfig, **options: Unpack[SearchOptions]) -> SearchConfig:
    """Return a search with some of its fields changed.

    Fields that depend on a changed one follow it, unless they are changed themselves: the beam is as large as the
    hypotheses need, a sampling search draws `num_hypotheses` samples (1 by default), and `min_tokens` is at most
    `max_tokens`.

    Raises:
        ValueError: If a value does not have the type of its field, or the fields do not fit together.
    """
    changes: dict[str, Any] = dict(options)
    for name, kind in SearchOptions.__annotations__.items():
        if name in changes:
            check_type(name, changes[name], kind)
    if "beam_size" not in changes and (changes.get("temperature") or changes.get("alternatives")):
        changes["beam_size"] = changes["num_hypotheses"] = changes.get("num_hypotheses", 1)
    elif "beam_size" not in changes and "num_hypotheses" in changes:
        changes["beam_size"] = max(search.beam_size, changes["num_hypotheses"])
    elif "beam_size" in changes and "num_hypotheses" not in changes:
        changes["num_hypotheses"] = min(search.num_hypotheses, max(1, changes["beam_size"]))
    if changes.get("max_tokens") is not None and "min_tokens" not in changes:
        changes["min_tokens"] = min(search.min_tokens, changes["max_tokens"])
    return dataclasses.replace(search, **changes)


@dataclass(frozen=True)
class TaskConfig:
    """One of several tasks that a checkpoint was trained for (T5).

    Attributes:
        name: The task's name.
        source_prefix: Text to put before every source.
        search: The task's search configuration.
    """

    name: str
    source_prefix: str
    search: SearchConfig

    def __post_init__(self) -> None:
        check_types(self)
