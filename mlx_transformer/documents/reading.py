"""Reading of documents that are text; errors name the line."""

import codecs

from mlx_transformer.storage.text_files import SAMPLE_SIZE, check_encoding


def decode_text(data: bytes, name: str) -> str:
    """Decode a document in UTF-8, without a byte order mark.

    Raises:
        ValueError: If it is in another encoding; the message has the line.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    check_encoding(name, data[:SAMPLE_SIZE])
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        value = data[error.start]
        raise ValueError(
            f"{name}, line {line} must be UTF-8, but it has the byte {value:#04x}: convert the file with iconv, or "
            "correct the line."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{name}, line {line} must be text, but it has a NUL character: remove it.")
    return text
