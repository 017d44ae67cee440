"""EnergyGuidedDiffusion: sample p(x) ~ q(x) exp(-beta E(x)) for any data of q and any energy.

1. data       a diffusion model of q, by denoising
2. energy     a smooth network of E, only where a guidance differentiates E and E came as labels
3. guidance   the intermediate energy f_t, by the method of that name (`qgpo.guidance`)
sample        solve the reverse process with the score of q_t plus the gradient of w f_t

Everything runs in standardised coordinates z = (x - mean) / std, and E is lower-is-better.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn
from tqdm import tqdm

from qgpo.agents.checkpoint import (
    Checkpoint,
    CheckpointError,
    pack_optimizer,
    read_checkpoint,
    unpack_optimizer,
    write_checkpoint,
)
from qgpo.critic import polyak_update
from qgpo.diffusion import Diffusion, Metrics
from qgpo.guidance import (
    AnalyticOptions,
    Guidance,
    GuidanceParts,
    Weighted,
    make_guidance,
    weighted_loss,
)
from qgpo.networks import EnergyNetwork, MLPNoiseNetwork
from qgpo.normalization import ObservationNormalizer
from qgpo.schedule import make_schedule
from qgpo.solver import get_solver, time_grid

Array = Tensor | NDArray[Any]
Energy = Callable[[Tensor], Tensor] | Callable[[Tensor, Tensor], Tensor]
"""E of samples (B, D), or of samples and conditions (B, C) in conditional models, (B,)"""
STAGES = ("data", "energy", "guidance")


@dataclass(frozen=True)
class EnergyGuidedConfig:
    """What an EnergyGuidedDiffusion is made of."""

    beta: float = 1.0
    """inverse temperature of p ~ q exp(-beta E)"""
    guidance: str = "cep"
    """how f_t is obtained: cep, mse, emse, dps, analytic or weighted"""
    schedule: str = "cosine"
    """noise schedule: cosine, linear (both variance preserving) or ot"""
    prediction: str = "velocity"
    """what the data model's network predicts: velocity, noise, or flow (only on ot)"""
    hidden: tuple[int, ...] = (192, 192, 192)
    """layers of the data model"""
    data_steps: int = 4_000
    """gradient steps of the data model"""
    data_learning_rate: float = 2e-3
    """its first Adam step size"""
    energy_hidden: tuple[int, ...] = (128, 128, 128)
    """layers of f, and of the clean energy where one is learned"""
    guidance_steps: int = 3_000
    """gradient steps of f, or of the weighted model"""
    guidance_learning_rate: float = 2e-3
    """its first Adam step size"""
    contrast: int = 512
    """K, samples compared with each other at one noise level"""
    groups: int = 4
    """such groups in one gradient step, each with its own noise level"""
    targets: str = "sample"
    """sample, or posterior: targets averaged over the group's posterior, which takes most of their
    variance away (unconditional models in few dimensions)"""
    cep_labels: str = "normalized"
    """labels of cep: normalized (Eq. 13) or exponential (Eq. 12)"""
    preconditioned: bool = True
    """f = alpha_t times its network"""
    time_scale: float = 0.5
    """frequency scale of the networks' time features"""
    ema_decay: float = 0.999
    """decay of the averaged weights that are sampled from"""
    clamp: float | None = None
    """bound on standardised coordinates of the posterior mean in dps and analytic"""
    analytic_order: int = 1
    """order of analytic: 1 or 2"""
    analytic_covariance: str = "residual"
    """posterior covariance of analytic: moment, residual, per_dimension or jacobian"""
    analytic_gradient: str = "autograd"
    """gradient of analytic: autograd or shift"""
    analytic_damped: bool = True
    """limit the variance term of analytic"""
    analytic_bound: float | None = None
    """largest |sigma grad f| / |eps| of analytic"""
    solver: str = "dpm_solver_2m"
    """solver unless `sample` is told another"""
    solver_steps: int = 25
    """its steps"""
    spacing: str = "log_snr"
    """its time grid: time, log_snr or karras"""


