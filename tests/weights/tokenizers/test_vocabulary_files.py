"""Vocabularies in files of all kinds, and files that are none."""

import argparse
import io
import json
import pickle

import pytest
import tokenizers
from support.tiny_sentencepiece_tokenizers import train_sentencepiece

from mlx_transformer.weights.tokenizers.vocabulary_files import find_special_ids, parse_lines, read_vocabulary_file

torch = pytest.importorskip("torch")
from support import torchtext_classes as torchtext  # noqa: E402 (needs torch)

TOKENS = ["<unk>", "<pad>", "<sos>", "<eos>", "ein", "Hund", ".", "läuft"]
OTHERS = ["<unk>", "<pad>", "<sos>", "<eos>", "a", "dog", "runs"]
IDS, OTHER_IDS = ({token: i for i, token in enumerate(tokens)} for tokens in (TOKENS, OTHERS))
SPECIAL_IDS = {"unknown": 0, "pad": 1, "start": 2, "end": 3}


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def saved_legacy(value):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def lines(*rows):
    return "\n".join(rows).encode() + b"\n"


ONE_VOCABULARY = {
    "a token per line": lines(*TOKENS),
    "without a last newline": lines(*TOKENS).rstrip(b"\n"),
    "lines of Windows": "\r\n".join([*TOKENS, ""]).encode(),
    "a byte order mark": b"\xef\xbb\xbf" + lines(*TOKENS),
    "tokens and counts": lines(*(f"{token} {90 - i // 2}" for i, token in enumerate(TOKENS))),
    "tokens and scores": lines(*(f"{token}\t{-i / 2}" for i, token in enumerate(TOKENS))),
    "tokens and ids": lines(*(f"{token}\t{i}" for i, token in reversed(list(enumerate(TOKENS))))),
    "a list in JSON": json.dumps(TOKENS).encode(),
    "a dict in JSON": json.dumps(IDS, indent=2).encode(),
    "ids to tokens in JSON": json.dumps({str(i): token for token, i in IDS.items()}).encode(),
    "both directions in JSON": json.dumps({"stoi": IDS, "itos": TOKENS}).encode(),
    "a nested dict in JSON": json.dumps({"vocab": {"token_to_idx": IDS, "size": 8}}).encode(),
    "a pickled list": pickle.dumps(TOKENS),
    "a pickled dict": pickle.dumps(IDS, 2),
    "a list pickled in ASCII": pickle.dumps(TOKENS, 0),
    "a dict pickled in ASCII": pickle.dumps(IDS, 0),
    "an object pickled in ASCII": pickle.dumps(torchtext.LegacyVocab(TOKENS), 0),
    "a saved dict": saved(IDS),
    "a saved legacy vocabulary": saved(torchtext.LegacyVocab(TOKENS)),
    "a pickled legacy vocabulary": pickle.dumps(torchtext.LegacyVocab(TOKENS)),
    "an old torch file": saved_legacy(torchtext.LegacyVocab(TOKENS)),
    "a native vocabulary": saved(torchtext.ModuleVocab(TOKENS)),
    "a Lang of a tutorial": pickle.dumps(torchtext.Lang(TOKENS)),
}
TWO_VOCABULARIES = {
    "a tuple": saved((torchtext.ModuleVocab(TOKENS), torchtext.ModuleVocab(OTHERS))),
    "a dict by language": saved({"de": torchtext.ModuleVocab(TOKENS), "en": torchtext.ModuleVocab(OTHERS)}),
    "a dict by side": pickle.dumps({"tgt_vocab": OTHERS, "src_vocab": TOKENS, "size": 8}),
    "JSON by side": json.dumps({"source": IDS, "target": OTHER_IDS}).encode(),
    "a checkpoint": saved({"model": {"x": torch.zeros(2)}, "epoch": 3, "target_vocab": OTHERS, "source_vocab": TOKENS}),
}


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", ONE_VOCABULARY.values(), ids=ONE_VOCABULARY)
def test_a_vocabulary_is_recognised_by_its_content(content, tmp_path):
    (vocabulary,) = read_vocabulary_file(write(tmp_path / "any name", content))
    assert vocabulary.ids == IDS and vocabulary.special_ids == SPECIAL_IDS
    assert vocabulary.tokenizer is vocabulary.sentencepiece is vocabulary.around is None and not vocabulary.lowercase


