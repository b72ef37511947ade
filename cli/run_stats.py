"""What a command says of its own work: sentences, tokens, seconds and memory; and a limit for the memory of MLX."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import click

from mlx_transformer.cli.results import LineResult

UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B?", re.IGNORECASE)


class MemorySize(click.ParamType[int]):
    """A number of bytes with its unit: 512MB, 1.5GB, 4GiB."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See `click.ParamType`."""
        found = SIZE.fullmatch(str(value).strip())
        size = float(found[1]) * (1024 if found[3] else 1000) ** UNITS[found[2].upper()] if found else 0
        if size < 1:
            self.fail(f"{value!r} must be a number above 0 with its unit, such as 512MB or 4GB.", param, ctx)
        return int(size)


def limit_memory(context: click.Context, parameter: click.Parameter, size: int | None) -> None:
    """Let MLX hold no more than it needs beyond a size; what it keeps for reuse may shrink, but never grow."""
    if size is None:
        return
    import mlx.core as mx

    mx.set_memory_limit(size)
    if (before := mx.set_cache_limit(size)) < size:
        mx.set_cache_limit(before)


memory_option = click.option(
    "--memory-limit",
    type=MemorySize(),
    metavar="SIZE",
    callback=limit_memory,
    expose_value=False,
    help="Memory of MLX (4GB) beyond which it frees what it keeps for reuse and lets running work end before it starts "
    "more. Weights and a batch that need more get it: lower --batch-tokens.",
)
verbose_option = click.option("--verbose", is_flag=True, help="At the end, tell speed and memory on standard error.")


@dataclass
class RunStats:
    """Counts answers, and seconds from when it is made."""

    start: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    sentences: int = 0
    tokens: int = 0

    def watch(self, answers: Iterable[LineResult]) -> Iterator[LineResult]:
        """Count answers as they pass."""
        for answer in answers:
            self.first = self.first or time.perf_counter() - self.start
            sources = (
                [answer.line.source.text] if answer.sentences is None else [source for source, _ in answer.sentences]
            )
            self.sentences += sum(bool(source.strip()) for source in sources)
            self.tokens += sum(len(hypothesis.ids) for hypothesis in answer.hypotheses)
            yield answer

    def lines(self) -> str:
        """Two lines for a reader."""
        import mlx.core as mx

        seconds = time.perf_counter() - self.start
        active, peak = (f"{size / 1e6:,.0f} MB" for size in (mx.get_active_memory(), mx.get_peak_memory()))
        return (
            f"{self.sentences:,} sentences, {self.tokens:,} tokens in {seconds:.2f} s ({self.tokens / seconds:,.0f} "
            f"tokens a second), the first answer after {self.first:.2f} s.\n"
            f"MLX holds {active} of memory now and held {peak} at its peak."
        )
