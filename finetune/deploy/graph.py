"""A model as one graph: uint8 images in, named tensors out. What `Model.predict` does around the network is in it.

Inside are the resizing to the network's square (unless the images come in that size), normalisation, the network with
its batch norms folded, test-time augmentation, and what the task makes of the outputs.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from finetune import views
from finetune.backbones.folding import fold_batch_norm
from finetune.deploy.probabilities import Calibrated, probabilities
from finetune.deploy.resampling import Line, pixel_numbers, resized, tall_rows_first, to_stored, visible
from finetune.errors import FinetuneError
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.evaluation.segmentation.collect import HALF
from finetune.model_file import Model
from finetune.preprocessing import Preprocessing

SIZES = ("any", "square")


class Input(nn.Module):
    """uint8 images (N, H, W, 3) -> what the network reads (N, C, S, S), and where the images lie in it.

    Args:
        size: any: H and W may be any, the same for all images of a batch; square: H = W = S, placed by the caller.
    """

    def __init__(self, preprocessing: Preprocessing, size: str):
        super().__init__()
        self.preprocessing, self.size, self.tall_first = preprocessing, size, tall_rows_first()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, values.reshape(-1, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Line, Line] | None]:
        lines = None
        if self.size == "any":
            levels, rows, columns = resized(images, self.preprocessing, self.tall_first)
            lines = rows, columns
        else:
            levels = images.permute(0, 3, 1, 2)
        if self.preprocessing.in_channels == 1:  # as Preprocessing.normalise, in whole numbers
            red, green, blue = levels.double().split(1, dim=1)
            levels = torch.floor((red * 19595 + green * 38470 + blue * 7471 + 0x8000) / 65536)
        return levels.float().div(255.0).sub(self.mean).div(self.std), lines


class Graph(nn.Module):
    """What all tasks share. A subclass names its outputs."""

    outputs: list[str]
    """Names of the tensors that `forward` returns, in their order."""
    logits: ClassVar[str] = "logits"
    """The output that is compared with the network's."""

    def __init__(self, model: Model, size: str):
        super().__init__()
        self.input = Input(model.preprocessing, size)
        self.network: Any = fold_batch_norm(model.network.cpu())
        self.network.requires_grad_(False)
        self.tta = model.tta
        self.eval()

    def train(self, mode: bool = True) -> Graph:
        """The network is folded: it stays in eval mode."""
        return self if mode else super().train(False)

    def example(self) -> Tensor:
        """Images that the graph is recorded with."""
        side = self.input.preprocessing.image_size
        height, width = (side, side) if self.input.size == "square" else (side + 5, side + 9)
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=generator)


class ClassGraph(Graph):
    """logits (N, K), probabilities (N, K) and, of a model with a calibration, calibrated (N, C)."""

    def __init__(self, model: Model, size: str):
        super().__init__(model, size)
        answers = model.answers
        assert isinstance(answers, ClassAnswers)
        self.exclusive = answers.kind == "multiclass"
        self.calibrated = None if answers.calibration is None else Calibrated(answers.calibration)
        self.outputs = ["logits", "probabilities", *(["calibrated"] if self.calibrated else [])]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x, _ = self.input(image)
        logits = views.averaged_at_once(self.network, x, self.tta) if self.tta else self.network(x)
        outputs = [logits, probabilities(logits.double(), self.exclusive).float()]
        if self.calibrated is not None:
            outputs.append(self.calibrated(logits).float())
        return tuple(outputs)


