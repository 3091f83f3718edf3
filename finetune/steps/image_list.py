"""The images of `input=` in their order, in a file without a name, so that millions of them need no memory."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import sys
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

from finetune.data.decoding import containers, zips
from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.data.sources.listing import need_columns, opened_table, separator_of
from finetune.errors import BadImage, FinetuneError
from finetune.steps.image_files import files_below

STDIN = "-"
TABLES, TEXTS = (".csv", ".tsv", ".csv.gz", ".tsv.gz"), (".txt",)
PATH = "path"
"""Column of the paths in a table of images."""
KINDS = " ".join(sorted(IMAGE_SUFFIXES))
WAYS = (
    "Name an image, a folder, a pattern such as 'photos/*.png', a table (.csv) with a column path, a list (.txt), "
    "FILE.npz::KEY, a .zip, or - for paths from stdin."
)


class Entry(NamedTuple):
    """An image of the list."""

    name: str
    """Its path as the user's list has it, or as it was found."""
    base: str
    """The folder that a relative name starts from; empty for the working folder."""
    cells: dict[str, str]
    """What a table says of it besides."""


@dataclass
class ImageList:
    """The images of `input=`, read back in chunks."""

    file: IO[bytes]
    starts: array[int]
    """Where each chunk begins in the file, and where the last one ends."""
    chunk: int
    """Images per chunk; the last may have fewer."""
    root: str | None
    """The folder that holds all images, if one was named."""
    columns: list[str] = field(default_factory=list)
    """Columns of tables that are carried into the output."""
    n: int = 0
    others: int = 0
    """Files in folders and zips that are no images by name."""
    digest: str = ""
    """A hash of all entries and of the state of the containers they lie in."""

    def __len__(self) -> int:
        return self.n

    def __enter__(self) -> ImageList:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def fill(self, items: list[str]) -> None:
        """Write all images behind these words of the user's."""
        digest, end = hashlib.sha256(), 0
        for item in items:
            for entry in _entries(item, self):
                if self.n % self.chunk == 0:
                    self.starts.append(end)
                line = json.dumps(entry).encode("ascii") + b"\n"
                self.file.write(line)
                digest.update(line)
                self.n, end = self.n + 1, end + len(line)
            digest.update(_container_state(item).encode())
        self.file.flush()
        self.starts.append(end)
        self.digest = digest.hexdigest()

    @property
    def n_chunks(self) -> int:
        return len(self.starts) - 1

    def entries(self, number: int) -> list[Entry]:
        """Those of a chunk."""
        start, end = self.starts[number : number + 2]
        content = os.pread(self.file.fileno(), end - start, start)
        return [Entry(*json.loads(line)) for line in content.splitlines()]

    def images(self, entries: list[Entry]) -> list[Path | BadImage]:
        """What is opened for each entry: its path, or an error for one that leads out of the root."""
        root = None if self.root is None else os.path.realpath(self.root)
        images: list[Path | BadImage] = []
        for entry in entries:
            path = os.path.join(entry.base, entry.name) if entry.base else entry.name
            real = None if root is None else os.path.realpath(path.split("::")[0])
            outside = root is not None and real is not None and os.path.commonpath([root, real]) != root
            images.append(BadImage(entry.name, f"lies outside of root={self.root}") if outside else Path(path))
        return images


def read_list(value: Any, root: str | None, chunk: int) -> ImageList:
    """All images behind `input=`, in their order.

    Args:
        value: a word of the user's, or several.
        root: the folder that relative paths in lists start from and that no path may leave; by default that of the list
            itself, of stdin the working folder, and absolute paths lead anywhere.

    Raises:
        FinetuneError: nothing there, a folder without images, or a list that cannot be read.
    """
    if root is not None and not Path(root).is_dir():
        raise FinetuneError(f"root={root} is no folder. Name the folder that all images lie in.")
    images = ImageList(tempfile.TemporaryFile(), array("q"), chunk, root)  # noqa: SIM115 (it closes it)
    try:
        images.fill([str(item) for item in (value if isinstance(value, list) else [value])])
        if not images.n:
            raise FinetuneError(f"input={value} names nothing. {WAYS}")
    except BaseException:
        images.file.close()
        raise
    return images


