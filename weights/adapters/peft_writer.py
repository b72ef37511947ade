"""Writes adapters as PEFT does, for models of transformers on torch."""

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_transformer.checkpoints.model_folder import preserve_random_state
from mlx_transformer.config.adapter import AdapterConfig
from mlx_transformer.messages import short_names
from mlx_transformer.model.adapters import adapter_arrays, untied_config
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage.atomic import atomic_replace
from mlx_transformer.storage.safetensors import write_arrays
from mlx_transformer.weights.adapters.module_names import shortest_names, tensors_by_parameter
from mlx_transformer.weights.adapters.peft_config import CONFIG_FILE, LORA_A, LORA_B, MAGNITUDE, PREFIX, WEIGHT_FILES
from mlx_transformer.weights.conversion_plan import parameter_shapes

LEAVES = {"lora_a": LORA_A, "lora_b": LORA_B, "m": MAGNITUDE}


def save_peft_adapter(folder: str | Path, model: Transformer, *, base_model: str | None = None) -> None:
    """Write the adapter of a model as PEFT does: adapter_config.json and adapter_model.safetensors.

    On torch, `peft.PeftModel.from_pretrained(base, folder)` loads it, where `base` is the model of transformers that
    this one was converted from.

    Args:
        folder: The folder to write; it must not exist, or be empty.
        model: A model with an adapter.
        base_model: Path or hub name of the base model for torch; by default that of the adapter.

    Raises:
        FileExistsError: If the folder has files.
        OSError: If it cannot be written.
        ValueError: If the model has no adapter, or one that PEFT cannot have.
    """
    folder = Path(folder)
    arrays = adapter_arrays(model)
    config: AdapterConfig = model.adapter.config
    with preserve_random_state():
        tensors = tensors_by_parameter(untied := untied_config(model), parameter_shapes(untied))
    if unknown := [name for name in arrays if _weight_of(name) not in tensors]:
        raise ValueError(
            f"An adapter of PEFT cannot have {short_names(unknown)}, which transformers stores in another form: fuse "
            "the adapter, or train it without."
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists: choose another name.")
    settings = peft_settings(config, arrays, tensors) | {
        "task_type": "FEATURE_EXTRACTION" if model.config.decoder is None else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base_model or config.base_model,
    }
    with atomic_replace(folder) as new:
        (new / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        write_arrays(new / WEIGHT_FILES[0], peft_arrays(arrays, tensors), {"format": "pt"})


def _weight_of(name: str) -> str:
    """Return the parameter that an array of an adapter changes."""
    path, _, leaf = name.rpartition(".")
    return f"{path}.weight" if leaf in LEAVES else name


def peft_arrays(arrays: dict[str, mx.array], tensors: dict[str, list[str]]) -> dict[str, mx.array]:
    """Return the arrays of an adapter under the names of PEFT.

    Args:
        arrays: The arrays by our names.
        tensors: Parameter -> its tensors in transformers.
    """
    named = {}
    for name, array in arrays.items():
        leaf = name.rpartition(".")[2]
        for tensor in tensors[_weight_of(name)]:
            if leaf in LEAVES:
                tensor = f"{tensor.removesuffix('weight')}{LEAVES[leaf]}"
            named[PREFIX + tensor] = mx.contiguous(array.T) if leaf in ("lora_a", "lora_b") else array
    return named


def peft_settings(config: AdapterConfig, arrays: dict[str, mx.array], tensors: dict[str, list[str]]) -> dict[str, Any]:
    """Return the adapter_config.json of PEFT for an adapter; see `peft_arrays` for the parameters."""
    names = {parameter: [name.rpartition(".")[0] for name in names] for parameter, names in tensors.items()}
    ranks = {names[_weight_of(name)][0]: array.shape[1] for name, array in arrays.items() if name.endswith(".lora_a")}
    others = {name: rank for name, rank in ranks.items() if rank != config.rank}
    saved = {module for name in arrays if name in names for module in names[name]}
    return {
        "peft_type": "LORA",
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_dora": config.dora,
        "use_rslora": config.rslora,
        "bias": "none",
        "target_modules": shortest_names(ranks, (name for modules in names.values() for name in modules)),
        "modules_to_save": sorted(saved) or None,
        "rank_pattern": others,
        # Such that all modules have the scale of the adapter.
        "alpha_pattern": {
            name: config.scale * (math.sqrt(rank) if config.rslora else rank) for name, rank in others.items()
        },
    }
