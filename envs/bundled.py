"""The embedded default data: small policies in the package, rolled out on first use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gymnasium import spaces
from minari.dataset.minari_dataset import parse_dataset_id
from minari.storage.datasets_root_dir import get_dataset_path

from qgpo.envs.collection import collect, write_minari
from qgpo.envs.policies import ActorPolicy, load_policy

POLICY_FOLDER = Path(__file__).parent / "policies"
N_STEPS = 100_000


@dataclass(frozen=True)
class Recipe:
    """Which policies are rolled out, how they take turns, and from which seed."""

    env_id: str
    policies: tuple[str, ...]
    switch_every: int | None = None
    seed: int = 0
    n_steps: int = N_STEPS


RECIPES: dict[str, Recipe] = {
    "qgpo/halfcheetah/simple-v0": Recipe("HalfCheetah-v5", ("halfcheetah-simple",)),
    "qgpo/halfcheetah/medium-v0": Recipe("HalfCheetah-v5", ("halfcheetah-medium",)),
    "qgpo/halfcheetah/mixed-v0": Recipe(
        "HalfCheetah-v5", ("halfcheetah-simple", "halfcheetah-medium"), switch_every=50
    ),
    "qgpo/hopper/simple-v0": Recipe("Hopper-v5", ("hopper-simple",)),
    "qgpo/hopper/medium-v0": Recipe("Hopper-v5", ("hopper-medium",)),
    "qgpo/hopper/mixed-v0": Recipe(
        "Hopper-v5", ("hopper-simple", "hopper-medium"), switch_every=50
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
    """Roll the dataset out unless it is there already."""
    folder = Path(get_dataset_path(dataset_id))
    if (folder / "data" / "metadata.json").exists():
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
    turns = (
        "one per episode"
        if recipe.switch_every is None
        else (f"changing about every {recipe.switch_every} steps")
    )
    write_minari(
        dataset_id,
        episodes,
        recipe.env_id,
        "SAC",
        f"Rollouts with sampled actions of {', '.join(recipe.policies)}, {turns}, in "
        f"{recipe.env_id}, seed {recipe.seed}.",
    )
