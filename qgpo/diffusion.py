"""The diffusion model of the behavior: its loss, noise <-> x_0, and the guided denoiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from qgpo.prepared import AtStep, prepared_output
from qgpo.schedule import OTPath, Schedule
from qgpo.solver import Denoise, get_solver, time_grid

Metrics = dict[str, Tensor]
GuidanceGradient = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x_t (B, D), t (B,), condition (B, C)) to the gradient of f in x_t, shape (B, D)."""

PREDICTIONS = ("noise", "velocity", "flow")
MEAN_HALF_LOG_SNR = -3.0
"""log(alpha / sigma) at which `mean` evaluates; closer to t_max 1 / alpha amplifies errors"""


class Guide(ABC):
    """A gradient of f that may know at once what it has of times and conditions alone."""

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """As every GuidanceGradient."""

    @abstractmethod
    def prepared(self, times: Tensor, condition: Tensor | None) -> AtStep | None:
        """The same for times (K,), by number, and conditions (B, C); None where it does not."""


def uniform_times(n: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Draw n times, uniform on [t_min, t_max], (n,)."""
    u = torch.rand(n, generator=generator, device=generator.device)
    return schedule.t_min + (schedule.t_max - schedule.t_min) * u


def diffuse(x_0: Tensor, t: Tensor, noise: Tensor, schedule: Schedule) -> Tensor:
    """x_t = alpha_t x_0 + sigma_t noise; t has x_0's leading dimensions."""
    return schedule.alpha(t)[..., None] * x_0 + schedule.sigma(t)[..., None] * noise


def is_known(scale: float | Tensor, number: float) -> bool:
    """Whether a guidance scale is that number. A tensor may be any: acting is being recorded."""
    return not isinstance(scale, Tensor) and scale == number


def check_prediction(prediction: str, schedule: Schedule) -> None:
    """Raise ValueError for an unknown prediction, or one that does not fit the schedule."""
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction={prediction!r}, expected one of {list(PREDICTIONS)}")
    if prediction == "flow" and not isinstance(schedule, OTPath):
        raise ValueError(
            f"prediction='flow' is the constant velocity of schedule 'ot', not of {schedule}; "
            "expected one of ['noise', 'velocity']"
        )


def output_for(prediction: str, x_0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network of that prediction has to return for the denoiser to be x_0 (B, D).

    The inverse of `Diffusion.denoise`; alpha and sigma (B, 1).
    """
    if prediction == "noise":
        return (x_t - alpha * x_0) / sigma
    if prediction == "flow":
        return (x_t - x_0) / sigma
    return (alpha * x_t - (alpha**2 + sigma**2) * x_0) / sigma


def batch_posterior(x_t: Tensor, t: Tensor, x_0: Tensor, schedule: Schedule) -> Tensor:
    """Posterior log q(x_0 = x_0^j | x_t) where q is uniform over a batch of R points.

    Shapes (..., B, D), (..., B), (..., R, D) to (..., B, R).

    If x_t is a noisy version of a random member of the batch, this is the exact posterior over
    which member it is. A loss whose target is the member's own value may use the posterior mean
    instead: its expectation stays the same and its variance falls (Rao-Blackwell; Xu et al. 2023,
    arXiv 2302.00670, do so for the score).
    """
    alpha, sigma = schedule.alpha(t)[..., None], schedule.sigma(t)[..., None]
    logits = (alpha / sigma**2 * x_t) @ x_0.mT
    logits = logits - 0.5 * (alpha / sigma) ** 2 * (x_0**2).sum(dim=-1)[..., None, :]
    return torch.log_softmax(logits, dim=-1)


class Diffusion(nn.Module):
    """q(x_0 | condition), learned by denoising, sampled by solving an ODE.

    `prediction` names the network's output: `noise` (eps; DDPM, arXiv 2006.11239),
    `velocity` (v = alpha eps - sigma x_0, arXiv 2202.00512; on a variance preserving schedule
    its target has unit variance at every t, as in EDM's preconditioning, arXiv 2206.00364) or
    `flow` (dx/dt = eps - x_0 on the straight path `ot`; flow matching, arXiv 2210.02747).
    """

    def __init__(self, network: nn.Module, schedule: Schedule, prediction: str) -> None:
        super().__init__()
        check_prediction(prediction, schedule)
        self.network = network
        self.schedule = schedule
        self.prediction = prediction

    def target(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Regression target of the network's output, shape of x_0."""
        if self.prediction == "noise":
            return noise
        if self.prediction == "flow":
            return noise - x_0
        alpha, sigma = self.schedule.alpha(t)[..., None], self.schedule.sigma(t)[..., None]
        return alpha * noise - sigma * x_0

    def denoise(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """E[x_0 | x_t]: (B, D), (B,), (B, C) to (B, D)."""
        output: Tensor = self.network(x_t, t, condition)
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        if self.prediction == "noise":
            return (x_t - sigma * output) / alpha
        if self.prediction == "flow":
            return x_t - sigma * output
        return (alpha * x_t - sigma * output) / (alpha**2 + sigma**2)

    def noise(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """E[eps | x_t]; the score of q_t is -noise / sigma_t."""
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        return (x_t - alpha * self.denoise(x_t, t, condition)) / sigma

    def loss(
        self, x_0: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """Mean squared error of the prediction at uniform times, x_0 of shape (B, D)."""
        loss = torch.mean(self.squared_errors(x_0, condition, generator))
        return loss, {"loss": loss}

    def squared_errors(
        self, x_0: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Squared errors of the prediction at uniform times, (B, D)."""
        t = uniform_times(len(x_0), self.schedule, generator)
        noise = torch.randn(x_0.shape, generator=generator, device=x_0.device)
        output = self.network(diffuse(x_0, t, noise, self.schedule), t, condition)
        squared: Tensor = (output - self.target(x_0, t, noise)) ** 2
        return squared

    def guided_denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | None,
        guidance: GuidanceGradient | None,
        scale: float | Tensor,
        bound: float | Tensor | None = None,
    ) -> Tensor:
        """E[x_0 | x_t] under p_t ~ q_t e^(scale f_t), shape (B, D); t is (B,) or one time for all.

        eps_guided = eps - scale sigma grad f (CEP paper, Eq. 11), therefore
        x_0 = x_0_unguided + scale (sigma^2 / alpha) grad f. No gradient is taken at scale 0.
        With `bound` the guidance is rescaled to |scale sigma grad f| <= bound |eps| (ours).
        """
        t = t.expand(len(x_t))
        with torch.no_grad():
            x_0 = self.denoise(x_t, t, condition)
        if guidance is None or is_known(scale, 0.0):
            return x_0
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        shift = scale * sigma * guidance(x_t, t, condition)
        if bound is not None:
            eps = (x_t - alpha * x_0) / sigma
            limit = bound * torch.linalg.vector_norm(eps, dim=-1, keepdim=True)
            size = torch.linalg.vector_norm(shift, dim=-1, keepdim=True)
            shift = shift * torch.clamp(limit / size.clamp(min=1e-12), max=1.0)
        return x_0 + sigma / alpha * shift

    def _denoiser(
        self,
        times: Tensor,
        condition: Tensor | None,
        guidance: GuidanceGradient | None,
        scale: float | Tensor,
        bound: float | Tensor | None,
    ) -> Denoise:
        """`guided_denoise` for a sampler that goes through those times (K,)."""
        plain = partial(
            self.guided_denoise, condition=condition, guidance=guidance, scale=scale, bound=bound
        )
        output = prepared_output(self.network, times, condition)
        if output is None or isinstance(scale, Tensor) or isinstance(bound, Tensor):
            return plain
        gradient: AtStep | None = None
        if guidance is not None and scale != 0.0:
            if isinstance(guidance, Guide):
                gradient = guidance.prepared(times, condition)
            gradient = gradient or _by_number(guidance, times, condition)
        return _PreparedDenoiser(self, times, output, gradient, scale, bound, plain)

    def sample(
        self,
        x: Tensor,
        condition: Tensor | None,
        *,
        guidance: GuidanceGradient | None = None,
        guidance_scale: float | Tensor = 0.0,
        guidance_bound: float | Tensor | None = None,
        solver: str = "dpm_solver_2m",
        steps: int = 15,
        spacing: str = "time",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Carry noise x (B, D) ~ N(0, I) at t_max to samples (B, D) at t_min.

        Only stochastic solvers need the generator.
        """
        times = time_grid(self.schedule, steps, spacing).to(x.device)
        denoise = self._denoiser(times, condition, guidance, guidance_scale, guidance_bound)
        return get_solver(solver)(denoise, x, times, self.schedule, generator)

    def mean(
        self,
        condition: Tensor,
        dim: int,
        *,
        guidance: GuidanceGradient | None = None,
        guidance_scale: float | Tensor = 0.0,
        guidance_bound: float | Tensor | None = None,
    ) -> Tensor:
        """E[x_0] of the (guided) distribution, (B, C) to (B, dim), with one evaluation.

        Where x_t carries almost no information about x_0, the denoiser returns the mean of q at
        x_t = 0 (Tweedie's formula), and the guided denoiser the mean of p. At MEAN_HALF_LOG_SNR
        the result is m / (1 + 0.0025 v) for samples with mean m and variance v.
        """
        level = condition.new_full((1,), MEAN_HALF_LOG_SNR)
        t = self.schedule.inverse_half_log_snr(level)
        x_t = condition.new_zeros(len(condition), dim)
        return self._denoiser(t, condition, guidance, guidance_scale, guidance_bound)(x_t, t[0])


def _by_number(guidance: GuidanceGradient, times: Tensor, condition: Tensor | None) -> AtStep:
    def gradient(k: int, x_t: Tensor) -> Tensor:
        return guidance(x_t, times[k].expand(len(x_t)), condition)

    return gradient


class _PreparedDenoiser:
    """`guided_denoise` at times that are known in advance; at others as it is (`plain`)."""

    def __init__(
        self,
        model: Diffusion,
        times: Tensor,
        output: AtStep,
        gradient: AtStep | None,
        scale: float,
        bound: float | None,
        plain: Denoise,
    ) -> None:
        self.prediction, self.output, self.gradient = model.prediction, output, gradient
        self.scale, self.bound, self.plain = scale, bound, plain
        self.alpha = model.schedule.alpha(times).tolist()
        self.sigma = model.schedule.sigma(times).tolist()
        self.numbers = {t: k for k, t in enumerate(times.tolist())}

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        k = self.numbers.get(float(t))
        if k is None:
            return self.plain(x_t, t)
        alpha, sigma = self.alpha[k], self.sigma[k]
        output = self.output(k, x_t)  # nobody else's: it is overwritten
        if self.prediction == "noise":
            x_0 = output.mul_(-sigma).add_(x_t).div_(alpha)
        elif self.prediction == "flow":
            x_0 = output.mul_(-sigma).add_(x_t)
        else:
            n = alpha**2 + sigma**2
            x_0 = output.mul_(-sigma / n).add_(x_t, alpha=alpha / n)
        if self.gradient is None:
            return x_0
        gradient = self.gradient(k, x_t)
        if self.bound is None:
            return x_0.add_(gradient, alpha=self.scale * sigma**2 / alpha)
        shift = self.scale * sigma * gradient
        eps = (x_t - alpha * x_0) / sigma
        limit = self.bound * torch.linalg.vector_norm(eps, dim=-1, keepdim=True)
        size = torch.linalg.vector_norm(shift, dim=-1, keepdim=True)
        shift *= torch.clamp(limit / size.clamp(min=1e-12), max=1.0)
        return x_0.add_(shift, alpha=sigma / alpha)
