"""Recognises checkpoints by structure: which family their tensors fit, and what stands before their names."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from mlx_transformer.messages import short_repr, similar_names
from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.families.other_models import UNSUPPORTED_MODEL_TYPES, describe_other_model
from mlx_transformer.weights.formats.checkpoint import Checkpoint, Tensor
from mlx_transformer.weights.formats.state_dicts import AVERAGED, BESIDE_MODEL
from mlx_transformer.weights.parameter_map import ConversionError, expand_layers

logger = logging.getLogger(__name__)

# Parts of names that torch.compile, DataParallel and FSDP insert anywhere.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# The name of a tensor in a layer of a stack that may have other names, such as net.enc.blocks.3.norm1.weight.
STACK_LAYER = re.compile(
    r"(?P<before>(?:\w+\.)*?)(?P<word>(?:\w+_)?(?P<kind>enc|dec)(?:oder)?)(?P<inner>(?:\.[a-z_]+)*?)"
    r"[._](?:layers?|blocks?|blks|stack|layer_stack)?\.?(?P<rest>\d+\..+)"
)
STACKS_BY_WORD = {"enc": "encoder", "dec": "decoder"}
LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|(?<=block)\d+(?=\.)")
MAX_PARTS = 12  # of a name after its prefix, and of a prefix within another
MAX_COPIES = 16
MAX_LENGTH = 120  # characters of a name in which other names of stacks are looked for
OWN_NAMES = "torch"  # the family of checkpoints whose tensors are named as the model's own parameters
# Ends of the names of transformers' classes without a decoder; T5Stack is an encoder or a decoder.
ENCODER_CLASSES = ("Encoder", "EncoderModel", "T5Stack")
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
        stacks: The stacks that have layers.
    """

    family: str
    names: dict[str, str]
    fitting: frozenset[str]
    prefixes: tuple[str, ...]
    left_out: tuple[str, ...]
    copies: tuple[str, ...]
    stacks: frozenset[str]


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
    """Return the names of a family's tensors without numbers; one family also has those of the model's parameters."""
    layers: dict[str, str] = {}
    others: set[str] = set()
    for parameter, sources in expand_layers(FAMILIES[family].names, layers=1).items():
        names = {name for source in sources for name in (source.name, source.factor) if name}
        if family == OWN_NAMES:
            names.add(parameter)
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
    spellings = {name: name for name in names}
    for pattern in ignore:
        regex = _compile(pattern, "ignore must be")
        kept = {name: spelling for name, spelling in spellings.items() if not regex.search(name)}
        if len(kept) == len(spellings):
            logger.warning("convert --ignore %r matches no tensor.", pattern)
        spellings = kept
    for pattern, changed in renaming_steps(spellings, rename):
        if not changed:
            logger.warning("convert --rename %r matches no tensor.", pattern)
        spellings |= changed
    renamed: dict[str, str] = {}
    for name, spelling in spellings.items():
        short = ".".join(part for part in spelling.split(".") if part not in WRAPPERS)
        if short in renamed:
            raise ConversionError(f"Tensor names must be distinct: {renamed[short]} and {name} both become {short}.")
        renamed[short] = name
    return renamed


