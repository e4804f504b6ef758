"""Initial value problems x' = f(t, x): Runge–Kutta methods with fixed and adaptive steps, leapfrog, linear systems.

`odeint`, `solve_adaptive` and `leapfrog` take numpy arrays or torch tensors, and give back what they were given;
gradients flow through every step. This module does not import torch.
"""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import numpy as np
import scipy.integrate
import scipy.linalg
from jaxtyping import Float, Inexact

from coursekit._validation import as_array, as_integer, as_number, one_of

State = Any
"""A numpy array or a torch tensor; torch is not named, so that it need not be imported."""
Field = Callable[[float, State], State]


@dataclass(frozen=True)
class Tableau:
    """Coefficients of an explicit Runge–Kutta method: kᵢ = f(t + cᵢh, x + h Σⱼ aᵢⱼkⱼ), x(t + h) ≈ x + h Σᵢ bᵢkᵢ."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]


_DOPRI5 = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
TABLEAUS = {
    "euler": Tableau(((),), (1,), (0,)),
    "midpoint": Tableau(((), (1 / 2,)), (0, 1), (0, 1 / 2)),
    "heun": Tableau(((), (1,)), (1 / 2, 1 / 2), (0, 1)),
    "rk4": Tableau(((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0, 1 / 2, 1 / 2, 1)),
    "dopri5": Tableau(_DOPRI5, (*_DOPRI5[-1], 0), (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)),
}
FIXED = ("euler", "midpoint", "heun", "rk4")
ADAPTIVE = ("dopri5", "rk4_doubling")
# of the fifth-order result minus the embedded fourth-order one, and of x(t + h/2) to fourth order (Shampine 1986)
_DOPRI5_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_DOPRI5_MIDDLE = (
    6025192743 / 60171106304,
    0,
    51252292925 / 130801643196,
    -2691868925 / 90256659456,
    187940372067 / 3189068634112,
    -1776094331 / 39487288512,
    11237099 / 470086768,
)


def odeint(
    f: Field,
    x0: State,
    t: Sequence[float] | Any,
    method: str = "rk4",
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
) -> State:
    """Solution of x' = f(t, x), x(t[0]) = x0 at the times t.

    Parameters
    ----------
    f : callable
        ``f(t, x)`` with a float t and x of the shape of x0 returns a new array of that shape.
    x0 : numpy array or torch tensor of any shape
        Leading axes are as good as any: a batch of starts is solved at once. numpy arrays become float64 (or stay
        complex); a tensor keeps its dtype and device, and the result is differentiable.
    t : (n_times,) increasing
        The methods "euler", "midpoint", "heun" (orders 1, 2, 2) and "rk4" (order 4) make one step from each time to
        the next. "dopri5" (Dormand and Prince, order 5) and "rk4_doubling" choose their own steps and interpolate.
    rtol, atol : floats
        Of the adaptive methods: a step's estimated error is kept below atol + rtol |x|, root mean square over x.

    Returns
    -------
    array or tensor (n_times, *x0.shape)

    Raises ValueError for fewer than two or non-increasing times (to go back in time solve for -f(T - s, x)), an unknown
    method, or an f that returns another shape; FloatingPointError, with the step, if the solution stops being finite.
    Source: Chertkov §4.2.2; Cao §1.4.2 and §2.3.  Taught in: notebook 04_04.
    """
    one_of("method", method, (*FIXED, *ADAPTIVE))
    times = _times(t)
    if method in ADAPTIVE:
        return solve_adaptive(f, x0, times[0], times[-1], method=method, rtol=rtol, atol=atol)(times)
    x, tableau = _state("x0", x0), TABLEAUS[method]
    path = [x]
    with np.errstate(over="ignore", invalid="ignore"):  # told once, with the step, below
        for start, end in itertools.pairwise(times):
            path.append(runge_kutta_step(tableau, f, start, path[-1], end - start))
    result = _namespace(x).stack(path)
    _check_finite(result, times)
    return result


def runge_kutta_step(tableau: Tableau, f: Field, t: float, x: State, h: float, slope: State | None = None) -> State:
    """x(t + h) by one step of an explicit Runge–Kutta method; h may be negative. `slope` is f(t, x), if it is known."""
    stages: list[State] = [_evaluate(f, t, x) if slope is None else slope]
    for a, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
        stages.append(_evaluate(f, t + c * h, _combine(x, h, a, stages)))
    return _combine(x, h, tableau.b, stages)


def _combine(x, h, weights, stages):
    """x + h Σ wᵢkᵢ."""
    for weight, k in zip(weights, stages, strict=True):
        if weight:
            # one kernel instead of two where the library has it: at the size of a small network this is half the time
            x = x + (h * weight) * k if isinstance(k, _NUMPY) else x.add(k, alpha=h * weight)
    return x


def _evaluate(f, t, x):
    k = f(t, x)
    if isinstance(x, _NUMPY):
        k = np.asarray(k)
    elif not isinstance(k, type(x)) and not hasattr(k, "add"):
        raise ValueError(f"f must return a tensor as x is, got {type(k).__name__}")
    elif k.dtype != x.dtype:
        raise ValueError(f"f(t, x) must have the dtype {x.dtype} of x, got {k.dtype}")
    if k.shape != x.shape:
        raise ValueError(f"f(t, x) must have the shape {tuple(x.shape)} of x, got {tuple(k.shape)}")
    return k


@dataclass(frozen=True, eq=False)
class DenseSolution:
    """A solution between t[0] and t[-1]: call it with times (n,) and get (n, *x0.shape).

    Between two steps it is the polynomial of degree four through both ends, their slopes and the middle.
    """

    t: Float[np.ndarray, " n_times"]
    """Where the accepted steps end."""
    x: State
    """Values there, (n_steps + 1, *x0.shape)."""
    n_rejected: int
    n_evaluations: int
    _polynomials: State = field(repr=False)

    def __call__(self, times: Sequence[float] | Any) -> State:
        s = as_array("times", _listed(times), ndim=1)
        if s.min() < self.t[0] or s.max() > self.t[-1]:
            raise ValueError(f"times must lie between {self.t[0]:g} and {self.t[-1]:g}, got {s.min():g} to {s.max():g}")
        step = np.clip(np.searchsorted(self.t, s, side="right") - 1, 0, len(self.t) - 2)
        theta = _like((s - self.t[step]) / np.diff(self.t)[step], self.x)
        value = self._polynomials[0][step]
        for coefficients in self._polynomials[1:]:
            value = value * theta + coefficients[step]
        return value


def solve_adaptive(
    f: Field,
    x0: State,
    t0: float,
    t1: float,
    *,
    method: str = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_steps: int = 100_000,
) -> DenseSolution:
    """Solution of x' = f(t, x), x(t0) = x0 up to t1, with steps as long as the tolerance allows.

    A step h is accepted if the root mean square of (error estimate)/(atol + rtol max(|x(t)|, |x(t + h)|)) is at most 1;
    the next is 0.9 (estimate)^(-1/5) times as long, a factor kept within [0.2, 5], and at most 1 after a rejection.
    "dopri5" estimates the error by an embedded method of order 4 (6 evaluations a step); "rk4_doubling" compares a step
    of RK4 with two of half the length, error = (x_half - x_full)/15, and adds the estimate to x_half (11 evaluations).
    Step lengths are treated as constants when torch differentiates the solution.

    Parameters
    ----------
    f, x0, rtol, atol : as in `odeint`
    t0, t1 : floats, t0 < t1

    Raises ValueError as `odeint` does; FloatingPointError, with the time, if the step length falls to rounding (the
    solution blows up, or f jumps) or if t1 is not reached in `max_steps` steps (then the problem may be stiff).
    Source: Dormand and Prince (1980); Shampine (1986); Chertkov §4.2.2.  Taught in: notebook 04_04.
    """
    attempt = {"dopri5": _dopri5_attempt, "rk4_doubling": _doubling_attempt}[one_of("method", method, ADAPTIVE)]
    t0, t1 = _times([t0, t1])
    rtol, atol = as_number("rtol", rtol, low=0), as_number("atol", atol, low=0)
    if rtol == atol == 0:
        raise ValueError("rtol or atol must be positive, got 0 for both")
    x = _state("x0", x0)
    n_evaluations = 0

    def counted(t, x):
        nonlocal n_evaluations
        n_evaluations += 1
        return _evaluate(f, t, x)

    t, slope, n_rejected, grow = t0, counted(t0, x), 0, 5.0
    if not _namespace(x).isfinite(slope).all():
        raise FloatingPointError(f"f is not finite at t = {t0:g}")
    times, values, slopes = [t], [x], [slope]
    middles: list[State] = []
    h = _first_step(counted, t, x, slope, t1 - t0, rtol, atol)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        while t < t1:
            if len(middles) + n_rejected == max_steps:
                raise FloatingPointError(f"t = {t:.6g} of {t1:g} after {max_steps} steps: the problem may be stiff")
            if not h >= 16 * np.spacing(max(abs(t), abs(t1))):
                raise FloatingPointError(
                    f"no step from t = {t:.6g} meets the tolerance: the solution blows up there, or f jumps"
                )
            last = t + 1.01 * h >= t1  # no last step of the length of a rounding error
            h = t1 - t if last else h
            new, middle, new_slope, error = attempt(counted, t, x, slope, h)
            size = _scaled_norm(error, x, new, rtol, atol)
            accepted = size <= 1  # False for NaN
            if accepted:
                t, x, slope = t1 if last else t + h, new, new_slope
                times.append(t)
                values.append(x)
                slopes.append(slope)
                middles.append(middle)
            else:
                n_rejected += 1
            factor = 0.9 * size**-0.2 if size > 0 else 5.0
            h *= min(grow, max(0.2, factor)) if math.isfinite(size) else 0.2
            grow = 5.0 if accepted else 1.0  # after a rejection the next step does not grow
    stack = _namespace(x).stack
    path = stack(values)
    polynomials = _quartics(np.diff(times), path, stack(slopes), stack(middles))
    return DenseSolution(np.array(times), path, n_rejected, n_evaluations, polynomials)


def _dopri5_attempt(f, t, x, slope, h):
    tableau, stages = TABLEAUS["dopri5"], [slope]
    for a, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
        new = _combine(x, h, a, stages)
        stages.append(f(t + c * h, new))  # the last stage is the first of the next step
    middle = _combine(x, h, _DOPRI5_MIDDLE, stages)
    return new, middle, stages[-1], _combine(0 * x, h, _DOPRI5_ERROR, stages)


def _doubling_attempt(f, t, x, slope, h):
    rk4 = TABLEAUS["rk4"]
    full = runge_kutta_step(rk4, f, t, x, h, slope)
    middle = runge_kutta_step(rk4, f, t, x, h / 2, slope)
    half = runge_kutta_step(rk4, f, t + h / 2, middle, h / 2)
    error = (half - full) / 15
    new = half + error
    return new, middle, f(t + h, new), error


def _quartics(lengths, x, slopes, middle):
    """Coefficients in θ = (t - t₀)/h, highest power first, from values at θ = 0, ½, 1 and slopes at 0 and 1."""
    h = _like(lengths, x)
    x0, x1, d0, d1 = x[:-1], x[1:], h * slopes[:-1], h * slopes[1:]
    return _namespace(x).stack(
        [
            2 * (d1 - d0) - 8 * (x0 + x1) + 16 * middle,
            5 * d0 - 3 * d1 + 18 * x0 + 14 * x1 - 32 * middle,
            d1 - 4 * d0 - 11 * x0 - 5 * x1 + 16 * middle,
            d0,
            x0,
        ]
    )


def _like(numbers, x):
    """One number for each entry of the first axis of x, to multiply with it."""
    numbers = numbers.reshape(-1, *[1] * (x.ndim - 1))
    return numbers if isinstance(x, np.ndarray) else x.new_tensor(numbers)


def _scaled_norm(error, x0, x1, rtol, atol) -> float:
    lib = _namespace(x0)
    scale = atol + rtol * lib.maximum(abs(x0), abs(x1))
    if lib is not np:
        error, scale = error.detach(), scale.detach()
    ratio = abs(error) / scale
    ratio = lib.where(error == 0, abs(error), ratio) if atol == 0 else ratio  # 0/0 where x stays at zero
    return float((ratio**2).mean() ** 0.5)


def _first_step(f, t, x, slope, length, rtol, atol) -> float:
    """Hairer, Nørsett and Wanner, Solving Ordinary Differential Equations I, §II.4."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        size, speed = (_scaled_norm(v, x, x, rtol, atol) for v in (x, slope))
        h = 0.01 * size / speed if min(size, speed) > 1e-5 and math.isfinite(speed) else 1e-6
        h = min(h, length)
        bend = _scaled_norm(f(t + h, _combine(x, h, (1,), [slope])) - slope, x, x, rtol, atol) / h
    largest = max(speed, bend)
    if not math.isfinite(largest):  # no scale: x is zero, and the tolerance relative
        return h
    return min(100 * h, (0.01 / largest) ** 0.2 if largest > 1e-15 else max(1e-6, 1e-3 * h), length)


