"""The image files behind `input=` and `images=`: folders, single files and members of archives."""

import os
from pathlib import Path
from typing import Any

from finetune.data.decoding import containers
from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.errors import FinetuneError


def image_files(value: Any, argument: str = "input") -> list[Path]:
    """The images behind `input=`, or another argument: all below a folder, a single file, or a list of files.

    Raises:
        FinetuneError: nothing there, or a folder without images.
    """
    paths: list[Path] = []
    for item in value if isinstance(value, list) else [value]:
        path = Path(str(item))
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
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


def common_folder(value: Any) -> Path:
    """The folder that all images of `input=` lie below, absolute: the folder itself, or that of the files."""
    items = [Path(str(item)) for item in (value if isinstance(value, list) else [value])]
    return Path(os.path.commonpath([os.path.abspath(item if item.is_dir() else item.parent) for item in items]))


def other_files(value: Any) -> int:
    """Number of files below the folders of `input=` that are no images; hidden files are ignored."""
    folders = [path for item in (value if isinstance(value, list) else [value]) if (path := Path(str(item))).is_dir()]
    below = (path for folder in folders for path in folder.rglob("*") if not path.name.startswith("."))
    return sum(path.suffix.lower() not in IMAGE_SUFFIXES and path.is_file() for path in below)
