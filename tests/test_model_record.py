"""Format 3: the names of the tensors, and the labels, data and test vectors that `verify` checks."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.backbones import build
from finetune.errors import FinetuneError
from finetune.model_file import load
from finetune.model_record import Data, Labels, Record, Vectors, made_image
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.weights import load_into, own_file
from tests import package_cases as cases
from tests.test_timm_config import model_of


@pytest.fixture(scope="module")
def timms(tmp_path_factory):
    """A model stored under timm's names, with a pool that no backbone alone has."""
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    model = model_of("resnet18", pool="max")
    model.save(path)
    return model, path


def as_format_2(model, path):
    """The file as format 2 had it."""
    values = json.loads(cases.text_of(path.read_bytes()))
    del values["record"]
    old = path.with_name("old.safetensors")
    save_file(model.network.state_dict(), old, metadata=own_file.metadata(json.dumps({**values, "format": 2})))
    return old


def test_the_keys_are_timms_and_the_hash_is_that_of_older_formats(timms):
    model, path = timms
    stored = load_file(path)
    assert {"conv1.weight", "layer1.0.bn1.running_mean", "fc.weight", "fc.bias"} < set(stored)
    assert not [name for name in stored if name.startswith(("backbone.", "head."))]
    new, old = load(path), load(as_format_2(model, path))
    assert new.weights_hash == old.weights_hash == model.weights_hash == json.loads(
        cases.text_of(path.read_bytes())
    )["weights_hash"]  # fmt: skip
    images = [np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)]
    assert new.predict(images).equals(old.predict(images))
    with pytest.raises(FinetuneError, match=r"has no test vectors: its format is below 3.*load\(PATH\)\.save\(PATH\)"):
        old.verify()


def test_a_backbone_is_taken_from_both_formats(timms):
    model, path = timms
    for file, prefix in ((path, ""), (as_format_2(model, path), "head.")):
        net = build("resnet18", num_classes=3)  # its own classifier reads the mean, that of the file the maximum
        report = load_into(net, "resnet18", file)
        assert sorted(report.dropped) == [f"{prefix}fc.bias", f"{prefix}fc.weight"]
        assert report.preprocessing == model.preprocessing
        assert torch.equal(net.layer4[1].conv2.weight, model.network.backbone.layer4[1].conv2.weight)
        assert not torch.equal(net.fc.weight, model.network.head.fc.weight)


def test_the_classifier_is_taken_where_it_reads_the_same_features(tmp_path):
    model = model_of("resnet18")
    net = build("resnet18", num_classes=3)
    assert load_into(net, "resnet18", model.save(tmp_path / "a.safetensors")).dropped == []
    assert torch.equal(net.fc.weight, model.network.head.fc.weight)


def test_a_changed_tensor_or_name_of_timms_is_found(timms, tmp_path):
    data = timms[1].read_bytes()
    path = tmp_path / "model.safetensors"
    for changed, message in (
        (data[:-1] + bytes([data[-1] ^ 1]), "its tensors do not match the hash"),
        (data[:-400], "cannot be read as safetensors"),
        (data.replace(b"layer1.0.conv1.weight", b"layer1.1.conv1.weighx"), "does not fit its own header: missing"),
    ):
        path.write_bytes(changed)
        with pytest.raises(FinetuneError, match=message):
            load(path)
    values = json.loads(cases.text_of(data))
    for network in ({"backbone": "resnet20_cifar"}, {"head": "fcn"}, {"backbone": "x"}):
        values_now = {**values, "network": {**values["network"], **network}}
        path.write_bytes(cases.with_text(data, cases.as_text(values_now)))
        with pytest.raises(FinetuneError, match="keys=timm does not go with"):
            load(path)
        with pytest.raises(FinetuneError, match="keys=timm does not go with"):
            load_into(build("resnet18"), "resnet18", path)


