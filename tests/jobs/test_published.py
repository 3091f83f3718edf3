"""Scores of anybody's table of probabilities against a table of labels."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from finetune.__main__ import main

WORDS = ["job=evaluate", "predictions=p.csv", "labels=l.csv", "hydra.run.dir=run"]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """400 images of 200 patients, in other orders and with a few images that are in one table only."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    truth = random.random((400, 2)) < 0.3
    chance = 1 / (1 + np.exp(-(2.0 * truth - 1 + random.standard_normal((400, 2)))))
    names = [f"{i:05d}.png" for i in range(400)]
    answers = pd.DataFrame({"Image Index": names, "prob_Effusion": chance[:, 0], "prob_Mass": chance[:, 1]})
    cells = ["|".join(n for n, y in zip(["Pleural Effusion", "Mass"], row, strict=True) if y) for row in truth]
    labels = pd.DataFrame({"Image Index": names, "Finding Labels": [c or "No Finding" for c in cells]})
    labels["Patient ID"] = [i // 2 for i in range(400)]
    answers.iloc[5:].to_csv("p.csv", index=False)
    labels.iloc[::-1].iloc[7:].to_csv("l.csv", index=False)
    return truth[5:393], chance[5:393]


def aurocs() -> list[float]:
    classes = json.loads(Path("run/scores.json").read_text())["test"]["classes"]
    assert all(c["auroc"]["low"] < c["auroc"]["value"] < c["auroc"]["high"] for c in classes.values())
    return [c["auroc"]["value"] for c in classes.values()]


def test_the_official_table_of_findings(tables, capsys):
    truth, chance = tables
    main(WORDS)
    assert aurocs() == pytest.approx([roc_auc_score(truth[:, k], chance[:, k]) for k in (0, 1)])
    said = capsys.readouterr().out
    assert "7 image(s) of predictions are not in labels" in said
    assert "5 image(s) of labels are not in predictions" in said
    assert pd.read_csv("run/predictions_test.csv")["patient"].nunique() == 195


def test_a_column_per_class_with_unknown_labels(tables):
    truth, chance = tables
    names = pd.read_csv("p.csv")["Image Index"].iloc[:388]
    effusion = [["", "-1", str(int(y))][min(2, i)] for i, y in enumerate(truth[:, 0])]
    pd.DataFrame({"Image Index": names, "effusion": effusion}).to_csv("l.csv", index=False)
    main(WORDS)
    assert aurocs() == pytest.approx([roc_auc_score(truth[2:, 0], chance[2:, 0])])


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("yes", "No"), ("1.0", "0.0")])
def test_labels_are_read_by_the_rule_of_all_tables(tables, yes, no):
    truth, chance = tables
    names = pd.read_csv("p.csv")["Image Index"].iloc[:388]
    pd.DataFrame({"Image Index": names, "Mass": np.where(truth[:, 1], yes, no)}).to_csv("l.csv", index=False)
    main(WORDS)
    assert aurocs() == pytest.approx([roc_auc_score(truth[:, 1], chance[:, 1])])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, t: (p, t.assign(Mass=1)), "a column 'Finding Labels' and a column 'Mass'"),
        (lambda p, t: (p.assign(prob_Mass="0,28"), t), "For 0,28 write 0.28, with a decimal point."),
        (lambda p, t: (p.assign(prob_Mass="28%"), t), "For 28% write 0.28: divide percentages by 100."),
        (
            lambda p, t: (p, t.drop(columns="Finding Labels").assign(Mass=["1"] * 5 + ["2"] + ["0"] * 387)),
            "labels, line 7: column Mass holds '2'",
        ),
        (lambda p, t: (p.rename(columns=lambda c: c.replace("prob_", "p_")), t), "prob_<class>"),
        (lambda p, t: (p.assign(prob_Mass=1.5), t), "column prob_Mass holds '1.5' for 00005.png"),
        (lambda p, t: (pd.concat([p, p.iloc[:1]]), t), "lists 1 image(s) twice"),
        (lambda p, t: (p, t.drop(columns="Finding Labels")), "says nothing of Effusion, Mass"),
        (lambda p, t: (p, t.rename(columns={"Image Index": "z"})), "is not a column"),
        (lambda p, t: (p, t.assign(**{"Image Index": "n" + t["Image Index"]})), "No image of p.csv"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(tables, capsys, change, said):
    for table, name in zip(change(pd.read_csv("p.csv"), pd.read_csv("l.csv")), ("p.csv", "l.csv"), strict=True):
        table.to_csv(name, index=False)
    with pytest.raises(SystemExit):
        main(WORDS)
    assert said in capsys.readouterr().err
    assert not Path("run/scores.json").exists()
