"""Converts torch checkpoints to model folders."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.config.search import SearchConfig, TaskConfig
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.precision import DTYPES, check_dtype, parse_dtype, prepare_for_inference
from mlx_transformer.model.quantization import quantize_weights
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage import safetensors
from mlx_transformer.storage.files import sha256_of
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights.conversion_plan import ConversionPlan, ProgressCallback, parameter_shapes, plan_conversion
from mlx_transformer.weights.families.huggingface import FAMILIES
from mlx_transformer.weights.formats.checkpoint import Checkpoint, read_checkpoint
from mlx_transformer.weights.formats.tensors import quote
from mlx_transformer.weights.generation_config import (
    decoder_start_id,
    read_generation_config,
    search_config,
    task_configs,
    unsupported_settings,
)
from mlx_transformer.weights.source_config import read_config, read_joeynmt_options, training_options
from mlx_transformer.weights.tokenizers.loading import read_tokenizer

logger = logging.getLogger(__name__)


@dataclass
class PreparedCheckpoint:
    """What a checkpoint becomes.

    Attributes:
        plan: The model, and where its parameters come from.
        search: The search that it asks for.
        tasks: The tasks that it was trained for.
        tokenizer: Its tokenizer, None if it has none.
    """

    plan: ConversionPlan
    search: SearchConfig
    tasks: tuple[TaskConfig, ...]
    tokenizer: Tokenizer | None

    def blank(self, quantize: int | None) -> Transformer:
        """A model to put its parameters into, quantised to so many bits."""
        model = model_folder.uninitialized_model(self.plan.config, self.search, self.tasks)
        if quantize is not None:
            quantize_weights(model, QuantizationConfig(quantize))
        return model


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    family: str | None = None,
    dtype: mx.Dtype | str | None = None,
    rename: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    quantize: int | None = None,
    allow_overflow: bool = False,
    force: bool = False,
    report: ProgressCallback | None = None,
) -> None:
    """Make a model folder from a torch checkpoint, one tensor at a time; torch is not needed.

    Args:
        source: The checkpoint: a folder with config.json and weights, or a file.
        destination: The model folder to write.
        family: The family of the checkpoint, where neither its config.json nor its names tell it.
        dtype: What to store numbers in, "float32", "float16" or "bfloat16"; by default the checkpoint's own.
        rename: Regular expressions -> what to put in their place in the names of tensors.
        settings: Settings of the model (fields of ModelConfig, of StackConfig for both stacks or as
            "encoder.num_layers" for one) that the checkpoint does not tell, or tells wrong.
        quantize: Bits of each weight of linear layers and token embeddings, 8 or 4; None not to quantise.
        allow_overflow: Store float16 even for a model whose activations leave its range.
        force: Replace a model folder that is there already.
        report: Called with the bytes written so far and all bytes, after each part of a tensor;
            if it is quantised, the bytes made so far.

    Raises:
        ConversionError: If tensors are missing, unexpected or misshapen; nothing is written.
        ValueError: If the checkpoint is damaged or of no known family, or its widths do not allow to quantise.
        OSError: If a file cannot be read or written, or the destination is there already.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists() and not force and (destination.is_file() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} is there already: choose another name, or force its replacement.")
    with read_checkpoint(source) as checkpoint:
        found = prepare_checkpoint(checkpoint, source, family, rename, settings)
        stored = parse_dtype(dtype) if dtype is not None else stored_dtype(checkpoint)
        if dtype is not None:
            check_dtype(stored, found.plan.config, allow_overflow)
        model = found.blank(quantize)
        with model_folder.replace_model_folder(destination) as new:
            # Hashing the files takes about as long as writing the numbers: both at a time.
            stop = threading.Event()
            with ThreadPoolExecutor(max_workers=1) as executor:
                text = executor.submit(model_card, found.plan, checkpoint, stored, quantize, stop)
                try:
                    if quantize is None:
                        _write_weights(new, found.plan, stored, report)
                    else:
                        found.plan.fill(model, stored, report)
                        safetensors.write_arrays(new / "model.safetensors", split_projections(model.parameters()))
                    (new / "README.md").write_text(text.result())
                finally:
                    stop.set()
            model_folder.write_config(new, model_folder.folder_config(model))
            if found.tokenizer is not None:
                found.tokenizer.save(new)


