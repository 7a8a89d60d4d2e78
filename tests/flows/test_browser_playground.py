"""tokenar-playground in a real browser, with the model that is installed with the package."""

import json
import re
import shlex
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from browser import LOOKS, assert_accessible, assert_fits, chromium, page_of, screenshot, serving
from playwright.sync_api import expect
from small.run import in_process, make_sample, photo, write_shard

pytestmark = pytest.mark.browser

HOSTILE = '<img src=x onerror="window.mine=1"> \u202ea cat ${window.mine=1}'
SLOW = 120_000
"""Milliseconds in which a busy machine draws."""


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(address, folder): the page over four samples, the last with a hostile prompt, and a folder for recipes."""
    folder = tmp_path_factory.mktemp("playground")
    samples = [make_sample(number, "test", side=128) for number in range(4)]
    samples[3].prompt = HOSTILE
    write_shard(folder / "test-0.tar", samples)
    options = ("--shards", str(folder / "*.tar"), "--out", str(folder / "out"), "--device", "cpu")
    with serving("flows.playground", *options) as (address, _):
        yield address, folder


@contextmanager
def opened(browser, place, *look):
    """The page, which may ask nobody but its server."""
    elsewhere = []
    with page_of(browser, "about:blank", *look) as page:
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(place[0])
        expect(page.locator("#examples button")).to_have_count(4)
        yield page
    assert [url for url in elsewhere if not url.startswith((place[0], "data:", "blob:"))] == []


def choose(page, number):
    page.locator("#examples button").nth(number).click()
    expect(page.locator("#true img")).to_be_visible()


def draw(page, pictures, looks=False):
    page.get_by_label("number input for Pictures").fill(str(pictures))
    page.get_by_label("Show where it looked").set_checked(looks)
    page.get_by_role("button", name="Draw", exact=True).click()


def expect_told(page, text):
    """A line over the page says so."""
    expect(page.get_by_test_id("toast-body").filter(has_text=text)).to_be_visible()


def drawn(page):
    return page.locator("#drawn .grid-wrap img")


def test_browser_an_example_grows_and_its_recipe_draws_the_same_bytes(browser, place):
    with opened(browser, place) as page:
        choose(page, 1)
        expect(page.locator("#prompt textarea")).to_have_value(make_sample(1, "test", side=128).prompt)
        for name in ("reference-1", "reference-2", "background"):
            expect(page.locator(f"#{name} img")).to_be_visible()
        draw(page, 2, looks=True)
        expect(page.locator("#status")).to_contain_text("Drawing: ", timeout=SLOW)
        expect(drawn(page)).to_have_count(2)
        growing = drawn(page).first.get_attribute("src")
        expect(page.locator("#status")).to_contain_text("Drawn.", timeout=SLOW)
        expect(page.locator("#drawn")).to_contain_text("seed 1000000")
        assert drawn(page).first.get_attribute("src") != growing
        expect(page.locator("#looks")).to_contain_text("picture 1: mean of all layers", timeout=SLOW)
        bytes_of = [page.request.get(drawn(page).nth(k).get_attribute("src")).body() for k in range(2)]
        page.get_by_role("button", name="Save the recipe").click()
        expect(page.locator("#command textarea")).to_have_value(re.compile("^tokenar-sample "))
        program, *words = shlex.split(page.locator("#command textarea").input_value())
        drawn(page).nth(1).click()
        expect(page.locator("#looks")).to_contain_text("picture 2: mean of all layers", timeout=SLOW)
        screenshot(page, "playground-picture-chosen")
    assert in_process(program.removeprefix("tokenar-"), *words).returncode == 0
    again = sorted((place[1] / "out").glob("*/drawn/*.png"))
    assert [path.read_bytes() for path in again] == bytes_of


def test_browser_own_pictures_are_cut_and_drawn(browser, place):
    with opened(browser, place) as page:
        for name, shown in (("reference-1", "chelsea"), ("background", "coffee")):
            path = place[1] / f"{shown}.png"
            photo(shown).save(path)
            page.locator(f"#{name} input[type=file]").set_input_files(path)
            expect(page.locator(f"#{name} img")).to_be_visible()
        before = page.locator("#reference-1 img").get_attribute("src")
        page.get_by_role("button", name="Cut out the subject").first.click()
        expect(page.locator("#reference-1 img")).not_to_have_attribute("src", before)
        before = page.locator("#background img").get_attribute("src")
        page.get_by_role("button", name="Make room for two").click()
        expect(page.locator("#background img")).not_to_have_attribute("src", before)
        page.locator("#prompt textarea").fill(HOSTILE)
        draw(page, 1)
        expect(page.locator("#status")).to_contain_text("Drawn.", timeout=SLOW)
        expect(drawn(page)).to_have_count(1)
        screenshot(page, "playground-own-pictures")


def test_browser_a_drawing_is_stopped_and_the_next_one_drawn(browser, place):
    with opened(browser, place) as page:
        choose(page, 0)
        draw(page, 16)
        expect(page.locator("#status")).to_contain_text("Drawing: ", timeout=SLOW)
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#status")).to_contain_text("Stopped.", timeout=SLOW)
        page.wait_for_timeout(500)  # no person is faster
        draw(page, 1)
        expect(page.locator("#status")).to_contain_text("Drawn.", timeout=SLOW)
        expect(drawn(page)).to_have_count(1)


def test_browser_mistakes_are_one_line(browser, place):
    with opened(browser, place) as page:
        draw(page, 1)
        expect_told(page, "reference 1: there is no picture yet; drop one, or choose an example")
        expect(page.locator("#status")).to_contain_text("Not drawn.")
        (place[1] / "text.png").write_text("no picture")
        page.locator("#reference-2 input[type=file]").set_input_files(place[1] / "text.png")
        expect_told(page, "reference 2: not a readable picture")
        expect(page.locator("#reference-2 img")).to_have_count(0)
        choose(page, 0)
        page.get_by_text("More settings").click()
        page.get_by_label("Temperature").fill("<b>hot</b>")
        draw(page, 1)
        expect_told(page, "settings: temperature")
        expect_told(page, "<b>hot</b>")
        screenshot(page, "playground-mistake")


def test_browser_a_hostile_prompt_is_text(browser, place):
    with opened(browser, place) as page:
        expect(page.locator("#examples")).to_contain_text('<img src=x onerror="window.mine=1">')
        choose(page, 3)
        expect(page.locator("#prompt textarea")).to_have_value(" ".join(HOSTILE.replace("\u202e", " ").split()))
        assert page.evaluate("window.mine") is None


@pytest.mark.parametrize("look", LOOKS, ids="-".join)
def test_browser_the_page_fits_and_hinders_nobody(browser, place, look):
    with opened(browser, place, *look) as page:
        assert_fits(page)
        assert_accessible(page)
        screenshot(page, f"playground-empty-{'-'.join(look)}")
        choose(page, 2)
        page.get_by_text("More settings").click()
        draw(page, 2, looks=True)
        expect(page.locator("#looks")).to_contain_text("picture 1", timeout=SLOW)
        page.get_by_role("button", name="Save the recipe").click()
        expect(page.locator("#command textarea")).not_to_have_value("")
        assert_fits(page)
        assert_accessible(page)
        screenshot(page, f"playground-drawn-{'-'.join(look)}")


def asked(url, data=None, **headers):
    """Status and text of an answer."""
    request = urllib.request.Request(url, None if data is None else json.dumps(data).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_browser_other_hosts_and_origins_are_refused(place):
    address = place[0]
    assert asked(address, Host="elsewhere.example")[0] == 421
    join = f"{address}gradio_api/queue/join"
    assert asked(join, {}, Origin="http://elsewhere.example", **{"Content-Type": "application/json"})[0] == 403
    assert asked(f"{address}gradio_api/info")[0] == 404


def test_browser_files_that_were_not_dropped_cannot_be_read(place):
    address, folder = place
    secret = folder / "secret.png"
    photo("rocket").save(secret)
    assert asked(f"{address}gradio_api/file={secret}")[0] == 403
    config = json.loads(asked(f"{address}config")[1])
    (reference,) = [part["id"] for part in config["components"] if part["props"].get("elem_id") == "reference-1"]
    call = next(c["id"] for c in config["dependencies"] if c["inputs"] == [reference] == c["outputs"])
    given = {"path": str(secret), "meta": {"_type": "gradio.FileData"}, "orig_name": "secret.png"}
    about = {"data": [given], "fn_index": call, "session_hash": "reader"}
    assert asked(f"{address}gradio_api/queue/join", about, **{"Content-Type": "application/json"})[0] == 200
    told = asked(f"{address}gradio_api/queue/data?session_hash=reader")[1]
    events = [json.loads(line.removeprefix("data: ")) for line in told.splitlines() if line.startswith("data: ")]
    (end,) = [event for event in events if event["msg"] == "process_completed"]
    assert not end["success"]
    assert "kept" not in told  # no copy of it was made for the page
