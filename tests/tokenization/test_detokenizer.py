"""The detokenizer returns the same text as `decode` for any tokenizer, early and at constant cost per id."""

import functools
import random
from dataclasses import replace

import pytest
from support.texts import CORPUS, EMOJI, FORMS, SCRIPTS, TEXTS, random_texts
from support.tiny_hf_tokenizers import CASES, read_tokenizer, train_models, write_case
from support.tiny_sentencepiece_tokenizers import CLASS_NAMES, MODEL_KINDS, read_sentencepiece_tokenizer

from mlx_transformer.tokenization import detokenizer as detokenizer_module
from mlx_transformer.tokenization.detokenizer import Detokenizer
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary

ODD_WORDS = {
    "words": ["'", "."],
    "subwords": ["a@@", "@@", "b@", "@", "@@@"],
    "joiner": ["\uffed.", "a\uffed", "\uffed"],
    "sentencepiece": ["\u2581a", "b", "\u2581"],
}


def word_tokenizer(words, join="words"):
    words = dict.fromkeys(["<pad>", "</s>", "<s>", "<unk>", *words])
    return Tokenizer(WordVocabulary({word: i for i, word in enumerate(words)}, 3, join))


def build_sentencepiece(write, kind, folder):
    return read_sentencepiece_tokenizer(CLASS_NAMES[write], write(folder, kind))


def tokenizer_builders():
    """Name -> function that builds a tokenizer, given a folder to write to."""
    builders = {
        name: lambda folder, name=name: read_tokenizer(write_case(folder, train_models(), name)) for name in CASES
    }
    for write, name in CLASS_NAMES.items():
        builders |= {f"{name} {kind}": functools.partial(build_sentencepiece, write, kind) for kind in MODEL_KINDS}
    words = " ".join(CORPUS).split()
    builders |= {join: lambda folder, join=join: word_tokenizer(ODD_WORDS[join] + words, join) for join in ODD_WORDS}
    return builders | {"trained": lambda folder: Tokenizer.train(CORPUS, CORPUS, 900)}


BUILDERS = tokenizer_builders()


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    return functools.cache(lambda name: BUILDERS[name](tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(params=BUILDERS)
def tokenizer(request, tokenizer_of):
    return tokenizer_of(request.param)


def with_clean_up(tokenizer, clean_up=True):
    target = None if tokenizer.shared else tokenizer.target
    return Tokenizer(tokenizer.source, target, replace(tokenizer.config, clean_up=clean_up))


def encode(tokenizer, texts):
    language = tokenizer.languages[0] if tokenizer.config.target_language in ("start", "first") else None
    return tokenizer.encode_target_batch(texts, language)


def id_sequences(tokenizer):
    """Yield ids of texts, random ids, and random ids of short tokens that clean-up joins to the preceding text."""
    generator = random.Random(0)
    size = tokenizer.target_vocab_size
    yield from encode(tokenizer, [text for text in TEXTS if len(text) < 1000] + random_texts(100))
    yield from ([generator.randrange(size) for _ in range(generator.randrange(200))] for _ in range(80))
    joined = ("", *"'.?stnm", "ve", "n't")
    marks = [i for i in range(size) if tokenizer.target.id_to_token(i).strip("\u2581\u0120</w>") in joined]
    if marks:
        yield from ([generator.choice(marks) for _ in range(generator.randrange(30))] for _ in range(150))


def stream(tokenizer, ids):
    """Return the text of each id and of the end."""
    detokenizer = Detokenizer(tokenizer)
    return [*map(detokenizer.add, ids), detokenizer.finish()]


@pytest.mark.parametrize(("clean_up", "window"), [(True, detokenizer_module.WINDOW), (False, 3)])
@pytest.mark.slow
def test_streamed_text_equals_decoded_text(tokenizer, clean_up, window, monkeypatch):
    """Also with a window so short that almost all earlier ids are dropped."""
    monkeypatch.setattr(detokenizer_module, "WINDOW", window)
    monkeypatch.setattr(detokenizer_module, "CUT_ATTEMPTS", min(window, detokenizer_module.CUT_ATTEMPTS))
    tokenizer = with_clean_up(tokenizer, clean_up)
    for ids in id_sequences(tokenizer):
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_at_most_a_few_characters_are_held_back(tokenizer):
    """Also in text without spaces; runs of byte tokens are held back entirely."""
    tokenizer = with_clean_up(tokenizer)
    has_byte_runs = isinstance(tokenizer.target, HFVocabulary)
    for ids in encode(tokenizer, SCRIPTS + FORMS + EMOJI):
        if has_byte_runs and any(map(detokenizer_module.BYTE_TOKEN.fullmatch, tokenizer.tokens(ids))):
            continue
        emitted = ""
        for count, text in enumerate(stream(tokenizer, ids)[:-1], start=1):
            emitted += text
            assert len(tokenizer.decode(ids[:count]).rstrip()) - len(emitted) <= 4


def test_characters_are_never_split(tokenizer_of):
    """Emoji and combining marks are several tokens each in these tokenizers."""
    for name in ("bart", "byt5", "trained", "madlad"):
        tokenizer = tokenizer_of(name)
        for ids in encode(tokenizer, EMOJI + FORMS):
            assert not any("\ufffd" in text for text in stream(tokenizer, ids))


def test_bytes_that_are_not_utf8(tokenizer_of):
    tokenizer = tokenizer_of("trained")
    ids = [tokenizer.target.token_to_id(token) for token in ("<0xE9>", "<0x95>", "<0xB7>", "<0xE9>", "a", "<0xC3>")]
    assert stream(tokenizer, ids[:3]) == ["", "", "", "長"]
    assert stream(tokenizer, ids) == ["", "", "", "", "\ufffd\ufffd\ufffd\ufffda", "", "\ufffd"]


def test_text_that_clean_up_may_change_is_held_back():
    words = ["do", "n", "'", "t", "so", ".", "no"]
    tokenizer = with_clean_up(word_tokenizer(words))
    ids = [tokenizer.target.token_to_id(word) for word in words]
    assert stream(tokenizer, ids) == ["do", "", "", "n't", " so", ".", " no", ""]


def test_id_outside_the_vocabulary_is_refused(tokenizer_of):
    with pytest.raises(ValueError, match="A target id must lie in 0..[0-9]+: got -1"):
        Detokenizer(tokenizer_of("trained")).add(-1)


def test_reuse_after_finish(tokenizer_of):
    tokenizer = tokenizer_of("t5")
    detokenizer = Detokenizer(tokenizer)
    for text in ("one text", "and another"):
        ids = tokenizer.encode_target(text)
        assert "".join([*map(detokenizer.add, ids), detokenizer.finish()]) == tokenizer.decode(ids)


@pytest.mark.slow
def test_cost_per_id_is_constant(tokenizer, monkeypatch):
    """In a text of several thousand ids, few ids are decoded again for each new one."""
    (ids,) = encode(tokenizer, [" ".join(SCRIPTS * 12)])
    expected = tokenizer.decode(ids)
    num_decoded = 0
    decode = type(tokenizer.target).decode

    def count_ids(vocabulary, ids):
        nonlocal num_decoded
        num_decoded += len(ids)
        return decode(vocabulary, ids)

    monkeypatch.setattr(type(tokenizer.target), "decode", count_ids)
    assert "".join(stream(tokenizer, ids)) == expected
    assert num_decoded < 3 * detokenizer_module.WINDOW * len(ids)
