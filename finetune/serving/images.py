"""The bytes of an upload -> pixels. The type is that of the content; whatever may cost much is bounded before decoding.

Reasons are sentences of this file alone: those of readers may hold bytes of the upload, such as a DICOM header's.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

import numpy as np

from finetune.data.decoding.images import decode_image
from finetune.errors import BadImage, MissingExtra
from finetune.serving.limits import Limits
from finetune.serving.refusal import Refused

PNG, JPEG, DICOM = "PNG", "JPEG", "DICOM"
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
MAX_SCANS = 100
"""Scans of a progressive JPEG, each of which is a pass over all its pixels; encoders write about ten."""
MAX_HEADER, MAX_READS = 2_000_000, 100_000
"""Bytes of a DICOM header, and reads of its elements, about three each: those of millions take minutes."""
DEFLATED = b"1.2.840.10008.1.2.1.99"
"""Transfer syntax of a DICOM file that is inflated as a whole, to any size."""
JPEG_FAMILY = b"1.2.840.10008.1.2.4."
SIZ = re.compile(rb"(?s)\xff\x4f\xff\x51(?=(.{38}))")
"""Start of a JPEG 2000 codestream, with its size."""
SOF = re.compile(rb"(?s)\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7](?=(.{8}))")
"""Start of a frame of a JPEG or JPEG-LS, with its size."""


def decode_upload(data: bytes, limits: Limits, min_side: int) -> np.ndarray:  # -> uint8 (H, W) or (H, W, 3)
    """The pixels, as `read_image` gives them of a file with these bytes.

    Raises:
        Refused: no PNG, JPEG or DICOM file, one that is damaged or followed by other data, or too large an image.
    """
    kind = check_content(data, limits)
    try:
        return decode_image(io.BytesIO(data), min_side, max_pixels=limits.max_pixels)
    except MissingExtra:
        raise Refused(415, f"This server cannot decode this {kind} file: a package for it is not installed.") from None
    except BadImage as error:
        if error.reason.startswith("claims"):
            raise _too_many_pixels(limits) from None
        raise Refused(422, f"The {kind} file is damaged, cut short, or of a kind that is not read.") from None


def check_content(data: bytes, limits: Limits) -> str:
    """The type of the content, after checks that need no decoding."""
    if data[128:132] == b"DICM":
        check_dicom(data, limits)
        return DICOM
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        if not data.endswith(PNG_END):
            raise Refused(422, "The PNG file is cut short, or other data follow its end.")
        return PNG
    if data.startswith(b"\xff\xd8\xff"):
        if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
            raise Refused(422, "The JPEG file is cut short, or other data follow its end.")
        if data.count(b"\xff\xda") > MAX_SCANS:
            raise Refused(422, f"The JPEG file has more than {MAX_SCANS} scans.")
        return JPEG
    raise Refused(415, "This is no PNG, JPEG or DICOM file, by its first bytes.")


def check_dicom(data: bytes, limits: Limits) -> None:
    """Refuse what makes a reader of DICOM slow or large, and files that are something else as well."""
    if data[:4] not in (b"II*\0", b"MM\0*") and data[:128].strip(b"\0"):  # files may be DICOM and TIFF at once
        raise Refused(415, "The DICOM file begins as a file of another type.")
    if DEFLATED in data:
        raise Refused(415, "DICOM files that are deflated as a whole are not read.")
    if JPEG_FAMILY in data and any(
        not 0 < height * width <= limits.max_pixels or channels > 4
        for height, width, channels in codestream_sizes(data)
    ):
        raise _too_many_pixels(limits)
    check_header(data)


def check_header(data: bytes) -> None:
    """Refuse a DICOM header that is damaged or very long."""
    try:
        from pydicom import dcmread
    except ImportError:
        raise Refused(415, "This server does not read DICOM: a package for it is not installed.") from None
    try:
        dcmread(_Bounded(data), stop_before_pixels=True)
    except Exception:  # pydicom raises nearly anything on damaged files
        raise Refused(422, "The header of the DICOM file is damaged, or very long.") from None


def codestream_sizes(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Height, width and channels that the compressed images in a file claim: decoders believe them, whatever the DICOM
    header says."""
    for match in SIZ.finditer(data):
        length, _, width, height, left, top, *_, channels = struct.unpack(">HHIIIIIIIIH", match[1])
        if length == 38 + 3 * channels:  # otherwise these bytes are no start
            yield max(height - top, 0), max(width - left, 0), channels
    for match in SOF.finditer(data):
        length, _, height, width, channels = struct.unpack(">HBHHB", match[1])
        if length == 8 + 3 * channels:
            yield height, width, channels


class _Bounded(io.BytesIO):
    """A file in memory of which MAX_HEADER bytes may be read, in MAX_READS parts."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self.bytes, self.reads = 0, 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.bytes, self.reads = self.bytes + len(data), self.reads + 1
        if self.bytes > MAX_HEADER or self.reads > MAX_READS:
            raise ValueError("too long")
        return data


def _too_many_pixels(limits: Limits) -> Refused:
    return Refused(413, f"The image has more than {limits.max_pixels / 1e6:g} megapixels, which is the most.")
