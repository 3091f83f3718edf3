"""A search in words: sentences for the terminal and the experiment file, and tuning.html."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from finetune.evaluation import wording
from finetune.files import write_text_atomic
from finetune.pages import search_plots
from finetune.pages.environment import render
from finetune.statistics.intervals import LEVEL

WORST_FIRST = ("failed", "killed", "running", "pruned", "complete")
STATES = {"pruned": "stopped early"}


def shown(value: Any) -> str:
    """A value of a setting with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def setting(values: Mapping[str, Any]) -> str:
    """`optimizer.lr=0.0003 loss=focal`"""
    return " ".join(f"{key}={shown(value)}" for key, value in values.items())


def counted(trials: list[dict[str, Any]]) -> str:
    """`50 trials: 31 complete, 17 stopped early, 2 failed`"""
    counts = Counter(trial["state"] for trial in trials)
    parts = [f"{counts[state]} {STATES.get(state, state)}" for state in reversed(WORST_FIRST) if counts[state]]
    return f"{wording.counted(len(trials), 'trial')}: {', '.join(parts)}"


def best_of(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The chosen candidate."""
    return next(candidate for candidate in summary["top"] if candidate["number"] == summary["best"])


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What a search has found, and how far to trust it."""
    best, monitor, n_seeds = best_of(summary), summary["monitor"], len(best_of(summary)["seeds"])
    interval, title = best["interval"], summary["interval_of"]
    lines = [f"{counted(summary['trials'])}."]
    if best["mean"] is None:
        lines.append(f"Best: trial {best['number']}, {monitor} {best['score']:.3f}, one seed.")
    else:
        seeds = wording.counted(n_seeds, "new seed")
        lines.append(
            f"Best: trial {best['number']}, {monitor} {best['mean']:.3f} as the mean of {seeds} "
            f"(in the search itself {best['score']:.3f})."
        )
    if interval:
        about = f"{100 * LEVEL:.0f} % interval over patients, for fixed networks"
        lines.append(f"{title} on val {wording.interval(interval)}: {about}.")
    if noise := summary["noise"]:
        lines.append(
            f"Noise floor: standard deviation over seeds {noise['sd']:.4f} ({noise['df']} degrees of freedom). "
            f"Two trials that differ by less than {noise['single']:.3f} may differ by their seeds alone."
        )
    start = next((t for t in summary["trials"] if t["number"] == summary["start"] and t["score"] is not None), None)
    if start is not None:
        lines.append(f"The configuration as typed (trial {start['number']}) had {start['score']:.3f}.")
    lines.append(
        "The best score of a search is optimistic: it is the best of many on the same val images. "
        "Only a fit of this configuration, evaluated once on test, says how good it is."
    )
    return lines


def table(summary: Mapping[str, Any]) -> list[str]:
    """The best trials for a terminal: mean over the seeds, each seed, the trial itself, and its settings."""
    lines = [f"the best on val, {summary['monitor']}:"]
    for candidate in summary["top"]:
        seeds = " ".join(f"{seed['score']:.3f}" for seed in candidate["seeds"])
        mean = "" if candidate["mean"] is None else f"mean {candidate['mean']:.3f} ({seeds}), in the search "
        lines.append(f"  trial {candidate['number']}: {mean}{candidate['score']:.3f}  {setting(candidate['values'])}")
    return lines


def write(path: Path, summary: Mapping[str, Any]) -> Path:
    """tuning.html: one file, nothing loaded from elsewhere."""
    trials, monitor, higher = summary["trials"], summary["monitor"], summary["higher_is_better"]
    done = [trial for trial in trials if trial["score"] is not None]
    order = sorted(done, key=lambda trial: (-trial["score"] if higher else trial["score"], trial["number"]))
    others = sorted(
        (trial for trial in trials if trial["score"] is None),
        key=lambda trial: (-WORST_FIRST.index(trial["state"]), trial["number"]),
    )
    figures = [("Score of each trial", search_plots.history(trials, monitor, higher_is_better=higher))]
    if summary["importance"]:
        figures.append(("Importance of each setting", search_plots.importance(summary["importance"])))
    lines = search_plots.parallel(
        trials, list(summary["space"]), summary["choices"], summary["logarithmic"], monitor, higher_is_better=higher
    )
    page = render(
        "search.html.j2",
        summary=summary,
        best=best_of(summary),
        sentences=sentences(summary),
        counted_trials=counted(trials),
        trials=[*order, *others],
        states=STATES,
        shown=shown,
        setting=setting,
        figures=[(caption, Markup(figure)) for caption, figure in figures],
        parallel=Markup(lines) if len(done) > 1 else None,
        command=wording.shortened_command(summary["command"]),
        use=wording.shortened_command(summary["use"]),
    )
    return write_text_atomic(path, page)
