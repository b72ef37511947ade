"""The command `info`: contents of a model folder or torch checkpoint, and how this machine runs it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import mlx_transformer as mt
from mlx_transformer.cli.commands.cache import print_cache
from mlx_transformer.cli.completion import complete_model
from mlx_transformer.cli.help import GroupedCommand, option_group
from mlx_transformer.cli.input_lines import escape_control_characters
from mlx_transformer.cli.options import adapter_option, revision_option
from mlx_transformer.cli.progress import activity
from mlx_transformer.cli.tables import dtype_names, format_size, format_storage, print_fields, print_table

# Head sizes of Metal's fused attention in MLX 0.32: for at most 8 queries (a decode step), and for more.
FUSED_STEP = (64, 96, 128, 256)
FUSED_LONG = (64, 72, 80, 96, 128)
MAX_LISTED = 20
# Settings of a search that are ids of tokens, in words.
TOKEN_SETTINGS = {
    "suppress_ids": "never generates",
    "forced_bos_id": "begins with",
    "forced_eos_id": "ends at the limit with",
}


@click.command("info", cls=GroupedCommand, short_help="Show what a model is: size, languages, search settings.")
@click.argument("folder", metavar="[MODEL]", required=False, shell_complete=complete_model)
@option_group(
    "Options",
    adapter_option,
    revision_option,
    click.option(
        "--tensors", "show_tensors", is_flag=True, help="List the tensors and settings, and how they fit each family."
    ),
    click.option("--verbose", is_flag=True, help="List all settings and all tensors that do not fit."),
    click.option("--json", "as_json", is_flag=True, help="Write one JSON object."),
    click.option("--cache", "show_cache", is_flag=True, help="List the converted hub models in the cache instead."),
)
def command(
    folder: str | None,
    adapter: str | None,
    revision: str | None,
    show_cache: bool,
    show_tensors: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Describe MODEL: a model folder, a torch checkpoint or owner/name on the hub. Default: the bundled model.

    A checkpoint that cannot be converted is described as with --tensors, and by the reason.
    """
    from mlx_transformer.pretrained.loading import find_model, find_torch_checkpoint, is_torch_checkpoint, load_path
    from mlx_transformer.weights.inspection import inspect_tensors

    if show_cache:
        if folder is not None or revision is not None or adapter is not None:
            raise click.UsageError("--cache lists all models: leave out MODEL, --adapter and --revision.")
        print_cache(as_json)
        return
    activity.show(f"Loading {folder or 'the bundled model'}")
    path = (
        find_torch_checkpoint(folder or "bundled", revision)
        if show_tensors
        else find_model(folder, revision, as_stored=False)
    )
    if show_tensors:
        if adapter is not None:
            raise click.UsageError("--tensors lists those of MODEL: leave out --adapter.")
        facts = inspect_tensors(path)
    else:
        try:
            facts = folder_facts(path) | model_facts(*load_path(path), adapter)
        except ValueError as error:
            if not is_torch_checkpoint(path):
                raise
            try:
                facts = inspect_tensors(path) | {"error": str(error)}
            except ValueError:  # it has no readable tensors
                raise error from None
    activity.clear()
    if as_json:
        click.echo(json.dumps(facts))
    elif "tensors" in facts:
        print_tensors(facts, None if verbose else MAX_LISTED)
    else:
        print_fields(format_facts(facts, verbose), width=18, wrap=110)


