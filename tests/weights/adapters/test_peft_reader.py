"""Adapters of PEFT give the same logits as in PEFT; files that do not fit or lie are refused in one line."""

import json
import time

import mlx.core as mx
import numpy as np
import pytest
from support.bart_files import DIMS, VOCAB, bart_tensors, write_checkpoint
from support.checkpoint_files import Call, pickled
from support.peft_adapters import (
    converted_base,
    edit_json,
    load_in_peft,
    our_logits,
    peft_model,
    their_hidden_states,
    their_logits,
)
from support.tiny_encoders import encoder_model
from support.tiny_families import MODELS, torch_sources

import mlx_transformer as mt
from mlx_transformer.weights import convert
from mlx_transformer.weights.adapters.peft_reader import read_peft_adapter

# Of PEFT, about functions of transformers that it calls, and unusual options.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]
METHODS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "all linear layers": {"target_modules": "all-linear", "use_dora": True, "use_rslora": True},
}
PREFIX = "base_model.model.model."
QUERY = "encoder.layers.0.self_attn.q_proj"
ALL_QUERIES = [QUERY, *(f"decoder.layers.{i}.{kind}_attn.q_proj" for i in range(2) for kind in ("self", "encoder"))]
SAFE, BIN = "adapter_model.safetensors", "adapter_model.bin"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


# Model and options of PEFT.
OPTIONS = {
    "regular expression": ("bart", {"target_modules": r".*decoder.*\.(q_proj|fc1)"}),
    "whole names": ("bart", {"target_modules": ["model.encoder.layers.1.fc1", "k_proj"]}),
    "names of all T5": ("t5-v1.1", {"target_modules": ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]}),
    "names of other T5": ("t5", {"target_modules": ["q", "wi_0", "wi_1"]}),
    "some layers": ("bart", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "fan_in_fan_out": ("bart", {"fan_in_fan_out": True}),
    "ranks": ("t5", {"rank_pattern": {"q": 2, r".*decoder.*\.v": 3}}),
    "scales": ("t5", {"alpha_pattern": {"^decoder.block.0.layer.0.SelfAttention.q": 20, "v": 1}}),
    "ranks of rslora": ("t5", {"rank_pattern": {"q": 1}, "alpha_pattern": {"q": 9}, "use_rslora": True}),
    "other ranks only": ("t5", {"r": 14, "target_modules": ["q", "v"], "rank_pattern": {"q|v": 2}}),
    "norms": ("mbart", {"modules_to_save": ["final_layer_norm", "layernorm_embedding", "layer_norm"]}),
    "positions": ("bart", {"modules_to_save": ["embed_positions"]}),
    "positions without an offset": ("blenderbot", {"modules_to_save": ["embed_positions"]}),
    "relative positions": ("t5", {"modules_to_save": ["relative_attention_bias"]}),
    "relative positions of layers": ("umt5", {"modules_to_save": ["relative_attention_bias"]}),
    "update of relative positions": ("t5", {"r": 2, "target_modules": ["q", "relative_attention_bias"]}),
    "linear layers": ("t5", {"target_modules": ["q"], "modules_to_save": ["wi", "o"]}),
    "keys": ("t5", {"target_modules": ["q"], "modules_to_save": ["Attention.k"]}),
    "keys beside updates of values": ("bart", {"target_modules": ["v_proj"], "modules_to_save": ["k_proj"]}),
    "keys and values": ("bart", {"target_modules": ["q_proj"], "modules_to_save": ["k_proj", "v_proj"]}),
    "output layer": ("t5-untied", {"modules_to_save": ["lm_head"]}),
    "update of the output layer": ("t5-untied", {"target_modules": ["q", "lm_head"]}),
    "dora of the output layer": ("t5-untied", {"target_modules": ["q", "lm_head"], "use_dora": True}),
    "embeddings": ("marian-split", {"modules_to_save": ["model.encoder.embed_tokens"]}),
    "update of embeddings": ("marian-split", {"target_modules": ["q_proj", "model.encoder.embed_tokens"]}),
    "dora of embeddings": (
        "marian-split",
        {"target_modules": ["q_proj", "model.encoder.embed_tokens"], "use_dora": True},
    ),
    "unused embeddings": ("bart", {"modules_to_save": ["shared"]}),
    "update of unused embeddings": ("t5", {"target_modules": ["q", "shared"]}),
}


