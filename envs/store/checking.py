"""A report of everything that can be wrong with a local dataset."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from gymnasium import spaces
from minari import MinariDataset

from qgpo.envs.data import memmap
from qgpo.envs.data.dataset import OfflineDataset, as_recorded
from qgpo.envs.store.bundled import is_published
from qgpo.envs.store.catalogue import OTHER_DATA, like_d4rl
from qgpo.envs.store.downloading import damaged_files
from qgpo.envs.store.labelling import Task, task_ids
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.store.local import files_in, folder_of
from qgpo.envs.store.ogbench import name_of
from qgpo.envs.store.opening import open_dataset
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import make_env
from qgpo.envs.tasks.spaces import same_box


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    ok: bool | None
    """None where there is nothing to compare with"""
    text: str


@dataclass
class Report:
    """The results of all checks, in their order."""

    id: str
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.ok is not False for finding in self.findings)


def check_dataset(dataset_id: str) -> Report:
    """Check files, episodes, every value, the environment and the reference scores.

    Trajectories of OGBench are checked with the rewards of their default task. Nothing is
    downloaded or changed. Raises ValueError if there is no such local dataset.
    """
    name = name_of(dataset_id)
    stored = dataset_id if name is None else name.trajectories.id
    if not folder_of(stored).exists():
        open_dataset(dataset_id, download=False)  # a version, a bundled one, or the error
    try:
        opened = open_dataset(dataset_id, download=False)
    except ValueError as error:
        return Report(dataset_id, [Finding("episodes", False, str(error)), _files(stored)])
    if name is None:
        return Report(opened.id, [_files(opened.id), *_contents(opened, opened)])
    task = task_ids(name)[0] if name.task is None else name.id
    return Report(name.id, [_files(opened.id), *_contents(opened, task)])


def _contents(opened: MinariDataset, source: MinariDataset | str) -> Iterator[Finding]:
    """What the data are, as far as they can be read; `source` is what is loaded of them."""
    text = f"all {opened.total_episodes} are there, {opened.total_steps} steps"
    if isinstance(source, str):
        text += f", labelled as {source}"
    yield Finding("episodes", True, text)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", message=".* is not the published one")
            dataset = load_dataset(source, download=False)
    except ValueError as error:
        yield Finding("values", False, str(error))
        return
    text = f"{len(dataset)} transitions are aligned, finite and inside the action space"
    yield Finding("values", True, text)
    for one in said:
        yield Finding("doubt", None, str(one.message).removeprefix(f"dataset {dataset.id!r}: "))
    same = is_published(dataset)
    if same is not None:
        text = "the same numbers" if same else "other numbers: scores compare with no others"
        yield Finding("published", same, text)
    yield from (_ends(dataset), _environment(dataset), _scores(dataset))
    if (family := as_recorded(dataset)) is not None:
        yield Finding("family", None, family)
    yield from _maps(opened, dataset)


def _files(dataset_id: str) -> Finding:
    damaged = damaged_files(folder_of(dataset_id))
    if damaged is None:
        return Finding("files", None, "no checksums were recorded: not downloaded by qgpo")
    if damaged:
        return Finding("files", False, f"changed since their download: {', '.join(damaged)}")
    return Finding("files", True, "as they were downloaded, by their SHA-256")


def _maps(opened: MinariDataset, dataset: OfflineDataset) -> Iterator[Finding]:
    """Whether the memory-mapped files hold these data, by every block and the fingerprint."""
    data = Path(opened.storage.data_path)
    name = name_of(dataset.id)
    own = "memmap" if name is None else Task(name).folder
    for folder in sorted(data.parent.glob("memmap*")):
        index = memmap.read_index(folder)
        if index is None:
            text = f"{folder} is incomplete or of an earlier version: it is rebuilt at the next use"
            yield Finding("memory map", None, text)
            continue
        files = files_in(data)
        wrong = memmap.damage(folder, index, files, in_full=True)
        if set(wrong) <= {*files, *index["source"]} and wrong:
            text = (
                f"{folder.name} is of other data ({', '.join(wrong)}): it is rebuilt at the "
                "next use"
            )
            yield Finding("memory map", None, text)
            continue
        if folder.name == own and index["fingerprint"] != dataset.fingerprint:
            wrong.append("the fingerprint")
        if not wrong and not memmap.are_rows(folder, index):
            wrong.append("the row numbers")
        text = f"{folder.name} holds the same numbers, by the hash of every block"
        if wrong:
            text = f"{folder}: {', '.join(wrong)} changed since the conversion; delete that folder"
        yield Finding("memory map", not wrong, text)


def _ends(dataset: OfflineDataset) -> Finding:
    """How episodes end, and whether a step that is flagged as an end has others after it.

    Labelled trajectories go on where their task is done.
    """
    last = dataset.last_steps
    terminated, truncated = np.asarray(dataset.terminations), np.asarray(dataset.truncations)
    inside = int(((terminated | truncated) & ~last).sum())
    are_labelled = "labels" in dataset.details and not (truncated & ~last).any()
    neither = int((last & ~terminated & ~truncated).sum())
    text = f"{int((last & terminated).sum())} terminated, {int((last & truncated).sum())} truncated"
    if neither:
        text += f", {neither} with neither flag (their bootstrap is kept)"
    if inside and are_labelled:
        text += f"; the task is done at {inside} steps that others follow: the bootstrap is cut"
    elif inside:
        text += f"; {inside} steps are flagged as an end and followed by others"
    return Finding("ends", inside == 0 or are_labelled, text)


def _environment(dataset: OfflineDataset) -> Finding:
    if dataset.env_spec is None:
        return Finding("environment", None, "none is named: pass one to evaluate()")
    try:
        env = make_env(dataset.env_spec, own_modules=False)
    except ValueError as error:
        return Finding("environment", False, str(error))
    observed, acted, adapter = env.observation_space, env.action_space, dataset.adapter
    env.close()
    name = dataset.env_spec.id
    if adapter is not None:
        try:
            observed = adapter.box(cast("spaces.Dict", observed), name)
        except ValueError as error:
            return Finding("environment", False, str(error))
    shapes = observed.shape, acted.shape
    expected = dataset.observation_space.shape, dataset.action_space.shape
    text = f"{name} has observations {shapes[0]} and actions {shapes[1]}"
    if shapes != expected:
        text += f", the data {expected[0]} and {expected[1]}"
    elif not (isinstance(acted, spaces.Box) and same_box(acted, dataset.action_space)):
        text += f": {acted}, the data {dataset.action_space}"
        return Finding("environment", False, text)
    return Finding("environment", shapes == expected, text)


def _scores(dataset: OfflineDataset) -> Finding:
    reference = dataset.reference
    spec = dataset.env_spec
    if spec is not None and find_family(env_id=spec.id).success:
        return Finding("scores", True, f"the percentage of successes in {spec.id}")
    if reference is None:
        return Finding("scores", None, "no reference scores: returns stay raw")
    score = float(reference.normalize(dataset.episode_returns.mean()))
    text = (
        f"0 is a return of {reference.minimum:.6g}, 100 one of {reference.maximum:.6g} "
        f"({reference.source}); the data's mean is {score:.1f}"
    )
    d4rl, comparable = like_d4rl(dataset.id)
    if d4rl is not None:
        do_not = "do not compare" if comparable == OTHER_DATA else "were not shown to compare"
        text += f". Scores {do_not} with published ones on D4RL's {d4rl}"
    return Finding("scores", True, text)
