"""Kinds of text that targets may copy from their sources."""

# Kinds of text that can be copied; the lookbehinds keep a search linear in the length of the text.
PROTECTED_PATTERNS = {
    "urls": r"(?<![\w@])(?:https?://|www\.)[^\s<>\"]*[\w/]",
    "addresses": r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "placeholders": r"\$?\{\{?\w*\}?\}|%(?:\d+\$)?[sdif](?!\w)|%\(\w+\)[sdif](?!\w)",
    "tags": r"</?[A-Za-z][^<>]*>",
    "numbers": r"(?<![\w.,:/-])\d+(?:[.,:/-]\d+)*(?!\w)",
}
DEFAULT_PROTECTED = ("urls", "addresses", "placeholders")
