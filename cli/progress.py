"""What a command is doing, on standard error, while it has nothing else to show: loading, downloading, compiling."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
DELAY = 1.0  # seconds without anything new on the screen before an activity is shown


class Activity(logging.Handler):
    """Shows the activity after a second without anything else: on a terminal as a line that is erased at its end.

    The library names its activities by log entries of level INFO. Entries of higher levels are printed.

    Attributes:
        plain: Whether activities are printed as lines where standard error is no terminal.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.plain = False
        self._text = ""
        self._start = self._quiet_since = 0.0
        self._bar: Any = None
        self._guard = threading.RLock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch the log of the library and show activities until the end of the block."""
        library, ended = logging.getLogger("mlx_transformer"), threading.Event()
        level, self.plain = library.level, False
        self.clear()
        self.show("Starting")
        library.setLevel(logging.INFO)
        library.addHandler(self)
        ticker = threading.Thread(target=self._tick, args=(ended,), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            ended.set()
            self.clear()
            ticker.join()
            library.removeHandler(self)
            library.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Show an activity of the library; print a warning above it."""
        if record.levelno == logging.INFO:
            self.show(record.getMessage())
        else:
            print_line(f"Warning: {record.getMessage()}")

    def show(self, text: str) -> None:
        """Replace the activity."""
        with self._guard:
            self._text, self._start = text, time.monotonic()

    def clear(self) -> None:
        """End the activity and erase its line, before something else is shown."""
        with self._guard:
            self._text, self._quiet_since = "", time.monotonic()
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    def during(self, items: Iterable[Item], text: str) -> Iterator[Item]:
        """Show an activity after each item that arrives; waiting for the next one is none."""
        for item in items:
            self.show(text)
            yield item
        self.clear()

    def _tick(self, ended: threading.Event) -> None:
        while not ended.wait(DELAY / 4):
            with self._guard:
                if self._text and time.monotonic() - self._quiet_since >= DELAY:
                    self._draw()

    def _draw(self) -> None:
        """Draw the line of the activity anew, with its seconds; without a terminal, print it once."""
        if not sys.stderr.isatty():
            if self.plain:
                print_line(self._text)
            self.clear()
            return
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(bar_format="{desc}", leave=False, file=sys.stderr)
        self._bar.set_description_str(f"{self._text} ({time.monotonic() - self._start:.0f} s)")


def print_line(text: str) -> None:
    """Print a line on standard error, above any progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


activity = Activity()  # of the one command that runs
