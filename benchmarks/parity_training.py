"""Training parity: the FQL authors' learner and ours on the same data, played by the same loop.

Each training draws its batches uniformly with replacement, the indices of step k from the seed and
k alone. So a training that was stopped goes on from its last checkpoint to the same end.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from parity_reference import Reference, batch_of, versions

from qgpo import FQL, FQLConfig
from qgpo.agents.core.callbacks import EveryStep
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.play.intervals import success_interval, success_rate
from qgpo.files import write_whole

CLIP = 1e-5
"""their loader clips actions to [-1 + CLIP, 1 - CLIP]"""
LOGGED = {
    "critic/critic_loss": "loss",
    "critic/q_mean": "q",
    "actor/bc_flow_loss": "flow_loss",
    "actor/distill_loss": "distillation_loss",
    "actor/q_loss": "q_loss",
}
"""their metrics, by the last batch of an interval, and ours, averaged over it"""
INTERVAL, SAVED = 1000, 5000
"""steps between two rows of metrics, and between two checkpoints"""
Act = Callable[[NDArray[Any]], NDArray[np.float32]]
"""an observation (S,) to an action (A,)"""


@dataclass(frozen=True)
class Settings:
    """What both sides are trained with; everything else is their file's default."""

    steps: int
    hidden: tuple[int, ...] = (256, 256)
    """layers of the actor's and the critic's networks"""
    alpha: float = 300.0
    batch_size: int = 256
    learning_rate: float = 3e-4
    flow_steps: int = 10

    def theirs(self) -> dict[str, Any]:
        """The fields of their configuration."""
        return {
            "actor_hidden_dims": self.hidden,
            "value_hidden_dims": self.hidden,
            "alpha": self.alpha,
            "batch_size": self.batch_size,
            "lr": self.learning_rate,
            "flow_steps": self.flow_steps,
        }

    def ours(self) -> FQLConfig:
        """Our configuration."""
        return replace(
            FQL.presets["paper"],
            steps=self.steps,
            hidden=self.hidden,
            alpha=self.alpha,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            flow_steps=self.flow_steps,
        )


def arrays(dataset: OfflineDataset) -> dict[str, NDArray[np.float32]]:
    """The dataset as their code reads it."""
    given = {
        "observations": dataset.observations,
        "actions": np.clip(dataset.actions, -1.0 + CLIP, 1.0 - CLIP),
        "rewards": dataset.rewards,
        "masks": ~dataset.terminations,
        "next_observations": dataset.next_observations,
    }
    return {name: np.ascontiguousarray(array, np.float32) for name, array in given.items()}


class TheirTraining:
    """Their FQL, in memory; `work` holds a checkpoint while it trains."""

    def __init__(
        self, reference: Reference, data: dict[str, Any], settings: Settings, seed: int, work: Path
    ) -> None:
        dims = data["observations"].shape[1], data["actions"].shape[1]
        self.agent = reference.agent("fql", seed, *dims, settings.theirs())
        self.reference, self.data, self.settings, self.seed = reference, data, settings, seed
        self.step, self.seconds = 0, 0.0
        self.metrics: list[dict[str, float]] = []
        self.work, self.name = work, f"fql-s{seed}"
        self.notes = work / f"{self.name}.json"
        self._resume()

    def _resume(self) -> None:
        """Go on from the checkpoint of the same settings, if there is one."""
        from flax.serialization import from_bytes

        if not self.notes.exists():
            return
        notes = json.loads(self.notes.read_text())
        if notes["settings"] != self.described():
            raise SystemExit(f"{self.notes} is of other settings; remove it to begin anew")
        self.agent = from_bytes(self.agent, (self.work / notes["state"]).read_bytes())
        self.step, self.seconds = notes["step"], notes["seconds"]
        self.metrics = notes["metrics"]

    def described(self) -> dict[str, Any]:
        """What decides the result, beside the data."""
        theirs = {
            k: list(v) if isinstance(v, tuple) else v for k, v in self.settings.theirs().items()
        }
        return {**theirs, "steps": self.settings.steps, "transitions": len(self.data["rewards"])}

    def save(self) -> None:
        """Write a checkpoint: the state under a name of its own, then the notes that name it."""
        from flax.serialization import to_bytes

        self.work.mkdir(parents=True, exist_ok=True)
        state = self.work / f"{self.name}.{self.step}.msgpack"
        write_whole(state, to_bytes(self.agent))
        notes = {
            "settings": self.described(),
            "state": state.name,
            "step": self.step,
            "seconds": self.seconds,
            "metrics": self.metrics,
        }
        write_whole(self.notes, json.dumps(notes).encode())
        self._remove_states(but=state)

    def _remove_states(self, but: Path | None = None) -> None:
        for old in self.work.glob(f"{self.name}.*.msgpack"):
            if old != but:
                old.unlink()

    def run(self) -> None:
        """Train to the last step."""
        while self.step < self.settings.steps:
            begun, target = time.monotonic(), min(self.settings.steps, self.step + INTERVAL)
            info: dict[str, Any] = {}
            while self.step < target:
                rng = np.random.default_rng((self.seed, self.step))
                index = rng.integers(len(self.data["rewards"]), size=self.settings.batch_size)
                self.agent, info = self.agent.update(batch_of(self.data, index))
                self.step += 1
            row = {name: float(info[name]) for name in LOGGED}  # of the last batch
            self.seconds += time.monotonic() - begun
            self.metrics.append({"step": self.step, **row})
            said = f"theirs, seed {self.seed}: step {self.step}  {self.seconds:.0f} s  "
            print(said + text_of(row), flush=True)
            if self.step % SAVED == 0 or self.step == self.settings.steps:
                self.save()

    def act(self, seed: int) -> Act:
        """Their sampling, with a key split before every action as their evaluation does."""
        import jax

        sample = self.reference.module("utils.evaluation").supply_rng(
            self.agent.sample_actions, rng=jax.random.PRNGKey(seed)
        )
        return lambda observation: np.asarray(sample(observations=observation, temperature=0))


