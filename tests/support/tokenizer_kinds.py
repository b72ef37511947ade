"""A small tokenizer of every kind, to be made in an empty folder."""

from support.texts import CORPUS
from support.tiny_hf_tokenizers import CASES, read_tokenizer, train_models, write_case
from support.tiny_sentencepiece_tokenizers import (
    CLASS_NAMES,
    read_sentencepiece_tokenizer,
    write_m2m100,
    write_marian,
    write_plbart,
)

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.bpe_vocabulary import BPEVocabulary
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary

# Words that every kind gives back as they are: of letters that all know.
SENTENCES = ["this is a translation of the text into another language", "  there is nothing  better than it ", "a"]
PLAIN = TokenizerConfig(skip_ids=(0, 1, 2, 3))


def read_pipeline(folder, name):
    return read_tokenizer(write_case(folder, train_models(), name))


def read_model(write, folder, **options):
    return read_sentencepiece_tokenizer(CLASS_NAMES[write], write(folder, **options))


def whole_words():
    words = sorted({word for text in SENTENCES for word in text.split()})
    return Tokenizer(WordVocabulary({word: i for i, word in enumerate(words, start=4)}, 3), None, PLAIN)


def letters():
    """A tokenizer of single letters with "@@" at continuations."""
    pieces = [letter + sign for letter in "abcdefghijklmnopqrstuvwxyz" for sign in ("@@", "")]
    return Tokenizer(BPEVocabulary({piece: i for i, piece in enumerate(pieces, start=4)}, 3, ()), None, PLAIN)


KINDS = {
    **{name: lambda folder, name=name: read_pipeline(folder, name) for name in CASES},
    "marian": lambda folder: read_model(write_marian, folder),
    "marian, two vocabularies": lambda folder: read_model(write_marian, folder, separate=True),
    "marian, no normalization": lambda folder: read_model(write_marian, folder, kind="no normalization"),
    "marian, bytes": lambda folder: read_model(write_marian, folder, kind="bpe with bytes"),
    "m2m100": lambda folder: read_model(write_m2m100, folder),
    "plbart": lambda folder: read_model(write_plbart, folder),
    "trained": lambda folder: Tokenizer.train(CORPUS, CORPUS, 700),
    "words": lambda folder: whole_words(),
    "letters": lambda folder: letters(),
}


def languages(tokenizer):
    """Language codes, if the tokenizer needs them."""
    code = min(tokenizer.languages, default=None)
    sides = tokenizer.config.source_language, tokenizer.config.target_language
    return [None if side == "none" else code for side in sides]