class EnergyGuidedDiffusion:
    """A model of p(x) ~ q(x) exp(-beta E(x)), or of p(x|c) given conditions.

        model = EnergyGuidedDiffusion(EnergyGuidedConfig(beta=3.0), seed=0)
        samples = model.fit(data, energy).sample(1000)

    `energy` is a callable on samples or an array of one value per sample, lower is better.
    """

    name = "EnergyGuidedDiffusion"

    def __init__(
        self,
        config: EnergyGuidedConfig | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
    ) -> None:
        self.config = EnergyGuidedConfig() if config is None else config
        self.seed = seed
        self.device = get_device(device)
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
        self._callback: Callable[[Self], bool | None] | None = None
        self._progress_bar = False
        self._stopped = False
        self.generator.manual_seed(self.seed)
        self.sampling_generator.manual_seed(self.seed)

    # Parts ----------------------------------------------------------------------------------

    def _build(self, dim: int, condition_dim: int, labelled: bool) -> None:
        """Networks and optimizers; `labelled`: the energy came as labels and may be learned."""
        c = self.config
        self.dims, self._labelled = (dim, condition_dim), labelled
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.normalizer = ObservationNormalizer(dim)
            self.condition_normalizer = ObservationNormalizer(condition_dim)
            self.data_model = self._make_diffusion()
            self.data_model_ema = copy.deepcopy(self.data_model).requires_grad_(False)
            self.clean_energy = EnergyNetwork(dim, condition_dim, c.energy_hidden, c.time_scale)
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
        c = self.config
        return GuidanceParts(
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
                bound=c.analytic_bound,
            ),
        )

    def _make_diffusion(self) -> Diffusion:
        assert self.dims is not None
        c = self.config
        network = MLPNoiseNetwork(*self.dims, c.hidden, c.time_scale)
        return Diffusion(network, self.schedule, c.prediction)

    def _make_energy_network(self) -> EnergyNetwork:
        assert self.dims is not None
        return EnergyNetwork(*self.dims, self.config.energy_hidden, self.config.time_scale)

    def _scaled_energy(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """f_0 = -beta E of standardised samples and conditions, (B,); differentiable."""
        if self._labelled:
            t = torch.zeros(len(z), dtype=z.dtype, device=z.device)
            learned: Tensor = self.clean_energy(z, t, condition)
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

    # Training -------------------------------------------------------------------------------

    def fit(
        self,
        data: Array,
        energy: Energy | Array,
        condition: Array | None = None,
        *,
        progress_bar: bool = False,
        callback: Callable[[Self], bool | None] | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn q from data (N, D) and the guidance towards low energy.

        `energy` is a differentiable callable or one value per sample (N,); `condition` (N, C)
        makes it a model of p(x|c). `callback(model)` runs after every step; False stops. With
        `resume`, training goes on where the model (or its file) stands, as if never stopped.
        """
        z, labels, c = self._prepare(data, energy, condition, resume)
        self._progress_bar, self._callback, self._stopped = progress_bar, callback, False
        self._fit_data(z, c)
        self._fit_energy(z, labels, c)
        self._fit_guidance(z, labels, c)
        return self

    def fit_data(
        self, data: Array, condition: Array | None = None, *, progress_bar: bool = False
    ) -> Self:
        """Stage 1 alone: q, for several guidances to share (`with_guidance`)."""
        z, _, c = self._prepare(data, None, condition, False)
        self._progress_bar, self._callback, self._stopped = progress_bar, None, False
        self._fit_data(z, c)
        return self

    def with_guidance(self, config: EnergyGuidedConfig) -> EnergyGuidedDiffusion:
        """A new model that keeps this one's q; call `fit(..., resume=True)` on the same data.

        The two configurations may differ in everything but the data model.
        """
        fields = ("schedule", "prediction", "hidden", "data_steps", "time_scale")
        for name in fields:
            if getattr(config, name) != getattr(self.config, name):
                raise ValueError(
                    f"{name}={getattr(config, name)!r} belongs to the data model, expected "
                    f"{getattr(self.config, name)!r}"
                )
        if self.dims is None or self.progress["data"] < self.config.data_steps:
            raise RuntimeError("the data model is not trained yet: call fit_data(data)")
        other = EnergyGuidedDiffusion(config, seed=self.seed, device=self.device)
        other._build(*self.dims, self._labelled)
        for name in ("normalizer", "condition_normalizer", "data_model", "data_model_ema"):
            other.networks[name].load_state_dict(self.networks[name].state_dict())
        other.progress["data"] = config.data_steps
        return other

    def _prepare(
        self,
        data: Array,
        energy: Energy | Array | None,
        condition: Array | None,
        resume: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Check and standardise: z (N, D), E (N,), condition (N, C)."""
        x = self._matrix("data", data)
        c = None if condition is None else self._matrix("condition", condition)
        if c is not None and len(c) != len(x):
            raise ValueError(f"condition has {len(c)} rows, expected one per sample: {len(x)}")
        labelled = not callable(energy)
        if not resume:
            self._reset()
        if self.dims is None:
            self._build(x.shape[1], 0 if c is None else c.shape[1], labelled)
        if self.dims != (x.shape[1], 0 if c is None else c.shape[1]):
            raise ValueError(
                f"data and condition have dimensions {(x.shape[1], 0 if c is None else c.shape[1])}"
                f", this model was made for {self.dims}"
            )
        self._labelled = labelled
        self._energy = energy if callable(energy) else None
        if self.progress["data"] == 0:
            self.normalizer.fit(x)
            if c is not None:
                self.condition_normalizer.fit(c)
        z = self.normalizer(x)
        c = None if c is None else self.condition_normalizer(c)
        labels = self._labels(energy, z, c)
        self._check_same_data(x, labels, energy is not None)
        return z, labels, c

    def _labels(self, energy: Energy | Array | None, z: Tensor, c: Tensor | None) -> Tensor:
        """E of every sample, (N,)."""
        if energy is None:
            return torch.zeros(len(z), device=self.device)
        if callable(energy):
            rows = torch.arange(len(z), device=self.device).split(16_384)
            with torch.no_grad():
                parts = [self._call(energy, z[r], None if c is None else c[r]) for r in rows]
            labels = torch.cat(parts).float()
        else:
            labels = torch.as_tensor(energy, dtype=torch.float32, device=self.device)
        if labels.shape != (len(z),):
            raise ValueError(f"energy has shape {tuple(labels.shape)}, expected ({len(z)},)")
        if not bool(torch.isfinite(labels).all()):
            raise ValueError("energy has NaN or infinite values")
        return labels

    def _matrix(self, name: str, value: Array) -> Tensor:
        matrix = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        if matrix.dim() != 2 or len(matrix) < 2:
            raise ValueError(f"{name} has shape {tuple(matrix.shape)}, expected (N, dimension)")
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"{name} has NaN or infinite values")
        return matrix

    def _check_same_data(self, x: Tensor, labels: Tensor, has_energy: bool) -> None:
        if not has_energy:
            return
        digest = hashlib.sha256(x.cpu().numpy().tobytes())
        digest.update(labels.cpu().numpy().tobytes())
        started = any(self.progress[stage] for stage in ("energy", "guidance"))
        if started and self.fingerprint != digest.hexdigest():
            raise ValueError("training began on other data or another energy: fit without resume")
        self.fingerprint = digest.hexdigest()

    def _fit_data(self, z: Tensor, c: Tensor | None) -> None:
        """Stage 1: q, which is the weighted model at beta = 0."""

        def update(step: int) -> Metrics:
            rows = self._draw(len(z))
            zeros = torch.zeros(rows.shape, device=self.device)
            condition = None if c is None else c[rows]
            targets = self.config.targets
            loss, metrics = weighted_loss(
                self.data_model, z[rows], zeros, condition, targets, self.generator
            )
            self._step("data", loss, self._rate(self.config.data_learning_rate, step, "data"))
            self._average(self.data_model, self.data_model_ema, step)
            return {"loss": metrics["loss"]}

        self._run("data", self.config.data_steps, update)

    def _fit_energy(self, z: Tensor, labels: Tensor, c: Tensor | None) -> None:
        """Stage 2: a smooth E(x), where it is differentiated and came as labels."""
        if not (self._labelled and self.guidance_model.needs_energy):
            return
        self.energy_scale.fit(labels[:, None])
        standardised = self.energy_scale(labels[:, None]).squeeze(-1)
        total = self.config.guidance_steps

        def update(step: int) -> Metrics:
            rows = self._draw(len(z)).flatten()
            t = torch.zeros(len(rows), device=self.device)
            output = self.clean_energy(z[rows], t, None if c is None else c[rows])
            loss = torch.mean((output - standardised[rows]) ** 2)
            self._step(
                "energy", loss, self._rate(self.config.guidance_learning_rate, step, "energy")
            )
            return {"loss": loss.detach()}

        self._run("energy", total, update)

    def _fit_guidance(self, z: Tensor, labels: Tensor, c: Tensor | None) -> None:
        """Stage 3: f_t on groups of K samples, each group at one noise level."""
        # E enters relative to its mean: the same f for energies that differ by a constant
        centred = labels.double() - labels.double().mean()
        scaled = (-self.config.beta * centred).float()
        if self._stopped:
            return
        if self.progress["guidance"] == 0:
            for guidance in (self.guidance_model, self.guidance_ema):
                if isinstance(guidance, Weighted):
                    guidance.model.load_state_dict(self.data_model_ema.state_dict())
        state = self.generator.get_state()
        rows = torch.arange(min(len(z), 16_384), device=self.device)
        for guidance in (self.guidance_model, self.guidance_ema):
            self.generator.set_state(state)
            some = None if c is None else c[rows]
            if guidance.needs_energy:
                guidance.prepare(z[rows], scaled[rows], some, self.generator)
            else:
                guidance.prepare(z, scaled, c, self.generator)
        self.generator.set_state(state)
        if not self.guidance_model.trainable:
            return

        def update(step: int) -> Metrics:
            rows = self._draw(len(z))
            condition = None if c is None else c[rows]
            loss, metrics = self.guidance_model.loss(
                z[rows], scaled[rows], condition, self.generator
            )
            rate = self._rate(self.config.guidance_learning_rate, step, "guidance")
            self._step("guidance", loss, rate)
            self._average(self.guidance_model, self.guidance_ema, step)
            return metrics

        self._run("guidance", self.config.guidance_steps, update)

    def _run(self, stage: str, total: int, update: Callable[[int], Metrics]) -> None:
        """Call `update(step)` from where the stage stands up to `total`."""
        if self._stopped:
            return
        bar = tqdm(
            total=total,
            initial=self.progress[stage],
            desc=f"{stage:9s}",
            disable=not self._progress_bar,
            mininterval=0.5,
        )
        with bar:
            for step in range(self.progress[stage], total):
                metrics = update(step)
                self.progress[stage] = step + 1
                bar.update()
                if (step + 1) % max(1, total // 50) == 0 or step + 1 == total:
                    row = {name: float(value) for name, value in metrics.items()}
                    if not all(math.isfinite(value) for value in row.values()):
                        raise RuntimeError(
                            f"stage {stage!r} has {row} at step {step + 1}: lower its learning "
                            "rate or beta, or check the energy for outliers"
                        )
                    self.history[stage].append({"step": float(step + 1), **row})
                    if "loss" in row:
                        bar.set_postfix(loss=f"{row['loss']:.4f}")
                if self._callback is not None and self._callback(self) is False:
                    self._stopped = True
                    return

    def _draw(self, n: int) -> Tensor:
        """Rows of the next step's groups, (groups, K)."""
        shape = (self.config.groups, self.config.contrast)
        return torch.randint(n, shape, generator=self.generator, device=self.device)

    def _rate(self, base: float, step: int, stage: str) -> float:
        """Half a cosine from `base` to zero."""
        total = self.config.data_steps if stage == "data" else self.config.guidance_steps
        return base * 0.5 * (1.0 + math.cos(math.pi * step / total))

    def _step(self, stage: str, loss: Tensor, rate: float) -> None:
        optimizer = self.optimizers[stage]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def _average(self, source: nn.Module, target: nn.Module, step: int) -> None:
        """EMA that forgets the first steps sooner: decay min(ema_decay, (1 + n) / (10 + n))."""
        decay = min(self.config.ema_decay, (1.0 + step) / (10.0 + step))
        polyak_update(source, target, 1.0 - decay)

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
        if isinstance(guidance, Weighted) and scale == 1.0:
            model, scale = guidance.model, 0.0
        z = model.sample(
            noise,
            c,
            guidance=guidance.gradient,
            guidance_scale=scale,
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

    # Files ----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write everything that sampling and further training need, atomically."""
        if self.dims is None:
            raise RuntimeError("nothing to save: this model has not seen data yet")
        optimizers: dict[str, Tensor] = {}
        groups = {}
        for name, optimizer in self.optimizers.items():
            tensors, groups[name] = pack_optimizer(name, optimizer.state_dict())
            optimizers.update(tensors)
        header = {
            "agent": self.name,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "dims": self.dims,
            "labelled": self._labelled,
            "progress": self.progress,
            "history": self.history,
            "fingerprint": self.fingerprint,
            "optimizers": groups,
        }
        tables = {
            "generator/training": self.generator.get_state(),
            "generator/sampling": self.sampling_generator.get_state(),
        }
        modules = self.networks.state_dict()
        write_checkpoint(_with_suffix(path), Checkpoint(header, modules, optimizers, tables))

    @classmethod
    def load(
        cls,
        path: str | Path,
        energy: Energy | None = None,
        device: torch.device | str = "auto",
    ) -> Self:
        """Read a file. Raises CheckpointError when it is damaged or holds something else.

        `energy` is needed where a guidance differentiates a callable (`dps`, `analytic`).
        """
        path = _with_suffix(path)
        checkpoint = read_checkpoint(path)
        header = checkpoint.header
        if header.get("agent") != cls.name:
            raise CheckpointError(f"{str(path)!r} holds {header.get('agent')!r}, not {cls.name!r}")
        try:
            model = cls(_config_from_json(header["config"]), seed=header["seed"], device=device)
            model._build(*header["dims"], header["labelled"])
            model._restore(checkpoint)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(f"checkpoint {str(path)!r} cannot be used: {reason}") from error
        model._energy = energy
        return model

    def _restore(self, checkpoint: Checkpoint) -> None:
        header, generators = checkpoint.header, checkpoint.tables
        for guidance in ("guidance", "guidance_ema"):
            # tables of analytic take their size from the data's dimension
            for name, buffer in self.networks[guidance].named_buffers():
                saved = checkpoint.modules[f"{guidance}.{name}"]
                if "." not in name and saved.shape != buffer.shape:
                    setattr(self.networks[guidance], name, saved.to(self.device))
        self.networks.load_state_dict(checkpoint.modules)
        for name, optimizer in self.optimizers.items():
            groups = header["optimizers"][name]
            optimizer.load_state_dict(unpack_optimizer(name, checkpoint.optimizers, groups))
        if set(header["progress"]) != set(STAGES):
            raise CheckpointError(f"its stages are {header['progress']}, not {STAGES}")
        self.progress, self.history = header["progress"], header["history"]
        self.fingerprint = header["fingerprint"]
        for name, generator in (
            ("training", self.generator),
            ("sampling", self.sampling_generator),
        ):
            state = generators[f"generator/{name}"]
            if len(state) == len(generator.get_state()):
                generator.set_state(state)
            else:  # saved on another kind of device
                generator.manual_seed(self.seed + sum(self.progress.values()))


def _config_from_json(data: dict[str, Any]) -> EnergyGuidedConfig:
    names = {field.name for field in dataclasses.fields(EnergyGuidedConfig)}
    if set(data) != names:
        raise CheckpointError(
            f"configuration fields differ: unknown {sorted(set(data) - names)}, missing "
            f"{sorted(names - set(data))}"
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return EnergyGuidedConfig(**values)


def _with_suffix(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".zip" else path.with_name(path.name + ".zip")