def stability_function(method: str, z: Inexact[np.ndarray, "..."] | complex) -> Inexact[np.ndarray, "..."] | complex:
    """R(z) of a Runge–Kutta method: one step of x' = λx multiplies x by R(hλ), where the flow multiplies it by e^z.

    R(z) = 1 + Σⱼ bᵀAʲ1 z^{j+1}, a polynomial; the method is stable for |R| ≤ 1. Decay and frequency that a method
    shows are -Re ln R/h and Im ln R/h.

    Raises ValueError if the method is unknown.
    Source: Chertkov §4.2.2.  Taught in: notebook 04_04.
    """
    tableau = TABLEAUS[one_of("method", method, tuple(TABLEAUS))]
    A = np.array([[*row, *[0.0] * (len(tableau.a) - len(row))] for row in tableau.a])
    moments = [np.ones(len(A))]
    for _ in range(len(A) - 1):
        moments.append(A @ moments[-1])
    return np.polynomial.polynomial.polyval(z, [1.0, *(np.dot(tableau.b, moment) for moment in moments)])


def leapfrog(grad_U: Callable[[State], State], x: State, v: State, dt: float, n_steps: int) -> tuple[State, State]:
    """Velocity Verlet for x'' = -∇U(x): order 2, reversible, volume preserving; energy stays within O(dt²).

    Parameters
    ----------
    grad_U : callable
        ``grad_U(x)`` of the shape of x; n_steps + 1 calls.
    x, v : numpy arrays or torch tensors of one shape
        Positions and velocities; leading axes are a batch.
    dt : float, not 0
    n_steps : int ≥ 1

    Returns
    -------
    xs, vs : (n_steps + 1, *x.shape)

    Raises ValueError if the shapes do not match; FloatingPointError, with the step, if the path stops being finite.
    Source: Chertkov §2.2; Verlet (1967).
    """
    dt, n_steps = as_number("dt", dt), as_integer("n_steps", n_steps, low=1)
    if dt == 0:
        raise ValueError("dt must not be 0")
    x, v = _state("x", x), _state("v", v)
    if x.shape != v.shape:
        raise ValueError(f"v must have the shape {tuple(x.shape)} of x, got {tuple(v.shape)}")
    force = lambda x: -_evaluate(lambda _, x: grad_U(x), 0.0, x)  # noqa: E731
    xs, vs, a = [x], [v], force(x)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(n_steps):
            v = v + 0.5 * dt * a
            x = x + dt * v
            a = force(x)
            v = v + 0.5 * dt * a
            xs.append(x)
            vs.append(v)
    lib = _namespace(x)
    positions, velocities = lib.stack(xs), lib.stack(vs)
    _check_finite(positions + velocities, dt * np.arange(n_steps + 1))
    return positions, velocities


