"""Replacing model folders: files that this package did not write are never deleted."""

import json
import os
from pathlib import Path

import pytest

from mlx_transformer.checkpoints import model_folder
from mlx_transformer.checkpoints.replacement import (
    CARD,
    check_destination,
    delete_model_folder,
    replace_model_folder,
)
from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.model.transformer import Transformer

STACK = StackConfig(num_layers=1, num_heads=1, mlp_dims=4, max_length=4)
MODEL = ModelConfig(9, 9, 4, STACK, STACK)


@pytest.fixture
def model():
    return Transformer(MODEL)


@pytest.fixture
def folder(tmp_path, model):
    model_folder.save(tmp_path / "model", model)
    return tmp_path / "model"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder, message, **options):
    """Check that a folder is not replaced, and that nothing has changed."""
    before = contents(folder.parent)
    with pytest.raises(FileExistsError, match=message):
        with replace_model_folder(folder, **options):
            raise AssertionError
    assert contents(folder.parent) == before


def write_notes(folder):
    (folder / "notes.txt").write_text("Dear diary")
    return "notes.txt"


def write_database(folder):
    (folder / "data.db").write_bytes(bytes(100))
    return "data.db"


def write_repository(folder):
    (folder / ".git" / "objects").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    return ".git"


def write_empty_folder(folder):
    (folder / "plans").mkdir()
    return "plans"


def write_folder_with_the_name_of_a_file(folder):
    (folder / "tokenizer.json").mkdir()
    (folder / "tokenizer.json" / "notes").write_text("mine")
    return "tokenizer.json"


def write_dangling_link(folder):
    (folder / "vocabulary.json").symlink_to("/nowhere/vocabulary.json")
    return "vocabulary.json"


def write_card(folder):
    (folder / "README.md").write_text("# My model, after a long search for its settings")
    return "README.md"


def write_file_with_the_name_of_a_checkpoint(folder):
    (folder / "training.json").write_text("[]")
    return "training.json"


def write_file_with_the_name_of_a_tokenizer(folder):
    (folder / "sentencepiece.model").write_bytes(b"the only copy")
    return "sentencepiece.model"


def list_own_files_in_the_checksums(folder):
    (folder / "thesis.tex").write_text("all of it")
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  thesis.tex\n")
    return "thesis.tex"


OTHER_FILES = [
    write_notes,
    write_database,
    write_repository,
    write_empty_folder,
    write_folder_with_the_name_of_a_file,
    write_dangling_link,
    write_card,
    write_file_with_the_name_of_a_checkpoint,
    write_file_with_the_name_of_a_tokenizer,
    list_own_files_in_the_checksums,
]


@pytest.mark.parametrize("write", OTHER_FILES)
def test_other_files_are_named_and_kept(folder, model, write):
    name = write(folder)
    refused(folder, rf"{folder} holds files that do not belong to the model and would be lost \({name}\): move")
    before = contents(folder)
    with pytest.raises(FileExistsError, match=name):
        model_folder.save(folder, model)
    assert contents(folder) == before
    (folder / name).rename(folder.parent / "moved")
    model_folder.save(folder, model)


def test_four_names_are_given(folder):
    for name in "abcdef":
        (folder / name).touch()
    refused(folder, r"\(a, b, c, d and 2 more\)")


def test_files_that_appear_while_the_folder_is_written_are_kept(folder):
    before = contents(folder)
    with pytest.raises(FileExistsError, match="notes.txt"), replace_model_folder(folder) as new:
        (new / "config.json").write_text("{}")
        write_notes(folder)
    assert contents(folder) == before | {Path("notes.txt"): b"Dear diary"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_model_that_appears_while_the_folder_is_written_is_kept(folder, tmp_path):
    """Another process may have written it."""
    other = tmp_path / "other"
    with pytest.raises(FileExistsError, match="already exists"):
        with replace_model_folder(other, overwrite=False) as new:
            (new / "config.json").write_text("{}")
            folder.rename(other)
    model_folder.load(other)


def test_a_folder_of_an_earlier_version_is_replaced(folder, model):
    """It has no checksums; its card names this package."""
    (folder / "SHA256SUMS").unlink()
    (folder / "README.md").write_text(f"{CARD} from a torch checkpoint of the family marian")
    (folder / ".DS_Store").touch()
    model_folder.save(folder, model)
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "config.json", "model.safetensors"]


