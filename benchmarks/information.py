"""Information measures against scipy and scikit-learn: ratios of times measured in turn, in one run, on one thread.

The second table is about digits: the divergence of nearly equal laws against decimal arithmetic.
"""

import decimal
import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy is imported

import numpy as np
import scipy.spatial.distance
import scipy.stats
import sklearn.metrics
from _timing import in_turn
from rich.console import Console
from rich.table import Table

from coursekit import information


def laws(rng):
    """10 000 forecasts of 10 classes, twice."""
    p, q = rng.dirichlet(np.ones(10), size=(2, 10_000))
    return [
        (
            "entropy",
            "scipy.stats.entropy",
            lambda: information.entropy(p),
            lambda: scipy.stats.entropy(p, axis=-1),
            1e-12,
        ),
        ("kl", "scipy.stats.entropy", lambda: information.kl(p, q), lambda: scipy.stats.entropy(p, q, axis=-1), 1e-12),
        (
            "√js",
            "scipy jensenshannon",
            lambda: np.sqrt(information.js(p, q)),
            lambda: scipy.spatial.distance.jensenshannon(p, q, axis=-1),
            1e-6,  # a difference of nearly equal numbers loses half the digits in the root
        ),
    ]


def tables(rng):
    """16 bins × 10 classes: information of 1 000 tables; 1 000 tables of shuffled labels, 2 000 pairs."""
    x, y = rng.integers(16, size=2000), rng.integers(10, size=2000)
    counts = np.histogram2d(x, y, bins=(16, 10), range=((0, 16), (0, 10)))[0].astype(int)
    many = rng.multinomial(2000, np.full(160, 1 / 160), size=1000).reshape(-1, 16, 10)
    score = sklearn.metrics.mutual_info_score

    def shuffled():
        return np.mean([score(x, rng.permutation(y)) for _ in range(1000)])

    return [
        (
            "mutual_information, 1 000 tables",
            "sklearn mutual_info_score, a loop",
            lambda: information.mutual_information(many / 2000),
            lambda: [score(None, None, contingency=table) for table in many],
            1e-12,
        ),
        (
            "independence_test, 1 000 shuffles",
            "sklearn mutual_info_score, a loop",
            lambda: information.independence_test(counts, 1000, rng=0).null.mean(),
            shuffled,
            # five standard errors of a difference: 2n I is χ² with 135 degrees of freedom
            5 * np.sqrt(2) * np.sqrt(2 * 135) / (2 * 2000) / np.sqrt(1000),
        ),
    ]


def calibration(rng):
    """3 000 forecasts in one bin: the law of the number of hits."""
    c = rng.random(3000)
    law = scipy.stats.poisson_binom

    def theirs():
        s = np.arange(len(c) + 1)
        return law(c).pmf(s) @ np.abs(s - c.sum()) / len(c)

    return [
        (
            "reliability, law of 3 000 hits",
            "scipy.stats.poisson_binom",
            lambda: information.reliability(c, c > 0.5, 1).null_mean,
            theirs,
            1e-10,
        )
    ]


def digits():
    """Largest relative errors for 100 pairs of laws on 10 outcomes, q = p(1 + x g), g Gaussian."""
    table = Table("x", "relative error of kl", "of scipy.stats.entropy", "of Σ p ln(p/q)")
    rng = np.random.default_rng(0)
    for exponent in (10, 17, 24):
        errors = []
        for p in rng.dirichlet(np.ones(10), size=100):
            q = p * (1 + 2.0**-exponent * rng.standard_normal(10))
            q /= q.sum()
            values = np.array([information.kl(p, q), scipy.stats.entropy(p, q), p @ np.log(p / q)])
            errors.append(np.abs(values / exact_kl(p, q) - 1))
        table.add_row(f"2^-{exponent}", *(f"{error:.0e}" for error in np.max(errors, axis=0)))
    return table


def exact_kl(p, q):
    """In decimal arithmetic."""
    with decimal.localcontext(prec=50):
        P, Q = ([decimal.Decimal(v) for v in law.tolist()] for law in (p, q))
        scale = sum(Q) / sum(P)
        return float(sum(a * (a / b * scale).ln() for a, b in zip(P, Q, strict=True)) / sum(P))


def main() -> None:
    rng = np.random.default_rng(0)
    table = Table("ours", "peer", "our time / the peer's")
    for name, peer, ours, theirs, tolerance in (*laws(rng), *tables(rng), *calibration(rng)):
        np.testing.assert_allclose(ours(), theirs(), atol=tolerance)
        table.add_row(name, peer, f"{in_turn(ours, theirs, 15)[2]:.3g}")
    console = Console()
    console.print("10 000 forecasts of 10 classes; tables of 16 × 10; one thread")
    console.print(table)
    console.print(digits())


if __name__ == "__main__":
    main()
