"""Run one cell of a benchmark in its run folder: train, evaluate, one JSON of raw results.

Whatever stopped a cell, running it again goes on from its last checkpoint; a finished cell is
only read. `python -m qgpo.experiments.cells` is what a local worker process runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.callbacks import SaveCheckpoint
from qgpo.agents.core.provenance import processor, versions
from qgpo.agents.registry import adopt_from
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.play.evaluation import evaluate_scales
from qgpo.envs.store.loading import load_dataset
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.plan import Cell

FORMAT_VERSION = 1
RESULT = "cell.json"
LOG = "log.txt"
POLL_SECONDS = 2.0
"""between two looks at a cell that another one waits for"""
STOPPED = 130
"""exit code of a worker that was asked to stop"""


class CellError(ValueError):
    """A run folder or a result that belongs to another experiment than the cell."""


class Clock(BaseCallback):
    """Wall and CPU seconds of every stage, over interruptions: what each checkpoint cost.

    Comes after SaveCheckpoint in a list of callbacks. Work that a kill threw away is not in it.
    """

    def __init__(self, path: Path, every: int) -> None:
        super().__init__()
        self.path, self.every = path, every
        saved: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self.adopted_from: str | None = saved.get("adopted_from")
        self.stages: dict[str, tuple[float, float]] = {
            stage: (seconds["wall"], seconds["cpu"])
            for stage, seconds in saved.get("stage_seconds", {}).items()
        }
        if saved and "stage_seconds" not in saved:  # before stages were told apart
            self.stages["unknown"] = (saved["wall_seconds"], saved["cpu_seconds"])
        self.since = (time.monotonic(), time.process_time())

    @property
    def seconds(self) -> dict[str, Any]:
        """So far: the whole, and of each stage."""
        rounded = {s: (round(wall, 2), round(cpu, 2)) for s, (wall, cpu) in self.stages.items()}
        adopted = {} if self.adopted_from is None else {"adopted_from": self.adopted_from}
        return {
            "wall_seconds": round(sum(wall for wall, _ in rounded.values()), 2),
            "cpu_seconds": round(sum(cpu for _, cpu in rounded.values()), 2),
            "stage_seconds": {s: {"wall": w, "cpu": c} for s, (w, c) in rounded.items()},
            **adopted,
        }

    def adopt(self, label: str, training: dict[str, Any], last_stage: str) -> None:
        """Begin with what the stages before the last cost the agent of that label."""
        stages = {s: v for s, v in training["stage_seconds"].items() if s != last_stage}
        self.stages = {s: (v["wall"], v["cpu"]) for s, v in stages.items()}
        self.adopted_from = label
        self.write()

    def write(self) -> None:
        """Keep the time of the checkpoint that was just written."""
        RunFolder(self.path.parent).write_json(self.path, self.seconds)

    def count(self, stage: str) -> None:
        """Put the time since the last call on that stage's account."""
        now = (time.monotonic(), time.process_time())
        wall, cpu = self.stages.get(stage, (0.0, 0.0))
        self.stages[stage] = (wall + now[0] - self.since[0], cpu + now[1] - self.since[1])
        self.since = now

    def _on_step(self) -> bool:
        self.count(self.model.stage)  # type: ignore[attr-defined]
        if self.n_calls % self.every == 0:
            self.write()
        return True

    def _on_training_end(self) -> None:
        self.count(self.model.stage)  # type: ignore[attr-defined]
        self.write()


def read_result(path: Path) -> dict[str, Any] | None:
    """A finished cell's JSON, or None. Raises CellError where the file cannot be read."""
    if not path.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        if result["format_version"] > FORMAT_VERSION:
            raise CellError(
                f"{path} has format {result['format_version']}, newer than {FORMAT_VERSION}: "
                "update qgpo to read it"
            )
        return result
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CellError(f"{path} is no cell's result ({error!r}): move it away") from error


