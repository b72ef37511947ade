"""Books, .epub: an archive of XHTML pages; its pictures, styles and fonts are copied."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from mlx_transformer.documents.archives import rewrite_archive
from mlx_transformer.documents.html import translate_xhtml
from mlx_transformer.documents.reading import decode_text
from mlx_transformer.documents.translator import Translator

LANGUAGE = re.compile(rb"(<dc:language\b[^<>]*>)[^<>]*(?=</dc:language>)")
HEAD = 4096  # bytes in which a page with another ending begins
PAGES = (".xhtml", ".html", ".htm", ".ncx")  # the last one is the table of contents of EPUB 2


def translate_epub(data: bytes, name: str, translator: Translator) -> bytes:
    """Translate the pages of a book."""

    def rewrite(part: str, content: bytes) -> bytes:
        ending = PurePosixPath(part).suffix.lower()
        if ending == ".opf" and translator.language:  # readers choose voices and hyphens by it
            return LANGUAGE.sub(rf"\g<1>{translator.language}".encode(), content, count=1)
        if ending not in PAGES and not (ending == ".xml" and b"<html" in content[:HEAD]):
            return content
        page = f"{name}, {part}"
        return translate_xhtml(decode_text(content, page), page, translator).encode()

    return rewrite_archive(data, name, rewrite)
