import contextlib
import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erfc, erfi, ndtr

from coursekit import sde

seeds = st.integers(0, 2**32 - 1)


class Scripted(np.random.Generator):
    """A generator that deals out given normal numbers, one array at each call."""

    def __init__(self, normals):
        super().__init__(np.random.PCG64(0))
        self.normals = iter(normals)

    def standard_normal(self, size=None, dtype=float, out=None):
        value = np.asarray(next(self.normals), dtype=dtype)
        if out is None:
            return np.broadcast_to(value, size).copy()
        out[...] = value
        return out


def impulses(n):
    """The i-th path has the noise 1 at the i-th draw and 0 at all others.

    The law of a linear scheme is then exact without a sample: the covariance of X_j and X_k is the sum over the paths
    of the products of their responses.
    """
    return Scripted(np.eye(n)[:, :, None])


def silence():
    return Scripted(itertools.repeat(0.0))


def covariance(path):
    return np.einsum("jid,kid->jk", path, path)


def reused(gradient):
    """The same gradient, written into one array at every call."""
    buffers = {}

    def f(x):
        out = buffers.setdefault(x.shape, np.empty(x.shape))
        out[...] = gradient(x)
        return out

    return f


def column(*values):
    return np.array(values, dtype=float)[:, None]


def double_well(x):
    return 0.25 * (x**2 - 1) ** 2


def double_well_slope(x):
    return x * (x**2 - 1)


TIMES = np.array([0.3, 0.4, 0.42, 1.0, 1.7, 3.3])

# inventory B7.17, U = (x² - 1)²/4: D, Z, ⟨x²⟩, p(0), p(1), T(-1 → 1), T(-1 → 0), gap
TABLE = [
    (1.0, 3.041324, 1.041797, 0.25607, 0.32880, 3.488, 1.291, 0.79209),
    (0.5, 2.526654, 0.893465, 0.24005, 0.39578, 6.698, 2.522, 0.42294),
    (0.3, 2.123003, 0.840546, 0.20471, 0.47103, 11.503, 4.523, 0.23802),
    (0.2, 1.789459, 0.830895, 0.16011, 0.55883, 19.094, 7.934, 0.13478),
    (0.1, 1.245246, 0.871363, 0.06592, 0.80305, 66.27, 30.82, 0.033546),
    (0.05, 0.834059, 0.936834, 0.00808, 1.19896, 729.7, 361.9, 0.0027762),
    (0.03, 0.630428, 0.966123, 3.8e-4, 1.58622, 1.949e4, 9.74e3, 1.0270e-4),
    (0.02, 0.509655, 0.978530, 7.3e-6, 1.96211, 1.232e6, 6.16e5, 1.623e-6),
]


def units(value, digits):
    """Half a unit of the last of so many significant digits."""
    return 0.51 * 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)


class TestBrownian:
    def test_covariance(self):
        n, t = 40_000, np.array([0.1, 0.15, 1.0, 4.0])
        W = sde.brownian(t, n, 2, rng=0)
        flat = W.transpose(0, 2, 1).reshape(8, n)  # rows (t, coordinate)
        exact = np.kron(np.minimum(t[:, None], t), np.eye(2))  # Cov W_s W_t = min(s, t) I
        error = np.sqrt((np.outer(exact.diagonal(), exact.diagonal()) + exact**2) / n)
        assert (np.abs(flat @ flat.T / n - exact) < 5 * error).all()
        assert (np.abs(flat.mean(axis=1)) < 5 * np.sqrt(exact.diagonal() / n)).all()

    def test_increments_are_normal(self):
        t = np.array([0.0, 0.5, 0.6, 2.0])
        W = sde.brownian(t, 5000, rng=1)
        z = np.diff(W, axis=0) / np.sqrt(np.diff(t))[:, None, None]
        assert scipy.stats.kstest(z.ravel(), ndtr).pvalue > 1e-5
        assert scipy.stats.kstest(np.abs(z).sum(axis=0).ravel(), np.abs(z[:, ::-1]).sum(axis=0).ravel()).pvalue > 1e-5

    def test_starts_at_zero(self):
        assert (sde.brownian(np.array([0.0, 1.0]), 3, 2, rng=0)[0] == 0).all()
        late = sde.brownian(np.array([9.0]), 20_000, rng=0)
        assert late.shape == (1, 20_000, 1)
        assert late.var() == pytest.approx(9, abs=5 * 9 * math.sqrt(2 / 20_000))

    def test_quadratic_variation(self):
        # Σ(ΔW)² = T ± T√(2/N), whatever the path (inventory B7.11)
        W = sde.brownian(np.linspace(0, 3, 10_001), 4, rng=2)
        assert np.abs((np.diff(W, axis=0) ** 2).sum(axis=0) - 3).max() < 5 * 3 * math.sqrt(2 / 10_000)

    def test_reproducible(self):
        t = np.array([0.0, 1.0, 2.0])
        W = sde.brownian(t, 3, 2, rng=5)
        np.testing.assert_array_equal(W, sde.brownian(t, 3, 2, rng=np.random.default_rng(5)))
        assert (W[1:] != sde.brownian(t, 3, 2, rng=6)[1:]).all()
        assert (sde.brownian(t, 3)[1:] != sde.brownian(t, 3)[1:]).all()
        np.testing.assert_array_equal(t, [0, 1, 2])

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("t", "n", "dim", "message"),
        [
            ([-1.0, 1.0], 1, 1, "t must be increasing and not negative"),
            ([0.0, 1.0, 1.0], 1, 1, "t must be increasing and not negative"),
            ([1.0, 0.5], 1, 1, "t must be increasing and not negative"),
            ([], 1, 1, "t must not be empty"),
            ([[0.0, 1.0]], 1, 1, "t must have 1 dimension"),
            ([0.0, np.nan], 1, 1, "t must be finite"),
            ([0.0], 0, 1, "n_paths must be at least 1, got 0"),
            ([0.0], 1, 0, "dim must be at least 1, got 0"),
            ([0.0], 1.5, 1, "n_paths must be an integer"),
        ],
    )
    def test_bad_input(self, t, n, dim, message):
        with pytest.raises(ValueError, match=message):
            sde.brownian(t, n, dim)


class TestOrnsteinUhlenbeck:
    @pytest.mark.parametrize("rate", [1.3, 0.0, -0.7, 1e-12, -1e-12, 50.0])
    def test_covariance(self, rate):
        # Cov(X_s, X_t) = (D/λ)(e^{-λ|t-s|} - e^{-λ(s+t)}), times since the start; 2D min(s, t) for λ = 0
        path = sde.ou_exact(np.zeros((5, 1)), rate, 0.8, TIMES, rng=impulses(5))
        s = (TIMES - TIMES[0])[:, None]
        least = np.minimum(s, s.T)
        if abs(rate) < 1e-6:
            exact = 1.6 * least
        else:
            exact = 0.8 / rate * np.exp(-rate * np.abs(s - s.T)) * -np.expm1(-2 * rate * least)
        np.testing.assert_allclose(covariance(path), exact, rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize("rate", [1.3, 0.0, -0.7])
    def test_mean(self, rate):
        x0 = np.random.default_rng(0).standard_normal((3, 2))
        path = sde.ou_exact(x0, rate, 0.8, TIMES, rng=silence())
        decay = np.exp(-rate * (TIMES - TIMES[0]))
        np.testing.assert_allclose(path, decay[:, None, None] * x0, rtol=1e-13)
        np.testing.assert_array_equal(sde.ou_exact(x0, rate, 0.0, TIMES, rng=1), path)  # no temperature, no noise

    def test_by_numbers(self):
        # Y.10: dX = -X dt + dB from N(2, ¼): mean 0.09957 and variance 0.49938 at t = 3
        t = np.linspace(0, 3, 8)
        mean = sde.ou_exact(column(2), 1.0, 0.5, t, rng=silence())[-1, 0, 0]
        noise = covariance(sde.ou_exact(np.zeros((7, 1)), 1.0, 0.5, t, rng=impulses(7)))[-1, -1]
        assert mean == pytest.approx(0.09957, abs=5e-6)
        assert noise + 0.25 * (mean / 2) ** 2 == pytest.approx(0.49938, abs=5e-6)

    def test_stationary_sample(self):
        # from N(0, D/λ) the law stays, with the autocovariance (D/λ) e^{-λ|t-s|}; coordinates are independent
        n, rate, D = 40_000, 2.0, 0.6
        rng = np.random.default_rng(3)
        path = sde.ou_exact(math.sqrt(D / rate) * rng.standard_normal((n, 2)), rate, D, TIMES, rng=rng)
        flat = path.transpose(0, 2, 1).reshape(12, n)
        exact = np.kron(D / rate * np.exp(-rate * np.abs(TIMES[:, None] - TIMES)), np.eye(2))
        error = np.sqrt((np.outer(exact.diagonal(), exact.diagonal()) + exact**2) / n)
        assert (np.abs(flat @ flat.T / n - exact) < 5 * error).all()
        assert scipy.stats.kstest(path[-1].ravel() / math.sqrt(D / rate), ndtr).pvalue > 1e-5

    @given(seeds, st.floats(-2, 2), st.integers(1, 12))
    def test_the_steps_do_not_matter(self, seed, rate, n):
        steps = np.random.default_rng(seed).exponential(size=n)
        t = np.concatenate([[0], np.cumsum(steps)]) / steps.sum()
        variance = covariance(sde.ou_exact(np.zeros((n, 1)), rate, 1.0, t, rng=impulses(n)))[-1, -1]
        direct = covariance(sde.ou_exact(np.zeros((1, 1)), rate, 1.0, t[[0, -1]], rng=impulses(1)))[-1, -1]
        assert variance == pytest.approx(direct, rel=1e-11)

    def test_reproducible(self):
        x0 = column(1, 2, 3)
        path = sde.ou_exact(x0, 1.0, 1.0, TIMES, rng=5)
        np.testing.assert_array_equal(path, sde.ou_exact(x0, 1.0, 1.0, TIMES, rng=np.random.default_rng(5)))
        np.testing.assert_array_equal(path[0], x0)
        np.testing.assert_array_equal(x0, column(1, 2, 3))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("x0", "rate", "D", "t", "message"),
        [
            ([0.0], 1, 1, [0, 1], "x0 must have 2 dimension"),
            ([[np.nan]], 1, 1, [0, 1], "x0 must be finite"),
            ([[0.0]], np.inf, 1, [0, 1], "rate must be finite"),
            ([[0.0]], 1, -1, [0, 1], "temperature must be at least 0, got -1"),
            ([[0.0]], 1, 1, [0], "t must hold at least two increasing times"),
            ([[0.0]], 1, 1, [0, 1, 1], "t must hold at least two increasing times"),
            ([[0.0]], 1, 1, [1, 0], "t must hold at least two increasing times"),
        ],
    )
    def test_bad_input(self, x0, rate, D, t, message):
        with pytest.raises(ValueError, match=message):
            sde.ou_exact(x0, rate, D, t)


