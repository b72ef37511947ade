"""The commands `models`: searches, and what is removed from a machine and what is not."""

import json
import re

import pytest
from huggingface_hub import constants
from support.command_line import error_line
from support.tiny_models import config, random_model, stack

import mlx_transformer as mt
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.cli.commands import models
from mlx_transformer.pretrained import cache

COMMIT = "a" * 40


class TestSearch:
    def test_without_a_command_all_models_are_listed(self, echo):
        text = echo("models").stdout
        assert text == echo("models", "search").stdout
        assert [model.name for model in mt.known_models() if model.name not in text] == []

    def test_a_table_with_notes(self, echo):
        lines = echo("models", "search", "--task", "grammar").stdout.splitlines()
        assert lines[0].split() == ["model", "task", "languages", "MB", "licence"]
        assert lines[1].split() == ["grammarly/coedit-large", "grammar", "en", "3,133", "CC-BY-NC-4.0"]
        assert lines[2] == "" and lines[3].startswith("grammarly/coedit-large  The text begins with an instruction")

    def test_languages_in_words(self, echo):
        text = echo("models", "--from", "en", "--to", "French").stdout
        rows = {line.split()[0]: line for line in text.partition("\n\n")[0].splitlines()}
        assert (
            "  en to fr  " in rows["Helsinki-NLP/opus-mt-en-fr"]
            and "  en to 23 " in rows["Helsinki-NLP/opus-mt-en-ROMANCE"]
        )
        assert "  any of 100  " in rows["facebook/m2m100_418M"]

    def test_options_need_no_command(self, echo):
        options = ("--from", "fr", "--to", "de")
        assert echo("models", *options).stdout == echo("models", "search", *options).stdout != echo("models").stdout

    def test_a_way_through_english_where_no_model_has_just_the_pair(self, echo):
        last = echo("models", "--from", "ko", "--to", "fr").stdout.splitlines()[-1]
        assert last == "Through English: Helsinki-NLP/opus-mt-ko-en, then Helsinki-NLP/opus-mt-en-fr."
        for pair in (("fr", "de"), ("fr", "ko"), ("en", "fr")):
            assert "Through English" not in echo("models", "--from", pair[0], "--to", pair[1]).stdout

    def test_json(self, echo):
        facts = json.loads(echo("models", "--from", "ko", "--to", "fr", "--json").stdout)
        assert facts["pivot"] == ["Helsinki-NLP/opus-mt-ko-en", "Helsinki-NLP/opus-mt-en-fr"]
        (m2m100,) = [model for model in facts["models"] if model["name"] == "facebook/m2m100_418M"]
        assert (m2m100["task"], m2m100["megabytes"], m2m100["licence"]) == ("translation", 1936, "MIT")
        assert {"ko", "fr"} <= set(m2m100["sources"])
        assert json.loads(echo("models", "search", "nonsense", "--json").stdout) == {"models": [], "pivot": []}

    def test_no_model_names_what_comes_near(self, echo):
        line = error_line(echo("models", "search", "news", "--task", "summarisation", "--from", "fr", status=1))
        assert "fits 'news --from fr --task summarisation': without --from there are facebook/bart-large-cnn" in line
        assert "without --task" not in line and "without news" not in line
        line = error_line(echo("models", "search", "nonsense", "--task", "grammar", status=1))
        assert "without nonsense there are grammarly/coedit-large." in line

    def test_an_unknown_language_names_the_option(self, echo):
        line = error_line(echo("models", "--to", "Fremch", status=2))
        assert line.startswith("Error: --to must be a language") and "Similar ones are French" in line

    def test_a_misspelt_command(self, echo):
        line = error_line(echo("models", "serch", status=2))
        assert line == "Error: No such command 'serch'. Similar ones are search. See main models --help.\n"


class TestDownload:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (
                "opus-mt-ko-en",
                "owner/name on the hub, not 'opus-mt-ko-en'. Similar ones are Helsinki-NLP/opus-mt-ko-en",
            ),
            (".", "must be owner/name on the hub, not a path: use . as it is."),
            ("https://huggingface.co/owner/name", "not a URL: give owner/name."),
        ],
    )
    def test_names_that_are_not_on_the_hub(self, echo, name, text):
        assert text in error_line(echo("models", "download", name, status=1))

    def test_the_bundled_model_needs_none(self, echo):
        assert echo("models", "download", "bundled").stdout == "The bundled model is part of the package.\n"


