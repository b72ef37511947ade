"""The tokenizer files of Hugging Face transformers: special tokens and added tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mlx_transformer.messages import short_repr
from mlx_transformer.storage.files import read_bytes
from mlx_transformer.weights.formats.containers import read_json

TokenSpec = str | AddedToken
SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
EXTRA_TOKENS = "extra_special_tokens"
LEGACY_EXTRA_TOKENS = "additional_special_tokens"  # the name of EXTRA_TOKENS before transformers 5
MAX_ADDED_TOKENS = 100_000
DEFAULT_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
FAIRSEQ_TOKENS = DEFAULT_TOKENS | {
    "bos_token": "<s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of a tokenizer's files.

    Attributes:
        folder: The folder of the files.
        config: tokenizer_config.json, updated with special_tokens_map.json.
        added_tokens: Id -> token that is matched in the text before it is split into pieces.
        tokenizer_json: tokenizer.json; None if there is none.
    """

    folder: Path
    config: dict[str, Any]
    added_tokens: dict[int, AddedToken]
    tokenizer_json: dict[str, Any] | None

    def get_count(self, name: str, default: int) -> int:
        """Return a count from the config.

        Raises:
            ValueError: If it is not an integer in 0..MAX_ADDED_TOKENS.
        """
        value = self.config.get(name, default)
        if type(value) is not int or not 0 <= value <= MAX_ADDED_TOKENS:
            raise ValueError(
                f"{name} of a tokenizer must be a number up to {MAX_ADDED_TOKENS}: {self.folder} has "
                f"{short_repr(value)}."
            )
        return value


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Read tokenizer_config.json; an empty dict if there is none."""
    config = _read_json(folder / "tokenizer_config.json") or {}
    if LEGACY_EXTRA_TOKENS in config and not config.get(EXTRA_TOKENS):
        config[EXTRA_TOKENS] = config.pop(LEGACY_EXTRA_TOKENS)
    return config


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the tokenizer files of a folder; missing files are empty.

    Raises:
        ValueError: If a file is damaged.
    """
    config, tokenizer_json = read_tokenizer_config(folder), _read_json(folder / "tokenizer.json")
    if "added_tokens_decoder" in config:
        return TokenizerFiles(folder, config, _parse_added_tokens_decoder(config, folder), tokenizer_json)
    for key, value in (_read_json(folder / "special_tokens_map.json") or {}).items():
        is_token = isinstance(value, dict) and key != EXTRA_TOKENS
        config[key] = _parse_added_token(value | {"special": True}, folder) if is_token else value
    special_tokens = resolve_special_tokens(config, {}, {}).values()
    special = {token_text(token) for token in (*special_tokens, *_parse_tokens(config.get(EXTRA_TOKENS)))}
    added_tokens = {
        i: AddedToken(token, normalized=token not in special, special=token in special)
        for token, i in (_read_json(folder / "added_tokens.json") or {}).items()
    }
    for token in (tokenizer_json or {}).get("added_tokens") or []:
        added_tokens[_parse_token_id(token, folder)] = _parse_added_token(token, folder)
    return TokenizerFiles(folder, config, added_tokens, tokenizer_json)


def resolve_special_tokens(
    config: dict[str, Any],
    defaults: dict[str, str],
    mask_flags: dict[str, bool],
    added_tokens: dict[int, AddedToken] | None = None,
) -> dict[str, TokenSpec]:
    """Return the special tokens by name, in the order of SPECIAL_TOKEN_NAMES.

    Args:
        config: tokenizer_config.json; null removes a default.
        defaults: The special tokens of the tokenizer class.
        mask_flags: The flags of a mask token that is plain text.
        added_tokens: Tokens with flags; they replace plain text of the same content.
    """
    with_flags = {token.content: token for token in (added_tokens or {}).values()}
    configured = {name: _parse_token(config[name]) for name in SPECIAL_TOKEN_NAMES if config.get(name) is not None}
    tokens: dict[str, TokenSpec] = {
        name: with_flags.get(token_text(token), token) for name, token in configured.items()
    }
    tokens |= {name: token for name, token in defaults.items() if name not in config}
    if mask_flags and isinstance(tokens.get("mask_token"), str):
        tokens["mask_token"] = AddedToken(token_text(tokens["mask_token"]), **mask_flags)
    return {name: tokens[name] for name in SPECIAL_TOKEN_NAMES if name in tokens}


def resolve_extra_tokens(
    files: TokenizerFiles, class_tokens: list[TokenSpec], model_tokens: list[TokenSpec] | None = None
) -> list[TokenSpec]:
    """Return the special tokens without a name: those of the files, else those of the tokenizer class.

    Args:
        files: The tokenizer's files.
        class_tokens: Extra special tokens of the tokenizer class.
        model_tokens: Control and user-defined pieces of a SentencePiece model.
    """
    if EXTRA_TOKENS in files.config:
        return _parse_tokens(files.config[EXTRA_TOKENS])
    others = _parse_tokens(files.config.get(LEGACY_EXTRA_TOKENS)) if model_tokens is None else model_tokens
    return class_tokens + [token for token in others if token_text(token) not in class_tokens]


def collect_added_tokens(
    files: TokenizerFiles, special_tokens: dict[str, TokenSpec], extra_tokens: list[TokenSpec]
) -> list[AddedToken]:
    """Return all added tokens in the order in which those without an id get one."""
    tokens: list[TokenSpec] = [files.added_tokens[i] for i in sorted(files.added_tokens)]
    texts = {token_text(token) for token in tokens}
    for token in (*special_tokens.values(), *extra_tokens):
        if token_text(token) not in texts and token not in tokens:
            tokens.append(token)
    special_texts = {token_text(token) for token in special_tokens.values()}
    return [_as_added_token(token, special_texts) for token in tokens]


def _as_added_token(token: TokenSpec, special_texts: set[str]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if token.content in special_texts:
        token.special = True
    return token


def token_text(token: TokenSpec) -> str:
    """Return the text of a token."""
    return token if isinstance(token, str) else token.content


def _parse_added_tokens_decoder(config: dict[str, Any], folder: Path) -> dict[int, AddedToken]:
    tokens = config["added_tokens_decoder"]
    if not isinstance(tokens, dict) or not all(key.isdecimal() for key in tokens):
        raise ValueError(f"added_tokens_decoder must map ids to tokens: {folder} has something else; copy it again.")
    return {int(i): _parse_added_token(token, folder) for i, token in tokens.items()}


def _parse_tokens(value: Any) -> list[TokenSpec]:
    values = list(value.values()) if isinstance(value, dict) else value or []
    if not isinstance(values, list):
        raise ValueError(f"Special tokens must be a list: a tokenizer_config.json has {short_repr(values)}.")
    return [_parse_token(item) for item in values]


def _parse_token(value: Any) -> TokenSpec:
    return value if isinstance(value, str | AddedToken) else _parse_added_token(value, None)


def _parse_added_token(value: Any, folder: Path | None) -> AddedToken:
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ValueError(f"A token must be text, with flags or without: {folder or 'a file'} has {short_repr(value)}.")
    return AddedToken(value["content"], **{flag: value[flag] for flag in TOKEN_FLAGS if type(value.get(flag)) is bool})


def _parse_token_id(token: Any, folder: Path) -> int:
    i = token.get("id") if isinstance(token, dict) else None
    if type(i) is not int or i < 0:
        raise ValueError(
            f"An added token must have an id: {folder / 'tokenizer.json'} has {short_repr(i)}; copy it again."
        )
    return i


def _read_json(path: Path) -> dict[str, Any] | None:
    return read_json(read_bytes(path), str(path)) if path.exists() else None
