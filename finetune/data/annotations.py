"""What a data set says of places in an image: boxes and masks, kept beside the metadata of the sample table.

`SampleTable.annotations` maps a name to a sequence of one entry per row: Boxes, MaskFile, or None where the data set
says nothing of that image. Nothing that reads metadata (subgroups, the audit, the predictions table) sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.data.decoding import containers
from finetune.errors import BadImage, FinetuneError

BOXES = "boxes"
"""Name of the annotation that the chest X-ray sets give."""

Box = tuple[str, float, float, float, float]
"""label, left, top, width, height: how listings write a box"""


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of one image.

    Raises:
        FinetuneError: corners of another shape, not finite, or a right or bottom below its left or top.
    """

    corners: np.ndarray
    """(N, 4) float64 left, top, right, bottom in pixels of the stored image, before any resizing."""
    labels: tuple[str, ...]
    """What is in each box."""
    complete: bool = True
    """Whether everything of these labels in the image has a box. False: without a box, nothing is known. It is a fact
    about the data set and no part of the table's hash."""
    ignored: tuple[bool, ...] = ()
    """Of each box, whether it is no target: a crowd, or what is too difficult. What lies there is neither right nor
    wrong, in training and in scores. Empty: every box is a target."""

    def __post_init__(self) -> None:
        corners = np.array(self.corners, np.float64).reshape(-1, 4)
        corners.flags.writeable = False
        object.__setattr__(self, "corners", corners)
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "ignored", tuple(map(bool, self.ignored)) or (False,) * len(self.labels))
        if len(corners) != len(self.labels):
            raise FinetuneError(f"{len(corners)} boxes have {len(self.labels)} labels; each needs one.")
        if len(corners) != len(self.ignored):
            raise FinetuneError(f"{len(corners)} boxes have {len(self.ignored)} marks in `ignored`; each needs one.")
        wrong = ~np.isfinite(corners).all(axis=1) | (corners[:, 2:] < corners[:, :2]).any(axis=1)
        if wrong.any():
            raise FinetuneError(
                f"{corners[wrong][0].tolist()} is no box: it needs left, top, right, bottom, four finite numbers, the "
                "last two not below the first two."
            )

    @classmethod
    def from_sides(cls, boxes: Iterable[Box], *, complete: bool = True) -> Boxes:
        """From label, left, top, width and height of each."""
        boxes = list(boxes)
        corners = [(left, top, left + width, top + height) for _, left, top, width, height in boxes]
        return cls(np.array(corners, np.float64), tuple(label for label, *_ in boxes), complete)

    def sides(self) -> list[Box]:
        """The inverse of `from_sides`."""
        return [
            (label, left, top, right - left, bottom - top)
            for label, (left, top, right, bottom) in zip(self.labels, self.corners.tolist(), strict=True)
        ]

    @property
    def target_labels(self) -> list[str]:
        """The labels of the boxes that are targets."""
        return [label for label, ignored in zip(self.labels, self.ignored, strict=True) if not ignored]

    def __len__(self) -> int:
        return len(self.labels)

    def content(self) -> str:
        """What the table's hash covers: the text that version 0.1.0 kept in a metadata column, so that its runs
        resume."""
        if not self.labels:  # nearly every image
            return ""
        marks = ("", " ignored")
        return "; ".join(
            f"{label} " + " ".join(f"{side:.10g}" for side in sides) + marks[ignored]
            for (label, *sides), ignored in zip(self.sides(), self.ignored, strict=True)
        )


@dataclass(frozen=True)
class MaskFile:
    """The mask of one image, decoded when asked for: an image file, or runs of pixels (RLE) with their size.

    Raises:
        FinetuneError: neither of them is given, both are, or `rle` comes without `size`.
    """

    path: str | None = None
    """Relative to the table's root and written with /; gray, palette or 1-bit. The pixel values are class numbers, 0 is
    the background. FILE.npz::KEY/INDEX is an array in a container."""
    rle: str | None = None
    """`start length start length ...`: pixels are numbered from 1, down the columns first. Blank: nothing is marked."""
    size: tuple[int, int] | None = None
    """Height and width of the stored image; needed with `rle`."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.rle is None) or (self.rle is not None and self.size is None):
            raise FinetuneError(f"{self}: a mask needs either path, or rle and size=(height, width).")

    def read(self, root: Path) -> np.ndarray:  # -> uint8 (H, W)
        """The mask's pixels.

        Raises:
            BadImage: the file cannot be read, or is no mask of 8 bits or fewer.
            FinetuneError: runs that do not fit the size.
        """
        if self.path is not None:
            return _read_mask(root / self.path)
        assert self.rle is not None  # checked above
        assert self.size is not None
        return decode_rle(self.rle, *self.size)

    def content(self) -> str:
        """What the table's hash covers; of a file its path, as of images."""
        return f"mask\x1d{self.path or ''}\x1d{self.rle or ''}\x1d{self.size or ''}"


Annotation = Boxes | MaskFile
Annotations = Sequence[Boxes | None] | Sequence[MaskFile | None]
"""One entry per row of the table, all of one type."""


def decode_rle(rle: str, height: int, width: int) -> np.ndarray:  # -> uint8 (H, W) of 0 and 1
    """Pixels from `start length ...`, numbered from 1 down the columns first."""
    try:
        numbers = np.array(rle.split(), np.int64).reshape(-1, 2)
    except ValueError:
        raise FinetuneError(f"rle={rle[:40]!r} must be pairs of whole numbers: start length start length ...") from None
    mask = np.zeros(height * width, np.uint8)
    for start, length in numbers.tolist():
        if start < 1 or length < 0 or start - 1 + length > mask.size:
            raise FinetuneError(f"rle: the run of {length} pixels from {start} lies outside {height} x {width} pixels.")
        mask[start - 1 : start - 1 + length] = 1
    return np.ascontiguousarray(mask.reshape(width, height).T)


def _read_mask(file: Path) -> np.ndarray:
    if (member := containers.member(file)) is not None:
        mask = containers.read(member)
    else:
        try:
            with Image.open(file) as opened:
                if opened.mode not in ("1", "L", "P"):
                    raise BadImage(file, f"is no mask: it must be gray, palette or 1-bit, not of mode {opened.mode}")
                mask = np.array(opened).astype(np.uint8)  # a palette's numbers, not its colours
        except (OSError, SyntaxError) as error:  # the last: Pillow's error for a broken header
            raise BadImage(file, f"cannot be read as a mask: {error}") from None
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise BadImage(file, f"is no mask: it must be uint8 (H, W), not {mask.dtype} {mask.shape}")
    return mask


def joined_content(annotations: Annotations) -> str:
    """The content of all rows, for the table's hash."""
    return "\x1f".join("\x00" if entry is None else entry.content() for entry in annotations)
