"""job=explain of a detector: heat maps of its most confident false positives and other boxes, and tests of the maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune import drawing
from finetune.config.settings import ExplainSettings
from finetune.data.loading.module import ImageData
from finetune.data.table import SampleTable
from finetune.drawing import LabelledBox
from finetune.evaluation import wording
from finetune.evaluation.detection.detections import Detections
from finetune.evaluation.detection.matching import IGNORED, RIGHT, WRONG, match
from finetune.explanations import checks
from finetune.explanations.boxes import as_detections, box_maps, detection_head, sources_of
from finetune.explanations.geometry import as_corners, mask
from finetune.explanations.inputs import batched, class_number, only_grad_cam, peak_position
from finetune.explanations.mass import Mass, measure, summarise
from finetune.explanations.of_boxes import MAX_BOXES, box_pixels, explain_boxes
from finetune.model_file import Model
from finetune.pages import explanation as page
from finetune.placement import Placement
from finetune.runs.folder import RunFolder
from finetune.steps import explaining, prepare
from finetune.tasks.detection.examples import thresholds_of
from finetune.tasks.detection.predicting import placement
from finetune.tasks.detection.truths import labels_of

if TYPE_CHECKING:
    from finetune.tasks.detection.task import Detection

METHOD = "box_gradient"
SIDE = page.SIDE // 2  # to which small images are enlarged before lines are drawn
RESAMPLES = 1000
BATCH = 8


@dataclass(frozen=True)
class DetectedBox:
    """A detection of the split."""

    number: int
    """Row of `Detections.boxes`."""
    row: int
    """Of the sample table."""
    patient: str
    name: str
    """Of its class."""
    score: float
    counts: bool
    """Whether the score reaches the threshold of the class."""
    status: int
    """RIGHT, WRONG or IGNORED, by the rule `evaluation.hit`."""
    truth: int
    """Row of `Detections.truths` that it matches, -1 for none."""


def explain(task: Detection, settings: ExplainSettings, model: Model, run: RunFolder, words: list[str]) -> None:
    """Explain chosen images, or a split: its most confident false positives, others, and the randomisation test."""
    only_grad_cam(model.task, settings.method)
    detection_head(model.network)
    if settings.finding is not None:
        class_number(model.classes, settings.finding)
    say = prepare.make_printer(True)
    if settings.images:
        result, figures = explain_files(settings, model, run, words)
    else:
        result, figures = explain_split(task, settings, model, run, words, say)
    explaining.finish(settings, model, run, words, say, METHOD, {"subject": "box", **result}, figures)


def explain_files(
    settings: ExplainSettings, model: Model, run: RunFolder, words: list[str]
) -> tuple[dict[str, Any], list[page.Figure]]:
    """Explain the most confident boxes of chosen images, of the class `finding` or of any."""
    files = explaining.chosen_files(settings)
    run.begin(settings.resolved, words)
    maps = explain_boxes(model, files, settings.finding, device=settings.trainer.accelerator)
    records = [maps.to_dict(number) for number in range(len(maps))]
    figures = []
    for i, record in enumerate(records):
        box = LabelledBox(as_corners(maps.boxes[i : i + 1])[0], maps.explained[i], float(maps.scores[i]))
        image = maps.inputs.pixels[maps.numbers[i]]
        figures.append(page.Figure.make("box_images", record, image, maps.heat[i], draw=boxes_drawn([], box)))
    result: dict[str, Any] = {"images": records, "without_boxes": maps.empty, "notes": []}
    if maps.empty:
        number, first = len(maps.empty), maps.empty[0]
        result["notes"] = [f"{number} of {len(files)} images have no box, which has no map: {first}"
                           f"{', ...' if number > 1 else ''}."]  # fmt: skip
    if settings.sanity:
        chosen = explaining.evenly_spaced(len(maps), explaining.NUM_TESTS)
        images = maps.inputs.tensors([maps.numbers[number] for number in chosen])
        labels = torch.tensor([model.classes.index(maps.explained[number]) for number in chosen], dtype=torch.int64)
        result["sanity"] = randomisation(model, images, labels, maps.sources[chosen], settings.seed)
    return result, figures


def explain_split(
    task: Detection, settings: ExplainSettings, model: Model, run: RunFolder, words: list[str], say: prepare.Say
) -> tuple[dict[str, Any], list[page.Figure]]:
    """Explain boxes of a split."""

    def check(table: SampleTable) -> None:
        if settings.finding is not None:
            class_number([name for name in model.classes if name in labels_of(table)], settings.finding)

    opened = explaining.open_split(task, settings, model, run, words, say, predict=task.predict, check=check)
    data, detections = opened.subject.data, opened.predictions
    limits = thresholds_of(opened.fitted.operating_points, detections.classes)
    boxes = boxes_of(data, detections, limits, task.assessment.hit)
    boxes = [box for box in boxes if settings.finding in (None, box.name)]
    worst = most_confident([box for box in boxes if box.counts and box.status == WRONG], settings.worst)
    first = first_of_images(boxes)
    measured = [first[number] for number in explaining.evenly_spaced(len(first), settings.located)]
    others = [measured[number] for number in explaining.evenly_spaced(len(measured), explaining.MAX_LOCATED)]
    masses: dict[DetectedBox, Mass] = {}
    shown: dict[DetectedBox, tuple[dict[str, Any], page.Figure]] = {}
    wanted = list(dict.fromkeys([*worst, *measured]))
    for numbers in batched(len(wanted), BATCH):
        batch = [wanted[number] for number in numbers]
        maps = box_maps(model.network, *inputs_of(model, data, detections, batch))
        for box, heat, reach in zip(batch, maps.heat.numpy(), maps.reach.numpy(), strict=True):
            masses[box] = mass_of(data, detections, box, heat, reach)
            if box in worst or box in others:
                section = "wrong_boxes" if box in worst else "boxes"
                shown[box] = figure_of(section, data, detections, box, heat, masses[box])
    others = [box for box in others if box not in worst]
    result: dict[str, Any] = {
        "data": opened.about,
        "wrong_boxes": [shown[box][0] for box in worst],
        "boxes": [shown[box][0] for box in others],
        "seen": opened.seen,
        "known": opened.known,
        "notes": notes(detections, boxes),
    }
    if settings.located:
        result["mass"] = summarise([masses[box] for box in measured], "box", n_boot=RESAMPLES, seed=settings.seed)
    if settings.sanity:
        chosen = [first[number] for number in explaining.evenly_spaced(len(first), explaining.NUM_TESTS)]
        images, labels, sources = inputs_of(model, data, detections, chosen)
        result["sanity"] = randomisation(model, images, labels, sources, settings.seed)
    return result, [shown[box][1] for box in [*worst, *others]]


def mass_of(data: ImageData, detections: Detections, box: DetectedBox, heat: np.ndarray, reach: np.ndarray) -> Mass:
    """How much of the heat (S, S) lies in the box, and in the true box of a detection that is right."""
    place, side = placement(data, box.row), heat.shape[-1]
    corners = in_square(place, detections.boxes.corners[box.number])
    true = None
    if box.status == RIGHT:
        true = mask(as_corners(place.boxes_to_square(detections.truths.corners[box.truth]).corners), side)
    return measure(box.name, box.patient, heat, box_pixels(corners, side), true, reach)


def figure_of(
    section: str, data: ImageData, detections: Detections, box: DetectedBox, heat: np.ndarray, mass: Mass
) -> tuple[dict[str, Any], page.Figure]:
    """The entry of a box in explain.json, and its figure."""
    corners = detections.boxes.corners[box.number]
    record = {
        "sample": data.table.paths[box.row],
        "class": box.name,
        "score": box.score,
        "kind": kind_of(box),
        "box": corners.tolist(),
        "inside": None if np.isnan(mass.predicted) else mass.predicted,
        "inside_true": None if np.isnan(mass.true) else mass.true,
        "maximum": peak_position(heat),
    }
    predicted = LabelledBox(as_corners(in_square(placement(data, box.row), corners))[0], box.name, box.score)
    draw = boxes_drawn(true_boxes(data, detections, box), predicted)
    return record, page.Figure.make(section, record, explaining.input_image(data, box.row), heat, draw=draw)


def notes(detections: Detections, boxes: Sequence[DetectedBox]) -> list[str]:
    """What is not explained."""
    sentences = []
    if not any(box.counts for box in boxes):
        what = "shown are the most confident ones" if boxes else "there is nothing to explain"
        sentences.append(f"No box reaches the threshold of its class: {what}.")
    if detections.unlabelled:
        images = wording.counted(detections.unlabelled, "image")
        sentences.append(f"{images} without known true boxes: their boxes are not explained.")
    return sentences


def boxes_of(data: ImageData, detections: Detections, limits: np.ndarray, hit: str) -> list[DetectedBox]:
    """The detections in the order of the images, the highest score first.

    Args:
        limits: thresholds of the classes, (K,).
        hit: what counts as right, as for `match`.
    """
    matching, boxes = match(detections, hit=hit), detections.boxes
    rows = explaining.table_rows(data, [str(sample) for sample in detections.images["sample"]])
    patients = [str(patient) for patient in detections.patients]
    chosen = [
        DetectedBox(
            int(number),
            rows[int(boxes.image[number])],
            patients[int(boxes.image[number])],
            detections.classes[int(boxes.label[number])],
            float(boxes.score[number]),
            bool(boxes.score[number] >= limits[boxes.label[number]]),
            int(matching.status[i, 0]),
            int(matching.truth[i, 0]),
        )
        for i, number in enumerate(matching.order.tolist())
    ]
    return sorted(chosen, key=lambda box: (box.row, -box.score))


def most_confident(boxes: Sequence[DetectedBox], limit: int) -> list[DetectedBox]:
    """At most `limit` boxes, the most confident first, one class after the other; each patient once per class."""
    queues: dict[str, dict[str, DetectedBox]] = {}
    for box in sorted(boxes, key=lambda box: -box.score):
        queues.setdefault(box.name, {}).setdefault(box.patient, box)
    rounds = zip_longest(*(queues[name].values() for name in sorted(queues)))
    return [box for classes in rounds for box in classes if box is not None][:limit]


def first_of_images(boxes: Sequence[DetectedBox]) -> list[DetectedBox]:
    """The most confident box of each image, and of the next ones up to MAX_BOXES those that reach their threshold."""
    of_image: dict[int, list[DetectedBox]] = {}
    for box in boxes:
        of_image.setdefault(box.row, []).append(box)
    return [box for of_row in of_image.values() for i, box in enumerate(of_row[:MAX_BOXES]) if i == 0 or box.counts]


def inputs_of(
    model: Model, data: ImageData, detections: Detections, boxes: Sequence[DetectedBox]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (N, C, S, S), labels (N,) and sources (N, ...) of boxes of the table."""
    images = explaining.load_inputs(data, [box.row for box in boxes])
    labels = torch.tensor([model.classes.index(box.name) for box in boxes], dtype=torch.int64)
    sources: list[torch.Tensor] = []
    for numbers in batched(len(boxes), BATCH):
        of_images = []
        for number in numbers:
            box = boxes[number]
            corners = in_square(placement(data, box.row), detections.boxes.corners[box.number])
            of_images.append(as_detections(corners, np.array([box.score]), labels[number : number + 1].numpy()))
        sources += sources_of(model.network, images[numbers.start : numbers.stop], of_images)
    return images, labels, torch.cat(sources) if sources else torch.zeros(0, 4)


