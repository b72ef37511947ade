"""Labels in figures: readable pieces and fonts that cover them."""

import pytest
import tokenizers
from support.tiny_hf_tokenizers import train_byte_level

from mlx_transformer.tokenization.hf_vocabulary import HFVocabulary
from mlx_transformer.tokenization.vocabulary import ByteVocabulary, WordVocabulary

pytest.importorskip("matplotlib")

from mlx_transformer.plotting import fonts as fonts_module


class TestLabels:
    def test_pieces_are_readable(self):
        words = WordVocabulary({"\u2581the": 0, " a": 1, "\uffed,": 2, "<0xE4>": 3, "<0x41>": 4, "</s>": 5}, 0)
        assert fonts_module.readable_pieces(words, range(6)).labels == [
            "\u2423the",
            "\u2423a",
            "\u25a0,",
            "<0xE4>",
            "A",
            "</s>",
        ]
        assert fonts_module.readable_pieces(ByteVocabulary({"</s>": 1}), [1, 75, 35, 231]).labels == [
            "</s>",
            "H",
            "\u2423",
            "<0xE4>",
        ]

    def test_bytes_of_a_character_are_one_piece(self):
        text = "é日😀"
        vocabulary = ByteVocabulary({})
        ids = vocabulary.encode(text)
        broken = [*ids[:2], ids[2], *ids[5:]]  # two of the three bytes of 日 are missing
        assert fonts_module.readable_pieces(vocabulary, ids) == ([*text], [0, 2, 5])
        assert fonts_module.readable_pieces(vocabulary, broken) == (["é", "<0xE6>", "😀"], [0, 2, 3])
        byte_level = HFVocabulary(tokenizers.Tokenizer.from_str(train_byte_level()))
        assert fonts_module.readable_pieces(byte_level, byte_level.encode("日")) == (["日"], [0])
        assert len(byte_level.encode("日")) == 3

    def test_byte_level_pieces_are_decoded(self):
        vocabulary = HFVocabulary(tokenizers.Tokenizer.from_str(train_byte_level()))
        ids = vocabulary.encode(" the été")
        assert "".join(fonts_module.readable_pieces(vocabulary, [0, *ids]).labels) == "<s>\u2423the\u2423été"
        assert "Ġ" in "".join(map(vocabulary.id_to_token, ids))

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("abc", "abc"),
            ("ab中", "ab U+4E2D"),
            ("中文a", "U+4E2D U+6587 a"),
            ("a\u200db", "ab"),
            ("a\ufe0f", "a"),
            ("\u200d", "U+200D"),
            ("a\n", "a U+000A"),
            ("\u3000", "U+3000"),
            ("", ""),
        ],
    )
    def test_uncovered_characters_become_code_points_and_invisible_ones_are_dropped(self, text, expected):
        assert fonts_module.visible_text(text, set("abc")) == expected

    def test_joiners_are_kept_inside_words_and_shown_alone(self):
        assert fonts_module.visible_text("می\u200cخ", set("می\u200cخ")) == "می\u200cخ"
        assert fonts_module.visible_text("\u200c", {"\u200c"}) == "U+200C"

    def test_uncovered_characters_are_logged_once(self, only_matplotlibs_font, caplog):
        texts, families = fonts_module.render_labels(["中", "中文字", "語", "a\n"], max_length=60)
        assert texts == ["U+4E2D", "U+4E2D U+6587 U+5B57", "U+8A9E", "a U+000A"]
        assert families == ["DejaVu Sans"]
        (message,) = caplog.messages
        assert message.startswith(
            "No installed font covers U+4E2D, U+5B57, U+6587 and 1 more characters, shown as code points:"
        )
        assert "fontlist-*.json" in message

    def test_covered_text_logs_nothing(self, caplog):
        texts, families = fonts_module.render_labels(["très", "мир", "a\u200d", "b\n"], max_length=9)
        assert texts == ["très", "мир", "a\u200d", "b U+000A"] and families == ["DejaVu Sans"]
        assert caplog.messages == []

    def test_a_fallback_font_is_found(self, caplog):
        letter = "\u1d81"  # in STIXGeneral, which matplotlib brings, too
        texts, (first, second) = fonts_module.render_labels([f"a{letter}"], max_length=9)
        assert texts == [f"a{letter}"] and first == fonts_module.DEFAULT_FONT
        assert fonts_module.covered_characters(first, {letter}) == set() and fonts_module.covered_characters(
            second, {letter}
        ) == {letter}
        assert caplog.messages == []

    def test_as_few_fonts_as_possible_are_used(self, monkeypatch):
        fonts = {"DejaVu Sans": "a", "One": "中", "Two": "文字", "Three": "中文", "Four": "字"}
        monkeypatch.setattr(fonts_module, "installed_fonts", lambda: list(fonts))
        monkeypatch.setattr(fonts_module, "covered_characters", lambda name, letters: letters & set(fonts[name]))
        assert fonts_module.render_labels(["a中文字"], max_length=9) == (["a中文字"], ["DejaVu Sans", "Two", "One"])

    def test_placeholder_fonts_are_not_used(self):
        texts, families = fonts_module.render_labels(["\u0378"], max_length=9)  # not assigned
        assert (texts, families) == (["U+0378"], ["DejaVu Sans"])
        assert "Last Resort High-Efficiency" not in fonts_module.installed_fonts()

    def test_a_removed_font_covers_nothing(self):
        assert fonts_module.covered_characters("No Such Font", {"a"}) == set()

    def test_long_labels_are_truncated(self):
        assert fonts_module.render_labels(["x" * 9, "x" * 10], max_length=9).texts == ["x" * 9, "x" * 8 + "…"]

    def test_wide_characters_count_twice(self):
        assert (fonts_module.text_width("abc"), fonts_module.text_width("中文"), fonts_module.text_width("")) == (
            3,
            4,
            0,
        )
