"""An agent as a folder that can be handed on, with or without a network.

README.md            the model card: data, scores, use, licence
config.json          what is in the folder, with the SHA-256 of every checkpoint
checkpoint.zip       the agent (of an ensemble checkpoint-0.zip and so on)
evaluation.json      the raw returns, where episodes were played
replay.mp4           one episode, where it can be drawn and encoded

Reading such a folder runs no code. `agents/hub.py` sends it to a repository of the Hugging Face
hub and fetches it from there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import VecEnv

from qgpo.agents.card import UNKNOWN, Evaluations, check_license, model_card
from qgpo.agents.core.agent import OfflineAgent
from qgpo.agents.core.checkpoint import CheckpointError
from qgpo.agents.core.collected import collected_rows
from qgpo.agents.core.parsing import brief
from qgpo.agents.core.provenance import versions
from qgpo.agents.ensemble import Ensemble
from qgpo.agents.guided.tuning import is_guided
from qgpo.agents.registry import load_agent
from qgpo.envs.play.scores import Evaluation
from qgpo.envs.play.video import RenderError, check_clip_path, record, write_clip
from qgpo.envs.text_files import read_json
from qgpo.files import write_whole

Shared = OfflineAgent[Any] | Ensemble
"""what can be handed on"""

FORMAT_VERSION = 1
CARD, CONFIG, EVALUATION, CLIP = "README.md", "config.json", "evaluation.json", "replay.mp4"
CHECKPOINT = re.compile(r"checkpoint(-[0-9]{1,3})?\.zip")
SAID = ("agent", "guidance_scale", "observations", "actions")
"""entries of config.json that must be those of the checkpoints, beside the configuration"""
LARGEST_CONFIG = 2**20
"""bytes of config.json"""
CLIP_SECONDS = 10.0
CLIP_SEED = 10_000
HARMLESS = (".md", ".txt", ".json", ".png", ".jpg", ".jpeg", ".gif", ".mp4", ".csv", ".svg")
"""what may lie beside: text and pictures, which are not read here"""
HARMLESS_NAMES = (".gitattributes", ".gitignore", "LICENSE", "LICENCE", "CITATION.cff")


def save_to_folder(
    agent: Shared,
    folder: str | Path,
    *,
    evaluations: Evaluation | Evaluations | None = None,
    data_returns: Sequence[float] | None = None,
    clip: bool = True,
    license: str = UNKNOWN,
    repo_id: str | None = None,
) -> Path:
    """Write an agent, or an ensemble, with its model card into a new folder, whole or not at all.

    `evaluations` are what `evaluate` returned, or pairs of a guidance scale and that;
    `data_returns` (E,) are the returns of the data's episodes, for the card's table. With `clip`
    one episode is drawn (10 s, in the agent's environment); where that is not possible, a warning
    says so, and the folder has none. `license` is an identifier of the hub, `repo_id` names a
    repository in the card's example.

    Raises ValueError for a folder in which something is, and what `agent.save` raises.
    """
    target = Path(folder)
    check_license(license)
    if not target.name:
        raise ValueError(f"folder={str(folder)!r}, expected a folder of its own")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"folder {str(target)!r} exists and is not empty: choose another one")
    members = _members(agent)
    played = as_evaluations(evaluations)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name[:50]}-", dir=target.parent))
    try:
        names = [f"checkpoint-{k}.zip" for k in range(len(members))]
        names = ["checkpoint.zip"] if not isinstance(agent, Ensemble) else names
        for name, member in zip(names, members, strict=True):
            member.save(scratch / name, exclude=("verbose", "tensorboard_log"))
        about = _describe(agent, members, {name: _sha256(scratch / name) for name in names})
        write_whole(scratch / CONFIG, _as_json(about))
        if played:
            entries = [{"guidance_scale": w, **dataclasses.asdict(e)} for w, e in played]
            document = {"format_version": FORMAT_VERSION, "evaluations": entries}
            write_whole(scratch / EVALUATION, _as_json(document))
        drawn = clip and _film(agent, members[0].env_spec, scratch / CLIP)
        call = f"load_from_folder({json.dumps(target.name)})"
        if repo_id is not None:
            call = f"load_from_hub({json.dumps(repo_id)})"
        card = model_card(about, played, license, call, data_returns, CLIP if drawn else None)
        write_whole(scratch / CARD, card.encode())
        scratch.chmod(0o755)
        if target.exists():
            target.rmdir()  # empty
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return target


def load_from_folder(
    folder: str | Path,
    env: gym.Env[Any, Any] | VecEnv | str | None = None,
    device: torch.device | str = "auto",
) -> Shared:
    """Read the agent, or the ensemble, that `save_to_folder` or `load_from_hub` put into a folder.

    Nothing in it can run code. Raises CheckpointError for a folder without a config.json of ours,
    with a checkpoint that is damaged or of other bytes than config.json states, and with files
    that no agent here has, such as pickles.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"folder {str(path)!r} does not exist")
    inside = [p.relative_to(path) for p in path.rglob("*") if not p.is_dir()]
    # Hidden ones are of tools: git, the hub's client, a file manager. They are not read.
    of_the_agent = [p.as_posix() for p in inside if not p.parts[0].startswith(".")]
    check_names(of_the_agent, f"folder {str(path)!r}")
    about = read_config(path / CONFIG)
    return load_checkpoints(path, about, env, device)


