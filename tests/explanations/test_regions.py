"""Seg-Grad-CAM of networks small enough to work it out by hand, and of a pyramid."""

import numpy as np
import pytest
import torch
from torch import nn

import finetune
from finetune.errors import FinetuneError
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.explanations.regions import seg_grad_cam
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from tests.explanations.nets import network

MAPS = torch.tensor([[[[1.0, 0.0], [0.0, 3.0]], [[0.0, 2.0], [0.0, 0.0]]]])  # (1, 2, 2, 2)
WEIGHTS = [[0.0, 0.0], [2.0, -1.0]]


class Pixels(nn.Module):
    """A linear layer of these weights (K, C) at each pixel."""

    gives = "regions"

    def __init__(self, weights: list[list[float]]):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weights))

    def forward(self, x, size=None):  # (N, C, H, W) -> (N, K, H, W)
        return torch.einsum("kc,nchw->nkhw", self.weight, x)


def test_the_map_of_a_region_by_hand():
    """Logits of region 1 are 2 a - b = [[2, -2], [0, 6]], of the background 0: two of four pixels are in it. The
    gradient of their sum to channel a is 2 there and 0 elsewhere, its mean 2 * 2 / 4 = 1; of channel b it is -0.5."""
    maps = seg_grad_cam(network(Pixels(WEIGHTS)), MAPS, torch.tensor([1]))
    assert maps.predicted[0].tolist() == [[True, False], [False, True]]
    torch.testing.assert_close(maps.heat, torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]))  # a - b / 2, above 0


def test_where_nothing_is_predicted_all_pixels_count():
    """Thresholds of overlapping regions: sigmoid(6) = 0.9975 is below 0.999, so the gradient is 2 and -1 everywhere."""
    net, one = network(Pixels(WEIGHTS)), torch.tensor([1])
    maps = seg_grad_cam(net, MAPS, one, torch.tensor([0.5, 0.999]))
    assert not maps.predicted.any()
    torch.testing.assert_close(maps.heat, torch.tensor([[[2.0, 0.0], [0.0, 6.0]]]))
    low = seg_grad_cam(net, MAPS, one, torch.tensor([0.5, 0.99]))  # the pixel of 6 alone: weights 2 / 4 and -1 / 4
    assert low.predicted[0].tolist() == [[False, False], [False, True]]
    torch.testing.assert_close(low.heat, torch.tensor([[[0.5, 0.0], [0.0, 1.5]]]))
    fixed = torch.tensor([[[False, True], [False, False]]])  # pixels that somebody else has predicted
    torch.testing.assert_close(seg_grad_cam(net, MAPS, one, predicted=fixed).heat, low.heat)


def test_the_border_beside_an_image_is_not_predicted():
    """Of the first row alone the pixel of 2 is in the region; where nothing is predicted its two pixels count."""
    net, region = network(Pixels(WEIGHTS)), torch.tensor([1])
    shown = torch.tensor([[[True, True], [False, False]]])
    maps = seg_grad_cam(net, MAPS, region, shown=shown)
    assert maps.predicted[0].tolist() == [[True, False], [False, False]]
    torch.testing.assert_close(maps.heat, torch.tensor([[[0.5, 0.0], [0.0, 1.5]]]))
    maps = seg_grad_cam(net, MAPS, region, torch.tensor([0.5, 0.999]), shown=shown)
    assert not maps.predicted.any()
    torch.testing.assert_close(maps.heat, torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]))  # half of 2 and -1


@pytest.mark.parametrize(("head", "neck"), [("fpn", "pyramid"), ("unet", None), ("fcn", None)])
def test_the_gradient_is_that_of_the_backbones_last_map(head, neck):
    torch.manual_seed(0)
    options = {"neck_options": {"channels": 8}} if neck else {}
    net = NetworkSpec("resnet20_cifar", 3, 1, head, {"memory": "lean"}, {"channels": 8}, neck=neck, **options).build()
    net.train()
    images, regions = torch.randn(3, 1, 16, 16), torch.tensor([1, 2, 0])
    state = {name: value.clone() for name, value in net.state_dict().items()}
    maps = seg_grad_cam(net, images, regions, images_at_once=2)
    assert net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    net.eval()
    *before, last = (value.detach() for value in net.backbone.forward_stages(images))
    last.requires_grad_()
    made = [*before, last] if net.neck is None else net.neck([*before, last])
    logits = net.head(made, (16, 16))
    predicted = logits.argmax(1) == regions[:, None, None]
    assert torch.equal(maps.predicted, predicted)
    counted = torch.stack([one if one.any() else ~one for one in predicted])
    (gradient,) = torch.autograd.grad((logits[torch.arange(3), regions] * counted).sum(), last)
    small = (gradient.mean((2, 3), keepdim=True) * last).sum(1).relu()
    whole = nn.functional.interpolate(small[:, None], size=(16, 16), mode="bilinear")[:, 0].detach()
    torch.testing.assert_close(maps.heat, whole, rtol=1e-4, atol=1e-5)
    assert maps.heat.max() > 0


