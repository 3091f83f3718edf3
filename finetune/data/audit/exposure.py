"""What the audit says of brightness: images of one colour, and sets that are nearly black."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from finetune.data.sources.listing import shorten
from finetune.data.table import SampleTable

if TYPE_CHECKING:
    from finetune.data.cache.image_cache import ImageCache

DARK = 32  # of 255: a set whose brightest values are lower was scaled wrongly
DARK_SHARE = 0.5


def odd_exposure(table: SampleTable, images: ImageCache) -> Iterator[str]:
    """Images of one colour, and sets that are nearly black because 12-bit values were stored in 16 bits."""
    good = np.array([digest != "" for digest in images.digests])
    darkest, brightest = images.extremes[:, 0], images.extremes[:, 1]
    paths = table.frame["path"].to_numpy(object)
    blank = np.flatnonzero(good & (darkest == brightest))
    if len(blank):
        yield f"{len(blank):,} image(s) are of a single colour: {shorten(paths[blank])}."
    dark = np.flatnonzero(good & (brightest < DARK) & (darkest < brightest))
    if len(dark) > DARK_SHARE * max(1, good.sum()):
        yield (
            f"{len(dark):,} images are nearly black (no value above {DARK - 1} of 255): {shorten(paths[dark])}. Values "
            "of 10 or 12 bits stored in 16 look like this without a PNG sBIT chunk or DICOM window; rescale them "
            "to the full range first."
        )
