"""The explorer in a real browser: filter, sort, a story, thresholds, two runs, a saved selection."""

import shutil
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import LOOKS, assert_accessible, assert_fits, chromium, page_of, screenshot, serving
from playwright.sync_api import expect
from small.curation import small_config

from pipeline.curate import curate
from pipeline.run import Run

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=document.title='owned'>\u202ered\x07 cat"
SCORE = "similarity_min"


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory):
    """(folder, manifest) of a run that tests may save into, with hostile names, and a stricter one beside it."""
    root = tmp_path_factory.mktemp("explored")
    shutil.copytree(small_run[0].run.config.root, root, dirs_exist_ok=True, symlinks=True)
    shutil.copytree(root / "small", root / "strict", symlinks=True)
    curate(small_config(root, name="strict", decide={"thresholds": {"identity_low": 0.7}}))
    run = Run.of(small_config(root))
    path = run.store("plan").path("part-00000", "parquet")
    table = pq.read_table(path)
    for name in ("prompt", "reference_0_name"):
        at = table.schema.get_field_index(name)
        column = pa.array([HOSTILE] * len(table), pa.string())
        table = table.set_column(at, table.schema.field(at), column)
    pq.write_table(table, path)
    return root / "small", pd.read_parquet(root / "small/dataset/manifest.parquet").set_index("sample_id")


@pytest.fixture(scope="module")
def url(run):
    folder = run[0]
    with serving("pipeline.cli", "explore", str(folder), "--against", str(folder.parent / "strict")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def shown(page):
    """The ids of the grid's samples, in their order, once they are there."""
    page.wait_for_selector("main:not([aria-busy])")
    return page.eval_on_selector_all("#grid .sample", "cards => cards.map(card => card.dataset.id)")


def query(page):
    return parse_qs(urlsplit(page.url).query)


def add(page, column, operator, value):
    page.select_option("#column", column)
    page.select_option("#operator", operator)
    page.fill("#value", value)
    page.click("#add button")


def test_a_person_filters_sorts_and_goes_back(browser, url, run):
    told = run[1]
    with page_of(browser, url) as page:
        assert shown(page) == list(told.index)
        add(page, SCORE, ">", "0.5")
        page.select_option("#sort", SCORE)
        page.click("#descending")
        wanted = told[told[SCORE] > 0.5].sort_values(SCORE, ascending=False)
        assert shown(page) == list(wanted.index)
        assert page.inner_text("#range") == f"1–{len(wanted)} of {len(wanted)}"
        assert query(page) == {"where": [f"{SCORE} > 0.5"], "sort": [SCORE], "descending": ["true"]}

        page.click("#decisions button.kept")
        kept = wanted[wanted.decision == "kept"]
        assert shown(page) == list(kept.index)
        with browser.new_context() as context:  # somebody whom the address was sent
            other = context.new_page()
            other.goto(page.url)
            assert shown(other) == list(kept.index)
        page.go_back()
        assert shown(page) == list(wanted.index)
        page.click(f"#conditions button:has-text('{SCORE}')")
        assert set(shown(page)) == set(told.index)


def test_a_bad_condition_is_one_line_and_nothing_is_lost(browser, url, run):
    with browser.new_context() as context:  # page_of would take the answer 400 for an error of the scripts
        page = context.new_page()
        page.goto(f"{url}?sort={SCORE}")
        before = shown(page)
        add(page, SCORE, "<", "high")
        expect(page.locator("#error")).to_have_text(f"{SCORE} < high: 'high' is not a number")
        assert shown(page) == before
        page.click("#conditions button")
        expect(page.locator("#error")).to_be_hidden()


def test_a_sample_tells_its_whole_story(browser, url, run):
    told = run[1]
    sample = told.index[5]
    with page_of(browser, url) as page:
        shown(page)
        page.click(f"#grid [data-id='{sample}']")
        page.wait_for_selector("dialog[open] .rules")
        text = page.inner_text("dialog")
        assert told.prompt[sample] in text
        assert page.locator("dialog .framed rect.box-0").count() == 1
        box = page.locator("dialog .framed rect.box-1")
        assert float(box.get_attribute("x")) == pytest.approx(told.box_1[sample][0])
        assert page.locator("dialog tr[data-reason=identity_low] td.number").first.inner_text() == (
            f"{told[SCORE][sample]:.3g}"
        )
        assert page.locator("dialog figure img").count() == 6
        for picture in page.locator("dialog figure img").all():
            picture.scroll_into_view_if_needed()
            expect(picture).to_have_js_property("complete", True)
            assert picture.evaluate("one => one.naturalWidth") > 0
        page.click("dialog summary:has-text('matting: ok')")
        assert "opencv-grabcut" in page.inner_text("dialog")
        assert query(page) == {"sample": [sample]}
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f"#story-title:has-text('{told.index[6]}')")
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog", state="hidden")
        assert query(page) == {}


