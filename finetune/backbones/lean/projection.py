"""A widening 1x1 convolution and its batch norm as one step."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from finetune.backbones.lean.steps import Conv, ConvParams, Norm, NormParams, NormSaved, Observed, ResidualSum, Step
from finetune.backbones.maps import as_map, as_rows


class ProjectionParams(NamedTuple):
    conv: ConvParams
    norm: NormParams


@dataclass(frozen=True)
class Projection(Step[ProjectionParams, NormSaved]):
    """A widening 1x1 convolution and its batch norm, without the wide map between the two in backward.

    The convolution's output y = W x is linear in x, so whatever the norm's derivative needs of y can be computed from
    x, which is narrow. With d = dL/d(norm's output), s = weight * rstd, and c = x - mean(x), so that W c = y - mean(y):

        A = sum d c^T,    G = sum c c^T                            over the M pixels
        dweight = rstd * diag(A W^T),    dbias = sum d
        dy = s * (d - dbias / M) - q * (W c)                       with q = s * rstd * dweight / M
        dW = sum dy c^T = s * A - q * (W G)
        dx = W^T dy = (s * W)^T d - (W^T q W) c - W^T (s * dbias / M)

    Products with square matrices of the narrow side replace the convolution computed again and every elementwise pass
    over y, which pays on large maps.
    """

    conv: Conv
    norm: Norm

    def forward(
        self, x: Tensor, params: ProjectionParams, observed: Observed, residual: ResidualSum | None = None
    ) -> tuple[Tensor, NormSaved]:
        y = self.conv.replay(x, params.conv)
        saved = self.norm.observe(y, observed)
        return self.norm.replay(y, params.norm, saved, residual, inplace=True), saved

    def replay(
        self, x: Tensor, params: ProjectionParams, saved: NormSaved, residual: ResidualSum | None = None
    ) -> Tensor:
        return self.norm.replay(self.conv.replay(x, params.conv), params.norm, saved, residual, inplace=True)

    def backward(
        self,
        dy: Tensor,
        x: Tensor,
        y: Tensor | None,
        params: ProjectionParams,
        saved: NormSaved,
        needs_x: bool,
        needs: ProjectionParams,
    ) -> tuple[Tensor | None, ProjectionParams]:
        pixels, wide = dy.numel() // dy.shape[1], dy.shape[1]
        too_small_to_pay, too_coarse_to_sum = pixels < 16 * wide, torch.finfo(x.dtype).bits < 32
        if too_small_to_pay or too_coarse_to_sum:
            return self.backward_from_wide_map(dy, x, params, saved, needs_x, needs)
        weight = params.conv.weight
        norm = self.norm.normalisation(params.norm, saved)
        rstd = norm.rstd()
        narrow = self.conv.strided(x)
        d, rows = as_rows(dy), as_rows(narrow)  # (M, wide), (M, narrow)
        w, s = weight.flatten(1), (norm.weight * rstd)[:, None]  # (wide, narrow), (wide, 1)
        dbias = d.sum(0)
        moment = (rows.t() @ d).t()  # (wide, narrow); in this order it takes two thirds of the time
        if self.norm.frozen:
            dweight = rstd * ((moment * w).sum(1) - norm.mean * dbias)
            dw = s * moment
            dx = d @ (s * w) if needs_x else None
        else:
            count = len(rows)
            mean = rows.mean(0)
            moment.addr_(dbias, mean, alpha=-1)  # A
            gram = (rows.t() @ rows).addr_(mean, mean, alpha=-count)  # G
            dweight = rstd * (moment * w).sum(1)
            q = s * (rstd * dweight / count)[:, None]
            dw = s * moment - q * (w @ gram)
            dx = None
            if needs_x:
                pull = w.t() @ (q * w)  # (narrow, narrow)
                shift = pull @ mean - w.t() @ (s[:, 0] * dbias / count)
                dx = torch.addmm(shift, rows, pull, alpha=-1).addmm_(d, s * w)
        if dx is not None:
            dx = self.conv.unstrided(as_map(dx, narrow), like=x)
        return dx, ProjectionParams(ConvParams(dw.view_as(weight), None), NormParams(dweight, dbias))

    def backward_from_wide_map(
        self,
        dy: Tensor,
        x: Tensor,
        params: ProjectionParams,
        saved: NormSaved,
        needs_x: bool,
        needs: ProjectionParams,
    ) -> tuple[Tensor | None, ProjectionParams]:
        """With the wide map computed again."""
        wide = self.conv.replay(x, params.conv)
        dwide, norm_grads = self.norm.norm_backward(dy, wide, None, params.norm, saved, True, inplace=True)
        assert dwide is not None
        dx, conv_grads = self.conv.backward(dwide, x, None, params.conv, (), needs_x, needs.conv)
        return dx, ProjectionParams(conv_grads, norm_grads)
