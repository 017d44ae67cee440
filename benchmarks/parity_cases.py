"""The agents of FQL's authors that are compared, and our losses for each of them.

The noise is theirs, from their key splits, and given to our losses as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qgpo.agents.core.batches import NextActions
from qgpo.agents.rebrac import LAST_GAIN, penalized_values, rebrac_loss
from qgpo.critic import critic_loss, expectile_loss, td_target
from qgpo.flow import flow_actions, flow_matching_loss, one_step_loss
from qgpo.networks import FlowNetwork, gelu_mlp, gelu_twin_q
from qgpo.policies import advantage_weights, perturbed, weighted_likelihood_loss

STATE, ACTION, BATCH = 28, 5, 256
"""cube-single's spaces"""
HIDDEN = (256, 256)
RATE, TAU, GAMMA = 3e-4, 0.005, 0.99
"""their defaults"""
BOTH_HEADS = 2.0
"""their IQL and IFQL sum the two critics' errors, `critic_loss` is their mean"""

Batch = dict[str, Tensor]
Networks = dict[str, Any]
Losses = dict[str, Tensor]


class UnitGaussian(nn.Module):
    """N(MLP(s), 1), their IQL's policy; ours has a tanh of the mean and learns its deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = gelu_mlp([STATE, *HIDDEN, ACTION])

    def moments(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (B, A) each."""
        mean = self.net(observations)
        return mean, torch.ones_like(mean)


@dataclass(frozen=True)
class Case:
    """One of their agents, and our losses for it."""

    label: str
    name: str
    """of their file"""
    changes: Mapping[str, Any]
    """in their configuration"""
    networks: Callable[[], Networks]
    """ours, by the names of theirs, without targets"""
    noise: Callable[[Any], Batch]
    """what they draw from an update's key"""
    losses: Callable[[Networks, Batch, Batch], Losses]
    """by the names of their metrics"""
    terms: Mapping[str, tuple[str, float]]
    """by loss: the network that it trains, and its weight in the sum that they minimise"""
    targets: tuple[str, ...] = ("critic",)
    """networks with a target"""
    every: Mapping[str, int] | None = None
    """losses that count at every n-th step alone; with any, targets move then too"""


# FQL ------------------------------------------------------------------------------------------

ALPHA = 300.0


def fql_networks() -> Networks:
    """Critic, flow and one-step policy."""
    return {
        "critic": gelu_twin_q(STATE, ACTION, HIDDEN),
        "actor_bc_flow": FlowNetwork(ACTION, STATE, HIDDEN),
        "actor_onestep_flow": FlowNetwork(ACTION, STATE, HIDDEN, timed=False),
    }


def fql_noise(key: Any) -> Batch:
    """Noise of the target's action, of the flow's path and time, and of the distillation."""
    import jax

    _, actor_key, critic_key = jax.random.split(key, 3)
    sample_key = jax.random.split(jax.random.split(critic_key)[1])[0]
    rest, path_key, time_key = jax.random.split(actor_key, 3)
    shape = BATCH, ACTION
    drawn = {
        "next": jax.random.normal(sample_key, shape),
        "path": jax.random.normal(path_key, shape),
        "t": jax.random.uniform(time_key, (BATCH, 1))[:, 0],
        "distilled": jax.random.normal(jax.random.split(rest)[1], shape),
    }
    return tensors(drawn)


def fql_losses(normalize_q: bool, minimum: bool) -> Callable[[Networks, Batch, Batch], Losses]:
    """The losses of FQL with these options."""

    def losses(networks: Networks, batch: Batch, noise: Batch) -> Losses:
        policy, flow = networks["actor_onestep_flow"], networks["actor_bc_flow"]
        with torch.no_grad():
            following = batch["next_observations"]
            proposed = policy(noise["next"], None, following).clamp(-1.0, 1.0)
            both = networks["target_critic"].both(following, proposed)
            next_values = both.amin(dim=0) if minimum else both.mean(dim=0)
            distilled = flow_actions(flow, batch["observations"], noise["distilled"], 10)
        seen = batch["observations"], batch["actions"]
        flow_loss, _ = flow_matching_loss(flow, *seen, noise["path"], noise["t"])
        critic = networks["critic"]
        _, terms = one_step_loss(
            policy, critic, seen[0], noise["distilled"], distilled, ALPHA, normalize_q
        )
        return {
            "critic/critic_loss": critic_loss(critic, *seen, targets_of(batch, next_values))[0],
            "actor/bc_flow_loss": flow_loss,
            "actor/distill_loss": terms["distillation_loss"],
            "actor/q_loss": terms["q_loss"],
        }

    return losses


