import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf, log_ndtr, ndtr
from sklearn.mixture import GaussianMixture as SklearnMixture

from coursekit.distributions import (
    Branch,
    Gaussian,
    GaussianMixture,
    NormalMixture,
    normal_scores,
    pushforward_cdf,
    pushforward_log_prob,
)

seeds = st.integers(0, 2**32 - 1)
LOG_2PI = math.log(2 * math.pi)


def normal_log_prob(x):
    return -0.5 * x**2 - 0.5 * LOG_2PI


def random_gaussian(rng, d):
    A = rng.standard_normal((d, d + 1))
    return Gaussian(rng.standard_normal(d), A @ A.T + 0.1 * np.eye(d))


def random_mixture(rng, k):
    return NormalMixture(rng.dirichlet(np.ones(k)), 3 * rng.standard_normal(k), rng.uniform(0.2, 2, k))


class TestGaussian:
    @given(seeds, st.integers(1, 6))
    def test_log_prob_against_scipy(self, seed, d):
        rng = np.random.default_rng(seed)
        g, x = random_gaussian(rng, d), rng.standard_normal((2, 3, d))
        expected = scipy.stats.multivariate_normal(g.mean, g.cov).logpdf(x)
        np.testing.assert_allclose(g.log_prob(x), np.reshape(expected, (2, 3)), rtol=1e-9)
        assert g.log_prob(x[0, 0]) == pytest.approx(float(g.log_prob(x)[0, 0]))

    def test_condition_by_hand(self):
        # Σ = [[4, 1.2], [1.2, 1]], ρ = 0.6: x₁ | x₂ ~ N(m₁ + 1.2 (x₂ - m₂), 4 (1 - 0.36))
        g = Gaussian(np.array([1.0, -1.0]), np.array([[4.0, 1.2], [1.2, 1.0]]))
        first = g.condition([1], np.array([0.5]))
        np.testing.assert_allclose([first.mean[0], first.cov[0, 0]], [2.8, 2.56])
        second = g.condition([0], np.array([3.0]))
        np.testing.assert_allclose([second.mean[0], second.cov[0, 0]], [-0.4, 0.64])

    @given(seeds, st.integers(2, 6))
    def test_joint_is_marginal_times_conditional(self, seed, d):
        rng = np.random.default_rng(seed)
        g, x = random_gaussian(rng, d), rng.standard_normal(d)
        given_ = rng.permutation(d)[: rng.integers(1, d)]
        rest = np.setdiff1d(np.arange(d), given_)
        marginal = g.affine(np.eye(d)[given_])
        parts = marginal.log_prob(x[given_]) + g.condition(given_, x[given_]).log_prob(x[rest])
        assert parts == pytest.approx(float(g.log_prob(x)), rel=1e-9, abs=1e-9)

    @given(seeds, st.integers(1, 4))
    def test_affine_change_of_variables(self, seed, d):
        # ln p_Y(Ax + b) = ln p_X(x) - ln|det A|
        rng = np.random.default_rng(seed)
        g, x = random_gaussian(rng, d), rng.standard_normal((5, d))
        A, b = rng.standard_normal((d, d)) + 2 * np.eye(d), rng.standard_normal(d)
        expected = g.log_prob(x) - np.linalg.slogdet(A).logabsdet
        np.testing.assert_allclose(g.affine(A, b).log_prob(x @ A.T + b), expected, rtol=1e-6, atol=1e-8)

    def test_affine_on_the_line(self):
        # 1.5 X - 0.5 ~ N(-0.5, 2.25), inventory B5.7
        y = Gaussian(np.zeros(1), np.eye(1)).affine(np.array([[1.5]]), -0.5)
        np.testing.assert_allclose([y.mean[0], y.cov[0, 0]], [-0.5, 2.25])

    def test_sample(self):
        g, n = random_gaussian(np.random.default_rng(1), 3), 40_000
        x = g.sample(n, rng=0)
        assert x.shape == (n, 3)
        assert (np.abs(x.mean(axis=0) - g.mean) < 5 * np.sqrt(np.diag(g.cov) / n)).all()
        # Var of an entry of the sample covariance: (Σᵢᵢ Σⱼⱼ + Σᵢⱼ²)/n
        error = np.sqrt((np.outer(np.diag(g.cov), np.diag(g.cov)) + g.cov**2) / n)
        assert (np.abs(np.cov(x.T) - g.cov) < 5 * error).all()
        np.testing.assert_array_equal(x, g.sample(n, rng=np.random.default_rng(0)))

    def test_very_different_units(self):
        cov = np.diag([1e-20, 1.0, 1e20])
        assert Gaussian(np.zeros(3), cov).log_prob(np.zeros(3)) == pytest.approx(-1.5 * LOG_2PI, rel=1e-14)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: Gaussian(0.0, np.eye(1)), "mean must have 1 dimension"),
            (lambda: Gaussian(np.zeros(2), np.eye(3)), r"cov must have shape \(2, 2\), got \(3, 3\)"),
            (
                lambda: Gaussian(np.zeros(2), [[1, 0.5], [0, 1]]),
                "cov must be symmetric, got entries that differ by 0.5",
            ),
            (lambda: Gaussian(np.zeros(2), [[1, 2], [2, 1]]), "cov must be positive definite, .* eigenvalue of -1"),
            (lambda: Gaussian(np.zeros(2), np.ones((2, 2))), "cov must be positive definite"),
            (lambda: Gaussian(np.zeros(2), np.diag([1, 0])), "cov must be positive definite"),
            (lambda: Gaussian(np.zeros(2), np.full((2, 2), np.nan)), "cov must be finite"),
            (
                lambda: Gaussian(np.zeros(2), np.eye(2)).log_prob(np.zeros(3)),
                r"x must have shape \(..., 2\), got \(3,\)",
            ),
            (lambda: Gaussian(np.zeros(2), np.eye(2)).sample(0), "n must be at least 1"),
            (lambda: Gaussian(np.zeros(2), np.eye(2)).affine(np.eye(3)), r"A must have shape \(any, 2\)"),
            (lambda: Gaussian(np.zeros(2), np.eye(2)).affine(np.eye(2), np.zeros(3)), r"b must have shape \(2,\)"),
            (lambda: Gaussian(np.zeros(2), np.eye(2)).affine(np.ones((2, 2))), "A must have linearly independent rows"),
            (
                lambda: Gaussian(np.zeros(2), np.eye(2)).affine(np.eye(3)[:, :2]),
                "A must have linearly independent rows",
            ),
            (lambda: Gaussian(np.zeros(2), np.eye(2)).condition([0, 1], np.ones(2)), "index must name between 1 and 1"),
            (lambda: Gaussian(np.zeros(3), np.eye(3)).condition([1, 1], np.ones(2)), "index must name .* different"),
            (
                lambda: Gaussian(np.zeros(2), np.eye(2)).condition([2], np.ones(1)),
                "index must be between 0 and 1, got 2",
            ),
            (lambda: Gaussian(np.zeros(2), np.eye(2)).condition([0], np.ones(2)), r"value must have shape \(1\)"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestGaussianMixture:
    @given(seeds, st.integers(1, 4), st.integers(1, 3))
    @settings(max_examples=40)
    def test_log_prob_against_torch(self, seed, k, d):
        rng = np.random.default_rng(seed)
        parts = [random_gaussian(rng, d) for _ in range(k)]
        w, means, covs = rng.dirichlet(np.ones(k)), np.stack([g.mean for g in parts]), np.stack([g.cov for g in parts])
        x = 3 * rng.standard_normal((4, 2, d))
        D = torch.distributions
        components = D.MultivariateNormal(torch.tensor(means), torch.tensor(covs))
        peer = D.MixtureSameFamily(D.Categorical(torch.tensor(w)), components)
        mixture = GaussianMixture(w, means, covs)
        np.testing.assert_allclose(mixture.log_prob(x), peer.log_prob(torch.tensor(x)).numpy(), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(mixture.mean, peer.mean.numpy(), rtol=1e-12)
        np.testing.assert_allclose(np.diag(mixture.cov), peer.variance.numpy(), rtol=1e-9)

    def test_against_sklearn(self):
        rng = np.random.default_rng(0)
        parts = [random_gaussian(rng, 2) for _ in range(3)]
        peer = SklearnMixture(3)
        peer.weights_, peer.means_ = np.array([0.2, 0.3, 0.5]), np.stack([g.mean for g in parts])
        peer.covariances_ = np.stack([g.cov for g in parts])
        peer.precisions_cholesky_ = np.stack([np.linalg.cholesky(np.linalg.inv(g.cov)) for g in parts])
        ours = GaussianMixture(peer.weights_, peer.means_, peer.covariances_)
        x = rng.standard_normal((50, 2))
        np.testing.assert_allclose(ours.log_prob(x), peer.score_samples(x), rtol=1e-9)

    def test_moments_and_samples(self):
        # ½N(-m e₁, I) + ½N(m e₁, I) has the covariance diag(1 + m², 1) (inventory, exercise 5.3.4); m = 2
        g = GaussianMixture(np.array([0.5, 0.5]), np.array([[-2.0, 0], [2, 0]]), np.stack([np.eye(2)] * 2))
        np.testing.assert_allclose(g.mean, [0, 0])
        np.testing.assert_allclose(g.cov, np.diag([5, 1]))
        n = 40_000
        x = g.sample(n, rng=1)
        # Var x₁² = E x⁴ - 25 = (3 + 6·4 + 16) - 25 = 18
        assert (np.abs(x.mean(axis=0)) < 5 * np.sqrt(np.array([5, 1]) / n)).all()
        assert (np.abs((x**2).mean(axis=0) - [5, 1]) < 5 * np.sqrt(np.array([18, 2]) / n)).all()
        assert abs((x[:, 0] * x[:, 1]).mean()) < 5 * math.sqrt(5 / n)
        assert abs(np.mean(x[1:, 0] * x[:-1, 0])) < 5 * 5 / math.sqrt(n)  # in random order

    def test_off_diagonal_covariance(self):
        w, means = np.array([0.25, 0.75]), np.array([[0.0, 0.0], [1.0, 2.0]])
        covs = np.array([[[1.0, 0.5], [0.5, 2.0]], [[2.0, -0.3], [-0.3, 1.0]]])
        mixture = GaussianMixture(w, means, covs)
        # Cov = Σ w (Σₖ + mₖmₖᵀ) - m mᵀ with m = (0.75, 1.5)
        expected = [[0.25 + 0.75 * 3 - 0.5625, 0.125 + 0.75 * 1.7 - 1.125], [0, 0.5 + 0.75 * 5 - 2.25]]
        np.testing.assert_allclose(np.triu(mixture.cov), expected)
        x = mixture.sample(40_000, rng=0)
        assert abs(np.cov(x.T)[0, 1] - expected[0][1]) < 5 * 4 / math.sqrt(40_000)
        # the factor and not its transpose: Var of the sample covariance is (Σ₁₁Σ₂₂ + Σ₁₂²)/n
        cov = np.array([[4.0, 1.9], [1.9, 1.0]])
        x = GaussianMixture(np.ones(1), np.zeros((1, 2)), cov[None]).sample(10_000, rng=0)
        error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / 10_000)
        assert (np.abs(np.cov(x.T) - cov) < 5 * error).all()

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([1.0], np.zeros((1, 2)), np.zeros((1, 2, 2))), r"covs\[0\] must be positive definite"),
            (([0.5, 0.6], np.zeros((2, 1)), np.ones((2, 1, 1))), "weights must be non-negative with sum 1"),
            (([1.5, -0.5], np.zeros((2, 1)), np.ones((2, 1, 1))), "weights must be non-negative with sum 1"),
            (([1.0], np.zeros((2, 1)), np.ones((2, 1, 1))), r"weights must have shape \(2\), got \(1,\)"),
            (([1.0], np.zeros(2), np.eye(2)), "means must have 2 dimension"),
            (([1.0], np.zeros((1, 2)), np.ones((1, 1, 1))), r"covs must have shape \(1, 2, 2\)"),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            GaussianMixture(*arguments)


