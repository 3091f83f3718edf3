"""The search for near copies: writes the section "Near copies" of RESULTS.md.

    python -m benchmarks.copies [--plant FOLDER SIZE] [--skin 2000] [--sizes 64 96] [--count 1000 10000]

Copies are planted among real images (--plant) and among distinct synthetic skin lesions (benchmarks/skin.py, another
seed than the one the thresholds were set on); precision and recall are those of the search, and beside them those of
its third step alone, the correlation of edges. --count: images of noise without copies, for time and memory.
"""

import argparse
import hashlib
import io
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.results import machine, write_section
from benchmarks.skin import lesion
from finetune.data.audit import near_duplicates
from finetune.data.decoding.images import read_image
from finetune.preprocessing import Preprocessing

CHANGES = ("JPEG at quality 60", "resized by 0.9", "25 gray levels brighter", "3 % cropped from every side")
EACH = 40  # copies of each kind
SEED = 1  # of the lesions
EDGES = 0.93  # correlation of edges that is called a copy where there is no fourth step

Planted = dict[tuple[int, int], str]
"""Rows of an original and its copy -> how it was changed."""


def changed(image: Image.Image, change: str) -> Image.Image:
    width, height = image.size
    match change:
        case "JPEG at quality 60":
            file = io.BytesIO()
            image.save(file, "JPEG", quality=60)
            return Image.open(file)
        case "resized by 0.9":
            return image.resize((round(0.9 * width), round(0.9 * height)))
        case "25 gray levels brighter":
            return image.point(lambda value: min(255, value + 25))
        case "3 % cropped from every side":
            x, y = round(0.03 * width), round(0.03 * height)
            return image.crop((x, y, width - x, height - y))
    raise ValueError(change)


def plant(originals: Sequence[np.ndarray], order: Sequence[int], size: int) -> tuple[list[np.ndarray], Planted]:
    """Images at `size` pixels, followed by changed copies of those that `order` names."""
    resize = Preprocessing(image_size=size).resize
    images, planted = [resize(image) for image in originals], {}
    for place in range(EACH * len(CHANGES)):
        row, change = int(order[place % len(order)]), CHANGES[place % len(CHANGES)]
        mode = "RGB" if originals[row].ndim == 3 else "L"
        planted[row, len(images)] = change
        images.append(resize(np.asarray(changed(Image.fromarray(originals[row]), change).convert(mode))))
    coloured = any(image.ndim == 3 for image in images)
    return [cv2.cvtColor(i, cv2.COLOR_GRAY2RGB) if coloured and i.ndim == 2 else i for i in images], planted


def by_edges(images: Sequence[np.ndarray]) -> set[tuple[int, int]]:
    """Pairs that the first three steps of the search call copies."""
    random = np.random.default_rng(0)
    rows, features = near_duplicates.compute_features(images, np.arange(len(images)), random)
    edges = near_duplicates.Edges(images)
    pairs = [(int(rows[i]), int(rows[j])) for i, j in near_duplicates.candidates(features, random)]
    return {pair for pair in pairs if edges.agree(*pair) >= EDGES}


def measure(name: str, images: Sequence[np.ndarray], planted: Planted) -> str:
    """A line of the table. Pairs of equal images are not counted: they need no search."""
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    planted = {(i, j): change for (i, j), change in planted.items() if digests[i] != digests[j]}
    pairs = near_duplicates.near_duplicates(images, digests)
    certain = {(pair.first, pair.second) for pair in pairs if pair.certainty == "certain"}
    possible = {(pair.first, pair.second) for pair in pairs if pair.certainty == "possible"}
    edges = {(i, j) for i, j in by_edges(images) if digests[i] != digests[j]}
    kinds = []
    for change in CHANGES:
        these = {pair for pair, kind in planted.items() if kind == change}
        kinds.append(f"{len(these & certain)} + {len(these & possible)} of {len(these)}")
    others = f"{len(certain - planted.keys())} + {len(possible - planted.keys())}"
    return " | ".join(["", name, *kinds, others, share(certain, planted), share(edges, planted), ""]).strip()


def share(pairs: set[tuple[int, int]], planted: Planted) -> str:
    hits = len(pairs & planted.keys())
    return f"{hits / max(1, len(pairs)):.3f} / {hits / len(planted):.3f}"


class Noise:
    """Images of 64 px made when they are asked for, so that a million fit into memory."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> np.ndarray:
        small = np.random.default_rng(row).integers(0, 255, (12, 12), np.uint8)
        return cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)


def timing(count: int) -> str:
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs = near_duplicates.near_duplicates(Noise(count), map(str, range(count)))
    seconds = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"| {count:,} | {seconds:.1f} | {1e6 * seconds / count:.0f} | {grown:.0f} | {len(pairs)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plant", nargs=2, action="append", default=[], metavar=("FOLDER", "SIZE"))
    parser.add_argument("--skin", type=int, default=2000)
    parser.add_argument("--sizes", type=int, nargs="*", default=[64, 96])
    parser.add_argument("--count", type=int, nargs="*", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    timings = [timing(count) for count in options.count]  # first, while the process is small
    rows = []
    for folder, size in options.plant:
        files = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".jpeg", ".jpg", ".png"))
        order = np.random.default_rng(0).permutation(len(files))
        images, planted = plant([read_image(path) for path in files], order, int(size))
        rows.append(measure(f"{Path(folder).name}, {size} px", images, planted))
    for kind in ("skin", "plain skin") if options.skin else ():
        lesions = [lesion(number, SEED, plain=kind == "plain skin") for number in range(options.skin)]
        for size in options.sizes:
            images, planted = plant(lesions, range(options.skin), size)
            rows.append(measure(f"{options.skin:,} of {kind} (synthetic), {size} px", images, planted))
    lines = [
        f"`python -m benchmarks.copies --plant FOLDER SIZE ... --skin {options.skin} --count 1000 ...`",
        "",
        f"Copies planted among distinct images, {EACH} of each kind: how many are certain + possible copies. Others:",
        "pairs that were not planted; among real images some of them are copies too. Last, precision / recall of the",
        f"certain copies, and of a correlation of edges of {EDGES} alone. Skin lesions are synthetic (seed {SEED};",
        "thresholds were set on seed 0); the plain ones have no texture, no hair and no focus.",
        "",
        f"| images | {' | '.join(CHANGES)} | others | certain | edges alone |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        "The search on images of noise of 64 px without copies (making them included):",
        "",
        "| images | seconds of the processor | µs per image | MiB | pairs |",
        "| --- | --- | --- | --- | --- |",
        *timings,
        "",
        f"{machine()}; no GPU, one thread.",
    ]
    print("\n".join(lines))
    write_section("Near copies", "\n".join(lines))


if __name__ == "__main__":
    main()
