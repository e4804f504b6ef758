"""Derivatives of functions: products with the Jacobian from either side, and what is composed of them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from coursekit._validation import as_array
from coursekit.autodiff._boxes import Box, Dual, Tape, Var, levels
from coursekit.autodiff._rules import Array

Point = Any  # an array, or a tuple of arrays


def as_point(name: str, x: Any) -> Any:
    """Validated copy of an array, or of each array of a tuple."""
    if isinstance(x, tuple):
        return tuple(as_point(f"{name}[{i}]", part) for i, part in enumerate(x))
    return x if isinstance(x, Box) else as_array(name, x, ndim=range(65)).copy()


def _output(y: Any) -> Array:
    if isinstance(y, Box) or (not isinstance(y, (tuple, list)) and np.asarray(y).dtype.kind in "biuf"):
        return y
    raise ValueError(
        f"f must return one real array or number, got {type(y).__name__}: join several with np.concatenate"
    )


def _result(a: Array) -> Array:
    """What a user gets: an array of his own, or a box if an outer derivative is under way."""
    return a if isinstance(a, Box) else np.array(a)[()]


def _seed(x: Point, a: Array) -> Array:
    """A tangent or adjoint to start from at x."""
    boxes = [part for part in _parts(x) if isinstance(part, Box)]
    return boxes[0].constant(a) if boxes and not isinstance(a, Box) else a


def _parts(x: Point) -> list[Array]:
    return [part for whole in x for part in _parts(whole)] if isinstance(x, tuple) else [x]


def jvp(f: Callable, x: Point, v: Point) -> tuple[Point, Point]:
    """Value and directional derivative (f(x), J(x) v) by dual numbers, in one forward pass.

    Parameters
    ----------
    f : callable
        Takes what x is (an array, or a tuple of arrays), returns an array, a number or a tuple of them; written
        with numpy.
    x, v : array, or tuple of arrays
        Point and direction, of equal shapes.

    Returns the value and the derivative, of the shape of f(x). The cost is that of f times a small constant, in
    operations and in memory, whatever their number.
    Raises ValueError if x or v is not finite or their shapes differ; TypeError for an operation without a rule.
    Source: Chertkov §2.1.  Taught in: notebook 02_01.
    """
    x, v = as_point("x", x), as_point("v", v)
    if _shapes(x) != _shapes(v):
        raise ValueError(f"v must have the shape of x, {_shapes(x)}, got {_shapes(v)}")
    level = next(levels)
    y = f(map_point(lambda value, tangent: Dual(level, value, _seed(value, tangent)), x, v))

    def split(y):
        pushed = isinstance(_output(y), Dual) and y.level == level
        return (y.value, y.tangent) if pushed else (y, np.zeros(np.shape(y)))

    return map_point(lambda y: _result(split(y)[0]), y), map_point(lambda y: _result(split(y)[1]), y)


def _shapes(x: Point) -> Any:
    return map_point(np.shape, x)


def map_point(function: Callable, *points: Point) -> Any:
    """The function of each array of a tuple (or of several tuples of one structure), or of the array itself."""
    if isinstance(points[0], tuple):
        return tuple(map_point(function, *parts) for parts in zip(*points, strict=True))
    return function(*points)


def vjp(f: Callable, x: Point) -> tuple[Array, Callable[[Array], Point]]:
    """Value f(x) and the pullback u ↦ J(x)ᵀu, from one execution recorded on a tape.

    Parameters
    ----------
    f : callable
        Takes what x is (an array, or a tuple of arrays), returns an array or number; written with numpy.
    x : array, or tuple of arrays

    Returns the value and a function that takes u, of the shape of f(x), and returns what x is. It may be called
    again; each call costs about twice the operations of f. The tape holds the local derivatives of all operations:
    memory grows with their number. Plain arrays that f uses are read-only until the pullback is gone, so changing one
    in place raises numpy's ValueError instead of giving a wrong derivative (only a second view of the same array, made
    before, still lets it through). Indexing x creates an adjoint of the size of x each time: pass many parts as a
    tuple.
    Raises ValueError if x or u is not finite or u is of another shape; TypeError for an operation without a rule.
    Source: Chertkov §2.1; Cao §2.2.  Taught in: notebook 02_01.
    """
    value, pull = record(f, as_point("x", x))

    def pullback(u: Array) -> Point:
        u = u if isinstance(u, Box) else as_array("u", u, ndim=range(65))
        if np.shape(u) != np.shape(value):
            raise ValueError(f"u must have the shape of f(x), {np.shape(value)}, got {np.shape(u)}")
        return pull(u, release=False)

    return _result(value), pullback


def record(f: Callable, x: Point, tape: Tape | None = None) -> tuple[Array, Callable[..., Point]]:
    """Run f on a tape; return the value and u, release ↦ Jᵀu in the structure of x."""
    tape = Tape() if tape is None else tape
    inputs = map_point(tape.watch, x)
    try:
        y = _output(f(inputs))
    except BaseException:
        tape.release()
        raise
    watched = isinstance(y, Var) and y.tape is tape
    index = y.index if watched else -1
    # places and shapes are all the pullback needs: the values live on only in the local derivatives that use them
    places = map_point(lambda var: var.index, inputs)
    shapes: dict[int, tuple[int, ...]] = {}
    map_point(lambda var: shapes.update({var.index: var.shape}), inputs)

    def pull(u, *, release):
        adjoints = tape.pull_back(index, _seed(x, u), release=release)
        if release:
            tape.release()
        return map_point(
            lambda place: _result(adjoints[place] if place in adjoints else np.zeros(shapes[place])), places
        )

    return (y.value if watched else y), pull


def grad(f: Callable) -> Callable[[Point], Point]:
    """Gradient of a scalar function by one reverse pass: ``grad(f)(x)`` is what x is, an array or a tuple of arrays.

    The tape is taken down on the way back. The sweep adds to each operation of f its local derivatives and, for each
    recorded argument, a multiplication and at most an addition: for a product of two recorded factors at most 4 times
    the operation itself, for exp 2, for tanh 4, for a quotient at most 7, for a matrix product 2 (plus additions).
    Raises ValueError if f(x) is not a scalar or x not finite; TypeError for an operation without a rule.
    Source: Chertkov §2.1.1; Cao §2.2.  Taught in: notebook 02_01.
    """

    def gradient(x: Point) -> Point:
        value, pull = record(f, as_point("x", x))
        if np.shape(value) != ():
            raise ValueError(
                f"f must return a scalar, got shape {np.shape(value)}: jacrev gives Jacobians, vjp weighs the outputs"
            )
        return pull(1.0, release=True)

    return gradient


def hvp(f: Callable, x: Point, v: Point) -> Point:
    """Hessian-vector product ∇²f(x) v of a scalar function: forward mode through reverse mode, no matrix is formed.

    Raises ValueError as `grad` and `jvp` do.
    Source: Pearlmutter, Neural Computation 6 (1994).  Taught in: notebook 02_01.
    """
    return jvp(grad(f), x, v)[1]


def jacfwd(f: Callable) -> Callable[[Array], Array]:
    """Jacobian column by column, one forward pass an input: ``jacfwd(f)(x)`` has shape (*f(x).shape, *x.shape).

    A forward pass costs about two evaluations, a sweep back one: the better choice for n inputs and more than 2n
    outputs.
    Source: Chertkov §2.1.1.  Taught in: notebook 02_01.
    """

    def jacobian(x: Array) -> Array:
        x = _one_array(x)
        columns = [jvp(f, x, e)[1] for e in basis(np.shape(x))]
        return np.reshape(np.stack(columns, axis=-1), np.shape(columns[0]) + np.shape(x))

    return jacobian


def jacrev(f: Callable) -> Callable[[Array], Array]:
    """Jacobian row by row, one reverse pass an output over one tape: ``jacrev(f)(x)``, shaped as `jacfwd`'s.

    The better choice for n inputs and fewer than 2n outputs.
    Source: Chertkov §2.1.1.  Taught in: notebook 02_01.
    """

    def jacobian(x: Array) -> Array:
        x = _one_array(x)
        value, pull = record(f, x)
        rows = [pull(e, release=False) for e in basis(np.shape(value))]
        return np.reshape(np.stack(rows), np.shape(value) + np.shape(x))

    return jacobian


def _one_array(x: Any) -> Array:
    if isinstance(x, tuple):
        raise ValueError("x must be one array for a Jacobian, got a tuple: join its parts with np.concatenate")
    return as_point("x", x)


def basis(shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape))
    return np.eye(size).reshape(size, *shape)


def checkpoint(f: Callable) -> Callable:
    """The same function, which in reverse mode keeps nothing but its arguments and runs again on the way back.

    A chain of T steps cut into S checkpointed segments holds about S + T/S arrays instead of T, for one more
    evaluation: least, 2√T, at S = √T. Under forward mode it is f itself.

    Parameters
    ----------
    f : callable
        Takes arrays and returns one, the same whenever it is called. What is to be differentiated must be an
        argument, not come by closure: ValueError otherwise.

    Source: Griewank and Walther, *Evaluating Derivatives* (2008), ch. 12; Chertkov §2.1.1.  Taught in: notebook 02_01.
    """

    def checkpointed(*args: Array) -> Array:
        if any(isinstance(a, tuple) for a in args):
            raise ValueError("a checkpointed function takes arrays, got a tuple: give its parts as arguments")
        top = max((a for a in args if isinstance(a, Box)), key=lambda a: a.level, default=None)
        if not isinstance(top, Var):
            return f(*args)
        tape = top.tape
        places = [i for i, a in enumerate(args) if isinstance(a, Var) and a.tape is tape]
        values = [a.value if i in places else a for i, a in enumerate(args)]
        for i, a in enumerate(values):
            if i not in places:
                tape.lock(a)
        y = _output(f(*values))
        if isinstance(y, Box) and y.level >= tape.level:
            raise ValueError("f must take every recorded array as an argument of its own, not by closure")

        def pull(g):
            def again(watched):
                parts = iter(watched)
                return f(*(next(parts) if i in places else a for i, a in enumerate(values)))

            return record(again, tuple(values[i] for i in places))[1](g, release=True)

        return tape.record(checkpointed, y, tuple(args[i].index for i in places), pull)

    checkpointed.__name__ = getattr(f, "__name__", "checkpointed")
    return checkpointed
