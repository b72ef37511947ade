"""Batch sizes by device, type and number of beams, with stand-ins for GPUs."""

import mlx.core as mx
import pytest
from support.tiny_models import config, random_model, stack

import mlx_transformer as mt
from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.decoding import batch_sizes, running_search
from mlx_transformer.model.quantization import quantize_weights


def model_in(kind):
    if kind == "quantised":
        model = random_model(config(dims=64, encoder=stack(mlp_dims=64), decoder=stack(mlp_dims=64)))
        quantize_weights(model, QuantizationConfig(8))
        model.set_dtype(mx.float16)
        return model
    model = random_model(config())
    model.set_dtype({"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}[kind])
    return model


@pytest.mark.parametrize(
    "architecture, kind, by_beams",
    [
        (None, "float16", {1: 0, 4: 0}),
        ("sm_90", "float16", {1: 0, 4: 0}),
        ("applegpu_g16s", "float32", {1: 0, 4: 0}),
        ("applegpu_g15d", "float16", {1: 15, 2: 7, 4: 3, 5: 3, 6: 2, 8: 1, 16: 0}),
        ("applegpu_g17p", "bfloat16", {1: 15, 4: 3}),
        ("applegpu_g13g", "float16", {1: 1, 4: 0}),
        ("applegpu_g16s", "quantised", {1: 12, 4: 3}),
        ("applegpu_g14s", "quantised", {1: 9, 4: 2}),
    ],
)
def test_vector_batch_size(architecture, kind, by_beams, monkeypatch):
    monkeypatch.setattr(batch_sizes, "gpu_architecture", lambda: architecture)
    model = model_in(kind)
    assert {beams: batch_sizes.vector_batch_size(model, beams) for beams in by_beams} == by_beams


@pytest.mark.cpu
def test_the_cpu_has_powers_of_two_only():
    for beams in (1, 4, 5):
        assert batch_sizes.batch_sizes(model_in("float32"), beams) == batch_sizes.POWERS


def test_three_sentences_with_four_beams_are_not_padded_to_sixteen_rows(monkeypatch):
    monkeypatch.setattr(batch_sizes, "gpu_architecture", lambda: "applegpu_g16s")
    texts = ["ab cde", "fg", "hijk l"]
    tokenizer = mt.Tokenizer.train(texts * 3, texts * 3, 300)
    size = tokenizer.source_vocab_size
    model = random_model(config(source_vocab_size=size, target_vocab_size=size))
    rows, prefill = [], running_search.prefill

    def counting(*arguments):
        rows.append((batch := prefill(*arguments)).state.done.size)
        return batch

    monkeypatch.setattr(running_search, "prefill", counting)
    mt.generate(model, tokenizer, texts, beam_size=4, max_tokens=3)
    model.set_dtype(mx.float16)
    mt.generate(model, tokenizer, texts, beam_size=4, max_tokens=3)
    assert rows == [4, 3]
