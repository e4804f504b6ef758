"""Score-based diffusion: a linear stochastic equation turns data into noise, and its reversal noise into data.

Time runs from data, t = 0, to noise, t = T. A schedule gives x_t = α(t) x_0 + σ(t) ε with ε standard normal; the score
is s(x, t) = ∇ log p_t(x). Scores and networks are called with points (n, *shape) and a time, one for all points or one
for each, (n,). For a Gaussian mixture every p_t and its score are known exactly (`mixture_score`); learned scores and
samplers are held against them. Random numbers are drawn on the CPU, wherever the points are.
"""

from coursekit.diffusion._learning import (
    ScoreModel,
    denoising_loss,
    dsm_floor,
    dsm_loss,
)
from coursekit.diffusion._sampling import (
    StabilityWarning,
    ode_log_likelihood,
    reverse_process,
    sample,
    time_grid,
)
from coursekit.diffusion._schedules import (
    Schedule,
    VESchedule,
    VPSchedule,
    noised,
)
from coursekit.diffusion._scores import (
    GaussianMixture,
    ModeStatistics,
    Posterior,
    empirical_score,
    mixture_score,
    mode_statistics,
    tweedie,
)

__all__ = [
    "GaussianMixture",
    "ModeStatistics",
    "Posterior",
    "Schedule",
    "ScoreModel",
    "StabilityWarning",
    "VESchedule",
    "VPSchedule",
    "denoising_loss",
    "dsm_floor",
    "dsm_loss",
    "empirical_score",
    "mixture_score",
    "mode_statistics",
    "noised",
    "ode_log_likelihood",
    "reverse_process",
    "sample",
    "time_grid",
    "tweedie",
]
