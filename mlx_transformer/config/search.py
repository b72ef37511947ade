"""Configuration of a search, and of the tasks that a checkpoint was trained for."""

from dataclasses import dataclass
from typing import Literal

from mlx_transformer.config.serialization import check_positive, check_types

MAX_BEAM_SIZE = 1024

MIN_TEMPERATURE = 1e-6  # divided by less, logits leave the range of float32

BATCH_TOKENS = 4096  # padded source positions x beams of a batch in generation


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
    def is_beam_search(self) -> bool:
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
