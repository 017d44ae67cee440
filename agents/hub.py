"""Agents in repositories of the Hugging Face hub, through the hub's own client.

The client decides which hub (HF_ENDPOINT), whose token (`hf auth login`, HF_TOKEN), where the
cache is (HF_HUB_CACHE) and whether there is a network (HF_HUB_OFFLINE).
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.vec_env import VecEnv

from qgpo.agents.card import UNKNOWN, Evaluations
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.sharing import (
    CARD,
    CHECKPOINT,
    CLIP,
    CONFIG,
    EVALUATION,
    LARGEST_CONFIG,
    Shared,
    check_names,
    load_checkpoints,
    read_config,
    save_to_folder,
)
from qgpo.envs.play.scores import Evaluation

OURS = (CARD, CONFIG, EVALUATION, CLIP)
"""beside the checkpoints, what a push may replace or remove"""
TRANSPORTS = ("httpx", "httpx2", "requests")
"""what the client sends its requests with, by version"""


class HubError(OSError):
    """A repository that is not there, not ours to write, or out of reach."""


def push_to_hub(
    agent: Shared,
    repo_id: str,
    *,
    evaluations: Evaluation | Evaluations | None = None,
    data_returns: Sequence[float] | None = None,
    clip: bool = True,
    license: str = UNKNOWN,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    message: str | None = None,
) -> str:
    """Put an agent, or an ensemble, with its model card into a repository; returns the commit.

    The repository is made where there is none, `private` or not; `revision` is a branch, which is
    made likewise. All files arrive in one commit; files of an earlier push that the new one lacks
    are removed, other files stay. `token` is by default the one of the hub's own login. The other
    arguments are those of `save_to_folder`.

    Raises HubError where the hub refuses or cannot be reached, and what `save_to_folder` raises.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    with _errors(repo_id), tempfile.TemporaryDirectory(prefix="qgpo-") as scratch:
        api = HfApi(token=token)
        about: dict[str, Any] = {
            "evaluations": evaluations,
            "data_returns": data_returns,
            "license": license,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the second time they are said
            save_to_folder(agent, Path(scratch) / "tried", clip=False, **about)  # may it be shared?
        made = api.create_repo(repo_id, private=private, exist_ok=True)  # before the clip is drawn
        repo_id = made.repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        folder = save_to_folder(agent, Path(scratch) / "agent", clip=clip, repo_id=repo_id, **about)
        new = {path.name: path for path in folder.iterdir()}
        there = api.list_repo_files(repo_id, revision=revision)
        gone = [n for n in there if n not in new and (n in OURS or CHECKPOINT.fullmatch(n))]
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, path) for name, path in sorted(new.items())),
                *(CommitOperationDelete(name) for name in gone),
            ],
            commit_message=message or f"{agent.name}, by qgpo",
            revision=revision,
        )
    return commit.oid


def load_from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    env: gym.Env[Any, Any] | VecEnv | str | None = None,
    device: torch.device | str = "auto",
) -> Shared:
    """The agent, or the ensemble, in a repository. A download never runs code.

    `revision` is a branch, a tag, or a commit, which pins the exact files. The repository's list
    of files is judged before any is fetched; only config.json and the checkpoints that it names
    are. They stay in the hub's cache; with `local_files_only`, or HF_HUB_OFFLINE=1, they are read
    from there without a network.

    Raises CheckpointError for a repository that holds pickles, code or a file of an odd size, or
    that is no agent of qgpo, HubError where it is not there or cannot be reached.
    """
    from huggingface_hub import constants, hf_hub_download

    of = f"repository {repo_id!r}"
    where: dict[str, Any] = {"repo_id": repo_id, "token": token, "cache_dir": cache_dir}
    with _errors(repo_id):
        if local_files_only or constants.HF_HUB_OFFLINE:
            where |= {"revision": revision, "local_files_only": True}
            about = read_config(Path(hf_hub_download(filename=CONFIG, **where)))
        else:
            commit = _judge(repo_id, revision, token, of)
            # by its name, not the commit's: the cache then knows which commit that is
            config = Path(hf_hub_download(filename=CONFIG, revision=revision, **where))
            if config.parent.name != commit:
                raise HubError(f"{of} changed while it was read: load it again")
            about = read_config(config)
            where["revision"] = commit
        files = [Path(hf_hub_download(filename=name, **where)) for name in about["checkpoints"]]
        return load_checkpoints(files[0].parent, about, env, device)


def _judge(repo_id: str, revision: str | None, token: str | bool | None, of: str) -> str:
    """The commit, once the names and sizes of its files are found good."""
    from huggingface_hub import HfApi

    info = HfApi(token=token).model_info(repo_id, revision=revision, files_metadata=True)
    files = {file.rfilename: file.size for file in info.siblings or ()}
    check_names(files, of)
    if CONFIG not in files:
        raise CheckpointError(f"{of} has no {CONFIG}: no agent of qgpo is there")
    size = files[CONFIG]
    if size is None or size > LARGEST_CONFIG:
        raise CheckpointError(
            f"{of} has a {CONFIG} of {size} bytes, expected at most {LARGEST_CONFIG}"
        )
    return str(info.sha)


@contextlib.contextmanager
def _errors(repo_id: str) -> Iterator[None]:
    """Around calls of the client: what it raises becomes a HubError that says what to do."""
    from huggingface_hub import constants, errors

    try:
        yield
    except (HubError, CheckpointError):
        raise
    except errors.HFValidationError as error:
        raise ValueError(
            f"repo_id={repo_id!r}, expected 'name' or 'owner/name' ({_line(error)})"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"repository {repo_id!r} has no such revision: {_line(error)}") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"repository {repo_id!r} is not on {constants.ENDPOINT}, or this login may not read "
            "it: check the name, or log in with `hf auth login`"
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise HubError(
            f"repository {repo_id!r} is not in the hub's cache, and the hub is not asked or does "
            f"not answer ({_line(error)}): load it once with a network (HF_HUB_OFFLINE unset), or "
            "hand on a folder (save_to_folder, load_from_folder)"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise HubError(f"the hub wants a login: run `hf auth login` ({_line(error)})") from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"repository {repo_id!r} lacks a file: {_line(error)}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        hint = {
            401: ": log in with `hf auth login`, or set HF_TOKEN",
            403: ": this login may not write there",
        }.get(status or 0, "")
        raise HubError(f"{constants.ENDPOINT} refuses ({_line(error)}){hint}") from error
    except Exception as error:  # the client's own library for HTTP, which it changes at times
        if not isinstance(error, ConnectionError) and _package(error) not in TRANSPORTS:
            raise
        raise HubError(f"{constants.ENDPOINT} cannot be reached ({_line(error)})") from error


def _package(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
