"""Bad input of files and of evaluation."""

from __future__ import annotations

from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from cases import (
    FILE,
    MAKE,
    PLAY,
    Case,
    agent,
    commented,
    config,
    header,
    loaded,
    saved,
    tensor,
    truncated,
)
from factory import (
    PAPER_LIKE,
    make_dataset,
)
from gymnasium import spaces

from qgpo import QGPO, EnergyGuidedDiffusion, evaluate, load_agent
from qgpo.agents.core.callbacks import EvaluationCallback
from qgpo.agents.core.checkpoint import CheckpointError, CheckpointWriteError
from qgpo.envs.play.scores import EvaluationError


class Failing(gym.Env):
    """Its second reward is NaN."""

    def reset(self, **_: Any) -> Any:
        self.reward = 1.0
        return np.zeros(3), {}

    def step(self, action: Any) -> Any:
        reward, self.reward = self.reward, np.nan
        return np.zeros(3), reward, False, False, {}


def a_run_folder() -> None:
    """A name that is a folder without a checkpoint."""
    agent().save("run/agent")
    QGPO.load("run")


def of_other_rows() -> None:
    """A support table that has a row too few, which only the data tell."""
    one = QGPO(PAPER_LIKE, device="cpu")
    one.prepare(make_dataset())
    one.generate_support(make_dataset())
    one.tables["support"] = one.tables["support"][1:].clone()
    one.save("agent")
    QGPO.load("agent", device="cpu").learn(make_dataset(), reset_num_timesteps=False)


