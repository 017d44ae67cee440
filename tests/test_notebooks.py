"""The notebooks run from top to bottom, on small settings."""

from __future__ import annotations

import json

import pytest
from factory import ROOT

from qgpo.envs import UniformPolicy, collect, write_minari

NOTEBOOKS = {
    "five_minutes": {
        "dataset_id": "mine/small-v0",
        "times_the_steps": 1e-3,
        "n_episodes": 1,
        "scales": (0.0, 1.0),
    },
    "exact_guidance": {"steps": 5, "n_samples": 100, "frames": 2},
    "own_data": {"times_the_steps": 1e-3, "n_steps": 200},
}
MADE = {"five_minutes": "agent.zip", "exact_guidance": "guided.gif", "own_data": "data.png"}
"""a file that the last cells leave"""


def cells(name: str) -> list[tuple[list[str], str]]:
    """Tags and text of the code cells."""
    path = ROOT / "docs" / "notebooks" / f"{name}.ipynb"
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["nbformat"] == 4
    code = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code), "clear the outputs"
    return [(cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in code]


def test_every_notebook_is_run():
    assert {path.stem for path in (ROOT / "docs/notebooks").glob("*.ipynb")} == NOTEBOOKS.keys()


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path):
    if name == "five_minutes":
        short, n_steps = "Reacher-v5", 100
        episodes = collect(short, lambda space: [UniformPolicy(space)], n_steps, seed=0)
        write_minari("mine/small-v0", episodes, short, "uniform actions", "a test")
    values = NOTEBOOKS[name]
    namespace: dict = {}
    for number, (tags, text) in enumerate(cells(name)):
        exec(compile(text, f"{name}, cell {number}", "exec"), namespace)
        if "parameters" in tags:
            assert values.keys() <= namespace.keys()
            namespace.update(values)
    assert (tmp_path / MADE[name]).stat().st_size > 0
