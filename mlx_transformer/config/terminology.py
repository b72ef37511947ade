"""Kinds of text that targets may copy from their sources."""

# The lookbehinds keep a search linear in the length of the text. Text of scripts without spaces ends a URL or address.
PROTECTED_PATTERNS = {
    "urls": r"(?<![A-Za-z0-9_@])(?i:https?://|www\.)(?:(?![<>\"])[!-~\u00a1-\u024f])*[A-Za-z0-9_/\u00c0-\u024f]",
    "addresses": r"(?a:(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+)",
    "placeholders": r"\$?\{\{? ?[\w.]*(?:![rsa])?(?::[^{}\s]{0,20})? ?\}?\}"
    r"|%(?:\d+\$)?\d{0,9}(?:\.\d{1,9})?[sdif@](?!\w)|%\(\w+\)[sdif](?!\w)",
    "tags": r"</?[A-Za-z][^<>]*>",
    "numbers": r"(?<![\w.,:/-])[-−+]?\d+(?:[.,:/-]\d+)*(?!\w)",
}
DEFAULT_PROTECTED = ("urls", "addresses", "placeholders")
