"""Catalogues: entries without a translation get one."""

import time
from dataclasses import replace

import polib
import pytest
from support.fake_translator import make_fake

from mlx_transformer.documents.accelerators import add_accelerator, split_accelerator
from mlx_transformer.documents.gettext import translate_po

HEADER = """# A comment
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
"Plural-Forms: nplurals={}; plural=0;\\n"
"Language: \\n"
"""
ENTRIES = """
#. a note
#: a.c:1
#, c-format
msgctxt "menu"
msgid "file %s\\n"
msgstr ""

msgid "done"
msgstr "fini"

#, fuzzy
msgid "unsure"
msgstr "peut-être"

msgid "one file"
msgid_plural "%d files"
msgstr[0] ""
msgstr[1] ""

#~ msgid "old"
#~ msgstr ""
"""

FORMS = "{n, plural, one {a file} other {# files}}"


@pytest.mark.parametrize(
    ("num_plurals", "forms"),
    [(1, ["%d FILES"]), (2, ["ONE FILE", "%d FILES"]), (3, ["ONE FILE", "%d FILES", "%d FILES"])],
)
def test_untranslated_entries_are_filled(num_plurals, forms):
    source = HEADER.format(num_plurals) + ENTRIES.replace(
        'msgstr[0] ""\nmsgstr[1] ""', "\n".join(f'msgstr[{i}] ""' for i in range(num_plurals))
    )
    text = translate_po(source, "a.po", make_fake(language="fr-CA"))
    old, new = polib.pofile(source), polib.pofile(text)
    assert [entry.msgstr for entry in new][:3] == ["FILE %s\n", "fini", "peut-être"]
    assert [new[3].msgstr_plural[i] for i in range(num_plurals)] == forms
    assert new.metadata["Language"] == "fr_CA"
    for before, after in zip(old, new, strict=True):
        for field in ("msgid", "msgid_plural", "msgctxt", "comment", "occurrences", "flags", "obsolete"):
            assert vars(after)[field] == vars(before)[field]


def test_a_catalogue_without_a_comment_gets_none():
    source = HEADER.format(2).partition("\n")[2] + 'msgid "one"\nmsgstr ""\n'
    assert translate_po(source, "a.po", make_fake()).startswith('msgid ""\n')
    assert translate_po(f"#\n{source}", "a.po", make_fake()).startswith("#\nmsgid")


def test_line_breaks_and_tabs_are_between_texts():
    seen = []
    entry = 'msgid "one two<br/>three\\tfour five\\n"\nmsgstr ""\n'
    text = translate_po(HEADER.format(2) + entry, "a.po", make_fake(backwards=True, seen=seen))
    assert polib.pofile(text)[0].msgstr == "TWO ONE<br/>THREE\tFIVE FOUR\n"
    assert seen == ["one two", "three", "four five"]


def test_tags_stay_and_changed_placeholders_make_an_entry_fuzzy():
    source = 'msgid "<b>one</b> %s of %d"\nmsgstr ""\n'
    entry = polib.pofile(translate_po(source, "a.po", make_fake()))[0]
    assert (entry.msgstr, entry.fuzzy) == ("<b>ONE</b> %s OF %d", False)
    entry = polib.pofile(translate_po(source, "a.po", make_fake(backwards=True)))[0]
    assert (entry.msgstr, entry.fuzzy) == ("%d OF %s <b>ONE</b>", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no catalogue\n", "must be a catalogue of gettext: .*line 1"),
        ('msgid ""\nmsgstr "Content-Type: text/plain; charset=ISO-8859-1\\n"\n', "must be in UTF-8, not ISO-8859-1"),
    ],
)
def test_damaged_catalogues_are_refused(text, message):
    with pytest.raises(ValueError, match=rf"^a\.po {message}"):
        translate_po(text, "a.po", make_fake())


TEMPLATE = (
    'msgid ""\nmsgstr ""\n"Language: {}\\n"\n"Plural-Forms: {}\\n"\n"Content-Type: text/plain; charset=UTF-8\\n"\n\n'
)
PLURALS = 'msgid "one file"\nmsgid_plural "%d files"\nmsgstr[0] ""\nmsgstr[1] ""\n\n'
STARTED = 'msgid "done"\nmsgstr "fini"\n'


