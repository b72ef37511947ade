"""The models of a server: their names and languages; loaded on demand, the least recently used ones unloaded."""

import gc
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import BATCH_TOKENS, change_search
from mlx_transformer.config.terminology import choose_protected
from mlx_transformer.decoding.lexical_shortlist import LexicalShortlist
from mlx_transformer.inference.embedding import choose_pooling, embed_lines
from mlx_transformer.inference.engine import Engine, run_in_engine
from mlx_transformer.inference.generation import generate_hypotheses
from mlx_transformer.inference.sentence_splitting import Paragraph, split_line
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.messages import short_names, short_repr
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.pretrained.loading import load
from mlx_transformer.server.batching import SMALL_THREADS, BatchWorker, Work, WorkerClosedError
from mlx_transformer.server.language_codes import Codes, client_codes, distinct_codes, find_code
from mlx_transformer.server.metrics import Metrics
from mlx_transformer.server.settings import RequestError
from mlx_transformer.tokenization.tokenizer import Tokenizer

Item = TypeVar("Item")
NAMED_PAIR = re.compile(r"([a-z]{2,3})-([a-z]{2,3})=(.+)")


class ModelName(NamedTuple):
    """A model to serve: its name or path, the pair of languages that the caller names, and its shortlist, if any."""

    name: str
    pair: tuple[str, str] | None = None
    shortlist: LexicalShortlist | None = None

    @classmethod
    def parse(cls, text: str | None) -> "ModelName":
        """Parse MODEL or SOURCE-TARGET=MODEL; None is the bundled model."""
        if text and (match := NAMED_PAIR.fullmatch(text)):
            return cls(match[3], (match[1], match[2]))
        return cls(text or "bundled")


class Languages(NamedTuple):
    """The languages of a model.

    Attributes:
        sources: Source languages.
        targets: Target languages.
        any_source: Whether the model takes text in any language.
        needs: Whether requests must name the source and the target language.
        sources_name_target: Whether sources begin with the target language.
    """

    sources: Codes = {}
    targets: Codes = {}
    any_source: bool = False
    needs: tuple[bool, bool] = (False, False)
    sources_name_target: bool = False

    @classmethod
    def of(cls, pair: tuple[str, str] | None, tokenizer: Tokenizer) -> "Languages":
        """Return the languages of a model: a pair that the caller names, or those that its tokenizer knows."""
        config = tokenizer.config
        pair = pair or config.language_pair
        known = client_codes(config.languages)
        takes_source, takes_target = config.source_language != "none", config.target_language != "none"
        sources = known if takes_source else dict.fromkeys(pair[:1] if pair else known)
        targets = known if takes_target else dict.fromkeys(pair[1:] if pair else ())
        needs_source = takes_source and config.default_source_language is None
        needs_target = takes_target and config.default_target_language is None
        any_source = takes_target and not takes_source and pair is None
        return cls(sources, targets, any_source, (needs_source, needs_target), config.target_language == "source")

    def find(self, source: str, target: str) -> tuple[str | None, str | None] | None:
        """Return the model's own codes of a pair; None if it does not translate it."""
        source_key, target_key = find_code(source, self.sources), find_code(target, self.targets)
        if target_key is None or (source_key is None and not self.any_source):
            return None
        return self.sources[source_key] if source_key else None, self.targets[target_key]

    def resolve(
        self, source: str | None, target: str | None, *, generates: bool = True
    ) -> tuple[str | None, str | None]:
        """Return the model's own codes of the languages that a request may name, to generate or to embed.

        Raises:
            RequestError: If one is missing or unknown.
        """
        needs_source, needs_target = self.needs
        needs_target = needs_target and (generates or self.sources_name_target)
        return (
            _resolve("source", source, self.sources, needs_source),
            _resolve("target", target, self.targets, needs_target),
        )


def _resolve(role: str, code: str | None, known: Codes, is_needed: bool) -> str | None:
    if code is None and not is_needed:
        return None
    if code and (key := find_code(code, known)):
        return known[key]
    remedy = f"one of {short_names(known)}" if known else "left out, because this model takes none"
    raise RequestError(400, f"{role}_language must be {remedy}, not {short_repr(code)}.")


class CountedLine(NamedTuple):
    """A source line with its number of tokens."""

    line: SourceLine
    num_tokens: int


