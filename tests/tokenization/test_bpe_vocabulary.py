"""BPE vocabularies in the notation of subword-nmt."""

import itertools
import random
import time

import pytest

from mlx_transformer.tokenization import bpe_vocabulary
from mlx_transformer.tokenization.bpe_vocabulary import BPEVocabulary, apply_merges, split_chat_words

MERGES = ("l o", "lo w", "e r</w>", "low er</w>", "n e")


def test_merges_apply_in_order_of_rank_from_left_to_right():
    ranks = {tuple(merge.split()): rank for rank, merge in enumerate(MERGES)}
    assert apply_merges("lower", ranks) == ["lower"]
    assert apply_merges("lowlow", ranks) == ["low@@", "lo@@", "w"]
    assert apply_merges("newer", ranks) == ["ne@@", "w@@", "er"]
    assert apply_merges("x", ranks) == ["x"]
    assert apply_merges("aaaaa", {("a", "a"): 0}) == ["aa@@", "aa@@", "a"]


def simple_merges(word, ranks):
    """Merge one pair after the other, as in subword-nmt; takes quadratic time."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while ranked := [pair for pair in itertools.pairwise(pieces) if pair in ranks]:
        best, merged = min(ranked, key=ranks.get), []
        for piece in pieces:
            if merged and (merged[-1], piece) == best and merged[-1] is not None:
                merged[-1:] = [best[0] + best[1], None]  # None: no part of a second merge
            else:
                merged.append(piece)
        pieces = [piece for piece in merged if piece is not None]
    pieces[-1] = pieces[-1].removesuffix("</w>")
    return [*(piece + "@@" for piece in pieces[:-1]), pieces[-1]]


def test_merges_equal_those_of_the_simple_algorithm():
    chance = random.Random(4)
    for _ in range(300):
        parts = ["a", "b", "c", "a</w>", "b</w>"]
        for _ in range(30):
            parts.append("".join(chance.sample(parts, 2)))
        pairs = [(chance.choice(parts), chance.choice(parts)) for _ in range(60)]
        ranks = {pair: rank for rank, pair in enumerate(pairs)}
        word = "".join(chance.choice("abc") for _ in range(chance.randrange(1, 30)))
        assert apply_merges(word, ranks) == simple_merges(word, ranks)


def test_a_word_of_a_hundred_thousand_characters_takes_little_time():
    chance = random.Random(4)
    ranks = {pair: rank for rank, pair in enumerate(itertools.product("abcdefghijklmnop", repeat=2))}
    word = "".join(chance.choice("abcdefghijklmnop") for _ in range(100_000))
    start = time.process_time()
    assert len(apply_merges(word, ranks)) > 10_000
    assert time.process_time() - start < 3


def test_merges_must_be_pairs():
    with pytest.raises(ValueError, match="two pieces separated by a space: got 'abc'"):
        BPEVocabulary({"a": 0}, 0, ("abc",))


def test_text_that_ends_inside_a_word():
    """fairseq removes the final "@@", Blenderbot-small keeps it."""
    ids = {"a@@": 0, "b": 1}
    assert BPEVocabulary(ids, 1, ()).decode([0, 1, 0]) == "ab a"
    assert BPEVocabulary(ids, 1, (), chat=True).decode([0, 1, 0]) == "ab a@@"
    assert BPEVocabulary(ids, 1, ()).decode([9, 0, 1]) == "b ab"


def test_words_of_blenderbot_small():
    assert list(split_chat_words("Don't!  Go\nthere.")) == ["don", "'", "t", "!", "go", "__newln__", "there", "."]


def test_word_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(bpe_vocabulary, "MAX_CACHED_WORDS", 3)
    vocabulary = BPEVocabulary({"a": 0, "b": 1, "c": 2, "d": 3}, 0, ())
    assert vocabulary.encode("a b c d d c b a") == [0, 1, 2, 3, 3, 2, 1, 0]
    assert len(vocabulary._word_cache) <= 3


def test_another_thread_may_clear_the_word_cache_at_any_time():
    class ClearedAtOnce(dict):
        def __setitem__(self, word, ids):
            """Nothing is kept, as if another thread called clear()."""

    vocabulary = BPEVocabulary({"a": 0, "b": 1}, 0, ())
    vars(vocabulary)["_word_cache"] = ClearedAtOnce()
    assert vocabulary.encode("a b a") == [0, 1, 0]


@pytest.mark.parametrize("changes", [{"ids": {"a": -3}}, {"added": {"<x>": -1}}, {"unknown_id": -1}])
def test_ids_must_not_be_negative(changes):
    with pytest.raises(ValueError, match="Ids of a vocabulary must not be below 0"):
        BPEVocabulary(**{"ids": {"a": 0}, "unknown_id": 0, "merges": ()} | changes)
