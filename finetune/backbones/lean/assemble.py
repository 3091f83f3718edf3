"""From modules to steps: what a list of modules computes, which maps are worth keeping, where the parameters go."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from finetune.backbones import blocks, cifar, densenet, legacy_senet
from finetune.backbones.base import RELU
from finetune.backbones.lean.chain import Chain, Residual
from finetune.backbones.lean.dense import DenseBlock, DenseLayer
from finetune.backbones.lean.steps import Cheap, Conv, DropPath, Norm, Projection, Step, Tree
from finetune.backbones.rows import RESIDUAL, branches, flat

CHEAP = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.ReLU,
    blocks.BlurPool,
    blocks.SamePool,
    blocks.SqueezeExcite,
    cifar.PadShortcut,
    legacy_senet.Gate,
)


class Unsupported(Exception):
    """A module that the steps cannot stand in for; the message says which and why."""


def hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def open_rows(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules in the order in which they compute; one with a hook stays closed, for the hook to be called."""
    return flat(modules, closed=hooked)


@dataclass
class Assembler:
    """Turns modules into (step, parameters) and numbers the batch norms that it meets."""

    memory: str
    norms: list[nn.BatchNorm2d] = field(default_factory=list)

    def chain(self, modules: Iterable[nn.Module]) -> tuple[Step, Tree]:
        """Modules in order. A norm takes the ReLU behind it along, a widening 1x1 convolution the norm behind it."""
        steps: list[Step] = []
        params: Tree = []
        keep: list[bool] = []
        row = open_rows(modules)
        for here, behind in zip(row, [*row[1:], None], strict=True):
            relu = isinstance(behind, nn.ReLU) and not hooked(behind)
            if isinstance(here, nn.ReLU) and steps and isinstance(before := steps[-1], Norm) and before.relu:
                continue
            if isinstance(here, nn.BatchNorm2d):
                norm, p = self.norm(here, relu)
                if steps and isinstance(conv := steps[-1], Conv) and conv.widens and not (relu or keep[-1]):
                    steps[-1], params[-1] = Projection(conv, norm), [params[-1], p]
                    continue
                step: Step = norm
            else:
                step, p = self.step(here)
            steps.append(step)
            params.append(p)
            keep.append(isinstance(here, nn.Conv2d) and self.dear(here))
        keep[-1] = False  # the last output is kept by whoever reads it
        return Chain(tuple(steps), tuple(keep)), params

    def dear(self, conv: nn.Conv2d) -> bool:
        """Whether a convolution's output is kept: of a 3x3 always, of a 1x1 only by `lean`, and only where it is narrow
        or takes at least as many multiplications per number as a 3x3 of 64 channels."""
        if conv.kernel_size != (1, 1):
            return True
        return self.memory == "lean" and (conv.out_channels <= conv.in_channels or conv.in_channels >= 512)

    def step(self, module: nn.Module) -> tuple[Step, Tree]:
        if hooked(module):
            raise Unsupported(f"a hook is registered on a {type(module).__name__}")
        if isinstance(module, nn.Conv2d):
            return self.conv(module)
        if isinstance(module, RESIDUAL):
            return self.residual(module)
        if isinstance(module, densenet.DenseBlock):
            return self.dense_block(module)
        if isinstance(module, blocks.DropPath):
            return DropPath(module), []
        if isinstance(module, CHEAP):
            if any(hooked(inner) for inner in module.modules()):
                raise Unsupported(f"a hook is registered inside a {type(module).__name__}")
            return Cheap(module), list(module.parameters())
        raise Unsupported(f"it has a {type(module).__name__}, which is not known here")

    def conv(self, module: nn.Conv2d) -> tuple[Conv, Tree]:
        if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise Unsupported(f"its {type(module).__name__} is no plain zero-padded convolution")
        product = module.kernel_size == (1, 1) and module.padding == (0, 0) and module.groups == 1
        product = product and module.bias is None
        widens = product and module.out_channels >= 2 * module.in_channels
        step = Conv(module.stride, module.padding, module.dilation, module.groups, product, widens)
        return step, [module.weight, module.bias]

    def norm(self, module: nn.Module, relu: bool) -> tuple[Norm, Tree]:
        if hooked(module):
            raise Unsupported(f"a hook is registered on a {type(module).__name__}")
        if type(module) is not nn.BatchNorm2d or not module.affine or module.running_mean is None:
            raise Unsupported(f"its {type(module).__name__} is no plain batch norm with weights and running statistics")
        self.norms.append(module)
        params: list[Tensor] = [module.weight, module.bias]
        if not module.training:  # copies, so that a later step cannot move them before backward
            params += [running.clone() for running in (module.running_mean, module.running_var) if running is not None]
        return Norm(len(self.norms) - 1, module.eps, relu, frozen=not module.training), params

    def residual(self, block: nn.Module) -> tuple[Step, Tree]:
        rows = branches(block)
        if rows is None or any(hooked(module) for module in rows.end):
            raise Unsupported(f"a {type(block).__name__} is not known here, or has a hook on its last ReLU")
        before, before_params = self.chain(rows.before) if rows.before else (None, [])
        main, main_params = self.chain(rows.main)
        around = open_rows(rows.shortcut)
        shortcut, shortcut_params = self.chain(around) if around else (None, [])
        return Residual(before, main, shortcut, bool(rows.end)), [before_params, main_params, shortcut_params]

    def dense_block(self, block: densenet.DenseBlock) -> tuple[Step, Tree]:
        dense_layers: list[DenseLayer] = []
        params: Tree = []
        for layer in block.values():
            if hooked(layer):
                raise Unsupported(f"a hook is registered on a {type(layer).__name__}")
            read, read_params = self.norm(layer.get_submodule("norm1"), relu=True)
            match layer:
                case densenet.DenseLayer():
                    if not self.conv(layer.conv1)[0].product or hooked(layer.conv1):
                        raise Unsupported("a bottleneck's first convolution is no plain 1x1")
                    weight, last = [layer.conv1.weight], layer.conv2
                    rest, rest_params = self.chain([layer.norm2, RELU, last])
                case densenet.PlainDenseLayer():
                    weight, last = [], layer.conv1
                    rest, rest_params = self.chain([last])
                case _:
                    raise Unsupported(f"{type(layer).__name__} is not known here")
            dense_layers.append(DenseLayer(read, bool(weight), rest, last.out_channels))
            params.append([read_params, weight, rest_params])
        return DenseBlock(tuple(dense_layers), keep_bottleneck=self.memory == "lean"), params
