from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from factory import WHITENED, make_dataset, mapped
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

from qgpo import QGPO
from qgpo.agents.core.training import NonFiniteError
from qgpo.agents.guided.imagination import Episodes, Imagination, fit_dynamics, horizon_of, imagine
from qgpo.agents.guided.policy import GuidedPolicy
from qgpo.agents.guided.tuning import (
    GuidanceTuning,
    check_scales,
    choose,
    clearly_more,
    nearest_to_exact,
    tune_guidance,
    with_neighbors,
)
from qgpo.dynamics import DynamicsEnsemble, Prediction
from qgpo.envs.data.windows import windowed

EPISODES = 60
SILENT = {"disable": True}


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    monkeypatch.setattr("qgpo.dynamics.HIDDEN", (64, 64))


def line_dataset():
    """s' = s + a / 2 on a line, reward 1 - a^2, the end beyond -1; actions all over [-1, 1]."""
    rng = np.random.default_rng(0)
    states, actions, rewards, lengths = [], [], [], []
    for _ in range(EPISODES):
        s, length = 0.0, 0
        states.append(s)
        while length < 20 and s > -1.0:
            a = rng.uniform(-1.0, 1.0)
            s, length = s + a / 2.0, length + 1
            states.append(s)
            actions.append(a)
            rewards.append(1.0 - a**2)
        lengths.append(length)
    return make_dataset(
        lengths=lengths,
        observation_dim=1,
        terminated=[length < 20 for length in lengths],
        states=np.array(states, np.float32)[:, None],
        actions=np.array(actions, np.float32)[:, None],
        rewards=np.array(rewards, np.float32),
    )


def test_the_model_has_not_seen_a_tenth_of_the_recorded_episodes():
    """With chunks each episode is read several times."""
    dataset = windowed(make_dataset((6,) * 25), chunk=3)
    found = Episodes(dataset, QGPO(WHITENED, device="cpu").prepare(dataset))
    recorded = dataset.recorded_episodes.repeat(dataset.episode_lengths)
    seen, unseen = set(recorded[found.seen.numpy()]), set(recorded[found.unseen.numpy()])
    assert unseen == {9, 19}
    assert seen == set(range(25)) - unseen


def test_the_model_learns_a_line_its_end_and_where_it_guesses():
    dataset = line_dataset()
    agent = QGPO(WHITENED, device="cpu")
    data = agent.prepare(dataset)
    generator = torch.Generator().manual_seed(0)
    model = fit_dynamics(dataset, data, generator, 1000, tqdm(**SILENT))
    worst = Episodes(dataset, data).most_disagreement(model)
    states = torch.tensor([[0.0], [0.5], [-0.9]])
    actions = torch.tensor([[0.5], [-1.0], [-0.9]])
    found = model(states, actions)
    expected = torch.tensor([[0.25], [0.0], [-1.35]]).expand(4, 3, 1)
    torch.testing.assert_close(found.next_states, expected, atol=0.05, rtol=0.0)
    torch.testing.assert_close(
        found.rewards, torch.tensor([0.75, 0.0, 0.19]).expand(4, 3), atol=0.1, rtol=0.0
    )
    assert bool((found.terminations[:, :2] < -1.0).all())
    assert bool((found.terminations[:, 2] > 0.0).all())
    usual = model(data.states[:200], torch.zeros(200, 1)).disagreement
    assert float(usual.mean()) < worst
    assert float(model(torch.tensor([[60.0]]), torch.zeros(1, 1)).disagreement) > worst


