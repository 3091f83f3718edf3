"""The reports of masks and boxes as a browser shows them: nothing cut, short, in the dark, without a script."""

import pytest

from finetune.pages.report import write_report
from tests.evaluation.browser import Browser, found
from tests.evaluation.test_report_in_browser import CUT, LETTERS, OPEN, WIDER
from tests.pages.made_up import write_detect_run, write_segment_run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found()
    tab = Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module", params=[write_segment_run, write_detect_run], ids=["segment", "detect"])
def report(request, tmp_path_factory):
    return write_report(request.param(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_on_a_screen_or_a_phone(browser, report, width):
    browser.problems.clear()
    browser.open(report, width=width)
    for opened in (False, True):
        if opened:
            browser.run(OPEN)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.run(CUT) == []
        assert browser.run(LETTERS) == []
        if width == 1280:
            assert browser.run(f"{WIDER}.map(e => e.getAttribute('aria-label') || e.className)") == []
        assert browser.run(f"{WIDER}.every(e => getComputedStyle(e).backgroundImage.includes('gradient'))")
    assert browser.problems == []


def test_the_first_screen_answers_and_leads_to_the_worst_images(browser, report):
    browser.open(report)
    bottom = "document.querySelector({!r}).getBoundingClientRect().bottom"
    assert browser.run(bottom.format(".glance")) < 900
    headings = browser.run("[...document.querySelectorAll('.glance h2')].map(e => e.textContent)")
    assert headings == ["Compared with", "Where it fails", "Can it be used?"]
    targets = browser.run(
        "[...document.querySelectorAll('.thumbs a')].map(a => document.querySelector(a.hash)?.tagName)"
    )
    assert targets == ["FIGURE"] * 3
    assert browser.run("document.documentElement.scrollHeight") < 6500


def test_in_the_dark_letters_are_light(browser, report):
    lightness = "getComputedStyle(document.body).color.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    ink = "getComputedStyle(document.querySelector('figure svg text')).fill"
    browser.open(report, dark=True)
    assert browser.run(lightness) > 3 * 160
    assert browser.run(ink) == browser.run("getComputedStyle(document.body).color")
    browser.open(report)
    assert browser.run(lightness) < 3 * 90


def test_an_image_opens_beside_the_plain_one_and_the_glossary_by_its_link(browser, report):
    browser.open(report)
    width = "document.querySelector('.cases img').getBoundingClientRect().width"
    before = browser.run(width)
    browser.run("document.querySelector('.cases summary').click()")
    assert browser.run(width) > 1.2 * before
    tops = "[...document.querySelectorAll('.cases figure:first-child img')].map(e => e.getBoundingClientRect().top)"
    assert len({round(top) for top in browser.run(tops)}) == 1
    assert browser.run("document.getElementById('glossary').closest('details').open") is False
    browser.run("document.querySelector('a[href=\"#glossary\"]').click()")
    assert browser.run("document.getElementById('glossary').closest('details').open") is True
