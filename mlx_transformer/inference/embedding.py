"""Embeddings of texts: the encoder's last hidden states, pooled to one vector for each text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import NamedTuple, get_args

import mlx.core as mx
import numpy as np

from mlx_transformer.config.model import ModelConfig, Pooling, PoolingConfig
from mlx_transformer.config.search import BATCH_TOKENS
from mlx_transformer.decoding.batch_sizes import batch_sizes, padded_batch_size
from mlx_transformer.inference.batching import (
    READ_AHEAD,
    encode_sources,
    encode_truncated,
    pad_ids,
    padded_length,
    reorder,
    run_batches,
)
from mlx_transformer.inference.line_errors import bisect_on_error, raise_first_error
from mlx_transformer.inference.scoring import check_source_arguments
from mlx_transformer.inference.source_lines import (
    PerLineText,
    SourceLine,
    check_lines,
    make_source_lines,
    prepare_lines,
)
from mlx_transformer.model.layers import ACTIVATIONS
from mlx_transformer.model.masks import padding_mask
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer

MIN_NORM = 1e-12  # a vector of zeros stays one when it is normalised


@dataclass(frozen=True)
class Embedding:
    """The vector of a text.

    Attributes:
        vector: float32 (dims,); NaN where there is an error.
        truncated: Whether the text was truncated to the model's maximum length.
        error: Why the text has no vector.
    """

    vector: np.ndarray
    truncated: bool = False
    error: str | None = None


class EncodedText(NamedTuple):
    """A tokenized text: its ids, whether they were truncated, and why the text could not be tokenized."""

    ids: list[int]
    truncated: bool = False
    error: str | None = None


def embed(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: str | Iterable[str],
    pooling: Pooling | None = None,
    *,
    normalize: bool | None = None,
    projection: bool = True,
    source_language: PerLineText = None,
    target_language: PerLineText = None,
    source_prefix: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> np.ndarray:
    """Embed texts by the encoder: one vector for each text, in order.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        texts: The texts, or a single one. A text beyond the model's maximum length is truncated; of a blank text the
            special tokens are embedded.
        pooling: "mean" of all tokens, special ones included, or the "first" or "last" token; by default the model's own
            pooling, or the mean.
        normalize: Whether to divide each vector by its Euclidean length; by default as the model does, or not.
        projection: Whether to apply the linear layer that some models have after pooling.
        source_language: See `generate_hypotheses`.
        target_language: See `generate_hypotheses`; for models whose sources name it.
        source_prefix: See `generate_hypotheses`.
        batch_tokens: Maximum number of padded positions in a batch.

    Returns:
        float32 (texts, dims), or (dims,) for a single text; dims is the width of the model, or of its projection.

    Raises:
        ValueError: If the pooling is unknown, or a text has no vector (it is not a string, its language is missing or
            unknown, it does not fit in memory, or its hidden states are not finite).
    """
    lines = make_source_lines(texts, source_language, target_language)
    check_source_arguments(model.config, tokenizer, batch_tokens, source_language, target_language)
    chosen = choose_pooling(model.config, pooling, normalize, projection)
    results = embed_lines(model, tokenizer, lines, chosen, source_prefix=source_prefix, batch_tokens=batch_tokens)
    rows = [result.vector for result in raise_first_error(results, lambda result: result.error, "Line")]
    vectors = np.stack(rows) if rows else np.zeros((0, vector_dims(model.config, chosen)), np.float32)
    return vectors[0] if isinstance(texts, str) else vectors


def choose_pooling(
    config: ModelConfig, pooling: Pooling | None, normalize: bool | None, projection: bool = True
) -> PoolingConfig:
    """Return how a model's texts are embedded: its own pooling, or the mean, changed by arguments of `embed`."""
    if pooling is not None and pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}.")
    own = config.pooling or PoolingConfig()
    return replace(
        own,
        mode=pooling or own.mode,
        normalize=own.normalize if normalize is None else normalize,
        projection_dims=own.projection_dims if projection else None,
    )


def vector_dims(config: ModelConfig, pooling: PoolingConfig) -> int:
    """Return the width of vectors."""
    return pooling.projection_dims or config.dims


