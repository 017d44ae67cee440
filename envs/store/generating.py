"""OGBench's trajectories made here, by several processes, into one Minari dataset.

Each finished trajectory is a file in a hidden folder of the datasets' folder, so that an
interrupted generation goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minari import MinariDataset
from minari.data_collector import EpisodeBuffer
from tqdm import tqdm

from qgpo.envs.data import disk
from qgpo.envs.progress import progress
from qgpo.envs.rollouts.ogbench_experts import PROCEDURES, Procedure, why_not
from qgpo.envs.rollouts.ogbench_players import Parts, WorkerError, played
from qgpo.envs.store.local import folder_of, open_local
from qgpo.envs.store.storing import CHUNK_FACTOR, EPISODE_BYTES
from qgpo.envs.store.trajectories import as_episode, write_trajectories
from qgpo.envs.store.writing import ADVICE, check_space, sole_writer
from qgpo.envs.tasks import ogbench
from qgpo.envs.tasks.ogbench import Name, size_of_steps, steps_of_size

UNFINISHED = ".qgpo-unfinished"
"""folder of the trajectories of datasets that are not finished"""
FORMAT = 1
"""of these trajectories; where they are played in another way, they have another number"""
PACKAGES = ("ogbench", "mujoco", "numpy")
"""whose versions decide the last digits"""
NAMESPACES = (ogbench.PUBLISHED, ogbench.GENERATED)
STEPS = 100_000
"""of a dataset, where nobody says how many"""
MOST_STEPS = 10**9
"""ten times OGBench's largest sets: more is a slip of the pen"""


def name_to_generate(dataset_id: str, steps: int | None = None, seed: int | None = None) -> Name:
    """The trajectories that are meant by an id with or without namespace, size, task and version.

    Steps and seed are those of the id where it has them, else STEPS and 0. Raises ValueError for
    sets that cannot be generated, and where the id says something else than the arguments.
    """
    stem = dataset_id.removesuffix("-v0").rpartition("/")[2]
    namespace = dataset_id.rpartition("/")[0]
    named = next(filter(None, (ogbench.parse(f"{n}/{stem}-v0") for n in NAMESPACES)), None)
    if named is None or namespace not in ("", *NAMESPACES):
        raise ValueError(f"{dataset_id!r}, expected {_choices()}")
    reason = why_not(named.environment, named.kind)
    if reason is not None:
        raise ValueError(f"{dataset_id!r} {reason}; expected {_choices()}")
    stated = {"steps": steps_of_size(named.size), "seed": named.seed} if named.size else {}
    for what, given, default in (("steps", steps, STEPS), ("seed", seed, 0)):
        if given is not None and stated.setdefault(what, given) != given:
            raise ValueError(f"{what}={given}, but {dataset_id!r} says {stated[what]}")
        stated.setdefault(what, default)
    if not 1 <= stated["steps"] <= MOST_STEPS:
        raise ValueError(f"steps={stated['steps']}, expected 1 to {MOST_STEPS}")
    if not 0 <= stated["seed"] < 2**32:
        raise ValueError(f"seed={stated['seed']}, expected 0 to {2**32 - 1}")
    size = size_of_steps(stated["steps"])
    return Name(ogbench.GENERATED, named.environment, named.kind, size, stated["seed"])


def _choices() -> str:
    kinds: dict[str, list[str]] = {}
    for procedure in PROCEDURES.values():
        kinds.setdefault(procedure.environment, []).append(procedure.kind)
    families: dict[str, list[str]] = {}
    for environment, of_it in kinds.items():
        families.setdefault(" or ".join(of_it), []).append(environment)
    named = (f"{', '.join(several)} with {of_them}" for of_them, several in families.items())
    return f"{ogbench.PUBLISHED}/ENVIRONMENT-KIND: {'; '.join(named)}"


@dataclass(frozen=True)
class Generation:
    """A dataset that is generated, and how."""

    name: Name
    procedure: Procedure
    versions: dict[str, str]
    home: Path
    """the folder of unfinished trajectories for this dataset, of any versions"""

    @classmethod
    def of(cls, name: Name, length: int | None = None) -> Generation:
        """Of trajectories with OGBench's length, or another number of transitions.

        Raises ValueError where OGBench's package has no expert for it, or is not installed.
        """
        reason = why_not(name.environment, name.kind)
        if reason is not None:
            raise ValueError(f"{name.id!r} {reason}; expected {_choices()}")
        procedure = PROCEDURES[f"{name.environment}-{name.kind}"]
        if length is not None:
            if length < 1:
                raise ValueError(f"length={length}, expected at least 1")
            procedure = dataclasses.replace(procedure, length=length)
        try:
            versions = {package: importlib.metadata.version(package) for package in PACKAGES}
            ogbench.register()
        except ImportError as error:
            raise ValueError(
                f"{name.id} is generated by the package ogbench, which cannot be imported "
                f"({error}): {ogbench.INSTALL}"
            ) from error
        return cls(name, procedure, versions, _home(name))

    @property
    def about(self) -> dict[str, Any]:
        """What the metadata say of the origin."""
        return {
            "origin": "generated",
            "name": self.name.published,
            "steps": steps_of_size(self.name.size),
            "seed": self.name.seed,
            "versions": self.versions,
        }

    @property
    def count(self) -> int:
        """The number of trajectories: the steps, rounded up to whole ones."""
        return math.ceil(steps_of_size(self.name.size) / self.procedure.length)

    @property
    def parts(self) -> Parts:
        """The files of those that are played with these versions, in this way."""
        made = {"format": FORMAT, "procedure": dataclasses.asdict(self.procedure), **self.about}
        digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
        return Parts(self.home / digest[:16], self.procedure, self.name.seed)


