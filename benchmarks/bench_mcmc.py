"""Markov chain Monte Carlo."""

import math
import os

# read by XLA at its first computation: one thread, like everything else here
os.environ |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "NPROC": "1"}

import blackjax
import emcee
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.signal
from comparison import Agreement, Close, Work

from coursekit import mcmc

CHAINS = 500
jax.config.update("jax_enable_x64", True)


# --- targets ------------------------------------------------------------------------------------------------


class Gaussian:
    """Ten dimensions, covariance 0.9^|i-j|."""

    name, d = "10-d Gaussian", 10
    cov = 0.9 ** np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    factor, precision, ones = np.linalg.cholesky(cov), np.linalg.inv(cov), np.ones(10)
    proposal, mala_step, hmc_step, n_leapfrog = 2.4 / math.sqrt(10) * factor, 0.06, 0.3, 12
    second_moments = np.ones(10)

    def sample(self, n, rng):
        return rng.standard_normal((n, 10)) @ self.factor.T

    def log_p(self, x):
        return -0.5 * (((x @ self.precision) * x) @ self.ones)

    def grad_log_p(self, x):
        return -x @ self.precision


class DoubleWell:
    """p ∝ exp(-(x² - 1)² - y²/2 - xy/2)."""

    name, d = "2-d double well", 2
    proposal, mala_step, hmc_step, n_leapfrog = 1.3 * np.eye(2), 0.25, 0.35, 5

    def __init__(self):
        # given x, y is normal with mean -x/2 and variance 1
        self.grid = np.linspace(-4, 4, 4001)
        self.weights = np.exp(-((self.grid**2 - 1) ** 2) + self.grid**2 / 8)
        self.weights /= self.weights.sum()
        square = self.weights @ self.grid**2
        self.second_moments = np.array([square, 1 + square / 4])

    def sample(self, n, rng):
        x = rng.choice(self.grid, n, p=self.weights)
        return np.column_stack([x, rng.standard_normal(n) - 0.5 * x])

    def log_p(self, x):
        x, y = x[..., 0], x[..., 1]
        return -((x * x - 1) ** 2) - 0.5 * y * (y + x)

    def grad_log_p(self, x):
        slope = np.empty_like(x)
        x, y = x[:, 0], x[:, 1]
        slope[:, 0] = -4 * x * (x * x - 1) - 0.5 * y
        slope[:, 1] = -y - 0.5 * x
        return slope


# --- samplers: draws of CHAINS chains, which start in the law of the target ----------------------------------


def with_blackjax(kernel, x0, n, rng):
    """Compiled by the first call, which is not timed."""

    @jax.jit
    def run(key):
        def step(states, key):
            states, _ = jax.vmap(kernel.step)(jax.random.split(key, CHAINS), states)
            return states, states.position

        return jax.lax.scan(step, jax.vmap(kernel.init)(jnp.asarray(x0)), jax.random.split(key, n))[1]

    return lambda: np.asarray(run(jax.random.key(int(rng.integers(2**31))))).swapaxes(0, 1)


def with_emcee(target, x0, n):
    """Stretch moves of an ensemble; its walkers are not independent, counting them as such favours emcee."""

    # emcee would seed itself from the system
    start = emcee.State(x0, random_state=np.random.RandomState(0).get_state())

    def run():
        sampler = emcee.EnsembleSampler(CHAINS, target.d, target.log_p, vectorize=True)
        sampler.run_mcmc(start, n)
        return sampler.get_chain().swapaxes(0, 1)

    return run


def moves(target, x0, n, n_gradients, rng):
    """What no sampler of the kind can do without."""
    noise, threshold = np.empty_like(x0), np.empty(CHAINS)

    def floor():
        for _ in range(n):
            rng.standard_normal(out=noise)
            rng.standard_exponential(out=threshold)
            target.log_p(x0)
            for _ in range(n_gradients):
                target.grad_log_p(x0)

    return floor


