"""Tokenizer classes of Hugging Face transformers, as a table: pipeline, special tokens and languages of each."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from mlx_transformer.storage.files import read_bytes
from mlx_transformer.weights.tokenizers.hf_files import (
    DEFAULT_TOKENS,
    FAIRSEQ_TOKENS,
    TokenizerFiles,
    TokenSpec,
    token_text,
)

ScoredPieces = list[tuple[str, float]]
GENERIC_CLASS = "PreTrainedTokenizer"  # uses tokenizer.json unchanged
MBART_LANGUAGES = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
).split()
MBART50_LANGUAGES = [
    *MBART_LANGUAGES,
    *"af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE".split(),
    *"sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI".split(),
]


@dataclass(frozen=True)
class TokenizerParts:
    """The parts a tokenizer is built from.

    Attributes:
        vocabulary: Pieces with scores, pieces with ids, or pieces only.
        merges: Pairs of pieces.
        charsmap: Compiled normalisation rules of a SentencePiece model; None if there are none.
        special_tokens: Name -> special token, such as "eos_token".
        files: The tokenizer's files.
    """

    vocabulary: Any
    merges: Any
    charsmap: bytes | None
    special_tokens: dict[str, str]
    files: TokenizerFiles


@dataclass(frozen=True)
class TokenizerClass:
    """A tokenizer class of transformers.

    Attributes:
        vocab_file: The file of the vocabulary, read if there is no tokenizer.json.
        build: Builds the tokenizer from its parts.
        special_tokens: Name -> special token.
        arrange_pieces: Turns the pieces of a SentencePiece model into the vocabulary; None for other vocab files.
        extra_tokens: Returns the extra special tokens of the class.
        mask_flags: Flags of the mask token.
        template: Names of the special tokens before and after a text; None to use that of tokenizer.json.
        languages: Language codes that are tokens of the vocabulary.
        source_language: See TokenizerConfig.
        target_language: See TokenizerConfig.
        default_source_language: The source language if the files do not set it.
    """

    vocab_file: str
    build: Callable[[TokenizerParts], tokenizers.Tokenizer]
    special_tokens: dict[str, str] = field(default_factory=dict)
    arrange_pieces: Callable[[ScoredPieces, dict[str, str], TokenizerFiles], Any] | None = None
    extra_tokens: Callable[[TokenizerFiles], list[TokenSpec]] = lambda files: []
    mask_flags: dict[str, bool] = field(default_factory=dict)
    template: tuple[tuple[str, ...], tuple[str, ...]] | None = ((), ("eos_token",))
    languages: tuple[str, ...] = ()
    source_language: Literal["none", "before", "after"] = "none"
    target_language: Literal["none", "start", "first"] = "none"
    default_source_language: str = ""


def metaspace_tokenizer(
    model: models.Model, rules: list[normalizers.Normalizer], split_whitespace: bool = False
) -> tokenizers.Tokenizer:
    """Build a tokenizer whose pieces start with U+2581 for the space before them.

    Args:
        model: Splits words into pieces.
        rules: Normalisers, applied in order.
        split_whitespace: Treat any run of whitespace as one space.
    """
    tokenizer = tokenizers.Tokenizer(model)
    if rules:
        tokenizer.normalizer = normalizers.Sequence(rules)
    spaces = pre_tokenizers.Metaspace()
    split = pre_tokenizers.WhitespaceSplit()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, spaces]) if split_whitespace else spaces
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def unigram_model(parts: TokenizerParts, unknown_id: int) -> models.Model:
    """Return a unigram model without byte fallback."""
    return models.Unigram([(piece, score) for piece, score in parts.vocabulary], unknown_id, False)


def charsmap_normalizers(parts: TokenizerParts) -> list[normalizers.Normalizer]:
    """Return the normaliser of the SentencePiece rules, if there are any."""
    tokenizer_json = parts.files.tokenizer_json
    charsmap = parts.charsmap if tokenizer_json is None else extract_charsmap(tokenizer_json)
    return [] if charsmap is None else [normalizers.Precompiled(charsmap)]


def collapse_spaces() -> normalizers.Normalizer:
    """Return a normaliser that replaces runs of spaces with one space."""
    return normalizers.Replace(Regex(" {2,}"), " ")


def build_t5(parts: TokenizerParts) -> tokenizers.Tokenizer:
    """Build the tokenizer of T5 and its relatives."""
    return metaspace_tokenizer(unigram_model(parts, 2), charsmap_normalizers(parts), split_whitespace=True)


def build_pegasus(parts: TokenizerParts) -> tokenizers.Tokenizer:
    """Build the tokenizer of Pegasus, whose unknown token follows the reserved ones."""
    pieces = [piece for piece, _ in parts.vocabulary]
    unknown_id = pieces.index(parts.special_tokens["unk_token"], 1)
    rules = charsmap_normalizers(parts) or [normalizers.Replace(Regex("\n"), " ")]
    return metaspace_tokenizer(unigram_model(parts, unknown_id), [*rules, collapse_spaces()])


def build_mbart(parts: TokenizerParts) -> tokenizers.Tokenizer:
    """Build the tokenizer of mBART-25; transformers ignores the normalisation rules of its SentencePiece model."""
    return metaspace_tokenizer(unigram_model(parts, 3), [], split_whitespace=True)


def build_mbart50(parts: TokenizerParts) -> tokenizers.Tokenizer:
    """Build the tokenizer of mBART-50."""
    return metaspace_tokenizer(unigram_model(parts, 3), [*charsmap_normalizers(parts), collapse_spaces()])


def build_nllb(parts: TokenizerParts) -> tokenizers.Tokenizer:
    """Build the tokenizer of NLLB, a BPE model of SentencePiece."""
    merges, unknown = parse_merges(parts.merges), parts.special_tokens["unk_token"]
    model = models.BPE(parts.vocabulary, merges, unk_token=unknown, fuse_unk=True)
    rules = charsmap_normalizers(parts)
    return metaspace_tokenizer(model, [*rules, collapse_spaces()] if rules else [])


def parse_merges(merges: Any) -> list[tuple[str, str]]:
    """Return the merges of a tokenizer.json as pairs; old files write "left right"."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [(left, right) for left, right in pairs]