@pytest.fixture(scope="module", params=[False, True])
def model(request) -> Model:
    torch.manual_seed(1)
    names = ["heart", "lung"] if request.param else ["background", "heart", "lung"]
    spec = NetworkSpec("resnet20_cifar", len(names), 1, "fcn", head_options={"channels": 8})
    preprocessing = Preprocessing(image_size=24, in_channels=1, mean=(0.5,), std=(0.25,), fit="pad")
    return Model(spec.build(), spec, preprocessing, SegmentAnswers(names, request.param))


def test_explain_of_a_segmentation_model(model):
    images = [np.random.default_rng(i).integers(0, 256, (24 + 8 * i, 40), dtype=np.uint8) for i in range(3)]
    maps = finetune.explain(model, images, region="heart")
    assert maps.explained == ["heart"] * 3
    assert maps.heat.shape == maps.predicted.shape == (3, 24, 24)
    shown = maps.inputs.shown(range(3)).numpy()
    assert shown.any(axis=2).sum(axis=1).tolist() == [14, 19, 24]  # rows of an image; fit=pad has black above and below
    assert not (maps.predicted & ~shown).any()
    stored = maps.stored_heat(1)
    assert stored.shape == (32, 40)
    assert np.nanmax(stored) <= maps.heat[1].max() * (1 + 1e-5)
    assert maps.overlay(1).size == maps.overlay(1, np.ones((32, 40), bool)).size
    about = maps.to_dict(0)
    assert (about["sample"], about["class"]) == ("0", "heart")
    assert about["inside"] is None or 0 <= about["inside"] <= 1
    largest = finetune.explain(model, images, batch_size=2)
    pixels = model.predict(images)[["share_heart", "share_lung"]].to_numpy()
    clear = np.abs(pixels[:, 0] - pixels[:, 1]) > 0.05
    names = np.array(["heart", "lung"])[pixels.argmax(axis=1)]
    assert (np.array(largest.explained)[clear] == names[clear]).all()
    each = finetune.explain(model, images, region=["lung", "heart", "lung"])
    assert each.explained == ["lung", "heart", "lung"]
    np.testing.assert_allclose(each.heat[1], maps.heat[1], rtol=1e-4, atol=1e-6)
    assert len(finetune.explain(model, [])) == 0


class Border(nn.Module):
    """`lung` where the input is black, `heart` elsewhere."""

    gives = "regions"

    def forward(self, maps, size=None):
        dark = -torch.ones_like(maps)
        return torch.cat([dark * 9, maps, -maps], dim=1)


def test_the_largest_region_is_of_the_image_alone():
    preprocessing = Preprocessing(image_size=8, in_channels=1, mean=(0.5,), std=(0.5,), fit="pad")
    names = ["background", "heart", "lung"]
    model = Model(network(Border()), NetworkSpec("resnet18", 3, 1), preprocessing, SegmentAnswers(names, False))
    maps = finetune.explain(model, [np.full((2, 8), 255, np.uint8)])  # 6 rows of 8 are black beside it
    assert maps.explained == ["heart"]
    assert int(maps.predicted.sum()) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": "hart"}, "region=hart is not known. Did you mean heart"),
        ({"region": "background"}, "region=background is not known"),
        ({"region": ["heart"]}, "region has 1 names for 0 images"),
        ({"finding": "heart"}, "finding=heart: of task=segment, region= says what is explained"),
        ({"method": "occlusion"}, "method=occlusion explains the classes of whole images; of task=segment choose grad"),
        ({"method": "lime"}, "method=lime is not known"),
        ({"steps": 3}, "steps is no option"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
    ],
)
def test_what_cannot_be_explained_is_said(model, options, message):
    images = [np.zeros((9, 9), np.uint8)] if options.get("region") in ("hart", "background") else []
    with pytest.raises(FinetuneError, match=message):
        finetune.explain(model, images, **options)


def test_shapes_and_numbers_are_checked():
    net = network(Pixels(WEIGHTS))
    with pytest.raises(FinetuneError, match=r"regions=\[2\] must be numbers from 0 to 1"):
        seg_grad_cam(net, MAPS, torch.tensor([2]))
    with pytest.raises(FinetuneError, match="images must be"):
        seg_grad_cam(net, MAPS[0], torch.tensor([1]))
