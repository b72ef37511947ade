"""Size limits of small files, and checksums."""

import hashlib
import threading

import pytest

from mlx_transformer.storage.files import MAX_BYTES, parse_json, read_bytes, read_json, sha256_of


def test_oversized_file_is_refused(tmp_path):
    with (tmp_path / "vocabulary.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(ValueError, match=f"vocabulary.json must have at most {MAX_BYTES} bytes, not {MAX_BYTES + 1}"):
        read_bytes(tmp_path / "vocabulary.json")


def test_checksum_stops_on_request(tmp_path):
    file, stop = tmp_path / "model.safetensors", threading.Event()
    file.write_bytes(bytes(range(256)) * 40)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert sha256_of(file, stop) == sha256_of(file) == expected
    stop.set()
    assert sha256_of(file, stop) == hashlib.sha256().hexdigest()


@pytest.mark.parametrize("content", ['{"a": ' * 101 + "1" + "}" * 101, "[" * 101 + "]" * 101, "[" * 100_000])
def test_deep_json_is_an_error(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json must be JSON: .* nested"):
        read_json(tmp_path / "config.json")
    assert parse_json("[" * 100 + "]" * 100)


@pytest.mark.parametrize("content", [rb'{"a": "\ud83d"}', rb'["\uDE00\ud83d"]', b'"\xed\xa0\xbd"', b'{"\\ud83d": 1}'])
def test_json_with_half_of_a_surrogate_pair_is_an_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="config.json must be JSON: "):
        read_json(tmp_path / "config.json")
    assert parse_json(rb'"\ud83d\ude00 \\ud83d"') == "\U0001f600 \\ud83d"


def test_json_of_many_lists_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("[" + "[]," * 2**21 + "1]")
    with pytest.raises(ValueError, match="config.json must be JSON: it must have at most 2097152 lists"):
        read_json(tmp_path / "config.json")
