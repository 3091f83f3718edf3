"""The report: self-contained, honest about what is missing, readable by machines that read aloud."""

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from finetune.errors import FinetuneError
from finetune.evaluation import wording
from finetune.evaluation.classification.summary import write_json_atomic
from finetune.pages.classify import confusion
from finetune.pages.report import write_report
from finetune.pages.run_parts import best_epoch
from finetune.runs.read import Run
from tests.evaluation.runs import CLASSES, write_run

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags with attributes, and all text that is shown."""

    def __init__(self, text):
        super().__init__()
        self.raw, self.tags, self.shown, self.open = text, [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.shown.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.shown).split())


def page(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def multilabel_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("multilabel"))


@pytest.fixture(scope="module")
def multilabel_page(multilabel_run):
    return page(multilabel_run)


@pytest.fixture(scope="module")
def multiclass_page(multiclass_run):
    return page(multiclass_run)


@pytest.fixture(scope="module")
def multiclass_run(tmp_path_factory):
    classes = ["cat", "dog", "frog", "deer"]
    return write_run(tmp_path_factory.mktemp("multiclass"), "multiclass", classes, synthetic=True, random=True)


def change(folder, name, **values):
    """Set keys of a JSON file of a run; returns its old text."""
    old = (folder / name).read_text()
    write_json_atomic(folder / name, {**json.loads(old), **values})
    return old


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_the_page_needs_no_network_access(kind, request):
    for tag, attributes in request.getfixturevalue(f"{kind}_page").tags:
        assert tag not in {"link", "img", "iframe", "object", "form", "base", "image", "foreignobject"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "xlink:href", "data", "action"}:
                assert value.startswith("#"), value
            assert "url(http" not in (value or "")
    css = request.getfixturevalue(f"{kind}_page").raw.split("</style>")[0]
    assert "@import" not in css
    assert "url(" not in css


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_it_can_be_read_aloud(kind, request):
    tags = request.getfixturevalue(f"{kind}_page").tags
    count = Counter(tag for tag, _ in tags)
    assert count["table"] == count["caption"] > 3
    assert count["h1"] == count["main"] == count["title"] == 1
    assert all(attributes.get("scope") in ("row", "col", "rowgroup") for tag, attributes in tags if tag == "th")
    for tag, attributes in tags:
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes["aria-label"]
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    linked = [a["href"][1:] for tag, a in tags if tag == "a"]
    assert set(linked) <= set(ids)


def test_the_verdict_says_the_number_its_interval_and_what_it_is_of(multilabel_run, multilabel_page):
    text = multilabel_page.text
    macro = json.loads((multilabel_run / "scores.json").read_text())["test"]["macro"]["auroc"]
    words = f"macro AUROC is {macro['value']:.3f} (95 % interval {macro['low']:.3f} to {macro['high']:.3f})"
    assert re.search(rf"On the test split \(400 images of \d+ patients\) the {re.escape(words)}", text)
    assert "mean over 3 of 4 classes" in text
    assert "The highest AUROC is that of Pneumonia" in text  # not the one with nine positives
    assert "the network may learn it instead" in text


def test_what_is_undefined_says_why(multilabel_page):
    text = multilabel_page.text
    assert "undefined (no positives)" in text
    assert "No positives, so AUROC is undefined and left out of the macro mean: Never seen." in text
    assert "fewer than 10 positive patients" in text
    assert "nan" not in text.lower().split()


def test_banners_are_loud_only_where_they_must_be(multilabel_page, multiclass_run):
    loud = ("SYNTHETIC IMAGES", "RANDOM WEIGHTS", "THE SPLITS LEAK")
    assert not any(words in multilabel_page.text for words in loud)
    leak = {"kind": "patient", "text": "3 patients are in train and in test: p1, p2, p3."}
    old = change(multiclass_run, "audit.json", leaks=[leak])
    text = page(multiclass_run).text
    (multiclass_run / "audit.json").write_text(old)
    assert all(words in text for words in loud)
    assert leak["text"] in text


def test_a_multiclass_run_names_what_is_confused(multiclass_page):
    text = multiclass_page.text
    assert "the accuracy is 0." in text
    assert re.search(r"cat taken for dog: \d+ of \d+ \(\d+\.\d %\)", text)
    assert "Cohen's kappa" in text
    assert "All classes, the most probable: calibration error" in text


def test_hostile_names_stay_text(tmp_path):
    hostile = ['<script>alert("1")</script>', '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "</style></svg>"]
    write_run(tmp_path, classes=hostile, n=200, n_boot=5)
    change(
        tmp_path,
        "environment.json",
        command="python -m finetune <script>",
        data={"name": "<b onclick=x>", "notes": ["<i>"]},
        versions={"<u>": "<s>"},
    )
    found = page(tmp_path)
    assert not {"img", "b", "i", "u", "s"} & {tag for tag, _ in found.tags}
    assert [tag for tag, _ in found.tags].count("script") == 2  # the slider's numbers and the slider
    assert "<script>alert" not in found.raw
    for name in [*hostile, "<b onclick=x>"]:
        assert name in found.text


def test_folders_of_the_machine_are_not_shown(multilabel_page):
    assert "/home" not in multilabel_page.raw
    assert "jane" not in multilabel_page.raw
    assert "data.root=…/chest" in multilabel_page.text


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "environment.json", "audit.json", "metrics.csv", "predictions_test.csv", "scores.json"],
)
@pytest.mark.parametrize("how", ["missing", "broken"])
def test_what_is_missing_is_named_and_the_rest_is_shown(multilabel_run, name, how):
    path = multilabel_run / name
    kept = path.read_bytes()
    path.unlink()
    if how == "broken":
        path.write_bytes(b'{"a: [\xff\n\x00')
    try:
        shown = page(multilabel_run)
    finally:
        path.write_bytes(kept)
    text = shown.text
    ids = {attributes["id"] for _, attributes in shown.tags if "id" in attributes}
    assert {attributes["href"][1:] for tag, attributes in shown.tags if tag == "a"} <= ids
    assert f"{name} is missing." in text if how == "missing" else f"{name} cannot be read" in text
    assert "Use and limits" in text


def test_an_empty_folder_still_has_a_report(tmp_path):
    text = page(tmp_path).text
    assert "There are no scores: the run is not finished." in text
    assert "scores.json is missing." in text
    with pytest.raises(FinetuneError, match="is not a folder"):
        write_report(tmp_path / "nowhere")


def test_scores_may_come_before_their_file(multilabel_run, tmp_path):
    scores = json.loads((multilabel_run / "scores.json").read_text())
    text = Page(write_report(tmp_path, scores=scores).read_text()).text
    assert "the macro AUROC is" in text
    assert "scores.json is missing" not in text


def test_the_same_run_has_the_same_report(multilabel_page, multilabel_run):
    assert page(multilabel_run).raw == multilabel_page.raw


def test_without_a_test_split_the_report_has_a_note(multilabel_run, tmp_path):
    val = {"val": json.loads((multilabel_run / "scores.json").read_text())["val"]}
    text = Page(write_report(tmp_path, scores=val).read_text()).text
    assert "No test split" in text
    assert "AUROC on val" not in text


def test_unknown_patients_are_no_patients(multilabel_run):
    old = change(multilabel_run, "audit.json", has_patients=False)
    text = page(multilabel_run).text
    (multilabel_run / "audit.json").write_text(old)
    assert "No patients are known" in text
    assert "positive patients </th>" not in text


def test_the_matrix_of_many_classes_is_a_figure():
    of = {
        k: confusion({"confusion": {"classes": [f"c{i}" for i in range(k)], "counts": np.eye(k).tolist()}})
        for k in (3, 24)
    }
    assert len(of[3]["rows"]) == 3
    assert of[3]["figure"] is None
    assert of[24]["rows"] == []
    assert "<svg" in of[24]["figure"]


# -- words -----------------------------------------------------------------------------------------------------------


def score(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def test_the_verdict_calls_guessing_guessing():
    one = {
        "n": 10,
        "patients": 5,
        "macro": {"auroc": score(0.55, 0.45, 0.65)},
        "classes": {"a": {"auroc": score(0.55)}},
    }
    assert wording.verdict(one, "test")[1] == "This is not distinguishable from guessing, which gives 0.5."
    one["macro"]["auroc"] = score(0.3, 0.2, 0.4)
    assert "worse than guessing" in wording.verdict(one, "test")[1]
    one["macro"]["auroc"] = score(None)
    assert "no class has a defined AUROC" in wording.verdict(one, "test")[0]


def test_classes_that_may_be_guessed_are_named():
    classes = {"a": {"auroc": score(0.9, 0.8, 0.95)}, "b": {"auroc": score(0.6, 0.4, 0.8)}}
    said = wording.verdict({"macro": {"auroc": score(0.75, 0.7, 0.8)}, "classes": classes}, "test")
    assert "Not shown to be better than guessing: b." in said


def test_most_confused_by_hand():
    counts = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 1]])
    assert wording.most_confused(counts, ["a", "b", "c"]) == [
        "b taken for c: 5 of 10 (50.0 %)",
        "a taken for b: 2 of 10 (20.0 %)",
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("missing under /home/jane/data/x.png, skipped", "missing under …/x.png, skipped"),
        ("(C:\\Users\\jane\\x.png)", "(…/x.png)"),
        ("~/scans/ct", "…/ct"),
        ("data/chestxray and/or 3/4 https://a.b/c", "data/chestxray and/or 3/4 https://a.b/c"),
        ("a / b", "a / b"),
    ],
)
def test_absolute_paths_are_cut_down(given, told):
    assert wording.shortened(given) == told


def test_commands_and_settings_lose_their_folders():
    command = "python -m finetune 'data.root=/home/jane doe/chest' data.label=[a,b] resume=runs/1"
    told = "python -m finetune data.root=…/chest data.label=[a,b] resume=runs/1"
    assert wording.shortened_command(command) == told
    assert wording.settings({"a": {"b": "/home/jane doe/x", "c": None}, "d": ["/x/y", 1], "e": 0.1}) == {
        "a.b": "…/x",
        "d": "[…/y, 1]",
        "e": "0.1",
    }


def test_run_reads_what_is_there(multilabel_run):
    run = Run.read(multilabel_run)
    assert run.problems == []
    assert set(run.predictions) == {"val", "test"}
    assert run.predictions["test"].classes == CLASSES


def test_scores_of_ones_own_are_shown_under_their_names(multilabel_run):
    scores = json.loads((multilabel_run / "scores.json").read_text())
    scores["test"]["own_metrics"] = {
        "<cost>": {"value": 12.5, "low": 10.0, "high": 15.25},
        "empty": {"value": None, "low": None, "high": None, "reason": "not defined on these images"},
    }
    old = change(multilabel_run, "scores.json", **scores)
    text = page(multilabel_run).text
    (multilabel_run / "scores.json").write_text(old)
    assert "<cost> 12.500 (10.000–15.250) empty not defined on these images" in text


def test_near_copies_and_telling_metadata_are_shown(multilabel_run, tmp_path):
    folder = shutil.copytree(multilabel_run, tmp_path / "run")
    assert "Near copies" not in write_report(folder).read_text()
    (folder / "near_copies.png").write_bytes(b"as good as an image")
    audit = json.loads((folder / "audit.json").read_text())
    audit["shortcuts"] = [{"column": "site", "label": "Mass", "auroc": 0.8, "low": 0.7, "high": 0.9, "images": 1234}]
    (folder / "audit.json").write_text(json.dumps(audit))
    page = write_report(folder).read_text()
    assert "data:image/png;base64,YXMgZ29vZCBhcyBhIHBpY3R1cmU=" in page
    assert "0.800 (0.700–0.900)" in page
    assert "1,234" in page


def test_the_best_epoch_is_the_recorded_one_else_the_lowest_loss_of_those_that_tie():
    metrics = pd.DataFrame({"epoch": [0, 1, 2], "val/auroc": [1.0, 1.0, 0.9], "val/loss": [0.5, 0.1, 0.05]})
    assert best_epoch(metrics) == "Best val/auroc 1.0000 in epoch 1. Epochs are counted from 0."
    recorded = {"epoch": 0, "monitor": "val/auroc", "score": 1.0, "val/loss": 0.5}
    assert str(best_epoch(metrics, recorded)).startswith("Best val/auroc 1.0000 in epoch 0 (val/loss 0.500).")
    assert "val/loss 0.0500 in epoch 2" in str(best_epoch(metrics.drop(columns="val/auroc")))
    assert best_epoch(pd.DataFrame()) is None
