"""A real browser for tests of pages: Chromium, driven by Playwright, and axe-core for what hinders people.

Chromium is the system's (``make browser`` installs it where it is missing).
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from paths import ROOT
from playwright.sync_api import Browser, Page, expect, sync_playwright

SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", ROOT / "runs/screenshots"))
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 120_000
"""Milliseconds that a page may take for anything: a busy machine is slow, not wrong."""
expect.set_options(timeout=PATIENCE)
LOOKS = [(size, scheme) for size in ("wide", "narrow") for scheme in ("light", "dark")]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert found, "no Chromium; make browser installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Browser, url: str, size: str = "wide", scheme: str = "light") -> Iterator[Page]:
    """A page at ``url``. Errors of its scripts, and what it asks in vain, fail the test."""
    context = browser.new_context(
        viewport=WIDE if size == "wide" else NARROW, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(url)
    yield page
    context.close()
    assert not wrong, wrong


def screenshot(page: Page, name: str) -> Path:
    """The whole page as a picture in the folder of screenshots, for a person to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    return path


def assert_fits(page: Page) -> None:
    """Nothing is wider than the window, so nobody has to scroll sideways."""
    widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1], f"the page is {widths[0]} pixels wide in a window of {widths[1]}"


def assert_accessible(page: Page) -> None:
    """axe-core finds nothing serious or critical."""
    found = Axe().run(page).response["violations"]
    grave = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    told = {violation["id"]: [node["html"][:200] for node in violation["nodes"][:3]] for violation in grave}
    assert not told, told


@contextmanager
def serving(module: str, *arguments: str, env: dict[str, str] | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """A command of ours that serves a page, on a free port: its address, and its process."""
    command = [sys.executable, "-m", module, *arguments, "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = next((found for text in process.stdout or () if (found := re.search(r"http://\S+", text))), None)
        assert line, (process.stderr.read() if process.stderr else "")[-3000:]
        for stream in (process.stdout, process.stderr):  # a full pipe would stop it
            threading.Thread(target=stream.read, daemon=True).start()
        yield line[0], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
