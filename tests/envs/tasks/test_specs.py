from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from factory import PAPER_LIKE, WHITENED, make_dataset, numbered_episodes, write_buffers
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from qgpo import QGPO, evaluate, load_dataset
from qgpo.envs.store.catalogue import catalogue
from qgpo.envs.store.checking import check_dataset
from qgpo.envs.store.combining import combine
from qgpo.envs.store.local import folder_of
from qgpo.envs.store.metadata import differences
from qgpo.envs.store.opening import open_dataset, recorded_in
from qgpo.envs.tasks.arguments import SpecError, check_arguments
from qgpo.envs.tasks.families import find_family
from qgpo.envs.tasks.making import limit_doubts, make_env, to_play
from qgpo.envs.tasks.reference import ReferenceScores
from qgpo.envs.tasks.specs import spec_from_json, spec_to_json
from qgpo.experiments import documents
from qgpo.experiments.folder import RunFolder
from qgpo.experiments.plan import PlanError, read_plan
from qgpo.scripts import evaluate as evaluate_script
from qgpo.scripts import train as train_script

ID = "test/foreign-v0"
PENDULUM = gym.spec("Pendulum-v1")
MODULE = """
import gymnasium as gym, numpy as np
from gymnasium import spaces
open("imported", "w").close()
class Gain(gym.Env):
    observation_space = spaces.Box(-9, 9, (3,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    def __init__(self, gain=1.0, file=None):
        self.gain = gain
    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}
    def step(self, action):
        return np.zeros(3, np.float32), self.gain, False, False, {}
class Wrapper(gym.Wrapper):
    pass
gym.register("Gain-v0", entry_point="foreign:Gain", max_episode_steps=20)
"""
RESCALED = {
    "name": "RescaleAction",
    "entry_point": "gymnasium.wrappers.transform_action:RescaleAction",
    "kwargs": {"min_action": -1, "max_action": 1},
}
FOREIGN = {"name": "Wrapper", "entry_point": "foreign:Wrapper", "kwargs": {}}


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """A module whose import leaves a file behind; it can be imported, and registers Gain-v0."""
    (tmp_path / "foreign.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("foreign", None)
    gym.registry.pop("Gain-v0", None)


def stored(changes=(), drop=(), dataset_id=ID, **spec):
    """A dataset whose metadata name an environment as they please."""
    rng = np.random.default_rng(0)
    buffers = [
        dataclasses.replace(
            b,
            observations=rng.normal(size=(21, 3)).astype(np.float32),
            actions=rng.uniform(-1, 1, (20, 1)).astype(np.float32),
        )
        for b in numbered_episodes((20, 20), (False, False))
    ]
    box = {"observation_space": spaces.Box(-9, 9, (3,)), "action_space": spaces.Box(-1, 1, (1,))}
    write_buffers(buffers, dataset_id, **box)
    path = folder_of(dataset_id) / "data" / "metadata.json"
    plain = {**json.loads(PENDULUM.to_json()), **spec}
    metadata = {**json.loads(path.read_text()), "env_spec": json.dumps(plain), **dict(changes)}
    path.write_text(json.dumps({k: v for k, v in metadata.items() if k not in drop}))
    return dataset_id


NAMES_OF_CODE = [
    {"id": "Gain-v0", "entry_point": "foreign:Gain"},
    {"id": "Shell-v0", "entry_point": "subprocess:getoutput", "kwargs": {"cmd": "touch imported"}},
    {"id": "foreign:Gain-v0", "entry_point": None},
    {"id": "Gain-v0", "vector_entry_point": "foreign:Gain"},
    {"entry_point": "foreign:Gain"},
    {"additional_wrappers": [FOREIGN]},
]


@pytest.mark.parametrize("spec", NAMES_OF_CODE, ids=lambda spec: str(next(iter(spec.items()))))
@pytest.mark.parametrize(
    "drop", [(), ("observation_space",), ("observation_space", "action_space")]
)
def test_no_dataset_has_code_imported(imported, spec, drop):
    stored(drop=drop, **spec)
    recorded_in(ID), catalogue("local"), check_dataset(ID)
    for act in (
        lambda: open_dataset(ID, download=False),
        lambda: make_env(load_dataset(ID, download=False).env_spec),
        lambda: evaluate(object(), load_dataset(ID, download=False), 1),
    ):
        with contextlib.suppress(ValueError, TypeError):
            act()
    assert not imported.exists()


def test_evaluation_environments_and_combinations_import_nothing(imported):
    foreign = EnvSpec("Gain-v0", entry_point="foreign:Gain").to_json()
    stored({"eval_env_spec": foreign})
    stored({"eval_env_spec": foreign}, dataset_id="test/other-v0")
    both = combine([ID, "test/other-v0"], "test/both-v0", progress_bar=False)
    for dataset in (load_dataset(ID), load_dataset(both)):
        assert dataset.env_spec.id == "Gain-v0"
        with pytest.raises(SpecError, match="'Gain-v0' cannot be made: it is not registered"):
            make_env(dataset.env_spec)
    assert not imported.exists()


@pytest.mark.parametrize(
    "source",
    [
        "from gymnasium import register\nregister(id='Gain-v0', entry_point='gymnasium:Env')",
        "import gymnasium as gym\ngym.register('Gain-v0', 'gymnasium:Env', max_episode_steps=3)",
        "from gymnasium.envs import registration\nregistration.register('Gain-v0', 'x:Y')",
    ],
)
def test_a_module_of_pythonpath_that_registers_the_id_is_imported_to_play(
    source, tmp_path, monkeypatch
):
    (tmp_path / "broken.py").write_text("register('Gain-v0'")
    (tmp_path / "own.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    stored(id="Gain-v0", entry_point="subprocess:getoutput")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    spec = load_dataset(ID, download=False).env_spec
    check_dataset(ID)
    assert "own" not in sys.modules
    named = "registered by the module 'own' of your PYTHONPATH"
    with pytest.warns(UserWarning, match=named), contextlib.suppress(ValueError):
        make_env(spec)
    assert sys.modules.pop("own")
    assert gym.registry.pop("Gain-v0")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "raise SystemExit",
        "class Gain: pass  # Gain-v0",
        "print('Gain-v0')",
        "register('Gain-v01', 'x:Y')",
        "NAME = 'Gain-v0'\nregister(NAME, 'x:Y')",
    ],
)
def test_no_other_module_of_pythonpath_is_imported(source, tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    stored(id="Gain-v0", entry_point="foreign:Gain")
    with pytest.raises(SpecError, match="not registered"):
        make_env(load_dataset(ID, download=False).env_spec)
    assert "foreign" not in sys.modules


def test_spaces_come_from_the_registered_environment():
    stored(drop=("action_space",))
    assert open_dataset(ID, download=False).action_space == spaces.Box(-2.0, 2.0, (1,), np.float32)
    stored(drop=("action_space",), dataset_id="test/nowhere-v0", id="Nowhere-v0")
    with pytest.raises(ValueError, match="'test/nowhere-v0' does not state its spaces, and envir"):
        open_dataset("test/nowhere-v0", download=False)
    stored(drop=("action_space", "env_spec"), dataset_id="test/nothing-v0")
    with pytest.raises(ValueError, match="states neither its spaces nor an environment"):
        open_dataset("test/nothing-v0", download=False)


def test_the_user_s_own_module_is_imported_and_plays_the_recorded_arguments(imported):
    gain = {"id": "Gain-v0", "kwargs": {"gain": 7.0}, "max_episode_steps": 2}
    stored({"ref_min_score": 0.0, "ref_max_score": 280.0}, **gain)
    dataset = load_dataset(ID)
    agent = QGPO(WHITENED, device="cpu")
    agent.prepare(dataset)
    agent.save("agent.zip")
    folder = RunFolder(Path())
    documents.write(folder.config, {"args": {"env_id": "foreign:Gain-v0"}, "measured": {}})
    Path("agent.zip").rename(folder.checkpoint)

    def play(env_id=None):
        args = evaluate_script.Args((Path(),), env_id=env_id, n_episodes=1, progress_bar=False)
        args.output, args.device, args.overwrite = Path("played.json"), "cpu", True
        args.max_episode_steps = 2
        evaluate_script.main(args)
        return json.loads(args.output.read_text())["evaluations"][0]

    with pytest.raises(SystemExit, match=r"config.json: env_id='foreign:Gain-v0' names a module"):
        play()
    assert not imported.exists()
    played = play("foreign:Gain-v0")
    assert imported.exists()
    assert (played["mean"], played["score"]) == (14.0, 5.0)
    played = play("Gain-v0")  # as it is registered
    assert (played["mean"], played["score"]) == (2.0, None)
    assert evaluate(agent, dataset, 1, max_episode_steps=2).mean == 14.0  # registered by now


@pytest.mark.parametrize("env_id", ["foreign:Gain-v0", 5, ["Gain-v0"]])
def test_ids_in_runs_and_plans_import_nothing(imported, env_id):
    args = train_script.Args(run_dir=Path("run"), env_id=env_id)
    Path("run").mkdir()
    document = {"args": json.loads(json.dumps(dataclasses.asdict(args), default=str))}
    documents.write(RunFolder(Path("run")).config, document)
    with pytest.raises(SystemExit, match="env_id="):
        train_script.parse(["--resume", "run"])
    if isinstance(env_id, str):
        again = train_script.parse(["--resume", "run", "--env-id", env_id])
        assert again.env_id == env_id
    agent = f'[[agents]]\nagent = "QGPO"\nenv_id = {json.dumps(env_id)}'
    Path("plan.toml").write_text(f'datasets = ["a/b-v0"]\nseeds = [0]\n{agent}\n')
    with pytest.raises(PlanError, match="env_id="):
        read_plan(Path("plan.toml"))
    assert not imported.exists()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"xml_file": "/etc/passwd"},
        {"xml_file": "assets.xml"},
        {"config": {"policy": ["pkg.module.Class"]}},
        {"~/home": 1},
        {"maker": "module:function"},
    ],
)
def test_arguments_that_may_name_a_file_or_code_are_refused(kwargs):
    spec = spec_from_json(dataclasses.replace(gym.spec("Hopper-v5"), kwargs=kwargs).to_json())
    if "~/home" in kwargs:
        spec.kwargs = {"paths": kwargs}
    with pytest.raises(SpecError, match="may name a file or code"):
        make_env(spec)


