"""The family by composition: how little code one step of the critic executes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from factory import PAPER_LIKE, WHITENED, make_dataset
from stable_baselines3.common.callbacks import BaseCallback

import qgpo
import qgpo.agents
import qgpo.envs
from qgpo import QGPO

ROOMS = {
    name: Path(m.__file__).resolve().parent
    for name, m in (("qgpo", qgpo), ("agents", qgpo.agents), ("envs", qgpo.envs))
}  # type: ignore[arg-type]


class Trace(BaseCallback):
    """Notes the package's files between two calls in the critic's stage."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.calls = 0
        self.files: set[str] = set()

    def _on_step(self) -> bool:
        self.calls += self.model.stage == "critic"
        if self.model.stage == "critic" and self.calls == self.step:
            sys.settrace(self._note)
            frame = sys._getframe()
            while frame is not None:
                frame.f_trace = self._note
                frame = frame.f_back
        elif self.model.stage == "critic" and self.calls == self.step + 1:
            sys.settrace(None)
        return True

    def _note(self, frame, event, arg):
        path = Path(frame.f_code.co_filename).resolve()
        for name, room in ROOMS.items():
            if path.is_relative_to(room):
                self.files.add(f"{name}/{path.relative_to(room).as_posix()}")
        return self._note


@pytest.mark.parametrize(
    "config",
    [
        WHITENED,
        replace(WHITENED, critic_lambda=0.0),
        PAPER_LIKE,
        replace(WHITENED, critic="implicit"),
        replace(WHITENED, critic="implicit", implicit_actions=2),
    ],
    ids=["lambda", "0", "paper", "implicit", "implicit-support"],
)
def test_a_step_of_the_critic_executes_at_most_seven_files(config):
    trace = Trace(2)
    QGPO(config, device="cpu").learn(make_dataset(), trace)
    update = f"agents/guided/{config.critic}_critic.py"
    assert trace.files <= {
        "agents/core/training.py",  # the loop and the optimizer step
        update,
        "agents/guided/critic.py",  # what critics share: actions in the behavior's coordinates
        "qgpo/critic.py",  # the loss
        "agents/core/batches.py",
        "qgpo/networks.py",
        "qgpo/normalization.py",
    }
    assert {"agents/core/training.py", update, "qgpo/critic.py"} <= trace.files


def test_stages_are_public_and_in_their_true_order():
    whole = QGPO(WHITENED, seed=1, device="cpu").learn(make_dataset())
    by_hand = QGPO(WHITENED, seed=1, device="cpu")
    data = make_dataset()
    for stage in ("train_whitening", "train_behavior", "generate_support", "train_critic"):
        getattr(by_hand, stage)(data)
    by_hand.train_energy(data)
    first, second = whole.networks.state_dict(), by_hand.networks.state_dict()
    assert all(first[name].equal(second[name]) for name in first)
