"""The predictions table: what is written is read back to the last bit, and what cannot be trusted is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finetune.errors import FinetuneError
from finetune.evaluation.classification.predictions import Predictions, probabilities

NAN = np.nan


def table(targets, logits, kind="multilabel", classes=None, **columns):
    n, k = np.shape(logits)
    return Predictions.from_arrays(
        columns.pop("samples", [f"{i}.png" for i in range(n)]),
        columns.pop("patients", [f"p{i}" for i in range(n)]),
        classes or list("abcdefghijkl"[:k]),
        kind,
        np.asarray(targets, float),
        np.asarray(logits, float),
        pd.DataFrame(columns) if columns else None,
    )


def test_columns_stand_in_the_agreed_order():
    given = table([[1, 0]], [[0.0, 2.0]], sex=["F"])
    names = ["sample", "patient", "target_a", "target_b", "logit_a", "logit_b", "prob_a", "prob_b", "sex"]
    assert list(given.frame.columns) == names
    assert given.probs[0, 0] == 0.5
    assert given.metadata == ["sex"]


def test_probabilities_hold_for_extreme_logits():
    np.testing.assert_allclose(probabilities([[800.0, -800.0]], "multilabel"), [[1, 0]])
    np.testing.assert_allclose(probabilities([[800.0, 800.0, -800.0]], "multiclass"), [[0.5, 0.5, 0]])


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_reads_what_it_wrote(tmp_path_factory, kind, data):
    n, k = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 4))
    logits = data.draw(arrays(np.float32, (n, k), elements=st.floats(-50, 50, width=32)))
    targets = np.eye(k)[data.draw(arrays(int, n, elements=st.integers(0, k - 1)))]
    written = table(targets, logits, kind)
    path = written.write(tmp_path_factory.mktemp("t") / "predictions.csv")
    read = Predictions.read(path, kind)
    pd.testing.assert_frame_equal(read.frame, written.frame, check_exact=True)
    assert (read.classes, read.kind, read.metadata) == (written.classes, written.kind, written.metadata)


def test_any_name_survives(tmp_path):
    classes = ["Pleural thickening", 'a "quoted", name', "胸水", "NA", "nan", "1"]
    patients = ["NA", "007", "", None, "null"]
    written = table(
        np.zeros((5, 6)),
        np.arange(30).reshape(5, 6),
        classes=classes,
        patients=patients,
        view=["PA", "NA", None, "AP", "x"],
    )
    assert list(written.patients) == ["NA", "007", "2.png", "3.png", "null"]
    read = Predictions.read(written.write(tmp_path / "p.csv"))
    assert read.classes == classes
    assert list(read.patients) == list(written.patients)
    assert read.frame["view"].tolist()[:2] == ["PA", "NA"]
    assert pd.isna(read.frame["view"][2])
    assert list(tmp_path.iterdir()) == [tmp_path / "p.csv"]


def test_unknown_targets_stay_unknown(tmp_path):
    read = Predictions.read(table([[1, NAN], [0.4, 0]], [[0, 1], [2, 3]]).write(tmp_path / "p.csv"))
    np.testing.assert_array_equal(read.targets, [[1, NAN], [0.4, 0]])
    np.testing.assert_array_equal(read.truth, [[1, NAN], [NAN, 0]])


def test_a_multiclass_row_must_name_one_class():
    rows = [[1, 0, 0], [NAN, NAN, NAN], [0.9, 0.1, 0], [0, 0, 0], [1, NAN, 0]]
    truth = table(rows, np.zeros((5, 3)), "multiclass").truth
    np.testing.assert_array_equal(truth, [[1, 0, 0], *[[NAN] * 3] * 4])


def test_the_kind_is_read_from_the_probabilities(tmp_path):
    one_hot = np.eye(3)
    logits = np.arange(9).reshape(3, 3) / 3
    for kind in ("multilabel", "multiclass"):  # the targets could be either
        assert Predictions.read(table(one_hot, logits, kind).write(tmp_path / "p.csv")).kind == kind
    with pytest.raises(FinetuneError, match=r"not the sigmoid .* first in row 2"):
        Predictions.read(tmp_path / "p.csv", "multilabel")
    changed = table(one_hot, logits)
    changed.frame["prob_a"] = 0.123
    with pytest.raises(FinetuneError, match="neither the sigmoid nor the softmax"):
        Predictions.read(changed.write(tmp_path / "p.csv"))


def test_where_sigmoid_and_softmax_agree_one_hot_targets_decide(tmp_path):
    logits = [[20.0, -20.0], [-20.0, 20.0]]
    for targets, kind in (([[1, 0], [0, 1]], "multiclass"), ([[1, 1], [0, 0]], "multilabel")):
        assert Predictions.read(table(targets, logits).write(tmp_path / "p.csv")).kind == kind


def test_no_samples(tmp_path):
    empty = table(np.zeros((0, 2)), np.zeros((0, 2)))
    assert len(Predictions.read(empty.write(tmp_path / "p.csv"))) == 0
    assert Predictions.from_arrays([], [], ["a"], "multilabel", np.empty((0, 0)), np.empty((0, 0))).logits.shape == (
        0,
        1,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": [[NAN, 0], [1, 2]]}, r"not finite for 1 of 2 samples, first '0.png'.*lower optimizer.lr"),
        ({"samples": ["x", "x"]}, "sample 'x' is there twice"),
        ({"patients": ["x"]}, "1 patients are given for 2 samples"),
        ({"classes": ["a", "a"]}, "'target_a'.* twice"),
        ({"prob_a": [1, 2]}, "'prob_a'.* twice"),
        ({"targets": [[1, 0]]}, r"targets have the shape \(1, 2\)"),
        ({"kind": "binary"}, "kind=binary is not known"),
        ({"kind": "multiclass", "logits": [[1], [2]], "targets": [[1], [1]]}, "needs two classes"),
    ],
)
def test_what_does_not_fit_is_an_error(change, message):
    arguments = {"targets": [[1, 0], [0, 1]], "logits": [[0, 1], [1, 2]], **change}
    with pytest.raises(FinetuneError, match=message):
        table(arguments.pop("targets"), arguments.pop("logits"), **arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a predictions table"),
        ("path,prob_a\nx,0.5\n", "is no predictions table"),
        ("sample,patient,target_a,logit_a\nx,y,1,0\n", r"class\(es\) \['a'\] lack"),
        ("sample,patient,target_a,logit_a,prob_a\nx,y,1,0,high\n", "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_an_error(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(FinetuneError, match=message):
        Predictions.read(tmp_path / "p.csv")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FinetuneError, match=r"p\.csv"):
        Predictions.read(tmp_path / "p.csv")


def test_the_column_of_boxes_of_older_tables_is_no_metadata(tmp_path):
    text = ["Mass 1 2 3.5 4; Pleural Thickening 0 0 1e-05 2", "", ""]
    written = table([[1], [0], [1]], [[0.5], [1.0], [2.0]], sex=["F", "M", "F"], boxes=text)
    read = Predictions.read(written.write(tmp_path / "old.csv"))
    assert read.metadata == ["sex"]
    assert "boxes" not in read.frame
    counted = table([[1], [0], [1]], [[0.5], [1.0], [2.0]], boxes=["2", "none", "1"])  # anybody's column of that name
    assert Predictions.read(counted.write(tmp_path / "own.csv")).metadata == ["boxes"]