def test_arguments_of_installed_code_and_plain_ones_are_taken(imported):
    sys.path_importer_cache.clear()
    assert to_play("foreign:Gain-v0", None, None)[0] == "foreign:Gain-v0"
    gym.register("Mine-v0", entry_point="foreign:Gain", kwargs={"file": "/my/model.xml"})
    try:
        spec = EnvSpec("Mine-v0", kwargs={"file": "/my/model.xml", "gain": 0.5})
        assert make_env(spec).unwrapped.gain == 0.5
        with pytest.raises(SpecError):
            make_env(EnvSpec("Mine-v0", kwargs={"file": "/my/other.xml"}))
    finally:
        del gym.registry["Mine-v0"]


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "[]",
        "{}",
        '{"id": 5}',
        '{"id": "A v0"}',
        '{"id": "A-v0", "kwargs": [1]}',
        '{"id": "A-v0", "max_episode_steps": 0}',
        '{"id": "A-v0", "max_episode_steps": "9"}',
        '{"id": "A-v0", "additional_wrappers": [5]}',
        '{"id": "A-v0", "additional_wrappers": [{"name": "B"}]}',
        "[" * 100_000,
        None,
    ],
)
def test_what_is_no_spec_is_refused(text):
    with pytest.raises(SpecError, match="cannot be read"):
        spec_from_json(text)


