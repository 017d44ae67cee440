"""Several local datasets as one new one, such as medium and expert, with its provenance."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from minari import MinariDataset
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from minari.utils import validate_datasets_to_combine
from tqdm import tqdm

from qgpo.envs.data.local import (
    datasets_root,
    folder_of,
    new_dataset_path,
    open_whole,
    put_in_place,
)
from qgpo.envs.store.downloading import digest
from qgpo.envs.store.loading import open_dataset

EPISODES_AT_ONCE = 50
"""copied between two openings of the new file"""


def combine(
    dataset_ids: Sequence[str], new_id: str, *, download: bool = True, progress_bar: bool = True
) -> MinariDataset:
    """A new local dataset of all episodes of several, in their order, whole or not at all.

    Its metadata name every source with its episodes, steps and SHA-256 digests; what the sources
    agree on (environments, reference scores) is kept. Raises ValueError for ids that are taken
    or unknown, and for datasets of other spaces or environments than the first's.
    """
    new_dataset_path(new_id)
    if len(dataset_ids) < 2:
        raise ValueError(f"{list(dataset_ids)} to combine, expected at least two datasets")
    sources = [open_dataset(name, download, progress_bar) for name in dataset_ids]
    env_spec = _common_environment(sources)
    root = folder_of("")
    needed = sum(_size(Path(source.storage.data_path)) for source in sources)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OSError(
            f"{new_id!r} takes {needed / 1e6:.0f} MB, {root} has {free / 1e6:.0f} MB free: free "
            "some space, or set MINARI_DATASETS_PATH"
        )
    with tempfile.TemporaryDirectory(prefix=".qgpo-", dir=root) as scratch:
        data = Path(scratch) / new_id / "data"
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
            buffers = _buffers(sources)
            while episodes := list(islice(buffers, EPISODES_AT_ONCE)):
                storage.update_episodes(episodes)
                bar.update(sum(len(episode.rewards) for episode in episodes))
        storage.update_metadata(_metadata(new_id, sources))
        with datasets_root(Path(scratch)):
            open_whole(new_id)
        put_in_place(data.parent, new_id)
    return open_whole(new_id)


def _common_environment(sources: Sequence[MinariDataset]) -> Any:
    first = sources[0]
    for other in sources[1:]:
        for name in ("observation_space", "action_space"):
            one, two = getattr(first, name), getattr(other, name)
            if one != two:
                raise ValueError(
                    f"datasets {first.id!r} and {other.id!r} cannot be combined: {name} {one} and "
                    f"{two}; expected the same"
                )
    try:
        return validate_datasets_to_combine(list(sources))
    except ValueError as error:
        named = {s.id: s.env_spec.id if s.env_spec else "none" for s in sources}
        raise ValueError(
            f"datasets cannot be combined, their environments differ ({error}): {named}"
        ) from error


def _buffers(sources: Sequence[MinariDataset]) -> Iterator[EpisodeBuffer]:
    for source in sources:
        for episode in source.storage.get_episodes(source.episode_indices):
            yield EpisodeBuffer(**{**episode, "id": None})


def _metadata(new_id: str, sources: Sequence[MinariDataset]) -> dict[str, Any]:
    """The new dataset's own metadata, where its episodes are from, and what its sources share."""
    about = [source.storage.metadata for source in sources]
    parts, first = [], 0
    for source in sources:
        data = Path(source.storage.data_path)
        parts.append(
            {
                "dataset_id": source.id,
                "first_episode": first,
                "episodes": source.total_episodes,
                "steps": source.total_steps,
                "sha256": {
                    str(path.relative_to(data)): digest(path, "sha256")
                    for path in sorted(data.rglob("*"))
                    if path.is_file()
                },
            }
        )
        first += source.total_episodes
    named = [f"{part['dataset_id']} ({part['episodes']} episodes)" for part in parts]
    joined = {
        name: ", ".join(dict.fromkeys(str(m[name]) for m in about if m.get(name)))
        for name in ("algorithm_name", "code_permalink")
    }
    shared = {
        name: about[0][name]
        for name in (
            "eval_env_spec",
            "ref_min_score",
            "ref_max_score",
            "num_episodes_average_score",
        )
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


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
