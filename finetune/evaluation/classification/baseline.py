"""The scores of a trivial prediction that looks at no image, which a network has to beat.

It knows the class frequencies of this split, which is slightly more than a network can know. For a multiclass table it
always predicts the largest class, with the shares of the classes as probabilities; for a multilabel class the more
frequent of yes and no, with the share of positives as probability. `gains` are by how much the network is better on the
same images, above 0 where it is better.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy

from finetune.evaluation.classification.scores import TOP_K, Scorer, mean_of_defined
from finetune.statistics import intervals


def baseline(scorer: Scorer) -> dict[str, Any]:
    """{"macro", "classes", "gains", and of a multiclass table "answer", "overall"}: numbers under the names of the
    scores; a gain is {"value", "low", "high"}."""
    return _multiclass(scorer) if scorer.multiclass else _multilabel(scorer)


def _multiclass(scorer: Scorer) -> dict[str, Any]:
    labelled = ~np.isnan(scorer.truth).any(axis=1)
    truth, patient, names = scorer.truth[labelled], scorer.patient[labelled], scorer.predictions.classes
    if not len(truth):
        return {"answer": None, "overall": {}, "macro": {}, "classes": {}, "gains": {}}
    shares = truth.mean(axis=0)
    largest, present = int(shares.argmax()), shares > 0
    right = scorer.decisions[labelled][truth == 1].astype(
        np.float64
    )  # one true class a row, so in the order of the rows
    images_per_patient = np.bincount(patient, minlength=scorer.n_patients)
    gain = np.bincount(patient, right - truth[:, largest], scorer.n_patients)
    overall = {
        "accuracy": shares[largest],
        "balanced_accuracy": 1 / present.sum(),
        "kappa": 0.0,
        "brier": 1 - (shares**2).sum(),
        "log_loss": -scipy.special.xlogy(shares, shares).sum(),
    }
    if len(names) > TOP_K:
        overall[f"top{TOP_K}_accuracy"] = np.sort(shares)[-TOP_K:].sum()
    return {
        "answer": names[largest],
        "overall": overall,
        "macro": {"auroc": 0.5, "average_precision": shares[present].mean()},
        "classes": {
            name: {"auroc": 0.5, "average_precision": share} for name, share in zip(names, shares, strict=True)
        },
        "gains": {"accuracy": intervals.mean_difference(gain, images_per_patient).as_dict()},
    }


def _multilabel(scorer: Scorer) -> dict[str, Any]:
    classes: dict[str, dict[str, Any]] = {}
    gains: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(scorer.predictions.classes):
        labelled = ~np.isnan(scorer.truth[:, k])
        truth, patient, logit = (
            scorer.truth[labelled, k],
            scorer.patient[labelled],
            scorer.predictions.logits[labelled, k],
        )
        if not len(truth):
            continue
        share = float(truth.mean())
        xlogy = scipy.special.xlogy
        entropy = -xlogy(truth, share) - xlogy(1 - truth, 1 - share)  # (n,) the loss of the share as probability
        loss = np.logaddexp(0, np.where(truth == 1, -logit, logit))
        images_per_patient = np.bincount(patient, minlength=scorer.n_patients)
        gain = np.bincount(patient, entropy - loss, scorer.n_patients)
        classes[name] = {
            "answer": "yes" if share > 0.5 else "no",
            "auroc": 0.5,
            "average_precision": share,
            "accuracy": max(share, 1 - share),
            "balanced_accuracy": 0.5,
            "brier": share * (1 - share),
            "log_loss": float(entropy.mean()),
        }
        gains[name] = {"log_loss": intervals.mean_difference(gain, images_per_patient).as_dict()}
    both = [
        answer_scores for answer_scores in classes.values() if 0 < answer_scores["average_precision"] < 1
    ]  # the others have no AUROC
    macro = {}
    for metric in ("auroc", "average_precision", "accuracy", "balanced_accuracy", "brier", "log_loss"):
        defined = both if metric in ("auroc", "average_precision", "balanced_accuracy") else list(classes.values())
        macro[metric] = float(
            mean_of_defined(np.array([answer_scores[metric] for answer_scores in defined], np.float64))
        )
    return {"macro": macro, "classes": classes, "gains": gains}
