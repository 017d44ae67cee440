"""Minari's remote, which `MINARI_REMOTE` names: whether it answers, and what it holds."""

from __future__ import annotations

import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import minari
from minari.storage.remotes import DEFAULT_REMOTE, get_cloud_storage
from minari.storage.remotes.cloud_storage import CloudStorage

from qgpo.envs.store.local import split_version
from qgpo.envs.store.names import check_name
from qgpo.envs.store.stated import check_metadata

AnswerT = TypeVar("AnswerT")

PROBE_SECONDS = 3.0
"""how long the first answer of the remote may take"""
GOOGLE = "https://storage.googleapis.com"


class RemoteError(ValueError):
    """The remote cannot be reached, or does not have what was requested."""


@dataclass(frozen=True)
class Checksum:
    """The size and the digest that a file of a dataset must have."""

    size: int
    algorithm: Literal["sha256", "git-sha1"]
    digest: str


def open_remote(seconds: float = PROBE_SECONDS) -> CloudStorage:
    """Minari's remote, once it has answered. Raises RemoteError after a few seconds if not.

    Minari's own calls retry for half a minute before they fail, so one request is tried first.
    """
    name = remote_name()
    try:
        storage = get_cloud_storage()
    except ImportError as error:
        raise RemoteError(f"{name} cannot be read here: {error}") from error
    try:
        in_time(lambda: _ask(name, seconds), seconds)
    except Exception as error:
        raise RemoteError(
            f"{name} cannot be reached ({type(error).__name__}: {error}). Check the "
            "network (MINARI_REMOTE names the remote), or copy the dataset into the local folder "
            "(MINARI_DATASETS_PATH) from a machine that has it"
        ) from error
    return storage


def in_time(ask: Callable[[], AnswerT], seconds: float) -> AnswerT:
    """What `ask` returns or raises; TimeoutError where it takes more than twice the seconds.

    It runs in a thread, because the look-up of a host name has no time limit.
    """
    answers: list[AnswerT] = []
    failures: list[Exception] = []

    def probe() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(2 * seconds)
    if failures:
        raise failures[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]


def remote_name() -> str:
    """`hf://<organisation>` or `gcp://<bucket>`, from `MINARI_REMOTE`, else Minari's default."""
    remote: str = os.environ.get("MINARI_REMOTE", DEFAULT_REMOTE)
    kind, _, name = remote.partition("://")
    if kind not in ("hf", "gcp") or not name:
        raise ValueError(
            f"MINARI_REMOTE={remote!r}, expected hf://<organisation> or gcp://<bucket>"
        )
    return remote


def _ask(remote: str, seconds: float) -> None:
    """Send one request; every answer is accepted except a server error."""
    if remote.startswith("hf://"):
        from huggingface_hub import constants, get_session

        status = get_session().head(constants.ENDPOINT, timeout=seconds).status_code
        if status >= 500:
            raise ConnectionError(f"{constants.ENDPOINT} answers with HTTP status {status}")
        return
    try:
        urllib.request.urlopen(urllib.request.Request(GOOGLE, method="HEAD"), timeout=seconds)
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise


def remote_catalogue(prefix: str | None = None) -> dict[str, dict[str, Any]]:
    """The metadata of every remote dataset whose id starts with the prefix, by id.

    A dataset whose metadata cannot be read has {"error": reason}. Raises RemoteError.
    """
    storage = open_remote()

    def metadata(dataset_id: str) -> dict[str, Any]:
        try:
            split_version(dataset_id)
            return check_metadata(storage.get_dataset_metadata(dataset_id))
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}

    with ThreadPoolExecutor(max_workers=10) as pool:
        ids = sorted(set(_listed(storage, prefix)))
        return dict(zip(ids, pool.map(metadata, ids), strict=True))