def test_hostile_names_are_text(browser, url, run):
    sample = run[1].index[0]
    with page_of(browser, f"{url}?sample={sample}") as page:
        page.wait_for_selector("dialog[open] .rules")
        assert "<img src=x onerror=document.title='owned'> red cat" in page.inner_text("dialog")
        assert page.locator("img[src=x]").count() == 0
        assert page.title() != "owned"


def test_thresholds_are_compared_and_their_samples_looked_at(browser, url, run):
    folder, told = run
    after = pd.read_parquet(folder.parent / "strict/dataset/manifest.parquet").set_index("sample_id")
    leaving = told.index[(told.decision == "kept") & (after.decision != "kept")]
    with page_of(browser, url) as page:
        shown(page)
        page.click("#compare summary")
        page.fill("[data-reason=identity_low]", "0.7")
        page.keyboard.press("Tab")
        page.wait_for_selector(".copied")
        was, now = ((side.decision == "kept").sum() for side in (told, after))
        assert f"kept {was} → {now}" in page.inner_text(".verdict")
        command = page.inner_text("#comparison .copied pre")
        assert command.startswith("instructar rerun decide ")
        assert command.endswith("--set decide.thresholds.identity_low=0.7")
        page.click(f"button:has-text('leave {len(leaving)}')")
        assert set(shown(page)) == set(leaving)
        assert page.locator("#grid .moved").first.inner_text() == "kept → rejected"
        row = page.locator(".funnel tr", has_text="identity_low").locator("td.number")
        assert [int(row.nth(k).inner_text()) for k in (2, 3)] == [(told[SCORE] < t).sum() for t in (0.4, 0.7)]

        page.click("button:has-text('own thresholds again')")
        assert len(shown(page)) == len(told), "nor is the condition on the change left"
        page.click("#against button:has-text('strict')")
        page.wait_for_selector(f"button:has-text('enter {len(leaving)}')")
        page.click(f"button:has-text('enter {len(leaving)}')")
        assert set(shown(page)) == set(leaving)


def test_a_selection_is_saved(browser, url, run):
    folder, told = run
    with page_of(browser, f"{url}?where=decision+%3D+kept") as page:
        shown(page)
        page.click("#saving summary")
        page.fill("#name", "of-the-page")
        page.check("#shards")
        page.click("#save button")
        page.wait_for_selector("#saved:has-text('samples are in')")
        out = folder / "selections/of-the-page"
        assert str(out) in page.inner_text("#saved")
        saved = pd.read_parquet(out / "manifest.parquet")
        assert set(saved.sample_id) == set(told.index[told.decision == "kept"])
        assert {path.name for path in out.glob("*.tar")} == set(saved.shard)


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_it_fits_and_hinders_nobody(browser, url, run, size, scheme):
    sample = run[1].index[0]
    looks = {
        "explore": "",
        "explore-compared": "?set=identity_low%3D0.7&where=change+%3D+leaves",
        "explore-story": f"?sample={sample}",
        "explore-empty": "?where=index+%3E+99",
    }
    for name, asked in looks.items():
        with page_of(browser, f"{url}{asked}", size, scheme) as page:
            shown(page)
            if "story" in name:
                page.wait_for_selector("dialog[open] .rules")
            page.wait_for_load_state("networkidle")
            screenshot(page, f"{name}-{size}-{scheme}")
            assert_fits(page)
            assert_accessible(page)