class TestRemove:
    @pytest.fixture
    def machine(self, tmp_path, monkeypatch):
        """A machine with a converted model of 1 kB, and its downloads of 2 kB."""
        monkeypatch.setenv("MLX_TRANSFORMER_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        self.converted = cache.converted_folder("owner/name", COMMIT)
        self.downloads = tmp_path / "hub" / "models--owner--name"
        for folder, size in ((self.converted, 998), (self.downloads / "blobs", 2000)):
            folder.mkdir(parents=True)
            (folder / "weights").write_bytes(bytes(size))
        (self.converted / "config.json").write_text("{}")
        (self.downloads / "snapshots").mkdir()
        (self.downloads / "snapshots" / "weights").symlink_to(self.downloads / "blobs" / "weights")
        (tmp_path / "hub" / "models--owner--other").mkdir()
        monkeypatch.setattr("mlx_transformer.cli.commands.models.format_size", "{} bytes".format)
        monkeypatch.setattr("mlx_transformer.cli.commands.cache.format_size", "{} bytes".format)
        return tmp_path

    @pytest.mark.parametrize("answer", [b"y\n", None])
    def test_downloads_stay(self, echo, machine, answer):
        result = echo("models", "remove", "owner/name", *([] if answer else ["--yes"]), stdin=answer or b"")
        assert result.stdout.endswith("Deleted 1 model, 1000 bytes.\n")  # click 8.2 echoes the answer before it
        assert not self.converted.exists() and (self.downloads / "blobs" / "weights").exists()
        if answer:
            frees, keeps, question = result.stderr.splitlines()
            assert frees == f"Frees 1 model, 1000 bytes in {self.converted.parent}"
            assert keeps == f"Keeps downloads, 2000 bytes in {self.downloads}; --downloads deletes them"
            assert question.startswith("Delete? [y/N]")

    def test_downloads_too(self, echo, machine):
        result = echo("models", "remove", "owner/name", "--downloads", stdin=b"y\n")
        assert result.stdout.endswith("Deleted 1 model, 1000 bytes and downloads, 2000 bytes.\n")
        assert not self.converted.exists() and not self.downloads.exists()
        assert [path.name for path in (machine / "hub").iterdir()] == ["models--owner--other"]
        assert f"Frees downloads, 2000 bytes in {self.downloads}\n" in result.stderr

    @pytest.mark.parametrize(("answer", "text"), [(b"n\n", "the answer was no"), (b"", "answer y, or add --yes")])
    def test_nothing_is_deleted_without_a_yes(self, echo, machine, answer, text):
        result = echo("models", "remove", "owner/name", "--downloads", stdin=answer, status=1)
        assert re.search(f"Error: Nothing was deleted.*{text}.$", result.stderr.splitlines()[-1])
        assert "Deleted" not in result.stdout and self.converted.exists() and self.downloads.exists()

    def test_an_interrupt_of_the_question_is_one(self, machine, monkeypatch):
        def interrupt(prompt):
            raise KeyboardInterrupt

        monkeypatch.setattr("click.termui.visible_prompt_func", interrupt)
        with pytest.raises(KeyboardInterrupt):
            models.confirm("Frees nothing")

    def test_downloads_alone_need_their_option(self, echo, machine):
        cache.remove_cached("owner/name")
        line = error_line(echo("models", "remove", "owner/name", "--yes", status=1))
        assert line == "Error: Only downloads of owner/name are on this machine: add --downloads to delete them.\n"
        assert self.downloads.exists()
        echo("models", "remove", "owner/name", "--yes", "--downloads")
        assert not self.downloads.exists()

    @pytest.mark.parametrize("name", ["owner/none", "../..", "/", "owner", "models--owner--name"])
    def test_a_model_that_is_not_there(self, echo, machine, name):
        line = error_line(echo("models", "remove", name, "--yes", "--downloads", status=1))
        assert f"There is no model {name} on this machine: mlx-transformer models list" in line
        assert self.converted.exists() and self.downloads.exists()


class TestList:
    def test_models_with_their_precision(self, echo, tmp_path, monkeypatch):
        monkeypatch.setenv("MLX_TRANSFORMER_CACHE", str(tmp_path))
        model = random_model(config(dims=64, encoder=stack(mlp_dims=64), decoder=stack(mlp_dims=64)))
        folders = [cache.converted_folder("owner/name", letter * 40) for letter in "ab"]
        for folder, options in zip(folders, ({"dtype": "float16"}, {"quantize": 8}), strict=True):
            folder.parent.mkdir(exist_ok=True)
            model_folder.save(folder, model, **options)
        cache.write_last_used("owner/name", None, folders[0])
        cache.write_last_used("owner/name", "v1", folders[1])
        text = echo("models", "list").stdout
        assert "owner/name aaaaaaaa (main) float16\n" in text and "owner/name bbbbbbbb (v1) 8 bits\n" in text
        facts = json.loads(echo("models", "list", "--json").stdout)["models"]
        assert {model["precision"] for model in facts} == {"float16", "8 bits"}

    def test_a_damaged_model_has_no_precision(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MLX_TRANSFORMER_CACHE", str(tmp_path))
        folder = cache.converted_folder("owner/name", COMMIT)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (model,) = mt.cached_models()
        assert model.precision == ""
