"""Markov chain Monte Carlo: Metropolis, MALA and Hamiltonian Monte Carlo over many chains at once, exact transition
matrices of finite chains, and the numbers that tell whether chains have mixed.

A log-density maps points (n_chains, d) to (n_chains,) and needs no normalisation; -inf marks points that cannot be.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from jaxtyping import Float

from coursekit._validation import as_array, as_integer, as_number

EPS = np.finfo(float).eps
Seed = np.random.Generator | int | None
LogDensity = Callable[[Any], Any]
Draws = Float[np.ndarray, "n_chains n_draws d"]


# --- samplers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Chains:
    """What a sampler returns."""

    draws: Draws
    accept_rate: Float[np.ndarray, " n_chains"]
    """Share of accepted proposals of each chain, warm-up not counted."""


def metropolis(
    log_p: LogDensity,
    x0: Float[np.ndarray, "n_chains d"],
    n_draws: int,
    step: float | Float[np.ndarray, " d"] | Float[np.ndarray, "d d"],
    *,
    n_warmup: int = 0,
    record_every: int = 1,
    rng: Seed = None,
) -> Chains:
    """Random-walk Metropolis: propose y = x + step ξ, ξ normal, and accept with probability min(1, p(y)/p(x)).

    Parameters
    ----------
    log_p : callable, (n_chains, d) to (n_chains,)
    x0 : (n_chains, d) starts of positive density
    n_draws : int ≥ 1
        Recorded states of each chain; a rejected proposal repeats the state.
    step : positive float, (d,), or (d, d)
        Standard deviations of the proposal, or a factor L of its covariance LLᵀ. For a Gaussian of covariance CCᵀ
        L = 2.4 C/√d is best.
    n_warmup : int ≥ 0
        Moves made before the first one that counts.
    record_every : int ≥ 1
        Moves from one recorded state to the next; memory is n_chains n_draws d numbers whatever it is.
    rng : numpy Generator, int or None

    Raises ValueError for a start of zero density, a step that is not positive, or a log-density of another shape;
    FloatingPointError, with the move, if the log-density is NaN or +inf.
    Source: Metropolis et al. (1953); Chertkov §7.5.  Taught in: notebook 07_06.
    """
    rng = np.random.default_rng(rng)
    x = as_array("x0", x0, ndim=2).copy()
    d = x.shape[1]
    scale = as_array("step", step, ndim=2, shape=(d, d)).T if np.ndim(step) == 2 else _step(step, d)
    noise = np.empty_like(x)

    def propose(state, move):
        rng.standard_normal(out=noise)
        proposal = state[0] + (noise @ scale if scale.ndim == 2 else scale * noise)
        log_density = _evaluate(log_p, proposal, move)
        return (proposal, log_density), log_density - state[1]

    return _run((x, _start(log_p, x)), propose, n_draws, n_warmup, record_every, rng)


def hmc(
    log_p: LogDensity,
    grad_log_p: Callable[[Any], Any],
    x0: Float[np.ndarray, "n_chains d"],
    n_draws: int,
    step: float | Float[np.ndarray, " d"],
    n_leapfrog: int,
    *,
    n_warmup: int = 0,
    record_every: int = 1,
    rng: Seed = None,
) -> Chains:
    """Hamiltonian Monte Carlo: a fresh velocity v ~ N(0, I), n_leapfrog leapfrog steps of H = |v|²/2 - log p(x), and
    acceptance with probability min(1, e^{-ΔH}).

    The leapfrog method keeps volumes and is reversible, so this is all the correction that it needs. A path that
    leaves the finite numbers is rejected.

    Parameters
    ----------
    grad_log_p : callable, (n_chains, d) to (n_chains, d)
    step : positive float, or (d,)
        Time step, in each coordinate; stable below twice the smallest standard deviation of a Gaussian.
    n_leapfrog : int ≥ 1
        Gradients for each move.

    The other parameters and the errors are those of `metropolis`.
    Source: Duane et al. (1987); Neal, Handbook of MCMC (2011), ch. 5.  Taught in: notebook 07_06.
    """
    rng = np.random.default_rng(rng)
    x = as_array("x0", x0, ndim=2).copy()
    step, n_leapfrog = _step(step, x.shape[1]), as_integer("n_leapfrog", n_leapfrog, low=1)
    half_step = 0.5 * step
    kicks = [step] * (n_leapfrog - 1) + [half_step]  # the second half kick of a step and the first of the next are one
    ones = np.ones(x.shape[1])  # a product with ones sums short rows faster than sum(axis=1)

    def gradient(x):
        value = np.asarray(grad_log_p(x), dtype=float)
        if value.shape != x.shape:
            raise ValueError(f"grad_log_p must map {x.shape} to {x.shape}, got {value.shape}")
        return value

    def propose(state, move):
        x, log_density, slope = state[0].copy(), state[1], state[2]
        v = rng.standard_normal(x.shape)
        energy = 0.5 * ((v * v) @ ones) - log_density
        with np.errstate(over="ignore", invalid="ignore"):  # paths that blow up are rejected below
            v += half_step * slope
            for kick in kicks:
                x += step * v
                slope = gradient(x)
                v += kick * slope
            kinetic = 0.5 * ((v * v) @ ones)
        if not (np.isfinite(kinetic).all() and np.isfinite(x).all()):
            lost = ~(np.isfinite(kinetic) & np.isfinite(x).all(axis=1))
            x[lost], kinetic[lost] = state[0][lost], np.inf
        log_density = _evaluate(log_p, x, move)
        return (x, log_density, slope), energy - kinetic + log_density

    return _run((x, _start(log_p, x), gradient(x).copy()), propose, n_draws, n_warmup, record_every, rng)


def mala(
    log_p: LogDensity,
    grad_log_p: Callable[[Any], Any],
    x0: Float[np.ndarray, "n_chains d"],
    n_draws: int,
    step: float,
    *,
    n_warmup: int = 0,
    record_every: int = 1,
    rng: Seed = None,
) -> Chains:
    """Metropolis-adjusted Langevin: the Euler step x + step ∇log p + √(2 step) ξ, accepted so that p is kept exactly.

    It is `hmc` with one leapfrog step of length √(2 step); `step` is the time step of the Langevin equation.
    Parameters and errors as in `hmc`.  Source: Roberts and Tweedie (1996); Cao §4.2.  Taught in: notebook 07_06.
    """
    length = math.sqrt(2 * as_number("step", step, low=0, strict=True))
    return hmc(log_p, grad_log_p, x0, n_draws, length, 1, n_warmup=n_warmup, record_every=record_every, rng=rng)


def _run(state, propose, n_draws, n_warmup, record_every, rng):
    n_draws, record_every = as_integer("n_draws", n_draws, low=1), as_integer("record_every", record_every, low=1)
    n_warmup = as_integer("n_warmup", n_warmup, low=0)
    n_chains, d = state[0].shape
    draws, n_accepted = np.empty((n_chains, n_draws, d)), np.zeros(n_chains)
    for move in range(-n_warmup, n_draws * record_every):
        proposal, log_ratio = propose(state, move + n_warmup)
        accept = -rng.standard_exponential(n_chains) < log_ratio
        accept_row = np.repeat(accept[:, None], d, axis=1)  # a mask of full shape is faster than one that is broadcast
        for old, new in zip(state, proposal, strict=True):
            np.copyto(old, new, where=accept if old.ndim == 1 else accept_row)
        if move >= 0:
            n_accepted += accept
            if (move + 1) % record_every == 0:
                draws[:, move // record_every] = state[0]
    return Chains(draws, n_accepted / (n_draws * record_every))


def _start(log_p, x):
    log_density = _evaluate(log_p, x, 0).copy()
    if (impossible := np.count_nonzero(log_density == -np.inf)) > 0:
        raise ValueError(f"x0 must have positive density, got {impossible} start(s) with log_p = -inf")
    return log_density


def _evaluate(log_p, x, move):
    value = np.asarray(log_p(x), dtype=float)
    if value.shape != x.shape[:1]:
        raise ValueError(f"log_p must map {x.shape} to {x.shape[:1]}, got {value.shape}")
    if not value.max() < np.inf:  # false for NaN too
        raise FloatingPointError(f"log_p must be finite or -inf, got NaN or +inf at move {move}")
    return value


def _step(step, d):
    step = as_array("step", step, ndim=(0, 1))
    if step.ndim == 1 and len(step) != d:
        raise ValueError(f"step must be a number or have shape ({d},), got {step.shape}")
    if not (step > 0).all():
        raise ValueError(f"step must be positive, got {step.min():g}")
    return step


# --- exact chains -------------------------------------------------------------------------------------------


def metropolis_matrix(log_p: Float[np.ndarray, " n"], proposal: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Transition matrix of the Metropolis–Hastings chain on n states: K_ij = Q_ij min(1, p_j Q_ji / (p_i Q_ij)), i ≠ j.

    Rejected moves stay: K_ii takes what is left of row i, so that rows sum to 1 and p_i K_ij = p_j K_ji.

    Raises ValueError if `proposal` has negative entries, rows that do not sum to 1, or log_p another length.
    Source: Hastings (1970); Chertkov §7.5, algorithm 2.  Taught in: notebook 07_06.
    """
    log_p = as_array("log_p", log_p, ndim=1)
    Q = as_array("proposal", proposal, ndim=2, shape=(len(log_p), len(log_p)))
    if Q.min() < 0 or np.abs(Q.sum(axis=1) - 1).max() > 1e-10:
        raise ValueError("proposal must have non-negative rows of sum 1")
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # 0/0 where no move is proposed
        ratio = np.exp(log_p - log_p[:, None]) * Q.T / Q
    K = Q * np.minimum(1, np.where((Q > 0) & (Q.T > 0), ratio, 0))
    np.fill_diagonal(K, 0)
    np.fill_diagonal(K, 1 - K.sum(axis=1))
    return K


