"""Requests to stop training after the current step: SIGINT and SIGTERM, which are deferred, and callbacks."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

import numpy as np

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Report = TypeVar("Report")


class Interruption:
    """What asked the program to stop.

    Attributes:
        signal: The signal, if there was one.
        error: The first exception of a callback, if there was one.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.error: Exception | None = None
        self._cancelled = False

    @property
    def requested(self) -> bool:
        """Whether anything asked to stop."""
        return self._cancelled or self.signal is not None or self.error is not None

    def call(self, callback: Callable[[Report], bool | None], report: Report) -> None:
        """Call a callback, which asks to stop by returning False or by an exception, after which none is called."""
        if self.error is not None:
            return
        try:
            result = callback(report)
        except Exception as error:
            self.error = error
        else:
            self._cancelled |= isinstance(result, bool | np.bool_) and not result

    def raise_error(self) -> None:
        """Raise the exception of a callback, or exit as the signal would have.

        That is KeyboardInterrupt for SIGINT, and otherwise the exit status that shells use.
        """
        if self.error is not None:
            raise self.error
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


@contextmanager
def defer_signals() -> Iterator[Interruption]:
    """Record the first SIGINT or SIGTERM instead of acting on it; a second one of the same kind acts at once.

    Outside the main thread, where Python cannot set signal handlers, this does nothing.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def record(number: int, frame: FrameType | None) -> None:
        interruption.signal = number
        signal.signal(number, previous[signal.Signals(number)])

    for number in SIGNALS:
        signal.signal(number, record)
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
