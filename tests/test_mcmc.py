import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.signal
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import mcmc
from coursekit.distributions import Gaussian

seeds = st.integers(0, 2**32 - 1)
COV = np.array([[1.0, 0.7], [0.7, 0.8]])
PRECISION = np.linalg.inv(COV)
CENTRE = np.array([1.0, -2.0])


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def vector(*values):
    return np.array(values, dtype=float)


def log_normal(x):
    return -0.5 * (x * x).sum(axis=1)


def minus(x):
    return -x


def log_correlated(x):
    return -0.5 * np.einsum("ni,ij,nj->n", x - CENTRE, PRECISION, x - CENTRE)


def grad_correlated(x):
    return -(x - CENTRE) @ PRECISION


def log_well(x):
    return -((x[:, 0] ** 2 - 1) ** 2)


def grad_well(x):
    return -4 * x * (x**2 - 1)


class Given(np.random.Generator):
    """Normal numbers and exponential thresholds that are given, not drawn."""

    def __init__(self, normal, threshold):
        super().__init__(np.random.PCG64(0))
        self.normal, self.threshold = np.asarray(normal, dtype=float), np.asarray(threshold, dtype=float)

    def standard_normal(self, size=None, out=None):
        if out is None:
            return self.normal.reshape(size).copy()
        out[:] = self.normal
        return out

    def standard_exponential(self, size=None):
        return np.broadcast_to(self.threshold, size).copy()


def leapfrog(grad, x, v, step, n):
    """The map of one path, written as kicks and drifts."""
    x, v = x.copy(), v + 0.5 * step * grad(x)
    for i in range(n):
        x = x + step * v
        v = v + (0.5 if i == n - 1 else 1.0) * step * grad(x)
    return x, v


SAMPLERS = {
    "metropolis": lambda log_p, grad, x0, n, **options: mcmc.metropolis(log_p, x0, n, 0.8, **options),
    "mala": lambda log_p, grad, x0, n, **options: mcmc.mala(log_p, grad, x0, n, 0.15, **options),
    "hmc": lambda log_p, grad, x0, n, **options: mcmc.hmc(log_p, grad, x0, n, 0.45, 4, **options),
}
samplers = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


