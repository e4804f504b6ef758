"""How data turn into noise: α(t), σ(t) and the linear stochastic equation that has them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from coursekit._validation import as_number
from coursekit.diffusion._checks import Time, floating, range_of

Points = Float[Tensor, "n *shape"]


class Schedule:
    """x_t = α(t) x_0 + σ(t) ε for t in [0, T]: the law of dx = (α̇/α) x dt + √β(t) dw, β = 2(σσ̇ - σ² α̇/α).

    A schedule defines `alpha` and `sigma`, their derivatives `alpha_dot` and `sigma_dot`, and `time`. Methods take a
    float or a tensor, and give a tensor of its shape; they raise ValueError for times outside [0, T].
    """

    T: float

    def alpha(self, t: Time) -> Tensor:
        """Factor of the data."""
        raise NotImplementedError

    def sigma(self, t: Time) -> Tensor:
        """Standard deviation of the noise."""
        raise NotImplementedError

    def levels(self, t: Time) -> tuple[Tensor, Tensor]:
        """α and σ, which most users need together."""
        return self.alpha(t), self.sigma(t)

    def alpha_dot(self, t: Time) -> Tensor:
        """dα/dt."""
        raise NotImplementedError

    def sigma_dot(self, t: Time) -> Tensor:
        """dσ/dt."""
        raise NotImplementedError

    def time(self, log_snr: Time) -> Tensor:
        """The time at which log(α²/σ²) has this value: the inverse function of `log_snr`."""
        raise NotImplementedError

    def rate(self, t: Time) -> Tensor:
        """α̇/α, the factor of x in the drift of the forward equation."""
        return self.alpha_dot(t) / self.alpha(t)

    def beta(self, t: Time) -> Tensor:
        """Variance that the forward equation adds per unit of time, the square of its noise coefficient."""
        sigma = self.sigma(t)
        return 2 * sigma * (self.sigma_dot(t) - self.rate(t) * sigma)

    def log_snr(self, t: Time) -> Tensor:
        """log(α²/σ²), decreasing; ∞ at t = 0 where there is no noise yet."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    @property
    def prior_std(self) -> float:
        """Standard deviation of the normal law that stands in for p_T."""
        return float(self.sigma(self.T))

    def _times(self, t: Time) -> Tensor:
        t = floating(t)
        low, high = (float(end) for end in torch.aminmax(t.detach()))
        if not (low >= 0 and high <= self.T * (1 + 1e-6)):
            raise ValueError(f"t must lie in the schedule's interval [0, {self.T:g}], got {range_of(t)}")
        return t