class TestEulerMaruyama:
    @pytest.mark.parametrize(("a", "h"), [(-1.0, 0.1), (-1.0, 1.9), (0.5, 0.01), (-1.0, 2.1)])
    def test_moments_of_the_linear_equation(self, a, h):
        # Y.10: m_n = (1+ah)^n m_0, v_n = σ²h (1 - (1+ah)^{2n})/(1 - (1+ah)²), also where the scheme is unstable
        n, sigma = 30, 0.7
        t = 0.4 + h * np.arange(n + 1)
        path = sde.euler_maruyama(lambda t, x: a * x, sigma, np.zeros((n, 1)), t, rng=impulses(n))
        factor = (1 + a * h) ** np.arange(n + 1)
        exact = sigma**2 * h * (1 - factor**2) / (1 - (1 + a * h) ** 2)
        np.testing.assert_allclose(covariance(path).diagonal(), exact, rtol=1e-11)
        # Cov(X_j, X_k) = (1+ah)^{k-j} v_j
        np.testing.assert_allclose(covariance(path)[10, 10:], factor[:-10] * exact[10], rtol=1e-11)
        mean = sde.euler_maruyama(lambda t, x: a * x, sigma, column(3), t, rng=silence())
        np.testing.assert_allclose(mean[:, 0, 0], 3 * factor, rtol=1e-12)

    def test_by_numbers(self):
        # Y.10: 0.08478 and 0.52582 at t = 3 from N(2, ¼), h = 0.1
        t = np.linspace(0, 3, 31)
        mean = sde.euler_maruyama(lambda t, x: -x, 1.0, column(2), t, rng=silence())[-1, 0, 0]
        path = sde.euler_maruyama(lambda t, x: -x, 1.0, np.zeros((30, 1)), t, rng=impulses(30))
        assert mean == pytest.approx(0.08478, abs=5e-6)
        assert covariance(path)[-1, -1] + 0.25 * (mean / 2) ** 2 == pytest.approx(0.52582, abs=5e-6)

    def test_coefficients_are_taken_at_the_start_of_the_step(self):
        # Itô: X_n = Σ t_k h_k, Var = Σ t_k² h_k
        h = np.diff(TIMES)
        ones = np.ones_like
        path = sde.euler_maruyama(lambda t, x: t * ones(x), lambda t, x: 0 * x, column(1), TIMES, rng=0)
        np.testing.assert_allclose(path[:, 0, 0], 1 + np.concatenate([[0], np.cumsum(TIMES[:-1] * h)]), rtol=1e-14)
        path = sde.euler_maruyama(
            lambda t, x: 0 * x, lambda t, x: t * ones(x), np.zeros((5, 1)), TIMES, rng=impulses(5)
        )
        exact = np.concatenate([[0], np.cumsum(TIMES[:-1] ** 2 * h)])
        np.testing.assert_allclose(covariance(path).diagonal(), exact, rtol=1e-14)

    def test_multiplicative_noise_in_the_mean(self):
        # Y.11: E X_n = (1 + μh)^n and E X_n² = ((1+μh)² + σ²h)^n, exactly, also over all 2^n signs of the noise;
        # α = 0.1, σ = ½: the Itô drift is μ = α + σ²/2
        n, mu, sigma = 10, 0.225, 0.5
        signs = np.array(list(itertools.product([-1.0, 1.0], repeat=n))).T[:, :, None]
        t = np.linspace(0, 1, n + 1)
        path = sde.euler_maruyama(
            lambda t, x: mu * x, lambda t, x: sigma * x, np.ones((2**n, 1)), t, rng=Scripted(signs)
        )
        k = np.arange(n + 1)
        np.testing.assert_allclose(path.mean(axis=(1, 2)), (1 + mu / n) ** k, rtol=1e-12)
        np.testing.assert_allclose((path**2).mean(axis=(1, 2)), ((1 + mu / n) ** 2 + sigma**2 / n) ** k, rtol=1e-12)

    def test_strong_order_of_multiplicative_noise(self):
        # Y.11: E|X_N - X(1)| for N = 8 … 256 along the same Brownian paths, from 20 000 of them
        M, mu, sigma = 20_000, 0.225, 0.5
        fine = np.random.default_rng(0).standard_normal((256, M, 1)) / 16
        exact = np.exp(0.1 + sigma * fine.sum(axis=0))
        errors, spread = [], []
        for n in (8, 16, 32, 64, 128, 256):
            normals = fine.reshape(n, 256 // n, M, 1).sum(axis=1) * math.sqrt(n)
            path = sde.euler_maruyama(
                lambda t, x: mu * x,
                lambda t, x: sigma * x,
                np.ones((M, 1)),
                np.linspace(0, 1, n + 1),
                rng=Scripted(normals),
            )
            error = np.abs(path[-1] - exact)
            errors.append(error.mean())
            spread.append(error.std() / math.sqrt(M))
        table = np.array([6.08e-2, 4.41e-2, 3.11e-2, 2.21e-2, 1.57e-2, 1.12e-2])
        assert (np.abs(errors - table) < 5 * math.sqrt(2) * np.array(spread) + 5e-5).all()
        assert np.polyfit(np.log([8, 16, 32, 64, 128, 256]), np.log(errors), 1)[0] == pytest.approx(-0.5, abs=0.03)

    def test_strong_order_of_additive_noise(self):
        # Two resolutions of one Brownian path, linear equation: the root mean square difference is of order 1
        def difference(n):
            fine = np.eye(2 * n)[:, :, None]
            coarse = (fine[::2] + fine[1::2]) / math.sqrt(2)
            ends = [
                sde.euler_maruyama(
                    lambda t, x: -x, 1.0, np.zeros((2 * n, 1)), np.linspace(0, 1, len(z) + 1), rng=Scripted(z)
                )[-1]
                for z in (coarse, fine)
            ]
            return np.linalg.norm(ends[0] - ends[1])

        assert difference(50) / difference(100) == pytest.approx(2, abs=0.03)

    def test_each_coordinate_has_its_own_noise(self):
        n, t = 20_000, np.linspace(0, 1, 5)
        path = sde.euler_maruyama(
            lambda t, x: 0 * x, lambda t, x: np.array([1.0, 2.0]) + 0 * x, np.zeros((n, 2)), t, rng=1
        )
        exact = np.diag([1.0, 4.0])
        error = np.sqrt((np.outer([1, 4], [1, 4]) + exact**2) / n)
        assert (np.abs(path[-1].T @ path[-1] / n - exact) < 5 * error).all()

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("n", [1, 6, 30])
    @pytest.mark.parametrize("every", [1, 2, 3, 4, 7, 29, 30, 31])
    def test_records(self, n, every):
        t = np.cumsum(np.random.default_rng(n).uniform(0.01, 0.1, n + 1))
        x0 = np.random.default_rng(every).standard_normal((2, 3))
        run = lambda **k: sde.euler_maruyama(  # noqa: E731
            lambda t, x: np.sin(t * x), lambda t, x: np.cos(x), x0, t, rng=5, **k
        )
        full = run()
        assert full.shape == (n + 1, 2, 3)
        part = run(record_every=every)
        assert part.shape == (n // every + 1, 2, 3)
        np.testing.assert_array_equal(part, full[::every])
        np.testing.assert_array_equal(full[0], x0)
        assert (full[1:] != sde.euler_maruyama(lambda t, x: x, 1.0, x0, t, rng=6)[1:]).all()

    def test_records_as_annotated(self):
        assert sde.euler_maruyama(lambda t, x: x, 1.0, column(1), TIMES, record_every=2, rng=0).shape == (3, 1, 1)

    @given(seeds)
    @settings(max_examples=20)
    def test_against_a_loop(self, seed):
        rng = np.random.default_rng(seed)
        x = x0 = rng.standard_normal((4, 2))
        path = sde.euler_maruyama(lambda t, x: t - x**3, lambda t, x: 0.1 + np.cos(t + x), x0, TIMES, rng=seed + 1)
        rng = np.random.default_rng(seed + 1)
        for t, h, found in zip(TIMES, np.diff(TIMES), path[1:], strict=False):
            x = x + (t - x**3) * h + (0.1 + np.cos(t + x)) * np.sqrt(h) * rng.standard_normal((4, 2))
            np.testing.assert_allclose(found, x, rtol=1e-12, atol=1e-12)

    def test_functions_that_return_their_argument_or_one_array(self):
        x0, t = column(1, 2), np.linspace(0, 1, 9)
        expected = sde.euler_maruyama(lambda t, x: 1 * x, lambda t, x: 1 * x, x0, t, rng=0)
        returned = sde.euler_maruyama(lambda t, x: x, lambda t, x: x, x0, t, rng=0)
        np.testing.assert_array_equal(returned, expected)
        drift, diffusion = reused(lambda x: 1 * x), reused(lambda x: 1 * x)
        found = sde.euler_maruyama(lambda t, x: drift(x), lambda t, x: diffusion(x), x0, t, rng=0)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(x0, column(1, 2))

    def test_divergence_names_the_step(self):
        # X → X², exactly, from 2: 2^(2^n) overflows at n = 10
        t = np.arange(21.0)
        with pytest.raises(FloatingPointError, match="stops being finite at step 10:"):
            sde.euler_maruyama(lambda t, x: x**2 - x, 0.0, column(1, 2), t, rng=0)
        ten = sde.euler_maruyama(lambda t, x: x**2 - x, 0.0, column(2), t[:10], rng=0)
        assert ten[-1, 0, 0] == 2.0**512
        with pytest.raises(FloatingPointError, match="at step 1:"):
            sde.euler_maruyama(lambda t, x: x * np.nan, 0.0, column(2), t, rng=0)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"t": [0.0]}, "t must hold at least two increasing times"),
            ({"t": [0.0, 0.0]}, "t must hold at least two increasing times"),
            ({"x0": [1.0, 2.0]}, "x0 must have 2 dimension"),
            ({"x0": [[np.inf]]}, "x0 must be finite"),
            ({"drift": lambda t, x: x[:1]}, r"drift must map \(2, 1\) to \(2, 1\), got \(1, 1\)"),
            ({"diffusion": lambda t, x: 1.0}, r"diffusion must map \(2, 1\) to \(2, 1\), got \(\)"),
            ({"record_every": 0}, "record_every must be at least 1, got 0"),
            ({"record_every": 1.5}, "record_every must be an integer"),
        ],
    )
    def test_bad_input(self, change, message):
        good = {"drift": lambda t, x: x, "diffusion": 1.0, "x0": column(1, 2), "t": [0.0, 1.0]}
        with pytest.raises(ValueError, match=message):
            sde.euler_maruyama(**good | change)


