"""The documentation site is made without a warning, of the pages and the code, and loads nothing from elsewhere."""

import functools
import importlib.util
import inspect
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

slow = pytest.mark.slow
PICTURES = re.compile(r"\b(Tensor|ndarray|Image)\b")
SHAPE = re.compile(r"\[[A-Z0-9]|\bpixels?\b|\bRGBA?\b")
"""What a text says of a tensor or a picture: a shape such as [B, N], pixels, or a mode."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: path.read_text() for path in folder.rglob("*.html")}


@slow
def test_every_page_is_there(site):
    assert {page.name.replace("README.md", "index.md").replace(".md", ".html") for page in PAGES} <= site.keys()


@slow
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


@slow
def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(r'<(?:script|img|link|iframe)[^>]*?(?:src|href)="(https?:)?//')
    assert not [name for name, text in site.items() if loads.search(text)]


@slow
def test_no_page_shows_a_link_into_the_repository(site):
    assert not [
        name for name, text in site.items() if re.search(r'href="[^"]*\.\./(?:pipeline|tokenar|benchmarks)', text)
    ]


@pytest.mark.parametrize("name", [f"{p.__name__}.{n}" for p in (pipeline, tokenar) for n in p.__all__])
def test_a_public_name_says_what_it_is(name):
    package, own = name.split(".")
    parts = dict(_parts(getattr({"pipeline": pipeline, "tokenar": tokenar}[package], own), own))
    said = {key: (part.__doc__ or "").strip() for key, part in parts.items()}
    assert [key for key, text in said.items() if not text] == []
    pictures = [key for key, part in parts.items() if PICTURES.search(str(inspect.signature(part)))]
    assert [key for key in pictures if not SHAPE.search(said[key])] == [], "these say no shape, pixels or mode"


def _parts(thing, name):
    """A public name, and of a class the methods and properties of its own, each as a function."""
    yield name, thing
    for key, member in vars(thing).items() if inspect.isclass(thing) else ():
        if isinstance(member, classmethod | staticmethod):
            member = member.__func__
        elif isinstance(member, property):
            member = member.fget
        elif isinstance(member, functools.cached_property):
            member = member.func
        if not key.startswith("_") and inspect.isfunction(member):
            yield f"{name}.{key}", member


def test_every_setting_says_what_it_means():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "site" / "reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    fields = {f"{m.__name__}.{key}": field for m in reference.settings() for key, field in m.model_fields.items()}
    assert len(fields) > 250
    assert [name for name, field in fields.items() if not (field.description or "").strip()] == []


@slow
def test_methods_are_shown_as_they_are_called(site):
    assert not re.search(r"\((self|cls)\b", site["names.html"])
