"""The model file: what is saved comes back, and a damaged or hostile one ends in one line before anything is built."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from finetune.backbones import build
from finetune.errors import FinetuneError
from finetune.heads import NECKS
from finetune.model_file import load
from finetune.weights import load_into, own_file
from tests import package_cases as cases

MAKERS = {"multilabel": cases.multilabel, "multiclass": cases.multiclass}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Per kind the model and the bytes of its file."""
    folder = tmp_path_factory.mktemp("models")
    models = {kind: make() for kind, make in MAKERS.items()}
    return {kind: (model, model.save(folder / f"{kind}.safetensors").read_bytes()) for kind, model in models.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("changed") / "model.safetensors"


def loaded(path, data):
    path.write_bytes(data)
    return load(path)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_saved_comes_back_with_its_answers(saved, place, kind):
    model, data = saved[kind]
    again = loaded(place, data)
    for name in ("spec", "classes", "preprocessing", "provenance"):
        assert getattr(again, name) == getattr(model, name)
    assert again.answers == model.answers
    assert again.weights_hash == model.weights_hash
    images = [np.random.default_rng(i).integers(0, 256, (9, 8), np.uint8) for i in range(3)]
    pd.testing.assert_frame_equal(again.predict(images), model.predict(images), rtol=1e-5)
    twice = again.save(place).read_bytes()
    assert json.loads(cases.text_of(twice)) == json.loads(cases.text_of(data))
    assert cases.parts(twice)[1] == cases.parts(data)[1]


def test_a_neck_is_saved_and_a_file_without_one_does_not_mention_it(saved, place, own_parts):
    model, data = saved["multiclass"]
    assert list(json.loads(cases.text_of(data))["network"]) == [
        "backbone", "num_classes", "in_channels", "head", "backbone_options", "head_options",
    ]  # fmt: skip
    spec = replace(model.spec, neck="top_down", neck_options={"width": 4}, head="every_map")
    with_neck = replace(model, spec=spec, network=spec.build())
    again = loaded(place, with_neck.save(place).read_bytes())
    assert again.spec == spec
    images = [np.random.default_rng(i).integers(0, 256, (9, 8, 3), np.uint8) for i in range(2)]
    pd.testing.assert_frame_equal(again.predict(images), with_neck.predict(images), rtol=1e-5)
    assert not again.predict(images)["prob_a"].equals(model.predict(images)["prob_a"])
    backbone = build(spec.backbone, num_classes=0)  # as weights: the backbone alone, all else is named
    assert {name.split(".")[0] for name in load_into(backbone, spec.backbone, str(place)).dropped} == {"neck", "head"}
    NECKS.pop("top_down")  # a process that has not imported the module
    with pytest.raises(FinetuneError, match=r"neck=top_down is not known.* trust=\[MODULE\]"):
        load(place)


@pytest.mark.parametrize("kind", MAKERS)
def test_any_change_to_a_file_ends_in_one_line_or_changes_nothing(saved, place, kind):
    model, data = saved[kind]
    ends = {cases.ending(*cases.made(seed, data), model, place) for seed in range(60)}
    assert "refused" in ends


def edited(data, edit):
    values = json.loads(cases.text_of(data))
    edit(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v["preprocessing"].update(mean=[0.51]),
        lambda v: v["calibration"]["curves"]["Mass"].update(slope=0.81),
        lambda v: v["classes"].reverse(),
        lambda v: v["operating_points"]["screen"]["thresholds"].update(Mass=0.31),
        lambda v: v["conformal"]["cuts"]["Nodule"].update(yes=0.31),
        lambda v: v["provenance"].update(command="another"),
    ],
)
def test_one_digit_of_the_header_is_covered_by_the_hash(saved, place, edit):
    text = edited(saved["multilabel"][1], edit)
    with pytest.raises(FinetuneError, match="is damaged: its header does not match the hash of the header"):
        loaded(place, cases.with_text(saved["multilabel"][1], text, hashed=False))


