"""Logistic regression: loss, derivatives, maximum likelihood, and when a maximum exists at all.

Samples are rows: X has shape (n, d), labels y (n,) are 0 or 1. Losses are means over samples (not sums), in nats.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.optimize
from jaxtyping import Float, Shaped
from scipy.special import expit

from coursekit._validation import ConvergenceWarning, as_array, as_integer, as_number

EPS = np.finfo(float).eps


# --- logistic loss ---------------------------------------------------------------------------------------


def logistic_loss(
    theta: Float[np.ndarray, "*batch d"], X: Float[np.ndarray, "n d"], y: Shaped[np.ndarray, " n"]
) -> Float[np.ndarray, "*batch"] | float:
    """Mean negative log-likelihood of the model P(y = 1 | x) = σ(xᵀθ), in nats.

    L(θ) = (1/n) Σ_i log(1 + exp(-s_i z_i)) with logits z_i = x_iᵀθ and signs s_i = 2 y_i - 1. It is convex in θ because
    log(1 + e^-sz) is convex in the logit z and z is linear in θ. (Convexity in ŷ = σ(z), the argument of §3.2.3, is
    not enough, as ŷ is not affine in θ: the squared error is convex in ŷ and yet not in θ.)

    Parameters
    ----------
    theta : (..., d) array
        Any leading axes are runs, evaluated in one call; n logits of each are held in memory.
    X : (n, d) array
        No intercept is added: for a bias, let one column of X be ones.
    y : (n,) array of 0 and 1

    Returns (...), one loss for each θ.
    Raises ValueError if shapes do not fit, an entry is not finite, or a label is neither 0 nor 1.
    Source: Chertkov §3.1, eqs. (3.3) and (3.4).  Taught in: notebooks 03_01 and 03_03.
    """
    _, _, margins = _margins(theta, X, y)
    return np.logaddexp(0.0, -margins).mean(axis=-1)


def logistic_gradient(
    theta: Float[np.ndarray, "*batch d"], X: Float[np.ndarray, "n d"], y: Shaped[np.ndarray, " n"]
) -> Float[np.ndarray, "*batch d"]:
    """Gradient of `logistic_loss`: Xᵀ(σ(Xθ) - y) / n, for each θ; parameters and errors as there.

    Source: Chertkov §3.1.4.  Taught in: notebooks 03_01 and 03_03.
    """
    X, signs, margins = _margins(theta, X, y)
    # σ(z) - y = -s σ(-sz), where the left-hand side would lose all digits of a confident right answer
    return (-signs * expit(-margins)) @ X / len(X)


def logistic_hessian(
    theta: Float[np.ndarray, "*batch d"], X: Float[np.ndarray, "n d"], y: Shaped[np.ndarray, " n"]
) -> Float[np.ndarray, "*batch d d"]:
    """Hessian of `logistic_loss`: Xᵀ diag(σ(z)(1 - σ(z))) X / n ⪰ 0, for each θ; parameters and errors as there.

    It does not depend on y, and σ(1 - σ) ≤ 1/4: the gradient is Lipschitz with the constant λ_max(XᵀX)/4n, attained
    at θ = 0. Holds d × n numbers for each θ.
    Source: Chertkov §3.1.4 and eq. (3.8).  Taught in: notebooks 03_01 and 03_03.
    """
    X, _, margins = _margins(theta, X, y)
    weights = expit(margins) * expit(-margins)
    return (X.T * weights[..., None, :]) @ X / len(X)


def _margins(theta, X, y) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The checked X, the signs s = 2y - 1 and the margins s_i x_iᵀθ, (..., n)."""
    X, signs = _data(X, y)
    theta = as_array("theta", theta, ndim=tuple(range(1, max(np.ndim(theta), 1) + 1)))
    if theta.shape[-1] != X.shape[1]:
        raise ValueError(f"theta must have shape (..., {X.shape[1]}) to fit X, got {theta.shape}")
    return X, signs, signs * (theta @ X.T)


def _data(X, y) -> tuple[np.ndarray, np.ndarray]:
    """The checked X and the signs s = 2y - 1."""
    X = as_array("X", X, ndim=2)
    y = as_array("y", y, ndim=1, shape=(len(X),))
    is_label = (y == 0) | (y == 1)
    if not is_label.all():
        raise ValueError(f"y must contain only the labels 0 and 1, got {y[~is_label][0]:g}")
    return X, 2 * y - 1


# --- maximum likelihood ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogisticFit:
    """The model P(y = 1 | x) = σ(xᵀw + b).

    `loss` is the mean logistic loss in nats at (w, b), without the penalty; `n_iter` counts Newton steps.
    `separable` tells that a hyperplane separates the classes (`is_separable`).
    """

    w: Float[np.ndarray, " d"]
    b: float
    loss: float
    n_iter: int
    separable: bool


