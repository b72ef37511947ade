"""Tokenizers of checkpoint folders in the files of transformers: the same ids, and the same text back.

What version 5 of transformers makes of a folder is followed, also where that differs from version 4: its classes take
the vocabulary, the merges and the rules of normalisation from tokenizer.json, and set up the rest by themselves.
"""

import logging
import re
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from mlx_transformer.storage.files import read_bytes
from mlx_transformer.tokenization.bpe_vocabulary import BPEVocabulary
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.vocabulary import BYTE_ID_OFFSET, ByteVocabulary, StripRule, Vocabulary
from mlx_transformer.weights.formats.containers import read_json
from mlx_transformer.weights.tokenizers import hf_classes
from mlx_transformer.weights.tokenizers.hf_classes import (
    GENERIC_CLASS,
    MODEL_TYPE_CLASSES,
    TOKENIZER_CLASSES,
    TokenizerClass,
    TokenizerParts,
)
from mlx_transformer.weights.tokenizers.hf_files import (
    TokenizerFiles,
    TokenSpec,
    collect_added_tokens,
    read_tokenizer_config,
    read_tokenizer_files,
    resolve_extra_tokens,
    resolve_special_tokens,
    token_text,
)
from mlx_transformer.weights.tokenizers.sentencepiece_proto import parse_sentencepiece_model

logger = logging.getLogger(__name__)
ConvertedTokenizer = tuple[Vocabulary, dict[str, Any]]  # a vocabulary, and fields of TokenizerConfig
TARGET_LANGUAGE_TAG = re.compile(
    r"<2[A-Za-z]{2,}(_[A-Za-z]+)*>"
)  # of the language to generate, at the beginning of a source
LANGUAGE_CODE = re.compile(r"[a-z]{2}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3}")  # en_XX of mBART, eng_Latn of NLLB
BYT5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
BLENDERBOT_SMALL_TOKENS = {
    "bos_token": "__start__",
    "eos_token": "__end__",
    "unk_token": "__unk__",
    "pad_token": "__null__",
}


def find_tokenizer_class(folder: Path, settings: dict[str, Any]) -> str:
    """The class of transformers that reads a folder's tokenizer, without "Fast".

    Args:
        folder: The checkpoint's folder.
        settings: Its config.json.

    Returns:
        The class of tokenizer_config.json, else that of the type of model; "PreTrainedTokenizer" for a tokenizer.json
        as it is, "" if nothing tells.

    Source: AutoTokenizer.from_pretrained of transformers 5.23.
    """
    stated = str(read_tokenizer_config(folder).get("tokenizer_class") or settings.get("tokenizer_class") or "")
    stated = stated.removesuffix("Fast")
    usual = MODEL_TYPE_CLASSES.get(str(settings.get("model_type")), "")
    return GENERIC_CLASS if GENERIC_CLASS in (usual, stated) or stated == "TokenizersBackend" else stated or usual


def read_hf_tokenizer(folder: Path, settings: dict[str, Any]) -> ConvertedTokenizer | None:
    """The vocabulary of a folder in the files of transformers, and fields of TokenizerConfig; None if it has none.

    Args:
        folder: The checkpoint's folder.
        settings: Its config.json.

    Raises:
        ValueError: If a file is damaged.
        FileNotFoundError: If a file is missing.
    """
    name = find_tokenizer_class(folder, settings)
    files = read_tokenizer_files(folder)
    if name == "ByT5Tokenizer":
        return _read_byt5(files)
    if name == "BlenderbotSmallTokenizer":
        return _read_blenderbot_small(files) if (folder / "vocab.json").exists() else None
    if name not in TOKENIZER_CLASSES and files.stored is not None:
        name = GENERIC_CLASS  # a class that its tokenizer.json describes as well
    if name == GENERIC_CLASS and files.stored is None:
        name = "T5Tokenizer"  # umT5
    if name not in TOKENIZER_CLASSES and name:
        logger.warning(
            "No tokenizer is made of %s: its class, %s, is not covered; saved by transformers 5 it may have a "
            "tokenizer.json, which is.",
            folder,
            name,
        )
        return None
    if not name or (files.stored is None and not (folder / TOKENIZER_CLASSES[name].file).exists()):
        return None
    return _build_tokenizer(files, TOKENIZER_CLASSES[name])


