"""Optimal transport: on the line by quantiles, between Gaussians in closed form, exactly by linear programming, and
with entropy by Sinkhorn's scaling.

Weights are probabilities: non-negative and of sum 1. Costs C (n, m) may have any sign.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse
from jaxtyping import Float, Int

from coursekit._validation import ConvergenceWarning, as_array, as_integer, as_number

EPS = np.finfo(float).eps
Seed = np.random.Generator | int | None
LARGEST_SCALING = 1e40
N_RATE = 20  # steps of Sinkhorn's iteration from which its rate is read


# --- the line -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coupling:
    """A coupling of two samples with few pairs: mass[k] goes from x[i[k]] to y[j[k]]."""

    i: Int[np.ndarray, " k"]
    j: Int[np.ndarray, " k"]
    mass: Float[np.ndarray, " k"]


def wasserstein_1d(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " m"],
    p: float = 1.0,
    x_weights: Float[np.ndarray, " n"] | None = None,
    y_weights: Float[np.ndarray, " m"] | None = None,
) -> float:
    """p-Wasserstein distance between two empirical laws on the line.

    W_p^p = ∫_0^1 |F⁻¹(u) - G⁻¹(u)|^p du: in one dimension the optimal plan sorts both samples, whatever the power, so
    the cost is O(n log n). Both quantile functions are steps, and the integral is a sum over at most n + m - 1 pieces.

    Parameters
    ----------
    x, y : (n,) and (m,) arrays, in any order
    p : float in [1, ∞]
        W_∞ is the longest way that any mass has to go.
    x_weights, y_weights : arrays, optional
        Probabilities of the points; equal by default. Below 4 ε = 9e-16 a mass is not told from rounding.

    Returns the distance, in the units of x. Raises ValueError for empty or non-finite samples, p < 1, and weights that
    are negative, do not sum to 1, or do not match the sample.
    Source: Chertkov §6.2.5; Miyamoto §10.1.  Taught in: notebook 06_03.
    """
    x, y, x_weights, y_weights = _weighted_samples(x, y, x_weights, y_weights)
    p = _order(p)
    # sorting values is several times faster than sorting with an index
    x, x_weights = (np.sort(x), None) if x_weights is None else _sorted_together(x, x_weights)
    y, y_weights = (np.sort(y), None) if y_weights is None else _sorted_together(y, y_weights)
    i, j, mass = _pieces(len(x), len(y), x_weights, y_weights)
    return float(_power_mean(np.abs(x[i] - y[j]), mass, p))


def monotone_coupling(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " m"],
    x_weights: Float[np.ndarray, " n"] | None = None,
    y_weights: Float[np.ndarray, " m"] | None = None,
) -> Coupling:
    """The increasing coupling of two samples on the line: x and y at equal quantile levels, (F⁻¹(U), G⁻¹(U)).

    It is optimal for every convex function of x - y, and for all of them at once. Pairs come in increasing order; at
    most n + m - 1 of them carry mass. With equally many points of equal weight it is the map from the k-th smallest to
    the k-th smallest; (1 - t) x[i] + t y[j] with masses `mass` interpolates between the laws.

    Parameters and errors as in `wasserstein_1d`.
    Source: Chertkov §6.2.5; Cao, example 3.2.  Taught in: notebook 06_03.
    """
    x, y, x_weights, y_weights = _weighted_samples(x, y, x_weights, y_weights)
    to_x, to_y = np.argsort(x, kind="stable"), np.argsort(y, kind="stable")
    x_weights = None if x_weights is None else x_weights[to_x]
    y_weights = None if y_weights is None else y_weights[to_y]
    i, j, mass = _pieces(len(x), len(y), x_weights, y_weights)
    return Coupling(to_x[i], to_y[j], mass)


def _pieces(n, m, x_weights, y_weights):
    """Pieces of (0, 1) on which both quantile functions are constant: indices of the sorted samples, and lengths."""
    if n == m and x_weights is None and y_weights is None:
        return slice(None), slice(None), np.full(n, 1 / n)
    levels = np.concatenate([_levels(n, x_weights), _levels(m, y_weights)])
    order = np.argsort(levels, kind="stable")  # merges two sorted runs, in linear time
    ends = levels[order]
    of_x = order < n
    i = np.cumsum(of_x) - of_x  # of the ends before this one, how many are of x
    j = np.arange(n + m) - i
    mass = np.diff(ends, prepend=0.0)
    # Two levels that differ by rounding are one: a piece of 1e-16 counts as 1e-8 in W_2, and in full in W_∞
    kept = mass > 4 * EPS
    return i[kept], j[kept], mass[kept]


def _levels(n, weights):
    """Cumulative probabilities, the last exactly 1."""
    if weights is None:
        return np.arange(1, n + 1) / n
    # as integers in units of 2⁻⁶²: sums of floats would depend on how a weight is split among equal points
    cumulative = np.cumsum(np.rint(weights * 2.0**62).astype(np.int64))
    return cumulative / cumulative[-1]


def _sorted_together(x, weights):
    order = np.argsort(x)
    return x[order], weights[order]


def _power_mean(distance, mass, p):
    """(Σ mass · distance^p)^(1/p) along the last axis; the largest is taken out, so that no power overflows."""
    if p == 1:
        return distance @ mass
    largest = distance.max(axis=-1)
    if p == np.inf:
        return largest
    scale = np.where(largest > 0, largest, 1.0)
    return scale * ((distance / scale[..., None]) ** p @ mass) ** (1 / p)


def _order(p):
    return math.inf if p == math.inf else as_number("p", p, low=1)


def _weighted_samples(x, y, x_weights, y_weights):
    x, y = as_array("x", x, ndim=1), as_array("y", y, ndim=1)
    x_weights = None if x_weights is None else _probabilities("x_weights", x_weights, len(x))
    y_weights = None if y_weights is None else _probabilities("y_weights", y_weights, len(y))
    return x, y, x_weights, y_weights


def _probabilities(name, weights, n):
    weights = as_array(name, weights, ndim=1, shape=(n,))
    if weights.min() < 0:
        raise ValueError(f"{name} must not be negative, got {weights.min():g}")
    if abs(weights.sum() - 1) > 1e-8:
        raise ValueError(f"{name} must sum to 1, got the sum {weights.sum():.10g}")
    return weights / weights.sum()


# --- slices, and Gaussians ----------------------------------------------------------------------------------


def sliced_wasserstein(
    X: Float[np.ndarray, "n d"],
    Y: Float[np.ndarray, "m d"],
    n_projections: int,
    *,
    p: float = 2.0,
    rng: Seed = None,
) -> float:
    """Sliced p-Wasserstein distance: W_p of the projections on random directions, averaged.

    SW_p^p = E_θ W_p^p(θᵀX, θᵀY) with θ uniform on the sphere, here the mean over `n_projections` draws of it, of
    O(n log n) each. SW_p ≤ W_p and SW_2² ≤ W_2²/d. Unlike W_p it is estimated at a rate that does not depend on d.

    Parameters
    ----------
    X, Y : (n, d) and (m, d) arrays
    n_projections : int ≥ 1
    p : float in [1, ∞]
    rng : Generator, int or None

    Takes a few times 32 MB, or what one projection needs. Raises ValueError if the samples are empty or not finite,
    their dimensions differ, or a number is out of range.
    Source: Bonneel et al., J. Math. Imaging Vis. 51 (2015).  Taught in: notebook 06_03b.
    """
    X = as_array("X", X, ndim=2)
    Y = as_array("Y", Y, ndim=2, shape=(None, X.shape[1]))
    n_projections, p = as_integer("n_projections", n_projections, low=1), _order(p)
    directions = np.random.default_rng(rng).standard_normal((n_projections, X.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    i, j, mass = _pieces(len(X), len(Y), None, None)
    distances = np.empty(n_projections)
    size = max(1, 2**22 // (len(X) + len(Y)))
    for start in range(0, n_projections, size):
        block = directions[start : start + size]
        x, y = np.sort(block @ X.T, axis=1), np.sort(block @ Y.T, axis=1)
        distances[start : start + size] = _power_mean(np.abs(x[:, i] - y[:, j]), mass, p)
    return float(_power_mean(distances, np.full(n_projections, 1 / n_projections), p))


def gaussian_w2(
    m0: Float[np.ndarray, " d"], S0: Float[np.ndarray, "d d"], m1: Float[np.ndarray, " d"], S1: Float[np.ndarray, "d d"]
) -> float:
    """2-Wasserstein distance between N(m0, S0) and N(m1, S1), singular covariances included.

    W_2² = ‖m0 - m1‖² + tr(S0 + S1 - 2 (S0^½ S1 S0^½)^½), where the trace (Bures) is computed as min_Q ‖L0 - L1 Q‖_F²
    over orthogonal Q, for any roots S = L Lᵀ: the same number, without its cancellation for laws that are close.
    Eigenvalues below d ε of the largest count as zero.

    Parameters
    ----------
    m0, m1 : (d,) means
    S0, S1 : (d, d) covariances, symmetric and positive semi-definite

    Returns the distance, not its square. Raises ValueError if the shapes differ, or a covariance is not symmetric or
    has a negative eigenvalue.
    Source: Chertkov §6.2.5; Dowson and Landau (1982).  Taught in: notebook 06_03b.
    """
    m0, (L0, _), m1, (L1, _) = _gaussians(m0, S0, m1, S1)
    U, _, Vt = np.linalg.svd(L1.T @ L0)  # the nearest orthogonal matrix is the polar factor (Procrustes)
    return float(math.hypot(np.linalg.norm(m0 - m1), np.linalg.norm(L0 - L1 @ (U @ Vt))))


def gaussian_map(
    m0: Float[np.ndarray, " d"], S0: Float[np.ndarray, "d d"], m1: Float[np.ndarray, " d"], S1: Float[np.ndarray, "d d"]
) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, " d"]]:
    """Optimal map x ↦ A x + b from N(m0, S0) to N(m1, S1) for the squared distance.

    A = S0^-½ (S0^½ S1 S0^½)^½ S0^-½ is the only symmetric, positive semi-definite matrix with A S0 A = S1: the map is
    the gradient of a convex function. b = m1 - A m0. S1 may be singular.

    Parameters and errors as in `gaussian_w2`; ValueError also for a singular S0, from which no map need exist.
    Source: Chertkov §5.2.4 and §6.2.5.  Taught in: notebook 06_03b.
    """
    m0, (L0, rank), m1, (L1, _) = _gaussians(m0, S0, m1, S1)
    if rank < len(m0):
        raise ValueError(f"S0 must be positive definite, got a covariance of rank {rank} of {len(m0)}")
    _, s, Vt = np.linalg.svd(L1.T @ L0)
    # L0ᵀ A L0 = (L0ᵀ S1 L0)^½ = V s Vᵀ
    root = scipy.linalg.solve(L0.T, Vt.T * np.sqrt(s))
    A = root @ root.T
    return A, m1 - A @ m0


def _gaussians(m0, S0, m1, S1):
    m0 = as_array("m0", m0, ndim=1)
    m1 = as_array("m1", m1, ndim=1, shape=m0.shape)
    return m0, _root("S0", S0, len(m0)), m1, _root("S1", S1, len(m0))


def _root(name, S, d):
    """L with L Lᵀ = S, and the rank of S."""
    S = as_array(name, S, ndim=2, shape=(d, d))
    if np.abs(S - S.T).max() > 1e-10 * np.abs(S).max():
        raise ValueError(f"{name} must be symmetric, got entries that differ by {np.abs(S - S.T).max():g}")
    eigenvalues, V = np.linalg.eigh((S + S.T) / 2)
    if eigenvalues[0] < -1e-10 * np.abs(eigenvalues).max():
        raise ValueError(f"{name} must be positive semi-definite, got the eigenvalue {eigenvalues[0]:g}")
    eigenvalues[eigenvalues < d * EPS * eigenvalues[-1]] = 0.0
    return V * np.sqrt(eigenvalues), np.count_nonzero(eigenvalues)


# --- plans between weighted points --------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A transport plan P (n, m), its cost ⟨C, P⟩, potentials f (n,) and g (m,), and what certifies them."""

    P: Float[np.ndarray, "n m"]
    cost: float
    f: Float[np.ndarray, " n"]
    g: Float[np.ndarray, " m"]
    n_iter: int
    residual: float
    """‖P1 - a‖₁ + ‖Pᵀ1 - b‖₁, mass that is not where it belongs."""
    gap: float
    """Objective of the plan, moved to the exact marginals, minus that of the potentials: the optimum lies between."""


