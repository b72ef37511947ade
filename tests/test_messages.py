"""Values in error messages are short and printable."""

import importlib.metadata
import json

import pytest

from mlx_transformer.messages import (
    MAX_LISTED,
    MAX_VALUE,
    install_command,
    is_unicode,
    short_names,
    short_repr,
    shorten,
    similar_names,
)


@pytest.mark.parametrize("value", ["a" * 10**6, "\n\0\ud800", [["a" * 999] * 99] * 99, 10**400, {"a": {"b": "c" * 99}}])
def test_representations_are_short_and_printable(value):
    assert len(short_repr(value)) <= MAX_VALUE and short_repr(value).isprintable()


def test_short_values_are_shown_whole():
    assert [short_repr(value) for value in ("▁the", 3, None, [1, 2])] == ["'▁the'", "3", "None", "[1, 2]"]
    assert shorten("one\n  line\x1b") == "one line\\x1b"
    assert shorten("a" * 30, 10) == "aaaaaaa..."


def test_names_are_counted():
    assert short_names("ab") == "a, b"
    assert short_names("abcdefg") == "a, b, c, d and 3 more"
    assert short_names([]) == ""


@pytest.mark.parametrize("names", [["a" * 40] * 9, ["a" * 10**6] * 2, ["\0" * 60, "b"], ["a" * 55] * 2])
def test_listed_names_are_short(names):
    text = short_names(names)
    assert len(text) <= MAX_LISTED and text[:30] == shorten(names[0])[:30]
    assert text.endswith(("more", "...")) or text == ", ".join(names)


def test_similar_names():
    assert similar_names("stepps", ["steps", "seed"]) == "Similar ones are steps."
    assert similar_names("xyz", ["steps", "seed"]) == "Known ones are steps, seed."


def test_surrogates_are_no_unicode():
    assert is_unicode("é 🙂") and not is_unicode("\udce9")


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'mlx_transformer[train]'"),
        ({"url": "file:///models/a%20clone", "dir_info": {}}, "pip install '/models/a clone[train]'"),
        (
            {"url": "https://example.org/m.git", "vcs_info": {"vcs": "git"}},
            "pip install 'mlx_transformer[train] @ git+https://example.org/m.git'",
        ),
        ({"url": "https://example.org/m.whl"}, "pip install 'mlx_transformer[train] @ https://example.org/m.whl'"),
    ],
)
def test_an_extra_is_installed_from_where_the_package_came(monkeypatch, origin, command):
    class Distribution:
        def read_text(self, name):
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Distribution())
    assert install_command("train") == command


def test_a_package_that_is_not_installed_has_a_command_too(monkeypatch):
    def fail(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", fail)
    assert install_command("train") == "pip install 'mlx_transformer[train]'"
