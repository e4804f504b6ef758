"""Argument checks and types that the parts of the package share."""

from collections.abc import Callable

import torch
from torch import Tensor

Time = float | Tensor
Score = Callable[[Tensor, Time], Tensor]


def floating(value: Time) -> Tensor:
    """As a tensor, a number in float64: float32 would cost digits, and a single number does not promote the rest."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    return torch.as_tensor(value, dtype=torch.float64)


def range_of(values) -> str:
    return f"values between {float(values.min()):.4g} and {float(values.max()):.4g}"


def check_like(name, value, x):
    if not isinstance(value, Tensor) or value.shape != x.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a tensor with the shape of the points, {tuple(x.shape)}, got {got}")


def check_last_axis(x, points):
    d = points.shape[-1]
    if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[-1] != d:
        raise ValueError(f"x must be a tensor of points with a last axis of {d}, got {tuple(x.shape)}")
