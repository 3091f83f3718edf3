"""The mask and the boxes of a row, where they are targets: decoded and placed in the square that is cached."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from finetune.data.annotations import Boxes, MaskFile
from finetune.data.table import SampleTable
from finetune.data.targets import box_labels
from finetune.errors import FinetuneError
from finetune.placement import PlacedBoxes
from finetune.preprocessing import Preprocessing


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
    """

    def __init__(self, table: SampleTable, preprocessing: Preprocessing, sizes: np.ndarray):
        names = {target_type: name for name, target_type in table.other_targets.items()}
        self.masks = table.annotations[names["mask"]] if "mask" in names else None
        self.boxes = table.annotations[names["boxes"]] if "boxes" in names else None
        self.labels = box_labels(self.boxes or ())
        """Names of the labels in a batch's `box_labels`."""
        self.root, self.preprocessing, self.sizes = table.root, preprocessing, sizes

    @classmethod
    def from_table(cls, table: SampleTable, preprocessing: Preprocessing, sizes: np.ndarray) -> AnnotatedTargets | None:
        """None where the table has no such targets."""
        annotated = {"mask", "boxes"} & set(table.other_targets.values())
        return cls(table, preprocessing, sizes) if annotated else None

    def cached(self, row: int) -> PlacedTargets:
        """In pixels of the cached square."""
        height, width = (int(side) for side in self.sizes[row])
        placement = self.preprocessing.cached_placement(height, width)
        mask = boxes = None
        if self.masks is not None:
            entry = self.masks[row]
            mask = np.zeros((placement.side, placement.side), np.uint8)
            if isinstance(entry, MaskFile):
                try:
                    mask = placement.mask_to_square(entry.read(self.root))
                except FinetuneError as error:
                    raise FinetuneError(f"the mask of row {row}, {entry}: {error}") from None
        if self.boxes is not None:
            boxes_of_row = self.boxes[row]
            corners = boxes_of_row.corners if isinstance(boxes_of_row, Boxes) else np.zeros((0, 4))
            boxes = placement.to_square(corners.reshape(-1, 2, 2)).reshape(-1, 4)
        return PlacedTargets(mask, boxes)

    def batch(
        self, rows: list[int], masks: list[np.ndarray], boxes: list[PlacedBoxes]
    ) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """mask (n, S, S) uint8 and mask_known (n,); boxes, box_labels and box_visible, lists of n tensors (M, 4), (M,)
        and (M,), and boxes_known (n,): S is image_size, what lies outside is cut."""
        out: dict[str, torch.Tensor | list[torch.Tensor]] = {}
        if self.masks is not None:
            out["mask"] = torch.as_tensor(np.stack(masks))
            out["mask_known"] = torch.tensor([self.masks[row] is not None for row in rows])
        if self.boxes is not None:
            numbers = [self._label_numbers(row)[placed.numbers] for row, placed in zip(rows, boxes, strict=True)]
            out["boxes"] = [torch.as_tensor(placed.corners.astype(np.float32)) for placed in boxes]
            out["box_labels"] = [torch.as_tensor(labels_of_row) for labels_of_row in numbers]
            out["box_visible"] = [
                torch.as_tensor(placed.visible[placed.numbers].astype(np.float32)) for placed in boxes
            ]
            out["boxes_known"] = torch.tensor([self.boxes[row] is not None for row in rows])
        return out

    def _label_numbers(self, row: int) -> np.ndarray:  # -> int64 (N,)
        entry = self.boxes[row] if self.boxes is not None else None
        labels = entry.labels if isinstance(entry, Boxes) else ()
        return np.array([self.labels.index(label) for label in labels], np.int64)