def read_config(folder: RunFolder) -> dict[str, Any]:
    """What a cell's run folder is measuring. Raises CellError where it holds something else."""
    try:
        measured: dict[str, Any] = json.loads(folder.config.read_text())["measured"]
        return measured
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CellError(
            f"{folder.config} is not of a benchmark ({error!r}): move that folder away"
        ) from error


def check_same_training(cell: Cell, former: dict[str, Any], path: Path) -> None:
    """Raise CellError where `path` holds another training than the cell's."""
    wanted, former = cell.training, cell.completed(former)
    for name, value in {**wanted, **wanted["config"]}.items():
        found = former.get(name, former["config"].get(name))
        if name != "config" and found != value:
            raise CellError(
                f"{path} was made with {name} = {found!r}, the plan has {value!r}: give the "
                "agent another label, or move that file away"
            )
    surplus = sorted(set(former["config"]) - set(wanted["config"]))
    if surplus:
        raise CellError(f"{path} has a setting {surplus[0]!r} that is unknown now: move it away")


def run_cell(cell: Cell, root: Path) -> dict[str, Any]:
    """Train and evaluate in `root/cell.name`, or go on there; returns what its JSON says.

    Raises CellError for a folder of another training, RunFolderError for one in use, and
    whatever loading, training and evaluation raise. Ctrl-C and SIGTERM leave a checkpoint and
    raise KeyboardInterrupt.
    """
    folder = RunFolder(root / cell.name)
    with folder.locked():
        result = read_result(folder.path / RESULT)
        if result is not None and cell.completed(result["measured"]) == cell.measured:
            return result
        if folder.config.exists():
            check_same_training(cell, read_config(folder), folder.config)
        donated = None
        if cell.donor is not None and not folder.checkpoint.exists():
            donated = wait_for_donor(cell, root)
        torch.set_num_threads(1)
        with _one_at_a_time(root, cell.dataset):
            dataset = load_dataset(cell.dataset, storage=cell.storage, progress_bar=False)
        agent, seconds = _train(cell, folder, dataset, donated)
        began = time.monotonic()
        evaluations = []
        for scale, evaluation in evaluate_scales(
            agent,
            cell.env_id or dataset,
            cell.n_episodes,
            cell.guidance_scales or (None,),
            seed=10_000 + cell.seed,
            deterministic=cell.deterministic,
        ):
            print(f"{cell.name}: scale {scale}: {evaluation}", flush=True)
            evaluations.append((scale, evaluation))
        result = {
            **_about(cell, agent, dataset),
            "training": {"timesteps": agent.num_timesteps, **seconds},
            "evaluation_seconds": round(time.monotonic() - began, 2),
            "evaluations": [
                {"guidance_scale": scale, **dataclasses.asdict(e)} for scale, e in evaluations
            ],
        }
        folder.write_json(folder.path / RESULT, result, indent=None)
        return read_result(folder.path / RESULT) or result


def wait_for_donor(cell: Cell, root: Path) -> dict[str, Any] | None:
    """The result of the cell that this one adopts from, once it is there.

    Waits while a process trains it; None where none does and it is not finished, because it
    failed or its run folder is gone. Training from scratch gives the same agent.
    """
    assert cell.donor is not None
    folder = RunFolder(root / cell.donor)
    told = False
    while (result := read_result(folder.path / RESULT)) is None:
        if not folder.is_locked and not (folder.path / RESULT).exists():
            print(
                f"{cell.name}: {cell.donor} is neither finished nor running in {folder.path}, so "
                "all stages are trained here",
                flush=True,
            )
            return None
        if not told:
            print(f"{cell.name}: waiting for {cell.donor}", flush=True)
            told = True
        time.sleep(POLL_SECONDS)
    return result


