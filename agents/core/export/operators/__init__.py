"""Torch's operators in ONNX: one function for each kind, found by the operator's name.

They are those that recordings of the package's policies have. An operator that is not here is an
error that names it. Each file is imported here, which registers its functions.
"""

from qgpo.agents.core.export.operators import by_element, products, reductions, shapes
from qgpo.agents.core.export.translation import OPERATORS, Translation

__all__ = ["OPERATORS", "Translation", "by_element", "products", "reductions", "shapes"]
