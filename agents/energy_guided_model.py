"""The parts of an EnergyGuidedDiffusion, and sampling with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qgpo.agents.core.batches import choose_device
from qgpo.agents.energy_guided_config import EnergyGuidedConfig
from qgpo.diffusion import Diffusion
from qgpo.guidance import AnalyticOptions, GuidanceParts, Weighted, make_guidance
from qgpo.networks import NaturalNetwork, join, mlp
from qgpo.normalization import ObservationNormalizer
from qgpo.schedule import make_schedule
from qgpo.solver import get_solver, time_grid

Array = Tensor | NDArray[Any]
Energy = Callable[[Tensor], Tensor] | Callable[[Tensor, Tensor], Tensor]
"""E of samples (B, D), or of samples and conditions (B, C) in conditional models, (B,)"""
STAGES = ("data", "energy", "guidance")


class GuidedModel:
    """Networks, coordinates and sampling; `EnergyGuidedDiffusion` adds training and files."""

    def __init__(
        self,
        config: EnergyGuidedConfig | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
    ) -> None:
        self.config = EnergyGuidedConfig() if config is None else config
        self.seed = seed
        self.device = choose_device(device)
        self.schedule = make_schedule(self.config.schedule)
        get_solver(self.config.solver, self.schedule)
        time_grid(self.schedule, self.config.solver_steps, self.config.spacing)
        self.generator = torch.Generator(self.device)
        self.sampling_generator = torch.Generator(self.device)
        self._reset()

    def _reset(self) -> None:
        self.networks = nn.ModuleDict()
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.progress = dict.fromkeys(STAGES, 0)
        self.history: dict[str, list[dict[str, float]]] = {stage: [] for stage in STAGES}
        self.fingerprint: str | None = None
        self.dims: tuple[int, int] | None = None
        self._energy: Energy | None = None
        self.generator.manual_seed(self.seed)
        self.sampling_generator.manual_seed(self.seed)

    # Parts ----------------------------------------------------------------------------------

    def _build(self, dim: int, condition_dim: int, labelled: bool) -> None:
        """Networks and optimizers; `labelled`: the energy came as labels and may be learned."""
        try:
            self._build_parts(dim, condition_dim, labelled)
        except BaseException:  # half a model could be saved, and not be loaded
            self._reset()
            raise

    def _build_parts(self, dim: int, condition_dim: int, labelled: bool) -> None:
        c = self.config
        self.dims, self._labelled = (dim, condition_dim), labelled
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.normalizer = ObservationNormalizer(dim)
            self.condition_normalizer = ObservationNormalizer(condition_dim)
            self.data_model = self._make_diffusion()
            self.data_model_ema = copy.deepcopy(self.data_model).requires_grad_(False)
            self.clean_energy = mlp([dim + condition_dim, *c.energy_hidden, 1], "silu")
            self.energy_scale = ObservationNormalizer(1)
            self.guidance_model = make_guidance(c.guidance, self._parts())
            self.guidance_ema = make_guidance(c.guidance, self._parts()).requires_grad_(False)
        self.guidance_ema.load_state_dict(self.guidance_model.state_dict())
        self.networks.update(
            {
                "normalizer": self.normalizer,
                "condition_normalizer": self.condition_normalizer,
                "data_model": self.data_model,
                "data_model_ema": self.data_model_ema,
                "clean_energy": self.clean_energy,
                "energy_scale": self.energy_scale,
                "guidance": self.guidance_model,
                "guidance_ema": self.guidance_ema,
            }
        )
        self.networks.to(self.device).train(False)
        trained: dict[str, nn.Module] = {
            "data": self.data_model,
            "energy": self.clean_energy,
            "guidance": self.guidance_model,
        }
        for stage, module in trained.items():
            parameters = list(module.parameters())
            if parameters:
                self.optimizers[stage] = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def _parts(self) -> GuidanceParts:
        assert self.dims is not None
        c = self.config
        return GuidanceParts(
            dim=self.dims[0],
            schedule=self.schedule,
            denoise=self.data_model_ema.denoise,
            make_energy_network=self._make_energy_network,
            make_diffusion=self._make_diffusion,
            energy=self._scaled_energy,
            preconditioned=c.preconditioned,
            targets=c.targets,
            cep_labels=c.cep_labels,
            clamp=c.clamp,
            analytic=AnalyticOptions(
                order=c.analytic_order,
                covariance=c.analytic_covariance,
                gradient=c.analytic_gradient,
                damped=c.analytic_damped,
                clamp=c.clamp,
            ),
        )

    def _make_diffusion(self) -> Diffusion:
        assert self.dims is not None
        c = self.config
        network = NaturalNetwork(
            *self.dims, self.dims[0], c.hidden, self.schedule, c.sharpness, zero_start=True
        )
        return Diffusion(network, self.schedule, c.prediction)

    def _make_energy_network(self) -> NaturalNetwork:
        assert self.dims is not None
        c = self.config
        return NaturalNetwork(*self.dims, 0, c.energy_hidden, self.schedule, c.sharpness)

    def _scaled_energy(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """f_0 = -beta E of standardised samples and conditions, (B,); differentiable."""
        if self._labelled:
            learned: Tensor = self.clean_energy(join(z, condition)).squeeze(-1)
            return -self.config.beta * (learned * self.energy_scale.std + self.energy_scale.mean)
        if self._energy is None:
            raise RuntimeError(
                f"guidance={self.config.guidance!r} differentiates the energy while sampling, and "
                "a file cannot hold a function: load(path, energy=...)"
            )
        return -self.config.beta * self._call(self._energy, z, condition)

    def _call(self, energy: Energy, z: Tensor, condition: Tensor | None) -> Tensor:
        """E in the data's units, with its shape checked."""
        x = self.decode(z)
        if condition is None:
            values = energy(x)  # type: ignore[call-arg]
        else:
            normalizer = self.condition_normalizer
            values = energy(x, condition * normalizer.std + normalizer.mean)  # type: ignore[call-arg]
        if values.shape != (len(z),):
            raise ValueError(
                f"energy returned shape {tuple(values.shape)}, expected ({len(z)},): one value "
                "per sample"
            )
        return values

    def encode(self, x: Tensor) -> Tensor:
        """Data to the standardised coordinates of the diffusion, (..., D)."""
        z: Tensor = self.normalizer(x)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Back to data, (..., D)."""
        return z * self.normalizer.std + self.normalizer.mean

    # Sampling -------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        condition: Array | None = None,
        *,
        guidance_scale: float = 1.0,
        solver: str | None = None,
        steps: int | None = None,
        spacing: str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples (n, D) of q exp(-beta E), one per condition (n, C) in conditional models.

        The guidance scale w multiplies grad f: 0 samples q and takes no gradient, 1 is exact,
        other values are a heuristic. Without a generator, the model's own (seeded) one goes on.
        """
        dim, c = self._condition(n, condition)
        n = len(c) if c is not None else n
        generator = self.sampling_generator if generator is None else generator
        noise = torch.randn((n or 0, dim), generator=generator, device=self.device)
        model, guidance, scale = self.data_model_ema, self.guidance_ema, guidance_scale
        untrained = guidance.trainable and self.progress["guidance"] == 0
        if scale != 0.0 and (self.fingerprint is None or untrained):
            raise RuntimeError(
                "the guidance is not trained yet: call fit(data, energy), or sample q with "
                "guidance_scale=0"
            )
        if isinstance(guidance, Weighted) and scale == 1.0:
            model, scale = guidance.model, 0.0
        z = model.sample(
            noise,
            c,
            guidance=guidance.gradient,
            guidance_scale=scale,
            guidance_bound=self.config.guidance_bound,
            solver=solver or self.config.solver,
            steps=steps or self.config.solver_steps,
            spacing=spacing or self.config.spacing,
            generator=generator,
        )
        return self.decode(z)

    def guidance(self, x_t: Tensor, t: Tensor, condition: Array | None = None) -> Tensor:
        """Gradient of f_t at standardised noisy samples x_t (B, D), t (B,), as the sampler uses it.

        x_t = alpha_t encode(x) + sigma_t noise.
        """
        _, c = self._condition(len(x_t), condition)
        return self.guidance_ema.gradient(x_t, t, c)

    def f(self, x_t: Tensor, t: Tensor, condition: Array | None = None) -> Tensor:
        """The intermediate energy at standardised noisy samples, up to a constant, (B,)."""
        _, c = self._condition(len(x_t), condition)
        return self.guidance_ema.f(x_t, t, c).detach()

    def _condition(self, n: int | None, condition: Array | None) -> tuple[int, Tensor | None]:
        if self.dims is None:
            raise RuntimeError("this model has not been trained: call fit(data, energy)")
        dim, condition_dim = self.dims
        if condition is None:
            if condition_dim or n is None:
                raise ValueError(f"n={n}, condition=None for {condition_dim} condition dimensions")
            return dim, None
        c = torch.as_tensor(condition, dtype=torch.float32, device=self.device)
        if c.dim() != 2 or c.shape[1] != condition_dim or n not in (None, len(c)):
            raise ValueError(
                f"condition has shape {tuple(c.shape)}, expected ({n or 'n'}, {condition_dim})"
            )
        return dim, self.condition_normalizer(c)