def ot_exact(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " m"], C: Float[np.ndarray, "n m"]) -> Plan:
    """Optimal plan: min ⟨C, P⟩ over P ≥ 0 with P1 = a and Pᵀ1 = b.

    The dual max ⟨a, f⟩ + ⟨b, g⟩ over f_i + g_j ≤ C_ij has the same value (Kantorovich); f + g = C wherever P > 0.
    Equally many points of equal weight are matched one to one (assignment, O(n³)); otherwise it is a linear programme
    of n m unknowns, solved by HiGHS on those that may be positive, for up to a thousand points.

    Parameters
    ----------
    a, b : (n,) and (m,) arrays of probabilities
    C : (n, m) array of costs

    Returns a Plan; `gap` is zero to rounding, `n_iter` counts the pivots (0 for an assignment). Raises ValueError for
    weights that are negative or do not sum to 1, and costs that do not match; FloatingPointError if HiGHS gives up.
    Source: Chertkov §6.2.5; Peyré and Cuturi, Computational Optimal Transport (2019), §3.  Taught in: notebook 06_03.
    """
    a, b, C = _problem(a, b, C)
    n, m = C.shape
    scale = np.abs(C).max() or 1.0
    if n == m and max(np.abs(n * a - 1).max(), np.abs(n * b - 1).max()) < 1e-12:
        rows, columns = scipy.optimize.linear_sum_assignment(C)
        P, n_iter = np.zeros((n, n)), 0
        P[rows, columns] = 1 / n
        f = _assignment_potential(C, columns, scale)
    else:
        P, f, n_iter = _linear_programme(a, b, C / scale)
        f = scale * f
    g = (C - f[:, None]).min(axis=0)  # the largest that f admits, so that the bound is rigorous
    cost = float(np.vdot(C, P))
    return Plan(P, cost, f, g, n_iter, _residual(P, a, b), cost - float(a @ f + b @ g))


