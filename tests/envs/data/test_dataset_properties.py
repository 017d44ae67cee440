"""Whatever the episodes look like, every transition stays aligned, by each way into a dataset."""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factory import UNIT_BOX, make_dataset, mapped, numbered_episodes, write_buffers
from gymnasium import spaces
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from minari.storage.datasets_root_dir import get_dataset_path

from qgpo import OfflineDataset, load_dataset
from qgpo.agents.core.batches import Batches
from qgpo.envs.data import memmap
from qgpo.envs.store.loading import STORAGES

COUNTER = itertools.count()
BOX = spaces.Box(-np.inf, np.inf, (2,), np.float64)
EPISODES = st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=8)
FORMATS = ["hdf5", "arrow", "parquet"]
RELAXED = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def check_numbered(dataset: OfflineDataset, episodes: list[tuple[int, bool]]) -> None:
    """The numbers of `numbered_episodes` say where each belongs."""
    expected = [(e, t) for e, (length, _) in enumerate(episodes) for t in range(length)]
    places = np.array([100.0 * e + t for e, t in expected], np.float32)
    assert len(dataset) == len(places)
    np.testing.assert_array_equal(dataset.observations, np.stack([places, -places], 1))
    after = places + 1
    np.testing.assert_array_equal(dataset.next_observations, np.stack([after, -after], 1))
    np.testing.assert_array_equal(dataset.actions[:, 0], (places / 1000).astype(np.float32))
    np.testing.assert_array_equal(dataset.rewards, places + np.float32(0.5))
    last = [t == episodes[e][0] - 1 for e, t in expected]
    assert dataset.last_steps.tolist() == last
    ends = [(e, is_last) for (e, _), is_last in zip(expected, last, strict=True)]
    assert dataset.terminations.tolist() == [x and episodes[e][1] for e, x in ends]
    assert dataset.truncations.tolist() == [x and not episodes[e][1] for e, x in ends]
    assert dataset.episode_returns.tolist() == pytest.approx(
        [dataset.rewards[s].sum() for s in steps_of(dataset)]
    )


def steps_of(dataset: OfflineDataset) -> list[slice]:
    bounds = [*dataset.episode_starts.tolist(), len(dataset)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def flat(episodes: list[tuple[int, bool]]) -> dict[str, Any]:
    """The numbered episodes as flat arrays with both ends of each transition."""
    buffers = numbered_episodes(*zip(*episodes, strict=True))
    return {
        "observations": np.concatenate([b.observations[:-1] for b in buffers]),
        "next_observations": np.concatenate([b.observations[1:] for b in buffers]),
        "actions": np.concatenate([b.actions for b in buffers]),
        "rewards": np.concatenate([b.rewards for b in buffers]),
        "terminations": np.concatenate([b.terminations for b in buffers]),
        "truncations": np.concatenate([b.truncations for b in buffers]),
    }


@pytest.mark.parametrize("data_format", FORMATS)
@RELAXED
@given(episodes=EPISODES)
def test_every_way_through_minari_keeps_alignment(data_format, episodes):
    buffers = numbered_episodes(*zip(*episodes, strict=True))
    name = f"test/n{next(COUNTER)}-v0"
    source = write_buffers(buffers, name, data_format=data_format)
    in_memory = load_dataset(name, download=False)
    check_numbered(in_memory, episodes)
    from_files = load_dataset(source, storage="memmap", progress_bar=False)
    check_numbered(from_files, episodes)
    assert isinstance(from_files.states, np.memmap)
    assert from_files.state_index.tolist() == in_memory.state_index.tolist()
    again = load_dataset(name, download=False, storage="memmap", progress_bar=False)
    assert again.fingerprint == from_files.fingerprint == in_memory.fingerprint


@pytest.mark.parametrize("storage", STORAGES)
def test_every_format_of_minari_gives_the_same_arrays(storage):
    rng = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            observations=rng.normal(size=(n + 1, 2)) * 10.0 ** rng.integers(-6, 6),
            actions=rng.uniform(-1, 1, (n, 1)).astype(np.float32),
            rewards=list(rng.normal(size=n)),
            terminations=[False] * (n - 1) + [n % 2 == 0],
            truncations=[False] * (n - 1) + [n % 2 == 1],
        )
        for n in (3, 1, 8, 2)
    ]
    found = []
    for data_format in FORMATS:
        source = write_buffers(buffers, f"test/{data_format}-v0", data_format=data_format)
        assert data_format == source.storage.FORMAT
        longer = source.filter_episodes(lambda episode: len(episode.rewards) > 1)
        found.append([load_dataset(s, False, storage, False) for s in (source, longer)])
    for whole, longer in found[1:]:
        for dataset, expected in ((whole, found[0][0]), (longer, found[0][1])):
            assert dataset.fingerprint == expected.fingerprint
            assert dataset.states.dtype == np.float32
            for name in memmap.DTYPES:
                np.testing.assert_array_equal(getattr(dataset, name), getattr(expected, name))
    assert (len(found[0][0]), len(found[0][1])) == (14, 13)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_episode_in_the_middle_is_refused(damage, storage):
    episodes = numbered_episodes((3, 2, 4), (True, False, True))
    source = write_buffers(episodes, data_format="arrow")
    file = Path(source.storage.data_path, "1", "part-0.arrow")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:700])
    else:
        shutil.rmtree(file.parent)
    with pytest.raises(ValueError, match=r"'test/numbered-v0' .*damaged"):
        load_dataset("test/numbered-v0", False, storage, progress_bar=False)


