"""Generation of texts: lines are tokenized, batched by length, searched, decoded and returned in order."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, overload

from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.config.search import BATCH_TOKENS, SearchConfig, SearchOptions, Unpack, change_search
from mlx_transformer.config.terminology import choose_protected
from mlx_transformer.config.tokenizer import MIN_SOURCE_TOKENS
from mlx_transformer.decoding.batch_sizes import batch_sizes
from mlx_transformer.decoding.beam_search import stream_ids
from mlx_transformer.decoding.hypothesis import Hypothesis, NoHypothesisError
from mlx_transformer.decoding.inputs import max_target_tokens
from mlx_transformer.decoding.lexical_shortlist import LexicalShortlist
from mlx_transformer.inference.alignment import source_word_indices, token_indices, word_indices_of_ids
from mlx_transformer.inference.batching import (
    READ_AHEAD,
    encode_phrases,
    encode_prefixes,
    encode_sources,
    encode_truncated,
    pad_ids,
    padded_length,
    reorder,
    run_batches,
)
from mlx_transformer.inference.engine import generate_ids_in_engine, run_in_engine
from mlx_transformer.inference.line_errors import bisect_on_error, raise_first_error
from mlx_transformer.inference.required_terms import require_terms
from mlx_transformer.inference.scoring import EncodedPair, Score, check_arguments, score, score_pairs
from mlx_transformer.inference.search_options import make_search
from mlx_transformer.inference.sentence_splitting import combine_hypotheses, generate_paragraphs, split_line
from mlx_transformer.inference.source_lines import (
    PerLineText,
    SourceLine,
    check_lines,
    make_source_lines,
    prepare_lines,
    uppercase,
    uppercase_stream,
)
from mlx_transformer.inference.terminology import Terminology, continues_word
from mlx_transformer.inference.wired_memory import wired_memory
from mlx_transformer.messages import short_repr
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.detokenizer import Detokenizer
from mlx_transformer.tokenization.texts import TextError
from mlx_transformer.tokenization.tokenizer import DecoderStart, Tokenizer

Rescore = Callable[[list["EncodedSource"], list[list[Hypothesis]]], list[list[Hypothesis]]]
logger = logging.getLogger(__name__)
EMPTY_HYPOTHESIS = Hypothesis(ids=[], score=0.0, finish_reason="stop", text="")


class EncodedSource(NamedTuple):
    """A tokenized source line.

    Attributes:
        ids: Source token ids, truncated to the model's maximum length.
        start: Start token and forced first token of its target.
        prefix_ids: Token ids of its target prefix.
        number: The line's number, which selects its random numbers.
        line: The line.
        truncated: Whether the source was truncated.
        phrases: Token ids of its required phrases.
        error: Why the line could not be tokenized.
    """

    ids: list[int]
    start: DecoderStart
    prefix_ids: list[int]
    number: int
    line: SourceLine
    truncated: bool = False
    phrases: Sequence[list[int]] = ()
    error: str | None = None


@overload
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str,
    search: SearchConfig | None = None,
    *,
    source_language: PerLineText = ...,
    target_language: PerLineText = ...,
    source_prefix: str | None = ...,
    target_prefix: PerLineText = ...,
    split_sentences: bool | None = ...,
    glossary: Mapping[str, str] | None = ...,
    protect: Sequence[str] | None = ...,
    shortlist: LexicalShortlist | None = ...,
    batch_tokens: int = ...,
    **options: Unpack[SearchOptions],
) -> str: ...


@overload
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: list[str] | tuple[str, ...],
    search: SearchConfig | None = None,
    *,
    source_language: PerLineText = ...,
    target_language: PerLineText = ...,
    source_prefix: str | None = ...,
    target_prefix: PerLineText = ...,
    split_sentences: bool | None = ...,
    glossary: Mapping[str, str] | None = ...,
    protect: Sequence[str] | None = ...,
    shortlist: LexicalShortlist | None = ...,
    batch_tokens: int = ...,
    **options: Unpack[SearchOptions],
) -> list[str]: ...


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str | list[str] | tuple[str, ...],
    search: SearchConfig | None = None,
    *,
    source_language: PerLineText = None,
    target_language: PerLineText = None,
    source_prefix: str | None = None,
    target_prefix: PerLineText = None,
    split_sentences: bool | None = None,
    glossary: Mapping[str, str] | None = None,
    protect: Sequence[str] | None = None,
    shortlist: LexicalShortlist | None = None,
    batch_tokens: int = BATCH_TOKENS,
    **options: Unpack[SearchOptions],
) -> str | list[str]:
    """Generate the best target of a text, or of each of several texts.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        text: A source text, or a list of source texts.
        search: See `generate_hypotheses`.
        source_language: See `generate_hypotheses`.
        target_language: See `generate_hypotheses`.
        source_prefix: See `generate_hypotheses`.
        target_prefix: See `generate_hypotheses`.
        split_sentences: Whether to generate from each sentence of a text on its own. None splits texts that are longer
            than what the model was trained on; sentences are numbered as lines in sampling.
        glossary: Source term -> target term, which targets must contain where their sources contain the source term,
            as whole words in any case, but acronyms in capitals only. `Terminology` has the rules.
        protect: What targets must copy from their sources: keys of PROTECTED_PATTERNS, such as "urls" and "numbers", or
            regular expressions. None for URLs, addresses and placeholders, and for models that are known to translate
            also tags, paths, handles and symbols.
        shortlist: Likely target tokens, see `read_shortlist`: each batch generates those of its sources only.
        batch_tokens: See `generate_hypotheses`.
        **options: See `generate_hypotheses`.

    Returns:
        The target text, or a list with one target text per source text.
    """
    search = make_search(generate, model, search, options)
    _check_single_hypothesis(search, glossary=glossary)
    lines = make_source_lines(text, source_language, target_language, target_prefix)
    search = search if search.temperature else replace(search, num_hypotheses=1)
    prefix: dict[str, Any] = {"source_prefix": source_prefix}
    split = partial(split_line, model=model, tokenizer=tokenizer, split_sentences=split_sentences, **prefix)
    shared = prefix | {"glossary": glossary, "protect": protect if search.num_hypotheses == 1 else ()}
    shared |= {"shortlist": shortlist, "batch_tokens": batch_tokens, "scores": False, "return_errors": True}
    search_lines = partial(generate_hypotheses, model, tokenizer, search=search, **shared)
    results = (
        combine_hypotheses(paragraph, [best for best, *_ in rows])
        for paragraph, rows in generate_paragraphs(map(split, lines), search_lines)
    )
    bests = list(raise_first_error(results, lambda best: best.error, "Line"))
    if missing := [term for best in bests for term in best.missing_terms]:
        logger.warning("Texts lack terms that their sources ask for: %s.", ", ".join(map(short_repr, missing[:10])))
    texts = [best.text or "" for best in bests]
    return texts[0] if isinstance(text, str) else texts


def generate_hypotheses(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: str | Iterable[str | SourceLine],
    search: SearchConfig | None = None,
    *,
    source_language: PerLineText = None,
    target_language: PerLineText = None,
    source_prefix: str | None = None,
    target_prefix: PerLineText = None,
    glossary: Mapping[str, str] | None = None,
    protect: Sequence[str] | None = (),
    shortlist: LexicalShortlist | None = None,
    batch_tokens: int = BATCH_TOKENS,
    alignment: AlignmentConfig | None = None,
    scores: bool = True,
    token_scores: bool = False,
    first_line: int = 0,
    return_errors: bool = False,
    **options: Unpack[SearchOptions],
) -> Iterator[list[Hypothesis]]:
    """Generate the hypotheses of each line, best first, lazily and in order.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        lines: Source texts, or one; blank ones give an empty hypothesis. A SourceLine has languages of its own.
        search: The search configuration; `model.search_defaults` if None.
        source_language: Language code of the lines, or one per line, for models that need one.
        target_language: Language code to generate, or one per line, for models that need one.
        source_prefix: Text such as "summarize: " to put before lines without it; the model's own if None, none if "".
        target_prefix: Text that targets begin with, or one per line; None or blank for none.
        glossary: See `generate`. With terms, a line has one hypothesis, whose `missing_terms` are those it lacks.
        protect: See `generate`; nothing by default.
        shortlist: See `generate`.
        batch_tokens: Maximum number of padded source positions x beams in a batch.
        alignment: How to align the hypotheses with their sources, in one more pass; None for no alignments.
        scores: Whether hypotheses have scores; if not, they are NaN, and greedy search is faster.
        token_scores: Whether to return the log-probability of each token, from the same pass as alignments.
        first_line: Number of the first line; line numbers select random numbers in sampling.
        return_errors: Whether a line without a result gives a hypothesis with an `error`, instead of raising it.
        **options: Fields of the search configuration to change, such as `beam_size=4`; see `SearchConfig`.

    Raises:
        TypeError: If a keyword argument is unknown, with similar names.
        ValueError: If an argument does not fit the model, or a line has no result.
    """
    search = make_search(generate_hypotheses, model, search, options)
    _check_single_hypothesis(search, glossary=glossary, protect=protect)
    check_arguments(model.config, tokenizer, batch_tokens, alignment, source_language, target_language)
    rescore = partial(_rescore, model, tokenizer, alignment, batch_tokens) if alignment or token_scores else None
    empty = replace(EMPTY_HYPOTHESIS, token_scores=[] if rescore else None, alignment=[] if alignment else None)
    search_batch = partial(_search_batch, model, tokenizer, scores, shortlist)
    search_window = partial(_generate_window, model, tokenizer, search_batch, batch_tokens, rescore, empty)
    search_lines = partial(_generate_lines, model, tokenizer, source_prefix, search_window, search=search)
    score_lines = partial(_score_lines, model, tokenizer, source_prefix)
    terms = Terminology(glossary, choose_protected(protect, tokenizer.config))
    run = require_terms(search_lines, score_lines, terms, search=search, alignment=alignment, scores=scores)
    results = run(make_source_lines(lines, source_language, target_language, target_prefix), first_line=first_line)
    return results if return_errors else raise_first_error(results, _error_of, "Line", first_line + 1)


def stream_generate(
    model: Transformer,
    tokenizer: Tokenizer,
    text: str | SourceLine,
    search: SearchConfig | None = None,
    *,
    source_language: str | None = None,
    target_language: str | None = None,
    source_prefix: str | None = None,
    target_prefix: str | None = None,
    shortlist: LexicalShortlist | None = None,
    line: int = 0,
    **options: Unpack[SearchOptions],
) -> Iterator[str]:
    """Yield the target of one text in pieces, as it is generated, as a whole and without required terms.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        text: The source text. A text beyond the model's maximum length is truncated, with a warning in the log.
        search: The search configuration, with a beam of one; `model.search_defaults` with a beam of one if None.
        source_language: See `generate_hypotheses`.
        target_language: See `generate_hypotheses`.
        source_prefix: See `generate_hypotheses`.
        target_prefix: See `generate_hypotheses`.
        shortlist: See `generate`.
        line: Line number, which selects random numbers in sampling.
        **options: See `generate_hypotheses`.

    Raises:
        TypeError: If a keyword argument is unknown, with similar names.
        ValueError: If the text is not a string, the search has several beams, or a language is missing or unknown.
    """
    tokenizer.check_model(model.config)
    search = search or change_search(model.search_defaults, beam_size=1)
    search = make_search(stream_generate, model, search, options)
    lines = make_source_lines([text], source_language, target_language, target_prefix)
    prefixed = list(prepare_lines(tokenizer.config, lines, source_prefix))
    (source,) = _encode_lines(model, tokenizer, list(enumerate(prefixed, start=line)))
    if source.truncated:
        logger.warning("Line %d is longer than the model can read and was cut.", line + 1)
    if source.phrases:
        raise ValueError(
            "A stream cannot have required_phrases: use generate_hypotheses with a beam_size of 2 or more."
        )
    if source.ids:
        ids = stream_ids(model, search=search, **_search_arguments(model, [source], search, shortlist))
        pieces = Detokenizer(tokenizer).stream(ids)
        with wired_memory():
            yield from uppercase_stream(pieces) if source.line.recase else pieces


def _check_single_hypothesis(search: SearchConfig, **terms: object) -> None:
    """Raise ValueError if terms are required of a search with several hypotheses."""
    for name, required in terms.items():
        if required and search.num_hypotheses > 1:
            raise ValueError(f"{name} gives one text per line: num_hypotheses must be 1, not {search.num_hypotheses}.")


def _generate_lines(
    model: Transformer,
    tokenizer: Tokenizer,
    source_prefix: str | None,
    generate_window: Callable[[list[EncodedSource], SearchConfig], Iterator[list[Hypothesis]]],
    lines: Iterable[SourceLine],
    *,
    search: SearchConfig,
    first_line: int = 0,
) -> Iterator[list[Hypothesis]]:
    """Tokenize and search lines in windows; yield their hypotheses, of a line without a result one with an error."""
    numbered = enumerate(prepare_lines(tokenizer.config, lines, source_prefix), start=first_line)
    while window := list(islice(numbered, READ_AHEAD)):
        sources = bisect_on_error(partial(_encode_lines, model, tokenizer), window, _failed_source)
        yield from generate_window(sources, search)


def _generate_window(
    model: Transformer,
    tokenizer: Tokenizer,
    search_batch: Callable[[list[EncodedSource], SearchConfig], list[list[Hypothesis]]],
    batch_tokens: int,
    rescore: Rescore | None,
    empty: Hypothesis,
    sources: list[EncodedSource],
    search: SearchConfig,
) -> Iterator[list[Hypothesis]]:
    """Search sources in batches of similar length; yield their hypotheses in order."""
    banks = 1 + max((sum(map(len, source.phrases)) for source in sources), default=0)
    max_length, max_positions = model.config.encoder.max_length, batch_tokens // (search.beam_size * banks)
    sizes = batch_sizes(model, search.beam_size)

    def complete(batch: list[EncodedSource]) -> Iterator[list[Hypothesis]]:
        rows = search_batch(batch, search)
        rows = rescore(batch, rows) if rescore else rows
        for source, row in zip(batch, rows, strict=True):
            texts = tokenizer.decode_batch(h.ids for h in row)
            yield [
                replace(
                    h,
                    text=uppercase(text) if source.line.recase else text,
                    truncated=source.truncated,
                    too_short=is_too_short(tokenizer, source.ids, h.ids),
                )
                for h, text in zip(row, texts, strict=True)
            ]

    def results() -> Iterator[tuple[int, list[Hypothesis]]]:
        for i, source in enumerate(sources):
            if not source.ids:
                yield i, [_failed_hypothesis(source.error) if source.error else empty]
        with wired_memory():
            yield from run_batches(
                {i: source for i, source in enumerate(sources) if source.ids},
                lambda source: len(source.ids),
                complete,
                lambda _, error: [_failed_hypothesis(error)],
                *(max_length, max_positions, sizes),
                keep_buffers=model.engine is not None,
            )

    return reorder(results())


def is_too_short(tokenizer: Tokenizer, source_ids: list[int], target_ids: list[int]) -> bool:
    """Whether a target is much shorter than nearly all that the model was trained on, beside its source.

    Short sources have targets of any relative length, so only those of MIN_SOURCE_TOKENS or more count.
    """
    is_long = len(source_ids) >= MIN_SOURCE_TOKENS
    return is_long and len(target_ids) < tokenizer.config.min_length_ratio * len(source_ids)


def _error_of(hypotheses: list[Hypothesis]) -> str | None:
    return hypotheses[0].error


def _failed_hypothesis(error: str) -> Hypothesis:
    return Hypothesis(ids=[], score=-math.inf, finish_reason="error", text="", error=error)


def _failed_source(line: tuple[int, SourceLine], error: str) -> EncodedSource:
    return EncodedSource([], DecoderStart(0, None), [], *line, error=error)


def _encode_lines(
    model: Transformer, tokenizer: Tokenizer, numbered: list[tuple[int, SourceLine]]
) -> list[EncodedSource]:
    """Tokenize lines with their numbers; blank lines get no ids."""
    check_lines(line for _, line in numbered)
    max_length = model.config.encoder.max_length
    nonblank = [line for _, line in numbered if line.text]
    encoded = zip(
        encode_truncated(partial(encode_sources, tokenizer), nonblank, max_length),
        tokenizer.decoder_starts(len(nonblank), [line.target_language for line in nonblank]),
        encode_prefixes(tokenizer, nonblank),
        strict=True,
    )
    sources: list[EncodedSource] = []
    for number, line in numbered:
        ids, start, prefix = next(encoded) if line.text else ([], DecoderStart(0, None), [])
        truncated = tokenizer.truncate_source(ids, max_length)
        phrases = encode_phrases(tokenizer, line)
        sources.append(EncodedSource(truncated, start, prefix, number, line, len(ids) > max_length, phrases))
    return sources


def _search_batch(
    model: Transformer,
    tokenizer: Tokenizer,
    scores: bool,
    shortlist: LexicalShortlist | None,
    sources: list[EncodedSource],
    search: SearchConfig,
) -> list[list[Hypothesis]]:
    """Search sources as one batch; a source without a hypothesis gets one with an error."""
    arguments = _search_arguments(model, sources, search, shortlist)
    if any(source.phrases for source in sources):
        arguments["required_phrases"] = [source.phrases for source in sources]
        arguments["continues_word"] = continues_word(tokenizer)
    try:
        return generate_ids_in_engine(model, search=search, scores=scores, **arguments)
    except NoHypothesisError as error:
        failed = [_failed_hypothesis(f"Search found no hypothesis: {error.reason}.")]
        return [row or failed for row in error.hypotheses]


def _search_arguments(
    model: Transformer, sources: list[EncodedSource], search: SearchConfig, shortlist: LexicalShortlist | None
) -> dict[str, Any]:
    """Return the arguments of a search that differ from source to source."""
    config = model.config
    length = padded_length(max(len(source.ids) for source in sources), config.encoder.max_length)
    ids = [source.ids for source in sources]
    forced = [source.start.first_id for source in sources if source.start.first_id is not None]
    return {
        "source": pad_ids(ids, length, config.pad_id),
        "max_tokens": [max_target_tokens(model, len(source.ids), search) for source in sources],
        "start_ids": [source.start.start_id for source in sources],
        "forced_bos_ids": forced or None,
        "prefix_ids": [source.prefix_ids for source in sources],
        "lines": [source.number for source in sources],
        "shortlist": shortlist and shortlist.ids(ids, config.target_vocab_size, config.share_embeddings),
    }


def _rescore(
    model: Transformer,
    tokenizer: Tokenizer,
    alignment: AlignmentConfig | None,
    batch_tokens: int,
    sources: list[EncodedSource],
    hypotheses: list[list[Hypothesis]],
) -> list[list[Hypothesis]]:
    """Add token scores and alignments from one teacher-forced pass."""
    pairs = [
        _make_pair(model, tokenizer, source, hypothesis, alignment)
        for source, row in zip(sources, hypotheses, strict=True)
        for hypothesis in row
        if not hypothesis.error
    ]
    scores = run_in_engine(model, partial(score_pairs, model, pairs, alignment, batch_tokens))
    return [[h if h.error else _with_score(h, next(scores)) for h in row] for row in hypotheses]


def _score_lines(
    model: Transformer, tokenizer: Tokenizer, source_prefix: str | None, *texts: Any, **options: Any
) -> Iterator[Score]:
    """Score targets; a pair that has no score gives one with an error."""
    options |= {"source_prefix": source_prefix, "return_errors": True}
    return run_in_engine(model, partial(score, model, tokenizer, *texts, **options))


def _with_score(hypothesis: Hypothesis, score: Score) -> Hypothesis:
    if score.error:
        raise TextError(score.error)
    return replace(hypothesis, token_scores=score.token_scores, alignment=score.alignment)


def _make_pair(
    model: Transformer,
    tokenizer: Tokenizer,
    source: EncodedSource,
    hypothesis: Hypothesis,
    alignment: AlignmentConfig | None,
) -> EncodedPair:
    """Return the token ids of a source and a hypothesis, with their words if alignments are needed."""
    end = [] if hypothesis.end_id is None else [hypothesis.end_id]
    pair = EncodedPair(source.ids, [source.start.start_id, *hypothesis.ids, *end])
    if alignment is None:
        return pair
    words = (
        source_word_indices(tokenizer, source.line, source.ids),
        word_indices_of_ids(tokenizer, hypothesis.ids) + [None] * len(end),
    )
    return pair._replace(
        units=words if alignment.unit == "words" else (token_indices(words[0]), token_indices(words[1]))
    )
