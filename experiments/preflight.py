"""What would be refused after hours is refused before: folder, environment, checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from qgpo.agents import OfflineAgent
from qgpo.envs.tasks.making import as_played, check_played, make_env, quiet_mujoco
from qgpo.experiments import documents
from qgpo.experiments.documents import DocumentError
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.settings import Experiment, as_json


def check_new(folder: RunFolder, overwrite: bool) -> None:
    """Raise ValueError where a new run may not begin in the folder.

    It may where no run wrote anything, and over a run with a complete config.json if `overwrite`.
    """
    if folder.config.is_symlink() or folder.config.exists():
        try:
            documents.read_config(folder.config)
        except DocumentError as error:
            raise DocumentError(
                f"{folder.path} may not be a run folder: {error}; choose another --run-dir"
            ) from error
        if not overwrite:
            raise ValueError(
                f"{folder.path} already holds a run: continue it with --resume {folder.path}, "
                "replace it with --overwrite, or choose another --run-dir"
            )
        folder.check_clear()
    elif in_the_way := [path.name for path in folder.named()]:
        raise ValueError(
            f"{folder.path} holds {', '.join(in_the_way)} but no config.json of a run: move it "
            "away (a checkpoint can be evaluated in any folder), or choose another --run-dir"
        )


def check_same_agent(
    experiment: Experiment[Any], agent: OfflineAgent[Any], folder: RunFolder
) -> None:
    """Raise DocumentError where the folder's checkpoint is not of this training.

    Tuning changes the guidance scale.
    """
    wanted = {"seed": experiment.seed, **as_json(experiment.config)}
    found = {"seed": agent.seed, **as_json(agent.config)}
    for name in (wanted | found).keys() - {"guidance_scale"}:
        if wanted.get(name) != found.get(name):
            raise DocumentError(
                f"{folder.checkpoint} belongs to another training: it has {name} = "
                f"{found.get(name)!r}, this run {wanted.get(name)!r}; move it away, or choose "
                "another run folder"
            )


def check_environment(env: str | EnvSpec, agent: OfflineAgent[Any], seed: int) -> None:
    """Make the environment, compare its spaces, and take one step.

    Raises ValueError where that fails, and where agents do not play there; the step's action is
    drawn from the action space.
    """
    check_played(env)
    with make_env(as_played(env)) as made:
        of_env = made.observation_space, made.action_space
        agent.set_spaces(*of_env, "the environment", of_one_step=True)
        try:
            with quiet_mujoco():
                made.reset(seed=seed)
                made.action_space.seed(seed)
                _, reward, *_ = made.step(made.action_space.sample())
            np.float64(reward)  # type: ignore[arg-type]
        except Exception as error:  # whatever somebody's environment raises
            name = env if isinstance(env, str) else env.id
            raise ValueError(
                f"environment {name!r} cannot be used for evaluation ({type(error).__name__}: "
                f"{error}): repair it, or skip the evaluation with --n-episodes 0"
            ) from error


def check_files(agent: OfflineAgent[Any], folder: RunFolder) -> None:
    """Write what a new agent's checkpoints will say, and delete it; raises what `save` raises."""
    saved = agent.training.saved
    try:
        agent.save(folder.trial)
    finally:
        folder.trial.unlink(missing_ok=True)
        agent.training.saved = saved
