"""Losses of masks: values and gradients worked by hand, and those of torch and torchvision."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.losses import PixelCrossEntropy, PixelFocal, SoftDice, WeightedSum, auto, check_kind

LOSSES = [
    PixelCrossEntropy(),
    PixelFocal(),
    PixelFocal(gamma=0.5),
    SoftDice(),
    SoftDice(squared=True, background=True),
    auto("mask"),
]


def batch(n=3, k=3, side=4, overlapping=False, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, side, side, generator=generator, dtype=dtype) * 2
    mask = torch.randint(2**k if overlapping else k, (n, side, side), generator=generator).to(torch.uint8)
    return logits, mask, torch.ones(n, k, dtype=torch.bool)


def bits(mask, k):  # (N, H, W) -> (N, K, H, W)
    return ((mask.long()[:, None] >> torch.arange(k)[:, None, None]) & 1).double()


def test_soft_dice_worked_by_hand():
    logits = torch.tensor([[[[0.0, math.log(3.0)]]]])  # p = 1/2, 3/4 of one region; truth is the second pixel
    loss = SoftDice(smooth=1.0)
    total, count = loss(logits, torch.tensor([[[0, 1]]], dtype=torch.uint8), torch.ones(1, 1, dtype=bool), True)
    assert count == 1
    torch.testing.assert_close(total, torch.tensor(1 - (2 * 0.75 + 1) / (1.25 + 1 + 1)))
    squared, _ = SoftDice(squared=True)(logits, torch.tensor([[[0, 1]]]), torch.ones(1, 1, dtype=bool), True)
    torch.testing.assert_close(squared, torch.tensor(1 - (2 * 0.75 + 1) / (0.25 + 0.5625 + 1 + 1)))
    absent, _ = loss(logits, torch.zeros(1, 1, 2, dtype=torch.uint8), torch.ones(1, 1, dtype=bool), True)
    torch.testing.assert_close(absent, torch.tensor(1.25 / 2.25))


def test_cross_entropy_is_the_mean_over_known_pixels_of_each_image():
    logits = torch.zeros(2, 4, 1, 4)
    mask = torch.tensor([[[0, 1, 255, 255]], [[3, 255, 255, 255]]], dtype=torch.uint8)
    total, count = PixelCrossEntropy()(logits, mask, torch.ones(2, 4, dtype=bool))
    assert count == 2
    torch.testing.assert_close(total, torch.tensor(2 * math.log(4)))
    focal, _ = PixelFocal(gamma=2.0)(logits, mask, torch.ones(2, 4, dtype=bool))
    torch.testing.assert_close(focal, torch.tensor(2 * 0.75**2 * math.log(4)))


def test_cross_entropies_are_torchs_where_all_is_known():
    logits, mask, known = batch()
    total, count = PixelCrossEntropy()(logits, mask, known)
    torch.testing.assert_close(total / count, F.cross_entropy(logits, mask.long()))
    logits, mask, known = batch(overlapping=True)
    total, count = PixelCrossEntropy()(logits, mask, known, overlapping=True)
    torch.testing.assert_close(total / count, F.binary_cross_entropy_with_logits(logits, bits(mask, 3)))


def test_the_focal_loss_is_torchvisions():
    from torchvision.ops import sigmoid_focal_loss

    logits, mask, known = batch(overlapping=True)
    total, count = PixelFocal(gamma=2)(logits, mask, known, overlapping=True)
    torch.testing.assert_close(
        total / count, sigmoid_focal_loss(logits, bits(mask, 3), alpha=-1, gamma=2, reduction="mean")
    )


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("overlapping", [False, True])
def test_gradients(loss, overlapping):
    logits, mask, known = batch(n=2, side=3, overlapping=overlapping)
    if not overlapping:
        mask[0, 0] = 255
    known[1] = torch.tensor([True, False, True]) if overlapping else False
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: loss(x, mask, known, overlapping)[0], logits)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_what_is_unknown_has_a_gradient_of_exactly_zero(loss):
    logits, mask, known = batch(n=4)
    mask[0, 1], mask[2], known[1] = 255, 255, False  # a row, an image of 255, an image without a mask
    logits.requires_grad_(True)
    total, count = loss(logits, mask, known)
    total.backward()
    assert count == 2
    unknown = torch.zeros_like(logits, dtype=bool)
    unknown[0, :, 1] = unknown[1] = unknown[2] = True
    assert (logits.grad[unknown] == 0).all()
    assert (logits.grad[~unknown] != 0).all()
    logits, mask, known = batch(n=2, overlapping=True)
    known[0, 1], known[1] = False, False
    logits.requires_grad_(True)
    total, count = loss(logits, mask, known, overlapping=True)
    total.backward()
    assert count == 1
    assert (logits.grad[~known] == 0).all()
    assert (logits.grad[known] != 0).all()


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_far_logits_have_finite_losses_and_gradients(loss):
    for overlapping in (False, True):
        logits, mask, known = batch(overlapping=overlapping, dtype=torch.float32)
        far = (logits.sign() * 1e4).requires_grad_(True)
        total, _ = loss(far, mask, known, overlapping)
        total.backward()
        assert total.isfinite()
        assert far.grad.isfinite().all()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000), cut=st.integers(1, 4), number=st.integers(0, len(LOSSES) - 1), overlapping=st.booleans()
)
def test_sums_and_counts_of_parts_are_those_of_the_whole(seed, cut, number, overlapping):
    logits, mask, known = batch(n=5, overlapping=overlapping, seed=seed)
    known[seed % 5] = False
    whole = LOSSES[number](logits, mask, known, overlapping)
    parts = [LOSSES[number](logits[s], mask[s], known[s], overlapping) for s in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(whole[0], parts[0][0] + parts[1][0])
    assert whole[1] == parts[0][1] + parts[1][1] == 4


def test_a_weighted_sum_and_its_default():
    logits, mask, known = batch()
    values = [loss(logits, mask, known)[0] for loss in (PixelCrossEntropy(), SoftDice())]
    terms = {"a": PixelCrossEntropy(), "b": SoftDice()}
    torch.testing.assert_close(WeightedSum(terms, {"b": 3.0})(logits, mask, known)[0], values[0] + 3 * values[1])
    torch.testing.assert_close(auto("mask")(logits, mask, known)[0], values[0] + values[1])
    assert auto("mask").weights(["a"], None) is None


def test_half_precision_does_not_overflow():
    side = 300  # 90,000 pixels: their sum is above what 16 bits hold
    logits = torch.full((1, 2, side, side), 20.0, dtype=torch.float16)
    mask = torch.ones(1, side, side, dtype=torch.uint8)
    total, _ = SoftDice(background=True)(logits, mask, torch.ones(1, 2, dtype=bool))
    torch.testing.assert_close(total, torch.tensor((1 - 1 / 45_001 + 1 - 90_001 / 135_001) / 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftDice(smooth=0), r"loss\.smooth=0 must be above 0"),
        (lambda: PixelFocal(gamma=-1), r"loss\.gamma=-1 must be 0 or more"),
        (lambda: WeightedSum({}), r"loss\.terms=\{\} must name one loss"),
        (lambda: WeightedSum({"a": 3}), r"loss\.terms: a must be losses of masks"),
        (lambda: WeightedSum({"a": SoftDice()}, {"b": 1.0}), r"loss\.factors names \['b'\].*Choose from \['a'\]"),
        (lambda: WeightedSum({"a": SoftDice()}, {"a": -1.0}), r"loss\.factors holds a=-1\.0"),
        (lambda: WeightedSum({"a": SoftDice()}, {"a": 0.0}), r"at least one factor must be above 0"),
        (lambda: check_kind(SoftDice(), "multilabel"), r"loss=SoftDice is for mask labels.*Use loss=bce"),
        (lambda: check_kind(auto("multilabel"), "mask"), r"these are mask\. Use loss=dice_ce"),
        (lambda: SoftDice()(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 2), torch.ones(1, 2)), r"do not fit together"),
        (
            lambda: SoftDice()(torch.zeros(1, 9, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 9, dtype=bool), True),
            r"9 overlapping regions: a mask of 8 bits",
        ),
        (
            lambda: SoftDice()(torch.zeros(1, 2, 1, 1), torch.full((1, 1, 1), 2), torch.ones(1, 2, dtype=bool)),
            r"mask holds 2, which is no region: values are 0 to 1, or 255",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(FinetuneError, match=message):
        make()
