"""Per-sentence inputs of the search: validated, given defaults, and moved to the device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.messages import short_repr
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.texts import TextError

RequiredPhrases = Sequence[Sequence[Sequence[int]]]  # the token ids of each phrase of each source
PREFIX_MULTIPLE = 16  # prefixes are padded to multiples of this, so that few shapes are compiled


class DecodingInputs(NamedTuple):
    """Settings that differ from sentence to sentence, one row per beam.

    Attributes:
        source: Source token ids, padded on the right, (rows, source_length).
        max_new_tokens: Maximum number of generated tokens, (rows, 1).
        min_new_tokens: Minimum number of generated tokens, (rows, 1).
        first_ids: The forced first token, if the search forces one, (rows, 1).
        prefix_ids: Target prefix, padded on the right, (rows, prefix_length).
        prefix_lengths: Number of prefix tokens, (rows, 1).
        keys: Random keys, uint32 (rows, 2).
        required_ids: The token that leads to the next bank, -1 in the last one, (rows, 1); see `grid_search`. This and
            the next have width 0 if no phrases are required.
        in_phrase: Whether only this token may follow, because it continues a phrase, bool (rows, 1).
    """

    source: mx.array
    max_new_tokens: mx.array
    min_new_tokens: mx.array
    first_ids: mx.array
    prefix_ids: mx.array
    prefix_lengths: mx.array
    keys: mx.array
    required_ids: mx.array
    in_phrase: mx.array


def make_decoding_inputs(
    model: Transformer,
    source: mx.array,
    search: SearchConfig,
    max_tokens: list[int] | None,
    forced_bos_ids: list[int] | None,
    prefixes: list[list[int]],
    lines: list[int] | None,
    required_phrases: RequiredPhrases | None = None,
) -> tuple[DecodingInputs, list[int]]:
    """Validate the arguments of `generate_ids`, other than `source`, and fill in defaults.

    Returns:
        The inputs, and the maximum length of each target, prefix included.

    Raises:
        ValueError: If an argument does not have one value for each source, or a value is out of range.
    """
    batch, config = source.shape[0], model.config
    check_search(search, config)
    ratio = search.min_length_ratio
    lengths = [0] * batch  # counted only if needed: the host has to wait for the device
    if ratio or not max_tokens:
        lengths = np.array((source != config.pad_id).sum(axis=1)).tolist()
    limits = max_tokens or [max_target_tokens(model, length, search) for length in lengths]
    check_per_source("max_tokens", limits, batch, 1, 2**31)
    _check_prefixes(prefixes, batch, model)
    longest = config.require_decoder().max_length
    max_new_tokens = [min(n, longest - len(prefix)) for n, prefix in zip(limits, prefixes, strict=True)]
    min_new_tokens = [
        min(n, max(search.min_tokens, int(min(ratio * length, n))))
        for n, length in zip(max_new_tokens, lengths, strict=True)
    ]
    first = forced_bos_ids or [search.forced_bos_id or 0] * batch
    check_per_source("forced_bos_ids", first, batch, 0, config.target_vocab_size - 1)
    if forced_bos_ids:
        for token in first:
            check_forced_token("forced_bos_ids", token, search, config)
    prefix_length = -(-max(map(len, prefixes)) // PREFIX_MULTIPLE) * PREFIX_MULTIPLE
    lines = lines or list(range(batch))
    check_per_source("lines", lines, batch, 0, 2**32 - 1)
    required_ids, in_phrase = _required_of_each_row(required_phrases, search, config, max_new_tokens)
    by_sentence = {
        "source": source,
        "max_new_tokens": _column(max_new_tokens),
        "min_new_tokens": _column(min_new_tokens),
        "first_ids": _column(first),
        "prefix_ids": mx.array([[*p, *[config.pad_id] * (prefix_length - len(p))] for p in prefixes], mx.int32),
        "prefix_lengths": _column([len(prefix) for prefix in prefixes]),
        "keys": random_keys(search.seed, lines),
    }
    beams = required_ids.shape[0] // batch
    by_row = {name: mx.repeat(array, beams, axis=0) for name, array in by_sentence.items()}
    rows = DecodingInputs(**by_row, required_ids=required_ids, in_phrase=in_phrase)
    return rows, [n + len(prefix) for n, prefix in zip(max_new_tokens, prefixes, strict=True)]


def _required_of_each_row(
    phrases: RequiredPhrases | None, search: SearchConfig, config: ModelConfig, max_new_tokens: list[int]
) -> tuple[mx.array, mx.array]:
    """Return `required_ids` and `in_phrase`; see `DecodingInputs`."""
    batch = len(max_new_tokens)
    if not phrases:
        return mx.zeros((batch * search.beam_size, 0), mx.int32), mx.zeros((batch * search.beam_size, 0), mx.bool_)
    if len(phrases) != batch or not all(isinstance(phrase, Sequence) for row in phrases for phrase in row):
        raise ValueError(
            f"required_phrases must be {batch} lists of phrases, one for each source, and each phrase a list of token "
            f"ids, not {short_repr(phrases)}."
        )
    if not search.is_beam_search:
        raise ValueError(
            "required_phrases need beam search: use a beam_size of 2 or more, and neither temperature nor alternatives."
        )
    tokens = [[token for phrase in row for token in phrase] for row in phrases]
    for row, limit in zip(tokens, max_new_tokens, strict=True):
        if not _are_integers(row, 0, config.target_vocab_size - 1) or {*row} & {config.pad_id, *config.eos_ids}:
            raise ValueError(
                f"required_phrases must be token ids from 0 to {config.target_vocab_size - 1}, without end tokens and "
                f"padding, not {row}: encode the phrases with the tokenizer of the model."
            )
        if len(row) > limit:
            raise TextError(
                f"required_phrases must fit a target of {limit} tokens, not have {len(row)}: raise max_tokens."
            )
    continues = [[index > 0 for phrase in row for index in range(len(phrase))] for row in phrases]
    banks = 1 + max(map(len, tokens))
    required_ids = [[-1] * (banks - 1 - len(row)) + row + [-1] for row in tokens]
    in_phrase = [[False] * (banks - 1 - len(row)) + row + [False] for row in continues]

    def of_each_beam(values: list[Any], dtype: mx.Dtype) -> mx.array:
        return mx.repeat(mx.array(values, dtype).reshape(-1, 1), search.beam_size, axis=0)

    return of_each_beam(required_ids, mx.int32), of_each_beam(in_phrase, mx.bool_)


def check_search(search: SearchConfig, config: ModelConfig) -> None:
    """Raise ValueError for a search that contradicts the model's tokens or positions, or is no SearchConfig."""
    if not isinstance(search, SearchConfig):
        raise ValueError(f"search must be a SearchConfig, not {short_repr(search)}: use SearchConfig(beam_size=4).")
    for name in ("forced_bos_id", "forced_eos_id"):
        if (token := vars(search)[name]) is not None:
            check_forced_token(name, token, search, config)
    if search.forced_bos_id in config.eos_ids:
        raise ValueError(
            "forced_bos_id must not be an end token, or all targets would be empty: both are "
            f"{search.forced_bos_id}; leave it out."
        )
    for token in config.eos_ids:
        if (token,) in search.bad_words:
            raise ValueError(
                f"bad_words must not be the end token {token}: remove it, or put it in suppress_ids to "
                "generate max_tokens tokens always."
            )
    never = {config.pad_id, *search.suppress_ids, *(word[0] for word in search.bad_words if len(word) == 1)}
    if search.min_tokens > 1:
        never.update(config.eos_ids)
    if sum(token < config.target_vocab_size for token in never) == config.target_vocab_size:
        raise ValueError("A search must leave tokens to generate: suppress_ids and bad_words contain all; remove some.")
    if search.min_tokens > (longest := config.require_decoder().max_length):
        raise ValueError(
            f"min_tokens must not exceed the decoder's {longest} positions: {search.min_tokens} is more; lower "
            "min_tokens."
        )
    if search.alternatives and search.beam_size > config.target_vocab_size:
        raise ValueError(
            f"alternatives must not exceed the vocabulary: beam_size {search.beam_size} is more than "
            f"{config.target_vocab_size}; lower beam_size."
        )


