"""Vocabularies beside Marian's models: lists of pieces with SentencePiece models, or SentencePiece models alone."""

import gzip
import json
import re
import zipfile

import pytest
import sentencepiece
from click.testing import CliRunner
from support.command_line import error_line
from support.marian_files import SEPARATE, STUDENT, MarianModel, options_yaml, write_npz
from support.marian_folders import MARIAN_IDS, OPUS_SEARCH, write_firefox_folder, write_opus_folder
from support.texts import CORPUS
from support.tiny_sentencepiece_tokenizers import ENGLISH, OTHERS, list_pieces, train_sentencepiece

import mlx_transformer as mt
from mlx_transformer.cli import main
from mlx_transformer.weights.tokenizers.marian_vocabularies import read_list

TEXTS = [*CORPUS[:6], "a </s> b", ""]


@pytest.fixture
def opus(tmp_path):
    """A folder of OPUS-MT, with its pieces."""
    return tmp_path / "opus-mt-en-fr", write_opus_folder(tmp_path / "opus-mt-en-fr")


def test_ids_are_those_of_the_list(opus):
    folder, pieces = opus
    model, tokenizer = mt.load(folder)
    for name, encode in (("source", tokenizer.encode), ("target", tokenizer.encode_target)):
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
        for text in TEXTS:
            expected = [pieces.index(piece) for piece in processor.encode(text, out_type=str) if piece in pieces]
            assert [i for i in encode(text) if i != 1] == [*(i for i in expected if i != 1), 0]
    assert tokenizer.config.language_pair == ("en", "fr") and tokenizer.config.max_sentence_tokens
    assert (model.search_defaults.beam_size, model.search_defaults.length_penalty) == (6, 1.0)


@pytest.mark.parametrize(
    ("name", "pair"),
    [("en-fr", ("en", "fr")), ("eng-fra", ("en", "fr")), ("opus-mt-en-fr", ("en", "fr")), ("my-model", None)]
    + [(name, None) for name in ("best", "last", "opus", "mul-en")],
)
def test_names_of_folders_tell_languages_only_if_they_are_a_pair(tmp_path, name, pair):
    write_opus_folder(tmp_path / name)
    assert mt.load(tmp_path / name)[1].config.language_pair == pair


def test_zip_files_and_weights_alone_give_the_same_texts(opus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _ = opus
    expected = mt.generate(*mt.load(folder), TEXTS[:3], max_tokens=6)
    assert expected == mt.generate(*mt.load(folder / "opus.spm.npz"), TEXTS[:3], max_tokens=6)
    with zipfile.ZipFile("eng-fra.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"models/{path.name}")
        archive.writestr("../escape.yml", "a: 1")
    result = CliRunner().invoke(main, ["convert", "eng-fra.zip", "converted"])
    assert result.exit_code == 0, result.output
    model, tokenizer = mt.load("converted")
    assert mt.generate(model, tokenizer, TEXTS[:3], max_tokens=6) == expected
    assert tokenizer.config.language_pair == ("en", "fr") and not (tmp_path.parent / "escape.yml").exists()
    packed, tokenizer = mt.load("eng-fra.zip")
    assert mt.generate(packed, tokenizer, TEXTS[:3], max_tokens=6) == expected
    assert tokenizer.config.language_pair == ("en", "fr")
    assert packed.weights_source.sha256() == model.weights_source.sha256()  # an adapter of one fits the other
    result = CliRunner().invoke(main, ["generate", "--model", "eng-fra.zip", "--max-tokens", "6", TEXTS[0]])
    assert result.output == f"{expected[0]}\n"


def test_info_reads_zip_files(opus, tmp_path):
    folder, pieces = opus
    path = tmp_path / "en-fr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for member in folder.iterdir():
            archive.write(member, member.name)
    facts = json.loads(CliRunner().invoke(main, ["info", str(path), "--json"]).output)
    assert (facts["folder"], facts["family"], facts["language_pair"]) == (str(path), "marian-native", ["en", "fr"])
    assert facts["config"]["source_vocab_size"] == len(pieces) + 1
    facts = json.loads(CliRunner().invoke(main, ["info", str(path), "--tensors", "--json"]).output)
    assert facts["files"] == [str(path / "opus.spm.npz")] and facts["settings"]["beam-size"] == 6


def test_errors_name_the_zip_file_and_not_where_it_was_unpacked(opus, tmp_path):
    folder, _ = opus
    (folder / "target.spm").unlink()
    path = tmp_path / "en-fr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for member in folder.iterdir():
            archive.write(member, member.name)
    for command in (["generate", "--model", str(path), "a"], ["convert", str(path), str(tmp_path / "new")]):
        assert f"needs source.spm and target.spm, which {path} lacks" in error_line(CliRunner().invoke(main, command))


def test_a_student_of_firefox_has_one_vocabulary(tmp_path, caplog):
    size = write_firefox_folder(tmp_path / "enfr", **STUDENT)
    (tmp_path / "enfr" / "config.intgemm8bitalpha.yml").write_text("beam-size: 1\nshortlist: [lex.s2t.bin, 50, 50]\n")
    model, tokenizer = mt.load(tmp_path / "enfr")
    assert not caplog.records and model.search_defaults.beam_size == 1
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "enfr" / "vocab.enfr.spm"))
    assert [tokenizer.encode(text) for text in TEXTS] == [[*processor.encode(text), 0] for text in TEXTS]
    assert model.config.decoder_self_attention == "ssru" and model.config.target_vocab_size == size + 1
    assert tokenizer.config.language_pair == ("en", "fr") and isinstance(mt.generate(model, tokenizer, "Hello."), str)
    facts = json.loads(CliRunner().invoke(main, ["info", str(tmp_path / "enfr"), "--json"]).output)
    assert facts["family"] == "marian-native"
    shown = " ".join(CliRunner().invoke(main, ["info", str(tmp_path / "enfr")]).output.split())
    assert f"never generates id {size}, <unk> (id 1)" in shown


