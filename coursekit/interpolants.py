"""Stochastic interpolants: flow matching, Brownian bridges and Schrödinger bridges.

Time runs from data, t = 0, to noise, t = 1, as in `diffusion`: an interpolant x_t = α(t) x_0 + σ(t) x_1 is a schedule
whose end x_1 may be any law, independent of the data or coupled with them. A bridge adds the noise of a Brownian motion
of variance ε per unit time that is pinned at both ends:

    x_t = (1 - t) x_0 + t x_1 + √(ε t(1 - t)) ξ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Float, Int
from torch import Tensor

from coursekit._validation import as_integer, as_number
from coursekit.diffusion import GaussianMixture, Schedule
from coursekit.diffusion._checks import floating
from coursekit.diffusion._learning import stratified
from coursekit.transport import sinkhorn

Points = Float[Tensor, "n d"]
Field = Callable[[Tensor, float], Tensor]


# --- interpolants -------------------------------------------------------------------------------------------


class LinearPath(Schedule):
    """x_t = (1 - t) x_0 + t x_1: straight lines. Its reverse process is singular at t = 1, so that needs T < 1.

    Source: Lipman et al., ICLR (2023); Cao §5.2.  Taught in: notebook 09_02b.
    """

    def __init__(self, *, T: float = 1.0) -> None:
        self.T = _end(T)

    def alpha(self, t):
        return 1 - self._times(t)

    def sigma(self, t):
        return self._times(t)

    def alpha_dot(self, t):
        return -torch.ones_like(self._times(t))

    def sigma_dot(self, t):
        return torch.ones_like(self._times(t))

    def time(self, log_snr):
        return torch.sigmoid(-0.5 * floating(log_snr))


class TrigonometricPath(Schedule):
    """x_t = cos(πt/2) x_0 + sin(πt/2) x_1: of constant variance if both ends have variance 1 and are independent.

    As for `LinearPath`, a reverse process needs T < 1.
    Source: Albergo and Vanden-Eijnden, ICLR (2023); Cao §5.2.  Taught in: notebook 09_02b.
    """

    def __init__(self, *, T: float = 1.0) -> None:
        self.T = _end(T)

    def alpha(self, t):
        return torch.cos(0.5 * math.pi * self._times(t))

    def sigma(self, t):
        return torch.sin(0.5 * math.pi * self._times(t))

    def alpha_dot(self, t):
        return -0.5 * math.pi * self.sigma(t)

    def sigma_dot(self, t):
        return 0.5 * math.pi * self.alpha(t)

    def time(self, log_snr):
        return torch.atan((-0.5 * floating(log_snr)).exp()) * (2 / math.pi)


def flow_matching_loss(
    model: Callable[[Tensor, Tensor], Tensor],
    x0: Points,
    x1: Points,
    path: Schedule,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Mean over pairs, times and coordinates of |v(x_t, t) - (α̇ x_0 + σ̇ x_1)|², x_t = α x_0 + σ x_1.

    The minimiser is the conditional mean of the velocity, E[α̇ x_0 + σ̇ x_1 | x_t]; its flow carries the law of x_t. The
    pairs decide which flow: rows of x0 and x1 belong together. Times are uniform, one in each of n equal parts.

    Parameters
    ----------
    model : callable, ``model(x, t)`` with x (n, d) and t (n,)
    x0, x1 : (n, d)
        Of data and of noise; images (n, c, h, w) are welcome too.

    Raises ValueError if the shapes of x0, x1 and the velocity do not match.
    Source: Lipman et al., ICLR (2023); Cao eq. (5.8).  Taught in: notebook 09_02b.
    """
    if x0.shape != x1.shape:
        raise ValueError(f"x0 and x1 must have one shape, got {tuple(x0.shape)} and {tuple(x1.shape)}")
    t = stratified(len(x0), 0.0, path.T, generator).to(x0)
    column = t.view(-1, *(1,) * (x0.ndim - 1))
    velocity = model(path.alpha(column) * x0 + path.sigma(column) * x1, t)
    if velocity.shape != x0.shape:
        raise ValueError(f"the velocity must have the shape of x0, {tuple(x0.shape)}, got {tuple(velocity.shape)}")
    return (velocity - path.alpha_dot(column) * x0 - path.sigma_dot(column) * x1).square().mean()


