"""Curves as few points, for pages and files."""

import numpy as np


def thinned(x: np.ndarray, y: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a curve, evenly along its length, its ends among them."""
    if len(x) <= limit:
        return x, y

    def steps(values: np.ndarray) -> np.ndarray:
        return np.abs(np.diff(values)) / max(float(np.ptp(values)), 1e-300)

    length = np.r_[0, np.cumsum(steps(x) + steps(y))]
    keep = np.unique(np.r_[0, np.searchsorted(length, np.linspace(0, length[-1], limit - 2)), len(x) - 1])
    keep = keep[keep < len(x)]
    return x[keep], y[keep]
