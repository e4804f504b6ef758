"""Kernel density estimates against scipy, KDEpy and scikit-learn: ratios of times measured in turn, in one run.

All run one thread, with one bandwidth, on one grid of 1 024 points. The answers are compared first.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy is imported

import numpy as np
import scipy.stats
from _timing import in_turn
from KDEpy import FFTKDE
from rich.console import Console
from rich.table import Table
from sklearn.neighbors import KernelDensity

from coursekit.empirical import kde, silverman_bandwidth


def peers(x, grid, h):
    """Name, how it is called, how often, and how far it may be from the sum (of the peak)."""
    column, points = x[:, None], grid[:, None]
    factor = h / x.std(ddof=1)
    yield "scipy gaussian_kde", lambda: scipy.stats.gaussian_kde(x, factor)(grid), 3, 1e-12
    # its default tolerance is none: every pair is visited, or bounded, through a tree
    tree = KernelDensity(bandwidth=h, rtol=1e-6)
    yield "scikit-learn KernelDensity, rtol 1e-6", lambda: np.exp(tree.fit(column).score_samples(points)), 3, 2e-6
    # it bins on the grid itself
    yield "KDEpy FFTKDE", lambda: FFTKDE(bw=h).fit(x).evaluate(grid), 301, 1e-3


def main() -> None:
    table = Table("n", "peer", "ours (ms)", "the peer (ms)", "ours / the peer's", "our error", "the peer's")
    for n in (1_000, 10_000, 100_000, 1_000_000):
        x = np.random.default_rng(0).laplace(size=n)
        h = silverman_bandwidth(x)
        grid = np.linspace(x.min() - 3 * h, x.max() + 3 * h, 1024)  # FFTKDE wants all of the sample inside
        exact = kde(x, grid, h, "direct")
        error = np.abs(kde(x, grid, h) - exact).max() / exact.max()
        assert error < 1e-6, error
        for name, theirs, repeats, tolerance in peers(x, grid, h):
            if n > 100_000 and repeats < 10:
                continue
            their_error = np.abs(theirs() - exact).max() / exact.max()
            assert their_error < tolerance, (name, their_error)
            mine, other, value = in_turn(lambda: kde(x, grid, h), theirs, repeats)  # noqa: B023
            table.add_row(
                f"{n:,}",
                name,
                f"{1e3 * mine:.2f}",
                f"{1e3 * other:.2f}",
                f"{value:.4f}",
                f"{error:.0e}",
                f"{their_error:.0e}",
            )
    console = Console()
    console.print("Density of a Laplace sample on 1 024 points, Gaussian kernel; errors against the sum, of the peak")
    console.print(table)


if __name__ == "__main__":
    main()
