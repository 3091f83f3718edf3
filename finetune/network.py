"""Backbone, neck and head as one network, and the public way to make a backbone alone."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune import backbones
from finetune import weights as weight_files
from finetune.backbones.unfilled import Unfilled
from finetune.errors import FinetuneError, one_of
from finetune.heads import ClassifyHead, FeatureInfo, head_named, neck_named
from finetune.heads.features import RowRunner, as_read, gives, head_argument, neck_argument, takes
from finetune.strict_json import one_line

Maps = Tensor | list[Tensor]
"""The last map, or several, the finest first: what is passed between two parts of a network."""


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    weights: str | None = None,
    neck: str | None = None,
    neck_options: dict[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """A backbone with its own classifier: images (N, in_channels, H, W) -> logits (N, num_classes).

    With a `neck` it is a `MapsNetwork` instead, such as a detector of torchvision has for its backbone.

    Args:
        name: one of `list_models()`; the state dict has timm's keys and shapes for that name.
        num_classes: size of the classifier; 0 leaves it out and the network returns pooled features (N, num_features).
            By default 1000, and 10 for the CIFAR forms.
        weights: None (random), "default" (timm's default tag), a timm tag such as "a1_in1k",
            "hf-hub:ORG/NAME", a run folder, or a file (.safetensors, .pth, .th), of which every tensor is used,
            named as dropped, or an error.
        neck: None, or the name of a neck such as "pyramid", which starts from random weights.
        neck_options: options of the neck, for the pyramid `channels`, `extra`, `finest`.
        options: `output_stride`, `drop_path`, `zero_init_last`, `memory`: see the backbone's configuration. Other
            words of timm's (`pretrained`, `in_chans`, `features_only`, ...) are errors that name those of this program.

    Raises:
        FinetuneError: unknown name, option or tag; weights that cannot be had or do not fit.
    """
    if neck is not None and num_classes:
        raise FinetuneError(f"num_classes={num_classes} does not go with neck={neck}, which gives maps. Leave it out.")
    if neck is None and neck_options:
        raise _options_without_neck(neck_options)
    backbone = backbones.build(name, num_classes=num_classes if neck is None else 0, in_channels=in_channels, **options)
    if weights is not None and weights != "none":
        weight_files.load_into(backbone, name, weights)
    return backbone if neck is None else MapsNetwork(backbone, _neck(neck, backbone, neck_options or {}))


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a network again: plain values, stored in the model file."""

    backbone: str
    num_classes: int
    in_channels: int = 3
    head: str = "classify"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    head_options: dict[str, Any] = field(default_factory=dict)
    neck: str | None = None
    neck_options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without a neck they do not mention one, so that older programs read them."""
        values = asdict(self)
        if self.neck is None and not self.neck_options:
            del values["neck"], values["neck_options"]
        return values

    def build(self) -> "Network":
        """The network, with random weights.

        Raises:
            FinetuneError: no such backbone, neck or head, or an option that it refuses.
        """
        new_head = head_named(self.head)
        if self.neck is not None:
            neck_named(self.neck)
        elif self.neck_options:
            raise _options_without_neck(self.neck_options)
        backbone = backbones.build(self.backbone, num_classes=0, in_channels=self.in_channels, **self.backbone_options)
        neck = None if self.neck is None else _neck(self.neck, backbone, self.neck_options)
        features = feature_info(backbone) if neck is None else neck.feature_info
        argument = head_argument(new_head, features)  # type: ignore[arg-type]
        head = _built(f"head={self.head}", new_head, argument, self.num_classes, **self.head_options)
        return Network(backbone, head, neck)

    def filled(self, tensors: Mapping[str, Tensor]) -> "Network":
        """The network of these tensors, by its own names: on the CPU, in eval mode, channels last.

        Raises:
            FinetuneError: as `build`.
            RuntimeError: tensors are missing, left over or of another shape.
        """
        with Unfilled():
            network = self.build()
        network.load_state_dict(dict(tensors), strict=True)
        return network.to(memory_format=torch.channels_last).eval()


def _options_without_neck(options: dict[str, Any]) -> FinetuneError:
    return FinetuneError(f"neck_options={options} are given without a neck. Name the neck.")


def _neck(name: str, backbone: backbones.Backbone, options: dict[str, Any]) -> nn.Module:
    """The neck of that name, made from the maps of the backbone that it reads."""
    make = neck_named(name)
    return _built(f"neck={name}", make, neck_argument(make, feature_info(backbone)), **options)


def _built(where: str, make: Callable[..., nn.Module], *arguments: Any, **options: Any) -> nn.Module:
    """The neck or head; an option that it cannot use is an error of one line."""
    try:
        return make(*arguments, **options)
    except FinetuneError:
        raise
    except (TypeError, ValueError) as error:
        raise FinetuneError(f"{where} cannot be built with the options {options}: {one_line(error)}") from error


def feature_info(backbone: backbones.Backbone) -> list[FeatureInfo]:
    """The map after each stage, the last one after the tail: what `Network` passes to a neck or head."""
    stages = [FeatureInfo(info["num_chs"], info["reduction"]) for info in backbone.feature_info[-backbone.num_stages :]]
    return [*stages[:-1], stages[-1]._replace(num_chs=backbone.num_features)]


class Network(nn.Module):
    """Images (N, C, H, W) -> logits: a backbone without classifier, a neck where there is one, and a head.

    The logits are (N, K), and (N, K, H, W) of a head whose attribute `gives` is "regions".

    Its parts have names and run in order: stem, stage1, ..., neck, head. `forward` runs all of them, `run` any range.
    """

    def __init__(self, backbone: backbones.Backbone, head: nn.Module, neck: nn.Module | None = None):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.first_part: str | None = None
        for part in (neck, head):
            if isinstance(part, RowRunner):
                part.run, part.memory = backbone.run, backbone.memory
        if isinstance(head, ClassifyHead) and neck is None:
            head.kernel = backbone.classifier_kernel

    def forward(self, images: Tensor) -> Tensor:
        return self.run(images)  # type: ignore[return-value]

    @contextmanager
    def starting_at(self, part: str | None) -> Iterator[None]:
        """Inside, images are what lies before `part`: activations that were computed earlier. None is the stem."""
        before, self.first_part = self.first_part, part
        try:
            yield
        finally:
            self.first_part = before

    def run(
        self, x: Maps, start: str | None = None, stop: str | None = None, size: tuple[int, int] | None = None
    ) -> Maps:
        """The parts from `start` (by default the stem) up to and without `stop` (by default through the head).

        For every part `run(run(images, stop=part), start=part)` equals `forward(images)`, to the last bit. Between two
        parts lies the last map (N, C, H, W). Where the neck, or without one the head, takes "maps", it is from stage2
        on the list of the maps so far. A part of the backbone does not change the maps that it reads.

        Args:
            x: images, or what lies before `start`.
            start: name of the first part to run; by default the stem, or the part of `starting_at`.
            stop: name of the first part not to run.
            size: height and width of the images, for a head of "regions" where `start` is not the stem. By default
                that of the finest map times its stride; for sides that are no multiples of it, say the size.

        Raises:
            FinetuneError: `start` or `stop` is no part, or `stop` comes before `start`.
        """
        start = start or self.first_part
        names = list(self.parts())
        for argument, name in (("start", start), ("stop", stop)):
            if name is not None and name not in names:
                raise one_of(argument, name, names)
        first = 0 if start is None else names.index(start)
        end = len(names) if stop is None else names.index(stop)
        if end < first:
            raise FinetuneError(f"stop={stop} comes before start={start}: the parts run in the order {names}.")
        if first == 0 and isinstance(x, Tensor):
            size = (x.shape[-2], x.shape[-1])
        for name in names[first:end]:
            x = self._run_part(name, x, size)
        return x

    def _run_part(self, name: str, x: Maps, size: tuple[int, int] | None) -> Maps:
        if name == "head":
            return self.head(x) if gives(self.head) == "classes" else self.head(x, size)
        if name == "neck":
            return as_read(self.head, self.neck(x))  # type: ignore[misc]
        stages = self.backbone.num_stages
        number = 0 if name == "stem" else int(name.removeprefix("stage"))
        before = x if isinstance(x, list) else []
        last = before[-1] if isinstance(x, list) else x
        last = self.backbone.forward_stage(number, last) if number else self.backbone.forward_stem(last)
        if number == stages:
            last = self.backbone.forward_tail(last)  # the tail belongs to the last stage
        reader = self.head if self.neck is None else self.neck
        return [*before, last] if number and takes(reader) == "maps" else last

    def features(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> what the head's last layer reads (N, D); for each pixel, the mean of it."""
        return self.head_features(self.run(images, stop="head"), (images.shape[-2], images.shape[-1]))

    def head_features(self, maps: Maps, size: tuple[int, int]) -> Tensor:
        """The same of what the head reads, of images of that size."""
        sizes = () if gives(self.head) == "classes" else (size,)
        return self.head.features(maps, *sizes)  # type: ignore[operator]

    @property
    def new_parts(self) -> tuple[str, ...]:
        """Names of the parts that no weights of a backbone fill: the neck, where there is one, and the head. They keep
        the rates of new parts where a file of a whole network fills them too."""
        return tuple(name for name in self.parts() if name not in self.backbone.parts())

    def parts(self) -> dict[str, list[nn.Module]]:
        """Modules by part, from the stem to the head; every parameter and buffer is in exactly one part."""
        neck = {} if self.neck is None else {"neck": [self.neck]}
        return {**self.backbone.parts(), **neck, "head": [self.head]}


class MapsNetwork(Network):
    """Images (N, C, H, W) -> maps by name, the finest first: a backbone and a neck, as torchvision's BackboneWithFPN.

    The names are those of the neck's `map_names`, or "0", "1", ... where it has none. The detectors of
    `torchvision.models.detection` take it as their backbone. Its state dict has `backbone.*` and `neck.*`, as that of
    a `Network` with a head has.
    """

    def __init__(self, backbone: backbones.Backbone, neck: nn.Module):
        infos: list[FeatureInfo] = neck.feature_info  # type: ignore[assignment]
        super().__init__(backbone, NamedMaps(getattr(neck, "map_names", [str(n) for n in range(len(infos))])), neck)
        self.feature_info = infos
        """Channels and stride of each map."""
        channels = {info.num_chs for info in infos}
        self.out_channels = channels.pop() if len(channels) == 1 else None
        """Channels of every map; None where they differ."""


class NamedMaps(nn.Module):
    """Maps -> maps by name."""

    takes = "maps"

    def __init__(self, names: list[str]):
        super().__init__()
        self.names = names

    def forward(self, maps: list[Tensor]) -> OrderedDict[str, Tensor]:
        return OrderedDict(zip(self.names, maps, strict=True))
