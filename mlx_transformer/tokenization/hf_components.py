"""Limits on the components of a tokenizer.json, which could turn a short text into gigabytes or end in a panic."""

import base64
import json
from typing import Any

import tokenizers
from tokenizers import models

from mlx_transformer.tokenization.charsmap import MAX_GROWTH, check_charsmap

SEQUENCE_KEYS = ("normalizers", "pretokenizers", "decoders")
MAX_RULES = 1000
MAX_TEXT = 1000  # characters that a rule inserts
MAX_WORD = 10_000  # characters of a word that WordPiece splits, in quadratic time


def check_components(tokenizer: tokenizers.Tokenizer) -> None:
    """Raise ValueError for a tokenizer whose components could exhaust memory or time, or are damaged."""
    for component in (tokenizer.normalizer, tokenizer.decoder):
        if component is not None:
            _check_rules(json.loads(component.__getstate__()))
    model = tokenizer.model
    if isinstance(model, models.BPE | models.WordPiece):
        suffix = model.end_of_word_suffix if isinstance(model, models.BPE) else None
        _check_text(model.continuing_subword_prefix or "")
        _check_text(suffix or "")
    if isinstance(model, models.WordPiece) and model.max_input_chars_per_word > MAX_WORD:
        raise ValueError(
            f"max_input_chars_per_word must be at most {MAX_WORD}: {model.max_input_chars_per_word} is more"
        )


def _check_rules(component: dict[str, Any]) -> None:
    """Check the rules of a normaliser or decoder."""
    rules, pending, growth = 0, [component], 1.0
    while pending:
        rule = pending.pop()
        pending += next((rule[key] for key in SEQUENCE_KEYS if isinstance(rule.get(key), list)), [])
        rules += 1
        growth *= _growth(rule)
        if rules > MAX_RULES or growth > MAX_GROWTH:
            raise ValueError(
                f"its rules must be at most {MAX_RULES} and make no text more than {MAX_GROWTH} times longer"
            )


def _growth(rule: dict[str, Any]) -> float:
    """Return the factor by which a rule can make a text longer."""
    if rule.get("type") == "Precompiled":
        return check_charsmap(base64.b64decode(rule.get("precompiled_charsmap") or ""))
    for key in ("prepend", "content", "prefix"):
        _check_text(rule.get(key))
    if rule.get("type") != "Replace":
        return 1.0
    # A regular expression may match nothing, between any two characters.
    matched = len(rule["pattern"].get("String") or "")
    return max(len(rule["content"]) / matched, 1.0) if matched else len(rule["content"]) + 1.0


def _check_text(text: Any) -> None:
    if isinstance(text, str) and len(text) > MAX_TEXT:
        raise ValueError(f"its rules must insert at most {MAX_TEXT} characters: one inserts {len(text)}")
