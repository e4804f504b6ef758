"""The reverse process: noise into data, and the likelihood of data."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from coursekit._validation import as_integer, as_number, one_of
from coursekit.diffusion._checks import Score, Time, check_like, range_of
from coursekit.diffusion._schedules import Points, Schedule, first_time
from coursekit.ode import odeint

Noise = float | Callable[[Time], Tensor]
WATCHED = 256  # points from which the stability of a step is judged


class StabilityWarning(UserWarning):
    """The time step is too long for the noise of the reverse process; the message gives the threshold."""


def time_grid(
    schedule: Schedule, n_steps: int, *, grid: Literal["log-snr", "linear"] = "log-snr", t_min: float = 1e-3
) -> Float[Tensor, " n_times"]:
    """Times from T down to t_min, n_steps + 1 of them in float64, evenly spaced or evenly in log(α²/σ²).

    Raises ValueError for t_min outside (0, T) or an unknown grid.
    Source: Karras et al., NeurIPS (2022).  Taught in: notebook 09_01b.
    """
    n_steps, t_min = as_integer("n_steps", n_steps, low=1), first_time(t_min, schedule)
    if one_of("grid", grid, ("log-snr", "linear")) == "linear":
        return torch.linspace(schedule.T, t_min, n_steps + 1, dtype=torch.float64)
    first, last = (float(schedule.log_snr(torch.tensor(t, dtype=torch.float64))) for t in (schedule.T, t_min))
    if not math.isfinite(first):
        raise ValueError(f"the schedule has no signal left at T = {schedule.T:g}: use a linear grid, or a smaller T")
    times = schedule.time(torch.linspace(first, last, n_steps + 1, dtype=torch.float64))
    times[0], times[-1] = schedule.T, t_min
    return times


def reverse_process(
    score: Score,
    schedule: Schedule,
    x: Points,
    t: Sequence[float] | Float[Tensor, " n_times"],
    *,
    noise: Noise | None = None,
    method: Literal["euler", "heun"] = "euler",
    record_every: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n_records n *shape"]:
    """Follow the reverse process with noise level ε along the times t, from x at t[0]:

        dx = [-(α̇/α) x + ½(β + ε) s(x, t)] dτ + √ε dw,    τ = -t.

    For every ε ≥ 0 it has the marginals p_t, if it starts from p_{t[0]} and s is the exact score. ε = 0 is the
    probability-flow ODE, which also runs forward, with increasing t; ε = β is the time reversal of the forward process,
    and larger ε add Langevin dynamics with the target p_t.

    Parameters
    ----------
    score : callable, ``score(x, t)`` with t a float
    x : (n, *shape)
    t : (n_steps + 1,) decreasing times
    noise : float, callable of t or None
        ε; by default ``schedule.beta``.
    method : "euler" or "heun"
        Weak order 1 with one, or weak order 2 with two evaluations of the score a step.
    record_every : int ≥ 1
        Every so many steps are kept, and the start: (n_steps // record_every + 1, n, *shape).
    generator : torch.Generator, optional

    In a law of variance v a step of length h is stable for h(½(β + ε)/v + α̇/α) < 2. How the score has changed
    along the last step shows 1/v, at no cost; a step beyond the threshold warns (StabilityWarning), from 32 points on.

    Raises ValueError for times that do not decrease (if ε > 0) or lie outside the schedule, a negative noise, or a
    score of another shape; FloatingPointError, with the step, if the score or the paths stop being finite.
    Source: Song et al., ICLR (2021); Chertkov §9.1, Exercise 9.1.1; Cao eq. (5.5).  Taught in: notebook 09_01b.
    """
    one_of("method", method, ("euler", "heun"))
    record_every = as_integer("record_every", record_every, low=1)
    times = torch.as_tensor(t, dtype=torch.float64)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"t must be a list of two times or more, got shape {tuple(times.shape)}")
    rate, beta, epsilon = _coefficients(schedule, times, noise)
    steps = (times[:-1] - times[1:]).tolist()
    if (any(epsilon) and min(steps) <= 0) or (min(steps) <= 0 <= max(steps)):
        raise ValueError("t must decrease (or increase throughout, if there is no noise)")
    coefficients = list(zip(times.tolist(), rate, beta, epsilon, strict=True))
    drift, path = _Drift(score), [x]
    with torch.no_grad():
        for k, h in enumerate(steps):
            slope = drift(x, h, *coefficients[k])
            level = epsilon[k] if method == "euler" else 0.5 * (epsilon[k] + epsilon[k + 1])
            if level > 0:
                z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
                kicked = torch.add(x, z, alpha=math.sqrt(level * h))
            else:
                kicked = x
            end = torch.add(kicked, slope, alpha=h)
            if method == "heun":
                end = torch.add(kicked, slope + drift(end, h, *coefficients[k + 1]), alpha=0.5 * h)
            # a finite sum is the quicker proof; it may also overflow
            if not (math.isfinite(float(end.sum())) or bool(torch.isfinite(end).all())):
                what = "the paths are" if bool(torch.isfinite(slope).all()) else "the score is"
                where = f"in step {k} of {len(steps)}, from t = {float(times[k]):.4g}"
                raise FloatingPointError(f"{what} not finite {where}: {drift.advice()}")
            x = end
            if (k + 1) % record_every == 0:
                path.append(x)
    if drift.worst > 2:
        message = f"the reverse process is unstable in {len(steps)} steps: {drift.advice()}"
        warnings.warn(message, StabilityWarning, stacklevel=2)
    return torch.stack(path)


def sample(
    score: Score,
    schedule: Schedule,
    n: int,
    dim: int | Sequence[int],
    n_steps: int,
    *,
    noise: Noise | None = None,
    method: Literal["euler", "heun"] = "euler",
    grid: Literal["log-snr", "linear"] = "log-snr",
    t_min: float = 1e-3,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Points:
    """Draw n points: normal noise at time T is carried to t_min by `reverse_process` on a `time_grid`.

    Parameters
    ----------
    dim : int, or the shape of one sample
    n_steps : int ≥ 1
    dtype, device : of the points, and so of what the score is given; torch's defaults unless given

    Other parameters, warnings and errors as in `reverse_process` and `time_grid`.
    Source: Song et al., ICLR (2021); Chertkov §9.1.  Taught in: notebook 09_01.
    """
    shape = (dim,) if isinstance(dim, int) else tuple(dim)
    shape = tuple(as_integer("dim", size, low=1) for size in shape)
    start = schedule.prior_std * torch.randn(as_integer("n", n, low=1), *shape, generator=generator, dtype=dtype)
    return reverse_process(
        score,
        schedule,
        start.to(device),
        time_grid(schedule, n_steps, grid=grid, t_min=t_min),
        noise=noise,
        method=method,
        record_every=as_integer("n_steps", n_steps, low=1),
        generator=generator,
    )[-1]


def _coefficients(schedule, times, noise):
    """Lists of α̇/α, β and ε at the times."""
    rate, beta = schedule.rate(times), schedule.beta(times)
    if not bool(torch.isfinite(rate).all() and torch.isfinite(beta).all()):
        raise ValueError(f"the drift of the schedule is singular at an end of [{float(times[-1])}, {float(times[0])}]")
    if noise is None:
        epsilon = beta
    elif callable(noise):
        epsilon = torch.as_tensor(noise(times), dtype=torch.float64).expand(len(times))
    else:
        epsilon = torch.full_like(times, as_number("noise", noise, low=0))
    if not bool((torch.isfinite(epsilon) & (epsilon >= 0)).all()):
        raise ValueError(f"noise must be at least 0 and finite at all times, got {range_of(epsilon)}")
    return rate.tolist(), beta.tolist(), epsilon.tolist()


class _Drift:
    """Drift of the reverse process; keeps the largest h(½(β + ε)/v + α̇/α) that it has met in `worst`.

    In a law of variance v a displacement k changes the score by -k/v. The quotient is taken along the last noisy step
    of each of some points, and their median less five of its standard errors, so that few points do not cry wolf.
    """

    def __init__(self, score):
        self.score, self.last, self.worst, self.details = score, None, 0.0, (0.0, 0.0, 0.0)

    def __call__(self, x, h, t, rate, beta, epsilon):
        value = self.score(x, t)
        check_like("the score", value, x)
        watched = len(x) >= 32 and (epsilon > 0 or self.last is not None)
        seen = [part[:WATCHED].flatten(1).detach().cpu().numpy() for part in (x, value)] if watched else None
        if self.last is not None:
            contraction = h * (0.5 * (beta + epsilon) * _stiffness(self.last, seen) + rate)
            if contraction > self.worst:
                self.worst, self.details = contraction, (h, t, epsilon)
        self.last = seen if epsilon > 0 else None
        return torch.add(0.5 * (beta + epsilon) * value, x, alpha=-rate)

    def advice(self):
        if self.worst <= 2:
            return "check the score"
        h, t, epsilon = self.details
        return (
            f"h(½(β + ε)/v + α̇/α) = {self.worst:.3g} at t = {t:.3g}, where h = {h:.3g} and ε = {epsilon:.3g}, "
            "and a step is stable below 2; take more steps or a smaller noise"
        )


def _stiffness(before, after) -> float:
    with np.errstate(all="ignore"):  # what is not finite is told by the sampler, with the step
        moved, changed = after[0] - before[0], before[1] - after[1]
        quotient = np.sort(np.vecdot(changed, moved) / np.vecdot(moved, moved))
    n = len(quotient)
    # 0.93 IQR/√n is the standard error of the median of normal values
    return float(quotient[n // 2] - 5 * 0.93 * (quotient[3 * n // 4] - quotient[n // 4]) / math.sqrt(n))


def ode_log_likelihood(
    score: Score,
    schedule: Schedule,
    x: Points,
    n_steps: int = 100,
    *,
    grid: Literal["log-snr", "linear"] = "log-snr",
    t_min: float = 1e-3,
    n_probes: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " n"]:
    """log p at points of time t_min, by the change of variables along the probability-flow ODE, with the classical RK4.

        dx/dt = (α̇/α) x - ½β s(x, t),    log p(x) = log N(x_T; 0, prior_std²) + ∫ div(dx/dt) dt.

    Parameters
    ----------
    n_steps, grid, t_min : as in `time_grid`
    n_probes : int ≥ 0, optional
        0: the exact divergence, one backward pass for each coordinate. Otherwise the mean of εᵀ(∂s/∂x)ε over so many
        vectors of signs for each point, unbiased. By default exact up to 16 coordinates, one probe above.
    generator : torch.Generator, optional
        Of the probes.

    Returns log densities per unit volume. Raises ValueError for a score of another shape, FloatingPointError, with the
    step, if the paths stop being finite.
    Source: Song et al., ICLR (2021); Chen et al., NeurIPS (2018); Cao §5.1 and eq. (3.9).  Taught in: notebook 09_01b.
    """
    n, shape = len(x), x.shape[1:]
    d = math.prod(shape)
    n_probes = int(d > 16) if n_probes is None else as_integer("n_probes", n_probes, low=0)
    if n_probes == 0:
        directions = torch.eye(d).to(x).view(d, 1, *shape).expand(d, n, *shape)
    else:
        directions = (2 * torch.randint(2, (n_probes, *x.shape), generator=generator) - 1).to(x)

    def field(t, state):
        with torch.enable_grad():
            points = state[:, :d].detach().reshape(x.shape).requires_grad_()
            value = score(points, t)
            check_like("the score", value, points)
            pulled = [torch.autograd.grad(value, points, v, retain_graph=True)[0] for v in directions]
        trace = sum((v * p).reshape(n, d).sum(-1) for v, p in zip(directions, pulled, strict=True)) / max(n_probes, 1)
        rate, half_beta = float(schedule.rate(t)), 0.5 * float(schedule.beta(t))
        velocity = rate * points - half_beta * value
        divergence = rate * d - half_beta * trace
        return torch.cat([velocity.detach().reshape(n, d), divergence.unsqueeze(-1)], dim=-1)

    times = time_grid(schedule, n_steps, grid=grid, t_min=t_min).flip(0)
    start = torch.cat([x.detach().reshape(n, d), torch.zeros(n, 1).to(x)], dim=-1)
    end = odeint(field, start, times.tolist())[-1]
    z = end[:, :d] / schedule.prior_std
    log_prior = -0.5 * (z * z).sum(-1) - d * math.log(schedule.prior_std * math.sqrt(2 * math.pi))
    return log_prior + end[:, d]
