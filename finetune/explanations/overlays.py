"""Heat over pictures, for looking at: colours, box outlines, small JPEGs for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from finetune.explanations.geometry import Corners

MAP = "inferno"  # even steps to the eye, in gray and for most colour-blind readers too
BOX = (64, 224, 255)  # a colour that the map does not have
STRENGTH = 0.7  # of the hottest pixel's colour; the picture shines through


def scaled(heat: np.ndarray) -> np.ndarray:  # (H, W) -> (H, W) from 0 to 1
    """For showing alone: the map's own maximum is 1. A map without heat stays 0."""
    top = float(heat.max())
    return np.clip(heat / top, 0, 1) if top > 0 else np.zeros_like(heat)


def colours(share: np.ndarray) -> np.ndarray:  # (H, W) from 0 to 1 -> uint8 (H, W, 3)
    """Black over purple and orange to pale yellow (matplotlib's inferno)."""
    import matplotlib

    return matplotlib.colormaps[MAP](share, bytes=True)[..., :3]


def gray(picture: np.ndarray) -> np.ndarray:  # uint8 (H, W) or (H, W, 3) -> uint8 (H, W)
    """The picture without its colours, by luminance."""
    return np.asarray(Image.fromarray(picture).convert("L"))


def heated(picture: np.ndarray, heat: np.ndarray, boxes: Sequence[Corners] = ()) -> np.ndarray:  # -> uint8 (H, W, 3)
    """The gray picture with the heat over it, the more opaque the hotter, scaled to its maximum; boxes outlined."""
    share = scaled(heat)
    cover = (STRENGTH * np.sqrt(share))[..., None]  # the root: what is half as hot is still seen
    under = np.repeat(gray(picture)[..., None], 3, axis=2)
    return outlined(np.round((1 - cover) * under + cover * colours(share)).astype(np.uint8), boxes)


def outlined(picture: np.ndarray, boxes: Sequence[Corners]) -> np.ndarray:  # -> uint8 (H, W, 3)
    """Boxes as lines of a pixel, wider in large pictures."""
    image = Image.fromarray(picture).convert("RGB")
    pen, width = ImageDraw.Draw(image), max(1, image.width // 160)
    for x0, y0, x1, y1 in boxes:
        left, top = min(round(x0), image.width - 1), min(round(y0), image.height - 1)
        pen.rectangle((left, top, max(left, round(x1) - 1), max(top, round(y1) - 1)), outline=BOX, width=width)
    return np.asarray(image)


def beside(picture: np.ndarray, heat: np.ndarray, boxes: Sequence[Corners] = ()) -> np.ndarray:
    """The picture in gray, and beside it the same with its heat: uint8 (H, 2 W, 3). Boxes are outlined in both."""
    return np.concatenate([outlined(gray(picture), boxes), heated(picture, heat, boxes)], axis=1)


def jpeg(picture: np.ndarray, side: int = 160, most: int = 9000) -> str:
    """A picture no longer than `side` pixels as JPEG in base64, of `most` bytes, if need be of less quality."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = b""
    for quality in (85, 70, 50, 30, 10):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        data = file.getvalue()
        if len(data) <= most:
            break
    return base64.b64encode(data).decode("ascii")
