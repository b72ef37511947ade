"""Deferred SIGINT and SIGTERM, so that training stops after the current step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """The signal that asked the program to stop; None if there was none."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def raise_if_signalled(self) -> None:
        """Exit as the signal would have: KeyboardInterrupt for SIGINT, otherwise the exit status that shells use."""
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
