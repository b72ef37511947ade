"""Of several state dicts in a file, the model's plain weights are read, or those that are asked for."""

import mlx.core as mx
import pytest
from support.checkpoint_files import Call, numbers, tensor, zip_file

from mlx_transformer.weights.formats.checkpoint import CheckpointError, read_checkpoint

STORED = {"0": numbers()}
NAMES = ["encoder.layers.0.norm.weight", "decoder.layers.0.norm.weight"]


def state(row=0, prefix="", names=NAMES):
    """Return a state dict; its first value is 3 in row 1, 0 in row 0."""
    return {prefix + name: tensor(shape=(3,), offset=3 * row, numel=6) for name in names}


def optimizer():
    return {"state": {0: {"step": 3, "exp_avg": tensor(), "exp_avg_sq": tensor()}}, "param_groups": [{"lr": 0.1}]}


def module(tensors):
    return Call("my", "Model", (), {"_parameters": tensors, "_buffers": {}, "_modules": {}})


def read(tmp_path, root, weights=None):
    """Return the tensors' names, the first value of the first one, and the keys of the state dicts not chosen."""
    path = tmp_path / "model.pt"
    path.write_bytes(zip_file(root, STORED))
    with read_checkpoint(path, weights) as checkpoint:
        names = list(checkpoint.tensors)
        return names, int(checkpoint.load(names[0]).flatten()[0].item()), checkpoint.other_weights


