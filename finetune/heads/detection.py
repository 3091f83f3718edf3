"""What detection heads share: the answer, the checks of targets and options, and the loss as a sum and a count."""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.errors import FinetuneError
from finetune.heads.features import FeatureInfo, RowRunner, at_least

SAME_SCORE = 1e-5
"""Scores that differ less may be of the same candidate, computed in another batch."""


class Detections(NamedTuple):
    """What a detection head sees in an image, the highest score first."""

    boxes: Tensor
    """(M, 4) left, top, right, bottom in pixels of the square that the network reads."""
    scores: Tensor
    """(M,) from 0 to 1."""
    labels: Tensor
    """(M,) int64, from 0 to K - 1."""


class Candidates(NamedTuple):
    """What a detection head chooses the detections of an image from."""

    boxes: Tensor
    """(P, 4), or (P, K, 4) where each class moves the box in its own way, in pixels of the square."""
    scores: Tensor
    """(P, K) from 0 to 1."""
    sources: Tensor
    """(P, ...) what the score of a candidate is computed from: a proposal (4,), or the number of an anchor."""


def nearest(candidates: Candidates, detections: Detections) -> Tensor:
    """The number of the candidate that became each detection (M,)."""
    chosen = []
    for box, score, label in zip(*detections, strict=True):
        boxes = candidates.boxes[:, label] if candidates.boxes.ndim == 3 else candidates.boxes
        away = (candidates.scores[:, label] - score).abs()
        same = away <= away.min() + SAME_SCORE
        distance = (boxes - box).abs().amax(dim=1)
        chosen.append(torch.where(same, distance, torch.inf).argmin())
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.int64, device=candidates.scores.device)


Targets = list[dict[str, Tensor]]
"""Boxes and labels of each image, as torchvision reads them; `ignored`, where there are places to ignore."""


