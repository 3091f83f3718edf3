from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.table import SampleTable
from finetune.errors import FinetuneError
from tests.data.making import make_table

ROOT = Path("/data")


def toy(**changes) -> SampleTable:
    table = make_table(ROOT, ["p", "p", "q"], [[1, 0], [0, np.nan], [0, 0.5]], ["train", "train", "test"])
    frame = table.frame.assign(**{k: v for k, v in changes.items() if k in table.frame})
    return replace(table, frame=frame, **{k: v for k, v in changes.items() if k not in table.frame})


def test_a_sound_table_passes_and_answers():
    table = toy().check()
    assert len(table) == 3
    assert table.rows("train").tolist() == [0, 1]
    assert table.rows("val").tolist() == []
    assert table.file(2) == ROOT / "0002.png"
    assert table.targets().dtype == np.float32
    np.testing.assert_array_equal(table.targets(), np.array([[1, 0], [0, np.nan], [0, 0.5]], np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"path": ["a.png", "/etc/b.png", "c.png"]},
            r"path must stay under data.root=/data; 1 row.*row 1: '/etc/b.png'",
        ),
        ({"path": ["a.png", "../b.png", "c.png"]}, "must stay under data.root=/data"),
        ({"path": ["a.png", "x/../../b.png", "c.png"]}, "must stay under"),
        ({"path": ["a.png", "x\\b.png", "c.png"]}, "must stay under"),
        ({"path": ["a.png", "C:/b.png", "c.png"]}, "must stay under"),
        ({"path": ["a.png", "", "c.png"]}, "path is empty.*row 1"),
        ({"path": ["a.png", "c.png", "c.png"]}, "path is listed twice.*row 2: 'c.png'"),
        ({"patient": ["p", None, "q"]}, "patient is empty"),
        ({"split": ["train", "training", "test"]}, "split must be one of train, val, test"),
        ({"target_c0": [0.0, 2.0, 1.0]}, r"target_c0 must be 1, 0, NaN .*row 1: .*2.0"),
        ({"target_c0": [0.0, -1.0, 1.0]}, "target_c0 must be"),
        ({"target_c0": [0, 1, 1]}, "target_c0 must be float, not int64"),
        ({"classes": []}, "at least one"),
        ({"classes": ["c0", "c0"]}, "distinct"),
        ({"classes": ["c0", " "]}, "distinct names"),
        ({"classes": ["c0", "c9"]}, r"\['target_c9'\] are missing"),
        ({"kind": "binary"}, "kind='binary', choose from multilabel, multiclass"),
        ({"kind": "multiclass"}, r"must sum to 1 .*row 1"),
        ({"kind": "multiclass", "classes": ["c0"]}, "one class 'c0'"),
        ({"metadata": ["age"]}, r"\['age'\] are missing"),
    ],
)
def test_errors_name_table_column_and_row(changes, message):
    with pytest.raises(FinetuneError, match=message) as caught:
        toy(**changes).check()
    assert str(caught.value).startswith("table toy")


def test_dots_and_colons_in_names_are_no_escape():
    toy(path=["a..b.png", "x/...png", "12:30.png"]).check()


def test_rows_must_be_numbered():
    table = toy()
    with pytest.raises(FinetuneError, match="numbered"):
        replace(table, frame=table.frame.iloc[1:]).check()
    with pytest.raises(FinetuneError, match="has no images"):
        replace(table, frame=table.frame.iloc[:0]).check()


def test_hash_follows_content_and_nothing_else():
    table = toy()
    known = table.hash()
    assert known == toy().hash()
    assert known == replace(table, root=Path("/elsewhere"), notes=["x"]).hash()
    assert known == replace(table, frame=table.frame.assign(unlisted=1)).hash()
    text = table.frame.astype({"path": "string", "patient": "string"})
    assert known == replace(table, frame=text).hash()  # pandas' string types change nothing
    others = [
        toy(path=["a.png", "b.png", "c.png"]),
        toy(patient=["p", "q", "q"]),
        toy(split=["train", "test", "test"]),
        toy(split=["train", None, "test"]),
        toy(target_c0=[1.0, 0.0, 1.0]),
        toy(target_c1=[0.0, 0.0, 0.5]),
        toy(kind="multiclass"),
        toy(name="other"),
        replace(table, frame=table.frame.iloc[::-1].reset_index(drop=True)),
    ]
    hashes = [other.hash() for other in others]
    assert len({known, *hashes}) == len(others) + 1


def test_hash_is_the_same_on_every_machine():
    table = make_table(ROOT, ["p", "q"], [[1.0], [np.nan]], ["train", None])
    assert table.hash() == "5cb12cfbf16de47e876e341ec36c12bc1e267a3e929535185b3d328953c312bd"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 0.25, float("nan")]), min_size=1, max_size=12))
def test_targets_keep_their_values(values):
    table = make_table(ROOT, targets=[[v] for v in values]).check()
    np.testing.assert_array_equal(table.targets()[:, 0], np.array(values, np.float32))
    split = table.with_split(["val"] * len(values), ["why"])
    assert split.rows("val").tolist() == list(range(len(values)))
    assert split.notes == ["why"]
    assert table.notes == []
    assert pd.isna(table.frame["split"]).all()
