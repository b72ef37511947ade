"""Translates the generation settings of a checkpoint into a SearchConfig."""

from pathlib import Path
from typing import Any

from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.weights.source_config import read_sibling_json

# Generation settings that are followed, or change nothing.
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

# Those that are not, and what they are where they ask for nothing; others of transformers ask for nothing when empty.
NEUTRAL_VALUES = {
    **dict.fromkeys(("num_beam_groups", "encoder_repetition_penalty", "guidance_scale"), 1),
    **dict.fromkeys(("do_sample", "diversity_penalty", "penalty_alpha", "sequence_bias", "forced_decoder_ids")),
    **dict.fromkeys(("begin_suppress_tokens", "exponential_decay_length_penalty", "stop_strings", "constraints")),
    **dict.fromkeys(("force_words_ids", "remove_invalid_values", "max_time", "token_healing", "watermarking_config")),
}

# Where one token is followed, of a list the first.
SINGLE_TOKEN_KEYS = ("eos_token_id", "decoder_start_token_id", "forced_eos_token_id")


def read_generation_config(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Generation settings: of generation_config.json, or where there is none those of an old config.json."""
    found = read_sibling_json(path, "generation_config.json")
    if found is None:
        return {key: value for key, value in settings.items() if key in SUPPORTED or key in NEUTRAL_VALUES}
    return found


def decoder_start_id(settings: dict[str, Any], generation: dict[str, Any]) -> int | None:
    """The decoder's first input, as transformers finds it."""
    for key in ("decoder_start_token_id", "bos_token_id"):
        for source in (generation, settings):
            if type(found := _first_id(source.get(key))) is int:
                return found
    return None


def search_config(generation: dict[str, Any]) -> SearchConfig:
    """The search that generation settings of transformers ask for.

    Its lengths count the start token, and its least length does not count the end token; ours are the other way round.

    Raises:
        ValueError: If a setting is of the wrong kind.
    """
    try:
        return _search_config({key: value for key, value in generation.items() if value is not None})
    except TypeError as error:
        raise ValueError(f"The checkpoint's generation settings are of wrong kinds: {error}.") from None


def _search_config(stated: dict[str, Any]) -> SearchConfig:
    most = stated.get("max_length", 0) - 1
    least = stated["min_new_tokens"] + 1 if "min_new_tokens" in stated else 0
    values = {
        "beam_size": stated.get("num_beams", 1),
        "num_hypotheses": min(stated.get("num_return_sequences", 1), stated.get("num_beams", 1)),
        "max_tokens": stated.get("max_new_tokens", most if most > 0 else None),
        "min_tokens": max(stated.get("min_length", 0), least),
        "length_penalty": stated.get("length_penalty", 1.0),
        "early_stopping": stated.get("early_stopping", False),
        "no_repeat_ngram_size": stated.get("no_repeat_ngram_size", 0),
        "source_no_repeat_ngram_size": stated.get("encoder_no_repeat_ngram_size", 0),
        "repetition_penalty": stated.get("repetition_penalty", 1.0),
        "forced_bos_id": stated.get("forced_bos_token_id"),
        "forced_eos_id": _first_id(stated.get("forced_eos_token_id")),
        "renormalize": stated.get("renormalize_logits", False),
    }
    if values["max_tokens"] is not None:
        values["min_tokens"] = min(values["min_tokens"], values["max_tokens"])
    forced = {values["forced_bos_id"], values["forced_eos_id"]}
    eos_id = _first_id(stated.get("eos_token_id"))
    words = [tuple(word) for word in stated.get("bad_words_ids", []) if word and list(word) != [eos_id]]
    # A forced token may still come where it is forced, but one that is suppressed never.
    never = {word[0] for word in words if len(word) == 1 and word[0] not in forced}
    values["suppress_ids"] = tuple(sorted(never | set(stated.get("suppress_tokens", []))))
    values["bad_words"] = tuple(word for word in words if len(word) > 1 or word[0] in forced)
    return SearchConfig(**values)


def task_configs(settings: dict[str, Any], generation: dict[str, Any]) -> tuple[TaskConfig, ...]:
    """The tasks of an old config.json: each changes the generation settings and has a prefix."""
    stated = settings.get("task_specific_params")
    return tuple(
        TaskConfig(name, str(task.get("prefix", settings.get("prefix")) or ""), search_config(generation | task))
        for name, task in (stated.items() if isinstance(stated, dict) else ())
        if isinstance(task, dict)
    )


def unsupported_settings(generation: dict[str, Any]) -> list[str]:
    """Generation settings that a search of ours does not follow."""
    left = {
        key for key, value in generation.items() if key not in SUPPORTED and value and value != NEUTRAL_VALUES.get(key)
    }
    return sorted(
        left | {key for key in SINGLE_TOKEN_KEYS if isinstance(ids := generation.get(key), list) and len(ids) > 1}
    )


def _first_id(ids: Any) -> Any:
    return ids[0] if isinstance(ids, list) and ids else ids
