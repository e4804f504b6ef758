"""Stochastic differential equations: Brownian paths, Euler–Maruyama, Langevin dynamics, and the exact numbers they are
held against: Ornstein–Uhlenbeck steps, the Fokker–Planck generator, mean first-passage times.

Ensembles have shape (n_paths, d) and results are time-first, (n_times, n_paths, d). The temperature D multiplies the
noise: dX = -∇U dt + √(2D) dW has the stationary density e^{-U/D}/Z.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.integrate
import scipy.linalg
from jaxtyping import Float, Int

from coursekit._validation import as_array, as_integer, as_number, one_of

Seed = np.random.Generator | int | None
Ensemble = Float[np.ndarray, "n_paths d"]
Paths = Float[np.ndarray, "n_times n_paths d"]
Function = Callable[[Any], Any]


# --- paths --------------------------------------------------------------------------------------------------


def brownian(t: Float[np.ndarray, " n_times"], n_paths: int, dim: int = 1, *, rng: Seed = None) -> Paths:
    """Standard Brownian motion at the times t, exact in law: independent increments N(0, Δt I), and W = 0 at t = 0.

    Raises ValueError unless 0 ≤ t[0] < t[1] < …
    Source: Chertkov §7.3.1; Cao §1.2.  Taught in: notebook 07_03.
    """
    t = as_array("t", t, ndim=1)
    if t[0] < 0 or (np.diff(t) <= 0).any():
        raise ValueError("t must be increasing and not negative")
    shape = (len(t), as_integer("n_paths", n_paths, low=1), as_integer("dim", dim, low=1))
    steps = np.random.default_rng(rng).standard_normal(shape)
    steps *= np.sqrt(np.diff(t, prepend=0))[:, None, None]
    return np.cumsum(steps, axis=0, out=steps)


def ou_exact(
    x0: Ensemble, rate: float, temperature: float, t: Float[np.ndarray, " n_times"], *, rng: Seed = None
) -> Paths:
    """Ornstein–Uhlenbeck paths dX = -rate X dt + √(2 temperature) dW at the times t, exact in law, X(t[0]) = x0.

    Given x the law a time s later is N(e^{-rate s} x, temperature (1 - e^{-2 rate s})/rate). The rate may be zero
    (Brownian motion) or negative (paths that run away).

    Raises ValueError for times that do not increase or a negative temperature.
    Source: Chertkov §7.3.3, eq. (7.4); Cao §1.3.  Taught in: notebook 07_04.
    """
    x = as_array("x0", x0, ndim=2)
    rate, temperature = as_number("rate", rate), as_number("temperature", temperature, low=0)
    t, rng = _times(t), np.random.default_rng(rng)
    path = np.empty((len(t), *x.shape))
    path[0] = x
    for k, step in enumerate(np.diff(t)):
        decay, spread = _ou_step(rate, temperature, step)
        path[k + 1] = decay * path[k] + spread * rng.standard_normal(x.shape)
    return path


def _ou_step(rate, temperature, step):
    """Factor of x and standard deviation of the noise in one exact step."""
    variance = 2 * step if rate == 0 else -math.expm1(-2 * rate * step) / rate
    return math.exp(-rate * step), math.sqrt(temperature * variance)


def euler_maruyama(
    drift: Callable[[float, Any], Any],
    diffusion: Callable[[float, Any], Any] | float,
    x0: Ensemble,
    t: Float[np.ndarray, " n_grid"],
    *,
    record_every: int = 1,
    rng: Seed = None,
) -> Paths:
    """Itô equation dX = drift(t, X) dt + diffusion(t, X) dW, one Euler step between consecutive times.

    Strong order ½, order 1 for additive noise; weak order 1.

    Parameters
    ----------
    drift : callable, ``drift(t, x)`` maps (n_paths, d) to (n_paths, d)
    diffusion : callable to (n_paths, d), or float
        Each coordinate has its own Brownian motion.
    x0 : (n_paths, d)
    t : (n_steps + 1,) increasing times
    record_every : int ≥ 1
        Every so many steps are kept, and the start: (n_steps // record_every + 1, n_paths, d).
    rng : numpy Generator, int or None

    Raises ValueError for times that do not increase or a function of another shape; FloatingPointError, with the step,
    if the solution stops being finite.
    Source: Cao §1.3; Kloeden and Platen (1992).  Taught in: notebook 07_03.
    """
    t, rng = _times(t), np.random.default_rng(rng)

    def step(k, x, noise):
        slope = _checked("drift", drift(t[k], x), x.shape)
        scale = _checked("diffusion", diffusion(t[k], x), x.shape) if callable(diffusion) else diffusion
        h = t[k + 1] - t[k]
        x += slope * h + scale * (math.sqrt(h) * noise)

    return _simulate(step, as_array("x0", x0, ndim=2).copy(), len(t) - 1, record_every, rng)


def langevin(
    grad_U: Function,
    x0: Ensemble,
    dt: float,
    n_steps: int,
    *,
    temperature: float = 1.0,
    friction: float = math.inf,
    method: Literal["euler", "baoab"] = "euler",
    record_every: int = 1,
    rng: Seed = None,
) -> Paths:
    """Positions of Langevin dynamics in the potential U at temperature D.

    With infinite friction the overdamped equation dX = -∇U dt + √(2D) dW. With finite friction γ the velocities are
    simulated too, from their stationary law N(0, D): see `underdamped_langevin`. Either way the stationary density of
    the positions is e^{-U/D}/Z, up to the error of the method.

    Parameters
    ----------
    grad_U : callable, (n_paths, d) to (n_paths, d)
    x0 : (n_paths, d)
    dt : positive float
    n_steps : int ≥ 1
    temperature : float ≥ 0
    friction : positive float, infinite by default
    method : "euler" or "baoab"
        "euler" errs by O(dt) in stationary averages. "baoab" errs by O(dt²) and is exact for the positions in a
        quadratic U; with infinite friction it averages the noise of two steps (Leimkuhler and Matthews).
    record_every : int ≥ 1
        Every so many steps are kept, and the start: (n_steps // record_every + 1, n_paths, d).
    rng : numpy Generator, int or None

    Raises ValueError for parameters out of range or a gradient of another shape; FloatingPointError, with the step, if
    the path stops being finite: dt is then too large for the slope of U.
    Source: Chertkov §7.3.3, eq. (7.3); Leimkuhler and Matthews (2013).  Taught in: notebook 07_04.
    """
    one_of("method", method, ("euler", "baoab"))
    if friction != math.inf:
        temperature, rng = as_number("temperature", temperature, low=0), np.random.default_rng(rng)
        v0 = math.sqrt(temperature) * rng.standard_normal(np.shape(x0))
        return underdamped_langevin(
            grad_U,
            x0,
            v0,
            dt,
            n_steps,
            friction,
            temperature=temperature,
            method=method,
            record_every=record_every,
            rng=rng,
        )[0]
    dt, rng = as_number("dt", dt, low=0, strict=True), np.random.default_rng(rng)
    amplitude = math.sqrt(2 * as_number("temperature", temperature, low=0) * dt)
    x = as_array("x0", x0, ndim=2).copy()
    last = rng.standard_normal(x.shape) if method == "baoab" else None
    kick = np.empty_like(x)

    def step(k, x, noise):
        np.multiply(_checked("grad_U", grad_U(x), x.shape), -dt, out=kick)  # grad_U may return x itself: kept apart
        if last is None:
            noise *= amplitude
            np.add(kick, noise, out=kick)
        else:
            np.add(last, noise, out=last)
            np.multiply(last, 0.5 * amplitude, out=last)
            np.add(kick, last, out=kick)
            last[...] = noise
        x += kick

    return _simulate(step, x, n_steps, record_every, rng)


def underdamped_langevin(
    grad_U: Function,
    x0: Ensemble,
    v0: Ensemble,
    dt: float,
    n_steps: int,
    friction: float,
    *,
    temperature: float = 1.0,
    method: Literal["euler", "baoab"] = "baoab",
    record_every: int = 1,
    rng: Seed = None,
) -> tuple[Paths, Paths]:
    """Positions and velocities of dX = V dt, dV = -∇U dt - γ V dt + √(2γD) dW, with unit mass.

    "baoab" splits the equation: half a kick (B), half a drift (A), an exact Ornstein–Uhlenbeck step of V (O), and
    back. The stationary law is e^{-(U + |v|²/2)/D}, for the method up to O(dt²). Its clock needs γ dt well below 2:
    diffusion runs (γ dt/2) coth(γ dt/2) times too fast, 1.3 times at γ dt = 2.

    Parameters and errors as in `langevin`; v0 has the shape of x0, the friction γ is finite.
    Source: Leimkuhler and Matthews (2013); Cao §4.1.  Taught in: notebook 07_04c.
    """
    one_of("method", method, ("euler", "baoab"))
    x, rng = as_array("x0", x0, ndim=2), np.random.default_rng(rng)
    v = as_array("v0", v0, ndim=2, shape=x.shape)
    dt = as_number("dt", dt, low=0, strict=True)
    friction = as_number("friction", friction, low=0, strict=True)
    temperature = as_number("temperature", temperature, low=0)
    decay, spread = _ou_step(friction, friction * temperature, dt)
    slope = _checked("grad_U", grad_U(x), x.shape)

    def euler(k, state, noise):
        position, velocity = state
        kick = -dt * (_checked("grad_U", grad_U(position), position.shape) + friction * velocity)
        position += dt * velocity
        velocity += kick + math.sqrt(2 * friction * temperature * dt) * noise

    def baoab(k, state, noise):
        nonlocal slope
        position, velocity = state
        velocity -= 0.5 * dt * slope
        position += 0.5 * dt * velocity
        velocity *= decay
        velocity += spread * noise
        position += 0.5 * dt * velocity
        slope = _checked("grad_U", grad_U(position), position.shape)
        velocity -= 0.5 * dt * slope

    state = np.stack([x, v])
    path = _simulate(euler if method == "euler" else baoab, state, n_steps, record_every, rng)
    return path[:, 0], path[:, 1]


def _simulate(step, state, n_steps, record_every, rng):
    """Run step(k, state, noise), which changes state in place, and keep every record_every-th state."""
    n_steps, record_every = as_integer("n_steps", n_steps, low=1), as_integer("record_every", record_every, low=1)
    path = np.empty((n_steps // record_every + 1, *state.shape))
    path[0], noise = state, np.empty(state.shape[-2:])
    with np.errstate(over="ignore", invalid="ignore"):  # told once, with the step
        for k in range(n_steps):
            step(k, state, rng.standard_normal(out=noise))
            if not math.isfinite(state.sum()):
                raise FloatingPointError(f"the solution stops being finite at step {k + 1}: try a smaller time step")
            if (k + 1) % record_every == 0:
                path[(k + 1) // record_every] = state
    return path


def _checked(name, value, shape):
    value = np.asarray(value, dtype=float)
    if value.shape != shape:
        raise ValueError(f"{name} must map {shape} to {shape}, got {value.shape}")
    return value


def _times(t):
    t = as_array("t", t, ndim=1)
    if len(t) < 2 or (np.diff(t) <= 0).any():
        raise ValueError("t must hold at least two increasing times")
    return t


# --- crossings ----------------------------------------------------------------------------------------------


def first_passage_times(
    grad_U: Function,
    x0: Float[np.ndarray, " n_paths"],
    target: float,
    dt: float,
    n_steps: int,
    *,
    temperature: float = 1.0,
    rng: Seed = None,
) -> Float[np.ndarray, " n_paths"]:
    """Times at which overdamped Langevin paths on the line first reach `target`; NaN for those that have not.

    An Euler path sees its end points only. Between two of them on one side of the target, at distances a and b, the
    path has crossed with the probability e^{-ab/(D dt)} of a Brownian bridge, and is counted so; this removes the
    error O(√dt) and leaves O(dt). Paths that have arrived are simulated no longer.

    Parameters
    ----------
    grad_U : callable, (n,) to (n,)
    x0 : (n_paths,) starts
    target : float
    dt : positive float
    n_steps : int ≥ 1
        Longest time n_steps dt.
    temperature : positive float

    Raises ValueError and FloatingPointError as `langevin`.
    Source: Chertkov §7.3.3; Gobet, Stoch. Proc. Appl. 87 (2000).  Taught in: notebook 07_04.
    """
    x, rng = as_array("x0", x0, ndim=1).copy(), np.random.default_rng(rng)
    target, dt = as_number("target", target), as_number("dt", dt, low=0, strict=True)
    D = as_number("temperature", temperature, low=0, strict=True)
    times = np.where(x == target, 0.0, np.nan)
    running = np.flatnonzero(x != target)
    x = x[running] - target
    with np.errstate(over="ignore", invalid="ignore"):  # told once, with the step
        for k in range(as_integer("n_steps", n_steps, low=1)):
            if running.size == 0:
                break
            slope = _checked("grad_U", grad_U(x + target), x.shape)
            new = x - dt * slope + math.sqrt(2 * D * dt) * rng.standard_normal(x.shape)
            if not math.isfinite(new.sum()):
                raise FloatingPointError(f"the path stops being finite at step {k + 1}: try a smaller dt")
            # a product that is not positive gives a probability of at least one
            arrived = rng.standard_exponential(x.shape) > x * new / (D * dt)
            times[running[arrived]] = (k + 0.5) * dt
            running, x = running[~arrived], new[~arrived]
    return times


def count_transitions(x: Float[np.ndarray, "..."], low: float, high: float) -> Int[np.ndarray, "..."]:
    """Number of passages between {x ≤ low} and {x ≥ high} along the first axis, in both directions.

    Between the two levels a path belongs where it came from, so that it is not counted again each time it trembles;
    the number of crossings of one level has no limit as the time step goes to zero. x has shape (n_times, …), the
    result (…).

    Raises ValueError unless low < high.
    Source: Chertkov §7.3.3.  Taught in: notebook 07_04.
    """
    x = as_array("x", x, ndim=range(1, 9))
    low, high = as_number("low", low), as_number("high", high)
    if low >= high:
        raise ValueError(f"low must be below high, got {low:g} and {high:g}")
    side = np.where(x >= high, 1, np.where(x <= low, -1, 0))
    known = np.maximum.accumulate(np.where(side != 0, np.arange(len(x)).reshape(-1, *(1,) * (x.ndim - 1)), 0), axis=0)
    side = np.take_along_axis(side, known, axis=0)  # 0 until the first visit
    return np.asarray(((side[1:] * side[:-1]) == -1).sum(axis=0))


# --- the Fokker–Planck equation -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FokkerPlanck:
    """∂_t p = ∂_x(U' p) + D ∂²_x p on a uniform grid with reflecting ends, as a chain of jumps to neighbours."""

    x: Float[np.ndarray, " n"]
    stationary: Float[np.ndarray, " n"]
    """Density e^{-U/D}/Z, of integral 1 over the cells of the grid."""
    temperature: float

    @cached_property
    def _spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        h = self.x[1] - self.x[0]
        root = np.sqrt(self.stationary)
        ratio = root[1:] / root[:-1]
        out = np.concatenate([ratio, [0]]) + np.concatenate([[0], 1 / ratio])  # rates, in units of D/h²
        scale = self.temperature / h**2
        values, vectors = scipy.linalg.eigh_tridiagonal(scale * out, np.full(len(ratio), -scale))
        values[0] = 0.0  # the stationary law; rounding would let its mass grow
        return values, vectors

    @property
    def rates(self) -> Float[np.ndarray, " n"]:
        """Relaxation rates, ascending; the first is zero, the second is the spectral gap."""
        return self._spectrum[0]

    def modes(self, n_modes: int) -> Float[np.ndarray, "n_modes n"]:
        """The first eigenfunctions φ_k of the backward operator, φ_0 = 1, orthonormal in the stationary law.

        p(x, t) = π(x) Σ_k c_k e^{-λ_k t} φ_k(x) with c_k = ∫ p(x, 0) φ_k(x) dx and the `rates` λ_k; last values are
        positive. Where π is below about 1e-16 of its peak, rounding spoils them.
        """
        n_modes = as_integer("n_modes", n_modes, low=1, high=len(self.x))
        phi = self._spectrum[1][:, :n_modes].T / np.sqrt(self.stationary * (self.x[1] - self.x[0]))
        return phi * np.where(phi[:, -1:] < 0, -1, 1)

    def evolve(self, p0: Float[np.ndarray, " n"], t: Float[np.ndarray, " n_times"]) -> Float[np.ndarray, "n_times n"]:
        """Densities at the times t ≥ 0 from the density p0 at time 0, exact on the grid.

        Raises ValueError if p0 has another length, is negative, does not have integral 1 to 1e-8, or starts so far up
        the potential that rounding would exceed 1e-8 of it.
        """
        t, p0 = as_array("t", t, ndim=1), as_array("p0", p0, ndim=1, shape=self.x.shape)
        h = self.x[1] - self.x[0]
        if t.min() < 0:
            raise ValueError(f"t must not be negative, got {t.min():g}")
        if p0.min() < 0 or abs(p0.sum() * h - 1) > 1e-8:
            raise ValueError(f"p0 must be a density on the grid, got a least value {p0.min():g}, mass {p0.sum() * h:g}")
        values, vectors = self._spectrum
        root = np.sqrt(self.stationary)
        # rounding of p0/√π comes back times √π: a start far up the potential is lost in it
        if (lost := np.finfo(float).eps * (p0 / root).max() * root.max() / p0.max()) > 1e-8:
            raise ValueError(f"p0 lies where the stationary density is too small, the error would be {lost:.1g} of it")
        part = vectors.T @ (p0 / root)
        return (np.exp(-values * t[:, None]) * part) @ vectors.T * root


def fokker_planck_1d(U: Function, D: float, grid: Float[np.ndarray, " n"]) -> FokkerPlanck:
    """Discretise dX = -U'(X) dt + √(2D) dW by jumps i → i ± 1 at the rates (D/h²) e^{-(U_{i±1} - U_i)/2D}.

    The rates satisfy detailed balance with e^{-U/D} exactly, keep mass and positivity, and err by O(h²).

    Parameters
    ----------
    U : callable, (n,) to (n,)
    D : positive float
    grid : (n,) uniform, at least three points
        Wide enough that e^{-U/D} is negligible at the ends, which reflect.

    Raises ValueError for a grid that is not uniform, a potential of another shape or a variation
    of more than 600 D.
    Source: Chertkov §7.3.3; Cao §4.3.  Taught in: notebook 07_04b.
    """
    x, D = as_array("grid", grid, ndim=1), as_number("D", D, low=0, strict=True)
    h = np.diff(x)
    if len(x) < 3 or h[0] <= 0 or np.abs(h - h[0]).max() > 1e-8 * h[0]:
        raise ValueError("grid must be uniform and increasing, with at least three points")
    potential = as_array("U", _checked("U", U(x), x.shape), ndim=1)
    exponent = (potential.min() - potential) / D
    if exponent.min() < -600:
        raise ValueError(f"U/D must vary by at most 600 over the grid, got {-exponent.min():.4g}: take a narrower grid")
    weight = np.exp(exponent)
    return FokkerPlanck(x, weight / (weight.sum() * h[0]), D)


def mfpt(U: Callable[[float], float], D: float, a: float, b: float) -> float:
    """Mean first-passage time from a to b of dX = -U'(X) dt + √(2D) dW on the line, by quadrature.

    T = (1/D) ∫_a^b dy e^{U(y)/D} ∫_{-∞}^y dz e^{-U(z)/D} for a < b, and its mirror image for a > b; U must grow on
    the far side of a, so that paths come back. The relative error is about 1e-8.

    Raises ValueError if D is not positive, FloatingPointError if the integral does not converge or an exponent exceeds
    700.
    Source: Chertkov §7.3.3; Gardiner, Handbook of Stochastic Methods, §5.2.7.  Taught in: notebook 07_04.
    """
    a, b, D = as_number("a", a), as_number("b", b), as_number("D", D, low=0, strict=True)
    if a == b:
        return 0.0
    sign = 1.0 if a < b else -1.0

    def weight(z, top):
        exponent = (top - U(sign * z)) / D
        if exponent > 700:
            raise FloatingPointError(
                f"the time is too long for a float, or U does not grow beyond a (at {sign * z:.3g})"
            )
        return math.exp(exponent)

    def inner(y):
        top = U(sign * y)
        pieces = ((-math.inf, start), (start, y)) if y > start else ((-math.inf, y),)
        return sum(_quadrature(lambda z: weight(z, top), *piece) for piece in pieces)

    start = sign * a
    return _quadrature(inner, start, sign * b) / D


def _quadrature(f, a, b):
    value, error = scipy.integrate.quad(f, a, b, epsabs=0, epsrel=1e-9, limit=500)
    if not (math.isfinite(value) and value > 0 and error <= 1e-6 * value):
        raise FloatingPointError(f"the integral over ({a:.4g}, {b:.4g}) does not converge: does U grow on that side?")
    return value
