"""A second task, the mean brightness of an image, works in all jobs without changes to them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import finetune
from finetune.__main__ import main
from finetune.data.table import SampleTable
from finetune.evaluation.answers import ANSWERS
from finetune.files import write_text_atomic
from finetune.steps.prediction import predict_arrays
from finetune.steps.task import Task
from finetune.training.objective import LOSS

HERE = "tests.tasks.test_second_task"


class Photos:
    """Source: gray images, each with its mean brightness as the target."""

    def __init__(self, root: str | None = None):
        self.root = root

    def table(self) -> SampleTable:
        names = sorted(path.name for path in Path(str(self.root)).glob("*.png"))
        means = [np.asarray(Image.open(Path(str(self.root)) / name)).mean() / 255 for name in names]
        frame = pd.DataFrame({"path": names, "patient": names, "split": [None] * len(names), "target_mean": means})
        return SampleTable(frame, [], "none", Path(str(self.root)), "photos", other_targets={"mean": "number"})


@dataclass
class Rows:
    """The predictions table."""

    frame: pd.DataFrame

    def __len__(self):
        return len(self.frame)

    def write(self, path):
        write_text_atomic(path, self.frame.to_csv(index=False))


@dataclass(frozen=True)
class Fitted:
    shift: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class BrightnessAnswers:
    """The model file's part: a shift fitted on val."""

    task: ClassVar[str] = "brightness"
    needs_size: ClassVar[bool] = False
    classes: list[str]
    shift: float

    def check(self):
        assert len(self.classes) == 1

    def to_dict(self):
        return asdict(self)

    def describe(self):
        return ["brightness"]

    def decision(self):
        return "none"

    def record(self):
        return {"shift": self.shift}

    def writer(self, output, folder):
        return None

    def columns(self, outputs, placements):
        return {"brightness": outputs[:, 0] + self.shift}

    @classmethod
    def read_table(cls, path, scores):
        return Rows(pd.read_csv(path))


class Objective:
    monitor, higher_is_better, scores, row_names, notes = "val/error", False, (LOSS, "val/error"), ("error",), []

    def step(self, network, batch):
        return (network(batch["image"])[:, 0] - batch["target"][:, 0]).square().sum(), batch["index"].new_tensor(
            len(batch["index"])
        )

    def predict(self, network, batch):
        return {"error": network(batch["image"])[:, 0] - batch["target"][:, 0]}

    def score(self, rows):
        return {LOSS: float((rows["error"] ** 2).mean()), "val/error": float(np.abs(rows["error"]).mean())}


class Brightness(Task):
    name = "brightness"

    def __init__(self, settings):
        self.settings = settings

    def check(self, table):
        assert table.other_targets == {"mean": "number"}

    def num_outputs(self, table):
        return 1

    def objective(self, table, rows):
        return Objective()

    def captions(self, batch, table):
        return [f"{value:.2f}" for value in batch["target"][:, 0].tolist()]

    def predict(self, subject, fitted):
        if (predicted := predict_arrays(subject)) is None:
            return None
        rows = subject.data.table.frame.iloc[predicted[0]]
        return Rows(pd.DataFrame({"sample": rows["path"], "mean": rows["target_mean"], "answer": predicted[1][:, 0]}))

    def fit(self, val):
        return Fitted(float((val.frame["mean"] - val.frame["answer"]).mean()))

    def unfitted(self):
        return Fitted()

    def answers(self, table, fitted):
        return BrightnessAnswers(["mean"], fitted.shift)

    def evaluate(self, predictions, fitted, subject):
        error = predictions.frame["answer"] + fitted.shift - predictions.frame["mean"]
        return {"n": len(error), "error": float(error.abs().mean()), "warnings": []}

    def score(self, tables, fitted):
        return {split: self.evaluate(table, fitted, None) for split, table in tables.items()}

    def report(self, folder, scores=None):
        scores = scores or json.loads((Path(folder) / "scores.json").read_text())
        write_text_atomic(Path(folder) / "report.html", f"<p>{scores}</p>")

    def summary(self, scores, *, synthetic):
        return [f"{split}: error {of_split['error']:.4f}" for split, of_split in scores.items()]

    def match(self, table, model):
        return table

    def shipped(self, model, table):
        return Fitted(model.answers.shift)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(60):
        image = rng.integers(0, 60, (16, 16)) + rng.integers(0, 190)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number:02d}.png")
    return folder


def test_it_is_trained_resumed_evaluated_predicted_and_reported(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ANSWERS, "brightness", BrightnessAnswers)
    trust = f"trust=[{HERE}]"
    task = [trust, f"task._target_={HERE}.Brightness", "task.name=brightness"]
    data = ["data=folder", f"data.root={photos}", f"data.source._target_={HERE}.Photos", "data.image_size=16"]
    data += ["data.num_workers=0", "data.cache=off", "data.batch_size=8", "trainer.accelerator=cpu"]
    net = ["backbone=resnet20_cifar", "backbone.weights=none", "backbone.in_channels=1", "optimizer.lr=0.01"]
    main([*task, *data, *net, "transforms=none", "trainer.max_epochs=2", "hydra.run.dir=run"])
    main(["resume=run", "trust=[tests.tasks.test_second_task]", "trainer.max_epochs=5"])
    metrics = pd.read_csv("run/metrics.csv")
    assert list(metrics["epoch"]) == list(range(5))
    assert {"val/loss", "val/error"} <= set(metrics)
    scores = json.loads(Path("run/scores.json").read_text())
    assert metrics["val/error"].iloc[-1] < metrics["val/error"].iloc[0]
    assert scores["test"]["error"] < 0.3
    assert "error" in Path("run/report.html").read_text()
    model = finetune.load("run")
    assert (model.task, model.classes) == ("brightness", ["mean"])

    main(["job=evaluate", "model=run", *task, "split=test", "hydra.run.dir=again", *data])
    repeated = json.loads(Path("again/scores.json").read_text())["test"]
    assert repeated["error"] == pytest.approx(scores["test"]["error"], abs=1e-6)
    main(["job=predict", "model=run", trust, f"input={photos}", "output=out.csv"])
    assert "test: error" in capsys.readouterr().out
    table = finetune.read_run("run").predictions["test"].frame.set_index("sample")
    answers = pd.read_csv("out.csv").assign(sample=lambda rows: [Path(path).name for path in rows["path"]])
    answers = answers.set_index("sample").loc[table.index]
    np.testing.assert_allclose(answers["brightness"], table["answer"] + model.answers.shift, atol=1e-5)
