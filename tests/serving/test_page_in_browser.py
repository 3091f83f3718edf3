"""The page of job=serve in a browser: chosen and dropped images, heat map, warnings, token, phone, dark, keyboard."""

import base64
import json

import numpy as np
import pytest

from finetune.serving.access import Access
from tests.evaluation.browser import Browser, found
from tests.evaluation.test_report_in_browser import CUT, WIDER
from tests.serving import broken
from tests.serving.served import CLASSES, Server, draw, encode, listening

TOKEN = "a-token-of-sixteen"
ANSWERED = "!document.getElementById('result').hidden"
TEXT = "document.getElementById('{}').innerText"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found()
    tab = Browser(tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module", params=CLASSES)
def page(request, runs):
    started = Server(runs[request.param])
    with listening(started) as address:
        yield address
    started.close()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "Jane Doe.png"
    path.write_bytes(encode(draw(0, 24)))
    return path


def drop(browser, data: bytes, name="x.dcm"):
    browser.run(
        f"""(() => {{
        const bytes = Uint8Array.from(atob({json.dumps(base64.b64encode(data).decode())}), (c) => c.charCodeAt(0));
        const carried = new DataTransfer();
        carried.items.add(new File([bytes], {json.dumps(name)}));
        document.body.dispatchEvent(new DragEvent("drop", {{bubbles: true, dataTransfer: carried}}));
        }})()"""
    )


def answered(browser, page, file, **view):
    browser.open(page, **view)
    browser.wait_for("document.querySelectorAll('#card dt').length > 5")
    browser.choose_file("#file", file)
    browser.wait_for(ANSWERED)


def test_a_chosen_image_is_shown_with_its_answer(browser, page, file):
    browser.problems.clear()
    answered(browser, page, file)
    names = browser.run("[...document.querySelectorAll('.bar-head span')].map(e => e.textContent)")
    assert names in CLASSES.values()
    ticks = browser.run("document.querySelectorAll('.track u').length")
    assert ticks == (len(names) if len(names) == 2 else 0)  # of three classes no threshold has a place on the scale
    widths = browser.run("[...document.querySelectorAll('.track i')].map(e => parseFloat(e.style.width))")
    shown = browser.run("[...document.querySelectorAll('.bar-head b')].map(e => parseFloat(e.textContent))")
    assert shown == pytest.approx(widths, abs=0.06)
    assert browser.run(TEXT.format("decision")).startswith("Decision: ")
    assert "trained on exactly this image" in browser.run(TEXT.format("cautions"))
    facts = browser.run(TEXT.format("facts"))
    assert "90.0 % coverage" in facts
    assert "yes, in its split train" in facts
    assert browser.run("document.getElementById('image').naturalWidth") == 28
    whole = browser.run("document.body.innerText")
    assert "Not a medical device." in whole
    assert "SYNTHETIC IMAGES" in whole
    assert "95 % interval" in browser.run(TEXT.format("card"))
    assert "Jane" not in whole
    assert browser.problems == []


def test_a_heat_map_is_shown_and_hidden_again(browser, page, file):
    answered(browser, page, file)
    before = browser.run("document.getElementById('image').src")
    browser.run("document.getElementById('heat-button').click()")
    browser.wait_for("document.getElementById('heat-button').getAttribute('aria-pressed') === 'true'")
    assert browser.run("document.getElementById('image').src") != before
    assert browser.run("document.getElementById('image').alt").startswith("Heat map of the evidence for")
    browser.run("document.getElementById('heat-button').click()")
    assert browser.run("document.getElementById('image').src") == before
    assert browser.run("document.getElementById('heat-button').textContent") == "Show heat map"


def test_a_dropped_dicom_file_and_a_broken_one(browser, page):
    browser.open(page)
    browser.wait_for("document.querySelectorAll('#card dt').length > 5")
    drop(browser, broken.WHOLE[4])
    browser.wait_for(ANSWERED)
    assert "16 × 16 pixels" in browser.run(TEXT.format("caption"))
    drop(browser, b"GIF89a")
    browser.wait_for("document.querySelector('#status .alarm')")
    assert browser.run(TEXT.format("status")) == "This is no PNG, JPEG or DICOM file, by its first bytes."
    assert browser.run("document.getElementById('result').hidden") is True
    assert browser.run("document.getElementById('shown').hidden") is True
    stripes = np.tile(np.where(np.arange(24) // 6 % 2, 255, 0), (24, 1)).astype(np.uint8)
    drop(browser, encode(stripes))
    browser.wait_for(ANSWERED)
    assert "unlike the training images" in browser.run(TEXT.format("cautions"))
    browser.problems.clear()  # the status of the broken one


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_on_a_screen_or_a_phone(browser, page, file, width):
    answered(browser, page, file, width=width, height=844)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(CUT.replace("!box.width", "!box.width || e.id === 'file'")) == []
    assert browser.run(f"{WIDER}.length") == 0


def test_in_the_dark_letters_are_light(browser, page, file):
    lightness = "getComputedStyle(document.{}).color.match(/[0-9]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0)"
    answered(browser, page, file, dark=True)
    assert browser.run(lightness.format("body")) > 3 * 160
    assert browser.run(lightness.format("querySelector('.drop')")) > 3 * 160
    answered(browser, page, file)
    assert browser.run(lightness.format("body")) < 3 * 90


def test_controls_have_names_and_the_keyboard_reaches_them(browser, page, file):
    answered(browser, page, file)
    unnamed = (
        "[...document.querySelectorAll('select, input, button, [role=region], [role=list], img')].filter(e => "
        "!(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label') || e.alt)).map(e => e.outerHTML)"
    )
    assert browser.run(unnamed) == []
    browser.run("document.activeElement.blur()")
    reached = []
    for _ in range(8):
        browser.press("Tab", 9)
        reached.append(browser.run("document.activeElement.id"))
    assert [name for name in reached if name][:3] == ["file", "heat-class", "heat-button"]
    browser.run("document.getElementById('heat-button').focus()")
    browser.press("Enter", 13, "\r")
    browser.wait_for("document.getElementById('heat-button').getAttribute('aria-pressed') === 'true'")
    assert browser.run("document.getElementById('status').getAttribute('aria-live')") == "polite"


def test_without_scripts_the_page_says_so_and_the_api_has_a_page(browser, page):
    browser.open(page, scripts=False)
    browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    assert "needs JavaScript" in browser.run("document.body.innerText")
    browser.problems.clear()
    browser.open(f"{page}/docs", width=390)
    assert "POST /predict" in browser.run("document.body.innerText")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.problems == []


def test_a_token_is_asked_for(browser, runs, file):
    server = Server(runs["multilabel"], access=Access(TOKEN))
    with listening(server) as address:
        browser.open(address)
        assert browser.run("document.getElementById('card').textContent") == ""
        browser.change("#token", TOKEN)
        browser.run("document.querySelector('#access button').click()")
        browser.wait_for("document.querySelectorAll('#card dt').length > 5")
        assert browser.run("document.getElementById('access').hidden") is True
        browser.choose_file("#file", file)
        browser.wait_for(ANSWERED)
        assert browser.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    server.close()
