"""Tokenizers with a SentencePiece model and their own ids: Marian, M2M100 and PLBart.

They follow transformers 5.23 without sacremoses, so Marian does not normalise punctuation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlx_transformer.messages import short_repr
from mlx_transformer.storage.files import read_bytes
from mlx_transformer.tokenization.sentencepiece_vocabulary import SentencePieceVocabulary, load_sentencepiece
from mlx_transformer.tokenization.vocabulary import StripRule
from mlx_transformer.weights.formats.containers import read_json
from mlx_transformer.weights.language_pairs import language_pair, pair_of_name, tag_fields
from mlx_transformer.weights.tokenizers.hf_files import (
    DEFAULT_TOKENS,
    FAIRSEQ_TOKENS,
    TokenizerFiles,
    read_tokenizer_files,
    resolve_extra_tokens,
    resolve_special_tokens,
    token_text,
)
from mlx_transformer.weights.tokenizers.loaded_vocabularies import LoadedVocabularies

M2M100_TOKENS = DEFAULT_TOKENS | {"bos_token": "<s>", "sep_token": "</s>"}
FAIRSEQ_IDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
M2M100_LANGUAGES = {
    "m2m100": (
        "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu "
        "hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt "
        "ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo xh yi yo zh zu"
    ),
    "wmt21": "en ha is ja cs ru zh de",
}
PLBART_LANGUAGES = {"base": "java python en_XX", "multi": "java python en_XX javascript php ruby go"}
# Flags lstrip and rstrip -> the side on which a token removes whitespace.
STRIP_SIDES: dict[tuple[bool, bool], Literal["left", "right", "both"]] = {
    (True, False): "left",
    (False, True): "right",
    (True, True): "both",
}


@dataclass(frozen=True)
class SpecialTokens:
    """The special and added tokens of a folder.

    Attributes:
        by_name: Name -> special token, such as "eos_token".
        all_tokens: All special tokens.
        added: Tokens that are matched in texts before these are split into pieces -> id.
        strip: Added token -> the side on which it removes whitespace.
    """

    by_name: dict[str, str]
    all_tokens: tuple[str, ...]
    added: dict[str, int]
    strip: StripRule

    def get_id(self, name: str) -> int:
        """Return the id of a special token, such as "eos_token"."""
        if name not in self.by_name:
            raise ValueError(f"A tokenizer must have an {name}: tokenizer_config.json removes it.")
        return self.added[self.by_name[name]]


def read_special_tokens(
    files: TokenizerFiles, ids: dict[str, int], defaults: dict[str, str], class_tokens: tuple[str, ...] = ()
) -> SpecialTokens:
    """Return the special and added tokens; special ones without an id get one after the last.

    Args:
        files: The tokenizer's files.
        ids: The pieces of the vocabulary.
        defaults: Special tokens that the files do not set.
        class_tokens: Extra special tokens of the tokenizer class.
    """
    by_name = resolve_special_tokens(files.config, defaults, {}, files.added_tokens)
    tokens = [*by_name.values(), *resolve_extra_tokens(files, list(class_tokens))]
    texts = tuple(dict.fromkeys(map(token_text, tokens)))
    added = {token.content: i for i, token in files.added_tokens.items()}
    all_ids = ids | added
    added |= {token: all_ids.setdefault(token, len(all_ids)) for token in texts}
    sides = {token.content: STRIP_SIDES.get((token.lstrip, token.rstrip)) for token in files.added_tokens.values()}
    strip: StripRule = {token: side for token, side in sides.items() if side is not None}
    return SpecialTokens({name: token_text(token) for name, token in by_name.items()}, texts, added, strip)


def read_marian(folder: Path) -> LoadedVocabularies:
    """Read Marian: a SentencePiece model per side, one vocabulary or one per side, language tags like ">>xx<<"."""
    files = read_tokenizer_files(folder)
    ids = _read_vocab(folder / "vocab.json")
    special = read_special_tokens(files, ids, DEFAULT_TOKENS)

    def make_vocabulary(ids: dict[str, int], name: str, decoder: bytes | None = None) -> SentencePieceVocabulary:
        model = _read_sentencepiece(folder / name)
        return SentencePieceVocabulary(
            ids,
            special.get_id("unk_token"),
            special.added,
            special.strip,
            tags=True,
            model=model,
            decoder=None if decoder == model else decoder,
        )

    source = make_vocabulary(ids, "source.spm")
    if files.config.get("separate_vocabs"):
        target = make_vocabulary(_read_vocab(folder / "target_vocab.json"), "target.spm")
    else:  # the original decodes with the source model
        target = make_vocabulary(ids, "target.spm", source.model)
    fields = _config_fields(files, special)
    fields |= tag_fields(ids)
    pair = language_pair(files.config.get("source_lang"), files.config.get("target_lang"))
    fields["language_pair"] = pair or pair_of_name(folder.name)
    return LoadedVocabularies(source, None if target == source else target, fields)


def read_m2m100(folder: Path) -> LoadedVocabularies:
    """Read M2M100: one SentencePiece model; language tokens follow the pieces of the vocabulary."""
    files = read_tokenizer_files(folder)
    ids = _read_vocab(folder / "vocab.json")
    special = read_special_tokens(files, ids, M2M100_TOKENS)
    languages = {code: len(ids) + i for i, code in enumerate(_language_codes(files, M2M100_LANGUAGES, "m2m100"))}
    vocabulary = SentencePieceVocabulary(
        ids | {f"__{code}__": i for code, i in languages.items()},
        special.get_id("unk_token"),
        special.added,
        special.strip,
        model=_read_sentencepiece(folder / "sentencepiece.bpe.model"),
    )
    fields = _config_fields(files, special, languages, source_language="before", target_language="first")
    return LoadedVocabularies(vocabulary, None, fields)


def read_plbart(folder: Path) -> LoadedVocabularies:
    """Read PLBart: one SentencePiece model, whose ids are shifted by one; language tokens and a mask follow."""
    files = read_tokenizer_files(folder)
    content = _read_sentencepiece(folder / "sentencepiece.bpe.model")
    model = load_sentencepiece(content)
    size = model.get_piece_size()
    languages = {code: size + 1 + i for i, code in enumerate(_language_codes(files, PLBART_LANGUAGES, "base"))}
    language_tokens = {f"__{code}__": i for code, i in languages.items()}
    fixed_ids = FAIRSEQ_IDS | language_tokens
    if files.config.get("language_codes", "base") == "base":
        fixed_ids["<mask>"] = size + 1 + len(languages)
    ids = {model.id_to_piece(i): i + 1 for i in range(1, size)} | fixed_ids
    special = read_special_tokens(files, ids, FAIRSEQ_TOKENS, tuple(language_tokens))
    # Fixed tokens keep their ids and strip no whitespace, whatever the files say.
    unknown_id, fixed = fixed_ids["<unk>"], (*fixed_ids, "<mask>")
    added = special.added | {token: ids.get(token, unknown_id) for token in special.all_tokens if token in fixed}
    strip: StripRule = {token: side for token, side in special.strip.items() if token not in fixed}
    special = SpecialTokens(special.by_name, special.all_tokens, added, strip)
    fields = _config_fields(files, special, languages, source_language="after", target_language="start")
    fields["clean_up"] = bool(files.config.get("clean_up_tokenization_spaces", True))
    vocabulary = SentencePieceVocabulary(ids, unknown_id, added, strip, join="plain", model=content)
    return LoadedVocabularies(vocabulary, None, fields)


# Tokenizer class -> its files and the function that reads them.
SENTENCEPIECE_READERS: dict[str, tuple[tuple[str, ...], Callable[[Path], LoadedVocabularies]]] = {
    "MarianTokenizer": (("source.spm", "target.spm", "vocab.json"), read_marian),
    "M2M100Tokenizer": (("sentencepiece.bpe.model", "vocab.json"), read_m2m100),
    "PLBartTokenizer": (("sentencepiece.bpe.model",), read_plbart),
}


def _config_fields(
    files: TokenizerFiles,
    special: SpecialTokens,
    languages: dict[str, int] | None = None,
    **language_positions: str,
) -> dict[str, Any]:
    """Return the fields of TokenizerConfig."""
    eos_id = special.get_id("eos_token")
    fields: dict[str, Any] = {
        "after_source": (eos_id,),
        "after_target": (eos_id,),
        "skip_ids": tuple(sorted({special.added[token] for token in special.all_tokens})),
        "clean_up": bool(files.config.get("clean_up_tokenization_spaces")),
    }
    if languages is None:
        return fields
    codes = [str(files.config.get(name)).strip("_") for name in ("src_lang", "tgt_lang")]
    source, target = (code if code in languages else None for code in codes)
    defaults = {"default_source_language": source, "default_target_language": target}
    return fields | language_positions | {"languages": languages} | defaults


def _language_codes(files: TokenizerFiles, code_sets: dict[str, str], default: str) -> list[str]:
    name = files.config.get("language_codes", default)
    if not isinstance(name, str) or name not in code_sets:
        raise ValueError(
            f"language_codes of tokenizer_config.json must be one of {', '.join(code_sets)}, not {short_repr(name)}."
        )
    return code_sets[name].split()


def _read_sentencepiece(path: Path) -> bytes:
    content = read_bytes(path)
    load_sentencepiece(content, str(path))
    return content


def _read_vocab(path: Path) -> dict[str, int]:
    ids = read_json(read_bytes(path), str(path))
    if not all(type(i) is int and i >= 0 for i in ids.values()):
        raise ValueError(f"{path} must map each piece to an id of at least 0; copy it again.")
    return ids
