"""EnergyGuidedDiffusion: sample p(x) ~ q(x) exp(-beta E(x)) for any data of q and any energy.

1. data       a diffusion model of q, by denoising
2. energy     a smooth network of E, only where a guidance differentiates E and E came as labels
3. guidance   the intermediate energy f_t, by the method of that name (`qgpo.guidance`)
sample        solve the reverse process with the score of q_t plus the gradient of w f_t

Everything runs in standardised coordinates z = (x - mean) / std, and E is lower-is-better.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from torch import Tensor, nn

from qgpo.agents.core import checkpoint
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.core.training import (
    Training,
    TrainingStoppedError,
    average,
    choose_device,
    half_cosine,
    of_training,
    on_signals,
)
from qgpo.diffusion import Diffusion, Metrics
from qgpo.guidance import (
    GuidanceParts,
    Samples,
    Weighted,
    check_guidance,
    make_guidance,
    weighted_loss,
)
from qgpo.networks import NaturalNetwork, join, mlp
from qgpo.normalization import ObservationNormalizer
from qgpo.schedule import make_schedule
from qgpo.solver import get_solver, time_grid

Array = Tensor | NDArray[Any]
Energy = Callable[[Tensor], Tensor] | Callable[[Tensor, Tensor], Tensor]
"""E of samples (B, D), or of samples and conditions (B, C) in conditional models, (B,)"""
Callback = Callable[["EnergyGuidedDiffusion"], bool | None]

STAGES = ("data", "energy", "guidance")
LIKELY_CAUSES = "Lower its learning rate or beta, or check the energy for outliers"
TO_RESUME = "save(path), and later load(path).fit(data, energy, resume=True) to go on"
ROWS_PER_CALL = 16_384


@dataclass(frozen=True)
class EnergyGuidedConfig:
    """What an EnergyGuidedDiffusion is made of."""

    beta: float = 1.0
    """inverse temperature of p ~ q exp(-beta E)"""
    guidance: str = "cep"
    """how f_t is obtained: cep, mse, emse, dps, analytic, aepo or weighted"""
    guidance_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    """what that guidance lets choose, by name; its file in qgpo/guidance lists its options"""
    schedule: str = "cosine"
    """noise schedule: cosine, linear (both variance preserving) or ot"""
    prediction: str = "velocity"
    """what the data model's network predicts: velocity, noise, or flow (only on ot)"""
    hidden: tuple[int, ...] = (192, 192, 192)
    """layers of the data model"""
    data_steps: int = 4_000
    """gradient steps of the data model"""
    data_learning_rate: float = 3e-3
    """its first Adam step size"""
    energy_hidden: tuple[int, ...] = (128, 128, 128)
    """layers of f, and of the clean energy where one is learned"""
    guidance_steps: int = 3_000
    """gradient steps of f, or of the weighted model"""
    guidance_learning_rate: float = 5e-3
    """its first Adam step size"""
    contrast: int = 512
    """K, samples compared with each other at one noise level"""
    groups: int = 4
    """such groups in one gradient step, each with its own noise level"""
    targets: str = "sample"
    """sample, or posterior: targets averaged over the group's posterior, which takes most of their
    variance away (unconditional models in few dimensions)"""
    preconditioned: bool = True
    """f = alpha_t times its network"""
    sharpness: float = 12.0
    """scale of the networks' inputs: how fine the features are that they learn first"""
    ema_decay: float = 0.999
    """decay of the averaged weights that are sampled from"""
    guidance_bound: float | None = None
    """largest |w sigma grad f| / |eps| while sampling; none: no bound"""
    solver: str = "dpm_solver_2m"
    """solver unless `sample` is given another"""
    solver_steps: int = 25
    """its steps"""
    spacing: str = "log_snr"
    """its time grid: time, log_snr or karras"""

    def __post_init__(self) -> None:
        check_guidance(self.guidance, self.guidance_options)


class _History(KVWriter):
    """Keeps what the loop logs, per stage."""

    def __init__(self, history: dict[str, list[dict[str, float]]]) -> None:
        self.history = history

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0
    ) -> None:
        """One row: the step of the stage, and its metrics."""
        stage = key_values["time/stage"]
        metrics = {k.removeprefix(f"{stage}/"): v for k, v in key_values.items()}
        steps = float(metrics["time/stage_steps"])
        own = {k: float(v) for k, v in metrics.items() if "/" not in k}
        self.history[stage].append({"step": steps, **own})

    def close(self) -> None:
        """Nothing is open."""


