"""Gradients through differential equations by the adjoint method: neural ODEs, and SDEs driven by a stored path."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from coursekit._validation import as_integer, one_of
from coursekit.ode import FIXED, TABLEAUS, _check_finite, _combine, _state, _times, runge_kutta_step

Mode = Literal["joint", "stored", "checkpoint"]
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class AdjointResult:
    """Gradient of a loss of a trajectory."""

    loss: Float[Tensor, ""]
    grad_params: tuple[Tensor, ...]
    """∂L/∂θ, one tensor for each of the parameters, in their order."""
    grad_x0: Tensor
    adjoint: Tensor
    """λ(t_k) = dL/dx(t_k), its own jump included; shape (n_times, *x0.shape). The first is grad_x0."""
    n_evaluations: int
    """Evaluations of the field, forward and backward."""


def adjoint_gradient(
    f: Callable[[float, Tensor], Tensor],
    params: Iterable[Tensor],
    x0: Tensor,
    t: Sequence[float] | Any,
    loss: Loss,
    *,
    mode: Mode = "joint",
    method: str = "rk4",
    segment: int | None = None,
) -> AdjointResult:
    """Gradient of loss(x(t₀), …, x(t_N)) for x' = f(t, x), x(t₀) = x0, without the graph of the whole solution.

    The adjoint solves λ' = -(∂f/∂x)ᵀλ backwards from λ(t_N) = ∂L/∂x(t_N), jumps by ∂L/∂x(t_k) at every other time, and
    ∂L/∂θ = ∫ (∂f/∂θ)ᵀλ dt. Three ways to have x on the way back:

    - "joint": x is integrated backwards beside λ, from its end alone. Where the flow contracts at a rate μ, errors in x
      grow by e^{μ(t_N - t₀)} on the way.
    - "stored": x comes from the trajectory of the forward solution, by cubic Hermite interpolation between its times.
    - "checkpoint": each segment of steps is solved again with its graph. This is the exact gradient of the discrete
      solution (that of back-propagation through the solver); the other two approximate the gradient of the ODE, at
      the order of the method.

    "joint" and "stored" keep the graph of one evaluation at a time, "checkpoint" that of one segment. All of them hold
    the trajectory, n_times states, which the loss may ask for.

    Parameters
    ----------
    f : callable
        ``f(t, x)``, a module or a function, differentiable by torch.
    params : tensors that require gradients
        ``model.parameters()``, say; may be empty.
    x0 : tensor of any shape
    t : (n_times,) increasing
        One step of the method is made from each time to the next.
    loss : callable
        Maps the trajectory (n_times, *x0.shape) to a scalar; it may depend on the parameters through it only.
    mode, method : see above; "euler", "midpoint", "heun" or "rk4"
    segment : int ≥ 1, optional
        Steps between checkpoints; the default is about √n_steps.

    Raises ValueError for bad times, mode or method, parameters without gradients, an f of the wrong shape, or a loss
    that is not a scalar or uses the parameters itself; FloatingPointError, with the step, if the solution is not
    finite, or if the way back is lost.
    Source: Chertkov §4.2.2; Cao §2.3.  Taught in: notebook 04_04b.
    """
    tableau = TABLEAUS[one_of("method", method, FIXED)]
    times = _times(t)
    return _adjoint(lambda step, t, x: f(t, x), params, x0, times, loss, mode, tableau, segment)


def sdeint(
    drift: Callable[[float, Tensor], Tensor],
    diffusion: Callable[[float, Tensor, Tensor], Tensor],
    x0: Tensor,
    t: Sequence[float] | Any,
    dB: Tensor,
) -> Tensor:
    """Path of the Stratonovich equation dx = drift(t, x) dt + σ(t, x) ∘ dB by Heun's method; differentiable.

    Strong order 1 for one-dimensional and commuting noise, 1/2 otherwise.

    Parameters
    ----------
    drift : callable
        ``drift(t, x)`` of the shape of x. An Itô equation is first converted: drift - ½ σ'σ in one dimension.
    diffusion : callable
        ``diffusion(t, x, dB)`` = σ(t, x)dB of the shape of x; the noise may have any dimension.
    x0 : tensor of any shape
    t : (n_times,) increasing
    dB : tensor (n_times - 1, ...)
        Increments of the Brownian path, of variance t[k + 1] - t[k].

    Returns
    -------
    tensor (n_times, *x0.shape)

    Raises ValueError if there is not one increment a step or a field has the wrong shape; FloatingPointError, with the
    step, if the path is not finite.
    Source: Cao §2.4.  Taught in: notebook 04_04b.
    """
    times = _times(t)
    return _solve(_driven(drift, diffusion, times, dB), _state("x0", x0), times, TABLEAUS["heun"])


def sde_adjoint_gradient(
    drift: Callable[[float, Tensor], Tensor],
    diffusion: Callable[[float, Tensor, Tensor], Tensor],
    params: Iterable[Tensor],
    x0: Tensor,
    t: Sequence[float] | Any,
    dB: Tensor,
    loss: Loss,
    *,
    mode: Mode = "joint",
) -> AdjointResult:
    """Gradient of a loss of the path of `sdeint`, for a fixed Brownian path that is read backwards.

    Stratonovich calculus obeys the chain rule, so λ and ∂L/∂θ solve the equations of `adjoint_gradient` with the field
    drift dt + σ ∘ dB, and the same increments drive the way back. For the gradient of each of many paths give the
    parameters a leading axis of paths.

    Parameters
    ----------
    drift, diffusion, x0, t, dB : as in `sdeint`
    params, loss, mode : as in `adjoint_gradient`

    Raises as `sdeint` and `adjoint_gradient` do.
    Source: Cao §2.4 (Theorem 2.7).  Taught in: notebook 04_04b.
    """
    times = _times(t)
    field = _driven(drift, diffusion, times, dB)
    return _adjoint(field, params, x0, times, loss, mode, TABLEAUS["heun"], None)


def _driven(drift, diffusion, times, dB):
    """The field of step k is the drift plus the diffusion along dB[k]: to Heun's method the SDE is an ODE."""
    if len(dB) != len(times) - 1:
        raise ValueError(f"dB must hold one increment a step, {len(times) - 1}, got {len(dB)}")
    lengths = [end - start for start, end in itertools.pairwise(times)]
    return lambda step, t, x: drift(t, x) + diffusion(t, x, dB[step]) / lengths[step]


