"""Matrix decompositions and what they are used for: SVD, PCA, whitening, completion, low-rank updates,
random-matrix laws, convolution as a matrix.

Samples are rows: X has shape (n, d) and linear maps of samples act from the right, ``Z = X @ W``.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float
from numpy.lib.stride_tricks import sliding_window_view

from coursekit._validation import ConvergenceWarning, as_array, as_integer, as_number, one_of

EPS = np.finfo(float).eps
Seed = np.random.Generator | int | None


# --- singular value decomposition ------------------------------------------------------------------------


@dataclass(frozen=True)
class SVD:
    """A ≈ U diag(s) Vt with orthonormal columns U (m, r), s (r,) descending, orthonormal rows Vt (r, n).

    `squared_norm` is ‖A‖_F² of the matrix that was decomposed: for a truncated decomposition more than Σ s².
    """

    U: Float[np.ndarray, "m r"]
    s: Float[np.ndarray, " r"]
    Vt: Float[np.ndarray, "r n"]
    squared_norm: float

    def reconstruct(self, k: int | None = None) -> Float[np.ndarray, "m n"]:
        """Rank-k approximation Σ_{i≤k} s_i u_i v_iᵀ (all computed terms if k is None); k = 0 gives zeros."""
        k = len(self.s) if k is None else as_integer("k", k, low=0, high=len(self.s))
        return (self.U[:, :k] * self.s[:k]) @ self.Vt[:k]

    @property
    def energy(self) -> Float[np.ndarray, " r"]:
        """Cumulative energy E_k = Σ_{i≤k} s_i² / ‖A‖_F², the fraction that rank k retains (1 for the zero matrix)."""
        if self.squared_norm == 0:
            return np.ones_like(self.s)
        return np.cumsum(self.s**2) / self.squared_norm


def svd(
    A: Float[np.ndarray, "m n"],
    rank: int | None = None,
    *,
    method: Literal["exact", "randomized"] = "exact",
    rng: Seed = None,
) -> SVD:
    """Singular value decomposition, in full (reduced form) or of the leading `rank` terms.

    By the Eckart–Young theorem the truncation is the best approximation of its rank: the error is s_{k+1} in the
    spectral norm and (Σ_{j>k} s_j²)^½ in the Frobenius norm. Signs are fixed: the entry of largest modulus in each
    right singular vector is positive (the first of equal ones), so figures do not flip between machines.

    Parameters
    ----------
    A : (m, n) array
    rank : int in 1..min(m, n), optional
        Number of terms; all by default, required for the randomized method.
    method : {"exact", "randomized"}
        LAPACK's divide and conquer, or `randomized_svd` with its default settings.
    rng : Generator, int or None
        Used by the randomized method only.

    Raises ValueError if A is not a finite, non-empty matrix, or the rank is out of range.
    Source: Chertkov §1.2.1; Miyamoto §1.1.  Taught in: notebook 01_02.
    """
    A = as_array("A", A, ndim=2)
    one_of("method", method, ("exact", "randomized"))
    if method == "randomized":
        if rank is None:
            raise ValueError("rank must be given for the randomized method")
        return randomized_svd(A, rank, rng=rng)
    k = min(A.shape) if rank is None else as_integer("rank", rank, low=1, high=min(A.shape))
    if 2 * k < min(A.shape) < max(A.shape) / 2:
        U, s, Vt = _leading_terms(A, k)
    else:
        U, s, Vt = np.linalg.svd(A, full_matrices=False)
    return _with_fixed_signs(U[:, :k], s[:k], Vt[:k], float(np.vdot(A, A)))


def _leading_terms(A: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k leading terms of the SVD of a long matrix, without the left vectors of the others.

    The triangular factor R of A = QR has the right vectors of A, and A V the rest; unlike AᵀA, R loses no digits.
    """
    tall = A if A.shape[0] >= A.shape[1] else A.T
    V = np.linalg.svd(_triangular_factor(tall))[2][:k].T
    U, s, Wt = np.linalg.svd(tall @ V, full_matrices=False)
    Vt = Wt @ V.T
    return (U, s, Vt) if tall is A else (Vt.T, s, U.T)


