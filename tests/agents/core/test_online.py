"""Offline to online: episodes join the data, the losses stay, resuming equals not stopping."""

from __future__ import annotations

import copy
import dataclasses
import json
import signal
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from agent_tester import Count, StopAfter, Walk, same_agents
from checkpoint_files import rewrite
from factory import (
    AEPO_CONFIGS,
    BEST_OF_N_CONFIGS,
    SIR_CONFIGS,
    STACKED,
    WHITENED,
    make_dataset,
    mapped,
    same_parameters,
)
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from qgpo import AEPO, BC, QGPO, QIPO, SIR, BestOfN, OnlineConfig, load_agent
from qgpo.agents import AGENTS
from qgpo.agents.core import collected
from qgpo.agents.core.batches import Batches, draw_mixed, tuned_rewards
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.core.online import LEARN_ONLINE, OnlineLoop
from qgpo.agents.core.scale_trial import Played, next_episode
from qgpo.agents.core.training import ONLINE, UPDATES, Training
from qgpo.agents.guided.folds import Folds
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.envs.tasks.observations import ObservationAdapter

QUICK = OnlineConfig(play_first=3, learn_every=4, updates_per_step=0.5, learning_rate_factor=0.5)
DATA = make_dataset((5,) * 10)


class Uneven(Walk):
    """Episodes of 1 to 4 steps by the seed; odd ones are cut, even ones end the task."""

    def reset(self, *, seed=None, options=None):
        first = super().reset(seed=seed)
        self.left = self.length = int(self.np_random.integers(1, 5))
        return first

    def step(self, action):
        observation, reward, ended, _, info = super().step(action)
        is_cut = ended and self.length % 2 == 1
        return observation, reward, ended and not is_cut, is_cut, info


class Other(Walk):
    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)


@pytest.fixture(scope="module")
def trained():
    return QGPO(STACKED, seed=1, device="cpu").learn(DATA)


def online(agent, timesteps=14, callback=None, **more):
    more = {"env": Uneven(), "dataset": DATA, "config": QUICK, **more}
    return agent.learn_online(timesteps=timesteps, callback=callback, **more)


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance": "cep", "guidance_options": {"labels": "exponential"}},
        {"guidance": "emse"},
    ],
    ids=["exponential", "emse"],
)
def test_a_guidance_takes_its_constants_again_after_loading(changes):
    agent = QGPO(replace(WHITENED, **changes), seed=1, device="cpu").learn(DATA)
    agent.save("trained")
    loaded = QGPO.load("trained", device="cpu")
    assert same_agents(online(agent), online(loaded))


# What is collected --------------------------------------------------------------------------


def test_episodes_are_stored_whole_with_ends_and_cuts_apart(trained):
    agent = online(copy.deepcopy(trained), 11)
    tables = agent.tables
    states, transitions = collected.collected_rows(agent.training)
    assert transitions == 11
    ends = tables[collected.ENDS].bool()
    assert states == 11 + int(ends.sum())
    assert bool(ends[-1])  # the episode under way is cut where timesteps end
    assert bool((tables[collected.TERMINATIONS].bool() & ~ends).any()) is False
    lengths = [length for _, length in collected.returns_and_lengths(agent.training)]
    assert sum(lengths) == 11
    terminated = tables[collected.TERMINATIONS][ends].bool().tolist()
    for length, is_terminated in list(zip(lengths, terminated, strict=True))[:-1]:
        assert is_terminated == (length % 2 == 0)
    # the reward of Walk is the action
    torch.testing.assert_close(tables[collected.REWARDS], tables[collected.ACTIONS][:, 0])


def test_the_joined_data_lead_from_each_state_to_the_next(trained):
    agent = online(copy.deepcopy(trained), 11)
    recorded, data = agent.prepare(DATA), loop_data(agent)
    assert (len(data), data.collected, data.recorded) == (61, 11, 50)
    old, new = data.transitions(torch.arange(50)), data.transitions(torch.arange(50, 61))
    for ours, theirs in zip(old[:5], recorded.transitions(torch.arange(50))[:5], strict=True):
        assert torch.equal(ours, theirs)
    states = agent.tables[collected.STATES]
    row = 0
    for i, end in enumerate(agent.tables[collected.ENDS].bool().tolist()):
        assert torch.equal(new.observations[i], states[row])
        assert torch.equal(new.next_observations[i], states[row + 1])
        row += 2 if end else 1
    assert row == len(states)
    assert len(agent.tables["support"]) == len(data.states)
    assert len(agent.tables["returns"]) == len(data)


