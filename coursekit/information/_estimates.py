"""Entropy and mutual information from counts: estimates, their bias, and what chance alone would show."""

from dataclasses import dataclass

import numpy as np
import scipy.stats
from jaxtyping import Float, Int
from scipy.special import entr

from coursekit._validation import as_array, as_integer
from coursekit.information._arguments import Pmf, Values, pmf, unit_of, whole_counts
from coursekit.information._measures import mutual_information_of

Seed = np.random.Generator | int | None


@dataclass(frozen=True)
class InformationEstimate:
    """The value at the observed frequencies, the same less its bias to order 1/n, and the standard error of either."""

    plug_in: Values
    miller_madow: Values
    std_error: Values
    """Of order n^-½, from the spread of the summed logarithms; 0, which is too little, where they are all equal."""


def entropy_estimate(counts: Int[np.ndarray, "*batch k"], base: float | None = None) -> InformationEstimate:
    """Entropy of the law behind n independent draws, from the number of times that each outcome was seen.

    The plug-in value H(counts/n) is too low on average, by (k - 1)/(2n) nats to leading order; Miller and Madow add
    that, with the number of outcomes seen for k. Variance: Var(log p)/n.

    Parameters
    ----------
    counts : (..., k) whole numbers
    base : float > 1, optional

    Raises ValueError for negative or fractional counts, or if there are none.
    Source: Miller (1955); Paninski, Neural Comput. 15 (2003).  Taught in: notebook 06_02.
    """
    counts = whole_counts(counts, n_axes=1)
    n = counts.sum(axis=-1)
    p, seen = counts / n[..., None], counts > 0
    H = entr(p).sum(axis=-1) + 0.0
    surprise = -np.log(p, out=np.zeros_like(p), where=seen)
    variance = (p * np.square(surprise - H[..., None])).sum(axis=-1)
    unit, bias = unit_of(base), (seen.sum(axis=-1) - 1) / (2 * n)
    return InformationEstimate(H / unit, (H + bias) / unit, np.sqrt(variance / n) / unit)


def expected_plug_in_entropy(p: Pmf, n: int, base: float | None = None) -> Values:
    """Mean of the plug-in entropy of n draws from p, exactly: Σ_k E[-(N/n) log(N/n)], N binomial (n, p_k).

    It grows with n towards entropy(p), below it unless p is certain. Memory: n + 1 numbers for each entry of p.

    Parameters
    ----------
    p : (..., k) array
    n : int ≥ 1
    base : float > 1, optional

    Raises ValueError as `entropy`, or if n is not a positive integer.
    Source: Paninski, Neural Comput. 15 (2003).  Taught in: notebook 06_02.
    """
    p, n = pmf("p", p), as_integer("n", n, low=1)
    j = np.arange(n + 1)
    return (scipy.stats.binom.pmf(j, n, p[..., None]) @ entr(j / n)).sum(axis=-1) / unit_of(base)


def mutual_information_estimate(
    counts: Int[np.ndarray, "*batch r c"], base: float | None = None
) -> InformationEstimate:
    """Mutual information behind a contingency table of n independent pairs.

    The plug-in value has the bias (cells - r - c + 1)/(2n) nats to leading order, where cells counts those of positive
    probability: it is too high, by (r - 1)(c - 1)/(2n), if all are possible.
    Miller and Madow's correction adds (rows seen + columns seen - cells seen - 1)/(2n) and may end below zero.

    Parameters and errors as in `entropy_estimate`, counts being (..., r, c).
    Source: Roulston, Physica D 125 (1999); Chertkov §6.2.2.  Taught in: notebook 06_02.
    """
    counts = whole_counts(counts, n_axes=2)
    n = counts.sum(axis=(-2, -1))
    p, seen = counts / n[..., None, None], counts > 0
    I = mutual_information_of(p)  # noqa: E741
    product = p.sum(axis=-1, keepdims=True) * p.sum(axis=-2, keepdims=True)
    log_ratio = np.log(np.divide(p, product, out=np.ones_like(p), where=seen))
    variance = (p * np.square(log_ratio - I[..., None, None])).sum(axis=(-2, -1))
    margins = seen.any(axis=-1).sum(axis=-1) + seen.any(axis=-2).sum(axis=-1)
    unit, bias = unit_of(base), (seen.sum(axis=(-2, -1)) - margins + 1) / (2 * n)
    return InformationEstimate(I / unit, (I - bias) / unit, np.sqrt(variance / n) / unit)


@dataclass(frozen=True)
class IndependenceTest:
    """Plug-in mutual information of a table, and of tables whose labels were shuffled."""

    mutual_information: float
    null: Float[np.ndarray, " n_permutations"]
    p_value: float
    """(1 + number of shuffled tables with at least as much information)/(1 + n_permutations)."""


def independence_test(
    counts: Int[np.ndarray, "r c"], n_permutations: int = 1000, base: float | None = None, *, rng: Seed = None
) -> IndependenceTest:
    """Permutation null of mutual information: what a table of these margins shows by chance if X and Y are independent.

    Shuffling y among n pairs (x, y) draws a table uniformly among the n! pairings with the same margins. Patefield's
    algorithm draws from that law without the n labels. For large n, 2n I (in nats) follows χ² with (r - 1)(c - 1)
    degrees of freedom. Memory: n_permutations tables.

    Parameters
    ----------
    counts : (r, c) whole numbers, e.g. ``scipy.stats.contingency.crosstab(x, y).count``
    n_permutations : int ≥ 1
    base : float > 1, optional
    rng : Generator, int or None

    Raises ValueError for negative or fractional counts, or if there are none.
    Source: Patefield, Applied Statistics 30 (1981); Chertkov §6.2.2.  Taught in: notebook 06_02.
    """
    table = whole_counts(as_array("counts", counts, ndim=2), n_axes=2).astype(int)
    n_permutations, unit = as_integer("n_permutations", n_permutations, low=1), unit_of(base)
    table = table[table.any(axis=1)][:, table.any(axis=0)]
    law = scipy.stats.random_table(table.sum(axis=1), table.sum(axis=0))
    method = "boyett" if 1 in table.shape else None  # scipy's Patefield leaves a single row or column unfilled
    tables = law.rvs(n_permutations, method=method, random_state=np.random.default_rng(rng))
    null = mutual_information_of(tables / table.sum())
    observed = float(mutual_information_of(table / table.sum()))
    n_larger = np.count_nonzero(null >= observed * (1 - 1e-12))  # sums in another order differ by rounding
    return IndependenceTest(observed / unit, null / unit, (1 + n_larger) / (1 + n_permutations))
