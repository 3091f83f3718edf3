"""backbone.weights=RUN: the backbone of a run of this project, whatever its neck, head and classes, in both namings."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from finetune.backbones import build
from finetune.errors import FinetuneError
from finetune.evaluation.answers import answers_named
from finetune.files import MODEL, SCORES
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.weights import load_into, own_file, resolve, sources

NAME = "resnet20_cifar"
PREPROCESSING = Preprocessing(20, 1, (0.3,), (0.2,), fit="pad")


def write_run(folder, *, finished=True, **spec):
    """A run of a network with random weights, as far as loading its weights reads it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("job: fit\n")
    spec = NetworkSpec(NAME, 3, in_channels=1, **spec)
    network = spec.build()
    if finished:
        answers = answers_named("classify")(["a", "b", "c"], "multiclass")
        Model(network, spec, PREPROCESSING, answers).save(folder / MODEL)
        (folder / SCORES).write_text("{}")
    return network.backbone.state_dict()


def without_prefix(path):
    """The names that a plain classifier's file may have too: timm's, without `backbone.` and `head.`"""
    with safe_open(path, framework="pt") as file:
        text = json.loads(file.metadata()["finetune"])
        tensors = {name.removeprefix("backbone.").removeprefix("head."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text["weights_hash"] = own_file.tensors_hash(tensors)
    save_file(tensors, path, metadata=own_file.metadata(json.dumps(text)))
    return tensors


@pytest.mark.parametrize("naming", ["with prefix", "without"])
@pytest.mark.parametrize("num_classes", [0, 3, 5])
def test_a_run_gives_its_backbone_and_preprocessing(tmp_path, naming, num_classes):
    theirs = write_run(tmp_path / "run")
    if naming == "without":
        assert "fc.weight" in without_prefix(tmp_path / "run" / MODEL)
    (tmp_path / "latest").symlink_to(tmp_path / "run")
    net = build(NAME, num_classes=num_classes, in_channels=1)
    report = load_into(net, NAME, str(tmp_path / "latest"))
    assert all(torch.equal(value, theirs[key]) for key, value in net.state_dict().items() if not key.startswith("fc."))
    assert report.preprocessing == PREPROCESSING
    assert report.source == str(tmp_path / "run" / MODEL)  # not that of outputs/latest, which moves on
    assert report.prefix == ("backbone." if naming == "with prefix" else "")
    taken = naming == "without" and num_classes == 3  # the classifier's name is that of the network then
    head = {"with prefix": ["head.fc.bias", "head.fc.weight"], "without": ["fc.bias", "fc.weight"]}[naming]
    assert sorted(report.dropped) == ([] if taken else head)
    assert load_into(net, NAME, tmp_path / "run" / MODEL).dropped == report.dropped  # the file alone is the same


def test_of_a_run_with_a_neck_and_another_head_the_backbone_is_used(tmp_path, own_parts):
    theirs = write_run(tmp_path / "run", neck="top_down", head="every_map")
    net = build(NAME, num_classes=0)  # and colour images
    report = load_into(net, NAME, tmp_path / "run")
    assert {name.partition(".")[0] for name in report.dropped} == {"neck", "head"}
    assert report.adapted == ["conv1.weight"]
    assert torch.equal(net.layer3[2].bn2.bias, theirs["layer3.2.bn2.bias"])
    assert report.preprocessing == PREPROCESSING.with_channels(3)


def test_a_bare_name_may_be_a_run(tmp_path, monkeypatch):
    write_run(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert resolve(NAME, "mine").path == tmp_path / "mine" / MODEL
    assert not sources.may_fill_parts("mine")


def test_folders_that_are_no_finished_fit_say_what_to_do(tmp_path):
    write_run(tmp_path / "stopped", finished=False)
    (tmp_path / "stopped" / "checkpoints").mkdir()
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / SCORES).write_text("{}")
    (tmp_path / "images").mkdir()
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / MODEL).write_text("")
    for name, message in {
        "stopped": r"is not a finished run\. Go on with it by `python -m finetune resume=.*/stopped`, or name another",
        "evaluation": r"is a run without model\.safetensors",
        "images": r"is a folder, and no run: it has no scores\.json\. Name a run folder",
        "export": r"Name the file: .*export/model\.safetensors",
        "nowhere": "does not exist",
    }.items():
        with pytest.raises(FinetuneError, match=message):
            resolve(NAME, str(tmp_path / name))
    (tmp_path / "stopped" / "checkpoints" / "best.ckpt").write_text("")
    with pytest.raises(FinetuneError, match=r"take its best epoch so far \(.*best\.ckpt\)"):
        resolve(NAME, tmp_path / "stopped")


def test_a_run_of_another_backbone_is_named(tmp_path):
    write_run(tmp_path / "run")
    for name in ("resnet32_cifar", "plain20_cifar"):  # the second has the same tensors
        with pytest.raises(FinetuneError, match=f"are of resnet20_cifar, and the backbone is {name}"):
            load_into(build(name, in_channels=1), name, tmp_path / "run")
