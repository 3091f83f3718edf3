"""job=explain: heat maps of a finished model, its most confident errors, and tests of the maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune import model_file
from finetune.config import build
from finetune.config.settings import ExplainSettings
from finetune.data.annotations import BOXES, Boxes
from finetune.data.audit.contact_sheet import write_sheet
from finetune.data.findings import same_finding
from finetune.data.loading.module import ImageData
from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.thresholds import decision_thresholds, thresholds_in_words
from finetune.explanations import checks
from finetune.explanations import worst_errors as worst_errors
from finetune.explanations.explanation import class_number, peak_position
from finetune.explanations.explanation import explain as explain_images
from finetune.explanations.geometry import Corners, as_corners
from finetune.explanations.localisation import BoxedFinding, localise
from finetune.explanations.maps import check_method
from finetune.files import write_json_atomic
from finetune.inference import best_device, eval_mode
from finetune.pages import explanation as page
from finetune.runs import known_images
from finetune.runs.environment import command
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, scoring
from finetune.steps.image_files import image_files
from finetune.steps.task import Subject
from finetune.tasks.classification.worst_errors import heat_maps, input_image, load_inputs, table_rows

if TYPE_CHECKING:
    from finetune.tasks.classification.task import Classification

MAX_FILES = 200  # images on one page
NUM_TESTS = {"grad_cam": 64, "grad_cam_pp": 64}  # images of the randomisation test; other methods are slow
NUM_TESTS_SLOW = 24
MAX_BOXED = 8  # findings with boxes on the page
MAX_RESAMPLES = 1000


def explain(
    task: Classification, settings: ExplainSettings, model: model_file.Model, run: RunFolder, words: list[str]
) -> None:
    """Explain chosen images, or a split: its worst errors, the randomisation test, and boxes where there are any."""
    check_method(settings.method)
    if settings.finding is not None:
        class_number(model.classes, settings.finding)
    say = prepare.make_printer(True)
    if settings.images:
        result, figures = explain_files(settings, model, run, words)
    else:
        result, figures = explain_split(task, settings, model, run, words, say)
    run.note(model={"path": settings.model, "weights_hash": model.weights_hash})
    result = {
        "model": {"weights_hash": model.weights_hash},
        "method": settings.method,
        "grid": grid_size(model),
        **result,
    }
    write_json_atomic(run.explanation, result)
    tiles = [tile for figure in figures for tile in (figure.image, figure.heated)]
    captions = [text for figure in figures for text in figure.caption.rsplit(": ", 1)]  # the caption, and the file
    write_sheet(run.explanation_sheet, tiles, captions, columns=6)
    page.write(run.explanation_page, result, figures, command(words))
    for sentence in page.sentences(result):
        say(sentence)
    say(f"page: {run.explanation_page}")


def explain_files(
    settings: ExplainSettings, model: model_file.Model, run: RunFolder, words: list[str]
) -> tuple[dict[str, Any], list[page.Figure]]:
    """Explain chosen images, each for `finding` or its most probable class."""
    files = image_files(settings.images, "images")
    if len(files) > MAX_FILES:
        raise FinetuneError(f"images={settings.images} names {len(files):,} images; a page holds {MAX_FILES}.")
    run.begin(settings.resolved, words)
    explanation = explain_images(
        model, files, finding=settings.finding, method=settings.method, device=settings.trainer.accelerator
    )
    images = [explanation.to_dict(number) for number in range(len(explanation))]
    figures = [
        page.Figure.make("images", record, image, heat_map)
        for record, image, heat_map in zip(images, explanation.images, explanation.heat, strict=True)
    ]
    result: dict[str, Any] = {"images": images}
    if settings.sanity:
        indices = evenly_spaced(len(explanation), num_tests(settings.method))
        inputs = torch.stack([model.preprocessing.to_tensor(explanation.images[number]) for number in indices])
        classes = torch.tensor([model.classes.index(explanation.explained[number]) for number in indices])
        result["sanity"] = checks.randomisation(
            model.network,
            inputs,
            classes,
            settings.method,
            positions=num_positions(settings.method, model),
            seed=settings.seed,
        )
    return result, figures


def explain_split(
    task: Classification,
    settings: ExplainSettings,
    model: model_file.Model,
    run: RunFolder,
    words: list[str],
    say: prepare.Say,
) -> tuple[dict[str, Any], list[page.Figure]]:
    """Explain a split of the data: worst errors, boxes, the randomisation test."""
    method, finding = settings.method, settings.finding
    source = build.source(settings).table()
    table, split_in_table, split = prepare.select_split(task, source, settings.split, settings.data, model, say)
    if finding is not None:
        class_number(table.classes, finding)
    run.begin(settings.resolved, words)
    table, images, _ = prepare.decode_and_audit(settings.data, table, model.preprocessing, say, run)
    data = prepare.make_datamodule(settings.data, settings.seed, table, images, model.preprocessing)
    overlap = known_images.find(model, table, images, data.rows(split_in_table))
    leaks = overlap.stop(split, "warn")
    for sentence in leaks:
        say(sentence)
    model.network.to(best_device(settings.trainer.accelerator))
    accelerator = settings.trainer.accelerator
    subject = Subject(
        model.network, data, data.rows(split_in_table), split, model, accelerator, settings.seed, model.tta
    )
    fitted = task.shipped(model, table)
    predictions = task.predict(subject, fitted)
    assert predictions is not None  # a single process
    opened_run = scoring.count_opening(model, table.name, predictions, overlap, words, say)
    if opened_run is not None:
        task.report(opened_run.path)  # it shows the number of test openings
    thresholds = worst_errors.thresholds_of(fitted.operating_points, predictions.classes)
    worst = worst_errors.worst(predictions, settings.worst, thresholds, finding)
    result: dict[str, Any] = {
        "data": {"name": table.name, "split": split, "images": len(predictions), "synthetic": table.synthetic},
        "wrong": worst_errors.count(predictions, thresholds, finding),
        "rule": describe_rule(predictions, fitted.operating_points, finding),
        "errors": [],
        "seen": bool(overlap.sentences),
        "known": leaks,
    }
    figures = []
    rows = table_rows(data, [str(predictions.frame["sample"].iloc[error.row]) for error in worst])
    class_indices = [model.classes.index(name) for name in predictions.classes]
    maps = heat_maps(model.network, data, rows, [class_indices[error.k] for error in worst], method)
    for error, row, heat in zip(worst, rows, maps, strict=True):
        record = {
            **error.to_dict(predictions),
            "target": target_value(predictions, error.row, error.k),
            "maximum": peak_position(heat),
        }
        result["errors"].append(record)
        boxes = find_boxes(data, row, predictions.classes[error.k])
        figures.append(page.Figure.make("errors", record, input_image(data, row), heat, boxes))
    boxed_findings, records = explain_boxes(settings, model, data, predictions)
    if boxed_findings:
        n_boot = min(task.assessment.resamples, MAX_RESAMPLES)
        result["localisation"] = localise(boxed_findings, n_boot=n_boot, seed=settings.seed)
        result["located"] = []
        for number in evenly_spaced(len(boxed_findings), MAX_BOXED):
            record, load_image = records[number]
            record["maximum"] = peak_position(boxed_findings[number].heat)
            result["located"].append(record)
            figures.append(
                page.Figure.make(
                    "located", record, load_image(), boxed_findings[number].heat, boxed_findings[number].boxes
                )
            )
    if settings.sanity:
        result["sanity"] = randomisation_test(settings, model, data, predictions, thresholds)
    return result, figures


def describe_rule(predictions: Predictions, operating_points: Mapping[str, Any], finding: str | None) -> str:
    """The rule by which a prediction is an error, in words."""
    if predictions.kind == "multiclass":
        return "the answer is the most probable class"
    thresholds = decision_thresholds(operating_points, predictions.classes if finding is None else [finding])
    return f"an answer is yes from the threshold of prob_: {thresholds_in_words(thresholds)}"


def explain_boxes(
    settings: ExplainSettings, model: model_file.Model, data: ImageData, predictions: Predictions
) -> tuple[list[BoxedFinding], list[tuple[dict[str, Any], Any]]]:
    """Findings with boxes and their heat maps; and a record of each, with a function that loads its image."""
    if BOXES not in data.table.annotations or not settings.located:
        return [], []
    pairs = []
    for index, row in enumerate(table_rows(data, [str(sample) for sample in predictions.frame["sample"]])):
        for k, name in enumerate(predictions.classes):
            if settings.finding in (None, name) and (boxes := find_boxes(data, row, name)):
                pairs.append((index, row, k, boxes))
    pairs = [pairs[number] for number in evenly_spaced(len(pairs), settings.located)]
    numbers = [model.classes.index(predictions.classes[k]) for _, _, k, _ in pairs]
    maps = heat_maps(model.network, data, [p[1] for p in pairs], numbers, settings.method)
    boxed_findings, records = [], []
    for (index, row, k, boxes), heat in zip(pairs, maps, strict=True):
        patient, sample = (str(predictions.frame[column].iloc[index]) for column in ("patient", "sample"))
        boxed_findings.append(BoxedFinding(predictions.classes[k], patient, boxes, heat))
        record = {"sample": sample, "class": predictions.classes[k], "probability": float(predictions.probs[index, k])}
        records.append(
            ({**record, "target": target_value(predictions, index, k)}, lambda row=row: input_image(data, row))
        )
    return boxed_findings, records


def find_boxes(data: ImageData, row: int, finding: str) -> list[Corners]:
    """The boxes of a finding in an image, in pixels of the network's input."""
    boxes = data.table.annotations[BOXES][row] if BOXES in data.table.annotations else None
    if not isinstance(boxes, Boxes):
        return []
    corners = boxes.corners[np.array([same_finding(label, finding) for label in boxes.labels], bool)]
    height, width = (int(side) for side in data.images.sizes[row])
    return as_corners(data.preprocessing.boxes_to_input(corners, height, width).corners)


