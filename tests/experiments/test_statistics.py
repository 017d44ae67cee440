from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from qgpo.experiments.statistics import (
    hierarchical_bootstrap,
    improvement_interval,
    iqm,
    loss_of_choice,
    mean,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)


def test_iqm_leaves_out_the_lowest_and_the_highest_quarter():
    # 8 numbers: two go on each side, (2 + 3 + 4 + 5) / 4 is left
    assert iqm([[100.0, 0.0, 2.0, 3.0], [-50.0, 4.0, 5.0, 7.0]]) == pytest.approx(3.5)
    # 6 numbers: a quarter is one and a half, one goes on each side
    assert iqm([[0.0, 1.0, 2.0], [3.0, 4.0, 100.0]]) == pytest.approx(2.5)
    assert iqm([[1.0, 2.0, 6.0]]) == mean([[1.0, 2.0, 6.0]]) == 3.0
    assert mean([[0.0], [3.0, 3.0]]) == 2.0


def test_improvement_counts_pairs_of_runs_and_averages_over_tasks():
    # task 1: of the pairs (1, 0), (1, 2), (3, 0), (3, 2) three are won; task 2: a tie
    found = probability_of_improvement([[1.0, 3.0], [5.0]], [[0.0, 2.0], [5.0]])
    assert found == pytest.approx((0.75 + 0.5) / 2)
    assert probability_of_improvement([[0.0, 2.0], [5.0]], [[1.0, 3.0], [5.0]]) == 1.0 - found
    assert probability_of_improvement([[1.0]], [[0.0, 2.0, 0.5, 0.1]]) == 0.75
    with pytest.raises(ValueError, match="shorter"):
        probability_of_improvement([[1.0], [2.0]], [[1.0]])


def test_a_profile_is_the_share_of_runs_above_each_threshold():
    found = performance_profile([[0.0, 10.0], [20.0]], [-1.0, 0.0, 10.0, 20.0])
    assert found.tolist() == [1.0, 0.75, 0.5, 0.0]
    profile = partial(performance_profile, thresholds=[-1.0, 5.0, 25.0])
    low, high = stratified_bootstrap([[0.0, 10.0], [20.0]], profile, resamples=500)
    # two runs drawn from (0, 10): both above 5 with probability 1/4, none with 1/4
    assert low.tolist() == [1.0, 0.5, 0.0]
    assert high.tolist() == [1.0, 1.0, 0.0]


def test_the_bootstrap_is_stratified():
    # within a task all runs agree: nothing can vary, although tasks differ by 100
    assert stratified_bootstrap([[0.0, 0.0], [100.0, 100.0]], mean, resamples=200) == (50.0, 50.0)
    assert stratified_bootstrap([[7.0]], resamples=10) == (7.0, 7.0)
    assert improvement_interval([[1.0, 1.0]], [[0.0, 0.0]], resamples=10) == (1.0, 1.0)


def test_the_hierarchical_bootstrap_draws_seeds_and_then_episodes():
    # seeds that differ: the mean of two draws is 0, 50, 100 with probability 1/4, 1/2, 1/4
    assert hierarchical_bootstrap([[0.0, 0.0], [100.0, 100.0]], 0.4, 4000) == (50.0, 50.0)
    assert hierarchical_bootstrap([[0.0, 0.0], [100.0, 100.0]], 0.6, 4000) == (0.0, 100.0)
    # a single seed: its episodes, as above
    assert hierarchical_bootstrap([[0.0, 1.0]], 0.4, 4000) == (0.5, 0.5)
    assert hierarchical_bootstrap([[0.0, 1.0]], 0.6, 4000) == (0.0, 1.0)
    # a training counts once, however many episodes it played
    assert hierarchical_bootstrap([[0.0] * 9, [100.0]], 0.4, 4000) == (50.0, 50.0)


def test_the_bootstrap_s_interval_is_that_of_the_binomial():
    # the mean of two runs drawn from (0, 1) is 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    assert stratified_bootstrap([[0.0, 1.0]], mean, 0.4, 4000) == (0.5, 0.5)
    assert stratified_bootstrap([[0.0, 1.0]], mean, 0.6, 4000) == (0.0, 1.0)
    # one run on each side: P(improvement) is 1 or 0 with the drawn run
    low, high = improvement_interval([[0.0, 2.0]], [[1.0]], 0.4, 4000)
    assert (low, high) == (0.5, 0.5)


def test_the_bootstrap_of_many_runs_is_the_normal_interval():
    values = np.random.default_rng(1).normal(size=400)
    low, high = stratified_bootstrap([values], mean, resamples=2000)
    error = values.std() / 20.0
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert stratified_bootstrap([values], mean, resamples=2000) == (low, high)


@pytest.mark.parametrize("tasks", [[], [[1.0], []], [[1.0, float("nan")]], [[[1.0]]]])
def test_missing_scores_are_refused_not_imputed(tasks):
    with pytest.raises(ValueError, match="expected"):
        iqm(tasks)


def test_confidence_is_a_probability():
    with pytest.raises(ValueError, match=r"confidence=95, expected between 0 and 1"):
        stratified_bootstrap([[1.0]], confidence=95)


def test_a_choice_loses_the_difference_to_the_best():
    returns = [[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0]]
    assert [loss_of_choice(returns, i) for i in range(3)] == [2.0, 0.0, 1.0]


def test_luck_is_no_loss():
    # five options that are all the same: the best of their means is 1.16 standard errors too high
    rng = np.random.default_rng(0)
    draws = [rng.normal(size=(5, 20)) for _ in range(200)]
    naive = [d.mean(axis=1).max() - d[0].mean() for d in draws]
    halved = [loss_of_choice(d, 0, halves=20) for d in draws]
    assert np.mean(naive) == pytest.approx(1.163 / 20**0.5, abs=0.04)
    assert np.mean(halved) == pytest.approx(0.0, abs=0.06)


def test_a_choice_is_among_several():
    for shape in ((1, 4), (2, 1)):
        with pytest.raises(ValueError, match=rf"shape \({shape[0]}, {shape[1]}\)"):
            loss_of_choice(np.ones(shape), 0)
    with pytest.raises(ValueError, match="from 0 to 1"):
        loss_of_choice(np.ones((2, 4)), -1)
    with pytest.raises(ValueError, match="finite"):
        loss_of_choice([[1.0, np.nan], [1.0, 1.0]], 0)