class LoadedModel:
    """A model in memory, with the threads that run it."""

    def __init__(self, name: ModelName, model: Transformer, tokenizer: Tokenizer, max_queue: int, metrics: Metrics):
        self.model, self.tokenizer = model, tokenizer
        self.languages = Languages.of(name.pair, tokenizer)
        self._sentence_language = name.pair[0] if name.pair else None
        if (shortlist := name.shortlist) is not None:
            shortlist.ids([], model.config.target_vocab_size, shared=False)  # ValueError if it is of another model
        self._shortlist = shortlist
        self.num_bytes = sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())
        # Twice as many positions as a group of sentences, so that others find room beside a large one.
        self._engine = Engine(model, 2 * BATCH_TOKENS, metrics.batch_sizes.observe)
        # A search with a shortlist cannot be joined: sentences wait until they share one.
        small_threads = SMALL_THREADS if shortlist is None else 1
        self._worker = BatchWorker(name.name, self._run, BATCH_TOKENS, max_queue, metrics, small_threads)

    def split(self, line: SourceLine) -> Paragraph:
        """Split a line that is longer than what the model was trained on into sentences."""
        return split_line(line, self.model, self.tokenizer, language=self._sentence_language)

    def make_work(
        self, options: dict[str, Any], alignment: AlignmentConfig | None = None, copied: tuple[str, ...] = ()
    ) -> Work:
        """Return the model's own search, changed by options of a request.

        Args:
            options: The options.
            alignment: How to align words; None for no alignments.
            copied: Regular expressions of what targets must copy, beside what they copy by default.

        Raises:
            ValueError: If the model does not generate, or an option is wrong.
        """
        self.model.config.require_decoder()
        search = change_search(self.model.search_defaults, **({"num_hypotheses": 1} | options))
        protect = (*copied, *choose_protected(None, self.tokenizer.config)) if search.num_hypotheses == 1 else ()
        return Work(search, object() if search.temperature else None, alignment, protect)

    def submit(self, lines: Sequence[CountedLine], work: Work) -> list[Future[Any]]:
        """See `BatchWorker.submit`."""
        beams = work.search.beam_size if work.search else 1
        return self._worker.submit([(line, beams * num_tokens) for line, num_tokens in lines], work)

    def count(self, line: SourceLine) -> CountedLine:
        """Return a line with the number of its tokens that the model reads, special tokens included."""
        ids = self.tokenizer.encode(line.text, line.source_language, line.target_language)
        return CountedLine(line, min(len(ids), self.model.config.encoder.max_length))

    def close(self) -> None:
        """Finish the sentences that wait, and end the threads."""
        self._worker.close()
        self._engine.close()

    def _run(self, work: Work, lines: list[SourceLine], first_line: int) -> Iterator[Any]:
        """Yield the hypotheses of each line, or its embedding."""
        if work.search is None:
            pooling = choose_pooling(self.model.config, None, None)
            return run_in_engine(self.model, partial(embed_lines, self.model, self.tokenizer, lines, pooling))
        return generate_hypotheses(
            self.model,
            self.tokenizer,
            lines,
            work.search,
            protect=work.protect,
            alignment=work.alignment,
            shortlist=self._shortlist,
            scores=False,
            first_line=first_line,
            return_errors=True,
        )


