"""Pages: only text and the attributes that readers see change."""

import random
import re
import time
from collections import Counter
from html import unescape

import pytest
from lxml import etree
from support.fake_translator import make_fake

from mlx_transformer.documents.html import translate_html, translate_xhtml
from mlx_transformer.documents.html_text import split_html

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


def test_attributes_inside_what_is_copied_are_not_translated():
    page, seen = '<p>one <svg aria-label="a b"><g/></svg> two</p>', []
    text = translate_html(page, "a.html", make_fake(seen=seen))
    assert text == page.replace("one", "ONE").replace("two", "TWO") and not any("a b" in each for each in seen)


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


@pytest.mark.parametrize(
    ("page", "texts"),
    [
        ("<p>ONE<p>TWO <b>THREE</b>\n<ul><li>FOUR<li>FIVE</ul>", 4),
        ("<table><tr><td>ONE<td>TWO<tr><td>THREE</table>", 3),
        ("<dl><dt>ONE<dd>TWO<br>THREE<dt>FOUR</dl><select><option>FIVE<option>SIX</select>", 6),
        ("<P CLASS=x  id='y'>ONE</P ><IMG SRC=a.png>TWO<BR />THREE<Br/>FOUR", 4),
        ("<b>ONE <i>TWO</b> THREE</i> FOUR</em> FIVE", 1),
        ("<p>ONE\n</p>\n<p>\t<b>\nTHREE\n</b>\n <br>\n FOUR\n", 3),
        ("<p data-a=1 data-a=2 hidden>ONE<a href='?a=1&b=2&amp;c'> </a></p>&copy; 5 &lt; 6", 1),
        ("<!-- a -->ONE<!--[if IE]><p>no<![endif]--> TWO<?php no ?>THREE", 2),
        ("<a href=x><div>ONE</div></a><b><p>TWO</b><p>THREE", 3),
        ("ONE &lt; TWO <p FOUR", 1),
    ],
)
def test_markup_stays_as_it_was_written(page, texts):
    translator = make_fake()
    source = re.sub("(?<!p )(ONE|TWO|THREE|FOUR|FIVE|SIX)", lambda match: match[0].lower(), page)
    assert translate_html(source, "a.html", translator) == page
    assert (translator.report.texts, translator.report.unplaced_tags) == (texts, 0)


@pytest.mark.parametrize("is_xml", [False, True])
def test_no_broken_page_loses_markup_or_text(is_xml):
    def read(page):
        pieces = split_html(page, is_xml)
        texts = "".join(unescape(piece.text) for piece in pieces if piece.is_text)
        return Counter(piece.text for piece in pieces if not piece.is_text), sorted("".join(texts.split()))

    generator = random.Random(3)
    parts = "<p> <b> </b> </p> <br> &nbsp; &amp; 語 語。 <img_alt='語'> <!--x--> 12 <a_title=語> </a> <code> </code>"
    parts += " <td <i/> > <script> </script> <![CDATA[ ]]> &lt;"
    choices = [*(part.replace("_", " ") for part in parts.split()), " ", "\n", " 語 "]
    for _ in range(500):
        page = "".join(generator.choices(choices, k=generator.randrange(20)))
        result = (translate_xhtml if is_xml else translate_html)(page, "a.html", make_fake(backwards=True))
        assert read(result) == read(page)


def test_attributes_are_replaced_where_they_stand():
    page = (
        "<p  title = 'it&apos;s \"a\"' ID=a><img alt=word\nsrc=x.png><b title=\"b &amp; c\" lang='la'>one</b>"
        "<pre title=no><i title=no>no</i></pre>"
    )
    assert translate_html(page, "a.html", make_fake()) == (
        '<p  title = \'IT&#x27;S "A"\' ID=a><img alt="WORD"\nsrc=x.png><b title="B &amp; C" lang=\'la\'>ONE</b>'
        '<pre title="NO"><i title=no>no</i></pre>'
    )


def test_elements_of_xhtml_may_be_empty():
    page = "<html><script src='a.js'/><title/><p>one<b/> two<![CDATA[ <p>no</p> ]]></p><textarea/>three</html>"
    expected = page.replace("one", "ONE").replace("two", "TWO").replace("three", "THREE")
    assert translate_xhtml(page, "a.xhtml", make_fake()) == expected
    assert translate_html("<script/>no</script>one", "a.html", make_fake()) == "<script/>no</script>ONE"


@pytest.mark.parametrize("page", ["<div>x" * 20_000, "<b>" * 3000 + "x", "<b>x<br>" * 3000, "<b> " * 50_000])
def test_deep_pages_are_translated(page):
    start = time.monotonic()
    translator = make_fake()
    result = translate_html(page, "a.html", translator)
    assert result == (page if translator.report.untouched else page.replace("x", "X"))
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "page",
    [
        "<!--" * 50_000,
        "<!" * 50_000,
        "<a " * 50_000,
        "&#" * 50_000,
        "<![CDATA[" * 50_000,
        "<a b='" * 50_000,
        "<?" * 50_000,
    ],
)
def test_damaged_pages_end_in_time(page):
    start = time.monotonic()
    assert translate_html(page, "a.html", make_fake()) == page
    assert time.monotonic() - start < 20


def test_messages_with_forms_stay():
    translator = make_fake()
    page = "<p>{ count , plural, =0 {none} other {<b>many</b>}} left</p><p>{count}, plural</p>"
    assert translate_html(page, "a.html", translator) == page.replace("}, plural", "}, PLURAL")
    assert (translator.report.texts, translator.report.untouched) == (1, 1)


@pytest.mark.parametrize("options", [{}, {"backwards": True}, {"aligned": False}])
def test_pages_that_are_xml_stay_xml(options):
    generator = random.Random(4)
    for _ in range(300):
        body = random_markup(generator).replace("<br>", "<br/>").replace('<img src="x">', "<img alt='a &lt; b'/>")
        page = f'<html xml:lang="en"><body><p title="a &quot;b&quot;">{body}</p>{body}<![CDATA[ a & b ]]></body></html>'
        root = etree.fromstring(page)
        result = etree.fromstring(translate_xhtml(page, "a.xhtml", make_fake(language="fr", **options)))
        assert Counter(each.tag for each in result.iter()) == Counter(each.tag for each in root.iter())
        assert result.find(".//p").get("title").casefold() in ('a "b"', '"b" a')
