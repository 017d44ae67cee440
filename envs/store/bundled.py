"""The embedded default data: small policies in the package, rolled out on first use."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from gymnasium import spaces
from minari.dataset.minari_dataset import parse_dataset_id
from minari.storage.datasets_root_dir import get_dataset_path

from qgpo.envs.collect.policies import POLICY_FOLDER, ActorPolicy, load_policy
from qgpo.envs.collect.rollouts import collect, write_minari
from qgpo.envs.data.dataset import OfflineDataset

N_STEPS = 100_000


@dataclass(frozen=True)
class Recipe:
    """Which policies are rolled out, how they take turns, and from which seed."""

    env_id: str
    policies: tuple[str, ...]
    switch_every: int | None = None
    seed: int = 0
    n_steps: int = N_STEPS
    fingerprint: str | None = None
    """of the dataset that published figures stand on"""


RECIPES: dict[str, Recipe] = {
    "qgpo/halfcheetah/simple-v0": Recipe(
        "HalfCheetah-v5",
        ("halfcheetah-simple",),
        fingerprint="8f9671f0b3d138cdb7c638efa9e6048c8561c533aec55fc6f5de4575e907aa7c",
    ),
    "qgpo/halfcheetah/medium-v0": Recipe(
        "HalfCheetah-v5",
        ("halfcheetah-medium",),
        fingerprint="cb26f436a57eefe42a65ded9763044396c4819ee54ffd95ed4e07ab8214ea076",
    ),
    "qgpo/halfcheetah/mixed-v0": Recipe(
        "HalfCheetah-v5",
        ("halfcheetah-simple", "halfcheetah-medium"),
        switch_every=50,
        fingerprint="442e035e4f65694af89308715f6970a17ca59ee45d44158cd4b245ea8a5618a8",
    ),
    "qgpo/hopper/simple-v0": Recipe(
        "Hopper-v5",
        ("hopper-simple",),
        fingerprint="900c571d3104352cee682d58703a4e85ee4371bc63ce2b8e0b0c196284023496",
    ),
    "qgpo/hopper/medium-v0": Recipe(
        "Hopper-v5",
        ("hopper-medium",),
        fingerprint="8e49e224154896d74d0ebfccefa0eeab68c285229f1d175e0b3345ebe38414bb",
    ),
    "qgpo/hopper/mixed-v0": Recipe(
        "Hopper-v5",
        ("hopper-simple", "hopper-medium"),
        switch_every=50,
        fingerprint="e22be62cc71663437f0634baa26b5064ae0272d158fc085b929842fe3c536983",
    ),
}


def ids() -> list[str]:
    """Ids of the bundled datasets."""
    return sorted(RECIPES)


def policies() -> list[str]:
    """Names of the bundled policies."""
    return sorted(path.stem for path in POLICY_FOLDER.glob("*.safetensors"))


def bundled_policy(name: str, action_space: spaces.Box) -> ActorPolicy:
    """The bundled policy of that name."""
    if name not in policies():
        raise ValueError(f"policy {name!r}, expected a file or one of {policies()}")
    return load_policy(POLICY_FOLDER / f"{name}.safetensors", action_space)


def is_bundled(dataset_id: str) -> bool:
    """Whether the id is one of ours; an unknown id under `qgpo/` that is not there is refused."""
    if dataset_id in RECIPES:
        return True
    namespace = parse_dataset_id(dataset_id)[0]
    is_ours = namespace is not None and namespace.split("/")[0] == "qgpo"
    if is_ours and not Path(get_dataset_path(dataset_id)).exists():
        raise ValueError(f"dataset {dataset_id!r}, expected one of the bundled {ids()}")
    return False


def ensure(dataset_id: str, progress_bar: bool = True) -> None:
    """Roll the dataset out unless it is there already, or is when this process is done."""
    if _is_there(dataset_id):
        return
    recipe = RECIPES[dataset_id]
    episodes = collect(
        recipe.env_id,
        lambda space: [bundled_policy(name, space) for name in recipe.policies],
        recipe.n_steps,
        recipe.seed,
        switch_every=recipe.switch_every,
        progress_bar=progress_bar,
    )
    if _is_there(dataset_id):  # another process was faster, and what it made is the same
        return
    turns = (
        "one per episode"
        if recipe.switch_every is None
        else (f"changing about every {recipe.switch_every} steps")
    )
    write_minari(
        dataset_id,
        episodes,
        recipe.env_id,
        "PPO",
        f"Rollouts with sampled actions of {', '.join(recipe.policies)}, {turns}, in "
        f"{recipe.env_id}, seed {recipe.seed}.",
        bundled=True,
    )


def _is_there(dataset_id: str) -> bool:
    return (Path(get_dataset_path(dataset_id)) / "data" / "metadata.json").exists()


def warn_of_other_data(dataset: OfflineDataset) -> None:
    """Warn where a bundled dataset is not the one that published figures stand on."""
    recipe = RECIPES.get(dataset.id)
    if recipe is None or recipe.fingerprint in (None, dataset.fingerprint):
        return
    warnings.warn(
        f"dataset {dataset.id!r} in {get_dataset_path(dataset.id)} is not the published one: it "
        "can be learned from, but scores compare with no others. Another version of the package "
        "or of MuJoCo made it (delete that folder to have it made anew; agents that began with "
        "it then cannot go on), or a processor whose arithmetic differs (there it stays so)",
        stacklevel=3,
    )
