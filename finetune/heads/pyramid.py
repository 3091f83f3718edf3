"""The feature pyramid: maps of all stages in as many channels, the coarser ones added to the finer.

Paper: "Feature Pyramid Networks for Object Detection" (Lin et al., 2017, arXiv:1612.03144). Names of the parameters,
their initial values and what is computed are those of `torchvision.ops.FeaturePyramidNetwork`.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from finetune.errors import FinetuneError, one_of
from finetune.heads.features import FeatureInfo, at_least

EXTRA = ("none", "pool", "p6p7")


class Pyramid(nn.Module):
    """Maps (N, C_i, H_i, W_i), the finest first -> as many maps (N, channels, H_i, W_i), and coarser ones by `extra`.

    A 1x1 convolution brings each map to `channels`; the sum of the coarser maps, repeated to its size, is added; a 3x3
    convolution makes the result. Two maps of one size, as `output_stride` gives them, are added as they are.

    Args:
        features: one entry for each map of the backbone.
        channels: channels of every map that it returns.
        extra: `pool` adds every second place of the last map, under the name "pool" (torchvision's LastLevelMaxPool,
            for Faster R-CNN); `p6p7` two strided convolutions of the last map, "p6" and "p7" (LastLevelP6P7 with
            as many input as output channels, for RetinaNet).
        finest: stride of the finest map that is read: finer ones are left out, as RetinaNet does below 8. None reads
            all maps.

    Raises:
        FinetuneError: fewer than two maps; an option out of its bounds.
    """

    takes = "maps"

    def __init__(
        self, features: Sequence[FeatureInfo], *, channels: int = 256, extra: str = "none", finest: int | None = None
    ):
        super().__init__()
        at_least(1, "neck.channels", channels)
        if extra not in EXTRA:
            raise one_of("neck.extra", extra, EXTRA)
        if finest is not None and finest not in [info.reduction for info in features]:
            raise one_of("neck.finest", finest, sorted({info.reduction for info in features}))
        read = [info for info in features if info.reduction >= (finest or 1)]
        if len(read) < 2:
            raise FinetuneError(
                f"neck=pyramid needs two maps or more, and reads {len(read)} here. Choose a backbone of several "
                "stages, a smaller neck.finest, or neck=none."
            )
        self.skipped = len(features) - len(read)
        self.inner_blocks, self.layer_blocks = nn.ModuleList(), nn.ModuleList()
        for info in read:
            self.inner_blocks.append(nn.Sequential(nn.Conv2d(info.num_chs, channels, 1)))
            self.layer_blocks.append(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)))
        _initialise(self)
        self.feature_info = [FeatureInfo(channels, info.reduction) for info in read]
        self.map_names = [str(number) for number in range(len(read))]
        """torchvision's name of each map."""
        self.extra_blocks: nn.ModuleDict | None = None
        names = {"none": [], "pool": ["pool"], "p6p7": ["p6", "p7"]}[extra]
        if extra == "p6p7":
            self.extra_blocks = nn.ModuleDict({n: nn.Conv2d(channels, channels, 3, 2, 1) for n in names})
            _initialise(self.extra_blocks)
        for number, name in enumerate(names, start=1):
            self.map_names.append(name)
            self.feature_info.append(FeatureInfo(channels, read[-1].reduction * 2**number))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        laterals = [block(x) for block, x in zip(self.inner_blocks, maps[self.skipped :], strict=True)]
        sums = laterals[-1:]  # the finest first
        for lateral in reversed(laterals[:-1]):
            sums.insert(0, F.interpolate(sums[0], size=lateral.shape[-2:], mode="nearest").add_(lateral))
        made = [block(x) for block, x in zip(self.layer_blocks, sums, strict=True)]
        if self.extra_blocks is not None:
            made.append(self.extra_blocks["p6"](made[-1]))
            made.append(self.extra_blocks["p7"](F.relu(made[-1])))
        elif len(made) < len(self.feature_info):
            made.append(made[-1][:, :, ::2, ::2])
        return made


def _initialise(part: nn.Module) -> None:
    """Variance of one over the number of inputs, and no bias at first, as in torchvision."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_uniform_(module.weight, a=1)
            nn.init.zeros_(module.bias)
