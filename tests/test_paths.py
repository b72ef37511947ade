"""Every function of the library that takes a path takes a string, a `pathlib.Path` or any other path object."""

import dataclasses
from pathlib import Path

import pytest
from support.tiny_checkpoints import opus_mt
from support.training_cases import NEW_MODEL_DEFAULTS, run_options, write_corpora

import mlx_transformer as mt


class PathObject:
    """A path object that is not a `pathlib.Path`, as `os.scandir` yields them."""

    def __init__(self, path):
        self.path = str(path)

    def __fspath__(self):
        return self.path


KINDS = pytest.mark.parametrize("kind", [str, Path, PathObject])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("checkpoint")
    opus_mt(folder)
    return folder


@KINDS
def test_corpora_runs_and_curves(kind, tmp_path):
    pytest.importorskip("matplotlib")
    write_corpora(tmp_path)
    options = run_options(tmp_path, steps=2, train=kind(tmp_path / "train.tsv"), valid=[kind(tmp_path / "valid.tsv")])
    best = mt.train(dataclasses.replace(options, output=kind(tmp_path / "run")))
    tuned = dataclasses.replace(options, **NEW_MODEL_DEFAULTS, init=kind(best), output=kind(tmp_path / "tuned"))
    assert mt.train(tuned) == tmp_path / "tuned" / "best"
    for runs in (kind(tmp_path / "run"), [kind(tmp_path / "run"), kind(tmp_path / "tuned")]):
        assert mt.plot_learning_curves(runs).axes


@pytest.mark.torch
@KINDS
def test_models_and_tokenizers(kind, checkpoint, tmp_path):
    assert mt.convert(kind(checkpoint), dry_run=True).num_tensors
    mt.convert(kind(checkpoint), kind(tmp_path / "converted"))
    for path in (checkpoint, tmp_path / "converted"):
        model, tokenizer = mt.load(kind(path))
        assert mt.load_model(kind(path)).config == model.config
    mt.save(kind(tmp_path / "saved"), model, tokenizer)
    ids = mt.Tokenizer.load(kind(tmp_path / "saved")).encode("I love you.")
    assert ids == tokenizer.encode("I love you.") == mt.Tokenizer.find(kind(tmp_path / "saved")).encode("I love you.")


@pytest.mark.torch
@KINDS
def test_vocabularies_of_a_checkpoint(kind, checkpoint, tmp_path):
    file = tmp_path / "vocabulary.json"
    file.write_bytes((checkpoint / "vocab.json").read_bytes())
    for number, tokenizer in enumerate((kind(file), mt.TokenizerOptions(kind(file), kind(file)))):
        mt.convert(checkpoint, tmp_path / f"{number}", tokenizer=tokenizer)
        assert mt.load(tmp_path / f"{number}")


@KINDS
def test_adapters(kind, tmp_path):
    mt.save(tmp_path / "model", *mt.load())
    model = mt.load_model(tmp_path / "model")
    mt.add_adapter(model, mt.AdapterConfig(rank=2, alpha=2.0))
    mt.save_adapter(kind(tmp_path / "adapter"), model)
    base, _ = mt.load(kind(tmp_path / "model"), adapter=kind(tmp_path / "adapter"))
    assert mt.load_adapter(base, kind(tmp_path / "adapter")).rank == 2
    mt.save_peft_adapter(kind(tmp_path / "peft"), base)
    assert mt.load_adapter(base, kind(tmp_path / "peft")).rank == 2