def test_a_long_episode_is_read_whole():
    """Minari reads the first 32767 steps of Arrow files."""
    episodes = numbered_episodes((33_000,), (True,))
    episodes[0].actions[:] = 0.0
    source = write_buffers(episodes, data_format="arrow")
    assert load_dataset(source).rewards[-1] == 32_999.5


@RELAXED
@given(episodes=EPISODES, tell=st.booleans())
def test_flat_arrays_keep_alignment(episodes, tell):
    arrays = flat(episodes)
    if not tell:  # ends are found where the chain breaks
        arrays.pop("truncations")
    check_numbered(OfflineDataset.from_arrays(**arrays), episodes)
    arrays = flat(episodes)
    arrays.pop("next_observations")
    buffers = numbered_episodes(*zip(*episodes, strict=True))
    arrays["observations"] = np.concatenate([b.observations for b in buffers])
    check_numbered(OfflineDataset.from_arrays(**arrays), episodes)


@RELAXED
@given(episodes=EPISODES, data=st.data())
def test_shuffled_transitions_keep_both_ends(episodes, data):
    arrays = flat(episodes)
    arrays.pop("truncations")
    order = np.array(data.draw(st.permutations(range(len(arrays["rewards"])))))
    shuffled = {name: array[order] for name, array in arrays.items()}
    dataset = OfflineDataset.from_arrays(**shuffled)
    np.testing.assert_array_equal(dataset.observations, shuffled["observations"])
    np.testing.assert_array_equal(dataset.next_observations, shuffled["next_observations"])
    np.testing.assert_array_equal(dataset.terminations, shuffled["terminations"])
    chained = ~dataset.last_steps[:-1]
    following = dataset.observations[1:][chained]
    np.testing.assert_array_equal(dataset.next_observations[:-1][chained], following)


@RELAXED
@given(first=EPISODES, second=EPISODES)
def test_concatenation_keeps_alignment(first, second):
    assume(len(first) + len(second) < 10)
    both = numbered_episodes(*zip(*[*first, *second], strict=True))
    parts = both[: len(first)], both[len(first) :]
    datasets = [load_dataset(write_buffers(p, f"test/n{next(COUNTER)}-v0")) for p in parts]
    dataset = OfflineDataset.concatenate(datasets)
    check_numbered(dataset, [*first, *second])
    assert dataset.id == f"{datasets[0].id}+{datasets[1].id}"


NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from([None, "x", np.nan, np.inf, 1e300, True, b"y"]),
)
ANYTHING = st.one_of(
    st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=4), max_leaves=12),
    st.just(np.zeros((3, 2))),
    st.just(np.zeros(3)),
    st.just(np.zeros((0, 2))),
)


@settings(RELAXED, max_examples=200)
@given(values=st.tuples(*[ANYTHING] * 5), with_next=st.booleans())
def test_any_arrays_give_a_dataset_or_a_clear_message(values, with_next):
    observations, actions, rewards, terminations, following = values
    try:
        dataset = OfflineDataset.from_arrays(
            observations,
            actions,
            rewards,
            terminations,
            next_observations=following if with_next else None,
            id="mine",
        )
    except ValueError as error:
        message = str(error)
    else:
        assert len(dataset) > 0
        assert np.isfinite(dataset.states).all()
        return
    assert "'mine'" in message


@RELAXED
@given(data=st.data())
def test_a_damaged_conversion_is_made_anew(data):
    original = make_dataset()
    name = f"test/n{next(COUNTER)}-v0"
    dataset = mapped(original, name)
    file = data.draw(st.sampled_from(sorted(p.name for p in dataset.folder.iterdir())))
    content = (dataset.folder / file).read_bytes()
    kept = data.draw(st.integers(0, len(content) - 1))
    (dataset.folder / file).write_bytes(content[:kept])
    again = load_dataset(name, download=False, storage="memmap", progress_bar=False)
    assert again.fingerprint == original.fingerprint
    np.testing.assert_array_equal(again.states, original.states)


