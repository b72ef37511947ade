"""Invalid values of SearchConfig."""

import dataclasses

import pytest
from support.configs import SEARCH

from mlx_transformer.config.search import SearchConfig, SearchOptions, change_search


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beam_size": 0}, "beam_size must be more than 0, not 0"),
        ({"num_hypotheses": 0}, "num_hypotheses must be more than 0, not 0"),
        ({"num_hypotheses": 5}, "num_hypotheses must not exceed beam_size: 5 is more than 4; .* larger beam"),
        ({"max_tokens": 0}, "max_tokens must be more than 0, not 0"),
        ({"min_tokens": -2}, "min_tokens must not be negative: -2"),
        ({"max_length_ratio": 0.0}, "max_length_ratio must be more than 0, not 0"),
        ({"min_length_ratio": -0.5}, "min_length_ratio must not be negative: -0.5"),
        (
            {"min_length_ratio": 2.0, "max_length_ratio": 1.5},
            "min_length_ratio must not exceed max_length_ratio: 2.0 > 1.5; lower min_length_ratio",
        ),
        ({"forced_bos_id": 2}, "forced_bos_id must not be suppressed: 2 is one of suppress_ids; remove it there"),
        ({"forced_eos_id": 0}, "forced_eos_id must not be suppressed: 0 is one of suppress_ids; remove it there"),
        *[
            ({"temperature": 1.0, **{name: -1}}, f"{name} must not be negative: -1")
            for name in ("temperature", "top_k", "min_p", "seed")
        ],
        ({"temperature": 1e-39}, "temperature must be 0, or at least 1e-06, not 1e-39"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be more than 0 and at most 1, not 0.0"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p must be at most 1, not 1.5"),
        ({"seed": 1 << 32}, "seed must be less than 2\\*\\*32, not 4294967296"),
        ({"top_k": 5}, "top_k only affects sampling: set a temperature above 0"),
        (
            {"temperature": 1.0, "alternatives": True},
            "alternatives cannot be sampled: leave out temperature 1.0",
        ),
    ],
)
def test_invalid_values_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SEARCH, **changes)


def test_every_field_is_a_keyword_argument_of_its_type():
    assert SearchOptions.__annotations__ == {field.name: field.type for field in dataclasses.fields(SearchConfig)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"length_penalty": 2}, {"length_penalty": 2}),
        ({"beam_size": 1}, {"beam_size": 1, "num_hypotheses": 1}),
        ({"num_hypotheses": 7}, {"beam_size": 7, "num_hypotheses": 7}),
        ({"num_hypotheses": 1}, {"num_hypotheses": 1}),
        ({"temperature": 0.5}, {"temperature": 0.5, "beam_size": 1, "num_hypotheses": 1}),
        ({"temperature": 0.5, "num_hypotheses": 5}, {"temperature": 0.5, "beam_size": 5, "num_hypotheses": 5}),
        ({"temperature": 0.5, "beam_size": 6}, {"temperature": 0.5, "beam_size": 6}),
        ({"alternatives": True, "num_hypotheses": 3}, {"alternatives": True, "beam_size": 3, "num_hypotheses": 3}),
        ({"alternatives": False}, {}),
        ({"max_tokens": 2}, {"max_tokens": 2, "min_tokens": 2}),
        ({"max_tokens": None}, {"max_tokens": None}),
    ],
    ids=repr,
)
def test_fields_that_depend_on_a_changed_one_follow(options, expected):
    search = SearchConfig(beam_size=4, num_hypotheses=2, min_tokens=3)
    assert change_search(search, **options) == dataclasses.replace(search, **expected)


@pytest.mark.parametrize("name", ["beam_size", "num_hypotheses", "max_tokens", "temperature"])
def test_changes_of_a_wrong_type_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} must be (int|float).*, not '3'"):
        change_search(SEARCH, **{name: "3"})
