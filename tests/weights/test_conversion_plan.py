"""Families, configurations and tensors of checkpoints are recognised, and mismatches are errors."""

import dataclasses
import functools
import re

import mlx.core as mx
import pytest
from support.bart_files import BART_CONFIG, DIMS, bart_tensors, write_checkpoint
from support.tiny_models import SETTINGS

from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.weights import conversion_plan, convert
from mlx_transformer.weights.families import FAMILIES
from mlx_transformer.weights.families.other_models import UNSUPPORTED_MODEL_TYPES
from mlx_transformer.weights.families.transforms import slice_rows
from mlx_transformer.weights.parameter_map import ConversionError, expand_layers


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "bart", bart_tensors())


def test_one_error_lists_all_mismatches(tmp_path):
    tensors = bart_tensors()
    for name in ("model.encoder.layers.0.fc1.bias", "model.decoder.layers.1.self_attn.q_proj.weight"):
        del tensors[name]
    tensors |= {f"model.encoder.adapter.{i}.weight": mx.zeros(3) for i in range(9)}
    tensors["model.encoder.layers.0.fc2.weight"] = mx.zeros((DIMS, 13))
    source = write_checkpoint(tmp_path / "bad", tensors)
    with pytest.raises(ConversionError) as caught:
        convert.convert(source, tmp_path / "ours")
    assert caught.value.missing == [
        "decoder.layers.1.self_attention.query_proj.weight",
        "encoder.layers.0.feed_forward.up_proj.bias",
    ]
    assert caught.value.unexpected == [f"model.encoder.adapter.{i}.weight" for i in range(9)]
    message = str(caught.value)
    assert "2 missing (" in message and "9 unexpected (" in message and " more)" in message
    assert "1 of another shape (model.encoder.layers.0.fc2.weight" in message and len(message) <= 300
    assert "model.encoder.layers.0.fc2.weight (8, 13) instead of (8, 12)" in caught.value.details
    assert not (tmp_path / "ours").exists() and list(tmp_path.iterdir()) == [source]


def test_a_norm_that_the_family_lacks_is_an_error(tmp_path):
    norm = {f"model.encoder.layer_norm.{leaf}": mx.ones(DIMS) for leaf in ("weight", "bias")}
    source = write_checkpoint(tmp_path / "old", bart_tensors() | norm)
    with pytest.raises(ConversionError, match="2 unexpected .model.encoder.layer_norm.bias, model.enc"):
        convert.load(source)


def test_filling_a_model_reads_one_tensor_at_a_time():
    config = dataclasses.replace(SETTINGS["post_norm"], head_dims=32)  # so that projections are the largest parameters
    shapes = conversion_plan.parameter_shapes(config)

    def load_slice(shape):
        packed = mx.zeros((100 * shape[0], *shape[1:]))
        mx.eval(packed)
        return slice_rows(0, 100)(packed)

    before = mx.get_active_memory()
    mx.reset_peak_memory()
    loaders = {name: functools.partial(load_slice, shape) for name, shape in shapes.items()}
    model = Transformer(config)
    conversion_plan.ConversionPlan("made up", config, loaders, names=None, fit=None).fill(model)
    sizes = [array.nbytes for array in split_projections(model.parameters()).values()]
    assert mx.get_peak_memory() - before < 102 * max(sizes) + 2 * sum(sizes) < 50 * sum(sizes)


def test_slices_of_a_packed_tensor_release_it():
    before = mx.get_active_memory()
    part = slice_rows(1)(mx.zeros((3 * 512, 512)))
    mx.eval(part)
    assert part.nbytes <= mx.get_active_memory() - before < 1.1 * part.nbytes


def test_tied_and_untied_output_layers_are_told_apart_by_their_values(tmp_path):
    tensors = bart_tensors()
    tied = write_checkpoint(tmp_path / "tied", tensors | {"lm_head.weight": tensors["model.shared.weight"] + 0})
    assert convert.load(tied)[0].config.tie_output
    untied = write_checkpoint(tmp_path / "untied", tensors | {"lm_head.weight": tensors["model.shared.weight"] + 1})
    model, _ = convert.load(untied)
    assert not model.config.tie_output and model.config.share_embeddings
    assert mx.array_equal(model.output.weight, tensors["model.shared.weight"] + 1)


