"""The first screen, by hand: the trivial prediction, where it fails, and what did not hold."""

import pytest

from finetune.evaluation import wording
from finetune.pages import conditions, overview
from finetune.pages.overview import BAD, GOOD, OPEN
from tests.evaluation.runs import write_run
from tests.pages.test_report import change, page


def score(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def moles(accuracy=(0.628, 0.563, 0.690)):
    """Three classes, one never predicted: 64, 25 and 11 of 100 images."""
    counts = [[58, 6, 0], [20, 5, 0], [11, 0, 0]]
    sensitivities = (58 / 64, 5 / 25, 0.0)
    classes = {
        name: {
            "auroc": score(0.9, 0.8, 0.95),
            "average_precision": score(0.5, 0.4, 0.6),
            "sensitivity": score(s, s, s + 0.1),
            "positives": sum(row),
            "negatives": 100 - sum(row),
        }
        for name, row, s in zip(("nv", "mel", "vasc"), counts, sensitivities, strict=True)
    }
    return {
        "kind": "multiclass",
        "macro": {"auroc": score(0.9, 0.85, 0.94), "sensitivity": score(0.369, 0.3, 0.42)},
        "overall": {"accuracy": score(*accuracy)},
        "classes": classes,
        "confusion": {"classes": list(classes), "counts": counts},
    }


def test_accuracy_stands_beside_always_answering_the_largest_class():
    accuracy, recall, auroc = overview.comparisons(moles())
    assert (accuracy.name, accuracy.trivial, accuracy.state) == ("accuracy", "0.640, always predicting nv", OPEN)
    assert (recall.trivial, recall.state) == ("0.333, any constant prediction", OPEN)
    assert (auroc.name, auroc.trivial, auroc.state) == ("macro AUROC", "0.500, guessing", GOOD)
    assert overview.comparisons(moles((0.7, 0.66, 0.75)))[0].state == GOOD
    assert overview.comparisons(moles((0.5, 0.4, 0.6)))[0].state == BAD


def test_a_baseline_of_scores_json_is_taken_as_it_is():
    gain = {"accuracy": score(0.02, 0.001, 0.04)}
    trivial = {"answer": "mel", "overall": {"accuracy": 0.61}, "gains": gain}
    accuracy = overview.comparisons({**moles(), "baseline": trivial})[0]
    assert (accuracy.trivial, accuracy.state) == ("0.610, always predicting mel", GOOD)


def test_harms_of_scores_json_judge():
    scores = {"calibration": calibrated(a=(0.216, 0.376)), "harms": []}
    (check, *_) = conditions.checks(scores, {}, {"counts": {}}, [], True)
    assert (check.name, check.state) == ("Calibration", OPEN)  # worse, but no more than so few patients of val explain
    harms = [{"rule": "calibration", "short": "x"}, {"rule": "never found", "short": "never found: a"}]
    made = conditions.checks({**scores, "harms": harms}, {}, {"counts": {}}, [], True)
    assert [(check.name, check.state) for check in made[:2]] == [("Calibration", BAD), ("Never found", BAD)]
    assert made[1].text == "never found: a."


def test_average_precision_stands_beside_the_prevalence():
    classes = {
        name: {"positives": n, "negatives": 100 - n, "average_precision": score(value)}
        for name, n, value in (("a", 30, 0.6), ("b", 10, 0.2), ("never", 0, None))
    }
    macro = {"auroc": score(0.8, 0.7, 0.9), "average_precision": score(0.4, 0.3, 0.5)}
    _, average = overview.comparisons({"kind": "multilabel", "macro": macro, "classes": classes})
    assert average.trivial == "0.200, guessing (the mean prevalence)"
    assert average.state == GOOD


def test_a_class_that_is_never_predicted_is_named_first():
    said = overview.failures(moles())
    assert said[:3] == [
        "Never predicted: vasc.",
        "Lowest sensitivity (recall): vasc, 0.000 (0.000–0.100).",
        "Most frequent confusion: mel taken for nv: 20 of 25 (80.0 %).",
    ]


def test_gaps_beyond_chance_come_first():
    gap = {"worst": "old", "best": "young", "value": 0.1, "low": 0.02, "high": 0.2}
    within = {**gap, "value": 0.2, "low": -0.1}
    scores = {
        "classes": {"a": {}},
        "subgroups": {
            "site": {"gaps": {"macro": {"auroc": within}}},
            "age": {"gaps": {"macro": {"auroc": gap}}},
            "id": {"left_out": "names"},
        },
    }
    said = overview.failures(scores)
    assert said[0] == "Weakest group by age: old is 0.100 below young in AUROC, beyond chance."
    assert said[1].endswith("within chance.")
    assert conditions.groups(scores).state == BAD
    assert conditions.groups({"subgroups": {"site": scores["subgroups"]["site"]}}).state == GOOD


def calibrated(**changes):
    return {
        "classes": {
            name: {
                "before": {"log_loss": score(0.315)},
                "after": {"log_loss": score(0.611)},
                "difference": {"log_loss": score(sum(edges) / 2, *edges)},
            }
            for name, edges in changes.items()
        }
    }


@pytest.mark.parametrize(
    ("changes", "state", "text"),
    [
        ({"a": (0.216, 0.376), "b": (-0.2, -0.1)}, BAD, "makes the log loss worse for a: 0.315 to 0.611."),
        ({"a": (-0.2, 0.1), "b": (-0.2, -0.1)}, GOOD, "lowers the log loss for 1 of 2 classes"),
        ({"a": (-0.2, 0.1)}, OPEN, "changes the log loss no more than chance."),
    ],
)
def test_calibration_that_makes_it_worse_is_said(changes, state, text):
    check = conditions.calibration({"calibration": calibrated(**changes)})
    assert check.state == state
    assert check.text.startswith(text)


def test_sets_that_miss_their_promise_name_the_worst_side():
    sides = {"yes": score(0.93, 0.9, 0.95), "no": score(0.255, 0.204, 0.314)}
    check = conditions.conformal({"conformal": {"error": 0.1, "classes": {"Pneumonia": sides}}})
    assert check.state == BAD
    assert check.text == "90 % coverage promised, lowest 25.5 % (20.4–31.4) of images without Pneumonia on this split."
    held = {"error": 0.1, "overall": {"coverage": score(0.88, 0.85, 0.91)}, "classes": {}}
    assert conditions.conformal({"conformal": held}).state == GOOD


def test_an_operating_point_that_misses_its_target_is_said():
    point = {"criterion": "sensitivity of 0.9", "classes": {"a": {"sensitivity": score(0.7, 0.6, 0.8)}}}
    named = {"screen": point, "best": {"criterion": "most F1", "classes": {}}}
    (check,) = conditions.targets({"operating_points": named})
    assert (check.state, check.text) == (BAD, "sensitivity 0.9 required, 0.700 (0.600–0.800) for a.")
    point["classes"]["a"]["sensitivity"] = score(0.85, 0.8, 0.92)
    assert conditions.targets({"operating_points": named})[0].state == GOOD


def test_val_and_test_that_part_are_said():
    test, val = ({"macro": {"auroc": score(*edges)}} for edges in ((0.94, 0.918, 0.957), (0.995, 0.986, 0.998)))
    assert conditions.transfer(test, val).text == "AUROC 0.995 and 0.940: the intervals do not overlap."
    assert conditions.transfer(test, val).state == BAD
    assert conditions.transfer(test, test).state == GOOD
    assert conditions.transfer(test, {}) is None


def test_what_did_not_hold_comes_first():
    scores = {"calibration": calibrated(a=(-0.2, -0.1))}
    made = conditions.checks(scores, {}, {"leaks": [{"text": "p1"}]}, [{}, {}], has_patients=False)
    assert [check.state for check in made] == [BAD, OPEN, OPEN, GOOD]
    assert made[0].text == "1 leak between them."
    assert conditions.checks({}, {}, {}, [], True)[0].text == "none was fitted."


def test_one_is_not_several():
    assert wording.counted(1, "image") == "1 image"
    assert wording.counted(1200, "image") == "1,200 images"
    assert wording.counted(2, "class", "classes") == "2 classes"


def test_the_page_has_the_trivial_answer_and_the_open_points(tmp_path):
    run = write_run(tmp_path, "multiclass", ["cat", "dog", "frog"], n=200, n_boot=10)
    shown = page(run).text
    assert "always predicting" in shown
    assert "Lowest sensitivity (recall):" in shown
    assert "Calibration : none was fitted." in shown
    change(run, "audit.json", has_patients=False)
    assert "Patients : not known, so intervals may be too narrow." in page(run).text


def test_a_published_result_is_shown_but_not_beside_synthetic_images(tmp_path):
    run = write_run(tmp_path, n=100, n_boot=5)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("{name: chestxray,", "{name: chestxray, reference: 'AUROC 0.841',"))
    assert "Published, on their split: AUROC 0.841" in page(run).text
    change(run, "environment.json", data={"name": "chestxray", "synthetic": True})
    assert "Published, on their split" not in page(run).text
