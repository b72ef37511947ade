"""Conversion of configs to and from JSON, and type checks."""

import dataclasses
import json

import pytest
from support.configs import CONFIGS, FOLDER, MODEL, SEARCH, STACK, TRAINING

from mlx_transformer.config.model import ModelConfig
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.config.serialization import from_dict, to_dict


def class_name(config):
    return type(config).__name__


@pytest.mark.parametrize("config", CONFIGS, ids=class_name)
def test_configs_survive_json(config):
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config))), "config") == config


@pytest.mark.parametrize("config", CONFIGS, ids=class_name)
def test_a_config_is_frozen_and_hashable(config):
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)


@pytest.mark.parametrize("config", CONFIGS, ids=class_name)
def test_fields_with_defaults_may_be_omitted(config):
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING and field.name != "share_embeddings":
            data = {name: value for name, value in to_dict(config).items() if name != field.name}
            if field.name == "beam_size":
                data["num_hypotheses"] = 1
            assert vars(from_dict(type(config), data, "config"))[field.name] == field.default


@pytest.mark.parametrize("config", CONFIGS, ids=class_name)
def test_unknown_and_missing_fields_are_named(config):
    data = to_dict(config)
    with pytest.raises(ValueError, match="^config has unknown fields: beams, widht. Similar ones are|Known ones are"):
        from_dict(type(config), data | {"widht": 1, "beams": 2}, "config")
    for field in dataclasses.fields(config):
        if field.default is dataclasses.MISSING:
            with pytest.raises(ValueError, match=f"^config lacks the fields {field.name}"):
                from_dict(type(config), {k: v for k, v in data.items() if k != field.name}, "config")


def test_many_unknown_fields_are_counted():
    with pytest.raises(ValueError, match=r"^config.json: search has unknown fields: .* and [0-9]+ more\.") as caught:
        names = (f"{chr(n)}_parameter_of_another_model" for n in range(97, 120))
        from_dict(SearchConfig, dict.fromkeys(names, 1), "config.json: search")
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_a_config_must_be_a_json_object(data):
    with pytest.raises(ValueError, match=f"^config must be an object with fields, not {data!r}".replace("[", r"\[")):
        from_dict(ModelConfig, data, "config")
    with pytest.raises(ValueError, match="^config: encoder must be (an object with fields|StackConfig), not "):
        from_dict(ModelConfig, to_dict(MODEL) | {"encoder": data}, "config")


@pytest.mark.parametrize("config", CONFIGS, ids=class_name)
def test_every_field_checks_its_type(config):
    for field in dataclasses.fields(config):
        for value in ({}, b"1", object()):
            with pytest.raises(ValueError, match=f"^{field.name} must be .*, not "):
                dataclasses.replace(config, **{field.name: value})


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (STACK, "num_layers", True),
        (STACK, "num_layers", 2.0),
        (STACK, "num_layers", "2"),
        (STACK, "num_layers", None),
        (STACK, "norm_first", 1),
        (STACK, "norm_first", "false"),
        (STACK, "positions", "rotary"),
        (STACK, "positions", None),
        (MODEL, "norm_eps", "1e-5"),
        (MODEL, "dropout", False),
        (MODEL, "head_dims", 2.5),
        (MODEL, "activation", "swish"),
        (SEARCH, "early_stopping", "always"),
        (SEARCH, "early_stopping", 1),
        (SEARCH, "suppress_ids", (1, "2")),
        (SEARCH, "suppress_ids", (1, True)),
        (SEARCH, "max_tokens", False),
        (TRAINING, "train", 5),
        (TRAINING, "best_by", "rouge"),
    ],
)
def test_type_errors_name_the_field_and_its_value(config, name, value):
    expected = repr(value).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"^{name} must be .*, not {expected}"):
        dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**400])
@pytest.mark.parametrize(
    ("config", "name"),
    [(SEARCH, "length_penalty"), (SEARCH, "seed"), (STACK, "residual_scale"), (MODEL, "norm_eps"), (MODEL, "eos_id")],
)
def test_integers_beyond_64_bits_are_refused(config, name, value):
    """They would overflow where they are computed with; for a float field any integer is accepted otherwise."""
    with pytest.raises(ValueError, match=f"^{name} must be a number below 2\\*\\*63, not ") as caught:
        dataclasses.replace(config, **{name: value})
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    "value", ["a" * 10_000, ["a" * 1000] * 1000, {str(n): {"a": [n] * 9} for n in range(999)}, "\ud800\n"]
)
def test_errors_stay_short_and_printable_whatever_a_file_says(value):
    for data in (value, {"model": value}, {str(value)[:5000]: 1}, {f"{value!r:.9}{n}": n for n in range(999)}):
        with pytest.raises(ValueError) as caught:
            from_dict(type(FOLDER), data, "config.json")
        assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


def test_an_int_is_accepted_for_a_float():
    assert dataclasses.replace(SEARCH, length_penalty=2).length_penalty == 2


def test_json_lists_become_tuples():
    assert from_dict(SearchConfig, {"suppress_ids": [0, 2]}, "config").suppress_ids == (0, 2)
    with pytest.raises(ValueError, match=r"^config: beam_size must be int, not \(1,\)"):
        from_dict(SearchConfig, {"beam_size": [1]}, "config")


def test_errors_in_a_nested_config_name_its_path():
    for side in ("encoder", "decoder"):
        data = to_dict(MODEL)
        data[side] = {**data[side], "num_layers": "six"}
        with pytest.raises(ValueError, match=f"^config: model: {side}: num_layers must be int, not 'six'"):
            from_dict(ModelConfig, data, "config: model")
        data[side] = {"mlp_dims": 64}
        with pytest.raises(ValueError, match=f"^model: {side} lacks the fields num_heads, num_layers"):
            from_dict(ModelConfig, data, "model")
