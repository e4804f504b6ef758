"""Argument checks and array types that the information measures share."""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from coursekit._validation import as_array, as_number

Values = Float[np.ndarray, "..."] | float
Pmf = Float[np.ndarray, "*#batch k"]
TOLERANCE = 1e-6
"""By how much the sum of a pmf may differ from 1."""
ANY = range(1, 65)


def unit_of(base: float | None) -> float:
    """The number of nats in one unit of the logarithm."""
    return 1.0 if base is None else float(np.log(as_number("base", base, low=1, strict=True)))


def pmf(name: str, value: Any, *, n_axes: int = 1) -> np.ndarray:
    p = as_array(name, value, ndim=range(n_axes, 65))
    if p.min() < 0:
        raise ValueError(f"{name} must not be negative, got {p.min():g}")
    flat = p.reshape(*p.shape[:-n_axes], -1)
    total = np.vecdot(flat, np.ones(flat.shape[-1])).reshape(p.shape[:-n_axes] + (1,) * n_axes)
    worst = total.flat[np.abs(total - 1).argmax()]
    if abs(worst - 1) > TOLERANCE:
        raise ValueError(f"{name} must sum to 1 along the last {'axis' if n_axes == 1 else 'two axes'}, got {worst:g}")
    return p / total


def log_array(name: str, value: Any, *, ndim: Any = ANY) -> np.ndarray:
    """Finite numbers and -inf."""
    try:
        zero = np.equal(value, -np.inf)
    except (TypeError, ValueError):
        zero = np.False_  # not an array of numbers: as_array says so
    array = as_array(name, np.where(zero, 0.0, value) if zero.any() else value, ndim=ndim)
    return np.where(zero, -np.inf, array)


def log_pmf(name: str, value: Any, *, ndim: Any = ANY) -> np.ndarray:
    log_p = log_array(name, value, ndim=ndim)
    total = logsumexp(log_p, axis=-1, keepdims=True)
    worst = total.flat[np.abs(total).argmax()]
    if abs(worst) > TOLERANCE:
        raise ValueError(f"exp({name}) must sum to 1 along the last axis, got a sum whose logarithm is {worst:g}")
    return log_p - total


def check_match(**arrays: np.ndarray) -> None:
    (name, p), (other, q) = arrays.items()
    try:
        np.broadcast_shapes(p.shape[:-1], q.shape[:-1])
    except ValueError as error:
        raise ValueError(f"leading axes of {name} and {other} must broadcast, got {p.shape} and {q.shape}") from error
    if p.shape[-1] != q.shape[-1]:
        raise ValueError(f"{name} and {other} must have one length along the last axis, got {p.shape} and {q.shape}")


def whole_counts(counts: Any, *, n_axes: int) -> np.ndarray:
    counts = as_array("counts", counts, ndim=range(n_axes, 65))
    if counts.min() < 0 or (counts != np.round(counts)).any():
        raise ValueError(f"counts must be whole numbers that are not negative, got {counts.min():g} as the least")
    if (counts.sum(axis=tuple(range(-n_axes, 0))) == 0).any():
        raise ValueError("counts must hold at least one observation, got all zeros")
    return counts


def class_numbers(y: Any, n: int, k: int) -> np.ndarray:
    labels = as_array("y", y, ndim=1, shape=(n,))
    if labels.min() < 0 or labels.max() >= k or (labels != np.round(labels)).any():
        raise ValueError(f"y must be class numbers 0..{k - 1}, got values from {labels.min():g} to {labels.max():g}")
    return labels.astype(int)
