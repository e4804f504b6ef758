"""Sampling by weights: importance sampling with its diagnostics, adaptive proposals (the cross-entropy method) and
annealed importance sampling.

Weights stay logarithms until they are averaged; a log-weight of -inf is a weight of zero.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from coursekit._validation import as_array, as_integer, as_number
from coursekit.distributions import Gaussian

Seed = np.random.Generator | int | None
Samples = Float[np.ndarray, " n"] | Float[np.ndarray, "n d"]


def inverse_transform(ppf: Callable[[Any], Any], size: int | tuple[int, ...], *, rng: Seed = None) -> np.ndarray:
    """Draw from the law with quantile function `ppf`, as F⁻¹(U) with U uniform on the open interval (0, 1).

    Raises ValueError if `ppf` returns another shape or NaN.
    Source: Chertkov §7.1.1.  Taught in: notebook 07_01.
    """
    u = np.maximum(np.random.default_rng(rng).random(size), 2.0**-54)  # random() may be 0, but never 1
    x = np.asarray(ppf(u))
    if x.shape != u.shape or np.isnan(x).any():
        raise ValueError(f"ppf must map {u.shape} to {u.shape} without NaN, got {x.shape}")
    return x


# --- importance sampling ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean estimated by weighted samples."""

    mean: float
    std_error: float
    """From the same samples: it says nothing of mass that no sample hit."""
    ess: float
    """Effective sample size of the weights, (Σw)²/Σw²; it does not depend on the function that is averaged."""


def importance(
    f: Callable[[Any], Any], log_p: Callable[[Any], Any], log_q: Callable[[Any], Any], x: Samples
) -> Estimate:
    """Unbiased estimate of E_p f from x ~ q: the mean of w f with w = p(x)/q(x), both densities normalised.

    Its variance is (∫ f²p²/q - (E_p f)²)/n, finite or not; q must be positive wherever f p is.

    Parameters
    ----------
    f, log_p, log_q : callables, x to (n,)
    x : (n,) or (n, d) samples of q

    Raises ValueError for fewer than two samples, values of another shape or NaN, a log_q that is not finite at its own
    samples, or weights that are all zero.
    Source: Chertkov §7.2.1.  Taught in: notebook 07_02.
    """
    value, log_w = _weighted(f, log_p, log_q, x)
    terms = np.exp(log_w) * value
    return Estimate(float(terms.mean()), float(terms.std(ddof=1) / math.sqrt(len(terms))), effective_sample_size(log_w))


def self_normalized_importance(
    f: Callable[[Any], Any], log_p: Callable[[Any], Any], log_q: Callable[[Any], Any], x: Samples
) -> Estimate:
    """Estimate Σ w f / Σ w of E_p f from x ~ q, where p and q may lack their constants.

    The bias is O(1/n); the standard error is that of the delta method, √(Σ w²(f - mean)²)/Σw.

    Parameters and errors as in `importance`.  Source: Chertkov §7.2.2.  Taught in: notebook 07_02.
    """
    value, log_w = _weighted(f, log_p, log_q, x)
    w = _relative_weights(log_w)
    total = w.sum()
    mean = w @ value / total
    value -= mean
    value *= w
    return Estimate(float(mean), float(np.linalg.norm(value) / total), float(total**2 / (w @ w)))


def _weighted(f, log_p, log_q, x):
    x = as_array("x", x, ndim=(1, 2))
    if len(x) < 2:
        raise ValueError("x must hold at least two samples")
    value, log_target, log_proposal = (
        _values(name, g, x) for name, g in (("f", f), ("log_p", log_p), ("log_q", log_q))
    )
    if not np.isfinite(log_proposal).all():
        raise ValueError("log_q must be finite at samples of q")
    log_w = log_target - log_proposal
    _check_weights("log_p - log_q", log_w)
    return value, log_w


def _relative_weights(log_w):
    """Weights over the largest of them, so that none overflows."""
    w = log_w - log_w.max()
    return np.exp(w, out=w)


def _values(name, f, x):
    value = np.array(f(x), dtype=float)  # a copy: f may use one buffer for all its results
    if value.shape != x.shape[:1] or np.isnan(value).any():
        raise ValueError(f"{name} must map {x.shape} to {x.shape[:1]} without NaN, got {value.shape}")
    return value


def _check_weights(name, log_w):
    top = log_w.max()  # NaN if one is
    if not top < np.inf:
        raise ValueError(f"{name} must not be NaN or +inf")
    if top == -np.inf:
        raise ValueError(f"{name} must have a finite value, got weights that are all zero")


