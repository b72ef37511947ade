"""SHA256SUMS: written and checked as by sha256sum."""

import shutil
import subprocess

import pytest

from mlx_transformer.storage.checksums import changed_files, find_damage, write_checksums

FILES = ("model.safetensors", "training.safetensors", "training.json")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_checksums_match_sha256sum(tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode() * 300_000)
    write_checksums(tmp_path)
    assert find_damage(tmp_path) is None
    done = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    with (tmp_path / "training.json").open("r+b") as file:
        file.seek(100)
        file.write(b"X")
    assert find_damage(tmp_path) == "training.json does not match its checksum in SHA256SUMS"


@pytest.mark.parametrize("name", FILES)
def test_checksums_must_cover_all_files_of_a_checkpoint(name, tmp_path):
    for other in {*FILES} - {name}:
        (tmp_path / other).write_bytes(b"content")
    write_checksums(tmp_path)
    assert find_damage(tmp_path, FILES) == f"{name} is missing"
    (tmp_path / name).write_bytes(b"not listed")
    assert find_damage(tmp_path, FILES) == f"{name} is missing"


def test_changed_and_missing_files_are_named(tmp_path):
    for name in ("one", "two words", "three"):
        (tmp_path / name).write_text(name)
    write_checksums(tmp_path)
    assert changed_files(tmp_path) == []
    (tmp_path / "two words").write_text("changed")
    (tmp_path / "three").unlink()
    assert changed_files(tmp_path) == ["three", "two words"]
    (tmp_path / "SHA256SUMS").write_text("malformed\n")
    with pytest.raises(ValueError, match="SHA256SUMS must have a checksum and a name in each line"):
        changed_files(tmp_path)
    assert find_damage(tmp_path) == "SHA256SUMS is malformed"