@pytest.mark.parametrize("content", TWO_VOCABULARIES.values(), ids=TWO_VOCABULARIES)
def test_a_file_of_two_vocabularies(content, tmp_path):
    source, target = read_vocabulary_file(write(tmp_path / "vocab.pt", content))
    assert source.ids == IDS and target.ids == OTHER_IDS


def test_lists_that_are_no_vocabularies(tmp_path):
    data = {"vocab": TOKENS, "languages": ["de", "en"], "train": [["der", "Hund"], ["ein", "Hund"]]}
    (vocabulary,) = read_vocabulary_file(write(tmp_path / "data.pkl", pickle.dumps(data)))
    assert vocabulary.ids == IDS


def test_fields_of_a_data_set(tmp_path):
    """The Fields of torchtext say which special tokens a source has and whether it is lower-cased."""
    source = torchtext.Field(TOKENS, lower=True, init_token=None, eos_token=None)
    data = {
        "settings": argparse.Namespace(lang_src="de", share_vocab=False),
        "vocab": {"src": source, "trg": torchtext.Field(OTHERS)},
        "train": [torchtext.Example(OTHERS)] * 100,
    }
    source, target = read_vocabulary_file(write(tmp_path / "data.pkl", pickle.dumps(data)))
    assert (source.ids, source.around, source.lowercase) == (IDS, ((), ()), True)
    assert (target.ids, target.around, target.lowercase) == (OTHER_IDS, ((2,), (3,)), False)


def test_a_tokenizer_json_with_a_template(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(IDS, "<unk>"))
    tokenizer.save(str(tmp_path / "plain.json"))
    assert read_vocabulary_file(tmp_path / "plain.json")[0].around is None
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 3)])
    tokenizer.save(str(tmp_path / "with.json"))
    (vocabulary,) = read_vocabulary_file(tmp_path / "with.json")
    assert vocabulary.around == ((), (3,)) and vocabulary.special_ids == SPECIAL_IDS


def test_a_template_with_a_token_that_is_missing(tmp_path):
    """The tokenizers library panics when it uses one."""
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<eos>", "type_id": 0}}]}
    template |= {"pair": [], "special_tokens": {}}
    model = {"type": "WordLevel", "vocab": IDS, "unk_token": "<unk>"}
    path = write(
        tmp_path / "t.json", json.dumps({"version": "1.0", "model": model, "post_processor": template}).encode()
    )
    with pytest.raises(ValueError, match="t.json must hold a tokenizer") as caught:
        read_vocabulary_file(path)
    assert "\n" not in str(caught.value)


def test_a_sentencepiece_model_names_its_special_tokens(tmp_path):
    names = {"pad_piece": "[p]", "bos_piece": "[b]", "eos_piece": "[e]"}
    model = train_sentencepiece(pad_id=3, unk_id=0, bos_id=1, eos_id=2, **names)
    (vocabulary,) = read_vocabulary_file(write(tmp_path / "m.model", model))
    assert vocabulary.special_ids == {"pad": 3, "unknown": 0, "start": 1, "end": 2}
    assert vocabulary.sentencepiece == model and vocabulary.ids["[b]"] == 1


