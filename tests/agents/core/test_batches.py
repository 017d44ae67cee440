"""What a batch of transitions holds, and what is read for it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from factory import make_dataset, mapped, same_parameters

from qgpo import TD3BC
from qgpo.agents.core.batches import Batches

LENGTHS = (5, 1, 4, 6)


@pytest.mark.parametrize("place", [lambda data: data, mapped])
def test_the_action_after_a_transition_is_of_the_same_episode(place):
    data = Batches.of(place(make_dataset(LENGTHS)), torch.device("cpu"))
    steps = torch.arange(len(data))
    found, actions = data.next_actions(steps), data.scaled_actions(steps)
    step = 0
    for length in LENGTHS:
        for t in range(length):
            assert found.exist[step] == (t + 1 < length)
            if t + 1 < length:
                assert torch.equal(found.actions[step], actions[step + 1])
            step += 1
    assert torch.isfinite(found.actions).all()


def test_only_agents_that_ask_get_next_actions_and_nobody_s_numbers_change():
    class Asking(TD3BC):
        """The same agent, which reads more and uses nothing of it."""

        uses_next_actions: ClassVar[bool] = True

    seen = {TD3BC: [], Asking: []}
    config = replace(TD3BC.presets["paper"], hidden=(4,), batch_size=4, steps=3)
    agents = {}
    for agent_class, batches in seen.items():
        agent = agent_class(config, seed=1, device="cpu")
        update = agent.update

        def note(batch, step, update=update, batches=batches):
            batches.append(batch)
            return update(batch, step)

        agent.update = note
        agents[agent_class] = agent.learn(make_dataset())
    assert all(batch.following is None for batch in seen[TD3BC])
    assert all(batch.following.actions.shape == (4, 1) for batch in seen[Asking])
    assert same_parameters(agents[TD3BC].get_parameters(), agents[Asking].get_parameters())
