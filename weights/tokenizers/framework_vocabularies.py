"""Vocabularies of training programs: lists of pieces, for text that is split at spaces or by a model beside them.

fairseq has dict.txt files, OpenNMT-py keeps lists in the checkpoint, JoeyNMT has text files that config.yaml names.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from mlx_transformer.storage.files import read_bytes
from mlx_transformer.tokenization.bpe_vocabulary import BPEVocabulary
from mlx_transformer.tokenization.sentencepiece_vocabulary import SentencePieceVocabulary, load_sentencepiece
from mlx_transformer.tokenization.vocabulary import SPACE_SYMBOL, Vocabulary, WordVocabulary
from mlx_transformer.weights.formats.pickled_objects import PickledObject, to_plain
from mlx_transformer.weights.source_config import read_yaml
from mlx_transformer.weights.tokenizers.hf_pipeline import read_merges

logger = logging.getLogger(__name__)
VocabularyReader = tuple[Vocabulary, Vocabulary | None, dict[str, Any]]
FAIRSEQ_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
FAIRSEQ_SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
FAIRSEQ_BPE_FILES = ("bpecodes", "code")
JOEYNMT_SPECIALS = ("<unk>", "<pad>", "<s>", "</s>")
UNK_TOKEN = "<unk>"
OVERWRITE_FLAG = "#fairseq:overwrite"
OPENNMT_SIDES = ("src", "tgt")
MAX_NESTING = 8  # of the objects around a list in old checkpoints


def read_framework_vocabularies(folder: Path, family: str, extras: dict[str, Any]) -> VocabularyReader | None:
    """The vocabularies of a training program's checkpoint; None if they are not there.

    Args:
        folder: The checkpoint's folder.
        family: "fairseq", "opennmt-py" or "joeynmt"; others have no vocabularies that are known.
        extras: What the checkpoint holds besides its tensors.

    Returns:
        The vocabulary of sources, that of targets if it is another, and fields of TokenizerConfig.

    Raises:
        ValueError: If a file is damaged, or it is not told which side a file is of.
        FileNotFoundError: If a file that is named is not there.
    """
    read = {"fairseq": _read_fairseq, "opennmt-py": _read_opennmt, "joeynmt": _read_joeynmt}.get(family)
    return None if read is None else read(folder, extras)


def _read_fairseq(folder: Path, extras: dict[str, Any]) -> VocabularyReader | None:
    files = sorted(folder.glob("dict*.txt"))
    if not files:
        return None
    stated = _training_options(extras, ("args",), ("cfg", "task"), ("cfg", "model"))
    languages = [stated.get("source_lang") or "source", stated.get("target_lang") or "target"]
    paths = [folder / f"dict.{language}.txt" for language in languages]
    if not all(path in files for path in paths):
        if len(files) > 1:
            raise ValueError(
                f"It must be told which of {', '.join(path.name for path in files)} is of which side: call them "
                "dict.source.txt and dict.target.txt."
            )
        paths = files * 2
    model = _first_existing(folder, FAIRSEQ_SENTENCEPIECE_FILES)
    codes = _first_existing(folder, FAIRSEQ_BPE_FILES)
    sides = [_make_vocabulary(_read_fairseq_dict(path), model, codes) for path in paths]
    return _combine_sides(sides, FAIRSEQ_SPECIALS[:3], after_source="</s>")


def _read_fairseq_dict(path: Path) -> dict[str, int]:
    """The ids of a dict.txt: special tokens, then one word a line with its count; a word that overwrites has two."""
    ids = {token: i for i, token in enumerate(FAIRSEQ_SPECIALS)}
    size = len(ids)
    for line in _read_lines(path):
        rest, _, field = line.rstrip().rpartition(" ")
        overwrite = field == OVERWRITE_FLAG
        word, _, count = rest.rpartition(" ") if overwrite else (rest, "", field)
        if not count.isdecimal():
            raise ValueError(f"A line of {path} must be a word and its count: {line[:60]!r} is not; copy it again.")
        if word in ids and not overwrite:
            raise ValueError(f"A word must stand once in {path}, or say {OVERWRITE_FLAG}: {word!r} stands twice.")
        ids[word] = size
        size += 1
    return ids


def _read_opennmt(folder: Path, extras: dict[str, Any]) -> VocabularyReader | None:
    found = extras.get("vocab")
    if isinstance(found, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in found):
        found = {name: vocabulary for name, vocabulary in found if isinstance(name, str)}
    lists = (
        [_find_word_list(found.get(side), set()) for side in OPENNMT_SIDES] if isinstance(found, dict) else [None, None]
    )
    if None in lists:
        return None
    stated = _training_options(extras, ("opt",))
    sides = []
    for side, words in zip(OPENNMT_SIDES, lists, strict=True):
        named = str(stated.get(f"{side}_subword_model") or "").replace("\\", "/").rpartition("/")[2]
        path = _first_existing(folder, (named,)) if named else None
        is_codes = stated.get(f"{side}_subword_type") == "bpe"
        ids = {word: i for i, word in enumerate(words or [])}
        sides.append(_make_vocabulary(ids, None if is_codes else path, path if is_codes else None))
    return _combine_sides(sides, ("<blank>", "<s>", "</s>"))


def _find_word_list(value: Any, seen: set[int], depth: int = 0) -> list[str] | None:
    """The first list of words in a value: it itself, or one called itos in objects of torchtext.

    What was `seen`, by identity, holds none: objects may stand in many places, or in themselves.
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


