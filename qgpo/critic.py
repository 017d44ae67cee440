"""How a critic is trained: state values, targets and losses.

In-support softmax Q-learning (CEP paper, arXiv 2304.12824, section 4.2), its lambda-return variant
and the expectile loss of implicit Q-learning.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qgpo.diffusion import Metrics
from qgpo.networks import TwinQ

ROWS_PER_CHUNK = 65536
"""transitions in float64 at a time"""


def in_support_value(q: Tensor, beta_q: float | Tensor) -> Tensor:
    """V(s) = sum_j softmax_j(beta_q Q(s, a_j)) Q(s, a_j) over support actions: (..., M) to (...).

    beta_q = 0 is the mean (the behavior's value), beta_q -> inf the maximum in the support.
    """
    return torch.sum(torch.softmax(beta_q * q, dim=-1) * q, dim=-1)


def in_support_expectile(q: Tensor, expectile: float) -> Tensor:
    """V(s) as the expectile of Q(s, a_j) over support actions: (..., M) to (...).

    The root v of sum_j |expectile - 1(q_j < v)| (q_j - v) = 0, implicit Q-learning's value
    (Kostrikov et al. 2021, arXiv 2110.06169, Eq. 5) on samples: 0.5 is the mean, 1 the maximum.
    The loop is Newton's method on a piecewise linear function. It ends after finitely many steps,
    usually fewer than ten.
    """
    v = q.mean(dim=-1, keepdim=True)
    for _ in range(q.shape[-1]):
        weight = torch.where(q < v, 1.0 - expectile, expectile)
        updated = torch.sum(weight * q, dim=-1, keepdim=True) / weight.sum(dim=-1, keepdim=True)
        if torch.equal(updated, v):
            break
        v = updated
    return v.squeeze(-1)


def expectile_loss(differences: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile - 1(u < 0)| u^2 over u = differences.

    Kostrikov et al. 2021 (arXiv 2110.06169), Eq. 5. At 0.5 it is half the squared error, whose
    minimiser is the mean; as `expectile` goes to 1 the minimiser approaches the maximum.
    """
    weights = torch.where(differences < 0.0, 1.0 - expectile, expectile)
    return torch.mean(weights * differences**2)


def td_target(rewards: Tensor, terminations: Tensor, next_values: Tensor, gamma: float) -> Tensor:
    """One step: r + gamma (1 - terminated) V(s'); a truncation does not cut it. Shapes (B,)."""
    return rewards + gamma * (1.0 - terminations) * next_values


def lambda_returns(
    rewards: Tensor,
    terminations: Tensor,
    last_steps: Tensor,
    next_values: Tensor,
    gamma: float,
    lambda_: float,
) -> Tensor:
    """Returns G_i = r_i + gamma (1 - terminated_i) [(1 - lambda) V(s'_i) + lambda G_{i+1}].

    All tensors have shape (N,), with transitions in the order of their episodes. `last_steps`
    marks the last transition of each episode, where the bracket is V(s') alone. lambda = 0 is
    `td_target`. lambda > 0 is Peng's Q(lambda) without an off-policy correction (Kozuno et al.
    2021, arXiv 2103.00107): one pass propagates rewards through the whole episode, and the target
    is biased towards the behavior's return. The recursion runs in float64 on the CPU, in chunks
    from the last transition to the first.
    """
    out = torch.empty(rewards.shape, dtype=rewards.dtype)
    next_return = 0.0
    for end in range(len(rewards), 0, -ROWS_PER_CHUNK):
        chunk = slice(max(0, end - ROWS_PER_CHUNK), end)
        r = rewards[chunk].double().cpu().numpy()
        bootstrap = (gamma * (1.0 - terminations[chunk].double())).cpu().numpy()
        values = next_values[chunk].double().cpu().numpy()
        last = last_steps[chunk].bool().cpu().numpy()
        returns = torch.empty(len(r), dtype=torch.float64)
        written = returns.numpy()
        for i in range(len(r) - 1, -1, -1):
            value = values[i]
            if not last[i]:
                value = (1.0 - lambda_) * value + lambda_ * next_return
            next_return = r[i] + bootstrap[i] * value
            written[i] = next_return
        out[chunk] = returns
    return out.to(rewards)


def critic_loss(
    critic: TwinQ, observations: Tensor, actions: Tensor, targets: Tensor
) -> tuple[Tensor, Metrics]:
    """Mean squared error of both heads on targets of shape (B,).

    Where the critic has a baseline V, V is regressed on the targets and the heads on targets - V.
    """
    baseline = critic.baseline(observations)
    q = baseline.detach() + critic.advantages(observations, actions)
    loss = torch.mean((q - targets) ** 2)
    metrics: Metrics = {"loss": loss, "q": q.mean(), "target": targets.mean()}
    if critic.value is not None:
        metrics["value_loss"] = torch.mean((baseline - targets) ** 2)
        loss = loss + metrics["value_loss"]
    return loss, metrics


@torch.no_grad()
def polyak_update(source: nn.Module, target: nn.Module, tau: float) -> None:
    """Set target to (1 - tau) target + tau source, parameters and floating point buffers alike."""
    own, others = _numbers(target), _numbers(source)
    if own:
        torch._foreach_lerp_(own, others, tau)


def _numbers(module: nn.Module) -> list[Tensor]:
    """Its parameters and floating point buffers, in the same order for copies of a module."""
    found: list[Tensor] = [*module.parameters()]
    return found + [buffer for buffer in module.buffers() if buffer.is_floating_point()]