def folder_facts(folder: Path) -> dict[str, Any]:
    """Return the facts that are in the files only."""
    from mlx_transformer.checkpoints.model_folder import read_config
    from mlx_transformer.config.serialization import to_dict
    from mlx_transformer.pretrained.loading import is_torch_checkpoint
    from mlx_transformer.storage.safetensors import read_arrays
    from mlx_transformer.weights.inspection import inspect_checkpoint

    if is_torch_checkpoint(folder):
        dtypes, report = inspect_checkpoint(folder)
        assumed = {item.setting: item.value for item in report.assumptions}
        facts = {"family": report.family, "stored_dtype": dtypes, "assumed": assumed}
        return {"folder": str(folder), "format_version": None, "quantization": None} | facts
    config = read_config(folder)
    return {
        "folder": str(folder),
        "format_version": config.format_version,
        "quantization": to_dict(config)["quantization"],
        "stored_dtype": dtype_names(read_arrays(folder / "model.safetensors").values()),
        "changed_files": verify_checksums(folder),
    }


def verify_checksums(folder: Path) -> list[str] | None:
    """Return the files that do not match the folder's checksums, None without checksums; ValueError for the weights."""
    from mlx_transformer.checkpoints.model_folder import weights_changed
    from mlx_transformer.storage.checksums import CHECKSUM_FILE, changed_files, read_checksums

    if not (folder / CHECKSUM_FILE).exists() or "model.safetensors" not in read_checksums(folder):
        return None
    changed = changed_files(folder)
    if "model.safetensors" in changed:
        raise weights_changed(folder / "model.safetensors")
    return changed


def adapter_facts(model: mt.Transformer, folder: str) -> dict[str, Any]:
    """Load an adapter on a model, and return the facts about it as plain data."""
    from mlx_transformer.config.serialization import to_dict
    from mlx_transformer.model.adapters import adapter_arrays

    config = mt.load_adapter(model, folder)
    arrays = adapter_arrays(model).values()
    sizes = {"parameters": sum(array.size for array in arrays), "scale": config.scale}
    return {"folder": folder} | sizes | to_dict(config)


