"""XLIFF: units without a target get one, with their inline elements."""

import pytest
from lxml import etree
from support.fake_translator import make_fake

from mlx_transformer.documents.xliff import translate_xliff

OLD = """<?xml version="1.0" encoding="UTF-8"?>
<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
  <file original="a" source-language="en" datatype="plaintext"><body>
    <trans-unit id="1"><source>a <g id="1">red</g> car<x id="2"/></source><note>keep</note></trans-unit>
    <trans-unit id="2"><source>done</source><target state="final">fini</target></trans-unit>
    <trans-unit id="3" translate="no"><source>brand</source></trans-unit>
    <trans-unit id="4"><source>empty</source><target state="new"/></trans-unit>
    <trans-unit id="5"><source>12</source></trans-unit>
  </body></file>
</xliff>
"""
NEW = """<xliff version="2.0" srcLang="en" xmlns="urn:oasis:names:tc:xliff:document:2.0">
  <file id="f">
    <unit id="1"><segment><source>one <pc id="1">two<ph id="2"/></pc></source></segment>
      <ignorable><source> </source></ignorable>
      <segment><source>three</source></segment></unit>
    <unit id="2" translate="no"><segment><source>brand</source></segment></unit>
    <group id="g" translate="no"><unit id="3" translate="yes"><segment><source>four</source></segment></unit></group>
  </file>
</xliff>
"""


FORMS = "{n, plural, one {a file} other {# files}}"


def translate(text, **options):
    return etree.fromstring(translate_xliff(text.encode(), "a.xliff", make_fake(**options)))


def texts(root, name):
    return [
        etree.tostring(each, encoding="unicode", with_tail=False).partition(">")[2].rpartition("</")[0]
        for each in root.iter(f"{{*}}{name}")
    ]


def without_namespaces(text):
    return text.replace(' xmlns="urn:oasis:names:tc:xliff:document:1.2"', "").replace(
        ' xmlns="urn:oasis:names:tc:xliff:document:2.0"', ""
    )


def test_units_of_version_1_without_a_target_get_one():
    root = translate(OLD, language="fr")
    assert [*map(without_namespaces, texts(root, "target"))] == [
        'A <g id="1">RED</g> CAR<x id="2"/>',
        "fini",
        "EMPTY",
        "12",
    ]
    assert texts(root, "source") == texts(etree.fromstring(OLD.encode()), "source")
    assert root.find("{*}file").get("target-language") == "fr" and texts(root, "note") == ["keep"]
    assert [each.get("state") for each in root.iter("{*}target")] == [None, "final", "new", None]


def test_segments_of_version_2():
    root = translate(NEW, language="fr-CA")
    assert [*map(without_namespaces, texts(root, "target"))] == [
        'ONE <pc id="1">TWO<ph id="2"/></pc>',
        "THREE",
        "FOUR",
    ]
    assert root.get("trgLang") == "fr-CA"


def test_inline_elements_follow_their_words():
    (target, *_) = texts(translate(OLD, backwards=True), "target")
    assert without_namespaces(target).startswith("CAR") and '<g id="1">RED</g>' in without_namespaces(target)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('one two<x id="1" ctype="lb"/>three four', 'TWO ONE<x id="1" ctype="lb"/>FOUR THREE'),
        ('one <ph id="1" type="fmt" subType="xlf:lb"/>two', 'ONE <ph id="1" type="fmt" subType="xlf:lb"/>TWO'),
        ('Hello <ph id="1">{0}</ph> you', 'YOU <ph id="1">{0}</ph> HELLO'),
        ('Hi <ph id="1" type="ui" subType="xlf:var"/> you', 'YOU <ph id="1" type="ui" subType="xlf:var"/> HI'),
        ('<x id="1" ctype="x-b"/>one two', '<x id="1" ctype="x-b"/>TWO ONE'),
    ],
)
def test_line_breaks_and_values_stay_in_place(source, expected):
    root = translate(OLD.replace("empty", source), backwards=True)
    assert without_namespaces(texts(root, "target")[2]) == expected


def test_targets_stand_behind_segments_and_sources_keep_their_cdata():
    unit = "<source>one <![CDATA[<two>]]></source><seg-source>one</seg-source>"
    text = translate_xliff(OLD.replace("<source>12</source>", unit).encode(), "a.xliff", make_fake()).decode()
    assert "<source>one <![CDATA[<two>]]></source><seg-source>one</seg-source><target>" in text
    assert text.endswith("</xliff>\n")


def test_only_targets_are_new():
    for source in (OLD, NEW):
        old, new = etree.fromstring(source.encode()), translate(source)
        for root in (old, new):
            for target in list(root.iter("{*}target")):
                target.getparent().remove(target)
        assert [each.tag for each in old.iter()] == [each.tag for each in new.iter()]
        assert [dict(each.attrib) for each in old.iter("{*}unit", "{*}trans-unit")] == [
            dict(each.attrib) for each in new.iter("{*}unit", "{*}trans-unit")
        ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("<xliff/>", "must be XLIFF 1.2 or 2"),
        ("<a xmlns='urn:oasis:names:tc:xliff:document:1.2'/>", "must be XLIFF 1.2 or 2"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]>" + NEW, "must have no DTD"),
        (OLD[:200], "must be XML"),
        ("", "must be XML"),
    ],
)
def test_other_files_are_refused(data, reason):
    with pytest.raises(ValueError, match=reason):
        translate(data)


def test_messages_with_forms_get_no_target():
    translator = make_fake()
    source = OLD.replace("empty", FORMS)
    root = etree.fromstring(translate_xliff(source.encode(), "a.xliff", translator))
    assert FORMS not in texts(root, "target") and texts(root, "source")[3] == FORMS
    assert (translator.report.texts, translator.report.untouched) == (1, 1)
