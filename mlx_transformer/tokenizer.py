"""Text to token ids and back: subword BPE with byte fallback, so any text in any script survives the round trip."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<pad>", "</s>", "<s>")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
FIXED_TOKENS = SPECIAL_TOKENS + BYTE_TOKENS

# Words with the space before them, digits one by one, runs of marks, runs of white space. An apostrophe stays with the
# letters before it (l'|eau, qu'|il). No match spans letters and marks, so no piece can read "<pad>" or "<0x41>".
WORDS = r" ?\p{L}[\p{L}\p{M}]*(?:['’](?=\p{L}))?| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# A character outside the most frequent that make up this share of the text is spelled in bytes.
CHARACTER_COVERAGE = 0.99999


class Tokenizer:
    """A source and a target vocabulary, or one for both, whose first entries are padding, end and start.

    Special tokens are never read from text: "</s>" typed by a user is five characters like any other.
    """

    pad_id = 0
    eos_id = 1
    start_id = 2

    def __init__(self, source: tokenizers.Tokenizer, target: tokenizers.Tokenizer | None = None):
        """Wrap trained vocabularies; without a target, the source vocabulary serves both sides."""
        self.source = _checked(source)
        self.target = source if target is None else _checked(target)

    @property
    def shared(self) -> bool:
        """Whether source and target share one vocabulary."""
        return self.source is self.target

    @property
    def source_vocab_size(self) -> int:
        """Number of source ids."""
        return self.source.get_vocab_size()

    @property
    def target_vocab_size(self) -> int:
        """Number of target ids."""
        return self.target.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Give the source ids of a text, ending with `eos_id`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Give the source ids of each text, ending with `eos_id`.

        Raises:
            ValueError: If a text holds a lone surrogate, which no UTF-8 file can.
        """
        return self._encode(self.source, texts)

    def encode_target(self, text: str) -> list[int]:
        """Give the target ids of a text, ending with `eos_id`, without a start."""
        return self.encode_target_batch([text])[0]

    def encode_target_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Give the target ids of each text, ending with `eos_id`, without a start; raises as `encode_batch`."""
        return self._encode(self.target, texts)

    def _encode(self, vocabulary: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            _check_text(text)
        encodings = vocabulary.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids + [self.eos_id] for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Give the text of target ids; special tokens are skipped, bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: If an id is not in the target vocabulary.
        """
        ids = self._known(ids)
        return self.target.decode([i for i in ids if i >= len(SPECIAL_TOKENS)], skip_special_tokens=False)

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        """Give the text of each row of target ids; see `decode`."""
        return [self.decode(ids) for ids in batch]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Give the pieces of target ids for display, special tokens included."""
        return [self.target.id_to_token(i) or "" for i in self._known(ids)]

    def _known(self, ids: Iterable[int]) -> list[int]:
        known = [int(i) for i in ids]
        last = self.target_vocab_size - 1
        for i in known:
            if not 0 <= i <= last:
                raise ValueError(f"A target id must lie in 0..{last}: got {i}; use the tokenizer saved with the model.")
        return known

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, and `target_tokenizer.json` when the target has a vocabulary of its own."""
        source, target = _paths(folder)
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(self.source.to_str(pretty=True), encoding="utf-8")
        if self.shared:
            # Left from an earlier save, it would come back as the target's vocabulary.
            target.unlink(missing_ok=True)
        else:
            target.write_text(self.target.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If the folder holds no `tokenizer.json`.
            ValueError: If a file is damaged or is not a tokenizer of this package.
        """
        source, target = _paths(folder)
        return cls(_read(source), _read(target) if target.exists() else None)

    @classmethod
    def train(
        cls, sources: Iterable[str], targets: Iterable[str], vocab_size: int, *, shared: bool = True
    ) -> "Tokenizer":
        """Learn vocabularies of at most `vocab_size` entries, fewer if the text does not yield as many.

        The same texts give the same vocabulary.

        Raises:
            ValueError: If there is no text, or `vocab_size` leaves no room beside the special and byte tokens.
        """
        if shared:
            return cls(_train([*sources, *targets], vocab_size))
        return cls(_train(list(sources), vocab_size), _train(list(targets), vocab_size))


def _train(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Learn merges over the frequent characters, then set the fixed tokens before them.

    Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units".
    """
    room = vocab_size - len(FIXED_TOKENS)
    if room < 2:
        raise ValueError(f"vocab_size must be at least {len(FIXED_TOKENS) + 2}: got {vocab_size}; 4000 is usual.")
    for text in texts:
        _check_text(text)
    alphabet = _alphabet(texts, limit=(room + 1) // 2)
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
    )
    learner = _pipeline(models.BPE())
    learner.train_from_iterator(texts, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    # A dict keeps first places: two merges may spell the same piece.
    pieces = dict.fromkeys([*FIXED_TOKENS, *alphabet, *(left + right for left, right in merges)])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return _pipeline(models.BPE(vocabulary, merges, byte_fallback=True))


def _pipeline(model: models.Model) -> tokenizers.Tokenizer:
    """A space is set before the text, so its first word is spelled as any other, and cut off again after decoding."""
    pipeline = tokenizers.Tokenizer(model)
    pipeline.normalizer = normalizers.Prepend(" ")
    pipeline.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    pipeline.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return pipeline


def _alphabet(texts: list[str], limit: int) -> list[str]:
    """Choose the space and the most frequent characters, sorted; ties go to the lower code point."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    uncovered = counts.total()
    if not uncovered:
        raise ValueError("A tokenizer must be trained on text: got no characters; check the training files.")
    spared = uncovered * (1 - CHARACTER_COVERAGE)
    chosen = {" "}
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if uncovered <= spared or len(chosen) >= limit:
            break
        chosen.add(character)
        uncovered -= count
    return sorted(chosen)


def _checked(vocabulary: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    found = tuple(vocabulary.id_to_token(i) for i in range(len(SPECIAL_TOKENS)))
    if found != SPECIAL_TOKENS:
        raise ValueError(f"A vocabulary must begin with {', '.join(SPECIAL_TOKENS)}: got {found}.")
    return vocabulary


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Text must be valid Unicode: {text[:40]!r} has a lone surrogate at position {error.start}; "
            "decode it from bytes as UTF-8."
        ) from error


def _paths(folder: str | Path) -> tuple[Path, Path]:
    return Path(folder) / "tokenizer.json", Path(folder) / "target_tokenizer.json"


def _read(path: Path) -> tokenizers.Tokenizer:
    if not path.exists():
        raise FileNotFoundError(f"A tokenizer needs its file: there is no {path}; give the folder that save wrote.")
    try:
        return _checked(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # The library raises nothing narrower.
        reason = str(error).removesuffix(".")
        raise ValueError(f"{path} must hold a tokenizer of this package: {reason}; copy or train it anew.") from error
