"""Which of several networks is better, on the same samples: paired differences, not two separate intervals.

- AUROC of a class: DeLong's variance of the difference, over patients. Over several seeds it is that of the mean AUROC.
- Other scores, and macro means: the same resamples of the patients for all networks.
- Correct or wrong: McNemar's test (exact); where patients have several images or networks several seeds, its form over
  patients: the sum of their differences over the root of the sum of squares.

All of these measure the variation over patients. The variation over seeds is their spread, pooled over the candidates:
a difference below t * sd * sqrt(1/a + 1/b) is seed noise, however small its p. Of many differences some are large by
chance, so p values are also corrected (Holm, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import scipy

from finetune.errors import FinetuneError
from finetune.evaluation.answers import Candidate
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import Scorer, Scores, mean_of_defined
from finetune.files import plain
from finetune.statistics import intervals
from finetune.statistics.intervals import LEVEL, Interval, Placements, placements


def compare(candidates: Sequence[Candidate], n_boot: int = 1000, seed: int = 0) -> dict[str, Any]:
    """{n, patients, classes, kind, candidates: [...], pairs: [...], seed_noise}, in plain values.

    Raises:
        FinetuneError: the samples, their classes or their labels are not the same.
    """
    candidates = aligned(candidates)
    first = candidates[0].members[0]
    scorers = [[Scorer(member) for member in candidate.members] for candidate in candidates]
    values = [[_flat(scorer.values()) for scorer in seed_scorers] for seed_scorers in scorers]
    chunks: list[list[dict[str, np.ndarray]]] = [[] for _ in candidates]
    n_patients = scorers[0][0].n_patients
    for weight in intervals.resamples(n_patients, n_boot if n_patients else 0, seed):
        for i, seed_scorers in enumerate(scorers):
            chunks[i].append(_mean([_flat(scorer(weight)) for scorer in seed_scorers]))
    resampled = [
        {m: np.concatenate([c[m] for c in seed_scorers]) for m in seed_scorers[0]} if seed_scorers else {}
        for seed_scorers in chunks
    ]
    noise = seed_noise(
        [
            [{m: float(v[0]) for m, v in scores_of_seed.items()} for scores_of_seed in seed_scorers]
            for seed_scorers in values
        ]
    )
    placed = [_placed(seed_scorers) for seed_scorers in scorers]
    described = []
    for i, candidate in enumerate(candidates):
        mean = {m: float(v[0]) for m, v in _mean(values[i]).items()}
        scores = _described(mean, resampled[i], n_patients)
        for metric, score in scores.items():
            score["seeds"] = [float(scores_of_seed[metric][0]) for scores_of_seed in values[i]]
        described.append({"label": candidate.label, "seeds": candidate.seeds, "scores": scores})
    pairs: list[dict[str, Any]] = []
    for a, b in combinations(range(len(candidates)), 2):
        changes: dict[str, dict[str, Any]] = {}
        for metric in resampled[a] or values[a][0]:
            change = float(_mean(values[a])[metric][0] - _mean(values[b])[metric][0])
            samples = resampled[a][metric] - resampled[b][metric] if resampled[a] else np.zeros(0)
            changes[metric] = {
                **intervals.difference(change, samples, patients=n_patients).as_dict(),
                "p": _p(change, intervals.spread(samples)),
            }
            if metric in noise:
                reach = noise[metric]["t"] * noise[metric]["sd"]
                changes[metric]["seed_noise"] = reach * (1 / len(values[a]) + 1 / len(values[b])) ** 0.5
        classes = {name: paired_delong(placed[a][k], placed[b][k]) for k, name in enumerate(first.classes)}
        pairs.append(
            {
                "a": candidates[a].label,
                "b": candidates[b].label,
                "scores": changes,
                "classes": classes,
                "mcnemar": _mcnemars(scorers[a], scorers[b]),
            }
        )
    for metric in pairs[0]["scores"] if pairs else ():
        holm([pair["scores"][metric] for pair in pairs])
    holm([of_class for pair in pairs for of_class in pair["classes"].values()])
    return plain(
        {
            "n": len(first),
            "patients": n_patients,
            "classes": first.classes,
            "kind": first.kind,
            "intervals": {"level": LEVEL, "unit": "patient", "resamples": n_boot, "seed": seed},
            "candidates": described,
            "pairs": pairs,
            "seed_noise": noise,
        }
    )


def aligned(candidates: Sequence[Candidate]) -> list[Candidate]:
    """All members in the order of the first one's samples.

    Raises:
        FinetuneError: naming what differs.
    """
    first, name = candidates[0].members[0], candidates[0].label
    order = first.frame["sample"]
    aligned_candidates = []
    for candidate in candidates:
        members = []
        for member in candidate.members:
            if (member.kind, member.classes) != (first.kind, first.classes):
                odd = sorted(set(member.classes) ^ set(first.classes)) or "their order or kind"
                raise FinetuneError(f"{name} and {candidate.label} cannot be compared: classes differ in {odd}.")
            mine, theirs = set(order), set(member.frame["sample"])
            if mine != theirs:
                only = [
                    f"{len(part):,} only in {who} (such as {min(part)})"
                    for who, part in ((name, mine - theirs), (candidate.label, theirs - mine))
                    if part
                ]
                raise FinetuneError(
                    f"{name} and {candidate.label} cannot be compared: of their samples {' and '.join(only)}."
                )
            frame = member.frame.set_index("sample", drop=False).loc[order].reset_index(drop=True)
            reordered = Predictions(frame, member.classes, member.kind, member.metadata)
            same = (reordered.truth == first.truth) | (np.isnan(reordered.truth) & np.isnan(first.truth))
            if not same.all():
                row, k = np.argwhere(~same)[0]
                raise FinetuneError(
                    f"{name} and {candidate.label} cannot be compared: {(~same).sum():,} labels differ, "
                    f"first {first.classes[k]} of {order.iloc[row]}."
                )
            if (reordered.patients != first.patients).any():
                raise FinetuneError(f"{name} and {candidate.label} cannot be compared: their patients differ.")
            members.append(reordered)
        aligned_candidates.append(Candidate(candidate.label, members, candidate.seeds))
    return aligned_candidates


def paired_delong(a: Placements, b: Placements) -> dict[str, Any]:
    """{a, b, value, low, high, p}: the difference of two AUROCs on the same samples."""
    if np.isnan(a.auroc):
        return {"a": np.nan, "b": np.nan, **Interval(np.nan).as_dict(), "p": np.nan}
    change = a - b
    df = min(a.positive_patients, a.negative_patients) - 1
    error = np.sqrt(change.variance)
    if df < 1 or not error > 0:  # the same order of all pairs, or too few patients
        interval, p = Interval(change.auroc), 1.0 if df >= 1 and change.auroc == 0 else np.nan
    else:
        reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, df)) * error
        interval = Interval(change.auroc, change.auroc - reach, change.auroc + reach)
        p = float(2 * scipy.stats.t.sf(abs(change.auroc) / error, df))
    return {"a": a.auroc, "b": b.auroc, **interval.as_dict(), "p": p}


def mcnemar(a: np.ndarray, b: np.ndarray, patient: np.ndarray) -> dict[str, Any]:
    """{only_a, only_b, p, exact}: correct (1) or wrong (0) predictions of two networks, (n,) each, NaN where unknown.

    A value between 0 and 1 is a mean over seeds.
    """
    labelled = ~np.isnan(a) & ~np.isnan(b)
    change, patient = a[labelled] - b[labelled], patient[labelled]
    only_a, only_b = float(change[change > 0].sum()), float(-change[change < 0].sum())
    whole = bool(np.isin(change, (-1.0, 0.0, 1.0)).all()) and len(np.unique(patient)) == len(patient)
    if whole:
        n = round(only_a + only_b)
        p = float(scipy.stats.binomtest(round(only_a), n).pvalue) if n else 1.0
        return {"only_a": round(only_a), "only_b": round(only_b), "p": p, "exact": True}
    sums = np.bincount(np.unique(patient, return_inverse=True)[1], change) if len(change) else np.zeros(1)
    squares = float(sums @ sums)
    p = float(2 * scipy.stats.norm.sf(abs(sums.sum()) / np.sqrt(squares))) if squares else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": p, "exact": False}


def seed_noise(values: list[list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Per score {sd, df, t, single}: the spread over seeds, pooled over candidates, and the difference of two single
    runs below which it is noise. Empty where no candidate has two seeds."""
    noise = {}
    df = sum(len(seed_values) - 1 for seed_values in values)
    if not df:
        return {}
    for metric in values[0][0]:
        columns = [np.array([scores[metric] for scores in seed_values]) for seed_values in values]
        squares = sum(float(np.sum((column - column.mean()) ** 2)) for column in columns)
        if np.isnan(squares):
            continue
        sd, quantile = float(np.sqrt(squares / df)), float(scipy.stats.t.ppf((1 + LEVEL) / 2, df))
        noise[metric] = {"sd": sd, "df": df, "t": quantile, "single": quantile * sd * 2**0.5}
    return noise


