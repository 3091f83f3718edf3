"""Subgroups: a planted shift is found and named, none is found where there is none, few patients are put together."""

import json

import numpy as np
import pandas as pd
import pytest

from finetune.errors import FinetuneError
from finetune.evaluation.classification.subgroups import MAX_GROUPS, banded, gap_warnings, grouped, subgroups
from finetune.files import plain
from finetune.statistics.ranking import auroc
from tests.evaluation.classification.test_predictions import NAN, table


def sites(n=1500, seed=0, weak="south", by=1.5, classes=2, per_patient=2):
    """Three sites; at one of them the answers to the first class are nearer to guessing."""
    rng = np.random.default_rng(seed)
    patient = np.arange(n) // per_patient
    site = rng.choice(["north", "south", "west"], n)[patient]
    target = (rng.random((n, classes)) < 0.3).astype(float)
    logits = rng.normal(size=target.shape) + 2 * target
    logits[:, 0] -= by * target[:, 0] * (site == weak)
    return table(target, logits, patients=[f"p{i}" for i in patient], site=site, age=rng.integers(1, 95, n)[patient])


def test_a_planted_shift_is_found_and_the_worst_group_named():
    given = sites()
    found = subgroups(given, n_boot=200)
    site = found["site"]
    assert list(site["groups"]) == ["north", "south", "west"]
    assert site["worst"] == "south"
    gap = site["gaps"]["classes"]["a"]["auroc"]
    assert gap["worst"] == "south"
    assert gap["pairs"] == 3
    assert 0 < gap["low"] < gap["value"] < gap["high"]
    said = gap_warnings(found)
    assert any(s.startswith("AUROC of a is lower for site = south than for ") for s in said)
    assert not any("AUROC of b" in s or "age" in s for s in said)


def test_the_gap_of_a_single_class_is_said_once():
    said = gap_warnings(subgroups(sites(classes=1), ["site"], n_boot=100))
    assert len([sentence for sentence in said if "site = south" in sentence]) == 1
    assert said[0].startswith("AUROC is lower for site = south than for ")


def test_the_gap_of_two_classes_that_exclude_each_other_is_said_once():
    given = sites(classes=1)
    two = np.c_[given.targets, 1 - given.targets]
    logits = np.c_[given.logits, np.zeros(len(given))]
    again = table(two, logits, "multiclass", patients=given.patients.tolist(), site=given.frame["site"])
    said = [sentence for sentence in gap_warnings(subgroups(again, n_boot=100)) if sentence.startswith("AUROC")]
    assert len(said) == 1


def test_every_score_of_every_group_with_n_and_interval():
    given = sites()
    found = plain(subgroups(given, ["site"], n_boot=50))
    assert found == json.loads(json.dumps(found, allow_nan=False))
    north = found["site"]["groups"]["north"]
    rows = (given.frame["site"] == "north").to_numpy()
    assert north["n"] == rows.sum()
    assert north["patients"] == len(set(given.patients[rows]))
    assert north["classes"]["a"]["auroc"]["value"] == pytest.approx(auroc(given.truth[rows, 0], given.logits[rows, 0]))
    for metric in ("sensitivity", "ppv", "f1", "brier", "log_loss", "average_precision"):
        score = north["classes"]["a"][metric]
        assert score["low"] < score["value"] < score["high"]


def test_the_gap_of_nothing_holds_zero_nineteen_times_of_twenty():
    """Without a shift, over worlds: the best and worst of three groups are told apart in few of them."""
    found = [subgroups(sites(400, seed, by=0.0, classes=1), ["site"], n_boot=60) for seed in range(60)]
    false = sum(of["site"]["gaps"]["macro"]["auroc"]["low"] > 0 for of in found)
    assert false <= 7  # 3 expected; more than 7 in less than 1 of 100


def test_a_macro_gap_compares_the_same_classes():
    """Class b exists in the north alone, where it is easy: the macro means of the sites must not differ for that."""
    given = sites(classes=2, by=0.0)
    frame = given.frame
    elsewhere = (frame["site"] != "north").to_numpy()
    targets = given.targets.copy()
    targets[elsewhere, 1] = NAN
    logits = given.logits.copy()
    logits[:, 1] += 9 * np.nan_to_num(targets[:, 1])
    again = table(targets, logits, patients=given.patients.tolist(), site=frame["site"])
    gap = subgroups(again, n_boot=100)["site"]["gaps"]["macro"]["auroc"]
    assert gap["classes"] == ["a"]
    assert gap["low"] < 0


