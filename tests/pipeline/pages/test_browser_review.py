"""The review page in a real browser: a person accepts, rejects, moves a threshold, paints, and takes it over."""

import base64
import io
import shutil

import numpy as np
import pytest
from browser import LOOKS, assert_accessible, assert_fits, chromium, page_of, screenshot, serving
from PIL import Image, ImageDraw
from small.curation import small_config

from pipeline.curate import curate
from pipeline.dataset.curated import open_run
from pipeline.pages.samples import Samples
from pipeline.review.log import ReviewLog
from pipeline.review.opinions import opinions
from pipeline.run import Run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def served(copied):
    with serving("pipeline.cli", "review", str(copied / "small"), "--reviewer", "ada") as (url, _):
        yield url, str(copied / "small")


def opened(page, queue="all"):
    """The id of the sample that is shown, of a queue."""
    page.wait_for_selector("#queue option", state="attached")
    page.select_option("#queue", queue)
    page.wait_for_selector("#sample:not([hidden])")
    return shown(page)


def shown(page):
    return page.get_attribute("#sample", "data-id")


def moved_on(page, before):
    page.wait_for_selector(f"#sample:not([data-id='{before}'])")
    return shown(page)


def mine(run_url, sample_id):
    found = opinions(ReviewLog(run_url).rows()).get(sample_id, {}).get("ada")
    return {} if found is None else {action: line.value for action, line in found.lines.items()}


def pixels(page, canvas):
    """The pixels of a canvas as RGBA."""
    uri = page.evaluate("id => document.getElementById(id).toDataURL()", canvas)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))


def test_keys_accept_reject_flag_and_undo(browser, served):
    url, run_url = served
    with page_of(browser, url) as page:
        first = opened(page)
        page.keyboard.press("a")
        second = moved_on(page, first)
        assert page.inner_text("#progress").startswith("11 of 12")
        page.keyboard.press("r")
        page.keyboard.type("three <i>arms</i>")
        page.keyboard.press("Enter")
        third = moved_on(page, second)
        page.keyboard.press("f")
        page.wait_for_selector("#flag[aria-pressed=true]")
        assert mine(run_url, first) == {"verdict": "kept"}
        assert mine(run_url, second) == {"verdict": "rejected"}
        assert mine(run_url, third) == {"flag": True}
        page.keyboard.press("k")
        assert moved_on(page, third) == second
        assert page.input_value("#reason") == "three <i>arms</i>"
        page.keyboard.press("u")
        page.wait_for_selector("#mine", state="detached")
        assert mine(run_url, second) == {}
        assert page.inner_text("#progress").startswith("11 of 12")


def test_rejecting_asks_for_a_reason(browser, served):
    with page_of(browser, served[0]) as page:
        first = opened(page)
        page.click("#reject")
        page.wait_for_selector("#notice:not([hidden])")
        assert "Give a reason" in page.inner_text("#notice")
        assert (shown(page), mine(served[1], first)) == (first, {})


def test_two_tabs_lose_nothing(browser, served):
    url, run_url = served
    with page_of(browser, url) as one, page_of(browser, url) as other:
        first = opened(one)
        assert opened(other) == first
        one.keyboard.press("a")
        moved_on(one, first)
        other.fill("#reason", "blurred")
        other.click("#reject")
        moved_on(other, first)
    assert mine(run_url, first) == {"verdict": "rejected"}
    assert [row.value for row in ReviewLog(run_url).rows()] == ["kept", "rejected"]


def test_a_moved_threshold_and_a_painted_matte_are_shown_at_once_and_taken_over(browser, served):
    url, run_url = served
    parts = Samples(open_run(run_url).run).part_of()
    with page_of(browser, url) as page:
        first = opened(page)
        before = pixels(page, "background")
        page.evaluate("""() => { const alpha = document.getElementById('alpha');
                         alpha.value = 0.05; alpha.dispatchEvent(new Event('input')); }""")
        assert (pixels(page, "background")[..., :3] != before[..., :3]).any()
        page.click("#save-alpha")
        page.wait_for_selector("#drop-alpha:not([hidden])")

        second = first
        while parts[second] == parts[first]:
            page.keyboard.press("ArrowRight")
            second = moved_on(page, second)
        page.keyboard.press("b")
        box = page.locator("#target").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 6
        page.mouse.move(x - 60, y)
        page.mouse.down()
        page.mouse.move(x + 60, y, steps=5)
        page.mouse.up()
        page.keyboard.press("e")
        page.mouse.move(box["x"] + 8, box["y"] + box["height"] - 8)
        page.mouse.down()
        page.mouse.up()
        page.keyboard.press("z")  # that stroke was one too many
        screenshot(page, "review-painting")
        page.keyboard.press("s")
        page.wait_for_selector("#drop-matte:not([hidden])")
        preview = pixels(page, "background")
        assert mine(run_url, second)["matte"].startswith(f"review/mattes/{second}")

        page.click("#apply")
        page.wait_for_selector("#applying[data-state=done]", timeout=120_000)
        told = page.inner_text("#lines")
        screenshot(page, "review-taken-over")
    assert "matting 3/3 parts (1 from the cache)" in told
    assert "synthesis 3/3 parts (3 from the cache)" in told
    after = open_run(run_url)
    assert np.array_equal(np.asarray(after.picture(second, "background").convert("RGB")), preview[..., :3])
    alpha = np.asarray(after.picture(second, "alpha"))
    assert alpha[alpha.shape[0] // 6, alpha.shape[1] // 2] == 255
    assert after.manifest.set_index("sample_id").decision.notna().all()


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_it_fits_and_hinders_nobody(browser, served, size, scheme):
    with page_of(browser, served[0], size, scheme) as page:
        opened(page, "nearest")
        page.click("#help")
        assert_fits(page)
        assert_accessible(page)
        screenshot(page, f"review-{size}-{scheme}")


def test_texts_of_the_data_are_shown_as_text(browser, tmp_path):
    evil = "<img src=x onerror=document.title='hurt'>\u202egnp"
    pool = tmp_path / "pool"
    for category in ("a", "b"):
        for n in range(2):
            folder = pool / category
            folder.mkdir(parents=True, exist_ok=True)
            cut_out = Image.new("RGBA", (200, 200))
            ImageDraw.Draw(cut_out).regular_polygon(
                (100, 100, 80), 3 + 2 * n + (category == "b"), fill=(200, 90 * n, 40)
            )
            cut_out.save(folder / f"{n}.png")
            (folder / f"{n}.txt").write_text(f"{evil} {category}{n}")
    config = small_config(tmp_path, samples=2, planning={"test_share": 0}, references={"pool": str(pool)})
    curate(config)
    command = ("pipeline.cli", "review", config.run_url, "--reviewer", "<b>eve</b>")
    with serving(*command) as (url, _), page_of(browser, url) as page:
        opened(page)
        assert "<img src=x onerror" in page.inner_text("#prompt")
        assert "\u202e" not in page.content()
        assert "by <b>eve</b>" in page.inner_text("#title")
        assert page.title() == "Review of small"
        assert page.locator("#sample img[src=x]").count() == 0


def test_nothing_is_decided_yet(browser, copied):
    run = Run.of(small_config(copied))
    shutil.rmtree(run.store("decide").root)
    with serving("pipeline.cli", "review", run.config.run_url) as (url, _), page_of(browser, url) as page:
        page.wait_for_selector("#empty:not([hidden])")
        assert "Nothing is decided yet" in page.inner_text("#empty")
