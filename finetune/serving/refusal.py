"""A request that is not answered: the status and the sentence that the client gets."""

from __future__ import annotations


class Refused(Exception):
    """Names a status of HTTP and, in words for the client, the reason; nothing of the upload is in it."""

    def __init__(self, status: int, reason: str, *, retry_after: int | None = None):
        super().__init__(reason)
        self.status, self.reason = status, reason
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


def busy(reason: str) -> Refused:
    """The refusal of a request that may come again in a second."""
    return Refused(503, f"{reason} Try again in a moment.", retry_after=1)