def in_square(place: Placement, corners: np.ndarray) -> np.ndarray:  # (4,) -> (1, 4)
    """A box of the stored image in pixels of the network's square."""
    return place.to_square(corners.reshape(2, 2)).reshape(1, 4)


def true_boxes(data: ImageData, detections: Detections, box: DetectedBox) -> list[LabelledBox]:
    """The true boxes of the image of a detection, of its class, in pixels of the network's square."""
    true, image = detections.truths, detections.boxes.image[box.number]
    rows = (true.image == image) & (true.label == detections.boxes.label[box.number]) & ~true.ignored
    placed = placement(data, box.row).boxes_to_square(true.corners[rows])
    return [LabelledBox(corners) for corners in as_corners(placed.corners)]


def kind_of(box: DetectedBox) -> str:
    """What became of a detection, in words; blank for one that is right."""
    if not box.counts:
        return "below the threshold"
    if box.status == IGNORED:
        return "in an ignored place" if box.truth >= 0 else "another box of the same object"
    return "false positive" if box.status == WRONG else ""


def boxes_drawn(true: Sequence[LabelledBox], predicted: LabelledBox) -> Any:
    """A function that draws the boxes over an image; the class stands in the caption."""
    box = LabelledBox(predicted.corners, "", predicted.score)
    return lambda image: drawing.with_boxes(image, true, [box], side=SIDE, legend=False)


def randomisation(
    model: Model, images: torch.Tensor, labels: torch.Tensor, sources: torch.Tensor, seed: int
) -> dict[str, Any]:
    """The randomisation test of the maps of fixed candidates, compared where the gradient of their score reaches: that
    all is 0 elsewhere is due to the head's form, not to its weights."""
    maps = box_maps(model.network, images, labels, sources)
    return checks.compare_weights(
        model.network,
        lambda network: box_maps(network, images, labels, sources).heat.numpy(),
        METHOD,
        positions=int(maps.positions.median()) if len(maps.positions) else None,
        seed=seed,
        where=maps.reach.numpy(),
    )
