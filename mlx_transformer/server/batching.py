"""Batches across requests: threads that tokenize the sentences that wait for a model, search and complete them.

Their searches share the batches of the model's `Engine`. One thread takes sentences of any requests, the others those
of small ones, so that a short sentence that arrives meanwhile joins a search of many at once.
"""

import heapq
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.server.metrics import Metrics
from mlx_transformer.server.settings import RETRY_AFTER, RequestError

SMALL_SHARE = 16  # a small request, and a small batch, has at most this part of the positions of a large batch
SMALL_THREADS = 16  # for each model: they wait for its engine most of the time


class Work(NamedTuple):
    """What a model does with a sentence; only sentences with the same work are submitted together.

    Attributes:
        search: How to generate; None to embed.
        request: A request whose sentences are submitted without those of others, because samples depend on their
            number among them; None for any request.
        alignment: How to align words, which takes one more pass; None for no alignments.
        protect: Kinds of text to copy, and regular expressions of it; None for the default ones.
    """

    search: SearchConfig | None
    request: object = None
    alignment: AlignmentConfig | None = None
    protect: tuple[str, ...] | None = None


@dataclass(order=True)
class Job:
    """A sentence that waits for a model; jobs are ordered by their turn."""

    turn: int
    number: int
    index: int = field(compare=False)  # in its request
    line: SourceLine = field(compare=False)
    positions: int = field(compare=False)
    is_small: bool = field(compare=False)  # its request
    work: Work = field(compare=False)
    future: Future[Any] = field(compare=False, default_factory=Future)


class WorkerClosedError(Exception):
    """The worker takes no more sentences, because its model is being unloaded."""


class BatchWorker:
    """Runs sentences on one model, in threads of its own.

    Sentences take turns: the first ones of a new request go before the later ones of a long request.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Work, list[SourceLine], int], Iterable[Any]],
        batch_positions: int,
        max_queue: int,
        metrics: Metrics,
        small_threads: int = SMALL_THREADS,
    ) -> None:
        """Start the threads.

        Args:
            name: Name of the model in metrics.
            run: Yields the result of each line, in order; it also gets the index of the first line in its request. It
                runs in all threads at once.
            batch_positions: Maximum number of source positions x beams in a large batch.
            max_queue: Maximum number of sentences that wait; an empty queue takes any request.
            metrics: Metrics to update.
            small_threads: Number of threads for small requests alone.
        """
        self._run, self._max_queue = run, max_queue
        self._waiting, self._sentences = metrics.waiting.labels(name), metrics.sentences.labels(name)
        self._jobs: list[Job] = []
        self._batches = self._submitted = 0
        self._closed = False
        self._changed = threading.Condition()
        self._small = batch_positions // SMALL_SHARE
        self._threads = [
            threading.Thread(target=self._loop, args=options, name=f"batches of {name}", daemon=True)
            for options in ((batch_positions, False), *[(self._small, True)] * small_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, lines: Iterable[tuple[SourceLine, int]], work: Work) -> list[Future[Any]]:
        """Add the sentences of a request, all or none; return the future result of each.

        Args:
            lines: Each sentence with its number of positions, beams included.
            work: What to do with them.

        Raises:
            RequestError: If too many sentences wait.
            WorkerClosedError: If the worker is closed.
        """
        lines = list(lines)
        is_small = sum(positions for _, positions in lines) <= self._small
        with self._changed:
            if self._closed:
                raise WorkerClosedError
            jobs = [
                Job(self._batches + index, self._submitted + index, index, line, positions, is_small, work)
                for index, (line, positions) in enumerate(lines)
            ]
            if len(self._jobs) + len(jobs) > self._max_queue:  # first forget those that nobody waits for any more
                self._jobs = [job for job in self._jobs if not job.future.cancelled()]
                heapq.heapify(self._jobs)
            if self._jobs and len(self._jobs) + len(jobs) > self._max_queue:
                raise RequestError(
                    503,
                    f"The server is busy, {len(self._jobs)} sentences wait: try again in {RETRY_AFTER} seconds.",
                    "queue_full",
                    {"Retry-After": str(RETRY_AFTER)},
                )
            self._submitted += len(jobs)
            for job in jobs:
                heapq.heappush(self._jobs, job)
            self._waiting.set(len(self._jobs))
            self._changed.notify_all()
        return [job.future for job in jobs]

    def close(self) -> None:
        """Take no more sentences; return when those that wait are done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _loop(self, batch_positions: int, only_small: bool) -> None:
        while batch := self._next_batch(batch_positions, only_small):
            jobs = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._sentences.inc(len(jobs))
                self._complete(jobs)

    def _next_batch(self, batch_positions: int, only_small: bool) -> list[Job]:
        """Wait for sentences; return those whose turn it is and that fit into one batch, none when closed.

        Args:
            batch_positions: Maximum number of positions in the batch.
            only_small: Whether sentences of other than small requests are left to the first thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_jobs(only_small))
            batch: list[Job] = []
            others: list[Job] = []
            positions = 0
            while self._jobs:
                job = heapq.heappop(self._jobs)
                if (only_small and not job.is_small) or (batch and job.work != batch[0].work):
                    others.append(job)
                elif batch and positions + job.positions > batch_positions:
                    others.append(job)
                    break
                else:
                    batch.append(job)
                    positions += job.positions
            for job in others:
                heapq.heappush(self._jobs, job)
            self._batches += 1
            self._waiting.set(len(self._jobs))
            return batch

    def _has_jobs(self, only_small: bool) -> bool:
        """Whether a thread has something to do."""
        return any(job.is_small or not only_small for job in self._jobs)

    def _complete(self, jobs: list[Job]) -> None:
        """Run a batch; every job gets its result as soon as it is there, or the error of the batch."""
        try:
            results = self._run(jobs[0].work, [job.line for job in jobs], jobs[0].index)
            for job, result in zip(jobs, results, strict=True):
                job.future.set_result(result)
        except Exception as error:
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)
