"""Markdown: only text changes, and what is written is read as the same structure."""

import time
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from support.fake_translator import make_fake

from mlx_transformer.documents.markdown import translate_markdown

PAGE = """\
---
title: kept
---

# ONE *TWO*

SOME **BOLD *TEXT*** AND [A LINK](u_r_l.html "kept"), `code` TOO,
AND <kbd>INLINE</kbd> HTML.

![ALT](a.png "kept") <http://kept.org/a>[^1]

BROKEN\\
LINE  
AND END

> QUOTED
>
> - ITEM
>   1. INNER

- [ ] A TASK
- [x] DONE

Head
====

| NAME | TEXT \\| MORE |
|:-----|-----:|
| ONE  | **TWO**  |

```python
code = "kept"
```

    indented code

<div title="HTML TOO">
HTML <b>TOO</b>
</div>

<pre>
html stays
</pre>

[^1]: A NOTE

[ref]: http://kept.org
"""  # noqa: W291 (two spaces break a line)


def test_only_text_changes():
    source = PAGE.lower().replace("head\n", "Head\n")
    expected = PAGE.replace("TOO,\nAND", "TOO, AND").replace("Head", "HEAD").replace("<kbd>INLINE<", "<kbd>inline<")
    translator = make_fake()
    assert translate_markdown(source, "a.md", translator) == expected
    assert translator.report.untouched == translator.report.unplaced_tags == 0


@pytest.mark.parametrize(
    "text",
    [
        r"\# no heading, \*no emphasis\*, \[no link](x), \<b>, a\`b, 2 \* 3, snake_case and \_under\_",
        "&lt;b&gt; &amp;amp; a & b",
        r"1\. no list",
        "a [link](<with space> \"a 'title'\") b",
        "[ref] and [a *text*][ref] end\n\n[ref]: http://x.org/a_(b)",
        "a `` code ` tick `` b",
        "*a*b and **c** d",
        "- a\n\n  b\n- c",
        "> a<br>b <i>c</i>\n> d<br/>e",
        "~~gone~~ here",
        "code `<br>` stays",
        r"add \_\_lt\_\_ to",
    ],
)
def test_the_structure_is_read_again(text):
    def read(page):
        return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(page).casefold().replace("\n", " ")

    assert read(translate_markdown(text, "a.md", make_fake())) == read(text)


