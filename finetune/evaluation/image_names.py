"""Which rows of two tables speak of the same image, where one has whole paths and the other names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np

from finetune.errors import FinetuneError

WAYS: dict[str, Callable[[str], str]] = {
    "": lambda path: path,
    "the end of their paths": lambda path: PurePosixPath(path).name,
    "their file names": lambda path: PurePosixPath(path).name,
    "their file names without the ending": lambda path: PurePosixPath(path).stem,
}
"""How images are matched, the strictest first -> what is compared first of a path."""


def match_images(asked: Sequence[str], known: Sequence[str]) -> tuple[np.ndarray, str]:
    """For each image of `asked` the row of `known` that is the same, -1 for none (N,); and by what they were matched,
    in words, blank where the names are equal. The first way by which any two match is that of the whole tables.

    Raises:
        FinetuneError: an image that matches two.
    """
    asked, known = ([name.strip().replace("\\", "/") for name in names] for names in (asked, known))
    for way, key in WAYS.items():
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(known):
            rows.setdefault(key(name), []).append(row)
        found = np.full(len(asked), -1)
        owner: dict[int, int] = {}
        for number, name in enumerate(asked):
            near = rows.get(key(name), [])
            if way == "the end of their paths":
                near = [row for row in near if is_end(name, known[row])]
            if len(near) > 1:
                raise FinetuneError(
                    f"{name} of predictions may be {known[near[0]]} or {known[near[1]]} of labels. Give both tables "
                    "the same paths."
                )
            if near:
                if (other := owner.setdefault(near[0], number)) != number:
                    raise FinetuneError(
                        f"{known[near[0]]} of labels may be {asked[other]} or {name} of predictions. Give both tables "
                        "the same paths."
                    )
                found[number] = near[0]
        if (found >= 0).any():
            return found, way
    return np.full(len(asked), -1), ""


def is_end(one: str, other: str) -> bool:
    """Whether one path is the end of the other, in whole names."""
    short, long = sorted((PurePosixPath(one).parts, PurePosixPath(other).parts), key=len)
    return long[len(long) - len(short) :] == short