@samplers
class TestEverySampler:
    def test_keeps_a_correlated_gaussian(self, sampler):
        # started in the law, each chain has the law at each time: chains are independent
        m = 20_000
        x0 = Gaussian(CENTRE, COV).sample(m, rng=1)
        run = sampler(log_correlated, grad_correlated, x0, 1, n_warmup=11, rng=2)
        assert run.draws.shape == (m, 1, 2)
        z = run.draws[:, 0] - CENTRE
        for i, j in ((0, 0), (0, 1), (1, 1)):
            error = math.sqrt((COV[i, i] * COV[j, j] + COV[i, j] ** 2) / m)
            assert abs((z[:, i] * z[:, j]).mean() - COV[i, j]) < 5 * error
        assert (np.abs(z.mean(axis=0)) < 5 * np.sqrt(np.diag(COV) / m)).all()

    def test_keeps_a_double_well(self, sampler):
        # Y.42: exp(-(x² - 1)²): <x²> = .832745; fourth moment by quadrature, and the whole law by Kolmogorov's test
        m = 20_000
        grid = np.linspace(-4, 4, 8001)
        p = np.exp(log_well(grid[:, None]))
        Z = np.trapezoid(p, grid)
        assert pytest.approx(1.973732, abs=1e-6) == Z
        F = scipy.integrate.cumulative_trapezoid(p, grid, initial=0) / Z
        x0 = np.interp(np.random.default_rng(3).random(m), F, grid)[:, None]
        x = sampler(log_well, grad_well, x0, 1, n_warmup=11, rng=4).draws[:, 0, 0]
        for power, expected in ((2, 0.832745), (4, np.trapezoid(p * grid**4, grid) / Z)):
            variance = np.trapezoid(p * grid ** (2 * power), grid) / Z - expected**2
            assert abs((x**power).mean() - expected) < 5 * math.sqrt(variance / m)
        assert abs((x > 0).mean() - 0.5) < 5 * math.sqrt(0.25 / m)
        # P(√m D > 2.5) = 2e^(-12.5) = 7e-6
        assert scipy.stats.kstest(x, lambda q: np.interp(q, grid, F)).statistic < 2.5 / math.sqrt(m)

    def test_forgets_its_start(self, sampler):
        # 400 chains from one far point: means over time and chains, with the error of independent chains
        x0 = np.tile(CENTRE + 5, (400, 1))
        draws = sampler(log_correlated, grad_correlated, x0, 100, n_warmup=150, rng=5).draws
        for f, expected in ((lambda z: z, np.zeros(2)), (np.square, np.diag(COV))):
            means = f(draws - CENTRE).mean(axis=1)
            assert (np.abs(means.mean(axis=0) - expected) < 5 * means.std(axis=0) / 20).all()

    @given(seed=seeds, n_warmup=st.integers(0, 6), record_every=st.integers(1, 4), n=st.integers(1, 5))
    @settings(max_examples=25)
    def test_records(self, sampler, seed, n_warmup, record_every, n):
        # one long run holds all others with the same numbers
        x0 = gaussian(seed, 3, 2)
        long = sampler(log_correlated, grad_correlated, x0, n_warmup + n * record_every, rng=seed)
        run = sampler(log_correlated, grad_correlated, x0, n, n_warmup=n_warmup, record_every=record_every, rng=seed)
        assert run.draws.shape == (3, n, 2)
        np.testing.assert_array_equal(run.draws, long.draws[:, n_warmup + record_every - 1 :: record_every])
        path = np.concatenate([x0[:, None], long.draws], axis=1)
        moved = (np.diff(path, axis=1) != 0).any(axis=2)
        np.testing.assert_allclose(run.accept_rate, moved[:, n_warmup:].mean(axis=1), rtol=1e-14)
        np.testing.assert_array_equal(x0, gaussian(seed, 3, 2))

    def test_needs_no_normalisation(self, sampler):
        x0 = gaussian(6, 5, 2)
        first = sampler(log_correlated, grad_correlated, x0, 50, rng=7)
        shifted = sampler(lambda x: log_correlated(x) + 64.0, grad_correlated, x0, 50, rng=7)
        np.testing.assert_allclose(shifted.draws, first.draws, rtol=1e-12)
        again = sampler(log_correlated, grad_correlated, x0, 50, rng=np.random.default_rng(7))
        np.testing.assert_array_equal(again.draws, first.draws)
        assert (sampler(log_correlated, grad_correlated, x0, 50, rng=8).draws != first.draws).any()
        assert (first.accept_rate > 0).all() and (first.accept_rate < 1).all()

    def test_buffers_of_the_caller(self, sampler):
        # a log-density and a gradient that write into their own arrays, or return a view of their argument
        x0 = gaussian(9, 4, 1)
        value, slope = np.empty(4), np.empty((4, 1))

        def log_p(x):
            value[:] = x[:, 0] - np.exp(x[:, 0])
            return value

        def grad(x):
            slope[:] = 1 - np.exp(x)
            return slope

        expected = sampler(lambda x: x[:, 0] - np.exp(x[:, 0]), lambda x: 1 - np.exp(x), x0, 60, rng=10)
        np.testing.assert_array_equal(sampler(log_p, grad, x0, 60, rng=10).draws, expected.draws)
        # the law x/2 on (0, 2): log-density ln x, a gradient that is its own argument reversed
        expected = sampler(lambda x: 1.0 * x[:, 0], lambda x: 1.0 * x, x0, 20, rng=11)
        np.testing.assert_array_equal(sampler(lambda x: x[:, 0], lambda x: x, x0, 20, rng=11).draws, expected.draws)

    def test_points_that_cannot_be(self, sampler):
        # N(0, 1) on the half line: never outside, mean √(2/π), variance 1 - 2/π
        m = 5000
        run = sampler(
            lambda x: np.where(x[:, 0] > 0, log_normal(x), -np.inf), minus, np.abs(gaussian(12, m, 1)), 12, rng=13
        )
        assert (run.draws > 0).all()
        last = run.draws[:, -1, 0]
        assert abs(last.mean() - math.sqrt(2 / math.pi)) < 5 * math.sqrt((1 - 2 / math.pi) / m)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_density_that_is_no_number(self, sampler, bad):
        calls = itertools.count()
        log_p = lambda x: np.full(len(x), bad if next(calls) == 4 else 0.0)  # noqa: E731
        with pytest.raises(FloatingPointError, match=r"got NaN or \+inf at move 3"):
            sampler(log_p, np.zeros_like, np.zeros((2, 1)), 4, n_warmup=2, rng=0)
        with pytest.raises(FloatingPointError, match="log_p must be finite or -inf"):
            sampler(lambda x: np.full(len(x), bad), np.zeros_like, np.zeros((2, 1)), 4, rng=0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"x0": np.zeros(2)}, "x0 must have 2 dimension"),
            ({"x0": np.full((2, 1), np.nan)}, "x0 must be finite"),
            ({"n": 0}, "n_draws must be at least 1"),
            ({"n": 2.0}, "n_draws must be an integer"),
            ({"n_warmup": -1}, "n_warmup must be at least 0"),
            ({"record_every": 0}, "record_every must be at least 1"),
            ({"log_p": lambda x: x}, r"log_p must map \(2, 1\) to \(2,\), got \(2, 1\)"),
            ({"log_p": lambda x: 0.0}, "log_p must map"),
            ({"log_p": lambda x: vector(0, -np.inf)}, "positive density, got 1 start"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, sampler, options, message):
        arguments = {"log_p": log_normal, "grad": minus, "x0": np.zeros((2, 1)), "n": 2, "rng": 0} | options
        with pytest.raises(ValueError, match=message):
            sampler(**arguments)