def choose_remote(dataset_id: str) -> tuple[str, dict[str, Any]]:
    """The id with its version, and the metadata; without a version, the newest one readable here.

    Raises RemoteError where the remote has no such dataset or Minari here cannot read it.
    """
    name = remote_name()
    stem, version = split_version(dataset_id)
    pattern = re.compile(re.escape(stem) + r"-v(0|[1-9][0-9]*)")
    matches = [(pattern.fullmatch(other), about) for other, about in remote_catalogue(stem).items()]
    versions = {int(match[1]): about for match, about in matches if match}
    readable = {
        number: about
        for number, about in versions.items()
        if about.get("minari_version") in minari.supported_dataset_versions
    }
    chosen = max(readable or versions, default=None) if version is None else version
    if chosen in readable:
        return f"{stem}-v{chosen}", readable[chosen]
    if chosen in versions:
        about = versions[chosen]
        reason = about.get("error") or f"it was made with Minari {about.get('minari_version')}"
        raise RemoteError(
            f"dataset {dataset_id!r} on {name} cannot be read with the installed Minari "
            f"{minari.__version__}: {reason}; versions that can: {_named(stem, readable)}"
        )
    if versions:
        raise RemoteError(
            f"dataset {dataset_id!r} is not on {name}, which has {_named(stem, versions)}"
        )
    group = f"{stem.split('/')[0]}/" if "/" in stem else None
    known = ", ".join(sorted(set(_listed(open_remote(), group)))) or "nothing"
    raise RemoteError(
        f"dataset {dataset_id!r} is not on {name}, which has {known} under {group or 'it'}"
    )


def checksums(dataset_id: str) -> dict[str, Checksum]:
    """Size and digest of every file under `data/`, by path; empty where the remote has none.

    Hugging Face has the SHA-256 of large files and the git SHA-1 of small ones. Raises RemoteError,
    also for names that lead out of the dataset's folder.
    """
    kind, _, organisation = remote_name().partition("://")
    if kind != "hf":
        return {}
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    repository, _, path = dataset_id.partition("/")
    repo_id, prefix = f"{organisation}/{repository}", f"{path}/" if path else ""
    try:
        tree = HfApi().list_repo_tree(repo_id, f"{prefix}data", recursive=True, repo_type="dataset")
        files = [file for file in tree if isinstance(file, RepoFile)]
        sizes = [file.size if file.lfs is None else file.lfs.size for file in files]
        odd = [size for size in sizes if type(size) is not int or size < 0]
        if odd:
            raise ValueError(f"a file has the size {odd[0]!a:.60}")
    except Exception as error:
        raise RemoteError(
            f"the files of dataset {dataset_id!r} on {remote_name()} cannot be listed "
            f"({type(error).__name__}: {error})"
        ) from error
    return {
        _inside(file.path, f"{prefix}data/", dataset_id).removeprefix(prefix): (
            Checksum(file.size, "git-sha1", file.blob_id)
            if file.lfs is None
            else Checksum(file.lfs.size, "sha256", file.lfs.sha256)
        )
        for file in files
    }


def fetch_files(dataset_id: str, folder: Path, names: Iterable[str]) -> None:
    """Fetch files of a dataset to `folder / dataset_id`: no others, and nowhere else.

    `names` are those of `checksums`; a remote that has no checksums is asked for its list.
    """
    storage = open_remote()
    if remote_name().startswith("hf://"):
        from huggingface_hub import HfApi

        repository, _, path = dataset_id.partition("/")
        HfApi().snapshot_download(
            f"{remote_name().removeprefix('hf://')}/{repository}",
            # whole names, in which no character is a pattern's
            allow_patterns=[f"{path}/{name}" if path else name for name in names],
            repo_type="dataset",
            local_dir=folder / repository,
        )
        return
    prefix = f"{dataset_id}/data/"
    for blob in storage.bucket.list_blobs(prefix=prefix):  # type: ignore[attr-defined]
        target = folder / _inside(blob.name, prefix, dataset_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as file:
            storage.storage_client.download_blob_to_file(blob, file)  # type: ignore[attr-defined]


def _inside(name: str, prefix: str, dataset_id: str) -> str:
    """The name of a file below a prefix. Raises RemoteError where it leads elsewhere."""
    try:
        check_name(name, "file")
        if not name.startswith(prefix):
            raise ValueError(f"file {name!r} is not below {prefix}")
    except ValueError as error:
        raise RemoteError(
            f"dataset {dataset_id!r} on {remote_name()} is not fetched: {error}"
        ) from error
    return name


def _listed(storage: CloudStorage, prefix: str | None) -> list[str]:
    try:
        return list(storage.list_datasets(prefix=prefix))
    except Exception as error:
        raise RemoteError(
            f"{remote_name()} cannot be listed ({type(error).__name__}: {error})"
        ) from error


def _named(stem: str, versions: Iterable[int]) -> str:
    return ", ".join(f"{stem}-v{number}" for number in sorted(versions)) or "none"