# Layout -> the object in the file, and the state dicts that are not chosen. The plain weights are those of row 0.
LAYOUTS = {
    "model and ema": ({"ema": state(1), "model": state()}, ["ema"]),
    "timm": ({"state_dict": state(), "state_dict_ema": state(1), "arch": "big"}, ["state_dict_ema"]),
    "model_ema": ({"model": state(), "model_ema": state(1)}, ["model_ema"]),
    "three state dicts": (
        {"optimizer_state_dict": optimizer(), "ema_state_dict": state(1), "model_state_dict": state()},
        ["ema_state_dict"],
    ),
    "any key": ({"my_transformer": state(), "epoch": 3, "opt": optimizer()}, []),
    "the optimal weights": ({"optimized_model": state(), "optims": optimizer()}, []),
    "a generator": ({"criterion": state(1, names=NAMES[:1]), "G": state(), "D_optim": optimizer()}, []),
    "a loss of the same size": ({"loss_fn": state(1), "G": state()}, []),
    "torch_ema": (
        {"model": state(), "ema": {"decay": 0.9, "shadow_params": [tensor(), tensor()]}},
        ["ema.shadow_params (tensors without names)"],
    ),
    "Lightning": (
        {
            "callbacks": {"EMA{'decay': 0.99}": {"ema_weights": state(1)}},
            "state_dict": state(),
            "optimizer_states": [optimizer()],
            "hyper_parameters": {"dim": 3},
        },
        ["callbacks.EMA{'decay': 0.99}.ema_weights"],
    ),
    "fairseq": (
        {"model": state(), "last_optimizer_state": optimizer(), "extra_state": {"ema": state(1)}},
        ["extra_state.ema"],
    ),
    "weights": ({"weights": state(), "config": {"dim": 3}}, []),
    "params": ({"params": state(), "step": 3}, []),
    "nested": ({"checkpoint": {"model": state(), "ema": state(1)}}, ["checkpoint.ema"]),
    "a list": ([state(), optimizer()], []),
    "a tuple": ((state(), optimizer(), 3), []),
    "a module": ({"net": module(state()), "ema_net": module(state(1))}, ["ema_net"]),
    "an object": (Call("my", "Trainer", (), {"model": module(state()), "step": 3}), []),
    "two models": ({"fr-en": state(), "en-fr": state(1)}, ["en-fr"]),
    "averaged only": ({"ema": {"shadow": state()}}, []),
    "models in a list": ({"models": [state(), state(1)]}, ["models.1"]),
    "a discriminator under the same key": (
        {"d": {"state_dict": state(1, names=NAMES[:1])}, "g": {"state_dict": state()}},
        ["d.state_dict"],
    ),
    "moments of an optimizer of one's own": (
        {"adam": {"exp_avg": state(1), "exp_avg_sq": state(1)}, "mine": state()},
        [],
    ),
    "an optimizer by names": (
        {"trained": state(), "optim": {name: {"exp_avg": tensor(), "exp_avg_sq": tensor()} for name in NAMES}},
        [],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_weights_are_read(tmp_path, layout):
    root, others = LAYOUTS[layout]
    assert read(tmp_path, root) == (NAMES, 0, others)


def test_little_under_a_usual_key_is_not_the_model(tmp_path):
    many = {f"layers.{number}": tensor() for number in range(20)}
    names = read(tmp_path, {"params": {"rate": tensor()}, "mine": many})[0]
    assert names == ["rate", *(f"mine.{name}" for name in many)]


@pytest.mark.parametrize(
    "layout, key",
    [
        ("model and ema", "ema"),
        ("timm", "state_dict_ema"),
        ("three state dicts", "ema_state_dict"),
        ("Lightning", "callbacks.EMA{'decay': 0.99}.ema_weights"),
        ("Lightning", "callbacks"),
        ("fairseq", "extra_state.ema"),
        ("nested", "checkpoint.ema"),
        ("a module", "ema_net"),
        ("two models", "en-fr"),
        ("a loss of the same size", "loss_fn"),
    ],
)
def test_other_weights_are_read_by_their_key(tmp_path, layout, key):
    names, value, others = read(tmp_path, LAYOUTS[layout][0], key)
    assert (names, value) == (NAMES, 1 * 3)
    assert key not in others and len(others) == 1


@pytest.mark.parametrize("prefix", ["ema_model.", "ema_model"])
def test_a_prefix_of_names_chooses_weights(tmp_path, prefix):
    """As ema_pytorch saves them."""
    root = {"initted": tensor(shape=(1,), numel=6), "step": tensor(shape=(1,), numel=6)}
    root |= state(0, "online_model.") | state(1, "ema_model.")
    assert read(tmp_path, root, prefix)[:2] == (NAMES, 3)
    assert read(tmp_path, {"state_dict": root}, prefix)[:2] == (NAMES, 3)
    wrapped = {f"module.{name}": value for name, value in root.items()}
    assert read(tmp_path, wrapped, prefix)[:2] == (NAMES, 3)
    assert len(read(tmp_path, root)[0]) == 6


def test_a_prefix_chooses_weights_in_shards(tmp_path):
    for number, name in enumerate(NAMES):
        mx.save_safetensors(str(tmp_path / f"{number}.safetensors"), {name: mx.zeros(3), f"ema.{name}": mx.ones(3)})
    shards = {
        f"{prefix}{name}": f"{number}.safetensors" for number, name in enumerate(NAMES) for prefix in ("", "ema.")
    }
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(str({"weight_map": shards}).replace("'", '"'))
    with read_checkpoint(tmp_path, "ema") as checkpoint:
        assert sorted(checkpoint.tensors) == sorted(NAMES)
        assert checkpoint.load(NAMES[0]).tolist() == [1, 1, 1]


@pytest.mark.parametrize("suffix", ["", "_state_dict", "_state", "_model_state_dict"])
@pytest.mark.parametrize("sides", [("encoder", "decoder"), ("enc", "dec")])
def test_state_dicts_of_the_stacks_are_one_model(tmp_path, suffix, sides):
    """Their tensors may have the same names and shapes."""
    parts = [{"norm.weight": tensor(), "layers.0.weight": tensor()} for _ in sides]
    root = {f"{side}{suffix}": part for side, part in zip(sides, parts, strict=True)}
    root |= {"src_embed": {"weight": tensor()}, "optimizer": optimizer()}
    names = ["norm.weight", "layers.0.weight"]
    expected = [f"{side}.{name}" for side in ("encoder", "decoder") for name in names] + ["src_embed.weight"]
    assert read(tmp_path, root)[0] == expected
    assert read(tmp_path, {"checkpoint": root})[0] == expected
    assert read(tmp_path, {"model": root, "ema": root | {}}, "ema")[0] == expected


def test_stacks_with_their_own_prefix_get_no_second_one(tmp_path):
    root = {"encoder": state(names=NAMES[:1]), "decoder": state(names=NAMES[1:])}
    assert read(tmp_path, root)[0] == NAMES


def test_the_state_dict_of_one_stack_keeps_its_name(tmp_path):
    assert read(tmp_path, {"encoder": {"norm.weight": tensor()}, "epoch": 1})[0] == ["encoder.norm.weight"]


def test_parts_beside_a_state_dict_belong_to_it(tmp_path):
    root = {"transformer": state(), "out": {"weight": tensor()}}
    assert read(tmp_path, root)[0] == [*(f"transformer.{name}" for name in NAMES), "out.weight"]


def test_settings_around_nested_weights_are_kept(tmp_path):
    path = tmp_path / "model.pt"
    root = {"epoch": 3, "checkpoint": {"args": {"heads": 2}, "epoch": 2, "model": {**state(), "version": "x"}}}
    path.write_bytes(zip_file(root, STORED))
    with read_checkpoint(path) as checkpoint:
        assert checkpoint.extras == {"version": "x", "args": {"heads": 2}, "epoch": 3}


def test_unsupported_tensors_elsewhere_do_not_matter(tmp_path):
    sparse = Call("torch._utils", "_rebuild_sparse_tensor", (1,))
    assert read(tmp_path, {"model": state(), "ema": {"a": sparse}})[0] == NAMES


@pytest.mark.parametrize(
    "root, weights, message",
    [
        (
            {"model": state(), "ema": state(1)},
            "swa",
            "weights must be the key of a state dict or a prefix of names in the file, not 'swa'; choose one of "
            "'model', 'ema', 'encoder.', 'decoder.'.",
        ),
        ({"a": tensor()}, "ema", "not 'ema'; leave them out."),
        (
            {"model": state(), "ema": {"shadow_params": [tensor(), tensor()]}},
            "ema",
            "tensors must have names, 'ema.shadow_params' is a list; choose other weights.",
        ),
    ],
)
def test_wrong_weights_are_errors_that_list_the_right_ones(tmp_path, root, weights, message):
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, root, weights)
    assert str(caught.value).endswith(message)
    assert str(caught.value).startswith(str(tmp_path / "model.pt"))


@pytest.mark.torch
def test_averaged_models_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Transformer(8, 2, 1, 1, 8, batch_first=True)
    average = torch.optim.swa_utils.AveragedModel(model)
    adam = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    adam.step()
    torch.save({"swa": average.state_dict(), "net": model.state_dict(), "adam": adam.state_dict()}, tmp_path / "a.pt")
    with read_checkpoint(tmp_path / "a.pt") as checkpoint:
        assert list(checkpoint.tensors) == list(model.state_dict()) and checkpoint.other_weights == ["swa"]
    with read_checkpoint(tmp_path / "a.pt", "swa") as checkpoint:
        assert list(checkpoint.tensors) == list(average.state_dict()) and checkpoint.other_weights == ["net"]
    torch.save(average.state_dict(), tmp_path / "b.pt")
    with read_checkpoint(tmp_path / "b.pt", "module.") as checkpoint:
        assert list(checkpoint.tensors) == list(model.state_dict())
