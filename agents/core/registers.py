"""What a checkpoint may put into the registers of a training: as its configuration builds them.

Everything is checked before it is loaded. An optimizer writes through its tensors, so one of
another shape would change memory that is not its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from qgpo.agents.core.parsing import CheckpointError, brief
from qgpo.agents.core.training import ONLINE, UPDATES, Training

CPU_STATE, CUDA_STATE = len(torch.Generator().get_state()), 16
"""bytes of a generator's state"""
WORDS = 624
"""of a Mersenne Twister"""
CPU_LAYOUT = np.dtype(
    [
        ("seed", "u8"),
        ("left", "i4"),
        ("seeded", "i4"),
        ("next", "u8"),
        ("words", "u8", WORDS),
        ("normals", "f8", 3),
        ("has_normal", "i4"),
        ("padding", "i4"),
        ("float_normal", "f4"),
        ("has_float_normal", "u1"),
        ("end", "u1", 3),
    ]
)
"""of a CPU generator's state: CPUGeneratorImplState in torch's ATen/CPUGeneratorImpl.cpp"""
LARGEST_NORMAL = 10.0
"""beyond what a generator draws from 53 random bits, 8.6"""
MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"
"""the state of a parameter in Adam, the only optimizer of the package"""
HOW_IT_IS_COMPUTED = ("fused", "foreach", "capturable", "differentiable")
"""settings of an optimizer that follow from the device, whatever a file says"""


class Table(NamedTuple):
    """Numbers in float32 that stages hand on."""

    shape: tuple[int | None, ...]
    """None: any length"""
    low: float = -math.inf
    high: float = math.inf
    needed: bool = False


class GeneratorState(NamedTuple):
    """The state of a generator, as bytes."""

    needed: bool = False
    may_be_empty: bool = False


Kinds: TypeAlias = dict[str, Table | GeneratorState]


# Modules ------------------------------------------------------------------------------------


