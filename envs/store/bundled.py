"""The bundled datasets: rollouts of small policies in the package, made on first use."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

from gymnasium import spaces

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.rollouts.collecting import collect, describe
from qgpo.envs.rollouts.protocols import Policy
from qgpo.envs.rollouts.sb3_policies import POLICY_FOLDER, ActorPolicy, load_policy
from qgpo.envs.rollouts.scripted_policies import UniformPolicy
from qgpo.envs.store.local import folder_of
from qgpo.envs.store.storing import expected_size
from qgpo.envs.store.writing import reserved_space, sole_writer, write_minari

N_STEPS = 100_000
UNIFORM = "uniform"
"""among the policies of a recipe: actions drawn uniformly"""


@dataclass(frozen=True)
class Recipe:
    """Which policies are rolled out in which environment, how they take turns, and the seed."""

    env_id: str
    policies: tuple[str, ...]
    """names of bundled policies, and UNIFORM; one that is named twice has two shares"""
    switch_every: int | None = None
    """draw the policy again about every so many steps; None draws it once per episode"""
    seed: int = 0
    n_steps: int = N_STEPS
    spread: float = 1.0
    """standard deviations of the policies' noise are multiplied by it"""
    fingerprint: str | None = None
    """of the dataset that published results were computed from"""


@dataclass(frozen=True)
class Task:
    """What the datasets of one environment have in common."""

    env_id: str
    n_steps: int = N_STEPS
    turn: int = 50
    """steps after which, about, the two policies of `mixed` change"""


TASKS = {
    "halfcheetah": Task("HalfCheetah-v5"),
    "hopper": Task("Hopper-v5"),
    # Episodes of 200 and 50 steps: as many steps as make hundreds of them, and turns within each.
    "pendulum": Task("Pendulum-v1", n_steps=20_000, turn=20),
    "reacher": Task("Reacher-v5", n_steps=20_000, turn=10),
    "inverteddoublependulum": Task("InvertedDoublePendulum-v5", turn=20),
    "swimmer": Task("Swimmer-v5"),
    "walker2d": Task("Walker2d-v5"),
}
FINGERPRINTS = (
    ("halfcheetah", "simple", "8f9671f0b3d138cdb7c638efa9e6048c8561c533aec55fc6f5de4575e907aa7c"),
    ("halfcheetah", "medium", "cb26f436a57eefe42a65ded9763044396c4819ee54ffd95ed4e07ab8214ea076"),
    ("halfcheetah", "mixed", "442e035e4f65694af89308715f6970a17ca59ee45d44158cd4b245ea8a5618a8"),
    ("hopper", "simple", "900c571d3104352cee682d58703a4e85ee4371bc63ce2b8e0b0c196284023496"),
    ("hopper", "medium", "8e49e224154896d74d0ebfccefa0eeab68c285229f1d175e0b3345ebe38414bb"),
    ("hopper", "mixed", "e22be62cc71663437f0634baa26b5064ae0272d158fc085b929842fe3c536983"),
    ("pendulum", "simple", "4f8a6cb389ba8291792541f2d67286bc7a79df75ea019af286666fcfb59ad9cd"),
    ("pendulum", "medium", "07a65ce2465f65c0e44721b6cf016c2cba6fbe495617c3d7163b640a7fd6b53e"),
    ("pendulum", "mixed", "e899f1ac339fb94197b06e9c2f22ba60821fccc8f5871d9d7f172618382e0570"),
    ("pendulum", "wide", "c627c1be06020b154169f1591ac9ccd85eaca791069bcb61be82bd3d36307606"),
    ("pendulum", "modes", "823266590155dbe7c2fa7fc9ec03157b00230d52e23a859cf9fa68cc873f92c4"),
    ("reacher", "simple", "9aff85b51065166606696a28c812a09d8ea6179a11ef1d17a8679c696763235f"),
    ("reacher", "medium", "38269979caac5f597139ef9f0cd194b6e630883ab6ccceba7d668905a0fa5ba1"),
    ("reacher", "mixed", "79cc1eaba72ef726a0171c3f1b20fffed129b17cb66848681ebc12fbbcc8b701"),
    ("reacher", "wide", "53db5ca1149b8173f78b673c0acb47244a1ed38c1285ff87bf712e306289c5b5"),
    (
        "inverteddoublependulum",
        "simple",
        "ef19216f1b183b6a0b7a79604b642a9a95bc1c8efc78e14f8dd8054655311cc8",
    ),
    (
        "inverteddoublependulum",
        "medium",
        "96b4d50b943615b565b5b66b9a32106b5bef6540dc5e06932cc7e0ca0e1e6a5f",
    ),
    (
        "inverteddoublependulum",
        "mixed",
        "bf3c0a17a1b13aa94a110833b535510b5b47bff851ad6948122811aa26ead36b",
    ),
    ("swimmer", "simple", "5069bf362ae89179435b2b02bd870d8185ab9f5c45dc051cc0a6db8284b8b91d"),
    ("swimmer", "medium", "72b646243860835d42aebacb2b3de1c9bb6a74cfcd253e4d2d21061bcccd0612"),
    ("swimmer", "mixed", "197b8901432dc3cdff8d23b86ecfe8d8290ae34378cf0ad158218fc3030f0fe2"),
    ("swimmer", "modes", "2f3b0e817e029de263642027039526ea33d7b89c667d549ed96fd4aa52438186"),
    ("walker2d", "simple", "148bae9f3791a387dedd33bbe75d9eed1b55abceae72bc324e5cf1aedeccbe4a"),
    ("walker2d", "medium", "9d100546ce60fc9f521fc9f0c22fc946617fff800e820e2428b71ee520baf9af"),
    ("walker2d", "mixed", "50ae429c0950b39947e2702e154aece91e3c374cffebe72ffe4941aa07d23c21"),
)


