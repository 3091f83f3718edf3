"""The image of a multipart request, read into memory: nothing is written to a disk, and no file name is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from finetune.serving.limits import Limits, Taken, too_large
from finetune.serving.refusal import Refused

FIELD = "image"
"""Name of the form's only field."""
ENVELOPE = 4096
"""Bytes of boundary and headers around the image."""


async def read_image_field(
    content_type: str, content_length: str, stream: AsyncIterator[bytes], limits: Limits, taken: Taken
) -> bytes:
    """The bytes of the form's field `image`.

    Raises:
        Refused: another type, a form that is damaged or cut short, has no such field or others, or is too large.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refused(415, f"Send the image as the field {FIELD} of a form: multipart/form-data.")
    if content_length.isdecimal() and int(content_length[:18]) > limits.max_bytes + ENVELOPE:
        raise too_large(limits)
    form = _Form()
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())  # type: ignore[arg-type]
        async for chunk in stream:
            taken.add(len(chunk))
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise Refused(400, "The form is damaged.") from None
    if not form.ended:
        raise Refused(400, "The form is cut short.")
    if form.data is None:
        raise Refused(400, f"The form has no field {FIELD}.")
    if not form.data:
        raise Refused(400, "The image is empty (0 bytes).")
    return bytes(form.data)


class _Form:
    """Collects the parts of a form as its parser comes by them."""

    def __init__(self) -> None:
        self.data: bytearray | None = None
        self.ended = False
        self.name, self.value = b"", b""
        self.disposition = b""

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self.begin_part,
            "on_header_field": self.add_name,
            "on_header_value": self.add_value,
            "on_header_end": self.end_header,
            "on_headers_finished": self.check_field,
            "on_part_data": self.add_data,
            "on_end": self.end,
        }

    def begin_part(self) -> None:
        self.disposition = self.name = self.value = b""

    def add_name(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]
        self.check_header()

    def add_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]
        self.check_header()

    def check_header(self) -> None:
        if len(self.name) + len(self.value) > ENVELOPE:
            raise Refused(400, "A part of the form has a header that is too long.")

    def end_header(self) -> None:
        if self.name.lower() == b"content-disposition":
            self.disposition = self.value
        self.name = self.value = b""

    def check_field(self) -> None:
        _, options = parse_options_header(self.disposition)
        if options.get(b"name") != FIELD.encode():
            raise Refused(400, f"The form has another field than {FIELD}, which is the only one.")
        if self.data is not None:
            raise Refused(400, f"The form has several images: send one in each request, as the field {FIELD}.")
        self.data = bytearray()

    def add_data(self, data: bytes, start: int, end: int) -> None:
        assert self.data is not None  # the headers come first
        self.data += data[start:end]

    def end(self) -> None:
        self.ended = True
