"""Minari to OfflineDataset: read once, into memory or into memory-mapped files."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from minari import EpisodeData, MinariDataset
from tqdm import tqdm

from qgpo.envs.data import memmap
from qgpo.envs.data.blocks import hash_files, same_contents
from qgpo.envs.data.columns import Rounding, Rows, flags, numbers
from qgpo.envs.data.dataset import ARRAYS, OfflineDataset, episode_starts
from qgpo.envs.data.disk import DiskFullError, not_written
from qgpo.envs.data.doubts import doubts
from qgpo.envs.data.memmap import Episode
from qgpo.envs.data.windows import windowed
from qgpo.envs.store import bundled
from qgpo.envs.store.episode_rules import RULES
from qgpo.envs.store.labelling import STATES, Labelled, Task, refuse_trajectories
from qgpo.envs.store.local import files_in
from qgpo.envs.store.metadata import NO_REWARDS, differences, environments
from qgpo.envs.store.ogbench import name_of
from qgpo.envs.store.opening import open_dataset
from qgpo.envs.store.reading import read_episodes
from qgpo.envs.store.scratch import remove_abandoned, scratch_folder, target_lock
from qgpo.envs.tasks.families import UNKNOWN, Family, find_family, looks_adapted
from qgpo.envs.tasks.making import register_package
from qgpo.envs.tasks.spaces import vector_spaces
from qgpo.envs.tasks.window import Window

LENGTH = " (T + 1 observations for T = {} steps)"
STORAGES = ("memory", "memmap")
Storage = Literal["memory", "memmap"]
FINGERPRINTS = ("fingerprint", "trajectory_fingerprint")
"""of a dataset, which are kept with its memory-mapped arrays"""
SCRATCH = ".memmap-"
"""how the folders of unfinished conversions are named"""


def load_dataset(
    dataset: str | MinariDataset,
    download: bool = True,
    storage: Storage = "memory",
    progress_bar: bool = True,
    *,
    history: int = 1,
    chunk: int = 1,
) -> OfflineDataset:
    """Read a Minari dataset, given by its id or as a minari.MinariDataset.

    Ids under `qgpo/` are generated on first use by bundled policies (half a minute). A warning is
    given if the result differs from the published data. Other ids are searched in Minari's local
    folder (`MINARI_DATASETS_PATH`) and, with `download`, on its remote. An id without a version
    means the newest local version, or the newest remote version if there is no local one.

    `storage="memmap"` is for data larger than memory. On first use the dataset is converted to
    files next to Minari's, and agents read single batches from them. The data and the trained
    agents are the same.

    For an OGBench task (`ogbench/cube-single-play-singletask-task2-v0`; without a number the
    default task), the trajectories get the rewards of the task. A step in which the task is solved
    is a termination, but the trajectory continues. On first use the trajectories are converted from
    OGBench's file in `~/.ogbench/data`, which is downloaded with `download`. Generated
    trajectories are under `ogbench-generated/`. Memory-mapped tasks share identical files.

    With `history` agents see so many observations at once, and with `chunk` they decide so many
    actions at once, which `predict` hands out one by one (docs/tutorials/fast_logs.md): for
    recordings of many steps per second. These data are held in memory.

    Dict observations become vectors, and episodes are read as stated in the dataset's row of
    `envs/tasks/families.py`. Datasets without a row are used as recorded; a warning is given if the
    id looks like one of D4RL or OGBench. Raises ValueError for unknown ids, unsupported spaces and
    invalid data.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage={storage!r}, expected one of {list(STORAGES)}")
    if Window.of(history, chunk) is not None and storage != "memory":
        raise ValueError(
            f"storage={storage!r} with history={history} and chunk={chunk}: histories and chunks "
            "are held in memory; leave storage away"
        )
    if isinstance(dataset, str):
        name = name_of(dataset)
        if name is not None:
            refuse_trajectories(name)  # before they are fetched
        source = open_dataset(dataset, download, progress_bar)
    elif isinstance(dataset, MinariDataset):
        source, name = dataset, name_of(dataset.id)
    else:
        raise TypeError(_not_a_dataset(dataset))
    reader = _Reader.of(source, None if name is None else Task.of(name, source))
    read = reader.map(progress_bar) if storage == "memmap" else reader.read()
    for text in reader.doubts:
        warnings.warn(text, stacklevel=2)
    if reader.is_complete:
        bundled.warn_of_other_data(read)
    return windowed(read, history, chunk)


