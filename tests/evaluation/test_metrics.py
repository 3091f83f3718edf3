"""The catalogue: each score that is computed has an entry, and its values keep the entry's bounds."""

import numpy as np
import pytest

from finetune.evaluation import metrics, wording
from finetune.evaluation.classification import comparison, reliability, subgroups, thresholds
from finetune.evaluation.classification.predictions import Predictions
from finetune.evaluation.classification.scores import share_counts
from finetune.evaluation.classification.summary import summarise
from finetune.statistics import intervals
from tests.evaluation.runs import multiclass, multilabel


@pytest.fixture(scope="module", params=[multilabel, multiclass])
def scores(request):
    classes = ["a", "b", "c", "d", "e", "f"][: 4 if request.param is multilabel else 6]
    target, logits = request.param(np.random.default_rng(0), 80, classes)
    about = [f"{i}.png" for i in range(80)], [f"p{i // 2}" for i in range(80)], classes, request.param.__name__
    return summarise(Predictions.from_arrays(*about, target, logits), n_boot=10)


def test_each_score_of_labels_has_an_entry_and_keeps_its_bounds(scores):
    groups = [scores["macro"], scores["micro"], scores.get("overall", {}), *scores["classes"].values()]
    seen = {name: score for group in groups for name, score in group.items() if isinstance(score, dict)}
    assert set(seen) <= set(metrics.CATALOGUE["classify"])
    for name, score in seen.items():
        entry = metrics.metric(name)
        for value in (score["value"], score["low"], score["high"]):
            assert value is None or entry.lower is None or value >= entry.lower - 1e-9
            assert value is None or entry.upper is None or value <= entry.upper + 1e-9


@pytest.mark.parametrize("task", metrics.CATALOGUE)
def test_entries_are_whole(task):
    anchors = [entry.anchor for entry in metrics.CATALOGUE[task].values()]
    assert len(anchors) == len(set(anchors))
    for name, entry in metrics.CATALOGUE[task].items():
        assert entry.name == name
        assert entry.title
        assert entry.about.endswith(".")
        assert entry.group
        assert bool(entry.right) == bool(entry.whole)
        assert set(entry.right) <= set(entry.whole)
        assert entry.headline in ("", "macro", "overall")
        assert entry.headline or not entry.brief


def test_names_that_evaluation_selects_are_in_the_catalogue():
    selected = {*subgroups.GAPS, *reliability.LOSSES, *thresholds.METRICS}
    assert selected <= set(metrics.CATALOGUE["classify"])
    assert metrics.LOWER_IS_BETTER == ("brier", "log_loss", "ece")
    assert comparison.compare  # whose names are titled by `metric`, means as macro_NAME
    assert metrics.metric("macro_f1").title == "macro F1"


def test_shares_by_hand():
    counts = share_counts(*(np.array([n]) for n in (1, 2, 3, 4)))
    assert {name: (int(right[0]), int(whole[0])) for name, (right, whole) in counts.items()} == {
        "accuracy": (5, 10),
        "sensitivity": (1, 4),
        "specificity": (4, 6),
        "ppv": (1, 3),
        "npv": (4, 7),
    }


def test_an_interval_respects_the_bounds_of_its_score():
    samples = np.linspace(0.02, 0.2, 50)
    for name in ("auroc", "average_precision", "f1", "brier"):
        found = intervals.resampled(name, 0.1, samples, patients=50, fewer=20)
        assert metrics.metric(name).lower <= found.low <= found.high <= metrics.metric(name).upper
    assert intervals.resampled("log_loss", 3.0, 10 * samples, patients=50).high > 3  # without an upper bound
    assert intervals.resampled("kappa", -0.1, samples - 0.3, patients=50).low < 0


def test_titles():
    assert metrics.metric("sensitivity").heading == "sensitivity (recall)"
    assert metrics.metric("hd95").heading == "HD95, pixels"
    assert metrics.metric("auroc").in_group("macro") == metrics.metric("macro_auroc").title == "macro AUROC"
    assert metrics.metric("sensitivity", "segment").share_of == "pixels of the region"
    assert metrics.metric("sensitivity_at_1_fp").title == "sensitivity at 1 false positive per image"
    assert metrics.metric("sensitivity_at_0.5_fp", "detect").anchor == "metric-sensitivity-at-0-5-fp"
    assert metrics.metric("sensitivity_at_1_fp", "classify").title == "sensitivity_at_1_fp"


def test_a_score_without_an_entry_is_shown_under_its_name():
    entry = metrics.metric("cost_of_errors")
    assert (entry.title, entry.heading, entry.lower, entry.upper) == ("cost_of_errors", "cost_of_errors", None, None)
    assert entry.higher_is_better is None
    names = ["cost", "log_loss", "accuracy", "macro_brier", "macro_auroc"]
    assert sorted(names, key=metrics.position) == ["macro_auroc", "macro_brier", "accuracy", "log_loss", "cost"]


def test_headlines_and_tables():
    assert metrics.HEADLINES[:3] == (("macro", "auroc"), ("overall", "accuracy"), ("overall", "balanced_accuracy"))
    assert metrics.BRIEF == (("macro", "auroc"), ("overall", "accuracy"), ("macro", "dice"), ("macro", "ap50"))
    assert metrics.in_main_table("multiclass") == ("auroc", "sensitivity", "ppv")
    groups = (metrics.DECISIONS, metrics.RANKING)
    assert metrics.in_further_tables("multiclass", groups) == ("specificity", "npv", "f1", "average_precision")
    assert metrics.names(at_threshold=True) == ("sensitivity", "specificity", "ppv", "npv")


@pytest.mark.parametrize(
    ("name", "positives", "negatives", "why"),
    [
        ("auroc", 0, 3, "no positives"),
        ("auroc", 3, 0, "no negatives"),
        ("f1", 3, 0, ""),
        ("ppv", 3, 3, "never a yes"),
        ("npv", 3, 3, "never a no"),
        ("brier", 0, 0, "nothing known"),
        ("unheard_of", 0, 3, ""),
    ],
)
def test_why_a_score_is_undefined(name, positives, negatives, why):
    assert wording.why_undefined(name, {"positives": positives, "negatives": negatives}) == why
