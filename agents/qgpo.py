"""Q-guided policy optimisation (Lu et al. 2023, arXiv 2304.12824).

1. behavior   a diffusion model of mu(a|s), by denoising
2. support    M actions from it for every observation
3. critic     in-support softmax Q-learning over those actions (`critic` names other ones)
4. dynamics   a model of the environment, for a rehearsal of the trained policy (optional)
5. energy     f_t by contrastive energy prediction on the same actions
act           solve the reverse ODE with the score of mu plus the gradient of w f_t,
              so that actions follow mu(a|s) exp(beta Q(s, a)) at w = 1

Stages 1 to 3 are parts of the family (`guided/`). `guidance` names another answer than contrastive
energy prediction to what f_t is (`qgpo.guidance`).
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from stable_baselines3.common.type_aliases import MaybeCallback
from torch import Tensor

from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.config import ModelSteps, Steps
from qgpo.agents.core.training import ONLINE, NonFiniteError
from qgpo.agents.guided.config import LAPTOP, LAPTOP_SUPPORT, GuidedPolicyConfig, TrustPower
from qgpo.agents.guided.exactness import exactness
from qgpo.agents.guided.policy import GuidedPolicy, InverseTemperature
from qgpo.agents.guided.rehearsal import FACTORS, Rehearsal, Rehearsing
from qgpo.agents.guided.verdict import Verdict
from qgpo.density import Trust
from qgpo.diffusion import Diffusion, GuidanceGradient, Metrics, is_known
from qgpo.dynamics import DynamicsEnsemble
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.store.loading import load_dataset
from qgpo.guidance import (
    GUIDANCES,
    EnergyGuide,
    GuidanceParts,
    Samples,
    Weighted,
    check_guidance,
    guidance_class,
    make_guidance,
)
from qgpo.networks import EnergyNetwork

STATES_TO_PREPARE = 512
"""states whose support actions a guidance sees that tabulates posterior variances"""


@dataclass(frozen=True)
class QGPOConfig(GuidedPolicyConfig):
    """Hyperparameters of QGPO; the defaults are the authors' (the `paper` preset)."""

    guidance: str = "cep"
    """kind of guidance: cep (the paper's, exact), mse, emse, dps, qgf, analytic or aepo"""
    guidance_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    """options of the guidance, by name, for example order 2 covariance moment (analytic and aepo);
    the file of each guidance in qgpo/guidance lists its options"""
    trust_power: TrustPower = 0.0
    """lower the guidance scale in states that are farther from the nearest state in the data than
    the median, by the factor (median / distance)^trust_power: larger values lower it more, 0 uses
    one scale in all states"""
    energy_hidden: tuple[int, ...] = (256, 256, 256, 256)
    """hidden layer sizes of the energy network"""
    energy_time_scale: float = 30.0
    """frequency scale of the energy network's time features: larger values resolve finer
    differences in time"""
    energy_preconditioned: bool = False
    """multiply the output of the energy network by alpha_t, so that its error is not amplified near
    t = 1"""
    energy_steps: Steps = 1_000_000
    """gradient steps of the energy stage"""
    energy_batch_size: int = 256
    """states per energy step, each with all its support actions"""
    energy_learning_rate: float = 3e-4
    """Adam step size of the energy stage"""
    dynamics_steps: ModelSteps = 0
    """gradient steps of a model of the environment, in which the trained policy imagines episodes.
    Guidance that clearly returns less than imitation there is weakened, or turned off, and
    `tune_guidance` plays in it. Fewer than 10,000 do neither; 0: no model"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_guidance(self.guidance, self.guidance_options)
        weighted = {name for name, kind in GUIDANCES.items() if issubclass(kind, Weighted)}
        choices = sorted(n for n, kind in GUIDANCES.items() if kind.single and n not in weighted)
        if self.guidance not in choices:
            more = "; use QIPO for it" if self.guidance in weighted else ""
            raise ValueError(f"guidance={self.guidance!r}, expected one of {choices}{more}")


LAPTOP_ENERGY: dict[str, Any] = {
    "energy_hidden": (256, 256),
    "energy_time_scale": 1.0,
    "energy_preconditioned": True,
    "energy_steps": 3_000,
    "energy_batch_size": 128,
    "energy_learning_rate": 1e-3,
}
LAPTOP_TRUST: dict[str, Any] = {
    "beta": 1.0,
    "q_unit": "spread",
    "tilt_limit": 3.0,
    "trust_power": 4.0,
}
"""QGPO's own: beta is such that a typical state's actions differ by one in beta Q"""
PRESETS: dict[str, QGPOConfig] = {
    "paper": QGPOConfig(),
    "laptop": QGPOConfig(**{**LAPTOP, **LAPTOP_ENERGY, **LAPTOP_TRUST}, dynamics_steps=16_000),
    "laptop-support": QGPOConfig(**{**LAPTOP_SUPPORT, **LAPTOP_ENERGY, **LAPTOP_TRUST}),
}


class QGPO(GuidedPolicy[QGPOConfig]):
    """Diffusion policy with exact energy guidance, learned from a dataset alone.

        agent = QGPO("laptop", seed=0).learn(load_dataset("qgpo/halfcheetah/mixed-v0"))
        action, _ = agent.predict(observation)

    Fields of the configuration may be given by name (`QGPO("laptop", guidance="mse")`).
    `guidance_scale` may be changed at any time, and `solver` and `solver_steps` after the agent
    has seen data.

    `env` is an environment for callbacks (learning does not use it). `device` is a torch device or
    auto. `verbose=1` prints metrics and a line per stage. `tensorboard_log` is a folder for
    TensorBoard events.
    """

    name: ClassVar[str] = "QGPO"
    config_class: ClassVar[type[QGPOConfig]] = QGPOConfig
    presets: ClassVar[dict[str, QGPOConfig]] = PRESETS
    stages: ClassVar[tuple[str, ...]] = (
        "whitening",
        "behavior",
        "support",
        "critic",
        "dynamics",
        "energy",
    )
    rehearsing: Rehearsing | None = None
    """the model of the environment and what it said, where the configuration asks for it"""
    one_step: ClassVar[Any]
    """the agent that `distill` makes; it is of this kind, and names itself here"""

    def _build_last(self) -> None:
        c, behavior = self.config, self.behavior
        flat = c.critic_activation == "relu" and not c.critic_layer_norm
        if flat and c.guidance_options.get("order") == 2:
            warnings.warn(
                "critic_activation='relu' without critic_layer_norm: such a critic has no "
                "curvature, so that order 2 acts as order 1; choose 'silu' or 'tanh'",
                stacklevel=2,
            )
        self.temperature = InverseTemperature(c.beta)
        dims = behavior.action_dim, behavior.observation_dim
        network = partial(EnergyNetwork, *dims, c.energy_hidden, c.energy_time_scale)
        parts = GuidanceParts(
            dim=behavior.action_dim,
            schedule=behavior.average.schedule,
            denoise=behavior.average.denoise,
            make_energy_network=network,
            make_diffusion=behavior.make_diffusion,
            energy=self._scaled_energy,
            nearest=self._inside,
            preconditioned=c.energy_preconditioned,
            options=c.guidance_options,
        )
        self.energy = self.training.add_trained("energy", make_guidance(c.guidance, parts))
        if self.energy.needs_energy:
            self.training.add("temperature", self.temperature)
        if c.trust_power:
            trust = Trust(behavior.observation_dim, c.trust_power)
            self.trust = self.training.add("trust", trust)
        if c.dynamics_steps:
            dims = behavior.observation_dim, behavior.action_dim
            self.rehearsing = Rehearsing(*dims, c.dynamics_steps, self.training)

    def _scaled_energy(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """f_0 = beta Q(s, a) at actions inside the bounds, (B, A), (B, S) to (B,)."""
        assert condition is not None
        q: Tensor = self.critic.target(condition, z)
        return self.temperature.beta * q

    def _inside(self, z: Tensor, condition: Tensor | None) -> Tensor:
        """The nearest actions inside the bounds, in the behavior's coordinates, (B, A)."""
        assert condition is not None
        return self.behavior.inside(condition, z)

    @property
    def last_timesteps(self) -> int:
        """Gradient steps of the energy stage; a guidance without a network has none."""
        c = self.config
        return c.energy_steps if guidance_class(c.guidance).trainable else 0

    @property
    def total_timesteps(self) -> int:
        """Gradient steps of a whole training."""
        return super().total_timesteps + self.config.dynamics_steps

    @property
    def stage_steps(self) -> dict[str, int]:
        """Gradient steps of each stage; drawing the support has none."""
        found = {**super().stage_steps, "dynamics": self.config.dynamics_steps}
        return {stage: found[stage] for stage in self.stages if stage in found}

    @property
    def is_trained(self) -> bool:
        """Whether the last stage has ended, and the rehearsal."""
        return self.stages_are_done and self._has_rehearsed

    @property
    def _has_rehearsed(self) -> bool:
        """Whether nothing is left to rehearse."""
        return self.rehearsing is None or self.rehearsing.is_done

    # Training: the paper's order ----------------------------------------------------------

    def _train_last(self, dataset: OfflineDataset) -> None:
        self.train_dynamics(dataset)
        self.train_energy(dataset)

    def _conclude(self, dataset: OfflineDataset) -> None:
        rehearsing = self.rehearsing
        if rehearsing is not None and not (rehearsing.is_done or rehearsing.is_learned):
            self.train_dynamics(dataset)  # where somebody called the stages and left it out
        self.rehearse(dataset)

    def train_dynamics(self, dataset: OfflineDataset) -> None:
        """Stage 4: the model of the environment, where `dynamics_steps` asks for one."""
        data = self.prepare(dataset)  # makes the parts
        if self.rehearsing is not None:
            self.rehearsing.train(dataset, data)

    def rehearse(self, dataset: OfflineDataset) -> None:
        """After all stages: imagine episodes, and weaken guidance that harms.

        Raises RuntimeError before the last stage has ended, and without a model.
        """
        data = self.prepare(dataset)
        if self.rehearsing is None:
            return
        if not self._policy_is_learned:
            raise RuntimeError("no policy to rehearse yet: call train_energy(dataset) first")
        if self.rehearsing.is_done:
            return
        if not self.rehearsing.is_learned:
            raise RuntimeError("no model to rehearse in yet: call train_dynamics(dataset) first")
        if not self.critic.ranks:  # it imitates at every scale
            self.rehearsing.caution.set(None)
            return
        try:
            self.rehearsing.rehearse(self._acting_at, dataset, data, self.action_scale)
        except NonFiniteError as error:
            warnings.warn(f"{error}: guidance is not weakened", stacklevel=2)
            self.rehearsing.caution.give_up()

    @property
    def _policy_is_learned(self) -> bool:
        """Whether the stages of the policy have ended."""
        return self.stages_are_done

    def _forget_data(self) -> None:
        super()._forget_data()
        if self.rehearsing is not None:
            self.rehearsing.forget_data()

    def _acting_at(self, scale: float) -> Self:
        """A copy that acts at that scale; it shares everything else."""
        actor = copy.copy(self)
        actor._scale = scale
        return actor

    def train_energy(self, dataset: OfflineDataset) -> None:
        """Stage 5: f_t over each state's support actions, by contrast or as `guidance` says."""
        data = self._with_support(dataset)
        c, energy, training = self.config, self.energy, self.training
        q = self.critic.table_of_q(data)
        self.temperature.beta.copy_(self.inverse_temperature(q))
        if c.trust_power:
            self.behavior.fit_trust(self.trust, data)
        energies = self.critic.scaled_energies(q, self.temperature.beta)
        self._prepare_guidance(data, energies)

        def groups() -> Samples:
            rows = take(data.state_index, training.draw(len(data), c.energy_batch_size))
            return self._groups(data, rows, take(energies, rows))

        generator = training.generator
        if energy.trainable:
            rate, decays = c.energy_learning_rate, c.learning_rate_decay
            training.minimize(
                "energy", c.energy_steps, lambda _: energy.loss(groups(), generator), rate, decays
            )
        else:
            training.run_stage(
                "energy", 1, lambda _: energy.metrics(groups(), generator), gradient_steps=False
            )

    def _groups(self, data: Batches, rows: Tensor, energies: Tensor) -> Samples:
        """Support actions of those states (B,) with their energies (B, M)."""
        support = take(self.tables["support"], rows)
        return Samples(support, energies, self.behavior.condition(data, rows))

    # The rehearsal -------------------------------------------------------------------------

    @property
    def rehearsal(self) -> Rehearsal | None:
        """What the trained policy imagined; None where there was no rehearsal."""
        return None if self.rehearsing is None else self.rehearsing.caution.found

    @property
    def own_model(self) -> DynamicsEnsemble | None:
        """The model of the environment from its training, if it has learned enough to judge."""
        if self.rehearsing is None or self.acts_only:
            return None
        return self.rehearsing.model_to_ask

    @property
    def caution(self) -> float:
        """The factor of all guidance that follows from the rehearsal: 1 without one.

        Where guidance is off, an agent that learns online has the smallest other factor: the
        environment judges from there on.
        """
        if self.rehearsing is None:
            return 1.0
        factor = float(self.rehearsing.caution.factor)
        return FACTORS[1] if factor == 0.0 and ONLINE in self.progress else factor

    @property
    def verdict(self) -> Verdict | None:
        """Whether the data say that guidance can be trusted; None where the critic cannot know."""
        verdict = super().verdict
        return None if verdict is None else replace(verdict, rehearsal=self.rehearsal)

    @property
    def guidance_is_off(self) -> bool:
        """Whether every guidance scale imitates: by the critic, or by the rehearsal."""
        return super().guidance_is_off or self.caution == 0.0

    # Online -------------------------------------------------------------------------------

    def _extend_online(self, data: Batches) -> None:
        """Also bring beta to today's unit of Q, and show the trust the states that were collected.

        The guidance takes its constants again: no file has them.
        """
        super()._extend_online(data)
        self.temperature.beta.copy_(self.inverse_temperature(self._some_q(data)))
        if self.config.trust_power:
            self.behavior.fit_trust(self.trust, data)
        self._prepare_guidance(data, None)

    def _follow_last(self, data: Batches, factor: float) -> Metrics:
        """A step of f_t, on energies of today's Q."""
        if not self.energy.trainable:
            return {}
        c, training = self.config, self.training
        rows = take(data.state_index, data.draw(training, c.energy_batch_size))
        groups = self._groups(data, rows, self._energies_at(data, rows))
        loss = self.energy.loss(groups, training.generator)
        return training.descend("energy", *loss, factor * c.energy_learning_rate)

    def _energies_at(self, data: Batches, rows: Tensor) -> Tensor:
        """Energies of the support actions of those states by today's Q, (B,) to (B, M)."""
        q = self.critic.q_of_support(data, rows)
        return self.critic.tilted(q, self.temperature.beta)

    def inverse_temperature(self, q: Tensor) -> Tensor:
        """The factor on Q; `tilt_limit` lowers it here where it is the same in all states."""
        c = self.config
        beta = c.beta / self.critic.scale(q)
        if self.energy.needs_energy and c.tilt_limit is not None:
            beta = torch.minimum(beta, c.tilt_limit / q.std(dim=-1).mean().clamp(min=1e-9))
        return beta

    def _prepare_guidance(self, data: Batches, energies: Tensor | None) -> None:
        """Constants of the guidance, from the whole table of energies.

        Without a table they are from a few random states, always the same; and so are those of a
        guidance that tabulates posterior variances.
        """
        generator = torch.Generator(self.device).manual_seed(self.training.seed)
        if energies is not None and not self.energy.needs_energy:
            everything = Samples(self.tables["support"].flatten(0, 1), energies.flatten())
            self.energy.prepare(everything, generator)
            return
        n = min(STATES_TO_PREPARE, len(data.states))
        rows = torch.randperm(len(data.states), generator=generator, device=self.device)[:n]
        support = take(self.tables["support"], rows)
        condition = self.behavior.condition(data, rows)[:, None]
        expanded = condition.expand(-1, support.shape[1], -1).flatten(0, 1)
        of_some = self._energies_at(data, rows) if energies is None else take(energies, rows)
        some = Samples(support.flatten(0, 1), of_some.flatten(), expanded)
        self.energy.prepare(some, generator)

    exactness = exactness

    # One step -----------------------------------------------------------------------------

    def distill(
        self,
        dataset: OfflineDataset | str,
        callback: MaybeCallback = None,
        log_interval: int = 1000,
        progress_bar: bool = False,
        steps: int | None = None,
    ) -> QGPO:
        """A OneStepPolicy that acts like this trained agent at today's guidance scale.

        It learns from this agent's actions in states of the dataset, in `steps` gradient steps
        (default: its configuration's); `callback`, `log_interval` and `progress_bar` are those of
        `learn`. This agent stays as it is. Raises RuntimeError before training has ended,
        ValueError for other data than those of the training.
        """
        if not isinstance(dataset, OfflineDataset) and self.is_trained:
            dataset = load_dataset(dataset)
        acting = {name: getattr(self, name) for name in ("guidance_scale",)}
        if self.networks:
            acting |= {"solver": self.solver, "solver_steps": self.solver_steps}
        config = self.one_step.config_of(self.config, acting, steps)
        student = self.one_step(config, seed=self.training.seed, device=self.device)
        student.verbose, student.tensorboard_log = self.verbose, self.tensorboard_log
        learned: QGPO = student.adopt(self, dataset).learn(
            dataset,
            callback,
            log_interval=log_interval,
            reset_num_timesteps=False,
            progress_bar=progress_bar,
        )
        return learned

    # Acting -------------------------------------------------------------------------------

    def _guided(
        self, scale: float | Tensor, condition: Tensor
    ) -> tuple[Diffusion, GuidanceGradient | None]:
        """The behavior model, and the gradient of f_t times the trust in each state."""
        caution = self.caution
        if not self.critic.ranks or caution == 0.0:
            return self.behavior.average, None
        weakened = self.config.trust_power and not is_known(scale, 0.0)
        factor = self.trust(condition) if weakened else None
        if caution < 1.0:
            factor = caution * (condition.new_ones(len(condition)) if factor is None else factor)
        return self.behavior.average, EnergyGuide(self.energy, factor)
