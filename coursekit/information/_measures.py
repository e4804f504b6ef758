"""Entropy and divergences of discrete and Gaussian laws."""

from typing import Any

import numpy as np
import scipy.linalg
from jaxtyping import Float
from scipy.special import entr, rel_entr, xlogy

from coursekit._validation import as_array
from coursekit.information._arguments import ANY, Pmf, Values, check_match, log_pmf, pmf, unit_of

# --- discrete laws -----------------------------------------------------------------------------------------


def entropy(p: Pmf, base: float | None = None) -> Values:
    """Shannon entropy H(p) = -Σ p log p: 0 for a certain outcome, log k for k equally likely ones, concave.

    Parameters
    ----------
    p : (..., k) array
    base : float > 1, optional

    Returns
    -------
    (...) array, or a float for one pmf

    Raises ValueError if p is negative, not finite or does not sum to 1, or base is not greater than 1.
    Source: Chertkov §6.2.1.  Taught in: notebook 06_02.
    """
    p = pmf("p", p)
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    return -np.vecdot(p, log_p) / unit_of(base) + 0.0  # -0.0 becomes 0.0


def cross_entropy(p: Pmf, q: Pmf, base: float | None = None) -> Values:
    """Cross-entropy H(p, q) = -Σ p log q = H(p) + KL(p‖q): the mean loss of the forecast q; inf where q = 0 < p.

    Parameters, result and errors as in `kl`.
    Source: Chertkov §6.2.4.  Taught in: notebook 06_02.
    """
    p, q = pmf("p", p), pmf("q", q)
    check_match(p=p, q=q)
    return -xlogy(p, q).sum(axis=-1) / unit_of(base) + 0.0


def kl(p: Pmf, q: Pmf, base: float | None = None) -> Values:
    """Kullback–Leibler divergence KL(p‖q) = Σ p log(p/q) ≥ 0, zero only for p = q; inf where q = 0 < p.

    Computed as Σ [p log(p/q) + q - p], a sum without negative terms. Close laws, whose divergence is of second order in
    x = p/q - 1, keep a relative precision of order ε/x, that of their own rounding; Σ p log(p/q) keeps ε/x².

    Parameters
    ----------
    p, q : (..., k) arrays
        Leading axes broadcast.
    base : float > 1, optional

    Returns
    -------
    (...) array, or a float for one pair

    Raises ValueError if p or q is negative, not finite or does not sum to 1, or the shapes do not match.
    Source: Chertkov §6.2.3.  Taught in: notebook 06_02.
    """
    p, q = pmf("p", p), pmf("q", q)
    check_match(p=p, q=q)
    return _kl(p, q) / unit_of(base)


def _kl(p, q):
    terms = rel_entr(p, q)
    terms += q - p
    np.maximum(terms, 0.0, out=terms)  # which removes what rounding leaves of a zero
    return np.vecdot(terms, np.ones(terms.shape[-1]))


def divergence_from_mean(p):
    """Mean of KL(p_m‖p̄) over the m = 1..M laws of the first axis, as KL(M p_m‖Σp)/M: no mean that underflows to 0."""
    return _kl(len(p) * p, p.sum(axis=0)).sum(axis=0) / len(p) ** 2


def js(p: Pmf, q: Pmf, base: float | None = None) -> Values:
    """Jensen–Shannon divergence ½KL(p‖m) + ½KL(q‖m), m = ½(p + q): symmetric, 0 ≤ JS ≤ log 2; √JS is a metric.

    It is the mutual information between an outcome and the fair coin that chose p or q to draw it.

    Parameters, result and errors as in `kl`.
    Source: Lin, IEEE Trans. Inf. Theory 37 (1991); Chertkov §6.2.3.  Taught in: notebook 06_02.
    """
    p, q = pmf("p", p), pmf("q", q)
    check_match(p=p, q=q)
    return divergence_from_mean(np.stack(np.broadcast_arrays(p, q))) / unit_of(base)


def total_variation(p: Pmf, q: Pmf) -> Values:
    """Total variation ½Σ|p - q| = max_A |p(A) - q(A)|, a metric in [0, 1]; at most √(KL/2) (Pinsker), KL in nats.

    Parameters, result and errors as in `kl`.
    Source: Chertkov §6.2.5.  Taught in: notebooks 06_02 and 06_03.
    """
    p, q = pmf("p", p), pmf("q", q)
    check_match(p=p, q=q)
    return np.abs(p - q).sum(axis=-1) / 2


