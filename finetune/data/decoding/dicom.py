"""DICOM: stored values to uint8, by the header: modality LUT, VOI LUT or window, MONOCHROME1 inverted last.

The choices that the standard leaves open:
- VOI LUTs and windows are alternatives to it (PS3.3 C.11.2.1). The first VOI LUT is taken, else the first window: as
  in pydicom.
- Without either, the range that Bits Stored allows becomes 0..255, not the range found in the image: 8-bit images
  stay as they are, one bright marker moves nothing, and equal values look equal in all images of a set. The audit
  warns if the header claims more bits than the images use.
- Padding (Pixel Padding Value, Range Limit) is no part of the image and becomes black, after the inversion.
- Of several frames the middle one is read, since many series begin with an empty one. `FILE::frame/INDEX` chooses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from finetune.errors import BadImage, MissingExtra

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
GRAY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom gives all of these as RGB
GRAY_RULES = (  # of the modality and VOI LUT modules
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
)
FRAME_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")  # the same rules, in enhanced files
EXTRA = "dicom"


def read(path: Path, file: BinaryIO, frame: int | None, max_pixels: int) -> np.ndarray:  # -> uint8 (H, W) or (H, W, 3)
    """A frame of an open DICOM file, by default the middle one; more than `max_pixels` pixels are refused.

    Raises:
        BadImage: what is in the file cannot be read as an image.
        MissingExtra: pydicom, or a decoder for this file's compression, is not installed.
    """
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_color_lut, pixel_array
    except ImportError:
        raise MissingExtra(f"{path} is DICOM, which needs pydicom", EXTRA) from None
    file.seek(0)
    header = dcmread(file, stop_before_pixels=True)  # the file is now positioned at the pixels
    frame = _frame(path, header, frame)
    rows, columns = (int(header.get(key) or 0) for key in ("Rows", "Columns"))
    if rows < 1 or columns < 1:
        raise BadImage(path, "is DICOM without an image (no Rows and Columns)")
    if rows * columns > max_pixels:
        claim = f"{columns:,} x {rows:,} = {rows * columns / 1e6:,.0f} megapixels"
        raise BadImage(path, f"claims {claim}, more than the {max_pixels // 10**6} that are read")
    colours = str(header.get("PhotometricInterpretation", ""))
    if colours not in (*GRAY, *COLOUR, "PALETTE COLOR"):
        raise BadImage(path, f"has colours that are not read (Photometric Interpretation {colours or 'absent'})")
    _check_decoder(path, header)
    _check_complete(path, header, file)
    file.seek(0)
    pixels = pixel_array(file, index=frame)
    if pixels.dtype.kind not in "iu" or pixels.itemsize > 2:
        raise BadImage(path, f"has {pixels.dtype} values, which are not read: save it with 8 to 16 bits")
    if colours in GRAY:
        table, low = gray_table(path, header, frame, pixels.dtype)
        # take() wants plain indices: those of unsigned values are the values themselves.
        return np.take(table, pixels if low == 0 else pixels.astype(np.int32) - low)
    bits = int(header.BitsStored)
    if colours == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)[..., :3]
        bits = 8 * pixels.itemsize
    if bits == 8:
        return pixels.astype(np.uint8)
    top = 2**bits - 1
    return ((np.minimum(pixels, top).astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def read_patient(path: Path) -> str:
    """The PatientID in a DICOM file's header, ISSUER:ID where the header names the issuer; blank where there is none.

    Nothing else of the header is used. An unreadable file has none; decoding reports the reason.

    Raises:
        MissingExtra: pydicom is not installed.
    """
    if not path.is_file():  # a pipe would never end
        return ""
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return ""
        from pydicom import dcmread
    except OSError:
        return ""
    except ImportError:
        raise MissingExtra(f"{path} is DICOM, which needs pydicom", EXTRA) from None
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["PatientID", "IssuerOfPatientID"])
        patient, issuer = (str(header.get(key) or "").strip() for key in ("PatientID", "IssuerOfPatientID"))
    except Exception:  # pydicom raises nearly anything on damaged files
        return ""
    return f"{issuer}:{patient}" if issuer and patient else patient


def read_size(path: Path, file: BinaryIO) -> tuple[int, int]:  # -> (H, W)
    """Rows and Columns of an open DICOM file, by its header.

    Raises:
        BadImage: the header has no size.
        MissingExtra: pydicom is not installed.
    """
    try:
        from pydicom import dcmread
    except ImportError:
        raise MissingExtra(f"{path} is DICOM, which needs pydicom", EXTRA) from None
    file.seek(0)
    header = dcmread(file, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
    height, width = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    if height * width == 0:
        raise BadImage(path, "is DICOM without Rows and Columns: it holds no image")
    return height, width


def gray_table(path: Path, header: Dataset, frame: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """The gray (uint8) of every value that `dtype` can hold, and the stored value of its first entry."""
    rules = _rules(header, frame)
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    stored = np.arange(low, high + 1, dtype=np.float64)
    bits, signed = int(header.BitsStored), low < 0
    possible = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    little = header.file_meta.TransferSyntaxUID.is_little_endian
    if lut := rules.get("ModalityLUTSequence"):
        values, top = _look_up(stored, lut[0], little)
        possible = (0.0, top)
    else:
        slope, intercept = _first(rules.get("RescaleSlope"), 1.0), _first(rules.get("RescaleIntercept"), 0.0)
        values = stored * slope + intercept
        first, second = (value * slope + intercept for value in possible)
        possible = (min(first, second), max(first, second))
    if lut := rules.get("VOILUTSequence"):
        values, top = _look_up(np.round(values), lut[0], little)
        part = values / top
    elif (centre := _first(rules.get("WindowCenter"))) is not None and (
        width := _first(rules.get("WindowWidth"))
    ) is not None:
        part = _window(path, values, centre, width, str(rules.get("VOILUTFunction") or "LINEAR").upper())
    else:
        part = (values - possible[0]) / max(possible[1] - possible[0], 1e-9)
    table = np.floor(np.clip(part, 0, 1) * 255 + 0.5).astype(np.uint8)
    if header.PhotometricInterpretation == "MONOCHROME1":  # its lowest value is white
        table = 255 - table
    table[_is_padding(header, stored)] = 0
    return table, low


def _window(path: Path, values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Values through a window, as parts of 1 (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
    min_width = 1 if function == "LINEAR" else 1e-9
    if width < min_width:
        raise BadImage(path, f"has a window of width {width:g} ({function})")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise BadImage(path, f"has a window of an unknown kind (VOI LUT Function {function})")
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (values > centre).astype(np.float64)
    return (values - centre) / width + 0.5


def _look_up(values: np.ndarray, item: Dataset, little: bool) -> tuple[np.ndarray, float]:
    """Values through a LUT, and the largest value that its entries can take; values beyond its ends take the last."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16
    data = item.LUTData
    if isinstance(data, bytes):  # 8-bit entries may be packed into half as many words
        packed = bits == 8 and len(data) < 2 * count
        entries = np.frombuffer(data, np.uint8 if packed else ("<u2" if little else ">u2"))
    else:
        entries = np.atleast_1d(np.asarray(data, np.int64))
    if len(entries) < count:
        raise ValueError(f"a LUT of {count} entries has {len(entries)}")
    index = np.clip(values - first, 0, count - 1).astype(np.int64)
    return entries[index].astype(np.float64), 2.0**bits - 1


