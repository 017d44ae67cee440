"""The FQL authors' code (github.com/seohongpark/fql, arXiv 2502.02538), loaded from a checkout.

Nothing of theirs is in this repository. Their code needs JAX, which the CPU runs:

    pip install jax flax optax distrax ml_collections
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

REPOSITORY = "https://github.com/seohongpark/fql"
CLASSES = {"fql": "FQLAgent", "iql": "IQLAgent", "ifql": "IFQLAgent", "rebrac": "ReBRACAgent"}
"""files under agents/ in their repository, and the classes there"""
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


class Reference:
    """Their modules. Raises SystemExit where the checkout or JAX is missing."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout.resolve()
        if not (self.checkout / "agents" / "fql.py").is_file():
            raise SystemExit(
                f"no {checkout / 'agents' / 'fql.py'}: --reference must be a clone of {REPOSITORY}"
            )
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("XLA_FLAGS", ONE_THREAD)
        sys.path.insert(0, str(self.checkout))

    def module(self, name: str) -> ModuleType:
        """One of their modules, such as `agents.fql`."""
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise SystemExit(
                f"{name} of {self.checkout}: {error}; "
                "pip install jax flax optax distrax ml_collections"
            ) from error
        if not Path(str(module.__file__)).resolve().is_relative_to(self.checkout):
            raise SystemExit(f"{name} was loaded from {module.__file__}, not from {self.checkout}")
        return module

    def agent(
        self,
        name: str,
        seed: int,
        observation_dim: int,
        action_dim: int,
        changes: Mapping[str, Any],
    ) -> Any:
        """Their agent at its start: the defaults of its file, with some fields changed."""
        module = self.module(f"agents.{name}")
        config = module.get_config()
        config.update(dict(changes))
        example = np.zeros((1, observation_dim), np.float32), np.zeros((1, action_dim), np.float32)
        return getattr(module, CLASSES[name]).create(seed, *example, config)


def versions() -> dict[str, str]:
    """Of the libraries that either side needs, where they are installed."""
    found = {}
    for name in ("jax", "flax", "optax", "numpy", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def batch_of(data: Mapping[str, NDArray[Any]], index: NDArray[np.int64]) -> dict[str, Any]:
    """Those rows of every array."""
    return {name: array[index] for name, array in data.items()}
