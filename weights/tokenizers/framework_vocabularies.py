"""Vocabularies of training frameworks: word lists, with BPE codes or a SentencePiece model beside them.

fairseq has dict.txt files, OpenNMT-py keeps lists in the checkpoint, JoeyNMT has text files named in config.yaml.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from mlx_transformer.messages import short_repr
from mlx_transformer.storage.files import read_bytes, read_text
from mlx_transformer.tokenization.bpe_vocabulary import BPEVocabulary, read_merges
from mlx_transformer.tokenization.sentencepiece_vocabulary import SentencePieceVocabulary, load_sentencepiece
from mlx_transformer.tokenization.vocabulary import SPACE_SYMBOL, Vocabulary, WordVocabulary
from mlx_transformer.weights.formats.pickled_objects import PickledObject, to_plain
from mlx_transformer.weights.language_pairs import language_pair
from mlx_transformer.weights.source_config import read_yaml
from mlx_transformer.weights.tokenizers.loaded_vocabularies import LoadedVocabularies
from mlx_transformer.weights.tokenizers.marian_vocabularies import read_marian_vocabularies

logger = logging.getLogger(__name__)
FAIRSEQ_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
FAIRSEQ_SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
FAIRSEQ_BPE_FILES = ("bpecodes", "code")
JOEYNMT_SPECIALS = ("<unk>", "<pad>", "<s>", "</s>")
UNK_TOKEN = "<unk>"
OVERWRITE_FLAG = "#fairseq:overwrite"
OPENNMT_SIDES = ("src", "tgt")
MAX_NESTING = 8  # of objects around a word list in old checkpoints


def read_framework_vocabularies(folder: Path, family: str, extras: dict[str, Any]) -> LoadedVocabularies | None:
    """Read the vocabularies of a training framework's checkpoint; None if there are none.

    Args:
        folder: The checkpoint's folder.
        family: "fairseq", "opennmt-py", "joeynmt" or "marian-native"; others have none.
        extras: The content of the checkpoint file besides its tensors.

    Raises:
        ValueError: If a file is damaged, or it is unclear which side a file belongs to.
        FileNotFoundError: If a file that the checkpoint names is missing.
    """
    read = {
        "fairseq": _read_fairseq,
        "opennmt-py": _read_opennmt,
        "joeynmt": _read_joeynmt,
        "marian-native": read_marian_vocabularies,
    }.get(family)
    return None if read is None else read(folder, extras)


def _read_fairseq(folder: Path, extras: dict[str, Any]) -> LoadedVocabularies | None:
    files = sorted(folder.glob("dict*.txt"))
    if not files:
        return None
    options = _training_options(extras, ("args",), ("cfg", "task"), ("cfg", "model"))
    languages = [options.get("source_lang") or "source", options.get("target_lang") or "target"]
    paths = [folder / f"dict.{language}.txt" for language in languages]
    if not all(path in files for path in paths):
        if len(files) > 1:
            raise ValueError(
                f"Dictionaries must show which side they belong to: {', '.join(path.name for path in files)} do not; "
                "rename them to dict.source.txt and dict.target.txt."
            )
        paths = files * 2
    model = _first_existing(folder, FAIRSEQ_SENTENCEPIECE_FILES)
    codes = _first_existing(folder, FAIRSEQ_BPE_FILES)
    sides = [_make_vocabulary(_read_fairseq_dict(path), model, codes) for path in paths]
    vocabularies = _combine_sides(sides, FAIRSEQ_SPECIALS[:3], after_source="</s>")
    fields = vocabularies.config_fields | {"language_pair": language_pair(*languages)}
    return vocabularies._replace(config_fields=fields)


def _read_fairseq_dict(path: Path) -> dict[str, int]:
    """Read a dict.txt: one word and its count per line; a word flagged as overwriting gets a new id."""
    ids = {token: i for i, token in enumerate(FAIRSEQ_SPECIALS)}
    size = len(ids)
    for line in _read_lines(path):
        rest, _, field = line.rstrip().rpartition(" ")
        overwrite = field == OVERWRITE_FLAG
        word, _, count = rest.rpartition(" ") if overwrite else (rest, "", field)
        if not count.isdecimal():
            raise ValueError(f"A line of {path} must be a word and its count: {line[:60]!r} is not; copy it again.")
        if word in ids and not overwrite:
            raise ValueError(
                f"A word must be unique in {path} or flagged {OVERWRITE_FLAG}: {short_repr(word)} is repeated."
            )
        ids[word] = size
        size += 1
    return ids


def _read_opennmt(folder: Path, extras: dict[str, Any]) -> LoadedVocabularies | None:
    stored = extras.get("vocab")
    if isinstance(stored, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in stored):
        stored = {name: vocabulary for name, vocabulary in stored if isinstance(name, str)}
    if not isinstance(stored, dict):
        return None
    lists = [_find_word_list(stored.get(side), set()) for side in OPENNMT_SIDES]
    if None in lists:
        return None
    options = _training_options(extras, ("opt",))
    sides = []
    for side, words in zip(OPENNMT_SIDES, lists, strict=True):
        name = str(options.get(f"{side}_subword_model") or "").replace("\\", "/").rpartition("/")[2]
        path = _first_existing(folder, (name,)) if name else None
        is_bpe = options.get(f"{side}_subword_type") == "bpe"
        ids = {word: i for i, word in enumerate(words or [])}
        sides.append(_make_vocabulary(ids, None if is_bpe else path, path if is_bpe else None))
    return _combine_sides(sides, ("<blank>", "<s>", "</s>"))


def _find_word_list(value: Any, seen: set[int], depth: int = 0) -> list[str] | None:
    """Return the first list of words in a value: the value itself, or an attribute "itos" of torchtext's objects.

    `seen` holds the identities of objects searched before, because objects may be shared or contain themselves.
    """
    if isinstance(value, PickledObject):
        value = value.state
    if depth > MAX_NESTING or not isinstance(value, dict | list | tuple) or id(value) in seen:
        return None
    seen.add(id(value))
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        return value
    parts = [value.get(name) for name in ("itos", "fields", "vocab")] if isinstance(value, dict) else value
    return next((words for part in parts if (words := _find_word_list(part, seen, depth + 1)) is not None), None)


def _read_joeynmt(folder: Path, extras: dict[str, Any]) -> LoadedVocabularies | None:
    options = read_yaml(folder, "data")
    sides = []
    for side in ("src", "trg"):
        name = options.get(f"{side}_voc_file") or options.get(f"{side}_vocab") or ""
        path = _first_existing(folder, (Path(str(name)).name, f"{side}_vocab.txt"))
        if path is None:
            return None
        if options.get(f"{side}_level", "word") == "char":
            logger.warning("No tokenizer is converted from %s: character-level vocabularies are not supported.", folder)
            return None
        words = dict.fromkeys([*JOEYNMT_SPECIALS, *_read_lines(path)])
        model, codes = (
            _first_existing(folder, (Path(str(options.get(f"{side}_tokenizer_cfg_{kind}") or "")).name,))
            for kind in ("model_file", "codes")
        )
        ids = {word: i for i, word in enumerate(words)}
        sides.append(_make_vocabulary(ids, model, codes))
    return _combine_sides(sides, JOEYNMT_SPECIALS[1:], after_source="</s>")


def _combine_sides(sides: list[Vocabulary], skipped: Iterable[str], after_source: str = "") -> LoadedVocabularies:
    """Combine the vocabularies of both sides, or share one if they are equal; targets end with </s>."""
    source, target = sides
    skip_ids = [target.token_to_id(token) for token in skipped]
    fields: dict[str, Any] = {
        "before_source": (),
        "after_source": () if (end := source.token_to_id(after_source)) is None else (end,),
        "before_target": (),
        "after_target": () if (end := target.token_to_id("</s>")) is None else (end,),
        "skip_ids": tuple(sorted(i for i in skip_ids if i is not None)),
    }
    return LoadedVocabularies(source, None if source == target else target, fields)


def _make_vocabulary(ids: dict[str, int], model: Path | None, codes: Path | None) -> Vocabulary:
    """Return a vocabulary that splits text with a SentencePiece model, with BPE codes, or else at spaces."""
    if UNK_TOKEN not in ids:
        raise ValueError(f"A vocabulary must have the unknown token {UNK_TOKEN}: its {len(ids)} pieces do not.")
    if model is not None:
        content = read_bytes(model)
        load_sentencepiece(content, str(model))
        return SentencePieceVocabulary(ids, ids[UNK_TOKEN], join="plain", model=content)
    if codes is not None:
        return BPEVocabulary(ids, ids[UNK_TOKEN], read_bpe_codes(codes))
    return WordVocabulary(ids, ids[UNK_TOKEN], detect_join(ids))


def read_bpe_codes(path: Path) -> tuple[str, ...]:
    """Read the merges of subword-nmt 0.2 or later, or of fastBPE.

    Raises:
        ValueError: If the file has another format.
    """
    first = next(iter(_read_lines(path)), "")
    if not first.startswith("#version: 0.2") and len(first.split()) != 3:
        raise ValueError(
            f"BPE codes must begin with #version: 0.2, or have counts: {path} begins with {first[:40]!r}; learn them "
            "with a newer subword-nmt."
        )
    return read_merges(path)


def detect_join(words: Iterable[str]) -> Literal["words", "subwords", "joiner", "sentencepiece"]:
    """Return how the words of a vocabulary are joined to text, by the marker that is most frequent among them."""
    counts = {"subwords": 0, "joiner": 0, "sentencepiece": 0}
    for word in words:
        counts["subwords"] += word.endswith("@@")
        counts["joiner"] += "\uffed" in word
        counts["sentencepiece"] += word.startswith(SPACE_SYMBOL)
    join: Any = max(counts, key=lambda kind: counts[kind])
    return join if counts[join] else "words"


def _training_options(extras: dict[str, Any], *paths: tuple[str, ...]) -> dict[str, Any]:
    """Merge the plain training options stored under several paths of keys; earlier paths take precedence."""
    options: dict[str, Any] = {}
    for keys in paths:
        stored: Any = extras
        for key in keys:
            stored = to_plain(stored.get(key)) if isinstance(stored, dict) else None
        if isinstance(stored, dict):
            options = stored | {key: value for key, value in options.items() if value is not None}
    return {key: value for key, value in options.items() if isinstance(value, str | int | float)}


def _first_existing(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the first of these files that exists."""
    # `Path.is_file` raises for a name that no file system has, and a checkpoint may give any.
    present = {path.name for path in folder.iterdir()}
    return next((folder / name for name in names if name in present and (folder / name).is_file()), None)


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, without an empty last line."""
    return read_text(path).replace("\r\n", "\n").removesuffix("\n").split("\n")
