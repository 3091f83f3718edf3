"""A whole detector of torchvision's (Faster R-CNN or RetinaNet with ResNet and pyramid) loaded into a network of ours.

Their published weights are trained on COCO: new classes then start from a pyramid and from proposals that work. Every
tensor is used, named as dropped, or an error, as for a backbone's weights.
"""

import re
from pathlib import Path

from torch import Tensor, nn

from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from finetune.weights import files
from finetune.weights.fitting import BOOKKEEPING, Fit, can_fold, first_conv, fold_channels
from finetune.weights.layouts import Pairs
from finetune.weights.loading import LoadReport


def _conv_of_tower(match: re.Match[str]) -> str:
    """RetinaNet's towers before torchvision 0.12: conv.2. -> conv.1.0., where conv.1 was the ReLU"""
    tower, number, kind = match.groups()
    return f"head.{tower}_head.conv.{int(number) // 2}.0.{kind}"


LAYOUT: Pairs = (
    (r"^backbone\.body\.", "backbone."),
    # files published before torchvision 0.12 have fewer levels of names, as torchvision's own loading knows
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"neck.\1_blocks.\2.0.\3"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^head\.(classification|regression)_head\.conv\.(\d)\.(weight|bias)$", _conv_of_tower),
    (r"^backbone\.fpn\.", "neck."),
    (r"^head\.(classification|regression)_head\.", r"head.retinanet.head.\1_head."),
    (r"^(rpn|roi_heads)\.", r"head.\1."),
)
"""torchvision's names of a detector's tensors -> those of a network with `neck=pyramid` and a detection head."""

OF_CLASSES = re.compile(r"\.(box_predictor\.(cls_score|bbox_pred)|classification_head\.cls_logits)\.(weight|bias)$")
"""Tensors whose size is that of the classes: others start afresh."""


def our_name(key: str) -> str:
    """The name in our network of a tensor of torchvision's detector."""
    for pattern, replacement in LAYOUT:
        key = re.sub(pattern, replacement, key)
    return key


def fit_detector(tensors: dict[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], Fit]:
    """The state dict for `network` made from a detector's tensors, and what became of each.

    What depends on the number of classes is dropped where that is another, and stays fresh. The first convolution is
    folded to the network's channels.

    Raises:
        FinetuneError: tensors are missing, left over or of another shape, apart from the above.
    """
    own, fitted = network.state_dict(), {}
    report, stem = Fit(layout="torchvision_detector"), first_conv(network)
    unexpected, shapes = [], []
    for key, value in tensors.items():
        name = our_name(key)
        if name in own and value.shape == own[name].shape:
            fitted[name] = value
        elif name in own and OF_CLASSES.search(name) and value.shape[1:] == own[name].shape[1:]:
            report.dropped.append(key)
        elif name == stem and can_fold(value, own[name]):
            fitted[name] = fold_channels(value, own[name].shape[1])
            report.adapted.append(name)
        elif name in own:
            shapes.append(f"{name} is {tuple(value.shape)}, not {tuple(own[name].shape)}")
        elif BOOKKEEPING.search(name):
            report.dropped.append(key)
        else:
            unexpected.append(key)
    report.used, report.random_init = list(fitted), [name for name in own if name not in fitted]
    seen = {our_name(key) for key in tensors}
    missing = [name for name in report.random_init if name not in seen and not BOOKKEEPING.search(name)]
    if missing or unexpected or shapes:
        sides = [
            f"not in the file: {files.shorten(missing)}" if missing else "",
            f"only in the file: {files.shorten(unexpected)}" if unexpected else "",
            f"of another shape: {files.shorten(shapes, 2)}" if shapes else "",
        ]
        raise FinetuneError("; ".join(filter(None, sides)) + ".")
    return {**{name: own[name] for name in report.random_init}, **fitted}, report


def load_detector(network: nn.Module, path: Path) -> LoadReport:
    """Loads a file of torchvision's detector weights into a network of the same backbone, neck and head.

    The head needs the anchors that the weights were trained with: `head.anchor_scales=[8.0]` for Faster R-CNN,
    `[4.0, 5.04, 6.35]` for RetinaNet. torchvision gives the norms of its first COCO weights an epsilon of 0, where ours
    have 1e-5: scores differ in the fourth digit or so.

    Raises:
        FinetuneError: the file cannot be read, or does not fit.
    """
    try:
        state, account = fit_detector(files.read_tensors(path), network)
    except FinetuneError as error:
        raise FinetuneError(f"weights={path} do not fit this detector: {error}") from None
    network.load_state_dict(state, strict=True)
    channels = state[first_conv(network)].shape[1]
    preprocessing = Preprocessing().with_channels(channels) if channels in (1, 3) else None
    return LoadReport(source=str(path), sha256=files.sha256(path), **vars(account), preprocessing=preprocessing)