def test_unsupported_model_types_are_errors_with_a_reason(tmp_path):
    for model_type, reason in UNSUPPORTED_MODEL_TYPES.items():
        source = write_checkpoint(tmp_path / "model", bart_tensors(), {"model_type": model_type})
        with pytest.raises(ValueError, match=f"model_type '{model_type}' cannot be converted: {re.escape(reason)}.$"):
            convert.load(source)


@pytest.mark.parametrize("stack, other", [("encoder", "decoder"), ("decoder", "encoder")])
def test_a_checkpoint_of_one_stack_is_named_as_such(tmp_path, stack, other):
    tensors = {name: array for name, array in bart_tensors().items() if not name.startswith(f"model.{other}.")}
    with pytest.raises(
        ConversionError, match=f"it is an? {stack} without an? {other}, as .* shows; convert a whole enc"
    ):
        convert.load(write_checkpoint(tmp_path / "one", tensors))


def quantize_like_bitsandbytes(bits):
    """Return tensors with the names that bitsandbytes adds to quantised weights."""
    added = {8: ["fc1.SCB", "fc1.weight_format"], 4: ["fc1.weight.absmax", "fc1.weight.quant_map"]}[bits]
    return bart_tensors() | {f"model.encoder.layers.0.{name}": mx.zeros(3) for name in added}


@pytest.mark.parametrize(
    "tensors, config, message",
    [
        (
            quantize_like_bitsandbytes(8),
            BART_CONFIG,
            "is quantised by bitsandbytes, as .* shows; convert the original model, and quantise that",
        ),
        (
            quantize_like_bitsandbytes(4),
            BART_CONFIG,
            "is quantised by bitsandbytes, as .* shows; convert the original model, and quantise that",
        ),
        (
            bart_tensors(),
            BART_CONFIG | {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "must not be quantised, as this one is by 'gptq': convert the original model, and quantise that",
        ),
        (
            {"base_model.model.model.encoder.layers.0.fc1.lora_A.weight": mx.zeros((2, 3))},
            {},
            "An adapter is not a complete model: give its base as the model and it by generate --adapter",
        ),
        (
            bart_tensors() | {"model.encoder.layers.0.fc1.lora_A.default.weight": mx.zeros((2, 3))},
            BART_CONFIG,
            "it has an adapter that is not merged, as .* shows; merge it, in peft by model.merge_and_unload",
        ),
    ],
    ids=["8 bits", "4 bits", "gptq", "adapter", "unmerged adapter"],
)
def test_quantised_weights_and_adapters_are_named_as_such(tmp_path, tensors, config, message):
    with pytest.raises(ConversionError, match=message):
        convert.load(write_checkpoint(tmp_path / "model", tensors, config))


@pytest.mark.parametrize("dtype", [mx.int8, mx.int64, mx.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, dtype):
    tensors = bart_tensors()
    name = next(name for name in tensors if name.endswith("decoder.layers.0.fc1.weight"))
    tensors[name] = (tensors[name] * 100).astype(dtype)
    message = f"must be floating-point numbers, but {name} is {str(dtype).removeprefix('mlx.core.')}: convert the"
    with pytest.raises(ConversionError, match=message):
        convert.load(write_checkpoint(tmp_path / "model", tensors, BART_CONFIG))


@pytest.mark.parametrize("changes", [("of another shape",), ("missing", "unexpected"), ("unexpected",)])
def test_errors_about_many_tensors_are_short(tmp_path, changes):
    tensors = bart_tensors()
    names = [name for name in tensors if "self_attn.k_proj.weight" in name]
    if "of another shape" in changes:
        tensors |= {name: mx.zeros((2, 1, 1, 1, 1)) for name in names}
    if "missing" in changes:
        tensors = {name: array for name, array in tensors.items() if name not in names}
    if "unexpected" in changes:
        tensors |= {f"model.encoder.{'long_' * 20}{n}.weight": mx.zeros(1) for n in range(9)}
    with pytest.raises(ConversionError) as caught:
        convert.load(write_checkpoint(tmp_path / "model", tensors, BART_CONFIG))
    assert all(change in str(caught.value) for change in changes)
    assert len(str(caught.value).splitlines()[0]) <= 300


def test_unknown_families_and_settings_are_errors(source, tmp_path):
    for model_type, names in (
        ("elmo", "Known ones are annotated"),
        ("t5" * 40, "Known ones"),
        ("bart2", "Similar .* bart"),
    ):
        message = (
            f"model_type '{model_type[:50]}.* is not supported: docs/models.md lists the families that are. {names}"
        )
        with pytest.raises(ValueError, match=message) as caught:
            convert.load(write_checkpoint(tmp_path / model_type[:9], bart_tensors(), {"model_type": model_type}))
        assert len(str(caught.value)) <= 300
    with pytest.raises(ValueError, match="family must be one of .*, not 'elmo'"):
        convert.load(source, family="elmo")
    with pytest.raises(ValueError, match="'num_head' is not a setting of a model"):
        convert.load(source, settings={"num_head": 2})
    with pytest.raises(ValueError, match="activation must be .*, not 'laplace'"):
        convert.load(
            write_checkpoint(tmp_path / "odd", bart_tensors(), BART_CONFIG | {"activation_function": "laplace"})
        )
    with pytest.raises(ValueError, match="lacks the fields|does not specify|num_layers"):
        convert.load(write_checkpoint(tmp_path / "less", bart_tensors(), {"model_type": "bart"}))
    with pytest.raises(ConversionError, match="both become"):
        convert.load(source, rename={r"\.bias$": ".weight"})


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_layers": 10**9},
        {"d_model": 2**40},
        {"encoder_ffn_dim": 2**62},
        {"max_position_embeddings": 10**15},
        {"encoder_layers": 1001},
        {"encoder_layers": 0},
        {"d_model": "many"},
        {"pad_token_id": -1},
        {"decoder_start_token_id": 99},
        {"encoder_attention_heads": 3},
        {"scale_embedding": "yes"},
        {"max_length": "long"},
        {"bad_words_ids": [3]},
        {"num_beams": 2.5},
    ],
    ids=str,
)
def test_invalid_settings_give_one_line_errors(tmp_path, changes):
    with pytest.raises(ValueError, match=r"\.$") as caught:
        convert.load(write_checkpoint(tmp_path / "invalid", bart_tensors(), BART_CONFIG | changes))
    assert len(str(caught.value).splitlines()) == 1


