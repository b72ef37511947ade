"""Phrases that a line requires: their tokens in the middle of a target, whole words, and every script and case."""

import pytest
from support.tokenizer_kinds import KINDS, SENTENCES, languages

import mlx_transformer as mt
from mlx_transformer.inference.batching import MAX_PHRASE_TOKENS, encode_phrases, encode_targets
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.inference.terminology import continues_word


@pytest.fixture(params=KINDS, scope="module")
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "files"
    folder.mkdir()
    return KINDS[request.param](folder)


class TestTokens:
    """For every kind of tokenizer."""

    def test_phrases_have_the_tokens_of_the_middle_of_a_target(self, tokenizer):
        line = SourceLine("", *languages(tokenizer), required_phrases=("translation", "the text"))
        phrases = encode_phrases(tokenizer, line)
        (target,) = encode_targets(tokenizer, [line._replace(text=SENTENCES[0])])
        assert len(phrases) == 2
        for phrase in phrases:
            assert any(target[i : i + len(phrase)] == phrase for i in range(len(target)))

    def test_phrases_that_cannot_be_written_or_are_too_long_are_left_out(self, tokenizer):
        long = " ".join(["translation"] * (MAX_PHRASE_TOKENS + 1))
        line = SourceLine("", *languages(tokenizer), required_phrases=(long, "text", "\U000ffffd"))
        (phrase,) = encode_phrases(tokenizer, line._replace(required_phrases=("text",)))
        phrases = encode_phrases(tokenizer, line)
        assert phrases[0] == phrase
        is_written = tokenizer.decode(tokenizer.target.encode("\U000ffffd")).strip() == "\U000ffffd"
        assert [tokenizer.decode(ids).strip() for ids in phrases[1:]] == ["\U000ffffd"] * is_written

    def test_tokens_that_continue_a_word(self, tokenizer):
        line = SourceLine("", *languages(tokenizer), required_phrases=("text",))
        (ids,) = encode_phrases(tokenizer, line)
        for token, continues in enumerate(continues_word(tokenizer).tolist()):
            rest = tokenizer.decode([*ids, token]).lstrip().removeprefix("text")
            if not rest or rest[0] in " .,!?<>'\"()" or "\u3040" <= rest[0] < "\ua000":
                assert not continues, rest
            elif rest[0].isascii() and rest[0].isalnum():
                assert continues, rest


@pytest.fixture(scope="module")
def bundled():
    return mt.load()


def best(bundled, text, *phrases, **options):
    line = SourceLine(text, required_phrases=phrases)
    return next(iter(mt.generate_hypotheses(*bundled, [line], beam_size=4, **options)))[0]


def test_required_phrases_are_whole_words(bundled):
    """Without the rule, the model continues "toutou" to longer words."""
    for number in range(4):
        words = best(bundled, f"My dog number {number} sleeps in the house.", "toutou").text.replace(".", "").split()
        assert "toutou" in words


def test_lines_with_and_without_phrases_share_a_batch(bundled):
    lines = [SourceLine("I love you."), SourceLine("I have a red car.", required_phrases=("bagnole",))]
    plain, required = (row[0].text for row in mt.generate_hypotheses(*bundled, lines, beam_size=4))
    assert plain == mt.generate(*bundled, "I love you.", beam_size=4) and "bagnole" in required


def test_phrases_of_any_script_and_of_lines_in_capitals(bundled):
    assert "日本" in best(bundled, "I have a red car.", "日本").text
    in_capitals = best(bundled, "I HAVE A RED CAR.", "BAGNOLE")
    assert "BAGNOLE" in in_capitals.text and "bagnole" in bundled[1].decode(in_capitals.ids)


def test_phrases_need_a_beam_search(bundled):
    line = SourceLine("I love you.", required_phrases=("toi",))
    with pytest.raises(ValueError, match="required_phrases need beam search: use a beam_size of 2 or more"):
        list(mt.generate_hypotheses(*bundled, [line], beam_size=1))
    with pytest.raises(ValueError, match="A stream cannot have required_phrases"):
        list(mt.stream_generate(*bundled, line))


def test_a_glossary_is_kept_where_nothing_can_be_replaced(bundled):
    """Two words of the source are aligned with one of the target, which can be replaced by one term only."""
    text, glossary = "The police are looking for him.", {"looking": "bidule", "for": "machin"}
    hypothesis = next(iter(mt.generate_hypotheses(*bundled, text, glossary=glossary)))[0]
    assert hypothesis.missing_terms == () and "bidule" in hypothesis.text and "machin" in hypothesis.text
