"""The local, bundled and remote datasets, and what is missing to use each of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import minari
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from qgpo.envs.store import bundled
from qgpo.envs.store.labelling import task_ids
from qgpo.envs.store.local import folder_of, local_ids
from qgpo.envs.store.metadata import environments, space_from_text
from qgpo.envs.store.remote import remote_catalogue
from qgpo.envs.store.stated import read_metadata
from qgpo.envs.tasks import ogbench
from qgpo.envs.tasks.families import Family, find_family
from qgpo.envs.tasks.making import PACKAGES
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.tasks.spaces import vector_spaces

Where = Literal["local", "bundled", "remote"]
WHERE: tuple[Where, ...] = get_args(Where)

OTHER_DATA = "no"
NOT_SHOWN = "not shown"
D4RL_ROWS = (
    (r"mujoco/(hopper|halfcheetah|walker2d|ant)/(medium|expert)", r"\1-\2", OTHER_DATA),
    (r"D4RL/(pen|door|hammer|relocate)/(human|cloned|expert)", r"\1-\2", NOT_SHOWN),
    (r"D4RL/antmaze/(umaze(?:-diverse)?)", r"antmaze-\1", NOT_SHOWN),
    (r"D4RL/antmaze/((?:medium|large)-(?:play|diverse))", r"antmaze-\1", NOT_SHOWN),
    (r"D4RL/kitchen/(complete|partial|mixed)", r"kitchen-\1", NOT_SHOWN),
    (r"D4RL/pointmaze/((?:open|umaze|medium|large)(?:-dense)?)", r"maze2d-\1", NOT_SHOWN),
)
"""Dataset ids without version, the D4RL dataset of the same task and kind, and whether scores on
the one compare with published scores on the other: see docs/datasets.md."""


@dataclass(frozen=True)
class Entry:
    """A dataset, as its metadata describe it."""

    id: str
    where: Where
    steps: int | None = None
    episodes: int | None = None
    megabytes: float | None = None
    behavior: str | None = None
    author: str | None = None
    env_id: str | None = None
    reference: ReferenceScores | None = None
    d4rl: str | None = None
    """the D4RL dataset of the same task and kind, if there is one"""
    comparable: str = OTHER_DATA
    """whether scores compare with published ones on that dataset: no, or not shown"""
    missing: tuple[str, ...] = ()
    """reasons why the dataset cannot be loaded, or its environment cannot be made"""
    notes: tuple[str, ...] = ()


def catalogue(where: Where, prefix: str = "") -> list[Entry]:
    """The datasets whose ids start with the prefix, sorted by id.

    A remote dataset that is also local is listed in both places. Raises RemoteError (a ValueError)
    where the remote cannot be reached, and ValueError for an unknown place.
    """
    if where == "bundled":
        return [_bundled(name) for name in sorted(bundled.RECIPES) if name.startswith(prefix)]
    local = local_ids()
    if where == "local":
        return [_local(name) for name in local if name.startswith(prefix)]
    if where == "remote":
        return [
            describe(name, "remote", about, () if name in local else ("not downloaded",))
            for name, about in remote_catalogue(prefix or None).items()
        ]
    raise ValueError(f"where={where!r}, expected one of {list(WHERE)}")


def describe(
    dataset_id: str, where: Where, metadata: dict[str, Any], missing: tuple[str, ...] = ()
) -> Entry:
    """The entry of a dataset; metadata that cannot be read are {"error": reason}.

    Metadata that are odd in any way make an entry that says so: they hide no other dataset.
    """
    try:
        if "error" in metadata:
            raise ValueError(metadata["error"])
        return _described(dataset_id, where, metadata, missing)
    except Exception as error:
        return Entry(dataset_id, where, missing=(*missing, f"damaged: {error}"))


def _described(
    dataset_id: str, where: Where, metadata: dict[str, Any], missing: tuple[str, ...]
) -> Entry:
    recorded, evaluated = environments(metadata, f"dataset {dataset_id!r}")
    spec = evaluated or recorded
    env_id = None if spec is None else spec.id
    family = find_family(dataset_id, env_id)
    d4rl, comparable = like_d4rl(dataset_id)
    return Entry(
        id=dataset_id,
        where=where,
        steps=metadata.get("total_steps"),
        episodes=metadata.get("total_episodes"),
        megabytes=metadata.get("dataset_size"),
        behavior=metadata.get("algorithm_name"),
        author=", ".join(sorted(metadata.get("author") or ())) or None,
        env_id=env_id or family.environment or None,
        reference=family.scores(metadata, family.played(spec)),
        d4rl=d4rl,
        comparable=comparable,
        missing=(*missing, *_missing(metadata, family)),
        notes=(*_version_notes(metadata), *_task_notes(dataset_id)),
    )


def like_d4rl(dataset_id: str) -> tuple[str | None, str]:
    """The D4RL dataset of the same task and kind, if there is one, and whether scores compare."""
    for pattern, name, comparable in D4RL_ROWS:
        match = re.fullmatch(rf"{pattern}-v\d+", dataset_id)
        if match:
            return match.expand(name), comparable
    return None, OTHER_DATA


def _local(dataset_id: str) -> Entry:
    try:
        metadata = read_metadata(folder_of(dataset_id) / "data")
        if metadata.get("dataset_id") != dataset_id:
            metadata = {"error": f"its metadata say {metadata.get('dataset_id')!r}"}
    except (OSError, ValueError) as error:
        metadata = {"error": str(error)}
    return describe(dataset_id, "local", metadata)


def _bundled(dataset_id: str) -> Entry:
    recipe = bundled.RECIPES[dataset_id]
    made = folder_of(dataset_id).exists()
    return Entry(
        id=dataset_id,
        where="bundled",
        steps=recipe.n_steps,
        behavior=", ".join(recipe.policies),
        author="qgpo",
        env_id=recipe.env_id,
        reference=find_family(dataset_id, recipe.env_id).reference,
        notes=() if made else ("made on first use, half a minute",),
    )


def _module(metadata: dict[str, Any]) -> str:
    """The package of the environment that is played, by name; nothing is imported."""
    for name in ("eval_env_spec", "env_spec"):
        if metadata.get(name):
            entry_point = str(json.loads(metadata[name]).get("entry_point") or "")
            return entry_point.split(":")[0].split(".")[0]
    return ""


def _is_installed(module: str) -> bool:
    """Whether a top-level module is here; it is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # __main__ has no spec
        return False