def make_recipe(task: str, kind: str, fingerprint: str) -> Recipe:
    """How the `kind` of dataset is made in that task's environment.

    Simple and medium are one policy, mixed is both in turns, modes is mixed with a quarter of the
    noise, so that the two can be told apart in most states, and every third action of wide,
    about, is drawn uniformly, the others by medium. Raises KeyError for another kind.
    """
    simple, medium, about = f"{task}-simple", f"{task}-medium", TASKS[task]
    policies, switch_every, spread = {
        "simple": ((simple,), None, 1.0),
        "medium": ((medium,), None, 1.0),
        "mixed": ((simple, medium), about.turn, 1.0),
        "modes": ((simple, medium), about.turn, 0.25),
        "wide": ((medium, medium, UNIFORM), 1, 1.0),
    }[kind]
    return Recipe(
        about.env_id,
        policies,
        switch_every,
        n_steps=about.n_steps,
        spread=spread,
        fingerprint=fingerprint,
    )


RECIPES: dict[str, Recipe] = {
    f"qgpo/{task}/{kind}-v0": make_recipe(task, kind, fingerprint)
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


def open_policies(recipe: Recipe, action_space: spaces.Box) -> list[Policy]:
    """The policies of a recipe, in its order."""
    policies: list[Policy] = []
    for name in recipe.policies:
        if name == UNIFORM:
            policies.append(UniformPolicy(action_space))
            continue
        policy = bundled_policy(name, action_space)
        policy.log_std += math.log(recipe.spread)
        policies.append(policy)
    return policies


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
                lambda space: open_policies(recipe, space),
                recipe.n_steps,
                recipe.seed,
                switch_every=recipe.switch_every,
                progress_bar=progress_bar,
            )
        write_minari(
            dataset_id,
            episodes,
            recipe.env_id,
            "PPO, uniform" if UNIFORM in recipe.policies else "PPO",
            description(recipe),
            bundled=True,
        )


def description(recipe: Recipe) -> str:
    """How the data were made, in one or two sentences."""
    text = describe(recipe.policies, recipe.env_id, recipe.seed, recipe.switch_every)
    return text if recipe.spread == 1.0 else f"{text} Their noise times {recipe.spread:g}."


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
            f"dataset {dataset.id!r} in {folder_of(dataset.id)} differs from the published "
            "dataset: agents can learn from it, but scores are not comparable with others. It "
            "was generated by another version of the package or of MuJoCo (delete that folder "
            "to regenerate it; agents that started training on it cannot resume then), or by a "
            "processor with different arithmetic (regenerating does not help)",
            stacklevel=3,
        )
