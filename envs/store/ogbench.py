"""OGBench's trajectories: found here, converted from its files, or downloaded by its own loader.

Its files become a Minari dataset of trajectories without rewards, once. Tasks label these when they
are read: see `labelling.py`. Generated trajectories are under ids of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import io
import re
import socket
import types
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray
from tqdm import tqdm

from qgpo.commands import command
from qgpo.envs.data import disk
from qgpo.envs.data.columns import flags, numbers, recorded
from qgpo.envs.rollouts.ogbench_experts import why_not
from qgpo.envs.store.local import folder_of, local_ids
from qgpo.envs.store.npz import Archive
from qgpo.envs.store.remote import PROBE_SECONDS, RemoteError, in_time
from qgpo.envs.store.scratch import download_folder
from qgpo.envs.store.storing import CHUNK_FACTOR, EPISODE_BYTES
from qgpo.envs.store.trajectories import as_episode, write_trajectories
from qgpo.envs.store.writing import ADVICE, check_space, sole_writer
from qgpo.envs.tasks import ogbench
from qgpo.envs.tasks.making import make_env, quiet_mujoco
from qgpo.envs.tasks.ogbench import GENERATED, PUBLISHED, Name, steps_of_size

BUTTONS = "button_states"
"""an array, where an environment has buttons"""
NO_HEAD = (405, 501)
"""answers of a server that only delivers files"""
STALLED_SECONDS = 60.0
"""how long a download may bring nothing"""
EXAMPLES = {
    PUBLISHED: f"{PUBLISHED}/cube-single-play-singletask-task2-v0",
    GENERATED: f"{GENERATED}/cube-single-play-100k-singletask-task2-v0",
}
REFUSED = (
    (r"visual-.*", "its observations are images, but agents learn from vectors"),
    (r"powderworld-.*", "its observations are images and its actions are discrete"),
    (r".*-oraclerep(-.*)?", "it is for goal-conditioned agents, which this package does not have"),
    (r".*-v(?!0$)\d+", "the version of all sets is v0"),
    (r".*-singletask-task(?![1-5]-v0$).*", "tasks are task1 to task5"),
)
"""what of OGBench is not read, by name, and why"""
SIZED = {
    PUBLISHED: f"a size is part of the ids of generated data, under {GENERATED}/",
    GENERATED: "the id of generated data says how many steps they are",
}
"""by namespace, what is wrong with an id that is right in the other one"""
LARGE = "1m"
"""as many transitions as most published sets have"""


def name_of(dataset_id: str) -> Name | None:
    """What an id in one of OGBench's namespaces says; None for other ids.

    An id without a version has the only one that there is. Raises ValueError for what is not read
    here, unless somebody's own data are under that id.
    """
    full_id = dataset_id if re.search(r"-v\d+$", dataset_id) else f"{dataset_id}-v0"
    namespace, slash, rest = full_id.partition("/")
    if not slash:
        meant = [found for other in EXAMPLES if (found := ogbench.parse(f"{other}/{full_id}"))]
        if meant and not folder_of(full_id).exists():
            raise ValueError(
                f"dataset {dataset_id!r} has no namespace: published data are under "
                f"{PUBLISHED}/, generated ones under {GENERATED}/, here {meant[0].id!r}"
            )
    if namespace not in EXAMPLES:
        return None
    name = ogbench.parse(full_id)
    if name is None and not folder_of(full_id).exists():
        raise ValueError(
            f"dataset {dataset_id!r} cannot be read ({_why_unknown(namespace, rest)}): expected a "
            f"task of trajectories with vectors, such as {EXAMPLES[namespace]!r}"
        )
    return name


def _why_unknown(namespace: str, rest: str) -> str:
    """What is wrong with an id; `rest` is what follows the namespace."""
    for pattern, why in REFUSED:
        if re.fullmatch(pattern, rest):
            return why
    if any(ogbench.parse(f"{other}/{rest}") for other in EXAMPLES):
        return SIZED[namespace]
    return "OGBench has no such set"


def ensure(name: Name, download: bool, progress_bar: bool) -> None:
    """Have the trajectories of a dataset here: convert OGBench's file, which may be downloaded.

    Raises ValueError, which says how they are had, where that fails; it is a RemoteError where
    the download does.
    """
    stored = name.trajectories
    if folder_of(stored.id).exists():
        return
    if name.namespace == GENERATED:
        reason = why_not(name.environment, name.kind)
        how = f": generate it by `{_generation(name)}`" if reason is None else f", and {reason}"
        raise ValueError(f"dataset {stored.id!r} is not in {folder_of('')}{how}")
    utils = _loader(name)
    with sole_writer(stored.id):
        if folder_of(stored.id).exists():  # another process was faster
            return
        here = _own_folder(utils) / f"{name.published}.npz"
        if here.is_file():
            convert(stored, here, progress_bar)
        elif download:
            with download_folder(stored.id) as folder:
                fetched = _download(name, utils, folder, progress_bar)
                try:
                    convert(stored, fetched, progress_bar)
                except ValueError:
                    fetched.unlink()  # the next download brings another one
                    raise
        else:
            raise ValueError(
                f"dataset {name.id!r} is neither in {folder_of('')} nor, as OGBench's own file, "
                f"{here}. To fetch it: `{command('data', 'download', name.id)}`. {_instead(name)}"
            )


def _generation(name: Name) -> str:
    """The command that makes generated trajectories."""
    steps = steps_of_size(name.size)
    seed = ("--seed", name.seed) if name.seed else ()
    what = f"{PUBLISHED}/{name.environment}-{name.kind}"
    return command("data", "generate", what, "--steps", steps, *seed)


def _instead(name: Name) -> str:
    """What one can do without OGBench's files."""
    named = [found for found in map(ogbench.parse, local_ids()) if found is not None]
    made = [
        dataclasses.replace(found, task=name.task).id
        for found in named
        if (found.namespace, found.published) == (GENERATED, name.published)
    ]
    if made:
        return f"Generated by the procedure that made it, here is {', '.join(made)}"
    reason = why_not(name.environment, name.kind)
    if reason is not None:
        return f"It {reason}"
    own = dataclasses.replace(name, namespace=GENERATED, size=LARGE)
    return (
        f"The procedure that made it makes another dataset, {own.id!r}, here: `{_generation(own)}`"
    )


