"""Heat maps of networks small enough to work them out by hand, and what a network is like afterwards."""

import pytest
import torch

from finetune import list_models
from finetune.errors import FinetuneError
from finetune.explanations.maps import (
    METHODS,
    attributions,
    grad_cam,
    grad_cam_pp,
    heat_of,
    integrated_gradients,
    occlusion,
)
from finetune.network import NetworkSpec
from tests.explanations.nets import Pooled, Weighed, network

ZERO = torch.tensor([0])
MAPS = torch.tensor([[[[1.0, 0.0], [0.0, 3.0]], [[0.0, 2.0], [0.0, 0.0]]]])  # (1, 2, 2, 2)


def test_grad_cam_is_cam_over_the_number_of_places():
    heat = grad_cam(network(Pooled([[2.0, -1.0], [0.0, 4.0]])), MAPS, ZERO)
    # the gradient of the logit to each place of channel k is w_k / 4: 2/4 * channel 0 - 1/4 * channel 1, above 0
    torch.testing.assert_close(heat, torch.tensor([[[0.5, 0.0], [0.0, 1.5]]]))
    other = grad_cam(network(Pooled([[2.0, -1.0], [0.0, 4.0]])), MAPS, torch.tensor([1]))
    torch.testing.assert_close(other, torch.tensor([[[0.0, 2.0], [0.0, 0.0]]]))


def test_grad_cam_pp_by_its_formula():
    heat = grad_cam_pp(network(Pooled([[2.0, -1.0], [0.0, 4.0]])), MAPS, ZERO)
    # g = 0.5 at all 4 places, the channel sums to 4: alpha = 0.25 / (2 * 0.25 + 4 * 0.125) = 0.25, weight 4 * 0.25 / 2
    torch.testing.assert_close(heat, torch.tensor([[[0.5, 0.0], [0.0, 1.5]]]))
    # channel 1 alone, of weight 4: g = 1, sum 2: alpha = 1 / (2 + 2), weight = 4 / 4 = 1
    other = grad_cam_pp(network(Pooled([[2.0, -1.0], [0.0, 4.0]])), MAPS, torch.tensor([1]))
    torch.testing.assert_close(other, MAPS[:, 1])


def test_occlusion_is_the_fall_of_the_logit_by_squares():
    weights = torch.zeros(4, 4)
    weights[0, 0], weights[3, 3] = 2.0, -1.0
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 0, 0], image[0, 0, 3, 3] = 8.0, 8.0  # mean 1
    net = network(Weighed(weights))
    heat = occlusion(net, image, ZERO, patch=2, stride=2)
    expected = torch.zeros(1, 4, 4)
    expected[0, :2, :2] = 2 * (8 - 1)  # the other corner would raise the logit: 0
    torch.testing.assert_close(heat, expected)
    finer = occlusion(net, image, ZERO, patch=2, stride=1)
    assert finer[0, 0, 0] == 14  # covered by one square
    assert finer[0, 0, 1] == 7  # by two, of which one hides the corner
    assert finer[0, 1, 1] == 3.5  # by four
    last = occlusion(net, image, ZERO, patch=3, stride=3)  # squares begin at 0 and, for the border, at 1
    assert last[0, 0, 0] == 14
    assert (last[0, 3, :] == 0).all()


def test_integrated_gradients_by_hand_and_complete():
    weights = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    image = torch.tensor([[[[4.0, 2.0], [1.0, 1.0]]]])  # mean 2
    heat = integrated_gradients(network(Weighed(weights)), image, ZERO, steps=1)
    torch.testing.assert_close(heat, torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]))  # w * (x - 2), above 0
    square = network(Weighed(weights, power=2))
    parts = attributions(square, image, ZERO, steps=2)  # of a square the midpoint rule is exact
    torch.testing.assert_close(parts, weights * (image**2 - 4))
    black = attributions(square, image, ZERO, steps=2, baseline=torch.zeros_like(image))
    torch.testing.assert_close(black, weights * image**2)


