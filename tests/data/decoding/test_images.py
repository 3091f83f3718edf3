import io
import os
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter

from finetune.data.decoding.images import BadImage, as_image, header_size, read_image, read_size
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from tests.data.making import noise, save_dicom


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG from raw rows (each begins with filter byte 0), with further chunks before the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    middle = b"".join(chunk(name, data) for name, data in chunks)
    tail = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + tail


@pytest.fixture
def put(tmp_path):
    """Write bytes, a Pillow image or an array as a file and give its path."""

    def put(content, name="x.png", **options):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            (Image.fromarray(content) if isinstance(content, np.ndarray) else content).save(path, **options)
        return path

    return put


GRAY = np.array([[0, 10, 200], [255, 30, 40]], np.uint8)
RGB = np.stack([GRAY, GRAY.T.reshape(2, 3), 255 - GRAY], axis=-1)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.bmp"])
def test_gray_and_rgb_come_back_as_they_were_stored(put, name):
    np.testing.assert_array_equal(read_image(put(GRAY, name)), GRAY)
    np.testing.assert_array_equal(read_image(put(RGB, name)), RGB)


def test_rgb_that_is_gray_everywhere_is_gray(put):
    np.testing.assert_array_equal(read_image(put(np.stack([GRAY] * 3, axis=-1))), GRAY)
    almost = np.stack([GRAY] * 3, axis=-1)
    almost[1, 2, 0] += 1
    assert read_image(put(almost)).shape == (2, 3, 3)


def test_one_bit_palette_and_webp(put):
    np.testing.assert_array_equal(read_image(put(Image.fromarray(GRAY > 100))), (GRAY > 100) * np.uint8(255))
    palette = Image.fromarray(RGB).quantize(6)
    np.testing.assert_array_equal(read_image(put(palette)), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(read_image(put(RGB, "x.webp", lossless=True)), RGB)


def test_constant_alpha_is_dropped_and_real_alpha_lies_on_black(put):
    for level in (255, 128, 0):
        rgba = np.dstack([RGB, np.full((2, 3), level, np.uint8)])
        np.testing.assert_array_equal(read_image(put(rgba)), RGB)
    alpha = np.array([[255, 255, 0], [51, 255, 255]], np.uint8)
    expected = np.array([[0, 10, 0], [51, 30, 40]], np.uint8)  # 255 * 51 / 255 = 51
    np.testing.assert_array_equal(read_image(put(np.dstack([GRAY, GRAY, GRAY, alpha]))), expected)
    la = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(alpha)])
    np.testing.assert_array_equal(read_image(put(la)), expected)
    np.testing.assert_array_equal(read_image(put(la, "x.tif")), expected)


def test_a_transparent_colour_becomes_black(put):
    np.testing.assert_array_equal(read_image(put(GRAY, transparency=200)), np.where(GRAY == 200, 0, GRAY))
    palette = Image.fromarray(GRAY).convert("P")
    np.testing.assert_array_equal(read_image(put(palette, transparency=200)), np.where(GRAY == 200, 0, GRAY))


DEEP = np.array([[0, 128, 129], [257, 32768, 65535]], np.uint16)
DEEP_8 = np.array([[0, 0, 1], [1, 128, 255]], np.uint8)  # round(v * 255 / 65535); 128 / 257 = 0.498, 129 / 257 = 0.502


def test_sixteen_bits_are_scaled_by_the_full_range_and_rounded(put):
    np.testing.assert_array_equal(read_image(put(DEEP)), DEEP_8)
    np.testing.assert_array_equal(read_image(put(DEEP, "x.tif")), DEEP_8)
    dark = np.full((2, 2), 300, np.uint16)  # no stretching: what is dark stays dark
    np.testing.assert_array_equal(read_image(put(dark)), np.full((2, 2), 1))


def test_sixteen_bit_colour_and_alpha_are_rounded_too(tmp_path):
    colour = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], axis=-1)
    for name in ("x.png", "x.tif"):
        cv2.imwrite(str(tmp_path / name), colour[..., ::-1])  # OpenCV stores BGR
        expected = np.stack([DEEP_8, DEEP_8[::-1], DEEP_8[:, ::-1]], axis=-1)
        np.testing.assert_array_equal(read_image(tmp_path / name), expected)


