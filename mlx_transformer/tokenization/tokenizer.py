"""Converts text to token ids and back: a source and a target vocabulary, special tokens and languages."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.serialization import from_dict, to_dict
from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.messages import short_repr
from mlx_transformer.storage.files import read_json
from mlx_transformer.tokenization.bpe_trainer import (
    FIXED_TOKENS,
    SPECIAL_TOKENS,
    language_token,
    train_bpe,
)
from mlx_transformer.tokenization.bpe_vocabulary import BPEVocabulary
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.languages import (
    LanguageCodes,
    missing_language_error,
    require_language_ids,
    resolve_language_ids,
)
from mlx_transformer.tokenization.sentencepiece_vocabulary import SentencePieceVocabulary
from mlx_transformer.tokenization.texts import check_list, check_texts
from mlx_transformer.tokenization.vocabulary import ByteVocabulary, Vocabulary, WordVocabulary

VOCABULARY_FILE = "vocabulary.json"
VOCABULARY_KINDS: dict[str, type[Vocabulary]] = {
    kind.kind: kind for kind in (HFVocabulary, SentencePieceVocabulary, ByteVocabulary, WordVocabulary, BPEVocabulary)
}
MAX_VOCAB_SIZE = 2**22  # 15 times the largest vocabulary in use
# Replacements of `TokenizerConfig.clean_up`, in this order.
CLEAN_UP_RULES = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")),
)


class DecoderStart(NamedTuple):
    """The beginning of a target.

    Attributes:
        start_id: The decoder's first input.
        first_id: The forced first token; None to let the model choose.
    """

    start_id: int
    first_id: int | None


class Tokenizer:
    """A source and a target vocabulary, or one for both, with the special tokens around texts.

    Vocabularies made by `train` begin with padding, end and start, then the 256 bytes, then the languages. Encoding
    a text never produces special tokens: "</s>" in a text is four ordinary characters. They normalise texts, so that
    white space, invisible characters and curly quotes make no difference. Vocabularies of converted checkpoints treat
    such text as the original tokenizer does.
    """

    pad_id = TokenizerConfig.pad_id
    eos_id = TokenizerConfig.eos_id
    start_id = TokenizerConfig.start_id

    def __init__(self, source: Vocabulary, target: Vocabulary | None = None, config: TokenizerConfig | None = None):
        """Combine vocabularies; without `target`, both sides share the source vocabulary.

        Raises:
            ValueError: If a vocabulary does not fit the config.
        """
        self.config = TokenizerConfig() if config is None else config
        self.source = source
        self.target = source if target is None else target
        self.source_vocab_size = self.config.source_vocab_size or self.source.size
        self.target_vocab_size = self.config.target_vocab_size or self.target.size
        self.pad_id, self.eos_id, self.start_id = self.config.pad_id, self.config.eos_id, self.config.start_id
        self._skip_ids = frozenset(self.config.skip_ids)
        special_ids = self.config.special_ids()
        self._check_vocabulary(self.source, self.source_vocab_size, special_ids["source"])
        self._check_vocabulary(self.target, self.target_vocab_size, special_ids["target"])

    def _check_vocabulary(self, vocabulary: Vocabulary, size: int, special_ids: set[int]) -> None:
        if _has_trained_layout(self.config):
            languages = {i: language_token(code) for code, i in self.config.languages.items()}
            for i, token in (dict(enumerate(SPECIAL_TOKENS)) | languages).items():
                if (actual := vocabulary.id_to_token(i)) != token:
                    raise ValueError(f"Id {i} of a trained vocabulary must be {token}: it is {short_repr(actual)}.")
        if vocabulary.size > MAX_VOCAB_SIZE:
            raise ValueError(
                f"Ids of a vocabulary must be below {MAX_VOCAB_SIZE}: the highest is {vocabulary.size - 1}."
            )
        # Special tokens beyond the model's vocabulary are allowed: `_encode_texts` removes them.
        if extra := [i for i in range(size, vocabulary.size) if i not in self._skip_ids and vocabulary.id_to_token(i)]:
            raise ValueError(
                f"A vocabulary must fit its model: {short_repr(vocabulary.id_to_token(extra[0]))} has the id "
                f"{extra[0]}, but the model only {size} ids; use the files that belong to the model."
            )
        if (highest := max(special_ids, default=0)) >= size:
            raise ValueError(
                f"A tokenizer must fit its model: its config uses id {highest}, but the model has only {size} ids."
            )

    def check_model(self, config: ModelConfig, name: str = "tokenizer") -> None:
        """Raise ValueError if the tokenizer has other sizes or special tokens than a model; `name` is used for it."""
        pairs = {
            "source pieces": (self.source_vocab_size, config.source_vocab_size),
            "target pieces": (self.target_vocab_size, config.target_vocab_size),
            "as pad_id": (self.pad_id, config.pad_id),
            "as eos_id": (self.eos_id, config.eos_id),
            "as start_id": (self.start_id, config.start_id),
        }
        for what, (actual, expected) in pairs.items():
            if actual != expected:
                raise ValueError(
                    f"The {name} does not match the model: it has {actual} {what}, the model {expected}; "
                    "use the tokenizer that the model was trained with."
                )

    @property
    def shared(self) -> bool:
        """Whether source and target share one vocabulary."""
        return self.source is self.target

    @property
    def languages(self) -> list[str]:
        """The codes of the languages that the model knows, sorted."""
        return sorted(self.config.languages)

    def encode(self, text: str, source_language: str | None = None, target_language: str | None = None) -> list[int]:
        """Return the source ids of a text; see `encode_batch`."""
        return self.encode_batch([text], source_language, target_language)[0]

    def encode_batch(
        self, texts: Sequence[str], source_language: LanguageCodes = None, target_language: LanguageCodes = None
    ) -> list[list[int]]:
        """Return the source ids of each text, with the special tokens of sources.

        Args:
            texts: Source texts.
            source_language: The language code of the texts, or one per text; None for the checkpoint's default.
            target_language: The target language in the same form; used if the source carries its token, else checked.

        Raises:
            ValueError: If a text is not a string or has a lone surrogate, or a language is missing or unknown.
        """
        check_texts(texts, "texts")
        config = self.config
        languages = resolve_language_ids(config, "source", source_language, len(texts))
        target_ids = resolve_language_ids(config, "target", target_language, len(texts))
        if config.target_language == "source":
            texts = self._prepend_language_tags(texts, target_ids)
        rows = self._encode_texts(self.source, self.source_vocab_size, texts)
        rows = [[*config.before_source, *row, *config.after_source] for row in rows]
        if config.source_language == "none":
            return rows
        pairs = zip(require_language_ids(config, "source", languages), rows, strict=True)
        return [[i, *row] if config.source_language == "before" else [*row, i] for i, row in pairs]

    def _prepend_language_tags(self, texts: Sequence[str], ids: Sequence[int | None]) -> list[str]:
        """Prepend the tag of the target language; without a language, the text must begin with a tag."""
        tags = tuple(self.source.id_to_token(i) for i in self.config.languages.values())
        tagged = []
        for text, i in zip(texts, ids, strict=True):
            if i is None and not text.startswith(tags):
                raise missing_language_error(self.config, "target")
            tagged.append(text if i is None else f"{self.source.id_to_token(i)} {text}")
        return tagged

    @property
    def num_after_source(self) -> int:
        """The number of ids after the text of every source."""
        return len(self.config.after_source) + (self.config.source_language == "after")

    def truncate_source(self, ids: list[int], max_length: int) -> list[int]:
        """Truncate source ids to `max_length`, keeping the ids after the text."""
        if len(ids) <= max_length:
            return ids
        suffix = min(self.num_after_source, max_length)
        return ids[: max_length - suffix] + ids[len(ids) - suffix :]

    def check_language_codes(self, source_language: object, target_language: object) -> None:
        """Raise ValueError if a code that all texts share is unknown; codes of single texts are checked with these."""
        for side, code in (("source", source_language), ("target", target_language)):
            if isinstance(code, str):
                resolve_language_ids(self.config, side, code, 1)

    def decoder_starts(self, count: int, target_language: LanguageCodes = None) -> list[DecoderStart]:
        """Return the beginning of each of `count` targets.

        Args:
            count: The number of targets.
            target_language: The language code of the targets, or one per target; None for the checkpoint's default.

        Raises:
            ValueError: If a language is missing or unknown.
        """
        ids = resolve_language_ids(self.config, "target", target_language, count)
        if self.config.target_language == "start":
            return [DecoderStart(i, None) for i in require_language_ids(self.config, "target", ids)]
        if self.config.target_language == "first":
            return [DecoderStart(self.start_id, i) for i in require_language_ids(self.config, "target", ids)]
        return [DecoderStart(self.start_id, None)] * count

    def encode_target(self, text: str, target_language: str | None = None) -> list[int]:
        """Return the target ids of a text; see `encode_target_batch`."""
        return self.encode_target_batch([text], target_language)[0]

    def encode_target_batch(self, texts: Sequence[str], target_language: LanguageCodes = None) -> list[list[int]]:
        """Return the target ids of each text, with the special tokens of targets except the decoder's first input.

        Raises:
            ValueError: If a text is not a string or has a lone surrogate, or a language is missing or unknown.
        """
        check_texts(texts, "texts")
        first_ids = [start.first_id for start in self.decoder_starts(len(texts), target_language)]
        before, after = self.config.before_target, self.config.after_target
        rows = self._encode_texts(self.target, self.target_vocab_size, texts)
        return [
            [*([] if first_id is None else [first_id]), *before, *row, *after]
            for first_id, row in zip(first_ids, rows, strict=True)
        ]

    def _encode_texts(self, vocabulary: Vocabulary, size: int, texts: Sequence[str]) -> list[list[int]]:
        rows = vocabulary.encode_batch([text.lower() for text in texts] if self.config.lowercase else texts)
        return rows if vocabulary.size <= size else [[i for i in row if i < size] for row in rows]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of target ids; special tokens are skipped, bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: If an id is not in the target vocabulary.
        """
        text = self.target.decode([i for i in self._check_target_ids(ids) if i not in self._skip_ids])
        if self.config.clean_up:
            for spaced, joined in CLEAN_UP_RULES:
                text = text.replace(spaced, joined)
        return text

    def decode_batch(self, batch: Iterable[Iterable[int]]) -> list[str]:
        """Return the text of each row of target ids; see `decode`."""
        return [self.decode(ids) for ids in batch]

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens of target ids for display, including special tokens."""
        return [self.target.id_to_token(i) for i in self._check_target_ids(ids)]

    def _check_target_ids(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        last = self.target_vocab_size - 1
        for i in ids:
            if not 0 <= i <= last:
                raise ValueError(f"A target id must lie in 0..{last}: got {i}; use the tokenizer saved with the model.")
        return ids

    def save(self, folder: str | Path) -> None:
        """Write `vocabulary.json` and the files of the vocabularies, such as `tokenizer.json`, to a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data: dict[str, Any] = {"config": to_dict(self.config), "source": _write_vocabulary(self.source, folder, "")}
        if not self.shared:
            data["target"] = _write_vocabulary(self.target, folder, "target_")
        (folder / VOCABULARY_FILE).write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def find(cls, folder: str | Path) -> "Tokenizer | None":
        """Load the tokenizer of a folder; None if the folder has none."""
        names = (VOCABULARY_FILE, "tokenizer.json")
        return cls.load(folder) if any((Path(folder) / name).exists() for name in names) else None

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Load the tokenizer that `save` wrote to a folder.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is damaged or is not a tokenizer of this package.
        """
        folder = Path(folder)
        data = _read_vocabulary_file(folder)
        source = _load_vocabulary(folder, "", data["source"])
        target = _load_vocabulary(folder, "target_", data["target"]) if "target" in data else None
        config = from_dict(TokenizerConfig, data.get("config", {}), f"{folder / VOCABULARY_FILE}: config")
        try:
            return cls(source, target, config)
        except ValueError as error:
            name = "tokenizer.json" if _has_trained_layout(config) else VOCABULARY_FILE
            raise ValueError(f"{folder / name} must hold a tokenizer of this package: {error}") from None

    @classmethod
    def train(
        cls,
        sources: Iterable[str],
        targets: Iterable[str],
        vocab_size: int,
        *,
        shared: bool = True,
        source_languages: Iterable[str] = (),
        target_languages: Iterable[str] = (),
    ) -> "Tokenizer":
        """Train BPE vocabularies of at most `vocab_size` entries; the result is deterministic.

        Args:
            sources: Source texts; all are held in memory.
            targets: Target texts; all are held in memory.
            vocab_size: Maximum size of a vocabulary.
            shared: Train one vocabulary for both sides.
            source_languages: Codes of the source languages, whose tokens precede sources; a single one is the default.
            target_languages: Codes of the target languages, whose tokens begin targets; a single one is the default.

        Raises:
            ValueError: If there is no text, a text is not a string or has a lone surrogate, or `vocab_size` leaves no
                room beside special, byte and language tokens.
        """
        lists = {"sources": sources, "targets": targets}
        lists |= {"source_languages": source_languages, "target_languages": target_languages}
        for name, argument in lists.items():
            check_list(argument, name)
        sources, targets = list(sources), list(targets)
        check_texts(sources, "sources")
        check_texts(targets, "targets")
        config = _trained_config(set(source_languages), set(target_languages))
        sides = ([*sources, *targets],) if shared else (sources, targets)
        trained = [HFVocabulary(train_bpe(texts, vocab_size, list(config.languages))) for texts in sides]
        return cls(trained[0], trained[-1], config)


def _trained_config(source_languages: set[str], target_languages: set[str]) -> TokenizerConfig:
    """Return the config of a tokenizer trained for these languages."""
    codes = sorted(source_languages | target_languages)
    languages = {code: i for i, code in enumerate(codes, len(FIXED_TOKENS))}
    return TokenizerConfig(
        skip_ids=(*TokenizerConfig.skip_ids, *languages.values()),
        languages=languages,
        source_language="before" if source_languages else "none",
        target_language="first" if target_languages else "none",
        default_source_language=_single_language(source_languages),
        default_target_language=_single_language(target_languages),
    )


def _has_trained_layout(config: TokenizerConfig) -> bool:
    """Whether `train` could have produced this config."""
    codes = set(config.languages)
    trained = _trained_config(
        codes if config.source_language == "before" else set(), codes if config.target_language == "first" else set()
    )
    no_defaults = {"default_source_language": None, "default_target_language": None}
    return to_dict(config) | no_defaults == to_dict(trained) | no_defaults


def _single_language(codes: set[str]) -> str | None:
    return next(iter(codes)) if len(codes) == 1 else None


def _write_vocabulary(vocabulary: Vocabulary, folder: Path, prefix: str) -> dict[str, Any]:
    return {"kind": vocabulary.kind} | vocabulary.write(folder, prefix)


def _read_vocabulary_file(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's vocabulary.json; a folder without one has trained vocabularies."""
    path = folder / VOCABULARY_FILE
    if not path.exists():
        sides = {"source": "tokenizer.json", "target": "target_tokenizer.json"}
        kind = {"kind": HFVocabulary.kind}
        return {side: kind for side, name in sides.items() if side == "source" or (folder / name).exists()}
    data = read_json(path)
    if not isinstance(data, dict) or not {"config", "source"} <= data.keys() <= {"config", "source", "target"}:
        raise ValueError(f"{path} must have the keys config, source and optionally target; copy it again.")
    return data


def _load_vocabulary(folder: Path, prefix: str, data: Any) -> Vocabulary:
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in VOCABULARY_KINDS:
        raise ValueError(
            f"{folder / VOCABULARY_FILE}: kind must be {', '.join(VOCABULARY_KINDS)}, not {short_repr(kind)}."
        )
    return VOCABULARY_KINDS[kind].read(folder, prefix, {key: value for key, value in data.items() if key != "kind"})
