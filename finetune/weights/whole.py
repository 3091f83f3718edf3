"""A network with its head from one file: torchvision's detectors and segmenters on a ResNet, loaded into ours.

Their published weights are trained on COCO: new classes then start from a neck and a head that work. Every tensor is
used, named as dropped, or an error, as for a backbone's weights. A network with another head takes the backbone, the
neck where it is the same one, and drops the rest by name.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from finetune.backbones import Backbone
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from finetune.weights import files, sources
from finetune.weights.fitting import BOOKKEEPING, Fit, can_fold, first_conv, fold_channels, looks_like
from finetune.weights.layouts import Pairs
from finetune.weights.loading import LoadReport, load_backbone

BACKBONE, NECK, HEAD = "backbone", "neck", "head"
ALONE = "its backbone alone is used."


def _conv_of_tower(match: re.Match[str]) -> str:
    """RetinaNet's towers before torchvision 0.12: conv.2. -> conv.1.0., where conv.1 was the ReLU"""
    tower, number, kind = match.groups()
    return f"head.{tower}_head.conv.{int(number) // 2}.0.{kind}"


DETECTOR: Pairs = (
    (r"^backbone\.body\.", "backbone."),
    # files published before torchvision 0.12 have fewer levels of names, as torchvision's own loading knows
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"neck.\1_blocks.\2.0.\3"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (r"^head\.(classification|regression)_head\.conv\.(\d)\.(weight|bias)$", _conv_of_tower),
    (r"^backbone\.fpn\.", "neck."),
    (r"^head\.(classification|regression)_head\.", r"head.retinanet.head.\1_head."),
    (r"^(rpn|roi_heads)\.", r"head.\1."),
)
SEGMENTER: Pairs = ((r"^classifier\.", "head.layers."),)

NO_PLACE = re.compile(r"^(aux_classifier|roi_heads\.(mask|keypoint)_(head|predictor))\.")
"""Further heads of torchvision's networks, which none of ours has: dropped by name."""

OF_CLASSES = re.compile(
    r"^head\.(roi_heads\.box_predictor\.(cls_score|bbox_pred)"
    r"|retinanet\.head\.classification_head\.cls_logits|layers\.4)\.(weight|bias)$"
)
"""Our names of tensors whose size is that of the classes: others start afresh."""

FCOS = "head.regression_head.bbox_ctrness.weight"
"""Ends the name of a tensor of FCOS, which has the other names of RetinaNet."""
WITH_NORMS = re.compile(
    r"^(backbone\.fpn\.(inner|layer)_blocks\.\d+\.1|rpn\.head\.conv\.1|roi_heads\.box_head\.0\.0"
    r"|head\.(classification|regression)_head\.conv\.\d+\.1)\."
)
"""Of tensors of torchvision's second versions (`_v2`): norms in the pyramid and the head, and more convolutions."""


@dataclass(frozen=True)
class Layout:
    """A network of torchvision's, and where its tensors belong in ours."""

    head: str
    """The choice of head that it has here."""
    title: str
    mark: str
    """Name of a convolution that such a network alone has."""
    pairs: Pairs
    """torchvision's names -> ours, in order."""
    image_size: int
    """Pixels, of the shorter side of the images that it was trained on."""
    settings: tuple[tuple[str, object], ...]
    """Settings of the published weights that change no tensor's shape."""

    def our_name(self, key: str) -> str:
        """The name in our network of a tensor of torchvision's."""
        for pattern, replacement in self.pairs:
            key = re.sub(pattern, replacement, key)
        return key


ANCHORS, STRIDE = "head.anchor_scales", "backbone.output_stride"
WHOLE = (
    Layout(
        "faster_rcnn", "Faster R-CNN", "rpn.head.cls_logits.weight", DETECTOR, 800, ((ANCHORS, [8.0]),)
    ),
    Layout(
        "retinanet", "RetinaNet", "head.classification_head.cls_logits.weight", DETECTOR, 800,
        ((ANCHORS, [4.0, 5.04, 6.35]),),
    ),
    Layout("deeplabv3", "DeepLabV3", "classifier.0.convs.0.0.weight", SEGMENTER, 520, ((STRIDE, 8),)),
    Layout("fcn", "FCN", "classifier.0.weight", SEGMENTER, 520, ((STRIDE, 8),)),
)  # fmt: skip


