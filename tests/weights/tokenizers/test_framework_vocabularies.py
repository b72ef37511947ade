"""Vocabularies of fairseq, OpenNMT-py and JoeyNMT: ids in the order of their files, encoding and decoding."""

import logging

import pytest
import sentencepiece
from support.texts import SCRIPTS, TEXTS
from support.tiny_sentencepiece_tokenizers import list_pieces, train_sentencepiece

from mlx_transformer.config.tokenizer import TokenizerConfig
from mlx_transformer.tokenization.sentencepiece_vocabulary import SentencePieceVocabulary
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary
from mlx_transformer.weights.formats.pickled_objects import PickledObject
from mlx_transformer.weights.tokenizers.framework_vocabularies import (
    detect_join,
    read_bpe_codes,
    read_framework_vocabularies,
)

MERGES = ("l o", "lo w", "e r</w>", "low er</w>", "n e")


def pickled(name, **state):
    """Return an object as the unpickler leaves it."""
    pickled_object = PickledObject(name)
    pickled_object.state.update(state)
    return pickled_object


@pytest.fixture(scope="module")
def model():
    return train_sentencepiece()


@pytest.fixture(scope="module")
def pieces(model):
    """The pieces of the model without <unk>, <s> and </s>."""
    return list_pieces(model)[3:]


def write(folder, **files):
    """Write files; "__" in a name stands for a dot."""
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("__", ".")).write_bytes(data)


def read(folder, family, extras):
    """Return the tokenizer of a checkpoint."""
    source, target, fields = read_framework_vocabularies(folder, family, extras)
    return Tokenizer(source, target, TokenizerConfig(pad_id=1, eos_id=2, **fields))


def assert_loads_unchanged(folder, tokenizer):
    tokenizer.save(folder / "saved")
    loaded = Tokenizer.load(folder / "saved")
    assert loaded.config == tokenizer.config
    assert loaded.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert loaded.encode_target_batch(TEXTS) == tokenizer.encode_target_batch(TEXTS)
    rows = tokenizer.encode_target_batch(TEXTS)
    assert loaded.decode_batch(rows) == tokenizer.decode_batch(rows)


FAIRSEQ = {
    "namespace": {"args": pickled("argparse.Namespace", source_lang="en", target_lang="fr")},
    "nested": {
        "args": None,
        "cfg": {"task": {"source_lang": "en", "target_lang": "fr"}, "model": {"source_lang": "x"}},
    },
    "model": {"cfg": {"model": pickled("argparse.Namespace", source_lang="en", target_lang="fr")}},
}


@pytest.mark.parametrize("case", FAIRSEQ)
def test_fairseq_dictionaries(tmp_path, case):
    write(tmp_path, dict__en__txt="the 12\ncat 3\ndo@@ 2\ng 1\nmadeupword0000 0\n", dict__fr__txt="le 5\nchat 2\r\n")
    tokenizer = read(tmp_path, "fairseq", FAIRSEQ[case])
    assert tokenizer.encode_batch(["the  cat\tdo@@ g", "a </s> madeupword0000", ""]) == [
        [4, 5, 6, 7, 2],
        [3, 2, 8, 2],
        [2],
    ]
    assert tokenizer.encode_target("le chat noir") == [4, 5, 3, 2]
    assert tokenizer.decode([2, 0, 1, 4, 5, 3, 2]) == "le chat <unk>"
    assert (tokenizer.source_vocab_size, tokenizer.target_vocab_size) == (9, 6)
    assert tokenizer.source.decode([6, 7, 4]) == "dog the"
    assert tokenizer.config.language_pair == ("en", "fr")
    assert_loads_unchanged(tmp_path, tokenizer)