def exact_iat(K: Float[np.ndarray, "n n"], p: Float[np.ndarray, " n"], f: Float[np.ndarray, " n"]) -> float:
    """Integrated autocorrelation time 1 + 2 Σ_k ρ_k of f along the stationary chain with transition matrix K.

    τ = 2 ⟨f, (I - K + 1pᵀ)⁻¹ f⟩_p / Var f - 1 for centred f, the fundamental matrix of Kemeny and Snell. It may be
    below 1.

    Raises ValueError if p is not the stationary law of K to 1e-8, or f is constant.
    Source: Chertkov §7.5.  Taught in: notebook 07_06.
    """
    p = as_array("p", p, ndim=1)
    K, f = as_array("K", K, ndim=2, shape=(len(p), len(p))), as_array("f", f, ndim=1, shape=(len(p),))
    if np.abs(p @ K - p).max() > 1e-8 or abs(p.sum() - 1) > 1e-8:
        raise ValueError(f"p must be the stationary law of K, got |pK - p| up to {np.abs(p @ K - p).max():.2g}")
    scale = np.abs(f).max()
    f = f - p @ f
    variance = p @ f**2
    if variance <= (8 * EPS * scale) ** 2:
        raise ValueError("f must not be constant")
    return float(2 * (p * f) @ np.linalg.solve(np.eye(len(p)) - K + p, f) / variance - 1)


