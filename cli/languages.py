"""Detection of the source languages of lines."""

from __future__ import annotations

import mlx_transformer as mt
from mlx_transformer.cli.input_lines import InputLine
from mlx_transformer.config.tokenizer import AUTO
from mlx_transformer.inference.source_lines import SourceLine, detect_source_language


def detect_language_of_line(tokenizer: mt.Tokenizer, line: InputLine) -> InputLine:
    """Return a line with its detected language, also among the fields of its result, if its language is AUTO."""
    if line.error or line.source.source_language != AUTO:
        return line
    source = detect_source_language(tokenizer.config, line.source)
    if source.error:
        return line._replace(source=SourceLine(""), error=f"{line.name}: {source.error}")
    return line._replace(source=source, fields=line.fields | {"source_language": source.source_language})
