"""QGPO: offline reinforcement learning with exact energy guidance of diffusion policies."""

from qgpo import _moved as _moved
from qgpo.agents import AEPO as AEPO
from qgpo.agents import BC as BC
from qgpo.agents import FQL as FQL
from qgpo.agents import IFQL as IFQL
from qgpo.agents import IQL as IQL
from qgpo.agents import PRESETS as PRESETS
from qgpo.agents import QGPO as QGPO
from qgpo.agents import QIPO as QIPO
from qgpo.agents import SIR as SIR
from qgpo.agents import TD3BC as TD3BC
from qgpo.agents import AEPOConfig as AEPOConfig
from qgpo.agents import BCConfig as BCConfig
from qgpo.agents import BestOfN as BestOfN
from qgpo.agents import BestOfNConfig as BestOfNConfig
from qgpo.agents import DiffusionQL as DiffusionQL
from qgpo.agents import DiffusionQLConfig as DiffusionQLConfig
from qgpo.agents import EnergyGuidedConfig as EnergyGuidedConfig
from qgpo.agents import EnergyGuidedDiffusion as EnergyGuidedDiffusion
from qgpo.agents import Ensemble as Ensemble
from qgpo.agents import FQLConfig as FQLConfig
from qgpo.agents import IFQLConfig as IFQLConfig
from qgpo.agents import IQLConfig as IQLConfig
from qgpo.agents import OfflineEvaluation as OfflineEvaluation
from qgpo.agents import OneStepConfig as OneStepConfig
from qgpo.agents import OneStepPolicy as OneStepPolicy
from qgpo.agents import OnlineConfig as OnlineConfig
from qgpo.agents import QGPOConfig as QGPOConfig
from qgpo.agents import QIPOConfig as QIPOConfig
from qgpo.agents import ReBRAC as ReBRAC
from qgpo.agents import ReBRACConfig as ReBRACConfig
from qgpo.agents import SIRConfig as SIRConfig
from qgpo.agents import TD3BCConfig as TD3BCConfig
from qgpo.agents import evaluate_offline as evaluate_offline
from qgpo.agents import learn_model as learn_model
from qgpo.agents import load_agent as load_agent
from qgpo.agents import load_from_folder as load_from_folder
from qgpo.agents import load_from_hub as load_from_hub
from qgpo.agents import push_to_hub as push_to_hub
from qgpo.agents import save_to_folder as save_to_folder
from qgpo.envs import Evaluation as Evaluation
from qgpo.envs import OfflineDataset as OfflineDataset
from qgpo.envs import evaluate as evaluate
from qgpo.envs import load_dataset as load_dataset

__version__ = "0.1.0"
