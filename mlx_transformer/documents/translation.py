"""Translation of documents: the formats by file ending, bytes to bytes or file to file."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from mlx_transformer.config.search import BATCH_TOKENS, SearchConfig, SearchOptions, Unpack
from mlx_transformer.decoding.lexical_shortlist import LexicalShortlist
from mlx_transformer.documents.reading import decode_text
from mlx_transformer.documents.translator import DocumentReport, Progress, Translator, make_translator
from mlx_transformer.inference.search_options import make_search
from mlx_transformer.messages import install_command, shorten
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.pretrained.known_models import find_language
from mlx_transformer.storage.atomic import atomic_write
from mlx_transformer.tokenization.tokenizer import Tokenizer

REGION = re.compile(r"[A-Za-z]{2}|\d{3}")
MAX_BYTES = 2**26  # of a document; its tree takes many times as much
# Ending -> module and function; the libraries that it needs are imported on first use.
TEXT_FORMATS = {
    ".txt": "plain_text.translate_plain_text",
    ".srt": "subtitles.translate_srt",
    ".vtt": "subtitles.translate_vtt",
    ".html": "html.translate_html",
    ".htm": "html.translate_html",
    ".xhtml": "html.translate_xhtml",
    ".md": "markdown.translate_markdown",
    ".markdown": "markdown.translate_markdown",
    ".po": "gettext.translate_po",
}
BINARY_FORMATS = {
    ".xliff": "xliff.translate_xliff",
    ".xlf": "xliff.translate_xliff",
    ".docx": "docx.translate_docx",
    ".epub": "epub.translate_epub",
}
ENDINGS = (*TEXT_FORMATS, *BINARY_FORMATS)


class TranslatedDocument(NamedTuple):
    """A document in the target language, and what happened to its texts."""

    data: bytes
    report: DocumentReport


def translate_file(
    model: Transformer,
    tokenizer: Tokenizer,
    source: str | os.PathLike[str],
    target_path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    **options: Any,
) -> DocumentReport:
    """Translate a document; only its text changes.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        source: The document.
        target_path: The file to write, with the ending of the source. It is written as a whole, or not at all.
        overwrite: Whether an existing file is replaced.
        **options: See `translate_document`.

    Returns:
        Counts of texts, and of markup and placeholders that could not be placed.

    Raises:
        FileExistsError: If the target exists and is not to be replaced.
        ValueError: If the ending is unknown, the document is damaged or hostile, or a text has no result.
    """
    source, target = Path(source), Path(target_path)
    check_files(source, target, overwrite)
    with source.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    result = translate_document(model, tokenizer, data, str(source), **options)
    with atomic_write(target) as file:
        file.write(result.data)
    return result.report


def check_files(source: Path, target: Path, overwrite: bool) -> None:
    """Raise an error if a document cannot be translated to a file, before a model is loaded."""
    find_format(source.name)
    if target.suffix.lower() != source.suffix.lower():
        raise ValueError(f"The output must have the ending of the input, {source.suffix}, but is {target}.")
    if not source.is_file():
        raise FileNotFoundError(f"{source} must be a file to translate: check the name.")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"The output must be in an existing folder, but there is no {target.parent}: create it."
        )
    if target.exists() and target.samefile(source):
        raise ValueError(f"The input and the output must be different files, but both are {source}.")
    if os.path.lexists(target) and not overwrite:
        raise FileExistsError(f"{target} already exists: choose another name, or use force to replace it.")


def find_format(name: str) -> Callable[[bytes, str, Translator], bytes]:
    """Return the function that translates documents of a name's ending.

    Raises:
        ValueError: If the ending is unknown, or a library is not installed.
    """
    ending = Path(name).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(
            f"A document must end in {', '.join(ENDINGS)}, but {shorten(name)} does not: convert it first."
        )
    module, function = (TEXT_FORMATS | BINARY_FORMATS)[ending].split(".")
    try:
        translate = vars(import_module(f"mlx_transformer.documents.{module}"))[function]
    except ModuleNotFoundError as error:
        raise ValueError(f"Documents in {ending} need libraries: {error}; {install_command('documents')}.") from None
    return partial(_translate_text, translate) if ending in TEXT_FORMATS else translate


def translate_document(
    model: Transformer,
    tokenizer: Tokenizer,
    data: bytes,
    name: str,
    search: SearchConfig | None = None,
    *,
    source_language: str | None = None,
    target_language: str | None = None,
    source_prefix: str | None = None,
    split_sentences: bool | None = None,
    sentence_language: str | None = None,
    glossary: Mapping[str, str] | None = None,
    protect: Sequence[str] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    shortlist: LexicalShortlist | None = None,
    document_language: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[SearchOptions],
) -> TranslatedDocument:
    """Translate the bytes of a document.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        data: The document.
        name: Its file name, whose ending says what it is.
        search: See `generate_hypotheses`.
        source_language: Language code of the text, for models that need one.
        target_language: Language code to generate, for models that need one.
        source_prefix: See `generate_hypotheses`.
        split_sentences: See `generate`.
        sentence_language: Language whose rules split sentences; the source language if None.
        glossary: See `generate`.
        protect: See `generate`.
        batch_tokens: See `generate_hypotheses`.
        shortlist: See `generate`.
        document_language: What the document says its language is, such as fr; None for the target language.
        progress: Called after each different text with the number of texts so far, and of those in the pages so far.
        **options: Fields of the search configuration to change, such as `beam_size=4`; see `SearchConfig`.

    Raises:
        ValueError: If the ending is unknown, the document is damaged or hostile, or a text has no result.
    """
    translator = make_translator(
        model,
        tokenizer,
        search=make_search(translate_document, model, search, options),
        languages=(source_language, target_language),
        source_prefix=source_prefix,
        split_sentences=split_sentences,
        sentence_language=sentence_language,
        glossary=glossary,
        protect=protect,
        batch_tokens=batch_tokens,
        shortlist=shortlist,
        progress=progress,
        language=document_language or language_tag(target_language or tokenizer.config.only_languages[1]),
    )
    return run_translator(translator, data, name)


def run_translator(translator: Translator, data: bytes, name: str) -> TranslatedDocument:
    """Translate the bytes of a document by a translator; see `translate_document`."""
    translate = find_format(name)
    _check_size(data, name)
    return TranslatedDocument(translate(data, name, translator), translator.report)


def _check_size(data: bytes, name: str) -> None:
    """Raise ValueError if a document is too large."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name} must have at most {MAX_BYTES >> 20} MiB, but it is larger: split it.")


def language_tag(code: str | None) -> str | None:
    """Return the tag of a language for documents: fr for fra_Latn, pt-BR for pt_BR, zh-Hant for zho_Hant."""
    if code is None:
        return None
    base, *others = code.replace("_", "-").split("-")
    base = base.casefold()
    if len(base) > 2:  # such codes have one of two letters in the table of known models, if there is one
        with suppress(ValueError):
            base = find_language("code", base) or base
    scripts = [part.title() for part in others if part.title() in ("Hans", "Hant")]
    regions = [part.upper() for part in others if REGION.fullmatch(part) and part.upper() != "XX"]
    return "-".join([base, *scripts, *regions]) if base.isalpha() else None


def _translate_text(
    translate: Callable[[str, str, Translator], str], data: bytes, name: str, translator: Translator
) -> bytes:
    """Translate a document that is text in UTF-8; a byte order mark stays."""
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    return mark + translate(decode_text(data, name), name, translator).encode()
