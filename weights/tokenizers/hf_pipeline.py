"""Vocabularies built from the files of Hugging Face transformers, with the same ids and the same decoded text.

The result follows version 5 of transformers where it differs from version 4: its tokenizer classes take the vocabulary,
the merges and the normalisation rules from tokenizer.json and define the rest themselves.
"""

import logging
import re
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from mlx_transformer.messages import shorten
from mlx_transformer.storage.files import read_bytes
from mlx_transformer.tokenization.bpe_vocabulary import BPEVocabulary, read_merges
from mlx_transformer.tokenization.hf_components import check_components
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.library_errors import library_errors
from mlx_transformer.tokenization.vocabulary import BYTE_ID_OFFSET, ByteVocabulary, StripRule
from mlx_transformer.weights.formats.containers import read_json
from mlx_transformer.weights.tokenizers.hf_classes import (
    GENERIC_CLASS,
    MODEL_TYPE_CLASSES,
    TOKENIZER_CLASSES,
    TokenizerClass,
    TokenizerParts,
    derive_merges,
    extract_template,
)
from mlx_transformer.weights.tokenizers.hf_files import (
    DEFAULT_TOKENS,
    TokenizerFiles,
    TokenSpec,
    collect_added_tokens,
    read_tokenizer_config,
    read_tokenizer_files,
    resolve_extra_tokens,
    resolve_special_tokens,
    token_text,
)
from mlx_transformer.weights.tokenizers.loaded_vocabularies import LoadedVocabularies
from mlx_transformer.weights.tokenizers.sentencepiece_proto import parse_sentencepiece_model

logger = logging.getLogger(__name__)
TARGET_LANGUAGE_TAG = re.compile(r"<2[A-Za-z]{2,}(_[A-Za-z]+)*>")  # at the beginning of a source (MADLAD)
LANGUAGE_CODE = re.compile(r"[a-z]{2}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3}")  # en_XX (mBART), eng_Latn (NLLB)
BLENDERBOT_SMALL_TOKENS = {
    "bos_token": "__start__",
    "eos_token": "__end__",
    "unk_token": "__unk__",
    "pad_token": "__null__",
}


def find_tokenizer_class(folder: Path, settings: dict[str, Any]) -> str:
    """Return the name of the transformers class that reads a folder's tokenizer, without "Fast".

    Args:
        folder: The checkpoint's folder.
        settings: Its config.json.

    Returns:
        The class of tokenizer_config.json, else that of the model type; "PreTrainedTokenizer" to use tokenizer.json
        unchanged; "" if unknown.

    Source: AutoTokenizer.from_pretrained of transformers 5.23.
    """
    configured = str(read_tokenizer_config(folder).get("tokenizer_class") or settings.get("tokenizer_class") or "")
    configured = configured.removesuffix("Fast")
    default = MODEL_TYPE_CLASSES.get(str(settings.get("model_type")), "")
    if GENERIC_CLASS in (default, configured) or configured == "TokenizersBackend":
        return GENERIC_CLASS
    return configured or default


