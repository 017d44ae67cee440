"""One experiment in its run folder: train, tune, evaluate, write.

    run = Run(experiment, folder)
    with folder.locked():
        document = run.finish()

A run continues from the folder's checkpoint where there is one. Whatever stopped it, running it
again ends with the same agent and the same document.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.callbacks import SaveCheckpoint
from qgpo.agents.guided import GuidanceTuning, is_guided
from qgpo.agents.registry import adopt_from
from qgpo.envs.play.evaluation import evaluate_scales, scale_label
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.tasks.making import make_env
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.format import (
    Document,
    DocumentError,
    Results,
    describe,
    evaluations_to_json,
    read_document,
    write_json,
)
from qgpo.experiments.settings import Experiment, as_json


class Clock(BaseCallback):
    """Wall and CPU seconds of every stage, over interruptions: what each checkpoint cost.

    Comes after SaveCheckpoint in a list of callbacks. Work that a kill threw away is not counted.
    """

    def __init__(self, folder: RunFolder, every: int) -> None:
        super().__init__()
        self.path, self.every = folder.clock, every
        saved = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.adopted_from: str | None = saved.get("adopted_from")
        self.stages: dict[str, dict[str, float]] = saved.get("stage_seconds", {})
        if saved and "stage_seconds" not in saved:  # before stages were told apart
            self.stages["unknown"] = {"wall": saved["wall_seconds"], "cpu": saved["cpu_seconds"]}
        self.since = (time.monotonic(), time.process_time())

    @property
    def seconds(self) -> dict[str, Any]:
        """So far: the whole, and of each stage."""
        stages = {s: {k: round(v, 2) for k, v in kinds.items()} for s, kinds in self.stages.items()}
        adopted = {} if self.adopted_from is None else {"adopted_from": self.adopted_from}
        return {
            "wall_seconds": round(sum(kinds["wall"] for kinds in stages.values()), 2),
            "cpu_seconds": round(sum(kinds["cpu"] for kinds in stages.values()), 2),
            "stage_seconds": stages,
            **adopted,
        }

    def adopt(self, donor: Path, last_stage: str) -> None:
        """Begin with what the stages before the last cost the agent in that folder or file."""
        folder = RunFolder(donor)
        stages = Clock(folder, self.every).stages
        self.stages = {stage: kinds for stage, kinds in stages.items() if stage != last_stage}
        self.adopted_from = str(donor)
        if folder.config.exists():
            self.adopted_from = read_document(folder.config)["label"]
        self.write()

    def write(self) -> None:
        """Keep the time of the checkpoint that was just written."""
        write_json(self.path, self.seconds)

    def count(self, stage: str) -> None:
        """Add the time since the last call to that stage."""
        now = (time.monotonic(), time.process_time())
        kinds = self.stages.setdefault(stage, {"wall": 0.0, "cpu": 0.0})
        kinds["wall"] += now[0] - self.since[0]
        kinds["cpu"] += now[1] - self.since[1]
        self.since = now

    def _on_step(self) -> bool:
        self.count(self.model.stage)  # type: ignore[attr-defined]
        if self.n_calls % self.every == 0:
            self.write()
        return True

    def _on_training_end(self) -> None:
        self.count(self.model.stage)  # type: ignore[attr-defined]
        self.write()


class Run:
    """A run: its experiment and folder, its agent and dataset, and what it has cost.

    Making one loads the dataset and builds the agent. Raises ValueError where agent, dataset and
    environment do not fit.
    """

    def __init__(
        self,
        experiment: Experiment[Any],
        folder: RunFolder,
        label: str | None = None,
        allow_other_dataset: bool = False,
    ) -> None:
        self.experiment, self.folder = experiment, folder
        self.label = label or experiment.agent
        self.allow_other_dataset = allow_other_dataset
        self.results: Results = []
        self.tuning: GuidanceTuning | None = None
        if experiment.threads:
            torch.set_num_threads(experiment.threads)
        self.dataset = load_dataset(
            experiment.dataset_id, experiment.download, experiment.storage, experiment.progress_bar
        )
        self.agent = self.new_agent()

    def new_agent(self) -> OfflineAgent[Any]:
        """The agent before training, or with the stages that it adopts."""
        experiment, dataset = self.experiment, self.dataset
        agent = experiment.agent_class(
            experiment.config, seed=experiment.seed, device=experiment.device
        )
        spaces = dataset.observation_space, dataset.action_space
        agent.set_spaces(*spaces, dataset.id, dataset.adapter)
        if experiment.n_episodes:
            spec = experiment.env_id or dataset.env_spec
            if spec is None:
                raise ValueError(
                    f"dataset {dataset.id!r} names no environment: give one with --env-id, or skip "
                    "evaluation with --n-episodes 0"
                )
            env = make_env(spec)
            agent.set_spaces(env.observation_space, env.action_space, "the environment")
            env.close()
        if experiment.adopt is not None:
            print(adopt_from(experiment.adopt, agent, dataset), flush=True)
        return agent

    def finish(self, verbose: bool = False, wandb_project: str | None = None) -> Document:
        """Train, tune and evaluate from where the folder stands; returns its evaluation.json.

        The caller holds the folder's lock. Raises DocumentError for a checkpoint of other data, and
        what training and evaluation raise. Ctrl-C and SIGTERM leave a checkpoint and raise
        KeyboardInterrupt.
        """
        self.begin()
        about = describe(self.experiment, self.label, self.agent, self.dataset)
        about["args"] = as_json(self.experiment)
        if not self.folder.config.exists():
            write_json(self.folder.config, about, indent=2)
        tracked = None if wandb_project is None else track(wandb_project, self.folder, about)
        self.train(verbose)
        self.tune()
        document = self.evaluate()
        write_json(self.folder.evaluation, document)
        if tracked is not None:
            returns = {f"return/{scale_label(w)}": played.mean for w, played in self.results}
            tracked.summary.update(returns)
            tracked.finish()
        return document

    def begin(self) -> None:
        """Take the agent of the folder's checkpoint, if there is one, and what it has cost."""
        experiment, folder, dataset = self.experiment, self.folder, self.dataset
        print(
            f"{experiment.agent} ({experiment.preset}) on {dataset.id}: {len(dataset)} transitions "
            f"in {dataset.n_episodes} episodes, to {folder.path}"
        )
        if not folder.checkpoint.exists():
            print("starting from the beginning", flush=True)
            folder.clock.unlink(missing_ok=True)
            self.clock = Clock(folder, experiment.checkpoint_every)
            if experiment.adopt is not None:
                self.clock.adopt(experiment.adopt, self.agent.stages[-1])
                self.agent.save(folder.checkpoint)  # before the folder is one to be resumed
            return
        self.clock = Clock(folder, experiment.checkpoint_every)
        self.agent = type(self.agent).load(folder.checkpoint, device=experiment.device)
        fingerprint = self.agent.dataset_fingerprint
        if fingerprint not in (None, dataset.fingerprint) and not self.allow_other_dataset:
            raise DocumentError(
                f"{folder.checkpoint} learned from other data than {dataset.id!r} has now "
                f"({fingerprint}, not {dataset.fingerprint}): move that folder away, or go on with "
                "these data by --allow-other-dataset"
            )
        print(f"going on from timestep {self.agent.num_timesteps}", flush=True)

    def train(self, verbose: bool) -> None:
        """All stages that are left, with checkpoints and their cost."""
        experiment, folder, agent = self.experiment, self.folder, self.agent
        if agent.is_trained and agent.dataset_fingerprint == self.dataset.fingerprint:
            return
        agent.set_logger(folder.logger(verbose, agent.progress))
        try:
            agent.learn(
                self.dataset,
                [SaveCheckpoint(folder.checkpoint, experiment.checkpoint_every), self.clock],
                experiment.log_interval,
                reset_num_timesteps=False,
                progress_bar=experiment.progress_bar,
                allow_other_dataset=self.allow_other_dataset,
            )
        except KeyboardInterrupt:
            agent.save(folder.checkpoint)
            self.clock.count(agent.stage or "unknown")
            self.clock.write()
            raise KeyboardInterrupt(
                f"stopped in stage {agent.stage!r} at timestep {agent.num_timesteps}"
            ) from None
        finally:
            agent.logger.close()
        print(f"trained in {self.clock.seconds['wall_seconds']:.0f} s", flush=True)

    def tune(self) -> None:
        """Choose the guidance scale from the data, if asked for; the checkpoint keeps it."""
        agent = self.agent
        if self.experiment.tune_guidance and is_guided(agent):
            bar = self.experiment.progress_bar
            self.tuning = agent.tune_guidance(self.dataset, progress_bar=bar)
            print(self.tuning, flush=True)
            self.agent.save(self.folder.checkpoint)

    def evaluate(self) -> Document:
        """Play at every scale that was asked for; returns what evaluation.json says."""
        experiment, agent, dataset = self.experiment, self.agent, self.dataset
        chosen = agent.guidance_scale if is_guided(agent) else None
        scales = experiment.guidance_scales or ((0.0, chosen) if chosen else (chosen,))
        if self.tuning is not None and self.tuning.best not in scales:
            scales = (*scales, self.tuning.best)
        began = time.monotonic()
        if experiment.n_episodes:
            self.results = list(
                evaluate_scales(
                    agent,
                    experiment.env_id or dataset,
                    experiment.n_episodes,
                    scales,
                    seed=10_000 + experiment.seed,
                    deterministic=experiment.deterministic,
                    warn_of_cuts=False,  # the table says how many
                    progress_bar=experiment.progress_bar,
                )
            )
        return {
            **describe(experiment, self.label, self.agent, dataset),
            "training": {"timesteps": self.agent.num_timesteps, **self.clock.seconds},
            "evaluation_seconds": round(time.monotonic() - began, 2),
            "evaluations": evaluations_to_json(self.results),
            **({} if self.tuning is None else {"guidance_tuning": self.tuning.as_dict()}),
        }


def track(project: str, folder: RunFolder, config: Document) -> Any:
    """A new run on Weights & Biases, which takes the metrics that TensorBoard gets."""
    import wandb

    path = folder.path
    return wandb.init(
        project=project, name=path.name, dir=str(path), config=config, sync_tensorboard=True
    )
