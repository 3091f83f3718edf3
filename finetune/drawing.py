"""Images for viewing: outlines of masks and boxes over them, and small JPEGs for a page.

Truth is a solid blue line, prediction a dashed orange one: the form of the line tells them apart without colours too.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from finetune.errors import FinetuneError

Corners = tuple[float, float, float, float]
"""left, top, right, bottom"""

BOX = (64, 224, 255)  # a colour that heat maps do not have
TRUTH, PREDICTION = (86, 180, 233), (240, 150, 30)  # sky blue and orange, after Okabe and Ito
SHADE = (0, 0, 0)  # under each line and behind each text
SIDE = 384  # pixels to which a small image is enlarged, so that lines are thinner than what they enclose
DASH, GAP = 7.0, 5.0  # pixels
TEXT = 13  # pixels


@dataclass(frozen=True)
class LabelledBox:
    """A box in pixels of the image, and what is written at it."""

    corners: Corners
    label: str = ""
    score: float | None = None
    """Of a prediction."""

    @property
    def text(self) -> str:
        return " ".join(filter(None, [self.label, "" if self.score is None else f"{self.score:.2f}"]))


def gray(image: np.ndarray) -> np.ndarray:  # uint8 (H, W) or (H, W, 3) -> uint8 (H, W)
    """The image without its colours, by luminance."""
    return np.asarray(Image.fromarray(image).convert("L"))


def outlined(image: np.ndarray, boxes: Sequence[Corners]) -> np.ndarray:  # -> uint8 (H, W, 3)
    """Boxes as lines of a pixel, wider in large images."""
    canvas = Image.fromarray(image).convert("RGB")
    pen, width = ImageDraw.Draw(canvas), max(1, canvas.width // 160)
    for x0, y0, x1, y1 in boxes:
        left, top = min(round(x0), canvas.width - 1), min(round(y0), canvas.height - 1)
        pen.rectangle((left, top, max(left, round(x1) - 1), max(top, round(y1) - 1)), outline=BOX, width=width)
    return np.asarray(canvas)


def with_masks(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, side: int = SIDE, legend: bool = True
) -> np.ndarray:
    """The image with the outlines of its true and predicted masks.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        truth: bool (H, W), or (K, H, W) of several regions, each outlined.
        prediction: the same.
        side: an image whose larger side is shorter is enlarged to it.
        legend: whether a line in the image says which outline is which.

    Returns:
        uint8 (H', W', 3).
    """
    canvas, scale = _canvas(image, side)
    for masks, colour, dashed in ((truth, TRUTH, False), (prediction, PREDICTION, True)):
        masks = np.asarray(masks, bool)
        masks = masks[None] if masks.ndim == 2 else masks
        if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
            raise FinetuneError(
                f"Masks of shape {masks.shape} do not fit an image of shape {image.shape[:2]}: they must be (H, W) or "
                "(K, H, W)."
            )
        for mask in masks:
            for line in outlines(mask):
                _draw_line(canvas, line * scale, colour, dashed)
    return _finished(canvas, legend)


def with_boxes(
    image: np.ndarray,
    truth: Sequence[LabelledBox],
    prediction: Sequence[LabelledBox],
    side: int = SIDE,
    legend: bool = True,
) -> np.ndarray:
    """The image with its true and predicted boxes, their labels and scores; arguments as those of `with_masks`."""
    canvas, scale = _canvas(image, side)
    every = [(box, TRUTH, False) for box in truth] + [(box, PREDICTION, True) for box in prediction]
    for box, colour, dashed in every:
        left, top, right, bottom = np.clip(box.corners, 0, [*image.shape[1::-1], *image.shape[1::-1]]).tolist()
        line = np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])
        _draw_line(canvas, line * scale, colour, dashed)
    for box, colour, dashed in every:  # texts over all lines; those of predictions below their boxes
        if box.text:
            left, top, _, bottom = (float(corner) * scale for corner in box.corners)
            _write(canvas, (left, bottom + 2 if dashed else top - TEXT - 3), box.text, colour)
    return _finished(canvas, legend)


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Closed lines (M, 2) of x and y around the parts of a mask (H, W) and its holes, along the edges of its pixels
    with cut corners, in coordinates in which the first pixel reaches from 0 to 1."""
    from contourpy import contour_generator  # it comes with matplotlib

    padded = np.pad(np.asarray(mask, np.float64), 1)
    lines = contour_generator(z=padded).lines(0.5) if padded.any() else []
    return [np.asarray(line, np.float64) - 0.5 for line in lines]  # pixel i of the padded mask has its centre at i


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


