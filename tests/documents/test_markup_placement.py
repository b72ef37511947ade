"""Where markup stands in a target, and that nothing of it is lost."""

import random

import pytest
from support.fake_translator import make_fake

from mlx_transformer.documents.content import (
    Closing,
    Inline,
    Opening,
    find_texts,
    nest,
    plain_text,
    replace_texts,
    write,
)
from mlx_transformer.documents.markup_placement import MarkupPlacement, mark_text, split_edges
from mlx_transformer.documents.subtitles import parse_tags


def place(source, target, pairs):
    """The target with the tags of the source, and how many were not placed."""
    placement = MarkupPlacement(mark_text(parse_tags(source)), target, pairs)
    return write(placement.place()), placement.num_unplaced


@pytest.mark.parametrize(
    ("source", "target", "pairs", "expected"),
    [
        (
            "the <b>red car</b> goes",
            "la voiture rouge va",
            [(0, 0), (1, 2), (2, 1), (3, 3)],
            "la <b>voiture rouge</b> va",
        ),
        ("<i>all of it</i>", "tout", [], "<i>tout</i>"),
        ("<i><b>all</b> of it</i>", "tout cela", [(0, 0), (1, 1)], "<i><b>tout</b> cela</i>"),
        ("a <b>dog</b>, here", "un chien, ici", [(0, 0), (1, 1), (2, 2)], "un <b>chien</b>, ici"),
        ("the <b>man</b> came", "l'homme est venu", [(0, 0), (1, 0), (2, 2)], "l'<b>homme</b> est venu"),
        ("H<sub>2</sub>O is <b>wet</b>", "H{c1}O est humide", [(0, 0), (2, 2)], "H<sub>2</sub>O est <b>humide</b>"),
        ("no <u>own</u> word", "pas de mot", [(0, 0), (2, 2)], "pas de mot<u></u>"),
        ("a <b>x</b> b <i>y</i> c", "y a x", [(1, 2), (3, 0), (0, 1)], "<i>y</i> a <b>x</b>"),
        # One word is far from the others: the run with the most words of the span counts.
        (
            "<b>one two</b> three four",
            "un un trois quatre deux",
            [(0, 0), (0, 1), (1, 4), (2, 2), (3, 3)],
            "<b>un un</b> trois quatre deux",
        ),
        ("word<br/> more", "mot plus", [(0, 0), (1, 1)], "mot<br/> plus"),
        ("one <img/>two", "deux un", [(0, 1), (1, 0)], "<img/>deux un"),
        (
            "use <b>g++</b>, or (<i>it</i>)",
            "use g++, or (it)",
            [(0, 0), (1, 1), (2, 2), (3, 3)],
            "use <b>g++</b>, or (<i>it</i>)",
        ),
        (
            "<b>a</b>\N{NO-BREAK SPACE}[<i>b</i>]",
            "A\N{NO-BREAK SPACE}[B]",
            [(0, 0)],
            "<b>A</b>\N{NO-BREAK SPACE}[<i>B</i>]",
        ),
        ("is <img/> large", "est grand", [(0, 0), (1, 1)], "est <img/> grand"),
        ("is <a><img/></a> large", "est grand", [(0, 0), (1, 1)], "est <a><img/></a> grand"),
        # Before punctuation, and behind a phrase, as the number of a note.
        ("it <b>rained<x/></b>, so", "il pleuvait, donc", [(0, 0), (1, 1), (2, 2)], "il <b>pleuvait<x/></b>, donc"),
        ("go<x/>, now", "va, va", [(0, 0), (1, 1)], "va<x/>, va"),
        ("It rains.<sup>1</sup> Go.", "Il pleut. Va.", [(0, 0), (1, 1), (2, 2)], "Il pleut.<sup>1</sup> Va."),
        ("“Go!”<sup>1</sup> Now", "« Va ! » Oui", [(0, 3), (1, 4)], "« Va ! »<sup>1</sup> Oui"),
        ("Hi.<b><sup>1</sup> Go</b>", "Salut. Va", [(0, 0), (1, 1)], "Salut. <b><sup>1</sup>Va</b>"),
        # A placeholder is never cut in two.
        ("a <b>car</b><kbd>x</kbd> b", "une auto{c1} b", [(0, 0), (1, 1), (2, 2)], "une <b>auto<kbd>x</kbd></b> b"),
        ("say <b>hi</b>{name} now", "dire salut{name} la", [(0, 0), (1, 1), (2, 2)], "dire <b>salut{name}</b> la"),
        ("the Mont<b>real</b> team", "le Montreal club", [(0, 0), (1, 1), (2, 2)], "le Mont<b>real</b> club"),
    ],
)
def test_markup_stands_around_aligned_words(source, target, pairs, expected):
    text, unplaced = place(source, target, pairs)
    assert text == expected
    assert unplaced == ("<u></u>" in text)


def tags_of(content):
    return sorted(tag for part in content if isinstance(part, Inline) for tag in [part.key, *tags_of(part.content)])


