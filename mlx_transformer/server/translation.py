"""Texts of requests: cut into lines and sentences, submitted to a model, and put together again."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from html import escape
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeVar

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.documents.content import write
from mlx_transformer.documents.html_text import HtmlPiece, read_run, split_html
from mlx_transformer.documents.markup_placement import MarkedText, mark_text, split_edges
from mlx_transformer.documents.translator import ATOM, MAX_MARKUP, DocumentReport, place_markup
from mlx_transformer.inference.sentence_splitting import Paragraph, combine_hypotheses
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.server.batching import Work
from mlx_transformer.server.models import CountedLine, LoadedModel, ModelStore
from mlx_transformer.server.settings import RequestError
from mlx_transformer.tokenization.normalization import is_blank

Item = TypeVar("Item")
LINE_END = re.compile(r"(\r\n|\n|\r)")


class Piece(NamedTuple):
    """A part of a text: a line that is translated, or what stays as it is, such as line ends and markup.

    Attributes:
        text: The part.
        is_source: Whether it is translated.
        markup: The markup inside the line, which is left out of it.
    """

    text: str
    is_source: bool = False
    markup: MarkedText | None = None


class SplitLine(NamedTuple):
    """A line that is split into sentences, and the markup that is left out of it."""

    paragraph: Paragraph
    markup: MarkedText | None = None


class PendingLine(NamedTuple):
    """A line with the future hypotheses of its sentences, and the markup to place in the result."""

    paragraph: Paragraph
    sentences: list[Future[list[Hypothesis]]]
    markup: MarkedText | None = None


class Generated(NamedTuple):
    """A target text.

    Attributes:
        text: The text.
        num_tokens: Number of its tokens.
        finish_reason: "length" if a sentence was cut at the maximum number of tokens, otherwise "stop".
    """

    text: str
    num_tokens: int
    finish_reason: str


def text_pieces(text: str) -> list[Piece]:
    """Cut a plain text into lines; blank ones and the ends of lines stay as they are."""
    parts = LINE_END.split(text)
    return [Piece(part, is_source=not is_blank(part)) for part in parts if part]


def html_pieces(text: str) -> list[Piece]:
    """Cut HTML into its sentences and what stays as it is: blocks, white space around texts, texts without a letter."""
    pieces: list[Piece] = []
    for is_inline, group in groupby(split_html(text), lambda piece: piece.is_inline):
        run = list(group)
        pieces += _inline_pieces(run) if is_inline else [Piece(piece.text) for piece in run]
    return pieces


def _inline_pieces(run: list[HtmlPiece]) -> list[Piece]:
    """Cut text with inline markup, which is one line, unless it has too much markup."""
    if not any(piece.has_letters for piece in run):
        return [Piece(piece.text) for piece in run]
    before, text, after = split_edges(read_run(run))
    marked = mark_text(text)
    if marked.num_inlines > MAX_MARKUP:
        return [each for piece in run for each in _text_pieces(piece)]
    has_markup = bool(marked.spans or marked.atoms)
    line = Piece(marked.text.strip(), True, marked) if has_markup else Piece(marked.text, True)
    return [Piece(write(before)), line, Piece(write(after))]


def _text_pieces(piece: HtmlPiece) -> list[Piece]:
    """Cut a text into white space and what is between; what is not translated stays as it is."""
    if not piece.has_letters:
        return [Piece(piece.text)]
    before, text, after = split_edges(read_run([piece]))
    return [Piece(write(before)), Piece(write(text), is_source=True), Piece(write(after))]


class PendingText:
    """A text whose sentences wait for a model.

    Attributes:
        num_tokens: Number of source tokens.
    """

    def __init__(self, pieces: Iterable[str | PendingLine], num_tokens: int, is_html: bool = False) -> None:
        self._pieces, self.num_tokens = list(pieces), num_tokens
        self._finish = partial(escape, quote=False) if is_html else str

    def futures(self) -> Iterator[Future[list[Hypothesis]]]:
        """Yield the future hypotheses of all sentences."""
        for piece in self._pieces:
            if isinstance(piece, PendingLine):
                yield from piece.sentences

    async def results(self, count: int = 1) -> list[Generated]:
        """Return `count` texts, the best first; the n-th has the n-th hypothesis of every sentence, or its last one."""
        await asyncio.gather(*map(asyncio.wrap_future, self.futures()))
        return [self._combine(rank) for rank in range(count)]

    async def lines(self) -> list[str | tuple[Paragraph, list[list[Hypothesis]]]]:
        """Return what stays as it is, and each line with the hypotheses of its sentences."""
        await asyncio.gather(*map(asyncio.wrap_future, self.futures()))
        return [
            piece
            if isinstance(piece, str)
            else (piece.paragraph, [[*map(_check, future.result())] for future in piece.sentences])
            for piece in self._pieces
        ]

    async def stream(self) -> AsyncIterator[Generated]:
        """Yield the best text in parts: each sentence as soon as it and all before it are there."""
        for piece in self._pieces:
            if isinstance(piece, str):
                yield Generated(piece, 0, "stop")
                continue
            bests: list[Hypothesis] = []
            written = ""
            for future in piece.sentences:
                bests.append(_check((await asyncio.wrap_future(future))[0]))
                text = self._finish(combine_hypotheses(_first_sentences(piece.paragraph, len(bests)), bests).text or "")
                yield Generated(text[len(written) :], len(bests[-1].ids), bests[-1].finish_reason)
                written = text

    def _combine(self, rank: int) -> Generated:
        texts, num_tokens, finish_reason = [], 0, "stop"
        for piece in self._pieces:
            if isinstance(piece, str):
                texts.append(piece)
                continue
            rows = [future.result() for future in piece.sentences]
            line = combine_hypotheses(piece.paragraph, [_check(row[min(rank, len(row) - 1)]) for row in rows])
            content = place_markup(piece.markup, line, DocumentReport()) if piece.markup else (line.text or "",)
            texts.append(write(content, self._finish))
            num_tokens += len(line.ids)
            finish_reason = line.finish_reason if line.finish_reason != "stop" else finish_reason
        return Generated("".join(texts), num_tokens, finish_reason)


def _check(hypothesis: Hypothesis) -> Hypothesis:
    if hypothesis.error:
        raise RequestError(500, f"The text has no result: {hypothesis.error}")
    return hypothesis


def _first_sentences(paragraph: Paragraph, count: int) -> Paragraph:
    """Return the beginning of a paragraph, with the white space at the end of the whole one."""
    is_all = count == len(paragraph.sentences)
    spaces = [*paragraph.spaces[:count], paragraph.spaces[-1] if is_all else ""]
    return paragraph._replace(sentences=paragraph.sentences[:count], spaces=spaces)


async def all_results(pending: Sequence[PendingText], count: int = 1) -> list[list[Generated]]:
    """Return the results of each text; if the caller is cancelled, so are the sentences that still wait."""
    return await asyncio.gather(*(text.results(count) for text in pending))


async def limit_time(parts: AsyncIterator[Item], seconds: float) -> AsyncIterator[Item]:
    """Yield parts; RequestError if all of them together take longer than a time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        try:
            part = await asyncio.wait_for(anext(parts), end - loop.time())
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise RequestError(504, f"The answer took longer than {seconds:g} seconds: send less text.") from None
        yield part


