"""Resizing as products of matrices gives Pillow's pixels, and back to the stored image its values."""

import numpy as np
import pytest
import torch

from finetune.deploy.resampling import pixel_numbers, resized, tall_rows_first, to_stored
from finetune.preprocessing import Preprocessing

SIZES = [(32, 32), (31, 50), (50, 31), (7, 9), (64, 64), (300, 200), (1, 5), (700, 5), (120, 250), (33, 32)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("fit", "crop_fraction"), [("squash", 1.0), ("pad", 1.0), ("crop", 1.0), ("crop", 0.875)])
def test_pixels_are_those_of_the_preprocessing_to_the_last_level(fit, crop_fraction, interpolation):
    preprocessing = Preprocessing(32, fit=fit, crop_fraction=crop_fraction, interpolation=interpolation)
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        images = rng.integers(0, 256, (2, height, width, 3), np.uint8)
        levels, rows, columns = resized(torch.from_numpy(images), preprocessing, tall_rows_first())
        expected = np.stack([preprocessing.crop(preprocessing.resize(image)) for image in images])
        np.testing.assert_array_equal(levels.permute(0, 2, 3, 1).numpy(), expected)
        values = rng.random((32, 32)).astype(np.float32)
        stored = preprocessing.placement(height, width).values_to_stored(values)
        of_rows, in_rows = to_stored(rows, pixel_numbers(height), 32)
        of_columns, in_columns = to_stored(columns, pixel_numbers(width), 32)
        found = (of_rows @ (torch.from_numpy(values).double() @ of_columns.T).float().double()).numpy()
        shown = (in_rows[:, None] & in_columns).numpy()
        np.testing.assert_array_equal(shown, ~np.isnan(stored))
        np.testing.assert_allclose(found[shown], stored[shown], atol=1e-6)