def test_no_alignment_loses_markup_or_text():
    """Random sources, targets and alignments: all tags are there once, and the text is that of the target."""
    generator = random.Random(0)
    for _ in range(300):
        pieces = []
        for name in generator.sample("abcdefgh", 6):
            pieces += [generator.choice([Opening(name, f"<{name}>"), f"w{name} ", Inline((f"<{name}/>", ""))])]
            pieces += [Closing(generator.choice("abcdefgh"), "</>"), f"v{name} "][generator.random() < 0.5 :]
        content = nest(pieces)
        marked = mark_text(content)
        target = " ".join(f"t{i}" for i in range(generator.randrange(1, 8)))
        pairs = [(generator.randrange(12), generator.randrange(8)) for _ in range(generator.randrange(12))]
        placed = MarkupPlacement(marked, target, pairs).place()
        assert plain_text(placed) == target
        assert tags_of(placed) == tags_of(content)


def test_no_target_loses_copies():
    """Random targets with placeholders anywhere, also in words: each copy is there once."""
    generator = random.Random(1)
    for _ in range(300):
        pieces = []
        for name in generator.sample("abcdefgh", 5):
            copy = Inline((f"<{name}/>", ""), is_atom=True)
            pieces += [Opening(name, f"<{name}>"), copy, generator.choice([f"w{name}", ". ", " "]), copy, " v"]
            pieces += [Closing(generator.choice("abcdefgh"), "</>")][generator.random() < 0.5 :]
        content = nest(pieces)
        marked = mark_text(content)
        target = "".join(
            generator.choice(["", "x", ".", " "]) + name
            for name in generator.sample([*marked.atoms], k=len(marked.atoms))
        )
        pairs = [(generator.randrange(12), generator.randrange(8)) for _ in range(generator.randrange(12))]
        placed = MarkupPlacement(marked, target, pairs).place()
        assert tags_of(placed) == tags_of(content)


def test_numbers_in_markup_and_code_are_words():
    marked = mark_text(parse_tags("It costs <b>5</b> euros"))
    assert marked.text == "It costs {c1} euros"
    assert write(MarkupPlacement(marked, "{c1} euros {c1}", []).place()) == "<b>5</b> euros "


def test_elements_of_code_are_words_with_their_text():
    marked = mark_text(parse_tags("Press <kbd>Ctrl</kbd>+<KBD>C &amp;</KBD> now"))
    assert marked.text == "Press {c1}+{c2} now"
    assert write(MarkupPlacement(marked, "{c2} {c1}", []).place()) == "<KBD>C &amp;</KBD> <kbd>Ctrl</kbd>"


def test_texts_are_between_line_breaks_that_are_not_in_code():
    content = parse_tags("one <code>two<br>three</code> <i>four<br> five</i>")
    assert [plain_text(text) for text in find_texts(content)] == ["one twothree ", "four", " five", ""]
    new = replace_texts(content, iter([("1",), ("2",), ("3",), ()]))
    assert write(new) == "1<i>2<br>3</i>"


def test_copies_behind_the_last_sentence_are_no_part_of_it():
    note = Inline(("[1]", ""), is_atom=True)
    assert split_edges(("It rains. ", note, " ")) == ((), ("It rains. ",), (note, " "))
    for content in (("It rains ", note), (note,), (note, " It rains."), ()):
        assert split_edges(content) == ((), content, ())


def test_markup_around_nothing_at_the_edges_is_no_part_of_a_text():
    image, link = Inline("<img>"), Inline("<a>", (Inline("<img>"),))
    content = (image, " ", link, " one ", image, " two. ", image, " ", link, " ")
    assert split_edges(content) == (content[:3], content[3:6], content[6:])
    assert split_edges((image, "one", image)) == ((image,), ("one",), (image,))
    assert split_edges((image, " ")) == ((image, " "), (), ())


def test_markup_around_code_alone_is_copied_with_it():
    code = Inline(("`x`", ""), is_atom=True)
    marked = mark_text(("see ", Inline(("[", "](y)"), (code,)), "."))
    assert (marked.text, marked.spans) == ("see {c1}.", ())
    assert write(MarkupPlacement(marked, "voir {c1}.", []).place()) == "voir [`x`](y)."


def test_placeholders_do_not_meet_those_of_the_text():
    assert mark_text(parse_tags("{c1} costs <b>5</b>")).text == "{c1} costs {cc1}"


def test_tags_without_partners_stay():
    content = parse_tags("a</b> <i>b <u>c</i>")
    assert write(content) == "a</b> <i>b <u>c</i>"
    assert plain_text(content) == "a b c"


def test_deeply_nested_tags_need_no_recursion():
    text = "<i>" * 5000 + "x" + "</i>" * 5000
    assert write(parse_tags(text)) == text


def test_soft_hyphens_are_left_out_of_texts():
    seen = []
    translator = make_fake(seen=seen)
    assert translator.translate_contents([("co\xadoperate ", Inline("b", ("\xadnow",))), ("1\xad2",)]) == [
        ("COOPERATE ", Inline("b", ("NOW",))),
        ("1\xad2",),
    ]
    assert seen == ["cooperate now"]