def mixture_velocity(mixture: GaussianMixture, path: Schedule) -> Field:
    """The exact velocity v(x, t) = E[α̇ x_0 + σ̇ x_1 | x_t = x] for data from a mixture and independent noise N(0, I).

    t is one time for all points, above 0 for a schedule whose σ̇ is infinite there (`VPSchedule`).
    Source: Cao eq. (5.7); Miyamoto, Beg Rohu notes, §7.5.3.  Taught in: notebook 09_02b.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        alpha, sigma = path.alpha(t), path.sigma(t)
        data = mixture.posterior(x, alpha, sigma).mean
        noise = -sigma * mixture.noised(alpha, sigma).score(x)  # E[x_1 | x_t], regular at σ = 0
        return path.alpha_dot(t) * data + path.sigma_dot(t) * noise

    return velocity


def velocity_to_score(velocity: Tensor, x: Tensor, t: float | Tensor, path: Schedule) -> Tensor:
    """∇ log p_t(x) = (αv - α̇x)/(σ(α̇σ - ασ̇)) from the velocity v at x, for independent noise N(0, I) at t = 1.

    So one trained velocity gives the whole family of reverse processes. The error of v is amplified by 1/σ near data.
    Source: Cao §5.2; Albergo et al. (2023).  Taught in: notebook 09_02b.
    """
    alpha, sigma, alpha_dot, sigma_dot = _coefficients(x, t, path)
    return (alpha * velocity - alpha_dot * x) / (sigma * (alpha_dot * sigma - alpha * sigma_dot))


def score_to_velocity(score: Tensor, x: Tensor, t: float | Tensor, path: Schedule) -> Tensor:
    """v = (α̇x + σ(α̇σ - ασ̇) s)/α from the score s at x: the probability-flow ODE; the inverse of `velocity_to_score`."""
    alpha, sigma, alpha_dot, sigma_dot = _coefficients(x, t, path)
    return (alpha_dot * x + sigma * (alpha_dot * sigma - alpha * sigma_dot) * score) / alpha


def ot_pairs(x0: Points, x1: Points, batch_size: int) -> Int[Tensor, " n"]:
    """An order of x1 such that x0 and x1[order] are optimally coupled within each batch, for the squared distance.

    Parameters
    ----------
    batch_size : int ≥ 1
        The exact assignment takes O(batch_size³) each; the larger, the closer to the Monge map.

    Raises ValueError if the shapes differ.
    Source: Tong et al., TMLR (2024); Pooladian et al., ICML (2023).  Taught in: notebook 09_02b.
    """
    if x0.shape != x1.shape or x0.ndim != 2:
        raise ValueError(f"x0 and x1 must have one shape (n, d), got {tuple(x0.shape)} and {tuple(x1.shape)}")
    order = []
    for index in torch.arange(len(x0)).split(as_integer("batch_size", batch_size, low=1)):
        cost = torch.cdist(x0[index].double(), x1[index].double()).square().cpu().numpy()
        order.append(index[torch.from_numpy(scipy.optimize.linear_sum_assignment(cost)[1])])
    return torch.cat(order)


# --- bridges ------------------------------------------------------------------------------------------------


def brownian_bridge(
    x0: Points,
    x1: Points,
    t: Float[Tensor, " n_times"],
    variance: float = 1.0,
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n_times n d"]:
    """Brownian paths from x0 at t = 0 to x1 at t = 1, at the times t, exact in law for any steps.

    From x at s the law at t is N(x + (t - s)/(1 - s) (x_1 - x), ε (t - s)(1 - t)/(1 - s) I), ε the variance of the
    motion per unit of time.

    Raises ValueError unless the ends have one shape, 0 ≤ t[0] < t[1] < … ≤ 1 and the variance is not negative.
    Source: Chertkov §9.1.1; Doob (1957).  Taught in: notebook 09_02.
    """
    if x0.shape != x1.shape:
        raise ValueError(f"x0 and x1 must have one shape, got {tuple(x0.shape)} and {tuple(x1.shape)}")
    variance = as_number("variance", variance, low=0)
    times = torch.as_tensor(t, dtype=torch.float64)
    if times.ndim != 1 or len(times) == 0 or times[0] < 0 or times[-1] > 1 or bool((times.diff() <= 0).any()):
        raise ValueError(f"t must be increasing times in [0, 1], got {times.tolist()}")
    x, last, path = x0, 0.0, []
    for time in times.tolist():
        if time > last:
            share = (time - last) / (1 - last)
            z = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            x = x + share * (x1 - x) + math.sqrt(variance * share * (1 - time)) * z
        path.append(x)
        last = time
    return torch.stack(path)


def doob_transform(log_h: Callable[[Tensor, float], Tensor], variance: float, drift: Field | None = None) -> Field:
    """The drift f + ε ∇ log h of dx = f dt + √ε dw conditioned by h, where h(x, t) solves the backward equation.

    h = p(x_1 | x_t) pins the end to a point; h = ∫ p(y | x_t) φ(y) dy gives it a law.

    Parameters
    ----------
    log_h : callable, ``log_h(x, t)`` maps (n, d) to (n,), differentiable by torch
    variance : float ≥ 0
        ε.
    drift : callable, optional
        f(x, t), zero by default.

    Source: Chertkov eq. (9.10); Doob (1957).  Taught in: notebook 09_02.
    """
    variance = as_number("variance", variance, low=0)

    def conditioned(x: Tensor, t: float) -> Tensor:
        with torch.enable_grad():
            points = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_h(points, t).sum(), points)
        return variance * gradient + (0 if drift is None else drift(x, t))

    return conditioned


def markov_projection(mixture0: GaussianMixture, mixture1: GaussianMixture, variance: float) -> Field:
    """The drift u(x, t) = E[(x_1 - x)/(1 - t) | x_t = x] of the bridge between independent ends, t < 1.

    dx = u dt + √ε dw is Markov and has the marginals of the mixture of pinned Brownian motions, which is not Markov:
    what bridge matching learns. With ε = 0 it is the velocity of flow matching on the linear path.

    Raises ValueError if the mixtures differ in dimension.
    Source: Shi et al., NeurIPS (2023); Chertkov §9.1.1.  Taught in: notebook 09_02.
    """
    variance = as_number("variance", variance, low=0)
    if mixture0.means.shape[1] != mixture1.means.shape[1]:
        raise ValueError(f"dimensions must agree, got {mixture0.means.shape[1]} and {mixture1.means.shape[1]}")
    k0, k1 = len(mixture0.weights), len(mixture1.weights)
    i, j = (index.flatten() for index in torch.meshgrid(torch.arange(k0), torch.arange(k1), indexing="ij"))
    identity = torch.eye(mixture0.means.shape[1]).to(mixture0.means)

    def drift(x: Tensor, t: float) -> Tensor:
        s = as_number("t", t, low=0)
        if s >= 1:
            raise ValueError(f"t must be below 1, got {s:g}")
        covs = (1 - s) ** 2 * mixture0.covs[i] + s**2 * mixture1.covs[j] + variance * s * (1 - s) * identity
        means = (1 - s) * mixture0.means[i] + s * mixture1.means[j]
        between = GaussianMixture(mixture0.weights[i] * mixture1.weights[j], means, covs)
        logs, white = between._terms(x)
        ends = mixture1.means[j] + s * torch.einsum("kde,...ke->...kd", mixture1.covs[j], between._pulled(white))
        end = (torch.softmax(logs, dim=-1).unsqueeze(-1) * ends).sum(-2)
        return (end - x) / (1 - s)

    return drift


@dataclass(frozen=True, eq=False)
class GaussianBridge:
    """Gaussian ends with covariance `cross` = Cov(x_0, x_1), joined by Brownian bridges of variance ε per unit time."""

    mean0: Float[Tensor, " d"]
    cov0: Float[Tensor, "d d"]
    mean1: Float[Tensor, " d"]
    cov1: Float[Tensor, "d d"]
    cross: Float[Tensor, "d d"]
    variance: float

    def marginal(self, t: float) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """Mean and covariance of x_t."""
        r = 1 - t
        noise = self.variance * t * r * torch.eye(len(self.mean0)).to(self.cov0)
        mixed = t * r * (self.cross + self.cross.mT)
        return r * self.mean0 + t * self.mean1, r * r * self.cov0 + t * t * self.cov1 + mixed + noise

    def drift(self, x: Float[Tensor, "n d"], t: float) -> Float[Tensor, "n d"]:
        """E[(x_1 - x)/(1 - t) | x_t = x], affine in x; t < 1."""
        mean, cov = self.marginal(t)
        with_end = (1 - t) * self.cross.mT + t * self.cov1
        end = self.mean1 + torch.linalg.solve(cov, (x - mean).mT).mT @ with_end.mT
        return (end - x) / (1 - t)


def gaussian_schrodinger_bridge(
    mean0: Float[Tensor, " d"],
    cov0: Float[Tensor, "d d"],
    mean1: Float[Tensor, " d"],
    cov1: Float[Tensor, "d d"],
    variance: float,
) -> GaussianBridge:
    """The Schrödinger bridge between two Gaussians, relative to Brownian motion of variance ε per unit time.

    Cov(x_0, x_1) = ½(Σ₀^{½} D Σ₀^{-½} - ε I), D = (4 Σ₀^{½} Σ₁ Σ₀^{½} + ε² I)^{½}. For ε → 0 the ends are coupled by
    the optimal transport map, for ε → ∞ they are independent.

    Raises ValueError if the shapes do not match or a covariance is not symmetric and positive definite.
    Source: Janati et al., NeurIPS (2020); Bunne et al., AISTATS (2023).  Taught in: notebook 09_02.
    """
    variance = as_number("variance", variance, low=0, strict=True)
    for mean, cov in ((mean0, cov0), (mean1, cov1)):
        GaussianMixture(torch.ones(1).to(mean), mean.unsqueeze(0), cov.unsqueeze(0))  # checks
    if mean0.shape != mean1.shape:
        raise ValueError(f"mean0 and mean1 must have one shape, got {tuple(mean0.shape)} and {tuple(mean1.shape)}")
    root, inverse_root = _power(cov0, 0.5), _power(cov0, -0.5)
    identity = torch.eye(len(mean0)).to(cov0)
    # root D root⁻¹ - ε I with D - ε I = 4M (D + ε I)⁻¹, M = root Σ₁ root, so that large ε costs no digits
    M = root @ cov1 @ root
    D = _power(4 * M + variance**2 * identity, 0.5)
    excess = 4 * torch.linalg.solve(D + variance * identity, M)
    return GaussianBridge(mean0, cov0, mean1, cov1, 0.5 * root @ excess @ inverse_root, variance)


@dataclass(frozen=True, eq=False)
class SchrodingerBridge:
    """The law of paths nearest to Brownian motion, in relative entropy, between two laws on finitely many points."""

    x0: Float[Tensor, "n d"]
    x1: Float[Tensor, "m d"]
    plan: Float[Tensor, "n m"]
    """Joint law of the ends: in each row in proportion to N(x_1j; x_0i, ε I) φ_j."""
    log_potential: Float[Tensor, " m"]
    """log φ, up to a constant."""
    variance: float
    residual: float
    """By how much the marginals of the plan are off, summed."""

    def sample(
        self, n: int, t: Float[Tensor, " n_times"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n_times n d"]:
        """Paths at the times t: ends from the plan, exact Brownian bridges between them."""
        plan = self.plan.flatten().cpu()
        pairs = torch.multinomial(plan, as_integer("n", n, low=1), True, generator=generator).to(self.plan.device)
        i, j = pairs // len(self.x1), pairs % len(self.x1)
        return brownian_bridge(self.x0[i], self.x1[j], t, self.variance, generator=generator)

    def drift(self, x: Float[Tensor, "k d"], t: float) -> Float[Tensor, "k d"]:
        """ε ∇ log h(x, t), h = Σⱼ φⱼ N(x_1j; x, ε(1 - t) I): the Markov drift of the bridge, t < 1.

        For points on a grid it is the drift between densities as long as √(ε(1 - t)) is above the spacing.
        """
        scale = self.variance * (1 - as_number("t", t, low=0))
        if scale <= 0:
            raise ValueError(f"t must be below 1, got {t:g}")
        logs = self.log_potential - torch.cdist(x, self.x1, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / (
            2 * scale
        )
        return (torch.softmax(logs, dim=-1) @ self.x1 - x) / (1 - t)

    @cached_property
    def correlation(self) -> float:
        """tr Cov(x_0, x_1)/√(tr Cov(x_0) tr Cov(x_1)); in one dimension the correlation of the ends."""
        p0, p1 = self.plan.sum(1), self.plan.sum(0)
        a, b = self.x0 - p0 @ self.x0, self.x1 - p1 @ self.x1
        joint = ((self.plan @ b) * a).sum()
        return float(joint / ((p0 @ (a * a)).sum() * (p1 @ (b * b)).sum()).sqrt())


def schrodinger_bridge(
    x0: Float[Tensor, "n d"],
    x1: Float[Tensor, "m d"],
    p0: Float[Tensor, " n"],
    p1: Float[Tensor, " m"],
    variance: float,
    *,
    tol: float = 1e-9,
    max_iter: int = 10_000,
) -> SchrodingerBridge:
    """Schrödinger bridge between weights p0 on points x0 and p1 on x1, by Sinkhorn's iteration in the log domain.

    Of all processes with these ends it is the one nearest, in relative entropy, to Brownian motion of variance ε per
    unit time: entropic optimal transport of the ends with cost ½|x - y|² and regularisation ε.

    Raises ValueError for weights that are not a pmf; warns (ConvergenceWarning) if the marginals are not met.
    Source: Léonard, DCDS (2014); Chertkov §9.1.1.  Taught in: notebook 09_02.
    """
    variance = as_number("variance", variance, low=0, strict=True)
    cost = 0.5 * torch.cdist(x0, x1, compute_mode="donot_use_mm_for_euclid_dist").square().double()
    solved = sinkhorn(_numpy(p0), _numpy(p1), cost.cpu().numpy(), variance, tol=tol, max_iter=max_iter)
    plan, g = torch.from_numpy(solved.P).to(x0), torch.from_numpy(solved.g).to(x1)
    return SchrodingerBridge(x0, x1, plan, p1.log() + g / variance, variance, solved.residual)


# --- checks -------------------------------------------------------------------------------------------------


def _end(T) -> float:
    T = as_number("T", T, low=0, strict=True)
    if T > 1:
        raise ValueError(f"T must be at most 1, got {T:g}")
    return T


def _coefficients(x, t, path):
    if isinstance(t, Tensor) and t.ndim == 1:
        t = t.view(-1, *(1,) * (x.ndim - 1))
    return path.alpha(t), path.sigma(t), path.alpha_dot(t), path.sigma_dot(t)


def _power(S, exponent):
    """Of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(S)
    return (vectors * values**exponent) @ vectors.mT


def _numpy(p) -> np.ndarray:
    return p.double().cpu().numpy()