def sampled(compare, target, name, ours, kernel, n_gradients):
    def same_law(*answers):
        for draws in answers:
            squares = draws**2
            error = squares.std(axis=(0, 1)) / np.sqrt(mcmc.ess(squares))
            assert (np.abs(squares.mean(axis=(0, 1)) - target.second_moments) < 5 * error).all()

    def make(n):
        rng = np.random.default_rng(n)
        x0 = target.sample(CHAINS, rng)
        return Work(
            ours=lambda: ours(x0, n, rng).draws,
            peers={"BlackJAX": with_blackjax(kernel, x0, n, rng), "emcee": with_emcee(target, x0, n)},
            floor=moves(target, x0, n, n_gradients, rng),
            amount=lambda draws: mcmc.ess(draws).min(),
        )

    compare(
        f"{name}, {CHAINS} chains, {target.name}: effective draws of the worst coordinate",
        make,
        (125, 250, 500, 1_000, 2_000),
        at=500,
        unit="draws each",
        agree=Agreement("exact second moments, 5 s.e.", same_law),
        floor="random numbers, log p" + (" and gradients" if n_gradients else ""),
        growth="n",
        reason="beyond the floor a move takes a dozen (Metropolis) to thirty (MALA) NumPy calls on small arrays, of a "
        "microsecond or two each; BlackJAX has them compiled into one function. With fewer chains these calls count "
        "for more: at 128 chains HMC and MALA take 2.3 to 3 floors.",
    )


targets = pytest.mark.parametrize("target", [Gaussian(), DoubleWell()], ids=lambda target: target.name)


@targets
def bench_metropolis(compare, target):
    proposal = blackjax.mcmc.random_walk.normal(jnp.asarray(target.proposal))
    sampled(
        compare,
        target,
        "Metropolis",
        lambda x0, n, rng: mcmc.metropolis(target.log_p, x0, n, target.proposal, rng=rng),
        blackjax.additive_step_random_walk(target.log_p, proposal),
        0,
    )


@targets
def bench_mala(compare, target):
    sampled(
        compare,
        target,
        "MALA",
        lambda x0, n, rng: mcmc.mala(target.log_p, target.grad_log_p, x0, n, target.mala_step, rng=rng),
        blackjax.mala(target.log_p, target.mala_step),
        1,
    )


@targets
def bench_hmc(compare, target):
    step, n_leapfrog = target.hmc_step, target.n_leapfrog
    sampled(
        compare,
        target,
        f"HMC, {n_leapfrog} leapfrog steps",
        lambda x0, n, rng: mcmc.hmc(target.log_p, target.grad_log_p, x0, n, step, n_leapfrog, rng=rng),
        blackjax.hmc(target.log_p, step, jnp.ones(target.d), n_leapfrog),
        n_leapfrog,
    )


# --- diagnostics --------------------------------------------------------------------------------------------


def bench_ess(compare):
    n_chains, d, correlation = 8, 2, 0.5
    blackjax_ess = jax.jit(blackjax.diagnostics.effective_sample_size)

    def make(n):
        noise = np.random.default_rng(n).standard_normal((n_chains, n, d))
        draws = scipy.signal.lfilter([1.0], [1.0, -correlation], noise, axis=1)
        halves = np.concatenate(np.split(draws, 2, axis=1))  # BlackJAX leaves it to the caller to split the chains
        on_device, by_time = jnp.asarray(halves), draws.swapaxes(0, 1)
        series = np.ascontiguousarray(np.moveaxis(halves, 2, 0))
        padded = scipy.fft.next_fast_len(n, real=True)

        return Work(
            ours=lambda: mcmc.ess(draws),
            peers={
                "BlackJAX": lambda: np.asarray(blackjax_ess(on_device)),
                "emcee": lambda: n_chains * n / emcee.autocorr.integrated_time(by_time),
            },
            floor=lambda: scipy.fft.rfft(series, padded),
        )

    compare(
        f"Effective sample size of {n_chains} chains in {d} dimensions",
        make,
        (2_000, 4_000, 8_000, 16_000, 32_000),
        at=8_000,
        unit="draws each",
        agree=Close(rtol=0.1),
        floor="the Fourier transforms",
        growth="n ln n",
        reason="the passes over the draws besides the transforms (transposition, means, variances, power spectrum) "
        "cost more than those; BlackJAX takes the same steps.",
    )
