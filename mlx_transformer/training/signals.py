"""Signals that ask a program to end, kept until it has come to a good place."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether somebody asked to end, and by which signal; None so far."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def end(self) -> None:
        """End as the signal would have: KeyboardInterrupt of SIGINT, otherwise the status that a shell expects."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


@contextmanager
def defer_signals() -> Iterator[Interruption]:
    """Note the first signal to end; a second one of its kind acts at once. Elsewhere than in the main thread, none."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        interruption.signal = number
        signal.signal(number, former[signal.Signals(number)])

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield interruption
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
