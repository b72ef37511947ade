"""Binary files of Marian: float32 and quantised tensors, and 60 kinds of damage, each refused in one line."""

import os
import random
import struct

import numpy as np
import pytest
from support.damage import damage_bytes
from support.fuzzing import fault_of_line, read_damaged_files
from support.marian_files import OPTIONS, SEPARATE, STUDENT, MarianModel, binary_file, options_yaml, write_bin

from mlx_transformer.weights.formats.file_bytes import FileBytes
from mlx_transformer.weights.formats.marian_binary import read_items, read_options, read_values
from mlx_transformer.weights.formats.tensors import CheckpointError

FUZZ = int(os.environ.get("MLX_TRANSFORMER_FUZZ", "2000"))
FLOAT, TEXT, INT8, INT16 = 0x0404, 0x0101, 0x4101, 0x4102
ROW = np.float32([[1, -2, 3]]).tobytes()
MATRIX = bytes([1, 2, 3, 4, 255, 0])  # int8, of shape (3, 2) when it is transposed
MULTIPLIER = struct.pack("<f", 2)
YAML = ("special:model.yml", TEXT, (3,), b"a: ")
SMALL = {"dim-emb": 8, "dim-vocabs": [16, 16], "transformer-heads": 2, "transformer-dim-ffn": 16}


def read_file(path):
    """Return the values of all tensors in a file, and the options."""
    data = FileBytes(path)
    items = read_items(data)
    options = read_options(data, items)
    return {name: read_values(data, name, item) for name, item in items.items() if "special:" not in name}, options


def test_float32_files_have_the_tensors_and_options(tmp_path):
    model = MarianModel(SMALL)
    write_bin(tmp_path / "model.bin", model)
    tensors, options = read_file(tmp_path / "model.bin")
    assert tensors.keys() == model.tensors.keys()
    assert all(np.array_equal(tensors[name], values) for name, values in model.tensors.items())
    assert options == options_yaml(model.options) and "dim-emb: 8\n" in options


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("options", [{}, STUDENT, STUDENT | SEPARATE], ids=["transformer", "student", "separate"])
def test_quantised_files_give_the_dequantised_weights(tmp_path, bits, options):
    model = MarianModel(SMALL | options)
    alphas = {"decoder_l1_context_Wq": 11.5, model.target_embedding: 7.0}
    expected = write_bin(tmp_path / "model.bin", model, bits, alphas)
    tensors, _ = read_file(tmp_path / "model.bin")
    assert tensors.keys() == expected.keys()
    for name, values in expected.items():
        assert tensors[name].dtype == np.float32 and np.array_equal(tensors[name], values), name
    assert tensors["decoder_l1_context_Wq_QuantMultA"] == 11.5
    assert not np.array_equal(tensors["encoder_l1_ffn_W1"], model.tensors["encoder_l1_ffn_W1"])
    assert np.array_equal(tensors["encoder_l1_ffn_b1"], model.tensors["encoder_l1_ffn_b1"])


def test_bytes_of_quantised_matrices_are_transposed_but_not_those_of_embeddings(tmp_path):
    data = MATRIX + MULTIPLIER + bytes(246)
    items = [("encoder_Wemb", INT8, (3, 2), data), ("decoder_l1_rnn_W", INT8, (3, 2), data), YAML]
    (tmp_path / "model.bin").write_bytes(binary_file(items))
    tensors, options = read_file(tmp_path / "model.bin")
    assert tensors["encoder_Wemb"].tolist() == [[0.5, 1], [1.5, 2], [-0.5, 0]]
    assert tensors["decoder_l1_rnn_W"].tolist() == [[0.5, 2], [1, -0.5], [1.5, 0]]
    assert options == "a: "


def test_half_precision_tensors_become_float32(tmp_path):
    (tmp_path / "model.bin").write_bytes(binary_file([("a", 0x0402, (1, 2), np.float16([0.5, -2]).tobytes()), YAML]))
    tensors, _ = read_file(tmp_path / "model.bin")
    assert tensors["a"].dtype == np.float32 and tensors["a"].tolist() == [[0.5, -2]]


def with_item(name="a", kind=FLOAT, shape=(1, 3), data=ROW):
    """Return a file with one item and the options."""
    return binary_file([(name, kind, shape, data), YAML])


def with_field(offset, value, code="<Q"):
    """Return a file of one tensor with another number in it; headers begin at 16, names at 80, shapes at 100."""
    content = bytearray(with_item())
    struct.pack_into(code, content, offset, value)
    return bytes(content)


