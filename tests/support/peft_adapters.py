"""Adapters of PEFT with random values, of tiny transformers models, and the same logits of both sides."""

import json

import mlx.core as mx
import numpy as np
import pytest
from support.tiny_families import VOCAB, torch_model, torch_sources

from mlx_transformer.weights import convert

TARGETS = ["q", "v", "wo", "q_proj", "v_proj", "fc2"]  # of T5 and its relatives, and of all others
TARGET_LENGTH = 5


def base_model(name):
    """Return a tiny transformers model; that of "t5-untied" has an output layer of its own."""
    model = torch_model(name)
    if name == "t5-untied":
        torch = pytest.importorskip("torch")
        generator = torch.Generator().manual_seed(7)
        model.lm_head.weight = torch.nn.Parameter(0.6 * torch.randn(model.lm_head.weight.shape, generator=generator))
        model.config.tie_word_embeddings = False
    return model


def peft_model(model, **options):
    """Return a tiny transformers model, given by name or itself, with an adapter of PEFT with random values."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS} | options)
    model = peft.get_peft_model(base_model(model) if isinstance(model, str) else model, config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_magnitude" in key:
                value.mul_(0.7 + 0.6 * torch.rand(value.shape, generator=generator))
            elif "lora_" in key or "modules_to_save" in key:
                value.copy_(0.05 * torch.randn(value.shape, generator=generator))
    return model


def converted_base(name, folder):
    """Save the model that a tiny adapter belongs to, and return it converted."""
    base_model(name).save_pretrained(folder)
    return convert.load(folder)[0]


def token_ids(model):
    """Return source and target ids for a model of transformers or PEFT, as numpy arrays."""
    targets = np.random.default_rng(3).integers(3, VOCAB - 1, (len(torch_sources(model)), TARGET_LENGTH))
    targets[:, 0] = model.config.decoder_start_token_id
    return torch_sources(model), targets


def their_logits(model):
    """Return the logits of a model of transformers or PEFT."""
    import torch

    sources, targets = map(torch.from_numpy, token_ids(model))
    mask = (sources != model.config.pad_token_id).long()
    with torch.no_grad():
        return model(input_ids=sources, attention_mask=mask, decoder_input_ids=targets).logits.numpy()


def their_hidden_states(model):
    """Return the hidden states of an encoder of transformers or PEFT."""
    import torch

    sources = torch.from_numpy(torch_sources(model))
    with torch.no_grad():
        mask = (sources != model.config.pad_token_id).long()
        return model(input_ids=sources, attention_mask=mask).last_hidden_state.numpy()


def our_logits(model, theirs):
    """Return the logits of one of our models for the same ids as those of another model."""
    return np.array(model(*map(mx.array, token_ids(theirs))))


def edit_json(path, **changes):
    """Change fields of a JSON file; return its folder."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path.parent


def load_in_peft(name, folder):
    """Load a saved adapter on the base of a name."""
    peft = pytest.importorskip("peft")
    return peft.PeftModel.from_pretrained(base_model(name), folder).eval()