def test_disagreement_is_measured_on_episodes_that_were_not_learned(monkeypatch):
    seen = []
    original = DynamicsEnsemble.loss

    def spy(self, states, *rest):
        seen.append(states)
        return original(self, states, *rest)

    monkeypatch.setattr(DynamicsEnsemble, "loss", spy)
    # episode e stands at e: the tenth and the twentieth are held out
    lengths = (6,) * 20
    places = np.repeat(np.arange(20.0), 7)[:, None].astype(np.float32)
    dataset = make_dataset(lengths=lengths, observation_dim=1, states=places)
    data = QGPO(WHITENED, device="cpu").prepare(dataset)
    fit_dynamics(dataset, data, torch.Generator().manual_seed(0), 5, tqdm(**SILENT))
    assert set(torch.cat([s.flatten() for s in seen]).tolist()) == set(range(20)) - {9, 19}


def test_a_model_that_diverges_is_an_error(monkeypatch):
    monkeypatch.setattr("qgpo.agents.guided.imagination.LEARNING_RATE", 1e30)
    dataset = make_dataset(lengths=(12, 9, 11))
    agent = QGPO(WHITENED, device="cpu").learn(dataset)
    with pytest.raises(NonFiniteError, match="diverged"):
        agent.tune_guidance(dataset, rollouts=2, steps=5)
    assert agent.guidance_scale == WHITENED.guidance_scale


class Scripted:
    """Stands for an agent: action w - 1 wherever it is."""

    name, seed, device, is_trained = "scripted", 0, torch.device("cpu"), True
    guidance_is_off = False

    action_scale = None

    def __init__(self, dataset):
        self.inner = QGPO(WHITENED, device="cpu")
        self.data = self.inner.prepare(dataset)
        self.config = WHITENED
        self.guidance_scale = 0.25
        self.prediction_generator = torch.Generator()
        self.acts = 0

    def prepare(self, dataset):
        return self.data

    _scale = None
    guidance_scale = GuidedPolicy.guidance_scale
    configure_guidance = GuidedPolicy.configure_guidance
    _change = GuidedPolicy._change
    _changes: ClassVar = {}

    def act(self, observations, deterministic):
        self.acts += 1
        return torch.full((len(observations), 1), self.guidance_scale - 1.0)


def test_the_scale_whose_actions_pay_is_chosen():
    dataset = line_dataset()
    agent = Scripted(dataset)
    found = tune_guidance(agent, dataset, (2.0, 0.0, 1.0, 0.75, 1.25), rollouts=8, steps=400)
    assert found.scales == (0.0, 0.75, 1.0, 1.25, 2.0)
    assert found.best == agent.guidance_scale == agent.config.guidance_scale == 1.0
    # twenty steps of reward 1, an early end, twenty of 15 / 16
    means = found.returns.mean(axis=1)
    assert means[2] == pytest.approx(20.0, abs=1.0)
    assert means[1] < 15.0
    assert means[3] == pytest.approx(18.75, abs=1.0)
    *lines, kept = str(found).splitlines()
    assert kept == "no other scale is clearly better than w = 1"
    assert ["<" in line for line in lines] == [False, False, False, True, False, False]
    w, mean, _, score, *_ = lines[3].split()
    assert (w, mean, score) == ("1", f"{means[2]:.1f}", f"{means[1:4].mean():.1f}")


def test_a_score_is_the_mean_with_the_neighbors():
    scores = with_neighbors(np.array([3.0, 6.0, 0.0, 9.0]))
    np.testing.assert_allclose(scores, [(3 + 3 + 6) / 3, 3.0, 5.0, (0 + 9 + 9) / 3])
    np.testing.assert_allclose(with_neighbors(np.array([4.0])), [4.0])


