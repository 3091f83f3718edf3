"""The AUC margin loss: values worked by hand, the paper's min-max form, and what it does to an AUROC."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from finetune.errors import FinetuneError
from finetune.losses import AUCMargin, BinaryCrossEntropy, check_kind

NAN = float("nan")


def logit(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).logit()[:, None]


def test_values_by_hand():
    scores = logit(0.8, 0.6, 0.1, 0.3)  # means 0.7 and 0.2, variances 0.01 and 0.01
    target = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    for margin, loss in ((1.0, 0.02 + 0.5**2), (0.6, 0.02 + 0.1**2), (0.5, 0.02), (0.4, 0.02)):
        total, count = AUCMargin(margin)(scores, target)
        assert count == 1
        assert float(total) == pytest.approx(loss)


def test_unknown_labels_and_classes_of_one_side_have_no_gradient():
    logits = torch.cat([logit(0.8, 0.6, 0.1, 0.3)] * 4, dim=1).requires_grad_()
    target = torch.tensor([[1, 1, NAN, 0.4], [NAN, 1, NAN, NAN], [0, 1, NAN, 0], [0, NAN, NAN, 0]])
    total, count = AUCMargin()(logits, target)
    assert count == 1  # only positives, nothing known, nothing of 0.5 or more
    assert total.item() == pytest.approx(0.01 + 0.4**2)  # 0.8 against 0.1 and 0.3
    total.backward()
    assert not logits.grad[:, 1:].any()
    assert logits.grad[1, 0] == 0
    assert all(logits.grad[[0, 2, 3], 0] != 0)
    empty, none = AUCMargin()(logits[:0], target[:0])
    assert (empty.item(), none.item()) == (0, 0)


def test_a_soft_target_is_a_positive_and_a_negative_in_part():
    total, _ = AUCMargin()(logit(0.9, 0.5, 0.1), torch.tensor([[1.0], [0.5], [0.0]]))
    positive = (0.9 + 0.5 * 0.5) / 1.5
    variance = ((0.9 - positive) ** 2 + 0.5 * (0.5 - positive) ** 2) / 1.5  # by symmetry that of the negatives too
    assert float(total) == pytest.approx(2 * variance + (1 + (1 - positive) - positive) ** 2)


def min_max_form(scores, positive, a, b, alpha, margin):
    """Equation (7) of Yuan et al. (2021) over means of the classes, as LibAUC's AUCMLoss(version="v2") has it."""
    s, t = scores[positive], scores[~positive]
    return (s - a).square().mean() + (t - b).square().mean() + 2 * alpha * (margin + t.mean() - s.mean()) - alpha**2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=2, max_size=20),
    st.floats(0.05, 1),
    st.floats(-0.5, 0.5).filter(lambda x: abs(x) > 0.01),
)
def test_it_is_the_min_max_form_at_its_saddle_point(pairs, margin, step):
    logits = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    positive = torch.tensor([label for _, label in pairs])
    total, count = AUCMargin(margin)(logits[:, None], positive[:, None].double())
    if positive.all() or not positive.any():
        assert (total, count) == (0, 0)
        return
    scores = logits.sigmoid()
    a, b = scores[positive].mean(), scores[~positive].mean()
    alpha = (margin + b - a).clamp(min=0)
    torch.testing.assert_close(total, min_max_form(scores, positive, a, b, alpha, margin))
    assert min_max_form(scores, positive, a + step, b, alpha, margin) > total
    assert min_max_form(scores, positive, a, b + step, alpha, margin) > total
    assert min_max_form(scores, positive, a, b, (alpha + step).clamp(min=0), margin) <= total + 1e-12


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    target = torch.rand(9, 3, dtype=torch.float64).round()
    target[0, 0], target[:2, 1] = NAN, 0.7
    assert torch.autograd.gradcheck(lambda x: AUCMargin(0.8)(x, target)[0], logits)


def test_it_raises_the_auroc_of_a_rare_class():
    """One positive in twenty; a line through two features, and a third that is noise."""
    torch.manual_seed(0)
    target = (torch.arange(400) % 20 == 0).float()[:, None]
    features = torch.randn(400, 3) + target * torch.tensor([1.5, -1.0, 0.0])
    line = torch.nn.Linear(3, 1)
    with torch.no_grad():
        line.weight.copy_(torch.tensor([[-0.2, 0.1, 0.6]]))
    before = roc_auc_score(target, line(features).detach())
    optimizer = torch.optim.Adam(line.parameters(), lr=0.05)
    for _ in range(100):
        total, _ = AUCMargin()(line(features), target)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    best = roc_auc_score(target, features @ torch.tensor([1.5, -1.0, 0.0]))  # the direction between the means
    assert before < 0.45
    assert roc_auc_score(target, line(features).detach()) > best - 0.02


def test_misuse_is_named():
    for margin in (0.0, 1.5, math.nan):
        with pytest.raises(FinetuneError, match=r"loss\.margin=.* must be above 0 and at most 1"):
            AUCMargin(margin)
    with pytest.raises(
        FinetuneError, match=r"AUCMargin is for multilabel labels, these are multiclass\. Use loss=cross"
    ):
        check_kind(AUCMargin(), "multiclass")
    assert AUCMargin.kind == BinaryCrossEntropy.kind
