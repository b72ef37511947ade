"""Tokenizers of checkpoints that are read by sentencepiece and have ids of their own: Marian, M2M100, PLBart.

They follow transformers 5.23, whose Marian normalises punctuation if sacremoses is installed; here it is as without.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlx_transformer.storage.files import read_bytes
from mlx_transformer.tokenization.sentencepiece_vocabulary import SentencePieceVocabulary, load_sentencepiece
from mlx_transformer.tokenization.vocabulary import StripRule, Vocabulary
from mlx_transformer.weights.formats.containers import read_json
from mlx_transformer.weights.tokenizers.hf_files import (
    TokenizerFiles,
    read_tokenizer_files,
    resolve_extra_tokens,
    resolve_special_tokens,
    token_text,
)

DEFAULT_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
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
STRIP_SIDES: dict[tuple[bool, bool], Literal["left", "right", "both"]] = {
    (True, False): "left",
    (False, True): "right",
    (True, True): "both",
}

# A source and a target vocabulary (None for the same), and fields of TokenizerConfig.
Read = tuple[Vocabulary, Vocabulary | None, dict[str, Any]]


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens of a folder besides the pieces of its vocabulary.

    Attributes:
        named: Special tokens by what they are for, such as "eos_token".
        tokens: All special tokens.
        added: Tokens that are found in texts before these are cut into pieces -> id.
        strip: Those beside which white space is dropped -> on which side.
    """

    named: dict[str, str]
    tokens: tuple[str, ...]
    added: dict[str, int]
    strip: StripRule

    def get_id(self, name: str) -> int:
        """The id of a named token."""
        if name not in self.named:
            raise ValueError(f"A tokenizer must have an {name}: tokenizer_config.json takes it away.")
        return self.added[self.named[name]]


def read_special_tokens(
    files: TokenizerFiles, ids: dict[str, int], usual: dict[str, str], own: tuple[str, ...] = ()
) -> SpecialTokens:
    """The tokens that a folder has besides pieces; special ones without an id get those after the last.

    Args:
        files: What the folder's small files say.
        ids: The pieces of its vocabulary.
        usual: Named tokens where the files are silent.
        own: Further special tokens where the files are silent.
    """
    named = resolve_special_tokens(files.options, usual, {}, files.added)
    tokens = [*named.values(), *resolve_extra_tokens(files, list(own))]
    texts = tuple(dict.fromkeys(map(token_text, tokens)))
    added = {token.content: i for i, token in files.added.items()}
    known = ids | added
    added |= {token: known.setdefault(token, len(known)) for token in texts}
    sides = {token.content: STRIP_SIDES.get((token.lstrip, token.rstrip)) for token in files.added.values()}
    strip: StripRule = {token: side for token, side in sides.items() if side is not None}
    return SpecialTokens({name: token_text(token) for name, token in named.items()}, texts, added, strip)


def read_marian(folder: Path) -> Read:
    """Two sentencepiece models, and one vocabulary or one for each side; ">>xx<<" asks for a language."""
    files = read_tokenizer_files(folder)
    ids = _read_vocab(folder / "vocab.json")
    special = read_special_tokens(files, ids, DEFAULT_TOKENS)

    def side(ids: dict[str, int], name: str, decoder: bytes | None = None) -> SentencePieceVocabulary:
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

    source = side(ids, "source.spm")
    if files.options.get("separate_vocabs"):
        target = side(_read_vocab(folder / "target_vocab.json"), "target.spm")
    else:  # The original makes text of pieces with the source's model then.
        target = side(ids, "target.spm", source.model)
    fields = _config_fields(files, special)
    languages = {piece[2:-2]: i for piece, i in ids.items() if piece.startswith(">>") and piece.endswith("<<")}
    if len(languages) > 1:  # a model of one language does without its tag
        fields |= {"languages": languages, "target_language": "source"}
    return source, None if target == source else target, fields