def _missing(metadata: dict[str, Any], family: Family) -> Iterator[str]:
    made_with = metadata.get("minari_version")
    if made_with not in minari.supported_dataset_versions:
        yield f"made with Minari {made_with}, which {minari.__version__} does not read"
    yield from _unsupported(metadata, family)
    module = family.package or _module(metadata)
    if module and not _is_installed(module):
        install = f" ({PACKAGES[module][1]})" if module in PACKAGES else ""
        yield f"package {_distribution(module, metadata)}, for its environment{install}"


def _unsupported(metadata: dict[str, Any], family: Family) -> Iterator[str]:
    """The reason why `load_dataset` refuses its spaces, if it does."""
    if "observation_space" not in metadata or "action_space" not in metadata:
        return
    try:
        observations = space_from_text(metadata["observation_space"], "observation_space")
        actions = space_from_text(metadata["action_space"], "action_space")
    except Exception as error:  # a space that Minari here does not know
        yield f"{type(error).__name__}: {error}"
        return
    try:
        vector_spaces(observations, actions, family.observation, "it")
    except ValueError as error:
        yield str(error).split(";")[0].removeprefix("it has ")


def _distribution(module: str, metadata: dict[str, Any]) -> str:
    """The dataset's requirement for the package of that module, else the module."""
    for text in metadata.get("requirements") or ():
        name = re.split(r"[^\w.-]", text, maxsplit=1)[0]
        if canonicalize_name(name) == canonicalize_name(module):
            return str(text)
    return module


def _task_notes(dataset_id: str) -> Iterator[str]:
    """Which tasks label these trajectories of OGBench."""
    name = ogbench.parse(dataset_id)
    if name is not None and name.task is None:
        default, first, *_, last = task_ids(name)
        yield f"no rewards: labelled by {first} to {last.rpartition('-singletask-')[2]}, {default}"


def _version_notes(metadata: dict[str, Any]) -> Iterator[str]:
    """Packages whose installed version differs from the one of the recording."""
    for text in metadata.get("requirements") or ():
        try:
            requirement = Requirement(text)
            installed = importlib.metadata.version(requirement.name)
        except (InvalidRequirement, importlib.metadata.PackageNotFoundError):
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            yield f"recorded with {text}, {installed} is installed"
