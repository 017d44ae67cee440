"""Pages and pictures have the numbers of the committed measurements."""

from __future__ import annotations

import importlib

import pytest
from factory import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def pages():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("pages")


def test_the_pages_have_what_was_measured(pages):
    default = pages.Source()
    folders = tuple(ROOT / folder for folder in default.cells)
    source = pages.Source(folders, ROOT / default.together)
    args = pages.Args(check=True, source=source)
    found = [str(path.relative_to(ROOT)) for path in pages.differing(args, write=False)]
    assert found == [], "python benchmarks/pages.py writes them"
    marks = [
        mark
        for page in pages.documents(ROOT)
        for mark in pages.MARK.findall(page.read_text(encoding="utf-8"))
    ]
    assert len(marks) > 80


TABLE = "| | mean | **w = 1** |\n|---|---|---|\n| `hopper` | 490 | 927 [921, 932], 2 |"
PAGE = """
<!-- table: one -->
| | old |
<!-- end -->

It returns <!-- number: one; hopper; mean -->1<!-- end -->, guided
<!-- number: one; hopper; w = 1; interval -->2<!-- end -->.
"""


def test_marks_are_filled(pages):
    filled = pages.filled(PAGE, {"one": TABLE})
    assert TABLE in filled
    assert ">490<" in filled
    assert ">927 [921, 932]<" in filled
    assert pages.filled(filled, {"one": TABLE}) == filled
    assert pages.filled(filled, {"one": TABLE.replace("490", "491")}) != filled


@pytest.mark.parametrize(
    "mark", ["table: two", "number: two; hopper; mean", "number: one; walker; mean", "number: one"]
)
def test_a_mark_without_a_number_is_refused(pages, mark):
    with pytest.raises(ValueError, match=r"expected"):
        pages.filled(f"<!-- {mark} --><!-- end -->", {"one": TABLE})


def test_another_number_is_another_picture(pages):
    picture = pages.Picture("docs/demo.png", ("one",), None)
    assert picture.digest({"one": TABLE}) != picture.digest({"one": TABLE.replace("490", "491")})
    assert pages.recorded(ROOT / "docs/demo.png") is not None
    assert pages.recorded(ROOT / "docs/toy_2d_beta10.png") is None
