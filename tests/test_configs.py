"""Every YAML is composed and built through the command line's own functions; what is wrong is said in a line."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from finetune import list_models
from finetune.config import build, compose
from finetune.config.settings import parse
from finetune.errors import FinetuneError, MissingExtra
from finetune.runs.folder import RunFolder

CONF, ROOT = compose.conf_dir(), Path(__file__).resolve().parents[1]
EXTRA = {
    "data=folder": ["data.root=x"],
    "data=csv": ["data.table=x.csv", "data.label=a"],
    "job=predict": ["input=x"],
    "job=compare": ["runs=[a,b]"],
    "job=soup": ["runs=[a,b]"],
    "job=push": ["to=a/b"],
    "search=default": ["job=tune"],
    "search=wide": ["job=tune"],
    "head=faster_rcnn": ["task=detect"],
    "head=retinanet": ["task=detect"],
    "evaluation=detect": ["task=detect"],
}
SEGMENT = ["task=segment", "data=folder", "data.root=x"]
EXTRA |= {"task=segment": SEGMENT[1:], "data=joint": ["data.sources=[chestxray,chexpert]"]}
EXTRA |= dict.fromkeys(("head=fpn", "head=unet", "evaluation=segment"), SEGMENT)
EXTRA |= {word: [*SEGMENT, "backbone.output_stride=16"] for word in ("head=deeplabv3", "head=fcn")}
MASK_LOSSES = ("dice", "dice_ce", "dice_focal", "pixel_cross_entropy", "pixel_focal")
EXTRA |= {f"loss={name}": SEGMENT for name in MASK_LOSSES}
ALL = [f"{group}={name}" for group, names in compose.choices().items() for name in names]


def callbacks(settings):
    return build.extra_callbacks(settings, "val/auroc", higher_is_better=True)


@pytest.mark.parametrize("word", ALL)
def test_every_choice_is_composed_and_built(word, tmp_path):
    config = compose.plain(compose.compose([word, *EXTRA.get(word, [])]))
    if config["job"] != "fit":
        return
    settings = build.check(config)
    assert build.source(settings).root is None or build.source(settings).root
    assert build.plan(settings).phases
    assert build.task(settings).name == settings.task["name"]
    group = word.split("=")[0]
    if group == "logger" and word not in ("logger=wandb", "logger=mlflow"):
        assert len(build.loggers(settings, tmp_path)) == (word != "logger=none")
    if group == "callbacks":
        assert all(c.monitor == "val/auroc" and c.mode == "max" for c in callbacks(settings))
    if group == "optimizer":
        assert build.optimizer(settings)([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] > 0


def test_one_backbone_config_per_model_and_its_name():
    assert compose.choices()["backbone"] == list_models()
    for name in list_models():
        assert yaml.safe_load((CONF / "backbone" / f"{name}.yaml").read_text())["name"] == name


def test_every_field_has_a_sentence_and_every_file_an_opening():
    for path in sorted(CONF.rglob("*.yaml")):
        lines = path.read_text().splitlines()
        assert any(line.startswith("# ") for line in lines[:3]) or path.stem == "_base", path
        for line in lines:
            field = re.match(r"^ *([a-z][\w]*): +(?![{>|&])(\S.*)$", line)
            if field and path.parent.name in ("head", "loss", "optimizer", "schedule", "trainer", "data"):
                known = "${" in line or field[1] in ("defaults",) or (path.parent.name == "data" and "    " in line)
                assert "  # " in line or known, f"{path.name}: {line}"


def test_extras_are_named_as_the_readme_does():
    """`pip install -e ".[h5]"`: there is no package of this name to be had from an index."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pages = [path.read_text() for path in CONF.rglob("*.yaml")] + [str(MissingExtra("x", "dicom"))]
    named = [name for page in pages for name in re.findall(r'pip install -e "\.\[([\w,]+)\]"', page)]
    assert {"dicom", "h5", "huggingface", "medmnist", "mlflow", "tensorboard", "wandb"} == set(named) <= set(extras)
    assert not [page for page in pages if "finetune[" in page]


