"""The steps of job=evaluate predictions=FILE labels=FILE: the scores of a table of probabilities, whoever made it."""

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
NEAREST = 1e-12  # a probability of exactly 0 or 1 has no logit; the order stays
SUM_OFF = 1e-3  # how far the probabilities of a multiclass table may sum from 1: they were rounded
RESERVED = ("path", "sample", "patient", "split")


@dataclass
class Answers:
    """What a table of probabilities says."""

    images: list[str]
    classes: list[str]
    probabilities: np.ndarray
    """(N, K), from 0 to 1."""
    kind: str
    """That of the model, where it is known; else multiclass where the probabilities of every image sum to 1."""

    def taken(self, rows: np.ndarray) -> Answers:  # bool (N,)
        """Some of the images."""
        images = [image for image, there in zip(self.images, rows, strict=True) if there]
        return replace(self, images=images, probabilities=self.probabilities[rows])

    @property
    def logits(self) -> np.ndarray:  # (N, K)
        kept = np.clip(self.probabilities, NEAREST, 1 - NEAREST)
        return np.log(kept) if self.kind == "multiclass" else logit(kept)


def score_file(task: Classification, settings: EvaluateSettings, run: RunFolder, words: list[str]) -> None:
    """Match the two tables by image, and write predictions, scores with intervals and a report. No picture is read.

    `predictions` has the image in its first column and prob_<class> columns; everything else that it has is ignored.
    `labels` says what is true: NIH's `Finding Labels` (a|b), a column of classes (`label=COLUMN`), or a column of 1, 0,
    blank or -1 (both unknown) per class. Its other columns are the metadata of subgroups. What a model ships is applied
    where the model is named; nothing is fitted on these images.
    """
    say = prepare.sayer(True)
    if not settings.predictions or not settings.labels:
        raise FinetuneError("predictions=FILE needs labels=FILE, a table that says what is true of the same images.")
    assessment = task.assessment
    model = model_file.load(settings.model) if any(word.lstrip("+").startswith("model=") for word in words) else None
    answers, labels = (read_rows(Path(file)) for file in (settings.predictions, settings.labels))
    image = image_column(settings, answers, labels)
    for table, key, column in ((answers, "predictions", answers.columns[0]), (labels, "labels", image)):
        table[column] = table[column].str.strip()
        if (twice := table[column][table[column].duplicated()]).size:
            raise FinetuneError(
                f"{key}={getattr(settings, key)} lists {len(twice):,} image(s) twice, e.g. {twice.iloc[0]}."
            )
    both = [c for c in answers.columns[1:] if c in labels.columns and c != image]
    if both:
        say(
            f"{shorten(both, 8)} of predictions={settings.predictions} is not read: labels={settings.labels} has "
            "it too."
        )
    given = read_answers(answers, settings, model, say)
    found, way = match_images(given.images, labels[image].tolist())
    if not (found >= 0).any():
        raise FinetuneError(
            f"No image of {settings.predictions} is in {settings.labels}: {given.images[0]} against "
            f"{labels[image].iloc[0]}. image=COLUMN names another column of labels."
        )
    if way:
        say(f"Images are matched by {way}.")
    matched = int((found >= 0).sum())
    for missing, of, where in ((len(given.images) - matched, "predictions", "labels"),
                               (len(labels) - matched, "labels", "predictions")):  # fmt: skip
        if missing:
            say(f"{missing:,} image(s) of {of} are not in {where} and are left out; {matched:,} are in both.")
    given = given.taken(found >= 0)
    samples = truth(given, labels, found[found >= 0], image, settings, say)
    assessment.check_columns(samples.metadata)
    predictions, fitted = answered(task, given, samples, model, say)
    prevalence = read_prevalence(settings.prevalence, predictions.classes, predictions.kind)
    run.begin(settings.resolved, words)
    about = {"name": samples.name, "kind": samples.kind, "classes": samples.classes, "notes": samples.notes}
    of_model = {} if model is None else {"model": scoring.about(settings.model, model)}
    run.note(data=about, **of_model)
    scoring.write(run, {"test": predictions})
    scores = {"test": assessment.score(predictions, fitted, seed=settings.seed, prevalence=prevalence)}
    if fitted.notes:
        scores["test"]["notes"] = fitted.notes
    task.report(run.path, scores)
    run.complete(scores)
    for name, of_class in scores["test"]["classes"].items():
        auroc = of_class["auroc"]
        if auroc["value"] is None:
            say(f"{name:>22}: AUROC undefined")
        else:
            interval = "" if auroc["low"] is None else f" [{auroc['low']:.3f}, {auroc['high']:.3f}]"
            say(f"{name:>22}: AUROC {auroc['value']:.3f}{interval}")
    for line in task.summary(scores, synthetic=False):
        say(line)
    say(f"predictions and scores: {run}")
    say(f"report: {run.report}")


