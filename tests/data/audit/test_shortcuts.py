"""A metadata column that predicts the label by itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.data.audit.audit import audit_table
from finetune.data.audit.shortcuts import coded, shortcuts
from tests.data.making import make_table


def table_with(column: np.ndarray, target: np.ndarray, patients=None):
    n = len(target)
    split = np.where(np.arange(n) % 2 == 0, "train", np.where(np.arange(n) % 4 == 1, "val", "test"))
    made = make_table(Path("/data"), patients, target[:, None], list(split))
    return replace(made, frame=made.frame.assign(site=column), metadata=["site"])


def test_a_scanner_that_gives_the_label_away():
    """P(scanner B | finding) = 0.8, P(scanner B | none) = 0.2: the AUROC of a coin with these odds is 0.8."""
    random = np.random.default_rng(0)
    target = (random.random(4000) < 0.3).astype(float)
    site = np.where(random.random(4000) < np.where(target == 1, 0.8, 0.2), "B", "A")
    (result,) = shortcuts(table_with(site, target))
    assert (result.column, result.label, result.images) == ("site", "c0", 2000)
    assert result.auroc == pytest.approx(0.8, abs=0.03)
    assert result.low < result.auroc < result.high


def test_numbers_need_not_rise_with_the_rate():
    random = np.random.default_rng(0)
    age = random.uniform(0, 100, 4000)
    target = (random.random(4000) < np.where(np.abs(age - 50) < 10, 0.9, 0.1)).astype(float)
    (result,) = shortcuts(table_with(age, target))
    assert result.auroc > 0.8


def test_what_says_nothing_is_not_listed():
    random = np.random.default_rng(0)
    target = (random.random(2000) < 0.3).astype(float)
    assert shortcuts(table_with(random.choice(["A", "B"], 2000), target)) == []
    assert shortcuts(table_with(np.array(["A"] * 2000), target)) == []  # one value
    assert shortcuts(table_with(np.arange(2000).astype(str), target)) == []  # a value of its own for everyone
    few = np.zeros(2000)
    few[:12] = 1  # six of them held out
    assert shortcuts(table_with(np.where(few == 1, "B", "A"), few)) == []


def test_missing_values_are_a_value_and_unknown_labels_are_left_out():
    column = coded(pd.Series([1.0, np.nan] + [float(i) for i in range(20)]), np.arange(22))
    assert column[1] == column.max()
    random = np.random.default_rng(0)
    target = (random.random(4000) < 0.3).astype(float)
    site = np.where(target == 1, None, "A")
    target[::7] = np.nan
    (result,) = shortcuts(table_with(site.astype(object), target))
    assert result.images == int((~np.isnan(target[1::2])).sum())
    assert audit_table(table_with(site, target)).shortcuts == []  # with the images, whose sizes are columns too
