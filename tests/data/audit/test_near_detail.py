"""Two images that may be copies, compared in detail: placement, colours and the words for what was measured."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from finetune.data.audit.near_detail import Agreement, agreement, align, move


def texture(seed: int = 0, side: int = 96, grain: float = 2.0) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((side, side)), grain)
    return (128 + 30 * field / field.std()).clip(0, 255)


@pytest.mark.parametrize("placement", [(1, 1, 0, 0), (0.95, 0.97, 0, 0), (1, 1, 2.5, -1.25), (1.05, 1.0, -1.5, 2.0)])
def test_a_placement_is_found_again(placement):
    """move(second) is the first: align must name that placement, whatever the brightness and the contrast are."""
    second = texture().astype(np.float32)
    first = move(second, np.array(placement, float))
    value_found = align(0.8 * first + 20, second)
    assert value_found == pytest.approx(placement, abs=0.02)
    assert move(second, value_found)[8:-8, 8:-8] == pytest.approx(first[8:-8, 8:-8], abs=6)


def test_what_has_no_slopes_has_no_placement():
    flat = np.full((96, 96), 7, np.float32)
    assert align(flat, flat).tolist() == [1, 1, 0, 0]
    assert agreement(flat.astype(np.uint8), flat.astype(np.uint8)).textured == 0


@pytest.mark.parametrize(
    ("detail", "colours", "textured", "left", "certainty"),
    [
        (0.90, 0.99, 1.00, 9.0, "certain"),  # detail all over
        (0.90, 0.99, 0.50, 1.0, "certain"),  # detail in a part, and nothing is left
        (0.94, 0.99, 0.50, 3.0, None),  # two spots whose rims agree
        (0.95, 0.99, 0.50, 3.0, "possible"),
        (0.95, 0.92, 1.00, 9.0, "possible"),  # other colours
        (0.70, 0.99, 1.00, 9.0, "possible"),  # compressed hard
        (0.70, 0.99, 0.50, 1.0, "possible"),
        (0.60, 1.00, 1.00, 0.0, None),  # other details
        (0.00, 1.00, 0.10, 0.5, "possible"),  # no detail at all
        (0.99, 0.99, 0.10, 3.0, None),
    ],
)
def test_certainty(detail, colours, textured, left, certainty):
    assert Agreement(detail, colours, textured, left).certainty == certainty


def test_other_colours_are_not_certain():
    gray = texture()
    brown = np.stack([gray, 0.6 * gray, 0.3 * gray], axis=-1).astype(np.uint8)
    assert agreement(brown, np.clip(brown.astype(int) + 20, 0, 255).astype(np.uint8)).certainty == "certain"
    slow = np.linspace(0, 80, 96)[:, None, None]
    pink = (brown + slow * (0, 0, 1)).clip(0, 255).astype(np.uint8)
    green = (brown + slow * (0, 1, 0)).clip(0, 255).astype(np.uint8)
    result = agreement(pink, green)
    assert result.detail > 0.9
    assert result.certainty != "certain"


def test_a_gray_copy_of_a_coloured_image():
    gray = texture().astype(np.uint8)
    coloured = np.stack([gray, gray // 2, gray // 3], axis=-1)
    assert agreement(coloured, np.stack([coloured.mean(axis=2).astype(np.uint8)] * 3, axis=-1)).certainty == "certain"


def test_sizes_and_shapes():
    assert agreement(texture(1, 224).astype(np.uint8), texture(2, 224).astype(np.uint8)).certainty is None
    tiny = np.arange(25, dtype=np.uint8).reshape(5, 5)
    assert -1 <= agreement(tiny, tiny.T.copy(), side=3).detail <= 1
