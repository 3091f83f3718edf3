"""The report's figures as SVG text: small, without outside references, in the page's own light and dark colours."""

from __future__ import annotations

import html
import io
import re
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.stats import norm

from finetune.evaluation.classification.reliability import Bins
from finetune.statistics.curves import thinned
from finetune.statistics.intervals import LEVEL
from finetune.statistics.ranking import curves

# Written into the drawing, then replaced: a page may set --series-0..3 (once for light, once for dark); alone they are
# the colours behind the comma. Blue, vermilion, green, purple after Okabe and Ito, safe for colour-blind readers.
SERIES = {"#010100": "#0072b2", "#010101": "#d55e00", "#010102": "#009e73", "#010103": "#a6559d"}
INK = "#010110"
MARKS = ("o", "s", "^", "D")
DASHES = ("-", "--", "-.", ":")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "svg.hashsalt": "finetune",  # the same figure is the same file
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
}
MAX_POINTS = 300  # of a curve; more cannot be seen


def _styled(draw: Callable[..., str]) -> Callable[..., str]:
    """The style holds while a figure is drawn, and no longer."""

    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> str:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def roc(target: np.ndarray, score: np.ndarray, label: str) -> str:
    """Sensitivity over 1 - specificity of one class."""
    true, false = curves(target, score)
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    if true[-1] and false[-1]:
        axes.plot(*thinned(false / false[-1], true / true[-1], MAX_POINTS), color=_color(0))
    _finish(axes, "1 − specificity", "sensitivity")
    return _svg(figure, label)


@_styled
def precision_recall(target: np.ndarray, score: np.ndarray, label: str) -> str:
    """Precision over recall of one class; dotted is the share of positives, as guessing gives."""
    true, false = curves(target, score)
    figure, axes = _square()
    if true[-1]:
        share = true[-1] / (true[-1] + false[-1])
        axes.axhline(share, color=INK, linewidth=0.8, linestyle=":")
        precision = true[1:] / (true[1:] + false[1:])
        axes.plot(*thinned(true[1:] / true[-1], precision, MAX_POINTS), color=_color(0), drawstyle="steps-pre")
    _finish(axes, "recall (sensitivity)", "precision (PPV)")
    return _svg(figure, label)


@_styled
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
        axes.vlines(bins_of_one.mean_confidence, low, high, color=_color(i), linewidth=1, alpha=0.7)
        axes.plot(
            bins_of_one.mean_confidence,
            bins_of_one.observed_rate,
            MARKS[i],
            markersize=4.5,
            label=name,
            color=_color(i),
            clip_on=False,
        )
        offset = (i - (len(bins_by_name) - 1) / 2) * 0.025 * end  # so that neither hides the other
        below.vlines(
            bins_of_one.mean_confidence + offset, 0, bins_of_one.count, color=_color(i), linewidth=3, alpha=0.8
        )
    if calibrated is not None:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, handletextpad=0.2, borderaxespad=0)
    _finish(axes, "", "share of positives", end)
    axes.set_xticklabels([])
    below.set(xlim=axes.get_xlim(), xlabel="predicted probability", ylabel="images")
    below.set_ylim(0, 1.1 * max([1, *(int(bins_of_one.count.max(initial=0)) for bins_of_one in bins_by_name.values())]))
    below.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    below.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    figure.align_ylabels((axes, below))
    return _svg(figure, label)


@_styled
def risk_coverage(coverage: Sequence[float], errors: Sequence[float], label: str) -> str:
    """Share of wrong predictions over the share of images answered, the most confident first."""
    figure, axes = _square()
    axes.plot(coverage, errors, color=_color(0), drawstyle="steps-post")
    axes.set(xlim=(-0.02, 1.02), ylim=(0, None), xlabel="coverage: share answered", ylabel="share wrong")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    return _svg(figure, label)