async def submit_texts(
    store: ModelStore,
    name: str,
    texts: Sequence[str],
    languages: tuple[str | None, str | None],
    search: dict[str, Any],
    is_html: bool = False,
    target_prefix: str | None = None,
    alignment: AlignmentConfig | None = None,
) -> list[PendingText]:
    """Submit the sentences of texts to a model, all or none.

    Args:
        store: The models.
        name: Name of the model.
        texts: The texts.
        languages: The model's codes of the source and the target language.
        search: Fields of the model's search configuration to change.
        is_html: Whether texts are HTML.
        target_prefix: Text that the result of each line begins with.
        alignment: How to align words; None for no alignments.

    Raises:
        RequestError: If the queue is full.
        ValueError: If the model does not take the languages or the search.
    """
    cut = html_pieces if is_html else text_pieces
    pieces = [cut(text) for text in texts]
    has_markup = any(piece.markup for row in pieces for piece in row)
    if has_markup:
        alignment = AlignmentConfig(cover_source=True)

    def prepare(loaded: LoadedModel) -> tuple[list[list[str | SplitLine]], list[CountedLine], Work]:
        source_language, target_language = languages
        make = partial(
            SourceLine,
            source_language=source_language,
            target_language=target_language,
            target_prefix=target_prefix,
        )
        split = [
            [
                SplitLine(loaded.split(make(piece.text)), piece.markup) if piece.is_source else piece.text
                for piece in row
            ]
            for row in pieces
        ]
        work = loaded.make_work(search, alignment, copied=(ATOM,) if has_markup else ())
        return split, [loaded.count(line) for line in _sentences(split)], work

    split, counts, futures = await asyncio.to_thread(store.submit, name, prepare)
    remaining = zip(counts, futures, strict=True)
    return [_make_pending(row, remaining, is_html) for row in split]


def _sentences(texts: Iterable[Iterable[str | SplitLine]]) -> Iterator[SourceLine]:
    for pieces in texts:
        for piece in pieces:
            if not isinstance(piece, str):
                yield from (piece.paragraph.line._replace(text=sentence) for sentence in piece.paragraph.sentences)


def _make_pending(
    pieces: Iterable[str | SplitLine], remaining: Iterator[tuple[int, Future[list[Hypothesis]]]], is_html: bool
) -> PendingText:
    """Return a text with the next ones of the futures that remain, which come with their numbers of source tokens."""
    pending: list[str | PendingLine] = []
    num_tokens = 0
    for piece in pieces:
        if isinstance(piece, str):
            pending.append(piece)
            continue
        counts, futures = zip(*islice(remaining, len(piece.paragraph.sentences)), strict=True)
        num_tokens += sum(counts)
        pending.append(PendingLine(piece.paragraph, list(futures), piece.markup))
    return PendingText(pending, num_tokens, is_html)
