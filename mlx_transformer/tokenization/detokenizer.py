"""Incremental detokenization: each token id is turned into text as early as later ids can no longer change it.

Held back is text that the next id may change: a character whose bytes are incomplete, the "@@" of an unfinished word, a
space that the clean-up of punctuation may remove.
"""

import re
from collections.abc import Iterable, Iterator

from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.tokenizer import CLEAN_UP_RULES, Tokenizer

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
INCOMPLETE = re.compile("[\ufffd@]+\\Z")  # a suffix that may change: U+FFFD from an incomplete character, or "@@"
WINDOW = 64  # ids that are decoded together; beyond it, ids whose text is final are dropped
CUT_ATTEMPTS = 8  # positions tried to cut the window


class Detokenizer:
    """Decodes the ids of one target as they arrive.

    `"".join([*map(detokenizer.add, ids), detokenizer.finish()]) == tokenizer.decode(ids)` for any ids.
    `tokenizers.decoders.DecodeStream` does not hold this: it raises for bytes that are not UTF-8 and never returns an
    incomplete character at the end.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Start a text."""
        self._tokenizer = tokenizer
        self._skip_ids = frozenset(tokenizer.config.skip_ids)
        self._decodes_byte_runs = isinstance(tokenizer.target, HFVocabulary)
        self._ids: list[int] = []  # ids that the text of the next one may depend on
        self._num_emitted = 0  # characters of their text that were returned
        self._held_back = [""] * len(CLEAN_UP_RULES)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of ids in pieces, none of them empty, as early as it is final."""
        yield from filter(None, map(self.add, ids))
        if rest := self.finish():
            yield rest

    def add(self, i: int) -> str:
        """Add an id and return the text that became final, often none.

        Raises:
            ValueError: If the id is not in the target vocabulary.
        """
        self._tokenizer.tokens([i])
        if i in self._skip_ids:
            return ""
        self._ids.append(i)
        if self._is_byte(i):
            return ""
        text = self._decode(self._ids)
        new = self._emit(text, len(INCOMPLETE.sub("", text)))
        if len(self._ids) > WINDOW and len(self._ids) % CUT_ATTEMPTS == 0:
            self._shrink_window(text)
        return self._clean_up(new)

    def finish(self) -> str:
        """Return the text held back and start a new text."""
        text = self._decode(self._ids)
        rest = self._clean_up(self._emit(text, len(text)), last=True)
        self._ids, self._num_emitted = [], 0
        return rest

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.target.decode(ids)

    def _is_byte(self, i: int) -> bool:
        """Whether the id is a byte whose text depends on adjacent bytes: `tokenizers` decodes runs of bytes at once."""
        return self._decodes_byte_runs and BYTE_TOKEN.fullmatch(self._tokenizer.target.id_to_token(i)) is not None

    def _emit(self, text: str, end: int) -> str:
        start, self._num_emitted = self._num_emitted, max(self._num_emitted, end)
        return text[start:end]

    def _shrink_window(self, text: str) -> None:
        """Drop the first ids where the rest alone decodes to a final character: the text after it stays the same."""
        middle = len(self._ids) // 2
        for cut in range(middle, middle + CUT_ATTEMPTS):
            rest = self._decode(self._ids[cut:])
            if INCOMPLETE.sub("", rest):
                self._ids, self._num_emitted = self._ids[cut:], self._num_emitted - (len(text) - len(rest))
                return

    def _clean_up(self, text: str, last: bool = False) -> str:
        """Apply the rules of `Tokenizer.decode`, holding back a suffix that may be the beginning of a match."""
        if not self._tokenizer.config.clean_up:
            return text
        for rule, (spaced, joined) in enumerate(CLEAN_UP_RULES):
            text = (self._held_back[rule] + text).replace(spaced, joined)
            lengths = range(len(spaced) - 1, 0, -1)
            held = 0 if last else next((n for n in lengths if text.endswith(spaced[:n])), 0)
            text, self._held_back[rule] = text[: len(text) - held], text[len(text) - held :]
        return text
