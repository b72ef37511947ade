"""How classes of tokenizers of transformers cut text into pieces, as rows of a table."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from mlx_transformer.weights.tokenizers.hf_files import TokenizerFiles, TokenSpec, token_text

ScoredPieces = list[tuple[str, float]]
GENERIC_CLASS = "PreTrainedTokenizer"  # tokenizer.json as it is
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
    """What a pipeline is made of.

    Attributes:
        vocabulary: Pieces and scores, or pieces and ids, or pieces alone.
        merges: Pairs of pieces.
        charsmap: Rules of normalisation of a sentencepiece model; None for none.
        names: The special tokens that have a purpose, "eos_token" and others.
        files: The files.
    """

    vocabulary: Any
    merges: Any
    charsmap: bytes | None
    names: dict[str, str]
    files: TokenizerFiles


@dataclass(frozen=True)
class TokenizerClass:
    """A class of tokenizers.

    Attributes:
        file: What holds the vocabulary where there is no tokenizer.json.
        build: Makes the pipeline.
        tokens: Tokens with a purpose.
        arrange: Makes the pieces of a sentencepiece model those of the vocabulary.
        own: Special tokens without a purpose that the class has by itself.
        mask: Flags of its mask.
        around: The purposes of the tokens before and after a text; None for what tokenizer.json says.
        languages: Codes that are tokens of the vocabulary.
        source_language: As in TokenizerConfig.
        target_language: As in TokenizerConfig.
        default_language: The language of sources where the files say none.
    """

    file: str
    build: Callable[[TokenizerParts], tokenizers.Tokenizer]
    tokens: dict[str, str] = field(default_factory=dict)
    arrange: Callable[[ScoredPieces, dict[str, str], TokenizerFiles], Any] | None = None
    own: Callable[[TokenizerFiles], list[TokenSpec]] = lambda files: []
    mask: dict[str, bool] = field(default_factory=dict)
    around: tuple[tuple[str, ...], tuple[str, ...]] | None = ((), ("eos_token",))
    languages: tuple[str, ...] = ()
    source_language: Literal["none", "before", "after"] = "none"
    target_language: Literal["none", "start", "first"] = "none"
    default_language: str = ""


def metaspace_tokenizer(
    model: models.Model, rules: list[normalizers.Normalizer], split: bool = False
) -> tokenizers.Tokenizer:
    """A vocabulary whose pieces begin with a sign for the space before them.

    Args:
        model: Cuts words into pieces.
        rules: Normalise the text first.
        split: Runs of any white space are one space.
    """
    tokenizer = tokenizers.Tokenizer(model)
    if rules:
        tokenizer.normalizer = normalizers.Sequence(rules)
    spaces = pre_tokenizers.Metaspace()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces]) if split else spaces
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def unigram_model(given: TokenizerParts, unknown_id: int) -> models.Model:
    """Pieces with scores; characters without a piece are unknown."""
    return models.Unigram([(piece, score) for piece, score in given.vocabulary], unknown_id, False)


def charsmap_normalizers(given: TokenizerParts) -> list[normalizers.Normalizer]:
    """The rules of sentencepiece."""
    rules = given.charsmap if given.files.stored is None else extract_charsmap(given.files.stored)
    return [] if rules is None else [normalizers.Precompiled(rules)]


def collapse_spaces() -> normalizers.Normalizer:
    """One space for several."""
    return normalizers.Replace(Regex(" {2,}"), " ")


def build_t5(given: TokenizerParts) -> tokenizers.Tokenizer:
    """T5 and its relatives."""
    return metaspace_tokenizer(unigram_model(given, 2), charsmap_normalizers(given), split=True)


def build_pegasus(given: TokenizerParts) -> tokenizers.Tokenizer:
    """Pegasus, whose unknown token follows on many reserved ones."""
    pieces = [piece for piece, _ in given.vocabulary]
    rules = charsmap_normalizers(given) or [normalizers.Replace(Regex("\n"), " ")]
    return metaspace_tokenizer(
        unigram_model(given, pieces.index(given.names["unk_token"], 1)), [*rules, collapse_spaces()]
    )


def build_mbart(given: TokenizerParts) -> tokenizers.Tokenizer:
    """The first mBART; transformers does not follow the rules of its sentencepiece model."""
    return metaspace_tokenizer(unigram_model(given, 3), [], split=True)


def build_mbart50(given: TokenizerParts) -> tokenizers.Tokenizer:
    """The second mBART, with 50 languages."""
    return metaspace_tokenizer(unigram_model(given, 3), [*charsmap_normalizers(given), collapse_spaces()])


def build_nllb(given: TokenizerParts) -> tokenizers.Tokenizer:
    """NLLB: BPE in the manner of sentencepiece."""
    model = models.BPE(given.vocabulary, parse_merges(given.merges), unk_token=given.names["unk_token"], fuse_unk=True)
    rules = charsmap_normalizers(given)
    return metaspace_tokenizer(model, [*rules, collapse_spaces()] if rules else [])


def parse_merges(merges: Any) -> list[tuple[str, str]]:
    """Merges of a tokenizer.json, which old files have as "left right"."""
    halves = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return [(left, right) for left, right in halves]


def byte_level_builder(prefix_space: bool) -> Callable[[TokenizerParts], tokenizers.Tokenizer]:
    """BPE of bytes (BART), with a space before the text unless the files say otherwise, or without."""

    def build(given: TokenizerParts) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer(models.BPE(given.vocabulary, parse_merges(given.merges)))
        space = bool(given.files.options.get("add_prefix_space", prefix_space))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    return build


def load_tokenizer_json(given: TokenizerParts) -> tokenizers.Tokenizer:
    """What tokenizer.json says."""
    return tokenizers.Tokenizer.from_file(str(given.files.folder / "tokenizer.json"))


def sentinel_tokens(files: TokenizerFiles) -> list[TokenSpec]:
    """Names of what T5 leaves out of texts."""
    return [f"<extra_id_{i}>" for i in range(files.number("extra_ids", 100))]


def reserved_tokens(files: TokenizerFiles) -> list[TokenSpec]:
    """Names that Pegasus keeps for training."""
    mask = files.options.get("mask_token_sent", "<mask_1>")
    return [*([] if mask is None else [str(mask)]), *(f"<unk_{i}>" for i in range(2, files.number("offset", 103)))]


def arrange_t5_pieces(pieces: ScoredPieces, names: dict[str, str], files: TokenizerFiles) -> ScoredPieces:
    """Sentinels last, the first of them at the very end."""
    return [*pieces, *((token_text(token), 0.0) for token in reversed(sentinel_tokens(files)))]


def arrange_pegasus_pieces(pieces: ScoredPieces, names: dict[str, str], files: TokenizerFiles) -> ScoredPieces:
    """Reserved names before the pieces; the masks as transformers 5 orders them, which is not as they were trained."""
    sent = files.options.get("mask_token_sent", "<mask_2>")
    masks = dict.fromkeys([str(files.options.get("mask_token", "<mask_1>")), str(sent)])
    head = [names["pad_token"], names["eos_token"], *(mask for mask in masks if mask != "None")]
    unknown = [(f"<unk_{i}>", -100.0) for i in range(2, files.number("offset", 103))]
    return [*((name, 0.0) for name in head), *unknown, *pieces[2:]]


def fairseq_arranger(languages: list[str]) -> Callable[[ScoredPieces, dict[str, str], TokenizerFiles], ScoredPieces]:
    """Special tokens as fairseq orders them, then the pieces, then languages and the mask."""

    def arrange(pieces: ScoredPieces, names: dict[str, str], files: TokenizerFiles) -> ScoredPieces:
        head = [names[f"{name}_token"] for name in ("cls", "pad", "eos", "unk")]
        tail = [*languages, names["mask_token"]]
        return [*((name, 0.0) for name in head), *pieces[3:], *((name, 0.0) for name in tail)]

    return arrange


def arrange_nllb_pieces(pieces: ScoredPieces, names: dict[str, str], files: TokenizerFiles) -> dict[str, int]:
    """Special tokens as fairseq orders them, then the pieces."""
    head = [names[f"{name}_token"] for name in ("bos", "pad", "eos", "unk")]
    return {piece: i for i, piece in enumerate(dict.fromkeys([*head, *(piece for piece, _ in pieces)]))}


def derive_merges(pieces: ScoredPieces) -> list[tuple[str, str]]:
    """The merges of a BPE model of sentencepiece, which stores none: all halves of a piece, in the order of pieces."""
    known = {piece for piece, _ in pieces}
    return [
        (piece[:place], piece[place:])
        for piece, _ in pieces
        for place in range(1, len(piece))
        if piece[:place] in known and piece[place:] in known
    ]


def extract_charsmap(stored: dict[str, Any]) -> bytes | None:
    """The rules of sentencepiece in a tokenizer.json."""
    rules = stored.get("normalizer") or {}
    for rule in rules.get("normalizers", [rules]) if rules.get("type") == "Sequence" else [rules]:
        if rule.get("type") == "Precompiled" and rule.get("precompiled_charsmap"):
            return base64.b64decode(rule["precompiled_charsmap"])
    return None


def extract_template(post_processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the processor of a tokenizer.json sets before and after a text."""
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "decoder"))
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    probe = tokenizers.Tokenizer.from_str(
        json.dumps(empty | {"version": "1.0", "added_tokens": [], "model": model, "post_processor": post_processor})
    )
    encoding = probe.encode("a")
    place = encoding.special_tokens_mask.index(0)
    return tuple(encoding.ids[:place]), tuple(encoding.ids[place + 1 :])


