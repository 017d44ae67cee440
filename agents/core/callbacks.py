"""Callbacks for training without an environment."""

from __future__ import annotations

import functools
import os
import warnings
import zipfile
from abc import abstractmethod
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.play.evaluation import FALLBACK_LIMIT
from qgpo.envs.tasks.making import as_played, check_played, make_env
from qgpo.envs.tasks.observations import ObservationAdapter, flat
from qgpo.fields import check_seed, is_integer


class EveryStep(BaseCallback):
    """Calls `after_step(n)` after the n-th step of this training, with a gradient or without.

    SB3's `_on_step` is for gradient steps alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.done = 0

    @abstractmethod
    def after_step(self, n: int) -> None:
        """What to do; the first step is n = 1."""

    def _on_step(self) -> bool:
        self.done += 1
        self.after_step(self.done)
        return True

    def _on_rollout_end(self) -> None:
        self._on_step()


class SaveCheckpoint(EveryStep):
    """Save the agent every `every` steps, and at the end of training."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every={every}, expected at least 1 step between two checkpoints")
        self.path, self.every = path, every

    def after_step(self, n: int) -> None:
        """Save, if it is time."""
        if n % self.every == 0:
            self.model.save(self.path)

    def _on_training_end(self) -> None:
        self.model.save(self.path)


class EvaluationCallback(EvalCallback):
    """SB3's EvalCallback for agents without an environment.

    It evaluates in the environment of a dataset, or in any other environment, and writes the same
    `evaluations.npz`. `StopTrainingOnRewardThreshold` and similar callbacks work with it. Every
    evaluation uses the same seeds. It evaluates when `num_timesteps` is a multiple of `eval_freq`.
    A resumed training appends to the file. Environments without a step limit get one.
    """

    def __init__(
        self,
        env: OfflineDataset | EnvSpec | str | VecEnv,
        callback_on_new_best: BaseCallback | None = None,
        callback_after_eval: BaseCallback | None = None,
        n_eval_episodes: int = 10,
        eval_freq: int = 10_000,
        log_path: str | os.PathLike[str] | None = None,
        best_model_save_path: str | os.PathLike[str] | None = None,
        deterministic: bool = True,
        verbose: int = 0,
        n_envs: int = 5,
        seed: int = 0,
        max_episode_steps: int | None = None,
    ) -> None:
        counts = {"n_eval_episodes": n_eval_episodes, "eval_freq": eval_freq, "n_envs": n_envs}
        for name, value in counts.items():
            if not is_integer(value) or value < 1:
                raise ValueError(f"{name}={value!r}, expected an integer of at least 1")
        after = {
            "callback_on_new_best": callback_on_new_best,
            "callback_after_eval": callback_after_eval,
        }
        for name, given in after.items():
            if not isinstance(given, BaseCallback | None):
                raise TypeError(f"{name} is a {type(given).__name__}, expected an SB3 callback")
        paths = {"log_path": log_path, "best_model_save_path": best_model_save_path}
        for name, path in paths.items():
            if not isinstance(path, str | os.PathLike | None):
                raise TypeError(f"{name} is a {type(path).__name__}, expected a path")
        if max_episode_steps is not None and (
            not is_integer(max_episode_steps) or max_episode_steps < 1
        ):
            raise ValueError(
                f"max_episode_steps={max_episode_steps!r}, expected an integer of at least 1"
            )
        self.seed = check_seed(seed)
        adapter = None
        if isinstance(env, OfflineDataset):
            adapter = env.adapter
            if env.env_spec is None:
                raise ValueError(
                    f"dataset {env.id!r} does not name its environment; pass the one of these data "
                    f"(observations {env.observation_space.shape}, actions "
                    f"{env.action_space.shape}): EvaluationCallback(env_id)"
                )
            env = env.env_spec
        if not isinstance(env, VecEnv):
            make = functools.partial(_make, env, max_episode_steps, adapter)
            env = DummyVecEnv([make] * min(n_envs, n_eval_episodes))
        super().__init__(
            env,
            callback_on_new_best,
            callback_after_eval,
            n_eval_episodes,
            eval_freq,
            None if log_path is None else os.fspath(log_path),
            None if best_model_save_path is None else os.fspath(best_model_save_path),
            deterministic,
            verbose=verbose,
        )

    def _init_callback(self) -> None:
        played = self.eval_env.observation_space, self.eval_env.action_space
        self.model.set_spaces(*played, "the evaluation environment", of_one_step=True)  # type: ignore[attr-defined]
        if self.best_model_save_path is not None:
            Path(self.best_model_save_path).mkdir(parents=True, exist_ok=True)
        if self.callback_on_new_best is not None:
            self.callback_on_new_best.init_callback(self.model)
        self.n_calls = self.model.num_timesteps  # resumed: evaluations at the same timesteps
        if self.log_path is None:
            return
        previous = Path(f"{self.log_path}.npz")
        previous.parent.mkdir(parents=True, exist_ok=True)
        if self.model.num_timesteps > 0 and previous.exists():
            self._go_on_from(previous)

    def _go_on_from(self, previous: Path) -> None:
        """Read what was evaluated up to here. Raises ValueError where it cannot be continued."""
        advice = "choose another log_path, or move the file away"
        try:
            with np.load(previous, allow_pickle=False) as file:
                kept = file["timesteps"] <= self.model.num_timesteps
                results, lengths = file["results"][kept], file["ep_lengths"][kept]
                timesteps = file["timesteps"][kept].tolist()
                successes = file["successes"][kept].tolist() if "successes" in file.files else []
        except (LookupError, OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"log_path: {str(previous)!r} holds no evaluations ({error}); {advice}"
            ) from error
        if results.ndim != 2 or results.shape != lengths.shape:
            raise ValueError(f"log_path: {str(previous)!r} holds no evaluations; {advice}")
        if len(results) and results.shape[1] != self.n_eval_episodes:
            raise ValueError(
                f"n_eval_episodes={self.n_eval_episodes}, but {str(previous)!r}, which this "
                f"training continues, has {results.shape[1]} episodes in every evaluation; take "
                f"as many, or {advice}"
            )
        self.evaluations_timesteps, self.evaluations_successes = timesteps, successes
        self.evaluations_results, self.evaluations_length = results.tolist(), lengths.tolist()
        means = [float(np.mean(returns)) for returns in self.evaluations_results]
        self.best_mean_reward = max(means, default=self.best_mean_reward)

    def _on_step(self) -> bool:
        if self.n_calls % self.eval_freq == 0:
            self.eval_env.seed(self.seed)
        return super()._on_step()


def _make(
    env: EnvSpec | str, max_episode_steps: int | None, adapter: ObservationAdapter | None
) -> gym.Env[Any, Any]:
    """An environment that ends its episodes, with vectors as observations, in SB3's Monitor."""
    check_played(env)
    made = make_env(as_played(env) if isinstance(env, str) else env)
    own_limit = made.spec.max_episode_steps if made.spec is not None else None
    if max_episode_steps is None and own_limit is None:
        max_episode_steps = FALLBACK_LIMIT
        warnings.warn(
            f"{env} has no step limit: episodes are truncated after {FALLBACK_LIMIT} steps "
            "(max_episode_steps)",
            stacklevel=2,
        )
    if max_episode_steps is not None:
        made = gym.wrappers.TimeLimit(made, max_episode_steps)
    return Monitor(flat(made, adapter))
