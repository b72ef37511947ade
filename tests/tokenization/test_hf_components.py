"""Tokenizers whose rules could exhaust memory, are damaged, or fail on a text: each is an error of one line."""

import base64
import json
import os
import struct
import subprocess
import sys
import threading

import pytest
from support.tiny_sentencepiece_tokenizers import train_sentencepiece

from mlx_transformer.tokenization.charsmap import check_charsmap
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary, load_hf_tokenizer
from mlx_transformer.tokenization.library_errors import library_errors
from mlx_transformer.weights.tokenizers.sentencepiece_proto import parse_sentencepiece_model


@pytest.fixture
def alone(monkeypatch):
    """The only thread of this process, as in the command line."""
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])


WORDS = {"type": "WordLevel", "vocab": {"<unk>": 0, "a": 1}, "unk_token": "<unk>"}


def load(model=WORDS, **components):
    """Load a tokenizer.json with these components."""
    names = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    data = {"version": "1.0", "added_tokens": [], **dict.fromkeys(names), "model": model, **components}
    return HFVocabulary(load_hf_tokenizer(json.dumps(data).encode(), "tokenizer.json"))


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def precompiled(charsmap):
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}


def charsmap():
    return parse_sentencepiece_model(train_sentencepiece(normalization_rule_name="nmt_nfkc"), "a model").charsmap


LARGE = {
    "a long prefix": {"normalizer": {"type": "Prepend", "prepend": "x" * 10_000}},
    "a chain": {"normalizer": {"type": "Sequence", "normalizers": [replace({"String": "a"}, "a" * 50)] * 2}},
    "matches of nothing": {"normalizer": replace({"Regex": "b*"}, "x" * 500)},
    "a deep chain": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Sequence", "normalizers": [replace({"String": "a"}, "a" * 50)]}] * 2,
        }
    },
    "many rules": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 2000}},
    "a decoder": {"decoder": {"type": "Sequence", "decoders": [replace({"String": "a"}, "a" * 50)] * 2}},
    "a prefix of pieces": {
        "model": {"type": "BPE", "vocab": {}, "merges": [], "continuing_subword_prefix": "#" * 2000}
    },
    "long words": {
        "model": {
            "type": "WordPiece",
            "vocab": {"a": 0},
            "unk_token": "a",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 10**6,
        }
    },
}


@pytest.mark.parametrize("name", LARGE)
def test_rules_that_could_exhaust_memory_or_time_are_refused(name):
    with pytest.raises(ValueError, match="^tokenizer.json must hold a tokenizer: .* at most "):
        load(**LARGE[name])


def test_usual_rules_are_accepted():
    rules = [{"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁"), precompiled(charsmap())]
    vocabulary = load(normalizer={"type": "Sequence", "normalizers": rules}, decoder=replace({"String": "▁"}, " "))
    assert vocabulary.encode("a") == [0]
    assert check_charsmap(charsmap()) < 40


@pytest.mark.parametrize("position", [4 + 4 * ord("a"), 4 + 4 * 300])
def test_a_charsmap_that_leads_outside_is_refused(position):
    """The library would panic at the first text that comes across it."""
    content = bytearray(charsmap())
    content[position : position + 4] = struct.pack("<I", 0x7FFFFC00)
    with pytest.raises(ValueError, match="its normalisation rules are damaged"):
        load(normalizer=precompiled(bytes(content)))


@pytest.mark.parametrize("content", [b"", b"\1\0\0\0", b"\4\0\0\0\0\0\0\0\xff"])
def test_a_charsmap_that_is_cut_off_is_refused(content, alone, capfd):
    with pytest.raises(ValueError, match=r"^tokenizer.json must hold a tokenizer: .*; copy it again.$"):
        load(normalizer=precompiled(content))
    assert capfd.readouterr().err == ""


def test_a_vocabulary_without_an_unknown_token_fails_only_on_unknown_words():
    vocabulary = load({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"})
    assert vocabulary.encode("a") == [0]
    with pytest.raises(ValueError, match=r"^A text cannot be split into tokens: .*Missing \[UNK\] token"):
        vocabulary.encode("b")


def test_a_panic_of_the_library_is_an_error_of_one_line(alone, capfd):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    vocabulary = load(pre_tokenizer=split)
    with pytest.raises(ValueError, match="^A text cannot be split into tokens: .*retry-limit"):
        vocabulary.encode("a" * 40 + "b")
    assert capfd.readouterr().err == ""  # Rust reports panics there


def test_long_messages_of_libraries_are_cut():
    with pytest.raises(ValueError, match=r"^A rule: x{117}\.\.; copy it again\.$"), library_errors("A rule"):
        raise RuntimeError("x" * 10_000)


def test_interrupts_are_no_library_errors():
    with pytest.raises(KeyboardInterrupt), library_errors("A rule"):
        raise KeyboardInterrupt


def test_other_lines_on_standard_error_are_kept(alone, capfd):
    with library_errors("A rule"):
        os.write(2, b"a warning\n")
    with pytest.raises(ValueError, match="^A rule: no"), library_errors("A rule"):
        os.write(2, b"another\n")
        raise RuntimeError("no")
    assert capfd.readouterr().err == "a warning\nanother\n"


def test_a_closed_standard_error_is_no_error(alone):
    code = "import os; os.close(2); from mlx_transformer.tokenization.library_errors import library_errors as l\n"
    code += "with l('A rule'): print('done')"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout == b"done\n"
