"""Settings are typed: the classes have the keys of conf/, older runs still parse, and what is wrong is one line."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_class
from pydantic import ValidationError

from finetune.config import build, compose, data_targets, settings
from finetune.config.settings import (
    JOBS,
    BackboneSettings,
    CallbackSettings,
    DataSettings,
    FitSettings,
    HeadSettings,
    PredictSettings,
    Settings,
    TrainerSettings,
    parse,
)
from finetune.errors import FinetuneError

CONF = compose.conf_dir()
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def composed(*words: str) -> dict[str, Any]:
    return compose.plain(compose.compose(list(words)))


def keys(group: Any) -> set[str]:
    return set(group.model_fields) - {"options", "resolved"}


def of_yaml(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / name).read_text())


@pytest.mark.parametrize("job", JOBS)
def test_a_job_has_the_keys_of_its_file(job):
    values = of_yaml(f"job/{job}.yaml")
    groups = {name.lstrip("/") for entry in values.pop("defaults", []) if isinstance(entry, dict) for name in entry}
    own = (set(values) | groups) - {"hydra"}
    assert own - {"job"} == keys(JOBS[job]) - keys(Settings)


def test_a_group_has_the_keys_of_its_file():
    shared = of_yaml("data/_base.yaml")
    assert keys(DataSettings) == {*shared, "name", "source"}
    assert keys(settings.AuditSettings) == set(shared["audit"])
    assert keys(TrainerSettings) == set(of_yaml("trainer/default.yaml"))
    assert keys(CallbackSettings) == set(of_yaml("callbacks/default.yaml"))
    assert keys(BackboneSettings) <= {*of_yaml("backbone/_base.yaml"), "name"}
    assert keys(HeadSettings) == {"name"}
    top = of_yaml("config.yaml")
    groups = {next(iter(entry)) for entry in top["defaults"] if isinstance(entry, dict)}
    groups = {group for group in groups if " " not in group} - {"experiment", "debug"}
    assert keys(Settings) == groups | set(top) - {"defaults", "hydra"}


def test_every_setting_is_where_an_attribute_says():
    config = composed("data=csv", "data.table=t.csv", "data.label=[a,b]", "trainer.max_epochs=3")
    parsed = parse(config)
    assert isinstance(parsed, FitSettings)
    assert (parsed.data.batch_size, parsed.data.audit.on_leak, parsed.trainer.max_epochs) == (32, "stop", 3)
    assert parsed.data.options["label"] == ["a", "b"]
    assert "label" not in config["data"]["source"]  # written once
    assert parsed.data.arguments == config["data"] | {
        "audit": parsed.data.audit,
        "progressive": parsed.data.progressive,
    }
    assert parsed.trainer.arguments == config["trainer"]
    assert parsed.resolved == config
    with pytest.raises(ValidationError, match="frozen"):
        parsed.data.batch_size = 4


def test_a_source_takes_its_options_by_name_and_what_its_node_says_wins():
    config = composed("data=csv", "data.table=t.csv", "data.label=a", "data.suffix=.png")
    source = build.source(parse(config))
    assert (source.file, source.label, source.suffix, source.path) == ("t.csv", "a", ".png", "path")
    config["data"]["source"] |= {"label": "b", "suffix": ""}  # as in the config.yaml of older runs
    source = build.source(parse(config))
    assert (source.label, source.suffix) == ("b", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.batch_size=null"], r"^data.batch_size=null must be given a value \(int\)\.$"),
        (["data.audit.near=1"], r"^data.audit.near=1 must be true or false\.$"),
        (["data.audit.near=3"], r"^data.audit.near=3 must be true or false\.$"),
        (
            ["data.audit.on_leak=stp"],
            r"^data.audit.on_leak=stp is not known. Did you mean stop\? Choose from stop",
        ),
        (["data.val_fraction=1.5"], r"^data.val_fraction=1.5 must lie between 0 and 1\.$"),
        (["data.val_fraction=0.5", "data.test_fraction=0.5"], "leave nothing to train on"),
        (["data.fold=x"], r"^data.fold=x should be a valid integer"),
        (["data.sampler=balanced2"], r"^data.sampler=balanced2 is not known. Did you mean balanced\?"),
        (["data.findings=3"], r"^data.findings=3 should be a valid list"),
        (["trainer.max_epochs=null"], r"^trainer.max_epochs=null must be given a value \(int\)\.$"),
        (["seed=x"], r"^seed=x should be a valid integer"),
        (["job=preview", "steps=0"], r"^steps=0 must be 1 or more\.$"),
        (["job=evaluate", "split=tst"], r"^split=tst is not known. Did you mean test\?"),
        (["job=evaluate", "image=3"], r"^image=3 should be a valid string"),
        (["job=explain", "worst=-1"], r"^worst=-1 must be 0 or more\.$"),
        (["job=explain", "sanity=maybe"], r"^sanity=maybe must be true or false\.$"),
        (["job=predict", "input=x", "batch_size=0"], r"^batch_size=0 must be 1 or more\.$"),
    ],
)
def test_what_is_wrong_names_key_and_value(words, message):
    with pytest.raises(FinetuneError, match=message):
        build.check(composed(*words)) if not words[0].startswith("job=") else parse(composed(*words))


def test_a_data_set_without_boxes_or_masks_says_so():
    masks = "Masks are in data=coco, data=csv, data=folder (docs/dense_data.md)."
    boxes = "Boxes are in data=chestxray, data=coco, data=csv, data=rsna, data=vindr, data=voc, data=yolo (docs"
    for words, message in (
        (["data=kermany", "data.target=mask"], f"mask: data=kermany gives classes only. {masks}"),
        (["data=rsna", "task=segment"], f"mask: data=rsna gives classes and boxes. {masks}"),
        (["data=voc", "task=segment"], f"mask: data=voc gives boxes only. {masks}"),
        (["data=folder", "task=detect"], f"boxes: data=folder gives classes and masks. {boxes}"),
        (["data=kermany", "task=detect"], f"boxes: data=kermany gives classes only. {boxes}"),
    ):
        with pytest.raises(FinetuneError, match="^" + re.escape(f"data.target={message}")):
            build.check(compose.plain(compose.compose(["data.root=x", *words])))
    settings = build.check(compose.plain(compose.compose(["data=coco", "data.root=x", "data.on_bad=skip"])))
    source = build.source(settings)
    assert (source.target, source.on_bad, source.root) == ("boxes", "skip", "x")


def test_a_source_that_takes_a_target_declares_those_it_has():
    for name in compose.choices()["data"]:
        node = yaml.safe_load(compose.data_file(name).read_text())
        source = get_class(node["source"]["_target_"])
        declared = data_targets.targets_of(source)
        assert declared, name
        assert set(declared) <= {"class", "mask", "boxes"}
        assert node.get("target", "class") in declared
    assert data_targets.sets_with("class", []) == sorted(set(compose.choices()["data"]) - {"coco", "voc", "yolo"})


@dataclass
class Silent:
    """A source of the user's that takes a target and does not say which."""

    target: str = "class"


