"""Losses and scores of masks are those of MONAI: in one file, since importing it takes seconds."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from finetune.evaluation.segmentation import cases
from finetune.evaluation.segmentation.scores import overlaps
from finetune.losses import SoftDice
from tests.evaluation.segmentation.test_cases import blob
from tests.losses.test_segmentation import batch, bits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its optional packages
    from monai.losses import DiceLoss
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_iou,
    )

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # an argument of its own


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("overlapping", [False, True])
def test_soft_dice(squared, overlapping):
    logits, mask, known = batch(overlapping=overlapping)
    truth = bits(mask, 3) if overlapping else F.one_hot(mask.long(), 3).movedim(-1, 1).double()
    reference = DiceLoss(
        sigmoid=overlapping,
        softmax=not overlapping,
        include_background=overlapping,
        squared_pred=squared,
        smooth_nr=1.0,
        smooth_dr=1.0,
    )
    total, count = SoftDice(squared=squared)(logits, mask, known, overlapping)
    torch.testing.assert_close(total / count, reference(logits, truth))


@pytest.mark.parametrize("spacing", [None, (0.7, 1.9)])
def test_scores(spacing):
    rng = np.random.default_rng(0)
    for _ in range(20):
        prediction, truth = blob(rng), blob(rng)
        both, t, p = cases.count(prediction, truth, 1, True).regions[0].astype(float)
        scores = overlaps(np.array(both), np.array(t), np.array(p))
        a, b = (torch.tensor(mask)[None, None].float() for mask in (prediction, truth))
        assert scores["dice"] == pytest.approx(compute_dice(a, b).item(), abs=1e-6)
        assert scores["iou"] == pytest.approx(compute_iou(a, b).item(), abs=1e-6)
        assd, hd95 = cases.surface_distances(prediction, truth, spacing)
        mean = compute_average_surface_distance(a, b, symmetric=True, spacing=spacing).item()
        assert assd == pytest.approx(mean, rel=1e-6)
        assert hd95 == pytest.approx(compute_hausdorff_distance(a, b, percentile=95, spacing=spacing).item(), rel=1e-6)
