"""The settings that stand beside a checkpoint's tensors: the model's own, and how it wants to be searched."""

import logging
from pathlib import Path
from typing import Any

from mlx_transformer.config import SearchConfig, TaskConfig
from mlx_transformer.vocabularies import read_bytes
from mlx_transformer.weights.containers import read_json
from mlx_transformer.weights.objects import plain

logger = logging.getLogger(__name__)

MAX_YAML = 2**20  # bytes of a config.yaml, a hundred times what one needs
MAX_OPTIONS = 10_000
MAX_NAME = 1000

# Where training programs keep the options of the model, in the order of trust.
OPTIONS = (("args",), ("cfg", "model"), ("opt",), ("hyper_parameters",), ("config",))
# Generation settings that are followed, or change nothing.
FOLLOWED = {
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
NEUTRAL = {
    **dict.fromkeys(("num_beam_groups", "encoder_repetition_penalty", "guidance_scale"), 1),
    **dict.fromkeys(("do_sample", "diversity_penalty", "penalty_alpha", "sequence_bias", "forced_decoder_ids")),
    **dict.fromkeys(("begin_suppress_tokens", "exponential_decay_length_penalty", "stop_strings", "constraints")),
    **dict.fromkeys(("force_words_ids", "remove_invalid_values", "max_time", "token_healing", "watermarking_config")),
}
# Where one token is followed, of a list the first.
SINGLE = ("eos_token_id", "decoder_start_token_id", "forced_eos_token_id")


def read_settings(path: Path) -> dict[str, Any]:
    """The config.json beside a checkpoint or in its folder; nothing if there is none, or it is no model's.

    The end token is that of the generation settings, as in transformers.
    """
    found = _beside(path, "config.json") or {}
    if "model_type" not in found:
        return {}
    end = (_beside(path, "generation_config.json") or {}).get("eos_token_id")
    return found if end is None else found | {"eos_token_id": end}


def read_yaml(path: Path, section: str = "model") -> dict[str, Any]:
    """The options of a section of the config.yaml beside a checkpoint or in its folder."""
    file = (path if path.is_dir() else path.parent) / "config.yaml"
    if not file.exists():
        return {}
    import yaml

    class Loader(yaml.SafeLoader):
        """Without merge keys, with which a small file fills the memory."""

        def flatten_mapping(self, node: Any) -> None:
            """Leave a mapping as it is."""

    if file.stat().st_size > MAX_YAML:
        raise ValueError(f"A config.yaml has at most {MAX_YAML} bytes: {file} has more; is it another file?")
    try:
        data = yaml.load(file.read_bytes(), Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        # All of these come of values with tags that they do not fit.
        raise ValueError(f"{file} must be YAML: {' '.join(str(error).split())}.") from None
    found = data.get(section) if isinstance(data, dict) else None
    return flattened(found) if isinstance(found, dict) else {}


def read_joined(path: Path) -> dict[str, Any]:
    """The options of the model in the config.yaml beside a checkpoint, and as "testing_..." those of its search."""
    model, testing = (read_yaml(path, section) for section in ("model", "testing"))
    return model and model | {f"testing_{key}": value for key, value in testing.items()}


def read_generation(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Generation settings: of generation_config.json, or where there is none those of an old config.json."""
    found = _beside(path, "generation_config.json")
    if found is None:
        return {key: value for key, value in settings.items() if key in FOLLOWED or key in NEUTRAL}
    return found


def _beside(path: Path, name: str) -> dict[str, Any] | None:
    """A JSON file in the folder of a checkpoint."""
    file = (path if path.is_dir() else path.parent) / name
    return read_json(read_bytes(file), str(file)) if file.exists() else None


def options(extras: dict[str, Any]) -> dict[str, Any]:
    """The options of the training program that a checkpoint file itself holds; nothing if there are none."""
    for keys in OPTIONS:
        found: Any = extras
        for key in keys:
            found = plain(found.get(key)) if isinstance(found, dict) else None
        if isinstance(found, dict) and found:
            return flattened(found) | {"vocab": plain(extras.get("vocab"))}
    return {}


def flattened(options: dict[Any, Any]) -> dict[str, Any]:
    """Options of sections as "section_option".

    Raises:
        ValueError: If there are too many: a section may hold one that stands elsewhere too, or itself.
    """
    flat: dict[str, Any] = {}
    sections, count = [("", options)], 0
    while sections:
        prefix, section = sections.pop()
        count += len(section)
        for key, value in section.items():
            name = f"{prefix}{key}"
            if count > MAX_OPTIONS or len(name) > MAX_NAME:
                raise ValueError(
                    f"A checkpoint's settings must be at most {MAX_OPTIONS} options with names of at most {MAX_NAME} "
                    "letters, those of sections within sections counted: these are more, check where they are from."
                )
            if isinstance(value, dict):
                sections.append((f"{name}_", value))
            else:
                flat[name] = value
    return flat


def start_id(settings: dict[str, Any], generation: dict[str, Any]) -> int | None:
    """The decoder's first input, as transformers finds it."""
    for key in ("decoder_start_token_id", "bos_token_id"):
        for source in (generation, settings):
            if type(found := _single(source.get(key))) is int:
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
        "forced_eos_id": _single(stated.get("forced_eos_token_id")),
        "renormalize": stated.get("renormalize_logits", False),
    }
    if values["max_tokens"] is not None:
        values["min_tokens"] = min(values["min_tokens"], values["max_tokens"])
    forced = {values["forced_bos_id"], values["forced_eos_id"]}
    eos_id = _single(stated.get("eos_token_id"))
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


def not_covered(generation: dict[str, Any]) -> list[str]:
    """Generation settings that a search of ours does not follow."""
    left = {key for key, value in generation.items() if key not in FOLLOWED and value and value != NEUTRAL.get(key)}
    return sorted(left | {key for key in SINGLE if isinstance(ids := generation.get(key), list) and len(ids) > 1})


def _single(ids: Any) -> Any:
    return ids[0] if isinstance(ids, list) and ids else ids
