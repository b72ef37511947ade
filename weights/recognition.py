"""Recognises checkpoints by structure: which family their tensors fit, and what stands before their names."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from mlx_transformer.messages import short_repr
from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.families.other_models import UNSUPPORTED_MODEL_TYPES, describe_other_model
from mlx_transformer.weights.formats.checkpoint import Checkpoint, Tensor
from mlx_transformer.weights.parameter_map import ConversionError, expand_layers

# Parts of names that torch.compile, DataParallel and FSDP insert anywhere.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# First part of the names of what is saved beside a model.
BESIDE = re.compile(r"(\w*_)?(criteri|loss|metric|optim|sched|scaler|discriminator|critic|teacher|ema(_|(?=\.)))\w*\.")
AVERAGED = re.compile(r"ema|avg|average|swa|shadow|teacher")
# Other names of the stacks, before their layers, such as transformer_encoder.layers.
STACK_NAME = re.compile(r"(?:^|\.)(\w+_)?(enc|dec)(oder)?(?=\.(layers?|blocks?|blks|layer_stack)\.)")
LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|(?<=block)\d+(?=\.)")
MAX_PARTS = 12  # of a name after its prefix, and of a prefix within another
MAX_COPIES = 16
LayerCounts = dict[str, dict[str, Counter[str]]]


@dataclass(frozen=True)
class Fit:
    """How the tensors of a checkpoint fit a family.

    Attributes:
        family: The family.
        names: Tensor name without prefixes -> its name in the checkpoint. Includes tensors that do not fit.
        fitting: The names without prefixes that the family has.
        prefixes: What stands before the names of layers, such as "model.transformer.".
        left_out: Tensors beside the model and its copies, by their names in the checkpoint.
        copies: Prefixes of further copies of the model, such as averaged weights.
    """

    family: str
    names: dict[str, str]
    fitting: frozenset[str]
    prefixes: tuple[str, ...]
    left_out: tuple[str, ...]
    copies: tuple[str, ...]


@dataclass(frozen=True)
class FamilyNames:
    """The names of a family's tensors, and of the model's own parameters, without numbers.

    Attributes:
        layers: Name of a tensor in a layer -> its stack.
        others: Names of other tensors.
    """

    layers: dict[str, str]
    others: frozenset[str]


def fold(name: str) -> str:
    """Replace the numbers in a tensor's name: layers.3.norm1 becomes layers.N.normN."""
    return re.sub(r"\d+", "N", name)


@cache
def family_names(family: str) -> FamilyNames:
    """Return the names of a family's tensors without numbers."""
    layers: dict[str, str] = {}
    others: set[str] = set()
    for parameter, sources in expand_layers(FAMILIES[family].names, layers=1).items():
        names = {parameter, *(name for source in sources for name in (source.name, source.factor) if name)}
        stack, _, rest = parameter.partition(".")
        if rest.startswith("layers."):
            layers |= dict.fromkeys(map(fold, names), stack)
        else:
            others |= set(map(fold, names))
    return FamilyNames(layers, frozenset(others))


@cache
def layer_index() -> dict[str, dict[str, str]]:
    """Return the name of a layer's tensor without numbers -> the families that have it -> its stack."""
    index: dict[str, dict[str, str]] = {}
    for family in FAMILIES:
        for name, stack in family_names(family).layers.items():
            index.setdefault(name, {})[family] = stack
    return index


def rename_tensors(names: Iterable[str], rename: dict[str, str], ignore: Iterable[str] = ()) -> dict[str, str]:
    """Drop and rename tensors, and remove the parts of names that wrappers insert.

    Args:
        names: Tensor names as in the checkpoint.
        rename: Regular expressions -> their replacements.
        ignore: Regular expressions of tensors to drop.

    Returns:
        New name -> name in the checkpoint.
    """
    dropped = [_compile(pattern, "ignore must be") for pattern in ignore]
    replacements = [(_compile(pattern, "rename must map"), pattern, text) for pattern, text in rename.items()]
    renamed: dict[str, str] = {}
    for name in names:
        if any(pattern.search(name) for pattern in dropped):
            continue
        short = name
        for regex, pattern, text in replacements:
            try:
                short = regex.sub(text, short)
            except (re.error, IndexError) as error:
                raise ValueError(f"rename must map regular expressions: {pattern!r} is not valid, {error}.") from None
        short = ".".join(part for part in short.split(".") if part not in WRAPPERS)
        if short in renamed:
            raise ConversionError(f"Tensor names must be distinct: {renamed[short]} and {name} both become {short}.")
        renamed[short] = name
    return renamed


