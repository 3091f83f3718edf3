"""How much a request may ask of the server, and how much all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from finetune.serving.refusal import Refused, busy

UPLOADS_AT_ONCE = 8
"""Uploads of the largest size that may be in memory together; of smaller ones more."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a single request, and of the number of requests."""

    max_bytes: int = 32_000_000
    """Of an upload."""
    max_pixels: int = 50_000_000
    """Of an image, by its header: more are not decoded."""
    timeout: float = 30.0
    """Seconds until a request is given up, from its first byte on."""
    max_waiting: int = 64
    """Requests that are read, decoded or waiting for the network at once."""


@dataclass
class Admission:
    """Counts the requests and the bytes of uploads that are being worked on. Used by the event loop alone."""

    limits: Limits
    requests: int = 0
    bytes: int = field(default=0, init=False)

    @contextmanager
    def admitted(self) -> Iterator[Taken]:
        """Inside, the request counts.

        Raises:
            Refused: there are too many.
        """
        if self.requests >= self.limits.max_waiting:
            raise busy(f"{self.requests} requests are waiting, which is the most.")
        self.requests += 1
        taken = Taken(self)
        try:
            yield taken
        finally:
            self.requests -= 1
            self.bytes -= taken.bytes


@dataclass
class Taken:
    """The bytes of one request."""

    admission: Admission
    bytes: int = 0

    def add(self, count: int) -> None:
        """Raise a Refused where the upload, or all uploads together, are too large."""
        admission, limits = self.admission, self.admission.limits
        self.bytes += count
        admission.bytes += count
        if self.bytes > limits.max_bytes:
            raise too_large(limits)
        if admission.bytes > UPLOADS_AT_ONCE * limits.max_bytes:
            raise busy("Too many large uploads are being read.")


def too_large(limits: Limits) -> Refused:
    """The refusal of an upload with too many bytes."""
    return Refused(413, f"The upload has more than {limits.max_bytes / 1e6:g} MB, which is the most.")