@pytest.mark.parametrize("mode", ["human", "rgb_array", "rgb_array_list"])
def test_how_a_recording_was_watched_is_forgotten(mode):
    spec = dataclasses.replace(gym.spec("Hopper-v5"), kwargs={"render_mode": mode})
    assert "render_mode" not in spec_to_json(spec)
    assert make_env(spec).render_mode is None
    assert make_env(spec, render_mode="rgb_array").render_mode == "rgb_array"


class Reach(gym.Env):
    observation_space, action_space = spaces.Box(-9, 9, (3,)), spaces.Box(-1, 1, (1,))

    def __init__(self, goal=None, error=None):
        if error is not None:
            raise {"key": KeyError, "value": ValueError, "type": TypeError}[error](error)


@pytest.fixture
def reach():
    gym.register("test/Reach-v0", entry_point=Reach, max_episode_steps=5)
    yield gym.spec("test/Reach-v0")
    del gym.registry["test/Reach-v0"]


def test_a_class_as_entry_point_is_played_and_saved_by_its_id(reach):
    agent = QGPO(PAPER_LIKE, device="cpu")
    agent.prepare(make_dataset(env_spec=reach))
    agent.save("agent.zip")
    again = QGPO.load("agent.zip", device="cpu").env_spec
    assert (again.id, again.entry_point) == ("test/Reach-v0", None)
    assert isinstance(make_env(again).unwrapped, Reach)
    assert isinstance(make_env(EnvSpec("test/Other-v0", entry_point=Reach)).unwrapped, Reach)


