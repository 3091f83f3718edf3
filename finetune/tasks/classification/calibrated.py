"""A table of calibrated probabilities and of probabilities adjusted to another prevalence."""

from pathlib import Path

import pandas as pd

from finetune.evaluation.classification.calibration import Calibration, with_prevalence
from finetune.evaluation.classification.predictions import Predictions
from finetune.files import write_text_atomic
from finetune.steps.task import Say


def write_calibrated(
    path: Path,
    predictions: Predictions,
    calibration: Calibration | None,
    prevalence: dict[str, float],
    say: Say,
) -> None:
    """Write per sample `calibrated_<class>` and, for `prevalence`, `adjusted_<class>`."""
    if calibration is None:
        say("No calibration of the model applies: only PPV and NPV are adjusted to the prevalence, no probabilities.")
        return
    calibrated = calibration.probabilities(predictions.logits)
    adjusted = with_prevalence(calibration, calibrated, prevalence)
    table = predictions.frame[["sample", "patient"]].copy()
    for prefix, values in (("calibrated_", calibrated), ("adjusted_", adjusted)):
        block = pd.DataFrame(values, columns=[prefix + name for name in calibration.classes], index=table.index)
        table = pd.concat([table, block[[prefix + name for name in calibration.calibrated]]], axis=1)
    write_text_atomic(path, table.to_csv(index=False, float_format="%.9g", lineterminator="\n"))
    say(f"calibrated probabilities, and adjusted to the prevalence: {path}")
