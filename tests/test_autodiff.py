import gc
import math
import tracemalloc

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit.autodiff import (
    Dual,
    check_grad,
    checkpoint,
    cost,
    elementwise_partials,
    finite_difference,
    grad,
    graph,
    hvp,
    jacfwd,
    jacrev,
    jvp,
    vjp,
)

EPS = np.finfo(float).eps


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_close(actual, desired, rtol=1e-12):
    """Relative to the largest entry: entries that cancel have no relative accuracy of their own."""
    desired = np.asarray(desired)
    np.testing.assert_allclose(actual, desired, rtol=0, atol=rtol * max(1.0, np.abs(desired).max()))


def agrees_with_torch(f, *arrays, seed=0):
    """All derivatives of f(lib, *arrays), of first and second order, against torch's; lib is numpy or torch."""
    x = tuple(np.asarray(a, dtype=float) for a in arrays)
    sizes = [a.size for a in x]
    z = np.concatenate([a.ravel() for a in x])

    def flat(lib):  # the function of one vector
        def function(z):
            ends = np.cumsum(sizes)
            parts = [lib.reshape(z[end - n : end], a.shape) for end, n, a in zip(ends, sizes, x, strict=True)]
            return lib.reshape(f(lib, *parts), (-1,))

        return function

    def tuple_of(vector):
        return tuple(part.reshape(a.shape) for part, a in zip(np.split(vector, np.cumsum(sizes)[:-1]), x, strict=True))

    exact = torch.autograd.functional.jacobian(flat(torch), torch.tensor(z)).numpy()
    m, n = exact.shape
    u, v = gaussian(seed + 1, m), gaussian(seed + 2, n)
    value, pushed = jvp(lambda parts: f(np, *parts), x, tuple_of(v))
    again, pull = vjp(lambda parts: f(np, *parts), x)
    pulled = pull(u.reshape(np.shape(value)))
    np.testing.assert_array_equal(value, again)
    assert_close(np.ravel(value), flat(torch)(torch.tensor(z)).numpy())
    assert np.shape(pushed) == np.shape(value) and all(np.shape(p) == a.shape for p, a in zip(pulled, x, strict=True))
    pulled = np.concatenate([np.ravel(p) for p in pulled])
    assert_close(np.ravel(pushed), exact @ v)
    assert_close(pulled, u @ exact)
    assert u @ np.ravel(pushed) == pytest.approx(pulled @ v, rel=1e-12, abs=1e-12 * np.abs(exact).sum())  # duality
    assert_close(jacfwd(flat(np))(z), exact)
    assert_close(jacrev(flat(np))(z), exact)

    def scalar(lib):  # the square gives linear functions a Hessian too
        weights = u if lib is np else torch.tensor(u)
        return lambda z: lib.sum(weights * flat(lib)(z) + flat(lib)(z) ** 2)

    hessian = torch.autograd.functional.hessian(scalar(torch), torch.tensor(z)).numpy()
    assert_close(hvp(scalar(np), z, v), hessian @ v)
    assert_close(grad(lambda z: np.sum(v * grad(scalar(np))(z)))(z), hessian @ v)  # reverse over reverse
    assert_close(grad(lambda z: jvp(scalar(np), z, v)[1])(z), hessian @ v)  # reverse over forward
    assert_close(jvp(lambda z: jvp(scalar(np), z, v)[1], z, v)[1], v @ hessian @ v)  # forward over forward
    if m * n <= 36:  # n m passes either way
        assert_close(jacfwd(jacrev(flat(np)))(z), jacrev(jacfwd(flat(np)))(z))


