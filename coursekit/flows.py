"""Normalizing flows: densities made from a standard normal law by an invertible map.

Every flow maps latent points z ~ N(0, I) to data, ``x, log_det = flow.forward(z)``, and back, ``z, log_det =
flow.inverse(x)``; log_det is always the logarithm of |det| of the Jacobian of the map just applied, so that

    log p(x) = -½|z|² - (d/2) ln 2π + log_det,    z, log_det = flow.inverse(x).

Training needs nothing of its own: with data minimise ``-flow.log_prob(x).mean()``, with an energy U known up to a
constant minimise the mean of ``U(x) - log_det`` over x, log_det = flow.forward(z). Parameters are made in torch's
default dtype on the CPU; ``.to(…)`` moves a flow as any module, and points must have its dtype and device.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from coursekit._validation import as_integer, as_number
from coursekit.nn import MLP
from coursekit.ode import odeint

Points = Float[Tensor, "*batch dim"]
Values = Float[Tensor, "*batch"]


class Flow(nn.Module):
    """What all flows share; a flow of `dim` dimensions defines `forward` and `inverse`.

    Methods raise ValueError for points that are not floating or have another last axis than `dim`.
    """

    def __init__(self, dim: int, *, low: int = 1) -> None:
        super().__init__()
        self.dim = as_integer("dim", dim, low=low)

    def forward(self, z: Points) -> tuple[Points, Values]:
        """Latent points to data, and log |det ∂x/∂z|."""
        raise NotImplementedError

    def inverse(self, x: Points) -> tuple[Points, Values]:
        """Data to latent points, and log |det ∂z/∂x|."""
        raise NotImplementedError

    def log_prob(self, x: Points) -> Values:
        """Logarithm of the density, per unit volume of data space."""
        z, log_det = self.inverse(x)
        return log_det - 0.5 * (z * z).sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """Draw n points, without gradient; for samples that depend on parameters call `forward` on latent points."""
        like = next(self.parameters(), torch.empty(0))
        z = torch.randn(as_integer("n", n, low=1), self.dim, dtype=like.dtype, generator=generator)
        with torch.no_grad():
            return self._carry(z.to(like.device))

    def _carry(self, z: Points) -> Points:
        """`forward` without the logarithm of the determinant, for flows to which it is work."""
        return self.forward(z)[0]

    def _check(self, points: Tensor) -> None:
        if not points.is_floating_point() or points.ndim == 0 or points.shape[-1] != self.dim:
            raise ValueError(
                f"points must be floating with a last axis of {self.dim}, got {points.dtype} of {tuple(points.shape)}"
            )


class Compose(Flow):
    """One flow after another: x = f_k(… f_1(z)); the logarithms of the determinants add.

    Raises ValueError if there is no layer, or if the layers differ in `dim`.
    Source: Cao §3.3.1, Lemma 3.4; Miyamoto §11.  Taught in: notebook 05_03.
    """

    layers: Any  # an nn.ModuleList of flows; torch's types know of modules only

    def __init__(self, *layers: Flow) -> None:
        if len({layer.dim for layer in layers}) != 1:
            raise ValueError(f"layers must have one dimension in common, got {[layer.dim for layer in layers]}")
        super().__init__(layers[0].dim)
        self.layers = nn.ModuleList(layers)

    def forward(self, z: Points) -> tuple[Points, Values]:
        self._check(z)
        total = torch.zeros_like(z[..., 0])
        for layer in self.layers:
            z, log_det = layer(z)
            total = total + log_det
        return z, total

    def inverse(self, x: Points) -> tuple[Points, Values]:
        self._check(x)
        total = torch.zeros_like(x[..., 0])
        for layer in reversed(self.layers):
            x, log_det = layer.inverse(x)
            total = total + log_det
        return x, total


class Affine(Flow):
    """x = A z + b, with A and b learnable: the Gaussian laws N(b, AAᵀ).

    Raises ValueError if A is not square and invertible, or b has another length.
    Source: Cao §3.2, Theorem 3.3.  Taught in: notebook 05_03.
    """

    def __init__(self, A: Float[Tensor, "dim dim"], b: Float[Tensor, " dim"] | None = None) -> None:
        if A.ndim != 2 or A.shape[0] != A.shape[1]:
            raise ValueError(f"A must be a square matrix, got shape {tuple(A.shape)}")
        super().__init__(A.shape[0])
        b = torch.zeros_like(A[0]) if b is None else b
        if b.shape != A[0].shape:
            raise ValueError(f"b must have shape {tuple(A[0].shape)}, got {tuple(b.shape)}")
        if not torch.linalg.slogdet(A.detach())[1].isfinite():
            raise ValueError("A must be invertible, got a singular matrix")
        self.A, self.b = nn.Parameter(A.detach().clone()), nn.Parameter(b.detach().clone())

    def forward(self, z: Points) -> tuple[Points, Values]:
        self._check(z)
        return z @ self.A.T + self.b, torch.linalg.slogdet(self.A)[1].expand(z.shape[:-1])

    def inverse(self, x: Points) -> tuple[Points, Values]:
        self._check(x)
        z = torch.linalg.solve(self.A, (x - self.b).reshape(-1, self.dim).T).T.reshape(x.shape)
        return z, -torch.linalg.slogdet(self.A)[1].expand(x.shape[:-1])


class Sinh(Flow):
    """x = sinh z in each coordinate: after it Gaussian tails become heavier than those of any exponential law.

    Source: Jones and Pewsey, Biometrika 96 (2009).  Taught in: notebook 05_03.
    """

    def forward(self, z: Points) -> tuple[Points, Values]:
        self._check(z)
        return z.sinh(), (torch.logaddexp(z, -z) - math.log(2)).sum(-1)  # ln cosh z that cannot overflow

    def inverse(self, x: Points) -> tuple[Points, Values]:
        self._check(x)
        return x.asinh(), -torch.hypot(x, torch.ones_like(x)).log().sum(-1)


class Flow1D(Flow):
    """Increasing map of the line, in closed form from data to latent points:

        z = e + s x + Σ_k a_k tanh(b_k (x - c_k)),    s, a_k, b_k > 0.

    It increases by construction, so it is a bijection of ℝ and its density has mass one; the tails are those of a
    normal law of standard deviation 1/s. Latent points go to data by Newton's method in a bracket that the bounded
    sum gives; the result has exact first derivatives, second derivatives of `forward` are not supported.

    Parameters
    ----------
    n_units : int ≥ 1
        The c_k start evenly spread over [-2, 2] and the map close to the identity, so data of unit size suit it.

    Points have shape (..., 1).  Source: Chertkov §5.2.3, eq. (5.4), with the sign of log |g'| corrected.
    Taught in: notebook 05_03.
    """

    def __init__(self, n_units: int) -> None:
        super().__init__(1)
        n_units = as_integer("n_units", n_units, low=1)
        self.offset, self.slope = nn.Parameter(torch.zeros(1)), nn.Parameter(_inverse_softplus(0.5, 1))
        self.height = nn.Parameter(_inverse_softplus(0.5 / n_units, n_units))
        self.steepness = nn.Parameter(_inverse_softplus(1.0, n_units))
        self.center = nn.Parameter(4 * (torch.arange(n_units) + 0.5) / n_units - 2)

    def inverse(self, x: Points) -> tuple[Points, Values]:
        self._check(x)
        z, slope = self._map(x)
        return z, slope.log().squeeze(-1)

    def forward(self, z: Points) -> tuple[Points, Values]:
        self._check(z)
        with torch.no_grad():
            x = self._solve(z)
        value, slope = self._map(x)
        x = x + (z - value) / slope.detach()  # a last Newton step carries the derivative of the inverse function
        return x, -self._map(x)[1].log().squeeze(-1)

    def _map(self, x):
        height, steepness = functional.softplus(self.height), functional.softplus(self.steepness)
        step, slope = torch.tanh(steepness * (x - self.center)), functional.softplus(self.slope)
        value = self.offset + slope * x + (height * step).sum(-1, keepdim=True)
        return value, slope + (height * steepness * (1 - step * step)).sum(-1, keepdim=True)

    def _solve(self, z):
        reach, slope = functional.softplus(self.height).sum(), functional.softplus(self.slope)
        low, high = (z - self.offset - reach) / slope, (z - self.offset + reach) / slope
        x, last = (low + high) / 2, high - low
        moving = torch.ones_like(x, dtype=torch.bool)
        for _ in range(200):  # bisection alone would need fewer
            value, slope = self._map(x)
            low, high = torch.where(value < z, x, low), torch.where(value < z, high, x)
            newton = (z - value) / slope
            inside = (low <= x + newton) & (x + newton <= high) & (2 * newton.abs() < last.abs())
            step = torch.where(inside, newton, (low + high) / 2 - x)
            x, last = torch.where(moving, x + step, x), step
            moving = moving & (step.abs() > 4 * torch.finfo(x.dtype).eps * (1 + x.abs()))
            if not moving.any():
                break
        return x


class AffineCoupling(Flow):
    """One half of the coordinates, u, stays; the other is scaled and shifted by amounts that depend on u only:

        (u, v) ↦ (u, v e^{s(u)} + t(u)),    log |det| = Σ_j s_j(u).

    The Jacobian is triangular, and the inverse (v - t) e^{-s} costs the same as the map. s and t are the outputs of one
    network that starts at zero, so a new layer is the identity; |s| stays below `max_log_scale`, smoothly.

    Parameters
    ----------
    dim : int ≥ 2
        The first dim // 2 coordinates stay, or with `flip` the last dim - dim // 2.
    hidden : sizes of the hidden layers
    flip : bool
    max_log_scale : float > 0
    generator : torch.Generator, optional
        Of the network's weights.

    Source: Dinh et al., ICLR (2017); Cao §3.3.2.  Taught in: notebook 05_03.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        *,
        flip: bool = False,
        max_log_scale: float = 2.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(dim, low=2)
        self.flip, self.max_log_scale = flip, as_number("max_log_scale", max_log_scale, low=0, strict=True)
        self.n_first = dim // 2
        n_kept = dim - self.n_first if flip else self.n_first
        self.net = _vanishing(MLP((n_kept, *hidden, 2 * (dim - n_kept)), generator=generator))

    def forward(self, z: Points) -> tuple[Points, Values]:
        self._check(z)
        kept, other = self._split(z)
        log_scale, shift = self._scale_and_shift(kept)
        return self._join(kept, other * log_scale.exp() + shift), log_scale.sum(-1)

    def inverse(self, x: Points) -> tuple[Points, Values]:
        self._check(x)
        kept, other = self._split(x)
        log_scale, shift = self._scale_and_shift(kept)
        return self._join(kept, (other - shift) * (-log_scale).exp()), -log_scale.sum(-1)

    def _split(self, points):
        first, last = points[..., : self.n_first], points[..., self.n_first :]
        return (last, first) if self.flip else (first, last)

    def _join(self, kept, other):
        return torch.cat((other, kept) if self.flip else (kept, other), dim=-1)

    def _scale_and_shift(self, kept):
        log_scale, shift = self.net(kept).chunk(2, dim=-1)
        return self.max_log_scale * torch.tanh(log_scale / self.max_log_scale), shift