def logistic_regression(
    X: Float[np.ndarray, "n d"], y: Shaped[np.ndarray, " n"], l2: float = 0.0, *, max_iter: int = 100
) -> LogisticFit:
    """Maximum-likelihood (l2 = 0) or ridge-penalised logistic regression with intercept, by damped Newton's method.

    Minimises (1/n) Σ_i log(1 + exp(-s_i (x_iᵀw + b))) + l2/2 · |w|², s_i = 2 y_i - 1, down to rounding. The intercept
    is not penalised. (The objective of scikit-learn is this one times n·C, with C = 1/(n l2).)

    For l2 = 0 and separable data (for any l2, if there is only one class) there is no minimiser: the infimum is
    approached only for |(w, b)| → ∞. Warns `ConvergenceWarning` then, and (w, b) is a separating direction with logits
    of unit root mean square: its signed margins s_i (x_iᵀw + b) are ≥ 0 (up to rounding) and some are > 0; all of them
    if such a direction exists.

    Parameters
    ----------
    X : (n, d) array
        Without a column of ones. Where columns are linearly dependent and l2 = 0, w is the minimiser of least norm
        in units of the columns' standard deviations. No scaling is needed.
    y : (n,) array of 0 and 1
    l2 : float ≥ 0
    max_iter : int ≥ 1
        Newton steps, after which it warns `ConvergenceWarning` with the norm of the gradient.

    Raises ValueError if X is not a finite, non-empty matrix, y does not fit it or has other labels, or a number is out
    of range.
    Source: Chertkov §3.1; Boyd and Vandenberghe, Convex Optimization, §9.5.  Taught in: notebooks 03_01 and 03_03.
    """
    X, signs = _data(X, y)
    l2 = as_number("l2", l2, low=0.0)
    max_iter = as_integer("max_iter", max_iter, low=1)
    white = _whiten(X)
    signed = _signed(white.Z, signs)
    trial = _trial(signed, max_iter)
    direction = _separating_direction(signed, trial)
    one_class = bool((signs == signs[0]).all())  # the intercept, which is not penalised, runs away
    if direction is not None and (l2 == 0 or one_class):
        remedy = "there is only one class" if one_class else "give l2 > 0 for a unique solution"
        warnings.warn(
            "the classes are separable: the likelihood has no maximum for finite parameters, and (w, b) is a "
            f"separating direction; {remedy}",
            ConvergenceWarning,
            stacklevel=2,
        )
        theta, n_iter, A, Z = direction, 0, white.A, white.Z
    elif l2 == 0 and trial.residual is None:
        theta, n_iter, A, Z = trial.theta, trial.n_iter, white.A, white.Z
    else:
        # Coordinates in which the Hessian is of order 1: orthonormal features, or unit diagonal with the penalty
        # (which a rotation of badly scaled features would spoil by rounding)
        A = white.A if l2 == 0 else np.diag(1 / np.sqrt(np.mean(white.centred**2, axis=0) / 4 + l2))
        Z = white.Z if l2 == 0 else white.centred @ A
        penalty = np.zeros((Z.shape[1] + 1, Z.shape[1] + 1))
        penalty[1:, 1:] = l2 * A.T @ A
        minimum = _newton(_signed(Z, signs), penalty, max_iter)
        theta, n_iter = minimum.theta, minimum.n_iter
        if minimum.residual is not None:
            warnings.warn(
                f"Newton's method stopped after {max_iter} steps at a gradient of norm {minimum.residual:.1e}",
                ConvergenceWarning,
                stacklevel=2,
            )
    w = A @ theta[1:]
    loss = np.logaddexp(0.0, -signs * (theta[0] + Z @ theta[1:])).mean()
    return LogisticFit(w, float(theta[0] - white.mean @ w), float(loss), n_iter, direction is not None)


