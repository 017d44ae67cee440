"""`agent.export_onnx(path)`: what acts, as a file that ONNX Runtime runs without PyTorch.

The file holds everything between an observation and an action of the environment's space:
normalisation, all steps of the solver with the gradients that guide it, the choice among
candidates, the scale of the actions. Noise and guidance scale are inputs.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from torch import Tensor

from qgpo.agents.core.acting import Acts, GivenNoise, Normal
from qgpo.agents.core.export.recording import ExportError as ExportError
from qgpo.agents.core.export.recording import record
from qgpo.agents.core.header import space_to_json
from qgpo.agents.core.process import usual_torch
from qgpo.agents.core.provenance import versions
from qgpo.envs.tasks.actions import ActionScale
from qgpo.envs.tasks.window import Window
from qgpo.fields import check_flag
from qgpo.files import check_writable, write_whole

if TYPE_CHECKING:
    import onnx

    from qgpo.agents.core.export.graph import Graph, Value

OBSERVATION, NOISE, SCALE, ACTION = "observation", "noise", "guidance_scale", "action"
"""the inputs and the output by name"""
FORMAT = 1
COMPARED = (1, 3, 60)
"""sizes of the batches on which a file is compared with its agent"""
TOLERANCE = 1e-4
"""of an action in [-1, 1], there"""
OTHER_CHOICES = 0.05
"""share of the actions that may differ: of two candidates that are nearly as good, another one"""
Inputs = dict[str, NDArray[np.float32]]


class Exported(Acts, Protocol):
    """What can be exported: an agent or an ensemble."""

    dataset_id: str | None
    env_spec: EnvSpec | None

    @property
    def is_trained(self) -> bool:
        """Whether training has come to its end."""

    def acting_on(self, noise: Normal | None, guidance_scale: Tensor | None = None) -> Self:
        """A copy that acts on that noise and scale."""

    def describe_policy(self) -> dict[str, Any]:
        """Names and configurations, for JSON."""


@usual_torch()
def export_onnx(
    agent: Exported, path: str | Path, deterministic: bool = True, overwrite: bool = False
) -> Path:
    """Write the policy as one ONNX file; returns its path, which ends in .onnx.

    Inputs are `observation` (B, S) in float32, `noise` (B, K), standard normal, where the actions
    are sampled (not `deterministic`), and for guided agents `guidance_scale` (), which may be left
    away (ensembles whose members differ: one for each). The output is `action` (B, A) in the
    action space. B is free. Metadata say what is inside. The file is written whole or not at all,
    and only after ONNX Runtime has acted like the agent.

    Raises ModuleNotFoundError without the extra `onnx`, RuntimeError before training has ended,
    ValueError for a path that is no file's or exists (unless `overwrite`), OSError where it cannot
    be written, ExportError for a policy that no file can express.
    """
    deterministic = check_flag("deterministic", deterministic)
    target = check_target(path, check_flag("overwrite", overwrite))
    if agent.observation_space is None or agent.action_scale is None or not agent.is_trained:
        raise RuntimeError(
            f"this {agent.name} is not trained to the end, and so cannot be exported: call "
            "learn(dataset), or load a file"
        )
    check_installed()
    try:
        model = to_model(agent, deterministic)
    except ExportError as error:
        raise ExportError(f"this {agent.name} cannot be exported: {error}") from error
    content = model.SerializeToString()
    compare(agent, content, deterministic)
    write_whole(target, content)
    return target


def check_target(
    path: str | Path, overwrite: bool, way_out: str = "replace it with overwrite=True"
) -> Path:
    """The file to write. Raises TypeError, ValueError or OSError where it is none."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is a {type(path).__name__}, expected a path")
    target = Path(path)
    if not target.name:
        raise ValueError(f"path={str(path)!r} names no file, expected one such as 'policy.onnx'")
    if target.is_dir():
        raise ValueError(f"{target} is a folder, expected a file name such as 'policy.onnx'")
    if target.suffix != ".onnx":
        target = target.with_name(target.name + ".onnx")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists: choose another name, or {way_out}")
    check_writable(target)
    return target