class TestExact:
    def test_graph_of_the_book(self):
        # f = sin(x1 + x2)/x1 at (2, 1): w3 = x1 + x2, w4 = sin w3, w5 = w4/x1
        program = graph(lambda x: np.sin(x[0] + x[1]) / x[0], (2.0, 1.0))
        s, c = np.sin(3), np.cos(3)
        assert program.operations == ("input", "input", "add", "sin", "divide")
        np.testing.assert_allclose(program.values, [2, 1, 3, s, s / 2], rtol=1e-15)
        assert {(i, j): pytest.approx(p, rel=1e-15) for i, j, p in program.edges} == {
            (0, 2): 1,
            (1, 2): 1,
            (2, 3): c,
            (3, 4): 1 / 2,
            (0, 4): -s / 4,
        }
        gradient = [c / 2 - s / 4, c / 2]
        np.testing.assert_allclose(gradient, [-0.5302762503, -0.4949962483], atol=1e-10)  # as printed
        np.testing.assert_allclose(np.linalg.inv(np.eye(5) - program.partials)[-1, :2], gradient, rtol=1e-14)
        np.testing.assert_allclose(grad(lambda x: np.sin(x[0] + x[1]) / x[0])((2, 1)), gradient, rtol=1e-14)

    @pytest.mark.parametrize(
        ("h", "edges", "paths"),
        [
            (lambda z: np.log(z[0] ** 2 + z[1] ** 2) + np.sin((z[0] + z[1]) ** 2), 11, 2),
            # a node more than drawn on paper, where w4 - 2 w5 is one
            (lambda z: np.log((s := (z[0] + z[1]) ** 2) - 2 * (z[0] * z[1])) + np.sin(s), 12, 3),
        ],
    )
    def test_two_graphs_of_one_function(self, h, edges, paths):
        x, y = 1.0, 2.0
        c = 2 * (x + y) * np.cos((x + y) ** 2)
        gradient = [2 * x / (x**2 + y**2) + c, 2 * y / (x**2 + y**2) + c]
        program = graph(h, (x, y))
        assert len(program.edges) == edges
        assert program.values[-1] == pytest.approx(np.log(5) + np.sin(9), rel=1e-14)
        for D, expected in [(program.partials, gradient), (program.partials != 0, [paths, paths])]:
            np.testing.assert_allclose(np.linalg.inv(np.eye(len(D)) - D)[-1, :2], expected, rtol=1e-13)
        np.testing.assert_allclose(grad(h)((x, y)), gradient, rtol=1e-14)

    def test_argument_used_twice(self):
        program = graph(lambda x: x[0] * x[0], (3.0,))
        assert program.edges == ((0, 1, 3.0), (0, 1, 3.0)) and program.partials.tolist() == [[0, 0], [6, 0]]

    def test_polynomial(self):
        def k(v):
            x, y, z = v
            return x**2 * y + y * z + z**3

        x = np.array([1.0, 2.0, 3.0])
        np.testing.assert_allclose(grad(k)(x), [4, 4, 29], rtol=1e-15)
        hessian = [[4, 2, 0], [2, 0, 1], [0, 1, 18]]  # [[2y, 2x, 0], [2x, 0, 1], [0, 1, 6z]]
        np.testing.assert_allclose(jacfwd(grad(k))(x), hessian, rtol=1e-15)
        np.testing.assert_allclose([hvp(k, x, e) for e in np.eye(3)], hessian, rtol=1e-15)

    def test_derivative_on_a_grid(self):
        # f = sin x exp(-x²/5), f' = exp(-x²/5) (cos x - 2/5 x sin x); the Jacobian is diagonal, so ones give f'
        x = np.linspace(-6, 6, 400)
        f = lambda x: np.sin(x) * np.exp(-(x**2) / 5)  # noqa: E731
        exact = np.exp(-(x**2) / 5) * (np.cos(x) - 0.4 * x * np.sin(x))
        np.testing.assert_allclose(jvp(f, x, np.ones(400))[1], exact, atol=4 * EPS)
        np.testing.assert_allclose(vjp(f, x)[1](np.ones(400)), exact, atol=4 * EPS)

    def test_logsumexp(self):
        # gradient p = softmax, Hessian diag p - p pᵀ
        x = gaussian(0, 6)
        p = scipy.special.softmax(x)
        f = lambda x: (c := np.max(x)) + np.log(np.sum(np.exp(x - c)))  # noqa: E731
        np.testing.assert_allclose(grad(f)(x), p, rtol=1e-14)
        np.testing.assert_allclose(jacfwd(grad(f))(x), np.diag(p) - np.outer(p, p), atol=1e-15)

    def test_two_layer_network_and_linear_layer(self):
        # M.5: ŷ = a·tanh(W x + b)/N, with g = -2 (y - ŷ)/N: ∂a = g σ, ∂b = g a σ' and ∂W = ∂b xᵀ
        W, a, b, x, y = gaussian(0, 5, 3), gaussian(1, 5), gaussian(2, 5), gaussian(3, 3), 0.7
        sigma = np.tanh(W @ x + b)
        g = -2 / 5 * (y - a @ sigma / 5)
        expected = [np.outer(g * a * (1 - sigma**2), x), g * sigma, g * a * (1 - sigma**2)]
        for ours, exact in zip(
            grad(lambda p: (y - p[1] @ np.tanh(p[0] @ x + p[2]) / 5) ** 2)((W, a, b)), expected, strict=True
        ):
            np.testing.assert_allclose(ours, exact, rtol=1e-13)


ANYWHERE = {np.sqrt: (0.3, 2), np.log: (0.3, 2), np.log1p: (-0.5, 2), np.power: (0.3, 2), np.tan: (-1.2, 1.2)}
X, Y = gaussian(5, 2, 3), gaussian(6, 2, 3)
STRUCTURAL = {
    "mean": lambda lib, x: lib.mean(x * x),
    "mean axis": lambda lib, x: lib.mean(x, axis=-1, keepdims=True) * x,
    "max": lambda lib, x: lib.max(x),
    "max axes": lambda lib, x: (lib.max if lib is np else lib.amax)(x, axis=(0, 1), keepdims=True) * x,
    "max axis": lambda lib, x: (lib.max if lib is np else lib.amax)(x, axis=-1) ** 2,
    "stack": lambda lib, x: lib.stack([x, lib.sin(x)], axis=1),
    "stack last": lambda lib, x: lib.stack([x[0], x[1] * x[0], x[1]], axis=-1),
    "concatenate": lambda lib, x: lib.concatenate([x, lib.ones_like(x[:1]), x[:1] * x[1:]], axis=-2),
    "concatenate last": lambda lib, x: lib.concatenate([x[:, :1], x * x], axis=-1),
    "expand dims": lambda lib, x: (np.expand_dims(x, (0, 2)) if lib is np else x[None, :, None]) * x,
    "where": lambda lib, x: lib.where(x > 0.1, x[0], lib.sin(x)),
    "where column": lambda lib, x: lib.where(x > 0.1, x[:, :1] * x[0, 0], 2.0),
    "power": lambda lib, x: x**3 + 2**x + (x * x) ** 1.5 + (x * x) ** x + x**0,
    "reversed operators": lambda lib, x: 1 - 2 / (3 + x * x) - (-x) * 2,
    "broadcast": lambda lib, x: x[:, :1] * x[0] / (1 + x[1] ** 2) - x[0, 0],
    "repeated use": lambda lib, x: x * (y := lib.exp(x)) + y * y,
    "reductions of products": lambda lib, x: (x @ x.T).sum(axis=0) + x.mean() * lib.sum(x, axis=1),
}
LINEAR = {
    "sum": np.sum,
    "sum axis": lambda x: np.sum(x, 1),
    "sum axes": lambda x: x.sum(axis=(0, -1)),
    "sum keepdims": lambda x: np.sum(x, axis=(0, -1), keepdims=True),
    "sum all keepdims": lambda x: np.sum(x, keepdims=True),
    "reshape": lambda x: x.reshape(4, -1),
    "transpose": np.transpose,
    "transpose axes": lambda x: np.transpose(x, (1, 2, 0)),
    "transpose negative axes": lambda x: np.transpose(x, (-1, 0, 1)),
    "swapaxes": lambda x: np.swapaxes(x, 0, -1),
    "broadcast_to": lambda x: np.broadcast_to(x[:, :1], (5, 2, 3, 4)),
    "broadcast_to from a scalar": lambda x: np.broadcast_to(x[0, 0, 0], (2, 2)),
    "negative": lambda x: -x,
    "where": lambda x: np.where(np.arange(4) > 1, x, 0.0),
    "iteration": lambda x: sum(row * i for i, row in enumerate(x)),
    "dot with a constant": lambda x: np.dot(np.arange(6).reshape(2, 3), x[0]),
    "dot with a number": lambda x: np.dot(2.0, x),
}
KEYS = [
    1,
    np.int64(-1),
    (0, 2, 3),
    slice(1, None),
    (..., slice(None, None, -2)),
    (slice(None), None, -1),
    (None, ..., 0, None),
    [0, 1, 1, 0],
    (slice(None), np.array([2, 0, 2])),
    (np.array([[0], [1]]), [0, 0, 2], slice(1, 3)),
    np.ix_([1, 1], [0, 2], [3, 3]),
    np.arange(24).reshape(2, 3, 4) % 5 == 0,
    (0, np.array([True, False, True])),
]


