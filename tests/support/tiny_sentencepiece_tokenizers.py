"""Tokenizer folders of Marian, M2M100 and PLBart with small SentencePiece models trained here."""

import functools
import io
import json

import pytest
import sentencepiece
from support.texts import CORPUS

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights.tokenizers.sentencepiece_models import M2M100_LANGUAGES, SENTENCEPIECE_READERS

ENGLISH, OTHERS = tuple(CORPUS[::2]), tuple(CORPUS[1::2])
MODEL_KINDS = {
    "unigram": {"model_type": "unigram"},
    "bpe": {"model_type": "bpe"},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True},
    "bpe with bytes": {"model_type": "bpe", "byte_fallback": True},
    "no normalization": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}


@functools.cache
def train_sentencepiece(lines=tuple(CORPUS), **options):
    """Train a SentencePiece model of about 600 pieces; return its serialized form."""
    model = io.BytesIO()
    defaults = {"vocab_size": 800, "character_coverage": 0.98}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **(defaults | options),
    )
    return model.getvalue()


def list_pieces(model):
    """Return the pieces of a serialized model in the order of ids."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def write_files(folder, **files):
    """Write models (bytes) and JSON files; "__" in a name stands for a dot."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def write_marian(
    folder, kind="unigram", languages=(">>fra<<", ">>deu<<"), separate=False, config=None, target_kind=None
):
    """Write a folder as `save_pretrained` does; the two sides have different pieces."""
    models = [
        train_sentencepiece(ENGLISH, **MODEL_KINDS[kind]),
        train_sentencepiece(OTHERS, **MODEL_KINDS[target_kind or kind]),
    ]
    sides = [[piece for piece in list_pieces(model) if piece not in ("<s>", "</s>", "<unk>")] for model in models]
    first = ["</s>", "<unk>", *languages]
    # Some pieces of the models are missing in the vocabulary.
    joint = dict.fromkeys([*first, *sides[0][5:], *([] if separate else sides[1]), "<pad>"])
    tables = [joint, dict.fromkeys([*first, *sides[1], "<pad>"])]
    ids, target_ids = ({piece: i for i, piece in enumerate(table)} for table in tables)
    return write_files(
        folder,
        source__spm=models[0],
        target__spm=models[1],
        vocab__json=ids,
        tokenizer_config__json={"tokenizer_class": "MarianTokenizer", "separate_vocabs": separate} | (config or {}),
        **({"target_vocab__json": target_ids} if separate else {}),
    )


def write_m2m100(folder, kind="unigram", codes="m2m100", config=None, list_languages=True):
    """Write a folder of M2M100, whose config lists its language tokens or not."""
    model = train_sentencepiece(**MODEL_KINDS[kind])
    table = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *list_pieces(model)])
    tokens = [f"__{code}__" for code in M2M100_LANGUAGES[codes].split()]
    defaults = {"tokenizer_class": "M2M100Tokenizer", "language_codes": codes}
    defaults |= {"additional_special_tokens": tokens} if list_languages else {}
    return write_files(
        folder,
        sentencepiece__bpe__model=model,
        vocab__json={piece: i for i, piece in enumerate(table)},
        tokenizer_config__json=defaults | (config or {}),
    )


def write_plbart(folder, kind="unigram", codes="base", config=None):
    """Write a folder of PLBart."""
    return write_files(
        folder,
        sentencepiece__bpe__model=train_sentencepiece(**MODEL_KINDS[kind]),
        tokenizer_config__json={"tokenizer_class": "PLBartTokenizer", "language_codes": codes} | (config or {}),
    )


CLASS_NAMES = {write_marian: "MarianTokenizer", write_m2m100: "M2M100Tokenizer", write_plbart: "PLBartTokenizer"}


def read_sentencepiece_tokenizer(name, folder):
    """Return the converted tokenizer of a folder; `name` is its tokenizer class."""
    source, target, fields = SENTENCEPIECE_READERS[name][1](folder)
    sizes = {"source_vocab_size": source.size, "target_vocab_size": (target or source).size}
    return Tokenizer(source, target, TokenizerConfig(**fields, **sizes))


def transformers_class(name):
    """Return a class of transformers; skip the test if it is not installed."""
    return getattr(pytest.importorskip("transformers"), name)


def load_original(name, folder, **options):
    """Return the tokenizer that transformers loads from a folder; `name` is its tokenizer class."""
    return transformers_class(name).from_pretrained(folder, **options)
