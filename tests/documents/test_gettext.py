"""Catalogues: entries without a translation get one."""

import polib
import pytest
from support.fake_translator import make_fake

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
