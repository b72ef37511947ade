"""Bytes of files by position, also of files that change meanwhile."""

import os

import numpy as np
import pytest

from mlx_transformer.weights.formats import containers, file_bytes
from mlx_transformer.weights.formats.file_bytes import FileBytes
from mlx_transformer.weights.formats.tensors import CheckpointError


@pytest.fixture(params=[1, 7, 64, 2**16])
def block_size(request, monkeypatch):
    monkeypatch.setattr(file_bytes, "BLOCK_SIZE", request.param)


@pytest.mark.usefixtures("block_size")
def test_slices_equal_slices_of_the_content(tmp_path):
    content = np.random.default_rng(0).bytes(300)
    (tmp_path / "file").write_bytes(content)
    data = FileBytes(tmp_path / "file")
    assert len(data) == 300
    bounds = [None, 0, 1, 5, 63, 64, 65, 150, 299, 300, 301, 10_000, -1, -64, -500]
    for start in bounds:
        for stop in bounds:
            assert data[start:stop] == content[start:stop], (start, stop)


def test_file_closes_when_it_is_freed(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    before = len(os.listdir("/dev/fd"))
    data = FileBytes(tmp_path / "file")
    assert len(os.listdir("/dev/fd")) == before + 1
    del data
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_file_that_is_truncated_while_it_is_read(tmp_path, kind):
    """A mapped file would end the process with a bus error."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.ones(300, 300) for name in ("first", "second")}
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pt")
    if kind == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    container = containers.open_container(path)
    size = path.stat().st_size
    os.truncate(path, size // 3)
    with pytest.raises(CheckpointError, match=f"must not change while it is read, this one had {size} bytes"):
        for tensor in container.root.values():
            container.load(tensor)
    container.close()