def load(
    source: str | Path,
    *,
    family: str | None = None,
    dtype: mx.Dtype | str | None = None,
    rename: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    quantize: int | None = None,
    allow_overflow: bool = False,
) -> tuple[Transformer, Tokenizer | None]:
    """The model of a torch checkpoint, converted in memory, and its tokenizer, None if it has none; see `convert`.

    Raises:
        ConversionError: If tensors are missing, unexpected or misshapen.
        ValueError: If the checkpoint is damaged, or of no known family.
    """
    with read_checkpoint(source) as checkpoint:
        found = prepare_checkpoint(checkpoint, Path(source), family, rename, settings)
        model = found.blank(quantize)
        found.plan.fill(model)
        prepare_for_inference(model, dtype, stored=stored_dtype(checkpoint), allow_overflow=allow_overflow)
    return model, found.tokenizer


def inspect_checkpoint(source: str | Path) -> dict[str, Any]:
    """The family of a checkpoint and the types of its numbers, for a person to read; no tensor is read."""
    with read_checkpoint(source) as checkpoint:
        plan = prepare_checkpoint(checkpoint, Path(source)).plan
        return {"family": plan.family, "stored_dtype": sorted({t.dtype for t in checkpoint.tensors.values()})}


def prepare_checkpoint(
    checkpoint: Checkpoint,
    source: Path,
    family: str | None = None,
    rename: dict[str, str] | None = None,
    settings: dict[str, Any] | None = None,
) -> PreparedCheckpoint:
    """Find out what a checkpoint becomes; nothing but small files and tied tables is read."""
    told = read_config(source)
    generation = read_generation_config(source, told)
    start = decoder_start_id(told, generation)
    stated = told or read_joeynmt_options(source) or training_options(checkpoint.extras)
    plan = plan_conversion(
        checkpoint,
        stated,
        family=family,
        rename=rename,
        overrides=settings,
        defaults={} if start is None else {"start_id": start},
    )
    search = search_config(generation)
    if left := unsupported_settings(generation) if told else []:
        logger.warning("Generation settings that are not followed: %s.", ", ".join(map(quote, left)))
    rules = {} if told else FAMILIES[plan.family].search
    own = {ours: stated.get(rule) if isinstance(rule, str) else rule for ours, rule in rules.items()}
    search = replace(search, **{ours: value for ours, value in own.items() if value is not None})
    tokenizer = read_tokenizer(source, plan, checkpoint.extras, search.forced_bos_id)
    return PreparedCheckpoint(plan, search, task_configs(told, generation), tokenizer)


def stored_dtype(checkpoint: Checkpoint) -> mx.Dtype:
    """The type of most numbers of a checkpoint, float32 where that is none of ours."""
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return DTYPES.get(max(sizes, key=lambda name: sizes[name]), mx.float32)


def _write_weights(new: Path, plan: ConversionPlan, dtype: mx.Dtype, report: ProgressCallback | None) -> None:
    """Write the parameters that a model is to have, without ever holding them all."""
    shapes = parameter_shapes(plan.config)
    total = sum(mx.zeros(shape, dtype).nbytes for shape in shapes.values())
    done = 0

    def make(name: str) -> Iterator[mx.array]:
        nonlocal done
        for array in plan.parts(name):
            yield array
            done += array.size * dtype.size
            if report is not None:
                report(done, total)

    safetensors.write_streamed(new / "model.safetensors", shapes, dtype, make)


def model_card(
    plan: ConversionPlan, checkpoint: Checkpoint, dtype: mx.Dtype, quantize: int | None, stop: threading.Event
) -> str:
    """The README.md of a converted model; no longer of use if told to stop."""
    numbers = str(dtype).removeprefix("mlx.core.") + (f", quantised to {quantize} bits" if quantize else "")
    files = "\n".join(f"- {path.name}: sha256 {sha256_of(path, stop)}" for path in checkpoint.files)
    return (
        "---\nlibrary_name: mlx_transformer\n---\n\n"
        f"Converted by mlx_transformer from a torch checkpoint of the family {plan.family}, in {numbers}:\n\n{files}\n"
    )
