"""A dilated convolution, without the taps that reach no pixel of a small map."""

from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.backbones.lean.steps import Conv, ConvParams, Nothing, ResidualSum, StatelessStep
from finetune.heads.dilated import surroundings, taps


@dataclass(frozen=True)
class Dilated(StatelessStep[ConvParams]):
    """`DilatedConv2d`. Taps that reach no pixel have a gradient of zero."""

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def replay(self, x: Tensor, params: ConvParams, saved: Nothing = (), residual: ResidualSum | None = None) -> Tensor:
        rows, columns = taps(self.kernel_size, self.dilation, x.shape)
        conv, params = self.reaching(rows, columns, params)
        return conv.replay(x, params, residual=residual)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: ConvParams,
        saved: Nothing,
        needs_x: bool,
        needs: ConvParams,
    ) -> tuple[Tensor | None, ConvParams]:
        rows, columns = taps(self.kernel_size, self.dilation, x.shape)
        conv, reaching = self.reaching(rows, columns, params)
        dx, (dweight, dbias) = conv.backward(dy, x, y, reaching, (), needs_x, needs)
        if dweight is not None and dweight.shape != params.weight.shape:
            part, dweight = dweight, torch.zeros_like(params.weight, dtype=dweight.dtype)
            dweight[:, :, rows, columns] = part
        return dx, ConvParams(dweight, dbias)

    def reaching(self, rows: slice, columns: slice, params: ConvParams) -> tuple[Conv, ConvParams]:
        """The convolution with these taps."""
        weight = params.weight[:, :, rows, columns]
        padding, dilation = surroundings(rows, columns, self.dilation)
        product = weight.shape[-2:] == (1, 1) and self.groups == 1 and params.bias is None
        conv = Conv((1, 1), padding, dilation, self.groups, product, widens=False)
        return conv, params._replace(weight=weight)
