"""Files by LibreTranslate's POST /translate_file: translated, fetched, refused."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.http_server import hold_batches, serve

import mlx_transformer as mt
from mlx_transformer.server import documents
from mlx_transformer.server.settings import RequestError

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
    assert file.headers["content-disposition"] == "attachment; filename=\"film_fr.srt\"; filename*=UTF-8''film_fr.srt"


def test_any_name_of_a_file_is_one_header(client):
    disposition = fetch(client, upload(client, 'é "x"\\.txt', b"I love you.")).headers["content-disposition"]
    assert disposition.startswith('attachment; filename="') and disposition.count('"') == 2
    assert disposition.isascii() and "%C3%A9" in disposition


def test_the_language_of_a_file_is_detected(client, bundled):
    pytest.importorskip("py3langid", reason="py3langid is not installed (the extra detect)")
    file = fetch(client, upload(client, source="auto"))
    assert file.body == mt.translate_document(*bundled, SUBTITLES, "film.srt").data
    assert fetch(client, upload(client, "a.txt", b"12:30\n", source="auto")).body == b"12:30\n"
    assert upload(client, source="auto", target="de").status == 400
    with serve(lambda name: bundled, names=["qaa-fr=a"]) as other:
        answer = upload(other, source="auto")
        assert answer.status == 400 and "cannot be detected" in answer.json["error"]
    with serve(lambda name: bundled, names=["de-fr=a", "en-fr=b"]) as other:
        assert fetch(other, upload(other, source="auto")).body == file.body
        assert other.metric("sentences_total", 'model="b"') > 0 == other.metric("sentences_total", 'model="a"')


@pytest.mark.parametrize("code", ["fr", "fra_Latn", "FR", "fr_XX"])
def test_a_page_names_its_language_by_a_tag(client, code):
    page = fetch(client, upload(client, "a.html", b"<html lang=en>I love you.", target=code)).body.decode()
    assert page == '<html lang="fr">Je t\'aime.'


def test_a_file_in_the_target_language_stays(client):
    page = b"<p>ONE <b>two</b><p>three"
    for codes in ({"source": "fr"}, {"source": "fr_FR"}, {"target": "en-GB"}):
        assert fetch(client, upload(client, "a.html", page, **codes)).body == page
    assert upload(client, "film.exe", b"MZ", source="fr").status == 400
    assert upload(client, "a.html", page, source="xx", target="xx").status == 400
    pytest.importorskip("py3langid", reason="py3langid is not installed (the extra detect)")
    french = "Où est la gare ?\n\nJe ne sais pas où elle habite.\n".encode()
    assert fetch(client, upload(client, "a.txt", french, source="auto")).body == french


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


def test_texts_of_files_wait_in_the_queue_and_share_batches(bundled):
    with serve(lambda name: bundled, small_batches=False, max_queue=4) as client, ThreadPoolExecutor(4) as pool:
        with hold_batches(client) as entered:
            first = pool.submit(client.translate, "Good morning!")
            assert entered.wait(10)
            texts = pool.submit(client.translate, "I love you.")
            file = pool.submit(upload, client)
            client.wait_for("waiting_sentences", 3)
            refused = upload(client)
            assert refused.status == 503 and int(refused.headers["retry-after"]) > 0
        assert [future.result().status for future in (first, texts, file)] == [200, 200, 200]
        assert client.metric("sentences_total") == 4
        assert fetch(client, file.result()).body == mt.translate_document(*bundled, SUBTITLES, "film.srt").data


@pytest.mark.parametrize("full_at", [0, 1])
def test_only_a_file_that_has_begun_waits_for_room(client, bundled, monkeypatch, full_at):
    monkeypatch.setattr(documents, "TEXTS_AT_ONCE", 1)
    monkeypatch.setattr(documents, "WAIT_FOR_ROOM", 0.01)
    submit, calls = client.store.submit, iter(range(100))

    def submit_if_not_full(name, prepare):
        if next(calls) == full_at:
            raise RequestError(503, "full")
        return submit(name, prepare)

    monkeypatch.setattr(client.store, "submit", submit_if_not_full)
    answer = upload(client)
    if full_at:
        assert fetch(client, answer).body == mt.translate_document(*bundled, SUBTITLES, "film.srt").data
    else:
        assert answer.status == 503


def test_the_texts_of_a_file_that_takes_too_long_are_dropped(bundled):
    with serve(lambda name: bundled, small_batches=False, timeout=0.3) as client:
        with hold_batches(client):
            assert client.translate("Good morning!").status == 504
            assert upload(client).status == 504
        client.wait_for("waiting_sentences", 0)
        assert client.metric("sentences_total") == 1
