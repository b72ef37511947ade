"""Sentence splitting: no character is lost, every sentence fits, and paragraphs are lazy and in order."""

import random
import time
from itertools import chain, islice

import pytest
import sentencex
from support.texts import TEXTS, random_texts

from mlx_transformer.decoding.beam_search import Hypothesis
from mlx_transformer.inference import sentence_splitting
from mlx_transformer.inference.sentence_splitting import (
    Paragraph,
    combine_hypotheses,
    fits_model,
    generate_paragraphs,
    join_sentences,
    split_paragraph,
)
from mlx_transformer.inference.source_lines import SourceLine
from mlx_transformer.tokenization.normalization import is_blank
from mlx_transformer.tokenization.tokenizer import Tokenizer

PROSE = (
    "  Dr. Smith came at 3.30 on Friday.  Did he stay?\tNo! He left: it was late, and dark.\u3000\n\nReally. The end "
)
LONG = 100_000


def shorter_than(most):
    return lambda text: len(text) <= most


def whole(paragraph):
    return "".join(chain.from_iterable(zip(paragraph.spaces, [*paragraph.sentences, ""], strict=True)))


def hypotheses(*texts, **changes):
    return [
        Hypothesis(**{"ids": [ord(text[0])], "score": -1.0, "finish_reason": "stop", "text": text} | changes)
        for text in texts
    ]


class TestSplit:
    def test_sentences_and_white_space(self):
        found = split_paragraph(PROSE, shorter_than(1000))
        assert found.sentences == [
            "Dr. Smith came at 3.30 on Friday.",
            "Did he stay?",
            "No!",
            "He left: it was late, and dark.",
            "Really.",
            "The end",
        ]
        assert found.spaces == ["  ", "  ", "\t", " ", "\u3000\n\n", " ", " "]

    @pytest.mark.parametrize("most", [1, 7, 60, 10_000])
    def test_no_character_is_lost_and_every_sentence_fits(self, most):
        for text in [PROSE, *TEXTS, *random_texts(500, max_length=150)]:
            found = split_paragraph(text, shorter_than(most))
            assert whole(found) == text == join_sentences(found, found.sentences)
            assert found.sentences and all(sentence == sentence.strip() for sentence in found.sentences)
            assert max(map(len, found.sentences)) <= most
            assert not any(map(is_blank, found.sentences)) or is_blank(text)

    def test_invisible_characters_before_a_sentence_are_like_white_space(self):
        found = split_paragraph("\ufeffHello.\u200b \u2060\u00a0Wait!\u00ad \u200dI'm here.", shorter_than(1000))
        assert found == Paragraph(
            ["Hello.", "Wait!", "I'm here."], ["\ufeff", "\u200b \u2060\u00a0", "\u00ad \u200d", ""]
        )

    @pytest.mark.parametrize("blank", ["", " ", "\t\n ", "\u3000", "\u200b", "\ufeff \u00ad"])
    def test_blank_text_is_one_empty_sentence(self, blank):
        assert split_paragraph(blank, shorter_than(0)) == Paragraph([""], [blank, ""])

    @pytest.mark.parametrize("code", ["de", "de_DE", "deu_Latn", "de-AT"])
    def test_the_rules_of_a_language(self, code):
        text = "Am 3. Mai kam er, d. h. Hr. Müller. Er ging."
        german = split_paragraph(text, shorter_than(1000), code).sentences
        assert (
            german
            == ["Am 3. Mai kam er, d. h. Hr. Müller.", "Er ging."]
            != split_paragraph(text, shorter_than(1000)).sentences
        )

    @pytest.mark.parametrize("code", ["", "xx", "zzz_Zzzz", "nonsense"])
    def test_unknown_languages_use_english_rules(self, code):
        assert split_paragraph(PROSE, shorter_than(1000), code) == split_paragraph(PROSE, shorter_than(1000), "en")

    def test_scripts_without_spaces(self):
        found = split_paragraph("我能吞下玻璃。你好！世界", shorter_than(1000), "zho_Hans")
        assert found.sentences == ["我能吞下玻璃。", "你好！", "世界"] and set(found.spaces) == {""}

    def test_blocks_do_not_change_the_sentences(self, monkeypatch):
        text = "".join(f"Sentence {number} is here. " for number in range(400))
        expected = split_paragraph(text, shorter_than(1000))
        for block in (10, 100, 1000):  # the first is shorter than a sentence
            monkeypatch.setattr(sentence_splitting, "BLOCK_SIZE", block)
            assert split_paragraph(text, shorter_than(1000)) == expected
        assert len(expected.sentences) == 400

    def test_long_texts_are_split_in_blocks(self, monkeypatch):
        """Splitting it in one call would take quadratic time."""
        lengths = []
        segment = sentencex.segment
        monkeypatch.setattr(sentencex, "segment", lambda code, text: lengths.append(len(text)) or segment(code, text))
        split_paragraph("我能吞下玻璃。" * 10_000, shorter_than(1000), "zh")
        assert max(lengths) == sentence_splitting.BLOCK_SIZE and sum(lengths) < 71_000


