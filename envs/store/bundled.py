"""The default datasets: rollouts of small policies in the package, made on first use."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from gymnasium import spaces
from minari.dataset.minari_dataset import parse_dataset_id

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.rollouts.collecting import collect, describe
from qgpo.envs.rollouts.sb3_policies import POLICY_FOLDER, ActorPolicy, load_policy
from qgpo.envs.store.local import folder_of
from qgpo.envs.store.storing import expected_size
from qgpo.envs.store.writing import reserved_space, sole_writer, write_minari

N_STEPS = 100_000


@dataclass(frozen=True)
class Recipe:
    """Which policies are rolled out in which environment, how they take turns, and the seed."""

    env_id: str
    policies: tuple[str, ...]
    switch_every: int | None = None
    """draw the policy again about every so many steps; None draws it once per episode"""
    seed: int = 0
    n_steps: int = N_STEPS
    fingerprint: str | None = None
    """of the dataset that published results were computed from"""


ENVIRONMENTS = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5"}
FINGERPRINTS = (
    ("halfcheetah", "simple", "8f9671f0b3d138cdb7c638efa9e6048c8561c533aec55fc6f5de4575e907aa7c"),
    ("halfcheetah", "medium", "cb26f436a57eefe42a65ded9763044396c4819ee54ffd95ed4e07ab8214ea076"),
    ("halfcheetah", "mixed", "442e035e4f65694af89308715f6970a17ca59ee45d44158cd4b245ea8a5618a8"),
    ("hopper", "simple", "900c571d3104352cee682d58703a4e85ee4371bc63ce2b8e0b0c196284023496"),
    ("hopper", "medium", "8e49e224154896d74d0ebfccefa0eeab68c285229f1d175e0b3345ebe38414bb"),
    ("hopper", "mixed", "e22be62cc71663437f0634baa26b5064ae0272d158fc085b929842fe3c536983"),
)
RECIPES: dict[str, Recipe] = {
    f"qgpo/{task}/{kind}-v0": Recipe(
        ENVIRONMENTS[task],
        (f"{task}-simple", f"{task}-medium") if kind == "mixed" else (f"{task}-{kind}",),
        switch_every=50 if kind == "mixed" else None,
        fingerprint=fingerprint,
    )
    for task, kind, fingerprint in FINGERPRINTS
}


def policies() -> list[str]:
    """The names of the bundled policies."""
    return sorted(path.stem for path in POLICY_FOLDER.glob("*.safetensors"))


def bundled_policy(name: str, action_space: spaces.Box) -> ActorPolicy:
    """The bundled policy of that name."""
    if name not in policies():
        raise ValueError(f"policy {name!r}, expected a file or one of {policies()}")
    return load_policy(POLICY_FOLDER / f"{name}.safetensors", action_space)


def is_bundled(dataset_id: str) -> bool:
    """Whether the id has a recipe. Raises ValueError for other ids under qgpo/ without a folder."""
    if dataset_id in RECIPES:
        return True
    namespace = parse_dataset_id(dataset_id)[0] or ""
    if namespace.split("/")[0] == "qgpo" and not folder_of(dataset_id).exists():
        raise ValueError(f"dataset {dataset_id!r}, expected one of the bundled {sorted(RECIPES)}")
    return False


def ensure(dataset_id: str, progress_bar: bool = True) -> None:
    """Make the dataset, unless it exists now or another process makes it in the meantime."""
    recipe = RECIPES[dataset_id]
    if folder_of(dataset_id).exists():
        return
    with sole_writer(dataset_id):
        if folder_of(dataset_id).exists():  # another process was faster
            return
        with reserved_space(dataset_id, expected_size(recipe.env_id, recipe.n_steps)):
            episodes = collect(
                recipe.env_id,
                lambda space: [bundled_policy(name, space) for name in recipe.policies],
                recipe.n_steps,
                recipe.seed,
                switch_every=recipe.switch_every,
                progress_bar=progress_bar,
            )
        write_minari(
            dataset_id,
            episodes,
            recipe.env_id,
            "PPO",
            describe(recipe.policies, recipe.env_id, recipe.seed, recipe.switch_every),
            bundled=True,
        )


def is_published(dataset: OfflineDataset) -> bool | None:
    """Whether a bundled dataset is the one behind the published results; None for other data."""
    recipe = RECIPES.get(dataset.id)
    if recipe is None or recipe.fingerprint is None:
        return None
    return recipe.fingerprint == dataset.fingerprint


def warn_of_other_data(dataset: OfflineDataset) -> None:
    """Warn of a bundled dataset that is not the one behind the published results."""
    if is_published(dataset) is False:
        warnings.warn(
            f"dataset {dataset.id!r} in {folder_of(dataset.id)} is not the published one: agents "
            "can learn from it, but scores do not compare with others. It was made by another "
            "version of the package or of MuJoCo (delete that folder to regenerate it; agents "
            "that started training on it cannot resume then), or by a processor with other "
            "arithmetic (regenerating does not change it)",
            stacklevel=3,
        )
