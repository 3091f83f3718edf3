"""What a data set says of places in an image: boxes and masks, kept beside the metadata of the sample table.

`SampleTable.annotations` maps a name to a sequence of one entry per row: Boxes, MaskFile, or None where the data set
says nothing of that image. Nothing that reads metadata (subgroups, the audit, the predictions table) sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.data.regions import Layer, MaskFile, Regions
from finetune.errors import FinetuneError

__all__ = ["BOXES", "Annotation", "Annotations", "Box", "Boxes", "Layer", "MaskFile", "Regions", "joined_content"]

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


Annotation = Boxes | MaskFile
Annotations = Sequence[Boxes | None] | Sequence[MaskFile | None]
"""One entry per row of the table, all of one type."""


def joined_content(annotations: Annotations) -> str:
    """The content of all rows, for the table's hash."""
    return "\x1f".join("\x00" if entry is None else entry.content() for entry in annotations)
