"""Marian's .npz files: damaged and hostile ones end in one line, within the memory of the file."""

import io
import zipfile

import numpy as np
import pytest
from support.marian_files import MarianModel, options_yaml, write_npz

from mlx_transformer.weights import convert
from mlx_transformer.weights.formats.checkpoint import read_checkpoint
from mlx_transformer.weights.formats.tensors import CheckpointError

OPTIONS = "special:model.yml.npy"


def array(values, **changes):
    """Return an array's .npy file, with parts of its header replaced."""
    stream = io.BytesIO()
    np.save(stream, values)
    content = stream.getvalue()
    for old, new in changes.values():
        assert old in content and len(old) == len(new)
        content = content.replace(old, new)
    return content


def options(text):
    return array(np.frombuffer(text if isinstance(text, bytes) else text.encode(), np.int8))


def write(path, members):
    """Write an archive with the options of a model, unless they are among the members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in ({OPTIONS: options("type: transformer\n")} | members).items():
            archive.writestr(name, content)
    return path


ONES = np.ones((2, 3), np.float32)
CASES = {
    "no array": ({"a.npy": b"no array"}, "'a.npy' must be an array of NumPy"),
    "an empty array": ({"a.npy": b""}, "'a.npy' must be an array of NumPy"),
    "half a header": ({"a.npy": array(ONES)[:40]}, "'a.npy' must be an array of NumPy"),
    "a wrong version": ({"a.npy": array(ONES, v=(b"NUMPY\x01\x00", b"NUMPY\x09\x00"))}, "must be an array of NumPy"),
    "a long header": ({"a.npy": array(ONES, v=(b"\x76\x00{", b"\xff\xff{"))}, "must be an array of NumPy"),
    "code in the header": ({"a.npy": array(ONES, v=(b"(2, 3)", b"f(2,3)"))}, "must be an array of NumPy"),
    "objects": ({"a.npy": array(ONES, v=(b"'<f4'", b"'|O' "))}, "array 'a' must be of <f4"),
    "doubles": ({"a.npy": array(ONES.astype(np.float64))}, "array 'a' must be of <f4, .* not of '<f8'"),
    "big-endian": ({"a.npy": array(ONES, v=(b"'<f4'", b"'>f4'"))}, "array 'a' must be of <f4"),
    "an open bracket": ({"a.npy": array(ONES, v=(b"(2, 3)", b"(2] 3)"))}, "must be an array of NumPy"),
    "an open text": ({"a.npy": array(ONES, v=(b"'shape'", b"'shape("))}, "must be an array of NumPy"),
    "a record": ({"a.npy": array(np.zeros(2, "f4,f4"))}, "array 'a' must be of <f4"),
    "columns first": ({"a.npy": array(np.asfortranarray(ONES))}, "in Fortran's order"),
    "too few values": ({"a.npy": array(ONES)[:-4]}, "array 'a' must have the 24 bytes of its shape, not 20|inside its"),
    "too many values": ({"a.npy": array(ONES) + bytes(4)}, "array 'a' must have the 24 bytes of its shape, not 28"),
    "half a value": ({"a.npy": array(ONES) + b"x"}, "array 'a' must have whole numbers of 4 bytes"),
    "a huge shape": ({"a.npy": array(ONES, v=(b"(2, 3), }   ", b"(9999999,9)}"))}, "must be inside its storage"),
    "a negative shape": ({"a.npy": array(ONES, v=(b"(2, 3)", b"(-2,3)"))}, "must be integers, not negative"),
    "another file": ({"run.sh": b"exit 1"}, "a .npz file must have arrays only, not 'run.sh'"),
    "no name": ({".npy": array(ONES)}, "a .npz file must have arrays only"),
    "options that are no text": ({OPTIONS: options(b"\xff\xfe")}, "special:model.yml must be text in UTF-8"),
    "options that are long": ({OPTIONS: options(b"a" * (2**20 - 99) + bytes(200))}, "must have at most 1048576 bytes"),
    "options that are no array": ({OPTIONS: b"type: transformer"}, "must be an array of NumPy"),
    "only options": ({}, "a checkpoint must contain a state dict, not only 'special:model.yml'"),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_files_end_in_one_line(tmp_path, case):
    members, message = CASES[case]
    path = write(tmp_path / "model.npz", members)
    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- a",
        "a: &x [1]\nb: *x",
        "a: !!python/object:os.system x",
        "<<: {a: 1}",
        "a: " + "[" * 2000,
        "transformer-heads: many",
        "type: 5",
    ],
)
def test_hostile_options_end_in_one_line(tmp_path, text):
    model = MarianModel()
    path = tmp_path / "model.npz"
    np.savez(path, **model.tensors, **{"special:model.yml": np.frombuffer(text.encode(), np.int8)})
    with pytest.raises(ValueError) as error:
        convert.load(path)
    assert "\n" not in str(error.value)


def test_compressed_and_half_precision_arrays(tmp_path):
    model = MarianModel()
    text = np.frombuffer(options_yaml(model.options).encode(), np.int8)
    halves = {name: tensor.astype(np.float16) for name, tensor in model.tensors.items()}
    np.savez_compressed(tmp_path / "half.npz", **halves, **{"special:model.yml": text})
    with read_checkpoint(tmp_path / "half.npz") as checkpoint:
        assert {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()} == {
            name: tensor.shape for name, tensor in halves.items()
        }
        assert all(np.array_equal(np.array(checkpoint.load(name)), tensor) for name, tensor in halves.items())


@pytest.mark.slow
def test_randomly_damaged_files(tmp_path):
    content = write_npz(tmp_path / "model.npz", MarianModel({"dim-emb": 8, "transformer-dim-ffn": 8})).read_bytes()
    directory = content.index(b"PK\x01\x02")
    rng, path, refused = np.random.default_rng(0), tmp_path / "damaged.npz", 0
    for number in range(2000):
        damaged = bytearray(content)
        first = directory if number % 2 else 0
        for _ in range(rng.integers(1, 9)):
            damaged[rng.integers(first, len(damaged))] = rng.integers(256)
        path.write_bytes(bytes(damaged[: rng.integers(1, len(damaged))] if rng.random() < 0.1 else damaged))
        try:
            with read_checkpoint(path) as checkpoint:
                for name in checkpoint.tensors:
                    checkpoint.load(name)
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 100 < refused < 2000
