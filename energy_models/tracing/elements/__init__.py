"""What an operator outside the GEMMs costs in adds and multiplications, one formula per aten operator.

Formulas give the arithmetic of an accelerator, not of a CPU kernel. Assumptions: a special function (exp, log, tanh,
sine, division, square root and their like) costs `SPECIAL` multiplications; a compare, a choice and a change of sign
cost one integer add, as a step of a random generator does. Integers and truth values are bookkeeping and cost nothing.
"""

from energy_models.tracing.elements.activations import ACTIVATIONS
from energy_models.tracing.elements.free import FILLS, FREE
from energy_models.tracing.elements.indexing import INDEXING
from energy_models.tracing.elements.losses import LOSSES
from energy_models.tracing.elements.normalization import NORMALIZATION, softmax_backward_ops, softmax_ops
from energy_models.tracing.elements.pointwise import POINTWISE
from energy_models.tracing.elements.pooling import POOLING
from energy_models.tracing.elements.reductions import REDUCTIONS
from energy_models.tracing.elements.traffic import moved_bits
from energy_models.tracing.elements.work import SPECIAL, ElementFormula

__all__ = ["ELEMENTS", "FILLS", "FREE", "SPECIAL", "moved_bits", "softmax_backward_ops", "softmax_ops"]

# By schema name; in-place operators do the same work under the same name.
ELEMENTS: dict[str, ElementFormula] = {
    **POINTWISE,
    **ACTIVATIONS,
    **NORMALIZATION,
    **POOLING,
    **REDUCTIONS,
    **INDEXING,
    **LOSSES,
}
