"""Which of several detectors is better, on the same images: paired differences over the same resamples of the patients.

AP50 and mean FROC sensitivity, of each class and their means. As in classification/comparison.py a candidate may be
several detectors that differ only in their seed: its score is their mean, and differences below `seed_noise` are noise
of the seeds. P values are corrected for all differences of a kind (Holm, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import scipy

from finetune.errors import FinetuneError
from finetune.evaluation.answers import Candidate
from finetune.evaluation.classification.comparison import holm, seed_noise
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.scorer import Scorer
from finetune.evaluation.detection.summary import interval
from finetune.files import plain
from finetune.statistics import intervals
from finetune.statistics.intervals import LEVEL

METRICS = ("ap50", "froc")


def compare(candidates: Sequence[Candidate], n_boot: int = 1000, seed: int = 0, hit: str = "iou") -> dict[str, Any]:
    """{n, patients, classes, kind, candidates: [...], pairs: [...], seed_noise}, in plain values.

    A pair is {a, b, scores: {macro_ap50: {value, low, high, p, p_holm}, ...}, classes: {class: {ap50: {...}, ...}}},
    the value being a less b.

    Raises:
        FinetuneError: the images, their patients or their true boxes are not the same.
    """
    for candidate in candidates:
        for member in candidate.members:
            check_same(candidates[0].members[0], member, candidates[0].label, candidate.label)
    first = candidates[0].members[0]
    scorers = [[Scorer(aligned(member, first), ious=(0.5,), hit=hit) for member in c.members] for c in candidates]
    n_patients = scorers[0][0].n_patients
    once = np.ones((n_patients, 1))
    values = [[_flat(scorer, once) for scorer in members] for members in scorers]
    chunks: list[list[dict[str, np.ndarray]]] = [[] for _ in candidates]
    for weight in intervals.resamples(n_patients, n_boot if n_patients else 0, seed):
        for i, members in enumerate(scorers):
            chunks[i].append(_mean([_flat(scorer, weight) for scorer in members]))
    resampled = [{m: np.concatenate([c[m] for c in part]) for m in part[0]} if part else {} for part in chunks]
    noise = seed_noise([[{m: float(v[0]) for m, v in member.items()} for member in members] for members in values])
    with_truth = dict(zip(first.classes, (scorers[0][0].truths > 0).sum(axis=1).tolist(), strict=True))
    described = []
    for i, candidate in enumerate(candidates):
        scores = {}
        for key, mean in _mean(values[i]).items():
            has = with_truth.get(key.partition(" ")[2], n_patients)
            samples = resampled[i].get(key, np.zeros(0))
            scores[key] = {
                **interval(float(mean[0]), samples, n_patients, has).as_dict(),
                "seeds": [float(member[key][0]) for member in values[i]],
            }
        described.append({"label": candidate.label, "seeds": candidate.seeds, **_sorted_out(scores, first.classes)})
    pairs = []
    for a, b in combinations(range(len(candidates)), 2):
        changes = {key: _change(key, a, b, values, resampled, n_patients, noise) for key in values[a][0]}
        pairs.append({"a": candidates[a].label, "b": candidates[b].label, **_sorted_out(changes, first.classes)})
    if pairs:
        for metric in METRICS:
            holm([pair["scores"][f"macro_{metric}"] for pair in pairs])
            holm([of_class[metric] for pair in pairs for of_class in pair["classes"].values()])
    about = {"level": LEVEL, "unit": "patient", "resamples": n_boot, "seed": seed}
    return plain(
        {
            "n": len(first),
            "patients": n_patients,
            "classes": first.classes,
            "kind": "detection",
            "intervals": about,
            "candidates": described,
            "pairs": pairs,
            "seed_noise": {key: about for key, about in noise.items() if key.startswith("macro_")},
        }
    )


def check_same(a: Detections, b: Detections, name: str, other: str) -> None:
    """Raise a FinetuneError unless both tables have the same images, patients, classes and true boxes."""

    def differ(what: str) -> FinetuneError:
        return FinetuneError(f"{name} and {other} cannot be compared: {what}.")

    if a.classes != b.classes:
        odd = sorted(set(a.classes) ^ set(b.classes)) or "their order"
        raise differ(f"classes differ in {odd}")
    mine, theirs = set(a.images["sample"]), set(b.images["sample"])
    if mine != theirs:
        only = [
            f"{len(part):,} only in {who} (such as {min(part)})"
            for who, part in ((name, mine - theirs), (other, theirs - mine))
            if part
        ]
        raise differ(f"of their images {' and '.join(only)}")
    a, b = aligned(a, a), aligned(b, a)
    if (a.patients != b.patients).any():
        raise differ("their patients differ")
    for i, sample in enumerate(a.images["sample"]):
        if _truths(a, i) != _truths(b, i):
            raise differ(f"their true boxes differ, first those of {sample}")


def aligned(detections: Detections, other: Detections) -> Detections:
    """The same table with the images in the order of the other's."""
    rows = {sample: i for i, sample in enumerate(other.images["sample"])}
    place = np.array([rows[sample] for sample in detections.images["sample"]], np.int64)
    return detections.reordered(place)


def _truths(detections: Detections, image: int) -> list[tuple[Any, ...]]:
    true = detections.truths
    begin, end = np.searchsorted(true.image, [image, image + 1])  # sorted by image
    columns = (true.label, true.corners, true.ignored)
    label, corners, ignored = (column[begin:end].tolist() for column in columns)
    return sorted(zip(label, map(tuple, corners), ignored, strict=True))


def _flat(scorer: Scorer, weight: np.ndarray) -> dict[str, np.ndarray]:
    """(B,) each: macro_ap50 and macro_froc, then `ap50 CLASS` and `froc CLASS`."""
    scores = scorer(weight)
    macro = scores.macro()
    flat = {f"macro_{metric}": macro[metric] for metric in METRICS}
    for k, name in enumerate(scorer.detections.classes):
        flat |= {f"{metric} {name}": scores.classes[metric][k] for metric in METRICS}
    return flat


def _sorted_out(flat: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    of_class = {name: {metric: flat[f"{metric} {name}"] for metric in METRICS} for name in classes}
    return {"scores": {key: flat[key] for key in flat if key.startswith("macro_")}, "classes": of_class}


def _mean(several: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {metric: np.mean([scores[metric] for scores in several], axis=0) for metric in several[0]}


def _change(
    key: str,
    a: int,
    b: int,
    values: list[list[dict[str, np.ndarray]]],
    resampled: list[dict[str, np.ndarray]],
    patients: int,
    noise: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """{value, low, high, p}: a less b, and seed_noise where a candidate has several seeds."""
    change = float(np.mean([m[key][0] for m in values[a]]) - np.mean([m[key][0] for m in values[b]]))
    samples = resampled[a][key] - resampled[b][key] if resampled[a] else np.zeros(0)
    score = intervals.difference(change, samples, patients=patients)
    error = intervals.spread(samples)
    p = np.nan
    if not np.isnan(score.low):
        p = float(2 * scipy.stats.norm.sf(abs(change) / error))
    elif change == 0 and error <= intervals.SAME:
        p = 1.0
    result = {**score.as_dict(), "p": p}
    if key in noise:
        reach = noise[key]["t"] * noise[key]["sd"]
        result["seed_noise"] = reach * (1 / len(values[a]) + 1 / len(values[b])) ** 0.5
    return result
