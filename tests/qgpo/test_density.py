from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from factory import WHITENED, make_dataset
from gymnasium import spaces

from qgpo import QGPO
from qgpo.agents.core.batches import Batches
from qgpo.density import (
    FARTHEST,
    MOST_SPARSE,
    REFERENCES,
    Trust,
    mode_of_samples,
    sampling_weights,
)
from qgpo.envs.data.windows import windowed

INTERVAL = spaces.Box(-1.0, 1.0, (1,), np.float32)


def fitted(power: float) -> Trust:
    """References at 0 and 10 on a line; states at 1, 12 and 4, the last of episode 0 itself."""
    trust = Trust(1, power)
    references = torch.tensor([[0.0], [10.0]])[torch.arange(REFERENCES) % 2]
    states = torch.tensor([[1.0], [12.0], [4.0]])
    own = torch.zeros(3, REFERENCES, dtype=torch.bool)
    own[2, ::2] = True  # the reference at 0 does not count: its distance is 6, not 4
    trust.fit(references, states, own)
    return trust


def test_trust_by_hand():
    trust = fitted(2.0)
    assert float(trust.median) == pytest.approx(2.0)  # of 1, 2 and 6
    found = trust(torch.tensor([[0.0], [2.0], [4.0], [5.0], [-8.0]]))
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 0.25, 4.0 / 25.0, 4.0 / 64.0]))


def test_before_the_fit_and_in_a_single_episode_every_state_is_trusted():
    trust = Trust(2, 4.0)
    far = torch.tensor([[1e6, 0.0]])
    assert trust(far).tolist() == [1.0]
    trust.fit(
        torch.zeros(REFERENCES, 2), torch.ones(3, 2), torch.ones(3, REFERENCES, dtype=torch.bool)
    )
    assert trust(far).tolist() == [1.0]
    assert torch.isfinite(trust.median)


