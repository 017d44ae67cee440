"""Trajectories of OGBench's experts: their arrays, and that their seed alone decides them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("ogbench")

from qgpo.envs.rollouts import ogbench_experts as experts
from qgpo.envs.rollouts.ogbench_experts import PROCEDURES, Procedure, trajectory

DIMENSIONS = {
    "cube-double-play": (37, 28, 26, 0),
    "cube-single-noisy": (28, 21, 20, 0),
    "scene-play": (40, 25, 24, 2),
    "puzzle-4x5-play": (99, 34, 34, 20),
    "puzzle-3x3-noisy": (55, 23, 23, 9),
    "pointmaze-medium-navigate": (2, 2, 2, 0),
    "pointmaze-teleport-stitch": (2, 2, 2, 0),
}
"""numbers of an observation, of positions and velocities of the simulation, and of buttons"""


def short(name: str, length: int = 30) -> Procedure:
    return replace(PROCEDURES[name], length=length)


def same(one, other) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_arrays_are_those_of_the_official_files(name):
    played = trajectory(short(name), 0, 0)
    observation, qpos, qvel, buttons = DIMENSIONS[name]
    action = 2 if "maze" in name else 5
    expected = {
        "observations": ((31, observation), np.float32),
        "actions": ((31, action), np.float32),
        "terminals": ((31,), np.bool_),
        "qpos": ((31, qpos), np.float32),
        "qvel": ((31, qvel), np.float32),
    }
    if buttons:
        expected["button_states"] = ((31, buttons), np.int64)
    assert {n: (a.shape, a.dtype) for n, a in played.items()} == expected
    assert played["terminals"].tolist() == [False] * 30 + [True]
    assert np.all(np.abs(played["actions"]) <= 1)
    assert all(np.all(np.isfinite(values)) for values in played.values())


@pytest.mark.parametrize(
    ("name", "length"),
    [("scene-noisy", 100), ("cube-double-noisy", 30), ("pointmaze-teleport-navigate", 300)],
)
def test_what_was_played_before_does_not_matter(name, length):
    """In the scene, targets of earlier episodes are left in the environment."""
    experts._recorder.cache_clear()
    procedure = short(name, length)
    alone = trajectory(procedure, 0, 1)
    trajectory(procedure, 0, 51)
    assert same(alone, trajectory(procedure, 0, 1))
    assert not same(alone, trajectory(procedure, 0, 2))
    assert not same(alone, trajectory(procedure, 1, 1))


def test_the_model_is_changed_where_it_is_restored_alone():
    procedure = short("scene-noisy", 200)
    recorder = experts._recorder(procedure)
    model = recorder.env.unwrapped.model
    names = [name for name in dir(model) if isinstance(getattr(model, name, None), np.ndarray)]
    before = {name: getattr(model, name).copy() for name in names}
    trajectory(procedure, 0, 0)
    changed = {name for name in names if not np.array_equal(before[name], getattr(model, name))}
    assert "dof_damping" in changed
    assert changed <= set(experts.CHANGED)


def test_numpys_global_generator_is_left_as_it_was():
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.rand(3)  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    first = trajectory(short("pointmaze-medium-stitch"), 0, 0)
    assert np.array_equal(np.random.rand(3), expected)  # noqa: NPY002
    assert same(first, trajectory(short("pointmaze-medium-stitch"), 0, 0))


def test_rows_hold_the_state_in_which_the_action_was_taken():
    """A point moves by a fifth of its action, where no wall is in its way."""
    played = trajectory(short("pointmaze-medium-navigate", 200), 0, 0)
    assert np.array_equal(played["observations"], played["qpos"])
    moved = np.diff(played["observations"], axis=0)
    is_free = np.all(np.isclose(moved, 0.2 * played["actions"][:-1], atol=1e-3), axis=1)
    assert is_free.mean() > 0.8
    assert not np.allclose(moved, 0.2 * played["actions"][1:], atol=1e-2)


def test_navigate_goes_on_to_other_goals_and_stitch_does_not():
    """Within 1000 steps of at most 0.28, one walks far beyond four cells of 4."""
    far = {}
    for kind in ("navigate", "stitch"):
        places = trajectory(short(f"pointmaze-medium-{kind}", 600), 0, 3)["observations"]
        far[kind] = np.ptp(places, axis=0).max()
    assert far["navigate"] > 16 > far["stitch"]


def test_buttons_are_pressed():
    states = trajectory(short("puzzle-3x3-play", 200), 0, 0)["button_states"]
    changes = np.abs(np.diff(states, axis=0)).sum(axis=1)
    assert set(np.unique(states)) == {0, 1}
    assert {3, 4, 5} & set(changes.tolist())  # a button with its neighbours
    assert 1 not in changes


def test_actions_are_random_in_the_share_that_the_procedure_states():
    """Uniform actions never close the gripper fully; the expert of a puzzle always does."""
    procedure = replace(short("puzzle-3x3-noisy", 200), noise=0.0)
    grip = trajectory(procedure, 0, 0)["actions"][:, 4]
    assert 0.1 < (grip < 1).mean() < 0.3
    certain = trajectory(replace(procedure, random_actions=0.0), 0, 0)["actions"][:, 4]
    assert np.all(certain == 1)


def test_a_scene_is_played_again_until_the_cube_stays_in_reach(monkeypatch):
    procedure = short("scene-play")
    first = trajectory(procedure, 0, 0)

    def again():
        answers = iter([False, True])
        monkeypatch.setattr(experts, "is_in_reach", lambda cube: next(answers))
        return trajectory(procedure, 0, 0)

    second = again()
    assert not same(first, second)
    assert same(second, again())


def test_where_a_cube_is_in_reach():
    at = {
        (0.0, 0.02): True,
        (0.28, 0.02): True,
        (0.29, 0.02): False,  # too far right
        (-0.3, 0.02): False,  # too far left
        (-0.3, 0.07): True,  # in the drawer
        (-0.3, 0.09): False,  # above it
        (0.29, 0.07): False,
    }
    for (side, height), expected in at.items():
        assert experts.is_in_reach(np.array([[0.4, side, height]])) == expected, (side, height)
    assert not experts.is_in_reach(np.array([[0.4, 0.0, 0.02], [0.4, 0.3, 0.02]]))


MAP = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ],
    dtype=np.bool_,
)
"""free cells: an arch of two legs"""


def test_corridors_lead_straight_through():
    straight = {(1, 2), (1, 3), (2, 1), (2, 4)}
    for cell in map(tuple, np.argwhere(MAP)):
        assert experts.is_corridor(MAP, cell) == (cell in straight), cell


def test_cells_at_a_distance_are_those_of_shortest_paths_in_the_order_of_a_search():
    assert experts.cells_at(MAP, (3, 1), 0) == [(3, 1)]
    assert experts.cells_at(MAP, (3, 1), 2) == [(1, 1)]
    assert experts.cells_at(MAP, (3, 1), 7) == [(3, 4)]
    assert experts.cells_at(MAP, (3, 1), 8) == []
    everywhere = np.ones((3, 3), dtype=np.bool_)
    assert experts.cells_at(everywhere, (1, 1), 1) == [(0, 1), (1, 0), (2, 1), (1, 2)]
    assert experts.cells_at(everywhere, (1, 1), 2) == [(0, 0), (0, 2), (2, 0), (2, 2)]


def test_procedures():
    """26 sets; numbers as in the commands of OGBench's authors."""
    assert len(PROCEDURES) == 26
    of = PROCEDURES
    assert of["cube-triple-play"] == Procedure("cube-triple", "play", 1000, 0.1)
    assert of["scene-noisy"] == Procedure("scene", "noisy", 1000, 0.1, 0.1)
    assert of["puzzle-4x6-noisy"] == Procedure("puzzle-4x6", "noisy", 1000, 0.1, 0.2)
    assert of["pointmaze-large-navigate"] == Procedure("pointmaze-large", "navigate", 1000, 0.5)
    assert of["pointmaze-giant-navigate"].length == 2000
    assert {p.length for p in of.values() if p.kind == "stitch"} == {200}
