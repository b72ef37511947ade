"""Letters in pictures: pieces as a reader knows them, and fonts, of those installed, that have their characters."""

import logging
import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import matplotlib
from matplotlib.font_manager import FontProperties, fontManager, get_font
from tokenizers import decoders

from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.vocabulary import SPACE_SYMBOL, Vocabulary

DEFAULT_FONT = "DejaVu Sans"  # comes with matplotlib
NO_LETTERS = re.compile("Last ?Resort|Adobe Blank")  # fonts with something for every character, but not its own shape
ASCII_BYTE = re.compile("<0x([2-7][0-9A-F])>")
# An open box for a space, a black square for OpenNMT's joiner, which few fonts have.
SIGNS = str.maketrans({" ": "\u2423", SPACE_SYMBOL: "\u2423", "\uffed": "\u25a0"})
WITHOUT_SHAPE = ("Cc", "Co", "Cs", "Zl", "Zp")  # control, private use, surrogates, ends of lines
INVISIBLE = ("Cf", "Zs")  # joiners and the like, spaces
logger = logging.getLogger(__name__)


class RenderedLabels(NamedTuple):
    """Texts as a picture can show them.

    Attributes:
        texts: The texts, without characters that the fonts lack.
        families: The fonts, each for what those before it lack: matplotlib's `fontfamily`.
    """

    texts: list[str]
    families: list[str]


def piece_labels(vocabulary: Vocabulary, ids: Iterable[int]) -> list[str]:
    """The pieces of ids as a reader knows them: spaces as an open box, ASCII bytes as characters.

    Where the vocabulary spells bytes as letters, as GPT-2's does, that is undone; there bytes that are no characters by
    themselves become U+FFFD.
    """
    decoder = vocabulary.tokenizer.decoder if isinstance(vocabulary, HFVocabulary) else None
    found = []
    for piece in map(vocabulary.id_to_token, ids):
        if isinstance(decoder, decoders.ByteLevel):
            piece = decoder.decode([piece])
        elif byte := ASCII_BYTE.fullmatch(piece):
            piece = chr(int(byte[1], 16))
        found.append(piece.translate(SIGNS))
    return found


def render_labels(texts: Iterable[str], longest: int) -> RenderedLabels:
    """Find fonts for texts, which are cut to so many characters.

    What no installed font has is shown by its code, as U+4E2D, with a warning in the log.
    """
    texts = list(texts)
    needed = {letter for letter in set("".join(texts)) if unicodedata.category(letter) not in WITHOUT_SHAPE}
    families = [DEFAULT_FONT]
    lacking = needed - covered_characters(DEFAULT_FONT, needed)
    found = {name: covered_characters(name, lacking) for name in installed_fonts()} if lacking else {}
    while lacking:
        counts = {name: len(letters & lacking) for name, letters in found.items()}
        best = max(counts, key=counts.__getitem__)
        if not counts[best]:
            break
        families.append(best)
        lacking -= found[best]
    if unknown := sorted(letter for letter in lacking if not is_invisible(letter)):
        _warn(unknown)
    visible = (visible_text(text, needed - lacking) for text in texts)
    return RenderedLabels([text if len(text) <= longest else f"{text[: longest - 1]}…" for text in visible], families)


def installed_fonts() -> list[str]:
    """The families that have an upright regular font; those without serifs first, then by name."""
    names = {font.name for font in fontManager.ttflist if font.style == "normal" and font.weight == 400}
    return sorted((n for n in names if not NO_LETTERS.search(n)), key=lambda name: ("Sans" not in name, name))


def covered_characters(family: str, letters: set[str]) -> set[str]:
    """Those of the letters that a font has; none if the font is gone since matplotlib listed it."""
    try:
        font = get_font(fontManager.findfont(FontProperties(family=[family]), fallback_to_default=False))
    except ValueError:
        return set()
    return {letter for letter in letters if font.get_char_index(ord(letter))}


def visible_text(text: str, known: set[str]) -> str:
    """A text in known letters: others by code, or, if invisible, not at all; a text that shows nothing all by code."""
    hidden = all(map(is_invisible, text))
    letters = text if hidden else [letter for letter in text if letter in known or not is_invisible(letter)]
    text = "".join(letter if letter in known and not hidden else f" {codepoint_label(letter)} " for letter in letters)
    return " ".join(text.split())


def is_invisible(letter: str) -> bool:
    """Whether a character only changes how others look or stand."""
    return unicodedata.category(letter) in INVISIBLE or "\ufe00" <= letter <= "\ufe0f"


def codepoint_label(letter: str) -> str:
    """The code point of a character."""
    return f"U+{ord(letter):04X}"


def text_width(text: str) -> int:
    """How wide a text is, in Latin letters, about."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _warn(letters: list[str]) -> None:
    """Tell of characters without a font."""
    some = ", ".join(map(codepoint_label, letters[:3]))
    more = f" and {len(letters) - 3} more characters" if len(letters) > 3 else ""
    logger.warning(
        "No installed font has %s%s, shown by code: install one that does (Noto's do), and delete %s/fontlist-*.json.",
        *(some, more, matplotlib.get_cachedir()),
    )
