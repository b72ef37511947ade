"""Word alignments: words of tokens for every kind of tokenizer, and alignments from known attention."""

import dataclasses
import json
import re

import mlx.core as mx
import numpy as np
import pytest
from support.texts import CORPUS, TEXTS
from support.tiny_models import config, random_model, stack
from support.tokenizer_kinds import KINDS, PLAIN, SENTENCES, languages, letters

import mlx_transformer as mt
from mlx_transformer.config.alignment import AlignmentConfig
from mlx_transformer.inference.alignment import (
    align,
    format_pharaoh,
    source_word_indices,
    token_indices,
    word_indices_of_ids,
    word_indices_of_text,
)
from mlx_transformer.inference.batching import SourceLine, encode_sources, encode_targets
from mlx_transformer.inference.scoring import score
from mlx_transformer.pretrained.loading import BUNDLED_MODEL
from mlx_transformer.tokenization.normalization import make_normalizer
from mlx_transformer.tokenization.tokenizer import Tokenizer
from mlx_transformer.tokenization.vocabulary import WordVocabulary


class TestAlign:
    WEIGHTS = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.3, 0.1], [0.0, 0.0, 0.1, 0.9]])

    def test_each_target_token_is_aligned_with_its_largest_weight(self):
        assert align(self.WEIGHTS, [0, 1, 2, 3], [0, 1, 2]) == [(0, 1), (3, 0), (3, 2)]

    def test_special_tokens_are_not_aligned(self):
        assert align(self.WEIGHTS, [None, 0, 1, None], [None, 0, 1]) == [(1, 0), (1, 1)]
        assert align(self.WEIGHTS, [None, 0, 1], [0, None, None]) == [(1, 0)]
        assert align(self.WEIGHTS, [None] * 4, [0, 1, 2]) == [] == align(self.WEIGHTS, [0, 1, 2, 3], [])

    def test_uncovered_source_tokens_are_aligned_with_the_target_token_that_attends_to_them_most(self):
        assert align(self.WEIGHTS, [0, 1, 2, 3], [0, 1, 2], cover_source=True) == [
            (0, 1),
            (1, 0),
            (2, 0),
            (3, 0),
            (3, 2),
        ]
        assert align(self.WEIGHTS, [None, 0, 1, 1], [None, 0, 1], cover_source=True) == [(0, 0), (1, 0), (1, 1)]

    def test_tokens_of_one_word(self):
        assert align(self.WEIGHTS, [0, 0, 1, 1], [0, 0, 0]) == [(0, 0), (1, 0)]

    def test_pharaoh(self):
        assert format_pharaoh([(0, 1), (12, 3)]) == "0-1 12-3" and format_pharaoh([]) == ""


def split_at_spaces(text):
    return [word for word in re.split("[ \t\n\r\f\v]", text) if word]


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "files"
    folder.mkdir()
    return KINDS[request.param](folder)


def both_sides(tokenizer, text, prefix=""):
    """Return the ids of a text as a prefixed source and as a target, with their words."""
    line = SourceLine(prefix + text, *languages(tokenizer), start=len(prefix))
    source = tokenizer.encode(line.text, line.source_language, line.target_language)
    (target,) = encode_targets(tokenizer, [line._replace(text=text)])
    after = len(tokenizer.config.after_target)
    words = word_indices_of_text(
        lambda lines: encode_targets(tokenizer, lines), SourceLine(text, *line[1:3]), target, after
    )
    return (source, source_word_indices(tokenizer, line, source)), (target, words)


