"""The scores of a detector that looks at no image, which a network has to beat: the same box in every image.

For each class it is the true box of this split that matches the most others, with the same score everywhere. It knows
this split, which is more than a network can know. Where the sizes of all images are known, boxes are compared in parts
of the image, else in pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.evaluation.classification.scores import mean_of_defined
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.frames import SIZES
from finetune.evaluation.detection.froc import LEVELS
from finetune.evaluation.detection.matching import iou
from finetune.evaluation.detection.precision import RECALLS

CANDIDATES = 200
"""True boxes of a class that are tried, evenly chosen."""


def baseline(detections: Detections) -> dict[str, Any]:
    """{"macro": {ap50, froc}, "classes": {class: {ap50, froc, sensitivity, false_positives, box}}, "relative"}.

    Classes without true boxes are left out. `box` is in parts of the image where `relative`, else in pixels.
    """
    true, n = detections.truths, len(detections)
    sizes = detections.images[list(SIZES)].to_numpy(np.float64)
    relative = bool(n) and bool((sizes > 0).all())
    corners = true.corners / np.tile(sizes, 2)[true.image] if relative else true.corners
    classes: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(detections.classes):
        rows = np.flatnonzero((true.label == k) & ~true.ignored)
        if not len(rows):
            continue
        box, hits = _best(corners[rows], true.image[rows])
        recall, precision, wrong = hits / len(rows), hits / n, 1 - hits / n
        classes[name] = {
            # all detections tie, so whatever the recall, the expected precision is the same
            "ap50": float(precision * (recall >= RECALLS).mean()),
            "froc": float(recall * (wrong <= LEVELS).mean()),
            "sensitivity": float(recall),
            "false_positives": float(wrong),
            "box": box.tolist(),
        }
    macro = {m: float(mean_of_defined(np.array([c[m] for c in classes.values()], float))) for m in ("ap50", "froc")}
    return {"macro": macro, "classes": classes, "relative": relative}


def _best(corners: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, int]:
    """The box that matches a true box in the most images, and in how many."""
    candidates = corners[np.unique(np.linspace(0, len(corners) - 1, CANDIDATES).astype(int))]
    hits = []
    for candidate in candidates:
        near = iou(np.broadcast_to(candidate, corners.shape), corners) >= 0.5
        hits.append(len(np.unique(image[near])))
    best = int(np.argmax(hits))
    return candidates[best], hits[best]
