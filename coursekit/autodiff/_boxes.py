"""Values that watch the operations applied to them: dual numbers and variables on a tape."""

import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from coursekit.autodiff._rules import COMPOSED, CONSTANT, RULES, Array, getitem

levels = itertools.count(1)  # an inner derivative starts later, so it has the higher level


class Box(np.lib.mixins.NDArrayOperatorsMixin):
    """An array whose operations are watched: arithmetic, indexing, numpy functions. It cannot be changed in place."""

    __slots__ = ("level", "value")
    level: int
    value: Array

    shape = property(lambda self: np.shape(self.value))
    ndim = property(lambda self: np.ndim(self.value))
    size = property(lambda self: np.size(self.value))
    T = property(lambda self: np.transpose(self))

    def __array_ufunc__(self, ufunc, method, *args, **kwargs):
        if method != "__call__" or kwargs:
            raise TypeError(
                f"np.{ufunc.__name__} with {', '.join(kwargs) or method} cannot be recorded: "
                "write it as a plain call that returns a new array"
            )
        return _apply(ufunc, args, kwargs)

    def __array_function__(self, function, types, args, kwargs):
        return _apply(function, args, kwargs)

    def __getitem__(self, key):
        return getitem(self, key)

    def __setitem__(self, key, value):
        raise TypeError("a recorded array cannot be changed in place: build a new one with np.where or np.stack")

    def __array__(self, *args, **kwargs):
        raise TypeError("a recorded value cannot become a plain array or number, it would lose its derivative")

    __float__ = __int__ = __bool__ = __complex__ = __array__

    def _process(self, function, rule, boxes, values, kwargs):
        raise NotImplementedError

    def constant(self, a: Array) -> Array:
        """A constant of a derivative of this value: what is computed with it has to be counted if this value is."""
        return self.value.constant(a) if isinstance(self.value, Box) else a

    def __len__(self):
        return len(self.value)

    def __iter__(self):
        return (getitem(self, i) for i in range(len(self)))

    def __pow__(self, exponent):
        return np.square(self) if type(exponent) is int and exponent == 2 else np.power(self, exponent)

    def sum(self, axis=None, keepdims=False):
        return np.sum(self, axis=axis, keepdims=keepdims)

    def max(self, axis=None, keepdims=False):
        return np.max(self, axis=axis, keepdims=keepdims)

    def mean(self, axis=None, keepdims=False):
        return np.mean(self, axis=axis, keepdims=keepdims)

    def reshape(self, *shape):
        return np.reshape(self, shape[0] if len(shape) == 1 else shape)

    def __repr__(self):
        return f"{type(self).__name__}({self.value!r})"


def _bare(a: Array) -> Array:
    while isinstance(a, Box):
        a = a.value
    return a


def _apply(function: Callable, args: Sequence, kwargs: dict) -> Array:
    """Give an operation to the boxes of the innermost derivative (highest level); what else takes part is constant."""
    rule = RULES.get(function)
    if rule is None:
        if (composed := COMPOSED.get(function)) is not None:
            return composed(*args, **kwargs)
        if function in CONSTANT:
            return function(*map(_bare, args), **{name: _bare(a) for name, a in kwargs.items()})
        raise TypeError(
            f"{function.__name__} has no derivative rule: write it with arithmetic, @, indexing, sum, mean, max, "
            "reshape, stack, where and the functions of elementwise_partials()"
        )
    level = max([a.level for a in args if isinstance(a, Box)], default=None)
    if level is None:
        raise TypeError(f"{function.__name__} needs recorded arrays by position, not in a list or by keyword")
    boxes, values = [], list(args)
    for i, a in enumerate(args):
        if isinstance(a, Box) and a.level == level:
            boxes.append((i, a))
            values[i] = a.value
    return boxes[0][1]._process(function, rule, boxes, values, kwargs)


def _real(function: Callable, y: Array) -> Array:
    if isinstance(y, (np.ndarray, np.generic)) and y.dtype.kind == "c":
        raise TypeError(f"{function.__name__} returned complex numbers: derivatives are of real programs")
    return y


