"""Episodes that fail, and what is said while and after episodes are played."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr
from dataclasses import asdict, replace

import gymnasium as gym
import numpy as np
import pytest
from factory import PAPER_LIKE, make_dataset
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from qgpo import QGPO, evaluate
from qgpo.envs import collect_vec_env
from qgpo.envs.play.evaluation import evaluate_scales
from qgpo.envs.play.scores import EvaluationError, scale_label, score_table, summarize
from qgpo.envs.tasks.reference import ReferenceScores

FAILS = "qgpo-tests/Fails-v0"


class Fails(gym.Env):
    """Episodes of 2 steps with reward 1 each; the one of seed 3 fails at its second step."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, how="nothing"):
        self.how = how

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.fails = 0, seed == 3
        if self.fails and self.how == "reset":
            raise OSError("the simulator is gone")
        first = np.nan if self.fails and self.how == "first" else 0.0
        return np.full(3, first, np.float32), {}

    def step(self, action):
        self.t += 1
        how = self.how if self.fails and self.t == 2 else "nothing"
        if how == "raises":
            raise ZeroDivisionError("by a bug")
        reward = {"reward": np.nan, "infinite": -np.inf, "none": None}.get(how, 1.0)
        over = self.t == 2 + (self.how == "observation")
        observation = np.zeros(3, np.float32)
        if how == "observation" or (self.how == "last" and over):
            observation[1] = np.nan
        return observation, reward, over, False, {}


class Zero:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros((len(observation), 1), np.float32), None


@pytest.fixture(autouse=True, scope="module")
def _registered():
    quiet = {"disable_env_checker": True}
    gym.register(FAILS, entry_point=f"{__name__}:Fails", max_episode_steps=9, **quiet)
    yield
    gym.registry.pop(FAILS)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", r"episode 3 \(seed 3\), step 1: ZeroDivisionError: by a bug"),
        ("reset", r"episode 3 \(seed 3\), at its start: OSError: the simulator is gone"),
        ("reward", r"episode 3 \(seed 3\), step 1: its reward is nan"),
        ("infinite", r"episode 3 \(seed 3\), step 1: its reward is -inf"),
        ("none", r"episode 3 \(seed 3\), step 1: TypeError: float"),
        ("first", r"episode 3 \(seed 3\), at its start: its observation has NaN: \[nan"),
        ("observation", r"episode 3 \(seed 3\), step 2: its observation has NaN: \[ ?0\. nan"),
    ],
)
def test_episodes_that_ended_are_kept(how, message):
    with pytest.raises(EvaluationError, match=message) as caught:
        evaluate(Zero(), Fails(how), 5, seed=0)
    kept = caught.value.evaluation
    length = 3 if how == "observation" else 2
    assert (kept.returns, kept.lengths, kept.seeds) == ([length] * 3, [length] * 3, [0, 1, 2])
    assert f"kept are the 3 that ended: {kept}" in str(caught.value)
    assert isinstance(caught.value, ValueError)  # so that scripts end with one line


@pytest.mark.parametrize("n_envs", [1, 2, 5])
def test_copies_that_fail(n_envs):
    spec = replace(gym.spec(FAILS), kwargs={"how": "raises"})
    with pytest.raises(EvaluationError, match=r"Fails-v0 failed in episode 3") as caught:
        evaluate(Zero(), spec, 5, seed=0, n_envs=n_envs)
    kept = caught.value.evaluation
    under_way = [] if n_envs == 1 else [4]  # is played to its end
    assert kept.seeds == [0, 1, 2, *under_way]
    assert kept.returns == [2.0] * len(kept.seeds)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("how", ["raises", "reward", "first"])
def test_vector_environments_that_fail(mode, how):
    envs = SyncVectorEnv([lambda: Fails(how)] * 2, autoreset_mode=mode)
    with pytest.raises(EvaluationError) as caught:
        evaluate(Zero(), envs, 4, seed=3)
    kept = caught.value.evaluation
    if how == "reward":  # of one slot: the other's episode ends in the same step
        assert (kept.seeds, kept.returns) == ([4], [2.0])
    else:
        assert kept is None
        assert "no episode had ended" in str(caught.value)


def test_a_last_observation_is_not_acted_on():
    assert evaluate(Zero(), Fails("last"), 2).returns == [2.0, 2.0]


class Refuses(Zero):
    """Takes no NaN."""

    def predict(self, observation, **more):
        parts = observation.values() if isinstance(observation, dict) else [observation]
        assert all(np.isfinite(part).all() for part in parts)
        return np.zeros((len(next(iter(parts))), 1), np.float32), None


