"""Exact scores: of Gaussian mixtures and of data sets, with noise."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coursekit._validation import as_integer, as_number
from coursekit.diffusion._checks import Score, Time, check_last_axis, check_like, floating
from coursekit.diffusion._schedules import Points, Schedule, levels_for


class Posterior(NamedTuple):
    """Law of x_0 given x_t, a Gaussian mixture for each point: weights (*n, k), means (*n, k, d), covs (k, d, d)."""

    weights: Float[Tensor, "*n k"]
    means: Float[Tensor, "*n k d"]
    covs: Float[Tensor, "k d d"]

    @property
    def mean(self) -> Float[Tensor, "*n d"]:
        """E[x_0 | x_t], the optimal denoiser."""
        return (self.weights.unsqueeze(-1) * self.means).sum(-2)

    @property
    def cov(self) -> Float[Tensor, "*n d d"]:
        offset = self.means - self.mean.unsqueeze(-2)
        within = torch.einsum("...k,kde->...de", self.weights, self.covs)
        return within + torch.einsum("...k,...kd,...ke->...de", self.weights, offset, offset)


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Σₖ wₖ N(mₖ, Σₖ) in d dimensions, closed under noising; methods take points (*n, d).

    Raises ValueError if the tensors are not floating and finite with matching shapes, the weights are not a pmf, or a
    covariance is not symmetric and positive definite.
    Source: Chertkov §9.1, Example 9.1.1.  Taught in: notebook 09_01.
    """

    weights: Float[Tensor, " k"]
    means: Float[Tensor, "k d"]
    covs: Float[Tensor, "k d d"]

    def __post_init__(self) -> None:
        _check_mixture(self.weights, self.means, self.covs)

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cholesky factors L, their inverses W (so that Σₖ⁻¹ = WₖᵀWₖ), and log wₖ - ½ log det 2πΣₖ."""
        L = torch.linalg.cholesky(self.covs)
        log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        d = self.means.shape[1]
        W = torch.linalg.solve_triangular(L, torch.eye(d).to(L), upper=False)
        return L, W, self.weights.log() - log_det - 0.5 * d * math.log(2 * math.pi)

    def _terms(self, x) -> tuple[Tensor, Tensor]:
        """log(wₖ Nₖ(x)), (*n, k), and the whitened points Wₖ(x - mₖ), (*n, k, d)."""
        check_last_axis(x, self.means)
        _, W, constant = self._factors
        # one matrix product for all components
        white = (x @ W.flatten(0, 1).mT).unflatten(-1, W.shape[:2]) - torch.einsum("kde,ke->kd", W, self.means)
        return constant - 0.5 * white.square().sum(-1), white

    def _pulled(self, white) -> Tensor:
        """Σₖ⁻¹(x - mₖ), (*n, k, d)."""
        return torch.einsum("...kd,kde->...ke", white, self._factors[1])

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
        """Independent draws, their components in random order."""
        n = as_integer("n", n, low=1)
        k = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=generator).to(self.means.device)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype).to(self.means.device)
        return self.means[k] + torch.einsum("nde,ne->nd", self._factors[0][k], z)

    def log_prob(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        return torch.logsumexp(self._terms(x)[0], dim=-1)

    def responsibilities(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        """Probability of each component given the point."""
        return torch.softmax(self._terms(x)[0], dim=-1)

    def score(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """∇ log p(x) = -Σₖ rₖ(x) Σₖ⁻¹ (x - mₖ), r the responsibilities."""
        logs, white = self._terms(x)
        shares = torch.softmax(logs, dim=-1).unsqueeze(-1) * white
        return -shares.flatten(-2) @ self._factors[1].flatten(0, 1)

    def hessian(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d d"]:
        """∇² log p(x) = Cov_r(Σₖ⁻¹ (x - mₖ)) - Σₖ rₖ Σₖ⁻¹: the Jacobian of the score."""
        logs, white = self._terms(x)
        r, pulled = torch.softmax(logs, dim=-1), self._pulled(white)
        spread = pulled - (r.unsqueeze(-1) * pulled).sum(-2, keepdim=True)
        between = torch.einsum("...k,...kd,...ke->...de", r, spread, spread)
        precisions = self._factors[1].mT @ self._factors[1]
        return between - torch.einsum("...k,kde->...de", r, precisions)

    def noised(self, alpha: Time, sigma: Time) -> "GaussianMixture":
        """The law of α x + σ ε: Σₖ wₖ N(α mₖ, α² Σₖ + σ² I)."""
        alpha, sigma = (floating(value).to(self.means) for value in (alpha, sigma))
        identity = torch.eye(self.means.shape[1]).to(self.means)
        return GaussianMixture(self.weights, alpha * self.means, alpha**2 * self.covs + sigma**2 * identity)

    def posterior(self, x: Float[Tensor, "*n d"], alpha: Time, sigma: Time) -> Posterior:
        """The law of x_0 ~ this mixture, given x = α x_0 + σ ε.

        Component k has the mean mₖ + Kₖ(x - α mₖ) and the covariance Σₖ - α KₖΣₖ, Kₖ = α Σₖ(α²Σₖ + σ²I)⁻¹.
        """
        noisy = self.noised(alpha, sigma)
        alpha = floating(alpha).to(self.means)
        logs, white = noisy._terms(x)
        gain = alpha * self.covs
        means = self.means + torch.einsum("kde,...ke->...kd", gain, noisy._pulled(white))
        half = noisy._factors[1] @ gain
        covs = self.covs - half.mT @ half
        return Posterior(torch.softmax(logs, dim=-1), means, covs)


def mixture_score(mixture: GaussianMixture, schedule: Schedule) -> Score:
    """The exact score s(x, t) of a mixture that the schedule turns into noise, for one time or one for each point.

    Noise moves the eigenvalues of the covariances, λ to α²λ + σ², and leaves their eigenvectors.
    Source: Chertkov eq. (9.6); Cao §5.1.  Taught in: notebook 09_01.
    """
    variances, axes = torch.linalg.eigh(mixture.covs)
    means, log_weights = torch.einsum("kde,kd->ke", axes, mixture.means), mixture.weights.log()
    k, d = mixture.means.shape
    turn = axes.mT.reshape(k * d, d)

    def score(x: Float[Tensor, "n d"], t: Time) -> Float[Tensor, "n d"]:
        check_last_axis(x, mixture.means)
        alpha, sigma = (value.unsqueeze(-1) for value in levels_for(x, t, schedule))
        v = alpha**2 * variances + sigma**2
        offset = (x @ turn.mT).unflatten(-1, (k, d)) - alpha * means
        pulled = offset / v
        logs = log_weights - 0.5 * (offset * pulled + v.log()).sum(-1)
        return -(torch.softmax(logs, dim=-1).unsqueeze(-1) * pulled).flatten(-2) @ turn

    return score


def empirical_score(
    x: Float[Tensor, "n d"], data: Float[Tensor, "N d"], alpha: Time, sigma: Time, *, chunk: int = 1024
) -> Float[Tensor, "n d"]:
    """Score of a data set with noise, of the law (1/N) Σ N(α yᵢ, σ² I) of points yᵢ.

    s = (α Σ wᵢ yᵢ - x)/σ², w = softmax of -|x - α yᵢ|²/(2σ²): attention of x over the data. A reverse process that it
    drives ends on the data themselves. In float32 the weights are good for σ above 1e-3 of the size of the data.

    Parameters
    ----------
    chunk : int ≥ 1
        Points at a time; (chunk, N) numbers are kept in memory.

    Raises ValueError if the shapes do not match or σ is not positive.
    Source: Chertkov eq. (9.6); Miyamoto, Beg Rohu notes, §7.3.5.  Taught in: notebook 09_01.
    """
    check_last_axis(x, data)
    alpha, sigma = as_number("alpha", alpha), as_number("sigma", sigma, low=0, strict=True)
    bias = -0.5 * alpha**2 * (data * data).sum(-1)

    def mean(part):
        return torch.softmax((alpha * part @ data.T + bias) / sigma**2, dim=-1) @ data

    means = torch.cat([mean(part) for part in x.split(as_integer("chunk", chunk, low=1))])
    return (alpha * means - x) / sigma**2


def tweedie(x: Points, score: Points, alpha: Time, sigma: Time) -> Points:
    """E[x_0 | x_t = x] = (x + σ² s)/α from the value s of the score at x.

    Source: Robbins (1956); Miyamoto, Beg Rohu notes, §6.3.  Taught in: notebook 09_01.
    """
    check_like("score", score, x)
    return (x + sigma**2 * score) / alpha


@dataclass(frozen=True, eq=False)
class ModeStatistics:
    """Samples assigned to the nearest of k centres."""

    counts: Int[Tensor, " k"]
    std: float
    """Root mean square distance to the nearest centre, per coordinate."""
    total_variation: float
    """½ Σ |counts/n - weights|."""
    distance: Float[Tensor, " n"]
    """To the nearest centre."""


def mode_statistics(
    x: Float[Tensor, "n d"], centers: Float[Tensor, "k d"], weights: Float[Tensor, " k"] | None = None
) -> ModeStatistics:
    """How samples spread over well separated modes; weights are equal unless given.

    Raises ValueError if the shapes do not match.
    Source: Chertkov §9.1, Exercise 9.1.1.  Taught in: notebook 09_01.
    """
    check_last_axis(x, centers)
    k = len(centers)
    weights = torch.full((k,), 1 / k, dtype=torch.float64) if weights is None else weights
    if weights.shape != (k,):
        raise ValueError(f"weights must have shape ({k},), got {tuple(weights.shape)}")
    distance, mode = torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    counts = torch.bincount(mode, minlength=k)
    return ModeStatistics(
        counts,
        float(distance.square().mean().div(x.shape[1]).sqrt()),
        float(0.5 * (counts / len(x) - weights.to(counts.device)).abs().sum()),
        distance,
    )


def _check_mixture(weights, means, covs):
    if means.ndim != 2 or 0 in means.shape:
        raise ValueError(f"means must have shape (k, d), got {tuple(means.shape)}")
    k, d = means.shape
    for name, value, shape in (("weights", weights, (k,)), ("covs", covs, (k, d, d))):
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    for name, value in (("weights", weights), ("means", means), ("covs", covs)):
        if value.dtype != means.dtype or not value.is_floating_point():
            raise ValueError(f"{name} must be floating, all three alike, got {value.dtype}")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinite values")
    total = float(weights.sum())
    if bool((weights < 0).any()) or abs(total - 1) > 1e3 * torch.finfo(weights.dtype).eps:
        raise ValueError(f"weights must be non-negative with sum 1, got {weights.tolist()} with sum {total:.10g}")
    asymmetry = float((covs - covs.mT).abs().max())
    if asymmetry > 1e3 * torch.finfo(covs.dtype).eps * float(covs.abs().max()):
        raise ValueError(f"covs must be symmetric, got entries that differ by {asymmetry:.3g}")
    if bool(torch.linalg.cholesky_ex(covs).info.any()):
        smallest = float(torch.linalg.eigvalsh(covs).min())
        raise ValueError(f"covs must be positive definite, got a smallest eigenvalue of {smallest:.3g}")
