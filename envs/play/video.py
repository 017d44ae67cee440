"""Video of an agent, with or without a display."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from PIL import Image

from qgpo.envs.play.evaluation import evaluate
from qgpo.envs.rollouts.protocols import Predicts
from qgpo.envs.tasks.making import make_env
from qgpo.files import replacing

FORMATS = (".gif", ".mp4")
FRAMES_PER_SECOND = 25
"""frames are left out where the environment runs faster, because GIF players are too slow"""
LONGER_SIDE = 320
"""pixels; larger frames are scaled down"""

_PROBE = """
import mujoco
renderer = mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 16, 16)
renderer.render()
"""


class RenderError(RuntimeError):
    """An environment that cannot be drawn here."""


def choose_renderer() -> str | None:
    """Find an OpenGL that works without a display and set MUJOCO_GL to it; returns its name.

    Call it before anything imports MuJoCo. If MUJOCO_GL is set, its value is tried; else, on Linux
    without a DISPLAY, egl and then osmesa. Each is tried in a process of its own (a second or
    two), because a failed import of OpenGL makes the next one fail. MUJOCO_GL is unset where none
    works, because MuJoCo can then still be imported.
    """
    setting = os.environ.get("MUJOCO_GL")
    if not setting and (os.environ.get("DISPLAY") or sys.platform != "linux"):
        return None
    for name in (setting,) if setting else ("egl", "osmesa"):
        tried = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, "MUJOCO_GL": name},
            capture_output=True,
            check=False,
        )
        if tried.returncode == 0:
            os.environ["MUJOCO_GL"] = name
            return name
    os.environ.pop("MUJOCO_GL", None)
    return None


def check_clip_path(path: Path) -> None:
    """Raise ValueError where no clip can be written in the format of the file's name."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"video {str(path)!r}, expected a name that ends in one of {FORMATS}")
    missing = [m for m in ("imageio", "imageio_ffmpeg") if importlib.util.find_spec(m) is None]
    if path.suffix.lower() == ".mp4" and missing:
        raise ValueError(
            f"video {str(path)!r} needs {' and '.join(missing)}: pip install 'imageio[ffmpeg]', "
            "or give a name that ends in .gif"
        )


def check_drawable(env: str | EnvSpec, seed: int = 0) -> None:
    """Raise RenderError where the environment cannot be drawn here."""
    _drawable(env, seed).close()


def record(
    agent: Predicts,
    env: str | EnvSpec,
    seconds: float = 10.0,
    seed: int = 0,
    deterministic: bool = False,
) -> tuple[list[NDArray[np.uint8]], float]:
    """Frames (H, W, 3) of the episode that starts from `seed`, and frames per second.

    The episode is cut after `seconds` of the environment's own time. Raises RenderError where
    the environment cannot be drawn.
    """
    drawn = _drawable(env, seed)
    rate = float(drawn.metadata.get("render_fps") or 30)
    stride = max(1, round(rate / FRAMES_PER_SECOND))
    steps = max(1, int(seconds * rate))
    frames: list[NDArray[np.uint8]] = []
    counter = itertools.count()

    def draw(envs: list[gym.Env[Any, Any]]) -> None:
        if next(counter) % stride == 0:
            frames.append(_scaled(envs[0].render()))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*: no (normalised scores|score),")  # nor needed
        evaluate(
            agent,
            drawn,
            1,
            seed,
            deterministic=deterministic,
            max_episode_steps=steps,
            warn_of_cuts=False,
            on_step=draw,
        )
    drawn.close()
    return frames, rate / stride


def _drawable(env: str | EnvSpec, seed: int) -> gym.Env[Any, Any]:
    """The environment in `rgb_array` mode, once it has drawn a frame."""
    name = env.id if isinstance(env, EnvSpec) else env
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            drawn = make_env(env, render_mode="rgb_array")
            _follow(drawn)
            drawn.reset(seed=seed)
            frame = drawn.render()
    except Exception as error:  # OpenGL's bindings raise errors of many types
        chosen = os.environ.get("MUJOCO_GL", "unset, or does not work")
        raise RenderError(
            f"{name} cannot be drawn here ({type(error).__name__}: {error}; MUJOCO_GL: {chosen}). "
            "Without a display MuJoCo needs EGL or OSMesa; on Debian: apt install libegl1, or "
            "apt install libosmesa6"
        ) from error
    if not isinstance(frame, np.ndarray):
        raise RenderError(f"{name} cannot be drawn: it has no rgb_array rendering")
    return drawn


def _follow(env: gym.Env[Any, Any]) -> None:
    """Film a MuJoCo model from its camera that moves with the body, where it has one.

    Gymnasium draws from a camera that stays where the episode begins, unless the environment was
    made with a camera of its own choice, which is kept. A maze holds its robot's environment.
    """
    import mujoco
    from gymnasium.envs.mujoco import MujocoEnv

    modes = mujoco.mjtCamLight
    moving = [int(modes.mjCAMLIGHT_TRACK), int(modes.mjCAMLIGHT_TRACKCOM)]
    for part in (env.unwrapped, *vars(env.unwrapped).values()):
        robot = part.unwrapped if isinstance(part, gym.Env) else None
        if isinstance(robot, MujocoEnv) and robot.mujoco_renderer.camera_id == -1:
            following = np.flatnonzero(np.isin(robot.model.cam_mode, moving))
            robot.mujoco_renderer.camera_id = int(following[0]) if len(following) else -1


def _scaled(frame: Any) -> NDArray[np.uint8]:
    """The frame with its longer side at most LONGER_SIDE, and even sides for video codecs."""
    image = Image.fromarray(np.asarray(frame, dtype=np.uint8))
    factor = min(1.0, LONGER_SIDE / max(image.size))
    width, height = (max(2, 2 * round(side * factor / 2)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def write_clip(path: Path, frames: list[NDArray[np.uint8]], frames_per_second: float) -> None:
    """Write a GIF, or an MP4 (H.264), by the file's name; whole or not at all."""
    check_clip_path(path)
    if path.suffix.lower() == ".mp4":
        import imageio

        settings = {"fps": frames_per_second, "macro_block_size": 2}
        with replacing(path) as file:
            imageio.mimwrite(file, list(frames), format="mp4", **settings)
        return
    images = [Image.fromarray(frame).quantize(128) for frame in frames]
    # GIF counts in hundredths of a second, and players slow down below two.
    duration = max(20, 10 * round(100.0 / frames_per_second))
    more = {"save_all": True, "append_images": images[1:], "duration": duration, "loop": 0}
    with replacing(path) as file:
        images[0].save(file, format="GIF", **more)
