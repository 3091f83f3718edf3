"""Scores of masks in two folders, whoever made them: predictions=FOLDER labels=FOLDER."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.errors import BadImage, FinetuneError
from finetune.evaluation.segmentation.cases import UNKNOWN
from finetune.evaluation.segmentation.collect import CaseCollector
from finetune.evaluation.segmentation.table import CaseTable

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")
"""Of masks: image files of one number per pixel, and arrays. JPEG changes values, so it holds no masks."""


def score_folders(
    predictions: str | Path,
    labels: str | Path,
    names: Sequence[str],
    overlapping: bool = False,
    *,
    values: Mapping[int, int] | None = None,
    patients: Mapping[str, str] | None = None,
    spacing: Mapping[str, tuple[float, float]] | tuple[float, float] | None = None,
    distances: bool = True,
    read: Callable[[Path], np.ndarray] | None = None,
) -> CaseTable:
    """The case table of the masks in `labels`, each with the file of `predictions` of the same name but for its ending.

    Args:
        names: of the regions; exclusive ones begin with background, whose pixels are 0.
        values: pixel value in the files -> value of the label map, where they differ: {255: 1} for masks of 0 and 255.
        patients: name of the file without its ending -> patient; without it each image is its own patient.
        spacing: millimetres per row and per column, of all images or by the name of the file without its ending.
        read: makes a label map (H, W) of a file; `read_mask` without it.

    Raises:
        FinetuneError: no masks, a mask without its partner, two of one name, other sizes, or a value that is no region.
        BadImage: a file that cannot be read as a mask.
    """
    folders = {"predictions": Path(predictions), "labels": Path(labels)}
    files = {name: masks_in(folder, name) for name, folder in folders.items()}
    match(files, folders)
    collector = CaseCollector(names, overlapping, distances=distances)
    for stem, file in files["labels"].items():
        truth, prediction = (replaced((read or read_mask)(path), values) for path in (file, files["predictions"][stem]))
        _check_white(truth, file, overlapping, values)
        step = spacing.get(stem) if isinstance(spacing, Mapping) else spacing
        collector.update(stem, (patients or {}).get(stem), prediction, truth, spacing=step)
    return collector.table()


def masks_in(folder: Path, argument: str) -> dict[str, Path]:
    """Name without its ending -> file, in alphabetical order; of subfolders with their names.

    Raises:
        FinetuneError: no folder, no masks, or two files of one name.
    """
    if not folder.is_dir():
        raise FinetuneError(f"{argument}={folder} is no folder. Give the folder of the masks.")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in files:
            raise FinetuneError(f"{argument}={folder} has two masks of one name: {files[stem].name} and {path.name}.")
        files[stem] = path
    if not files:
        raise FinetuneError(f"{argument}={folder} has no masks: no file ends in {', '.join(SUFFIXES)}.")
    return files


def match(files: Mapping[str, Mapping[str, Path]], folders: Mapping[str, Path]) -> None:
    """Fail unless each mask has a partner: an image left out would make the scores those of another set.

    Raises:
        FinetuneError: naming how many are alone, and one of each folder.
    """
    alone = []
    for name, other in (("predictions", "labels"), ("labels", "predictions")):
        if lonely := sorted(set(files[name]) - set(files[other])):
            alone.append(f"{len(lonely):,} of {name} have none in {other}, such as {files[name][lonely[0]].name}")
    if alone:
        raise FinetuneError(
            f"predictions={folders['predictions']} and labels={folders['labels']} do not match by the names of their "
            f"files without the ending: {'; '.join(alone)}. Rename the files, or move those without a partner away."
        )


def read_mask(path: Path) -> np.ndarray:  # -> (H, W) of whole numbers or bool
    """The numbers of an image file's pixels, of a palette its numbers and not its colours; or an array.

    Raises:
        BadImage: it cannot be read, or has several channels.
    """
    try:
        if path.suffix.lower() == ".npy":
            mask = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as opened:
                if opened.mode not in ("1", "L", "P", "I;16"):
                    raise BadImage(path, f"is no mask: it must be gray, palette or 1-bit, not of mode {opened.mode}")
                mask = np.array(opened)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's for a broken header, numpy's for a pickle
        if isinstance(error, FinetuneError):
            raise
        raise BadImage(path, f"cannot be read as a mask: {error}") from None
    if mask.ndim != 2 or not (mask.dtype == np.bool_ or np.issubdtype(mask.dtype, np.integer)):
        raise BadImage(path, f"is no mask: it must be whole numbers (H, W), not {mask.dtype} {mask.shape}")
    return mask.astype(np.uint8) if mask.dtype == np.bool_ else mask


def replaced(mask: np.ndarray, values: Mapping[int, int] | None) -> np.ndarray:
    """The label map with `values` put for those of the file; others stay."""
    if not values:
        return mask
    result = mask.astype(np.int64)
    for value, region in values.items():
        result[mask == value] = region
    return result


def _check_white(truth: np.ndarray, file: Path, overlapping: bool, values: Mapping[int, int] | None) -> None:
    """Fail on a mask of 0 and 255 alone: 255 is for unknown pixels, but black and white masks have it for a region."""
    if overlapping or values is not None or not (truth == UNKNOWN).any() or ((truth != 0) & (truth != UNKNOWN)).any():
        return
    raise FinetuneError(
        f"{file} has the values 0 and {UNKNOWN} alone. If {UNKNOWN} marks the region, give values={{{UNKNOWN}: 1}}; if "
        f"it marks unknown pixels, give values={{{UNKNOWN}: {UNKNOWN}}}."
    )