def test_a_logger_without_its_package_says_how_to_get_it(tmp_path, monkeypatch):
    settings = parse(compose.plain(compose.compose(["logger=wandb"])))

    def absent(*args):
        raise ImportError

    monkeypatch.setattr(build, "make", absent)
    with pytest.raises(FinetuneError, match=r'logger=wandb needs a package: pip install -e "\.\[wandb\]" in the'):
        build.loggers(settings, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetuning=typo"], "finetuning=typo is not known. Choose from full, gradual, head_then_full, last_stage"),
        (["backbone=resnt50"], "backbone=resnt50 is not known. Did you mean resnet50"),
        (["data.imagesize=3"], "there is no key data.imagesize. Did you mean data.image_size"),
        (["foo=1"], "there is no key foo"),
        (["+foo=1"], "no key can be added there"),
        (["data.batch_size=abc"], "data.batch_size=abc should be a valid integer"),
        (["data.image_size=4"], "data.image_size=4 must be 8 or more"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0 must be a whole number of 1 or more"),
        (["trainer.precision=foo"], "trainer.precision=foo should be"),
        (["trainer.devices=0"], "trainer.devices=0"),
        (["optimizer.lr=x"], "optimizer.lr=x should be a valid number"),
        (["optimizer.lr=-1"], "optimizer cannot be built: Invalid learning rate: -1"),
        (["optimizer=sgd", "optimizer.momentum=-1"], "optimizer cannot be built: Invalid momentum value: -1"),
        (["optimizer._partial_=1"], "optimizer cannot be built: .*_partial_ flag must be a bool"),
        (["head.name=[]"], r"head.name=\[\] should be a valid string"),
        (["backbone=resnet20_cifar", "backbone.shortcut=[]"], r"shortcut=\[\] is not known. Choose from A, B"),
        (["callbacks.extra=-1"], "callbacks.extra=-1 should be a valid dictionary"),
        (["+callbacks.extra.timer=5"], "callbacks.extra={'timer': 5} should be a valid dictionary"),
        (["loss=null"], "loss=null is not known. Choose from asymmetric"),
        (["job=[]"], r"job=\[\] is not known. Choose from compare"),
        (["+optimizer.foo=1"], "optimizer.foo=1: there is no such key"),
        (["finetuning=linear_probe", "finetuning.phases.head.train=[]"], r"train=\[\] leaves nothing to train"),
        (["finetuning.phases.full.train=[stage9]"], "stage9 is not known"),
        (["finetuning=gradual", "trainer.max_epochs=3"], "never comes: trainer.max_epochs=3"),
        (["data.fold=9"], "data.fold=9 must lie between 0 and data.folds - 1 = 4"),
        (["head.pool=mean"], "head.pool=mean is not known"),
        (["task=detect", "neck=none"], r"head=faster_rcnn reads maps of one width.*Add neck=pyramid\."),
        (["task=detect", "head=retinanet", "neck=none"], r"head=retinanet reads maps of one width.*Add neck=pyramid\."),
        (["task=detect", "head=retinanet", "head.anchor_scales=[0]"], "head.anchor_scales=.0.* numbers above 0"),
        (["task=detect", "evaluation.tta=[flip]"], "boxes of several views are not merged"),
        ([*SEGMENT, "evaluation.tta=[crops]"], "masks of crops cannot be moved back"),
        (["teacher_temperature=0"], "teacher_temperature=0 must be above 0"),
        (["averaging=swa", "averaging.start=0.99"], "leaves 1 epoch to average"),
        (["backbone.in_channels=2"], "backbone.in_channels=2 is not known. Choose from 1, 3"),
        (["backbone.output_stride=7"], "output_stride=7"),
        (["schedule.warmup=2"], "schedule.warmup=2"),
        (["seed=0,1"], "names several values. Add -m"),
        (["blah"], "'blah' is not of the form key=value"),
        (["~data"], "the group data cannot be left out"),
        (["+callbacks.extra.x._target_=os.system"], "os.system is not something a configuration may build"),
        (["+callbacks.extra.x._target_=torch.optim.lr_scheduler.StepLR"], "is not a Optimizer"),
        (["+callbacks.extra.x._target_=lightning.pytorch.callbacks.LambdaCallback"], "not something a configuration"),
        (["transforms.transforms.affine.rotate=abc"], "transforms cannot be built"),
        (["job=predict"], "input must be given"),
        (
            ["data.uncertain.Edema=one"],
            "no key data.uncertain here. These have it: data=chexpert, data=csv, data=mim",
        ),
        (
            ["loss.pos_weight={Mass: 4}"],
            "no key loss.pos_weight here. These have it: loss=asymmetric, loss=bce",
        ),
        (
            ["loss.label_smoothing=0.1"],
            "no key loss.label_smoothing. These have it: loss=asymmetric, loss=bce, loss=cross",
        ),
        (["lr=0.1"], "there is no key lr. Did you mean optimizer.lr"),
        (["data.path=x"], "there is no key data.path. These have it: data=csv"),
        (["""loss.pos_weight={"a b": 4}"""], "'loss.pos_weight={a b:4}': there is no key loss.pos_weight here"),
        (["loss=bce", "loss.pos_weight={Mass: 4"], "is not of the form key=value"),
        (["loss=bce", "loss.pos_weight=[4]"], "must be NAME: value in braces"),
        (["data=chexpert", "data.uncertain=[one]"], "must be a policy, or finding: policy in braces"),
        (["+data.foo=1"], "no key can be added there"),
        (["data=chexpert", "data.source._target_=os.system"], "os.system is not something a configuration may build"),
        (
            ["data=joint", "data.sources=[chestxray]", "+data.source.sources.x._target_=os.system"],
            "no key can be added there",
        ),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_read(words, message):
    with pytest.raises(FinetuneError, match=message) as caught:
        build.check(compose.plain(compose.compose(words)))
    assert len(str(caught.value).splitlines()) <= 2
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("words", "uncertain"),
    [
        ([], {"default": "ignore"}),
        (["data.uncertain=one"], {"default": "one"}),
        (["data.uncertain.default=zero"], {"default": "zero"}),
        (["data.uncertain.Edema=zero"], {"default": "ignore", "Edema": "zero"}),
        (["data.uncertain=one", "data.uncertain.Edema=zero"], {"default": "one", "Edema": "zero"}),
        (["data.uncertain={default: one, Edema: zero}"], {"default": "one", "Edema": "zero"}),
        (
            ["data.uncertain.Pleural_Effusion={soft: [0.5,0.8]}"],
            {"default": "ignore", "Pleural_Effusion": {"soft": [0.5, 0.8]}},
        ),
    ],
)
def test_policies_per_finding_are_typed_plainly(words, uncertain):
    config = compose.plain(compose.compose(["data=chexpert", *words]))
    source = build.source(build.check(config))
    assert source.uncertain == uncertain
    again = compose.plain(compose.compose(compose.expand(["data=chexpert", *words])))  # the words that Hydra is given
    assert again["data"] == config["data"]


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["loss=bce", "loss.pos_weight={Mass: 4}"], "pos_weight", {"Mass": 4}),
        (["loss=bce", "loss.pos_weight.Mass=4"], "pos_weight", {"Mass": 4}),
        (["loss=focal", "loss.pos_weight=balanced"], "pos_weight", "balanced"),
        (["loss=cross_entropy", "loss.class_weight={mel: 4, nv: 0.5}"], "class_weight", {"mel": 4, "nv": 0.5}),
        (
            ["loss=cross_entropy", """loss.class_weight={"nævus bénin": 4, "a, b's": 0.5, mel: 3}"""],
            "class_weight",
            {"nævus bénin": 4, "a, b's": 0.5, "mel": 3},
        ),
    ],
)
def test_weights_of_classes_of_any_name_are_typed_plainly(words, key, value):
    config = compose.plain(compose.compose(words))
    build.check(config)
    assert config["loss"][key] == value
    again = compose.plain(compose.compose(compose.expand(words)))  # the words that Hydra is given
    assert again["loss"] == config["loss"]


