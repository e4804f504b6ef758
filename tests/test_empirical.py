import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from KDEpy import FFTKDE
from scipy.special import erf, erfc, erfcx, ndtr

from coursekit._validation import ConvergenceWarning
from coursekit.distributions import NormalMixture
from coursekit.empirical import (
    cv_bandwidth,
    dkw_halfwidth,
    ecdf,
    histogram_test,
    kde,
    kde_mise,
    kde_moments,
    ks_distance,
    lscv,
    overlap_from_cf,
    scott_bandwidth,
    silverman_bandwidth,
)

seeds = st.integers(0, 2**32 - 1)
normal_cdf = ndtr
BIMODAL = NormalMixture(np.array([0.3, 0.7]), np.array([-1.0, 1.5]), np.array([0.4, 1.0]))


def kernel(z, s=1.0):
    return np.exp(-0.5 * (z / s) ** 2) / (s * math.sqrt(2 * math.pi))


def laplace_cf(t):
    return 1 / (1 + t**2)


LAPLACE = overlap_from_cf(laplace_cf, 0.25)
NORMAL = NormalMixture(np.ones(1), np.zeros(1), np.ones(1))


class TestECDF:
    def test_by_hand(self):
        e = ecdf(np.array([3.0, 1.0, 2.0, 2.0]))
        np.testing.assert_array_equal(e.x, [1, 2, 3])
        np.testing.assert_array_equal(e.F, [0.25, 0.75, 1])
        assert e.n == 4
        q = np.array([[-np.inf, 0.9, 1], [1.9, 2, np.inf]])
        np.testing.assert_array_equal(e(q), [[0, 0, 0.25], [0.25, 0.75, 1]])
        assert e(2.0) == 0.75

    @given(seeds, st.integers(1, 40), st.integers(1, 20))
    def test_is_the_fraction_below(self, seed, n, values):
        rng = np.random.default_rng(seed)
        x, q = rng.integers(values, size=n) / 4, rng.integers(-1, values + 1, size=(3, 2)) / 4
        np.testing.assert_allclose(ecdf(x)(q), (x <= q[..., None]).mean(axis=-1), rtol=1e-15)

    def test_against_scipy(self):
        x = np.round(np.random.default_rng(0).standard_normal(100), 1)
        ours, theirs = ecdf(x), scipy.stats.ecdf(x).cdf
        np.testing.assert_array_equal(ours.x, theirs.quantiles)
        np.testing.assert_allclose(ours.F, theirs.probabilities, rtol=1e-15)

    def test_band(self):
        # (ln 40/2n)^½ = 1.3581/√n at 95 %
        assert dkw_halfwidth(5000) == pytest.approx(1.3581 / math.sqrt(5000), rel=1e-5)
        assert dkw_halfwidth(8, 0.5) == pytest.approx(math.sqrt(math.log(4) / 16))
        e = ecdf(np.arange(100.0))
        low, high = e.band(0.9)
        epsilon = math.sqrt(math.log(20) / 200)
        np.testing.assert_allclose(low, np.maximum(e.F - epsilon, 0), atol=1e-15)
        np.testing.assert_allclose(high, np.minimum(e.F + epsilon, 1), atol=1e-15)

    def test_band_covers(self):
        # P(sup|F̂ - F| > ε) = 0.045 at n = 500 and 95 % (inventory B5.5), never above 0.05
        rng = np.random.default_rng(1)
        missed = np.mean([ks_distance(rng.random(500), lambda u: u) > dkw_halfwidth(500) for _ in range(2000)])
        assert abs(missed - 0.045) < 5 * math.sqrt(0.045 * 0.955 / 2000)

    def test_mean_and_variance(self):
        # E F̂ = F, Var F̂ = F(1 - F)/n
        rng = np.random.default_rng(2)
        q = np.array([-1.0, 0.0, 2.0])
        F = normal_cdf(q)
        values = np.array([ecdf(rng.standard_normal(50))(q) for _ in range(4000)])
        variance = F * (1 - F) / 50
        assert (np.abs(values.mean(axis=0) - F) < 5 * np.sqrt(variance / 4000)).all()
        fourth = F * (1 - F) * (1 - 3 * F * (1 - F)) / 50**3 + 3 * 49 / 50 * variance**2
        assert (np.abs(values.var(axis=0) - variance) < 5 * np.sqrt((fourth - variance**2) / 4000)).all()


