"""One thread that runs a model for many: sentences of all threads share batches, which they join and leave."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import numpy as np

from mlx_transformer.config.search import BATCH_TOKENS, SearchConfig
from mlx_transformer.decoding.batch_sizes import batch_sizes, padded_batch_size
from mlx_transformer.decoding.beam_search import check_hypotheses, compile_step, generate_ids, select_output_rows
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.decoding.inputs import RequiredPhrases, check_search
from mlx_transformer.decoding.running_search import RunningSearch
from mlx_transformer.inference.batching import pad_ids
from mlx_transformer.model.token_ids import check_token_ids
from mlx_transformer.model.transformer import Transformer

ROUNDS_PER_CLEARING = 50  # after which MLX's cached buffers are freed, which costs new allocations
Result = TypeVar("Result")
Rows = list[list[Hypothesis]]


@dataclass
class Request:
    """The sources of one call.

    Attributes:
        hypotheses: The hypotheses of each source that has left the search.
        num_unfinished: Number of sources that have not.
        future: Gets the hypotheses of all sources.
    """

    hypotheses: Rows
    num_unfinished: int
    future: Future[Rows] = field(default_factory=Future)

    def finish(self, row: int, hypotheses: list[Hypothesis]) -> None:
        """Take the hypotheses of a source."""
        self.hypotheses[row] = hypotheses
        self.num_unfinished -= 1
        if not self.num_unfinished and not self.future.done():
            self.future.set_result(self.hypotheses)

    def fail(self, error: BaseException) -> None:
        """End with an error, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)


class WaitingSource(NamedTuple):
    """A source that has not joined a search yet.

    Attributes:
        request: Its request.
        row: Its place in the request.
        ids: Its token ids, with padding.
        settings: Its values of the arguments of `generate_ids` that have one for each source.
    """

    request: Request
    row: int
    ids: list[int]
    settings: dict[str, Any]


def make_request(
    rows: list[list[int]], settings: Mapping[str, Sequence[Any] | None]
) -> tuple[Request, list[WaitingSource]]:
    """Return a request and its sources, with the settings that are given and their line numbers."""
    given = {"lines": list(range(len(rows)))} | {name: values for name, values in settings.items() if values}
    for name, values in given.items():
        if len(values) != len(rows):
            raise ValueError(f"{name} must have {len(rows)} values, one for each source, not {len(values)}.")
    request, columns = Request([[] for _ in rows], len(rows)), zip(*given.values(), strict=True)
    return request, [
        WaitingSource(request, row, ids, dict(zip(given, values, strict=True)))
        for row, (ids, values) in enumerate(zip(rows, columns, strict=True))
    ]


class EngineClosedError(RuntimeError):
    """The engine takes no more calls."""


