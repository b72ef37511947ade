"""CONVERSION_VERSION changes with the results of conversions."""

import hashlib
import json
import zlib

import mlx.core as mx
import numpy as np
import pytest
from support.tiny_families import MODELS, torch_model
from support.tiny_hf_tokenizers import CASES, read_tokenizer, train_models, write_case

from mlx_transformer.config.folder import CONVERSION_VERSION
from mlx_transformer.config.serialization import to_dict
from mlx_transformer.weights.convert import convert

# Version of the conversion -> the digest of its results for a tiny checkpoint of each family. Only the last one counts.
DIGESTS = {5: "5b36588d0d3ff4364b9059e923317e89403b9ae43a110190aecdff84e9b75f1c"}


def deterministic_tensors(torch, state):
    """Return tensors of the same names and shapes, with values that follow from their names; tied ones stay tied."""
    tensors = {}
    for name, tensor in state.items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
        tensors.setdefault(tensor.data_ptr(), torch.from_numpy(values.astype(np.float32)))
    return {name: tensors[tensor.data_ptr()] for name, tensor in state.items()}


def digest_of_conversion(torch, name, folder):
    """Convert a tiny checkpoint and return a digest of config.json and of the weights."""
    _, settings, generation = MODELS[name]
    source = folder / name
    source.mkdir()
    model = torch_model(name)
    torch.save(deterministic_tensors(torch, model.state_dict()), source / "pytorch_model.bin")
    ids = {key: settings.get(key) for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id")}
    (source / "config.json").write_text(json.dumps({"model_type": model.config.model_type, **settings}))
    (source / "generation_config.json").write_text(json.dumps(ids | generation))
    convert(source, folder / "converted", force=True)
    config = json.loads((folder / "converted" / "config.json").read_text())
    for name in ("conversion_version", "format_version", "base_checksum"):
        del config[name]
    assert config["model"].pop("pooling") is None  # only folders of sentence-transformers have it
    assert config["model"].pop("decoder_self_attention") == "attention"  # only models of Marian's own have others
    assert config["model"].pop("ssru_projection") is False
    assert config["model"].pop("average_attention") is None
    assert config["model"].pop("attention_projection") is True
    for stack in ("encoder", "decoder"):
        assert config["model"][stack].pop("norm_queries_only") is False
        assert config["model"][stack].pop("mlp_layers") == 2
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for key, array in sorted(mx.load(str(folder / "converted" / "model.safetensors")).items()):
        digest.update(key.encode() + np.array(array.astype(mx.float32)).tobytes())
    return digest.hexdigest()


def digest_of_tokenizer(folder, name):
    """Read the tokenizer of a tiny case, whose vocabulary is not always the same, and return a digest of its config."""
    tokenizer = read_tokenizer(write_case(folder, train_models(), name))
    config = to_dict(tokenizer.config)
    assert config.pop("lowercase") is False  # only vocabularies that a user gives have it
    assert config.pop("recase") is False  # only trained tokenizers have it
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


@pytest.mark.torch
def test_version_changes_with_the_results(tmp_path):
    torch = pytest.importorskip("torch")
    digests = [digest_of_conversion(torch, name, tmp_path) for name in MODELS]
    for name in CASES:
        (tmp_path / f"tokenizer {name}").mkdir()
        digests.append(digest_of_tokenizer(tmp_path / f"tokenizer {name}", name))
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    assert digest == DIGESTS.get(CONVERSION_VERSION), (
        "The conversion gives other results than before: increase CONVERSION_VERSION in config/folder.py, so that "
        f"cached models are converted again, and add it here with the digest {digest}."
    )
