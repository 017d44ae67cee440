"""The world: datasets, rollouts, evaluation, reference scores.

Folders import in this order: `tasks`, `data`, `rollouts`, `store`, `logs`, `play`; each uses those
before it. What an agent learns belongs in `qgpo.agents`, what a run writes in `qgpo.experiments`.
"""

from qgpo.envs.data.dataset import OfflineDataset as OfflineDataset
from qgpo.envs.play.evaluation import evaluate as evaluate
from qgpo.envs.play.scores import Evaluation as Evaluation
from qgpo.envs.rollouts.collecting import collect as collect
from qgpo.envs.rollouts.collecting import collect_vec_env as collect_vec_env
from qgpo.envs.rollouts.scripted_policies import UniformPolicy as UniformPolicy
from qgpo.envs.store.checking import check_dataset as check_dataset
from qgpo.envs.store.loading import load_dataset as load_dataset
from qgpo.envs.store.local import local_ids as local_ids
from qgpo.envs.store.writing import write_minari as write_minari
from qgpo.envs.tasks.one_hot import OneHotActions as OneHotActions
from qgpo.envs.tasks.one_hot import one_hot as one_hot
from qgpo.envs.toy import TOY_PROBLEMS as TOY_PROBLEMS
from qgpo.envs.toy import draw_toy as draw_toy
from qgpo.envs.toy import make_toy_dataset as make_toy_dataset