@pytest.mark.parametrize("rule", ["none", "locomotion", "antmaze", "unit"])
def test_collected_rewards_are_tuned_as_those_of_the_data(rule):
    data = Batches.of(DATA, torch.device("cpu"))
    whole = tuned_rewards(DATA, data, rule, 0.9)
    assert torch.equal(tuned_rewards(DATA, data, rule, 0.9, DATA.rewards[:7].copy()), whole[:7])


def test_batches_have_their_share_of_what_was_collected():
    training = Training(("s",), 0, torch.device("cpu"))
    assert OnlineConfig().share(100_000, 1_000) == pytest.approx(5_000 / 105_000)
    assert OnlineConfig().share(100_000, 30_000) == 0.5
    drawn = draw_mixed(training, 1000, 10, 0.25, 400)
    assert int((drawn >= 1000).sum()) == 100
    assert int(drawn.max()) == 1009
    assert bool((draw_mixed(training, 1000, 10, 0.001, 400) < 1000).all())
    assert bool((draw_mixed(training, 5, 10, 1.0, 40) >= 5).all())
    first, second = Training(("s",), 3, training.device), Training(("s",), 3, training.device)
    assert torch.equal(draw_mixed(first, 50, 0, 0.5, 20), second.draw(50, 20))


def test_the_halves_of_the_episodes_stay_as_they_were(trained):
    agent = online(copy.deepcopy(trained), 14)
    recorded = agent.prepare(DATA)
    before = Folds(recorded, agent.behavior, 1)
    data = loop_data(agent)
    after = Folds(data, agent.behavior, 1)
    assert torch.equal(after.fold[:50], before.fold)
    assert torch.equal(after.groups[:50], before.groups)
    ends = agent.tables[collected.ENDS]
    episodes = torch.cat([ends.new_zeros(1), ends[:-1]]).cumsum(0).long()
    assert torch.equal(after.groups[50:], 10 + episodes)
    assert torch.equal(after.fold[50:], episodes % 2)


def test_targets_of_added_episodes_are_those_of_a_table_made_anew(trained):
    agent = online(copy.deepcopy(trained), 14)
    data = loop_data(agent)
    learner = agent.critic.outcomes
    whole = learner._returns(data, 0.9)
    torch.testing.assert_close(learner._returns(data, 0.9, 50), whole[50:])
    assert not torch.equal(learner._returns(data, 0.5, 50), whole[50:])


# Learning -----------------------------------------------------------------------------------


def test_updates_follow_from_the_steps_and_leave_the_coordinates(trained):
    agent = copy.deepcopy(trained)
    before = {k: v.clone() for k, v in agent.networks.state_dict().items()}
    count = Count()
    online(agent, 14, count)
    assert count.steps == list(range(1, 15))
    assert (agent.num_timesteps, agent.progress[ONLINE]) == (14, 14)
    assert agent.progress[UPDATES] == 5  # (14 - 3) / 2
    changed = {
        k.split(".")[0]
        for k, v in agent.networks.state_dict().items()
        if not torch.equal(v, before[k])
    }
    assert {"behavior", "behavior_ema", "critic", "implicit_critic", "energy", "trust"} <= changed
    assert not {"normalizer", "whitening"} & changed


