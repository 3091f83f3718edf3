"""Backbone and head as one network, and the public way to make a backbone alone."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from finetune import backbones
from finetune import weights as weight_files
from finetune.errors import one_of
from finetune.heads import HEADS


def create_model(
    name: str, *, num_classes: int | None = None, in_channels: int = 3, weights: str | None = None, **options: Any
) -> nn.Module:
    """A backbone with its own classifier: images (N, in_channels, H, W) -> logits (N, num_classes).

    Args:
        name: one of `list_models()`; the state dict has timm's keys and shapes for that name.
        num_classes: size of the classifier; 0 leaves it out and the network returns pooled features (N, num_features).
            By default 1000, and 10 for the CIFAR forms.
        weights: None (random), "default" (timm's default tag), a timm tag such as "a1_in1k", or a file
            (.safetensors, .pth, .th), of which every tensor is used, named as dropped, or an error.
        options: `output_stride`, `drop_path`, `zero_init_last`, `memory`: see the backbone's configuration. Other
            words of timm's (`pretrained`, `in_chans`, `features_only`, ...) are errors that name those of this program.

    Raises:
        FinetuneError: unknown name, option or tag; weights that cannot be had or do not fit.
    """
    net = backbones.build(name, num_classes=num_classes, in_channels=in_channels, **options)
    if weights is not None and weights != "none":
        weight_files.load_into(net, name, weights)
    return net


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a network again: plain values, which travel in the model file."""

    backbone: str
    num_classes: int
    in_channels: int = 3
    head: str = "classify"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    head_options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def build(self) -> "Network":
        """The network, with random weights."""
        if self.head not in HEADS:
            raise one_of("head", self.head, HEADS)
        backbone = backbones.build(self.backbone, num_classes=0, in_channels=self.in_channels, **self.backbone_options)
        return Network(backbone, HEADS[self.head](backbone.num_features, self.num_classes, **self.head_options))


class Network(nn.Module):
    """Images (N, C, H, W) -> logits (N, K): a backbone without classifier, and a head on its last map."""

    def __init__(self, backbone: backbones.Backbone, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone.forward_features(images))

    def features(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> what the head's last layer reads (N, D)."""
        return self.head.features(self.backbone.forward_features(images))  # type: ignore[operator]

    @property
    def new_parts(self) -> tuple[str, ...]:
        """Names of the parts that no pretrained weights are made for, whatever the backbone starts from."""
        return tuple(name for name in self.parts() if name not in self.backbone.parts())

    def parts(self) -> dict[str, list[nn.Module]]:
        """Modules by part, from the stem to the head; every parameter and buffer is in exactly one part."""
        return {**self.backbone.parts(), "head": [self.head]}
