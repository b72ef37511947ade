"""One boundary for errors of the tokenizer libraries: whatever they raise becomes a ValueError of one line."""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mlx_transformer.messages import shorten

MAX_REASON = 120  # characters of a library's message
PANIC = "PanicException"  # of Rust; not an Exception, and its class cannot be imported
PANIC_REPORT = re.compile(rb"^\n?thread '", re.MULTILINE)  # how the report of a panic begins
MAX_REPORT = 2**20
STANDARD_ERROR = 2
_LOCK = threading.Lock()


@contextmanager
def library_errors(rule: str, remedy: str = "copy it again", kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Raise "`rule`: reason; `remedy`." as a ValueError, or of another kind, in place of any error inside the block.

    The report of a panic of Rust on standard error is dropped, unless several threads use the libraries.

    Raises:
        ValueError: If the block raises an Exception, or a panic.
    """
    try:
        with _panic_report_dropped():
            yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        reason = shorten(str(error), MAX_REASON).removesuffix(".")
        raise kind(f"{rule}: {reason}; {remedy}.") from None


@contextmanager
def _panic_report_dropped() -> Iterator[None]:
    """Hold back standard error during the block, and write it afterwards without the report of a panic.

    The descriptor is shared by all threads, so nothing is held back if there are others than daemon threads, such as
    that of a progress bar.
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if not all(thread.daemon for thread in others) or not _is_open(STANDARD_ERROR) or not _LOCK.acquire(blocking=False):
        yield
        return
    panicked = False
    try:
        with _held_back(STANDARD_ERROR) as read_held_back:
            try:
                yield
            except BaseException as error:
                panicked = type(error).__name__ == PANIC
                raise
            finally:
                text = read_held_back()
                os.write(STANDARD_ERROR, PANIC_REPORT.split(text)[0] if panicked else text)
    finally:
        _LOCK.release()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextmanager
def _held_back(descriptor: int) -> Iterator[Callable[[], bytes]]:
    """Redirect a descriptor into a pipe; the function yielded ends this and returns what was written."""
    copy = os.dup(descriptor)
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)  # a report longer than the pipe is cut
    os.dup2(writing, descriptor)
    os.close(writing)

    def restore() -> bytes:
        os.dup2(copy, descriptor)
        with suppress(BlockingIOError):
            return os.read(reading, MAX_REPORT)
        return b""

    try:
        yield restore
    finally:
        os.close(copy)
        os.close(reading)