def test_nothing_is_learned_in_the_first_steps(trained):
    agent = copy.deepcopy(trained)
    online(agent, 3)
    assert agent.progress[UPDATES] == 0
    for name, value in agent.networks.state_dict().items():
        assert torch.equal(value, trained.networks.state_dict()[name])


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (QGPO, WHITENED),
        (QGPO, replace(WHITENED, guidance="dps", critic="implicit")),
        (AEPO, AEPO_CONFIGS["aepo"]),
        (AEPO, AEPO_CONFIGS["analytic"]),
        (SIR, SIR_CONFIGS["mean"]),
        (BestOfN, BEST_OF_N_CONFIGS["whitened"]),
    ],
)
def test_every_agent_that_can_goes_on(kind, config):
    agent = kind(config, device="cpu").learn(DATA)
    before = copy.deepcopy(agent)
    online(agent, 9).save("online")
    assert agent.progress[UPDATES] == 3
    assert not same_agents(agent, before)
    assert same_agents(load_agent("online.zip", device="cpu"), agent)


@pytest.mark.parametrize("config", [WHITENED, replace(WHITENED, q_unit="spread", beta=1.0)])
def test_an_agent_from_a_file_goes_on_as_the_one_in_memory(config):
    agent = QGPO(config, device="cpu").learn(DATA)
    agent.save("offline")
    loaded = load_agent("offline.zip", device="cpu")
    support = agent.tables.get("support")
    assert support is None  # both draw it again
    assert same_agents(online(loaded), online(agent))
    beta = agent.inverse_temperature(agent._some_q(loop_data(agent)))
    expected = config.beta / float(agent.critic.scale(agent._some_q(loop_data(agent))))
    assert float(beta) == pytest.approx(expected)
    fresh = QGPO(config, device="cpu").learn(DATA)
    fresh.support.extend(fresh.prepare(DATA), fresh.tables["generator/shared/support"])
    made = QGPO(config, device="cpu")
    made.train_behavior(DATA)
    made.generate_support(DATA)
    assert torch.equal(fresh.tables["support"], made.tables["support"])


def loop_data(agent):
    return OnlineLoop(agent, agent.env, DATA, agent.prepare(DATA), QUICK).data()


def test_the_list_of_those_that_can_is_whole():
    assert {name for name, kind in AGENTS.items() if kind.learns_online} == set(LEARN_ONLINE)
    assert all(issubclass(AGENTS[name], GuidedPolicy) for name in LEARN_ONLINE)


def test_learning_online_raises_the_reward(trained):
    """The reward is the action: what is collected has more of it than the data."""

    class Long(Walk):
        def reset(self, *, seed=None, options=None):
            first = super().reset(seed=seed)
            self.left = 10
            return first

    agent = QGPO(
        replace(WHITENED, behavior_steps=100, critic_steps=100, energy_steps=100, beta=2.0,
                q_unit="spread", behavior_learning_rate=3e-3, critic_lambda=0.0),
        device="cpu",
    )  # fmt: skip
    data = make_dataset((10,) * 20)
    agent.learn(data)
    config = OnlineConfig(
        play_first=0, learn_every=50, updates_per_step=1.0, learning_rate_factor=1.0,
        collected_weight=100.0, try_scales=False,
    )  # fmt: skip
    agent.learn_online(Long(), 400, data, config=config)
    returns = [r for r, _ in collected.returns_and_lengths(agent.training)]
    assert np.mean(returns[-10:]) > np.mean(returns[:10]) + 0.5


# Stop and go on -----------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 6, 7, 8, 13])
def test_resuming_equals_not_stopping(trained, stop):
    whole = online(copy.deepcopy(trained), 20)
    agent = online(copy.deepcopy(trained), 20, StopAfter(stop))
    assert agent.num_timesteps == stop
    agent.save("stopped")
    resumed = load_agent("stopped.zip", device="cpu")
    assert resumed.num_timesteps == stop
    online(resumed, 20, config=None)
    assert same_agents(resumed, whole)
    assert torch.equal(resumed.training.generator.get_state(), whole.training.generator.get_state())


def test_an_interrupted_episode_is_played_again(trained):
    class Interrupt(BaseCallback):
        def _on_step(self):
            if self.num_timesteps == 8:
                self.model.training.interrupt()
            return True

    whole, agent = online(copy.deepcopy(trained), 16), copy.deepcopy(trained)
    with pytest.raises(KeyboardInterrupt, match="after step 8 of stage 'online'"):
        online(agent, 16, Interrupt())
    kept = collected.collected_rows(agent.training)[1]
    assert kept <= 8
    count = Count()
    online(agent, 16, count)
    assert count.steps == list(range(kept + 1, 17))
    assert same_agents(agent, whole)


