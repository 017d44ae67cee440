"""What MkDocs does not do by itself, for this site.

- Links to files outside docs/ lead to pages that show these files.
- Notebooks become pages.
- The package is put together as users import it, for the API pages.
- Pages and pictures need nothing from the network: `make docs` runs fetch.py before.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".json": "json"}
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
LONGEST = 60_000
"""letters of a file that is shown"""


def outside(source: str, link: str) -> Path | None:
    """The file or folder of the repository that a page of docs/ links to, if it is not in docs/."""
    if re.match(r"\w+:", link):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), link))
    if path.startswith(("docs/", "..")):
        return None
    return ROOT / path if (ROOT / path).exists() else None


def address(path: Path) -> str:
    """Of the page that shows a file: below source/, a page of the same name."""
    name = path.relative_to(ROOT).as_posix()
    return f"source/{name if name.endswith('.md') else name + '.md'}"


def shown(path: Path) -> str:
    """A page about a file or folder of the repository."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        names = sorted(p.name for p in path.iterdir() if not p.name.startswith((".", "_")))
        return f"# {name}/\n\n" + "".join(f"- `{n}`\n" for n in names)
    if path.suffix == ".md":
        text = path.read_text(encoding="utf-8")
        return LINK.sub(lambda m: m[1] + from_repository(path, m[2]) + m[3], text)
    if path.suffix not in LANGUAGES:
        return f"# {name}\n\nA file of the repository, {path.stat().st_size:,} bytes.\n"
    text = path.read_text(encoding="utf-8")[:LONGEST]
    return f"# {name}\n\n````{LANGUAGES[path.suffix]}\n{text}\n````\n"


def from_repository(document: Path, link: str) -> str:
    """A link of a document outside docs/, as a link of the page that shows it."""
    target = (document.parent / link).resolve()
    if re.match(r"\w+:", link) or not target.exists() or not target.is_relative_to(ROOT):
        return link
    within = target.relative_to(ROOT).as_posix()
    to = within.removeprefix("docs/") if within.startswith("docs/") else address(target)
    return posixpath.relpath(to, posixpath.dirname(address(document)))


def as_page(notebook: Path) -> str:
    """The cells of a notebook as Markdown."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    head, *rest = parts
    note = f"This page is the notebook `docs/notebooks/{notebook.name}`."
    return "\n\n".join([head, note, *rest]) + "\n"


def on_startup(**_: Any) -> None:
    """Copy the rooms to where `qgpo.agents` and its like are found: the API is read from there."""
    package = ROOT / "build" / "api" / "qgpo"
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "qgpo", package, ignore=ignored)
    for room in ROOT.glob("*/__init__.py"):
        if room.parent.name != "qgpo":
            shutil.copytree(room.parent, package / room.parent.name, ignore=ignored)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages of notebooks and of files outside docs/."""
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        name = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, name, content=as_page(notebook)))
    wanted: dict[str, Path] = {}
    for file in list(files.documentation_pages()):
        for _, link, _ in LINK.findall(file.content_string):
            if (path := outside(file.src_uri, link)) is not None:
                wanted[address(path)] = path
    queue = [path for path in wanted.values() if path.suffix == ".md"]
    while queue:
        document = queue.pop()
        for _, link, _ in LINK.findall(document.read_text(encoding="utf-8")):
            target = (document.parent / link).resolve()
            known = re.match(r"\w+:", link) or not target.is_relative_to(ROOT)
            if known or not target.exists() or target.is_relative_to(ROOT / "docs"):
                continue
            if address(target) not in wanted:
                wanted[address(target)] = target
                queue += [target] if target.suffix == ".md" else []
    for name, path in sorted(wanted.items()):
        files.append(File.generated(config, name, content=NOT_SEARCHED + shown(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to files outside docs/ to the pages that show them."""
    source = page.file.src_uri
    here = posixpath.dirname(source)

    def led(match: re.Match[str]) -> str:
        link = match[2]
        if link.endswith(".ipynb"):
            return match[1] + link.removesuffix("ipynb") + "md" + match[3]
        path = outside(source, link)
        to = link if path is None else posixpath.relpath(address(path), here or ".")
        return match[1] + to + match[3]

    return markdown if source.startswith("source/") else LINK.sub(led, markdown)
