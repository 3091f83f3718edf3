"""Decoding: any image file to uint8 gray (H, W) or RGB (H, W, 3), or a BadImage that says what is wrong with it.

The same file always gives the same pixels; values are scaled by the header, never by the image's content.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL import WebPImagePlugin as WebP

from finetune.data.decoding import containers, dicom, png, zips
from finetune.errors import BadImage, FinetuneError, MissingExtra
from finetune.preprocessing import check_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", *dicom.SUFFIXES)

MAX_PIXELS = 200_000_000  # a header may claim any size; larger images are not decoded

# The reader is chosen by the first bytes, not by the name, and called directly: Image.open would try every format
# Pillow knows, some of which run other programs, and would warn of large images.
READERS: list[tuple[bytes, type[ImageFile.ImageFile]]] = [
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"II*\x00", TiffImagePlugin.TiffImageFile),
    (b"MM\x00*", TiffImagePlugin.TiffImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"RIFF", WebP.WebPImageFile),
]

PNG_END = b"IEND\xaeB`\x82"
DEEP_GRAY = ("I;16", "I;16B", "I;16L")  # Pillow's modes of unsigned 16-bit gray
SAFE_CONVERSIONS = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "RGBX": "RGB", "La": "LA", "RGBa": "RGBA"}
ORIENTATION, BITS, PHOTOMETRIC, WIDTH, LENGTH = 0x0112, 258, 262, 256, 257  # EXIF and TIFF tags


def read_image(path: str | os.PathLike[str], min_side: int | None = None) -> np.ndarray:  # -> uint8 (H, W[, 3])
    """Decode one image: a file, `FILE.npz::KEY/INDEX`, `FILE.h5::KEY/INDEX`, a frame `FILE.dcm::frame/INDEX`, or a
    file in a zip, `FILE.zip::NAME`.

    An image is gray if its pixels are, whatever the file's mode: an RGB file with R = G = B everywhere gives (H, W).
    16-bit values v become round(v * 255 / 65535), or by the significant bits that a PNG's sBIT chunk or a TIFF's
    BitsPerSample names. EXIF orientation is applied. An alpha channel that is the same everywhere carries no image
    and is dropped; any other is composited on black. Of a GIF, WebP or TIFF with several images the first is read.
    32-bit values have no fixed range and are refused, as is anything cut short. For DICOM see
    finetune/data/decoding/dicom.py; an array in a container is an image of 8 or 16 bits.

    A JPEG whose shorter side stays at least `min_side` pixels is decoded at 1/2, 1/4 or 1/8 of its size, which is
    faster.
    """
    path = Path(path)
    member = containers.member(path)
    with _as_bad_image(path):
        if member is not None and not member.is_frame:
            pixels = containers.read(member)
            return np.ascontiguousarray(_without_alpha(_to_8_bit(pixels, 8 * pixels.itemsize, 0)))
        if member is None and (zipped := zips.member(path)) is not None:
            return _decode(path, zips.read(zipped), None, min_side)
        with _open(path if member is None else member.file) as file:
            return _decode(path, file, None if member is None else member.number, min_side)


def decode_image(file: BinaryIO, min_side: int | None = None, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As `read_image`, of an open file of unknown origin, such as one in memory: uint8 (H, W) or (H, W, 3). More than
    `max_pixels` pixels are not decoded; a PNG with a wrong checksum or surplus data is refused.

    Raises:
        BadImage: it cannot be read; `path` is `image`.
    """
    path = Path("image")
    with _as_bad_image(path):
        return _decode(path, file, None, min_side, max_pixels, strict=True)


@contextmanager
def _as_bad_image(path: Path) -> Iterator[None]:
    """Inside, whatever a reader raises on a damaged file is a BadImage."""
    try:
        yield
    except (BadImage, MissingExtra):
        raise
    except MemoryError:
        raise BadImage(path, "does not fit into memory") from None
    except Exception as error:  # readers raise nearly anything on damaged files, pydicom's with the bytes in question
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(
            path, f"is damaged or cut short ({reason if len(reason) < 160 else reason[:150] + ' ...'})"
        ) from None


def read_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:  # -> (H, W)
    """Full size of a JPEG, upright, from its header; None for every other file."""
    with open(path, "rb") as file:
        if not file.read(3).startswith(b"\xff\xd8\xff"):
            return None
        file.seek(0)
        return _upright_size(JpegImagePlugin.JpegImageFile(file))