def test_a_source_that_declares_nothing_is_left_to_itself():
    assert data_targets.targets_of(Silent) is None
    data_targets.check("mask", Silent, "mine", [])


def test_a_key_that_does_not_exist_is_named_with_the_nearest():
    config = composed()
    config["data"]["audit"]["on_leek"] = "stop"
    with pytest.raises(FinetuneError, match=r"data.audit.on_leek=stop: there is no such key. Did you mean on_leak\?"):
        parse(config)
    del config["data"]["audit"]
    with pytest.raises(FinetuneError, match=r"data\.audit has no value"):
        parse(config)
    with pytest.raises(FinetuneError, match=r"job=fitt is not known\. Did you mean fit"):
        parse({"job": "fitt"})


def test_a_folder_may_have_a_number_for_a_name():
    for word, paths in (("input=2024", "2024"), ("input=[2024,x]", ["2024", "x"])):
        settings = parse(composed("job=predict", word))
        assert isinstance(settings, PredictSettings)
        assert settings.input == paths


def test_the_settings_of_a_run_of_0_1_0_parse(tmp_path):
    with zipfile.ZipFile(FIXTURES / "run_0_1_0.zip") as archive:
        parsed = parse(yaml.safe_load(archive.read("config.yaml")))
    assert (parsed.data.image_size, parsed.backbone.options["shortcut"], parsed.neck.name) == (16, "A", None)


def test_a_run_with_a_source_of_ones_own_is_evaluated_with_all_its_settings(tmp_path):
    config = composed("data=csv", "data.table=t.csv", "data.label=a")
    shared = {key: value for key, value in config["data"].items() if key in compose.shared_keys()}
    own = {**shared, "name": "mine", "colour": "red", "batch_size": 8, "source": {"_target_": "my.Source"}}
    del own["map"]  # newer than the run
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"job": "fit", "data": own}))
    typed = ["job=evaluate", f"model={tmp_path}", "data.num_workers=0"]
    config = compose.compose(compose.expand(typed))
    compose.inherit_data(config, typed)
    data = parse(compose.plain(config)).data
    assert (data.name, data.batch_size, data.num_workers, data.options) == ("mine", 8, 0, {"colour": "red"})
    assert data.source == {"_target_": "my.Source"}
