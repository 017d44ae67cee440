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
        "# What goes wrong, and what is said",
        "",
        "Every kind of bad input below is tested for exactly this exception and message; `…` is",
        "what differs from case to case. `CheckpointError`, `PlanError`, `RemoteError` and",
        "`SpecError` are `ValueError`s, `NonFiniteError` and `RunFolderError` are `RuntimeError`s,",
        "`CheckpointWriteError` (a full disk) is an `OSError`; command lines end with exit code 1",
        "and the message alone.",
        "This page is made by the command at the top of `tests/bad_input/test_bad_input.py`.",
    ]
    places = dict.fromkeys(case.where for case in CASES)
    for place in places:
        lines += ["", f"## {place}", "", "| what | exception | message |", "|---|---|---|"]
        for case in CASES:
            if case.where == place:
                message = case.message.replace("|", "\\|")
                lines.append(f"| {case.what} | `{case.error.__name__}` | {message} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
