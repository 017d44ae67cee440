"""Statistics of rankings, on data whose correlations, reliability and gains are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from qgpo.experiments import ranking
from qgpo.experiments.ranking import Estimate, rank, rank_correlation


def made(states=200, actions=16, repetitions=4, noise=1.0, agreement=0.6, seed=0):
    """Values and returns: true values of variance 1, critic correlated by `agreement`."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(states, actions))
    other = rng.normal(size=(states, actions))
    q = agreement * truth + math.sqrt(1.0 - agreement**2) * other
    shared = 10.0 * rng.normal(size=(states, 1, repetitions))  # common random numbers
    of_state = 100.0 * rng.normal(size=(states, 1, 1))
    returns = truth[:, :, None] + of_state + shared
    return q, returns + noise * rng.normal(size=(states, actions, repetitions)), truth


def test_known_correlation_reliability_and_attenuation():
    # noise of variance 1 in each of 4 repetitions: reliability 1 / (1 + 1/4) = 0.8
    q, returns, _ = made()
    found = rank(q, returns)
    assert found.reliability.value == pytest.approx(0.8, abs=0.02)
    assert found.correlation.value == pytest.approx(0.6 * math.sqrt(0.8), abs=0.03)
    assert found.corrected.value == pytest.approx(0.6, abs=0.03)
    assert found.slope.value == pytest.approx(0.6, abs=0.03)
    assert found.spearman.value == pytest.approx(found.correlation.value, abs=0.05)
    for estimate in vars(found).values():
        assert estimate.states == 200
        low, high = estimate.interval
        assert low < estimate.value < high


def test_known_gains():
    # one action of four is better by 8, and the critic knows it in half of the states
    returns = np.zeros((40, 4, 2))
    returns[:, 1] = 8.0
    q = np.zeros((40, 4))
    q[:20, 1] = q[20:, 0] = 1.0
    found = rank(q, returns)
    assert found.chosen.value == pytest.approx((6.0 - 2.0) / 2)
    assert found.perfect.value == found.perfect_above.value == pytest.approx(6.0)
    assert found.share.value == pytest.approx(1 / 3)
    assert found.reliability.value == pytest.approx(1.0)
    gains = ranking.gains_over_mean(np.full((40, 1, 2), 5.0), returns)
    np.testing.assert_allclose(gains, 3.0)
    shares = ranking.shares_beaten(np.full((40, 1, 2), 5.0), returns)
    np.testing.assert_allclose(shares, 0.75)
    both = ranking.shares_beaten(np.stack([returns[:, 0], returns[:, 1]], axis=1), returns)
    np.testing.assert_allclose(both, (1.5 / 4 + 3.5 / 4) / 2)  # ties count half


def test_a_perfect_critic_gains_what_there_is_and_no_more_than_the_upper_estimate():
    _, returns, truth = made(noise=2.0)
    found = rank(truth, returns)
    possible = float(np.mean(truth.max(axis=1) - truth.mean(axis=1)))
    assert found.chosen.value == pytest.approx(possible, abs=0.15)
    assert found.perfect.value < found.chosen.value < found.perfect_above.value
    assert found.corrected.value == pytest.approx(1.0, abs=0.03)


def test_noise_alone_has_no_reliability_and_no_perfect_gain():
    rng = np.random.default_rng(0)
    found = rank(rng.normal(size=(400, 8)), rng.normal(size=(400, 8, 4)))
    assert found.correlation.value == pytest.approx(0.0, abs=0.05)
    assert found.perfect.value == pytest.approx(0.0, abs=0.06)
    assert found.perfect_above.value > 0.5
    assert found.reliability.interval[0] < 0.0 < found.reliability.interval[1]


def test_a_constant_critic_orders_by_chance():
    _, returns, _ = made(states=10)
    found = rank(np.full((10, 16), 3.0), returns)
    assert found.correlation.value == found.spearman.value == found.corrected.value == 0.0
    assert found.chosen.value == pytest.approx(0.0, abs=1e-9)
    assert found.slope == Estimate(None, None, 10)
    rounded = 300.0 + 1e-5 * np.random.default_rng(0).normal(size=(10, 16))  # float32's last digit
    assert rank(rounded, returns).correlation.value == 0.0
    assert rank(rounded, returns).spearman.value == 0.0


def test_returns_are_as_exact_in_one_half_as_in_the_other():
    # effects of actions a ten-millionth of the returns: too small for a critic, not for the truth
    effects = 1e-4 * np.random.default_rng(0).normal(size=(10, 5, 1))
    found = rank(effects[..., 0], 1000.0 + effects.repeat(2, axis=2))
    assert found.correlation.value == pytest.approx(1.0)
    assert found.reliability.value == found.corrected.value == pytest.approx(1.0)


