"""One experiment in its run folder: train, tune, evaluate, write.

    run = Run(experiment, folder)
    with folder.locked():
        document = run.finish()

A run continues from the folder's checkpoint where there is one. Whatever stopped it, running it
again ends with the same agent and the same document. Scores are printed before they are written,
and written even where they cannot be printed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from qgpo.agents import OfflineAgent
from qgpo.agents.core.callbacks import EveryStep, SaveCheckpoint
from qgpo.agents.core.checkpoint import CheckpointWriteError
from qgpo.agents.core.config import longer
from qgpo.agents.core.speed import measure_speed
from qgpo.agents.core.training import on_signals, until_done
from qgpo.agents.guided import (
    GuidanceOffWarning,
    GuidanceTuning,
    GuidedPolicy,
    Rehearsal,
    Verdict,
    is_guided,
)
from qgpo.agents.registry import adopt_from, agent_class
from qgpo.envs import load_dataset
from qgpo.envs.play.evaluation import FIRST_SEED, evaluate_scales
from qgpo.envs.play.scores import scale_label, score_table, summarize
from qgpo.envs.tasks.making import to_play
from qgpo.envs.text import counted
from qgpo.experiments import documents
from qgpo.experiments.documents import Document, DocumentError, Evaluations
from qgpo.experiments.folder import RunFolder, events_in_one_line
from qgpo.experiments.keeping import play_and_keep, show_and_write
from qgpo.experiments.preflight import check_environment, check_files, check_same_agent
from qgpo.experiments.settings import Experiment, as_json
from qgpo.experiments.threads import advice
from qgpo.files import check_writable


class Clock(EveryStep):
    """Wall and CPU seconds of every stage, over interruptions: what each checkpoint cost.

    Comes after SaveCheckpoint in a list of callbacks. Work that a kill threw away is not counted.
    """

    def __init__(self, folder: RunFolder, agent: OfflineAgent[Any], every: int) -> None:
        super().__init__()
        self.folder, self.path, self.agent, self.every = folder, folder.clock, agent, every
        self.saved: dict[str, Any] = {"stage_seconds": {}}
        if self.path.exists():
            self.saved = _read_clock(self.path)
        elif agent.num_timesteps:  # trained before runs had a clock
            self.saved["counted_from_timestep"] = agent.num_timesteps
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
        """Begin with what the adopted stages cost the agent in that folder or file."""
        folder = RunFolder(donor)
        self.saved = {**Clock(folder, self.agent, self.every).saved, "adopted_from": str(donor)}
        seconds = self.saved["stage_seconds"]
        adopted = {stage: n for stage, n in seconds.items() if self.agent.progress.get(stage)}
        self.saved["stage_seconds"] = adopted
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
        self.folder.check_held()
        documents.write(self.path, self.seconds)

    def after_step(self, n: int) -> None:
        """Count, and write where SaveCheckpoint has saved."""
        self.count()
        if n % self.every == 0:
            self.write()

    def _on_training_end(self) -> None:
        self.count()
        self.write()


class StillHeld(EveryStep):
    """Ends a training whose folder is no longer its own. Comes before SaveCheckpoint."""

    def __init__(self, folder: RunFolder, every: int) -> None:
        super().__init__()
        self.folder, self.every = folder, every

    def after_step(self, n: int) -> None:
        """Look where SaveCheckpoint saves."""
        if n % self.every == 0:
            self.folder.check_held()

    def _on_training_end(self) -> None:
        self.folder.check_held()


def _read_clock(path: Path) -> dict[str, Any]:
    """What a checkpoint has cost. Raises DocumentError where the file says something else."""
    saved: dict[str, Any] = documents.read_json(path)
    try:
        if "stage_seconds" not in saved:  # before stages were told apart
            whole = {"wall": saved["wall_seconds"], "cpu": saved["cpu_seconds"]}
            saved["stage_seconds"] = {"unknown": whole}
        for kinds in saved["stage_seconds"].values():
            kinds["wall"] + kinds["cpu"] + 0.0
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise DocumentError(f"{path} cannot be read ({error!r}): move it away") from error
    return saved


def say(line: str) -> None:
    """Print it, where that is possible: training does not depend on it."""
    with contextlib.suppress(OSError, ValueError):
        print(line, flush=True)


def _now() -> dict[str, float]:
    return {"wall": time.monotonic(), "cpu": time.process_time()}


class Run:
    """A run: its experiment and folder, its agent and dataset, and what it has cost.

    Making one loads the dataset and builds the agent. With `minutes`, which is for new runs, the
    experiment becomes `longer` first, so that training takes about so long on this machine. Raises
    ValueError where agent, dataset and environment do not fit, or minutes are too few.
    """

    def __init__(
        self,
        experiment: Experiment[Any],
        folder: RunFolder,
        allow_other_dataset: bool = False,
        minutes: float | None = None,
    ) -> None:
        self.experiment, self.folder = experiment, folder
        self.allow_other_dataset = allow_other_dataset
        self.evaluations: Evaluations = []
        self.tuning: GuidanceTuning | None = None
        self.begun = False
        """whether the folder holds this run, to be resumed"""
        if experiment.threads:
            torch.set_num_threads(experiment.threads)
        self.dataset = load_dataset(
            experiment.dataset_id,
            experiment.download,
            experiment.storage,
            experiment.progress_bar,
            history=experiment.history,
            chunk=experiment.chunk,
        )
        self.agent = self.new_agent()
        if minutes is not None:
            self.experiment = self.within(minutes)
            self.agent = self.new_agent()

    def within(self, minutes: float) -> Experiment[Any]:
        """The experiment with as many times its steps as are trained in so many minutes, here."""
        experiment = self.experiment
        make, config = agent_class(experiment.agent), experiment.config
        speed = measure_speed(make, config, self.dataset, experiment.device)
        factor = speed.factor(minutes)
        without = "".join(f", without {stage}" for stage in speed.without(factor))
        print(
            f"{minutes:g} minutes: {factor:g} times the preset's steps{without} ({speed})",
            flush=True,
        )
        return dataclasses.replace(experiment, longer=factor, config=longer(config, factor))

    def new_agent(self) -> OfflineAgent[Any]:
        """The agent before training, or with the stages that it adopts."""
        experiment, dataset = self.experiment, self.dataset
        make = agent_class(experiment.agent)
        agent = make(experiment.config, seed=experiment.seed, device=experiment.device)
        spaces = dataset.observation_space, dataset.action_space
        agent.set_spaces(*spaces, dataset.id, dataset.adapter, dataset.window)
        if experiment.n_episodes:
            spec, _ = to_play(experiment.env_id, dataset.env_spec, dataset.reference)
            if spec is None:
                raise ValueError(
                    f"dataset {dataset.id!r} names no environment: give one with --env-id, or skip "
                    "evaluation with --n-episodes 0"
                )
            check_environment(spec, agent, FIRST_SEED + experiment.seed)
        if experiment.adopt is not None:
            print(adopt_from(experiment.adopt, agent, dataset), flush=True)
        return agent

    def finish(
        self, verbose: bool = False, wandb_project: str | None = None, overwrite: bool = False
    ) -> Document:
        """Train, tune and evaluate from where the folder stands; returns its evaluation.json.

        The caller holds the folder's lock; where the folder is removed meanwhile, RunFolderError is
        raised and nothing is written to the one that is there then. `overwrite` deletes the former
        run there, when nothing is left that would refuse this one. An evaluation that was written
        before is returned as it is; another one is written beside it. Raises DocumentError for a
        checkpoint of other data or another training, and what training and evaluation raise.
        Signals that ask to stop leave a checkpoint, or the scores so far, and raise
        KeyboardInterrupt.
        """
        with on_signals(signal.default_int_handler):
            return self._finish(verbose, wandb_project, overwrite)

    def _finish(self, verbose: bool, wandb_project: str | None, overwrite: bool) -> Document:
        folder = self.folder
        overwrite = overwrite and folder.config.exists()
        if overwrite or not folder.checkpoint.exists():
            self.agent.prepare(self.dataset)
            check_files(self.agent, folder)
        check_writable(folder.checkpoint)
        described = documents.describe(self.experiment, self.agent, self.dataset)
        started = {**described, "args": as_json(self.experiment)}
        tracked = None if wandb_project is None else self.track(wandb_project, started)
        if overwrite and (kept := folder.clear()):
            print(f"kept in {folder.path}, because it was not written by a run: {', '.join(kept)}")
        self.begin(started)
        former = documents.read_results(folder)
        self.train(verbose)
        document = next((d for d in former if self.is_result(d)), None)
        if document is None:
            self.tune()
            document = self.evaluate()
        else:
            self.evaluations = documents.evaluations_from_json(document["evaluations"])
            self.show("it is finished, and this is its evaluation:")
        if tracked is not None:
            for w, e in self.evaluations:
                tracked.summary[f"return/{scale_label(w)}"] = e.mean
                if e.success is not None:
                    tracked.summary[f"success/{scale_label(w)}"] = e.success
            tracked.finish()
        return document

    def begin(self, started: Document) -> None:
        """Take the agent of the folder's checkpoint, if there is one, and what it has cost.

        `started` is the config.json of a new run. It is written before anything else: without it
        a checkpoint is nobody's.
        """
        experiment, folder, dataset = self.experiment, self.folder, self.dataset
        print(
            f"{experiment.agent} ({experiment.preset}) on {dataset.id}: {len(dataset)} transitions "
            f"in {counted(len(dataset.first_readings), 'episode')}, to {folder.path}",
            flush=True,
        )
        if folder.checkpoint.exists():
            self.go_on()
        elif folder.config.exists():
            print("no checkpoint was written yet: starting from the beginning", flush=True)
            begun_with = documents.read(folder.config).get("dataset", {}).get("fingerprint")
            self.check_same_data(folder.config, begun_with)
        folder.check_held()
        of_other_data = self.allow_other_dataset and not folder.checkpoint.exists()
        if of_other_data or not folder.config.exists():
            documents.write(folder.config, started)
        self.begun = True
        if not folder.checkpoint.exists():
            folder.clock.unlink(missing_ok=True)
            self.clock = Clock(folder, self.agent, experiment.checkpoint_every)
            if experiment.adopt is not None:
                self.clock.adopt(experiment.adopt)
                self.save()
                self.clock.write()
        if note := advice(experiment.threads):
            print(note, flush=True)

    def go_on(self) -> None:
        """Take the agent of the folder's checkpoint. Raises DocumentError for another one."""
        experiment, folder = self.experiment, self.folder
        self.agent = type(self.agent).load(folder.checkpoint, device=experiment.device)
        check_same_agent(experiment, self.agent, folder)
        self.clock = Clock(folder, self.agent, experiment.checkpoint_every)
        self.check_same_data(folder.checkpoint, self.agent.dataset_fingerprint)
        print(f"continuing from timestep {self.agent.num_timesteps}", flush=True)

    def check_same_data(self, source: Path, fingerprint: str | None) -> None:
        """Raise DocumentError where that training was of other data, unless this is allowed."""
        now = self.dataset
        if fingerprint not in (None, now.fingerprint) and not self.allow_other_dataset:
            raise DocumentError(
                f"{source} was trained on other data than the present {now.id!r} ({fingerprint}, "
                f"not {now.fingerprint}): move that folder away, or continue with the present "
                "data with --allow-other-dataset"
            )

    def is_result(self, document: Document) -> bool:
        """Whether the document is the evaluation of this agent that is asked for."""
        training = document.get("training") or {}
        return (
            document["measured"] == self.experiment.measured
            and document["dataset"].get("fingerprint") == self.dataset.fingerprint
            and training.get("timesteps") == self.agent.num_timesteps
        )

    def track(self, project: str, config: Document) -> Any:
        """A new run on Weights & Biases, which takes the metrics that TensorBoard gets.

        Raises ValueError where it cannot begin: without a key, for example.
        """
        import wandb

        path = self.folder.path
        try:
            return wandb.init(
                project=project, name=path.name, dir=str(path), config=config, sync_tensorboard=True
            )
        except (wandb.Error, ImportError, OSError) as error:
            raise ValueError(
                f"--track: Weights & Biases cannot start ({error}); log in with `wandb login`, "
                "set WANDB_MODE=offline, or remove --track"
            ) from error

    def train(self, verbose: bool) -> None:
        """All stages that are left, with checkpoints and their cost.

        What asks to stop while the last checkpoint is written stops when it is there.
        """
        folder, agent = self.folder, self.agent
        if agent.is_trained and agent.dataset_fingerprint == self.dataset.fingerprint:
            return
        with events_in_one_line():
            agent.set_logger(folder.logger(verbose, agent.progress))
            self.clock.since = _now()
            try:
                with on_signals(agent.training.interrupt):
                    self._learn()
            finally:
                self._close_logger()
        if agent.training.interrupted:  # after the last step
            raise KeyboardInterrupt("stopped after the training")
        print(f"trained in {self.clock.seconds['wall_seconds']:.0f} s", flush=True)
        if self.verdict is not None:
            print(f"guidance: {self.verdict}", flush=True)

    def _close_logger(self) -> None:
        """Write what was logged last; training does not depend on it."""
        try:
            self.agent.logger.close()
        except OSError as error:
            print(f"metrics in {self.folder.path} are not complete: {error}", file=sys.stderr)

    def _learn(self) -> None:
        """Learn; what ends it between two steps leaves a checkpoint."""
        experiment, folder, agent = self.experiment, self.folder, self.agent
        at = "in stage {0.stage!r} at timestep {0.num_timesteps}"
        every = experiment.checkpoint_every
        saving = SaveCheckpoint(folder.checkpoint, every)
        agent.training.tell = say
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", GuidanceOffWarning)  # the verdict is printed
                agent.learn(
                    self.dataset,
                    [StillHeld(folder, every), saving, self.clock],
                    experiment.log_interval,
                    reset_num_timesteps=False,
                    progress_bar=experiment.progress_bar,
                    allow_other_dataset=self.allow_other_dataset,
                )
        except KeyboardInterrupt:
            self.save()
            self.clock.on_training_end()
            raise KeyboardInterrupt(f"stopped {at.format(agent)}") from None
        except CheckpointWriteError:
            raise
        except OSError as error:  # of the metrics or the events, on a full disk for example
            self.save()
            self.clock.on_training_end()
            raise OSError(
                f"metrics in {folder.path} could not be written ({error}): stopped "
                f"{at.format(agent)}, with a checkpoint"
            ) from error

    def save(self) -> None:
        """Write the checkpoint, where the folder is still ours."""
        self.folder.check_held()
        self.agent.save(self.folder.checkpoint)

    @property
    def verdict(self) -> Verdict | Rehearsal | None:
        """Whether guidance can be trusted on these data, where critic or rehearsal know."""
        agent = self.agent
        return agent.verdict or agent.rehearsal if isinstance(agent, GuidedPolicy) else None

    def tune(self) -> None:
        """Choose the guidance scale from the data, if asked for; the checkpoint keeps it."""
        agent, bar = self.agent, self.experiment.progress_bar
        if self.experiment.tune_guidance and is_guided(agent):
            self.tuning = agent.tune_guidance(self.dataset, progress_bar=bar)
            with until_done():
                show_and_write(lambda: print(self.tuning, flush=True), self.save)

    @property
    def scales(self) -> tuple[float | None, ...]:
        """What is evaluated: what was asked for, else 0 and the configured scale; the tuned one."""
        configured = self.experiment.headline_scale
        scales = self.experiment.guidance_scales or (
            (configured,) if configured is None else (0.0, configured)
        )
        tuned = () if self.tuning is None else (self.tuning.best,)
        return tuple(dict.fromkeys((*scales, *tuned)))

    def evaluate(self) -> Document:
        """Play at every scale that was asked for, show the scores, and write evaluation.json.

        Where that exists, another one is written beside it. What an evaluation played that did not
        come to its end is shown and written, too.
        """
        experiment, dataset, began = self.experiment, self.dataset, time.monotonic()
        env, reference = to_play(experiment.env_id, dataset.env_spec, dataset.reference)
        played = evaluate_scales(
            self.agent,
            dataset if env is None else env,
            experiment.n_episodes,
            self.scales,
            seed=FIRST_SEED + experiment.seed,
            deterministic=experiment.deterministic,
            reference=reference,
            warn_of_cuts=False,  # the table says how many
            progress_bar=experiment.progress_bar,
        )
        keep = functools.partial(self.keep, began)
        return play_and_keep(played if experiment.n_episodes else (), self.scales, keep)

    def keep(self, began: float, evaluations: Evaluations, ended: Document) -> Document:
        """Show and write what was played since `began`; returns the document."""
        self.evaluations = evaluations
        seconds = time.monotonic() - began
        note = "the evaluation was not completed; results so far:" if ended else ""
        return show_and_write(lambda: self.show(note), lambda: self.write(seconds, ended))

    def write(self, seconds: float, ended: Document) -> Document:
        """Write what was played; returns it. Only an evaluation without scores is replaced."""
        folder = self.folder
        path = folder.unfinished if ended else folder.evaluation
        tuning = {} if self.tuning is None else {"guidance_tuning": self.tuning.as_dict()}
        document = {
            **documents.describe(self.experiment, self.agent, self.dataset),
            "training": {"timesteps": self.agent.num_timesteps, **self.clock.seconds},
            "evaluation_seconds": round(seconds, 2),
            "evaluations": documents.evaluations_to_json(self.evaluations),
            **tuning,
            **({} if self.verdict is None else {"verdict": self.verdict.as_dict()}),
            **ended,
        }
        folder.check_held()
        try:
            if ended or not documents.has_scores(path):
                documents.write(path, document)
            else:
                path = documents.write_new(path, document)
            if not ended:
                folder.unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise OSError(
                f"{path} could not be written ({error}): the scores are printed above; free "
                "some space, and resume the run to evaluate it again"
            ) from error
        if path not in (folder.unfinished, folder.evaluation):
            print(f"{folder.evaluation} is unchanged; the new evaluation is in {path}", flush=True)
        return documents.read(path)

    def show(self, note: str = "") -> None:
        """Print the scores, below those of the data, which have none where success counts."""
        dataset = self.dataset
        if note:
            print(note)
        if self.evaluations:
            rows = [(scale_label(scale), evaluation) for scale, evaluation in self.evaluations]
            if all(evaluation.successes is None for _, evaluation in rows):
                returns = dataset.recorded_returns.tolist()
                rows.insert(
                    0, ("data", summarize(dataset.id, returns, [], [], 0, dataset.reference))
                )
            print(score_table(rows), flush=True)
