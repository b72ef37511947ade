"""Reads folders of sentence-transformers: how the hidden states of a text become a vector, and how long it may be."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_transformer.config.model import ModelConfig, PoolingConfig
from mlx_transformer.messages import short_names, short_repr
from mlx_transformer.storage.files import read_bytes
from mlx_transformer.weights.formats.checkpoint import DENSE, read_modules
from mlx_transformer.weights.formats.containers import read_json
from mlx_transformer.weights.source_config import read_sibling_json

logger = logging.getLogger(__name__)

SETTINGS_FILE = "sentence_bert_config.json"
MODES = {"mean": "mean", "cls": "first", "lasttoken": "last"}
ORDERS = [
    ["Transformer", "Pooling", *dense, *normalize] for dense in ([], [DENSE]) for normalize in ([], ["Normalize"])
]
ACTIVATIONS = {"Identity": "none", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}


def read_pooling(path: Path) -> PoolingConfig | None:
    """Return the pooling of a folder of sentence-transformers; None for other checkpoints.

    Raises:
        ValueError: If it has other modules, or a kind of pooling that is not supported.
    """
    folder = path if path.is_dir() else path.parent
    if not (modules := read_modules(folder)):
        return None
    kinds = [kind for kind, _ in modules]
    if kinds not in ORDERS:
        raise ValueError(
            "The modules of modules.json must be Transformer, Pooling and possibly Dense and Normalize, in this order, "
            f"not {short_names(kinds)}: use another model."
        )
    paths = dict(modules)
    if paths["Transformer"]:
        raise ValueError(
            f"The Transformer of modules.json must be in the folder itself, not in {paths['Transformer']}: give the "
            "path of that folder, and the pooling as an option."
        )
    prompt = (read_sibling_json(folder, "config_sentence_transformers.json") or {}).get("default_prompt_name")
    if prompt is not None:
        logger.warning("The default prompt %s is not put before texts: give it as source prefix.", short_repr(prompt))
    dense = _read_settings(folder / paths[DENSE]) if DENSE in paths else {}
    mode = _pooling_mode(_read_settings(folder / paths["Pooling"]))
    return PoolingConfig(mode, **_projection(dense), normalize="Normalize" in paths)


def limit_text_length(config: ModelConfig, path: Path) -> ModelConfig:
    """Return a configuration that truncates texts where sentence-transformers does; tables of positions keep theirs."""
    settings = read_sibling_json(path, SETTINGS_FILE) or {}
    tokenizer = read_sibling_json(path, "tokenizer_config.json") or {}
    limits = [settings.get("max_seq_length"), tokenizer.get("model_max_length")]
    limit = next((limit for limit in limits if type(limit) is int and limit > 0), config.encoder.max_length)
    if config.encoder.positions != "relative":
        if limit < config.encoder.max_length:
            logger.warning(
                "Texts are truncated to the model's %d tokens, not to %d as by sentence-transformers: shorten them.",
                config.encoder.max_length,
                limit,
            )
        return config
    return replace(config, encoder=replace(config.encoder, max_length=min(limit, config.encoder.max_length)))


def lowercases_texts(path: Path) -> bool:
    """Whether sentence-transformers lower-cases texts before the tokenizer of a folder sees them."""
    return (read_sibling_json(path, SETTINGS_FILE) or {}).get("do_lower_case") is True


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read the config.json of a module."""
    return read_json(read_bytes(folder / "config.json"), str(folder / "config.json"))


def _pooling_mode(settings: dict[str, Any]) -> Any:
    """Return the mode of a pooling, which older files name by flags such as pooling_mode_mean_tokens."""
    flags = {
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name, value in settings.items()
        if name.startswith("pooling_mode_") and value is True
    }
    modes = flags or settings.get("pooling_mode")
    (mode,) = modes if isinstance(modes, set | list) and len(modes) == 1 else (modes,)
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"The pooling must be one of {', '.join(MODES)}, not {short_repr(mode)}: use another model.")
    return MODES[mode]


def _projection(dense: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a PoolingConfig for a dense layer."""
    if not dense:
        return {}
    activation = str(dense.get("activation_function", "Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS or dense.get("use_residual"):
        what = "a residual connection" if dense.get("use_residual") else f"the activation {short_repr(activation)}"
        raise ValueError(f"The dense layer after pooling has {what}, which is not supported: use another model.")
    return {
        "projection_dims": dense.get("out_features"),
        "projection_bias": dense.get("bias", True),
        "projection_activation": ACTIVATIONS[activation],
    }
