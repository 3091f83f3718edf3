"""PNG files by hand, whole ones and damaged ones, and whether a file is read as Pillow reads it.

python -m tests.data.png_cases [20000]   reads that many damaged files both ways and prints how they ended.
"""

import random
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np

from finetune.data.decoding import images, png
from finetune.errors import BadImage

COLOURS = {1: 0, 3: 2, 2: 4, 4: 6}  # bytes per pixel -> colour type
Chunk = tuple[bytes, bytes]


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def header(height: int, width: int, colour: int = 0, depth: int = 8, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", header_data(height, width, colour, depth, interlaced))


def header_data(height: int, width: int, colour: int = 0, depth: int = 8, interlaced: int = 0) -> bytes:
    return width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, interlaced])


def filtered(pixels: np.ndarray, filters: list[int]) -> bytes:
    """Rows as the specification filters them, written down from its text."""
    height, width, step = pixels.shape
    rows = pixels.reshape(height, width * step).astype(int)
    packed = bytearray()
    for y in range(height):
        packed.append(filters[y])
        for i in range(width * step):
            left = rows[y, i - step] if i >= step else 0
            up = rows[y - 1, i] if y else 0
            corner = rows[y - 1, i - step] if y and i >= step else 0
            guess = left + up - corner
            nearest = min((left, up, corner), key=lambda v: abs(guess - v))  # the first of equals, in this order
            taken = (0, left, up, (left + up) // 2, nearest)[filters[y]]
            packed.append((rows[y, i] - taken) % 256)
    return bytes(packed)


def encoded(pixels: np.ndarray, filters: list[int], *extra: bytes) -> bytes:
    height, width, step = pixels.shape
    data = zlib.compress(filtered(pixels, filters))
    half = len(data) // 2
    parts = [header(height, width, COLOURS[step]), *extra, chunk(b"IDAT", data[:half]), chunk(b"IDAT", data[half:])]
    return png.MAGIC + b"".join(parts) + chunk(b"IEND", b"")


def both_ways(data: bytes, path: Path) -> tuple[np.ndarray | str, np.ndarray | str]:
    """What read_image makes of the file with the project's own decoder, and with Pillow alone: pixels or a reason."""
    path.write_bytes(data)
    with mock.patch.object(images, "MAX_PIXELS", 10**6):  # a turned bit makes large claims, which take time to fill
        ours = _read(path)
        with mock.patch.object(png, "decode", return_value=None):
            return ours, _read(path)


def _read(path: Path) -> np.ndarray | str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what it finds odd
            return images.read_image(path)
    except BadImage as error:
        return error.reason


def agree(ours: np.ndarray | str, pillows: np.ndarray | str) -> bool:
    """Equal pixels of equal shape, or the same refusal."""
    if isinstance(ours, str) or isinstance(pillows, str):
        return isinstance(ours, str) and isinstance(pillows, str) and ours == pillows
    return ours.shape == pillows.shape and bool((ours == pillows).all())


def made(seed: int) -> bytes:
    """A small file of a random size and colour; mostly damaged, by one change or by several."""
    r = random.Random(seed)
    height, width, step = r.randint(1, 6), r.randint(1, 6), r.choice([1, 2, 3, 4])
    pixels = np.frombuffer(r.randbytes(height * width * step), np.uint8).reshape(height, width, step)
    changes = r.choices(["rows", "stream", "chunks", "bytes"], [1, 2, 4, 2], k=r.choice([0, 1, 1, 1, 2, 3]))
    raw = filtered(pixels, [r.randrange(5) for _ in range(height)])
    if "rows" in changes:
        raw = _changed_rows(r, raw, width * step + 1)
    packed = _changed_stream(r, raw) if "stream" in changes else zlib.compress(raw, r.choice([0, 1, 6, 9]))
    parts: list[Chunk] = [(b"IHDR", header_data(height, width, COLOURS[step])), (b"IEND", b"")]
    cuts = sorted(r.randint(0, len(packed)) for _ in range(r.choice([0, 0, 1, 2])))
    parts[1:1] = [(b"IDAT", packed[a:b]) for a, b in zip([0, *cuts], [*cuts, len(packed)], strict=True)]
    for _ in range(changes.count("chunks")):
        parts = _changed_chunks(r, parts)
    data = bytearray(png.MAGIC + b"".join(chunk(*part) for part in parts))
    for _ in range(changes.count("bytes")):
        _change_bytes(r, data)
    return bytes(data)


def _changed_rows(r: random.Random, raw: bytes, row: int) -> bytes:
    """More rows, fewer, a part of one, a filter that does not exist."""
    if r.random() < 0.3:
        return bytes([r.randrange(256)]) + raw[1:]
    return r.choice([raw[:-1], raw + b"\0", raw + bytes(row), raw[:-row], b"", raw + bytes(100_000)])


def _changed_stream(r: random.Random, raw: bytes) -> bytes:
    """A zlib stream with a small window, without its checksum, with a wrong one, cut short, or with bytes behind it."""
    packer = zlib.compressobj(r.choice([0, 1, 6, 9]), wbits=r.choice([15, 15, 9, 12]))
    data = packer.compress(raw) + packer.flush()
    if r.random() < 0.3:  # another window than the one it was packed with, some too large
        method = 8 + 16 * r.randrange(16)
        return bytes([method, -(method << 8) % 31]) + data[2:]
    other = zlib.compressobj(zdict=b"0123456789")
    return r.choice(
        [
            data,
            data[:-1],
            data[:-4],
            data[: r.randint(0, len(data))],
            data[:-1] + bytes([data[-1] ^ 1]),
            data + b"\0",
            data + data,
            data[2:-4],
            other.compress(raw) + other.flush(),
        ]
    )


NAMES = [
    *png.ALLOWED_CHUNKS,
    b"PLTE",
    b"tRNS",
    b"zTXt",
    b"iTXt",
    b"eXIf",
    b"iCCP",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"vpAg",
    b"IDOT",
]


def _changed_chunks(r: random.Random, parts: list[Chunk]) -> list[Chunk]:
    """A chunk more, one fewer, two exchanged, one doubled, or other content in one, with a right checksum."""
    parts, i = list(parts), r.randrange(len(parts)) if parts else 0
    kind = r.choice(["insert", "insert", "remove", "exchange", "double", "content", "header"])
    if kind == "insert" or not parts:
        content = r.randbytes(r.choice([0, 1, 2, 3, 4, 6, 7, 9, 13, 32, 40]))
        if r.random() < 0.3:
            content = b"Comment\0" + r.choice([b"", b"\0", b"\1"]) + r.choice([zlib.compress(content), content])
        parts.insert(r.randint(0, len(parts)), (r.choice(NAMES), content))
    elif kind == "remove":
        parts.pop(i)
    elif kind == "exchange":
        j = r.randrange(len(parts))
        parts[i], parts[j] = parts[j], parts[i]
    elif kind == "double":
        parts.insert(r.randint(0, len(parts)), parts[i])
    else:
        i = next((k for k, part in enumerate(parts) if part[0] == b"IHDR"), i) if kind == "header" else i
        content = bytearray(parts[i][1])
        if content:
            content[r.randrange(len(content))] = r.choice([0, 1, 2, 3, 4, 6, 8, 16, 255, r.randrange(256)])
        parts[i] = (parts[i][0], bytes(content[: r.choice([len(content), len(content), r.randint(0, len(content))])]))
    return parts


def _change_bytes(r: random.Random, data: bytearray) -> None:
    """Cut short, bytes at the end, a bit turned, a byte lost."""
    kind = r.choice(["cut", "behind", "bit", "bit", "lost"])
    place = r.randrange(len(data)) if data else 0
    if kind == "behind" or not data:
        data += r.choice([b"\0", b"IEND", chunk(b"IEND", b""), bytes(data[8:])])
    elif kind == "cut":
        del data[place:]
    elif kind == "lost":
        del data[place]
    else:
        data[place] ^= 1 << r.randrange(8)


def main(count: int) -> None:
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(count):
            data = made(seed)
            ours, pillows = both_ways(data, Path(folder, "a.png"))
            if not agree(ours, pillows):
                print(f"seed {seed}: {data.hex()}\n  here {ours}\n  Pillow {pillows}")
                ends["different"] += 1
            elif isinstance(ours, str):
                ends["refused alike"] += 1
            else:
                here = png.decode(data, 10**6) is not None
                ends["equal pixels, " + ("decoded here" if here else "left to Pillow")] += 1
    print(f"{count} files: {dict(ends)}")
    if ends["different"]:
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
