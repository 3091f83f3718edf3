"""config.json: timm, transformers and torchvision make the same network of a run, with the same logits and images."""

import json
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

from finetune.backbones.build import MODELS, TIMM_NAMES, build
from finetune.backbones.unfilled import Unfilled
from finetune.evaluation.classification.answers import ClassAnswers
from finetune.heads import ClassifyHead
from finetune.model_file import Model, load
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.runs.folder import RunFolder
from finetune.steps.assess import write_model
from finetune.timm_config import timm_config, why_not
from finetune.weights.fitting import first_conv
from finetune.weights.stored_names import keys_for, to_file, to_network

CLASSES = ["cat", "dog", "eel"]


def model_of(name, *, classes=CLASSES, channels=3, kind="multiclass", pool="avg", side=32, **more):
    """A model with random weights, whose norms do something."""
    options = {key: more.pop(key) for key in ("output_stride",) if key in more}
    spec = NetworkSpec(name, len(classes), channels, backbone_options=options, head_options={"pool": pool})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = spec.build()
        for key, value in network.state_dict().items():
            if "running" in key:
                value.uniform_(0.5, 1.5)
    preprocessing = Preprocessing(side, channels, (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels], **more)
    return Model(network, spec, preprocessing, ClassAnswers(classes, kind))


def saved(folder, model, said=None):
    write_model(RunFolder(folder), model, (said if said is not None else []).append)
    return load(folder / "model.safetensors")


def batch(model):
    images = torch.randn(2, model.spec.in_channels, 64, 64, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def image():
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(values).resize((90, 61), Image.Resampling.BICUBIC)


def test_every_name_of_timms_has_the_same_tensors_there():
    """That `build` has timm's names and shapes is tested with the backbones; here, that the file has those too."""
    assert set(timm.list_models()) & set(MODELS) == TIMM_NAMES
    with torch.device("meta"), Unfilled():
        for name in TIMM_NAMES:
            backbone = build(name, num_classes=3, in_channels=1)
            stored = backbone.state_dict()
            inside = to_network(stored, keys_for(name, "classify", None), name)
            assert {key.split(".")[0] for key in inside} == {"backbone", "head"}
            assert inside["head.fc.weight"].shape == (3, backbone.num_features)
            again = to_file(inside, "timm", name)
            assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in stored.items()}, name
            known = timm.get_pretrained_cfg(name)
            assert (first_conv(backbone), backbone.classifier_name) == (f"{known.first_conv}.weight", known.classifier)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {}),
        ("resnet18", {"channels": 1, "output_stride": 16, "pool": "max"}),
        ("resnetv2_50", {"pool": "avgmax"}),
        ("legacy_seresnet18", {}),
        ("densenet121", {}),
    ],
)
def test_timm_gives_the_same_logits_to_the_last_bit(tmp_path, name, settings):
    model = saved(tmp_path, model_of(name, **settings))
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    theirs = theirs.to(memory_format=torch.channels_last)  # as our prediction has it; else kernels add in another order
    with torch.inference_mode():
        assert torch.equal(theirs(batch(model)), model.network(batch(model)))
    for key, value in {"num_classes": 3, "label_names": CLASSES}.items():
        assert theirs.pretrained_cfg[key] == value


def test_timm_makes_a_network_of_other_classes_from_it(tmp_path):
    saved(tmp_path, model_of("resnet18"))
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7)
    assert other.fc.weight.shape == (7, 512)
    assert torch.equal(other.conv1.weight, load_file(tmp_path / "model.safetensors")["conv1.weight"])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_timms_transform_is_ours(image, fit, interpolation):
    """To the last bit, apart from the border of fit=pad: black here, of the mean colour there."""
    more = {"crop_fraction": 0.875} if fit == "crop" else {}
    model = model_of("resnet18", fit=fit, interpolation=interpolation, **more)
    config = timm_config(model.network, model.spec, model.preprocessing, model.answers)
    data = timm.data.resolve_data_config(pretrained_cfg=config["pretrained_cfg"])
    transform = timm.data.create_transform(**data, is_training=False)
    for rotated in (image, image.rotate(90, expand=True)):
        ours, theirs = model.preprocessing(np.asarray(rotated)), transform(rotated)
        if fit == "pad":
            place = model.preprocessing.placement(rotated.height, rotated.width)
            (height, width), top, left = place.scaled, place.top, place.left
            inside = (slice(None), slice(top, top + height), slice(left, left + width))
            assert theirs.abs().amax() < 5
            assert not torch.equal(ours, theirs)
            ours, theirs = ours[inside], theirs[inside]
        assert torch.equal(ours, theirs)


def test_a_gray_network_takes_gray_images_from_timm(image):
    """To the last bit of a gray image. A coloured one is made gray before the resizing there, after it here."""
    model = model_of("resnet18", channels=1)
    config = timm_config(model.network, model.spec, model.preprocessing, model.answers)
    data = timm.data.resolve_data_config(pretrained_cfg=config["pretrained_cfg"])
    gray = image.convert("L")
    theirs = timm.data.create_transform(**data, is_training=False)(gray)
    assert torch.equal(theirs, model.preprocessing(np.asarray(gray)))
    levels = (theirs - model.preprocessing(np.asarray(image))).abs() * 0.2 * 255  # std 0.2
    assert 0 < levels.max() < 1.5


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_the_pipeline_of_transformers_gives_our_names_and_probabilities(tmp_path, image, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        from transformers import pipeline

        model = saved(tmp_path, model_of("resnet18", kind=kind))
        image.save(tmp_path / "a.png")
        answers = pipeline("image-classification", model=str(tmp_path))(str(tmp_path / "a.png"))
    ours = model.predict([tmp_path / "a.png"]).iloc[0]
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(
        {name: ours[f"prob_{name}"] for name in CLASSES}, abs=1e-6
    )


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_torchvision_loads_the_file_as_it_is(tmp_path, name):
    model = saved(tmp_path, model_of(name))
    with Unfilled():
        theirs = torchvision.models.get_model(name, num_classes=3)
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    theirs = theirs.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(batch(model)), model.network(batch(model)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (NetworkSpec("resnet20_cifar", 3), "timm has no network resnet20_cifar"),
        (NetworkSpec("densenet264", 3), "timm has no network densenet264"),
        (NetworkSpec("resnet18", 3, head="fcn"), "timm has no network with head=fcn"),
        (NetworkSpec("resnet18", 3, neck="pyramid"), "timm has no network with neck=pyramid"),
        (
            NetworkSpec("densenet121", 3, backbone_options={"output_stride": 16}),
            "timm has no densenet121 with output_stride=16",
        ),
        (NetworkSpec("resnet18", 3, backbone_options={"output_stride": 16}), None),
    ],
)
def test_what_timm_cannot_build_is_said_in_words(spec, reason):
    assert why_not(spec) == reason


def test_a_head_of_another_class_under_the_same_name_is_no_plain_classifier(monkeypatch):
    from finetune import heads

    monkeypatch.setitem(heads.HEADS, "classify", lambda *arguments: ClassifyHead(*arguments))
    assert keys_for("resnet18", "classify", None) == "parts"


def test_a_config_never_stands_beside_another_model(tmp_path):
    said: list[str] = []
    saved(tmp_path, model_of("resnet18"), said)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "resnet18"
    assert said == []
    saved(tmp_path, model_of("resnet20_cifar", side=8), said)
    assert not (tmp_path / "config.json").exists()
    (sentence,) = said
    assert sentence.startswith("No config.json beside the model, as timm has no network resnet20_cifar: finetune.load")
