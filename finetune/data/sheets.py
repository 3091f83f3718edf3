"""Pictures beside each other in one PNG, with a line of text under each: pairs of copies, the first batch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PAGE, INK = "#14171a", "#e6e9ec"  # dark, as the images mostly are: no glare on a dark page
TILE, LINE = 160, 14  # side of a picture and height of a line of text, in pixels


def write_sheet(path: Path, pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> Path:
    """uint8 pictures (H, W) or (H, W, 3), row by row; captions are cut to the width of a picture."""
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (TILE + 6), max(1, rows) * (TILE + LINE + 8)), PAGE)
    pen = ImageDraw.Draw(sheet)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = place % columns * (TILE + 6), place // columns * (TILE + LINE + 8)
        sheet.paste(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BILINEAR), (left, top))
        while caption and pen.textlength(caption, font_size=11) > TILE:
            caption = caption[:-2].rstrip("…") + "…" if len(caption) > 2 else ""
        pen.text((left, top + TILE + 2), caption, fill=INK, font_size=11)
    sheet.save(path, optimize=True)
    return path
