"""What a conversion assumes because nothing in the checkpoint shows it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.weights.embedding_search import find_tables_by_shape
from mlx_transformer.weights.families.spec import STACKS, Family
from mlx_transformer.weights.parameter_map import ParameterMap
from mlx_transformer.weights.recognition import Fit


class Assumption(NamedTuple):
    """A setting of a model that nothing in its checkpoint shows.

    Attributes:
        setting: A field of ModelConfig or StackConfig, or a module of the model.
        value: The value that was assumed.
        reason: Why.
        change: The command that changes it.
    """

    setting: str
    value: Any
    reason: str
    change: str


def find_assumptions(
    family: Family,
    defaults: dict[str, Any],
    names: ParameterMap,
    config: ModelConfig,
    layers: Sequence[dict[str, Any]],
) -> tuple[Assumption, ...]:
    """Return the defaults of a family that no layer of settings determines, and what is computed without a table."""
    assumptions = []
    for name, value in defaults.items():
        # A field of a stack is determined by one for both stacks, or by one for each of them.
        spellings = {name, name.rpartition(".")[2]}
        if not any(spellings & layer.keys() or all(f"{stack}.{name}" in layer for stack in STACKS) for layer in layers):
            assumptions.append(Assumption(name, value, f"as in {family.defaults_from}", f"convert --set {name}=..."))
    for stack in STACKS if defaults else ():
        if vars(config)[stack].positions == "sinusoidal" and names.find(f"{stack}.positions.weight") is None:
            setting = f"{stack}.positions"
            reason = "the file has no table of positions"
            assumptions.append(Assumption(setting, "sinusoidal", reason, f"convert --set {setting}=none"))
    return tuple(assumptions)


def add_tables_by_shape(names: ParameterMap, fit: Fit) -> list[Assumption]:
    """Find embeddings and the output layer by their shapes where names do not tell, and return what was assumed."""
    modules = find_tables_by_shape(names, fit)
    for module, tensor in modules.items():
        names.tensor_names[f"{module}.weight"] = tensor
        if module == "output":
            names.tensor_names["output.bias"] = tensor.removesuffix("weight") + "bias"
    reason = "an unused table as wide as the model"
    return [
        Assumption(module, tensor, reason, f"convert --rename 'NAME={module}.weight'")
        for module, tensor in modules.items()
    ]
