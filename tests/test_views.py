"""Views of an image at test time, and the mean of their outputs."""

import numpy as np
import pytest
import torch
from torch import nn

from finetune import model_file, views
from finetune.errors import FinetuneError
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.evaluation.segmentation.answers import SegmentAnswers
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing

X = torch.arange(64.0).view(1, 1, 8, 8)


def corner(images):  # (N, 1, H, W) -> (N, 1)
    return images[:, :, 0, 0]


def test_flip_by_hand():
    assert views.averaged(corner, X, ["flip"]).item() == (0 + 7) / 2
    assert views.averaged(corner, X, []).item() == 0
    assert views.averaged(corner, X, ["flip"], torch.tensor([[5.0]])).item() == (5 + 7) / 2


def test_shifts_repeat_the_border():
    """1 / 32 of 32 pixels is one: up, down, left and right of a ramp of rows."""
    rows = torch.arange(32.0).view(1, 1, 32, 1).expand(1, 1, 32, 32)
    assert views.averaged(corner, rows, ["shifts"]).item() == pytest.approx((0 + 1 + 0 + 0 + 0) / 5)
    assert torch.equal(views.shift(rows, 1, 0)[0, 0, :, 0], torch.tensor([0.0, *range(31)]))


def test_crops_have_the_full_size_and_a_constant_stays():
    for view in views.VIEWS["crops"]:
        assert view.apply(X).shape == X.shape
        torch.testing.assert_close(view.apply(torch.ones(2, 3, 16, 16)), torch.ones(2, 3, 16, 16))
    centre = views.crop(torch.arange(16.0).expand(1, 1, 16, 16), 0.5, 0.5)
    assert centre.mean().item() == pytest.approx(7.5)


def test_names_combine():
    calls = []

    def count(images):
        calls.append(len(images))
        return corner(images)

    views.averaged(count, X, ["flip", "shifts", "crops"])
    assert len(calls) == views.number_of_views(["flip", "shifts", "crops"]) == 2 * 5 * 6


def test_maps_are_moved_back():
    """A network that marks the left half answers the same for both views only if its answer is flipped back."""
    torch.testing.assert_close(views.averaged(lambda images: images * 2, X, ["flip"]), X * 2)


def test_the_mask_of_a_mirrored_image_is_the_mirrored_mask():
    network = NetworkSpec("resnet18", 2, in_channels=1, head="fcn").build().eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        answer, mirrored = (views.averaged(network, x, ["flip"]) for x in (images, images.flip(-1)))
    torch.testing.assert_close(mirrored, answer.flip(-1))


@pytest.mark.parametrize(
    ("names", "gives", "message"),
    [
        (["rotate"], "classes", "evaluation.tta=rotate is not known. Choose from flip, shifts, crops"),
        (["flip", "flip"], "classes", "names a view twice"),
        ("flip", "classes", r"evaluation.tta=flip must be a list: \[flip\]"),
        (["flip"], "detections", "boxes of several views are not merged"),
        (["flip", "crops"], "regions", r"masks of crops cannot be moved back. Use \[flip\]"),
    ],
)
def test_views_that_do_not_go_are_named(names, gives, message):
    with pytest.raises(FinetuneError, match=message):
        views.check(names, gives)


def made(tta, head="classify", backbone="resnet20_cifar", answers=None):
    torch.manual_seed(0)
    spec = NetworkSpec(backbone, 2, in_channels=1, head=head)
    network = spec.build().eval()
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
    preprocessing = Preprocessing(image_size=32, in_channels=1, mean=(0.5,), std=(0.25,))
    answers = answers or ClassAnswers(["a", "b"], "multilabel")
    return Model(network, spec, preprocessing, answers, tta=tta)


def test_they_travel_in_the_model_file(tmp_path):
    images = list(np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8))
    model = made(("flip",))
    loaded = model_file.load(model.save(tmp_path / "model.safetensors"))
    assert loaded.tta == ("flip",)
    assert "tta=flip" in repr(loaded)
    probabilities = loaded.predict(images)["prob_a"]
    np.testing.assert_allclose(probabilities, model.predict(images)["prob_a"], rtol=1e-5)
    mirrored = made(()).predict([image[:, ::-1] for image in images])["prob_a"]
    plain = made(()).predict(images)["prob_a"]
    odds = np.sqrt(plain / (1 - plain) * mirrored / (1 - mirrored))  # the mean of the logits
    np.testing.assert_allclose(probabilities, odds / (1 + odds), rtol=1e-4)
    assert not np.allclose(probabilities, plain)


def test_without_views_a_file_does_not_mention_them(tmp_path):
    path = made(()).save(tmp_path / "model.safetensors")
    assert b"tta" not in path.read_bytes()[:20_000]
    assert model_file.load(path).tta == ()


def test_a_file_whose_views_do_not_go_with_its_head_is_refused(tmp_path):
    answers = SegmentAnswers(["background", "lung"], False)
    path = made(("shifts",), "fcn", "resnet18", answers).save(tmp_path / "model.safetensors")
    with pytest.raises(FinetuneError, match="masks of shifts cannot be moved back"):
        model_file.load(path)
