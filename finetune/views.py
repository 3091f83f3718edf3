"""Views of an image at test time, and the mean of the outputs for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.errors import FinetuneError, one_of

SHIFT = 1 / 32
"""Of `shifts`, as a share of the side."""
CROP = 7 / 8
"""Side of `crops`, as a share of the side."""

Change = Callable[[Tensor], Tensor]
"""Images or maps (N, C, H, W) -> the same shape."""


@dataclass(frozen=True)
class View:
    """A change of a batch of images, and the change that undoes it on maps of the same size; None if none does."""

    apply: Change
    undo: Change | None


def sides(images: Tensor) -> tuple[int, int]:
    """Height and width as numbers; a tracer would make tensors of them, which cannot be rounded."""
    height, width = images.shape[-2:]
    return int(height), int(width)


def flip(images: Tensor) -> Tensor:
    """Left and right exchanged."""
    return images.flip(-1)


def shift(images: Tensor, down: int, right: int) -> Tensor:
    """Moved by pixels; the pixels of the border are repeated."""
    height, width = sides(images)
    rows = torch.arange(height, device=images.device).sub(round(down * SHIFT * height)).clamp(0, height - 1)
    columns = torch.arange(width, device=images.device).sub(round(right * SHIFT * width)).clamp(0, width - 1)
    return images.index_select(-2, rows).index_select(-1, columns)


def crop(images: Tensor, top: float, left: float) -> Tensor:
    """A square of 7/8 of the side, at a share `top`, `left` of the margin, enlarged to the full side (bilinear)."""
    height, width = sides(images)
    rows, columns = max(1, round(CROP * height)), max(1, round(CROP * width))
    first_row, first_column = round(top * (height - rows)), round(left * (width - columns))
    part = images[..., first_row : first_row + rows, first_column : first_column + columns]
    return F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False, antialias=False)


VIEWS: dict[str, list[View]] = {
    "flip": [View(flip, flip)],
    "shifts": [
        View(partial(shift, down=down, right=right), None) for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1))
    ],
    "crops": [
        View(partial(crop, top=top, left=left), None) for top, left in ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))
    ],
}
"""Name -> the views besides the image itself."""


def check(names: Sequence[str], gives: str = "classes", where: str = "evaluation.tta") -> tuple[str, ...]:
    """The names, in their order.

    Args:
        gives: what the head returns: see `finetune.heads.features.gives`.

    Raises:
        FinetuneError: an unknown name, one given twice, or views that do not go with the outputs.
    """
    if isinstance(names, str):
        raise FinetuneError(f"{where}={names} must be a list: [{names}], or [] for none.")
    for name in names:
        if name not in VIEWS:
            raise one_of(where, name, VIEWS)
    if len(set(names)) < len(names):
        raise FinetuneError(f"{where}={list(names)} names a view twice.")
    if names and gives == "detections":
        raise FinetuneError(f"{where}={list(names)}: boxes of several views are not merged. Use [] with task=detect.")
    if gives == "regions" and (lossy := [name for name in names if any(view.undo is None for view in VIEWS[name])]):
        raise FinetuneError(
            f"{where}={list(names)}: masks of {', '.join(lossy)} cannot be moved back. Use [flip] or []."
        )
    return tuple(names)


def averaged(
    run: Callable[[Tensor], Tensor], images: Tensor, names: Sequence[str], first: Tensor | None = None
) -> Tensor:
    """The mean of the outputs of all views: logits (N, K), or logits (N, K, H, W), each moved back.

    The mean of logits is the geometric mean of the probabilities, scaled to a sum of 1. Several names are combined:
    [flip, shifts] are the 2 * 5 views that are flipped or not and shifted or not.

    Args:
        run: images -> outputs.
        first: the outputs for the images as they are, if they are known.
    """
    outputs = run(images) if first is None else first
    total = outputs.clone()
    combined = combinations(names)
    for views in combined[1:]:
        total = total + undone(run(applied(views, images)), views)
    return total / len(combined)


def averaged_at_once(run: Callable[[Tensor], Tensor], images: Tensor, names: Sequence[str]) -> Tensor:
    """The same by one call of `run`, for all views of N images as one batch: a graph then has the network once."""
    combined = combinations(names)
    outputs = run(torch.cat([applied(views, images) for views in combined]))
    outputs = outputs.reshape(len(combined), -1, *outputs.shape[1:])
    total = outputs[0]
    for number, views in enumerate(combined[1:], start=1):
        total = total + undone(outputs[number], views)
    return total / len(combined)


def combinations(names: Sequence[str]) -> list[list[View]]:
    """The views to average over, each as changes in their order; the first is the image itself."""
    choices: list[list[View | None]] = [[None, *VIEWS[name]] for name in names]
    return [[view for view in combination if view is not None] for combination in product(*choices)]


def applied(views: Sequence[View], images: Tensor) -> Tensor:
    """Images (N, C, H, W) after all changes, channels last."""
    for view in views:
        images = view.apply(images)
    return images.contiguous(memory_format=torch.channels_last)


def undone(outputs: Tensor, views: Sequence[View]) -> Tensor:
    """Outputs for changed images: maps (N, K, H, W) moved back, logits (N, K) as they are."""
    if outputs.ndim > 2:
        for view in reversed(views):
            assert view.undo is not None
            outputs = view.undo(outputs)
    return outputs


def number_of_views(names: Sequence[str]) -> int:
    """Forward passes per image."""
    number = 1
    for name in names:
        number *= 1 + len(VIEWS[name])
    return number
