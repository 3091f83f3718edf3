"""The best, median and worst images of a split with the outlines of truth and prediction, for the report."""

from __future__ import annotations

import numpy as np

from finetune import drawing
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.evaluation.segmentation.assessment import SegmentationFit
from finetune.evaluation.segmentation.examples import dice_of_images
from finetune.evaluation.segmentation.table import CaseTable
from finetune.inference import best_device, mean_of_views, run
from finetune.pages.cases import Case, Cases, ranked
from finetune.runs.folder import RunFolder
from finetune.steps.task import Subject
from finetune.tasks.segmentation.cases import placement, true_mask

MAX_BYTES = 24_000  # of an overlay


def write(folder: RunFolder, subject: Subject, cases: CaseTable, fitted: SegmentationFit, number: int) -> None:
    """Write cases.json: the Dice of every image, and `number` images each of the worst, median and best."""
    dice = dice_of_images(cases)
    chosen = ranked([None if np.isnan(value) else float(value) for value in dice], each=max(number // 2, 1))
    shown = overlays(subject, cases, fitted, [row for row, _ in chosen]) if number else []
    of_region = cases.scores("dice")
    examples = [
        Case(
            str(cases.frame["sample"].iloc[row]),
            str(cases.patients[row]),
            rank,
            float(dice[row]),
            image,
            overlay,
            dict(zip(cases.regions, or_none(of_region[row]), strict=True)),
        )
        for (row, rank), (image, overlay) in zip(chosen if number else [], shown, strict=True)
    ]
    Cases(
        "dice",
        examples,
        values={name: or_none(of_region[:, k]) for k, name in enumerate(cases.regions)},
        sizes={name: or_none(cases.counts("truth")[:, k]) for k, name in enumerate(cases.regions)},
        split=subject.split,
    ).write(folder.cases)


def overlays(subject: Subject, cases: CaseTable, fitted: SegmentationFit, chosen: list[int]) -> list[tuple[str, str]]:
    """Image and overlay of rows of the case table, as JPEG in base64, in the network's square."""
    data, regions = subject.data, subject.data.table.regions
    assert regions is not None  # Segmentation.check
    answers = SegmentAnswers.of(regions.names, regions.overlapping, fitted)
    row_of = {path: row for row, path in enumerate(data.table.paths)}
    rows = [row_of[str(cases.frame["sample"].iloc[number])] for number in chosen]
    drawn = {}
    loader = data.rows_loader(np.array(sorted(rows), int))
    for batch, logits in run(
        subject.network, loader, best_device(subject.accelerator), mean_of_views(subject.network, subject.tta)
    ):
        for row, of_image in zip(np.asarray(batch["index"]).tolist(), logits, strict=True):
            place = placement(data, row)
            truth = place.mask_to_square(true_mask(data, row))
            prediction = place.mask_to_square(answers.label_map(of_image, place))
            image = data.preprocessing.crop(data.images[row])
            first = 0 if regions.overlapping else 1
            outlined = drawing.with_masks(image, regions.bits(truth)[first:], regions.bits(prediction)[first:])
            side = max(outlined.shape[:2])
            drawn[row] = (
                drawing.jpeg(image, drawing.SIDE, MAX_BYTES),
                drawing.jpeg(outlined, side, MAX_BYTES),
            )
    return [drawn[row] for row in rows]


def or_none(values: np.ndarray) -> list[float | None]:
    """Numbers, and None where they are not defined."""
    return [None if np.isnan(value) else float(value) for value in values.tolist()]
