"""The JSON documents of a run: one layout for train.py and benchmarks.

config.json, written when a run starts

    format_version      2
    label               name in tables: the plan's, or the agent's
    preset, longer      the row of hyperparameters that the configuration starts from; of a run that
                        was given minutes, longer is what they came to
    overrides           fields that have other values than that row has for the dataset
    measured            what decides the result: agent, config (all fields), dataset, seed,
                        guidance_scales, tune_guidance, n_episodes, deterministic, env_id
    headline_scale      the configured guidance scale; null for agents without guidance
    environment_steps   steps taken in the environment; 0 for agents that learn from data alone
    dataset             id, family, steps, episodes, fingerprint, returns, reference
    versions, machine   of libraries; processor, instructions, cpus, device, threads
    args                every setting as it was given, for --resume

evaluation.json, written when it ends (evaluation-2.json and so on for later requests), and a
benchmark's <results>/<cell>.json: the same without args, and

    training            timesteps, wall_seconds, cpu_seconds, stage_seconds, adopted_from
    evaluation_seconds
    evaluations         guidance_scale, env_id, returns, lengths, seeds, cut, mean, interval, score,
                        score_interval, reference, successes
    guidance_tuning     scales, returns, left_data, best; only where the scale was tuned
    verdict             confirmed, correlation, standard_errors, weights, text: whether guidance can
                        be trusted on these data; only where the critic knows

Documents of version 1 are read as if they were of version 2.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.checkpoint import config_from_json
from qgpo.agents.core.provenance import processor, versions
from qgpo.agents.core.upgrade import upgrade_config
from qgpo.agents.registry import agent_class
from qgpo.agents.sb3_baselines import OnlineSAC
from qgpo.envs import text_files
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.play.scores import Evaluation
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.measured_run import check_successes
from qgpo.experiments.settings import Experiment, as_json, measured_of
from qgpo.files import write_beside, write_whole

FORMAT_VERSION = 2
Document = dict[str, Any]
Evaluations = list[tuple[float | None, Evaluation]]
"""guidance scales (None: the agent's own, if any) and what was played at them"""


class DocumentError(ValueError):
    """A file that is not a run's document, or the document of another run."""


def describe(
    experiment: Experiment[Any], agent: OfflineAgent[Any], dataset: OfflineDataset
) -> Document:
    """What is measured, on which data, with which libraries and machine."""
    return {
        "format_version": FORMAT_VERSION,
        "label": experiment.label or experiment.agent,
        "preset": experiment.preset,
        "longer": experiment.longer,
        "overrides": experiment.overrides(dataset),
        "measured": experiment.measured,
        "headline_scale": experiment.headline_scale,
        "environment_steps": agent.environment_steps if isinstance(agent, OnlineSAC) else 0,
        "dataset": {
            "id": dataset.id,
            "family": dataset.details.get("family"),
            "steps": len(dataset),
            "episodes": len(dataset.first_readings),
            "fingerprint": dataset.fingerprint,
            "returns": [float(f"{r:.7g}") for r in dataset.recorded_returns],
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


def evaluations_to_json(evaluations: Evaluations) -> list[Document]:
    """The `evaluations` of a document."""
    return [{"guidance_scale": w, **dataclasses.asdict(played)} for w, played in evaluations]


def evaluations_from_json(entries: list[Document]) -> Evaluations:
    """The inverse of `evaluations_to_json`; what an older document does not say is None.

    Raises LookupError, TypeError, ValueError, AttributeError or OverflowError for other entries.
    """
    evaluations: Evaluations = []
    for entry in entries:
        values: Document = {f.name: entry.get(f.name) for f in dataclasses.fields(Evaluation)}
        values["cut"] = entry.get("cut", 0)
        low, high = values["interval"] or (0, 0)
        may_be_none = [n for n in (entry["guidance_scale"], values["score"]) if n is not None]
        for number in (values["mean"], values["cut"], low, high, *entry["returns"], *may_be_none):
            if type(number) not in (int, float):
                raise TypeError(f"{number!r} is not a number")
            float(number)
        if values["successes"] is not None:
            check_successes(values["successes"], len(entry["returns"]))
        evaluations.append((entry["guidance_scale"], Evaluation(**values)))
    return evaluations


def ended_by(error: BaseException) -> Document:
    """What the document of an evaluation says that did not come to its end."""
    return {"unfinished": " ".join(f"{type(error).__name__}: {error}".split())}


def has_scores(path: Path) -> bool:
    """Whether something is there that no other evaluation may replace.

    That is an evaluation that has played anything, or a file that is nobody's evaluation.
    """
    if not path.exists() or not path.stat().st_size:
        return False
    try:
        return bool(read_result(path)["evaluations"])
    except DocumentError:
        return True


def write(path: Path, document: Document) -> None:
    """Write atomically."""
    write_whole(path, _as_bytes(document))


def write_new(path: Path, document: Document) -> Path:
    """Write to that path, or beside it where it exists; returns where. Nothing is replaced."""
    return write_beside(path, _as_bytes(document))


def _as_bytes(document: Document) -> bytes:
    return json.dumps(document, indent=2, default=str).encode()


def read(path: Path) -> Document:
    """A run's document in today's version. Raises DocumentError where it is something else."""
    return upgrade(read_json(path), path)


def read_json(path: Path) -> Any:
    """What a JSON file says. Raises DocumentError, also for a named pipe, which would hang."""
    try:
        return text_files.read_json(path)
    except (OSError, ValueError) as error:
        raise DocumentError(f"{path} cannot be read ({error}): move it away") from error


def read_config(path: Path) -> Document:
    """A run's config.json, complete. Raises DocumentError, also for other programs' files."""
    document = read(path)
    try:
        measured = document["measured"]
        known = agent_class(measured["agent"]).config_class
        config_from_json(known, measured["config"])
        good = isinstance(measured["dataset"], str) and type(measured["seed"]) is int
        good = good and isinstance(document["args"], dict)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DocumentError(f"{path} is not the config.json of a run ({error!r})") from error
    if not good:
        raise DocumentError(
            f"{path} is not the config.json of a run: dataset, seed or args are missing"
        )
    return document


def read_result(path: Path) -> Document:
    """A run's evaluation, every value of which can be shown. Raises DocumentError."""
    document = read(path)
    try:
        evaluations_from_json(document["evaluations"])
        good = isinstance(document.get("training") or {}, dict)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DocumentError(
            f"{path} is not the evaluation of a run ({error!r}): move it away"
        ) from error
    if not good:
        raise DocumentError(
            f"{path} is not the evaluation of a run (training says no times): move it away"
        )
    return document


def read_results(folder: RunFolder) -> list[Document]:
    """The evaluations of a finished run, the first one first. Raises DocumentError."""
    return [read_result(path) for path in folder.evaluations]


def find_result(folder: RunFolder, measured: Document) -> Document | None:
    """The evaluation that was asked for so, None where it was not. Raises DocumentError."""
    return next((d for d in read_results(folder) if d["measured"] == measured), None)


def check_same_training(experiment: Experiment[Any], path: Path, document: Document) -> None:
    """Raise DocumentError where the document, which is in that file, is of another training."""
    wanted, found = (
        {"agent": m["agent"], "dataset": m["dataset"], "seed": m["seed"], **m["config"]}
        for m in (experiment.measured, document["measured"])
    )
    for name in wanted | found:  # a setting that only one of them has is None in the other
        if wanted.get(name) != found.get(name):
            raise DocumentError(
                f"{path} was made with {name} = {found.get(name)!r}, this training has "
                f"{wanted.get(name)!r}: give it another name (label in a plan, --run-dir), or "
                "move that file away"
            )


def upgrade(document: Document, path: Path) -> Document:
    """A document of any version as today's; DocumentError, which names the path, for others."""
    try:
        return _upgrade(document)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise DocumentError(
            f"{path} is not a document of a run ({error!r}): move it away"
        ) from error


def _upgrade(document: Document) -> Document:
    """Version by version.

    Version 1 had one layout of train.py (every setting in `args`, no version) and one of cells
    (`args` as the plan had them). Options that came later have the defaults of their class.
    """
    version = document.get("format_version", 1)
    if version > FORMAT_VERSION:
        raise ValueError(f"format {version} is newer than {FORMAT_VERSION}: update qgpo to read it")
    measured = document.get("measured") or measured_of(document.get("args", {}))
    measured = {"tune_guidance": False, **measured}
    if "config" in measured:
        agent = measured["agent"]
        defaults = as_json(agent_class(agent).config_class())
        measured["config"] = defaults | upgrade_config(agent, measured["config"], version)
    added = {"label": measured.get("agent"), "longer": 1.0}
    dataset = {"family": None, **document.get("dataset", {})}
    changed = {"format_version": FORMAT_VERSION, "measured": measured, "dataset": dataset}
    return {**added, **document, **changed}
