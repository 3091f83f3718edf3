"""Near duplicates: copies that were recompressed, resized, brightened or slightly cropped.

In four steps, none of which compares all pairs:

1. A 16 x 16 thumbnail of each image is projected on the directions that separate images and that such copying
   hardly changes: the largest ratios of the variance between images to that between copies made of a sample of them.
2. Signs of random projections of these features are keys; images that share a key in one of several tables are
   candidates (Charikar, 2002). A table has about as many keys as there are images, so candidates grow linearly.
3. Each pair of candidates is compared by its edges, after the shift and the small zoom that fit best. Different
   X-rays have similar shadows, but different edges.
4. What passes is compared in fine detail and in colour (near_detail.py): two spots in the middle of plain skin share
   their edges. That decides whether the pair is a certain copy, a possible one, or none.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import cv2
import numpy as np
import scipy.linalg
from PIL import Image

from finetune.data.audit.near_detail import SIDE, Certainty, agreement

VERSION = 2  # raised whenever the results change: cached pairs of an older version are not read
SMALL, LARGE = 16, 64  # sides of the thumbnails for candidates and for the closer look, in pixels
MAX_ALL_PAIRS = 50  # images of which all pairs are looked at
SAMPLE = 1000  # images of which copies are made
FEATURES = 24
TABLES = 16
CROWD = 64  # comparisons per image among those with the same key, at most: cost stays linear
NEAR = 0.85  # least cosine of two candidates' features
ALIKE = 0.90  # least correlation of the edges of two images that are compared in detail
VERY_ALIKE = 0.94  # least correlation of the edges of a certain copy
ZOOMS = (1.0, 0.97, 0.94)
CHUNK = 2048


class Images(Protocol):
    """The part of ImageCache that is used here."""

    def __getitem__(self, row: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Pair:
    """Two rows of the table, first < second, that show the same image or may do so."""

    first: int
    second: int
    alike: float
    """How well their edges agree, from 0 to 1."""
    detail: float
    """How well their fine detail agrees, from -1 to 1."""
    certainty: Certainty
    """certain: treated as an equal image. possible: for a person to check, changes nothing."""


def near_duplicates(
    images: Images, digests: Iterable[str], sizes: np.ndarray | None = None, seed: int = 0
) -> list[Pair]:
    """Pairs of rows that show, or may show, the same image, except those equal to the last pixel (equal digests).

    `digests`: one per row, "" for a row that cannot be read. Of a group of equal images only the first is compared.
    `sizes`: (N, 2) height and width before `images` were resized, if they were.
    """
    firsts: dict[str, int] = {}
    for row, digest in enumerate(digests):
        firsts.setdefault(digest, row)
    firsts.pop("", None)
    rows = np.array(list(firsts.values()), np.int64)
    random = np.random.default_rng(seed)
    rows, features = compute_features(images, rows, random)
    pairs = combinations(range(len(rows)), 2) if len(rows) <= MAX_ALL_PAIRS else candidates(features, random)
    edges = Edges(images)
    near_pairs = []
    for i, j in pairs:
        first, second = int(rows[i]), int(rows[j])
        if (alike := edges.agree(first, second)) < ALIKE:
            continue
        side = SIDE if sizes is None else int(sizes[[first, second]].min())
        result = agreement(images[first], images[second], side)
        if (certainty := result.certainty) is not None:
            certainty = certainty if alike >= VERY_ALIKE else "possible"
            near_pairs.append(Pair(first, second, round(alike, 3), round(result.detail, 3), certainty))
    return sorted(near_pairs, key=lambda pair: (pair.first, pair.second))


# -- candidates --------------------------------------------------------------------------------------------------------


def compute_features(
    images: Images, rows: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:  # -> (M,), (M, FEATURES) of length 1
    """Features of the rows, without images of one colour."""
    sample = [gray(images[row]) for row in random.permutation(rows)[:SAMPLE]]
    if not sample:
        return rows, np.zeros((0, FEATURES), np.float32)
    directions = telling_directions(sample, random)
    features = np.empty((len(rows), FEATURES), np.float32)
    usable = np.zeros(len(rows), bool)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        small = np.stack([thumbnail(gray(images[row])) for row in rows[part]])
        usable[part] = small.any(axis=1)
        features[part] = small @ directions
    rows, features = rows[usable], features[usable]
    if len(rows):
        features -= features.mean(axis=0)
        features /= np.maximum(features.std(axis=0), 1e-6)
        features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6)
    return rows, features


def gray(image: np.ndarray) -> np.ndarray:  # (H, W[, 3]) -> (H, W)
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def thumbnail(image: np.ndarray) -> np.ndarray:  # (H, W) -> (SMALL * SMALL,), of mean 0 and length 1, or all 0
    """Without brightness and contrast, which a copy may change."""
    small = cv2.resize(image, (SMALL, SMALL), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    length = float(np.linalg.norm(small))
    return small / length if length > SMALL else np.zeros_like(small)  # less than a gray level per pixel is nothing


def copies(image: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Typical changes to copies: crop, shift, brightness, JPEG."""
    height, width = image.shape
    top, left = (max(1, round(0.03 * side)) for side in (height, width))
    yield image[top : height - top, left : width - left]
    yield np.roll(image, (random.integers(-top, top + 1), random.integers(-left, left + 1)), (0, 1))
    brighter = image.astype(np.float32) * random.uniform(0.8, 1.2) + random.uniform(-25, 25)
    yield np.clip(brighter, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    yield np.asarray(Image.open(file))


def telling_directions(sample: list[np.ndarray], random: np.random.Generator) -> np.ndarray:  # -> (SMALL^2, FEATURES)
    originals = np.stack([thumbnail(image) for image in sample])
    changes = np.concatenate(
        [
            np.stack([thumbnail(copy) for copy in copies(image, random)]) - original
            for image, original in zip(sample, originals, strict=True)
            if original.any()
        ]
        or [np.zeros((1, SMALL**2), np.float32)]
    )
    deviations = originals - originals.mean(axis=0)
    between = deviations.T @ deviations / len(originals)
    within = changes.T @ changes / len(changes)
    within += np.eye(len(within)) * max(1e-6, 0.05 * float(np.trace(between)) / len(within))
    _, vectors = scipy.linalg.eigh(between, within, subset_by_index=[SMALL**2 - FEATURES, SMALL**2 - 1])
    return vectors.astype(np.float32)


def candidates(features: np.ndarray, random: np.random.Generator) -> Iterator[tuple[int, int]]:  # (N, F), length 1
    """Pairs i < j that share a key in some table and lie near each other, each once."""
    count, width = features.shape
    bits = min(40, max(6, math.ceil(math.log2(count)) + 1))
    pair_codes: set[int] = set()
    for _ in range(TABLES):
        signs = features @ random.standard_normal((width, bits)).astype(np.float32) > 0
        keys = signs @ (1 << np.arange(bits, dtype=np.int64))
        order = np.argsort(keys, kind="stable")
        positions = np.arange(count)
        for step in range(1, min(count, CROWD)):  # neighbours in the sorted order, then those two apart, and so on
            positions = positions[positions < count - step]
            positions = positions[keys[order[positions]] == keys[order[positions + step]]]
            if not len(positions):
                break
            left_rows, right_rows = order[positions], order[positions + step]
            close = np.einsum("ij,ij->i", features[left_rows], features[right_rows]) >= NEAR
            low, high = np.minimum(left_rows[close], right_rows[close]), np.maximum(left_rows[close], right_rows[close])
            pair_codes.update((low.astype(np.int64) * count + high).tolist())
    yield from (divmod(pair, count) for pair in sorted(pair_codes))


# -- comparison of pairs -----------------------------------------------------------------------------------------------


class Edges:
    """High-passed images at LARGE pixels, as spectra; the last few are cached."""

    def __init__(self, images: Images):
        self.images = images
        window = np.hanning(LARGE + 2)[1:-1]
        self.window = np.outer(window, window).astype(np.float32)
        self.spectra: dict[tuple[int, float], np.ndarray] = {}

    def agree(self, first: int, second: int) -> float:
        """The best correlation over small shifts and zooms of either."""
        best = 0.0
        for zoom in ZOOMS:
            for a, b in {((first, zoom), (second, 1.0)), ((first, 1.0), (second, zoom))}:
                product = self.spectrum(*a) * np.conj(self.spectrum(*b))
                correlation = np.fft.irfft2(product, (LARGE, LARGE))
                near = np.concatenate([correlation[:5], correlation[-4:]])
                best = max(best, float(near[:, :5].max()), float(near[:, -4:].max()))
            if best >= 0.95:
                break
        return min(best, 1.0)

    def spectrum(self, row: int, zoom: float) -> np.ndarray:  # -> (LARGE, LARGE / 2 + 1), of a map of length 1
        if (row, zoom) not in self.spectra:
            if len(self.spectra) > 4096:
                self.spectra.clear()
            image = gray(self.images[row])
            height, width = image.shape
            top, left = round(height * (1 - zoom) / 2), round(width * (1 - zoom) / 2)
            image = image[top : height - top, left : width - left]
            large = cv2.resize(image, (LARGE, LARGE), interpolation=cv2.INTER_AREA).astype(np.float32)
            edges = cv2.GaussianBlur(large, (0, 0), 0.8) - cv2.GaussianBlur(large, (0, 0), 4.0)
            edges = (edges - edges.mean()) * self.window
            self.spectra[row, zoom] = np.fft.rfft2(edges / max(float(np.linalg.norm(edges)), 1e-6))
        return self.spectra[row, zoom]
