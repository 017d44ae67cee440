"""A graph of ONNX under construction: nodes, stored numbers, and values with their shapes.

A value whose rows (or other parts) are all the same may be stored once: its axis is then thin, and
operators that work element by element stretch it by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qgpo.agents.core.export.recording import Constant, ExportError, Shape, Size

OPSET = 20
IR_VERSION = 9
"""those of ONNX 1.15 (2023), which ONNX Runtime reads from 1.17 on"""
DTYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.bool: TensorProto.BOOL,
}


@dataclass(frozen=True)
class Value:
    """What a step gives: the name in the graph, the shape, and the axes that are stored thin."""

    name: str
    shape: Shape
    thin: frozenset[int] = frozenset()
    dtype: torch.dtype | None = torch.float32
    """None of a plain number, which takes the type of what it meets"""
    number: float | None = None
    """of a plain number"""

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass
class Graph:
    """Nodes in their order; the same node is made once."""

    batch_of: str
    """the input whose first axis is the batch's"""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: dict[str, onnx.TensorProto] = field(default_factory=dict)
    made: dict[Any, list[str]] = field(default_factory=dict)

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """Names of the outputs of a node of that kind."""
        key = (kind, inputs, outputs, repr(sorted(attributes.items())))
        if key not in self.made:
            names = [f"{kind.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
            self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
            self.made[key] = names
        return self.made[key]

    def one(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The name of the only output of a node."""
        return self.node(kind, *inputs, **attributes)[0]

    def array(self, numbers: NDArray[Any]) -> str:
        """Stored numbers, the same ones once."""
        numbers = np.asarray(numbers, order="C")
        key = (numbers.dtype.str, numbers.shape, numbers.tobytes())
        if key not in self.made:
            name = f"stored_{len(self.stored)}"
            self.stored[name] = numpy_helper.from_array(numbers, name)
            self.made[key] = [name]
        return self.made[key][0]

    def integers(self, *numbers: int) -> str:
        """A list of whole numbers, as axes and sizes are given."""
        return self.array(np.array(numbers, np.int64))

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """The value in that type."""
        if value.number is not None:
            stored = self.array(torch.tensor(value.number, dtype=dtype).numpy())
            return Value(stored, (), dtype=dtype)
        if value.dtype == dtype:
            return value
        name = self.one("Cast", value.name, to=DTYPES[dtype])
        return Value(name, value.shape, value.thin, dtype)

    def constant(self, constant: Constant) -> Value:
        """A stored tensor, thin along the axes of the batch."""
        value = constant.value
        thin = {i for i, size in enumerate(constant.shape) if isinstance(size, Size)}
        for axis in range(value.dim()):  # a copy of one row in many is stored once
            if axis not in thin and value.shape[axis] > 1 and value.stride(axis) == 0:
                value = value.narrow(axis, 0, 1)
                thin.add(axis)
        name = self.array(value.numpy())
        return Value(name, constant.shape, frozenset(thin), constant.value.dtype)

    def thick(self, value: Value, keep: Sequence[int] = ()) -> Value:
        """The value with every thin axis, but those to keep, at its full size."""
        axes = sorted(value.thin - set(keep))
        if not axes:
            return value
        repeats = [self.integers(1)] * value.rank
        for axis in axes:
            size = value.shape[axis]
            repeats[axis] = self.batch() if isinstance(size, Size) else self.integers(size)
        whole = self.one("Concat", *repeats, axis=0) if len(repeats) > 1 else repeats[0]
        name = self.one("Tile", value.name, whole)
        return Value(name, value.shape, value.thin - set(axes), value.dtype)

    def batch(self) -> str:
        """The size of the batch, as a list of one number."""
        return self.one("Shape", self.batch_of, start=0, end=1)

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        about: Mapping[str, str],
    ) -> onnx.ModelProto:
        """The whole as a model whose metadata are `about`. Raises ExportError where it is none."""
        graph = helper.make_graph(
            self.nodes, "policy", list(inputs), list(outputs), list(self.stored.values())
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name="qgpo")
        model.ir_version = IR_VERSION
        helper.set_model_props(model, dict(about))
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"the graph is no model of ONNX: {error}") from error
        return model