class TestWords:
    @pytest.mark.parametrize("text", SENTENCES)
    def test_words_of_a_text_equal_words_of_its_ids(self, tokenizer, text):
        """Encoding and decoding of beginnings give the same words."""
        _, (ids, words) = both_sides(tokenizer, text)
        assert words == word_indices_of_ids(tokenizer, ids)
        assert [word for word in dict.fromkeys(words) if word is not None] == list(range(len(split_at_spaces(text))))

    @pytest.mark.parametrize("text", SENTENCES)
    def test_source_words_equal_target_words(self, tokenizer, text):
        sides = both_sides(tokenizer, text)
        assert all(len(ids) == len(words) for ids, words in sides)
        message = [[pair for pair in zip(*side, strict=True) if pair[1] is not None] for side in sides]
        assert message[0] == message[1] or not tokenizer.shared

    def test_words_of_arbitrary_texts(self, tokenizer):
        for text in TEXTS:
            if len(text) > 1000:
                continue
            for ids, words in both_sides(tokenizer, text):
                message = [word for word in words if word is not None]
                assert len(words) == len(ids) and message == sorted(message)
                assert not message or 0 <= message[0] and message[-1] < len(split_at_spaces(text))
            ids = ids[: len(ids) // 2 + 1]
            words = word_indices_of_ids(tokenizer, ids)
            message = [word for word in words if word is not None]
            assert message == sorted(message) and len(words) == len(ids)
            assert {*range(len(split_at_spaces(tokenizer.decode(ids))))} >= {*message}

    def test_unknown_characters_do_not_shift_words(self, tokenizer):
        text = "this is\u4f60\u597d\U0001f600translation of \U0001f600 language"
        for _, words in both_sides(tokenizer, text):
            last = [word for word in words if word is not None][-1]
            assert last == len(split_at_spaces(text)) - 1

    @pytest.mark.parametrize("space", ["\u202f", "\u00a0", "\u2009", "\u3000", "\u2028"])
    def test_other_spaces_are_part_of_words(self, tokenizer, space):
        """French sets a narrow no-break space before "!", and no tool counts it."""
        text = f"this is{space}a translation{space}{space}into a language{space} of the text"
        count = len(text.split(" "))
        (source, source_words), (_, target_words) = both_sides(tokenizer, text)
        for words in (source_words, target_words):
            message = [word for word in words if word is not None]
            assert message[-1] == count - 1 and set(message) == {*range(count)}

    def test_prefix_has_no_words(self, tokenizer):
        plain, prefixed = (
            [word for word in both_sides(tokenizer, "this is a language", prefix)[0][1] if word is not None]
            for prefix in ("", "translation of: ")
        )
        assert prefixed == plain

    def test_special_tokens_around_texts_have_no_words(self, tokenizer):
        for special, (ids, words) in zip(
            ({*tokenizer.config.after_source, *tokenizer.config.languages.values()}, {*tokenizer.config.after_target}),
            both_sides(tokenizer, SENTENCES[0]),
            strict=True,
        ):
            assert {i for i, word in zip(ids, words, strict=True) if word is not None}.isdisjoint(special)
            assert words[0] in (0, None) and words[-1] == (None if special else 9)


def test_words_joined_by_later_tokens():
    """Clean-up removes the space of "do n't"."""
    tokenizer = Tokenizer(
        WordVocabulary({"do": 4, "n't": 5, "go": 6, ".": 7}, 3), None, dataclasses.replace(PLAIN, clean_up=True)
    )
    assert tokenizer.decode([4, 5, 6, 7, 1]) == "don't go."
    assert word_indices_of_ids(tokenizer, [4, 5, 6, 7, 1]) == [0, 0, 1, 1, None]


def test_truncated_source_keeps_its_words():
    tokenizer = letters()
    line = SourceLine("abc de")
    ids = tokenizer.truncate_source(tokenizer.encode(line.text), 5)
    assert source_word_indices(tokenizer, line, ids) == [0, 0, 0, 1, None]
    assert token_indices([None, 0, 0, 1, None]) == [None, 1, 2, 3, None]


STRAIGHT = AlignmentConfig(heads=(0,))


def straight_model(tokenizer):
    """A model whose first heads attend to the source position of the same index."""
    sizes = {"source_vocab_size": tokenizer.source_vocab_size, "target_vocab_size": tokenizer.target_vocab_size}
    model = random_model(config(**sizes, dims=32, share_embeddings=False, decoder=stack(num_layers=2), encoder=stack()))
    for layers in (model.encoder.layers, model.decoder.layers):
        for layer in layers:
            for part in (layer.self_attention.out_proj, layer.feed_forward.down_proj):
                part.weight, part.bias = mx.zeros_like(part.weight), mx.zeros_like(part.bias)
    for table in (model.source_embedding, model.target_embedding):
        table.weight = mx.zeros_like(table.weight)
    for layer in model.decoder.layers:
        cross = layer.cross_attention
        cross.query_proj.weight, cross.query_proj.bias = 8 * mx.eye(32), mx.zeros(32)
        cross.key_value_proj.weight = mx.concatenate([8 * mx.eye(32), mx.zeros((32, 32))])
        cross.key_value_proj.bias = mx.zeros(64)
        cross.out_proj.weight, cross.out_proj.bias = mx.zeros((32, 32)), mx.zeros(32)
    for module in model.modules():
        if type(module).__name__ == "LayerNorm":
            module.weight, module.bias = mx.ones(32), mx.zeros(32)
    mx.eval(model.parameters())
    return model


@pytest.fixture
def uncompiled():
    """Compilation is disabled, because every trace takes seconds on a CPU."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.usefixtures("uncompiled")
class TestKnownAttention:
    def test_word_alignments_follow_token_alignments(self):
        tokenizer = letters()
        model = straight_model(tokenizer)
        sources, targets = ["abc de", "abc de", "a b c", "a b c"], ["abc de", "ab cde", "a b c", ""]
        expected = [[(0, 0), (1, 1)], [(0, 0), (0, 1), (1, 1)], [(0, 0), (1, 1), (2, 2)], []]
        found = [one.alignment for one in score(model, tokenizer, sources, targets, alignment=STRAIGHT)]
        assert found == expected
        tokens = score(model, tokenizer, sources, targets, alignment=dataclasses.replace(STRAIGHT, unit="tokens"))
        assert [one.alignment for one in tokens] == [[(i, i) for i in range(count)] for count in (5, 5, 3, 0)]

    def test_prefixes_are_not_aligned(self):
        tokenizer = letters()
        model = straight_model(tokenizer)
        (one,) = score(model, tokenizer, ["cd e"], ["ab cd e"], source_prefix="ab ", alignment=STRAIGHT)
        # Nobody attends to the prefix: what would goes to the words nearest to it.
        assert one.alignment == [(0, 0), (0, 1), (1, 2)]

    def test_language_token_at_the_beginning(self):
        config = dataclasses.replace(
            PLAIN, languages={"xx": 2}, source_language="before", target_language="first", before_target=()
        )
        tokenizer = Tokenizer(letters().source, None, config)
        codes = {"source_language": "xx", "target_language": "xx"}
        (one,) = score(straight_model(tokenizer), tokenizer, ["a b"], ["a b"], **codes, alignment=STRAIGHT)
        assert one.tokens[0] == 2 and one.alignment == [(0, 0), (1, 1)]

    def test_alignments_do_not_depend_on_padding_or_batch(self):
        tokenizer = letters()
        model = random_model(straight_model(tokenizer).config)
        rng = np.random.default_rng(0)
        lines = [" ".join("abcdefg"[i] * 2 for i in rng.integers(0, 7, rng.integers(1, 9))) for _ in range(14)]
        together = score(model, tokenizer, lines, lines[::-1], alignment=AlignmentConfig())
        for one, source, target in zip(together, lines, lines[::-1], strict=True):
            (own,) = score(model, tokenizer, [source], [target], alignment=AlignmentConfig())
            assert one.alignment == own.alignment


@pytest.mark.skipif(not (BUNDLED_MODEL / "config.json").exists(), reason="the bundled model is not here")
@pytest.mark.usefixtures("uncompiled")
def test_bundled_model_aligns_simple_sentences():
    model, tokenizer = mt.load()
    sources = ["I like tea.", "Where is the station?", "Tom gave Mary a red car."]
    targets = ["J'aime le thé.", "Où est la gare ?", "Tom a donné une voiture rouge à Mary."]
    found = [set(one.alignment) for one in score(model, tokenizer, sources, targets, alignment=AlignmentConfig())]
    assert {(2, 2)} <= found[0] and {(0, 0), (2, 2), (3, 3)} <= found[1]
    assert {(0, 0), (1, 2), (5, 4), (4, 5), (2, 7)} <= found[2]


def test_alignment_config_validation():
    assert json.loads(json.dumps(dataclasses.asdict(AlignmentConfig((1,), (0, 2))))) == {
        "layers": [1],
        "heads": [0, 2],
        "unit": "words",
        "cover_source": False,
    }
    with pytest.raises(ValueError, match="unit"):
        AlignmentConfig(unit="letters")


def test_words_of_text_that_the_tokenizer_normalises():
    """Words are those of the text as it is given; one that is invisible has no tokens."""
    text = "\ufeffI\u00a0love  you\u2026 \u200b\tcafe\u0301 \u2014 \uff22\uff29\uff27 \u200d"
    tokenizer = Tokenizer.train(CORPUS, CORPUS, 700)
    normalize = make_normalizer().normalize_str
    for ids, words in both_sides(tokenizer, text, prefix="to\u2003French: "):
        pieces = [[i for i, word in zip(ids, words, strict=True) if word == number] for number in range(7)]
        assert [tokenizer.decode(piece) for piece in pieces] == [normalize(word) for word in split_at_spaces(text)]
        assert [tokenizer.decode(piece) for piece in pieces] == ["I love", "you...", "", "caf\u00e9", "-", "BIG", ""]


def test_truncated_lines_are_not_encoded_beyond_the_limit():
    tokenizer, line = letters(), SourceLine("a b c " * 500)
    (whole,) = encode_sources(tokenizer, [line])
    calls = []

    def encode(lines):
        calls.append(lines)
        return encode_sources(tokenizer, lines)

    words = word_indices_of_text(encode, line, tokenizer.truncate_source(whole, 20), tokenizer.num_after_source)
    assert [word for word in words if word is not None] == list(range(19))
    assert len(calls) == 20