class RealNVP(Compose):
    """Affine couplings that keep the first and the last half of the coordinates in turn.

    Parameters
    ----------
    dim : int ≥ 2
    n_layers : int ≥ 1
        Two change every coordinate.
    hidden : sizes of the hidden layers of each coupling's network
    generator : torch.Generator, optional

    Source: Dinh et al., ICLR (2017); Miyamoto §11.1.1; Cao §3.3.2.  Taught in: notebook 05_03.
    """

    def __init__(
        self, dim: int, n_layers: int, hidden: Sequence[int], *, generator: torch.Generator | None = None
    ) -> None:
        n_layers = as_integer("n_layers", n_layers, low=1)
        super().__init__(*(AffineCoupling(dim, hidden, flip=i % 2 == 1, generator=generator) for i in range(n_layers)))


class CNF(Flow):
    """Continuous flow: latent points are carried by a velocity field v(t, x), a tanh network, from t = 0 to t = 1.

        dx/dt = v(t, x),    d log|det ∂x/∂z| /dt = div v(t, x).

    Both are solved together by the classical Runge–Kutta method, and `inverse` solves backwards on the same grid: it
    undoes `forward` up to O(n_steps⁻⁵), one order more than the error of the map itself. The divergence comes with
    the velocity, from derivatives in `dim` directions (exact) or in random directions ε, since E[εᵀJε] = tr J for
    independent signs ε. With probes log_det and log_prob are unbiased but random; the points are not.

    Parameters
    ----------
    dim : int ≥ 1
    hidden : sizes of the hidden layers; () gives a field linear in x and t
        The network starts at zero, so a new flow is the identity.
    n_steps : int ≥ 1
    n_probes : int ≥ 0, optional
        0: exact divergence. Otherwise this many probes for each point, fixed along its path. By default exact up to 16
        dimensions, one probe above.
    generator : torch.Generator, optional
        Of the network's weights and then, kept, of the probes.

    Raises ValueError for points that are not finite, FloatingPointError, with the step, if a path stops being so.
    Source: Chen et al., NeurIPS (2018); Grathwohl et al., ICLR (2019); Cao §3.4.  Taught in: notebook 05_03b.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        *,
        n_steps: int = 16,
        n_probes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(dim)
        self.n_steps = as_integer("n_steps", n_steps, low=1)
        self.n_probes = int(dim > 16) if n_probes is None else as_integer("n_probes", n_probes, low=0)
        self.generator = generator
        self.net = _vanishing(MLP((dim + 1, *hidden, dim), generator=generator))

    def velocity(self, t: float, x: Points) -> Points:
        """v(t, x)."""
        self._check(x)
        return self.net(self._with_time(t, x))

    def forward(self, z: Points) -> tuple[Points, Values]:
        return self._integrate(z, lambda t: (t, 1.0))

    def inverse(self, x: Points) -> tuple[Points, Values]:
        return self._integrate(x, lambda t: (1 - t, -1.0))

    def _carry(self, z: Points) -> Points:
        return odeint(self.velocity, z, self._times())[-1]

    def _times(self):
        return [i / self.n_steps for i in range(self.n_steps + 1)]

    def _integrate(self, start, clock):
        self._check(start)
        directions = self._directions(start)

        def field(t, state):
            time, sign = clock(t)
            velocity, divergence = self._velocity_and_divergence(time, state[..., :-1], directions)
            return sign * torch.cat([velocity, divergence.unsqueeze(-1)], dim=-1)

        state = torch.cat([start, torch.zeros_like(start[..., :1])], dim=-1)
        end = odeint(field, state, self._times())[-1]
        return end[..., :-1], end[..., -1]

    def _velocity_and_divergence(self, t, x, directions):
        value, tangents = self._with_time(t, x), functional.pad(directions, (0, 1))  # time stands still
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                value, tangents = layer(value), tangents @ layer.weight.T
            else:
                value = torch.tanh(value)
                tangents = tangents * (1 - value * value).unsqueeze(-2)
        divergence = (directions * tangents).sum((-2, -1)) / max(self.n_probes, 1)
        return value, divergence.expand(value.shape[:-1])  # of a linear field it is the same everywhere

    def _directions(self, x):
        if self.n_probes == 0:
            return torch.eye(self.dim, dtype=x.dtype, device=x.device)
        signs = torch.randint(2, (*x.shape[:-1], self.n_probes, self.dim), generator=self.generator)
        return (2 * signs - 1).to(x)

    def _with_time(self, t, x):
        return torch.cat([x, torch.full_like(x[..., :1], t)], dim=-1)


def _inverse_softplus(value: float, n: int) -> Tensor:
    return torch.full((n,), math.log(math.expm1(value)))


def _vanishing(net: MLP) -> MLP:
    """The network with its last layer set to zero."""
    with torch.no_grad():
        for parameter in net[-1].parameters():
            parameter.zero_()
    return net
