"""From a source to a loaded backbone, with a report on every key and on the origin of the weights."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.backbones import Backbone
from finetune.errors import FinetuneError
from finetune.preprocessing import Preprocessing
from finetune.weights import files, own_file, sources
from finetune.weights.fitting import Fit, fit, looks_like

IMAGENET = Preprocessing(interpolation="bicubic", fit="crop", crop_fraction=0.875)
CIFAR_RESNET = Preprocessing(image_size=32)  # the published CIFAR ResNets were trained with ImageNet's mean and std
CIFAR_DENSENET = Preprocessing(image_size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))

XRAYVISION = Preprocessing(in_channels=1, mean=(0.5,), std=(1 / 2048,), fit="crop")
"""torchxrayvision scales gray images to [-1024, 1024]: 2048 (x - 0.5) for x in [0, 1]."""
XRAYVISION_FINDINGS = 18

RADIMAGENET = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)
"""RadImageNet squashes images to 224 px and scales them to [-1, 1] (its pytorch_example.ipynb)."""


@dataclass
class LoadReport:
    """What was loaded and from where, for the run folder."""

    source: str
    """The file, or "none" for random weights."""
    tag: str | None = None
    licence: str | None = None
    sha256: str | None = None
    prefix: str = ""
    """Prefix of the names in the file, such as `module.`."""
    layout: str = "timm"
    """Naming scheme of the file: see weights/layouts.py."""
    used: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    random_init: list[str] = field(default_factory=list)
    preprocessing: Preprocessing | None = None
    """How images were prepared for these weights, for the network's number of channels (1 or 3)."""
    parts: list[str] = field(default_factory=lambda: ["backbone"])
    """Parts of the network that the weights fill."""
    notes: list[str] = field(default_factory=list)
    """What the user may want to set otherwise, in sentences."""

    @property
    def complete_parts(self) -> list[str]:
        """The parts beside the backbone of which nothing starts from random weights."""
        fresh = {name.partition(".")[0] for name in self.random_init}
        return [part for part in self.parts if part != "backbone" and part not in fresh]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "preprocessing": self.preprocessing.to_dict() if self.preprocessing else None}

    def __str__(self) -> str:
        if self.source == "none":
            return "random weights"
        parts = [f"{len(self.used)} tensors from {self.source}"]
        parts += [f"{self.tag}, {self.licence or 'licence unknown'}"] if self.tag else []
        lists = {"adapted": self.adapted, "dropped": self.dropped, "initialised at random": self.random_init}
        for what, names in lists.items():
            parts += [f"{what}: {files.shorten(names)}"] if names else []
        return "; ".join(parts)


def load_into(net: Backbone, name: str, weights: sources.Source, **known: Any) -> LoadReport:
    """Loads `weights` (None or none, default, a tag, a repository, a run, a file) into `net`, a backbone of that name.

    known: fields of the weights' Preprocessing to override, such as mean and std.

    Raises:
        FinetuneError: the weights are unavailable, unreadable, or do not fit.
    """
    file = sources.resolve(name, weights)
    if file is None:
        return LoadReport("none")
    return load_backbone(net, name, file, files.read_tensors(file.path), **known)


def load_backbone(
    net: Backbone, name: str, file: sources.WeightsFile, tensors: dict[str, Tensor], **known: Any
) -> LoadReport:
    """The same of the `tensors` of a file."""
    own = own_header(file.path, tensors)
    check_architecture(name, file, own)
    unfit = own.other_classifier(tensors) if own else []
    try:
        state, fit_report = fit({name: value for name, value in tensors.items() if name not in unfit}, net)
    except FinetuneError as error:
        likely_model = looks_like(tensors)
        hint = f" They look like those of {likely_model}." if likely_model and likely_model != name else ""
        raise FinetuneError(f"weights={file.path} do not fit {name}: {error}{hint}") from None
    net.load_state_dict(state, strict=True)
    fit_report.dropped += unfit
    preprocessing = None
    if net.in_channels in (1, 3):
        stated = own.preprocessing if own else None
        preprocessing = stated or file.preprocessing or default_preprocessing(name, tensors, fit_report)
        preprocessing = replace(preprocessing.with_channels(net.in_channels), **known)
    return LoadReport(
        source=str(file.path),
        tag=file.tag,
        licence=file.licence,
        sha256=files.sha256(file.path),
        **vars(fit_report),
        preprocessing=preprocessing,
    )


def check_architecture(name: str, file: sources.WeightsFile, own: own_file.WeightsHeader | None) -> None:
    """Refuse weights that say they are of another network: some have the same tensors, and compute something else.

    Raises:
        FinetuneError: names both.
    """
    stated = own.network.backbone if own else (file.architecture or "").removeprefix("tv_")  # torchvision's, in timm
    if stated and stated != name:
        raise FinetuneError(
            f"weights={file.tag or file.path} are of {stated}, and the backbone is {name}. Choose "
            f"backbone={stated}, or other weights."
        )


def default_preprocessing(name: str, tensors: dict[str, Tensor], fit_report: Fit) -> Preprocessing:
    """How images were prepared for weights of unknown origin: by the tensors, or the model's default."""
    if is_xrayvision(tensors):
        return XRAYVISION
    if is_radimagenet(fit_report):
        return RADIMAGENET
    if name.endswith("_cifar"):
        return CIFAR_RESNET
    if name.startswith("densenet_"):
        return CIFAR_DENSENET
    return sources.default_preprocessing(name) or IMAGENET


def own_header(path: Path, tensors: dict[str, Tensor]) -> own_file.WeightsHeader | None:
    """What a model.safetensors of this project says of its weights; None for every other file.

    Raises:
        FinetuneError: such a file, and damaged.
    """
    if path.suffix != ".safetensors":
        return None
    with files.opened(path, "weights") as file:
        metadata = file.metadata() or {}
    try:
        text = own_file.header_text(metadata)
        if text is None:
            return None
        about = own_file.read(own_file.WeightsHeader, text)
    except FinetuneError as error:
        raise FinetuneError(f"weights={path} {error}") from None
    if about.weights_hash is not None and about.hash_of(tensors) != about.weights_hash:
        raise FinetuneError(f"weights={path} is damaged: its tensors do not match the hash in its header.")
    return about


def is_xrayvision(tensors: dict[str, Tensor]) -> bool:
    """torchxrayvision's DenseNets read one channel, and the file has their thresholds, or at least 18 findings."""
    by_end = {key.rsplit("features.", 1)[-1]: value for key, value in tensors.items()}
    stem = by_end.get("conv0.weight")
    if stem is None or stem.ndim != 4 or stem.shape[1] != 1:
        return False
    findings = [value.shape[0] for key, value in tensors.items() if key.endswith("classifier.bias")]
    return any(key.endswith("op_threshs") for key in tensors) or findings == [XRAYVISION_FINDINGS]


def is_radimagenet(fit_report: Fit) -> bool:
    """RadImageNet publishes the children of torchvision's networks under `backbone.`, and nothing beside them."""
    beside = [key for key in fit_report.dropped if not key.startswith(fit_report.prefix)]
    return fit_report.layout.endswith("_children") and fit_report.prefix == "backbone." and not beside
