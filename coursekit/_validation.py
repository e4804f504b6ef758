"""Argument checks shared by the kernels: every message names the argument, what came and what was expected."""

from collections.abc import Collection
from typing import Any

import numpy as np


class ConvergenceWarning(UserWarning):
    """An iteration stopped at its step limit; the message gives the residual that was reached."""


def as_array(name: str, value: Any, *, ndim: int | Collection[int], shape: tuple[int | None, ...] | None = None):
    """Return `value` as a finite, non-empty float64 array of the expected dimension and shape, or raise ValueError."""
    try:
        if np.iscomplexobj(value):
            raise TypeError("complex")  # the conversion would drop the imaginary part with no more than a warning
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of real numbers, got {type(value).__name__}") from error
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if array.ndim not in allowed:
        expected = f"at least {ndim.start}" if isinstance(ndim, range) else " or ".join(str(n) for n in allowed)
        raise ValueError(f"{name} must have {expected} dimension(s), got an array of shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got an array of shape {array.shape}")
    if shape is not None and any(
        want is not None and want != got for want, got in zip(shape, array.shape, strict=True)
    ):
        expected = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(array))} NaN or infinite value(s)")
    return array


def as_integer(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Return `value` as an int within low..high (inclusive), or raise ValueError."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {expected}, got {value}")
    return int(value)


def as_number(name: str, value: Any, *, low: float = -np.inf, strict: bool = False) -> float:
    """Return `value` as a finite float that is >= low (> low if `strict`), or raise ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number, got {value!r}") from error
    if not np.isfinite(number) or number < low or (strict and number == low):
        bound = "finite" if low == -np.inf else f"{'greater than' if strict else 'at least'} {low:g}"
        raise ValueError(f"{name} must be {bound}, got {number:g}")
    return number


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`, or raise ValueError that lists them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value