class Named(gym.ObservationWrapper):
    """The observation as a Dict."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict(seen=env.observation_space)

    def observation(self, observation):
        return {"seen": observation}


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("make", [lambda: Fails("last"), lambda: Named(Fails("last"))])
def test_a_last_observation_reaches_no_policy_of_a_vector_environment(mode, make):
    envs = SyncVectorEnv([make] * 3, autoreset_mode=mode)
    assert evaluate(Refuses(), envs, 5, seed=2).returns == [2.0] * 5


def test_an_agent_that_fails_later_loses_nothing_and_at_once_raises_its_own():
    class Tires(Zero):
        left = 5

        def predict(self, observation, **more):
            self.left -= 1
            if self.left < 0:
                raise KeyError("tired")
            return super().predict(observation)

    with pytest.raises(EvaluationError, match="KeyError: 'tired'; of 9 episodes") as caught:
        evaluate(Tires(), Fails(), 9)
    assert len(caught.value.evaluation.returns) == 2
    tired = Tires()
    tired.left = 0
    with pytest.raises(KeyError, match="tired"):
        evaluate(tired, Fails(), 9)


def test_scales_before_the_one_that_fails_are_there():
    agent = Zero()
    agent.guidance_scale = 1.0
    env = Fails("raises")
    played = evaluate_scales(agent, env, 3, [0.0, 1.0], seed=0)
    assert next(played)[1].returns == [2.0] * 3
    played.close()
    with pytest.raises(EvaluationError) as caught:
        list(evaluate_scales(agent, env, 5, [0.0], seed=0))
    assert len(caught.value.evaluation.returns) == 3
    assert agent.guidance_scale == 1.0


def test_one_episode_has_no_interval():
    one = summarize("Env-v0", [885.0], [10], [0], 0, ReferenceScores(0.0, 1000.0, "test"))
    assert (one.mean, one.interval, one.score, one.score_interval) == (885.0, None, 88.5, None)
    assert str(one) == "885, normalised 88.5 (0 is 0, 100 is 1000) in one episode (no interval)"
    assert "no interval" in score_table([("agent", one)])
    assert json.loads(one.to_json())["interval"] is None
    assert asdict(one)["interval"] is None
    two = summarize("Env-v0", [885.0, 885.0], [10] * 2, [0, 1], 0, None)
    assert str(two) == "885 [885, 885] (95 %) over 2 episodes"


def test_the_bar_counts_steps_and_names_the_scale():
    agent = Zero()
    agent.guidance_scale = 0.5
    for env in (Fails(), SyncVectorEnv([Fails] * 2)):
        shown = io.StringIO()
        with redirect_stderr(shown):
            evaluate(agent, env, 3, max_episode_steps=4, progress_bar=True)
        assert "evaluate w = 0.5 (guided)" in shown.getvalue()
        assert "0/12" in shown.getvalue()
        assert "step" in shown.getvalue()
    assert scale_label((0.5, 2.0)) == "w = 0.5, 2"


class Learned(Zero):
    """Stands for an agent of this package, which has a generator of its own."""

    def seed_predictions(self, seed):
        pass


def normalizing_envs():
    env = gym.wrappers.NormalizeObservation(Fails())
    yield env, evaluate
    yield gym.wrappers.TimeLimit(env, 5), evaluate
    yield SyncVectorEnv([lambda: gym.wrappers.NormalizeObservation(Fails())]), evaluate
    vector = gym.wrappers.vector.NormalizeObservation(SyncVectorEnv([Fails]))
    yield gym.wrappers.vector.RecordEpisodeStatistics(vector), evaluate
    limited = DummyVecEnv([lambda: gym.wrappers.TimeLimit(Fails(), 5)])
    yield VecNormalize(limited), collect_vec_env


def test_normalized_observations_are_told_to_agents_that_learned_from_data(recwarn):
    for env, play in normalizing_envs():
        settings = {} if play is evaluate else {"seed": 0, "progress_bar": False}
        with pytest.warns(UserWarning, match="normalizes its observations"):
            play(Learned(), env, 2, **settings)
        recwarn.clear()
        play(Zero(), env, 2, **settings)
        assert not [w for w in recwarn if "normalizes" in str(w.message)]


def test_a_normalizing_environment_given_to_an_agent_is_told(recwarn):
    agent = QGPO(PAPER_LIKE, device="cpu")
    agent.set_spaces(
        *(getattr(make_dataset(), f"{name}_space") for name in ("observation", "action")), ""
    )
    for env in (VecNormalize(DummyVecEnv([Fails])), gym.wrappers.NormalizeObservation(Fails())):
        with pytest.warns(UserWarning, match="without that wrapper"):
            agent.set_env(env)
    recwarn.clear()
    agent.set_env(VecNormalize(DummyVecEnv([Fails]), norm_obs=False))
    assert not [w for w in recwarn if "normalizes" in str(w.message)]