# --- diagnostics --------------------------------------------------------------------------------------------


def acf(x: Float[np.ndarray, "*chains n"]) -> Float[np.ndarray, "*chains n"]:
    """Autocorrelation function of each series along the last axis, lags 0 … n - 1, with the divisor n.

    By FFT, O(n log n). Raises ValueError for a constant series.
    Source: Sokal, Monte Carlo methods in statistical mechanics (1997).  Taught in: notebook 07_06.
    """
    x = as_array("x", x, ndim=range(1, 9))
    covariance = _autocovariance(_power(x), x.shape[-1])
    if not (covariance[..., 0] > (8 * EPS * np.abs(x).max(axis=-1)) ** 2).all():
        raise ValueError("x must vary along the last axis, got a constant series")
    return covariance / covariance[..., :1]


def iat(x: Float[np.ndarray, "*chains n"]) -> float:
    """Integrated autocorrelation time 1 + 2 Σ_k ρ_k of a scalar, in steps: N draws are worth N/τ independent ones.

    The sum is Geyer's initial monotone sequence, made for reversible chains: pairs ρ_2k + ρ_2k+1 are positive and
    decrease, so it ends where they cease to. With several chains their autocorrelations are averaged. τ is below 1
    when draws alternate about the mean.

    Raises ValueError for a constant series, a single draw too.
    Source: Geyer, Statistical Science 7 (1992).  Taught in: notebook 07_06.
    """
    rho = acf(x)
    return float(_time(rho.reshape(-1, rho.shape[-1]).mean(axis=0)))