def test_fairseq_shared_dictionary(tmp_path):
    """One dictionary serves both sides; so do equal ones."""
    write(tmp_path, dict__txt="a 2\nb 1\n")
    assert read(tmp_path, "fairseq", {}).shared
    write(tmp_path, dict__source__txt="a 2\nb 1\n", dict__target__txt="a 2\nb 1\n")
    assert read(tmp_path, "fairseq", {}).shared
    write(tmp_path, dict__target__txt="b 2\na 1\n")
    tokenizer = read(tmp_path, "fairseq", {})
    assert (tokenizer.encode("a b"), tokenizer.encode_target("a b")) == ([4, 5, 2], [5, 4, 2])


def test_fairseq_overwritten_words(tmp_path):
    write(tmp_path, dict__txt="a 2\n<unk> 3 #fairseq:overwrite\na 1 #fairseq:overwrite\nb 1\n")
    assert read(tmp_path, "fairseq", {}).encode("a b c") == [6, 7, 5, 2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a 2\na 1\n", "must be unique in .*'a' is repeated"),
        ("a 2\nb\n", "must be a word and its count: 'b' is not"),
        ("a 2\n\n", "must be a word and its count: '' is not"),
        (b"\xff 2\n", "must be text in UTF-8"),
    ],
)
def test_damaged_fairseq_dictionary(tmp_path, lines, message):
    write(tmp_path, dict__txt=lines)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "fairseq", {})


def test_fairseq_dictionaries_of_unknown_sides(tmp_path):
    write(tmp_path, dict__en__txt="a 2\n", dict__fr__txt="b 1\n")
    with pytest.raises(ValueError, match="dict.en.txt, dict.fr.txt do not; rename them to dict.source.txt"):
        read(tmp_path, "fairseq", {})


def test_folder_without_vocabularies(tmp_path):
    for family in ("fairseq", "opennmt-py", "joeynmt", "torch"):
        assert read_framework_vocabularies(tmp_path, family, {}) is None


def test_fairseq_with_sentencepiece(tmp_path, model, pieces):
    """Pieces have the ids of the dictionary, not of the model."""
    words = list(reversed(pieces))
    write(tmp_path, dict__txt="".join(f"{piece} 1\n" for piece in words), sentencepiece__bpe__model=model)
    tokenizer = read(tmp_path, "fairseq", {})
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = {piece: i for i, piece in enumerate(words, 4)}
    for text in TEXTS:
        expected = [ids.get(piece, 3) for piece in processor.encode(text, out_type=str)]
        assert tokenizer.encode(text) == [*expected, 2]
    text = "this is a translation of the text"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert isinstance(tokenizer.source, SentencePieceVocabulary)
    assert_loads_unchanged(tmp_path, tokenizer)
    write(tmp_path, sentencepiece__bpe__model=b"damaged")
    with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model must be a sentencepiece model"):
        read(tmp_path, "fairseq", {})


CODES = {
    "subword-nmt": "#version: 0.2\n" + "".join(f"{merge}\n" for merge in MERGES),
    "fastBPE": "".join(f"{merge} {9 - rank}\n" for rank, merge in enumerate(MERGES)),
}


@pytest.mark.parametrize("case", CODES)
def test_fairseq_with_bpe_codes(tmp_path, case):
    write(tmp_path, dict__txt="lower 9\nlow@@ 8\nest 1\ne@@ 1\ns@@ 1\nt 1\nlow 1\n", bpecodes=CODES[case])
    tokenizer = read(tmp_path, "fairseq", {})
    assert tokenizer.encode_batch(["lower lowest", " low x"]) == [[4, 5, 7, 8, 9, 2], [3, 3, 3, 2]]
    assert tokenizer.decode([5, 7, 8, 9, 4, 2]) == "lowest lower"
    assert tokenizer.decode([4, 5]) == "lower low"
    assert_loads_unchanged(tmp_path, tokenizer)


def test_bpe_codes_in_another_format(tmp_path):
    for content in ("l o\nlo w\n", "#version: 0.1\nl o\n", ""):
        write(tmp_path, codes=content)
        with pytest.raises(ValueError, match="BPE codes must begin with #version: 0.2"):
            read_bpe_codes(tmp_path / "codes")


