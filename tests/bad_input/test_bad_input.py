"""Every kind of bad input gets exactly the error that docs/errors.md lists.

    PYTHONPATH=tests/support python tests/bad_input/test_bad_input.py > docs/errors.md

`…` in a message stands for what differs from case to case.
"""

from __future__ import annotations

import sys

import cases_adoption
import cases_commands
import cases_data
import cases_environments
import cases_export
import cases_files
import cases_plans
import cases_predict
import cases_remote
import cases_sharing
import cases_training
import pytest
from cases import register_walk
from factory import ROOT

CASES = [
    *cases_data.CASES,
    *cases_environments.CASES,
    *cases_remote.CASES,
    *cases_training.CASES,
    *cases_predict.CASES,
    *cases_adoption.CASES,
    *cases_files.CASES,
    *cases_export.CASES,
    *cases_commands.CASES,
    *cases_plans.CASES,
    *cases_sharing.CASES,
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
        "# Error messages",
        "",
        "This page lists error messages for bad input. Each row is tested for exactly this",
        "exception and message. `…` stands for text that varies. `CheckpointError`, `PlanError`,",
        "`RemoteError` and `SpecError` are subclasses of `ValueError`. `NonFiniteError` and",
        "`RunFolderError` are subclasses of `RuntimeError`. `CheckpointWriteError` (a full disk)",
        "is a subclass of `OSError`. Commands print only the message and end with exit code 1.",
        "The command at the top of `tests/bad_input/test_bad_input.py` generates this page.",
    ]
    places = dict.fromkeys(case.where for case in CASES)
    for place in places:
        lines += ["", f"## {place}", "", "| bad input | exception | message |", "|---|---|---|"]
        for case in CASES:
            if case.where == place:
                message = case.message.replace("|", "\\|")
                lines.append(f"| {case.what} | `{case.error.__name__}` | {message} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
