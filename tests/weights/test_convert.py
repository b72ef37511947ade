"""Conversion to model folders: what is written, what is refused, and that a failure leaves nothing behind."""

import dataclasses
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT
from mlx.utils import tree_flatten
from support.peak_memory import growth
from support.tiny_models import SETTINGS, random_model

import mlx_transformer as mt
from mlx_transformer import cli
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.config.search import SearchConfig
from mlx_transformer.model import precision
from mlx_transformer.model.fused_projections import split_projections
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.storage import files, safetensors
from mlx_transformer.weights import conversion_plan, convert
from mlx_transformer.weights.families import FAMILIES, UNSUPPORTED_MODEL_TYPES
from mlx_transformer.weights.families.transforms import slice_rows
from mlx_transformer.weights.generation_config import search_config, unsupported_settings
from mlx_transformer.weights.parameter_map import ConversionError, expand_layers

VOCAB, DIMS = 11, 8
SETTINGS_OF_BART = {
    "model_type": "bart",
    "d_model": DIMS,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 10,
    "max_position_embeddings": 14,
    "activation_function": "gelu",
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "num_beams": 4,
    "max_length": 9,
}


def bart_tensors():
    """Random tensors with the names of a BART; no torch is needed."""
    rng = np.random.default_rng(0)
    shapes = {"shared.weight": (VOCAB, DIMS)}
    for stack, layers, width in (("encoder", 1, 12), ("decoder", 2, 10)):
        shapes[f"{stack}.embed_positions.weight"] = (16, DIMS)
        norms = [f"{stack}.layernorm_embedding"]
        for layer in (f"{stack}.layers.{i}" for i in range(layers)):
            for attention in ("self_attn", "encoder_attn") if stack == "decoder" else ("self_attn",):
                norms.append(f"{layer}.{attention}_layer_norm")
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes |= {
                        f"{layer}.{attention}.{part}.weight": (DIMS, DIMS),
                        f"{layer}.{attention}.{part}.bias": (DIMS,),
                    }
            norms.append(f"{layer}.final_layer_norm")
            shapes |= {f"{layer}.fc1.weight": (width, DIMS), f"{layer}.fc1.bias": (width,)}
            shapes |= {f"{layer}.fc2.weight": (DIMS, width), f"{layer}.fc2.bias": (DIMS,)}
        shapes |= {f"{norm}.{leaf}": (DIMS,) for norm in norms for leaf in ("weight", "bias")}
    tensors = {f"model.{name}": shape for name, shape in shapes.items()} | {"final_logits_bias": (1, VOCAB)}
    return {name: mx.array(rng.standard_normal(shape).astype(np.float32)) for name, shape in tensors.items()}


def write(folder, tensors, settings=SETTINGS_OF_BART, generation=None):
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "bart", bart_tensors())


