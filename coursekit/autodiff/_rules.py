"""The derivative of every operation, once for both modes: partial derivatives, transposes, compositions."""

import enum
import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
from numpy.lib.array_utils import normalize_axis_tuple

Array = Any  # an array, a number, or a box around one


class Unit(enum.Enum):
    """A partial derivative of ±1: nothing is multiplied."""

    PLUS = 1
    MINUS = -1


UNIT, MINUS_UNIT = Unit.PLUS, Unit.MINUS


def elementwise_partials() -> dict[Callable, tuple[Callable, ...]]:
    """Elementwise functions y = f(a, …) with ∂y/∂a, … as functions of (y, a, …): what both modes multiply by.

    UNIT and MINUS_UNIT stand for the derivatives 1 and -1.
    """
    tie = np.heaviside  # of the difference, with 1/2 at 0
    return {
        np.add: (lambda y, a, b: UNIT, lambda y, a, b: UNIT),
        np.subtract: (lambda y, a, b: UNIT, lambda y, a, b: MINUS_UNIT),
        np.multiply: (lambda y, a, b: b, lambda y, a, b: a),
        np.divide: (lambda y, a, b: 1 / b, lambda y, a, b: -y / b),
        np.power: (
            lambda y, a, b: b * a ** np.where(np.equal(a, 0) & np.equal(b, 0), 1, b - 1),
            lambda y, a, b: y * np.log(np.where(np.equal(a, 0), 1.0, a)),
        ),
        np.maximum: (lambda y, a, b: tie(a - b, 0.5), lambda y, a, b: tie(b - a, 0.5)),
        np.minimum: (lambda y, a, b: tie(b - a, 0.5), lambda y, a, b: tie(a - b, 0.5)),
        np.logaddexp: (lambda y, a, b: np.exp(a - y), lambda y, a, b: np.exp(b - y)),
        np.negative: (lambda y, a: MINUS_UNIT,),
        np.absolute: (lambda y, a: np.sign(a),),
        np.square: (lambda y, a: 2 * a,),
        np.sqrt: (lambda y, a: 0.5 / y,),
        np.exp: (lambda y, a: y,),
        np.expm1: (lambda y, a: y + 1,),
        np.log: (lambda y, a: 1 / a,),
        np.log1p: (lambda y, a: 1 / (1 + a),),
        np.sin: (lambda y, a: np.cos(a),),
        np.cos: (lambda y, a: -np.sin(a),),
        np.tan: (lambda y, a: 1 + y * y,),
        np.arctan: (lambda y, a: 1 / (1 + a * a),),
        np.sinh: (lambda y, a: np.cosh(a),),
        np.cosh: (lambda y, a: np.sinh(a),),
        np.tanh: (lambda y, a: 1 - y * y,),
        scipy.special.expit: (lambda y, a: y * (1 - y),),
        scipy.special.erf: (lambda y, a: 2 / np.sqrt(np.pi) * np.exp(-a * a),),
    }


def _elementwise(*partials: Callable) -> Callable:
    def rule(i, y, *args):
        partial, shape = partials[i](y, *args), np.shape(args[i])
        return (lambda t: _scaled(t, partial)), (lambda g: _sum_to(_scaled(g, partial), shape))

    return rule


def _scaled(a: Array, factor: Array) -> Array:
    if factor is UNIT:
        return a
    return -a if factor is MINUS_UNIT else a * factor


