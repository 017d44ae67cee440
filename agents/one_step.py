"""A policy of one step, distilled from the guided sampler of QGPO or AEPO.

1-6. the stages of QGPO, the teacher (`adopt` and `QGPO.distill` take a trained one)
7. answers       the teacher's actions in states of the dataset, each for noise that is kept
8. distillation  two networks regress on them: (noise, state) to the sampled action of that noise,
                 state to the deterministic action
act              one evaluation of one network

The teacher's solver is a function from noise to an action, so that a sample of the student is,
but for its error, the teacher's for the same noise. Distilling a sampler by regression on pairs of
noise and sample is Luhman & Luhman's (2021, arXiv 2101.02388); FQL (arXiv 2502.02538) does so with
a flow of the behavior, here the teacher is guided. Its guidance scale is part of the result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, nn

from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.batches import Batches, take
from qgpo.agents.core.config import Steps
from qgpo.agents.core.process import usual_torch
from qgpo.agents.core.registers import GeneratorState, Kinds, Table
from qgpo.agents.core.training import set_generator, set_state
from qgpo.agents.guided import adoption, support
from qgpo.agents.guided.support import STATE
from qgpo.agents.qgpo import PRESETS, QGPO, QGPOConfig
from qgpo.diffusion import Metrics
from qgpo.envs.data.dataset import OfflineDataset
from qgpo.fields import Range
from qgpo.flow import distillation_loss
from qgpo.networks import FlowNetwork, gelu_mlp

NOISES, SAMPLES, CENTERS = "noises", "samples", "centers"
"""tables of the answers: noise and sampled actions (R, J, A), deterministic actions (R, A)"""
HOW_IT_ACTS = ("guidance_scale", "guidance_bound", "deterministic_action", "solver", "solver_steps")
"""fields in which student and teacher may differ: no parameter of the teacher depends on them"""


@dataclass(frozen=True)
class OneStepConfig(QGPOConfig):
    """Hyperparameters of OneStepPolicy: the teacher's, which are QGPO's, and the student's."""

    student_hidden: tuple[int, ...] = (256, 256, 256)
    """layers of each of the two networks"""
    answer_states: Annotated[int, Range(1, 10**9)] = 100_000
    """states of the dataset, drawn at random, in which the teacher is asked; at most all"""
    answers: Annotated[int, Range(1, 10_000)] = 4
    """sampled actions of the teacher in each of these states, for noise of their own"""
    distillation_steps: Steps = 100_000
    """gradient steps of the distillation stage"""
    distillation_batch_size: int = 256
    """states per distillation step"""
    distillation_learning_rate: float = 1e-3
    """Adam step size of the distillation stage, which falls to zero along a half cosine"""


LAPTOP_STUDENT: dict[str, Any] = {
    "student_hidden": (128, 128, 128, 128),
    "answers": 2,
    "distillation_steps": 12_000,
}
ONE_STEP_PRESETS: dict[str, OneStepConfig] = {
    name: OneStepConfig(**{**vars(config), **({} if name == "paper" else LAPTOP_STUDENT)})
    for name, config in PRESETS.items()
}


