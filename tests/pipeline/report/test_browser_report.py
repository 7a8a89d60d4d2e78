"""The report and the calibration of a small run in a real browser: on wide and narrow windows, dark, and on paper."""

import json
import shutil

import pytest
from browser import LOOKS, SCREENSHOTS, assert_accessible, assert_fits, chromium, page_of, screenshot
from small.curation import small_config

from pipeline.curate import curate
from pipeline.report.calibration.page import calibrate
from pipeline.report.results import report_run, write_results

pytestmark = [pytest.mark.browser, pytest.mark.slow]
HOSTILE = "<img src=x onerror=alert(1)><b>cat\u202e"
AGREED = [{"who": f"ann {HOSTILE}", "with": "the judge", "samples": 40, "kappa": 0.61, "low": 0.4, "high": 0.79}]


@pytest.fixture(scope="module")
def places(small_run, tmp_path_factory):
    """The addresses of a report with all of its sections, and of a calibration."""
    root = tmp_path_factory.mktemp("pages")
    shutil.copytree(small_run[0].run.config.root, root, dirs_exist_ok=True, symlinks=True)
    shutil.copytree(root / "small", root / "strict", symlinks=True)
    strict = small_config(root, name="strict", decide={"thresholds": {"identity_low": 0.7}})
    write_results(curate(strict))
    metrics = json.loads((root / "strict/metrics.json").read_text())
    (root / "strict/metrics.json").write_text(json.dumps(metrics | {"agreement": AGREED}))
    pages = {
        "report": report_run(strict, str(root / "small")),
        "calibration": calibrate(strict, "identity")["calibration"],
    }
    return {name: f"file://{path}" for name, path in pages.items()}


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
@pytest.mark.parametrize("name", ["report", "calibration"])
def test_a_page_fits_its_window_and_hinders_nobody(places, browser, name, size, scheme):
    with page_of(browser, places[name], size, scheme) as page:
        assert_fits(page)
        assert_accessible(page)
        screenshot(page, f"{name}-{size}-{scheme}")
        assert not page.evaluate("[...document.images].filter(i => !i.naturalWidth).length"), "pictures are all there"
        cut = page.evaluate("""
            [...document.querySelectorAll('main *')].filter(e => {
              const style = getComputedStyle(e), box = e.getBoundingClientRect()
              const scrolls = e.closest('[tabindex]:not(img)'), hidden = e.closest('.unseen, figcaption, svg')
              return box.width && !scrolls && !hidden && style.position != 'absolute' && box.right > innerWidth + 1
            }).map(e => e.outerHTML.slice(0, 200))""")
        assert cut == [], "nothing reaches beyond the window but what can be scrolled"


def test_every_section_of_the_report_is_reached_from_its_top(places, browser):
    with page_of(browser, places["report"]) as page:
        sections = page.evaluate("[...document.querySelectorAll('section')].map(s => s.id)")
        links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
        assert links == sections
        assert {"against", "agreement", "coverage", "duplicates", "edges"} <= set(sections)
        page.click("nav a[href='#edges']")
        assert page.evaluate("document.querySelector('#edges').getBoundingClientRect().top") < 120


def test_hostile_names_are_text(places, browser):
    with page_of(browser, places["report"]) as page:
        cell = page.locator("#agreement tbody th").inner_text()
        assert cell == f"ann {HOSTILE}".replace("\u202e", " ").strip()
        assert page.locator("#agreement img").count() == 0


@pytest.mark.parametrize("name", ["report", "calibration"])
def test_on_paper_a_dark_page_is_light_has_no_menu_and_shows_what_was_folded(places, browser, name):
    with page_of(browser, places[name], "wide", "dark") as page:
        page.set_viewport_size({"width": 718, "height": 1000})  # an A4 page between its margins
        page.emulate_media(media="print")
        assert_fits(page)
        assert_accessible(page)
        screenshot(page, f"{name}-print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible()
        if name == "report":
            assert page.locator("details.card pre").is_visible(), "the settings are not behind a click"
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        assert page.pdf(path=SCREENSHOTS / f"{name}.pdf", format="A4").startswith(b"%PDF")
