"""Importance sampling."""

import math
import os

# read by XLA at its first computation: one thread, like everything else here
os.environ |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "NPROC": "1"}

import blackjax.smc.ess
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
import torch
from comparison import Close, Work

from coursekit import sampling

jax.config.update("jax_enable_x64", True)


def bench_self_normalized_importance(compare):
    """Two Gaussian modes, samples of a Student t with five degrees of freedom, the mean of x²."""
    modes = torch.distributions.Normal(torch.tensor([-2.0, 2.0], dtype=torch.float64), 1.0)
    halves = torch.distributions.Categorical(torch.full((2,), 0.5, dtype=torch.float64))
    mixture, student = torch.distributions.MixtureSameFamily(halves, modes), torch.distributions.StudentT(5.0)

    def log_p(x):
        return np.logaddexp(-0.5 * (x - 2) ** 2, -0.5 * (x + 2) ** 2)

    def log_q(x):
        return -3 * np.log1p(x * x / 5)

    def f(x):
        return x * x

    def weighted(w, value, total):
        """The estimate, its standard error, the effective sample size."""
        mean = w @ value / total
        return float(mean), math.sqrt(w**2 @ (value - mean) ** 2) / float(total), float(total**2 / (w @ w))

    def make(n):
        x = np.random.default_rng(n).standard_t(5, n)

        def ours():
            estimate = sampling.self_normalized_importance(f, log_p, log_q, x)
            return estimate.mean, estimate.std_error, estimate.ess

        def scipy_peer():
            return weighted(scipy.special.softmax(log_p(x) - log_q(x)), f(x), 1.0)

        def torch_peer():
            points = torch.from_numpy(x)
            return weighted(torch.softmax(mixture.log_prob(points) - student.log_prob(points), 0), f(points), 1.0)

        return Work(
            ours=ours,
            peers={"scipy softmax": scipy_peer, "torch.distributions": torch_peer},
            floor=lambda: (f(x), log_p(x), log_q(x)),
        )

    compare(
        "Self-normalised importance sampling: mean, standard error and effective sample size",
        make,
        (200_000, 400_000, 800_000, 1_600_000, 3_200_000),
        unit="samples",
        agree=Close(rtol=1e-9),
        floor="evaluating f, log p and log q",
        growth="n",
    )


def bench_effective_sample_size(compare):
    def make(n):
        log_w = -0.1 * np.random.default_rng(n).standard_normal(n) ** 2
        on_device, blackjax_ess = jnp.asarray(log_w), jax.jit(blackjax.smc.ess.ess)

        def with_scipy():
            return math.exp(2 * scipy.special.logsumexp(log_w) - scipy.special.logsumexp(2 * log_w))

        return Work(
            ours=lambda: sampling.effective_sample_size(log_w),
            peers={"BlackJAX": lambda: float(blackjax_ess(on_device)), "scipy logsumexp": with_scipy},
            floor=lambda: np.exp(log_w),
        )

    compare(
        "(Σw)²/Σw² of log-weights",
        make,
        (20_000, 40_000, 80_000, 160_000, 320_000),
        unit="weights",
        agree=Close(rtol=1e-9),
        floor="one pass of exp",
        growth="n",
        reason="the maximum, the difference from it and two sums add nine tenths of the pass of exp, near the limit.",
    )