def test_a_folder_is_the_model_in_memory(source, tmp_path):
    assert mt.convert(source, tmp_path / "ours") is None
    stored, _ = mt.load(tmp_path / "ours")
    direct, tokenizer = mt.load(source)
    assert tokenizer is None and not direct.training
    assert (stored.config, stored.search_defaults) == (direct.config, direct.search_defaults)
    arrays = dict(tree_flatten(stored.parameters()))
    for name, array in tree_flatten(direct.parameters()):
        assert mx.array_equal(array, arrays[name]), name
    assert direct.search_defaults == SearchConfig(beam_size=4, max_tokens=8)
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    digest = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert f"model.safetensors: sha256 {digest}" in (tmp_path / "ours" / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_type_of_the_numbers(source, tmp_path, dtype):
    convert.convert(source, tmp_path / "ours", dtype=dtype)
    arrays = safetensors.read_arrays(tmp_path / "ours" / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {precision.DTYPES[dtype]}
    full = split_projections(mt.load(source)[0].parameters())
    assert all(mx.allclose(arrays[name].astype(mx.float32), full[name], atol=0.02) for name in full)
    assert mt.load(source, dtype=dtype)[0].dtype == precision.DTYPES[dtype]


def test_half_precision_stays_as_it_is(tmp_path):
    source = write(tmp_path / "half", {name: array.astype(mx.float16) for name, array in bart_tensors().items()})
    convert.convert(source, tmp_path / "ours")
    arrays = safetensors.read_arrays(tmp_path / "ours" / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {mx.float16}


def test_all_problems_are_told_at_once(tmp_path):
    tensors = bart_tensors()
    for name in ("model.encoder.layers.0.fc1.bias", "model.decoder.layers.1.self_attn.q_proj.weight"):
        del tensors[name]
    tensors |= {f"model.encoder.adapter.{i}.weight": mx.zeros(3) for i in range(9)}
    tensors["model.encoder.layers.0.fc2.weight"] = mx.zeros((DIMS, 13))
    source = write(tmp_path / "bad", tensors)
    with pytest.raises(ConversionError) as caught:
        convert.convert(source, tmp_path / "ours")
    assert caught.value.missing == [
        "decoder.layers.1.self_attention.query_proj.weight",
        "encoder.layers.0.feed_forward.up_proj.bias",
    ]
    assert caught.value.unexpected == [f"model.encoder.adapter.{i}.weight" for i in range(9)]
    message = str(caught.value)
    assert "2 missing (" in message and "9 unexpected (" in message and "and 5 more" in message
    assert "1 of another shape (model.encoder.layers.0.fc2.weight (8, 13) instead of (8, 12))" in message
    assert len(message) < 700
    assert not (tmp_path / "ours").exists() and list(tmp_path.iterdir()) == [source]


def test_a_norm_that_the_family_lacks_is_no_switch_but_an_error(tmp_path):
    norm = {f"model.encoder.layer_norm.{leaf}": mx.ones(DIMS) for leaf in ("weight", "bias")}
    source = write(tmp_path / "old", bart_tensors() | norm)
    with pytest.raises(ConversionError, match="2 unexpected .model.encoder.layer_norm.bias, model.enc"):
        convert.load(source)


ROWS = 2**22
TABLE = 4 * ROWS * DIMS  # bytes in float32


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Checkpoints with tables of 128 MiB in float32 or half: of words, of positions that lose their first rows."""
    folder = tmp_path_factory.mktemp("large")
    words = {"model.shared.weight": (ROWS, DIMS), "final_logits_bias": (1, ROWS)}
    both = words | {f"model.{stack}.embed_positions.weight": (ROWS, DIMS) for stack in ("encoder", "decoder")}
    twice = words | {"lm_head.weight": (ROWS, DIMS)}
    kinds = {"words": (words, mx.float32), "twice": (twice, mx.float32), "both": (both, mx.float32)}
    for name, (shapes, dtype) in (kinds | {"half": (both, mx.float16)}).items():
        tensors = bart_tensors() | {key: mx.zeros(shape) for key, shape in shapes.items()}
        settings = SETTINGS_OF_BART | ({"max_position_embeddings": ROWS - 2} if shapes is both else {})
        write(folder / name, {key: tensors.pop(key).astype(dtype) for key in list(tensors)}, settings)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "source, dtype, most",
    [("words", None, 0.7), ("twice", None, 0.9), ("both", None, 1.6), ("both", "float16", 1.6), ("half", None, 0.8)],
)
def test_converting_needs_little_more_memory_than_the_largest_tensor(large, source, dtype, most):
    """Less than that where it is stored as it is."""
    program = f"mt.convert(source, destination, dtype={dtype!r}, force=True)"
    assert growth(program, large / source, large / "ours") < most * TABLE


@pytest.mark.parametrize("source", ["both", "half"])
def test_loading_needs_little_more_memory_than_the_model_and_the_largest_tensor(large, source):
    largest = TABLE // 2 if source == "half" else 0  # in float32 it becomes the model's own
    assert growth("model, _ = mt.load(source, dtype='float32')", large / source) < 3.4 * TABLE + largest


def test_a_model_in_memory_is_read_with_one_whole_tensor_at_a_time():
    config = dataclasses.replace(SETTINGS["post_norm"], head_dims=32)  # projections are the largest
    shapes = conversion_plan.parameter_shapes(config)

    def part(shape):
        whole = mx.zeros((100 * shape[0], *shape[1:]))
        mx.eval(whole)
        return slice_rows(0, 100)(whole)

    before = mx.get_active_memory()
    mx.reset_peak_memory()
    loaders = {name: functools.partial(part, shape) for name, shape in shapes.items()}
    model = Transformer(config)
    conversion_plan.ConversionPlan("made up", config, loaders, names=None).fill(model)
    sizes = [array.nbytes for array in split_projections(model.parameters()).values()]
    assert mx.get_peak_memory() - before < 102 * max(sizes) + 2 * sum(sizes) < 50 * sum(sizes)


def test_parts_of_a_packed_tensor_do_not_keep_the_whole():
    before = mx.get_active_memory()
    kept = slice_rows(1)(mx.zeros((3 * 512, 512)))
    mx.eval(kept)
    assert kept.nbytes <= mx.get_active_memory() - before < 1.1 * kept.nbytes


def test_an_output_layer_of_its_own_is_found_by_its_numbers(tmp_path):
    tensors = bart_tensors()
    same = write(tmp_path / "same", tensors | {"lm_head.weight": tensors["model.shared.weight"] + 0})
    assert convert.load(same)[0].config.tie_output
    other = write(tmp_path / "other", tensors | {"lm_head.weight": tensors["model.shared.weight"] + 1})
    model, _ = convert.load(other)
    assert not model.config.tie_output and model.config.share_embeddings
    assert mx.array_equal(model.output.weight, tensors["model.shared.weight"] + 1)


@pytest.mark.parametrize("kind", UNSUPPORTED_MODEL_TYPES)
def test_what_is_not_covered_is_refused_by_name(tmp_path, kind):
    source = write(tmp_path / "model", bart_tensors(), {"model_type": kind})
    with pytest.raises(
        ValueError, match=f"model_type '{kind}' cannot be converted: {re.escape(UNSUPPORTED_MODEL_TYPES[kind])}.$"
    ):
        convert.load(source)


def test_unknown_families_and_settings_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="model_type 'gpt2' of config.json is not supported. Supported families: anno"):
        convert.load(write(tmp_path / "gpt2", bart_tensors(), {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="family must be one of .*, not 'elmo'"):
        convert.load(source, family="elmo")
    with pytest.raises(ValueError, match="'num_head' is not a setting of a model"):
        convert.load(source, settings={"num_head": 2})
    with pytest.raises(ValueError, match="activation must be .*, not 'laplace'"):
        convert.load(write(tmp_path / "odd", bart_tensors(), SETTINGS_OF_BART | {"activation_function": "laplace"}))
    with pytest.raises(ValueError, match="lacks the fields|does not specify|num_layers"):
        convert.load(write(tmp_path / "less", bart_tensors(), {"model_type": "bart"}))
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
def test_absurd_settings_are_one_error(tmp_path, changes):
    with pytest.raises(ValueError, match=r"\.$") as caught:
        convert.load(write(tmp_path / "absurd", bart_tensors(), SETTINGS_OF_BART | changes))
    assert len(str(caught.value).splitlines()) == 1


def test_scalars_and_vectors_in_place_of_tables_are_misshapen(tmp_path):
    for shape in ((), (3,), (1, 2, 3)):
        tensors = bart_tensors() | {"model.encoder.embed_positions.weight": mx.zeros(shape)}
        with pytest.raises(ConversionError, match="1 of another shape .model.encoder.embed_positions.weight"):
            convert.load(write(tmp_path / "odd", tensors))


def test_a_bad_expression_is_told(source):
    with pytest.raises(ValueError, match="rename must map regular expressions: '.' is not valid"):
        convert.load(source, rename={"(": ""})


def test_a_destination_is_replaced_only_when_forced(source, tmp_path):
    convert.convert(source, tmp_path / "ours", dtype="float16")
    before = (tmp_path / "ours" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="already exists: choose another name, or use force"):
        convert.convert(source, tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == before
    convert.convert(source, tmp_path / "ours", force=True)
    assert mt.load(tmp_path / "ours")[0].config == mt.load(source)[0].config
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="is not a model folder"):
        convert.convert(source, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("after", [1, 7, 40])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_the_old_folder_or_none(source, tmp_path, old, after, error):
    destination = tmp_path / "ours"
    if old:
        model_folder.save(destination, random_model(SETTINGS["post_norm"]))

    def contents():
        return {path.name: path.read_bytes() for path in destination.iterdir()} if destination.exists() else None

    before = contents()
    calls = []

    def report(done, total):
        calls.append((done, total))
        if len(calls) == after:
            raise error

    with pytest.raises(error):
        convert.convert(source, destination, force=True, report=report)
    assert (
        {path.name: path.read_bytes() for path in destination.iterdir()} if destination.exists() else None
    ) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"bart", "ours"}


def test_progress_ends_with_all_bytes(source, tmp_path):
    calls = []
    convert.convert(source, tmp_path / "ours", report=lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1] == 4 * sum(a.size for _, a in tree_flatten(mt.load(source)[0].parameters()))


@pytest.mark.parametrize(
    "said, expected",
    [
        ({}, {}),
        ({"num_beams": 5, "max_length": 200}, {"beam_size": 5, "max_tokens": 199}),
        ({"max_length": 200, "max_new_tokens": 7}, {"max_tokens": 7}),
        ({"min_length": 4}, {"min_tokens": 4}),
        ({"min_length": 4, "min_new_tokens": 6}, {"min_tokens": 7}),
        ({"bad_words_ids": [[3], [4, 5], [0]], "eos_token_id": 0}, {"suppress_ids": (3,), "bad_words": ((4, 5),)}),
        (
            {"bad_words_ids": [[3], [2]], "forced_bos_token_id": 3, "suppress_tokens": [9]},
            {"suppress_ids": (2, 9), "bad_words": ((3,),), "forced_bos_id": 3},
        ),
        ({"forced_eos_token_id": [7], "renormalize_logits": True}, {"forced_eos_id": 7, "renormalize": True}),
        ({"early_stopping": "never", "length_penalty": 2.0}, {"early_stopping": "never", "length_penalty": 2.0}),
        ({"num_beams": 4, "num_return_sequences": 3}, {"beam_size": 4, "num_hypotheses": 3}),
        ({"num_return_sequences": 3}, {}),
        ({"encoder_no_repeat_ngram_size": 3}, {"source_no_repeat_ngram_size": 3}),
        (
            {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
            {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
        ),
        ({"forced_bos_token_id": None, "num_beams": None}, {}),
    ],
    ids=str,
)
def test_generation_settings(said, expected):
    assert search_config(said) == SearchConfig(**expected)


def test_the_generation_file_counts_and_what_is_not_followed_is_told(tmp_path, caplog):
    generation = {"num_beams": 3, "decoder_start_token_id": 5, "num_beam_groups": 3, "do_sample": True}
    source = write(tmp_path / "model", bart_tensors(), generation=generation)
    model, _ = convert.load(source)
    assert model.search_defaults == SearchConfig(beam_size=3)
    assert model.config.start_id == 5
    assert "settings are ignored: 'do_sample', 'num_beam_groups'.\n" in caplog.text


def test_names_of_settings_are_told_in_one_line_of_plain_letters(tmp_path, caplog):
    convert.load(write(tmp_path / "model", bart_tensors(), generation={"a\n\x1b[2J": 1}))
    assert r"settings are ignored: 'a\n\x1b[2J'." in caplog.text


def test_of_an_old_config_what_is_not_followed_is_told_and_nothing_else(tmp_path, caplog):
    convert.load(write(tmp_path / "plain", bart_tensors()))
    assert not caplog.text
    convert.load(write(tmp_path / "odd", bart_tensors(), SETTINGS_OF_BART | {"diversity_penalty": 0.5}))
    assert "settings are ignored: 'diversity_penalty'.\n" in caplog.text


@pytest.mark.parametrize(
    "said",
    [
        {"sequence_bias": [[[3], -2.0]]},
        {"forced_decoder_ids": [[1, 5]]},
        {"begin_suppress_tokens": [5]},
        {"diversity_penalty": 0.5},
        {"num_beam_groups": 2},
        {"encoder_repetition_penalty": 1.2},
        {"exponential_decay_length_penalty": [5, 1.1]},
        {"stop_strings": ["."]},
        {"guidance_scale": 1.5},
        {"penalty_alpha": 0.6},
        {"force_words_ids": [[5]]},
        {"constraints": [5]},
        {"max_time": 2.0},
        {"remove_invalid_values": True},
        {"token_healing": True},
        {"watermarking_config": {"bias": 2.0}},
        {"do_sample": True},
        {"of_years_to_come": 1},
        {"eos_token_id": [2, 5]},
        {"forced_eos_token_id": [2, 5]},
        {"decoder_start_token_id": [2, 5]},
    ],
    ids=str,
)
def test_each_setting_that_is_not_followed(said):
    assert unsupported_settings(said) == list(said)


def test_settings_that_ask_for_nothing():
    neutral = {"encoder_repetition_penalty": 1.0, "num_beam_groups": 1, "guidance_scale": 1, "sequence_bias": {}}
    neutral |= {"diversity_penalty": 0.0, "remove_invalid_values": False, "stop_strings": [], "eos_token_id": [2]}
    assert unsupported_settings(neutral | {"top_k": 50, "num_beams": 4, "transformers_version": "4.28.0"}) == []


@pytest.mark.parametrize("end, expected", [(5, 5), ([5], 5), ([6, 5], 6), (None, 2)], ids=str)
def test_the_end_token_is_that_of_the_generation_settings(tmp_path, end, expected, caplog):
    source = write(tmp_path / "model", bart_tensors(), generation={"eos_token_id": end})
    assert convert.load(source)[0].config.eos_id == expected
    assert ("settings are ignored: 'eos_token_id'.\n" in caplog.text) == (end == [6, 5])


def test_of_several_start_and_end_tokens_the_first_counts(tmp_path, caplog):
    several = {"eos_token_id": [4, 5], "decoder_start_token_id": [7, 3]}
    model, _ = convert.load(write(tmp_path / "model", bart_tensors(), SETTINGS_OF_BART | several))
    assert (model.config.eos_id, model.config.start_id) == (4, 7)
    assert "settings are ignored: 'decoder_start_token_id', 'eos_token_id'.\n" in caplog.text


def test_every_family_names_every_parameter():
    for name, family in FAMILIES.items():
        names = expand_layers(family.names, layers=1)
        for part in ("encoder.layers.0.self_attention.query_proj.weight", "source_embedding.weight", "output.weight"):
            assert part in names, name


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_the_command(source, tmp_path):
    result = run("convert", source, tmp_path / "ours", "--dtype", "float16")
    assert (result.exit_code, result.output) == (0, "")
    assert mt.load(tmp_path / "ours")[0].config.dims == DIMS
    again = run("convert", source, tmp_path / "ours")
    assert again.exit_code == 1 and "already exists" in again.output and len(again.output.splitlines()) == 1
    assert run("convert", source, tmp_path / "ours", "--force", "--set", "norm_eps=1e-6").exit_code == 0
    assert mt.load(tmp_path / "ours")[0].config.norm_eps == 1e-6
    assert run("convert", source, tmp_path / "new", "--set", "norm_eps").exit_code == 2
    missing = run("convert", tmp_path / "nowhere", tmp_path / "new")
    assert missing.exit_code == 1 and "nowhere" in missing.output


def test_info_tells_what_an_unconverted_checkpoint_holds(source):
    facts = json.loads(run("info", source, "--json").output)
    assert (facts["family"], facts["stored_dtype"], facts["config"]["dims"]) == ("bart", ["float32"], DIMS)
    assert "torch checkpoint, bart" in run("info", source).output


def test_the_benchmark_measures_both_tasks():
    command = [sys.executable, "-m", "benchmarks.convert", "--size", "tiny", "--rounds", "1", "--no-peer"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    measured = [line.split(" | ") for line in printed.splitlines() if "| mlx_transformer |" in line]
    assert [cells[0] for cells in measured] == ["| convert", "| load", "| load and read all"]
    assert all(float(cells[3]) > 0 and float(cells[7]) > 0 for cells in measured)
    assert "files=warm" in printed.splitlines()[0]


WIDE = 64


def wide_tensors():
    """The same with all widths 64, for groups to quantise in."""
    return {
        name: mx.random.normal([WIDE if side in (DIMS, 10, 12) else side for side in array.shape], key=mx.random.key(i))
        for i, (name, array) in enumerate(sorted(bart_tensors().items()))
    }


SETTINGS_OF_WIDE = SETTINGS_OF_BART | {"d_model": WIDE, "encoder_ffn_dim": WIDE, "decoder_ffn_dim": WIDE}


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised(tmp_path, bits):
    source = write(tmp_path / "wide", wide_tensors(), SETTINGS_OF_WIDE)
    arguments = [str(source), str(tmp_path / "ours"), "--quantize", str(bits)]
    assert CliRunner().invoke(cli.main, ["convert", *arguments]).exit_code == 0
    stored = model_folder.read_config(tmp_path / "ours")
    assert (stored.quantization.bits, stored.quantization.group_size) == (bits, 64)
    assert f"quantised to {bits} bits" in (tmp_path / "ours" / "README.md").read_text()
    assert f"quantised to {bits} bits" in CliRunner().invoke(cli.main, ["info", str(tmp_path / "ours")]).output
    plain, quantised = (dict(tree_flatten(mt.load(path)[0].parameters())) for path in (source, tmp_path / "ours"))
    in_memory = dict(tree_flatten(mt.load(source, quantize=bits)[0].parameters()))
    for name, array in plain.items():
        assert mx.array_equal(in_memory[name], quantised[name]), name
        exact = name.endswith("bias") or "norm" in name or "positions" in name
        assert bool(mx.array_equal(array, quantised[name])) == exact, name
        assert mx.abs(array - quantised[name]).max() < (0.5 if bits == 4 else 0.05)
    mt.convert(source, tmp_path / "whole")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("ours", "whole")]
    assert sizes[0] < sizes[1] * (0.5 if bits == 8 else 0.35)
    of_folder = dict(tree_flatten(mt.load(tmp_path / "whole", quantize=bits)[0].parameters()))
    assert all(mx.array_equal(of_folder[name], quantised[name]) for name in quantised)


def test_progress_of_a_quantised_conversion(tmp_path):
    calls = []
    source = write(tmp_path / "wide", wide_tensors(), SETTINGS_OF_WIDE)
    convert.convert(source, tmp_path / "ours", quantize=8, dtype="float16", report=lambda *call: calls.append(call))
    assert len(calls) > 10 and calls == sorted(calls)
    stored = sum(array.nbytes for array in mx.load(str(tmp_path / "ours" / "model.safetensors")).values())
    assert calls[-1] == (stored, stored)


def test_a_conversion_that_fails_does_not_wait_for_hashes(tmp_path, source, monkeypatch):
    stopped = []
    monkeypatch.setattr(convert, "model_card", lambda *arguments: stopped.append(arguments[-1].wait(20)))

    def report(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.convert(source, tmp_path / "ours", report=report)
    assert stopped == [True]


def test_a_checksum_stops_on_request(source):
    stop = threading.Event()
    complete = files.sha256_of(source / "model.safetensors", stop)
    assert complete == files.sha256_of(source / "model.safetensors")
    stop.set()
    assert files.sha256_of(source / "model.safetensors", stop) == hashlib.sha256().hexdigest() != complete


def test_what_cannot_be_quantised(source, tmp_path):
    with pytest.raises(ValueError, match="must be multiples of 64: .* has (8|10|12)"):
        convert.convert(source, tmp_path / "ours", quantize=8)
    with pytest.raises(ValueError, match="bits must be one of 4, 8, not 3"):
        convert.convert(source, tmp_path / "ours", quantize=3)
    assert not (tmp_path / "ours").exists()
    wide = write(tmp_path / "wide", wide_tensors(), SETTINGS_OF_WIDE)
    convert.convert(wide, tmp_path / "ours", quantize=8)
    with pytest.raises(ValueError, match="is already quantised to 8 bits: leave out quantize"):
        mt.load(tmp_path / "ours", quantize=4)


def test_float16_is_refused_where_it_overflows(tmp_path, monkeypatch, source):
    monkeypatch.setitem(FAMILIES["bart"].constants, "overflows_float16", True)
    with pytest.raises(ValueError, match="overflow float16: use bfloat16 or float32, or insist with"):
        convert.convert(source, tmp_path / "ours", dtype="float16")
    convert.convert(source, tmp_path / "ours", dtype="float16", allow_overflow=True)
    with pytest.raises(ValueError, match="overflow float16"):
        convert.load(source, dtype="float16")
    arguments = ["convert", str(source), str(tmp_path / "more"), "--dtype", "float16"]
    assert CliRunner().invoke(cli.main, arguments).exit_code == 1
    assert CliRunner().invoke(cli.main, [*arguments, "--allow-overflow"]).exit_code == 0


def test_the_tasks_of_an_old_config(tmp_path):
    tasks = {
        "summarization": {"prefix": "summarize: ", "num_beams": 2, "max_length": 7, "no_repeat_ngram_size": 3},
        "translation_en_to_de": {"prefix": "translate English to German: ", "early_stopping": True},
        "damaged": 5,
    }
    source = write(tmp_path / "tasks", bart_tensors(), SETTINGS_OF_BART | {"task_specific_params": tasks})
    convert.convert(source, tmp_path / "ours")
    for path in (source, tmp_path / "ours"):
        model, _ = mt.load(path)
        assert list(model.tasks) == ["summarization", "translation_en_to_de"]
        first, second = model.tasks.values()
        assert first.source_prefix == "summarize: "
        assert first.search == SearchConfig(beam_size=2, max_tokens=6, no_repeat_ngram_size=3)
        assert second.search == SearchConfig(beam_size=4, max_tokens=8, early_stopping=True)
    facts = CliRunner().invoke(cli.main, ["info", str(tmp_path / "ours")]).output
    assert "summarization: sources begin with 'summarize: '" in facts


def test_a_setting_of_the_user_replaces_what_the_checkpoint_cannot_tell(tmp_path):
    settings = SETTINGS_OF_BART | {"eos_token_id": []}
    source = write(tmp_path / "odd", bart_tensors(), settings)
    with pytest.raises(ValueError, match="eos_id"):
        convert.load(source)
    assert convert.load(source, settings={"eos_id": 2})[0].config.eos_id == 2


def test_leftovers_of_fairseq_are_no_tensors_of_the_model(tmp_path):
    left = {f"model.{side}.version": mx.array([3.0]) for side in ("encoder", "decoder")}
    source = write(tmp_path / "old", bart_tensors() | left)
    assert convert.load(source)[0].config.encoder.num_layers == 1


@pytest.mark.parametrize(
    "settings, least, most",
    [({"min_length": 9, "max_length": 9}, 8, 8), ({"min_new_tokens": 8, "max_new_tokens": 8}, 8, 8)],
)
def test_equal_lengths(settings, least, most):
    search = search_config(settings)
    assert (search.min_tokens, search.max_tokens) == (least, most)


def test_settings_of_strangers():
    assert search_config({"bad_words_ids": [[], [5]]}).suppress_ids == (5,)
    with pytest.raises(ValueError, match="beam_size must be at most 1024, not 100000"):
        search_config({"num_beams": 100000})


def test_a_task_without_a_prefix_has_the_models(tmp_path):
    settings = SETTINGS_OF_BART | {"prefix": " ", "task_specific_params": {"one": {}, "two": {"prefix": "two: "}}}
    tasks = convert.load(write(tmp_path / "tasks", bart_tensors(), settings))[0].tasks
    assert [task.source_prefix for task in tasks.values()] == [" ", "two: "]


def test_what_training_leaves_beside_the_weights_is_no_checkpoint(source):
    (source / "model.safetensors").rename(source / "weights.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        (source / name).write_bytes(b"junk")
    assert mt.load(source)[0].config.dims == DIMS
