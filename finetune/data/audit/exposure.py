"""What the audit says of brightness: images of one colour, and sets that are nearly black."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from finetune.data.sources.listing import some
from finetune.data.table import SampleTable

if TYPE_CHECKING:
    from finetune.data.cache.image_cache import PictureCache

DARK = 32  # of 255: a set whose pictures never get brighter was scaled wrongly
DARK_SHARE = 0.5


def odd_exposure(table: SampleTable, pictures: PictureCache) -> Iterator[str]:
    """Pictures of one colour, and sets that are nearly black because 12-bit values were stored in 16 bits."""
    good = np.array([digest != "" for digest in pictures.digests])
    darkest, brightest = pictures.extremes[:, 0], pictures.extremes[:, 1]
    paths = table.frame["path"].to_numpy(object)
    blank = np.flatnonzero(good & (darkest == brightest))
    if len(blank):
        yield f"{len(blank):,} picture(s) are of one single colour: {some(paths[blank])}."
    dark = np.flatnonzero(good & (brightest < DARK) & (darkest < brightest))
    if len(dark) > DARK_SHARE * max(1, good.sum()):
        yield (
            f"{len(dark):,} pictures are nearly black (no value above {DARK - 1} of 255): {some(paths[dark])}. Values "
            "of 10 or 12 bits stored in 16 look so where no PNG sBIT chunk or DICOM window says it; rescale them to "
            "the full range first."
        )
