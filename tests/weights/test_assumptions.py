"""Facts come from the settings beside the weights; what nothing shows is reported, with the option that changes it."""

import json
import logging

import pytest
from support.own_models import OWN_CONFIG, own_tensors, with_settings, write_tensors, write_torch

from mlx_transformer.weights import convert
from mlx_transformer.weights.families.options import OWN_DEFAULTS

KEYS = ("config", "cfg", "args", "hparams", "hyper_parameters", "hyperparams", "model_args", "settings", "opt")
FACTS = {"nhead": 4, "norm_first": True, "activation": "gelu", "pad_idx": 5, "trg_sos_idx": 6, "eos_id": 7}


def plan(path, **options):
    return convert.convert(path, dry_run=True, **options)


def check_facts(config):
    assert (config.encoder.num_heads, config.decoder.num_heads, config.activation) == (4, 4, "gelu")
    assert config.encoder.norm_first and config.decoder.norm_first
    assert (config.pad_id, config.start_id, config.eos_id) == (5, 6, 7)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "nest", [lambda facts: facts, lambda facts: {"model": facts}, lambda facts: {"a": {"b": facts}}]
)
def test_settings_in_the_file_are_used(tmp_path, key, nest):
    stored = nest(FACTS | {"model_type": "mine"}) | {"lr": 1e-4, "model_type": "bart"}
    report = plan(write_torch(tmp_path / "mine.pt", own_tensors(), **{key: stored}))
    check_facts(report.config)
    assert report.family == "torch"  # no model_type of a training program decides
    assert {item.setting for item in report.assumptions} == {"norm_eps", "scale_embeddings"}


def test_settings_at_the_top_of_the_file_are_used(tmp_path):
    check_facts(plan(write_torch(tmp_path / "mine.pt", own_tensors(), epoch=3, **FACTS)).config)


@pytest.mark.parametrize("name", ["config.json", "args.json", "hparams.json", "hparams.yaml", "config.yaml"])
def test_settings_in_a_file_beside_the_weights_are_used(tmp_path, name):
    path = write_tensors(tmp_path / "mine.safetensors", own_tensors())
    (tmp_path / name).write_text(json.dumps({"model": FACTS}))  # JSON is YAML, too
    check_facts(plan(path).config)


def test_settings_in_the_file_take_precedence_to_those_beside_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"nhead": 8, "activation": "gelu"}))
    config = plan(write_torch(tmp_path / "mine.pt", own_tensors(), args={"nhead": 2})).config
    assert (config.encoder.num_heads, config.activation) == (2, "gelu")


def test_each_stack_may_have_its_own_heads(tmp_path):
    args = {"enc_heads": 2, "dec_heads": 8, "n_heads": 4}
    config = plan(write_torch(tmp_path / "mine.pt", own_tensors(), args=args)).config
    assert (config.encoder.num_heads, config.decoder.num_heads) == (2, 8)


def test_everything_that_a_file_does_not_show_is_reported(tmp_path):
    report = plan(write_tensors(tmp_path / "mine.safetensors", own_tensors()))
    assumed = {item.setting: item.value for item in report.assumptions}
    assert assumed == {name: value for name, value in OWN_DEFAULTS.items() if name != "max_length"}
    for name, value in assumed.items():
        fields = vars(report.config) if name in vars(report.config) else vars(report.config.decoder)
        assert fields[name] == value
    assert all(f"convert --set {item.setting}=" in item.change for item in report.assumptions)
    assert all("torch.nn.Transformer" in item.reason for item in report.assumptions)


@pytest.mark.parametrize("name", [name for name in OWN_DEFAULTS if name != "max_length"])
def test_a_setting_that_is_given_is_no_assumption(tmp_path, name):
    path = write_tensors(tmp_path / "mine.safetensors", own_tensors())
    value = {"activation": "silu", "norm_eps": 1e-3, "pad_id": 9, "start_id": 9, "eos_id": 9}.get(name, 4)
    value = not OWN_DEFAULTS[name] if isinstance(OWN_DEFAULTS[name], bool) else value
    report = plan(path, settings={name: value})
    assert name not in {item.setting for item in report.assumptions}


def test_positions_without_a_table_are_an_assumption(tmp_path):
    tensors = {name: array for name, array in own_tensors().items() if "positional" not in name}
    path = write_tensors(tmp_path / "mine.safetensors", tensors)
    assumed = {item.setting: item.value for item in plan(path).assumptions}
    assert assumed["encoder.positions"] == assumed["decoder.positions"] == "sinusoidal"
    assert assumed["max_length"] == 512
    config = plan(path, settings={"encoder.positions": "none", "decoder.positions": "none"}).config
    assert config.encoder.positions == config.decoder.positions == "none"