class Dual(Box):
    """A dual number a + ε t with ε² = 0: the value a carries its tangent t, and f(a + ε t) = f(a) + ε f'(a) t."""

    __slots__ = ("tangent",)

    def __init__(self, level: int, value: Array, tangent: Array):
        self.level, self.value, self.tangent = level, value, tangent

    def _process(self, function, rule, boxes, values, kwargs):
        y = _real(function, function(*values, **kwargs))
        terms = [rule(i, y, *values, **kwargs)[0](box.tangent) for i, box in boxes]
        tangent = functools.reduce(np.add, terms)
        if np.shape(tangent) != np.shape(y):  # the tangent of one of two arguments that broadcast
            tangent = np.broadcast_to(tangent, np.shape(y))
        return Dual(self.level, y, tangent)


_readers: dict[int, int] = {}  # by id of a locked array, the number of tapes that need it unchanged
_waiting: list[weakref.ref[np.ndarray]] = []  # views that no tape needs, of arrays that one still does


def _nothing(g: Array) -> tuple[()]:
    """The pull of an input, or of an operation that has been played back."""
    return ()


def _forget(key: int, _: Any) -> None:
    _readers.pop(key, None)


class Tape:
    """The operations of one execution in their order: for each, where its arguments stand and how adjoints pull back.

    Only local derivatives are kept, no values. A plain array that takes part is read-only while the tape lives.
    """

    def __init__(self) -> None:
        self.level = next(levels)
        self.entries: list[tuple[Callable | None, tuple[int, ...], Callable]] = []
        self._locked: dict[int, weakref.ref[np.ndarray]] = {}

    def record(self, function: Callable | None, value: Array, parents: tuple[int, ...], pull: Callable) -> "Var":
        self.entries.append((function, parents, pull))
        return Var(self, value, len(self.entries) - 1)

    def watch(self, value: Array) -> "Var":
        """An input."""
        return self.record(None, value, (), _nothing)

    def lock(self, constant: Array) -> None:
        """Make an array read-only, and what it is a view of, until no tape needs it any more."""
        while isinstance(constant, np.ndarray):
            key, known = id(constant), self._locked.get(id(constant))
            if known is None or known() is not constant:
                readers = _readers.get(key, 0)
                if readers or constant.flags.writeable:
                    constant.flags.writeable = False
                    _readers[key] = readers + 1
                    self._locked[key] = weakref.ref(constant, functools.partial(_forget, key))
            constant = constant.base

    def release(self) -> None:
        """Make the arrays writeable again that no other tape needs."""
        for key, reference in self._locked.items():
            if reference() is not None:
                _readers[key] -= 1
                if not _readers[key]:
                    del _readers[key]
                    _waiting.append(reference)
        self._locked = {}
        free = [a for a in (reference() for reference in _waiting) if a is not None and id(a) not in _readers]
        _waiting.clear()
        for a in sorted(free, key=lambda a: a.base is not None):  # a view only after what it views
            if id(a.base) in _readers:
                _waiting.append(weakref.ref(a))
            else:
                a.flags.writeable = True

    def __del__(self) -> None:
        self.release()

    def pull_back(self, index: int, adjoint: Array, *, release: bool = False) -> dict[int, Array]:
        """Adjoints of the inputs from that of one entry: every edge is used once, in reverse order of execution.

        With `release` the record of an operation is dropped as soon as it has been used.
        """
        adjoints = {index: adjoint}
        for j in range(index, -1, -1):
            _, parents, pull = self.entries[j]
            if not parents or j not in adjoints:
                continue
            for parent, term in zip(parents, pull(adjoints.pop(j)), strict=True):
                adjoints[parent] = adjoints[parent] + term if parent in adjoints else term
            if release:
                self.entries[j] = (None, (), _nothing)
        return adjoints


class Var(Box):
    """A value with its place on a tape."""

    __slots__ = ("index", "tape")

    def __init__(self, tape: Tape, value: Array, index: int):
        self.level, self.value, self.tape, self.index = tape.level, value, tape, index

    def _process(self, function, rule, boxes, values, kwargs):
        watched = {i for i, _ in boxes}
        constants = [i for i in range(len(values)) if i not in watched]
        for i in constants:
            if isinstance(values[i], list):  # it could be changed later without a trace
                values[i] = np.array(values[i])
        y = _real(function, function(*values, **kwargs))
        pulls = [rule(i, y, *values, **kwargs)[1] for i, _ in boxes]
        for i in constants:
            for part in values[i] if isinstance(values[i], tuple) else (values[i],):  # an index may be a tuple
                self.tape.lock(part)
        return self.tape.record(
            function, y, tuple([box.index for _, box in boxes]), lambda g: [pull(g) for pull in pulls]
        )