def _adopt(
    cell: Cell,
    agent: OfflineAgent[Any],
    folder: RunFolder,
    dataset: OfflineDataset,
    donated: dict[str, Any],
) -> None:
    """Take over the stages before the last and what they cost."""
    assert cell.adopt is not None
    assert cell.donor is not None
    print(f"{cell.name}: {adopt_from(folder.path.parent / cell.donor, agent, dataset)}", flush=True)
    clock = Clock(folder.path / "clock.json", cell.checkpoint_every)
    clock.adopt(cell.adopt, donated["training"], agent.stages[-1])


def _train(
    cell: Cell, folder: RunFolder, dataset: OfflineDataset, donated: dict[str, Any] | None
) -> tuple[OfflineAgent[Any], dict[str, Any]]:
    """The trained agent, and the seconds it took over all sessions."""
    path = folder.path / "clock.json"
    if folder.checkpoint.exists():
        agent = cell.agent_class.load(folder.checkpoint, device=cell.device)
        if agent.dataset_fingerprint not in (None, dataset.fingerprint):
            raise CellError(
                f"{folder.checkpoint} learned from other data than {cell.dataset!r} has now "
                f"({agent.dataset_fingerprint}, not {dataset.fingerprint}): move that folder away"
            )
        print(f"{cell.name}: going on from timestep {agent.num_timesteps}", flush=True)
    else:
        agent = cell.agent_class(cell.config, seed=cell.seed, device=cell.device)
        print(f"{cell.name}: starting", flush=True)
        path.unlink(missing_ok=True)
        if donated is not None:
            _adopt(cell, agent, folder, dataset, donated)
    about = {"args": dataclasses.asdict(cell), **_about(cell, agent, dataset)}
    folder.write_json(folder.config, about)
    clock = Clock(path, cell.checkpoint_every)
    if agent.is_trained:  # only the evaluation is left
        return agent, clock.seconds
    agent.set_logger(folder.logger(False, [], agent.progress))
    try:
        agent.learn(
            dataset,
            callback=[SaveCheckpoint(folder.checkpoint, cell.checkpoint_every), clock],
            log_interval=cell.log_interval,
            reset_num_timesteps=False,
        )
    except KeyboardInterrupt:
        agent.save(folder.checkpoint)
        clock.count(agent.stage or "unknown")
        clock.write()
        print(f"{cell.name}: stopped at timestep {agent.num_timesteps}", flush=True)
        raise
    finally:
        agent.logger.close()
    return agent, json.loads(clock.path.read_text())


def _about(cell: Cell, agent: OfflineAgent[Any], dataset: OfflineDataset) -> dict[str, Any]:
    """What is measured, on what, with what."""
    return {
        "format_version": FORMAT_VERSION,
        "label": cell.label,
        "preset": cell.preset,
        "overrides": cell.overrides,
        "measured": cell.measured,
        "headline_scale": cell.headline_scale,
        "environment_steps": getattr(agent, "environment_steps", 0),
        "dataset": {
            "id": dataset.id,
            "steps": len(dataset),
            "episodes": dataset.n_episodes,
            "fingerprint": dataset.fingerprint,
            "returns": [round(float(r), 3) for r in dataset.episode_returns],
            "reference": dataclasses.asdict(dataset.reference) if dataset.reference else None,
        },
        "versions": versions(),
        "machine": {
            "processor": processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cpus": os.cpu_count(),
            "device": str(agent.device),
            "threads": torch.get_num_threads(),
        },
    }


@contextlib.contextmanager
def _one_at_a_time(root: Path, dataset_id: str) -> Iterator[None]:
    """A dataset that is made or downloaded on first use is so once, not by two workers."""
    name = dataset_id.replace("/", "-")
    with open(root / f".{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def one_line(error: Exception) -> str:
    """Kind and message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def main() -> None:
    """A worker process: the cell as JSON on standard input, the root folder as argument."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    data = json.load(sys.stdin)
    data["guidance_scales"] = tuple(data["guidance_scales"])
    try:
        run_cell(Cell(**data), Path(sys.argv[1]))
    except KeyboardInterrupt:
        raise SystemExit(STOPPED) from None
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(one_line(error)) from error


if __name__ == "__main__":
    main()