def _solve(field, x0, times, tableau):
    path = [x0]
    for step, (start, end) in enumerate(itertools.pairwise(times)):
        path.append(runge_kutta_step(tableau, partial(field, step), start, path[-1], end - start))
    result = torch.stack(path)
    _check_finite(result, times)
    return result


def _adjoint(field, params, x0, times, loss, mode, tableau, segment) -> AdjointResult:
    one_of("mode", mode, ("joint", "stored", "checkpoint"))
    if segment is not None and mode != "checkpoint":
        raise ValueError('segment belongs to mode="checkpoint"')
    params = tuple(params)
    if not all(isinstance(p, Tensor) and p.requires_grad for p in params):
        raise ValueError("params must be tensors that require gradients")
    n_evaluations = 0

    def counted(step, t, x):
        nonlocal n_evaluations
        n_evaluations += 1
        return field(step, t, x)

    with torch.no_grad():
        path = _solve(counted, _state("x0", x0).detach(), times, tableau)
    with torch.enable_grad():
        leaf = path.clone().requires_grad_()
        value = loss(leaf)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must map the trajectory to a scalar tensor, got {shape}")
        value = value.reshape(())
        jumps, *direct = _pull_back(value, (leaf, *params), torch.ones_like(value))
        if jumps is None:
            raise ValueError("loss must depend on the trajectory, got one that does not")
        if any(part is not None for part in direct):
            raise ValueError("loss must depend on the parameters through the trajectory only")
    if mode == "checkpoint":
        n_steps = len(times) - 1
        segment = math.isqrt(n_steps) if segment is None else as_integer("segment", segment, low=1)
        adjoint, gradients = _through_segments(counted, params, path, times, jumps, tableau, segment)
    else:
        adjoint, gradients = _backwards(counted, params, path, times, jumps, tableau, stored=mode == "stored")
    if not all(part.isfinite().all() for part in (adjoint, *gradients)):
        raise FloatingPointError(
            "the adjoint is not finite: the flow contracts so fast that the way back is lost; "
            'mode="stored" or "checkpoint" does not need it'
        )
    return AdjointResult(value.detach(), tuple(gradients), adjoint[0], adjoint, n_evaluations)