@pytest.mark.parametrize(
    ("returns", "index"),
    [
        ((1.0, 5.0), 1),  # of two scales the better one
        ((5.0, 1.0), 0),
        ((0.0, 9.0, 0.0, 7.0, 8.0, 7.0, 0.0), 4),  # a plateau before a peak between falls
        # of the last three the scores are 100 + 2 x / 3, 100 + x, 100 + x
        ((100.0, 100.0, 100.0, 100.4, 100.4, 100.4), 2),
        ((100.0, 100.0, 100.0, 100.6, 100.6, 100.6), 3),
        ((100.0, 100.0, 100.0, 102.0, 102.0, 102.0), 4),
        ((-100.0, -100.0, -100.0, -99.6, -99.6, -99.6), 2),
        ((-100.0, -100.0, -100.0, -98.0, -98.0, -98.0), 4),
        ((99.0, 103.0, 100.0, 90.0), 1),
        ((80.0, 95.0, 100.0, 103.0, 10.0), 2),  # a peak beside a fall
        ((0.0, 0.0, 0.0), 2),
    ],
)
def test_of_scales_clearly_above_w_1_the_smallest_of_nearly_the_best_score(returns, index):
    """Scales are 0, 0.5, 1, ..."""
    exact = min(2, len(returns) - 1)
    assert choose(exact, np.repeat(np.array(returns)[:, None], 8, axis=1)) == index


@pytest.mark.parametrize(
    ("scales", "kept"),
    [
        ((0.0, 1.0, 2.0), 1.0),
        ((0.0, 0.5, 2.0), 0.5),
        ((0.0, 2.0), 2.0),
        ((3.0, 4.0), 3.0),
        ((0.0,), 0.0),
    ],
)
@pytest.mark.parametrize("rollouts", [1, 2, 5])
def test_without_a_clear_gain_w_1_or_the_nearest_is_chosen(scales, kept, rollouts):
    exact = nearest_to_exact(scales)
    assert scales[choose(exact, np.ones((len(scales), rollouts)))] == kept


@pytest.mark.parametrize(
    ("gains", "noise", "clear"),
    [
        ((3.0, 4.0, 2.0, 3.0), 1.0, True),
        ((3.0, 9.0, -1.0, 3.0), 1.0, False),  # of two minds
        ((0.2, 0.3, 0.2, 0.3), 0.1, False),  # too small for a model
    ],
)
def test_of_a_larger_scale_every_member_must_see_a_clear_gain(gains, noise, clear):
    """Each episode follows one member, in turn; starts differ by much and are shared."""
    rng = np.random.default_rng(0)
    starts, noise = 100.0 + 10.0 * rng.normal(size=48), noise * rng.normal(size=48)
    returns = np.stack([starts, starts + np.tile(gains, 12) + noise - noise.mean()])
    assert clearly_more(0, returns).tolist() == [False, clear]
    flattered = np.stack([returns[1] - returns[1].mean() + returns[0].mean() + 3.0, starts])
    assert clearly_more(1, flattered)[0]  # harm needs no agreement


@pytest.mark.parametrize(
    ("reference", "errors", "clear"),
    [
        (0, 3.4, True),
        (0, 2.6, False),
        (1, 2.4, True),
        (1, 1.6, False),
    ],
)
def test_how_many_standard_errors_are_clear(reference, errors, clear):
    """Of differences that are the same for every member."""
    rng = np.random.default_rng(1)
    differences = np.repeat(rng.normal(size=12), 4)
    differences -= differences.mean()
    differences *= 10.0 / (differences.std(ddof=1) / np.sqrt(48))
    gain = differences + 10.0 * errors
    other, exact = 500.0 + gain, np.full(48, 500.0)
    returns = np.stack([other, exact] if reference else [exact, other])
    assert clearly_more(reference, returns).any() == clear


class Fixed(torch.nn.Module):
    """One step to the right; from 3 on members disagree, by more than the limit even when averaged
    over the window; the second one says that it ends at 2, the first at 4, which is too late."""

    members = (0, 1)

    def forward(self, states, actions):
        x = states[:, 0]
        ends = torch.stack([torch.where(x >= end, 1.0, -1.0) for end in (4.0, 2.0)])
        after = (states + 1.0).expand(2, -1, -1)
        return Prediction(after, torch.ones(2, len(x)), ends, torch.where(x >= 3.0, 11.0, 0.0))


