"""What a program does: its graph, and its cost counted instead of timed."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from coursekit.autodiff._boxes import Box, Tape, Var, levels
from coursekit.autodiff._derivatives import Array, Point, as_point, map_point
from coursekit.autodiff._rules import ELEMENTWISE


@dataclass(frozen=True)
class Graph:
    """A program of scalar operations as a directed acyclic graph, nodes in order of execution, inputs first."""

    operations: tuple[str, ...]
    values: tuple[float, ...]
    edges: tuple[tuple[int, int, float], ...]
    """(i, j, ∂w_j/∂w_i): node j uses node i; the partial derivative is the local one, the other arguments fixed."""
    output: int
    """The node that f returns."""

    @property
    def partials(self) -> Float[np.ndarray, "n n"]:
        """Strictly lower triangular D with D[j, i] = ∂w_j/∂w_i: (I - D)⁻¹ holds the total derivatives."""
        D = np.zeros((len(self.values), len(self.values)))
        for i, j, partial in self.edges:
            D[j, i] += partial
        return D


class _Drawing(Tape):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[Array] = []

    def record(self, function, value, parents, pull):
        if np.shape(value) != ():
            name = "an input" if function is None else function.__name__
            raise ValueError(f"graph draws programs of scalars: {name} has shape {np.shape(value)}")
        self.values.append(value)
        return super().record(function, value, parents, pull)


def graph(f: Callable, x: tuple[float, ...]) -> Graph:
    """Graph of one execution of f, a function of a tuple of numbers that returns a number; constants are no nodes.

    Raises ValueError if anything in it is not a scalar, or the result does not depend on x.
    Source: Chertkov §2.1 (Fig. 2.1).  Taught in: notebook 02_01.
    """
    tape = _Drawing()
    y = f(map_point(tape.watch, as_point("x", x)))
    if not isinstance(y, Var):
        raise ValueError(f"f must return a number that depends on x, got {y!r}")
    edges = [
        (parent, child, float(partial))
        for child, (_, parents, pull) in enumerate(tape.entries)
        for parent, partial in zip(parents, pull(1.0), strict=True)
    ]
    operations = ["input" if function is None else function.__name__ for function, _, _ in tape.entries]
    return Graph(tuple(operations), tuple(float(value) for value in tape.values), tuple(edges), y.index)


@dataclass
class Cost:
    """What an execution cost: arithmetic operations on numbers, calls on arrays, and the numbers held at once.

    Every elementary function counts 1 for each number it returns, a matrix product 2 for each multiply-add, a
    reduction the additions it makes; moving data and comparing counts 0. Memory counts the arrays made during the
    execution that are alive at the same time, a view as part of its array, the arguments not.
    """

    operations: int = 0
    calls: int = 0
    memory: int = 0
    peak_memory: int = 0

    def _count(self, function: Callable, values: list, y: np.ndarray) -> None:
        self.calls += 1
        if function is np.matmul:
            self.operations += 2 * y.size * np.shape(values[0])[-1]
        elif function in (np.sum, np.max):
            self.operations += np.size(values[0]) - y.size
        elif function in ELEMENTWISE:
            self.operations += y.size
        owner = y if y.base is None else y.base
        if not any(np.may_share_memory(owner, a) for a in values if isinstance(a, np.ndarray)):  # not a view
            self.memory += owner.size
            self.peak_memory = max(self.peak_memory, self.memory)
            weakref.finalize(owner, self._release, owner.size)

    def _release(self, size: int) -> None:
        self.memory -= size


class _Counted(Box):
    """A value whose operations are counted; being the outermost box it sees those of all derivatives inside."""

    __slots__ = ("cost",)

    def __init__(self, level: int, value: np.ndarray, cost: Cost):
        self.level, self.value, self.cost = level, value, cost

    def constant(self, a):
        return _Counted(self.level, np.asarray(a), self.cost)

    def _process(self, function, rule, boxes, values, kwargs):
        y = np.asarray(function(*values, **kwargs))
        self.cost._count(function, values, y)
        return _Counted(self.level, y, self.cost)


def cost(f: Callable, *args: Point) -> Cost:
    """Cost of evaluating f(*args), counted instead of timed: the same on every machine.

    f is written with numpy and may contain any of the derivatives here: ``cost(grad(f), x)``.
    Source: Griewank and Walther, *Evaluating Derivatives* (2008), ch. 3.  Taught in: notebook 02_01.
    """
    spent, level = Cost(), next(levels)
    f(*(map_point(lambda x: _Counted(level, x, spent), as_point(f"args[{i}]", a)) for i, a in enumerate(args)))
    return spent
