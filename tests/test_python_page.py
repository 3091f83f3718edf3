"""docs/python.md is true: its examples run one after the other, on tiny images and a tiny network."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import finetune
from finetune.python import start
from tests.conftest import ROOT
from tests.jobs.test_fit import draw

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?s)```python\n(.*?)```", PAGE)
FAST = {
    "data__image_size": 16, "data__num_workers": 0, "trainer__accelerator": "cpu", "trainer__max_epochs": 1,
    "backbone__weights": None, "evaluation__resamples": 20, "evaluation__thumbnails": 0, "evaluation__novelty": 0,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:.*tensorboard.*")
def test_the_examples_run(tmp_path, monkeypatch):
    """Settings that cost time are replaced; a second and further fit is checked but not trained."""
    monkeypatch.chdir(tmp_path)
    paths = sorted(str(path) for path in (draw(Path("photos"), 12)).rglob("*.png"))
    rows = {"path": paths, "diagnosis": [Path(path).parent.name for path in paths]}
    patients = {"patient_id": np.arange(24) // 2, "age": np.arange(24) + 5}
    pd.DataFrame(rows | patients).to_csv("images.csv", index=False)
    draw(Path("elsewhere"), 12, seed=2)
    pd.DataFrame(rows | patients).assign(path=[p.replace("photos", "elsewhere") for p in paths]).to_csv("other.csv")
    shutil.copyfile("photos/cold/0.png", "new.png")
    words_of, fit, create = start.words_of, finetune.fit, finetune.create_model
    fits: list[list[str]] = []

    def fast_words(job, arguments):
        kept = {key: value for key, value in arguments.items() if key not in ("epochs", "loss__class_weight")}
        assert set(words_of(job, arguments))  # as the page has them
        fast = (
            FAST if job in ("fit", "preview") else {k: FAST[k] for k in ("data__num_workers", "evaluation__resamples")}
        )
        tiny = {"backbone": "resnet20_cifar"} if job in ("fit", "preview") else {}
        return words_of(job, {**kept, **(fast if job != "predict" else {}), **tiny})

    def fit_once(data=start.UNSET, **words):
        fits.append(sorted(words))
        if len(fits) == 1:
            return fit(data, **words)
        typed, _ = start.words_and_table("fit", data, words)
        with start.saved.as_choices(typed) as chosen:
            start.compose.compose(chosen)
        return finetune.read_run("outputs/latest")

    monkeypatch.setattr(start, "words_of", fast_words)
    monkeypatch.setattr(finetune, "fit", fit_once)
    monkeypatch.setattr(finetune, "compare", lambda runs, split: len(runs))  # all are the same run here
    monkeypatch.setattr(
        finetune, "create_model", lambda name, **options: create("resnet20_cifar", **{**options, "weights": None})
    )
    space: dict = {"finetune": finetune}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), space)
    assert len(fits) == 6
    assert space["table"]["error"].eq("").all()
    assert space["predictions"].frame.shape[0] == len(space["rows"])
    assert 0 <= finetune.summarise(space["predictions"], n_boot=20)["overall"]["accuracy"]["value"] <= 1


def test_every_short_word_of_the_page_is_one_and_all_are_there():
    from finetune.python.words import SHORT

    table = PAGE.split("## Words")[1].split("##")[0]
    assert set(SHORT) <= set(re.findall(r"`(\w+)`", table))


def test_files_it_names_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
