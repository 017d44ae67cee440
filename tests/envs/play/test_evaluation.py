from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from factory import PAPER_LIKE, make_dataset, subprocess_environment
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy

from qgpo import QGPO, evaluate
from qgpo.envs.play.evaluation import evaluate_scales
from qgpo.envs.play.intervals import bootstrap_interval
from qgpo.envs.play.scores import scale_label, score_table, summarize
from qgpo.envs.tasks.making import make_env
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.text import readable

TOY = "qgpo-tests/Toy-v0"


class Toy(gym.Env):
    """Episodes of 2 + seed % 3 steps; an unseeded reset makes the next one a step longer.

    The observation is (steps done, length), the reward length + 10 x action: an action chosen
    from another episode's observation, a step too many or too few, all change the return.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-100.0, 100.0, (1,), np.float32)

    def __init__(self, endless=False, truncates=False):
        self.endless, self.truncates = endless, truncates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length = self.length + 1 if seed is None else 2 + seed % 3
        self.t = 0
        return self._observation(), {}

    def _observation(self):
        return np.array([self.t, self.length], np.float32)

    def step(self, action):
        assert self.endless or self.t < self.length, "step after the end"
        self.t += 1
        over = self.t == self.length and not self.endless
        reward = self.length + 10.0 * float(action[0])
        ends = (False, over) if self.truncates else (over, False)
        return self._observation(), reward, *ends, {}


class StepsDone:
    """Acts with the number of steps done, and remembers the batches it saw."""

    def __init__(self):
        self.batches = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        assert observation.ndim == 2
        assert len(episode_start) == len(observation)
        self.batches.append(observation.copy())
        return observation[:, :1].copy(), state


def toy_return(length):
    """Sum over t of length + 10 t."""
    return float(length * length + 10 * sum(range(length)))


@pytest.fixture(autouse=True)
def _toy_is_registered():
    gym.register(TOY, entry_point=f"{__name__}:Toy")
    yield
    gym.registry.pop(TOY)


def expectation(lengths):
    return [toy_return(n) for n in lengths], list(lengths)


@pytest.mark.parametrize("truncates", [False, True])
def test_single_environment(truncates):
    result = evaluate(StepsDone(), Toy(truncates=truncates), n_episodes=5, seed=4)
    assert (result.returns, result.lengths) == expectation([3, 4, 2, 3, 4])
    assert result.seeds == [4, 5, 6, 7, 8]
    assert result.cut == 0
    assert result.mean == pytest.approx(np.mean(result.returns))


@pytest.mark.parametrize("n_envs", [1, 2, 3, 50])
def test_id_gives_the_same_however_many_copies_play(n_envs):
    agent = StepsDone()
    result = evaluate(agent, TOY, n_episodes=7, seed=0, n_envs=n_envs)
    assert (result.returns, result.lengths) == expectation([2, 3, 4, 2, 3, 4, 2])
    assert result.env_id == TOY
    assert len(agent.batches[0]) == min(n_envs, 7)
    assert sum(len(b) for b in agent.batches) == sum(result.lengths)


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_environment_in_every_autoreset_mode(mode, truncates):
    envs = SyncVectorEnv([lambda: Toy(truncates=truncates) for _ in range(3)], autoreset_mode=mode)
    result = evaluate(StepsDone(), envs, n_episodes=8, seed=0)
    # slots start with lengths 2, 3, 4 and go on with one step more: 3, 4, 5 and then 4, 5
    assert (result.returns, result.lengths) == expectation([2, 3, 4, 3, 4, 5, 4, 5])


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_environment_with_more_slots_than_episodes(mode):
    envs = SyncVectorEnv([Toy for _ in range(4)], autoreset_mode=mode)
    result = evaluate(StepsDone(), envs, n_episodes=2, seed=1)
    assert (result.returns, result.lengths) == expectation([3, 4])


def test_endless_environment_is_cut_and_warned_about():
    with pytest.warns(UserWarning, match="3 of 3 episodes.*step limit"):
        result = evaluate(StepsDone(), Toy(endless=True), 3, seed=0, max_episode_steps=4)
    assert result.lengths == [4, 4, 4]
    assert result.returns == [n * 4 + 60.0 for n in (2, 3, 4)]
    assert result.cut == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limits = {"seed": 0, "max_episode_steps": 4, "warn_of_cuts": False}
        quiet = evaluate(StepsDone(), Toy(endless=True), 3, **limits)
    assert quiet == result


def test_endless_environment_is_cut_without_a_stated_limit():
    with pytest.warns(UserWarning, match="step limit"):
        assert evaluate(StepsDone(), Toy(endless=True), n_episodes=1).lengths == [1000]


def test_endless_slots_that_we_reset_are_cut():
    envs = SyncVectorEnv([lambda: Toy(endless=True)] * 2, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.warns(UserWarning, match="step limit"):
        result = evaluate(StepsDone(), envs, n_episodes=3, max_episode_steps=4)
    assert result.lengths == [4, 4, 4]
    assert result.cut == 3


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_endless_slots_that_we_cannot_reset_are_refused(mode):
    envs = SyncVectorEnv([lambda: Toy(endless=True)] * 2, autoreset_mode=mode)
    with pytest.raises(ValueError, match="TimeLimit"):
        evaluate(StepsDone(), envs, n_episodes=2, max_episode_steps=4)


def test_an_episode_that_ends_at_the_limit_is_not_cut():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(StepsDone(), Toy(), n_episodes=1, seed=0, max_episode_steps=2)
    assert result.cut == 0


def test_shorter_episodes_than_the_reference_s_have_no_score():
    scale = ReferenceScores(0.0, 100.0, "by hand")
    dataset = dataclasses.replace(make_dataset(), env_spec=gym.spec("Pendulum-v1"), reference=scale)
    told = pytest.warns(UserWarning, match="are for episodes of 200 steps, and max_episode_steps=3")
    for env, limit, warned in (
        (dataset, 3, told),
        (dataset, 200, contextlib.nullcontext()),
    ):
        with warned:
            result = evaluate(StepsDone(), env, 1, max_episode_steps=limit)
        assert (result.score is None) is (limit == 3)
    assert evaluate(StepsDone(), dataset, 1, max_episode_steps=3, reference=scale).score is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_episode_steps", float("nan")),
        ("max_episode_steps", True),
        ("n_episodes", 2.5),
        ("n_episodes", np.True_),
        ("n_envs", "3"),
        ("n_envs", np.ones(2, int)),
    ],
)
def test_what_is_no_whole_number_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.*expected an integer of at least 1"):
        evaluate(StepsDone(), TOY, **{name: value})


def test_numpy_s_whole_numbers_become_json():
    numbers = {"n_episodes": np.int64(2), "n_envs": np.int8(2), "max_episode_steps": np.uint16(2)}
    result = evaluate(StepsDone(), Toy(endless=True), **numbers, warn_of_cuts=False)
    assert json.loads(result.to_json())["cut"] == 2


@pytest.mark.parametrize("arguments", [{"n_episodes": 0}, {"max_episode_steps": 0}])
def test_numbers_below_one_are_refused(arguments):
    with pytest.raises(ValueError, match="expected at least 1"):
        evaluate(StepsDone(), TOY, **arguments)


def test_unknown_environment_is_refused():
    with pytest.raises(ValueError, match="'Nowhere-v0' cannot be made"):
        evaluate(StepsDone(), "Nowhere-v0")


def test_dataset_without_environment_is_refused():
    with pytest.raises(ValueError, match="does not name its environment"):
        evaluate(StepsDone(), make_dataset())


def test_dataset_names_environment_and_scale():
    spec = gym.spec(TOY)
    reference = ReferenceScores(0.0, 200.0, "by hand")
    dataset = make_dataset(env_spec=spec, reference=reference)
    result = evaluate(StepsDone(), dataset, n_episodes=1, seed=0)
    assert result.returns == [14.0]
    assert result.score == pytest.approx(7.0)
    assert result.reference["source"] == "by hand"


def test_bootstrap_interval_of_equal_values_is_the_value():
    assert bootstrap_interval(np.full(10, 3.0)) == (3.0, 3.0)
    assert bootstrap_interval(np.full(1, 3.0)) is None


def test_bootstrap_interval_is_close_to_the_normal_one():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20.0
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap_interval(values) == (low, high)
    narrow = bootstrap_interval(values, confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_summary_by_hand():
    reference = ReferenceScores(-10.0, 30.0, "by hand")
    result = summarize("E-v0", [0.0, 20.0], [1, 2], [5, 6], 0, reference)
    assert result.mean == 10.0
    assert result.score == pytest.approx(50.0)
    assert result.interval == (0.0, 20.0)
    assert result.score_interval == pytest.approx((25.0, 75.0))
    assert summarize("E-v0", [1.0], [1], [0], 0, None).score is None


@pytest.fixture(scope="module")
def pendulum_agent():
    box = spaces.Box(-2.0, 2.0, (1,), np.float32)
    return QGPO(PAPER_LIKE, device="cpu").learn(make_dataset(action_space=box))


@pytest.mark.filterwarnings("ignore:.*step limit:UserWarning")
def test_evaluation_does_not_touch_training_randomness(pendulum_agent):
    before = pendulum_agent.generator.get_state()
    first = evaluate(pendulum_agent, "Pendulum-v1", 2, max_episode_steps=5)
    again = evaluate(pendulum_agent, "Pendulum-v1", 2, max_episode_steps=5)
    assert first.returns == again.returns
    assert (before == pendulum_agent.generator.get_state()).all()


def test_sb3_evaluates_an_agent(pendulum_agent):
    env = gym.wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Monitor.*")
        returns, lengths = evaluate_policy(
            pendulum_agent, env, n_eval_episodes=3, return_episode_rewards=True
        )
    assert lengths == [5, 5, 5]
    assert all(r < 0 for r in returns)


def test_mujoco_environments_are_quiet(tmp_path):
    code = (
        "from qgpo.envs.tasks.making import make_env\n"
        "for _ in range(2):\n"
        "    env = make_env('HalfCheetah-v5')\n"
        "    env.reset(seed=0)\n"
        "    env.step(env.action_space.sample())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert done.stderr == ""
    assert not (Path(tmp_path) / "MUJOCO_LOG.TXT").exists()


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"])
def test_wrappers_of_the_collector_are_left_out(env_id):
    spec = copy.deepcopy(gym.spec(env_id))  # gym.spec hands out the registry's own
    spec.additional_wrappers = (
        gym.envs.registration.WrapperSpec(
            "Monitor", "stable_baselines3.common.monitor:Monitor", None
        ),
    )
    env = make_env(spec)
    assert env.spec.max_episode_steps == 1000
    env.close()


def test_small_returns_keep_their_decimals():
    values = (3877.6, -120.4, 99.96, 0.73, -0.5, 1.0, 0.0)
    assert [readable(v) for v in values] == ["3878", "-120", "99.96", "0.73", "-0.5", "1", "0"]


class Scaled(StepsDone):
    """Acts with its guidance scale."""

    guidance_scale = 0.25

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((len(observation), 1), self.guidance_scale), state


def test_scales_are_played_one_after_the_other_and_the_agent_keeps_its_own():
    agent = Scaled()
    played = evaluate_scales(agent, TOY, 3, [0.0, 1.0, None], seed=1)
    found = {scale: (agent.guidance_scale, e.returns, e.seeds) for scale, e in played}
    assert agent.guidance_scale == 0.25
    lengths = np.array([3.0, 4.0, 2.0])  # seeds 1, 2 and 3
    for scale, acted in ((0.0, 0.0), (1.0, 1.0), (None, 0.25)):
        assert found[scale][0] == acted
        np.testing.assert_allclose(found[scale][1], lengths**2 + 10.0 * lengths * acted)
        assert found[scale][2] == [1, 2, 3]


def test_the_scale_is_the_agents_own_again_where_playing_stops():
    agent = Scaled()
    played = evaluate_scales(agent, TOY, 2, [1.0, 2.0])
    next(played)
    played.close()
    assert agent.guidance_scale == 0.25
    with pytest.raises(ValueError, match="n_episodes=0"):
        list(evaluate_scales(agent, TOY, 0, [1.0]))
    assert agent.guidance_scale == 0.25


def test_members_of_an_ensemble_have_each_its_own_scale_again():
    agent = Scaled()
    agent.guidance_scale = own = (0.5, 2.0)  # as an Ensemble's whose members differ
    acted = []
    agent.predict = lambda observation, *_, **__: (
        acted.append(agent.guidance_scale) or observation[:, :1],
        None,
    )
    assert len(list(evaluate_scales(agent, TOY, 1, [0.0, None]))) == 2
    assert set(acted) == {0.0, own}
    assert agent.guidance_scale == own


def test_agents_without_guidance_have_one_evaluation():
    agent = StepsDone()
    with pytest.raises(ValueError, match=r"scales=\[0.5\]: a StepsDone has no guidance_scale"):
        next(evaluate_scales(agent, TOY, 1, [0.5]))
    [(scale, played)] = evaluate_scales(agent, TOY, 1, [None], seed=0)
    assert (scale, played.returns) == (None, [toy_return(2)])
    assert not hasattr(agent, "guidance_scale")


def test_tables_of_scores_say_what_was_cut():
    data = summarize("data", [100.0, 300.0], [], [], 0, ReferenceScores(0.0, 400.0, "test"))
    cut = summarize(TOY, [0.5], [10], [0], 1, None)
    head, first, second, scale, last = score_table([("data", data), (scale_label(1.0), cut)]).split(
        "\n"
    )
    assert head.split() == ["return", "95", "%", "interval", "normalised", "episodes"]
    assert first.split() == ["data", "200", "[100,", "300]", "50.0", "2"]
    assert second.split() == ["w", "=", "1", "(guided)", "0.5", "no", "interval", "-", "1"]
    assert last.startswith("1 episode did not end by itself")
    assert scale == "normalised: 0 is 0, 100 is 400: test"
    assert "cut" not in score_table([("data", data)])
    assert [scale_label(w) for w in (None, 0.0, 2.0)] == [
        "agent",
        "w = 0 (imitation)",
        "w = 2 (guided)",
    ]


def test_episodes_are_others_than_those_that_are_usually_recorded():
    assert evaluate(StepsDone(), TOY, 2).seeds == [10_000, 10_001]
