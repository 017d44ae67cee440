"""Policies of Stable-Baselines3, read as weights: nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from qgpo.envs.rollouts.torch_files import read_member, read_state
from qgpo.envs.rollouts.vecnormalize import Normalization, read_vecnormalize
from qgpo.envs.tasks.actions import inside
from qgpo.networks import ACTIVATIONS, mlp

POLICY_FOLDER = Path(__file__).parent / "policies"
"""where the bundled policies are"""
DECIMALS = 6
"""of an action on the scale [-1, 1]; rounding differences of processors are far smaller"""


class ActorPolicy(nn.Module):
    """The actor of an SB3 SAC, TQC, TD3, DDPG, PPO or A2C policy with an MLP.

    It computes in double precision and rounds its actions, so that they do not depend on the
    processor: in a simulator, a difference in the last bit leads to another rollout.
    """

    log_std: Tensor

    def __init__(
        self,
        weights: dict[str, Tensor],
        action_space: spaces.Box,
        activation: str | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        self.normalization = normalization
        self.action_space = action_space
        self.kind, body, head = _kind(weights)
        default = "tanh" if self.kind == "gaussian" else "relu"
        left = dict(weights)
        layers = _layers(left, body) + (_layers(left, head) if head else [])
        sizes = _sizes(layers)
        self.net = mlp(sizes, activation or default)
        tensors = [tensor for layer in layers for tensor in layer]
        self.net.load_state_dict(dict(zip(self.net.state_dict(), tensors, strict=True)))
        if self.kind == "squashed":
            (weight, bias), *more = _layers(left, "actor.log_std.")
            if more or _sizes([(weight, bias)]) != sizes[-2:]:
                raise ValueError(f"the policy's log_std has shape {tuple(weight.shape)}")
            self.log_std_head = nn.Linear(sizes[-2], sizes[-1])
            self.log_std_head.load_state_dict({"weight": weight, "bias": bias})
        elif self.kind == "gaussian":
            self.register_buffer("log_std", _tensor(left, "log_std", sizes[-1:]))
        _check_all_are_used(left, self.kind)
        if sizes[-1] != action_space.shape[0]:
            raise ValueError(
                f"the policy has {sizes[-1]} action dimensions, the environment "
                f"{action_space.shape[0]}: is it a policy of another environment?"
            )
        self.observation_dim = sizes[0]
        if normalization is not None and len(normalization.mean) != self.observation_dim:
            raise ValueError(
                f"the policy takes {self.observation_dim} observation dimensions, the "
                f"statistics are of {len(normalization.mean)}: do they belong to another model?"
            )
        self.double()

    def act(
        self,
        observations: NDArray[np.floating] | dict[str, NDArray[np.floating]],
        generator: torch.Generator,
        deterministic: bool = False,
    ) -> NDArray[Any]:
        """(B, S) to (B, A) in the environment's units, sampled unless `deterministic`.

        Dict observations are joined in the order of their names, as SB3's MultiInputPolicy does.
        """
        if isinstance(observations, dict):
            parts = [observations[name] for name in sorted(observations)]
            observations = np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1)
        with torch.no_grad():
            actions = self._act(observations, generator, deterministic).numpy()
        low, high = self.action_space.low, self.action_space.high
        half = 0.5 * (high - low) if self.action_space.is_bounded() else 1.0
        if self.kind == "gaussian":
            rounded = np.round(actions / half, DECIMALS) * half
            return inside(self.action_space, rounded)
        return inside(self.action_space, low + (np.round(actions, DECIMALS) + 1.0) * half)

    def _act(
        self, observations: NDArray[np.floating], generator: torch.Generator, deterministic: bool
    ) -> Tensor:
        """Actions as the network scales them: in [-1, 1], or in raw units where Gaussian."""
        hidden = torch.as_tensor(observations, dtype=torch.float64)
        if hidden.shape[-1] != self.observation_dim:
            raise ValueError(
                f"the policy takes {self.observation_dim} observation dimensions, "
                f"got {hidden.shape[-1]}: is it a policy of another environment?"
            )
        if self.normalization is not None:
            hidden = torch.as_tensor(self.normalization(hidden.numpy()))
        hidden = self.net[:-1](hidden)
        mean: Tensor = self.net[-1](hidden)
        if self.kind == "deterministic":
            return torch.tanh(mean)
        log_std = self.log_std_head(hidden) if self.kind == "squashed" else self.log_std
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        action = mean if deterministic else mean + torch.exp(log_std.clamp(-20, 2)) * noise
        return action if self.kind == "gaussian" else torch.tanh(action)


def _kind(weights: dict[str, Tensor]) -> tuple[str, str, str]:
    """The kind of policy, and the prefixes of its body and its head ("": none)."""
    if weights.get("log_std", weights.get("actor.log_std", torch.zeros(1))).dim() > 1:
        raise ValueError(
            "the policy uses state-dependent exploration (use_sde=True), which is not "
            "supported; expected one that was trained with use_sde=False"
        )
    if "actor.mu.weight" in weights:
        return "squashed", "actor.latent_pi.", "actor.mu."
    if "action_net.weight" in weights:
        return "gaussian", "mlp_extractor.policy_net.", "action_net."
    if "actor.mu.0.weight" in weights:
        return "deterministic", "actor.mu.", ""
    raise ValueError(
        f"no SB3 actor among the tensors {str(sorted(weights)[:6])[:300]}…; expected an MLP "
        "policy of SAC, TQC, TD3, DDPG, PPO or A2C"
    )


def _layers(left: dict[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of the linear layers under a prefix, in order, taken out of the weights.

    SB3 numbers them 0, 2, 4 …: activations are between them.
    """
    if f"{prefix}weight" in left:
        return [(_tensor(left, f"{prefix}weight"), _tensor(left, f"{prefix}bias"))]
    layers: list[tuple[Tensor, Tensor]] = []
    while f"{prefix}{2 * len(layers)}.weight" in left:
        name = f"{prefix}{2 * len(layers)}."
        layers.append((_tensor(left, f"{name}weight"), _tensor(left, f"{name}bias")))
    return layers


