"""Episodes that are scored by success: in every kind of environment, and in words and JSON."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from factory import make_dataset
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from qgpo import evaluate
from qgpo.envs.play.intervals import success_interval
from qgpo.envs.play.scores import EvaluationError, score_table, summarize
from qgpo.envs.tasks import families
from qgpo.envs.tasks.families import Family
from qgpo.envs.tasks.reference import ReferenceScores

WINS = "qgpo-tests/Wins-v0"
OF_FIVE = [True, False, True, False, True]
"""what is expected of seeds 0 to 4"""


class Wins(gym.Env):
    """Episodes of 3 steps, reward -1 each; those of even seeds succeed, and end at the second.

    In the others the info says success at the first step, which does not count. An unseeded reset
    counts the seed up.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    says = staticmethod(bool)
    """as what the info has it; None for an info without it"""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.seed = 0, self.seed + 1 if seed is None else seed
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        wins = self.seed % 2 == 0
        success = self.t == 2 if wins else self.t == 1
        info = {} if self.says is None else {"success": self.says(success)}
        return np.zeros(2, np.float32), -1.0, wins and success, self.t == 3, info


def made(says):
    """A Wins that says success in that way; it is the same task."""
    env = gym.make(WINS)
    env.unwrapped.says = says
    return env


class Zero:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros((len(observation), 1), np.float32), None


@pytest.fixture(autouse=True)
def _a_family(monkeypatch):
    row = Family("wins", environments=WINS, scored=WINS, success=True, n_envs=2)
    monkeypatch.setattr(families, "FAMILIES", (row, *families.FAMILIES))
    gym.register(WINS, entry_point=f"{__name__}:Wins", max_episode_steps=9)
    yield
    gym.registry.pop(WINS)


def check(result, seeds=range(5)):
    """The numbers of episodes with these seeds."""
    wins = [seed % 2 == 0 for seed in seeds]
    assert result.successes == wins
    assert all(type(success) is bool for success in result.successes)
    assert result.lengths == [2 if win else 3 for win in wins]
    assert result.returns == [-2.0 if win else -3.0 for win in wins]
    assert result.score == result.success == pytest.approx(100.0 * np.mean(wins))


@pytest.mark.parametrize("n_envs", [None, 1, 3, 5])
@pytest.mark.parametrize("kind", ["id", "spec", "dataset", "instance"])
def test_success_of_the_last_step_is_the_score(kind, n_envs):
    env = {
        "id": WINS,
        "spec": gym.spec(WINS),
        "dataset": make_dataset(env_spec=gym.spec(WINS)),
        "instance": gym.make(WINS),
    }[kind]
    result = evaluate(Zero(), env, 5, n_envs=n_envs)
    check(result)
    # Wilson by hand, p = 0.6, n = 5, z = 1.96: (0.6 + 0.3841 +- 0.5764) / 1.7683
    assert result.score_interval == pytest.approx((23.07, 88.24), abs=0.01)
    assert (result.mean, result.reference) == (-2.4, None)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_success_in_a_vector_environment(mode):
    envs = SyncVectorEnv([lambda: gym.make(WINS)] * 3, autoreset_mode=mode)
    result = evaluate(Zero(), envs, 8)
    # slots begin with seeds 0, 1 and 2, and count up
    check(result, [0, 1, 2, 1, 2, 3, 2, 3])


@pytest.mark.parametrize("kind", ["by id", "wrapped", "processes"])
def test_success_in_vector_environments_of_other_kinds(kind):
    if kind != "processes":
        envs = gym.make_vec(WINS, num_envs=2, vectorization_mode="sync")
    elif sys.platform == "linux":  # elsewhere their processes do not know the id
        envs = AsyncVectorEnv([lambda: gym.make(WINS)] * 2)
    else:
        pytest.skip("processes of AsyncVectorEnv are forked on Linux alone")
    if kind == "wrapped":
        envs = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    result = evaluate(Zero(), envs, 4)
    envs.close()
    check(result, [0, 1, 1, 2])
    assert result.env_id == WINS


