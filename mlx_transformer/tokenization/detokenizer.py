"""Text of target ids as they come, one at a time: pieces that joined are the text of all ids, each as early as is safe.

What a next token may still change is held back: a character whose bytes are not all there, the sign that a word goes
on, a space that cleaning up may take away.
"""

import re

from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.tokenizer import CLEAN_UP_RULES, Tokenizer

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
INCOMPLETE = re.compile("[\ufffd@]+\\Z")  # the end of a text that may change: U+FFFD may be half a character, "@@" goes
WINDOW = 64  # ids that are decoded together; of more, those that have become text for good are dropped
CLEAN_UP_BOUNDARIES = 8  # places that are tried for a cut of the window


class Detokenizer:
    """Makes text of the ids of one target as they come.

    `"".join([*map(detokenizer.add, ids), detokenizer.finish()]) == tokenizer.decode(ids)` for any ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        """Begin a text."""
        self._tokenizer = tokenizer
        self._skipped = frozenset(tokenizer.config.skip_ids)
        self._in_runs = isinstance(tokenizer.target, HFVocabulary)
        self._ids: list[int] = []  # that the text of the next one may depend on
        self._given = 0  # characters of their text that were passed on
        self._held = [""] * len(CLEAN_UP_RULES)

    def add(self, i: int) -> str:
        """The text that has become sure with one more id, often none.

        Raises:
            ValueError: If the id is not in the target vocabulary.
        """
        self._tokenizer.tokens([i])
        if i in self._skipped:
            return ""
        self._ids.append(i)
        if self._is_byte(i):
            return ""
        text = self._text(self._ids)
        new = self._pass_on(text, len(INCOMPLETE.sub("", text)))
        if len(self._ids) > WINDOW and len(self._ids) % CLEAN_UP_BOUNDARIES == 0:
            self._drop(text)
        return self._clean_up(new)

    def finish(self) -> str:
        """What was held back; then a new text may begin."""
        text = self._text(self._ids)
        rest = self._clean_up(self._pass_on(text, len(text)), last=True)
        self._ids, self._given = [], 0
        return rest

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.target.decode(ids)

    def _is_byte(self, i: int) -> bool:
        """Whether its text depends on all the bytes beside it: `tokenizers` reads a run of them as a whole."""
        return self._in_runs and BYTE_TOKEN.fullmatch(self._tokenizer.target.id_to_token(i)) is not None

    def _pass_on(self, text: str, end: int) -> str:
        start, self._given = self._given, max(self._given, end)
        return text[start:end]

    def _drop(self, text: str) -> None:
        """Forget the first ids, if the others have a sure character by themselves: what comes after it is the same."""
        middle = len(self._ids) // 2
        for place in range(middle, middle + CLEAN_UP_BOUNDARIES):
            rest = self._text(self._ids[place:])
            if INCOMPLETE.sub("", rest):
                self._ids, self._given = self._ids[place:], self._given - (len(text) - len(rest))
                return

    def _clean_up(self, text: str, last: bool = False) -> str:
        """Replace as `Tokenizer.decode` does; the beginning of what may have to be replaced waits for the rest."""
        if not self._tokenizer.config.clean_up:
            return text
        for number, (spaced, joined) in enumerate(CLEAN_UP_RULES):
            text = (self._held[number] + text).replace(spaced, joined)
            lengths = range(len(spaced) - 1, 0, -1)
            held = 0 if last else next((n for n in lengths if text.endswith(spaced[:n])), 0)
            text, self._held[number] = text[: len(text) - held], text[len(text) - held :]
        return text
