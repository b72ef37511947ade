"""Statistics of a run (sentences, tokens, seconds, memory), and a memory limit for MLX."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import click

from mlx_transformer import blas
from mlx_transformer.cli.progress import activity
from mlx_transformer.cli.results import LineResult
from mlx_transformer.tokenization.normalization import is_blank

MAX_NAMES = 20  # of lines, in the report
UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B?", re.IGNORECASE)


class MemorySize(click.ParamType):
    """Bytes with a unit: 512MB, 1.5GB, 4GiB."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See `click.ParamType`."""
        found = SIZE.fullmatch(str(value).strip())
        size = float(found[1]) * (1024 if found[3] else 1000) ** UNITS[found[2].upper()] if found else 0
        if size < 1:
            self.fail(f"{value!r} must be a number above 0 with a unit, such as 512MB or 4GB.", param, ctx)
        return int(size)


def limit_memory(context: click.Context, parameter: click.Parameter, size: int | None) -> None:
    """Limit MLX's memory and shrink its buffer cache, which never grows."""
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
    help="Memory (4GB) above which MLX frees cached buffers and waits for running work before it starts "
    "more. Weights and a batch that need more get it: lower --batch-tokens.",
)
verbose_option = click.option("--verbose", is_flag=True, help="Report speed and memory on standard error at the end.")


@dataclass
class RunStats:
    """Counts results, and seconds since its creation."""

    start: float = field(default_factory=time.perf_counter)
    first: float = 0.0
    sentences: int = 0
    tokens: int = 0
    too_short: list[str] = field(default_factory=list)
    missing_terms: list[str] = field(default_factory=list)

    def watch(self, results: Iterable[LineResult]) -> Iterator[LineResult]:
        """Count results as they pass through."""
        for result in results:
            self.first = self.first or time.perf_counter() - self.start
            sources = (
                [result.line.source.text] if result.sentences is None else [source for source, _ in result.sentences]
            )
            self.sentences += sum(not is_blank(source) for source in sources)
            if result.hypotheses[0].too_short:
                self.too_short.append(result.line.name)
            if result.hypotheses[0].missing_terms:
                self.missing_terms.append(result.line.name)
            self.tokens += sum(len(hypothesis.ids) for hypothesis in result.hypotheses)
            yield result

    def lines(self) -> str:
        """Format the statistics as two lines, and others about slow computation and results that miss something."""
        import mlx.core as mx

        seconds = time.perf_counter() - self.start
        advice = blas.speed_advice() if mx.default_device() == mx.cpu else None
        active, peak = (f"{size / 1e6:,.0f} MB" for size in (mx.get_active_memory(), mx.get_peak_memory()))
        return (
            f"{self.sentences:,} sentences, {self.tokens:,} tokens in {seconds:.2f} s ({self.tokens / seconds:,.0f} "
            f"tokens/s), first result after {self.first:.2f} s.\n"
            f"MLX memory: {active} now, {peak} at its peak."
            + (f"\n{advice}" if advice else "")
            + (f"\nMuch too short for their sources: {_list_names(self.too_short)}." if self.too_short else "")
        )

    def warn_missing_terms(self) -> None:
        """Warn on standard error of results that lack terms."""
        if self.missing_terms:
            names = _list_names(self.missing_terms)
            activity.print_line(f"Warning: results lack terms that --json names as missing_terms: {names}.", err=True)


def _list_names(names: list[str]) -> str:
    """Return the names of lines, or the first of many."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(names[:MAX_NAMES])}{more}"
