"""Bright and striped rectangles on noise, with their boxes: what tiny detectors learn in seconds."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from finetune.data.annotations import Boxes
from finetune.data.table import SampleTable

SQUARES = "tests.tasks.squares.Squares"


class Squares:
    """Source: DIR/boxes.json, name of the image -> patient, site, split and boxes (label, left, top, right, bottom);
    boxes of None are not known."""

    def __init__(self, root: str | None = None, target: str = "boxes"):
        self.root = Path(str(root))

    def table(self) -> SampleTable:
        rows = json.loads((self.root / "boxes.json").read_text())
        frame = pd.DataFrame(
            {
                "path": list(rows),
                "patient": [row["patient"] for row in rows.values()],
                "split": [row["split"] for row in rows.values()],
                "site": [row["site"] for row in rows.values()],
            }
        )
        entries = [
            None
            if row["boxes"] is None
            else Boxes(np.array([b[1:] for b in row["boxes"]]).reshape(-1, 4), tuple(b[0] for b in row["boxes"]))
            for row in rows.values()
        ]
        return SampleTable(
            frame, [], "none", self.root, "squares", ["site"], True, annotations={"boxes": entries},
            other_targets={"boxes": "boxes"},
        )  # fmt: skip


def draw(folder: Path, n: int = 36, seed: int = 0, labels=("bright", "striped"), unknown: int = 1) -> Path:
    """Images of several sizes with none to two rectangles, and boxes.json; of the last `unknown` test images nothing is
    known."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = {}
    for i in range(n):
        width, height = [(48, 48), (60, 48), (48, 66)][i % 3]
        pixels = rng.integers(0, 90, (height, width))
        boxes = []
        for number in range(0 if i % 7 == 3 else 1 + (i % 2)):
            side = int(rng.integers(12, 19))
            left = int(rng.integers(number * width // 2, number * width // 2 + max(1, width // 2 - side)))
            top = int(rng.integers(0, height - side))
            k = (i + number) % 2
            area = pixels[top : top + side, left : left + side]
            area[:] = 240
            if k:
                area[::4] = area[1::4] = 20
            boxes.append((labels[k], left, top, left + side, top + side))
        split = ["train", "train", "val", "test"][i // 2 % 4]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
        rows[f"{i:03d}.png"] = {"patient": f"p{i // 2}", "site": "ab"[i // 2 % 2], "split": split, "boxes": boxes}
    for name in [name for name, row in rows.items() if row["split"] == "test"][-unknown or n :]:
        rows[name]["boxes"] = None
    (folder / "boxes.json").write_text(json.dumps(rows))
    return folder
