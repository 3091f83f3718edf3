"""Scores of a table of probabilities of any program, with a table of labels."""

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
    """400 images of 200 patients, in different orders, with a few images in one table only."""
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
    output = capsys.readouterr().out
    assert "7 image(s) of predictions are not in labels" in output
    assert "5 image(s) of labels are not in predictions" in output
    assert pd.read_csv("run/predictions_test.csv")["patient"].nunique() == 195


def test_a_column_per_class_with_unknown_labels(tables):
    truth, chance = tables
    names = pd.read_csv("p.csv")["Image Index"].iloc[:388]
    effusion = [["", "-1", str(int(y))][min(2, i)] for i, y in enumerate(truth[:, 0])]
    pd.DataFrame({"Image Index": names, "effusion": effusion}).to_csv("l.csv", index=False)
    main(WORDS)
    assert aurocs() == pytest.approx([roc_auc_score(truth[2:, 0], chance[2:, 0])])


@pytest.mark.parametrize(("yes", "no"), [("True", "False"), ("yes", "No"), ("1.0", "0.0")])
def test_labels_are_read_as_in_all_tables(tables, yes, no):
    truth, chance = tables
    names = pd.read_csv("p.csv")["Image Index"].iloc[:388]
    pd.DataFrame({"Image Index": names, "Mass": np.where(truth[:, 1], yes, no)}).to_csv("l.csv", index=False)
    main(WORDS)
    assert aurocs() == pytest.approx([roc_auc_score(truth[:, 1], chance[:, 1])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t: (p, t.assign(Mass=1)), "has Finding Labels and Mass, which both have labels"),
        (lambda p, t: (p.assign(prob_Mass="0,28"), t), "For 0,28 write 0.28, with a decimal point."),
        (lambda p, t: (p.assign(prob_Mass="28%"), t), "For 28% write 0.28: divide percentages by 100."),
        (
            lambda p, t: (p, t.drop(columns="Finding Labels").assign(Mass=["1"] * 5 + ["2"] + ["0"] * 387)),
            "labels=l.csv, line 7: column Mass holds '2'",
        ),
        (lambda p, t: (p.rename(columns=lambda c: c.replace("prob_", "p_")), t), "prob_<class>"),
        (lambda p, t: (p.assign(prob_Mass=1.5), t), "column prob_Mass holds '1.5' for 00005.png"),
        (lambda p, t: (pd.concat([p, p.iloc[:1]]), t), "lists 1 image(s) twice"),
        (lambda p, t: (p, t.drop(columns="Finding Labels")), "has no column for Effusion, Mass"),
        (lambda p, t: (p, t.rename(columns={"Image Index": "z"})), "is not a column"),
        (lambda p, t: (p, t.assign(**{"Image Index": "n" + t["Image Index"]})), "No image of p.csv"),
    ],
)
def test_tables_that_do_not_fit_are_a_clear_error(tables, capsys, change, message):
    for table, name in zip(change(pd.read_csv("p.csv"), pd.read_csv("l.csv")), ("p.csv", "l.csv"), strict=True):
        table.to_csv(name, index=False)
    with pytest.raises(SystemExit):
        main(WORDS)
    assert message in capsys.readouterr().err
    assert not Path("run/scores.json").exists()


def test_label_columns_in_the_predictions_are_not_read(tables, capsys):
    """A column of the class, and one of the patient, in the table of predictions are not read."""
    truth, chance = tables
    table = pd.read_csv("p.csv")
    table = table.assign(Mass=0, **{"Patient ID": "one", "Finding Labels": "Effusion"})
    table.to_csv("p.csv", index=False)
    main(WORDS)
    assert aurocs() == pytest.approx([roc_auc_score(truth[:, k], chance[:, k]) for k in (0, 1)])
    assert pd.read_csv("run/predictions_test.csv")["patient"].nunique() == 195
    assert "Patient ID, Finding Labels of predictions=p.csv is not read" in capsys.readouterr().out


def test_two_kinds_of_label_columns_need_a_choice(tables, capsys):
    truth, chance = tables
    labels = pd.read_csv("l.csv")
    labels.assign(Mass=0, Effusion=0).to_csv("l.csv", index=False)
    with pytest.raises(SystemExit):
        main(WORDS)
    assert "has Finding Labels and Mass, Effusion, which both have labels" in capsys.readouterr().err
    main([*WORDS, "label='Finding Labels'"])
    assert aurocs() == pytest.approx([roc_auc_score(truth[:, k], chance[:, k]) for k in (0, 1)])


def test_other_columns_of_the_labels_make_subgroups_and_there_is_a_report(tables):
    labels = pd.read_csv("l.csv")
    labels["sex"] = np.where(labels["Patient ID"] % 2, "M", "F")
    labels["age"] = labels["Patient ID"] % 90
    labels.to_csv("l.csv", index=False)
    main([*WORDS, "evaluation.resamples=40"])
    scores = json.loads(Path("run/scores.json").read_text())["test"]
    assert set(scores["subgroups"]) == {"sex", "age"}
    assert set(scores["subgroups"]["sex"]["groups"]) == {"F", "M"}
    assert not {"calibration", "operating_points", "conformal"} & set(scores)  # nothing is fitted on these images
    page = Path("run/report.html").read_text()
    assert "A table of probabilities, evaluated on l: 388 images of 195 patients." in page
    assert "Parts of this report are missing" not in page
    assert "optimizer" not in page