def test_one_bit_of_the_tensors_is_covered_by_the_hash(saved, place):
    data = saved["multilabel"][1]
    with pytest.raises(FinetuneError, match="its tensors do not match the hash in its header"):
        loaded(place, data[:-1] + bytes([data[-1] ^ 1]))


def test_a_damaged_model_is_no_source_of_weights_either(saved, tmp_path):
    data = saved["multilabel"][1]
    net, path = build("resnet20_cifar", num_classes=0, in_channels=1), tmp_path / "model.safetensors"
    path.write_bytes(data)
    assert load_into(net, "resnet20_cifar", path).preprocessing == saved["multilabel"][0].preprocessing
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FinetuneError, match=r"weights=.* is damaged: its tensors"):
        load_into(net, "resnet20_cifar", path)
    text = edited(data, lambda v: v["preprocessing"].update(mean=[0.51]))
    path.write_bytes(cases.with_text(data, text, hashed=False))
    with pytest.raises(FinetuneError, match=r"weights=.* is damaged: its header"):
        load_into(net, "resnet20_cifar", path)


def test_a_file_of_format_1_loads_and_says_once_that_its_header_has_no_hash(saved, place):
    model, data = saved["multilabel"]
    header, body = cases.parts(data)
    values = json.loads(cases.text_of(data))
    for key in ("selective", "conformal"):
        del values[key]  # as the first files had it
    header["__metadata__"] = {"finetune": json.dumps({**values, "format": 1})}
    with pytest.warns(UserWarning, match="is of format 1: no hash covers its preprocessing"):
        old = loaded(place, cases.joined(header, body))
    assert (old.classes, old.answers.calibration, old.answers.conformal) == (
        model.classes,
        model.answers.calibration,
        None,
    )
    header["__metadata__"] = {"finetune": json.dumps({**values, "format": 2})}
    with pytest.raises(FinetuneError, match="the hash of its header is missing"):
        loaded(place, cases.joined(header, body))


