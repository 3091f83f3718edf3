"""Rows of two tables that are of the same image, where one table has whole paths and the other names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np

from finetune.errors import FinetuneError

MATCHING_RULES: dict[str, Callable[[str], str]] = {
    "": lambda path: path,
    "the end of their paths": lambda path: PurePosixPath(path).name,
    "their file names": lambda path: PurePosixPath(path).name,
    "their file names without the ending": lambda path: PurePosixPath(path).stem,
}
"""Rules by which images are matched, the strictest first -> the key of a path that is compared first."""


def match_images(images: Sequence[str], known: Sequence[str]) -> tuple[np.ndarray, str]:
    """For each of `images` (N,) its row in `known`, -1 for none; and the name of the rule, blank where names are equal.

    The first rule by which any two images match applies to the whole tables.

    Raises:
        FinetuneError: an image matches two.
    """
    images, known = ([name.strip().replace("\\", "/") for name in names] for names in (images, known))
    for rule, key in MATCHING_RULES.items():
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(known):
            rows.setdefault(key(name), []).append(row)
        matches = np.full(len(images), -1)
        image_of_row: dict[int, int] = {}
        for number, name in enumerate(images):
            candidates = rows.get(key(name), [])
            if rule == "the end of their paths":
                candidates = [row for row in candidates if is_path_end(name, known[row])]
            if len(candidates) > 1:
                raise FinetuneError(
                    f"{name} of predictions may be {known[candidates[0]]} or {known[candidates[1]]} of labels. "
                    "Give both tables the same paths."
                )
            if candidates:
                if (other := image_of_row.setdefault(candidates[0], number)) != number:
                    raise FinetuneError(
                        f"{known[candidates[0]]} of labels may be {images[other]} or {name} of predictions. "
                        "Give both tables the same paths."
                    )
                matches[number] = candidates[0]
        if (matches >= 0).any():
            return matches, rule
    return np.full(len(images), -1), ""


def is_path_end(path: str, other: str) -> bool:
    """Whether one path is the end of the other, in whole names."""
    short, long = sorted((PurePosixPath(path).parts, PurePosixPath(other).parts), key=len)
    return long[len(long) - len(short) :] == short
