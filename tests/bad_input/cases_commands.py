"""Bad input of command lines."""

from __future__ import annotations

import shutil

from cases import (
    CLI,
    Case,
    held_folder,
    play,
    saved,
    train,
    train_in_run,
    train_over,
)

from qgpo.agents.core.speed import Speed
from qgpo.experiments.folder import RunFolderError


def picture_of_two() -> None:
    shutil.copy(saved(), "other.zip")
    play("--run", "agent.zip", "other.zip", "--env-id", "test/Walk-v0", "--picture")()


CASES = [
    Case(
        CLI,
        "train: an unknown preset",
        SystemExit,
        "error: preset='huge', expected one of ['laptop', 'laptop-support', 'paper'] or a "
        "QGPOConfig",
        train("--preset", "huge"),
    ),
    Case(
        CLI,
        "train: no times the steps",
        SystemExit,
        "error: longer=0, expected a positive number",
        train("--longer", "0"),
    ),
    Case(
        CLI,
        "train: no minutes",
        SystemExit,
        "error: minutes=0, expected a positive number of at most 1e+06",
        train("--minutes", "0"),
    ),
    Case(
        CLI,
        "train: fewer minutes than one step of every stage takes",
        ValueError,
        "minutes=0.1, expected at least 0.501 here: 30 s of the training do not depend on the "
        "number of steps, and every stage has one",
        lambda: Speed(30.0, {"critic": 60.0}, {"critic": 0.01}).factor(0.1),
    ),
    Case(
        CLI,
        "train: minutes and times the steps",
        SystemExit,
        "error: minutes=10 and longer=4: each decides the number of steps; give one of them",
        train("--minutes", "10", "--longer", "4"),
    ),
    Case(
        CLI,
        "train: minutes and stages of another run",
        SystemExit,
        "error: minutes=10 and adopt='run': the stages that are adopted are as long as they were; "
        "give one of them",
        train("--minutes", "10", "--adopt", "run"),
    ),
    Case(
        CLI,
        "train: a negative number of threads",
        SystemExit,
        "error: threads=-1, expected an integer of at least 0",
        train("--threads", "-1"),
    ),
    Case(
        CLI,
        "train: a dataset that is not there",
        SystemExit,
        "error: dataset 'mine/gone-v0' is not in …",
        train("--dataset-id", "mine/gone-v0", "--no-download"),
    ),
    Case(
        CLI,
        "train: a negative number of episodes",
        SystemExit,
        "error: n_episodes=-1, expected an integer of at least 0",
        train("--n-episodes", "-1"),
    ),
    Case(
        CLI,
        "train: a guidance scale for an agent without guidance",
        SystemExit,
        "error: guidance_scales=(1.0,): a TD3BC agent has no guidance_scale",
        train("--agent", "TD3BC", "--guidance-scales", "1"),
    ),
    Case(
        CLI,
        "train: a guidance scale that is no number",
        SystemExit,
        "error: guidance_scales=nan, expected a finite number",
        train("--guidance-scales", "0", "nan"),
    ),
    Case(
        CLI,
        "train: tuning the guidance of an agent without any",
        SystemExit,
        "error: tune_guidance=True: a TD3BC agent has no guidance_scale",
        train("--agent", "TD3BC", "--tune-guidance"),
    ),
    Case(
        CLI,
        "train: checkpoints every nothing",
        SystemExit,
        "error: checkpoint_every=0, expected an integer of at least 1",
        train("--checkpoint-every", "0"),
    ),
    Case(
        CLI,
        "train: a folder with a run",
        SystemExit,
        "error: run already holds a run: continue it with --resume run, replace it with "
        "--overwrite, or choose another --run-dir",
        train_in_run("--run-dir", "run"),
    ),
    Case(
        CLI,
        "train: replacing a folder whose config.json is another program's",
        SystemExit,
        "error: other may not be a run folder: other/config.json is no run's config.json (…); "
        "choose another --run-dir",
        train_over("config.json", "--overwrite"),
    ),
    Case(
        CLI,
        "train: a folder with a checkpoint and no config.json",
        SystemExit,
        "error: other holds checkpoint.zip but no config.json that says of which run: move that "
        "away (a checkpoint is played wherever it is), or choose another --run-dir",
        train_over("checkpoint.zip"),
    ),
    Case(
        CLI,
        "train: adopting from the folder that it replaces",
        SystemExit,
        "error: --adopt run/checkpoint.zip is in the run folder run, which a new run replaces: "
        "choose another --run-dir",
        train_in_run("--run-dir", "run", "--overwrite", "--adopt", "run/checkpoint.zip"),
    ),
    Case(
        CLI,
        "train: resuming nothing",
        SystemExit,
        "--resume nowhere: no run there (config.json is missing)",
        train("--resume", "nowhere"),
    ),
    Case(
        CLI,
        "train: resuming with another seed",
        SystemExit,
        "--seed cannot change when a run is resumed: run has 0; for another one start a new run "
        "in another --run-dir",
        train_in_run("--resume", "run", "--seed", "3"),
    ),
    Case(
        CLI,
        "train: resuming and adopting",
        SystemExit,
        "--adopt other cannot be combined with --resume: the run in run has in its own checkpoint "
        "what it adopted",
        train_in_run("--resume", "run", "--adopt", "other"),
    ),
    Case(
        CLI,
        "train: adopting by an agent outside the family",
        SystemExit,
        "error: a BC agent cannot adopt from 'other': only QGPO, AEPO, QIPO, SIR and "
        "BestOfN share stages; leave adopt away",
        train("--agent", "BC", "--adopt", "other"),
    ),
    Case(
        CLI,
        "a folder in which another process trains",
        RunFolderError,
        "another process is training in run: wait for it, or choose another --run-dir",
        held_folder,
    ),
    Case(
        CLI,
        "evaluate: no run",
        SystemExit,
        "error: --run nowhere: does not exist; runs under runs: none",
        play("--run", "nowhere"),
    ),
    Case(
        CLI,
        "evaluate: no run named",
        SystemExit,
        "error: --run: expected a run folder or a checkpoint, or several",
        play("--run"),
    ),
    Case(
        CLI,
        "evaluate: a run named twice",
        SystemExit,
        "error: --run agent.zip: named twice",
        play("--run", "agent.zip", "agent.zip"),
    ),
    Case(
        CLI,
        "evaluate: an unknown solver",
        SystemExit,
        "error: solver='leapfrog', expected one of […]",
        play("--solver", "leapfrog"),
    ),
    Case(
        CLI,
        "evaluate: a solver that draws noise",
        SystemExit,
        "error: solver='sde_dpm_solver_2m' draws noise, where samples must be a function of their "
        "first noise; expected one of […]",
        play("--run", "nowhere", "--solver", "sde_dpm_solver_2m"),  # before anything is read
    ),
    Case(
        CLI,
        "evaluate: a solver that does not fit the agent",
        SystemExit,
        "error: solver='euler' follows the straight flow of schedule 'ot', not of …; expected one "
        "of […]",
        play("--solver", "euler", "--env-id", "test/Walk-v0"),
    ),
    Case(
        CLI,
        "evaluate: no episodes",
        SystemExit,
        "error: n_episodes=0, expected an integer of at least 1",
        play("--n-episodes", "0"),
    ),
    Case(
        CLI,
        "evaluate: a negative number of threads",
        SystemExit,
        "error: threads=-1, expected an integer of at least 0",
        play("--threads", "-1"),
    ),
    Case(
        CLI,
        "evaluate: an environment of other spaces",
        SystemExit,
        "error: environment 'Pendulum-v1' does not fit the agent: …",
        play("--env-id", "Pendulum-v1"),
    ),
    Case(
        CLI,
        "evaluate: a picture of several agents",
        SystemExit,
        "error: --picture: no picture can be drawn of Ensemble: expected one run of QGPO, "
        "AEPO, QIPO, SIR or BestOfN",
        picture_of_two,
    ),
    Case(
        CLI,
        "evaluate: no environment known",
        SystemExit,
        "error: the agent's dataset 'test/made/by-hand-v0' names no environment: give one with "
        "--env-id",
        play(),
    ),
]
