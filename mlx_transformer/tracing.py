"""What keeps a model whole while its functions are traced."""

from collections.abc import Callable
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_map


def guarded(model: nn.Module, function: Callable) -> Callable:
    """A compiled function that gives the model its weights back if tracing breaks off, which leaves placeholders."""
    weights = tree_map(lambda array: array, model.parameters())

    def guard(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException:
            model.update(weights)
            raise

    return guard
