"""Errors of single lines: found by halving a batch, returned or raised."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import mlx.core as mx

from mlx_transformer.tokenization.texts import TextError

OUT_OF_MEMORY = ("malloc", "unable to allocate", "out of memory", "insufficient memory")  # on CPU, Metal and CUDA
Item = TypeVar("Item")
Result = TypeVar("Result")


def bisect_on_error(
    run: Callable[[list[Item]], Iterable[Result]], items: list[Item], failed: Callable[[Item, str], Result]
) -> list[Result]:
    """Run a batch; if that fails, run its halves, so that the error of one item does not cost the results of others.

    Args:
        run: Returns the result of each item of a batch.
        items: The batch.
        failed: Returns the result of an item that fails on its own; errors that do not concern an item are raised.
    """
    try:
        return list(run(items))
    except Exception as error:
        message = error_of_line(error)
        if message is None:
            raise
    if len(items) == 1:
        return [failed(items[0], message)]
    mx.clear_cache()
    middle = len(items) // 2
    return [result for part in (items[:middle], items[middle:]) for result in bisect_on_error(run, part, failed)]


def raise_first_error(
    results: Iterable[Result], error_of: Callable[[Result], str | None], noun: str, first: int = 1
) -> Iterator[Result]:
    """Yield results, numbered from `first`; raise the first error among them, as a ValueError with its number."""
    for number, result in enumerate(results, start=first):
        if error := error_of(result):
            raise ValueError(f"{noun} {number}: {error}")
        yield result


def error_of_line(error: Exception) -> str | None:
    """Return why a line has no result; None for an error that does not concern the line, such as a bug."""
    if is_out_of_memory(error):
        return "It does not fit in memory: shorten or split it."
    return str(error) if isinstance(error, TextError) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or MLX says that memory could not be allocated."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)
    )