def read_hf_tokenizer(folder: Path, settings: dict[str, Any]) -> LoadedVocabularies | None:
    """Read the vocabulary of a folder in the format of transformers; None if it has none.

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
    if name not in TOKENIZER_CLASSES and files.tokenizer_json is not None:
        name = GENERIC_CLASS
    if name == GENERIC_CLASS and files.tokenizer_json is None:
        name = "T5Tokenizer"  # umT5
    if name not in TOKENIZER_CLASSES and name:
        logger.warning(
            "No tokenizer is converted from %s: its class, %s, is not supported; saved by transformers 5 it may have a "
            "tokenizer.json, which is.",
            folder,
            shorten(name),
        )
        return None
    if not name or (files.tokenizer_json is None and not (folder / TOKENIZER_CLASSES[name].vocab_file).exists()):
        return None
    return _build_vocabulary(files, TOKENIZER_CLASSES[name])


def _build_vocabulary(files: TokenizerFiles, tokenizer_class: TokenizerClass) -> LoadedVocabularies:
    special_tokens = resolve_special_tokens(files.config, tokenizer_class.special_tokens, tokenizer_class.mask_flags)
    token_texts = tokenizer_class.special_tokens | {name: token_text(token) for name, token in special_tokens.items()}
    parts, model_tokens = _read_parts(files, tokenizer_class, token_texts)
    with library_errors(f"{files.folder} must hold a complete tokenizer", "copy its files again"):
        tokenizer = tokenizer_class.build(parts)
        extra_tokens = resolve_extra_tokens(files, tokenizer_class.extra_tokens(files), model_tokens)
        tokenizer.add_tokens(collect_added_tokens(files, special_tokens, extra_tokens))
        before, after = _template_ids(tokenizer, files, tokenizer_class, token_texts)
        check_components(tokenizer)
    special_ids = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    languages = _find_languages(tokenizer, files, tokenizer_class)
    fields: dict[str, Any] = {
        "before_source": before,
        "after_source": after,
        "before_target": before,
        "after_target": after,
        # Skip language codes even where the files omit them and transformers would decode them as text.
        "skip_ids": tuple(sorted(special_ids | set(languages.values()))),
        "clean_up": _cleans_up(files, tokenizer),
    }
    if tokenizer_class.source_language != "none":
        fields |= _language_fields(files, tokenizer_class, languages)
    elif len(tags := _find_language_tags(tokenizer)) > 1:
        fields |= {"languages": tags, "target_language": "source"}
    return LoadedVocabularies(HFVocabulary(tokenizer), None, fields)


def _read_parts(
    files: TokenizerFiles, tokenizer_class: TokenizerClass, special_tokens: dict[str, str]
) -> tuple[TokenizerParts, list[TokenSpec] | None]:
    """Read tokenizer.json, else the vocab file of the class; also return the added tokens of a SentencePiece model."""
    path = files.folder / tokenizer_class.vocab_file
    if files.tokenizer_json is not None:
        model = files.tokenizer_json.get("model")
        if not isinstance(model, dict) or "vocab" not in model:
            raise ValueError(f"{files.folder / 'tokenizer.json'} must have a model with a vocab; copy it again.")
        return TokenizerParts(model["vocab"], model.get("merges"), None, special_tokens, files), None
    if tokenizer_class.arrange_pieces is None:
        merges = read_merges(files.folder / "merges.txt")
        return TokenizerParts(read_json(read_bytes(path), str(path)), merges, None, special_tokens, files), None
    content = parse_sentencepiece_model(read_bytes(path), str(path))
    vocabulary = tokenizer_class.arrange_pieces(content.pieces, special_tokens, files)
    pairs = derive_merges(content.pieces) if isinstance(vocabulary, dict) else []
    model_tokens: list[TokenSpec] = [
        AddedToken(piece, normalized=False, special=special) for piece, special in content.added_tokens.items()
    ]
    return TokenizerParts(vocabulary, pairs, content.charsmap, special_tokens, files), model_tokens


def _template_ids(
    tokenizer: tokenizers.Tokenizer,
    files: TokenizerFiles,
    tokenizer_class: TokenizerClass,
    special_tokens: dict[str, str],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids before and after a text."""
    if tokenizer_class.template is None:
        return extract_template((files.tokenizer_json or {}).get("post_processor"))
    before, after = (
        [tokenizer.token_to_id(special_tokens[name]) for name in names] for names in tokenizer_class.template
    )
    return _require_ids(before), _require_ids(after)


def _require_ids(ids: list[int | None]) -> tuple[int, ...]:
    present = tuple(i for i in ids if i is not None)
    if len(present) < len(ids):
        raise ValueError("a special token of its template is not among its pieces")
    return present


