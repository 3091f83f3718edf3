"""config=FILE: what a file holds is composed again unchanged, typed words win, and code is trusted where typed."""

import os
from pathlib import Path

import pytest
import yaml

from finetune.config import build, compose, saved
from finetune.config.overrides import CONFIG_DIRS
from finetune.errors import FinetuneError

CSV = ["data=csv", "data.table=t.csv", "data.label=[Mass,Nodule]", "data.patient=id", "data.uncertain.Mass=one"]
SEGMENT = ["task=segment", "data=folder", "data.root=x", "head=unet", "loss=dice_focal", "backbone=densenet121"]


def resolved(words: list[str]) -> dict:
    """The configuration of words."""
    with saved.as_choices(words) as chosen:
        return compose.plain(compose.compose(chosen))


def written(path: Path, config: dict) -> str:
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return f"config={path}"


@pytest.mark.parametrize(
    "words",
    [
        [*CSV, "optimizer=sgd", "transforms=none", "averaging=ema", "callbacks=early_stop", "backbone.weights=none"],
        SEGMENT,
        ["task=detect", "data=coco", "data.root=x", "head=retinanet", "neck=pyramid_p6p7", "find=[lr]", "debug=fast"],
        ["data=joint", "data.sources={chestxray: /a, chexpert: /b}", "transforms=randaugment", "loss=focal"],
    ],
)
def test_a_whole_configuration_is_composed_again_unchanged(words, tmp_path):
    first = resolved(words)
    assert resolved([written(tmp_path / "a b=c.yaml", first).replace("=", "='", 1) + "'"]) == first


def test_typed_words_win_over_the_file(tmp_path):
    file = written(tmp_path / "config.yaml", resolved([*CSV, "optimizer=sgd", "trainer.max_epochs=3", "mixing=mixup"]))
    config = resolved([file, "optimizer.lr=1e-3", "data.table=other.csv", "backbone=resnet18", "mixing=none", "seed=2"])
    assert config["optimizer"]["_target_"].endswith("SGD")
    assert config["optimizer"]["lr"] == 1e-3
    assert config["data"]["source"]["file"] == "other.csv"  # the reference of conf/data/csv.yaml lives again
    assert config["data"]["label"] == ["Mass", "Nodule"]
    assert (config["backbone"]["name"], config["mixing"], config["seed"]) == ("resnet18", {}, 2)
    assert config["trainer"]["max_epochs"] == 3
    preview = resolved([file, "job=preview", "optimizer=adamw"])
    assert preview["steps"] == 16
    assert preview["optimizer"]["_target_"].endswith("AdamW")
    assert "momentum" not in preview["optimizer"]
    assert os.environ.get(CONFIG_DIRS) is None


def test_a_partial_file_changes_what_it_holds(tmp_path):
    part = {"backbone": "resnet18", "optimizer": {"lr": 0.01}, "data": {"root": "x"}, "trainer": {"max_epochs": 2}}
    config = resolved([written(tmp_path / "part.yaml", part), "data=folder", "seed=1"])
    expected = resolved(
        ["data=folder", "data.root=x", "backbone=resnet18", "optimizer.lr=0.01", "trainer.max_epochs=2", "seed=1"]
    )
    assert config == expected


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("seed: 0\ntrust: [os]", [], r"made with code of os, which runs only where it is typed: add trust=\[os\]"),
        ("hydra: {callbacks: {x: {_target_: os.system}}}", [], "the key hydra is not read from a file"),
        ("defaults: [{override /data: csv}]", [], "the key defaults is not read"),
        (
            "loss: {_target_: x, defaults: ['/data@hydra.callbacks: config_file']}",
            [],
            "the key loss.defaults is not read",
        ),
        ("data: {root: '${oc.env:HOME}'}", [], "holds an interpolation"),
        ("sed: 1", [], r"sed=1: there is no such key. Did you mean seed"),
        ("backbone: resnet81", [], r"backbone=resnet81 is not known. Did you mean resnet18"),
        ("job: evaluate", [], "is the configuration of job=evaluate"),
        ("loss: {_target_: os.system, command: x}", ["data=folder", "data.root=x"], "os.system is not something"),
        ("optimizer: 3", [], "optimizer=3 must be a choice"),
        ("seed: 1", ["job=evaluate"], "job=evaluate takes its settings from its words"),
        ("seed: 1", ["experiment=chexnet"], "both set the whole"),
        ("seed: 1", ["config=x.yaml"], "a second file"),
        ("[1]", [], "not a configuration"),
    ],
)
def test_a_file_that_is_not_for_this_is_an_error(content, words, message, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(FinetuneError, match=message), saved.as_choices([f"config={file}", *words]) as chosen:
        build.check(compose.plain(compose.compose(chosen)))


def test_a_missing_file_and_a_launcher_of_other_processes(tmp_path):
    with pytest.raises(FinetuneError, match=r"nowhere\.yaml cannot be read"):
        resolved(["config=nowhere.yaml"])
    file = written(tmp_path / "config.yaml", {"seed": 1})
    with (
        pytest.raises(FinetuneError, match="other processes may not see the file"),
        saved.as_choices([file, "hydra/launcher=joblib"], sweep=True),
    ):
        pass
