"""Full disks, values that are not finite, pickles in zips, other data on resume."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from agent_tester import StopAfter, same_agents
from commands import run_in_a_copy
from factory import ROOT, WHITENED, make_dataset, same_parameters, subprocess_environment

from qgpo import QGPO
from qgpo.agents.core.callbacks import SaveCheckpoint
from qgpo.agents.core.checkpoint import CheckpointError, CheckpointWriteError
from qgpo.agents.core.training import NonFiniteError


@pytest.fixture(scope="module")
def trained():
    return QGPO(WHITENED, seed=1, device="cpu").learn(make_dataset())


@pytest.mark.filterwarnings("error")
def test_a_read_only_observation_is_read_without_a_warning(trained):
    observation = np.zeros(3, dtype=np.float32)
    observation.flags.writeable = False
    assert np.isfinite(trained.predict(observation)[0]).all()
    trained.seed_predictions(np.int64(3))
    trained.set_random_seed(np.uint8(3))
    with pytest.raises(ValueError, match="seed=None, expected an integer"):
        trained.seed_predictions(None)


@pytest.mark.parametrize(
    "observation",
    [np.zeros(3, "M8[s]"), np.full(3, 1j), [2**70, 0, 0], [1e300, 0, 0], b"abc", np.full(3, "1")],
    ids=["dates", "complex", "large integer", "large", "bytes", "text"],
)
def test_what_data_may_not_hold_is_no_observation(observation, trained):
    with pytest.raises(ValueError, match="is not an array of numbers"):
        trained.predict(observation)


FILL = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from qgpo import QGPO
from qgpo.agents.core.callbacks import SaveCheckpoint
from factory import WHITENED, make_dataset
agent = QGPO(WHITENED, device="cpu")
seen = []
def fill(scope, _):
    seen.append(1)
    if len(seen) == 8:
        limit = Path("agent.zip").stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return True
from stable_baselines3.common.callbacks import ConvertCallback
agent.learn(make_dataset(), [ConvertCallback(fill), SaveCheckpoint(Path("agent.zip"), 5)])
"""


def test_a_write_that_fails_half_way_leaves_the_former_checkpoint(tmp_path, tmp_path_factory):
    script = tmp_path_factory.mktemp("script") / "fill.py"
    script.write_text(FILL)
    environment = subprocess_environment(PYTHONPATH=str(ROOT / "tests" / "support"))
    done = run_in_a_copy([str(script)], tmp_path, environment)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "CheckpointWriteError" in last
    assert "'agent.zip' could not be written" in last
    assert "the previous one there is unchanged" in last
    assert [p.name for p in tmp_path.iterdir()] == ["agent.zip"]
    agent = QGPO.load(tmp_path / "agent.zip", device="cpu")
    assert sum(agent.progress.values()) == 5
    agent.learn(make_dataset(), reset_num_timesteps=False)
    assert same_agents(agent, QGPO(WHITENED, device="cpu").learn(make_dataset()))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting needs root")
