"""Plain text: lines."""

from support.fake_translator import make_fake

from mlx_transformer.documents.plain_text import translate_plain_text


def test_marks_of_direction_stay():
    text = "\u200fone\u200e \n\u202btwo\u202c\n\u2068 \u2069\n"
    seen = []
    assert translate_plain_text(text, "a.txt", make_fake(seen=seen)) == text.upper()
    assert seen == ["one", "two"]


def test_lines_and_white_space_stay():
    translator = make_fake()
    text = "  one\n\n\ttwo \r\n12 + 3\n \nold\rmac\rlast"
    assert translate_plain_text(text, "a.txt", translator) == "  ONE\n\n\tTWO \r\n12 + 3\n \nOLD\rMAC\rLAST"
    assert translator.report.texts == 5