class TestRules:
    @pytest.mark.parametrize("function", elementwise_partials(), ids=lambda function: function.__name__)
    def test_elementwise(self, function):
        theirs = torch.pow if function is np.power else getattr(torch, function.__name__, None)
        theirs = theirs or getattr(torch.special, function.__name__)
        low, high = ANYWHERE.get(function, (-2, 2))
        x = [np.random.default_rng(i).uniform(low, high, shape) for i, shape in enumerate([(2, 3), (3,)])]
        ours = lambda lib: function if lib is np else theirs  # noqa: E731
        agrees_with_torch(lambda lib, *args: ours(lib)(*args), *x[: function.nin])
        for i in range(function.nin if function.nin == 2 else 0):  # the other argument constant
            fixed = lambda lib, a, i=i: a if lib is np else torch.tensor(a)  # noqa: E731
            agrees_with_torch(
                lambda lib, a, i=i, fixed=fixed: ours(lib)(
                    *((a, fixed(lib, x[1])) if i == 0 else (fixed(lib, x[0]), a))
                ),
                x[i],
            )

    @pytest.mark.parametrize("f", STRUCTURAL.values(), ids=STRUCTURAL)
    def test_structural(self, f):
        agrees_with_torch(f, X)

    @pytest.mark.parametrize(
        "shapes",
        [
            ((3,), (3,)),
            ((3,), (3, 2)),
            ((2, 3), (3,)),
            ((2, 3), (3, 4)),
            ((3,), (2, 3, 2)),
            ((2, 2, 3), (3,)),
            ((2, 2, 3), (3, 2)),
            ((2, 3), (2, 3, 1)),
            ((2, 1, 1, 3), (2, 3, 2)),
            ((1, 2, 3), (2, 3, 2)),
        ],
        ids=str,
    )
    def test_matmul(self, shapes):
        A, B = gaussian(0, *shapes[0]), gaussian(1, *shapes[1])
        agrees_with_torch(lambda lib, a, b: a @ b, A, B)
        agrees_with_torch(lambda lib, a: lib.sin(a) @ (B if lib is np else torch.tensor(B)), A)
        agrees_with_torch(lambda lib, b: (A if lib is np else torch.tensor(A)) @ lib.sin(b), B)
        if max(len(shape) for shape in shapes) < 3:
            np.testing.assert_allclose(jvp(lambda a: np.dot(a, B), A, A)[1], np.dot(A, B), rtol=1e-14)

    @pytest.mark.parametrize(
        "f", [*LINEAR.values(), *((lambda x, key=key: x[key]) for key in KEYS)], ids=[*LINEAR, *map(repr, KEYS)]
    )
    def test_linear(self, f):
        # the derivative of a linear function is the function; its pullback is the transpose
        x, v = gaussian(0, 2, 3, 4), gaussian(1, 2, 3, 4)
        value, pushed = jvp(f, x, v)
        np.testing.assert_array_equal(value, f(x))
        np.testing.assert_allclose(pushed, f(v), rtol=1e-14, atol=1e-14)
        matrix = np.stack([np.ravel(f(e)) for e in np.eye(24).reshape(24, 2, 3, 4)], axis=1)
        again, pull = vjp(f, x)
        u = gaussian(2, *np.shape(value))
        np.testing.assert_array_equal(again, value)
        np.testing.assert_allclose(np.ravel(pull(u)), np.ravel(u) @ matrix, rtol=1e-14, atol=1e-14)
        # second order passes through the transpose: ∇²(½|f|²) v = Mᵀ M v
        np.testing.assert_allclose(
            np.ravel(hvp(lambda x: np.sum(f(x) ** 2) / 2, x, v)), matrix.T @ (matrix @ np.ravel(v)), atol=1e-12
        )

    def test_conventions_at_kinks(self):
        zero, two = np.zeros(1), np.zeros(2)
        assert grad(lambda x: np.sum(np.absolute(x)))(zero) == 0
        for function in (np.maximum, np.minimum):
            np.testing.assert_array_equal(jacrev(lambda z, function=function: function(z[0], z[1]))(two), [0.5, 0.5])
            assert jvp(lambda x, function=function: function(x, 0.0), zero, np.ones(1))[1] == 0.5  # relu
        assert jvp(np.max, np.zeros(4), np.array([1.0, 0, 0, 0]))[1] == 0.25
        np.testing.assert_array_equal(grad(np.max)(np.array([1.0, 2, 2, 0])), [0, 0.5, 0.5, 0])
        for function in (np.sign, np.floor, np.rint, lambda x: x > 0.5, np.zeros_like):
            assert grad(lambda x, function=function: np.sum(function(x) * 2.0))(np.ones(1)) == 0
        with np.errstate(divide="ignore"):
            assert grad(lambda x: np.sum(np.sqrt(x)))(zero) == np.inf

    def test_powers_at_zero(self):
        assert grad(lambda x: x**0)(0.0) == 0 and grad(lambda x: x**1)(0.0) == 1 and grad(lambda x: x**3)(0.0) == 0
        assert hvp(lambda x: x**2.0, np.array(0.0), np.array(1.0)) == 2
        # a^b at b = 0: ∂a = 0, ∂b = log a, ∂a∂b = 1/a, ∂b² = log² a
        hessian = jacfwd(grad(lambda z: z[0] ** z[1]))(np.array([2.0, 0.0]))
        np.testing.assert_allclose(hessian, [[0, 0.5], [0.5, np.log(2) ** 2]], rtol=1e-14)


