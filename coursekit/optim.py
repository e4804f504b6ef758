"""First-order optimization: methods as (init, update) pairs that broadcast over runs, projections, test functions.

A point is a vector along the last axis; leading axes are independent runs (seeds, learning rates, starts), so a sweep
is one call. Losses are means over samples, so learning rates do not depend on their number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from coursekit._validation import as_array, as_integer, as_number, one_of

Rate = float | np.ndarray | Callable[[int], float]
"""A number, an array that broadcasts against the points, or a schedule: a function of the step k = 1, 2, …"""
Points = Float[np.ndarray, "*runs d"]
State = Any


# --- methods ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optimizer:
    """``state = init(x)``; ``dx, state = update(g, state)``: pure functions of arrays of one shape (*runs, d)."""

    init: Callable[[np.ndarray], State]
    update: Callable[[np.ndarray, State], tuple[np.ndarray, State]]
    shape: tuple[int, ...]
    """What the array hyper-parameters broadcast to."""


def _rate(name: str, value: Rate, *, below: float = np.inf, zero: bool = False) -> Callable[[int], Any]:
    """The hyper-parameter as a function of the step, each of its values checked."""

    def checked(rate):
        try:
            rate = np.asarray(rate, dtype=float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be a number, an array or a schedule of numbers, got {rate!r}") from error
        ok = np.isfinite(rate) & (np.greater_equal(rate, 0) if zero else np.greater(rate, 0)) & np.less(rate, below)
        if not np.all(ok):
            least = "at least 0" if zero else "greater than 0"
            raise ValueError(f"{name} must be {least}{f' and below {below:g}' if below < np.inf else ''}, got {rate}")
        return rate

    if not callable(value):
        rate = checked(value)
        return lambda k: rate

    def scheduled(k):
        rate = checked(value(k))
        if rate.ndim:
            raise ValueError(f"{name} must be one number at each step of a schedule, got shape {rate.shape}")
        return rate

    return scheduled


def _scaled(a: np.ndarray, G: np.ndarray, eps: float) -> np.ndarray:
    """a/(√G + eps), and 0 where no gradient has been seen yet even for eps = 0."""
    root = np.sqrt(G) + eps
    return a / root if eps else np.divide(a, root, out=np.zeros_like(a), where=root > 0)


def _shape(*rates: Rate) -> tuple[int, ...]:
    return np.broadcast_shapes(*(np.shape(rate) for rate in rates if not callable(rate)))


def gradient_descent(lr: Rate) -> Optimizer:
    """Gradient descent, Δx = -lr g; with a schedule lr(k) and noisy gradients stochastic approximation.

    On an L-smooth convex function lr = 1/L gives f - f* ≤ L‖x₀ - x*‖²/(4T + 2) after T steps; with strong convexity
    μ, lr = 2/(L + μ) contracts the distance to the minimiser by (κ - 1)/(κ + 1) a step, κ = L/μ.

    Parameters
    ----------
    lr : float > 0, array broadcasting against the points (*runs, d), or schedule

    Raises ValueError if lr is not positive and finite.
    Source: Chertkov §3.3.1.  Taught in: notebook 03_03.
    """
    rate = _rate("lr", lr)
    return Optimizer(lambda x: 0, lambda g, k: (-rate(k + 1) * g, k + 1), _shape(lr))


def momentum(lr: Rate, beta: Rate) -> Optimizer:
    """Polyak's heavy ball, v ← βv + g, Δx = -lr v (for constant lr: x_{k+1} = x_k + β(x_k - x_{k-1}) - lr g_k).

    Stable on curvatures below 2(1 + β)/lr. Best on a quadratic: lr = 4/(√L + √μ)², √β = (√κ - 1)/(√κ + 1), which is
    then the rate; on other convex functions with these parameters it may cycle (see `lessard`).

    Parameters
    ----------
    lr, beta : as in `gradient_descent`; 0 ≤ beta < 1

    Source: Polyak, USSR Comput. Math. 4 (1964); Chertkov §3.3.3.  Taught in: notebook 03_03.
    """
    rate, keep = _rate("lr", lr), _rate("beta", beta, below=1, zero=True)

    def update(g, state):
        k, v = state[0] + 1, state[1]
        v = keep(k) * v + g
        return -rate(k) * v, (k, v)

    return Optimizer(lambda x: (0, np.zeros_like(x)), update, _shape(lr, beta))


def nesterov(lr: Rate, beta: Rate) -> Optimizer:
    """Nesterov's accelerated gradient: the heavy ball with the gradient taken at the point it is heading for.

    The points are those at which gradients are taken, as in torch.optim: x_k = y_{k-1} - lr g(y_{k-1}) is a gradient
    step away, y_k = x_k + β_k(x_k - x_{k-1}); so v ← β_k(v + g), Δy = -lr(g + v) after the k-th gradient g.
    With lr = 1/L: β_k = (k - 1)/(k + 2) gives f(x_k) - f* ≤ 2L‖x₀ - x*‖²/(k + 1)² on convex functions; constant
    β = (√κ - 1)/(√κ + 1) the linear rate 1 - 1/√κ (of f - f*) on strongly convex ones.

    Parameters
    ----------
    lr, beta : as in `gradient_descent`; 0 ≤ beta < 1. A schedule for beta needs a constant lr.

    Source: Nesterov, Soviet Math. Dokl. 27 (1983); Chertkov §3.3.3.  Taught in: notebook 03_03.
    """
    rate, keep = _rate("lr", lr), _rate("beta", beta, below=1, zero=True)

    def update(g, state):
        k, v = state[0] + 1, state[1]
        v = keep(k) * (v + g)
        return -rate(k) * (g + v), (k, v)

    return Optimizer(lambda x: (0, np.zeros_like(x)), update, _shape(lr, beta))


def adagrad(lr: Rate, eps: float = 1e-10) -> Optimizer:
    """AdaGrad, G ← G + g², Δx = -lr g/(√G + eps), coordinate by coordinate: the first step is lr, later ones shrink.

    Parameters
    ----------
    lr : as in `gradient_descent`
    eps : float ≥ 0

    Source: Duchi, Hazan and Singer, JMLR 12 (2011); Chertkov §3.3.5.  Taught in: notebook 03_03b.
    """
    rate, eps = _rate("lr", lr), as_number("eps", eps, low=0)

    def update(g, state):
        k, G = state[0] + 1, state[1] + g * g
        return -rate(k) * _scaled(g, G, eps), (k, G)

    return Optimizer(lambda x: (0, np.zeros_like(x)), update, _shape(lr))


def rmsprop(lr: Rate, beta: Rate = 0.99, eps: float = 1e-8) -> Optimizer:
    """RMSProp, G ← βG + (1 - β)g², Δx = -lr g/(√G + eps). Without bias correction the first step is lr/√(1 - β).

    Parameters
    ----------
    lr, beta : as in `gradient_descent`; 0 ≤ beta < 1
    eps : float ≥ 0

    Source: Tieleman and Hinton, Coursera lecture 6.5 (2012); Chertkov §3.3.5.  Taught in: notebook 03_03b.
    """
    rate, keep, eps = _rate("lr", lr), _rate("beta", beta, below=1, zero=True), as_number("eps", eps, low=0)

    def update(g, state):
        k, G = state[0] + 1, state[1]
        G = keep(k) * G + (1 - keep(k)) * g * g
        return -rate(k) * _scaled(g, G, eps), (k, G)

    return Optimizer(lambda x: (0, np.zeros_like(x)), update, _shape(lr, beta))


def adam(lr: Rate, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam: running means m of g and G of g², divided by 1 - βᵏ after k gradients, Δx = -lr m̂/(√Ĝ + eps).

    Without the correction both would start near zero. The first step is lr in every coordinate; no history of gradients
    makes one longer than lr (1 - β₁)/√((1 - β₂)(1 - β₁²/β₂)), 7.27 lr for the default values (if β₁² < β₂).

    Parameters
    ----------
    lr : as in `gradient_descent`
    beta1, beta2 : floats in [0, 1)
    eps : float ≥ 0

    Source: Kingma and Ba, ICLR (2015); Chertkov §3.3.5.  Taught in: notebook 03_03b.
    """
    rate, eps = _rate("lr", lr), as_number("eps", eps, low=0)
    for name, beta in {"beta1": beta1, "beta2": beta2}.items():
        if np.ndim(beta) or callable(beta):
            raise ValueError(f"{name} must be one number, got {beta!r}")
        _rate(name, beta, below=1, zero=True)
    b1, b2 = float(beta1), float(beta2)

    def update(g, state):
        k, m, G = state[0] + 1, b1 * state[1] + (1 - b1) * g, b2 * state[2] + (1 - b2) * g * g
        return -rate(k) * _scaled(m / (1 - b1**k), G / (1 - b2**k), eps), (k, m, G)

    return Optimizer(lambda x: (0, np.zeros_like(x), np.zeros_like(x)), update, _shape(lr))


