"""Folders of images and masks: DIR/images and DIR/masks, or both in DIR/{train,val,test}; data=folder data.target=mask.

A mask has the name of its image, whatever the suffixes. It stands in masks/ at the image's place, with a pixel value
per region, or once per region in masks/REGION/.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from finetune.data.annotations import Layer, MaskFile, Regions
from finetune.data.decoding.images import IMAGE_SUFFIXES
from finetune.data.sources.boxed import bare_table, patients_from
from finetune.data.sources.listing import list_files, shorten
from finetune.data.sources.masks import Given, key_of, layered, layers_of, whole, with_masks
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError

IMAGES, MASKS = "images", "masks"


@dataclass
class _Listing:
    """What lies in one branch: the root, or the folder of a split."""

    split: str | None
    images: dict[str, str]
    """Key (the path below images/, without suffix) -> path relative to the root."""
    masks: dict[str, dict[str, str]] = field(default_factory=dict)
    """Region -> key -> path; the region is blank where one file has them all."""


def mask_folder(
    root: Path,
    branches: dict[str, str | None],
    regions: Given,
    overlapping: bool | None,
    patients: str | Path | None,
    on_bad: str,
) -> SampleTable:
    """The table of the images below root, by split and path. `branches`: folder of each split, blank for the root;
    `patients`: a CSV file with columns path and patient.

    Raises:
        FinetuneError: no images/ or no masks/; masks of both kinds; two files of one name; images without a mask,
            unless on_bad=skip leaves them out.
    """
    ignored: Counter[str] = Counter()
    parts = {branch: split for branch, split in branches.items() if (root / branch / IMAGES).is_dir()}
    if not parts:
        raise FinetuneError(
            f"data.root={root} has no folder {IMAGES}/; it has: {shorten(list_files(root), 8) or 'nothing'}. With "
            f"data.target=mask it needs DIR/{IMAGES} and DIR/{MASKS}, or both in DIR/train, DIR/val and DIR/test."
        )
    listings = [_listed(root, branch, split, ignored) for branch, split in parts.items()]
    names = sorted({name for listing in listings for name in listing.masks})
    if "" in names and len(names) > 1:
        raise FinetuneError(
            f"data.root={root}: {MASKS}/ has masks beside the folders {shorten(names[1:], 8)}. Put all masks of a "
            "region into a folder of its regions, or masks with all regions at the places of their images."
        )
    notes = [f"{count:,} {what} are left out." for what, count in sorted(ignored.items())]
    rows, more = _matched(root, listings, on_bad)
    if names == [""]:
        reader = whole(regions, overlapping, root, (files[""] for _, _, files in rows))
        notes += reader.notes
        masks: list[MaskFile | None] = [reader.mask(files[""]) for _, _, files in rows]
        shared = reader.regions
    else:
        shared = layered(regions, names, overlapping, f"folders in {MASKS}/")
        masks = [_layers(files, shared) for _, _, files in rows]
    paths = [path for path, _, _ in rows]
    table = bare_table(
        root,
        root.absolute().name,
        paths,
        splits=[split for _, split, _ in rows],
        patients=None if patients is None else patients_from(patients, paths),
        notes=[*notes, *more],
    )
    return with_masks(table, masks, shared)


def _layers(files: dict[str, str], regions: Regions) -> MaskFile | None:
    return layers_of({name: Layer(path) for name, path in files.items()}, regions)


def _listed(root: Path, branch: str, split: str | None, ignored: Counter[str]) -> _Listing:
    images, masks = (PurePosixPath(branch, name) for name in (IMAGES, MASKS))
    if not (root / masks).is_dir():
        raise FinetuneError(f"data.root={root} has {images}/, but no folder {masks}/.")
    listing = _Listing(split, _by_key(root, images, ignored))
    regions = {name for name in list_files(root / masks) if (root / masks / name).is_dir() and not name.startswith(".")}
    mirrored = {PurePosixPath(key).parts[0] for key in listing.images if len(PurePosixPath(key).parts) > 1}
    for name in sorted(regions - mirrored):
        listing.masks[name] = _by_key(root, masks / name, ignored)
    if whole_masks := _by_key(root, masks, ignored, without=regions - mirrored):
        listing.masks[""] = whole_masks
    return listing


def _by_key(root: Path, folder: PurePosixPath, ignored: Counter[str], without: Iterable[str] = ()) -> dict[str, str]:
    """Key -> path relative to root of every image file below a folder."""
    where: dict[str, str] = {}
    top = root / folder
    for base, folders, names in os.walk(top, followlinks=True):
        inner = Path(base).relative_to(top).as_posix()
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not (inner == "." and f in without))
        for name in sorted(names):
            if name.startswith("."):
                ignored["hidden files"] += 1
            elif not name.lower().endswith(IMAGE_SUFFIXES):
                ignored[f"files that are no images ({Path(name).suffix or 'no suffix'})"] += 1
            else:
                place = name if inner == "." else f"{inner}/{name}"
                path = (folder / place).as_posix()
                if (other := where.setdefault(key_of(place), path)) != path:
                    raise FinetuneError(
                        f"data.root={root}: {other} and {path} have one name, so that it is not clear whose mask is "
                        "whose. Rename one of them."
                    )
    return where


def _matched(
    root: Path, listings: list[_Listing], on_bad: str
) -> tuple[list[tuple[str, str | None, dict[str, str]]], list[str]]:
    """Path, split and region -> mask of every image that has one; the sentences on what lacks the other."""
    rows, lacking, alone = [], [], []
    for listing in listings:
        for key, path in sorted(listing.images.items()):
            files = {name: paths[key] for name, paths in listing.masks.items() if key in paths}
            if files:
                rows.append((path, listing.split, files))
            else:
                lacking.append(path)
        alone += [path for files in listing.masks.values() for key, path in files.items() if key not in listing.images]
    notes = []
    if lacking:
        total = len(lacking) + len(rows)
        what = f"{len(lacking):,} of {total:,} images have no mask of their name: {shorten(lacking)}."
        if on_bad == "stop" or not rows:
            hint = f" Masks without an image: {shorten(sorted(alone))}." if alone else ""
            way = " data.on_bad=skip leaves them out." if rows else ""
            raise FinetuneError(f"data.root={root}: {what}{hint}{way}")
        notes.append(f"Left out (data.on_bad=skip): {what}")
    if not rows:
        raise FinetuneError(f"data.root={root}: {IMAGES}/ holds no images ({', '.join(IMAGE_SUFFIXES)}).")
    if alone:
        notes.append(f"{len(alone):,} masks have no image of their name: {shorten(sorted(alone))}.")
    return rows, notes