def check_installed() -> None:
    """Raise ModuleNotFoundError, which says what to install, without the extra."""
    try:
        importlib.import_module("onnx")
        importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"exporting needs {error.name}, of the extra 'onnx': pip install 'qgpo[onnx]'",
            name=error.name,
        ) from error


def to_model(agent: Exported, deterministic: bool) -> onnx.ModelProto:
    """The policy as an ONNX model."""
    from onnx import TensorProto, helper

    from qgpo.agents.core.export.graph import Graph
    from qgpo.agents.core.export.operators import Translation

    assert agent.observation_space is not None
    assert agent.action_scale is not None
    scale = scale_of(agent)
    numbers = noise_numbers(agent, deterministic)
    width = agent.observation_space.shape[0]

    def inputs(batch: int) -> dict[str, Tensor]:
        drawn = {OBSERVATION: torch.randn(batch, width), NOISE: torch.randn(batch, numbers)}
        given = {**drawn, **({} if scale is None else {SCALE: torch.tensor(scale.tolist())})}
        if not numbers:
            del given[NOISE]
        return {name: tensor.to(agent.device) for name, tensor in given.items()}

    def act(**given: Tensor) -> Tensor:
        return act_on(agent, given, deterministic)

    steps = record(inputs, act)
    if scale is not None and steps.inputs[SCALE] not in steps.read:
        scale = None  # nothing is guided
    graph = Graph(OBSERVATION)
    scaled = Translation(steps, graph).run(steps)
    action = to_space(graph, scaled, agent.action_scale)
    graph.nodes.append(helper.make_node("Identity", [action], [ACTION]))

    batch, kind = "batch", TensorProto.FLOAT
    values = [helper.make_tensor_value_info(OBSERVATION, kind, [batch, width])]
    if numbers:
        values.append(helper.make_tensor_value_info(NOISE, kind, [batch, numbers]))
    if scale is not None:  # an input that has a value needs none
        values.append(helper.make_tensor_value_info(SCALE, kind, scale.shape))
        graph.stored[SCALE] = helper.make_tensor(SCALE, kind, scale.shape, scale.flatten())
    space = agent.action_scale.space
    out = helper.np_dtype_to_tensor_dtype(np.dtype(space.dtype or np.float32))
    output = helper.make_tensor_value_info(ACTION, out, [batch, *space.shape])
    return graph.model(values, [output], metadata(agent, deterministic, numbers, scale))


def act_on(agent: Exported, given: Mapping[str, Tensor], deterministic: bool) -> Tensor:
    """Actions in [-1, 1] for those inputs, (B, A)."""
    noise = GivenNoise(given[NOISE]) if NOISE in given else None
    actor = agent.acting_on(noise, given.get(SCALE))
    return actor.act(given[OBSERVATION], deterministic)


def scale_of(agent: Any) -> NDArray[np.float32] | None:
    """The guidance scale, or one for each member of an ensemble; None without."""
    found = getattr(agent, SCALE, None)  # an ensemble has one where all its members have
    return None if found is None else np.asarray(found, np.float32)


def noise_numbers(agent: Exported, deterministic: bool) -> int:
    """K, how many standard normal numbers acting takes for each observation."""
    assert agent.observation_space is not None
    counted: list[int] = []

    def count(*shape: int) -> Tensor:
        counted.append(math.prod(shape))
        return torch.zeros(shape, device=agent.device)

    observations = torch.zeros(1, agent.observation_space.shape[0], device=agent.device)
    scale = scale_of(agent)
    given = None if scale is None else torch.tensor(scale.tolist(), device=agent.device)
    agent.acting_on(count, given).act(observations, deterministic)
    return sum(counted)


