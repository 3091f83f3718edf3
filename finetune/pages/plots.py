"""The figures of scores: curves, intervals, shares and matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.stats import norm

from finetune.evaluation.classification.reliability import Bins
from finetune.pages.svg import (
    DASHES,
    INK,
    MARKS,
    MAX_POINTS,
    as_svg,
    color,
    finish,
    new_figure,
    short,
    square_axes,
    styled,
)
from finetune.statistics.curves import thinned
from finetune.statistics.intervals import LEVEL
from finetune.statistics.ranking import curves


@styled
def roc(target: np.ndarray, score: np.ndarray, label: str) -> str:
    """Sensitivity over 1 - specificity of one class."""
    true, false = curves(target, score)
    figure, axes = square_axes()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    if true[-1] and false[-1]:
        axes.plot(*thinned(false / false[-1], true / true[-1], MAX_POINTS), color=color(0))
    finish(axes, "1 − specificity", "sensitivity")
    return as_svg(figure, label)


@styled
def precision_recall(target: np.ndarray, score: np.ndarray, label: str) -> str:
    """Precision over recall of one class; dotted is the share of positives, as guessing gives."""
    true, false = curves(target, score)
    figure, axes = square_axes()
    if true[-1]:
        share = true[-1] / (true[-1] + false[-1])
        axes.axhline(share, color=INK, linewidth=0.8, linestyle=":")
        precision = true[1:] / (true[1:] + false[1:])
        axes.plot(*thinned(true[1:] / true[-1], precision, MAX_POINTS), color=color(0), drawstyle="steps-pre")
    finish(axes, "recall (sensitivity)", "precision (PPV)")
    return as_svg(figure, label)


@styled
def reliability(bins: Bins, label: str, calibrated: Bins | None = None) -> str:
    """Share of positives over the predicted probability, bin by bin with Wilson's 95 % interval; below it how many
    images each bin holds. `bins` of the network and, where there are some, of its calibrated probabilities."""
    bins_by_name = {"network": bins} if calibrated is None else {"network": bins, "calibrated": calibrated}
    edges = {name: wilson(bins_of_one.observed_rate, bins_of_one.count) for name, bins_of_one in bins_by_name.items()}
    numbers = [
        v
        for name, bins_of_one in bins_by_name.items()
        for v in (bins_of_one.mean_confidence, bins_of_one.observed_rate, edges[name][1])
    ]
    end = min(1.0, max(0.05, 1.05 * float(np.max(np.concatenate(numbers), initial=0))))
    figure = Figure(figsize=(2.85, 3.3))
    axes, below = figure.add_axes((0.22, 0.32, 0.74, 0.62)), figure.add_axes((0.22, 0.135, 0.74, 0.13))
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    for i, (name, bins_of_one) in enumerate(bins_by_name.items()):
        low, high = edges[name]
        axes.vlines(bins_of_one.mean_confidence, low, high, color=color(i), linewidth=1, alpha=0.7)
        axes.plot(
            bins_of_one.mean_confidence,
            bins_of_one.observed_rate,
            MARKS[i],
            markersize=4.5,
            label=name,
            color=color(i),
            clip_on=False,
        )
        offset = (i - (len(bins_by_name) - 1) / 2) * 0.025 * end  # so that neither hides the other
        below.vlines(bins_of_one.mean_confidence + offset, 0, bins_of_one.count, color=color(i), linewidth=3, alpha=0.8)
    if calibrated is not None:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, handletextpad=0.2, borderaxespad=0)
    finish(axes, "", "share of positives", end)
    axes.set_xticklabels([])
    below.set(xlim=axes.get_xlim(), xlabel="predicted probability", ylabel="images")
    below.set_ylim(0, 1.1 * max([1, *(int(bins_of_one.count.max(initial=0)) for bins_of_one in bins_by_name.values())]))
    below.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    below.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    figure.align_ylabels((axes, below))
    return as_svg(figure, label)


@styled
def risk_coverage(coverage: Sequence[float], errors: Sequence[float], label: str) -> str:
    """Share of wrong predictions over the share of images answered, the most confident first."""
    figure, axes = square_axes()
    axes.plot(coverage, errors, color=color(0), drawstyle="steps-post")
    axes.set(xlim=(-0.02, 1.02), ylim=(0, None), xlabel="coverage: share answered", ylabel="share wrong")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    return as_svg(figure, label)


@styled
def lines(x: Sequence[float], series: Mapping[str, Sequence[float]], label: str, x_label: str = "epoch") -> str:
    """Up to four curves over the epochs; gaps (NaN) are bridged."""
    figure, axes = new_figure(4.2, 2.6)
    for i, (name, values) in enumerate(series.items()):
        has_value = ~np.isnan(np.asarray(values, np.float64))
        points = thinned(np.asarray(x, np.float64)[has_value], np.asarray(values, np.float64)[has_value], MAX_POINTS)
        mark = MARKS[i % 4] if len(points[0]) <= 30 else ""
        axes.plot(*points, color=color(i), linestyle=DASHES[i % 4], marker=mark, markersize=3.5, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.set_xlabel(x_label)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    if series:
        axes.legend(loc="best", fontsize=9)
    return as_svg(figure, label)


@styled
def bars(names: Sequence[str], series: Mapping[str, Sequence[float]], label: str, x_label: str) -> str:
    """Shares between 0 and 1, one group of bars per name and one bar per series."""
    figure, axes = new_figure(6.4, 0.8 + len(names) * (0.13 * len(series) + 0.14))
    thick = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        y = np.arange(len(names)) + (i - (len(series) - 1) / 2) * thick
        axes.barh(y, np.nan_to_num(np.asarray(values, np.float64)), thick * 0.9, color=color(i), label=name)
    axes.set_yticks(np.arange(len(names)), [short(name) for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0 if axes.get_xlim()[1] > 0.05 else None, symbol=" %"))
    axes.set_xlabel(x_label)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.6)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series), fontsize=9, borderaxespad=0)
    return as_svg(figure, label)


@styled
def forest(rows: Sequence[tuple[str, Mapping[str, Any]]], label: str, x_label: str, chance: float | None = None) -> str:
    """One line per row: {value, low, high} as a point with its interval; a dotted line at `chance`."""
    names = [short(name, 48) for name, _ in rows]
    figure, axes = new_figure(3.7 + 0.07 * max((len(name) for name in names), default=0), 0.75 + 0.26 * len(rows))
    if chance is not None:
        axes.axvline(chance, color=INK, linewidth=0.8, linestyle=":")
    for i, (_, score) in enumerate(rows):
        if score.get("value") is None:
            continue
        if score.get("low") is not None and score.get("high") is not None:
            axes.plot([score["low"], score["high"]], [i, i], color=color(0), linewidth=1.6)
        axes.plot([score["value"]], [i], "s", markersize=5, color=color(0))
    axes.set_yticks(np.arange(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(x_label)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.6)
    return as_svg(figure, label)


@styled
def confusion(counts: np.ndarray, classes: Sequence[str], label: str) -> str:
    """Rows are the true class, columns the prediction; a cell is as dark as its share of the row."""
    counts = np.asarray(counts, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 0.8 + 0.34 * len(classes) + 0.075 * max(len(short(name)) for name in classes)
    figure, axes = new_figure(side, side)
    for row, column in np.argwhere(counts > 0):
        alpha = 0.06 + 0.74 * float(shares[row, column])
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=color(0), alpha=alpha, lw=0))
        if len(classes) <= 30:
            axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5), xlabel="prediction", ylabel="truth")
    axes.set_xticks(np.arange(len(classes)), [short(name) for name in classes], rotation=90)
    axes.set_yticks(np.arange(len(classes)), [short(name) for name in classes])
    axes.tick_params(length=0)
    axes.set_aspect("equal")
    return as_svg(figure, label)


def merged(bins: Bins, minimum: int) -> Bins:
    """Merge neighbouring bins until each holds `minimum` samples; a remainder joins the last."""
    groups: list[list[int]] = [[]]
    for i in range(len(bins.count)):
        if groups[-1] and bins.count[groups[-1]].sum() >= minimum:
            groups.append([])
        groups[-1].append(i)
    if len(groups) > 1 and bins.count[groups[-1]].sum() < minimum:
        last = groups.pop()
        groups[-1] += last
    count = np.array([bins.count[group].sum() for group in groups if group])
    sums = [
        [(values[g] * bins.count[g]).sum() for g in groups if g]
        for values in (bins.mean_confidence, bins.observed_rate)
    ]
    mean_confidence, observed_rate = (
        np.array(weighted_sum, np.float64) / count if len(count) else np.zeros(0) for weighted_sum in sums
    )
    return Bins(count, mean_confidence, observed_rate)


def wilson(share: np.ndarray, n: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Limits of shares (B,) of `n` independent images each (Wilson, 1927)."""
    z2 = float(norm.ppf((1 + level) / 2)) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return np.maximum(centre - reach, 0), np.minimum(centre + reach, 1)