def check_forced_token(name: str, token: int, search: SearchConfig, config: ModelConfig) -> None:
    """Raise ValueError for a forced token that the vocabulary does not have, or that is never generated."""
    if not 0 <= token < config.target_vocab_size:
        raise ValueError(f"{name} must be a token id from 0 to {config.target_vocab_size - 1}, not {token}.")
    if token == config.pad_id or token in search.suppress_ids:
        origin = "pad_id" if token == config.pad_id else "one of suppress_ids"
        raise ValueError(f"{name} must not be suppressed: {token} is {origin}; force another token.")


def max_target_tokens(model: Transformer, source_length: int, search: SearchConfig) -> int:
    """Return the maximum number of target tokens for a source of `source_length` tokens."""
    limits = [model.config.require_decoder().max_length]
    if search.max_tokens is not None:
        limits.append(search.max_tokens)
    if search.max_length_ratio is not None:
        limits.append(max(1, int(min(search.max_length_ratio * source_length, limits[0]))))
    if len(limits) == 1:
        limits.append(max(2 * source_length + 50, search.min_tokens))
    return min(limits)


def _column(values: Sequence[int]) -> mx.array:
    """Return one number for each sentence as an array, (batch, 1)."""
    return mx.array(list(values), mx.int32)[:, None]


def random_keys(seed: int, lines: Sequence[int]) -> mx.array:
    """Return a random key for each line, uint32 (batch, 2)."""
    pairs = mx.array([(line, seed) for line in lines], mx.uint32)
    return mx.vmap(lambda pair: mx.random.split(pair)[0])(pairs)


def check_per_source(name: str, values: Sequence[int], count: int, minimum: int, maximum: int) -> None:
    """Raise ValueError unless there is one number for each source, from `minimum` to `maximum`."""
    if len(values) != count or not _are_integers(values, minimum, maximum):
        raise ValueError(
            f"{name} must be {count} numbers from {minimum} to {maximum}, one for each source, not {values}."
        )


def _are_integers(values: Sequence[Any], minimum: int, maximum: int) -> bool:
    """Whether all values are integers from `minimum` to `maximum`."""
    return all(isinstance(value, int | np.integer) and minimum <= value <= maximum for value in values)


def _check_prefixes(prefixes: list[list[int]], batch: int, model: Transformer) -> None:
    """Raise ValueError for prefixes that are not token ids or leave no room for another token."""
    config, longest = model.config, model.config.require_decoder().max_length
    if len(prefixes) != batch:
        raise ValueError(f"prefix_ids must be {batch} lists of token ids, one for each source, not {len(prefixes)}.")
    for prefix in prefixes:
        if not _are_integers(prefix, 0, config.target_vocab_size - 1):
            raise ValueError(f"prefix_ids must be token ids from 0 to {config.target_vocab_size - 1}, not {prefix}.")
        if len(prefix) >= longest:
            raise TextError(
                f"A target prefix must be shorter than the decoder's {longest} positions, not {len(prefix)} tokens: "
                "shorten it."
            )
