"""Boxes around findings as text in one metadata column of the sample table: nothing learns from them, heat maps
are held against them. The column tells the labels, so neither subgroups nor the audit read it.

`Pneumonia 264 152 213 379; Pneumonia 562 152 256 453`: finding, left, top, width and height in pixels of the picture as
it is stored (before any resizing), boxes parted by `; `. An empty text means that none was drawn; in NIH ChestX-ray14
few pictures were looked at for boxes at all.
"""

from __future__ import annotations

from collections.abc import Iterable

from finetune.errors import FinetuneError

COLUMN = "boxes"
"""Name of the metadata column."""

Box = tuple[str, float, float, float, float]
"""finding, left, top, width, height"""


def to_text(boxes: Iterable[Box]) -> str:
    """Boxes as the text of a cell."""
    return "; ".join(f"{name} " + " ".join(f"{number:.10g}" for number in numbers) for name, *numbers in boxes)


def from_text(text: object) -> list[Box]:
    """The boxes of a cell; none where it is missing, as in the rows of a joint table whose own set has no boxes.

    Raises:
        FinetuneError: text that `to_text` did not write.
    """
    boxes: list[Box] = []
    if not isinstance(text, str):
        return boxes
    for part in text.split(";") if text.strip() else []:
        name, *numbers = part.strip().rsplit(" ", 4)
        try:
            left, top, width, height = map(float, numbers)
        except ValueError:
            raise FinetuneError(f"{part.strip()!r} is not a box: FINDING LEFT TOP WIDTH HEIGHT.") from None
        boxes.append((name, left, top, width, height))
    return boxes