def embed_lines(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: Iterable[SourceLine],
    pooling: PoolingConfig,
    *,
    source_prefix: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Embedding]:
    """Yield the embedding of each line, lazily and in order; one that has no vector has an `error`. See `embed`."""
    prepared = prepare_lines(tokenizer.config, lines, source_prefix)
    encode = partial(_encode_lines, model, tokenizer)

    def results() -> Iterator[Embedding]:
        while window := list(islice(prepared, READ_AHEAD)):
            encoded = bisect_on_error(encode, window, lambda _, error: EncodedText([], error=error))
            yield from _embed_window(model, encoded, pooling, batch_tokens)

    return results()


def _encode_lines(model: Transformer, tokenizer: Tokenizer, lines: list[SourceLine]) -> list[EncodedText]:
    """Tokenize lines, truncated to the model's maximum length and never empty."""
    check_lines(lines)
    max_length = model.config.encoder.max_length
    return [
        EncodedText(tokenizer.truncate_source(ids, max_length) or [model.config.eos_id], len(ids) > max_length)
        for ids in encode_truncated(partial(encode_sources, tokenizer), lines, max_length)
    ]


def _embed_window(
    model: Transformer, texts: list[EncodedText], pooling: PoolingConfig, batch_tokens: int
) -> Iterator[Embedding]:
    """Embed texts in batches of similar length; yield their embeddings in order."""
    config, sizes = model.config, batch_sizes(model, 1)
    max_length = config.encoder.max_length

    def embed_batch(batch: list[EncodedText]) -> list[Embedding]:
        padding = [[config.eos_id]] * (padded_batch_size(len(batch), sizes) - len(batch))
        rows = [text.ids for text in batch]
        ids = pad_ids(rows + padding, padded_length(max(map(len, rows)), max_length), config.pad_id)
        vectors = np.array(model.compiled(_embed_ids, pooling)(ids))
        return [_make_embedding(vector, text) for vector, text in zip(vectors, batch, strict=False)]

    def fail(_: EncodedText, error: str) -> Embedding:
        return Embedding(np.full(vector_dims(config, pooling), np.nan, np.float32), error=error)

    def results() -> Iterator[tuple[int, Embedding]]:
        yield from ((i, fail(text, text.error)) for i, text in enumerate(texts) if text.error)
        encoded = {i: text for i, text in enumerate(texts) if not text.error}
        yield from run_batches(encoded, lambda text: len(text.ids), embed_batch, fail, max_length, batch_tokens, sizes)

    return reorder(results())


def _make_embedding(vector: np.ndarray, text: EncodedText) -> Embedding:
    is_finite = np.isfinite(vector).all()
    error = None if is_finite else "Hidden states must be finite, but the model's are not: compute in float32."
    return Embedding(vector if is_finite else np.full_like(vector, np.nan), text.truncated, error)


def _embed_ids(model: Transformer, pooling: PoolingConfig, source: mx.array) -> mx.array:
    """Return the vectors of padded token ids, float32 (batch, dims)."""
    vectors = _pool(model.encode_hidden(source).astype(mx.float32), source, model.config.pad_id, pooling.mode)
    if pooling.projection_dims is not None:
        vectors = model.projection(vectors)
        if pooling.projection_activation != "none":
            vectors = ACTIVATIONS[pooling.projection_activation](vectors)
    if pooling.normalize:
        vectors = vectors / mx.maximum(mx.linalg.norm(vectors, axis=1, keepdims=True), MIN_NORM)
    return vectors


def _pool(hidden: mx.array, source: mx.array, pad_id: int, pooling: Pooling) -> mx.array:
    """Reduce hidden states, (batch, length, dims), to one vector for each row, (batch, dims)."""
    is_token = padding_mask(source, pad_id).reshape(*source.shape, 1)
    num_tokens = is_token.sum(axis=1)
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return mx.take_along_axis(hidden, num_tokens[:, None] - 1, axis=1)[:, 0]
    return mx.where(is_token, hidden, 0).sum(axis=1) / num_tokens
