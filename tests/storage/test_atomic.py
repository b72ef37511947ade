"""Atomic replacement of files and folders: the old version or the new one, whatever happens in between."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from mlx_transformer.storage.atomic import (
    atomic_replace,
    atomic_symlink,
    atomic_write,
    atomic_write_text,
    finish_interrupted_replacement,
    restore_interrupted_replacement,
    try_lock,
)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer" / "vocabulary.json").write_text("[]")
    return folder


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_keeps_the_old_folder(folder, tmp_path, kind):
    before = contents(tmp_path)
    with pytest.raises(kind, match="in between"), atomic_replace(folder) as new:
        (new / "config.json").write_text("half")
        raise kind("in between")
    assert contents(tmp_path) == before and list(tmp_path.iterdir()) == [folder]


def test_an_exception_leaves_no_folder_behind(tmp_path):
    with pytest.raises(RuntimeError), atomic_replace(tmp_path / "new"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rename_keeps_the_old_folder(folder, tmp_path, monkeypatch):
    before = contents(tmp_path)
    rename = Path.rename

    def failing(self, target):
        if self.name == "new":
            raise OSError("no rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no rename"), atomic_replace(folder) as new:
        (new / "file").write_text("new")
    assert contents(tmp_path) == before and list(tmp_path.iterdir()) == [folder]


def test_the_old_folder_stays_until_the_block_ends(folder):
    before = contents(folder)
    with atomic_replace(folder) as new:
        assert new.parent.parent == folder.parent  # same file system, so that a rename suffices
        (new / "file").write_text("new")
        assert contents(folder) == before
    assert contents(folder) == {Path("file"): b"new"}


def test_leftovers_of_killed_processes_are_removed(folder, tmp_path):
    for leftover in ("new", "old"):
        (tmp_path / ".model.replacement" / leftover).mkdir(parents=True)
        (tmp_path / ".model.replacement" / leftover / "junk").write_text("junk")
    with atomic_replace(folder) as new:
        (new / "file").write_text("new")
    assert contents(tmp_path) == {Path("model/file"): b"new"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_is_replaced_by_one_holder_at_a_time(tmp_path):
    with atomic_replace(tmp_path / "model") as new:
        (new / "file").write_text("one")
        with pytest.raises(BlockingIOError, match="is being written by another process"):
            with atomic_replace(tmp_path / "model"):
                raise AssertionError
    assert contents(tmp_path) == {Path("model/file"): b"one"}


def test_a_folder_is_claimed_until_its_old_version_is_deleted(folder, tmp_path):
    """A second writer that came in between would lose its files, or delete those of the first one."""

    def delete(path):
        with pytest.raises(BlockingIOError), atomic_replace(folder):
            raise AssertionError
        shutil.rmtree(path)

    with atomic_replace(folder, delete=delete) as new:
        (new / "file").write_text("new")
    assert contents(tmp_path) == {Path("model/file"): b"new"}


def interrupt_replacement(folder):
    """Leave what a process leaves that is killed between the two renames."""
    claim = folder.with_name(f".{folder.name}.replacement")
    (claim / "new").mkdir(parents=True)
    (claim / "new" / "file").write_text("new")
    folder.rename(claim / "old")


def test_interrupted_replacement_is_restored(folder, tmp_path, caplog):
    before = contents(folder)
    interrupt_replacement(folder)
    restore_interrupted_replacement(folder)
    assert contents(folder) == before and f"{folder} was restored" in caplog.text
    with atomic_replace(folder) as new:
        (new / "file").write_text("newer")
    assert contents(tmp_path) == {Path("model/file"): b"newer"} and list(tmp_path.iterdir()) == [folder]


def test_a_replacement_restores_before_it_replaces(folder):
    before = contents(folder)
    interrupt_replacement(folder)
    with pytest.raises(RuntimeError), atomic_replace(folder):
        raise RuntimeError
    assert contents(folder) == before


def test_restore_keeps_an_existing_folder(folder, tmp_path):
    before = contents(folder)
    restore_interrupted_replacement(folder)
    assert list(tmp_path.iterdir()) == [folder]
    (tmp_path / ".model.replacement" / "old").mkdir(parents=True)
    restore_interrupted_replacement(folder)
    restore_interrupted_replacement(Path("/"))
    restore_interrupted_replacement(tmp_path / ("x" * 250))
    assert contents(folder) == before


def test_files_that_a_replacement_must_keep_are_named(folder, tmp_path, caplog):
    with atomic_replace(folder, delete=lambda path: None) as new:
        (new / "file").write_text("new")
    with atomic_replace(folder, delete=lambda path: None) as new:
        (new / "file").write_text("newer")
    (kept,) = tmp_path.glob("model.*.kept")
    assert (kept / "config.json").exists() and f"{kept} has files that an earlier replacement kept" in caplog.text


def test_a_link_in_place_of_the_hidden_folder_is_not_followed(folder, tmp_path):
    (tmp_path / "mine" / "new").mkdir(parents=True)
    (tmp_path / "mine" / "new" / "thesis.tex").write_text("all of it")
    (tmp_path / ".model.replacement").symlink_to("mine")
    with pytest.raises(FileExistsError, match="must not be a link"), atomic_replace(folder):
        raise AssertionError
    assert (tmp_path / "mine" / "new" / "thesis.tex").exists()


def test_the_new_folder_has_the_permissions_of_the_old_one(folder):
    folder.chmod(0o700)
    with atomic_replace(folder) as new:
        (new / "file").write_text("new")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_old_folder_may_be_moved_instead_of_deleted(folder, tmp_path):
    before = contents(folder)
    with atomic_replace(folder, lambda old: old.rename(tmp_path / "earlier")) as new:
        (new / "file").write_text("new")
    assert contents(tmp_path / "earlier") == before and contents(folder) == {Path("file"): b"new"}


@pytest.mark.parametrize("renames", [1, 2])
def test_an_interrupted_replacement_is_finished(folder, tmp_path, renames):
    """Killed after the first rename, the old folder is restored; after the second one, it is moved."""
    before = contents(folder)
    interrupt_replacement(folder)
    if renames == 2:
        (tmp_path / ".model.replacement" / "new").rename(folder)
    finish_interrupted_replacement(folder, lambda old: old.rename(tmp_path / "earlier"))
    assert contents(tmp_path / "earlier" if renames == 2 else folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "model"][2 - renames :]


def test_text_files_are_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "options.toml"
    atomic_write_text(path, "old\n")
    atomic_write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode() and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no rename")))
    with pytest.raises(OSError, match="no rename"):
        atomic_write_text(path, "new\n")
    assert path.read_bytes() == "é\n".encode()


def test_an_exception_keeps_the_old_file(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")
    for keep in (False, True):
        with pytest.raises(KeyboardInterrupt), atomic_write(path, keep_partial=keep) as file:
            file.write(b"half")
            raise KeyboardInterrupt
        assert path.read_text() == "old"
        assert [name.read_text() for name in tmp_path.glob("out.*.partial")] == ["half"] * keep


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_old_file_or_of_the_umask(tmp_path, umask):
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    old.chmod(0o604)
    previous = os.umask(umask)
    try:
        for path in (old, new):
            with atomic_write(path) as file:
                assert os.fstat(file.fileno()).st_mode & 0o777 & umask == 0
    finally:
        os.umask(previous)
    assert old.stat().st_mode & 0o777 == 0o604 and new.stat().st_mode & 0o777 == 0o666 & ~umask


def test_links_stay_links_and_long_names_are_possible(tmp_path):
    (tmp_path / "link").symlink_to("é" * 127)
    atomic_write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / ("é" * 127)).read_text() == "new"


def test_folders_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "loop", Path("/dev/null")):
        with pytest.raises(ValueError, match="must be a file, not a folder, device, pipe or link to itself"):
            atomic_write_text(path, "new")
    assert sorted(os.listdir(tmp_path)) == ["loop", "pipe"]


@pytest.mark.parametrize("write", [atomic_write_text, atomic_symlink])
def test_files_of_the_user_with_temporary_names_are_kept(tmp_path, write):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".file.new").symlink_to("mine")
    write(tmp_path / "file", "text")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / ".file.new").is_symlink()


def test_symbolic_links_are_replaced(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        atomic_symlink(tmp_path / "link", tmp_path / name)
        assert (tmp_path / "link").readlink() == tmp_path / name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "one", "two"]


def test_a_folder_is_locked_by_one_holder_at_a_time(tmp_path):
    with try_lock(tmp_path) as first:
        with try_lock(tmp_path) as second:
            assert (first, second) == (True, False)
    with try_lock(tmp_path) as again:
        assert again


def test_a_lock_counts_only_while_the_folder_is_in_its_place(tmp_path, monkeypatch):
    """Another process may have removed or renamed the folder just before it was locked."""
    with try_lock(tmp_path / "none") as locked:
        assert not locked
    (tmp_path / "one").mkdir()
    flock = fcntl.flock

    def late(descriptor, operation):
        (tmp_path / "one").rename(tmp_path / "two")
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with try_lock(tmp_path / "one") as locked:
        assert not locked


def test_a_private_folder_stays_private_while_it_is_replaced(folder):
    folder.chmod(0o700)
    with atomic_replace(folder) as new:
        assert new.stat().st_mode & 0o777 == 0o700
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_claim_that_another_process_removes_meanwhile_counts_as_held(folder, monkeypatch):
    """The other one removes the hidden folder just after this one has found it, or has locked it."""
    mkdir, flock, claim = os.mkdir, fcntl.flock, folder.parent / ".model.replacement"

    def vanish(path, *arguments, **options):
        if Path(path) == claim:
            raise FileExistsError(17, "File exists", str(path))
        mkdir(path, *arguments, **options)

    def lock_and_remove(*arguments):
        flock(*arguments)
        claim.rmdir()

    for module, name, replacement in ((os, "mkdir", vanish), (fcntl, "flock", lock_and_remove)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, replacement)
            patch.setattr(Path, "exists", lambda path: True)
            with pytest.raises(BlockingIOError, match="is being written by another process"), atomic_replace(folder):
                pass
    with atomic_replace(folder):
        pass


def test_a_claim_must_be_a_folder(folder):
    (folder.parent / ".model.replacement").write_text("a file of the user")
    with pytest.raises(FileExistsError), atomic_replace(folder):
        pass
