"""Loading of model folders and of the bundled model."""

import gzip
import json

import mlx.core as mx
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten

import mlx_transformer as mt
from mlx_transformer.checkpoints import model_folder
from mlx_transformer.cli import main
from mlx_transformer.config.model import ModelConfig, StackConfig
from mlx_transformer.model.transformer import Transformer
from mlx_transformer.pretrained import hub, loading
from mlx_transformer.tokenization.vocabulary import WordVocabulary

STACK = StackConfig(num_layers=1, num_heads=2, mlp_dims=16, max_length=8)


@pytest.fixture
def folder(tmp_path):
    model_folder.save(tmp_path / "model", Transformer(ModelConfig(20, 20, 16, STACK, STACK)))
    return tmp_path / "model"


def test_load_accepts_paths_and_strings(folder):
    expected = dict(tree_flatten(model_folder.load(folder)[0].parameters()))
    for name in (folder, str(folder)):
        model = loading.load_model(name)
        assert not model.training
        assert all(mx.array_equal(array, expected[key]) for key, array in tree_flatten(model.parameters()))


@pytest.mark.parametrize(
    "model_type, message",
    [
        ("gpt2", "model_type 'gpt2' cannot be converted: it is a decoder without an encoder"),
        ("bert", "model_type 'bert' cannot be converted: it is an encoder without a decoder"),
        ("elmo", "model_type 'elmo' of config.json is not supported"),
        ("t5", "a folder must have a checkpoint: model.safetensors"),
    ],
)
def test_a_folder_of_transformers_without_weights_is_named_as_what_it_is(tmp_path, model_type, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    for use in (loading.load, lambda folder: mt.convert(folder, tmp_path / "converted")):
        with pytest.raises(ValueError, match=message):
            use(tmp_path)
    result = CliRunner().invoke(main, ["info", str(tmp_path)])
    assert result.exit_code == 1 and message in result.stderr


def test_an_adapter_without_weights_is_named_as_such(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(
        ValueError,
        match="belongs to an adapter, no whole model; give its base as the model and it by generate --adapter",
    ):
        loading.load(tmp_path)


def test_load_needs_a_tokenizer_and_load_model_none(folder, tmp_path):
    message = f"must have a tokenizer, but {folder} has none: .*, or load it without one by load_model"
    with pytest.raises(ValueError, match=message):
        mt.load(folder)
    model = mt.load_model(folder, dtype="float16")
    assert model.dtype == mx.float16
    tokenizer = mt.Tokenizer(WordVocabulary({word: i for i, word in enumerate(["<pad>", "</s>", "<s>", "one"])}, 0))
    model_folder.save(tmp_path / "whole", Transformer(ModelConfig(4, 4, 16, STACK, STACK)), tokenizer)
    assert mt.load(tmp_path / "whole")[1].encode("one") == tokenizer.encode("one")


def test_load_passes_the_dtype_on(folder):
    assert loading.load_model(folder, mx.float16).dtype == mx.float16


def test_default_is_the_bundled_model(folder, monkeypatch):
    monkeypatch.setattr(loading, "BUNDLED_MODEL", folder)
    assert loading.find_model() == folder
    assert loading.load_model().config == model_folder.load(folder)[0].config


def test_missing_model_error_names_the_path(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=f"or owner/name on the hub: there is none at {tmp_path / 'nowhere'}"):
        loading.load(tmp_path / "nowhere")
    monkeypatch.setattr(loading, "BUNDLED_MODEL", tmp_path / "bundled")
    with pytest.raises(FileNotFoundError, match=f"there is none at {tmp_path / 'bundled'}"):
        loading.load()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "^A model must have a name or a path, not an empty one: check the variable that names it.$"),
        ("https://huggingface.co/Helsinki-NLP/opus-mt-en-de/tree/main", "not a URL: give Helsinki-NLP/opus-mt-en-de.$"),
        ("https://hf.co/google-t5/t5-small", "not a URL: give google-t5/t5-small.$"),
        ("http://example.com/model.pt", "not a URL: download its files, and give their path.$"),
    ],
)
def test_empty_names_and_urls_are_no_models(tmp_path, monkeypatch, name, message):
    model_folder.save(tmp_path / "model", Transformer(ModelConfig(20, 20, 16, STACK, STACK)))
    monkeypatch.chdir(tmp_path / "model")
    for use in (loading.load, loading.find_torch_checkpoint):
        with pytest.raises(ValueError, match=message):
            use(name)


@pytest.mark.skipif(not loading.BUNDLED_MODEL.is_dir(), reason="no model is bundled in this checkout")
def test_the_bundled_model_translates():
    model, tokenizer = mt.load()
    french = mt.generate(model, tokenizer, ["Where is the station?", "The cat is black.", ""])
    assert "gare" in french[0].lower() and french[1:] == ["Le chat est noir.", ""]


@pytest.mark.skipif(not loading.BUNDLED_MODEL.is_dir(), reason="no model is bundled in this checkout")
def test_bundled_model_translates_every_line_of_a_real_corpus(shared_data):
    with gzip.open(shared_data / "tatoeba-en-fr" / "dev.tsv.gz", "rt", encoding="utf-8") as file:
        lines = [line.split("\t")[0] for line in file][:200]
    lines[7:7] = ["", "  "]
    result = CliRunner().invoke(main, ["generate", "--beam-size", "1"], input="\n".join(lines) + "\n")
    answers = result.stdout.split("\n")
    assert result.exit_code == 0 and len(answers) == len(lines) + 1
    assert [bool(answer) for answer in answers[:-1]] == [bool(line.strip()) for line in lines]


def test_training_run_error_suggests_the_best_model(folder, tmp_path):
    folder.rename(tmp_path / "best")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is a training run, .*: use {tmp_path}/best"):
        loading.find_model(tmp_path)


def test_an_adapter_of_the_hub_is_downloaded_once(tmp_path, monkeypatch):
    model = mt.load_model()
    mt.add_adapter(model, mt.AdapterConfig(rank=1, alpha=1.0))
    mt.save_adapter(tmp_path / "adapter", model)
    downloads = []

    def download(name):
        downloads.append(name)
        return tmp_path / "adapter"

    monkeypatch.setattr(hub, "download_adapter", download)
    mt.load(adapter="someone/adapter")
    assert downloads == ["someone/adapter"]
    downloads.clear()
    result = CliRunner().invoke(main, ["fuse", "bundled", "someone/adapter", str(tmp_path / "fused")])
    assert result.exit_code == 0, result.output
    assert downloads == ["someone/adapter"]
