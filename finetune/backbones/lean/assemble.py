"""From modules to steps: what a list of modules computes, which maps are kept, where the parameters go."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from finetune.backbones.blocks import DropPath
from finetune.backbones.densenet import ConcatLayer, DenseBlock
from finetune.backbones.lean import steps
from finetune.backbones.lean.chain import Chain, Residual, ResidualParams
from finetune.backbones.lean.dense import DenseBlockStep, DenseLayerParams, DenseLayerStep
from finetune.backbones.lean.dilated import Dilated
from finetune.backbones.lean.projection import Projection, ProjectionParams
from finetune.backbones.lean.steps import Conv, ConvParams, Norm, NormParams, Recompute, Step
from finetune.backbones.structure import Recomputable, ResidualBlock, open_rows
from finetune.heads.dilated import DilatedConv2d

RECOMPUTABLE = (Recomputable, nn.MaxPool2d, nn.AvgPool2d, nn.ReLU, nn.GroupNorm)

Params = tuple[Any, ...]


class Unsupported(Exception):
    """A module that has no step; the message says which and why."""


def hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def check_without_hook(module: nn.Module) -> None:
    if hooked(module):
        raise Unsupported(f"a hook is registered on a {type(module).__name__}")


def open_unhooked(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules that compute, in order. A row with a hook stays closed, so that the hook is called."""
    return open_rows(modules, closed=hooked)


@dataclass
class Assembler:
    """Turns modules into (step, parameters), and numbers the batch norms among them."""

    memory: str
    norms: list[nn.BatchNorm2d] = field(default_factory=list)

    def chain(self, modules: Iterable[nn.Module]) -> tuple[Chain, Params]:
        """Modules in order. A norm includes the ReLU after it, a widening 1x1 convolution the norm after it."""
        chained: list[Step[Any, Any]] = []
        params: list[Params] = []
        save_output: list[bool] = []
        row = open_unhooked(modules)
        for module, following in zip(row, [*row[1:], None], strict=True):
            if isinstance(module, nn.ReLU) and chained and isinstance(norm := chained[-1], Norm) and norm.relu:
                continue
            step: Step[Any, Any]
            step_params: Params
            if isinstance(module, nn.BatchNorm2d):
                relu = isinstance(following, nn.ReLU) and not hooked(following)
                step, step_params = self.norm(module, relu)
                if chained and isinstance(conv := chained[-1], Conv) and conv.widens and not (relu or save_output[-1]):
                    chained[-1] = Projection(conv, step)
                    params[-1] = ProjectionParams(ConvParams(*params[-1]), step_params)
                    continue
            else:
                step, step_params = self.step(module)
            chained.append(step)
            params.append(step_params)
            save_output.append(isinstance(module, nn.Conv2d) and self.expensive_to_recompute(module))
        save_output[-1] = False  # the last output is kept by the step that reads it
        return Chain(tuple(chained), tuple(save_output)), tuple(params)

    def expensive_to_recompute(self, conv: nn.Conv2d) -> bool:
        """Whether a convolution's output is kept: of a 3x3 always, of a 1x1 only by `lean`, and only where it is narrow
        or takes at least as many multiplications per number as a 3x3 of 64 channels."""
        if conv.kernel_size != (1, 1):
            return True
        return self.memory == "lean" and (conv.out_channels <= conv.in_channels or conv.in_channels >= 512)

    def step(self, module: nn.Module) -> tuple[Step[Any, Any], Params]:
        check_without_hook(module)
        if type(module) is DilatedConv2d:
            return self.dilated(module)
        if isinstance(module, nn.Conv2d):
            return self.conv(module)
        if isinstance(module, ResidualBlock):
            return self.residual(module)
        if isinstance(module, DenseBlock):
            return self.dense_block(module)
        if isinstance(module, DropPath):
            return steps.DropPath(module), ()
        if isinstance(module, RECOMPUTABLE):
            if any(hooked(inner) for inner in module.modules()):
                raise Unsupported(f"a hook is registered inside a {type(module).__name__}")
            if type(module) is nn.ReLU:
                return Recompute(nn.ReLU()), ()  # not in place: what it reads may be kept
            return Recompute(module), tuple(module.parameters())
        raise Unsupported(f"it has a {type(module).__name__}, which is not known here")

    def conv(self, module: nn.Conv2d) -> tuple[Conv, ConvParams]:
        if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise Unsupported(f"its {type(module).__name__} is no plain zero-padded convolution")
        product = module.kernel_size == (1, 1) and module.padding == (0, 0) and module.groups == 1
        product = product and module.bias is None
        widens = product and module.out_channels >= 2 * module.in_channels
        step = Conv(module.stride, module.padding, module.dilation, module.groups, product, widens)
        return step, ConvParams(module.weight, module.bias)

    def dilated(self, module: DilatedConv2d) -> tuple[Dilated, ConvParams]:
        params = ConvParams(module.weight, module.bias)
        return Dilated(module.kernel_size, module.dilation, module.groups), params

    def norm(self, module: nn.Module, relu: bool) -> tuple[Norm, NormParams]:
        check_without_hook(module)
        if type(module) is not nn.BatchNorm2d or not module.affine or module.running_mean is None:
            raise Unsupported(f"its {type(module).__name__} is no plain batch norm with weights and running statistics")
        self.norms.append(module)
        params = NormParams(module.weight, module.bias)
        if not module.training:  # copies, so that a later step cannot change them before backward
            assert module.running_var is not None
            params = params._replace(mean=module.running_mean.clone(), var=module.running_var.clone())
        return Norm(len(self.norms) - 1, module.eps, relu, frozen=not module.training), params

    def residual(self, block: ResidualBlock) -> tuple[Residual, ResidualParams]:
        main, shortcut, before, end = block.branches()
        if end is not None and hooked(end):
            raise Unsupported(f"a hook is registered on the last ReLU of a {type(block).__name__}")
        before_step, before_params = self.chain(before) if before else (None, ())
        main_step, main_params = self.chain(main)
        opened = open_unhooked(shortcut)
        shortcut_step, shortcut_params = self.chain(opened) if opened else (None, ())
        step = Residual(before_step, main_step, shortcut_step, relu=end is not None)
        return step, ResidualParams(before_params, main_params, shortcut_params)

    def dense_block(self, block: DenseBlock) -> tuple[DenseBlockStep, tuple[DenseLayerParams, ...]]:
        layers, params = zip(*(self.dense_layer(layer) for layer in block.values()), strict=True)
        return DenseBlockStep(layers, save_bottleneck=self.memory == "lean"), params

    def dense_layer(self, layer: nn.Module) -> tuple[DenseLayerStep, DenseLayerParams]:
        check_without_hook(layer)
        if not isinstance(layer, ConcatLayer):
            raise Unsupported(f"{type(layer).__name__} is not known here")
        norm, relu, bottleneck, rest = layer.parts()
        check_without_hook(relu)
        read, read_params = self.norm(norm, relu=True)
        weight = None
        if bottleneck is not None:
            check_without_hook(bottleneck)
            if not isinstance(bottleneck, nn.Conv2d) or not self.conv(bottleneck)[0].product:
                raise Unsupported("a bottleneck's first convolution is no plain 1x1")
            weight = bottleneck.weight
        rest_step, rest_params = self.chain(rest)
        step = DenseLayerStep(read, bottleneck is not None, rest_step, layer.growth)
        return step, DenseLayerParams(read_params, weight, rest_params)
