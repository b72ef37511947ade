"""Splitting of long texts into sentences that fit a model, and joining of their results with the original white space.

The library sentencex finds sentences. Sentences that are too long are split after clauses, at white space, or anywhere.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import NamedTuple

from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.inference.alignment import WORD
from mlx_transformer.inference.source_lines import SourceLine, prepare_lines
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.tokenization.languages import short_code
from mlx_transformer.tokenization.normalization import BLANK
from mlx_transformer.tokenization.tokenizer import Tokenizer

BLOCK_SIZE = 10_000  # characters per call of sentencex, which takes quadratic time without white space
CHARACTERS_PER_TOKEN = 16  # texts with more characters per position are split without being tokenized
MAX_GRAPHEME = 32  # code points of the longest visible character
CLAUSE = re.compile(r"[.!?…,;:)\]–—،؛؟।]\s+|[。！？、，；：]\s*")
WHITESPACE = re.compile(r"\s+")
# Scripts without spaces between words: South-East Asian scripts, Tibetan, Chinese and Japanese.
UNSPACED_SCRIPTS = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)


class Paragraph(NamedTuple):
    """A text split into sentences.

    Attributes:
        sentences: Sentences without surrounding white space, at least one; one empty sentence for a blank text.
        spaces: White space and invisible characters before each sentence, and white space after the last.
        line: The line that holds the text, with its languages.
        is_whole: Whether the line is not split: it is the only sentence.
    """

    sentences: list[str]
    spaces: list[str]
    line: SourceLine = SourceLine("")
    is_whole: bool = False


def split_line(
    line: SourceLine,
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    source_prefix: str | None = None,
    language: str | None = None,
    split_sentences: bool | None = None,
) -> Paragraph:
    """Split a line into sentences that fit the model, if it is longer than what the model was trained on.

    Args:
        line: The line; a target prefix is that of all its sentences, so by default such a line stays whole.
        model: The model, whose maximum length no sentence exceeds.
        tokenizer: Its tokenizer, which knows the lengths that the model was trained on.
        source_prefix: Text that will be put before each sentence; the model's own prefix if None.
        language: Language whose rules split; the source language of the line or of the model if None.
        split_sentences: True splits every line, also a short one; False none.
    """

    def fits(text: str, max_length: int) -> bool:
        (prefixed,) = prepare_lines(tokenizer.config, [SourceLine(text)], source_prefix)
        try:
            return fits_model(prefixed.text, max_length, tokenizer, line.source_language, line.target_language)
        except ValueError:
            return True  # generation gives the error of a line that cannot be tokenized

    max_length, max_tokens = model.config.encoder.max_length, tokenizer.config.max_sentence_tokens
    if split_sentences is None:
        split_sentences = max_tokens is not None and not line.target_prefix and not fits(line.text, max_tokens)
    if not split_sentences:
        return Paragraph([line.text], ["", ""], line, is_whole=True)
    language = language or line.source_language or tokenizer.config.only_languages[0]
    paragraph = split_paragraph(line.text, partial(fits, max_length=max_length), language)
    return paragraph._replace(line=line)


def split_paragraph(text: str, fits: Callable[[str], bool], language: str | None = None) -> Paragraph:
    """Split a text into sentences that fit, without losing a character.

    Args:
        text: The text.
        fits: Whether a sentence fits the model.
        language: A code such as "en", "eng_Latn" or "en_XX"; the rules of English apply to unknown languages and None.
    """
    sentences: list[str] = []
    spaces = [""]
    code = short_code(language or "en")
    for part in (part for sentence in _sentences(text, code) for part in _split_long_sentence(sentence, fits)):
        if stripped := BLANK.sub("", part, count=1).rstrip():
            before, _, after = part.partition(stripped)
            spaces[-1] += before
            spaces.append(after)
            sentences.append(stripped)
        else:
            spaces[-1] += part
    return Paragraph(sentences, spaces) if sentences else Paragraph([""], [text, ""])


def fits_model(
    text: str,
    max_length: int,
    tokenizer: Tokenizer,
    source_language: str | None = None,
    target_language: str | None = None,
) -> bool:
    """Whether a source has at most `max_length` tokens, special tokens included."""
    if len(text) > CHARACTERS_PER_TOKEN * max_length:
        return False
    return len(tokenizer.encode(text, source_language, target_language)) <= max_length


def join_sentences(paragraph: Paragraph, texts: Sequence[str]) -> str:
    """Join the results of a paragraph's sentences with the paragraph's white space.

    Sentences of a script without spaces get a space between them if their results are in a script with spaces.
    """
    sources, spaces = paragraph.sentences, paragraph.spaces
    joined = spaces[0] + texts[0]
    for i in range(1, len(texts)):
        space = spaces[i]
        if (
            not space
            and _is_unspaced_boundary(sources[i - 1], sources[i])
            and not _is_unspaced_boundary(joined, texts[i])
        ):
            space = " "
        joined += space + texts[i]
    return joined + spaces[-1]


def combine_hypotheses(paragraph: Paragraph, parts: Sequence[Hypothesis]) -> Hypothesis:
    """Combine the best hypotheses of a paragraph's sentences, without token scores if it is split.

    Scores are summed. The result is truncated, too short, or has the finish reason "length", if any part has.
    Alignments count words from the beginning of the paragraph. If a part has an error, the result is that part.
    """
    if paragraph.is_whole:
        return parts[0]
    if failed := next((part for part in parts if part.error), None):
        return failed
    ended = all(part.finish_reason == "stop" for part in parts)
    return replace(
        parts[0],
        ids=[i for part in parts for i in part.ids],
        score=sum(part.score for part in parts),
        finish_reason="stop" if ended else "length",
        text=join_sentences(paragraph, [part.text or "" for part in parts]),
        truncated=any(part.truncated for part in parts),
        too_short=any(part.too_short for part in parts),
        missing_terms=tuple(term for part in parts for term in part.missing_terms),
        token_scores=None,
        alignment=_shift_alignment(paragraph, parts),
    )


def _shift_alignment(paragraph: Paragraph, parts: Sequence[Hypothesis]) -> list[tuple[int, int]] | None:
    """Return the alignments of all sentences, with words counted from the beginning of the paragraph."""
    if all(part.alignment is None for part in parts):
        return None
    pairs = set()
    for number, part in enumerate(parts):
        source = "".join(map(str.__add__, paragraph.spaces[:number], paragraph.sentences)) + paragraph.spaces[number]
        target = join_sentences(paragraph, [*(p.text or "" for p in parts[:number]), "x"]).rstrip()
        first_words = [len(WORD.findall(text)) - 1 for text in (source + "x", target)]
        pairs |= {(first_words[0] + i, first_words[1] + j) for i, j in part.alignment or []}
    return sorted(pairs)


def generate_paragraphs(
    paragraphs: Iterable[Paragraph], generate: Callable[..., Iterator[list[Hypothesis]]]
) -> Iterator[tuple[Paragraph, list[list[Hypothesis]]]]:
    """Yield each paragraph with the hypotheses of its sentences, in order, as soon as they are complete.

    Args:
        paragraphs: The paragraphs, read only as far ahead as `generate` reads sentences.
        generate: `generate_hypotheses` with all arguments but the lines.
    """
    waiting: deque[Paragraph] = deque()

    def lines() -> Iterator[SourceLine]:
        for paragraph in paragraphs:
            waiting.append(paragraph)
            yield from (paragraph.line._replace(text=sentence) for sentence in paragraph.sentences)

    hypotheses = generate(lines())
    for first in hypotheses:
        paragraph = waiting.popleft()
        yield paragraph, [first, *islice(hypotheses, len(paragraph.sentences) - 1)]


def _sentences(text: str, code: str) -> Iterator[str]:
    """Yield sentences with the white space around them; joined, they equal the text."""
    from sentencex import segment

    start, size = 0, BLOCK_SIZE
    while start < len(text):
        sentences = segment(code, text[start : start + size])
        if start + size < len(text):
            if len(sentences) == 1:
                size *= 2
                continue
            sentences.pop()  # it may continue in the next block
        yield from sentences
        start, size = start + sum(map(len, sentences)), BLOCK_SIZE


def _split_long_sentence(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """Yield parts of a sentence that fit, with the white space around them; a single character always fits."""
    stripped = text.strip()
    if len(stripped) < 2 or fits(stripped):
        yield text
    else:
        position = _split_position(text)
        yield from _split_long_sentence(text[:position], fits)
        yield from _split_long_sentence(text[position:], fits)


def _split_position(text: str) -> int:
    """Return where to split: after a clause in the middle half, else after white space, else between characters."""
    middle, quarter = len(text) // 2, len(text) // 4
    for matches in (CLAUSE.finditer(text, quarter, len(text) - quarter), WHITESPACE.finditer(text)):
        if positions := [end for match in matches if (end := match.end()) < len(text)]:
            return min(positions, key=lambda position: abs(position - middle))
    near_middle = range(middle, max(middle - MAX_GRAPHEME, 0), -1)
    return next((position for position in near_middle if not _inside_grapheme(text, position)), middle)


def _inside_grapheme(text: str, position: int) -> bool:
    """Whether the next character combines with, or is joined to, the previous one."""
    return unicodedata.category(text[position])[0] == "M" or "\u200d" in text[position - 1 : position + 1]


def _is_unspaced_boundary(before: str, after: str) -> bool:
    """Whether one of the adjacent characters belongs to a script without spaces."""
    return bool(UNSPACED_SCRIPTS.search(before[-1:] + after[:1]))
