import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import mcmc, sampling
from coursekit.distributions import Gaussian

seeds = st.integers(0, 2**32 - 1)


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def vector(*values):
    return np.array(values, dtype=float)


def log_normal(m, S):
    return lambda x: -0.5 * (x - m) ** 2 / S - 0.5 * math.log(2 * math.pi * S)


def middles(n):
    """Normal scores at the middles of n equal parts of (0, 1): a sample without noise."""
    return scipy.special.ndtri((np.arange(n) + 0.5) / n)


def above(level):
    return lambda x: (x > level).astype(float)


class Fixed(np.random.Generator):
    """Uniform and normal numbers that are given, not drawn."""

    def __init__(self, uniform=0.5, normal=()):
        super().__init__(np.random.PCG64(0))
        self.uniform, self.normal = uniform, np.asarray(normal)

    def random(self, size=None):
        return np.full(size, self.uniform)

    def standard_normal(self, size=None):
        return self.normal.reshape(size)


class TestInverseTransform:
    @given(seeds, st.one_of(st.integers(1, 50), st.tuples(st.integers(1, 5), st.integers(1, 5))))
    def test_is_the_quantile_function_of_uniforms(self, seed, size):
        u = sampling.inverse_transform(lambda u: u, size, rng=seed)
        assert u.shape == (size if isinstance(size, tuple) else (size,))
        assert (u > 0).all() and (u < 1).all()
        np.testing.assert_allclose(sampling.inverse_transform(lambda u: 3 * u - 1, size, rng=seed), 3 * u - 1)
        rng = np.random.default_rng(seed)  # a generator advances
        first = sampling.inverse_transform(lambda u: u, size, rng=rng)
        np.testing.assert_array_equal(first, u)
        assert (sampling.inverse_transform(lambda u: u, size, rng=rng) != u).any()

    @pytest.mark.parametrize("raw", [0.0, 2.0**-53, 0.5, 0.5 + 2.0**-53, 1 - 2.0**-52, 1 - 2.0**-53])
    def test_never_at_the_ends(self, raw):
        # the least and the largest value of Generator.random: an infinite sample otherwise
        u = sampling.inverse_transform(lambda u: u, 1, rng=Fixed(raw))
        assert 0 < u[0] < 1
        assert u[0] == pytest.approx(raw, abs=2.0**-53)
        assert np.isfinite(sampling.inverse_transform(scipy.special.ndtri, 1, rng=Fixed(raw))).all()

    def test_mixture(self):
        # B7.1: .6 N(-2,1) + .4 N(2,¼), mean -0.4, variance 4.54; Kolmogorov distance 5 standard deviations (0.26/√n)
        # above its mean 0.8687/√n
        grid = np.linspace(-10, 7, 20_001)
        F = lambda x: 0.6 * scipy.special.ndtr(x + 2) + 0.4 * scipy.special.ndtr((x - 2) / 0.5)  # noqa: E731
        n = 50_000
        x = sampling.inverse_transform(lambda u: np.interp(u, F(grid), grid), n, rng=1)
        assert abs(x.mean() + 0.4) < 5 * math.sqrt(4.54 / n)
        assert scipy.stats.kstest(x, F).statistic < (0.8687 + 5 * 0.2603) / math.sqrt(n)

    @pytest.mark.parametrize(
        "ppf", [lambda u: u[:-1], lambda u: u[None], lambda u: 0.5, lambda u: np.where(u < 2, np.nan, u)]
    )
    def test_bad_quantile_function(self, ppf):
        with pytest.raises(ValueError, match=r"ppf must map \(9,\) to \(9,\) without NaN"):
            sampling.inverse_transform(ppf, 9, rng=0)


