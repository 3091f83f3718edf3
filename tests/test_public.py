"""What `import finetune` gives to read and compare runs, by its public names, and that it costs nothing until used."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import finetune
from finetune.errors import FinetuneError
from tests.evaluation.runs import write_run


def finished(folder: Path, logits: list[float], seed: int = 0, lr: float = 0.1) -> Path:
    """A folder as a fit leaves it, as far as a comparison reads it: 10 patients with a nodule, 10 without."""
    folder.mkdir(parents=True)
    target = np.repeat([1.0, 0.0], 10)[:, None]
    names = [f"{i}.png" for i in range(20)]
    given = finetune.Predictions.from_arrays(
        names, names, ["Nodule"], "multilabel", target, np.array(logits, dtype=np.float64)[:, None]
    )
    given.write(folder / "predictions_test.csv")
    (folder / "config.yaml").write_text(f"job: fit\nseed: {seed}\noptimizer: {{lr: {lr}}}\n")
    (folder / "scores.json").write_text(json.dumps({"test": finetune.summarise(given, n_boot=20)}))
    return folder


RIGHT = [*np.linspace(2, 1, 10), *np.linspace(-1, -2, 10)]
ONE_PAIR_WRONG = [*RIGHT[:9], RIGHT[10], RIGHT[9], *RIGHT[11:]]  # the last positive and the first negative exchanged


def test_importing_the_package_is_cheap():
    code = "import sys, finetune; dir(finetune); print(sys.modules.keys() & {'torch', 'numpy', 'pandas', 'lightning'})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_is_there_and_documented():
    assert set(finetune.__all__) <= set(dir(finetune))
    for name in finetune.__all__:
        assert getattr(finetune, name).__doc__, name


def test_a_run_is_read_with_its_scores_and_predictions(tmp_path):
    run = finetune.read_run(str(write_run(tmp_path)))
    assert run.config["backbone"]["name"] == "resnet50"
    assert run.problems == []
    assert set(run.predictions) == {"val", "test"}
    table = run.predictions["test"]
    again = finetune.summarise(table, n_boot=50)
    assert again["macro"]["auroc"] == run.scores["test"]["macro"]["auroc"]
    assert isinstance(finetune.Predictions.read(tmp_path / "predictions_test.csv"), type(table))


def test_an_unfinished_run_is_read_as_far_as_it_got(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    run = finetune.read_run(tmp_path)
    assert run.config == {"seed": 3}
    assert "scores.json is missing." in run.problems


def test_what_is_no_run_is_refused_with_what_might_be_meant(tmp_path):
    finished(tmp_path / "7", RIGHT)
    with pytest.raises(FinetuneError, match=r"no config\.yaml\. Name one of the runs in it: 7"):
        finetune.read_run(tmp_path)
    with pytest.raises(FinetuneError, match="is not a folder"):
        finetune.read_run(tmp_path / "nowhere")


def test_two_runs_are_compared_on_the_same_patients(tmp_path):
    a, b = finished(tmp_path / "a", RIGHT), finished(tmp_path / "b", ONE_PAIR_WRONG, lr=0.2)
    found = finetune.compare([a, str(b)], n_boot=50)
    pair = found.result["pairs"][0]
    assert pair["classes"]["Nodule"]["a"] == 1.0
    assert pair["classes"]["Nodule"]["b"] == pytest.approx(0.99)  # 1 of 10 * 10 pairs
    assert pair["scores"]["macro_auroc"]["value"] == pytest.approx(0.01)
    assert "macro AUROC" in str(found)
    assert "optimizer.lr=0.1" in repr(found)
    assert any("Choose by split=val" in said for said in found.result["warnings"])


def test_seeds_of_a_setting_count_as_one(tmp_path):
    """sd of 1.00 and 0.99 is 0.01 / sqrt(2), of one degree of freedom."""
    for seed, logits in enumerate((RIGHT, ONE_PAIR_WRONG)):
        finished(tmp_path / str(seed), logits, seed=seed)
    found = finetune.compare(tmp_path, n_boot=50)
    assert [candidate["seeds"] for candidate in found.result["candidates"]] == [["0", "1"]]
    assert found.result["seed_noise"]["macro_auroc"]["sd"] == pytest.approx(0.01 / 2**0.5)
    assert found.result["pairs"] == []


def test_what_cannot_be_compared_is_refused(tmp_path):
    a = finished(tmp_path / "a", RIGHT)
    with pytest.raises(FinetuneError, match="single run"):
        finetune.compare(a)
    with pytest.raises(FinetuneError, match="split"):
        finetune.compare([a, a], split="train")
    (a / "scores.json").unlink()
    with pytest.raises(FinetuneError, match="not finished"):
        finetune.compare([a, a])
