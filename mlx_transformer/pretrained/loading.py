"""Loading of a model: the bundled one, a model folder, a torch checkpoint, or a repository of the hub.

What only torch checkpoints and the hub need is imported for them, because these imports take a tenth of a second.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlx.core as mx

from mlx_transformer import weights
from mlx_transformer.checkpoints import adapter_folder, model_folder
from mlx_transformer.checkpoints.replacement import ADAPTER_CONFIG_FILE, is_adapter_folder
from mlx_transformer.config.adapter import AdapterConfig
from mlx_transformer.model.precision import gpu_architecture, has_native_bfloat16
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.pretrained.cache import is_repository_id
from mlx_transformer.storage.atomic import atomic_symlink, restore_interrupted_replacement
from mlx_transformer.tokenization.tokenizer import Tokenizer

BUNDLED_MODEL = Path(weights.__file__).parent / "pretrained" / "en-fr"
URL = re.compile(r"https?://(?:(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+))?")
TORCH_PATTERNS = ("[!.]*.safetensors*", "[!.]*.bin*", "[!.]*.pt", "[!.]*.pth", "[!.]*.ckpt", "[!.]*.npz")


def load(
    model: str | Path | None = None,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    *,
    quantize: int | None = None,
    allow_overflow: bool = False,
    adapter: str | Path | None = None,
) -> tuple[Transformer, Tokenizer]:
    """Load a model and its tokenizer for inference.

    Torch checkpoints are converted in memory. Models of the hub are converted once and cached in
    ~/.cache/mlx_transformer (or MLX_TRANSFORMER_CACHE), so that later loads are fast and work offline. Downloads are
    kept in the cache of huggingface_hub. Code in a repository is never run.

    Args:
        model: A model folder; the folder or file of a torch checkpoint; or, if no such path exists, owner/name of a
            repository of the Hugging Face hub. None or "bundled" for the bundled English-to-French model.
        dtype: Data type to compute in; by default float32 on the CPU and 16 bits on a GPU, see `info`. Models of the
            hub are also cached in the type of the GPU; with `dtype` or `quantize`, as the repository stores them.
        revision: Branch, tag or commit of the repository; by default the main branch.
        quantize: Bits per weight, 8 or 4; by default as stored. The CPU computes with dequantised weights.
        allow_overflow: Allow float16 even if the model overflows it.
        adapter: An adapter to load on the model; see `load_adapter`.

    Raises:
        FileNotFoundError: If the path, repository or revision does not exist.
        OSError: If the hub denies access or cannot be reached, or the disk is full.
        ValueError: If the model is incomplete, a checkpoint of an unknown family, or has no tokenizer.
    """
    if adapter is not None:
        adapter = find_adapter(adapter)  # reports a wrong path before the model is loaded
    path = find_model(model, revision, as_stored=dtype is not None or quantize is not None)
    network, tokenizer = load_path(path, dtype, quantize=quantize, allow_overflow=allow_overflow)
    if tokenizer is None:
        raise missing_tokenizer(model)
    if adapter is not None:
        load_adapter(network, adapter, tokenizer)
    return network, tokenizer


def load_model(
    model: str | Path | None = None,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    *,
    quantize: int | None = None,
    allow_overflow: bool = False,
) -> Transformer:
    """Load a model alone, which need not have a tokenizer; see `load`."""
    path = find_model(model, revision, as_stored=dtype is not None or quantize is not None)
    return load_path(path, dtype, quantize=quantize, allow_overflow=allow_overflow)[0]


def load_path(
    path: Path, dtype: mx.Dtype | str | None = None, *, quantize: int | None = None, allow_overflow: bool = False
) -> tuple[Transformer, Tokenizer | None]:
    """Load a model folder or a torch checkpoint, and its tokenizer if it has one; see `load`."""
    if not is_torch_checkpoint(path):
        return model_folder.load(path, dtype, quantize=quantize, allow_overflow=allow_overflow)
    from mlx_transformer.weights.convert import load

    return load(path, dtype=dtype, quantize=quantize, allow_overflow=allow_overflow)


def missing_tokenizer(model: str | Path | None) -> ValueError:
    """Return the error for a model without a tokenizer."""
    return ValueError(
        f"The model must have a tokenizer, but {model or 'the bundled model'} has none: convert the checkpoint by "
        "convert --tokenizer FILE, use a folder with tokenizer files, or load it without one by load_model."
    )


def load_as_stored(
    model: str | Path | None = None, revision: str | None = None
) -> tuple[Transformer, Tokenizer | None]:
    """Load a model in the precision of its files, to train or to convert it, with its tokenizer if it has one.

    Torch checkpoints are loaded in float32. See `load` for the parameters and errors.
    """
    path = find_model(model, revision)
    return load_path(path, "float32") if is_torch_checkpoint(path) else model_folder.load_as_stored(path)


def load_adapter(model: Transformer, folder: str | Path, tokenizer: Tokenizer | None = None) -> AdapterConfig:
    """Load an adapter on a model, in place of the one that it has; on an error the model stays as it was.

    No other thread may use the model meanwhile.

    Args:
        model: The base of the adapter, as returned by `load`, in any precision.
        folder: An adapter folder; that of a LoRA, DoRA or rsLoRA of PEFT, for the model of transformers that the base
            was converted from; or, if no such path exists, owner/name of a repository of the hub with one of these.
        tokenizer: The model's tokenizer, which has the source prefix that the adapter was trained with until it is
            removed or replaced.

    Returns:
        The adapter's configuration.

    Raises:
        FileNotFoundError: If the folder or one of its files does not exist.
        ValueError: If a file is damaged, or the adapter belongs to another model.
    """
    path = find_adapter(folder)
    config, arrays = _read_peft_adapter(path, model) or adapter_folder.read_adapter(path)
    previous = model.adapter
    adapter_folder.apply_adapter(model, config, arrays, path)
    if previous is not None and previous.on_remove is not None:
        previous.on_remove()
    if tokenizer is not None and config.source_prefix:
        on_remove = partial(_set_source_prefix, tokenizer, tokenizer.config.source_prefix)
        model.adapter = replace(model.adapter, on_remove=on_remove)
        _set_source_prefix(tokenizer, config.source_prefix)
    return config


def _set_source_prefix(tokenizer: Tokenizer, prefix: str) -> None:
    tokenizer.config = replace(tokenizer.config, source_prefix=prefix)


def _read_peft_adapter(folder: Path, model: Transformer) -> tuple[AdapterConfig, dict[str, mx.array]] | None:
    """Read an adapter of PEFT; None if the folder has none."""
    if is_adapter_folder(folder):
        return None
    from mlx_transformer.weights.adapters.peft_reader import is_peft_adapter, read_peft_adapter

    return read_peft_adapter(folder, model) if is_peft_adapter(folder) else None


def find_adapter(folder: str | Path) -> Path:
    """Return the path of an adapter folder; an adapter of the hub is downloaded.

    Raises:
        OSError: If it does not exist, or see `load`.
        ValueError: If it is none.
    """
    path = Path(folder)
    if is_repository_id(str(folder)) and not path.exists():
        from mlx_transformer.pretrained import hub

        return hub.download_adapter(str(folder))
    if is_adapter_folder(path / "best"):
        raise ValueError(f"{path} is a training run, not an adapter: use {path / 'best'}.")
    if model_folder.is_model_folder(path):
        raise ValueError(f"{path} is a model, not an adapter: give it as the model.")
    if not (path / ADAPTER_CONFIG_FILE).exists():
        raise FileNotFoundError(f"An adapter folder has an {ADAPTER_CONFIG_FILE}, but {path} has none: check the path.")
    return path


def find_model(model: str | Path | None = None, revision: str | None = None, *, as_stored: bool = True) -> Path:
    """Return the path of a model; a model of the hub is downloaded and converted.

    Args:
        model: See `load`.
        revision: See `load`.
        as_stored: Whether a model of the hub is converted in the type that its repository stores; otherwise in the type
            that this device computes in by default, unless the stored one is smaller.

    Raises:
        FileNotFoundError: If it does not exist.
        OSError: See `load`.
        ValueError: If a revision is given for a path.
    """
    if is_on_hub(model, revision):
        from mlx_transformer.pretrained import hub

        device = "" if as_stored else device_name()
        return hub.fetch_model(str(model), revision, partial(convert_to_cache, for_device=bool(device)), device)
    path = _local_path(model)
    if (path / "best" / "config.json").exists() and not (path / "config.json").exists():
        raise FileNotFoundError(f"{path} is a training run, not a model: use {path / 'best'}.")
    if adapter := next(filter(is_adapter_folder, (path, path / "best")), None):
        base = adapter_folder.read_adapter_config(adapter).base_model
        raise ValueError(
            f"{path} is an adapter, not a model: give its base{f', {base},' if base else ''} as the model, and "
            f"{adapter} as the adapter."
        )
    if not path.exists():
        raise FileNotFoundError(
            "A model is a folder with config.json and model.safetensors, or a torch checkpoint, or owner/name on the "
            f"hub: there is none at {path}."
        )
    return model_folder.find_model_folder(path) or path


def find_torch_checkpoint(source: str | Path, revision: str | None = None) -> Path:
    """Return the path of a torch checkpoint; a checkpoint of the hub is downloaded.

    Raises:
        OSError: See `load`.
        ValueError: If a revision is given for a path.
    """
    if not is_on_hub(source, revision):
        return _local_path(source)
    from mlx_transformer.pretrained import hub

    return hub.download(str(source), *hub.resolve_revision(str(source), revision))


def _local_path(model: str | Path | None) -> Path:
    """Return the path of a model that is not on the hub; None and the name "bundled" stand for the bundled one."""
    path = Path("bundled" if model is None else model)
    return BUNDLED_MODEL if model is None or (model == "bundled" and not path.exists()) else path


def is_on_hub(model: str | Path | None, revision: str | None) -> bool:
    """Whether a name refers to a repository of the hub; existing paths take precedence.

    Raises:
        ValueError: If the name is empty or a URL, or a revision is given for a path.
    """
    if model == "":
        raise ValueError("A model must have a name or a path, not an empty one: check the variable that names it.")
    if isinstance(model, str) and (url := URL.match(model)):
        remedy = f"give {url[1]}" if url[1] else "download its files, and give their path"
        raise ValueError(f"A model must be a path, or owner/name on the hub, not a URL: {remedy}.")
    if model is not None:
        restore_interrupted_replacement(Path(model))
    if isinstance(model, str) and is_repository_id(model) and not Path(model).exists():
        return True
    if revision is not None:
        raise ValueError(
            f"Only models of the hub have revisions, {model or 'the bundled model'} has none: leave out the revision."
        )
    return False


def device_name() -> str:
    """Return the name of the default device in the cache of hub models; empty for the CPU."""
    architecture = gpu_architecture()
    if architecture is None:
        return ""
    return "gpu" if has_native_bfloat16(architecture) else "gpu_without_bfloat16"


def convert_to_cache(weights: Path, folder: Path, for_device: bool = False) -> None:
    """Convert downloaded files to a model folder; if they are one already, link to it to save disk space."""
    from mlx_transformer.weights.convert import convert, warn_of_assumptions

    if model_folder.is_model_folder(weights.parent):
        atomic_symlink(folder, weights.parent)
    else:
        report = convert(weights, folder, dtype="device" if for_device else None)
        if report is not None:
            warn_of_assumptions(weights, report)


def is_torch_checkpoint(path: Path) -> bool:
    """Whether a path is a torch checkpoint, as opposed to a model folder."""
    if path.is_file():
        return True
    if model_folder.is_model_folder(path):
        return False
    from mlx_transformer.weights.formats.checkpoint import describe_folder
    from mlx_transformer.weights.source_config import read_config

    has_weights = any(next(path.glob(pattern), None) for pattern in TORCH_PATTERNS)
    return has_weights or bool(read_config(path)) or describe_folder(path) is not None
