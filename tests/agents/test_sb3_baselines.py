from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_tester import CHECKS, StopAfter, Subject, same_agents
from factory import make_dataset
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger

from qgpo.agents import load_agent
from qgpo.agents.core.batches import Batches
from qgpo.agents.registry import agent_class
from qgpo.agents.sb3_baselines import BASELINES, SB3Config, transitions

TINY = SB3Config(steps=12, hidden=(8, 8), batch_size=4, learning_starts=5)
OFFLINE = ["sb3:offline-sac", "sb3:offline-td3"]
NOT_THEIRS = {
    "metrics_carry_stage_timestep_and_gradient_norm",  # SB3 does not report the norm
}


@pytest.mark.parametrize(
    ("name", "check"),
    [
        (name, check)
        for name in OFFLINE
        for check in sorted(set(CHECKS) - NOT_THEIRS)
        if name != "sb3:offline-td3" or "sampled_varies" not in check  # TD3 has no other action
    ],
)
def test_offline_baselines_pass_the_battery(name, check):
    CHECKS[check](Subject(BASELINES[name], TINY))


def pendulum():
    env = gym.make("Pendulum-v1", max_episode_steps=6)
    return make_dataset(
        env_spec=env.spec,
        observation_space=env.observation_space,
        action_space=env.action_space,
    )


def test_online_sac_spends_environment_steps_and_resumes_bit_for_bit():
    config = dataclasses.replace(TINY, steps=20)
    make = BASELINES["sb3:online-sac"]
    whole = make(config, seed=3, device="cpu").learn(pendulum())
    assert whole.environment_steps == whole.num_timesteps == 20
    assert whole.tables["ends"].sum() == 3  # 20 steps are three episodes of six, and two more
    low, high = whole.tables["actions"].min(), whole.tables["actions"].max()
    assert -1.0 <= low < high <= 1.0
    for stop in (3, 9, 12):  # while random, in the middle of an episode, at its end
        make(config, seed=3, device="cpu").learn(pendulum(), StopAfter(stop)).save("half")
        again = load_agent("half", device="cpu")
        assert again.num_timesteps == stop
        again.learn(pendulum(), reset_num_timesteps=False)
        assert same_agents(again, whole)
        assert all(torch.equal(again.tables[k], whole.tables[k]) for k in whole.tables)


def test_online_sac_wants_an_environment():
    with pytest.raises(ValueError, match="names no environment"):
        BASELINES["sb3:online-sac"](TINY, device="cpu").learn(make_dataset())


def test_transitions_are_those_of_sb3_s_replay_buffer():
    box = spaces.Box(np.array([-2.0], np.float32), np.array([0.5], np.float32))
    data = make_dataset((3, 4), action_space=box, terminated=(True, False))
    algorithm = SAC("MlpPolicy", gym.make("Pendulum-v1"), device="cpu")
    algorithm.policy.action_space = box
    buffer = ReplayBuffer(7, data.observation_space, box, device="cpu")
    for i in range(7):
        cut = [{"TimeLimit.truncated": bool(data.truncations[i])}]
        done = data.terminations[i] | data.truncations[i]
        action = algorithm.policy.scale_action(data.actions[i])
        row = (data.observations[i], data.next_observations[i], action, data.rewards[i], done)
        buffer.add(*map(np.atleast_1d, row), cut)
    index = np.array([6, 2, 0, 3])
    theirs = buffer._get_samples(index)
    ours = transitions(Batches.of(data, torch.device("cpu")), torch.as_tensor(index))
    for name in ("observations", "actions", "next_observations", "dones", "rewards"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(theirs, name).float(), atol=1e-6, rtol=1e-6
        )
    assert ours.dones.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]


def test_an_update_is_sb3_s_own():
    data = make_dataset()
    agent = BASELINES["sb3:offline-sac"](dataclasses.replace(TINY, steps=1), seed=2, device="cpu")
    agent.prepare(data)
    env = gym.make("Pendulum-v1")
    reference = SAC("MlpPolicy", env, policy_kwargs={"net_arch": [8, 8]}, device="cpu")
    reference.set_logger(Logger(None, []))
    reference.policy.load_state_dict(agent.model.policy.state_dict())
    seen = []
    drawn = agent._update

    def note(step, batch):
        seen.append((batch, agent.generator.get_state()))
        return drawn(step, batch)

    agent._update = note
    agent.learn(data, reset_num_timesteps=False)
    batch, state = seen[0]
    reference.replay_buffer.sample = lambda batch_size, env: batch
    generator = torch.Generator()
    generator.set_state(state)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    reference.train(1, 4)
    ours, theirs = agent.model.policy.state_dict(), reference.policy.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_names_of_baselines_are_known_and_others_are_refused():
    assert agent_class("sb3:online-sac") is BASELINES["sb3:online-sac"]
    with pytest.raises(ValueError, match=r"QGPO.*sb3:offline-sac"):
        agent_class("sb3:ppo")
    with pytest.raises(ValueError, match="steps=0"):
        SB3Config(steps=0)
