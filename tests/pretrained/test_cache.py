"""The cache of converted models: what is listed and deleted, and what is left alone."""

import os

import pytest

from mlx_transformer.pretrained import cache

FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def add_model(name, commit, last_used=None, version=cache.CONVERSION_VERSION):
    model = cache.repository_folder(name) / f"{commit}-v{version}"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    os.utime(model, last_used and (last_used, last_used))
    return model


def test_models_of_no_revision_are_superseded(folder):
    old, new = add_model("owner/name", FIRST, last_used=1e9), add_model("owner/name", SECOND, last_used=2e9)
    cache.write_last_used("owner/name", None, old)
    os.utime(old, (1e9, 1e9))
    cache.write_last_used("owner/name", "v1", new)
    assert [(model.commit, model.revisions) for model in cache.cached_models()] == [(SECOND, ["v1"]), (FIRST, ["main"])]
    assert cache.prune_cache() == []
    cache.write_last_used("owner/name", None, new)
    assert not old.exists()  # it was last used long ago
    (model,) = cache.cached_models("owner/name")
    assert (model.commit, model.revisions, model.size, model.is_current) == (SECOND, ["main", "v1"], 2, True)


def test_a_superseded_model_that_may_be_in_use_is_kept_for_a_while(folder):
    old, new = add_model("owner/name", FIRST), add_model("owner/name", SECOND)
    cache.write_last_used("owner/name", None, old)
    cache.write_last_used("owner/name", None, new)
    assert old.exists()
    assert [model.folder for model in cache.prune_cache()] == [old] and new.exists()


def test_models_of_earlier_versions_of_the_cache_are_listed_and_pruned(folder):
    add_model("owner/name", FIRST, last_used=1e9, version="x").rename(folder / "owner--name" / f"{FIRST}-0.1.0")
    (model,) = cache.cached_models()
    assert (model.repository, model.commit, model.is_current) == ("owner/name", FIRST, False)
    assert len(cache.prune_cache()) == 1 and cache.cached_models() == []


def test_everything_else_is_left_alone(folder):
    """The variable may name a folder that other programs use, such as the cache of huggingface_hub."""
    foreign = [
        folder / "models--owner--name" / "snapshots" / FIRST / "config.json",
        folder / "models--owner--name" / "blobs" / "config.json",
        folder / "my--notes" / "diary" / "config.json",
        folder / "my--notes" / f"{FIRST}-v2" / "notes.txt",
        folder / "config.json",
        folder.parent / "beside" / "config.json",
        folder.parent / f"{FIRST}-v2" / "config.json",
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert cache.cached_models() == [] and cache.prune_cache() == []
    for name in ("..", ".", "", "/", "../..", "my/notes", "models/owner--name", str(folder), "name"):
        with pytest.raises(FileNotFoundError, match="The cache has no model"):
            cache.remove_cached(name)
    assert all(path.exists() for path in foreign)


def test_models_are_removed_with_their_records_and_links_without_their_targets(folder):
    add_model("owner/name", FIRST)
    target = folder.parent / "downloaded"
    target.mkdir()
    (target / "config.json").write_text("{}")
    link = folder / "owner--name" / f"{SECOND}-v{cache.CONVERSION_VERSION}"
    link.symlink_to(target)
    cache.write_last_used("owner/name", None, link)
    assert {model.size for model in cache.cached_models()} == {0, 2}
    assert len(cache.remove_cached("owner/name")) == 2
    assert cache.read_last_used("owner/name", None) is None and (target / "config.json").exists()
    assert [path.name for path in (folder / "owner--name").iterdir()] == [".lock"]