def _not_a_dataset(given: object) -> str:
    """What to say of any other object, most of all of the steps that SB3's `learn` takes."""
    text = (
        f"dataset is a {type(given).__name__}, expected an OfflineDataset (to learn from), a "
        "Minari id such as 'qgpo/halfcheetah/mixed-v0' or a minari.MinariDataset"
    )
    if isinstance(given, int | float | np.number):
        text = f"dataset={given!r} is a number, expected" + text.partition("expected")[2]
        text += (
            ". learn() takes the data; the number of steps is the configuration's: "
            "longer(config, 2), from qgpo.agents, doubles it"
        )
    return text


@dataclass(frozen=True)
class _Reader:
    """A Minari dataset and how its family is read."""

    source: MinariDataset
    family: Family
    fields: dict[str, Any]
    """the OfflineDataset's, all but its arrays and its folder"""
    doubts: list[str] = field(default_factory=list)
    """what the user is to be told of the data, once they are read"""
    rounding: Rounding = field(default_factory=Rounding)
    task: Task | None = None
    """what labels the data, where they are trajectories without rewards"""

    @property
    def id(self) -> str:
        """The dataset's, or its task's."""
        return str(self.fields["id"])

    @property
    def is_complete(self) -> bool:
        """Whether all stored episodes are read, not a selection of them."""
        return bool(self.source.total_episodes == self.source.storage.total_episodes)

    @classmethod
    def of(cls, source: MinariDataset, task: Task | None = None) -> _Reader:
        """Raises ValueError for unsupported spaces; warns where the id misses its family."""
        dataset_id = source.id if task is None else task.name.id
        of = f"dataset {dataset_id!r}"
        metadata = source.storage.metadata
        spec, evaluated = environments(metadata, of)
        if task is not None:
            spec = task.spec
        family = find_family(dataset_id, spec.id if spec is not None else None)
        adapter, observation_space, action_space = vector_spaces(
            source.observation_space, source.action_space, family.observation, of
        )
        if family is UNKNOWN and looks_adapted(dataset_id):
            warnings.warn(
                f"{of} is named like data of D4RL or OGBench and belongs to no known family: its "
                "rewards and episodes are used as recorded, although those of such data are not. "
                "If it is one of them, give it the id that it has there",
                stacklevel=3,
            )
        if spec is None and family.environment in gym.registry:
            spec = gym.spec(family.environment)
        played = family.played(evaluated or spec)
        if played is not None:
            register_package(played.id)
        for said in (*differences(spec, played), *family.without_scores(metadata, played)):
            warnings.warn(f"{of}: {said}", stacklevel=3)
        fields: dict[str, Any] = {
            "id": dataset_id,
            "observation_space": observation_space,
            "action_space": action_space,
            "adapter": adapter,
            "env_spec": played,
            "reference": family.scores(metadata, played),
            "details": {"algorithm": metadata.get("algorithm_name"), "family": family.name},
        }
        if task is not None:
            fields["details"]["labels"] = source.id
        return cls(source, family, fields, task=task)

    def read(self) -> OfflineDataset:
        """All episodes in memory."""
        columns: dict[str, Rows] = {}
        lengths: list[int] = []
        steps, episodes = int(self.source.total_steps), int(self.source.total_episodes)
        for episode in self.episodes():
            lengths.append(len(episode["rewards"]))
            for name, part in episode.items():
                if name not in columns:
                    expected = steps + episodes if name == "states" else steps
                    columns[name] = Rows(expected, part)
                columns[name].append(part)
        arrays = {name: column.whole for name, column in columns.items()}
        starts = episode_starts(lengths)
        return self.doubt(self.dataset({**arrays, "episode_starts": starts}))

    def map(self, progress_bar: bool) -> OfflineDataset:
        """The converted files beside the Minari data, made on first use and after changes.

        Raises OSError where the disk does not take them (DiskFullError where it is too full).
        """
        home, name = self.home, self.id
        folder = home / self.folder_name
        remove_abandoned(home, SCRATCH)
        index = self.current(folder)
        if index is None:
            try:
                with target_lock(folder, f"converting {name!r}"):
                    index = self.current(folder) or self.convert(folder, progress_bar)
            except DiskFullError:
                raise
            except OSError as error:
                what = f"dataset {name!r} could not be converted"
                raise not_written(error, what, home, memmap.ADVICE) from error
        self.doubts[:] = index.get("doubts", [])
        arrays = memmap.map_arrays(folder, index["shapes"])
        mapped = memmap.read_index(folder)
        if mapped is None or mapped["fingerprint"] != index["fingerprint"]:  # replaced just now
            raise ValueError(f"dataset {name!r} changed while it was read: load it again")
        known = {key: index[key] for key in FINGERPRINTS if key in index}
        dataset = self.dataset({**arrays, **known}, folder)
        if len(known) < len(FINGERPRINTS):  # made before there was the other one: read it once
            self.note(folder, mapped, {**mapped, **{k: getattr(dataset, k) for k in FINGERPRINTS}})
        return dataset

    def current(self, folder: Path) -> memmap.Index | None:
        """The index of a conversion that is whole and of the data that are here now."""
        index = memmap.read_index(folder, self.made)
        former = copy.deepcopy(index)
        if index is None or memmap.damage(folder, index, self.files):
            return None
        if not memmap.are_rows(folder, index):
            return None
        if index != former:
            self.note(folder, former, index)
        return index

    def note(self, folder: Path, former: memmap.Index | None, index: memmap.Index) -> None:
        """Replace the index, where the folder can be written and still has the former one."""
        with contextlib.suppress(OSError), target_lock(folder, f"converting {self.id!r}"):
            if memmap.read_index(folder) == former:
                memmap.write_index(folder, index)

    @property
    def home(self) -> Path:
        """The dataset's folder, in which Minari's `data` are."""
        return Path(self.source.storage.data_path).parent

    @property
    def folder_name(self) -> str:
        """Of the memory-mapped arrays."""
        if self.task is not None:
            return self.task.folder
        return "memmap" if self.is_complete else f"memmap-{self.selection[:12]}"

    @property
    def files(self) -> dict[str, Path]:
        """Minari's files by name."""
        return files_in(Path(self.source.storage.data_path))

    @property
    def selection(self) -> str:
        """SHA-256 of the episodes' numbers."""
        indices = np.asarray(self.source.episode_indices, dtype=np.int64)
        return hashlib.sha256(indices.tobytes()).hexdigest()

    @property
    def made(self) -> dict[str, Any]:
        """How arrays are made from the files."""
        adapter = self.fields["adapter"]
        return {
            "episodes": self.selection,
            "rule": self.family.episodes,
            "observations": adapter.to_json() if adapter else None,
            **({} if self.task is None else {"labels": self.task.made}),
        }

    def convert(self, folder: Path, progress_bar: bool) -> memmap.Index:
        """Write the arrays into a scratch folder, check them, and rename it.

        Raises ValueError where the data change meanwhile, and for a folder of somebody's files.
        """
        memmap.check_replaceable(folder)
        name, total = self.id, self.source.total_steps
        bar = tqdm(total=total, desc=f"convert {name}", disable=not progress_bar)
        with scratch_folder(folder.parent, SCRATCH) as scratch, bar:
            made = scratch / "arrays"
            made.mkdir()
            index = self.write(made, bar)
            if self.task is not None:
                index = memmap.share(made, index, sorted(self.home.glob("memmap-*")))
            memmap.check_replaceable(folder)
            if folder.exists():
                folder.rename(scratch / "previous")
            made.rename(folder)
        return index

    def write(self, made: Path, bar: Any) -> memmap.Index:
        """Write and check the arrays and the index; the source is hashed before and after."""
        of = f"dataset {self.id!r}"
        before = hash_files(self.files)
        sizes = memmap.expected_sizes(
            max(0, self.source.total_steps),
            max(0, self.source.total_episodes),
            int(np.prod(self.fields["observation_space"].shape)),
            int(np.prod(self.fields["action_space"].shape)),
        )
        written = memmap.write_arrays(made, self.episodes(bar), sizes, of)
        # The checked arrays are released here: an open file keeps Windows from renaming.
        checked = self.doubt(self.dataset(memmap.map_arrays(made, written["shapes"])))
        fingerprints = {name: getattr(checked, name) for name in FINGERPRINTS}
        index = {**written, **fingerprints, "made": self.made}
        index["doubts"] = self.doubts
        index["source"] = hash_files(self.files)
        if not same_contents(before, index["source"]):
            raise ValueError(f"{of} changed while it was converted: load it again")
        memmap.write_index(made, index)
        whole = memmap.read_index(made)
        if whole is None:
            raise OSError(f"{made} did not keep what was written")
        return whole

    def doubt(self, dataset: OfflineDataset) -> OfflineDataset:
        """The dataset, once what is odd about it is noted. ValueError where rewards vanish."""
        of = f"dataset {dataset.id!r}"
        imitation = self.source.storage.metadata.get(NO_REWARDS) is True
        arrays = dataset.states, dataset.rewards, dataset.episode_starts
        odd = doubts(
            *arrays,
            terminations=None if self.task is not None else dataset.terminations,
            truncations=dataset.truncations,
            imitation=imitation,
        )
        self.doubts[:] = [*self.rounding.faults(of), *(f"{of}: {text}" for text in odd)]
        return dataset

    def dataset(self, arrays: dict[str, Any], folder: Path | None = None) -> OfflineDataset:
        """The dataset of these arrays; cached properties among them need no computation."""
        given = {name: arrays[name] for name in (*ARRAYS, "episode_starts")}
        dataset = OfflineDataset(**self.fields, **given, folder=folder)
        vars(dataset).update({name: a for name, a in arrays.items() if name not in given})
        return dataset

    def episodes(self, bar: Any = None) -> Iterator[Episode]:
        """Every episode with at least one step, its shapes checked, by its family's rule or task.

        Raises ValueError where there is none.
        """
        is_empty = True
        for episode in self.ruled() if self.task is None else self.task.label(self.stored()):
            if len(episode["rewards"]) > 0:
                is_empty = False
                if bar is not None:
                    bar.update(len(episode["rewards"]))
                yield episode
        if is_empty:
            raise ValueError(f"dataset {self.id!r} is empty: at least one transition is needed")

    def ruled(self) -> Iterator[Episode]:
        """Every episode as its family's rule reads it."""
        rule = RULES[self.family.episodes]
        for stored in read_episodes(self.source) if self.source.total_steps > 0 else ():
            episode = self.arrays(stored)
            yield rule(episode, stored.observations) if len(stored.rewards) > 0 else episode

    def stored(self) -> Iterator[Labelled]:
        """Every episode as it is stored, with the infos from which it is labelled."""
        for stored in read_episodes(self.source, STATES) if self.source.total_steps > 0 else ():
            yield self.arrays(stored), stored.infos

    def arrays(self, stored: EpisodeData) -> Episode:
        """A stored episode as arrays. Raises ValueError where their shapes do not fit."""
        of, length = f"dataset {self.id!r}, episode {stored.id}", len(stored.rewards)
        adapter, observations = self.fields["adapter"], stored.observations
        parts = {
            "observations": observations if adapter is None else adapter.flatten(observations),
            "actions": stored.actions,
            "rewards": stored.rewards,
        }
        shapes = {
            "observations": (length + 1, *self.fields["observation_space"].shape),
            "actions": (length, *self.fields["action_space"].shape),
        }
        episode: Episode = {}
        for name, values in parts.items():
            column = numbers(of, name, values, shapes.get(name, (length,)), LENGTH.format(length))
            self.rounding.add(name, values, column)
            episode["states" if name == "observations" else name] = column
        for name in ("terminations", "truncations"):
            values = getattr(stored, name)
            episode[name] = flags(of, name, values, (length,), LENGTH.format(length))
        return episode