def test_positions_of_the_wrong_rank_are_errors(tmp_path):
    for shape in ((), (3,), (1, 2, 3)):
        tensors = bart_tensors() | {"model.encoder.embed_positions.weight": mx.zeros(shape)}
        with pytest.raises(ConversionError, match="1 of another shape .model.encoder.embed_positions.weight"):
            convert.load(write_checkpoint(tmp_path / "odd", tensors))


def test_rename_must_be_a_regular_expression(source):
    with pytest.raises(ValueError, match="rename must map regular expressions: '.' is not valid"):
        convert.load(source, rename={"(": ""})


def test_every_family_names_the_main_parameters():
    for name, family in FAMILIES.items():
        names = expand_layers(family.names, layers=1)
        for parameter in (
            "encoder.layers.0.self_attention.query_proj.weight",
            "source_embedding.weight",
            "output.weight",
        ):
            assert parameter in names, name


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "do not determine decoder.num_layers, they lack 'num_layers': set it"),
        ({"num_layers": 1, "d_model": "64"}, "do not determine logit_scale, unsupported operand .* 'str'.*: set it"),
    ],
)
def test_settings_that_do_not_determine_a_field_give_the_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        conversion_plan.fields_from_config(FAMILIES["t5"], changes)


def test_settings_replace_those_missing_in_the_checkpoint(tmp_path):
    settings = BART_CONFIG | {"eos_token_id": []}
    source = write_checkpoint(tmp_path / "odd", bart_tensors(), settings)
    with pytest.raises(ValueError, match="does not specify eos_id: use convert --set eos_id="):
        convert.load(source)
    assert convert.load(source, settings={"eos_id": 2})[0].config.eos_id == 2


def test_version_tensors_of_fairseq_are_ignored(tmp_path):
    versions = {f"model.{stack}.version": mx.array([3.0]) for stack in ("encoder", "decoder")}
    source = write_checkpoint(tmp_path / "old", bart_tensors() | versions)
    assert convert.load(source)[0].config.encoder.num_layers == 1
