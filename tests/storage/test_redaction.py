"""Passwords in texts that are shown."""

import pytest

from mlx_transformer.storage.redaction import hide_passwords


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no https://u:secret@host/a: 404", "no https://***@host/a: 404"),
        ("https://token@host:80, http://a:b@c", "https://***@host:80, http://***@c"),
        ("there is none at https:/u:secret@host/a.", "there is none at https:/***@host/a."),
        ("https://u:s%2Fe%40c@host", "https://***@host"),
        ("'https://h/a?X-Amz-Signature=1f&b=2'", "'https://h/a?X-Amz-Signature=***&b=2'"),
        ("https://h/a?b=2&access_token=hf_1", "https://h/a?b=2&access_token=***"),
    ],
)
def test_secrets_are_hidden(text, shown):
    assert hide_passwords(text) == shown


@pytest.mark.parametrize("text", ["a@b.org", "models/a@b", "https://host/a@b", "/tmp/a:b@c", "https://h/a?b=token"])
def test_other_texts_stay(text):
    assert hide_passwords(text) == text
