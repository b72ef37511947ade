"""Text files: line ends, compression, and the encodings that are refused by name."""

import bz2
import gzip
import itertools
import lzma

import pytest

from mlx_transformer.storage.text_files import SAMPLE_SIZE, check_encoding, iterate_lines, open_text, read_lines

ENGLISH = "A small dog runs.\nTwo men sit on a bench, and talk.\n"
FRENCH = "Un élève français mange une pêche.\nOù est la gare ?\nIl a été là.\nÇa va, merci.\n"
RUSSIAN = "Где находится вокзал?\nСобака бежит по улице.\nДва человека сидят.\n"
HINDI = "स्टेशन कहाँ है?\nकुत्ता सड़क पर दौड़ रहा है।\n"
THAI = "สถานีรถไฟอยู่ที่ไหน\nสุนัขกำลังวิ่งอยู่บนถนน\n"
CHINESE = "车站在哪里?\n一只狗在街上跑。\n两个男人坐在长凳上。\n"
GREEK = "Πού είναι ο σταθμός;\nΟ σκύλος τρέχει.\nΔύο άνδρες κάθονται.\n"
WIDE = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]


def message(sample):
    with pytest.raises(ValueError, match="^text.txt must be text") as error:
        check_encoding("text.txt", sample)
    return str(error.value)


class TestLines:
    @pytest.mark.parametrize("suffix", ["", ".gz", ".GZ"])
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["Unix", "Windows", "Mac"])
    def test_every_kind_of_text_file_gives_the_same_lines(self, tmp_path, suffix, mark, line_end):
        lines = [b"one", b"", "zwölf".encode(), b"three"]
        for end in (b"", line_end):
            path = tmp_path / f"text{suffix}"
            content = mark + line_end.join(lines) + end
            path.write_bytes(gzip.compress(content) if suffix else content)
            assert list(read_lines(str(path))) == lines

    def test_carriage_returns_are_line_ends_only_without_line_feeds(self, tmp_path):
        path = tmp_path / "text"
        path.write_bytes(b"a\rb\nc\rd")
        assert list(read_lines(str(path))) == [b"a\rb", b"c\rd"]
        path.write_bytes(b"a\r")
        assert list(read_lines(str(path))) == [b"a"]

    def test_a_long_file_with_carriage_returns_only(self, tmp_path):
        path, lines = tmp_path / "text", [b"line %d" % i for i in range(100_000)]
        path.write_bytes(b"\r".join(lines))
        assert path.stat().st_size > 8 * SAMPLE_SIZE
        assert list(read_lines(str(path))) == lines

    def test_a_missing_file(self, tmp_path):
        for name in ("absent", "absent.gz"):
            with pytest.raises(FileNotFoundError, match=name):
                open_text(str(tmp_path / name))

    def test_a_damaged_gzip_file_ends_with_its_name(self, tmp_path):
        path = tmp_path / "text.gz"
        path.write_bytes(gzip.compress(b"one\n" * 1000)[:-9])
        with open_text(str(path)) as file, pytest.raises(ValueError, match="^text must be a complete gzip file"):
            list(iterate_lines(file, "text"))


class TestEncodings:
    @pytest.mark.parametrize("text", [ENGLISH, FRENCH, RUSSIAN, HINDI, THAI, CHINESE, GREEK, ENGLISH * 5000])
    def test_utf_8_is_accepted(self, text):
        for cut in range(4):  # within a character, at the end of a sample
            check_encoding("text.txt", text.encode()[: SAMPLE_SIZE - cut])
        check_encoding("text.txt", b"")

    @pytest.mark.parametrize("text", [ENGLISH, FRENCH, RUSSIAN, HINDI, THAI, CHINESE, GREEK, "Hello"])
    @pytest.mark.parametrize("encoding", WIDE)
    def test_wide_encodings_are_named(self, text, encoding):
        for content in (text, text.replace("\n", "\r\n"), text * 1000):
            name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
            assert f"seems to be in {name}: convert it with iconv -f {name} -t UTF-8" in message(
                content.encode(encoding)[:SAMPLE_SIZE]
            )
            mark = "\ufeff".encode(encoding)
            assert f"seems to be in {name[:6]}: " in message((mark + content.encode(encoding))[:SAMPLE_SIZE])

    @pytest.mark.parametrize("text", [FRENCH, FRENCH * 1000, (ENGLISH + FRENCH) * 3])
    def test_encodings_of_one_byte_are_named(self, text):
        for encoding in ("latin-1", "cp1252"):
            sample = text.encode(encoding)
            assert "seems to be in WINDOWS-1252: convert it with iconv -f WINDOWS-1252 -t UTF-8" in message(sample)
        assert "iconv -f MACINTOSH" in message(text.replace("\n", "\r").encode("mac-roman"))

    @pytest.mark.parametrize(
        ("text", "encoding"),
        [(RUSSIAN, "cp1251"), (RUSSIAN, "koi8-r"), (GREEK, "iso8859-7"), (CHINESE, "gb18030"), (CHINESE, "big5hkscs")],
    )
    def test_other_encodings_are_not_guessed(self, text, encoding):
        sample = text.encode(encoding, "replace")
        assert "is in another encoding: convert it with iconv -f ENCODING -t UTF-8" in message(sample)

    def test_a_few_bad_lines_are_accepted(self):
        good = [line.encode() for line in FRENCH.splitlines() * 20]
        bad = "Un élève".encode("latin-1")
        check_encoding("text.txt", b"\n".join([*good, *[bad] * 20]))
        check_encoding("text.txt", b"\n".join([b"ASCII"] * 100 + [bad] * 10))
        check_encoding("text.txt", b"good\nbad \xff\n")

    def test_stray_control_characters_are_accepted(self):
        for sample in (b"nul\0 and escape\x1b[2J in a line of text\n", b"short\0\n", b"\0\n", b"\x1b[1m\0\n"):
            check_encoding("text.txt", sample)

    def test_other_kinds_of_files_are_named(self):
        noise = bytes(itertools.islice(itertools.cycle(range(256)), 5000))
        assert "is a binary file" in message(noise) and "is a binary file" in message(noise.replace(b"\0", b""))
        assert "is gzip data: decompress it, or give a file whose name ends in .gz" in message(gzip.compress(b"text"))
        assert "is compressed by bzip2" in message(bz2.compress(b"text"))
        assert "is compressed by xz" in message(lzma.compress(b"text"))
        assert "is compressed by zstd" in message(b"(\xb5/\xfd" + noise)
        assert "is a ZIP archive or an office document" in message(b"PK\x03\x04" + noise)
        assert "is a PDF document" in message(b"%PDF-1.7\n")
        assert "is an RTF document" in message(rb"{\rtf1\ansi text}")
