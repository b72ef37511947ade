"""Every family of transformers' models, converted: the same logits, and the same hypotheses and scores."""

import dataclasses
import math

import mlx.core as mx
import numpy as np
import pytest
from tiny_families import MODELS, torch_model, torch_sources

from mlx_transformer.search import generate_ids
from mlx_transformer.weights import convert

pytestmark = pytest.mark.torch
TANH = ("t5-v1.1", "flan", "byt5", "madlad", "mt5", "umt5")  # their gelu is computed in another way
EARLY_STOPPING = (False, True, "never")


@pytest.fixture(autouse=True)
def uncompiled():
    """On a CPU every new trace costs seconds."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    theirs = torch_model(request.param)
    folder = tmp_path_factory.mktemp("theirs") / "model"
    theirs.save_pretrained(folder)
    return request.param, theirs, convert.load(folder)[0]


def logits_of(theirs, source, target):
    import torch

    with torch.no_grad():
        return theirs(
            input_ids=torch.tensor(source),
            attention_mask=torch.tensor(source != theirs.config.pad_token_id).long(),
            decoder_input_ids=torch.tensor(target),
        ).logits.numpy()


def test_logits_equal_those_of_transformers(pair, tolerance):
    name, theirs, ours = pair
    source = torch_sources(theirs)
    target = np.random.default_rng(1).integers(3, ours.config.target_vocab_size - 1, (len(source), 12))
    target[:, 0] = ours.config.start_id
    expected = logits_of(theirs, source, target)
    found = np.array(ours(mx.array(source.astype(np.int32)), mx.array(target.astype(np.int32))))
    limit = 5 * tolerance(1e-4) if name in TANH else tolerance(1e-4)
    assert np.abs(found - expected).max() <= limit
    assert np.abs(expected).max() > 1, "the logits must not be trivial"


def test_no_padding_and_one_token_sources_too(pair, tolerance):
    name, theirs, ours = pair
    source = np.array([[theirs.config.eos_token_id]])
    target = np.array([[ours.config.start_id, 5, 3]])
    found = np.array(ours(mx.array(source.astype(np.int32)), mx.array(target.astype(np.int32))))
    assert np.abs(found - logits_of(theirs, source, target)).max() <= 5 * tolerance(1e-4)


def with_padding(theirs):
    """What transformers must suppress for equal terms: here padding is never generated."""
    return sorted({theirs.config.pad_token_id, *(theirs.generation_config.suppress_tokens or [])})


def generated(theirs, source, search, **settings):
    """What transformers generates with its own settings: ids without start and padding, and scores."""
    import torch

    beam = search.beam_size > 1
    output = theirs.generate(
        torch.tensor(source),
        attention_mask=torch.tensor(source != theirs.config.pad_token_id).long(),
        num_beams=search.beam_size,
        num_return_sequences=search.num_hypotheses,
        length_penalty=search.length_penalty if beam else None,
        early_stopping=search.early_stopping if beam else None,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        suppress_tokens=with_padding(theirs),
        **settings,
    )
    rows = []
    for row in output.sequences.tolist():
        ids = row[1:]
        eos_id = theirs.config.eos_token_id
        # A forced first token may be the end token, which ends nothing for transformers' beams but is told apart here.
        end = ids.index(eos_id) + 1 if eos_id in ids else len(ids)
        rows.append(tuple(ids[:end]))
    return rows, output.sequences_scores.numpy() if beam else None


@pytest.mark.parametrize("beam_size, num_hypotheses", [(1, 1), (3, 1), (4, 4)])
def test_hypotheses_equal_those_of_transformers(pair, beam_size, num_hypotheses, tolerance):
    _, theirs, ours = pair
    source = torch_sources(theirs)
    reasons = set()
    for length_penalty in (0.0, 0.6, 2.0) if beam_size > 1 else (1.0,):
        for early_stopping in EARLY_STOPPING if beam_size > 1 else (False,):
            search = dataclasses.replace(
                ours.search_defaults,
                beam_size=beam_size,
                num_hypotheses=num_hypotheses,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
            )
            expected, scores = generated(theirs, source, search)
            found = [h for group in generate_ids(ours, mx.array(source.astype(np.int32)), search) for h in group]
            end = [theirs.config.eos_token_id]
            assert [(*h.ids, *(end if h.finish_reason == "stop" else [])) for h in found] == expected
            if scores is not None:
                np.testing.assert_allclose([h.score for h in found], scores, atol=tolerance(1e-4))
            reasons |= {h.finish_reason for h in found}
    assert reasons <= {"stop", "length"} and not any(math.isnan(h.score) for h in found)


def test_the_search_of_the_checkpoint_is_the_default(pair, tolerance):
    """Its own settings, none overridden, in one call of each library."""
    import torch

    name, theirs, ours = pair
    source = torch_sources(theirs, seed=3)
    theirs.generation_config.num_beams = 2
    rows = theirs.generate(
        torch.tensor(source),
        attention_mask=torch.tensor(source != theirs.config.pad_token_id).long(),
        suppress_tokens=with_padding(theirs),
    ).tolist()
    theirs.generation_config.num_beams = 1
    found = generate_ids(
        ours, mx.array(source.astype(np.int32)), dataclasses.replace(ours.search_defaults, beam_size=2)
    )
    for (hypothesis,), row in zip(found, rows, strict=True):
        assert row[1 : 1 + len(hypothesis.ids)] == hypothesis.ids
    assert ours.search_defaults.max_tokens == 8