def renaming_steps(names: Iterable[str], rename: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each regular expression of a renaming, with the tensors that it renames and their new names, in turn."""
    spellings = {name: name for name in names}
    for pattern, text in rename.items():
        regex = _compile(pattern, "rename must map")
        try:
            changed = {name: regex.sub(text, old) for name, old in spellings.items() if regex.search(old)}
        except (re.error, IndexError) as error:
            raise ValueError(f"rename must map regular expressions: {pattern!r} is not valid, {error}.") from None
        spellings |= changed
        yield pattern, changed


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
    """Rename layers of stacks with other names to encoder.layers.N and decoder.layers.N; None if there are none.

    Examples are transformer_encoder.layers.N, dec.N, enc_layers.N and encoder.transformer.layers.N. Tensors beside the
    layers of a stack, such as a norm, move with them.
    """
    short = (name for name in names if len(name) <= MAX_LENGTH)  # long names could take quadratic time
    layers = {name: match for name in short if (match := STACK_LAYER.match(name)) is not None}
    stacks = {
        f"{match['before']}{match['word']}{match['inner']}.": f"{match['before']}{STACKS_BY_WORD[match['kind']]}."
        for match in layers.values()
    }
    renamed: dict[str, str] = {}
    for name, original in names.items():
        if (layer := layers.get(name)) is not None:
            new = f"{layer['before']}{STACKS_BY_WORD[layer['kind']]}.layers.{layer['rest']}"
        else:
            module = next((module for module in stacks if name.startswith(module)), "")
            new = stacks.get(module, "") + name.removeprefix(module)
        renamed[new] = original
    return renamed if len(renamed) == len(names) and renamed.keys() != names.keys() else None


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
    sizes = Counter(size for name in matched for size in tensors[names[name]].shape)
    width = max(sizes, key=lambda size: sizes[size], default=0)  # of the model
    left_out, model_names = [], {short: names[name] for short, name in fitting.items()}
    for name, original in names.items():
        if name in matched or name.startswith(copies):
            continue
        if is_beside(name.removeprefix(root), tensors[original], width):
            left_out.append(original)
        else:
            short = name.removeprefix(next((prefix for prefix in reversed(accepted) if name.startswith(prefix)), ""))
            model_names[name if short in model_names else short] = original
    prefixes = tuple(sorted(set(chosen.values())))
    return Fit(family, model_names, frozenset(fitting), prefixes, tuple(left_out), copies, frozenset(stacks))


def is_beside(name: str, tensor: Tensor, width: int) -> bool:
    """Return whether a tensor that does not fit is none of the model's: a counter, a mask, or of a criterion.

    Other tensors may change what the model computes, also those of a norm that is called a mask.
    """
    shape = [size for size in tensor.shape if size != 1]
    is_mask = "mask" in name and len(shape) == 2 and shape[0] == shape[1]
    return "float" not in tensor.dtype or is_mask or (_has_name_of_other(name) and width not in shape)


def _has_name_of_other(name: str) -> bool:
    """Return whether a tensor is in a module with a name such as criterion or ema."""
    module, dot, _ = name.partition(".")
    return bool(dot and (BESIDE_MODEL.search(module) or AVERAGED.search(module)))


def count_layers(names: Iterable[str]) -> LayerCounts:
    """Count the tensors of layers that each family has: by family, by stack and by prefix."""
    counts: LayerCounts = {}
    index = layer_index()
    for name in names:
        if name.count(".") > 2 * MAX_PARTS:
            continue  # no family has such names, whatever stands before them
        parts, folded = name.split("."), fold(name).split(".")
        counted: set[str] = set()
        for start in range(max(0, len(parts) - MAX_PARTS), len(parts)):
            for family, stack in index.get(".".join(folded[start:]), {}).items():
                if family not in counted:  # the longest name counts
                    counted.add(family)
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
        fit = fit_family(named, names, checkpoint.tensors)
        if fit.stacks or not is_encoder_class(settings):
            return fit
        # An encoder that was saved by itself has no module for it, as that of SONAR.
        return fit_family(named, {f"encoder.{name}": original for name, original in names.items()}, checkpoint.tensors)
    fits = fit_families(names, checkpoint.tensors)
    best = [fit.family for fit in fits if len(fit.fitting) == len(fits[0].fitting)]
    if not fits or FAMILIES[best[0]].model_types:
        check_model(names, names.values(), checkpoint)
    if not fits:
        raise ValueError(
            "The family cannot be detected from config.json or the names of tensors: list these by info --tensors, and "
            "rename them by convert --rename to the model's own (docs/converting.md), or to those of a family "
            "(docs/models.md)."
        )
    if FAMILIES[best[0]].model_types:
        raise ValueError(
            f"A checkpoint of {' or '.join(best)}, as this one by its tensors, needs its config.json: put it beside "
            "the weights, or convert the repository by its name on the hub."
        )
    return fits[0]


def is_encoder_class(settings: dict[str, Any]) -> bool:
    """Return whether a config.json names a class without a decoder."""
    classes = settings.get("architectures")
    return isinstance(classes, list) and any(str(name).endswith(ENCODER_CLASSES) for name in classes)


def is_encoder_alone(fit: Fit, settings: dict[str, Any], embeds: bool = False) -> bool:
    """Return whether a checkpoint of transformers is meant to have no decoder, rather than to lack its tensors.

    Args:
        fit: How it fits its family.
        settings: Its config.json.
        embeds: Whether it is in a folder of sentence-transformers.
    """
    is_of_library = bool(FAMILIES[fit.family].model_types)
    return is_of_library and fit.stacks == {"encoder"} and (embeds or is_encoder_class(settings))


def check_model(
    names: dict[str, str], file_names: Iterable[str], checkpoint: Checkpoint, *, may_be_encoder: bool = False
) -> None:
    """Raise ConversionError if a checkpoint is no complete encoder-decoder Transformer.

    Args:
        names: The model's tensors: name after renaming -> name in the checkpoint.
        file_names: The names in the checkpoint of all tensors.
        checkpoint: The open checkpoint.
        may_be_encoder: Whether an encoder without a decoder will do.
    """
    shapes = {name: checkpoint.tensors[original].shape for name, original in names.items()}
    if message := describe_other_model(shapes, file_names, may_be_encoder):
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
    raise ValueError(
        f"model_type {short_repr(model_type)} of config.json is not supported: docs/models.md lists the families that "
        f"are. {similar_names(model_type, sorted(FAMILIES))}"
    )
