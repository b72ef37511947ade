"""What a command is doing, on standard error: loading, downloading, compiling, and a bar where the end is known.

Everything here is drawn below what the command prints, and only on a terminal; rich is imported with the first drawing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

Item = TypeVar("Item")
DELAY = 1.0  # seconds without anything new on the screen before an activity is shown


class Bar:
    """A progress bar with the time left, and below it as many figures as fit in the width of the terminal.

    Attributes:
        total: The count at the end.
        done: The count so far.
        unit: What is counted; empty for a share in per cent only.
        figures: Texts to show below the bar, the most important ones first.
    """

    def __init__(self, total: int, unit: str, done: int = 0) -> None:
        self.total, self.done, self.unit = total, done, unit
        self.figures: list[str] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Measure the time from now on, for example after a compilation that is no part of a step's time."""
        self._first, self._start = self.done, time.monotonic()

    def update(self, done: int, figures: Iterable[str] = ()) -> None:
        """Set the count and the figures; they are drawn a moment later."""
        self.done, self.figures = done, list(figures)

    def _time(self) -> str:
        """Return the time left, or at the end the time taken."""
        elapsed = time.monotonic() - self._start
        if self.done >= self.total:
            return format_duration(elapsed)
        rate = (self.done - self._first) / elapsed if elapsed else 0
        return f"{format_duration((self.total - self.done) / rate)} left" if rate else ""

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Yield the lines, for rich."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            line.add_column(no_wrap=True, ratio=ratio)
        count = f"{self.done:,}/{self.total:,} {self.unit}" if self.unit else ""
        share = f"{self.done / max(self.total, 1):.0%}"
        line.add_row(Text(count), ProgressBar(self.total, self.done), Text(share), Text(self._time(), style="dim"))
        yield line
        width, shown = options.max_width, ""
        for figure in self.figures:
            if len(shown) + 2 + len(figure) <= width:
                shown += f"  {figure}"
        if shown:
            yield Text(shown, style="dim", no_wrap=True)


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
        self._is_terminal = False  # asked once: while a tokenizer is loaded, standard error is held back in a pipe
        self._bar: Bar | None = None
        self._live: Any = None  # what is drawn
        self._guard = threading.RLock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch the log of the library and show activities until the end of the block."""
        library, ended = logging.getLogger("mlx_transformer"), threading.Event()
        level, self.plain, self._is_terminal = library.level, False, can_draw()
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
            self.print_line(f"Warning: {record.getMessage()}", err=True)

    def show(self, text: str) -> None:
        """Replace the activity."""
        with self._guard:
            self._text, self._start = text, time.monotonic()

    def clear(self) -> None:
        """End the activity and erase its line, before something else is shown; a bar stays."""
        with self._guard:
            self._text, self._quiet_since = "", time.monotonic()
            if self._bar is None:
                self._erase()

    def during(self, items: Iterable[Item], text: str) -> Iterator[Item]:
        """Show an activity after each item that arrives; waiting for the next one is none."""
        for item in items:
            self.show(text)
            yield item
        self.clear()

    @contextmanager
    def above(self) -> Iterator[None]:
        """Erase what is drawn while the block prints something."""
        with self._guard:
            self._erase()
            yield
            self._quiet_since = time.monotonic()
            if self._bar is not None:
                self._draw()

    def print_line(self, text: str, err: bool = False) -> None:
        """Print a line above what is drawn, on standard output or standard error, and flush."""
        with self.above():
            click.echo(text, err=err)

    @contextmanager
    def bar(self, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """Draw a bar until the end of the block, where its last state stays."""
        with self._guard:
            self._bar = bar = Bar(total, unit, done)
        try:
            yield bar
        finally:
            with self._guard:
                self._text = ""
                self._draw()
                if self._live is not None:
                    self._live.transient = False
                self._erase()
                self._bar = None

    def track(self, items: Iterable[Item], total: int, unit: str) -> Iterator[Item]:
        """Yield items, with a bar on a terminal."""
        with self.bar(total, unit) as bar:
            for count, item in enumerate(items, start=1):
                yield item
                bar.update(count)

    def _tick(self, ended: threading.Event) -> None:
        while not ended.wait(DELAY / 4):
            with self._guard:
                self._draw()

    def _draw(self) -> None:
        """Draw the activity, with its seconds, and the bar; without a terminal, print the activity once."""
        is_due = self._text and time.monotonic() - self._quiet_since >= DELAY
        if not self._is_terminal:
            if is_due:
                if self.plain:
                    self.print_line(self._text, err=True)
                self.clear()
            return
        if not is_due and self._bar is None:
            return
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        text = f"{self._text} ({time.monotonic() - self._start:.0f} s)" if is_due else ""
        parts: list[Any] = [Text(text, no_wrap=True, overflow="ellipsis")] if text else []
        parts += [] if self._bar is None else [self._bar]
        if self._live is None:
            console = terminal(sys.stderr)
            self._live = Live(
                console=console, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        self._live.update(Group(*parts), refresh=True)

    def _erase(self) -> None:
        """Erase what is drawn."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def can_draw() -> bool:
    """Whether standard error is a terminal on which lines can be drawn anew."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def terminal(stream: Any) -> Any:
    """Return rich's console on a terminal: texts are printed as they are, in colours unless NO_COLOR is set."""
    from rich.console import Console

    return Console(file=stream, force_terminal=True, markup=False, highlight=False, emoji=False, force_jupyter=False)


def format_duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def describe_first_batch(activity: str) -> str:
    """Return an activity that begins with a compilation, and what is known about how long that takes."""
    from mlx_transformer.storage import kernel_cache

    if sys.platform == "linux" and not kernel_cache.has_kernels(kernel_cache.temporary_folder()):
        return f"{activity}; the first run on this machine compiles MLX's kernels"
    return f"{activity}; the first batch compiles the model"


activity = Activity()  # of the one command that runs