# Bounded, with moderate derivatives, so that a random program amplifies rounding little
OPERATIONS = [
    lambda lib, a, b: lib.sin(a * b) if fit(a, b) else a * lib.mean(b),
    lambda lib, a, b: a - b if fit(a, b) else a - lib.mean(b),
    lambda lib, a, b: a / (2 + b * b) if fit(a, b) else a / (1.5 + lib.cos(lib.sum(b))),
    lambda lib, a, b: lib.tanh(a @ b) if a.ndim and b.ndim and a.shape[-1] == b.shape[0] and b.ndim < 3 else -a,
    lambda lib, a, b: lib.tanh(a @ b.T) if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1] else lib.cos(a),
    lambda lib, a, b: lib.maximum(a, b) if fit(a, b) else lib.exp(lib.sin(a)),
    lambda lib, a, b: lib.where(a > 0.1, a, b) if fit(a, b) else abs(a),
    lambda lib, a, b: lib.mean(a, axis=-1, keepdims=True) if a.ndim else lib.sin(b),
    lambda lib, a, b: lib.sum(a, axis=0) / 2 if a.ndim else lib.reshape(a, (1, 1)),
    lambda lib, a, b: (lib.max if lib is np else lib.amax)(a, axis=0) if a.ndim else a**3 / 3,
    lambda lib, a, b: a[..., [0, -1, 0]] if a.ndim else lib.sqrt(1 + a * a),
    lambda lib, a, b: lib.reshape(a[1:], (-1,)) if a.ndim and a.shape[0] > 1 else lib.log(2 + a * a),
    lambda lib, a, b: lib.concatenate([a, b], axis=0) if a.ndim and a.shape[1:] == b.shape[1:] and b.ndim else a + 1,
    lambda lib, a, b: lib.stack([a, lib.tanh(a)], axis=-1) if a.ndim == 1 else lib.swapaxes(a, 0, -1) if a.ndim else b,
]
programs = st.lists(st.tuples(st.integers(0, len(OPERATIONS) - 1), *[st.integers(0, 20)] * 2), min_size=1, max_size=8)
seeds = st.integers(0, 2**32 - 1)


def fit(a, b):
    try:
        return len(np.broadcast_shapes(tuple(a.shape), tuple(b.shape))) < 4
    except ValueError:
        return False


def execute(lib, program, *inputs):
    """All values that a program computes, its operations applied to what is on the stack, as one vector."""
    stack = list(inputs)
    for operation, i, j in program:
        a, b = stack[-1 - i % len(stack)], stack[-1 - j % len(stack)]
        result = OPERATIONS[operation](lib, a, b)
        stack.append(result if math.prod(result.shape) <= 30 else lib.mean(result, axis=0))
    return lib.concatenate([lib.reshape(stack[-1], (-1,))[-4:], lib.stack([lib.mean(a) for a in stack[-3:]])], axis=0)


class TestRandomPrograms:
    @settings(max_examples=30)
    @given(programs, seeds, st.sampled_from([((2, 3), (3,), ()), ((2, 2), (2,)), ((3,), ()), ((3,),)]))
    def test_all_derivatives_agree_with_torch(self, program, seed, shapes):
        rng = np.random.default_rng(seed)
        inputs = [rng.uniform(-1.5, 1.5, shape) for shape in shapes]
        agrees_with_torch(lambda lib, *x: execute(lib, program, *x), *inputs, seed=seed)

    @settings(max_examples=25)
    @given(programs, programs, seeds)
    def test_checkpoints_change_nothing(self, first, second, seed):
        inputs = tuple(np.random.default_rng(seed).uniform(-1.5, 1.5, shape) for shape in ((2, 3), (3,), ()))
        inner = lambda *x: execute(np, first, *x)  # noqa: E731
        outer = lambda wrap: lambda y, b, c: np.sum(wrap(inner)(np.reshape(y[:6], (2, 3)), b, c)) + np.sum(y)  # noqa: E731

        def f(wrap):  # one checkpoint inside another
            def function(x):
                a, b, c = x
                y = execute(np, second, a, b, c)
                return wrap(outer(wrap))(np.concatenate([y, np.reshape(a, (-1,))])[-9:], b, c)

            return function

        plain, kept = f(lambda g: g), f(checkpoint)
        for ours, exact in zip(grad(kept)(inputs), grad(plain)(inputs), strict=True):
            assert_close(ours, exact)
        assert jvp(kept, inputs, inputs) == jvp(plain, inputs, inputs)
        z = inputs[1]
        on_vector = lambda f: lambda z: f((inputs[0] * z, z, inputs[2]))  # noqa: E731
        assert_close(hvp(on_vector(kept), z, z), hvp(on_vector(plain), z, z))
        assert_close(
            grad(lambda z: np.sum(z * grad(on_vector(kept))(z)))(z),
            grad(lambda z: np.sum(z * grad(on_vector(plain))(z)))(z),
        )

    def test_perturbations_are_not_confused(self):
        def derivative(mode):
            forward = lambda f, x: jvp(f, x, np.array(1.0))[1]  # noqa: E731
            return forward if mode == "forward" else lambda f, x: grad(f)(x)

        for outer in map(derivative, ("forward", "reverse")):
            for inner in map(derivative, ("forward", "reverse")):
                one = np.array(1.0)
                assert outer(lambda x, d=inner: x * d(lambda y: x + y, np.array(1.0)), one) == 1
                # d/dx [x d/dy (x² y³)] = 9 x² y² at y = 2
                third = outer(lambda x, d=inner: x * d(lambda y: x**2 * y**3, np.array(2.0)), np.array(5.0))
                assert third == pytest.approx(9 * 25 * 4)
                # the inner function does not depend on its argument
                assert outer(lambda x, d=inner: x * d(lambda y: x * x, np.array(2.0)), np.array(5.0)) == 0

    def test_directions_and_weights_may_be_recorded(self):
        # d/dv of J(x) v is J(x); d/du of J(x)ᵀu is J(x)ᵀ
        x = gaussian(0, 3)
        f = lambda x: np.stack([np.sin(x[0]) * x[1], x[2] ** 2])  # noqa: E731
        np.testing.assert_allclose(jacrev(lambda v: jvp(f, x, v)[1])(x), jacfwd(f)(x), rtol=1e-14)
        np.testing.assert_allclose(jacfwd(vjp(f, x)[1])(np.ones(2)), jacfwd(f)(x).T, rtol=1e-14)