def test_conversion_happens_once_and_leaves_nothing_else(monkeypatch):
    dataset = mapped(make_dataset())
    before = {p.name: p.stat().st_mtime_ns for p in dataset.folder.iterdir()}
    monkeypatch.setattr(memmap, "write_arrays", None)
    again = load_dataset(dataset.id, download=False, storage="memmap")
    assert again.fingerprint == make_dataset().fingerprint
    assert {p.name: p.stat().st_mtime_ns for p in dataset.folder.iterdir()} == before
    assert sorted(p.name for p in dataset.folder.parent.iterdir()) == ["data", "memmap"]


def test_an_interrupted_conversion_leaves_nothing(monkeypatch):
    source = write_buffers(numbered_episodes((3, 2), (True, False)))
    folder = Path(get_dataset_path(source.id))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(memmap, "write_index", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_dataset(source, storage="memmap", progress_bar=False)
    assert [p.name for p in folder.iterdir()] == ["data"]
    check_numbered(
        load_dataset(source, storage="memmap", progress_bar=False), [(3, True), (2, False)]
    )


def test_changed_data_are_converted_anew():
    check_numbered(
        load_dataset(
            write_buffers(numbered_episodes((3,), (True,))), storage="memmap", progress_bar=False
        ),
        [(3, True)],
    )
    data = Path(get_dataset_path("test/numbered-v0")) / "data"
    other = write_buffers(numbered_episodes((4, 2), (True, False)), "test/other-v0")
    for file in Path(get_dataset_path(other.id), "data").iterdir():
        content = file.read_bytes().replace(b"test/other-v0", b"test/numbered-v0")
        (data / file.name).write_bytes(content if file.suffix == ".json" else file.read_bytes())
        os.utime(data / file.name)
    changed = load_dataset("test/numbered-v0", False, "memmap", progress_bar=False)
    check_numbered(changed, [(4, True), (2, False)])


def test_chosen_episodes_have_files_of_their_own():
    source = write_buffers(numbered_episodes((3, 2, 4), (True, False, True)))
    whole = load_dataset(source, storage="memmap", progress_bar=False)
    longer = source.filter_episodes(lambda episode: len(episode.rewards) > 2)
    chosen = load_dataset(longer, storage="memmap", progress_bar=False)
    assert (len(whole), len(chosen)) == (9, 7)
    assert chosen.folder != whole.folder
    assert chosen.fingerprint == load_dataset(longer).fingerprint


def test_an_invalid_dataset_is_not_converted():
    buffers = numbered_episodes((3, 2), (True, False))
    buffers[1].observations[1] = np.nan
    source = write_buffers(buffers)
    with pytest.raises(ValueError, match=r"states has NaN or infinite.*episode 1, step 1"):
        load_dataset(source, storage="memmap", progress_bar=False)
    assert [p.name for p in Path(get_dataset_path(source.id)).iterdir()] == ["data"]


@pytest.mark.parametrize(
    "of", [make_dataset, lambda: mapped(make_dataset()), lambda: copy.deepcopy(make_dataset())]
)
def test_nobody_writes_into_a_dataset(of):
    dataset = of()
    for name in ("states", "actions", "rewards", "terminations", "truncations", "episode_starts"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(dataset, name)[:] = 1
    assert dataset.fingerprint == make_dataset().fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Batches.of(dataset, torch.device("cpu"))


def test_arrays_are_copied():
    states, actions = np.zeros((3, 2), np.float32), np.zeros((2, 1), np.float32)
    rewards, ends = np.ones(2, np.float32), np.array([False, True])
    dataset = OfflineDataset.from_arrays(states, actions, rewards, ends)
    before = dataset.fingerprint
    for array in (states, actions, rewards, ends):
        array[:] = 1 - array
    assert copy.deepcopy(dataset).fingerprint == before
    assert dataset.rewards.tolist() == [1.0, 1.0]


def test_defaults_and_environments_of_arrays():
    dataset = OfflineDataset.from_arrays(np.zeros((3, 2)), np.zeros((2, 1)), [1, 2], [False, False])
    assert dataset.action_space == UNIT_BOX
    assert dataset.truncations.tolist() == [False, True]
    assert (dataset.env_spec, dataset.reference, dataset.folder) == (None, None, None)