class TestLongSentences:
    def test_split_after_clauses_then_white_space_then_anywhere(self):
        clauses = "one two three four, five six seven eight nine ten eleven"
        assert split_paragraph(clauses, shorter_than(40)).sentences == [
            "one two three four,",
            "five six seven eight nine ten eleven",
        ]
        assert split_paragraph("one two  three four", shorter_than(12)).sentences == ["one two", "three four"]
        assert split_paragraph("x" * 20, shorter_than(12)).sentences == ["x" * 10] * 2
        assert split_paragraph("我能吞下玻璃，而不伤身体", shorter_than(8)).sentences == [
            "我能吞下玻璃，",
            "而不伤身体",
        ]

    def test_numbers_are_not_split_like_clauses(self):
        assert split_paragraph("about 1,000,000.50 or so", shorter_than(20)).sentences == [
            "about",
            "1,000,000.50 or so",
        ]

    def test_combining_marks_stay_with_their_letter(self):
        text = "e\u0301" * 9
        assert all(part[0] == "e" for part in split_paragraph(text, shorter_than(6)).sentences)
        family = "👨\u200d👩\u200d👧" * 4
        assert {part[0] + part[-1] for part in split_paragraph(family, shorter_than(10)).sentences} == {"👨👧"}

    @pytest.mark.parametrize("unit", ["x", "word ", "some words, ", "長", "\u0301", '"Well. ', "(", "a.b"])
    def test_cost_of_long_texts(self, unit):
        """The tokenizer reads each character a few times only."""
        read = 0

        def counted(text):
            nonlocal read
            read += len(text)
            return len(text) <= 500

        start = time.process_time()
        text = unit * (LONG // len(unit))
        assert whole(split_paragraph(text, counted)) == text
        assert time.process_time() - start < 3
        assert read < 12 * LONG

    def test_long_white_space(self):
        found = split_paragraph("a" + " " * LONG + "b", shorter_than(10))
        assert found.sentences == ["a", "b"] and found.spaces[1] == " " * LONG

    def test_limit_includes_special_tokens(self):
        tokenizer = Tokenizer.train(["ab cd ef"] * 3, ["ab cd ef"], 300)
        text = "ab cd ef"
        count = len(tokenizer.encode(text))
        assert fits_model(text, count, tokenizer) and not fits_model(text, count - 1, tokenizer)

    def test_much_too_long_texts_are_not_tokenized(self):
        assert not fits_model("x" * LONG, 512, None)


class TestJoin:
    @pytest.mark.parametrize(
        ("source", "texts", "joined"),
        [
            ("你好。世界。", ["Hello.", "World."], "Hello. World."),
            ("你好。世界。", ["こんにちは。", "世界。"], "こんにちは。世界。"),
            ("你好。 世界。", ["Hello.", "World."], "Hello. World."),
            ("Hello.  World.", ["你好。", "世界。"], "你好。  世界。"),
            ("  Hello.\tWorld. ", ["", "b"], "  \tb "),
        ],
    )
    def test_spaces_are_added_between_scripts(self, source, texts, joined):
        assert join_sentences(split_paragraph(source, shorter_than(1000)), texts) == joined

    def test_parts_of_a_word_stay_joined(self):
        assert join_sentences(split_paragraph("x" * 20, shorter_than(12)), ["a", "b"]) == "ab"

    def test_combined_hypothesis(self):
        parts = hypotheses("A b.", "C.", score=-0.5)
        found = combine_hypotheses(Paragraph(["a.", "c."], ["  ", "\t", ""]), parts)
        assert found == Hypothesis([65, 67], -1.0, "stop", "  A b.\tC.", truncated=False)

    @pytest.mark.parametrize(
        "sentences, spaces, texts, pairs, expected",
        [
            (["a b.", "c."], [" ", " ", ""], ["A B.", "C."], [[(0, 1), (1, 0)], [(0, 0)]], [(0, 1), (1, 0), (2, 2)]),
            (
                ["\u4f60\u597d\u3002", "\u6211\u3002"],
                ["", "", ""],
                ["A b.", "C."],
                [[(0, 1)], [(0, 0)]],
                [(0, 1), (0, 2)],
            ),
            (["xxx", "xx y"], ["", "", ""], ["A", "B c"], [[(0, 0)], [(0, 0), (1, 1)]], [(0, 0), (1, 1)]),
            (["a", "b"], ["", " ", ""], ["", "B"], [None, [(0, 0)]], [(1, 0)]),
        ],
    )
    def test_alignments_count_words_of_the_paragraph(self, sentences, spaces, texts, pairs, expected):
        parts = [Hypothesis([], 0.0, "stop", text, alignment=own) for text, own in zip(texts, pairs, strict=True)]
        assert combine_hypotheses(Paragraph(sentences, spaces), parts).alignment == expected

    def test_one_incomplete_part_marks_the_whole(self):
        paragraph = Paragraph(["a", "b"], [""] * 3)
        assert (
            combine_hypotheses(paragraph, hypotheses("A") + hypotheses("B", finish_reason="length")).finish_reason
            == "length"
        )
        assert combine_hypotheses(paragraph, hypotheses("A", truncated=True) + hypotheses("B")).truncated


class TestParagraphs:
    @staticmethod
    def upper(ahead):
        """Return a fake search that reads `ahead` sentences at a time."""

        def generate(lines):
            while window := list(islice(lines, ahead)):
                for line in window:
                    codes = [line.source_language, line.target_language]
                    yield hypotheses(f"{line.text.upper()} {codes}") if line.text else hypotheses(" ")

        return generate

    @pytest.mark.parametrize("ahead", [1, 2, 5, 100])
    def test_paragraphs_keep_order_and_languages(self, ahead):
        generator = random.Random(ahead)
        counts = [generator.randint(1, 4) for _ in range(30)]
        paragraphs = [
            Paragraph([f"s{i}.{j}" for j in range(n)], [" "] * (n + 1), SourceLine("", f"from{i}", f"to{i}"))
            for i, n in enumerate(counts)
        ]
        found = list(generate_paragraphs(paragraphs, self.upper(ahead)))
        assert [paragraph for paragraph, _ in found] == paragraphs
        for i, (paragraph, parts) in enumerate(found):
            texts = [best.text for (best,) in parts]
            assert texts == [f"{sentence.upper()} ['from{i}', 'to{i}']" for sentence in paragraph.sentences]

    def test_paragraphs_are_read_lazily(self):
        read = []

        def paragraphs():
            for _ in range(100):
                read.append(None)
                yield Paragraph(["a", "b"], [""] * 3)

        found = generate_paragraphs(paragraphs(), self.upper(6))
        assert read == []
        for number in range(10):
            next(found)
            assert len(read) == 3 * (number // 3 + 1)

    def test_no_paragraphs(self):
        assert list(generate_paragraphs([], self.upper(3))) == []
