"""Conversion of frozen dataclasses to and from JSON data, with type checks of every field."""

import dataclasses
import math
import re
import types
from collections.abc import Collection, Iterable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from mlx_transformer.messages import short_names, short_repr, similar_names

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain data for JSON."""
    return dataclasses.asdict(config)


def from_dict(kind: type[Config], data: Any, name: str) -> Config:
    """Create a config of class `kind` from JSON data; `name` says in error messages where the data is from.

    Raises:
        ValueError: If a field is unknown, missing or of the wrong type.
    """
    if not isinstance(data, dict):
        raise ValueError(f"{name} must be an object with fields, not {short_repr(data)}.")
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    check_field_names(fields, data, name)
    none = (dataclasses.MISSING, dataclasses.MISSING)
    required = {key for key, item in fields.items() if (item.default, item.default_factory) == none}
    if missing := sorted(required - data.keys()):
        raise ValueError(f"{name} lacks the fields {', '.join(missing)}.")
    values = dict(data)
    for key, value in data.items():
        kinds = get_args(fields[key].type) or (fields[key].type,)
        nested: Any = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if nested and get_origin(fields[key].type) is tuple and isinstance(value, list | tuple):
            values[key] = tuple(from_dict(nested, item, f"{name}: {key}") for item in value)
        elif nested and value is not None:
            values[key] = from_dict(nested, value, f"{name}: {key}")
        else:
            values[key] = _to_tuples(value)
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def check_field_names(fields: Collection[str], data: dict[str, Any], name: str) -> None:
    """Raise ValueError if data from `name` has an unknown field."""
    if unknown := sorted(data.keys() - set(fields)):
        raise ValueError(f"{name} has unknown fields: {short_names(unknown)}. {similar_names(unknown[0], fields)}")


def _to_tuples(value: Any) -> Any:
    """Convert JSON lists to tuples."""
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value


def _has_type(value: Any, kind: Any) -> bool:
    """Whether `value` has the annotated type `kind`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_has_type(value, arg) for arg in args)
    if origin is Literal:
        return type(value) is str and value in args
    if origin is dict:
        return isinstance(value, dict) and all(
            _has_type(k, args[0]) and _has_type(v, args[1]) for k, v in value.items()
        )
    if origin in (tuple, list, Iterable):
        return isinstance(value, origin) and all(_has_type(item, args[0]) for item in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def check_types(config: Any) -> None:
    """Raise ValueError for a field whose value does not have its annotated type."""
    for item in dataclasses.fields(config):
        check_type(item.name, vars(config)[item.name], item.type)


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError for a value that does not have the type `kind`; the error calls it `name`."""
    if not _has_type(value, kind):
        if get_origin(kind) is Literal:
            expected = "one of " + ", ".join(map(repr, get_args(kind)))
        else:
            expected = kind.__name__ if isinstance(kind, type) else re.sub(r"(typing|pathlib)\.", "", str(kind))
        raise ValueError(f"{name} must be {expected}, not {short_repr(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}.")
    if not _fits_64_bits(value):
        raise ValueError(f"{name} must be a number below 2**63, not {short_repr(value)}.")


def _fits_64_bits(value: Any) -> bool:
    """Whether all integers in a value fit in 64 bits; others would overflow wherever they are computed with."""
    if isinstance(value, dict | tuple | list):
        return all(map(_fits_64_bits, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def check_at_least(config: Any, limits: dict[str, int]) -> None:
    """Raise ValueError for a named field below its limit."""
    for name, limit in limits.items():
        if vars(config)[name] < limit:
            raise ValueError(f"{name} must be at least {limit}, not {short_repr(vars(config)[name])}.")


def check_at_most(config: Any, limits: dict[str, int]) -> None:
    """Raise ValueError for a named field above its limit."""
    for name, limit in limits.items():
        if (vars(config)[name] or 0) > limit:
            raise ValueError(f"{name} must be at most {limit}, not {short_repr(vars(config)[name])}.")


def check_positive(config: Any, *names: str) -> None:
    """Raise ValueError for a named field that is not positive."""
    for name in names:
        if vars(config)[name] <= 0:
            raise ValueError(f"{name} must be more than 0, not {vars(config)[name]}.")


def check_shares(config: Any, *names: str) -> None:
    """Raise ValueError for a named field that is not at least 0 and below 1."""
    for name in names:
        if not 0 <= vars(config)[name] < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, not {vars(config)[name]}.")


def check_padding(pad_id: int, eos_id: int) -> None:
    """Raise ValueError for a padding token that is the end token."""
    if pad_id == eos_id:
        raise ValueError(
            f"pad_id must differ from eos_id, or no target could end: both are {eos_id}; set pad_id to a token that no "
            "text contains."
        )
