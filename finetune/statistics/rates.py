"""Numbers of events per image, such as false positives, with intervals over patients."""

from __future__ import annotations

import numpy as np

from finetune.statistics import intervals
from finetune.statistics.intervals import LEVEL, Interval


def rate(events: np.ndarray, images: np.ndarray) -> Interval:
    """Events per image, from the events (P,) and the images (P,) of each patient.

    A ratio's linearised variance over patients (Cochran, 1977, section 6.4) on the scale of its logarithm, with
    Student's t. Without any event the upper limit is Garwood's (1936), counting patients.
    """
    events, images = events[images > 0], images[images > 0].astype(np.float64)
    patients = len(images)
    if not patients:
        return Interval(np.nan, reason="no such image")
    value = float(events.sum() / images.sum())
    if value == 0:
        return Interval(0.0, 0.0, float(-np.log((1 - LEVEL) / 2) / patients))
    if why := intervals.too_few(patients):
        return Interval(value, reason=why)
    error = float(np.sqrt(patients / (patients - 1) * ((events - value * images) ** 2).sum()) / images.sum())
    return intervals.on_log_scale(value, error, df=patients - 1)