class TestLangevin:
    @pytest.mark.parametrize("h", [0.01, 0.1, 0.5, 1.0, 1.5])
    @pytest.mark.parametrize(("k", "D"), [(1.0, 1.0), (1.2, 0.3)])
    def test_variance_in_a_harmonic_well(self, h, k, D):
        # "euler": A = 1 - hk, V = A²V + 2Dh, so (D/k)/(1 - hk/2). "baoab": with a² = 2Dh the noise kicks by
        # a(ξ_n + ξ_{n+1})/2, Cov(X_n, ξ_n) = a/2 and V = A²V + a²(1 + A)/2, so a²/(2(1 - A)) = D/k for every h
        n = min(2000, 10 + math.ceil(-14 / math.log(abs(1 - h * k) + 1e-12)))
        paths = [
            sde.langevin(lambda x: k * x, np.zeros((m, 1)), h, n, temperature=D, method=method, rng=impulses(m))
            for method, m in (("euler", n), ("baoab", n + 1))
        ]
        variances = [(path**2).sum(axis=(1, 2)) for path in paths]
        A = 1 - h * k
        powers = A ** (2 * np.arange(n + 1))
        exact = D / k / (1 - h * k / 2)
        np.testing.assert_allclose(variances[0], exact * (1 - powers), rtol=1e-10)
        assert variances[0][-1] == pytest.approx(exact, rel=1e-11)
        assert variances[1][-1] == pytest.approx(D / k, rel=1e-11)
        # one step from a point: the two halves of the noise of the averaged method are independent
        assert variances[1][1] == pytest.approx(D * h, rel=1e-14)
        # Cov(X_n, X_{n+1}) = AV + a²/4 for "baoab", AV for "euler"
        lag = [np.vdot(path[-1], path[-2]) for path in paths]
        np.testing.assert_allclose(lag, [A * exact, A * D / k + D * h / 2], rtol=1e-10)

    def test_free_particle(self):
        # "baoab" without a force: Var X_n = 2Dh(n - ½), for n ≥ 1
        path = sde.langevin(lambda x: 0 * x, np.zeros((7, 1)), 0.3, 6, temperature=2.0, method="baoab", rng=impulses(7))
        np.testing.assert_allclose(covariance(path).diagonal()[1:], 1.2 * (np.arange(1, 7) - 0.5), rtol=1e-13)

    @pytest.mark.parametrize("method", ["euler", "baoab"])
    def test_the_mean_descends_the_gradient(self, method):
        x0 = np.array([[1.0, -2.0], [0.5, 3.0]])
        path = sde.langevin(lambda x: x * [1, 3], x0, 0.1, 12, temperature=0.0, method=method, rng=0)
        exact = np.array([0.9, 0.7]) ** np.arange(13)[:, None, None] * x0
        np.testing.assert_allclose(path, exact, rtol=1e-13)

    @given(seeds, st.floats(0.1, 2))
    @settings(max_examples=30)
    def test_is_euler_maruyama(self, seed, D):
        x0 = np.random.default_rng(seed).standard_normal((3, 2))
        h, n = 1 / 128, 20
        path = sde.langevin(double_well_slope, x0, h, n, temperature=D, rng=seed)
        peer = sde.euler_maruyama(
            lambda t, x: -double_well_slope(x), math.sqrt(2 * D), x0, h * np.arange(n + 1), rng=seed
        )
        np.testing.assert_allclose(path, peer, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("method", ["euler", "baoab"])
    @pytest.mark.parametrize("friction", [math.inf, 0.8])
    @pytest.mark.parametrize("every", [1, 3, 10, 11, 50])
    def test_records(self, method, friction, every):
        options = {"temperature": 0.5, "friction": friction, "method": method}
        x0 = column(0.1, -1, 2)
        full = sde.langevin(double_well_slope, x0, 0.05, 32, rng=7, **options)
        part = sde.langevin(
            double_well_slope, x0, 0.05, 32, record_every=every, rng=np.random.default_rng(7), **options
        )
        assert part.shape == (32 // every + 1, 3, 1)
        np.testing.assert_array_equal(part, full[::every])
        assert (sde.langevin(double_well_slope, x0, 0.05, 32, rng=8, **options)[1:] != full[1:]).any()

    @pytest.mark.parametrize("method", ["euler", "baoab"])
    @pytest.mark.parametrize("friction", [math.inf, 0.8])
    def test_gradients_that_return_their_argument_or_one_array(self, method, friction):
        x0 = column(1, -2)
        run = lambda grad: sde.langevin(grad, x0, 0.2, 15, friction=friction, method=method, rng=4)  # noqa: E731
        expected = run(lambda x: 1 * x)
        np.testing.assert_array_equal(run(lambda x: x), expected)
        np.testing.assert_array_equal(run(reused(lambda x: x)), expected)
        np.testing.assert_array_equal(run(lambda x: x.tolist()), expected)
        np.testing.assert_array_equal(x0, column(1, -2))

    @pytest.mark.parametrize("method", ["euler", "baoab"])
    def test_velocities_start_from_their_law(self, method):
        x0 = np.random.default_rng(0).standard_normal((5, 2))
        path = sde.langevin(
            double_well_slope, x0, 0.1, 20, temperature=0.3, friction=0.7, method=method, record_every=4, rng=3
        )
        rng = np.random.default_rng(3)
        v0 = math.sqrt(0.3) * rng.standard_normal(x0.shape)
        peer, _ = sde.underdamped_langevin(
            double_well_slope, x0, v0, 0.1, 20, 0.7, temperature=0.3, method=method, record_every=4, rng=rng
        )
        np.testing.assert_array_equal(path, peer)
        # free particle: the trapezium rule of a stationary V, Cov(V_s, V_t) = D e^{-γ|t-s|}, for "baoab" exactly
        if method == "baoab":
            h, n = 0.4, 12
            free = sde.langevin(
                lambda x: 0 * x, np.zeros((n + 1, 1)), h, n, temperature=0.3, friction=0.7, method=method,
                rng=impulses(n + 1),
            )  # fmt: skip
            k = np.arange(n + 1)
            weights = h * np.tri(n + 1)  # rows: trapezia up to t_n
            weights[:, 0] /= 2
            weights -= h / 2 * np.eye(n + 1)
            weights[0] = 0
            exact = weights @ (0.3 * np.exp(-0.7 * h * np.abs(k[:, None] - k))) @ weights.T
            np.testing.assert_allclose(covariance(free), exact, rtol=1e-11, atol=1e-15)

    def test_double_well(self):
        # Y.42, U = (x² - 1)², D = 1: ⟨x²⟩ = 0.832745; Euler at h = 0.04 errs by -0.03268; the averaged noise by O(h²)
        found = []
        for method in ("euler", "baoab"):
            x0 = np.where(np.arange(3000) % 2, 1.0, -1.0)[:, None]
            path = sde.langevin(lambda x: 4 * x * (x**2 - 1), x0, 0.04, 2500, method=method, record_every=5, rng=11)
            square = (path[100:] ** 2).mean(axis=(0, 2))
            found.append((square.mean(), square.std() / math.sqrt(3000)))
        (euler, se), (averaged, se2) = found
        assert abs(euler - 0.832745 + 0.03268) < 5 * se < 0.008
        assert abs(averaged - 0.832745) < 5 * se2 + 0.04**2

    @pytest.mark.parametrize(("h", "square"), [(0.05, 0.8309), (0.02, 0.8355)])
    def test_euler_in_the_course_double_well(self, h, square):
        # B7.17 at D = 0.3; exactly ⟨x U'⟩ = D + (h/2)⟨U'²⟩ in the stationary law of the scheme
        rng = np.random.default_rng(2)
        x0 = rng.choice([-1.0, 1.0], size=(2000, 1))
        path = sde.langevin(double_well_slope, x0, h, round(60 / h), temperature=0.3, record_every=10, rng=rng)
        path = path[len(path) // 6 :, :, 0]
        x2 = (path**2).mean(axis=0)
        assert abs(x2.mean() - square) < 5 * x2.std() / math.sqrt(2000) + 5e-5
        slope = double_well_slope(path)
        identity = (path * slope - h / 2 * slope**2).mean(axis=0)
        assert abs(identity.mean() - 0.3) < 5 * identity.std() / math.sqrt(2000)

    def test_divergence_names_the_step(self):
        # x → -x² (x from the slope x² + x), from -2: overflow at the tenth step
        for method in ("euler", "baoab"):
            with pytest.raises(FloatingPointError, match="stops being finite at step 10: try a smaller time step"):
                sde.langevin(lambda x: x**2 + x, column(0, -2), 1.0, 30, temperature=0.0, method=method, rng=0)

    @pytest.mark.parametrize("method", ["euler", "baoab"])
    @pytest.mark.parametrize("friction", [math.inf, 0.8])
    def test_divergence_comes_without_a_warning(self, method, friction):
        # a product beyond 1e308 in the step itself
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            with pytest.raises(FloatingPointError, match="stops being finite at step 1:"):
                sde.langevin(lambda x: 1e308 + 0 * x, column(0), 100.0, 5, friction=friction, method=method, rng=0)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"method": "verlet"}, "method must be one of 'euler', 'baoab', got 'verlet'"),
            ({"dt": 0.0}, "dt must be greater than 0, got 0"),
            ({"dt": -0.1}, "dt must be greater than 0, got -0.1"),
            ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
            ({"temperature": -1.0}, "temperature must be at least 0, got -1"),
            ({"temperature": -1.0, "friction": 1.0}, "temperature must be at least 0, got -1"),
            ({"friction": 0.0}, "friction must be greater than 0, got 0"),
            ({"friction": -math.inf}, "friction must be greater than 0"),
            ({"friction": math.nan}, "friction must be greater than 0"),
            ({"record_every": 0}, "record_every must be at least 1, got 0"),
            ({"x0": [1.0]}, "x0 must have 2 dimension"),
            ({"x0": [1.0], "friction": 1.0}, "x0 must have 2 dimension"),
            ({"grad_U": lambda x: x[0]}, r"grad_U must map \(1, 1\) to \(1, 1\), got \(1,\)"),
            ({"grad_U": lambda x: x[0], "friction": 1.0}, r"grad_U must map \(1, 1\) to \(1, 1\), got \(1,\)"),
        ],
    )
    def test_bad_input(self, change, message):
        good = {"grad_U": lambda x: x, "x0": column(1), "dt": 0.1, "n_steps": 3}
        with pytest.raises(ValueError, match=message):
            sde.langevin(**good | change)


