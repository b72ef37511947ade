"""Plain text: each line is a paragraph; blank lines, indentation and line ends stay."""

import re

from mlx_transformer.documents.translator import Translator


def translate_plain_text(text: str, name: str, translator: Translator) -> str:
    """Translate each line."""
    parts = re.split("(\r\n|\n|\r)", text)
    parts[::2] = translator.translate_texts(parts[::2])
    return "".join(parts)