def holm(tests: list[dict[str, Any]]) -> None:
    """Set p_holm of each test: its p corrected for all tests that have one (Holm, 1979)."""
    has = sorted((test for test in tests if not np.isnan(test["p"])), key=lambda test: test["p"])
    largest = 0.0
    for i, test in enumerate(has):
        largest = max(largest, min(1.0, (len(has) - i) * test["p"]))
        test["p_holm"] = largest
    for test in tests:
        test.setdefault("p_holm", np.nan)


def _described(mean: dict[str, float], resampled: dict[str, np.ndarray], n_patients: int) -> dict[str, dict[str, Any]]:
    """Each score with the interval of its kind; the names are macro_<metric>, or <metric> over all classes."""
    described = {}
    for name, value in mean.items():
        metric = name.removeprefix("macro_")
        samples = resampled.get(name, np.zeros(0))
        if metric == "accuracy" and value in (0.0, 1.0):
            described[name] = intervals.exact(value, n_patients).as_dict()
        else:
            described[name] = intervals.resampled(metric, value, samples, n_patients).as_dict()
    return described


def _flat(scores: Scores) -> dict[str, np.ndarray]:
    """The scores that candidates are compared by: (B,) each."""
    metrics = ("auroc", "average_precision", "brier", "log_loss") + (("accuracy", "f1") if not scores.overall else ())
    macro = {
        f"macro_{metric}": mean_of_defined(scores.classes[metric]) for metric in metrics if metric in scores.classes
    }
    overall = ("accuracy", "balanced_accuracy", "kappa", "log_loss", "brier")
    return {**macro, **{metric: values for metric, values in scores.overall.items() if metric in overall}}


