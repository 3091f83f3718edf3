"""Masked losses: values and gradients worked by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from finetune.losses import Asymmetric, BinaryCrossEntropy, CrossEntropy, auto, check_kind

NAN = float("nan")


def test_bce_counts_known_entries_only_and_masked_ones_get_no_gradient():
    logits = torch.tensor([[0.0, 3.0], [0.0, -1e30]], requires_grad=True)
    total, count = BinaryCrossEntropy()(logits, torch.tensor([[1.0, NAN], [0.0, NAN]]))
    assert count == 2
    torch.testing.assert_close(total, torch.tensor(2 * math.log(2)))
    total.backward()
    assert logits.grad.tolist() == [[-0.5, 0.0], [0.5, 0.0]]


def test_bce_takes_soft_targets_and_weights_for_positives():
    loss = BinaryCrossEntropy({"b": 3.0})
    weights = loss.weights(["a", "b"], np.zeros((0, 2)))
    assert weights.tolist() == [1, 3]
    total, _ = loss(torch.zeros(1, 2), torch.tensor([[0.5, 1.0]]), weights)
    torch.testing.assert_close(total, torch.tensor(4 * math.log(2)))
    with pytest.raises(FinetuneError, match=r"loss.pos_weight names \['c'\]"):
        BinaryCrossEntropy({"c": 1.0}).weights(["a"], np.zeros((0, 1)))
    with pytest.raises(FinetuneError, match=r"loss\.pos_weight holds a=-1\.0: a weight is a number above 0"):
        BinaryCrossEntropy({"a": -1.0}).weights(["a"], np.zeros((0, 1)))
    with pytest.raises(FinetuneError, match=r"loss\.pos_weight=balance is not known\. Give balanced"):
        BinaryCrossEntropy("balance").weights(["a"], np.zeros((0, 1)))


def test_balanced_weights_are_counted_in_train():
    targets = np.array([[1, 0, NAN], [0, 0, NAN], [0, NAN, NAN], [0, 1, NAN]])
    assert BinaryCrossEntropy("balanced").weights(["a", "b", "c"], targets).tolist() == [3, 2, 1]
    images = np.eye(3)[[0, 0, 0, 1]]  # the third class is never shown
    assert CrossEntropy(class_weight="balanced").weights(["a", "b", "c"], images).tolist() == pytest.approx(
        [2 / 3, 2, 1]
    )
    loss = CrossEntropy(class_weight={"b": 3.0})
    total, count = loss(torch.zeros(2, 2), torch.eye(2), loss.weights(["a", "b"], np.eye(2)))
    assert count == 2
    torch.testing.assert_close(total, torch.tensor(4 * math.log(2)))


def test_asymmetric_loss_worked_by_hand():
    logits = torch.tensor([[math.log(3.0), math.log(3.0)]])  # p = 3/4
    total, count = Asymmetric(gamma_positive=1, gamma_negative=2, margin=0.25)(logits, torch.tensor([[1.0, 0.0]]))
    assert count == 2
    torch.testing.assert_close(total, torch.tensor(-0.25 * math.log(0.75) - 0.5**2 * math.log(0.5)))


def test_focal_loss_without_focus_is_the_cross_entropy_and_stays_finite_far_out():
    logits, target = torch.randn(8, 3) * 3, torch.rand(8, 3)
    plain, _ = BinaryCrossEntropy()(logits, target)
    same, _ = Asymmetric(gamma_positive=0, gamma_negative=0, margin=0)(logits, target)
    torch.testing.assert_close(same, plain)
    for loss in (Asymmetric(2, 2, margin=0.0), Asymmetric(), Asymmetric(gamma_positive=0.5, gamma_negative=0.5)):
        far = torch.tensor([[-200.0, 200.0, 0.0], [200.0, -200.0, 0.0]], requires_grad=True)
        total, count = loss(far, torch.tensor([[1.0, 0.0, NAN], [1.0, 0.0, NAN]]))
        assert count == 4
        total.backward()
        assert far.grad.isfinite().all()
        assert far.grad[:, 2].tolist() == [0, 0]


def test_the_focal_loss_is_torchvisions():
    from torchvision.ops import sigmoid_focal_loss

    logits, target = torch.randn(20, 4) * 2, torch.randint(2, (20, 4)).float()
    found, _ = Asymmetric(gamma_positive=2, gamma_negative=2, margin=0)(logits, target)
    torch.testing.assert_close(found, sigmoid_focal_loss(logits, target, alpha=-1, gamma=2, reduction="sum"))


def test_cross_entropy_masks_whole_rows():
    logits = torch.tensor([[0.0, 0.0], [5.0, 1.0]], requires_grad=True)
    total, count = CrossEntropy()(logits, torch.tensor([[0.0, 1.0], [NAN, NAN]]))
    assert count == 1
    torch.testing.assert_close(total, torch.tensor(math.log(2)))
    total.backward()
    assert logits.grad[1].tolist() == [0, 0]


def test_nothing_known_is_zero_over_zero_without_nan_gradients():
    logits = torch.randn(2, 3, requires_grad=True)
    for loss in (BinaryCrossEntropy(), CrossEntropy()):
        total, count = loss(logits, torch.full((2, 3), NAN))
        assert (total, count) == (0, 0)
        total.backward()
    assert not logits.grad.any()


def test_the_loss_goes_with_the_labels():
    assert auto("multiclass").kind == "multiclass"
    with pytest.raises(FinetuneError, match=r"BinaryCrossEntropy is for multilabel labels, these are multiclass\. Use"):
        check_kind(BinaryCrossEntropy(), "multiclass")
    with pytest.raises(FinetuneError, match=r"label_smoothing=1\.5"):
        CrossEntropy(1.5)


def test_smoothed_cross_entropy_is_torchs_with_weights_too():
    logits, labels = torch.randn(20, 4, dtype=torch.float64), torch.randint(4, (20,))
    target = torch.eye(4, dtype=torch.float64)[labels]
    weights = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    for smoothing in (0.0, 0.1, 0.7):
        for weight in (None, weights):
            total, count = CrossEntropy(smoothing)(logits, target, weight)
            torchs = torch.nn.functional.cross_entropy(
                logits, labels, weight, label_smoothing=smoothing, reduction="none"
            )
            torch.testing.assert_close(total, torchs.sum())
            assert count == 20


def test_smoothed_binary_cross_entropy_by_hand_and_unknown_stays_unknown():
    logits = torch.tensor([[math.log(3.0), math.log(3.0), 9.0]], requires_grad=True)  # p = 3/4
    loss = BinaryCrossEntropy({"a": 2.0}, label_smoothing=0.2)
    total, count = loss(logits, torch.tensor([[1.0, 0.0, NAN]]), torch.tensor([2.0, 1.0, 1.0]))
    assert count == 2
    high, low = -math.log(0.75), -math.log(0.25)
    torch.testing.assert_close(total, torch.tensor(2 * 0.9 * high + 0.1 * low + 0.1 * high + 0.9 * low))
    total.backward()
    assert logits.grad[0, 2] == 0
    for kind in (BinaryCrossEntropy, Asymmetric):
        with pytest.raises(FinetuneError, match=r"label_smoothing=1\.0 must be at least 0 and below 1"):
            kind(label_smoothing=1.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_the_loss_of_mixed_targets_is_the_mixture_of_the_losses(seed, share):
    """Of every loss and weight, so that what mixup reports is what Zhang et al. (2018) minimise."""
    torch.manual_seed(seed)
    logits, weights = 3 * torch.randn(5, 3, dtype=torch.float64), 0.1 + 3 * torch.rand(3, dtype=torch.float64)
    findings = torch.rand(2, 5, 3, dtype=torch.float64).round()
    classes = torch.eye(3, dtype=torch.float64)[torch.randint(3, (2, 5))]
    for loss, (one, two) in (
        (BinaryCrossEntropy(label_smoothing=0.1), findings),
        (Asymmetric(), findings),
        (Asymmetric(gamma_positive=2, gamma_negative=2, margin=0, label_smoothing=0.2), findings),
        (CrossEntropy(), classes),
        (CrossEntropy(0.1), classes),
    ):
        for weight in (None, weights):
            mixed, count = loss(logits, (1 - share) * one + share * two, weight)
            assert count == (5 if loss.kind == "multiclass" else 15)
            parts = (1 - share) * loss(logits, one, weight)[0] + share * loss(logits, two, weight)[0]
            torch.testing.assert_close(mixed, parts)
