"""Tokenizers from the vocabularies that a user gives for a model: special tokens by name, levels, ids that fit."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mlx_transformer.messages import short_repr
from mlx_transformer.tokenization.bpe_vocabulary import END_OF_WORD
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.sentencepiece_vocabulary import SentencePieceVocabulary
from mlx_transformer.tokenization.vocabulary import SPACE_SYMBOL, Vocabulary, WordVocabulary
from mlx_transformer.weights.assumptions import Assumption
from mlx_transformer.weights.conversion_plan import ConversionPlan, VocabularyIds
from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.families.spec import Family
from mlx_transformer.weights.tokenizers.framework_vocabularies import detect_join
from mlx_transformer.weights.tokenizers.loaded_vocabularies import LoadedVocabularies
from mlx_transformer.weights.tokenizers.options import Level, TokenizerOptions
from mlx_transformer.weights.tokenizers.vocabulary_files import SPECIAL_TOKENS, FileVocabulary, read_vocabulary_file

logger = logging.getLogger(__name__)
ID_FIELDS = {"pad_id": "pad", "start_id": "start", "eos_id": "end"}  # field of ModelConfig -> role of the token
ROLES = {"both": ("start", "end"), "start": ("start",), "end": ("end",), "none": ()}
WORDPIECE_MARK = "##"
MARKS_OF_MERGES = ("\u0120", END_OF_WORD)  # of byte-level BPE and of BPE with ends of words
PIECE_MARKS = ("@@", "\uffed", SPACE_SYMBOL, WORDPIECE_MARK, *MARKS_OF_MERGES)
MIN_SHARE = 0.05  # of the tokens that have a mark, if a vocabulary is one of pieces
MIN_FILLED = 0.9  # of the rows of an embedding; more empty ones hint at another model's vocabulary
MARKUP = ("<>", "[]", "__")  # the first and last character of special tokens


@dataclass(frozen=True)
class UserVocabularies:
    """The vocabularies that a user gives for a model.

    Attributes:
        source: The source vocabulary.
        target: The target vocabulary; None if both sides share one.
        options: How they split text.
    """

    source: FileVocabulary
    target: FileVocabulary | None
    options: TokenizerOptions

    @classmethod
    def read(cls, options: TokenizerOptions | str | Path) -> "UserVocabularies":
        """Read the files; a path is the vocabulary of both sides.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a file is no vocabulary.
        """
        if not isinstance(options, TokenizerOptions):
            options = TokenizerOptions(options)
        source = read_vocabulary_file(Path(options.source))
        target = source[1:] if options.target is None else read_vocabulary_file(Path(options.target))
        if options.level and all(part.tokenizer or part.sentencepiece for part in (*source, *target)):
            raise ValueError(f"Only lists of tokens have a level: {options.source} splits text itself; leave it out.")
        is_shared = not target or source[0].ids == target[-1].ids
        return cls(source[0], None if is_shared else target[-1], options)

    def find_model_ids(self, settings: dict[str, Any]) -> VocabularyIds:
        """Return the special ids of ModelConfig that the target vocabulary names.

        Raises:
            ValueError: If `settings`, which take precedence, contradict the vocabulary.
        """
        target = self.target or self.source
        ids = {name: target.special_ids[role] for name, role in ID_FIELDS.items() if role in target.special_ids}
        for name, i in ids.items():
            value = settings.get(name, i)
            # A decoder may start with any special token, such as that of a language.
            if value != i and not (name == "start_id" and _is_special(target, target.token_of(value))):
                raise ValueError(
                    f"{name} must be that of the vocabulary: it is set to {value}, but {target.token_of(i)} has the id "
                    f"{i} in {target.path}; leave the setting out, or give the vocabulary of this model."
                )
        return VocabularyIds(ids, target.path)

    def build(self, plan: ConversionPlan) -> LoadedVocabularies:
        """Build the vocabularies of a model and check that they fit it.

        If sources are padded with another id than targets, source padding gets that of the target: two rows of the
        source embedding and two ids of the source vocabulary are exchanged.

        Raises:
            ValueError: If a vocabulary does not fit the model, or the source's lacks a special token.
        """
        target, model = self.target or self.source, plan.config
        _check_special_tokens(target, plan)
        for side, vocabulary in (("source", self.source), ("target", target)):
            _check_size(side, vocabulary, vars(model)[f"{side}_vocab_size"])
        source = self.source if self.target is None else _with_pad_id(self.source, plan)
        before, after = self._ids_around_source(source, plan)
        added = target.tokenizer.get_added_tokens_decoder() if target.tokenizer is not None else {}
        special = {model.pad_id, model.start_id, model.eos_id} | {i for i, token in added.items() if token.special}
        # Only models of transformers have tokens between the decoder's first input and a text.
        before_target = () if FAMILIES[plan.family].defaults or target.around is None else target.around[0]
        fields: dict[str, Any] = {
            "before_source": before,
            "after_source": after,
            "before_target": before_target,
            "after_target": (model.eos_id,),
            "skip_ids": tuple(sorted(special)),
            "lowercase": self.options.lowercase or source.lowercase,
        }
        if not fields["lowercase"] and _is_lowercase(source):
            logger.warning("No token of %s has a capital letter: add --lowercase to lower-case texts.", source.path)
        plan.assumptions = (*plan.assumptions, *self._assumptions(FAMILIES[plan.family]))
        built = self._make_vocabulary(source), None if self.target is None else self._make_vocabulary(target)
        return LoadedVocabularies(*built, fields)

    def _assumptions(self, family: Family) -> Iterator[Assumption]:
        """Yield what neither the options nor the files say."""
        if self.options.source_specials is None and self.source.around is None:
            kind = next(kind for kind, roles in ROLES.items() if roles == default_specials(family))
            reason = f"as in {family.defaults_from}" if family.defaults_from else "as in its family"
            yield Assumption("source_specials", kind, reason, "convert --source-specials ...")
        for vocabulary in (self.source, self.target) if self.options.level is None else ():
            if vocabulary is not None and not (vocabulary.tokenizer or vocabulary.sentencepiece):
                yield Assumption("level", find_level(vocabulary), f"by {vocabulary.path.name}", "convert --level ...")

    def _ids_around_source(self, source: FileVocabulary, plan: ConversionPlan) -> tuple[tuple[int, ...], ...]:
        """Return the ids before and after sources: as the options say, else the file, else the model's family."""
        option = self.options.source_specials
        if option is None and source.around is not None:
            return source.around
        special_ids = source.special_ids
        if self.target is None:
            special_ids = {"start": plan.config.start_id, "end": plan.config.eos_id} | special_ids
        ids: dict[str, tuple[int, ...]] = {"start": (), "end": ()}
        for role in default_specials(FAMILIES[plan.family]) if option is None else ROLES[option]:
            if role not in special_ids:
                raise ValueError(
                    f"Sources of this model need the {role} token, but {source.path} has none of the usual names "
                    f"({', '.join(SPECIAL_TOKENS[role][:3])} ...): rename it there, or choose --source-specials."
                )
            ids[role] = (special_ids[role],)
        return ids["start"], ids["end"]

    def _make_vocabulary(self, vocabulary: FileVocabulary) -> Vocabulary:
        """Return a vocabulary that splits text as its file says, or for a list of tokens by their level."""
        ids, unknown_id = vocabulary.ids, vocabulary.special_ids.get("unknown")
        if vocabulary.tokenizer is not None:
            return HFVocabulary(vocabulary.tokenizer)
        if vocabulary.sentencepiece is not None:
            return SentencePieceVocabulary(ids, unknown_id or 0, model=vocabulary.sentencepiece)
        level = self.options.level or find_level(vocabulary)
        if level == "pieces":
            return self._make_pieces(vocabulary)
        if level == "characters":
            return WordVocabulary(ids, unknown_id, "characters")
        return WordVocabulary(ids, unknown_id, split_punctuation=True)

    def _make_pieces(self, vocabulary: FileVocabulary) -> Vocabulary:
        """Return a vocabulary of pieces; only those of WordPiece can be found in a text without further rules."""
        mark, unknown_id = find_piece_mark(vocabulary), vocabulary.special_ids.get("unknown")
        if mark in MARKS_OF_MERGES:
            raise ValueError(
                f"A vocabulary of BPE needs its merges, which {vocabulary.path} does not have: give the tokenizer.json."
            )
        if mark == WORDPIECE_MARK and unknown_id is not None:
            model = models.WordPiece(vocabulary.ids, unk_token=vocabulary.token_of(unknown_id))
            tokenizer = tokenizers.Tokenizer(model)
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=self.options.lowercase)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            tokenizer.decoder = decoders.WordPiece(WORDPIECE_MARK)
            return HFVocabulary(tokenizer)
        logger.warning(
            "%s lists pieces without the rules that make them: give the tokenizer.json or the sentencepiece model, or "
            "split texts into pieces, separated by spaces, beforehand.",
            vocabulary.path,
        )
        return WordVocabulary(vocabulary.ids, unknown_id, detect_join(vocabulary.ids))