def _mean(several: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {metric: np.mean([scores[metric] for scores in several], axis=0) for metric in several[0]}


def _placed(scorers: list[Scorer]) -> list[Placements]:
    """Per class the placements of the mean AUROC over the seeds."""
    k = len(scorers[0].predictions.classes)
    return [Placements.mean([placements(s.truth[:, i], s.ranks[:, i], s.patient) for s in scorers]) for i in range(k)]


def _mcnemars(a: list[Scorer], b: list[Scorer]) -> dict[str, Any]:
    """Multiclass: one test of the predictions; multilabel: one per class and one over all."""
    patient, names = a[0].patient, a[0].predictions.classes
    rights = [np.mean([_right(scorer) for scorer in scorers], axis=0) for scorers in (a, b)]
    if a[0].multiclass:
        return {"accuracy": mcnemar(rights[0][:, 0], rights[1][:, 0], patient)}
    per_class = {name: mcnemar(rights[0][:, k], rights[1][:, k], patient) for k, name in enumerate(names)}
    pooled = mcnemar(rights[0].ravel(), rights[1].ravel(), np.repeat(patient, len(names)))
    return {"accuracy": pooled, "classes": per_class} if len(names) > 1 else {"accuracy": per_class[names[0]]}


def _right(scorer: Scorer) -> np.ndarray:
    """(N, K) of correct and wrong predictions, NaN where unknown; multiclass (N, 1)."""
    right = np.where(np.isnan(scorer.truth), np.nan, scorer.truth == scorer.decisions)
    return right.min(axis=1, keepdims=True) if scorer.multiclass else right


def _p(change: float, error: float) -> float:
    return float(2 * scipy.stats.norm.sf(abs(change) / error)) if error > 0 else 1.0 if change == 0 else np.nan
