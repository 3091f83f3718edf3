"""What the report says of calibration, operating points, subgroups and openings; and the page of a comparison."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from finetune.errors import FinetuneError
from finetune.evaluation import wording
from finetune.evaluation.classification.assessment import Assessment, FittedOnVal, read_prevalence
from finetune.evaluation.classification.comparison import compare
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.summary import write_json_atomic
from finetune.pages import comparison, sections
from tests.evaluation.classification.test_calibration import binary
from tests.evaluation.classification.test_comparison import networks
from tests.evaluation.runs import write_run
from tests.pages.test_report import Page, page

ASSESSMENT = Assessment(operating_points={"screen": {"sensitivity": 0.9}, "off": None}, resamples=40)


@pytest.fixture(scope="module", params=["multilabel", "multiclass"])
def assessed(request, tmp_path_factory):
    """A run whose test predictions have a site, at one of which the network is worse."""
    several = {"classes": ["cat", "dog", "frog"]} if request.param == "multiclass" else {}
    folder = write_run(tmp_path_factory.mktemp("run"), request.param, n=600, **several)
    scores, fitted = {}, FittedOnVal()
    for split in ("val", "test"):
        given = Predictions.read(folder / f"predictions_{split}.csv", request.param)
        site = np.where(np.arange(len(given)) % 3 == 0, "<south>", "north")
        logits = np.where(
            (site == "<south>")[:, None], np.random.default_rng(0).normal(size=given.logits.shape), given.logits
        )
        columns = (
            given.frame["sample"].tolist(),
            given.frame["patient"].tolist(),
            given.classes,
            given.kind,
            given.targets,
        )
        given = Predictions.from_arrays(*columns, 3 * logits, pd.DataFrame({"site": site, "id": given.frame["sample"]}))
        given.write(folder / f"predictions_{split}.csv")
        if split == "val":
            fitted = ASSESSMENT.fit(given)
        scores[split] = ASSESSMENT.score(given, fitted if split == "test" else FittedOnVal())
    write_json_atomic(folder / "scores.json", scores)
    opened = [
        {"when": f"2026-01-0{i}", "command": "python -m finetune model=/home/jane/run", "images": 600} for i in (1, 2)
    ]
    (folder / "test_openings.jsonl").write_text("".join(json.dumps(each) + "\n" for each in opened))
    return folder


def test_the_report_shows_what_was_fitted_and_who_is_worse(assessed):
    shown = page(assessed)
    assert "Fitted on val alone (300 images)" in shown.text
    assert "screen: sensitivity of 0.9." in shown.text
    assert "Worst is <south>, best north" in shown.text  # escaped in the page, read by the parser
    assert ", more than chance." in shown.text
    assert "Left out: id (600 different values: a name, not a group)." in shown.text
    assert "The scores of the test split were opened twice." in shown.text
    assert "…/run" in shown.text
    assert "jane" not in shown.raw
    ids = [attrs["id"] for _, attrs in shown.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_few_images_have_no_reliability_diagram():
    few, many = (binary(n, shares=(0.3, 0.2)) for n in (99, 300))
    assert sections.calibration({}, few)["figures"] == []
    assert sections.calibration({}, few)["few"] == ["a", "b"]
    assert len(sections.calibration({}, many)["figures"]) == 2
    assert sections.calibration({}, None) is None


def test_a_class_has_one_reliability_diagram(assessed):
    titles = re.findall(r'aria-label="Reliability of ([^:]*): calibration error', page(assessed).raw)
    assert len(titles) == len(set(titles)) > 1


def test_subgroups_without_two_defined_scores_have_no_figure():
    groups = {
        name: {"n": 5, "patients": 5, "classes": {"a": {}}, "macro": dict.fromkeys(sections.BESIDE)}
        for name in ("m", "f")
    }
    told = {"subgroups": {"sex": {"groups": groups, "gaps": {"overall": {}, "macro": {}, "classes": {}}}}}
    (column,) = sections.subgroups(told)["columns"]
    assert column["figure"] is None
    assert [row["cells"][0] for row in column["rows"]] == ["too few", "too few"]


def test_the_cautions_name_the_group(assessed):
    test = json.loads((assessed / "scores.json").read_text())["test"]
    assert any("is lower for site = <south> than for north" in sentence for sentence in test["warnings"])


def test_a_damaged_list_of_openings_is_a_problem_not_a_crash(assessed):
    path = assessed / "test_openings.jsonl"
    old = path.read_text()
    path.write_text("{broken")
    assert "test_openings.jsonl cannot be read" in page(assessed).text
    path.write_text(old)


def test_fitted_values_are_reported_on_test_only(assessed):
    scores = json.loads((assessed / "scores.json").read_text())
    assert {"calibration", "operating_points"} <= set(scores["test"])
    assert not {"calibration", "operating_points"} & set(scores["val"])
    changes = [each["difference"]["log_loss"]["value"] for each in scores["test"]["calibration"]["classes"].values()]
    assert max(changes) < 0  # three times too sure, mended


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"calibration": "best"}, "evaluation.calibration=best is not known"),
        ({"subgroups": "sex"}, r"evaluation.subgroups=sex must be all, or a list: \[sex\]"),
        ({"resamples": -1}, "evaluation.resamples=-1 must be 0 or more"),
        ({"operating_points": {"x": "much"}}, "operating_points.x=much is not understood"),
    ],
)
def test_settings_that_make_no_sense_are_named(values, message):
    with pytest.raises(FinetuneError, match=message):
        Assessment(**values)


def test_a_prevalence_is_read_per_class():
    assert read_prevalence(0.1, ["a", "b"], "multilabel") == {"a": 0.1, "b": 0.1}
    assert read_prevalence({"b": 0.1}, ["a", "b"], "multiclass") == {"b": 0.1}
    assert read_prevalence(None, ["a"], "multilabel") == {}
    with pytest.raises(FinetuneError, match=r"prevalence=0.1: name the class, such as 'prevalence=\{b: 0.05\}'"):
        read_prevalence(0.1, ["a", "b"], "multiclass")
    with pytest.raises(FinetuneError, match=r"sums to 1\.3"):
        read_prevalence({"a": 0.9, "b": 0.4}, ["a", "b"], "multiclass")


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_page_of_a_comparison(tmp_path, seeds):
    candidates = networks(120, seeds=seeds)
    told = compare(candidates, n_boot=20)
    told |= {
        "split": "test",
        "runs": [{"path": "/home/jane/a", "seed": "0", "fold": None}],
        "out_of_fold": [],
        "warnings": ["<b>"],
    }
    shown = Page(comparison.write(tmp_path / "compare.html", told, "python -m finetune").read_text())
    assert "good − bad" in shown.text
    assert "AUROC of a (DeLong)" in shown.text
    assert "jane" not in shown.raw
    assert shown.raw.count("<svg") == 2
    assert "<b>" not in shown.raw
    assert "p = <" not in shown.text
    assert (
        f"McNemar's test over all predictions{' (counts are means over the seeds)' if seeds > 1 else ''}: "
        in shown.text
    )
    text = comparison.text(told)
    assert text.splitlines()[0] == "test: 120 images of 120 patients, 95 % intervals"


def test_counts_are_whole_but_for_means():
    assert [wording.mean_count(n) for n in (1204, 28.5, 0.0)] == ["1,204", "28.5", "0"]


def test_differences_in_words():
    assert wording.difference({"value": 0.03, "low": -0.01, "high": 0.07}) == "+0.030 (-0.010 to +0.070)"
    assert wording.difference({"value": None}) == "undefined"
    assert wording.difference({"value": -0.5, "low": None, "high": None}) == "-0.500"
