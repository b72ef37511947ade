"""Removal of passwords from texts that are shown."""

import re

CREDENTIALS = re.compile(r"(?<=:/)(/*)[^\s/@]+@")  # also of an address that was taken for a path, which has one slash
SECRET_PARAMETER = re.compile(r"(?i)([?&][\w-]*(?:token|key|signature|secret|password)[\w-]*=)[^&\s'\"]+")


def hide_passwords(text: str) -> str:
    """Replace the user names, passwords and secret parameters of all URLs in a text by asterisks."""
    return SECRET_PARAMETER.sub(r"\1***", CREDENTIALS.sub(r"\1***@", text))