def network(x, target):
    def loss(weights):
        y = x
        for W in weights:
            y = np.tanh(W @ y)
        return np.sum(np.square(y - target))

    return loss


def sines(steps, segments=None):
    """A chain of sines, whole or cut into checkpointed segments."""

    def chain(x, steps=steps):
        for _ in range(steps):
            x = np.sin(x)
        return x

    def f(x):
        for _ in range(segments or 1):
            x = checkpoint(lambda x: chain(x, steps // segments))(x) if segments else chain(x)
        return np.sum(x)

    return f


class TestCost:
    @pytest.mark.parametrize(
        ("f", "shapes", "operations", "peak"),
        [
            (lambda A, B: A @ B, [(3, 4), (4, 5)], 2 * 3 * 4 * 5, 15),
            (lambda A, B: A @ B, [(7, 3, 4), (4,)], 2 * 7 * 3 * 4, 21),
            (lambda A: np.sum(np.sin(A)), [(3, 4)], 12 + 11, 13),
            (lambda A: np.mean(A, axis=0), [(3, 4)], 2 * 4 + 4, 8),
            (lambda A: np.transpose(A)[1:] + 1, [(3, 4)], 9, 9),  # views are free
            (lambda A: np.reshape(np.transpose(A), (-1,)), [(3, 4)], 0, 12),  # but not this one: it is a copy
            (lambda A: np.sin(np.reshape(np.transpose(A), (-1,))[:2]), [(3, 4)], 2, 14),  # whole while a part lives
            (lambda A: np.sin(np.sin(np.sin(A))), [(5,)], 15, 10),
            (lambda A: A[[0, 0]] > 0, [(5, 2)], 0, 4),
            (lambda A: 3.0, [(5,)], 0, 0),
        ],
    )
    def test_counted_by_hand(self, f, shapes, operations, peak):
        spent = cost(f, *(gaussian(i, *shape) for i, shape in enumerate(shapes)))
        assert (spent.operations, spent.peak_memory) == (operations, peak)

    @pytest.mark.parametrize(("n", "depth"), [(16, 3), (32, 6), (64, 12)])
    def test_network(self, n, depth):
        x, target = gaussian(0, n), gaussian(1, n)
        weights = tuple(gaussian(2 + k, n, n) / np.sqrt(n) for k in range(depth))
        loss = network(x, target)
        # a layer: W y 2n², tanh n; the loss: difference n, squares n, sum n - 1
        forward = depth * (2 * n * n + n) + 3 * n - 1
        # back: δ yᵀ and Wᵀ δ, 2n² each, the latter not for the data; tanh' 2n and its factor n; 2a and its factor
        backward = 4 * n * n * depth - 2 * n * n + 3 * n * depth + 2 * n
        spent = cost(loss, weights)
        assert spent.operations == forward and spent.calls == 2 * depth + 3
        assert cost(grad(loss), weights).operations == forward + backward
        assert forward + backward < 4 * forward

        activations, y = [x], x
        for W in weights:
            activations.append(y := np.tanh(W @ y))
        delta = 2 * (y - target)
        for ours, W, before, after in reversed(
            list(zip(grad(loss)(weights), weights, activations, activations[1:], strict=False))
        ):
            delta = delta * (1 - after**2)
            np.testing.assert_allclose(ours, np.outer(delta, before), rtol=1e-12, atol=1e-14)
            delta = W.T @ delta

    def test_separable_sum(self):
        n = 100
        f = lambda x: np.sum(np.sin(x) + 0.1 * x**2)  # noqa: E731
        x = gaussian(0, n)
        assert cost(f, x).operations == 5 * n - 1
        # cos and its factor, 2x and its factor, the factor 0.1, the sum of both paths
        assert cost(grad(f), x).operations == (5 * n - 1) + 6 * n < 4 * (5 * n - 1)
        np.testing.assert_allclose(grad(f)(x), np.cos(x) + 0.2 * x, rtol=1e-14)

    @given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12))
    def test_sweep_is_bounded_operation_by_operation(self, program):
        n = 3
        bounds = {  # of the sweep, for each operation of the program
            "add": 2 * n * n,
            "subtract": 3 * n * n,
            "multiply": 4 * n * n,
            "divide": 7 * n * n,
            "exp": 2 * n * n,
            "tanh": 4 * n * n,
            "sin": 3 * n * n,
            "square": 3 * n * n,
            "matmul": 2 * 2 * n**3 + 2 * n * n,
        }
        names = [list(bounds)[k] for k, _, _ in program]

        def f(x):
            stack = list(x)
            for name, (_, i, j) in zip(names, program, strict=True):
                function = getattr(np, name)
                arguments = (stack[-1 - i % len(stack)], stack[-1 - j % len(stack)])
                stack.append(function(*(arguments if function.nin == 2 else arguments[:1])))
            return np.sum(stack[-1])

        x = (gaussian(0, n, n) / 9, 1 + gaussian(1, n, n) / 9)
        with np.errstate(all="ignore"):
            assert cost(grad(f), x).operations - cost(f, x).operations <= sum(bounds[name] for name in names)

    @pytest.mark.parametrize(("steps", "segments"), [(64, 4), (64, 8), (64, 16), (100, 10)])
    def test_checkpointed_chain(self, steps, segments):
        n = 1000
        x = gaussian(0, n)
        plain, kept = cost(grad(sines(steps)), x), cost(grad(sines(steps, segments)), x)
        # a sine, its cosine and the product a step; the sine once more
        assert plain.operations == 3 * steps * n + n - 1
        assert kept.operations == plain.operations + steps * n
        assert plain.peak_memory // n in range(steps, steps + 4)
        assert kept.peak_memory // n in range(segments + steps // segments, segments + steps // segments + 4)
        np.testing.assert_allclose(grad(sines(steps, segments))(x), grad(sines(steps))(x), rtol=1e-14)

    def test_memory_of_forward_mode_does_not_grow(self):
        x = gaussian(0, 1000)
        peaks = {cost(lambda x, steps=steps: jvp(sines(steps), x, x), x).peak_memory for steps in (10, 40)}
        assert len(peaks) == 1 and peaks.pop() <= 6 * 1000

    def test_sweep_frees_what_it_has_used(self):
        n, factors = 1000, tuple(gaussian(k, 1000) for k in range(30))
        product = lambda parts: np.sum(math.prod(parts))  # noqa: E731
        # of 30 factors 29 products; each is given up for the derivative in one factor
        assert cost(grad(product), factors).peak_memory // n in range(30, 34)
        # of a linear map only the map is kept
        Q, x = np.eye(n), gaussian(0, n)
        assert cost(grad(lambda x: np.sum(Q @ (Q @ (Q @ (Q @ (Q @ x)))))), x).peak_memory <= 3 * n

    def test_memory_is_what_is_counted(self):
        # measured in bytes where the counter counts numbers: an addition leaves nothing on the tape
        n, x = 50_000, gaussian(0, 50_000)

        def sums(x):
            for _ in range(50):
                x = x + np.ones(n)
            return np.sum(x)

        for f, arrays in [(sums, 5), (sines(49), 53), (sines(49, 7), 19)]:
            assert cost(grad(f), x).peak_memory <= arrays * n
            tracemalloc.start()
            grad(f)(x)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak <= arrays * 8 * n