def _is_padding(header: Dataset, stored: np.ndarray) -> np.ndarray:
    """Which stored values are padding."""
    ends = [header.get("PixelPaddingValue"), header.get("PixelPaddingRangeLimit")]
    if ends[0] is None:
        return np.zeros(len(stored), bool)
    numbers = [float(end) for end in ends if end is not None]
    if stored[0] < 0:  # written as unsigned by some
        numbers = [number - 2**16 if number >= 2**15 else number for number in numbers]
    return (stored >= min(numbers)) & (stored <= max(numbers))


def _rules(header: Dataset, frame: int) -> dict[str, Any]:
    """The rules from stored to gray values for a frame: of the frame, else of all frames, else of the file."""
    rules = {key: header.get(key) for key in GRAY_RULES}
    shared = (header.get("SharedFunctionalGroupsSequence") or [])[:1]
    per_frame = (header.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    for group in (*shared, *per_frame):
        for name in FRAME_GROUPS:
            for item in (group.get(name) or [])[:1]:
                rules |= {key: item.get(key) for key in GRAY_RULES if key in item}
    return rules


def _frame(path: Path, header: Dataset, frame: int | None) -> int:
    count = int(header.get("NumberOfFrames") or 1)
    if frame is None:
        return count // 2
    if frame >= count:
        raise BadImage(path, f"has {count:,} frame(s), counted from 0")
    return frame


def _check_decoder(path: Path, header: Dataset) -> None:
    from pydicom.pixels import get_decoder

    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        raise BadImage(path, "is DICOM that does not say how it is stored (no Transfer Syntax)")
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise BadImage(path, f"is stored in a way that is not read ({syntax.name})") from None
    if not available:
        raise MissingExtra(f"{path} is compressed as {syntax.name}, which needs a decoder", EXTRA)


def _check_complete(path: Path, header: Dataset, file: BinaryIO) -> None:
    """Check the lengths of the compressed parts, since decoders fill missing data with gray."""
    if not header.file_meta.TransferSyntaxUID.is_encapsulated:
        return  # decoding notices missing values
    here, size = file.tell(), file.seek(0, 2)
    file.seek(here + 12)  # tag, OB, two empty bytes, an open length
    while len(start := file.read(8)) == 8 and start[:4] == b"\xfe\xff\x00\xe0":
        end = file.tell() + int.from_bytes(start[4:], "little")
        if end > size:
            raise BadImage(path, f"is cut short ({end - size:,} bytes are missing)")
        file.seek(end)


def _first(value: Any, default: Any = None) -> Any:
    """The first of one or several numbers; the default for none."""
    from pydicom.multival import MultiValue

    if isinstance(value, MultiValue | list | tuple):
        value = value[0] if len(value) else None
    return default if value is None or value == "" else float(value)
