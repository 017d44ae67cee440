"""OfflineDataset: contiguous arrays of transitions in the order in which they happened."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import ArrayLike, NDArray

from qgpo.envs.data.chain import chained, check_columns, is_shift, shifted
from qgpo.envs.data.columns import Rounding, check_type, flags, numbers
from qgpo.envs.data.doubts import doubts, flag_doubts, link_doubts
from qgpo.envs.data.given import all_given, check_environment, check_space, hint, refuse_episodes
from qgpo.envs.data.jumps import jump_doubts
from qgpo.envs.tasks.actions import ActionScale, outside
from qgpo.envs.tasks.families import UNKNOWN
from qgpo.envs.tasks.observations import ObservationAdapter
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.tasks.spaces import check_spaces, same_box
from qgpo.envs.tasks.specs import check_spec
from qgpo.envs.tasks.window import Window
from qgpo.envs.tasks.wrappers import effective
from qgpo.envs.text import counted
from qgpo.fields import check_count

Array = NDArray[np.float32]

ARRAYS = ("states", "actions", "rewards", "terminations", "truncations")
REWARD_TUNINGS = ("none", "locomotion", "antmaze")
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
ROWS_PER_CHECK = 16384
"""rows that are checked at a time, so that memory-mapped data are never in memory as a whole"""


@dataclass(frozen=True, eq=False, repr=False)
class OfflineDataset:
    """N transitions in E episodes, in chronological order.

    `states` contains every observation once, so an episode of T steps has T + 1 rows. Transition i
    leads from `states[state_index[i]]` to the next row. S is the observation dimension, and A the
    action dimension.
    """

    id: str
    states: Array
    """(N + E, S) every observation, the last one of each episode included"""
    actions: Array
    """(N, A) as executed, in the environment's units"""
    rewards: Array
    """(N,) as given by the environment"""
    terminations: NDArray[np.bool_]
    """(N,) the task ended there: the bootstrap is cut. OGBench's trajectories go on behind it"""
    truncations: NDArray[np.bool_]
    """(N,) the episode was cut from outside: the bootstrap is kept"""
    episode_starts: NDArray[np.int64]
    """(E,) index of the first transition of each episode"""
    observation_space: spaces.Box
    action_space: spaces.Box
    adapter: ObservationAdapter | None = None
    """how Dict observations became the vectors in `states`; None where they were vectors"""
    env_spec: EnvSpec | None = None
    """the environment in which agents play"""
    reference: ReferenceScores | None = None
    details: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    """where the arrays are memory-mapped from, with `load_dataset(..., storage="memmap")`"""
    window: Window | None = None
    """how many observations and actions a row has; None for one of each"""

    def __post_init__(self) -> None:
        _check_types(self)
        if self.env_spec is not None:
            check_spec(self.env_spec, f"dataset {self.id!r}")
        self._lock()
        _check_shapes(self)
        if self.folder is None:  # mapped arrays were checked when they were written
            _check_values(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of copies and pickles, whose arrays are new."""
        self.__dict__.update(state)
        self._lock()

    def _lock(self) -> None:
        """Let nobody write through these arrays: fingerprint and returns are kept."""
        for name in (*ARRAYS, "episode_starts"):
            array = getattr(self, name)
            if isinstance(array, np.ndarray):  # else refused below
                locked = array.view()
                locked.flags.writeable = False
                object.__setattr__(self, name, locked)

    @classmethod
    def from_arrays(
        cls,
        observations: ArrayLike,
        actions: ArrayLike | None = None,
        rewards: ArrayLike | None = None,
        terminations: ArrayLike | None = None,
        truncations: ArrayLike | None = None,
        *,
        next_observations: ArrayLike | Literal["shift"] | None = None,
        observation_space: spaces.Box | None = None,
        action_space: spaces.Box | None = None,
        env_spec: EnvSpec | None = None,
        reference: ReferenceScores | None = None,
        id: str = "arrays",
    ) -> OfflineDataset:
        """Make a dataset from flat arrays of N transitions in chronological order.

        With `next_observations` (N, S), observations have shape (N, S). An episode ends at a
        termination or truncation. It is also truncated if a next observation differs from the
        observation in the next row. `next_observations="shift"` is for recordings without them:
        each is then the observation of the next row, the last step of a truncated episode is left
        out, and that of a terminated episode is kept. Without `next_observations`, observations
        have N + E rows, which include the final observation of every episode. By default
        observations are unbounded and actions lie in [-1, 1]. Actions, rewards and terminations
        are needed, too. Raises ValueError for wrong shapes and values and for an environment of
        Gymnasium's with other spaces, and TypeError for what is no array or space. Warns of columns
        that lose precision in float32, of rows that are out of order, and of flags and rewards that
        can hardly be meant. The arrays are copied.
        """
        of, rounding = f"dataset {id!r}", Rounding()
        actions, rewards, terminations = all_given(
            of, observations, actions=actions, rewards=rewards, terminations=terminations
        )
        states = _numbers(of, "observations", observations, 2, rounding)
        actions = _numbers(of, "actions", actions, 2, rounding)
        rewards = _numbers(of, "rewards", rewards, 1, rounding)
        n = len(rewards)
        terminations = _flags(of, "terminations", terminations, n)
        truncations = _flags(
            of, "truncations", np.zeros(n) if truncations is None else truncations, n
        )
        if n == 0:
            raise ValueError(f"dataset {id!r} is empty: at least one transition is needed")
        ends = terminations | truncations
        odd = list(flag_doubts(ends))
        ends[-1] = True
        columns = {"observations": states, "actions": actions, "rewards": rewards}
        shift = is_shift(of, next_observations)
        if next_observations is not None and not shift:
            given = _numbers(of, "next_observations", next_observations, 2, rounding)
            columns["next_observations"] = given
        finals = int(ends.sum()) if next_observations is None else 0
        check_columns(of, columns, n, finals)
        if not odd and (shift or next_observations is None):
            odd += jump_doubts(
                states, np.insert(ends, np.flatnonzero(ends), False) if finals else ends
            )
        if shift:
            columns, terminations, truncations = shifted(
                of, columns, terminations, truncations, ends
            )
            ends = terminations | truncations
        states = columns["observations"]
        if next_observations is not None:
            next_states = columns["next_observations"]
            odd += [] if odd else link_doubts(states, next_states, ends)
            states, ends = chained(states, next_states, ends)
        starts = np.flatnonzero(np.concatenate([[True], ends[:-1]])).astype(np.int64)
        sizes = {"observation_space": states.shape[1], "action_space": actions.shape[1]}
        if observation_space is None:
            observation_space = spaces.Box(-np.inf, np.inf, (states.shape[1],), np.float32)
        if action_space is None:
            action_space = spaces.Box(-1.0, 1.0, (actions.shape[1],), np.float32)
        check_space(of, "observation_space", observation_space, sizes)
        check_space(of, "action_space", action_space, sizes)
        observation_box, action_box = check_spaces(observation_space, action_space, of)
        made = cls(
            id=id,
            states=states,
            actions=columns["actions"],
            rewards=columns["rewards"],
            terminations=terminations,
            truncations=truncations | (ends & ~terminations),
            episode_starts=starts,
            observation_space=observation_box,
            action_space=action_box,
            env_spec=env_spec,
            reference=reference,
        )
        check_environment(of, env_spec, made.observation_space, made.action_space)
        odd += doubts(
            states,
            made.rewards,
            starts,
            terminations=terminations,
            truncations=truncations,
            doubted=bool(odd),
        )
        for text in (*rounding.faults(of), *(f"{of}: {text}" for text in odd)):
            warnings.warn(text, stacklevel=2)
        return made

    @classmethod
    def concatenate(
        cls, datasets: Sequence[OfflineDataset], id: str | None = None
    ) -> OfflineDataset:
        """Join several datasets with the same spaces, such as medium and expert, in memory.

        The environment and the reference scores are kept if they are the same in all datasets.
        Raises ValueError for an empty list or different spaces, and TypeError for other objects.
        """
        several = isinstance(datasets, Iterable) and not isinstance(datasets, str)
        datasets = list(datasets) if several else [datasets]  # type: ignore[list-item]
        odd = [one for one in datasets if not isinstance(one, OfflineDataset)]
        if odd or not several:
            what = (odd or datasets)[0]
            raise TypeError(
                f"concatenate() was given {what!r}, expected a list of OfflineDatasets, such as "
                "load_dataset returns"
            )
        if not datasets:
            raise ValueError("concatenate() was given no datasets, expected at least one")
        first = datasets[0]
        for other in datasets[1:]:
            if (
                other.observation_space.shape != first.observation_space.shape
                or not same_box(other.action_space, first.action_space)
                or other.adapter != first.adapter
                or other.window != first.window
            ):
                raise ValueError(
                    f"datasets {first.id!r} and {other.id!r} cannot be concatenated: observations "
                    f"{first.observation_space.shape} and {other.observation_space.shape}, actions "
                    f"{first.action_space} and {other.action_space}; expected the same"
                )
        joined: dict[str, Any] = {
            name: np.concatenate([np.asarray(getattr(d, name)) for d in datasets])
            for name in ARRAYS
        }
        specs = [d.env_spec for d in datasets]
        tasks = [
            (s.id, s.kwargs, s.max_episode_steps, effective(s.additional_wrappers)) if s else None
            for s in specs
        ]
        return cls(
            id="+".join(d.id for d in datasets) if id is None else id,
            **joined,
            episode_starts=episode_starts(np.concatenate([d.episode_lengths for d in datasets])),
            observation_space=first.observation_space,
            action_space=first.action_space,
            adapter=first.adapter,
            window=first.window,
            details={} if first.window is None else _readings(datasets),
            env_spec=specs[0] if all(task == tasks[0] for task in tasks) else None,
            reference=first.reference if len({d.reference for d in datasets}) == 1 else None,
        )

    def __repr__(self) -> str:
        returns = self.recorded_returns
        size = f"{len(self):,} transitions in {counted(len(self.first_readings), 'episode')}"
        spaces = f"observations {self.states.shape[1]}, actions {self.actions.shape[1]}"
        spaces += f" ({self.window})" if self.window is not None else ""
        spread = f"returns {returns.min():.4g} to {returns.max():.4g} (mean {returns.mean():.4g})"
        env = self.env_spec.id if self.env_spec is not None else "no environment named"
        what = f"{size} ({self.ends}), {spaces}, {spread}, {env}"
        return f"{type(self).__name__}({self.id!r}: {what})"

    def __len__(self) -> int:
        return len(self.rewards)

    def first(self, n: int) -> OfflineDataset:
        """The first n transitions, or all there are, without a copy; the last episode ends there.

        Of it the last step is truncated, unless the task ended there. ValueError for n below 1.
        """
        n = min(check_count("n", n), len(self))
        starts = self.episode_starts[self.episode_starts < n]
        truncations = self.truncations[:n].copy()
        truncations[-1] = not self.terminations[n - 1]
        rows = {name: getattr(self, name)[:n] for name in ("actions", "rewards", "terminations")}
        states = self.states[: n + len(starts)]
        return replace(self, states=states, truncations=truncations, episode_starts=starts, **rows)

    @property
    def n_episodes(self) -> int:
        """E."""
        return len(self.episode_starts)

    @property
    def episode_lengths(self) -> NDArray[np.int64]:
        """(E,) steps of each episode."""
        return np.diff(self.episode_starts, append=len(self))

    @property
    def ends(self) -> str:
        """How episodes end: "24 terminated, 36 truncated"."""
        last = (self.episode_starts + self.episode_lengths - 1)[self.first_readings]
        terminated = int(self.terminations[last].sum())
        truncated = int((self.truncations & ~self.terminations)[last].sum())
        neither = len(last) - terminated - truncated
        more = f", {neither:,} with neither flag" if neither else ""
        return f"{terminated:,} terminated, {truncated:,} truncated{more}"

    @cached_property
    def last_steps(self) -> NDArray[np.bool_]:
        """(N,) the last transition of each episode, whatever ended it."""
        last = np.zeros(len(self), dtype=np.bool_)
        last[np.cumsum(self.episode_lengths) - 1] = True
        return last

    @cached_property
    def state_index(self) -> NDArray[np.int64]:
        """(N,) the row of `states` from which each transition starts."""
        episodes = np.arange(self.n_episodes, dtype=np.int64)
        return np.arange(len(self), dtype=np.int64) + np.repeat(episodes, self.episode_lengths)

    @property
    def observations(self) -> Array:
        """(N, S)."""
        return self.states[self.state_index]

    @property
    def next_observations(self) -> Array:
        """(N, S)."""
        return self.states[self.state_index + 1]

    @cached_property
    def episode_returns(self) -> NDArray[np.float64]:
        """(E,) undiscounted sums of rewards."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.episode_starts)

    @cached_property
    def recorded_episodes(self) -> NDArray[np.int64]:
        """(E,) which recorded episode each one is: a window reads one from several of its steps."""
        if self.window is None:
            return np.arange(self.n_episodes)
        return np.cumsum(self.details["first_step"][: self.n_episodes] == 0) - 1

    @cached_property
    def first_readings(self) -> NDArray[np.int64]:
        """(R,) each recorded episode once."""
        return np.unique(self.recorded_episodes, return_index=True)[1]

    @property
    def recorded_returns(self) -> NDArray[np.float64]:
        """(R,) returns of whole recorded episodes; `episode_returns` unless there is a window."""
        returns = self.episode_returns if self.window is None else self.details["return"]
        return np.asarray(returns)[self.first_readings]

    @cached_property
    def action_scale(self) -> ActionScale:
        """What -1 and 1 mean to agents that learn from it; warns where the bounds are too wide."""
        return ActionScale.for_data(self.action_space, self.actions, f"dataset {self.id!r}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all arrays, which identifies the data."""
        return self._digest((*ARRAYS, "episode_starts"))

    @cached_property
    def trajectory_fingerprint(self) -> str:
        """SHA-256 over states, actions and where episodes start: all that behavior is learned from.

        It is the same for all tasks whose rewards label the same trajectories.
        """
        return self._digest(("states", "actions", "episode_starts"))

    def _digest(self, names: Iterable[str]) -> str:
        digest = hashlib.sha256()
        for name in names:
            array = getattr(self, name)
            digest.update(str((array.dtype, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def tuned_rewards(self, rule: str, rewards: Array | None = None) -> Array:
        """Rewards as the critic sees them, (N,): these data's, or others of the same task.

        `none`; `locomotion`: times 1000 / (largest - smallest episode return);
        `antmaze`: minus 1 (both IQL's, arXiv 2110.06169, appendix B).
        """
        rewards = self.rewards if rewards is None else rewards
        if rule == "none":
            return rewards
        if rule == "antmaze":
            return rewards - np.float32(1.0)
        if rule == "locomotion":
            returns = self.recorded_returns
            spread = float(returns.max() - returns.min())
            largest = float(np.abs(returns).max())
            if spread <= 1e-6 * min(1.0, largest):  # the same, up to rounding
                return rewards
            factor = 1000.0 / spread
            if SMALLEST < factor < LARGEST:
                return rewards * np.float32(factor)
            return (rewards * np.float64(factor)).astype(np.float32)
        raise ValueError(f"reward_tuning={rule!r}, expected one of {list(REWARD_TUNINGS)}")

    def normalized_score(self, returns: float | NDArray[np.float64]) -> NDArray[np.float64] | None:
        """100 (return - min) / (max - min), or None without reference scores."""
        return None if self.reference is None else self.reference.normalize(returns)


def as_recorded(dataset: OfflineDataset) -> str | None:
    """How stored data of no known family are read; None of others, and of arrays."""
    if dataset.details.get("family") != UNKNOWN.name:
        return None
    vector = (
        "" if dataset.adapter is None else f"observations are the vector of {dataset.adapter}; "
    )
    scores = "" if dataset.reference is not None else ", scores are raw returns"
    return f"none known: {vector}rewards and episodes as recorded{scores}"


def writeable(array: NDArray[Any]) -> NDArray[Any]:
    """The array for torch, which warns of those that it may not write into; nothing writes there.

    A view of the dataset's memory, or a copy where that may only be read.
    """
    view = array.view()
    try:
        view.flags.writeable = True
    except ValueError:
        return array.copy()
    return view


def episode_starts(lengths: ArrayLike) -> NDArray[np.int64]:
    """(E,) index of the first transition of each episode, from the episodes' lengths."""
    return np.cumsum(np.append(0, lengths), dtype=np.int64)[:-1]


def _readings(datasets: Sequence[OfflineDataset]) -> dict[str, Any]:
    """The details of several datasets with a window that say which episodes are recorded ones."""
    names = ("first_step", "return")
    return {
        name: np.concatenate([d.details[name][: d.n_episodes] for d in datasets]) for name in names
    }


def _numbers(of: str, name: str, values: ArrayLike, ndim: int, rounding: Rounding) -> Array:
    """The values as contiguous float32 with `ndim` dimensions; `rounding` gets what they lose."""
    refuse_episodes(of, name, values, ndim)
    array = numbers(of, name, values)
    if array.ndim != ndim:
        expected = "(N,)" if ndim == 1 else "(N, dimensions)"
        way_out = hint(name, values, ndim)
        raise ValueError(f"{of}: {name} has shape {array.shape}, expected {expected}{way_out}")
    rounding.add(name, values, array)
    return array if array.flags.owndata and array is not values else array.copy()


def _flags(of: str, name: str, values: ArrayLike, n: int) -> NDArray[np.bool_]:
    """The values as (n,) flags."""
    refuse_episodes(of, name, values, 1)
    return flags(of, name, values, (n,), hint(name, values, 1))


def _check_shape(of: str, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"dataset {of!r}: {name} has shape {array.shape}, expected {shape}")


def _check_types(data: OfflineDataset) -> None:
    """Raise TypeError for fields that an agent could not save."""
    expected: dict[str, tuple[type, ...]] = {
        "id": (str,),
        "adapter": (ObservationAdapter, type(None)),
        "env_spec": (EnvSpec, type(None)),
        "reference": (ReferenceScores, type(None)),
        "details": (dict,),
        "window": (Window, type(None)),
    }
    for name, types in expected.items():
        value = getattr(data, name)
        if not isinstance(value, types):
            known = " or ".join("None" if one is type(None) else one.__name__ for one in types)
            example = ": gymnasium.spec('Hopper-v5')" if name == "env_spec" else ""
            raise TypeError(
                f"dataset {data.id!r}: {name}={value!r} is a {type(value).__name__}, expected "
                f"{known}{example}"
            )


def _check_shapes(data: OfflineDataset) -> None:
    n, e = len(data.rewards), len(data.episode_starts)
    if n == 0:
        raise ValueError(f"dataset {data.id!r} is empty: at least one transition is needed")
    expected = {
        "states": (n + e, *data.observation_space.shape),
        "actions": (n, *data.action_space.shape),
        "terminations": (n,),
        "truncations": (n,),
    }
    for name, shape in expected.items():
        _check_shape(data.id, name, getattr(data, name), shape)
    for name in ARRAYS:
        dtype = getattr(data, name).dtype
        check_type(f"dataset {data.id!r}", name, dtype)
        if name in ("terminations", "truncations") and dtype != np.bool_:
            raise ValueError(f"dataset {data.id!r}: {name} has type {dtype}, expected bool")
    starts = data.episode_starts
    if e == 0 or starts[0] != 0 or np.any(np.diff(starts) <= 0) or starts[-1] >= n:
        raise ValueError(
            f"dataset {data.id!r}: episode_starts must increase strictly from 0, got {starts[:5]}"
        )


def _check_values(data: OfflineDataset) -> None:
    starts = data.episode_starts
    state_starts = starts + np.arange(len(starts))
    for name, rows in (("states", state_starts), ("actions", starts), ("rewards", starts)):
        row = next(_rows(lambda chunk: ~np.isfinite(chunk), getattr(data, name)), None)
        if row is not None:
            episode = int(np.searchsorted(rows, row, side="right")) - 1
            raise ValueError(
                f"dataset {data.id!r}: {name} has NaN or infinite values, first in episode "
                f"{episode}, step {row - int(rows[episode])}; remove or repair that episode "
                "(minari's dataset.filter_episodes drops it)"
            )
    rows_outside = _rows(lambda chunk: outside(chunk, data.action_space), data.actions)
    first = next(rows_outside, None)
    if first is not None:
        low, high = data.action_space.low, data.action_space.high
        count = 1 + sum(1 for _ in rows_outside)
        raise ValueError(
            f"dataset {data.id!r}: {count} actions lie outside the action space "
            f"[{low.min()}, {high.max()}], first {data.actions[first]} at transition {first}; "
            "record the actions as executed, or correct the dataset's action space (of arrays: "
            "from_arrays(..., action_space=gymnasium.spaces.Box(low, high, "
            f"{data.action_space.shape})))"
        )


def _rows(wrong: Callable[[Array], NDArray[np.bool_]], array: Array) -> Iterator[int]:
    """The rows with a wrong value, read chunk by chunk."""
    for begin in range(0, len(array), ROWS_PER_CHECK):
        chunk = array[begin : begin + ROWS_PER_CHECK]
        rows = wrong(chunk).reshape(len(chunk), -1).any(axis=1)
        yield from (begin + np.flatnonzero(rows)).tolist()
