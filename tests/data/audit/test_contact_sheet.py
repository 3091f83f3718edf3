"""Images beside each other in one PNG."""

import numpy as np
from PIL import Image

from finetune.data.audit.contact_sheet import GAP, LINE, TILE, write_sheet


def sheet(tmp_path, count: int, caption: str, columns: int = 4) -> np.ndarray:
    white = [np.full((10, 12), 255, np.uint8)] * count
    with Image.open(write_sheet(tmp_path / "sheet.png", white, [caption] * count, columns)) as image:
        assert image.mode == "RGBA"
        return np.asarray(image)


def test_a_sheet_is_as_large_as_its_images(tmp_path):
    assert sheet(tmp_path, 2, "a").shape[:2] == (TILE + GAP + LINE - GAP // 2, 2 * TILE + GAP)
    assert sheet(tmp_path, 6, "a\nb").shape[:2] == (2 * (TILE + GAP + 2 * LINE) - GAP // 2, 4 * (TILE + GAP) - GAP)
    assert sheet(tmp_path, 0, "").size > 0


def test_nothing_is_white_but_the_images(tmp_path):
    """Where no image is, the sheet is transparent; text is gray, so that it can be read on white and on black."""
    pixels = sheet(tmp_path, 5, "a long caption that does not fit below its image\nsecond line")
    white = (pixels[..., :3] == 255).all(axis=-1)
    assert white.sum() == 5 * TILE * TILE
    assert (pixels[..., 3] == 0).mean() > 0.3
    text = pixels[TILE + 1 : TILE + GAP + 2 * LINE - 2]
    assert set(np.unique(text[text[..., 3] == 255][:, :3])) == {128}


def test_both_lines_of_a_caption_are_there(tmp_path):
    pixels = sheet(tmp_path, 1, "first\nsecond")
    assert pixels[TILE + 2 : TILE + LINE, :, 3].any()
    assert pixels[TILE + 2 + LINE :, :, 3].any()