def generate(
    name: Name, processes: int = 1, length: int | None = None, progress_bar: bool | None = None
) -> MinariDataset:
    """Generate the trajectories of that name, complete or not at all; one that exists is opened.

    The same name gives the same arrays with any number of processes. An interrupted call leaves
    finished trajectories, from which the next one goes on. `length` is for trials: transitions of
    a trajectory, by default as many as OGBench's have. `progress_bar` None shows one where stderr
    is a terminal.

    Raises ValueError for sets whose experts are not in OGBench's package, DiskFullError where the
    disk has too little space, and WorkerError where a process ended early.
    """
    if processes < 1:
        raise ValueError(f"processes={processes}, expected at least 1")
    if name.namespace != ogbench.GENERATED or name.task is not None:
        raise ValueError(
            f"{name.id!r} cannot be generated, expected trajectories under "
            f"{ogbench.GENERATED}/, as `name_to_generate` makes"
        )
    if not folder_of(name.id).exists():
        generation = Generation.of(name, length)
        with sole_writer(name.id):
            if not folder_of(name.id).exists():  # another process was faster
                _play(generation, processes, progress_bar)
                _assemble(generation, progress_bar)
    _remove_parts(_home(name))
    return open_local(name.id)


def _home(name: Name) -> Path:
    """The folder of unfinished trajectories for a dataset."""
    return folder_of("") / UNFINISHED / name.id.replace("/", "+")


def _remove_parts(home: Path) -> None:
    """Remove trajectories whose dataset is finished."""
    shutil.rmtree(home, ignore_errors=True)
    with contextlib.suppress(OSError):  # others are not finished
        home.parent.rmdir()


def _play(generation: Generation, processes: int, progress_bar: bool | None) -> None:
    """Write the files of all trajectories that are not there yet."""
    name, parts, length = generation.name, generation.parts, generation.procedure.length
    missing = [index for index in range(generation.count) if not parts.has(index)]
    done = generation.count - len(missing)
    with (
        _bar(generation, "generate", progress_bar, initial=done * length) as bar,
        contextlib.closing(played(parts, missing, processes)) as playing,
    ):
        try:
            for number, index in enumerate(playing, start=1):
                bar.update(length)
                if number == 1:  # how large they are is known now
                    _check_space(generation, parts.path(index), len(missing) - number)
        except (WorkerError, disk.DiskFullError):
            raise
        except OSError as error:
            what = f"trajectories for {name.id!r} could not be written"
            raise disk.not_written(error, what, parts.folder, ADVICE) from error


def _check_space(generation: Generation, part: Path, missing: int) -> None:
    """Raise DiskFullError where missing files like that one and the dataset have no room."""
    size = part.stat().st_size
    dataset = generation.count * (CHUNK_FACTOR * size + EPISODE_BYTES)
    check_space(generation.name.id, missing * size + dataset)


def _bar(
    generation: Generation, doing: str, progress_bar: bool | None, initial: int = 0
) -> tqdm[Any]:
    """Steps of all processes, and the time left."""
    total = generation.count * generation.procedure.length
    what = f"{doing} {generation.name.id}"
    return progress(total, what, progress_bar, initial=initial, unit=" steps", unit_scale=True)


def _assemble(generation: Generation, progress_bar: bool | None) -> None:
    """The dataset of all trajectories, in their order."""
    name, procedure = generation.name, generation.procedure
    first = generation.parts.read(0)
    with _bar(generation, "write", progress_bar) as bar:
        write_trajectories(
            name,
            (first["observations"].shape[1], first["actions"].shape[1]),
            _episodes(generation, bar),
            generation.about,
            ("OGBench's experts", "qgpo"),
            f"{generation.count} trajectories of {procedure.length} steps in "
            f"{procedure.environment}, made as {name.published} of OGBench was (arXiv "
            f"2410.20092), with seed {name.seed}. Rewards are 0: its tasks label them when they "
            "are loaded.",
        )


def _episodes(generation: Generation, bar: tqdm[Any]) -> Iterator[EpisodeBuffer]:
    """The trajectories as Minari has them, one in memory at a time."""
    for index in range(generation.count):
        yield as_episode(generation.parts.read(index))
        bar.update(generation.procedure.length)