def _build_tokenizer(files: TokenizerFiles, recipe: TokenizerClass) -> ConvertedTokenizer:
    """The pipeline of a class with its added tokens, and what stands around texts."""
    named = resolve_special_tokens(files.options, recipe.tokens, recipe.mask)
    names = recipe.tokens | {purpose: token_text(token) for purpose, token in named.items()}
    given, told = _read_parts(files, recipe, names)
    try:
        tokenizer = recipe.build(given)
        tokenizer.add_tokens(collect_added_tokens(files, named, resolve_extra_tokens(files, recipe.own(files), told)))
        before, after = _template_ids(tokenizer, files, recipe, names)
    except BaseException as error:  # Of damaged files the library raises anything, its panics are no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split()).removesuffix(".")
        raise ValueError(f"{files.folder} must hold a whole tokenizer: {reason}; copy its files again.") from None
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    languages = _find_languages(tokenizer, recipe)
    is_bpe = isinstance(tokenizer.model, models.BPE)
    forced = bool(files.options.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"))
    fields: dict[str, Any] = {
        "before_source": before,
        "after_source": after,
        "before_target": before,
        "after_target": after,
        # The codes of languages are no text, though transformers may write them where its files leave them out.
        "skip_ids": tuple(sorted(special | set(languages.values()))),
        "clean_up": bool(files.options.get("clean_up_tokenization_spaces")) and (forced or not is_bpe),
    }
    if recipe.source_language != "none":
        fields |= _language_fields(files, recipe, languages)
    elif (
        len(
            tags := {
                piece[2:-1]: i for piece, i in tokenizer.get_vocab().items() if TARGET_LANGUAGE_TAG.fullmatch(piece)
            }
        )
        > 1
    ):
        fields |= {"languages": tags, "target_language": "source"}
    return HFVocabulary(tokenizer), fields


def _read_parts(
    files: TokenizerFiles, recipe: TokenizerClass, names: dict[str, str]
) -> tuple[TokenizerParts, list[TokenSpec] | None]:
    """The vocabulary of tokenizer.json, else of the class's own file; and the added tokens of a sentencepiece model."""
    path = files.folder / recipe.file
    if files.stored is not None:
        model = files.stored.get("model")
        if not isinstance(model, dict) or "vocab" not in model:
            raise ValueError(f"{files.folder / 'tokenizer.json'} must have a model with a vocab; copy it again.")
        return TokenizerParts(model["vocab"], model.get("merges"), None, names, files), None
    if recipe.arrange is None:
        merges = read_merges(files.folder / "merges.txt")
        return TokenizerParts(read_json(read_bytes(path), str(path)), merges, None, names, files), None
    content = parse_sentencepiece_model(read_bytes(path), str(path))
    vocabulary = recipe.arrange(content.pieces, names, files)
    halves = hf_classes.derive_merges(content.pieces) if isinstance(vocabulary, dict) else []
    told: list[TokenSpec] = [AddedToken(piece, normalized=False, special=kind) for piece, kind in content.added.items()]
    return TokenizerParts(vocabulary, halves, content.charsmap, names, files), told


def _template_ids(
    tokenizer: tokenizers.Tokenizer, files: TokenizerFiles, recipe: TokenizerClass, names: dict[str, str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after a text."""
    if recipe.around is None:
        return hf_classes.extract_template((files.stored or {}).get("post_processor"))
    before, after = ([tokenizer.token_to_id(names[purpose]) for purpose in side] for side in recipe.around)
    return _require_ids(before), _require_ids(after)


def _require_ids(ids: list[int | None]) -> tuple[int, ...]:
    """Ids none of which is missing."""
    found = tuple(i for i in ids if i is not None)
    if len(found) < len(ids):
        raise ValueError("a special token of its template is not among its pieces")
    return found


def _find_languages(tokenizer: tokenizers.Tokenizer, recipe: TokenizerClass) -> dict[str, int]:
    """The codes of languages and their ids; none for a class that asks for none."""
    if recipe.source_language == "none":
        return {}
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    codes = dict.fromkeys([*recipe.languages, *filter(LANGUAGE_CODE.fullmatch, special)])
    found = {code: tokenizer.token_to_id(code) for code in codes}
    return {code: i for code, i in found.items() if i is not None}


def _language_fields(files: TokenizerFiles, recipe: TokenizerClass, languages: dict[str, int]) -> dict[str, Any]:
    """Where languages stand, and which are meant where none is given."""
    # Without either file, transformers 5 numbers the languages of NLLB otherwise than they were trained.
    if not recipe.languages and not (files.stored or files.added):
        raise ValueError(
            f"The languages of a tokenizer must be numbered in its files: {files.folder} has no tokenizer.json; "
            "copy that of the model which it was made from."
        )
    stated = (files.options.get("src_lang") or recipe.default_language, files.options.get("tgt_lang"))
    source, target = (code if isinstance(code, str) and code in languages else None for code in stated)
    after = recipe.source_language == "after" or files.options.get("legacy_behaviour") is True
    return {
        "languages": languages,
        "source_language": "after" if after else "before",
        "target_language": recipe.target_language,
        "default_source_language": source,
        "default_target_language": target,
    }


def _read_byt5(files: TokenizerFiles) -> ConvertedTokenizer:
    """byT5: bytes, then sentinels in rising order."""
    named = resolve_special_tokens(files.options, BYT5_TOKENS, {})
    sentinels = [f"<extra_id_{i}>" for i in range(files.number("extra_ids", 125))]
    extra = resolve_extra_tokens(files, [] if files.options.get("additional_special_tokens") else list(sentinels))
    first = [named.get(name, BYT5_TOKENS[name]) for name in ("pad_token", "eos_token", "unk_token")]
    tokens = dict(enumerate(first)) | files.added
    added = _assign_ids({token_text(token): i for i, token in tokens.items()}, {}, 256 + BYTE_ID_OFFSET, named, extra)
    strip: StripRule = {}
    for token in tokens.values():
        if isinstance(token, str) or (token.lstrip and token.rstrip):
            strip[token_text(token)] = "both"
        elif token.lstrip or token.rstrip:
            strip[token.content] = "left" if token.lstrip else "right"
    special = {added[token_text(token)] for token in (*named.values(), *extra)}
    return ByteVocabulary(added, strip), _plain_fields(files, special, (added.get(token_text(first[1]), 1),))


def _read_blenderbot_small(files: TokenizerFiles) -> ConvertedTokenizer:
    """Blenderbot-small: nothing stands around its texts."""
    named = resolve_special_tokens(files.options, BLENDERBOT_SMALL_TOKENS, {})
    extra = resolve_extra_tokens(files, [])
    path = files.folder / "vocab.json"
    ids = read_json(read_bytes(path), str(path))
    try:
        added = _assign_ids({token.content: i for i, token in files.added.items()}, ids, len(ids), named, extra)
        unknown = ids.get(token_text(named["unk_token"]), added[token_text(named["unk_token"])])
        merges = read_merges(files.folder / "merges.txt", first=1, last=-1)
        vocabulary = BPEVocabulary(ids, unknown, merges, added, chat=True)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{files.folder} must hold a whole tokenizer: {error}; copy its files again.") from None
    return vocabulary, _plain_fields(files, {added[token_text(token)] for token in (*named.values(), *extra)}, ())


def read_merges(path: Path, first: int = 0, last: int | None = None) -> tuple[str, ...]:
    """The merges in the lines of a file, which may have a header and counts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no text.
    """
    try:
        lines = read_bytes(path).decode().split("\n")[first:last]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}; copy it again.") from None
    parts = (line.split() for line in lines if not line.startswith("#version"))
    return tuple(" ".join(part[:2]) for part in parts if len(part) in (2, 3))


def _assign_ids(
    added: dict[str, int], ids: dict[str, int], size: int, named: dict[str, TokenSpec], extra: list[TokenSpec]
) -> dict[str, int]:
    """Special tokens with ids: those they have, else new ones after all others."""
    added = dict(added)
    after = size + sum(i >= size and token not in ids for token, i in added.items())
    for token in (token_text(token) for token in (*named.values(), *extra)):
        if token not in added:
            added[token] = ids.get(token, after)
            after += token not in ids
    return added


def _plain_fields(files: TokenizerFiles, special: set[int], after: tuple[int, ...]) -> dict[str, Any]:
    clean_up = bool(files.options.get("clean_up_tokenization_spaces"))
    around = {"before_source": (), "before_target": (), "after_source": after, "after_target": after}
    return around | {"skip_ids": tuple(sorted(special)), "clean_up": clean_up}
