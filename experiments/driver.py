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

from qgpo.agents import OfflineAgent
from qgpo.agents.core.callbacks import EveryStep, SaveCheckpoint
from qgpo.agents.guided import GuidanceTuning, is_guided
from qgpo.agents.registry import adopt_from, agent_class
from qgpo.envs import load_dataset
from qgpo.envs.play.evaluation import evaluate_scales, scale_label
from qgpo.envs.tasks.making import make_env, to_play
from qgpo.experiments import documents
from qgpo.experiments.documents import Document, DocumentError, Evaluations
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.settings import Experiment, as_json


class Clock(EveryStep):
    """Wall and CPU seconds of every stage, over interruptions: what each checkpoint cost.

    Comes after SaveCheckpoint in a list of callbacks. Work that a kill threw away is not counted.
    """

    def __init__(self, folder: RunFolder, agent: OfflineAgent[Any], every: int) -> None:
        super().__init__()
        self.path, self.agent, self.every = folder.clock, agent, every
        self.saved: dict[str, Any] = {"stage_seconds": {}}
        if self.path.exists():
            self.saved = json.loads(self.path.read_bytes())
        elif agent.num_timesteps:  # trained before runs had a clock
            self.saved["counted_from_timestep"] = agent.num_timesteps
        if "stage_seconds" not in self.saved:  # before stages were told apart
            whole = {"wall": self.saved["wall_seconds"], "cpu": self.saved["cpu_seconds"]}
            self.saved["stage_seconds"] = {"unknown": whole}
        self.since = _now()

    @property
    def seconds(self) -> dict[str, Any]:
        """So far: the whole, and of each stage."""
        stages = {
            stage: {kind: round(value, 2) for kind, value in kinds.items()}
            for stage, kinds in self.saved["stage_seconds"].items()
        }
        whole = {
            f"{kind}_seconds": round(sum(kinds[kind] for kinds in stages.values()), 2)
            for kind in ("wall", "cpu")
        }
        return {**self.saved, **whole, "stage_seconds": stages}

    def adopt(self, donor: Path) -> None:
        """Begin with what the stages before the last cost the agent in that folder or file."""
        folder = RunFolder(donor)
        self.saved = {**Clock(folder, self.agent, self.every).saved, "adopted_from": str(donor)}
        self.saved["stage_seconds"].pop(self.agent.stages[-1], None)
        if folder.config.exists():
            self.saved["adopted_from"] = documents.read(folder.config)["label"]

    def count(self) -> None:
        """Add the time since the last call to the stage that is being trained."""
        now = _now()
        stage = self.agent.stage or "unknown"
        kinds = self.saved["stage_seconds"].setdefault(stage, {"wall": 0.0, "cpu": 0.0})
        for kind, value in now.items():
            kinds[kind] += value - self.since[kind]
        self.since = now

    def write(self) -> None:
        """Keep the time of the checkpoint that was just written."""
        documents.write(self.path, self.seconds)

    def after_step(self, n: int) -> None:
        """Count, and write where SaveCheckpoint has saved."""
        self.count()
        if n % self.every == 0:
            self.write()

    def _on_training_end(self) -> None:
        self.count()
        self.write()


def _now() -> dict[str, float]:
    return {"wall": time.monotonic(), "cpu": time.process_time()}