# --- the loop -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """Points of an optimization: x (n_records + 1, *runs, d) after `steps` steps, the start included.

    `diverged` (*runs) holds the step at which a run left the finite numbers, -1 for the others; from there on its
    points are NaN.
    """

    x: Float[np.ndarray, "records *runs d"]
    steps: Int[np.ndarray, " records"]
    diverged: Int[np.ndarray, "*runs"]


def minimize(
    grad: Callable[[np.ndarray], np.ndarray],
    x0: Points,
    optimizer: Optimizer,
    n_steps: int,
    record_every: int = 1,
    *,
    projection: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Path:
    """Follow an optimizer from x0 for n_steps steps, all runs at once.

    Parameters
    ----------
    grad : callable
        Gradient or estimate of it, (*runs, d) → (*runs, d).
    x0 : (*runs, d) array
        Starts; broadcast against array hyper-parameters, so learning rates of shape (20, 1, 1) and starts of shape
        (100, d) make 20 × 100 runs.
    optimizer : Optimizer
    n_steps : int ≥ 1, a multiple of record_every
    record_every : int ≥ 1
        Memory is that of n_steps/record_every + 1 points a run.
    projection : callable, optional
        Applied after each step, e.g. `project_simplex`: projected gradient descent.

    A run that overflows does not disturb the others: its points are NaN from there on, and `Path.diverged` names the
    step. FloatingPointError if no run is left, with the step. ValueError for malformed input.
    Source: Chertkov §3.3.  Taught in: notebook 03_03.
    """
    x = as_array("x0", x0, ndim=range(1, 65))
    n_steps = as_integer("n_steps", n_steps, low=1)
    record_every = as_integer("record_every", record_every, low=1)
    if n_steps % record_every:
        raise ValueError(f"n_steps must be a multiple of record_every, got {n_steps} and {record_every}")
    try:
        shape = np.broadcast_shapes(x.shape, optimizer.shape)
    except ValueError:
        shape = ()
    if shape[-1:] != x.shape[-1:]:
        raise ValueError(
            f"hyper-parameters of shape {optimizer.shape} must broadcast against points of shape {x.shape}, "
            "their last axis being that of the points or 1"
        )
    x = np.array(np.broadcast_to(x, shape))
    path = np.empty((n_steps // record_every + 1, *x.shape))
    path[0], state, diverged = x, optimizer.init(x), np.full(x.shape[:-1], -1)
    lost = diverged[..., None] >= 0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for step in range(1, n_steps + 1):
            g = np.asarray(grad(x), dtype=float)
            if g.shape != x.shape:
                raise ValueError(f"grad must return an array of the shape of its argument, {x.shape}, got {g.shape}")
            dx, state = optimizer.update(g, state)
            new = x + dx
            if not np.isfinite(new).all():
                diverged[~np.isfinite(new).all(axis=-1) & (diverged < 0)] = step
                lost = diverged[..., None] >= 0
                if lost.all():
                    runs = "the run" if diverged.size == 1 else f"all {diverged.size} runs"
                    raise FloatingPointError(f"{runs} diverged, the last at step {step}: a smaller lr may help")
                new = np.where(lost, x, new)  # a lost run waits where it was, for the sake of grad and projection
            x = new if projection is None else projection(new)
            if step % record_every == 0:
                path[step // record_every] = np.where(lost, np.nan, x)
    return Path(path, np.arange(len(path)) * record_every, diverged)


def minibatch(
    per_sample_grad: Callable[[np.ndarray, np.ndarray], np.ndarray],
    n_samples: int,
    batch_size: int,
    *,
    replace: bool = True,
    rng: np.random.Generator | int | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """Stochastic gradient: at every call and for every run the mean of the gradients of a fresh random batch.

    Its mean is the gradient of the mean loss; its covariance S/B with replacement and (N - B)/(N - 1) S/B without,
    S the covariance of the N gradients.

    Parameters
    ----------
    per_sample_grad : callable
        (x (*runs, d), indices (*runs, B)) → gradients (*runs, B, d) of the named samples.
    n_samples, batch_size : ints, 1 ≤ B (≤ N without replacement)
    replace : bool
        Whether a sample may occur twice in a batch.
    rng : Generator, int or None

    Source: Robbins and Monro (1951); Chertkov §3.3.2; Cao §1.4.3.  Taught in: notebook 03_03b.
    """
    n_samples = as_integer("n_samples", n_samples, low=1)
    batch_size = as_integer("batch_size", batch_size, low=1, high=None if replace else n_samples)
    generator = np.random.default_rng(rng)

    def gradient(x):
        if replace:
            indices = generator.integers(n_samples, size=(*x.shape[:-1], batch_size))
        else:
            keys = generator.random((*x.shape[:-1], n_samples))
            indices = np.argpartition(keys, batch_size - 1, axis=-1)[..., :batch_size]
        return per_sample_grad(x, indices).mean(axis=-2)

    return gradient


# --- projections ----------------------------------------------------------------------------------------------


def project_simplex(v: Points, total: float = 1.0) -> Points:
    """Nearest points of {p ≥ 0, Σ p = total}, along the last axis: p = max(v - θ, 0) with θ found by sorting.

    Raises ValueError if v is not finite or total is not positive.
    Source: Held, Wolfe and Crowder, Math. Program. 6 (1974); Chertkov §3.3.4.  Taught in: notebook 03_03.
    """
    v, total = as_array("v", v, ndim=range(1, 65)), as_number("total", total, low=0, strict=True)
    v = v - v.max(axis=-1, keepdims=True)  # the same projection, and no digits lost where v is large
    descending = -np.sort(-v, axis=-1)
    # θ if exactly the k largest stay positive, for all k; the right k is the last one that keeps its own entry
    theta = (np.cumsum(descending, axis=-1) - total) / np.arange(1, v.shape[-1] + 1)
    kept = np.count_nonzero(descending > theta, axis=-1, keepdims=True)
    return np.maximum(v - np.take_along_axis(theta, kept - 1, axis=-1), 0.0)


def project_l1_ball(v: Points, radius: float = 1.0) -> Points:
    """Nearest points of {Σ|x| ≤ radius}, along the last axis: soft thresholding with the threshold that fits.

    Raises ValueError if v is not finite or radius is not positive.
    Source: Duchi et al., ICML (2008); Chertkov §3.3.4.  Taught in: notebook 03_03.
    """
    v, radius = as_array("v", v, ndim=range(1, 65)), as_number("radius", radius, low=0, strict=True)
    inside = np.abs(v).sum(axis=-1, keepdims=True) <= radius
    return np.where(inside, v, np.sign(v) * project_simplex(np.abs(v), radius))


# --- test functions -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """A function of points (*runs, d) with its gradient, and what theorems need to know of it."""

    value: Callable[[np.ndarray], np.ndarray]
    gradient: Callable[[np.ndarray], np.ndarray]
    minimizer: np.ndarray
    smoothness: float
    """L, the Lipschitz constant of the gradient (inf if there is none)."""
    strong_convexity: float
    """μ (0 if it is only convex, or not even that)."""


def quadratic(H: Float[np.ndarray, "d d"]) -> Objective:
    """f = ½ xᵀHx with H symmetric and positive semi-definite: L and μ are its extreme eigenvalues.

    Raises ValueError if H is not symmetric or has an eigenvalue below -1e-12 L.
    """
    H = as_array("H", H, ndim=2)
    if H.shape[0] != H.shape[1] or np.abs(H - H.T).max() > 1e-12 * np.abs(H).max():
        raise ValueError(f"H must be symmetric, got shape {H.shape}")
    eigenvalues = np.linalg.eigvalsh(H)
    if eigenvalues[0] < -1e-12 * abs(eigenvalues[-1]):
        raise ValueError(f"H must be positive semi-definite, got the eigenvalue {eigenvalues[0]:g}")
    return Objective(
        lambda x: 0.5 * np.einsum("...i,ij,...j->...", x, H, x),
        lambda x: x @ H,
        np.zeros(len(H)),
        float(eigenvalues[-1]),
        float(max(eigenvalues[0], 0.0)),
    )


def huber(tau: float | np.ndarray) -> Objective:
    """Huber's function summed over coordinates: x²/2 where |x| ≤ τ, τ|x| - τ²/2 beyond; L = 1.

    With τ = 1/(2T + 1) and x₀ = 1 gradient descent of step 1/L is exactly at the worst case L‖x₀‖²/(4T + 2) after T
    steps. tau broadcasts against the points. Source: Drori and Teboulle, Math. Program. 145 (2014).
    """
    if not np.all(np.greater(tau, 0)):
        raise ValueError(f"tau must be greater than 0, got {tau}")
    return Objective(
        lambda x: np.where(np.abs(x) <= tau, x * x / 2, tau * np.abs(x) - np.square(tau) / 2).sum(axis=-1),
        lambda x: np.clip(x, -np.asarray(tau), tau),
        np.zeros(1),
        1.0,
        0.0,
    )


def nesterov_worst(k: int, d: int) -> Objective:
    """The function no first-order method solves fast: f = ⅛[x₁² + Σ_{i<k}(x_i - x_{i+1})² + x_k² - 2x₁], L ≤ 1.

    Each gradient uncovers one more coordinate. From 0, after n ≤ (k - 1)/2 gradients f - f* ≥ 3L‖x*‖²/(32(n + 1)²)
    (k = 2n + 1), whatever the method that moves within the span of the gradients. Minimum -(1 - 1/(k + 1))/8 at
    x_i = 1 - i/(k + 1), i ≤ k; the other coordinates are free and 0 in `minimizer`.

    Raises ValueError unless 1 ≤ k ≤ d. Source: Nesterov, *Lectures on Convex Optimization* (2018), §2.1.2.
    """
    d = as_integer("d", d, low=1)
    k = as_integer("k", k, low=1, high=d)
    A = np.zeros((d, d))
    A[:k, :k] = 2 * np.eye(k) - np.eye(k, k=1) - np.eye(k, k=-1)
    e1 = np.eye(d)[0]
    minimizer = np.maximum(1 - np.arange(1, d + 1) / (k + 1), 0.0)
    return Objective(
        lambda x: (np.einsum("...i,ij,...j->...", x, A, x) - 2 * x[..., 0]) / 8,
        lambda x: (x @ A - e1) / 4,
        minimizer,
        float((1 - np.cos(k * np.pi / (k + 1))) / 2),
        0.0,
    )


def rosenbrock() -> Objective:
    """f = (1 - x₁)² + 100(x₂ - x₁²)²: one minimum, in a curved valley; not convex."""

    def gradient(x):
        residual = x[..., 1] - x[..., 0] ** 2
        return np.stack([2 * (x[..., 0] - 1) - 400 * x[..., 0] * residual, 200 * residual], axis=-1)

    return Objective(
        lambda x: (1 - x[..., 0]) ** 2 + 100 * (x[..., 1] - x[..., 0] ** 2) ** 2, gradient, np.ones(2), np.inf, 0.0
    )


def lessard() -> Objective:
    """Piecewise quadratic in one dimension with f′ = 25x (x < 1), x + 24 (1 ≤ x < 2), 25x - 24 (x ≥ 2); L = 25, μ = 1.

    The heavy ball with its best parameters for quadratics of these constants, lr = 1/9 and β = 4/9, ends in a cycle
    of three points. Source: Lessard, Recht and Packard, SIAM J. Optim. 26 (2016), §4.6.
    """

    def pieces(x, *functions):
        return np.select([x < 1, x < 2], [f(x) for f in functions[:2]], functions[2](x))

    return Objective(
        lambda x: pieces(
            x, lambda x: 12.5 * x**2, lambda x: x**2 / 2 + 24 * x - 12, lambda x: 12.5 * x**2 - 24 * x + 36
        ).sum(axis=-1),
        lambda x: pieces(x, lambda x: 25 * x, lambda x: x + 24, lambda x: 25 * x - 24),
        np.zeros(1),
        25.0,
        1.0,
    )


def iteration_matrix(
    method: Literal["momentum", "nesterov"],
    curvature: float | np.ndarray,
    lr: float | np.ndarray,
    beta: float | np.ndarray,
) -> Float[np.ndarray, "*shape 2 2"]:
    """Matrix that takes (x_k, x_{k-1}) to (x_{k+1}, x_k) on f = ½λx², for arrays of λ, lr, β that broadcast.

    Its spectral radius is the rate. Determinant β for the heavy ball, β(1 - lr λ) for Nesterov.
    Source: Lessard, Recht and Packard (2016), §3; Chertkov §3.3.3.  Taught in: notebook 03_03.
    """
    one_of("method", method, ("momentum", "nesterov"))
    step, keep = np.broadcast_arrays(np.multiply(lr, curvature), np.asarray(beta, dtype=float))
    M = np.zeros((*step.shape, 2, 2))
    shrink = 1.0 if method == "momentum" else 1 - step
    M[..., 0, 0] = 1 + keep - step if method == "momentum" else (1 + keep) * shrink
    M[..., 0, 1] = -keep * shrink
    M[..., 1, 0] = 1
    return M
