from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from qgpo import envs

SLOW = ("matplotlib", "imageio", "gymnasium_robotics", "huggingface_hub", "mujoco", "filelock")


def test_functions_are_not_hidden_by_folders_of_the_same_name():
    for module in ("rollouts.collecting", "store.writing", "store.checking", "data.figure"):
        importlib.import_module(f"qgpo.envs.{module}")
    for name in ("collect", "write_minari", "check_dataset", "evaluate"):
        assert callable(getattr(envs, name))


@pytest.fixture(scope="module")
def imported():
    """Which slow modules a new process has imported, with the environments and with scripts."""
    code = (
        f"import sys, qgpo.envs; print([m for m in {SLOW} if m in sys.modules]); "
        "import qgpo.scripts.train, qgpo.scripts.evaluate; print('matplotlib' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return output.stdout.splitlines()


def test_nothing_slow_is_imported_before_it_is_used(imported):
    assert imported[0] == "[]"


def test_a_training_that_draws_nothing_yet_imports_no_matplotlib(imported):
    assert imported[1:] == ["False"]