def effective_sample_size(log_w: Float[np.ndarray, " n"]) -> float:
    """(Σw)²/Σw² of weights given by their logarithms, between 1 and n.

    For weights p/q it estimates n/(1 + χ²(p‖q)); with an infinite variance, or a part of p that no sample hit, it
    looks better than that.

    Raises ValueError for NaN or +inf, or weights that are all zero.
    Source: Kong (1992); Chertkov §7.2.2.  Taught in: notebook 07_02.
    """
    w = _relative_weights(_log_weights(log_w))
    return float(w.sum() ** 2 / (w @ w))


def _log_weights(log_w):
    log_w = np.asarray(log_w, dtype=float)
    if log_w.ndim != 1 or log_w.size == 0:
        raise ValueError(f"log_w must have one axis and not be empty, got shape {log_w.shape}")
    _check_weights("log_w", log_w)
    return log_w


def pareto_k(log_w: Float[np.ndarray, " n"]) -> float:
    """Shape k of a generalised Pareto law fitted to the largest weights: they have moments of order below 1/k.

    k > ½ means an infinite variance; above 0.7 estimates cannot be trusted at any practical n. The largest
    min(n/5, 3√n) weights are used, fitted by Zhang and Stephens' estimator, shrunk a little towards ½.

    Raises ValueError as `effective_sample_size`, and for fewer than 25 samples or equal weights in the tail.
    Source: Vehtari et al., Pareto smoothed importance sampling, JMLR 25 (2024).  Taught in: notebook 07_02.
    """
    log_w = np.sort(_log_weights(log_w))
    n = len(log_w)
    if n < 25:
        raise ValueError(f"log_w must hold at least 25 weights, got {n}")
    size = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
    excess = np.exp(log_w[-size:] - log_w[-1]) - np.exp(log_w[-size - 1] - log_w[-1])
    first_quarter = (size + 2) // 4 - 1
    if not log_w[first_quarter - size] > log_w[-size - 1]:
        raise ValueError("log_w must vary among the largest weights")
    quarter = max(excess[first_quarter], np.finfo(float).tiny)  # weights may differ by more than e^700
    # Zhang and Stephens: the profile likelihood of θ = -k/σ, averaged over a grid that the sample suggests
    m = 30 + math.isqrt(size)
    theta = 1 / excess[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quarter)
    shape = np.log1p(-theta[:, None] * excess).mean(axis=1)
    profile = size * (np.log(-theta / shape) - shape - 1)
    mean = np.exp(profile - logsumexp(profile)) @ theta
    k = np.log1p(-mean * excess).mean()
    return float((size * k + 5) / (size + 10))


# --- adaptive proposals -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Adaptation:
    """The Gaussian proposals of an adaptive importance sampler, the start included."""

    mean: Float[np.ndarray, "t d"]
    cov: Float[np.ndarray, "t d d"]
    ess: Float[np.ndarray, " t"]
    """Of the weights p 1{score ≥ level}/q of each proposal's own sample."""
    level: Float[np.ndarray, " t"]
    """Level of each sample; -inf without a score."""

    @property
    def proposal(self) -> Gaussian:
        """The last one."""
        return Gaussian(self.mean[-1], self.cov[-1])


def cross_entropy_method(
    log_p: Callable[[Any], Any],
    proposal: Gaussian,
    n: int,
    n_iter: int,
    *,
    score: Callable[[Any], Any] | None = None,
    level: float = np.inf,
    elite: float = 0.1,
    smoothing: float = 1.0,
    fit_cov: bool = True,
    rng: Seed = None,
) -> Adaptation:
    """Fit a Gaussian proposal to p, or to p given {score ≥ level}, by repeated weighted maximum likelihood.

    Each step draws x ~ q_t and takes the moments of the sample with weights w = p/q_t, which is the projection
    argmin KL(p ‖ q) over Gaussians. For a rare event only samples at or above the level γ_t count, γ_t being the
    empirical (1 - elite)-quantile of the score but never above `level`. The weights are needed there too: without
    them the proposal runs away from the event.

    Parameters
    ----------
    log_p : callable, (n, d) to (n,), up to a constant
    proposal : Gaussian
        Where to start; its tails should cover p.
    n, n_iter : ints, samples of a step (at least two) and steps (at least one)
    score : callable, (n, d) to (n,), optional
    level : float
        Of the score: the event is {score ≥ level}.
    elite : float in (0, 1)
    smoothing : float in (0, 1]
        New moments are mixed with the old ones in this proportion.
    fit_cov : bool
        Otherwise the start's covariance is kept. A fitted one may be too narrow for the weights to have a variance.
    rng : numpy Generator, int or None

    Raises ValueError if a size is out of range, a callable returns another shape or NaN, all weights vanish, or so few
    samples count that their covariance is singular.
    Source: Rubinstein and Kroese, The Cross-Entropy Method (2004); Chertkov §7.2.3.  Taught in: notebook 07_02b.
    """
    rng = np.random.default_rng(rng)
    n, n_iter = as_integer("n", n, low=2), as_integer("n_iter", n_iter, low=1)
    for name, share, top in (("elite", elite, 1 - 1e-12), ("smoothing", smoothing, 1.0)):
        if not 0 < as_number(name, share) <= top:
            raise ValueError(f"{name} must be above 0 and {'at most' if top == 1 else 'below'} 1, got {share}")
    means, covs, sizes, levels = [proposal.mean], [proposal.cov], [], []
    for _ in range(n_iter + 1):
        x = proposal.sample(n, rng=rng)
        log_w = _values("log_p", log_p, x) - proposal.log_prob(x)
        if score is None:
            levels.append(-np.inf)
        else:
            height = _values("score", score, x)
            levels.append(min(level, np.quantile(height, 1 - elite)))
            log_w = np.where(height >= levels[-1], log_w, -np.inf)
        sizes.append(effective_sample_size(log_w))
        if len(means) <= n_iter:
            proposal = _fit(proposal, x, log_w, smoothing, fit_cov)
            means.append(proposal.mean)
            covs.append(proposal.cov)
    return Adaptation(np.array(means), np.array(covs), np.array(sizes), np.array(levels))