def _assignment_potential(C, columns, scale):
    """f with f_i - f_k ≤ C[i, columns[k]] - C[k, columns[k]]: shortest paths, by Bellman and Ford."""
    n = len(C)
    slack = C[:, columns] - C[np.arange(n), columns]
    f = np.zeros(n)
    for _ in range(n):  # no path is longer, and no cycle negative, as the assignment is optimal
        shorter = np.minimum(f, (slack + f).min(axis=1))
        done = (f - shorter).max() <= 8 * EPS * scale
        f = shorter
        if done:
            break
    return f


def _linear_programme(a, b, C):
    """The plan, f and the number of pivots, for costs of size 1.

    By far the most pairs carry no mass. The programme begins with those that are cheap by Sinkhorn's potentials, and
    some that can be filled, and goes on until its own potentials find no pair too cheap among all the others.
    """
    n, m = C.shape
    reg = 0.05 / max(n, m)
    f, g, _, _ = _on_support(a, b, C / reg, 1e-2, 1000)
    reduced = C - reg * (f[:, None] + g)
    used, number = np.zeros((n, m), dtype=bool), min(4 * (n + m), n * m)
    used.flat[np.argpartition(reduced, number - 1, axis=None)[:number]] = True
    used[_pieces(n, m, a, b)[:2]] = True  # the first to the first: a plan of these marginals
    mass, n_iter = max(n, m), 0  # the tolerances of HiGHS are absolute: masses of about 1
    while True:
        i, j = np.nonzero(used)
        ends = np.concatenate([i, n + j]), np.tile(np.arange(len(i)), 2)
        A = scipy.sparse.csr_array((np.ones(2 * len(i)), ends), shape=(n + m, len(i)))
        result = scipy.optimize.linprog(
            C[i, j],
            A_eq=A[:-1],  # the last equation follows from the others, and with rounded masses would contradict them
            b_eq=mass * np.concatenate([a, b[:-1]]),
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if result.x is None or result.status != 0:
            raise FloatingPointError(f"HiGHS found no optimal plan: {result.message}")
        f, g, n_iter = result.eqlin.marginals[:n], np.append(result.eqlin.marginals[n:], 0), n_iter + int(result.nit)
        too_cheap = (C - f[:, None] - g < -1e-10) & ~used
        if not too_cheap.any():
            break
        used |= too_cheap
    P = np.zeros((n, m))
    P[i, j] = np.maximum(result.x, 0) / mass
    return P, f, n_iter


def sinkhorn(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " m"],
    C: Float[np.ndarray, "n m"],
    reg: float,
    *,
    tol: float = 1e-9,
    max_iter: int = 10_000,
) -> Plan:
    """Transport with entropy: min ⟨C, P⟩ + reg KL(P ‖ a bᵀ) over P with the marginals a and b.

    The penalty is the mutual information of the plan, in nats. The minimiser is
    P_ij = a_i b_j exp((f_i + g_j - C_ij)/reg); Sinkhorn's iteration scales its rows and columns in turn. The cost
    exceeds that of the exact plan by at most reg min(H(a), H(b)). For any f and g, ⟨a, f⟩ + ⟨b, g⟩ - reg (ΣP - 1) is a
    lower bound of the minimum: see `gap`.

    The scalings u = exp(δf/reg), v = exp(δg/reg) run on the kernel of the current f and g, two products of a matrix
    with a vector an iteration, and are absorbed into f and g before they can overflow (Schmitzer 2019); small reg is
    reached through larger ones. Where the iteration is slow, Newton's method for the dual is tried, O(n³) for n ≤ m,
    and a step of it kept if it halves the residual.

    Parameters
    ----------
    a, b : (n,) and (m,) arrays of probabilities
    C : (n, m) array of costs
    reg : float > 0
        In the units of C.
    tol : float > 0
        Bound for the mass in the wrong place, Σ|P1 - a| or Σ|Pᵀ1 - b|; the other marginal is exact.
    max_iter : int ≥ 1
        Steps, of either kind; warns `ConvergenceWarning` with the residual if they do not suffice.

    Raises ValueError for weights that are negative or do not sum to 1, costs that do not match, reg ≤ 0.
    Source: Cuturi (2013); Peyré and Cuturi, Computational Optimal Transport (2019), §4.  Taught in: notebook 06_03b.
    """
    a, b, C = _problem(a, b, C)
    reg, tol = as_number("reg", reg, low=0, strict=True), as_number("tol", tol, low=0, strict=True)
    max_iter = as_integer("max_iter", max_iter, low=1)
    f, g, P, n_iter = _on_support(a, b, C / reg, tol, max_iter)
    f, g = reg * f, reg * g
    residual = _residual(P, a, b)
    if n_iter == max_iter and residual > tol:
        warnings.warn(
            f"sinkhorn: the marginals are off by {residual:.2g} after {max_iter} iterations (tol {tol:g})",
            ConvergenceWarning,
            stacklevel=2,
        )
    feasible = _with_marginals(P, a, b)
    information = _neg_entropy(feasible) - _neg_entropy(a) - _neg_entropy(b)
    gap = np.vdot(C, feasible) + reg * information - (a @ f + b @ g)  # ΣP = 1, as one marginal is exact
    return Plan(P, float(np.vdot(C, P)), f, g, n_iter, residual, float(gap))


