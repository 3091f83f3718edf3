"""Heat maps over images, for viewing: colours, box outlines, small JPEGs for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from finetune.explanations.geometry import Corners

MAP = "inferno"  # even steps to the eye, in gray and for most colour-blind readers too
BOX = (64, 224, 255)  # a colour that the map does not have
STRENGTH = 0.7  # of the hottest pixel's colour; the image shines through


def scaled(heat: np.ndarray) -> np.ndarray:  # (H, W) -> (H, W) from 0 to 1
    """For display only: the maximum of the map becomes 1. A map without heat stays 0."""
    top = float(heat.max())
    return np.clip(heat / top, 0, 1) if top > 0 else np.zeros_like(heat)


def colours(share: np.ndarray) -> np.ndarray:  # (H, W) from 0 to 1 -> uint8 (H, W, 3)
    """Black over purple and orange to pale yellow (matplotlib's inferno)."""
    import matplotlib

    return matplotlib.colormaps[MAP](share, bytes=True)[..., :3]


def gray(image: np.ndarray) -> np.ndarray:  # uint8 (H, W) or (H, W, 3) -> uint8 (H, W)
    """The image without its colours, by luminance."""
    return np.asarray(Image.fromarray(image).convert("L"))


def heated(image: np.ndarray, heat: np.ndarray, boxes: Sequence[Corners] = ()) -> np.ndarray:  # -> uint8 (H, W, 3)
    """The gray image with the heat over it, the more opaque the hotter, scaled to its maximum; boxes outlined."""
    share = scaled(heat)
    cover = (STRENGTH * np.sqrt(share))[..., None]  # the root: what is half as hot is still seen
    gray_image = np.repeat(gray(image)[..., None], 3, axis=2)
    return outlined(np.round((1 - cover) * gray_image + cover * colours(share)).astype(np.uint8), boxes)


def outlined(image: np.ndarray, boxes: Sequence[Corners]) -> np.ndarray:  # -> uint8 (H, W, 3)
    """Boxes as lines of a pixel, wider in large images."""
    canvas = Image.fromarray(image).convert("RGB")
    pen, width = ImageDraw.Draw(canvas), max(1, canvas.width // 160)
    for x0, y0, x1, y1 in boxes:
        left, top = min(round(x0), canvas.width - 1), min(round(y0), canvas.height - 1)
        pen.rectangle((left, top, max(left, round(x1) - 1), max(top, round(y1) - 1)), outline=BOX, width=width)
    return np.asarray(canvas)


def beside(image: np.ndarray, heat: np.ndarray, boxes: Sequence[Corners] = ()) -> np.ndarray:
    """The image in gray, and beside it the same with its heat map: uint8 (H, 2 W, 3). Boxes are outlined in both."""
    return np.concatenate([outlined(gray(image), boxes), heated(image, heat, boxes)], axis=1)


def jpeg(image: np.ndarray, side: int = 160, max_bytes: int = 9000) -> str:
    """An image of at most `side` pixels as base64 JPEG of at most `max_bytes`; the quality is lowered to fit."""
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = b""
    for quality in (85, 70, 50, 30, 10):
        file = io.BytesIO()
        thumbnail.save(file, "JPEG", quality=quality, optimize=True)
        data = file.getvalue()
        if len(data) <= max_bytes:
            break
    return base64.b64encode(data).decode("ascii")
