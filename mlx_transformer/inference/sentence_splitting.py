"""Long texts: split into sentences that a model can read, and put together again with the white space between them.

Sentences are found by the library sentencex; one that is still too long is cut at clauses, at white space, or anywhere.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, tee
from operator import itemgetter
from typing import NamedTuple

from mlx_transformer.decoding.hypothesis import Hypothesis
from mlx_transformer.tokenization.tokenizer import Tokenizer

BLOCK_SIZE = 10_000  # characters that are split at a time: sentencex takes quadratic time where there is no white space
CHARACTERS_PER_TOKEN = 16  # a text with more for each position of the model is cut without being tokenised
LONGEST_LETTER = 32  # code points that are one letter or sign for the eye
CLAUSE = re.compile(r"[.!?…,;:)\]–—،؛؟।]\s+|[。！？、，；：]\s*")
WHITESPACE = re.compile(r"\s+")
# Scripts that set no space between words: South-East Asian ones, Tibetan, Chinese and Japanese.
UNSPACED_SCRIPTS = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
# What sentencex calls languages of which it knows more than of others, by the codes of ISO 639-3.
LANGUAGE_CODES = dict(
    pair.split("=")
    for pair in """
    amh=am ara=ar arb=ar ben=bn bul=bg cat=ca ces=cs dan=da deu=de ell=el eng=en spa=es fin=fi fra=fr glg=gl guj=gu
    hat=ht hin=hi hye=hy ita=it jpn=ja kan=kn kaz=kk ltz=lb mal=ml mar=mr mya=my nld=nl oci=oc pan=pa pol=pl por=pt
    rus=ru slk=sk tam=ta tat=tt tel=te ukr=uk
    """.split()
)


class Paragraph(NamedTuple):
    """A text as sentences.

    Attributes:
        sentences: Sentences without white space around them, at least one; of a blank text one that is empty.
        spaces: The white space before each and after the last.
        source_language: The code of its language for the model, None where it needs none.
        target_language: The code of the language to generate, likewise.
    """

    sentences: list[str]
    spaces: list[str]
    source_language: str | None = None
    target_language: str | None = None


def split_paragraph(text: str, fits: Callable[[str], bool], language: str | None = None) -> Paragraph:
    """Split a text into sentences, each of which fits, without losing a character.

    Args:
        text: The text.
        fits: Whether a model can read the whole of a sentence.
        language: A code such as "en", "eng_Latn" or "en_XX"; of a language that is not known, and of None, English
            is assumed.

    Raises:
        ValueError: If sentencex is not installed.
    """
    sentences: list[str] = []
    spaces = [""]
    code = LANGUAGE_CODES.get(name := re.split("[_-]", language or "en")[0].lower(), name)
    for part in (part for sentence in _sentences(text, code) for part in _split_long_sentence(sentence, fits)):
        if stripped := part.strip():
            before, _, after = part.partition(stripped)
            spaces[-1] += before
            spaces.append(after)
            sentences.append(stripped)
        else:
            spaces[-1] += part
    return Paragraph(sentences, spaces) if sentences else Paragraph([""], [text, ""])


def fits_model(
    text: str,
    limit: int,
    tokenizer: Tokenizer,
    source_language: str | None = None,
    target_language: str | None = None,
) -> bool:
    """Whether a text has at most `limit` tokens, with all that stands around sources; one far too long is not read."""
    if len(text) > CHARACTERS_PER_TOKEN * limit:
        return False
    return len(tokenizer.encode(text, source_language, target_language)) <= limit


def join_sentences(paragraph: Paragraph, texts: Sequence[str]) -> str:
    """Put what was made of the sentences of a paragraph together, with its white space between them.

    Where the paragraph has no space because its script sets none, but what was made of it is of another script, a
    space is set between.
    """
    sources, spaces = paragraph.sentences, paragraph.spaces
    joined = spaces[0] + texts[0]
    for place in range(1, len(texts)):
        space = spaces[place]
        if (
            not space
            and _is_unspaced_boundary(sources[place - 1], sources[place])
            and not _is_unspaced_boundary(joined, texts[place])
        ):
            space = " "
        joined += space + texts[place]
    return joined + spaces[-1]


def combine_hypotheses(paragraph: Paragraph, parts: Sequence[Hypothesis]) -> Hypothesis:
    """The hypotheses of the sentences of a paragraph as one, without scores of tokens.

    Its score is the sum of theirs; it is truncated, or reached a length, if one of them is or did. Words are counted
    through the paragraph.
    """
    ended = all(part.finish_reason == "stop" for part in parts)
    return replace(
        parts[0],
        ids=[i for part in parts for i in part.ids],
        score=sum(part.score for part in parts),
        finish_reason="stop" if ended else "length",
        text=join_sentences(paragraph, [part.text or "" for part in parts]),
        truncated=any(part.truncated for part in parts),
        token_scores=None,
        alignment=_shift_alignment(paragraph, parts),
    )


def _shift_alignment(paragraph: Paragraph, parts: Sequence[Hypothesis]) -> list[tuple[int, int]] | None:
    """The aligned words of all sentences, each counted from the beginning of the paragraph."""
    if all(part.alignment is None for part in parts):
        return None
    pairs = set()
    for number, part in enumerate(parts):
        source = "".join(map(str.__add__, paragraph.spaces[:number], paragraph.sentences)) + paragraph.spaces[number]
        target = join_sentences(paragraph, [*(p.text or "" for p in parts[:number]), "x"]).rstrip()[:-1]
        words = [len(text.split()) - bool(text and not text[-1].isspace()) for text in (source, target)]
        pairs |= {(words[0] + i, words[1] + j) for i, j in part.alignment or []}
    return sorted(pairs)


def generate_paragraphs(
    paragraphs: Iterable[Paragraph], generate: Callable[..., Iterator[list[Hypothesis]]]
) -> Iterator[tuple[Paragraph, list[list[Hypothesis]]]]:
    """Each paragraph with the hypotheses of its sentences, in order, as soon as all are there.

    Args:
        paragraphs: Are read only as far ahead as `generate` asks for sentences.
        generate: `generate_hypotheses` with all that it needs besides lines and their languages.
    """
    waiting: deque[Paragraph] = deque()

    def sentences() -> Iterator[tuple[str, str | None, str | None]]:
        for paragraph in paragraphs:
            waiting.append(paragraph)
            for sentence in paragraph.sentences:
                yield sentence, paragraph.source_language, paragraph.target_language

    texts, source_languages, target_languages = (
        map(itemgetter(column), rows) for column, rows in enumerate(tee(sentences(), 3))
    )
    found = generate(texts, source_language=source_languages, target_language=target_languages)
    for first in found:
        paragraph = waiting.popleft()
        yield paragraph, [first, *islice(found, len(paragraph.sentences) - 1)]


def load_segmenter() -> Callable[[str, str], list[str]]:
    """The function of sentencex that splits the text of a language; ValueError if it is not installed."""
    try:
        from sentencex import segment
    except ImportError:
        raise ValueError("To split sentences sentencex must be installed: it is not; pip install sentencex.") from None
    function: Callable[[str, str], list[str]] = segment
    return function


def _sentences(text: str, code: str) -> Iterator[str]:
    """Sentences with the white space around them; joined they are the text."""
    segment = load_segmenter()
    start, size = 0, BLOCK_SIZE
    while start < len(text):
        found = segment(code, text[start : start + size])
        if start + size < len(text):
            if len(found) == 1:
                size *= 2
                continue
            found.pop()  # it may go on in the next block
        yield from found
        start, size = start + sum(map(len, found)), BLOCK_SIZE


def _split_long_sentence(text: str, fits: Callable[[str], bool]) -> Iterator[str]:
    """Parts of a sentence that fit, with the white space around them; a single character is taken to fit."""
    stripped = text.strip()
    if len(stripped) < 2 or fits(stripped):
        yield text
    else:
        place = _split_position(text)
        yield from _split_long_sentence(text[:place], fits)
        yield from _split_long_sentence(text[place:], fits)


def _split_position(text: str) -> int:
    """Where to cut: after a clause in the middle half, else after white space, else between characters."""
    middle, quarter = len(text) // 2, len(text) // 4
    for found in (CLAUSE.finditer(text, quarter, len(text) - quarter), WHITESPACE.finditer(text)):
        if places := [end for match in found if (end := match.end()) < len(text)]:
            return min(places, key=lambda place: abs(place - middle))
    near = range(middle, max(middle - LONGEST_LETTER, 0), -1)
    return next((place for place in near if not _inside_grapheme(text, place)), middle)


def _inside_grapheme(text: str, place: int) -> bool:
    """Whether what follows is a mark, or joined, to what is before."""
    return unicodedata.category(text[place])[0] == "M" or "\u200d" in text[place - 1 : place + 1]


def _is_unspaced_boundary(before: str, after: str) -> bool:
    """Whether one of the characters that meet is of a script without spaces."""
    return bool(UNSPACED_SCRIPTS.search(before[-1:] + after[:1]))