def _canvas(image: np.ndarray, side: int) -> tuple[Image.Image, float]:
    """The image, enlarged if small, and by how much."""
    canvas = Image.fromarray(image).convert("RGB")
    scale = max(1.0, side / max(canvas.size))
    size = (round(canvas.width * scale), round(canvas.height * scale))
    return (canvas.resize(size, Image.Resampling.BICUBIC) if size != canvas.size else canvas), scale


def _draw_line(canvas: Image.Image, line: np.ndarray, colour: tuple[int, int, int], dashed: bool) -> None:
    """A line (M, 2) with a dark rim, which shows on light images too."""
    pen = ImageDraw.Draw(canvas)
    parts = _dashes(line) if dashed else [line]
    for width, ink in ((4, SHADE), (2, colour)):
        for part in parts:
            pen.line([(x, y) for x, y in part.tolist()], fill=ink, width=width, joint="curve")


def _dashes(line: np.ndarray) -> list[np.ndarray]:
    """The parts of a line (M, 2) that are drawn, by the length along it."""
    along = np.r_[0.0, np.cumsum(np.hypot(*np.diff(line, axis=0).T))]
    starts = np.arange(0.0, max(along[-1], 1e-9), DASH + GAP)
    parts = []
    for start in starts:
        ends = start, min(start + DASH, along[-1])
        inside = along[(along > ends[0]) & (along < ends[1])]
        at = np.r_[ends[0], inside, ends[1]]
        parts.append(np.stack([np.interp(at, along, line[:, axis]) for axis in (0, 1)], axis=1))
    return parts


def _write(canvas: Image.Image, place: tuple[float, float], text: str, colour: tuple[int, int, int]) -> None:
    """Text on a dark ground, moved to where all of it is in the image."""
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT)
    width, height = pen.textlength(text, font=font) + 4, TEXT + 4
    x = min(max(place[0], 0.0), max(canvas.width - width, 0.0))
    y = min(max(place[1], 0.0), max(canvas.height - height, 0.0))
    pen.rectangle((x, y, x + width, y + height), fill=SHADE)
    pen.text((x + 2, y + 1), text, fill=colour, font=font)


def _finished(canvas: Image.Image, legend: bool) -> np.ndarray:
    """With a strip below the image that names the lines: beside each other, or below each other in a narrow image."""
    if not legend:
        return np.asarray(canvas)
    font, height = ImageFont.load_default(TEXT), TEXT + 8
    entries = (("truth", TRUTH, False), ("prediction", PREDICTION, True))
    widths = [52 + ImageDraw.Draw(canvas).textlength(text, font=font) for text, *_ in entries]
    narrow = sum(widths) > canvas.width
    whole = Image.new("RGB", (canvas.width, canvas.height + height * (len(entries) if narrow else 1)), SHADE)
    whole.paste(canvas, (0, 0))
    x, y = 6.0, canvas.height + height / 2
    for (text, colour, dashed), width in zip(entries, widths, strict=True):
        _draw_line(whole, np.array([(x, y), (x + 30, y)]), colour, dashed)
        ImageDraw.Draw(whole).text((x + 36, y - TEXT / 2 - 2), text, fill=colour, font=font)
        x, y = (x, y + height) if narrow else (x + width, y)
    return np.asarray(whole)
