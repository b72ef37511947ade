"""The files beside a vocabulary in a folder: which tokens are special, and which are found in text before it is cut."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mlx_transformer.storage.files import read_bytes
from mlx_transformer.weights.formats.containers import read_json

TokenSpec = str | AddedToken
SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
EXTRA_TOKENS = "extra_special_tokens"
LEGACY_EXTRA_TOKENS = "additional_special_tokens"
MAX_ADDED_TOKENS = 100_000


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of a tokenizer say.

    Attributes:
        folder: Where they lie.
        options: tokenizer_config.json, and what special_tokens_map.json adds to it.
        added: Tokens that are found in a text before it is cut into pieces, by their ids.
        stored: tokenizer.json; None if there is none.
    """

    folder: Path
    options: dict[str, Any]
    added: dict[int, AddedToken]
    stored: dict[str, Any] | None

    def number(self, name: str, default: int) -> int:
        """An option that counts something."""
        value = self.options.get(name, default)
        if type(value) is not int or not 0 <= value <= MAX_ADDED_TOKENS:
            raise ValueError(
                f"{name} of a tokenizer must be a number up to {MAX_ADDED_TOKENS}: {self.folder} has {value!r}."
            )
        return value


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says; nothing if there is none."""
    options = _read_json(folder / "tokenizer_config.json") or {}
    if LEGACY_EXTRA_TOKENS in options and not options.get(EXTRA_TOKENS):
        options[EXTRA_TOKENS] = options.pop(LEGACY_EXTRA_TOKENS)
    return options


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """The files of a folder's tokenizer; where there are none, nothing.

    Raises:
        ValueError: If one is damaged.
    """
    options, stored = read_tokenizer_config(folder), _read_json(folder / "tokenizer.json")
    if "added_tokens_decoder" in options:
        told = options["added_tokens_decoder"]
        if not isinstance(told, dict) or not all(key.isdecimal() for key in told):
            raise ValueError(
                f"added_tokens_decoder must map ids to tokens: {folder} has something else; copy it again."
            )
        return TokenizerFiles(
            folder, options, {int(i): _parse_added_token(token, folder) for i, token in told.items()}, stored
        )
    for key, value in (_read_json(folder / "special_tokens_map.json") or {}).items():
        options[key] = (
            _parse_added_token(value | {"special": True}, folder)
            if isinstance(value, dict) and key != EXTRA_TOKENS
            else value
        )
    special = {
        token_text(token)
        for token in (*resolve_special_tokens(options, {}, {}).values(), *_parse_tokens(options.get(EXTRA_TOKENS)))
    }
    added = {
        i: AddedToken(token, normalized=token not in special, special=token in special)
        for token, i in (_read_json(folder / "added_tokens.json") or {}).items()
    }
    for token in (stored or {}).get("added_tokens") or []:
        added[_parse_token_id(token, folder)] = _parse_added_token(token, folder)
    return TokenizerFiles(folder, options, added, stored)


def resolve_special_tokens(
    options: dict[str, Any], defaults: dict[str, str], mask: dict[str, bool], added: dict[int, AddedToken] | None = None
) -> dict[str, TokenSpec]:
    """The tokens that have a purpose, by the names of NAMED.

    Args:
        options: What tokenizer_config.json says; null takes a default away.
        defaults: What the class of the tokenizer says.
        mask: The flags of a mask that is given as plain text.
        added: Tokens with flags, which take the place of equal ones.
    """
    flagged = {token.content: token for token in (added or {}).values()}
    stated = {key: _parse_token(options[key]) for key in SPECIAL_TOKEN_NAMES if options.get(key) is not None}
    found: dict[str, TokenSpec] = {key: flagged.get(token_text(token), token) for key, token in stated.items()}
    found |= {key: token for key, token in defaults.items() if key not in options}
    if mask and isinstance(found.get("mask_token"), str):
        found["mask_token"] = AddedToken(token_text(found["mask_token"]), **mask)
    return {key: found[key] for key in SPECIAL_TOKEN_NAMES if key in found}


def resolve_extra_tokens(
    files: TokenizerFiles, own: list[TokenSpec], told: list[TokenSpec] | None = None
) -> list[TokenSpec]:
    """Special tokens without a purpose of their own: those of the files, else those of the class.

    Args:
        files: The files, which may name some.
        own: Those that the class of the tokenizer has by itself.
        told: Those of a sentencepiece model.
    """
    if EXTRA_TOKENS in files.options:
        return _parse_tokens(files.options[EXTRA_TOKENS])
    also = _parse_tokens(files.options.get(LEGACY_EXTRA_TOKENS)) if told is None else told
    return own + [token for token in also if token_text(token) not in own]


def collect_added_tokens(
    files: TokenizerFiles, named: dict[str, TokenSpec], extra: list[TokenSpec]
) -> list[AddedToken]:
    """All tokens that are found in text first, in the order in which they get ids where they have none yet."""
    tokens: list[TokenSpec] = [files.added[i] for i in sorted(files.added)]
    known = {token_text(token) for token in tokens}
    for token in (*named.values(), *extra):
        if token_text(token) not in known and token not in tokens:
            tokens.append(token)
    purposes = {token_text(token) for token in named.values()}
    return [_as_added_token(token, purposes) for token in tokens]


def _as_added_token(token: TokenSpec, purposes: set[str]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if token.content in purposes:
        token.special = True
    return token


def token_text(token: TokenSpec) -> str:
    """The text of a token."""
    return token if isinstance(token, str) else token.content


def _parse_tokens(value: Any) -> list[TokenSpec]:
    values = list(value.values()) if isinstance(value, dict) else value or []
    if not isinstance(values, list):
        raise ValueError(f"Special tokens must be a list: a tokenizer_config.json has {str(values)[:60]!r}.")
    return [_parse_token(item) for item in values]


def _parse_token(value: Any) -> TokenSpec:
    return value if isinstance(value, str | AddedToken) else _parse_added_token(value, None)


def _parse_added_token(value: Any, folder: Path | None) -> AddedToken:
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"A token must be text, with flags or without: {folder or 'a file'} has {str(value)[:60]!r}.")
    return AddedToken(value["content"], **{flag: value[flag] for flag in TOKEN_FLAGS if type(value.get(flag)) is bool})


def _parse_token_id(token: Any, folder: Path) -> int:
    i = token.get("id") if isinstance(token, dict) else None
    if type(i) is not int or i < 0:
        raise ValueError(
            f"An added token must have an id: one of {folder / 'tokenizer.json'} has {i!r}; copy it again."
        )
    return i


def _read_json(path: Path) -> dict[str, Any] | None:
    return read_json(read_bytes(path), str(path)) if path.exists() else None
