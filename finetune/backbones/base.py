"""What every backbone offers. A family defines its modules, `parts` and the classifier's name."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from finetune.backbones.structure import in_order
from finetune.errors import one_of


class Backbone(nn.Module):
    """A network in pieces: stem, stages 1 to N, an optional tail (a last norm), pooling, classifier.

    The pieces are methods, so that a caller may stop at a stage, continue from one, or replace one:
    `forward_features` is stem, stages, tail; `forward` adds pooling and classifier. Submodules carry timm's names.

    Each piece runs a row of modules: `stem_row`, `stage_row`, `tail_row`. By default these are the modules of `parts`.
    A subclass may override `forward_stem`, `forward_stage` or `forward_tail` instead. Such a piece is not folded, and
    `memory` only holds for modules that it gives to `run`.
    """

    classifier_name = "fc"
    """Dotted name of the classifier, as in timm."""

    classifier_kernel: tuple[int, ...] = ()
    """What follows (K, C) in the shape of the classifier's weight: (1, 1) where it is a convolution."""

    feature_info: list[dict[str, Any]]
    """One {num_chs, reduction, module} per map, as in timm; in the ImageNet forms the first is the stem's."""

    options: tuple[str, ...] = ("output_stride", "drop_path", "zero_init_last")
    """What `build` takes besides num_classes, in_channels and memory."""

    memory = "standard"
    """How much training keeps for backward; set by `apply_memory`."""

    run: Callable[[Iterable[nn.Module], Tensor], Tensor] = staticmethod(in_order)
    """How `forward_stem`, `forward_stage` and `forward_tail` run their modules; set by `apply_memory`."""

    num_features: int
    num_classes: int
    in_channels: int

    def parts(self) -> dict[str, list[nn.Module]]:
        """Ordered "stem", "stage1", ..., "stageN": with the classifier they hold every parameter and buffer once."""
        raise NotImplementedError

    def stem_row(self) -> list[nn.Module]:
        """The modules that `forward_stem` runs, in order."""
        return self.parts()["stem"]

    def stage_row(self, number: int) -> list[nn.Module]:
        """The modules that `forward_stage` runs, in order; numbers go from 1, as in the papers."""
        return self.parts()[f"stage{number}"]

    def tail_row(self) -> list[nn.Module]:
        """The modules between the last map and the pooling, in order. They belong to the last stage's part."""
        return []

    def rows(self) -> list[list[nn.Module]]:
        """The rows of stem, stages and tail, without those that an overridden forward method may not run."""
        rows: list[list[nn.Module]] = []
        kind = type(self)
        if kind.forward_stem is Backbone.forward_stem:
            rows.append(self.stem_row())
        if kind.forward_stage is Backbone.forward_stage:
            rows += [self.stage_row(number) for number in range(1, self.num_stages + 1)]
        if kind.forward_tail is Backbone.forward_tail:
            rows.append(self.tail_row())
        return rows

    def forward_stem(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> what stage 1 reads
        return self.run(self.stem_row(), x)

    def forward_stage(self, number: int, x: Tensor) -> Tensor:
        return self.run(self.stage_row(number), x)

    def forward_tail(self, x: Tensor) -> Tensor:
        return self.run(self.tail_row(), x)

    @property
    def num_stages(self) -> int:
        return len(self.parts()) - 1

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """The map after each stage: of strides 4, 8, 16, 32 in the ImageNet forms, 1, 2, 4 in the CIFAR forms."""
        maps: list[Tensor] = []
        x = self.forward_stem(x)
        for number in range(1, self.num_stages + 1):
            x = self.forward_stage(number, x)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.forward_stem(x)
        for number in range(1, self.num_stages + 1):
            x = self.forward_stage(number, x)
        return self.forward_tail(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # (N, C, H, W) -> (N, num_classes)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, num_classes)
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a newly initialised one; with 0 classes the pooled features are the output."""
        like = next(self.parameters())
        self.num_classes = num_classes
        self.set_submodule(self.classifier_name, self.make_classifier(num_classes).to(like.device, like.dtype))
        self.get_classifier().train(self.training)

    def make_classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def check_output_stride(output_stride: int) -> None:
    if output_stride not in (32, 16, 8) or isinstance(output_stride, float):
        raise one_of("output_stride", output_stride, (32, 16, 8))
