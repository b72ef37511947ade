"""Finds embeddings, positions and the output layer by shape, where a user's module has names of its own for them."""

import re
from collections.abc import Iterator

from mlx_transformer.weights.parameter_map import ParameterMap
from mlx_transformer.weights.recognition import Fit

POSITIONS = re.compile(r"pos|(^|[._])pe([._]|$)")
EMBEDDINGS = ("source_embedding", "target_embedding")
POSITION_MODULES = ("encoder.positions", "decoder.positions")
STACK_WORDS = {
    "source": re.compile(r"src|source|enc|input|(^|[._])in([._]|$)"),
    "target": re.compile(r"tgt|trg|target|dec|output|(^|[._])out([._]|$)"),
}


def find_tables_by_shape(names: ParameterMap, fit: Fit) -> dict[str, str]:
    """Return modules of the model that no name of the family gave -> tensors of the checkpoint that have their shape.

    Looks for "source_embedding", "target_embedding", "output", "encoder.positions" and "decoder.positions" among tables
    as wide as the model.
    """
    width = names.shape("encoder.layers.0.feed_forward.up_proj.weight")
    if width is None or len(width) != 2:
        return {}
    unused = list(_unused_tables(names, fit, width[1]))
    positions = [name for name in unused if POSITIONS.search(name)]
    tables = [name for name in unused if name not in positions and len(names.checkpoint.tensors[name].shape) == 2]
    assigned = _assign(positions, [module for module in POSITION_MODULES if names.find(f"{module}.weight") is None])
    renamed = [names.tensor_names[f"{m}.weight"] for m in POSITION_MODULES if f"{m}.weight" in names.tensor_names]
    if len(renamed) == 1:  # the other stack has the same table, unless it has one of its own
        assigned |= {m: renamed[0] for m in POSITION_MODULES if m not in assigned and names.find(f"{m}.weight") is None}
    if names.find("output.weight") is None:
        with_bias = [name for name in tables if _bias_of(name) in names.checkpoint.tensors]
        if len(with_bias) == 1:
            assigned["output"] = with_bias[0]
    tables = [name for name in tables if name not in assigned.values()]
    output = (
        names.checkpoint.tensors[assigned["output"]].shape if "output" in assigned else names.shape("output.weight")
    )
    has_output_size = [name for name in tables if names.checkpoint.tensors[name].shape == output]
    target = has_output_size[0] if len(has_output_size) == 1 else None
    return assigned | _assign(
        tables, [module for module in EMBEDDINGS if names.find(f"{module}.weight") is None], target
    )


def _assign(tables: list[str], modules: list[str], target: str | None = None) -> dict[str, str]:
    """Assign one table to all modules, or one to each of two; none if it is not clear which is the target's.

    Args:
        tables: The tables.
        modules: The modules of the source and of the target, or one of them.
        target: The table that is the target's by its size; otherwise words in the names of tables tell.
    """
    if len(tables) == 1:
        return dict.fromkeys(modules, tables[0])
    ranks = {name: 2 * (name == target) if target else _rank_as_target(name) for name in tables}
    if len(tables) == len(modules) == len(set(ranks.values())) == 2:
        return dict(zip(modules, sorted(tables, key=lambda name: ranks[name]), strict=True))
    return {}


def _unused_tables(names: ParameterMap, fit: Fit, dims: int) -> Iterator[str]:
    """Yield the tensors of shape (any, dims), besides axes of one, that have no other use."""
    unused = [original for short, original in fit.names.items() if short not in fit.fitting]
    for name in (*unused, *fit.left_out):
        shape = names.checkpoint.tensors[name].shape
        is_table = len(shape) in (2, 3) and shape[-1] == dims and (len(shape) == 2 or 1 in shape[:2])
        if is_table and not name.startswith(fit.copies):
            yield name


def _bias_of(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def _rank_as_target(name: str) -> int:
    """Return 0 for names of a source's table, 2 for those of a target's, 1 for others."""
    source, target = (bool(words.search(name)) for words in STACK_WORDS.values())
    return 1 + target - source