class _EveryStep(BaseCallback):
    """Calls a function of the model after every step; False stops."""

    def __init__(self, function: Callback) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return self.function(self.model) is not False  # type: ignore[arg-type]


class EnergyGuidedDiffusion:
    """A model of p(x) ~ q(x) exp(-beta E(x)), or of p(x|c) given conditions.

        model = EnergyGuidedDiffusion(EnergyGuidedConfig(beta=3.0), seed=0)
        samples = model.fit(data, energy).sample(1000)

    `energy` is a callable on samples or an array of one value per sample, lower is better.
    """

    name: ClassVar[str] = "EnergyGuidedDiffusion"

    networks: nn.ModuleDict = of_training("networks")
    """every network, average and normalizer, by name"""
    progress: dict[str, int] = of_training("progress")
    """steps done, per stage"""
    num_timesteps: int = of_training("num_timesteps")
    """gradient steps done, over all stages"""

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
        self.training = Training(STAGES, seed, self.device, LIKELY_CAUSES, TO_RESUME)
        self.sampling_generator = torch.Generator(self.device)
        self._reset()

    def _reset(self) -> None:
        self.training.reset()
        self.history: dict[str, list[dict[str, float]]] = {stage: [] for stage in STAGES}
        self.training.logger = Logger(None, [_History(self.history)])
        self.fingerprint: str | None = None
        self.dims: tuple[int, int] | None = None
        self._energy: Energy | None = None
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
            self.training.add_optimizer(stage, module.parameters(), 1e-3)

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
            options=c.guidance_options,
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

    # Training -------------------------------------------------------------------------------

    def fit(
        self,
        data: Array,
        energy: Energy | Array,
        condition: Array | None = None,
        *,
        progress_bar: bool = False,
        callback: Callback | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn q from data (N, D) and the guidance towards low energy.

        `energy` is a differentiable callable, or one value per sample (N,). A callable gets torch
        tensors (B, D) in the data's own units and returns (B,); with `condition` (N, C), which
        makes it a model of p(x|c), it is called with (B, D) and (B, C). `callback(model)` runs
        after every step; False stops. With `resume`, training continues where the model (or its
        file) stands, as if never stopped. Raises ValueError for data or energies that do not fit,
        RuntimeError where a loss is not finite.
        """
        z, labels, c = self._prepare(data, energy, condition, resume)
        with self._stages(progress_bar, callback):
            self._fit_data(z, c)
            self._fit_energy(z, labels, c)
            self._fit_guidance(z, labels, c)
        return self

    def fit_data(
        self, data: Array, condition: Array | None = None, *, progress_bar: bool = False
    ) -> Self:
        """Stage 1 alone: q, for several guidances to share (`with_guidance`)."""
        z, _, c = self._prepare(data, None, condition, False)
        with self._stages(progress_bar, None):
            self._fit_data(z, c)
        return self

    @contextlib.contextmanager
    def _stages(self, progress_bar: bool, callback: Callback | None) -> Iterator[None]:
        """What the stages inside need of the loop; a callback that stops them ends the block."""
        training = self.training
        training.interrupted, training.progress_bar = False, progress_bar
        training.callback = None if callback is None else _EveryStep(callback)
        if training.callback is not None:
            training.callback.init_callback(self)  # type: ignore[arg-type]
        try:
            with on_signals(training.interrupt), contextlib.suppress(TrainingStoppedError):
                yield
        finally:
            training.callback = None

    def with_guidance(self, config: EnergyGuidedConfig) -> EnergyGuidedDiffusion:
        """A new model that keeps this one's q; call `fit(..., resume=True)` on the same data.

        The two configurations may differ in everything but the data model.
        """
        fields = ("schedule", "prediction", "hidden", "data_steps", "sharpness")
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
        other.progress["data"] = other.training.num_timesteps = config.data_steps
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
            rows = torch.arange(len(z), device=self.device).split(ROWS_PER_CALL)
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
                self.data_model, z[rows], zeros, condition, targets, self.training.generator
            )
            self._optimize("data", loss, step)
            average(self.data_model, self.data_model_ema, self.config.ema_decay, step)
            return {"loss": metrics["loss"]}

        self._run("data", update)

    def _fit_energy(self, z: Tensor, labels: Tensor, c: Tensor | None) -> None:
        """Stage 2: a smooth E(x), where it is differentiated and came as labels."""
        if not (self._labelled and self.guidance_model.needs_energy):
            return
        self.energy_scale.fit(labels[:, None])
        standardised = self.energy_scale(labels[:, None]).squeeze(-1)

        def update(step: int) -> Metrics:
            rows = self._draw(len(z)).flatten()
            output = self.clean_energy(join(z[rows], None if c is None else c[rows]))
            loss = torch.mean((output.squeeze(-1) - standardised[rows]) ** 2)
            self._optimize("energy", loss, step)
            return {"loss": loss.detach()}

        self._run("energy", update)

    def _fit_guidance(self, z: Tensor, labels: Tensor, c: Tensor | None) -> None:
        """Stage 3: f_t on groups of K samples, each group at one noise level."""
        # E enters relative to its mean: the same f for energies that differ by a constant
        centred = labels.double() - labels.double().mean()
        scaled = (-self.config.beta * centred).float()
        if self.progress["guidance"] == 0:
            for guidance in (self.guidance_model, self.guidance_ema):
                if isinstance(guidance, Weighted):
                    guidance.model.load_state_dict(self.data_model_ema.state_dict())
        state = self.training.generator.get_state()
        seen = ROWS_PER_CALL if self.guidance_model.needs_energy else len(z)
        samples = Samples(z[:seen], scaled[:seen], None if c is None else c[:seen])
        for guidance in (self.guidance_model, self.guidance_ema):
            self.training.generator.set_state(state)
            guidance.prepare(samples, self.training.generator)
        self.training.generator.set_state(state)
        if not self.guidance_model.trainable:
            return

        def update(step: int) -> Metrics:
            rows = self._draw(len(z))
            groups = Samples(z[rows], scaled[rows], None if c is None else c[rows])
            loss, metrics = self.guidance_model.loss(groups, self.training.generator)
            self._optimize("guidance", loss, step)
            average(self.guidance_model, self.guidance_ema, self.config.ema_decay, step)
            return metrics

        self._run("guidance", update)

    def _run(self, stage: str, update: Callable[[int], Metrics]) -> None:
        """Run a stage in the shared loop, with about fifty rows of metrics."""
        total = self._steps(stage)
        self.training.log_interval = max(1, total // 50)
        self.training.run_stage(stage, total, update)

    def _steps(self, stage: str) -> int:
        return self.config.data_steps if stage == "data" else self.config.guidance_steps

    def _draw(self, n: int) -> Tensor:
        """Rows of the next step's groups, (groups, K)."""
        return self.training.draw(n, self.config.groups, self.config.contrast)

    def _optimize(self, stage: str, loss: Tensor, step: int) -> None:
        """One step, at a rate that falls to zero along half a cosine."""
        c = self.config
        base = c.data_learning_rate if stage == "data" else c.guidance_learning_rate
        self.training.optimize(stage, loss, half_cosine(base, step, self._steps(stage)))

    # Files ----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write everything that sampling and further training need, atomically."""
        if self.dims is None:
            raise RuntimeError("nothing to save: this model has not seen data yet")
        packed = checkpoint.pack(
            self.training,
            self.config,
            {"sampling": self.sampling_generator},
            agent=self.name,
            dims=self.dims,
            labelled=self._labelled,
            history=self.history,
            fingerprint=self.fingerprint,
        )
        checkpoint.write_checkpoint(checkpoint.with_suffix(path), packed)

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
        device = choose_device(device)  # not the file's fault
        path = checkpoint.with_suffix(path)
        read = checkpoint.read_checkpoint(path)
        header = read.header
        if header.get("agent") != cls.name:
            raise CheckpointError(f"{str(path)!r} holds {header.get('agent')!r}, not {cls.name!r}")
        with checkpoint.using(path):
            config = checkpoint.config_from_json(EnergyGuidedConfig, header["config"])
            model = cls(config, seed=header["seed"], device=device)
            dim, condition_dim = header["dims"]
            model._build(dim, condition_dim, header["labelled"])
            checkpoint.restore(model.training, read, {"sampling": model.sampling_generator})
            for stage in STAGES:
                model.history[stage].extend(header["history"][stage])
            model.fingerprint = header["fingerprint"]
        model._energy = energy
        return model

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
        other values are a heuristic. Without a generator, the model's own (seeded) one is used.
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
