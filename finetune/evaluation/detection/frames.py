"""Tables of boxes as text: their columns, and reading them so that every number keeps its bits."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import EXACT_FLOATS

SIDES = ("left", "top", "right", "bottom")
SIZES = ("image_width", "image_height")
BOX_COLUMNS = ("label", *SIDES, "score", "ignored", "area")
RESERVED = ("kind", "sample", "patient", *BOX_COLUMNS, *SIZES)
"""Columns of the table, which no metadata column may be called."""


def image_table(
    samples: Sequence[str],
    patients: Sequence[Any],
    metadata: pd.DataFrame | None = None,
    sizes: np.ndarray | None = None,
) -> pd.DataFrame:
    """The table of images; a blank patient is the sample itself."""
    names = pd.Series([str(sample) for sample in samples], dtype=str)
    people = pd.Series(list(patients), dtype=object)
    blank = people.isna() | (people.astype(str).str.strip() == "")
    sides = np.full((len(names), 2), np.nan) if sizes is None else np.asarray(sizes, np.float64).reshape(-1, 2)
    head = {
        "sample": names,
        "patient": people.where(~blank, names.astype(object)).astype(str),
        "image_width": sides[:, 0],
        "image_height": sides[:, 1],
    }
    frame = pd.DataFrame(head)
    return frame if metadata is None else pd.concat([frame, metadata.reset_index(drop=True)], axis=1)


def read_frame(path: str | Path, needed: Sequence[str]) -> pd.DataFrame:
    """A csv whose numbers are floats and whose other columns are text, as they stand."""
    numbers = [*SIDES, "score", "area", *SIZES]
    try:
        columns = list(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)
        if lacking := [name for name in needed if name not in columns]:
            raise FinetuneError(f"{path} is no table of boxes: it lacks {lacking}; its columns are {columns[:12]}.")
        return pd.read_csv(
            path,
            encoding="utf-8-sig",
            dtype={name: np.float64 if name in numbers else str for name in columns},
            keep_default_na=False,  # a label named NA is a label
            na_values={name: ["", "nan", "NaN", "null"] for name in numbers if name in columns},
            **EXACT_FLOATS,
        )
    except (OSError, UnicodeError, ValueError) as error:
        if isinstance(error, FinetuneError):
            raise
        raise FinetuneError(f"{path} cannot be read as a table of boxes: {error}") from error


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of text, as numbers where all their values are."""
    if not len(frame.columns):
        return pd.DataFrame(index=range(len(frame)))
    text = frame.to_csv(index=False)
    na_values = {name: [""] for name in frame.columns}
    return pd.read_csv(
        io.StringIO(text), keep_default_na=False, na_values=na_values, skip_blank_lines=False, **EXACT_FLOATS
    )


def numbered(column: pd.Series, values: dict[str, int], what: str, where: str) -> np.ndarray:
    """(M,) the number of each name; `what` it must be, for the error."""
    numbers = column.map(values)
    if (unknown := numbers.isna()).any():
        raise FinetuneError(f"{where}: a box is of {column.name} {column[unknown].iloc[0]!r}, which is no {what}.")
    return numbers.to_numpy(np.int64)


def flags(column: pd.Series, where: str) -> np.ndarray:
    """Text of 1, 0, true, false or blank -> bool."""
    text = column.fillna("").astype(str).str.strip().str.lower()
    if unknown := sorted(set(text) - {"", "0", "1", "0.0", "1.0", "false", "true"}):
        raise FinetuneError(f"{where}: ignored={unknown[0]!r} must be 1, 0 or blank.")
    return text.isin(["1", "1.0", "true"]).to_numpy(bool)


def box_area(corners: np.ndarray) -> np.ndarray:
    """(M, 4) left, top, right, bottom -> (M,)."""
    return np.asarray((corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]))


def box_lines(
    kind: str,
    image: np.ndarray,
    label: np.ndarray,
    corners: np.ndarray,
    about: Sequence[np.ndarray],
    samples: Sequence[str],
    names: Sequence[str],
    blank: str,
) -> Iterator[str]:
    """Lines of a csv, in the order of RESERVED, every float in full precision.

    Args:
        about: score, ignored and area (M,) each; NaN and False are blank.
        samples, names: quoted names of the images and of the classes.
        blank: the end of each line.
    """
    rows = zip(image.tolist(), label.tolist(), corners.tolist(), *(column.tolist() for column in about), strict=True)
    for i, k, (left, top, right, bottom), score, ignored, area in rows:
        score, area = ("" if number != number else repr(number) for number in (score, area))
        flag = "1" if ignored else ""
        yield f"{kind},{samples[i]},,{names[k]},{left!r},{top!r},{right!r},{bottom!r},{score},{flag},{area}{blank}\n"


def quoted(name: str) -> str:
    """The name as a cell of a csv."""
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\n\r') else name