@pytest.mark.parametrize("goal", [np.ones(3), Reach, {1, 2}])
def test_arguments_that_no_file_holds_are_refused_before_training(reach, goal):
    with pytest.raises(
        ValueError, match=r"has the argument goal=.*which cannot be stored in a file"
    ):
        make_dataset(env_spec=dataclasses.replace(reach, kwargs={"goal": goal}))


@pytest.mark.parametrize("kwargs", [{"gone": True}, *({"error": e} for e in ("key", "value"))])
def test_whatever_an_environment_raises_is_a_value_error(reach, kwargs):
    with pytest.raises(ValueError, match=r"'test/Reach-v0' cannot be made with the arguments {'"):
        make_env(dataclasses.replace(reach, kwargs=kwargs))


SKIPPING = gym.wrappers.MaxAndSkipObservation
REPEATING = getattr(gym.wrappers, "RepeatAction", SKIPPING)  # since Gymnasium 1.3
WRAPPED = {
    "action": (gym.wrappers.RescaleAction, {"min_action": -1.0, "max_action": 1.0}),
    "observation": (gym.wrappers.RescaleObservation, {"min_obs": -100.0, "max_obs": 100.0}),
    "reward": (gym.wrappers.ClipReward, {"min_reward": -1.0, "max_reward": 0.0}),
    "steps": (gym.wrappers.MaxAndSkipObservation, {"skip": 3}),
}


class Swing:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return 0.9 * np.tanh(observation[:, 2:]).astype(np.float32), None


@pytest.mark.parametrize("what", sorted(WRAPPED))
def test_wrappers_that_change_something_are_made_again(what):
    wrapper, kwargs = WRAPPED[what]
    env = gym.wrappers.RecordEpisodeStatistics(wrapper(gym.make("Pendulum-v1"), **kwargs))
    spec = spec_from_json(env.spec.to_json())
    assert [one.name for one in spec.additional_wrappers] == [wrapper.__name__]
    assert spec_from_json(spec_to_json(spec)) == spec
    recorded, plain = (evaluate(Swing(), one, 2).returns for one in (env, "Pendulum-v1"))
    assert evaluate(Swing(), spec, 2).returns == recorded != plain


STACKED = gym.wrappers.FrameStackObservation.wrapper_spec(stack_size=100)
REPEATED = gym.wrappers.MaxAndSkipObservation.wrapper_spec(skip=40)