def default_specials(family: Family) -> tuple[str, ...]:
    """Return the special tokens around the sources of a family; most models of transformers have an end token."""
    return family.source_specials or (("end",) if family.model_types else ())


def find_level(vocabulary: FileVocabulary) -> Level:
    """Return what the tokens of a list are."""
    if find_piece_mark(vocabulary):
        return "pieces"
    words = _ordinary_tokens(vocabulary)
    return "characters" if all(len(word) == 1 for word in words) else "words"


def find_piece_mark(vocabulary: FileVocabulary) -> str | None:
    """Return the mark of the pieces of words in a vocabulary; None if it has no such pieces."""
    words = _ordinary_tokens(vocabulary)
    counts = {mark: sum(mark in word and word != mark for word in words) for mark in PIECE_MARKS}
    mark = max(PIECE_MARKS, key=lambda mark: counts[mark])
    return mark if counts[mark] > MIN_SHARE * len(words) else None


def _is_special(vocabulary: FileVocabulary, token: str) -> bool:
    """Whether a token is a special one, or looks like it."""
    is_markup = len(token) > 2 and token[0] + token[-1] in MARKUP
    return is_markup or vocabulary.ids.get(token) in vocabulary.special_ids.values()


def _ordinary_tokens(vocabulary: FileVocabulary) -> list[str]:
    return [token for token in vocabulary.ids if not _is_special(vocabulary, token)]


