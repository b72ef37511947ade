"""Vocabularies in files of their own, recognised by content: a tokenizer.json, a sentencepiece model, lists of tokens.

Lists of tokens are text, JSON, or pickles such as torchtext's vocabularies.
"""

import itertools
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers

from mlx_transformer.messages import short_repr
from mlx_transformer.storage.files import parse_json, read_bytes
from mlx_transformer.tokenization.hf_vocabulary import load_hf_tokenizer
from mlx_transformer.tokenization.library_errors import library_errors
from mlx_transformer.tokenization.sentencepiece_vocabulary import load_sentencepiece
from mlx_transformer.tokenization.tokenizer import MAX_VOCAB_SIZE
from mlx_transformer.weights.formats.containers import LEGACY_MAGIC, add_path_to_errors, open_container
from mlx_transformer.weights.formats.pickled_objects import PickledObject
from mlx_transformer.weights.formats.unpickler import read_pickle
from mlx_transformer.weights.tokenizers.hf_classes import extract_template

KINDS = "a tokenizer.json, a sentencepiece model, tokens as text, JSON or pickle, or a torchtext vocabulary"
# Role -> names of the special token, the most specific first, in any case; those without marks only in capitals.
SPECIAL_TOKENS = {
    "pad": ("<pad>", "[pad]", "<|pad|>", "__pad__", "_pad_", "<blank>", "<padding>", "PAD", "<p>"),
    "start": ("<bos>", "<sos>", "<s>", "[bos]", "[sos]", "<start>", "<go>", "BOS", "SOS", "[cls]", "<cls>"),
    "end": ("<eos>", "</s>", "[eos]", "<end>", "<stop>", "EOS", "[sep]", "<sep>"),
    "unknown": ("<unk>", "[unk]", "<unknown>", "<oov>", "UNK"),
}
SIDE_NAMES = (("src", "source", "input", "enc"), ("trg", "tgt", "target", "output", "dec"))
FIELD_TOKENS = {"pad": "pad_token", "start": "init_token", "end": "eos_token", "unknown": "unk_token"}  # of torchtext
LOWERCASE_NAMES = ("lower", "lowercase")  # attributes of vocabularies' objects
ZIP_START = b"PK\x03\x04"  # of torch.save
PICKLE_STARTS = (ZIP_START, b"\x80", b"(lp", b"(dp", b"ccopy_reg\n")  # the last three of pickles in ASCII
JSON_START = re.compile(rb'\s*(\{\s*["}]|\[\s*["\]{\[])')
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
MAX_DEPTH = 9  # of objects around a list of tokens
MAX_PARTS = 64  # containers in one of these that are searched


@dataclass(frozen=True)
class FileVocabulary:
    """What a file says about a vocabulary.

    Attributes:
        path: The file.
        ids: Token -> id.
        special_ids: Role of a special token, a key of SPECIAL_TOKENS -> its id.
        around: The ids before and after a text; None if the file does not say.
        lowercase: Whether texts are lower-cased first.
        tokenizer: The tokenizer of a tokenizer.json.
        sentencepiece: The bytes of a sentencepiece model.
    """

    path: Path
    ids: dict[str, int]
    special_ids: dict[str, int]
    around: tuple[tuple[int, ...], ...] | None = None
    lowercase: bool = False
    tokenizer: tokenizers.Tokenizer | None = None
    sentencepiece: bytes | None = None

    @property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.ids.values()) + 1

    def token_of(self, i: int) -> str:
        """Return the token of an id; "" if there is none."""
        return next((token for token, other in self.ids.items() if other == i), "")


