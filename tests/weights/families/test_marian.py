"""Models of Marian in its own formats give the scores and the beams of a plain numpy forward pass."""

import logging
import random
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from support.marian_files import (
    AVERAGE,
    EOS,
    OLD_PRE_NORM,
    OPTIONS,
    PRE_NORM,
    RMS_NORM,
    SEPARATE,
    STUDENT,
    UNK,
    MarianModel,
    MarianReference,
    options_yaml,
    write_bin,
    write_npz,
)

import mlx_transformer as mt
from mlx_transformer.training.losses import batch_loss
from mlx_transformer.weights import convert

VARIANTS = {
    "shared": {},
    "two vocabularies": SEPARATE,
    "a smaller target vocabulary": SEPARATE | {"dim-vocabs": [56, 40]},
    "no tied tables": {"tied-embeddings-all": False, "dim-vocabs": [40, 48]},
    "shared embeddings, output of its own": {"tied-embeddings-all": False, "tied-embeddings-src": True},
    "unequal depths": {"enc-depth": 3, "dec-depth": 1},
    "deep feed-forward networks": {"transformer-ffn-depth": 4},
    "other feed-forward networks in the decoder": STUDENT
    | {"transformer-ffn-depth": 3, "transformer-decoder-ffn-depth": 2, "transformer-decoder-dim-ffn": 96},
    "deeper feed-forward networks in the decoder": PRE_NORM
    | {"transformer-decoder-ffn-depth": 3, "transformer-tied-layers": [1, 1]},
    "no bias of the output layer, two vocabularies": SEPARATE | {"output-omit-bias": True},
    "no positions": {"transformer-disable-position-embeddings": True, "output-omit-bias": True},
    "sigmoid": {"transformer-ffn-activation": "sigmoid"},
    "relu": {"transformer-ffn-activation": "relu"},
    "learned positions": {"transformer-train-positions": True},
    "normalised embeddings": {"transformer-postprocess-emb": "nd"},
    "final norms": {"transformer-postprocess-top": "n"},
    "pre-norm": PRE_NORM,
    "pre-norm without dropout and final norms": PRE_NORM | {"transformer-postprocess": "a"},
    "pre-norm of queries only": OLD_PRE_NORM,
    "RMSNorm": RMS_NORM,
    "RMSNorm before sublayers": {"transformer-preprocess": "rd", "transformer-postprocess": "da", "version": "v1.12.0"},
    "exact gelu": {"transformer-ffn-activation": "gelu", "version": "v1.12.3; a 2023-03-01 13:48:09 +0000"},
    "approximated gelu": {"transformer-ffn-activation": "gelu", "version": "v1.12.2"},
    "tied layers": {"dec-depth": 4, "transformer-tied-layers": [1, 1, 2, 1]},
    "no projection": {"transformer-no-projection": True},
    "average attention": AVERAGE,
    "average attention without gates": AVERAGE
    | {"transformer-aan-nogate": True, "transformer-aan-depth": 3, "transformer-aan-activation": "relu"},
    "the mean alone": AVERAGE | {"transformer-aan-nogate": True, "transformer-aan-depth": 1} | SEPARATE,
    "gates without a network": AVERAGE | {"transformer-aan-depth": 1, "transformer-tied-layers": [1, 1]},
    "student": STUDENT,
    "pre-norm student": STUDENT | PRE_NORM | {"version": "v1.9.56"},
    "student with tied layers and a projection": STUDENT
    | {"transformer-tied-layers": [1, 1], "transformer-rnn-projection": True},
    "student with RMSNorm": STUDENT | {"transformer-postprocess": "dar"},
    "student with two vocabularies": STUDENT | SEPARATE,
}
FORMATS = {"npz": None, "float32 bin": None, "8 bits": 8, "16 bits": 16}
SOURCES = [[5, 7, 9, 3, EOS], [11, 2, 4, EOS], [8, 20, 6, 6, 19, 3, 12, EOS], [30, 31, EOS]]
TARGETS = [[4, 8, 2, 6, EOS], [3, 3, EOS], [7, EOS], [17, 22, EOS]]