# IQL and IFQL ---------------------------------------------------------------------------------

EXPECTILE, TEMPERATURE, LARGEST = 0.9, 10.0, 100.0
"""their defaults: expectile, inverse temperature, largest weight"""


def implicit_networks() -> Networks:
    """Critic and V."""
    return {
        "critic": gelu_twin_q(STATE, ACTION, HIDDEN),
        "value": gelu_mlp([STATE, *HIDDEN, 1], layer_norm=True),
    }


def implicit_losses(networks: Networks, batch: Batch) -> Losses:
    """Those of V and Q."""
    value, seen = networks["value"], (batch["observations"], batch["actions"])
    with torch.no_grad():
        q = networks["target_critic"](*seen)
        next_values = value(batch["next_observations"]).squeeze(-1)
    loss, _ = critic_loss(networks["critic"], *seen, targets_of(batch, next_values))
    return {
        "value/value_loss": expectile_loss(q - value(seen[0]).squeeze(-1), EXPECTILE),
        "critic/critic_loss": BOTH_HEADS * loss,
    }


def iql_networks() -> Networks:
    """With the Gaussian policy."""
    return {**implicit_networks(), "actor": UnitGaussian()}


def iql_losses(networks: Networks, batch: Batch, noise: Batch) -> Losses:
    """Their advantage is of the critic and V before their step; ours of the target critic."""
    seen = batch["observations"], batch["actions"]
    with torch.no_grad():
        advantages = networks["critic"](*seen) - networks["value"](seen[0]).squeeze(-1)
        weights = advantage_weights(advantages, TEMPERATURE, LARGEST)
    loss, _ = weighted_likelihood_loss(networks["actor"], *seen, weights)
    return {**implicit_losses(networks, batch), "actor/actor_loss": loss}


def ifql_networks() -> Networks:
    """With the flow."""
    return {**implicit_networks(), "actor_flow": FlowNetwork(ACTION, STATE, HIDDEN)}


def ifql_noise(key: Any) -> Batch:
    """Noise and time of the flow's path."""
    import jax

    _, path_key, time_key = jax.random.split(jax.random.split(key)[1], 3)
    path = jax.random.normal(path_key, (BATCH, ACTION))
    return tensors({"path": path, "t": jax.random.uniform(time_key, (BATCH, 1))[:, 0]})


def ifql_losses(networks: Networks, batch: Batch, noise: Batch) -> Losses:
    """Behavior by flow matching."""
    seen = batch["observations"], batch["actions"]
    loss, _ = flow_matching_loss(networks["actor_flow"], *seen, noise["path"], noise["t"])
    return {**implicit_losses(networks, batch), "actor/actor_loss": loss}


# ReBRAC ---------------------------------------------------------------------------------------

ALPHA_ACTOR, ALPHA_CRITIC = 0.1, 0.01


def rebrac_networks() -> Networks:
    """Critic and deterministic policy."""
    layers = gelu_mlp([STATE, *HIDDEN, ACTION], last_gain=LAST_GAIN)
    return {
        "critic": gelu_twin_q(STATE, ACTION, HIDDEN),
        "actor": nn.Sequential(layers, nn.Tanh()),
    }


def rebrac_noise(key: Any) -> Batch:
    """Noise of the target's action, before it is scaled and clipped."""
    import jax

    critic_key = jax.random.split(key, 3)[2]
    return tensors({"next": jax.random.normal(jax.random.split(critic_key)[1], (BATCH, ACTION))})