def propagator(method, h, friction, grad=lambda x: x):
    """The matrix that takes (x, v) over one step, and the covariance of its noise at unit temperature."""
    start = np.eye(2)
    options = {"friction": friction, "method": method}
    x, v = sde.underdamped_langevin(grad, start[:, :1], start[:, 1:], h, 1, rng=silence(), **options)
    zero = np.zeros((1, 1))
    kick = sde.underdamped_langevin(grad, zero, zero, h, 1, rng=impulses(1), **options)
    noise = np.array([kick[0][1, 0, 0], kick[1][1, 0, 0]])
    return np.array([x[1, :, 0], v[1, :, 0]]), np.outer(noise, noise)


class TestUnderdamped:
    @pytest.mark.parametrize("h", [0.1, 0.2, 0.5, 1.0])
    @pytest.mark.parametrize("friction", [0.3, 1.0, 20.0])
    def test_baoab_in_a_harmonic_well(self, h, friction):
        # Y.40: the product of the five parts; stationary covariance diag(1, 1 - h²/4) D
        B, A = np.array([[1, 0], [-h / 2, 1]]), np.array([[1, h / 2], [0, 1]])
        c = math.exp(-friction * h)
        M, noise = propagator("baoab", h, friction)
        np.testing.assert_allclose(M, B @ A @ np.diag([1, c]) @ A @ B, atol=1e-14)
        kick = B @ A @ [0, math.sqrt(1 - c * c)]
        np.testing.assert_allclose(noise, np.outer(kick, kick), atol=1e-14)
        stationary = scipy.linalg.solve_discrete_lyapunov(M, noise)
        np.testing.assert_allclose(stationary, np.diag([1, 1 - h * h / 4]), atol=1e-11)

    @pytest.mark.parametrize(
        ("h", "q2", "p2"), [(0.1, 1.114, 1.167), (0.2, 1.264, 1.374), (0.5, 2.154, 2.462), (0.5, None, None)]
    )
    def test_euler_in_a_harmonic_well(self, h, q2, p2):
        friction = 1.0 if q2 else 2.5
        M, noise = propagator("euler", h, friction)
        np.testing.assert_allclose(M, [[1, h], [-h, 1 - friction * h]], atol=1e-15)
        np.testing.assert_allclose(noise, np.diag([0, 2 * friction * h]), atol=1e-15)
        if q2:  # Y.40
            found = scipy.linalg.solve_discrete_lyapunov(M, noise).diagonal()
            np.testing.assert_allclose(found, [q2, p2], atol=5.1e-4)

    def test_euler_is_unstable_at_one(self):
        # Y.40, γ = 1: |det M| = 1 - γh + h² = 1 at h = 1
        assert np.abs(np.linalg.eigvals(propagator("euler", 1.0, 1.0)[0])).max() == pytest.approx(1, abs=1e-14)

    @pytest.mark.parametrize(("method", "friction"), [("baoab", 0.6), ("euler", 1.5)])
    def test_many_steps(self, method, friction):
        # the law of the whole run, at another temperature: n steps of the Lyapunov recursion, exactly
        n, h, D = 200, 0.3, 0.4
        x, v = sde.underdamped_langevin(
            lambda x: x, np.zeros((n, 1)), np.zeros((n, 1)), h, n, friction, temperature=D, method=method,
            rng=impulses(n),
        )  # fmt: skip
        M, noise = propagator(method, h, friction)
        S = np.zeros((2, 2))
        for k in range(n):
            S = M @ S @ M.T + D * noise
            state = np.array([x[k + 1, :, 0], v[k + 1, :, 0]])
            np.testing.assert_allclose(state @ state.T, S, atol=1e-12)

    @pytest.mark.parametrize(
        ("friction", "rate"), [(0.1, 0.05), (0.5, 0.25), (1, 0.5), (2, 1), (4, 0.268), (10, 0.101), (50, 0.0200)]
    )
    def test_rates(self, friction, rate):
        # Y.40: the slower of (γ ± √(γ² - 4))/2; at γ = 2 the two meet, and an error ε of M moves them by √ε
        h = 0.002
        slowest = -math.log(np.abs(np.linalg.eigvals(propagator("baoab", h, friction)[0])).max()) / h
        assert slowest == pytest.approx(rate, rel=3e-3)
        exact = (friction - np.sqrt(friction**2 - 4 + 0j).real) / 2
        assert slowest == pytest.approx(exact, rel=max(1e-4, (friction * h) ** 2 / 10) if friction != 2 else 3e-3)

    def test_velocities_are_exact_without_a_force(self):
        # Var V = D(1 - e^{-2γt}) for any step
        n, h, friction, D = 6, 0.7, 1.1, 0.4
        _, v = sde.underdamped_langevin(
            lambda x: 0 * x, np.zeros((n, 1)), np.zeros((n, 1)), h, n, friction, temperature=D, rng=impulses(n)
        )
        exact = -D * np.expm1(-2 * friction * h * np.arange(n + 1))
        np.testing.assert_allclose(covariance(v).diagonal(), exact, rtol=1e-12)

    def test_is_verlet_without_friction(self):
        # the pendulum, second order against scipy; the energy is kept to O(h²) and returns
        x0, v0 = column(1.0, -2.0), column(0.5, 0.1)
        exact = scipy.integrate.solve_ivp(
            lambda t, y: [y[1], -math.sin(y[0])], (0, 4), [1.0, 0.5], rtol=1e-12, atol=1e-12
        ).y[:, -1]
        errors = []
        for n in (100, 200):
            x, v = sde.underdamped_langevin(np.sin, x0, v0, 4 / n, n, 1e-300, temperature=1.0, rng=0)
            errors.append(abs(x[-1, 0, 0] - exact[0]) + abs(v[-1, 0, 0] - exact[1]))
            assert np.abs(np.diff(0.5 * v**2 - np.cos(x), axis=0).sum(axis=0)).max() < (4 / n) ** 2
        assert errors[0] / errors[1] == pytest.approx(4, abs=0.1)
        # and there and back
        back, _ = sde.underdamped_langevin(np.sin, x[-1], -v[-1], 4 / n, n, 1e-300, temperature=0.0, rng=0)
        np.testing.assert_allclose(back[-1], x0, atol=1e-10)

    @given(seeds)
    @settings(max_examples=20)
    def test_against_a_loop(self, seed):
        rng = np.random.default_rng(seed)
        x0, v0 = rng.standard_normal((2, 3, 2))
        h, g, D, n = 0.1, 0.9, 0.7, 8
        for method in ("euler", "baoab"):
            found = sde.underdamped_langevin(double_well_slope, x0, v0, h, n, g, temperature=D, method=method, rng=seed)
            rng = np.random.default_rng(seed)
            x, v = x0, v0
            for k in range(n):
                z = rng.standard_normal(x.shape)
                if method == "euler":
                    x, v = x + h * v, v - h * (double_well_slope(x) + g * v) + math.sqrt(2 * g * D * h) * z
                else:
                    half = x + h / 2 * (v - h / 2 * double_well_slope(x))
                    v = math.exp(-g * h) * (v - h / 2 * double_well_slope(x))
                    v = v + math.sqrt(D * (1 - math.exp(-2 * g * h))) * z
                    x = half + h / 2 * v
                    v = v - h / 2 * double_well_slope(x)
                np.testing.assert_allclose(found[0][k + 1], x, rtol=1e-10, atol=1e-12)
                np.testing.assert_allclose(found[1][k + 1], v, rtol=1e-10, atol=1e-12)

    def test_samples_the_double_well(self):
        # B7.17 at D = 0.3: ⟨x²⟩ = 0.840546, ⟨v²⟩ = D, ⟨x U'⟩ = D; BAOAB errs by O(h²)
        rng = np.random.default_rng(5)
        x0, v0 = rng.choice([-1.0, 1.0], size=(2000, 1)), math.sqrt(0.3) * rng.standard_normal((2000, 1))
        h = 0.1
        x, v = sde.underdamped_langevin(
            double_well_slope, x0, v0, h, 1500, 1.0, temperature=0.3, record_every=5, rng=rng
        )
        x, v = x[60:], v[60:]
        for values, exact in ((x**2, 0.840546), (v**2, 0.3), (x * double_well_slope(x), 0.3)):
            mean = values.mean(axis=(0, 2))
            assert abs(mean.mean() - exact) < 5 * mean.std() / math.sqrt(2000) + h * h / 4

    @pytest.mark.parametrize("every", [2, 7, 30])
    def test_records(self, every):
        x0, v0 = column(1, 2), column(0, 1)
        full = sde.underdamped_langevin(double_well_slope, x0, v0, 0.1, 20, 1.0, rng=1)
        part = sde.underdamped_langevin(double_well_slope, x0, v0, 0.1, 20, 1.0, record_every=every, rng=1)
        for a, b in zip(full, part, strict=True):
            np.testing.assert_array_equal(a[::every], b)
        np.testing.assert_array_equal(full[0][0], x0)
        np.testing.assert_array_equal(full[1][0], v0)

    @pytest.mark.parametrize("method", ["euler", "baoab"])
    def test_gradients_that_return_their_argument_or_one_array(self, method):
        x0, v0 = column(1, 2), column(0, 1)
        run = lambda grad: sde.underdamped_langevin(grad, x0, v0, 0.3, 12, 1.0, method=method, rng=1)  # noqa: E731
        expected = run(lambda x: 1 * x)
        for grad in (lambda x: x, reused(lambda x: x)):
            for a, b in zip(run(grad), expected, strict=True):
                np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(x0, column(1, 2))
        np.testing.assert_array_equal(v0, column(0, 1))

    def test_divergence_names_the_step(self):
        # Euler, x → x + v, v → -1e100 x - …: magnitudes 1e100 to a power, beyond 1e308 at the sixth step
        x0, v0 = column(1), column(0)
        with pytest.raises(FloatingPointError, match="at step 7:"):
            sde.underdamped_langevin(lambda x: 1e100 * x, x0, v0, 1.0, 30, 1.0, temperature=0.0, method="euler", rng=0)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"v0": column(1, 2)}, r"v0 must have shape \(1, 1\), got \(2, 1\)"),
            ({"v0": [[np.nan]]}, "v0 must be finite"),
            ({"friction": math.inf}, "friction must be greater than 0, got inf"),
            ({"friction": 0.0}, "friction must be greater than 0, got 0"),
            ({"dt": 0.0}, "dt must be greater than 0, got 0"),
            ({"temperature": -0.5}, "temperature must be at least 0, got -0.5"),
            ({"method": "aboba"}, "method must be one of 'euler', 'baoab', got 'aboba'"),
            ({"n_steps": 2.5}, "n_steps must be an integer"),
            ({"grad_U": lambda x: 0.0}, r"grad_U must map \(1, 1\) to \(1, 1\), got \(\)"),
        ],
    )
    def test_bad_input(self, change, message):
        good = {"grad_U": lambda x: x, "x0": column(1), "v0": column(1), "dt": 0.1, "n_steps": 3, "friction": 1.0}
        with pytest.raises(ValueError, match=message):
            sde.underdamped_langevin(**good | change)