def linear_flow(
    A: Float[np.ndarray, "n n"],
    x0: Float[np.ndarray, "*batch n"],
    t: Float[np.ndarray, " n_times"] | Sequence[float],
    b: Float[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, "n_times *batch n"]:
    """Exact solution of x' = Ax + b, x(0) = x0 at the times t, in any order, also before 0.

    e^{tM} of the augmented matrix M = [[A, b], [0, 0]] serves a singular or defective A as well, where
    A⁻¹(e^{tA} - I)b and eigenvectors do not.

    Raises ValueError if the shapes do not match; FloatingPointError if e^{tM} overflows.
    Source: Chertkov §2.3.2.  Taught in: notebook 04_04.
    """
    A = as_array("A", A, ndim=2)
    n = len(A)
    A = as_array("A", A, ndim=2, shape=(n, n))
    x0 = as_array("x0", x0, ndim=range(1, 65))
    if x0.shape[-1] != n:
        raise ValueError(f"x0 must have {n} entries along its last axis, got shape {x0.shape}")
    times = as_array("t", t, ndim=1)
    M = np.zeros((n + 1, n + 1))
    M[:n, :n] = A
    if b is not None:
        M[:n, n] = as_array("b", b, ndim=1, shape=(n,))
    with np.errstate(over="ignore", invalid="ignore"):
        flow = scipy.linalg.expm(times[:, None, None] * M)
        x = np.einsum("tij,...j->t...i", flow[:, :n, :n], x0)
    x += flow[:, :n, n].reshape(len(times), *[1] * (x0.ndim - 1), n)
    _check_finite(x, times)
    return x


def magnus(
    A: Callable[[float], Any], t0: float, t1: float, n_steps: int, order: Literal[2, 4] = 4
) -> Inexact[np.ndarray, "n n"]:
    """Propagator U(t1, t0) of x' = A(t)x, the time-ordered exponential, by exponentials of Magnus' series.

    Order 2: e^{hA(t + h/2)} a step. Order 4: e^Ω, Ω = h/2 (A₁ + A₂) + √3/12 h² [A₂, A₁] with A₁, A₂ at the Gauss nodes
    t + (½ ∓ √3/6)h. Later times stand to the left. U has the determinant exp ∫ tr A, and is unitary if A is
    anti-Hermitian, to rounding.

    Parameters
    ----------
    A : callable
        ``A(t)``: a real or complex (n, n) array.
    t0, t1 : floats
        Backward if t1 < t0.
    n_steps : int ≥ 1

    Raises ValueError if A does not return one square matrix shape, or for an unknown order; FloatingPointError if the
    product overflows.
    Source: Chertkov §2.3.4; Cao §1.2; Iserles and Nørsett (1999).
    """
    h, start, _ = _grid(t0, t1, n_steps)
    if order not in (2, 4):
        raise ValueError(f"order must be 2 or 4, got {order!r}")
    if order == 2:
        omega = h * _sampled(A, start + h / 2)
    else:
        first, second = (_sampled(A, start + (0.5 + sign * math.sqrt(3) / 6) * h) for sign in (-1, 1))
        commutator = second @ first - first @ second
        omega = 0.5 * h * (first + second) + math.sqrt(3) / 12 * h**2 * commutator
    U = np.eye(omega.shape[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        for factor in scipy.linalg.expm(omega):
            U = factor @ U
    _check_finite(U[None], np.array([t1]))
    return U


def dyson(
    A: Callable[[float], Any], t0: float, t1: float, order: int, n_steps: int = 1000
) -> Inexact[np.ndarray, "{order}+1 n n"]:
    """Terms ∫ A(t₁) ∫ A(t₂) … of the Dyson (Peano–Baker) series of U(t1, t0), k = 0 … order; their sum tends to U.

    The k-th term is at most (∫‖A‖)ᵏ/k!. The nested integrals are cumulative ones, Simpson's rule with n_steps
    intervals: O(n_steps order) products, error O(h³) a term.

    Parameters and errors as in `magnus`; order ≥ 0.
    Source: Chertkov §2.3.4; Cao §1.2.
    """
    order = as_integer("order", order, low=0)
    h, start, end = _grid(t0, t1, n_steps)
    values = _sampled(A, np.append(start, end))
    term = np.broadcast_to(np.eye(values.shape[-1]), values.shape)
    terms = [term[-1]]
    for _ in range(order):
        integrand = values @ term
        parts = [integrand.real, integrand.imag] if np.iscomplexobj(integrand) else [integrand]
        sums = [scipy.integrate.cumulative_simpson(part, dx=abs(h), axis=0, initial=0) for part in parts]
        term = math.copysign(1, h) * (sums[0] if len(sums) == 1 else sums[0] + 1j * sums[1])
        terms.append(term[-1])
    return np.array(terms)


def _grid(t0, t1, n_steps):
    t0, t1, n_steps = as_number("t0", t0), as_number("t1", t1), as_integer("n_steps", n_steps, low=1)
    h = (t1 - t0) / n_steps
    return h, t0 + h * np.arange(n_steps), t1


def _sampled(A, times):
    values = [np.asarray(A(float(time))) for time in times]
    shape = values[0].shape
    if len(shape) != 2 or shape[0] != shape[1] or any(value.shape != shape for value in values):
        raise ValueError(f"A(t) must be square matrices of one size, got shapes {sorted({v.shape for v in values})}")
    return np.stack(values)


_NUMPY = (np.ndarray, np.generic)  # the sum of two arrays without axes is a np.generic


def _namespace(x: State) -> ModuleType:
    return np if isinstance(x, _NUMPY) else sys.modules["torch"]


def _state(name: str, x: State) -> State:
    """A numpy array of floats (or complex), or the tensor as it is; finite."""
    torch = sys.modules.get("torch")  # a tensor can only come from a torch that is already imported
    if torch is not None and isinstance(x, torch.Tensor):
        if not (x.is_floating_point() or x.is_complex()):
            raise ValueError(f"{name} must be a tensor of floating-point numbers, got {x.dtype}")
        if not torch.isfinite(x).all():
            raise ValueError(f"{name} must be finite")
        return x
    if np.iscomplexobj(x):
        parts = [as_array(name, part, ndim=range(65)) for part in (np.real(x), np.imag(x))]
        return np.asarray(parts[0] + 1j * parts[1])
    return as_array(name, x, ndim=range(65))


def _listed(times):
    return times.tolist() if hasattr(times, "tolist") else times  # also of a tensor on an accelerator


def _times(t) -> list[float]:
    times = as_array("t", _listed(t), ndim=1)
    if len(times) < 2:
        raise ValueError(f"t must have at least two times, got {len(times)}")
    if (late := np.flatnonzero(np.diff(times) <= 0)).size:
        k = late[0]
        raise ValueError(f"t must increase, got t[{k}] = {times[k]:g} and t[{k + 1}] = {times[k + 1]:g}")
    return times.tolist()


def _check_finite(path: State, times: Sequence[float] | np.ndarray) -> None:
    """Raise at the first time at which the path is not finite; once infinite or NaN, a sum x + hk stays so."""
    lib = _namespace(path)
    path = path if lib is np else path.detach()
    finite = lib.isfinite(path).reshape(len(path), -1)
    if not finite.all():
        step = int(np.argmin(np.asarray([bool(row.all()) for row in finite])))
        raise FloatingPointError(f"the solution is not finite at t = {times[step]:.6g} (step {step})")