class TestFiniteDifference:
    # the exponential at 0, where all derivatives are 1; δ = eps is the error of one evaluation
    @pytest.mark.parametrize("h", [0.1, 0.01, 1e-3, 1e-5, 1e-7])
    def test_orders(self, h):
        def error(scheme):
            return finite_difference(np.exp, np.array(0.0), h, scheme) - 1

        # (e^h - 1)/h - 1 = h/2 + h²/6 + …, sinh h/h - 1 = h²/6 + h⁴/120 + …, sin h/h - 1 = -h²/6 + h⁴/120 - …
        assert h / 2 - 2 * EPS / h <= error("forward") <= h / 2 * (1 + h / 2) + 2 * EPS / h
        assert h**2 / 6 - EPS / h <= error("central") <= h**2 / 6 * (1 + h**2) + EPS / h
        assert -(h**2) / 6 - EPS <= error("complex") <= -(h**2) / 6 * (1 - h**2 / 20) + EPS

    @pytest.mark.parametrize(("scheme", "bound"), [("forward", 1e-7), ("central", 1e-9), ("complex", 4 * EPS)])
    def test_default_step(self, scheme, bound):
        # f = s sin(x/s), |f″| ≤ 1/s, |f‴| ≤ 1/s²; where x is large the step is too
        x, scale = np.array([0.3, -2.0, 0.0, 1e3]), np.array([1, 1, 1, 1e3])
        J = finite_difference(lambda x: scale * np.sin(x / scale), x, scheme=scheme)
        np.testing.assert_allclose(J, np.diag(np.cos(x / scale)), rtol=0, atol=bound)

    @pytest.mark.parametrize(("scheme", "evaluations"), [("forward", 7), ("central", 12), ("complex", 6)])
    def test_evaluations_and_shape(self, scheme, evaluations):
        count = 0

        def f(x):
            nonlocal count
            count += 1
            return np.stack([np.sum(x[0] * x[1]), np.sum(x), x[0, 0], x[1, 2]])

        x = gaussian(0, 2, 3)
        J = finite_difference(f, x, 0.125, scheme)
        assert count == evaluations and J.shape == (4, 2, 3)
        np.testing.assert_allclose(J, jacrev(f)(x), atol=1e-13)  # no third derivatives, no second along coordinates

    def test_divides_by_the_step_that_was_made(self):
        # x = 1, h = 1e-13 is 450.36 spacings of floats: x + h is off by up to 1e-3 h
        for scheme in ("forward", "central"):
            assert finite_difference(lambda x: x - 1, np.array(1.0), 1e-13, scheme) == 1

    def test_check_grad(self):
        f = lambda x: np.sum(np.sin(x) * x[::-1])  # noqa: E731
        x = gaussian(0, 5)
        assert check_grad(f, x, rng=0) < 1e-8
        wrong = lambda x: np.sum(np.sin(x) * x[::-1]) * (1 if isinstance(x, np.ndarray) else 1.01)  # noqa: E731
        # each slope is off by 1 % of itself
        assert 1e-3 < check_grad(wrong, x, rng=0) < 3e-2
        only_first = lambda x: np.sum(x**2) if isinstance(x, np.ndarray) else np.sum(x[1:] ** 2)  # noqa: E731
        assert check_grad(only_first, x, rng=0) > 1e-2
        tilted = lambda x: np.sum(x) + (0 if isinstance(x, np.ndarray) else x[0] - x[1])  # noqa: E731
        assert check_grad(tilted, x, rng=0) > 1e-2
        assert check_grad(lambda x: np.sum(0 * x), x, rng=0) == 0
        assert check_grad(lambda x: np.sum(x) if isinstance(x, np.ndarray) else 0.0, x, rng=0) >= 1
        assert check_grad(f, x, rng=1) == check_grad(f, x, rng=np.random.default_rng(1))
        with np.errstate(all="ignore"):
            assert np.isnan(check_grad(lambda x: np.sqrt(np.sum(x * x)), np.zeros(2), rng=0))


def in_place(x):
    x[0] = 1
    return np.sum(x)


def augmented(x):
    x += 1
    return np.sum(x)


