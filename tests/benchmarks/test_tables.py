from __future__ import annotations

import re

from commands import run_in_a_copy
from factory import ROOT, subprocess_environment


def rows(markdown: str) -> set[str]:
    """Rows of tables as numbers and names, without bold, dashes and numbers of agents."""
    lines = [line.strip() for line in markdown.replace("\N{EN DASH}", "-").splitlines()]
    lines = [line for line in lines if line.startswith("|") and set(line) - set("|- ")]
    return {re.sub(r"[*`]|, \d+(?= \|)", "", line) for line in lines}


def numbers(markdown: str) -> set[str]:
    """Rows without those of titles."""
    return {row for row in rows(markdown) if not row.startswith("|  |")}


def test_the_documents_have_the_numbers_of_the_measurements():
    folder = ROOT / "benchmarks"
    environment = subprocess_environment(PYTHONPATH=str(folder))
    done = run_in_a_copy([str(folder / "tables.py")], ROOT, environment)
    assert done.returncode == 0, done.stderr
    readme, results = (rows((ROOT / name).read_text()) for name in ("README.md", "docs/results.md"))
    printed = numbers(done.stdout)
    assert len(printed) > 100
    assert printed <= readme | results
    _, _, summary = done.stdout.partition("## Ten minutes\n")
    summary, _, _ = summary.partition("## ")
    assert len(numbers(summary)) == 12
    assert numbers(summary) <= readme
    assert numbers(summary) <= results
