"""Broken uploads of many kinds, made from a seed: none of them may be read, and none may cost much."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np

from tests.serving.served import draw, encode

EXPLICIT = b"1.2.840.10008.1.2.1\x00"
DEFLATED = b"1.2.840.10008.1.2.1.99"
JPEG_2000 = b"1.2.840.10008.1.2.4.90"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, packed: bytes, colour: int = 0, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    n = len(value) if length is None else length
    size = struct.pack("<H", n & 0xFFFF) if vr not in (b"OW", b"OB", b"SQ", b"UN") else b"\0\0" + struct.pack("<I", n)
    return struct.pack("<HH", group, number) + vr + size + value


def dicom(elements: bytes, syntax: bytes = EXPLICIT, preamble: bytes = bytes(128)) -> bytes:
    meta = element(2, 0x10, b"UI", syntax)
    return preamble + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + elements


def header(rows: int = 16, columns: int = 16, bits: int = 8, samples: int = 1) -> bytes:
    numbers = {0x02: samples, 0x10: rows, 0x11: columns, 0x100: bits, 0x101: bits, 0x102: bits - 1, 0x103: 0}
    parts = {key: element(0x28, key, b"US", struct.pack("<H", value & 0xFFFF)) for key, value in numbers.items()}
    parts[0x04] = element(0x28, 0x04, b"CS", b"MONOCHROME2 ")
    patient = element(0x10, 0x10, b"PN", b"Doe^Jane")
    return patient + b"".join(parts[key] for key in sorted(parts))


def pixels(count: int = 256) -> bytes:
    return element(0x7FE0, 0x10, b"OW", bytes(i % 251 for i in range(count)))


def encapsulated(stream: bytes) -> bytes:
    item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(stream)) + stream
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    return element(0x7FE0, 0x10, b"OB", b"\xfe\xff\x00\xe0\0\0\0\0" + item + end, 0xFFFFFFFF)


ZEROS, TOO_FEW = zlib.compress(bytes(5_000_000)), zlib.compress(bytes(9_003_000))[:-5]


def whole_files() -> list[bytes]:
    """Files that are read, to break."""
    image = draw(1, 40)
    colour = np.stack([image] * 2 + [image[::-1]], axis=2)
    jpegs = [encode(image, "JPEG"), encode(colour, "JPEG", progressive=True)]
    return [encode(image), encode(colour), *jpegs, dicom(header() + pixels())]


WHOLE = whole_files()
FOREIGN = [encode(draw(2), kind) for kind in ("GIF", "BMP", "TIFF", "WEBP")] + [
    b"%PDF-1.7\n", b"PK\x03\x04" + bytes(60), b"<html><script>1</script>", b"MZ" + bytes(200), b"\x7fELF" + bytes(99),
    b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"#!/bin/sh\nid\n", b"\x80\x04cos\nsystem\n.", b"../../etc/passwd",
]  # fmt: skip


def truncated(rng: np.random.Generator) -> bytes:
    data = WHOLE[rng.integers(len(WHOLE))]
    return data[: rng.integers(1, len(data) - 2)]


def noise(rng: np.random.Generator) -> bytes:
    starts = (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(128) + b"DICM", b"\xff\xd8\xff\xe0\x00\x10JFIF\0")
    ends = (b"", b"\x00\x00\x00\x00IEND\xaeB`\x82", b"\xff\xd9")
    middle = rng.integers(0, 256, rng.integers(1, 3000), dtype=np.uint8).tobytes()
    return starts[rng.integers(len(starts))] + middle + ends[rng.integers(len(ends))]


def polyglot(rng: np.random.Generator) -> bytes:
    whole = WHOLE[rng.integers(4)]
    tail = (b"PK\x05\x06" + bytes(18), b"<script>alert(1)</script>", rng.bytes(30) + b"\x01", b"GIF89a")
    if rng.random() < 0.3:
        preamble = (b"MZ", b"\x7fELF", b"#!/bin/sh\n", b"%PDF-", b"GIF89a")[rng.integers(5)]
        return dicom(header() + pixels(), preamble=preamble.ljust(128, b"\0"))
    return whole + tail[rng.integers(len(tail))]


def flipped(rng: np.random.Generator) -> bytes:
    """Bytes of a PNG changed, which its checksums show."""
    data = bytearray(WHOLE[rng.integers(2)])
    for place in rng.integers(12, len(data) - 13, 3):
        data[place] ^= int(rng.integers(1, 256))
    return bytes(data)


def huge(rng: np.random.Generator) -> bytes:
    """Sizes that a header claims and the file does not have."""
    side = int(rng.integers(10_000, 2**31 - 1))
    short = int(rng.integers(16_000, 65_535))
    jpeg = bytearray(WHOLE[2])
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", short, short)
    siz = struct.pack(">HHIIIIIIIIH", 41, 0, side, side, 0, 0, side, side, 0, 0, 1) + b"\x07\x01\x01"
    stream = b"\xff\x4f\xff\x51" + siz + rng.bytes(50)
    frame = bytes(jpeg)
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: png(side, side, zlib.compress(bytes(100))),
        lambda: png(1, side, zlib.compress(bytes(100))),
        lambda: png(3000, 3000, TOO_FEW),
        lambda: frame,
        lambda: dicom(header(short, short) + pixels()),
        lambda: dicom(header(2000, 2000, 16) + pixels()),
        lambda: dicom(header(16, 16, 8, samples=int(rng.integers(2, 60_000))) + pixels()),
        lambda: dicom(header() + encapsulated(stream), JPEG_2000),
        lambda: dicom(header() + encapsulated(frame), b"1.2.840.10008.1.2.4.50"),
        lambda: dicom(header() + element(0x7FE0, 0x10, b"OW", bytes(20), int(rng.integers(2**20, 2**32 - 2)))),
    )
    return choices[rng.integers(len(choices))]()


def bomb(rng: np.random.Generator) -> bytes:
    """Little that unpacks to much."""
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: png(10, 10, ZEROS),
        lambda: png(20_000, 20_000, ZEROS),
        lambda: png(10, 10, zlib.compress(b"x"), extra=chunk(b"zTXt", b"Comment\0\0" + ZEROS)),
        lambda: png(10, 10, zlib.compress(b"x"), extra=chunk(b"iCCP", b"icc\0\0" + ZEROS)),
        lambda: dicom(ZEROS[2:], DEFLATED),
        lambda: scans(int(rng.integers(101, 3000))),
    )
    return choices[rng.integers(len(choices))]()


def scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = WHOLE[3]
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + b"\xff\xd9"


def bad_header(rng: np.random.Generator) -> bytes:
    """DICOM files whose headers are damaged, endless, deep or without an image."""
    deep = b"".join(element(0x40, 0x100, b"SQ", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", 0xFFFFFFFF) for _ in range(3000))
    garbled = bytearray(dicom(header()))
    for place in rng.integers(132, len(garbled), 12):
        garbled[place] = int(rng.integers(256))
    choices: tuple[Callable[[], bytes], ...] = (
        lambda: dicom(header()),
        lambda: dicom(pixels()),
        lambda: dicom(header(0, 0) + pixels()),
        lambda: dicom(header(bits=7) + pixels()),
        lambda: dicom(header(bits=64) + pixels(8 * 256)),
        lambda: dicom(header().replace(b"MONOCHROME2 ", b"Doe^Jane1970") + pixels()),
        lambda: dicom(header() + pixels(), b"1.2.3.4.5.6"),
        lambda: dicom(header() + pixels(), b"Doe^Jane"),
        lambda: dicom(header().replace(b"PN", b"Q\xff") + pixels()),
        lambda: dicom(deep + header() + pixels()),
        lambda: bytes(garbled),
        lambda: dicom(element(0x28, 0x10, b"US", b"", 60_000)),
        lambda: bytes(128) + b"DICM",
    )
    return choices[rng.integers(len(choices))]()


def foreign(rng: np.random.Generator) -> bytes:
    return FOREIGN[rng.integers(len(FOREIGN))]


KINDS = (truncated, noise, polyglot, flipped, huge, bomb, bad_header, foreign)


def uploads(count: int, seed: int = 0) -> list[tuple[str, bytes]]:
    """Kind and bytes of broken uploads."""
    rng = np.random.default_rng(seed)
    return [(kind.__name__, kind(rng)) for kind in (KINDS[i % len(KINDS)] for i in range(count))]


def endless_header(megabytes: float) -> bytes:
    """A DICOM file of tiny elements, each of which takes a reader a few microseconds."""
    count = int(megabytes * 1e6 / 8)
    tags = np.arange(count, dtype="<u4") % 0xE000 + 0x1000
    rows = np.zeros((count, 4), "<u2")
    rows[:, 0], rows[:, 1], rows[:, 2] = 9, tags, int.from_bytes(b"LO", "little")
    return dicom(rows.tobytes() + header() + pixels())
