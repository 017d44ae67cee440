"""Loss parity: with the FQL authors' weights, batch and noise, our losses and their gradients.

Both sides start from the weights of their initialisation and make the same number of Adam steps,
each on its own gradients. Before every step, each loss term and its gradient in every parameter
are compared. Agents of ours whose update is theirs also make the steps by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from parity_cases import (
    ACTION,
    ALPHA,
    CASES,
    HIDDEN,
    RATE,
    STATE,
    TAU,
    Case,
    batch_for,
    number,
    tensors,
)
from parity_reference import Reference
from torch import Tensor, nn

from qgpo import FQL, IFQL, FQLConfig, IFQLConfig
from qgpo.agents.core.batches import Transitions
from qgpo.critic import polyak_update


def their_arrays(module: Mapping[str, Any]) -> list[NDArray[Any]]:
    """The arrays of one of their networks, in the order and layout of ours."""
    if "actor_net" in module:
        return layers(module["actor_net"]) + dense(module["mean_net"])
    if "mlp" in module:
        return layers(module["mlp"])
    net = module["value_net"]
    if np.ndim(net["Dense_0"]["kernel"]) == 2:
        return layers(net)
    heads = [{k: {n: a[i] for n, a in part.items()} for k, part in net.items()} for i in range(2)]
    return [array for head in heads for array in layers(head)]


def layers(net: Mapping[str, Any]) -> list[NDArray[Any]]:
    """Of an MLP."""
    out = []
    for i in range(sum(name.startswith("Dense_") for name in net)):
        out += dense(net[f"Dense_{i}"])
        if f"LayerNorm_{i}" in net:
            norm = net[f"LayerNorm_{i}"]
            out += [np.array(norm["scale"]), np.array(norm["bias"])]
    return out


def dense(layer: Mapping[str, Any]) -> list[NDArray[Any]]:
    """Of a linear layer."""
    return [np.array(layer["kernel"]).T, np.array(layer["bias"])]


@torch.no_grad()
def copy_weights(source: Mapping[str, Any], network: nn.Module) -> None:
    """Their weights into ours. Raises ValueError where the shapes differ."""
    parameters = list(network.parameters())
    for parameter, array in zip(parameters, their_arrays(source), strict=True):
        if parameter.shape != array.shape:
            raise ValueError(f"parameters {tuple(parameter.shape)}, theirs {array.shape}")
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def their_agent(reference: Reference, case: Case) -> Any:
    """At its start, with seed 0 and weights of torch's default type."""
    import jax

    sizes = {"actor_hidden_dims": HIDDEN, "value_hidden_dims": HIDDEN}
    agent = reference.agent(case.name, 0, STATE, ACTION, {**sizes, **case.changes})
    weights = jax.tree_util.tree_map(lambda array: array.astype(number()), agent.network.params)
    network = agent.network
    return agent.replace(
        network=network.replace(params=weights, opt_state=network.tx.init(weights))
    )


class Difference(NamedTuple):
    """Of one loss, relative to theirs."""

    loss: float
    gradient: float
    """norm over all parameters that the loss trains"""
    tensor: float
    """the largest norm over one weight or bias: where its gradient passes zero, it is large"""


def difference(
    loss: float, theirs: float, gradients: list[Tensor], expected: list[NDArray[Any]]
) -> Difference:
    """Of a loss and its gradient in every weight and bias."""
    apart = [
        np.linalg.norm(ours.double().numpy() - other.astype(np.float64))
        for ours, other in zip(gradients, expected, strict=True)
    ]
    sizes = [np.linalg.norm(other.astype(np.float64)) for other in expected]
    return Difference(
        abs(loss - theirs) / abs(theirs),
        float(np.linalg.norm(apart) / np.linalg.norm(sizes)),
        float(max(a / size for a, size in zip(apart, sizes, strict=True))),
    )


class Pair:
    """Their agent and our networks, step by step."""

    def __init__(self, reference: Reference, case: Case) -> None:
        self.theirs = their_agent(reference, case)
        self.case, self.step = case, 0
        self.trained = case.networks()
        for name, network in self.trained.items():
            copy_weights(self.theirs.network.params[f"modules_{name}"], network)
        self.targets = {f"target_{name}": case.networks()[name] for name in case.targets}
        for name, network in self.targets.items():
            copy_weights(self.theirs.network.params[f"modules_{name}"], network)
        parameters = [p for network in self.trained.values() for p in network.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=RATE)
        self.arrays = batch_for(case)
        self.gradients = {name: self._gradient(name) for name in case.terms}

    def _gradient(self, name: str) -> Callable[..., Any]:
        """Their loss term and its gradient in all parameters."""
        import jax

        def term(parameters: Any, agent: Any, batch: Any, key: Any) -> Any:
            return agent.total_loss(batch, parameters, rng=key)[1][name]

        return jax.jit(jax.value_and_grad(term))

    def compare(self) -> dict[str, Difference]:
        """By loss: the differences at the weights before the step.

        Leaves the gradients of the sum in the parameters. Raises ValueError where theirs has a
        gradient in a network that ours does not train.
        """
        import jax

        key = jax.random.split(self.theirs.rng)[1]
        losses = self.case.losses(
            {**self.trained, **self.targets}, tensors(self.arrays), self.case.noise(key)
        )
        for parameter in self.optimizer.param_groups[0]["params"]:
            parameter.grad = torch.zeros_like(parameter)  # Adam of theirs sees zeros too
        found = {}
        for name, (trained, weight) in self.case.terms.items():
            value, gradients = self.gradients[name](
                self.theirs.network.params, self.theirs, self.arrays, key
            )
            for other in self.trained.keys() - {trained}:
                if any(array.any() for array in their_arrays(gradients[f"modules_{other}"])):
                    raise ValueError(f"{name} of {self.case.label} also trains {other}")
            parameters = list(self.trained[trained].parameters())
            ours = torch.autograd.grad(losses[name], parameters, retain_graph=True)
            expected = their_arrays(gradients[f"modules_{trained}"])
            found[name] = difference(losses[name].item(), float(value), list(ours), expected)
            if self._counts(name):
                for parameter, gradient in zip(parameters, ours, strict=True):
                    parameter.grad += weight * gradient
        return found

    def _counts(self, name: str) -> bool:
        """Whether that loss is part of the step under way, which they count from 1."""
        every = (self.case.every or {}).get(name, 1)
        return (self.step + 1) % every == 0

    def advance(self) -> None:
        """One update of both, after `compare`.

        As in their code, targets follow the weights before the step.
        """
        full = all(map(self._counts, self.case.terms))
        more = {} if self.case.every is None else {"full_update": full}
        self.theirs, _ = self.theirs.update(self.arrays, **more)
        if full:
            for name in self.case.targets:
                polyak_update(self.trained[name], self.targets[f"target_{name}"], TAU)
        self.optimizer.step()
        self.step += 1


