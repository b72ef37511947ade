"""Translates the generation settings of a checkpoint into a SearchConfig."""

import logging
from pathlib import Path
from typing import Any

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.config.serialization import check_type
from mlx_transformer.weights.source_config import read_sibling_json

logger = logging.getLogger(__name__)

# Generation settings that are supported, or have no effect on results.
SUPPORTED = {
    *("_from_model_config", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("decoder_start_token_id", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams"),
    *("num_return_sequences", "length_penalty", "early_stopping", "no_repeat_ngram_size", "repetition_penalty"),
    *("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens", "renormalize_logits"),
    *("encoder_no_repeat_ngram_size", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff"),
    *("eta_cutoff", "use_cache", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "cache_implementation", "is_assistant", "num_assistant_tokens"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"),
}

# Unsupported generation settings -> the value that has no effect; those not listed have no effect if empty.
NEUTRAL_VALUES = {
    **dict.fromkeys(("num_beam_groups", "encoder_repetition_penalty", "guidance_scale"), 1),
    **dict.fromkeys(("do_sample", "diversity_penalty", "penalty_alpha", "sequence_bias", "forced_decoder_ids")),
    **dict.fromkeys(("begin_suppress_tokens", "exponential_decay_length_penalty", "stop_strings", "constraints")),
    **dict.fromkeys(("force_words_ids", "remove_invalid_values", "max_time", "token_healing", "watermarking_config")),
}

# Settings that are computed with; SearchConfig checks the others.
SETTING_TYPES: dict[str, Any] = {
    **dict.fromkeys(("max_length", "max_new_tokens", "min_length", "min_new_tokens"), int),
    **dict.fromkeys(("num_beams", "num_return_sequences"), int),
    "suppress_tokens": list[int],
    "bad_words_ids": list[list[int]],
}

# Settings that may be a list, of which only the first token is used.
SINGLE_TOKEN_KEYS = ("decoder_start_token_id", "forced_eos_token_id")


def read_generation_config(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read generation_config.json; without that file, take the generation settings of config.json, as in old models."""
    generation = read_sibling_json(path, "generation_config.json")
    if generation is None:
        return {key: value for key, value in settings.items() if key in SUPPORTED or key in NEUTRAL_VALUES}
    return generation


def decoder_start_id(settings: dict[str, Any], generation: dict[str, Any]) -> int | None:
    """Return the id of the decoder's first input, found in the same order as in transformers."""
    for key in ("decoder_start_token_id", "bos_token_id"):
        for source in (generation, settings):
            if type(token := _first_id(source.get(key))) is int:
                return token
    return None


def search_config(generation: dict[str, Any], model: ModelConfig) -> SearchConfig:
    """Translate generation settings of transformers into a SearchConfig.

    In transformers lengths count the start token, and the minimum does not count the end token; in SearchConfig
    lengths count the end token but not the start token. Settings that contradict one another are left out or lowered,
    with a warning.

    Args:
        generation: The generation settings.
        model: The configuration of the model.

    Raises:
        ValueError: If a setting has the wrong type.
    """
    generation = {key: value for key, value in generation.items() if value is not None}
    for key, kind in SETTING_TYPES.items():
        if key in generation:
            check_type(f"The generation setting {key}", generation[key], kind)
    if generation.get("num_return_sequences", 1) > generation.get("num_beams", 1):
        logger.warning("The checkpoint's num_return_sequences exceeds num_beams and is lowered to it.")
    values = {
        "beam_size": generation.get("num_beams", 1),
        "num_hypotheses": min(generation.get("num_return_sequences", 1), generation.get("num_beams", 1)),
        "length_penalty": generation.get("length_penalty", 1.0),
        "early_stopping": generation.get("early_stopping", False),
        "no_repeat_ngram_size": generation.get("no_repeat_ngram_size", 0),
        "source_no_repeat_ngram_size": generation.get("encoder_no_repeat_ngram_size", 0),
        "repetition_penalty": generation.get("repetition_penalty", 1.0),
        "forced_bos_id": _forced_id(generation, "forced_bos_token_id", model),
        "forced_eos_id": _forced_id(generation, "forced_eos_token_id", model),
        "renormalize": generation.get("renormalize_logits", False),
    }
    forced = {token for token in (values["forced_bos_id"], values["forced_eos_id"]) if isinstance(token, int)}
    return SearchConfig(**values | _length_limits(generation, model) | _bad_words(generation, model, forced))


def _length_limits(generation: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Return the limits of a target's length; a minimum above the maximum is lowered, with a warning."""
    max_tokens = generation.get("max_new_tokens", generation.get("max_length", 0) - 1)
    if max_tokens < 1 and ("max_new_tokens" in generation or "max_length" in generation):
        logger.warning("The maximum length of the generation settings is ignored: it leaves no token to generate.")
    max_tokens = max_tokens if max_tokens > 0 else None
    min_tokens = max(generation.get("min_length", 0), generation.get("min_new_tokens", -1) + 1)
    longest = model.require_decoder().max_length
    limit = min(longest, max_tokens or longest)
    if min_tokens > limit + 1:  # one more, if equal lengths were meant
        logger.warning("The minimum length %d exceeds the maximum and is lowered to %d.", min_tokens, limit)
    return {"max_tokens": max_tokens, "min_tokens": min(min_tokens, limit)}


def _bad_words(generation: dict[str, Any], model: ModelConfig, forced: set[int]) -> dict[str, Any]:
    """Return the tokens and words that are never generated; as in transformers, no end token is a bad word."""
    ends = {(token,) for token in model.eos_ids}
    words = [tuple(word) for word in generation.get("bad_words_ids", []) if word and tuple(word) not in ends]
    # A bad word that is also a forced token stays possible where it is forced; a suppressed token never is.
    suppressed = {word[0] for word in words if len(word) == 1 and word[0] not in forced}
    suppressed |= {token for token in generation.get("suppress_tokens", []) if 0 <= token < model.target_vocab_size}
    return {
        "suppress_ids": tuple(sorted(suppressed)),
        "bad_words": tuple(word for word in words if len(word) > 1 or word[0] in forced),
    }


def _forced_id(generation: dict[str, Any], key: str, model: ModelConfig) -> int | None:
    """Return the id of a forced token; None, with a warning, if it can never be generated or leaves no target."""
    token = _first_id(generation.get(key))
    if type(token) is not int:
        return token
    reasons = {
        "the vocabulary has no such token": not 0 <= token < model.target_vocab_size,
        "it is the padding token": token == model.pad_id,
        "it is suppressed": token in generation.get("suppress_tokens", []),
        "it ends every target at once": key == "forced_bos_token_id" and token in model.eos_ids,
    }
    if reason := next((reason for reason, applies in reasons.items() if applies), None):
        logger.warning("The generation setting %s %d is ignored: %s.", key, token, reason)
        return None
    return token


def task_configs(settings: dict[str, Any], generation: dict[str, Any], model: ModelConfig) -> tuple[TaskConfig, ...]:
    """Return the tasks of an old config.json, each with a prefix and changes to the generation settings."""
    tasks = settings.get("task_specific_params")
    return tuple(
        TaskConfig(name, str(task.get("prefix", settings.get("prefix")) or ""), search_config(generation | task, model))
        for name, task in (tasks.items() if isinstance(tasks, dict) else ())
        if isinstance(task, dict)
    )


def unsupported_settings(generation: dict[str, Any]) -> list[str]:
    """Return the generation settings that would have an effect but are not supported."""
    unsupported = {
        key for key, value in generation.items() if key not in SUPPORTED and value and value != NEUTRAL_VALUES.get(key)
    }
    return sorted(
        unsupported
        | {key for key in SINGLE_TOKEN_KEYS if isinstance(ids := generation.get(key), list) and len(ids) > 1}
    )


def _first_id(ids: Any) -> Any:
    return ids[0] if isinstance(ids, list) and ids else ids