def _backwards(field, params, path, times, jumps, tableau, *, stored):
    """Runge–Kutta steps back in time for x and λ together; ∂L/∂θ is a quadrature over the same stages."""
    gradients = [torch.zeros_like(p) for p in params]
    x, adjoint = path[-1], [jumps[-1]]
    slopes = [None] * len(times)
    if stored and not set(tableau.c) <= {0, 1}:  # stages between the times
        with torch.no_grad():
            slopes = [field(min(k, len(times) - 2), time, path[k]) for k, time in enumerate(times)]
    for step in reversed(range(len(times) - 1)):
        h, lam = times[step] - times[step + 1], adjoint[-1]
        back_x: list[Tensor] = []
        back_lam: list[Tensor] = []
        for a, b, c in zip(tableau.a, tableau.b, tableau.c, strict=True):
            if stored:
                at = _hermite(1 - c, -h, path[step], path[step + 1], slopes[step], slopes[step + 1])
            else:
                at = _combine(x, h, a, back_x)
            with torch.enable_grad():
                leaf = at.detach().requires_grad_()
                slope = field(step, times[step + 1] + c * h, leaf)
                pulled = _pull_back(slope, (leaf, *params), _combine(lam, h, a, back_lam))
            back_x.append(slope.detach())
            back_lam.append(torch.zeros_like(leaf) if pulled[0] is None else -pulled[0])
            for gradient, part in zip(gradients, pulled[1:], strict=True):
                if b and part is not None:
                    gradient.add_(part, alpha=-h * b)
        x = _combine(x, h, tableau.b, back_x)
        adjoint.append(_combine(lam, h, tableau.b, back_lam) + jumps[step])
    return torch.stack(adjoint[::-1]), gradients


def _pull_back(slope, inputs, lam) -> tuple[Tensor | None, ...]:
    if not slope.requires_grad:  # a field that is constant
        return (None,) * len(inputs)
    return torch.autograd.grad(slope, inputs, lam, allow_unused=True)


def _hermite(theta, h, x0, x1, slope0, slope1):
    """Cubic with the values x₀, x₁ and slopes at θ = 0 and 1; error O(h⁴)."""
    if theta in (0, 1):
        return x1 if theta else x0
    bend = theta * (1 - theta)
    inner = (1 - 2 * theta) * (x1 - x0) + h * ((theta - 1) * slope0 + theta * slope1)
    return (1 - theta) * x0 + theta * x1 - bend * inner


def _through_segments(field, params, path, times, jumps, tableau, segment):
    gradients = [torch.zeros_like(p) for p in params]
    adjoint = [jumps[-1]]
    n_steps = len(times) - 1
    for first in reversed(range(0, n_steps, segment)):
        last = min(first + segment, n_steps)
        with torch.enable_grad():
            leaf = path[first].clone().requires_grad_()
            again = [leaf]
            for step in range(first, last):
                h = times[step + 1] - times[step]
                again.append(runge_kutta_step(tableau, partial(field, step), times[step], again[-1], h))
            # with the jumps as weights the derivative in x_k is λ_k, what comes after t_k included
            weights = [*jumps[first:last], adjoint[-1]]
            pulled = torch.autograd.grad(again, (*again[:-1], *params), weights, allow_unused=True)
        adjoint.extend(reversed(pulled[: last - first]))
        for gradient, part in zip(gradients, pulled[last - first :], strict=True):
            if part is not None:
                gradient += part
    return torch.stack(adjoint[::-1]), gradients


class SavedTensors:
    """Context that counts the memory which autograd keeps for the way back: ``peak`` and ``now``, in bytes.

    Counted are the tensors that the graph holds for its derivatives, each storage once, without the parameters and
    other leaves that require gradients. ::

        with SavedTensors() as saved:
            odeint(f, x0, t).sum().backward()
        saved.peak

    Taught in: notebook 04_04b.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._holders: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: _Saved(x, self), lambda saved: saved.tensor)

    def __enter__(self) -> "SavedTensors":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _count(self, storage, change: int) -> None:
        holders = self._holders.get(storage.data_ptr(), 0)
        self._holders[storage.data_ptr()] = holders + change
        if holders == 0 or holders + change == 0:
            self.now += change * storage.nbytes()
            self.peak = max(self.peak, self.now)


class _Saved:
    """A tensor that the graph keeps; it goes when the graph does."""

    def __init__(self, x: Tensor, counter: SavedTensors) -> None:
        # the result of an operation knows the operation, which keeps this object: without detach a cycle, never freed
        self.tensor = x.detach()
        owner = x if x._base is None else x._base  # W of a saved Wᵀ
        self.counter = None if owner.is_leaf and owner.requires_grad else counter
        if self.counter is not None:
            self.counter._count(x.untyped_storage(), 1)

    def __del__(self) -> None:
        if self.counter is not None:
            self.counter._count(self.tensor.untyped_storage(), -1)
