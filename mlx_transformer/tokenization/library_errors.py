"""One boundary for errors of the tokenizer libraries: whatever they raise becomes a ValueError of one line."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_transformer.messages import shorten

MAX_REASON = 120  # characters of a library's message
PANIC = "PanicException"  # of Rust; not an Exception, and its class cannot be imported
STANDARD_ERROR = 2


@contextmanager
def library_errors(rule: str, remedy: str = "copy it again") -> Iterator[None]:
    """Raise "`rule`: reason; `remedy`." as a ValueError in place of any error inside the block.

    The library reports a panic of Rust on standard error too; these lines are dropped as long as no other thread could
    write there.

    Raises:
        ValueError: If the block raises an Exception, or a panic.
    """
    try:
        with _standard_error_dropped():
            yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        reason = shorten(str(error), MAX_REASON).removesuffix(".")
        raise ValueError(f"{rule}: {reason}; {remedy}.") from None


@contextmanager
def _standard_error_dropped() -> Iterator[None]:
    """Redirect the descriptor of standard error to the null device, unless there are other threads."""
    try:
        copy = os.dup(STANDARD_ERROR) if threading.active_count() == 1 else None
    except OSError:  # it is closed
        copy = None
    if copy is None:
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STANDARD_ERROR)
    os.close(null)
    try:
        yield
    finally:
        os.dup2(copy, STANDARD_ERROR)
        os.close(copy)