def rounded(value: float) -> float:
    """To three digits."""
    return float(f"{value:.3g}")


def compare_losses(reference: Reference, steps: int) -> list[dict[str, Any]]:
    """One row per agent and loss, with the differences before each step."""
    rows = []
    for case in CASES:
        pair = Pair(reference, case)
        found = []
        for _ in range(steps):
            found.append(pair.compare())
            pair.advance()
        for name in case.terms:
            by_step = Difference(*zip(*(step[name] for step in found), strict=True))._asdict()
            rows.append(
                {
                    "agent": case.label,
                    "loss": name,
                    "largest": {of: max(values) for of, values in by_step.items()},
                    "by_step": {of: list(map(rounded, values)) for of, values in by_step.items()},
                }
            )
    return rows


# The agents' own updates ------------------------------------------------------------------------


class Update(NamedTuple):
    """An agent of ours whose update is theirs: all losses at the same parameters."""

    case: str
    """the label of the case"""
    agent_class: type[FQL] | type[IFQL]
    config: FQLConfig | IFQLConfig
    networks: Mapping[str, str]
    """ours by the names of theirs"""
    normals: tuple[str, ...]
    """the noises in the order in which our update draws them"""


UPDATES = (
    Update(
        "FQL",
        FQL,
        replace(FQL.presets["paper"], hidden=HIDDEN, alpha=ALPHA),
        {
            "critic": "critic",
            "target_critic": "critic_target",
            "actor_bc_flow": "flow",
            "actor_onestep_flow": "actor",
        },
        ("next", "path", "distilled"),
    ),
    Update(
        "IFQL",
        IFQL,
        replace(IFQL.presets["paper"], hidden=HIDDEN),
        {
            "critic": "critic",
            "target_critic": "critic_target",
            "value": "value",
            "actor_flow": "flow",
        },
        ("path",),
    ),
)


class Learner:
    """Their agent, and ours, which learns by its own `update` with their noise."""

    def __init__(self, reference: Reference, update: Update) -> None:
        self.update, self.step = update, 0
        self.case = next(case for case in CASES if case.label == update.case)
        self.theirs = their_agent(reference, self.case)
        self.start = self.theirs.network.params
        self.ours: Any = update.agent_class(update.config, seed=0, device="cpu")
        unit = spaces.Box(-1.0, 1.0, (ACTION,), np.float32)
        self.ours.set_spaces(spaces.Box(-np.inf, np.inf, (STATE,), np.float32), unit, "a batch")
        for name, ours in update.networks.items():
            copy_weights(self.start[f"modules_{name}"], getattr(self.ours, ours))
        self.arrays = batch_for(self.case)
        batch = tensors(self.arrays)
        self.batch = Transitions(terminations=1.0 - batch.pop("masks"), **batch)

    def advance(self) -> None:
        """One update of both."""
        import jax

        noise = self.case.noise(jax.random.split(self.theirs.rng)[1])
        normals = iter([noise[name] for name in self.update.normals])
        self.ours.training.normal = lambda *_: next(normals)
        self.ours.training.uniform = lambda *_: noise["t"]
        self.ours.update(self.batch, self.step)
        self.theirs, _ = self.theirs.update(self.arrays)
        self.step += 1

    def difference(self) -> float:
        """Distance of both weights, targets included, over the distance that theirs moved."""
        apart, moved = [], []
        for name, ours in self.update.networks.items():
            module = f"modules_{name}"
            end = their_arrays(self.theirs.network.params[module])
            own = [p.detach().numpy() for p in getattr(self.ours, ours).parameters()]
            start = their_arrays(self.start[module])
            apart += [np.linalg.norm(a - b) for a, b in zip(own, end, strict=True)]
            moved += [np.linalg.norm(a - b) for a, b in zip(start, end, strict=True)]
        return float(np.linalg.norm(apart) / np.linalg.norm(moved))


def compare_updates(reference: Reference, steps: int) -> list[dict[str, Any]]:
    """By agent, the difference of the weights after those steps."""
    rows = []
    for update in UPDATES:
        learner = Learner(reference, update)
        for _ in range(steps):
            learner.advance()
        rows.append({"agent": update.case, "difference": learner.difference()})
    return rows
