"""The site is built without a warning, and needs nothing from the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from factory import ROOT
from filelock import FileLock

LOADED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?(https?:|//)[^>]*>")
IMAGE = re.compile(r"<img\b[^>]*>")
FIGURES = re.compile(r"!\[([^]]*)\]\([^)]*\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    pytest.importorskip("mkdocstrings", reason="the docs extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    (ROOT / "build").mkdir(exist_ok=True)
    with FileLock(ROOT / "build" / "site.lock"):  # each build writes the package to build/api anew
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert LOADED.search(text) is None, page
        assert all(re.search(r'alt="[^"]+"', image) for image in IMAGE.findall(text)), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:|//)", style.read_text(encoding="utf-8")), style


def test_what_loads_something_is_found():
    for text in ('<script src="https://cdn.example/x.js">', "<link rel=x href=//fonts.example>"):
        assert LOADED.search(text)
    assert not LOADED.search('<a href="https://example.org">')
    assert not LOADED.search("<img src=a>")


def test_files_outside_the_docs_are_shown(site):
    text = (site / "results" / "ten_minutes.html").read_text(encoding="utf-8")
    assert "../source/benchmarks/index.html" in text
    assert (site / "source/benchmarks/index.html").exists()
    assert (site / "notebooks/five_minutes.html").exists()


def test_the_readme_is_short_and_its_pictures_are_described():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 700
    assert all(len(described) > 20 for described in FIGURES.findall(text))
