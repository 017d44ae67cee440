"""EnergyGuidedDiffusion: sample p(x) ~ q(x) exp(-beta E(x)) for any data of q and any energy.

1. data       a diffusion model of q, by denoising
2. energy     a smooth network of E, only where a guidance differentiates E and E came as labels
3. guidance   the intermediate energy f_t, by the method of that name (`qgpo.guidance`)
sample        solve the reverse process with the score of q_t plus the gradient of w f_t

Everything runs in standardised coordinates z = (x - mean) / std, and E is lower-is-better.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import ConvertCallback
from torch import Tensor, nn

from qgpo.agents.core import checkpoint
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.core.config import Fraction, NotNegative
from qgpo.agents.core.process import usual_torch
from qgpo.agents.core.training import Training, average, choose_device, of_training
from qgpo.diffusion import Diffusion, Metrics
from qgpo.envs.data.columns import Rounding, centred, numbers
from qgpo.fields import OneOf, Range, check_count, check_fields, check_finite, check_seed
from qgpo.gaussians import CorrectedNetwork, FittedMixture
from qgpo.guidance import (
    GuidanceParts,
    Samples,
    Weighted,
    check_guidance,
    make_guidance,
    weighted_loss,
)
from qgpo.guidance.base import TARGETS
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
TO_RESUME = "to continue later: save(path), then load(path).fit(data, energy, resume=True)"
ENERGY = "a callable, or an array of one value per sample"
ROWS_PER_CALL = 16_384
StepsOrNone = Annotated[int | None, Range(0, 10**12)]
STEPS_ALONE = {"data": 4_000, "guidance": 3_000}
STEPS_OF_CORRECTION = {"data": 500, "guidance": 300}
"""gradient steps unless the configuration says another number"""
SIMPLE_DIM = 32
"""most dimensions in which mixtures with full covariances are fitted, and targets averaged"""
EXACT = (torch.float32, torch.float16, torch.bfloat16)
"""types of which float32 holds every number"""


@dataclass(frozen=True)
class EnergyGuidedConfig:
    """What an EnergyGuidedDiffusion is made of."""

    beta: Annotated[float, Range(-1e9, 1e9)] = 1.0
    """inverse temperature of p ~ q exp(-beta E): larger values concentrate p on low energies, 0 is
    q"""
    guidance: str = "cep"
    """kind of guidance: cep (the paper's, exact), mse, emse, dps, qgf, analytic, aepo or
    weighted"""
    guidance_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    """options of the guidance, by name; the file of each guidance in qgpo/guidance lists its
    options"""
    schedule: str = "cosine"
    """noise schedule: cosine, linear (both variance-preserving), or ot (straight path of flow
    matching)"""
    prediction: str = "velocity"
    """output of the data model's network: velocity, noise, or flow (only with schedule ot)"""
    hidden: tuple[int, ...] = (192, 192, 192)
    """hidden layer sizes of the data model"""
    data_steps: StepsOrNone = None
    """gradient steps of the data model; none: 500 where it corrects a mixture (`components`), 4,000
    elsewhere"""
    data_learning_rate: NotNegative = 3e-3
    """initial Adam step size of the data model"""
    energy_hidden: tuple[int, ...] = (128, 128, 128)
    """hidden layer sizes of f, and of the clean energy if it is learned"""
    guidance_steps: StepsOrNone = None
    """gradient steps of f, or of the weighted model; none: 300 where there are mixtures, 3,000
    elsewhere"""
    guidance_learning_rate: NotNegative = 5e-3
    """initial Adam step size of f, or of the weighted model"""
    contrast: int = 512
    """K, number of samples that are contrasted with each other at one noise level: more are slower
    and more exact"""
    groups: int = 4
    """number of such groups per gradient step, each with its own noise level"""
    targets: Annotated[str, OneOf(("auto", *TARGETS))] = "auto"
    """sample, or posterior: targets averaged over the group's posterior, which takes most of their
    variance away (unconditional models in few dimensions); auto: posterior in these"""
    components: Annotated[int, Range(0, 4096)] = 32
    """of Gaussian mixtures, fitted to the data and to their energies, that the networks of the data
    model, cep and weighted correct (unconditional models in up to 32 dimensions); 0: none"""
    preconditioned: bool = True
    """multiply the output of the network for f by alpha_t"""
    sharpness: float = 12.0
    """scale of the networks' inputs: with larger values they learn finer features first"""
    ema_decay: Fraction = 0.999
    """decay of the averaged weights from which samples are drawn: larger averages over more steps,
    0 uses the last weights"""
    guidance_bound: float | None = None
    """largest |w sigma grad f| / |eps| while sampling: smaller values limit the guidance more.
    none: no bound"""
    solver: str = "dpm_solver_2m"
    """ODE solver, if `sample` is given no other one"""
    solver_steps: int = 50
    """solver steps per sample: more are slower and more exact"""
    spacing: str = "log_snr"
    """times of the solver steps: uniform in time, uniform in log_snr, or karras"""

    def __post_init__(self) -> None:
        check_fields(self)
        check_guidance(self.guidance, self.guidance_options)


class Data(NamedTuple):
    """N samples as the stages see them."""

    z: Tensor
    """(N, D) standardised"""
    energies: Tensor
    """(N,) E in its own units, or what a stage makes of it"""
    condition: Tensor | None
    """(N, C) standardised"""

    def rows(self, rows: Tensor | slice) -> Samples:
        """Those samples, in the shape of the row numbers."""
        condition = None if self.condition is None else self.condition[rows]
        return Samples(self.z[rows], self.energies[rows], condition)


class EnergyGuidedDiffusion:
    """A model of p(x) ~ q(x) exp(-beta E(x)), or of p(x|c) given conditions.

        model = EnergyGuidedDiffusion(EnergyGuidedConfig(beta=3.0), seed=0)
        samples = model.fit(data, energy).sample(1000)

    `energy` is a function of samples, or an array with one value per sample. Lower is better.
    """

    name: ClassVar[str] = "EnergyGuidedDiffusion"

    networks: nn.ModuleDict = of_training("networks")
    """every network, average and normalizer, by name"""
    progress: dict[str, int] = of_training("progress")
    """steps done, per stage"""
    num_timesteps: int = of_training("num_timesteps")
    """gradient steps done, over all stages"""
    history: dict[str, list[dict[str, float]]] = of_training("history")
    """about fifty rows of metrics per stage"""

    @usual_torch()
    def __init__(
        self,
        config: EnergyGuidedConfig | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
    ) -> None:
        if not isinstance(config, EnergyGuidedConfig | None):
            raise TypeError(
                f"config is a {type(config).__name__}, expected an EnergyGuidedConfig (it has no "
                "presets)"
            )
        self.config = EnergyGuidedConfig() if config is None else config
        self.seed = seed = check_seed(seed)
        self.device = choose_device(device)
        self.schedule = make_schedule(self.config.schedule)
        get_solver(self.config.solver, self.schedule)
        time_grid(self.schedule, self.config.solver_steps, self.config.spacing)
        self.training = Training(STAGES, seed, self.device, LIKELY_CAUSES, TO_RESUME)
        self.sampling_generator = torch.Generator(self.device)
        self._reset()

    def _reset(self) -> None:
        self.training.reset()
        self.training.history = {stage: [] for stage in STAGES}
        self.fingerprint: str | None = None
        self.dims: tuple[int, int] | None = None
        self.steps: dict[str, int] = {}
        self._energy: Energy | None = None
        self.sampling_generator.manual_seed(self.seed)

    # Parts ----------------------------------------------------------------------------------

    def _build(self, dim: int, condition_dim: int, labelled: bool) -> None:
        """Networks and optimizers; `labelled`: the energy came as labels and may be learned."""
        c, add, add_trained = self.config, self.training.add, self.training.add_trained
        dims, common = (dim, condition_dim), (self.schedule, c.sharpness)
        simple = condition_dim == 0 and dim <= SIMPLE_DIM
        components = c.components if simple else 0
        self.steps = {**(STEPS_OF_CORRECTION if components else STEPS_ALONE)}
        for stage, asked in (("data", c.data_steps), ("guidance", c.guidance_steps)):
            if asked is not None:
                self.steps[stage] = asked
        make_model = partial(self._make_diffusion, dims, components)
        self.targets = c.targets
        if c.targets == "auto":
            self.targets = "posterior" if simple else "sample"
        with self.training.building(self._reset):
            self.dims, self._labelled = dims, labelled
            self.normalizer = add("normalizer", ObservationNormalizer(dim))
            self.condition_normalizer = add(
                "condition_normalizer", ObservationNormalizer(condition_dim)
            )
            data_model = make_model()
            self.data_model = add_trained("data_model", data_model, "data")
            self.data_model_ema = self.training.add_copy("data_model_ema", data_model)
            clean_energy = mlp([dim + condition_dim, *c.energy_hidden, 1], "silu")
            self.clean_energy = add_trained("clean_energy", clean_energy, "energy")
            self.energy_scale = add("energy_scale", ObservationNormalizer(1))
            parts = GuidanceParts(
                dim=dim,
                schedule=self.schedule,
                denoise=self.data_model_ema.denoise,
                make_energy_network=partial(
                    NaturalNetwork, *dims, 0, c.energy_hidden, *common, components > 0
                ),
                make_diffusion=make_model,
                energy=self._scaled_energy,
                preconditioned=c.preconditioned,
                targets=self.targets,
                components=components,
                options=c.guidance_options,
            )
            self.guidance_model = add_trained("guidance", make_guidance(c.guidance, parts))
            copied = make_guidance(c.guidance, parts).requires_grad_(False)
            copied.load_state_dict(self.guidance_model.state_dict())
            self.guidance_ema = add("guidance_ema", copied)

    def _make_diffusion(self, dims: tuple[int, int], components: int) -> Diffusion:
        """A diffusion model of samples and conditions of those dimensions."""
        c, dim = self.config, dims[0]
        network: nn.Module = NaturalNetwork(
            *dims, dim, c.hidden, self.schedule, c.sharpness, zero_start=True
        )
        if components:
            mixture = FittedMixture(dim, components)
            network = CorrectedNetwork(network, mixture, self.schedule, c.prediction)
        return Diffusion(network, self.schedule, c.prediction)

    def _scaled_energy(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """f_0 = -beta E of standardised samples and conditions, (B,); differentiable."""
        if self._labelled:
            learned: Tensor = self.clean_energy(join(z, condition)).squeeze(-1)
            return -self.config.beta * in_units(self.energy_scale, learned)
        if self._energy is None:
            raise RuntimeError(
                f"guidance={self.config.guidance!r} differentiates the energy while sampling, and "
                "a file cannot hold a function: load(path, energy=...)"
            )
        return -self.config.beta * self._call(self._energy, z, condition)

    def _call(self, energy: Energy, z: Tensor, condition: Tensor | None) -> Tensor:
        """E in the data's units, with its shape checked."""
        given = () if condition is None else (in_units(self.condition_normalizer, condition),)
        values = energy(self.decode(z), *given)
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if found != (len(z),):
            raise ValueError(
                f"energy returned {found}, expected a tensor of shape ({len(z)},): one value per "
                "sample"
            )
        return values

    def encode(self, x: Tensor) -> Tensor:
        """Data to the standardised coordinates of the diffusion, (..., D)."""
        z: Tensor = self.normalizer(x)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Back to data, (..., D)."""
        return in_units(self.normalizer, z)

    # Training -------------------------------------------------------------------------------

    def fit(
        self,
        data: Array,
        energy: Energy | Array,
        condition: Array | None = None,
        *,
        progress_bar: bool | None = None,
        callback: Callback | None = None,
        resume: bool = False,
    ) -> Self:
        """Learn q from data (N, D), and the guidance towards low energy.

        `energy` is a differentiable function, or an array with one value per sample (N,). A
        function receives torch tensors (B, D) in the units of the data and returns (B,). With
        `condition` (N, C) this is a model of p(x|c), and the function receives (B, D) and (B, C).
        `callback(model)` is called after every step; training stops if it returns False. A
        progress bar is shown by default if stderr is a terminal. With `resume`, training continues
        from the current state of the model, with the same result as an uninterrupted one. Raises
        ValueError for unsuitable data or energies, and RuntimeError if a loss is not finite or if
        this model is already being trained.
        """
        if energy is None:
            raise ValueError(
                f"energy=None, expected {ENERGY}; use fit_data(data) to train the model of q only"
            )
        with self.training.turn.training():
            prepared = self._prepare(data, energy, condition, resume)
            with self._running(progress_bar, callback):
                self._fit_data(prepared)
                self._fit_energy(prepared)
                self._fit_guidance(prepared)
        return self

    def fit_data(
        self, data: Array, condition: Array | None = None, *, progress_bar: bool | None = None
    ) -> Self:
        """Stage 1 alone: q, for several guidances to share (`with_guidance`)."""
        with self.training.turn.training():
            prepared = self._prepare(data, None, condition, False)
            with self._running(progress_bar, None):
                self._fit_data(prepared)
        return self

    def _running(
        self, progress_bar: bool | None, callback: Callback | None
    ) -> AbstractContextManager[None]:
        """Around the stages: the loop's settings; a callback that returns False ends the block."""
        training = self.training
        training.interrupted, training.progress_bar = False, progress_bar
        on_step = None if callback is None else lambda *_: callback(self) is not False
        return training.running(ConvertCallback(on_step), self, {})

    def with_guidance(self, config: EnergyGuidedConfig) -> EnergyGuidedDiffusion:
        """Return a new model with the same q; then call `fit(..., resume=True)` on the same data.

        The two configurations must have the same settings of the data model.
        """
        fields = ("schedule", "prediction", "hidden", "data_steps", "sharpness", "components")
        for name in fields:
            if getattr(config, name) != getattr(self.config, name):
                raise ValueError(
                    f"{name}={getattr(config, name)!r} belongs to the data model, expected "
                    f"{getattr(self.config, name)!r}"
                )
        if self.dims is None or self.progress["data"] < self.steps["data"]:
            raise RuntimeError("the data model is not trained yet: call fit_data(data)")
        other = EnergyGuidedDiffusion(config, seed=self.seed, device=self.device)
        other._build(*self.dims, self._labelled)
        for name in ("normalizer", "condition_normalizer", "data_model", "data_model_ema"):
            other.networks[name].load_state_dict(self.networks[name].state_dict())
        other.progress["data"] = other.training.num_timesteps = other.steps["data"]
        return other

    @usual_torch()
    def _prepare(
        self,
        data: Array,
        energy: Energy | Array | None,
        condition: Array | None,
        resume: bool,
    ) -> Data:
        """Check and standardise; an energy of None is zero."""
        x = self._matrix("data", data)
        c = None if condition is None else self._matrix("condition", condition)
        if c is not None and len(c) != len(x):
            raise ValueError(f"condition has {len(c)} rows, expected one per sample: {len(x)}")
        dims = x.shape[1], 0 if c is None else c.shape[1]
        if not resume:
            self._reset()
        if self.dims is None:
            self._build(*dims, not callable(energy))
        if self.dims != dims:
            raise ValueError(
                f"data and condition have dimensions {dims}, this model was made for {self.dims}"
            )
        self._labelled = not callable(energy)
        self._energy = energy if callable(energy) else None
        if self.progress["data"] == 0:
            self.normalizer.fit(x)
            if c is not None:
                self.condition_normalizer.fit(c)
        z = self.normalizer(x)
        c = None if c is None else self.condition_normalizer(c)
        labels = self._labels(energy, z, c)
        if energy is not None:
            self._check_same_data(x, labels)
        return Data(z, labels, c)

    def _labels(self, energy: Energy | Array | None, z: Tensor, c: Tensor | None) -> Tensor:
        """E of every sample, (N,); relative to their mean where float32 would lose digits."""
        if energy is None:
            return torch.zeros(len(z), device=self.device)
        if callable(energy):
            rows = torch.arange(len(z), device=self.device).split(ROWS_PER_CALL)
            with torch.no_grad():
                parts = [self._call(energy, z[r], None if c is None else c[r]) for r in rows]
            energy = torch.cat(parts)
        labels = self._tensor("energy", energy, ENERGY, centred)
        if labels.shape != (len(z),):
            raise ValueError(f"energy has shape {tuple(labels.shape)}, expected ({len(z)},)")
        if not bool(torch.isfinite(labels).all()):
            raise ValueError("energy has NaN or infinite values")
        return labels

    def _matrix(self, name: str, value: Array) -> Tensor:
        matrix = self._tensor(name, value, "an array of shape (N, dimension)")
        if matrix.dim() != 2 or len(matrix) < 2 or matrix.shape[1] == 0:
            raise ValueError(f"{name} has shape {tuple(matrix.shape)}, expected (N, dimension)")
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"{name} has NaN or infinite values")
        return matrix

    def _tensor(
        self,
        name: str,
        value: Any,
        expected: str,
        recover: Callable[[NDArray[Any]], NDArray[np.float64]] | None = None,
    ) -> Tensor:
        """The value in float32 on the device.

        Where that loses digits, it is what `recover` makes of the value; without one, it warns.
        Raises ValueError for what is no real numbers.
        """
        if isinstance(value, Tensor) and value.dtype in EXACT:
            return value.to(self.device, torch.float32)
        try:
            array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            converted = numbers(self.name, name, array)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name} is a {type(value).__name__}, which is not an array of numbers "
                f"({error}), expected {expected}"
            ) from error
        rounding = Rounding()
        if converted.ndim > 0:
            rounding.add(name, array, converted)
        for fault in rounding.faults(self.name):
            if recover is None:
                warnings.warn(fault, stacklevel=2)
            else:
                converted = recover(np.asarray(array)).astype(np.float32)
        return torch.tensor(converted, device=self.device)

    def _check_same_data(self, x: Tensor, labels: Tensor) -> None:
        digest = hashlib.sha256(x.cpu().numpy().tobytes())
        digest.update(labels.cpu().numpy().tobytes())
        started = any(self.progress[stage] for stage in ("energy", "guidance"))
        if started and self.fingerprint != digest.hexdigest():
            raise ValueError(
                "training began with other data or another energy: call fit without resume"
            )
        self.fingerprint = digest.hexdigest()

    def _fit_data(self, data: Data) -> None:
        """Stage 1: q, which is the weighted model at beta = 0."""
        zeros = data._replace(energies=torch.zeros_like(data.energies))
        if self.progress["data"] == 0:
            self._fit_mixture(data)
        after = partial(average, self.data_model, self.data_model_ema, self.config.ema_decay)
        self._fit_stage("data", zeros, self._data_loss, after)

    def _fit_mixture(self, data: Data) -> None:
        """What the data model's network corrects."""
        network = self.data_model.network
        if isinstance(network, CorrectedNetwork):
            network.mixture.fit(data.z, torch.Generator(self.device).manual_seed(self.seed))
            self.data_model_ema.load_state_dict(self.data_model.state_dict())

    def _data_loss(self, groups: Samples) -> tuple[Tensor, Metrics]:
        loss, _ = weighted_loss(self.data_model, *groups, self.targets, self.training.generator)
        return loss, {"loss": loss}

    def _fit_energy(self, data: Data) -> None:
        """Stage 2: a smooth E(x), where it is differentiated and came as labels."""
        if not (self._labelled and self.guidance_model.needs_energy):
            return
        self.energy_scale.fit(data.energies[:, None])
        standardised = self.energy_scale(data.energies[:, None]).squeeze(-1)
        self._fit_stage("energy", data._replace(energies=standardised), self._energy_loss)

    def _energy_loss(self, groups: Samples) -> tuple[Tensor, Metrics]:
        x_0, standardised, condition = groups
        output = self.clean_energy(join(x_0, condition)).squeeze(-1)
        loss = torch.mean((output - standardised) ** 2)
        return loss, {"loss": loss}

    @usual_torch()
    def _fit_guidance(self, data: Data) -> None:
        """Stage 3: f_t on groups of K samples, each group at one noise level."""
        # E enters relative to its mean: the same f for energies that differ by a constant
        centred = data.energies.double() - data.energies.double().mean()
        data = data._replace(energies=(-self.config.beta * centred).float())
        model, generator = self.guidance_model, self.training.generator
        state = generator.get_state()
        seen = data.rows(slice(ROWS_PER_CALL if model.needs_energy else None))
        if self.progress["guidance"] == 0:
            if isinstance(model, Weighted):
                model.model.load_state_dict(self.data_model_ema.state_dict())
            model.start(seen)
            self.guidance_ema.load_state_dict(model.state_dict())
        for guidance in (model, self.guidance_ema):
            generator.set_state(state)
            guidance.prepare(seen, generator)
        generator.set_state(state)
        if model.trainable:
            loss = partial(model.loss, generator=generator)
            after = partial(average, model, self.guidance_ema, self.config.ema_decay)
            self._fit_stage("guidance", data, loss, after)

    def _fit_stage(
        self,
        stage: str,
        data: Data,
        loss: Callable[[Samples], tuple[Tensor, Metrics]],
        after: Callable[[int], None] = lambda step: None,
    ) -> None:
        """Minimise a loss over random groups, with about fifty rows of metrics."""
        c, training = self.config, self.training
        is_data = stage == "data"
        total = self.steps["data" if is_data else "guidance"]
        rate = c.data_learning_rate if is_data else c.guidance_learning_rate

        def loss_of_groups(step: int) -> tuple[Tensor, Metrics]:
            return loss(data.rows(training.draw(len(data.z), c.groups, c.contrast)))

        training.log_interval = max(1, total // 50)
        training.minimize(stage, total, loss_of_groups, rate, after=after)

    # Files ----------------------------------------------------------------------------------

    def save(self, path: str | Path | BinaryIO) -> None:
        """Write everything that sampling and further training need, atomically.

        `path` may be a file that is open in binary mode.
        """
        if self.dims is None:
            raise RuntimeError("nothing to save: this model has not seen data yet")
        checkpoint.write_checkpoint(
            checkpoint.with_suffix(path),
            self.training,
            self.config,
            {"sampling": self.sampling_generator},
            agent=self.name,
            dims=self.dims,
            labelled=self._labelled,
            history=self.history,
            fingerprint=self.fingerprint,
        )

    @classmethod
    def load(
        cls,
        path: str | Path | BinaryIO,
        energy: Energy | None = None,
        device: torch.device | str = "auto",
    ) -> Self:
        """Read a file. Raises CheckpointError if it is damaged or holds something else.

        `energy` is needed if the guidance differentiates the energy (`dps`, `qgf`, `analytic`).
        """
        device = choose_device(device)  # not the file's fault
        source = checkpoint.with_suffix(path)
        read = checkpoint.read_checkpoint(source)
        header = read.header
        if header["agent"] != cls.name:
            name = checkpoint.named(source)
            raise CheckpointError(f"{name} holds {header['agent']!r}, not {cls.name!r}")
        with checkpoint.using(source, read):
            config = checkpoint.config_from_json(EnergyGuidedConfig, header["config"])
            model = cls(config, seed=header["seed"], device=device)
            dims, labelled, fingerprint = header["dims"], header["labelled"], header["fingerprint"]
            kinds = [*map(type, dims), type(labelled), type(fingerprint)]
            if kinds not in ([int, int, bool, str], [int, int, bool, type(None)]) or min(dims) < 0:
                raise ValueError(f"{dims=}, {labelled=} or {fingerprint=} is none")
            dim, condition_dim = dims
            model._build(dim, condition_dim, labelled)
            checkpoint.restore(model.training, read, {"sampling": model.sampling_generator})
            model.training.history = _history(header["history"])
            model.fingerprint = fingerprint
        model._energy = energy
        return model

    # Sampling -------------------------------------------------------------------------------

    @usual_torch()
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
        """Draw samples (n, D) from q exp(-beta E), one per condition (n, C) in conditional models.

        The guidance scale w multiplies grad f: 0 samples q without a gradient, 1 is exact, and
        other values are a heuristic. The default generator is the model's own (seeded) one.
        Raises RuntimeError before training, and ValueError for wrong arguments or if samples are
        not finite.
        """
        n = None if n is None else check_count("n", n, low=0)
        scale = check_finite("guidance_scale", guidance_scale)
        shape, c = self._condition(n, condition)
        generator = self.sampling_generator if generator is None else generator
        noise = torch.randn(shape, generator=generator, device=self.device)
        model, guidance = self.data_model_ema, self.guidance_ema
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
            solver=self.config.solver if solver is None else solver,
            steps=self.config.solver_steps if steps is None else steps,
            spacing=self.config.spacing if spacing is None else spacing,
            generator=generator,
        )
        samples = self.decode(z)
        if not bool(torch.isfinite(samples).all()):
            raise ValueError(
                f"guidance_scale={guidance_scale!r} gives samples that are not finite, expected "
                "a scale near 1, or more solver steps"
            )
        return samples

    @usual_torch()
    def guidance(self, x_t: Tensor, t: Tensor, condition: Array | None = None) -> Tensor:
        """Gradient of f_t at standardised noisy samples x_t (B, D), t (B,), as the sampler uses it.

        x_t = alpha_t encode(x) + sigma_t noise.
        """
        _, c = self._condition(len(x_t), condition)
        return self.guidance_ema.gradient(x_t, t, c)

    @usual_torch()
    def f(self, x_t: Tensor, t: Tensor, condition: Array | None = None) -> Tensor:
        """The intermediate energy at standardised noisy samples, up to a constant, (B,)."""
        _, c = self._condition(len(x_t), condition)
        return self.guidance_ema.f(x_t, t, c).detach()

    def _condition(
        self, n: int | None, condition: Array | None
    ) -> tuple[tuple[int, int], Tensor | None]:
        """Shape (n, D) of the samples, and their standardised conditions (n, C)."""
        if self.dims is None:
            raise RuntimeError("this model has not been trained: call fit(data, energy)")
        dim, condition_dim = self.dims
        if condition is None:
            if condition_dim or n is None:
                raise ValueError(f"n={n}, condition=None for {condition_dim} condition dimensions")
            return (n, dim), None
        c = self._tensor("condition", condition, f"an array of shape (n, {condition_dim})")
        if c.dim() != 2 or c.shape[1] != condition_dim or n not in (None, len(c)):
            raise ValueError(
                f"condition has shape {tuple(c.shape)}, expected ({n or 'n'}, {condition_dim})"
            )
        return (len(c), dim), self.condition_normalizer(c)


def _history(written: Any) -> dict[str, list[dict[str, float]]]:
    """Rows of metrics per stage. Raises LookupError or TypeError for others."""
    return {s: [{k: float(v) for k, v in row.items()} for row in written[s]] for s in STAGES}


def in_units(normalizer: ObservationNormalizer, standardised: Tensor) -> Tensor:
    """Back from standardised values to the data's own units."""
    return standardised * normalizer.std + normalizer.mean