def model_facts(model: mt.Transformer, tokenizer: mt.Tokenizer | None, adapter: str | None = None) -> dict[str, Any]:
    """Return the facts about a model that was loaded with its default data type, and its adapter, as plain data."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from mlx_transformer.config.serialization import to_dict
    from mlx_transformer.model.precision import explain_default

    arrays = list(dict(tree_flatten(model.parameters())).values())
    config = model.config
    heads = {side: config.head_dims or config.dims // stack.num_heads for side, stack in config.stacks.items()}
    return {
        # Counted on an unquantised model, because quantised weights pack several parameters into one number.
        "parameters": mt.Transformer(model.config).num_parameters,
        "dtype": dtype_names(arrays),
        "computes_in": explain_default(model.dtype, model.config),
        "device": str(mx.default_device().type).removeprefix("DeviceType."),
        "metal": mx.metal.is_available(),
        "fused_attention": {
            side: {"head_dims": dims, "step": dims in FUSED_STEP, "long": dims in FUSED_LONG}
            for side, dims in heads.items()
        },
        "tokenizer": tokenizer is not None,
        "language_pair": tokenizer.config.language_pair if tokenizer else None,
        "languages": tokenizer.languages if tokenizer else [],
        "tasks": {name: to_dict(task) for name, task in model.tasks.items()},
        "search_defaults": to_dict(model.search_defaults),
        "search_tokens": search_tokens(model.search_defaults, tokenizer),
        "config": to_dict(model.config),
    } | ({} if adapter is None else {"adapter": adapter_facts(model, adapter)})


def search_tokens(search: mt.SearchConfig, tokenizer: mt.Tokenizer | None) -> dict[int, str]:
    """Return the tokens that a search never generates or must generate, by their ids; none without a tokenizer."""
    ids = {*search.suppress_ids, search.forced_bos_id, search.forced_eos_id} - {None}
    known = sorted(i for i in ids if i is not None) if tokenizer else []
    return dict(zip(known, tokenizer.tokens(known), strict=True)) if tokenizer else {}


def format_facts(facts: dict[str, Any], verbose: bool) -> Iterator[tuple[str, str | Path]]:
    """Format facts as names and values."""
    config = facts["config"]
    yield "folder", Path(facts["folder"])
    yield (
        "format",
        f"torch checkpoint, {facts['family']}"
        if "family" in facts
        else f"model folder, format {facts['format_version']}",
    )
    yield "stored in", format_storage(facts["stored_dtype"], facts["quantization"])
    if "changed_files" in facts:
        yield "checksums", checksum_facts(facts["changed_files"])
    yield "parameters", f"{facts['parameters']:,} in {', '.join(facts['dtype'])}"
    yield "computes in", facts["computes_in"]
    if "adapter" in facts:
        yield "adapter", describe_adapter(facts["adapter"])
    yield "vocabulary", f"{vocabulary_facts(config)}, {'with' if facts['tokenizer'] else 'without'} a tokenizer"
    for side in ("encoder", "decoder"):
        yield side, stack_facts(config, config[side]) if config[side] else "none: the model embeds texts"
    if config["pooling"]:
        yield "embeddings", pooling_facts(config["pooling"])
    for side, cover in facts["fused_attention"].items():
        step, long = ("fused" if cover[kind] else "not fused" for kind in ("step", "long"))
        yield (
            f"{side} attention",
            f"head size {cover['head_dims']}; on Metal {step} for a step, {long} for many positions",
        )
    yield "device", f"{facts['device']}, Metal {'available' if facts['metal'] else 'not available'}"
    if pair := facts["language_pair"]:
        yield "languages", f"{pair[0]} to {pair[1]}"
    if facts["languages"]:
        yield "languages", f"{len(facts['languages'])}: {' '.join(facts['languages'])}"
    for name, task in facts["tasks"].items():
        yield "task", f"{name}: sources begin with {task['source_prefix']!r}"
    if config["decoder"]:
        yield "search defaults", search_facts(facts["search_defaults"], facts["search_tokens"], verbose)


def pooling_facts(pooling: dict[str, Any]) -> str:
    """Format how texts are embedded."""
    tokens = {"mean": "the mean over tokens", "first": "the first token", "last": "the last token"}[pooling["mode"]]
    width, activation = pooling["projection_dims"], pooling["projection_activation"]
    projection = f", a projection to {width}" + (f" with {activation}" if activation != "none" else "") if width else ""
    return tokens + projection + (", normalised" if pooling["normalize"] else "")


def describe_adapter(facts: dict[str, Any]) -> str:
    """Format the result of `adapter_facts`."""
    kind = "DoRA" if facts["dora"] else "LoRA"
    layers = f" of the last {facts['layers']} layers" if facts["layers"] else ""
    parts = f", {', '.join(facts['modules_to_save'])} in full" if facts["modules_to_save"] else ""
    return (
        f"{kind} of rank {facts['rank']}, scale {facts['scale']:g}, of {', '.join(facts['targets'])}{layers}{parts}: "
        f"{facts['parameters']:,} parameters"
    )


def search_facts(search: dict[str, Any], tokens: dict[int, str], verbose: bool) -> str:
    """Format search settings: the number of beams, and all that a new model has otherwise; with `verbose` all."""
    usual = dataclasses.asdict(mt.SearchConfig())
    names = [name for name, value in search.items() if verbose or name == "beam_size" or value != usual[name]]
    rest = "" if len(names) == len(search) else "; everything else as in a new model"
    return ", ".join(setting_phrase(name, search[name], tokens) for name in names) + rest


def setting_phrase(name: str, value: Any, tokens: dict[int, str]) -> str:
    """Format a setting with its name; of tokens with what they do to the text."""
    ids = value if isinstance(value, list | tuple) else [value]
    if name not in TOKEN_SETTINGS or not ids or ids == [None]:
        return f"{name.replace('_', ' ')} {setting_text(value)}"
    names = [f"{tokens[i]} (id {i})" if tokens.get(i) else f"id {i}" for i in ids[:MAX_LISTED]]
    return f"{TOKEN_SETTINGS[name]} {', '.join(names)}{more_than(list(ids), MAX_LISTED)}"


def setting_text(value: Any) -> str:
    """Format the value of a setting in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        shown = [setting_text(item).replace(", ", " ") for item in value[:MAX_LISTED]]
        return (", ".join(shown) or "none") + more_than(list(value), MAX_LISTED)
    return "none" if value is None else str(value)


