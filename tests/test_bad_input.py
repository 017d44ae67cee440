"""Every kind of bad input gets exactly the error that docs/errors.md lists.

    python tests/test_bad_input.py > docs/errors.md

`…` in a message stands for what differs from case to case.
"""

from __future__ import annotations

import sys

import bad_input_adoption
import bad_input_commands
import bad_input_data
import bad_input_files
import bad_input_plans
import bad_input_predict
import bad_input_remote
import bad_input_training
import pytest
from bad_input import register_walk
from factory import ROOT

CASES = [
    *bad_input_data.CASES,
    *bad_input_remote.CASES,
    *bad_input_training.CASES,
    *bad_input_predict.CASES,
    *bad_input_adoption.CASES,
    *bad_input_files.CASES,
    *bad_input_commands.CASES,
    *bad_input_plans.CASES,
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.where}: {case.what}")
def test_bad_input_gets_its_message(case):
    register_walk()
    with pytest.raises(case.error) as caught:
        case.provoke()
    assert type(caught.value) is case.error
    assert case.matches(str(caught.value)), str(caught.value)


def test_there_are_many_and_the_documentation_lists_them():
    assert len({(case.where, case.what) for case in CASES}) == len(CASES) >= 60
    assert (ROOT / "docs" / "errors.md").read_text() == document()


def document() -> str:
    """docs/errors.md."""
    lines = [
        "# What goes wrong, and what is said",
        "",
        "Every kind of bad input below is tested for exactly this exception and message; `…` is",
        "what differs from case to case. `CheckpointError`, `PlanError` and `RemoteError` are",
        "`ValueError`s, `NonFiniteError` and `RunFolderError` are `RuntimeError`s,",
        "`CheckpointWriteError` (a full disk) is an `OSError`; command lines end with exit code 1",
        "and the message alone.",
        "This page is made by `python tests/test_bad_input.py > docs/errors.md`.",
        "",
        "| where | what | exception | message |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        message = case.message.replace("|", "\\|")
        lines.append(f"| {case.where} | {case.what} | `{case.error.__name__}` | {message} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