T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
FAIRSEQ_TOKENS = {"bos_token": "<s>", **T5_TOKENS, "sep_token": "</s>", "cls_token": "<s>", "mask_token": "<mask>"}

TOKENIZER_CLASSES: dict[str, TokenizerClass] = {
    "T5Tokenizer": TokenizerClass("spiece.model", build_t5, T5_TOKENS, arrange_t5_pieces, sentinel_tokens),
    "PegasusTokenizer": TokenizerClass(
        "spiece.model", build_pegasus, T5_TOKENS | {"mask_token": "<mask_2>"}, arrange_pegasus_pieces, reserved_tokens
    ),
    "NllbTokenizer": TokenizerClass(
        "sentencepiece.bpe.model",
        build_nllb,
        FAIRSEQ_TOKENS,
        arrange_nllb_pieces,
        mask={"lstrip": True, "normalized": True, "special": True},
        source_language="before",
        target_language="first",
        default_language="eng_Latn",
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
        default_language="en_XX",
    ),
    "MBart50Tokenizer": TokenizerClass(
        "sentencepiece.bpe.model",
        build_mbart50,
        {name: token for name, token in FAIRSEQ_TOKENS.items() if name != "bos_token"},
        fairseq_arranger(MBART50_LANGUAGES),
        lambda files: list(MBART50_LANGUAGES),
        mask={"lstrip": True},
        languages=tuple(MBART50_LANGUAGES),
        source_language="before",
        target_language="first",
        default_language="en_XX",
    ),
    "RobertaTokenizer": TokenizerClass(
        "vocab.json", byte_level_builder(False), FAIRSEQ_TOKENS, around=(("cls_token",), ("sep_token",))
    ),
    "BlenderbotTokenizer": TokenizerClass(
        "vocab.json", byte_level_builder(True), FAIRSEQ_TOKENS, mask={"lstrip": True, "normalized": False}, around=None
    ),
    GENERIC_CLASS: TokenizerClass("tokenizer.json", load_tokenizer_json, around=None),
}
TOKENIZER_CLASSES |= {"BartTokenizer": TOKENIZER_CLASSES["RobertaTokenizer"]}

# The class of a type of model, where tokenizer_config.json does not say another.
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
