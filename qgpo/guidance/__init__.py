"""The answers to "what is the intermediate energy f_t?", one file each.

All take the sign "higher is better": p_t ~ q_t exp(f_t), f_0 = beta Q (or -beta E).
"""

from qgpo.guidance.cep import CEP, cep_loss

__all__ = ["CEP", "cep_loss"]
