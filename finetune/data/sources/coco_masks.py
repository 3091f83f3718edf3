"""Masks in the format of COCO: the segmentations of an image's objects, joined per category.

A segmentation is a list of polygons `[[x, y, x, y, ...], ...]`, or RLE `{"size": [height, width], "counts": ...}`, the
counts as numbers or as COCO's compressed text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.data.annotations import Layer, MaskFile, Regions
from finetune.data.regions import BACKGROUND
from finetune.data.sources.boxed import Faults

WRONG = "segmentation(s) that are neither polygons nor RLE"


@dataclass
class ShapeList:
    """Segmentations of many images."""

    layers: dict[int, list[tuple[str, Layer]]] = field(default_factory=dict)
    """Row of an image -> category and pixels of each object."""
    lost: dict[int, set[str]] = field(default_factory=dict)
    """Row -> categories with an object whose pixels are not known."""
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Row -> height and width as an RLE gives them."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Kind and place of what is wrong."""

    def add(self, row: int, label: str, entry: dict[str, Any], place: str) -> None:
        """The segmentation of an annotation."""
        shape = entry.get("segmentation")
        layer = layer_of(shape)
        if layer is None:
            self.faults.append((WRONG if shape else "annotations without a segmentation", place))
            self.lost.setdefault(row, set()).add(label)
            return
        if isinstance(shape, dict):
            size = _size(shape.get("size"))
            if size is None or self.sizes.setdefault(row, size) != size:
                self.faults.append(("RLE with a size that is none, or not the one of its image", place))
                self.lost.setdefault(row, set()).add(label)
                return
        self.layers.setdefault(row, []).append((label, layer))

    def per_image(
        self, sizes: Sequence[tuple[float, float]], regions: Regions, faults: Faults
    ) -> list[MaskFile | None]:
        """The mask of each image. `sizes`: height and width as listed, NaN where they are not: the image has them.

        Without objects a mask is empty. A region of which an object's pixels are not known is unknown in that image.
        """
        for kind, place in self.faults:
            faults.add(kind, place)
        numbers = {name: number for number, name in enumerate(regions.names) if name != BACKGROUND}
        masks: list[MaskFile | None] = []
        for row, (height, width) in enumerate(sizes):
            listed = None if height != height else (int(height), int(width))
            layers = [(numbers[label], layer) for label, layer in self.layers.get(row, ()) if label in numbers]
            unknown = sorted(numbers[label] for label in self.lost.get(row, ()) if label in numbers)
            masks.append(MaskFile(layers=tuple(layers), unknown=tuple(unknown), size=self.sizes.get(row, listed)))
        return masks


def layer_of(segmentation: Any) -> Layer | None:
    """The pixels of an object, or None where a segmentation is neither polygons nor RLE."""
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if isinstance(counts, str) and counts:
            return Layer(counts=counts)
        whole = isinstance(counts, list) and bool(counts) and all(type(count) is int for count in counts)
        return Layer(counts=tuple(counts)) if isinstance(counts, list) and whole else None
    if not isinstance(segmentation, list) or not segmentation:
        return None
    if not all(isinstance(polygon, list) and all(map(_is_number, polygon)) for polygon in segmentation):
        return None
    return Layer(polygons=tuple(tuple(polygon) for polygon in segmentation))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _size(value: Any) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value):
        return value[0], value[1]
    return None