def arrival(t, a, v, D):
    """P(τ ≤ t) to go a > 0 at the mean velocity v: the inverse Gaussian law; erfc(a/√(4Dt)) for v = 0."""
    s = np.sqrt(2 * D * t)
    return ndtr((v * t - a) / s) + np.exp(v * a / D) * ndtr(-(v * t + a) / s)


class TestFirstPassage:
    @pytest.mark.parametrize(("a", "v", "D"), [(1.0, 0.0, 1.0), (-0.7, 0.0, 0.3), (1.5, 0.8, 0.5), (0.8, -0.5, 0.6)])
    @pytest.mark.parametrize("dt", [0.5, 0.1])
    def test_constant_drift(self, a, v, D, dt):
        # the bridge does not know the drift: the law at multiples of dt is exact, for a step of any length
        n, steps = 20_000, round(4 / dt)
        slope = -v * math.copysign(1, a)
        tau = sde.first_passage_times(
            lambda x: np.full_like(x, slope), np.full(n, 2.0), 2 + a, dt, steps, temperature=D, rng=1
        )
        np.testing.assert_array_equal(np.unique((tau[~np.isnan(tau)] / dt - 0.5) % 1).round(9) % 1, 0)
        for k in (1, 2, steps // 2, steps):
            exact = arrival(k * dt, abs(a), v, D)
            if v == 0:
                assert exact == pytest.approx(erfc(abs(a) / math.sqrt(4 * D * k * dt)), rel=1e-12)
            found = np.mean(tau < k * dt)
            assert abs(found - exact) < 5 * math.sqrt(exact * (1 - exact) / n)
        assert np.nanmax(tau) < steps * dt

    def test_end_points_alone_miss_crossings(self):
        # Without the bridge the error is O(√dt): the level seems 0.5826 √(2D dt) further away (B7.14)
        n, dt = 20_000, 0.1
        W = math.sqrt(2) * sde.brownian(dt * np.arange(1, 41), n, rng=0)[..., 0]
        naive, exact = np.mean(W.max(axis=0) >= 1), erfc(1 / 4)
        assert naive == pytest.approx(erfc((1 + 0.5826 * math.sqrt(2 * dt)) / 4), abs=0.02)
        assert exact - naive > 20 * math.sqrt(exact * (1 - exact) / n)

    def test_from_below_and_from_above(self):
        # one call, several distances on both sides; the answers stay in the order of the starts
        n, starts = 5000, np.array([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
        tau = sde.first_passage_times(lambda x: 0 * x, np.tile(3 + starts, n), 3.0, 0.2, 10, rng=2).reshape(n, 6)
        exact = erfc(np.abs(starts) / math.sqrt(8))
        assert (np.abs((tau < 2).mean(axis=0) - exact) < 5 * np.sqrt(exact * (1 - exact) / n)).all()
        assert np.isnan(tau).any(axis=0).all()

    def test_starts_at_the_target(self):
        x0 = np.array([1.0, 0.0, 1.0, 50.0])
        tau = sde.first_passage_times(lambda x: 0 * x, x0, 1.0, 0.01, 3, temperature=1e-3, rng=0)
        np.testing.assert_array_equal(tau, [0, np.nan, 0, np.nan])
        np.testing.assert_array_equal(x0, [1, 0, 1, 50])
        never = sde.first_passage_times(lambda x: 1 / 0, np.ones(2), 1.0, 0.01, 3, rng=0)  # not called
        np.testing.assert_array_equal(never, 0)

    def test_without_noise_to_speak_of(self):
        # x → 0.9x from 1 and from -2: below ½ at the seventh step; -½ is not passed
        tau = sde.first_passage_times(lambda x: x, np.array([1.0, -2.0]), 0.5, 0.1, 50, temperature=1e-12, rng=0)
        np.testing.assert_allclose(tau, [0.65, np.nan])

    def test_gradient_is_called_where_the_paths_are(self):
        seen = []

        def grad(x):
            seen.append(x.copy())
            return x - 1

        x0 = np.array([3.0, 1.0, -2.0, 2.9, 3.2])
        sde.first_passage_times(grad, x0, 3.0, 0.1, 200, rng=0)
        np.testing.assert_allclose(seen[0], [1, -2, 2.9, 3.2], rtol=1e-15)
        sizes = [len(x) for x in seen]
        assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 4 and len(sizes) <= 200

    @pytest.mark.parametrize(("D", "start", "target", "mean"), [(1.0, -1, 1, 3.488), (0.5, 1, 0, 2.522)])
    def test_mean_in_the_double_well(self, D, start, target, mean):
        n = 3000
        x0 = np.full(n, float(start))
        tau = sde.first_passage_times(double_well_slope, x0, target, 0.02, 4000, temperature=D, rng=3)
        assert not np.isnan(tau).any()
        assert abs(tau.mean() - mean) < 5 * tau.std() / math.sqrt(n) + 0.02
        assert mean == pytest.approx(sde.mfpt(double_well, D, start, target), rel=1e-3)

    def test_gradients_that_return_their_argument_or_one_array(self):
        x0 = np.array([1.0, -2.0, 0.5])
        run = lambda grad: sde.first_passage_times(grad, x0, 0.0, 0.05, 40, rng=4)  # noqa: E731
        expected = run(lambda x: 1 * x)
        np.testing.assert_array_equal(run(lambda x: x), expected)
        np.testing.assert_array_equal(run(reused(lambda x: x)), expected)
        np.testing.assert_array_equal(sde.first_passage_times(lambda x: x, x0, 0.0, 0.05, 40, rng=4), expected)

    def test_divergence_names_the_step(self):
        # downhill by 5, where the slope is NaN
        with pytest.raises(FloatingPointError, match="stops being finite at step 2:"):
            sde.first_passage_times(lambda x: np.where(x < 2, -5, np.nan), np.array([1.0]), -9.0, 1.0, 9, rng=0)

    def test_divergence_comes_without_a_warning(self):
        # x → x + x² from 50: 1e218 at the seventh step
        def slope(x):
            with np.errstate(over="ignore"):
                return -x * x

        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            with pytest.raises(FloatingPointError, match="stops being finite at step 8:"):
                sde.first_passage_times(slope, np.array([50.0]), -1.0, 1.0, 100, rng=0)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x0": [[1.0]]}, "x0 must have 1 dimension"),
            ({"target": math.inf}, "target must be finite"),
            ({"dt": 0.0}, "dt must be greater than 0, got 0"),
            ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
            ({"temperature": 0.0}, "temperature must be greater than 0, got 0"),
            ({"grad_U": lambda x: 0.0}, r"grad_U must map \(1,\) to \(1,\), got \(\)"),
        ],
    )
    def test_bad_input(self, change, message):
        good = {"grad_U": lambda x: x, "x0": [1.0], "target": 0.0, "dt": 0.1, "n_steps": 3}
        with pytest.raises(ValueError, match=message):
            sde.first_passage_times(**good | change)


def count_by_hand(x, low, high):
    side, count = 0, 0
    for value in x:
        new = 1 if value >= high else -1 if value <= low else side
        count += side * new == -1
        side = new
    return count


class TestCountTransitions:
    @pytest.mark.parametrize(
        ("x", "expected"),
        [
            ([-1, 1], 1),
            ([-1, 0, 1, 0, -1], 2),
            ([-1, 0, -1, 0, -1], 0),  # back before it arrived
            ([0, 0, 0], 0),
            ([0, 1, 1], 0),  # where it came from is not known
            ([0, -1, 0, 1], 1),
            ([0.5, -0.5], 1),  # the levels themselves count
            ([0.5, 0, -0.4999, 0.4999, 0.5], 0),
            ([1, 0, 0.2, -0.3, 0, -2, 0, -2, 3, 0, -0.5], 3),
            ([7], 0),
        ],
    )
    def test_by_hand(self, x, expected):
        found = sde.count_transitions(column(*x), -0.5, 0.5)
        assert found.shape == (1,) and found[0] == expected
        assert sde.count_transitions(-column(*x), -0.5, 0.5)[0] == expected
        assert sde.count_transitions(column(*x)[::-1], -0.5, 0.5)[0] == expected  # the same backwards

    @given(seeds, st.integers(1, 40), st.floats(-1, 0.5), st.floats(0.01, 1.5))
    def test_batches(self, seed, n, low, width):
        x = np.random.default_rng(seed).standard_normal((n, 3, 2)).round(1)
        found = sde.count_transitions(x, low, low + width)
        assert found.shape == (3, 2)
        for i, j in np.ndindex(3, 2):
            assert found[i, j] == count_by_hand(x[:, i, j], low, low + width)

    def test_of_one_path(self):
        assert sde.count_transitions(np.array([-1.0, 1.0, -1.0]), -0.5, 0.5) == 2

    def test_rate_in_the_double_well(self):
        # stationary rate of passages both ways between -1 and 1: 2/(T(-1 → 1) + T(1 → -1)) = 1/T, D = 0.5: T = 6.698
        n, span = 300, 60.0
        rng = np.random.default_rng(0)
        path = sde.langevin(
            double_well_slope, rng.choice([-1.0, 1.0], size=(n, 1)), 0.005, 12_000, temperature=0.5,
            method="baoab", rng=rng,
        )  # fmt: skip
        counts = sde.count_transitions(path[..., 0], -1.0, 1.0)
        # paths at the level at discrete times only: both levels seem 0.5826 √(2D dt) further off
        shift = 0.5826 * math.sqrt(2 * 0.5 * 0.005)
        expected = span / sde.mfpt(double_well, 0.5, -1 - shift, 1 + shift)
        assert abs(counts.mean() - expected) < 5 * counts.std() / math.sqrt(n) + 0.3

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("x", "low", "high", "message"),
        [
            ([1.0], 0.5, 0.5, "low must be below high, got 0.5 and 0.5"),
            ([1.0], 1, -1, "low must be below high, got 1 and -1"),
            ([], 0, 1, "x must not be empty"),
            ([np.nan], 0, 1, "x must be finite"),
            (3.0, 0, 1, "x must have at least 1 dimension"),
            ([1.0], -np.inf, 1, "low must be finite"),
        ],
    )
    def test_bad_input(self, x, low, high, message):
        with pytest.raises(ValueError, match=message):
            sde.count_transitions(x, low, high)


