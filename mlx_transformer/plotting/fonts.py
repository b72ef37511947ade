"""Labels in figures: readable token pieces, and installed fonts that cover their characters."""

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.font_manager import FontProperties, fontManager, get_font
from tokenizers import decoders

from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.vocabulary import SPACE_SYMBOL, Vocabulary

DEFAULT_FONT = "DejaVu Sans"  # comes with matplotlib
PLACEHOLDER_FONTS = re.compile("Last ?Resort|Adobe Blank")  # fonts with placeholders for every character
BYTE = re.compile("<0x[0-9A-F]{2}>")
MAX_BYTES = 4  # of a character in UTF-8
REPLACEMENT = "\ufffd"  # for bytes that are no character
# Spaces become open boxes; OpenNMT's joiner, which few fonts have, becomes a black square.
VISIBLE_SYMBOLS = str.maketrans({" ": "\u2423", SPACE_SYMBOL: "\u2423", "\uffed": "\u25a0"})
NON_GLYPH_CATEGORIES = ("Cc", "Co", "Cs", "Zl", "Zp")  # control, private use, surrogates, line separators
INVISIBLE_CATEGORIES = ("Cf", "Zs")  # format characters, spaces
logger = logging.getLogger(__name__)


class RenderedLabels(NamedTuple):
    """Labels that the installed fonts can show.

    Attributes:
        texts: The labels; characters without a font are replaced.
        families: Font families, each a fallback for those before it: matplotlib's `fontfamily`.
    """

    texts: list[str]
    families: list[str]


class Pieces(NamedTuple):
    """Readable pieces of a text.

    Attributes:
        labels: The pieces.
        starts: Index of the first token of each piece.
    """

    labels: list[str]
    starts: list[int]


def readable_pieces(vocabulary: Vocabulary, ids: Sequence[int]) -> Pieces:
    """Return readable pieces for token ids: spaces as open boxes, the bytes of a character as one piece.

    Byte-level pieces (GPT-2) are decoded; bytes that are no character stay on their own, as U+FFFD or <0xE4>.
    """
    tokens = [vocabulary.id_to_token(i) for i in ids]
    decoder = vocabulary.tokenizer.decoder if isinstance(vocabulary, HFVocabulary) else None

    def decode(part: list[str]) -> str:
        if isinstance(decoder, decoders.ByteLevel):
            return str(decoder.decode(part))
        if all(map(BYTE.fullmatch, part)):
            return bytes(int(token[1:-1], 16) for token in part).decode("utf-8", "replace")
        return part[0] if len(part) == 1 else REPLACEMENT

    labels, starts, start = [], [], 0
    while start < len(tokens):
        parts = (tokens[start : start + count] for count in range(1, MAX_BYTES + 1))
        part = next((part for part in parts if REPLACEMENT not in decode(part)), [tokens[start]])
        text = decode(part)
        label = part[0] if text == REPLACEMENT and BYTE.fullmatch(part[0]) else text
        labels.append(label.translate(VISIBLE_SYMBOLS))
        starts.append(start)
        start += len(part)
    return Pieces(labels, starts)


def render_labels(texts: Iterable[str], max_length: int) -> RenderedLabels:
    """Find fonts for labels, and truncate labels to `max_length` characters.

    Characters that no installed font covers are shown as code points (U+4E2D), with a warning in the log.
    """
    texts = list(texts)
    needed = {letter for letter in set("".join(texts)) if unicodedata.category(letter) not in NON_GLYPH_CATEGORIES}
    families = [DEFAULT_FONT]
    missing = needed - covered_characters(DEFAULT_FONT, needed)
    coverage = {name: covered_characters(name, missing) for name in installed_fonts()} if missing else {}
    while missing:
        counts = {name: len(letters & missing) for name, letters in coverage.items()}
        best = max(counts, key=counts.__getitem__)
        if not counts[best]:
            break
        families.append(best)
        missing -= coverage[best]
    if unknown := sorted(letter for letter in missing if not is_invisible(letter)):
        _warn(unknown)
    visible = (visible_text(text, needed - missing) for text in texts)
    return RenderedLabels(
        [text if len(text) <= max_length else f"{text[: max_length - 1]}…" for text in visible], families
    )


def installed_fonts() -> list[str]:
    """Return the font families with an upright regular font, sans-serif first, then by name."""
    names = {font.name for font in fontManager.ttflist if font.style == "normal" and font.weight == 400}
    return sorted((n for n in names if not PLACEHOLDER_FONTS.search(n)), key=lambda name: ("Sans" not in name, name))


def covered_characters(family: str, letters: set[str]) -> set[str]:
    """Return the characters that a font covers; none if the font was removed since matplotlib listed it."""
    try:
        font = get_font(fontManager.findfont(FontProperties(family=[family]), fallback_to_default=False))
    except ValueError:
        return set()
    return {letter for letter in letters if font.get_char_index(ord(letter))}


def visible_text(text: str, covered: set[str]) -> str:
    """Replace characters without a font by code points, and drop invisible ones unless the text has nothing else."""
    all_invisible = all(map(is_invisible, text))
    letters = text if all_invisible else [letter for letter in text if letter in covered or not is_invisible(letter)]
    text = "".join(
        letter if letter in covered and not all_invisible else f" {codepoint_label(letter)} " for letter in letters
    )
    return " ".join(text.split())


def is_invisible(letter: str) -> bool:
    """Whether a character has no glyph of its own, such as joiners, variation selectors and spaces."""
    return unicodedata.category(letter) in INVISIBLE_CATEGORIES or "\ufe00" <= letter <= "\ufe0f"


def codepoint_label(letter: str) -> str:
    """Return the code point of a character, U+XXXX."""
    return f"U+{ord(letter):04X}"


def text_width(text: str) -> int:
    """Return the approximate width of a text in Latin characters."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _warn(letters: list[str]) -> None:
    """Warn about characters without a font."""
    examples = ", ".join(map(codepoint_label, letters[:3]))
    more = f" and {len(letters) - 3} more characters" if len(letters) > 3 else ""
    logger.warning(
        "No installed font covers %s%s, shown as code points: install one that does (Noto), and delete "
        "%s/fontlist-*.json.",
        *(examples, more, matplotlib.get_cachedir()),
    )
