"""The world: datasets, collection, evaluation, reference scores."""

from qgpo.envs.datasets import OfflineDataset, load_dataset
from qgpo.envs.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "OfflineDataset", "evaluate", "load_dataset"]
