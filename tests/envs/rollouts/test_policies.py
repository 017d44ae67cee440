from __future__ import annotations

import pickle
import zipfile

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from qgpo.envs.rollouts.sb3_policies import load_policy
from qgpo.envs.rollouts.vecnormalize import read_vecnormalize

BOXES = {
    "unit": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "uneven": spaces.Box(
        np.array([-2.0, 0.0], np.float32), np.array([0.5, 3.0], np.float32), dtype=np.float32
    ),
}


class Blank(gym.Env):
    """Spaces and nothing else."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, True, False, {}


MODELS = {
    "SAC": (SAC, {"net_arch": [8, 8]}),
    "TD3": (TD3, {"net_arch": [8, 8]}),
    "PPO": (PPO, {"net_arch": [8, 8]}),
    "PPO-relu": (PPO, {"net_arch": {"pi": [8], "vf": [4]}, "activation_fn": nn.ReLU}),
    "SAC-tanh": (SAC, {"net_arch": [8], "activation_fn": nn.Tanh}),
    "PPO-silu": (PPO, {"net_arch": [8], "activation_fn": nn.SiLU}),
    "PPO-mish": (PPO, {"net_arch": [8], "activation_fn": nn.Mish}),
    "PPO-leaky": (PPO, {"net_arch": [8], "activation_fn": nn.LeakyReLU}),
    "PPO-elu": (PPO, {"net_arch": [8], "activation_fn": nn.ELU}),
}


def make_model(name, box):
    algorithm, policy_kwargs = MODELS[name]
    off_policy = {} if algorithm is PPO else {"buffer_size": 10}
    env = Blank(BOXES[box])
    return algorithm(
        "MlpPolicy", env, policy_kwargs=policy_kwargs, seed=0, device="cpu", **off_policy
    )


@pytest.fixture
def no_unpickling(monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    for module in (pickle, cloudpickle):
        monkeypatch.setattr(module, "load", forbidden)
        monkeypatch.setattr(module, "loads", forbidden)


@pytest.mark.parametrize("box", sorted(BOXES))
@pytest.mark.parametrize("algorithm", sorted(set(MODELS) - {"PPO-leaky", "PPO-elu"}))
def test_saved_model_acts_as_the_model(algorithm, box, tmp_path, request):
    model = make_model(algorithm, box)
    with torch.no_grad():  # larger weights, so that bounds are reached
        for name, parameter in model.policy.named_parameters():
            parameter.mul_(100.0 if name.startswith("action_net") else 3.0)
    model.save(tmp_path / "model.zip")
    observations = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    expected, _ = model.predict(observations, deterministic=True)
    request.getfixturevalue("no_unpickling")
    policy = load_policy(tmp_path / "model.zip", BOXES[box])
    actions = policy.act(observations, torch.Generator(), deterministic=True)
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    assert actions.dtype == np.float32
    assert np.ptp(actions, axis=0).min() > 0.1


@pytest.mark.parametrize("name", ["SAC", "PPO"])
def test_sampled_actions_follow_the_generator_and_stay_inside(name, tmp_path):
    make_model(name, "uneven").save(tmp_path / "model.zip")
    box = BOXES["uneven"]
    policy = load_policy(tmp_path / "model.zip", box)
    observations = np.zeros((500, 3))
    first = policy.act(observations, torch.Generator().manual_seed(1))
    assert np.array_equal(first, policy.act(observations, torch.Generator().manual_seed(1)))
    assert not np.array_equal(first, policy.act(observations, torch.Generator().manual_seed(2)))
    assert (first >= box.low).all()
    assert (first <= box.high).all()
    assert len(np.unique(first, axis=0)) > 100


@pytest.mark.parametrize("box", sorted(BOXES))
@pytest.mark.parametrize("algorithm", ["SAC", "PPO"])
def test_actions_are_rounded_to_a_millionth_of_half_their_range(algorithm, box, tmp_path):
    make_model(algorithm, box).save(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip", BOXES[box])
    actions = policy.act(np.random.default_rng(0).normal(size=(50, 3)), torch.Generator())
    low, half = BOXES[box].low.astype(float), (BOXES[box].high - BOXES[box].low).astype(float) / 2
    steps = (actions - (low + half if algorithm == "SAC" else 0.0)) / half * 1e6
    assert np.abs(steps - np.round(steps)).max() < 0.5 * np.abs(steps).max() * 2.0**-22
    assert len(np.unique(actions)) > 40


def test_small_bounds_do_not_round_actions_away(tmp_path):
    box = spaces.Box(-1e-6, 1e-6, (2,), np.float32)
    make_model("PPO", "unit").save(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip", box)
    assert np.abs(policy.act(np.zeros((9, 3)), torch.Generator())).max() > 0.0


def test_snapshot_by_hand(tmp_path):
    from safetensors.torch import save_file

    weights = {
        "mlp_extractor.policy_net.0.weight": torch.tensor([[1.0], [-1.0]]),
        "mlp_extractor.policy_net.0.bias": torch.tensor([0.5, 0.0]),
        "action_net.weight": torch.tensor([[2.0, 4.0]]),
        "action_net.bias": torch.tensor([-1.0]),
        "log_std": torch.zeros(1),
    }
    save_file(weights, tmp_path / "actor.safetensors", metadata={"activation": "relu"})
    policy = load_policy(tmp_path / "actor.safetensors", spaces.Box(-9, 9, (1,), np.float32))
    out = policy.act(np.array([[1.0], [-3.0], [100.0]]), torch.Generator(), deterministic=True)
    # 2 (1.5) - 1; 4 (3) - 1 clipped; 2 (100.5) - 1 clipped
    assert out[:, 0].tolist() == pytest.approx([2.0, 9.0, 9.0], abs=0.5e-6 * 9.0 + 1e-7)


def normalizer(clip_obs=1.5):
    """A VecNormalize with statistics of its own; many observations are clipped."""
    made = VecNormalize(DummyVecEnv([lambda: Blank(BOXES["uneven"])]), clip_obs=clip_obs)
    made.obs_rms.update(np.random.default_rng(1).normal([1.0, -2.0, 0.0], [0.1, 3.0, 1.0], (99, 3)))
    return made


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_statistics_are_read_without_unpickling(protocol, tmp_path, request):
    made = normalizer()
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(made, protocol))
    observations = np.random.default_rng(0).normal(size=(50, 3))
    request.getfixturevalue("no_unpickling")
    normalization = read_vecnormalize(tmp_path / "vecnormalize.pkl")
    expected = made.normalize_obs(observations)
    np.testing.assert_allclose(normalization(observations), expected, rtol=1e-6)
    assert 0.1 < np.mean(np.abs(expected) == 1.5) < 0.9


@pytest.mark.parametrize("algorithm", ["SAC", "PPO"])
def test_a_policy_with_statistics_acts_as_the_model_in_its_vecnormalize(algorithm, tmp_path):
    model, made = make_model(algorithm, "uneven"), normalizer()
    model.save(tmp_path / "model.zip")
    made.save(tmp_path / "vecnormalize.pkl")
    observations = np.random.default_rng(0).normal(size=(50, 3))
    expected, _ = model.predict(made.normalize_obs(observations), deterministic=True)
    files = tmp_path / "model.zip", BOXES["uneven"], tmp_path / "vecnormalize.pkl"
    actions = load_policy(*files).act(observations, torch.Generator(), deterministic=True)
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    without = load_policy(*files[:2]).act(observations, torch.Generator(), deterministic=True)
    assert np.abs(without - expected).max() > 1e-3


def with_variance(value):
    made = normalizer()
    made.obs_rms.var[1] = value
    return made


class ManyParts(Blank):
    observation_space = spaces.Dict({"a": Blank.observation_space})

    def reset(self, *, seed=None, options=None):
        return {"a": np.zeros(3, np.float32)}, {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RunsCode(), "holds no observation statistics"),
        (lambda: {"mean": 0.0}, "holds no observation statistics"),
        (lambda: VecNormalize(normalizer().venv, norm_obs=False), "norm_obs=False"),
        (
            lambda: VecNormalize(DummyVecEnv([lambda: ManyParts(BOXES["unit"])])),
            "holds no observation statistics",
        ),
        (lambda: with_variance(np.nan), "statistics that are not finite"),
        (lambda: with_variance(-1.0), "or negative variances"),
    ],
    ids=["code", "no-vecnormalize", "rewards-only", "dict", "nan", "negative"],
)
def test_other_statistics_are_refused_and_never_run(make, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = make()
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(made))
    with pytest.raises(ValueError, match=message):
        read_vecnormalize(tmp_path / "v.pkl")
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(made)[:-9])
    with pytest.raises(ValueError, match="holds no observation statistics"):
        read_vecnormalize(tmp_path / "v.pkl")
    with pytest.raises(ValueError, match=r"'nowhere.pkl' does not exist"):
        read_vecnormalize("nowhere.pkl")
    assert not (tmp_path / "ran-code").exists()


def test_statistics_of_another_model_are_refused(tmp_path):
    make_model("PPO", "unit").save(tmp_path / "model.zip")
    made = normalizer()
    made.obs_rms.mean, made.obs_rms.var = np.zeros(4), np.ones(4)
    made.save(tmp_path / "v.pkl")
    message = "takes 3 observation dimensions, the statistics are of 4"
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path / "model.zip", BOXES["unit"], tmp_path / "v.pkl")


def write_zip(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)


class RunsCode:
    def __reduce__(self):
        return (eval, ("open('ran-code', 'w').close()",))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("no zip"),
        lambda path: write_zip(path, readme="hello"),
        lambda path: write_zip(path, policy__pth=b"not a tensor file"),
        lambda path: write_zip(path, policy__pth=pickle.dumps(RunsCode())),
        lambda path: torch.save({"a": RunsCode()}, path),
        lambda path: path.mkdir(),
        lambda path: None,
    ],
    ids=["text", "other-zip", "garbage", "pickle", "torch-pickle", "folder", "missing"],
)
def test_wrong_zip_is_refused_and_runs_nothing(make, tmp_path):
    path = tmp_path / "model.zip"
    make(path)
    with pytest.raises(ValueError, match=r"model\.zip"):
        load_policy(path, BOXES["unit"])
    assert not (tmp_path / "ran-code").exists()


def test_pickle_inside_the_weights_is_refused_and_runs_nothing(tmp_path):
    torch.save({"action_net.weight": RunsCode()}, tmp_path / "policy.pth")
    content = (tmp_path / "policy.pth").read_bytes()
    write_zip(tmp_path / "model.zip", policy__pth=content, data=b"{}")
    with pytest.raises(ValueError, match=r"model\.zip"):
        load_policy(tmp_path / "model.zip", BOXES["unit"])
    assert not (tmp_path / "ran-code").exists()


def test_wrong_snapshot_is_refused(tmp_path):
    (tmp_path / "actor.safetensors").write_bytes(b"garbage" * 10)
    with pytest.raises(ValueError, match=r"actor\.safetensors"):
        load_policy(tmp_path / "actor.safetensors", BOXES["unit"])


def test_tensors_without_an_actor_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "actor.safetensors")
    with pytest.raises(ValueError, match="no SB3 actor"):
        load_policy(tmp_path / "actor.safetensors", BOXES["unit"])


@pytest.mark.parametrize("name", ["PPO-leaky", "PPO-elu"])
def test_an_activation_that_is_not_known_is_refused(name, tmp_path):
    make_model(name, "unit").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"activation is .*LU'>, expected one of \['mish', 'relu'"):
        load_policy(tmp_path / "model.zip", BOXES["unit"])


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_exploration_by_the_state_is_refused(algorithm, tmp_path):
    off_policy = {} if algorithm is PPO else {"buffer_size": 10}
    model = algorithm("MlpPolicy", Blank(BOXES["unit"]), use_sde=True, device="cpu", **off_policy)
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="use_sde=True"):
        load_policy(tmp_path / "model.zip", BOXES["unit"])


def test_policy_of_another_environment_is_refused(policy_file):
    with pytest.raises(ValueError, match="another environment"):
        load_policy(policy_file(), BOXES["unit"])
    policy = load_policy(policy_file(), spaces.Box(-2, 2, (1,), np.float32))
    with pytest.raises(ValueError, match="takes 3 observation dimensions, got 4"):
        policy.act(np.zeros((1, 4)), torch.Generator())