def _entries(item: str, images: ImageList) -> Iterator[Entry]:
    """The images of one word of `input=`."""
    path, kind = Path(item), item.lower()
    before = images.n
    if item == STDIN:
        yield from _lines(sys.stdin, images.root or "")
    elif path.is_dir():
        for file in files_below(path):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                yield Entry(str(file), "", {})
            elif not file.name.startswith("."):
                images.others += 1
        if images.n == before:
            raise FinetuneError(
                f"input={item} holds no images. Looked below it for {' '.join(sorted(IMAGE_SUFFIXES))}."
            )
    elif path.is_file() and kind.endswith(TABLES):
        yield from _table(path, images)
    elif path.is_file() and kind.endswith(TEXTS):
        with path.open(encoding="utf-8-sig") as text, _as_text(path):
            yield from _lines(text, images.root or str(path.parent))
    elif path.is_file() and kind.endswith(zips.ZIP):
        yield from _zip(path, images)
    elif path.is_file() and containers.is_array_file(path):
        raise FinetuneError(f"input={item} is a file of arrays. Name the one that holds the images: {item}::KEY.")
    elif path.exists():
        yield Entry(item, "", {})
    elif "::" in item:
        yield from _members(item)
    elif glob.has_magic(item):
        matches = sorted(glob.glob(item, recursive=True))
        yield from (entry for match in matches for entry in _match(match, images))
        if images.n == before:
            raise FinetuneError(f"input={item} matches no image. Put the pattern in quotes; ** stands for any folders.")
    else:
        raise FinetuneError(f"input={item} does not exist. {WAYS}")


def _match(match: str, images: ImageList) -> Iterator[Entry]:
    """A file that a pattern matches; folders are not entered, for which there is **."""
    if os.path.isfile(match):
        if match.lower().endswith(IMAGE_SUFFIXES):
            yield Entry(match, "", {})
        else:
            images.others += 1


def _members(item: str) -> Iterator[Entry]:
    """FILE.npz::KEY/INDEX, a frame of a DICOM file, a file in a zip, or all images of FILE.npz::KEY."""
    member, zipped = containers.member(item), zips.member(item)
    file, _, key = item.partition("::")
    if member is None and zipped is None and containers.is_array_file(file) and Path(file).exists():
        try:
            n = containers.length(Path(file), key)
        except BadImage as error:
            raise FinetuneError(f"input={item} {error.reason}.") from None
        yield from (Entry(f"{item}/{number}", "", {}) for number in range(n))
        return
    container = member.file if member is not None else zipped.file if zipped is not None else None
    if container is None or not container.exists():
        raise FinetuneError(f"input={item} does not exist. {WAYS}")
    yield Entry(item, "", {})


def _zip(path: Path, images: ImageList) -> Iterator[Entry]:
    before = images.n
    try:
        for name in zips.names(path):
            base = name.rpartition("/")[2]
            if name.lower().endswith(IMAGE_SUFFIXES) and not base.startswith("."):
                yield Entry(f"{path}::{name}", "", {})
            else:
                images.others += not base.startswith(".")
    except BadImage as error:
        raise FinetuneError(f"input={path} {error.reason}.") from None
    if images.n == before:
        raise FinetuneError(f"input={path} holds no images. Looked in it for {KINDS}.")


def _lines(file: TextIO, base: str) -> Iterator[Entry]:
    """A path per line; blank lines are left out."""
    yield from (Entry(path, base, {}) for line in file if (path := line.rstrip("\r\n").strip()))


def _table(table: Path, images: ImageList) -> Iterator[Entry]:
    """The column `path` of a table; its other columns are carried along."""
    with opened_table(table) as file, _as_text(table):
        first = file.readline()
        separator = separator_of(table, first)
        header = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
        need_columns(header, {PATH: PATH}, table)
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise FinetuneError(f"input={table} has the column {twice[0]!r} twice. Rename one of them.")
        at, base = header.index(PATH), images.root or str(table.parent)
        images.columns += [name for name in header if name not in ("", PATH, *images.columns)]  # "": an unnamed index
        for number, row in enumerate(csv.reader(file, delimiter=separator), start=2):
            if not row:
                continue
            if len(row) != len(header) or not row[at].strip():
                what = "no path" if len(row) == len(header) else f"{len(row)} cells for {len(header)} columns"
                raise FinetuneError(f"input={table}: row {number} has {what}.")
            cells = {name: cell for name, cell in zip(header, row, strict=True) if name not in ("", PATH)}
            yield Entry(row[at].strip(), base, cells)


@contextmanager
def _as_text(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise FinetuneError(f"input={path} is not UTF-8 ({error.reason}); save it in UTF-8.") from None
    except (OSError, EOFError, csv.Error) as error:
        raise FinetuneError(f"input={path} cannot be read: {error}.") from None


def _container_state(item: str) -> str:
    """Size and times of an array file or a zip: its images have no files of their own."""
    file = item.split("::")[0]
    return containers.state(file) if containers.is_array_file(file) or file.lower().endswith(zips.ZIP) else ""
