"""Checks the types of arguments where an app calls the library, so that a mistake is named there and not far inside."""

import functools
import inspect
import numbers
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from mlx_transformer.config.search import SearchConfig
from mlx_transformer.messages import short_repr

CHECKED_ELSEWHERE = {("source", str), ("target", str | None), ("search", SearchConfig | None)}
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# Annotation -> what is accepted in its place.
ACCEPTED = {int: numbers.Integral, float: numbers.Real, Path: os.PathLike}


def check_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a public function that raises TypeError for an argument that is not of its annotated class.

    Left to the function are texts, arrays, searches, and arguments with other annotations than classes.
    """
    signature = inspect.signature(function)
    names = [name for name, parameter in signature.parameters.items() if parameter.kind not in VARIADIC]

    @functools.cache
    def classes() -> dict[str, tuple[type, ...]]:
        kinds = get_type_hints(function)
        return {
            name: _classes(kinds[name])
            for name in names
            if name != "text" and (name, kinds[name]) not in CHECKED_ELSEWHERE
        }

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        try:
            bound = signature.bind(*arguments, **options).arguments
        except TypeError:  # the function itself names what is missing or unknown
            bound = {}
        for name, value in bound.items():
            expected = classes().get(name, ())
            if expected and not isinstance(value, tuple(ACCEPTED.get(kind, kind) for kind in expected)):
                raise TypeError(_describe(name, expected, value, function.__name__))
        return function(*arguments, **options)

    return checked


def _classes(kind: Any) -> tuple[type, ...]:
    """Return the classes of an annotation; none if it has others."""
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    parts = tuple(os.PathLike if get_origin(part) is os.PathLike else part for part in parts)
    is_checkable = all(isinstance(part, type) and part is not Any and get_origin(part) is None for part in parts)
    return parts if is_checkable and not any(part.__module__ == "mlx.core" for part in parts) else ()


def _describe(name: str, expected: tuple[type, ...], value: object, function: str) -> str:
    names = ["None" if kind is types.NoneType else kind.__name__ for kind in expected]
    is_plain = type(value) in (str, bytes, bool, int, float, list, tuple, dict, types.NoneType)
    found = short_repr(value) if is_plain else f"a {type(value).__name__}"
    return f"{name} must be {' or '.join(names)}, not {found}: see help(mlx_transformer.{function})."
