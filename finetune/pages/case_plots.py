"""The figures of masks and boxes: scores of single images, the FROC curve, confused regions, false positives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from finetune.pages.svg import DASHES, INK, MARKS, as_svg, color, new_figure, short, styled

MAX_MARKS = 500  # points of a series; more cannot be told apart
MAX_CELLS = 30  # regions up to which shares are written into the matrix
MAX_COUNT = 10  # false positives of an image; those with more share the last bar
JITTER = 0.62  # height of a strip, of the distance between two


@styled
def froc(curves: Mapping[str, Mapping[str, Sequence[float | None]]], label: str) -> str:
    """Sensitivity over false positives per image, with a band where a curve has limits.

    Args:
        curves: name -> {"false_positives", "sensitivity", and for a band "low", "high"}, lists of the same length; None
            where undefined. Of points without a false positive none is drawn, as the axis is logarithmic.
    """
    figure, axes = new_figure(4.4, 3.0)
    largest, smallest = 1.0, 1.0
    for i, (name, curve) in enumerate(curves.items()):
        x, y = _floats(curve["false_positives"]), _floats(curve["sensitivity"])
        drawn = (x > 0) & ~np.isnan(y)
        if not drawn.any():
            continue
        largest, smallest = max(largest, float(x[drawn].max())), min(smallest, float(x[drawn].min()))
        if curve.get("low") and curve.get("high"):
            low, high = _floats(curve["low"]), _floats(curve["high"])
            band = drawn & ~np.isnan(low) & ~np.isnan(high)
            axes.fill_between(x[band], low[band], high[band], color=color(i), alpha=0.18, linewidth=0)
        axes.plot(x[drawn], y[drawn], color=color(i), linestyle=DASHES[i % 4], label=short(name))
    axes.set_xscale("log", base=2)
    axes.set(ylim=(-0.02, 1.02), xlabel="false positives per image", ylabel="sensitivity")
    axes.set_xlim(smallest / 1.1, largest * 1.1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _fraction(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    if len(curves) > 1:
        axes.legend(loc="lower right", fontsize=8)
    return as_svg(figure, label)


@styled
def value_by_size(
    series: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]], label: str, x_label: str, y_label: str
) -> str:
    """A score of single images over the size of what they show, on a logarithmic axis.

    Args:
        series: name -> sizes and values of the same length; pairs with None, or without size, are left out.
    """
    figure, axes = new_figure(4.4, 3.0)
    for i, (name, (sizes, values)) in enumerate(series.items()):
        x, y = _floats(sizes), _floats(values)
        rows = np.flatnonzero((x > 0) & ~np.isnan(y))
        rows = rows[:: max(1, -(-len(rows) // MAX_MARKS))]
        axes.plot(
            x[rows], y[rows], MARKS[i % 4], color=color(i), alpha=0.55, markersize=3.5, label=short(name), clip_on=False
        )
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.set(ylim=(-0.02, 1.02), xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    if len(series) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, borderaxespad=0)
    return as_svg(figure, label)


@styled
def strips(series: Mapping[str, Sequence[float | None]], label: str, x_label: str) -> str:
    """One strip of points per name: the values of single images, from 0 to 1, with their quartiles as a box and the
    median as a line."""
    names = list(series)
    figure, axes = new_figure(3.7 + 0.07 * max((len(short(name)) for name in names), default=0), 0.8 + 0.5 * len(names))
    for i, name in enumerate(names):
        values = _floats(series[name])
        values = np.sort(values[~np.isnan(values)])
        if not len(values):
            continue
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        axes.add_patch(Rectangle((low, i - 0.36), high - low, 0.72, facecolor="none", edgecolor=INK, linewidth=0.9))
        axes.plot([middle, middle], [i - 0.36, i + 0.36], color=INK, linewidth=2)
        shown = values[:: max(1, -(-len(values) // MAX_MARKS))]
        place = (np.arange(len(shown)) * 0.618034) % 1 - 0.5  # spread evenly, and the same each time
        axes.plot(shown, i + JITTER * place, "o", color=color(0), alpha=0.45, markersize=2.8, clip_on=False)
    axes.set_yticks(np.arange(len(names)), [short(name) for name in names])
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.set(xlim=(-0.02, 1.02), xlabel=x_label)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.6)
    return as_svg(figure, label)


@styled
def region_confusion(counts: np.ndarray, names: Sequence[str], label: str) -> str:
    """Rows are the true region, columns the predicted one; a cell has its share of the row's pixels in percent."""
    counts = np.asarray(counts, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.0 + 0.42 * len(names) + 0.075 * max((len(short(name)) for name in names), default=0)
    figure, axes = new_figure(side, side)
    for row, column in np.argwhere(shares > 0):
        share = float(shares[row, column])
        patch = Rectangle((column - 0.5, row - 0.5), 1, 1, color=color(0), alpha=0.06 + 0.6 * share, lw=0)
        axes.add_patch(patch)
        if len(names) <= MAX_CELLS:
            text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
    end = max(len(names), 1) - 0.5
    axes.set(xlim=(-0.5, end), ylim=(end, -0.5), xlabel="prediction", ylabel="truth")
    axes.set_xticks(np.arange(len(names)), [short(name) for name in names], rotation=90)
    axes.set_yticks(np.arange(len(names)), [short(name) for name in names])
    axes.tick_params(length=0)
    axes.set_aspect("equal")
    return as_svg(figure, label)


@styled
def counts_histogram(counts: Sequence[int], label: str, x_label: str, y_label: str = "images") -> str:
    """How many images have 0, 1, 2, ... of something; those with MAX_COUNT or more share the last bar."""
    values = np.minimum(np.asarray(counts, np.int64), MAX_COUNT)
    bars = np.bincount(values, minlength=int(values.max(initial=0)) + 1)
    figure, axes = new_figure(4.4, 2.6)
    axes.bar(np.arange(len(bars)), bars, 0.8, color=color(0))
    axes.xaxis.set_major_locator(FixedLocator(list(range(len(bars)))))
    names: dict[int, Any] = {MAX_COUNT: f"{MAX_COUNT}+"}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: str(names.get(round(value), round(value)))))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.tick_params(axis="x", length=0)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    return as_svg(figure, label)


def _fraction(value: float) -> str:
    """1/8, 4"""
    return f"1/{round(1 / value)}" if 0 < value < 1 else f"{value:g}"


def _floats(values: Sequence[float | None]) -> np.ndarray:
    """None becomes NaN."""
    return np.array([np.nan if value is None else value for value in values], np.float64)