def to_space(graph: Graph, scaled: Value, scale: ActionScale) -> str:
    """`ActionScale.to_space` of actions in [-1, 1], as nodes of the graph."""
    from onnx import helper

    def both(kind: str, first: str, second: NDArray[Any]) -> str:
        return graph.one(kind, first, graph.array(second))

    space, low, high = scale.space, scale.low, scale.high
    one, half = np.array(1.0, np.float32), np.array(0.5, np.float32)
    share = both("Mul", both("Add", scaled.name, one), half)
    if low.dtype != np.float32:
        share = graph.one("Cast", share, to=helper.np_dtype_to_tensor_dtype(low.dtype))
    with np.errstate(over="ignore"):
        width = high - low
    if np.isfinite(width).all():
        action = graph.one("Add", both("Mul", share, width), graph.array(low))
    else:
        rest = graph.one("Sub", graph.array(np.array(1.0, low.dtype)), share)
        action = graph.one("Add", both("Mul", rest, low), both("Mul", share, high))
    bounds = space.low.astype(low.dtype), space.high.astype(low.dtype)
    action = both("Min", both("Max", action, bounds[0]), bounds[1])
    dtype = np.dtype(space.dtype or np.float32)
    if dtype == low.dtype:
        return action
    action = graph.one("Cast", action, to=helper.np_dtype_to_tensor_dtype(dtype))
    if dtype != np.float16:
        return action
    return both("Min", both("Max", action, space.low), space.high)  # rounding passed a bound


def metadata(
    agent: Exported, deterministic: bool, numbers: int, scale: NDArray[np.float32] | None
) -> dict[str, str]:
    """What the file says of itself: texts, and JSON where they have parts."""
    assert agent.observation_space is not None
    assert agent.action_scale is not None
    adapter = agent.adapter.to_json() if agent.adapter else None
    about: dict[str, Any] = {
        "format": FORMAT,
        "agent": agent.name,
        "policy": agent.describe_policy(),
        "deterministic": deterministic,
        "noise": numbers,
        "guidance_scale": None if scale is None else scale.tolist(),
        "observation_space": space_to_json(agent.observation_space),
        "observation_adapter": adapter,
        "action_space": space_to_json(agent.action_scale.space),
        "window": (agent.window or Window()).to_json(),
        "dataset": agent.dataset_id,
        "environment": agent.env_spec.id if agent.env_spec else None,
        "versions": versions(),
    }
    return {name: x if isinstance(x, str) else json.dumps(x) for name, x in about.items()}


# The comparison ---------------------------------------------------------------------------


def compare(agent: Exported, content: bytes, deterministic: bool) -> float:
    """The largest difference of ONNX Runtime from PyTorch, of actions in [-1, 1].

    Observations are standard normal in the agent's own unit. Raises ExportError where more than a
    few differ by more than TOLERANCE.
    """
    session = open_session(content)
    scale = agent.action_scale
    assert scale is not None
    generator = np.random.default_rng(0)
    half = np.maximum(0.5 * (scale.high.astype(np.float64) - scale.low), 1e-30)
    found = []
    for batch in COMPARED:
        inputs = make_inputs(agent, session, batch, generator)
        given = {name: torch.as_tensor(x, device=agent.device) for name, x in inputs.items()}
        expected = scale.to_space(act_on(agent, given, deterministic).detach().cpu().numpy())
        (action,) = session.run(None, inputs)
        difference = np.abs(action.astype(np.float64) - expected) / half
        found.append(difference.max(axis=-1))
    largest = np.concatenate(found)
    wrong = ~(largest <= TOLERANCE)
    if wrong.mean() > OTHER_CHOICES:
        raise ExportError(
            f"the file would not act like this {agent.name}: of {len(wrong)} actions "
            f"{int(wrong.sum())} differ, by up to {largest.max():.2g} of half their range"
        )
    return float(largest.max())


def open_session(content: bytes | str, threads: int = 1) -> Any:
    """ONNX Runtime on the CPU, which warns of nothing."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def make_inputs(agent: Any, session: Any, batch: int, generator: np.random.Generator) -> Inputs:
    """Random inputs: observations as in the agent's data, noise, scales around its own."""
    inputs: Inputs = {}
    for entry in session.get_inputs():
        shape = [batch if isinstance(size, str) else size for size in entry.shape]
        drawn = generator.normal(size=shape).astype(np.float32)
        inputs[entry.name] = np.asarray(drawn, np.float32)
    members = getattr(agent, "members", (agent,))
    modules = getattr(members[0], "networks", {})
    if "normalizer" in modules:
        mean, std = (getattr(modules["normalizer"], x).cpu().numpy() for x in ("mean", "std"))
        inputs[OBSERVATION] = (mean + std * inputs[OBSERVATION]).astype(np.float32)
    return inputs
