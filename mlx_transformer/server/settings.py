"""Limits of a server, and who may use it."""

import hmac
from dataclasses import dataclass

RETRY_AFTER = 5  # seconds after which a client may try a full queue again


class RequestError(Exception):
    """Why a request has no result, as an HTTP status and one line.

    Attributes:
        status: The HTTP status.
        code: A word for the reason, as OpenAI's clients read it.
        headers: Headers of the answer.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server, and who may use it.

    Attributes:
        max_characters: Maximum number of characters of a text.
        max_texts: Maximum number of texts in a request.
        max_body: Maximum number of bytes of a request.
        max_queue: Maximum number of sentences that wait for a model.
        timeout: Seconds that a request may take, reading it included.
        api_keys: Keys of which a request must have one; no key is needed if there are none.
        hosts: Names and addresses of the server that requests must be addressed to; any if empty.
        cors_origins: Origins of web pages that may read answers.
    """

    max_characters: int = 20_000
    max_texts: int = 128
    max_body: int = 4_000_000
    max_queue: int = 2048
    timeout: float = 120.0
    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()

    def is_allowed(self, key: str | None) -> bool:
        """Whether a request with this key may use the server."""
        given = (key or "").encode("utf-8", "surrogatepass")
        return not self.api_keys or any([hmac.compare_digest(given, own.encode()) for own in self.api_keys])
