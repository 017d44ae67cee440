"""Bad input of what is handed on, of own recordings, and of evaluation without an environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cases import CLI, FILE, PLAY, PREDICT, Case, agent, play
from factory import make_dataset

from qgpo import BC, QGPO, BCConfig, evaluate_offline, load_from_folder, save_to_folder
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.envs.data.windows import windowed
from qgpo.scripts import data

LOG = "obs,action,t,reward,trial\n0,0.5,0.0,1,0\n1,0.5,0.1,1,0\n2,0.5,0.2,1,0\n3,0.1,0.9,1,0\n"


def shared() -> Path:
    return save_to_folder(agent(), "shared", clip=False)


def with_file(name: str) -> None:
    (shared() / name).write_bytes(b"")
    load_from_folder("shared")


def other_bytes() -> None:
    with open(shared() / "checkpoint.zip", "ab") as file:
        file.write(b" ")
    load_from_folder("shared")


def recording(*flags: str, text: str = LOG) -> Any:
    def provoke() -> None:
        Path("log.csv").write_text(text, encoding="utf-8")
        data.main(["import", "log.csv", *flags])

    return provoke


def state_of_others() -> None:
    seen = windowed(make_dataset(), history=2)
    one = BC(BCConfig(steps=1, batch_size=4, hidden=(4,)), device="cpu").learn(seen)
    _, state = one.predict(make_dataset().observations[:2])
    one.predict(make_dataset().observations[0], state)


CASES = [
    Case(
        FILE,
        "an agent of the package that is not there",
        ValueError,
        "name='hopper/none', expected one of […], trained QGPO agents in the package",
        lambda: QGPO.pretrained("hopper/none"),
    ),
    Case(
        FILE,
        "a folder with a pickle",
        CheckpointError,
        "folder 'shared' holds ['policy.pkl']: an agent of qgpo consists of config.json and "
        "checkpoints (JSON and safetensors in a zip) beside text and pictures. Pickles and code "
        "are never read",
        lambda: with_file("policy.pkl"),
    ),
    Case(
        FILE,
        "a folder whose checkpoint was changed",
        CheckpointError,
        "'shared/checkpoint.zip' has other bytes than config.json states: fetch or save it again",
        other_bytes,
    ),
    Case(
        FILE,
        "a folder to save to that is not empty",
        ValueError,
        "folder 'shared' exists and is not empty: choose another one",
        lambda: (shared(), shared()),
    ),
    Case(
        FILE,
        "a licence that is no identifier",
        ValueError,
        "license='All rights reserved', expected an identifier of the hub, such as 'mit', "
        "'apache-2.0' or 'cc-by-4.0' ('unknown' states none)",
        lambda: save_to_folder(agent(), "shared", license="All rights reserved"),
    ),
    Case(
        PREDICT,
        "the state of other observations",
        ValueError,
        "state is […], expected what predict() returned for as many observations, […]; at the "
        "start of an episode None",
        state_of_others,
    ),
    Case(
        PLAY,
        "offline, on data in other spaces",
        ValueError,
        "dataset 'test/made/by-hand-v0' has observations (4,) and actions Box(…), this QGPO was "
        "made for (3,) and Box(…)",
        lambda: evaluate_offline(agent(), make_dataset(observation_dim=4)),
    ),
    Case(
        CLI,
        "evaluate: offline, in an environment",
        SystemExit,
        "error: --offline plays nothing: leave --env-id away",
        play("--offline", "--env-id", "Pendulum-v1"),
    ),
    Case(
        CLI,
        "data: a recording with gaps",
        SystemExit,
        "bad: time; nothing was written",
        recording("--dataset-id", "mine/arm-v0", "--time", "t"),
    ),
    Case(
        CLI,
        "data: a recording without the column",
        SystemExit,
        "error: log.csv: no column is called 'torque'; there are 'obs', 'action', 't', 'reward', "
        "'trial' (--actions)",
        recording("--dataset-id", "mine/arm-v0", "--actions", "torque"),
    ),
    Case(
        CLI,
        "data: a recording without rewards",
        SystemExit,
        "error: log.csv: no reward column: name one with --reward, or say --no-reward and train BC",
        recording("--dataset-id", "mine/arm-v0", text="obs,action\n0,0.5\n1,0.2\n"),
    ),
]