def _triangular_factor(A: np.ndarray) -> np.ndarray:
    """R of A = QR, from those of blocks of rows, which stay in the cache (Demmel et al., SIAM J. Sci. Comput. 2012)."""
    n, d = A.shape
    rows = 8 * d
    whole = n // rows
    blocks = A[: whole * rows].reshape(whole, rows, d)
    factors: np.ndarray = np.linalg.qr(blocks, mode="r")  # type: ignore[assignment]  # NumPy's stubs mean other modes
    stacked = np.concatenate([factors.reshape(-1, d), A[whole * rows :]])
    return np.linalg.qr(stacked, mode="r")  # type: ignore[return-value]


def randomized_svd(
    A: Float[np.ndarray, "m n"], rank: int, *, oversample: int = 20, n_iter: int = 3, rng: Seed = None
) -> SVD:
    """Leading singular triplets from a random sketch of the range, sharpened by subspace iteration.

    A Gaussian block of rank + oversample columns is multiplied by (AᵀA)^n_iter, re-orthonormalised on the shorter
    side after each application; the SVD of A restricted to the resulting subspace follows. The matrix is read in
    2 n_iter + 2 passes of 2mn(rank + oversample) flops each. For n_iter = 0 the mean squared Frobenius error
    is at most 1 + rank/(oversample - 1) times the Eckart–Young optimum; each iteration multiplies the weight of
    direction j against direction i by (s_j/s_i)².

    Parameters
    ----------
    A : (m, n) array
    rank : int in 1..min(m, n)
    oversample : int ≥ 0
        Extra columns of the sketch (cut at min(m, n) in all).
    n_iter : int ≥ 0
        Subspace iterations.
    rng : Generator, int or None

    Raises ValueError if A is not a finite, non-empty matrix, or a number is out of range.
    Source: Halko, Martinsson and Tropp, SIAM Review 53 (2011), algorithm 4.4.  Taught in: notebook 01_02.
    """
    A = as_array("A", A, ndim=2)
    rank = as_integer("rank", rank, low=1, high=min(A.shape))
    n_columns = min(rank + as_integer("oversample", oversample, low=0), min(A.shape))
    n_iter = as_integer("n_iter", n_iter, low=0)
    tall = A if A.shape[0] >= A.shape[1] else A.T
    V = np.random.default_rng(rng).standard_normal((tall.shape[1], n_columns))
    for _ in range(n_iter):
        # (Yᵀ A)ᵀ rather than Aᵀ Y: the same numbers, and BLAS reads A along its rows
        V = np.linalg.qr(((tall @ V).T @ tall).T).Q
    Q = np.linalg.qr(tall @ V).Q
    small, s, Vt = np.linalg.svd(Q.T @ tall, full_matrices=False)
    U = Q @ small[:, :rank]
    U, Vt = (U, Vt[:rank]) if tall is A else (Vt[:rank].T, U.T)
    return _with_fixed_signs(U, s[:rank], Vt, float(np.vdot(A, A)))


def svd_via_gram(A: Float[np.ndarray, "m n"]) -> SVD:
    """SVD by the textbook recipe: eigenvectors of AᵀA give V and s² = λ, then u_i = A v_i / s_i.

    For teaching: forming AᵀA squares the condition number, so singular values below √ε·s_1 ≈ 1.5e-8·s_1 drown in
    rounding. Terms with s_i ≤ √(n ε)·s_1 are left out, as their u_i could not be trusted.
    Source: Chertkov §1.2.1 (summary of steps); Miyamoto theorem 1.  Taught in: notebook 01_02.
    """
    A = as_array("A", A, ndim=2)
    eigenvalues, V = np.linalg.eigh(A.T @ A)
    s = np.sqrt(np.maximum(eigenvalues[::-1], 0.0))  # descending; rounding makes zero eigenvalues slightly negative
    kept = s > np.sqrt(A.shape[1] * EPS) * s[0]
    s, V = s[kept], V[:, ::-1][:, kept]
    return _with_fixed_signs(A @ V / s, s, V.T, float(np.vdot(A, A)))


