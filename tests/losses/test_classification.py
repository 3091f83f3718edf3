"""Masked losses: values and gradients worked by hand."""

import math

import numpy as np
import pytest
import torch

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