class TestImportance:
    def test_gaussian_tail(self):
        # B7.5: P(X > 3) = 1.3498980e-3 from N(3, 1): variance e⁹Φ(-6) - P² = 6.17218e-6 of one sample. The rule of
        # middles misses no more than the largest term, 1/n
        n = 400_000
        P = 1.3498980e-3
        result = sampling.importance(above(3.0), log_normal(0, 1), log_normal(3, 1), 3 + middles(n))
        assert result.mean == pytest.approx(P, abs=2 / n)
        assert result.std_error**2 * n == pytest.approx(6.17218e-6, rel=1e-2)
        # plain Monte Carlo is the case p = q: 1.34808e-3 = P(1 - P)
        plain = sampling.importance(above(3.0), log_normal(0, 1), log_normal(0, 1), middles(n))
        assert plain.std_error**2 * n == pytest.approx(1.34808e-3, rel=1e-2)
        assert plain.ess == pytest.approx(n, rel=1e-12)

    def test_unbiased_with_the_stated_error(self):
        # 2000 estimates of B7.5 at n = 400: their variance is 6.17218e-6/n, and so is the mean of std_error²
        rng = np.random.default_rng(2)
        runs = [
            sampling.importance(above(3.0), log_normal(0, 1), log_normal(3, 1), 3 + rng.standard_normal(400))
            for _ in range(2000)
        ]
        means, errors = np.array([(r.mean, r.std_error**2) for r in runs]).T
        variance = 6.17218e-6 / 400
        assert abs(means.mean() - 1.3498980e-3) < 5 * math.sqrt(variance / 2000)
        assert abs(means.var() / variance - 1) < 5 * math.sqrt(2 / 2000)
        assert abs(errors.mean() - variance) < 5 * errors.std() / math.sqrt(2000)

    def test_by_hand(self):
        # weights 1, 3, 0 and values 2, 4, 7: terms 2, 12, 0 with mean 14/3 and sample variance 124/3
        x = vector(0, 1, 2)
        log_p = lambda x: np.array([0, math.log(3), -np.inf])  # noqa: E731
        result = sampling.importance(lambda x: vector(2, 4, 7), log_p, lambda x: 0 * x, x)
        assert result.mean == pytest.approx(14 / 3, rel=1e-14)
        assert result.std_error == pytest.approx(math.sqrt(124 / 3 / 3), rel=1e-14)
        assert result.ess == pytest.approx(16 / 10, rel=1e-14)
        # self-normalised: 14/4 = 3.5, error √(1·1.5² + 9·0.5²)/4
        result = sampling.self_normalized_importance(lambda x: vector(2, 4, 7), log_p, lambda x: 0 * x, x)
        assert result.mean == pytest.approx(3.5, rel=1e-14)
        assert result.std_error == pytest.approx(math.sqrt(4.5) / 4, rel=1e-14)
        assert result.ess == pytest.approx(16 / 10, rel=1e-14)

    def test_callables_may_share_a_buffer(self):
        # functions that write into one array and return it
        x = gaussian(0, 50)
        buffer = np.empty(50)

        def into(function):
            def call(x):
                buffer[:] = function(x)
                return buffer

            return call

        parts = np.square, log_normal(1, 1), log_normal(0, 2)
        for estimate in (sampling.importance, sampling.self_normalized_importance):
            assert estimate(*map(into, parts), x) == estimate(*parts, x)

    @pytest.mark.parametrize("estimate", [sampling.importance, sampling.self_normalized_importance])
    @pytest.mark.parametrize(
        ("f", "log_p", "log_q", "x", "message"),
        [
            (np.sin, np.sin, np.sin, vector(1), "at least two samples"),
            (np.sin, np.sin, np.sin, vector(1, np.nan), "x must be finite"),
            (np.sin, np.sin, np.sin, np.ones((2, 2, 2)), "x must have 1 or 2"),
            (lambda x: x[:1], np.sin, np.sin, vector(1, 2), r"f must map \(2,\) to \(2,\)"),
            (np.sin, np.sin, np.sin, np.ones((2, 1)), r"f must map \(2, 1\) to \(2,\)"),
            (lambda x: x * np.nan, np.sin, np.sin, vector(1, 2), "f must map .* without NaN"),
            (np.sin, lambda x: x[:, None], np.sin, vector(1, 2), "log_p must map"),
            (np.sin, lambda x: x * np.nan, np.sin, vector(1, 2), "log_p must map .* without NaN"),
            (np.sin, np.sin, lambda x: 0.0, vector(1, 2), "log_q must map"),
            (np.sin, np.sin, lambda x: vector(0, -np.inf), vector(1, 2), "log_q must be finite"),
            (np.sin, np.sin, lambda x: vector(0, np.inf), vector(1, 2), "log_q must be finite"),
            (np.sin, lambda x: vector(0, np.inf), np.sin, vector(1, 2), "must not be NaN or"),
            (np.sin, lambda x: vector(-np.inf, -np.inf), np.sin, vector(1, 2), "all zero"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, estimate, f, log_p, log_q, x, message):
        with pytest.raises(ValueError, match=message):
            estimate(f, log_p, log_q, x)


class TestSelfNormalized:
    n = 200_000

    def test_gaussian_posterior(self):
        # B7.6: posterior N(30/11, 10/11), proposal N(2, 2): ESS/N = .70632, asymptotic variance .8976 of the mean
        log_posterior = lambda t: -0.5 * (3 - t) ** 2 - t**2 / 20  # noqa: E731
        x = 2 + math.sqrt(2) * middles(self.n)
        result = sampling.self_normalized_importance(lambda t: t, log_posterior, log_normal(2, 2), x)
        assert result.mean == pytest.approx(30 / 11, rel=1e-5)
        assert result.ess / self.n == pytest.approx(0.70632, rel=1e-5)
        assert result.std_error * math.sqrt(self.n) == pytest.approx(math.sqrt(0.8976), rel=1e-4)
        # evidence N(3; 0, 11) = .0799002: the mean weight of normalised densities
        log_joint = lambda t: log_normal(3, 1)(t) + log_normal(0, 10)(t)  # noqa: E731
        evidence = sampling.importance(np.ones_like, log_joint, log_normal(2, 2), x)
        assert evidence.mean == pytest.approx(0.0799002, rel=1e-5)
        assert evidence.ess == pytest.approx(result.ess, rel=1e-9)
        # relative variance of the weights: R - 1
        expected = 0.0799002 * math.sqrt((1 / 0.70632 - 1) / self.n)
        assert evidence.std_error == pytest.approx(expected, rel=1e-4)

    def test_error_in_repeated_runs(self):
        # the bias is O(1/n): at n = 1000 far below the standard error √(.8976/n) of one run
        rng = np.random.default_rng(3)
        runs = [
            sampling.self_normalized_importance(
                lambda t: t,
                log_normal(30 / 11, 10 / 11),
                log_normal(2, 2),
                2 + math.sqrt(2) * rng.standard_normal(1000),
            )
            for _ in range(2000)
        ]
        z = np.array([(r.mean - 30 / 11) / r.std_error for r in runs])
        # bias of the ratio: -Cov_q(w, w f)/n + f Var_q w/n = -R(m̄ - m)/n with m̄ - m = .21391
        bias = -(1 / 0.70632) * 0.21391 / 1000
        assert abs(np.mean([r.mean for r in runs]) - 30 / 11 - bias) < 5 * math.sqrt(0.8976 / 1000 / 2000)
        assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / 2000)

    @given(seeds, st.floats(-1e3, 1e3), st.integers(2, 40), st.integers(1, 3))
    def test_constants_cancel(self, seed, shift, n, d):
        x = gaussian(seed, n, d)
        f, log_p, log_q = (
            (lambda x: x[:, 0]),
            (lambda x: -((x - 1) ** 2).sum(axis=1)),
            (lambda x: -0.5 * (x**2).sum(axis=1)),
        )
        first = sampling.self_normalized_importance(f, log_p, log_q, x)
        moved = sampling.self_normalized_importance(f, lambda x: log_p(x) + shift, log_q, x)
        for name in ("mean", "std_error", "ess"):
            assert getattr(moved, name) == pytest.approx(getattr(first, name), rel=1e-9, abs=1e-9)
        w = np.exp(log_p(x) - log_q(x))
        assert first.mean == pytest.approx(np.average(x[:, 0], weights=w), rel=1e-9, abs=1e-12)
        assert x[:, 0].min() - 1e-12 <= first.mean <= x[:, 0].max() + 1e-12
        # E f = c and the error 0 for a constant
        constant = sampling.self_normalized_importance(lambda x: np.full(len(x), 2.5), log_p, log_q, x)
        assert constant.mean == pytest.approx(2.5, rel=1e-12)
        assert constant.std_error == pytest.approx(0, abs=1e-12)


class TestEffectiveSampleSize:
    def test_by_hand(self):
        assert sampling.effective_sample_size(np.log(vector(1, 2, 3))) == pytest.approx(36 / 14, rel=1e-14)
        assert sampling.effective_sample_size(vector(0, -np.inf, 0)) == pytest.approx(2, rel=1e-14)
        assert sampling.effective_sample_size(vector(-2000)) == pytest.approx(1, rel=1e-12)
        assert sampling.effective_sample_size(np.full(7, 3000.0)) == pytest.approx(7, rel=1e-11)

    @given(seeds, st.integers(1, 60), st.floats(0, 10), st.floats(-1e4, 1e4))
    def test_range_and_invariance(self, seed, n, spread, shift):
        log_w = spread * gaussian(seed, n)
        ess = sampling.effective_sample_size(log_w)
        assert 1 - 1e-12 <= ess <= n * (1 + 1e-12)
        assert sampling.effective_sample_size(log_w[::-1] + shift) == pytest.approx(ess, rel=1e-10)
        assert sampling.effective_sample_size(np.tile(log_w, 2)) == pytest.approx(2 * ess, rel=1e-10)
        w = np.exp(log_w)
        assert ess == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-10)

    def test_product_targets(self):
        # B7.7: ESS/N = .70632^d; 16 standard errors of the inverse would be one of R_d at d = 5
        x = 2 + math.sqrt(2) * gaussian(4, 200_000, 5)
        log_w = log_normal(30 / 11, 10 / 11)(x) - log_normal(2, 2)(x)
        for d, expected in ((1, 0.7063), (2, 0.4989), (5, 0.1758)):
            w = np.exp(log_w[:, :d].sum(axis=1))
            second = w**2  # E w = 1, E w² = R: the delta method for (mean w)²/(mean w²)
            error = np.std(2 * w - expected * second) / math.sqrt(len(w)) * expected
            ess = sampling.effective_sample_size(log_w[:, :d].sum(axis=1))
            assert abs(ess / len(x) - expected) < 5 * error + 5e-5

    @pytest.mark.parametrize("function", [sampling.effective_sample_size, sampling.pareto_k])
    @pytest.mark.parametrize(
        ("log_w", "message"),
        [
            (vector(), "not be empty"),
            (np.ones((5, 5)), "one axis"),
            (np.full(30, -np.inf), "all zero"),
            (np.append(np.zeros(30), np.nan), "NaN"),
            (np.append(np.zeros(30), np.inf), "inf"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, function, log_w, message):
        with pytest.raises(ValueError, match=message):
            function(log_w)


def zhang_stephens(x):
    """The estimator as it stands in Zhang and Stephens (2009), with their k = -shape."""
    x = np.sort(x)
    n = len(x)
    m = 30 + math.floor(math.sqrt(n))
    first_quartile = x[math.floor(n / 4 + 0.5) - 1]
    theta = [1 / x[-1] + (1 - math.sqrt(m / (j - 0.5))) / (3 * first_quartile) for j in range(1, m + 1)]

    def likelihood(t):
        k = -np.mean([math.log(1 - t * xi) for xi in x])
        return n * (math.log(t / k) + k - 1)

    values = [likelihood(t) for t in theta]
    weights = [1 / sum(math.exp(b - a) for b in values) for a in values]
    t = sum(w * t for w, t in zip(weights, theta, strict=True))
    return np.mean([math.log(1 - t * xi) for xi in x])


class TestParetoK:
    @pytest.mark.parametrize("k", [-0.3, 0.0, 0.3, 0.7, 1.0])
    def test_generalised_pareto_samples(self, k):
        # excesses over a threshold keep the law: the m = 3√n largest have shape k, fitted with a standard error
        # (1 + k)/√m (maximum likelihood), and shrunk to (m k + 5)/(m + 10)
        n, runs = 40_000, 100
        m = 600
        u = np.random.default_rng(5).random((runs, n))
        w = -np.log(u) if k == 0 else np.expm1(-k * np.log(u)) / k
        fits = np.array([sampling.pareto_k(row) for row in np.log(w)])
        error = (1 + k) / math.sqrt(m) * m / (m + 10)
        # the estimator's own bias is O(1/m)
        assert abs(fits.mean() - (m * k + 5) / (m + 10)) < 5 * error / math.sqrt(runs) + 1 / m
        assert abs(fits.std() / error - 1) < 5 / math.sqrt(2 * runs)

    @given(seeds, st.integers(25, 400), st.floats(0.1, 4), st.floats(-300, 300))
    @settings(max_examples=50)
    def test_against_the_paper(self, seed, n, spread, shift):
        log_w = spread * gaussian(seed, n)
        m = math.ceil(min(0.2 * n, 3 * math.sqrt(n)))
        w = np.sort(np.exp(log_w))
        expected = (m * zhang_stephens(w[-m:] - w[-m - 1]) + 10 * 0.5) / (m + 10)
        k = sampling.pareto_k(log_w)
        assert k == pytest.approx(expected, rel=1e-8, abs=1e-9)
        assert sampling.pareto_k(log_w[::-1] + shift) == pytest.approx(k, rel=1e-8, abs=1e-9)
        # only the largest weights count
        lowered = np.sort(log_w)
        lowered[: n - m - 1] -= 5
        lowered[0] = -np.inf
        assert sampling.pareto_k(lowered) == pytest.approx(k, rel=1e-8, abs=1e-9)

    def test_against_maximum_likelihood(self):
        # the estimate is a posterior mean under a vague prior: within a fraction of the standard error (1 + k)/√m
        rng = np.random.default_rng(6)
        for k in (0.2, 0.6):
            w = scipy.stats.genpareto.rvs(k, size=10_000, random_state=rng)
            tail = np.sort(w)[-301:]
            fit = scipy.stats.genpareto.fit(tail[1:] - tail[0], floc=0)[0]
            assert abs(sampling.pareto_k(np.log(w)) - (300 * fit + 5) / 310) < 0.2 * (1 + k) / math.sqrt(300)

    def test_bounded_weights(self):
        # B7.6: at N(2, 2) weights have a maximum 1.89, at its square-root end: k = -2 (p/q falls as 1 - c x² there);
        # a proposal with S < s²/2 has no second moment
        x = gaussian(7, 50_000)
        good = sampling.pareto_k((log_normal(30 / 11, 10 / 11)(2 + 2**0.5 * x)) - log_normal(2, 2)(2 + 2**0.5 * x))
        bad = sampling.pareto_k(log_normal(0, 1)(0.3 * x) - log_normal(0, 0.09)(0.3 * x))
        assert good < 0 < 0.7 < bad

    @pytest.mark.parametrize("length", [2000.0, 8000.0, 10_200.0, 1e5])
    def test_weights_of_very_different_size(self, length):
        # equal steps of ln w (as in high dimension): w = U^(-k) with k = length/… ≫ 1 on all the tail
        try:
            k = sampling.pareto_k(np.linspace(-length, 0, 1000))
        except ValueError as error:
            # 95 weights of the tail all differ: no reason to say that they do not
            pytest.fail(f"refused: {error}")
        assert k > 1

    def test_bad_input(self):
        with pytest.raises(ValueError, match="at least 25 weights, got 24"):
            sampling.pareto_k(gaussian(0, 24))
        assert math.isfinite(sampling.pareto_k(gaussian(0, 25)))
        for log_w in (np.zeros(50), np.append(np.full(49, -np.inf), 0.0), np.append(np.zeros(99), 1.0)):
            with pytest.raises(ValueError, match="must vary"):
                sampling.pareto_k(log_w)


class TestCrossEntropy:
    def test_exact_recursion(self):
        # B7.8: p = N(2, .5625), start N(0, 9), α = .7: μ_t - 2 = .3^t (μ_0 - 2), S_t - .5625 = .3^t (9 - .5625);
        # without noise in the sample, up to the rule of middles
        n = 20_000
        log_p = lambda x: -0.5 * (x[:, 0] - 2) ** 2 / 0.5625  # noqa: E731
        start = Gaussian(vector(0), vector(9).reshape(1, 1))
        run = sampling.cross_entropy_method(log_p, start, n, 7, smoothing=0.7, rng=Fixed(normal=middles(n)))
        t = np.arange(8)
        np.testing.assert_allclose(run.mean[:, 0], 2 - 2 * 0.3**t, atol=2e-3)
        np.testing.assert_allclose(run.cov[:, 0, 0], 0.5625 + 8.4375 * 0.3**t, rtol=2e-3)
        ess = vector(1106.6, 2157.3, 3223.5, 3819.3, 3975.0, 3997.4, 3999.75, 3999.98) / 4000
        np.testing.assert_allclose(run.ess / n, ess, rtol=2e-3)
        assert (run.level == -np.inf).all()
        assert run.mean.shape == (8, 1) and run.cov.shape == (8, 1, 1)
        np.testing.assert_array_equal(run.proposal.mean, run.mean[-1])
        np.testing.assert_array_equal(run.proposal.cov, run.cov[-1])

    def test_noise_of_the_recursion(self):
        # each step against its exact value given the step before; the weighted sample has the variance of the delta
        # method, R E(f - Ef)² under w² q ∝ N(m̄, v)
        n, alpha, m, s2 = 4000, 0.7, 2.0, 0.5625
        log_p = lambda x: -0.5 * (x[:, 0] - m) ** 2 / s2 + 100  # noqa: E731
        for seed in range(5):
            start = Gaussian(vector(0), vector(9).reshape(1, 1))
            run = sampling.cross_entropy_method(log_p, start, n, 4, smoothing=alpha, rng=seed)
            for t in range(4):
                mu, S = run.mean[t, 0], run.cov[t, 0, 0]
                R = S / math.sqrt(s2 * (2 * S - s2)) * math.exp((m - mu) ** 2 / (2 * S - s2))
                v = 1 / (2 / s2 - 1 / S)
                delta = v * (2 * m / s2 - mu / S) - m
                square = delta**2 + v
                fourth = delta**4 + 6 * delta**2 * v + 3 * v**2
                for got, expected, variance in (
                    (run.mean[t + 1, 0], alpha * m + (1 - alpha) * mu, R * square),
                    (run.cov[t + 1, 0, 0], alpha * s2 + (1 - alpha) * S, R * (fourth - 2 * s2 * square + s2**2)),
                ):
                    assert abs(got - expected) < 5 * alpha * math.sqrt(variance / n)
                assert run.ess[t] / n == pytest.approx(1 / R, rel=0.2)

    def test_one_step_finds_the_moments(self):
        # α = 1, p a correlated Gaussian: its moments in one step; tolerance 5√(R_2 c/n), c ≤ 8 Σ_ii Σ_jj
        mean, cov = vector(1, -0.5), vector(1, 0.6, 0.6, 0.8).reshape(2, 2)
        start = Gaussian(vector(0, 0), 4 * np.eye(2))
        target = Gaussian(mean, cov)
        n = 200_000
        run = sampling.cross_entropy_method(target.log_prob, start, n, 1, rng=8)
        R = n / run.ess[0]
        np.testing.assert_allclose(run.mean[1], mean, atol=5 * math.sqrt(8 * R / n))
        np.testing.assert_allclose(run.cov[1], cov, atol=5 * math.sqrt(8 * R / n))
        assert run.cov[1, 0, 1] == run.cov[1, 1, 0]
        assert run.ess[1] / n > 0.99
        np.testing.assert_array_equal(run.mean[0], start.mean)
        np.testing.assert_array_equal(run.cov[0], start.cov)

    def test_rare_event(self):
        # B7.9: {x ≥ 3} under N(0, 1), unit covariance kept: first level z_.9 = 1.28155 and then 3;
        # means φ(z)/.1 = 1.75498, then 3.28310 = φ(3)/Φ(-3)
        n = 40_000
        standard = Gaussian(vector(0), np.eye(1))
        run = sampling.cross_entropy_method(
            standard.log_prob, standard, n, 6, score=lambda x: x[:, 0], level=3.0, fit_cov=False, rng=9
        )
        assert abs(run.level[0] - 1.281552) < 5 * math.sqrt(0.09 / n) / 0.175498
        assert abs(run.mean[1, 0] - 1.754983) < 5 * math.sqrt(0.17 / (0.1 * n)) + abs(run.level[0] - 1.281552)
        assert (run.level[2:] == 3).all() and run.level[1] < 3.1
        # variance of the estimate at proposal N(3.2831, 1): E_q[w²(x - μ*)²]/P² over x > 3
        mu = 3.283099
        grid = np.linspace(3, 12, 90_001)
        P = scipy.special.ndtr(-3)
        density = np.exp(2 * log_normal(0, 1)(grid) - log_normal(mu, 1)(grid)) / P**2
        variance = np.trapezoid(density * (grid - mu) ** 2, grid)
        assert (np.abs(run.mean[3:, 0] - mu) < 5 * math.sqrt(variance / n) * 1.1).all()
        assert (run.cov == 1).all()
        # ESS of the weights within the event: P²/E_q w²1
        assert run.ess[-1] / n == pytest.approx(1 / np.trapezoid(density, grid), rel=0.05)
        # the estimate from a fresh sample
        x = run.proposal.sample(n, rng=10)
        result = sampling.importance(
            lambda x: (x[:, 0] >= 3).astype(float), standard.log_prob, run.proposal.log_prob, x
        )
        assert abs(result.mean - 1.3498980e-3) < 5 * result.std_error

    def test_rare_event_with_free_covariance(self):
        # B7.9: (3.2831, .0705592), the moments of p given the event
        standard = Gaussian(vector(0), np.eye(1))
        run = sampling.cross_entropy_method(
            standard.log_prob, standard, 40_000, 5, score=lambda x: x[:, 0], level=3.0, rng=11
        )
        assert run.mean[-1, 0] == pytest.approx(3.283099, abs=0.03)
        assert run.cov[-1, 0, 0] == pytest.approx(0.0705592, rel=0.15)

    def test_elite_and_level(self):
        # a level below the quantile holds at once; otherwise the (1 - elite)-quantile of the first sample
        n = 1001
        start = Gaussian(vector(0), np.eye(1))
        z = middles(n)
        call = lambda **options: sampling.cross_entropy_method(  # noqa: E731
            start.log_prob, start, n, 1, score=lambda x: x[:, 0], rng=Fixed(normal=z), **options
        )
        assert call(level=0.5).level[0] == 0.5
        for elite in (0.1, 0.25, 0.5):
            run = call(elite=elite)
            assert run.level[0] == pytest.approx(np.quantile(z, 1 - elite), rel=1e-12)
            chosen = z[z >= run.level[0]]
            assert run.ess[0] == pytest.approx(len(chosen), rel=1e-12)
            assert run.mean[1, 0] == pytest.approx(chosen.mean(), rel=1e-10)
            assert run.cov[1, 0, 0] == pytest.approx(chosen.var(), rel=1e-10)
            half = call(elite=elite, smoothing=0.5)
            assert half.mean[1, 0] == pytest.approx(chosen.mean() / 2, rel=1e-10)
            assert half.cov[1, 0, 0] == pytest.approx((chosen.var() + 1) / 2, rel=1e-10)
        # the sample that defines the level counts: {score ≥ level}
        assert call(level=z[700]).ess[0] == pytest.approx(301, rel=1e-12)
        kept = call(fit_cov=False, smoothing=0.5, elite=0.5)
        assert kept.cov[1, 0, 0] == 1
        assert kept.mean[1, 0] == pytest.approx(z[z >= 0].mean() / 2, rel=1e-10)

    def test_same_seed_same_run(self):
        start = Gaussian(vector(0, 0), np.eye(2))
        first, again = (sampling.cross_entropy_method(start.log_prob, start, 50, 2, rng=3) for _ in range(2))
        np.testing.assert_array_equal(first.mean, again.mean)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n": 1}, "n must be at least 2"),
            ({"n": 2.5}, "n must be an integer"),
            ({"n_iter": 0}, "n_iter must be at least 1"),
            ({"elite": 0.0}, "elite must be above 0 and below 1"),
            ({"elite": 1.0}, "elite must be above 0 and below 1"),
            ({"elite": np.nan}, "elite must be"),
            ({"smoothing": 0.0}, "smoothing must be above 0 and at most 1"),
            ({"smoothing": 1.1}, "smoothing must be above 0 and at most 1"),
            ({"score": lambda x: x}, "score must map"),
            ({"score": lambda x: x[:, 0] * np.nan}, "score must map .* without NaN"),
            ({"score": lambda x: x[:, 0], "level": 5.0, "elite": 1e-3}, "cov must be positive definite"),
            ({"log_p": lambda x: x}, "log_p must map"),
            ({"log_p": lambda x: np.full(len(x), np.nan)}, "log_p must map .* without NaN"),
            ({"log_p": lambda x: np.full(len(x), np.inf)}, "inf"),
            ({"log_p": lambda x: np.full(len(x), -np.inf)}, "all zero"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, options, message):
        start = Gaussian(vector(0), np.eye(1))
        arguments = {"log_p": start.log_prob, "proposal": start, "n": 50, "n_iter": 2, "rng": 0} | options
        with pytest.raises(ValueError, match=message):
            sampling.cross_entropy_method(**arguments)


def quadratic(s, x):
    return -0.5 * s * (x**2).sum(axis=1)


def ou(decay):
    """The exact kernel of N(0, 1/s): an Ornstein–Uhlenbeck step."""
    return lambda s, x, rng: decay * x + math.sqrt((1 - decay**2) / s) * rng.standard_normal(x.shape)


class TestAnnealing:
    def test_one_step_is_importance_sampling(self):
        # Y.45: k from 1 to 4 at once, log w = -1.5 x²; W = 1.5 in the mean, ESS/N = √7/4
        x = gaussian(12, 20_000, 1)
        run = sampling.annealed_importance_sampling(quadratic, x, vector(1, 4), ou(0.3), rng=0)
        np.testing.assert_allclose(run.log_w, -1.5 * x[:, 0] ** 2, rtol=1e-13)
        w = np.exp(-1.5 * x[:, 0] ** 2)
        assert run.log_ratio == pytest.approx(math.log(w.mean()), rel=1e-12)
        # w has mean ½ and mean square 1/√7
        error = math.sqrt((1 / math.sqrt(7) - 0.25) / 20_000)
        assert abs(math.exp(run.log_ratio) - 0.5) < 5 * error
        assert run.log_ratio_std_error == pytest.approx(error / 0.5, rel=0.05)
        assert run.log_ratio_std_error == pytest.approx(w.std(ddof=1) / w.mean() / math.sqrt(20_000), rel=1e-12)
        assert sampling.effective_sample_size(run.log_w) / 20_000 == pytest.approx(math.sqrt(7) / 4, rel=0.03)
        np.testing.assert_array_equal(x, gaussian(12, 20_000, 1))

    @pytest.mark.parametrize("schedule", [(1, 4), (1, 2, 4), (1, 3, 2, 4), (1, 1.5, 1.5, 2.5, 4), (4, 3, 2)])
    def test_independent_kernels(self, schedule):
        # factors are independent: E w_i = √(k/k'), E w_i² = √(k/(2k' - k)), so mean and variance of w are products
        k = vector(*schedule)
        n = 100_000
        x0 = gaussian(13, n, 1) / math.sqrt(k[0])
        run = sampling.annealed_importance_sampling(quadratic, x0, k, ou(0.0), rng=14)
        mean, square = math.sqrt(k[0] / k[-1]), np.prod(np.sqrt(k[:-1] / (2 * k[1:] - k[:-1])))
        w = np.exp(run.log_w)
        assert abs(math.exp(run.log_ratio) - mean) < 5 * math.sqrt((square - mean**2) / n)
        assert w.var() == pytest.approx(square - mean**2, rel=0.05)
        # E ln w = -½ Σ (k' - k)/k, variance ½ Σ ((k' - k)/k)²
        ratio = np.diff(k) / k[:-1]
        assert abs(run.log_w.mean() + 0.5 * ratio.sum()) < 5 * math.sqrt(0.5 * (ratio**2).sum() / n)
        # the kernel of the last law has been applied
        assert abs(run.x.var() * k[-1] - 1) < 5 * math.sqrt(2 / n)

    @pytest.mark.parametrize("steps", [1, 3, 10, 50])
    @pytest.mark.parametrize("decay", [0.9, 0.4])
    def test_unbiased_for_every_schedule(self, steps, decay):
        n, d = 20_000, 2
        schedule = np.geomspace(1, 4, steps + 1)
        run = sampling.annealed_importance_sampling(quadratic, gaussian(15, n, d), schedule, ou(decay), rng=16)
        w = np.exp(run.log_w)
        assert abs(w.mean() - 0.25) < 5 * w.std() / math.sqrt(n)  # Z ratio (1/4)^(d/2)
        assert abs(run.log_ratio + 2 * math.log(2)) < 6 * run.log_ratio_std_error
        # weighted, the points have the last law: <x²> = d/4
        weighted = w * ((run.x**2).sum(axis=1) - d / 4)
        assert abs(weighted.mean()) < 5 * weighted.std() / math.sqrt(n)
        # second law: the work is at least the free energy
        assert -run.log_w.mean() > 2 * math.log(2)

    def test_order_by_hand(self):
        # log p = s x, move x → x + s: weight first, then the kernel of the new value.
        # from 1: (2 - 1)·1, x = 3; (4 - 2)·3, x = 7; (3 - 4)·7, x = 10
        calls = []

        def log_p(s, x):
            calls.append(("log_p", float(s)))
            return s * x[:, 0]

        def move(s, x, rng):
            assert isinstance(rng, np.random.Generator)
            calls.append(("move", float(s)))
            return x + s

        start = vector(1, 0).reshape(2, 1)
        run = sampling.annealed_importance_sampling(log_p, start, vector(1, 2, 4, 3), move, rng=0)
        np.testing.assert_allclose(run.x, [[10], [9]])
        np.testing.assert_allclose(run.log_w, [1 + 6 - 7, 0 + 2 * 2 - 6])
        assert [c for c in calls if c[0] == "move"] == [("move", 2.0), ("move", 4.0), ("move", 3.0)]
        np.testing.assert_array_equal(start, [[1], [0]])

    def test_with_metropolis_moves(self):
        # .3 N(-2, ¼) + .7 N(2, ¼) reached from N(0, 9) by a geometric path, with the constants: ln Z = 0, and the
        # weighted share of the left mode is .3
        n = 2000

        def log_target(x):
            both = np.stack([math.log(0.3) + log_normal(-2, 0.25)(x), math.log(0.7) + log_normal(2, 0.25)(x)])
            return scipy.special.logsumexp(both, axis=0)

        def log_p(s, x):
            return (1 - s) * log_normal(0, 9)(x[:, 0]) + s * log_target(x[:, 0])

        def move(s, x, rng):
            return mcmc.metropolis(lambda x: log_p(s, x), x, 1, 1.0, n_warmup=1, rng=rng).draws[:, -1]

        run = sampling.annealed_importance_sampling(log_p, 3 * gaussian(17, n, 1), np.linspace(0, 1, 21), move, rng=18)
        assert abs(run.log_ratio) < 6 * run.log_ratio_std_error
        assert run.log_ratio_std_error < 0.05
        w = np.exp(run.log_w)
        left = w * ((run.x[:, 0] < 0) - 0.3)
        assert abs(left.mean()) < 5 * left.std() / math.sqrt(n)

    def test_log_ratio_of_extreme_weights(self):
        for shift in (-2000.0, 2000.0):
            run = sampling.AnnealedSample(np.zeros((3, 1)), shift + np.log(vector(1, 2, 3)))
            assert run.log_ratio == pytest.approx(shift + math.log(2), rel=1e-13)
            # standard deviation 1, mean 2
            assert run.log_ratio_std_error == pytest.approx(0.5 / math.sqrt(3), rel=1e-10)
        dead = sampling.AnnealedSample(np.zeros((2, 1)), vector(-np.inf, 0))
        assert dead.log_ratio == pytest.approx(-math.log(2), rel=1e-14)

    def test_points_of_weight_zero(self):
        # uniform laws on x > s, left where they are: 3 → 2 → 1 points count, and a weight of zero stays zero
        def log_p(s, x):
            return np.where(x[:, 0] > s, 0.0, -np.inf)

        stay = lambda s, x, rng: x  # noqa: E731
        x0 = vector(0.5, 1.5, 2.5).reshape(3, 1)
        run = sampling.annealed_importance_sampling(log_p, x0, vector(0, 1), stay)
        np.testing.assert_array_equal(run.log_w, [-np.inf, 0, 0])
        run = sampling.annealed_importance_sampling(log_p, x0, vector(0, 1, 2), stay)
        np.testing.assert_array_equal(run.log_w, [-np.inf, -np.inf, 0])

    def test_log_p_may_reuse_its_buffer(self):
        x = gaussian(19, 30, 2)
        buffer = np.empty(30)

        def log_p(s, x):
            buffer[:] = quadratic(s, x)
            return buffer

        run = sampling.annealed_importance_sampling(log_p, x, vector(1, 4), lambda s, x, rng: x)
        np.testing.assert_allclose(run.log_w, -1.5 * (x**2).sum(axis=1), rtol=1e-13)

    def test_start_is_kept(self):
        # a kernel that works in place
        def move(s, x, rng):
            x += 1
            return x

        x0 = np.zeros((3, 1))
        run = sampling.annealed_importance_sampling(quadratic, x0, vector(1, 2, 3), move)
        assert (run.x == 2).all()
        assert (x0 == 0).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"x0": np.zeros(3)}, "x0 must have 2 dimension"),
            ({"x0": np.full((3, 1), np.nan)}, "x0 must be finite"),
            ({"schedule": vector(1)}, "at least two values, got 1"),
            ({"schedule": vector(1, np.inf)}, "schedule must be finite"),
            ({"schedule": np.ones((2, 2))}, "schedule must have 1 dimension"),
            ({"log_p": lambda s, x: x}, "log_p must map"),
            ({"log_p": lambda s, x: x[:, 0] * np.nan}, "log_p must map .* without NaN"),
            ({"log_p": lambda s, x: np.full(len(x), np.inf if s == 2 else 0.0)}, "inf"),
            ({"log_p": lambda s, x: np.full(len(x), -np.inf if s == 1 else 0.0)}, "inf"),
            ({"log_p": lambda s, x: np.full(len(x), -np.inf if s == 2 else 0.0)}, "all zero"),
            ({"move": lambda s, x, rng: x[:-1]}, r"move\(s, x, rng\) must have shape"),
            ({"move": lambda s, x, rng: x * np.nan}, r"move\(s, x, rng\) must be finite"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, options, message):
        arguments = {"log_p": quadratic, "x0": np.zeros((3, 1)), "schedule": vector(1, 2), "move": ou(0.0)} | options
        with pytest.raises(ValueError, match=message):
            sampling.annealed_importance_sampling(**arguments)