def generator(U, D, x):
    """Columns are sources: the documented rates (D/h²) e^{-(U_j - U_i)/2D} to the neighbours j of i."""
    h = x[1] - x[0]
    G = np.zeros((len(x), len(x)))
    for i, j in itertools.product(range(len(x)), repeat=2):
        if abs(i - j) == 1:
            G[j, i] = D / h**2 * math.exp(-(U(x[j]) - U(x[i])) / (2 * D))
    return G - np.diag(G.sum(axis=0))


def normal(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * math.pi * variance)


class TestFokkerPlanck:
    @given(seeds, st.floats(0.2, 3), st.integers(3, 15))
    @settings(max_examples=40)
    def test_is_the_chain_of_its_rates(self, seed, D, n):
        rng = np.random.default_rng(seed)
        x = np.linspace(-1.5, 2, n)
        values = rng.standard_normal(n)
        chain = sde.fokker_planck_1d(lambda y: values + 0 * y, D, x)
        G = generator(lambda y: values[np.abs(x - y).argmin()], D, x)
        h = x[1] - x[0]
        assert chain.stationary.sum() * h == pytest.approx(1, rel=1e-13)
        np.testing.assert_allclose(chain.stationary / chain.stationary[0], np.exp((values[0] - values) / D), rtol=1e-12)
        np.testing.assert_allclose(chain.rates, np.sort(-np.linalg.eigvals(G).real), atol=1e-11 * np.abs(G).max())
        times = np.array([0.3, 0.0, 0.01, 2.0])
        P = np.array([chain.evolve(np.eye(n)[i] / h, times) for i in range(n)]) * h  # (source, time, end)
        for k, t in enumerate(times):
            np.testing.assert_allclose(P[:, k].T, scipy.linalg.expm(t * G), atol=1e-9)
            flow = chain.stationary[:, None] * P[:, k]  # detailed balance
            np.testing.assert_allclose(flow, flow.T, atol=1e-10)
        np.testing.assert_allclose(P.sum(axis=2), 1, rtol=1e-10)
        assert P.min() > -1e-10

    def test_modes(self):
        # Ornstein–Uhlenbeck: Hermite polynomials He_k(x/√D)/√k!
        D, x = 0.5, np.linspace(-5, 5, 1001)
        chain = sde.fokker_planck_1d(lambda y: 0.5 * y * y, D, x)
        z = x / math.sqrt(D)
        phi = chain.modes(4)
        near = np.abs(z) < 4
        for k, hermite in enumerate((1 + 0 * z, z, (z**2 - 1) / math.sqrt(2), (z**3 - 3 * z) / math.sqrt(6))):
            np.testing.assert_allclose(phi[k, near], hermite[near], atol=20 * (z[1] - z[0]) ** 2)
        gram = (phi * chain.stationary * (x[1] - x[0])) @ phi.T
        np.testing.assert_allclose(gram, np.eye(4), atol=1e-12)
        with pytest.raises(ValueError, match="n_modes must be between 1 and 1001"):
            chain.modes(1002)

    @given(seeds, st.floats(0.3, 2))
    @settings(max_examples=20)
    def test_modes_rebuild_the_solution(self, seed, D):
        x = np.linspace(-2, 2, 30)
        h = x[1] - x[0]
        values = np.random.default_rng(seed).standard_normal(30)
        chain = sde.fokker_planck_1d(lambda y: values + 0 * y, D, x)
        p0 = np.random.default_rng(seed + 1).exponential(size=30)
        p0 /= p0.sum() * h
        phi = chain.modes(30)
        assert (phi[:, -1] >= 0).all()
        rebuilt = chain.stationary * ((phi @ p0 * h * np.exp(-0.3 * chain.rates)) @ phi)
        np.testing.assert_allclose(rebuilt, chain.evolve(p0, np.array([0.3]))[0], atol=1e-10)

    @pytest.mark.parametrize("row", TABLE, ids=lambda row: f"D={row[0]}")
    def test_double_well_table(self, row):
        D, Z, square, p0, p1, *_, gap = row
        edge, n = (4, 1600) if D > 0.4 else (3, 1200) if D > 0.08 else (2, 800) if D > 0.04 else (1.75, 1400)
        x = edge * np.arange(-n // 2, n // 2 + 1) / (n // 2)
        chain = sde.fokker_planck_1d(double_well, D, x)
        h = x[1] - x[0]
        assert h * chain.stationary @ x**2 == pytest.approx(square, abs=units(square, 6))
        at = lambda y: chain.stationary[np.abs(x - y).argmin()]  # noqa: E731
        assert np.abs(x - 1).min() < 1e-9
        assert at(1.0) == pytest.approx(1 / Z, rel=2e-6) and at(1.0) == pytest.approx(p1, abs=6e-6)
        assert at(0.0) == pytest.approx(p0, abs=units(p0, 2) if p0 < 1e-3 else 6e-6)
        assert chain.rates[1] == pytest.approx(gap, rel=1e-4 if D > 0.02 else 4e-4)
        assert abs(chain.rates[0]) < 1e-14 * D / h**2 * 10
        assert (np.diff(chain.rates) >= 0).all()
        if D == 0.3:
            assert chain.rates[2] == pytest.approx(1.68, abs=0.005)  # B7.18

    @pytest.mark.parametrize(
        ("beta", "gap"), [(1, 0.74868), (2, 0.22728), (3, 0.08062), (4, 0.02978), (6, 0.004141), (8, 0.000572)]
    )
    def test_metastability_table(self, beta, gap):
        # Y.44, U = (x² - 1)²
        chain = sde.fokker_planck_1d(lambda x: (x**2 - 1) ** 2, 1 / beta, np.linspace(-2.6, 2.6, 1201))
        assert chain.rates[1] == pytest.approx(gap, rel=2e-5, abs=units(gap, 3 if beta == 8 else 4))

    @pytest.mark.parametrize(("k", "D"), [(1.0, 1.0), (2.0, 0.5)])
    def test_spectrum_of_the_harmonic_well(self, k, D):
        # -n k, n = 0, 1, … (B7.16), up to O(h²)
        edge = 7 * math.sqrt(D / k)
        errors = [
            sde.fokker_planck_1d(lambda x: k * x**2 / 2, D, np.linspace(-edge, edge, n)).rates[1:6]
            - k * np.arange(1, 6)
            for n in (201, 401)
        ]
        assert np.abs(errors[1]).max() < 0.02 * k
        np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.03)

    def test_rates_between_walls(self):
        # U = 0: the chain of n cells has the rates (4D/h²) sin²(πm/2n); in the limit D(πm/L)² with L = nh
        n, h, D = 30, 0.2, 0.7
        chain = sde.fokker_planck_1d(lambda x: 0 * x, D, h * np.arange(n))
        exact = 4 * D / h**2 * np.sin(math.pi * np.arange(n) / (2 * n)) ** 2
        np.testing.assert_allclose(chain.rates, exact, atol=1e-12)
        np.testing.assert_allclose(chain.stationary, 1 / (n * h), rtol=1e-14)

    def test_evolves_as_ornstein_uhlenbeck(self):
        # N(m, s²) → N(m e^{-kt}, s² e^{-2kt} + (D/k)(1 - e^{-2kt})), error O(h²)
        k, D, m, s2, t = 1.5, 0.8, 1.2, 0.1, np.array([0.05, 0.3, 1.0])
        errors = []
        for n in (141, 281, 561):
            x = np.linspace(-4.5, 4.5, n)
            h = x[1] - x[0]
            p0 = normal(x, m, s2)
            found = sde.fokker_planck_1d(lambda x: k * x**2 / 2, D, x).evolve(p0 / (p0.sum() * h), t)
            decay = np.exp(-k * t)[:, None]
            exact = normal(x, m * decay, s2 * decay**2 + D / k * (1 - decay**2))
            errors.append(h * np.abs(found - exact).sum(axis=1))
            np.testing.assert_allclose(found.sum(axis=1) * h, 1, rtol=1e-10)
            assert found.min() > -1e-12
        errors = np.array(errors)
        assert errors[-1].max() < 1e-3
        np.testing.assert_allclose(errors[:-1] / errors[1:], 4, rtol=0.1)

    def test_semigroup_and_stationarity(self):
        x = np.linspace(-2, 2, 301)
        chain = sde.fokker_planck_1d(double_well, 0.3, x)
        h = x[1] - x[0]
        p0 = np.where(np.abs(x + 1) < 0.1, 1.0, 0.0)
        p0 /= p0.sum() * h
        kept = p0.copy()
        together = chain.evolve(p0, np.array([1.1, 0.4, 1.1, 0.0]))
        np.testing.assert_array_equal(p0, kept)
        np.testing.assert_array_equal(together[0], together[2])
        np.testing.assert_allclose(together[3], p0, atol=1e-11)
        middle = np.maximum(together[1], 0)
        np.testing.assert_allclose(
            chain.evolve(middle / (middle.sum() * h), np.array([0.7]))[0], together[0], atol=1e-11
        )
        still = chain.evolve(chain.stationary, np.array([0.0, 1.0, 100.0]))
        np.testing.assert_allclose(still, np.tile(chain.stationary, (3, 1)), atol=1e-9)
        np.testing.assert_allclose(chain.evolve(p0, np.array([200.0]))[0], chain.stationary, atol=1e-9)
        # KL to the stationary law decreases
        p = np.maximum(chain.evolve(p0, np.array([0.05, 0.2, 1, 4, 16.0])), 1e-300)
        kl = h * (p * np.log(p / chain.stationary)).sum(axis=1)
        assert (np.diff(kl) < 0).all() and (kl > -1e-12).all()

    def test_agrees_with_paths(self):
        # probability of the right half after t, from -1; langevin at h = 0.01
        n, D = 20_000, 0.5
        x = np.linspace(-3, 3, 601)
        h = x[1] - x[0]
        chain = sde.fokker_planck_1d(double_well, D, x)
        p0 = np.zeros(601)
        p0[np.abs(x + 1).argmin()] = 1 / h
        p = chain.evolve(p0, np.array([1.0, 3.0]))
        exact = h * (p[:, x > 1e-9].sum(axis=1) + 0.5 * p[:, 300])
        path = sde.langevin(double_well_slope, np.full((n, 1), -1.0), 0.01, 300, temperature=D, record_every=100, rng=1)
        found = (path[[1, 3], :, 0] > 0).mean(axis=1)
        assert (np.abs(found - exact) < 5 * np.sqrt(exact * (1 - exact) / n) + 0.002).all()

    def test_units(self):
        # the potential is known up to a constant; (U, D) → (cU, cD) is time in other units
        x = np.linspace(-2, 2, 101)
        chain = sde.fokker_planck_1d(double_well, 0.3, x)
        shifted = sde.fokker_planck_1d(lambda x: double_well(x) + 1e3, 0.3, x)
        np.testing.assert_allclose(shifted.rates[1:], chain.rates[1:], rtol=1e-9)
        np.testing.assert_allclose(shifted.stationary, chain.stationary, rtol=1e-9)
        fast = sde.fokker_planck_1d(lambda x: 4 * double_well(x), 1.2, x)
        np.testing.assert_allclose(fast.rates[1:], 4 * chain.rates[1:], rtol=1e-11)

    @pytest.mark.parametrize("start", [4.0, 5.0])
    def test_a_start_far_out(self, start):
        # OU, D = 0.1: at 4 the density is e^{-80} of its peak, and ε e^{40} is no small error
        x = np.linspace(-6, 6, 601)
        p0 = np.where(np.abs(x - start) < 0.01, 1 / 0.02, 0.0)
        with pytest.raises(ValueError, match="too small"):
            sde.fokker_planck_1d(lambda x: x**2 / 2, 0.1, x).evolve(p0, np.array([1.0]))

    def test_mass_after_long_times(self):
        # D = 0.02: the time scale 1/gap is 6e5
        x = np.linspace(-1.5, 1.5, 801)
        chain = sde.fokker_planck_1d(double_well, 0.02, x)
        p = chain.evolve(chain.stationary, np.array([1e7, 1e10]))
        np.testing.assert_allclose(p.sum(axis=1) * (x[1] - x[0]), 1, rtol=1e-9)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("U", "D", "grid", "message"),
        [
            (np.square, 1.0, [0.0, 1.0], "grid must be uniform and increasing, with at least three points"),
            (np.square, 1.0, [0.0], "grid must be uniform and increasing, with at least three points"),
            (np.square, 1.0, [0.0, 1.0, 2.1], "grid must be uniform and increasing"),
            (np.square, 1.0, [2.0, 1.0, 0.0], "grid must be uniform and increasing"),
            (np.square, 1.0, [1.0, 1.0, 1.0], "grid must be uniform and increasing"),
            (np.square, 0.0, [0.0, 1.0, 2.0], "D must be greater than 0, got 0"),
            (lambda x: 0.0, 1.0, [0.0, 1.0, 2.0], r"U must map \(3,\) to \(3,\), got \(\)"),
            (lambda x: 601 * x, 1.0, [0.0, 0.5, 1.0], "U/D must vary by at most 600 over the grid, got 601: take"),
            (lambda x: x, 1 / 601, [0.0, 0.5, 1.0], "U/D must vary by at most 600 over the grid, got 601: take"),
        ],
    )
    def test_bad_input(self, U, D, grid, message):
        with pytest.raises(ValueError, match=message):
            sde.fokker_planck_1d(U, D, grid)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("p0", "t", "message"),
        [
            ([0.5, 0.5], [1.0], r"p0 must have shape \(3\), got \(2,\)"),
            ([-0.1, 1.6, 0.5], [1.0], "p0 must be a density on the grid, got a least value -0.1, mass 1"),
            ([1.0, 1.0, 1.0], [1.0], "p0 must be a density on the grid, got a least value 1, mass 1.5"),
            ([1.0, 1.0, 3e-8], [1.0], "p0 must be a density on the grid"),
            ([1.0, 1.0, 0.0], [1.0, -0.5], "t must not be negative, got -0.5"),
            ([1.0, 1.0, 0.0], [], "t must not be empty"),
        ],
    )
    def test_bad_densities(self, p0, t, message):
        chain = sde.fokker_planck_1d(np.square, 1.0, np.array([0.0, 0.5, 1.0]))
        chain.evolve(np.array([1.0, 1.0, 1e-9]), np.array([0.0]))
        with pytest.raises(ValueError, match=message):
            chain.evolve(p0, t)