def test_a_finished_one_does_nothing_and_goes_further(trained):
    agent = online(copy.deepcopy(trained), 10)
    before = copy.deepcopy(agent)
    assert same_agents(online(agent, 10), before)
    assert online(agent, 15).num_timesteps == 15
    with pytest.raises(ValueError, match="timesteps=9, but this agent has learned online from 15"):
        online(agent, 9)


def test_learning_from_data_alone_leaves_it_as_it_is_or_begins_anew(trained):
    agent = online(copy.deepcopy(trained), 10)
    before = copy.deepcopy(agent)
    agent.learn(DATA, reset_num_timesteps=False)
    assert same_agents(agent, before)
    with pytest.raises(ValueError, match="its training continued on other data"):
        QGPO(replace(STACKED, guidance="mse"), seed=1, device="cpu").adopt(agent, DATA)
    agent.learn(DATA)
    assert agent.online_config is None
    assert same_agents(agent, trained)


def test_what_was_learned_online_can_be_distilled(trained):
    agent = online(copy.deepcopy(trained), 10)
    student = agent.distill(DATA, steps=2)
    assert student.is_trained
    student.save("student")
    observations = DATA.states[:4]
    np.testing.assert_array_equal(
        load_agent("student.zip").teacher.predict(observations, deterministic=True)[0],
        agent.predict(observations, deterministic=True)[0],
    )


