"""Heat maps over images, for viewing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune.drawing import BOX as BOX
from finetune.drawing import gray, outlined
from finetune.drawing import jpeg as jpeg
from finetune.explanations.geometry import Corners

MAP = "inferno"  # even steps to the eye, in gray and for most colour-blind readers too
STRENGTH = 0.7  # of the hottest pixel's colour; the image shines through


def scaled(heat: np.ndarray) -> np.ndarray:  # (H, W) -> (H, W) from 0 to 1
    """For display only: the maximum of the map becomes 1. A map without heat stays 0."""
    top = float(heat.max())
    return np.clip(heat / top, 0, 1) if top > 0 else np.zeros_like(heat)


def colours(share: np.ndarray) -> np.ndarray:  # (H, W) from 0 to 1 -> uint8 (H, W, 3)
    """Black over purple and orange to pale yellow (matplotlib's inferno)."""
    import matplotlib

    return matplotlib.colormaps[MAP](share, bytes=True)[..., :3]


def heated(image: np.ndarray, heat: np.ndarray, boxes: Sequence[Corners] = ()) -> np.ndarray:  # -> uint8 (H, W, 3)
    """The gray image with the heat over it, the more opaque the hotter, scaled to its maximum; boxes outlined."""
    share = scaled(heat)
    cover = (STRENGTH * np.sqrt(share))[..., None]  # the root: what is half as hot is still seen
    gray_image = np.repeat(gray(image)[..., None], 3, axis=2)
    return outlined(np.round((1 - cover) * gray_image + cover * colours(share)).astype(np.uint8), boxes)


def gray_and_heated(image: np.ndarray, heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image in gray, and the same with its heat map: uint8 (H, W, 3) each."""
    return outlined(gray(image), ()), heated(image, heat)


def beside(image: np.ndarray, heat: np.ndarray, boxes: Sequence[Corners] = ()) -> np.ndarray:
    """The image in gray, and beside it the same with its heat map: uint8 (H, 2 W, 3). Boxes are outlined in both."""
    return np.concatenate([outlined(gray(image), boxes), heated(image, heat, boxes)], axis=1)