def test_the_command_at_the_top_of_each_file_of_conf_composes():
    for path in sorted(
        path for path in CONF.rglob("*.yaml") if path.parent.name != "backbone"
    ):  # those are composed above
        for command in re.findall(r"python -m finetune ([^`\n]*?)(?: {2,}\(.*)?$", path.read_text(), re.MULTILINE):
            words = [word for word in shlex.split(command) if word not in ("-m", "...", "data=...")]
            chosen = f"{path.parent.name}={path.stem}"
            more = [w for w in [chosen] if w.split("=")[0] in compose.choices() and w not in words]
            try:
                compose.compose([*more, *words], sweep="-m" in command)
            except FinetuneError as error:
                raise AssertionError(f"{path.name}: {command}: {error}") from None


def test_policies_in_a_sweep():
    words = ["data=chexpert", "data.uncertain.Edema=zero,one"]
    assert compose.compose(words, sweep=True).data.uncertain.Edema == "zero"
    assert compose.compose(["data=chexpert", "data.uncertain=zero,one"], sweep=True).data.uncertain == "zero"


def test_evaluation_adopts_the_data_of_its_run_and_keeps_what_was_typed(tmp_path):
    words = ["data=chexpert", "data.uncertain.Edema=zero", "data.uncertain.Mass=one", "data.views=all"]
    run = compose.plain(compose.compose(words))
    (tmp_path / "config.yaml").write_text(compose.as_yaml(run))
    typed = ["job=evaluate", f"model={tmp_path}", "data.uncertain.Edema=one", "data.audit.on_leak=warn"]
    config = compose.compose(compose.expand(typed))
    compose.inherit_data(config, typed)
    assert config.data.uncertain == {"default": "ignore", "Edema": "one", "Mass": "one"}
    assert (config.data.views, config.data.audit.on_leak) == ("all", "warn")
    whole = ["job=evaluate", f"model={tmp_path}", "data.uncertain={default: one}"]
    config = compose.compose(compose.expand(whole))
    compose.inherit_data(config, whole)
    assert config.data.uncertain == {"default": "one"}
    torn = ["job=evaluate", f"model={tmp_path}", "data.views.x=all"]
    with pytest.raises(FinetuneError, match=r"there is no key data.views.x|is incompatible with"):
        compose.inherit_data(compose.compose(compose.expand(torn)), torn)