def test_an_edited_card_is_kept(folder):
    with replace_model_folder(folder) as new:
        for path in folder.iterdir():
            (new / path.name).write_bytes(path.read_bytes())
        (new / "README.md").write_text(f"{CARD} from a torch checkpoint")
    check_destination(folder)
    with (folder / "README.md").open("a") as file:
        file.write("My notes")
    refused(folder, "README.md")


@pytest.mark.parametrize("config", ["[", "[1]", '{"model_type": "bart"}', '{"format_version": 3, "theme": "dark"}'])
def test_projects_with_a_config_of_their_own_are_kept(tmp_path, config):
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.json").write_text(config)
    refused(project, f"{project} exists and is not a model folder: choose another name")


def test_files_devices_and_pipes_are_kept(tmp_path):
    (tmp_path / "file").write_text("text")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path in (*(tmp_path / name for name in ("file", "pipe", "link", "loop")), Path("/dev/null")):
        with pytest.raises(FileExistsError, match="exists and is not a model folder"), replace_model_folder(path):
            raise AssertionError
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", [".", "..", "../../parent", "../link"])
def test_the_working_directory_is_kept(tmp_path, monkeypatch, name):
    working = tmp_path / "parent" / "working"
    working.mkdir(parents=True)
    (working.parent / "link").symlink_to("working")
    monkeypatch.chdir(working)
    with pytest.raises(FileExistsError, match="is the current directory or holds it"), replace_model_folder(Path(name)):
        raise AssertionError


def test_a_deleted_working_directory(tmp_path, model, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    model_folder.save(tmp_path / "model", model)


@pytest.mark.parametrize("name", ["model", "model/model.safetensors", "model/original", "link/original"])
def test_the_source_is_kept(folder, name):
    (folder / "original").mkdir()
    (folder.parent / "link").symlink_to("model")
    refused(folder, f"{folder} is the source .* or holds it", source=folder.parent / name)


def test_mount_points_are_refused(folder, monkeypatch):
    """They cannot be renamed, which would only be seen after the conversion."""
    monkeypatch.setattr(Path, "is_mount", lambda path: path == folder)
    refused(folder, f"{folder} is a mount point, which cannot be replaced: choose a folder inside it")


def test_an_interrupted_replacement_is_restored_before_the_destination_is_checked(folder, tmp_path):
    claim = tmp_path / ".model.replacement"
    claim.mkdir()
    folder.rename(claim / "old")
    with pytest.raises(FileExistsError, match="already exists"), replace_model_folder(folder, overwrite=False):
        raise AssertionError
    model_folder.load(folder)


def test_deleting_leaves_other_files(folder):
    write_notes(folder)
    write_repository(folder)
    delete_model_folder(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".git", "notes.txt"]


def test_files_that_cannot_be_deleted_do_not_fail_a_replacement(folder, model, monkeypatch):
    """On network drives, open files are renamed instead of deleted."""
    unlink = Path.unlink

    def rename(path):
        if path.name == "model.safetensors":
            path.rename(path.with_name(".nfs0001"))
        else:
            unlink(path)

    monkeypatch.setattr(Path, "unlink", rename)
    for _ in range(2):
        model_folder.save(folder, model)
        model_folder.load(folder)


def test_checksums_cover_all_files(folder):
    names = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    assert names == ["config.json", "model.safetensors"]
    assert "format_version" in json.loads((folder / "config.json").read_text())