class TestNormalMixture:
    @given(seeds, st.integers(1, 5))
    @settings(max_examples=40)
    def test_against_scipy_and_torch(self, seed, k):
        rng = np.random.default_rng(seed)
        m, x = random_mixture(rng, k), 6 * rng.standard_normal((3, 2))
        parts = [scipy.stats.norm(mean, scale) for mean, scale in zip(m.means, m.scales, strict=True)]
        density = sum(w * part.pdf(x) for w, part in zip(m.weights, parts, strict=True))
        np.testing.assert_allclose(np.exp(m.log_prob(x)), density, rtol=1e-9)
        F = sum(w * part.cdf(x) for w, part in zip(m.weights, parts, strict=True))
        np.testing.assert_allclose(m.cdf(x), F, rtol=1e-12)
        np.testing.assert_allclose(np.exp(m.log_cdf(x)), F, rtol=1e-9)
        np.testing.assert_allclose(np.exp(m.log_sf(x)) + F, 1, rtol=1e-12)
        D = torch.distributions
        components = D.Normal(torch.tensor(m.means), torch.tensor(m.scales))
        peer = D.MixtureSameFamily(D.Categorical(torch.tensor(m.weights)), components)
        assert m.mean == pytest.approx(float(peer.mean), rel=1e-12)
        assert m.variance == pytest.approx(float(peer.variance), rel=1e-12)
        assert m.log_prob(float(x[0, 0])) == pytest.approx(float(peer.log_prob(torch.tensor(x[0, 0]))))

    @given(seeds, st.integers(1, 5))
    @settings(max_examples=30)
    def test_integrals(self, seed, k):
        rng = np.random.default_rng(seed)
        m = random_mixture(rng, k)
        x = np.linspace(-30, 30, 12_001)
        p = np.exp(m.log_prob(x))
        moments = np.trapezoid([p, p * x, p * (x - m.mean) ** 2, p**2], x)
        np.testing.assert_allclose(moments, [1, m.mean, m.variance, m.overlap(0.0)], rtol=1e-9, atol=1e-9)
        for t in (0.3, -1.7):
            assert m.cf(t) == pytest.approx(complex(np.trapezoid(p * np.exp(1j * t * x), x)), abs=1e-9)
        # Q(s) is the mean of the density of the mixture that is wider by s
        wider = NormalMixture(m.weights, m.means, np.hypot(m.scales, 0.7))
        assert m.overlap(0.7) == pytest.approx(np.trapezoid(p * np.exp(wider.log_prob(x)), x), rel=1e-9)
        assert m.overlap(np.array([[0.0, 0.7]])).shape == (1, 2)

    @given(seeds, st.integers(1, 5))
    @settings(max_examples=40)
    def test_quantiles(self, seed, k):
        rng = np.random.default_rng(seed)
        m, u = random_mixture(rng, k), rng.random((4, 3))
        x = m.ppf(u)
        np.testing.assert_allclose(m.cdf(x), u, rtol=1e-12, atol=1e-14)
        assert (np.diff(m.ppf(np.sort(u.ravel()))) >= 0).all()

    def test_extreme_quantiles(self):
        m = NormalMixture(np.array([0.3, 0.7]), np.array([-2.0, 2.0]), np.array([0.5, 0.5]))
        u = np.array([1e-300, 1e-30, 1e-8])
        np.testing.assert_allclose(m.log_cdf(m.ppf(u)), np.log(u), rtol=1e-13)
        high = 1 - np.array([2.0**-50, 1e-10])
        np.testing.assert_allclose(m.log_sf(m.ppf(high)), np.log1p(-high), rtol=1e-12)
        np.testing.assert_array_equal(m.ppf(np.array([0.0, 1.0])), [-np.inf, np.inf])
        np.testing.assert_array_equal(m.cdf(np.array([-np.inf, np.inf])), [0, 1])
        single = NormalMixture(np.array([1.0, 0.0]), np.array([1.0, 50.0]), np.array([2.0, 1.0]))
        assert single.ppf(0.975) == pytest.approx(1 + 2 * scipy.stats.norm.ppf(0.975), rel=1e-12)
        assert m.log_prob(-60.0) == pytest.approx(math.log(0.3) - 0.5 * 116**2 - 0.5 * LOG_2PI + math.log(2), rel=1e-12)

    @pytest.mark.parametrize(("weight", "w2_squared", "w1"), [(0.5, 1.478098, 1.202152), (0.3, 1.842766, 1.304788)])
    def test_monge_map(self, weight, w2_squared, w1):
        # inventory Y.29: N(0, 1) → w N(-2, ¼) + (1 - w) N(2, ¼) by F⁻¹ ∘ Φ; Wₚᵖ = ∫|F⁻¹(Φ(z)) - z|ᵖ φ(z) dz
        m = NormalMixture(np.array([weight, 1 - weight]), np.array([-2.0, 2.0]), np.array([0.5, 0.5]))
        v = np.linspace(-2, 2, 20_001)
        z = scipy.stats.norm.ppf(weight) + v**3  # many points where the map crosses from mode to mode
        move = np.abs(m.ppf(ndtr(z)) - z)
        measure = np.exp(normal_log_prob(z)) * 3 * v**2
        np.testing.assert_allclose(np.trapezoid([move**2 * measure, move * measure], v), [w2_squared, w1], atol=2e-6)
        if weight == 0.5:  # slope φ(0)/p(0) = 1490 between the modes
            slope = np.diff(m.ppf(ndtr(np.array([-1e-6, 1e-6]))))[0] / 2e-6
            assert slope == pytest.approx(1490, abs=1)
            assert math.exp(normal_log_prob(0.0) - m.log_prob(0.0)) == pytest.approx(1490, abs=1)

    def test_sample(self):
        m = NormalMixture(np.array([0.2, 0.5, 0.3]), np.array([-3.0, 0.0, 4.0]), np.array([0.5, 1.0, 0.2]))
        x = m.sample(20_000, rng=0)
        assert scipy.stats.kstest(x, m.cdf).statistic < 1.95 / math.sqrt(20_000)  # 0.1 % of Kolmogorov's law
        assert abs(np.mean((x[1:] - m.mean) * (x[:-1] - m.mean))) < 5 * m.variance / math.sqrt(20_000)
        np.testing.assert_array_equal(x[:0], m.sample(1, rng=0)[:0])
        np.testing.assert_array_equal(x, m.sample(20_000, rng=np.random.default_rng(0)))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: NormalMixture([1.0], [0.0], [0.0]), "scales must be greater than 0"),
            (lambda: NormalMixture([1.0], [0.0, 1.0], [1.0]), r"scales must have shape \(2\)"),
            (lambda: NormalMixture([0.4, 0.4], [0.0, 1.0], [1.0, 1.0]), "weights must be non-negative with sum 1"),
            (lambda: NormalMixture([1.0], [0.0], [1.0]).ppf(1.5), "u must lie between 0 and 1, got 1.5 to 1.5"),
            (lambda: NormalMixture([1.0], [0.0], [1.0]).ppf(np.nan), "u must not contain NaN"),
            (lambda: NormalMixture([1.0], [0.0], [1.0]).log_prob([0, np.nan]), "x must not contain NaN, got 1"),
            (lambda: NormalMixture([1.0], [0.0], [1.0]).sample(0), "n must be at least 1"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


def log_slope_of_root(y):
    return -np.log(2 * np.sqrt(y))


SQUARE = [Branch(np.sqrt, log_slope_of_root, low=0), Branch(lambda y: -np.sqrt(y), log_slope_of_root, low=0)]
MODULUS = [Branch(lambda y: y, np.zeros_like, low=0), Branch(lambda y: -y, np.zeros_like, low=0)]
EXP = [Branch(np.log, lambda y: -np.log(y), low=0)]
TANH = [Branch(np.arctanh, lambda y: -np.log1p(-y * y), -1, 1)]


def cubic_root(k):
    """Of x³ - 3x = y, on the k-th branch from the right, for |y| < 2; x = 2 cos θ turns it into 2 cos 3θ = y."""
    return lambda y: 2 * np.cos((np.arccos(y / 2) + 2 * np.pi * np.array([0, 2, 1])[k]) / 3)


def outer_root(y):
    """The only root for |y| ≥ 2: x = ±2 cosh θ."""
    return np.sign(y) * 2 * np.cosh(np.arccosh(np.maximum(np.abs(y) / 2, 1)) / 3)


def cubic_slope(root):
    return lambda y: -np.log(np.abs(3 * root(y) ** 2 - 3))


CUBIC = [Branch(cubic_root(k), cubic_slope(cubic_root(k)), -2, 2) for k in range(3)]
CUBIC += [Branch(outer_root, cubic_slope(outer_root), *ends) for ends in ((-math.inf, -2), (2, math.inf))]


class TestPushforward:
    @pytest.mark.parametrize(
        ("branches", "law"),
        [(SQUARE, scipy.stats.chi2(1)), (MODULUS, scipy.stats.halfnorm()), (EXP, scipy.stats.lognorm(1))],
    )
    def test_known_laws(self, branches, law):
        y = np.array([[-1.0, 1e-8, 0.3], [1.0, 4.0, 50.0]])
        with np.errstate(divide="ignore"):
            expected = law.logpdf(y)
        np.testing.assert_allclose(pushforward_log_prob(y, normal_log_prob, branches), expected, rtol=1e-12)
        np.testing.assert_allclose(pushforward_cdf(y, ndtr, branches), law.cdf(y), rtol=1e-9, atol=1e-16)
        assert pushforward_cdf(np.inf, ndtr, branches) == pytest.approx(1, abs=1e-15)

    @given(st.floats(-3, 3).filter(lambda a: abs(a) > 1e-3), st.floats(-5, 5), seeds)
    def test_affine(self, a, b, seed):
        y = np.random.default_rng(seed).standard_normal(5)
        line = [Branch(lambda y: (y - b) / a, lambda y: np.full(y.shape, -math.log(abs(a))))]
        law = scipy.stats.norm(b, abs(a))
        np.testing.assert_allclose(pushforward_log_prob(y, normal_log_prob, line), law.logpdf(y), rtol=1e-9)
        np.testing.assert_allclose(pushforward_cdf(y, ndtr, line), law.cdf(y), rtol=1e-9, atol=1e-15)

    def test_square_near_zero(self):
        # P(X² < 0.01) = 0.0797, mean density on [0, 0.1] 2.4817 against 1.7401 in the middle (inventory B5.8)
        assert pushforward_cdf(0.01, ndtr, SQUARE) == pytest.approx(0.0797, abs=5e-5)
        assert pushforward_cdf(0.1, ndtr, SQUARE) / 0.1 == pytest.approx(2.4817, abs=5e-5)
        assert pushforward_cdf(0.1, ndtr, SQUARE) == pytest.approx(erf(math.sqrt(0.05)), rel=1e-12)
        assert math.exp(pushforward_log_prob(0.05, normal_log_prob, SQUARE)) == pytest.approx(1.7401, abs=5e-5)
        assert pushforward_log_prob(0.0, normal_log_prob, SQUARE) == -np.inf
        # a forgotten branch is half the mass
        assert pushforward_cdf(np.inf, ndtr, SQUARE[:1]) == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("sigma", "mode", "height"), [(0.5, 0.0, 0.7979), (1.0, 0.9575, 0.7665), (2.0, 1 - 2.25e-7, 148.65)]
    )
    def test_tanh_modes(self, sigma, mode, height):
        # unimodal up to σ² = ½, then modes at a/σ² = 2 tanh a, a = artanh y (inventory B5.7)
        def log_prob(x):
            return normal_log_prob(x / sigma) - math.log(sigma)

        peak = math.exp(pushforward_log_prob(mode, log_prob, TANH))
        assert peak == pytest.approx(height, rel=2e-4)
        gap = max((1 - mode) / 3, 1e-9)
        beside = pushforward_log_prob(np.array([mode - gap, mode + gap]), log_prob, TANH)
        assert (np.exp(beside) < peak).all()

    def test_tanh_tail(self):
        # σ = 2: P(|Y| > 0.95) = 0.3597; at ±1 the branch ends, at artanh = ∓∞
        F = pushforward_cdf(np.array([-2.0, -1.0, -0.95, 0.95, 1.0, 3.0]), lambda x: ndtr(x / 2), TANH)
        np.testing.assert_allclose(F[[0, 1, 4, 5]], [0, 0, 1, 1], atol=1e-15)
        assert 1 - F[3] + F[2] == pytest.approx(0.3597, abs=5e-5)
        np.testing.assert_array_equal(pushforward_log_prob(np.array([-1.0, 1.0]), normal_log_prob, TANH), -np.inf)

    def test_three_preimages(self):
        # P(X³ - 3X ≤ 0) = P(X ≤ -√3) + P(0 ≤ X ≤ √3) = ½ by symmetry; P(≤ y) at y = 1.2 from the roots by numpy
        assert pushforward_cdf(0.0, ndtr, CUBIC) == pytest.approx(0.5)
        for y in (-1.9, 1.2, 5.0):
            roots = np.sort(np.roots([1, 0, -3, -y]).real[np.abs(np.roots([1, 0, -3, -y]).imag) < 1e-9])
            F = ndtr(roots[0]) if len(roots) == 1 else ndtr(roots[0]) + ndtr(roots[2]) - ndtr(roots[1])
            assert pushforward_cdf(y, ndtr, CUBIC) == pytest.approx(F, rel=1e-9)
            density = np.sum(np.exp(normal_log_prob(roots)) / np.abs(3 * roots**2 - 3))
            assert math.exp(pushforward_log_prob(y, normal_log_prob, CUBIC)) == pytest.approx(density, rel=1e-9)

    def test_caustic(self):
        # where two pre-images merge the density is infinite like (2 - |y|)^(-½), and its integral is the cdf
        def density(y):
            return math.exp(pushforward_log_prob(y, normal_log_prob, CUBIC))

        mass = scipy.integrate.quad(density, -2, 2, points=[-1.999, 0.0, 1.999], limit=500)[0]
        F = pushforward_cdf(np.array([-2.0, 2.0]), ndtr, CUBIC)
        assert mass == pytest.approx(F[1] - F[0], rel=1e-6)
        assert density(2 - 1e-8) / density(2 - 4e-8) == pytest.approx(2, rel=1e-3)

    def test_samples_follow(self):
        x = np.random.default_rng(0).standard_normal(20_000)
        test = scipy.stats.kstest(x**3 - 3 * x, lambda y: pushforward_cdf(y, ndtr, CUBIC))
        assert test.statistic < 1.95 / math.sqrt(20_000)  # 0.1 % of Kolmogorov's law

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: Branch(np.sqrt, np.log, 1.0, 1.0), "low must be less than high, got 1 and 1"),
            (lambda: pushforward_log_prob(1.0, normal_log_prob, []), "branches must not be empty"),
            (lambda: pushforward_cdf(1.0, ndtr, []), "branches must not be empty"),
            (lambda: pushforward_log_prob(np.nan, normal_log_prob, EXP), "y must not contain NaN"),
            (lambda: pushforward_cdf(np.nan, ndtr, EXP), "y must not contain NaN"),
            (lambda: pushforward_log_prob([1.0, 2.0], lambda x: 0.0, EXP), r"log_prob must keep the shape \(2,\)"),
            (
                lambda: pushforward_log_prob([1.0], normal_log_prob, [Branch(np.log, lambda y: 1.0)]),
                "log_slope must keep",
            ),
            (
                lambda: pushforward_cdf([1.0], ndtr, [Branch(lambda y: y * np.nan, np.log)]),
                "inverse must not give NaN, got 2",
            ),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestNormalScores:
    def test_laplace(self):
        # inventory B5.10
        y = np.array([1.0, 2, 5, 6, 10, 50, 700])
        table = np.array([0.90045, 1.49339, 2.70953, 3.026, 4.07813, 9.74547, 37.31365])  # 3.026 to three digits
        law = scipy.stats.laplace()
        z = normal_scores(law.logcdf(y), law.logsf(y))
        assert (np.abs(z - table) < [5e-6, 5e-6, 5e-6, 5e-4, 5e-6, 5e-6, 5e-6]).all()
        np.testing.assert_allclose(log_ndtr(-z), -y - math.log(2), rtol=1e-12)
        np.testing.assert_allclose(normal_scores(law.logcdf(-y), law.logsf(-y)), -z, rtol=1e-12)
        # slope √(π/2) at 0
        near = normal_scores(law.logcdf(np.array([-1e-6, 0, 1e-6])), law.logsf(np.array([-1e-6, 0, 1e-6])))
        assert near[1] == pytest.approx(0, abs=1e-15) and near[2] / 1e-6 == pytest.approx(
            math.sqrt(math.pi / 2), rel=1e-5
        )

    @given(seeds)
    def test_of_a_normal_is_the_identity(self, seed):
        z = 10 * np.random.default_rng(seed).standard_normal((3, 2))
        np.testing.assert_allclose(normal_scores(log_ndtr(z), log_ndtr(-z)), z, rtol=1e-9, atol=1e-12)

    def test_makes_samples_normal(self):
        m = NormalMixture(np.array([0.3, 0.7]), np.array([-2.0, 2.0]), np.array([0.5, 1.5]))
        y = m.sample(20_000, rng=0)
        assert scipy.stats.kstest(normal_scores(m.log_cdf(y), m.log_sf(y)), ndtr).statistic < 1.95 / math.sqrt(20_000)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: normal_scores([-1.0], [-1.0, -2.0]), r"log_sf must have the shape \(1,\) of log_cdf, got \(2,\)"),
            (lambda: normal_scores(-1.0, -1.0), "exp\\(log_cdf\\) \\+ exp\\(log_sf\\) must be 1"),
            (lambda: normal_scores(1e-12, -np.inf), "both logarithms at most 0"),
            (lambda: normal_scores(np.nan, -1.0), "log_cdf must not contain NaN"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