def test_the_attributions_of_a_deep_network_sum_to_what_the_image_changes():
    torch.manual_seed(0)
    net = NetworkSpec("resnet20_cifar", 3, in_channels=1).build().eval()
    images, classes = torch.randn(2, 1, 16, 16), torch.tensor([0, 2])
    blank = images.mean((2, 3), keepdim=True).expand_as(images)
    with torch.no_grad():
        change = (net(images) - net(blank)).gather(1, classes[:, None])[:, 0]
    result = attributions(net, images, classes, steps=100).sum((1, 2, 3))
    torch.testing.assert_close(result, change, rtol=0.02, atol=0.02 * float(change.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_a_network_is_left_as_it_was(method):
    torch.manual_seed(0)
    net = NetworkSpec("resnet20_cifar", 2, in_channels=1, backbone_options={"memory": "lean"}).build().train()
    net.backbone.conv1.weight.requires_grad_(False)
    net.head.fc.weight.grad = torch.ones_like(net.head.fc.weight)
    next(net.backbone.children()).eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    wants = [parameter.requires_grad for parameter in net.parameters()]
    images = torch.randn(2, 1, 16, 16)
    heat = heat_of(net, images, torch.tensor([0, 1]), method)
    assert heat.shape == (2, 16, 16)
    assert heat.dtype == torch.float32
    assert heat.min() >= 0
    assert not heat.requires_grad
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == wants
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert (net.head.fc.weight.grad == 1).all()
    assert [p.grad for p in net.parameters() if p is not net.head.fc.weight] == [None] * (len(wants) - 1)
    with torch.inference_mode():  # as around a prediction
        torch.testing.assert_close(heat_of(net, images + 0, torch.tensor([0, 1]), method, images_at_once=1), heat)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet110_cifar", "resnetv2_50", "densenet121", "seresnet18"])
def test_any_family_has_a_map(name):
    assert name in list_models()
    torch.manual_seed(0)
    net = NetworkSpec(name, 2, head_options={"pool": "avgmax"}).build()
    images = torch.randn(1, 3, 64, 64)
    for of in (grad_cam, grad_cam_pp):
        heat = of(net, images, ZERO)
        assert heat.shape == (1, 64, 64)
        assert torch.isfinite(heat).all()


@pytest.mark.parametrize(("neck", "head"), [("narrow", "classify"), ("top_down", "every_map")])
@pytest.mark.parametrize("method", METHODS)
def test_a_neck_is_part_of_what_is_explained(own_parts, neck, head, method):
    torch.manual_seed(3)
    net = NetworkSpec("resnet20_cifar", 2, 1, head, neck=neck).build().eval()
    images, classes = torch.randn(1, 1, 16, 16), ZERO
    heat = heat_of(net, images, classes, method)
    assert heat.max() > 0
    if method == "grad_cam":  # by hand: at the backbone's last map, through neck and head
        maps = net.backbone.forward_stages(images)
        last = maps[-1].detach().requires_grad_()
        made = net.neck([*maps[:-1], last]) if neck == "top_down" else net.neck(last)
        (gradient,) = torch.autograd.grad(net.head(made)[0, 0], last)
        small = (gradient.mean((2, 3), keepdim=True) * last).sum(1).relu()
        whole = torch.nn.functional.interpolate(small[:, None], size=(16, 16), mode="bilinear")[:, 0]
        torch.testing.assert_close(heat, whole.detach())
    with torch.no_grad():
        for parameter in net.neck.parameters():
            parameter.zero_()
    assert heat_of(net, images, classes, method).max() == 0


def test_what_cannot_be_explained_is_said():
    net, image = network(Pooled([[1.0, 0.0]])), MAPS
    with pytest.raises(FinetuneError, match=r"classes=\[1\] must be numbers from 0 to 0"):
        grad_cam(net, image, torch.tensor([1]))
    with pytest.raises(FinetuneError, match="images must be"):
        grad_cam(net, image[0], ZERO)
    with pytest.raises(FinetuneError, match="patch=9 must be 1 to 2"):
        occlusion(net, image, ZERO, patch=9)
    with pytest.raises(FinetuneError, match=r"method=gradcam is not known. Did you mean grad_cam"):
        heat_of(net, image, ZERO, "gradcam")
    with pytest.raises(FinetuneError, match=r"method=occlusion takes no steps. It takes patch, stride"):
        heat_of(net, image, ZERO, "occlusion", steps=3)
