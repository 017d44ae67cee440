"""Several datasets as one new local dataset, such as medium and expert, with their provenance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from minari import MinariDataset
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.utils import validate_datasets_to_combine
from tqdm import tqdm

from qgpo.envs.store.downloading import digest
from qgpo.envs.store.local import files_in, folder_of, open_local
from qgpo.envs.store.metadata import NO_REWARDS
from qgpo.envs.store.ogbench import name_of
from qgpo.envs.store.opening import open_dataset
from qgpo.envs.store.reading import judge
from qgpo.envs.store.storing import store_episodes
from qgpo.envs.store.writing import check_new_id, check_space, new_dataset

OF_IMPORTS = ": import both with the same --low and --high, or all files in one import"


def combine(
    dataset_ids: Sequence[str], new_id: str, *, download: bool = True, progress_bar: bool = True
) -> MinariDataset:
    """A new local dataset of all episodes of several, in their order, complete or not at all.

    Its metadata name every source with its episodes, steps and SHA-256 digests; what the sources
    agree on (environments, reference scores) is kept. Raises ValueError for ids that are taken
    or unknown, for OGBench's, and for datasets of other spaces or environments than the first's.
    """
    check_new_id(new_id)
    if len(dataset_ids) < 2:
        raise ValueError(f"{list(dataset_ids)}, expected at least two datasets to combine")
    of_ogbench = [dataset_id for dataset_id in dataset_ids if name_of(dataset_id) is not None]
    if of_ogbench:
        raise ValueError(
            f"dataset {of_ogbench[0]!r} cannot be combined: OGBench's trajectories are stored "
            "without rewards, and only OGBench ids determine their task. In Python, "
            "OfflineDataset.concatenate([load_dataset(…), …]) joins tasks. For more steps of "
            "one set, generate a larger one"
        )
    sources = [open_dataset(name, download, progress_bar) for name in dataset_ids]
    for source in sources:
        judge(source)  # Minari reads the infos too
    env_spec = _common_environment(sources)
    check_space(
        new_id, sum(path.stat().st_size for source in sources for path in _files(source).values())
    )
    with new_dataset(new_id):
        data = folder_of(new_id) / "data"
        data.parent.mkdir(parents=True)
        storage = MinariStorage.new(
            data,
            observation_space=sources[0].observation_space,
            action_space=sources[0].action_space,
            env_spec=env_spec,
            data_format=sources[0].storage.FORMAT,
            jpeg_encoding=sources[0].storage.jpeg_encoding,
        )
        total = sum(source.total_steps for source in sources)
        with tqdm(total=total, desc=f"write {new_id}", disable=not progress_bar) as bar:
            store_episodes(storage, _buffers(sources, bar))
        storage.update_metadata(_metadata(new_id, sources))
        open_local(new_id)
    return open_local(new_id)


def _common_environment(sources: Sequence[MinariDataset]) -> Any:
    first = sources[0]
    for other in sources[1:]:
        ours, theirs = _shared(first), _shared(other)
        for name, one in ours.items():
            two = theirs[name]
            if None not in (one, two) and one != two:
                imported = all("action_names" in s.storage.metadata for s in (first, other))
                of_imports = OF_IMPORTS if imported and name == "action_space" else ""
                raise ValueError(
                    f"datasets {first.id!r} and {other.id!r} cannot be combined: {name} {one} and "
                    f"{two}; expected the same{of_imports}"
                )
    try:
        return validate_datasets_to_combine(list(sources))
    except ValueError as error:
        named = {s.id: s.env_spec.id if s.env_spec else "none" for s in sources}
        raise ValueError(
            f"datasets cannot be combined, their environments differ ({error}): {named}"
        ) from error


def _shared(source: MinariDataset) -> dict[str, Any]:
    """By name, what sources must agree on; None for what is not known."""
    metadata = source.storage.metadata
    return {
        "observation_space": source.observation_space,
        "action_space": source.action_space,
        "observation_names": metadata.get("observation_names"),
        "action_names": metadata.get("action_names"),
        NO_REWARDS: bool(metadata.get(NO_REWARDS)),
    }


def _buffers(sources: Sequence[MinariDataset], bar: Any) -> Iterator[EpisodeBuffer]:
    """Every episode of every source, one in memory at a time."""
    for source in sources:
        for episode in source.storage.get_episodes(source.episode_indices):
            yield EpisodeBuffer(**{**episode, "id": None})
            bar.update(len(episode["rewards"]))


def _files(source: MinariDataset) -> dict[str, Path]:
    return files_in(Path(source.storage.data_path))


def _metadata(new_id: str, sources: Sequence[MinariDataset]) -> dict[str, Any]:
    """The new dataset's own metadata, where its episodes are from, and what its sources share."""
    firsts = accumulate((source.total_episodes for source in sources), initial=0)
    parts = [
        {
            "dataset_id": source.id,
            "first_episode": first,
            "episodes": source.total_episodes,
            "steps": source.total_steps,
            "sha256": {name: digest(path, "sha256") for name, path in _files(source).items()},
        }
        for source, first in zip(sources, firsts, strict=False)
    ]
    about = [source.storage.metadata for source in sources]
    named = [f"{part['dataset_id']} ({part['episodes']} episodes)" for part in parts]
    joined = {
        name: ", ".join(dict.fromkeys(str(m[name]) for m in about if m.get(name)))
        for name in ("algorithm_name", "code_permalink")
    }
    optional = (
        *("eval_env_spec", "ref_min_score", "ref_max_score", "num_episodes_average_score"),
        *("observation_names", "action_names", NO_REWARDS),
    )
    shared = {
        name: about[0][name]
        for name in optional
        if about[0].get(name) is not None and all(m.get(name) == about[0][name] for m in about)
    }
    requirements = sorted({r for m in about for r in m.get("requirements", [])})
    return {
        "dataset_id": new_id,
        "minari_version": max(m["minari_version"] for m in about),
        "combined_datasets": [source.id for source in sources],
        "sources": parts,
        "author": {name for m in about for name in m.get("author", set())},
        "author_email": {name for m in about for name in m.get("author_email", set())},
        "description": f"All episodes of {', then '.join(named)}.",
        **joined,
        **shared,
        **({"requirements": requirements} if requirements else {}),
    }