def header_size(path: str | os.PathLike[str]) -> tuple[int, int]:  # -> (H, W)
    """Of any image that `read_image` reads, upright, by its header alone: no pixel is decoded.

    Raises:
        BadImage: the file or its header cannot be read.
    """
    path, member = Path(path), containers.member(path)
    try:
        if member is not None and not member.is_frame:
            return containers.size(member)
        with _open(path if member is None else member.file) as file:
            head = file.read(132)
            if head[128:132] == b"DICM":
                return dicom.read_size(path, file)
            reader = next((reader for magic, reader in READERS if head.startswith(magic)), None)
            if reader is None:
                raise BadImage(path, f"is not an image in a known format; it begins with {head[:12]!r}")
            file.seek(0)
            return _upright_size(reader(file))
    except (BadImage, MissingExtra):
        raise
    except Exception as error:  # readers raise nearly anything on damaged files
        raise BadImage(path, f"is damaged or cut short ({' '.join(str(error).split())[:160]})") from None


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width once EXIF orientation is applied."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        width, height = (int(image.tag_v2[side]) for side in (WIDTH, LENGTH))  # some releases of Pillow turn `size`
    else:
        width, height = image.size
    known = "exif" in image.info or isinstance(image, TiffImagePlugin.TiffImageFile)  # else Pillow decodes a PNG for it
    return (width, height) if known and _orientation(image) >= 5 else (height, width)


def as_image(image: Image.Image | np.ndarray) -> np.ndarray:  # -> uint8 (H, W) gray or (H, W, 3) RGB
    """A Pillow image or a uint8 array as `read_image` would give it from a file."""
    if isinstance(image, np.ndarray):
        return np.ascontiguousarray(_without_alpha(check_image(image)))
    if not isinstance(image, Image.Image):
        raise FinetuneError(f"an image must be a path, a Pillow image or a uint8 array, not {type(image).__name__}.")
    path = Path(getattr(image, "filename", "") or "image")
    try:
        image.load()
        turn = 1 if isinstance(image, TiffImagePlugin.TiffImageFile) else _orientation(image)
        bits = 16 if image.mode in DEEP_GRAY else 8
        return np.ascontiguousarray(_turned(_without_alpha(_to_8_bit(_pixels(path, image, bits), bits, 0)), turn))
    except OSError as error:
        raise BadImage(path, f"is damaged or cut short ({error})") from None


def _open(path: Path) -> BinaryIO:
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise BadImage(path, "is a folder, not an image")
        if not stat.S_ISREG(info.st_mode):
            raise BadImage(path, "is not a regular file")
        if info.st_size == 0:
            raise BadImage(path, "is empty (0 bytes)")
        return path.open("rb")
    except FileNotFoundError:
        raise BadImage(path, "is a link to a missing file" if path.is_symlink() else "is missing") from None
    except PermissionError:
        raise BadImage(path, "may not be read (no permission)") from None
    except OSError as error:
        looped = error.errno == errno.ELOOP
        raise BadImage(path, "is a link that leads in a circle" if looped else f"cannot be opened ({error})") from None


def _decode(
    path: Path,
    file: BinaryIO,
    frame: int | None,
    min_side: int | None,
    max_pixels: int = MAX_PIXELS,
    strict: bool = False,
) -> np.ndarray:
    head = file.read(132)
    if head[128:132] == b"DICM":
        return np.ascontiguousarray(_without_alpha(dicom.read(path, file, frame, max_pixels)))
    if frame is not None:
        raise BadImage(path, "is not DICOM, and only that has frames to choose from")
    reader = next((reader for magic, reader in READERS if head.startswith(magic)), None)
    if reader is None:
        formats = "PNG, JPEG, TIFF, BMP, GIF, WebP or DICOM"
        raise BadImage(path, f"is not an image in a known format ({formats}); it begins with {head[:12]!r}")
    file.seek(0)
    if reader is PngImagePlugin.PngImageFile:
        pixels = png.decode(file.read(), max_pixels)
        if pixels is not None:
            return np.ascontiguousarray(_without_alpha(pixels))
        file.seek(0)
    image = reader(file)
    width, height = image.size
    if width * height > max_pixels:
        claim = f"{width:,} x {height:,} = {width * height / 1e6:,.0f} megapixels"
        raise BadImage(path, f"claims {claim}, more than the {max_pixels // 10**6} that are read")
    if strict and reader is PngImagePlugin.PngImageFile:
        after_header = file.tell()
        file.seek(0)
        if not png.is_whole(file.read()):
            raise BadImage(path, "is damaged (a wrong checksum, or more or less data than its header says)")
        file.seek(after_header)
    turn = _orientation(image) if reader is TiffImagePlugin.TiffImageFile else 1  # Pillow forgets a TIFF's on loading
    bits, shift = _depth(image, file)
    if min_side and isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft("", (min_side, min_side))  # truncates the JPEG's frequencies: as good as an average over pixels
    image.load()
    if reader is PngImagePlugin.PngImageFile:
        _check_png_end(path, file)
    if "exif" in image.info:
        turn = _orientation(image)
    if bits > 8 and image.mode not in (*DEEP_GRAY, "I", "F"):
        pixels = _deep_colour(path, file)  # Pillow has just checked that the file is complete
    else:
        pixels = _pixels(path, image, bits)
        if reader is TiffImagePlugin.TiffImageFile:
            turn = 1  # Pillow has turned what it decoded
    return np.ascontiguousarray(_turned(_without_alpha(_to_8_bit(pixels, bits, shift)), turn))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 is upright, and what anything else counts as."""
    try:
        turn = int(image.getexif().get(ORIENTATION, 1))
        return turn if 1 <= turn <= 8 else 1
    except Exception:  # broken EXIF does not prevent reading the pixels
        return 1


def _depth(image: ImageFile.ImageFile, file: BinaryIO) -> tuple[int, int]:
    """Number of significant bits per sample, and by how many they are shifted up; (8, 0) for what Pillow scales."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(8, *image.tag_v2.get(BITS, (8,))), 0  # 12 bits hold 0..4095
    if not isinstance(image, PngImagePlugin.PngImageFile):
        return 8, 0
    after_header = file.tell()
    try:
        file.seek(24)
        if file.read(1)[0] != 16:
            return 8, 0
        file.seek(8)
        while len(start := file.read(8)) == 8 and (name := start[4:]) not in (b"IDAT", b"PLTE"):
            length = int.from_bytes(start[:4], "big")
            if name == b"sBIT" and 1 <= length <= 4:  # samples fill all 16 bits; the upper `bits` are the original ones
                bits = max(8, min(16, max(file.read(length))))
                return bits, 16 - bits
            file.seek(length + 4, os.SEEK_CUR)
        return 16, 0
    finally:
        file.seek(after_header)