def read_m2m100(folder: Path) -> Read:
    """One sentencepiece model; tokens of languages follow the pieces of the vocabulary."""
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
    return (
        vocabulary,
        None,
        _config_fields(files, special, languages, source_language="before", target_language="first"),
    )


def read_plbart(folder: Path) -> Read:
    """One sentencepiece model, whose ids move up by one; tokens of languages and a mask follow."""
    files = read_tokenizer_files(folder)
    content = _read_sentencepiece(folder / "sentencepiece.bpe.model")
    model = load_sentencepiece(content)
    size = model.get_piece_size()
    languages = {code: size + 1 + i for i, code in enumerate(_language_codes(files, PLBART_LANGUAGES, "base"))}
    tokens = {f"__{code}__": i for code, i in languages.items()}
    own = FAIRSEQ_IDS | tokens
    if files.options.get("language_codes", "base") == "base":
        own["<mask>"] = size + 1 + len(languages)
    ids = {model.id_to_piece(i): i + 1 for i in range(1, size)} | own
    usual = M2M100_TOKENS | {"cls_token": "<s>", "mask_token": "<mask>"}
    special = read_special_tokens(files, ids, usual, tuple(tokens))
    # The vocabulary's own tokens have its ids, whatever the files say, and take no white space with them.
    unknown_id = own["<unk>"]
    added = special.added | {token: ids.get(token, unknown_id) for token in special.tokens if token in (*own, "<mask>")}
    strip: StripRule = {token: side for token, side in special.strip.items() if token not in (*own, "<mask>")}
    special = SpecialTokens(special.named, special.tokens, added, strip)
    fields = _config_fields(files, special, languages, source_language="after", target_language="start")
    fields["clean_up"] = bool(files.options.get("clean_up_tokenization_spaces", True))
    return SentencePieceVocabulary(ids, unknown_id, added, strip, join="plain", model=content), None, fields


# Class of the tokenizer -> the files that make it up, and how they are read.
SENTENCEPIECE_READERS: dict[str, tuple[tuple[str, ...], Callable[[Path], Read]]] = {
    "MarianTokenizer": (("source.spm", "target.spm", "vocab.json"), read_marian),
    "M2M100Tokenizer": (("sentencepiece.bpe.model", "vocab.json"), read_m2m100),
    "PLBartTokenizer": (("sentencepiece.bpe.model",), read_plbart),
}


def _config_fields(
    files: TokenizerFiles, special: SpecialTokens, languages: dict[str, int] | None = None, **more: str
) -> dict[str, Any]:
    """Fields of TokenizerConfig: an end after each text, special tokens that are no text, and languages."""
    eos_id = special.get_id("eos_token")
    fields: dict[str, Any] = {
        "after_source": (eos_id,),
        "after_target": (eos_id,),
        "skip_ids": tuple(sorted({special.added[token] for token in special.tokens})),
        "clean_up": bool(files.options.get("clean_up_tokenization_spaces")),
    }
    if languages is None:
        return fields
    stated = [str(files.options.get(name)).strip("_") for name in ("src_lang", "tgt_lang")]
    source, target = (code if code in languages else None for code in stated)
    return (
        fields
        | more
        | {
            "languages": languages,
            "default_source_language": source,
            "default_target_language": target,
        }
    )


def _language_codes(files: TokenizerFiles, known: dict[str, str], usual: str) -> list[str]:
    name = files.options.get("language_codes", usual)
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"language_codes of tokenizer_config.json must be one of {', '.join(known)}, not {name!r}.")
    return known[name].split()


def _read_sentencepiece(path: Path) -> bytes:
    content = read_bytes(path)
    load_sentencepiece(content, str(path))
    return content


def _read_vocab(path: Path) -> dict[str, int]:
    ids = read_json(read_bytes(path), str(path))
    if not all(type(i) is int and i >= 0 for i in ids.values()):
        raise ValueError(f"{path} must give each piece an id, a whole number of at least 0; copy it again.")
    return ids
