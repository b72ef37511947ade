"""Shortlists: the search equals one that masks all other tokens before the softmax."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from support.tiny_models import SETTINGS, config, padded, random_model, random_sources, stack

from mlx_transformer.config.model import QuantizationConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.beam_search import generate_ids, stream_ids
from mlx_transformer.decoding.lexical_shortlist import LexicalShortlist
from mlx_transformer.model import shortlist as model_shortlist
from mlx_transformer.model.quantization import quantize_weights
from mlx_transformer.model.transformer import Transformer

IDS = [4, 7, 8, 11, 14, 15, 16]
LENGTHS = (2, 7, 5)
SEARCHES = {
    "greedy": {},
    "beams": {"beam_size": 4, "num_hypotheses": 4},
    "penalties": {"beam_size": 3, "length_penalty": 0.3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "suppressed": {"beam_size": 3, "suppress_ids": (4, 7), "min_tokens": 3},
    "sampled": {"temperature": 1.0, "top_p": 0.9, "beam_size": 3, "num_hypotheses": 3},
    "alternatives": {"alternatives": True, "beam_size": 3, "num_hypotheses": 3},
    "forced": {"beam_size": 2, "forced_bos_id": 9},
    "forced ends": {"beam_size": 3, "forced_eos_id": 10, "min_tokens": 4},
    "bad words": {"beam_size": 3, "bad_words": ((11,), (14, 15), (4, 4), (9, 3)), "source_no_repeat_ngram_size": 2},
    "greedy penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 1},
    "renormalised": {"beam_size": 3, "renormalize": True, "suppress_ids": (8,)},
}


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Otherwise all tokens of these small vocabularies had rows."""
    monkeypatch.setattr(model_shortlist, "ROW_MULTIPLE", 4)


@pytest.fixture(params=["post_norm", "learned_positions", "ssru"], scope="module")
def model(request):
    return random_model(SETTINGS[request.param], gain=2.0)


@pytest.fixture
def source(model):
    return padded(random_sources(model.config, LENGTHS), model.config)


def masked_search(model, source, ids, monkeypatch, **arguments):
    """Search with the logits of all tokens, in which those that are not on the list are set to -inf."""
    allowed = np.isin(np.arange(model.config.target_vocab_size), [*ids, *model.config.eos_ids])
    decode = Transformer.decode

    def masked_decode(self, *inputs, shortlist=None, **options):
        return mx.where(mx.array(allowed), decode(self, *inputs, **options), -float("inf"))

    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "decode", masked_decode)
        copy = Transformer(model.config, model.search_defaults)
        copy.update(model.parameters())
        copy.eval()
        return generate_ids(copy, source, **arguments)


def assert_equal(results, expected):
    assert [[h.ids for h in row] for row in results] == [[h.ids for h in row] for row in expected]
    scores = [[[h.score for h in row] for row in rows] for rows in (results, expected)]
    for ours, theirs in zip(*scores, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SEARCHES)
def test_search_equals_one_over_masked_logits(model, source, name, monkeypatch):
    search = SearchConfig(max_tokens=8, **SEARCHES[name])
    expected = masked_search(model, source, IDS, monkeypatch, search=search)
    results = generate_ids(model, source, search, shortlist=IDS)
    assert_equal(results, expected)
    allowed = {*IDS, *model.config.eos_ids, search.forced_bos_id, search.forced_eos_id}
    assert {token for row in results for h in row for token in h.ids} <= allowed
    assert [[h.ids for h in row] for row in results] != [
        [h.ids for h in row] for row in generate_ids(model, source, search)
    ]


def test_prefixes_need_not_be_on_the_list(model, source, monkeypatch):
    arguments = {"search": SearchConfig(beam_size=3, max_tokens=6), "prefix_ids": [[5, 6], [], [9]]}
    expected = masked_search(model, source, IDS, monkeypatch, **arguments)
    results = generate_ids(model, source, **arguments, shortlist=IDS)
    assert_equal(results, expected)
    assert results[0][0].ids[:2] == [5, 6]