def _check_png_end(path: Path, file: BinaryIO) -> None:
    """Pillow accepts a PNG without its last bytes if all pixels are present, but unverified."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 4096))
    if PNG_END not in file.read():
        file.seek(0)
        if PNG_END not in file.read():
            raise BadImage(path, "is cut short (the PNG has no end)")


def _deep_colour(path: Path, file: BinaryIO) -> np.ndarray:  # -> uint16 (H, W, 3 or 4)
    """16-bit colour through OpenCV: Pillow drops the low byte instead of rounding."""
    import cv2

    file.seek(0)
    pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise BadImage(path, "has more than 8 bits per sample in a layout that is not read: save it as 8 bit")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _pixels(path: Path, image: Image.Image, bits: int) -> np.ndarray:  # -> (H, W[, 2, 3 or 4])
    mode, key = image.mode, image.info.get("transparency")
    if mode in DEEP_GRAY:
        deep = np.array(image).astype(np.uint16)
        if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == 0:
            deep = np.uint16(2**bits - 1) - deep  # white is zero; Pillow inverts 8 bits only
        if isinstance(key, int):
            deep[deep == key] = 0
        return deep
    if mode in ("I", "F"):
        raise BadImage(path, "has signed, fractional or 32-bit values of no fixed range: save it as 8 or 16 bit")
    if mode == "PA" or (key is not None and mode in ("L", "P", "RGB")):
        return np.asarray(image.convert("RGBA"))
    if mode in ("L", "LA", "RGB", "RGBA"):
        return np.asarray(image)
    if mode in SAFE_CONVERSIONS:
        return np.asarray(image.convert(SAFE_CONVERSIONS[mode]))
    raise BadImage(path, f"has colours that are not read (mode {mode}): save it as RGB or gray")


def _to_8_bit(pixels: np.ndarray, bits: int, shift: int) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    top = 2**bits - 1
    values = (pixels >> shift).astype(np.uint32)
    return ((np.minimum(values, top) * 255 + top // 2) // top).astype(np.uint8)  # round(v * 255 / top)


def _without_alpha(pixels: np.ndarray) -> np.ndarray:  # uint8 (H, W[, 2, 3 or 4]) -> (H, W) or (H, W, 3)
    """Without alpha, and gray where the image is gray."""
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:]
        colours = pixels[..., :-1]
        if alpha.min() != alpha.max():
            colours = ((colours.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
        pixels = colours[..., 0] if colours.shape[2] == 1 else colours
    if pixels.ndim == 2:
        return pixels
    for part in (pixels[::16, ::16], pixels):  # most coloured images show it in a few pixels
        if not (np.array_equal(part[..., 0], part[..., 1]) and np.array_equal(part[..., 1], part[..., 2])):
            return pixels
    return pixels[..., 0]


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The image upright: EXIF orientations 2 to 8; otherwise unchanged."""
    if orientation in (5, 6, 7, 8):  # rows and columns are swapped
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
