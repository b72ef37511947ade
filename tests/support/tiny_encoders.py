"""Tiny encoders with random weights, as transformers and sentence-transformers save them."""

import json

import numpy as np
import pytest
from support.texts import CORPUS
from support.tiny_families import torch_model

SPECIALS = ["<pad>", "</s>", "<unk>"]
MAX_TOKENS = 20
TEXTS = [*CORPUS[:12], "", " ".join(CORPUS[:4])]  # one that is blank, one that is truncated


def encoder_model(name, settings=None, gain=1.0):
    """Return the encoder of a model of a family, in the class that transformers has for an encoder alone."""
    transformers = pytest.importorskip("transformers")
    model = torch_model(name, settings=settings, gain=gain)
    kind = type(model).__name__.removesuffix("ForConditionalGeneration")
    if not kind.endswith("T5"):
        return model.get_encoder()
    encoder = getattr(transformers, f"{kind}EncoderModel")(model.config).eval()
    encoder.encoder.load_state_dict(model.encoder.state_dict())  # with the embeddings, which are shared
    return encoder


def write_tokenizer(folder):
    """Write a tokenizer.json for T5; return its size."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    transformers.T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, **names).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def write_sentence_transformer(folder, settings, pooling, dense=None, normalize=False):
    """Write a folder of sentence-transformers with a T5 encoder.

    Args:
        folder: The folder.
        settings: Settings of the T5, whose vocab_size is that of the tokenizer.
        pooling: The config.json of the pooling.
        dense: The config.json of the dense layer; its weights are random.
        normalize: Whether vectors are normalised.
    """
    import torch

    encoder_model("t5", settings | {"vocab_size": write_tokenizer(folder)}, gain=0.5).save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *["Dense"] * (dense is not None), *["Normalize"] * normalize]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": MAX_TOKENS}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    if dense is not None:
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense/config.json").write_text(json.dumps(dense))
        random = np.random.default_rng(0)
        shapes = {"linear.weight": (dense["out_features"], dense["in_features"])}
        shapes |= {"linear.bias": (dense["out_features"],)} if dense["bias"] else {}
        state = {
            name: torch.tensor(random.normal(size=shape) / 8, dtype=torch.float32) for name, shape in shapes.items()
        }
        torch.save(state, folder / "2_Dense/pytorch_model.bin")