def check_modules(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless names, shapes and types agree and all numbers are finite."""
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    wrong = [
        f"{name} {_kind(found[name])} instead of {_kind(value)}"
        for name, value in expected.items()
        if name in found and not _alike(found[name], value)
    ]
    if missing or surplus or wrong:
        raise CheckpointError(
            f"it does not fit its configuration: missing tensors {brief(missing)}, unknown "
            f"{brief(surplus)}, of wrong shape {brief(wrong)}"
        )
    for name, value in found.items():
        _check_finite(name, value)


def _alike(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype


def _kind(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    shape, dtype = tuple(tensor.shape), tensor.dtype
    return str(shape) if dtype == torch.float32 else f"{shape} {str(dtype).removeprefix('torch.')}"


def is_finite(value: Tensor) -> bool:
    """Whether all numbers are finite, without a table of that as large as they are."""
    if not value.is_floating_point() or value.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(value))).all())  # NaN is both ends then


def _check_finite(name: str, value: Tensor) -> None:
    if not is_finite(value):
        raise CheckpointError(f"{brief(name)} has NaN or infinite values")


# Optimizers ---------------------------------------------------------------------------------


def optimizer_states(
    training: Training, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What every optimizer's `state_dict` was. Raises CheckpointError.

    The settings that the configuration decides are those of the optimizer that it builds; the
    learning rate, which every step sets, is at most the configuration's.
    """
    groups = header["optimizers"]
    rates = [rate for name, rate in header["config"].items() if name.endswith("learning_rate")]
    if set(groups) != set(training.optimizers):
        raise CheckpointError(
            f"its optimizers are {brief(sorted(groups))}, not {sorted(training.optimizers)}"
        )
    left = dict(tensors)
    states = {}
    for name, optimizer in training.optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        states[name] = {
            "state": _state(name, parameters, left),
            "param_groups": _groups(name, training.built_groups[name], groups[name], rates),
        }
    if left:
        raise CheckpointError(f"tensors of optimizers that it does not have: {brief(sorted(left))}")
    return states


def check_state_of(name: str, optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Raise CheckpointError unless it is a `state_dict` of that optimizer that a file could hold.

    Its learning rates may be any: every step sets them.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        found = _as_lists(state["param_groups"])
        _groups(name, groups, found, [math.inf])
        indices = [index for group in found for index in group["params"]]
        left = {
            f"{name}/{indices.index(index)}/{key}": value
            for index, entry in state["state"].items()
            for key, value in entry.items()
        }
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"the {name} optimizer has another kind of state") from error
    _state(name, parameters, left)
    if left:
        raise CheckpointError(
            f"tensors that the {name} optimizer does not have: {brief(sorted(left))}"
        )


def _as_lists(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings as JSON gives them back."""
    return [{k: list(v) if isinstance(v, tuple) else v for k, v in g.items()} for g in groups]


def _state(
    name: str, parameters: Iterable[Tensor], left: dict[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """The tensors of all parameters, taken out of those that are left; or none for all."""
    if not any(key.startswith(f"{name}/") for key in left):
        return {}
    state: dict[int, dict[str, Tensor]] = {}
    for index, parameter in enumerate(parameters):
        entry = state[index] = {}
        for field in (STEP, *MOMENTS):
            key = f"{name}/{index}/{field}"
            if key not in left:
                raise CheckpointError(f"tensors of the {name} optimizer are missing: {key}")
            value = entry[field] = left.pop(key)
            like = parameter if field in MOMENTS else torch.zeros(())
            if not isinstance(value, Tensor) or not _alike(value, like):
                raise CheckpointError(f"{key} is {_kind(value)}, expected {_kind(like)}")
            _check_finite(key, value)
            if field != "exp_avg" and bool((value < 0.0).any()):
                raise CheckpointError(f"{key} has negative values")
    return state


def _groups(
    name: str, built: list[dict[str, Any]], found: Any, rates: list[float]
) -> list[dict[str, Any]]:
    """The settings as they are built, with the learning rates of the file."""
    if not isinstance(found, list) or len(found) != len(built):
        raise CheckpointError(f"the {name} optimizer has other groups of parameters")
    groups = []
    for ours, theirs in zip(built, found, strict=True):
        # settings of another version of torch, which are not set
        unknown = {key for key in set(theirs) - set(ours) if theirs[key] not in (False, None)}
        if unknown or not {"lr", "params"} <= set(theirs):
            raise CheckpointError(f"the {name} optimizer has settings {brief(sorted(theirs))}")
        rate, most = theirs["lr"], max(ours["lr"], *rates)
        if type(rate) not in (int, float) or not (0.0 <= rate <= most and math.isfinite(rate)):
            raise CheckpointError(
                f"the {name} optimizer has lr={brief(rate)}, expected at most {most}"
            )
        for key in set(theirs) & set(ours) - {"lr"}:
            expected = list(ours[key]) if isinstance(ours[key], tuple) else ours[key]
            free = key in HOW_IT_IS_COMPUTED and isinstance(theirs[key], bool | None)
            if repr(theirs[key]) != repr(expected) and not free:
                raise CheckpointError(
                    f"the {name} optimizer has {key}={brief(theirs[key])}, expected {expected}"
                )
        groups.append({**ours, "lr": rate})
    return groups


# Counters -----------------------------------------------------------------------------------


def check_counters(
    training: Training, header: Mapping[str, Any], states: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise CheckpointError where steps are more than the configuration has, or do not add up.

    A stage under way needs the state of its optimizer.
    """
    progress, config = dict(header["progress"]), header["config"]
    online = _taken_online(training, progress)
    if set(progress) != set(training.stages):
        raise CheckpointError(f"its stages are {brief(progress)}, not {training.stages}")
    for stage, done in progress.items():
        most = _most_steps(stage, config)
        if not 0 <= done <= most:
            raise CheckpointError(f"its stage {stage!r} has {done} steps done of {most}")
        if 0 < done < most and stage in states and not states[stage]["state"]:
            raise CheckpointError(f"tensors of the {stage} optimizer are missing")
    one = len(training.stages) == 1
    counted = sum(n for stage, n in progress.items() if one or stage in training.optimizers)
    counted = counted if online is None else online
    if header["num_timesteps"] != counted:
        raise CheckpointError(
            f"it has num_timesteps={header['num_timesteps']}, its stages have {counted}"
        )
    own = (*training.stages, *([] if online is None else [ONLINE]))
    if header["stage"] not in (None, *own):
        raise CheckpointError(
            f"its stage is {brief(header['stage'])}, expected one of {training.stages}"
        )


def _taken_online(training: Training, progress: dict[str, Any]) -> int | None:
    """Environment steps after all stages, taken out of the progress; None where there are none.

    They and the updates are there together.
    """
    if ONLINE in training.stages or not {ONLINE, UPDATES} <= set(progress):
        return None
    del progress[UPDATES]
    steps: int = progress.pop(ONLINE)
    return steps


def _most_steps(stage: str, config: Mapping[str, Any]) -> float:
    """A stage's steps by the configuration; the chunks of a support follow from the data."""
    most = config.get(f"{stage}_steps", config.get("steps", math.inf))
    return most if isinstance(most, int) else math.inf


# Tables -------------------------------------------------------------------------------------


def check_tables(tables: Mapping[str, Tensor], kinds: Kinds) -> None:
    """Raise CheckpointError unless the tables are of these kinds."""
    unknown = sorted(set(tables) - set(kinds))
    missing = sorted(name for name, kind in kinds.items() if kind.needed and name not in tables)
    if unknown or missing:
        raise CheckpointError(f"tables are missing {missing} or unknown {brief(unknown)}")
    for name, table in tables.items():
        kind = kinds[name]
        if isinstance(kind, GeneratorState):
            _check_state(name, table, kind)
        else:
            _check_table(name, table, kind)


def _check_table(name: str, table: Tensor, kind: Table) -> None:
    fits = len(table.shape) == len(kind.shape) and all(
        wanted in (None, found) for found, wanted in zip(table.shape, kind.shape, strict=True)
    )
    if not fits or table.dtype != torch.float32:
        raise CheckpointError(f"table {name!r} is {_kind(table)}, expected {kind.shape}")
    _check_finite(f"table {name!r}", table)
    if table.numel() and not kind.low <= float(table.min()) <= float(table.max()) <= kind.high:
        raise CheckpointError(f"table {name!r} has values outside [{kind.low}, {kind.high}]")


def _check_state(name: str, state: Tensor, kind: GeneratorState) -> None:
    """A state of a CPU's generator is looked through, then tried; a GPU's is a seed and a place."""
    lengths = (CPU_STATE, CUDA_STATE, *([0] if kind.may_be_empty else []))
    if state.dtype != torch.uint8 or state.dim() != 1 or len(state) not in lengths:
        raise CheckpointError(f"{name!r} is {_kind(state)}, which is not a generator state")
    if len(state) != CPU_STATE:
        return
    if not _is_written_by_torch(state):
        raise CheckpointError(f"{name!r} is not a generator state")
    generator = torch.Generator()
    generator.set_state(state)
    same = torch.equal(generator.get_state(), state)
    uniform = torch.rand(8, generator=generator)
    if not same or bool((uniform == uniform[0]).all()):
        raise CheckpointError(f"{name!r} is not a generator state")


def _is_written_by_torch(state: Tensor) -> bool:
    """Whether a generator may read on from this state, and stays within its words.

    `left` counts down to 0, where the words are made anew; torch does not compare it with `next`,
    the word that is read, and reads behind the words where they do not add up.
    """
    (fields,) = np.frombuffer(state.numpy().tobytes(), CPU_LAYOUT)
    left, following = int(fields["left"]), int(fields["next"])
    is_fresh = (left, following) == (1, 0)
    in_words = 1 <= left <= WORDS and left + following == WORDS + 1
    flags = fields["seeded"] == 1 and fields["has_normal"] in (0, 1)
    normals = np.array([*fields["normals"], fields["float_normal"]])
    small = bool((np.abs(normals) <= LARGEST_NORMAL).all())  # False for NaN
    whole = bool((fields["words"] < 2**32).all()) and fields["has_float_normal"] in (0, 1)
    return bool((is_fresh or in_words) and flags and small and whole)
