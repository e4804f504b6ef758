"""Stochastic differential equations."""

import math

import numpy as np
import scipy.signal
import torch
import torchsde
from comparison import Agreement, SameMean, Work

from coursekit import sde

STEPS, DT, TEMPERATURE, VOLATILITY = 100, 0.02, 0.3, 0.5
PATHS = (2_000, 4_000, 8_000, 16_000, 32_000, 64_000)


def same_moments(ours, theirs):
    """Endings of independent paths, (n, 1), have the same means and mean squares."""
    SameMean(5)(*(np.hstack([x, x**2]) for x in (ours, theirs)))


MOMENTS = Agreement("first two moments, 5 s.e.", same_moments)


class Equation(torch.nn.Module):
    """dX = drift(X) dt + diffusion(X) dW, one path a row, as torchsde wants it."""

    sde_type = "ito"

    def __init__(self, drift, diffusion, noise_type="diagonal"):
        super().__init__()
        self.drift, self.diffusion, self.noise_type = drift, diffusion, noise_type

    def f(self, t, x):
        return self.drift(x)

    def g(self, t, x):
        return self.diffusion(x)


@torch.no_grad()
def with_torchsde(equation, x0, times, dt, method):
    return torchsde.sdeint(equation, torch.from_numpy(x0), torch.from_numpy(times), dt=dt, method=method)[-1].numpy()


def normals(x0, steps, rng):
    """What every method has to draw."""
    noise = np.empty_like(x0)

    def draw():
        for _ in range(steps):
            rng.standard_normal(out=noise)

    return draw


def bench_langevin(compare):
    ends = np.array([0.0, STEPS * DT])
    well = Equation(lambda x: x - x**3, lambda x: torch.full_like(x, math.sqrt(2 * TEMPERATURE)))

    def make(n):
        rng, x0 = np.random.default_rng(n), np.zeros((n, 1))

        def ours():
            return sde.langevin(
                lambda x: x * x * x - x, x0, DT, STEPS, temperature=TEMPERATURE, record_every=STEPS, rng=rng
            )[-1]

        return Work(
            ours=ours,
            peers={"torchsde": lambda: with_torchsde(well, x0, ends, DT, "euler")},
            floor=normals(x0, STEPS, rng),
        )

    compare(
        f"Overdamped Langevin in a double well, {STEPS} Euler steps",
        make,
        PATHS,
        unit="paths",
        agree=MOMENTS,
        floor="drawing the normals",
        growth="n",
    )


def bench_euler_maruyama(compare):
    t = np.linspace(0.0, STEPS * DT, STEPS + 1)
    geometric = Equation(lambda x: -0.1 * x, lambda x: VOLATILITY * x)

    def make(n):
        rng, x0 = np.random.default_rng(n), np.ones((n, 1))

        def ours():
            return sde.euler_maruyama(
                lambda t, x: -0.1 * x, lambda t, x: VOLATILITY * x, x0, t, record_every=STEPS, rng=rng
            )[-1]

        return Work(
            ours=ours,
            peers={"torchsde": lambda: with_torchsde(geometric, x0, t[[0, -1]], DT, "euler")},
            floor=normals(x0, STEPS, rng),
        )

    compare(
        f"Geometric Brownian motion, {STEPS} Euler–Maruyama steps",
        make,
        PATHS,
        unit="paths",
        agree=MOMENTS,
        floor="drawing the normals",
        growth="n",
    )


def bench_ou_exact(compare):
    """Exact paths at eleven times; torchsde takes the longest steps of each method whose bias no test here sees."""
    t, rate = np.linspace(0.0, 1.0, 11), 1.0
    steps, amplitude = len(t) - 1, math.sqrt(2 * TEMPERATURE)
    diagonal = Equation(lambda x: -rate * x, lambda x: torch.full_like(x, amplitude))
    additive = Equation(lambda x: -rate * x, lambda x: torch.full((*x.shape, 1), amplitude).to(x), "additive")

    def make(n):
        rng, x0 = np.random.default_rng(n), np.ones((n, 1))

        def as_filter():
            """X is an autoregressive process at equidistant times."""
            decay = math.exp(-rate * t[1])
            noise = rng.standard_normal((steps, n))
            noise *= math.sqrt(TEMPERATURE / rate * (1 - decay**2))
            return scipy.signal.lfilter([1.0], [1.0, -decay], noise, axis=0, zi=decay * x0.T)[0][-1, :, None]

        return Work(
            ours=lambda: sde.ou_exact(x0, rate, TEMPERATURE, t, rng=rng)[-1],
            peers={
                "torchsde SRK, 10 steps": lambda: with_torchsde(additive, x0, t, t[1], "srk"),
                "torchsde Euler, 100 steps": lambda: with_torchsde(diagonal, x0, t, t[1] / 10, "euler"),
                "scipy lfilter": as_filter,
            },
            floor=normals(x0, steps, rng),
        )

    compare(
        f"Ornstein–Uhlenbeck process at {steps} times",
        make,
        PATHS,
        unit="paths",
        agree=MOMENTS,
        floor="drawing the normals",
        growth="n",
    )
