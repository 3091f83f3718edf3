"""The image files behind `images=`, and the folder that those of `input=` lie in."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune.data.decoding import containers
from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.errors import FinetuneError

LISTS = (".csv", ".tsv", ".txt", ".gz")
"""Endings of files that list images."""


def image_files(value: Any, argument: str = "input") -> list[Path]:
    """The images behind `images=`, or another argument: all below a folder, a single file, or a list of files.

    Raises:
        FinetuneError: nothing there, or a folder without images.
    """
    paths: list[Path] = []
    for item in value if isinstance(value, list) else [value]:
        path = Path(str(item))
        if path.is_dir():
            files = [p for p in files_below(path) if p.suffix.lower() in IMAGE_SUFFIXES]
            if not files:
                kinds = " ".join(sorted(IMAGE_SUFFIXES))
                raise FinetuneError(f"{argument}={path} holds no images. Looked below it for {kinds}.")
            paths += files
        elif path.exists() or ((member := containers.member(path)) is not None and member.file.exists()):
            paths.append(path)
        else:
            raise FinetuneError(f"{argument}={path} does not exist. Name a folder or an image.")
    if not paths:
        raise FinetuneError(f"{argument}={value} names nothing. Name a folder or an image, or several: [a.png,b.png].")
    return paths


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the order of their paths; links to folders are not followed."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise FinetuneError(f"folder {folder} cannot be listed: {error.strerror}.") from None
    for name in names:
        path = folder / name
        if path.is_dir():
            if not path.is_symlink():
                yield from files_below(path)
        elif path.is_file():
            yield path


def common_folder(value: Any, root: str | None = None) -> Path:
    """The folder that all images of `input=` lie below, absolute: the folder itself, or that of the files; of a list
    of paths `root`, or the folder of the list."""
    items = [str(item) for item in (value if isinstance(value, list) else [value])]
    return Path(os.path.commonpath([os.path.abspath(_folder_of(item, root)) for item in items]))


def _folder_of(item: str, root: str | None) -> Path | str:
    path = Path(item)
    if item == "-" or (path.is_file() and path.suffix.lower() in LISTS):
        return root or (Path() if item == "-" else path.parent)
    if path.is_dir():
        return path
    if not path.exists() and glob.has_magic(item):
        while glob.has_magic(str(path)):
            path = path.parent
        return path
    if containers.member(item) is None and containers.is_array_file(item.split("::")[0]):
        return path  # FILE.npz::KEY, below which its images are numbers
    return path.parent if containers.member(item) is not None else Path(item.split("::")[0]).parent