def converted(folder, name, options, seed=1):
    """Write a model in a format, and return the converted one and its reference."""
    model = MarianModel(options, seed, gain=1.0)  # larger ones magnify rounding errors
    if name == "npz":
        path, tensors = write_npz(folder / "model.npz", model), model.tensors
    else:
        path = folder / "model.bin"
        tensors = write_bin(path, model, FORMATS[name])
    return convert.load(path)[0], MarianReference(model.options, tensors)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_and_beams_are_those_of_the_reference(tmp_path, name, variant, tolerance):
    model, reference = converted(tmp_path, name, VARIANTS[variant])
    texts = set()
    for source, target in zip(SOURCES, TARGETS, strict=True):
        targets = mx.array([[model.config.start_id, *target]])
        scores = np.array(mt.score_ids(model, mx.array([source]), targets)[0][0])
        expected = reference.log_probs(reference.encode(source), target[:-1])[range(len(target)), target]
        assert np.abs(scores - expected).max() < tolerance(1e-4)
        for beam in (1, 4, 8):
            search = replace(model.search_defaults, beam_size=beam, num_hypotheses=1, max_length_ratio=3.0)
            ((best,),) = mt.generate_ids(model, mx.array([source]), search)
            score, ids = reference.search(source, beam)[0]
            slack = tolerance(1e-4) * (len(ids) + 1)
            if best.ids != ids:  # Marian's beam shrinks with each finished hypothesis, so that it may miss better ones
                assert beam > 1 and best.score > score - slack
            else:
                assert abs(best.score - score) < slack
            texts.add((beam, tuple(best.ids)))
    assert len(texts) > 3  # outputs vary


@pytest.mark.parametrize("variant", ["two vocabularies", "student", "average attention"])
def test_padding_in_a_batch_has_no_influence(tmp_path, variant):
    model, _ = converted(tmp_path, "npz", VARIANTS[variant])
    rows = [source + [model.config.pad_id] * (8 - len(source)) for source in SOURCES]
    search = replace(model.search_defaults, beam_size=3, max_tokens=6)
    together = mt.generate_ids(model, mx.array(rows), search)
    alone = [mt.generate_ids(model, mx.array([source]), search)[0] for source in SOURCES]
    assert [row[0].ids for row in together] == [row[0].ids for row in alone]