def byte_level_builder(prefix_space: bool) -> Callable[[TokenizerParts], tokenizers.Tokenizer]:
    """Return the builder of a byte-level BPE tokenizer (BART); `prefix_space` is the default of add_prefix_space."""

    def build(parts: TokenizerParts) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer(models.BPE(parts.vocabulary, parse_merges(parts.merges)))
        add_prefix_space = bool(parts.files.config.get("add_prefix_space", prefix_space))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    return build


def load_tokenizer_json(parts: TokenizerParts) -> tokenizers.Tokenizer:
    """Load tokenizer.json unchanged."""
    return tokenizers.Tokenizer.from_buffer(read_bytes(parts.files.folder / "tokenizer.json"))


def sentinel_tokens(files: TokenizerFiles) -> list[TokenSpec]:
    """Return the sentinel tokens of T5, which stand for masked spans."""
    return [f"<extra_id_{i}>" for i in range(files.get_count("extra_ids", 100))]


def reserved_tokens(files: TokenizerFiles) -> list[TokenSpec]:
    """Return the tokens that Pegasus reserves for pretraining."""
    mask = files.config.get("mask_token_sent", "<mask_1>")
    unknown = [f"<unk_{i}>" for i in range(2, files.get_count("offset", 103))]
    return [*([] if mask is None else [str(mask)]), *unknown]


def arrange_t5_pieces(pieces: ScoredPieces, special_tokens: dict[str, str], files: TokenizerFiles) -> ScoredPieces:
    """Append the sentinels in reverse order."""
    return [*pieces, *((token_text(token), 0.0) for token in reversed(sentinel_tokens(files)))]


def arrange_pegasus_pieces(pieces: ScoredPieces, special_tokens: dict[str, str], files: TokenizerFiles) -> ScoredPieces:
    """Put the reserved tokens first, the masks in the order of transformers 5, which differs from that of training."""
    sentence_mask = files.config.get("mask_token_sent", "<mask_2>")
    masks = dict.fromkeys([str(files.config.get("mask_token", "<mask_1>")), str(sentence_mask)])
    head = [special_tokens["pad_token"], special_tokens["eos_token"], *(mask for mask in masks if mask != "None")]
    unknown = [(f"<unk_{i}>", -100.0) for i in range(2, files.get_count("offset", 103))]
    return [*((token, 0.0) for token in head), *unknown, *pieces[2:]]


def fairseq_arranger(languages: list[str]) -> Callable[[ScoredPieces, dict[str, str], TokenizerFiles], ScoredPieces]:
    """Return a function that puts the special tokens in fairseq's order first, the languages and the mask last."""

    def arrange(pieces: ScoredPieces, special_tokens: dict[str, str], files: TokenizerFiles) -> ScoredPieces:
        head = [special_tokens[f"{name}_token"] for name in ("cls", "pad", "eos", "unk")]
        tail = [*languages, special_tokens["mask_token"]]
        return [*((token, 0.0) for token in head), *pieces[3:], *((token, 0.0) for token in tail)]

    return arrange


