"""Optimal transport against POT and scipy: ratios of times measured in turn, in one run, one thread, on equal answers.

The distance on the line is two calls of np.sort, so its ratios are those of numpy's sorts. On some machines the
AVX-512 ones are slow (Zen 4: five times slower than AVX2); NPY_DISABLE_CPU_FEATURES="X86_V4" compares the others.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy is imported

import numpy as np
import ot
import scipy.stats
from _timing import in_turn
from rich.console import Console
from rich.table import Table

from coursekit import transport

RNG = np.random.default_rng(0)


def row(label, peer, ours, theirs, repeats, rtol):
    """Times and their ratio of two calls that have given the same answer."""
    np.testing.assert_allclose(ours(), theirs(), rtol=rtol, atol=1e-10)
    mine, other, ratio = in_turn(ours, theirs, repeats)
    return label, peer, f"{1e3 * mine:.1f}", f"{1e3 * other:.1f}", f"{1 / ratio:.1f}"


def line(n, repeats):
    x, y, a, b = *RNG.standard_normal((2, n)), *RNG.exponential(size=(2, n))
    a, b = a / a.sum(), b / b.sum()
    w1 = lambda: transport.wasserstein_1d(x, y)  # noqa: E731
    label = f"wasserstein_1d, n = {n:.0e}"
    yield row(label, "scipy", w1, lambda: scipy.stats.wasserstein_distance(x, y), repeats, 1e-10)
    yield row(label, "POT wasserstein_1d", w1, lambda: ot.wasserstein_1d(x, y), repeats, 1e-6)
    yield row(label, "POT emd2_1d", w1, lambda: ot.emd2_1d(x, y, metric="euclidean"), repeats, 1e-6)
    weighted = lambda: transport.wasserstein_1d(x, y[1:], 1, a)  # noqa: E731
    theirs = lambda: scipy.stats.wasserstein_distance(x, y[1:], a)  # noqa: E731
    yield row("  unequal, weighted", "scipy", weighted, theirs, repeats, 1e-8)
    theirs = lambda: ot.wasserstein_1d(x, y[1:], a)  # noqa: E731
    yield row("  unequal, weighted", "POT wasserstein_1d", weighted, theirs, repeats, 1e-6)


def sliced(n, d, repeats):
    X, Y = RNG.standard_normal((n, d)), 1 + RNG.standard_normal((n, d))
    directions = np.random.default_rng(0).standard_normal((200, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ours = lambda: transport.sliced_wasserstein(X, Y, 200, rng=0)  # noqa: E731
    theirs = lambda: ot.sliced_wasserstein_distance(X, Y, projections=directions.T)  # noqa: E731
    yield row(f"sliced, n = {n}, d = {d}, 200 directions", "POT", ours, theirs, repeats, 1e-8)


def plans(n, repeats):
    X, Y = RNG.standard_normal((n, 2)), 1 + 1.5 * RNG.standard_normal((n, 2))
    uniform, C = np.full(n, 1 / n), ot.dist(X, Y)
    C /= C.max()
    for reg in (0.05, 0.01):

        def ours(reg=reg):
            return transport.sinkhorn(uniform, uniform, C, reg, tol=1e-9).P

        def theirs(reg=reg):
            return ot.bregman.sinkhorn_log(uniform, uniform, C, reg, stopThr=1e-9)

        # our 1e-9 is a sum over rows, the peer's a root of a sum of squares over columns, seen every tenth step
        yield row(f"sinkhorn {n} × {n}, reg {reg}", "POT sinkhorn_log", ours, theirs, repeats, 1e-3)
    ours = lambda: transport.ot_exact(uniform, uniform, C).cost  # noqa: E731
    yield row(f"ot_exact {n} × {n}, uniform", "POT emd2", ours, lambda: ot.emd2(uniform, uniform, C), 3, 1e-9)
    weights = RNG.exponential(size=(2, 100))
    a, b = weights / weights.sum(axis=1, keepdims=True)
    small = np.ascontiguousarray(C[:100, :100])
    ours = lambda: transport.ot_exact(a, b, small).cost  # noqa: E731
    yield row("ot_exact 100 × 100, weighted", "POT emd2", ours, lambda: ot.emd2(a, b, small), 3, 1e-9)


def main() -> None:
    table = Table("problem", "peer", "our ms", "peer's ms", "peer's time / ours")
    for result in (*line(10**6, 9), *sliced(5000, 10, 5), *plans(1000, 3)):
        table.add_row(*result)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
