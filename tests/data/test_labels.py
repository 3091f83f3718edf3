import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from finetune.data.findings import FINDINGS, canonical, check_one_truth, same_finding, select_findings
from finetune.data.labels import apply_policies, number_hint, read_raw_labels
from finetune.errors import FinetuneError

NAN = np.nan
TWO = ["Edema", "Mass"]
PATHS = ["a.png", "b.png", "c.png"]
MARKS = np.array([[1, -1], [-1, NAN], [NAN, 0.25]])


# -- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uncertain", "missing", "targets"),
    [
        ("ignore", "ignore", [[1, NAN], [NAN, NAN], [NAN, 0.25]]),
        ("one", "ignore", [[1, 1], [1, NAN], [NAN, 0.25]]),
        ("zero", "one", [[1, 0], [0, 1], [1, 0.25]]),
        ({"Edema": "one"}, {}, [[1, NAN], [1, NAN], [NAN, 0.25]]),  # what is not named is ignored
        ({"default": "zero", "Mass": "one"}, {"default": "zero"}, [[1, 1], [0, 0], [0, 0.25]]),
        ({"default": {"soft": [0.3, 0.3]}}, "zero", [[1, 0.3], [0.3, 0], [0, 0.25]]),
    ],
)
def test_policies_settle_uncertain_and_missing_marks(uncertain, missing, targets):
    np.testing.assert_array_equal(apply_policies(MARKS, PATHS, TWO, uncertain, missing), targets)
    assert np.isnan(MARKS).sum() == 2  # the marks stay as they were


def test_soft_targets_hang_on_path_and_finding_alone():
    marks, paths = np.full((1000, 2), -1.0), [f"{i}.png" for i in range(1000)]
    soft = apply_policies(marks, paths, TWO, {"default": {"soft": [0.55, 0.85]}}, "ignore")
    assert 0.55 <= soft.min() < 0.56
    assert 0.84 < soft.max() <= 0.85
    assert abs(soft.mean() - 0.7) < 0.01
    assert len(np.unique(soft)) > 1900
    again = apply_policies(marks[::-1], paths[::-1], ["Mass"], {"Mass": {"soft": [0.55, 0.85]}}, "ignore")
    np.testing.assert_array_equal(again[::-1, 0], soft[:, 1])
    first = apply_policies(np.array([[-1.0]]), ["a.png"], ["Edema"], {"Edema": {"soft": [0, 1]}}, "ignore")
    assert first.item() == 0.597768  # the same on every machine and in every version


@pytest.mark.parametrize(
    ("uncertain", "message"),
    [
        ("maybe", r"data.uncertain=maybe is not known. Choose from ignore, zero, one, \{soft: \[a, b\]\}"),
        ({"Edema": "maybe"}, "data.uncertain.Edema=maybe is not known"),
        (
            {"Edma": "one"},
            r"data.uncertain.Edma: .*Did you mean data.uncertain.Edema\? Choose from default, Edema, Mass",
        ),
        ({"soft": [0.1, 0.2]}, r"soft is a policy.*data.uncertain.default=\{soft: \[0.1, 0.2\]\}"),
        ({"Edema": {"soft": [0.9, 0.1]}}, r"data.uncertain.Edema.soft=\[0.9, 0.1\] must be two numbers"),
        ({"Edema": {"soft": [0, True]}}, "must be two numbers"),
        ({"Edema": {"soft": 0.5}}, "must be two numbers"),
        ({"Edema": {"hard": 1}}, "data.uncertain.Edema={'hard': 1} is not known"),
        (None, "data.uncertain=None is not known"),
    ],
)
def test_unknown_policies_and_findings_are_named(uncertain, message):
    with pytest.raises(FinetuneError, match=message):
        apply_policies(MARKS, PATHS, TWO, uncertain, "ignore")


def test_a_policy_may_use_any_name_of_a_finding_and_name_one_that_is_not_learned():
    marks = np.array([[-1.0]])
    policy = {"Pleural Effusion": "one"}
    assert apply_policies(marks, ["a"], ["Effusion"], policy, "ignore").item() == 1
    assert np.isnan(apply_policies(marks, ["a"], ["Edema"], policy, "ignore", known=["Edema", "Effusion"]).item())


