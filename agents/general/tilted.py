"""Models of p(x) ~ q(x) exp(-beta E(x)), for any data of q and any energy, whatever x is.

1. data       a diffusion model of q, by denoising
2. energy     a smooth network of E, only where a guidance differentiates E and E came as labels
3. guidance   the intermediate energy f_t, by the method of that name (`qgpo.guidance`)
sample        solve the reverse process with the score of q_t plus the gradient of w f_t

Everything runs in standardised coordinates z, and E is lower-is-better. There may be several
energies, one per class say: p_e(x) ~ q(x) exp(-beta E_e(x)). Every sample then follows one.
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from torch import Tensor, nn

from qgpo.agents.core import checkpoint
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.core.process import usual_torch
from qgpo.agents.core.training import Training, choose_device, of_training
from qgpo.agents.general import stages
from qgpo.agents.general.config import Factories, Layout, TiltedConfig, is_simple, layout_of
from qgpo.agents.general.data import (
    ENERGY,
    Array,
    Data,
    Energy,
    Reader,
    Rows,
    check_finite_values,
    in_units,
)
from qgpo.diffusion import Diffusion, GuidanceGradient
from qgpo.envs.data.columns import without_gradient
from qgpo.fields import check_count, check_finite, check_seed
from qgpo.guidance import (
    GUIDANCES,
    GuidanceParts,
    Weighted,
    guidance_class,
    make_guidance,
)
from qgpo.networks import join
from qgpo.normalization import ObservationNormalizer
from qgpo.schedule import Schedule, make_schedule
from qgpo.solver import get_solver, time_grid

Callback = BaseCallback | Callable[[Any], bool | None]
"""one of Stable-Baselines3, or a function of the model; False stops"""

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

STAGES = ("data", "energy", "guidance")
LIKELY_CAUSES = "Lower its learning rate or beta, or check the energy for outliers"
TO_RESUME = "to continue later: save(path), then load(path).fit(data, energy, resume=True)"

NO_GRADIENT = (
    "guidance={!r} differentiates the energy, but torch has no gradient of it in its samples: "
    "compute it from them by torch, or give one value per sample, of which a network is learned"
)
ROWS_TO_DIFFERENTIATE = 8
"""samples at which it is tried whether an energy has a gradient"""
SKETCHED = 8
"""random sums by which energies are compared"""
SAME_ENERGY = 1e-4
"""largest difference of these sums, relative to the norm, that is laid to rounding"""

ConfigT = TypeVar("ConfigT", bound=TiltedConfig)


class TiltedDiffusion(ABC, Generic[ConfigT]):
    """A model of p(x) ~ q(x) exp(-beta E(x)), or of p(x|c) given conditions.

    Derived classes say how data are read, and of which networks the model consists.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[Any]]
    data_model_fields: ClassVar[tuple[str, ...]] = ("schedule", "prediction", "data_steps")
    """what models agree in that share q"""
    conditional: ClassVar[bool] = True
    """whether there may be conditions"""

    config: ConfigT
    schedule: Schedule
    networks: nn.ModuleDict = of_training("networks")
    """every network, average and normalizer, by name"""
    progress: dict[str, int] = of_training("progress")
    """steps done, per stage"""
    num_timesteps: int = of_training("num_timesteps")
    """gradient steps done, over all stages"""
    history: dict[str, list[dict[str, float]]] = of_training("history")
    """about fifty rows of metrics per stage"""
    logger = of_training("logger")
    """of SB3, for its callbacks"""

    @usual_torch()
    def __init__(
        self,
        config: ConfigT | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "auto",
    ) -> None:
        if not isinstance(config, self.config_class | None):
            raise TypeError(
                f"config is a {type(config).__name__}, expected {self.config_class.__name__} "
                "(there are no presets by name)"
            )
        self.config = self.config_class() if config is None else config
        self.seed = seed = check_seed(seed)
        self.device = choose_device(device)
        self.reader = Reader(self.name, self.device)
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
        """of data and energy"""
        self.energy_sketch: list[float] | None = None
        """of the energy, whose last digits depend on the number of threads"""
        self.data_fingerprint: str | None = None
        """of data and conditions"""
        self.layout: Layout | None = None
        self.steps: dict[str, int] = {}
        self._energy: Energy | None = None
        self.sampling_generator.manual_seed(self.seed)

    # Parts ----------------------------------------------------------------------------------

    @abstractmethod
    def _factories(self, layout: Layout) -> Factories:
        """The networks of this configuration."""

    def _build(self, layout: Layout, labelled: bool) -> None:
        """Networks and optimizers; `labelled`: the energy came as labels and may be learned."""
        c, add, add_trained = self.config, self.training.add, self.training.add_trained
        make = self._factories(layout)
        asked = {"data": c.data_steps, "guidance": c.guidance_steps}
        self.steps = {s: make.steps[s] if n is None else n for s, n in asked.items()}
        self.targets = c.targets
        if c.targets == "auto":
            self.targets = "posterior" if is_simple(layout) else "sample"
        with self.training.building(self._reset):
            self.layout, self.labelled = layout, labelled
            self.normalizer = add("normalizer", ObservationNormalizer(layout.dim))
            self.condition_normalizer = add(
                "condition_normalizer", ObservationNormalizer(layout.condition_dim)
            )
            data_model = Diffusion(make.network(), self.schedule, c.prediction)
            self.data_model = add_trained("data_model", data_model, "data")
            self.data_model_ema = self.training.add_copy("data_model_ema", data_model)
            self.clean_energy = add_trained("clean_energy", make.clean_energy(), "energy")
            self.energy_scale = add("energy_scale", ObservationNormalizer(max(1, layout.energies)))
            parts = GuidanceParts(
                dim=layout.dim,
                schedule=self.schedule,
                denoise=self.data_model_ema.denoise,
                make_energy_network=make.energy_network,
                make_diffusion=lambda: Diffusion(make.network(), self.schedule, c.prediction),
                energy=self._scaled_energy,
                preconditioned=c.preconditioned,
                targets=self.targets,
                components=make.components,
                options=c.guidance_options,
            )
            self.guidance_model = add_trained("guidance", make_guidance(c.guidance, parts))
            copied = make_guidance(c.guidance, parts).requires_grad_(False)
            copied.load_state_dict(self.guidance_model.state_dict())
            self.guidance_ema = add("guidance_ema", copied)

    def _scaled_energy(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """f_0 = -beta E of standardised samples and conditions, (B,) or (B, E)."""
        if self.labelled:
            learned: Tensor = self.clean_energy(join(z, condition))
            return -self.config.beta * self.values_of(in_units(self.energy_scale, learned))
        if self._energy is None:
            raise RuntimeError(
                f"guidance={self.config.guidance!r} differentiates the energy while sampling, and "
                "a file cannot hold a function: load(path, energy=...)"
            )
        values = self._call(self._energy, z, condition)
        if z.requires_grad and not values.requires_grad:
            raise ValueError(NO_GRADIENT.format(self.config.guidance))
        return -self.config.beta * values

    def _check_differentiable(self, z: Tensor, condition: Tensor | None) -> None:
        """Raise ValueError for an energy of which torch has no gradient in its samples."""
        z = z.clone().requires_grad_()
        try:
            total = self._scaled_energy(z, condition).sum()
            (gradient,) = torch.autograd.grad(total, z, allow_unused=True)
        except RuntimeError as error:
            raise ValueError(f"{NO_GRADIENT.format(self.config.guidance)} ({error})") from error
        if gradient is None:
            raise ValueError(NO_GRADIENT.format(self.config.guidance))

    def values_of(self, energies: Tensor) -> Tensor:
        """(..., max(1, E)) as (...) where there is a single energy."""
        one = self.layout is not None and not self.layout.energies
        return energies.squeeze(-1) if one else energies

    def _call(self, energy: Energy, z: Tensor, condition: Tensor | None) -> Tensor:
        """E in the data's units, with its shape checked."""
        given = () if condition is None else (in_units(self.condition_normalizer, condition),)
        values = energy(self.decode(z), *given)
        e = 0 if self.layout is None else self.layout.energies
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if found != ((len(z), e) if e else (len(z),)):
            wanted = f"({len(z)}, {e})" if e else f"({len(z)},): one value per sample"
            raise ValueError(f"energy returned {found}, expected a tensor of shape {wanted}")
        return values

    def encode(self, x: Tensor) -> Tensor:
        """Data to the standardised coordinates of the diffusion, (..., D)."""
        z: Tensor = self.normalizer(x)
        return z

    def decode(self, z: Tensor) -> Tensor:
        """Back to data."""
        return in_units(self.normalizer, z)

    @abstractmethod
    def _read(self, data: Array) -> Array:
        """Data whose type and shape are right. Raises ValueError for others."""

    @abstractmethod
    def _rows(self, data: Array) -> Rows:
        """Checked data in the coordinates of the diffusion; the first time, these are found."""

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
        """Learn q from data (N, ...) and the guidance towards low energy.

        `energy` is a differentiable callable, or one value per sample (N,). A callable gets torch
        tensors (B, ...) in the data's own units and returns (B,); with `condition` (N, C), which
        makes it a model of p(x|c), it is called with (B, ...) and (B, C). Several energies are
        (N, E) or (B, E). `callback` is one of SB3, or a function of the model that runs after
        every step; False stops. A bar shows the time left, by default where stderr is a
        terminal. With `resume`, training continues where the model (or its file) stands, as if
        never stopped. Raises ValueError for data or energies that do not fit, RuntimeError where
        a loss is not finite, and within another training of this model.
        """
        if energy is None:
            raise ValueError(
                f"energy=None, expected {ENERGY}; use fit_data(data) to train the model of q only"
            )
        with self.training.turn.training():
            with self._as_before_if_refused():
                prepared = self._prepare(data, energy, condition, resume)
            with self._running(progress_bar, callback):
                stages.fit_data(self, prepared)
                stages.fit_energy(self, prepared)
                stages.fit_guidance(self, prepared)
        return self

    def fit_data(
        self, data: Array, condition: Array | None = None, *, progress_bar: bool | None = None
    ) -> Self:
        """Stage 1 alone: q, for several guidances to share (`with_guidance`)."""
        with self.training.turn.training():
            with self._as_before_if_refused():
                prepared = self._prepare(data, None, condition, False)
            with self._running(progress_bar, None):
                stages.fit_data(self, prepared)
        return self

    def _running(
        self, progress_bar: bool | None, callback: Callback | None
    ) -> AbstractContextManager[None]:
        """Around the stages: the loop's settings; a callback that returns False ends the block."""
        training = self.training
        training.interrupted, training.progress_bar = False, progress_bar
        if isinstance(callback, BaseCallback):
            return training.running(callback, self, {})
        on_step = None if callback is None else lambda *_: callback(self) is not False
        return training.running(ConvertCallback(on_step), self, {})

    def get_env(self) -> None:
        """No environment: for SB3's callbacks, which ask."""
        return

    def with_guidance(
        self, config: ConfigT, energies: int | None = None, seed: int | None = None
    ) -> Self:
        """A new model that keeps this one's q; call `fit(..., resume=True)` on the same data.

        The two configurations may differ in everything but the data model. `energies` is the
        number of those to come, `seed` that of their training, by default this model's.
        """
        for name in self.data_model_fields:
            if getattr(config, name) != getattr(self.config, name):
                raise ValueError(
                    f"{name}={getattr(config, name)!r} belongs to the data model, expected "
                    f"{getattr(self.config, name)!r}"
                )
        if self.layout is None or self.progress["data"] < self.steps["data"]:
            raise RuntimeError("the data model is not trained yet: call fit_data(data)")
        seed = self.seed if seed is None else seed
        other = type(self)(config, seed=seed, device=self.device)
        layout = self.layout if energies is None else self.layout._replace(energies=energies)
        other._take_from(self)
        other._build(layout, self.labelled)
        other.data_fingerprint = self.data_fingerprint
        for name in ("normalizer", "condition_normalizer", "data_model", "data_model_ema"):
            other.networks[name].load_state_dict(self.networks[name].state_dict())
        other.progress["data"] = other.training.num_timesteps = other.steps["data"]
        return other

    @contextlib.contextmanager
    def _as_before_if_refused(self) -> Iterator[None]:
        """Around what may raise an error: the model and its training then stay what they were."""
        before = [(part, dict(vars(part))) for part in (self, self.training)]
        generators = (self.training.generator, self.sampling_generator)
        states = [generator.get_state() for generator in generators]
        try:
            yield
        except BaseException:
            for part, attributes in before:
                vars(part).clear()
                vars(part).update(attributes)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            raise

    @usual_torch()
    def _prepare(
        self,
        data: Array,
        energy: Energy | Array | None,
        condition: Array | None,
        resume: bool,
    ) -> Data:
        """Check and standardise; an energy of None is zero."""
        x = self._read(data)
        if condition is not None and not self.conditional:
            raise ValueError(f"{self.name} has no conditions: give one energy for each class")
        c = None if condition is None else self.reader.matrix("condition", condition)
        if c is not None and len(c) != len(x):
            raise ValueError(f"condition has {len(c)} rows, expected one per sample: {len(x)}")
        if not resume:
            self._reset()
        e = 0 if energy is None else self._count(energy, x, c)
        found = Layout(tuple(x.shape[1:]), 0 if c is None else c.shape[1], e)
        if self.layout is None:
            self._prepare_build({})
            self._build(found, not callable(energy))
        made: Any = self.layout
        self._check_layout(found._replace(energies=made.energies) if energy is None else found)
        content = hashlib.sha256(self._content(x))
        self._check_same_data(content, c)
        self.labelled = not callable(energy)
        self._energy = energy if callable(energy) else None
        if self.progress["data"] == 0 and c is not None:
            self.condition_normalizer.fit(c)
        z = self._rows(x)
        c = None if c is None else self.condition_normalizer(c)
        if callable(energy) and self.guidance_model.needs_energy:
            some = slice(ROWS_TO_DIFFERENTIATE)
            self._check_differentiable(z[some], None if c is None else c[some])
        labels = self._labels(energy, z, c)
        if energy is not None:
            stages.scaled(labels, self.config.beta)
            self._check_same_energy(content, labels)
        return Data(z, labels, c)

    def _check_layout(self, found: Layout) -> None:
        """Raise ValueError for data or energies of another kind than the networks are for."""
        made: Any = self.layout
        if found[:2] != made[:2]:
            raise ValueError(
                f"samples have shape {found.shape}, conditions {found.condition_dim} dimensions: "
                f"this model was made for {made.shape} and {made.condition_dim}"
            )
        if found.energies != made.energies:
            raise ValueError(
                f"the energy has {found.energies or 1} values per sample, this model was made for "
                f"{made.energies or 1}"
            )

    def _count(self, energy: Energy | Array, x: Array, c: Tensor | None) -> int:
        """How many energies there are, 0 for a single one. Raises ValueError for none."""
        if callable(energy):
            first = self._units(x[:1])
            with torch.no_grad():
                value = energy(first) if c is None else energy(first, c[:1])  # type: ignore[call-arg]
            is_one = isinstance(value, Tensor) and value.shape[:1] == (1,)
            shape = tuple(value.shape) if is_one else ()
        else:
            shape = tuple(np.shape(energy) if not isinstance(energy, Tensor) else energy.shape)
        several = shape[1] if len(shape) == 2 else 0
        kind = guidance_class(self.config.guidance)
        if not (kind.several if several else kind.single):
            kinds = sorted(n for n, k in GUIDANCES.items() if (k.several if several else k.single))
            what = f"{several} energies" if several else "one energy"
            raise ValueError(
                f"guidance={self.config.guidance!r} is not for {what}, expected one of {kinds}"
            )
        return several

    @abstractmethod
    def _units(self, x: Array) -> Tensor:
        """Data (B, ...) that was read, as an energy gets it."""

    def _labels(self, energy: Energy | Array | None, z: Rows, c: Tensor | None) -> Tensor:
        """E of every sample, (N,) or (N, E).

        Relative to their mean where float32 would lose digits.
        """
        if energy is None:
            return torch.zeros(len(z), device=self.device)
        if callable(energy):
            rows = torch.arange(len(z), device=self.device).split(stages.ROWS_PER_CALL)
            with torch.no_grad():
                parts = [self._call(energy, z[r], None if c is None else c[r]) for r in rows]
            energy = torch.cat(parts)
        return self.reader.labels(energy, len(z))

    def _check_same_data(self, content: Hash, c: Tensor | None) -> None:
        """Raise ValueError for other data or conditions than those that training began with.

        Files of earlier versions do not say which these were.
        """
        digest = _with(content, c)
        if any(self.progress.values()) and self.data_fingerprint not in (None, digest):
            of = "data" if c is None else "data or other conditions"
            raise ValueError(f"training began with other {of}: call fit without resume")
        self.data_fingerprint = digest

    def _check_same_energy(self, content: Hash, labels: Tensor) -> None:
        """Raise ValueError for another energy than that with which its stages began."""
        digest = _with(content, labels)
        sketch = _sketch(labels)
        started = any(self.progress[stage] for stage in ("energy", "guidance"))
        if started and self.fingerprint != digest and not _agree(self.energy_sketch, sketch):
            raise ValueError(
                "training began with other data or another energy: call fit without resume"
            )
        self.fingerprint, self.energy_sketch = digest, sketch

    def _content(self, x: Array) -> bytes:
        """What tells these data from others."""
        return (x.cpu().numpy() if isinstance(x, Tensor) else x).tobytes()

    # Files ----------------------------------------------------------------------------------

    def save(self, path: str | Path | BinaryIO) -> None:
        """Write everything that sampling and further training need, atomically.

        `path` may be a file that is open in binary mode.
        """
        if self.layout is None:
            raise RuntimeError("nothing to save: this model has not seen data yet")
        checkpoint.write_checkpoint(
            checkpoint.with_suffix(path),
            self.training,
            self.config,
            {"sampling": self.sampling_generator},
            agent=self.name,
            dims=(self.layout.dim, self.layout.condition_dim),
            shape=self.layout.shape,
            energies=self.layout.energies,
            **self._more(),
            labelled=self.labelled,
            history=self.history,
            fingerprint=self.fingerprint,
            data_fingerprint=self.data_fingerprint,
            energy_sketch=self.energy_sketch,
        )

    @classmethod
    def load(
        cls,
        path: str | Path | BinaryIO,
        energy: Energy | None = None,
        device: torch.device | str = "auto",
    ) -> Self:
        """Read a file. Raises CheckpointError when it is damaged or holds something else.

        `energy` is needed where a guidance differentiates a callable (`dps`, `qgf`, `analytic`).
        """
        device = choose_device(device)  # not the file's fault
        source = checkpoint.with_suffix(path)
        read = checkpoint.read_checkpoint(source)
        header = read.header
        if header["agent"] != cls.name:
            name = checkpoint.named(source)
            raise CheckpointError(f"{name} holds {header['agent']!r}, not {cls.name!r}")
        with checkpoint.using(source, read):
            config = checkpoint.config_from_json(cls.config_class, header["config"])
            model = cls(config, seed=header["seed"], device=device)
            labelled, fingerprint = header["labelled"], header["fingerprint"]
            of_data = header.get("data_fingerprint")  # later than the other one
            sketch = header.get("energy_sketch")  # later still
            if type(labelled) is not bool or not isinstance(fingerprint, str | None):
                raise ValueError(f"{labelled=} or {fingerprint=} is none")
            if not isinstance(of_data, str | None):
                raise ValueError(f"data_fingerprint={of_data!r:.200} is none")
            if sketch is not None:
                sketch = [float(number) for number in sketch]
            layout = layout_of(header)
            model._prepare_build(header)
            model._build(layout, labelled)
            checkpoint.restore(model.training, read, {"sampling": model.sampling_generator})
            model.training.history = _history(header["history"])
            model.fingerprint, model.data_fingerprint = fingerprint, of_data
            model.energy_sketch = sketch
        model._energy = energy
        return model

    def _more(self) -> dict[str, Any]:
        """What a file says beside: on what the networks depend that no configuration tells."""
        return {}

    def _prepare_build(self, header: dict[str, Any]) -> None:
        """The same from a file's header, or found anew where it is empty."""

    def _take_from(self, other: Self) -> None:
        """The same from a model whose q this one shares."""

    # Sampling -------------------------------------------------------------------------------

    @usual_torch()
    @torch.no_grad()
    def sample(
        self,
        n: int | None = None,
        condition: Array | None = None,
        *,
        target: int | Array | None = None,
        guidance_scale: float = 1.0,
        solver: str | None = None,
        steps: int | None = None,
        spacing: str | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples (n, ...) of q exp(-beta E), one per condition (n, C) in conditional models.

        Of several energies, sample i follows number `target[i]`, or all the same. The guidance
        scale w multiplies grad f: 0 samples q and takes no gradient, 1 is exact,
        other values are a heuristic. Without a generator, the model's own (seeded) one is used.
        Raises RuntimeError before the training, ValueError for wrong arguments and where samples
        are not finite.
        """
        n = None if n is None else check_count("n", n, low=0)
        scale = check_finite("guidance_scale", guidance_scale)
        shape, c = self._condition(n, condition)
        generator = self.sampling_generator if generator is None else generator
        noise = torch.randn(shape, generator=generator, device=self.device)
        model, guidance = self.data_model_ema, self.guidance_ema
        untrained = guidance.trainable and self.progress["guidance"] == 0
        guide = self._guide(guidance.gradient, target, shape[0], scale)
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
            guidance=guide,
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

    def _guide(
        self, gradient: GuidanceGradient, target: int | Array | None, n: int, scale: float
    ) -> GuidanceGradient:
        """The gradient of one energy per sample. Raises ValueError for other targets."""
        e = 0 if self.layout is None else self.layout.energies
        if not e or (target is None and scale == 0.0):
            if target is not None:
                raise ValueError(f"target={target!r}: this model has a single energy")
            return gradient
        expected = f"a number of 0 to {e - 1}, or one for each of {n} samples"
        try:
            given = np.asarray(-1 if target is None else without_gradient(target))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"target={target!r:.200}, expected {expected} ({error})") from error
        whole = given.dtype.kind in "iu" and given.shape in ((), (n,))
        if not whole or (n and not 0 <= given.min() <= given.max() < e):
            raise ValueError(f"target={target!r:.200}, expected {expected}")
        chosen = torch.as_tensor(given.astype(np.int64), device=self.device)
        return self.guidance_ema.towards(chosen.expand(n))

    @usual_torch()
    def guidance(self, x_t: Tensor, t: Tensor, condition: Array | None = None) -> Tensor:
        """Gradient of f_t at standardised noisy samples x_t (B, D), t (B,), as the sampler uses it.

        x_t = alpha_t encode(x) + sigma_t noise.
        """
        _, c = self._condition(len(x_t), condition)
        return self.guidance_ema.gradient(x_t, t, c)

    @usual_torch()
    def f(self, x_t: Tensor, t: Tensor, condition: Array | None = None) -> Tensor:
        """The intermediate energy at standardised noisy samples, up to a constant, (B,), (B, E)."""
        _, c = self._condition(len(x_t), condition)
        return self.guidance_ema.f(x_t, t, c).detach()

    def _condition(
        self, n: int | None, condition: Array | None
    ) -> tuple[tuple[int, int], Tensor | None]:
        """Shape (n, D) of the samples, and their standardised conditions (n, C)."""
        if self.layout is None:
            raise RuntimeError("this model has not been trained: call fit(data, energy)")
        dim, condition_dim = self.layout.dim, self.layout.condition_dim
        if condition is None:
            if condition_dim or n is None:
                raise ValueError(f"n={n}, condition=None for {condition_dim} condition dimensions")
            return (n, dim), None
        c = self.reader.tensor("condition", condition, f"an array of shape (n, {condition_dim})")
        if c.dim() != 2 or c.shape[1] != condition_dim or n not in (None, len(c)):
            raise ValueError(
                f"condition has shape {tuple(c.shape)}, expected ({n or 'n'}, {condition_dim})"
            )
        check_finite_values("condition", c)
        return (len(c), dim), self.condition_normalizer(c)


def _with(content: Hash, more: Tensor | None) -> str:
    """The digest of data and of what belongs to them; the hash of the data stays as it is."""
    digest = content.copy()
    if more is not None:
        digest.update(more.cpu().numpy().tobytes())
    return digest.hexdigest()


def _sketch(labels: Tensor) -> list[float]:
    """Sums of the energies (N, ...) with random signs, and last their norm, less their mean.

    Two sketches differ as the energies do: a sum of differences with random signs is about as
    large as the norm of the differences.
    """
    energies = labels.detach().reshape(-1).cpu().double()
    energies = energies - energies.mean()
    generator = torch.Generator().manual_seed(0)
    sums = []
    for _ in range(SKETCHED):
        positive = torch.randint(2, energies.shape, generator=generator).bool()
        sums.append(float(energies[positive].sum() - energies[~positive].sum()))
    return [*sums, float(energies.norm())]


def _agree(before: list[float] | None, now: list[float]) -> bool:
    """Whether two sketches are of the same energies but for the last digits of float32.

    An energy that is computed anew on another number of threads differs there.
    """
    if before is None or len(before) != len(now):
        return False
    return max(abs(a - b) for a, b in zip(before, now, strict=True)) <= SAME_ENERGY * now[-1]


def _history(written: Any) -> dict[str, list[dict[str, float]]]:
    """Rows of metrics per stage. Raises LookupError or TypeError for others."""
    return {s: [{k: float(v) for k, v in row.items()} for row in written[s]] for s in STAGES}