def rebrac_losses(networks: Networks, batch: Batch, noise: Batch) -> Losses:
    """Here every transition has a next action: theirs takes one at the end of episodes too."""
    seen, following = (batch["observations"], batch["actions"]), batch["next_observations"]
    with torch.no_grad():
        proposed = perturbed(networks["target_actor"](following), 0.2 * noise["next"], 0.5)
        after = NextActions(batch["next_actions"], torch.ones(len(following)))
        target = networks["target_critic"]
        next_values = penalized_values(target, following, proposed, after, ALPHA_CRITIC)
    loss, _ = critic_loss(networks["critic"], *seen, targets_of(batch, next_values))
    _, terms = rebrac_loss(networks["actor"], networks["critic"], *seen, ALPHA_ACTOR)
    return {
        "critic/critic_loss": loss,
        "actor/actor_loss": terms["q_loss"],
        "actor/bc_loss": ALPHA_ACTOR * terms["distance"],
    }


# All --------------------------------------------------------------------------------------------

CRITIC = {"critic/critic_loss": ("critic", 1.0)}
IMPLICIT = {**CRITIC, "value/value_loss": ("value", 1.0)}
FQL_TERMS = {
    **CRITIC,
    "actor/bc_flow_loss": ("actor_bc_flow", 1.0),
    "actor/distill_loss": ("actor_onestep_flow", ALPHA),
    "actor/q_loss": ("actor_onestep_flow", 1.0),
}
IQL_TERMS = {**IMPLICIT, "actor/actor_loss": ("actor", 1.0)}
IFQL_TERMS = {**IMPLICIT, "actor/actor_loss": ("actor_flow", 1.0)}
REBRAC_TERMS = {
    **CRITIC,
    "actor/actor_loss": ("actor", 1.0),
    "actor/bc_loss": ("actor", 1.0),
}
CASES = (
    Case(
        "FQL",
        "fql",
        {"alpha": ALPHA},
        fql_networks,
        fql_noise,
        fql_losses(False, False),
        FQL_TERMS,
    ),
    Case(
        "FQL, normalised Q, min",
        "fql",
        {"alpha": ALPHA, "normalize_q_loss": True, "q_agg": "min"},
        fql_networks,
        fql_noise,
        fql_losses(True, True),
        FQL_TERMS,
    ),
    Case("IQL", "iql", {}, iql_networks, lambda key: {}, iql_losses, IQL_TERMS),
    Case("IFQL", "ifql", {}, ifql_networks, ifql_noise, ifql_losses, IFQL_TERMS),
    Case(
        "ReBRAC",
        "rebrac",
        {"alpha_actor": ALPHA_ACTOR, "alpha_critic": ALPHA_CRITIC},
        rebrac_networks,
        rebrac_noise,
        rebrac_losses,
        REBRAC_TERMS,
        targets=("critic", "actor"),
        every={"actor/actor_loss": 2, "actor/bc_loss": 2},
    ),
)


def number() -> type[np.floating[Any]]:
    """NumPy's type for torch's default one."""
    return np.float64 if torch.get_default_dtype() == torch.float64 else np.float32


def tensors(arrays: Mapping[str, Any]) -> Batch:
    """Copies of arrays of NumPy or JAX."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def targets_of(batch: Batch, next_values: Tensor) -> Tensor:
    """One-step targets; their masks are 1 - terminations."""
    return td_target(batch["rewards"], 1.0 - batch["masks"], next_values, GAMMA)


def batch_for(case: Case) -> dict[str, NDArray[Any]]:
    """A batch like OGBench's: rewards -1 or 0, the bootstrap cut where they are 0."""
    rng = np.random.default_rng(0)
    solved = rng.random(BATCH) < 0.1
    batch = {
        "observations": rng.normal(size=(BATCH, STATE)),
        "actions": np.tanh(rng.normal(size=(BATCH, ACTION))),
        "next_actions": np.tanh(rng.normal(size=(BATCH, ACTION))),
        "rewards": solved - 1.0,
        "masks": 1.0 - solved,
    }
    batch["next_observations"] = batch["observations"] + 0.1 * rng.normal(size=(BATCH, STATE))
    if case.name != "rebrac":
        del batch["next_actions"]
    return {name: array.astype(number()) for name, array in batch.items()}
