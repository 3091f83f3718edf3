"""Images that lie together in one array: `FILE.npz::KEY/INDEX` and `FILE.h5::KEY/INDEX`, INDEX counted from 0.

A table may have such a path in place of a file's path. `FILE::frame/INDEX` is a frame of a DICOM file.
"""

from __future__ import annotations

import os
import re
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from finetune.errors import BadImage, MissingExtra

NPZ, H5 = (".npz",), (".h5", ".hdf5")
MAX_OPEN = 4  # arrays held open per process: train, validation and test of one set, and one more

_path = lru_cache(64)(Path)  # of the one container that 100,000 images name
_FORM = re.compile(r"(?s)(.+)::(.+)/(\d+)")
_arrays: OrderedDict[tuple[object, ...], Any] = OrderedDict()
_lock = threading.Lock()


class Member(NamedTuple):
    """One image of a container."""

    file: Path
    """The container."""
    key: str
    """Name of the array in it, or `frame`."""
    number: int
    """Index of the image."""

    @property
    def is_frame(self) -> bool:
        """Whether it is a frame of a DICOM file, which decoding/dicom.py reads."""
        return not is_array_file(self.file)

    @property
    def path(self) -> str:
        """The path in its written form."""
        return f"{self.file}::{self.key}/{self.number}"


def member(path: str | os.PathLike[str]) -> Member | None:
    """The parts of a path of the form FILE::KEY/INDEX; None for a plain file's."""
    text = os.fspath(path)
    if "::" not in text:
        return None
    match = _FORM.fullmatch(text)
    if match is None or not (is_array_file(match[1]) or match[2] == "frame"):
        return None  # a file whose name happens to hold ::
    return Member(_path(match[1]), match[2], int(match[3]))


def is_array_file(file: str | os.PathLike[str]) -> bool:
    """Whether a file holds arrays, by its name."""
    return os.fspath(file).lower().endswith((*NPZ, *H5))


def length(file: Path, key: str) -> int:
    """How many images the array has; only its header is read.

    Raises:
        BadImage: a file or an array that cannot be read.
    """
    return int(_shape(_array_of(file, key))[0])


def size(member: Member) -> tuple[int, int]:  # -> (H, W)
    """Of one image, by its array's header alone.

    Raises:
        BadImage: a file or an array that cannot be read.
    """
    shape = _shape(_array_of(member.file, member.key))
    if len(shape) not in (3, 4):
        raise BadImage(member.path, f"has the shape {shape}; wanted is (N, H, W) or (N, H, W, channels)")
    return int(shape[1]), int(shape[2])


def read(member: Member) -> np.ndarray:  # -> uint8 or uint16 (H, W), or (H, W, 2, 3 or 4)
    """One image. An .npz array is decompressed once per process, or mapped where it is stored uncompressed.

    Raises:
        BadImage: a file, array, index or type of values that cannot be read.
    """
    array = _array_of(member.file, member.key)
    shape, dtype = _shape(array), array.dtype
    if dtype not in (np.uint8, np.uint16, np.bool_):
        raise BadImage(member.path, f"holds {dtype} values, which have no fixed range: save it as uint8 or uint16")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 2, 3, 4)) or 0 in shape[1:]:
        raise BadImage(member.path, f"has the shape {shape}; wanted is (N, H, W) or (N, H, W, channels)")
    if member.number >= shape[0]:
        raise BadImage(member.path, f"is missing: {member.key} has {shape[0]:,} images, counted from 0")
    image = np.asarray(_values(array)[member.number])
    image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    return image * np.uint8(255) if dtype == np.bool_ else image


def state(file: str | os.PathLike[str]) -> str:
    """Size and times of a file as text, which changes whenever its content does."""
    try:
        info = os.stat(file)
        return f"{info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"
    except OSError as error:
        return f"error {error.errno}"


@dataclass
class _Packed:
    """An .npz array: only its header is read, values are decompressed at first use."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    values: np.ndarray | None = None


def _shape(array: Any) -> tuple[int, ...]:
    return tuple(array.shape)


def _values(array: Any) -> Any:
    if not isinstance(array, _Packed):
        return array
    with _lock:  # or each thread would decompress it
        if array.values is None:
            array.values = _load_npz(array.file, array.key)
        return array.values


def _array_of(file: Path, key: str) -> Any:
    """The array of a file, opened once while it is in use and does not change."""
    is_h5 = file.suffix.lower() in H5
    # An open HDF5 file must not be shared with a forked worker, so the process is part of the name.
    name = (str(file), key, state(file), os.getpid() if is_h5 else 0)
    with _lock:
        if name in _arrays:
            _arrays.move_to_end(name)
            return _arrays[name]
        if not file.is_file():
            raise BadImage(f"{file}::{key}", f"is missing: there is no file {file.name}")
        array = _open_h5(file, key) if is_h5 else _open_npz(file, key)
        if not _shape(array):
            raise BadImage(f"{file}::{key}", "is a single number, not an array of images")
        _arrays[name] = array
        while len(_arrays) > MAX_OPEN:
            _arrays.popitem(last=False)
        return array


def _open_npz(file: Path, key: str) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if key not in names:
                raise BadImage(f"{file}::{key}", f"is missing: the file has the arrays {', '.join(names) or '(none)'}")
            info = archive.getinfo(f"{key}.npy")
            with archive.open(info) as stream:
                shape, fortran, dtype = _header(stream)
                offset = stream.tell()
        if dtype.hasobject:
            raise BadImage(f"{file}::{key}", "holds Python objects, which are not read")
        if info.compress_type != zipfile.ZIP_STORED:
            return _Packed(file, key, shape, dtype)
        with file.open("rb") as raw:
            raw.seek(info.header_offset + 26)
            extra = sum(int.from_bytes(raw.read(2), "little") for _ in range(2))  # lengths of name and extra field
        start = info.header_offset + 30 + extra + offset
        order: Any = "F" if fortran else "C"
        # A plain view: memmap's own indexing is slow.
        return np.asarray(np.memmap(file, dtype, "r", start, shape, order))
    except BadImage:
        raise
    except Exception as error:  # zipfile and numpy raise nearly anything on damaged files
        raise _damaged(file, key, error) from None


def _load_npz(file: Path, key: str) -> np.ndarray:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return archive[key]
    except MemoryError:
        raise BadImage(f"{file}::{key}", "does not fit into memory") from None
    except Exception as error:
        raise _damaged(file, key, error) from None


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


def _open_h5(file: Path, key: str) -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingExtra(f"{file.name} is HDF5, which needs h5py", "h5") from None
    try:
        opened = h5py.File(file, "r", locking=False)
        if key not in opened:
            names = ", ".join(opened) or "(none)"
            opened.close()
            raise BadImage(f"{file}::{key}", f"is missing: the file has the arrays {names}")
        if not isinstance(opened[key], h5py.Dataset):
            raise BadImage(f"{file}::{key}", f"is a group, which has {', '.join(opened[key]) or 'nothing in it'}")
        return opened[key]
    except BadImage:
        raise
    except Exception as error:
        raise _damaged(file, key, error) from None


def _damaged(file: Path, key: str, error: Exception) -> BadImage:
    return BadImage(f"{file}::{key}", f"is damaged or cut short ({str(error) or type(error).__name__})")
