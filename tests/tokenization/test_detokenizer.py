"""Text as its ids come: joined it is that of all ids, whatever the tokenizer; it comes early, at constant cost."""

import functools
import random
from dataclasses import replace

import pytest
from support.texts import CORPUS, EMOJI, FORMS, SCRIPTS, TEXTS, random_texts
from support.tiny_pieces import CASES, make, trained
from support.tiny_tokenizers import KINDS

from mlx_transformer.tokenization import detokenizer as detokenizer_module
from mlx_transformer.tokenization.detokenizer import Detokenizer
from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary
from tests.weights.tokenizers.test_hf_pipeline import read as read_pieces
from tests.weights.tokenizers.test_sentencepiece_models import CLASSES
from tests.weights.tokenizers.test_sentencepiece_models import read as read_sentencepieces

ODD_WORDS = {
    "words": ["'", "."],
    "subwords": ["a@@", "@@", "b@", "@", "@@@"],
    "joiner": ["\uffed.", "a\uffed", "\uffed"],
    "sentencepiece": ["\u2581a", "b", "\u2581"],
}


def word_list(words, join="words"):
    words = dict.fromkeys(["<pad>", "</s>", "<s>", "<unk>", *words])
    return Tokenizer(WordVocabulary({word: i for i, word in enumerate(words)}, 3, join))


def builders():
    """Name -> what makes a tokenizer of that kind with a folder to write to."""
    made = {name: lambda folder, name=name: read_pieces(make(folder, trained(), name)) for name in CASES}
    for write, name in CLASSES.items():
        for kind in KINDS:
            made[f"{name} {kind}"] = lambda folder, write=write, name=name, kind=kind: read_sentencepieces(
                name, write(folder, kind)
            )
    words = " ".join(CORPUS).split()
    made |= {join: lambda folder, join=join: word_list(ODD_WORDS[join] + words, join) for join in ODD_WORDS}
    return made | {"trained": lambda folder: Tokenizer.train(CORPUS, CORPUS, 900)}


BUILDERS = builders()


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    return functools.cache(lambda name: BUILDERS[name](tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(params=BUILDERS)
def tokenizer(request, tokenizer_of):
    return tokenizer_of(request.param)


def cleaned(tokenizer, clean_up=True):
    target = None if tokenizer.shared else tokenizer.target
    return Tokenizer(tokenizer.source, target, replace(tokenizer.config, clean_up=clean_up))


def encode(tokenizer, texts):
    goal = tokenizer.languages[0] if tokenizer.config.target_language in ("start", "first") else None
    return tokenizer.encode_target_batch(texts, goal)


def rows(tokenizer):
    """Ids of texts, ids at random, and ids at random of short marks, which cleaning up joins to what is before."""
    generator = random.Random(0)
    size = tokenizer.target_vocab_size
    yield from encode(tokenizer, [text for text in TEXTS if len(text) < 1000] + random_texts(100))
    yield from ([generator.randrange(size) for _ in range(generator.randrange(200))] for _ in range(80))
    marks = [
        i
        for i in range(size)
        if tokenizer.target.id_to_token(i).strip("\u2581\u0120</w>") in ("", *"'.?stnm", "ve", "n't")
    ]
    if marks:
        yield from ([generator.choice(marks) for _ in range(generator.randrange(30))] for _ in range(150))


def pieces(tokenizer, ids):
    detokenizer = Detokenizer(tokenizer)
    return [*map(detokenizer.add, ids), detokenizer.finish()]


@pytest.mark.parametrize(("clean_up", "window"), [(True, detokenizer_module.WINDOW), (False, 3)])
def test_joined_it_is_the_text_of_all_ids(tokenizer, clean_up, window, monkeypatch):
    """Also where nearly all ids before the newest were forgotten."""
    monkeypatch.setattr(detokenizer_module, "WINDOW", window)
    monkeypatch.setattr(detokenizer_module, "CUT_ATTEMPTS", min(window, detokenizer_module.CUT_ATTEMPTS))
    tokenizer = cleaned(tokenizer, clean_up)
    for ids in rows(tokenizer):
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_it_comes_as_early_as_is_safe(tokenizer):
    """Of what the ids so far say a few characters at most are held back, also without any space; bytes are apart."""
    tokenizer = cleaned(tokenizer)
    runs = isinstance(tokenizer.target, HFVocabulary)
    for ids in encode(tokenizer, SCRIPTS + FORMS + EMOJI):
        if runs and any(detokenizer_module.BYTE_TOKEN.fullmatch(token) for token in tokenizer.tokens(ids)):
            continue
        given = ""
        for place, piece in enumerate(pieces(tokenizer, ids)[:-1], start=1):
            given += piece
            assert len(tokenizer.decode(ids[:place]).rstrip()) - len(given) <= 4


def test_no_piece_has_half_a_character(tokenizer_of):
    """Emoji and marks are several tokens each in these."""
    for name in ("bart", "byt5", "trained", "madlad"):
        tokenizer = tokenizer_of(name)
        for ids in encode(tokenizer, EMOJI + FORMS):
            assert len(ids) > len(tokenizer.decode(ids)) / 2
            assert not any("\ufffd" in piece for piece in pieces(tokenizer, ids))


def test_bytes_that_turn_out_to_be_none_come_as_the_whole_says(tokenizer_of):
    tokenizer = tokenizer_of("trained")
    ids = [tokenizer.target.token_to_id(token) for token in ("<0xE9>", "<0x95>", "<0xB7>", "<0xE9>", "a", "<0xC3>")]
    assert pieces(tokenizer, ids[:3]) == ["", "", "", "長"]
    assert pieces(tokenizer, ids) == ["", "", "", "", "\ufffd\ufffd\ufffd\ufffda", "", "\ufffd"]


def test_what_cleaning_up_may_join_waits():
    words = ["do", "n", "'", "t", "so", ".", "no"]
    tokenizer = cleaned(word_list(words))
    ids = [tokenizer.target.token_to_id(word) for word in words]
    assert pieces(tokenizer, ids) == ["do", "", "", "n't", " so", ".", " no", ""]


def test_an_id_that_is_none(tokenizer_of):
    with pytest.raises(ValueError, match="A target id must lie in 0..[0-9]+: got -1"):
        Detokenizer(tokenizer_of("trained")).add(-1)


def test_after_its_end_another_text_may_begin(tokenizer_of):
    tokenizer = tokenizer_of("t5")
    detokenizer = Detokenizer(tokenizer)
    for text in ("one text", "and another"):
        ids = tokenizer.encode_target(text)
        assert "".join([*map(detokenizer.add, ids), detokenizer.finish()]) == tokenizer.decode(ids)


def test_the_cost_of_an_id_does_not_grow(tokenizer):
    """Of a text of ten thousand ids few are decoded again for each."""
    (ids,) = encode(tokenizer, [" ".join(SCRIPTS * 12)])
    decoded = 0
    decode = Detokenizer._decode

    def counted(self, ids):
        nonlocal decoded
        decoded += len(ids)
        return decode(self, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detokenizer, "_decode", counted)
        given = "".join(pieces(tokenizer, ids))
    assert given == tokenizer.decode(ids)
    assert decoded < 3 * detokenizer_module.WINDOW * len(ids)
