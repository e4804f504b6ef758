"""Automatic differentiation of programs written with numpy: dual numbers (forward mode), a tape (reverse mode), and
the cost of both, counted.

A `Box` is an array that watches the operations applied to it. numpy hands every operation on a box to `_apply`, which
looks up its derivative in one table of rules; a `Dual` pushes a tangent through it, a `Var` writes it on a tape, a
`_Counted` counts it. Boxes nest: the value in a box may be a box of an outer derivative, so that higher derivatives
and the cost of derivatives are compositions of the same functions.

Derivatives at kinks, by convention: |x|' = 0 at 0; of `maximum`, `minimum` and `max`, arguments that tie share the
derivative equally; comparisons, `sign` and rounding have derivative zero. Singular points follow IEEE arithmetic:
the derivative of sqrt at 0 is inf.
"""

from coursekit.autodiff._boxes import Box, Dual, Tape, Var
from coursekit.autodiff._derivatives import checkpoint, grad, hvp, jacfwd, jacrev, jvp, vjp
from coursekit.autodiff._differences import check_grad, finite_difference
from coursekit.autodiff._inspection import Cost, Graph, cost, graph
from coursekit.autodiff._rules import elementwise_partials

__all__ = [
    "Box",
    "Cost",
    "Dual",
    "Graph",
    "Tape",
    "Var",
    "check_grad",
    "checkpoint",
    "cost",
    "elementwise_partials",
    "finite_difference",
    "grad",
    "graph",
    "hvp",
    "jacfwd",
    "jacrev",
    "jvp",
    "vjp",
]
