"""Automatic differentiation."""

import math

import numpy as np
import pytest
import torch
from comparison import Close, Work

from coursekit.autodiff import grad

OPERATIONS = 8  # of one round of the program


def program(lib, rounds, W, X):
    """Matrix products and elementwise functions, one after the other."""
    for _ in range(rounds):
        A = W @ X
        B = lib.tanh(A)
        C = lib.sin(B + X)
        X = C * B - lib.exp(-A)
    return (X * X).sum()


def program_by_hand(rounds, W, X):
    """Its gradient in the operations that a tape cannot avoid: forth, keeping what the way back needs, and back."""
    kept = []
    for _ in range(rounds):
        A = W @ X
        B = np.tanh(A)
        S = B + X
        C, E = np.sin(S), np.exp(-A)
        kept.append((X, B, S, C, E))
        X = C * B - E
    grad_W, grad_X = np.zeros_like(W), 2 * X
    for X, B, S, C, E in reversed(kept):
        grad_S = grad_X * B * np.cos(S)
        grad_A = grad_X * E + (grad_X * C + grad_S) * (1 - B * B)
        grad_W += grad_A @ X.T
        grad_X = W.T @ grad_A + grad_S
    return grad_W, grad_X


SMALL = (
    "an operation costs about 10 µs of Python, which finds its rule and writes it on the tape, and about 7 µs in "
    "torch's C++; by hand numpy takes 1.5 µs for one on 64 numbers. With 64 × 64 matrices the arithmetic dominates."
)


@pytest.mark.parametrize(
    ("d", "sizes", "reason"),
    [(64, (200, 400, 800, 1600), ""), (8, (100, 200, 400, 800), SMALL)],
    ids=["matrices", "small_matrices"],
)
def bench_tape(compare, d, sizes, reason):
    def make(n):
        rounds = n // OPERATIONS
        rng = np.random.default_rng(d)
        W, X = rng.standard_normal((d, d)) / (4 * d), rng.standard_normal((d, d)) / 4
        tensors = [torch.tensor(a, requires_grad=True) for a in (W, X)]
        return Work(
            ours=lambda: grad(lambda weights: program(np, rounds, *weights))((W, X)),
            peers={"torch.autograd": lambda: torch.autograd.grad(program(torch, rounds, *tensors), tensors)},
            floor=lambda: program_by_hand(rounds, W, X),
        )

    compare(
        f"reverse mode through a program on {d} × {d} matrices",
        make,
        sizes,
        at=800,
        unit="operations",
        agree=Close(rtol=1e-12, atol=1e-12),
        floor="both sweeps written by hand",
        growth="n",
        reason=reason,
    )


class Value:
    """A number that knows how it was made, as in micrograd."""

    def __init__(self, data, parents=(), slopes=()):
        self.data, self.parents, self.slopes, self.grad = data, parents, slopes, 0.0

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def tanh(self):
        y = math.tanh(self.data)
        return Value(y, (self,), (1 - y * y,))

    def backward(self):
        """Add d self/d node to every node's `grad`, each node after all that were made from it."""
        order, seen, stack = [], set(), [(self, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack.extend((parent, False) for parent in node.parents)
        self.grad = 1.0
        for node in reversed(order):
            for parent, slope in zip(node.parents, node.slopes, strict=True):
                parent.grad += slope * node.grad


def squared_error(lib, X, y, W, b, a):
    """Mean over the rows of X, of a network of one hidden layer."""
    residual = lib.tanh(X @ W + b) @ a - y
    return (residual * residual).mean()


def squared_error_by_hand(X, y, W, b, a):
    hidden = np.tanh(X @ W + b)
    residual = hidden @ a - y
    grad_f = 2 / len(y) * residual
    grad_hidden = grad_f[:, None] * a * (1 - hidden * hidden)
    return X.T @ grad_hidden, grad_hidden.sum(axis=0), hidden.T @ grad_f


def squared_error_of_numbers(X, y, W, b, a):
    """The same number by number; the gradient."""
    W, b, a = ([[Value(w) for w in row] for row in np.atleast_2d(part).tolist()] for part in (W, b, a))
    scale, total = Value(1 / len(y)), Value(0.0)
    for row, label in zip(X.tolist(), y.tolist(), strict=True):
        inputs, f = [Value(x) for x in row], Value(-label)
        for h, (bias, weight) in enumerate(zip(b[0], a[0], strict=True)):
            s = bias
            for x, weights in zip(inputs, W, strict=True):
                s = s + x * weights[h]
            f = f + weight * s.tanh()
        total = total + f * f
    (total * scale).backward()
    return tuple(np.squeeze([[w.grad for w in row] for row in part]) for part in (W, b, a))


def bench_network(compare):
    def make(n):
        rng = np.random.default_rng(n)
        X, y = rng.standard_normal((n, 2)), rng.standard_normal(n)
        weights = rng.standard_normal((2, 8)), rng.standard_normal(8), rng.standard_normal(8)
        data = torch.from_numpy(X), torch.from_numpy(y)
        tensors = [torch.tensor(a, requires_grad=True) for a in weights]
        return Work(
            ours=lambda: grad(lambda weights: squared_error(np, X, y, *weights))(weights),
            peers={
                "torch.autograd": lambda: torch.autograd.grad(squared_error(torch, *data, *tensors), tensors),
                "a tape of numbers": lambda: squared_error_of_numbers(X, y, *weights),
            },
            floor=lambda: squared_error_by_hand(X, y, *weights),
        )

    compare(
        "gradient of the loss of a network 2-8-1",
        make,
        (4000, 8000, 16_000, 32_000, 64_000),
        at=8000,
        unit="samples",
        agree=Close(rtol=1e-10, atol=1e-12),
        floor="both sweeps written by hand",
        growth="n",
        reason="repeated runs give exponents between 0.6 and 1: the steps are a few passes over memory, whose speed "
        "varies, and at the smallest size the tape's fixed cost counts.",
    )
