"""The reports of masks and boxes, from made-up scores: complete, self-contained, honest about what is missing."""

import json
from collections import Counter

import pytest

from finetune.errors import FinetuneError
from finetune.pages import detect, per_class, segment
from finetune.pages.report import task_of, write_detect_report, write_report, write_segment_report
from finetune.runs.read import Run
from tests.pages.made_up import REGIONS, detect_scores, score, segment_scores, write_detect_run, write_segment_run
from tests.pages.test_report import Page, change


@pytest.fixture(scope="module")
def segment_run(tmp_path_factory):
    return write_segment_run(tmp_path_factory.mktemp("segment"))


@pytest.fixture(scope="module")
def segment_page(segment_run):
    return Page(write_report(segment_run).read_text())


@pytest.fixture(scope="module")
def detect_page(tmp_path_factory):
    return Page(write_report(write_detect_run(tmp_path_factory.mktemp("detect"))).read_text())


@pytest.mark.parametrize("name", ["segment_page", "detect_page"])
def test_pages_load_nothing_and_can_be_read_aloud(name, request):
    shown = request.getfixturevalue(name)
    count = Counter(tag for tag, _ in shown.tags)
    assert count["table"] == count["caption"] > 3
    assert count["h1"] == count["main"] == 1
    assert not {"script", "link", "iframe"} & set(count)
    ids = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in shown.tags if tag == "a"} <= set(ids)
    for tag, attributes in shown.tags:
        if tag == "img":
            assert attributes["alt"]
            assert attributes["src"].startswith("data:image/jpeg;base64,")
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "svg":
            assert attributes["aria-label"]
    assert "nan" not in shown.text.lower().split()
    assert "/home" not in shown.raw


def test_the_first_screen_of_masks(segment_page):
    text = segment_page.text
    assert "Before use: Opacity is often missed." in text
    assert (
        "On the test split (200 images of 90 patients) the macro Dice is 0.763 (95 % interval 0.723 to 0.803), the "
        "mean over 3 of 4 regions; the same mask in every image gives 0.520." in text
    )
    assert "macro Dice 0.763 (0.723–0.803) 0.520, the same mask in every image" in text
    assert f"Lowest Dice: {REGIONS[2]}, 0.410 (0.370–0.450)." in text
    assert "Dice undefined: heart." in text
    assert f"Most frequent confusion, in pixels: {REGIONS[2]} taken for background: 200 of 600 (33.3 %)." in text
    assert "Weakest group by site: A university hospital in the south is 0.200 below north in macro Dice" in text
    assert "val and test : Dice 0.900 and 0.763: the intervals do not overlap." in text  # which no harm confirms
    assert "Worst images, truth and prediction outlined:" in text


def test_scores_of_regions_have_their_units_and_decimals(segment_page):
    text = segment_page.text
    assert "HD95, mm" in text
    assert "2.90 (2.40–3.40)" in text
    assert "undefined (in no image)" in text
    assert "fewer than 10 patients with it" in text
    assert 'id="metric-hd95"' in segment_page.raw
    assert "Lower is better, from 0 on." in text


def test_the_first_screen_of_boxes(detect_page):
    text = detect_page.text
    assert "On the test split (400 images of 180 patients) the macro AP50 is 0.350" in text
    assert "the same box in every image gives 0.020. The FROC sensitivity is 0.450" in text
    assert "sensitivity at 2 false positives per image" in text
    assert "one: 1 false positive per image." in text
    assert "1 further operating point: two" in text
    assert "AUROC of having a true box 0.880 (0.840–0.920)" in text
    assert "800, 300" in text
    assert "1,200, 4,100" in text
    assert "undefined (no true boxes)" in text


def test_the_task_comes_from_the_configuration_else_from_the_scores(segment_run, tmp_path):
    assert task_of(Run.read(segment_run)) == "segment"
    scores = detect_scores()
    assert task_of(Run.read(tmp_path, scores)) == "detect"
    assert "AP50" in write_report(tmp_path, scores).read_text()
    assert task_of(Run.read(tmp_path, {"test": {"kind": "multilabel"}})) == "classify"
    (tmp_path / "config.yaml").write_text("task: weigh\n")
    with pytest.raises(FinetuneError, match=r"task=weigh of .* has no report; there are classify, segment, detect"):
        write_report(tmp_path, scores)
    assert "AP50" in write_detect_report(tmp_path, scores).read_text()


@pytest.mark.parametrize("write", [write_segment_report, write_detect_report])
def test_an_empty_folder_and_bare_scores_have_reports(write, tmp_path):
    assert "There are no scores: the run is not finished." in write(tmp_path).read_text()
    bare = {"test": {"n": 3, "patients": 3, "macro": {}, "classes": {}, "warnings": [], "harms": [], "notes": []}}
    text = Page(write(tmp_path, bare).read_text()).text
    assert "has a defined" in text
    assert "No " in text


def test_a_damaged_file_of_cases_is_a_problem_not_a_crash(segment_run):
    path = segment_run / "cases.json"
    old = path.read_text()
    for damaged in ("{broken", "[]", json.dumps({"metric": "dice", "cases": [{"rank": "odd"}]})):
        path.write_text(damaged)
        assert "cases.json cannot be read" in write_report(segment_run).read_text()
    path.write_text(old)


def test_hostile_names_stay_text(segment_run):
    hostile = '"><img src=x onerror=alert(1)>'
    scores = segment_scores()
    classes = scores["test"]["classes"]
    classes[hostile] = classes.pop(REGIONS[0])
    old = change(segment_run, "scores.json", **scores)
    shown = Page(write_report(segment_run).read_text())
    (segment_run / "scores.json").write_text(old)
    assert not any("onerror" in attributes for _, attributes in shown.tags)
    assert hostile in shown.text


def test_without_a_trivial_prediction_scores_are_compared_with_none():
    scores = {"macro": {"ap50": score(0.02, 0.03), "froc": score(0.3)}, "classes": {"a": {}}}
    ap, froc = per_class.comparisons(scores, detect.WORDS)
    assert (ap.name, ap.trivial, ap.state) == ("AP50", "0.000, predicting nothing", "open")
    assert froc.state == "good"


def test_a_region_that_is_never_found_is_named():
    scores = {"classes": {"a": {"dice": score(0.0, 0.0)}, "b": {"dice": score(0.5)}}, "macro": {}}
    lines = per_class.failures(scores, segment.WORDS)
    assert lines[0] == "Dice 0: a."
    assert per_class.verdict(scores, "test", True, segment.WORDS) == [
        "On the test split (the images) no region has a defined Dice."
    ]
    assert segment.confusion({"confusion": {"classes": ["a"], "counts": [[1]]}}) is None


def test_froc_curves_are_read_in_both_forms():
    plain = {"fp_per_image": [0.5, 1], "sensitivity": [0.2, 0.4], "low": [0.1, None], "high": [0.3, 0.5]}
    ((caption, svg),) = detect.froc({"froc_curve": plain, "macro": {"froc": score(0.3)}})
    assert "FROC sensitivity 0.300 (0.260–0.340)" in caption
    assert svg.startswith("<svg")
    assert detect.froc({}) == detect.froc({"froc_curve": {"false_positives": []}}) == []
