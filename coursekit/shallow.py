"""Classifiers with one hidden ReLU layer: loss and gradient for many networks at once, and their boundary, exactly."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from coursekit._validation import as_array, as_integer, as_number

Parameters = Float[np.ndarray, "*runs p"]


@dataclass(frozen=True, eq=False)
class ReluClassifier:
    """Networks f(x) = Σ_h a_h max(w_h·x + b_h, 0) + c of H hidden units, logits of class 1, on one data set.

    The parameters of a network are one vector θ = (w_1, b_1, …, w_H, b_H, a_1 … a_H, c) of length p = H(d + 2) + 1;
    leading axes are networks (seeds, learning rates). The loss is the mean of log(1 + e^{-sf}), s = ±1, in nats.
    At a kink the derivative of max is 0. Loss and gradient hold a few arrays of (*runs, H, n) numbers.

    Parameters
    ----------
    X : (n, d) array
    y : (n,) array of labels 0 and 1
    width : int ≥ 1
        H.

    Raises ValueError if the shapes do not match or a label is neither 0 nor 1.
    Source: Chertkov §3.3.5 (Example 3.3.1).  Taught in: notebook 03_03c.
    """

    X: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, " n"]
    width: int
    _lifted: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        X = as_array("X", self.X, ndim=2)
        y = as_array("y", self.y, ndim=1, shape=(len(X),))
        if not np.isin(y, (0, 1)).all():
            raise ValueError(f"y must hold the labels 0 and 1, got {np.unique(y)[:5]}")
        as_integer("width", self.width, low=1)
        for name, value in {"X": X.copy(), "y": y.copy(), "_lifted": np.column_stack([X, np.ones(len(X))])}.items():
            object.__setattr__(self, name, value)

    @property
    def n_parameters(self) -> int:
        return self.width * (self.X.shape[1] + 2) + 1

    def init(self, n_runs: int, scale: float = 0.5, rng: np.random.Generator | int | None = None) -> Parameters:
        """Starts (n_runs, p): weights w and a normal with standard deviation `scale`, biases b and c zero."""
        n_runs, scale = as_integer("n_runs", n_runs, low=1), as_number("scale", scale, low=0, strict=True)
        theta = scale * np.random.default_rng(rng).standard_normal((n_runs, self.n_parameters))
        W, _, _ = self._parts(theta)
        W[..., -1] = theta[..., -1] = 0.0
        return theta

    def _parts(self, theta):
        """Views of θ: [w_h, b_h] (*runs, H, d + 1), a (*runs, H), c (*runs,)."""
        theta = np.asarray(theta)
        H, d = self.width, self.X.shape[1]
        if np.ndim(theta) < 1 or theta.shape[-1] != self.n_parameters:
            raise ValueError(f"theta must have {self.n_parameters} parameters a network, got shape {np.shape(theta)}")
        W = theta[..., : H * (d + 1)].reshape(*theta.shape[:-1], H, d + 1)
        return W, theta[..., H * (d + 1) : -1], theta[..., -1]

    def _forward(self, theta, lifted):
        W, a, c = self._parts(theta)
        # one product for all networks; a product each would be ten times slower at this size
        hidden = (W.reshape(-1, lifted.shape[1]) @ lifted.T).reshape(*W.shape[:-1], len(lifted))
        np.maximum(hidden, 0.0, out=hidden)
        return hidden, (a[..., None, :] @ hidden)[..., 0, :] + c[..., None]

    def logits(self, theta: Parameters, X: Float[np.ndarray, "m d"] | None = None) -> Float[np.ndarray, "*runs m"]:
        """f at the rows of X (default: the data)."""
        lifted = self._lifted
        if X is not None:
            X = as_array("X", X, ndim=2, shape=(None, self.X.shape[1]))
            lifted = np.column_stack([X, np.ones(len(X))])
        return self._forward(theta, lifted)[1]

    def loss(self, theta: Parameters) -> Float[np.ndarray, "*runs"] | np.float64:
        """Mean logistic loss on the data, in nats."""
        return np.logaddexp(0.0, (1 - 2 * self.y) * self.logits(theta)).mean(axis=-1)

    def gradient(self, theta: Parameters) -> Parameters:
        """Gradient of the loss by back-propagation, in blocks of networks that stay in the processor's cache."""
        self._parts(theta)  # checks the length
        flat = np.reshape(theta, (-1, self.n_parameters))
        block = max(1, 50_000 // (self.width * len(self.y)))
        blocks = [self._backward(flat[i : i + block]) for i in range(0, len(flat), block)]
        return np.concatenate(blocks).reshape(np.shape(theta))

    def _backward(self, theta):
        W, a, _ = self._parts(theta)
        hidden, f = self._forward(theta, self._lifted)
        error = (expit(f) - self.y) / len(self.y)
        grad = np.empty(np.shape(theta))
        into_W, into_a, _ = self._parts(grad)
        grad[..., -1] = error.sum(axis=-1)
        into_a[...] = (hidden @ error[..., None])[..., 0]
        delta = (hidden > 0) * (a[..., None] * error[..., None, :])
        into_W[...] = (delta.reshape(-1, len(self.y)) @ self._lifted).reshape(W.shape)
        return grad

    def dead_units(self, theta: Parameters) -> Int[np.ndarray, "*runs"] | np.int64:
        """Number of hidden units that are zero on all of the data, and so have zero gradient."""
        return (self._forward(theta, self._lifted)[0].max(axis=-1) <= 0).sum(axis=-1)


@dataclass(frozen=True)
class Boundary:
    """The set f = 0 in the plane: corners, the segments between them, and rays to infinity."""

    corners: Float[np.ndarray, "n 2"]
    segments: Int[np.ndarray, "m 2"]
    """Pairs of corners."""
    rays: Float[np.ndarray, "r 2 2"]
    """Starting corner and unit direction."""

    @property
    def closed(self) -> bool:
        """Whether it consists of closed polygons only."""
        return len(self.segments) > 0 and len(self.rays) == 0


def decision_boundary(theta: Float[np.ndarray, " p"]) -> Boundary:
    """Exact zero set of one network in the plane: f is linear between the lines w_h·x + b_h = 0 on which it bends.

    Corners are the zeros of f on the bending lines, where it is a piecewise linear function of one variable. Every
    region between the lines is convex and holds one straight piece: two corners on its rim end a segment, one a ray.
    O(H³) operations.

    Parameters
    ----------
    theta : (4H + 1,) array, laid out as in `ReluClassifier`

    Raises ValueError if the length is not 4H + 1 with H ≥ 2, if a line is not defined (w_h = 0), if two lines are
    parallel or if f vanishes where two meet, up to rounding (for random parameters each has probability zero).
    Source: Chertkov §3.3.5 (Example 3.3.1).  Taught in: notebook 03_03c.
    """
    theta = as_array("theta", theta, ndim=1)
    H, rest = divmod(len(theta) - 1, 4)
    if rest or H < 2:
        raise ValueError(f"theta must have 4H + 1 entries for a network of H ≥ 2 units in the plane, got {len(theta)}")
    W, a, c = theta[: 3 * H].reshape(H, 3), theta[3 * H : -1], theta[-1]
    if not (norms := np.hypot(W[:, 0], W[:, 1])).all():
        raise ValueError(f"every hidden unit must depend on x, got w = 0 for unit {int(np.argmin(norms))}")
    _check_general_position(W, a, c, norms)

    corners: list[np.ndarray] = []
    region_corners: dict[tuple, list[tuple[int, int]]] = {}
    for h, (w, b) in enumerate(zip(W[:, :2], W[:, 2], strict=True)):
        for x in _zeros_on_line(-b * w / (w @ w), np.array([-w[1], w[0]]) / norms[h], W, a, c, skip=h):
            active = W @ np.append(x, 1) > 0
            for side in (True, False):
                active[h] = side
                region_corners.setdefault(tuple(active), []).append((len(corners), h))
            corners.append(x)
    segments, rays = [], []
    for active, found in region_corners.items():
        if len(found) == 2:
            segments.append([corner for corner, _ in found])
            continue
        ((corner, h),) = found
        slope = (a * active) @ W[:, :2]  # of f in this region
        along = np.array([-slope[1], slope[0]]) / np.hypot(*slope)
        inward = np.sign(along @ W[h, :2]) * (1 if active[h] else -1)
        rays.append([corners[corner], inward * along])
    return Boundary(
        np.reshape(corners, (-1, 2)), np.reshape(np.array(segments, dtype=int), (-1, 2)), np.reshape(rays, (-1, 2, 2))
    )


def _check_general_position(W, a, c, norms):
    i, j = np.triu_indices(len(a), 1)
    cross = W[i, 0] * W[j, 1] - W[i, 1] * W[j, 0]
    if (parallel := np.abs(cross) <= 1e-12 * norms[i] * norms[j]).any():
        first = np.argmax(parallel)
        raise ValueError(f"the lines of units {i[first]} and {j[first]} must not be parallel")
    meeting = np.stack([W[i, 1] * W[j, 2] - W[j, 1] * W[i, 2], W[j, 0] * W[i, 2] - W[i, 0] * W[j, 2], cross], axis=-1)
    hidden = np.maximum(meeting @ W.T / cross[:, None], 0.0)
    if (zero := np.abs(hidden @ a + c) <= 1e-12 * (hidden @ np.abs(a) + abs(c))).any():
        first = np.argmax(zero)
        raise ValueError(f"f must not vanish where the lines of units {i[first]} and {j[first]} meet")


def _zeros_on_line(point, direction, W, a, c, skip):
    """Zeros of f on a line: f is linear between the places where the other units switch."""
    offset, slope = W[:, :2] @ point + W[:, 2], W[:, :2] @ direction
    others = np.flatnonzero(np.arange(len(a)) != skip)
    others = others[np.argsort(-offset[others] / slope[others])]
    s = -offset[others] / slope[others]
    reach = 1 + np.abs(s).max(initial=0.0)
    s = np.array([-reach, reach]) if len(s) == 0 else np.array([s[0] - reach, *s, s[-1] + reach])
    hidden = np.maximum(offset[others] + np.outer(s, slope[others]), 0)
    np.fill_diagonal(hidden[1:-1], 0.0)  # where a unit switches; rounding would bend pieces that are constant
    f = hidden @ a[others] + c
    zeros = []
    for i in range(len(s) - 1):
        if f[i] == f[i + 1]:
            continue
        zero = s[i] - f[i] * (s[i + 1] - s[i]) / (f[i + 1] - f[i])
        # the outermost pieces go on to infinity
        if (zero > s[i] or i == 0) and (zero <= s[i + 1] or i == len(s) - 2):
            zeros.append(point + zero * direction)
    return zeros