def test_a_full_file_system_leaves_the_former_checkpoint(trained, tmp_path):
    trained.save(tmp_path / "agent")
    size = (tmp_path / "agent.zip").stat().st_size
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size={size * 3 // 2 // 4096 * 4096}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        callback = SaveCheckpoint(disk / "agent.zip", 1)
        agent = QGPO(WHITENED, seed=1, device="cpu")
        with pytest.raises(CheckpointWriteError, match=r"No space left.*previous one there"):
            agent.learn(make_dataset(), callback)
        loaded = QGPO.load(disk / "agent.zip", device="cpu")
        assert 0 < sum(loaded.progress.values()) == sum(agent.progress.values()) - 1
        assert [p.name for p in disk.iterdir()] == ["agent.zip"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("what", ["loss", "grad_norm"])
@pytest.mark.parametrize("stage", ["whitening", "behavior", "critic", "energy"])
def test_a_value_that_is_not_finite_stops_before_anything_changes(stage, what, monkeypatch):
    agent = QGPO(WHITENED, seed=1, device="cpu")
    optimize = agent.training.optimize
    before = {}

    def poisoned(name, loss, rate):
        if name == stage and agent.progress[stage] == 2:
            agent.save("good")
            before.update({k: v.clone() for k, v in agent.networks.state_dict().items()})
            if what == "loss":
                loss = loss * float("nan")
            else:  # finite, with an infinite slope
                parameter = agent.optimizers[name].param_groups[0]["params"][0]
                loss = loss + torch.sqrt((parameter * 0.0).abs().sum())
        return optimize(name, loss, rate)

    monkeypatch.setattr(agent.training, "optimize", poisoned)
    with pytest.raises(NonFiniteError) as caught:
        agent.learn(make_dataset(), log_interval=1000)
    text = str(caught.value)
    assert f"{stage}/{what} is" in text
    assert f"at step 3 of stage '{stage}'" in text
    assert f"The last good checkpoint is 'good.zip' (timestep {agent.num_timesteps})" in text
    assert "learning rate" in text
    assert same_parameters(before, agent.networks.state_dict())
    assert QGPO.load("good", device="cpu").progress == agent.progress


def test_parameters_that_are_not_finite_never_replace_a_good_file(tmp_path):
    agent = QGPO(WHITENED, device="cpu").learn(make_dataset())
    agent.save("agent")
    before = (tmp_path / "agent.zip").read_bytes()
    next(agent.critic.network.parameters()).data[0] = np.nan
    with pytest.raises(NonFiniteError, match=r"not saved: critic\..*'agent.zip' is unchanged"):
        agent.save("agent")
    assert (tmp_path / "agent.zip").read_bytes() == before


class Touch:
    """Unpickling it leaves a trace."""

    def __reduce__(self):
        return (open, ("executed", "w"))


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezip(members, comment=b"", extra=b""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.extra = extra
            archive.writestr(info, content)
        archive.comment = comment
    return buffer.getvalue()


PAYLOAD = pickle.dumps(Touch())
PLACES = {
    "an extra member": lambda m: rezip([*m.items(), ("data.pkl", PAYLOAD)]),
    "a member in a folder": lambda m: rezip([*m.items(), ("archive/data.pkl", PAYLOAD)]),
    "a doubled member": lambda m: rezip([*m.items(), ("tables.safetensors", PAYLOAD)]),
    "the comment": lambda m: rezip(m.items(), comment=PAYLOAD),
    "an extra field": lambda m: rezip(
        m.items(), extra=b"\x99\x99" + len(PAYLOAD).to_bytes(2, "little") + PAYLOAD
    ),
    "before the zip": lambda m: PAYLOAD + rezip(m.items()),
    "after the zip": lambda m: rezip(m.items()) + PAYLOAD,
    **{
        f"instead of {name}": lambda m, name=name: rezip({**m, name: PAYLOAD}.items())
        for name in (
            "checkpoint.json",
            "modules.safetensors",
            "optimizers.safetensors",
            "tables.safetensors",
        )
    },
    **{
        f"at the end of {name}": lambda m, name=name: rezip({**m, name: m[name] + PAYLOAD}.items())
        for name in ("modules.safetensors", "tables.safetensors")
    },
}


@pytest.mark.parametrize("place", sorted(PLACES))
def test_a_pickle_anywhere_is_refused_and_not_executed(place, trained, tmp_path):
    trained.save("agent")
    path = tmp_path / "agent.zip"
    path.write_bytes(rezip(members_of(path).items()))
    QGPO.load(path, device="cpu")
    path.write_bytes(PLACES[place](members_of(path)))
    with pytest.raises(CheckpointError, match=r"agent\.zip"):
        QGPO.load(path, device="cpu")
    assert not Path("executed").exists()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("stop", [2, 6, 11, 15, 18, 22])
def test_other_data_are_taken_when_asked_for(stop):
    agent = QGPO(WHITENED, seed=2, device="cpu").learn(make_dataset(), StopAfter(stop))
    constants = agent.behavior.normalizer.mean.clone()
    other = make_dataset((7, 2, 9, 4, 4), seed=5)
    with pytest.raises(ValueError, match="allow_other_dataset=True"):
        agent.learn(other, reset_num_timesteps=False)
    agent.learn(other, reset_num_timesteps=False, allow_other_dataset=True)
    assert agent.num_timesteps == agent.total_timesteps
    assert agent.dataset_fingerprint == other.fingerprint
    assert torch.equal(agent.behavior.normalizer.mean, constants)
    assert agent.predict(np.zeros(3))[0].shape == (1,)


def test_a_finished_agent_has_nothing_left_to_do(trained):
    before = {k: v.clone() for k, v in trained.networks.state_dict().items()}
    trained.learn(make_dataset(), reset_num_timesteps=False)
    assert same_parameters(before, trained.networks.state_dict())
