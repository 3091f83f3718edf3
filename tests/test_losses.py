"""Masked losses: values and gradients worked by hand."""

import math

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.losses import BinaryCrossEntropy, CrossEntropy, auto, check_kind

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
    weights = loss.weights(["a", "b"])
    assert weights.tolist() == [1, 3]
    total, _ = loss(torch.zeros(1, 2), torch.tensor([[0.5, 1.0]]), weights)
    torch.testing.assert_close(total, torch.tensor(4 * math.log(2)))
    with pytest.raises(FinetuneError, match=r"loss.pos_weight names \['c'\]"):
        BinaryCrossEntropy({"c": 1.0}).weights(["a"])


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
    with pytest.raises(FinetuneError, match=r"loss=bce does not fit multiclass labels\. Use loss=cross_entropy"):
        check_kind(BinaryCrossEntropy(), "multiclass")
    with pytest.raises(FinetuneError, match=r"label_smoothing=1\.5"):
        CrossEntropy(1.5)
