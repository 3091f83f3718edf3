"""job=evaluate predictions=FILE labels=FILE: the scores of a table of probabilities, whoever made it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit

from finetune import build
from finetune.data.findings import canonical, check_one_truth
from finetune.data.labels import UNCERTAIN, number_hint, read_marks
from finetune.data.sources.listing import need_columns, read_rows, some
from finetune.errors import FinetuneError
from finetune.evaluation.assessment import Fitted
from finetune.evaluation.files import write_json_atomic
from finetune.evaluation.predictions import Predictions
from finetune.jobs import prepare, run_folder, scoring

FINDINGS, PATIENTS = "Finding Labels", ("Patient ID", "patient", "patient_id")
NEAREST = 1e-12  # a probability of exactly 0 or 1 has no logit; the order stays


def score_file(config: dict[str, Any], run: Path, words: list[str]) -> None:
    """Match the two tables by image, and write predictions and scores with intervals. No model, no picture.

    `predictions` has the image in its first column and prob_<class> columns; `labels` has the same column and NIH's
    `Finding Labels` (a|b) or a column of 1, 0, blank or -1 (both unknown) per class.
    """
    say = prepare.sayer(True)
    if not config["labels"]:
        raise FinetuneError("predictions=FILE needs labels=FILE, a table that says what is true of the same images.")
    assessment = build.assessment(config)
    answers, labels = (read_rows(Path(config[key])) for key in ("predictions", "labels"))
    image = str(answers.columns[0])
    need_columns(labels, {"the first column of predictions": image}, Path(config["labels"]))
    for table, key in ((answers, "predictions"), (labels, "labels")):
        table[image] = table[image].str.strip()
        if (twice := table[image][table[image].duplicated()]).size:
            raise FinetuneError(f"{key}={config[key]} lists {len(twice):,} image(s) twice, e.g. {twice.iloc[0]}.")
    classes = {str(c).removeprefix("prob_"): str(c) for c in answers.columns if str(c).startswith("prob_")}
    if not classes:
        raise FinetuneError(
            f"predictions={config['predictions']} has no column prob_<class>: {some(answers.columns, 8)}."
        )
    both = answers.merge(labels, on=image, suffixes=("", " (labels)"))
    if both.empty:
        raise FinetuneError(
            f"No image of {config['predictions']} is in {config['labels']}: {answers[image].iloc[0]} against "
            f"{labels[image].iloc[0]}."
        )
    for missing, of, where in ((len(answers) - len(both), "predictions", "labels"),
                               (len(labels) - len(both), "labels", "predictions")):  # fmt: skip
        if missing:
            say(f"{missing:,} image(s) of {of} are not in {where} and are left out; {len(both):,} are in both.")
    known = {name: values for name in classes if (values := truth(both, labels, name)) is not None}
    if not known:
        raise FinetuneError(f"labels={config['labels']} says nothing of {some(classes, 8)}: {some(labels.columns, 8)}.")
    if left := [name for name in classes if name not in known]:
        say(f"No labels for {some(left, 20)}: left out.")
    probabilities = np.stack([numbers(both[classes[name]], classes[name], both[image]) for name in known], axis=1)
    patient = config["patient"] or next((name for name in PATIENTS if name in labels.columns), None)
    if patient is not None:
        need_columns(labels, {"patient": patient}, Path(config["labels"]))
    else:
        say("No patient column (patient=COLUMN): every image counts as its own patient; intervals may be too narrow.")
    found = Predictions.from_arrays(
        both[image].tolist(),
        both[image].tolist() if patient is None else both[patient].tolist(),
        list(known),
        "multilabel",
        np.stack(list(known.values()), axis=1),
        logit(np.clip(probabilities, NEAREST, 1 - NEAREST)),
    )
    run_folder.begin(run, config, words)
    written = scoring.write(run, {"test": found})
    scores = {"test": assessment.told(written["test"], Fitted(), seed=config["seed"])}
    write_json_atomic(run / "scores.json", scores)
    for name, of_class in scores["test"]["classes"].items():
        auroc = of_class["auroc"]
        if auroc["value"] is None:
            say(f"{name:>22}: AUROC undefined")
        else:
            interval = "" if auroc["low"] is None else f" [{auroc['low']:.3f}, {auroc['high']:.3f}]"
            say(f"{name:>22}: AUROC {auroc['value']:.3f}{interval}")
    scoring.show(scores, False, say)
    say(f"predictions and scores: {run}")


def truth(both: pd.DataFrame, labels: pd.DataFrame, name: str) -> np.ndarray | None:  # (N,) of 1, 0 and NaN
    """What the labels say of a class; None where they know nothing of it."""
    if FINDINGS in labels.columns:
        check_one_truth(labels.columns, FINDINGS, [name], "The table of labels")
        cells = labels[FINDINGS].unique()
        named = {cell: {canonical(finding.strip()) for finding in cell.split("|")} for cell in cells}
        if not any(canonical(name) in names for names in named.values()):
            return None
        return both[FINDINGS].map(lambda cell: float(canonical(name) in named[cell])).to_numpy(np.float64)
    column = next((str(c) for c in labels.columns if canonical(str(c)) == canonical(name)), None)
    if column is None:
        return None
    image = str(both.columns[0])
    rows = labels[labels[image].isin(both[image])]
    marks = pd.Series(read_marks(rows[column], "labels", soft=False), index=rows[image])
    return marks.where(marks != UNCERTAIN)[both[image]].to_numpy(np.float64)


def numbers(column: pd.Series, name: str, images: pd.Series) -> np.ndarray:  # (N,) in [0, 1]
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise FinetuneError(
            f"predictions: column {name} holds {column[wrong].iloc[0]!r} for {images[wrong].iloc[0]} "
            f"({int(wrong.sum()):,} such row(s)); a probability lies between 0 and 1. "
            f"{number_hint(str(column[wrong].iloc[0]))}".rstrip()
        )
    return values
