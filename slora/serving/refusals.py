"""What a server answers instead of doing it."""

from __future__ import annotations


class ServingRefused(Exception):
    """Raised when a request can't be served; `status` is the HTTP status of the answer.

    400: the folder or the request is wrong; 404: no such adapter; 409: it contradicts what is
    loaded; 503: the server can't do it now.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status, self.reason = status, reason

    def __str__(self) -> str:
        return self.reason
