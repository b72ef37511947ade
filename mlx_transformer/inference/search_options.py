"""The search of a call: the model's own, changed by keyword arguments."""

import inspect
from collections.abc import Callable
from typing import Any

from mlx_transformer.config.search import SearchConfig, SearchOptions, change_search
from mlx_transformer.decoding.inputs import check_search
from mlx_transformer.messages import similar_names
from mlx_transformer.model.transformer import Transformer

# What other libraries call the fields of a search.
OTHER_NAMES = {
    "do_sample": "temperature",
    "max_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_beams": "beam_size",
    "num_return_sequences": "num_hypotheses",
    "temp": "temperature",
}


def make_search(
    function: Callable[..., Any], model: Transformer, search: SearchConfig | None, options: SearchOptions
) -> SearchConfig:
    """Return the search of a call: the given one, or the model's own, changed by keyword arguments.

    Raises:
        TypeError: If a keyword argument of the function is unknown, with similar names.
        ValueError: If the fields of the search do not fit together, or the model.
    """
    for name in options.keys() - SearchOptions.__annotations__.keys():
        names = [*SearchOptions.__annotations__, *inspect.signature(function).parameters]
        similar = f"Use {OTHER_NAMES[name]}." if name in OTHER_NAMES else similar_names(name, names)
        raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}. {similar}")
    search = search or model.search_defaults
    check_search(search, model.config)
    search = change_search(search, **options)
    check_search(search, model.config)
    return search
