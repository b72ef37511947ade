"""Names in transformers of a model's parameters, by the tables of the families that convert its checkpoints."""

from collections.abc import Collection, Iterable

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.weights.families.huggingface import HUGGINGFACE_FAMILIES, T5_NAMES
from mlx_transformer.weights.families.spec import Family
from mlx_transformer.weights.parameter_map import TensorSource, expand_layers

WRAPPER = "model."  # before the names of most models of transformers, but not of their output layers
ENCODER = "encoder."  # before the names of encoders alone of T5, but not of others
# The parameters of which a model may have one for several; the first name of each in the tables is its own.
SOURCE, TARGET, OUTPUT = "source_embedding.weight", "target_embedding.weight", "output.weight"
TABLES = (SOURCE, TARGET, OUTPUT)
Shapes = dict[str, tuple[int, ...]]  # parameter -> its shape


def parameters_by_tensor(shapes: Shapes) -> dict[str, list[TensorSource]]:
    """Return tensor in transformers -> the parameters of a model that it may hold, with the function to apply.

    Embeddings and the output layer are there also if the model has them tied, each under its own name only.
    """
    tables = TABLES if has_decoder(shapes) else (SOURCE,)
    parameters: dict[str, list[TensorSource]] = {}
    for family in HUGGINGFACE_FAMILIES.values():
        for parameter, sources in expand_layers(family.names, num_layers(shapes)).items():
            if parameter in shapes or parameter in tables:
                for source in sources[:1] if parameter in tables else sources:
                    parameters.setdefault(source.name, []).append(source._replace(name=parameter))
    return parameters


def has_decoder(shapes: Shapes) -> bool:
    """Return whether a model is no encoder alone."""
    return any(name.startswith("decoder.") for name in shapes)


def num_layers(shapes: Shapes) -> int:
    """Return the number of layers of the deeper stack."""
    return 1 + max(int(name.split(".")[2]) for name in shapes if ".layers." in name)


def table_names(config: ModelConfig) -> dict[str, list[str]]:
    """Return parameter -> the embeddings and output layers that a model has it for, under the names in TABLES."""
    names = {SOURCE: [SOURCE]}
    if config.decoder is not None:
        target = SOURCE if config.share_embeddings else TARGET
        names.setdefault(target, []).append(TARGET)
        names.setdefault(target if config.tie_output else OUTPUT, []).append(OUTPUT)
    return names


def tensors_by_parameter(config: ModelConfig, shapes: Shapes) -> dict[str, list[str]]:
    """Return parameter -> its tensors in transformers, of which embeddings that are tied have several.

    Parameters that are stored in another form there, such as tables of positions, are left out.

    Raises:
        ValueError: If transformers has no model of this kind.
    """
    family = next((family for family in HUGGINGFACE_FAMILIES.values() if _has_architecture(config, family)), None)
    if family is None:
        raise ValueError(
            "An adapter of PEFT must belong to a model of transformers, which has none with the norms and positions of "
            "this one: save it by save_adapter."
        )
    sources = expand_layers(family.names, num_layers(shapes))
    tensors: dict[str, list[str]] = {}
    for parameter, names in ({name: [name] for name in shapes} | table_names(config)).items():
        for name in names:
            if plain := [source.name for source in sources.get(name, []) if source.function is None]:
                # Up-projections have two names: the first one is that beside a gate.
                tensor = plain[-1 if name.endswith("up_proj.weight") and not config.gated_mlp else 0]
                tensors.setdefault(parameter, []).append(_with_wrapper(tensor, name, family, config))
    return tensors


def _with_wrapper(tensor: str, parameter: str, family: Family, config: ModelConfig) -> str:
    """Return the name of a tensor in a whole model of a family, or in an encoder alone."""
    if family.names is T5_NAMES or parameter == OUTPUT:
        return tensor
    return tensor.removeprefix(ENCODER) if config.decoder is None else WRAPPER + tensor


def _has_architecture(config: ModelConfig, family: Family) -> bool:
    """Return whether a model has the norms and positions of a family."""
    values = {"norm": "layer", "positions": "sinusoidal"} | family.constants
    return values["norm"] == config.norm and all(
        values[name] == vars(stack)[name]
        for name in ("norm_first", "final_norm", "positions")
        for stack in config.stacks.values()
    )


def shortest_names(names: Collection[str], all_names: Iterable[str]) -> list[str]:
    """Return the last parts of some modules' names if no other module has these, or else the names."""
    ends = {name.rpartition(".")[2] for name in names}
    others = any(name.rpartition(".")[2] in ends and name not in names for name in all_names)
    return sorted(names if others else ends)
