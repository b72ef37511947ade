"""Embeddings of texts: the encoder's last hidden states, pooled to one vector for each text."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Literal, get_args

import mlx.core as mx
import numpy as np

from mlx_transformer.config.search import BATCH_TOKENS
from mlx_transformer.decoding.batch_sizes import batch_sizes
from mlx_transformer.inference.batching import (
    READ_AHEAD,
    encode_sources,
    encode_truncated,
    pad_ids,
    padded_batch_size,
    padded_length,
    reorder,
    run_batches,
)
from mlx_transformer.inference.line_errors import raise_first_error
from mlx_transformer.inference.scoring import check_arguments
from mlx_transformer.inference.source_lines import (
    PerLineText,
    SourceLine,
    make_source_lines,
    prepare_lines,
)
from mlx_transformer.model.masks import padding_mask
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.tokenizer import Tokenizer

Pooling = Literal["mean", "first", "last"]


def embed(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: str | Iterable[str],
    pooling: Pooling = "mean",
    *,
    normalize: bool = False,
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
        pooling: "mean" of all tokens, special ones included, or the "first" or "last" token.
        normalize: Whether to divide each vector by its Euclidean length.
        source_language: See `generate_hypotheses`.
        target_language: See `generate_hypotheses`; for models whose sources name it.
        source_prefix: See `generate_hypotheses`.
        batch_tokens: Maximum number of padded positions in a batch.

    Returns:
        float32 (texts, dims), or (dims,) for a single text.

    Raises:
        MemoryError: If a text does not fit in memory.
        ValueError: If the pooling is unknown, a text is not a string, or a language is missing or unknown.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}.")
    check_arguments(model.config, tokenizer, batch_tokens, None, source_language, target_language)
    lines = prepare_lines(tokenizer.config, make_source_lines(texts, source_language, target_language), source_prefix)
    lines = raise_first_error(lines, lambda line: line.error, "Line")
    windows = iter(lambda: list(islice(lines, READ_AHEAD)), [])
    rows = [row for window in windows for row in _embed_window(model, tokenizer, window, pooling, batch_tokens)]
    vectors = np.stack(rows) if rows else np.zeros((0, model.config.dims), np.float32)
    if normalize:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[0] if isinstance(texts, str) else vectors


def _embed_window(
    model: Transformer, tokenizer: Tokenizer, lines: list[SourceLine], pooling: Pooling, batch_tokens: int
) -> Iterator[np.ndarray]:
    """Yield the vector of each line, in order."""
    config, sizes = model.config, batch_sizes(model, 1)
    max_length = config.encoder.max_length
    rows = encode_truncated(partial(encode_sources, tokenizer), lines, max_length)
    sources = [tokenizer.truncate_source(ids, max_length) or [config.eos_id] for ids in rows]

    def embed_batch(batch: list[list[int]]) -> list[np.ndarray]:
        padding = [[config.eos_id]] * (padded_batch_size(len(batch), sizes) - len(batch))
        ids = pad_ids(batch + padding, padded_length(max(map(len, batch)), max_length), config.pad_id)
        return list(np.array(model.compiled(_embed_ids, pooling)(ids)))[: len(batch)]

    def fail(_: list[int], error: str) -> np.ndarray:
        raise MemoryError(error)

    return reorder(run_batches(dict(enumerate(sources)), len, embed_batch, fail, max_length, batch_tokens, sizes))


def _embed_ids(model: Transformer, pooling: Pooling, source: mx.array) -> mx.array:
    """Return the pooled hidden states of padded token ids, float32 (batch, dims)."""
    hidden = model.encode_hidden(source).astype(mx.float32)
    is_token = padding_mask(source, model.config.pad_id).reshape(*source.shape, 1)
    num_tokens = is_token.sum(axis=1)
    if pooling == "first":
        return hidden[:, 0]
    if pooling == "last":
        return mx.take_along_axis(hidden, num_tokens[:, None] - 1, axis=1)[:, 0]
    return mx.where(is_token, hidden, 0).sum(axis=1) / num_tokens