VALID = with_item()
LARGE = (2**31, 2**32, 2**62, 2**63, 2**64 - 1)
HOSTILE = {
    "empty": (b"", "ends after 0 bytes"),
    **{f"cut after {size} bytes": (VALID[:size], "ends after|bytes of its items") for size in (1, 8, 15, 16, 47, 80)},
    **{f"cut {size} bytes off": (VALID[:-size], "ends after|bytes of its items") for size in (1, 4, 16, 100, 170)},
    "trailing byte": (VALID + b"\0", "bytes of its items"),
    "trailing file": (VALID + VALID, "bytes of its items"),
    "text": (b"dim-emb: 512\n" * 100, "version"),
    "zeros": (bytes(4096), "version"),
    "ones": (b"\xff" * 4096, "version"),
    "zip": (b"PK\x03\x04" + bytes(1000), "version"),
    "gzip": (b"\x1f\x8b\x08" + bytes(1000), "version"),
    **{f"version {number}": (with_field(0, number), "version") for number in (0, 2, 2**64 - 1)},
    "big-endian": (struct.pack(">2Q", 1, 2) + VALID[16:], "version"),
    **{f"{number} items": (with_field(8, number), "items") for number in (0, 20_001, *LARGE)},
    "too many items for the file": (with_field(8, 20_000), "ends after"),
    "more items": (with_field(8, 3), "name|dimensions|ends after"),
    "fewer items": (with_field(8, 1), "name"),
    **{f"name of {size} bytes": (with_field(16, size), "name") for size in (0, 1, 1001, *LARGE)},
    "name overlaps the next": (with_field(16, 3), "name"),
    "name without end": (with_field(81, 65, "<B"), "name"),
    "name with a zero": (with_item("a\0b"), "name"),
    "name with a newline": (with_item("a\nb"), "name"),
    "name of 2000 characters": (with_item("a" * 2000), "name"),
    "name of another script": (with_item("é"), "name"),
    "name with an escape": (with_item("\x1b[2J"), "name"),
    **{f"type {kind:#x}": (with_item(kind=kind), "types") for kind in (0, 1, 0x0104, 0x0408, 0x0201, 2**63)},
    **{kind: (with_item(kind=code), kind) for kind, code in (("packed16", 0x0802), ("packed8avx2", 0x1801))},
    "packed8avx512": (with_item(kind=0x2801), "marian-conv"),
    **{f"rank {rank}": (with_field(32, rank), "dimensions") for rank in (0, 9, *LARGE)},
    "rank that shifts the rest": (with_field(32, 3), "dimensions|must have|ends after"),
    **{f"dimension {size}": (with_item(shape=(1, size)), "positive") for size in (0, -1, -(2**31))},
    "dimension beyond the data": (with_item(shape=(1, 4)), "16 bytes"),
    "dimensions whose product overflows": (with_item(shape=(2**31 - 1,) * 8), "bytes of shape"),
    **{f"data of {size} bytes": (with_field(40, size), "bytes") for size in (0, 11, 13, *LARGE)},
    **{f"padding of {size} bytes": (with_field(112, size), "bytes of its items") for size in (0, 2**20, 2**64 - 1)},
    "duplicate name": (binary_file([("a", FLOAT, (1, 3), ROW)] * 2), "twice"),
    "quantised without multiplier": (with_item(kind=INT8, shape=(3, 2), data=MATRIX), "10 bytes"),
    "quantised of 16 bits in 8": (with_item(kind=INT16, shape=(3, 2), data=MATRIX + MULTIPLIER), "16 bytes"),
    **{
        f"multiplier {number}": (
            with_item("a_W", INT8, (3, 2), MATRIX + struct.pack("<f", number)),
            "multiplier",
        )
        for number in (0.0, -1.0, float("inf"), float("-inf"), float("nan"), 1e-45)
    },
    "quantised vector": (with_item("a_W", INT8, (6,), MATRIX + MULTIPLIER), "2 dimensions"),
    "quantised tensor of three": (with_item("a_W", INT8, (1, 3, 2), MATRIX + MULTIPLIER), "2 dimensions"),
    "no options": (binary_file([("a", FLOAT, (1, 3), ROW)]), "special:model.yml"),
    "options of another type": (binary_file([("special:model.yml", FLOAT, (1, 3), ROW)]), "special:model.yml"),
    "options in 16 bits": (binary_file([("special:model.yml", 0x0402, (4,), b"a: b" * 2)]), "special:model.yml"),
    "options of 2 MB": (binary_file([("special:model.yml", TEXT, (2**21,), bytes(2**21))]), "1048576"),
    "options that are no UTF-8": (binary_file([("special:model.yml", TEXT, (3,), b"a:\xff")]), "UTF-8"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_end_in_one_error_line(tmp_path, case):
    content, pattern = HOSTILE[case]
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=pattern) as error:
        read_file(path)
    assert fault_of_line(error.value, tmp_path) is None


class DamagedBinary:
    """A small model in a random type with random damage."""

    def __init__(self, folder):
        self.path = folder / "files"
        self.path.mkdir()
        self.contents = []
        for bits in (None, 8, 16):
            write_bin(self.path / "model.bin", MarianModel(SMALL | {"enc-depth": 1, "dec-depth": 1}), bits)
            self.contents.append((self.path / "model.bin").read_bytes())

    def damage(self, chance):
        """Write a damaged file, with damage mostly in its header."""
        content = chance.choice(self.contents)
        end = chance.choice((1500, 5000, len(content)))
        (self.path / "model.bin").write_bytes(damage_bytes(content[:end], self.contents, chance) + content[end:])

    def read(self):
        """Read all tensors."""
        read_file(self.path / "model.bin")


@pytest.mark.slow
def test_randomly_damaged_files(tmp_path):
    outcomes, faults = read_damaged_files(DamagedBinary(tmp_path), FUZZ, random.Random(21))
    print(f"{FUZZ} damaged files: {dict(outcomes)}")  # shown with -s
    assert faults == []
    assert outcomes["loaded"] + outcomes["refused"] == FUZZ
    assert min(outcomes["loaded"], outcomes["refused"]) > FUZZ // 20


def test_options_of_the_writer_are_yaml():
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(options_yaml(OPTIONS)) == OPTIONS
