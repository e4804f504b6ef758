"""Density estimates."""

import numpy as np
import scipy.stats
from comparison import Close, Work
from KDEpy import FFTKDE
from sklearn.neighbors import KernelDensity

from coursekit.empirical import kde, silverman_bandwidth

N_GRID = 1024
BLOCK = 2**16  # numbers that stay in the cache


def sample(n):
    """A sample, a grid around all of it, and a bandwidth."""
    x = np.random.default_rng(0).laplace(size=n)
    h = silverman_bandwidth(x)
    return x, np.linspace(x.min() - 3 * h, x.max() + 3 * h, N_GRID), h


def scipy_kde(x, grid, h):
    return scipy.stats.gaussian_kde(x, h / x.std(ddof=1))(grid)


def sklearn_kde(x, grid, h, rtol):
    return np.exp(KernelDensity(bandwidth=h, rtol=rtol).fit(x[:, None]).score_samples(grid[:, None]))


def binned(x, grid):
    """Every point shared between its two neighbours on the grid."""
    count = np.zeros(N_GRID)
    for start in range(0, len(x), BLOCK):
        place = (x[start : start + BLOCK] - grid[0]) * (1 / (grid[1] - grid[0]))
        cell = place.astype(np.intp)
        right = np.bincount(cell, place - cell, N_GRID)
        count += np.bincount(cell, minlength=N_GRID) - right + np.roll(right, 1)
    return count


def bench_kde(compare):
    def make(n):
        x, grid, h = sample(n)
        peers = {"scikit-learn KernelDensity, rtol 1e-6": lambda: sklearn_kde(x, grid, h, 1e-6)}
        if n <= 16_000:  # seconds, otherwise
            peers["scipy gaussian_kde"] = lambda: scipy_kde(x, grid, h)
        return Work(
            ours=lambda: kde(x, grid, h),
            peers=peers,
            floor=lambda: binned(x, grid),
        )

    compare(
        f"Kernel density estimate on a grid of {N_GRID:,} points",
        make,
        (62_500, 125_000, 250_000, 500_000, 1_000_000),
        at=16_000,
        unit="points",
        agree=Close(rtol=0, atol=2e-6),
        floor="binning the sample",
        growth="n",
    )


def bench_kde_coarse(compare):
    def make(n):
        x, grid, h = sample(n)
        return Work(
            ours=lambda: kde(x, grid, h),
            peers={"KDEpy FFTKDE": lambda: FFTKDE(bw=h).fit(x).evaluate(grid)},
            floor=lambda: binned(x, grid),
        )

    compare(
        f"Kernel density estimate on {N_GRID:,} points, to the error of KDEpy's binning",
        make,
        (125_000, 250_000, 500_000, 1_000_000, 2_000_000),
        at=1_000_000,
        unit="points",
        agree=Close(rtol=0, atol=1e-3),
        floor="binning the sample",
        growth="n",
    )


def bench_kde_direct(compare):
    def make(n):
        x, grid, h = sample(n)
        # what is farther than 39 h gives 0 in floating point: n h ∝ n⁴ᐟ⁵ points are near
        n_near = np.count_nonzero(np.abs(x[:, None] - grid) < 39 * h)
        block = -np.square(np.random.default_rng(0).standard_normal(BLOCK))

        def exponentials():
            for _ in range(n_near // BLOCK):
                np.exp(block)

        return Work(
            ours=lambda: kde(x, grid, h, "direct"),
            peers={
                "scipy gaussian_kde": lambda: scipy_kde(x, grid, h),
                "scikit-learn KernelDensity": lambda: sklearn_kde(x, grid, h, 0.0),
            },
            floor=exponentials,
        )

    compare(
        f"Kernel density estimate at {N_GRID:,} points as a sum",
        make,
        (2_000, 4_000, 8_000, 16_000, 32_000),
        at=8_000,
        unit="points",
        agree=Close(rtol=0, atol=1e-12),
        floor="the exponentials",
        growth="n⁴ᐟ⁵",
    )