class Student(nn.Module):
    """One network for samples, (noise, state) to action, and one for the deterministic action."""

    def __init__(self, action_dim: int, observation_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.samples = FlowNetwork(action_dim, observation_dim, hidden, timed=False)
        self.center = gelu_mlp([observation_dim, *hidden, action_dim])


class OneStepPolicy(QGPO):
    """One evaluation from noise and state to the action of a guided teacher.

        agent = QGPO("laptop", seed=0).learn(dataset)
        fast = agent.distill(dataset)

    `OneStepPolicy("laptop", seed=0).learn(dataset)` trains the teacher, too, and gives the same
    parameters. The file holds both; `teacher` acts by the teacher. The guidance scale is that of
    the distillation: for another one, distil again.
    """

    name: ClassVar[str] = "OneStepPolicy"
    config_class: ClassVar[type[QGPOConfig]] = OneStepConfig
    presets: ClassVar[dict[str, QGPOConfig]] = {**ONE_STEP_PRESETS}
    stages: ClassVar[tuple[str, ...]] = (*QGPO.stages, "answers", "distillation")

    fixed_scale: ClassVar[bool] = True
    learns_online: ClassVar[bool] = False
    _acts_as_teacher = False

    def _build_last(self) -> None:
        super()._build_last()
        dims = self.behavior.action_dim, self.behavior.observation_dim
        student = Student(*dims, self.one_step_config.student_hidden)
        self.student_networks = self.training.add_trained("student", student, "distillation")

    @classmethod
    def config_of(
        cls, teacher: QGPOConfig, acting: Mapping[str, Any], steps: int | None = None
    ) -> OneStepConfig:
        """The configuration of a student of that teacher, which acts as `acting` says."""
        student = {**LAPTOP_STUDENT, **({} if steps is None else {"distillation_steps": steps})}
        return OneStepConfig(**{**vars(teacher), **acting, **student})

    @property
    def one_step_config(self) -> OneStepConfig:
        """The configuration, of which the last fields are the student's."""
        assert isinstance(self.config, OneStepConfig)
        return self.config

    # Steps and stages -----------------------------------------------------------------------

    @property
    def energy_timesteps(self) -> int:
        """Gradient steps of the teacher's last stage."""
        return super().last_timesteps

    @property
    def last_timesteps(self) -> int:
        """Gradient steps of the distillation stage."""
        return self.one_step_config.distillation_steps

    @property
    def total_timesteps(self) -> int:
        """Gradient steps of a whole training, the teacher's included."""
        return self.teacher_timesteps + self.last_timesteps

    @property
    def teacher_timesteps(self) -> int:
        """Gradient steps of the teacher's training."""
        return self.shared_timesteps + self.config.dynamics_steps + self.energy_timesteps

    @property
    def stage_steps(self) -> dict[str, int]:
        """Gradient steps of each stage; asking the teacher has none."""
        return {**super().stage_steps, "energy": self.energy_timesteps, "answers": 0}

    @property
    def _policy_is_learned(self) -> bool:
        """Whether the teacher's last stage has ended."""
        done: int = self.progress["energy"]
        return done >= max(1, self.energy_timesteps)

    def _acting_at(self, scale: float) -> Self:
        actor = super()._acting_at(scale)
        actor._acts_as_teacher = True
        return actor

    @property
    def teacher_is_trained(self) -> bool:
        """Whether the teacher's last stage has ended, and its rehearsal."""
        return self._policy_is_learned and self._has_rehearsed

    # Training -------------------------------------------------------------------------------

    def _train(self, dataset: OfflineDataset) -> None:
        if not self.teacher_is_trained:
            super()._train(dataset)
        if not self.is_trained:
            self.ask_teacher(dataset)
            self.train_student(dataset)
            self._warn_of_guidance()
        adoption.drop_tables(self.training)

    def ask_teacher(self, dataset: OfflineDataset) -> None:
        """Stage 7: the teacher's actions in states of the dataset. Asks each state once."""
        data, c = self.prepare(dataset), self.one_step_config
        if not self.teacher_is_trained:
            raise RuntimeError("the teacher is not trained to the end: call learn(dataset)")
        rows = self._states(data)
        if NOISES not in self.tables:
            shape = (len(rows), c.answers, self.behavior.action_dim)
            for name in (NOISES, SAMPLES):
                self.tables[name] = torch.zeros(shape, device=self.device)
            self.tables[CENTERS] = torch.zeros(len(rows), shape[-1], device=self.device)
        size = max(1, support.ROWS_PER_CHUNK // c.answers)

        def ask(step: int) -> Metrics:
            chosen = slice(step * size, (step + 1) * size)
            observations = data.observations(rows[chosen]).to(self.device)
            noise = self.training.normal(len(observations), c.answers, self.behavior.action_dim)
            samples, centers = self._answers(observations, noise)
            if not bool(torch.isfinite(samples.sum() + centers.sum())):
                raise self.training.non_finite("answers/actions", math.nan, step + 1)
            self.tables[NOISES][chosen], self.tables[SAMPLES][chosen] = noise, samples
            self.tables[CENTERS][chosen] = centers
            return {}

        chunks = math.ceil(len(rows) / size)
        self.training.run_stage("answers", chunks, ask, gradient_steps=False)

    @torch.no_grad()
    def _answers(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's actions for noise (B, J, A) in states (B, S), and its deterministic ones.

        Shapes (B, J, A) and (B, A), in [-1, 1].
        """
        condition = self.behavior.normalizer(observations)
        repeated = condition.repeat_interleave(noise.shape[1], dim=0)
        z = self._solve(noise.flatten(0, 1), repeated)
        samples = self.behavior.within_bounds(repeated, z).reshape(noise.shape)
        centers = self.behavior.within_bounds(condition, self._deterministic(condition))
        return samples, centers

    def train_student(self, dataset: OfflineDataset) -> None:
        """Stage 8: regression of both networks on the answers."""
        data, c, tables = self.prepare(dataset), self.one_step_config, self.tables
        rows = self._states(data)

        def loss(step: int) -> tuple[Tensor, Metrics]:
            index = self.training.draw(len(rows), c.distillation_batch_size)
            answer = self.training.draw(c.answers, c.distillation_batch_size)
            condition = self.behavior.condition(data, take(rows, index))
            noise, samples = tables[NOISES][index, answer], tables[SAMPLES][index, answer]
            of_samples = distillation_loss(self._student_samples(noise, condition), samples)
            of_centers = distillation_loss(
                self.student_networks.center(condition), tables[CENTERS][index]
            )
            total = of_samples + of_centers
            return total, {"loss": total, "samples": of_samples, "centers": of_centers}

        rate = c.distillation_learning_rate
        self.training.minimize("distillation", c.distillation_steps, loss, rate)

    def _states(self, data: Batches) -> Tensor:
        """Rows of the states in which the teacher is asked: always the same."""
        return self.behavior.shuffled_rows(data)[: self.one_step_config.answer_states]

    def _student_samples(self, noise: Tensor, condition: Tensor) -> Tensor:
        samples: Tensor = self.student_networks.samples(noise, None, condition)
        return samples

    def table_kinds(self, found: Collection[str]) -> Kinds:
        """The teacher's; then its answers."""
        kinds = super().table_kinds(found)
        if self._policy_is_learned:
            kinds[STATE] = GeneratorState()
        needed = self.progress["answers"] > 0 and not self.stages_are_done
        several = (None, self.one_step_config.answers, self.behavior.action_dim)
        kinds[NOISES] = Table(several, needed=needed)
        kinds[SAMPLES] = Table(several, -1.0, 1.0, needed)
        kinds[CENTERS] = Table((None, self.behavior.action_dim), -1.0, 1.0, needed)
        return kinds

    def _forget_data(self) -> None:
        super()._forget_data()
        if not self.is_trained:
            self.progress["answers"] = 0

    def _on_new_data(self, dataset: OfflineDataset, batches: Batches) -> None:
        super()._on_new_data(dataset, batches)
        rows = len(self._states(batches))
        if CENTERS in self.tables and len(self.tables[CENTERS]) != rows:
            raise ValueError(
                f"this agent's tables {[NOISES, SAMPLES, CENTERS]} are not of these data, though "
                "its file says so: it is damaged; use an earlier copy"
            )

    # The teacher ----------------------------------------------------------------------------

    def adopt(self, other: OfflineAgent[Any], dataset: OfflineDataset) -> Self:
        """Take a trained QGPO or AEPO as the teacher; `learn` then trains the student alone.

            OneStepPolicy(config, seed=agent.seed).adopt(agent, dataset).learn(
                dataset, reset_num_timesteps=False
            )

        Raises TypeError for other agents, ValueError where configuration (but for how it acts),
        seed or data differ, RuntimeError where it is not trained to the end.
        """
        teacher = check_teacher(other)
        with usual_torch(), self.training.turn.training():
            self._settle(dataset)
            self._check_same(teacher, dataset)
            donor, states = copy.copy(teacher.training), adoption.kept_states(teacher.training)
            states = {name: state.clone() for name, state in states.items()}
            generator = donor.generator.get_state()
            self._reset()
            self.prepare(dataset)
            training = self.training
            for name, network in donor.networks.items():
                training.networks[name].load_state_dict(network.state_dict())
            for name, optimizer in donor.optimizers.items():
                set_state(training.optimizers[name], optimizer.state_dict())
            if self.rehearsing is not None:  # as the teacher acts, also after learning online
                self.rehearsing.caution.factor.fill_(teacher.caution)
            training.progress.update({stage: donor.progress[stage] for stage in QGPO.stages})
            training.stage = QGPO.stages[-1]  # whatever it did online
            training.num_timesteps = self.teacher_timesteps
            training.tables.update(states)
            seed = training.seed + training.num_timesteps
            set_generator(training.generator, generator, seed)
        return self

    def _check_same(self, teacher: OfflineAgent[Any], dataset: OfflineDataset) -> None:
        """Raise ValueError where that agent is not the teacher that this one would train."""
        who = f"cannot distil this {teacher.name}"
        for field in fields(QGPOConfig):
            ours, theirs = (getattr(c, field.name) for c in (self.config, teacher.config))
            if field.name not in HOW_IT_ACTS and ours != theirs:
                raise ValueError(
                    f"{who}: {field.name}={theirs!r}, this {self.name} has {field.name}={ours!r}; "
                    "give both the same, or call its distill(dataset)"
                )
        advice = "give both the same, or call its distill(dataset)"
        adoption.check_seed(who, self, teacher, advice)
        if teacher.dataset_fingerprint != dataset.fingerprint:
            raise ValueError(
                f"{who}: {adoption.other_data(teacher, dataset)}; distil it with the data that it "
                "learned from"
            )
        adoption.check_scale(who, teacher, dataset, "train it from scratch")

    @property
    def teacher(self) -> Self:
        """The teacher: an agent that shares everything with this one and acts as it was taught.

        It has no file of its own: that of the student holds both.
        """
        actor = copy.copy(self)
        actor._acts_as_teacher = True
        return actor

    def check_whole(self, what: str) -> None:
        """Raise RuntimeError for a teacher, whose file would be that of the student."""
        if self._acts_as_teacher:
            raise RuntimeError(
                f"the teacher of a {self.name} {what}: save the student, whose file holds both, or "
                "the agent that was distilled"
            )
        super().check_whole(what)

    # Acting ---------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observations: Tensor, deterministic: bool) -> Tensor:
        """The student's action, (B, S) to (B, A) in [-1, 1]: one evaluation of one network."""
        if self._acts_as_teacher:
            return super().act(observations, deterministic)
        condition = self.behavior.normalizer(observations)
        if deterministic:
            center: Tensor = self.student_networks.center(condition)
            return center.clamp(-1.0, 1.0)
        noise = self._prediction_normal(len(condition), self.behavior.action_dim)
        return self._student_samples(noise, condition).clamp(-1.0, 1.0)

    @property
    def guidance_scale(self) -> float:
        """W of the distillation, which the student cannot change."""
        return float(self.config.guidance_scale if self._scale is None else self._scale)

    @guidance_scale.setter
    def guidance_scale(self, scale: float) -> None:
        self._check_scale(scale)

    def configure_guidance(self, scale: float) -> None:
        """Raise ValueError for another scale than that of the distillation."""
        self._check_scale(scale)

    def _check_scale(self, scale: float) -> None:
        if scale != self.config.guidance_scale:
            raise ValueError(
                f"guidance_scale={scale}, expected {self.config.guidance_scale:g}, at which this "
                f"{self.name} was distilled; set the teacher's, and distil again"
            )

    def tune_guidance(self, *_: object, **__: object) -> NoReturn:
        """Raise ValueError: the scale is that of the distillation."""
        raise ValueError(
            f"this {self.name} was distilled at guidance_scale={self.config.guidance_scale:g}; "
            "tune the teacher's, and distil again"
        )

    def distill(self, *_: object, **__: object) -> NoReturn:
        """Raise TypeError: it is distilled already."""
        raise TypeError(f"this {self.name} is distilled already: distil its teacher again")


def check_teacher(agent: OfflineAgent[Any]) -> QGPO:
    """The agent, if it can be distilled. Raises TypeError or RuntimeError."""
    if not isinstance(agent, QGPO) or isinstance(agent, OneStepPolicy):
        name = agent.name if isinstance(agent, OfflineAgent) else type(agent).__name__
        raise TypeError(f"cannot distil a {name}, expected a QGPO or AEPO agent")
    agent.check_whole("cannot be distilled")
    if not agent.is_trained:
        raise RuntimeError(f"this {agent.name} is not trained to the end: call learn(dataset)")
    return agent


QGPO.one_step = OneStepPolicy  # what `distill` makes, which knows QGPO
