"""Losses that leave out what is unknown: classification.py and auc_margin.py of labels, segmentation.py of masks.

A loss returns a SUM and a COUNT instead of a mean: over ranks whose batches hold different numbers of known labels,
only the sum of sums over the sum of counts is the mean of the whole batch. Configurations name what is listed here.
"""

from finetune.errors import FinetuneError
from finetune.losses.auc_margin import AUCMargin
from finetune.losses.classification import (
    BALANCED,
    Asymmetric,
    BinaryCrossEntropy,
    CrossEntropy,
    per_class,
    power,
)
from finetune.losses.segmentation import (
    MASK,
    PixelCrossEntropy,
    PixelFocal,
    SegmentationLoss,
    SoftDice,
    WeightedSum,
    dice_and_cross_entropy,
)

__all__ = [
    "BALANCED",
    "MASK",
    "AUCMargin",
    "Asymmetric",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Loss",
    "PixelCrossEntropy",
    "PixelFocal",
    "SegmentationLoss",
    "SoftDice",
    "WeightedSum",
    "auto",
    "check_kind",
    "dice_and_cross_entropy",
    "per_class",
    "power",
]

Loss = BinaryCrossEntropy | CrossEntropy | AUCMargin

FITTING = {
    "multilabel": "bce, focal, asymmetric or auc_margin",
    "multiclass": "cross_entropy",
    MASK: "dice_ce, dice, dice_focal, pixel_cross_entropy or pixel_focal",
}
"""Kind of the labels -> the choices of conf/loss that go with them."""


def auto(kind: str) -> Loss | SegmentationLoss:
    """The loss that goes with the labels: sigmoid for several findings at once, softmax for one class of many, the sum
    of soft Dice and cross-entropy for masks."""
    if kind == MASK:
        return dice_and_cross_entropy()
    return BinaryCrossEntropy() if kind == "multilabel" else CrossEntropy()


def check_kind(loss: Loss | SegmentationLoss, kind: str) -> None:
    """Refuse a loss that would make `prob_<class>` mean something else than what the labels are."""
    if loss.kind != kind:
        raise FinetuneError(
            f"loss={type(loss).__name__} is for {loss.kind} labels, these are {kind}. Use loss={FITTING[kind]}."
        )
