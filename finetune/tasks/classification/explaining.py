"""job=explain: where a finished model looks, what it got most wrong, and whether its maps are to be trusted."""

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
from finetune.inference import best_device, evaluating
from finetune.pages import explanation as page
from finetune.runs import known_images
from finetune.runs.environment import command
from finetune.runs.folder import RunFolder
from finetune.steps import prepare, scoring
from finetune.steps.image_files import image_files
from finetune.steps.task import Subject
from finetune.tasks.classification.worst_errors import heat_maps, inputs, shown, table_rows

if TYPE_CHECKING:
    from finetune.tasks.classification.task import Classification

MAX_FILES = 200  # pictures that one page takes
TESTED = {"grad_cam": 64, "grad_cam_pp": 64}  # images of the randomisation test; other methods are slow
TESTED_SLOWLY = 24
BOXED = 8  # findings with boxes that are shown
MAX_RESAMPLES = 1000


def explain(
    task: Classification, settings: ExplainSettings, model: model_file.Model, run: RunFolder, words: list[str]
) -> None:
    """Explain chosen pictures, or a split: its worst errors, the randomisation test, and boxes where there are any."""
    check_method(settings.method)
    if settings.finding is not None:
        class_number(model.classes, settings.finding)
    say = prepare.sayer(True)
    if settings.images:
        told, figures = of_files(settings, model, run, words)
    else:
        told, figures = of_data(task, settings, model, run, words, say)
    run.note(model={"path": settings.model, "weights_hash": model.weights_hash})
    told = {"model": {"weights_hash": model.weights_hash}, "method": settings.method, "grid": grid(model), **told}
    write_json_atomic(run.explanation, told)
    tiles = [tile for figure in figures for tile in (figure.image, figure.heated)]
    captions = [text for figure in figures for text in figure.caption.rsplit(": ", 1)]  # what was said, of which file
    write_sheet(run.explanation_sheet, tiles, captions, columns=6)
    page.write(run.explanation_page, told, figures, command(words))
    for sentence in page.sentences(told):
        say(sentence)
    say(f"page: {run.explanation_page}")


def of_files(
    settings: ExplainSettings, model: model_file.Model, run: RunFolder, words: list[str]
) -> tuple[dict[str, Any], list[page.Figure]]:
    """Chosen pictures, each for `finding` or its most probable class."""
    files = image_files(settings.images, "images")
    if len(files) > MAX_FILES:
        raise FinetuneError(f"images={settings.images} names {len(files):,} pictures; a page takes {MAX_FILES}.")
    run.begin(settings.resolved, words)
    found = explain_images(
        model, files, finding=settings.finding, method=settings.method, device=settings.trainer.accelerator
    )
    images = [found.to_dict(number) for number in range(len(found))]
    figures = [
        page.Figure.make("images", about, picture, heat)
        for about, picture, heat in zip(images, found.images, found.heat, strict=True)
    ]
    told: dict[str, Any] = {"images": images}
    if settings.sanity:
        tested = spread(len(found), tests_of(settings.method))
        pictures = torch.stack([model.preprocessing.to_tensor(found.images[number]) for number in tested])
        classes = torch.tensor([model.classes.index(found.explained[number]) for number in tested])
        told["sanity"] = checks.randomisation(
            model.network,
            pictures,
            classes,
            settings.method,
            positions=positions(settings.method, model),
            seed=settings.seed,
        )
    return told, figures


def of_data(
    task: Classification,
    settings: ExplainSettings,
    model: model_file.Model,
    run: RunFolder,
    words: list[str],
    say: prepare.Say,
) -> tuple[dict[str, Any], list[page.Figure]]:
    """A split of the data: worst errors, boxes, the randomisation test."""
    method, finding = settings.method, settings.finding
    source = build.source(settings).table()
    table, wanted, split = prepare.asked(task, source, settings.split, settings.data, model, say)
    if finding is not None:
        class_number(table.classes, finding)
    run.begin(settings.resolved, words)
    table, images, _ = prepare.images(settings.data, table, model.preprocessing, say, run)
    data = prepare.batches(settings.data, settings.seed, table, images, model.preprocessing)
    met = known_images.find(model, table, images, data.rows(wanted))
    known = met.stop(split, "warn")
    for sentence in known:
        say(sentence)
    model.network.to(best_device(settings.trainer.accelerator))
    accelerator = settings.trainer.accelerator
    subject = Subject(model.network, data, data.rows(wanted), split, model, accelerator, settings.seed)
    fitted = task.shipped(model, table)
    found = task.predict(subject, fitted)
    assert found is not None  # a single process
    opened = scoring.count_opening(model, table.name, found, met, words, say)
    if opened is not None:
        task.report(opened.path)  # it shows how often the test split was opened
    limits = worst_errors.thresholds_of(fitted.operating_points, found.classes)
    wrong = worst_errors.worst(found, settings.worst, limits, finding)
    told: dict[str, Any] = {
        "data": {"name": table.name, "split": split, "images": len(found), "synthetic": table.synthetic},
        "wrong": worst_errors.count(found, limits, finding),
        "rule": rule(found, fitted.operating_points, finding),
        "errors": [],
        "seen": bool(met.sentences),
        "known": known,
    }
    figures = []
    rows = table_rows(data, [str(found.frame["sample"].iloc[one.row]) for one in wrong])
    of_network = [model.classes.index(name) for name in found.classes]
    maps = heat_maps(model.network, data, rows, [of_network[one.k] for one in wrong], method)
    for one, row, heat in zip(wrong, rows, maps, strict=True):
        about = {**one.to_dict(found), "target": target(found, one.row, one.k), "maximum": peak_position(heat)}
        told["errors"].append(about)
        boxes = corners(data, row, found.classes[one.k])
        figures.append(page.Figure.make("errors", about, shown(data, row), heat, boxes))
    held, boxed = located(settings, model, data, found)
    if held:
        n_boot = min(task.assessment.resamples, MAX_RESAMPLES)
        told["localisation"] = localise(held, n_boot=n_boot, seed=settings.seed)
        told["located"] = []
        for number in spread(len(held), BOXED):
            about, picture = boxed[number]
            about["maximum"] = peak_position(held[number].heat)
            told["located"].append(about)
            figures.append(page.Figure.make("located", about, picture(), held[number].heat, held[number].boxes))
    if settings.sanity:
        told["sanity"] = sanity(settings, model, data, found, limits)
    return told, figures