def _cleans_up(files: TokenizerFiles, tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether transformers cleans up decoded text; for BPE only if a second option forces it."""
    forced = bool(files.config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"))
    is_bpe = isinstance(tokenizer.model, models.BPE)
    return bool(files.config.get("clean_up_tokenization_spaces")) and (forced or not is_bpe)


def _find_languages(
    tokenizer: tokenizers.Tokenizer, files: TokenizerFiles, tokenizer_class: TokenizerClass
) -> dict[str, int]:
    """Return language code -> id; empty for a class without language tokens.

    A language that was added to a model need not be a special token, nor have a usual code if it is the default.
    """
    if tokenizer_class.source_language == "none":
        return {}
    defaults = [files.config.get("src_lang"), files.config.get("tgt_lang")]
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    codes = dict.fromkeys(
        [*tokenizer_class.languages, *(t for t in added if LANGUAGE_CODE.fullmatch(t) or t in defaults)]
    )
    ids = {code: tokenizer.token_to_id(code) for code in codes}
    return {code: i for code, i in ids.items() if i is not None}


def _find_language_tags(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    """Return language code -> id of the pieces like "<2de>"."""
    return {piece[2:-1]: i for piece, i in tokenizer.get_vocab().items() if TARGET_LANGUAGE_TAG.fullmatch(piece)}


def _language_fields(
    files: TokenizerFiles, tokenizer_class: TokenizerClass, languages: dict[str, int]
) -> dict[str, Any]:
    """Return the language fields of TokenizerConfig."""
    # Without these files, transformers 5 numbers the languages of NLLB differently from the trained model.
    if not tokenizer_class.languages and not (files.tokenizer_json or files.added_tokens):
        raise ValueError(
            f"The files of a tokenizer must number its languages: {files.folder} has no tokenizer.json; "
            "copy that of the original model."
        )
    codes = (files.config.get("src_lang") or tokenizer_class.default_source_language, files.config.get("tgt_lang"))
    source, target = (code if isinstance(code, str) and code in languages else None for code in codes)
    after = tokenizer_class.source_language == "after" or files.config.get("legacy_behaviour") is True
    return {
        "languages": languages,
        "source_language": "after" if after else "before",
        "target_language": tokenizer_class.target_language,
        "default_source_language": source,
        "default_target_language": target,
    }


def _read_byt5(files: TokenizerFiles) -> LoadedVocabularies:
    """Read ByT5: bytes, then sentinels in ascending order."""
    special_tokens = resolve_special_tokens(files.config, DEFAULT_TOKENS, {})
    sentinels: list[TokenSpec] = [f"<extra_id_{i}>" for i in range(files.get_count("extra_ids", 125))]
    extra_tokens = resolve_extra_tokens(files, [] if files.config.get("additional_special_tokens") else sentinels)
    first = [special_tokens.get(name, DEFAULT_TOKENS[name]) for name in ("pad_token", "eos_token", "unk_token")]
    tokens = dict(enumerate(first)) | files.added_tokens
    texts = {token_text(token): i for i, token in tokens.items()}
    added = _assign_ids(texts, {}, 256 + BYTE_ID_OFFSET, special_tokens, extra_tokens)
    strip: StripRule = {}
    for token in tokens.values():
        if isinstance(token, str) or (token.lstrip and token.rstrip):
            strip[token_text(token)] = "both"
        elif token.lstrip or token.rstrip:
            strip[token.content] = "left" if token.lstrip else "right"
    skip_ids = {added[token_text(token)] for token in (*special_tokens.values(), *extra_tokens)}
    fields = _plain_fields(files, skip_ids, (added.get(token_text(first[1]), 1),))
    return LoadedVocabularies(ByteVocabulary(added, strip), None, fields)


def _read_blenderbot_small(files: TokenizerFiles) -> LoadedVocabularies:
    """Read Blenderbot-small, which adds no special tokens to texts."""
    special_tokens = resolve_special_tokens(files.config, BLENDERBOT_SMALL_TOKENS, {})
    extra_tokens = resolve_extra_tokens(files, [])
    path = files.folder / "vocab.json"
    ids = read_json(read_bytes(path), str(path))
    try:
        texts = {token.content: i for i, token in files.added_tokens.items()}
        added = _assign_ids(texts, ids, len(ids), special_tokens, extra_tokens)
        unknown = token_text(special_tokens["unk_token"])
        merges = read_merges(files.folder / "merges.txt", first=1, last=-1)
        vocabulary = BPEVocabulary(ids, ids.get(unknown, added[unknown]), merges, added, chat=True)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{files.folder} must hold a complete tokenizer: {error}; copy its files again.") from None
    skip_ids = {added[token_text(token)] for token in (*special_tokens.values(), *extra_tokens)}
    return LoadedVocabularies(vocabulary, None, _plain_fields(files, skip_ids, ()))


def _assign_ids(
    added: dict[str, int],
    ids: dict[str, int],
    size: int,
    special_tokens: dict[str, TokenSpec],
    extra_tokens: list[TokenSpec],
) -> dict[str, int]:
    """Return the ids of all added and special tokens; those without an id get one after all others."""
    added = dict(added)
    next_id = size + sum(i >= size and token not in ids for token, i in added.items())
    for token in map(token_text, (*special_tokens.values(), *extra_tokens)):
        if token not in added:
            added[token] = ids.get(token, next_id)
            next_id += token not in ids
    return added


def _plain_fields(files: TokenizerFiles, skip_ids: set[int], after: tuple[int, ...]) -> dict[str, Any]:
    """Return the fields of TokenizerConfig for a tokenizer without languages."""
    return {
        "before_source": (),
        "before_target": (),
        "after_source": after,
        "after_target": after,
        "skip_ids": tuple(sorted(skip_ids)),
        "clean_up": bool(files.config.get("clean_up_tokenization_spaces")),
    }