CASES = [
    Case(
        MAKE, "a discount above 1", ValueError, "gamma=1.5, expected in [0, 1]", config(gamma=1.5)
    ),
    Case(
        FILE,
        "saving an agent without spaces",
        RuntimeError,
        "nothing to save: this agent has no spaces yet; call learn(dataset) or set_env",
        lambda: QGPO(PAPER_LIKE, device="cpu").save("agent"),
    ),
    Case(
        FILE,
        "a file that does not exist",
        CheckpointError,
        "checkpoint 'nowhere.zip' does not exist",
        lambda: QGPO.load("nowhere"),
    ),
    Case(
        FILE,
        "a run folder without a checkpoint",
        CheckpointError,
        "checkpoint 'run/checkpoint.zip' does not exist",
        a_run_folder,
    ),
    Case(
        FILE,
        "an empty file name to save",
        ValueError,
        "path='.' is not a file name, expected one such as 'agent.zip'",
        lambda: agent().save(""),
    ),
    Case(
        FILE,
        "an empty file name to load",
        ValueError,
        "path='.' is not a file name, expected one such as 'agent.zip'",
        lambda: load_agent(""),
    ),
    Case(
        FILE,
        "a device that does not exist",
        ValueError,
        "device='cuda:99' is not available here, expected auto or cpu",
        lambda: QGPO.load(saved(), device="cuda:99"),
    ),
    Case(
        FILE,
        "saving over a folder",
        CheckpointWriteError,
        "[Errno 21] checkpoint 'folder.zip' could not be written (…); there is none yet. …",
        lambda: (Path("folder.zip").mkdir(), agent().save("folder")),
    ),
    Case(
        FILE,
        "a name that is too long",
        CheckpointWriteError,
        "[Errno 36] checkpoint 'aaa….zip' could not be written (…); there is none yet. …",
        lambda: agent().save("a" * 300),
    ),
    Case(
        FILE,
        "a truncated file",
        CheckpointError,
        "checkpoint 'agent.zip' is damaged (…); use an earlier copy",
        truncated,
    ),
    Case(
        FILE,
        "a newer format",
        CheckpointError,
        "'agent.zip' has format version 7, this qgpo reads up to 6: upgrade qgpo",
        lambda: loaded(header(format_version=7)),
    ),
    Case(
        FILE,
        "another agent's file",
        CheckpointError,
        "'agent.zip' holds a 'SAC' agent, load it with that class (this is 'QGPO')",
        lambda: loaded(header(agent="SAC")),
    ),
    Case(
        FILE,
        "an unknown agent",
        CheckpointError,
        "'agent.zip' holds a 'SAC' agent, expected one of […]",
        lambda: load_agent(saved(header(agent="SAC"))),
    ),
    Case(
        FILE,
        "a configuration with other fields",
        CheckpointError,
        "checkpoint 'agent.zip' cannot be used: configuration fields differ: unknown ['odd'], "
        "missing […]",
        lambda: loaded(header(config={"odd": 1})),
    ),
    Case(
        FILE,
        "a missing tensor",
        CheckpointError,
        "checkpoint 'agent.zip' cannot be used: it does not fit its configuration: missing "
        "tensors ['…'], unknown [], of wrong shape []",
        lambda: loaded(tensor(lambda _: None)),
    ),
    Case(
        FILE,
        "a tensor with another shape",
        CheckpointError,
        "checkpoint 'agent.zip' cannot be used: it does not fit its configuration: missing "
        "tensors [], unknown [], of wrong shape ['… instead of (…)']",
        lambda: loaded(tensor(lambda old: old.new_zeros(7, 7))),
    ),
    Case(
        FILE,
        "an additional member",
        CheckpointError,
        "'agent.zip' is not a qgpo checkpoint: it holds […'data.pkl'…], expected […]",
        lambda: loaded(lambda members: members.update({"data.pkl": b"cos"})),
    ),
    Case(
        FILE,
        "bytes after the zip",
        CheckpointError,
        "'agent.zip' is not a qgpo checkpoint: there is something before, between or after its "
        "members; use a copy from save()",
        lambda: QGPO.load(commented(saved()), device="cpu"),
    ),
    Case(
        FILE,
        "a named pipe, or a folder of that name",
        CheckpointError,
        "checkpoint 'folder.zip' is no file",
        lambda: (Path("folder.zip").mkdir(), QGPO.load("folder")),
    ),
    Case(
        FILE,
        "networks that are larger than the file",
        CheckpointError,
        "checkpoint 'agent.zip' cannot be used: its configuration and spaces need larger "
        "networks than the file holds",
        lambda: loaded(header(config={**asdict(PAPER_LIKE), "critic_hidden": [30_000, 30_000]})),
    ),
    Case(
        FILE,
        "a setting out of range",
        CheckpointError,
        "checkpoint 'agent.zip' cannot be used: gamma=1.5, expected in [0, 1]",
        lambda: loaded(header(config={**asdict(PAPER_LIKE), "gamma": 1.5})),
    ),
    Case(
        FILE,
        "more steps than the configuration has",
        CheckpointError,
        "checkpoint 'agent.zip' cannot be used: its stage 'critic' has 1000000 steps done of …",
        lambda: loaded(header(progress={**agent().progress, "critic": 10**6})),
    ),
    Case(
        FILE,
        "a name that occurs twice",
        CheckpointError,
        "checkpoint 'agent.zip' is damaged (its JSON has a name twice); use an earlier copy",
        lambda: loaded(lambda members: members.update({"checkpoint.json": b'{"a": 1, "a": 2}'})),
    ),
    Case(
        FILE,
        "a tensor with infinite values",
        CheckpointError,
        "checkpoint 'agent.zip' cannot be used: … has NaN or infinite values",
        lambda: loaded(tensor(lambda old: old / 0.0)),
    ),
    Case(
        FILE,
        "a table of another size than the data",
        ValueError,
        "this agent's tables ['support'] do not fit the dataset that its file names: the file "
        "is damaged; use an earlier copy",
        of_other_rows,
    ),
    Case(
        FILE,
        "a space with an unsupported dtype",
        ValueError,
        "Box(…) has dtype float128, expected one of […]",
        lambda: QGPO(PAPER_LIKE, device="cpu").set_spaces(
            spaces.Box(-1.0, 1.0, (3,), np.longdouble), spaces.Box(-1.0, 1.0, (1,)), "the data"
        ),
    ),
    Case(
        FILE,
        "a file opened in text mode",
        ValueError,
        "open file … is not a seekable file in binary mode, expected one",
        lambda: EnergyGuidedDiffusion.load(StringIO(), device="cpu"),
    ),
    Case(
        FILE,
        "an environment with other spaces",
        ValueError,
        "the environment has observations (3,) and actions …; this agent was made for (3,) and …",
        lambda: QGPO.load(saved(), env="Pendulum-v1", device="cpu"),
    ),
    Case(
        PLAY,
        "no episodes",
        ValueError,
        "n_episodes=0, expected at least 1",
        lambda: evaluate(agent(), "Pendulum-v1", 0),
    ),
    Case(
        PLAY,
        "a dataset without environment",
        ValueError,
        "dataset 'test/made/by-hand-v0' does not name its environment; pass the one of these data "
        "(observations (3,), actions (1,)): evaluate(agent, env_id)",
        lambda: evaluate(agent(), make_dataset()),
    ),
    Case(
        PLAY,
        "an unknown environment",
        ValueError,
        "environment 'Nowhere-v0' cannot be made: …",
        lambda: evaluate(agent(), "Nowhere-v0"),
    ),
    Case(
        PLAY,
        "an environment of other spaces",
        ValueError,
        "environment 'Pendulum-v1' does not fit the agent: it has observations (3,) and actions "
        "Box(-2.0, 2.0, (1,), float32); the agent was made for (3,) and Box(-1.0, 1.0, (1,), "
        "float32)",
        lambda: evaluate(agent(), "Pendulum-v1"),
    ),
    Case(
        PLAY,
        "an object that is not an environment",
        TypeError,
        "env is a int, expected an id such as 'Hopper-v5' or an EnvSpec",
        lambda: evaluate(agent(), 5),
    ),
    Case(
        PLAY,
        "an environment that fails",
        EvaluationError,
        "evaluation in Failing failed in episode 0 (seed 10000), step 1: its reward is nan; of 3 "
        "episodes, no episode had ended",
        lambda: evaluate(agent(), Failing(), 3),
    ),
    Case(
        PLAY,
        "an object that is not an agent",
        TypeError,
        "agent is a str without predict(), expected an agent",
        lambda: evaluate("agent", "Pendulum-v1"),
    ),
    Case(
        PLAY,
        "n_envs=0",
        ValueError,
        "n_envs=0, expected at least 1",
        lambda: evaluate(agent(), "Pendulum-v1", n_envs=0),
    ),
    Case(
        PLAY,
        "max_episode_steps=0",
        ValueError,
        "max_episode_steps=0, expected at least 1",
        lambda: evaluate(agent(), "Pendulum-v1", max_episode_steps=0),
    ),
    Case(
        PLAY,
        "eval_freq=0",
        ValueError,
        "eval_freq=0, expected an integer of at least 1",
        lambda: EvaluationCallback("Pendulum-v1", eval_freq=0),
    ),
    Case(
        PLAY,
        "a callback for a dataset without environment",
        ValueError,
        "dataset 'test/made/by-hand-v0' does not name its environment; pass the one of these data "
        "(observations (3,), actions (1,)): EvaluationCallback(env_id)",
        lambda: EvaluationCallback(make_dataset()),
    ),
]