@pytest.mark.parametrize("says", [float, int, np.bool_, np.float32, np.array])
def test_success_as_environments_say_it(says):
    check(evaluate(Zero(), made(says), 5))
    check(evaluate(Zero(), SyncVectorEnv([lambda: made(says)] * 2), 4), [0, 1, 1, 2])


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_an_environment_that_does_not_say_it_is_refused(mode):
    env = made(None)
    if mode is not None:
        env = SyncVectorEnv([lambda: made(None)] * 2, autoreset_mode=mode)
    with pytest.raises(EvaluationError, match="info has no 'success', by which episodes of") as e:
        evaluate(Zero(), env, 2)
    assert e.value.evaluation is None


@pytest.mark.parametrize("said", [0.5, "yes", np.nan, [True, False]])
def test_success_that_is_no_flag_is_refused(said):
    with pytest.raises(EvaluationError, match=r"has success=.*expected True or False"):
        evaluate(Zero(), made(lambda _: said), 1)


def test_what_ended_before_a_failure_keeps_its_success():
    class Breaks(Wins):
        spec = gym.spec(WINS)

        def step(self, action):
            if self.seed == 3:
                raise OSError("gone")
            return super().step(action)

    with pytest.raises(EvaluationError, match=r"kept are the 3 that ended: success 66.7 % \[") as e:
        evaluate(Zero(), Breaks(), 5, seed=0)
    check(e.value.evaluation, range(3))


def test_another_step_limit_is_another_task():
    """An episode that is cut has failed, and neither its success nor the others' are a score."""
    with pytest.warns(
        UserWarning, match="no score, because its success rate.*for 9 steps, not.*steps=1"
    ):
        result = evaluate(Zero(), WINS, 3, max_episode_steps=1, warn_of_cuts=False)
    assert (result.successes, result.cut) == ([False, True, False], 3)  # as the info says
    assert result.success == pytest.approx(100 / 3)
    assert (result.score, result.score_interval) == (None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(evaluate(Zero(), WINS, 5, max_episode_steps=9))


def test_reference_returns_are_refused():
    with pytest.raises(
        ValueError, match=r"reference=.*episodes of .*Wins-v0 are scored by success"
    ):
        evaluate(Zero(), WINS, 1, reference=ReferenceScores(-3.0, 0.0, "by hand"))


def test_returns_in_metadata_are_no_scale():
    family = families.find_family(env_id=WINS)
    metadata = {"ref_min_score": -3.0, "ref_max_score": 0.0}
    assert family.scores(metadata, gym.spec(WINS)) is None
    assert list(family.without_scores(metadata, gym.spec(WINS))) == []
    [said] = family.without_scores({}, replace(gym.spec(WINS), kwargs={"easy": True}))
    assert "easy=True" in said


def test_wilson_s_interval():
    # k = 0: upper end z^2 / (n + z^2), with z^2 = 3.8415
    assert success_interval([False] * 50) == pytest.approx((0.0, 100 * 3.8415 / 53.8415), abs=1e-3)
    assert success_interval([True]) == pytest.approx((100 / 4.8415, 100.0), abs=1e-3)
    low, high = success_interval([True, False] * 200)
    assert (low + high, high - low) == pytest.approx((100.0, 2 * 1.96 * 2.5), rel=0.01)
    narrow = success_interval([True, False], confidence=0.5)
    assert success_interval([True, False])[0] < narrow[0] < narrow[1]


def test_success_in_words():
    many = summarize(WINS, [-2.0, -3.0, -2.0, -3.0, -2.0], [2] * 5, [*range(5)], 0, None, OF_FIVE)
    assert str(many) == "success 60.0 % [23.1, 88.2] (95 %) over 5 episodes (mean return -2.4)"
    one = summarize(WINS, [-3.0], [3], [1], 0, None, [False])
    assert str(one) == "success 0.0 % [0.0, 79.3] (95 %) in one episode (mean return -3)"
    assert one.interval is None
    text = score_table([("w = 1 (guided)", many), ("w = 0 (imitation)", one)])
    assert text.split("\n") == [
        "                      success [95 % interval]       return  episodes",
        "w = 1 (guided)        60.0 % [23.1, 88.2]             -2.4         5",
        "w = 0 (imitation)     0.0 % [0.0, 79.3]                 -3         1",
    ]
    without = summarize("other", [5.0], [1], [0], 0, None)
    assert (without.success, without.success_interval, without.success_text) == (None, None, "-")


def test_success_in_json():
    result = evaluate(Zero(), WINS, 3)
    written = json.loads(result.to_json())
    assert written["successes"] == [True, False, True]
    assert written["score"] == pytest.approx(200 / 3)
