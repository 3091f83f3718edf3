"""One image that shows what the synthetic set holds: a row per finding, for the README.

python -m finetune.data.phantom.contact_sheet data/phantom_contact_sheet.png
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from finetune.data.phantom.render import FINDINGS, Study, plan, render

TITLE = "SYNTHETIC chest X-ray phantoms: computed by X-ray attenuation, not patients"


def contact_sheet(path: str | Path, *, columns: int = 6, tile: int = 144, seed: int = 0) -> Path:
    """Write the sheet: healthy chests first, then each finding by itself where the plan has enough of those.

    Drawn at four thirds of the tile and in 32 grey values, which keeps film grain and file small.
    """
    studies = plan(600, seed)
    head, margin, names = 30, 118, ("No Finding", *FINDINGS)
    sheet = Image.new("L", (margin + columns * tile, head + len(names) * tile), 16)
    pen = ImageDraw.Draw(sheet)
    pen.text((8, 6), TITLE, fill=235, font_size=15)
    for row, name in enumerate(names):
        pen.text((8, head + row * tile + tile // 2 - 8), name, fill=235, font_size=14)
        for column, study in enumerate(_examples(studies, name)[:columns]):
            image = Image.fromarray(render(study, seed, tile * 4 // 3).image)
            small = image.resize((tile - 2, tile - 2), Image.Resampling.LANCZOS)
            sheet.paste(small, (margin + column * tile, head + row * tile))
    levels = np.round(np.asarray(sheet) / 255 * 31) / 31 * 255
    coarse = Image.fromarray(levels.round().astype(np.uint8))
    path = Path(path)
    coarse.quantize(32, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _examples(studies: list[Study], name: str) -> list[Study]:
    """One image per patient with that finding, alone where possible."""
    wanted = () if name == "No Finding" else (name,)
    shown = [s for s in studies if s.findings == wanted] + [s for s in studies if name in s.findings]
    first: dict[int, Study] = {}
    for study in shown:
        first.setdefault(study.patient, study)
    return list(first.values())


if __name__ == "__main__":
    print(contact_sheet(sys.argv[1]))
