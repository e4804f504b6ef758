"""Difference quotients: what derivatives are checked with, and what they cost."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float

from coursekit._validation import as_array, as_number, one_of
from coursekit.autodiff._derivatives import basis, grad

EPS = np.finfo(float).eps


def finite_difference(
    f: Callable,
    x: Float[np.ndarray, "..."],
    h: float | None = None,
    scheme: Literal["central", "forward", "complex"] = "central",
) -> Float[np.ndarray, "..."]:
    """Jacobian (for scalar f the gradient) from differences along the coordinates, shape (*f(x).shape, *x.shape).

    With δ a bound on the error of one evaluation of f, in float64 at least 1.1e-16 |f|:

    - forward, (f(x + h e) - f(x))/h: n + 1 evaluations, error h|f″|/2 + 2δ/h, least at h = 2(δ/|f″|)^½;
    - central, (f(x + h e) - f(x - h e))/2h: 2n evaluations, error h²|f‴|/6 + δ/h, least at h = (3δ/|f‴|)^⅓;
    - complex, Im f(x + ih e)/h: n evaluations, error h²|f‴|/6 and no cancellation; f must be analytic and
      written for complex arrays.

    Parameters
    ----------
    f : callable
        Maps an array of the shape of x to an array or number.
    x : array or number
    h : float > 0, optional
        Step; by default eps^½ (forward), eps^⅓ (central), 1e-20 (complex), times max(1, |x_i|). The difference
        is divided by the step that floating point really made.

    Raises ValueError if x is not finite, h is not positive or is lost against x, or the scheme is unknown.
    Source: Chertkov §2.1 (Example 2.1.2); Cao §2.2 (Exercise 2.2).  Taught in: notebook 02_01.
    """
    x = as_array("x", x, ndim=range(65))
    one_of("scheme", scheme, ("central", "forward", "complex"))
    default = {"forward": EPS ** (1 / 2), "central": EPS ** (1 / 3), "complex": 1e-20}[scheme]
    steps = (
        default * np.maximum(1.0, np.abs(x)) if h is None else np.full(x.shape, as_number("h", h, low=0, strict=True))
    )
    right, left = (steps, 0.0 * steps if scheme == "forward" else -steps)
    made = (x + right) - (x + left)
    if scheme != "complex" and not made.all():
        raise ValueError(f"h must be larger than the spacing of floats at x, got {h:g}")
    columns = []
    base = f(x) if scheme == "forward" else None
    for e, width in zip(basis(x.shape), made.ravel(), strict=True):
        if scheme == "complex":
            columns.append(np.imag(f(x + 1j * e * steps)) / np.max(e * steps))
        else:
            columns.append((f(x + e * right) - (f(x + e * left) if base is None else base)) / width)
    return np.reshape(np.stack(columns, axis=-1), np.shape(columns[0]) + x.shape)


def check_grad(f: Callable, x: Float[np.ndarray, "..."], *, rng: np.random.Generator | int | None = None) -> float:
    """Largest relative error of ``grad(f)(x)`` against central differences along 8 random directions.

    For v ~ N(0, I) the derivative ∇f·v has standard deviation ‖∇f‖, which the error is divided by (or by the largest
    difference quotient, if that is larger). Truncation and rounding leave about 1e-9 where f is smooth and of moderate
    size; 1e-5 and more means a wrong derivative, a kink, or an f too noisy for differences.

    Raises ValueError if x is not finite or f(x) is not a scalar.
    Source: Chertkov §2.1 (Example 2.1.2).  Taught in: notebook 02_01.
    """
    x = as_array("x", x, ndim=range(65))
    gradient = np.asarray(grad(f)(x))
    directions = np.random.default_rng(rng).standard_normal((8, *x.shape))
    h = EPS ** (1 / 3) * max(1.0, float(np.abs(x).max()))
    slopes = np.array([(f(x + h * v) - f(x - h * v)) / (2 * h) for v in directions])
    errors = np.abs(slopes - (directions * gradient).reshape(8, -1).sum(axis=1))
    scale = max(float(np.linalg.norm(gradient)), float(np.abs(slopes).max()))
    return 0.0 if scale == 0 else float(errors.max() / scale)  # nan if a derivative is
