"""HTML is cut into markup and text; joined again, it is the same."""

import random
import time

import pytest

from mlx_transformer.documents.html_text import split_html
from mlx_transformer.server.translation import html_pieces

MARKUP = """
<p> </p> <b_class='x'> </b> <br/> <script> </script> <!-- --> < > &amp; & &#233; &#x é text ' " <![CDATA[ ]]> <?pi
<!doctype_html> <a_href= <code> </code> <IMG /> </ <textarea> </textarea> <svg> </svg_> _
"""
PARTS = [*(part.replace("_", " ") for part in MARKUP.split()), "\n", "\r\n", "\0", "\u2028"]

UNITS = [
    *PARTS,
    "<a ",
    "<a href='",
    "<a b=c ",
    "<a/",
    "<a '",
    "<b class=notranslate>",
    "=",
    "= ",
    "<a = ",
    "<a =' =",
    "a",
]
UNITS += ["<a translate=no", "<script ", "<!--a--", "</a ", "<svg/onload=", "a\n"]


def texts(html):
    return [piece.text for piece in split_html(html) if piece.is_text]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_html_are_the_html(seed):
    rng = random.Random(seed)
    for _ in range(100):
        html = "".join(rng.choices(PARTS, k=rng.randrange(12)))
        assert "".join(piece.text for piece in split_html(html)) == html


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("plain text", ["plain text"]),
        ("a &amp; b", ["a &amp; b"]),
        ("<p title='x > y'>one<br>two</p>three", ["one", "two", "three"]),
        ("<script>var a = '<b>no</b>';</script>yes", ["yes"]),
        ("<pre>no <b>no</b></pre>yes", ["yes"]),
        ("<code>no<code>no</code>no</code>yes", ["yes"]),
        ("<p translate='no'>no<i>no</i></p>yes", ["yes"]),
        ("<span class='a notranslate'>no</span>yes", ["yes"]),
        ("<img class=notranslate>yes", ["yes"]),
        ("<!-- no -->yes<!doctype no><?no?>", ["yes"]),
        ("a < b", ["a < b"]),
        ("<p it's>one</p> it's <a href=it's>two</a>", ["one", " it's ", "two"]),
        ("<p a = '>' b=\">\">yes", ["yes"]),
        ("<SCRIPT>no<b></b>no</Script>yes", ["yes"]),
        ("<p TRANSLATE = NO>no</p><p data-translate=no>yes</p>", ["yes"]),
        ("<script>s = '<script>'; <!-- </script>yes", ["yes"]),
        ("<br/>one<code/>two", ["one", "two"]),
        ("<p translate=no>no<p>yes<p class=notranslate>no", ["yes"]),
        ('one<p title="no', ["one"]),
        ("one<!-- no", ["one"]),
        ("<svg>no<svg/>no</svg>yes<math><math /></math>yes", ["yes", "yes"]),
        ("<span translate=no>no<span/>no</span>no</span>yes", ["yes"]),
    ],
)
def test_texts(html, expected):
    assert texts(html) == expected


def test_empty_elements_of_xhtml_have_no_end():
    html = "<b translate='no'>no<b/></b>yes<script/>yes"
    assert [piece.text for piece in split_html(html, is_xml=True) if piece.is_text] == ["yes", "yes"]


@pytest.mark.parametrize("beginning", ["", "<p ", "<p a='", "<pre>"])
def test_broken_markup_takes_linear_time(beginning):
    for unit in UNITS:
        html = beginning + (unit * 50_000)[:50_000]
        start = time.process_time()
        assert "".join(piece.text for piece in split_html(html)) == html
        assert time.process_time() - start < 1, unit


def test_white_space_and_texts_without_letters_stay():
    pieces = html_pieces("<p>\n  One &amp;\n two. </p> 5&nbsp;% <i>|</i>")
    assert [piece.text for piece in pieces if piece.is_source] == ["One & two."]
    assert "".join(piece.text for piece in pieces) == "<p>\n  One & two. </p> 5&nbsp;% <i>|</i>"


def test_inline_markup_is_part_of_a_sentence():
    html = "<p>\n A <b>red</b> car &amp; <code>the &lt;code></code><br>one</p> <a href=x>two</a>\n<p><i>|</i></p>"
    sources = [(piece.text, bool(piece.markup)) for piece in html_pieces(html) if piece.is_source]
    assert sources == [("A red car & {c1}", True), ("one", False), ("two", True)]


def test_text_with_too_much_markup_is_cut():
    pieces = html_pieces(" a <b>red</b> car" * 600)
    assert [piece.text for piece in pieces if piece.is_source][:3] == ["a", "red", "car a"]
    assert "".join(piece.text for piece in pieces) == " a <b>red</b> car" * 600
