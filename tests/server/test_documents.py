"""Files by LibreTranslate's POST /translate_file: translated, fetched, refused."""

import pytest
from support.http_server import serve

import mlx_transformer as mt
from mlx_transformer.server import documents

SUBTITLES = (
    b"1\n00:00:01,000 --> 00:00:03,000\nWhere is the station?\n\n2\n00:00:04,000 --> 00:00:05,000\nI love you.\n"
)
BOUNDARY = "----boundary"
FORM = {"Content_Type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(name="film.srt", data=SUBTITLES, **fields):
    parts = [
        f'Content-Disposition: form-data; name="{key}"\r\n\r\n{value}'.encode()
        for key, value in ({"source": "en", "target": "fr"} | fields).items()
    ]
    if name is not None:
        head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: text/plain\r\n\r\n'
        parts.append(head.encode() + data)
    return b"".join(f"--{BOUNDARY}\r\n".encode() + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


def upload(client, *arguments, **fields):
    return client.request("POST", "/translate_file", form(*arguments, **fields), **FORM)


def fetch(client, answer):
    return client.get(answer.json["translatedFileUrl"].removeprefix(client.url))


def test_a_file_is_translated_and_fetched(client, bundled):
    answer = upload(client)
    assert answer.status == 200 and answer.json["translatedFileUrl"].startswith(f"{client.url}/download_file/")
    file = fetch(client, answer)
    assert file.body == mt.translate_document(*bundled, SUBTITLES, "film.srt").data
    assert "Où est la gare ?".encode() in file.body and b"00:00:04,000 --> 00:00:05,000" in file.body
    assert file.headers["content-disposition"] == "attachment; filename*=UTF-8''film_fr.srt"


@pytest.mark.parametrize("data", [b"\r\n--not the boundary\r\nI love you.\r\n\r\n", b"I love you.", b""])
def test_the_bytes_of_a_file_arrive_as_they_are(client, bundled, data):
    file = fetch(client, upload(client, "a.txt", data))
    assert file.body == mt.translate_document(*bundled, data, "a.txt").data


def test_only_the_last_files_are_kept(client, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENTS", 2)
    answers = [upload(client, "a.txt", b"I love you.") for _ in range(3)]
    assert [fetch(client, answer).status for answer in answers] == [404, 200, 200]
    assert client.get("/download_file/guess").status == 404


@pytest.mark.parametrize(
    ("name", "data", "fields", "reason"),
    [
        ("film.exe", b"MZ", {}, "A document must end in .txt"),
        ("../../etc/a.docx", b"PK", {}, "a.docx"),
        ("a.txt", b"\xff\xfe", {}, "UTF-8"),
        ("", b"", {}, "must end in"),
        (None, b"", {}, "missing file"),
        ("a.txt", b"Hello", {"target": "de"}, "does not translate"),
        ("a.txt", b"Hello", {"source": ""}, "missing source"),
    ],
)
def test_what_is_wrong_is_named(client, name, data, fields, reason):
    answer = upload(client, name, data, **fields)
    assert answer.status == 400 and reason in answer.json["error"] and "\n" not in answer.json["error"]


@pytest.mark.parametrize("body", [b"", b"nonsense", form()[:-60], form()[:40], b"--" * 1000])
def test_damaged_forms(client, body):
    assert client.request("POST", "/translate_file", body, **FORM).status == 400


def test_forms_without_a_boundary_and_without_a_key(bundled):
    with serve(lambda name: bundled, api_keys=("secret",)) as client:
        assert client.request("POST", "/translate_file", form(), Content_Type="multipart/form-data").status == 400
        assert upload(client).status == 403
        assert upload(client, api_key="secret").status == 200


def test_libretranslatepy_is_answered(client, tmp_path):
    libretranslatepy = pytest.importorskip("libretranslatepy", reason="the client libretranslatepy is not installed")
    api = libretranslatepy.LibreTranslateAPI(client.url)
    if "translate_file" not in dir(api):
        pytest.skip("this libretranslatepy translates no files")
    path = tmp_path / "a.txt"
    path.write_text("I love you.")
    assert "download_file" in str(api.translate_file(str(path), "en", "fr"))