WORDS = {"src": ["<unk>", "<blank>", "a", "b\uffed"], "tgt": ["<blank>", "<unk>", "<s>", "</s>", "x", "\uffedy"]}


def torchtext_field(words):
    return pickled(
        "torchtext.data.field.Field", vocab=pickled("torchtext.vocab.Vocab", itos=words, stoi={}), lower=False
    )


OPENNMT = {
    "lists": WORDS | {"data_task": "seq2seq", "decoder_start_token": "<s>"},
    "multi fields": {
        side: pickled("onmt.TextMultiField", fields=[(side, torchtext_field(words))]) for side, words in WORDS.items()
    },
    "fields": {side: torchtext_field(words) for side, words in WORDS.items()},
    "pairs": [(side, pickled("torchtext.vocab.Vocab", itos=words)) for side, words in WORDS.items()],
}


@pytest.mark.parametrize("case", OPENNMT)
def test_opennmt_word_lists(tmp_path, case):
    """Sources have no special tokens; targets end with </s>."""
    tokenizer = read(tmp_path, "opennmt-py", {"vocab": OPENNMT[case]})
    assert tokenizer.encode_batch(["a b\uffed c", ""]) == [[2, 3, 0], []]
    assert tokenizer.encode_target("x \uffedy z") == [4, 5, 1, 3]
    assert tokenizer.decode([2, 4, 5, 1, 3, 0]) == "xy <unk>"
    assert_loads_unchanged(tmp_path, tokenizer)


def test_opennmt_objects_that_are_shared_or_contain_themselves(tmp_path):
    shared = [0]
    for _ in range(9):
        shared = [shared] * 50
    endless = {}
    endless["fields"] = [endless] * 50
    good = {"fields": [shared, shared, ["<unk>", "a"]]}
    assert read_framework_vocabularies(tmp_path, "opennmt-py", {"vocab": {"src": shared, "tgt": endless}}) is None
    assert read_framework_vocabularies(tmp_path, "opennmt-py", {"vocab": {"src": good, "tgt": good}})[0].size == 2


@pytest.mark.parametrize(
    "vocab",
    [None, {"src": ["<unk>"]}, {"src": [], "tgt": []}, "text", [("src", 1, 2)], {"src": pickled("a"), "tgt": 3}],
)
def test_opennmt_without_word_lists(tmp_path, vocab):
    assert read_framework_vocabularies(tmp_path, "opennmt-py", {"vocab": vocab}) is None


def test_opennmt_word_list_nested_too_deeply(tmp_path):
    deep = ["<unk>"]
    for _ in range(20):
        deep = pickled("Field", vocab=deep)
    assert read_framework_vocabularies(tmp_path, "opennmt-py", {"vocab": {"src": deep, "tgt": deep}}) is None


def test_opennmt_with_subword_models(tmp_path, model, pieces):
    """The options name each side's model by its path on the training machine."""
    source_words = ["<unk>", "<blank>", "<s>", "</s>", *pieces]
    target_words = ["<unk>", "<blank>", "<s>", "</s>", "lower", "low@@"]
    write(tmp_path, src__model=model, bpe__tgt="#version: 0.2\n" + "\n".join(MERGES) + "\n")
    options = {
        "src_subword_model": "/data/run/src.model",
        "src_subword_type": "sentencepiece",
        "tgt_subword_model": "C:\\data\\bpe.tgt",
        "tgt_subword_type": "bpe",
    }
    extras = {"vocab": {"src": source_words, "tgt": target_words}, "opt": pickled("argparse.Namespace", **options)}
    tokenizer = read(tmp_path, "opennmt-py", extras)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in SCRIPTS:
        expected = [
            source_words.index(piece) if piece in source_words else 0 for piece in processor.encode(text, out_type=str)
        ]
        assert tokenizer.encode(text) == expected
    assert tokenizer.encode_target("lowlower") == [5, 4, 3]