def _compile(pattern: str, rule: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{rule} regular expressions: {pattern!r} is not valid, {error}.") from None


def fit_families(names: dict[str, str], tensors: dict[str, Tensor]) -> list[Fit]:
    """Return how a checkpoint fits families, the best first; those that need no config.json first among equals.

    Only families are returned that have at least half as many tensors of its layers as another one.

    Args:
        names: Tensor name after renaming -> its name in the checkpoint.
        tensors: The checkpoint's tensors.
    """
    spellings = [names] if (other := unify_stack_names(names)) is None else [names, other]
    fits = []
    for spelling in spellings:
        counts = count_layers(spelling)
        totals = {family: sum(map(Counter.total, stacks.values())) for family, stacks in counts.items()}
        likely = [family for family in totals if 2 * totals[family] >= max(totals.values())]
        fits += [fit_family(family, spelling, tensors, counts) for family in FAMILIES if family in likely]
    return sorted(fits, key=lambda fit: (-len(fit.fitting), bool(FAMILIES[fit.family].model_types)))


def unify_stack_names(names: dict[str, str]) -> dict[str, str] | None:
    """Rename stacks such as "transformer_encoder" and "dec" to "encoder" and "decoder"; None if there are none."""
    matches = {match[0].lstrip("."): match[2] for match in map(STACK_NAME.search, names) if match}
    stacks = {word: {"enc": "encoder", "dec": "decoder"}[kind] for word, kind in matches.items()}
    if all(word == stack for word, stack in stacks.items()):
        return None
    renamed = {".".join(stacks.get(part, part) for part in name.split(".")): name for name in names}
    return {short: names[name] for short, name in renamed.items()} if len(renamed) == len(names) else None


def fit_family(
    family: str, names: dict[str, str], tensors: dict[str, Tensor], counts: LayerCounts | None = None
) -> Fit:
    """Find the tensors of a checkpoint that a family has, whatever stands before their names.

    Args:
        family: The family.
        names: Tensor name after renaming -> its name in the checkpoint.
        tensors: The checkpoint's tensors.
        counts: The result of `count_layers`, if it is known.
    """
    stacks = (counts or count_layers(names)).get(family, {})
    chosen = {stack: min(prefixes, key=partial(_rank, prefixes)) for stack, prefixes in stacks.items()}
    accepted = sorted({ancestor for prefix in chosen.values() for ancestor in _ancestors(prefix)}, key=len)
    fitting = _fitting_names(family, names, accepted)
    copies = tuple(
        sorted({copy for stack, prefix in chosen.items() for copy in _prefixes_of_copies(stacks[stack], prefix)})
    )[:MAX_COPIES]
    matched, root = set(fitting.values()), _common_prefix(list(fitting.values()))
    left_out, model_names = [], {short: names[name] for short, name in fitting.items()}
    for name, original in names.items():
        if name in matched or name.startswith(copies):
            continue
        is_inside = name.startswith(root) and not BESIDE.match(name.removeprefix(root))
        if not is_inside or "float" not in tensors[original].dtype or "mask" in name:
            left_out.append(original)
        else:
            short = name.removeprefix(next((prefix for prefix in reversed(accepted) if name.startswith(prefix)), ""))
            model_names[name if short in model_names else short] = original
    prefixes = tuple(sorted(set(chosen.values())))
    return Fit(family, model_names, frozenset(fitting), prefixes, tuple(left_out), copies)


def count_layers(names: Iterable[str]) -> LayerCounts:
    """Count the tensors of layers that each family has: by family, by stack and by prefix."""
    counts: LayerCounts = {}
    index = layer_index()
    for name in names:
        parts, folded = name.split("."), fold(name).split(".")
        found: set[str] = set()
        for start in range(max(0, len(parts) - MAX_PARTS), len(parts)):
            for family, stack in index.get(".".join(folded[start:]), {}).items():
                if family not in found:  # the longest name counts
                    found.add(family)
                    prefix = "".join(f"{part}." for part in parts[:start])
                    counts.setdefault(family, {}).setdefault(stack, Counter())[prefix] += 1
    return counts


def _fitting_names(family: str, names: Iterable[str], prefixes: list[str]) -> dict[str, str]:
    """Return name without prefix -> name with it, of the tensors that a family has after one of these prefixes."""
    table = family_names(family)
    fitting: dict[str, str] = {}
    for name in names:
        folded = fold(name)
        for prefix in prefixes:
            short = folded.split(".", prefix.count("."))[-1] if name.startswith(prefix) else ""
            if short in table.layers or short in table.others:
                fitting.setdefault(name.removeprefix(prefix), name)
                break
    return fitting


def _prefixes_of_copies(counts: Counter[str], chosen: str) -> Iterator[str]:
    """Yield the prefixes, other than the chosen one, of further models of about the same size."""
    for prefix, count in counts.items():
        if prefix != chosen and 2 * count >= counts[chosen]:
            yield _prefix_of_copy(prefix, chosen)


def _rank(counts: Counter[str], prefix: str) -> tuple[int, bool, int, str]:
    """Return a key whose minimum is the best prefix: that of most tensors, of plain weights rather than averages."""
    return -counts[prefix], bool(AVERAGED.search(prefix)), len(prefix), prefix


def _prefix_of_copy(copy: str, model: str) -> str:
    """Return the prefix of a whole copy of a model, given the prefixes of the layers in both.

    If those are ema.transformer. and online.transformer., it is ema., where its embeddings are, too.
    """
    parts, others = copy.split("."), model.split(".")  # the last part is empty
    while len(parts) > 2 and parts[-2:-1] == others[-2:-1]:
        del parts[-2], others[-2]
    return copy if model.startswith(".".join(parts)) else ".".join(parts)


def _ancestors(prefix: str) -> Iterator[str]:
    """Yield a prefix, the prefix of its parent, and so on, at last the empty one."""
    for _ in range(MAX_PARTS):
        yield prefix
        prefix = prefix[: prefix[:-1].rfind(".") + 1]


def _common_prefix(names: list[str]) -> str:
    """Return the modules that all names are in, such as "model."."""
    common = os.path.commonprefix(names)
    return common[: common.rfind(".") + 1]


def find_family(
    names: dict[str, str], checkpoint: Checkpoint, settings: dict[str, Any], family: str | None = None
) -> Fit:
    """Find a checkpoint's family, by its model_type or else by the names of its tensors.

    Raises:
        ValueError: If it is unknown or not supported.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(sorted(FAMILIES))}, not {family!r}.")
    if (named := family or family_of_model_type(settings)) is not None:
        return fit_family(named, names, checkpoint.tensors)
    fits = fit_families(names, checkpoint.tensors)
    best = [fit.family for fit in fits if len(fit.fitting) == len(fits[0].fitting)]
    if not fits or FAMILIES[best[0]].model_types:
        check_model(names, names.values(), checkpoint)
    if not fits:
        raise ValueError(
            "The family cannot be detected from config.json or the names of tensors: specify it. "
            f"The families are {', '.join(sorted(FAMILIES))}."
        )
    if FAMILIES[best[0]].model_types:
        raise ValueError(
            f"A checkpoint of {' or '.join(best)}, as this one by its tensors, needs its config.json: put it beside "
            "the weights, or convert the repository by its name on the hub."
        )
    return fits[0]


def check_model(names: dict[str, str], file_names: Iterable[str], checkpoint: Checkpoint) -> None:
    """Raise ConversionError if a checkpoint is no complete encoder-decoder Transformer.

    Args:
        names: The model's tensors: name after renaming -> name in the checkpoint.
        file_names: The names in the checkpoint of all tensors.
        checkpoint: The open checkpoint.
    """
    shapes = {name: checkpoint.tensors[original].shape for name, original in names.items()}
    if message := describe_other_model(shapes, file_names):
        raise ConversionError(message)


def family_of_model_type(settings: dict[str, Any]) -> str | None:
    """Return the name of the family of a config.json; None if it has no model_type.

    Raises:
        ValueError: If models of this type are not supported.
    """
    model_type = settings.get("model_type")
    if not isinstance(model_type, str):
        return None
    if reason := UNSUPPORTED_MODEL_TYPES.get(model_type):
        raise ValueError(f"Checkpoints of model_type {short_repr(model_type)} cannot be converted: {reason}.")
    for name, family in FAMILIES.items():
        if model_type in family.model_types:
            return name
    supported = ", ".join(sorted(FAMILIES))
    raise ValueError(
        f"model_type {short_repr(model_type)} of config.json is not supported. Supported families: {supported}."
    )
