"""The documentation site is made without a warning, of the pages and the code, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys

import pytest
from documented import PAGES
from paths import ROOT

import pipeline
import tokenar
from pipeline.config import CurationConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: path.read_text() for path in folder.rglob("*.html")}


def test_every_page_is_there(site):
    assert {page.name.replace("README.md", "index.md").replace(".md", ".html") for page in PAGES} <= site.keys()


def test_settings_scores_and_names_are_those_of_the_code(site):
    for key in CurationConfig.model_fields:
        assert f"<code>{key}</code>" in site["configuration.html"], key
    for stage in ("DreamRelation", "Ben2", "TimmIdentity", "GrabCut"):
        assert stage in site["stages.html"], stage
    assert "similarity_min" in site["stages.html"]
    assert "target_phash" in site["data.html"]
    for package in (pipeline, tokenar):
        for name in package.__all__:
            assert f"{package.__name__}.{name}" in site["names.html"], name


def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(r'<(?:script|img|link|iframe)[^>]*?(?:src|href)="(https?:)?//')
    assert not [name for name, text in site.items() if loads.search(text)]


def test_no_page_shows_a_link_into_the_repository(site):
    assert not [
        name for name, text in site.items() if re.search(r'href="[^"]*\.\./(?:pipeline|tokenar|benchmarks)', text)
    ]


@pytest.mark.parametrize("name", [f"{p.__name__}.{n}" for p in (pipeline, tokenar) for n in p.__all__])
def test_a_public_name_says_what_it_is(name):
    package, own = name.split(".")
    assert (getattr({"pipeline": pipeline, "tokenar": tokenar}[package], own).__doc__ or "").strip()