def test_required_phrases_are_added_to_the_list(model, source, monkeypatch):
    phrases = [[[9, 10]], [], [[12]]]
    continues_word = np.isin(np.arange(model.config.target_vocab_size), [7, 8, 15])
    arguments = {"search": SearchConfig(beam_size=4, max_tokens=8), "required_phrases": phrases}
    arguments["continues_word"] = continues_word
    expected = masked_search(model, source, [*IDS, 9, 10, 12], monkeypatch, **arguments)
    results = generate_ids(model, source, **arguments, shortlist=IDS)
    assert_equal(results, expected)
    assert 12 in results[2][0].ids


def test_streams_and_batches_of_one_give_the_same(model, source):
    search = SearchConfig(max_tokens=8)
    ((best,),) = generate_ids(model, source[1:2], search, shortlist=IDS)
    assert list(stream_ids(model, source[1:2], search, shortlist=np.array(IDS))) == best.ids


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_output_rows_are_those_of_the_whole_layer(bits):
    model = random_model(config(dims=32, encoder=stack(mlp_dims=32), decoder=stack(mlp_dims=32)))
    quantize_weights(model, QuantizationConfig(bits, group_size=32))
    hidden = mx.random.normal((3, 2, 32))
    shortlist = model.shortlist(np.array(IDS), [4, 9])
    logits, expected = model.logits(hidden, shortlist), model.logits(hidden)
    np.testing.assert_allclose(logits[..., shortlist.columns[IDS]], expected[..., IDS], rtol=0, atol=1e-5)
    others = [column for column in range(logits.shape[-1]) if shortlist.ids[column].item() not in IDS]
    assert len(others) == 1 and (logits[..., others] == -float("inf")).all()


def test_only_the_rows_of_the_list_are_multiplied():
    for name in ("post_norm", "learned_positions"):
        model = random_model(SETTINGS[name])
        rows = model.shortlist(np.array([*IDS, 4])).rows
        assert rows["layer"]["weight"].shape == (8, 16)  # 7 tokens, rounded up
    assert rows["layer"]["bias"].shape == (8,)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 19], "shortlist must be token ids from 0 to 18, not 19"),
        ([-1], "shortlist must be token ids from 0 to 18, not -1"),
        ([[3]], "shortlist must be a list of token ids, not"),
        ([0.5], "shortlist must be a list of token ids, not"),
        (["a"], "shortlist must be a list of token ids, not"),
    ],
)
def test_other_lists_are_refused(ids, message):
    model = random_model(SETTINGS["post_norm"])
    with pytest.raises(ValueError, match=message):
        generate_ids(model, padded(random_sources(model.config, [3]), model.config), shortlist=ids)


def test_an_empty_list_has_the_end_token_only():
    model = random_model(SETTINGS["post_norm"])
    source = padded(random_sources(model.config, [3]), model.config)
    ((best,),) = generate_ids(model, source, SearchConfig(), shortlist=[])
    assert (best.ids, best.score, best.finish_reason) == ([], 0.0, "stop")


def lexical_shortlist():
    """First 3 tokens; source 0: 10, 20; source 1: none; source 2: 12, 13, 40."""
    return LexicalShortlist(3, np.array([0, 2, 2, 5]), np.array([10, 20, 12, 13, 40]))


@pytest.mark.parametrize(
    ("sources", "shared", "expected"),
    [
        ([[0]], False, [0, 1, 2, 3, 4, 5, 10, 20]),  # filled up to 8
        ([[2], [0, 0]], False, [0, 1, 2, 10, 12, 13, 20, 40]),
        ([[1, 7]], False, [0, 1, 2, 3, 4, 5, 6, 7]),  # source 7 has no list
        ([[2, 30]], True, [0, 1, 2, 3, 12, 13, 30, 40]),
    ],
)
def test_tokens_of_a_batch_are_those_of_marian(sources, shared, expected):
    assert lexical_shortlist().ids(sources, 50, shared).tolist() == expected


def test_a_list_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="must have tokens of the model's vocabulary of 40, not 40: use the one"):
        lexical_shortlist().ids([[0]], 40, shared=False)


def test_a_list_larger_than_the_vocabulary_is_cut():
    full = dataclasses.replace(
        lexical_shortlist(), num_first=100, targets=np.array([], np.int64), offsets=np.array([0])
    )
    assert full.ids([[0]], 11, shared=True).tolist() == list(range(11))
