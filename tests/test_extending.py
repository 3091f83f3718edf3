"""EXTENDING.md keeps its word: its examples are written to files and run; what does not fit is one line."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import finetune
from finetune.__main__ import main
from finetune.backbones import Backbone
from finetune.backbones.build import MODELS
from finetune.config import build, compose
from finetune.config.overrides import CONFIG_DIRS
from finetune.config.settings import parse
from finetune.errors import FinetuneError
from finetune.heads import HEADS, NECKS, FeatureInfo

PAGE = (Path(__file__).resolve().parent.parent / "EXTENDING.md").read_text(encoding="utf-8")
COMMAND = next(line for line in PAGE.splitlines() if line.startswith("python -m finetune"))
FAST = ["data.image_size=16", "data.num_workers=0", "data.cache=off", "trainer.max_epochs=1", "trainer.accelerator=cpu"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the page's files and with images, as the working directory and on the module path."""
    for language, block in re.findall(r"```(python|yaml)\n(.*?)```", PAGE, re.DOTALL):
        file = tmp_path / block.splitlines()[0].removeprefix("# ")
        assert file.suffix == {"python": ".py", "yaml": ".yaml"}[language]
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(block + "\n")
    rng = np.random.default_rng(0)
    for k, name in enumerate(("cat", "dog", "eel")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            image = rng.integers(0, 150, (20, 20, 3)) + 50 * k
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / "photos" / name / f"{name}_{i:03d}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(CONFIG_DIRS, "")  # the flag sets it for good, in a process of its own
    tables = [(table, dict(table)) for table in (MODELS, HEADS, NECKS)]
    yield tmp_path
    for table, before in tables:
        table.clear()
        table.update(before)
    sys.modules.pop("my_parts", None)


def test_the_command_of_the_page_trains_with_every_part_and_its_run_is_used_again(place, capsys):
    main([*shlex.split(COMMAND)[3:], *FAST, "hydra.run.dir=run"])
    assert "epoch 0 took" in capsys.readouterr().out
    scores = json.loads(Path("run/scores.json").read_text())
    own = scores["test"]["own_metrics"]["recall_2"]
    table = pd.read_csv("run/predictions_test.csv")
    classes = ["cat", "dog", "eel"]
    from my_parts import recall_at_2

    by_hand = recall_at_2(
        table[[f"target_{c}" for c in classes]].to_numpy(), table[[f"prob_{c}" for c in classes]].to_numpy()
    )
    assert own["value"] == pytest.approx(by_hand)
    assert own["low"] is None or own["low"] <= own["value"] <= own["high"]

    model = finetune.load("run")
    assert (model.spec.backbone, model.spec.neck, model.spec.head) == ("mynet", "narrow", "attention")
    assert model.spec.neck_options == {"width": 8}
    assert model.network.head.fc.in_features == 8  # made from what the neck gives
    answers = model.predict([f"photos/{name}" for name in table["sample"]])
    np.testing.assert_allclose(answers["prob_eel"], table["prob_eel"], atol=1e-5)

    # without the folder of choices the run's own source is still the one that is read
    main(["job=evaluate", "model=run", "trust=[my_parts]", "split=test", "hydra.run.dir=again", *FAST[1:3]])
    again = json.loads(Path("again/scores.json").read_text())
    assert again["test"]["overall"]["accuracy"] == scores["test"]["overall"]["accuracy"]

    HEADS.pop("attention")  # a process that has not imported the module
    with pytest.raises(FinetuneError, match=r"head=attention is not known.* trust=\[MODULE\]"):
        finetune.load("run")


def test_the_loop_without_the_command_line_runs(place, monkeypatch):
    exec(compile(Path("plain.py").read_text(), "plain.py", "exec"), {"__name__": "plain"})


def test_the_call_of_the_page_has_the_configuration_of_its_command(place, monkeypatch):
    from finetune.python import calls, start

    configs: list[dict] = []
    monkeypatch.setattr(start, "do_job", lambda config, folder, words: configs.append(config))
    monkeypatch.setattr(calls, "read_run", lambda folder: folder)
    exec(compile(Path("from_python.py").read_text(), "from_python.py", "exec"), {})
    monkeypatch.setenv(CONFIG_DIRS, "my_conf")
    words = [word for word in shlex.split(COMMAND)[3:] if word not in ("--config-dir", "my_conf")]
    assert configs == [compose.plain(compose.compose(words))]


def test_classes_of_a_notebook_are_allowed_by_the_name_of_its_module(place, monkeypatch):
    import my_parts

    monkeypatch.setattr(sys.modules["__main__"], "Mine", my_parts.SquaredError, raising=False)
    words = ["data=folder", "data.root=photos", "loss._target_=__main__.Mine"]
    with pytest.raises(FinetuneError, match=r"trust=\[__main__\] to allow it"):
        build.check(compose.plain(compose.compose(words)))
    build.check(compose.plain(compose.compose([*words, "trust=[__main__]"])))


def test_the_error_names_what_a_backbone_lacks(place):
    class Whole(Backbone):
        def __init__(self, *, in_channels=3, num_classes=10):
            super().__init__()
            self.num_features, self.feature_info = 4, [{"num_chs": 4, "reduction": 2, "module": "body"}]
            self.conv, self.body = nn.Conv2d(in_channels, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1)
            self.fc = self.make_classifier(num_classes)

        def forward_stem(self, x):
            return self.conv(x)

        def forward_stage(self, number, x):
            return self.body(x)

        def parts(self):
            return {"stem": [self.conv], "stage1": [self.body]}

    finetune.register_backbone("whole", Whole)
    finetune.register_backbone("whole", Whole)  # importing a module again is no fault
    assert finetune.create_model("whole", num_classes=2)(torch.zeros(1, 3, 8, 8)).shape == (1, 2)

    class Unheld(Whole):
        def parts(self):
            return {"stem": [self.conv], "stage1": []}

    class Misnamed(Whole):
        def parts(self):
            return {"body": [self.conv, self.body]}

    class Wrong(Whole):
        def forward_stage(self, number, x):
            return x

    class Gray(Whole):
        def __init__(self, *, num_classes=10):
            super().__init__(num_classes=num_classes)

    for make, message in (
        (Unheld, r"body\.weight lies in 0 parts"),
        (Misnamed, "must name stem, stage1"),
        (Wrong, r"the map body of feature_info must be a tensor \(2, 4, 32, 32\), not \(2, 4, 64, 64\)"),
        (Gray, "unexpected keyword argument 'in_channels'"),
        (nn.Linear, "must be a subclass of finetune.backbones.Backbone"),
    ):
        with pytest.raises(FinetuneError, match=message):
            finetune.register_backbone("other", make)
    with pytest.raises(FinetuneError, match=r"stands for finetune\.backbones\.resnet\.ResNet already"):
        finetune.register_backbone("resnet18", Whole)
    with pytest.raises(FinetuneError, match="letters, digits and _ only"):
        finetune.register_backbone("my net", Whole)
    assert "other" not in MODELS


def test_the_error_names_what_a_head_lacks(place):
    with pytest.raises(FinetuneError, match="has no method features"):
        finetune.register_head("flat", lambda channels, classes: nn.Conv2d(channels, classes, 1))

    class Map(nn.Conv2d):
        def __init__(self, channels, classes):
            super().__init__(channels, classes, 1)

        def features(self, x):
            return x

    with pytest.raises(FinetuneError, match=r"forward\(map\) must be a tensor \(2, 3\), not \(2, 3, 4, 4\)"):
        finetune.register_head("map", Map)

    class Maps(Map):
        takes = "maps"

        def __init__(self, features, classes):
            super().__init__(features[0].num_chs, classes)

        def forward(self, maps):
            return super().forward(maps[0])

    with pytest.raises(FinetuneError, match=r"forward\(maps\) must be a tensor \(2, 3\), not \(2, 3, 32, 32\)"):
        finetune.register_head("maps", Maps)
    with pytest.raises(FinetuneError, match=r"must have takes = 'maps', as the module"):
        finetune.register_head("maps", lambda channels, classes: Maps([FeatureInfo(channels, 4)], classes))
    assert not {"flat", "map", "maps"} & set(HEADS)


def test_the_error_names_what_a_neck_lacks(place):
    class Neck(nn.Conv2d):
        def __init__(self, features):
            super().__init__(features[-1].num_chs, 8, 1)
            self.feature_info = [features[-1]._replace(num_chs=8)]

    class Silent(Neck):
        def __init__(self, features):
            super().__init__(features)
            self.feature_info = [{"num_chs": 8, "reduction": 32}]

    class Strided(Neck):
        def forward(self, x):
            return super().forward(x)[..., ::2, ::2]

    class Twice(Neck):
        def forward(self, x):
            return [super().forward(x)] * 2

    class Nothing(Neck):
        def forward(self, x):
            return None

    class InPlace(Neck):
        def forward(self, x):
            return super().forward(x.relu_())

    class Every(Neck):
        takes = "every"

    for make, message in (
        (Silent, "Silent must have feature_info, a list of FeatureInfo"),
        (Strided, r"map 0 of forward must be a tensor \(2, 8, 4, 4\), not \(2, 8, 2, 2\)"),
        (Twice, "forward must return one map per entry of feature_info, 1, not 2 maps"),
        (Nothing, "feature_info, 1, not NoneType"),
        (InPlace, r"InPlace changes the map that it reads in place"),
        (Every, r"Every.takes=every is not known. Choose from map, maps"),
        (lambda: Neck, "takes 0 positional arguments but 1 was given"),
    ):
        with pytest.raises(FinetuneError, match=message):
            finetune.register_neck("other", make)
    with pytest.raises(FinetuneError, match="letters, digits and _ only"):
        finetune.register_neck("my neck", Neck)
    assert not {"other", "my neck"} & set(NECKS)
    finetune.register_neck("own", Neck)
    finetune.register_neck("own", Neck)  # importing a module again is no fault
    with pytest.raises(FinetuneError, match=r"Neck already. Choose another"):
        finetune.register_neck("own", Strided)


def test_a_neck_of_the_command_line_is_checked_before_anything_is_read(place, monkeypatch):
    def check(*words):
        words = ["trust=[my_parts]", "data=folder", "data.root=photos", "backbone.weights=none", *words]
        build.check(compose.plain(compose.compose(words)))

    monkeypatch.setenv(CONFIG_DIRS, str(place / "my_conf"))
    check("neck=narrow", "neck.width=4", "finetuning=linear_probe")
    for words, message in (
        (["neck=narow"], "neck=narow is not known. Did you mean narrow"),
        (["neck=narrow", "neck.width=wide"], r"neck=narrow cannot be built with the options {'width': 'wide'}: "),
        (["neck=narrow", "neck.name=other"], "neck.name=other is not known"),
        (["neck=narrow", "finetuning.phases.full.train=[head]"], r"neck would stay at random weights. Add new"),
    ):
        with pytest.raises(FinetuneError, match=message):
            check(*words)


WRONG = """
import torch

class NoKind:
    def __call__(self, logits, target, weights=None): ...

class NoTable:
    def __init__(self, root): ...

class NoCallback: ...

def text(target, prob):
    return "high"

def broken(target, prob):
    raise KeyError("age")
"""


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        ({"loss/own.yaml": "_target_: wrong.NoKind"}, ["loss=own"], 'loss: wrong.NoKind has no kind: "multilabel" or'),
        ({"loss/own.yaml": "_target_: wrong.Nothing"}, ["loss=own"], "wrong.Nothing does not exist"),
        ({}, ["callbacks.extra.x={_target_: wrong.NoCallback}"], "wrong.NoCallback is not a lightning.*Callback"),
        ({}, ["evaluation.metrics.x=wrong"], "must name a function"),
        ({}, ["evaluation.metrics.x=os.system"], "os.system is not something a configuration may build"),
        ({}, ["backbone=mynet"], "backbone=mynet is not known"),
    ],
)
def test_a_part_that_does_not_fit_is_one_line(place, monkeypatch, files, words, message):
    Path("wrong.py").write_text(WRONG)
    for name, text in files.items():
        file = Path("wrong_conf", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if files:
        monkeypatch.setenv(CONFIG_DIRS, str(place / "wrong_conf"))
    with pytest.raises(FinetuneError, match=message) as caught:
        build.check(compose.plain(compose.compose(["trust=[wrong]", "data=folder", "data.root=photos", *words])))
    assert len(str(caught.value).splitlines()) == 1
    sys.modules.pop("wrong", None)


def test_a_source_without_a_table_is_one_line(place, monkeypatch):
    Path("wrong.py").write_text(WRONG)
    Path("wrong_conf/data").mkdir(parents=True)
    node = "source: {_target_: wrong.NoTable, root: x}"
    Path("wrong_conf/data/own.yaml").write_text(f"defaults: [_base]\nname: own\n{node}\n")
    monkeypatch.setenv(CONFIG_DIRS, str(place / "wrong_conf"))
    config = compose.plain(compose.compose(["trust=[wrong]", "data=own"]))
    with pytest.raises(FinetuneError, match=r"data.source: wrong.NoTable has no table\(\) -> SampleTable"):
        build.source(parse(config))
    sys.modules.pop("wrong", None)


def test_a_score_that_fails_or_is_no_number_is_named(place):
    from finetune.evaluation.classification.own_metrics import scores
    from finetune.evaluation.classification.predictions import Predictions

    rng = np.random.default_rng(0)
    target = (rng.random((40, 1)) < 0.5).astype(float)
    names = [f"{i}.png" for i in range(40)]
    table = Predictions.from_arrays(
        names, names, ["a"], "multilabel", target, rng.normal(size=(40, 1)), pd.DataFrame(index=range(40))
    )

    def fails(target, prob):
        raise KeyError("age")

    with pytest.raises(FinetuneError, match=r"evaluation.metrics.x fails with KeyError on 40 images: 'age'"):
        scores(table, {"x": fails}, n_boot=10, seed=0)
    with pytest.raises(FinetuneError, match=r"evaluation.metrics.x gives str, it must give one number"):
        scores(table, {"x": lambda t, p: "high"}, n_boot=10, seed=0)
    constant = scores(table, {"x": lambda t, p: 1.0}, n_boot=10, seed=0)["x"]
    assert constant == {"value": 1.0, "low": None, "high": None, "reason": "the same in every resample of the patients"}
    mean = scores(table, {"x": lambda t, p: t.mean()}, n_boot=400, seed=0)["x"]
    assert mean["low"] < mean["value"] == target.mean() < mean["high"]
    undefined = scores(table, {"x": lambda t, p: float("nan")}, n_boot=10, seed=0)["x"]
    assert undefined["value"] is None


def test_folders_of_choices_are_checked(place, monkeypatch):
    monkeypatch.setenv(CONFIG_DIRS, "nowhere")
    with pytest.raises(FinetuneError, match=r"--config-dir=.*nowhere is not a folder"):
        compose.choices()
    Path("shadow/data").mkdir(parents=True)
    Path("shadow/data/csv.yaml").write_text("name: csv\n")
    monkeypatch.setenv(CONFIG_DIRS, "shadow")
    with pytest.raises(FinetuneError, match=r"data/csv.yaml has the name of a file in conf/"):
        compose.choices()


def test_trust_names_modules_that_exist(place):
    with pytest.raises(FinetuneError, match=r"trust=\[nowhere\]: no such module. Start the command in its folder"):
        build.check(compose.plain(compose.compose(["trust=[nowhere]"])))
    with pytest.raises(FinetuneError, match=r"trust=nowhere must be a list"):
        build.check(compose.plain(compose.compose(["trust=nowhere"])))
