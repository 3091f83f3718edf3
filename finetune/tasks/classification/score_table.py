"""The steps of job=evaluate predictions=FILE labels=FILE: the scores of a table of probabilities of any program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import logit

from finetune import model_file
from finetune.config.settings import EvaluateSettings
from finetune.data.class_map import in_braces, match, proposals, read_map, to_model_classes
from finetune.data.findings import canonical
from finetune.data.labels import UNCERTAIN, number_hint, read_raw_labels
from finetune.data.sources.listing import need_columns, read_rows, shorten
from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from finetune.evaluation.classification.assessment import FittedOnVal, read_prevalence
from finetune.evaluation.classification.predictions import PREFIXES, Predictions
from finetune.evaluation.classification.scores import log_odds
from finetune.evaluation.image_names import match_images
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, scoring
from finetune.tasks.classification.shipped import class_answers

if TYPE_CHECKING:
    from finetune.tasks.classification.task import Classification

FINDINGS, PATIENTS = "Finding Labels", ("Patient ID", "patient", "patient_id")
MIN_PROBABILITY = 1e-12  # a probability of exactly 0 or 1 has no logit; the order stays
SUM_TOLERANCE = 1e-3  # largest distance from 1 of the sum of the probabilities of a multiclass table, due to rounding
RESERVED = ("path", "sample", "patient", "split")


@dataclass
class ProbabilityTable:
    """Images and probabilities of a table."""

    images: list[str]
    classes: list[str]
    probabilities: np.ndarray
    """(N, K), from 0 to 1."""
    kind: str
    """That of the model, if one is named; else multiclass where the probabilities of every image sum to 1."""

    def select(self, rows: np.ndarray) -> ProbabilityTable:  # bool (N,)
        """Some of the images."""
        images = [image for image, is_selected in zip(self.images, rows, strict=True) if is_selected]
        return replace(self, images=images, probabilities=self.probabilities[rows])

    @property
    def logits(self) -> np.ndarray:  # (N, K)
        probabilities = np.clip(self.probabilities, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
        return np.log(probabilities) if self.kind == "multiclass" else logit(probabilities)


def score_table(task: Classification, settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
    """Match the two tables by image, and write predictions, scores with intervals and a report. No image is read.

    `predictions` has the image in its first column and prob_<class> columns; its other columns are ignored.
    `labels` has the targets: NIH's `Finding Labels` (a|b), a column of classes (`label=COLUMN`), or a column of 1, 0,
    blank or -1 (both unknown) per class. Its other columns are the metadata of subgroups. The values that a
    model ships are applied if the model is named; nothing is fitted on these images.
    """
    say = prepare.make_printer(True)
    if not settings.predictions or not settings.labels:
        raise FinetuneError("predictions=FILE needs labels=FILE, a table of labels of the same images.")
    assessment = task.assessment
    model = model_file.load(settings.model) if any(word.lstrip("+").startswith("model=") for word in words) else None
    probabilities, labels = (read_rows(Path(file)) for file in (settings.predictions, settings.labels))
    image = image_column(settings, probabilities, labels)
    for table, key, column in ((probabilities, "predictions", probabilities.columns[0]), (labels, "labels", image)):
        table[column] = table[column].str.strip()
        if (duplicates := table[column][table[column].duplicated()]).size:
            raise FinetuneError(
                f"{key}={getattr(settings, key)} lists {len(duplicates):,} image(s) twice, e.g. {duplicates.iloc[0]}."
            )
    ignored = [c for c in probabilities.columns[1:] if c in labels.columns and c != image]
    if ignored:
        say(
            f"{shorten(ignored, 8)} of predictions={settings.predictions} is not read: labels={settings.labels} has "
            "it too."
        )
    predicted = read_probabilities(probabilities, settings, model, say)
    label_rows, rule = match_images(predicted.images, labels[image].tolist())
    if not (label_rows >= 0).any():
        raise FinetuneError(
            f"No image of {settings.predictions} is in {settings.labels}: {predicted.images[0]} against "
            f"{labels[image].iloc[0]}. image=COLUMN names another column of labels."
        )
    if rule:
        say(f"Images are matched by {rule}.")
    matched = int((label_rows >= 0).sum())
    for missing, name, other in ((len(predicted.images) - matched, "predictions", "labels"),
                               (len(labels) - matched, "labels", "predictions")):  # fmt: skip
        if missing:
            say(f"{missing:,} image(s) of {name} are not in {other} and are left out; {matched:,} are in both.")
    predicted = predicted.select(label_rows >= 0)
    samples = read_labels(predicted, labels, label_rows[label_rows >= 0], image, settings, say)
    assessment.check_columns(samples.metadata)
    predictions, fitted = to_predictions(task, predicted, samples, model, say)
    prevalence = read_prevalence(settings.prevalence, predictions.classes, predictions.kind)
    run.begin(settings.resolved, words)
    data_record = {"name": samples.name, "kind": samples.kind, "classes": samples.classes, "notes": samples.notes}
    model_record = {} if model is None else {"model": scoring.describe_model(settings.model, model)}
    run.note(data=data_record, **model_record)
    scoring.write(run, {"test": predictions})
    scores = {"test": assessment.score(predictions, fitted, seed=settings.seed, prevalence=prevalence)}
    if fitted.notes:
        scores["test"]["notes"] = fitted.notes
    task.report(run.path, scores)
    run.complete(scores)
    for name, class_scores in scores["test"]["classes"].items():
        auroc = class_scores["auroc"]
        if auroc["value"] is None:
            say(f"{name:>22}: AUROC undefined")
        else:
            interval = "" if auroc["low"] is None else f" [{auroc['low']:.3f}, {auroc['high']:.3f}]"
            say(f"{name:>22}: AUROC {auroc['value']:.3f}{interval}")
    for line in task.summary(scores, synthetic=False):
        say(line)
    say(f"predictions and scores: {run}")
    say(f"report: {run.report}")


def image_column(settings: EvaluateSettings, probabilities: pd.DataFrame, labels: pd.DataFrame) -> str:
    """The column of labels that names the image."""
    if settings.image is not None:
        need_columns(labels, {"image": settings.image}, Path(str(settings.labels)))
        return str(settings.image)
    first = str(probabilities.columns[0])
    if first in labels.columns:
        return first
    names = probabilities[first].head(1000).tolist()
    num_matches = {str(c): int((match_images(names, labels[c].drop_duplicates().tolist())[0] >= 0).sum())
            for c in labels.columns if not labels[c].duplicated().any()}  # fmt: skip
    best = max(num_matches, key=lambda column: num_matches[column], default="")
    hint = (
        f"image={best} names it: it has {num_matches[best]:,} of the first {len(names):,} images."
        if num_matches.get(best)
        else ""
    )
    raise FinetuneError(
        f"The images of predictions={settings.predictions} are in its column {first}, which is not a column of "
        f"labels={settings.labels}. {hint or 'image=COLUMN says which of its columns names the image.'} It has: "
        f"{', '.join(map(str, labels.columns))}."
    )


def read_probabilities(
    table: pd.DataFrame, settings: EvaluateSettings, model: model_file.Model | None, say: prepare.Say
) -> ProbabilityTable:
    """The probabilities; images without any, which the other program could not read, are left out."""
    where = f"predictions={settings.predictions}"
    columns = {str(c).removeprefix("prob_"): str(c) for c in table.columns if str(c).startswith("prob_")}
    if not columns:
        raise FinetuneError(f"{where} has no column prob_<class>: {shorten(table.columns, 8)}.")
    if model is not None:
        if set(columns) != set(model.classes):
            raise FinetuneError(
                f"{where} has probabilities of {shorten(columns, 8)}, model={settings.model} has "
                f"{shorten(model.classes, 8)}: its calibration and thresholds are of these classes. Leave out model=."
            )
        columns = {name: columns[name] for name in model.classes}
    blank = (table[list(columns.values())].apply(lambda column: column.str.strip()) == "").all(axis=1)
    if blank.all():
        raise FinetuneError(f"{where}: all its prob_ columns are blank.")
    if n := int(blank.sum()):
        say(f"{n:,} image(s) of {where} have no probabilities and are left out.")
    table = table[~blank]
    images = table[table.columns[0]]
    values = np.stack([parse_probabilities(table[column], column, images) for column in columns.values()], axis=1)
    sums_to_one = len(columns) > 1 and np.abs(values.sum(axis=1) - 1).max() < SUM_TOLERANCE
    kind = class_answers(model).kind if model is not None else "multiclass" if sums_to_one else "multilabel"
    return ProbabilityTable(images.tolist(), list(columns), values, kind)


def read_labels(
    predicted: ProbabilityTable,
    all_labels: pd.DataFrame,
    rows: np.ndarray,
    image: str,
    settings: EvaluateSettings,
    say: prepare.Say,
) -> SampleTable:
    """The rows of labels of the images of `predicted`, as a sample table in its classes."""
    labels = all_labels.iloc[rows].reset_index(drop=True)
    file, label = Path(str(settings.labels)), settings.label
    for name in label if isinstance(label, list) else [label] if label is not None else []:
        need_columns(labels, {"label": name}, file)
    patient = settings.patient or next((name for name in PATIENTS if name in labels.columns), None)
    if patient is not None:
        need_columns(labels, {"patient": patient}, file)
    else:
        say("No patient column (patient=COLUMN): every image counts as its own patient; intervals may be too narrow.")
    others = [str(c) for c in labels.columns if c not in (image, patient)]
    class_columns = [c for c in others if any(canonical(c) == canonical(name) for name in predicted.classes)]
    if label is None and FINDINGS in others:
        if class_columns:
            raise FinetuneError(
                f"labels={file} has {FINDINGS} and {shorten(class_columns, 8)}, which both have labels: "
                f"label='{FINDINGS}' or 'label=[{', '.join(class_columns)}]' chooses."
            )
        label = FINDINGS
    if isinstance(label, str):
        label_classes, kind, targets = read_class_column(all_labels[label], rows, label, predicted.classes)
        used = [label]
    else:
        rows_of_file = all_labels.iloc[rows]  # with line numbers, for errors
        label_classes, kind, targets, used = read_binary_columns(
            predicted, rows_of_file, label or others, settings, file
        )
    metadata = {f"{c}_" if c in RESERVED or c.startswith(PREFIXES) else c: parse_numbers(labels[c])
                for c in others if c not in used}  # fmt: skip
    frame = pd.DataFrame(
        {
            "path": predicted.images,
            "patient": predicted.images if patient is None else read_patients(labels[patient], predicted),
        }
    )
    frame["split"] = pd.Series([None] * len(frame), dtype=object)
    block = pd.DataFrame(targets, columns=[f"target_{name}" for name in label_classes])
    frame = pd.concat([frame, block, pd.DataFrame(metadata)], axis=1)
    table = SampleTable(frame, label_classes, kind, file.parent, file.stem, list(metadata), patient is not None)
    table = to_model_classes(table, predicted.classes, predicted.kind, settings.data.map)
    for sentence in table.notes:
        say(sentence)
    return table


def read_class_column(
    column: pd.Series, rows: np.ndarray, name: str, classes: list[str]
) -> tuple[list[str], str, np.ndarray]:
    """Classes, kind and targets (N, K) at `rows` of a column that names the class of an image, or several as a|b.

    A cell equal to one of `classes` is that class, even if it contains `|`. A finding of any row of the column is known
    for all rows: those without it are negative.
    """
    codes, texts = pd.factorize(column.str.strip())
    cells = [[part.strip() for part in ([text] if text in classes else text.split("|"))] for text in texts]
    is_multilabel = name == FINDINGS or any(len(cell) > 1 for cell in cells)
    cells_of_rows = cells if is_multilabel else [cells[code] for code in np.unique(codes[rows])]
    known = sorted({part for cell in cells_of_rows for part in cell if part})
    if not known:
        raise FinetuneError(f"label={name} is blank in every row that has a prediction.")
    targets = np.array([[float(class_name in cell) for class_name in known] for cell in cells])
    if not is_multilabel:
        targets[[cell == [""] for cell in cells]] = np.nan
    return known, "multilabel" if is_multilabel else "multiclass", targets[codes[rows]]


def read_binary_columns(
    predicted: ProbabilityTable, labels: pd.DataFrame, columns: list[str], settings: EvaluateSettings, file: Path
) -> tuple[list[str], str, np.ndarray, list[str]]:
    """Classes, kind, targets and the columns used, of a column of 1, 0, blank or -1 per class.

    They are multiclass if the probabilities are, each class has a column, and exactly one of them is 1.
    """
    if not columns:
        raise FinetuneError(no_labels_message(predicted, labels, columns, file))
    mapping = read_map(settings.data.map, predicted.classes, columns)
    try:
        matched = match(predicted.classes, predicted.kind, columns, "multilabel", mapping)
    except FinetuneError as error:
        if settings.label is not None:
            raise
        raise FinetuneError(no_labels_message(predicted, labels, columns, file)) from error
    used = [column for values in matched.classes.values() for column in values]
    raw_labels = np.stack([read_binary_labels(labels[column], file) for column in used], axis=1)
    is_one_hot = np.isnan(raw_labels).all(axis=1) | (np.nansum(raw_labels, axis=1) == 1)
    has_all_classes = (
        predicted.kind == "multiclass"
        and set(matched.classes) == set(predicted.classes)
        and len(used) == len(predicted.classes)
    )
    return used, "multiclass" if has_all_classes and is_one_hot.all() else "multilabel", raw_labels, used


def no_labels_message(predicted: ProbabilityTable, labels: pd.DataFrame, columns: list[str], file: Path) -> str:
    """The message for a table of labels without a column for any class, with the settings to add."""
    sentence = f"labels={file} has no column for {shorten(predicted.classes, 8)}. It has: {shorten(labels.columns, 8)}."
    names = {name.casefold() for name in predicted.classes}
    class_columns = [column for column in columns if names & set(labels[column].str.strip().str.casefold())]
    if class_columns:
        return f"{sentence} label={class_columns[0]} reads the class from that column."
    if mapping := proposals(predicted.classes, columns):
        return f"{sentence} 'data.map={in_braces(mapping)}' maps classes to columns."
    return f"{sentence} label=COLUMN names a column of classes, 'data.map={{CLASS: COLUMN}}' one of 1 and 0."


def read_binary_labels(column: pd.Series, file: Path) -> np.ndarray:  # (N,) of 1, 0 and NaN
    """A column of labels; -1 and blank are unknown."""
    raw_labels = read_raw_labels(column, f"labels={file}", soft=False)
    return np.where(raw_labels == UNCERTAIN, np.nan, raw_labels)


def read_patients(column: pd.Series, predicted: ProbabilityTable) -> list[str]:
    """The patient of each image; an image without patient is its own patient."""
    return [name.strip() or image for name, image in zip(column, predicted.images, strict=True)]


def parse_numbers(column: pd.Series) -> pd.Series:
    """A column of numbers as numbers, blank as NaN; any other column unchanged."""
    text = column.str.strip()
    values = pd.to_numeric(text.where(text != ""), errors="coerce")
    return values.astype(float) if (values.isna() == (text == "")).all() else text.astype(object)


def to_predictions(
    task: Classification,
    predicted: ProbabilityTable,
    table: SampleTable,
    model: model_file.Model | None,
    say: prepare.Say,
) -> tuple[Predictions, FittedOnVal]:
    """The predictions table, and the values that `model` ships for it."""
    logits, classes = predicted.logits, list(table.classes)
    if predicted.kind != table.kind and predicted.kind == "multiclass":
        logits = log_odds(logits)
    if model is None and table.kind == "multilabel":  # shipped values are of all classes of the model
        known = ~np.isnan(table.targets()).all(axis=0)
        left_out = [name for name, is_known in zip(classes, known, strict=True) if not is_known]
        if left_out:
            say(f"No labels for {shorten(left_out, 20)}: left out.")
        classes = [name for name in classes if name not in left_out] or classes
    logits = logits[:, [predicted.classes.index(name) for name in classes]]
    frame = table.frame
    targets = frame[[f"target_{name}" for name in classes]].to_numpy(np.float64)
    metadata = frame[table.metadata]
    predictions = Predictions.from_arrays(
        frame["path"].tolist(), frame["patient"].tolist(), classes, table.kind, targets, logits, metadata
    )
    return predictions, task.unfitted() if model is None else task.shipped(model, table)


def parse_probabilities(column: pd.Series, name: str, images: pd.Series) -> np.ndarray:  # (N,) in [0, 1]
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    invalid = ~((values >= 0) & (values <= 1))
    if invalid.any():
        raise FinetuneError(
            f"predictions: column {name} holds {column[invalid].iloc[0]!r} for {images[invalid].iloc[0]} "
            f"({int(invalid.sum()):,} such row(s)); a probability lies between 0 and 1. "
            f"{number_hint(str(column[invalid].iloc[0]))}".rstrip()
        )
    return values
