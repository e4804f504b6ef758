"""Optimal transport."""

import functools

import numpy as np
import ot
import pytest
import scipy.optimize
import scipy.stats
from comparison import Agreement, Close, Work

from coursekit import transport


def bench_wasserstein_1d(compare):
    def make(n):
        rng = np.random.default_rng(n)
        x, y = rng.standard_normal(n), rng.standard_normal(n)
        return Work(
            ours=lambda: transport.wasserstein_1d(x, y),
            peers={
                "scipy": lambda: scipy.stats.wasserstein_distance(x, y),
                "POT wasserstein_1d": lambda: ot.wasserstein_1d(x, y),
                "POT emd2_1d": lambda: ot.emd2_1d(x, y, metric="euclidean"),
            },
            floor=lambda: (np.sort(x), np.sort(y)),
        )

    compare(
        "W₁ of two samples on the line",
        make,
        (10_000, 30_000, 100_000, 300_000, 1_000_000),
        unit="points each",
        agree=Close(rtol=1e-8),
        floor="sorting both",
        growth="n ln n",
    )


def bench_wasserstein_1d_weighted(compare):
    def make(n):
        rng = np.random.default_rng(n)
        x, y = rng.standard_normal(n), rng.standard_normal(n - n // 10)
        weights = weights_of(n, rng)
        return Work(
            ours=lambda: transport.wasserstein_1d(x, y, x_weights=weights),
            peers={
                "scipy": lambda: scipy.stats.wasserstein_distance(x, y, weights),
                "POT wasserstein_1d": lambda: ot.wasserstein_1d(x, y, weights),
                "POT emd2_1d": lambda: ot.emd2_1d(x, y, weights, metric="euclidean"),
            },
            floor=lambda: (np.argsort(x), np.sort(y)),
        )

    compare(
        "W₁ of a weighted and a smaller sample on the line",
        make,
        (10_000, 30_000, 100_000, 300_000, 1_000_000),
        unit="points",
        agree=Close(rtol=1e-8),
        floor="sorting both, one with an index",
        growth="n ln n",
    )


def bench_sliced_wasserstein(compare):
    def make(n):
        rng = np.random.default_rng(n)
        X, Y = rng.standard_normal((n, 10)), 1 + rng.standard_normal((n, 10))
        directions = np.random.default_rng(0).standard_normal((50, 10))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return Work(
            ours=lambda: transport.sliced_wasserstein(X, Y, 50, rng=0),
            peers={"POT": lambda: ot.sliced_wasserstein_distance(X, Y, projections=directions.T)},
            floor=lambda: [np.sort(directions @ points.T, axis=1) for points in (X, Y)],
        )

    compare(
        "Sliced W₂ in 10 dimensions, 50 directions",
        make,
        (1000, 3000, 10_000, 30_000),
        unit="points each",
        agree=Close(rtol=1e-9),
        floor="projecting and sorting both",
        growth="n ln n",
    )


CERTIFIED = (
    "POT's plain iteration takes one kernel and products with vectors. We also begin in the log domain, so that no "
    "kernel underflows, and certify the plan by a bound of its gap: about ten passes over the matrix."
)


@pytest.mark.parametrize(
    ("reg", "reason"),
    [
        (0.05, CERTIFIED),
        (0.01, CERTIFIED),
        (0.001, "Newton's steps, O(n³) each, replace most of the iterations; so the growth lies between n² and n³."),
    ],
    ids=["0.05", "0.01", "0.001"],
)
def bench_sinkhorn(compare, reg, reason):
    def make(n):
        a, b, C = clouds(n)
        knobs = {"reg": reg, "stopThr": 1e-9, "numItermax": 100_000, "warn": False}
        peers = {
            "POT sinkhorn": lambda: ot.sinkhorn(a, b, C, method="sinkhorn", **knobs),
            "POT sinkhorn_stabilized": lambda: ot.sinkhorn(a, b, C, method="sinkhorn_stabilized", **knobs),
            "POT sinkhorn_log": lambda: ot.sinkhorn(a, b, C, method="sinkhorn_log", **knobs),
        }
        if reg < 0.01:
            del peers["POT sinkhorn_log"]  # takes minutes
        return Work(
            ours=lambda: transport.sinkhorn(a, b, C, reg).P,
            peers=peers,
            floor=lambda: np.exp(-C / reg),
        )

    def same_plan(ours, theirs):
        assert np.abs(ours - theirs).sum() < 1e-5, f"the plans differ by {np.abs(ours - theirs).sum():.1e}"

    compare(
        f"Sinkhorn, regularisation {reg} of the largest cost",
        make,
        (200, 400, 800, 1600),
        at=400,
        unit="points each",
        agree=Agreement("plans, 1e-5 of the mass", same_plan),
        floor="the kernel exp(-C/ε) once",
        growth="n²",
        reason=reason,
    )


def bench_ot_exact_uniform(compare):
    def make(n):
        _, _, C = clouds(n)
        equal = np.full(n, 1 / n)
        return Work(
            ours=lambda: transport.ot_exact(equal, equal, C).cost,
            peers={"POT emd2": lambda: ot.emd2(equal, equal, C)},
            floor=lambda: scipy.optimize.linear_sum_assignment(C),
        )

    compare(
        "Exact transport in the plane, equal weights",
        make,
        (200, 400, 800, 1600),
        at=800,
        unit="points each",
        agree=Close(rtol=1e-9),
        floor="scipy's assignment alone",
        growth="n³",
        reason="The worst case of the assignment is n³; most problems are a little easier.",
    )


def bench_ot_exact_weighted(compare):
    def make(n):
        a, b, C = clouds(n)
        return Work(
            ours=lambda: transport.ot_exact(a, b, C).cost,
            peers={"POT emd2": lambda: ot.emd2(a, b, C)},
            floor=lambda: scipy.optimize.linear_sum_assignment(C),
        )

    compare(
        "Exact transport in the plane, any weights",
        make,
        (100, 200, 400, 800),
        unit="points each",
        agree=Close(rtol=1e-9),
        floor="scipy's assignment on these costs",
        growth="n²",
        reason="POT has a network simplex in C++, we a general linear programme: HiGHS on the pairs that Sinkhorn's "
        "potentials find cheap, then on those that its own find too cheap. The pivots vary "
        "from problem to problem, from 600 for 100 points to 7500 for 800, so that no law is known for the growth. "
        "The assignment is a reference of the same size, not a bound.",
    )


@functools.cache
def clouds(n):
    """Two clouds of weighted points in the square, and the squared distances between them in units of the largest."""
    rng = np.random.default_rng(n)
    X, Y = rng.random((n, 2)), rng.random((n, 2)) ** 2
    C = ot.dist(X, Y)
    return weights_of(n, rng), weights_of(n, rng), C / C.max()


def weights_of(n, rng):
    weights = 0.5 + rng.exponential(size=n)
    return weights / weights.sum()
