from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import WHITENED, make_dataset
from tqdm import tqdm

from qgpo import QGPO
from qgpo.agents.tuning import check_scales, fit_dynamics, imagine, tune_guidance
from qgpo.dynamics import DynamicsEnsemble, Prediction

LENGTHS = (20,) * 40
SILENT = {"disable": True}


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch):
    monkeypatch.setattr("qgpo.dynamics.HIDDEN", (64, 64))


def line_dataset():
    """s' = s + a / 2 on a line, reward 1 - a^2, actions all over [-1, 1]."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1.0, 1.0, (sum(LENGTHS), 1)).astype(np.float32)
    states = [
        np.concatenate([[0.0], np.cumsum(part[:, 0]) / 2.0])
        for part in np.split(actions, len(LENGTHS))
    ]
    return make_dataset(
        lengths=LENGTHS,
        observation_dim=1,
        terminated=[False] * len(LENGTHS),
        states=np.concatenate(states)[:, None].astype(np.float32),
        actions=actions,
        rewards=1.0 - actions[:, 0] ** 2,
    )


def test_the_model_learns_a_line_and_knows_where_it_guesses():
    dataset = line_dataset()
    agent = QGPO(WHITENED, device="cpu")
    data = agent._prepare(dataset)
    generator = torch.Generator().manual_seed(0)
    model, worst = fit_dynamics(dataset, data, generator, 600, tqdm(**SILENT))
    states, actions = torch.tensor([[0.0], [0.5]]), torch.tensor([[0.5], [-1.0]])
    found = model(states, actions)
    expected = torch.tensor([[0.25], [0.0]]).expand(4, 2, 1)
    torch.testing.assert_close(found.next_states, expected, atol=0.05, rtol=0.0)
    torch.testing.assert_close(
        found.rewards, torch.tensor([0.75, 0.0]).expand(4, 2), atol=0.1, rtol=0.0
    )
    assert bool((found.terminations < -2.0).all())
    assert float(found.disagreement.max()) < worst
    assert float(model(torch.tensor([[60.0]]), torch.zeros(1, 1)).disagreement) > worst


class Scripted:
    """Stands for an agent: action w - 1 wherever it is."""

    name, seed, device, is_trained = "scripted", 0, torch.device("cpu"), True

    def __init__(self, dataset):
        self.inner = QGPO(WHITENED, device="cpu")
        self.data = self.inner._prepare(dataset)
        self.config = WHITENED
        self.guidance_scale = 0.25
        self.prediction_generator = torch.Generator()

    def _prepare(self, dataset):
        return self.data

    def _act(self, observations, deterministic):
        return torch.full((len(observations), 1), self.guidance_scale - 1.0)


def test_the_scale_whose_actions_pay_is_chosen():
    dataset = line_dataset()
    agent = Scripted(dataset)
    found = tune_guidance(agent, dataset, (2.0, 0.0, 1.0, 0.5), rollouts=8, steps=400)
    assert found.scales == (0.0, 0.5, 1.0, 2.0)
    assert found.best == agent.guidance_scale == agent.config.guidance_scale == 1.0
    # twenty steps of reward 1, and of reward 3/4 where it does not leave the data
    assert found.returns[2].mean() == pytest.approx(20.0, abs=1.0)
    assert found.returns[1].mean() < found.returns[2].mean()
    assert "  1 " in str(found)
    assert "<" in str(found).splitlines()[3]


class Fixed(torch.nn.Module):
    """One step to the right; members disagree from 3 on; the second one says it ends at 2."""

    members = (0, 1)

    def forward(self, states, actions):
        x = states[:, 0]
        ends = torch.stack([torch.full_like(x, -1.0), torch.where(x >= 2.0, 1.0, -1.0)])
        after = (states + 1.0).expand(2, -1, -1)
        return Prediction(after, torch.ones(2, len(x)), ends, torch.where(x >= 3.0, 9.0, 0.0))


def test_imagined_episodes_end_or_leave_the_data():
    agent = Scripted(line_dataset())
    bounds = torch.tensor([-100.0]), torch.tensor([100.0])
    returns, left = imagine(
        agent, Fixed(), torch.zeros(4, 1), bounds, 6, 1.0, -2.0, True, tqdm(**SILENT)
    )
    # member 0: 1 + 1 + 1, then three steps at the worst reward; member 1 ends with the third step
    assert returns.tolist() == [3.0 - 6.0, 3.0, 3.0 - 6.0, 3.0]
    assert left.tolist() == [True, False, True, False]


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
    found = agent.tune_guidance(dataset, scales=(0.0, 2.0), rollouts=4, steps=5)
    assert found.returns.shape == (2, 4)
    assert found.best in (0.0, 2.0)
    assert torch.equal(noise, agent.prediction_generator.get_state())
    again = QGPO(WHITENED, device="cpu").learn(dataset)
    same = again.tune_guidance(dataset, scales=(0.0, 2.0), rollouts=4, steps=5)
    np.testing.assert_array_equal(found.returns, same.returns)
    agent.save(tmp_path / "tuned")
    assert QGPO.load(tmp_path / "tuned", device="cpu").guidance_scale == found.best


def test_what_cannot_be_tuned_is_refused():
    dataset = make_dataset()
    agent = QGPO(WHITENED, device="cpu")
    with pytest.raises(RuntimeError, match=r"not trained.*learn\(dataset\)"):
        agent.tune_guidance(dataset)
    agent.learn(dataset)
    with pytest.raises(ValueError, match=r"scales=\(\), expected numbers of at least 0"):
        agent.tune_guidance(dataset, scales=())
    with pytest.raises(ValueError, match=r"scales=\(1\.0, -1\.0\)"):
        agent.tune_guidance(dataset, scales=(1.0, -1.0))
    with pytest.raises(ValueError, match="rollouts=1"):
        agent.tune_guidance(dataset, rollouts=1)
    with pytest.raises(ValueError, match="other data"):
        agent.tune_guidance(make_dataset(seed=5))
    assert agent.guidance_scale == WHITENED.guidance_scale


def test_scales_are_sorted_and_unique():
    assert check_scales([2, 0.5, 2.0]) == (0.5, 2.0)
    with pytest.raises(ValueError, match="nan"):
        check_scales([float("nan")])


def test_ensembles_of_one_seed_are_the_same_and_their_members_are_not():
    torch.manual_seed(0)
    model = DynamicsEnsemble(2, 1)
    first, second = (next(iter(m.parameters())) for m in list(model.members)[:2])
    assert not torch.equal(first, second)
