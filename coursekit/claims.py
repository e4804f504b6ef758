"""Executed statements: what a figure shows, checked against its exact value and printed beside it."""

import math
from typing import Any

import numpy as np

STANDARD_ERRORS = 5.0  # a true claim fails once in 1.7 million runs


class ClaimError(AssertionError):
    """A claim does not hold; the message carries the statement and all the numbers."""


def claim(
    statement: str,
    measured: Any,
    *,
    equals: Any = None,
    below: Any = None,
    above: Any = None,
    between: tuple[Any, Any] | None = None,
    se: Any = None,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    """Check a statement about a measured number (or array, entry by entry) and print one line, or raise.

    Parameters
    ----------
    statement : str
        What is claimed, as a reader should read it.
    measured : number or array
        The computed value. Arrays broadcast against the expected value; every entry must hold.
    equals, below, above, between : number or array
        Exactly one of them: the expected value, a bound, or a pair of bounds. Bounds are inclusive.
    se : number or array, optional
        Standard error of `measured`: widens the tolerance by 5 standard errors.
    rtol, atol : float
        Relative (to the expected value) and absolute tolerance, 0 by default: without any tolerance, `equals` is exact.

    Raises
    ------
    ClaimError
        If the claim does not hold, or if a number in it is NaN.
    ValueError
        If not exactly one expectation is given, or a tolerance is negative.
    """
    given = {"equals": equals, "below": below, "above": above, "between": between}
    kinds = [kind for kind, value in given.items() if value is not None]
    if len(kinds) != 1:
        raise ValueError(f"claim needs exactly one of equals, below, above, between; got {kinds or 'none'}")
    kind = kinds[0]
    if between is not None and len(between) != 2:
        raise ValueError(f"between must be a pair of bounds, got {between}")
    low, high = (-np.inf, np.inf) if between is None else between
    low = {"equals": equals, "above": above}.get(kind, low)
    high = {"equals": equals, "below": below}.get(kind, high)
    if any(np.iscomplexobj(number) for number in (measured, low, high)):
        raise ValueError("claims are about real numbers; take the real part or the modulus of a complex one")
    value, low, high = np.broadcast_arrays(*(np.asarray(a, dtype=float) for a in (measured, low, high)))
    error = np.zeros(()) if se is None else np.asarray(se, dtype=float)
    if rtol < 0 or atol < 0 or (error < 0).any():
        raise ValueError(f"tolerances must not be negative, got rtol={rtol}, atol={atol}, se={se}")
    if value.size == 0:
        raise ValueError("measured must not be empty")

    # the relative part refers to the finite bound(s)
    scale = np.maximum(*(np.where(np.isfinite(b), np.abs(b), 0.0) for b in (low, high)))
    tolerance = np.broadcast_to(atol + rtol * scale + STANDARD_ERRORS * error, value.shape)
    excess = np.maximum(low - value, value - high)  # > 0 outside the bounds
    holds = excess <= tolerance  # False for NaN
    numbers = _describe(kind, *(a.ravel() for a in (value, low, high, tolerance)), statistical=se is not None)
    if not holds.all():
        failing = f"; {np.count_nonzero(~holds)} of {value.size} entries fail" if value.size > 1 else ""
        raise ClaimError(f"{statement}: {numbers}{failing}")
    print(f"✓ {statement}: {numbers}")


def _describe(kind, value, low, high, tolerance, *, statistical) -> str:
    """The numbers of a claim in one phrase: 'measured m; expected e ± t (5 s.e.)'. Long arrays show their extremes."""
    few = value.size <= 4
    if kind == "equals":
        off = f"{value.size} values off by at most {np.abs(value - low).max():.2g}"
        measured = ", ".join(map(_significant, value, tolerance)) if few else off
    elif few:
        measured = _listed(value, ".6g" if kind == "between" else ".5g")
    else:
        shown = {"below": f"at most {value.max():.5g}", "above": f"at least {value.min():.5g}"}
        measured = shown.get(kind, _listed(value, ".5g")) + f" ({value.size} values)"
    limits = {
        "equals": f"expected {_listed(low, '.6g')}",
        "below": f"bound ≤ {_listed(high, '.6g')}",
        "above": f"bound ≥ {_listed(low, '.6g')}",
        "between": f"range {_listed(low, '.6g')} to {_listed(high, '.6g')}",
    }[kind]
    margin = f" ± {_listed(tolerance, '.2g')}" + (" (5 s.e.)" if statistical else "") if tolerance.any() else ""
    return f"measured {measured}; {limits}{margin}"


def _listed(values: np.ndarray, spec: str) -> str:
    """Up to four values in full, of more the smallest and the largest; equal ones once."""
    texts = [format(float(v), spec) for v in (values if values.size <= 4 else (values.min(), values.max()))]
    if len(set(texts)) == 1:
        return texts[0]
    return (", " if values.size <= 4 else " … ").join(texts)


def _significant(value: float, tolerance: float) -> str:
    """The value to one digit beyond its tolerance: what lies further right is rounding or noise."""
    if not tolerance > 0 or value == 0 or not math.isfinite(value):
        return f"{value:.6g}"
    digits = 2 + math.floor(math.log10(abs(value))) - math.floor(math.log10(tolerance))
    return f"{value:.{min(15, digits)}g}" if digits > 0 else "0"