@pytest.fixture
def classes(tmp_path, monkeypatch):
    """60 images of three classes as written by another program: whole paths, and a table of names and classes."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(1)
    true = random.integers(0, 3, 60)
    probs = np.exp(random.standard_normal((60, 3)) + 2 * np.eye(3)[true])
    probs /= probs.sum(axis=1, keepdims=True)
    answers = pd.DataFrame({"path": [f"/data/part{i % 2}/{i}.jpg" for i in range(60)]})
    answers = answers.assign(**{f"prob_{name}": probs[:, k] for k, name in enumerate(("bcc", "mel", "nv"))})
    answers.round(6).to_csv("p.csv", index=False)
    names = np.array(["bcc", "mel", "nv"])[true]
    pd.DataFrame({"path": [f"part{i % 2}/{i}.jpg" for i in range(60)], "dx": names}).to_csv("l.csv", index=False)
    return true, probs


def test_a_multiclass_table_with_a_column_of_classes(classes, capsys):
    true, probs = classes
    with pytest.raises(SystemExit):
        main(WORDS)
    assert "label=dx reads the class from that column" in capsys.readouterr().err
    main([*WORDS, "label=dx"])
    scores = json.loads(Path("run/scores.json").read_text())["test"]
    assert scores["kind"] == "multiclass"
    assert scores["overall"]["accuracy"]["value"] == pytest.approx((probs.argmax(axis=1) == true).mean())
    expected = roc_auc_score(true, probs, multi_class="ovr", average="macro")
    assert scores["macro"]["auroc"]["value"] == pytest.approx(expected)
    assert "Images are matched by the end of their paths." in capsys.readouterr().out


def test_a_class_is_scored_against_a_column_of_another_name(classes):
    true, probs = classes
    labels = pd.read_csv("l.csv").assign(Melanoma=(true == 1).astype(int)).drop(columns="dx")
    labels.to_csv("l.csv", index=False)
    main([*WORDS, "data.map={mel: Melanoma}"])
    scores = json.loads(Path("run/scores.json").read_text())["test"]
    assert list(scores["classes"]) == ["mel"]
    assert scores["classes"]["mel"]["auroc"]["value"] == pytest.approx(roc_auc_score(true == 1, probs[:, 1]))
    written = pd.read_csv("run/predictions_test.csv")["prob_mel"]
    # the sigmoid of the log odds is the class's probability
    np.testing.assert_allclose(written, probs[:, 1], atol=2e-6)


def test_a_class_whose_name_holds_a_bar_is_one_class(classes):
    true, probs = classes
    class_name = "naevus, 2 (a|b)"
    labels, answers = pd.read_csv("l.csv"), pd.read_csv("p.csv")
    labels.assign(dx=labels["dx"].replace("nv", class_name)).to_csv("l.csv", index=False)
    answers.rename(columns={"prob_nv": f"prob_{class_name}"}).to_csv("p.csv", index=False)
    main([*WORDS, "label=dx", f'prevalence={{"{class_name}": 0.2}}'])
    scores = json.loads(Path("run/scores.json").read_text())["test"]
    assert scores["kind"] == "multiclass"
    assert class_name in scores["classes"]
    assert scores["overall"]["accuracy"]["value"] == pytest.approx((probs.argmax(axis=1) == true).mean())


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (lambda t: t.assign(dx=t["dx"].str.upper()), ["label=dx"], "'data.map={bcc: BCC, mel: MEL, nv: NV}'"),
        (lambda t: t.rename(columns={"path": "name"}), ["label=dx"], "image=name names it: it has 60 of the first 60"),
        (lambda t: t.assign(path="x/0.jpg").head(1), ["label=dx"], ""),
        (
            lambda t: pd.concat([t, t.assign(path=t["path"].str.split("/").str[1])]),
            ["label=dx"],
            "may be part0/0.jpg or 0.jpg",
        ),
    ],
)
def test_classes_and_images_without_a_match_name_the_way_out(classes, capsys, change, words, message):
    change(pd.read_csv("l.csv")).to_csv("l.csv", index=False)
    if not message:  # by its file name alone
        main([*WORDS, *words, "evaluation.resamples=20"])
        assert "matched by their file names" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit):
        main([*WORDS, *words])
    assert message in capsys.readouterr().err


def test_images_without_probabilities_are_left_out(classes, capsys):
    table = pd.read_csv("p.csv")
    table.loc[:2, ["prob_bcc", "prob_mel", "prob_nv"]] = np.nan  # as job=predict writes unreadable images
    table.assign(error="cut short").to_csv("p.csv", index=False)
    main([*WORDS, "label=dx", "evaluation.resamples=20"])
    assert "3 image(s) of predictions=p.csv have no probabilities" in capsys.readouterr().out
    assert len(pd.read_csv("run/predictions_test.csv")) == 57