def test_compressed_files_of_firefox_are_loaded(tmp_path):
    write_firefox_folder(tmp_path / "plain" / "enfr", **STUDENT)
    expected = mt.generate(*mt.load(tmp_path / "plain" / "enfr"), TEXTS[:3], max_tokens=6)
    (tmp_path / "enfr").mkdir()
    for path in (tmp_path / "plain" / "enfr").iterdir():
        (tmp_path / "enfr" / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    model, tokenizer = mt.load(tmp_path / "enfr")
    assert mt.generate(model, tokenizer, TEXTS[:3], max_tokens=6) == expected
    assert tokenizer.config.language_pair == ("en", "fr")


def test_folders_of_a_training_are_loaded(tmp_path):
    """Marian saves the optimizer, and options that name the vocabularies, beside a model."""
    contents = [train_sentencepiece(lines, **MARIAN_IDS) for lines in (ENGLISH, OTHERS)]
    for language, content in zip(("xx", "aa"), contents, strict=True):
        (tmp_path / f"vocab.{language}.spm").write_bytes(content)
    sizes = [len(list_pieces(content)) for content in contents]
    write_npz(tmp_path / "model.npz", MarianModel(SEPARATE | {"dim-vocabs": sizes}))
    for suffix in (".optimizer.npz", ".progress.yml", ".yml"):
        (tmp_path / f"model.npz{suffix}").write_bytes(b"any")
    vocabularies = {"models": ["/x/model.npz"], "vocabs": ["/x/vocab.xx.spm", "/x/vocab.aa.spm"]}
    (tmp_path / "model.npz.decoder.yml").write_text(options_yaml(vocabularies | OPUS_SEARCH))
    (tmp_path / "old.npz.decoder.yml").write_text(options_yaml(vocabularies | {"beam-size": 3}))
    for path, beams in ((tmp_path, 6), (tmp_path / "model.npz", 6)):
        model, tokenizer = mt.load(path)
        assert model.search_defaults.beam_size == beams
        for encode, content in ((tokenizer.encode, contents[0]), (tokenizer.encode_target, contents[1])):
            processor = sentencepiece.SentencePieceProcessor(model_proto=content)
            assert encode(TEXTS[0]) == [*processor.encode(TEXTS[0]), 0]
    (tmp_path / "model.npz").rename(tmp_path / "old.npz")
    assert mt.load(tmp_path / "old.npz")[0].search_defaults.beam_size == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "target.spm").unlink(), "needs source.spm and target.spm"),
        (lambda folder: (folder / "opus.spm.vocab.yml").write_text("a: 0\nb: 2\n"), "must number its 2 pieces from 0"),
        (lambda folder: (folder / "opus.spm.vocab.yml").write_text("a: &x 0\nb: *x\n"), "must be a list of pieces"),
        (lambda folder: (folder / "opus.spm.vocab.yml").write_text("- a\n"), "must be a list of pieces with their ids"),
        (lambda folder: (folder / "opus.spm.vocab.yml").write_text("a: [0]\n"), "must be a list of pieces"),
        (lambda folder: (folder / "opus.spm.vocab.yml").write_text("a: 0\na: 1\n"), "must number its 1 pieces"),
        (lambda folder: (folder / "source.spm").write_bytes(b"no model"), "source.spm|SentencePiece|sentencepiece"),
        (lambda folder: (folder / "decoder.yml").write_text("a: [1, 2\n"), "decoder.yml must be YAML"),
        (lambda folder: (folder / "other.npz").write_bytes(b"any"), "a folder must have one checkpoint"),
    ],
)
def test_damaged_folders_are_one_line(opus, change, message):
    folder, _ = opus
    change(folder)
    result = CliRunner().invoke(main, ["generate", "--model", str(folder), "a"])
    assert result.exit_code == 1
    assert re.search(message, error_line(result))


def test_lists_are_read_without_their_values_growing(tmp_path):
    path = tmp_path / "vocab.yml"
    path.write_text("".join(f"'p{i}': {i}\n" for i in range(3)))
    assert read_list(path) == {"p0": 0, "p1": 1, "p2": 2}
    path.write_text("a: &x [0, 0]\nb: [*x, *x]\n")
    with pytest.raises(ValueError, match="must be a list of pieces"):
        read_list(path)


def test_search_options_are_told(tmp_path, caplog):
    write_opus_folder(tmp_path / "en-fr", OPUS_SEARCH | {"skip-cost": True})
    mt.load(tmp_path / "en-fr")
    assert "Marian's option skip-cost True has no counterpart and is ignored." in caplog.text