def recognise(tensors: dict[str, Tensor]) -> tuple[Layout, str] | None:
    """The layout of a whole network and the prefix of its names (such as `module.`); None for a backbone's file."""
    for layout in WHOLE:
        for key in (key for key, value in tensors.items() if key.endswith(layout.mark) and value.ndim == 4):
            prefix = key.removesuffix(layout.mark)
            names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]
            body = "backbone.body." if layout.pairs is DETECTOR else "backbone.conv1."
            if prefix[-1:] in ("", ".") and any(name.startswith(body) for name in names):
                return layout, prefix
    return None


def other_form(tensors: dict[str, Tensor], layout: Layout, prefix: str) -> str | None:
    """A detector of which only the backbone has a place here, in words; None for one whose head is known."""
    if any(key == prefix + FCOS for key in tensors):
        return "FCOS, a head that is not here"
    if layout.pairs is DETECTOR and any(WITH_NORMS.search(key.removeprefix(prefix)) for key in tensors):
        return f"{layout.title} of the second version (_v2), whose neck and head are not those of head={layout.head}"
    return None


def fit_network(
    tensors: dict[str, Tensor], network: nn.Module, layout: Layout, prefix: str = ""
) -> tuple[dict[str, Tensor], Fit, list[str]]:
    """The state dict for `network` made from the tensors of a whole network, the fate of each, and the parts filled.

    What depends on the number of classes is dropped where that is another, and stays fresh. The first convolution is
    folded to the network's channels.

    Raises:
        FinetuneError: tensors are missing, left over or of another shape, apart from the above.
    """
    own, fitted = network.state_dict(), {}
    report, stem = Fit(prefix, f"torchvision_{layout.head}"), first_conv(network)
    ours = {key: layout.our_name(key.removeprefix(prefix)) for key in tensors if key.startswith(prefix)}
    parts = _parts(tensors, ours, own, layout)
    unexpected, shapes = [], []
    for key, value in tensors.items():
        name = ours.get(key, "")
        part = name.partition(".")[0]
        if not name or NO_PLACE.search(key.removeprefix(prefix)) or (part in (NECK, HEAD) and part not in parts):
            report.dropped.append(key)
        elif name in own and value.shape == own[name].shape:
            fitted[name] = value
        elif name in own and OF_CLASSES.search(name) and value.shape[1:] == own[name].shape[1:]:
            report.dropped.append(key)
        elif name == stem and can_fold(value, own[name]):
            fitted[name] = fold_channels(value, own[name].shape[1])
            report.adapted.append(name)
        elif BOOKKEEPING.search(name):
            report.dropped.append(key)
        elif name in own:
            shapes.append(f"{name} is {tuple(value.shape)}, not {tuple(own[name].shape)}")
        else:
            unexpected.append(key)
    fresh = [name for name in own if name not in fitted]
    report.used, report.random_init = list(fitted), [name for name in fresh if not BOOKKEEPING.search(name)]
    seen = set(ours.values())
    missing = [name for name in report.random_init if name.partition(".")[0] in parts and name not in seen]
    if missing or unexpected or shapes:
        sides = [
            f"not in the file: {files.shorten(missing)}" if missing else "",
            f"only in the file: {files.shorten(unexpected)}" if unexpected else "",
            f"of another shape: {files.shorten(shapes, 2)}" if shapes else "",
        ]
        raise FinetuneError("; ".join(filter(None, sides)) + ".")
    return {**{name: own[name] for name in fresh}, **fitted}, report, parts