@pytest.mark.parametrize(
    ("wrappers", "said"),
    [
        ((STACKED, STACKED), "by 10000, expected at most 1000"),
        ((STACKED, REPEATED), "by 4000, expected at most 1000"),
        ((REPEATED,) * 3, "by 64000, expected at most 1000"),
        ((gym.wrappers.ClipAction.wrapper_spec(),) * 21, "21 wrappers, expected at most 20"),
    ],
)
def test_wrappers_that_multiply_each_other_are_refused(wrappers, said):
    spec = dataclasses.replace(PENDULUM, additional_wrappers=wrappers)
    with pytest.raises(SpecError, match=said):
        make_env(spec_from_json(spec.to_json()))


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ({"frame_skip": 10**9}, "frame_skip=1000000000, expected an integer from 1 to 1000"),
        ({"frame_skip": -1}, "frame_skip=-1, expected an integer from 1"),
        ({"frameskip": [2, 10**7]}, "frameskip=10000000, expected"),
        ({"n_substeps": 0}, "n_substeps=0, expected"),
        ({"width": -(10**7)}, "width=-10000000, expected an integer from -1000000"),
        ({"camera": {"id": [10**30]}}, "camera=1000000000000000000000000000000, expected"),
        ({"g": math.nan}, "g=nan: not a number"),
    ],
)
def test_numbers_out_of_reason_are_refused_by_name(argument, said):
    with pytest.raises(SpecError, match=said):
        check_arguments("Mine-v0", argument)
    check_arguments("Mine-v0", argument, argument)  # installed code says so
    usual = {"frame_skip": 5, "healthy_z_range": [0.7, math.inf], "render": True, "width": 480}
    check_arguments("Mine-v0", usual)


@pytest.mark.parametrize(
    ("wrap", "most"),
    [
        (lambda env: REPEATING(env, 3), 7),
        (lambda env: gym.wrappers.ClipReward(gym.wrappers.MaxAndSkipObservation(env, 4), -1), 5),
        (lambda env: SKIPPING(SKIPPING(env, 2), 3), 4),
        (lambda env: gym.wrappers.ClipReward(env, -1, 0), None),
    ],
)
def test_a_limit_that_may_be_outside_of_repeated_steps_is_said(wrap, most):
    inside = wrap(gym.make("Pendulum-v1"))
    assert not list(limit_doubts(inside.spec))
    outside = gym.wrappers.TimeLimit(inside, 20)
    said = list(limit_doubts(spec_from_json(spec_to_json(outside.spec))))
    assert [f"at most {most} steps" in text for text in said] == ([] if most is None else [True])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert evaluate(Swing(), outside.spec, 1).lengths == [20 if most is None else most]
    messages = [str(one.message) for one in told]
    others = [text for text in messages if "no normalised scores" not in text]
    assert others == [f"Pendulum-v1: {text}" for text in said]
    assert evaluate(Swing(), outside, 1).lengths == [20]


@pytest.mark.parametrize(
    ("wrapper", "said"),
    [
        (WrapperSpec("Mine", "mine.wrappers:Mine", {}), "Mine (mine.wrappers:Mine)"),
        (WrapperSpec("Monitor", "mine.wrappers:Monitor", {}), "Monitor (mine.wrappers:Monitor)"),
        (gym.wrappers.NormalizeObservation.wrapper_spec(), "its statistics are not recorded"),
        (WrapperSpec(**{**RESCALED, "kwargs": None}), "cannot be recreated"),
        (
            WrapperSpec(**{**RESCALED, "kwargs": {"low": 1}}),
            "whose arguments are not accepted here",
        ),
        (gym.wrappers.FrameStackObservation.wrapper_spec(stack_size=10**9), "at most 1000"),
        (gym.wrappers.MaxAndSkipObservation.wrapper_spec(skip=1e9), "expected an integer"),
    ],
)
def test_other_wrappers_are_refused_by_name(wrapper, said):
    spec = dataclasses.replace(PENDULUM, additional_wrappers=(wrapper,))
    with pytest.raises(SpecError) as caught:
        make_env(spec_from_json(spec.to_json()))
    assert said in str(caught.value)


