"""Documents lead somewhere, and the files about the repository are well formed."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from factory import ROOT

from qgpo import __version__
from qgpo.agents.core.upgrade import FORMAT_VERSION

DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"))
    if path.name != "CHANGELOG.md"  # it names what is gone
)
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "|".join((*ROOMS, "benchmarks", "docs", "tests"))
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]+\.(?:py|md|toml|sh|png))`")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(
        r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE
    )
    shown = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in shown}


def dead_links(document: Path) -> list[str]:
    """Links and paths in backticks that lead nowhere."""
    text = without_code(document.read_text(encoding="utf-8"))
    dead = []
    for link in LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead + [path for path in PATH.findall(text) if not (ROOT / path).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(document):
    assert dead_links(document) == []


def test_the_page_of_checkpoints_describes_the_version_that_is_written():
    text = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert text.startswith(f"# The checkpoint file, version {FORMAT_VERSION}\n")
    assert f"| `format_version` | {FORMAT_VERSION}. " in text
    assert f"Version {FORMAT_VERSION - 1} " in text, "what the last version lacked"


def test_a_dead_link_is_found(tmp_path):
    document = tmp_path / "page.md"
    document.write_text(
        "# A *title*: `one`\n[here](#a-title-one) [there](page.md#a-title-one) [gone](gone.md)\n"
        "[no](#title) `agents/nowhere.py` `agents/bc.py` [web](https://example.org/x)\n"
        "```\n[code](code.md)\n```\n",
        encoding="utf-8",
    )
    assert dead_links(document) == ["gone.md", "#title", "agents/nowhere.py"]


AGENT_PAGES = [p for p in ROOT.glob("docs/agents/*.md") if p.name not in ("index.md", "sb3.md")]
RESULT_PAGES = [p for p in ROOT.glob("docs/results/*.md") if p.name != "choices.md"]


@pytest.mark.parametrize("page", AGENT_PAGES, ids=lambda path: path.stem)
def test_pages_of_agents_have_the_same_sections(page):
    titles = re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    parts = ["The idea", "The equations", "Logged metrics", "Differences from", "Results"]
    places = [next(i for i, t in enumerate(titles) if t.startswith(part)) for part in parts]
    assert places == sorted(places)
    assert titles[-1] == "Commands"
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("page", RESULT_PAGES, ids=lambda path: path.stem)
def test_pages_of_results_have_claim_picture_table_caveats_and_command(page):
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert text.splitlines()[0].endswith("?")
    parts = [r"^\*\*", r"^!\[", r"^\| ", r"^## (Keep in mind|Why)", r"^## Repeat it"]
    places = [re.search(part, text, re.MULTILINE).start() for part in parts]
    assert places == sorted(places)


def test_the_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    assert versions == sorted(versions, reverse=True)
    assert re.match(r"\d+\.\d+\.\d+", __version__)[0] in versions


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_workflow_runs_the_two_commands_on_three_systems():
    jobs = read_yaml(".github/workflows/test.yml")["jobs"]
    commands = {"test": "make test PYTHON=python", "demo": "make demo PYTHON=python"}
    assert jobs.keys() == commands.keys()
    for name, command in commands.items():
        systems = {system.split("-")[0] for system in jobs[name]["strategy"]["matrix"]["os"]}
        assert systems == {"ubuntu", "macos", "windows"}
        assert command in [step.get("run") for step in jobs[name]["steps"]]
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def test_a_tag_builds_both_distributions_of_its_version():
    workflow = read_yaml(".github/workflows/release.yml")
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as a truth value
    steps = [step.get("run", "") for step in workflow["jobs"]["build"]["steps"]]
    assert "python -m build" in steps
    assert f'__version__ = "{__version__}"' in (ROOT / "qgpo/__init__.py").read_text(
        encoding="utf-8"
    )
    assert any("qgpo/__init__.py" in step for step in steps)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in project


def test_hooks_are_tools_of_the_environment():
    repositories = read_yaml(".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert [hook["entry"] for hook in hooks] == ["ruff format", "ruff check", "mypy"]


def test_the_citation_is_well_formed():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "The qgpo contributors"}]
    assert {"message", "title", "license"} <= citation.keys()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert citation["references"][0]["title"] in readme
    for paper in citation["references"][1:]:
        number = paper["identifiers"][0]["value"].removeprefix("arXiv:")
        assert f"arXiv {number}" in readme