def mutual_information(joint: Float[np.ndarray, "*batch n m"], base: float | None = None) -> Values:
    """Mutual information I(X;Y) = Σ p(x,y) log[p(x,y)/(p(x)p(y))] = KL(p_XY‖p_X ⊗ p_Y) of a joint pmf.

    I = H(X) + H(Y) - H(X,Y) = H(Y) - H(Y|X) lies between 0 (independence) and min(H(X), H(Y)).

    Parameters
    ----------
    joint : (..., n, m) array
        p(x, y), x along the last axis but one.
    base : float > 1, optional

    Raises ValueError if joint is negative, not finite or does not sum to 1 over its last two axes.
    Source: Chertkov §6.2.2.  Taught in: notebook 06_02.
    """
    return mutual_information_of(pmf("joint", joint, n_axes=2)) / unit_of(base)


def mutual_information_of(joint):
    # as Σ p(x) KL(p(y|x)‖p(y)), because products p(x)p(y) can underflow
    p_x, conditional = _split(joint)
    return (p_x * _kl(conditional, joint.sum(axis=-2, keepdims=True))).sum(axis=-1)


def _split(joint):
    """p(x) and p(y|x), the latter 0 where p(x) = 0."""
    p_x = joint.sum(axis=-1)
    return p_x, np.divide(joint, p_x[..., None], out=np.zeros_like(joint), where=p_x[..., None] > 0)


def conditional_entropy(joint: Float[np.ndarray, "*batch n m"], base: float | None = None) -> Values:
    """Conditional entropy H(Y|X) = -Σ p(x,y) log p(y|x) = H(X,Y) - H(X) = H(Y) - I(X;Y), Y along the last axis.

    Parameters and errors as in `mutual_information`; swap the last two axes for H(X|Y).
    Source: Chertkov §6.2.2.  Taught in: notebook 06_02.
    """
    p_x, conditional = _split(pmf("joint", joint, n_axes=2))
    return (p_x * entr(conditional).sum(axis=-1)).sum(axis=-1) / unit_of(base) + 0.0


# --- from log-probabilities --------------------------------------------------------------------------------


def entropy_from_logs(log_p: Pmf, base: float | None = None) -> Values:
    """`entropy` of exp(log_p), e.g. of log_softmax(logits); -inf stands for probability zero.

    Raises ValueError if log_p holds NaN or +inf, or exp(log_p) does not sum to 1.
    Source: Chertkov §6.2.1.  Taught in: notebook 06_02.
    """
    log_p = log_pmf("log_p", log_p)
    return -_weighted(np.exp(log_p), log_p).sum(axis=-1) / unit_of(base) + 0.0


def kl_from_logs(log_p: Pmf, log_q: Pmf, base: float | None = None) -> Values:
    """`kl` of exp(log_p) from exp(log_q): finite however small q is, inf only where log_q = -inf < log_p.

    Clipping q at ε instead would cap each term at p log(1/ε).

    Raises ValueError if an argument holds NaN or +inf or its exponential does not sum to 1, or the shapes do not match.
    Source: Chertkov §6.2.3.  Taught in: notebook 06_02.
    """
    log_p, log_q = log_pmf("log_p", log_p), log_pmf("log_q", log_q)
    check_match(log_p=log_p, log_q=log_q)
    log_p, log_q = np.broadcast_arrays(log_p, log_q)
    p, empty = np.exp(log_p), np.isneginf(log_p)
    difference = np.subtract(log_q, log_p, out=np.zeros(p.shape), where=~empty)
    excess = np.where(np.abs(difference) < 1, p * np.expm1(np.clip(difference, -1, 1)), np.exp(log_q) - p)
    # no negative terms, as in `kl`; a p that underflowed still makes inf where q is zero
    terms = np.where(np.isneginf(difference), np.inf, excess - _weighted(p, difference))
    return np.where(empty, np.exp(log_q), terms).sum(axis=-1) / unit_of(base)


def _weighted(p, x):
    """p x, and 0 where p is 0 whatever x is."""
    return np.multiply(p, x, out=np.zeros(np.shape(p)), where=p > 0)


# --- Gaussian laws -----------------------------------------------------------------------------------------


