"""job=explain of a segmentation model: Seg-Grad-CAM of its worst and other regions, and tests of the maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune import drawing
from finetune.config.settings import ExplainSettings
from finetune.data.annotations import MaskFile
from finetune.data.loading.module import ImageData
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.evaluation.segmentation.table import CaseTable
from finetune.explanations import checks
from finetune.explanations.inputs import batched, class_number, only_grad_cam, peak_position
from finetune.explanations.mass import Mass, measure, summarise
from finetune.explanations.of_regions import explain_regions, segment_answers, thresholds_of
from finetune.explanations.regions import seg_grad_cam
from finetune.model_file import Model
from finetune.pages import explanation as page
from finetune.runs.folder import RunFolder
from finetune.steps import explaining, prepare
from finetune.tasks.segmentation.cases import placement, predict_cases, true_mask

if TYPE_CHECKING:
    from finetune.tasks.segmentation.task import Segmentation

METHOD = "seg_grad_cam"
SIDE = page.SIDE // 2  # to which small images are enlarged before lines are drawn
RESAMPLES = 1000
BATCH = 16


@dataclass(frozen=True)
class Region:
    """A region in an image of the split."""

    row: int
    """Of the sample table."""
    k: int
    """Of the network's outputs."""
    patient: str
    dice: float
    """NaN where the truth is not known, or nothing is there and nothing predicted."""
    predicted: bool
    """Whether any pixel is predicted to be in it."""


def explain(task: Segmentation, settings: ExplainSettings, model: Model, run: RunFolder, words: list[str]) -> None:
    """Explain chosen images, or a split: its regions with the lowest Dice, others, and the randomisation test."""
    only_grad_cam(model.task, settings.method)
    if settings.finding is not None:
        class_number(segment_answers(model).regions, settings.finding)
    say = prepare.make_printer(True)
    if settings.images:
        result, figures = explain_files(settings, model, run, words)
    else:
        result, figures = explain_split(task, settings, model, run, words, say)
    explaining.finish(settings, model, run, words, say, METHOD, {"subject": "region", **result}, figures)


def explain_files(
    settings: ExplainSettings, model: Model, run: RunFolder, words: list[str]
) -> tuple[dict[str, Any], list[page.Figure]]:
    """Explain chosen images, each for the region `finding` or its largest predicted one."""
    files = explaining.chosen_files(settings)
    run.begin(settings.resolved, words)
    maps = explain_regions(model, files, settings.finding, device=settings.trainer.accelerator)
    records = [maps.to_dict(number) for number in range(len(maps))]
    nothing = np.zeros(maps.predicted.shape[1:], bool)
    figures = [
        page.Figure.make(
            "region_images", record, maps.inputs.pixels[i], maps.heat[i], draw=outlines(nothing, maps.predicted[i])
        )
        for i, record in enumerate(records)
    ]
    result: dict[str, Any] = {"images": records, "notes": notes(model)}
    if settings.sanity:
        numbers = explaining.evenly_spaced(len(maps), explaining.NUM_TESTS)
        regions = torch.tensor([model.classes.index(maps.explained[number]) for number in numbers])
        predicted = torch.from_numpy(maps.predicted[numbers])
        images, pixels = maps.inputs.tensors(numbers), maps.inputs.shown(numbers)
        result["sanity"] = randomisation(model, images, regions, predicted, pixels, settings.seed)
    return result, figures


def explain_split(
    task: Segmentation, settings: ExplainSettings, model: Model, run: RunFolder, words: list[str], say: prepare.Say
) -> tuple[dict[str, Any], list[page.Figure]]:
    """Explain regions of a split."""
    predict = partial(predict_cases, distances=False)
    opened = explaining.open_split(task, settings, model, run, words, say, predict=predict)
    data, answers = opened.subject.data, segment_answers(model)
    regions = regions_of(data, opened.predictions, answers, settings.finding)
    worst = lowest_dice(regions, settings.worst)
    present = [region for region in regions if region.predicted]
    measured = [present[number] for number in explaining.evenly_spaced(len(present), settings.located)]
    others = [measured[number] for number in explaining.evenly_spaced(len(measured), explaining.MAX_LOCATED)]
    masses: dict[Region, Mass] = {}
    shown: dict[Region, tuple[dict[str, Any], page.Figure]] = {}
    wanted = list(dict.fromkeys([*worst, *measured]))
    for numbers in batched(len(wanted), BATCH):
        batch = [wanted[number] for number in numbers]
        images, outputs = explaining.load_inputs(data, [region.row for region in batch]), [r.k for r in batch]
        shown_pixels = pixels_of(data, [region.row for region in batch])
        limits = thresholds_of(answers)
        maps = seg_grad_cam(model.network, images, torch.tensor(outputs), limits, shown=shown_pixels)
        for region, heat, predicted in zip(batch, maps.heat.numpy(), maps.predicted.numpy(), strict=True):
            true = true_pixels(data, region.row, region.k)
            masses[region] = measure(answers.classes[region.k], region.patient, heat, predicted, true)
            if region in worst or region in others:
                section = "worst_regions" if region in worst else "regions"
                shown[region] = figure_of(section, data, region, heat, predicted, true, masses[region])
    others = [region for region in others if region not in worst]
    result: dict[str, Any] = {
        "data": opened.about,
        "worst_regions": [shown[region][0] for region in worst],
        "regions": [shown[region][0] for region in others],
        "seen": opened.seen,
        "known": opened.known,
        "notes": [*notes(model, "Dice is"), *([] if present else ["No region is predicted in any image."])],
    }
    if settings.located:
        measured_masses = [masses[region] for region in measured]
        result["mass"] = summarise(measured_masses, "region", n_boot=RESAMPLES, seed=settings.seed)
    if settings.sanity:
        chosen = [present[number] for number in explaining.evenly_spaced(len(present), explaining.NUM_TESTS)]
        images = explaining.load_inputs(data, [region.row for region in chosen])
        names = torch.tensor([region.k for region in chosen], dtype=torch.int64)
        pixels = pixels_of(data, [region.row for region in chosen])
        result["sanity"] = randomisation(model, images, names, None, pixels, settings.seed)
    return result, [shown[region][1] for region in [*worst, *others]]


