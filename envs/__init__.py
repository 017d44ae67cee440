"""The world: datasets, collection, evaluation, reference scores."""

from qgpo.envs.data.dataset import OfflineDataset
from qgpo.envs.play.evaluation import Evaluation, evaluate
from qgpo.envs.store.loading import load_dataset
from qgpo.envs.toy import TOY_PROBLEMS, draw_toy, make_toy_dataset

__all__ = [
    "TOY_PROBLEMS",
    "Evaluation",
    "OfflineDataset",
    "draw_toy",
    "evaluate",
    "load_dataset",
    "make_toy_dataset",
]
