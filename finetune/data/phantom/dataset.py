"""Writing the synthetic set to disk: NIH's layout, made once, whole or not at all."""

import csv
import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.phantom.findings import RANGES, Box
from finetune.data.phantom.render import BOX_HEADER, ENTRY_HEADER, FIELD, MARKER, REGIONS, VERSION, Study, plan, render
from finetune.errors import FinetuneError

BOXED = ("Effusion", "Mass", "Nodule")
"""Findings whose boxes boxes.csv has."""


def is_phantom(root: str | Path) -> dict[str, Any] | None:
    """What PHANTOM.json says of a finished synthetic set at `root`; None for anything else."""
    try:
        marker = json.loads((Path(root) / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and marker.get("synthetic") is True else None


def make_phantoms(
    root: str | Path,
    n_images: int = 600,
    size: int = 256,
    seed: int = 0,
    workers: int | None = None,
    *,
    masks: bool = False,
) -> Path:
    """Make the set at `root`, or take it as it is where the same one is there already.

    Images are 8-bit PNG of `size` pixels, boxes in pixels of the image, lung masks 0 or 255 in masks/. The bytes
    depend on (n_images, size, seed) alone, not on `workers`. It is built in a folder beside and renamed at the end, so
    that a build that was killed is never taken for a set, and two at once do not mix.

    With `masks` there is instead a folder in masks/ for each of REGIONS (0 or 255, also where nothing is marked), and
    two tables: `masks.csv`, a row per image (path, patient, age, sex, view, and the path of each region's mask), and
    `boxes.csv`, a row per box of a mass, nodule or effusion (path, x, y, w, h, label, patient; of an image without any,
    path and patient alone). The images are the same.

    Raises:
        FinetuneError: something else is at `root`.
    """
    root = Path(root)
    if n_images < 1 or size < 32:
        raise FinetuneError(f"n_images={n_images} must be 1 or more and size={size} at least 32 pixels.")
    wanted = {"synthetic": True, "version": VERSION, "seed": seed, "size": size, "n_images": n_images, "ranges": RANGES}
    wanted |= {"masks": list(REGIONS)} if masks else {}
    if is_phantom(root) == wanted:
        return root
    if root.exists() and is_phantom(root) is None and any(root.iterdir() if root.is_dir() else [root]):
        raise FinetuneError(f"data.root={root} holds something else than the synthetic set. Name another folder.")
    root.parent.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    partial_root = Path(tempfile.mkdtemp(prefix=f".{root.name}.building-", dir=root.parent))
    try:
        _write(partial_root, plan(n_images, seed), size, seed, workers or min(os.cpu_count() or 1, 8), masks)
        (partial_root / MARKER).write_text(json.dumps(wanted, indent=1), encoding="utf-8")
        partial_root.chmod(0o755)
        _put(partial_root, root)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    return root


def _sweep(root: Path) -> None:
    """Remove what builds that were killed more than a day ago left beside `root`."""
    for left in root.parent.glob(f".{root.name}.building-*"):
        with suppress(OSError):  # another process may sweep too
            if time.time() - left.stat().st_mtime > 86400:
                shutil.rmtree(left, ignore_errors=True)


def _put(made: Path, root: Path) -> None:
    """Rename the finished folder to `root`, in the place of an older set; another process may have been first."""
    for _ in range(2):
        try:
            made.rename(root)
            return
        except OSError:
            if is_phantom(root) is None and any(root.iterdir()):
                raise
            if is_phantom(root) == is_phantom(made):
                return
            old = Path(tempfile.mkdtemp(prefix=f".{root.name}.building-", dir=root.parent))
            root.rename(old / "set")
            shutil.rmtree(old, ignore_errors=True)


def _write(root: Path, studies: list[Study], size: int, seed: int, workers: int, masks: bool) -> None:
    (root / "images").mkdir()
    for name in REGIONS if masks else ("",):
        (root / "masks" / name).mkdir(parents=True)
    draw = partial(_draw, root=root, size=size, seed=seed, masks=masks)
    if workers > 1 and len(studies) > 20:
        # spawned, not forked: the program that asks may have threads running
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            boxes = list(pool.map(draw, studies, chunksize=10))
    else:
        boxes = [draw(study) for study in studies]
    spacing = f"{FIELD / size:.4f}"
    with (root / "Data_Entry_2017_v2020.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(ENTRY_HEADER + "\n")
        writer = csv.writer(file, lineterminator="\n")
        for s in studies:
            labels = "|".join(s.findings) or "No Finding"
            writer.writerow(
                [s.name, labels, s.follow_up, s.patient, s.age, s.sex, s.view, size, size, spacing, spacing]
            )
    with (root / "BBox_List_2017.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(BOX_HEADER + "\n")
        writer = csv.writer(file, lineterminator="\n")
        for study, found in zip(studies, boxes, strict=True):
            for finding, box in found:
                writer.writerow([study.name, finding, *(f"{v:.3f}" for v in box), "", "", ""])
    if masks:
        _write_tables(root, studies, boxes)


def _write_tables(root: Path, studies: list[Study], boxes: list[list[tuple[str, Box]]]) -> None:
    """masks.csv and boxes.csv."""
    with (root / "masks.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "patient", "age", "sex", "view", *REGIONS])
        for s in studies:
            paths = [f"masks/{name}/{s.name}" for name in REGIONS]
            writer.writerow([f"images/{s.name}", s.patient, s.age, s.sex, s.view, *paths])
    with (root / "boxes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "x", "y", "w", "h", "label", "patient"])
        for study, of_study in zip(studies, boxes, strict=True):
            rows = [[*(f"{side:g}" for side in box), label] for label, box in of_study if label in BOXED]
            for row in rows or [[""] * 5]:
                writer.writerow([f"images/{study.name}", *row, study.patient])


def _draw(study: Study, *, root: Path, size: int, seed: int, masks: bool) -> list[tuple[str, Box]]:
    """Render one study into images/ and masks/; its boxes."""
    rendered = render(study, seed, size)
    Image.fromarray(rendered.image).save(root / "images" / study.name)
    layers = (
        {name: np.uint8(255) * pixels for name, pixels in rendered.regions.items()} if masks else {"": rendered.mask}
    )
    for name, layer in layers.items():
        Image.fromarray(layer).save(root / "masks" / name / study.name)
    return rendered.boxes