def _parts(tensors: dict[str, Tensor], ours: dict[str, str], own: dict[str, Tensor], layout: Layout) -> list[str]:
    """Which parts of the network the file fills: all where the head is of its kind; else the backbone, and the neck
    where the file has the same tensors."""
    if layout.our_name(layout.mark) in own:
        return [BACKBONE, *([NECK] if any(name.startswith(f"{NECK}.") for name in ours.values()) else []), HEAD]
    of_file = {name: tensors[key].shape for key, name in ours.items() if name.startswith(f"{NECK}.")}
    of_network = {name: value.shape for name, value in own.items() if name.startswith(f"{NECK}.")}
    return [BACKBONE, NECK] if of_file and of_file == of_network else [BACKBONE]


def load_network(network: nn.Module, name: str, weights: sources.Source) -> LoadReport:
    """Loads `weights` into a network with a backbone of that name.

    A file of torchvision's Faster R-CNN (or Mask R-CNN), RetinaNet, DeepLabV3 or FCN fills the neck and the head too,
    where the network has them; every other file is that of a backbone, as are FCOS and the second versions (`_v2`) of
    the detectors. torchvision gives the norms of its first COCO
    detectors an epsilon of 0, where ours have 1e-5: scores differ in the fourth digit or so.

    Args:
        network: with parts `backbone`, `neck` and `head`, as `finetune.network.Network`.
        weights: None or none, default, a tag, a repository, a run, a file.

    Raises:
        FinetuneError: the weights are unavailable, unreadable, or do not fit.
    """
    file = sources.resolve(name, weights)
    if file is None:
        return LoadReport("none")
    tensors = files.read_tensors(file.path)
    backbone = network.backbone
    assert isinstance(backbone, Backbone)
    known = recognise(tensors)
    if known is None:
        return load_backbone(backbone, name, file, tensors)
    layout, prefix = known
    if form := other_form(tensors, layout, prefix):
        report = load_backbone(backbone, name, file, tensors)
        trained_with = _preprocessing(layout, backbone.in_channels)
        return replace(report, preprocessing=trained_with, notes=[f"The file holds a whole {form}: {ALONE}"])
    try:
        state, fit_report, parts = fit_network(tensors, network, layout, prefix)
    except FinetuneError as error:
        raise FinetuneError(_misfit(file.path, name, layout, tensors, error)) from None
    network.load_state_dict(state, strict=True)
    return LoadReport(
        source=str(file.path),
        tag=file.tag,
        licence=file.licence,
        sha256=files.sha256(file.path),
        **vars(fit_report),
        preprocessing=_preprocessing(layout, backbone.in_channels),
        parts=parts,
        notes=_notes(network, layout, parts),
    )


def _preprocessing(layout: Layout, channels: int) -> Preprocessing | None:
    """How images were prepared for the weights; None for a number of channels that no image has."""
    return Preprocessing(image_size=layout.image_size).with_channels(channels) if channels in (1, 3) else None


def _misfit(path: Path, name: str, layout: Layout, tensors: dict[str, Tensor], error: FinetuneError) -> str:
    likely_model = looks_like(tensors)
    hint = f" Its backbone looks like {likely_model}." if likely_model and likely_model != name else ""
    return (
        f"weights={path} hold a whole {layout.title} and do not fit backbone={name} with this neck and head: {error}"
        f"{hint} Options of backbone, neck and head must be those of the file. For its backbone alone, save its "
        "tensors whose names begin with backbone. to another file."
    )


def _notes(network: nn.Module, layout: Layout, parts: list[str]) -> list[str]:
    """What the user may want to set otherwise, in sentences."""
    if HEAD not in parts:
        settings = "".join(f" {key}={value}" for key, value in layout.settings if key == STRIDE)
        return [f"The file holds a whole {layout.title}: its other tensors are used with head={layout.head}{settings}."]
    backbone = network.backbone
    assert isinstance(backbone, Backbone)
    here = {
        ANCHORS: list(getattr(network.head, "anchor_scales", ())),
        STRIDE: backbone.feature_info[-1]["reduction"],
    }
    return [
        f"These weights were trained with {key}={value}; here it is {here[key]}."
        for key, value in layout.settings
        if here[key] != value
    ]
