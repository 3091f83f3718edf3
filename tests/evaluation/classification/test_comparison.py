"""Comparisons: paired tests by their definitions, seeds as noise, nothing compared that is not the same."""

import json

import numpy as np
import pytest
import yaml
from scipy.stats import binomtest, chi2

from finetune.errors import FinetuneError
from finetune.evaluation.classification.comparison import Candidate, compare, holm, mcnemar, paired_delong, seed_noise
from finetune.evaluation.classification.predictions import Predictions
from finetune.files import write_json_atomic
from finetune.pages import comparison
from finetune.runs import group as runs
from finetune.statistics.intervals import placements
from finetune.statistics.ranking import auroc
from tests.evaluation.classification.test_predictions import NAN, table


def networks(n=300, better=1.0, noise=0.3, seeds=1, seed=0, per_patient=1):
    """Two networks on the same images: both see the truth through the same fog, one has more of its own."""
    rng = np.random.default_rng(seed)
    target = (rng.random((n, 2)) < 0.4).astype(float)
    fog = rng.normal(size=target.shape)
    patients = [f"p{i // per_patient}" for i in range(n)]

    def answers(own):
        return table(target, 2 * target + fog + own * rng.normal(size=target.shape), patients=patients)

    return [
        Candidate("good", [answers(noise) for _ in range(seeds)], [str(i) for i in range(seeds)]),
        Candidate("bad", [answers(noise + better) for _ in range(seeds)], [str(i) for i in range(seeds)]),
    ]


def delong_by_definition(target, a, b):
    """DeLong's covariance with every pair written out, one image a patient."""
    parts = []
    for score in (a, b):
        x, y = score[target == 1], score[target == 0]
        psi = (x[:, None] > y) + 0.5 * (x[:, None] == y)
        parts.append((psi.mean(), psi.mean(axis=1), psi.mean(axis=0)))
    (auc_a, v10a, v01a), (auc_b, v10b, v01b) = parts
    s10, s01 = np.cov(v10a, v10b), np.cov(v01a, v01b)
    s = s10 / len(v10a) + s01 / len(v01a)
    return auc_a - auc_b, s[0, 0] + s[1, 1] - 2 * s[0, 1]


def test_paired_delong_is_its_definition():
    a, b = (candidate.members[0] for candidate in networks(80))
    target = a.truth[:, 0]
    one, other = (placements(target, np.round(given.logits[:, 0], 1)) for given in (a, b))
    d, variance = delong_by_definition(target, *(np.round(given.logits[:, 0], 1) for given in (a, b)))
    change = one - other
    # d10 and d01 never meet in one patient, so the cross term is 0
    assert (change.auroc, change.variance) == pytest.approx((d, variance))
    found = paired_delong(one, other)
    assert found["low"] < found["value"] < found["high"]
    assert paired_delong(one, one)["p"] == 1


def test_paired_is_narrower_than_side_by_side():
    told = compare(networks(better=0.2), n_boot=200)
    pair = told["pairs"][0]
    score = pair["scores"]["macro_auroc"]
    each = [c["scores"]["macro_auroc"]["high"] - c["scores"]["macro_auroc"]["low"] for c in told["candidates"]]
    assert score["high"] - score["low"] < 0.85 * np.hypot(*each)


def test_the_better_network_is_found_and_equal_ones_do_not_differ():
    told = compare(networks(better=1.5), n_boot=200)
    score = told["pairs"][0]["scores"]["macro_auroc"]
    assert score["low"] > 0
    assert score["p_holm"] < 0.01
    assert told == json.loads(json.dumps(told, allow_nan=False))
    told |= {"split": "test", "runs": [], "out_of_fold": [], "warnings": []}
    first, second = comparison.verdicts(told)
    assert first.startswith("good is above bad in macro AUROC by 0.")
    assert "seed noise is not known" in second
    assert (
        "within chance: other patients could reverse it."
        in comparison.verdicts(compare(networks(better=0.0), n_boot=200) | {"split": "test"})[0]
    )


def test_false_alarms_are_as_rare_as_they_should_be():
    """Equal networks, patients with three images: p below 0.05 in about one of twenty worlds."""
    small = {"delong": 0, "bootstrap": 0, "mcnemar": 0}
    for seed in range(100):
        pair = compare(networks(240, 0.0, seed=seed, per_patient=3), n_boot=60)["pairs"][0]
        small["delong"] += pair["classes"]["a"]["p"] < 0.05
        small["bootstrap"] += pair["scores"]["macro_auroc"]["p"] < 0.05
        small["mcnemar"] += pair["mcnemar"]["accuracy"]["p"] < 0.05
    assert max(small.values()) <= 13  # 5 expected; more than 13 in less than 1 of 1,000


