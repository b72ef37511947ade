"""Normalisation of text as people type it: Unicode forms, white space, invisible characters, quotes and dashes."""

import re

from tokenizers import Regex, normalizers

# Control characters except white space, and the code points that Unicode calls default ignorable, such as the byte
# order mark, zero-width spaces and joiners, the soft hyphen, direction marks and variation selectors.
INVISIBLE = (
    "\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
# With the characters that NFKC would make others of the list: a prime, or a space and an accent.
SINGLE_QUOTES = "\u00b4\u02bc\u1ffd\u2018\u2019\u201a\u201b\u2032"
DOUBLE_QUOTES = "\u201c\u201d\u201e\u201f\u2033\u2034\u2057\u301d\u301e"
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u207b\u208b\u2212\ufe31\ufe32\ufe58"
BLANK = re.compile(rf"[\s{INVISIBLE}]*")


def is_blank(text: str) -> bool:
    """Whether a text has no visible character."""
    return BLANK.fullmatch(text) is not None


def make_normalizer() -> normalizers.Normalizer:
    """Return the normaliser of trained tokenizers, which turns what looks alike into the same text.

    It does what the rule nmt_nfkc of SentencePiece does: compatibility forms (NFKC), plain single spaces, none around
    the text. Beyond this it removes all invisible characters, and replaces curly quotes and dashes by those of ASCII.
    """
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(f"[{INVISIBLE}]"), ""),
            _replace(SINGLE_QUOTES, "'"),
            _replace(DOUBLE_QUOTES, '"'),
            _replace(DASHES, "-"),
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"\s{2,}|[^\S ]"), " "),
            normalizers.Strip(),
        ]
    )


def _replace(characters: str, content: str) -> normalizers.Normalizer:
    """Replace each of a few characters; an alternative of characters is searched faster than a class."""
    return normalizers.Replace(Regex("|".join(characters)), content)
