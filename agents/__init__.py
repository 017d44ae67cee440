"""One file per agent: its configuration, presets, update and act, read from top to bottom.

The contract of all agents is in `core`, what the guided family shares in `guided`. Losses and
networks belong in `qgpo`, runs in `experiments`.
"""

from qgpo.agents.aepo import AEPO as AEPO
from qgpo.agents.aepo import AEPOConfig as AEPOConfig
from qgpo.agents.bc import BC as BC
from qgpo.agents.bc import BCConfig as BCConfig
from qgpo.agents.best_of_n import BestOfN as BestOfN
from qgpo.agents.best_of_n import BestOfNConfig as BestOfNConfig
from qgpo.agents.core.agent import OfflineAgent as OfflineAgent
from qgpo.agents.core.callbacks import EvaluationCallback as EvaluationCallback
from qgpo.agents.core.config import longer as longer
from qgpo.agents.core.online import OnlineConfig as OnlineConfig
from qgpo.agents.core.speed import within_minutes as within_minutes
from qgpo.agents.diffusion_ql import DiffusionQL as DiffusionQL
from qgpo.agents.diffusion_ql import DiffusionQLConfig as DiffusionQLConfig
from qgpo.agents.energy_guided import EnergyGuidedConfig as EnergyGuidedConfig
from qgpo.agents.energy_guided import EnergyGuidedDiffusion as EnergyGuidedDiffusion
from qgpo.agents.ensemble import Ensemble as Ensemble
from qgpo.agents.fql import FQL as FQL
from qgpo.agents.fql import FQLConfig as FQLConfig
from qgpo.agents.hub import HubError as HubError
from qgpo.agents.hub import load_from_hub as load_from_hub
from qgpo.agents.hub import push_to_hub as push_to_hub
from qgpo.agents.ifql import IFQL as IFQL
from qgpo.agents.ifql import IFQLConfig as IFQLConfig
from qgpo.agents.iql import IQL as IQL
from qgpo.agents.iql import IQLConfig as IQLConfig
from qgpo.agents.offline_evaluation import OfflineEvaluation as OfflineEvaluation
from qgpo.agents.offline_evaluation import evaluate_offline as evaluate_offline
from qgpo.agents.offline_evaluation import learn_model as learn_model
from qgpo.agents.one_step import OneStepConfig as OneStepConfig
from qgpo.agents.one_step import OneStepPolicy as OneStepPolicy
from qgpo.agents.qgpo import PRESETS as PRESETS
from qgpo.agents.qgpo import QGPO as QGPO
from qgpo.agents.qgpo import QGPOConfig as QGPOConfig
from qgpo.agents.qipo import QIPO as QIPO
from qgpo.agents.qipo import QIPOConfig as QIPOConfig
from qgpo.agents.rebrac import ReBRAC as ReBRAC
from qgpo.agents.rebrac import ReBRACConfig as ReBRACConfig
from qgpo.agents.registry import AGENTS as AGENTS
from qgpo.agents.registry import load_agent as load_agent
from qgpo.agents.sharing import load_from_folder as load_from_folder
from qgpo.agents.sharing import save_to_folder as save_to_folder
from qgpo.agents.sir import SIR as SIR
from qgpo.agents.sir import SIRConfig as SIRConfig
from qgpo.agents.td3bc import TD3BC as TD3BC
from qgpo.agents.td3bc import TD3BCConfig as TD3BCConfig
