"""The scores of one split with their intervals over patients, as written to scores.json.

Intervals of average precision and FROC: standard error by resampling patients, on the logit scale, with Student's t for
the patients who have a true box of the class. Scores of 0 and 1 get Clopper and Pearson's limit for as many patients.
Their measured coverage stands in benchmarks/DETECTION_INTERVALS.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.evaluation.classification.scores import mean_of_defined
from finetune.evaluation.classification.summary import macro_interval
from finetune.evaluation.detection.baseline import baseline
from finetune.evaluation.detection.coco import coco_scores
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.froc import GRID, LEVELS
from finetune.evaluation.detection.image_level import image_level
from finetune.evaluation.detection.scorer import IOUS, Scorer, Scores, joined
from finetune.files import plain
from finetune.statistics import intervals
from finetune.statistics.intervals import Interval

NO_TRUTH = "no true boxes"
NONE = np.zeros(0)


def summarise(
    detections: Detections, *, n_boot: int = 2000, seed: int = 0, hit: str = "iou", scorer: Scorer | None = None
) -> dict[str, Any]:
    """{"macro", "classes", "froc_curve", "image_level", "coco", "baseline", ...}; scores are {"value", "low", "high"}.

    What is undefined is None, as are the limits where there is no interval, and then "reason" says why. `coco` is the
    table of pycocotools, without intervals.

    Args:
        n_boot: resamples of the patients; 0 leaves only the intervals that need none.
        hit: what counts as found in FROC: an IoU of 0.5, or the centre of the box.
        scorer: of these detections, where there is one.

    Example:
        >>> test = Detections.read("outputs/latest/predictions_test.csv")
        >>> summarise(test)["macro"]["froc"]
        {'value': 0.71, 'low': 0.64, 'high': 0.77, 'n_classes': 2, 'n_undefined': 0}
    """
    scorer = Scorer(detections, hit=hit) if scorer is None else scorer
    chunks = [
        scorer(weight) for weight in intervals.resamples(scorer.n_patients, n_boot if len(detections) else 0, seed)
    ]
    value, resampled = scorer.values(), joined(chunks)
    result = described(scorer, value, resampled)
    result |= {
        "froc_curve": froc_curve(scorer, value, resampled),
        "image_level": image_level(detections),
        "coco": coco_scores(detections, scorer.matching if scorer.ious == IOUS else None),
        "baseline": baseline(detections),
        "kind": "detection",
        "n": len(detections),
        "patients": scorer.n_patients,
        "match": {"iou": 0.5, "froc": hit, "false_positives": LEVELS.tolist()},
        "intervals": {"level": intervals.LEVEL, "unit": "patient", "resamples": n_boot, "seed": seed},
        "warnings": warnings(result["classes"]),
    }
    return plain(result)


def described(scorer: Scorer, value: Scores, resampled: Scores | None) -> dict[str, Any]:
    """{"macro", "classes"}: the scores with the intervals that follow from their resamples."""
    names, patients = scorer.detections.classes, scorer.n_patients
    of_class: dict[str, dict[str, Interval]] = {}
    for k, name in enumerate(names):
        has = int((scorer.truths[k] > 0).sum())
        of_class[name] = {
            metric: interval(float(values[k, 0]), resampled.classes[metric][k] if resampled else NONE, patients, has)
            for metric, values in value.classes.items()
        }
    counts = _counts(scorer)
    means, samples = value.macro(), resampled.macro() if resampled else {}
    macro = {}
    for metric, mean in means.items():
        defined = [scores[metric] for scores in of_class.values() if not np.isnan(scores[metric].value)]
        score = _macro(float(mean[0]), defined, samples.get(metric, NONE), patients)
        macro[metric] = {**score.as_dict(), "n_classes": len(defined), "n_undefined": len(names) - len(defined)}
    classes = {name: {**{m: i.as_dict() for m, i in of_class[name].items()}, **counts[name]} for name in names}
    return {"macro": macro, "classes": classes}


def interval(value: float, samples: np.ndarray, patients: int, with_truth: int) -> Interval:
    """The interval of a score between 0 and 1 of a class, from its resamples.

    Args:
        patients: those resampled.
        with_truth: patients with a true box of the class.
    """
    if np.isnan(value):
        return Interval(value, reason=NO_TRUTH)
    if value in (0.0, 1.0):
        return intervals.exact(value, with_truth)
    if why := intervals.too_few(patients):
        return Interval(value, reason=why)
    if with_truth < 2:
        return Interval(value, reason="fewer than 2 patients with a true box")
    return intervals.on_logit_scale(value, intervals.spread(samples), df=with_truth - 1)


def froc_curve(scorer: Scorer, value: Scores, resampled: Scores | None) -> dict[str, Any]:
    """{"false_positives", "macro": {sensitivity, low, high}, "classes": {class: {sensitivity, low, high}}}: lists over
    the points of the curve, from 1/8 to 8 false positives per image; the band holds at each point, not along all."""
    bands: dict[str, list[Interval]] = {}
    for k, name in enumerate(scorer.detections.classes):
        has = int((scorer.truths[k] > 0).sum())
        bands[name] = [
            interval(float(value.curve[k, g, 0]), resampled.curve[k, g] if resampled else NONE, scorer.n_patients, has)
            for g in range(len(GRID))
        ]
    macro = []
    for g in range(len(GRID)):
        defined = [band[g] for band in bands.values() if not np.isnan(band[g].value)]
        samples = mean_of_defined(resampled.curve[:, g]) if resampled else NONE
        macro.append(_macro(float(mean_of_defined(value.curve[:, g])[0]), defined, samples, scorer.n_patients))
    return {
        "false_positives": GRID.tolist(),
        "macro": _lists(macro),
        "classes": {name: _lists(band) for name, band in bands.items()},
    }


def _macro(mean: float, classes: list[Interval], samples: np.ndarray, patients: int) -> Interval:
    return macro_interval("average_precision", mean, classes, samples, patients)


def _lists(band: list[Interval]) -> dict[str, list[float]]:
    return {
        "sensitivity": [point.value for point in band],
        "low": [point.low for point in band],
        "high": [point.high for point in band],
    }


def _counts(scorer: Scorer) -> dict[str, dict[str, Any]]:
    """Per class the true boxes, those ignored, the detections, and the images and patients with a true box."""
    true, boxes = scorer.detections.truths, scorer.detections.boxes
    counts: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(scorer.detections.classes):
        rows = true.label == k
        has = int((scorer.truths[k] > 0).sum())
        counts[name] = {
            "truths": int(scorer.truths[k].sum()),
            "ignored": int((rows & true.ignored).sum()),
            "detections": int((boxes.label == k).sum()),
            "images_with": len(np.unique(true.image[rows & ~true.ignored])),
            "patients_with": has,
        }
        if 0 < has < intervals.MIN_PATIENTS:
            counts[name]["note"] = f"fewer than {intervals.MIN_PATIENTS} patients with a true box"
    return counts


def warnings(classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader must know before the numbers, in sentences."""
    sentences = []
    if names := [name for name, counts in classes.items() if not counts["truths"]]:
        sentences.append(f"No true boxes, so every score is undefined and left out of the mean: {', '.join(names)}.")
    if names := [name for name, counts in classes.items() if counts["truths"] and not counts["detections"]]:
        sentences.append(f"Never detected: {', '.join(names)}.")
    if names := [name for name, counts in classes.items() if "note" in counts]:
        sentences.append(
            f"Fewer than {intervals.MIN_PATIENTS} patients with a true box, so uncertain: {', '.join(names)}."
        )
    return sentences
