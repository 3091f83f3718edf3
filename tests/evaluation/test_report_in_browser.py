"""The report as a browser shows it: no complaint, a slider that changes numbers, phone, dark, print, no script."""

import json

import numpy as np
import pandas as pd
import pytest

from finetune.data.audit.contact_sheet import write_sheet
from finetune.evaluation.classification.assessment import Assessment
from finetune.evaluation.classification.predictions import Predictions
from finetune.pages.report import write_report
from tests.evaluation.browser import Browser, found
from tests.evaluation.runs import CLASSES, write_run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found()
    tab = Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module", params=["multilabel", "multiclass"])
def report(request, tmp_path_factory):
    """All sections: what val gave is told of test, subgroups, near copies, and worst errors with images."""
    classes = ["Infiltration of the right upper lobe or consolidation", *CLASSES[1:]]
    run = write_run(tmp_path_factory.mktemp("run"), request.param, classes, n=400, n_boot=20)
    assessment = Assessment(resamples=20)
    tables = {split: Predictions.read(run / f"predictions_{split}.csv", request.param) for split in ("val", "test")}
    site = pd.DataFrame({"site": np.where(np.arange(400) % 3 == 0, "A university hospital in the south", "north")})
    tables["test"] = with_metadata(tables["test"], site)
    write_sheet(run / "near_copies.png", [np.zeros((32, 32), np.uint8)] * 2, ["train: a.png", "test: b.png"], 4)
    fitted = assessment.fit(tables["val"])
    (run / "scores.json").write_text(json.dumps({"test": assessment.score(tables["test"], fitted)}))
    dot = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQH/yQALCAABAAEBAREA/8wABgAQEAX/2gAIAQEAAD8A0s8g/9k="  # noqa: E501
    image = {"sample": "images/1.png", "class": "Hernia", "kind": "missed", "probability": 0.02, "picture": dot}
    (run / "worst_errors.json").write_text(json.dumps([{**image, "heat": dot}]))
    return write_report(run)


def with_metadata(given, metadata):
    about = given.frame["sample"].tolist(), given.frame["patient"].tolist()
    return Predictions.from_arrays(*about, given.classes, given.kind, given.targets, given.logits, metadata)


def numbers(browser):
    names = ("sensitivity", "specificity", "ppv", "npv", "tp", "fp", "fn", "tn", "value", "thousand")
    return {name: browser.run(f"document.getElementById('explorer-{name}').textContent") for name in names}


def moved(browser, place):
    browser.change("#explorer-threshold", place)
    return numbers(browser)


def test_the_slider_changes_the_numbers_and_nothing_complains(browser, report):
    browser.problems.clear()
    browser.open(report)
    assert browser.run("document.getElementById('explorer').hidden") is False
    before = numbers(browser)
    last = browser.run("Number(document.getElementById('explorer-threshold').max)")
    none, one, every = (moved(browser, place) for place in (last, last / 2, 0))
    assert float(every["value"]) < float(one["value"]) < float(none["value"])
    assert every["sensitivity"].startswith("1.000")
    assert (every["fn"], every["tn"]) == ("0", "0")
    assert before != every
    counts = [[int(found[name]) for name in ("tp", "fp", "fn", "tn")] for found in (before, none, every)]
    assert len({sum(each) for each in counts}) == 1  # no image is lost on the way
    assert "Of 1,000 images" in every["thousand"]
    browser.change("#explorer-prevalence", 10)
    assert (
        "of which 100 are positive: 100 found (TP), 0 missed (FN), 900 false alarms (FP)"
        in numbers(browser)["thousand"]
    )
    assert "PPV there: 0.100" in numbers(browser)["thousand"]
    moved(browser, last)
    assert "No image is called positive, so there is no PPV." in numbers(browser)["thousand"]
    assert browser.problems == []


def test_another_class_has_its_own_numbers_and_the_points_of_val(browser, report):
    browser.open(report)
    first = numbers(browser)
    browser.change("#explorer-class", 1, "change")
    assert numbers(browser) != first
    for _ in range(2):  # a class with points of val, and one without
        moved(browser, 0)
        if browser.run("document.querySelectorAll('#explorer-points button').length"):
            browser.run("document.querySelector('#explorer-points button').click()")
            assert browser.run("Number(document.querySelector('#explorer-threshold').value)") > 0
        else:
            assert browser.run("document.querySelector('#explorer-points').textContent") == ""
        browser.change("#explorer-class", 2, "change")


def test_the_sliders_scale_is_linear_and_its_start_answers_some_and_not_all(browser, report):
    browser.open(report)
    for number in range(browser.run("document.querySelectorAll('#explorer-class option').length")):
        browser.change("#explorer-class", number, "change")
        ticks = browser.run("[...document.querySelectorAll('#explorer-scale span')].map(e => Number(e.textContent))")
        assert ticks == pytest.approx([ticks[-1] * part / 4 for part in range(5)], rel=0.01)
        start = numbers(browser)
        assert int(start["tp"]) + int(start["fp"]) > 0
        assert int(start["tn"]) + int(start["fn"]) > 0
        middle = float(moved(browser, 500)["value"])
        assert middle == pytest.approx(ticks[-1] / 2, rel=0.35)  # the nearest threshold that changes something
        before = numbers(browser)
        key = "new KeyboardEvent('keydown', {key: 'ArrowLeft'})"
        browser.run(f"document.querySelector('#explorer-threshold').dispatchEvent({key})")
        assert float(numbers(browser)["value"]) < float(before["value"])