def read_vocabulary_file(path: Path) -> list[FileVocabulary]:
    """Read a file with one vocabulary, or with one for the source and one for the target.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is no vocabulary, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"A vocabulary must be a file: there is no {path}; check the path.")
    content = read_bytes(path)
    if content.startswith(PICKLE_STARTS):
        return _from_plain_data(_read_pickle(content, path), path)
    if content.startswith(b"\n") and b"\0" in content:
        return [_from_sentencepiece(content, path)]
    if b"\0" in content or not content.strip():
        raise _file_error(path, "is binary" if content.strip() else "is empty")
    try:
        if not JSON_START.match(content):
            return _from_plain_data(parse_lines(content.decode("utf-8-sig")), path)
        value = parse_json(content.decode("utf-8-sig"), _unique_names)
    except UnicodeDecodeError:
        raise _file_error(path, "is no text in UTF-8") from None
    except ValueError as error:
        raise _file_error(path, f"is damaged ({error})") from None
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        return [_from_tokenizer_json(content, value, path)]
    return _from_plain_data(value, path)


def find_special_ids(ids: dict[str, int]) -> dict[str, int]:
    """Return role -> id of the special tokens that a vocabulary has under their usual names."""
    known = {token.casefold(): i for token, i in ids.items() if not token.isalpha()} | ids
    present = {role: [known[name] for name in names if name in known] for role, names in SPECIAL_TOKENS.items()}
    return {role: token_ids[0] for role, token_ids in present.items() if token_ids}


def parse_lines(text: str) -> list[str] | dict[int, str]:
    """Return the tokens of a text with one a line, or id -> token where ids stand behind all tokens.

    Other numbers behind all tokens are counts or scores.
    """
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    for separator in ("\t", " "):
        rows = [line.rpartition(separator) for line in lines]
        if all(token and NUMBER.fullmatch(number) for token, _, number in rows):
            tokens, numbers = [token for token, _, _ in rows], [float(number) for _, _, number in rows]
            first = int(min(numbers))
            is_ids = first in (0, 1) and sorted(numbers) == list(range(first, first + len(lines)))
            return {int(i): token for i, token in zip(numbers, tokens, strict=True)} if is_ids else tokens
    return lines


def find_token_lists(
    value: Any, path: Path, results: dict[int, list[FileVocabulary]], depth: int = 0
) -> list[FileVocabulary]:
    """Return the list of tokens in plain data, or the source's and the target's; empty if there is none.

    Args:
        value: The data.
        path: Its file.
        results: Identity of a container -> its lists: objects may be shared, or contain themselves.
        depth: The number of containers around the value.
    """
    if id(value) not in results and depth <= MAX_DEPTH:
        results[id(value)] = []
        ids = as_token_ids(value)
        if ids is not None:
            results[id(value)] = [FileVocabulary(path, ids, find_special_ids(ids))]
        else:
            parts = {name: find_token_lists(part, path, results, depth + 1) for name, part in _parts(value).items()}
            results[id(value)] = _choose_lists(value, parts)
    return results.get(id(value), [])


def _choose_lists(value: Any, parts: dict[str, list[FileVocabulary]]) -> list[FileVocabulary]:
    """Return the list of tokens of a container, or the source's and the target's, among those of its parts."""
    if pair := next((lists for lists in parts.values() if len(lists) == 2), None):
        return pair
    single = {name: lists[0] for name, lists in parts.items() if lists}
    sides = [[part for name, part in single.items() if name.lower().startswith(names)] for names in SIDE_NAMES]
    if all(sides):
        return [side[0] for side in sides]
    # Other lists are of words or languages. A vocabulary may be there twice, from tokens to ids and back.
    named = [part for part in single.values() if part.special_ids]
    lists = named or list(single.values())
    distinct = [part for part in lists if not any(part.ids.items() < other.ids.items() for other in lists)]
    if len(named) == 2 and not isinstance(value, PickledObject):
        if isinstance(value, tuple) or (len(distinct) == 2 and named[0].ids != named[1].ids):
            return named
    return [_with_attributes(max(distinct, key=lambda part: len(part.ids)), value)] if distinct else []


def as_token_ids(value: Any) -> dict[str, int] | None:
    """Return token -> id if a value is a list of different tokens, or a dict between tokens and ids."""
    if not isinstance(value, dict | list | tuple) or not value:
        return None
    ids: dict[Any, Any] = dict(enumerate(value)) if isinstance(value, list | tuple) else value
    if all(isinstance(token, str) for token in ids.values()):
        ids = {token: int(i) if isinstance(i, str) and i.isdecimal() else i for i, token in ids.items()}
    elif not all(isinstance(token, str) for token in ids):
        return None
    if not all(type(i) is int and 0 <= i < MAX_VOCAB_SIZE for i in ids.values()):
        return None
    # Counts of tokens are hardly ever all different.
    return ids if len(value) == len(ids) == len(set(ids.values())) else None


def _parts(value: Any) -> dict[str, Any]:
    """Return the containers in a container or an object, by name or number."""
    if isinstance(value, PickledObject):
        value = value.mapping | value.state
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    containers = ((name, part) for name, part in entries if isinstance(part, dict | list | tuple | PickledObject))
    return {str(name): part for name, part in itertools.islice(containers, MAX_PARTS)}


def _with_attributes(tokens: FileVocabulary, value: Any) -> FileVocabulary:
    """Add what an object around a list of tokens says about it, such as a Field of torchtext."""
    state = value.state if isinstance(value, PickledObject) else {}
    if any(state.get(name) is True for name in LOWERCASE_NAMES):
        tokens = replace(tokens, lowercase=True)
    if set(FIELD_TOKENS.values()) <= state.keys():
        named = {role: state[name] for role, name in FIELD_TOKENS.items() if isinstance(state[name], str)}
        special = {role: tokens.ids[token] for role, token in named.items() if token in tokens.ids}
        around = tuple((special[role],) if role in special else () for role in ("start", "end"))
        tokens = replace(tokens, special_ids=tokens.special_ids | special, around=around)
    return tokens


def _from_plain_data(value: Any, path: Path) -> list[FileVocabulary]:
    if lists := find_token_lists(value, path, {}):
        return lists
    counts = Counter(token for token in value if isinstance(token, str)) if isinstance(value, list | tuple) else {}
    repeated = next((token for token, count in counts.items() if count > 1), None)
    raise _file_error(path, "contains no list of tokens" if repeated is None else f"has {short_repr(repeated)} twice")


def _from_tokenizer_json(content: bytes, value: dict[str, Any], path: Path) -> FileVocabulary:
    tokenizer = load_hf_tokenizer(content, str(path))
    ids = tokenizer.get_vocab()
    with library_errors(f"{path} must hold a tokenizer"):
        around = None if value.get("post_processor") is None else extract_template(value["post_processor"])
    return FileVocabulary(path, ids, find_special_ids(ids), around if around != ((), ()) else None, tokenizer=tokenizer)


def _from_sentencepiece(content: bytes, path: Path) -> FileVocabulary:
    model = load_sentencepiece(content, str(path))
    ids = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    own = {"pad": model.pad_id(), "start": model.bos_id(), "end": model.eos_id(), "unknown": model.unk_id()}
    special = find_special_ids(ids) | {role: i for role, i in own.items() if i >= 0}
    return FileVocabulary(path, ids, special, sentencepiece=content)


def _read_pickle(content: bytes, path: Path) -> Any:
    """Return the content of a pickle, or of a file of torch.save, as plain data."""
    with add_path_to_errors(path):
        if not content.startswith(ZIP_START):
            value, _, _ = read_pickle(content, path=path)
            if value != LEGACY_MAGIC:
                return value
        container = open_container(path)
        container.close()
        return container.root


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"{short_repr(name)} appears twice")
        entries[name] = value
    return entries


def _file_error(path: Path, problem: str) -> ValueError:
    return ValueError(f"A vocabulary must be {KINDS}: {path} {problem}; give the file that the model was trained with.")
