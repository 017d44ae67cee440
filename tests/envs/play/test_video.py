from __future__ import annotations

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from qgpo.envs.play.video import (
    FRAMES_PER_SECOND,
    LONGER_SIDE,
    RenderError,
    _follow,
    check_clip_path,
    record,
    write_clip,
)
from qgpo.envs.tasks.making import make_env

DRAWN = "qgpo-tests/Drawn-v0"
TRACKCOM = int(mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM)


class Drawn(gym.Env):
    """Episodes of 60 steps; the picture's brightness is the step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2 * FRAMES_PER_SECOND}  # noqa: RUF012
    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 0.0, self.t == 60, False, {}

    def render(self):
        if self.render_mode is None:
            return None
        return np.full((300, 640, 3), 4 * self.t, np.uint8)


class Still:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros((len(observation), 1), np.float32), state


@pytest.fixture(autouse=True)
def _drawn_is_registered():
    gym.register(DRAWN, entry_point=f"{__name__}:Drawn")
    yield
    gym.registry.pop(DRAWN)


@pytest.mark.parametrize(("seconds", "n"), [(0.4, 10), (10.0, 30)])
def test_every_second_frame_is_kept_up_to_the_time(seconds, n):
    frames, rate = record(Still(), DRAWN, seconds=seconds)
    assert rate == FRAMES_PER_SECOND
    assert len(frames) == n
    assert [int(f[0, 0, 0]) for f in frames] == [4 * (1 + 2 * i) for i in range(n)]
    assert all(f.shape == (150, LONGER_SIDE, 3) for f in frames)


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_clip_is_written(suffix, tmp_path):
    frames, rate = record(Still(), DRAWN, seconds=0.4)
    path = tmp_path / "clips" / f"episode{suffix}"
    write_clip(path, frames, rate)
    if suffix == ".gif":
        with Image.open(path) as image:
            assert image.n_frames == 10
            assert image.size == (320, 150)
    else:
        assert b"ftyp" in path.read_bytes()[:16]


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.png"])
def test_other_formats_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"\.gif"):
        check_clip_path(tmp_path / name)


def test_an_environment_that_cannot_be_drawn_says_so(monkeypatch):
    monkeypatch.setattr(Drawn, "render", lambda self: None)
    with pytest.raises(RenderError, match="no rgb_array"):
        record(Still(), DRAWN)


@pytest.mark.parametrize(
    ("env", "kwargs", "follows"),
    [
        ("HalfCheetah-v5", {}, True),
        ("Humanoid-v5", {}, True),  # of two cameras, the one that moves
        ("InvertedPendulum-v5", {}, None),  # it has no camera
        ("Humanoid-v5", {"camera_id": 1}, False),  # the environment's own choice
    ],
)
def test_the_camera_moves_with_the_body(env, kwargs, follows):
    with make_env(env) as made:
        spec = made.spec
    spec.kwargs.update(kwargs)
    with make_env(spec, render_mode="rgb_array") as made:
        _follow(made)
        chosen = made.unwrapped.mujoco_renderer.camera_id
        modes = made.unwrapped.model.cam_mode.tolist()
        assert (None if chosen == -1 else modes[chosen] == TRACKCOM) is follows


def test_the_robot_of_a_maze_is_followed():
    with make_env("AntMaze_UMaze-v5", render_mode="rgb_array") as made:
        robot = made.unwrapped.ant_env
        _follow(made)
        assert robot.model.camera(robot.mujoco_renderer.camera_id).name == "track"