def test_positions_are_those_of_marian_and_not_those_of_transformers(tmp_path):
    """The last frequency is 1/10000; transformers' conversion of Marian's models has slightly higher ones."""
    model, _ = converted(tmp_path, "npz", {})
    table = np.array(model.encoder.positions.weight)
    assert abs(table[100, table.shape[1] // 2 - 1] - np.sin(100 / 10000)) < 1e-6


def test_tokens_that_marian_never_generates_are_suppressed(tmp_path):
    model, _ = converted(tmp_path, "npz", VARIANTS["a smaller target vocabulary"])
    assert sorted(model.search_defaults.suppress_ids) == [UNK, *range(40, 57)]
    assert (model.config.eos_id, model.config.start_id, model.config.pad_id) == (EOS, 56, 56)


def test_added_rows_hardly_change_the_loss_with_label_smoothing(tmp_path):
    """The smoothed loss has the mean of all logits, so that rows without a probability must not outweigh the others."""
    model, _ = converted(tmp_path, "npz", STUDENT | {"dim-vocabs": [8000, 8000]})
    source, target = mx.array([SOURCES[0]]), mx.array([[model.config.start_id, *TARGETS[0]]])
    losses = [batch_loss(model, source, target, smoothing)[0].item() / len(TARGETS[0]) for smoothing in (0.0, 0.1)]
    logits = np.array(model(source, target[:, :-1]))[..., :-1]  # without the added row
    labels = np.take_along_axis(logits, np.array(TARGETS[0])[None, :, None], axis=2)[..., 0]
    assert abs(losses[1] - losses[0] - 0.1 * (labels - logits.mean(-1)).mean()) < 0.02


def test_a_missing_bias_is_an_error_unless_the_model_has_none(tmp_path):
    model = MarianModel()
    del model.tensors["decoder_ff_logit_out_b"]
    with pytest.raises(ValueError, match="1 missing .output_bias"):
        convert.load(write_npz(tmp_path / "model.npz", model))


def test_options_of_the_search(tmp_path, caplog):
    write_npz(tmp_path / "model.npz", MarianModel())
    lines = "beam-size: 6\nnormalize: 0.6\nmax-length-factor: 2\nallow-unk: true\nword-penalty: 0.2\n"
    (tmp_path / "decoder.yml").write_text(lines)
    with caplog.at_level(logging.WARNING):
        model, _ = convert.load(tmp_path)
    search = model.search_defaults
    assert (search.beam_size, search.length_penalty, search.max_length_ratio) == (6, 0.6, 2)
    assert search.suppress_ids == (48,)
    assert "Marian's option word-penalty 0.2 has no counterpart and is ignored." in caplog.text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("type", "s2s"),
        ("type", "amun"),
        ("transformer-decoder-autoreg", "mean"),
        ("transformer-aan-activation", "tanh"),
        ("transformer-ffn-activation", "prelu"),
        ("transformer-ffn-depth", 1),
        ("transformer-ffn-depth", 101),
        ("transformer-decoder-ffn-depth", 1),
        ("transformer-decoder-ffn-depth", "three"),
        ("transformer-attention-mask", "alibi"),
        ("transformer-disable-position-embeddings", "both"),
        ("right-left", True),
        ("lemma-dim-emb", 32),
        ("ulr", True),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, option, value):
    model = MarianModel()
    model.options |= {option: value}
    with pytest.raises(ValueError, match=f"A checkpoint with {option} .* cannot be converted: it must be .*; choose"):
        convert.load(write_npz(tmp_path / "model.npz", model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer-preprocess": "n"}, "the first two must be '' and 'an' or 'n' and 'a'"),
        ({"transformer-postprocess": "dhn"}, "-postprocess 'hn' .* choose another model"),
        ({"transformer-postprocess": "dar", "transformer-preprocess": "r"}, "-postprocess 'ar' .* '' and 'ar' or 'r'"),
        (RMS_NORM | {"transformer-postprocess-top": "n"}, "all norms must be of one kind; choose"),
        ({"transformer-postprocess-emb": "r"}, "layer normalisation .n. and RMSNorm .r. cannot be converted"),
        ({"transformer-postprocess-top": "a"}, "-postprocess-top 'a' .* the last one '' or 'n'"),
        (PRE_NORM | {"version": 1.9}, "transformer-preprocess n needs Marian's version .* such as v1.12.0, not 1.9"),
        ({"transformer-ffn-activation": "gelu", "version": "new"}, "gelu needs Marian's version"),
        ({"transformer-tied-layers": [1]}, "must be one for each of the 2 decoder layers, not 1"),
        ({"transformer-tied-layers": ["x", "y"]}, "must be numbers of layers, not"),
        ({"dec-depth": 10**6, "transformer-tied-layers": [1] * 10**4}, "must be one for each of the 1000000 decoder"),
        (AVERAGE | {"transformer-aan-depth": 0}, "transformer-aan-depth 0 cannot be .* a number from 1 to 100"),
        (AVERAGE | {"transformer-dim-aan": 64}, "transformer-dim-aan 64 cannot be .* another width than the model"),
        (AVERAGE | {"transformer-dim-aan": 2**17}, "mlp_dims 131072 does not fit the checkpoint's tensors"),
        (AVERAGE | {"transformer-dim-aan": "wide"}, "mlp_dims must be .*, not 'wide'"),
        (AVERAGE | PRE_NORM, "average-attention and transformer-preprocess n cannot be .* in post-norm layers"),
        ({"normalize": [1, 1]}, "length_penalty must be .*, not"),
        ({"dim-vocabs": [48, 3000]}, "3000 words and 48 embeddings has a factored vocabulary"),
    ],
)
def test_options_that_cannot_be_converted_are_one_line(tmp_path, changes, message):
    model = MarianModel()
    model.options |= changes
    with pytest.raises(ValueError, match=message):
        convert.load(write_npz(tmp_path / "model.npz", model))


@pytest.mark.parametrize("changes", [{"dec-cell": "gru"}, {"layer-normalization": True}])
def test_other_recurrent_decoders_are_named(tmp_path, changes):
    model = MarianModel(STUDENT)
    model.options |= changes
    with pytest.raises(ValueError, match="only ssru without layer-normalization"):
        convert.load(write_npz(tmp_path / "model.npz", model))


ODD_VALUES = (
    *("[]", "{}", "true", "~", "-1", "0", "1.5", "1e9", "99999999999999999999", "abc", "''", "[1, 2]", "[a]", "[[1]]"),
    *("{a: 1}", "n", "da", "rnn", "[1, 1]", "[0, 0]", "[1, true]", ".nan", "2020-01-01", "&a [*a]", "v1.12", "gelu"),
)


@pytest.mark.slow
def test_options_with_odd_values_end_in_one_line(tmp_path):
    chance, outcomes = random.Random(0), []
    names = [*OPTIONS, "dec-depth", "dim-vocabs", "transformer-tied-layers", "beam-size", "normalize", "allow-unk"]
    for _ in range(1000):
        model = MarianModel(chance.choice([{}, STUDENT, AVERAGE, PRE_NORM, SEPARATE]))
        odd = {name: chance.choice(ODD_VALUES) for name in chance.sample(names, chance.randint(1, 3))}
        options = options_yaml({name: value for name, value in model.options.items() if name not in odd})
        text = options + "".join(f"{name}: {value}\n" for name, value in odd.items())
        content = np.frombuffer(text.encode() + b"\0", np.int8)
        np.savez(tmp_path / "model.npz", **model.tensors, **{"special:model.yml": content})
        try:
            convert.load(tmp_path / "model.npz")
        except ValueError as error:
            assert "\n" not in str(error)
            outcomes.append(error)
    assert 300 < len(outcomes) < 900