def test_a_new_catalogue_gets_the_language_and_its_plural_forms():
    template = TEMPLATE.format("en", "nplurals=INTEGER; plural=EXPRESSION;") + PLURALS
    russian = polib.pofile(translate_po(template, "a.po", make_fake(language="ru")))
    assert russian.metadata["Language"] == "ru" and russian.metadata["Plural-Forms"].startswith(
        "nplurals=3; plural=n %"
    )
    assert russian[0].msgstr_plural == {0: "ONE FILE", 1: "%d FILES", 2: "%d FILES"}
    japanese = polib.pofile(
        translate_po(TEMPLATE.format("", "nplurals=2; plural=n;") + PLURALS, "a.po", make_fake(language="ja"))
    )
    assert japanese[0].msgstr_plural == {0: "%d FILES"} and "nplurals=1" in japanese.metadata["Plural-Forms"]
    for language in ("xx", None):
        unknown = polib.pofile(translate_po(template, "a.po", make_fake(language=language)))
        assert "INTEGER" in unknown.metadata["Plural-Forms"] and len(unknown[0].msgstr_plural) == 2


def test_a_catalogue_with_translations_keeps_its_header():
    text = TEMPLATE.format("fr", "nplurals=2; plural=(n > 1);") + PLURALS + STARTED
    metadata = polib.pofile(translate_po(text, "a.po", make_fake(language="de"))).metadata
    assert metadata["Language"] == "fr" and metadata["Plural-Forms"] == "nplurals=2; plural=(n > 1);"


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("_Save", "Enregistrer", "_Enregistrer"),
        ("_Save", "Tout sauver", "Tout _sauver"),
        ("&Open the file", "Open datei", "&Open datei"),
        ("Save &As...", "Sichern als...", "Sichern &als..."),
        ("E_xit", "Sortie", "_Sortie"),
        ("_Save...", "保存...", "保存(_S)..."),
        ("AT&T & you", "AT&T & you", None),
        ("file_name", "file_name", None),
        ("max_tokens and min_tokens", "x", None),
        ("R&D", "R&D", None),
        ("A & B", "A & B", None),
        ("Use &amp; here", "x", None),
    ],
)
def test_labels_keep_one_accelerator(source, target, expected):
    text, mark, letter = split_accelerator(source)
    if expected is None:
        assert (text, mark) == (source, "") and add_accelerator(target, mark, letter) == target
    else:
        assert text == source.replace(mark, "") and add_accelerator(target, mark, letter) == expected


def test_entries_keep_their_accelerators():
    seen = []
    text = translate_po('msgid "Save _as"\nmsgstr ""\n', "a.po", make_fake(seen=seen))
    assert seen == ["Save as"] and polib.pofile(text)[0].msgstr == "SAVE _AS"


def test_messages_with_forms_stay_without_a_translation():
    text = f'msgid "{FORMS}"\nmsgstr ""\n\nmsgid "one"\nmsgstr ""\n'
    translator = make_fake()
    expected = text.replace('"one"\nmsgstr ""', '"one"\nmsgstr "ONE"')
    assert translate_po(text, "a.po", translator).endswith(expected)
    assert (translator.report.texts, translator.report.untouched) == (1, 1)


@pytest.mark.parametrize(
    ("source", "target", "flag", "is_fuzzy"),
    [
        ("%(a)s of %(b)s", "%(b)s: %(a)s", "python-format", False),
        ("%(a)s of %(b)s", "%(a)s: %(b)s %)", "python-format", True),
        ("%(a)s of %(b)s", "%(a)s: %(a)s", "python-format", True),
        ("%s of %d", "%d: %s", "c-format", True),
        ("%1$s of %2$d", "%2$d: %1$s", "c-format", False),
        ("%lu files, %5.2f%%", "%lu: %5.2f %%", "c-format", False),
        ("%lu files, %5.2f%%", "%5.2f %%: %lu", "c-format", True),
        ("%d%% done", "done 5 %: %d%%", "c-format", True),
        ("{a} of {b}", "{b}: {a}", "python-brace-format", False),
        ("{a} of {b}", "{b}", "python-brace-format", True),
        ("50% off", "% 50", "no-c-format", False),
        ("50% off", "% 50", "", False),
        ("%s of %s", "%s", "", True),
    ],
)
def test_a_translation_that_cannot_be_filled_in_is_fuzzy(source, target, flag, is_fuzzy):
    translator = make_fake()
    translator.search_texts = lambda texts, aligned: (
        replace(each, text=target) for each in make_fake().search_texts(texts, aligned)
    )
    flags = f"#, {flag}\n" if flag else ""
    text = translate_po(f'{flags}msgid "{source}"\nmsgstr ""\n', "a.po", translator)
    entry = polib.pofile(text)[0]
    assert (entry.msgstr, entry.fuzzy) == (target, is_fuzzy)


def test_long_numbers_take_linear_time():
    text = f'#, c-format\nmsgid "%{"0" * 100_000}"\nmsgstr ""\n'
    start = time.process_time()
    translate_po(text, "a.po", make_fake())
    assert time.process_time() - start < 5