class TestMetropolis:
    @pytest.mark.parametrize("step", [0.3, 1.0, 2.4, 8.0])
    def test_acceptance(self, step):
        # N(0, 1): (2/π) arctan(2/step)
        m = 4000
        rate = mcmc.metropolis(log_normal, gaussian(20, m, 1), 10, step, rng=21).accept_rate
        assert abs(rate.mean() - 2 / math.pi * math.atan(2 / step)) < 5 * rate.std() / math.sqrt(m)

    def test_one_move(self):
        # proposal x + step ξ, accepted where the exponential is above ln p(x) - ln p(y)
        x0, noise = gaussian(22, 6, 2), gaussian(23, 6, 2)
        step = vector(0.5, 2.0)
        y = x0 + step * noise
        cost = log_normal(x0) - log_normal(y)
        for factor in (1 - 1e-9, 1 + 1e-9):
            run = mcmc.metropolis(log_normal, x0, 1, step, rng=Given(noise, np.abs(cost) * factor))
            accepted = (cost < 0) | (factor > 1)
            np.testing.assert_allclose(run.draws[:, 0], np.where(accepted[:, None], y, x0), rtol=1e-14)
            np.testing.assert_array_equal(run.accept_rate, accepted)
        assert 0 < (cost < 0).sum() < 6

    def test_steps_of_each_coordinate(self):
        x0, noise = np.zeros((50, 2)), gaussian(24, 50, 2)
        run = mcmc.metropolis(lambda x: np.zeros(len(x)), x0, 1, vector(1, 10), rng=Given(noise, 1.0))
        np.testing.assert_allclose(run.draws[:, 0], noise * [1, 10], rtol=1e-15)
        single = mcmc.metropolis(lambda x: np.zeros(len(x)), x0, 1, 3.0, rng=Given(noise, 1.0))
        np.testing.assert_allclose(single.draws[:, 0], 3 * noise, rtol=1e-15)

    def test_factor_of_the_covariance(self):
        # proposals L ξ, not Lᵀ ξ
        factor, noise = np.array([[1.0, 0.0], [3.0, 2.0]]), gaussian(27, 50, 2)
        run = mcmc.metropolis(lambda x: np.zeros(len(x)), np.zeros((50, 2)), 1, factor, rng=Given(noise, 1.0))
        expected = np.stack([noise[:, 0], 3 * noise[:, 0] + 2 * noise[:, 1]], axis=1)
        np.testing.assert_allclose(run.draws[:, 0], expected, rtol=1e-14)

    @pytest.mark.usefixtures("unchecked")
    def test_factor_of_another_shape(self):
        with pytest.raises(ValueError, match=r"step must have shape \(2, 2\)"):
            mcmc.metropolis(log_normal, np.zeros((3, 2)), 1, np.eye(3))

    def test_iat_of_the_chain_on_a_grid(self):
        # the chain on N(0, 1) with step 2.4, discretised: its exact autocorrelation time against that of the draws
        grid = np.linspace(-6, 6, 401)
        h = grid[1] - grid[0]
        Q = h * scipy.stats.norm.pdf(grid[:, None] - grid, scale=2.4)
        Q[np.diag_indices(401)] += 1 - Q.sum(axis=1)  # proposals off the grid are rejected, as they would be
        p = np.exp(-0.5 * grid**2)
        p /= p.sum()
        tau = mcmc.exact_iat(mcmc.metropolis_matrix(-0.5 * grid**2, Q), p, grid)
        m, n = 400, 400
        means = mcmc.metropolis(log_normal, gaussian(25, m, 1), n, 2.4, rng=26).draws.mean(axis=(1, 2))
        # n Var of the mean = τ - O(τ²/n)
        assert abs(n * means.var() / tau - 1) < 5 * math.sqrt(2 / m) + tau / n

    @pytest.mark.parametrize(
        ("step", "message"),
        [
            (0.0, "step must be positive, got 0"),
            (-1.0, "step must be positive, got -1"),
            (np.nan, "step must be finite"),
            (vector(1, 2, 3), r"step must be a number or have shape \(2,\)"),
            (vector(1, 0), "step must be positive"),
            (np.ones((2, 2, 2)), "step must have"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_step(self, step, message):
        with pytest.raises(ValueError, match=message):
            mcmc.metropolis(log_normal, np.zeros((3, 2)), 1, step, rng=0)
        with pytest.raises(ValueError, match=message):
            mcmc.hmc(log_normal, minus, np.zeros((3, 2)), 1, step, 2, rng=0)


class TestHMC:
    @pytest.mark.parametrize(("step", "n_leapfrog"), [(0.5, 3), (1.5, 1), (1.9, 2), (1.2, 4)])
    def test_acceptance(self, step, n_leapfrog):
        # on N(0, 1) a path is a matrix M with det M = 1, ΔH = ½ zᵀ(MᵀM - I)z with eigenvalues λ - 1 and 1/λ - 1, and
        # E min(1, e^-ΔH) = 2 P(ΔH < 0) = (4/π) arctan(λ^-½)
        kick, drift = np.array([[1, 0], [-0.5 * step, 1]]), np.array([[1, step], [0, 1]])
        M = np.linalg.matrix_power(kick @ drift @ kick, n_leapfrog)
        expected = 4 / math.pi * math.atan(1 / np.linalg.norm(M, 2))
        m = 4000
        rate = mcmc.hmc(log_normal, minus, gaussian(30, m, 1), 10, step, n_leapfrog, rng=31).accept_rate
        assert abs(rate.mean() - expected) < 5 * rate.std() / math.sqrt(m)

    def test_small_steps_are_accepted(self):
        # ΔH is O(step²) along a path of fixed length, E ΔH is O(step⁴): the rate of rejection falls by 4 per halving
        x0 = Gaussian(CENTRE, COV).sample(2000, rng=32)
        rejected = [
            1 - mcmc.hmc(log_correlated, grad_correlated, x0, 4, 0.4 / k, 3 * k, rng=33).accept_rate.mean()
            for k in (1, 2, 4)
        ]
        assert rejected[0] > 2.5 * rejected[1] > 2.5**2 * rejected[2] > 0
        tiny = mcmc.hmc(log_correlated, grad_correlated, x0, 1, 1e-7, 2, rng=34)
        assert tiny.accept_rate.mean() == 1

    @given(seeds, st.integers(1, 6), st.floats(0.05, 0.2))
    @settings(max_examples=30)
    def test_one_path(self, seed, n_leapfrog, step):
        # a path from x with velocity v, accepted where the exponential is above ΔH, and the way back
        x0, v0 = gaussian(seed, 5, 1), gaussian(seed + 1, 5, 1)
        steps = vector(step)
        x1, v1 = leapfrog(grad_well, x0, v0, step, n_leapfrog)
        cost = 0.5 * (v1**2 - v0**2)[:, 0] - log_well(x1) + log_well(x0)
        for margin in (-1e-9, 1e-9):
            run = mcmc.hmc(log_well, grad_well, x0, 1, steps, n_leapfrog, rng=Given(v0, np.maximum(cost + margin, 0)))
            accepted = (cost < 0) | ((cost > 0) & (margin > 0))
            clear = (np.abs(cost) > 1e-8) & (np.abs(cost) < 10)  # where the margin is above rounding
            expected = np.where(accepted[:, None], x1, x0)
            np.testing.assert_allclose(run.draws[clear, 0], expected[clear], rtol=1e-9, atol=1e-12)
        back = mcmc.hmc(log_well, grad_well, x1, 1, step, n_leapfrog, rng=Given(-v1, 1e9))
        np.testing.assert_allclose(back.draws[clear, 0], x0[clear], rtol=1e-6, atol=1e-8)

    def test_steps_of_each_coordinate(self):
        # independent coordinates of deviation 1 and 100, each with its step: the same as z with one step
        scale = vector(1, 100)
        x0 = gaussian(35, 6, 2)
        plain = mcmc.hmc(log_normal, minus, x0, 20, 0.5, 3, rng=36)
        scaled = mcmc.hmc(
            lambda x: log_normal(x / scale), lambda x: -x / scale**2, x0 * scale, 20, 0.5 * scale, 3, rng=36
        )
        np.testing.assert_allclose(scaled.draws, plain.draws * scale, rtol=1e-9)

    def test_counts_of_gradients(self):
        calls = itertools.count()

        def grad(x):
            next(calls)
            return -x

        mcmc.hmc(log_normal, grad, np.zeros((3, 1)), 4, 0.3, 5, n_warmup=2, record_every=3, rng=0)
        assert next(calls) == 1 + 5 * (2 + 4 * 3)

    @pytest.mark.filterwarnings("error")
    def test_paths_that_leave_the_finite_numbers(self):
        # cubic forces with an absurd step: rejected, without a warning of the kernel
        run = mcmc.hmc(
            lambda x: -0.25 * np.minimum(np.abs(x[:, 0]), 1e50) ** 4,
            lambda x: -(x**3),
            np.full((4, 1), 2.0),
            5,
            10.0,
            20,
            rng=37,
        )
        assert (run.draws == 2).all()
        assert (run.accept_rate == 0).all()
        # some paths blow up and are not evaluated at their ends, and others go on
        grad = lambda x: np.where(x > 3, np.nan, -x)  # noqa: E731
        log_p = lambda x: np.where(x[:, 0] > 3, np.nan, log_normal(x))  # noqa: E731
        mixed = mcmc.hmc(log_p, grad, gaussian(38, 50, 1), 30, 0.9, 3, rng=39)
        assert np.isfinite(mixed.draws).all()
        assert mixed.accept_rate.min() > 0.3

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_leapfrog": 0}, "n_leapfrog must be at least 1"),
            ({"n_leapfrog": 1.5}, "n_leapfrog must be an integer"),
            ({"grad_log_p": lambda x: x[:, 0]}, r"grad_log_p must map \(3, 2\) to \(3, 2\), got \(3,\)"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, options, message):
        arguments = {"grad_log_p": minus, "x0": np.zeros((3, 2)), "n_draws": 1, "step": 0.1, "n_leapfrog": 1}
        with pytest.raises(ValueError, match=message):
            mcmc.hmc(log_normal, rng=0, **(arguments | options))


class TestMALA:
    def test_is_one_leapfrog_step(self):
        x0 = gaussian(40, 8, 2)
        mala = mcmc.mala(log_correlated, grad_correlated, x0, 30, 0.2, n_warmup=3, record_every=2, rng=41)
        hmc = mcmc.hmc(log_correlated, grad_correlated, x0, 30, math.sqrt(0.4), 1, n_warmup=3, record_every=2, rng=41)
        np.testing.assert_array_equal(mala.draws, hmc.draws)
        np.testing.assert_array_equal(mala.accept_rate, hmc.accept_rate)

    @pytest.mark.parametrize("h", [0.05, 0.3])
    def test_against_langevin_with_hastings_correction(self, h):
        # y = x + h ∇log p + √(2h) ξ, ratio p(y) q(x|y) / p(x) q(y|x), with the same numbers
        rng, x = np.random.default_rng(42), gaussian(43, 6, 1)
        path = []
        for _ in range(25):
            y = x + h * grad_well(x) + math.sqrt(2 * h) * rng.standard_normal(x.shape)
            forth = -((y - x - h * grad_well(x)) ** 2)[:, 0] / (4 * h)
            back = -((x - y - h * grad_well(y)) ** 2)[:, 0] / (4 * h)
            ratio = log_well(y) - log_well(x) + back - forth
            x = np.where((rng.standard_exponential(6) > -ratio)[:, None], y, x)
            path.append(x)
        run = mcmc.mala(log_well, grad_well, gaussian(43, 6, 1), 25, h, rng=42)
        np.testing.assert_allclose(run.draws, np.stack(path, axis=1), rtol=1e-7, atol=1e-9)
        assert 0.2 < run.accept_rate.mean() < 1

    @pytest.mark.parametrize("step", [0.0, -0.1, np.nan, np.inf])
    def test_bad_step(self, step):
        with pytest.raises(ValueError, match="step must be greater than 0"):
            mcmc.mala(log_normal, minus, np.zeros((1, 1)), 1, step)


def probabilities(seed, n):
    weights = np.random.default_rng(seed).exponential(size=n)
    return weights / weights.sum()


def stochastic(seed, n, density=1.0):
    rng = np.random.default_rng(seed)
    Q = rng.random((n, n)) * (rng.random((n, n)) < density) + np.eye(n) * 0.1
    return Q / Q.sum(axis=1, keepdims=True)


class TestMetropolisMatrix:
    @given(seeds, st.integers(1, 12), st.sampled_from([0.3, 0.7, 1.0]), st.floats(0, 30))
    @settings(max_examples=80)
    def test_detailed_balance(self, seed, n, density, spread):
        log_p = spread * gaussian(seed, n)
        Q = stochastic(seed, n, density)
        K = mcmc.metropolis_matrix(log_p, Q)
        p = scipy.special.softmax(log_p)
        np.testing.assert_allclose(p[:, None] * K, (p[:, None] * K).T, atol=1e-15)
        np.testing.assert_allclose(K.sum(axis=1), 1, rtol=1e-14)
        assert K.min() > -1e-15
        off = ~np.eye(n, dtype=bool)
        assert (K[off] <= Q[off] * (1 + 1e-15)).all()
        # the larger of the two directions is never held back
        flow = p[:, None] * Q
        full = off & (flow < flow.T * (1 - 1e-9))
        np.testing.assert_allclose(K[full], Q[full], rtol=1e-12)
        np.testing.assert_allclose(mcmc.metropolis_matrix(log_p + 50, Q), K, atol=1e-12)

    def test_by_hand(self):
        # p = (1, 2, 3)/6, moves to either neighbour on a ring with probabilities ¼ and ¾
        Q = np.array([[0, 0.25, 0.75], [0.75, 0, 0.25], [0.25, 0.75, 0]])
        expected = np.zeros((3, 3))
        p = vector(1, 2, 3)
        for i, j in itertools.permutations(range(3), 2):
            expected[i, j] = min(Q[i, j], p[j] * Q[j, i] / p[i])
        # 0→1: min(¼, 2·¾) = ¼; 1→0: min(¾, ¼/2) = ⅛; 0→2: min(¾, 3·¼) = ¾; 2→0: ¼; 1→2: ¼; 2→1: 2·¼/3
        assert expected[1, 0] == 0.125 and expected[2, 1] == pytest.approx(1 / 6)
        K = mcmc.metropolis_matrix(np.log(p / 6), Q)
        np.testing.assert_allclose(K, expected + np.diag([0, 0.625, 7 / 12]), rtol=1e-13, atol=1e-15)

    def test_independence_sampler(self):
        # Liu: the second eigenvalue is 1 - 1/max(p/q)
        p, q = probabilities(50, 9), probabilities(51, 9)
        K = mcmc.metropolis_matrix(np.log(p), np.tile(q, (9, 1)))
        eigenvalues = np.sort(np.linalg.eigvals(K).real)
        assert eigenvalues[-2] == pytest.approx(1 - 1 / (p / q).max(), rel=1e-11)
        # q = p: independent draws
        np.testing.assert_allclose(
            mcmc.metropolis_matrix(np.log(p), np.tile(p, (9, 1))), np.tile(p, (9, 1)), rtol=1e-12
        )

    def test_ising(self):
        # B7.25, 3 × 3 spins with open ends: λ₂ = .972648 (J = .4), .999530 (J = 1, h = .1); period 2 without energy
        spins = np.array(list(itertools.product([-1, 1], repeat=9))).reshape(-1, 3, 3)
        bonds = (spins[:, 1:] * spins[:, :-1]).sum(axis=(1, 2)) + (spins[:, :, 1:] * spins[:, :, :-1]).sum(axis=(1, 2))
        Q = np.zeros((512, 512))
        for bit in range(9):
            Q[np.arange(512), np.arange(512) ^ (1 << bit)] = 1 / 9
        for J, field, expected in ((0.4, 0.0, 0.972648), (1.0, 0.1, 0.999530)):
            log_p = J * bonds + field * spins.sum(axis=(1, 2))
            K = mcmc.metropolis_matrix(log_p, Q)
            root = np.exp(0.5 * (log_p - log_p.max()))
            symmetric = root[:, None] * K / root
            np.testing.assert_allclose(symmetric, symmetric.T, atol=1e-12)
            assert np.linalg.eigvalsh((symmetric + symmetric.T) / 2)[-2] == pytest.approx(expected, abs=1e-6)
        np.testing.assert_array_equal(mcmc.metropolis_matrix(np.zeros(512), Q)[Q > 0], Q[Q > 0])
        assert np.linalg.eigvalsh(Q)[0] == pytest.approx(-1, abs=1e-12)

    @pytest.mark.filterwarnings("error")
    def test_very_different_probabilities(self):
        # p_j/p_i overflows: moves up are sure, moves down never happen
        K = mcmc.metropolis_matrix(vector(0, 800), np.full((2, 2), 0.5))
        np.testing.assert_allclose(K, [[0.5, 0.5], [0, 1]], atol=1e-300)
        # no way back: the move is never accepted, whatever the densities
        for difference in (0.0, 700.0, 800.0):
            K = mcmc.metropolis_matrix(vector(0, difference), vector(0.5, 0.5, 0, 1).reshape(2, 2))
            np.testing.assert_array_equal(K, np.eye(2))

    @pytest.mark.parametrize(
        ("log_p", "Q", "message"),
        [
            (vector(0, 0), np.eye(3), "proposal must have shape"),
            (vector(0, 0), np.array([[1.5, -0.5], [0, 1]]), "non-negative rows of sum 1"),
            (vector(0, 0), np.array([[0.5, 0.4], [0, 1]]), "non-negative rows of sum 1"),
            (vector(0, 0), np.array([[1, 0.5], [0, 0.5]]), "non-negative rows of sum 1"),
            (vector(0, np.nan), np.eye(2), "log_p must be finite"),
            (np.zeros((2, 1)), np.eye(2), "log_p must have 1"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, log_p, Q, message):
        with pytest.raises(ValueError, match=message):
            mcmc.metropolis_matrix(log_p, Q)


class TestExactIAT:
    @given(seeds, st.integers(2, 8))
    @settings(max_examples=40)
    def test_is_the_sum_of_autocorrelations(self, seed, n):
        # any chain with positive entries, reversible or not
        K, f = stochastic(seed, n), gaussian(seed, n)
        p = np.linalg.matrix_power(K, 4096)[0]
        g = f - p @ f
        total, power = 1.0, np.eye(n)
        for _ in range(1000):
            power = K @ power
            rho = (p * g) @ power @ g / (p @ g**2)
            total += 2 * rho
            if np.abs(power - p).max() < 1e-13:
                break
        assert mcmc.exact_iat(K, p / p.sum(), f) == pytest.approx(total, rel=1e-8, abs=1e-9)
        assert mcmc.exact_iat(K, p / p.sum(), 5 - 3 * f) == pytest.approx(total, rel=1e-8, abs=1e-9)

    @pytest.mark.parametrize(("a", "b"), [(0.2, 0.3), (0.01, 0.02), (0.9, 0.7), (0.5, 0.5), (1.0, 1.0)])
    def test_two_states(self, a, b):
        # ρ_k = (1 - a - b)^k, whatever f
        K = np.array([[1 - a, a], [b, 1 - b]])
        p = vector(b, a) / (a + b)
        tau = mcmc.exact_iat(K, p, vector(3, -1))
        assert tau == pytest.approx((2 - a - b) / (a + b), rel=1e-11, abs=1e-12)

    def test_independent_draws(self):
        p = probabilities(52, 6)
        assert mcmc.exact_iat(np.tile(p, (6, 1)), p, np.arange(6.0)) == pytest.approx(1, rel=1e-12)

    @given(seeds, st.integers(2, 9), st.floats(-1e6, 1e6))
    def test_constant(self, seed, n, value):
        p = probabilities(seed, n)
        with pytest.raises(ValueError, match="f must not be constant"):
            mcmc.exact_iat(np.tile(p, (n, 1)), p, np.full(n, value))

    @pytest.mark.parametrize(
        ("K", "p", "f", "message"),
        [
            (np.array([[0.5, 0.5], [0.25, 0.75]]), vector(0.5, 0.5), vector(0, 1), "p must be the stationary law"),
            (np.full((2, 2), 0.5), vector(1, 1), vector(0, 1), "p must be the stationary law"),
            (np.eye(3), vector(0.5, 0.5), vector(0, 1), "K must have shape"),
            (np.full((2, 2), 0.5), vector(0.5, 0.5), vector(0, 1, 2), "f must have shape"),
            (np.full((2, 2), 0.5), vector(0.5, 0.5), vector(0, np.nan), "f must be finite"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, K, p, f, message):
        with pytest.raises(ValueError, match=message):
            mcmc.exact_iat(K, p, f)


def ar1(a, seed, m, n):
    """Stationary autoregression of variance 1: ρ_k = a^k."""
    noise = gaussian(seed, m, n) * math.sqrt(1 - a**2)
    noise[:, 0] /= math.sqrt(1 - a**2)
    return scipy.signal.lfilter([1], [1, -a], noise)


def slow_acf(x):
    n, x = len(x), x - x.mean()
    return np.array([(x[: n - k] * x[k:]).sum() for k in range(n)]) / (x * x).sum()


def slow_time(rho):
    """Geyer's initial monotone sequence, in words: pairs while positive, none above the one before."""
    total, last = 0.0, math.inf
    for k in range(0, len(rho) - 1, 2):
        pair = rho[k] + rho[k + 1]
        if pair <= 0:
            break
        last = min(last, pair)
        total += last
    return 2 * total - 1


def slow_ess(draws):
    """One coordinate, (chains, draws), by the formulas of Gelman et al. §11.5 with the halves of each chain."""
    n = draws.shape[1] // 2
    halves = [half for chain in draws for half in (chain[:n], chain[-n:])]
    m = len(halves)
    within = np.mean([np.var(h, ddof=1) for h in halves])
    between = n * np.var([h.mean() for h in halves], ddof=1)
    total = (n - 1) / n * within + between / n
    covariance = np.mean([slow_acf(h) * np.var(h, ddof=1) for h in halves], axis=0)
    rho = 1 - (within - covariance) / total
    rho[0] = 1
    return m * n / max(slow_time(rho), 1 / math.log10(m * n)), math.sqrt(total / within)


class TestACF:
    @given(seeds, st.integers(2, 60), st.floats(-100, 100), st.floats(0.01, 100))
    def test_direct_sum(self, seed, n, shift, scale):
        x = gaussian(seed, 2, n)
        rho = mcmc.acf(shift + scale * x)
        for i in range(2):
            np.testing.assert_allclose(rho[i], slow_acf(x[i]), atol=1e-9)
        np.testing.assert_allclose(rho[:, 0], 1, rtol=1e-14)
        assert (np.abs(rho) <= 1 + 1e-12).all()
        # Σ_k over all lags of a centred series, both signs: 0
        np.testing.assert_allclose(1 + 2 * rho[:, 1:].sum(axis=1), 0, atol=1e-9)

    def test_by_hand(self):
        # -1, 0, 1: ρ = 1, 0, -½; axes in front are kept
        np.testing.assert_allclose(mcmc.acf(vector(4, 5, 6)), [1, 0, -0.5], atol=1e-14)
        x = gaussian(60, 2, 3, 10)
        np.testing.assert_allclose(mcmc.acf(x)[1, 2], mcmc.acf(x[1, 2]), atol=1e-14)

    def test_autoregression(self):
        # Bartlett: n Var ρ̂_1 = 1 - a²
        for a in (-0.5, 0.6, 0.9):
            n = 100_000
            rho = mcmc.acf(ar1(a, 61, 1, n)[0])
            assert abs(rho[1] - a) < 5 * math.sqrt((1 - a * a) / n)

    @pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
    @pytest.mark.parametrize("function", [mcmc.acf, mcmc.iat])
    def test_constant(self, function, value):
        for x in (np.full(10, value), np.stack([np.arange(10.0), np.full(10, value)]), vector(value)):
            with pytest.raises(ValueError, match="constant series|at least two draws"):
                function(x)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        for x, message in ((vector(), "not be empty"), (vector(1, np.nan), "must be finite"), (1.0, "at least 1")):
            with pytest.raises(ValueError, match=message):
                mcmc.acf(x)


class TestIAT:
    @given(seeds, st.integers(2, 80), st.integers(1, 4), st.floats(-0.9, 0.95))
    def test_monotone_sequence(self, seed, n, m, a):
        x = ar1(a, seed, m, n)
        rho = np.mean([slow_acf(chain) for chain in x], axis=0)
        assert mcmc.iat(x) == pytest.approx(slow_time(rho), rel=1e-8, abs=1e-9)
        assert mcmc.iat(x.reshape(1, m, n)) == pytest.approx(mcmc.iat(x), rel=1e-12)
        assert mcmc.iat(x[0]) == pytest.approx(slow_time(slow_acf(x[0])), rel=1e-8, abs=1e-9)

    @pytest.mark.parametrize("a", [-0.6, 0.0, 0.5, 0.9])
    def test_autoregression(self, a):
        # τ = (1 + a)/(1 - a); Sokal: relative error √((4M + 2)/N) for a sum of M lags, here to |a|^M = 1e-3
        N = 400_000
        M = 1 if a == 0 else math.log(1e-3) / math.log(abs(a))
        tau = (1 + a) / (1 - a)
        # noise of the sum is that of positive correlations: scaled to at least 1
        assert abs(mcmc.iat(ar1(a, 62, 40, N // 40)) - tau) < 5 * max(tau, 1) * math.sqrt((4 * M + 2) / N)

    def test_finite_chain(self):
        # the three states of B7.19-like Metropolis chains: measured against exact_iat
        log_p = np.log(vector(1, 2, 4, 3) / 10)
        Q = np.array([[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [0, 0, 0.5, 0.5]])
        K = mcmc.metropolis_matrix(log_p, Q)
        f = vector(0, 1, 2, 5)
        tau = mcmc.exact_iat(K, np.exp(log_p), f)
        rng, m, n = np.random.default_rng(63), 2000, 300
        cumulative = K.cumsum(axis=1)
        state = rng.choice(4, size=m, p=np.exp(log_p))
        x = np.empty((m, n))
        for t in range(n):
            x[:, t] = f[state]
            state = (rng.random(m)[:, None] > cumulative[state]).sum(axis=1).clip(max=3)
        # centred by each chain's own mean: -τ/n of each lag, over about 4τ lags
        bias = 8 * tau**2 / n
        assert tau > 2
        assert abs(mcmc.iat(x) - tau) < 5 * tau * math.sqrt(2 * (8 * tau + 1) / (m * n)) + bias
        # the variance of means is τ Var f / n, without any window
        variance = np.exp(log_p) @ (f - np.exp(log_p) @ f) ** 2
        assert abs(n * x.mean(axis=1).var() / variance / tau - 1) < 5 * math.sqrt(2 / m) + tau / n


class TestESS:
    @given(seeds, st.integers(4, 60), st.integers(1, 4), st.floats(-0.9, 0.95))
    def test_against_the_book(self, seed, n, m, a):
        x = np.stack([ar1(a, seed, m, n), 100 + gaussian(seed, m, n)], axis=2)
        for function, which in ((mcmc.ess, 0), (mcmc.rhat, 1)):
            value = function(x)
            assert value.shape == (2,)
            for i in range(2):
                assert value[i] == pytest.approx(slow_ess(x[..., i])[which], rel=1e-7)
            np.testing.assert_allclose(function(-3 * x[::-1] + 5), value, rtol=1e-7)

    @pytest.mark.parametrize("a", [-0.4, 0.0, 0.5, 0.9])
    def test_autoregression(self, a):
        m, n = 4, 50_000
        x = ar1(a, 64, m, n)[..., None]
        M = 1 if a == 0 else math.log(1e-3) / math.log(abs(a))
        tau = (1 + a) / (1 - a)
        assert abs(m * n / mcmc.ess(x)[0] - tau) < 5 * max(tau, 1) * math.sqrt((4 * M + 2) / (m * n))

    def test_alternating_draws(self):
        # draws that cancel are worth more than independent ones, up to N log10 N
        x = np.tile(vector(-1, 1), 500)[None, :, None] * (1 + 0.01 * gaussian(65, 2, 1000, 1))
        np.testing.assert_allclose(mcmc.ess(x), 2000 * math.log10(2000), rtol=1e-12)

    def test_chains_that_disagree(self):
        # ±5 with unit noise: the four half-means are two places, about one effective draw each
        x = gaussian(66, 2, 1000, 1) + vector(-5, 5)[:, None, None]
        assert mcmc.ess(x)[0] < 5
        assert mcmc.ess(gaussian(66, 2, 1000, 1))[0] > 1000
        # a chain that drifts disagrees with itself
        assert mcmc.ess(np.linspace(0, 10, 1000)[None, :, None] + gaussian(67, 1, 1000, 1))[0] < 10


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9])
def test_diagnostics_against_blackjax(a):
    import blackjax.diagnostics
    import jax

    x = scipy.signal.lfilter([1], [1, -a], gaussian(43, 4, 1000), axis=1)
    x += 0.1 * np.arange(4)[:, None]
    halves = np.concatenate([x[:, :500], x[:, 500:]])  # it does not split the chains itself
    with jax.enable_x64(True):
        theirs_ess = float(blackjax.diagnostics.effective_sample_size(halves))
        theirs_rhat = float(blackjax.diagnostics.potential_scale_reduction(halves))
    np.testing.assert_allclose(mcmc.rhat(x[:, :, None]), [theirs_rhat], rtol=1e-12)
    # it adds the first odd term after the last pair, a matter of noise
    np.testing.assert_allclose(mcmc.ess(x[:, :, None]), [theirs_ess], rtol=0.02)


class TestRhat:
    def test_by_hand(self):
        # halves (0, 2), (1, 5): within (2 + 8)/2 = 5, means 1 and 3 with variance 2: √((5/2 + 2)/5); the fifth draw,
        # in the middle, is not used
        expected = math.sqrt(4.5 / 5)
        np.testing.assert_allclose(mcmc.rhat(vector(0, 2, 1, 5).reshape(1, 4, 1)), [expected], rtol=1e-14)
        np.testing.assert_allclose(mcmc.rhat(vector(0, 2, 77, 1, 5).reshape(1, 5, 1)), [expected], rtol=1e-14)

    def test_shifted_chains(self):
        # four half-chains of the same shape s at c, c, -c, -c: within s², variance of means 4c²/3
        base = vector(-1, 1, 2, -2, 3, -3)
        c = 2.5
        x = np.stack([np.tile(base, 2) + c, np.tile(base, 2) - c])[..., None]
        s2 = base.var(ddof=1)
        assert mcmc.rhat(x)[0] == pytest.approx(math.sqrt(5 / 6 + 4 * c**2 / 3 / s2), rel=1e-13)

    def test_one_law(self):
        # R̂² = 1 - 1/n + B/W: with m half-chains of n, E B/W = 1/n, so R̂ - 1 is of size √(2/(m - 1))/(2n)
        m, n, d = 8, 500, 200
        x = gaussian(68, m // 2, 2 * n, d)
        r2 = mcmc.rhat(x) ** 2
        assert abs(r2.mean() - 1) < 5 * math.sqrt(2 / (m - 1)) / n / math.sqrt(d) + 2 / (m * n * n)
        assert abs(r2.std() / (math.sqrt(2 / (m - 1)) / n) - 1) < 0.4
        # autocorrelated: E R̂² = 1 + (τ - 1)/n
        slow = np.moveaxis(ar1(0.8, 69, 4 * 100, 1000).reshape(4, 100, 1000), 1, 2)
        r2 = mcmc.rhat(slow) ** 2
        assert abs(r2.mean() - 1 - 8 / 500) < 5 * 9 * math.sqrt(2 / 7) / 500 / 10 + (9 / 500) ** 2

    def test_chains_in_one_mode(self):
        # of two wells far apart: R̂ says nothing of the other one; with a start in each it is large
        log_p = lambda x: np.logaddexp(-8 * (x[:, 0] - 3) ** 2, -8 * (x[:, 0] + 3) ** 2)  # noqa: E731
        run = lambda signs: mcmc.metropolis(log_p, 3 * vector(*signs)[:, None], 2000, 0.6, n_warmup=100, rng=70)  # noqa: E731
        one, both = run((1, 1, 1, 1)).draws, run((1, 1, -1, -1)).draws
        assert (one > 0).all()
        assert abs(mcmc.rhat(one)[0] - 1) < 0.05
        # half-means ±3 in equal number: total 9·8/7, within about 1/16
        assert mcmc.rhat(both)[0] == pytest.approx(math.sqrt(72 / 7 * 16), rel=0.15)
        assert mcmc.ess(both)[0] < 8 < 100 < mcmc.ess(one)[0]

    def test_trend_within_a_chain(self):
        # split halves see it: 0 … 1 in time, halves of variance 1/48 with means ¼ and ¾
        n = 1000
        x = np.linspace(0, 1, 2 * n)[None, :, None]
        assert mcmc.rhat(x)[0] == pytest.approx(math.sqrt(1 + 48 * 0.125), rel=2e-3)

    @pytest.mark.parametrize("function", [mcmc.rhat, mcmc.ess])
    @pytest.mark.parametrize(
        ("draws", "message"),
        [
            (gaussian(0, 3, 3, 1), "at least 4 draws of each chain, got 3"),
            (gaussian(0, 3, 8), "draws must have 3"),
            (np.full((2, 8, 1), np.nan), "draws must be finite"),
            (np.ones((2, 8, 1)), "vary in every coordinate"),
            (np.full((2, 28, 1), 1e6 / 3), "vary in every coordinate"),  # a variance of rounding
            (np.full((2, 14, 1), 0.1), "vary in every coordinate"),
            (np.full((2, 22, 1), 0.7), "vary in every coordinate"),
            (np.full((2, 8, 1), 0.1) + np.arange(2)[:, None, None], "vary in every coordinate"),
            (np.concatenate([gaussian(0, 2, 8, 1), np.full((2, 8, 1), 1e6 / 3)], axis=2), "vary in every coordinate"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, function, draws, message):
        with pytest.raises(ValueError, match=message):
            function(draws)
