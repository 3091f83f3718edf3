"""Images beside each other in one PNG, with lines of text under each: pairs of copies, the first batch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TILE, LINE, GAP = 160, 14, 6  # side of an image, height of a line of text and space between images, in pixels
GRAY = (128, 128, 128, 255)  # of the text: legible on white and on black


def write_sheet(path: Path, images: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> Path:
    """uint8 images (H, W) or (H, W, 3), row by row, on nothing: the PNG is transparent where no image is, so that it
    suits light and dark pages. Lines of a caption are cut to the width of an image.
    """
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    height = TILE + GAP + LINE * max((caption.count("\n") + 1 for caption in captions), default=1)
    sheet = Image.new("RGBA", (columns * (TILE + GAP) - GAP, rows * height - GAP // 2), (0, 0, 0, 0))
    pen = ImageDraw.Draw(sheet)
    for position, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = position % columns * (TILE + GAP), position // columns * height
        sheet.paste(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BILINEAR), (left, top))
        for number, line in enumerate(caption.split("\n")):
            while line and pen.textlength(line, font_size=11) > TILE:
                line = line[:-2].rstrip("…") + "…" if len(line) > 2 else ""
            pen.text((left, top + TILE + 2 + number * LINE), line, fill=GRAY, font_size=11)
    sheet.save(path, optimize=True)
    return path
