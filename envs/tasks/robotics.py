"""Registers gymnasium-robotics without its notes, and repairs it for MuJoCo 4."""

from __future__ import annotations

import contextlib
import functools
import io
import types

import gymnasium as gym
import numpy as np


@functools.cache
def register() -> None:
    """Add its environments to Gymnasium's registry, once. Raises ImportError where it is missing.

    Its notes on import, about other environments, are hidden.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
    _repair_joint_types()


def _repair_joint_types() -> None:
    """Let gymnasium-robotics compare joint types with MuJoCo 4.

    There, `mjtJoint.mjJNT_HINGE == numpy.int32(3)` is False, while the reverse comparison is True.
    gymnasium-robotics 1.4.2 makes the first comparison for every hinge and slide, so that the
    kitchen could not be made. Plain integers take the place of the joint types.
    """
    import mujoco
    from gymnasium_robotics.utils import mujoco_utils

    if mujoco.mjtJoint.mjJNT_HINGE == np.int32(mujoco.mjtJoint.mjJNT_HINGE):
        return
    joints = {name: int(value) for name, value in mujoco.mjtJoint.__members__.items()}
    mujoco_utils.mujoco = types.SimpleNamespace(
        **{**vars(mujoco), "mjtJoint": types.SimpleNamespace(**joints)}
    )