def notes(model: Model, averaged: str = "masks of job=predict are") -> list[str]:
    """What differs between the maps and the predictions of a model that averages views.

    Args:
        averaged: what is of the mean over the views, with its verb.
    """
    if not model.tta:
        return []
    return [
        f"Heat maps and predicted outlines are of the image as it is; {averaged} of the mean over its views "
        f"({', '.join(model.tta)})."
    ]


def figure_of(
    section: str,
    data: ImageData,
    region: Region,
    heat: np.ndarray,
    predicted: np.ndarray,
    true: np.ndarray | None,
    mass: Mass,
) -> tuple[dict[str, Any], page.Figure]:
    """The entry of a region in explain.json, and its figure."""
    record = {
        "sample": data.table.paths[region.row],
        "class": mass.name,
        "dice": None if np.isnan(region.dice) else region.dice,
        "pixels": int(predicted.sum()),
        "inside": None if np.isnan(mass.predicted) else mass.predicted,
        "inside_true": None if np.isnan(mass.true) else mass.true,
        "maximum": peak_position(heat),
    }
    draw = outlines(np.zeros_like(predicted) if true is None else true, predicted)
    return record, page.Figure.make(section, record, explaining.input_image(data, region.row), heat, draw=draw)


def regions_of(data: ImageData, cases: CaseTable, answers: SegmentAnswers, finding: str | None) -> list[Region]:
    """The regions of all images that are predicted or true there, of all names or `finding` alone."""
    rows = explaining.table_rows(data, [str(sample) for sample in cases.frame["sample"]])
    dice, predicted, true = cases.scores("dice"), cases.counts("prediction"), cases.counts("truth")
    names = [str(patient) for patient in cases.patients]
    return [
        Region(row, answers.classes.index(name), names[i], float(dice[i, k]), bool(predicted[i, k] > 0))
        for i, row in enumerate(rows)
        for k, name in enumerate(cases.regions)
        if finding in (None, name) and (predicted[i, k] > 0 or true[i, k] > 0)
    ]


def lowest_dice(regions: Sequence[Region], limit: int) -> list[Region]:
    """At most `limit` regions with the lowest Dice, one name after the other; each patient once per name."""
    queues: dict[int, dict[str, Region]] = {}
    for region in sorted((region for region in regions if not np.isnan(region.dice)), key=lambda region: region.dice):
        queues.setdefault(region.k, {}).setdefault(region.patient, region)
    rounds = zip_longest(*(queues[k].values() for k in sorted(queues)))
    return [region for names in rounds for region in names if region is not None][:limit]


def true_pixels(data: ImageData, row: int, k: int) -> np.ndarray | None:  # -> bool (S, S)
    """The pixels of a region as the network's square shows them; None where they are not known."""
    entry, regions = data.table.annotations["mask"][row], data.table.regions
    assert regions is not None  # Segmentation.check
    if not isinstance(entry, MaskFile) or not entry.known(regions)[k]:
        return None
    return regions.bits(placement(data, row).mask_to_square(true_mask(data, row)))[k]


def pixels_of(data: ImageData, rows: Sequence[int]) -> torch.Tensor:  # -> bool (N, S, S)
    """The pixels that show the images, and not the border of fit=pad."""
    side = data.preprocessing.image_size
    masks = [placement(data, row).shown() for row in rows]
    return torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, side, side, dtype=torch.bool)


def outlines(true: np.ndarray, predicted: np.ndarray) -> Any:
    """A function that draws both outlines over an image."""
    return lambda image: drawing.with_masks(image, true, predicted, side=SIDE, legend=False)


def randomisation(
    model: Model,
    images: torch.Tensor,
    regions: torch.Tensor,
    predicted: torch.Tensor | None,
    shown: torch.Tensor,
    seed: int,
) -> dict[str, Any]:
    """The randomisation test of Seg-Grad-CAM; the pixels whose logits are summed stay those of the trained network."""
    limits = thresholds_of(segment_answers(model))
    if predicted is None:
        predicted = seg_grad_cam(model.network, images, regions, limits, shown=shown).predicted
    return checks.compare_weights(
        model.network,
        lambda network: seg_grad_cam(network, images, regions, limits, predicted, shown=shown).heat.numpy(),
        METHOD,
        positions=int(np.prod(explaining.grid_size(model))),
        seed=seed,
    )
