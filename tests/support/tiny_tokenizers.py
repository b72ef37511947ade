"""Folders of tokenizers as a checkpoint has them, on small sentencepiece models that are trained here."""

import functools
import io
import json

import sentencepiece
from support.texts import CORPUS

from mlx_transformer.weights.tokenizers.sentencepiece_models import M2M100_LANGUAGES

ENGLISH, OTHERS = tuple(CORPUS[::2]), tuple(CORPUS[1::2])
KINDS = {
    "unigram": {"model_type": "unigram"},
    "bpe": {"model_type": "bpe"},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True},
    "bpe with bytes": {"model_type": "bpe", "byte_fallback": True},
    "as it is": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}


@functools.cache
def train(lines, **options):
    """A sentencepiece model of about 600 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=800,
        hard_vocab_limit=False,
        character_coverage=0.98,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def pieces(model):
    """All pieces of a model, in order."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def write(folder, **files):
    """A folder of models (bytes) and JSON files, "__" in whose names is a full stop."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def marian(folder, kind="unigram", languages=(">>fra<<", ">>deu<<"), separate=False, config=None, target_kind=None):
    """A folder as `save_pretrained` writes it; the two sides differ in their pieces."""
    models = [train(ENGLISH, **KINDS[kind]), train(OTHERS, **KINDS[target_kind or kind])]
    sides = [[piece for piece in pieces(model) if piece not in ("<s>", "</s>", "<unk>")] for model in models]
    first = ["</s>", "<unk>", *languages]
    # Not every piece of a model is in its vocabulary.
    joint = dict.fromkeys([*first, *sides[0][5:], *([] if separate else sides[1]), "<pad>"])
    tables = [joint, dict.fromkeys([*first, *sides[1], "<pad>"])]
    ids, target_ids = ({piece: i for i, piece in enumerate(table)} for table in tables)
    return write(
        folder,
        source__spm=models[0],
        target__spm=models[1],
        vocab__json=ids,
        tokenizer_config__json={"tokenizer_class": "MarianTokenizer", "separate_vocabs": separate} | (config or {}),
        **({"target_vocab__json": target_ids} if separate else {}),
    )


def m2m100(folder, kind="unigram", codes="m2m100", config=None, listed=True):
    model = train(tuple(CORPUS), **KINDS[kind])
    table = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", *pieces(model)])
    tokens = [f"__{code}__" for code in M2M100_LANGUAGES[codes].split()]
    stated = {"tokenizer_class": "M2M100Tokenizer", "language_codes": codes}
    stated |= {"additional_special_tokens": tokens} if listed else {}
    return write(
        folder,
        sentencepiece__bpe__model=model,
        vocab__json={piece: i for i, piece in enumerate(table)},
        tokenizer_config__json=stated | (config or {}),
    )


def plbart(folder, kind="unigram", codes="base", config=None):
    return write(
        folder,
        sentencepiece__bpe__model=train(tuple(CORPUS), **KINDS[kind]),
        tokenizer_config__json={"tokenizer_class": "PLBartTokenizer", "language_codes": codes} | (config or {}),
    )
