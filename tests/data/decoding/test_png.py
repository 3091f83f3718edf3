"""The PNG decoder: every filter gives Pillow's pixels, and whatever is not plain or not whole is left to Pillow."""

import io
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from finetune.data.decoding import png
from finetune.data.decoding.images import read_image
from finetune.errors import BadImage
from tests.data.png_cases import agree, both_ways, chunk, encoded, filtered, header, made

MOST = 10**6

needs_compiler = pytest.mark.skipif(png.function() is None, reason="no C compiler")


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
    result = png.decode(encoded(pixels, filters), MOST)
    np.testing.assert_array_equal(result.reshape(pixels.shape), pixels)


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
    ours = read_image(path)
    monkeypatch.setattr(png, "function", lambda: None)
    np.testing.assert_array_equal(ours, read_image(path))


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused_as_pillow_does(seed, folder):
    data = made(seed)
    ours, pillows = both_ways(data, folder / "a.png")
    assert agree(ours, pillows), (data.hex(), ours, pillows)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("png")


def test_the_damaged_files_end_in_every_way(folder):
    """Otherwise the test above would say little."""
    ends = [both_ways(made(seed), folder / "a.png")[0] for seed in range(60)]
    assert 15 < sum(isinstance(end, str) for end in ends) < 50
    assert png.function() is None or sum(png.decode(made(seed), MOST) is not None for seed in range(60)) > 5


HARNESS = """
#include <stdio.h>
#include <stdlib.h>
int unfilter(long long rows, long long width, long long step, const unsigned char *raw, unsigned char *out);
int main(void) {
    long long shape[3];
    while (fread(shape, sizeof *shape, 3, stdin) == 3) {
        size_t packed = shape[0] * (shape[1] + 1), plain = shape[0] * shape[1];
        unsigned char *raw = malloc(packed), *out = malloc(plain); /* to the byte: one beyond is reported */
        if (fread(raw, 1, packed, stdin) != packed) return 3;
        if (unfilter(shape[0], shape[1], shape[2], raw, out)) for (size_t i = 0; i < plain; i++) out[i] = 255;
        fwrite(out, 1, plain, stdout);
        free(raw);
        free(out);
    }
    return 0;
}
"""


def test_the_compiled_part_stays_within_its_memory(tmp_path):
    """Built with gcc's checks of addresses and of undefined behaviour; they end the program at the first report."""
    (tmp_path / "main.c").write_text(HARNESS)
    source = Path(png.__file__).with_name("unfilter.c")
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command = ["cc", *flags, str(source), str(tmp_path / "main.c"), "-o", str(tmp_path / "checked")]
    if shutil.which("cc") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no compiler with sanitizers")
    rng = np.random.default_rng(0)
    asked, expected = [], []
    for _ in range(400):
        height, width, step = int(rng.integers(1, 9)), int(rng.integers(1, 9)), int(rng.choice([1, 2, 3, 4]))
        pixels = rng.integers(0, 256, (height, width, step), np.uint8)
        raw = filtered(pixels, rng.choice([0, 1, 2, 3, 4, 4, 4], height).tolist())
        if rng.random() < 0.2:  # a filter that does not exist, in any row
            row = int(rng.integers(height)) * (width * step + 1)
            raw = raw[:row] + bytes([int(rng.integers(5, 256))]) + raw[row + 1 :]
            pixels = np.full_like(pixels, 255)
        asked.append(np.array([height, width * step, step], np.int64).tobytes() + raw)
        expected.append(pixels.tobytes())
    done = subprocess.run([tmp_path / "checked"], input=b"".join(asked), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"".join(expected)


PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
GOOD = encoded(PIXELS, [0, 4, 4])
RAW = filtered(PIXELS, [0, 4, 4])
HALVES = zlib.compress(RAW)[:6], zlib.compress(RAW)[6:]


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
        GOOD + b"\0",
        GOOD[:8] + header(1, 1) + GOOD[8:],  # two headers
        GOOD.replace(chunk(b"IEND", b""), header(3, 4) + chunk(b"IEND", b"")),
        of(chunk(b"tIME", bytes(7)), header(3, 4), chunk(b"IDAT", zlib.compress(RAW))),  # not first
        of(header(3, 4), chunk(b"IDAT", HALVES[0]), chunk(b"tIME", bytes(7)), chunk(b"IDAT", HALVES[1])),
        of(header(3, 4), chunk(b"gAMA", bytes(3)), chunk(b"IDAT", zlib.compress(RAW))),  # shorter than it must be
        of(header(3, 4), chunk(b"zTXt", b"a"), chunk(b"IDAT", zlib.compress(RAW))),
        of(header(3, 4), chunk(b"tEXt", bytes(2**20 + 1)), chunk(b"IDAT", zlib.compress(RAW))),
        of(header(3, 4), chunk(b"IDAT", zlib.compress(RAW) + b"\0")),  # bytes behind the stream
        of(header(3, 4), chunk(b"IDAT", zlib.compress(RAW)[:-1] + b"\0")),  # a wrong checksum of the stream
        of(header(3, 4), chunk(b"IDAT", b"\x88\x1c" + zlib.compress(RAW)[2:])),  # a window of 64 KiB
        of(header(3, 4), chunk(b"IDAT", b"\x78\xbb" + zlib.compress(RAW)[2:])),  # a preset dictionary
        of(header(3, 4), chunk(b"IDAT", b"\x78\x9d" + zlib.compress(RAW)[2:])),  # its two bytes do not agree
    ],
)
def test_what_is_not_plain_or_not_whole_is_left_to_pillow(data):
    assert png.decode(data, MOST) is None


@needs_compiler
def test_a_plain_file_with_the_usual_chunks_is_not_left_to_pillow():
    packed = zlib.compress(RAW)
    before = [(b"sRGB", 1), (b"gAMA", 4), (b"cHRM", 32), (b"pHYs", 9), (b"sBIT", 1), (b"bKGD", 2), (b"tIME", 7)]
    data = of(
        header(3, 4),
        *(chunk(name, bytes(length)) for name, length in before),
        chunk(b"IDAT", packed[:3]),
        chunk(b"IDAT", b""),
        chunk(b"IDAT", packed[3:]),
        chunk(b"tEXt", b"Software\0by hand"),
    )
    np.testing.assert_array_equal(png.decode(data, MOST), PIXELS[..., 0])


def test_a_damaged_file_is_named_and_a_bomb_is_not_inflated(tmp_path):
    (tmp_path / "cut.png").write_bytes(GOOD[:-20])
    with pytest.raises(BadImage, match="cut short"):
        read_image(tmp_path / "cut.png")
    bomb = of(header(3, 4), chunk(b"IDAT", zlib.compress(bytes(10**8))))
    assert png.decode(bomb, MOST) is None


def test_a_colour_that_means_transparent_is_still_minded(tmp_path):
    image = Image.fromarray(np.array([[1, 200], [200, 1]], np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=200)
    (tmp_path / "a.png").write_bytes(file.getvalue())
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[1, 0], [0, 1]])
