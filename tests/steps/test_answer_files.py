"""The table of job=predict, read back from each kind of file."""

import numpy as np
import pandas as pd
import pytest

from finetune.steps.answer_files import Written, format_of


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_texts_stay_texts_and_what_is_unknown_is_told(ending, tmp_path):
    """An id of zeros, a class called 1, and a blank cell are texts, in every format."""
    table = pd.DataFrame(
        {
            "path": ["a.png", "b.png"],
            "prob_1": [0.25, np.nan],
            "decision": ["1", np.nan],
            "patient": ["007", ""],
            "error": ["", "damaged"],
        }
    )
    path = tmp_path / f"preds.{ending}"
    format_ = format_of(path)
    chunks = [format_.encode(table.iloc[:1]), format_.encode(table.iloc[1:])]
    format_.join(path, list(table), lambda: iter(chunks))
    found = Written(path, ["path", "decision", "patient", "error", "heatmap"]).read()
    assert found["prob_1"].iloc[0] == 0.25
    assert np.isnan(found["prob_1"].iloc[1])
    for name, texts in {"decision": ["1", ""], "patient": ["007", ""], "error": ["", "damaged"]}.items():
        assert found[name].tolist() == texts


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_names_of_files_that_are_not_utf_8(ending, tmp_path):
    name = b"\xff.png".decode("utf-8", "surrogateescape")
    table = pd.DataFrame({"path": pd.Series([name], dtype=object), "prob_a": [0.5], "error": [""]})
    path = tmp_path / f"preds.{ending}"
    format_ = format_of(path)
    content = format_.encode(table)
    format_.join(path, list(table), lambda: iter([content]))
    assert Written(path, ["path", "error"]).read()["path"].tolist() == [name]