def test_states_in_which_actions_do_not_matter_are_left_out():
    q, returns, _ = made(states=12)
    returns[:9] = np.random.default_rng(0).normal(size=(9, 1, 4)) * np.ones((9, 16, 1))
    found, alone = rank(q, returns), rank(q[9:], returns[9:])
    assert found.correlation.value == alone.correlation.value
    assert found.correlation.states == found.corrected.states == 3
    assert found.reliability.value == pytest.approx(alone.reliability.value)
    assert found.chosen.states == 12
    assert found.chosen.value == pytest.approx(alone.chosen.value / 4)
    nothing = rank(q[:9], returns[:9])
    assert nothing.correlation == Estimate(None, None, 0)
    assert nothing.corrected.value is nothing.reliability.value is nothing.share.value is None
    assert nothing.perfect.value == pytest.approx(0.0)


def test_ties_share_the_choice():
    gains = ranking.gains_of_choice(np.array([[1.0, 1.0, 0.0]]), np.array([[3.0, 0.0, 0.0]]))
    assert gains == pytest.approx(1.5 - 1.0)


def test_spearman_is_scipy_s_with_ties_too():
    rng = np.random.default_rng(0)
    q, truth = rng.integers(4, size=(6, 9)).astype(float), rng.normal(size=(6, 9)) ** 3
    expected = np.mean([stats.spearmanr(a, b).statistic for a, b in zip(q, truth, strict=True)])
    assert rank(q, truth[..., None]).spearman.value == pytest.approx(expected)
    pearson = np.mean([stats.pearsonr(a, b).statistic for a, b in zip(q, truth, strict=True)])
    assert rank(q, truth[..., None]).correlation.value == pytest.approx(pearson)


def test_one_repetition_and_one_state():
    q, returns, _ = made(states=5, repetitions=1)
    found = rank(q, returns)
    assert found.correlation.value is not None
    assert found.reliability.value is found.corrected.value is None
    assert found.perfect == found.share == Estimate(None, None, 0)
    q, returns, _ = made(states=1)
    found = rank(q, returns)
    assert found.correlation.value is not None
    assert found.correlation.interval is None


def test_spearman_and_brown():
    halves = np.array([1.0, 0.5, 0.0, -0.9, np.nan])
    whole = ranking.stepped_up(halves)
    np.testing.assert_allclose(whole, [1.0, 2 / 3, 0.0, -0.9, np.nan])
    corrected = ranking.attenuated(np.array([0.5, 0.4, 0.4, 0.4, 0.4]), whole)
    np.testing.assert_allclose(corrected, [0.5, 0.4 / (2 / 3) ** 0.5, np.nan, np.nan, np.nan])


def test_divisions_into_halves():
    assert ranking.splits(1) == []
    assert ranking.splits(2) == [([0], [1])]
    assert ranking.splits(4) == [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2])]
    assert ranking.splits(3) == [([0], [1, 2]), ([1], [0, 2]), ([2], [0, 1])]
    many = ranking.splits(12)
    assert len({tuple(half) for half, _ in many}) == ranking.MOST_SPLITS
    assert all(sorted(half + rest) == list(range(12)) for half, rest in many)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"values \(2, 3\) and returns \(2, 4, 1\)"):
        rank(np.zeros((2, 3)), np.zeros((2, 4, 1)))
    with pytest.raises(ValueError, match="not finite"):
        rank(np.array([[0.0, np.nan]]), np.zeros((1, 2, 1)))


def test_rank_correlation_of_one_group_is_spearman_s():
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    y = x + 0.5 * rng.normal(size=12)
    found = rank_correlation([(x, y)])
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.states == 12


def test_rank_correlation_pools_within_groups():
    # between the groups both are far apart, the other way round; within each, the order is the same
    first, second = np.arange(4.0), np.arange(5.0)
    found = rank_correlation([(first, 1000.0 + first), (100.0 + second, second)])
    assert found.value == pytest.approx(1.0)
    assert rank_correlation([(first, first), (second, -second)]).value == pytest.approx(
        0.0, abs=0.2
    )


def test_rank_correlation_without_differences():
    assert rank_correlation([]) == Estimate(None, None, 0)
    assert rank_correlation([([1.0], [2.0])]) == Estimate(None, None, 0)
    same, order = np.full(10, 0.3), np.arange(10.0)
    for equal in (same, same[:3], same[:6]):
        assert rank_correlation([(equal, order[: len(equal)])]).value is None
    alone, both = rank_correlation([(order, order)]), [(order, order), (same, order)]
    assert rank_correlation(both).value == alone.value  # it contributes nothing
    with pytest.raises(ValueError, match="as many finite numbers"):
        rank_correlation([([1.0, 2.0], [1.0])])
