"""The scores of a detector's boxes, their gradients, and the maps made of them."""

import numpy as np
import pytest
import torch

import finetune
from finetune.errors import FinetuneError
from finetune.evaluation.detection.answers import DetectAnswers
from finetune.explanations.boxes import box_maps, detect, sources_of
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing

SIDE = 48
HEADS = {
    "faster_rcnn": {"hidden": 16, "rpn_top_n_test": 40},
    "retinanet": {"score_thresh": 0.0, "detections_per_img": 40},
}


@pytest.fixture(scope="module", params=HEADS)
def model(request) -> Model:
    torch.manual_seed(2)
    neck = {"channels": 8, "finest": 2}
    spec = NetworkSpec(
        "resnet20_cifar", 2, 1, request.param, {}, HEADS[request.param], neck="pyramid", neck_options=neck
    )
    preprocessing = Preprocessing(image_size=SIDE, in_channels=1, mean=(0.5,), std=(0.25,), fit="pad")
    net = spec.build().eval()
    for name, parameter in net.head.named_parameters():  # scores that differ
        if "cls" in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return Model(net, spec, preprocessing, DetectAnswers(["Mass", "Nodule"]))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))


def test_log_odds_are_those_of_the_detections_scores(model, images):
    for number, (detections, sources) in enumerate(detect(model.network, images)):
        assert len(detections.scores) == len(sources) > 5
        same = images[number : number + 1].expand(len(sources), -1, -1, -1)
        maps = box_maps(model.network, same, detections.labels, sources)
        torch.testing.assert_close(maps.log_odds.sigmoid(), detections.scores, rtol=0, atol=1e-5)
        assert maps.heat.min() >= 0
        assert maps.heat[~maps.reach].max() <= 1e-5 * maps.heat.max()
        assert (maps.positions > 0).all()


def test_maps_are_the_gradient_of_the_detectors_own_score(model, images):
    """Through the whole head with its suppression: d score = score (1 - score) d log odds."""
    net = model.network
    with torch.no_grad():
        stages = net.backbone.forward_stages(images[:1])
    *before, last = stages
    last = last.detach().requires_grad_()
    (detections,) = net.head(net.neck([*before, last]), SIDE)
    ((_, sources),) = detect(net, images[:1])
    for number in (0, 4):
        score = detections.scores[number]
        (gradient,) = torch.autograd.grad(score, last, retain_graph=True)
        small = (gradient * last).sum(1).relu() / (score * (1 - score))
        whole = torch.nn.functional.interpolate(small[:, None], size=(SIDE, SIDE), mode="bilinear")[:, 0].detach()
        maps = box_maps(net, images[:1], detections.labels[number : number + 1], sources[number : number + 1])
        torch.testing.assert_close(maps.heat, whole, rtol=1e-3, atol=1e-5)


def test_sources_of_known_boxes_do_not_depend_on_the_batch(model, images):
    together = detect(model.network, images)
    for number, (detections, sources) in enumerate(together):
        some = type(detections)(*(part[2:5] for part in detections))
        (alone,) = sources_of(model.network, images[number : number + 1], [some])
        torch.testing.assert_close(alone, sources[2:5], rtol=1e-4, atol=1e-3)


def test_a_network_is_left_as_it_was(model, images):
    net = model.network.train()
    modes = [module.training for module in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    ((detections, sources), _) = detect(net, images)
    box_maps(net, images[:1], detections.labels[:1], sources[:1])
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    net.eval()


def test_explain_of_a_detector(model):
    samples = [np.random.default_rng(i).integers(0, 256, (60, 40), dtype=np.uint8) for i in range(2)]
    maps = finetune.explain(model, samples, boxes=2)
    assert maps.names == ["0", "0", "1", "1"]
    assert (np.diff(maps.scores.reshape(2, 2)) <= 0).all()
    table = model.predict(samples)
    best = table[["score_Mass", "score_Nodule"]].max(axis=1)
    np.testing.assert_allclose(maps.scores[::2], best, atol=1e-5)
    left, top, right, bottom = maps.stored_box(0)
    assert 0 <= left < right <= 40
    assert 0 <= top < bottom <= 60
    assert maps.stored_heat(0).shape == (60, 40)
    assert maps.overlay(0).width == 2 * maps.overlay(0).height
    about = maps.to_dict(1)
    assert about["score"] == pytest.approx(float(maps.scores[1]))
    assert about["inside"] is None or 0 <= about["inside"] <= 1
    assert set(finetune.explain(model, samples, finding="Nodule").explained) == {"Nodule"}
    nothing = finetune.explain(model, [])
    assert len(nothing) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finding": "Nodul"}, "finding=Nodul is not known. Did you mean Nodule"),
        ({"region": "Nodule"}, "region=Nodule: of task=detect, finding= says what is explained"),
        ({"method": "grad_cam_pp"}, "method=grad_cam_pp explains the classes of whole images; of task=detect"),
        ({"boxes": 0}, "boxes=0 must be 1 or more"),
        ({"patch": 3}, "patch is no option"),
    ],
)
def test_what_cannot_be_explained_is_said(model, options, message):
    with pytest.raises(FinetuneError, match=message):
        finetune.explain(model, [np.zeros((9, 9), np.uint8)], **options)
    net = model.network
    with pytest.raises(FinetuneError, match=r"labels=\[2\] must be numbers from 0 to 1"):
        box_maps(net, torch.zeros(1, 1, SIDE, SIDE), torch.tensor([2]), torch.zeros(1, 4))
    with pytest.raises(FinetuneError, match="images must be"):
        box_maps(net, torch.zeros(1, SIDE, SIDE), torch.tensor([1]), torch.zeros(1, 4))


def test_a_head_without_scores_of_candidates_is_named():
    net = NetworkSpec("resnet20_cifar", 2, 1).build()
    with pytest.raises(FinetuneError, match="cannot be explained: it has no sources and log_odds"):
        detect(net, torch.zeros(1, 1, 16, 16))