def _fit(old, x, log_w, smoothing, fit_cov):
    w = _relative_weights(log_w)
    w /= w.sum()
    mean = w @ x
    if not fit_cov:
        return Gaussian(smoothing * mean + (1 - smoothing) * old.mean, old.cov)
    cov = (w * (x - mean).T) @ (x - mean)
    mixed = smoothing * cov + (1 - smoothing) * old.cov
    return Gaussian(smoothing * mean + (1 - smoothing) * old.mean, 0.5 * (mixed + mixed.T))


# --- annealing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AnnealedSample:
    """Points and log-weights of annealed importance sampling: together they represent the last law of the schedule."""

    x: Float[np.ndarray, "n d"]
    log_w: Float[np.ndarray, " n"]
    """Minus the work done on each point."""

    @property
    def log_ratio(self) -> float:
        """Estimate of log Z_last/Z_first, the logarithm of the mean weight; its exponential is unbiased."""
        return float(logsumexp(self.log_w) - math.log(len(self.log_w)))

    @property
    def log_ratio_std_error(self) -> float:
        """Standard error of `log_ratio` by the delta method."""
        w = _relative_weights(self.log_w)
        return float(w.std(ddof=1) / w.mean() / math.sqrt(len(w)))


def annealed_importance_sampling(
    log_p: Callable[[float, Any], Any],
    x0: Float[np.ndarray, "n d"],
    schedule: Float[np.ndarray, " t"],
    move: Callable[[float, Any, np.random.Generator], Any],
    *,
    rng: Seed = None,
) -> AnnealedSample:
    """Carry points through a sequence of unnormalised laws and weigh them by the work that this costs.

    From each s_i of the schedule to the next: first add log p(s_{i+1}, x) - log p(s_i, x) to the log-weight, then move
    x by a kernel that keeps p(s_{i+1}, ·). In this order the mean weight is an unbiased estimate of Z_last/Z_first for
    every number of steps.

    Parameters
    ----------
    log_p : callable, ``log_p(s, x)`` maps (n, d) to (n,)
    x0 : (n, d) independent samples of the first law
    schedule : (t,) values of the parameter, at least two
    move : callable, ``move(s, x, rng)`` returns new points, e.g. a few steps of `mcmc.metropolis`

    Raises ValueError if a callable returns another shape, NaN or +inf, or all weights vanish.
    Source: Neal, Statistics and Computing 11 (2001); Cao §4.2.  Taught in: notebook 07_06c.
    """
    rng = np.random.default_rng(rng)
    x, schedule = as_array("x0", x0, ndim=2).copy(), as_array("schedule", schedule, ndim=1)
    if len(schedule) < 2:
        raise ValueError(f"schedule must hold at least two values, got {len(schedule)}")
    log_w = np.zeros(len(x))
    for before, after in itertools.pairwise(schedule):
        new, old = (_values("log_p", lambda x, s=s: log_p(s, x), x) for s in (after, before))
        with np.errstate(invalid="ignore"):  # a weight of zero stays zero
            log_w = np.where(log_w == -np.inf, -np.inf, log_w + new - old)
        _check_weights("log_p(s, x)", log_w)
        x = as_array("move(s, x, rng)", move(after, x, rng), ndim=2, shape=x.shape)
    return AnnealedSample(x, log_w)