def _is_lowercase(vocabulary: FileVocabulary) -> bool:
    """Whether a list of tokens has letters, but no capitals."""
    text = "".join(_ordinary_tokens(vocabulary))
    return text == text.lower() != text.upper() and not (vocabulary.tokenizer or vocabulary.sentencepiece)


def _check_special_tokens(target: FileVocabulary, plan: ConversionPlan) -> None:
    """Raise ValueError if a vocabulary has words where a framework's models have special tokens."""
    for name, role in ID_FIELDS.items() if not FAMILIES[plan.family].defaults else ():
        token = target.token_of(i := vars(plan.config)[name])
        if token and role not in target.special_ids and not _is_special(target, token):
            raise ValueError(
                f"A vocabulary must have the special tokens of its model, whose {name} is {i}: {target.path} has "
                f"{short_repr(token)} there; add them, or put the program's own dictionaries beside the weights."
            )


def _check_size(side: str, vocabulary: FileVocabulary, size: int) -> None:
    if vocabulary.size > size:
        raise ValueError(
            f"A vocabulary must fit its model: {vocabulary.path} has ids up to {vocabulary.size - 1}, but the {side} "
            f"embedding only {size} rows; give the vocabulary that the model was trained with."
        )
    if vocabulary.size < MIN_FILLED * size:
        logger.warning(
            "%s has ids up to %d, but the %s embedding %d rows: is it the vocabulary that the model was trained with?",
            *(vocabulary.path, vocabulary.size - 1, side, size),
        )


def _with_pad_id(source: FileVocabulary, plan: ConversionPlan) -> FileVocabulary:
    """Give the padding of the source the id that the target's has, in the vocabulary and in the embedding."""
    pad_id, other = plan.config.pad_id, source.special_ids.get("pad")
    if other == pad_id or (other is None and pad_id not in source.ids.values()):
        return source
    if other is None or source.tokenizer is not None or plan.config.share_embeddings:
        raise ValueError(
            f"Both vocabularies must have the same padding: id {pad_id} is {source.token_of(pad_id)} in {source.path}; "
            "give the vocabularies of this model."
        )
    plan.exchange_rows("source_embedding.weight", other, pad_id)
    exchanged = {other: pad_id, pad_id: other}
    ids, special_ids = (
        {name: exchanged.get(i, i) for name, i in table.items()} for table in (source.ids, source.special_ids)
    )
    around = source.around and tuple(tuple(exchanged.get(i, i) for i in part) for part in source.around)
    return replace(source, ids=ids, special_ids=special_ids, around=around)