def ess(draws: Draws) -> Float[np.ndarray, " d"]:
    """Effective sample size of the mean of each coordinate, from all chains together.

    Chains are split in halves; autocorrelations are measured against the variance within and between chains, and
    summed by Geyer's initial monotone sequence. Chains that disagree have few effective draws.

    Raises ValueError for fewer than 4 draws, or a coordinate that does not vary.
    Source: Gelman et al., Bayesian Data Analysis (2013), §11.5; Geyer (1992).  Taught in: notebook 07_06.
    """
    x = _halves(draws)
    m, n = x.shape[1:]
    covariance = _autocovariance(_power(x).mean(axis=1), n)  # (d, n), the mean over chains
    within, total = _variances(x)
    rho = 1 - (within[:, None] - covariance * n / (n - 1)) / total[:, None]
    rho[:, 0] = 1
    return m * n / np.maximum(_time(rho), 1 / math.log10(m * n))  # at most N log10 N


def rhat(draws: Draws) -> Float[np.ndarray, " d"]:
    """Split R̂ of each coordinate: √(total variance / variance within half chains), near 1 when chains agree.

    It compares chains with each other only: if all sit in one mode of several, it is near 1.

    Raises ValueError for fewer than 4 draws, or a coordinate in which no chain varies.
    Source: Gelman and Rubin (1992); Gelman et al., Bayesian Data Analysis (2013), §11.4.  Taught in: notebook 07_06.
    """
    within, total = _variances(_halves(draws))
    return np.sqrt(total / within)


def _time(rho):
    """1 + 2 Σ ρ by Geyer's initial monotone sequence, along the last axis."""
    pairs = rho[..., : rho.shape[-1] // 2 * 2].reshape(*rho.shape[:-1], -1, 2).sum(axis=-1)
    return 2 * np.maximum(np.minimum.accumulate(pairs, axis=-1), 0).sum(axis=-1) - 1


def _halves(draws):
    """Half chains as (d, 2 n_chains, n)."""
    draws = as_array("draws", draws, ndim=3)
    n = draws.shape[1] // 2
    if n < 2:
        raise ValueError(f"draws must hold at least 4 draws of each chain, got {draws.shape[1]}")
    series = np.ascontiguousarray(np.moveaxis(draws, 2, 0))  # sums along a contiguous axis are fast
    return np.concatenate([series[..., :n], series[..., -n:]], axis=1)


def _variances(x):
    """Mean variance within chains, and (n - 1)/n of it plus the variance of their means, of (d, n_chains, n)."""
    n = x.shape[-1]
    within = x.var(axis=-1, ddof=1).mean(axis=-1)
    largest = np.maximum(x.max(axis=(1, 2)), -x.min(axis=(1, 2)))
    if not (within > (8 * EPS * largest) ** 2).all():
        raise ValueError("draws must vary in every coordinate, got chains that stand still")
    return within, within * (n - 1) / n + x.mean(axis=-1).var(axis=-1, ddof=1)


def _power(x):
    """|Fourier transform|² of the centred series, with zeros behind them so that lags do not wrap around."""
    centred = x - x.mean(axis=-1, keepdims=True)
    spectrum = scipy.fft.rfft(centred, scipy.fft.next_fast_len(2 * x.shape[-1], real=True))
    return spectrum.real**2 + spectrum.imag**2


def _autocovariance(power, n):
    return scipy.fft.irfft(power, scipy.fft.next_fast_len(2 * n, real=True))[..., :n] / n
