"""Tokenizer folders that AutoTokenizer reads, with small models trained here."""

import contextlib
import functools
import importlib
import json
from types import SimpleNamespace

import pytest
import sentencepiece
import tokenizers
from support.texts import CORPUS
from support.tiny_sentencepiece_tokenizers import train_sentencepiece
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.weights.tokenizers.hf_files import DEFAULT_TOKENS, FAIRSEQ_TOKENS
from mlx_transformer.weights.tokenizers.hf_pipeline import read_hf_tokenizer
from mlx_transformer.weights.tokenizers.sentencepiece_proto import parse_sentencepiece_model

DEFAULTS = {"vocab_size": 700, "character_coverage": 0.99, "normalization_rule_name": "nmt_nfkc"}
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
MODELS = {
    "t5": {**T5, "model_type": "unigram"},
    "symbols": {**T5, "model_type": "unigram", "user_defined_symbols": "<2de>,<2fr>"},
    "bytes": {**T5, "model_type": "unigram", "byte_fallback": True, "vocab_size": 1000},
    "plain": {**T5, "model_type": "unigram", "normalization_rule_name": "identity"},
    "fairseq": {"model_type": "unigram"},
    "bpe": {"model_type": "bpe"},
}
CODES = ["ace_Arab", "eng_Latn", "fra_Latn", "tyv_Cyrl"]
MASK = {"content": "<mask>", "lstrip": True, "normalized": True, "rstrip": False, "single_word": False}
SENTINELS = [f"<extra_id_{i}>" for i in range(100)]


def train_byte_level(prefix=False):
    """Train a byte-level BPE model; return the tokenizer.json of BART, with `prefix` that of Blenderbot."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    if prefix:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    else:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer.to_str()


def vocab_and_merges(tokenizer_json):
    """Return the vocab.json and merges.txt of a tokenizer.json."""
    model = json.loads(tokenizer_json)["model"]
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    return {"vocab.json": json.dumps(model["vocab"]), "merges.txt": f"#version: 0.2\n{merges}"}


def train_blenderbot_small():
    """Train a BPE model; return the vocab.json and merges.txt of Blenderbot-small."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="__unk__", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["__null__", "__start__", "__end__", "__unk__", "__newln__"]
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([text.lower() for text in CORPUS], trainer)
    files = vocab_and_merges(tokenizer.to_str())
    ids = {}
    for piece in json.loads(files["vocab.json"]):
        ends_word = piece in special or piece.endswith("</w>")
        ids.setdefault(piece.removesuffix("</w>") if ends_word else f"{piece}@@", len(ids))
    return files | {"vocab.json": json.dumps(ids)}


@functools.cache
def train_models():
    """Train a small model of each kind."""
    trained = {name: train_sentencepiece(**DEFAULTS | options) for name, options in MODELS.items()}
    return trained | {
        "bart": train_byte_level(),
        "blenderbot": train_byte_level(prefix=True),
        "blenderbot-small": train_blenderbot_small(),
    }


@contextlib.contextmanager
def auto_tokenizer():
    """Yield AutoTokenizer.from_pretrained, patched to read SentencePiece models without protobuf."""
    transformers = pytest.importorskip("transformers")
    slow = importlib.import_module("transformers.convert_slow_tokenizer")

    class Extractor(slow.SentencePieceExtractor):
        def __init__(self, path):
            processor = sentencepiece.SentencePieceProcessor(model_file=path)
            pieces = []
            for i in range(processor.get_piece_size()):
                piece = processor.id_to_piece(i)
                kind = 3 if processor.is_control(i) else 4 if piece in ("<2de>", "<2fr>") else 1
                pieces.append(SimpleNamespace(piece=piece, score=processor.get_score(i), type=kind))
            with open(path, "rb") as file:
                charsmap = parse_sentencepiece_model(file.read(), path).charsmap
            self.proto = SimpleNamespace(
                pieces=pieces,
                trainer_spec=SimpleNamespace(unk_id=processor.unk_id()),
                normalizer_spec=SimpleNamespace(precompiled_charsmap=charsmap),
            )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slow, "SentencePieceExtractor", Extractor)
        yield transformers.AutoTokenizer.from_pretrained