class Run:
    """A run: its experiment and folder, its agent and dataset, and what it has cost.

    Making one loads the dataset and builds the agent. Raises ValueError where agent, dataset and
    environment do not fit.
    """

    def __init__(
        self, experiment: Experiment[Any], folder: RunFolder, allow_other_dataset: bool = False
    ) -> None:
        self.experiment, self.folder = experiment, folder
        self.allow_other_dataset = allow_other_dataset
        self.evaluations: Evaluations = []
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
        make = agent_class(experiment.agent)
        agent = make(experiment.config, seed=experiment.seed, device=experiment.device)
        spaces = dataset.observation_space, dataset.action_space
        agent.set_spaces(*spaces, dataset.id, dataset.adapter)
        if experiment.n_episodes:
            spec, _ = to_play(experiment.env_id, dataset.env_spec, dataset.reference)
            if spec is None:
                raise ValueError(
                    f"dataset {dataset.id!r} names no environment: give one with --env-id, or skip "
                    "evaluation with --n-episodes 0"
                )
            with make_env(spec) as env:
                agent.set_spaces(env.observation_space, env.action_space, "the environment")
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
        described = documents.describe(self.experiment, self.agent, self.dataset)
        started = {**described, "args": as_json(self.experiment)}
        if not self.folder.config.exists():
            documents.write(self.folder.config, started)
        tracked = None if wandb_project is None else self.track(wandb_project, started)
        self.train(verbose)
        self.tune()
        document = self.evaluate()
        if tracked is not None:
            tracked.summary.update(
                {f"return/{scale_label(w)}": e.mean for w, e in self.evaluations}
            )
            tracked.finish()
        return document

    def begin(self) -> None:
        """Take the agent of the folder's checkpoint, if there is one, and what it has cost."""
        experiment, folder, dataset = self.experiment, self.folder, self.dataset
        print(
            f"{experiment.agent} ({experiment.preset}) on {dataset.id}: {len(dataset)} transitions "
            f"in {dataset.n_episodes} episodes, to {folder.path}",
            flush=True,
        )
        if not folder.checkpoint.exists():
            if folder.config.exists():
                print("no checkpoint was written yet: starting from the beginning", flush=True)
            folder.clock.unlink(missing_ok=True)
            self.clock = Clock(folder, self.agent, experiment.checkpoint_every)
            if experiment.adopt is not None:
                self.clock.adopt(experiment.adopt)
                self.agent.save(folder.checkpoint)  # before the folder is one to be resumed
                self.clock.write()
            return
        self.agent = type(self.agent).load(folder.checkpoint, device=experiment.device)
        self.clock = Clock(folder, self.agent, experiment.checkpoint_every)
        learned_from = self.agent.dataset_fingerprint
        if learned_from not in (None, dataset.fingerprint) and not self.allow_other_dataset:
            raise DocumentError(
                f"{folder.checkpoint} learned from other data than {dataset.id!r} has now "
                f"({learned_from}, not {dataset.fingerprint}): move that folder away, or go on "
                "with these data by --allow-other-dataset"
            )
        print(f"going on from timestep {self.agent.num_timesteps}", flush=True)

    def track(self, project: str, config: Document) -> Any:
        """A new run on Weights & Biases, which takes the metrics that TensorBoard gets."""
        import wandb

        path = self.folder.path
        return wandb.init(
            project=project, name=path.name, dir=str(path), config=config, sync_tensorboard=True
        )

    def train(self, verbose: bool) -> None:
        """All stages that are left, with checkpoints and their cost."""
        experiment, folder, agent = self.experiment, self.folder, self.agent
        if agent.is_trained and agent.dataset_fingerprint == self.dataset.fingerprint:
            return
        agent.set_logger(folder.logger(verbose, agent.progress))
        self.clock.since = _now()
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
            self.clock.on_training_end()
            at = f"in stage {agent.stage!r} at timestep {agent.num_timesteps}"
            raise KeyboardInterrupt(f"stopped {at}") from None
        finally:
            agent.logger.close()
        print(f"trained in {self.clock.seconds['wall_seconds']:.0f} s", flush=True)

    def tune(self) -> None:
        """Choose the guidance scale from the data, if asked for; the checkpoint keeps it."""
        agent, bar = self.agent, self.experiment.progress_bar
        if self.experiment.tune_guidance and is_guided(agent):
            self.tuning = agent.tune_guidance(self.dataset, progress_bar=bar)
            print(self.tuning, flush=True)
            self.agent.save(self.folder.checkpoint)

    def evaluate(self) -> Document:
        """Play at every scale that was asked for, and write evaluation.json."""
        experiment, agent, began = self.experiment, self.agent, time.monotonic()
        chosen = agent.guidance_scale if is_guided(agent) else None
        scales = experiment.guidance_scales or ((0.0, chosen) if chosen else (chosen,))
        if self.tuning is not None and self.tuning.best not in scales:
            scales = (*scales, self.tuning.best)
        dataset = self.dataset
        env, reference = to_play(experiment.env_id, dataset.env_spec, dataset.reference)
        played = evaluate_scales(
            agent,
            dataset if env is None else env,
            experiment.n_episodes,
            scales,
            seed=10_000 + experiment.seed,
            deterministic=experiment.deterministic,
            reference=reference,
            warn_of_cuts=False,  # the table says how many
            progress_bar=experiment.progress_bar,
        )
        self.evaluations = list(played) if experiment.n_episodes else []
        tuning = {} if self.tuning is None else {"guidance_tuning": self.tuning.as_dict()}
        document = {
            **documents.describe(experiment, agent, self.dataset),
            "training": {"timesteps": agent.num_timesteps, **self.clock.seconds},
            "evaluation_seconds": round(time.monotonic() - began, 2),
            "evaluations": documents.evaluations_to_json(self.evaluations),
            **tuning,
        }
        documents.write(self.folder.evaluation, document)
        return documents.read(self.folder.evaluation)
