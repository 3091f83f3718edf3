"""How often the 95 % intervals hold the truth in simulated worlds, and what 2,000 resamples cost; writes INTERVALS.md.

python benchmarks/intervals.py [--worlds 2000]
"""

import argparse
import os
import platform
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import norm

from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import Scorer
from finetune.evaluation.classification.summary import Support, summarise, with_intervals
from finetune.statistics import intervals
from finetune.statistics.intervals import Interval, delong, on_logit_scale, percentile, resamples, spread
from finetune.statistics.ranking import Ranking

RESAMPLES = 400
AUROC_METHODS = (
    "percentile, images drawn",
    "DeLong, images",
    "percentile, patients drawn",
    "DeLong, patients",
    "**DeLong, patients, logit, t**",
)
OTHER_METHODS = ("percentile, within strata", "percentile", "logit", "**reported**")
FULL = (0.7, 0.9)  # AUROCs for which the other scores are looked at too
OTHERS = ("average_precision", "accuracy", "sensitivity", "ppv", "f1", "balanced_accuracy", "log_loss")


def simulated(rng, patients, auroc, share, several):
    """Binormal scores; with `several`, 1 to many images per patient whose labels and scores are alike (0.6)."""
    patient = np.repeat(np.arange(patients), rng.geometric(0.3, patients) if several else 1)
    within = 0.6 if several else 0.0

    def alike():
        shared, own = rng.normal(size=patients)[patient], rng.normal(size=len(patient))
        return np.sqrt(within) * shared + np.sqrt(1 - within) * own

    target = (alike() > norm.ppf(1 - share)).astype(float)
    distance = np.sqrt(2) * norm.ppf(auroc)
    # shifted so that 0, a probability of one half, is about the best place to cut
    return target, alike() + distance * target - distance / 2 - 1, patient


def predictions(target, score, patient) -> Predictions:
    names = [str(i) for i in range(len(target))]
    return Predictions.from_arrays(
        names, [f"{i:06d}" for i in patient], ["a"], "multilabel", target[:, None], score[:, None]
    )


def within_strata(rng, stratum: np.ndarray, n: int) -> np.ndarray:
    """Weights (P, n) of patients drawn separately among those with and without the finding."""
    weight = np.zeros((len(stratum), n))
    for value in np.unique(stratum):
        rows = np.flatnonzero(stratum == value)
        drawn = rng.integers(len(rows), size=(n, len(rows)))
        weight[rows] = np.stack([np.bincount(d, minlength=len(rows)) for d in drawn], axis=1)
    return weight


