"""The world: datasets, rollouts, evaluation, reference scores.

Folders import in this order: `tasks`, `data`, `rollouts`, `store`, `play`; each uses those before
it. What an agent learns belongs in `qgpo.agents`, what a run writes in `qgpo.experiments`.
"""

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.play.evaluation import Evaluation, evaluate
from qgpo.envs.rollouts.collecting import collect, collect_vec_env
from qgpo.envs.rollouts.scripted_policies import UniformPolicy
from qgpo.envs.store.checking import check_dataset
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.store.local import local_ids
from qgpo.envs.store.writing import write_minari
from qgpo.envs.toy import TOY_PROBLEMS, draw_toy, make_toy_dataset

__all__ = [
    "TOY_PROBLEMS",
    "Evaluation",
    "OfflineDataset",
    "UniformPolicy",
    "check_dataset",
    "collect",
    "collect_vec_env",
    "draw_toy",
    "evaluate",
    "load_dataset",
    "local_ids",
    "make_toy_dataset",
    "write_minari",
]