def arrange_nllb_pieces(pieces: ScoredPieces, special_tokens: dict[str, str], files: TokenizerFiles) -> dict[str, int]:
    """Put the special tokens in fairseq's order first."""
    head = [special_tokens[f"{name}_token"] for name in ("bos", "pad", "eos", "unk")]
    return {piece: i for i, piece in enumerate(dict.fromkeys([*head, *(piece for piece, _ in pieces)]))}


def derive_merges(pieces: ScoredPieces) -> list[tuple[str, str]]:
    """Return the merges of a SentencePiece BPE model, which stores none: every split of a piece into two pieces."""
    vocabulary = {piece for piece, _ in pieces}
    return [
        (piece[:split], piece[split:])
        for piece, _ in pieces
        for split in range(1, len(piece))
        if piece[:split] in vocabulary and piece[split:] in vocabulary
    ]


def extract_charsmap(tokenizer_json: dict[str, Any]) -> bytes | None:
    """Return the SentencePiece normalisation rules of a tokenizer.json."""
    normalizer = tokenizer_json.get("normalizer") or {}
    rules = normalizer.get("normalizers", [normalizer]) if normalizer.get("type") == "Sequence" else [normalizer]
    for rule in rules:
        if rule.get("type") == "Precompiled" and rule.get("precompiled_charsmap"):
            return base64.b64decode(rule["precompiled_charsmap"])
    return None


def extract_template(post_processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that the post-processor of a tokenizer.json adds before and after a text."""
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "decoder"))
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    probe = tokenizers.Tokenizer.from_str(
        json.dumps(empty | {"version": "1.0", "added_tokens": [], "model": model, "post_processor": post_processor})
    )
    encoding = probe.encode("a")
    text = encoding.special_tokens_mask.index(0)
    return tuple(encoding.ids[:text]), tuple(encoding.ids[text + 1 :])


TOKENIZER_CLASSES: dict[str, TokenizerClass] = {
    "T5Tokenizer": TokenizerClass("spiece.model", build_t5, DEFAULT_TOKENS, arrange_t5_pieces, sentinel_tokens),
    "PegasusTokenizer": TokenizerClass(
        "spiece.model",
        build_pegasus,
        DEFAULT_TOKENS | {"mask_token": "<mask_2>"},
        arrange_pegasus_pieces,
        reserved_tokens,
    ),
    "NllbTokenizer": TokenizerClass(
        "sentencepiece.bpe.model",
        build_nllb,
        FAIRSEQ_TOKENS,
        arrange_nllb_pieces,
        mask_flags={"lstrip": True, "normalized": True, "special": True},
        source_language="before",
        target_language="first",
        default_source_language="eng_Latn",
    ),
    "MBartTokenizer": TokenizerClass(
        "sentencepiece.bpe.model",
        build_mbart,
        FAIRSEQ_TOKENS,
        fairseq_arranger(MBART_LANGUAGES),
        lambda files: list(MBART_LANGUAGES),
        languages=tuple(MBART_LANGUAGES),
        source_language="after",
        target_language="start",
        default_source_language="en_XX",
    ),
    "MBart50Tokenizer": TokenizerClass(
        "sentencepiece.bpe.model",
        build_mbart50,
        {name: token for name, token in FAIRSEQ_TOKENS.items() if name != "bos_token"},
        fairseq_arranger(MBART50_LANGUAGES),
        lambda files: list(MBART50_LANGUAGES),
        mask_flags={"lstrip": True},
        languages=tuple(MBART50_LANGUAGES),
        source_language="before",
        target_language="first",
        default_source_language="en_XX",
    ),
    "RobertaTokenizer": TokenizerClass(
        "vocab.json", byte_level_builder(False), FAIRSEQ_TOKENS, template=(("cls_token",), ("sep_token",))
    ),
    "BlenderbotTokenizer": TokenizerClass(
        "vocab.json",
        byte_level_builder(True),
        FAIRSEQ_TOKENS,
        mask_flags={"lstrip": True, "normalized": False},
        template=None,
    ),
    GENERIC_CLASS: TokenizerClass("tokenizer.json", load_tokenizer_json, template=None),
}
TOKENIZER_CLASSES |= {"BartTokenizer": TOKENIZER_CLASSES["RobertaTokenizer"]}

# Model type -> the tokenizer class, unless tokenizer_config.json names another.
MODEL_TYPE_CLASSES = {
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
    "umt5": GENERIC_CLASS,
    "pegasus": "PegasusTokenizer",
    "bart": "RobertaTokenizer",
    "mbart": "MBartTokenizer",
    "blenderbot": "BlenderbotTokenizer",
    "blenderbot-small": "BlenderbotSmallTokenizer",
    "marian": "MarianTokenizer",
    "m2m_100": "M2M100Tokenizer",
    "plbart": "PLBartTokenizer",
}
