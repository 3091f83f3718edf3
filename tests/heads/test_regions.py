"""RoIAlign on a CPU and the linear layer of it, beside torchvision's operator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign

from finetune.heads import regions
from finetune.heads.detection_parts import FullRoIAlign
from finetune.heads.regions import Places, Regions
from tests.backbones.lean_cases import saved_bytes

SIDE, CHANNELS, HIDDEN = 64, 3, 5
PLACES, POINTS = 49, 4  # values per box and channel; pixels that one sample reads


def maps_of(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, CHANNELS, s, s, generator=generator, dtype=torch.float64) for s in (16, 8, 4, 2)]
    return [m.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_() for m in made]


def boxes_of(count: int, seed: int = 0) -> list[Tensor]:
    """Some without area, some beyond the border."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, count, 2, generator=generator, dtype=torch.float64) * SIDE
    side = torch.rand(2, count, 2, generator=generator, dtype=torch.float64) * SIDE
    side[:, ::5] = 0
    return list(torch.cat([corner, corner + side], dim=2))


def ours(maps: list[Tensor], boxes: list[Tensor]) -> Regions:
    pool = FullRoIAlign({str(number): 4 * 2**number for number in range(4)})
    return pool({str(number): m for number, m in enumerate(maps)}, boxes, [(SIDE, SIDE)] * 2)


def theirs(maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
    pool = MultiScaleRoIAlign([str(number) for number in range(4)], 7, 2)
    return pool({str(number): m for number, m in enumerate(maps)}, boxes, [(SIDE, SIDE)] * 2)


def linear(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(HIDDEN, CHANNELS * PLACES, generator=generator, dtype=torch.float64).to(dtype)
    return weight.requires_grad_(), torch.ones(HIDDEN, dtype=dtype).requires_grad_()


@given(st.integers(0, 40), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_boxes_are_pooled_as_by_torchvision(count, seed):
    maps, boxes = maps_of(), boxes_of(count, seed)
    torch.testing.assert_close(ours(maps, boxes).pooled(), theirs(maps, boxes), rtol=1e-12, atol=1e-12)


def test_a_box_of_one_value_per_pixel():
    """7 x 7 pixels of a ramp along x: every place is the mean of two samples, at 0.25 and 0.75 of a pixel."""
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    places = Places(torch.tensor([[2.0, 3.0, 9.0, 10.0]]), torch.tensor([0]), torch.tensor([0]))
    pooled = Regions([ramp], places, [1.0]).pooled()
    assert torch.equal(pooled, (torch.arange(7) + 2.5).expand(1, 1, 7, 7))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("by_rows", [True, False])
def test_the_linear_layer_and_its_gradients(recompute, by_rows, monkeypatch):
    """In several parts, and with the operator that other devices than a CPU use."""
    monkeypatch.setattr(regions, "PART", 7)
    monkeypatch.setattr(regions, "sums_rows", lambda x: by_rows)
    maps, boxes, (weight, bias) = maps_of(), boxes_of(20), linear()
    wanted = F.linear(theirs(maps, boxes).flatten(1), weight, bias)
    y = ours(maps, boxes).linear(weight, bias, recompute=recompute)
    torch.testing.assert_close(y, wanted, rtol=1e-11, atol=1e-11)
    dy = torch.randn(y.shape, dtype=y.dtype)
    leaves = [*maps[:3], weight, bias]  # boxes of 64 px or less are not read from the map of reduction 32
    for got, expected in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(wanted, leaves, dy), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_without_gradients_the_parts_give_the_same(monkeypatch):
    monkeypatch.setattr(regions, "PART", 7)
    maps, boxes, (weight, bias) = maps_of(), boxes_of(20), linear()
    with torch.no_grad():
        y = ours(maps, boxes).linear(weight, bias, recompute=False)
    torch.testing.assert_close(y, F.linear(theirs(maps, boxes).flatten(1), weight, bias), rtol=1e-11, atol=1e-11)


def test_only_what_learns_gets_a_gradient():
    maps, boxes, (weight, bias) = [m.detach() for m in maps_of()], boxes_of(3), linear()
    y = ours(maps, boxes).linear(weight, bias.detach(), recompute=True)
    (dweight,) = torch.autograd.grad(y.sum(), [weight])
    expected = theirs(maps, boxes).flatten(1).sum(0).expand(HIDDEN, -1)
    torch.testing.assert_close(dweight, expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_under_autocast_boxes_stay_in_32_bits(recompute):
    maps, boxes = maps_of(torch.float32), [b.float() for b in boxes_of(20)]
    weight, bias = linear(torch.float32)
    wanted = F.linear(theirs(maps, boxes).flatten(1), weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours([m.bfloat16() for m in maps], boxes).linear(weight, bias, recompute=recompute)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted, rtol=0.05, atol=0.3)
    y.sum().backward()
    assert weight.grad.dtype == maps[0].grad.dtype == torch.float32
    assert weight.grad.isfinite().all()
    assert maps[0].grad.abs().sum() > 0


def test_what_is_kept_for_backward():
    """Recomputed: boxes and maps. Else what the boxes cover as well, of which the memory of a detector mostly is."""
    count = 1000

    class Call(torch.nn.Module):
        def __init__(self, recompute: bool):
            super().__init__()
            self.recompute, (weight, bias) = recompute, linear(torch.float32)
            self.weight, self.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())

        def forward(self, x: Tensor) -> Tensor:
            return ours(maps, boxes).linear(self.weight, self.bias, recompute=self.recompute)

    maps, boxes = maps_of(torch.float32), [b.float() for b in boxes_of(count)]
    of_boxes = 2 * count * (4 * 4 + 2 * 8)
    of_maps = sum(m.nbytes for m in maps)
    covered = 2 * count * CHANNELS * PLACES * 4
    assert saved_bytes(Call(True), maps[0]) == of_boxes + of_maps - maps[0].nbytes
    assert saved_bytes(Call(False), maps[0]) == of_boxes + covered