@pytest.mark.parametrize(
    ("tokens", "roles"),
    [
        (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"], {"pad": 0, "unknown": 1, "start": 2, "end": 3}),
        (["[CLS]", "[SEP]", "[BOS]", "[EOS]"], {"start": 2, "end": 3}),
        (["PAD", "UNK", "BOS", "EOS", "pad", "bos"], {"pad": 0, "unknown": 1, "start": 2, "end": 3}),
        (["pad", "end", "start", "s", "p", "unk"], {}),
        (["<BLANK>", "<S>", "</S>", "<Unk>"], {"pad": 0, "start": 1, "end": 2, "unknown": 3}),
        (["<s>", "<PAD>", "</s>", "<pad>"], {"start": 0, "end": 2, "pad": 3}),
        (["<p>", "<start>", "<end>"], {"pad": 0, "start": 1, "end": 2}),
    ],
)
def test_special_tokens_by_name(tokens, roles):
    assert find_special_ids({token: i for i, token in enumerate(tokens)}) == roles


def test_lines_of_text():
    assert parse_lines("a\n \nb") == ["a", " ", "b"]
    assert parse_lines("a 1\nb 2\nc 3\n") == {1: "a", 2: "b", 3: "c"}
    assert parse_lines("new york 7\nb 7") == ["new york", "b"]
    assert parse_lines("a 7\nb") == ["a 7", "b"]
    assert parse_lines("1\n2\n0") == ["1", "2", "0"]
    assert parse_lines(" \t0\na\t1") == {0: " ", 1: "a"}


BAD_FILES = {
    "empty": (b"", "is empty"),
    "blank": (b"\n \n", "is empty"),
    "binary": (b"\x7fELF\x00\x01", "is binary"),
    "another encoding": ("é\nü".encode("latin-1"), "is no text in UTF-8"),
    "damaged JSON": (b'{"a": 1,', "is damaged"),
    "JSON without tokens": (b'{"a": [1, 2], "b": null}', "contains no list of tokens"),
    "JSON with one id twice": (b'{"a": 1, "b": 1}', "contains no list of tokens"),
    "JSON with one token twice": (b'{"a": 1, "a": 2}', "'a' appears twice"),
    "a list with one token twice": (b'["a", "b", "a"]', "has 'a' twice"),
    "lines with one token twice": (b"x\nb\nx\n", "has 'x' twice"),
    "a damaged pickle": (pickle.dumps(TOKENS)[:-9], "a pickle must"),
    "a pickle without tokens": (pickle.dumps({"x": 1.5}), "contains no list of tokens"),
    "weights": (saved({"x": torch.zeros(3)}), "contains no list of tokens"),
    "a damaged zip": (saved(TOKENS)[:-30], "zip"),
    "a damaged tokenizer.json": (b'{"model": {"type": "BPE"}}', "must hold a tokenizer"),
    "a damaged sentencepiece model": (b"\n\x05\0\0abc", "must be a sentencepiece model"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_vocabulary(content, message, tmp_path):
    path = write(tmp_path / "vocab", content)
    with pytest.raises(ValueError, match=message) as caught:
        read_vocabulary_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(FileNotFoundError, match="A vocabulary must be a file: there is no .*; check the path"):
            read_vocabulary_file(path)


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "made"), "w")

    (vocabulary,) = read_vocabulary_file(write(tmp_path / "v.pkl", pickle.dumps([TOKENS, Hostile()])))
    assert vocabulary.ids == IDS and not (tmp_path / "made").exists()


def test_a_list_that_many_objects_share(tmp_path):
    """Each object of a file is searched once, so that small files take no time."""
    shared = list(map(str, range(10000)))
    value = [shared, 1]
    for _ in range(5):
        value = {str(i): value for i in range(1000)}
    (vocabulary,) = read_vocabulary_file(write(tmp_path / "v.pkl", pickle.dumps(value)))
    assert vocabulary.size == len(shared)


def test_objects_that_contain_themselves(tmp_path):
    value = {"vocab": [1]}
    value["self"] = value["vocab"] = [value, value]
    with pytest.raises(ValueError, match="no list of tokens"):
        read_vocabulary_file(write(tmp_path / "v.pkl", pickle.dumps(value)))
