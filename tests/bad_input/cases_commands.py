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
        "train: --longer 0",
        SystemExit,
        "error: longer=0, expected a positive number",
        train("--longer", "0"),
    ),
    Case(
        CLI,
        "evaluate: a setting of --offline without it",
        SystemExit,
        "error: --model-steps belongs to --offline: add it",
        play("--model-steps", "4000"),
    ),
    Case(
        CLI,
        "train: --seeds with the same one twice",
        SystemExit,
        "error: seeds=[0, 0], expected different seeds",
        train("--seeds", "0", "0"),
    ),
    Case(
        CLI,
        "train: --seeds together with --minutes",
        SystemExit,
        "error: --seeds and --minutes: give only one of them",
        train("--seeds", "0", "1", "--minutes", "10"),
    ),
    Case(
        CLI,
        "train: --minutes 0",
        SystemExit,
        "error: minutes=0, expected a positive number of at most 1e+06",
        train("--minutes", "0"),
    ),
    Case(
        CLI,
        "train: too few minutes for one step of every stage",
        ValueError,
        "minutes=0.1, expected at least 0.501 here: 30 s of the training do not depend on the "
        "number of steps, and every stage needs at least one step",
        lambda: Speed(30.0, {"critic": 60.0}, {"critic": 0.01}).factor(0.1),
    ),
    Case(
        CLI,
        "train: --minutes together with --longer",
        SystemExit,
        "error: minutes=10 and longer=4: both set the number of steps; give only one of them",
        train("--minutes", "10", "--longer", "4"),
    ),
    Case(
        CLI,
        "train: --minutes together with --adopt",
        SystemExit,
        "error: minutes=10 and adopt='run': adopted stages keep their number of steps; give "
        "only one of them",
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
        "train: a dataset that does not exist",
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
        "train: a guidance scale that is not a number",
        SystemExit,
        "error: guidance_scales=nan, expected a finite number of at least 0",
        train("--guidance-scales", "0", "nan"),
    ),
    Case(
        CLI,
        "train: --tune-guidance for an agent without guidance",
        SystemExit,
        "error: tune_guidance=True: a TD3BC agent has no guidance_scale",
        train("--agent", "TD3BC", "--tune-guidance"),
    ),
    Case(
        CLI,
        "train: --checkpoint-every 0",
        SystemExit,
        "error: checkpoint_every=0, expected an integer of at least 1",
        train("--checkpoint-every", "0"),
    ),
    Case(
        CLI,
        "train: a folder that already holds a run",
        SystemExit,
        "error: run already holds a run: continue it with --resume run, replace it with "
        "--overwrite, or choose another --run-dir",
        train_in_run("--run-dir", "run"),
    ),
    Case(
        CLI,
        "train: replacing a folder whose config.json is another program's",
        SystemExit,
        "error: other may not be a run folder: other/config.json is not the config.json of a "
        "run (…); choose another --run-dir",
        train_over("config.json", "--overwrite"),
    ),
    Case(
        CLI,
        "train: a folder with a checkpoint and no config.json",
        SystemExit,
        "error: other holds checkpoint.zip but no config.json of a run: move it away (a "
        "checkpoint can be evaluated in any folder), or choose another --run-dir",
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
        "train: resuming a run that does not exist",
        SystemExit,
        "--resume nowhere: no run there (config.json is missing)",
        train("--resume", "nowhere"),
    ),
    Case(
        CLI,
        "train: resuming with another seed",
        SystemExit,
        "--seed cannot change when a run is resumed: run has 0; for another value, start a new "
        "run in another --run-dir",
        train_in_run("--resume", "run", "--seed", "3"),
    ),
    Case(
        CLI,
        "train: resuming and adopting",
        SystemExit,
        "--adopt other cannot be combined with --resume: the run in run already contains the "
        "adopted stages",
        train_in_run("--resume", "run", "--adopt", "other"),
    ),
    Case(
        CLI,
        "train: adopting by an agent outside the family",
        SystemExit,
        "error: a BC agent cannot adopt from 'other': only QGPO, AEPO, QIPO, SIR and BestOfN "
        "share stages; remove adopt",
        train("--agent", "BC", "--adopt", "other"),
    ),
    Case(
        CLI,
        "a run folder in which another process is training",
        RunFolderError,
        "another process is training in run: wait for it, or choose another folder",
        held_folder,
    ),
    Case(
        CLI,
        "evaluate: a run that does not exist",
        SystemExit,
        "error: --run nowhere: does not exist; runs under runs: none",
        play("--run", "nowhere"),
    ),
    Case(
        CLI,
        "evaluate: --run without a value",
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
        "error: solver='sde_dpm_solver_2m' draws noise at every step, but samples must be a "
        "function of the initial noise; expected one of […]",
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
        "evaluate: an environment with other spaces",
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
        "evaluate: no known environment",
        SystemExit,
        "error: the agent's dataset 'test/made/by-hand-v0' names no environment: give one with "
        "--env-id",
        play(),
    ),
]
