"""Models of Marian in its own format give the scores and the beams of a plain numpy forward pass."""

import logging
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from support.marian_files import EOS, UNK, Reference, marian_tensors, write_npz

import mlx_transformer as mt
from mlx_transformer.weights import convert

SEPARATE = {"tied-embeddings-all": False, "tied-embeddings": True}
VARIANTS = {
    "shared": {},
    "two vocabularies": {**SEPARATE, "dim-vocabs": [30, 25]},
    "a larger target vocabulary": {**SEPARATE, "dim-vocabs": [21, 28]},
    "no tied tables": {"tied-embeddings-all": False, "dim-vocabs": [30, 25]},
    "unequal depths": {"enc-depth": 3, "dec-depth": 1},
    "relu": {"transformer-ffn-activation": "relu"},
    "learned positions": {"transformer-train-positions": True},
    "normalised embeddings": {"transformer-postprocess-emb": "nd"},
    "final norms": {"transformer-postprocess-top": "n"},
}
SOURCES = [[5, 7, 9, 3, EOS], [11, 2, 4, EOS], [8, 20, 6, 6, 19, 3, 12, EOS]]
TARGETS = [[4, 8, 2, 6, EOS], [3, 3, EOS], [7, EOS]]


@pytest.fixture(params=VARIANTS)
def pair(request, tmp_path):
    """A converted model, and its reference."""
    options, tensors = marian_tensors(**VARIANTS[request.param])
    return convert.load(write_npz(tmp_path / "model.npz", options, tensors))[0], Reference(options, tensors)


def test_scores_are_those_of_the_reference(pair, tolerance):
    model, reference = pair
    for source, target in zip(SOURCES, TARGETS, strict=True):
        targets = mx.array([[model.config.start_id, *target]])
        rows = mt.score_ids(model, mx.array([source]), targets)[0]
        expected = reference.log_probs(np.array(source), target[:-1])[range(len(target)), target]
        assert np.abs(np.array(rows)[0] - expected).max() < tolerance(1e-4)


@pytest.mark.parametrize("beam", [1, 4, 8])
def test_beams_are_those_of_the_reference(pair, beam):
    model, reference = pair
    for source in SOURCES:
        search = replace(model.search_defaults, beam_size=beam, num_hypotheses=beam, max_tokens=8)
        (rows,) = mt.generate_ids(model, mx.array([source]), search)
        expected = reference.search(np.array(source), beam, max_length=8)
        ours = [[*row.ids, *([EOS] if row.finish_reason == "stop" else [])] for row in rows]
        assert ours[0] == expected[0][0]
        print(ours[:3], expected[:3])
        assert abs(rows[0].score - expected[0][1]) < 1e-4


def test_padding_in_a_batch_has_no_influence(pair):
    model, _ = pair
    rows = [source + [model.config.pad_id] * (8 - len(source)) for source in SOURCES]
    search = replace(model.search_defaults, beam_size=3, max_tokens=6)
    together = mt.generate_ids(model, mx.array(rows), search)
    alone = [mt.generate_ids(model, mx.array([source]), search)[0] for source in SOURCES]
    assert [row[0].ids for row in together] == [row[0].ids for row in alone]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_positions_are_those_of_marian_and_not_those_of_transformers(tmp_path, save):
    """The last frequency is 1/10000; transformers' conversion of Marian's models has slightly higher ones."""
    model, _ = convert.load(write_npz(tmp_path / "model.npz", *marian_tensors(), save=save))
    table = np.array(model.encoder.positions.weight)
    assert abs(table[100, 7] - np.sin(100 / 10000)) < 1e-6


def test_tokens_that_marian_never_generates_are_suppressed(tmp_path):
    model, _ = convert.load(write_npz(tmp_path / "model.npz", *marian_tensors(**VARIANTS["two vocabularies"])))
    assert sorted(model.search_defaults.suppress_ids) == [UNK, *range(25, 31)]
    assert (model.config.eos_id, model.config.start_id, model.config.pad_id) == (EOS, 30, 30)


def test_options_of_the_search(tmp_path, caplog):
    write_npz(tmp_path / "model.npz", *marian_tensors())
    (tmp_path / "decoder.yml").write_text(
        "beam-size: 6\nnormalize: 0.6\nmax-length-factor: 2\nallow-unk: true\nword-penalty: 0.2\n"
    )
    with caplog.at_level(logging.WARNING):
        model, _ = convert.load(tmp_path)
    search = model.search_defaults
    assert (search.beam_size, search.length_penalty, search.max_length_ratio) == (6, 0.6, 2)
    assert search.suppress_ids == (30,)
    assert "Marian's option word-penalty 0.2 has no counterpart and is ignored." in caplog.text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("type", "s2s"),
        ("type", "amun"),
        ("transformer-preprocess", "n"),
        ("transformer-postprocess", "dhn"),
        ("transformer-decoder-autoreg", "average-attention"),
        ("transformer-ffn-depth", 3),
        ("transformer-tied-layers", [1, 1]),
        ("transformer-no-projection", True),
        ("lemma-dim-emb", 32),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, option, value):
    options, tensors = marian_tensors()
    write_npz(tmp_path / "model.npz", options | {option: value}, tensors)
    with pytest.raises(ValueError, match=f"A checkpoint with {option} .* cannot be converted"):
        convert.load(tmp_path / "model.npz")