def test_a_group_of_few_classes_does_not_keep_the_others_from_being_compared():
    given = sites(1200, by=0.0)
    view = np.where(np.arange(1200) < 24, "lateral", np.where(np.arange(1200) % 4 < 2, "AP", "PA"))
    targets = np.where((view == "lateral")[:, None] & (np.arange(1200) > 4)[:, None], 0.0, given.targets)
    again = table(targets, given.logits, patients=given.patients.tolist(), view=view)
    found = subgroups(again, n_boot=50)["view"]
    assert found["groups"]["lateral"]["patients"] == 12
    assert "compared" not in found["groups"]["lateral"]
    gap = found["gaps"]["macro"]["auroc"]
    assert {gap["worst"], gap["best"]} == {"AP", "PA"}
    means = {name: found["groups"][name]["compared"]["auroc"] for name in ("AP", "PA")}
    assert gap["value"] == pytest.approx(means[gap["best"]]["value"] - means[gap["worst"]]["value"])
    assert means["AP"]["low"] < means["AP"]["value"] < means["AP"]["high"]


def test_multiclass_has_gaps_of_accuracy():
    rng = np.random.default_rng(0)
    true, sex = rng.integers(0, 3, 600), rng.choice(["F", "M"], 600)
    logits = rng.normal(size=(600, 3)) + (3 - 2.5 * (sex == "M"))[:, None] * np.eye(3)[true]
    found = subgroups(table(np.eye(3)[true], logits, "multiclass", sex=sex), n_boot=100)["sex"]
    assert found["worst"] == "M"
    assert found["gaps"]["overall"]["accuracy"]["low"] > 0.1
    loss = found["gaps"]["overall"]["log_loss"]
    assert (loss["worst"], loss["best"]) == ("M", "F")
    assert loss["low"] > 0


def people(n):
    return np.array([f"p{i}" for i in range(n)])


def test_ages_in_the_bands_that_people_use():
    ages = np.array([3, 17, 18, 39, 40, 59, 60, 79, 80, 91.0])
    bands = ["below 18"] * 2 + ["18 to below 40"] * 2 + ["40 to below 60"] * 2 + ["60 to below 80"] * 2
    assert banded(ages, "Patient Age").tolist() == [*bands, "80 and above", "80 and above"]
    assert banded(np.arange(8.0), "pages").tolist()[0] == "below 1.75"  # no age: quarters


def test_numbers_as_text_and_blanks():
    values = pd.Series([str(i) for i in range(100)] + [None, ""] * 10)
    group, why = grouped(values, people(120), "weight")
    assert not why
    assert sorted(set(group)) == [
        "24.75 to below 49.5",
        "49.5 to below 74.25",
        "74.25 and above",
        "below 24.75",
        "unknown",
    ]
    assert (group[100:] == "unknown").all()


def test_few_patients_are_put_together_and_marked():
    values = pd.Series(["AP"] * 50 + ["PA"] * 50 + ["LL"] * 3 + ["RL"] * 2)
    group, why = grouped(values, people(105))
    assert not why
    assert set(group) == {"AP", "PA", "other"}
    target = np.tile([0.0, 1, 1], 35)[:, None]
    found = subgroups(table(target, target + np.random.default_rng(0).normal(size=(105, 1)), view=values), n_boot=20)
    groups = found["view"]["groups"]
    assert list(groups) == ["AP", "PA", "other"]
    assert groups["other"]["note"] == "fewer than 10 patients"
    assert {found["view"]["worst"], found["view"]["best"]} == {"AP", "PA"}


def test_images_of_one_patient_are_no_group():
    values = pd.Series(["A"] * 60 + ["B"] * 60)
    one_each, few = people(120), np.repeat(people(4), 30)
    assert not grouped(values, one_each)[1]
    assert grouped(values, few)[1] == "fewer than two groups of 10 patients or more."


def test_names_and_constants_are_left_out_and_said():
    given = table([[1.0], [0.0]] * 30, np.zeros((60, 1)), accession=[f"x{i}" for i in range(60)], kv=["120"] * 60)
    found = subgroups(given, n_boot=5)
    assert found["accession"] == {"left_out": "60 different values: a name, not a group."}
    assert found["kv"] == {"left_out": "fewer than two groups of 10 patients or more."}
    with pytest.raises(FinetuneError, match=r"evaluation.subgroups=\['site'\]: no such metadata column"):
        subgroups(given, ["site"])
    assert subgroups(given, []) == {}


def test_many_values_keep_the_largest():
    values = pd.Series(np.repeat([f"scanner {i}" for i in range(20)], np.arange(20) + 12))
    group, why = grouped(values, people(len(values)))
    assert not why
    assert len(set(group)) == MAX_GROUPS
    assert "scanner 19" in group
    assert (group == "other").sum() > 100
