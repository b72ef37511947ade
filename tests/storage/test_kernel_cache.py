"""The folder of compiled kernels: only this user may be able to write to it."""

import os

import pytest

from mlx_transformer.storage import kernel_cache
from mlx_transformer.storage.kernel_cache import find_risk


@pytest.fixture
def temporary(tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o002, 0o077])
def test_a_new_folder_is_private_and_stays_usable(temporary, umask):
    previous = os.umask(umask)
    try:
        assert find_risk(temporary) is None
        (temporary / "mlx" / "0.1" / "cpu").mkdir(parents=True)  # as MLX does
        (temporary / "mlx" / "0.1" / "cpu" / "libA.so").touch()
    finally:
        os.umask(previous)
    assert (temporary / "mlx").stat().st_mode & 0o077 == 0
    assert find_risk(temporary) is None


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o775, 0o1777, 0o702])
def test_a_folder_that_others_can_write_to_is_a_risk(temporary, mode):
    (temporary / "mlx").mkdir()
    (temporary / "mlx").chmod(mode)
    assert find_risk(temporary) == f"{temporary}/mlx belongs to another user, or other users can write to it"


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_reachable_part_that_others_can_write_to_is_a_risk(temporary, depth):
    part = temporary / "mlx"
    for name in ("0.1", "cpu", "cache")[:depth]:
        part /= name
    part.mkdir(parents=True)
    (temporary / "mlx").chmod(0o755)
    assert find_risk(temporary) is None
    part.chmod(0o777)
    assert find_risk(temporary) == f"{part} belongs to another user, or other users can write to it"


@pytest.mark.parametrize("target", ["own", "absent"])
def test_a_link_is_a_risk(temporary, target):
    (temporary / "own").mkdir(mode=0o700)
    (temporary / "mlx").symlink_to(target)
    assert find_risk(temporary) == f"{temporary}/mlx belongs to another user, or other users can write to it"
    assert not (temporary / "absent").exists()


def test_a_temporary_folder_whose_entries_others_can_rename_is_a_risk(temporary):
    temporary.chmod(0o777)
    assert find_risk(temporary) == f"{temporary} belongs to another user, or other users can rename what is in it"
    assert os.listdir(temporary) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
@pytest.mark.parametrize("part", ["", "mlx", "mlx/0.1", "mlx/0.1/cpu/libA.so"])
def test_what_belongs_to_another_user_is_a_risk(temporary, part):
    (temporary / "mlx" / "0.1" / "cpu").mkdir(parents=True)
    (temporary / "mlx" / "0.1" / "cpu" / "libA.so").touch()
    os.chown(temporary / part, 4242, -1)
    assert find_risk(temporary).startswith(f"{temporary / part} belongs to another user, or other users can")


@pytest.mark.parametrize("name", ["absent", "file"])
def test_an_unusable_temporary_folder_is_a_risk(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o600)
    assert f"{tmp_path / name}" in find_risk(tmp_path / name)


def test_the_temporary_folder_is_that_of_cpp(monkeypatch):
    for name in kernel_cache.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert str(kernel_cache.temporary_folder()) == "/tmp"
    for name in reversed(kernel_cache.VARIABLES):
        monkeypatch.setenv(name, f"/{name}")
        assert str(kernel_cache.temporary_folder()) == f"/{name}"