@_styled
def lines(x: Sequence[float], series: Mapping[str, Sequence[float]], label: str, x_label: str = "epoch") -> str:
    """Up to four curves over the epochs; gaps (NaN) are bridged."""
    figure, axes = _figure(4.2, 2.6)
    for i, (name, values) in enumerate(series.items()):
        has_value = ~np.isnan(np.asarray(values, np.float64))
        points = thinned(np.asarray(x, np.float64)[has_value], np.asarray(values, np.float64)[has_value], MAX_POINTS)
        mark = MARKS[i % 4] if len(points[0]) <= 30 else ""
        axes.plot(*points, color=_color(i), linestyle=DASHES[i % 4], marker=mark, markersize=3.5, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.set_xlabel(x_label)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    if series:
        axes.legend(loc="best", fontsize=9)
    return _svg(figure, label)


@_styled
def bars(names: Sequence[str], series: Mapping[str, Sequence[float]], label: str, x_label: str) -> str:
    """Shares between 0 and 1, one group of bars per name and one bar per series."""
    figure, axes = _figure(6.4, 0.8 + len(names) * (0.13 * len(series) + 0.14))
    thick = 0.8 / max(len(series), 1)
    for i, (name, values) in enumerate(series.items()):
        y = np.arange(len(names)) + (i - (len(series) - 1) / 2) * thick
        axes.barh(y, np.nan_to_num(np.asarray(values, np.float64)), thick * 0.9, color=_color(i), label=name)
    axes.set_yticks(np.arange(len(names)), [_short(name) for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0 if axes.get_xlim()[1] > 0.05 else None, symbol=" %"))
    axes.set_xlabel(x_label)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.6)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series), fontsize=9, borderaxespad=0)
    return _svg(figure, label)


@_styled
def forest(rows: Sequence[tuple[str, Mapping[str, Any]]], label: str, x_label: str, chance: float | None = None) -> str:
    """One line per row: {value, low, high} as a point with its interval; a dotted line at `chance`."""
    names = [_short(name, 48) for name, _ in rows]
    figure, axes = _figure(3.7 + 0.07 * max((len(name) for name in names), default=0), 0.75 + 0.26 * len(rows))
    if chance is not None:
        axes.axvline(chance, color=INK, linewidth=0.8, linestyle=":")
    for i, (_, score) in enumerate(rows):
        if score.get("value") is None:
            continue
        if score.get("low") is not None and score.get("high") is not None:
            axes.plot([score["low"], score["high"]], [i, i], color=_color(0), linewidth=1.6)
        axes.plot([score["value"]], [i], "s", markersize=5, color=_color(0))
    axes.set_yticks(np.arange(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(x_label)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.6)
    return _svg(figure, label)


@_styled
def confusion(counts: np.ndarray, classes: Sequence[str], label: str) -> str:
    """Rows are the true class, columns the prediction; a cell is as dark as its share of the row."""
    counts = np.asarray(counts, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 0.8 + 0.34 * len(classes) + 0.075 * max(len(_short(name)) for name in classes)
    figure, axes = _figure(side, side)
    for row, column in np.argwhere(counts > 0):
        alpha = 0.06 + 0.74 * float(shares[row, column])
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=_color(0), alpha=alpha, lw=0))
        if len(classes) <= 30:
            axes.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5), xlabel="prediction", ylabel="truth")
    axes.set_xticks(np.arange(len(classes)), [_short(name) for name in classes], rotation=90)
    axes.set_yticks(np.arange(len(classes)), [_short(name) for name in classes])
    axes.tick_params(length=0)
    axes.set_aspect("equal")
    return _svg(figure, label)


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


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Inches at 72 px; the axes take the room that their labels leave."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _square() -> tuple[Figure, Axes]:
    """Small axes of equal sides, always in the same place, so that figures side by side line up."""
    figure = Figure(figsize=(2.85, 2.6))
    return figure, figure.add_axes((0.225, 0.175, 0.74, 0.8))


def _finish(axes: Axes, x_label: str, y_label: str, end: float = 1.0) -> None:
    margin = 0.02 * end
    axes.set(xlim=(-margin, end + margin), ylim=(-margin, end + margin), xlabel=x_label, ylabel=y_label)
    axes.set_aspect("equal")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))


def _color(number: int) -> str:
    return list(SERIES)[number % len(SERIES)]


def _short(name: str, limit: int = 28) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _svg(figure: Figure, label: str) -> str:
    """The drawing as one <svg> element for a page: colours as variables, ids of its own, a text for screen readers."""
    text = io.StringIO()
    with warnings.catch_warnings():
        # the browser has the letters that matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>\s*", "", svg, count=1, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)  # the page's own
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)  # the same as matplotlib < 3.10 writes it
    svg = re.sub(r'(?<= )(d|x|y|transform)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    prefix = f"f{zlib.crc32((label + svg).encode()):08x}-"  # figures of one page must not share ids
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for number, (mark, alone) in enumerate(SERIES.items()):
        svg = svg.replace(mark, f"var(--series-{number}, {alone})")
    svg = svg.replace(INK, "currentColor")
    width, height = figure.get_size_inches() * 72
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{html.escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width: {1.25 * width:.0f}px; stroke-linejoin: round">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