class VPSchedule(Schedule):
    """Variance preserving: dx = -½β(t) x dt + √β(t) dw with β linear from beta_min at t = 0 to beta_max at t = T.

    With B(t) = ∫₀ᵗ β: α = e^{-B/2}, σ² = 1 - e^{-B}, and the prior is N(0, I). Equal betas of 2 give the
    Ornstein–Uhlenbeck process dx = -x dt + √2 dw.

    Parameters
    ----------
    beta_min, beta_max : positive floats
    T : positive float

    Raises ValueError if a parameter is not positive.
    Source: Song et al., ICLR (2021); Chertkov §9.1; Cao §5.1.  Taught in: notebook 09_01.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, *, T: float = 1.0) -> None:
        self.beta_min = as_number("beta_min", beta_min, low=0, strict=True)
        self.beta_max = as_number("beta_max", beta_max, low=0, strict=True)
        self.T = as_number("T", T, low=0, strict=True)

    def integral(self, t: Time) -> Tensor:
        """B(t) = ∫₀ᵗ β."""
        t = self._times(t)
        return self.beta_min * t + (self.beta_max - self.beta_min) / (2 * self.T) * t * t

    def alpha(self, t: Time) -> Tensor:
        return (-0.5 * self.integral(t)).exp()

    def sigma(self, t: Time) -> Tensor:
        return (-torch.expm1(-self.integral(t))).sqrt()

    def levels(self, t: Time) -> tuple[Tensor, Tensor]:
        B = self.integral(t)
        return (-0.5 * B).exp(), (-torch.expm1(-B)).sqrt()

    def beta(self, t: Time) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) / self.T * self._times(t)

    def rate(self, t: Time) -> Tensor:
        return -0.5 * self.beta(t)

    def alpha_dot(self, t: Time) -> Tensor:
        return self.rate(t) * self.alpha(t)

    def sigma_dot(self, t: Time) -> Tensor:
        return 0.5 * self.beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def time(self, log_snr: Time) -> Tensor:
        B = nn.functional.softplus(-floating(log_snr))
        slope = (self.beta_max - self.beta_min) / self.T
        return 2 * B / (self.beta_min + (self.beta_min**2 + 2 * slope * B).sqrt())  # without cancellation

    @property
    def prior_std(self) -> float:
        return 1.0


class VESchedule(Schedule):
    """Variance exploding: dx = √β(t) dw, α = 1 and σ² = sigma_min² (r^{2t/T} - 1), r = sigma_max/sigma_min.

    The prior is N(0, σ(T)² I): right for data whose spread is far below sigma_max.

    Raises ValueError unless 0 < sigma_min < sigma_max and T > 0.
    Source: Song et al., ICLR (2021); Chertkov eq. (9.5), whose β is half of ours.  Taught in: notebook 09_01.
    """

    def __init__(self, sigma_min: float, sigma_max: float, *, T: float = 1.0) -> None:
        self.sigma_min = as_number("sigma_min", sigma_min, low=0, strict=True)
        self.sigma_max = as_number("sigma_max", sigma_max, low=self.sigma_min, strict=True)
        self.T = as_number("T", T, low=0, strict=True)
        self._growth = 2 * math.log(self.sigma_max / self.sigma_min) / self.T

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(self._times(t))

    def alpha_dot(self, t: Time) -> Tensor:
        return torch.zeros_like(self._times(t))

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_min * torch.expm1(self._growth * self._times(t)).sqrt()

    def beta(self, t: Time) -> Tensor:
        return self.sigma_min**2 * self._growth * (self._growth * self._times(t)).exp()

    def sigma_dot(self, t: Time) -> Tensor:
        return 0.5 * self.beta(t) / self.sigma(t)

    def time(self, log_snr: Time) -> Tensor:
        return torch.log1p((-floating(log_snr)).exp() / self.sigma_min**2) / self._growth


def noised(
    x0: Points, t: Time, schedule: Schedule, *, generator: torch.Generator | None = None
) -> tuple[Points, Points]:
    """Draw x_t = α x_0 + σ ε; returns x_t and ε.

    Raises ValueError for times outside the schedule or of another number than the points.
    Source: Chertkov §9.1; Cao §5.1.  Taught in: notebook 09_01.
    """
    return noised_with_levels(x0, t, schedule, generator)[:2]


def noised_with_levels(x0, t, schedule, generator):
    """x_t, ε, α and σ."""
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(x0.device)
    alpha, sigma = levels_for(x0, t, schedule)
    return alpha * x0 + sigma * noise, noise, alpha, sigma


def levels_for(x, t, schedule):
    """α and σ, shaped so that they multiply points."""
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if t.shape not in ((), (len(x),)):
        raise ValueError(f"t must be one time or {len(x)} of them, got shape {tuple(t.shape)}")
    return tuple(level.view(-1, *(1,) * (x.ndim - 1)) for level in schedule.levels(t))


def first_time(t_min, schedule) -> float:
    t_min = as_number("t_min", t_min, low=0, strict=True)
    if t_min >= schedule.T:
        raise ValueError(f"t_min must be below the schedule's T = {schedule.T:g}, got {t_min:g}")
    return t_min