def test_each_value_of_a_sweep_is_checked():
    with pytest.raises(FinetuneError, match="backbone=resnt is not known"):
        compose.compose(["backbone=resnet18,resnt"], sweep=True)


def test_your_own_class_is_built_when_its_module_is_trusted():
    config = compose.plain(
        compose.compose(["+callbacks.extra.x._target_=tests.training.test_module.Recorder", "trust=[tests]"])
    )
    assert len(callbacks(build.check(config))) == 1


def test_a_run_with_interpolations_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("job: fit\nseed: ${oc.env:HOME}\n")
    with pytest.raises(FinetuneError, match="holds an interpolation"):
        RunFolder(tmp_path).read_config()


def test_a_runs_own_data_settings_find_their_file(tmp_path):
    target = "finetune.data.sources.medmnist.MedMnist"
    for data, group in (
        ({"name": "pneumoniamnist", "source": {"_target_": target}}, "medmnist"),  # the set's name, not the file's
        ({"name": "csv", "source": {}}, "csv"),
        ({"name": "mine", "source": {"_target_": "my.Source"}}, None),
    ):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
        words = compose.expand(["job=evaluate", f"model={tmp_path}"])
        assert words[2:] == ([f"data={group}"] if group else [])


def test_the_demo_stands_in_only_where_nothing_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def wants(*words):
        return compose.wants_demo(compose.compose(list(words)), list(words))

    assert wants()
    assert wants("backbone=resnet18", "trainer.max_epochs=1")
    assert not wants("data.root=data/chestxray")
    assert not wants("data=folder", "data.root=x")
    assert not wants("job=evaluate")
    assert compose.compose(["experiment=demo", "data.image_size=64"]).data.image_size == 64
    (tmp_path / "data" / "chestxray").mkdir(parents=True)
    assert not wants()
