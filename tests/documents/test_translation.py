"""Documents from bytes to bytes and from file to file, with the bundled model."""

import os

import pytest

import mlx_transformer as mt
from mlx_transformer.documents import translation
from mlx_transformer.documents.translation import ENDINGS, find_format


@pytest.fixture(scope="module")
def bundled():
    return mt.load()


PAGE = """\
<html lang="en"><body><p>I bought a <b>red car</b> yesterday, and <a href="x">my friend</a> likes it.</p>
<p>The <i>old man</i> lives here. See <code>x = 1</code>.</p></body></html>
"""


def test_a_page(bundled):
    text, report = mt.translate_document(*bundled, PAGE.encode(), "a.HTML", document_language="fr")
    assert b'<html lang="fr">' in text
    assert "<b>voiture rouge</b>" in text.decode()
    assert '<a href="x">mon ami</a>' in text.decode() and "<i>vieil homme</i>" in text.decode()
    assert text.count(b"<code>x = 1</code>") == 1
    assert (report.texts, report.unplaced_tags, report.truncated) == (2, 0, 0)


def test_texts_without_markup_are_those_of_generate(bundled):
    lines = ["Where is the station?", "", "  I love you. The dog is big.", "Where is the station?"]
    text, report = mt.translate_document(*bundled, "\n".join(lines).encode(), "a.txt", beam_size=2)
    expected = [mt.generate(*bundled, line, beam_size=2) for line in lines]
    assert text.decode().split("\n") == [*expected[:2], f"  {expected[2].strip()}", expected[3]]
    assert report == mt.DocumentReport(texts=3)


def test_placeholders_and_glossary(bundled):
    options = {"protect": ["placeholders"], "glossary": {"dog": "toutou"}}
    text, report = mt.translate_document(*bundled, b"The dog of {name} is big.", "a.txt", **options)
    assert b"{name}" in text and b"toutou" in text
    assert report.appended_copies == report.missing_terms == 0


def test_files(bundled, tmp_path):
    source, target = tmp_path / "a.txt", tmp_path / "b.txt"
    source.write_bytes(b"\xef\xbb\xbfHello!\r\n")
    assert mt.translate_file(*bundled, source, target).texts == 1
    assert target.read_bytes() == b"\xef\xbb\xbfBonjour !\r\n"
    with pytest.raises(FileExistsError, match="already exists: choose another name"):
        mt.translate_file(*bundled, source, target)
    with target.open("rb") as old:
        assert mt.translate_file(*bundled, source, target, overwrite=True).texts == 1
        assert os.fstat(old.fileno()).st_ino != target.stat().st_ino  # replaced as a whole
    with pytest.raises(ValueError, match="must be different files"):
        mt.translate_file(*bundled, source, source, overwrite=True)
    with pytest.raises(ValueError, match=r"ending of the input, \.txt, but is"):
        mt.translate_file(*bundled, source, tmp_path / "b.md")
    with pytest.raises(FileNotFoundError, match="must be a file to translate"):
        mt.translate_file(*bundled, tmp_path / "none.txt", target)
    with pytest.raises(FileNotFoundError, match="must be in an existing folder"):
        mt.translate_file(*bundled, source, tmp_path / "none" / "b.txt")


def test_nothing_is_written_if_a_document_is_damaged(bundled, tmp_path):
    source, target = tmp_path / "a.srt", tmp_path / "b.srt"
    source.write_text("no subtitles")
    target.write_text("old")
    with pytest.raises(ValueError, match="must have subtitles"):
        mt.translate_file(*bundled, source, target, overwrite=True)
    assert target.read_text() == "old" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"one\ntwo \xe9 three\nfour\n" + b"good\n" * 50, "line 2 must be UTF-8, but it has the byte 0xe9"),
        (b"one\ntwo\0\n", "line 2 must be text, but it has a NUL"),
        ("été\n".encode("utf-16"), "UTF-16"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"x" * 100, "must have at most 0 MiB"),
    ],
)
def test_hostile_text_is_refused_in_one_line(bundled, monkeypatch, data, message):
    if "MiB" in message:
        monkeypatch.setattr(translation, "MAX_BYTES", 99)
    with pytest.raises(ValueError, match=message) as error:
        mt.translate_document(*bundled, data, "a.txt")
    assert "\n" not in str(error.value) and str(error.value).startswith("a.txt")


def test_unknown_endings_are_refused():
    with pytest.raises(ValueError, match=r"must end in \.txt, .* but a\.pdf does not"):
        find_format("a.pdf")
    assert all(map(find_format, (f"a{ending}" for ending in ENDINGS)))


@pytest.mark.parametrize(
    ("code", "tag"),
    [
        ("fra_Latn", "fr"),
        ("fr_XX", "fr"),
        ("pt_BR", "pt-BR"),
        ("zho_Hant", "zh-Hant"),
        ("pt-br", "pt-BR"),
        (None, None),
    ],
)
def test_language_tags(code, tag):
    assert translation.language_tag(code) == tag


@pytest.mark.parametrize(
    ("code", "tag"),
    [
        ("fra_Latn", "fr"),
        ("pt_BR", "pt-BR"),
        ("zho_Hant", "zh-Hant"),
        ("es-419", "es-419"),
        ('fr-">', "fr"),
        ('"', None),
        (None, None),
    ],
)
def test_tags_of_languages(code, tag):
    assert translation.language_tag(code) == tag
