"""Subtitles: times and settings stay, lines are short."""

import pysubs2
import pytest
from support.fake_translator import make_fake

from mlx_transformer.documents.subtitles import translate_srt, translate_vtt, wrap

SRT = """\
1
00:00:01,000 --> 00:00:02,000
<i>one two</i>
and three

2
00:00:03,500 --> 00:00:05,000
- a dog
- a cat

3
00:00:06,000 --> 00:00:07,000
{\\an8}1984
♪ ♪
"""
VTT = """\
WEBVTT - a title

NOTE
a note

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.000 align:start position:0%
<v Ann>you &amp; me <c.loud>here</c>

00:03.000 --> 00:04.000
two
"""


def test_srt():
    text = translate_srt(SRT, "a.srt", make_fake())
    assert text == SRT.replace("one two</i>\nand three", "ONE TWO</i> AND THREE").replace("a dog", "A DOG").replace(
        "a cat", "A CAT"
    )
    old, new = map(pysubs2.SSAFile.from_string, (SRT, text))
    assert [(each.start, each.end) for each in new] == [(each.start, each.end) for each in old]


def test_dashes_and_sounds_are_kept_apart_from_speech():
    times = "1\n00:00:01,000 --> 00:00:02,000\n"
    seen = []
    make = make_fake(seen=seen)
    text = translate_srt(f"{times}- one\ntwo\n- three\n(a bell)\n[door]\nfour\nfive\n", "a.srt", make)
    assert text == f"{times}- ONE TWO\n- THREE\n(A BELL)\n[DOOR]\nFOUR FIVE\n"
    assert seen == ["one two", "three", "a bell", "door", "four five"]
    assert translate_srt(f"{times}– one\n", "a.srt", make_fake()) == f"{times}– ONE\n"


def test_names_of_speakers_stay():
    times = "1\n00:00:01,000 --> 00:00:02,000\n"
    seen = []
    text = translate_srt(f"{times}MARY-ANN: one\ntwo\nDR. NO: three\nNote: four\n", "a.srt", make_fake(seen=seen))
    assert text == f"{times}MARY-ANN: ONE TWO\nDR. NO: THREE NOTE: FOUR\n"
    assert seen == ["one two", "three Note: four"]
    text = translate_srt(f"{times}>> MARY: one\n- JOHN: two\n-three\n", "a.srt", make_fake(seen=seen))
    assert text == f"{times}>> MARY: ONE\n- JOHN: TWO\n-THREE\n" and seen[2:] == ["one", "two", "three"]


def test_marks_and_voices_begin_the_text_of_a_speaker():
    times = "00:01.000 --> 00:02.000\n"
    seen = []
    text = translate_vtt(
        f"WEBVTT\n\n{times}<v Mary>one</v>\ntwo\n<v.loud Bob>three\n\n{times}&gt;&gt; four\n>>> five\n",
        "a.vtt",
        make_fake(seen=seen),
    )
    assert text == (f"WEBVTT\n\n{times}<v Mary>ONE</v> TWO\n<v.loud Bob>THREE\n\n{times}&gt;&gt; FOUR\n>>> FIVE\n")
    assert sorted(seen) == ["five", "four", "one two", "three"]


def test_a_cue_may_begin_without_a_blank_line():
    times = "00:00:01,000 --> 00:00:02,000"
    text = translate_srt(f"1\n{times}\none\n7\n2\n{times}\ntwo\n{times}\nthree\n", "a.srt", make_fake())
    assert text == f"1\n{times}\nONE 7\n2\n{times}\nTWO\n{times}\nTHREE\n"


@pytest.mark.parametrize("tag", ["<br>", "<br/>", "<BR />"])
def test_line_breaks_stay_between_their_texts(tag):
    times = "1\n00:00:01,000 --> 00:00:02,000\n"
    seen = []
    make = make_fake(backwards=True, seen=seen)
    text = translate_srt(f"{times}one two{tag}<i>three{tag} four five</i> six\n", "a.srt", make)
    assert text == f"{times}TWO ONE{tag}<i>THREE{tag} FIVE FOUR</i> SIX\n"
    assert seen == ["one two", "three", "four five", "six"]


def test_vtt_keeps_notes_styles_and_settings():
    text = translate_vtt(VTT, "a.vtt", make_fake())
    assert text == VTT.replace("you &amp; me", "YOU &amp; ME").replace("here", "HERE").replace("\ntwo", "\nTWO")


def test_windows_line_ends_stay():
    text = SRT.replace("\n", "\r\n")
    assert translate_srt(text, "a.srt", make_fake()).count("\r\n") == text.count("\r\n") - 1
    assert "\n" not in translate_srt(text, "a.srt", make_fake()).replace("\r\n", "")


def test_long_cues_are_wrapped_and_counted():
    translator = make_fake()
    words = "<b>" + "word " * 12 + "</b>end"
    text = translate_srt(f"1\n00:00:01,000 --> 00:00:02,000\n{words}\n", "a.srt", translator)
    lines = text.splitlines()[2:]
    assert len(lines) == 2 and translator.report.long_cues == 0
    assert all(len(line.replace("<b>", "").replace("</b>", "")) <= 42 for line in lines)
    translate_srt(f"1\n00:00:01,000 --> 00:00:02,000\n{'word ' * 30}\n", "a.srt", translator)
    assert translator.report.long_cues == 1


@pytest.mark.parametrize(
    ("text", "lines"),
    [("", [""]), ("aaaa bb cc", ["aaaa", "bb cc"]), ("a" * 9, ["a" * 9]), ("aa <b x>b</b> c", ["aa", "<b x>b</b> c"])],
)
def test_wrap(text, lines):
    assert wrap(text, 5) == lines


@pytest.mark.parametrize(
    ("translate", "name", "message"),
    [(translate_srt, "a.srt", "must have subtitles with times"), (translate_vtt, "a.vtt", "begins with WEBVTT")],
)
def test_other_files_are_refused(translate, name, message):
    with pytest.raises(ValueError, match=message):
        translate("no subtitles", name, make_fake())