class TestBadInput:
    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: grad(np.sin)(np.ones(2)), r"f must return a scalar, got shape \(2,\)"),
            (lambda: hvp(np.sin, np.ones(2), np.ones(2)), "f must return a scalar"),
            (lambda: grad(lambda x: (x, x))(1.0), "f must return one real array or number, got tuple"),
            (lambda: jvp(lambda x: None, 1.0, 1.0), "f must return one real array or number, got NoneType"),
            (lambda: jvp(np.sin, np.ones(2), np.ones(3)), r"v must have the shape of x, \(2,\), got \(3,\)"),
            (lambda: jvp(np.sin, np.ones(2), np.nan), "v must be finite"),
            (lambda: vjp(np.sin, np.ones(2))[1](np.ones(3)), r"u must have the shape of f\(x\), \(2,\), got \(3,\)"),
            (lambda: vjp(np.sin, np.ones(2))[1](np.array([1, np.inf])), "u must be finite"),
            (lambda: grad(np.sum)(np.array([1, np.nan])), "x must be finite, got 1 NaN"),
            (lambda: grad(lambda x: np.sum(x[1]))((1.0, np.array([np.nan]))), r"x\[1\] must be finite"),
            (lambda: jacfwd(np.sin)(np.ones(2) * 1j), "x must be an array of real numbers"),
            (lambda: jacrev(np.sin)("text"), "x must be an array of real numbers"),
            (lambda: graph(lambda x: np.sum(x[0]), (np.ones(2),)), r"an input has shape \(2,\)"),
            (lambda: graph(lambda x: np.sum(x[0] * np.ones(2)), (1.0,)), r"multiply has shape \(2,\)"),
            (lambda: cost(np.sin, np.array([np.nan])), r"args\[0\] must be finite"),
            (lambda: finite_difference(np.sin, 1.0, scheme="backward"), "scheme must be one of 'central', 'forward'"),
            (lambda: finite_difference(np.sin, 1.0, 0), "h must be greater than 0, got 0"),
            (lambda: finite_difference(np.sin, 1.0, -1e-3), "h must be greater than 0"),
            (lambda: finite_difference(np.sin, 1.0, 1e-17), "h must be larger than the spacing of floats at x"),
            (lambda: finite_difference(np.sum, np.array([0.0, 1e9]), 1e-8, "forward"), "h must be larger"),
            (lambda: finite_difference(np.sin, np.nan), "x must be finite"),
            (lambda: check_grad(np.sin, np.ones(2)), "f must return a scalar"),
        ],
    )
    def test_value_error(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    @pytest.mark.parametrize(
        ("f", "message"),
        [
            (lambda x: np.linalg.norm(x), "norm has no derivative rule"),
            (lambda x: np.sum(np.arcsinh(x)), "arcsinh has no derivative rule"),
            (in_place, "cannot be changed in place"),
            (augmented, "np.add with out cannot be recorded"),
            (lambda x: np.add(x, 1, out=np.ones(2)), "np.add with out cannot be recorded"),
            (lambda x: np.add.reduce(x), "np.add with reduce cannot be recorded"),
            (lambda x: math.sin(x[0]), "cannot become a plain array or number"),
            (lambda x: np.array([x[0], x[1]]), "cannot become a plain array or number"),
            (lambda x: np.zeros(2).__setitem__(slice(None), x), "cannot become a plain array or number"),
            (lambda x: np.sum(x) if x[0] else 0.0, "cannot become a plain array or number"),
            (lambda x: np.sum(np.where(x, x, 0)), "condition of np.where must be a comparison"),
            (lambda x: np.dot(np.ones((2, 2)) * x, np.ones((2, 2, 2))), "dot of 2 and 3 dimensions"),
        ],
    )
    def test_type_error(self, f, message):
        for derivative in (lambda f, x: grad(f)(x), lambda f, x: jvp(f, x, x)):
            with pytest.raises(TypeError, match=message):
                derivative(f, np.ones(2))

    def test_a_box_cannot_be_stored_in_a_plain_array(self):
        with pytest.raises((TypeError, ValueError)):
            grad(lambda x: np.zeros(2).__setitem__(0, x[0]))(np.ones(2))

    @pytest.mark.parametrize("wrap", [lambda f: f, checkpoint])
    def test_checkpoint_of_a_closure(self, wrap):
        # the derivative in w of w² x², and that in x of it, where x or w comes past the checkpoint
        product = lambda x: lambda w: checkpoint(lambda x: w * w * x * x)(x)  # noqa: E731
        for f in (
            lambda x: checkpoint(lambda: x)() + checkpoint(lambda y: x * y)(x),
            lambda x: grad(product(x))(np.array(2.0)),
            lambda x: jvp(product(x), np.array(2.0), np.array(1.0))[1],
        ):
            with pytest.raises(ValueError, match="as an argument of its own, not by closure"):
                grad(f)(np.array(3.0))

    def test_checkpoint_of_an_unused_argument(self):
        f = checkpoint(lambda a, b: np.sin(a))
        assert grad(lambda z: f(z[0], z[1]) + z[1])((0.0, 2.0)) == (1, 1)
        assert grad(lambda z: z * checkpoint(lambda a: 3.0)(z))(2.0) == 3
        assert f(0.0, 1.0) == 0 and f.__name__ == "<lambda>"


class TestArraysOfTheUser:
    @pytest.mark.parametrize("wrap", [lambda f: f, checkpoint])
    def test_constants_are_locked_while_the_pullback_lives(self, wrap):
        W, x = gaussian(0, 2, 2), gaussian(1, 2)
        _, pull = vjp(lambda x: wrap(lambda x, W: x * np.sin(W @ x))(x, W), x)
        before = pull(np.ones(2))
        with pytest.raises(ValueError, match="read-only"):
            W[0, 0] = 1
        x[0] += 1  # a copy was taken
        np.testing.assert_array_equal(pull(np.ones(2)), before)
        del pull
        gc.collect()
        W[0, 0] = 1

    @pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("order", [1, -1])
    def test_all_is_writable_afterwards(self, order):
        whole = np.ones((3, 2))
        frozen = np.ones(2)
        frozen.flags.writeable = False
        arrays = [whole, whole[:2], np.ones(2), frozen][::order]
        f = lambda x: sum(np.sum(a * x) for a in arrays)  # noqa: E731
        x = np.ones(2)
        np.testing.assert_array_equal(grad(f)(x), [7, 7])
        hvp(f, x, x), jvp(f, x, x), jacrev(f)(x), jacrev(grad(f))(x)
        gc.collect()
        assert [a.flags.writeable for a in arrays] == [a is not frozen for a in arrays] and x.flags.writeable

    def test_a_view_waits_for_what_it_views(self):
        whole = np.ones(4)
        part = whole[:2]
        _, first = vjp(lambda x: x * part, np.ones(2))
        _, second = vjp(lambda x: x * whole, np.ones(4))
        del first
        assert not part.flags.writeable and not whole.flags.writeable  # the second needs all of it
        del second
        assert part.flags.writeable and whole.flags.writeable

    def test_locked_through_a_view_that_is_read_only(self):
        row = np.ones(3)
        spread = np.broadcast_to(row, (2, 3))
        _, pull = vjp(lambda x: np.sum(x * spread), np.ones(3))
        with pytest.raises(ValueError, match="read-only"):
            row[0] = 2
        assert pull(1.0).tolist() == [2, 2, 2]

    def test_lists_are_copied(self):
        factors, index = [1.0, 2.0, 3.0], [0, 2]
        _, pull = vjp(lambda x: np.sum((x * factors)[index]), np.ones(3))
        factors[0] = index[0] = 1
        assert pull(1.0).tolist() == [1, 0, 3]

    def test_an_error_in_the_function_unlocks(self):
        W = np.ones(2)

        def fails(x):
            x = x * W
            raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError) as caught:
            grad(fails)(np.ones(2))
        assert W.flags.writeable and caught.tb is not None  # although the traceback still holds the tape

    def test_results_belong_to_the_user(self):
        x, v, u = np.ones((2, 3)), np.full((2, 3), 2.0), np.ones((2, 3))
        for f in (lambda x: x, np.sin, lambda x: np.reshape(x, (2, 3)), lambda x: x + np.zeros((2, 3))):
            value, tangent = jvp(f, x, v)
            again, pull = vjp(f, x)
            results = [value, tangent, again, pull(u), pull(u), grad(lambda x, f=f: np.sum(f(x)))(x)]
            expected = [a.copy() for a in results]
            for i, a in enumerate(results):
                a += 10.0
                for b, c in zip(results[i + 1 :], expected[i + 1 :], strict=True):
                    np.testing.assert_array_equal(b, c)
            np.testing.assert_array_equal(pull(u), expected[3])
            assert (x == 1).all() and (v == 2).all() and (u == 1).all()
        constant = np.ones(3)
        jvp(lambda x: constant, x, v)[0][0] = 5
        vjp(lambda x: constant, x)[0][0] = 5
        assert (constant == 1).all()

    def test_kinds_of_results(self):
        assert isinstance(grad(np.sin)(1), np.float64) and isinstance(jvp(np.sin, 1.0, 1)[0], np.float64)
        a, b = grad(lambda z: z[0] * np.sum(z[1]))((2, [1, 2, 3]))
        assert a == 6 and b.tolist() == [2, 2, 2]
        assert jacfwd(lambda x: np.ones(2))(np.ones(3)).tolist() == jacrev(lambda x: np.ones(2))(np.ones(3)).tolist()
        assert grad(lambda x: 3)(np.ones(3)).tolist() == [0, 0, 0]
        assert repr(Dual(1, 2.0, 3.0)) == "Dual(2.0)"


