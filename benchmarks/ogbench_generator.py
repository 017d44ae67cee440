"""Are our trajectories those of OGBench's own generator, array for array?

git clone https://github.com/seohongpark/ogbench
python benchmarks/ogbench_generator.py --reference ogbench

The scripts in the checkout are run as they are, by their authors' commands, for one trajectory of
each set. They seed nothing: here NumPy's global generator, the first reset and the action space are
seeded before they begin, as `trajectory` does. Exit code 1 where an array differs.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import sys
import tempfile
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro
from absl import flags
from gymnasium import spaces

from qgpo.envs.rollouts.ogbench_experts import (
    PROCEDURES,
    Procedure,
    Trajectory,
    trajectory,
)
from qgpo.envs.tasks import ogbench

FLAGS = tuple(flags.FLAGS)
"""of the library of flags itself"""
PACKAGES = ("ogbench", "mujoco", "dm_control", "gymnasium", "numpy", "scipy")


@dataclass
class Args:
    """Compare one trajectory of each set with the reference."""

    reference: Path
    """a checkout of OGBench's repository"""
    sets: tuple[str, ...] = tuple(PROCEDURES)
    """which sets"""
    seed: int = 0
    """of the generation"""
    index: int = 0
    """of the trajectory"""


def scripts_module(folder: Path, name: str) -> Any:
    """One of the reference's scripts, imported; its experts of ant and humanoid are left out."""
    stubs = {
        "agents": {"SACAgent": None},
        "utils": {},
        "utils.evaluation": {"supply_rng": None},
        "utils.flax_utils": {"restore_agent": None},
    }
    for stub, contents in stubs.items():
        sys.modules[stub] = types.ModuleType(stub)
        vars(sys.modules[stub]).update(contents)
    for flag in set(flags.FLAGS) - set(FLAGS):  # those of the script before this one
        delattr(flags.FLAGS, flag)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seeded_gymnasium(seed: int, index: int) -> Any:
    """Gymnasium for the reference: what it makes is seeded as our trajectories are."""
    generator, reset_seed, action_seed = np.random.SeedSequence([seed, index]).generate_state(3)

    def make(env_id: str, **arguments: Any) -> gym.Env[Any, Any]:
        env = gym.make(env_id, disable_env_checker=True, **arguments)
        space = spaces.Box(-1.0, 1.0, env.action_space.shape, np.float32)
        space.seed(int(action_seed))
        env.action_space = space
        env.unwrapped.action_space.seed(int(action_seed))
        reset, seeds = env.reset, iter([int(reset_seed)])
        env.reset = lambda **more: reset(seed=next(seeds, None), **more)  # type: ignore[method-assign]
        np.random.seed(generator)  # noqa: NPY002 - the reference draws from it
        return env

    return types.SimpleNamespace(make=make)


def authors_command(folder: Path, name: str) -> tuple[str, dict[str, str]]:
    """The script and the flags by which a set was made, from the authors' list of commands."""
    lines = (folder / "commands.sh").read_text(encoding="utf-8").splitlines()
    for words in map(str.split, lines):
        if f"--save_path=data/{name}-v0.npz" in words:
            flags_given = (word.removeprefix("--").partition("=") for word in words[2:])
            return Path(words[1]).stem, {flag: value for flag, _, value in flags_given}
    raise SystemExit(f"error: {folder / 'commands.sh'} has no command for {name}-v0")


def reference_trajectory(args: Args, procedure: Procedure) -> Trajectory:
    """The reference's trajectory."""
    folder = args.reference / "data_gen_scripts"
    if not (folder / "commands.sh").is_file():
        raise SystemExit(f"error: no {folder / 'commands.sh'}, expected a checkout of OGBench")
    script, given = authors_command(folder, procedure.name)
    module = scripts_module(folder, script)
    module.gymnasium = seeded_gymnasium(args.seed, args.index)
    with tempfile.TemporaryDirectory() as scratch:
        given.update(save_path=f"{scratch}/one.npz", num_episodes="1")
        flags.FLAGS([script, *(f"--{flag}={value}" for flag, value in given.items())])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            module.main([])
        with np.load(given["save_path"]) as found:
            return dict(found)


def differences(ours: Trajectory, theirs: Trajectory) -> list[str]:
    """What is not the same, bit for bit."""
    if set(ours) != set(theirs):
        return [f"arrays {sorted(ours)} and {sorted(theirs)}"]
    return [
        f"{name}: {ours[name].dtype}{ours[name].shape}, {theirs[name].dtype}{theirs[name].shape}"
        for name in ours
        if ours[name].dtype != theirs[name].dtype or not np.array_equal(ours[name], theirs[name])
    ]


def main(args: Args) -> None:
    """Compare, and print a line per set."""
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES))
    bad = []
    for name in args.sets:
        if name not in PROCEDURES:
            raise SystemExit(f"error: --sets {name}: expected some of {list(PROCEDURES)}")
        procedure = PROCEDURES[name]
        ogbench.register()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = reference_trajectory(args, procedure)
        ours = trajectory(procedure, args.seed, args.index)
        found = differences(ours, theirs)
        shapes = ", ".join(f"{key} {tuple(values.shape)}" for key, values in ours.items())
        print(f"{name}: {'; '.join(found) or f'equal ({shapes})'}", flush=True)
        bad += [name] if found else []
    if bad:
        raise SystemExit(f"different: {', '.join(bad)}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
