"""Attention weights of a text and its target."""

import logging
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_transformer.config.search import SearchConfig, SearchOptions, Unpack
from mlx_transformer.inference.attention_weights import attention_ids
from mlx_transformer.inference.batching import encode_sources
from mlx_transformer.inference.generation import generate_hypotheses
from mlx_transformer.inference.scoring import EncodedPair, score
from mlx_transformer.inference.search_options import make_search
from mlx_transformer.inference.source_lines import make_source_lines, prepare_lines
from mlx_transformer.messages import short_repr
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.normalization import is_blank
from mlx_transformer.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class TextAttention(NamedTuple):
    """Attention weights of a text and its target, for each layer.

    A source in capitals, and its target, have tokens in lower case if the model reads such lines so (`recase`).
    Row i of `decoder` and `cross` is the position that reads `target_tokens[i]` and predicts `target_tokens[i + 1]`.
    The arrays are float32 and sum to 1 over the last axis.

    Attributes:
        source_tokens: The tokens of the source, with its special tokens.
        target_tokens: The tokens of the target, from the start token to the end token.
        encoder: Encoder self-attention, (num_heads, source tokens, source tokens).
        decoder: Decoder self-attention, (num_heads, target tokens - 1, target tokens - 1); empty if the decoder has an
            SSRU or average attention instead.
        cross: Cross-attention, (num_heads, target tokens - 1, source tokens).
    """

    source_tokens: list[str]
    target_tokens: list[str]
    encoder: list[mx.array]
    decoder: list[mx.array]
    cross: list[mx.array]


def attention(
    model: Transformer,
    tokenizer: Tokenizer,
    source: str,
    target: str | None = None,
    search: SearchConfig | None = None,
    *,
    source_language: str | None = None,
    target_language: str | None = None,
    source_prefix: str | None = None,
    **options: Unpack[SearchOptions],
) -> TextAttention:
    """Return all attention weights of a text and its target, in one teacher-forced pass.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        source: The source text.
        target: The target text; the best one that the model generates, without required terms, if None.
        search: The search configuration for a generated target; `model.search_defaults` if None.
        source_language: See `generate_hypotheses`.
        target_language: See `generate_hypotheses`.
        source_prefix: See `generate_hypotheses`.
        **options: See `generate_hypotheses`.

    Raises:
        TypeError: If a keyword argument is unknown, with similar names.
        ValueError: If the source is blank, a text is not a string, or a language is missing or unknown.
    """
    search = make_search(attention, model, search, options)
    languages = {"source_language": source_language, "target_language": target_language}
    pair = encode_pair(model, tokenizer, source, target, search, source_prefix=source_prefix, **languages)
    warn_if_cut(pair)
    weights = attention_ids(model, mx.array([pair.source]), mx.array([pair.target[:-1]]))
    return TextAttention(
        [tokenizer.source.id_to_token(i) for i in pair.source],
        tokenizer.tokens(pair.target),
        *([layer[0] for layer in layers] for layers in weights),
    )


def encode_pair(
    model: Transformer,
    tokenizer: Tokenizer,
    source: str,
    target: str | None,
    search: SearchConfig,
    **options: Any,
) -> EncodedPair:
    """Return the token ids of a source and its target; without a target, of the best one that the model generates.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        source: The source text.
        target: The target text, or None.
        search: The search configuration for a generated target.
        **options: `source_language`, `target_language` and `source_prefix`, as in `generate_hypotheses`.

    Raises:
        ValueError: If the source is blank, a text is not a string, or a language is missing or unknown.
    """
    if not isinstance(source, str) or is_blank(source):
        raise ValueError(f"source must be a text that is not blank, not {short_repr(source)}.")
    if target is None:
        ((best, *_),) = generate_hypotheses(model, tokenizer, [source], search, **options)
        ids, truncated = best.ids + ([] if best.end_id is None else [best.end_id]), best.truncated
    else:
        (result,) = score(model, tokenizer, [source], [target], **options)
        ids, truncated = result.tokens, result.truncated
    prefix = options.pop("source_prefix")
    (line,) = prepare_lines(tokenizer.config, make_source_lines([source], **options), prefix)
    (source_ids,) = encode_sources(tokenizer, [line])
    ((start_id, _),) = tokenizer.decoder_starts(1, options["target_language"])
    source_ids = tokenizer.truncate_source(source_ids, model.config.encoder.max_length)
    return EncodedPair(source_ids, [start_id, *ids], truncated=truncated, recased=line.recase)


def warn_if_cut(pair: EncodedPair) -> None:
    """Log a warning if a pair was truncated."""
    if pair.truncated:
        logger.warning("The source or the target is longer than the model can read and was cut.")