class SharedSearch:
    """A search that the sources of all requests with the same settings join."""

    def __init__(self, start: Callable[[], RunningSearch], beam_size: int, batch_tokens: int, pad_id: int) -> None:
        """Make a search without sources.

        Args:
            start: Makes the running search, in the engine's thread.
            beam_size: Number of beams.
            batch_tokens: Maximum number of source positions x beams.
            pad_id: The padding of sources.
        """
        self._start, self._max_positions, self._pad_id = start, batch_tokens // beam_size, pad_id
        self.waiting: deque[WaitingSource] = deque()
        self._running: RunningSearch | None = None
        self._joined: dict[int, WaitingSource] = {}  # by key

    @property
    def is_idle(self) -> bool:
        """Whether no source waits or is being searched."""
        return not self.waiting and not self._joined

    def step(self) -> int:
        """Let sources join, run to the next stop test, and complete finished requests; return the size of the batch."""
        try:
            self._running = self._running or self._start()
            self._admit(self._running)
            size = len(self._joined)
            for key, hypotheses in self._running.run().items():
                source = self._joined.pop(key)
                source.request.finish(source.row, hypotheses)
        except BaseException as error:
            self._running = None
            self.fail(error)
            return 0
        return size

    def fail(self, error: BaseException) -> None:
        """End all requests with an error."""
        sources = list(self._joined.values())
        self._joined.clear()
        while self.waiting:
            sources.append(self.waiting.popleft())
        for source in sources:
            source.request.fail(error)

    def _admit(self, running: RunningSearch) -> None:
        """Let as many of the waiting sources join as there is room for."""
        chosen: list[WaitingSource] = []
        length = running.source_length
        while self.waiting:
            length = max(length, len(self.waiting[0].ids))
            size = running.num_unfinished + len(chosen)
            if size and padded_batch_size(size + 1, running.sizes) * length > self._max_positions:
                break
            source = self.waiting.popleft()
            if not source.request.future.done():  # another source of it has failed
                chosen.append(source)
        if not chosen:
            return
        try:
            self._add(running, chosen)
        except Exception:  # one request is wrong: add each on its own
            for request in {id(source.request): source.request for source in chosen}.values():
                sources = [source for source in chosen if source.request is request]
                try:
                    self._add(running, sources)
                except Exception as error:
                    request.fail(error)

    def _add(self, running: RunningSearch, sources: list[WaitingSource]) -> None:
        length = max(len(source.ids) for source in sources)
        settings = {name: [source.settings[name] for source in sources] for name in sources[0].settings}
        keys = running.add(pad_ids([source.ids for source in sources], length, self._pad_id), **settings)
        self._joined |= zip(keys, sources, strict=True)