def _loader(name: Name) -> types.ModuleType:
    """OGBench's own loader. Raises ValueError where OGBench is missing."""
    try:
        ogbench.register()
        from ogbench import utils
    except ImportError as error:
        raise ValueError(
            f"dataset {name.id!r} needs the package ogbench, which cannot be imported ({error}): "
            f"{ogbench.INSTALL}"
        ) from error
    module: types.ModuleType = utils
    return module


def _own_folder(utils: Any) -> Path:
    """Where OGBench's loader puts its files."""
    return Path(utils.DEFAULT_DATASET_DIR).expanduser()


# Downloads ----------------------------------------------------------------------------------


def _download(name: Name, utils: Any, folder: Path, progress_bar: bool) -> Path:
    """OGBench's file of that name, fetched by its own loader into a folder, and whole.

    Its loader fetches the file for validation too, which is not needed: without it, all is well.
    Raises RemoteError, and DiskFullError.
    """
    path, url = folder / f"{name.published}.npz", f"{utils.DATASET_URL}/{name.published}.npz"
    size = _announced(name, url, _own_folder(utils))
    if not path.exists():
        check_space(name.id, 3.0 * size)  # the file, the data unpacked, and HDF5's own
        try:
            with _limits(progress_bar):
                utils.download_datasets([name.published], str(folder))
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in disk.FULL:
                what = f"{path.name} could not be written"
                raise disk.not_written(error, what, folder, ADVICE) from error
            if not path.exists():
                raise RemoteError(
                    f"the download of {url} failed ({type(error).__name__}: {error}). Run it "
                    f"again. {_instead(name)}"
                ) from error
    found = path.stat().st_size
    if (size and found != size) or not zipfile.is_zipfile(path):
        path.unlink()
        raise RemoteError(
            f"of {url}, {found} of {size or 'unknown'} bytes arrived, which are not a complete "
            f"npz file. Run it again. {_instead(name)}"
        )
    return path