def check_parity(theirs, base, folder, tolerance):
    """Save their adapter, load it on our base, compare logits, and remove it again."""
    before = our_logits(base, theirs)
    theirs.save_pretrained(folder)
    mt.load_adapter(base, folder)
    expected = their_logits(theirs)
    assert np.abs(expected - before).max() > 1e-3  # the adapter has an effect
    # Float32 rounds relative to the largest numbers: these models have logits up to 10.
    np.testing.assert_array_less(np.abs(our_logits(base, theirs) - expected), tolerance(1e-5) * np.abs(expected).max())
    mt.remove_adapter(base)
    assert (our_logits(base, theirs) == before).all()


@pytest.mark.torch
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_peft(name, tmp_path, tolerance):
    base = converted_base(name, tmp_path / "base")
    for method, options in METHODS.items():
        check_parity(peft_model(name, **options), base, tmp_path / method, tolerance)


@pytest.mark.torch
@pytest.mark.parametrize("case", OPTIONS)
def test_options_of_peft(case, tmp_path, tolerance):
    name, options = OPTIONS[case]
    check_parity(peft_model(name, **options), converted_base(name, tmp_path / "base"), tmp_path / "peft", tolerance)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "saved"),
    [
        *((name, saved) for name in ("bart", "t5") for saved in (["lm_head"], ["embed_tokens", "lm_head"])),
        *((name, ["embed_tokens"]) for name in ("bart", "t5", "t5-untied")),
        ("bart", ["decoder.embed_tokens", "lm_head"]),
    ],
    ids=str,
)
def test_tables_that_the_base_ties_may_differ_with_the_adapter(name, saved, tmp_path, tolerance):
    theirs, base = peft_model(name, modules_to_save=saved), converted_base(name, tmp_path / "base")
    check_parity(theirs, base, tmp_path / "adapter", tolerance)
    mt.load_adapter(base, tmp_path / "adapter")
    mt.save_peft_adapter(tmp_path / "again", base)
    again = their_logits(load_in_peft(name, tmp_path / "again"))
    np.testing.assert_array_less(np.abs(again - their_logits(theirs)), tolerance(1e-5) * np.abs(again).max())
    mt.fuse_adapter(base)
    mt.save(tmp_path / "fused", base)
    fused = our_logits(mt.load_model(tmp_path / "fused"), theirs)
    np.testing.assert_array_less(np.abs(fused - again), tolerance(1e-4) * np.abs(again).max())


@pytest.mark.torch
def test_tables_that_the_base_ties_are_stored_once_if_they_are_equal(tmp_path, tolerance):
    theirs = peft_model("t5", modules_to_save=["embed_tokens", "lm_head"])
    tables = [value for key, value in theirs.named_parameters() if "modules_to_save" in key]
    assert len(tables) == 3
    for table in tables:
        table.data.copy_(tables[0].data)
    base = converted_base("t5", tmp_path / "base")
    check_parity(theirs, base, tmp_path / "tied", tolerance)
    mt.load_adapter(base, tmp_path / "tied")
    assert base.adapter.config.modules_to_save == ("source_embedding",) and "output" not in base


