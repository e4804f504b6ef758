"""Learning a score from data with noise."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from coursekit._validation import as_number
from coursekit.diffusion._checks import Score, Time, check_like
from coursekit.diffusion._schedules import Points, Schedule, first_time, noised_with_levels
from coursekit.diffusion._scores import GaussianMixture


class ScoreModel(nn.Module):
    """A network made into a score: where it gives zero, the score is that of data N(0, data_std² I).

    With v = α² data_std² + σ², the variance of x_t,

        s(x, t) = -x/v + α data_std/(σ√v) · net(x/√v, log(σ/α)).

    So the network sees inputs of unit size and has to find the rest of the denoised point, E[x_0|x_t], in units of the
    error of the linear guess, at every noise level; it need not learn the 1/σ growth of the score.

    Parameters
    ----------
    net : module, maps (n, *shape) and (n,) to (n, *shape)
    schedule : Schedule
    data_std : positive float
        Standard deviation of a coordinate of the data, which should be centred.

    Raises ValueError if data_std is not positive, or the network returns another shape.
    Source: Karras et al., NeurIPS (2022), for a variance-preserving process.  Taught in: notebook 09_01c.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, data_std: float = 1.0) -> None:
        super().__init__()
        self.net, self.schedule = net, schedule
        self.data_std = as_number("data_std", data_std, low=0, strict=True)

    def forward(self, x: Points, t: Time) -> Points:
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        t = t.view(-1, *(1,) * (x.ndim - 1)) if t.ndim else t
        alpha, sigma = self.schedule.levels(t)
        gain = alpha * self.data_std
        root = (gain * gain + sigma * sigma).sqrt()
        scaled = x / root
        output = self.net(scaled, (sigma / alpha).log().flatten().expand(len(x)))
        check_like("the network's output", output, x)
        return (gain / sigma * output - scaled) / root


def dsm_loss(
    model: Score, x0: Points, schedule: Schedule, *, t_min: float = 1e-4, generator: torch.Generator | None = None
) -> Float[Tensor, ""]:
    """Denoising score matching: the mean of |σ(t) s(x_t, t) + ε|², x_t = α x_0 + σ ε, over points, times, coordinates.

    Times are uniform in [t_min, T], one in each of n equal parts. The zero score has loss 1; the exact score has the
    `dsm_floor`, above zero, because ε is not a function of x_t; the excess of any other score over it is the mean of
    σ²|s - ∇ log p_t|² per coordinate.

    Parameters
    ----------
    model : callable, ``model(x, t)`` with x (n, *shape) and t (n,)
    x0 : (n, *shape)
        Data, in any order.

    Raises ValueError for t_min outside (0, T), or a model that returns another shape.
    Source: Vincent (2011); Chertkov §9.1; Cao eq. (5.4) with the weight σ².  Taught in: notebook 09_01c.
    """
    t = stratified(len(x0), first_time(t_min, schedule), schedule.T, generator).to(x0)
    x, noise, _, sigma = noised_with_levels(x0, t, schedule, generator)
    score = model(x, t)
    check_like("the score", score, x)
    return (sigma * score + noise).square().mean()


def denoising_loss(
    model: ScoreModel,
    x0: Points,
    *,
    level_mean: float = 0.0,
    level_std: float = 1.2,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Denoising score matching with log(σ/α) ~ N(level_mean, level_std²), and every noise level counted alike.

    The mean of |net - (x_0 - linear guess)/its error|², which is that of v/(α data_std)² |σ s + ε|²:
    a silent network has the loss 1 at every level on Gaussian data of this size. The minimiser is the exact score, as
    for `dsm_loss`; the levels say where the network looks hardest. Levels outside the schedule are moved to its ends.

    Raises ValueError if level_std is negative.
    Source: Karras et al., NeurIPS (2022), eq. 8.  Taught in: notebook 09_01d.
    """
    level_std = as_number("level_std", level_std, low=0)
    u = torch.special.ndtri(stratified(len(x0), 0.0, 1.0, generator).double().clamp(1e-9, 1 - 1e-9))
    t = model.schedule.time(-2 * (as_number("level_mean", level_mean) + level_std * u)).clamp(1e-6, model.schedule.T)
    t = t.to(x0)
    x, noise, alpha, sigma = noised_with_levels(x0, t, model.schedule, generator)
    gain = alpha * model.data_std
    weight = (gain**2 + sigma**2) / gain**2
    return (weight * (sigma * model(x, t) + noise).square()).mean()


def dsm_floor(mixture: GaussianMixture, schedule: Schedule, *, t_min: float = 1e-4) -> float:
    """The least value of `dsm_loss`, 1 - E_t[σ² E|∇ log p_t|²], for a mixture on the line, by quadrature.

    A law with independent coordinates of one kind has the floor of one of them.

    Raises ValueError unless the mixture has one dimension.
    Source: Cao §5.1; Miyamoto, Beg Rohu notes, §7.3.5.  Taught in: notebook 09_01.
    """
    if mixture.means.shape[1] != 1:
        raise ValueError(f"mixture must have one dimension, got {mixture.means.shape[1]}")
    nodes, weights = np.polynomial.legendre.leggauss(64)
    t_min = first_time(t_min, schedule)
    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        t = t_min + (schedule.T - t_min) * (node + 1) / 2
        sigma = schedule.sigma(t)
        noisy = mixture.noised(schedule.alpha(t), sigma)
        total += 0.5 * weight * float(sigma) ** 2 * _fisher_information(noisy)
    return 1 - total


def _fisher_information(mixture) -> float:
    """E|∇ log p|² on the line; the trapezoidal rule is exact to rounding for a smooth integrand with Gaussian ends."""
    width = mixture.covs.sqrt().flatten()
    low, high = mixture.means.flatten() - 12 * width, mixture.means.flatten() + 12 * width
    n = int((high.max() - low.min()) / width.min() * 8)
    x = torch.linspace(float(low.min()), float(high.max()), n, dtype=mixture.means.dtype).unsqueeze(-1)
    density, score = mixture.log_prob(x).exp(), mixture.score(x).squeeze(-1)
    return float((density * score**2).sum() / density.sum())


def stratified(n, low, high, generator):
    """One uniform number in each of n equal parts of [low, high], in random order."""
    u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return low + (high - low) * u[torch.randperm(n, generator=generator)]