class TestMeanFirstPassage:
    @pytest.mark.parametrize("row", TABLE, ids=lambda row: f"D={row[0]}")
    def test_double_well_table(self, row):
        D, *_, across, half, _ = row
        assert sde.mfpt(double_well, D, -1, 1) == pytest.approx(across, abs=1.1 * units(across, 4) * 10 / 10)
        assert sde.mfpt(double_well, D, -1, 0) == pytest.approx(half, rel=5e-4)
        assert sde.mfpt(double_well, D, 1, -1) == pytest.approx(sde.mfpt(double_well, D, -1, 1), rel=1e-9)

    @given(st.floats(0.05, 5), st.floats(0.1, 5), st.floats(-4, 4), st.floats(0.05, 3))
    @settings(max_examples=15)
    def test_constant_drift(self, v, D, a, distance):
        # U = -vx: a distance at the velocity v, whatever the noise
        assert sde.mfpt(lambda x: -v * x, D, a, a + distance) == pytest.approx(distance / v, rel=1e-7)
        assert sde.mfpt(lambda x: v * x, D, a, a - distance) == pytest.approx(distance / v, rel=1e-7)

    @pytest.mark.parametrize("b", [0.3, 1.0, 2.5])
    @pytest.mark.parametrize(("k", "D"), [(1.0, 1.0), (3.0, 0.5)])
    def test_harmonic_well(self, b, k, D):
        # in units of √(D/k) and 1/k: T(0 → b) = (π/2) erfi(b/√2) + Σ b^{2n+2}/((2n+2)(2n+1)!!)
        term, series = b, 0.0
        for n in range(200):
            series += term * b / (2 * n + 2)
            term *= b * b / (2 * n + 3)
        exact = (math.pi / 2 * erfi(b / math.sqrt(2)) + series) / k
        end = b * math.sqrt(D / k)
        assert sde.mfpt(lambda x: k * x**2 / 2, D, 0, end) == pytest.approx(exact, rel=1e-8)
        assert sde.mfpt(lambda x: k * x**2 / 2, D, 0, -end) == pytest.approx(exact, rel=1e-8)
        # downhill: from -b to 0, √(π/2)∫₀ᵇ e^{y²/2} erfc(y/√2) dy = the difference of the two parts
        exact = (math.pi / 2 * erfi(b / math.sqrt(2)) - series) / k
        assert sde.mfpt(lambda x: k * x**2 / 2, D, -end, 0) == pytest.approx(exact, rel=1e-7)

    @pytest.mark.parametrize(("a", "b"), [(-0.5, 1.0), (0.5, 2.0), (0.7, -0.3)])
    def test_wedge(self, a, b):
        # U = |x|, D = 1: T(a → 0) = |a|, T(0 → b) = 2(e^b - 1) - b
        out = lambda x: 2 * math.expm1(x) - x  # noqa: E731
        exact = out(abs(b)) + (abs(a) if a * b < 0 else -out(abs(a)))
        assert sde.mfpt(abs, 1.0, a, b) == pytest.approx(exact, rel=1e-7)

    @given(seeds)
    @settings(max_examples=8)
    def test_adds_up(self, seed):
        # the path to c passes b; units; and the mirror image
        rng = np.random.default_rng(seed)
        a, b, c = np.sort(rng.uniform(-1.5, 1.5, 3)).tolist()
        tilt, D = rng.uniform(-0.5, 0.5), rng.uniform(0.3, 1)
        U = lambda x: double_well(x) + tilt * x  # noqa: E731
        total = sde.mfpt(U, D, a, c)
        assert total == pytest.approx(sde.mfpt(U, D, a, b) + sde.mfpt(U, D, b, c), rel=1e-7)
        assert sde.mfpt(lambda x: 3 * U(x) + 7, 3 * D, a, c) == pytest.approx(total / 3, rel=1e-7)
        assert sde.mfpt(lambda x: U(-x), D, -a, -c) == pytest.approx(total, rel=1e-8)
        assert sde.mfpt(lambda x: U(x - 2), D, a + 2, c + 2) == pytest.approx(total, rel=1e-7)

    def test_no_distance(self):
        assert sde.mfpt(double_well, 1.0, 0.3, 0.3) == 0

    @pytest.mark.parametrize(
        ("U", "a", "b"),
        [(lambda x: 0.0, 0, 1), (lambda x: x, 0, 1), (lambda x: -x * x, 1, 0), (lambda x: -x, 0, -1)],
    )
    @pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
    def test_paths_that_do_not_come_back(self, U, a, b):
        with pytest.raises(FloatingPointError, match="does not (converge|grow)"):
            sde.mfpt(U, 1.0, a, b)

    @pytest.mark.filterwarnings("ignore::scipy.integrate.IntegrationWarning")
    def test_too_long_for_a_number(self):
        # e^{2000} > 1.8e308: an error or infinity, and not some number
        with contextlib.suppress(FloatingPointError, OverflowError):
            assert sde.mfpt(lambda x: x * x / 2, 0.001, 1.9, 2) == math.inf

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("D", "a", "b", "message"),
        [
            (0.0, 0, 1, "D must be greater than 0, got 0"),
            (-1.0, 0, 1, "D must be greater than 0, got -1"),
            (1.0, -math.inf, 1, "a must be finite"),
            (1.0, 0, math.nan, "b must be finite"),
        ],
    )
    def test_bad_input(self, D, a, b, message):
        with pytest.raises(ValueError, match=message):
            sde.mfpt(double_well, D, a, b)
