"""The PNG decoder: every filter gives Pillow's pixels, and whatever is not plain or not whole is left to Pillow."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.data import png
from finetune.data.images import read_picture
from finetune.errors import BadImage

COLOURS = {1: 0, 3: 2, 2: 4, 4: 6}  # bytes per pixel -> colour type
MOST = 10**6

needs_compiler = pytest.mark.skipif(png.function() is None, reason="no C compiler")


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def header(height, width, colour=0, depth=8, interlaced=0):
    return chunk(
        b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, interlaced])
    )


def filtered(pixels, filters):
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


def encoded(pixels, filters, *extra):
    height, width, step = pixels.shape
    data = zlib.compress(filtered(pixels, filters))
    half = len(data) // 2
    parts = [header(height, width, COLOURS[step]), *extra, chunk(b"IDAT", data[:half]), chunk(b"IDAT", data[half:])]
    return png.MAGIC + b"".join(parts) + chunk(b"IEND", b"")


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_filter_in_every_order_gives_the_pixels_back(data):
    height, width, step = (
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 9)),
        data.draw(st.sampled_from([1, 2, 3, 4])),
    )
    filters = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 4, 4]), min_size=height, max_size=height))
    pixels = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, (height, width, step), np.uint8)
    found = png.decode(encoded(pixels, filters), MOST)
    np.testing.assert_array_equal(found.reshape(pixels.shape), pixels)


@needs_compiler
@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
def test_a_file_is_read_as_pillow_reads_it(tmp_path, mode, monkeypatch):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(60, 50, len(mode))), axis=0), axis=1)
    pixels = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode=None)
    path = tmp_path / "a.png"
    image.save(path)
    assert png.decode(path.read_bytes(), MOST) is not None
    ours = read_picture(path)
    monkeypatch.setattr(png, "function", lambda: None)
    np.testing.assert_array_equal(ours, read_picture(path))


PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
GOOD = encoded(PIXELS, [0, 4, 4])
RAW = filtered(PIXELS, [0, 4, 4])


def of(*parts):
    return png.MAGIC + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD[: len(GOOD) // 2],
        GOOD[:40] + bytes([GOOD[40] ^ 1]) + GOOD[41:],  # a flipped bit
        of(header(3, 4), chunk(b"IDAT", zlib.compress(RAW + b"\0"))),  # more than the header claims
        of(header(3, 4), chunk(b"IDAT", zlib.compress(RAW[:-1]))),
        of(header(3, 4), chunk(b"IDAT", zlib.compress(RAW)[:-3])),
        of(header(3, 4), chunk(b"IDAT", zlib.compress(b"\x05" + RAW[1:]))),  # there is no filter 5
        of(header(2000, 4000), chunk(b"IDAT", zlib.compress(RAW))),  # larger than is read
        of(header(0, 4), chunk(b"IDAT", zlib.compress(RAW))),
        of(header(3, 4, interlaced=1), chunk(b"IDAT", zlib.compress(RAW))),
        of(header(3, 4, depth=16), chunk(b"IDAT", zlib.compress(RAW))),
        of(header(3, 4, colour=3), chunk(b"PLTE", bytes(768)), chunk(b"IDAT", zlib.compress(RAW))),
        of(header(3, 4), chunk(b"tRNS", b"\0\1"), chunk(b"IDAT", zlib.compress(RAW))),
        of(chunk(b"IDAT", zlib.compress(RAW))),
        of(header(3, 4), chunk(b"IDAT", zlib.compress(RAW)[:5] + b"garbage")),
        of(header(3, 4)),
        png.MAGIC + (2**31).to_bytes(4, "big") + b"IDAT",
    ],
)
def test_what_is_not_plain_or_not_whole_is_left_to_pillow(data):
    assert png.decode(data, MOST) is None


def test_a_damaged_file_is_named_and_a_bomb_is_not_inflated(tmp_path):
    (tmp_path / "cut.png").write_bytes(GOOD[:-20])
    with pytest.raises(BadImage, match="cut short"):
        read_picture(tmp_path / "cut.png")
    bomb = of(header(3, 4), chunk(b"IDAT", zlib.compress(bytes(10**8))))
    assert png.decode(bomb, MOST) is None


def test_a_colour_that_means_transparent_is_still_minded(tmp_path):
    image = Image.fromarray(np.array([[1, 200], [200, 1]], np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=200)
    (tmp_path / "a.png").write_bytes(file.getvalue())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), [[1, 0], [0, 1]])
