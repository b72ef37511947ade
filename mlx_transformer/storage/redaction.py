"""Removal of passwords from texts that are shown."""

import re

CREDENTIALS = re.compile(r"(?<=:/)(/*)[^\s/@]+@")  # also of an address that was taken for a path, which has one slash


def hide_passwords(text: str) -> str:
    """Replace the user names and passwords of all URLs in a text by asterisks."""
    return CREDENTIALS.sub(r"\1***@", text)