def test_marks_are_read_from_text():
    column = pd.Series(["1.0", " 0", "", "-1.0", "NaN", "True", "0.5", "yes", "NO", "f", "Y"], name="Edema")
    np.testing.assert_array_equal(read_raw_labels(column, Path("t.csv")), [1, 0, NAN, -1, NAN, 1, 0.5, 1, 0, 0, 1])
    for wrong in ("2", "inf", "-0.5", "maybe", "None", "1 0"):
        with pytest.raises(FinetuneError, match=rf"t.csv, line 3: column Edema holds '{wrong}' \(1 such row\(s\)\)"):
            read_raw_labels(pd.Series(["1", wrong], name="Edema"), Path("t.csv"))
    with pytest.raises(
        FinetuneError, match=r"column Edema holds '0.5' .*use 1 \(true, yes\), .* or -1 \(uncertain\)\."
    ):
        read_raw_labels(pd.Series(["1", "0.5"], name="Edema"), "labels", soft=False)


@pytest.mark.parametrize(
    ("cells", "marks"),
    [
        ([True, False, None], [1, 0, NAN]),
        ([1, 0, -1], [1, 0, -1]),
        ([1.0, NAN, 0.25], [1, NAN, 0.25]),
        (["yes", NAN, True], [1, NAN, 1]),
        (pd.array([True, None], dtype="boolean"), [1, NAN]),
        (pd.array([1, None, -1], dtype="Int64"), [1, NAN, -1]),
        (["", None], [NAN, NAN]),
    ],
)
def test_marks_are_read_from_whatever_a_column_holds(cells, marks):
    np.testing.assert_array_equal(read_raw_labels(pd.Series(cells), "t.csv"), marks)


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("0,28", "For 0,28 write 0.28, with a decimal point."),
        (",5", "For ,5 write .5, with a decimal point."),
        ("28 %", "For 28 % write 0.28: divide percentages by 100."),
        ("2,5%", "For 2,5% write 0.025: divide percentages by 100."),
        ("7%", "For 7% write 0.07: divide percentages by 100."),
        *((cell, "") for cell in ("2", "0.5", "", "%", ",", "maybe", "1,2,3", "5% of")),
    ],
)
def test_a_decimal_comma_and_a_percent_sign_say_what_to_write(cell, hint):
    assert number_hint(cell) == hint
    if hint:
        with pytest.raises(FinetuneError, match=re.escape(hint)):
            read_raw_labels(pd.Series(["1", cell]), "t.csv")


def test_two_columns_for_one_finding_are_refused():
    columns = ["Image Index", "Finding Labels", "pleural effusion"]
    check_one_truth(columns, "Finding Labels", ["Edema"], "t.csv")
    with pytest.raises(FinetuneError, match=r"t.csv has a column 'Finding Labels' and a column 'pleural effusion'"):
        check_one_truth(columns, "Finding Labels", ["Edema", "Effusion"], "t.csv")


# -- names ------------------------------------------------------------------------------------------------------------


def test_one_name_for_what_means_the_same():
    assert {canonical(n) for n in ("Pleural Effusion", "pleural effusion", "Effusion", "PLEURAL_EFFUSION")} == {
        "Effusion"
    }
    assert canonical("Pleural thickening") == "Pleural_Thickening"
    assert canonical("no_finding") == "No Finding"
    assert canonical("Pulmonary fibrosis") == "Fibrosis"
    assert canonical("my own finding") == "my own finding"
    assert same_finding("Pulmonary Edema", "edema")
    assert same_finding("my own", "My_Own")


def test_what_is_not_the_same_is_not_merged():
    apart = ["Lung Opacity", "Infiltration", "Consolidation", "Lung Lesion", "Nodule/Mass", "Nodule", "Mass"]
    apart += ["Enlarged Cardiomediastinum", "Cardiomegaly", "Fracture", "Rib fracture", "Hernia", "Hiatal hernia"]
    apart += ["No Finding", "Normal"]
    assert len({canonical(name) for name in apart}) == len(apart)
    names = [name for canon, others in FINDINGS.items() for name in (canon, *others)]
    assert len({name.replace("_", " ").lower() for name in names}) == len(names)  # no alias of two


def test_findings_are_chosen_by_any_of_their_names():
    known = ["Effusion", "Edema"]
    assert select_findings(None, known) == known
    assert select_findings("Pleural Effusion", known) == ["Effusion"]
    with pytest.raises(FinetuneError, match=r"data.findings=Mass is not known. Choose from Effusion, Edema"):
        select_findings(["Mass"], known)
    for wrong in ([], ["Effusion", "Pleural_Effusion"]):
        with pytest.raises(FinetuneError, match="each once"):
            select_findings(wrong, known)