def _sum_to(g: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an argument of this shape was broadcast: the transpose of broadcasting."""
    got = np.shape(g)
    if got == shape:
        return g
    new = len(got) - len(shape)
    axes = tuple(range(new)) + tuple(new + i for i, n in enumerate(shape) if n == 1 != got[new + i])
    return np.reshape(np.sum(g, axis=axes), shape)


def _linear(function: Callable, transpose: Callable) -> Callable:
    """Rule of a function linear in its only array argument: it pushes tangents itself, its transpose pulls."""

    known = list(inspect.signature(transpose).parameters)[2:]

    def rule(i, y, a, *args, **kwargs):
        if len(args) > len(known) or not kwargs.keys() <= set(known):
            raise TypeError(f"{function.__name__} is recorded with {' and '.join(known)} only, got {args} and {kwargs}")
        shape = np.shape(a)
        return (lambda t: function(t, *args, **kwargs)), (lambda g: transpose(g, shape, *args, **kwargs))

    return rule


def _kept(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    """Shape after a reduction that keeps the reduced axes with length 1."""
    axes = range(len(shape)) if axis is None else normalize_axis_tuple(axis, len(shape))
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


def _max_rule(i, y, a, axis=None, keepdims=False):
    kept = _kept(np.shape(a), axis)
    largest = np.equal(a, np.reshape(y, kept))
    share = largest / np.sum(largest, axis=axis, keepdims=True)
    return (lambda t: np.sum(t * share, axis=axis, keepdims=keepdims)), (lambda g: np.reshape(g, kept) * share)


def _matmul_rule(i, y, a, b):
    if np.ndim(a) == np.ndim(b) == 2:
        if i == 0:
            return (lambda t: t @ b), (lambda g: g @ np.transpose(b))
        return (lambda t: a @ t), (lambda g: np.transpose(a) @ g)
    shape = np.shape((a, b)[i])
    # a vector is a matrix of one row (left) or one column (right)
    rows = a if np.ndim(a) > 1 else np.reshape(a, (1, -1))
    columns = b if np.ndim(b) > 1 else np.reshape(b, (-1, 1))
    batch = np.broadcast_shapes(np.shape(rows)[:-2], np.shape(columns)[:-2])
    full = (*batch, np.shape(rows)[-2], np.shape(columns)[-1])

    matrix, other = (np.shape(rows), columns) if i == 0 else (np.shape(columns), rows)

    def pull(g):  # keeps the other factor only
        g, factor = np.reshape(g, full), np.swapaxes(other, -1, -2)
        whole = g @ factor if i == 0 else factor @ g
        return np.reshape(_sum_to(whole, matrix), shape)

    return (lambda t: t @ b if i == 0 else a @ t), pull


def _where_rule(i, y, condition, a, b):
    if i == 0:
        raise TypeError("the condition of np.where must be a comparison, got a recorded value")
    shape = np.shape((condition, a, b)[i])

    def push(t):
        return np.where(condition, t, 0.0) if i == 1 else np.where(condition, 0.0, t)

    return push, (lambda g: _sum_to(push(g), shape))


def _concatenate_rule(i, y, *arrays, axis):
    sizes = [np.shape(a)[axis] for a in arrays]
    start = sum(sizes[:i])
    key = (slice(None),) * normalize_axis_tuple(axis, np.ndim(y))[0] + (slice(start, start + sizes[i]),)
    return (lambda t: scatter(t, key, np.shape(y))), (lambda g: getitem(g, key))


def _primitive(function: Callable) -> Callable:
    """A function of ours that boxes watch as they watch numpy's, through the same protocol."""

    @functools.wraps(function)
    def dispatching(*args, **kwargs):
        for a in args:
            if hasattr(a, "__array_function__") and not isinstance(a, np.ndarray):
                return a.__array_function__(dispatching, (), args, kwargs)
        return function(*args, **kwargs)

    return dispatching


def _dot(a, b):
    if np.ndim(a) > 1 and np.ndim(b) > 2:  # where it is no matrix product
        raise TypeError(f"dot of {np.ndim(a)} and {np.ndim(b)} dimensions has no derivative rule: write it with @")
    return a @ b if np.ndim(a) and np.ndim(b) else a * b


@_primitive
def getitem(a, key):
    return a[key]


@_primitive
def scatter(g, key, shape):
    """Zeros of the given shape with g added at the key (repeated indices add up): the transpose of indexing."""
    whole = np.zeros(shape)
    if all(isinstance(k, (int, slice, type(...), type(None))) for k in (key if isinstance(key, tuple) else (key,))):
        whole[key] = g
    else:
        np.add.at(whole, key, g)
    return whole


@_primitive
def concatenate(*arrays, axis):
    return np.concatenate(arrays, axis=axis)


ELEMENTWISE = elementwise_partials()
RULES: dict[Callable, Callable] = {function: _elementwise(*partials) for function, partials in ELEMENTWISE.items()} | {
    np.matmul: _matmul_rule,
    np.where: _where_rule,
    np.max: _max_rule,
    concatenate: _concatenate_rule,
}
_LINEAR: dict[Callable, Callable] = {
    np.sum: lambda g, old, axis=None, keepdims=False: np.broadcast_to(np.reshape(g, _kept(old, axis)), old),
    np.reshape: lambda g, old, shape: np.reshape(g, old),
    np.transpose: lambda g, old, axes=None: np.transpose(
        g, None if axes is None else tuple(np.argsort(normalize_axis_tuple(axes, len(old))))
    ),
    np.swapaxes: lambda g, old, axis1, axis2: np.swapaxes(g, axis1, axis2),
    np.broadcast_to: lambda g, old, shape: _sum_to(g, old),
    getitem: lambda g, old, key: scatter(g, key, old),
    scatter: lambda g, old, key, shape: getitem(g, key),
}
RULES |= {function: _linear(function, transpose) for function, transpose in _LINEAR.items()}
COMPOSED: dict[Callable, Callable] = {
    np.mean: lambda a, axis=None, keepdims=False: (s := np.sum(a, axis=axis, keepdims=keepdims)) / (a.size / s.size),
    np.min: lambda a, axis=None, keepdims=False: -np.max(-a, axis=axis, keepdims=keepdims),
    np.clip: lambda a, a_min, a_max: np.minimum(np.maximum(a, a_min), a_max),
    np.ravel: lambda a: np.reshape(a, -1),
    np.dot: _dot,
    np.concatenate: lambda arrays, axis=0: concatenate(*arrays, axis=axis),
    np.expand_dims: lambda a, axis: np.reshape(a, np.shape(np.expand_dims(np.empty(a.shape), axis))),
    np.stack: lambda arrays, axis=0: np.concatenate([np.expand_dims(a, axis) for a in arrays], axis=axis),
}
# derivative zero wherever there is one: computed on the bare values
CONSTANT: set[Any] = {
    np.greater,
    np.greater_equal,
    np.less,
    np.less_equal,
    np.equal,
    np.not_equal,
    np.sign,
    np.floor,
    np.ceil,
}
CONSTANT |= {np.rint, np.round, np.trunc, np.heaviside, np.isfinite, np.isnan, np.argmax, np.argmin, np.argsort}
CONSTANT |= {np.shape, np.ndim, np.size, np.zeros_like, np.ones_like}
