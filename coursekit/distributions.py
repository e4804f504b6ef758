"""Laws with exact answers: Gaussians and their mixtures, and densities carried along by a map of the line."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize.elementwise
from jaxtyping import Complex, Float
from scipy.special import log_ndtr, logsumexp, ndtr, ndtri, ndtri_exp

from coursekit._validation import as_array, as_integer

Seed = np.random.Generator | int | None
LOG_2PI = math.log(2 * math.pi)


# --- Gaussians -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, cov) in d dimensions, cov symmetric and positive definite.

    Raises ValueError if the shapes do not match, or cov is not symmetric or not positive definite.
    Source: Chertkov §5.3.  Taught in: notebook 05_02.
    """

    mean: Float[np.ndarray, " d"]
    cov: Float[np.ndarray, "d d"]

    def __post_init__(self):
        mean = as_array("mean", self.mean, ndim=1)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "cov", _covariance("cov", self.cov, len(mean)))

    @cached_property
    def _cholesky(self) -> np.ndarray:
        return np.linalg.cholesky(self.cov)

    def log_prob(self, x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n"] | float:
        """-½ (x - m)ᵀ Σ⁻¹ (x - m) - ½ ln det(2πΣ) of points (..., d)."""
        x = as_array("x", x, ndim=range(1, 9))
        d = len(self.mean)
        if x.shape[-1] != d:
            raise ValueError(f"x must have shape (..., {d}), got {x.shape}")
        z = scipy.linalg.solve_triangular(self._cholesky, (x - self.mean).reshape(-1, d).T, lower=True)
        log_det = np.log(np.diag(self._cholesky)).sum()
        return (-0.5 * (z * z).sum(axis=0) - log_det - 0.5 * d * LOG_2PI).reshape(x.shape[:-1])

    def sample(self, n: int, *, rng: Seed = None) -> Float[np.ndarray, "n d"]:
        """m + L z with Σ = L Lᵀ and z standard normal."""
        z = np.random.default_rng(rng).standard_normal((as_integer("n", n, low=1), len(self.mean)))
        return self.mean + z @ self._cholesky.T

    def affine(self, A: Float[np.ndarray, "k d"], b: Float[np.ndarray, " k"] | float = 0.0) -> "Gaussian":
        """The law N(A m + b, A Σ Aᵀ) of A x + b; rows of the identity for A give a marginal.

        Raises ValueError if the shapes do not match, or the rows of A are linearly dependent.
        Source: Chertkov §5.1.5 and §5.3.  Taught in: notebook 05_02.
        """
        A = as_array("A", A, ndim=2, shape=(None, len(self.mean)))
        shift = as_array("b", b, ndim=(0, 1))
        if shift.shape not in ((), (len(A),)):
            raise ValueError(f"b must have shape ({len(A)},), got {shift.shape}")
        root = A @ self._cholesky
        # singular values of A L say it better than those of A Σ Aᵀ, where 1e-9 is already rounding
        s = np.linalg.svd(root, compute_uv=False)
        if len(A) > len(self.mean) or s[-1] <= len(self.mean) * np.finfo(float).eps * s[0]:
            raise ValueError(f"A must have linearly independent rows, got shape {A.shape} and singular values {s}")
        return Gaussian(A @ self.mean + shift, root @ root.T)

    def condition(self, index: Sequence[int] | Any, value: Float[np.ndarray, " k"]) -> "Gaussian":
        """The law of the other coordinates, in their order, given x[index] = value.

        N(m₁ + Σ₁₂ Σ₂₂⁻¹ (value - m₂), Σ₁₁ - Σ₁₂ Σ₂₂⁻¹ Σ₂₁), where 2 stands for the index.

        Raises ValueError unless index names different coordinates, at least one and not all, with one value each.
        Source: Chertkov §5.3.3.
        """
        d = len(self.mean)
        given = np.array([as_integer("index", i, low=0, high=d - 1) for i in np.atleast_1d(index)], dtype=np.intp)
        if len(np.unique(given)) != len(given) or not 0 < len(given) < d:
            raise ValueError(f"index must name between 1 and {d - 1} different coordinates, got {given}")
        value = as_array("value", value, ndim=1, shape=(len(given),))
        rest = np.setdiff1d(np.arange(d), given)
        # Σ₂₂ = L Lᵀ: both products are formed from L⁻¹ Σ₂₁, so the result is symmetric
        L = np.linalg.cholesky(self.cov[np.ix_(given, given)])
        W = scipy.linalg.solve_triangular(L, self.cov[np.ix_(given, rest)], lower=True)
        z = scipy.linalg.solve_triangular(L, value - self.mean[given], lower=True)
        return Gaussian(self.mean[rest] + W.T @ z, self.cov[np.ix_(rest, rest)] - W.T @ W)


def _covariance(name: str, value: Any, d: int) -> np.ndarray:
    cov = as_array(name, value, ndim=2, shape=(d, d))
    if not np.allclose(cov, cov.T, rtol=0, atol=1e-10 * np.abs(cov).max()):
        raise ValueError(f"{name} must be symmetric, got entries that differ by {np.abs(cov - cov.T).max():.3g}")
    cov = (cov + cov.T) / 2
    # as a correlation matrix, so that coordinates may have very different units
    scale = np.sqrt(np.maximum(np.diag(cov), 0.0))
    smallest = np.linalg.eigvalsh(cov / np.outer(scale, scale))[0] if scale.all() else 0.0
    if smallest <= d * np.finfo(float).eps:
        raise ValueError(
            f"{name} must be positive definite, got a smallest eigenvalue of {np.linalg.eigvalsh(cov)[0]:.3g}"
        )
    return cov


def _weights(value: Any, k: int) -> np.ndarray:
    weights = as_array("weights", value, ndim=1, shape=(k,))
    if (weights < 0).any() or abs(weights.sum() - 1) > 1e-9:
        raise ValueError(f"weights must be non-negative with sum 1, got {weights} with sum {weights.sum():.10g}")
    return weights / weights.sum()


# --- mixtures --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Σₖ wₖ N(mₖ, Σₖ) in d dimensions.

    Raises ValueError if the shapes do not match, the weights are not a pmf or a covariance is not positive definite.
    Source: Chertkov §5.3.  Taught in: notebook 05_03.
    """

    weights: Float[np.ndarray, " k"]
    means: Float[np.ndarray, "k d"]
    covs: Float[np.ndarray, "k d d"]

    def __post_init__(self):
        means = as_array("means", self.means, ndim=2)
        k, d = means.shape
        covs = as_array("covs", self.covs, ndim=3, shape=(k, d, d))
        object.__setattr__(self, "weights", _weights(self.weights, k))
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "covs", np.stack([_covariance(f"covs[{i}]", cov, d) for i, cov in enumerate(covs)]))

    @cached_property
    def components(self) -> tuple[Gaussian, ...]:
        return tuple(Gaussian(mean, cov) for mean, cov in zip(self.means, self.covs, strict=True))

    def log_prob(self, x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n"] | float:
        """ln Σₖ wₖ N(x; mₖ, Σₖ) of points (..., d)."""
        return logsumexp(np.stack([g.log_prob(x) for g in self.components], axis=-1), b=self.weights, axis=-1)

    def sample(self, n: int, *, rng: Seed = None) -> Float[np.ndarray, "n d"]:
        """Independent draws, their components in random order."""
        rng = np.random.default_rng(rng)
        component = rng.choice(len(self.weights), as_integer("n", n, low=1), p=self.weights)
        x = rng.standard_normal((n, self.means.shape[1]))
        for i, g in enumerate(self.components):
            x[component == i] = g.mean + x[component == i] @ g._cholesky.T
        return x

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        return self.weights @ self.means

    @property
    def cov(self) -> Float[np.ndarray, "d d"]:
        """Σₖ wₖ (Σₖ + (mₖ - m)(mₖ - m)ᵀ): within the components and between them."""
        offset = self.means - self.mean
        return np.tensordot(self.weights, self.covs, 1) + (self.weights[:, None] * offset).T @ offset


@dataclass(frozen=True, eq=False)
class NormalMixture:
    """Σₖ wₖ N(mₖ, sₖ²) on the line: `scales` are standard deviations. Methods take points of any shape.

    Raises ValueError if the shapes do not match, the weights are not a pmf or a scale is not positive.
    Source: Chertkov §5.2; Marron and Wand, Ann. Statist. 20 (1992).  Taught in: notebook 05_02.
    """

    weights: Float[np.ndarray, " k"]
    means: Float[np.ndarray, " k"]
    scales: Float[np.ndarray, " k"]

    def __post_init__(self):
        means = as_array("means", self.means, ndim=1)
        scales = as_array("scales", self.scales, ndim=1, shape=means.shape)
        if not (scales > 0).all():
            raise ValueError(f"scales must be greater than 0, got {scales}")
        object.__setattr__(self, "weights", _weights(self.weights, len(means)))
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "scales", scales)

    def _standardized(self, x) -> np.ndarray:
        """(x - mₖ)/sₖ with k as a further, last axis."""
        return (_points("x", x)[..., None] - self.means) / self.scales

    def log_prob(self, x: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"] | float:
        """ln Σₖ wₖ φ((x - mₖ)/sₖ)/sₖ."""
        return logsumexp(-0.5 * self._standardized(x) ** 2 - 0.5 * LOG_2PI, b=self.weights / self.scales, axis=-1)

    def cdf(self, x: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"] | float:
        """P(X ≤ x); x may be infinite."""
        return ndtr(self._standardized(x)) @ self.weights

    def log_cdf(self, x: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"] | float:
        """ln P(X ≤ x), exact far into the lower tail."""
        return logsumexp(log_ndtr(self._standardized(x)), b=self.weights, axis=-1)

    def log_sf(self, x: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"] | float:
        """ln P(X > x), exact far into the upper tail."""
        return logsumexp(log_ndtr(-self._standardized(x)), b=self.weights, axis=-1)

    def ppf(self, u: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"] | float:
        """The quantile F⁻¹(u), between the smallest and the largest of the components', by Chandrupatla's method.

        Solved for ln F where u ≤ ½ and for ln(1 - F) above. Between separated modes F is flat, and F⁻¹ as
        ill-conditioned as 1/p there. Raises ValueError unless 0 ≤ u ≤ 1; ends give ∓∞.
        """
        u = _points("u", u)
        if not ((u >= 0) & (u <= 1)).all():
            raise ValueError(f"u must lie between 0 and 1, got {u.min():g} to {u.max():g}")
        q = self.means + self.scales * ndtri(u)[..., None]
        slack = 1e-6 * self.scales.max()  # components with equal quantiles would leave no bracket
        inside = (u > 0) & (u < 1)
        x = np.where(u > 0, np.inf, -np.inf)

        def excess(x, u):
            with np.errstate(divide="ignore"):
                return np.where(u <= 0.5, self.log_cdf(x) - np.log(u), np.log1p(-u) - self.log_sf(x))

        bracket = q.min(axis=-1)[inside] - slack, q.max(axis=-1)[inside] + slack
        if inside.any():
            x[inside] = scipy.optimize.elementwise.find_root(excess, bracket, args=(u[inside],)).x
        return x

    def sample(self, n: int, *, rng: Seed = None) -> Float[np.ndarray, " n"]:
        """Independent draws, their components in random order."""
        rng = np.random.default_rng(rng)
        component = rng.choice(len(self.weights), as_integer("n", n, low=1), p=self.weights)
        return self.means[component] + self.scales[component] * rng.standard_normal(n)

    @property
    def mean(self) -> float:
        return float(self.weights @ self.means)

    @property
    def variance(self) -> float:
        """Σₖ wₖ (sₖ² + (mₖ - m)²)."""
        return float(self.weights @ (self.scales**2 + (self.means - self.mean) ** 2))

    def cf(self, t: Float[np.ndarray, "*n"] | float) -> Complex[np.ndarray, "*n"] | complex:
        """Characteristic function E exp(itX) = Σₖ wₖ exp(i mₖ t - sₖ² t²/2)."""
        t = _points("t", t)[..., None]
        return np.exp(1j * self.means * t - 0.5 * (self.scales * t) ** 2) @ self.weights

    def overlap(self, s: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"] | float:
        """Q(s) = ∬ p(x) p(y) K_s(x - y) dx dy = Σ wᵢwⱼ N(mᵢ - mⱼ; 0, sᵢ² + sⱼ² + s²), for `empirical.kde_mise`.

        Q(0) = ∫p². Source: Marron and Wand (1992), theorem 2.1.
        """
        variance = self.scales[:, None] ** 2 + self.scales**2 + _points("s", s)[..., None, None] ** 2
        squares = (self.means[:, None] - self.means) ** 2
        return (np.exp(-0.5 * squares / variance) / np.sqrt(2 * np.pi * variance)) @ self.weights @ self.weights


def _points(name: str, x: Any) -> np.ndarray:
    """As a float array of any shape; infinite is allowed, NaN is not."""
    x = np.asarray(x, dtype=float)
    if np.isnan(x).any():
        raise ValueError(f"{name} must not contain NaN, got {np.count_nonzero(np.isnan(x))}")
    return x


# --- maps of the line ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Branch:
    """One monotone piece of a map y = g(x): x = inverse(y) for low < y < high, and ln |dx/dy| there."""

    inverse: Callable[[Any], Any]
    log_slope: Callable[[Any], Any]
    """ln |d inverse/dy|."""
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, got {self.low:g} and {self.high:g}")


def pushforward_log_prob(
    y: Float[np.ndarray, "*n"] | float, log_prob: Callable[[Any], Any], branches: Sequence[Branch]
) -> Float[np.ndarray, "*n"] | float:
    """Log-density of Y = g(X) for a map whose monotone pieces are given: p_Y(y) = Σ_b p_X(x_b) |dx_b/dy|.

    x_b = inverse_b(y); a branch counts where low < y < high; where none does the log-density is -∞.
    E.g. Y = X² is ``[Branch(np.sqrt, f, low=0), Branch(lambda y: -np.sqrt(y), f, low=0)]`` with
    ``f = lambda y: -np.log(2 * np.sqrt(y))``. Only `pushforward_cdf` at ∞ tells that none was
    forgotten.

    Parameters
    ----------
    y : array of any shape
    log_prob : callable
        ln p_X, of arrays.
    branches : sequence of Branch

    Raises ValueError if y contains NaN, there is no branch, or a callable gives another shape or NaN.
    Source: Chertkov eq. (5.1).  Taught in: notebook 05_02.
    """
    y = _points("y", y)
    flat = y.ravel()
    terms = np.full((len(_at_least_one(branches)), y.size), -np.inf)
    for term, branch in zip(terms, branches, strict=True):
        inside = (flat > branch.low) & (flat < branch.high)
        x = _evaluate("inverse", branch.inverse, flat[inside])
        term[inside] = _evaluate("log_prob", log_prob, x) + _evaluate("log_slope", branch.log_slope, flat[inside])
    return logsumexp(terms, axis=0).reshape(y.shape)


def pushforward_cdf(
    y: Float[np.ndarray, "*n"] | float, cdf: Callable[[Any], Any], branches: Sequence[Branch]
) -> Float[np.ndarray, "*n"] | float:
    """P(g(X) ≤ y) for a map whose monotone pieces are given: Σ_b |F_X(x_b(y)) - F_X(x_b(low))|.

    y is cut to [low, high] for each branch, whose inverse must be defined, infinite perhaps, at its ends. No derivative
    enters: probabilities of bins come out exactly also where the density is infinite.

    Parameters
    ----------
    y : array of any shape
        May be infinite: the value at ∞ is 1 if the branches cover the law of X.
    cdf : callable
        F_X, continuous, of arrays that may be infinite.
    branches : sequence of Branch
        log_slope is not used.

    Raises ValueError if y contains NaN, there is no branch, or a callable gives another shape or NaN.
    Source: Chertkov §5.1.5.  Taught in: notebook 05_02.
    """
    y = _points("y", y)
    total = np.zeros(y.shape)
    for branch in _at_least_one(branches):
        ends = np.append(np.clip(y, branch.low, branch.high).ravel(), branch.low)
        with np.errstate(divide="ignore"):  # artanh(±1) and ln 0 are the ends of their branches
            x = _evaluate("inverse", branch.inverse, ends)
        F = _evaluate("cdf", cdf, x)
        total += np.abs(F[:-1] - F[-1]).reshape(y.shape)
    return total


def _at_least_one(branches):
    if len(branches) == 0:
        raise ValueError("branches must not be empty")
    return branches


def _evaluate(name: str, function: Callable[[Any], Any], argument: np.ndarray) -> np.ndarray:
    value = np.asarray(function(argument), dtype=float)
    if value.shape != argument.shape:
        raise ValueError(f"{name} must keep the shape {argument.shape} of its argument, got {value.shape}")
    if np.isnan(value).any():
        raise ValueError(f"{name} must not give NaN, got {np.count_nonzero(np.isnan(value))}")
    return value


def normal_scores(
    log_cdf: Float[np.ndarray, "*n"] | float, log_sf: Float[np.ndarray, "*n"] | float
) -> Float[np.ndarray, "*n"] | float:
    """z = Φ⁻¹(F(y)), which is standard normal for Y ~ F: the monotone map of a law to the Gaussian.

    Formed from ln F(y) where F ≤ ½ and from ln(1 - F(y)) above, it is exact in both tails: Φ⁻¹(1 - e^{-y}/2) is
    infinite from y = 37 on, this is not. For the standard Laplace law g(700) = 37.31365.

    Parameters
    ----------
    log_cdf, log_sf : arrays of one shape, ≤ 0
        ln F(y) and ln(1 - F(y)), e.g. ``logcdf(y)`` and ``logsf(y)`` of a law of scipy.stats.

    Raises ValueError if the shapes differ, or the two probabilities do not add to 1.
    Source: Chertkov example 5.2.3.  Taught in: notebook 05_02.
    """
    log_cdf, log_sf = _points("log_cdf", log_cdf), _points("log_sf", log_sf)
    if log_cdf.shape != log_sf.shape:
        raise ValueError(f"log_sf must have the shape {log_cdf.shape} of log_cdf, got {log_sf.shape}")
    if (np.maximum(log_cdf, log_sf) > 0).any() or not np.allclose(
        np.exp(log_cdf) + np.exp(log_sf), 1, rtol=0, atol=1e-9
    ):
        raise ValueError("exp(log_cdf) + exp(log_sf) must be 1, with both logarithms at most 0")
    return np.where(log_cdf <= log_sf, 1, -1) * ndtri_exp(np.minimum(log_cdf, log_sf))