def test_loading_warns_of_assumptions_and_a_complete_file_does_not(tmp_path, caplog):
    path = write_tensors(tmp_path / "mine.safetensors", own_tensors())
    with caplog.at_level(logging.WARNING):
        convert.load(path)
    (record,) = caplog.records
    assert "does not show it: num_heads 8, norm_first False" in record.getMessage()
    caplog.clear()
    model, _ = convert.load(path, settings=with_settings(**{n: OWN_DEFAULTS[n] for n in UNSHOWN}))
    assert not caplog.records and model.config == OWN_CONFIG


UNSHOWN = ("norm_first", "norm_eps", "activation", "scale_embeddings")


@pytest.mark.parametrize(
    "stored",
    [
        {"h": 16, "d_model": 16},
        {"h": 64},
        {"kv_heads": 4, "audio_heads": 2, "cross_attention_heads": 4},
        {"output_activation": "gelu", "final_norm_first": True},
        {"start_idx": 0, "end_idx": 12, "data_start_index": 5},
        {"output": {"activation": "gelu"}, "audio": {"heads": 4}, "data": {"end_id": 9}},
        {"text": {"heads": 4}, "picture": {"heads": 2}},
    ],
    ids=str,
)
def test_settings_of_something_else_are_not_read(tmp_path, stored):
    report = plan(write_torch(tmp_path / "mine.pt", own_tensors(), args=stored))
    assert {item.setting for item in report.assumptions} == set(OWN_DEFAULTS) - {"max_length"}


@pytest.mark.parametrize(
    "stored, expected",
    [
        ({"h": 4}, (4, 4)),
        ({"nh": "2"}, (2, 2)),
        ({"encoder": {"heads": 2}, "decoder": {"heads": 4}}, (2, 4)),
        ({"encoder": {"h": 2}, "decoder": {"h": 4}}, (2, 4)),
        ({"net": {"enc": {"n_heads": 2}, "dec": {"n_heads": 8}}}, (2, 8)),
    ],
    ids=str,
)
def test_heads_are_read_in_all_spellings(tmp_path, stored, expected):
    config = plan(write_torch(tmp_path / "mine.pt", own_tensors(), args=stored)).config
    assert (config.encoder.num_heads, config.decoder.num_heads) == expected


@pytest.mark.parametrize("name", ["GELU", "torch.nn.GELU", "nn.functional.gelu"])
def test_values_are_read_as_people_write_them(tmp_path, name):
    stored = {"activation": name, "layer_norm_eps": "1e-6", "pad_idx": "4"}
    config = plan(write_torch(tmp_path / "mine.pt", own_tensors(), args=stored)).config
    assert (config.activation, config.norm_eps, config.pad_id) == ("gelu", 1e-6, 4)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_pickled_module_holds_its_settings(tmp_path):
    torch = pytest.importorskip("torch")
    parts = {
        "core": torch.nn.Transformer(
            16, 4, 1, 1, 24, batch_first=True, norm_first=True, activation="gelu", layer_norm_eps=1e-3
        ),
        "src_tok_emb": torch.nn.Embedding(19, 16, padding_idx=5),
        "tgt_tok_emb": torch.nn.Embedding(17, 16, padding_idx=5),
        "generator": torch.nn.Linear(16, 17),
    }
    torch.save(torch.nn.ModuleDict(parts), tmp_path / "whole.pt")
    report = plan(tmp_path / "whole.pt")
    config = report.config
    assert (config.encoder.num_heads, config.decoder.num_heads, config.norm_eps, config.pad_id) == (4, 4, 1e-3, 5)
    assert config.encoder.norm_first and config.decoder.norm_first and config.activation == "gelu"
    parts["core"].decoder.layers[0].self_attn.num_heads = parts["core"].decoder.layers[0].multihead_attn.num_heads = 2
    torch.save(torch.nn.ModuleDict(parts), tmp_path / "whole.pt")
    config = plan(tmp_path / "whole.pt").config
    assert (config.encoder.num_heads, config.decoder.num_heads) == (4, 2)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["h", "nh", "heads", "num_attention_heads"])
def test_a_pickled_module_of_ones_own_holds_its_heads(tmp_path, name):
    torch = pytest.importorskip("torch")
    core = torch.nn.Transformer(16, 4, 1, 1, 24, batch_first=True)
    del core.nhead
    for module in core.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            del module.num_heads
            setattr(module, name, 2)
    tables = {"src_tok_emb": torch.nn.Embedding(19, 16), "tgt_tok_emb": torch.nn.Embedding(17, 16)}
    torch.save(torch.nn.ModuleDict({"core": core, **tables, "generator": torch.nn.Linear(16, 17)}), tmp_path / "w.pt")
    config = plan(tmp_path / "w.pt").config
    assert (config.encoder.num_heads, config.decoder.num_heads) == (2, 2)