def _tensor(left: dict[str, Tensor], name: str, shape: list[int] | None = None) -> Tensor:
    """A tensor of finite numbers, taken out of the weights. Raises ValueError for others."""
    if name not in left:
        raise ValueError(f"the policy has no tensor {name!r}: expected an MLP policy")
    tensor = left.pop(name)
    if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"the policy's {name} has NaN or infinite values, or no real numbers")
    if shape is not None and list(tensor.shape) != shape:
        raise ValueError(f"the policy's {name} has shape {tuple(tensor.shape)}, expected {shape}")
    return tensor


def _sizes(layers: list[tuple[Tensor, Tensor]]) -> list[int]:
    """Numbers of units, from the first input to the last output. Raises ValueError."""
    shapes = [tuple(tensor.shape) for layer in layers for tensor in layer]
    sizes: list[int] = []
    for weight, bias in layers:
        fits = weight.dim() == 2 and bias.shape == weight.shape[:1] and weight.numel() > 0
        if not fits or (sizes and sizes[-1] != weight.shape[1]):
            raise ValueError(
                f"the policy's layers have shapes {str(shapes)[:200]}, expected an MLP"
            )
        sizes = [*(sizes or [weight.shape[1]]), weight.shape[0]]
    if not sizes:
        raise ValueError("the policy has no layers, expected an MLP")
    return sizes


def _check_all_are_used(left: dict[str, Tensor], kind: str) -> None:
    """Raise ValueError for a part of the actor that is no linear layer: it would be left out."""
    unused = ("mlp_extractor.value_net.", "value_net.", "vf_features_extractor.")
    for name in left:
        if name.startswith("actor.") or (kind == "gaussian" and not name.startswith(unused)):
            raise ValueError(
                f"the policy's actor has {name[:100]!r} in addition to its layers (for example "
                "a feature extractor or a recurrent state), which is not supported; expected "
                "an MLP policy"
            )


def load_policy(
    path: str | Path, action_space: spaces.Box, vecnormalize: str | Path | None = None
) -> ActorPolicy:
    """Read an SB3 model file (`model.zip`) or an actor snapshot (`.safetensors`).

    Only the tensors of `policy.pth` and the plain JSON fields of a zip are read, and only the
    statistics of observations of the file that VecNormalize.save wrote. Raises ValueError for
    other files.
    """
    path = Path(path)
    normalization = read_vecnormalize(vecnormalize) if vecnormalize is not None else None
    if not path.is_file():
        raise ValueError(f"policy file {str(path)!r} does not exist")
    try:
        weights, activation = _read(path)
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise ValueError(
            f"policy file {str(path)!r} is not an SB3 model with an MLP actor ({reason}); expected "
            "the zip that model.save() writes, or a .safetensors snapshot"
        ) from error
    return ActorPolicy(weights, action_space, _activation(activation), normalization)


_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""what content that is no model may raise"""
MOST_FOLD, MOST_MORE = 8, 1 << 20
"""of its size, a file may unpack to so many times as many bytes, and so many more"""


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors, and the activation as the file names it ("": it does not)."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
        activation = metadata.get("activation") or ""
        return load_file(path), activation
    most = MOST_FOLD * path.stat().st_size + MOST_MORE
    with zipfile.ZipFile(path) as archive:
        weights = read_state(read_member(archive, "policy.pth", most))
        data = {}
        if "data" in archive.namelist():
            data = json.loads(read_member(archive, "data", most))
    settings = data.get("policy_kwargs", {})
    activation = settings.get("activation_fn", "")
    if not isinstance(activation, str):
        raise ValueError(f"its activation is {str(activation)[:60]!r}")
    return weights, activation


def _activation(written: str) -> str | None:
    """The name in ACTIVATIONS of "<class 'torch.nn.modules.activation.ELU'>"; None for nothing."""
    if not written:
        return None
    name = written.strip("<>'\"").rpartition(".")[2].lower()
    if name not in ACTIVATIONS:
        raise ValueError(
            f"the policy's activation is {written[:100]}, expected one of {sorted(ACTIVATIONS)}"
        )
    return name