def _neg_entropy(p):
    """Σ p ln p."""
    return float(np.vdot(p, np.log(np.maximum(p, 1e-300))))


def _on_support(a, b, C, tol, max_iter):
    """`_anneal` on the points that have a weight; potentials of the others follow from the fixed-point equations."""
    rows, columns = a > 1e-100, b > 1e-100  # below, the entries of the plan would underflow
    if rows.all() and columns.all():
        return _anneal(a, b, C, tol, max_iter)
    f, g, P = np.empty(len(a)), np.empty(len(b)), np.zeros(C.shape)
    support = np.ix_(rows, columns)
    f[rows], g[columns], P[support], n_iter = _anneal(a[rows], b[columns], C[support], tol, max_iter)
    f[~rows] = _soft_minimum(C[~rows][:, columns] - g[columns], b[columns])
    g[~columns] = _soft_minimum(C.T[~columns][:, rows] - f[rows], a[rows])
    return f, g, P, n_iter


def _soft_minimum(C, weights):
    """-log Σ w exp(-C) along the rows."""
    low = C.min(axis=1)
    terms = low[:, None] - C
    return low - np.log(np.exp(terms, out=terms) @ weights)


def _anneal(a, b, C, tol, max_iter):
    """`_scale` from the potentials of a larger reg, in turn from those of a larger: far ones take ~ 1/reg steps."""
    if len(a) > len(b):  # Newton's system is of the size of a
        g, f, P, n_iter = _anneal(b, a, C.T, tol, max_iter)
        return f, g, P.T, n_iter
    g, used, factor = np.zeros(len(b)), 0, 4.0 ** math.ceil(math.log(max(np.ptp(C) / 50, 1), 4))
    while factor > 1 and max_iter - used > 1:
        _, g, _, n_iter = _scale(a, b, C / factor, g / factor, 1e-4, (max_iter - used) // 2)
        g, used, factor = factor * g, used + n_iter, factor / 4
    f, g, P, n_iter = _scale(a, b, C, g, tol, max_iter - used)
    return f, g, P, used + n_iter


def _scale(a, b, C, g, tol, max_iter):
    """Sinkhorn's iteration for positive weights and reg = 1, from g: f, g, P and the number of steps."""
    # after two steps in the log domain no row and no column of the kernel underflows as a whole
    f = _soft_minimum(C - g, b)
    g = _soft_minimum(C.T - f, a)
    u, v, K = np.ones(len(a)), np.ones(len(b)), _kernel(f, g, a, b, C)
    errors: list[float] = []
    wait = next_try = N_RATE
    for n_iter in range(1, max_iter + 1):
        Kv = K @ v
        errors.append(np.abs(u * Kv - a).sum())
        if errors[-1] <= tol or n_iter == max_iter:
            break
        better = None
        if n_iter > next_try:
            if slow := _steps_to_go(errors, tol) > max(N_RATE, len(a) / 4):  # what Newton's step takes
                better = _newton(u, v, K, a, b, 0.5 * errors[-1])
                wait = wait if better else 2 * wait
            next_try = n_iter + (0 if better else wait if slow else N_RATE)
        u, v = better or (a / Kv, b / (a / Kv @ K))
        if max(u.max(), v.max()) > LARGEST_SCALING or min(u.min(), v.min()) < 1 / LARGEST_SCALING:
            f, g = f + np.log(u), g + np.log(v)
            u, v, K = np.ones(len(a)), np.ones(len(b)), _kernel(f, g, a, b, C)
    return f + np.log(u), g + np.log(v), u[:, None] * K * v, n_iter


def _newton(u, v, K, a, b, enough):
    """Scalings after Newton's step for the dual in f, g eliminated, or None if the error is not below `enough`.

    (diag(P1) - P diag(b)⁻¹ Pᵀ) δf = a - P1: a graph Laplacian, whose diagonal is the sum of the rest of its row.
    """
    P = u[:, None] * K * v
    L = -(P / b) @ P.T
    np.fill_diagonal(L, 0)
    np.fill_diagonal(L, 1e-14 * a - L.sum(axis=1))  # constants, its null space, are left alone
    try:
        factor = scipy.linalg.cho_factor(L, lower=True, overwrite_a=True, check_finite=False)
    except scipy.linalg.LinAlgError:
        return None
    step = scipy.linalg.cho_solve(factor, a - P.sum(axis=1), check_finite=False)
    step -= a @ step
    if not np.abs(step).max() < math.log(LARGEST_SCALING):
        return None
    u = u * np.exp(step)
    v = b / (u @ K)
    return (u, v) if np.abs(u * (K @ v) - a).sum() < enough else None


def _steps_to_go(errors, tol):
    """Further steps at the last rate of decrease."""
    rate = math.log(errors[-N_RATE] / errors[-1]) / (N_RATE - 1)
    return math.log(errors[-1] / tol) / rate if rate > 0 else math.inf


def _kernel(f, g, a, b, C):
    K = f[:, None] + g
    K -= C
    np.exp(K, out=K)
    K *= a[:, None]
    K *= b
    K[K < 1e-200] = 0.0  # denormal numbers would make each product many times slower
    return K


def _problem(a, b, C):
    C = as_array("C", C, ndim=2)
    return _probabilities("a", a, len(C)), _probabilities("b", b, C.shape[1]), C


def _residual(P, a, b):
    return float(np.abs(P.sum(axis=1) - a).sum() + np.abs(P.sum(axis=0) - b).sum())


def _with_marginals(P, a, b):
    """A plan of exactly these marginals, off P by at most twice its residual (Altschuler, Weed and Rigollet 2017)."""
    P = P * (a / np.maximum(a, P.sum(axis=1), where=a > 0, out=np.ones_like(a)))[:, None]
    P *= b / np.maximum(b, P.sum(axis=0), where=b > 0, out=np.ones_like(b))
    rows, columns = np.maximum(a - P.sum(axis=1), 0), np.maximum(b - P.sum(axis=0), 0)
    return P + np.outer(rows, columns / (rows.sum() or 1.0))
