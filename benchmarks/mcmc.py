"""Effective draws a second against emcee and BlackJAX: rates of samplers run in turn, in one process, one thread.

Every sampler has the same number of chains (walkers), a warm-up that is not timed, and the same estimator of effective
draws, the least of all coordinates. Metropolis proposes from the covariance of the Gaussian (emcee finds it by itself);
BlackJAX has our proposals, steps and numbers of leapfrog steps, and is compiled before the clock starts. A sampler
whose second moments are more than five standard errors off stops the run.
"""

import math
import os
import time

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy is imported
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import blackjax
import emcee
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from rich.console import Console
from rich.table import Table

from coursekit import mcmc

CHAINS, N_WALK, N_EMCEE, REPEATS = 128, 4000, 2000, 3
jax.config.update("jax_enable_x64", True)


class Gaussian:
    """Ten dimensions, covariance 0.9^|i-j|."""

    name, d = "10-d Gaussian", 10
    cov = 0.9 ** np.abs(np.subtract.outer(np.arange(10), np.arange(10)))
    proposal, step, n_leapfrog, n_hmc = 2.4 / math.sqrt(10) * np.linalg.cholesky(cov), 0.3, 12, 600
    precision = np.linalg.inv(cov)
    second_moments = np.ones(10)

    def log_p(self, x):
        return -0.5 * ((x @ self.precision) * x).sum(axis=-1)

    def grad_log_p(self, x):
        return -x @ self.precision


class DoubleWell:
    """p ∝ exp(-(x² - 1)² - y²/2 - xy/2)."""

    name, d = "2-d double well", 2
    proposal, step, n_leapfrog, n_hmc = 1.3 * np.eye(2), 0.35, 5, 1500

    def __init__(self):
        # given x, y is normal with mean -x/2 and variance 1
        def moment(k):
            return scipy.integrate.quad(lambda x: x**k * math.exp(-((x * x - 1) ** 2) + x * x / 8), -6, 6)[0]

        square = moment(2) / moment(0)
        self.second_moments = np.array([square, 1 + square / 4])

    def log_p(self, x):
        x, y = x[..., 0], x[..., 1]
        return -((x * x - 1) ** 2) - 0.5 * y * (y + x)

    def grad_log_p(self, x):
        slope = np.empty_like(x)
        x, y = x[:, 0], x[:, 1]
        slope[:, 0] = -4 * x * (x * x - 1) - 0.5 * y
        slope[:, 1] = -y - 0.5 * x
        return slope


def check(target, draws):
    """Effective draws of the worst coordinate, after a look at the second moments."""
    squares = draws**2
    error = squares.std(axis=(0, 1)) / np.sqrt(mcmc.ess(squares))
    assert (np.abs(squares.mean(axis=(0, 1)) - target.second_moments) < 5 * error).all(), "wrong law"
    return mcmc.ess(draws).min()


def ours(target, x0, rng):
    def metropolis(x):
        return mcmc.metropolis(target.log_p, x, N_WALK, target.proposal, rng=rng)

    def hmc(x):
        return mcmc.hmc(target.log_p, target.grad_log_p, x, target.n_hmc, target.step, target.n_leapfrog, rng=rng)

    for sampler in (metropolis, hmc):
        warm = sampler(x0).draws[:, -1]
        start = time.perf_counter()
        chains = sampler(warm)
        yield f"coursekit {sampler.__name__}", chains.draws, time.perf_counter() - start


def with_emcee(target, x0, rng):
    sampler = emcee.EnsembleSampler(CHAINS, target.d, target.log_p, vectorize=True)
    state = sampler.run_mcmc(x0, 500)
    sampler.reset()
    start = time.perf_counter()
    sampler.run_mcmc(state, N_EMCEE)
    seconds = time.perf_counter() - start
    # walkers of an ensemble are not independent chains; counting them as such favours emcee
    yield "emcee", np.moveaxis(sampler.get_chain(), 0, 1), seconds


def with_blackjax(target, x0, rng):
    proposal = blackjax.mcmc.random_walk.normal(jnp.asarray(target.proposal))
    walk = blackjax.additive_step_random_walk(target.log_p, proposal)
    hamiltonian = blackjax.hmc(target.log_p, target.step, jnp.ones(target.d), target.n_leapfrog)
    for name, kernel, n in (("random walk", walk, N_WALK), ("hmc", hamiltonian, target.n_hmc)):

        @jax.jit
        def run(key, states, kernel=kernel, n=n):
            def step(states, key):
                states, _ = jax.vmap(kernel.step)(jax.random.split(key, CHAINS), states)
                return states, states.position

            return jax.lax.scan(step, states, jax.random.split(key, n))

        key = jax.random.key(int(rng.integers(2**31)))
        states = jax.vmap(kernel.init)(jnp.asarray(x0))
        states, _ = jax.block_until_ready(run(key, states))
        start = time.perf_counter()
        _, draws = jax.block_until_ready(run(jax.random.split(key)[0], states))
        yield f"BlackJAX {name}", np.moveaxis(np.asarray(draws), 0, 1), time.perf_counter() - start


def main() -> None:
    table = Table("target: sampler", "effective draws", "seconds", "effective draws / second", "of emcee's")
    for target in (Gaussian(), DoubleWell()):
        rng = np.random.default_rng(0)
        x0 = 0.5 * rng.standard_normal((CHAINS, target.d))  # from far out leapfrog steps of this size are unstable
        runs = {}
        for _ in range(REPEATS):
            for sampler in (ours, with_emcee, with_blackjax):
                for name, draws, seconds in sampler(target, x0, rng):
                    runs.setdefault(name, []).append((check(target, draws), seconds))
        rates = {name: float(np.median([n / s for n, s in results])) for name, results in runs.items()}
        for name, results in runs.items():
            number, seconds = np.median(results, axis=0)
            relative = rates[name] / rates["emcee"]
            numbers = f"{number:,.0f}", f"{seconds:.2f}", f"{rates[name]:,.0f}", f"{relative:.1f}"
            table.add_row(f"{target.name}: {name}", *numbers)
    Console().print(table)


if __name__ == "__main__":
    main()