def check_names(names: Iterable[str], of: str) -> None:
    """Raise CheckpointError for files that no agent here has: pickles, code, other archives."""
    odd = sorted(
        name
        for name in names
        if not CHECKPOINT.fullmatch(name)
        and Path(name).suffix.lower() not in HARMLESS
        and Path(name).name not in HARMLESS_NAMES
    )
    if odd:
        raise CheckpointError(
            f"{of} holds {brief(odd)}: an agent of qgpo consists of {CONFIG} and checkpoints (JSON "
            "and safetensors in a zip) beside text and pictures. Pickles and code are never read"
        )


def read_config(path: Path) -> dict[str, Any]:
    """What config.json says. Raises CheckpointError for one that is missing or not ours."""
    try:
        about = read_json(path, LARGEST_CONFIG)
        version, names = about["format_version"], about["checkpoints"]
        if about["library"] != "qgpo" or type(version) is not int:
            raise ValueError(f"library={brief(about['library'])}, format_version={brief(version)}")
        if not 1 <= version <= FORMAT_VERSION:
            raise ValueError(
                f"format_version={version}, this qgpo reads 1 to {FORMAT_VERSION}: upgrade"
            )
        if not isinstance(names, dict) or not names:
            raise ValueError(f"checkpoints={brief(names)}, expected names and digests")
        for name, digest in names.items():
            if not CHECKPOINT.fullmatch(name) or not re.fullmatch("[0-9a-f]{64}", str(digest)):
                raise ValueError(f"checkpoints has {brief(name)}: {brief(digest)}")
    except FileNotFoundError as error:
        raise CheckpointError(f"{str(path)!r} does not exist: no agent of qgpo is there") from error
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{str(path)!r} is no config.json of qgpo ({error})") from error
    return dict(about)