def _announced(name: Name, url: str, folder: Path) -> int:
    """Bytes of the file by the server's word; 0 where it does not say. Raises RemoteError.

    `folder` is where a user may put the file.
    """

    def ask() -> int:
        request = urllib.request.Request(url, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as answer:
                return int(answer.headers.get("Content-Length") or 0)
        except urllib.error.HTTPError as error:
            if error.code in NO_HEAD:
                return 0
            raise

    try:
        return in_time(ask, PROBE_SECONDS)
    except Exception as error:
        has_not = isinstance(error, urllib.error.HTTPError) and error.code < 500
        reason = f"({type(error).__name__}: {error})"
        what = f"{url} is not there" if has_not else f"{url} cannot be reached"
        raise RemoteError(
            f"dataset {name.id!r} could not be downloaded: {what} {reason}. "
            f"Put a copy of that file into {folder}, if you have one. {_instead(name)}"
        ) from error


@contextlib.contextmanager
def _limits(progress_bar: bool) -> Iterator[None]:
    """End a download that stalls, and let OGBench's loader print where a bar is wanted."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_SECONDS)
    try:
        with contextlib.ExitStack() as stack:
            if not progress_bar:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        socket.setdefaulttimeout(before)


# Conversion ---------------------------------------------------------------------------------


def convert(name: Name, path: Path, progress_bar: bool = True) -> None:
    """Write OGBench's file as a Minari dataset, whole or not at all, a trajectory at a time.

    The last action of each trajectory, which leads nowhere, is left out. Raises ValueError where
    the file is not whole, or not of that environment, and DiskFullError.
    """
    of = f"dataset {name.id!r}, {path.name}"
    shapes = _shapes(name)
    with Archive(path, list(shapes)) as archive:
        for part, shape in shapes.items():
            if archive.members[part].shape[1:] != shape:
                raise ValueError(
                    f"{of}: {part} has rows of {archive.members[part].shape[1:]} numbers, "
                    f"expected {shape} for {name.environment}"
                )
        bounds = _bounds(of, archive.read("terminals", archive.rows))
        count, steps = len(bounds) - 1, archive.rows - len(bounds) + 1
        check_space(name.id, CHUNK_FACTOR * archive.nbytes + EPISODE_BYTES * count)
        about = {
            "origin": "published",
            "name": name.published,
            "steps": steps,
            "seed": None,
            "versions": {},
            "file": {"bytes": path.stat().st_size, "sha256": _digest(path)},
        }
        with tqdm(total=steps, desc=f"convert {path.name}", disable=not progress_bar) as bar:
            write_trajectories(
                name,
                (shapes["observations"][0], shapes["actions"][0]),
                _episodes(archive, of, bounds, bar),
                about,
                ("OGBench's experts", "OGBench"),
                f"{count} trajectories of OGBench's {name.published} (arXiv 2410.20092), converted "
                "from its file. Rewards are 0: its tasks label them when they are loaded.",
            )


def _shapes(name: Name) -> dict[str, tuple[int, ...]]:
    """The shape of a row of each array, by the environment."""
    env = make_env(name.trajectories.env_id)
    with quiet_mujoco(), ogbench.global_generator_kept():
        observation, info = env.reset()
        actions = env.action_space.shape
    model: Any = env.unwrapped.model  # type: ignore[attr-defined]
    env.close()
    shapes: dict[str, Any] = {
        "observations": observation.shape,
        "actions": actions,
        "terminals": (),
        "qpos": (model.nq,),
        "qvel": (model.nv,),
    }
    return shapes | ({BUTTONS: info[BUTTONS].shape} if BUTTONS in info else {})


def _bounds(of: str, terminals: NDArray[Any]) -> NDArray[np.int64]:
    """(E + 1,) the first row of each trajectory, and the number of rows."""
    ends = np.flatnonzero(flags(of, "terminals", terminals, terminals.shape))
    if len(ends) == 0 or ends[-1] != len(terminals) - 1:
        raise ValueError(f"{of}: terminals do not mark the last row, as the end of a trajectory")
    bounds = np.concatenate([[0], ends + 1])
    if np.diff(bounds).min() < 2:
        short = int(np.argmin(np.diff(bounds)))
        raise ValueError(f"{of}: trajectory {short} has one row, expected two or more")
    return bounds


def _episodes(
    archive: Archive, of: str, bounds: NDArray[np.int64], bar: Any
) -> Iterator[EpisodeBuffer]:
    """One trajectory after the other, each checked; at the end the file's checksums are, too."""
    for index, number in enumerate(np.diff(bounds).tolist()):
        which = f"{of}, trajectory {index}"
        rows: dict[str, NDArray[Any]] = {}
        for part in archive.members:
            if part == "terminals":
                continue
            values = archive.read(part, number)
            kept = part in ("observations", "actions")
            rows[part] = (numbers if kept else recorded)(which, part, values)
            if not np.isfinite(rows[part]).all():
                raise ValueError(f"{which}: {part} has NaN or infinite values")
        yield as_episode(rows)
        bar.update(number - 1)
    archive.finish()


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