@pytest.mark.parametrize(
    "target", ["# x", "- x", "+ x", "> x", "12. x", "1) x", "=== x", "~~~ x", "* x", "a_b _c_ | d"]
)
def test_translations_that_look_like_markdown_are_escaped(target):
    translator = make_fake()
    translator.search_texts = lambda texts, aligned: [
        each for each in make_fake().search_texts([target] * len(texts), aligned)
    ]
    text = translate_markdown("some text", "a.md", translator)
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert [child.content for child in tokens[1].children if child.content] == [target.upper()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# one two {#id .c}", "# TWO ONE {#id .c}"),
        ("one two [^1]", "TWO ONE [^1]"),
        (r"one $\{a_b\} * c*d$ two", r"TWO $\{a_b\} * c*d$ ONE"),
        ("$$\na * b\n$$", "$$\na * b\n$$"),
        ("it costs $5-$10 now", "NOW $5-$10 COSTS IT"),
        ("one $x$ two\nthree", "THREE TWO $x$ ONE"),
        ("one :tada: two 10:30:45", "10:30:45 TWO :tada: ONE"),
        ("**one <br>two three** four", "**ONE <br>THREE TWO** FOUR"),
        ("![x](u) ~~one~~ two", "![X](u) TWO ~~ONE~~"),
        ("*a* one\n\n~~![x](u)one~~ two", "ONE *A*\n\nTWO ~~![X](u)ONE~~"),
        ("press <kbd>a</kbd> now", "NOW <kbd>a</kbd> PRESS"),
        ("**one two\\\nthree** four", "**TWO ONE\\\nTHREE** FOUR"),
        ("> *one two  \n> three\n> four* five", "> *TWO ONE  \n> FOUR THREE* FIVE"),
        ("- [one **two\\\n  three**](u) four", "- [ONE **TWO\\\n  THREE**](u) FOUR"),
        ("**\\\none** two", "**\\\nONE** TWO"),
        ("*one\n: two* three", "THREE *TWO : ONE*"),
        ("> [!NOTE]\n> one two\n> three", "> [!NOTE]\n> THREE TWO ONE"),
        ("> [!NOTE]  \n> one two", "> [!NOTE]  \n> TWO ONE"),
        ("> [!tip]- one *two*\n> one two\\\n> three", "> [!tip]- one *two*\n> TWO ONE\\\n> THREE"),
        ("<p title='a b&#10;&#10;'>one two\n<p>three", "<p title='B A&#10;&#10;'>TWO ONE\n<p>THREE"),
        ("::: tip one two\nthree four\n:::\nfive six", "::: tip one two\nFOUR THREE\n:::\nSIX FIVE"),
        ('!!! note "one \\*two"\n    three\n    four', '!!! note "one \\*two"\n    FOUR THREE'),
        ("one {{ '{:,}'.a }} two {% if c %}d{% endif %}", "{% if c %}D{% endif %} TWO {{ '{:,}'.a }} ONE"),
        ("> <summary>one\n> two</summary>\n>\n> three four", "> <summary>TWO ONE</summary>\n>\n> FOUR THREE"),
        ("- <p title='one two'>one\n  <b>two</b></p>\n- x", "- <p title='TWO ONE'><b>TWO</b> ONE</p>\n- X"),
        ("<!-- a\n\nb -->\none two\n<div>one two</div>", "<!-- a\n\nb -->\nTWO ONE\n<div>TWO ONE</div>"),
        ("term one\n: its two\n  lines\n: another one", "ONE TERM\n: LINES TWO ITS\n: ONE ANOTHER"),
    ],
)
def test_what_other_dialects_have_stays(text, expected):
    assert translate_markdown(text, "a.md", make_fake(backwards=True)) == expected


def test_every_line_behind_a_hard_break_is_escaped_at_its_beginning():
    translator = make_fake()
    translator.search_texts = lambda texts, aligned: make_fake().search_texts(["# x"] * len(texts), aligned)
    assert translate_markdown("*one\\\ntwo*\\\nthree", "a.md", translator) == "*# X\\\n\\# X*\\\n\\# X"


def test_markup_at_the_beginning_is_not_escaped():
    assert translate_markdown("~~![x](u) one~~", "a.md", make_fake()).startswith("~~![X](u)")


def test_windows_line_ends_stay():
    assert translate_markdown("# one\r\n\r\ntwo\r\n", "a.md", make_fake()) == "# ONE\r\n\r\nTWO\r\n"


def test_emphasis_that_overlaps_a_tag_stays():
    assert translate_markdown("<b>**one</b> two** three", "a.md", make_fake()) == "<b>**ONE</b> TWO** THREE"


def test_emphasis_of_nothing_is_left_out():
    translator = make_fake(aligned=False)
    assert translate_markdown("one **two** three", "a.md", translator) == "ONE TWO THREE"
    assert translator.report.unplaced_tags == 1


@pytest.mark.parametrize("text", [unit * 60_000 for unit in ("[^", "{{ ", "{% ", "$a ")] + [f"a{' ' * 60_000}b"])
def test_hostile_text_takes_linear_time(text):
    start = time.process_time()
    translate_markdown(text, "a.md", make_fake())
    assert time.process_time() - start < 10


def test_code_behind_a_comma_is_a_word():
    text = "see `a`,`b`, and this...`c`"
    assert translate_markdown(text, "a.md", make_fake()) == "SEE `a`,`b`, AND THIS...`c`"


def test_pieces_of_code_are_kept_apart():
    translator = make_fake()
    search = translator.search_texts
    translator.search_texts = lambda texts, aligned: (
        replace(each, text=each.text.replace(" AND ", "")) for each in search(texts, aligned)
    )
    assert translate_markdown("see `a b` and `c`", "a.md", translator) == "SEE `a b` `c`"