def test_continuing_on_other_data_forgets_the_episodes(trained):
    agent = online(copy.deepcopy(trained), 10)
    agent.learn(make_dataset(seed=5), reset_num_timesteps=False, allow_other_dataset=True)
    assert agent.num_timesteps == agent.total_timesteps
    assert collected.collected_rows(agent.training) == (0, 0)
    agent.save("offline")
    assert load_agent("offline.zip").online_config is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h["progress"].pop(UPDATES), "its stages are"),
        (lambda h: h.update(num_timesteps=99), "num_timesteps=99"),
        (lambda h: h["online"].update(learn_every=0), "learn_every=0"),
        (lambda h: h.pop("online"), "unknown"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(trained, change, said):
    online(copy.deepcopy(trained), 10).save("online")

    def change_header(members):
        header = json.loads(members["checkpoint.json"])
        change(header)
        members["checkpoint.json"] = json.dumps(header).encode()

    rewrite("online.zip", change_header)
    with pytest.raises(CheckpointError, match=said):
        load_agent("online.zip")


def test_episodes_that_do_not_fit_each_other_are_refused(trained):
    online(copy.deepcopy(trained), 10).save("online")

    def cut(members):
        tables = safetensors.torch.load(members["tables.safetensors"])
        tables[collected.ACTIONS] = tables[collected.ACTIONS][:-1].clone()
        members["tables.safetensors"] = safetensors.torch.save(tables)

    rewrite("online.zip", cut)
    with pytest.raises(ValueError, match="collected episodes do not fit each other"):
        online(load_agent("online.zip"), 12, config=None)


# SB3 ----------------------------------------------------------------------------------------


def test_sb3_s_callbacks_count_environment_steps(trained):
    agent = copy.deepcopy(trained)
    callbacks = [
        CheckpointCallback(5, "saved"),
        EvalCallback(DummyVecEnv([Walk]), n_eval_episodes=2, eval_freq=7, log_path="evaluated"),
    ]
    online(agent, 14, callbacks)
    assert load_agent("saved/rl_model_10_steps.zip").num_timesteps == 10
    assert np.load("evaluated/evaluations.npz")["timesteps"].tolist() == [7, 14]
    stopped = online(copy.deepcopy(trained), 50, StopTrainingOnMaxEpisodes(3))
    assert int(stopped.tables[collected.ENDS].sum()) == 3


def test_the_logger_has_sb3_s_keys(trained, monkeypatch):
    monkeypatch.setattr("qgpo.agents.core.training.FEWEST_ROWS", 1)

    class Rows(KVWriter):
        rows = []  # noqa: RUF012

        def write(self, key_values, key_excluded, step=0):
            self.rows.append((step, dict(key_values)))

        def close(self):
            pass

    agent = copy.deepcopy(trained)
    agent.set_logger(Logger(None, [Rows()]))
    online(agent, 12, log_interval=4)
    assert [step for step, _ in Rows.rows] == [4, 8, 12]
    _, last = Rows.rows[-1]
    assert last["time/total_timesteps"] == 12
    finished = collected.returns_and_lengths(agent.training)
    assert last["rollout/ep_rew_mean"] == pytest.approx(np.mean([r for r, _ in finished]))
    assert last["rollout/ep_len_mean"] == pytest.approx(np.mean([n for _, n in finished]))
    assert last["time/episodes"] == len(finished)
    assert {"online/behavior_loss", "online/critic_loss", "online/energy_loss"} <= set(last)


# Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"env": Other()}, ValueError, r"the environment has observations \(4,\)"),
        ({"env": DummyVecEnv([Walk, Walk])}, ValueError, "env has 2 environments, expected"),
        ({"dataset": make_dataset(seed=4)}, ValueError, "holds other data: pass the data of its"),
        ({"timesteps": 0}, ValueError, "timesteps=0, expected at least 1"),
        ({"env": None}, ValueError, "names no environment: pass one, as env"),
        ({"config": {"learn_every": 3}}, TypeError, "config is a dict, expected an OnlineConfig"),
        ({"log_interval": 0}, ValueError, "log_interval=0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(trained, more, error, said):
    agent = copy.deepcopy(trained)
    with pytest.raises(error, match=said):
        online(agent, **more)
    assert agent.online_config is None
    assert same_agents(agent, trained)


def test_another_config_than_it_began_with_is_refused(trained):
    agent = online(copy.deepcopy(trained), 5)
    with pytest.raises(ValueError, match="learn_every=9, but this online training began with"):
        online(agent, 9, config=replace(QUICK, learn_every=9))


def test_memory_mapped_data_are_refused(trained):
    with pytest.raises(ValueError, match="is memory-mapped, and episodes cannot join it"):
        online(copy.deepcopy(trained), dataset=mapped(DATA))


@pytest.mark.parametrize("kind", [BC, QIPO])
def test_agents_that_learn_from_data_alone_say_who_can(kind):
    expected = r"learns from data alone, expected one of \['AEPO', 'BestOfN', 'QGPO', 'SIR'\]"
    with pytest.raises(TypeError, match=expected):
        kind(device="cpu").learn_online(Walk(), 5)


def test_an_agent_that_is_not_trained_is_refused():
    with pytest.raises(RuntimeError, match="not trained to the end"):
        QGPO(WHITENED, device="cpu").learn_online(Walk(), 5, DATA)


@pytest.mark.parametrize("wrong", ["reward", "observation"])
def test_numbers_that_are_not_finite_are_refused_and_the_agent_stays_whole(trained, wrong):
    class Broken(Walk):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return (observation * np.nan, reward, *rest) if wrong == "observation" else (
                observation, np.nan, *rest)  # fmt: skip

    agent = copy.deepcopy(trained)
    with pytest.raises(ValueError, match=f"the environment's {wrong} is"):
        online(agent, env=Broken())
    agent.save("whole")
    assert collected.collected_rows(load_agent("whole.zip").training) == (0, 0)


@pytest.mark.parametrize(
    ("name", "wrapped"),
    [
        ("VecNormalize", lambda: VecNormalize(DummyVecEnv([Walk]))),
        ("VecNormalize", lambda: VecNormalize(DummyVecEnv([Walk]), norm_obs=False)),
        ("NormalizeObservation", lambda: gym.wrappers.NormalizeObservation(Walk())),
        ("NormalizeReward", lambda: gym.wrappers.NormalizeReward(Walk())),
        (
            "NormalizeReward",
            lambda: gym.wrappers.TimeLimit(gym.wrappers.NormalizeReward(Walk()), 9),
        ),
        ("NormalizeReward", lambda: DummyVecEnv([lambda: gym.wrappers.NormalizeReward(Walk())])),
    ],
)
def test_a_normalised_environment_is_refused(name, wrapped, trained):
    agent = copy.deepcopy(trained)
    with pytest.raises(ValueError, match=rf"{name}\).*pass the environment without"):
        online(agent, env=wrapped())


@pytest.mark.parametrize("what", ["reward", "observation"])
def test_an_absurd_number_is_named_and_its_episode_left_out(what):
    class Broken(Walk):
        steps = 0

        def step(self, action):
            observation, reward, *rest = super().step(action)
            Broken.steps += 1
            wrong = Broken.steps == 5
            if what == "reward" and wrong:
                reward = 1e30
            if what == "observation" and wrong:
                observation = np.array([0.0, 1e30, 0.0], np.float32)
            return observation, reward, *rest

    whole = online(QGPO(WHITENED, device="cpu").learn(DATA), 12, env=Walk())
    agent = QGPO(WHITENED, device="cpu").learn(DATA)
    with pytest.raises(ValueError, match=r"1e\+30.* in the data exceeds .*is left out"):
        online(agent, 12, env=Broken())
    assert collected.collected_rows(agent.training)[1] == 3
    assert same_parameters(online(agent, 12, env=Walk()).get_parameters(), whole.get_parameters())


def test_what_to_do_after_a_stop_is_said():
    agent = QGPO(WHITENED, device="cpu").learn(DATA)

    class Stop(BaseCallback):
        def _on_step(self):
            signal.raise_signal(signal.SIGINT)
            return True

    with pytest.raises(KeyboardInterrupt, match=r"load\(path\)\.learn_online\(env, timesteps"):
        online(agent, 12, Stop())
    assert repr(agent).startswith("QGPO(seed 0, ")
    assert "steps online" in repr(agent)


# Scales -------------------------------------------------------------------------------------


def plays(start, value, n):
    """The n episodes whose return is a function of the scale, and today's scale after them."""
    episodes = []
    for _ in range(n):
        following = next_episode(start, episodes)
        total = value(following.played) if following.paired else 100.0 * following.played
        episodes.append(Played(following.played, following.paired, total))
    return episodes, next_episode(start, episodes).scale


def test_the_scale_climbs_to_where_pairs_return_most():
    episodes, scale = plays(1.0, lambda w: -abs(w - 4.0), 120)
    assert scale == 4.0
    assert [e.scale for e in episodes[:8]] == [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 0.5]
    assert [e.paired for e in episodes[:8]] == [False, False, True, True] * 2
    assert {(e.scale, e.paired) for e in episodes[-3:]} == {(4.0, False)}  # both were dropped
    assert plays(1.0, lambda w: -abs(w - 0.25), 120)[1] == 0.25
    assert plays(1.0, lambda w: -abs(w - 1.0), 120)[1] == 1.0


def in_pairs(*totals):
    """Episodes in pairs at 1 and at 2 or 1/2 in turn, each after two of sampled actions."""
    episodes = []
    for i, (first, second) in enumerate(zip(totals[::2], totals[1::2], strict=False)):
        episodes += [Played(1.0, False, 0.0)] * 2
        episodes += [Played(1.0, True, first), Played((2.0, 0.5)[i % 2], True, second)]
    return episodes


def test_pairs_begin_alike_and_one_neighbor_needs_three():
    sampled, first = Played(1.0, False, 5.0), Played(1.0, True, 5.0)
    assert next_episode(1.0, []) == (1.0, 1.0, False, False)
    assert next_episode(1.0, [sampled] * 2) == (1.0, 1.0, True, False)
    assert next_episode(1.0, [sampled] * 2 + [first]) == (1.0, 2.0, True, True)
    two = in_pairs(5.0, 9.0, 5.0, 4.0, 5.0, 9.0, 5.0, 4.0)  # of 2, 1/2, 2, 1/2
    assert next_episode(1.0, [*two, sampled, sampled, first]) == (1.0, 2.0, True, True)
    third = [*two, sampled, sampled, first, Played(2.0, True, 8.0)]
    assert next_episode(1.0, third) == (2.0, 2.0, False, False)
    unclear = in_pairs(5.0, 9.0, 5.0, 4.0, 5.0, 1.0, 5.0, 4.0, 5.0, 5.5)
    assert next_episode(1.0, unclear) == (1.0, 1.0, False, False)


def test_half_a_pair_is_played_again():
    sampled, first = Played(1.0, False, 5.0), Played(1.0, True, 5.0)
    cut = Played(2.0, False, 1.0)  # the timesteps had been reached
    assert next_episode(1.0, [sampled, sampled, first, cut]) == (1.0, 1.0, True, False)


def test_files_without_pairs_go_on_at_the_agent_s_scale():
    assert next_episode(4.0, [Played(w, False, 9.0) for w in (1.0, 2.0)]) == (4.0, 4.0, True, False)


def test_a_better_scale_becomes_the_agent_s_own_and_is_in_its_file():
    class ByScale(Walk):
        """Returns more the larger the scale at which it is played."""

        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, playing["scale"], *rest

    playing = {}
    agent = QGPO(WHITENED, device="cpu").learn(DATA)

    class Scale(BaseCallback):
        def _on_step(self):
            playing["scale"] = loop_scale()
            return True

    def loop_scale():
        tables = [agent.tables[name].tolist() for name in (collected.SCALES, collected.PAIRED)]
        returns = [r for r, _ in collected.returns_and_lengths(agent.training)]
        return next_episode(1.0, list(map(Played, *tables, returns))).played

    playing["scale"] = 1.0
    assert agent.tries_scales
    online(agent, 66, Scale(), env=ByScale())
    assert agent.guidance_scale == 2.0
    agent.save("scaled")
    assert load_agent("scaled.zip").guidance_scale == 2.0
    assert agent.tables[collected.SCALES][:8].tolist() == [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 0.5]


@pytest.mark.parametrize("try_scales", [True, False])
def test_a_scale_that_was_set_by_hand_stays(try_scales):
    agent = QGPO(WHITENED, device="cpu").learn(DATA)
    config = replace(QUICK, try_scales=try_scales)
    online(agent, 40, config=config)
    assert bool(agent.tables[collected.PAIRED].any()) == try_scales
    agent.guidance_scale = 0.3
    online(agent, 43, config=config)
    assert agent.guidance_scale == 0.3
    scales = agent.tables[collected.SCALES].tolist()
    agent.save("by-hand")
    agent = load_agent("by-hand.zip")
    agent.guidance_scale = 0.3  # files keep what was configured
    online(agent, 46, config=config)
    assert agent.guidance_scale == 0.3
    later = agent.tables[collected.SCALES].tolist()[len(scales) :]
    assert set(later) <= {float(np.float32(w)) for w in (0.15, 0.3, 0.6)}


def test_the_second_of_a_pair_begins_like_the_first():
    agent = online(QGPO(WHITENED, device="cpu").learn(DATA), 24)
    tables = agent.tables
    lengths = [length for _, length in collected.returns_and_lengths(agent.training)]
    starts = np.cumsum([0, *(length + 1 for length in lengths)])[:-1]
    firsts = tables[collected.STATES][starts]
    assert torch.equal(firsts[2], firsts[3])
    assert not torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[1], firsts[2])
    assert tables[collected.SCALES].tolist()[:4] == [1.0, 1.0, 1.0, 2.0]
    assert tables[collected.PAIRED].tolist()[:5] == [0.0, 0.0, 1.0, 1.0, 0.0]


def test_actions_of_a_pair_are_deterministic():
    agent = online(
        QGPO(WHITENED, device="cpu").learn(DATA), 24, config=replace(QUICK, play_first=99)
    )
    tables = agent.tables
    lengths = [length for _, length in collected.returns_and_lengths(agent.training)]
    row = np.cumsum([0, *lengths])
    states = tables[collected.STATES].numpy()
    actions = tables[collected.ACTIONS].numpy()
    for episode, scale in ((1, 1.0), (2, 1.0), (3, 2.0)):
        agent.guidance_scale = scale
        expected, _ = agent.predict(states[row[episode] + episode], deterministic=True)
        alike = np.allclose(actions[row[episode]], expected, atol=1e-6)
        assert alike == (episode > 1)


class Fives(Walk):
    """Episodes of five steps, which a time limit ends."""

    def reset(self, *, seed=None, options=None):
        self.before_the_limit = 5
        return super().reset(seed=seed)

    def step(self, action):
        observation, reward, *_ = super().step(action)
        self.before_the_limit -= 1
        return observation, reward, False, self.before_the_limit == 0, {}


def test_nothing_is_learned_between_the_episodes_of_a_pair():
    agent = QGPO(WHITENED, device="cpu").learn(DATA)
    made = {}

    class Updates(BaseCallback):
        def _on_step(self):
            made[self.num_timesteps] = agent.progress[UPDATES]
            return True

    config = replace(QUICK, play_first=0, learn_every=1, updates_per_step=1.0)
    online(agent, 40, Updates(), env=Fives(), config=config)
    paired = agent.tables[collected.PAIRED].tolist()
    assert paired == [0.0, 0.0, 1.0, 1.0] * 2
    ends = [made[5 * (k + 1)] for k in range(8)]
    assert ends == [5, 10, 10, 20, 25, 30, 30, 40]


@pytest.mark.parametrize("stop", [11, 15, 16, 20])
def test_resuming_within_a_pair_equals_not_stopping(stop, tmp_path):
    whole = online(QGPO(WHITENED, device="cpu").learn(DATA), 30, env=Fives())
    agent = QGPO(WHITENED, device="cpu").learn(DATA)
    online(agent, 30, StopAfter(stop), env=Fives())
    assert agent.num_timesteps <= stop
    agent.save(tmp_path / "stopped")
    agent = load_agent(tmp_path / "stopped.zip", device="cpu")
    online(agent, 30, env=Fives())
    assert agent.tables[collected.PAIRED].any()
    assert same_agents(agent, whole)


def test_an_episode_that_is_cut_is_compared_with_none():
    agent = QGPO(WHITENED, device="cpu").learn(DATA)
    online(agent, 12, env=Fives())
    assert agent.tables[collected.PAIRED].tolist() == [0.0, 0.0, 0.0]
    online(agent, 25, env=Fives())
    assert agent.tables[collected.PAIRED].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 0.0]