class TestRefusals:
    @pytest.mark.parametrize(
        ("f", "message"),
        [
            (lambda x: np.sum(x, initial=5.0), "sum is recorded with axis and keepdims only"),
            (lambda x: np.sum(x, dtype=int), "sum is recorded with axis and keepdims only"),
            (lambda x: np.sum(a=x), "sum needs recorded arrays by position"),
            (lambda x: np.abs(x + 1j), "add returned complex numbers"),
            (lambda x: np.linalg.det(x), "det has no derivative rule"),
            (lambda x: np.add(x, 1, where=[True, False, True]), "np.add with where cannot be recorded"),
        ],
    )
    def test_type_error_in_both_modes(self, f, message):
        x = np.ones(3)
        for mode in (lambda: jvp(f, x, x), lambda: vjp(f, x)):
            with pytest.raises(TypeError, match=message):
                mode()

    @pytest.mark.parametrize("f", [lambda x: {"a": x}, lambda x: "text", lambda x: 1j])
    def test_output_must_be_real_numbers(self, f):
        for mode in (lambda: grad(f)(1.0), lambda: jvp(f, 1.0, 1.0), lambda: vjp(f, 1.0)):
            with pytest.raises(ValueError, match="f must return one real array or number"):
                mode()

    def test_one_array_for_a_jacobian(self):
        for jacobian in (jacfwd, jacrev):
            with pytest.raises(ValueError, match="x must be one array for a Jacobian"):
                jacobian(lambda z: z[0] * z[1])((1.0, 2.0))
        with pytest.raises(ValueError, match="takes arrays, got a tuple"):
            grad(lambda z: checkpoint(lambda q: q[0])((z,)))(1.0)

    def test_keywords_that_are_known(self):
        x = gaussian(0, 2, 3)
        f = lambda x: np.sum(np.reshape(np.swapaxes(x, axis1=0, axis2=1), shape=(6,)) * np.arange(6.0))  # noqa: E731
        np.testing.assert_array_equal(grad(f)(x), np.arange(6.0).reshape(3, 2).T)
        low = grad(lambda x: np.min(np.clip(x, -0.5, 0.5)))(np.array([0.3, -0.2, 2.0]))
        assert low.tolist() == [0, 1, 0]

    def test_power_with_base_zero(self):
        assert grad(lambda z: z[0] ** z[1])((0.0, 2.0)) == (0, 0)

    def test_graph_names_its_output(self):
        drawn = graph(lambda z: (z[0] * z[1], z[0] + z[1])[0], (1.0, 2.0))
        assert drawn.values[drawn.output] == 2
        with pytest.raises(ValueError, match="depends on x"):
            graph(lambda z: 3.0, (1.0,))