def write_folder(folder, files, model_type, config=None):
    """Write files, a config.json and optionally a tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def nllb_added_tokens(first_id):
    """Return added_tokens_decoder as the slow tokenizer of NLLB saved it; languages start at `first_id`."""
    tokens = [*enumerate(["<s>", "<pad>", "</s>", "<unk>"]), *enumerate([*CODES, "<mask>"], first_id)]
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        str(i): (MASK | {"special": True} if token == "<mask>" else plain | {"content": token}) for i, token in tokens
    }


# tokenizer_config.json as version 4 of transformers wrote it.
T5_CONFIG = DEFAULT_TOKENS | {
    "tokenizer_class": "T5Tokenizer",
    "extra_ids": 100,
    "additional_special_tokens": SENTINELS,
}
UNKNOWNS = [f"<unk_{i}>" for i in range(2, 103)]
PEGASUS_CONFIG = DEFAULT_TOKENS | {
    "tokenizer_class": "PegasusTokenizer",
    "mask_token": "<mask_2>",
    "mask_token_sent": "<mask_1>",
    "offset": 103,
    "additional_special_tokens": ["<mask_1>", *UNKNOWNS],
}
NLLB_CONFIG = FAIRSEQ_TOKENS | {
    "tokenizer_class": "NllbTokenizer",
    "additional_special_tokens": CODES,
    "mask_token": {"__type": "AddedToken", **MASK},
    "clean_up_tokenization_spaces": True,
}
# Name -> model, vocab file, model type, tokenizer_config.json or None.
CASES = {
    "t5": ("t5", "spiece.model", "t5", T5_CONFIG | {"clean_up_tokenization_spaces": True}),
    "t5 without config": ("t5", "spiece.model", "t5", None),
    "t5 with symbols": ("symbols", "spiece.model", "t5", T5_CONFIG),
    "t5 with symbols, without config": ("symbols", "spiece.model", "t5", None),
    "t5 without rules": ("plain", "spiece.model", "t5", T5_CONFIG),
    "mt5": ("t5", "spiece.model", "mt5", DEFAULT_TOKENS | {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}),
    "madlad": ("bytes", "spiece.model", "t5", DEFAULT_TOKENS | {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}),
    "pegasus": ("t5", "spiece.model", "pegasus", PEGASUS_CONFIG),
    "pegasus without config": ("t5", "spiece.model", "pegasus", None),
    "pegasus without rules": ("plain", "spiece.model", "pegasus", None),
    "mbart": ("fairseq", "sentencepiece.bpe.model", "mbart", {"tokenizer_class": "MBartTokenizer"}),
    "mbart to Romanian": ("fairseq", "sentencepiece.bpe.model", "mbart", {"src_lang": "ro_RO", "tgt_lang": "en_XX"}),
    "mbart50": ("fairseq", "sentencepiece.bpe.model", "mbart", {"tokenizer_class": "MBart50Tokenizer"}),
    "nllb": ("bpe", "sentencepiece.bpe.model", "m2m_100", NLLB_CONFIG),
    "nllb legacy": (
        "bpe",
        "sentencepiece.bpe.model",
        "m2m_100",
        NLLB_CONFIG | {"legacy_behaviour": True, "src_lang": "fra_Latn"},
    ),
    "nllb with a plain mask": ("bpe", "sentencepiece.bpe.model", "m2m_100", NLLB_CONFIG | {"mask_token": "<mask>"}),
    "bart": ("bart", "vocab.json", "bart", None),
    "bart with prefix": ("bart", "vocab.json", "bart", {"tokenizer_class": "BartTokenizer", "add_prefix_space": True}),
    "bart without mask": ("bart", "vocab.json", "bart", {"mask_token": None}),
    "blenderbot": ("blenderbot", "vocab.json", "blenderbot", {"tokenizer_class": "BlenderbotTokenizer"}),
    "blenderbot without prefix": ("blenderbot", "vocab.json", "blenderbot", {"add_prefix_space": False}),
    "blenderbot-small": (
        "blenderbot-small",
        "vocab.json",
        "blenderbot-small",
        {"tokenizer_class": "BlenderbotSmallTokenizer"},
    ),
    "byt5": ("blenderbot-small", "", "t5", {"tokenizer_class": "ByT5Tokenizer", "clean_up_tokenization_spaces": True}),
}


def write_case(folder, trained, name):
    """Write the files of a case, without tokenizer.json."""
    model_name, file, model_type, config = CASES[name]
    model = trained[model_name]
    if not file:
        files = {}
    elif isinstance(model, bytes):
        files = {file: model}
    else:
        files = model if isinstance(model, dict) else vocab_and_merges(model)
    if name.startswith("nllb"):
        size = len(parse_sentencepiece_model(model, "").pieces)
        added = nllb_added_tokens(size + 1)
        if "plain mask" in name:
            added.popitem()
        config = config | {"added_tokens_decoder": added}
    return write_folder(folder, files, model_type, config)


def read_tokenizer(folder):
    """Return the converted tokenizer of a folder."""
    loaded = read_hf_tokenizer(folder, json.loads((folder / "config.json").read_text()))
    return Tokenizer(loaded.source, loaded.target, TokenizerConfig(**loaded.config_fields, start_id=0))
