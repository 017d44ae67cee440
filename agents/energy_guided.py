"""EnergyGuidedDiffusion: sample p(x) ~ q(x) exp(-beta E(x)) for any data of q and any energy.

1. data       a diffusion model of q, by denoising
2. energy     a smooth network of E, only where a guidance differentiates E and E came as labels
3. guidance   the intermediate energy f_t, by the method of that name (`qgpo.guidance`)
sample        solve the reverse process with the score of q_t plus the gradient of w f_t

Everything runs in standardised coordinates z = (x - mean) / std, and E is lower-is-better.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor
from tqdm import tqdm

from qgpo.agents.core.batches import average, choose_device, half_cosine
from qgpo.agents.core.checkpoint import (
    Checkpoint,
    CheckpointError,
    pack_optimizer,
    read_checkpoint,
    unpack_optimizer,
    write_checkpoint,
)
from qgpo.agents.core.files import config_from_json, with_suffix
from qgpo.agents.energy_guided_config import EnergyGuidedConfig
from qgpo.agents.energy_guided_model import STAGES, Array, Energy, GuidedModel
from qgpo.diffusion import Metrics
from qgpo.guidance import Weighted, weighted_loss
from qgpo.networks import join

Callback = Callable[["EnergyGuidedDiffusion"], bool | None]


class EnergyGuidedDiffusion(GuidedModel):
    """A model of p(x) ~ q(x) exp(-beta E(x)), or of p(x|c) given conditions.

        model = EnergyGuidedDiffusion(EnergyGuidedConfig(beta=3.0), seed=0)
        samples = model.fit(data, energy).sample(1000)

    `energy` is a callable on samples or an array of one value per sample, lower is better.
    """

    name: ClassVar[str] = "EnergyGuidedDiffusion"

    _callback: Callback | None = None
    _progress_bar = False
    _stopped = False

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
        after every step; False stops. With `resume`, training goes on where the model (or its
        file) stands, as if never stopped. Raises ValueError for data or energies that do not fit,
        RuntimeError where a loss is not finite.
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
            average(self.data_model, self.data_model_ema, self.config.ema_decay, step)
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
            output = self.clean_energy(join(z[rows], None if c is None else c[rows]))
            loss = torch.mean((output.squeeze(-1) - standardised[rows]) ** 2)
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
            average(self.guidance_model, self.guidance_ema, self.config.ema_decay, step)
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
                    row = {name: float(value.detach()) for name, value in metrics.items()}
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
        return half_cosine(base, step, total)

    def _step(self, stage: str, loss: Tensor, rate: float) -> None:
        optimizer = self.optimizers[stage]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

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
        write_checkpoint(with_suffix(path), Checkpoint(header, modules, optimizers, tables))

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
        path = with_suffix(path)
        checkpoint = read_checkpoint(path)
        header = checkpoint.header
        if header.get("agent") != cls.name:
            raise CheckpointError(f"{str(path)!r} holds {header.get('agent')!r}, not {cls.name!r}")
        try:
            config = config_from_json(EnergyGuidedConfig, header["config"])
            model = cls(config, seed=header["seed"], device=device)
            dim, condition_dim = header["dims"]
            model._build(dim, condition_dim, header["labelled"])
            model._restore(checkpoint)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise CheckpointError(f"checkpoint {str(path)!r} cannot be used: {reason}") from error
        model._energy = energy
        return model

    def _restore(self, checkpoint: Checkpoint) -> None:
        header, generators = checkpoint.header, checkpoint.tables
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