OPEN = "document.querySelectorAll('details').forEach(fold => { fold.open = true })"
CUT = """[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  if (!box.width || (box.left >= -1 && box.right <= document.documentElement.clientWidth + 1)) return false;
  return !e.closest('.wide'); // which scrolls by itself
}).map(e => e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 40))"""
WIDER = (
    """[...document.querySelectorAll('.wide')].filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1)"""
)
LETTERS = """[...document.querySelectorAll('figure svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
      || box.bottom > frame.bottom + 1);
  }).map(text => text.textContent + ' of ' + svg.getAttribute('aria-label'));
})"""


@pytest.mark.parametrize("opened", [False, True], ids=["folded", "opened"])
def test_nothing_is_cut_off_on_a_screen_or_a_phone(browser, report, opened):
    for width in (1280, 390):
        browser.open(report, width=width)
        if opened:
            browser.run(OPEN)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(CUT) == []
        assert browser.run(LETTERS) == []
        wider = browser.run(f"{WIDER}.map(e => e.getAttribute('aria-label') || e.className)")
        if width == 1280:
            assert wider == []
        # what scrolls says so: by a shade at its edge, and the keyboard reaches it
        assert browser.run(f"{WIDER}.every(e => getComputedStyle(e).backgroundImage.includes('gradient'))")


def test_the_page_is_short_and_begins_with_the_verdict(browser, report):
    browser.open(report)
    assert browser.run("document.documentElement.scrollHeight") < 6500
    bottom = "document.querySelector({!r}).getBoundingClientRect().bottom"
    assert browser.run(bottom.format(".verdict")) < 300
    assert browser.run(bottom.format(".glance")) < 900
    headings = browser.run("[...document.querySelectorAll('.glance h2')].map(e => e.textContent)")
    assert headings == ["Compared with", "Where it fails", "Can it be used?"]


@pytest.mark.parametrize("scripts", [True, False])
def test_a_link_opens_what_is_folded(browser, report, scripts):
    browser.open(report, scripts=scripts)
    browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    for name in ("calibration", "provenance"):
        where = f"document.getElementById({name!r})"
        assert browser.run(f"{where}.closest('details').open") is False
        browser.run(f"document.querySelector('nav a[href=\"#{name}\"]').click()")
        assert browser.run(f"{where}.closest('details').open") is True
        assert browser.run(f"{where}.getBoundingClientRect().height") > 100


def test_the_keyboard_opens_what_is_folded(browser, report):
    browser.open(report)
    browser.run("document.querySelector('.fold summary').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert browser.run("document.querySelector('.fold').open") is True


def test_an_image_is_enlarged_by_a_click_and_needs_no_script(browser, report):
    browser.open(report)
    width = "document.querySelector('.zoom img').getBoundingClientRect().width"
    before = browser.run(width)
    browser.run("document.querySelector('.zoom summary').click()")
    assert browser.run(width) > 1.5 * before


def test_paper_has_what_is_folded(browser, report):
    browser.open(report, scripts=False)
    browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    browser.ask("Emulation.setEmulatedMedia", media="print")
    heights = browser.run("[...document.querySelectorAll('.fold .body')].map(e => e.getBoundingClientRect().height)")
    browser.ask("Emulation.setEmulatedMedia", media="")
    assert len(heights) >= 7
    assert min(heights) > 30
    browser.open(report)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("document.querySelectorAll('details:not([open], .zoom)').length") == 0
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("document.querySelectorAll('details[open]').length") == 0


def test_in_the_dark_letters_are_light(browser, report):
    lightness = "getComputedStyle(document.body).color.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    browser.open(report, width=390, height=844, dark=True)
    assert browser.run(lightness) > 3 * 160
    browser.open(report, width=390, height=844)
    assert browser.run(lightness) < 3 * 90


def test_without_scripts_and_on_paper_the_slider_is_not_there(browser, report):
    browser.open(report, scripts=False)
    assert browser.run("document.getElementById('explorer').hidden") is True
    browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    browser.open(report)
    browser.ask("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.getElementById('explorer')).display") == "none"
    browser.ask("Emulation.setEmulatedMedia", media="")


def test_the_keyboard_reaches_everything_and_controls_have_names(browser, report):
    browser.open(report)
    unnamed = (
        "[...document.querySelectorAll('select, input, button, [role=region], svg[role=img], img')].filter(e => "
        "!(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label') || e.alt)).map(e => e.outerHTML)"
    )
    assert browser.run(unnamed) == []
    scrolled = (
        "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0"
        " && !e.querySelector('svg')).length"
    )
    assert browser.run(scrolled) == 0


def test_twenty_five_thousand_predictions_make_a_small_page(tmp_path):
    rng = np.random.default_rng(0)
    classes = [f"finding {i}" for i in range(14)]
    target = (rng.random((25_000, 14)) < rng.uniform(0.01, 0.2, 14)).astype(float)
    given = Predictions.from_arrays(
        [f"{i}.png" for i in range(25_000)], [f"p{i // 2}" for i in range(25_000)], classes, "multilabel", target,
        rng.normal(size=target.shape) + 1.5 * target,
    )  # fmt: skip
    given.write(tmp_path / "predictions_test.csv")
    assessment = Assessment(resamples=0, subgroups=[])
    scores = {"test": assessment.score(given, assessment.fit(given))}
    assert write_report(tmp_path, scores).stat().st_size < 5e6
