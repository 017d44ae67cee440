"""Kill conversion, collection, --adopt and tuning with SIGKILL at random moments, and repeat them.

    python benchmarks/kill_files.py

Each work is done once alone, which takes T seconds. Then it is killed after a time between 0 and
T, and the same command is given again. Its result is compared with the one of the work left
alone, bit by bit, and hidden files that are left are counted. Writes kill_files.json after every
trial; ends with exit code 1 where a result differs or something is left.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from kill import CONFIG, equal, in_child, make_data

from qgpo import QGPO, load_dataset
from qgpo.envs.store.local import folder_of
from qgpo.experiments.folder import RunFolder
from qgpo.scripts import collect, train

DATASET = "bench/kill-v0"
COLLECTED = "bench/collected-v0"
OUTPUT = Path(__file__).with_name("kill_files.json")


@dataclass
class Args:
    """Kill, repeat, compare."""

    kills: int = 25
    """kills of each work"""
    seed: int = 0
    """seed of the moments"""
    output: Path = OUTPUT
    """where the results go"""


@dataclass(frozen=True)
class Work:
    """What is killed: from the same beginning each time, to the same result."""

    prepare: Callable[[], None]
    do: Callable[[], None]
    result: Callable[[], Any]
    folder: Callable[[], Path]
    """where hidden files may be left"""


def quietly(work: Callable[[], None]) -> None:
    """Do the work without its messages."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work()


def conversion() -> Work:
    """A dataset into memory maps."""

    def load() -> Any:
        return load_dataset(DATASET, False, "memmap", progress_bar=False)

    return Work(
        prepare=lambda: shutil.rmtree(folder_of(DATASET) / "memmap", ignore_errors=True),
        do=load,
        result=lambda: [load().fingerprint, *sorted(p.name for p in load().folder.iterdir())],
        folder=lambda: folder_of(DATASET),
    )


def collection() -> Work:
    """Episodes of a random policy into a dataset; a finished one is not collected again."""
    args = collect.Args("Pendulum-v1", ("uniform",), COLLECTED, n_steps=2000, progress_bar=False)

    def do() -> None:
        if not folder_of(COLLECTED).exists():
            collect.main(args)

    return Work(
        prepare=lambda: shutil.rmtree(folder_of(COLLECTED), ignore_errors=True),
        do=do,
        result=lambda: load_dataset(COLLECTED, download=False).fingerprint,
        folder=lambda: folder_of(""),
    )


def adoption(root: Path, donor: Path) -> Work:
    """A run that adopts all stages but the last; resumed where it has begun."""
    folder = RunFolder(root / "adopting")
    args: Any = train.Args(
        dataset_id=DATASET,
        preset="laptop",
        seed=1,
        adopt=donor,
        device="cpu",
        n_episodes=0,
        env_id="Pendulum-v1",
        checkpoint_every=20,
        progress_bar=False,
        config=replace(CONFIG, energy_hidden=(24, 24)),
        run_dir=folder.path,
    )

    def do() -> None:
        begun = folder.config.exists()
        train.main(replace(args, resume=folder.path, adopt=None) if begun else args)

    return Work(
        prepare=lambda: shutil.rmtree(folder.path, ignore_errors=True),
        do=do,
        result=lambda: QGPO.load(folder.checkpoint, device="cpu"),
        folder=lambda: folder.path,
    )


def tuning(root: Path, donor: Path) -> Work:
    """The choice of a guidance scale from the data, which the checkpoint keeps."""
    folder = RunFolder(root / "tuned")

    def prepare() -> None:
        shutil.rmtree(folder.path, ignore_errors=True)
        folder.path.mkdir()
        shutil.copy(donor, folder.checkpoint)

    def do() -> None:
        with folder.locked():
            agent = QGPO.load(folder.checkpoint, device="cpu")
            agent.tune_guidance(load_dataset(DATASET, False), (0.5, 1.0, 3.0), 4, 30)
            agent.save(folder.checkpoint)

    return Work(
        prepare=prepare,
        do=do,
        result=lambda: QGPO.load(folder.checkpoint, device="cpu"),
        folder=lambda: folder.path,
    )


def same_result(found: Any, expected: Any) -> bool:
    """Equality, of agents that of parameters, random state and guidance scale."""
    if not isinstance(expected, QGPO):
        return bool(found == expected)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "found.zip"
        found.save(path)
        return equal(path, expected) and found.guidance_scale == expected.guidance_scale


def left_over(folder: Path) -> list[str]:
    """Hidden files and folders without the locks that stay."""
    stay = (".qgpo-locks", ".lock")
    return sorted(path.name for path in folder.glob(".*") if path.name not in stay)


def trial(work: Work, seconds: float, expected: Any) -> dict[str, Any]:
    """Kill after that time, repeat, compare."""
    work.prepare()
    end = time.monotonic() + seconds
    killed = in_child(lambda: quietly(work.do), lambda: time.monotonic() > end)
    half = left_over(work.folder()) if work.folder().exists() else []
    again = in_child(lambda: quietly(work.do), lambda: False)
    identical = again == "done" and same_result(work.result(), expected)
    return {
        "killed": killed == "killed",
        "after_seconds": round(seconds, 3),
        "half_written": half,
        "identical": identical,
        "left": left_over(work.folder()),
    }


def summary(trials: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Counts for each work."""
    return {
        name: {
            "kills": sum(t["killed"] for t in done),
            "half_written": sum(bool(t["half_written"]) for t in done),
            "identical": sum(t["identical"] for t in done),
            "left": sum(bool(t["left"]) for t in done),
            "trials": len(done),
        }
        for name, done in trials.items()
    }


def main(args: Args) -> None:
    """All trials; the summary goes to the screen and into the JSON."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rng = random.Random(args.seed)
    trials: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        os.environ["MINARI_DATASETS_PATH"] = str(root / "minari")
        make_data()
        donor = root / "donor.zip"
        QGPO(CONFIG, seed=1, device="cpu").learn(load_dataset(DATASET, False)).save(donor)
        works = {
            "conversion": conversion(),
            "collection": collection(),
            "adopt": adoption(root, donor),
            "tuning": tuning(root, donor),
        }
        for name, work in works.items():
            work.prepare()
            began = time.monotonic()
            if in_child(lambda work=work: quietly(work.do), lambda: False) != "done":  # type: ignore[misc]
                raise SystemExit(f"{name} failed when it was left alone")
            seconds, expected = time.monotonic() - began, work.result()
            trials[name] = []
            for _ in range(args.kills):
                trials[name].append(trial(work, rng.uniform(0, seconds), expected))
                document = {"summary": summary(trials), "trials": trials}
                args.output.write_text(json.dumps(document, indent=1) + "\n")
            print(name, json.dumps(summary(trials)[name]), flush=True)
    every = [t for done in trials.values() for t in done]
    if not all(t["identical"] and not t["left"] for t in every):
        raise SystemExit("a repeated work ended otherwise than the one left alone, or left files")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