def image_column(settings: EvaluateSettings, answers: pd.DataFrame, labels: pd.DataFrame) -> str:
    """The column of labels that names the image."""
    if settings.image is not None:
        need_columns(labels, {"image": settings.image}, Path(str(settings.labels)))
        return str(settings.image)
    first = str(answers.columns[0])
    if first in labels.columns:
        return first
    names = answers[first].head(1000).tolist()
    fits = {str(c): int((match_images(names, labels[c].drop_duplicates().tolist())[0] >= 0).sum())
            for c in labels.columns if not labels[c].duplicated().any()}  # fmt: skip
    best = max(fits, key=lambda column: fits[column], default="")
    way = f"image={best} names it: it has {fits[best]:,} of the first {len(names):,} images." if fits.get(best) else ""
    raise FinetuneError(
        f"The images of predictions={settings.predictions} stand in its column {first}, which is not a column of "
        f"labels={settings.labels}. {way or 'image=COLUMN says which of its columns names the image.'} It has: "
        f"{', '.join(map(str, labels.columns))}."
    )


def read_answers(
    table: pd.DataFrame, settings: EvaluateSettings, model: model_file.Model | None, say: prepare.Say
) -> Answers:
    """The probabilities; images without any, which could not be read, are left out."""
    where = f"predictions={settings.predictions}"
    columns = {str(c).removeprefix("prob_"): str(c) for c in table.columns if str(c).startswith("prob_")}
    if not columns:
        raise FinetuneError(f"{where} has no column prob_<class>: {shorten(table.columns, 8)}.")
    if model is not None:
        if set(columns) != set(model.classes):
            raise FinetuneError(
                f"{where} has probabilities of {shorten(columns, 8)}, model={settings.model} knows "
                f"{shorten(model.classes, 8)}: its calibration and thresholds are of its own classes. Leave model= "
                "away."
            )
        columns = {name: columns[name] for name in model.classes}
    blank = (table[list(columns.values())].apply(lambda column: column.str.strip()) == "").all(axis=1)
    if blank.all():
        raise FinetuneError(f"{where}: all its prob_ columns are blank.")
    if n := int(blank.sum()):
        say(f"{n:,} image(s) of {where} have no probabilities and are left out.")
    table = table[~blank]
    images = table[table.columns[0]]
    values = np.stack([numbers(table[column], column, images) for column in columns.values()], axis=1)
    sums_to_one = len(columns) > 1 and np.abs(values.sum(axis=1) - 1).max() < SUM_OFF
    kind = class_answers(model).kind if model is not None else "multiclass" if sums_to_one else "multilabel"
    return Answers(images.tolist(), list(columns), values, kind)


def truth(
    given: Answers, every: pd.DataFrame, rows: np.ndarray, image: str, settings: EvaluateSettings, say: prepare.Say
) -> SampleTable:
    """The rows of labels that belong to the images of `given`, as a sample table in its classes."""
    labels = every.iloc[rows].reset_index(drop=True)
    file, label = Path(str(settings.labels)), settings.label
    for name in label if isinstance(label, list) else [label] if label is not None else []:
        need_columns(labels, {"label": name}, file)
    patient = settings.patient or next((name for name in PATIENTS if name in labels.columns), None)
    if patient is not None:
        need_columns(labels, {"patient": patient}, file)
    else:
        say("No patient column (patient=COLUMN): every image counts as its own patient; intervals may be too narrow.")
    others = [str(c) for c in labels.columns if c not in (image, patient)]
    own = [c for c in others if any(canonical(c) == canonical(name) for name in given.classes)]
    if label is None and FINDINGS in others:
        if own:
            raise FinetuneError(
                f"labels={file} has {FINDINGS} and {shorten(own, 8)}, which both say what is true: label='{FINDINGS}' "
                f"or 'label=[{', '.join(own)}]' chooses."
            )
        label = FINDINGS
    if isinstance(label, str):
        known, kind, targets = of_one_column(every[label], rows, label, given.classes)
        used = [label]
    else:
        rows_of_file = every.iloc[rows]  # with the numbers of its lines, for errors
        known, kind, targets, used = of_columns(given, rows_of_file, label or others, settings, file)
    metadata = {f"{c}_" if c in RESERVED or c.startswith(PREFIXES) else c: readable(labels[c])
                for c in others if c not in used}  # fmt: skip
    frame = pd.DataFrame(
        {"path": given.images, "patient": given.images if patient is None else people(labels[patient], given)}
    )
    frame["split"] = pd.Series([None] * len(frame), dtype=object)
    block = pd.DataFrame(targets, columns=[f"target_{name}" for name in known])
    frame = pd.concat([frame, block, pd.DataFrame(metadata)], axis=1)
    table = SampleTable(frame, known, kind, file.parent, file.stem, list(metadata), patient is not None)
    table = to_model_classes(table, given.classes, given.kind, settings.data.map)
    for sentence in table.notes:
        say(sentence)
    return table


