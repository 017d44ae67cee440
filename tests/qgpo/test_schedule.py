from __future__ import annotations

import math

import pytest
import torch

from qgpo.schedule import SCHEDULES, CosineVP, LinearVP, OTPath, make_schedule


def times(schedule, n=501):
    return torch.linspace(schedule.t_min, schedule.t_max, n, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_inverse_half_log_snr_returns_the_time(name):
    schedule = make_schedule(name)
    t = times(schedule)
    back = schedule.inverse_half_log_snr(schedule.half_log_snr(t))
    torch.testing.assert_close(back, t, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_half_log_snr_is_log_alpha_over_sigma_and_decreases(name):
    schedule = make_schedule(name)
    t = times(schedule)
    expected = torch.log(schedule.alpha(t) / schedule.sigma(t))
    torch.testing.assert_close(schedule.half_log_snr(t), expected, rtol=1e-7, atol=1e-9)
    assert (schedule.half_log_snr(t).diff() < 0).all()


@pytest.mark.parametrize("schedule", [LinearVP(), CosineVP()], ids=["linear", "cosine"])
def test_variance_is_preserved(schedule):
    t = times(schedule)
    total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t))


@pytest.mark.parametrize(
    ("schedule", "t", "alpha", "sigma"),
    [
        # log alpha = -0.25 * 0.25 * 19.9 - 0.5 * 0.5 * 0.1 = -1.26875
        (LinearVP(), 0.5, math.exp(-1.26875), math.sqrt(1 - math.exp(-2.5375))),
        # log alpha = -0.25 * 19.9 - 0.05 = -5.025
        (LinearVP(), 1.0, math.exp(-5.025), math.sqrt(1 - math.exp(-10.05))),
        (CosineVP(), 0.5, math.sqrt(0.5), math.sqrt(0.5)),
        (CosineVP(), 1 / 3, math.sqrt(3) / 2, 0.5),
        (OTPath(), 0.25, 0.75, 0.25),
    ],
)
def test_closed_form_values(schedule, t, alpha, sigma):
    t = torch.tensor(t, dtype=torch.float64)
    assert float(schedule.alpha(t)) == pytest.approx(alpha, rel=1e-12)
    assert float(schedule.sigma(t)) == pytest.approx(sigma, rel=1e-12)
    assert float(schedule.half_log_snr(t)) == pytest.approx(math.log(alpha / sigma), abs=1e-12)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_single_precision_is_finite_at_both_ends(name):
    schedule = make_schedule(name)
    ends = torch.tensor([schedule.t_min, schedule.t_max])
    assert torch.isfinite(schedule.half_log_snr(ends)).all()
    assert (schedule.sigma(ends) > 0).all()
    assert (schedule.alpha(ends) > 0).all()


def test_unknown_name_lists_the_choices():
    with pytest.raises(ValueError, match=r"'quadratic'.*cosine.*linear.*ot"):
        make_schedule("quadratic")
