"""Boxes of a table with a row per box: data=csv data.target=boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from finetune.data.classes import class_name
from finetune.data.sources.boxed import BoxList, Faults
from finetune.data.sources.listing import need_columns
from finetune.errors import FinetuneError, one_of

SIDES, CORNERS = "sides", "corners"
THIRD = {SIDES: r"^w|w$|width", CORNERS: r"x[_ ]?[12]$|max|right"}
"""Form of a box -> what the third of its columns is called."""


def form_of(columns: Sequence[str], form: str | None) -> str:
    """sides (x, y, w, h) or corners (x1, y1, x2, y2), by the name of the third column where `form` is None.

    Raises:
        FinetuneError: not four columns, or names that do not say it.
    """
    if form not in (None, SIDES, CORNERS):
        raise one_of("data.box_form", form, (SIDES, CORNERS))
    if len(columns) != 4 or len(set(columns)) != 4:
        raise FinetuneError(f"data.boxes={list(columns)} must be four columns: [x,y,w,h], or [x1,y1,x2,y2] of corners.")
    forms = [name for name, pattern in THIRD.items() if re.search(pattern, columns[2].lower())]
    if form or len(forms) == 1:
        return form or forms[0]
    raise FinetuneError(
        f"data.boxes={list(columns)}: is {columns[2]} a width or a right border? Set data.box_form={SIDES} (x, y, "
        f"width, height) or data.box_form={CORNERS} (left, top, right, bottom)."
    )


def per_image(
    rows: pd.DataFrame,
    paths: Sequence[str],
    columns: Sequence[str],
    label: str,
    *,
    form: str,
    same: Sequence[str],
    file: Path,
    faults: Faults,
) -> tuple[np.ndarray, BoxList]:  # -> (images,), boxes
    """The place of each image's first row, and the boxes of the images by their place in that list.

    A row whose four cells are blank has no box. The columns `same` belong to the image.

    Raises:
        FinetuneError: a column is absent, or one of `same` differs between the rows of an image.
    """
    for name in columns:
        need_columns(rows, {"data.boxes": name}, file)
    need_columns(rows, {"data.label": label}, file)
    image, names = pd.factorize(np.array(paths, dtype=object))
    first = np.unique(image, return_index=True)[1]
    for name in same:
        cells = rows[name].str.strip().to_numpy()
        if len(other := np.flatnonzero(cells != cells[first][image])):
            place = other[0]
            raise FinetuneError(
                f"{file}, line {rows.index[place] + 2}: column {name} is {cells[place]!r}, and "
                f"{cells[first[image[place]]]!r} in another row of {names[image[place]]}."
            )
    cells = rows[list(columns)].apply(lambda column: column.str.strip())
    drawn = (cells != "").any(axis=1).to_numpy()
    numbers = np.column_stack([pd.to_numeric(cells[name], errors="coerce").to_numpy(float) for name in columns])
    if form == SIDES:
        numbers[:, 2:] += numbers[:, :2]
    boxes, labels = BoxList(), rows[label].str.strip().to_numpy()
    for row in np.flatnonzero(drawn).tolist():
        place = f"{file}, line {rows.index[row] + 2}"
        if labels[row]:
            boxes.add(int(image[row]), class_name(labels[row]), numbers[row].tolist(), place)
        else:
            faults.add("box(es) without a label", place)
            boxes.lost.add(int(image[row]))
    return first, boxes
