"""Bad input of constructors and learn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from agent_tester import Walk
from cases import (
    LEARN,
    MAKE,
    ONLINE,
    Case,
    agent,
    config,
    exploding,
    learn,
    prepared,
    resume_on,
)
from factory import (
    PAPER_LIKE,
    make_dataset,
)
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from qgpo import BC, QGPO, BestOfNConfig, EnergyGuidedDiffusion, Ensemble, IQLConfig
from qgpo.agents import within_minutes
from qgpo.agents.core.callbacks import EvaluationCallback, SaveCheckpoint
from qgpo.agents.core.parameters import ParameterError
from qgpo.agents.core.training import NonFiniteError
from qgpo.agents.sb3_baselines import OnlineSAC


def other_evaluations() -> None:
    Path("log").mkdir()
    np.savez("log/evaluations", timesteps=[1], results=[[0.0, 0.0]], ep_lengths=[[5, 5]])
    env = DummyVecEnv([Walk])
    callback = EvaluationCallback(env, n_eval_episodes=3, log_path="log")
    agent().learn(make_dataset(), callback, reset_num_timesteps=False)


CASES = [
    Case(
        MAKE,
        "minutes=nan",
        ValueError,
        "minutes=nan, expected a finite number",
        lambda: within_minutes(QGPO, "laptop", make_dataset(), math.nan),
    ),
    Case(
        MAKE,
        "minutes for an agent whose first steps are faster",
        ValueError,
        "agent='sb3:online-sac': its first steps take less time than later ones, so minutes "
        "cannot be measured; set its number of steps instead",
        lambda: within_minutes(OnlineSAC, "laptop", make_dataset(), 10),
    ),
    Case(
        MAKE,
        "an unknown preset",
        ValueError,
        "preset='huge', expected one of ['laptop', 'laptop-support', 'paper'] or a QGPOConfig",
        lambda: QGPO("huge"),
    ),
    Case(
        MAKE,
        "a configuration of another type",
        TypeError,
        "config is a dict, expected a preset's name ['laptop', 'laptop-support', 'paper'] or a "
        "QGPOConfig",
        lambda: QGPO({"beta": 3.0}),
    ),
    Case(
        MAKE,
        "a negative seed",
        ValueError,
        "seed=-1, expected an integer of at least 0 and below 2**63",
        lambda: QGPO(seed=-1),
    ),
    Case(
        MAKE,
        "a seed that is not an integer",
        ValueError,
        "seed=1.5, expected an integer of at least 0 and below 2**63",
        lambda: QGPO(seed=1.5),
    ),
    Case(
        MAKE,
        "a seed that is too large",
        ValueError,
        "seed=9223372036854775808, expected an integer of at least 0 and below 2**63",
        lambda: QGPO(seed=2**63),
    ),
    Case(
        MAKE,
        "an unknown device",
        ValueError,
        "device='gpu', expected auto, cpu, cuda or cuda:N",
        lambda: QGPO(device="gpu"),
    ),
    Case(
        MAKE,
        "a device that does not exist",
        ValueError,
        "device='cuda:99' is not available here, expected auto or cpu",
        lambda: QGPO(device="cuda:99"),
    ),
    Case(
        MAKE,
        "an environment of another type",
        TypeError,
        "env is a int, expected a Gymnasium id, a gymnasium.Env or an SB3 VecEnv",
        lambda: QGPO(env=5),
    ),
    Case(
        MAKE,
        "an unknown environment",
        ValueError,
        "environment 'Nowhere-v0' cannot be made: …. Registered ids are listed by "
        "gymnasium.pprint_registry(); packages such as gymnasium-robotics must be imported. An "
        "environment of your own is named module:Nowhere-v0",
        lambda: QGPO(env="Nowhere-v0"),
    ),
    Case(
        MAKE,
        "an environment with discrete actions",
        ValueError,
        "the environment has action space Discrete(2); continuous actions …",
        lambda: QGPO(env="CartPole-v1"),
    ),
    Case(
        MAKE,
        "an unknown schedule",
        ValueError,
        "schedule='cubic', expected one of […]",
        config(schedule="cubic"),
    ),
    Case(
        MAKE,
        "an unknown critic",
        ValueError,
        "critic='iql', expected one of ['implicit', 'stacked', 'support']",
        config(critic="iql"),
    ),
    Case(
        MAKE,
        "more support actions per step than exist",
        ValueError,
        "implicit_actions=17, expected at most support_actions=16: each state has only that many",
        config(critic="implicit", support_actions=16, implicit_actions=17),
    ),
    Case(
        MAKE,
        "an unknown prediction",
        ValueError,
        "prediction='score', expected one of […]",
        config(prediction="score"),
    ),
    Case(
        MAKE,
        "an unknown solver",
        ValueError,
        "solver='leapfrog', expected one of […]",
        config(solver="leapfrog"),
    ),
    Case(
        MAKE,
        "a solver that draws noise",
        ValueError,
        "solver='sde_dpm_solver_2m', expected one of […]",
        config(solver="sde_dpm_solver_2m"),
    ),
    Case(
        MAKE,
        "an unknown spacing",
        ValueError,
        "spacing='odd', expected one of […]",
        config(spacing="odd"),
    ),
    Case(
        MAKE,
        "an unknown guidance",
        ValueError,
        "guidance='cfg', expected one of […]",
        config(guidance="cfg"),
    ),
    Case(
        MAKE,
        "a guidance that belongs to another agent",
        ValueError,
        "guidance='weighted', expected one of […]; use QIPO for it",
        config(guidance="weighted"),
    ),
    Case(
        MAKE,
        "an option that the guidance does not have",
        ValueError,
        "guidance_options has 'order', expected some of ['labels', 'base']",
        config(guidance_options={"order": 2}),
    ),
    Case(
        MAKE,
        "num_samples=0",
        ValueError,
        "num_samples=0, expected in [1, 100000]",
        lambda: BestOfNConfig(num_samples=0),
    ),
    Case(
        MAKE,
        "an unknown value of an option",
        ValueError,
        "order=3, expected one of [1, 2]",
        config(guidance="analytic", guidance_options={"order": 3}),
    ),
    Case(
        MAKE,
        "an unknown unit of Q",
        ValueError,
        "q_unit='odd', expected one of ['reward', 'spread']",
        config(q_unit="odd"),
    ),
    Case(
        MAKE,
        "a learning rate that is not a number",
        ValueError,
        "behavior_learning_rate=nan, expected positive",
        config(behavior_learning_rate=math.nan),
    ),
    Case(
        MAKE,
        "solver_steps=0",
        ValueError,
        "solver_steps=0, expected positive",
        config(solver_steps=0),
    ),
    Case(
        MAKE,
        "an empty batch",
        ValueError,
        "critic_batch_size=0, expected positive",
        config(critic_batch_size=0),
    ),
    Case(
        MAKE,
        "an expectile of 1",
        ValueError,
        "expectile=1.0, expected in [1e-06, 0.999999]",
        lambda: IQLConfig(expectile=1.0),
    ),
    Case(
        MAKE,
        "a hidden layer of size 0",
        ValueError,
        "critic_hidden=(8, 0), expected positive",
        config(critic_hidden=(8, 0)),
    ),
    Case(
        MAKE,
        "an ensemble without members",
        ValueError,
        "members is empty, expected at least one agent",
        lambda: Ensemble([]),
    ),
    Case(
        MAKE,
        "an ensemble with an untrained agent",
        ValueError,
        "member 0 has not been trained: call learn(dataset) first",
        lambda: Ensemble([QGPO(PAPER_LIKE, device="cpu")]),
    ),
    Case(
        MAKE,
        "an ensemble of agents for different spaces",
        ValueError,
        "member 1 has observations (4,) and actions …; this agent was made for (3,) and …",
        lambda: Ensemble([prepared(), prepared(observation_dim=4)]),
    ),
    Case(
        MAKE,
        "an ensemble made of file names",
        TypeError,
        "member 0 is a str, expected an agent",
        lambda: Ensemble(["agent.zip"]),
    ),
    Case(
        MAKE,
        "an ensemble loaded from one file",
        TypeError,
        "paths='agent.zip' is one file, expected a list of files",
        lambda: Ensemble.load("agent.zip"),
    ),
    Case(
        LEARN,
        "an object that is not a dataset",
        TypeError,
        "dataset=5 is a number, expected an OfflineDataset …. learn() takes the data; the number "
        "of steps is the configuration's: longer(config, 2), from qgpo.agents, doubles it",
        lambda: learn(dataset=5),
    ),
    Case(
        LEARN,
        "log_interval=0",
        ValueError,
        "log_interval=0, expected an integer of at least 1",
        lambda: learn(log_interval=0),
    ),
    Case(
        LEARN,
        "log_interval=None",
        ValueError,
        "log_interval=None, expected an integer of at least 1",
        lambda: learn(log_interval=None),
    ),
    Case(
        LEARN,
        "a callback that cannot be called",
        TypeError,
        "callback is a int, expected an SB3 callback, a list of them, or a function of (locals, "
        "globals)",
        lambda: learn(callback=5),
    ),
    Case(
        LEARN,
        "a callback's class in a list",
        TypeError,
        "callback is a class, expected an SB3 callback, a list of them, or a function of (locals, "
        "globals)",
        lambda: learn(callback=[SaveCheckpoint]),
    ),
    Case(
        LEARN,
        "an environment that does not fit the data",
        ValueError,
        "the environment has observations (3,) and actions …; this agent was made for (4,) and …",
        lambda: QGPO(PAPER_LIKE, env="Pendulum-v1", device="cpu").learn(
            make_dataset(observation_dim=4, action_space=spaces.Box(-2.0, 2.0, (1,), np.float32))
        ),
    ),
    Case(
        LEARN,
        "a file name as parameters",
        TypeError,
        "parameters is a str, expected the result of get_parameters(); use load(path) to read "
        "a file",
        lambda: agent().set_parameters("agent.zip"),
    ),
    Case(
        LEARN,
        "other data on resume",
        ValueError,
        "training has reached timestep … on dataset 'test/made/by-hand-v0'; "
        "'test/made/by-hand-v0' holds other data. Resume with the previous dataset, continue "
        "on this one with allow_other_dataset=True, or start again with "
        "reset_num_timesteps=True",
        lambda: agent().learn(make_dataset(seed=5), reset_num_timesteps=False),
    ),
    Case(
        LEARN,
        "data with other spaces on resume",
        ValueError,
        "test/made/by-hand-v0 has observations (4,) and actions …; this agent was made for (3,) "
        "and …",
        lambda: resume_on(make_dataset(observation_dim=4)),
    ),
    Case(
        LEARN,
        "a diverging loss",
        NonFiniteError,
        "critic/loss is nan at step 2 of stage 'critic' (timestep …). No checkpoint was written "
        "yet. Likely causes: …",
        exploding,
    ),
    Case(
        LEARN,
        "stages out of order",
        RuntimeError,
        "no support actions yet: call generate_support(dataset) first",
        lambda: QGPO(PAPER_LIKE, device="cpu").train_critic(make_dataset()),
    ),
    Case(
        LEARN,
        "a checkpoint every 0 steps",
        ValueError,
        "every=0, expected at least 1 step between two checkpoints",
        lambda: SaveCheckpoint(Path("a.zip"), 0),
    ),
    Case(
        LEARN,
        "parameters with other names",
        ParameterError,
        "parameters: unknown ['actor'], missing […], expected […]",
        lambda: agent().set_parameters({"actor": {}}),
    ),
    Case(
        LEARN,
        "parameters with other shapes",
        ParameterError,
        "parameters of 'critic' do not fit: … is missing, expected … (wrong: […])",
        lambda: agent().set_parameters({**agent().get_parameters(), "critic": {}}),
    ),
    Case(
        LEARN,
        "some parameters, with unknown names",
        ParameterError,
        "parameters of 'critic' do not fit: more is (1,), expected not there (wrong: ['more'])",
        lambda: agent().set_parameters({"critic": {"more": torch.zeros(1)}}, exact_match=False),
    ),
    Case(
        LEARN,
        "continuing evaluations with another number of episodes",
        ValueError,
        "n_eval_episodes=3, but '…evaluations.npz', which this training continues, has 2 episodes "
        "in every evaluation; take as many, or choose another log_path, or move the file away",
        other_evaluations,
    ),
    Case(
        LEARN,
        "parameters of another kind of optimizer",
        ParameterError,
        "parameters of 'critic.optimizer' are not a state of that optimizer, expected 'state' "
        "and 'param_groups' for its … parameters, as get_parameters() returns them",
        lambda: agent().set_parameters({"critic.optimizer": {"lr": 0.1}}, exact_match=False),
    ),
    Case(
        LEARN,
        "no energy for EnergyGuidedDiffusion",
        ValueError,
        "energy=None, expected a callable, or an array of one value per sample; use "
        "fit_data(data) to train the model of q only",
        lambda: EnergyGuidedDiffusion(device="cpu").fit(torch.zeros(4, 2), None),
    ),
    Case(
        LEARN,
        "tuning the guidance before training",
        RuntimeError,
        "this QGPO has not finished training: call learn(dataset)",
        lambda: QGPO(PAPER_LIKE, device="cpu").tune_guidance(make_dataset()),
    ),
    Case(
        LEARN,
        "tuning the guidance to a negative scale",
        ValueError,
        "scales=(1.0, -1.0), expected numbers in [0, 1e+09]",
        lambda: agent().tune_guidance(make_dataset(), scales=(1.0, -1.0)),
    ),
    Case(
        ONLINE,
        "an agent that learns from data alone",
        TypeError,
        "a BC agent learns from data alone, expected one of ['AEPO', 'BestOfN', 'QGPO', 'SIR']",
        lambda: BC(device="cpu").learn_online(Walk(), 5),
    ),
    Case(
        ONLINE,
        "an agent that has not learned",
        RuntimeError,
        "this QGPO is not trained to the end: call learn(dataset)",
        lambda: QGPO(PAPER_LIKE, device="cpu").learn_online(Walk(), 5, make_dataset()),
    ),
    Case(
        ONLINE,
        "timesteps=0",
        ValueError,
        "timesteps=0, expected at least 1",
        lambda: agent().learn_online(Walk(), 0, make_dataset()),
    ),
    Case(
        ONLINE,
        "other data than those of the training",
        ValueError,
        "this QGPO was trained on 'test/made/by-hand-v0', 'test/made/by-hand-v0' holds other "
        "data: pass the data of its training",
        lambda: agent().learn_online(Walk(), 5, make_dataset(seed=7)),
    ),
    Case(
        ONLINE,
        "a config of another kind",
        TypeError,
        "config is a dict, expected an OnlineConfig",
        lambda: agent().learn_online(Walk(), 5, make_dataset(), config={"learn_every": 5}),
    ),
    Case(
        ONLINE,
        "an environment with other spaces",
        ValueError,
        "the environment has observations (3,) and actions Box(-2.0, 2.0, (1,), float32); this "
        "agent was made for (3,) and Box(-1.0, 1.0, (1,), float32)",
        lambda: agent().learn_online("Pendulum-v1", 5, make_dataset()),
    ),
]
