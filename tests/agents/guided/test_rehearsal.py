"""The trained policy imagines episodes, and guidance that harms there is weakened."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_tester import same_parameters
from factory import ONE_STEP, ROOT, STACKED, WHITENED, make_dataset

from qgpo import PRESETS, QGPO
from qgpo.agents import Ensemble, OneStepPolicy
from qgpo.agents.core.training import ONLINE
from qgpo.agents.guided import GuidanceOffWarning, tuning
from qgpo.agents.guided.imagination import Imagination
from qgpo.agents.guided.rehearsal import FACTORS, ROLLOUTS, Rehearsal
from qgpo.agents.guided.stacked_critic import StackedCritic
from qgpo.dynamics import MEMBERS
from qgpo.stacking import Slope

REHEARSING = replace(WHITENED, dynamics_steps=4)
OBSERVATIONS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def _few_steps_are_enough(monkeypatch):
    monkeypatch.setattr("qgpo.agents.guided.rehearsal.LEAST_MODEL_STEPS", 4)
    monkeypatch.setattr("qgpo.dynamics.HIDDEN", (8,))


def scripted(monkeypatch, means, spread=1.0):
    """Imagined returns at each factor have these means; the factors that were played.

    Differences to imitation have a deviation of the factor times the spread, the same for every
    member of the model.
    """
    played = []
    noise = np.repeat(np.random.default_rng(0).normal(size=ROLLOUTS // MEMBERS), MEMBERS)
    noise = spread * (noise - noise.mean()) / noise.std(ddof=1)

    def play(self, agent, deterministic, bar):
        assert deterministic
        played.append(agent.guidance_scale)
        returns = means[FACTORS.index(agent.guidance_scale)] + noise * (1 + agent.guidance_scale)
        return torch.as_tensor(returns), torch.zeros(ROLLOUTS, dtype=torch.bool)

    monkeypatch.setattr(Imagination, "play", play)
    return played


def learned(config=REHEARSING, **settings):
    return QGPO(config, seed=2, device="cpu").learn(make_dataset(), **settings)


@pytest.mark.parametrize(
    ("means", "spread", "factor"),
    [
        ([10.0, 0.0, 0.0, 9.9], 1.0, 1.0),  # within two standard errors
        ([10.0, 0.0, 0.0, 9.99], 0.0, 1.0),  # too small a difference for a model
        ([786.0, 871.0, 857.0, 535.0], 1.0, 0.25),
        ([1983.0, 1967.0, 1955.0, 1954.0], 1.0, 0.0),
        ([10.0, 20.0, 30.0, 5.0], 1.0, 0.25),
        ([10.0, 10.0, 60.0, 5.0], 1.0, 0.5),
        ([-100.0, -100.0, -90.0, -101.0], 0.0, 0.5),
        ([0.0, 9.0, 18.0, -70.0], 100.0, 0.0),  # gains of two and a half standard errors
        ([0.0, 12.5, 25.0, -70.0], 100.0, 0.25),  # of three and a half
    ],
)
def test_harm_is_clear_and_so_is_the_gain_of_the_factor_that_is_taken(
    means, spread, factor, monkeypatch
):
    scripted(monkeypatch, means, spread)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuidanceOffWarning)
        assert learned().caution == factor


def test_nothing_else_changes_when_a_policy_rehearses():
    plain, rehearsed = learned(WHITENED), learned()
    assert rehearsed.progress == {**plain.progress, "dynamics": 4}
    assert rehearsed.num_timesteps == rehearsed.total_timesteps == plain.num_timesteps + 4
    assert rehearsed.stage_steps == {**plain.stage_steps, "dynamics": 4}
    assert list(rehearsed.stage_steps) == list(rehearsed.stages)
    assert rehearsed.rehearsal is not None
    for name, network in plain.networks.items():
        assert same_parameters(network.state_dict(), rehearsed.networks[name].state_dict())
    assert torch.equal(plain.generator.get_state(), rehearsed.generator.get_state())
    assert (plain.rehearsal, plain.caution) == (None, 1.0)


def test_guidance_that_does_not_harm_stays_as_it_is(monkeypatch):
    played = scripted(monkeypatch, [10.0, 0.0, 0.0, 9.99])
    agent = learned()
    assert played == [0.0, 1.0]
    assert (agent.caution, agent.guidance_scale) == (1.0, 1.0)
    np.testing.assert_array_equal(
        agent.predict(OBSERVATIONS, deterministic=True)[0],
        learned(WHITENED).predict(OBSERVATIONS, deterministic=True)[0],
    )


@pytest.mark.parametrize("config", [REHEARSING, replace(REHEARSING, trust_power=0.0)])
@pytest.mark.parametrize("deterministic", [True, False])
def test_guidance_that_harms_is_weakened(monkeypatch, config, deterministic):
    played = scripted(monkeypatch, [10.0, 14.0, 13.0, 0.0])
    with pytest.warns(GuidanceOffWarning, match=r"guidance is weakened: .* weakened to 0\.25"):
        agent = learned(config)
    plain = learned(replace(config, dynamics_steps=0))
    assert played == [0.0, 1.0, 0.25, 0.5]
    assert (agent.caution, agent.guidance_scale, agent.guidance_is_off) == (0.25, 1.0, False)
    for scale in (0.0, 1.0, 4.0):
        agent.guidance_scale, plain.guidance_scale = scale, 0.25 * scale
        found = []
        for one in (agent, plain):
            one.seed_predictions(3)
            found.append(one.predict(OBSERVATIONS, deterministic=deterministic)[0])
        np.testing.assert_allclose(*found, atol=1e-6)
    agent.save("cautious")
    again = QGPO.load("cautious", device="cpu")
    assert (again.caution, again.rehearsal) == (agent.caution, agent.rehearsal)


def test_guidance_that_only_harms_is_off_and_says_so(monkeypatch):
    scripted(monkeypatch, [10.0, 5.0, 2.0, 0.0])
    with pytest.warns(GuidanceOffWarning, match=r"full guidance returns .*guidance is off"):
        agent = learned()
    assert agent.guidance_is_off
    imitation = learned(replace(WHITENED, guidance_scale=0.0))
    np.testing.assert_array_equal(
        agent.predict(OBSERVATIONS, deterministic=True)[0],
        imitation.predict(OBSERVATIONS, deterministic=True)[0],
    )
    tuning = agent.tune_guidance(make_dataset(), (0.0, 1.0), rollouts=ROLLOUTS, steps=1)
    assert tuning.guidance_is_off


def test_the_verdict_has_what_was_found(monkeypatch):
    scripted(monkeypatch, [10.0, 14.0, 13.0, 0.0])
    monkeypatch.setattr(StackedCritic, "weigh", confirmed)
    agent = learned(replace(STACKED, dynamics_steps=4))
    about = json.loads(json.dumps(agent.verdict.as_dict()))["rehearsal"]
    assert about == pytest.approx(agent.rehearsal.as_dict())
    assert agent.rehearsal.imitation == pytest.approx(10.0, abs=0.5)
    assert "it is weakened to 0.25" in str(agent.verdict)
    assert str(Rehearsal(1.0, 2.0, 1.0)).endswith("guidance returns 2, imitation 1")


@pytest.mark.parametrize("stop", [14 + 2, 14 + 4, 14 + 4 + 4])
def test_a_training_that_stopped_rehearses_as_one_that_did_not(stop, monkeypatch):
    whole = learned()
    agent = QGPO(REHEARSING, seed=2, device="cpu")
    if stop == whole.num_timesteps:  # Ctrl-C during the rehearsal
        with monkeypatch.context() as patch:
            patch.setattr(Imagination, "play", interrupted)
            with pytest.raises(KeyboardInterrupt):
                agent.learn(make_dataset())
    else:
        agent.learn(make_dataset(), lambda scope, _: scope["self"].num_timesteps < stop)
    assert (agent.num_timesteps, agent.is_trained, agent.rehearsal) == (stop, False, None)
    agent.save("interrupted")
    resumed = QGPO.load("interrupted", device="cpu")
    resumed.learn(make_dataset(), reset_num_timesteps=False)
    assert same_parameters(resumed.get_parameters(), whole.get_parameters())
    assert resumed.is_trained


def confirmed(self, data):
    return torch.tensor([0.5, 0.0]), [Slope(0.5, 0.05, 0.1)] * 3


def test_a_policy_that_only_imitates_has_nothing_to_rehearse(monkeypatch):
    monkeypatch.setattr(Imagination, "play", interrupted)
    monkeypatch.setattr(StackedCritic, "weigh", lambda *_: (torch.zeros(2), [Slope(0, 1, 0)] * 3))
    with pytest.warns(GuidanceOffWarning, match="do not confirm"):
        agent = learned(replace(STACKED, dynamics_steps=4))
    assert (agent.is_trained, agent.rehearsal, agent.caution) == (True, None, 1.0)


def interrupted(*_):
    raise KeyboardInterrupt


def test_few_steps_judge_nothing(monkeypatch):
    monkeypatch.setattr("qgpo.agents.guided.rehearsal.LEAST_MODEL_STEPS", 5)
    monkeypatch.setattr(Imagination, "play", interrupted)
    agent = learned()
    assert (agent.is_trained, agent.rehearsal, agent.caution) == (True, None, 1.0)


def test_returns_that_are_not_finite_weaken_nothing(monkeypatch):
    scripted(monkeypatch, [np.nan, 0.0, 0.0, 0.0])
    with pytest.warns(UserWarning, match=r"are not finite: guidance is not weakened"):
        agent = learned()
    assert (agent.is_trained, agent.rehearsal, agent.caution) == (True, None, 1.0)


def test_a_policy_that_is_not_learned_cannot_rehearse():
    with pytest.raises(RuntimeError, match="train_energy"):
        QGPO(REHEARSING, device="cpu").rehearse(make_dataset())


def test_another_agent_s_parameters_do_not_stand_for_the_rehearsal(monkeypatch):
    played = scripted(monkeypatch, [10.0, 14.0, 13.0, 0.0])
    agent = QGPO(REHEARSING, device="cpu")
    agent.prepare(make_dataset())
    agent.set_parameters(learned().get_parameters())
    assert agent.caution == 0.25
    played.clear()
    scripted(monkeypatch, [0.0, 0.0, 0.0, 10.0])
    agent.learn(make_dataset(), reset_num_timesteps=False)
    assert agent.caution == 1.0


def test_online_the_environment_judges_in_place_of_the_model(monkeypatch):
    scripted(monkeypatch, [10.0, 5.0, 2.0, 0.0])
    agent = learned()
    assert agent.caution == 0.0
    agent.progress[ONLINE] = 0
    assert (agent.caution, agent.guidance_is_off) == (0.25, False)
    assert agent.rehearsal.factor == 0.0
    agent.learn(make_dataset())
    assert agent.caution == 0.0


def test_one_transition_is_enough():
    agent = QGPO(REHEARSING, device="cpu").learn(make_dataset((1,)))
    assert agent.is_trained


def test_a_student_that_is_trained_from_scratch_rehearses_its_teacher(monkeypatch):
    acting = []
    play = Imagination.play

    def watched(self, agent, *rest):
        acting.append((agent.guidance_scale, agent._acts_as_teacher))
        return play(self, agent, *rest)

    monkeypatch.setattr(Imagination, "play", watched)
    OneStepPolicy(replace(ONE_STEP, dynamics_steps=4), device="cpu").learn(make_dataset())
    assert acting[:2] == [(0.0, True), (1.0, True)]


def test_another_agent_s_stages_are_adopted_and_the_model_is_learned():
    whole = learned()
    other = QGPO(REHEARSING, seed=2, device="cpu").adopt(learned(WHITENED), make_dataset())
    assert other.progress["dynamics"] == 0
    other.learn(make_dataset(), reset_num_timesteps=False)
    assert same_parameters(other.get_parameters(), whole.get_parameters())


def test_a_student_acts_as_its_cautious_teacher(monkeypatch):
    scripted(monkeypatch, [10.0, 14.0, 13.0, 0.0])
    agent = learned()
    student = agent.distill(make_dataset(), steps=1)
    assert student.is_trained
    assert student.num_timesteps == student.total_timesteps
    np.testing.assert_array_equal(
        student.teacher.predict(OBSERVATIONS, deterministic=True)[0],
        agent.predict(OBSERVATIONS, deterministic=True)[0],
    )
    student.save("student")
    assert type(student).load("student", device="cpu").caution == 0.25


def test_files_of_earlier_versions_rehearse_nothing():
    assert (
        QGPO.load(ROOT / "tests" / "golden" / "version4-stacked.zip", device="cpu").rehearsal
        is None
    )


def test_the_preset_rehearses_and_the_others_do_not():
    assert PRESETS["laptop"].dynamics_steps == 16_000
    assert PRESETS["paper"].dynamics_steps == PRESETS["laptop-support"].dynamics_steps == 0


def test_tuning_plays_in_the_model_of_the_training(monkeypatch):
    """An ensemble takes the first one that there is; a given number of steps learns another."""
    agent, plain = learned(), learned(WHITENED)
    played, play = [], Imagination.play

    def noted(self, agent, deterministic, bar):
        played.append(self.model)
        return play(self, agent, deterministic, bar)

    monkeypatch.setattr(Imagination, "play", noted)
    monkeypatch.setattr(tuning, "STEPS", 1)
    dataset = make_dataset()
    for tuned in (agent, Ensemble([plain, agent]), plain):
        tuned.tune_guidance(dataset, (0.0, 1.0), rollouts=2)
    agent.tune_guidance(dataset, (0.0,), rollouts=2, steps=1)
    model = agent.own_model
    assert model is agent.rehearsing.model
    assert [one is model for one in played] == [True] * 4 + [False] * 3
    assert plain.own_model is None
    agent.acts_only = True  # a packed agent lacks what acting does not need
    assert agent.own_model is None
    agent.acts_only = False
    monkeypatch.setattr("qgpo.agents.guided.rehearsal.LEAST_MODEL_STEPS", 5)
    assert agent.own_model is None


def test_the_model_of_other_data_is_not_asked():
    dataset, other = make_dataset(), make_dataset(seed=5)
    agent = learned()
    agent.learn(other, reset_num_timesteps=False, allow_other_dataset=True)
    agent.save("of_other_data")
    for one in (agent, QGPO.load("of_other_data", device="cpu")):
        assert (one.is_trained, one.own_model) == (True, None)
    agent.learn(dataset)
    assert agent.own_model is not None


def test_nothing_rehearses_in_the_model_of_other_data(monkeypatch):
    played = scripted(monkeypatch, [10.0, 14.0, 13.0, 0.0])
    agent = QGPO(REHEARSING, seed=2, device="cpu")
    agent.learn(make_dataset(), lambda scope, _: scope["self"].num_timesteps < 14 + 4 + 1)
    assert (agent.progress["dynamics"], agent.progress["energy"]) == (4, 1)
    other = make_dataset(seed=5)
    agent.learn(other, reset_num_timesteps=False, allow_other_dataset=True)
    assert agent.is_trained
    assert (played, agent.caution, agent.own_model) == ([], 1.0, None)


def test_a_model_that_was_left_out_is_learned_before_the_rehearsal():
    dataset = make_dataset()
    agent = QGPO(REHEARSING, seed=2, device="cpu")
    agent.prepare(dataset)
    agent.train_whitening(dataset)
    agent.train_behavior(dataset)
    agent.generate_support(dataset)
    agent.train_critic(dataset)
    agent.train_energy(dataset)
    with pytest.raises(RuntimeError, match=r"no model to rehearse in yet: call train_dynamics"):
        agent.rehearse(dataset)
    assert (agent.is_trained, agent.own_model) == (False, None)
    agent.learn(dataset, reset_num_timesteps=False)
    whole = learned()
    assert same_parameters(agent.get_parameters(), whole.get_parameters())
    assert (agent.rehearsal, agent.is_trained) == (whole.rehearsal, True)


def test_tuning_learns_another_model_where_the_own_one_diverged(monkeypatch):
    def diverged(self, agent, deterministic, bar):
        return torch.full((ROLLOUTS,), torch.nan), torch.zeros(ROLLOUTS, dtype=torch.bool)

    with monkeypatch.context() as patch:
        patch.setattr(Imagination, "play", diverged)
        with pytest.warns(UserWarning, match="guidance is not weakened"):
            agent = learned()
    monkeypatch.setattr(tuning, "STEPS", 1)
    assert agent.own_model is None
    assert len(agent.tune_guidance(make_dataset(), (0.0, 1.0), rollouts=2).returns) == 2


def test_what_was_rehearsed_stays_known_with_other_data(monkeypatch):
    scripted(monkeypatch, [10.0, 14.0, 13.0, 0.0])
    with pytest.warns(GuidanceOffWarning, match=r"guidance is weakened"):
        agent = learned()
    found = agent.rehearsal
    agent.learn(make_dataset(seed=5), reset_num_timesteps=False, allow_other_dataset=True)
    assert (agent.caution, agent.rehearsal, agent.own_model) == (0.25, found, None)
