"""Size limits of small files."""

import pytest

from mlx_transformer.storage.files import MAX_BYTES, read_bytes


def test_oversized_file_is_refused(tmp_path):
    with (tmp_path / "vocabulary.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(ValueError, match=f"vocabulary.json must have at most {MAX_BYTES} bytes, not {MAX_BYTES + 1}"):
        read_bytes(tmp_path / "vocabulary.json")
