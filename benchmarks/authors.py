"""The CEP authors' code (github.com/ChenDRAG/CEP-energy-guided-diffusion), loaded from a clone.

Nothing of theirs is in this repository. Networks, losses, optimizers and sampler are used as they
are; batches are rows of tensors, because their loader, which takes them one by one, would only
slow it down.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qgpo.envs.data.dataset import OfflineDataset

REPOSITORY = "https://github.com/ChenDRAG/CEP-energy-guided-diffusion"
BEHAVIOR_BATCH, BATCH, SUPPORT_STATES, SUPPORT_ACTIONS = 4096, 256, 128, 16
STEPS = 15


class Authors:
    """Their agent at the sizes of a dataset. Raises SystemExit where there is no clone."""

    def __init__(self, clone: Path, dataset: OfflineDataset) -> None:
        folder = (clone / "Offline_RL_2D").resolve()
        if not (folder / "diffusion_SDE" / "model.py").is_file():
            raise SystemExit(
                f"no {folder}/diffusion_SDE: --reference must be a clone of {REPOSITORY}"
            )
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        sys.path.insert(0, str(folder))
        names = ("model", "loss", "schedule")
        model, loss, schedule = (importlib.import_module(f"diffusion_SDE.{n}") for n in names)
        s, a = dataset.observations.shape[1], dataset.actions.shape[1]
        schedule.marginal_prob_std.__defaults__ = ("cpu",)  # a GPU otherwise
        std = partial(schedule.marginal_prob_std, device="cpu")
        args = Namespace(device="cpu", alpha=3.0, q_alpha=3.0, method="CEP")
        self.std, self.loss = std, loss.loss_fn
        self.net: Any = model.ScoreNet(
            input_dim=s + a, output_dim=a, marginal_prob_std=std, args=args
        )
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-4)
        self.generator = torch.Generator().manual_seed(0)
        n = len(dataset)
        self.data = {
            "s": torch.tensor(dataset.observations),
            "a": torch.tensor(dataset.actions),
            "r": torch.tensor(dataset.rewards)[:, None],
            "s_": torch.tensor(dataset.next_observations),
            "d": torch.zeros(n, 1),
            "fake_a": torch.randn(n, SUPPORT_ACTIONS, a, generator=self.generator),
            "fake_a_": torch.randn(n, SUPPORT_ACTIONS, a, generator=self.generator),
        }

    def batch(self, size: int) -> dict[str, torch.Tensor]:
        """Random rows."""
        n = len(self.data["s"])
        rows = torch.randint(n, (size,), generator=self.generator)
        return {name: column[rows] for name, column in self.data.items()}

    def steps(self) -> dict[str, Callable[[], object]]:
        """One step of each stage; of the support, the actions of SUPPORT_STATES states."""
        critic = self.net.q[0]
        return {
            "behavior": self.behavior,
            "support": self.support,
            "critic": lambda: critic.update_q0(self.batch(BATCH)),
            "energy": lambda: critic.update_qt(self.batch(BATCH)),
        }

    def behavior(self) -> None:
        """A step of denoising."""
        data = self.batch(BEHAVIOR_BATCH)
        self.net.condition = data["s"]
        loss = self.loss(self.net, data["a"], self.std)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.net.condition = None

    def support(self) -> None:
        """Their guidance is computed at scale 0, too."""
        self.net.q[0].guidance_scale = 0.0
        states = self.data["s"][:SUPPORT_STATES].numpy()
        self.net.sample(states, sample_per_state=SUPPORT_ACTIONS, diffusion_steps=STEPS)

    def act(self, observations: Any) -> Callable[[], object]:
        """Acting on those observations."""
        self.net.q[0].guidance_scale = 1.0
        return lambda: self.net.select_actions(observations, diffusion_steps=STEPS)