class DetectionHead(RowRunner):
    """Maps of a pyramid -> detections, and the losses that train it. A subclass says what these are.

    Images are squares of one size that the program has normalised: nothing is resized or normalised again.
    """

    takes = "maps"
    gives = "detections"
    name: ClassVar[str]
    """The choice in the configuration."""
    first_label: ClassVar[int] = 0
    """The label that torchvision gives class 0."""
    loss_names: ClassVar[tuple[str, ...]]

    def __init__(self, features: Sequence[FeatureInfo], num_classes: int):
        super().__init__()
        if num_classes < 1:
            raise FinetuneError(f"head={self.name} has num_classes={num_classes}: it needs one class or more.")
        channels = [info.num_chs for info in features]
        if len(set(channels)) != 1:
            raise FinetuneError(
                f"head={self.name} reads maps of one width, these have {channels} channels. Add neck=pyramid."
            )
        self.num_classes = num_classes
        self.reduction = features[0].reduction

    def forward(self, maps: list[Tensor], side: int | tuple[int, int] | None = None) -> list[Detections]:
        """The detections of each image, in training mode as well.

        Args:
            maps: the neck's maps (N, C, H, W), the finest first.
            side: of the images, in pixels, by which boxes are clipped; None for the finest map's side times its
                reduction, which is the image's where that is a multiple of the reduction.
        """
        if not len(maps[0]):
            return []
        return [
            Detections(image["boxes"], image["scores"], image["labels"] - self.first_label)
            for image in self._detect(maps, self._side(maps, side))
        ]

    def sources(
        self, maps: list[Tensor], detections: list[Detections], side: int | tuple[int, int] | None = None
    ) -> list[Tensor]:
        """The candidate that became each detection, before suppression: a proposal (M, 4) of Faster R-CNN, the number
        of an anchor (M,) of RetinaNet. Of candidates of its class it is the one of its score, of equal ones the one of
        its box.

        Args:
            maps: the neck's maps (N, C, H, W), the finest first.
            detections: some of what `forward` returns for these maps, for each image.
            side: as in `forward`.
        """
        return [
            candidates.sources[nearest(candidates, of_image)]
            for candidates, of_image in zip(self._candidates(maps, self._side(maps, side)), detections, strict=True)
        ]

    def log_odds(
        self,
        maps: list[Tensor],
        sources: Tensor,
        labels: Tensor,
        side: int | tuple[int, int] | None = None,
    ) -> Tensor:
        """Log odds (N,) of one candidate per image, with a gradient: their sigmoid is the score of the detection.

        Args:
            maps: the neck's maps (N, C, H, W), the finest first.
            sources: (N, 4) or (N,), of one detection of each image: see `sources`.
            labels: (N,) int64, from 0 to K - 1.
            side: as in `forward`.
        """
        return self._log_odds(maps, sources, labels, self._side(maps, side))

    def features(self, maps: list[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """What is typical of an image: the mean over all places of the last map but one, (N, C). The last one of a
        detector's pyramid only repeats it at a coarser scale."""
        return maps[-2 if len(maps) > 1 else -1].mean((2, 3))

    def losses(
        self,
        maps: list[Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
        known: Tensor | None = None,
        side: int | None = None,
        ignored: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """torchvision's losses of the batch by name: their sum is what is trained. In eval mode as well.

        Args:
            maps: the neck's maps (N, C, H, W), the finest first.
            boxes: of each image (M, 4) left, top, right, bottom in pixels of its square; without boxes the whole image
                is background.
            labels: of each image (M,) int64, from 0 to K - 1.
            known: (N,) bool, whether the image's boxes are known. Others count for nothing; without any known image
                every loss is 0, with a gradient of 0 for every parameter.
            side: as in `forward`.
            ignored: of each image (I, 4) boxes of what is neither right nor wrong: where at least half of an anchor or
                proposal lies in one of them, it is no background.

        Raises:
            FinetuneError: a box without area or not finite, a label that is no class, or lists of other lengths.
        """
        side = self._side(maps, side)
        rows = list(range(len(maps[0]))) if known is None else known.nonzero()[:, 0].tolist()
        if not rows:
            zero = torch.stack([x[:0].sum().float() for x in [*maps, *self.parameters()]]).sum()  # no NaN enters
            return dict.fromkeys(self.loss_names, zero)
        if len(rows) < len(maps[0]):
            boxes, labels = [boxes[row] for row in rows], [labels[row] for row in rows]
            ignored = None if ignored is None else [ignored[row] for row in rows]
            maps = [m[rows] for m in maps]
        check_targets(boxes, labels, len(maps[0]), self.num_classes)
        dtype = torch.float64 if maps[0].dtype == torch.float64 else torch.float32
        targets = [
            {"boxes": b.to(maps[0].device, dtype).reshape(-1, 4), "labels": n.to(maps[0].device) + self.first_label}
            for b, n in zip(boxes, labels, strict=True)
        ]
        for target, places in zip(targets, ignored or (), strict=ignored is not None):
            target["ignored"] = places.to(maps[0].device, dtype).reshape(-1, 4)
        return self._losses(maps, targets, side)

    def loss(
        self,
        maps: list[Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
        known: Tensor | None = None,
        side: int | None = None,
        ignored: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sum of `losses` times the number of known images, and that number: their quotient over several batches
        or ranks is the mean over images.

        For RetinaNet it is the loss of all images in one batch, exactly: torchvision's is a mean over images. Faster
        R-CNN's terms are means over the anchors and proposals that were sampled. The quotient is the same where every
        batch samples as many per image, as it does wherever an image has enough of both; otherwise each image counts
        the same here, and each sample in one large batch. Which are sampled depends on torch's generator.
        """
        terms = self.losses(maps, boxes, labels, known, side, ignored)
        count = torch.tensor(len(maps[0]), device=maps[0].device) if known is None else known.sum().to(maps[0].device)
        return torch.stack(list(terms.values())).sum() * count, count

    @property
    def suppression(self) -> tuple[float, int]:
        """IoU above which the lesser of two detections of a class is left out; most detections per image. These are
        torchvision's; a head with options for them returns its own."""
        return 0.5, 100

    def suppress(self, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, squares: int = 1) -> np.ndarray:
        """Non-maximum suppression within each class, as in one image: for boxes of several tiles.

        Args:
            boxes: (M, 4) left, top, right, bottom, in any unit; scores (M,); labels (M,).
            squares: how many squares of the network, side by side, the image fills: so many times the most detections
                per image may stay.

        Returns:
            The numbers of the boxes that stay, the highest score first.
        """
        from torchvision.ops import batched_nms

        threshold, most = self.suppression
        arrays = (boxes.astype(np.float64).reshape(-1, 4), scores.astype(np.float64), labels.astype(np.int64))
        stays = batched_nms(*(torch.from_numpy(array) for array in arrays), threshold)
        return stays[: most * squares].numpy()

    def _detect(self, maps: list[Tensor], side: int) -> list[dict[str, Tensor]]:
        raise NotImplementedError

    def _losses(self, maps: list[Tensor], targets: Targets, side: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def _candidates(self, maps: list[Tensor], side: int) -> list[Candidates]:
        raise NotImplementedError

    def _log_odds(self, maps: list[Tensor], sources: Tensor, labels: Tensor, side: int) -> Tensor:
        raise NotImplementedError

    def _side(self, maps: list[Tensor], side: int | tuple[int, int] | None) -> int:
        if isinstance(side, tuple):
            if side[0] != side[1]:
                raise FinetuneError(f"images of {side[0]} x {side[1]} pixels: detection takes squares.")
            side = side[0]
        return maps[0].shape[-1] * self.reduction if side is None else side


def check_targets(boxes: list[Tensor], labels: list[Tensor], images: int, num_classes: int) -> None:
    """Refuses what a detection head cannot learn from.

    Raises:
        FinetuneError: names the image of the batch, the box or label, and what is wrong.
    """
    if not images == len(boxes) == len(labels):
        raise FinetuneError(f"{images} images have {len(boxes)} entries of boxes and {len(labels)} of box_labels.")
    for image, (corners, names) in enumerate(zip(boxes, labels, strict=True)):
        if corners.numel() != 4 * len(names) or (len(names) and corners.shape != (len(names), 4)):
            raise FinetuneError(
                f"Image {image} of the batch has boxes of shape {tuple(corners.shape)} and {len(names)} box_labels: "
                "boxes must be (M, 4), with a label each."
            )
    if wrong := [n.dtype for n in labels if n.dtype != torch.int64]:
        raise FinetuneError(f"box_labels must be int64, not {wrong[0]}.")
    corners, names = torch.cat([b.reshape(-1, 4) for b in boxes]), torch.cat(labels)
    good = (corners[:, 2:] > corners[:, :2]).all(dim=1) & corners.isfinite().all(dim=1)
    good &= (names >= 0) & (names < num_classes)
    if bool(good.all()):  # the one wait for the device
        return
    first = int((~good).nonzero()[0, 0])
    ends = torch.tensor([len(n) for n in labels]).cumsum(0)
    image = int((ends <= first).sum())
    box, label = corners[first].tolist(), int(names[first])
    if not 0 <= label < num_classes:
        raise FinetuneError(f"Image {image} of the batch has box_labels={label}: it must be 0 to {num_classes - 1}.")
    raise FinetuneError(
        f"Image {image} of the batch has the box {box}: left, top, right and bottom must be finite, right "
        "above left and bottom above top."
    )


def check_counts(**options: int) -> None:
    """Options of a head that are whole numbers of 1 or more."""
    for name, value in options.items():
        at_least(1, f"head.{name}", value)


def check_shares(**options: float) -> None:
    """Options of a head that lie between 0 and 1."""
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise FinetuneError(f"head.{name}={value} must lie between 0 and 1.")


def check_positive(**options: Sequence[float]) -> None:
    """Options of a head that list 1 to 16 finite numbers above 0."""
    for name, values in options.items():
        if not 1 <= len(values) <= 16 or not all(0 < value < math.inf for value in values):
            raise FinetuneError(f"head.{name}={list(values[:17])} must list 1 to 16 numbers above 0.")