def _read_joeynmt(folder: Path, extras: dict[str, Any]) -> VocabularyReader | None:
    stated = read_yaml(folder, "data")
    sides = []
    for side in ("src", "trg"):
        named = stated.get(f"{side}_voc_file") or stated.get(f"{side}_vocab") or ""
        path = _first_existing(folder, (Path(str(named)).name, f"{side}_vocab.txt"))
        if path is None:
            return None
        if stated.get(f"{side}_level", "word") == "char":
            logger.warning("No tokenizer is made of %s: its texts are split into characters.", folder)
            return None
        words = dict.fromkeys([*JOEYNMT_SPECIALS, *_read_lines(path)])
        model, codes = (
            _first_existing(folder, (Path(str(stated.get(f"{side}_tokenizer_cfg_{kind}") or "")).name,))
            for kind in ("model_file", "codes")
        )
        ids = {word: i for i, word in enumerate(words)}
        sides.append(_make_vocabulary(ids, model, codes))
    return _combine_sides(sides, JOEYNMT_SPECIALS[1:], after_source="</s>")


def _combine_sides(sides: list[Vocabulary], skipped: Iterable[str], after_source: str = "") -> VocabularyReader:
    """Vocabularies of two sides, one if they are equal; targets end with </s>."""
    source, target = sides
    skip_ids = [target.token_to_id(token) for token in skipped]
    fields: dict[str, Any] = {
        "before_source": (),
        "after_source": () if (end := source.token_to_id(after_source)) is None else (end,),
        "before_target": (),
        "after_target": () if (end := target.token_to_id("</s>")) is None else (end,),
        "skip_ids": tuple(sorted(i for i in skip_ids if i is not None)),
    }
    return source, None if source == target else target, fields


def _make_vocabulary(ids: dict[str, int], model: Path | None, codes: Path | None) -> Vocabulary:
    """A list of pieces, and what cuts text into them: a sentencepiece model, BPE codes, or spaces."""
    if UNK_TOKEN not in ids:
        raise ValueError(
            f"A vocabulary must have {UNK_TOKEN} for what it does not know: it is not among {len(ids)} pieces."
        )
    if model is not None:
        content = read_bytes(model)
        load_sentencepiece(content, str(model))
        return SentencePieceVocabulary(ids, ids[UNK_TOKEN], join="plain", model=content)
    if codes is not None:
        return BPEVocabulary(ids, ids[UNK_TOKEN], read_bpe_codes(codes))
    return WordVocabulary(ids, ids[UNK_TOKEN], detect_join(ids))


def read_bpe_codes(path: Path) -> tuple[str, ...]:
    """The merges of subword-nmt, from its version 0.2 on, or of fastBPE.

    Raises:
        ValueError: If they are of another kind.
    """
    first = next(iter(_read_lines(path)), "")
    if not first.startswith("#version: 0.2") and len(first.split()) != 3:
        raise ValueError(
            f"BPE codes must begin with #version: 0.2, or have counts: {path} begins with {first[:40]!r}; learn them "
            "with a newer subword-nmt."
        )
    return read_merges(path)


def detect_join(words: Iterable[str]) -> Literal["words", "subwords", "joiner", "sentencepiece"]:
    """How words of a vocabulary show which of them belong together."""
    counts = {"subwords": 0, "joiner": 0, "sentencepiece": 0}
    for word in words:
        counts["subwords"] += word.endswith("@@")
        counts["joiner"] += "\uffed" in word
        counts["sentencepiece"] += word.startswith(SPACE_SYMBOL)
    most: Any = max(counts, key=lambda kind: counts[kind])
    return most if counts[most] else "words"


def _training_options(extras: dict[str, Any], *places: tuple[str, ...]) -> dict[str, Any]:
    """The options that a checkpoint holds in several places, the first place before the others."""
    options: dict[str, Any] = {}
    for keys in places:
        found: Any = extras
        for key in keys:
            found = to_plain(found.get(key)) if isinstance(found, dict) else None
        if isinstance(found, dict):
            options = found | {key: value for key, value in options.items() if value is not None}
    return options


def _first_existing(folder: Path, names: Iterable[str]) -> Path | None:
    """The first file of these names that is there."""
    return next((folder / name for name in names if name and (folder / name).is_file()), None)


def _read_lines(path: Path) -> list[str]:
    """The lines of a text, without the empty end of the last."""
    try:
        text = read_bytes(path).decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}; copy it again.") from None
    return text.removesuffix("\n").split("\n")