class SegmentGraph(Graph):
    """logits (N, K, S, S), probabilities (N, K, S, S) and, for images of any size, label_map uint8 (N, H, W)."""

    def __init__(self, model: Model, size: str):
        super().__init__(model, size)
        answers = model.answers
        assert isinstance(answers, SegmentAnswers)
        self.exclusive = not answers.overlapping
        self.thresholds = [answers.thresholds.get(name, HALF) for name in answers.regions]
        self.outputs = ["logits", "probabilities", *(["label_map"] if size == "any" else [])]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x, lines = self.input(image)
        logits = views.averaged_at_once(self.network, x, self.tta) if self.tta else self.network(x)
        shares = probabilities(logits, self.exclusive)
        if lines is None:
            return logits, shares
        return logits, shares, self.label_map(shares, lines, image)

    def label_map(self, shares: Tensor, lines: tuple[Line, Line], image: Tensor) -> Tensor:
        """As `SegmentAnswers.label_map`: the region of each stored pixel, or the bits of those that it is in."""
        side = shares.shape[-1]
        rows, in_rows = to_stored(lines[0], pixel_numbers(image.shape[1]), side)
        columns, in_columns = to_stored(lines[1], pixel_numbers(image.shape[2]), side)
        stored = (rows @ (shares.double() @ columns.T).float().double()).float()  # (N, K, H, W)
        if self.exclusive:
            shown = in_rows[:, None] & in_columns
            return torch.where(shown, stored.argmax(1), 0).to(torch.uint8)
        label_map = torch.zeros_like(stored[:, 0], dtype=torch.int32)
        for k, threshold in enumerate(self.thresholds):
            label_map = label_map + (stored[:, k] >= threshold).to(torch.int32) * (1 << k)
        return label_map.to(torch.uint8)


class DetectGraph(Graph):
    """Candidates before non-maximum suppression: boxes (N, M, 4) in pixels of the square, scores (N, M) and labels
    (N, M); and, for images of any size, placement: scale, offset and the visible part, x before y."""

    logits: ClassVar[str] = "scores"

    def __init__(self, model: Model, size: str):
        from finetune.heads.detect import RetinaNetHead

        super().__init__(model, size)
        head = self.network.head
        if not isinstance(head, RetinaNetHead):
            raise FinetuneError(
                f"head={model.spec.head} is not exported: it chooses proposals and pools them in numbers that differ "
                "from image to image, which no graph of fixed operators repeats exactly. head=retinanet is."
            )
        side = model.preprocessing.image_size
        with torch.no_grad():
            maps = self.network.run(torch.zeros(1, model.spec.in_channels, side, side), stop="head")
            _, anchors = head._outputs(maps, side)
        self.register_buffer("anchors", anchors[0])
        self.anchors: Tensor
        self.side, self.classes = side, model.spec.num_classes
        per_place = head.retinanet.anchor_generator.num_anchors_per_location()[0]
        self.lengths = [m.shape[-2] * m.shape[-1] * per_place for m in maps]
        self.most = head.retinanet.topk_candidates
        self.outputs = ["boxes", "scores", "labels", *(["placement"] if size == "any" else [])]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x, lines = self.input(image)
        retinanet = self.network.head.retinanet
        outputs = retinanet.head(self.network.run(x, stop="head"))
        boxes, scores, labels = [], [], []
        parts = zip(*(outputs[name].split(self.lengths, 1) for name in ("cls_logits", "bbox_regression")), strict=True)
        for anchors, (logits, deltas) in zip(self.anchors.split(self.lengths), parts, strict=True):
            best, numbers = logits.sigmoid().flatten(1).topk(min(self.most, len(anchors) * self.classes))  # (N, k)
            places = numbers // self.classes
            chosen = deltas.gather(1, places[..., None].expand(-1, -1, 4)).reshape(-1, 4)
            corners = retinanet.box_coder.decode_single(chosen, anchors[places.reshape(-1)])
            boxes.append(corners.clamp(0, self.side).reshape(-1, best.shape[1], 4))
            scores.append(best)
            labels.append(numbers % self.classes)
        found = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)
        if lines is None:
            return found
        rows, columns = lines
        (left, right), (top, bottom) = visible(columns, self.side), visible(rows, self.side)
        values = (columns.scale, rows.scale, columns.offset, rows.offset, left, top, right, bottom)
        return *found, torch.cat(values)


GRAPHS: dict[str, type[Graph]] = {"classify": ClassGraph, "segment": SegmentGraph, "detect": DetectGraph}
"""Task -> its graph."""


def graph_of(model: Model, size: str = "any") -> Graph:
    """The graph of a model.

    Raises:
        FinetuneError: a task or head without a graph, or an unknown size.
    """
    if size not in SIZES:
        raise FinetuneError(f"size={size} is not known. Choose from {', '.join(SIZES)}.")
    if model.task not in GRAPHS:
        raise FinetuneError(f"A model of task={model.task} is not exported; those of {', '.join(GRAPHS)} are.")
    return GRAPHS[model.task](model, size)
