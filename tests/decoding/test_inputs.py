"""Per-sentence inputs of the search: limits, prefixes, random keys and validation."""

import re

import mlx.core as mx
import numpy as np
import pytest
from support.tiny_models import config, padded, random_model, random_sources, stack

import mlx_transformer as mt
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.decoding.inputs import PREFIX_MULTIPLE, make_decoding_inputs, max_target_tokens, random_keys
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary

POSITIONS = 20


@pytest.fixture(scope="module")
def model():
    return random_model(config(source_vocab_size=9, target_vocab_size=9, decoder=stack(max_length=POSITIONS)))


def make(model, lengths, search=None, max_tokens=None, forced_bos_ids=None, prefixes=None, lines=None):
    source = padded(random_sources(model.config, lengths), model.config)
    prefixes = prefixes or [[]] * len(lengths)
    return make_decoding_inputs(model, source, search or SearchConfig(), max_tokens, forced_bos_ids, prefixes, lines)


@pytest.mark.parametrize(
    "changes, length, limit",
    [
        ({}, 3, 56),
        ({}, 30, 100),  # never more than the decoder has positions
        ({"max_tokens": 7}, 3, 7),
        ({"max_tokens": 700}, 3, 100),
        ({"max_length_ratio": 1.5}, 5, 7),
        ({"max_length_ratio": 1.5}, 1000, 100),
        ({"max_length_ratio": 0.1}, 5, 1),
        ({"min_tokens": 80}, 3, 80),  # otherwise 2 x 3 + 50
        ({"max_length_ratio": 30.0}, 3, 90),  # more than the usual 2 x 3 + 50
        ({"max_length_ratio": 2.0, "max_tokens": 8}, 3, 6),
        ({"max_length_ratio": 2.0, "max_tokens": 8}, 5, 8),
    ],
)
def test_max_target_tokens(changes, length, limit):
    model = random_model(config(decoder=stack(max_length=100)))
    assert max_target_tokens(model, length, SearchConfig(**changes)) == limit


def test_limits_ignore_padding_and_leave_room_for_the_prefix(model):
    search = SearchConfig(2, max_length_ratio=2.0, min_length_ratio=0.5, min_tokens=2)
    inputs, max_new_tokens = make(model, [3, 8, 5, 12], search, prefixes=[[], [3, 4, 5], [6], [7] * 18])
    assert inputs.max_new_tokens[::2].tolist() == [[6], [16], [10], [2]]
    assert inputs.min_new_tokens[::2].tolist() == [[2], [4], [2], [2]], "no more than the most"
    assert inputs.prefix_lengths[::2].tolist() == [[0], [3], [1], [18]]
    assert max_new_tokens == [6, 19, 11, 20]
    inputs, max_new_tokens = make(model, [3, 8], search, max_tokens=[5, 1])
    assert (inputs.max_new_tokens[::2].tolist(), inputs.min_new_tokens[::2].tolist(), max_new_tokens) == (
        [[5], [1]],
        [[2], [1]],
        [5, 1],
    )


