"""Reading, decoding, augmenting and auditing pictures: writes the section "Data" of RESULTS.md.

    python -m benchmarks.data PNG_FOLDER [--jpeg FOLDER] [--plant FOLDER SIZE] [--rounds 7] [--audit 1000 10000]

One thread. PNG_FOLDER holds pictures of about 1024 pixels. Ways to do the same take turns (A B A B), a ratio is formed
within each round; its median and range over the rounds are given. The audit's pictures are made up.
"""

import argparse
import hashlib
import io
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.results import machine, write_section
from finetune import build, compose
from finetune.data.cache import PictureCache
from finetune.data.images import read_picture
from finetune.data.near import near_duplicates
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
        cache = PictureCache.build(table, preprocessing, Path(folder, "cache"), workers=1)
        decode = ratio(
            lambda: [preprocessing.resize(read_picture(path, preprocessing.enough)) for path in files],
            lambda: [pillow(path) for path in files],
            rounds,
        )
        read = ratio(lambda: cache.take(range(len(files))), lambda: [pillow(path) for path in files], rounds, repeat=50)
    return [f"| decoding and resizing, {name} | {decode} |", f"| reading from the cache, {name} | {read} |"]


def augmenting(rounds: int) -> str:
    """The default augmentation of gray pictures against the same in torchvision's v2 on RGB tensors."""
    config = compose.plain(compose.compose(["transforms=light", f"data.image_size={SIZE}"]))
    augment = build.augment(config)
    assert augment is not None
    random = np.random.default_rng(0)
    gray = [cv2.GaussianBlur(random.integers(0, 255, (SIZE, SIZE), np.uint8), (0, 0), 3) for _ in range(32)]
    theirs = v2.Compose(
        [
            v2.RandomAffine(7, (0.04, 0.04), (0.92, 1.08), interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=0.1, contrast=0.1),
        ]
    )
    rgb = [torch.from_numpy(picture).expand(3, -1, -1).contiguous() for picture in gray]
    return ratio(
        lambda: [augment(picture, (0, 0, i)) for i, picture in enumerate(gray)],
        lambda: [theirs(picture) for picture in rgb],
        rounds,
        repeat=3,
    )


class Made:
    """Pictures of 64 px made when they are asked for, so that the pixel audit of a million fits into memory."""

    def __init__(self, count: int):
        self.count, self.bad = count, {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> np.ndarray:
        small = np.random.default_rng(row).integers(0, 255, (12, 12), np.uint8)
        return cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)


CHANGES = ("JPEG at quality 60", "resized by 0.9", "25 gray levels brighter", "3 % cropped from every side", "none")


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
    return image


def planting(folder: Path, size: int, each: int = 40) -> list[str]:
    """Copies planted among real pictures: how many are found, per kind; and what is found besides."""
    preprocessing = Preprocessing(image_size=size)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".jpeg", ".jpg", ".png"))
    order = np.random.default_rng(0).permutation(len(files))
    pictures = [preprocessing.resize(read_picture(path)) for path in files]
    planted: dict[int, tuple[int, str]] = {}
    for place in range(each * len(CHANGES)):
        original, change = int(order[place % len(order)]), CHANGES[place % len(CHANGES)]
        mode = "RGB" if pictures[original].ndim == 3 else "L"
        with Image.open(files[original]) as image:
            copy = preprocessing.resize(np.asarray(changed(image.convert(mode), change).convert(mode)))
        planted[len(pictures)] = (original, change)
        pictures.append(copy)
    channels = max(picture.ndim for picture in pictures)
    pictures = [np.stack([p] * 3, -1) if p.ndim < channels else p for p in pictures]
    digests = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
    equal = {(i, j) for j, (i, _) in planted.items() if digests[i] == digests[j]}
    near = {(p.first, p.second) for p in near_duplicates(InMemory(pictures), digests)}
    lines = []
    for change in CHANGES:
        pairs = [(i, j) for j, (i, kind) in planted.items() if kind == change]
        lines.append(
            f"| {folder.name}, {size} px | {change} | {sum(p in near | equal for p in pairs)} of {len(pairs)} |"
        )
    others = [pair for pair in near if pair[1] < len(files)]
    lines.append(f"| {folder.name}, {size} px | pairs found that were not planted | {len(others)} |")
    return lines


class InMemory(list):
    bad: ClassVar[dict[int, str]] = {}


def auditing(count: int) -> str:
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = near_duplicates(Made(count), map(str, range(count)))
    seconds = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"| {count:,} | {seconds:.1f} | {1e6 * seconds / count:.0f} | {grown:.0f} | {len(found)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("png", type=Path)
    parser.add_argument("--jpeg", type=Path, nargs="*", default=[])
    parser.add_argument("--plant", nargs=2, action="append", default=[], metavar=("FOLDER", "SIZE"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--audit", type=int, nargs="*", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    torch.set_num_threads(1)
    audits = [auditing(count) for count in options.audit]  # first, while the process is small
    command = "`python -m benchmarks.data PNG_FOLDER --jpeg JPEG_FOLDER --plant FOLDER SIZE ... --audit 1000 ...`"
    lines = [command, "", "Times as fast as the reference, on one thread: median [range] over the rounds.", ""]
    lines += ["| what | times as fast |", "| --- | --- |"]
    files = sorted(path for path in options.png.rglob("*.png") if Image.open(path).mode == "L")[:24]
    lines += reading(files, options.rounds, f"{len(files)} gray PNGs of {Image.open(files[0]).size[0]} px")
    for folder in options.jpeg:
        pictures = sorted(folder.rglob("*.jp*g"))[:24]
        sides = sorted(min(Image.open(path).size) for path in pictures)
        name = f"{len(pictures)} JPEGs with shorter sides of {sides[0]} to {sides[-1]} px"
        lines += reading(pictures, options.rounds, name)
    lines.append(f"| augmenting gray pictures, over torchvision v2 on RGB | {augmenting(options.rounds)} |")
    if options.plant:
        lines += ["", "Copies planted among real pictures, 40 of each kind, and how many the audit finds:", ""]
        lines += ["| pictures | change | found |", "| --- | --- | --- |"]
        for folder, size in options.plant:
            lines += planting(Path(folder), int(size))
    lines += ["", "The search for near copies, on made-up pictures of 64 px without copies (making them included):", ""]
    lines += ["| pictures | seconds | µs per picture | MiB | found |", "| --- | --- | --- | --- | --- |"]
    lines += audits
    print("\n".join(lines))
    write_section("Data", "\n".join([*lines, "", f"{machine()}; one thread, {options.rounds} rounds."]))


if __name__ == "__main__":
    main()