def of_one_column(
    column: pd.Series, rows: np.ndarray, name: str, classes: list[str]
) -> tuple[list[str], str, np.ndarray]:
    """Classes, kind and targets (N, K) at `rows` of a column that names the class of an image, or several as a|b.

    A cell that is one of `classes` is that class, whatever its name holds. A finding that none of these rows has is
    still known of them if any row has it: they are without it.
    """
    codes, texts = pd.factorize(column.str.strip())
    cells = [[part.strip() for part in ([text] if text in classes else text.split("|"))] for text in texts]
    several = name == FINDINGS or any(len(cell) > 1 for cell in cells)
    here = cells if several else [cells[code] for code in np.unique(codes[rows])]
    known = sorted({part for cell in here for part in cell if part})
    if not known:
        raise FinetuneError(f"label={name} is blank in every row that has a prediction.")
    targets = np.array([[float(one in cell) for one in known] for cell in cells])
    if not several:
        targets[[cell == [""] for cell in cells]] = np.nan
    return known, "multilabel" if several else "multiclass", targets[codes[rows]]


def of_columns(
    given: Answers, labels: pd.DataFrame, columns: list[str], settings: EvaluateSettings, file: Path
) -> tuple[list[str], str, np.ndarray, list[str]]:
    """Classes, kind, targets and the columns used, of a column of 1, 0, blank or -1 per class. Where a multiclass table
    has a column for each class, of which exactly one is 1, they are classes too."""
    if not columns:
        raise FinetuneError(nothing_known(given, labels, columns, file))
    mapping = read_map(settings.data.map, given.classes, columns)
    try:
        matched = match(given.classes, given.kind, columns, "multilabel", mapping)
    except FinetuneError as error:
        if settings.label is not None:
            raise
        raise FinetuneError(nothing_known(given, labels, columns, file)) from error
    used = [column for values in matched.classes.values() for column in values]
    marks = np.stack([hard(labels[column], file) for column in used], axis=1)
    one_hot = np.isnan(marks).all(axis=1) | (np.nansum(marks, axis=1) == 1)
    whole = (
        given.kind == "multiclass" and set(matched.classes) == set(given.classes) and len(used) == len(given.classes)
    )
    return used, "multiclass" if whole and one_hot.all() else "multilabel", marks, used


def nothing_known(given: Answers, labels: pd.DataFrame, columns: list[str], file: Path) -> str:
    """The sentence for a table of labels without a column for any class, with what to type."""
    said = f"labels={file} says nothing of {shorten(given.classes, 8)}. It has: {shorten(labels.columns, 8)}."
    names = {name.casefold() for name in given.classes}
    of_classes = [column for column in columns if names & set(labels[column].str.strip().str.casefold())]
    if of_classes:
        return f"{said} label={of_classes[0]} reads the class from that column."
    if proposed := proposals(given.classes, columns):
        return f"{said} 'data.map={in_braces(proposed)}' says which column is which class."
    return f"{said} label=COLUMN names a column of classes, 'data.map={{CLASS: COLUMN}}' one of 1 and 0."


def hard(column: pd.Series, file: Path) -> np.ndarray:  # (N,) of 1, 0 and NaN
    """A column of labels; -1 is unknown, and so is blank."""
    marks = read_raw_labels(column, f"labels={file}", soft=False)
    return np.where(marks == UNCERTAIN, np.nan, marks)


def people(column: pd.Series, given: Answers) -> list[str]:
    """The patient of each image; one without stands for itself."""
    return [name.strip() or image for name, image in zip(column, given.images, strict=True)]


def readable(column: pd.Series) -> pd.Series:
    """A column of numbers as numbers, blank as NaN; any other as it stands."""
    text = column.str.strip()
    values = pd.to_numeric(text.where(text != ""), errors="coerce")
    return values.astype(float) if (values.isna() == (text == "")).all() else text.astype(object)


def answered(
    task: Classification, given: Answers, table: SampleTable, model: model_file.Model | None, say: prepare.Say
) -> tuple[Predictions, FittedOnVal]:
    """The predictions table, and what `model` ships for it."""
    logits, classes = given.logits, list(table.classes)
    if given.kind != table.kind and given.kind == "multiclass":
        logits = log_odds(logits)
    if model is None and table.kind == "multilabel":  # what is shipped is of all classes of the model
        known = ~np.isnan(table.targets()).all(axis=0)
        left = [name for name, there in zip(classes, known, strict=True) if not there]
        if left:
            say(f"No labels for {shorten(left, 20)}: left out.")
        classes = [name for name in classes if name not in left] or classes
    logits = logits[:, [given.classes.index(name) for name in classes]]
    frame = table.frame
    targets = frame[[f"target_{name}" for name in classes]].to_numpy(np.float64)
    metadata = frame[table.metadata]
    predictions = Predictions.from_arrays(
        frame["path"].tolist(), frame["patient"].tolist(), classes, table.kind, targets, logits, metadata
    )
    return predictions, task.unfitted() if model is None else task.shipped(model, table)


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