def test_imagined_episodes_end_or_leave_the_data():
    agent = Scripted(line_dataset())
    bounds = torch.tensor([-100.0]), torch.tensor([100.0])
    returns, left = imagine(
        agent, Fixed(), torch.zeros(4, 1), bounds, 6, 1.0, -2.0, True, tqdm(**SILENT)
    )
    # member 0: 1 + 1 + 1, then three steps at the worst reward; member 1 ends with the third step
    assert returns.tolist() == [3.0 - 6.0, 3.0, 3.0 - 6.0, 3.0]
    assert left.tolist() == [True, False, True, False]
    assert agent.acts == 4  # nothing is asked once every episode has ended or left


def test_one_surprise_is_not_leaving_the_data():
    agent = Scripted(line_dataset())
    bounds = torch.tensor([-100.0]), torch.tensor([100.0])
    arguments = (torch.zeros(1, 1), bounds, 5, 2.0, -2.0, True, tqdm(**SILENT))
    returns, left = imagine(agent, Fixed(), *arguments)  # 11 / 10, then 22 / 10 with the last step
    assert left.tolist() == [True]
    assert returns.tolist() == [4.0 - 2.0]


def test_imagined_states_stay_within_the_data():
    agent = Scripted(line_dataset())
    bounds = torch.tensor([-100.0]), torch.tensor([2.5])
    returns, left = imagine(
        agent, Fixed(), torch.zeros(2, 1), bounds, 6, 1.0, -2.0, True, tqdm(**SILENT)
    )
    assert returns.tolist() == [6.0, 3.0]
    assert not left.any()


def test_a_trained_agent_is_tuned_and_keeps_its_scale(tmp_path):
    dataset = make_dataset(lengths=(12, 9, 11))
    agent = QGPO(WHITENED, device="cpu").learn(dataset)
    noise = agent.prediction_generator.get_state()
    agent.tune_guidance(dataset, (1.0,), rollouts=4, steps=5, deterministic=False)
    assert torch.equal(noise, agent.prediction_generator.get_state())
    found = agent.tune_guidance(dataset, scales=(0.0, 2.0), rollouts=4, steps=5)
    assert found.returns.shape == (2, 4)
    assert found.best in (0.0, 2.0)
    again = QGPO(WHITENED, device="cpu").learn(dataset)
    same = again.tune_guidance(dataset, scales=(0.0, 2.0), rollouts=4, steps=5)
    np.testing.assert_array_equal(found.returns, same.returns)
    on_disk = mapped(dataset)
    other = QGPO(WHITENED, device="cpu").learn(on_disk)
    np.testing.assert_array_equal(
        found.returns, other.tune_guidance(on_disk, (0.0, 2.0), rollouts=4, steps=5).returns
    )
    agent.save(tmp_path / "tuned")
    assert QGPO.load(tmp_path / "tuned", device="cpu").guidance_scale == found.best


@pytest.mark.parametrize(("rewards", "cost"), [((-1, -3, 0, 4, 9), -2.0), ((1, 3, 0, 4, 9), 0.0)])
def test_what_leaving_the_data_costs_and_how_long_an_episode_is(rewards, cost, monkeypatch):
    dataset = make_dataset(lengths=(2, 3), rewards=np.array(rewards, np.float32))
    agent = QGPO(WHITENED, device="cpu").learn(dataset)
    found = []

    def spy(agent, model, starts, bounds, horizon, most, worst_reward, deterministic, bar):
        found.append((horizon, most, worst_reward))
        return torch.zeros(len(starts)), torch.zeros(len(starts), dtype=torch.bool)

    monkeypatch.setattr(Episodes, "most_disagreement", lambda *_: 3.0)
    monkeypatch.setattr("qgpo.agents.guided.imagination.imagine", spy)
    agent.tune_guidance(dataset, (1.0,), rollouts=2, steps=1)
    monkeypatch.setattr("qgpo.agents.guided.imagination.LONGEST_EPISODE", 2)
    agent.tune_guidance(dataset, (1.0,), rollouts=2, steps=1)
    assert found == [(3, 6.0, cost), (2, 6.0, cost)]