class ModelStore:
    """The models of a server, by name; those that are loaded need at most `memory_limit` bytes, or are only one."""

    def __init__(
        self,
        names: Sequence[ModelName],
        metrics: Metrics,
        memory_limit: int | None = None,
        max_queue: int = 2048,
        load_model: Callable[[str], tuple[Transformer, Tokenizer]] = load,
    ) -> None:
        """Load every model once, so that the server knows its size and its languages.

        Args:
            names: The models.
            metrics: Metrics to update.
            memory_limit: Bytes of weights above which the least recently used model is unloaded; None for no limit.
            max_queue: See `BatchWorker`.
            load_model: Loads a model by its name.

        Raises:
            OSError: See `load`.
            ValueError: See `load`.
        """
        names = list(names)
        self.names = {name.name: name for name in names}
        if repeated := [name.name for name in names if self.names[name.name] is not name]:
            raise ValueError(f"A model can be served once, but {repeated[0]} is named twice: leave out one.")
        self._metrics, self._limit, self._load = metrics, memory_limit, load_model
        self._make = partial(LoadedModel, max_queue=max_queue, metrics=metrics)
        self._loaded: dict[str, LoadedModel] = {}  # the least recently used first
        self._sizes: dict[str, int] = {}
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self.languages = {name: self.get(name).languages for name in self.names}

    def choose(self, name: object) -> str:
        """Return the name of the model that a request asks for; None asks for the first one.

        Raises:
            RequestError: If the server does not have it.
        """
        if name is None:
            return next(iter(self.names))
        if isinstance(name, str) and name in self.names:
            return name
        known = f"{short_names(self.names)}, not {short_repr(name)}"
        raise RequestError(404, f"model must be one of this server's: {known}.", "model_not_found")

    def find(self, source: str, target: str) -> tuple[str, str | None, str | None]:
        """Return the name of the first model that translates a pair of languages, and its own codes of them.

        Raises:
            RequestError: If there is none.
        """
        for name, languages in self.languages.items():
            if codes := languages.find(source, target):
                return name, *codes
        raise RequestError(400, self._describe_unknown_pair(source, target))

    def is_same_language(self, source: str, target: str) -> bool:
        """Whether two codes name one language of the models, in any spelling; texts in it need no translation."""
        for languages in self.languages.values():
            known = languages.sources | languages.targets
            keys = find_code(source, known), find_code(target, known)
            owns = [known[key] or key for key in keys if key is not None]
            if len(owns) == 2 and owns[0] == owns[1]:
                return True
        return False

    def get(self, name: str) -> LoadedModel:
        """Return a model; one that is not in memory is loaded, and others are unloaded for it."""
        if loaded := self._use(name):
            return loaded
        with self._loading:
            if loaded := self._use(name):
                return loaded
            self._unload_others(self._sizes.get(name, 0))
            loaded = self._make(self.names[name], *self._load(name))
            self._sizes[name] = loaded.num_bytes
            self._unload_others(loaded.num_bytes)
            with self._lock:
                self._loaded[name] = loaded
            self._metrics.loads.inc()
            self._update_metrics()
            return loaded

    def submit(
        self, name: str, prepare: Callable[[LoadedModel], tuple[Item, Sequence[CountedLine], Work]]
    ) -> tuple[Item, list[int], list[Future[Any]]]:
        """Submit the lines of a request to a model.

        Args:
            name: Name of the model.
            prepare: Returns, for the loaded model, anything, the lines, and what to do with them.

        Returns:
            What was prepared, the number of tokens of each line, and its future result.
        """
        while True:
            loaded = self.get(name)
            prepared, lines, work = prepare(loaded)
            try:
                return prepared, [line.num_tokens for line in lines], loaded.submit(lines, work)
            except WorkerClosedError:  # it was unloaded meanwhile
                continue

    def close(self) -> None:
        """Finish all sentences that wait, and unload all models."""
        with self._loading:
            while self._unload_oldest():
                pass

    def _use(self, name: str) -> LoadedModel | None:
        """Return a model that is in memory, as the most recently used one."""
        with self._lock:
            if loaded := self._loaded.pop(name, None):
                self._loaded[name] = loaded
            return loaded

    def _unload_others(self, num_bytes: int) -> None:
        """Unload the least recently used models until another one fits."""
        while self._limit is not None and self._total_bytes() + num_bytes > self._limit and self._unload_oldest():
            pass

    def _unload_oldest(self) -> bool:
        """Unload the least recently used model, after its last sentence; return whether there was one."""
        with self._lock:
            oldest = next(iter(self._loaded), None)
            loaded = self._loaded.pop(oldest) if oldest else None
        if loaded is None:
            return False
        loaded.close()
        del loaded
        gc.collect()
        mx.clear_cache()
        self._update_metrics()
        return True

    def _total_bytes(self) -> int:
        with self._lock:
            return sum(loaded.num_bytes for loaded in self._loaded.values())

    def _update_metrics(self) -> None:
        self._metrics.model_bytes.set(self._total_bytes())
        self._metrics.models.set(len(self._loaded))

    def _describe_unknown_pair(self, source: str, target: str) -> str:
        """Return what the models translate instead, and what to try."""
        pairs = [
            f"{short_names(list(languages.sources) or ['any language'])} to {short_names(list(languages.targets))}"
            for languages in self.languages.values()
            if languages.targets
        ]
        known = "; ".join(pairs[:4]) or "no languages by code"
        asked = f"{short_repr(source)} to {short_repr(target)}"
        return f"This server does not translate {asked}, but {known}: see /languages, or serve another model."

    def sources(self, target: str | None = None) -> list[str]:
        """Return the source languages of the models, or of those that translate to a target."""
        codes = dict.fromkeys(code for each in self.languages.values() for code in distinct_codes(each.sources))
        if target is None:
            return list(codes)
        return [code for code in codes if any(each.find(code, target) for each in self.languages.values())]
