"""Recognises checkpoints by structure: which family their tensors fit, and what stands before their names."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.formats.checkpoint import Tensor
from mlx_transformer.weights.parameter_map import ConversionError, expand_layers

# Parts of names that torch.compile, DataParallel and FSDP insert anywhere.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# First part of the names of what is saved beside a model.
BESIDE = re.compile(r"(\w*_)?(criteri|loss|metric|optim|sched|scaler|discriminator|critic|teacher|ema)\w*\.")
AVERAGED = re.compile(r"ema|avg|average|swa|shadow|teacher")
# Other names of the stacks, before their layers, such as transformer_encoder.layers.
STACK_NAME = re.compile(r"(?:^|\.)(\w+_)?(enc|dec)(oder)?(?=\.(layers?|blocks?|blks|layer_stack)\.)")
LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|(?<=block)\d+(?=\.)")
MAX_PARTS = 12  # of a name within its prefix


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

    def has(self, name: str, prefix: str) -> bool:
        """Return whether the family has a tensor of this name after a prefix."""
        short = fold(name.removeprefix(prefix))
        return name.startswith(prefix) and (short in self.layers or short in self.others)


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
    """Return how a checkpoint fits each family, the best first; those that need no config.json first among equals."""
    spellings = [names] if (other := unify_stack_names(names)) is None else [names, other]
    fits = [fit_family(family, spelling, tensors) for spelling in spellings for family in FAMILIES]
    return sorted(fits, key=lambda fit: (-len(fit.fitting), bool(FAMILIES[fit.family].model_types)))


def unify_stack_names(names: dict[str, str]) -> dict[str, str] | None:
    """Rename stacks such as "transformer_encoder" and "dec" to "encoder" and "decoder"; None if there are none."""
    matches = {match[0].lstrip("."): match[2] for match in map(STACK_NAME.search, names) if match}
    stacks = {word: {"enc": "encoder", "dec": "decoder"}[kind] for word, kind in matches.items()}
    if all(word == stack for word, stack in stacks.items()):
        return None
    renamed = {".".join(stacks.get(part, part) for part in name.split(".")): name for name in names}
    return {short: names[name] for short, name in renamed.items()} if len(renamed) == len(names) else None


def fit_family(family: str, names: dict[str, str], tensors: dict[str, Tensor]) -> Fit:
    """Find the tensors of a checkpoint that a family has, whatever stands before their names.

    Args:
        family: The family.
        names: Tensor name after renaming -> its name in the checkpoint.
        tensors: The checkpoint's tensors.
    """
    table = family_names(family)
    counts = _count_layers(table, names)
    chosen = {min(options, key=lambda prefix: _rank(prefix, options)) for options in counts.values()}
    accepted = sorted({ancestor for prefix in chosen for ancestor in _ancestors(prefix)}, key=len)
    fitting: dict[str, str] = {}  # name without prefixes -> name with them
    for name in names:
        prefix = next((prefix for prefix in accepted if table.has(name, prefix)), None)
        if prefix is not None:
            fitting.setdefault(name.removeprefix(prefix), name)
    copies = [
        _prefix_of_copy(prefix, min(options, key=lambda prefix: _rank(prefix, options)))
        for options in counts.values()
        for prefix, count in options.items()
        if prefix not in chosen and 2 * count >= max(options.values())
    ]
    matched, root = set(fitting.values()), _common_prefix(list(fitting.values()))
    left_out, model_names = [], {short: names[name] for short, name in fitting.items()}
    for name, original in names.items():
        if name in matched or name.startswith(tuple(copies)):
            continue
        is_inside = name.startswith(root) and not BESIDE.match(name.removeprefix(root))
        if not is_inside or "float" not in tensors[original].dtype or "mask" in name:
            left_out.append(original)
        else:
            short = name.removeprefix(next((prefix for prefix in reversed(accepted) if name.startswith(prefix)), ""))
            model_names[name if short in model_names else short] = original
    return Fit(
        family, model_names, frozenset(fitting), tuple(sorted(chosen)), tuple(left_out), tuple(sorted(set(copies)))
    )


def _count_layers(table: FamilyNames, names: Iterable[str]) -> dict[str, Counter[str]]:
    """Count the tensors of layers by stack and prefix."""
    counts: dict[str, Counter[str]] = {}
    for name in names:
        parts, folded = name.split("."), fold(name).split(".")
        for start in range(max(0, len(parts) - MAX_PARTS), len(parts)):
            if (stack := table.layers.get(".".join(folded[start:]))) is not None:
                counts.setdefault(stack, Counter())["".join(f"{part}." for part in parts[:start])] += 1
                break
    return counts


def _rank(prefix: str, counts: Counter[str]) -> tuple[int, bool, int, str]:
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
    while prefix:
        yield prefix
        prefix = prefix[: prefix[:-1].rfind(".") + 1]
    yield prefix


def _common_prefix(names: list[str]) -> str:
    """Return the modules that all names are in, such as "model."."""
    common = os.path.commonprefix(names)
    return common[: common.rfind(".") + 1]