HOSTILE = {
    "no JSON": (lambda v: "x", "not this project's: no JSON"),
    "a list": (lambda v: [], "input should be an object"),
    "deep": (lambda v: {**v, "provenance": cases.DEEP}, "recursion limit"),
    "no format": (lambda v: {k: x for k, x in v.items() if k != "format"}, "format: is missing"),
    "format null": (lambda v: {**v, "format": None}, "format: None, input should be a valid integer"),
    "format text": (lambda v: {**v, "format": "2"}, "format: '2', input should be a valid integer"),
    "format 0": (lambda v: {**v, "format": 0}, "format=0 must lie between 1 and"),
    "later": (
        lambda v: {**v, "format": 4, "network": 1},
        r"has format 4, this program reads up to 3\. Install a newer",
    ),
    "no network": (lambda v: {k: x for k, x in v.items() if k != "network"}, "network: is missing"),
    "unknown key": (lambda v: {**v, "width": 9}, "width: there is no such key"),
    "a billion classes": (
        lambda v: {**v, "network": {**v["network"], "num_classes": 10**9}},
        "num_classes=1000000000, but 2",
    ),
    "channels": (lambda v: {**v, "network": {**v["network"], "in_channels": 10**9}}, "in_channels=1000000000, but"),
    "half a class": (
        lambda v: {**v, "network": {**v["network"], "num_classes": 2.5}},
        "num_classes: 2.5, input should be",
    ),
    "backbone": (
        lambda v: {**v, "network": {**v["network"], "backbone": "os.system"}},
        "backbone=os.system is not known",
    ),
    "option": (
        lambda v: {**v, "network": {**v["network"], "head_options": {"dropout": "x"}}},
        "its network cannot be built",
    ),
    "another network": (
        lambda v: {**v, "network": {**v["network"], "backbone": "resnet56_cifar"}},
        "does not fit its own header: missing",
    ),
    "another width": (
        lambda v: {**v, "network": {**v["network"], "head_options": {"pool": "avgmax"}}},
        r"head\.fc\.weight is F32 \(2, 64\), not F32 \(2, 128\)",
    ),
    "class twice": (lambda v: {**v, "classes": ["a", "a"]}, "classes must be names, each once"),
    "size": (lambda v: {**v, "preprocessing": {**v["preprocessing"], "image_size": 10**6}}, "more than 8192 pixels"),
    "slope": (
        lambda v: {**v, "calibration": {**v["calibration"], "curves": {"Mass": {"slope": "1", "offset": 0.0}}}},
        r"calibration\.curves\.Mass\.slope",
    ),
    "other class": (
        lambda v: {**v, "calibration": {**v["calibration"], "curves": {"x": {"slope": 1.0, "offset": 0.0}}}},
        r"calibration has curves of \['x'\]",
    ),
    "calibration of others": (
        lambda v: {**v, "calibration": {**v["calibration"], "classes": ["Mass", "x"]}},
        "calibration is of other classes",
    ),
    "threshold": (
        lambda v: {**v, "operating_points": {"a": {"thresholds": {"Mass": 2.0}}}},
        "thresholds.Mass=2.0 must lie between 0 and 1",
    ),
    "many wrong values": (lambda v: {**v, "classes": [1] * 1000}, "1,000 values in it are invalid"),
    "very many values": (lambda v: {**v, "classes": [1] * 500_001}, "it holds more values than the limit of 500,000"),
    "long": (lambda v: {**v, "provenance": {"x": "x" * 2**24}}, "characters long, more than"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_named_in_one_line_though_its_hash_is_right(saved, place, name):
    change, message = HOSTILE[name]
    data = saved["multilabel"][1]
    changed = change(json.loads(cases.text_of(data)))
    text = changed if isinstance(changed, str) else cases.as_text(changed)
    with pytest.raises(FinetuneError, match=message) as error:
        loaded(place, cases.with_text(data, text))
    assert str(error.value).startswith(f"model={place}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 2**20, 10**8, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_a_mad_length_is_not_read(saved, place, length):
    data = saved["multilabel"][1]
    with pytest.raises(FinetuneError, match=r"model=.* cannot be read as safetensors") as error:
        loaded(place, length.to_bytes(8, "little") + data[8:])
    assert "\n" not in str(error.value)


def test_tensors_of_another_type_are_refused_before_they_are_read(saved, place):
    model = saved["multilabel"][0]
    tensors = {name: value.double() if value.ndim else value for name, value in model.network.state_dict().items()}
    save_file(tensors, place, metadata=own_file.metadata(cases.text_of(saved["multilabel"][1])))
    with pytest.raises(FinetuneError, match=r"is F64 \(.*\), not F32"):
        load(place)


def test_a_model_trained_in_16_bits_is_stored_in_32(place):
    model = cases.multilabel()
    model.network.bfloat16()
    again = load(model.save(place))
    assert again.network.head.fc.weight.dtype == torch.float32
    assert torch.equal(again.network.head.fc.weight, model.network.head.fc.weight.float())


def test_loading_leaves_no_warning(saved, place):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded(place, saved["multiclass"][1])


def test_a_model_shows_what_it_is(saved, place):
    text = repr(loaded(place, saved["multilabel"][1]))
    assert text.startswith("Model(resnet20_cifar; 8 px; in_channels=1; multilabel: Mass, Nodule; calibration; ")
    assert str(place) in text
    assert len(text) < 250


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("a.png", r"brackets, predict\(\['a\.png'\]\)"),
        (cases.IMAGE, r"brackets, predict\(\[image\]\)"),
        (Image.fromarray(cases.IMAGE), r"brackets, predict\(\[image\]\)"),
        (torch.zeros(2, 1, 8, 8), r"no tensors \(torch\.float32 \(2, 1, 8, 8\)\).* model\.network\(batch\)"),
        ([torch.zeros(8, 8, dtype=torch.uint8)], r"paths, PIL images or uint8 arrays .* no tensors"),
    ],
)
def test_what_predict_does_not_take_is_answered_by_what_it_takes(saved, images, message):
    with pytest.raises(FinetuneError, match=message):
        saved["multilabel"][0].predict(images)


def test_a_model_that_was_not_saved_knows_nothing_of_its_images():
    assert cases.multilabel().feature_gaussian == (None, "the model has not been saved")
