"""The worst errors: which they are, in what order, and spread over the classes."""

import numpy as np
from scipy.special import expit

from finetune.evaluation.classification import selective
from finetune.evaluation.classification.predictions import Predictions
from finetune.explanations.worst_errors import count, thresholds_of, worst


def predictions(kind: str, targets, logits, patients=None) -> Predictions:
    n, classes = len(targets), [f"c{k}" for k in range(len(targets[0]))]
    patients = patients or [f"p{i}" for i in range(n)]
    return Predictions.from_arrays([f"{i}.png" for i in range(n)], patients, classes, kind, targets, logits)


def test_missed_and_false_alarms_take_turns_over_the_classes():
    nan = np.nan
    targets = np.array([[1, 0], [1, 0], [0, 1], [0, nan], [1, 1]], float)
    logits = np.array([[-3, -5], [-1, 2], [4, 1], [2, 9], [3, 2]], float)
    table = predictions("multilabel", targets, logits)
    assert count(table) == 5  # c0: 0 and 1 missed, 2 and 3 false alarms; c1: 1 false alarm; what is unknown is no error
    output = [(one["sample"], one["class"], one["kind"]) for one in (w.to_dict(table) for w in worst(table, 9))]
    assert output == [
        ("2.png", "c0", "false alarm"),
        ("1.png", "c1", "false alarm"),
        ("0.png", "c0", "missed"),
        ("3.png", "c0", "false alarm"),
        ("1.png", "c0", "missed"),
    ]
    assert [w.row for w in worst(table, 2)] == [2, 1]
    assert worst(table, 0) == []
    assert {w.k for w in worst(table, 9, finding="c1")} == {1}
    assert count(table, finding="c1") == 1


def test_thresholds_say_what_is_wrong():
    point = {"youden": {"thresholds": {"c0": 0.9}}, "other": {"thresholds": {"c1": 0.1}}}
    limits = thresholds_of(point, ["c0", "c1"])
    assert limits.tolist() == [0.9, 0.1]  # of each class the first operating point that has a threshold for it
    decided = selective.thresholds_by_class(predictions("multilabel", np.zeros((1, 2)), np.zeros((1, 2))), point)
    assert [decided[name]["threshold"] for name in ("c0", "c1")] == limits.tolist()
    assert [decided[name]["point"] for name in ("c0", "c1")] == ["youden", "other"]
    table = predictions("multilabel", np.array([[1.0, 0], [0, 0]]), np.array([[1.0, -3], [1, -3]]))
    assert [w.kind for w in worst(table, 9, limits)] == ["missed"]  # 0.73 is a no to c0 for both
    assert [w.kind for w in worst(table, 9)] == ["false alarm"]
    assert thresholds_of({}, ["c0"]).tolist() == [0.5]


def test_a_patient_is_shown_once_per_class_and_kind():
    targets, logits = np.array([[0.0], [0], [0]]), np.array([[1.0], [3], [2]])
    table = predictions("multilabel", targets, logits, ["a", "a", "b"])
    assert [w.row for w in worst(table, 9)] == [1, 2]
    assert count(table) == 3


def test_multiclass_errors_name_truth_and_answer():
    targets = np.eye(3)[[0, 0, 1, 2]]
    logits = np.array([[0, 5, 0], [0, 0, 1.0], [0, 2, 0], [3, 0, 0]])
    table = predictions("multiclass", targets, logits)
    output = [wrong.to_dict(table) for wrong in worst(table, 9)]
    assert [(one["true"], one["answer"]) for one in output] == [("c0", "c1"), ("c2", "c0"), ("c0", "c2")]
    assert output[0]["class"] == "c1"
    assert output[0]["probability"] == table.probs[0, 1]
    assert "kind" not in output[0]
    assert [w.row for w in worst(table, 9, finding="c2")] == [3]
    assert expit(0) == 0.5