def test_vocabulary_without_the_unknown_token_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must have the unknown token <unk>"):
        read_framework_vocabularies(tmp_path, "opennmt-py", {"vocab": {"src": ["a"], "tgt": ["b"]}})


JOEYNMT_CONFIG = """
data:
  src: {lang: en, level: %s, voc_file: "runs/en.voc", tokenizer_type: x, tokenizer_cfg: {model_file: runs/%s}}
  trg: {lang: fr, level: word, tokenizer_cfg: {codes: null}}
model: {encoder: {num_layers: 1}}
"""


def test_joeynmt_word_lists(tmp_path):
    """Special tokens come first, whether the file has them or not."""
    write(tmp_path, config__yaml=JOEYNMT_CONFIG % ("word", "none"), en__voc="the\r\ncat\r\n")
    write(tmp_path, src_vocab__txt="other\n", trg_vocab__txt="<unk>\n<pad>\n<s>\n</s>\nle\nchat\n")
    tokenizer = read(tmp_path, "joeynmt", {})
    assert tokenizer.encode_batch(["the cat dog", ""]) == [[4, 5, 0, 3], [3]]
    assert tokenizer.encode_target("le chat") == [4, 5, 3]
    assert tokenizer.decode([2, 4, 5, 0, 3, 1]) == "le chat <unk>"
    assert_loads_unchanged(tmp_path, tokenizer)
    (tmp_path / "en.voc").unlink()
    assert read(tmp_path, "joeynmt", {}).encode("other") == [4, 3]
    (tmp_path / "trg_vocab.txt").unlink()
    assert read_framework_vocabularies(tmp_path, "joeynmt", {}) is None


def test_joeynmt_with_sentencepiece(tmp_path, model, pieces):
    write(tmp_path, config__yaml=JOEYNMT_CONFIG % ("bpe", "spm.model"), spm__model=model, trg_vocab__txt="x\n")
    write(tmp_path, en__voc="".join(f"{piece}\n" for piece in pieces))
    tokenizer = read(tmp_path, "joeynmt", {})
    ids = {piece: i for i, piece in enumerate(pieces, 4)}
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in SCRIPTS:
        expected = [ids.get(piece, 0) for piece in processor.encode(text, out_type=str)]
        assert tokenizer.encode(text) == [*expected, 3]


def test_joeynmt_with_characters_is_not_supported(tmp_path, caplog):
    write(tmp_path, config__yaml=JOEYNMT_CONFIG % ("char", "none"), src_vocab__txt="a\n", trg_vocab__txt="b\n")
    with caplog.at_level(logging.WARNING):
        assert read_framework_vocabularies(tmp_path, "joeynmt", {}) is None
    assert "character-level vocabularies are not supported" in caplog.text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a", "b"], "words"),
        (["a@@", "b", "c@@"], "subwords"),
        (["\u2581a", "b"], "sentencepiece"),
        (["a\uffed", "b@@", "\uffedc"], "joiner"),
    ],
)
def test_detect_join(words, expected):
    assert detect_join(words) == expected
    assert WordVocabulary({word: i for i, word in enumerate(words)}, 0, expected).join == expected


def shared_lists():
    value = []
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize("name", ["a" * 10_000, "\0", "../..", shared_lists(), {"a": 1}], ids=type)
def test_options_that_name_no_file_are_ignored(tmp_path, name):
    """Lists that share one another would be endless as text."""
    vocab = {"src": ["<unk>", "<blank>", "a"], "tgt": ["<unk>", "<blank>", "<s>", "</s>"]}
    loaded = read_framework_vocabularies(tmp_path, "opennmt-py", {"opt": {"src_subword_model": name}, "vocab": vocab})
    assert isinstance(loaded.source, WordVocabulary)
    write(tmp_path, dict__txt="a 1\n")
    assert read_framework_vocabularies(tmp_path, "fairseq", {"args": {"source_lang": name}}).target is None
