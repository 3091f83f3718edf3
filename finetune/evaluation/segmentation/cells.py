"""Cells of the case table: whole numbers with blanks, and arrays of numbers as text."""

from __future__ import annotations

import numpy as np
import pandas as pd


def integers(values: np.ndarray) -> pd.Series:  # (N,) NaN where unknown -> of whole numbers
    return pd.Series(values, dtype="Float64").astype("Int64")


def as_text(numbers: np.ndarray | None) -> str | None:
    return None if numbers is None else " ".join(map(str, np.asarray(numbers).ravel().tolist()))


def as_numbers(cells: pd.Series) -> np.ndarray:  # -> (M,) float64 of all cells
    return np.array(" ".join(cells).split(), np.float64)
