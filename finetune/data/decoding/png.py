"""Plain 8-bit PNGs, decoded in about half of Pillow's time, to the same pixels.

Its time goes into inflating, which isal does faster than zlib, and into undoing the rows' filters, which is compiled
here. Only a plain, complete and well-formed file is decoded here: each chunk known, of the length it must have and
with its checksum; one IHDR first, one run of IDAT, IEND last and nothing behind it; a zlib stream of 8 bits a sample
that ends with its checksum where the last row does. Everything else (a palette, transparency by a colour, 16
bits, interlacing, EXIF, several images, damage) is left to Pillow, which reads it or reports the error.

One kind of file is decoded here and refused by Pillow: isal takes a deflate stream whose Huffman codes are incomplete.
No encoder writes such codes, and all checksums have to agree with the pixels.
"""

import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip_lib, isal_zlib

from finetune import c_extensions

MAGIC = b"\x89PNG\r\n\x1a\n"
SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}  # colour type -> bytes per pixel: gray, RGB, gray and alpha, RGBA
ALLOWED_CHUNKS: dict[bytes, tuple[int, ...] | None] = {
    b"IHDR": (13,),
    b"IDAT": None,
    b"IEND": (0,),
    b"tEXt": None,
    b"tIME": (7,),
    b"pHYs": (9,),
    b"gAMA": (4,),
    b"cHRM": (32,),
    b"sRGB": (1,),
    b"bKGD": (1, 2, 6),
    b"sBIT": (1, 2, 3, 4),
}
"""Chunks that do not change what Pillow's pixels are, with the lengths they may have (None: any)."""
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced file: first column and row, and their steps."""
MAX_TEXT = 2**20
"""Bytes of text in a file; Pillow refuses files with very much of it."""


def decode(data: bytes, max_pixels: int) -> np.ndarray | None:
    """The file's bytes -> uint8 (H, W) or (H, W, 2, 3 or 4), or None for what is left to Pillow."""
    unfilter = function()
    if unfilter is None:
        return None
    try:
        header, packed = chunks(data)
    except ValueError:
        return None
    width, height = (int.from_bytes(header[i : i + 4], "big") for i in (0, 4))
    depth, colour, compression, filters, interlaced = header[8:13]
    if depth != 8 or colour not in SAMPLES or compression or filters or interlaced:
        return None
    if not 0 < width * height <= max_pixels:
        return None
    step = SAMPLES[colour]
    size = height * (width * step + 1)
    raw = inflated(packed, size)
    if raw is None:
        return None
    pixels = np.empty((height, width) if step == 1 else (height, width, step), np.uint8)
    if unfilter(height, width * step, step, raw, pixels.ctypes.data):
        return None
    return pixels


def is_whole(data: bytes) -> bool:
    """Whether every chunk of a PNG of any kind has its checksum, and its stream exactly as many bytes as its header
    says: Pillow leaves unread what lies behind the last pixel."""
    header, parts, position, name = b"", [], len(MAGIC), b""
    while name != b"IEND":
        length, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        if name == b"IHDR":
            header = data[position + 8 : end]
        elif name == b"IDAT":
            parts.append(data[position + 8 : end])
        position = end + 4
    return position == len(data) and len(header) == 13 and inflated(b"".join(parts), raw_size(header)) is not None


def raw_size(header: bytes) -> int:
    """Bytes of the filtered rows of a PNG, interlaced or not."""
    width, height = (int.from_bytes(header[i : i + 4], "big") for i in (0, 4))
    depth, colour, interlaced = header[8], header[9], header[12]
    bits = depth * {**SAMPLES, 3: 1}.get(colour, 4)
    size = 0
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-max(width - left, 0) // across), -(-max(height - top, 0) // down)
        size += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return size


def inflated(packed: bytes, size: int) -> bytes | None:
    """The `size` bytes in a zlib stream; None for a stream that is damaged, or holds fewer bytes, or more."""
    if len(packed) < 2 or packed[0] & 0x8F != 8 or int.from_bytes(packed[:2], "big") % 31 or packed[1] & 32:
        return None  # deflate with a window of 32 KiB at most, the checksum of these bytes, no preset dictionary
    try:
        inflate = isal_zlib.decompressobj()
        raw = inflate.decompress(packed, size + 1)  # never more than the header claims
    except igzip_lib.IsalError:  # type: ignore[misc]
        return None
    if len(raw) != size or not inflate.eof or inflate.unused_data:
        return None
    return raw


def chunks(data: bytes) -> tuple[bytes, bytes]:
    """The header and the packed pixels.

    Raises:
        ValueError: no PNG, one that is cut short, damaged or not well-formed, or one with chunks that may change the
            pixels.
    """
    if not data.startswith(MAGIC):
        raise ValueError("no PNG")
    view, position, header = memoryview(data), len(MAGIC), b""
    parts: list[memoryview] = []
    previous, text = b"", 0
    while previous != b"IEND":
        length, name = int.from_bytes(view[position : position + 4], "big"), bytes(view[position + 4 : position + 8])
        end = position + 8 + length
        if name not in ALLOWED_CHUNKS or end + 4 > len(data):
            raise ValueError("not plain, or cut short")
        lengths = ALLOWED_CHUNKS[name]
        text += length if name == b"tEXt" else 0
        if (lengths is not None and length not in lengths) or text > MAX_TEXT:
            raise ValueError("a chunk of an odd length")
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError("damaged")
        if (name == b"IHDR") != (previous == b"") or (name == b"IDAT" and parts and previous != b"IDAT"):
            raise ValueError("chunks out of order")
        if name == b"IHDR":
            header = bytes(view[position + 8 : end])
        elif name == b"IDAT":
            parts.append(view[position + 8 : end])
        previous, position = name, end + 4
    if position != len(data):
        raise ValueError("bytes behind the end")
    return header, b"".join(parts)


@cache
def function() -> Any:
    """unfilter.c's function; None where nothing can be compiled."""
    library = c_extensions.load(Path(__file__).with_name("unfilter.c"))
    if library is None:
        return None
    import ctypes

    library.unfilter.argtypes = [ctypes.c_longlong] * 3 + [ctypes.c_char_p, ctypes.c_void_p]
    library.unfilter.restype = ctypes.c_int
    return library.unfilter
