"""Images beside each other in one PNG."""

import numpy as np
from PIL import Image

from finetune.data.sheets import LINE, TILE, write_sheet


def test_a_sheet_is_dark_and_no_wider_than_its_images(tmp_path):
    black = np.zeros((8, 8), np.uint8)
    path = write_sheet(tmp_path / "pair.png", [black, black], ["train: a.png", "test: b.png"], columns=4)
    with Image.open(path) as sheet:
        assert sheet.size == (2 * (TILE + 6), TILE + LINE + 8)
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.mean() < 40  # no white block on a dark page
    assert pixels[TILE + 2 :].max() > 180  # and captions that can be read


def test_an_empty_sheet_is_a_sheet(tmp_path):
    with Image.open(write_sheet(tmp_path / "none.png", [], [], columns=4)) as sheet:
        assert sheet.width > 0