def test_sixteen_bit_gray_with_alpha(put):
    opaque = b"".join(b"\0" + b"".join(struct.pack(">HH", v, 65535) for v in row) for row in DEEP.tolist())
    np.testing.assert_array_equal(read_image(put(png(3, 2, 16, 4, opaque))), DEEP_8)


def test_significant_bits_of_a_png_are_honoured(put):
    values = [[0, 2048, 4095]]  # 12 bits, stored in the upper ones as the standard has it
    rows = b"\0" + b"".join(struct.pack(">H", v << 4) for v in values[0])
    image = read_image(put(png(3, 1, 16, 0, rows, (b"tEXt", b"a\0b"), (b"sBIT", b"\x0c"))))
    np.testing.assert_array_equal(image, [[0, 128, 255]])  # 2048 * 255 / 4095 = 127.53


def test_white_is_zero_in_a_sixteen_bit_tiff(put):
    np.testing.assert_array_equal(read_image(put(DEEP, "x.tif", tiffinfo={262: 0})), 255 - DEEP_8[:, :])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_range_are_refused(put, dtype):
    with pytest.raises(BadImage, match="no fixed range: save it as 8 or 16 bit"):
        read_image(put(DEEP.astype(dtype), "x.tif"))


def test_cmyk_jpeg_and_interlaced_and_animated(put):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    cmyk = read_image(put(Image.fromarray(flat).convert("CMYK"), "x.jpg", quality=95)).astype(int)
    assert np.abs(cmyk - flat).max() <= 4
    first, second = Image.fromarray(GRAY), Image.fromarray(255 - GRAY)
    np.testing.assert_array_equal(read_image(put(first, "x.gif", save_all=True, append_images=[second])), GRAY)
    np.testing.assert_array_equal(read_image(put(first, "x.tif", save_all=True, append_images=[second])), GRAY)
    # Adam7 on 1 x 1 has one pass of one pixel
    interlaced = bytearray(png(1, 1, 8, 0, b"\0\x7b"))
    interlaced[28] = 1
    interlaced[29:33] = struct.pack(">I", zlib.crc32(bytes(interlaced[12:29])))
    np.testing.assert_array_equal(read_image(put(bytes(interlaced))), [[123]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
def test_exif_orientation_is_applied_once(put, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = put(RGB, name, exif=exif, **({"lossless": True} if name == "x.webp" else {}))
    with Image.open(path) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
        np.testing.assert_array_equal(as_image(opened), upright)
    np.testing.assert_array_equal(read_image(path), upright)


def test_orientation_of_sixteen_bits(put):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = np.rot90(DEEP_8, -1)
    np.testing.assert_array_equal(read_image(put(DEEP, exif=exif)), turned)
    np.testing.assert_array_equal(read_image(put(DEEP, "x.tif", exif=exif)), turned)


def test_the_content_decides_not_the_name(put):
    path = put(GRAY, "x.png")
    np.testing.assert_array_equal(read_image(path.rename(path.with_name("x.jpg"))), GRAY)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.gif", "x.bmp", "x.webp"])
@pytest.mark.parametrize("kept", [0.1, 0.6, 0.99])
def test_what_is_cut_short_is_refused(put, name, kept):
    content = put(noise(64, 64, 3), name).read_bytes()
    with pytest.raises(BadImage):
        read_image(put(content[: int(len(content) * kept)], "cut" + name))


@pytest.mark.parametrize("lost", [1, 4, 12, 16])
def test_a_png_without_its_last_bytes_is_refused(put, lost):
    content = put(GRAY).read_bytes()
    with pytest.raises(BadImage, match="cut short"):
        read_image(put(content[:-lost]))


def test_a_flipped_bit_in_a_png_is_refused(put):
    content = bytearray(put(noise(64, 64)).read_bytes())
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(BadImage, match="damaged"):
        read_image(put(bytes(content)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, not an image", "not an image in a known format"),
        (b"<svg/>", "not an image in a known format"),
        (b"\0" * 128 + b"DICM" + b"\0" * 9, "DICOM"),
        (png(20000, 20000, 8, 0, b"\0"), "20,000 x 20,000 = 400 megapixels"),
        (b"\x89PNG\r\n\x1a\n", "damaged or cut short"),
    ],
)
def test_the_error_names_what_is_no_image(put, content, reason):
    path = put(content)
    with pytest.raises(BadImage, match=reason) as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert isinstance(caught.value, FinetuneError)


def test_a_large_image_within_the_limit_raises_no_warning(put):
    assert read_image(put(np.zeros((10_000, 9_000), bool))).shape == (10_000, 9_000)  # Pillow warns from 89 million


def test_paths_that_are_no_files(tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in {
        "gone.png": "is missing",
        "loop.png": "in a circle",
        "dangling.png": "link to a missing file",
        "folder.png": "is a folder",
        "pipe.png": "not a regular file",
    }.items():
        with pytest.raises(BadImage, match=reason):
            read_image(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(put):
    path = put(GRAY)
    path.chmod(0)
    with pytest.raises(BadImage, match="no permission"):
        read_image(path)


def test_one_pixel_and_strange_names(put):
    np.testing.assert_array_equal(read_image(put(GRAY[:1, :1])), [[0]])
    np.testing.assert_array_equal(read_image(put(GRAY, "bröt chen,1.PNG.png")), GRAY)


def test_bad_image_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(BadImage("a/b.png", "is empty")))
    assert (str(error), error.reason) == ("a/b.png: is empty", "is empty")


def test_arrays_and_pillow_images_are_read_like_files(put):
    np.testing.assert_array_equal(as_image(np.stack([GRAY] * 3, axis=-1)), GRAY)
    np.testing.assert_array_equal(as_image(RGB), RGB)
    np.testing.assert_array_equal(as_image(Image.fromarray(DEEP)), DEEP_8)
    with pytest.raises(FinetuneError, match="must be a path"):
        as_image("x.png")  # type: ignore[arg-type]
    with pytest.raises(FinetuneError, match="uint8"):
        as_image(np.zeros((2, 2)))
    content = put(noise(64, 64)).read_bytes()
    with pytest.raises(BadImage), Image.open(io.BytesIO(content[:900])) as cut:
        as_image(cut)


def test_real_x_rays(shared_data):
    path = shared_data / "nih_1024" / "00000773_001.png"
    with Image.open(path) as image:
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(read_image(path), np.asarray(image)[..., 0])


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_where_that_is_enough(tmp_path):
    random = np.random.default_rng(0)
    image = gaussian_filter(random.standard_normal((1200, 1600)), 4)
    image = np.clip(128 + 60 * image / image.std(), 0, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=95)
    preprocessing = Preprocessing(image_size=96, fit="crop")
    whole, part = read_image(tmp_path / "a.jpg"), read_image(tmp_path / "a.jpg", preprocessing.min_decode_side)
    assert (whole.shape, part.shape) == ((1200, 1600), (300, 400))
    assert read_size(tmp_path / "a.jpg") == (1200, 1600)
    difference = preprocessing.resize(whole).astype(int) - preprocessing.resize(part)
    assert np.abs(difference).mean() < 1
    assert np.abs(difference).max() <= 4
    assert read_image(tmp_path / "a.jpg", 601).shape == (1200, 1600)  # half would be too little
    Image.fromarray(image).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 96).shape == (1200, 1600)
    assert read_size(tmp_path / "a.png") is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "gif", "webp"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_the_size_by_the_header_is_that_of_the_decoded_image(tmp_path, suffix, turn):
    file = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {} if suffix in ("bmp", "gif") else {"exif": exif}
    Image.new("L", (30, 20), 7).save(file, **options)
    assert header_size(file) == read_image(file).shape[:2]
    assert header_size(file) == ((30, 20) if options and turn > 4 else (20, 30))
    if suffix == "jpg":
        assert read_size(file) == header_size(file)


def test_sizes_of_dicom_files_and_containers_and_of_what_is_none(tmp_path):
    save_dicom(tmp_path / "a.dcm", np.zeros((6, 9), np.uint8))
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 5, 7), np.uint8), one=np.zeros(3))
    assert header_size(tmp_path / "a.dcm") == header_size(tmp_path / "a.dcm::frame/0") == (6, 9)
    assert header_size(tmp_path / "a.npz::images/1") == (5, 7)
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    for name, message in (
        ("gone.png", "is missing"),
        ("text.png", "is not an image in a known format"),
        ("cut.jpg", "is damaged or cut short"),
        ("a.npz::one/0", "has the shape"),
    ):
        with pytest.raises(BadImage, match=message):
            header_size(tmp_path / name)