def test_data_in_which_most_states_are_the_same():
    trust = Trust(1, 4.0)
    trust.fit(
        torch.zeros(REFERENCES, 1), torch.zeros(3, 1), torch.zeros(3, REFERENCES, dtype=torch.bool)
    )
    assert trust(torch.tensor([[0.0], [1.0]])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("cells", [torch.cartesian_prod(*[torch.arange(5.0)] * 3), torch.eye(64)])
def test_states_that_recur_are_trusted_in_batches_of_any_size(cells):
    """The fast formula of cdist gives equal states a distance above 0."""
    known, new = 0.7 * cells[:-3] + 0.1, 0.7 * cells[-3:] + 0.1
    trust = Trust(known.shape[1], 4.0)
    references = known[torch.arange(REFERENCES) % len(known)]
    others = torch.cat([known, known, new])
    trust.fit(references, others, torch.zeros(len(others), REFERENCES, dtype=torch.bool))
    assert float(trust.median) == pytest.approx(0.7 if len(cells) == 125 else 0.7 * 2**0.5)
    assert trust(known).tolist() == [1.0] * len(known)
    assert [float(trust(one[None])) for one in known[:9]] == [1.0] * 9
    assert trust(new).tolist() == [1.0] * 3  # as near as new states are
    assert bool((trust(new + 5.0) < 0.1).all())


def test_rows_of_states_know_their_episode():
    data = Batches.of(make_dataset(lengths=(2, 1, 3)), torch.device("cpu"))
    assert data.episodes().tolist() == data.recordings().tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_rows_of_states_know_their_recorded_episode():
    """With chunks it is read from each of its first steps."""
    read = Batches.of(windowed(make_dataset(lengths=(3, 4)), chunk=2), torch.device("cpu"))
    numbers = read.recordings()
    assert numbers.tolist() == sorted(numbers.tolist())
    assert set(numbers.tolist()) == {0, 1}
    assert int(read.episodes()[-1]) == 3
    later = Batches.of(windowed(make_dataset(lengths=(3,)), chunk=2), torch.device("cpu"))
    joined = read.followed_by(later, 0.5).recordings()
    assert joined.tolist() == [*numbers.tolist(), *(later.episodes() + 2).tolist()]


def test_with_chunks_other_readings_of_an_episode_are_not_near():
    walks = np.random.default_rng(0).normal(size=(20, 40, 3)).cumsum(axis=1)
    plain = make_dataset(lengths=(39,) * 20, states=walks.reshape(-1, 3).astype(np.float32))
    medians = []
    for dataset in (plain, windowed(plain, chunk=4)):
        agent = QGPO(replace(WHITENED, trust_power=4.0), device="cpu")
        agent.learn(dataset)
        medians.append(float(agent.trust.median))
    assert medians[1] == pytest.approx(medians[0], rel=0.2)


def test_far_from_the_data_the_agent_acts_by_the_behavior():
    dataset = make_dataset(lengths=(40, 40))
    agent = QGPO(replace(WHITENED, trust_power=8.0), device="cpu").learn(dataset)
    always = QGPO(replace(WHITENED, trust_power=0.0), device="cpu").learn(dataset)
    near, far = dataset.states[:5], dataset.states[:5] + 10.0

    def act(of: QGPO, scale: float, observations: np.ndarray) -> np.ndarray:
        of.guidance_scale = scale
        return of.predict(observations, deterministic=True)[0]

    # states of the references themselves are at no distance: there the trust changes nothing
    np.testing.assert_array_equal(act(agent, 3.0, near), act(always, 3.0, near))
    assert not np.allclose(act(always, 3.0, near), act(always, 0.0, near))
    np.testing.assert_array_equal(act(agent, 3.0, far), act(agent, 0.0, far))
    assert not np.array_equal(act(always, 3.0, far), act(always, 0.0, far))


@pytest.mark.parametrize("guidance", ["dps", "qgf", "aepo"])
def test_where_beta_is_one_number_the_limit_holds_for_the_typical_state(guidance):
    dataset = make_dataset(lengths=(40, 40))
    config = replace(
        WHITENED, guidance=guidance, beta=1e6, tilt_limit=0.5, critic_activation="silu"
    )
    agent = QGPO(config, device="cpu")
    agent.train_behavior(dataset)
    agent.generate_support(dataset)
    agent.train_critic(dataset)
    q = agent.critic.table_of_q(agent.prepare(dataset))
    agent.train_energy(dataset)
    spread = float(agent.temperature.beta * q.std(dim=-1).mean())
    assert spread == pytest.approx(0.5, rel=1e-5)
    small = QGPO(replace(config, beta=1e-3), device="cpu").learn(dataset)
    assert float(small.temperature.beta) == pytest.approx(1e-3)


def test_an_offset_does_not_cost_digits():
    torch.manual_seed(0)
    references, states = torch.randn(REFERENCES, 3), torch.randn(40, 3)
    found = []
    for offset in (0.0, 1000.0):
        trust = Trust(3, 4.0)
        trust.fit(references + offset, states + offset, torch.zeros(40, REFERENCES, dtype=bool))
        found.append(trust(3.0 * states + offset))
    torch.testing.assert_close(found[0], found[1], atol=0.0, rtol=0.02)
    one_by_one = torch.cat([trust(row[None]) for row in 3.0 * states + 1000.0])
    torch.testing.assert_close(one_by_one, found[1], atol=0.0, rtol=1e-3)


def test_sampling_weights_by_hand():
    distances = torch.tensor([1.0, 2.0, 3.0, 100.0, 0.0])  # median 2
    found = sampling_weights(distances, 2.0)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 2.25, MOST_SPARSE**2, 1.0]))
    assert sampling_weights(distances, 0.0).tolist() == [1.0] * 5
    assert sampling_weights(torch.zeros(3), 2.0).tolist() == [1.0] * 3
    single_episode = torch.full((3,), FARTHEST)
    assert sampling_weights(single_episode, 2.0).tolist() == [1.0] * 3


def test_sparse_states_are_drawn_more_often():
    rng = np.random.default_rng(0)
    alike = rng.normal(size=(41, 3))
    states = np.concatenate([alike, alike + rng.normal(size=(41, 3)), np.full((2, 3), 90.0)])
    dataset = make_dataset(lengths=(40, 40, 1), states=states.astype(np.float32))
    agent = QGPO(replace(WHITENED, sparsity_power=2.0), device="cpu")
    data = agent.prepare(dataset)
    weights = agent.behavior._sparsity_weights(data)
    assert weights.shape == (81,)
    assert float(weights[-1]) == MOST_SPARSE**2  # its own episode's other state does not count
    assert float(weights.min()) == 1.0
    counts = torch.bincount(agent.behavior._draw_by(weights.cumsum(0), 100_000), minlength=81)
    expected = 100_000 * weights / weights.sum()
    assert float(((counts - expected) / expected.sqrt()).abs().max()) < 5.0


