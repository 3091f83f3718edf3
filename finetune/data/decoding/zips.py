"""Images in a zip file: `FILE.zip::NAME`, read where they lie; nothing is unpacked to the disk."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from finetune.data.decoding import containers
from finetune.errors import BadImage

ZIP = ".zip"
MAX_BYTES = 2**30  # of one file in it: a header may claim any size
MAX_OPEN = 4

_open: OrderedDict[tuple[str, str], zipfile.ZipFile] = OrderedDict()
_lock = threading.Lock()


class ZippedFile(NamedTuple):
    """One file in a zip."""

    file: Path
    """The zip."""
    name: str
    """Its name in the zip."""


def member(path: str | os.PathLike[str]) -> ZippedFile | None:
    """The parts of a path of the form FILE.zip::NAME; None for any other."""
    file, separator, name = os.fspath(path).partition(f"{ZIP}::")
    return ZippedFile(Path(file + ZIP), name) if separator and name else None


def names(file: Path) -> Iterator[str]:
    """The names of all files in a zip, in its order.

    Raises:
        BadImage: it cannot be read.
    """
    yield from (info.filename for info in _archive(file).infolist() if not info.is_dir())


def read(zipped: ZippedFile) -> io.BytesIO:
    """The bytes of a file in a zip; several threads may read at once.

    Raises:
        BadImage: the zip or the file in it is missing, damaged, encrypted or too large.
    """
    path, archive = f"{zipped.file}::{zipped.name}", _archive(zipped.file)
    try:
        info = archive.getinfo(zipped.name)
    except KeyError:
        raise BadImage(path, f"is missing: {zipped.file.name} has no such file") from None
    if info.file_size > MAX_BYTES:
        raise BadImage(path, f"claims {info.file_size / 1e9:.1f} GB, more than the {MAX_BYTES / 1e9:.1f} that are read")
    try:
        content = archive.read(info)
    except Exception as error:  # zipfile raises nearly anything on damaged files
        raise BadImage(path, f"is damaged, cut short or encrypted ({error})") from None
    if not content:
        raise BadImage(path, "is empty (0 bytes)")
    return io.BytesIO(content)


def _archive(file: Path) -> zipfile.ZipFile:
    """The zip, opened once while it is in use and does not change."""
    key = (str(file), containers.state(file))
    with _lock:
        if key not in _open:
            if not file.is_file():
                raise BadImage(file, "is missing")
            try:
                _open[key] = zipfile.ZipFile(file)
            except Exception as error:
                raise BadImage(file, f"is no zip file, or damaged ({error})") from None
            while len(_open) > MAX_OPEN:
                _open.popitem(last=False)  # closed with the last thread that reads from it
        _open.move_to_end(key)
        return _open[key]