def test_wrappers_of_the_registered_environment_are_not_added_twice():
    gym.register("test/Wrapped-v0", lambda: gym.wrappers.ClipReward(gym.make("Pendulum-v1"), -1, 0))
    try:
        env = make_env("test/Wrapped-v0")
        again = make_env(spec_from_json(spec_to_json(env.spec)))
        assert str(again).count("ClipReward") == str(env).count("ClipReward") == 1
        assert "ClipReward" in str(make_env(EnvSpec("test/Wrapped-v0")))
        other = dataclasses.replace(env.spec, additional_wrappers=(WrapperSpec(**RESCALED),))
        with pytest.raises(SpecError, match=r"recorded with \['RescaleAction.*with \['ClipReward"):
            make_env(other)
    finally:
        del gym.registry["test/Wrapped-v0"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"kwargs": {"frame_skip": 4}}, None),
        ({"kwargs": {"healthy_z_range": [0.7, float("inf")]}}, None),
        ({"kwargs": {"render_mode": "human"}}, None),
        ({"kwargs": {"frame_skip": 5}}, "has the argument frame_skip=5"),
        ({"kwargs": {"ctrl_cost_weight": 0.0}}, "has the argument ctrl_cost_weight=0.0"),
        ({"max_episode_steps": 3000}, "are for 1000 steps, not for max_episode_steps=3000"),
        ({"max_episode_steps": 10}, "are for 1000 steps, not for max_episode_steps=10"),
        ({"max_episode_steps": None}, "are for 1000 steps, not for max_episode_steps=None"),
        ({"kwargs": {"gone": None}}, "has the argument gone=None"),
        ({"id": "Hopper-v4"}, "they are for Hopper-v5, not for Hopper-v4"),
        ({"additional_wrappers": (WrapperSpec(**RESCALED),)}, None),
        ({"additional_wrappers": (WrapperSpec(**FOREIGN),)}, "is wrapped in Wrapper"),
    ],
)
def test_reference_returns_hold_in_the_row_s_environment_alone(changes, reason):
    spec = dataclasses.replace(gym.spec("Hopper-v5"), **changes)
    family = find_family("mujoco/hopper/medium-v0")
    assert (family.other_task(spec) or "").endswith(reason or "")
    assert (family.other_task(spec) is None) is (reason is None)
    assert (family.scores({}, spec) is None) is (reason is not None)
    assert len(list(family.without_scores({}, spec))) == (reason is not None)


def test_the_data_s_reference_holds_in_the_recorded_environment_alone():
    own = ReferenceScores(0.0, 1.0, "dataset metadata")
    recorded = dataclasses.replace(PENDULUM, kwargs={"g": 9.0})
    assert to_play(None, recorded, own) == (recorded, own)
    assert to_play("Pendulum-v1", PENDULUM, own) == ("Pendulum-v1", own)
    assert to_play("gymnasium:Pendulum-v1", recorded, own) == (recorded, own)
    for other in (recorded, dataclasses.replace(PENDULUM, max_episode_steps=9), None):
        assert to_play("Pendulum-v1", other, own) == ("Pendulum-v1", None)
    assert to_play("Hopper-v5", PENDULUM, own) == ("Hopper-v5", None)


@pytest.mark.parametrize(
    "pair",
    [
        (2.0, 1.0),
        (1.0, 1.0),
        (0.0, float("nan")),
        ("0", "1"),
        (None, 1.0),
        (-1e308, 1e308),
        (0, 10**400),
        (False, True),
        (0.0, True),
    ],
)
def test_what_is_no_scale_scores_nothing(pair):
    metadata = dict(zip(("ref_min_score", "ref_max_score"), pair, strict=True))
    assert find_family("mine/a-v0").scores(metadata, PENDULUM) is None
    (said,) = find_family("mine/a-v0").without_scores(metadata, PENDULUM)
    assert "which are ignored" in said
    with pytest.raises(ValueError, match="expected two finite numbers"):
        ReferenceScores(*pair, "by hand")
    assert json.dumps(dataclasses.asdict(ReferenceScores(np.float32(0), np.float32(1), "by hand")))


@pytest.mark.parametrize(
    ("limit", "said"), [(200, None), (50, None), (201, "a limit of 201"), (None, "no step limit")]
)
def test_longer_episodes_than_the_environment_s_are_said(limit, said):
    played = dataclasses.replace(PENDULUM, max_episode_steps=limit)
    found = list(differences(PENDULUM, played))
    assert [said in text for text in found] == ([] if said is None else [True])


def test_an_evaluation_environment_without_the_recording_s_wrappers_is_said():
    recorded = dataclasses.replace(PENDULUM, additional_wrappers=(WrapperSpec(**RESCALED),))
    (said,) = differences(recorded, PENDULUM)
    assert "RescaleAction(min_action=-1, max_action=1)" in said
    assert not list(differences(recorded, recorded))