def one_world(rng, patients, auroc, share, several, others) -> dict[tuple[str, str], Interval] | None:
    """Every method's interval in one simulated world; None without two patients on either side."""
    target, score, patient = simulated(rng, patients, auroc, share, several)
    by_patient, by_image = delong(target, score, patient), delong(target, score)
    if min(by_patient.positive_patients, by_patient.negative_patients) < 2:
        return None
    drawn = np.hstack(list(resamples(patients, RESAMPLES, int(rng.integers(2**32)))))
    drawn_images = np.hstack(list(resamples(len(target), RESAMPLES, int(rng.integers(2**32)))))

    def aurocs(who: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return Ranking(target, score, who, len(weight)).scores(weight)[0]

    def wald(found: intervals.DeLong) -> Interval:
        half = norm.ppf(0.975) * np.sqrt(found.variance)
        return Interval(found.auroc, found.auroc - half, found.auroc + half)

    made = (
        percentile(by_image.auroc, aurocs(np.arange(len(target)), drawn_images)),
        wald(by_image),
        percentile(by_image.auroc, aurocs(patient, drawn)),
        wald(by_patient),
        by_patient.interval(),
    )
    found = {("auroc", method): interval for method, interval in zip(AUROC_METHODS, made, strict=True)}
    if not others:
        return found
    scorer = Scorer(predictions(target, score, patient))
    has = np.bincount(patient, target) > 0
    value, free = scorer.values().classes, scorer(drawn).classes
    strata = scorer(within_strata(rng, has, RESAMPLES)).classes
    support = Support.of(scorer.truth[:, 0], scorer.patient, scorer.share_counts(0))
    values = {metric: float(score[0, 0]) for metric, score in value.items()}
    reported = with_intervals(values, {metric: samples[0] for metric, samples in free.items()}, support)
    for metric in OTHERS:
        at = float(value[metric][0, 0])
        found[metric, OTHER_METHODS[0]] = percentile(at, strata[metric][0])
        found[metric, OTHER_METHODS[1]] = percentile(at, free[metric][0])
        if metric != "log_loss":
            found[metric, OTHER_METHODS[2]] = on_logit_scale(at, spread(free[metric][0]))
        found[metric, OTHER_METHODS[3]] = reported[metric]
    return found


def coverage(worlds, patients, auroc, share, several) -> tuple[dict, float]:
    """(metric, method) -> share of the worlds whose interval holds the truth; median number of positive patients."""
    rng = np.random.default_rng(0)
    big = Scorer(predictions(*simulated(rng, 100_000, auroc, share, several))).values().classes
    truth = {m: float(v[0, 0]) for m, v in big.items()} | {"auroc": auroc}
    held = defaultdict(list)
    for _ in range(worlds):
        for (metric, method), i in (one_world(rng, patients, auroc, share, several, auroc in FULL) or {}).items():
            if not np.isnan(i.low):  # no interval makes no claim
                held[metric, method].append(i.low <= truth[metric] <= i.high)
    positive = []
    for _ in range(200):
        target, _, patient = simulated(rng, patients, auroc, share, several)
        positive.append(len(np.unique(patient[target == 1])))
    return {key: float(np.mean(values)) for key, values in held.items()}, float(np.median(positive))


def macro_coverage(worlds) -> list[str]:
    """Macro AUROC of six findings of the same patients, the rarest with about six positive patients."""
    lines = []
    for auroc in (0.7, 0.9):
        rng, held = np.random.default_rng(0), []
        for _ in range(worlds):
            patient = np.repeat(np.arange(250), rng.geometric(0.3, 250))
            alike = [
                np.sqrt(0.6) * rng.normal(size=250)[patient] + np.sqrt(0.4) * rng.normal(size=len(patient))
                for _ in range(12)
            ]
            shares = (0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
            target = np.stack([a > norm.ppf(1 - s) for a, s in zip(alike, shares, strict=False)], 1).astype(float)
            score = np.stack(alike[6:], 1) + np.sqrt(2) * norm.ppf(auroc) * target
            names = [str(i) for i in range(len(patient))]
            given = Predictions.from_arrays(
                names, [f"{i}" for i in patient], list("abcdef"), "multilabel", target, score
            )
            macro = summarise(given, n_boot=RESAMPLES, seed=int(rng.integers(2**32)))["macro"]["auroc"]
            held.append((macro["low"] <= auroc <= macro["high"], auroc < macro["low"], auroc > macro["high"]))
        inside, above, below = 100 * np.mean(held, axis=0)
        lines.append(f"| {auroc} | {inside:.1f} | {above:.1f} | {below:.1f} |")
    return lines


def timing() -> list[str]:
    """Seconds that summarise takes for 25,000 images, 14 findings, 2,000 resamples."""
    rng, lines = np.random.default_rng(0), []
    rare = np.array([0.18, 0.12, 0.1, 0.1, 0.05, 0.05, 0.05, 0.04, 0.03, 0.02, 0.02, 0.02, 0.01, 0.002])
    for what, patients, shares in (
        ("shares as in NIH (18 % to 0.2 %), 6,000 patients", 6_000, rare),
        ("the slowest case: half of all labels positive, 25,000 patients", 25_000, np.full(14, 0.5)),
    ):
        target = (rng.random((25_000, 14)) < shares).astype(float)
        logits = rng.normal(size=target.shape) + target - 2
        names = [str(i) for i in range(25_000)]
        people = [str(i) for i in rng.integers(patients, size=25_000)]
        given = Predictions.from_arrays(names, people, list("abcdefghijklmn"), "multilabel", target, logits)
        began, worked = time.perf_counter(), time.process_time()
        summarise(given, n_boot=2000)
        lines.append(f"| {what} | {time.perf_counter() - began:.1f} | {time.process_time() - worked:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=2000)
    worlds = parser.parse_args().worlds
    error = 100 * np.sqrt(0.95 * 0.05 / worlds)
    text = [
        "# Intervals: how often they hold the truth",
        "",
        f"`python benchmarks/intervals.py --worlds {worlds}` writes this file. Each number is the percentage of",
        f"{worlds:,} simulated worlds whose 95 % interval holds the true value: 95 is right, {error:.1f} is the",
        f"standard error of the simulation, {RESAMPLES} resamples each. Scores are binormal; where patients have",
        "several images (3.3 on average), labels and scores of a patient are alike (correlation 0.6). Bold is what",
        "finetune reports. No interval makes no claim: worlds in which a method gives none are left out for it.",
        "",
    ]
    cases = [
        (several, patients, auroc)
        for several, patients in ((False, 120), (False, 500), (True, 80), (True, 300))
        for auroc in (0.6, 0.7, 0.8, 0.9, 0.95)
    ]
    auroc_rows, other_rows = [], []
    for several, patients, auroc in cases:
        held, positive = coverage(worlds, patients, auroc, 0.1, several)
        case = f"| {'several' if several else 'one'} | {patients} | {positive:.0f} | {auroc} |"
        auroc_rows.append(case + "".join(f" {100 * held['auroc', m]:.1f} |" for m in AUROC_METHODS))
        if auroc in FULL:
            other_rows += [
                f"{case} {metric} |"
                + "".join(f" {100 * held[metric, m]:.1f} |" if (metric, m) in held else " |" for m in OTHER_METHODS)
                for metric in OTHERS
            ]
        print(auroc_rows[-1], flush=True)
    head = "| images per patient | patients | of them positive | AUROC |"
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    text += [
        "## AUROC of a class",
        "",
        head + "".join(f" {m} |" for m in AUROC_METHODS),
        "|" + " --- |" * (4 + len(AUROC_METHODS)),
        *auroc_rows,
        "",
        "## Other scores",
        "",
        "Patients drawn; `within strata` draws positive and negative patients separately. Reported: of shares of",
        "images (accuracy, sensitivity, PPV) Wilson's interval for as many images as the patients' are worth; of",
        "balanced accuracy the limits of its two shares taken together; of log loss the scale of its logarithm; of the",
        "others the logit, with Student's t for average precision.",
        "",
        head + " score |" + "".join(f" {m} |" for m in OTHER_METHODS),
        "|" + " --- |" * (5 + len(OTHER_METHODS)),
        *other_rows,
        "",
        "## Macro AUROC",
        "",
        f"Six findings of 250 patients with several images, in 30 % to 1 % of the images; {worlds // 2:,} worlds.",
        "",
        "| AUROC of each | held | truth below | truth above |",
        "| --- | --- | --- | --- |",
        *macro_coverage(worlds // 2),
        "",
        "## Cost",
        "",
        f"`summarise` with 2,000 resamples of 25,000 images and 14 findings on {os.cpu_count()} CPUs",
        f"({platform.machine()}, OMP_NUM_THREADS={threads}); everything in scores.json, micro scores too.",
        "",
        "| labels | seconds | processor seconds |",
        "| --- | --- | --- |",
        *timing(),
        "",
    ]
    Path(__file__).with_name("INTERVALS.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
