"""OneStepPolicy: the student of a trained teacher, and that of a training from scratch."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_tester import StopAfter, Walk, same_agents
from factory import AEPO_CONFIGS, ONE_STEP, WHITENED, make_dataset

from qgpo import (
    AEPO,
    BC,
    QGPO,
    QIPO,
    OneStepConfig,
    OneStepPolicy,
    OnlineConfig,
    load_agent,
)
from qgpo.agents.core.acting import GivenNoise
from qgpo.agents.guided import GuidanceOffWarning, Verdict

TEACHER = replace(WHITENED, energy_steps=2)
OBSERVATIONS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def teacher():
    return QGPO(TEACHER, seed=3, device="cpu").learn(make_dataset())


def test_distilling_equals_learning_at_once(teacher):
    student = OneStepPolicy(ONE_STEP, seed=3, device="cpu").adopt(teacher, make_dataset())
    assert not student.is_trained
    assert student.progress["energy"] == 2
    before = {k: v.clone() for k, v in teacher.networks.state_dict().items()}
    student.learn(make_dataset(), reset_num_timesteps=False)
    scratch = OneStepPolicy(ONE_STEP, seed=3, device="cpu").learn(make_dataset())
    assert same_agents(student, scratch)
    assert all(torch.equal(v, before[k]) for k, v in teacher.networks.state_dict().items())


def test_the_method_takes_the_scale_and_the_solver_of_today(teacher):
    teacher.guidance_scale, teacher.solver_steps = 2.0, 5
    student = teacher.distill(make_dataset(), steps=3)
    assert isinstance(student, OneStepPolicy)
    assert student.is_trained
    expected = OneStepConfig(
        **{
            **vars(TEACHER),
            **{"guidance_scale": 2.0, "solver_steps": 5, "distillation_steps": 3},
            **{"student_hidden": (128,) * 4, "answers": 2},
        }
    )
    assert student.config == expected
    assert student.seed == 3
    np.testing.assert_array_equal(
        student.teacher.predict(OBSERVATIONS, deterministic=True)[0],
        teacher.predict(OBSERVATIONS, deterministic=True)[0],
    )
    teacher.guidance_scale, teacher.solver_steps = 1.0, TEACHER.solver_steps


def test_a_student_acts_as_its_teacher_does_since_it_learned_online(monkeypatch):
    """A rehearsal turned guidance off; online a quarter of it is tried."""
    monkeypatch.setattr("qgpo.agents.guided.rehearsal.LEAST_MODEL_STEPS", 1)
    agent = QGPO(replace(TEACHER, dynamics_steps=1), seed=3, device="cpu").learn(make_dataset())
    agent.rehearsing.caution.factor.fill_(0.0)
    quick = OnlineConfig(play_first=2, learn_every=2)
    agent.learn_online(Walk(), 8, make_dataset(), config=quick)
    student = agent.distill(make_dataset(), steps=1)
    assert agent.caution == student.caution == 0.25
    np.testing.assert_array_equal(
        student.teacher.predict(OBSERVATIONS, deterministic=True)[0],
        agent.predict(OBSERVATIONS, deterministic=True)[0],
    )


def test_the_answers_are_the_teacher_s_for_the_noise_that_is_kept(teacher):
    data = make_dataset()
    student = OneStepPolicy(ONE_STEP, seed=3, device="cpu").adopt(teacher, data)
    student.ask_teacher(data)
    rows = student._states(student.prepare(data))
    assert len(rows) == ONE_STEP.answer_states
    observations = torch.as_tensor(data.states)[rows]
    np.testing.assert_allclose(
        student.tables["centers"], teacher.act(observations, True), atol=1e-6
    )
    for answer in range(ONE_STEP.answers):
        noise = GivenNoise(student.tables["noises"][:, answer])
        np.testing.assert_allclose(
            student.tables["samples"][:, answer],
            teacher.acting_on(noise).act(observations, False),
            atol=1e-6,
        )


def test_a_student_comes_near_its_teacher(teacher):
    data = make_dataset()
    config = replace(
        ONE_STEP, student_hidden=(64, 64), answers=64, answer_states=100, distillation_steps=800
    )
    student = OneStepPolicy(config, seed=3, device="cpu").adopt(teacher, data)
    student.learn(data, reset_num_timesteps=False)
    rows = torch.as_tensor(data.states)
    noise = torch.randn(len(rows), 1, generator=torch.Generator().manual_seed(5))
    for deterministic in (True, False):
        both = [
            agent.acting_on(GivenNoise(noise)).act(rows, deterministic)
            for agent in (teacher, student)
        ]
        error = float((both[0] - both[1]).square().mean().sqrt())
        spread = float(both[0].std())
        assert error < 0.15 * spread, (deterministic, error, spread)
    sampled = student.acting_on(GivenNoise(noise)).act(rows, False)
    other = student.acting_on(GivenNoise(-noise)).act(rows, False)
    assert float((sampled - other).abs().mean()) > 0.1


@pytest.mark.parametrize("weights", [{"returns": 0.5}, {"returns": 0.0}])
def test_a_student_whose_teacher_only_imitates_says_so(monkeypatch, weights):
    confirmed = Verdict(0.1, 5.0, {**weights, "implicit": 0.0})
    found = property(lambda agent: confirmed if agent.is_trained else None)
    monkeypatch.setattr(OneStepPolicy, "verdict", found)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        OneStepPolicy(ONE_STEP, device="cpu").learn(make_dataset())
    off = [w for w in said if issubclass(w.category, GuidanceOffWarning)]
    assert len(off) == (0 if weights["returns"] else 1)


def test_a_teacher_has_no_file_of_its_own(teacher, tmp_path):
    student = teacher.distill(make_dataset(), steps=2)
    with pytest.raises(RuntimeError, match="the teacher of a OneStepPolicy cannot be saved: save"):
        student.teacher.save(tmp_path / "teacher")
    student.save(tmp_path / "student")
    assert not (tmp_path / "teacher.zip").exists()


def test_agents_of_the_package_are_no_teachers():
    agent = QGPO.pretrained("halfcheetah/mixed", device="cpu")
    with pytest.raises(RuntimeError, match="cannot be distilled: it came with the package"):
        agent.distill(make_dataset(), steps=2)


def test_aepo_is_a_teacher_too():
    agent = AEPO(AEPO_CONFIGS["analytic"], device="cpu").learn(make_dataset())
    student = agent.distill(make_dataset(), steps=2)
    assert student.config.guidance == "analytic"
    np.testing.assert_array_equal(
        student.teacher.predict(OBSERVATIONS, deterministic=True)[0],
        agent.predict(OBSERVATIONS, deterministic=True)[0],
    )


def test_an_interrupted_distillation_goes_on_from_its_file(teacher, tmp_path):
    data = make_dataset()
    expected = OneStepPolicy(ONE_STEP, seed=3, device="cpu").adopt(teacher, data)
    expected.learn(data, reset_num_timesteps=False)
    student = OneStepPolicy(ONE_STEP, seed=3, device="cpu").adopt(teacher, data)
    student.learn(data, StopAfter(2), reset_num_timesteps=False)
    student.save(tmp_path / "stopped")
    loaded = load_agent(tmp_path / "stopped", device="cpu")
    assert set(loaded.tables) >= {"noises", "samples", "centers"}
    assert same_agents(loaded.learn(data, reset_num_timesteps=False), expected)
    assert not {"noises", "samples", "centers"} & set(loaded.tables)


def test_a_student_is_a_donor_of_its_first_stages(teacher):
    student = teacher.distill(make_dataset(), steps=2)
    other = replace(TEACHER, guidance="mse")
    adopted = QGPO(other, seed=3, device="cpu").adopt(student, make_dataset())
    adopted.learn(make_dataset(), reset_num_timesteps=False)
    assert same_agents(adopted, QGPO(other, seed=3, device="cpu").learn(make_dataset()))


def test_what_cannot_be_distilled(teacher):
    data = make_dataset()
    student = teacher.distill(data, steps=2)
    make = OneStepPolicy(ONE_STEP, seed=3, device="cpu")
    with pytest.raises(TypeError, match="cannot distil a BC, expected a QGPO or AEPO agent"):
        make.adopt(BC(device="cpu"), data)
    with pytest.raises(TypeError, match="cannot distil a QIPO"):
        make.adopt(QIPO(device="cpu"), data)
    with pytest.raises(TypeError, match="OneStepPolicy is distilled already"):
        student.distill(data)
    with pytest.raises(RuntimeError, match="QGPO is not trained to the end"):
        QGPO(TEACHER, seed=3, device="cpu").distill(data)
    with pytest.raises(ValueError, match=r"has .*; distil it with the data"):
        teacher.distill(make_dataset(seed=1))
    with pytest.raises(ValueError, match=r"trained with seed=3, this OneStepPolicy has seed=0"):
        OneStepPolicy(ONE_STEP, device="cpu").adopt(teacher, data)
    with pytest.raises(ValueError, match=r"beta=30\.0, this OneStepPolicy has beta=1\.0"):
        OneStepPolicy(replace(ONE_STEP, beta=1.0), seed=3, device="cpu").adopt(teacher, data)
    with pytest.raises(RuntimeError, match="the teacher is not trained to the end"):
        OneStepPolicy(ONE_STEP, device="cpu").ask_teacher(data)


def test_the_scale_of_a_student_is_that_of_its_distillation(teacher):
    student = teacher.distill(make_dataset(), steps=2)
    student.guidance_scale = 1.0
    student.configure_guidance(1.0)
    for change in (
        lambda: setattr(student, "guidance_scale", 2.0),
        lambda: student.configure_guidance(0.0),
    ):
        with pytest.raises(ValueError, match="expected 1, at which this OneStepPolicy was distil"):
            change()
    with pytest.raises(ValueError, match="tune the teacher's, and distil again"):
        student.tune_guidance(make_dataset())