def rule(found: Predictions, points: Mapping[str, Any], finding: str | None) -> str:
    """By which rule an answer is wrong, in words."""
    if found.kind == "multiclass":
        return "the answer is the most probable class"
    decided = decision_thresholds(points, found.classes if finding is None else [finding])
    return f"an answer is yes from the threshold of prob_: {thresholds_in_words(decided)}"


def located(
    settings: ExplainSettings, model: model_file.Model, data: ImageData, found: Predictions
) -> tuple[list[BoxedFinding], list[tuple[dict[str, Any], Any]]]:
    """Findings with boxes and their maps; and what is to be said of each, with its picture when asked for."""
    if BOXES not in data.table.annotations or not settings.located:
        return [], []
    pairs = []
    for place_, row in enumerate(table_rows(data, [str(sample) for sample in found.frame["sample"]])):
        for k, name in enumerate(found.classes):
            if settings.finding in (None, name) and (boxes := corners(data, row, name)):
                pairs.append((place_, row, k, boxes))
    pairs = [pairs[number] for number in spread(len(pairs), settings.located)]
    numbers = [model.classes.index(found.classes[k]) for _, _, k, _ in pairs]
    maps = heat_maps(model.network, data, [p[1] for p in pairs], numbers, settings.method)
    held, about = [], []
    for (place_, row, k, boxes), heat in zip(pairs, maps, strict=True):
        patient, sample = (str(found.frame[column].iloc[place_]) for column in ("patient", "sample"))
        held.append(BoxedFinding(found.classes[k], patient, boxes, heat))
        said = {"sample": sample, "class": found.classes[k], "probability": float(found.probs[place_, k])}
        about.append(({**said, "target": target(found, place_, k)}, lambda row=row: shown(data, row)))
    return held, about


def corners(data: ImageData, row: int, finding: str) -> list[Corners]:
    """The boxes of a finding in a picture, in pixels of the network's input."""
    boxes = data.table.annotations[BOXES][row] if BOXES in data.table.annotations else None
    if not isinstance(boxes, Boxes):
        return []
    of_finding = boxes.corners[np.array([same_finding(label, finding) for label in boxes.labels], bool)]
    height, width = (int(side) for side in data.images.sizes[row])
    return as_corners(data.preprocessing.boxes_to_input(of_finding, height, width).corners)


def sanity(
    settings: ExplainSettings, model: model_file.Model, data: ImageData, found: Predictions, limits: np.ndarray
) -> dict[str, Any]:
    """The randomisation test on images spread over the split, each for `finding` or its most probable class.

    Those that the network calls positive come first: where nothing speaks for a class, Grad-CAM's map is constant.
    """
    name = settings.finding
    most_probable = found.logits.argmax(axis=1)
    asked = most_probable if name is None else np.full(len(found), found.classes.index(name))
    positive = found.probs[np.arange(len(found)), asked] >= limits[asked]
    if found.kind == "multiclass":
        positive = most_probable == asked
    yes, no, most = np.flatnonzero(positive), np.flatnonzero(~positive), tests_of(settings.method)
    chosen = yes[spread(len(yes), most)]
    chosen = np.r_[chosen, no[spread(len(no), most - len(chosen))]]
    rows = table_rows(data, [str(found.frame["sample"].iloc[number]) for number in chosen])
    classes = torch.tensor([model.classes.index(found.classes[k]) for k in asked[chosen]])
    return checks.randomisation(
        model.network,
        inputs(data, rows),
        classes,
        settings.method,
        positions=positions(settings.method, model),
        seed=settings.seed,
    )


def positions(method: str, model: model_file.Model) -> int | None:
    """Of a map before it is enlarged; None of a method that has a map of its own for each pixel."""
    return int(np.prod(grid(model))) if method in TESTED else None


def grid(model: model_file.Model) -> list[int]:
    """Height and width of the network's last map: nothing finer can be read from Grad-CAM."""
    side, channels = model.preprocessing.image_size, model.preprocessing.in_channels
    device = next(model.network.parameters()).device
    with torch.no_grad(), evaluating(model.network):
        last = model.network.backbone.forward_features(torch.zeros(1, channels, side, side, device=device))
    return [int(side) for side in last.shape[-2:]]


def tests_of(method: str) -> int:
    """Pictures for the randomisation test."""
    return TESTED.get(method, TESTED_SLOWLY)


def spread(n: int, most: int) -> list[int]:
    """At most `most` of the numbers below `n`, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist() if min(n, most) else []


def target(found: Predictions, row: int, k: int) -> float | None:
    """1, 0, or None where it is not known."""
    value = float(found.truth[row, k])
    return None if np.isnan(value) else value