def test_without_trials_every_episode_is_played_at_the_agent_s_scale():
    agent = QGPO(WHITENED, device="cpu").learn(DATA)
    online(agent, 24, config=replace(QUICK, try_scales=False))
    assert set(agent.tables[collected.SCALES].tolist()) == {1.0}
    assert not agent.tables[collected.PAIRED].any()


class Goals(Walk):
    """Walk, whose observation is in two parts."""

    observation_space = spaces.Dict(
        {"goal": spaces.Box(-1.0, 1.0, (1,)), "at": spaces.Box(-9.0, 9.0, (2,))}
    )

    def reset(self, *, seed=None, options=None):
        return self.parts(super().reset(seed=seed)[0]), {}

    def step(self, action):
        observation, *rest = super().step(action)
        return self.parts(observation), *rest

    def parts(self, numbers):
        return {"at": np.clip(numbers[:2], -9.0, 9.0), "goal": np.tanh(numbers[2:])}


@pytest.mark.parametrize("env", [Goals, lambda: DummyVecEnv([Goals])])
def test_parts_of_observations_are_stored_as_the_vectors_that_the_agent_sees(env):
    adapter = ObservationAdapter.choose(Goals.observation_space, None, "the environment")
    data = dataclasses.replace(DATA, adapter=adapter)
    agent = QGPO(WHITENED, device="cpu").learn(data)
    online(agent, 7, dataset=data, env=env())
    states = agent.tables[collected.STATES]
    assert states.shape == (10, 3)
    assert bool((states[:, 2].abs() <= 1.0).all())
    (of_env,) = np.random.SeedSequence((0, 0)).generate_state(2)[:1]
    first = Goals().reset(seed=int(of_env))[0]
    np.testing.assert_allclose(states[0], adapter.flatten(first), rtol=1e-6)
