"""Tokenizers of whole checkpoints of transformers: special ids, default languages, missing and damaged files."""

import json

import pytest
from support.texts import SCRIPTS, TEXTS, random_texts
from support.tiny_sentencepiece_tokenizers import (
    CLASS_NAMES,
    load_original,
    read_sentencepiece_tokenizer,
    write_m2m100,
    write_marian,
    write_plbart,
)

import mlx_transformer as mt
from mlx_transformer.weights import convert

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("without_sacremoses")]

ALL_TEXTS = TEXTS + random_texts(300)
SMALL = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 32,
}
FAIRSEQ = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def save_checkpoint(folder, model, write_tokenizer, **settings):
    """Save a checkpoint of transformers: tokenizer files, and a tiny model of the same vocabulary size.

    Of the settings, "config", "languages" and "separate" are options of the tokenizer; "padding" is added to the
    vocabulary size; "first" is the forced first token.
    """
    folder.mkdir(exist_ok=True)
    options = {key: settings.pop(key) for key in ("config", "languages", "separate") if key in settings}
    name = CLASS_NAMES[write_tokenizer]
    tokenizer = read_sentencepiece_tokenizer(name, write_tokenizer(folder, **options))
    transformers = pytest.importorskip("transformers")
    first = settings.pop("first", None)
    sizes = {"vocab_size": tokenizer.source_vocab_size + settings.pop("padding", 0)}
    config = getattr(transformers, f"{model}Config")(**SMALL | sizes | settings)
    class_name = {"Marian": "MarianMTModel"}.get(model, f"{model}ForConditionalGeneration")
    torch_model = getattr(transformers, class_name)(config)
    torch_model.generation_config.forced_bos_token_id = first
    torch_model.save_pretrained(folder)
    return folder


def load_both_ways(folder, tmp_path):
    """Return the tokenizers of a checkpoint and of its converted model folder."""
    convert.convert(folder, tmp_path / "model")
    return [mt.load(folder)[1], mt.load(tmp_path / "model")[1]]


def test_marian_checkpoint(tmp_path):
    size = read_sentencepiece_tokenizer("MarianTokenizer", write_marian(tmp_path)).source_vocab_size
    ids = {"pad_token_id": size - 1, "eos_token_id": 0, "decoder_start_token_id": size - 1}
    folder = save_checkpoint(tmp_path / "checkpoint", "Marian", write_marian, **ids)
    for tokenizer in load_both_ways(folder, tmp_path):
        assert tokenizer.config.max_sentence_tokens == 100
        assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.start_id) == (size - 1, 0, size - 1)
        assert (
            tokenizer.encode(SCRIPTS[0], target_language="fra")
            == load_original("MarianTokenizer", folder)(f">>fra<< {SCRIPTS[0]}")["input_ids"]
        )
        assert tokenizer.decoder_starts(1, "fra") == [(size - 1, None)]
        assert tokenizer.languages == ["deu", "fra"]


def test_marian_checkpoint_with_a_vocabulary_per_side(tmp_path):
    other = read_sentencepiece_tokenizer(
        "MarianTokenizer", write_marian(tmp_path, separate=True, languages=())
    ).target_vocab_size
    ids = {"pad_token_id": 2, "eos_token_id": 0, "decoder_start_token_id": 2, "decoder_vocab_size": other}
    settings = {"share_encoder_decoder_embeddings": False, "separate": True, "languages": ()}
    folder = save_checkpoint(tmp_path / "checkpoint", "Marian", write_marian, **ids, **settings)
    for tokenizer in load_both_ways(folder, tmp_path):
        assert not tokenizer.shared and tokenizer.source_vocab_size != tokenizer.target_vocab_size == other
        text = SCRIPTS[6]
        ids = load_original("MarianTokenizer", folder)(text_target=text)["input_ids"]
        assert tokenizer.encode_target(text) == ids != tokenizer.encode(text)


def test_m2m100_checkpoint_with_ids_without_a_token(tmp_path):
    folder = save_checkpoint(
        tmp_path / "checkpoint", "M2M100", write_m2m100, padding=8, decoder_start_token_id=2, **FAIRSEQ
    )
    theirs = load_original("M2M100Tokenizer", folder, src_lang="fr", tgt_lang="de")
    for tokenizer in load_both_ways(folder, tmp_path):
        assert tokenizer.encode_batch(ALL_TEXTS, "fr") == [theirs(text)["input_ids"] for text in ALL_TEXTS]
        assert tokenizer.decoder_starts(1, "de") == [(2, theirs.get_lang_id("de"))]
        assert len(tokenizer.languages) == 100
        last = tokenizer.target_vocab_size - 1
        assert tokenizer.decode([last]) == theirs.batch_decode([[last]], skip_special_tokens=True)[0] == "<unk>"
        with pytest.raises(ValueError, match="needs the target language"):
            tokenizer.decoder_starts(1)


def test_default_language_is_that_of_the_model(tmp_path):
    tokenizer = read_sentencepiece_tokenizer("M2M100Tokenizer", write_m2m100(tmp_path))
    settings = {"config": {"tgt_lang": "en"}, "first": tokenizer.config.languages["ru"], **FAIRSEQ}
    folder = save_checkpoint(tmp_path / "m2m100", "M2M100", write_m2m100, decoder_start_token_id=2, **settings)
    assert mt.load(folder)[1].decoder_starts(1) == [(2, tokenizer.config.languages["ru"])]
    tokenizer = read_sentencepiece_tokenizer("PLBartTokenizer", write_plbart(tmp_path))
    start = tokenizer.config.languages["python"]
    config = {"src_lang": "java", "tgt_lang": "en_XX"}
    folder = save_checkpoint(
        tmp_path / "p", "PLBart", write_plbart, decoder_start_token_id=start, config=config, **FAIRSEQ
    )
    tokenizer = mt.load(folder)[1]
    assert tokenizer.decoder_starts(1) == [(start, None)]
    assert tokenizer.encode("a") == load_original("PLBartTokenizer", folder)("a")["input_ids"]


def test_missing_damaged_and_mismatched_files(tmp_path):
    folder = save_checkpoint(tmp_path / "checkpoint", "M2M100", write_m2m100, decoder_start_token_id=2, **FAIRSEQ)
    (folder / "vocab.json").rename(folder / "other.json")
    with pytest.raises(FileNotFoundError, match="(?i)there is no .*vocab.json"):
        mt.load(folder)
    ids = json.loads((folder / "other.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(ids | {f"new{i}": len(ids) + i for i in range(200)}))
    with pytest.raises(ValueError, match="must fit its model: 'new100' has the id"):
        convert.convert(folder, tmp_path / "converted")
    for content, message in (("{", "be JSON"), ('{"a": -1}', "map each piece to an id"), ('{"a": "b"}', "map each")):
        (folder / "vocab.json").write_text(content)
        with pytest.raises(ValueError, match=rf"vocab\.json must {message}"):
            mt.load(folder)
    (folder / "other.json").rename(folder / "vocab.json")
    (folder / "sentencepiece.bpe.model").write_bytes(b"\x00\x01")
    with pytest.raises(ValueError, match="sentencepiece.bpe.model must be a sentencepiece model"):
        mt.load(folder)
    (folder / "vocab.json").unlink()
    (folder / "sentencepiece.bpe.model").unlink()
    with pytest.raises(ValueError, match="must have a tokenizer, but .* has none"):
        mt.load(folder)
    assert not (tmp_path / "converted").exists()
