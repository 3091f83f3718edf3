"""The report as a browser shows it: no complaint, a slider that changes numbers, phone, dark, print, no script."""

import json

import numpy as np
import pytest

from finetune.evaluation.assessment import Assessment
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.report import write_report

from .browser import Browser, found
from .runs import write_run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found()
    tab = Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module", params=["multilabel", "multiclass"])
def report(request, tmp_path_factory):
    """All sections: what val gave is told of test, and worst errors have pictures."""
    run = write_run(tmp_path_factory.mktemp("run"), request.param, n=400, n_boot=20)
    assessment = Assessment(resamples=20)
    tables = {split: Predictions.read(run / f"predictions_{split}.csv", request.param) for split in ("val", "test")}
    fitted = assessment.fit(tables["val"])
    (run / "scores.json").write_text(json.dumps({"test": assessment.told(tables["test"], fitted)}))
    dot = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQH/yQALCAABAAEBAREA/8wABgAQEAX/2gAIAQEAAD8A0s8g/9k="  # noqa: E501
    image = {"sample": "images/1.png", "class": "Hernia", "kind": "missed", "probability": 0.02, "picture": dot}
    (run / "worst_errors.json").write_text(json.dumps([{**image, "heat": dot}]))
    return write_report(run)


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
    none, one, every = (moved(browser, place) for place in (0, 1, last))
    assert float(every["value"]) < float(one["value"]) < float(none["value"])
    assert every["sensitivity"].startswith("100.0 %")
    assert (every["fn"], every["tn"]) == ("0", "0")
    assert before != every
    counts = [[int(found[name]) for name in ("tp", "fp", "fn", "tn")] for found in (before, none, every)]
    assert len({sum(each) for each in counts}) == 1  # no image is lost on the way
    assert "Of 1,000 images" in every["thousand"]
    browser.change("#explorer-prevalence", 10)
    assert "of which 100 have it: 100 found, 0 missed, 900 false alarms" in numbers(browser)["thousand"]
    assert browser.problems == []


def test_another_class_has_its_own_numbers_and_the_points_of_val(browser, report):
    browser.open(report)
    first = numbers(browser)
    browser.change("#explorer-class", 1, "change")
    assert numbers(browser) != first
    browser.run("document.querySelector('#explorer-threshold').value = 0")
    if browser.run("document.querySelectorAll('#explorer-points button').length"):
        browser.run("document.querySelector('#explorer-points button').click()")
        assert browser.run("Number(document.querySelector('#explorer-threshold').value)") > 0


def test_on_a_phone_only_tables_scroll_and_in_the_dark_letters_are_light(browser, report):
    browser.open(report, width=390, height=844, dark=True)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    lightness = "getComputedStyle(document.body).color.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
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
    scores = {"test": assessment.told(given, assessment.fit(given))}
    assert write_report(tmp_path, scores).stat().st_size < 5e6