def test_weights_are_those_of_a_plain_loop(monkeypatch):
    monkeypatch.setattr("qgpo.agents.guided.behavior.ROWS_PER_CHUNK", 7)
    monkeypatch.setattr("qgpo.agents.guided.behavior.REFERENCES", 20)
    dataset = make_dataset(lengths=(30, 5, 20))
    agent = QGPO(replace(WHITENED, sparsity_power=1.5), device="cpu")
    data = agent.prepare(dataset)
    states, episodes = agent.behavior.normalizer(data.states), data.episodes().tolist()
    references = agent.behavior.shuffled_rows(data)[:20].tolist()
    distances = torch.tensor(
        [
            min(float((s - states[r]).norm()) for r in references if episodes[r] != episodes[i])
            for i, s in enumerate(states)
        ]
    )
    expected = sampling_weights(distances, 1.5)[data.state_index].double()
    torch.testing.assert_close(
        agent.behavior._sparsity_weights(data), expected, atol=1e-4, rtol=1e-4
    )
    assert 1.0 < float(expected.max()) < MOST_SPARSE**1.5


def test_weights_of_one_episode_and_of_the_largest_power():
    largest = 16.0  # the largest that the configuration allows
    agent = QGPO(replace(WHITENED, sparsity_power=largest), device="cpu")
    data = agent.prepare(make_dataset(lengths=(40,)))
    weights = agent.behavior._sparsity_weights(data)
    assert weights.tolist() == [1.0] * 40
    farthest = sampling_weights(torch.tensor([1.0, 1.0, 9.0]), largest)
    assert farthest.tolist() == [1.0, 1.0, MOST_SPARSE**largest]
    with pytest.raises(ValueError, match="sparsity_power"):
        replace(WHITENED, sparsity_power=largest + 1.0)


def test_ctrl_c_while_states_are_compared():
    agent = QGPO(WHITENED, device="cpu")
    data = agent.prepare(make_dataset())
    agent.training.interrupted = True
    with pytest.raises(KeyboardInterrupt, match="compared"):
        agent.behavior._sparsity_weights(data)


def test_the_gaussian_policy_learns_from_what_is_drawn():
    """Ten of 410 states are far apart, with another action: imitated sooner if drawn more often."""
    rng = np.random.default_rng(0)
    far = np.linspace(2.0, 4.0, 20)[:, None]  # of episodes of one step
    states = np.concatenate([rng.normal(0.0, 0.1, size=(402, 1)), far]).astype(np.float32)
    actions = np.repeat([-0.5, 0.5], [400, 10])[:, None].astype(np.float32)
    lengths = (200, 200, *[1] * 10)
    dataset = make_dataset(lengths, 1, INTERVAL, states=states, actions=actions)
    found = []
    for power in (0.0, 2.0):
        config = replace(WHITENED, sparsity_power=power, whitening_steps=60)
        agent = QGPO(config, device="cpu")
        agent.train_behavior(dataset)
        with torch.no_grad():
            mean, _ = agent.behavior.whitening.moments(
                agent.behavior.normalizer(torch.as_tensor(states[402:]))
            )
        found.append(float(torch.mean((mean - 0.5) ** 2)))
    assert found[1] < 0.5 * found[0]


def test_the_mode_of_two_heaps_is_the_mean_of_the_larger_one():
    # three at 0.9, 1 and 1.1, two at -1: the width is the first quartile of ten distances, 0.1
    samples = torch.tensor([[[-1.0], [0.9], [1.0], [-1.0], [1.1]]])
    torch.testing.assert_close(mode_of_samples(samples), torch.tensor([[1.0]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dim", [1, 6])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
def test_the_mode_of_one_heap_is_nearly_its_mean_in_every_unit(dim, spread):
    generator = torch.Generator().manual_seed(0)
    samples = 5.0 + spread * torch.randn(200, 16, dim, generator=generator)
    error = (mode_of_samples(samples) - 5.0).square().mean().sqrt() / spread
    one, mean = 1.0, 16**-0.5
    assert mean * 0.9 < float(error) < 0.5 * one


@pytest.mark.parametrize("k", [1, 2, 16])
def test_the_mode_of_equal_samples_is_that_sample(k):
    samples = torch.tensor([0.3, -0.7]).expand(4, k, 2)
    torch.testing.assert_close(mode_of_samples(samples), samples[:, 0])


def test_a_mode_never_lies_between_two_narrow_heaps():
    generator = torch.Generator().manual_seed(1)
    sides = torch.where(torch.rand(500, 16, 1, generator=generator) < 0.6, 1.0, -1.0)
    samples = sides * torch.tensor([1.0, 0.0]) + 0.1 * torch.randn(500, 16, 2, generator=generator)
    found = mode_of_samples(samples)[:, 0]
    assert float(found.abs().min()) > 0.8
    assert float(((found > 0) == (sides.sum(dim=1).squeeze(-1) > 0)).float().mean()) > 0.9
