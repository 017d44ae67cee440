"""How a general model reads data, energies and conditions: arrays and tensors of any type."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qgpo.envs.data.columns import Rounding, centred, numbers, without_gradient
from qgpo.guidance import Samples
from qgpo.normalization import ObservationNormalizer

Array = Tensor | NDArray[Any]
Energy = Callable[[Tensor], Tensor] | Callable[[Tensor, Tensor], Tensor]
"""E of samples (B, ...), or of samples and conditions (B, C) in conditional models: (B,), or of
several energies (B, E)"""
ENERGY = "a callable, or an array of one value per sample"
EXACT = (torch.float32, torch.float16, torch.bfloat16)
"""types of which float32 holds every number"""


class Rows(Protocol):
    """N samples in the coordinates of the diffusion, made where they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """(..., D) for row numbers (...)."""


class Data(NamedTuple):
    """N samples as the stages see them."""

    z: Rows
    """(N, D) standardised"""
    energies: Tensor
    """(N,) or (N, E): E in its own units, or what a stage makes of it"""
    condition: Tensor | None
    """(N, C) standardised"""

    def rows(self, rows: Tensor | slice) -> Samples:
        """Those samples, in the shape of the row numbers; of groups, each energy in one row."""
        condition = None if self.condition is None else self.condition[rows]
        energies = self.energies[rows]
        return Samples(self.z[rows], energies.mT if energies.dim() == 3 else energies, condition)


class Reader(NamedTuple):
    """What is given to a model as float32 tensors on its device."""

    model: str
    """its name, for messages"""
    device: torch.device

    def matrix(self, name: str, value: Array) -> Tensor:
        """Finite numbers (N, dimension). Raises ValueError for others."""
        matrix = self.tensor(name, value, "an array of shape (N, dimension)")
        if matrix.dim() != 2 or len(matrix) < 2 or matrix.shape[1] == 0:
            raise ValueError(f"{name} has shape {tuple(matrix.shape)}, expected (N, dimension)")
        check_finite_values(name, matrix)
        return matrix

    def tensor(
        self,
        name: str,
        value: Any,
        expected: str,
        recover: Callable[[NDArray[Any]], NDArray[np.float64]] | None = None,
    ) -> Tensor:
        """The value in float32 on the device.

        Where that loses digits, it is what `recover` makes of the value; without one, it warns.
        Raises ValueError for what is no real numbers.
        """
        if isinstance(value, Tensor) and value.dtype in EXACT:
            return value.detach().to(self.device, torch.float32)
        try:
            array = without_gradient(value)
            converted = numbers(self.model, name, array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name} is a {type(value).__name__}, which is not an array of numbers "
                f"({error}), expected {expected}"
            ) from error
        rounding = Rounding()
        if converted.ndim > 0:
            rounding.add(name, array, converted)
        for fault in rounding.faults(self.model):
            if recover is None:
                warnings.warn(fault, stacklevel=2)
            else:
                converted = recover(np.asarray(array)).astype(np.float32)
        return torch.tensor(converted, device=self.device)

    def labels(self, energy: Array, n: int) -> Tensor:
        """E of n samples, (N,) or (N, E), relative to their mean where float32 would lose digits.

        Raises ValueError for others.
        """
        labels = self.tensor("energy", energy, ENERGY, centred)
        if labels.shape[:1] != (n,) or labels.dim() > 2:
            raise ValueError(f"energy has shape {tuple(labels.shape)}, expected ({n},)")
        check_finite_values("energy", labels)
        return labels


def check_finite_values(name: str, values: Tensor) -> None:
    """Raise ValueError for NaN and infinite values."""
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} has NaN or infinite values")


def in_units(normalizer: ObservationNormalizer, standardised: Tensor) -> Tensor:
    """Back from standardised values to the data's own units."""
    return standardised * normalizer.std + normalizer.mean