def print_tensors(facts: dict[str, Any], limit: int | None) -> None:
    """Print the result of `inspect_tensors`, with at most `limit` settings, and tensors that do not fit."""
    groups = facts["tensors"]
    total = format_size(sum(group["bytes"] for group in groups))
    files = Path(facts["files"][0]) if len(facts["files"]) == 1 else ", ".join(facts["files"])
    print_fields([("files", files), ("tensors", f"{sum(group['tensors'] for group in groups)}, {total}")], width=18)
    rows = [("name", "tensors", "shape", "type", "size")]
    for group in groups:
        shape = " x ".join(map(str, group["shape"])) or "one value"
        rows.append((group["name"], group["tensors"], shape, group["dtype"], format_size(group["bytes"])))
    print_table(rows)
    settings = [f"{name} {value}" for name, value in facts["settings"].items() if name != "vocab"]
    lists = {"settings": ", ".join(settings[:limit]) + more_than(settings, limit)}
    lists |= {"other weights": ", ".join(facts["other_weights"])}
    print_fields([(name, text) for name, text in lists.items() if text], width=18, wrap=100)
    print_fields(format_fits(facts["families"]), width=18)
    if facts["families"] and (rest := facts["families"][0]["not_fitting"]):
        print_fields([("do not fit", f"{facts['families'][0]['family']}:")], width=18)
        more = [f" {text}: --verbose lists them"] if (text := more_than(rest, limit)) else []
        click.echo("\n".join([*(f"  {escape_control_characters(name)}" for name in rest[:limit]), *more]))
    if "error" in facts:
        print_fields([("conversion", facts["error"])], width=18)


def format_fits(families: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Format how a checkpoint fits families as names and values."""
    for fit in families:
        below = " and ".join(filter(None, fit["prefixes"]))
        where = f", below {below}" if below else ""
        count = len(fit["not_fitting"]) + len(fit["left_out"])
        yield f"fits {fit['family']}", f"{fit['fitting']} tensors{where}; {count} do not fit"


def more_than(items: list[Any], limit: int | None) -> str:
    """Return the number of items beyond a limit as text."""
    return f" and {len(items) - limit} more" if limit and len(items) > limit else ""


def checksum_facts(changed: list[str] | None) -> str:
    """Format the result of `verify_checksums`."""
    if changed is None:
        return "none: damage to the weights would not be noticed"
    return f"match, except of {', '.join(changed)}" if changed else "match"


def vocabulary_facts(config: dict[str, Any]) -> str:
    """Format the sizes of the vocabularies."""
    if config["share_embeddings"]:
        return f"{config['source_vocab_size']:,} pieces, shared"
    return f"{config['source_vocab_size']:,} source and {config['target_vocab_size']:,} target pieces"


def stack_facts(config: dict[str, Any], side: dict[str, Any]) -> str:
    """Format one stack."""
    norm = "pre-norm" if side["norm_first"] else "post-norm"
    alternatives = {"ssru": "SSRU", "average": "average attention"} if side is config["decoder"] else {}
    alternative = alternatives.get(config["decoder_self_attention"])
    sublayer = f", {alternative} instead of self-attention" if alternative else ""
    mlp = f"{side['mlp_dims']}" + (f" in {side['mlp_layers']} layers" if side["mlp_layers"] != 2 else "")
    return (
        f"{side['num_layers']} layers, {config['dims']} wide, {side['num_heads']} heads, feed-forward "
        f"{mlp}, {norm}, {side['positions']} positions up to {side['max_length']}{sublayer}"
    )
