"""What sources share: read a table as text, list folders once, and say how many listed images are absent."""

from __future__ import annotations

import csv
import difflib
import gzip
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TextIO

import pandas as pd

from finetune.data.decoding import containers
from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.errors import BadImage, FinetuneError


def read_rows(table: Path, separator: str | None = None) -> pd.DataFrame:
    """Every cell of a CSV or TSV file as text, blanks as ""; row i of the frame is line i + 2 of a plain file.

    A .gz file is decompressed.
    """
    try:
        with opened_table(table) as file:
            first = file.readline()
        separator = separator or separator_of(table, first)
        header = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
        frame = pd.read_csv(
            table,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            na_filter=False,
            encoding="utf-8-sig",
            index_col=None,
        )
    except FileNotFoundError:
        raise FinetuneError(f"table {table} is missing.") from None
    except IsADirectoryError:
        raise FinetuneError(f"table {table} is a folder; name the CSV file in it.") from None
    except UnicodeDecodeError as error:
        raise FinetuneError(f"table {table} is not UTF-8 ({error.reason}); save it as CSV in UTF-8.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise FinetuneError(f"table {table} cannot be read as CSV: {error}") from None
    except (OSError, EOFError, zlib.error) as error:  # the last two: a damaged .gz
        raise FinetuneError(f"table {table} cannot be read: {error}") from None
    if not isinstance(frame.index, pd.RangeIndex):
        raise FinetuneError(f"table {table}: rows have more fields than the header's {len(header)} columns.")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise FinetuneError(f"table {table}: column name(s) {twice} appear twice in the header.")
    frame.columns = pd.Index([str(name).strip() for name in frame.columns])
    if frame.empty:
        raise FinetuneError(f"table {table} has a header but no rows.")
    return frame


def need_columns(columns: Iterable[object], required: dict[str, str], table: Path) -> None:
    """An error for the first wanted column (setting -> column) that is absent, with the nearest names first."""
    names = [str(name) for name in columns]
    for setting, column in required.items():
        if column not in names:
            lower = {name.lower(): name for name in names}
            near = [lower[n] for n in difflib.get_close_matches(column.lower(), lower, n=3)]
            listed = [*near, *(name for name in names if name not in near)]
            raise FinetuneError(f"{setting}={column} is not a column of {table}. It has: {', '.join(listed)}.")


def list_files(folder: Path) -> list[str]:
    """Names in a folder, sorted; empty when there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise FinetuneError(f"folder {folder} cannot be listed: {error}") from None


def below(root: Path, cells: Iterable[str], suffix: str = "") -> list[str]:
    """Paths as a table has them, with `suffix`, as they start from root: absolute ones below it lose its part."""
    prefixes = {folder.as_posix().rstrip("/") + "/" for folder in (root.absolute(), root.resolve())}
    paths = []
    for cell in cells:
        path = cell.strip().replace("\\", "/")
        path = next((path.removeprefix(p) for p in prefixes if path.startswith(p)), path) + suffix
        paths.append(str(PurePosixPath(path)) if "./" in path or "//" in path else path)
    return paths


def present(root: Path, paths: Sequence[str]) -> list[bool]:
    """Which of the relative paths exist: each folder is listed once, of containers each array's header is read once."""
    folders: dict[str, set[str]] = {}
    lengths: dict[tuple[Path, str], float] = {}

    def exists(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in folders:
            folders[folder] = set(list_files(root / folder))
        return name in folders[folder]

    def holds(member: containers.Member) -> bool:
        array = member.file, member.key
        if array not in lengths:
            lengths[array] = _length(root, member) if exists(member.file.as_posix()) else 0
        return member.number < lengths[array]

    members = (containers.member(path) for path in paths)
    return [exists(path) if member is None else holds(member) for path, member in zip(paths, members, strict=True)]


def _length(root: Path, member: containers.Member) -> float:
    """Images in a member's array; an unreadable one counts as present: decoding reports the reason."""
    if member.is_frame:
        return math.inf
    try:
        return containers.length(root / member.file, member.key)
    except BadImage as error:
        return 0 if error.reason.startswith("is missing") else math.inf


def absent_note(n_present: int, listed: int, root: Path) -> list[str]:
    """A note on how many listed images are absent, or none."""
    if n_present == listed:
        return []
    return [
        f"{listed - n_present:,} of {listed:,} listed images are absent under {root}; "
        f"continuing with the {n_present:,} present."
    ]


def shorten(items: Iterable[object], limit: int = 3) -> str:
    """The first few of many, for a message: a, b, c, ..."""
    items = list(items)
    return ", ".join(str(item) for item in items[:limit]) + (", ..." if len(items) > limit else "")


def by_stem(root: Path, folders: Iterable[str]) -> dict[str, str]:
    """Stem -> path relative to root, for every image directly in one of the folders; the first of a name counts."""
    where: dict[str, str] = {}
    for folder in folders:
        for name in list_files(root / folder):
            stem, dot, suffix = name.rpartition(".")
            if dot + suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                where.setdefault(stem, name if folder == "." else f"{folder}/{name}")
    return where


def opened_table(table: Path) -> TextIO:
    """A CSV or TSV file as text; a .gz file is decompressed."""
    if table.suffix.lower() == ".gz":
        return gzip.open(table, "rt", encoding="utf-8-sig", newline="")
    return table.open(encoding="utf-8-sig", newline="")


def separator_of(table: Path, header: str) -> str:
    """The separator of a table, by its ending or its first line."""
    if Path(table.name.removesuffix(".gz")).suffix.lower() in (".tsv", ".tab"):
        return "\t"
    return max(",;\t", key=header.count)  # ties go to the comma