@pytest.mark.parametrize(("chunk", "limit", "decisions"), [(1, 7, 7), (2, 7, 4), (4, 100, 10)])
def test_an_imagined_episode_has_as_many_decisions_as_the_environment_allows(
    chunk, limit, decisions
):
    spec = EnvSpec("Pendulum-v1", max_episode_steps=limit)
    dataset = replace(make_dataset(lengths=(40, 21)), env_spec=spec)
    assert horizon_of(windowed(dataset, chunk=chunk)) == decisions


def test_imagined_episodes_begin_where_recorded_ones_do(monkeypatch):
    monkeypatch.setattr(Episodes, "most_disagreement", lambda *_: 3.0)
    data = windowed(make_dataset(lengths=(9, 7)), chunk=3)  # three readings of each
    batches = QGPO(WHITENED, device="cpu").learn(data).prepare(data)
    world = Imagination.of(Fixed(), data, batches, torch.Generator().manual_seed(0), None, 40)
    first = batches.observations(batches.state_index[data.episode_starts[[0, 3]]])
    assert torch.equal(torch.unique(world.starts, dim=0), torch.unique(first, dim=0))


def test_what_cannot_be_tuned_is_refused():
    dataset = make_dataset()
    agent = QGPO(WHITENED, device="cpu")
    with pytest.raises(RuntimeError, match=r"not finished training.*learn\(dataset\)"):
        agent.tune_guidance(dataset)
    agent.learn(dataset)
    with pytest.raises(ValueError, match=r"scales=\(\), expected numbers in"):
        agent.tune_guidance(dataset, scales=())
    with pytest.raises(ValueError, match=r"scales=\(1\.0, -1\.0\)"):
        agent.tune_guidance(dataset, scales=(1.0, -1.0))
    with pytest.raises(ValueError, match="rollouts=1"):
        agent.tune_guidance(dataset, rollouts=1)
    with pytest.raises(ValueError, match="other data"):
        agent.tune_guidance(make_dataset(seed=5))
    agent.act = interrupted
    with pytest.raises(KeyboardInterrupt):
        agent.tune_guidance(dataset, scales=(0.0, 2.0), rollouts=2, steps=1)
    assert agent.guidance_scale == agent.config.guidance_scale == WHITENED.guidance_scale


def interrupted(observations, deterministic):
    raise KeyboardInterrupt


def test_scales_are_sorted_and_unique():
    assert check_scales([2, 0.5, 2.0]) == (0.5, 2.0)
    assert check_scales(np.array([1.0, 0.0])) == (0.0, 1.0)
    with pytest.raises(ValueError, match="1e"):
        check_scales([1e12])
    with pytest.raises(ValueError, match="nan"):
        check_scales([float("nan")])
    for scales in (None, 0, ["x"], [None]):
        with pytest.raises(ValueError, match=r"scales=.*, expected numbers in \[0, 1e\+09\]"):
            check_scales(scales)


def test_ensembles_of_one_seed_are_the_same_and_their_members_are_not():
    def weights() -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [next(iter(m.parameters())) for m in DynamicsEnsemble(2, 1).members]

    first, second = weights(), weights()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(("gain", "distinct"), [(5.0, True), (0.1, False)])
def test_a_choice_within_the_error_is_called_one(gain, distinct):
    rng = np.random.default_rng(0)
    returns = 100.0 * rng.normal(size=48) + np.stack([gain + rng.normal(size=48), np.zeros(48)])
    tuning = GuidanceTuning((0.0, 1.0), returns, np.zeros((2, 48), np.bool_))
    assert tuning.is_distinct is distinct  # though both are far below the spread of episodes
    assert tuning.best == (0.0 if distinct else 1.0)
    said = "no other scale is clearly better than w = 1"
    assert (said in str(tuning)) is not distinct
    alone = GuidanceTuning((1.0,), returns[:1], np.zeros((1, 48), np.bool_))
    assert said not in str(alone)