class TestKSDistance:
    def test_by_hand(self):
        # of one point u from the uniform law: max(u, 1 - u)
        assert ks_distance(np.array([0.3]), lambda u: np.clip(u, 0, 1)) == pytest.approx(0.7)
        assert ks_distance(np.array([0.8]), lambda u: np.clip(u, 0, 1)) == pytest.approx(0.8)

    def test_atoms(self):
        # P(0) = 0.7 of the law, 1/4 of the sample; a continuous formula would give 0.7
        law = scipy.stats.bernoulli(0.3)
        assert ks_distance(np.array([0.0, 1, 1, 1]), law.cdf) == pytest.approx(0.45)
        poisson = scipy.stats.poisson(3)
        x = poisson.rvs(1000, random_state=0).astype(float)
        expected = np.abs(ecdf(x)(np.arange(30.0)) - poisson.cdf(np.arange(30))).max()
        assert ks_distance(x, poisson.cdf) == pytest.approx(expected, rel=1e-13)

    @given(seeds, st.integers(1, 200))
    def test_against_scipy(self, seed, n):
        x = np.random.default_rng(seed).standard_normal(n)
        assert ks_distance(x, normal_cdf) == pytest.approx(scipy.stats.kstest(x, normal_cdf).statistic, rel=1e-12)

    def test_kolmogorov_law(self):
        # √n D → √(π/2) ln 2 in the mean, with variance π²/12 - (π/2) ln² 2; Vrbik (2018): -1/(6√n) of the mean
        rng = np.random.default_rng(3)
        D = np.array([math.sqrt(1000) * ks_distance(rng.random(1000), lambda u: u) for _ in range(2000)])
        error = math.sqrt((math.pi**2 / 12 - math.pi / 2 * math.log(2) ** 2) / 2000)
        assert abs(D.mean() + 1 / (6 * math.sqrt(1000)) - math.sqrt(math.pi / 2) * math.log(2)) < 5 * error

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: ecdf(np.array([])), "x must not be empty"),
            (lambda: ecdf(np.ones((2, 2))), "x must have 1 dimension"),
            (lambda: ecdf([1, np.nan]), "x must be finite"),
            (lambda: ecdf([1.0])(np.nan), "q must not contain NaN"),
            (lambda: ecdf([1.0]).band(1.0), "confidence must be less than 1, got 1"),
            (lambda: dkw_halfwidth(10, 0.0), "confidence must be greater than 0, got 0"),
            (lambda: dkw_halfwidth(0), "n must be at least 1"),
            (lambda: ks_distance([1.0, 2.0], lambda x: 0.5), r"cdf\(x\) must have the shape \(2,\) of x, got \(\)"),
            (lambda: ks_distance([1.0, 2.0], lambda x: x), "cdf must give non-decreasing probabilities"),
            (lambda: ks_distance([0.1, 0.2], lambda x: 1 - x), "cdf must give non-decreasing probabilities"),
            (lambda: ks_distance([0.1, 0.2], lambda x: x * np.nan), "cdf must give non-decreasing probabilities"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestHistogramTest:
    def test_by_hand(self):
        # uniform on [0, 4]: 8 of 20 in (0, 1], 3 in (1, 2], the others above 2, where no edge separates
        x = np.repeat([0.5, 1.5, 3.0], [8, 3, 9])
        test = histogram_test(x, np.array([0.0, 1.0, 2.0]), lambda x: np.clip(x / 4, 0, 1))
        np.testing.assert_array_equal(test.counts, [8, 3])
        np.testing.assert_allclose(test.expected, [5, 5])
        np.testing.assert_allclose(test.z, [3 / math.sqrt(20 * 3 / 16), -2 / math.sqrt(20 * 3 / 16)])
        assert test.chi2 == pytest.approx(9 / 5 + 4 / 5 + 1 / 10) and test.dof == 2
        assert test.p_value == pytest.approx(math.exp(-test.chi2 / 2))  # of two degrees of freedom

    def test_bins_contain_their_right_edge(self):
        x = np.repeat([0.0, 1.0], [70, 30])
        test = histogram_test(x, np.array([-0.5, 0.0, 1.0]), scipy.stats.bernoulli(0.3).cdf)
        np.testing.assert_array_equal(test.counts, [70, 30])
        np.testing.assert_allclose(test.expected, [70, 30])
        np.testing.assert_allclose(test.z, 0, atol=1e-12)

    def test_chi_square_law_at_its_singularity(self):
        # P(Y ≤ 0.1)/0.1 = 2.4817 for Y = X², the density in the middle is 1.7401 (inventory B5.8)
        edges = np.linspace(0, 4, 41)
        y = np.random.default_rng(0).standard_normal(20_000) ** 2
        test = histogram_test(y, edges, lambda y: erf(np.sqrt(np.maximum(y, 0) / 2)))
        assert test.expected[0] / 2000 == pytest.approx(2.4817, abs=5e-5)
        assert np.abs(test.z).max() < 5 and test.p_value > 1e-4 and test.dof == 40
        middle = histogram_test(y, edges, lambda y: np.clip(y, 0, 4) / 4)
        assert middle.p_value == 0 and middle.chi2 > 1e4

    def test_is_calibrated(self):
        # z has unit variance and χ² the mean dof, exactly for the multinomial if nothing is pooled away
        rng = np.random.default_rng(1)
        edges = np.linspace(-2, 2, 9)
        tests = [histogram_test(rng.standard_normal(500), edges, normal_cdf) for _ in range(1000)]
        z = np.array([t.z for t in tests])
        assert (np.abs(np.mean(z**2, axis=0) - 1) < 5 * np.sqrt(2.1 / 1000)).all()
        chi2 = np.array([t.chi2 for t in tests])
        assert tests[0].dof == 9
        assert abs(chi2.mean() - 9) < 5 * math.sqrt(18 / 1000)
        assert ks_distance(np.array([t.p_value for t in tests]), lambda p: p) < 1.95 / math.sqrt(1000)

    @given(seeds, st.integers(30, 300), st.floats(1, 12))
    @settings(max_examples=40)
    def test_pools(self, seed, n, min_expected):
        x = np.random.default_rng(seed).standard_normal(n)
        edges = np.linspace(-4, 4, 30)
        test = histogram_test(x, edges, normal_cdf, min_expected=min_expected)
        # peer: pool by hand with np.histogram, compare by scipy
        counts = np.histogram(x, [-np.inf, *edges, np.inf])[0]
        expected = n * np.diff(normal_cdf([-np.inf, *edges, np.inf]))
        pools, observed, predicted = [], 0.0, 0.0
        for c, e in zip(counts, expected, strict=True):
            observed, predicted = observed + c, predicted + e
            if predicted >= min_expected:
                pools.append([observed, predicted])
                observed, predicted = 0.0, 0.0
        pools[-1] = [pools[-1][0] + observed, pools[-1][1] + predicted]
        chi2, p = scipy.stats.chisquare(*np.transpose(pools))
        assert test.chi2 == pytest.approx(chi2, rel=1e-9) and test.p_value == pytest.approx(p, rel=1e-6)
        assert test.dof == len(pools) - 1

    def test_impossible_counts(self):
        x = np.append(np.linspace(0.01, 0.99, 50), 1.5)
        test = histogram_test(x, np.array([-1.0, 0.0, 0.5, 1.0, 2.0]), lambda x: np.clip(x, 0, 1))
        np.testing.assert_array_equal(test.z[[0, 3]], [0, np.inf])

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: histogram_test([], [0, 1], normal_cdf), "x must not be empty"),
            (lambda: histogram_test([1.0], [0], normal_cdf), "edges must be at least two increasing"),
            (lambda: histogram_test([1.0], [0, 0], normal_cdf), "edges must be at least two increasing"),
            (lambda: histogram_test([1.0], [0, 1], normal_cdf), "edges must leave two bins that expect 5 of 1"),
            (lambda: histogram_test([1.0], [0, 1], normal_cdf, min_expected=0), "min_expected must be greater than 0"),
            (lambda: histogram_test([1.0], [0, 1], lambda x: 2 * x), "cdf must give non-decreasing probabilities"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestKDE:
    @pytest.mark.parametrize("method", ["fft", "direct"])
    def test_one_and_two_points(self, method):
        grid = np.linspace(-3, 4, 57)
        expected = kernel(grid - 0.3, 0.5)
        np.testing.assert_allclose(kde(np.array([0.3]), grid, 0.5, method), expected, atol=1e-6 * expected.max())
        both = (kernel(grid - 0.3, 0.5) + kernel(grid + 1, 0.5)) / 2
        np.testing.assert_allclose(kde(np.array([0.3, -1.0]), grid, 0.5, method), both, atol=1e-6 * both.max())

    def test_direct_is_the_sum_far_into_the_tail(self):
        x, grid = np.array([0.0, 0.1]), np.array([30.0, -2.0, 38.0])
        expected = (kernel(grid) + kernel(grid - 0.1)) / 2
        np.testing.assert_allclose(kde(x, grid, 1.0, "direct"), expected, rtol=1e-12)

    @given(seeds, st.integers(1, 300), st.integers(2, 200), st.floats(-3, 1.5), st.sampled_from([0.0, 0.25, 0.01]))
    def test_fft_agrees_with_the_sum(self, seed, n, m, log_h, lattice):
        # to 1e-6 of the peak, at any bandwidth against the grid, also for rounded data, which bin unluckily
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(n)
        x = np.round(x / lattice) * lattice + 1e-3 if lattice else x
        low, high = np.sort(rng.uniform(-4, 4, 2))
        grid, h = np.linspace(low, high + 0.1, m), 10**log_h
        direct = kde(x, grid, h, "direct")
        peak = max(direct.max(), kde(x, x[:20], h, "direct").max())
        assert np.abs(kde(x, grid, h) - direct).max() < 1e-6 * peak

    @pytest.mark.parametrize("ratio", [0.7, 1.0, 3.3, 32.0])
    def test_unlucky_bins(self, ratio):
        # a single point at every fraction between two points of the grid, just fine enough or much too coarse
        h = 1.0
        grid = np.arange(-40, 41) * h / ratio
        worst = max(
            np.abs(kde(np.array([s]), grid, h) - kernel(grid - s)).max() for s in np.linspace(0, 1, 97) * h / 32
        )
        assert worst < 1e-6 * kernel(0)

    def test_large_sample(self):
        # a sample of more blocks than one, with points far outside the grid
        x = np.random.default_rng(0).standard_t(2, size=50_000)
        grid = np.linspace(-2, 5, 300)
        direct = kde(x, grid, 0.1, "direct")
        assert np.abs(kde(x, grid, 0.1) - direct).max() < 1e-7 * direct.max()

    def test_against_scipy_and_kdepy(self):
        x = np.random.default_rng(1).laplace(size=2000)
        h = silverman_bandwidth(x)
        grid = np.linspace(x.min() - 4 * h, x.max() + 4 * h, 2001)
        scipy_density = scipy.stats.gaussian_kde(x, h / x.std(ddof=1))(grid)  # takes a factor
        np.testing.assert_allclose(kde(x, grid, method="direct"), scipy_density, rtol=1e-9)
        assert np.abs(kde(x, grid) - scipy_density).max() < 1e-6 * scipy_density.max()
        assert np.abs(kde(x, grid) - FFTKDE(bw=h).fit(x).evaluate(grid)).max() < 1e-3 * scipy_density.max()

    @given(seeds, st.integers(2, 100))
    def test_moments(self, seed, n):
        # mass 1, the mean of the sample, the variance of the sample (divisor n) + h²
        x = np.random.default_rng(seed).standard_normal(n)
        h = scott_bandwidth(x)
        grid = np.linspace(x.min() - 9 * h, x.max() + 9 * h, 1500)
        p = kde(x, grid, "scott")
        assert (p >= 0).all()
        mass, mean = np.trapezoid(p, grid), np.trapezoid(p * grid, grid)
        variance = np.trapezoid(p * (grid - mean) ** 2, grid)
        np.testing.assert_allclose([mass, mean, variance], [1, x.mean(), x.var() + h**2], rtol=2e-6, atol=2e-6)

    @given(seeds, st.floats(0.01, 100), st.floats(-50, 50))
    def test_equivariance(self, seed, scale, shift):
        x = np.random.default_rng(seed).standard_normal(50)
        grid = np.linspace(-3, 3, 41)
        for method in ("fft", "direct"):
            p = kde(x, grid, method=method)
            moved = kde(scale * x + shift, scale * grid + shift, method=method)
            np.testing.assert_allclose(scale * moved, p, atol=1e-6 * p.max())

    def test_bandwidth_far_below_the_grid(self):
        # 2²² points do not reach: the sum is formed
        x, grid = np.array([0.0, 500.0]), np.linspace(0, 1000, 11)
        np.testing.assert_allclose(kde(x, grid, 1e-4), kernel(0) / 2e-4 * np.isin(grid, x), rtol=1e-12)

    def test_half_the_density_at_an_end_of_the_support(self):
        # X ~ Exp(1): E p̂(0) = ∫₀^∞ K_h(u) e^{-u} du = e^{h²/2} erfc(h/√2)/2 → p(0+)/2; the mirrored sample repairs it
        h, n, rng = 0.05, 20_000, np.random.default_rng(2)
        x = rng.exponential(size=n)
        at_zero = np.array([0.0, 0.1])
        expected = erfcx(h / math.sqrt(2)) / 2
        error = math.sqrt(1 / (4 * math.sqrt(math.pi) * h * n))  # Var ≤ p(0+)/2 · ∫K²
        assert abs(kde(x, at_zero, h)[0] - expected) < 5 * error
        assert abs(2 * kde(np.append(x, -x), at_zero, h)[0] - 2 * expected) < 10 * error
        assert expected == pytest.approx((1 - h * math.sqrt(2 / math.pi) + h * h / 2) / 2, abs=h**3)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: kde([], [0, 1]), "x must not be empty"),
            (lambda: kde([0, 1], [0, np.nan]), "grid must be finite"),
            (lambda: kde([0, 1], [0, 1], 0), "bandwidth must be greater than 0, got 0"),
            (lambda: kde([0, 1], [0, 1], -1.0), "bandwidth must be greater than 0, got -1"),
            (lambda: kde([0, 1], [0, 1], "isj"), "bandwidth must be one of 'silverman', 'scott', got 'isj'"),
            (lambda: kde([0, 1], [0, 1], method="tree"), "method must be one of 'fft', 'direct', got 'tree'"),
            (lambda: kde([2, 2, 2], [0, 1]), "x must have two different values for a bandwidth rule, got 3"),
            (lambda: kde([2], [0, 1], "scott"), "x must have two different values for a bandwidth rule, got 1"),
            (lambda: kde([0, 1], [0, 1, 3], 1.0), "grid must be at least two increasing, evenly spaced"),
            (lambda: kde([0, 1], [1, 0], 1.0), "grid must be at least two increasing, evenly spaced"),
            (lambda: kde([0, 1], [1], 1.0), "grid must be at least two increasing, evenly spaced"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestBandwidths:
    def test_rules(self):
        x = np.random.default_rng(0).laplace(size=5000)
        sigma, iqr = x.std(ddof=1), scipy.stats.iqr(x)
        assert iqr / 1.34 < sigma
        assert silverman_bandwidth(x) == pytest.approx(0.9 * iqr / 1.34 * 5000**-0.2)
        assert scott_bandwidth(x) == pytest.approx(1.06 * sigma * 5000**-0.2)
        # the laws: 0.1695 and 0.273 (inventory B5.9); the quantiles' and the variance's errors are of order 1/√n
        assert silverman_bandwidth(x) == pytest.approx(0.1695, rel=5 * 1.2 / math.sqrt(5000))
        assert scott_bandwidth(x) == pytest.approx(0.273, rel=5 * 1.2 / math.sqrt(5000))

    def test_sigma_where_it_is_smaller_or_alone(self):
        x = np.array([-1.0, -1.0, 1.0, 1.0])  # IQR 2, σ² = 4/3
        assert silverman_bandwidth(x) == pytest.approx(0.9 * math.sqrt(4 / 3) * 4**-0.2)
        x = np.array([0.0, 0, 0, 0, 0, 0, 0, 8])  # IQR 0, σ² = 8
        assert silverman_bandwidth(x) == pytest.approx(0.9 * math.sqrt(8) * 8**-0.2)

    @given(seeds, st.integers(2, 120), st.booleans())
    def test_lscv_against_the_double_sum(self, seed, n, rounded):
        x = np.random.default_rng(seed).standard_normal(n)
        x = np.round(x, 1) if rounded else x
        h = np.array([0.02, 0.3, 1.0, 7.0])
        difference, off = x[:, None] - x, ~np.eye(n, dtype=bool)
        # ∫p̂² is the mean of K_{√2 h} over all pairs, K being closed under convolution
        expected = [kernel(difference, math.sqrt(2) * s).mean() - 2 * kernel(difference, s)[off].mean() for s in h]
        np.testing.assert_allclose(lscv(x, h), expected, rtol=0, atol=2e-6 / h.min())
        assert (np.abs(lscv(x, h) - expected) < 2e-6 / h).all()

    def test_lscv_is_unbiased(self):
        # E lscv(h) = MISE(h) - ∫p²
        rng, h = np.random.default_rng(4), np.array([0.1, 0.3, 0.8])
        scores = np.array([lscv(BIMODAL.sample(60, rng=rng), h) for _ in range(800)])
        expected = kde_mise(h, 60, BIMODAL.overlap).total - BIMODAL.overlap(0.0)
        assert (np.abs(scores.mean(axis=0) - expected) < 5 * scores.std(axis=0) / math.sqrt(800)).all()

    def test_lscv_with_outliers(self):
        x = np.append(np.linspace(0, 1, 20), [1e9, -3e12])
        h = 0.1
        difference, off = x[:, None] - x, ~np.eye(22, dtype=bool)
        expected = kernel(difference, math.sqrt(2) * h).mean() - 2 * kernel(difference, h)[off].mean()
        np.testing.assert_allclose(lscv(x, np.array([h])), expected, rtol=1e-5)

    def test_cross_validation_finds_the_minimum(self):
        x = np.random.default_rng(0).laplace(size=2000)
        h = cv_bandwidth(x)
        score = lscv(x, h * np.geomspace(0.2, 5, 41))
        assert score.argmin() == 20
        # within reach of the best of all: the exact MISE there is at most twice the least
        best = scipy.optimize.minimize_scalar(
            lambda u: float(kde_mise(math.exp(u), 2000, LAPLACE).total), bounds=(-5, 0), method="bounded"
        )
        assert kde_mise(h, 2000, LAPLACE).total < 2 * best.fun
        for seed in range(6):
            y = np.random.default_rng(seed).laplace(size=200)
            assert lscv(y, cv_bandwidth(y) * np.linspace(0.97, 1.03, 13)).argmin() == 6
        assert cv_bandwidth(5 * x + 3) == pytest.approx(5 * h, rel=1e-3)

    def test_ties(self):
        x = np.round(np.random.default_rng(0).standard_normal(500), 1)
        with pytest.warns(ConvergenceWarning, match="best at the end h = .*of 500 values are ties"):
            cv_bandwidth(x)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: silverman_bandwidth([1.0, 1.0]), "x must have two different values"),
            (lambda: scott_bandwidth([[1.0, 2.0]]), "x must have 1 dimension"),
            (lambda: cv_bandwidth([3.0] * 5), "x must have two different values"),
            (lambda: lscv([1.0], [1.0]), "x must have at least two values to leave one out, got 1"),
            (lambda: lscv([1.0, 2.0], [1.0, 0.0]), "bandwidths must be greater than 0, got 0"),
            (lambda: lscv(np.arange(1e5), [0.1]), "bandwidths must not be so small"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestMISE:
    def test_laplace_table(self):
        # inventory B5.9, n = 5000
        h = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0])
        table = [2.77e-3, 1.09e-3, 6.08e-4, 6.17e-4, 8.68e-4, 1.98e-3, 6.39e-3, 2.63e-2]
        np.testing.assert_allclose(kde_mise(h, 5000, LAPLACE).total, table, rtol=3e-3)

    @pytest.mark.parametrize(
        ("overlap", "n", "h", "value"),
        [(LAPLACE, 5000, 0.1223, 5.76e-4), (NORMAL.overlap, 5000, 0.1953, 3.07e-4)],
    )
    def test_best_bandwidth(self, overlap, n, h, value):
        best = scipy.optimize.minimize_scalar(
            lambda u: float(kde_mise(math.exp(u), n, overlap).total), bounds=(-5, 0), method="bounded"
        )
        assert math.exp(best.x) == pytest.approx(h, rel=1e-3) and best.fun == pytest.approx(value, rel=2e-3)

    def test_rates(self):
        # a kink: h ~ n^(-1/4), MISE ~ n^(-3/4), not n^(-1/5) and n^(-4/5); slopes -0.253 and -0.744 (B5.9)
        points = []
        for n in (10**6, 10**7):
            best = scipy.optimize.minimize_scalar(
                lambda u: float(kde_mise(math.exp(u), n, LAPLACE).total),  # noqa: B023
                bounds=(-6, 0),
                method="bounded",
                options={"xatol": 1e-7},
            )
            points.append([best.x, math.log(best.fun)])
        np.testing.assert_allclose(np.diff(points, axis=0)[0] / math.log(10), [-0.253, -0.744], atol=6e-4)

    @given(st.floats(0.01, 5), st.integers(1, 10**6))
    @settings(max_examples=20)
    def test_normal_closed_form(self, h, n):
        # (1/2√π)[1/nh + (1 - 1/n)(1 + h²)^-½ - 2√2 (2 + h²)^-½ + 1]
        bracket = 1 / (n * h) + (1 - 1 / n) * (1 + h * h) ** -0.5 - 2 * math.sqrt(2) * (2 + h * h) ** -0.5 + 1
        expected = bracket / (2 * math.sqrt(math.pi))
        assert kde_mise(h, n, NORMAL.overlap).total == pytest.approx(expected, rel=1e-9, abs=1e-14)
        cf = overlap_from_cf(NORMAL.cf, 0.5 / math.sqrt(math.pi))
        assert kde_mise(h, n, cf).total == pytest.approx(expected, rel=1e-9, abs=1e-13)

    def test_uniform(self):
        # Q(s) = 2∫₀¹ (1 - u) K_s(u) du = erf(1/√2s) - s (2/π)^½ (1 - exp(-1/2s²))
        s = np.array([[0.05, 0.3], [1.0, 0.0]])
        with np.errstate(divide="ignore"):
            expected = erf(1 / (math.sqrt(2) * s)) - s * math.sqrt(2 / math.pi) * -np.expm1(-0.5 / s**2)
        Q = overlap_from_cf(lambda t: np.exp(0.5j * t) * np.sinc(t / (2 * math.pi)), 1.0)
        np.testing.assert_allclose(Q(s), expected, rtol=1e-12)

    @pytest.mark.parametrize("s", [1e-6, 1e-3, 1e3])
    def test_quadrature_finds_the_scale_of_the_law(self, s):
        Q = overlap_from_cf(NORMAL.cf, 0.5 / math.sqrt(math.pi))
        assert Q(np.array(s)) == pytest.approx(1 / math.sqrt(2 * math.pi * (2 + s * s)), rel=1e-11)

    @pytest.mark.parametrize("scale", [1e-6, 1e6])
    def test_units(self, scale):
        # MISE is a density: a law scaled by c has it 1/c times
        Q = overlap_from_cf(lambda t: laplace_cf(scale * t), 0.25 / scale)
        expected = kde_mise(0.1, 100, LAPLACE)
        scaled = kde_mise(0.1 * scale, 100, Q)
        assert scale * scaled.squared_bias == pytest.approx(expected.squared_bias, rel=1e-7)
        assert scale * scaled.variance == pytest.approx(expected.variance, rel=1e-10)

    def test_simulated(self):
        rng, h, n = np.random.default_rng(5), 0.3, 50
        grid = np.linspace(-8, 9, 600)
        p = np.exp(BIMODAL.log_prob(grid))
        ise = [np.trapezoid((kde(BIMODAL.sample(n, rng=rng), grid, h) - p) ** 2, grid) for _ in range(1000)]
        assert abs(np.mean(ise) - kde_mise(h, n, BIMODAL.overlap).total) < 5 * np.std(ise) / math.sqrt(1000)

    def test_limits(self):
        # h → ∞: p̂ → 0, squared bias → ∫p²; h → 0: the variance is 1/(2√π n h); small h: bias² = h⁴ ∫p''²/4
        total = kde_mise(np.array([1e6, 1e-6]), 10, BIMODAL.overlap)
        assert total.squared_bias[0] == pytest.approx(BIMODAL.overlap(0.0), rel=1e-5)
        assert total.variance[1] == pytest.approx(1e5 / (2 * math.sqrt(math.pi)), rel=1e-5)
        # ∫φ''² = 3/(8√π)
        small = kde_mise(0.02, 10, NORMAL.overlap).squared_bias
        assert small == pytest.approx(0.02**4 * 3 / (32 * math.sqrt(math.pi)), rel=1e-3)

    @pytest.mark.parametrize(("h", "peak"), [(0.02, 0.4921), (0.1, 0.4625), (0.3, 0.3997), (1.0, 0.2616)])
    def test_mean_at_the_kink(self, h, peak):
        mean, _ = kde_moments(np.array([0.0]), h, 10, laplace_cf)
        assert mean[0] == pytest.approx(erfcx(h / math.sqrt(2)) / 2, rel=1e-12)
        assert mean[0] == pytest.approx(peak, abs=5e-5)

    def test_laplace_mean(self):
        # K_h * p = ¼ e^{h²/2} [e^{-x} erfc((h² - x)/√2h) + e^x erfc((h² + x)/√2h)] (inventory B5.9)
        x, h = np.linspace(-4, 5, 19), 0.4
        low, high = ((h * h + sign * x) / (math.sqrt(2) * h) for sign in (-1, 1))
        expected = 0.25 * math.exp(h * h / 2) * (np.exp(-x) * erfc(low) + np.exp(x) * erfc(high))
        np.testing.assert_allclose(kde_moments(x, h, 7, laplace_cf)[0], expected, rtol=1e-11)

    def test_moments_integrate_to_mise(self):
        grid, h, n = np.linspace(-14, 15, 3001), 0.4, 30
        mean, variance = kde_moments(grid, h, n, BIMODAL.cf)
        widened = NormalMixture(BIMODAL.weights, BIMODAL.means, np.hypot(BIMODAL.scales, h))
        np.testing.assert_allclose(mean, np.exp(widened.log_prob(grid)), atol=1e-13)
        mise = kde_mise(h, n, BIMODAL.overlap)
        bias = mean - np.exp(BIMODAL.log_prob(grid))
        assert np.trapezoid(bias**2, grid) == pytest.approx(mise.squared_bias, rel=1e-9)
        assert np.trapezoid(variance, grid) == pytest.approx(mise.variance, rel=1e-9)
        assert mise.total == mise.squared_bias + mise.variance

    def test_moments_simulated(self):
        rng, h, n, grid = np.random.default_rng(6), 0.2, 40, np.array([0.0, 0.5, 3.0])
        mean, variance = kde_moments(grid, h, n, laplace_cf)
        p = np.array([kde(rng.laplace(size=n), grid, h, "direct") for _ in range(4000)])
        assert (np.abs(p.mean(axis=0) - mean) < 5 * np.sqrt(variance / 4000)).all()
        spread = ((p - mean) ** 2).std(axis=0) / math.sqrt(4000)
        assert (np.abs(p.var(axis=0) - variance) < 5 * spread).all()

    def test_warns_if_the_quadrature_fails(self, monkeypatch):
        quad_vec = scipy.integrate.quad_vec
        monkeypatch.setattr(scipy.integrate, "quad_vec", lambda *a, **options: quad_vec(*a, **options | {"limit": 41}))
        kde_moments(np.zeros(1), 0.5, 5, laplace_cf)
        with pytest.warns(ConvergenceWarning, match="quadrature over cf stopped with an error of"):
            kde_moments(np.zeros(1), 0.5, 5, lambda t: np.cos(100 * t))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: kde_mise(0.0, 5, LAPLACE), "bandwidth must be greater than 0, got 0"),
            (lambda: kde_mise(1.0, 0, LAPLACE), "n must be at least 1, got 0"),
            (lambda: kde_mise(1.0, 5, lambda s: s), "overlap must give positive numbers"),
            (lambda: kde_mise(1.0, 5, lambda s: 1.0), "overlap must give positive numbers"),
            (lambda: kde_mise(0.1, 5, overlap_from_cf(laplace_cf, 0.2)), "none above overlap"),
            (lambda: overlap_from_cf(laplace_cf, 0.0), "roughness must be greater than 0, got 0"),
            (lambda: LAPLACE(-1.0), "s must be at least 0, got -1"),
            (lambda: kde_moments([0.0], 0.0, 5, laplace_cf), "bandwidth must be greater than 0"),
            (lambda: kde_moments([], 1.0, 5, laplace_cf), "grid must not be empty"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
