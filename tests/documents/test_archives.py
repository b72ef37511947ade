"""Word documents and books: what has no text is copied, and hostile archives are refused."""

import io
import random
import re
import zipfile

import docx
import pytest
from docx.shared import RGBColor
from support.fake_translator import make_fake

from mlx_transformer.documents import archives
from mlx_transformer.documents.docx import translate_docx
from mlx_transformer.documents.epub import translate_epub

BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def make_document():
    document = docx.Document()
    document.add_heading("one heading", 1)
    paragraph = document.add_paragraph("some ")
    paragraph.add_run("bold").bold = True
    paragraph.add_run(" and ")
    red = paragraph.add_run("red")
    red.font.color.rgb = RGBColor(255, 0, 0)
    paragraph.add_run(" text")
    document.add_paragraph("left\tright")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "cell", "123"
    document.sections[0].header.paragraphs[0].text = "the head"
    return document


def pack(entries):
    """The bytes of an archive, which are the same at any time: they are in the names of tests."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return output.getvalue()


def unpack(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def saved(document, **entries):
    output = io.BytesIO()
    document.save(output)
    return pack(unpack(output.getvalue()) | entries)


def runs_of(paragraph):
    return [(run.text, run.bold, run.font.color.rgb) for run in paragraph.runs if run.text]


@pytest.mark.parametrize("backwards", [False, True])
def test_runs_keep_their_formatting(backwards):
    translator = make_fake(backwards=backwards)
    data = translate_docx(saved(make_document()), "a.docx", translator)
    document = docx.Document(io.BytesIO(data))
    red = RGBColor(255, 0, 0)
    runs = [
        ("SOME ", None, None),
        ("BOLD", True, None),
        (" AND ", None, None),
        ("RED", None, red),
        (" TEXT", None, None),
    ]
    backward = [
        ("TEXT ", None, None),
        ("RED", None, red),
        (" AND ", None, None),
        ("BOLD", True, None),
        (" SOME", None, None),
    ]
    assert runs_of(document.paragraphs[1]) == (backward if backwards else runs)
    assert document.paragraphs[2].text == "LEFT\tRIGHT"
    assert document.paragraphs[0].style.name == "Heading 1"
    assert [cell.text for cell in document.tables[0].rows[0].cells] == ["CELL", "123"]
    assert "HEAD" in document.sections[0].header.paragraphs[0].text
    assert translator.report.unplaced_tags == translator.report.untouched == 0


def test_other_entries_are_copied():
    extra = {
        "word/vbaProject.bin": b"\0macro\xff",
        "word/embeddings/oleObject1.bin": b"object",
        "word/media/a.png": b"x",
    }
    source = saved(make_document(), **extra)
    result = unpack(translate_docx(source, "a.docx", make_fake()))
    assert list(result) == list(unpack(source))
    changed = [name for name, content in unpack(source).items() if result[name] != content]
    assert sorted(changed) == ["word/document.xml", "word/header1.xml"]


def paragraph_of(body):
    namespace = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    part = f"<w:document {namespace}><w:body><w:p>{body}</w:p></w:body></w:document>"
    translator = make_fake()
    text = unpack(translate_docx(pack({"word/document.xml": part}), "a.docx", translator))["word/document.xml"].decode()
    return text.partition("<w:p>")[2].partition("</w:p>")[0].replace(' xml:space="preserve"', ""), translator.report


def test_fields_links_and_marks_stay():
    field = (
        '<w:r><w:fldChar w:fldCharType="begin"/></w:r><w:r><w:instrText>PAGE</w:instrText></w:r>'
        '<w:r><w:fldChar w:fldCharType="end"/></w:r>'
    )
    link = '<w:hyperlink w:anchor="x"><w:r><w:rPr><w:u/></w:rPr><w:t>{}</w:t></w:r></w:hyperlink>'
    mark = '<w:bookmarkStart w:id="0"/>'
    body = f"{mark}<w:r><w:t>see </w:t></w:r>{link.format('a link')}<w:r><w:t> page </w:t></w:r>{field}"
    text, report = paragraph_of(body)
    assert text == body.replace("see", "SEE").replace("a link", "A LINK").replace(" page ", " PAGE ")
    assert report.texts == 1


def test_words_that_are_divided_into_runs_are_one_text():
    run = "<w:r>{}<w:t>{}</w:t></w:r>"
    language = '<w:rPr><w:lang w:val="en-US"/></w:rPr>'
    body = run.format("", "hel") + "<w:proofErr/>" + run.format(language, "lo you")
    assert paragraph_of(body)[0] == run.format("", "HELLO YOU")


def run_of(text, style=""):
    return f"<w:r>{style}<w:t>{text}</w:t></w:r>"


def field_of(code, text):
    mark = '<w:r><w:fldChar w:fldCharType="{}"/></w:r>'
    code = f"<w:r><w:instrText> {code} </w:instrText></w:r>"
    return f"{mark.format('begin')}{code}{mark.format('separate')}{run_of(text)}{mark.format('end')}"


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (f"<w:moveTo>{run_of('ONE TWO')}</w:moveTo>{run_of(' THREE')}", 1),
        (f"{run_of('ONE')}<w:moveFrom>{run_of('one two')}</w:moveFrom>", 1),
        (f"{run_of('ONE')}<w:del><w:r><w:delText> two</w:delText></w:r></w:del>{run_of(' THREE')}", 1),
        (f"{run_of('ONE ')}<w:ins><w:hyperlink>{run_of('TWO')}</w:hyperlink>{run_of(' THREE')}</w:ins>", 1),
        (f"<w:ins><w:del><w:r><w:delText>no</w:delText></w:r></w:del>{run_of('ONE')}</w:ins>{run_of(' TWO')}", 1),
        (f"<w:hyperlink><w:bookmarkStart/>{run_of('ONE')}<w:bookmarkEnd/></w:hyperlink>{run_of(' TWO')}", 1),
        (f"<w:bdo>{run_of('TWO')}</w:bdo>{run_of(' ')}<w:smartTag><w:smartTagPr/>{run_of('ONE')}</w:smartTag>", 1),
        (run_of("ONE ") + field_of('HYPERLINK "http://a"', "TWO THREE") + run_of(" FOUR"), 1),
        (run_of("ONE ") + field_of("REF heading", "two three") + run_of(" FOUR"), 1),
        (f"{run_of('ONE ')}<w:fldSimple>{run_of('two')}</w:fldSimple>{run_of(' THREE')}", 1),
        (f"{run_of('ONE ')}<w:sdt><w:sdtContent>{run_of('two')}</w:sdtContent></w:sdt>{run_of(' THREE')}", 1),
        (f'{run_of("ONE ")}<m:oMath xmlns:m="m"><m:r><m:t>x</m:t></m:r></m:oMath>{run_of(" TWO")}', 1),
        (f"{run_of('ONE')}<w:hyperlink><w:r><w:drawing/></w:r></w:hyperlink>{run_of(' TWO')}", 1),
        (f"{run_of('ONE ')}<w:r><w:ruby>{run_of('two')}</w:ruby></w:r>{run_of(' THREE')}", 1),
        (f"<w:ins><w:pPr/></w:ins>{run_of('12')}", 0),
    ],
)
def test_text_in_links_changes_and_fields_is_part_of_its_sentence(body, texts):
    source = body.replace("TWO", "two").replace("ONE", "one").replace("THREE", "three").replace("FOUR", "four")
    text, report = paragraph_of(source)
    assert text == body
    assert (report.texts, report.unplaced_tags, report.appended_copies) == (texts, 0, 0)


@pytest.mark.parametrize("part", ["<w:r><w:tab/></w:r>", "<w:r><w:br/></w:r>"])
def test_a_break_in_a_link_ends_a_text(part):
    link = "<w:ins><w:hyperlink>{}</w:hyperlink></w:ins>"
    text, report = paragraph_of(link.format(run_of("one") + part + run_of("two")))
    assert text == "".join(map(link.format, (run_of("ONE"), part, run_of("TWO")))) and report.texts == 2


def test_strict_documents_are_read_too():
    strict = "http://purl.oclc.org/ooxml/wordprocessingml/main"
    part = f'<w:document xmlns:w="{strict}"><w:p>{run_of("one")}</w:p></w:document>'
    text = unpack(translate_docx(pack({"word/document.xml": part}), "a.docx", make_fake()))["word/document.xml"]
    assert b">ONE<" in text and text.count(strict.encode()) == 1 and b"schemas.openxmlformats.org/word" not in text


def test_hyphens_are_part_of_their_words():
    text, _ = paragraph_of("<w:r><w:t>e</w:t><w:noBreakHyphen/><w:t>mail co</w:t><w:softHyphen/><w:t>op</w:t></w:r>")
    assert text == run_of("E\u2011MAIL COOP")


def test_a_field_over_several_paragraphs_stays():
    body = '<w:r><w:fldChar w:fldCharType="begin"/></w:r><w:r><w:t>contents</w:t></w:r>'
    text, report = paragraph_of(body)
    assert (text, report.texts, report.untouched) == (body, 0, 1)


def test_text_boxes_are_translated_where_they_are():
    box = "<w:pict><w:txbxContent><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:txbxContent></w:pict>"
    namespace = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    part = f"<w:document {namespace}><w:p><w:r><w:t>outer</w:t>{box.format('inner')}</w:r></w:p></w:document>"
    text = unpack(translate_docx(pack({"word/document.xml": part}), "a.docx", make_fake()))["word/document.xml"]
    assert text.count(b">OUTER<") == text.count(b">INNER<") == 1 and b"inner" not in text


def test_books():
    page = '<?xml version="1.0" encoding="utf-8"?>\n<html xmlns="http://www.w3.org/1999/xhtml"><p>one&nbsp;<i>two</i></p></html>'
    source = pack({"mimetype": "application/epub+zip", "OEBPS/a.xhtml": page, "OEBPS/a.css": "p {}"})
    contents = '<!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN" "ncx-2005-1.dtd">\n<ncx><text>one</text></ncx>'
    package = "<package><dc:title>one</dc:title><dc:language id='a'>en-GB</dc:language></package>"
    source = pack(unpack(source) | {"OEBPS/toc.ncx": contents, "OEBPS/a.opf": package})
    assert unpack(translate_epub(pack({"a.xml": page, "b.xml": "<x>one</x>"}), "a.epub", make_fake())) == {
        "a.xml": page.replace("one&nbsp;", "ONE\N{NO-BREAK SPACE}").replace("two", "TWO").encode(),
        "b.xml": b"<x>one</x>",
    }
    result = unpack(translate_epub(source, "a.epub", make_fake()))
    assert list(result) == ["mimetype", "OEBPS/a.xhtml", "OEBPS/a.css", "OEBPS/toc.ncx", "OEBPS/a.opf"]
    assert result["OEBPS/a.opf"].decode() == package
    named = unpack(translate_epub(source, "a.epub", make_fake(language="fr")))
    assert named["OEBPS/a.opf"].decode() == package.replace("en-GB", "fr")
    assert result["OEBPS/toc.ncx"].decode().endswith(contents.replace("one", "ONE"))
    assert result["OEBPS/a.xhtml"].decode() == page.replace("one&nbsp;", "ONE\N{NO-BREAK SPACE}").replace("two", "TWO")


@pytest.mark.parametrize(
    ("translate", "data", "message"),
    [
        (translate_docx, b"no archive", "must be a whole ZIP archive"),
        (translate_docx, pack({"a": "b" * 100})[:-30], "must be a whole ZIP archive"),
        (translate_docx, pack({"word/media/zeros": b"\0" * 10_000_000}), "it may be a ZIP bomb"),
        (translate_docx, pack({"word/document.xml": f"{BOMB}]><x>&i;</x>"}), "must have no DTD"),
        (translate_docx, pack({"word/document.xml": "<x><y></x>"}), "word/document.xml, must be XML"),
        (translate_epub, pack({"a.xhtml": f"{BOMB}]><html><p>&i;</p></html>"}), "a.xhtml must have no DTD of its own"),
        (translate_epub, pack({"a.xhtml": b"<p>one</p>\n<p>caf\xe9</p>"}), "a.xhtml, line 2 must be UTF-8"),
    ],
)
def test_hostile_archives_are_refused_in_one_line(translate, data, message):
    with pytest.raises(ValueError, match=message) as error:
        translate(data, "a.docx", make_fake())
    assert "\n" not in str(error.value) and str(error.value).startswith("a.docx")


def test_archives_keep_their_budgets(monkeypatch):
    source = pack({f"{number}.txt": "text" for number in range(20)})
    assert unpack(translate_docx(source, "a.docx", make_fake())) == unpack(source)
    monkeypatch.setattr(archives, "MAX_ENTRIES", 19)
    with pytest.raises(ValueError, match=r"it has 20 files of 0\.0 MiB"):
        translate_docx(source, "a.docx", make_fake())
    monkeypatch.undo()
    monkeypatch.setattr(archives, "MAX_UNPACKED", 79)
    with pytest.raises(ValueError, match="it may be a ZIP bomb"):
        translate_docx(source, "a.docx", make_fake())


def random_paragraph(generator, depth=0):
    parts = []
    for _ in range(generator.randrange(1, 6)):
        text = generator.choice(["one ", "two, ", "three. ", "4", " six! ", "se", "ven "])
        style = generator.choice(["", "<w:rPr><w:b/></w:rPr>", "<w:rPr><w:i/></w:rPr>"])
        inner = random_paragraph(generator, depth + 1) if depth < 3 else run_of(text, style)
        name = generator.choice(["hyperlink", "ins", "smartTag", "moveTo"])
        parts += generator.choices(
            [
                run_of(text, style),
                f"<w:{name}>{inner}</w:{name}>",
                f"<w:r>{style}<w:t>{text}</w:t><w:tab/><w:t>{text}</w:t></w:r>",
                "<w:bookmarkStart/>",
                "<w:r><w:drawing/></w:r>",
                "<w:r><w:footnoteReference/></w:r>",
                "<w:del><w:r><w:delText>no</w:delText></w:r></w:del>",
                field_of("HYPERLINK x", text) if depth == 0 else "",
                field_of("PAGE", "5") if depth == 0 else "",
            ],
            [6, 3, 1, 1, 1, 1, 1, 1, 1],
        )
    return "".join(parts)


@pytest.mark.parametrize("options", [{}, {"backwards": True}, {"aligned": False}])
def test_no_document_loses_elements_or_text(options):
    names = "drawing footnoteReference bookmarkStart tab delText fldChar instrText".split()
    translator, generator = make_fake(**options), random.Random(5)

    def read(text):
        words = re.sub("<w:delText>.*?</w:delText>|<w:instrText>.*?</w:instrText>|<[^>]*>", "", text).upper()
        return [text.count(f"<w:{name}") for name in names], sorted("".join(words.split()))

    namespace = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = [random_paragraph(generator) for _ in range(300)]
    part = f"<w:document {namespace}>{''.join(f'<w:p>{each}</w:p>' for each in body)}</w:document>"
    result = unpack(translate_docx(pack({"word/document.xml": part}), "a.docx", translator))["word/document.xml"]
    written = re.findall("<w:p>(.*?)</w:p>|<w:p/>", result.decode())
    for old, new in zip(body, written, strict=True):
        assert read(new) == read(old)