def load_checkpoints(
    folder: Path,
    about: dict[str, Any],
    env: gym.Env[Any, Any] | VecEnv | str | None,
    device: torch.device | str,
) -> Shared:
    """The agent or ensemble whose files are in the folder, once their digests are compared."""
    for name, digest in about["checkpoints"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{str(path)!r} does not exist, though {CONFIG} names it")
        if _sha256(path) != digest:
            raise CheckpointError(
                f"{str(path)!r} has other bytes than {CONFIG} states: fetch or save it again"
            )
    agents = [load_agent(folder / name, env, device) for name in about["checkpoints"]]
    _check_said(folder / CONFIG, about, agents)
    return agents[0] if list(about["checkpoints"]) == ["checkpoint.zip"] else Ensemble(agents)


def _check_said(path: Path, about: dict[str, Any], agents: Sequence[OfflineAgent[Any]]) -> None:
    """Raise CheckpointError where config.json says something else of the agents than they are.

    Fields of the configuration that only one of the two versions has are not compared.
    """
    found = json.loads(_as_json(_describe(agents[0], agents, about["checkpoints"])))
    config = about.get("config")
    shared = found["config"].keys() & (config.keys() if isinstance(config, dict) else ())
    pairs = {name: (about.get(name), found[name]) for name in SAID}
    pairs |= {f"config.{name}": (about["config"][name], found["config"][name]) for name in shared}
    for name, (said, is_so) in pairs.items():
        if said != is_so:
            raise CheckpointError(
                f"{str(path)!r} says {name}={brief(said)}, and the checkpoint has {brief(is_so)}: "
                "fetch or save it again"
            )


def as_evaluations(evaluations: Evaluation | Evaluations | None) -> list[Any]:
    """Pairs of a guidance scale and what was played. Raises TypeError for anything else."""
    if evaluations is None:
        return []
    pairs = [(None, evaluations)] if isinstance(evaluations, Evaluation) else list(evaluations)
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], Evaluation):
            raise TypeError(
                f"evaluations has {pair!r:.100}, expected what evaluate() returned, or pairs "
                "(guidance scale, that)"
            )
    return pairs


def _members(agent: Shared) -> tuple[OfflineAgent[Any], ...]:
    """The agents to write. Raises TypeError for other objects; warns of a scale files lack."""
    if not isinstance(agent, OfflineAgent | Ensemble):
        raise TypeError(f"agent is a {type(agent).__name__}, expected an agent or an Ensemble")
    members = agent.members if isinstance(agent, Ensemble) else (agent,)
    for member in members:
        kept = getattr(member.config, "guidance_scale", None)
        if is_guided(member) and member.guidance_scale != kept:
            warnings.warn(
                f"guidance_scale is {member.guidance_scale:g}, and files keep the configuration's, "
                f"{kept:g}: agent.configure_guidance({member.guidance_scale:g}) changes that",
                stacklevel=3,
            )
    return members


def _describe(
    agent: Shared, members: Sequence[OfflineAgent[Any]], digests: dict[str, str]
) -> dict[str, Any]:
    """The content of config.json."""
    first = members[0]
    assert first.observation_space is not None
    assert first.action_space is not None
    return {
        "format_version": FORMAT_VERSION,
        "library": "qgpo",
        "agent": first.name,
        "checkpoints": digests,
        "config": dataclasses.asdict(first.config),
        "seeds": [member.training.seed for member in members],
        "timesteps": [member.num_timesteps for member in members],
        "is_trained": all(member.is_trained for member in members),
        "guidance_scale": getattr(first.config, "guidance_scale", None),
        "guidance_scales": [getattr(m.config, "guidance_scale", None) for m in members],
        "fixed_scale": first.fixed_scale,
        "environment_steps": [_environment_steps(member) for member in members],
        "observations": first.observation_space.shape[0],
        "actions": first.action_space.shape[0],
        "window": None if first.window is None else first.window.to_json(),
        "dataset": {
            "id": first.dataset_id,
            "fingerprint": first.dataset_fingerprint,
            "env_id": first.env_spec.id if first.env_spec else None,
            "reference": dataclasses.asdict(first.reference) if first.reference else None,
        },
        "versions": versions(),
    }


def _environment_steps(agent: OfflineAgent[Any]) -> int:
    """Steps in an environment from which it learned."""
    return int(getattr(agent, "environment_steps", 0)) or collected_rows(agent.training)[1]


def _film(agent: Shared, env: EnvSpec | None, path: Path) -> bool:
    """Write a clip of one episode; warns, and returns False, where there can be none."""
    try:
        if env is None:
            raise ValueError("the agent's dataset names no environment")
        check_clip_path(path)
        frames, rate = record(agent, env, CLIP_SECONDS, CLIP_SEED, deterministic=True)
        write_clip(path, frames, rate)
    except (ValueError, RenderError) as error:
        warnings.warn(f"{path.name} is left out: {error}", stacklevel=3)
        return False
    return True


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, default=str) + "\n").encode()