def _signed(Z: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Rows s_i (1, z_i), whose products with θ are the margins."""
    signed = np.column_stack([np.ones(len(Z)), Z])
    signed *= signs[:, None]
    return signed


@dataclass(frozen=True)
class _Minimum:
    """`residual` is the gradient's norm if Newton's method did not converge, else None."""

    theta: np.ndarray
    n_iter: int
    residual: float | None


def _newton(signed: np.ndarray, penalty: np.ndarray, max_iter: int) -> _Minimum:
    """Minimise logistic_loss + ½ θᵀ penalty θ from θ = 0."""
    n = len(signed)

    def objective(theta):
        margins = signed @ theta
        return np.logaddexp(0.0, -margins).mean() + theta @ penalty @ theta / 2, margins

    theta = np.zeros(signed.shape[1])
    (value, margins), previous = objective(theta), np.inf
    for n_iter in range(max_iter + 1):
        wrong = expit(-margins)  # the probability given to the other class
        gradient = penalty @ theta - wrong @ signed / n
        hessian = (signed.T * (wrong * expit(margins))) @ signed / n + penalty
        step = -np.linalg.lstsq(hessian, gradient)[0]
        decrement = -gradient @ step  # twice the decrease that the quadratic model predicts
        # Below EPS the objective cannot show progress, yet the decrement falls quadratically until it is all rounding
        if decrement <= (4 * EPS) ** 2 or previous / 4 <= decrement <= EPS * value:
            return _Minimum(theta, n_iter, None)
        if n_iter == max_iter:
            break
        t = 1.0
        while (trial := objective(theta + t * step))[0] > value - 1e-4 * t * decrement + 4 * EPS * value and t > EPS:
            t /= 2
        theta, (value, margins), previous = theta + t * step, trial, decrement
    return _Minimum(theta, max_iter, float(np.linalg.norm(gradient)))


# --- separability ----------------------------------------------------------------------------------------


def is_separable(X: Float[np.ndarray, "n d"], y: Shaped[np.ndarray, " n"]) -> bool:
    """Whether a hyperplane separates the classes, so that the logistic likelihood has no maximum.

    True iff some (w, b) has all margins s_i (x_iᵀw + b) ≥ 0 and at least one > 0: the classes lie on different sides
    (complete separation) or share points with the hyperplane (quasi-complete), or there is only one class. Decided by
    linear programming in centred coordinates with orthonormal columns, so the scale and offset of features are
    irrelevant; an overlap of the classes below about 1e-9 standard deviations counts as contact.

    The linear program is dense, n × (d + 1), and takes some milliseconds for n = 1000. It is left out where some Newton
    steps on the loss prove an overlap: their gradient becomes smaller than separable data allow.
    Raises ValueError if X is not a finite, non-empty matrix, or y does not fit it or has other labels than 0 and 1.
    Source: Albert and Anderson, Biometrika 71 (1984); Chertkov §3.1.  Taught in: notebook 03_01.
    """
    X, signs = _data(X, y)
    signed = _signed(_whiten(X).Z, signs)
    return _separating_direction(signed, _trial(signed)) is not None


@dataclass(frozen=True)
class _White:
    """Z = centred @ A with ZᵀZ = n I spans the columns of centred = X - mean."""

    Z: np.ndarray
    A: np.ndarray
    centred: np.ndarray
    mean: np.ndarray


def _whiten(X: np.ndarray) -> _White:
    n, d = X.shape
    centred = X - X[0]  # leaves no rounding in a constant column, and little in one with a large offset
    mean = X[0] + centred.mean(axis=0)
    centred -= centred.mean(axis=0)
    scale = np.sqrt(np.einsum("ij,ij->j", centred, centred) / n)
    rounding = EPS * np.abs(X).max(axis=0)
    scale[scale <= 64 * rounding] = np.inf  # a constant column
    # the triangular factor has the singular values and the V of the n rows
    _, s, Vt = np.linalg.svd(np.linalg.qr(centred / scale, mode="r"), full_matrices=False)
    rank = np.count_nonzero(s > 4 * (EPS * max(n, d) * s[0] + np.sqrt(n) * np.max(rounding / scale)))
    A = np.sqrt(n) * Vt[:rank].T / s[:rank] / scale[:, None]
    return _White(centred @ A, A, centred, mean)


def _trial(signed: np.ndarray, max_iter: int = 15) -> _Minimum:
    """A few Newton steps on the loss without penalty: enough to converge, unless the classes hardly overlap."""
    return _newton(signed, np.zeros((signed.shape[1], signed.shape[1])), min(max_iter, 15))


def _separating_direction(signed: np.ndarray, trial: _Minimum) -> np.ndarray | None:
    """A unit vector v with all margins s_i (1, z_i)ᵀv ≥ 0 and some > 0 (all, if possible), or None."""
    n = len(signed)
    # As the columns are orthonormal, max |v_j| = 1 makes the mean square of the margins ≥ 1, and the mean of
    # non-negative margins ≥ 1/√n. Along v the loss then falls at the rate -gᵀv ≥ min σ(-m_i)/√n, m_i the
    # margins at θ, whatever θ is. As |gᵀv| ≤ |g|₁, a gradient smaller than that proves that there is no such v.
    wrong = expit(-signed @ trial.theta)
    if np.abs(wrong @ signed / n).sum() + 1e-9 < 0.5 / np.sqrt(n) * wrong.min():
        return None

    def solve(objective, t_max):
        """Maximise objective·(v, t) with margins ≥ t in 0..t_max and |v_j| ≤ 1."""
        result = scipy.optimize.linprog(
            -objective,
            A_ub=np.column_stack([-signed, np.ones(n)]),
            b_ub=np.zeros(n),
            bounds=[(-1, 1)] * signed.shape[1] + [(0, t_max)],
            method="highs",
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if not result.success:  # v = 0 is feasible and v is bounded: only a failure of the solver comes here
            raise RuntimeError(f"the linear program of separability failed: {result.message}")
        return -result.fun, result.x[:-1] / max(np.linalg.norm(result.x[:-1]), EPS)

    # the optimum is 0 or at least 1/√n, so the answer does not hang on a tolerance
    mean_margin, v = solve(np.append(signed.mean(axis=0), 0.0), 0.0)
    if mean_margin < 0.5 / np.sqrt(n):
        return None
    least_margin, strict = solve(np.append(np.zeros(signed.shape[1]), 1.0), None)
    return strict if least_margin > 1e-9 else v