def test_inputs_have_one_row_per_beam_and_padded_prefixes(model):
    prefixes = [[3, 4], [], [5] * 17]
    inputs, _ = make(model, [3, 8, 5], SearchConfig(3), forced_bos_ids=[4, 5, 6], prefixes=prefixes, lines=[7, 1, 0])
    assert inputs.prefix_ids.shape == (9, 2 * PREFIX_MULTIPLE)
    assert inputs.first_ids.flatten().tolist() == [4, 4, 4, 5, 5, 5, 6, 6, 6]
    for row, ids in enumerate(inputs.prefix_ids.tolist()):
        prefix = prefixes[row // 3]
        assert ids == prefix + [model.config.pad_id] * (len(ids) - len(prefix))
    source = padded(random_sources(model.config, [3, 8, 5]), model.config)
    assert inputs.source.tolist() == mx.repeat(source, 3, axis=0).tolist()
    assert inputs.keys.tolist() == mx.repeat(random_keys(0, [7, 1, 0]), 3, axis=0).tolist()
    widths = [make(model, [3], prefixes=[[3] * n])[0].prefix_ids.shape[1] for n in (0, 1, PREFIX_MULTIPLE)]
    assert widths == [0, PREFIX_MULTIPLE, PREFIX_MULTIPLE]


def test_random_keys_are_distinct():
    lines, seeds = [*range(100), 2**31, 2**32 - 1], [*range(10), 2**32 - 1]
    keys = np.concatenate([np.array(random_keys(seed, lines)) for seed in seeds])
    assert len(np.unique(keys, axis=0)) == len(lines) * len(seeds)
    assert len(np.unique(keys[:, 1])) == len(keys), "what position and hypothesis do not change differs already"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_tokens": [3]}, r"max_tokens must be 2 numbers from 1 to [0-9]+, one for each source, not \[3\]"),
        ({"max_tokens": [3, 0]}, r"max_tokens must be 2 numbers from 1 to [0-9]+, .* not \[3, 0\]"),
        ({"forced_bos_ids": [3]}, r"forced_bos_ids must be 2 numbers from 0 to 8, .* not \[3\]"),
        ({"forced_bos_ids": [3, 9]}, r"forced_bos_ids must be 2 numbers from 0 to 8, .* not \[3, 9\]"),
        ({"max_tokens": [3, 2.5]}, r"max_tokens must be 2 numbers from 1 to [0-9]+, .* not \[3, 2.5\]"),
        ({"forced_bos_ids": [3, 4.0]}, r"forced_bos_ids must be 2 numbers from 0 to 8, .* not \[3, 4.0\]"),
        ({"forced_bos_ids": [3, "4"]}, r"forced_bos_ids must be 2 numbers from 0 to 8, .* not \[3, '4'\]"),
        ({"prefixes": [[3], [4, 2.5]]}, r"prefix_ids must be token ids from 0 to 8, not \[4, 2.5\]"),
        ({"lines": [0, 1, 2]}, r"lines must be 2 numbers from 0 to 4294967295, .* not \[0, 1, 2\]"),
        ({"lines": [0, -1]}, r"lines must be 2 numbers from 0 to 4294967295, .* not \[0, -1\]"),
        ({"prefixes": [[3]]}, "prefix_ids must be 2 lists of token ids, one for each source, not 1"),
        ({"prefixes": [[3], [4, 9]]}, r"prefix_ids must be token ids from 0 to 8, not \[4, 9\]"),
        ({"prefixes": [[-1], []]}, r"prefix_ids must be token ids from 0 to 8, not \[-1\]"),
        ({"prefixes": [[], [3] * 20]}, "must be shorter than the decoder's 20 positions, not 20 tokens: shorten it"),
        (
            {"search": SearchConfig(10, alternatives=True)},
            "alternatives must not exceed the vocabulary: beam_size 10 is more than 9; lower beam_size",
        ),
        ({"search": SearchConfig(forced_bos_id=9)}, "forced_bos_id must be a token id from 0 to 8, not 9"),
        ({"search": SearchConfig(forced_eos_id=-1)}, "forced_eos_id must be a token id from 0 to 8, not -1"),
        ({"search": SearchConfig(forced_bos_id=0)}, "forced_bos_id must not be suppressed: 0 is pad_id; force another"),
        (
            {"search": SearchConfig(forced_bos_id=1)},
            "forced_bos_id must not be an end token, .* both are 1; leave it out",
        ),
        (
            {"search": SearchConfig(suppress_ids=(4,)), "forced_bos_ids": [3, 4]},
            "forced_bos_ids must not be suppressed: 4 is one of suppress_ids; force another token",
        ),
        ({"search": SearchConfig(bad_words=((3, 1), (1,)))}, "bad_words must not be the end token 1: remove it"),
        (
            {"search": SearchConfig(suppress_ids=tuple(range(1, 8)), bad_words=((8,),))},
            "must leave tokens to generate: suppress_ids and bad_words contain all; remove some",
        ),
        (
            {"search": SearchConfig(suppress_ids=tuple(range(2, 9)), min_tokens=2)},
            "must leave tokens to generate: suppress_ids and bad_words contain all",
        ),
        ({"search": SearchConfig(min_tokens=21)}, "min_tokens must not exceed the decoder's 20 positions: 21 is more"),
    ],
)
def test_arguments_out_of_range_are_rejected(model, changes, message):
    with pytest.raises(ValueError, match=message):
        make(model, [3, 5], **changes)


@pytest.mark.parametrize("ratio", ["max_length_ratio", "min_length_ratio"])
def test_huge_length_ratios_are_clipped(ratio):
    model = random_model(config())
    search = SearchConfig(**{ratio: 1e308})
    inputs, max_new_tokens = make_decoding_inputs(model, mx.array([[3, 4, 1]]), search, None, None, [[]], None)
    assert (max_new_tokens, inputs.min_new_tokens.item()) == (([40], 0) if ratio == "max_length_ratio" else ([40], 40))


@pytest.mark.parametrize("search", [{"beam_size": 2}, 5, "beam"])
def test_a_search_is_a_search_config(model, search):
    tokenizer = Tokenizer(WordVocabulary({word: i for i, word in enumerate(["<pad>", "</s>", "<s>", *"abcdef"])}, 3))
    for call in (
        lambda: mt.generate(model, tokenizer, "a b", search),
        lambda: list(mt.stream_generate(model, tokenizer, "a b", search)),
    ):
        with pytest.raises(ValueError, match=f"^search must be a SearchConfig, not {re.escape(repr(search))}: use"):
            call()