def randomisation_test(
    settings: ExplainSettings,
    model: model_file.Model,
    data: ImageData,
    predictions: Predictions,
    thresholds: np.ndarray,
) -> dict[str, Any]:
    """The randomisation test on images spread over the split, each for `finding` or its most probable class.

    Images predicted positive come first: without evidence for a class, Grad-CAM's map is constant.
    """
    name = settings.finding
    most_probable = predictions.logits.argmax(axis=1)
    explained_classes = most_probable if name is None else np.full(len(predictions), predictions.classes.index(name))
    positive = predictions.probs[np.arange(len(predictions)), explained_classes] >= thresholds[explained_classes]
    if predictions.kind == "multiclass":
        positive = most_probable == explained_classes
    positives, negatives, num_images = np.flatnonzero(positive), np.flatnonzero(~positive), num_tests(settings.method)
    chosen = positives[evenly_spaced(len(positives), num_images)]
    chosen = np.r_[chosen, negatives[evenly_spaced(len(negatives), num_images - len(chosen))]]
    rows = table_rows(data, [str(predictions.frame["sample"].iloc[number]) for number in chosen])
    classes = torch.tensor([model.classes.index(predictions.classes[k]) for k in explained_classes[chosen]])
    return checks.randomisation(
        model.network,
        load_inputs(data, rows),
        classes,
        settings.method,
        positions=num_positions(settings.method, model),
        seed=settings.seed,
    )


def num_positions(method: str, model: model_file.Model) -> int | None:
    """Number of values in a map before it is enlarged; None for methods with a value for each pixel."""
    return int(np.prod(grid_size(model))) if method in NUM_TESTS else None


def grid_size(model: model_file.Model) -> list[int]:
    """Height and width of the network's last map, the resolution of Grad-CAM."""
    side, channels = model.preprocessing.image_size, model.preprocessing.in_channels
    device = next(model.network.parameters()).device
    with torch.no_grad(), eval_mode(model.network):
        last = model.network.backbone.forward_features(torch.zeros(1, channels, side, side, device=device))
    return [int(side) for side in last.shape[-2:]]


def num_tests(method: str) -> int:
    """Number of images of the randomisation test."""
    return NUM_TESTS.get(method, NUM_TESTS_SLOW)


def evenly_spaced(n: int, maximum: int) -> list[int]:
    """At most `maximum` of the numbers below `n`, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, maximum)).round().astype(int)).tolist() if min(n, maximum) else []


def target_value(predictions: Predictions, row: int, k: int) -> float | None:
    """1, 0, or None where it is unknown."""
    value = float(predictions.truth[row, k])
    return None if np.isnan(value) else value
