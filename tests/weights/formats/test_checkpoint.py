"""Checkpoints of every format are read with their values, names and settings, from files by torch and by hand."""

import argparse
import collections
import itertools
import json
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile

import mlx.core as mx
import numpy as np
import pytest
from support.checkpoint_files import (
    STORAGES,
    Call,
    Name,
    Pid,
    legacy_file,
    numbers,
    opcodes,
    safetensors_file,
    tensor,
    zip_file,
)
from support.peak_memory import growth

from mlx_transformer.weights.formats.checkpoint import CheckpointError, PickledObject, read_checkpoint, to_plain
from mlx_transformer.weights.formats.containers import SAFETENSORS_DTYPES
from mlx_transformer.weights.formats.tensors import DTYPES, FLOAT8, float8_values

NARROWED = {"float64": "float32", "complex128": "complex64"} | dict.fromkeys(FLOAT8, "float32")
KINDS = ("zip", "deflated", "legacy")


def write(path, content):
    path.write_bytes(content)
    return path


def make(kind, root, storages, itemsize=4):
    if kind == "legacy":
        return legacy_file(root, storages, itemsize=itemsize)
    method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
    return zip_file(root, storages, method=method)


def load_all(path):
    with read_checkpoint(path) as checkpoint:
        return {name: np.array(checkpoint.load(name)) for name in checkpoint.tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_strides_and_shared_storages(tmp_path, kind):
    data = np.arange(12, dtype="<f4")
    root = {
        "whole": tensor(shape=(3, 4)),
        "same": tensor(shape=(3, 4)),
        "transposed": tensor(shape=(4, 3), strides=(1, 4), numel=12),
        "square": tensor(shape=(3, 3), numel=12),
        "turned": tensor(shape=(3, 3), strides=(1, 3), numel=12),
        "row": tensor(shape=(4,), offset=8, numel=12),
        "expanded": tensor(shape=(5, 4), strides=(0, 1), numel=12),
        "windows": tensor(shape=(3, 4), strides=(2, 1), offset=1, numel=12),
        "scalar": tensor(shape=(), strides=(), offset=7, numel=12),
        "empty": tensor("1", shape=(0, 3), numel=0),
        "steps": 7,
    }
    path = write(tmp_path / "model.pt", make(kind, root, {"0": data.tobytes(), "1": b""}))
    arrays = load_all(path)
    assert list(arrays) == [name for name in root if name != "steps"]
    grid = data.reshape(3, 4)
    expected = {
        "whole": grid,
        "same": grid,
        "transposed": grid.T,
        "square": data[:9].reshape(3, 3),
        "turned": data[:9].reshape(3, 3).T,
        "row": grid[2],
        "expanded": np.broadcast_to(grid[0], (5, 4)),
        "windows": np.stack([data[start : start + 4] for start in (1, 3, 5)]),
        "scalar": data[7],
        "empty": np.zeros((0, 3), "f4"),
    }
    for name, value in expected.items():
        assert arrays[name].dtype == value.dtype and arrays[name].shape == value.shape
        assert np.array_equal(arrays[name], value)
    with read_checkpoint(path) as checkpoint:
        assert checkpoint.aliases() == {"same": "whole"}
        assert checkpoint.extras == {"steps": 7}
        assert checkpoint.files == [path]
        entry = checkpoint.tensors["transposed"]
        assert (entry.name, entry.dtype, entry.shape) == ("transposed", "float32", (4, 3))


@pytest.mark.parametrize("code", STORAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_storage_class(tmp_path, kind, code):
    dtype = np.dtype(code)
    values = np.array([0, 1, 3, 0, 5, 100]).astype(dtype).reshape(2, 3)
    root = {"a": tensor(kind=STORAGES[code])}
    array = load_all(write(tmp_path / "a.bin", make(kind, root, {"0": values.tobytes()}, dtype.itemsize)))["a"]
    assert array.dtype.name == NARROWED.get(dtype.name, dtype.name)
    assert np.array_equal(array, values)


@pytest.mark.parametrize("order", ("little", "big"))
@pytest.mark.parametrize("code", [*STORAGES, "bfloat16"])
def test_byte_orders(tmp_path, code, order):
    kind = "BFloat16Storage" if code == "bfloat16" else STORAGES[code]
    dtype = np.dtype("<u2" if code == "bfloat16" else code)
    values = np.array([0x3F80, 0x4000, 1, 0, 2, 3] if code == "bfloat16" else [0, 1, 3, 0, 5, 100]).astype(dtype)
    stored = values.astype(dtype.newbyteorder(">" if order == "big" else "<")).tobytes()
    path = write(tmp_path / "a.pt", zip_file({"a": tensor(kind=kind)}, {"0": stored}, order=order))
    with read_checkpoint(path) as checkpoint:
        array = checkpoint.load("a")
    if code == "bfloat16":
        assert array.dtype == mx.bfloat16
        assert array[0].tolist() == [1.0, 2.0, struct.unpack("<f", b"\0\0\1\0")[0]]
    else:
        assert np.array_equal(np.array(array), values.reshape(2, 3))


def test_views_of_legacy_storages(tmp_path):
    root = {"a": tensor("10", shape=(2,), offset=1, numel=6, view=(("11", 2, 4),))}
    assert load_all(write(tmp_path / "a.pt", legacy_file(root, {"10": numbers()})))["a"].tolist() == [3, 4]
    root = {"a": tensor("10", shape=(4,), offset=1, numel=6, view=(("11", 2, 4),))}
    with pytest.raises(CheckpointError, match="must be inside its storage"):
        read_checkpoint(write(tmp_path / "b.pt", legacy_file(root, {"10": numbers()})))


def test_rebuild_tensor_v3_counts_the_storage_in_bytes(tmp_path):
    pid = Pid(("storage", Name("torch.storage", "UntypedStorage"), "0", "cuda:0", 12))
    arguments = (pid, 1, (2, 2), (2, 1), False, Call("collections", "OrderedDict"), Name("torch", "uint16"))
    root = {"a": Call("torch._utils", "_rebuild_tensor_v3", arguments)}
    path = write(tmp_path / "a.pt", zip_file(root, {"0": numbers(6, "<u2")}))
    assert load_all(path)["a"].tolist() == [[1, 2], [3, 4]]


def test_other_rebuild_functions(tmp_path):
    pid = Pid(("storage", Name("torch", "FloatStorage"), "0", "cpu", 6))
    old = Call("torch._utils", "_rebuild_tensor", (pid, 0, (6,), (1,)))
    hooks = Call("collections", "OrderedDict")
    root = {
        "old": old,
        "parameter": Call("torch._utils", "_rebuild_parameter", (old, True, hooks)),
        "state": Call("torch._utils", "_rebuild_parameter_with_state", (old, True, hooks, {"note": 1})),
        "class": Call("torch.nn.parameter", "Parameter", (old, True)),
        "type": Call(
            "torch._tensor",
            "_rebuild_from_type_v2",
            (Name("torch._utils", "_rebuild_tensor"), Name("torch", "Tensor"), (pid, 0, (6,), (1,)), {}),
        ),
    }
    for kind in KINDS:
        arrays = load_all(write(tmp_path / kind, make(kind, root, {"0": numbers()})))
        assert {name: value.tolist() for name, value in arrays.items()} == dict.fromkeys(root, [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("key", ["model", "model_state", "state_dict", "model_state_dict", "net", "ema", None])
def test_state_dict_under_any_key(tmp_path, key):
    state = Call("collections", "OrderedDict", ([["a.b", tensor()]],), {"_metadata": {"": {"version": 1}}})
    root = state if key is None else {"epoch": 3, "optimizer": {"state": [tensor()]}, key: state}
    with read_checkpoint(write(tmp_path / "a.ckpt", zip_file(root, {"0": numbers()}))) as checkpoint:
        assert list(checkpoint.tensors) == ["a.b"]
        if key is None:
            assert checkpoint.extras == {}
        else:
            assert checkpoint.extras["epoch"] == 3
            inner = checkpoint.extras["optimizer"]["state"][0]
            assert checkpoint.load(inner).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_state_dicts_side_by_side(tmp_path):
    root = {"encoder": {"a": tensor()}, "decoder": {"a": tensor()}, "steps": 4}
    with read_checkpoint(write(tmp_path / "a.pt", zip_file(root, {"0": numbers()}))) as checkpoint:
        assert list(checkpoint.tensors) == ["encoder.a", "decoder.a"]
        assert checkpoint.extras == {"steps": 4}


def test_a_generator_next_to_the_model(tmp_path):
    root = {"model": {"a": tensor()}, "generator": {"0.weight": tensor()}, "opt": None}
    with read_checkpoint(write(tmp_path / "a.pt", zip_file(root, {"0": numbers()}))) as checkpoint:
        assert list(checkpoint.tensors) == ["a", "generator.0.weight"]


def module(name, parameters=(), buffers=(), modules=(), non_persistent=()):
    state = {"training": False, "_parameters": dict(parameters), "_buffers": dict(buffers), "_modules": dict(modules)}
    state["_non_persistent_buffers_set"] = Call("__builtin__", "set", (list(non_persistent),))
    return Call(*name.rsplit(".", 1), (), state)


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_modules_are_read_without_their_classes(tmp_path, kind):
    leaf = module(
        "my.Linear", {"weight": tensor(), "bias": None}, {"saved": tensor(), "skipped": tensor()}, (), ["skipped"]
    )
    root = module("my.Model", {"scale": tensor(shape=(6,))}, (), {"one": leaf, "none": None, "two": module("my.Norm")})
    for name, value in (("whole", root), ("inside", {"net": root, "epoch": 1})):
        with read_checkpoint(write(tmp_path / f"{name}.pt", make(kind, value, {"0": numbers()}))) as checkpoint:
            assert list(checkpoint.tensors) == ["scale", "one.weight", "one.saved"]


def test_settings_become_plain_data(tmp_path):
    node = Call("omegaconf.nodes", "AnyNode", (), {"_metadata": Name("typing", "Any"), "_val": 512})
    listed = Call("omegaconf.listconfig", "ListConfig", (), {"_content": [node]})
    config = Call("omegaconf.dictconfig", "DictConfig", (), {"_content": {"dims": node, "sizes": listed}})
    root = {
        "args": Call("argparse", "Namespace", (), {"heads": 8, "arch": "small"}),
        "cfg": config,
        "hyper_parameters": {"rates": [0.1, 1e-9], "flags": (True, False, None), "big": 2**80, "text": "é"},
        "counts": Call("collections", "Counter", ({"a": 2},)),
        "default": Call("collections", "defaultdict", (Name("__builtin__", "list"), {"a": [1]})),
        "vocab": Call("torchtext.vocab", "Vocab", (), {"itos": ["a", "b"]}),
        "device": Call("torch", "device", ("cuda", 0)),
        "bytes": Call("_codecs", "encode", ("\xff\x00", "latin1")),
        "size": Call("torch", "Size", ((1, 2),)),
        "model": {"a": tensor()},
    }
    for kind in KINDS:
        with read_checkpoint(write(tmp_path / kind, make(kind, root, {"0": numbers()}))) as checkpoint:
            extras = checkpoint.extras
            assert to_plain(extras["args"]) == {"heads": 8, "arch": "small"}
            assert to_plain(extras)["cfg"] == {"dims": 512, "sizes": [512]}
            assert extras["hyper_parameters"] == root["hyper_parameters"]
            assert (extras["counts"], extras["default"], extras["size"]) == ({"a": 2}, {"a": [1]}, (1, 2))
            assert extras["bytes"] == b"\xff\x00"
            assert extras["vocab"].state["itos"] == ["a", "b"]
            device = extras["device"]
            assert isinstance(device, PickledObject) and (device.name, device.args) == ("torch.device", ("cuda", 0))
            assert repr(device) == "<PickledObject 'torch.device'>"
            with pytest.raises(CheckpointError, match="belong to this checkpoint"):
                with read_checkpoint(write(tmp_path / "other", make(kind, root, {"0": numbers()}))) as other:
                    checkpoint.load(other.tensors["a"])


@pytest.mark.parametrize("protocol", (0, 1, 2, 3, 4, 5))
def test_pickles_of_all_protocols(tmp_path, protocol):
    """Plain data written by Python's pickler is read back."""
    shared = ["x"]
    value = {
        "values": [1, -1, 255, 65536, 2**40, -(2**70), 1.5, True, None, "ü", b"\x00\xff", (), (1,), (1, 2, 3, 4)],
        "sets": [{1, 2}, {"a"}],
        "shared": [shared, shared],
        "long": "a" * 70000,
        ("a", 1): 2,
    }
    value["self"] = [value["shared"]]
    body = pickle.dumps(value, protocol)
    skip = 2 if protocol >= 2 else 0
    opener = b"\x80\x05}(" + b"X\x01\x00\x00\x00x" + body[skip:-1] + b"X\x01\x00\x00\x00m"
    content = zip_file(opener + opcodes({"a": tensor()}) + b"u.", {"0": numbers()})
    with read_checkpoint(write(tmp_path / "a.pt", content)) as checkpoint:
        result = checkpoint.extras["x"]
    assert result == value
    assert result["shared"][0] is result["shared"][1]


def safe_entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", SAFETENSORS_DTYPES)
def test_every_dtype_of_safetensors(tmp_path, dtype):
    name = SAFETENSORS_DTYPES[dtype]
    code = np.dtype(DTYPES[name])
    values = np.array([0, 1, 0x3C, 0, 5, 100]).astype(code)
    header = {
        "__metadata__": {"format": "pt"},
        "b": safe_entry(dtype, [3], 3 * code.itemsize, 6 * code.itemsize),
        "a": safe_entry(dtype, [1, 3], 0, 3 * code.itemsize),
        "none": safe_entry(dtype, [0, 4], 6 * code.itemsize, 6 * code.itemsize),
    }
    path = write(tmp_path / "a.safetensors", safetensors_file(header, values.tobytes()))
    with read_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["b", "a", "none"]
        assert checkpoint.aliases() == {} and checkpoint.extras == {}
        arrays = {key: checkpoint.load(key) for key in checkpoint.tensors}
    assert str(arrays["a"].dtype).removeprefix("mlx.core.").rstrip("_") == NARROWED.get(name, name)
    assert [arrays[key].shape for key in arrays] == [(3,), (1, 3), (0, 4)]
    if name in FLOAT8:
        assert np.array_equal(np.array(arrays["b"]), float8_values(name)[values[3:]])
    elif name != "bfloat16":
        assert np.array_equal(np.array(arrays["b"]), values[3:].astype(bool if name == "bool" else code))


def test_safetensors_saved_by_mlx(tmp_path):
    arrays = {"a": mx.arange(6).reshape(2, 3).astype(mx.bfloat16), "b": mx.array(2.5), "c": mx.zeros((0, 3))}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    with read_checkpoint(tmp_path) as checkpoint:
        for name, array in arrays.items():
            loaded = checkpoint.load(name)
            assert loaded.dtype == array.dtype and mx.array_equal(loaded, array)


def shard(tmp_path, suffix):
    for number, name in enumerate(("a", "b"), 1):
        if suffix == "safetensors":
            content = safetensors_file({name: safe_entry("F32", [6], 0, 24)}, numbers())
        else:
            content = zip_file({name: tensor(shape=(6,))}, {"0": numbers()})
        write(tmp_path / f"part-{number}.{suffix}", content)
    index = {"metadata": {"total_size": 48}, "weight_map": {"b": f"part-2.{suffix}", "a": f"part-1.{suffix}"}}
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    return write(tmp_path / f"{stem}.index.json", json.dumps(index).encode())


@pytest.mark.parametrize("suffix", ("safetensors", "bin"))
def test_shards(tmp_path, suffix):
    index = shard(tmp_path, suffix)
    for path in (index, tmp_path):
        with read_checkpoint(path) as checkpoint:
            assert list(checkpoint.tensors) == ["b", "a"]
            assert checkpoint.aliases() == {}
            assert checkpoint.files == [index, tmp_path / f"part-2.{suffix}", tmp_path / f"part-1.{suffix}"]
            assert checkpoint.load("a").tolist() == [0, 1, 2, 3, 4, 5]


def test_folders_prefer_safetensors_and_single_files(tmp_path):
    names = ["pytorch_model.bin.index.json", "pytorch_model.bin", "model.safetensors.index.json", "model.safetensors"]
    shard(tmp_path, "bin")
    chosen = [read_checkpoint(tmp_path).files[0].name]
    write(tmp_path / "pytorch_model.bin", zip_file({"a": tensor()}, {"0": numbers()}))
    chosen.append(read_checkpoint(tmp_path).files[0].name)
    shard(tmp_path, "safetensors")
    chosen.append(read_checkpoint(tmp_path).files[0].name)
    write(tmp_path / "model.safetensors", safetensors_file({"a": safe_entry("F32", [6], 0, 24)}, numbers()))
    chosen.append(read_checkpoint(tmp_path).files[0].name)
    assert chosen == names


def test_a_folder_with_a_symlink(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    write(tmp_path / "blobs" / "0a1b", zip_file({"a": tensor()}, {"0": numbers()}))
    (tmp_path / "snapshot" / "best.pt").symlink_to(tmp_path / "blobs" / "0a1b")
    assert read_checkpoint(tmp_path / "snapshot").files == [tmp_path / "snapshot" / "best.pt"]


def test_zip64_members(tmp_path):
    """Sizes and offsets are in the zip64 field of an entry, as in files above 4 GiB."""
    content = bytearray(zip_file({"a": tensor()}, {"0": numbers()}))
    start = content.find(b"PK\x01\x02", content.find(b"PK\x01\x02") + 1)
    fields = list(struct.unpack_from("<4s6H3L5H2L", content, start))
    extra = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
    name = bytes(content[start + 46 : start + 46 + fields[10]])
    assert name.endswith(b"data/0")
    end = start + 46 + fields[10] + fields[11]
    fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
    fields[11] = len(extra)
    content[start:end] = struct.pack("<4s6H3L5H2L", *fields) + name + extra
    tail = content.rfind(b"PK\x05\x06")
    directory_start = struct.unpack_from("<L", content, tail + 16)[0]
    count = struct.unpack_from("<H", content, tail + 10)[0]
    size = tail - directory_start
    wide = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, directory_start)
    wide += struct.pack("<4sLQL", b"PK\x06\x07", 0, tail, 1)
    content[tail:] = wide + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    assert load_all(write(tmp_path / "a.pt", bytes(content)))["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", ("F32", "BF16", "F64", "BOOL"))
@pytest.mark.parametrize("gap", (0, 3))
@pytest.mark.slow
def test_loading_needs_little_more_memory_than_the_tensor(tmp_path, dtype, gap):
    """Two tensors of 128 MiB, aligned or not: no copy of a tensor, and not both in memory at a time."""
    size = 2**27
    count = size // np.dtype(DTYPES[SAFETENSORS_DTYPES[dtype]]).itemsize
    header = {name: safe_entry(dtype, [count // 8, 8], i * size, (i + 1) * size) for i, name in enumerate("ab")}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + gap)
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 2 * size)
    loads = "with read_checkpoint(source) as checkpoint: [checkpoint.load(name).shape for name in checkpoint.tensors]"
    assert growth(loads, path) < 1.4 * size


def test_tensors_are_read_in_pieces_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_transformer.weights.formats.tensors.PIECE_SIZE", 5)
    data = np.arange(24, dtype="<f4")
    shapes = {"rows": (6, 4), "row": (1, 24), "cube": (2, 3, 4), "line": (24,), "none": (0, 3), "one": (1, 1)}
    root = {name: tensor(shape=shape, numel=24) for name, shape in shapes.items()}
    root |= {
        "turned": tensor(shape=(4, 6), strides=(1, 4), numel=24),
        "same": tensor(shape=(9, 2), strides=(0, 1), numel=24),
    }
    root["far"] = tensor(shape=(1, 12), strides=(2**61, 2), numel=24)
    with read_checkpoint(write(tmp_path / "a.pt", zip_file(root, {"0": data.tobytes()}))) as checkpoint:
        for name, shape in shapes.items():
            expected = data[: np.prod(shape, dtype=int)].reshape(shape)
            assert np.array_equal(checkpoint.load(name), expected), name
        assert np.array_equal(checkpoint.load("turned"), data.reshape(6, 4).T)
        assert np.array_equal(checkpoint.load("same"), np.broadcast_to(data[:2], (9, 2)))
        assert np.array_equal(checkpoint.load("far"), data[None, ::2])
        counts = {name: [piece.shape[0] for piece in entry.pieces()] for name, entry in checkpoint.tensors.items()}
    assert counts == {
        "rows": [1] * 6,
        "row": [1],
        "cube": [1, 1],
        "line": [5, 5, 5, 5, 4],
        "none": [],
        "one": [1],
        "turned": [1] * 4,
        "same": [2, 2, 2, 2, 1],
        "far": [1],
    }


def test_reading_does_not_need_torch(tmp_path):
    path = write(tmp_path / "a.pt", zip_file({"a": tensor()}, {"0": numbers()}))
    program = (
        "import sys\nsys.modules['torch'] = None\n"
        "from mlx_transformer.weights.formats.checkpoint import read_checkpoint\n"
        "print(read_checkpoint(sys.argv[1]).load('a').tolist())\n"
    )
    result = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert "0.0, 1.0" in result.stdout


# Files saved by torch.


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def save(torch, value, path, kind):
    torch.save(value, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "deflated":
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    return path


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_of_torch(tmp_path, torch, kind):
    names = [name for name in DTYPES if kind != "legacy" or not name.startswith(("uint16", "uint32", "uint64"))]
    values = torch.tensor([0.0, 1.0, -2.0, 3.5, 100.0, 0.25]).reshape(2, 3)
    state = {name: values.abs().to(torch.__dict__[name]) for name in names}
    with read_checkpoint(save(torch, state, tmp_path / "a.pt", kind)) as checkpoint:
        assert {name: tensor.dtype for name, tensor in checkpoint.tensors.items()} == {name: name for name in names}
        for name in names:
            dtypes = (mx.complex64, torch.complex64) if "complex" in name else (mx.float32, torch.float32)
            array = np.array(checkpoint.load(name).astype(dtypes[0]))
            assert np.array_equal(array, state[name].to(dtypes[1]).numpy()), name


@pytest.mark.torch
@pytest.mark.parametrize("name", FLOAT8)
def test_8_bit_floats_equal_torch(torch, name):
    expected = torch.arange(256, dtype=torch.uint8).view(torch.__dict__[name]).float().numpy()
    values = float8_values(name)
    assert np.array_equal(values, expected, equal_nan=True)
    assert np.array_equal(np.signbit(values), np.signbit(expected)) or np.isnan(expected).any()


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_modules_views_and_tied_tensors(tmp_path, torch, kind):
    model = torch.nn.Transformer(16, 2, 1, 2, 24, batch_first=True)
    model.register_parameter("extra", torch.nn.Parameter(torch.randn(3)))
    model.extra.note = "saved"
    model.register_buffer("non_persistent", torch.zeros(2), persistent=False)
    model.tied = model.extra
    big = torch.randn(6, 8)
    views = {"t": big.T, "slice": big[2:4, 1:7:2], "row": big[5], "one": big[3, 3], "all": big, "again": big}
    weights = model.state_dict()
    for value, expected in (
        (weights, weights),
        (model, weights),
        ({"model": weights, "optimizer": {"state": {0: {"step": model.extra}}}}, weights),
        (dict(model.named_parameters()), dict(model.named_parameters())),
        (views, views),
    ):
        path = save(torch, value, tmp_path / "a.pt", kind)
        arrays = load_all(path)
        assert list(arrays) == list(expected)
        for name, array in expected.items():
            assert np.array_equal(arrays[name], array.detach().numpy()), name
    with read_checkpoint(path) as checkpoint:
        assert checkpoint.aliases() == {"again": "all"}
    with read_checkpoint(save(torch, weights, tmp_path / "b.pt", kind)) as checkpoint:
        assert checkpoint.aliases() == {"tied": "extra"}


@pytest.mark.torch
def test_random_views_equal_torch(tmp_path, torch):
    generator = np.random.default_rng(3)
    base = torch.randn(400)
    state = {}
    for number, rank in itertools.product(range(20), range(1, 5)):
        shape = generator.integers(1, 5, rank).tolist()
        strides = generator.integers(0, 20, rank).tolist()
        state[f"{number}.{rank}"] = base.as_strided(shape, strides, int(generator.integers(0, 100)))
    arrays = load_all(save(torch, state, tmp_path / "a.pt", "zip"))
    assert all(np.array_equal(arrays[name], value.numpy()) for name, value in state.items())


@pytest.mark.torch
def test_pickle_protocols_of_torch(tmp_path, torch):
    path, root = tmp_path / "a.pt", {"a": torch.ones(2), "s": {1}}
    for protocol, zipped in itertools.product((2, 3, 4, 5), (True, False)):
        torch.save(root, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        with read_checkpoint(path) as checkpoint:
            assert checkpoint.load("a").tolist() == [1, 1] and checkpoint.extras == {"s": {1}}


@pytest.mark.torch
def test_extras_saved_by_torch(tmp_path, torch):
    root = {
        "args": argparse.Namespace(heads=4, sizes=[1, 2]),
        "model": {"a": torch.ones(2)},
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "best": np.float64(1.5),
        "rng": np.arange(3),
        "counts": collections.Counter("aab"),
    }
    for kind in KINDS:
        with read_checkpoint(save(torch, root, tmp_path / "a.pt", kind)) as checkpoint:
            extras = checkpoint.extras
            assert to_plain(extras["args"]) == {"heads": 4, "sizes": [1, 2]}
            assert extras["dtype"].name == "torch.float16" and extras["size"] == (1, 2)
            assert extras["counts"] == {"a": 2, "b": 1}
            assert isinstance(extras["best"], PickledObject)


@pytest.mark.torch
def test_unsupported_tensors_are_errors(tmp_path, torch):
    lazy = torch.nn.parameter.UninitializedParameter()
    tensors = {
        "sparse": torch.eye(3).to_sparse(),
        "not initialised": lazy,
        "without data": torch.zeros(2, device="meta"),
        "conjugated": torch.zeros(2, dtype=torch.complex64).conj(),
    }
    for words, value in tensors.items():
        torch.save({"a.b": value, "c": torch.ones(1)}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(tmp_path / "a.pt")


@pytest.mark.torch
def test_torchscript_is_an_error(tmp_path, torch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.torch
def test_safetensors_saved_by_its_library(tmp_path, torch):
    library = pytest.importorskip("safetensors.torch")
    state = {"a": torch.randn(3, 4), "b": torch.randn(2).bfloat16(), "c": torch.zeros(0, 2), "d": torch.tensor(3)}
    library.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with read_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == set(state)
        for name, value in state.items():
            assert np.array_equal(np.array(checkpoint.load(name).astype(mx.float32)), value.float().numpy())
