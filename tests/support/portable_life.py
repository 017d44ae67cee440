"""A life of the package in one process: `portable_life.py [--as-windows]`, in a new folder.

Import everything, train, save, load, lock, resume, overwrite, convert, map and combine. The last
word is "lived".
"""

from __future__ import annotations

import importlib
import pkgutil
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from windows import behave_as_windows

STEPS = 40
FLAGS = [
    *("--agent", "BC", "--config.steps", str(STEPS), "--config.batch-size", "8"),
    *("--config.hidden", "8", "--checkpoint-every", "10", "--log-interval", "5"),
    *("--n-episodes", "0", "--device", "cpu", "--threads", "1", "--no-progress-bar"),
]


def no_network(self: socket.socket, address: Any) -> None:
    raise AssertionError(f"a connection to {address}")


def import_everything() -> None:
    package = importlib.import_module("qgpo")
    rooms = ("agents", "envs", "experiments", "scripts")
    places = [(package.__path__, "qgpo.")]
    places += [(importlib.import_module(f"qgpo.{r}").__path__, f"qgpo.{r}.") for r in rooms]
    for path, prefix in places:
        for module in pkgutil.walk_packages(path, prefix):
            importlib.import_module(module.name)


def write_dataset() -> str:
    from factory import numbered_episodes, write_buffers

    write_buffers(numbered_episodes([12, 9, 15], [True, False, True]))
    return "test/numbered-v0"


def train(*flags: str) -> None:
    from qgpo.scripts import train as script

    script.main(script.parse(list(flags)))


def trained(folder: Path) -> dict[str, Any]:
    from qgpo import load_agent

    return load_agent(folder / "checkpoint.zip", device="cpu").get_parameters()


def save_twice_and_load() -> None:
    from factory import make_dataset, same_parameters

    from qgpo import BC, BCConfig

    agent = BC(BCConfig(steps=3, batch_size=4, hidden=(8,)), seed=0, device="cpu")
    agent.learn(make_dataset())
    agent.save("agent.zip")
    agent.save("agent.zip")
    loaded = BC.load("agent.zip", device="cpu")
    assert same_parameters(loaded.get_parameters(), agent.get_parameters())
    loaded.save("agent.zip")


def lock_a_run_folder() -> None:
    from qgpo.experiments.folder import RunFolder, RunFolderError

    folder = RunFolder(Path("locked"))
    with folder.locked():
        assert folder.is_locked
        with pytest.raises(RunFolderError), RunFolder(Path("locked")).locked():
            raise AssertionError("two have the lock")
    assert not folder.is_locked
    with folder.locked():
        assert folder.is_locked


def interrupt_and_resume(dataset: str) -> None:
    from factory import same_parameters

    from qgpo import BC
    from qgpo.experiments import run_figure

    whole, broken = Path("whole"), Path("broken")
    train("--dataset-id", dataset, "--run-dir", str(whole), *FLAGS)
    run_figure.draw_run = lambda *_: None  # once is enough
    update = BC.update

    def interrupted(self: Any, batch: Any, step: int) -> Any:
        if step == 25:
            signal.raise_signal(signal.SIGINT)
        return update(self, batch, step)

    BC.update = interrupted  # type: ignore[method-assign]
    with pytest.raises(SystemExit, match="--resume"):
        train("--dataset-id", dataset, "--run-dir", str(broken), *FLAGS)
    BC.update = update  # type: ignore[method-assign]
    train("--resume", str(broken))
    assert same_parameters(trained(broken), trained(whole))
    train("--dataset-id", dataset, "--run-dir", str(broken), *FLAGS, "--overwrite")
    assert same_parameters(trained(broken), trained(whole))


def map_a_dataset(dataset: str) -> None:
    import numpy as np

    from qgpo import load_dataset

    first = load_dataset(dataset, storage="memmap", progress_bar=False)
    again = load_dataset(dataset, storage="memmap", progress_bar=False)
    read = load_dataset(dataset, progress_bar=False)
    assert isinstance(first.states, np.memmap)
    assert first.fingerprint == again.fingerprint == read.fingerprint
    np.testing.assert_array_equal(again.states, read.states)
    train("--dataset-id", dataset, "--run-dir", "mapped", "--storage", "memmap", *FLAGS)
    np.testing.assert_array_equal(first.states, read.states)


def combine_datasets(dataset: str) -> None:
    from factory import numbered_episodes, write_buffers

    from qgpo.scripts import data

    write_buffers(numbered_episodes([4, 5], [True, True]), "test/other-v0")
    for flags in (
        ["combine", dataset, "test/other-v0", "--dataset-id", "test/both-v0", "--no-progress-bar"],
        ["check", "test/both-v0"],
        ["list", "--where", "local"],
    ):
        sys.argv = ["data.py", *flags]
        data.cli()


def main() -> None:
    if "--as-windows" in sys.argv:
        behave_as_windows()
    # asked for by -X warn_default_encoding
    warnings.filterwarnings("error", category=EncodingWarning, module=r"qgpo\.")
    socket.socket.connect = no_network  # type: ignore[method-assign]
    socket.create_connection = no_network  # type: ignore[assignment]
    import_everything()
    save_twice_and_load()
    lock_a_run_folder()
    dataset = write_dataset()
    interrupt_and_resume(dataset)
    map_a_dataset(dataset)
    combine_datasets(dataset)
    print("lived")


if __name__ == "__main__":
    main()
