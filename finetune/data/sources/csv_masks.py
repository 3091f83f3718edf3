"""Masks in the cells of a table: paths or runs of pixels, in one column or in one per region; data=csv data.mask=..."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from finetune.data.annotations import Layer, MaskFile, Regions
from finetune.data.regions import BACKGROUND
from finetune.data.sources.listing import below, shorten
from finetune.data.sources.masks import Given, layered, layers_of, whole
from finetune.errors import FinetuneError

RUNS = re.compile(r"-1|[\d\s]+")
NOTHING = "-1"  # a cell that says: looked at, and nothing there


def cell_masks(
    rows: pd.DataFrame,
    mask: str | list[str],
    regions: Given,
    overlapping: bool | None,
    root: Path,
) -> tuple[list[MaskFile | None], Regions, list[str]]:
    """The mask of each row, the regions, and sentences on them.

    A cell is a path (from `root`, or absolute below it), `start length start length ...` as in decode_rle, -1 for a
    mask that is empty, or blank for one that is not known. With a list of columns each is a region; `regions` gives
    them names, else the columns do.

    Raises:
        FinetuneError: names and columns differ in number, paths and runs in the one column with all regions.
    """
    if isinstance(mask, list):
        shared = layered(None, _names(regions, mask), overlapping, "columns")
        names = [name for name in shared.names if name != BACKGROUND]
        layers = [_layers(rows[column].str.strip(), root) for column in mask]
        masks = [layers_of(dict(zip(names, of_row, strict=True)), shared) for of_row in zip(*layers, strict=True)]
        return masks, shared, []
    column = rows[mask].str.strip()
    runs = [RUNS.fullmatch(cell) is not None for cell in column if cell]
    if all(runs):
        name = _names(regions, [mask])[0]
        shared = Regions([name], True) if overlapping else Regions([BACKGROUND, name])
        return [MaskFile(rle=_runs(cell)) if cell else None for cell in column], shared, []
    if any(runs):
        raise FinetuneError(
            f"data.mask={mask} holds paths in {runs.count(False):,} rows and runs of pixels in {runs.count(True):,}: "
            "it takes one of the two."
        )
    paths = below(root, column)
    files = whole(regions, overlapping, root, sorted({path for path in paths if path}))
    return [files.mask(path) if path else None for path in paths], files.regions, list(files.notes)


def _names(regions: Given, columns: list[str]) -> list[str]:
    names = [str(name) for name in regions or columns if str(name) != BACKGROUND]
    if not isinstance(regions, list | None) or len(names) != len(columns):
        raise FinetuneError(
            f"data.regions={regions} must be {len(columns)} name(s), one for each column of "
            f"data.mask=[{shorten(columns, 12).replace(' ', '')}]."
        )
    return names


def _layers(column: pd.Series, root: Path) -> list[Layer | None]:
    """One for each cell, None for a blank one."""
    pairs = zip(column, below(root, column), strict=True)
    return [
        None if not cell else Layer(rle=_runs(cell)) if RUNS.fullmatch(cell) else Layer(path) for cell, path in pairs
    ]


def _runs(cell: str) -> str:
    return "" if cell == NOTHING else cell
