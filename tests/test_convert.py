"""Conversion to model folders: what is written, what is refused, and that a failure leaves nothing behind."""

import hashlib
import json

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from tiny_models import SETTINGS, random_model

import mlx_transformer as mt
from mlx_transformer import checkpoint, cli, precision
from mlx_transformer.config import SearchConfig
from mlx_transformer.weights import convert
from mlx_transformer.weights.families import FAMILIES, REFUSED
from mlx_transformer.weights.names import ConversionError, expand
from mlx_transformer.weights.settings import not_covered, search_config

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
    arrays = checkpoint.read_arrays(tmp_path / "ours" / "model.safetensors")
    assert {array.dtype for array in arrays.values()} == {precision.DTYPES[dtype]}
    full = dict(tree_flatten(mt.load(source)[0].parameters()))
    assert all(mx.allclose(arrays[name].astype(mx.float32), full[name], atol=0.02) for name in full)
    assert mt.load(source, dtype=dtype)[0].dtype == precision.DTYPES[dtype]


def test_half_precision_stays_as_it_is(tmp_path):
    source = write(tmp_path / "half", {name: array.astype(mx.float16) for name, array in bart_tensors().items()})
    convert.convert(source, tmp_path / "ours")
    arrays = checkpoint.read_arrays(tmp_path / "ours" / "model.safetensors")
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


def test_an_output_layer_of_its_own_is_found_by_its_numbers(tmp_path):
    tensors = bart_tensors()
    same = write(tmp_path / "same", tensors | {"lm_head.weight": tensors["model.shared.weight"] + 0})
    assert convert.load(same)[0].config.tie_output
    other = write(tmp_path / "other", tensors | {"lm_head.weight": tensors["model.shared.weight"] + 1})
    model, _ = convert.load(other)
    assert not model.config.tie_output and model.config.share_embeddings
    assert mx.array_equal(model.output.weight, tensors["model.shared.weight"] + 1)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_covered_is_refused_by_name(tmp_path, kind):
    source = write(tmp_path / "model", bart_tensors(), {"model_type": kind})
    with pytest.raises(ValueError, match=f"model_type '{kind}' cannot be converted: its|it has"):
        convert.load(source)


def test_unknown_families_and_settings_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="model_type 'gpt2' of config.json is not covered. Families that are: anno"):
        convert.load(write(tmp_path / "gpt2", bart_tensors(), {"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="family must be one of .*, not 'elmo'"):
        convert.load(source, family="elmo")
    with pytest.raises(ValueError, match="'num_head' is no setting of a model"):
        convert.load(source, settings={"num_head": 2})
    with pytest.raises(ValueError, match="activation must be .*, not 'laplace'"):
        convert.load(write(tmp_path / "odd", bart_tensors(), SETTINGS_OF_BART | {"activation_function": "laplace"}))
    with pytest.raises(ValueError, match="lacks the fields|does not tell|num_layers"):
        convert.load(write(tmp_path / "less", bart_tensors(), {"model_type": "bart"}))
    with pytest.raises(ConversionError, match="both mean"):
        convert.load(source, rename={r"\.bias$": ".weight"})


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder_layers": 10**9},
        {"d_model": 2**40},
        {"encoder_ffn_dim": 2**62},
        {"max_position_embeddings": 10**15},
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
    with pytest.raises(ValueError, match="rename must hold regular expressions: '.' is none"):
        convert.load(source, rename={"(": ""})


def test_a_destination_is_replaced_only_when_forced(source, tmp_path):
    convert.convert(source, tmp_path / "ours", dtype="float16")
    before = (tmp_path / "ours" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="is there already: choose another name, or force"):
        convert.convert(source, tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == before
    convert.convert(source, tmp_path / "ours", force=True)
    assert mt.load(tmp_path / "ours")[0].config == mt.load(source)[0].config
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="is no model folder"):
        convert.convert(source, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("after", [1, 7, 40])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_the_old_folder_or_none(source, tmp_path, old, after, error):
    destination = tmp_path / "ours"
    if old:
        checkpoint.save(destination, random_model(SETTINGS["post_norm"]))

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
    assert "not followed: num_beam_groups, do_sample" in caplog.text
    assert not_covered({"top_k": 50, "diversity_penalty": 0.0, "guidance_scale": None}) == []


def test_every_family_names_every_parameter():
    for name, family in FAMILIES.items():
        names = expand(family.names, layers=1)
        for part in ("encoder.layers.0.self_attention.query_proj.weight", "source_embedding.weight", "output.weight"):
            assert part in names, name


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_the_command(source, tmp_path):
    result = run("convert", source, tmp_path / "ours", "--dtype", "float16")
    assert (result.exit_code, result.output) == (0, "")
    assert mt.load(tmp_path / "ours")[0].config.dims == DIMS
    again = run("convert", source, tmp_path / "ours")
    assert again.exit_code == 1 and "is there already" in again.output and len(again.output.splitlines()) == 1
    assert run("convert", source, tmp_path / "ours", "--force", "--set", "norm_eps=1e-6").exit_code == 0
    assert mt.load(tmp_path / "ours")[0].config.norm_eps == 1e-6
    assert run("convert", source, tmp_path / "new", "--set", "norm_eps").exit_code == 2
    missing = run("convert", tmp_path / "nowhere", tmp_path / "new")
    assert missing.exit_code == 1 and "nowhere" in missing.output


def test_info_tells_what_an_unconverted_checkpoint_holds(source):
    facts = json.loads(run("info", source, "--json").output)
    assert (facts["family"], facts["stored_dtype"], facts["config"]["dims"]) == ("bart", ["float32"], DIMS)
    assert "torch checkpoint, bart" in run("info", source).output