def test_mcnemar_by_hand():
    a = np.array([1, 1, 1, 1, 1, 0, 0, 1, 0, NAN])
    b = np.array([0, 0, 0, 0, 1, 1, 0, 1, 0, 1])
    found = mcnemar(a, b, np.arange(10))
    assert found == {"only_a": 4, "only_b": 1, "p": pytest.approx(binomtest(4, 5).pvalue), "exact": True}
    # patients with two images each: (sum of differences)^2 over sum of squares
    two = mcnemar(a, b, np.arange(10) // 2)
    sums = np.array([2, 2, -1, 0])
    assert two["p"] == pytest.approx(chi2.sf(sums.sum() ** 2 / (sums**2).sum(), 1))
    assert not two["exact"]
    assert mcnemar(a, a, np.arange(10))["p"] == 1


def test_holm_by_hand():
    tests = [{"p": 0.01}, {"p": 0.04}, {"p": 0.03}, {"p": NAN}]
    holm(tests)
    assert [test["p_holm"] for test in tests[:3]] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(tests[3]["p_holm"])


def test_seeds_are_averaged_and_their_spread_is_noise():
    candidates = networks(better=0.1, noise=1.0, seeds=3)
    told = compare(candidates, n_boot=50)
    seeds = [auroc(m.truth[:, 0], m.logits[:, 0]) for m in candidates[0].members]
    assert told["pairs"][0]["classes"]["a"]["a"] == pytest.approx(np.mean(seeds))
    scores = told["candidates"][0]["scores"]["macro_auroc"]
    assert scores["value"] == pytest.approx(np.mean(scores["seeds"]))
    noise = told["seed_noise"]["macro_auroc"]
    assert noise["df"] == 4
    assert told["pairs"][0]["scores"]["macro_auroc"]["seed_noise"] == pytest.approx(noise["single"] / 3**0.5)
    assert any("are seed noise" in sentence for sentence in comparison.verdicts(told | {"split": "test"}))


def test_seed_noise_by_hand():
    found = seed_noise([[{"m": 1.0}, {"m": 3.0}], [{"m": 5.0}]])["m"]
    assert (found["sd"], found["df"]) == (pytest.approx(2**0.5), 1)
    assert seed_noise([[{"m": 1.0}], [{"m": 2.0}]]) == {}


def test_rows_in_another_order_are_the_same():
    good, bad = networks()
    mixed = Predictions(bad.members[0].frame.sample(frac=1, random_state=0), bad.members[0].classes, "multilabel")
    assert compare([good, Candidate("bad", [mixed], ["0"])], n_boot=20) == compare([good, bad], n_boot=20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.iloc[5:], r"of their samples 5 only in good \(such as 0.png\)\."),
        (lambda f: f.assign(target_a=1 - f["target_a"]), "300 labels differ, first a of 0.png"),
        (lambda f: f.assign(patient="one"), "their patients differ"),
    ],
)
def test_what_is_not_the_same_is_refused_and_named(change, message):
    good, bad = networks()
    other = Predictions(change(bad.members[0].frame).reset_index(drop=True), ["a", "b"], "multilabel")
    with pytest.raises(FinetuneError, match=f"good and bad cannot be compared: {message}"):
        compare([good, Candidate("bad", [other], ["0"])])


def test_multiclass_compares_accuracy():
    rng = np.random.default_rng(0)
    true, fog = rng.integers(0, 3, 300), rng.normal(size=(300, 3))
    tables = [table(np.eye(3)[true], by * np.eye(3)[true] + fog, "multiclass") for by in (3.0, 1.0)]
    told = compare([Candidate(name, [t], ["0"]) for name, t in zip("ab", tables, strict=True)], n_boot=50)
    pair = told["pairs"][0]
    right = [(t.logits.argmax(axis=1) == true) for t in tables]
    assert pair["mcnemar"]["accuracy"]["only_a"] == (right[0] & ~right[1]).sum()
    assert pair["scores"]["accuracy"]["value"] == pytest.approx(right[0].mean() - right[1].mean())
    assert pair["scores"]["accuracy"]["low"] > 0


# -- runs -------------------------------------------------------------------------------------------------------------


def write_run(folder, predictions, **settings):
    folder.mkdir(parents=True)
    config = {"job": "fit", "seed": 0, "backbone": {"name": "resnet18"}, "data": {"fold": None, "folds": 3, "seed": 0}}
    for key, value in settings.items():
        node = config
        *path, last = key.split("__")
        for part in path:
            node = node[part]
        node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    predictions.write(folder / "predictions_test.csv")
    write_json_atomic(folder / "scores.json", {"test": {"kind": predictions.kind}})
    return folder


def fold(number, n=60):
    rng = np.random.default_rng(number)
    target = (rng.random((n, 2)) < 0.4).astype(float)
    names = [f"{number}_{i}.png" for i in range(n)]
    return table(target, 2 * target + rng.normal(size=target.shape), samples=names, patients=names)