class Engine:
    """Runs a model in a thread of its own, for any number of other threads.

    While it is open, `generate` and `generate_hypotheses` use it. Sentences with the same search configuration share a
    batch: those of another call join while it runs, and finished ones leave it ("continuous batching"). Use it as a
    context manager, or close it: until then its thread keeps the model.
    """

    def __init__(
        self, model: Transformer, batch_tokens: int = BATCH_TOKENS, observe: Callable[[int], object] | None = None
    ) -> None:
        """Start the thread.

        Args:
            model: The model, in evaluation mode.
            batch_tokens: Maximum number of source positions x beams in a batch.
            observe: Called with the number of sentences in a batch, again and again while it is searched.

        Raises:
            ValueError: If the model has an engine.
        """
        if model.engine:
            raise ValueError("A model can have one engine: close the other one first.")
        mx.eval(model.parameters())  # another thread cannot compute what this one has made lazily
        self.model, self._batch_tokens, self._observe = model, batch_tokens, observe
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._searches: dict[Any, SharedSearch] = {}
        self._num_rounds, self._closed = 0, False
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()
        model.engine = self

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the model to other threads, take no more calls, and return when all are done.

        Raises:
            RuntimeError: In a function that the engine runs.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("An engine cannot be closed by a function that it runs: close it in another thread.")
        if self.model.engine is self:
            self.model.engine = None
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def run(self, function: Callable[[], Result]) -> Result:
        """Call a function in the engine's thread, between steps of searches, and return its result.

        Raises:
            EngineClosedError: If the engine is closed.
            Exception: What the function raises.
        """
        if threading.current_thread() is self._thread:
            return function()
        future: Future[Result] = Future()
        self._submit(lambda: self._calls.append((future, function)))
        return future.result()

    def generate_ids(
        self,
        source: mx.array,
        search: SearchConfig | None = None,
        max_tokens: list[int] | None = None,
        start_ids: list[int] | None = None,
        forced_bos_ids: list[int] | None = None,
        prefix_ids: list[list[int]] | None = None,
        lines: list[int] | None = None,
        scores: bool = True,
        required_phrases: RequiredPhrases | None = None,
        continues_word: np.ndarray | None = None,
        shortlist: Sequence[int] | np.ndarray | None = None,
    ) -> list[list[Hypothesis]]:
        """Search for the targets of sources, in a batch with those of other threads; see `generate_ids`.

        Sources with required phrases or a shortlist share no batch with those of other calls.

        Raises:
            EngineClosedError: If the engine is closed.
            NoHypothesisError: See `generate_ids`.
            ValueError: See `generate_ids`.
        """
        settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            "start_ids": start_ids,
            "forced_bos_ids": forced_bos_ids,
            "prefix_ids": prefix_ids,
            "lines": lines,
            "required_phrases": required_phrases,
        }
        if threading.current_thread() is self._thread:  # a thread cannot wait for itself
            options: dict[str, Any] = {"scores": scores, "continues_word": continues_word, "shortlist": shortlist}
            return generate_ids(self.model, source, search, **settings, **options)
        check_token_ids("source", source, self.model.config.source_vocab_size)
        search, rows = search or self.model.search_defaults, np.array(source).tolist()
        check_search(search, self.model.config)
        if not rows:
            return []
        is_shared = required_phrases is None and shortlist is None
        request, sources = make_request(rows, settings)
        key = (search, scores, tuple(sources[0].settings)) if is_shared else object()

        def start() -> RunningSearch:
            output_rows = select_output_rows(
                self.model, shortlist, search, required_phrases, forced_bos_ids, prefix_ids
            )
            step = compile_step(self.model, search, scores, bool(forced_bos_ids), continues_word, output_rows)
            return RunningSearch(self.model, search, step, batch_sizes(self.model, search.beam_size, joinable=True))

        def submit() -> None:
            if key not in self._searches:
                limit = self._batch_tokens if is_shared else len(rows) * len(rows[0]) * search.beam_size
                self._searches[key] = SharedSearch(start, search.beam_size, limit, self.model.config.pad_id)
            self._searches[key].waiting.extend(sources)

        self._submit(submit)
        return check_hypotheses(request.future.result(), scores)

    def _submit(self, change: Callable[[], None]) -> None:
        mx.eval(self.model.parameters())  # another thread cannot compute what this one has changed lazily
        with self._changed:
            if self._closed:
                raise EngineClosedError("An engine takes no calls after it is closed: make another one.")
            change()
            self._changed.notify_all()

    def _loop(self) -> None:
        try:
            while self._run_once():
                pass
        finally:  # callers must not wait for a thread that has ended
            with self._changed:
                self._closed = True
            error = EngineClosedError("The engine has ended because of an error: make another one.")
            for future, _ in self._calls:
                future.set_exception(error)
            for search in self._searches.values():
                search.fail(error)

    def _run_once(self) -> bool:
        """Wait for something to do, and do it; return whether there may be more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._calls or self._searches)
            if not self._calls and not self._searches:
                return False
            calls, searches = list(self._calls), list(self._searches.values())
            self._calls.clear()
        for future, function in calls:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        for search in searches:
            size = search.step()
            if self._observe:
                self._observe(size)
        with self._changed:
            self._searches = {key: search for key, search in self._searches.items() if not search.is_idle}
        self._num_rounds += 1
        if not self._searches or self._num_rounds % ROUNDS_PER_CLEARING == 0:
            mx.clear_cache()  # buffers of shapes that may not occur again
        return True


def generate_ids_in_engine(model: Transformer, **arguments: Any) -> list[list[Hypothesis]]:
    """Call `generate_ids`, in the engine of the model if it has one."""
    engine: Engine | None = model.engine
    if engine is not None:
        with suppress(EngineClosedError):  # it was closed meanwhile
            return engine.generate_ids(**arguments)
    search = arguments["search"]
    return generate_ids(model, sizes=batch_sizes(model, search.beam_size), **arguments)


def run_in_engine(model: Transformer, function: Callable[[], Iterator[Result]]) -> Iterator[Result]:
    """Return the results of a function; if the model has an engine, all of them are computed there first."""
    engine: Engine | None = model.engine
    if engine is not None:
        with suppress(EngineClosedError):
            return iter(engine.run(lambda: list(function())))
    return function()