@pytest.mark.torch
@pytest.mark.parametrize("name", ["t5", "umt5", "m2m100", "bart"])
def test_hidden_states_of_an_encoder_alone(name, tmp_path, tolerance):
    encoder = encoder_model(name)
    encoder.save_pretrained(tmp_path / "encoder")
    options = {"target_modules": ["q", "wo", "v_proj", "fc1", "embed_tokens"], "modules_to_save": ["final_layer_norm"]}
    theirs = peft_model(encoder, **options)
    theirs.save_pretrained(tmp_path / "peft")
    expected, is_token = their_hidden_states(theirs), torch_sources(encoder) != encoder.config.pad_token_id
    base = convert.load(tmp_path / "encoder")[0]

    def largest_difference():
        hidden = np.array(base.encode_hidden(mx.array(torch_sources(encoder))))
        return np.abs(hidden - expected)[is_token].max() / np.abs(expected).max()

    assert largest_difference() > 1e-3
    mt.load_adapter(base, tmp_path / "peft")
    assert largest_difference() < tolerance(1e-5)
    mt.save_peft_adapter(tmp_path / "again", base)
    mt.load_adapter(base, tmp_path / "again")
    assert largest_difference() < tolerance(1e-5)
    again = pytest.importorskip("peft").PeftModel.from_pretrained(encoder_model(name), tmp_path / "again").eval()
    np.testing.assert_allclose(their_hidden_states(again), expected, atol=tolerance(1e-5) * np.abs(expected).max())


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["IA3", "LoHa", "LoKr", "AdaLora", "Vera", "PrefixTuning", "PromptTuning"])
def test_other_methods_are_refused_by_name(kind, tmp_path):
    peft = pytest.importorskip("peft")
    prompts = {"PrefixTuning": {"num_virtual_tokens": 2}, "PromptTuning": {"num_virtual_tokens": 2}}
    options = {"IA3": {"feedforward_modules": []}, "AdaLora": {"total_step": 1}} | prompts
    options.setdefault(kind, {})
    if kind not in prompts:
        options[kind]["target_modules"] = ["q_proj"]
    config = vars(peft)[f"{kind}Config"](**options[kind], task_type="SEQ_2_SEQ_LM")
    config.save_pretrained(tmp_path / "adapter")
    remedy = "train a LoRA instead" if kind in prompts else "merge it in PEFT by merge_and_unload"
    with pytest.raises(ValueError, match=f"must be of peft_type LORA, not '.*'; {remedy}"):
        mt.load_adapter(converted_base("bart", tmp_path / "base"), tmp_path / "adapter")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny base with one layer in the encoder and two in the decoder."""
    return convert.load(write_checkpoint(tmp_path_factory.mktemp("base") / "bart", bart_tensors()))[0]


def updates(rank=2, modules=(QUERY,), width=DIMS):
    """Return updates of linear layers under the names of PEFT."""
    rng = np.random.default_rng(0)
    shapes = {f"{module}.lora_A.weight": (rank, width) for module in modules}
    shapes |= {f"{module}.lora_B.weight": (width, rank) for module in modules}
    return {PREFIX + name: mx.array(rng.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}


def write_adapter(folder, tensors=None, **config):
    """Write an adapter of the query projection of the encoder."""
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), updates() if tensors is None else tensors)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    return folder


def test_bin_files_are_read_without_torch_and_without_running_code(tmp_path, base):
    torch = pytest.importorskip("torch")
    folder = write_adapter(tmp_path / "adapter")
    config, arrays = read_peft_adapter(folder, base)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in updates().items()}, folder / BIN)
    other, loaded = read_peft_adapter(folder, base)
    assert other == config and arrays.keys() == loaded.keys()
    assert all(mx.array_equal(arrays[name], loaded[name]) for name in arrays)
    (folder / BIN).write_bytes(pickled(Call("os", "system", f"touch {tmp_path / 'canary'}")))
    with pytest.raises(ValueError, match="adapter_model.bin: a pickle must"):
        read_peft_adapter(folder, base)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("rslora", [False, True])
def test_names_and_values_of_an_adapter(rslora, tmp_path, base):
    options = {"use_rslora": rslora, "lora_dropout": 0.1, "base_model_name_or_path": "a/b"}
    folder = write_adapter(tmp_path / "adapter", r=2, lora_alpha=3, **options)
    config, arrays = read_peft_adapter(folder, base)
    name = "encoder.layers.0.self_attention.query_proj"
    assert config == mt.AdapterConfig(rank=2, alpha=3.0, dropout=0.1, targets=(name,), rslora=rslora, base_model="a/b")
    assert mx.array_equal(arrays[f"{name}.lora_a"].T, updates()[f"{PREFIX}{QUERY}.lora_A.weight"])
    assert mx.array_equal(arrays[f"{name}.lora_b"].T, updates()[f"{PREFIX}{QUERY}.lora_B.weight"])
    assert len(arrays) == 2


def test_both_spellings_of_magnitudes(tmp_path, base):
    for name in ("lora_magnitude_vector", "lora_magnitude_vector.weight"):
        tensors = updates() | {f"{PREFIX}{QUERY}.{name}": mx.arange(1.0, DIMS + 1)}
        config, arrays = read_peft_adapter(write_adapter(tmp_path / name, tensors, use_dora=True), base)
        assert config.dora
        assert mx.array_equal(arrays["encoder.layers.0.self_attention.query_proj.m"], mx.arange(1.0, DIMS + 1))


def test_an_adapter_replaces_one_that_changed_the_embeddings(tmp_path, base):
    """Its updates are added to the base, not to what the other adapter has made of it."""
    table = {f"{PREFIX}encoder.layernorm_embedding.weight": mx.full(DIMS, 3.0)}
    first = write_adapter(tmp_path / "first", updates() | table)
    mt.load_adapter(base, first)
    second = write_adapter(tmp_path / "second", {f"{PREFIX}encoder.layernorm_embedding.bias": mx.ones(DIMS)})
    edit_json(second / "adapter_config.json", target_modules=[])
    mt.load_adapter(base, second)
    weight = base.encoder.embedding_norm.weight
    mt.remove_adapter(base)
    assert mx.array_equal(weight, base.encoder.embedding_norm.weight) and not mx.array_equal(weight, mx.full(DIMS, 3.0))


def without(leaf):
    return {name: array for name, array in updates().items() if not name.endswith(leaf)}


A, B = f"{PREFIX}{QUERY}.lora_A.weight", f"{PREFIX}{QUERY}.lora_B.weight"
MANY = [f"decoder.layers.{i}.self_attn.q_proj" for i in range(3)]
# Part of the error -> tensors, changes of the configuration.
DAMAGES = {
    "must have lora_A.weight and lora_B.weight, not lora_A.weight": (without("lora_B.weight"), {}),
    "must have lora_A.weight and lora_B.weight, not lora_B.weight": (without("lora_A.weight"), {}),
    "and lora_magnitude_vector, not lora_A.weight and lora_B.weight": (None, {"use_dora": True}),
    "not lora_A.weight and lora_B.weight and lora_magnitude_vector": (
        updates() | {f"{PREFIX}{QUERY}.lora_magnitude_vector": mx.ones(DIMS)},
        {},
    ),
    "must have rank 8 as in adapter_config.json, not": (None, {"r": 8}),
    "must have rank 2 as in adapter_config.json, not (1, 8)": (updates() | {A: mx.ones((1, DIMS))}, {}),
    "must have rank 2 as in adapter_config.json, not (2,)": (updates() | {A: mx.ones(2), B: mx.ones(2)}, {}),
    "a rank must be at most a layer's widths, 9 is above": (updates(9), {"r": 9}),
    "lora_a must have the shape (8, 2)": (updates(width=6), {}),
    "must be finite": (updates() | {A: mx.full((2, DIMS), mx.nan)}, {}),
    "lora_b must be finite": (None, {"lora_alpha": 1e-30, "alpha_pattern": {"q_proj": 1e30}}),
    "and floating-point numbers, not (8, 2) of int32": (
        updates() | {A: mx.ones((2, 8), mx.int32)},
        {},
    ),
    "modules of its model only, not base_model.model.model.decoder.layers.2.self": (updates(modules=MANY), {}),
    "modules of its model only, not weights": ({"weights": mx.ones(1)}, {}),
    "modules of its model only, not base_model.model.lora_A.weight": (
        {"base_model.model.lora_A.weight": mx.ones(1)},
        {},
    ),
    "tensors for all target_modules, decoder.layers.1.self_attn.q_proj has none": (
        updates(modules=[name for name in (QUERY, *ALL_QUERIES) if name != MANY[1]]),
        {},
    ),
    "an update of model.encoder.layernorm_embedding is not": (
        updates(modules=["encoder.layernorm_embedding"]),
        {"target_modules": []},
    ),
    "source_embedding.weight must have the shape (11, 8) of the model, not (12, 8)": (
        {f"{PREFIX}encoder.embed_tokens.weight": mx.ones((VOCAB + 1, DIMS))},
        {"target_modules": []},
    ),
    "on this model: 1 missing (encoder.layers.0.self_attention.key_proj.bias)": (
        {f"{PREFIX}encoder.layers.0.self_attn.k_proj.weight": mx.ones((DIMS, DIMS))},
        {"target_modules": []},
    ),
    "encoder.embedding_norm.weight must have the shape (8,)": (
        {f"{PREFIX}encoder.layernorm_embedding.weight": mx.ones(9)},
        {"target_modules": []},
    ),
    "must have a peft_type": (None, {"peft_type": None}),
    "peft_type LORA, not 'X'": (None, {"peft_type": "X"}),
    "r must be more than 0, not -1": (None, {"r": -1}),
    "r must be int, not '8'": (None, {"r": "8"}),
    "lora_alpha must be more than 0, not 0": (None, {"lora_alpha": 0}),
    "lora_dropout must be at least 0 and below 1": (None, {"lora_dropout": 2.0}),
    "rank_pattern must have ranks above 0, not 0": (None, {"rank_pattern": {"q_proj": 0}}),
    "rank_pattern must be dict[str, int]": (None, {"rank_pattern": {"q_proj": [1]}}),
    "at most 2000 patterns": (None, {"alpha_pattern": {f"q{i}": 1 for i in range(2001)}}),
    "patterns must be regular expressions: '(' is not": (None, {"alpha_pattern": {"(": 1}}),
    "3 repetitions, none of a group, not '(a+)+$'": (None, {"alpha_pattern": {"(a+)+$": 1}}),
    "3 repetitions, none of a group, not '.*.*.*.*x'": (None, {"rank_pattern": {".*.*.*.*x": 1}}),
    "LoRA with lora_bias is not supported; merge it": (None, {"lora_bias": True}),
    "LoRA with trainable_token_indices": (None, {"trainable_token_indices": [1]}),
    "LoRA with layer_replication": (None, {"layer_replication": [[0, 1]]}),
    "bias must be \"none\", 'lora_only' is not supported; merge it": (None, {"bias": "lora_only"}),
    "init_lora_weights 'pissa' changes the base model; save it": (None, {"init_lora_weights": "pissa"}),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_what_does_not_fit_is_an_error_of_one_line(message, tmp_path, base):
    tensors, changes = DAMAGES[message]
    folder = write_adapter(tmp_path / "adapter", tensors, **changes)
    with pytest.raises(ValueError) as caught:
        mt.load_adapter(base, folder)
    assert message in str(caught.value) and str(folder) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(folder))
    assert base.adapter is None


FILES = {
    "must be JSON": lambda folder: (folder / "adapter_config.json").write_text("{"),
    "must have a peft_type": lambda folder: (folder / "adapter_config.json").write_text("[]"),
    "has an adapter_config.json, but": lambda folder: (folder / "adapter_config.json").unlink(),
    "must have adapter_model.safetensors or adapter_model.bin, but": lambda folder: (folder / SAFE).unlink(),
    "adapter_model.safetensors: ": lambda folder: (folder / SAFE).write_bytes(b"x" * 100),
    "git-lfs": lambda folder: (folder / SAFE).write_text("version https://git-lfs.github.com/spec/v1"),
}


@pytest.mark.parametrize("message", FILES)
def test_damaged_and_missing_files_are_errors(message, tmp_path, base):
    folder = write_adapter(tmp_path / "adapter")
    FILES[message](folder)
    with pytest.raises((ValueError, OSError), match=message):
        mt.load_adapter(base, folder)


def test_a_file_cannot_claim_more_than_it_has(tmp_path, base):
    """A product of two small factors that is huge is refused before it is computed."""
    wide = {"lora_embedding_A": mx.ones((1, 2**20)), "lora_embedding_B": mx.ones((2**20, 1))}
    tensors = {f"{PREFIX}encoder.embed_tokens.{name}": array for name, array in wide.items()}
    folder = write_adapter(tmp_path / "adapter", tensors, r=1)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    with pytest.raises(ValueError, match="must have the shape"):
        mt.load_adapter(base, folder)
    assert mx.get_peak_memory() - before < 2**26


def test_patterns_take_no_longer_than_a_few_seconds(tmp_path, base):
    tensors = updates(modules=ALL_QUERIES)
    patterns = {f"[a-z_.0-9]*[a-z._0-9]*[a-z0-9_.]*{i}": 1 for i in range(1000)}
    folder = write_adapter(tmp_path / "adapter", tensors, alpha_pattern=patterns)
    start = time.process_time()
    mt.load_adapter(base, folder)
    mt.remove_adapter(base)
    assert time.process_time() - start < 20
