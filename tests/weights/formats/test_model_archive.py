"""Zip files of models: only what a conversion needs is unpacked, and hostile ones are refused in one line."""

import gzip
import io
import random
import sys
import zipfile

import pytest

from mlx_transformer.weights.formats import model_archive
from mlx_transformer.weights.formats.model_archive import is_model_archive, unpacked
from mlx_transformer.weights.formats.tensors import CheckpointError


def write(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_only_files_beside_the_weights_are_unpacked(tmp_path):
    members = [
        ("m/a.npz", b"1"),
        ("m/source.spm", b"2"),
        ("m/run.sh", b"3"),
        ("n/other.spm", b"4"),
        ("m/d/x.yml", b"5"),
    ]
    with unpacked(write(tmp_path / "en-fr.zip", members)) as folder:
        assert folder.name == "en-fr"
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            "a.npz": b"1",
            "source.spm": b"2",
        }
    assert not folder.exists()


def test_other_paths_stay(tmp_path):
    for path in (tmp_path, write(tmp_path / "torch.zip", [("a/data.pkl", b"x")]), tmp_path / "missing.zip"):
        assert not is_model_archive(path)
        with unpacked(path) as same:
            assert same == path


CASES = {
    "two models": ([("a.npz", b"1"), ("b.npz", b"2")], "one .npz file, not 'a.npz', 'b.npz'"),
    "a bomb": ([("a.npz", bytes(30_000_000))], "a zip bomb"),
    "a name twice": ([("m/a.npz", b"1"), ("m/x.yml", b"1"), ("m/x.yml", b"2")], "must be complete"),
    "a name that escapes": ([("../../a.npz", b"1"), ("../../../etc/x.yml", b"1")], None),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", CASES)
def test_hostile_archives(tmp_path, case):
    members, message = CASES[case]
    path = write(tmp_path / "model.zip", members)
    if message is None:
        with unpacked(path) as folder:
            assert [each.name for each in folder.iterdir()] == ["a.npz"]
        return
    with pytest.raises(CheckpointError, match=message), unpacked(path):
        pass


def test_folders_of_compressed_files(tmp_path):
    folder = tmp_path / "enfr"
    folder.mkdir()
    for name in ("model.enfr.intgemm.alphas.bin.gz", "vocab.enfr.spm.gz"):
        (folder / name).write_bytes(gzip.compress(name.encode()))
    (folder / "config.yml").write_text("beam-size: 1")
    (folder / "README.md.gz").write_bytes(b"no gzip data")
    with unpacked(folder) as plain:
        assert plain.name == "enfr" and {path.name: path.read_bytes()[:5] for path in plain.iterdir()} == {
            "model.enfr.intgemm.alphas.bin": b"model",
            "vocab.enfr.spm": b"vocab",
            "config.yml": b"beam-",
        }
    (folder / "vocab.enfr.spm.gz").write_bytes(b"no gzip data")
    with pytest.raises(CheckpointError, match="packed files must be complete"), unpacked(folder):
        pass
    (folder / "vocab.enfr.spm.gz").write_bytes(gzip.compress(bytes(2**27)))
    with pytest.raises(CheckpointError, match="must not unpack to more than"), unpacked(folder):
        pass


def test_decompressed_files_are_preferred(tmp_path):
    for name, content in (("model.bin", b"new"), ("vocab.spm", b"new")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"old"))
    with unpacked(tmp_path) as plain:
        assert plain == tmp_path
    (tmp_path / "vocab.spm").unlink()
    with unpacked(tmp_path) as plain:
        assert {path.name: path.read_bytes() for path in plain.iterdir()} == {"model.bin": b"new", "vocab.spm": b"old"}


def test_decompressed_files_have_a_limit_together(tmp_path, monkeypatch):
    for name in ("a.bin.gz", "b.bin.gz"):
        (tmp_path / name).write_bytes(gzip.compress(bytes(100)))
    monkeypatch.setattr(model_archive, "MAX_BYTES", 150)
    with pytest.raises(CheckpointError, match="'b.bin.gz' must not unpack to more than 50 bytes"), unpacked(tmp_path):
        pass


def test_zst_files_without_a_library_are_named(tmp_path, monkeypatch):
    (tmp_path / "model.bin.zst").write_bytes(b"any")
    monkeypatch.setattr(model_archive, "ZSTD_MODULES", ("backports.missing",))
    with pytest.raises(CheckpointError, match=r"need Python 3.14 or .* backports.zstd; install"), unpacked(tmp_path):
        pass


def test_zst_files(tmp_path):
    zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    content = random.Random(0).randbytes(2**21)
    (tmp_path / "model.bin.zst").write_bytes(zstd.compress(content[: 2**20]) + zstd.compress(content[2**20 :]))
    with unpacked(tmp_path) as plain:
        assert (plain / "model.bin").read_bytes() == content
    damaged = (zstd.compress(content)[:-9], b"no zstd data", zstd.compress(content)[:50] + bytes(50))
    for data, message in [(data, "packed files must be complete") for data in damaged] + [
        (zstd.compress(bytes(2**27)), "must not unpack to more than")
    ]:
        (tmp_path / "model.bin.zst").write_bytes(data)
        with pytest.raises(CheckpointError, match=message), unpacked(tmp_path):
            pass


def test_too_many_or_too_large_members(tmp_path, monkeypatch):
    path = write(tmp_path / "model.zip", [("a.npz", b"12345"), ("b.yml", b"1")])
    for name, value, message in (("MAX_MEMBERS", 1, "at most 1 members"), ("MAX_BYTES", 5, "at most 0 GiB")):
        with monkeypatch.context() as patch:
            patch.setattr(model_archive, name, value)
            with pytest.raises(CheckpointError, match=message), unpacked(path):
                pass


@pytest.mark.slow
def test_damaged_archives_end_in_one_line(tmp_path):
    import numpy as np

    stream = io.BytesIO()
    write(
        stream, [("m/a.npz", bytes(range(256)) * 8), ("m/source.spm", b"spm" * 50), ("m/decoder.yml", b"beam-size: 6")]
    )
    content, rng = stream.getvalue(), np.random.default_rng(0)
    path, failures = tmp_path / "model.zip", 0
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 6)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(bytes(damaged[: rng.integers(1, len(damaged) + 1)] if rng.random() < 0.2 else damaged))
        try:
            with unpacked(path):
                pass
        except CheckpointError as error:
            failures += 1
            assert "\n" not in str(error)
    assert failures > 100
