"""Two images that may be copies, compared in fine detail after exact alignment.

Images of the same kind of thing share their large structures: a chest, or one dark spot in the middle of plain skin.
A copy also shares accidental detail, such as texture, hairs and vessels. So the second image is moved and stretched
onto the first, to a fraction of a pixel. Slow shading is removed and strong edges are clipped. The correlation of the
remainder is measured in each small neighbourhood, where a large edge counts no more than plain skin.

The thresholds were set on 4,000 synthetic skin lesions (benchmarks/skin.py, seed 0), on plain ones without texture, and
on chest X-rays of 28 to 224 pixels and CIFAR-10, all with planted copies; no real skin image was seen. What they do on
lesions of another seed is in the section "Near copies" of benchmarks/RESULTS.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

SIDE = 96  # pixels: larger images are reduced to this, so that a comparison costs the same for all
MARGIN = 0.06  # of the side, left out at each border: a cropped copy lacks it
CLIP = 2.0  # times the median of the detail's absolute value
FAINT = 0.5  # gray levels: detail that deviates by less is rounding and compression
SHADING = 24  # side of the thumbnails that slow shading and colours are compared on

DETAIL = 0.80  # least agreement of detail in a certain copy
POSSIBLE_DETAIL = 0.65
COLOURS = 0.97  # least correlation of slow shading and colours in a certain copy
POSSIBLE_COLOURS = 0.90
OTHER_COLOURS_DETAIL = 0.90  # least agreement of detail in a possible copy whose colours differ so much,
SPARSE_DETAIL = 0.95  # and where detail does not cover the image
MIN_TEXTURE = 0.15  # part of the image with detail, below which detail is no evidence
FULL_TEXTURE = 0.90  # part of the image with detail, from which detail is proof enough
LEFT = 1.5  # gray levels: largest remaining difference in a copy of an image with less detail
EQUAL_COLOURS = 0.999  # or, where contrast is high, this correlation of slow shading and colours

Certainty = Literal["certain", "possible"]


@dataclass(frozen=True)
class Agreement:
    """How far two aligned images agree."""

    detail: float
    """Mean local correlation of fine detail where there is any, from -1 to 1."""
    colours: float
    """Correlation of slow shading, in all channels together, from -1 to 1."""
    textured: float
    """Part of the image, from 0 to 1, that shows fine detail."""
    left: float
    """Difference in slow shading that is left after brightness and contrast were fitted, in gray levels."""

    @property
    def certainty(self) -> Certainty | None:
        """None: different images.

        Agreeing detail all over the image is proof. On plain skin it is only the rim of a spot, and the rims of two
        spots can agree, so that the remaining difference must be small too.
        """
        equal = self.colours >= EQUAL_COLOURS or (self.colours >= COLOURS and self.left <= LEFT)
        if self.textured < MIN_TEXTURE:
            return "possible" if equal else None
        full = self.colours >= COLOURS and self.textured >= FULL_TEXTURE
        if self.detail >= DETAIL and (equal or full):
            return "certain"
        if self.detail >= POSSIBLE_DETAIL and (equal or full):
            return "possible"
        min_detail = OTHER_COLOURS_DETAIL if self.textured >= FULL_TEXTURE else SPARSE_DETAIL
        return "possible" if self.detail >= min_detail and self.colours >= POSSIBLE_COLOURS else None


def agreement(first: np.ndarray, second: np.ndarray, side: int = SIDE) -> Agreement:
    """Compare two uint8 images (H, W) or (H, W, 3), at `side` pixels or fewer where they are smaller."""
    side = max(8, min(side, SIDE, *first.shape[:2], *second.shape[:2]))
    a, b = (cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) for x in (first, second))
    grays = [x if x.ndim == 2 else cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (a, b)]
    as_it_is = _compare(a, b, *grays)
    if (
        as_it_is.certainty == "certain"
    ):  # compressed, resized or brightened alone: most copies, found without the alignment
        return as_it_is
    placement = align(*grays)
    aligned = _compare(a, move(b, placement), grays[0], move(grays[1], placement))
    rank = {None: 0, "possible": 1, "certain": 2}
    return max(as_it_is, aligned, key=lambda result: (rank[result.certainty], result.detail))


def align(first: np.ndarray, second: np.ndarray) -> np.ndarray:  # two gray float (S, S) -> (4,)
    """Zoom in x and y, shift in x and y, with which `move` lays the second image on the first: Gauss-Newton steps on
    images freed of slow shading, from coarse to fine. Gain and offset of the brightness are fitted along.
    """
    side = len(first)
    margin = max(1, round(MARGIN * side))
    y, x = np.mgrid[:side, :side].astype(np.float32) - (side - 1) / 2
    placement = np.array([1.0, 1.0, 0.0, 0.0])
    for sigma in (side / 24, side / 48, side / 96):
        target, source = (_blur(image, sigma) - _blur(image, 4 * sigma) for image in (first, second))
        slope_x, slope_y = (cv2.Sobel(source, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0))
        every = slice(margin, side - margin, max(1, round(sigma / 1.5)))  # after a blur fewer pixels say the same
        part = every, every
        for _ in range(10):
            moved, right, down = (move(image, placement)[part] for image in (source, slope_x, slope_y))
            columns = (right * x[part], down * y[part], right, down, moved, np.ones_like(moved))
            jacobian = np.stack([column.ravel() for column in columns])
            normal = (jacobian @ jacobian.T).astype(np.float64)
            normal[np.diag_indices(6)] += 1e-4 * normal.diagonal() + 1e-6  # images without slopes have no placement
            solution = np.linalg.solve(normal, (jacobian @ target[part].ravel()).astype(np.float64))
            step = solution[:4] / max(solution[4], 0.2)
            placement[:2] = np.clip(placement[:2] + step[:2], 0.88, 1.14)
            placement[2:] = np.clip(placement[2:] + step[2:], -0.08 * side, 0.08 * side)
            if np.abs(step * (side / 2, side / 2, 1, 1)).max() < 0.02:
                break
    return placement


def move(image: np.ndarray, placement: np.ndarray) -> np.ndarray:  # (S, S[, 3]) -> the same
    """Zoom about the centre, then shift; the border is repeated outwards."""
    zoom_x, zoom_y, shift_x, shift_y = placement
    centre = (len(image) - 1) / 2
    matrix = np.array([[zoom_x, 0, centre * (1 - zoom_x) + shift_x], [0, zoom_y, centre * (1 - zoom_y) + shift_y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _compare(a_image: np.ndarray, b_image: np.ndarray, a_gray: np.ndarray, b_gray: np.ndarray) -> Agreement:
    side = len(a_image)
    inner = _inner(side)
    details = [_detail(image) for image in (a_gray, b_gray)]
    sigma = max(side / 24, 1.0)
    power, b_power, shared = (
        _blur(details[a] * details[b], sigma)[inner].astype(np.float64) for a, b in ((0, 0), (1, 1), (0, 1))
    )
    textured = np.maximum(power, b_power) > FAINT**2
    local = shared[textured] / np.sqrt(power[textured] * b_power[textured] + 1e-9)
    detail = float(local.mean()) if len(local) else 0.0
    colours, left = _colours(a_image[inner], b_image[inner])
    return Agreement(detail, colours, float(textured.mean()), left)


def _detail(image: np.ndarray) -> np.ndarray:
    """What is finer than a 48th of the side, with the amplitude of strong edges clipped."""
    side = len(image)
    detail = image - _blur(image, max(side / 48, 1.3))
    if side >= 64:
        detail = _blur(detail, 0.5)  # the finest is noise
    limit = max(1.0, CLIP * float(np.median(np.abs(detail[_inner(side)]))))
    return np.clip(detail, -limit, limit)


def _colours(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Correlation, and what is left in gray levels. Brightness, contrast and white balance may differ; where one of the
    two is gray, only gray is compared.
    """
    thumbnails = [cv2.resize(x, (SHADING, SHADING), interpolation=cv2.INTER_AREA) for x in (first, second)]
    if any(x.ndim == 2 or float(np.ptp(x, axis=2).mean()) < 2 for x in thumbnails):
        thumbnails = [x if x.ndim == 2 else cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in thumbnails]
    a, b = (x.reshape(SHADING**2, -1).astype(np.float64) for x in thumbnails)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    correlation = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-9))
    contrast = max(float((a * a).mean()), float((b * b).mean()))
    return correlation, float(np.sqrt(contrast * max(0.0, 1 - correlation**2)))


def _inner(side: int) -> tuple[slice, slice]:
    margin = max(1, round(MARGIN * side))
    return slice(margin, side - margin), slice(margin, side - margin)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
