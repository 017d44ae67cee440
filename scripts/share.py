"""Hand a trained agent on: as a folder, or through the Hugging Face hub.

python scripts/share.py save runs/demo --folder halfcheetah-agent
python scripts/share.py push runs/demo --repo-id me/halfcheetah-agent --license mit
python scripts/share.py load me/halfcheetah-agent --output agent.zip

Nothing that is loaded can run code. The hub's login is that of `hf auth login`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from qgpo.agents import Ensemble, OfflineAgent, load_agent
from qgpo.agents.card import UNKNOWN
from qgpo.agents.hub import load_from_hub, push_to_hub
from qgpo.agents.sharing import Shared, load_from_folder, save_to_folder
from qgpo.commands import command
from qgpo.envs.play.scores import scale_label, score_table
from qgpo.envs.play.video import choose_renderer
from qgpo.envs.store.downloading import digest
from qgpo.experiments import documents
from qgpo.experiments.folder import RunFolder
from qgpo.scripts._refusals import one_line
from qgpo.scripts._runs import find_runs
from qgpo.scripts._terminal import any_terminal, description

Runs = tyro.conf.Positional[tuple[Path, ...]]


def save(run: Runs, folder: Path, license: str = UNKNOWN, clip: bool = True) -> None:
    """Write an agent with its model card into a new folder, which load_from_folder reads.

    Args:
        run: run folder or checkpoint .zip; several act together
        folder: new folder
        license: the hub's identifier of a licence, such as mit or cc-by-4.0
        clip: draw one episode, replay.mp4, where that is possible
    """
    agent, about = read_runs(run, clip)
    print(f"folder: {save_to_folder(agent, folder, clip=clip, license=license, **about)}")


def push(
    run: Runs,
    repo_id: str,
    license: str = UNKNOWN,
    clip: bool = True,
    private: bool = False,
    revision: str | None = None,
) -> None:
    """Put an agent with its model card into a repository of the hub, in one commit.

    Args:
        run: run folder or checkpoint .zip; several act together
        repo_id: owner/name; the repository is made where there is none
        license: the hub's identifier of a licence, such as mit or cc-by-4.0
        clip: draw one episode, replay.mp4, where that is possible
        private: make a new repository private
        revision: branch, made where there is none; default main
    """
    agent, about = read_runs(run, clip)
    options: dict[str, Any] = {"private": private or None, "revision": revision, **about}
    commit = push_to_hub(agent, repo_id, clip=clip, license=license, **options)
    print(f"commit: {commit}")


def load(source: tyro.conf.Positional[str], output: Path, revision: str | None = None) -> None:
    """Write the checkpoint of an agent from the hub, or from a folder.

    Args:
        source: owner/name, or a folder that exists
        output: new checkpoint .zip; of an ensemble one for each member, with a number
        revision: branch, tag or commit; default main
    """
    if output.suffix != ".zip":
        raise ValueError(f"--output {output}: expected a name that ends in .zip")
    is_folder = Path(source).is_dir()
    if is_folder and revision is not None:
        raise ValueError(
            f"--revision {revision}: {source} is a folder, which has no revisions; leave "
            "--revision away"
        )
    agent = load_from_folder(source) if is_folder else _fetch(source, revision)
    members: dict[Path, OfflineAgent[Any]]
    if isinstance(agent, Ensemble):
        members = {output.with_stem(f"{output.stem}-{k}"): m for k, m in enumerate(agent.members)}
    else:
        members = {output: agent}
    for path in members:
        if path.exists():
            raise ValueError(f"--output {output}: {path} exists, choose another name")
    for path, member in members.items():
        member.save(path)
        print(f"{member}: {path}")


def _fetch(repo_id: str, revision: str | None) -> Shared:
    return load_from_hub(repo_id, revision=revision)


COMMANDS: dict[str, Callable[..., None]] = {"save": save, "push": push, "load": load}


def read_runs(runs: tuple[Path, ...], clip: bool) -> tuple[Shared, dict[str, Any]]:
    """The agent of one run, or of several together; what its documents say for the model card.

    The returns of several together are those that evaluate.py wrote last into the first run, of
    the same checkpoints.
    """
    if not runs:
        raise ValueError("no run given, expected a run folder or a checkpoint, or several")
    if clip:
        choose_renderer()
    folders = find_runs(runs)
    agents = [load_agent(folder.checkpoint) for folder in folders]
    first = folders[0]
    alone = len(agents) == 1
    evaluations = of_run(first) if alone else of_several(folders, agents)
    if evaluations:
        print(score_table([(scale_label(scale), played) for scale, played in evaluations]))
    returns = None
    if first.config.is_file() and first.checkpoint.name == "checkpoint.zip":
        returns = documents.read(first.config).get("dataset", {}).get("returns")
    about = {"evaluations": evaluations or None, "data_returns": returns}
    return agents[0] if alone else Ensemble(agents), about


def of_run(folder: RunFolder) -> documents.Evaluations:
    """The last evaluation of a run that played anything, whole episodes of this checkpoint."""
    if folder.checkpoint.name != "checkpoint.zip":
        return []
    now = digest(folder.checkpoint, "sha256")
    for document in reversed(documents.read_results(folder)):
        if document.get("max_episode_steps") or document.get("sha256", now) != now:
            continue
        if found := documents.evaluations_from_json(document["evaluations"]):
            return found
    return []


def of_several(
    folders: Sequence[RunFolder], agents: Sequence[OfflineAgent[Any]]
) -> documents.Evaluations:
    """The last evaluation of these agents together that evaluate.py wrote into the first folder.

    Earlier versions noted the timesteps of a checkpoint, and not its digest.
    """
    given = {
        (folder.checkpoint.resolve(), of)
        for folder, agent in zip(folders, agents, strict=True)
        for of in (digest(folder.checkpoint, "sha256"), agent.num_timesteps)
    }
    for path in sorted(folders[0].path.glob("evaluation-together-*.json"), reverse=True):
        document = documents.read_json(path)
        members = {
            (Path(one.get("checkpoint", "")).resolve(), one.get("sha256", one.get("timesteps")))
            for one in document.get("members", ())
        }
        if document.get("max_episode_steps"):
            continue
        if len(members) == len(folders) and members <= given:
            return documents.evaluations_from_json(document["evaluations"])
    return []


@one_line(RuntimeError)
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name."""
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS, args=argv, prog=command("share"), description=description(__doc__)
    )


@any_terminal()
def cli() -> None:
    """Entry point."""
    main()


if __name__ == "__main__":
    cli()
