"""The figures of a search: scores over its trials, the share of each setting, and each trial as a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from finetune.pages.svg import INK, as_svg, color, new_figure, short, styled


@styled
def history(trials: Sequence[Mapping[str, Any]], monitor: str, *, higher_is_better: bool) -> str:
    """The score of each completed trial over its number, the best so far as a line, the others as ticks below."""
    done = [trial for trial in trials if trial["score"] is not None]
    figure, axes = new_figure(5.4, 2.9)
    numbers, scores = [trial["number"] for trial in done], np.array([trial["score"] for trial in done], np.float64)
    axes.plot(numbers, scores, "o", markersize=4, color=color(0), label="trial")
    if len(scores):
        best = np.maximum.accumulate(scores) if higher_is_better else np.minimum.accumulate(scores)
        axes.step(numbers, best, where="post", color=color(1), label="best so far")
    for i, (state, text) in enumerate((("pruned", "stopped early"), ("failed", "failed"))):
        places = [trial["number"] for trial in trials if trial["state"] == state]
        if places:
            axes.plot(places, [0.01 + 0.03 * i] * len(places), "|x"[i], transform=axes.get_xaxis_transform(),
                      color=INK, markersize=5, alpha=0.7, label=text, clip_on=False)  # fmt: skip
    axes.set(xlabel="trial", ylabel=monitor)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.6)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8, borderaxespad=0)
    return as_svg(figure, f"{monitor} of each trial")


@styled
def importance(shares: Mapping[str, float]) -> str:
    """A bar per searched key, as long as its share."""
    figure, axes = new_figure(5.4, 0.7 + 0.28 * len(shares))
    places = np.arange(len(shares))
    axes.barh(places, list(shares.values()), 0.6, color=color(0))
    for place, share in enumerate(shares.values()):
        axes.text(share, place, f" {share:.2f}", va="center", fontsize=8.5)
    axes.set_yticks(places, [short(key, 32) for key in shares])
    axes.set_ylim(len(shares) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max([0.01, *shares.values()]))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("share")
    return as_svg(figure, "importance of each setting")


@styled
def parallel(
    trials: Sequence[Mapping[str, Any]],
    space: Sequence[str],
    choices: Mapping[str, Sequence[str]],
    logarithmic: Sequence[str],
    monitor: str,
    *,
    higher_is_better: bool,
) -> str:
    """A line per completed trial through its value of each key and its score; the best tenth stands out.

    Args:
        choices: key -> labels of its values, for the keys that are choices.
        logarithmic: keys on a logarithmic scale.
    """
    done = [trial for trial in trials if trial["score"] is not None]
    keys = [*space, monitor]
    figure, axes = new_figure(max(5.4, 1.5 * len(keys)), 3.3)
    columns, limits = [], []
    for key in keys:
        if key in choices:
            values = [float(choices[key].index(trial["parameters"][key])) for trial in done]
            low, high = -0.3, len(choices[key]) - 0.7
        else:
            values = [trial["score"] if key == monitor else float(trial["parameters"][key]) for trial in done]
            values = [math.log10(value) for value in values] if key in logarithmic else values
            low, high = (min(values), max(values)) if values else (0.0, 1.0)
        span = high - low or 1.0
        columns.append([(value - low) / span for value in values])
        limits.append((low, high))
    order = sorted(range(len(done)), key=lambda i: done[i]["score"], reverse=not higher_is_better)
    best = set(order[-max(1, math.ceil(len(done) / 10)) :]) if done else set()
    for i in order:
        is_best = i in best
        axes.plot(range(len(keys)), [column[i] for column in columns], color=color(1) if is_best else color(0),
                  alpha=0.95 if is_best else 0.25, linewidth=1.6 if is_best else 0.9)  # fmt: skip
    for place, (key, (low, high)) in enumerate(zip(keys, limits, strict=True)):
        axes.axvline(place, color=INK, linewidth=0.7, alpha=0.6)
        if key in choices:
            for i, name in enumerate(choices[key]):
                axes.text(place + 0.03, (i - low) / (high - low), short(name, 14), fontsize=8, va="center")
            continue
        for value, height in ((low, -0.02), (high, 1.02)):
            number = 10**value if key in logarithmic else value
            text = f"{number:.3g}"
            axes.text(place, height, text, fontsize=8, ha="center", va="top" if height < 0 else "bottom")
    axes.set(ylim=(-0.1, 1.1), xlim=(-0.3, len(keys) - 0.6))
    axes.set_xticks(range(len(keys)), [short(key, 20) for key in keys], fontsize=8.5)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return as_svg(figure, "settings and score of each completed trial")