def _cholesky(name: str, S: Any) -> np.ndarray:
    """Lower factors (..., d, d) of covariances; a number is the variance of a law on the line."""
    S = as_array(name, S if np.ndim(S) else np.reshape(S, (1, 1)), ndim=range(2, 65))
    transpose = np.swapaxes(S, -1, -2)
    if (
        S.shape[-1] != S.shape[-2]
        or (np.abs(S - transpose) > 1e-10 * np.abs(S).max(axis=(-2, -1), keepdims=True)).any()
    ):
        raise ValueError(f"{name} must be symmetric matrices (..., d, d) or one variance, got shape {S.shape}")
    try:
        return np.linalg.cholesky(S)
    except np.linalg.LinAlgError as error:
        least = np.linalg.eigvalsh(S).min()
        raise ValueError(f"{name} must be positive definite, got the eigenvalue {least:g}") from error


def _gaussian(index: int, m: Any, S: Any) -> tuple[np.ndarray, np.ndarray]:
    if bool(np.ndim(m)) != bool(np.ndim(S)):
        raise ValueError(f"m{index} and S{index} must be a vector and a matrix or two numbers, got {m!r} and {S!r}")
    L = _cholesky(f"S{index}", S)
    m = as_array(f"m{index}", m if np.ndim(m) else np.reshape(m, 1), ndim=ANY)
    if m.shape[-1] != L.shape[-1]:
        raise ValueError(f"m{index} must have {L.shape[-1]} entries as S{index} has rows, got shape {m.shape}")
    return m, L


def gaussian_entropy(S: Float[np.ndarray, "*batch d d"] | float, base: float | None = None) -> Values:
    """Differential entropy ½ log[(2πe)^d |S|] of N(m, S); it may be negative, and adds log|det A| under x → Ax.

    Parameters
    ----------
    S : (..., d, d) covariances, or the variance of a law on the line
    base : float > 1, optional

    Raises ValueError if S is not symmetric and positive definite.
    Source: Chertkov §6.2.1.  Taught in: notebook 06_02.
    """
    diagonal = np.diagonal(_cholesky("S", S), axis1=-2, axis2=-1)
    return (0.5 * np.log(2 * np.pi * np.e) + np.log(diagonal)).sum(axis=-1) / unit_of(base)


def gaussian_kl(
    m0: Float[np.ndarray, "*#batch d"] | float,
    S0: Float[np.ndarray, "*#batch d d"] | float,
    m1: Float[np.ndarray, "*#batch d"] | float,
    S1: Float[np.ndarray, "*#batch d d"] | float,
    base: float | None = None,
) -> Values:
    """KL(N(m0, S0)‖N(m1, S1)) = ½[tr(S1⁻¹S0) - d - log|S1⁻¹S0| + δᵀS1⁻¹δ], δ = m1 - m0.

    With S = LLᵀ and A = L1⁻¹L0, triangular, it is the sum of ½(Aᵢᵢ² - 1 - ln Aᵢᵢ²), ½Aᵢⱼ² (i > j) and ½|L1⁻¹δ|²:
    no negative terms.

    Parameters
    ----------
    m0, m1 : (..., d) means
    S0, S1 : (..., d, d) covariances
        Leading axes broadcast. Two numbers m, S are the mean and the variance of a law on the line.
    base : float > 1, optional

    Raises ValueError if shapes do not match or a covariance is not symmetric and positive definite.
    Source: Chertkov §6.2.3.  Taught in: notebook 06_02.
    """
    (m0, L0), (m1, L1) = _gaussian(0, m0, S0), _gaussian(1, m1, S1)
    check_match(m0=m0, m1=m1)
    try:
        np.broadcast_shapes(m0.shape[:-1], L0.shape[:-2], m1.shape[:-1], L1.shape[:-2])
    except ValueError as error:
        shapes = f"{m0.shape}, {L0.shape}, {m1.shape}, {L1.shape}"
        raise ValueError(f"leading axes of m0, S0, m1, S1 must broadcast, got {shapes}") from error
    with np.errstate(over="ignore"):  # a quotient too large for a float is inf
        A = scipy.linalg.solve_triangular(L1, L0, lower=True)
        shift = scipy.linalg.solve_triangular(L1, (m1 - m0)[..., None], lower=True)[..., 0]
        log_square = 2 * np.log(np.diagonal(A, axis1=-2, axis2=-1))
        stretch = np.maximum(np.expm1(log_square) - log_square, 0.0).sum(axis=-1)
        shear = np.square(np.tril(A, -1)).sum(axis=(-2, -1))
        return (stretch + shear + np.square(shift).sum(axis=-1)) / (2 * unit_of(base))
