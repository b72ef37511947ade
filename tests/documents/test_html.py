"""Pages: only text and the attributes that readers see change."""

import random
import re
import time
from collections import Counter

import pytest
from support.fake_translator import make_fake

from mlx_transformer.documents.html import translate_html, translate_xhtml

MARKUP = re.compile("<!--.*?-->|<[^>]*>")
PAGE = """\
<!DOCTYPE html>
<html lang="en" class="a b">
<head>
  <title>TITLE</title>
  <style>p > a { color: red }</style>
  <script>if (a < b && c) { alert("text"); }</script>
</head>
<body>
  <!-- a comment -->
  <h1 id="x">ONE <em>TWO</em></h1>
  <p>SOME <b>BOLD <i>TEXT</i></b> AND <a href="u?a=1&amp;b=2" title="WORDS">A LINK</a>, &lt;END&gt;.</p>
  <p>FIRST<br>SECOND <code>some code</code> HERE</p>
  <pre>  kept   as it is </pre>
  <p translate="no">a name</p>
  <p>A <span class="notranslate">brand</span> NAME</p>
  <ul>
    <li>ITEM
      <ul><li>INNER</li></ul>
    </li>
  </ul>
  <img src="a.png" alt="PICTURE"><input placeholder="NAME" disabled="" value="kept">
  <a href="#"><div>BLOCK IN A LINK</div></a>
  <textarea>kept</textarea>123
</body>
</html>
"""


def test_only_text_changes():
    source = re.sub(r"[A-Z]{2,}", lambda match: match[0].lower(), PAGE).replace("<!doctype", "<!DOCTYPE")
    source = re.sub(r"(?<=<p>)A |(?<=>)A ", "a ", source)
    translator = make_fake()
    assert translate_html(source, "a.html", translator) == PAGE
    assert translator.report.unplaced_tags == translator.report.appended_copies == 0


def test_tags_follow_their_words():
    text = translate_html("<p>one <b>two</b> three <i>four</i></p>", "a.html", make_fake(backwards=True))
    assert text == "<p><i>FOUR</i> THREE <b>TWO</b> ONE</p>"


def test_a_block_is_one_sentence():
    translator = make_fake()
    translate_html("<p>one <b>two</b>\n <i>three <u>four</u></i></p>", "a.html", translator)
    assert translator.report.texts == 1


def test_comments_stay_inside_sentences():
    page = "<p>one<!-- a --> two <b>three <!-- b -->four</b><!-- c --> </p><p><!-- d --> five</p><p><!--e--></p>"
    seen = []
    assert translate_html(page, "a.html", make_fake(seen=seen)) == (
        "<p>ONE<!-- a --> TWO <b>THREE <!-- b -->FOUR</b><!-- c --> </p><p><!-- d --> FIVE</p><p><!--e--></p>"
    )
    assert sorted(seen) == ["five", "one two three four"]


def random_markup(generator, depth=0):
    parts = []
    for _ in range(generator.randrange(1, 5)):
        name = generator.choice("b em span sup code kbd".split())
        inner = random_markup(generator, depth + 1) if depth < 4 else "x"
        words = [
            f"{word}{space}" for word in ("one", "two,", "three.", "4", "six!", "{x}", "&amp;") for space in (" ", "")
        ]
        element = f"<{name}>{inner}</{name}>"
        parts.append(generator.choice([*words, *["<br>", '<img src="x">', "<!-- c -->"], *[element] * 5]))
    return "".join(parts)


@pytest.mark.parametrize("options", [{}, {"backwards": True}, {"aligned": False}])
def test_no_page_loses_markup_or_text(options):
    generator = random.Random(2)
    for _ in range(300):
        page = f"<p>{random_markup(generator)}</p>"
        result = translate_html(page, "a.html", make_fake(**options))
        assert Counter(MARKUP.findall(result)) == Counter(MARKUP.findall(page))
        old, new = (sorted("".join(MARKUP.sub("", text).upper().split())) for text in (page, result))
        assert new == old


def test_marks_of_notes_stay_behind_their_sentences():
    page = '<p>It rains.<sup><a href="#n">1</a></sup> Go. <a href="#r">↩</a></p>'
    text = translate_html(page, "a.html", make_fake())
    assert text == '<p>IT RAINS.<sup><a href="#n">1</a></sup> GO. <a href="#r">↩</a></p>'
    buttons = '<input type="submit" value="a b"><input value="a b"><input type="checkbox" value="a b">'
    text = translate_html(buttons, "a.html", make_fake())
    assert text == buttons.replace("a b", "A B", 1)
    page = '<p aria-label="a b">It rains. <a href="#r">↩</a></p>'
    text = translate_html(page, "a.html", make_fake(backwards=True))
    assert text == '<p aria-label="B A">RAINS. IT <a href="#r">↩</a></p>'


def test_the_language_of_the_page_is_set():
    page = '<html lang="en" xml:lang="en"><body><p lang="la">et</p></body></html>'
    text = translate_html(page, "a.html", make_fake(language="fr"))
    assert text == '<html lang="fr" xml:lang="fr"><body><p lang="la">ET</p></body></html>'


def test_what_cannot_be_placed_is_counted_and_stays():
    translator = make_fake(aligned=False, drop="{c1}")
    text = translate_html("<p>one <b>two</b> three <code>x = 1</code> four</p>", "a.html", translator)
    assert text == "<p>ONE TWO THREE FOUR <code>x = 1</code><b></b></p>"
    assert (translator.report.unplaced_tags, translator.report.appended_copies) == (1, 1)


def test_a_text_with_too_much_markup_stays():
    translator = make_fake()
    page = f"<p>{'<b>x</b> ' * 501}</p><p>{'<b>x</b> ' * 500}</p>"
    assert translate_html(page, "a.html", translator) == page[:4516] + page[4516:].replace("x", "X")
    assert (translator.report.untouched, translator.report.texts) == (1, 1)


def test_xhtml_stays_xml():
    page = (
        '<?xml version="1.0" encoding="utf-8"?>\n<html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head>'
        '<body><p>one<br/>two &amp; more</p><svg viewBox="0 0 1 1"><linearGradient/></svg></body></html>'
    )
    text = translate_xhtml(page, "a.xhtml", make_fake())
    assert text == page.replace("one", "ONE").replace("two &amp; more", "TWO &amp; MORE")


@pytest.mark.parametrize("page", ["<div>" * 100_000, "<b>" * 3000 + "x"])
def test_deep_pages_are_refused(page):
    with pytest.raises(ValueError, match=r"^a\.html must have tags in at most 250 others"):
        translate_html(page, "a.html", make_fake())


@pytest.mark.parametrize(
    "page", ["<!--" * 50_000, "<!" * 50_000, "<a " * 50_000, "&#" * 50_000, "<![x" * 9, "<![CDATA["]
)
def test_damaged_pages_end_in_time(page):
    start = time.monotonic()
    try:
        translate_html(page, "a.html", make_fake())
    except ValueError as error:
        assert str(error).startswith("a.html must")
    assert time.monotonic() - start < 20
