"""Reading, decoding and augmenting images: writes the section "Data" of RESULTS.md.

    python -m benchmarks.data PNG_FOLDER [--jpeg FOLDER] [--rounds 7]

One thread. PNG_FOLDER holds images of about 1024 pixels. Ways to do the same take turns (A B A B), a ratio is formed
within each round; its median and range over the rounds are given. The search for copies is in benchmarks/copies.py.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.results import machine, write_section
from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.data.cache.image_cache import ImageCache
from finetune.data.decoding.images import read_image
from finetune.data.sources.folder import Folder
from finetune.data.splits import assign_splits
from finetune.preprocessing import Preprocessing

SIZE = 224


def ratio(way: Callable[[], object], reference: Callable[[], object], rounds: int, repeat: int = 1) -> str:
    """How many times faster `way` is; it is done `repeat` times per turn, where it is too short to be timed."""
    found = []
    way(), reference()
    for _ in range(rounds):
        began = time.perf_counter()
        reference()
        between = time.perf_counter()
        for _ in range(repeat):
            way()
        found.append((between - began) / ((time.perf_counter() - between) / repeat))
    return f"{statistics.median(found):.2f} [{min(found):.2f}-{max(found):.2f}]"


def pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def reading(files: Sequence[Path], rounds: int, name: str) -> list[str]:
    """Decode and resize as Pillow does, as the cache is built, and read from the cache."""
    preprocessing = Preprocessing(image_size=SIZE)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "data")
        for number, path in enumerate(files):  # a folder of its own: class a and class b
            place = root / "ab"[number % 2] / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.absolute())
        table = assign_splits(Folder(root).table(), seed=0)
        cache = ImageCache.build(table, preprocessing, Path(folder, "cache"), workers=1)
        decode = ratio(
            lambda: [preprocessing.resize(read_image(path, preprocessing.min_decode_side)) for path in files],
            lambda: [pillow(path) for path in files],
            rounds,
        )
        read = ratio(lambda: cache.take(range(len(files))), lambda: [pillow(path) for path in files], rounds, repeat=50)
    return [f"| decoding and resizing, {name} | {decode} |", f"| reading from the cache, {name} | {read} |"]


def augmenting(rounds: int) -> str:
    """The default augmentation of gray images against the same in torchvision's v2 on RGB tensors."""
    settings = parse(compose.plain(compose.compose(["transforms=light", f"data.image_size={SIZE}"])))
    augment = build.augment(settings)
    assert augment is not None
    random = np.random.default_rng(0)
    gray = [cv2.GaussianBlur(random.integers(0, 255, (SIZE, SIZE), np.uint8), (0, 0), 3) for _ in range(32)]
    theirs = v2.Compose(
        [
            v2.RandomAffine(7, (0.04, 0.04), (0.92, 1.08), interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=0.1, contrast=0.1),
        ]
    )
    rgb = [torch.from_numpy(image).expand(3, -1, -1).contiguous() for image in gray]
    return ratio(
        lambda: [augment(image, (0, 0, i)) for i, image in enumerate(gray)],
        lambda: [theirs(image) for image in rgb],
        rounds,
        repeat=3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("png", type=Path)
    parser.add_argument("--jpeg", type=Path, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    command = "`python -m benchmarks.data PNG_FOLDER --jpeg JPEG_FOLDER`"
    lines = [command, "", "Times as fast as the reference, on one thread: median [range] over the rounds.", ""]
    lines += ["| what | times as fast |", "| --- | --- |"]
    files = sorted(path for path in options.png.rglob("*.png") if Image.open(path).mode == "L")[:24]
    lines += reading(files, options.rounds, f"{len(files)} gray PNGs of {Image.open(files[0]).size[0]} px")
    for folder in options.jpeg:
        images = sorted(folder.rglob("*.jp*g"))[:24]
        sides = sorted(min(Image.open(path).size) for path in images)
        name = f"{len(images)} JPEGs with shorter sides of {sides[0]} to {sides[-1]} px"
        lines += reading(images, options.rounds, name)
    lines.append(f"| augmenting gray images, over torchvision v2 on RGB | {augmenting(options.rounds)} |")
    print("\n".join(lines))
    write_section("Data", "\n".join([*lines, "", f"{machine()}; one thread, {options.rounds} rounds."]))


if __name__ == "__main__":
    main()