def test_seeds_are_one_candidate_and_settings_name_the_others(tmp_path):
    good, bad = networks(seeds=2)
    for i in range(2):
        write_run(tmp_path / f"g{i}", good.members[i], seed=i)
        write_run(tmp_path / f"b{i}", bad.members[i], seed=i, backbone__name="resnet50")
    read = [runs.read(path, "test") for path in runs.find(str(tmp_path))]
    candidates, folds, said = runs.group_runs(read)
    assert [(c.label, c.seeds) for c in candidates] == [
        ("backbone=resnet50", ["0", "1"]),
        ("backbone=resnet18", ["0", "1"]),
    ]
    assert not folds
    assert not said


LIGHT = {"_target_": "x.Augment", "transforms": {"affine": {"_target_": "a.Affine", "p": 1.0}}}


@pytest.mark.parametrize(
    ("settings", "typed", "labels"),
    [
        ([LIGHT, {}], ["transforms=light seed=0", "transforms=none"], ["transforms=light", "transforms=none"]),
        ([LIGHT, {}], [None, None], ["transforms=(Augment)", "transforms=(none)"]),
        ([LIGHT, {}], ["transforms=light,none"] * 2, ["transforms=(Augment)", "transforms=(none)"]),
        (
            [LIGHT, {**LIGHT, "transforms": {"affine": None}}],
            ["transforms=light", "transforms=light transforms.transforms.affine=null"],
            ["transforms.transforms.affine=(Affine)", "transforms.transforms.affine=null"],
        ),
        (
            [LIGHT, {**LIGHT, "_target_": "x.Other", "rate": 2}],
            ["transforms=light", "transforms=other transforms.rate=2"],
            ["transforms=light", "transforms=other, transforms.rate=2"],
        ),
        (  # the same words, another configuration: told apart by their folders
            [LIGHT, {}],
            ["transforms=mine", "transforms=mine"],
            ["transforms=mine (0)", "transforms=mine (1)"],
        ),
    ],
)
def test_a_group_that_is_another_mapping_is_named_as_it_was_typed(tmp_path, settings, typed, labels):
    good, bad = networks(seeds=1)
    for i, (held, words, network) in enumerate(zip(settings, typed, (good, bad), strict=True)):
        write_run(tmp_path / str(i), network.members[0], transforms=held)
        if words is not None:
            write_json_atomic(tmp_path / str(i) / "environment.json", {"command": f"python -m finetune {words}"})
    candidates, _, _ = runs.group_runs([runs.read(tmp_path / str(i), "test") for i in range(2)])
    assert [candidate.label for candidate in candidates] == labels


def test_folds_are_put_together_each_sample_once(tmp_path):
    for i in range(3):
        write_run(tmp_path / str(i), fold(i), data__fold=i)
    candidates, collected, said = runs.group_runs([runs.read(path, "test") for path in runs.find(str(tmp_path))])
    assert not said
    assert len(candidates) == len(collected) == 1
    pooled = collected[0].pooled
    assert len(pooled) == 180
    assert pooled.frame["fold"].value_counts().to_dict() == {0: 60, 1: 60, 2: 60}
    path = pooled.write(tmp_path / "predictions_oof.csv")
    assert Predictions.read(path).metadata == ["fold"]
    told = comparison.fold_scores(collected[0], n_boot=20)
    each = [of["macro"]["auroc"]["value"] for of in told["folds"].values()]
    assert told["mean"]["auroc"] == {
        "value": pytest.approx(np.mean(each)),
        "sd": pytest.approx(np.std(each, ddof=1)),
        "folds": 3,
    }
    assert told["pooled"]["n"] == 180


def test_missing_folds_are_said_and_overlapping_ones_refused(tmp_path):
    one, two = write_run(tmp_path / "0", fold(0), data__fold=0), write_run(tmp_path / "1", fold(1), data__fold=1)
    _, collected, said = runs.group_runs([runs.read(path, "test") for path in (one, two)])
    assert said == [f"{collected[0].label}, seed 0: fold(s) 2 of 3 are missing."]
    again = write_run(tmp_path / "2", fold(0), data__fold=2)
    with pytest.raises(FinetuneError, match=r"0_0.png is in two of their test splits"):
        runs.group_runs([runs.read(path, "test") for path in (one, two, again)])
    twin = write_run(tmp_path / "3", fold(5), data__fold=0)
    with pytest.raises(FinetuneError, match="have the same settings, seed and fold 0: leave one out"):
        runs.group_runs([runs.read(path, "test") for path in (one, twin)])


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "is not a folder"), ("empty", "holds no run"), ("half", "is not finished")]
)
def test_folders_that_are_no_runs_are_named(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "half", fold(0))
    (tmp_path / "half" / "scores.json").unlink()
    with pytest.raises(FinetuneError, match=message):
        runs.find([str(tmp_path / name)])
