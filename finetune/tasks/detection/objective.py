"""What the training of a detector minimises, and the scores of its validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from finetune.data.table import SampleTable
from finetune.evaluation.detection.coco import mean_ap50
from finetune.network import Network
from finetune.tasks.detection.truths import known, labels_of, never_in_train
from finetune.training.objective import LOSS

AP50 = "val/ap50"
NO_AP50 = "No val image has a box: the average precision is undefined, the best epoch is by val/loss."
MAX_DETECTIONS = 100
"""Of an image, the highest scores first, that count in a validation; COCO counts as many."""


class DetectObjective:
    """Batches with boxes and box_labels, lists of N tensors (M, 4) and (M,), and boxes_known (N,); where the data have
    them also ignored_boxes, a list of N tensors (I, 4).

    Args:
        most: the largest number of true boxes and of ignored boxes that a val image has.
        num_classes: K.
        monitor: AP50, or LOSS where no val image has a box.
        seed: decides, with the images of a batch, which anchors a validation's loss is of.
    """

    scores: tuple[str, ...] = (LOSS, AP50)
    row_names: tuple[str, ...] = ("known", "loss", "boxes", "scores", "labels", "true_boxes", "true_labels", "ignored")

    def __init__(self, most: tuple[int, int], num_classes: int, *, monitor: str = AP50, seed: int = 0):
        self.most, self.ignored_most = most
        self.num_classes = num_classes
        self.monitor = monitor
        self.higher_is_better = monitor == AP50
        self.seed = seed
        self.notes = [] if monitor == AP50 else [NO_AP50]

    @classmethod
    def of_table(cls, table: SampleTable, seed: int) -> DetectObjective:
        """For the val split of a table."""
        val = known(table, table.rows("val").tolist())
        true = [len(boxes.target_labels) for boxes in val]
        ignored = [sum(boxes.ignored) for boxes in val]
        monitor = AP50 if any(true) else LOSS
        most = max([1, *true]), max([1, *ignored])
        objective = cls(most, len(labels_of(table)), monitor=monitor, seed=seed)
        if absent := never_in_train(table):
            objective.notes.append(f"No train image has a box of {', '.join(absent)}: it cannot be learned.")
        return objective

    def step(self, network: Network, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """The sum over images of the head's losses, and the number of images whose boxes are known."""
        return self._loss(network, network.run(batch["image"], stop="head"), batch)

    def predict(self, network: Network, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of each image whether its boxes are known, the mean loss of its batch, and boxes, scores and labels of
        detections, of true boxes and of ignored boxes in as many rows for every image; rows that are none have the
        label -1, or corners of NaN."""
        images, n = batch["image"], len(batch["image"])
        maps = network.run(images, stop="head")
        with same_numbers([self.seed, *batch["index"].tolist()], images.device):
            total, count = self._loss(network, maps, batch)
        detected: Any = network.run(maps, start="head", size=(images.shape[-2], images.shape[-1]))
        true = list(zip(batch["boxes"], batch["box_labels"], strict=True))
        ignored = batch.get("ignored_boxes", [images.new_zeros(0, 4)] * n)
        return {
            "known": batch["boxes_known"].to(torch.uint8),
            "loss": (total / count.clamp(min=1)).expand(n),
            "boxes": rows_of([d.boxes for d in detected], MAX_DETECTIONS),
            "scores": rows_of([d.scores for d in detected], MAX_DETECTIONS),
            "labels": rows_of([d.labels for d in detected], MAX_DETECTIONS, -1),
            "true_boxes": rows_of([boxes for boxes, _ in true], self.most),
            "true_labels": rows_of([labels for _, labels in true], self.most, -1),
            "ignored": rows_of(ignored, self.ignored_most),
        }

    def score(self, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The mean loss over the images whose boxes are known, and their COCO average precision at an IoU of 0.5."""
        images = np.flatnonzero(rows["known"])
        shown = rows["labels"] >= 0
        if not (np.isfinite(rows["loss"][images]).all() and np.isfinite(rows["boxes"][shown]).all()):
            raise FloatingPointError
        loss = float(rows["loss"][images].mean(dtype=np.float64)) if len(images) else float("nan")
        return {LOSS: loss, AP50: mean_ap50([self._image(rows, i, shown[i]) for i in images.tolist()])}

    def _image(self, rows: Mapping[str, np.ndarray], i: int, shown: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of an image true boxes and their labels, the detections, and which true boxes are ignored. An ignored box
        counts for every class."""
        true = rows["true_labels"][i] >= 0
        ignored = rows["ignored"][i][np.isfinite(rows["ignored"][i]).all(axis=1)]
        corners = np.concatenate([rows["true_boxes"][i][true], np.tile(ignored, (self.num_classes, 1))])
        labels = np.concatenate(
            [rows["true_labels"][i][true], np.repeat(np.arange(self.num_classes), len(ignored))]
        ).astype(np.int64)
        detected = (rows[name][i][shown] for name in ("boxes", "scores", "labels"))
        boxes, scores, of_boxes = detected
        return corners, labels, boxes, scores.clip(0, 1), of_boxes, np.arange(len(labels)) >= true.sum()

    def _loss(self, network: Network, maps: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        head: Any = network.head
        side = batch["image"].shape[-1]
        known_boxes = batch["boxes_known"]
        more = {"ignored": batch["ignored_boxes"]} if "ignored_boxes" in batch else {}
        return head.loss(maps, batch["boxes"], batch["box_labels"], known_boxes, side, **more)


def rows_of(parts: Sequence[Tensor], most: int, blank: float = float("nan")) -> Tensor:
    """Tensors (M, ...) of N images -> (N, most, ...), filled with `blank`; rows beyond `most` are left out."""
    filled = []
    for part in parts:
        part = part[:most]
        filled.append(pad(part, (*[0] * (2 * part.ndim - 1), most - len(part)), value=blank))
    return torch.stack(filled)


@contextmanager
def same_numbers(seed: Sequence[int], device: torch.device) -> Iterator[None]:
    """Inside, torch draws the random numbers of `seed`; afterwards it goes on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1)[0]))
        yield
