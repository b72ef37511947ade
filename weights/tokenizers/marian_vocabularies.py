"""Vocabularies beside Marian's models: SentencePiece models, alone or with vocab.yml files that number their pieces."""

import re
from pathlib import Path
from typing import Any

from mlx_transformer.messages import short_names
from mlx_transformer.storage.files import read_bytes
from mlx_transformer.tokenization.sentencepiece_vocabulary import SentencePieceVocabulary, load_sentencepiece
from mlx_transformer.weights.formats.tensors import quote
from mlx_transformer.weights.language_pairs import language_pair, pair_of_name, tag_fields
from mlx_transformer.weights.source_config import read_marian_search_options
from mlx_transformer.weights.tokenizers.loaded_vocabularies import LoadedVocabularies

MAX_BYTES = 2**24  # of a list of pieces, ten times the usual size
EOS, UNK = "</s>", "<unk>"
# Names of SentencePiece models beside lists of pieces, and of those that are vocabularies themselves.
SEGMENTERS = ("source.spm", "target.spm")
OWN_VOCABULARIES = (("srcvocab*.spm", "trgvocab*.spm"), ("vocab*.spm", "vocab*.spm"))


def read_marian_vocabularies(folder: Path, extras: dict[str, Any]) -> LoadedVocabularies | None:
    """Read the vocabularies of a model of Marian; None if there are none.

    Raises:
        ValueError: If files are damaged or missing, or the texts were not split by SentencePiece.
    """
    sides = _read_lists(folder) or _read_own_vocabularies(folder)
    if sides is None:
        return None
    source, target = sides
    ids = [side.token_to_id(EOS) for side in sides]
    if None in ids or ids[0] != ids[1]:
        raise ValueError(f"The vocabularies in {folder} must have one id for {EOS}, not {ids[0]} and {ids[1]}.")
    fields: dict[str, Any] = {
        "before_source": (),
        "after_source": (ids[0],),
        "before_target": (),
        "after_target": (ids[0],),
        "skip_ids": (ids[0],),
        "language_pair": pair_of_name(folder.name) or _pair_of_files(folder),
    } | tag_fields(source.ids)
    return LoadedVocabularies(source, None if source == target else target, fields)


def _pair_of_files(folder: Path) -> tuple[str, str] | None:
    """Return the languages in names such as vocab.enfr.spm, as Firefox has them; None without such files."""
    matches = (re.fullmatch(r"\w*vocab\.([a-z]{2})([a-z]{2})\.spm", path.name) for path in folder.glob("*vocab.*.spm"))
    return next((language_pair(*match.groups()) for match in matches if match), None)


def _read_lists(folder: Path) -> list[SentencePieceVocabulary] | None:
    """Read lists of pieces, with the SentencePiece models that split texts."""
    paths = _list_files(folder)
    if not paths:
        return None
    if not all((folder / name).exists() for name in SEGMENTERS):
        raise ValueError(
            f"A model of Marian with lists of pieces needs {' and '.join(SEGMENTERS)}, which {folder} lacks: other "
            "subwords, such as source.bpe after Moses, are not supported; choose a model with SentencePiece (spm)."
        )
    ids = {path: read_list(path) for path in paths}
    models = [read_bytes(folder / name) for name in SEGMENTERS]
    source, target = (_make_vocabulary(ids[path], model) for path, model in zip(paths, models, strict=True))
    return [source, target]


def _named_files(folder: Path) -> list[Path]:
    """Return the vocabulary of each side that decoder.yml names; none if they are not in the folder."""
    names = read_marian_search_options(folder).get("vocabs")
    if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        return []
    paths = [folder / Path(name).name for name in names]
    return paths if all(path.is_file() for path in paths) else []


def _list_files(folder: Path) -> list[Path]:
    """Return the list of pieces of each side, by decoder.yml if there is one; none without lists."""
    if (paths := _named_files(folder)) and all(path.suffix != ".spm" for path in paths):
        return paths
    found = sorted(path for pattern in ("*vocab*.yml", "*vocab*.yaml") for path in folder.glob(pattern))
    if len(found) > 2:
        names = short_names(path.name for path in found)
        raise ValueError(f"{folder} has several lists of pieces, {names}: keep the decoder.yml that names two of them.")
    return found if len(found) == 2 else found * 2


def read_list(path: Path) -> dict[str, int]:
    """Read a list of pieces with their ids, in YAML without anything else.

    Raises:
        ValueError: If it is too large, or no such list.
    """
    import yaml

    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"A list of pieces must have at most {MAX_BYTES} bytes: {path} has more; check the file.")
    loader = vars(yaml).get("CSafeLoader", yaml.SafeLoader)
    ids: dict[str, int] = {}
    try:
        events = [event for event in yaml.parse(read_bytes(path), loader) if isinstance(event, yaml.NodeEvent)]
        _, *scalars = events
        if not isinstance(events[0], yaml.MappingStartEvent) or len(scalars) % 2:
            raise ValueError("it is no mapping")
        for piece, number in zip(scalars[::2], scalars[1::2], strict=True):
            if not (isinstance(piece, yaml.ScalarEvent) and isinstance(number, yaml.ScalarEvent)):
                raise ValueError("a value is no number")
            ids[piece.value] = int(number.value) if number.value.isdecimal() and len(number.value) < 9 else -1
    except (ValueError, yaml.YAMLError) as error:
        reason = quote(str(error))
        raise ValueError(f"{path} must be a list of pieces with their ids: {reason}; copy it again.") from None
    if sorted(ids.values()) != list(range(len(ids))) or len(ids) * 2 != len(scalars):
        raise ValueError(f"{path} must number its {len(ids)} pieces from 0 on, each once; copy it again.")
    return ids


def _read_own_vocabularies(folder: Path) -> list[SentencePieceVocabulary] | None:
    """Read SentencePiece models that are vocabularies themselves, one for both sides or one for each."""
    if (named := _named_files(folder)) and all(path.suffix == ".spm" for path in named):
        return [_make_vocabulary(None, read_bytes(path)) for path in named]
    for patterns in OWN_VOCABULARIES:
        files = [sorted(folder.glob(pattern)) for pattern in patterns]
        if all(len(paths) == 1 for paths in files):
            return [_make_vocabulary(None, read_bytes(path)) for (path,) in files]
    return None


def _make_vocabulary(ids: dict[str, int] | None, content: bytes) -> SentencePieceVocabulary:
    """Return a vocabulary whose pieces have these ids, or those of the SentencePiece model."""
    if ids is None:
        model = load_sentencepiece(content)
        ids = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    if UNK not in ids:
        raise ValueError(f"A vocabulary of Marian must have the piece {UNK}, but its {len(ids)} pieces do not.")
    return SentencePieceVocabulary(ids, ids[UNK], tags=True, model=content)