def participation_ratio(eigenvalues: Float[np.ndarray, " r"]) -> float:
    """Effective number of directions (Σλ)² / Σλ²: r if all λ are equal, 1 if one dominates.

    Raises ValueError if an eigenvalue is negative or all are zero.
    """
    eigenvalues = as_array("eigenvalues", eigenvalues, ndim=1)
    if (eigenvalues < 0).any() or not eigenvalues.any():
        raise ValueError("eigenvalues must be non-negative and not all zero")
    return float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())


def _signs(Vt: np.ndarray) -> np.ndarray:
    """Sign of the first entry of largest modulus in each row (up to rounding, lest equal ones compete by a bit)."""
    modulus = np.abs(Vt)
    pivot = np.argmax(modulus >= (1 - 1e-8) * modulus.max(axis=1, keepdims=True), axis=1)
    return np.where(Vt[np.arange(len(Vt)), pivot] < 0, -1.0, 1.0)


def _with_fixed_signs(U: np.ndarray, s: np.ndarray, Vt: np.ndarray, squared_norm: float) -> SVD:
    signs = _signs(Vt)
    return SVD(U * signs, s, Vt * signs[:, None], squared_norm)


# --- principal components and whitening ------------------------------------------------------------------


@dataclass(frozen=True)
class PCA:
    """Principal components: rows of `components` (k, d) are orthonormal directions of descending variance.

    Sample variances along them are singular_values² / n (divisor n: the maximum-likelihood covariance).
    """

    mean: Float[np.ndarray, " d"]
    components: Float[np.ndarray, "k d"]
    singular_values: Float[np.ndarray, " k"]
    explained_variance_ratio: Float[np.ndarray, " k"]

    def transform(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Coordinates z = (x - mean) Vᵏ of each row of X."""
        X = as_array("X", X, ndim=2, shape=(None, len(self.mean)))
        return (X - self.mean) @ self.components.T

    def inverse_transform(self, Z: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n d"]:
        """Points mean + z Vᵏᵀ: the nearest points of the principal subspace, after `transform`."""
        Z = as_array("Z", Z, ndim=2, shape=(None, len(self.components)))
        return self.mean + Z @ self.components


def pca(X: Float[np.ndarray, "n d"], n_components: int | None = None) -> PCA:
    """Principal component analysis: SVD of the centred data, signs fixed as in `svd`.

    Centring costs one degree of freedom: at most n - 1 components carry variance.

    `n_components` lies in 1..min(n, d), all by default. Raises ValueError if it does not, if X is not a finite,
    non-empty matrix, or if all its rows are equal.
    Source: Chertkov §1.2.2.  Taught in: notebook 01_02.
    """
    X = as_array("X", X, ndim=2)
    if n_components is not None:
        as_integer("n_components", n_components, low=1, high=min(X.shape))
    if not np.ptp(X, axis=0).any():
        raise ValueError(f"X must contain at least two different rows, got {len(X)} equal one(s)")
    mean = X.mean(axis=0)
    centred = svd(X - mean, n_components)
    return PCA(mean, centred.Vt, centred.s, centred.s**2 / centred.squared_norm)


@dataclass(frozen=True)
class Whitening:
    """White samples Z = (X - mean) @ W, with W Wᵀ the inverse of the (shrunk) covariance."""

    Z: Float[np.ndarray, "n d"]
    W: Float[np.ndarray, "d d"]
    mean: Float[np.ndarray, " d"]

    def transform(self, X: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
        """Whiten further rows with the mean and matrix that were fitted."""
        X = as_array("X", X, ndim=2, shape=(None, len(self.mean)))
        return (X - self.mean) @ self.W


def whiten(
    X: Float[np.ndarray, "n d"],
    method: Literal["pca", "zca", "cholesky"] = "pca",
    *,
    shrinkage: float = 0.0,
) -> Whitening:
    """Linear map to unit covariance: ZᵀZ/n = I for Z = (X - mean) W.

    With the covariance Σ = (X - mean)ᵀ(X - mean)/n + shrinkage·I = V Λ Vᵀ the map is W = V Λ^-½ ("pca"),
    V Λ^-½ Vᵀ ("zca", the white map nearest to the identity) or L with Σ^-1 = L Lᵀ lower triangular ("cholesky").
    They differ by a rotation of Z.

    Parameters
    ----------
    X : (n, d) array
    method : {"pca", "zca", "cholesky"}
    shrinkage : float ≥ 0
        Added to every variance. Needed where the covariance is singular (n ≤ d, or a constant column); Z is then
        white up to the shrinkage only.

    Raises ValueError if X is not a finite, non-empty matrix, the method is unknown, or the covariance is singular.
    Source: Miyamoto §5.2; Chertkov §1.2.2.  Taught in: notebook 01_02.
    """
    X = as_array("X", X, ndim=2)
    one_of("method", method, ("pca", "zca", "cholesky"))
    shrinkage = as_number("shrinkage", shrinkage, low=0.0)
    n, d = X.shape
    mean = X.mean(axis=0)
    # from the SVD of the data, as forming the covariance would square the condition number
    _, s, Vt = np.linalg.svd(X - mean, full_matrices=n < d)
    variances = np.zeros(d)
    variances[: len(s)] = s**2 / n
    # rounding of the decomposition, and of X - mean where the mean is large
    rank = np.count_nonzero(s > 4 * EPS * (max(n, d) * s[0] + np.sqrt(n) * np.abs(X).max()))
    if shrinkage == 0 and rank < d:
        raise ValueError(
            f"X has a singular covariance (rank {rank} of {d}) that no linear map makes white: "
            "give shrinkage > 0, or project on fewer components with pca first"
        )
    scaled = Vt.T / np.sqrt(variances + shrinkage)  # V Λ^-½
    if method == "zca":
        W = scaled @ Vt
    elif method == "cholesky":
        # Σ^-1 = (V Λ^-½)(V Λ^-½)ᵀ: the triangular factor is the Rᵀ of a QR decomposition, with a positive diagonal
        R = np.linalg.qr(scaled.T).R
        W = (R * np.sign(np.diag(R))[:, None]).T
    else:
        W = scaled * _signs(Vt)
    return Whitening((X - mean) @ W, W, mean)


# --- matrix completion -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Completion:
    """A completed matrix X (m, n) and the objective after every sweep, objective[0] being that of the start."""

    X: Float[np.ndarray, "m n"]
    objective: Float[np.ndarray, " sweeps"]


def hard_impute(
    R: Float[np.ndarray, "m n"],
    observed: Bool[np.ndarray, "m n"],
    rank: int,
    *,
    start: Float[np.ndarray, "m n"] | None = None,
    tol: float = 1e-10,
    max_iter: int = 10_000,
) -> Completion:
    """Low-rank completion by alternation: fill the gaps from X, replace X by the best rank-k approximation.

    Descends on f(X) = ‖P_Ω(X - R)‖_F² subject to rank X ≤ k: the filled matrix Y agrees with R on Ω and with X off Ω,
    so f(X) = ‖Y - X‖² ≥ ‖Y - X⁺‖² ≥ f(X⁺). The problem is not convex: what it reaches may depend on the start and
    need not be the global minimum.

    Parameters
    ----------
    R : (m, n) array
        Entries where `observed` is False are ignored (NaN is allowed there).
    observed : (m, n) bool array
    rank : int in 1..min(m, n)
    start : (m, n) array, optional
        First filling of the gaps; the mean of the observed entries by default.
    tol, max_iter : float, int
        Stops when a sweep changes X by less than tol·‖X‖_F, or warns `ConvergenceWarning` after max_iter sweeps.
    Source: Chertkov exercise 1.2.2.  Taught in: notebook 01_02.
    """
    rank = as_integer("rank", rank, low=1, high=min(np.shape(R)) if np.ndim(R) == 2 else None)

    def truncate(Y):
        U, s, Vt = np.linalg.svd(Y, full_matrices=False)
        return (U[:, :rank] * s[:rank]) @ Vt[:rank], 0.0

    return _impute(R, observed, truncate, start, data_weight=1.0, tol=tol, max_iter=max_iter)


def soft_impute(
    R: Float[np.ndarray, "m n"],
    observed: Bool[np.ndarray, "m n"],
    penalty: float,
    *,
    start: Float[np.ndarray, "m n"] | None = None,
    tol: float = 1e-10,
    max_iter: int = 10_000,
) -> Completion:
    """Convex completion: minimises ½‖P_Ω(X - R)‖_F² + penalty·‖X‖_* (nuclear norm, the sum of singular values).

    The alternation of `hard_impute`, with singular values lowered by the penalty (proximal gradient with step 1)
    instead of cut at a rank; parameters as there. Every start leads to the same value of the objective.
    Source: Mazumder, Hastie and Tibshirani, JMLR 11 (2010); Chertkov exercise 1.2.2.  Taught in: notebook 01_02.
    """
    penalty = as_number("penalty", penalty, low=0.0, strict=True)

    def shrink(Y):
        U, s, Vt = np.linalg.svd(Y, full_matrices=False)
        s = np.maximum(s - penalty, 0.0)
        return (U * s) @ Vt, penalty * s.sum()

    return _impute(R, observed, shrink, start, data_weight=0.5, tol=tol, max_iter=max_iter)


def _impute(R, observed, approximate, start, *, data_weight, tol, max_iter) -> Completion:
    observed = np.asarray(observed)
    if observed.dtype != bool or observed.shape != np.shape(R) or not observed.any():
        raise ValueError(
            f"observed must be a boolean mask of R's shape {np.shape(R)} with at least one True, "
            f"got shape {observed.shape} of {observed.dtype}"
        )
    values = as_array("the observed part of R", np.where(observed, R, 0.0), ndim=2)
    filling = (
        np.full(values.shape, values[observed].mean())
        if start is None
        else as_array("start", start, ndim=2, shape=values.shape)
    )
    X, penalty = approximate(np.where(observed, values, filling))
    objective = [data_weight * np.sum((X - values)[observed] ** 2) + penalty]
    for _ in range(as_integer("max_iter", max_iter, low=1)):
        previous = X
        X, penalty = approximate(np.where(observed, values, previous))
        objective.append(data_weight * np.sum((X - values)[observed] ** 2) + penalty)
        change, size = np.linalg.norm(X - previous), np.linalg.norm(X)
        if change <= tol * size:
            break
    else:
        warnings.warn(
            f"completion stopped after {max_iter} sweeps; the last one changed X by {change / size:.1e} (tol {tol:g})",
            ConvergenceWarning,
            stacklevel=3,
        )
    return Completion(X, np.array(objective))


# --- low-rank updates ------------------------------------------------------------------------------------


def woodbury_inverse(
    A_inv: Float[np.ndarray, "n n"],
    U: Float[np.ndarray, "n k"],
    C: Float[np.ndarray, "k k"],
    V: Float[np.ndarray, "k n"],
) -> Float[np.ndarray, "n n"]:
    """Inverse of A + U C V from that of A, in O(n²k) instead of O(n³).

    (A + UCV)^-1 = A^-1 - A^-1 U (I + C V A^-1 U)^-1 C V A^-1, which unlike the form with C^-1 also serves a singular C.
    k = 1, C = 1 is the Sherman–Morrison formula.

    Raises ValueError if shapes do not fit, an entry is not finite, or A + UCV is singular to working precision.
    Source: Miyamoto §1.2.3, facts 2 and 3 (where the sign is wrong).  Taught in: notebook 01_02.
    """
    A_inv = as_array("A_inv", A_inv, ndim=2)
    n = len(A_inv)
    as_array("A_inv", A_inv, ndim=2, shape=(n, n))
    U = as_array("U", U, ndim=2, shape=(n, None))
    k = U.shape[1]
    C = as_array("C", C, ndim=2, shape=(k, k))
    V = as_array("V", V, ndim=2, shape=(k, n))
    A_inv_U, C_V = A_inv @ U, C @ V
    C_V_A_inv = C_V @ A_inv
    change = C_V_A_inv @ U
    capacitance = np.eye(k) + change
    # det(A + UCV) = det A · det(capacitance): singular together. Rounding leaves a zero of the size of what cancelled
    smallest = np.linalg.svd(capacitance, compute_uv=False)[-1]
    if smallest <= n * EPS * (1 + np.linalg.norm(C_V) * np.linalg.norm(A_inv_U)):
        raise ValueError("A + U C V is singular to working precision: I + C V A_inv U has no inverse")
    return A_inv - A_inv_U @ np.linalg.solve(capacitance, C_V_A_inv)


# --- random-matrix laws ----------------------------------------------------------------------------------


def goe(n: int, size: int | tuple[int, ...] = (), *, rng: Seed = None) -> Float[np.ndarray, "*size n n"]:
    """Gaussian orthogonal ensemble: symmetric, off-diagonal N(0, 1), diagonal N(0, 2); E[W²] = (n + 1) I.

    The spectrum of W/√n tends to the semicircle on [-2, 2].
    Source: Miyamoto §1.1.3.  Taught in: notebook 01_02.
    """
    n = as_integer("n", n, low=1)
    size = (size,) if isinstance(size, (int, np.integer)) else tuple(size)
    G = np.random.default_rng(rng).standard_normal((*size, n, n))
    return (G + G.swapaxes(-1, -2)) / np.sqrt(2)


def spiked_wigner(
    n: int, strength: float, *, rng: Seed = None
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, " n"]]:
    """A hidden direction in symmetric noise: A = strength · v vᵀ + W/√n, W from `goe`, v uniform on the unit sphere.

    In this scale the noise alone fills [-2, 2] and the transition is at strength 1 (`bbp_wigner`).
    Returns (A, v).
    Source: Miyamoto §1.1.3, eq. (1.12), where λ|x|² = √n · strength.  Taught in: notebook 01_02.
    """
    n = as_integer("n", n, low=1)
    strength = as_number("strength", strength)
    rng = np.random.default_rng(rng)
    v = rng.standard_normal(n)
    v /= np.linalg.norm(v)
    return strength * np.outer(v, v) + goe(n, rng=rng) / np.sqrt(n), v


@dataclass(frozen=True)
class Spike:
    """Limit of the top sample eigenvalue, and of the squared overlap of its eigenvector with the hidden direction."""

    eigenvalue: Float[np.ndarray, "..."] | float
    overlap: Float[np.ndarray, "..."] | float


def bbp_wigner(strength: Float[np.ndarray, "..."] | float) -> Spike:
    """Top eigenpair of `spiked_wigner` as n → ∞: θ + 1/θ and 1 - θ^-2 for θ > 1, else the noise edge 2 and 0.
    Source: Féral and Péché, Comm. Math. Phys. 272 (2007); Benaych-Georges and Nadakuditi, Adv. Math. 227 (2011).
    Taught in: notebook 01_02.
    """
    theta = np.maximum(np.asarray(strength, dtype=float), 1.0)  # at the threshold both formulas join the noise values
    return Spike(theta + 1 / theta, 1 - theta**-2)


def bbp_covariance(spike: Float[np.ndarray, "..."] | float, ratio: Float[np.ndarray, "..."] | float) -> Spike:
    """Top eigenpair of a sample covariance with population covariance I + spike · vvᵀ, as n, d → ∞ with d/n → ratio.

    For spike ℓ > √γ: eigenvalue (1 + ℓ)(1 + γ/ℓ), squared overlap (1 - γ/ℓ²)/(1 + γ/ℓ); below, the
    Marchenko–Pastur edge (1 + √γ)² and 0.
    Source: Baik and Silverstein, J. Multivar. Anal. 97 (2006); Paul, Stat. Sinica 17 (2007).
    Taught in: notebook 01_02.
    """
    gamma = np.asarray(ratio, dtype=float)
    if not (gamma > 0).all() or np.isnan(spike).any():
        raise ValueError(f"ratio must be positive and spike a number, got ratio={ratio}, spike={spike}")
    ell = np.maximum(np.asarray(spike, dtype=float), np.sqrt(gamma))
    return Spike((1 + ell) * (1 + gamma / ell), (1 - gamma / ell**2) / (1 + gamma / ell))


def semicircle_pdf(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Wigner's semicircle (4 - x²)^½ / 2π on [-2, 2], the limit of the spectrum of W/√n for `goe`."""
    return np.sqrt(np.maximum(4 - np.asarray(x, dtype=float) ** 2, 0.0)) / (2 * np.pi)


def marchenko_pastur_edges(ratio: float, variance: float = 1.0) -> tuple[float, float]:
    """Ends of the continuous part of the Marchenko–Pastur law: variance · (1 ∓ √ratio)²."""
    ratio, variance = as_number("ratio", ratio, low=0, strict=True), as_number("variance", variance, low=0, strict=True)
    return variance * (1 - np.sqrt(ratio)) ** 2, variance * (1 + np.sqrt(ratio)) ** 2


def marchenko_pastur_pdf(x: Float[np.ndarray, "..."], ratio: float, variance: float = 1.0) -> Float[np.ndarray, "..."]:
    """Density of the eigenvalues of XᵀX/n for white noise X (n, d), d/n → ratio γ, entries of the given variance.

    ρ(x) = ((x₊ - x)(x - x₋))^½ / (2π γ variance x) between the edges. For γ > 1 it has mass 1/γ: the other d - n
    eigenvalues are zero.
    Source: Marchenko and Pastur, Mat. Sb. 72 (1967).  Taught in: notebook 01_02.
    """
    low, high = marchenko_pastur_edges(ratio, variance)
    x = np.asarray(x, dtype=float)
    inside = (x > low) & (x < high)
    safe = np.where(inside, x, high)
    return np.where(inside, np.sqrt((high - safe) * (safe - low)) / (2 * np.pi * ratio * variance * safe), 0.0)


# --- convolution -----------------------------------------------------------------------------------------


def conv_matrix(k: Float[np.ndarray, " m"], n: int) -> Float[np.ndarray, "{n}-m+1 {n}"]:
    """Toeplitz matrix A with (A x)_i = Σ_j k_j x_{i+j}: the "valid" cross-correlation of x (n,) with k (m,).

    Row i is the kernel moved i places to the right. Aᵀ is the transposed ("full") convolution.
    What deep learning calls convolution is this correlation; the kernel is not flipped.
    Source: Chertkov §1.1.3 (where the transpose is printed).
    """
    k = as_array("k", k, ndim=1)
    n = as_integer("n", n, low=len(k))
    first_column = np.zeros(n - len(k) + 1)
    first_column[0] = k[0]
    return scipy.linalg.toeplitz(first_column, np.concatenate([k, np.zeros(n - len(k))]))


def correlate2d(
    x: Float[np.ndarray, "*batch h w"], k: Float[np.ndarray, "p q"]
) -> Float[np.ndarray, "*batch h-p+1 w-q+1"]:
    """Valid cross-correlation y_ij = Σ_ab k_ab x_{i+a, j+b} of images with one kernel, over up to two leading axes.

    Raises ValueError if the kernel is larger than the image.
    Source: Chertkov example 1.1.1.
    """
    x = as_array("x", x, ndim=(2, 3, 4))
    k = as_array("k", k, ndim=2)
    if k.shape[0] > x.shape[-2] or k.shape[1] > x.shape[-1]:
        raise ValueError(f"k of shape {k.shape} must not exceed the image of shape {x.shape[-2:]}")
    return np.einsum("...ijab,ab->...ij", sliding_window_view(x, k.shape, axis=(-2, -1)), k)