def test_a_test_image_is_made_by_a_rule():
    values = hashlib.shake_256(b"finetune test image 0").digest(12)
    assert made_image(0, 2, 3).tobytes() == values
    assert made_image(0, 3, 1).tolist() == [list(values[row : row + 3]) for row in (0, 3, 6)]
    coarse = made_image(1, 16, 1)
    assert coarse.shape == (16, 16)
    assert coarse[0, 0] == coarse[1, 1] == hashlib.shake_256(b"finetune test image 1").digest(1)[0]
    assert made_image(1, 3, 3).shape == (3, 3, 3)


def test_the_stored_logits_are_those_of_the_network(tmp_path):
    model = cases.multilabel()
    again = load(model.save(tmp_path / "model.safetensors"))
    images = [made_image(number, 8, 1) for number in range(2)]
    logits = torch.tensor(again.record.vectors.outputs).numpy()
    np.testing.assert_allclose(again.answers.probabilities(logits), again.predict(images)[["prob_Mass", "prob_Nodule"]])


def test_verify_says_how_near_the_outputs_are(tmp_path):
    model = load(cases.multiclass().save(tmp_path / "model.safetensors"))
    result = model.verify()
    assert (result.images, result.of) == (2, "logits")
    assert result.difference <= result.tolerance / 100
    assert str(result).startswith("The logits of 2 test images differ by at most ")
    assert str(result).endswith("The file names no samples.csv.")
    model.network.train()
    assert model.verify().difference == result.difference  # and in eval mode
    assert model.network.training
    with torch.no_grad():
        model.network.head.fc.bias[0] += 0.1
    with pytest.raises(FinetuneError, match=r"does not give its stored outputs here: they differ by 0\.1, more than"):
        model.verify()
    assert load(model.save(tmp_path / "model.safetensors")).verify().difference <= result.tolerance / 100
    with pytest.raises(FinetuneError, match="has not been saved"):
        cases.multiclass().verify()


def test_the_samples_beside_the_file_must_be_those_of_its_fit(tmp_path):
    samples = tmp_path / "samples.csv"
    samples.write_text("sample,patient,split,digest\na.png,1,train,x\n")
    record = Record(labels=Labels("findings", {"uncertain": {"Edema": "one"}}), data=Data("0" * 64, sha(samples)))
    model = load(replace(cases.multilabel(), record=record).save(tmp_path / "model.safetensors"))
    assert (model.record.labels, model.record.data) == (record.labels, record.data)
    assert model.verify().samples == "The samples.csv beside it is that of its fit."
    samples.write_text("sample,patient,split,digest\na.png,1,test,x\n")
    with pytest.raises(FinetuneError, match=r"samples\.csv does not belong to the model beside it"):
        model.verify()
    samples.unlink()
    assert model.verify().samples == "There is no samples.csv beside the file."


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("head", "neck", "kind", "length"), [("fcn", None, "mean_logits", 3), ("retinanet", "pyramid", "features", 256)]
)
def test_masks_and_boxes_have_test_vectors_too(head, neck, kind, length):
    network = NetworkSpec("resnet18", 3, head=head, neck=neck).build().eval()
    vectors = Vectors.of_network(network, Preprocessing(64))
    assert (vectors.side, vectors.of, len(vectors.outputs[0])) == (64, kind, length)
    assert vectors.difference(network, Preprocessing(64)) <= vectors.tolerance / 100


def test_outputs_that_are_not_finite_leave_no_vectors(tmp_path):
    model = cases.multilabel()
    with torch.no_grad():
        model.network.head.fc.bias[0] = torch.inf
    assert load(model.save(tmp_path / "model.safetensors")).record.vectors is None


def test_loading_needs_no_hydra_lightning_timm_and_no_table(tmp_path):
    path = cases.multilabel().save(tmp_path / "model.safetensors")
    heavy = ("hydra", "lightning", "timm", "transformers", "pandas", "scipy.stats", "huggingface_hub", "torch._dynamo")
    code = f"import sys, finetune; finetune.load({str(path)!r}).verify(); print(sys.modules.keys() & set({heavy}))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_loading_draws_no_random_numbers(timms):
    state = torch.get_rng_state()
    load(timms[1])
    assert torch.equal(torch.get_rng_state(), state)