class OurTraining(EveryStep):
    """Our FQL; `work` holds a checkpoint, and beside it the metrics until then, while it trains."""

    def __init__(self, dataset: OfflineDataset, settings: Settings, seed: int, work: Path) -> None:
        super().__init__()
        self.dataset, self.seed = dataset, seed
        self.file, self.notes = work / f"ours-s{seed}.zip", work / f"ours-s{seed}.json"
        self.agent, self.seconds = FQL(settings.ours(), seed=seed, device="cpu"), 0.0
        self.metrics: list[dict[str, float]] = []
        if self.notes.exists():
            self.agent = FQL.load(self.file, device="cpu")
            if self.agent.config != settings.ours():
                raise SystemExit(f"{self.file} is of other settings; remove it to begin anew")
            notes = json.loads(self.notes.read_text())
            kept = [row for row in notes["metrics"] if row["step"] <= self.agent.num_timesteps]
            self.seconds, self.metrics = notes["seconds"], kept

    def run(self) -> None:
        """Train to the last step."""
        self.begun = time.monotonic() - self.seconds
        self.agent.training.history = {"training": self.metrics}
        self.agent.learn(self.dataset, self, INTERVAL, reset_num_timesteps=False)
        self.save()

    def after_step(self, n: int) -> None:
        """Print metrics and save, if it is time."""
        step = self.agent.num_timesteps
        if step % INTERVAL == 0:
            self.seconds = time.monotonic() - self.begun
            row = {name: self.metrics[-1][name] for name in LOGGED.values()}
            said = f"ours, seed {self.seed}: step {step}  {self.seconds:.0f} s  "
            print(said + text_of(row), flush=True)
        if step % SAVED == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint; metrics of later steps than its are left out when it is read."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        notes = {"seconds": self.seconds, "metrics": self.metrics}
        self.agent.save(self.file)
        write_whole(self.notes, json.dumps(notes).encode())

    def act(self, seed: int) -> Act:
        """Our sampling, with fresh noise at every step."""
        self.agent.seed_predictions(seed)
        return lambda observation: self.agent.predict(observation, deterministic=False)[0]


def text_of(metrics: dict[str, float]) -> str:
    """One line."""
    return "  ".join(f"{name.split('/')[-1]} {value:.4g}" for name, value in metrics.items())


def play(act: Act, env: gym.Env[Any, Any], n_episodes: int, seed: int) -> dict[str, list[Any]]:
    """Raw successes and lengths; episode i begins with `reset(seed=seed + i)`.

    An episode is a success where its last step's info says so.
    """
    successes, lengths, returns = [], [], []
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=seed + episode)
        length, total, over, info = 0, 0.0, False, {}
        while not over:
            action = np.clip(act(observation), -1.0, 1.0)
            observation, reward, terminated, truncated, info = env.step(action)
            length, total, over = length + 1, total + float(reward), terminated or truncated
        successes.append(bool(info["success"]))
        lengths.append(length)
        returns.append(total)
    return {"successes": successes, "lengths": lengths, "returns": returns}


def train(
    reference: Reference | None,
    dataset: OfflineDataset,
    env: gym.Env[Any, Any],
    settings: Settings,
    seed: int,
    n_episodes: int,
    work: Path,
) -> dict[str, Any]:
    """Train FQL, theirs with a reference and else ours, and play it: the document of one seed."""
    training: TheirTraining | OurTraining
    if reference is not None:
        code, data = "theirs", arrays(dataset)
        training = TheirTraining(reference, data, settings, seed, work)
        described = training.described()
    else:
        code, training = "ours", OurTraining(dataset, settings, seed, work)
        described = {**asdict(settings.ours()), "transitions": len(dataset)}
    training.run()
    played = play(training.act(seed), env, n_episodes, seed=1000)
    print(f"{code}, seed {seed}: {sum(played['successes'])} of {n_episodes} succeed", flush=True)
    return {
        "code": code,
        "dataset": dataset.id,
        "fingerprint": dataset.fingerprint,
        "seed": seed,
        "settings": described,
        "seconds": round(training.seconds, 1),
        "versions": versions(),
        "metrics": training.metrics,
        **played,
    }


def newcombe(ours: list[bool], theirs: list[bool]) -> tuple[float, float]:
    """95 % interval of the difference of two rates of success, in percent.

    From the Wilson intervals of both (Newcombe 1998, method 10, doi
    10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I).
    """
    rate, (low, high) = success_rate(ours), success_interval(ours)
    other, (other_low, other_high) = success_rate(theirs), success_interval(theirs)
    below = math.hypot(rate - low, other_high - other)
    above = math.hypot(high - rate, other - other_low)
    return rate - other - below, rate - other + above
