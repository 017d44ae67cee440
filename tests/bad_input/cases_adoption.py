"""Bad input of `agent.adopt(other, dataset)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from cases import Case
from factory import WHITENED, make_dataset

from qgpo import BC, QGPO
from qgpo.agents.guided.adoption import LAST_STATE, SUPPORT_STATE


def agent(seed: int = 2, **changes: Any) -> QGPO:
    return QGPO(replace(WHITENED, **changes), seed=seed, device="cpu")


def stopped_in(stage: str, step: int) -> QGPO:
    return agent().learn(make_dataset(), lambda scope, _: scope["self"].progress[stage] < step)


@lru_cache
def donor() -> QGPO:
    return agent().learn(make_dataset())


def adopting(adopter: Callable[[], QGPO]) -> Callable[[], Any]:
    def provoke() -> None:
        one = adopter()
        try:
            one.adopt(donor(), make_dataset())
        finally:
            assert one.num_timesteps == 0  # nothing was taken over

    return provoke


def without(state: str) -> Callable[[], Any]:
    def provoke() -> None:
        donor().save("donor")
        other = QGPO.load("donor", device="cpu")
        del other.tables[state]
        agent().adopt(other, make_dataset())

    return provoke


def of_an_earlier_version() -> None:
    donor().save("donor")
    other = QGPO.load("donor", device="cpu")
    other.trajectory_fingerprint = None
    agent().adopt(other, make_dataset(rewards=np.zeros(16, np.float32)))


def of_two_datasets() -> QGPO:
    other = stopped_in("behavior", 2)
    return other.learn(make_dataset(seed=1), reset_num_timesteps=False, allow_other_dataset=True)


WHO = "cannot adopt from this QGPO: "
DECIDES = "which determines the behavior; use the same value for both, or train from scratch"
CASES = [
    Case(
        "adopt",
        "another behavior",
        ValueError,
        f"{WHO}ema_decay=0.999, this QGPO has ema_decay=0.5, {DECIDES}",
        adopting(lambda: agent(ema_decay=0.5)),
    ),
    Case(
        "adopt",
        "another seed",
        ValueError,
        f"{WHO}it was trained with seed=2, this QGPO has seed=3; adopt from an agent with the "
        "same seed, or train from scratch",
        adopting(lambda: agent(seed=3)),
    ),
    Case(
        "adopt",
        "an unfinished critic",
        ValueError,
        f"{WHO}its critic has 2 of 6 steps; finish its training first: learn(dataset, "
        "reset_num_timesteps=False)",
        lambda: agent().adopt(stopped_in("critic", 2), make_dataset()),
    ),
    Case(
        "adopt",
        "other data",
        ValueError,
        f"{WHO}it was trained on 'test/made/by-hand-v0' with fingerprint …, dataset "
        "'test/made/by-hand-v0' has …; adopt from an agent that was trained on this dataset, "
        "or train from scratch",
        lambda: agent().adopt(donor(), make_dataset(seed=1)),
    ),
    Case(
        "adopt",
        "other rewards, adopted from a file of an earlier version",
        ValueError,
        f"{WHO}it was trained on 'test/made/by-hand-v0' with fingerprint …, dataset "
        "'test/made/by-hand-v0' has … (its file is of an earlier version and does not say "
        "whether states and actions are the same); adopt from an agent that was trained on "
        "this dataset, or train from scratch",
        of_an_earlier_version,
    ),
    Case(
        "adopt",
        "a training that continued with other data",
        ValueError,
        f"{WHO}its training continued on other data than it began with; adopt from an agent "
        "that was trained on 'test/made/by-hand-v0' alone, or train from scratch",
        lambda: agent().adopt(of_two_datasets(), make_dataset(seed=1)),
    ),
    *(
        Case(
            "adopt",
            f"a checkpoint without {state}",
            ValueError,
            f"{WHO}it has no '{state}', the state from which its support is drawn again; files "
            "of earlier versions lack it, and so do files of trainings that stopped at the end "
            "of the critic stage: finish that training first, or train from scratch",
            without(state),
        )
        for state in (SUPPORT_STATE, LAST_STATE)
    ),
    Case(
        "adopt",
        "from an agent outside the family",
        TypeError,
        "cannot adopt from a BC, expected a QGPO, AEPO, QIPO, SIR or BestOfN agent",
        lambda: agent().adopt(BC(device="cpu"), make_dataset()),  # type: ignore[arg-type]
    ),
]
