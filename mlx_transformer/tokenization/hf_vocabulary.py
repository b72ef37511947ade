"""Vocabularies of the Hugging Face tokenizers library."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from mlx_transformer.storage.files import read_bytes
from mlx_transformer.tokenization.hf_components import check_components
from mlx_transformer.tokenization.library_errors import library_errors
from mlx_transformer.tokenization.texts import TextError
from mlx_transformer.tokenization.vocabulary import Vocabulary


class HFVocabulary(Vocabulary):
    """A vocabulary backed by the `tokenizers` library, without its special tokens, padding and truncation."""

    kind = "tokenizers"

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        """Wrap a tokenizer and turn off its padding and truncation."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer

    @cached_property
    def size(self) -> int:
        """See `Vocabulary`."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """See `Vocabulary`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `Vocabulary`."""
        with library_errors("A text cannot be split into tokens", "change it, or use another tokenizer", TextError):
            return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """See `Vocabulary`."""
        with library_errors("Token ids cannot be decoded", "use another tokenizer", TextError):
            return self.tokenizer.decode(ids, skip_special_tokens=False)

    def id_to_token(self, i: int) -> str:
        """See `Vocabulary`."""
        return self.tokenizer.id_to_token(i) or ""

    def token_to_id(self, token: str) -> int | None:
        """See `Vocabulary`."""
        return self.tokenizer.token_to_id(token)

    def write(self, folder: Path, prefix: str) -> dict[str, Any]:
        """See `Vocabulary`."""
        (folder / f"{prefix}tokenizer.json").write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")
        return {}

    @classmethod
    def read(cls, folder: Path, prefix: str, data: dict[str, Any]) -> "Vocabulary":
        """See `Vocabulary`."""
        path = folder / f"{prefix}tokenizer.json"
        return cls(load_hf_tokenizer(read_bytes(path), str(path)))


def load_hf_tokenizer(content: bytes, name: str) -> tokenizers.Tokenizer:
    """Return the tokenizer of a tokenizer.json; errors call the file `name`.

    Raises:
        ValueError: If the content is damaged, or its rules could exhaust memory.
    """
    with library_errors(f"{name} must hold a tokenizer"):
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
        check_components(tokenizer)
    return tokenizer
