"""The mask and the boxes of a row, where they are targets: decoded and placed in the square that is cached."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from finetune.data.annotations import Boxes
from finetune.data.cache.mask_cache import MaskCache
from finetune.data.table import SampleTable
from finetune.data.targets import box_labels
from finetune.placement import PlacedBoxes
from finetune.preprocessing import Preprocessing

MIN_VISIBLE = 0.2
"""Part of a box's area that must lie inside the square after augmentation and cutting. With less of it in view the box
is no target, since nobody could say what is in it; what is left of it counts as background."""


@dataclass
class PlacedTargets:
    """Mask and boxes of one row, in the cached square."""

    mask: np.ndarray | None
    """uint8 (S, S); all 0 where the mask is not known. None where no target is a mask."""
    boxes: np.ndarray | None
    """(N, 4) left, top, right, bottom; None where no target is boxes."""


class AnnotatedTargets:
    """The targets of a table that are masks or boxes.

    Args:
        sizes: (N, 2) height and width of every stored image.
        masks: those of the table; None decodes each when it is needed.
    """

    def __init__(
        self,
        table: SampleTable,
        preprocessing: Preprocessing,
        sizes: np.ndarray,
        masks: MaskCache | None = None,
    ):
        names = {target_type: name for name, target_type in table.other_targets.items()}
        if masks is None and "mask" in names:
            masks = MaskCache(table, preprocessing, sizes)
        self.masks = masks if "mask" in names else None
        self.boxes = table.annotations[names["boxes"]] if "boxes" in names else None
        self.labels = box_labels(self.boxes or ())
        """Names of the labels in a batch's `box_labels`."""
        self._number = {label: number for number, label in enumerate(self.labels)}
        self.preprocessing, self.sizes = preprocessing, sizes

    @classmethod
    def from_table(
        cls, table: SampleTable, preprocessing: Preprocessing, sizes: np.ndarray, masks: MaskCache | None = None
    ) -> AnnotatedTargets | None:
        """None where the table has no such targets."""
        annotated = {"mask", "boxes"} & set(table.other_targets.values())
        return cls(table, preprocessing, sizes, masks) if annotated else None

    def cached(self, row: int) -> PlacedTargets:
        """In pixels of the cached square."""
        boxes = None
        if self.boxes is not None:
            placement = self.preprocessing.cached_placement(*map(int, self.sizes[row]))
            boxes_of_row = self.boxes[row]
            corners = boxes_of_row.corners if isinstance(boxes_of_row, Boxes) else np.zeros((0, 4))
            boxes = placement.to_square(corners.reshape(-1, 2, 2)).reshape(-1, 4)
        return PlacedTargets(None if self.masks is None else self.masks[row], boxes)

    def batch(
        self, rows: list[int], masks: list[np.ndarray], boxes: list[PlacedBoxes]
    ) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """mask (n, S, S) uint8, S = image_size, and mask_known (n, K): whether anything is known of a region; boxes,
        box_labels and box_visible, lists of n tensors (M, 4), (M,) and (M,), ignored_boxes, a list of n tensors (K, 4)
        of what is no target, and boxes_known (n,): what lies outside is cut, and boxes of which less than MIN_VISIBLE
        is inside are left out."""
        out: dict[str, torch.Tensor | list[torch.Tensor]] = {}
        if self.masks is not None:
            out["mask"] = torch.as_tensor(np.stack(masks))
            out["mask_known"] = torch.as_tensor(self.masks.known[rows])
        if self.boxes is not None:
            parts = [self._boxes_of(row, placed) for row, placed in zip(rows, boxes, strict=True)]
            names = ("boxes", "box_labels", "box_visible", "ignored_boxes")
            out |= {name: [torch.as_tensor(part[i]) for part in parts] for i, name in enumerate(names)}
            out["boxes_known"] = torch.tensor([self.boxes[row] is not None for row in rows])
        return out

    def _boxes_of(self, row: int, placed: PlacedBoxes) -> tuple[np.ndarray, ...]:
        """Corners (M, 4), numbers of the labels (M,) and visible parts (M,) of the targets; corners (K, 4) of what is
        ignored, however little of it is seen."""
        entry = self.boxes[row] if self.boxes is not None else None
        labels, marks = (entry.labels, entry.ignored) if isinstance(entry, Boxes) else ((), ())
        corners, visible = placed.corners.astype(np.float32), placed.visible[placed.numbers].astype(np.float32)
        ignored = np.array(marks, bool)[placed.numbers]
        chosen = ~ignored & (visible >= MIN_VISIBLE)
        numbers = [self._number[labels[number]] for number in placed.numbers[chosen].tolist()]
        return corners[chosen], np.array(numbers, np.int64), visible[chosen], corners[ignored]
