"""Kinds of text that targets may copy from their sources."""

from collections.abc import Sequence

from mlx_transformer.config.tokenizer import TokenizerConfig

ATTRIBUTE = r"""\s+[\w:-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)"""
# Arrows, technical and geometric signs, dingbats, joiners and variation selectors, emoji; and single signs.
SIGNS = "\u2190-\u21ff\u2300-\u23ff\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff\u200d\ufe0f\U0001f000-\U0001faff"
SIGNS += "#<=>^|~§©®°™¶†‡•‣"
# The lookbehinds keep a search linear in the length of the text. Text of scripts without spaces ends a URL or address.
PROTECTED_PATTERNS = {
    "urls": r"(?<![A-Za-z0-9_@])(?i:[a-z][a-z0-9+.-]{0,20}://|www\.)(?:(?![<>\"])[!-~\u00a1-\u024f])*[A-Za-z0-9_/\u00c0-\u024f]",
    "addresses": r"(?a:(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+)",
    "placeholders": r"[$%#]?\{\{? ?[\w.]*(?:![rsa])?(?::[^{}\s]{0,20})? ?\}?\}"
    r"|%(?:\d+\$)?\d{0,9}(?:\.\d{1,9})?[sdif@](?!\w)|%\(\w+\)[sdif](?!\w)|%%",
    "tags": rf"</?[A-Za-z][\w:-]*(?:{ATTRIBUTE})*\s*/?>",
    "paths": r"(?<![\w/.:@-])(?:(?:~|\.{1,2})/|/[\w.+-]+/)[\w.+/-]*\w/?|(?<!\w)[A-Za-z]:\\[^\s<>\"|?*]*\w",
    "handles": r"(?<![\w@#/&.])[@#][^\W\d]\w+",
    "symbols": r"\d+(?:[.,]\d+)?\s?°(?:\s?[CF]\b)?|#\s?\d+(?!\w)"
    rf"|[€£¥$]\s?\d+(?:[.,]\d+)*(?!\w)|(?<![\d.,])\d+(?:[.,]\d+)*\s?[€£¥]|[{SIGNS}]+",
    "numbers": r"(?<![\w.,:/-])[-−+]?\d+(?:[.,:/-]\d+)*(?!\w)",
}
DEFAULT_PROTECTED = ("urls", "addresses", "placeholders")
TRANSLATION_PROTECTED = (*DEFAULT_PROTECTED, "tags", "paths", "handles", "symbols")


def choose_protected(protect: Sequence[str] | None, config: TokenizerConfig) -> Sequence[str]:
    """Return the kinds of text to copy; if None the default ones, more for a model that is known to translate."""
    if protect is not None:
        return protect
    return TRANSLATION_PROTECTED if config.language_pair or config.languages else DEFAULT_PROTECTED
