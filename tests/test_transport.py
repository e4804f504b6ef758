import math

import numpy as np
import ot
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import ConvergenceWarning, transport

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 12)
powers = st.sampled_from([1.0, 1.5, 2.0, 3.0, 7.0, math.inf])


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def vector(*values):
    return np.array(values, dtype=float)


def probabilities(seed, n):
    weights = np.random.default_rng(seed).exponential(size=n)
    return weights / weights.sum()


def covariance(seed, d, rank=None):
    root = gaussian(seed, d, d if rank is None else rank)
    return root @ root.T


def quantiles(ppf, n):
    """Values at the middles of n equal parts of (0, 1)."""
    return ppf((np.arange(n) + 0.5) / n)


def squared(x, y):
    return ((x[:, None] - y) ** 2).sum(axis=-1)


def entropy(p):
    return -scipy.special.xlogy(p, p).sum()


class TestWasserstein1D:
    @given(seeds, sizes, sizes, powers, st.booleans(), st.booleans())
    @settings(max_examples=80)
    def test_is_the_optimum_of_the_linear_programme(self, seed, n, m, p, x_weighted, y_weighted):
        x, y = gaussian(seed, n), 1 + gaussian(seed + 1, m)
        a = probabilities(seed + 2, n) if x_weighted else np.full(n, 1 / n)
        b = probabilities(seed + 3, m) if y_weighted else np.full(m, 1 / m)
        distance = transport.wasserstein_1d(x, y, p, a if x_weighted else None, b if y_weighted else None)
        assert distance == pytest.approx(transport.wasserstein_1d(y, x, p, b, a), rel=1e-12)
        if p < math.inf:
            exact = ot.emd2(a, b, np.abs(x[:, None] - y) ** p)
            assert distance**p == pytest.approx(exact, rel=1e-9)
        else:  # the limit: W_p ≤ W_∞ ≤ max |x - y|, and mass at least 1e-9 has gone that far
            assert transport.wasserstein_1d(x, y, 400, a, b) == pytest.approx(distance, rel=0.1)

    @pytest.mark.parametrize("p", [1, 2, 3])
    def test_agrees_with_pot(self, p):
        x, y, a, b = gaussian(0, 500), 2 * gaussian(1, 300), probabilities(2, 500), probabilities(3, 300)
        for weights in ((None, None), (a, b), (a, None), (None, b)):
            expected = ot.wasserstein_1d(x, y, *weights, p=p) ** (1 / p)
            assert transport.wasserstein_1d(x, y, p, *weights) == pytest.approx(expected, rel=1e-11)

    def test_agrees_with_scipy(self):
        x, y, a, b = gaussian(0, 500), 2 * gaussian(1, 300), probabilities(2, 500), probabilities(3, 300)
        assert transport.wasserstein_1d(x, y) == pytest.approx(scipy.stats.wasserstein_distance(x, y), rel=1e-12)
        expected = scipy.stats.wasserstein_distance(x, y, a, b)
        assert transport.wasserstein_1d(x, y, 1, a, b) == pytest.approx(expected, rel=1e-12)

    def test_by_hand(self):
        # quantile functions of {0, 2} and {0, 1, 5}: 0 0 | 0 1 | 2 1 | 2 5 on [0, ⅓, ½, ⅔, 1]
        x, y = np.array([2.0, 0.0]), np.array([5.0, 0.0, 1.0])
        assert transport.wasserstein_1d(x, y) == pytest.approx(1 / 6 + 1 / 6 + 1, rel=1e-14)
        assert transport.wasserstein_1d(x, y, 2) == pytest.approx(math.sqrt(1 / 6 + 1 / 6 + 3), rel=1e-14)
        assert transport.wasserstein_1d(x, y, math.inf) == 3
        # a quarter of the mass moves from 0 to 1
        a, b = np.array([0.5, 0.5]), np.array([0.25, 0.75])
        for p in (1, 2, 5):
            assert transport.wasserstein_1d(vector(0, 1), vector(0, 1), p, a, b) == pytest.approx(
                0.25 ** (1 / p), rel=1e-14
            )

    def test_three_gaussians(self):
        # B6.15: W1(N(0,1), N(2,1)) = 2, W1(N(0,1), N(0,4)) = √(2/π), W1(N(2,1), N(0,4)) = E|2 + Z| = 2.016981;
        # the rule of middles misses about φ/n of the tails
        n = 200_000
        samples = [quantiles(scipy.stats.norm(m, s).ppf, n) for m, s in ((0, 1), (2, 1), (0, 2))]
        pairs = [(samples[i], samples[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
        for (x, y), w1, w2 in zip(pairs, (2, math.sqrt(2 / math.pi), 2.016981), (2, 1, math.sqrt(5)), strict=True):
            assert transport.wasserstein_1d(x, y) == pytest.approx(w1, abs=5e-6)
            assert transport.wasserstein_1d(x, y, 2) == pytest.approx(w2, abs=1e-4)
        laplace = quantiles(scipy.stats.laplace.ppf, n)
        assert transport.wasserstein_1d(samples[0], laplace) == pytest.approx(0.220817, abs=5e-6)
        assert transport.wasserstein_1d(samples[0], laplace, 2) == pytest.approx(0.473639, abs=1e-4)

    def test_monge_map_to_an_exponential_and_a_mixture(self):
        # Y.29: W2² = 3 - 2·0.9031973 from N(0,1) to Exp(1); 1.842766 and W1 = 1.304788 to .3N(-2,¼) + .7N(2,¼)
        n = 100_000
        z = quantiles(scipy.special.ndtri, n)
        exponential = quantiles(scipy.stats.expon.ppf, n)
        assert transport.wasserstein_1d(z, exponential, 2) ** 2 == pytest.approx(1.193605, abs=3e-4)
        grid = np.linspace(-5, 5, 400_001)
        F = 0.3 * scipy.special.ndtr((grid + 2) / 0.5) + 0.7 * scipy.special.ndtr((grid - 2) / 0.5)
        mixture = quantiles(lambda u: np.interp(u, F, grid), n)
        assert transport.wasserstein_1d(z, mixture, 2) ** 2 == pytest.approx(1.842766, abs=1e-4)
        assert transport.wasserstein_1d(z, mixture) == pytest.approx(1.304788, abs=2e-5)

    def test_moment_example(self):
        # M.23: (1 - ε)δ₀ + εδ_{1/ε} against δ₀: W1 = 1, W2 = ε^-½
        eps = 1e-3
        for p, expected in ((1, 1), (2, eps**-0.5), (math.inf, 1 / eps)):
            distance = transport.wasserstein_1d(vector(0, 1 / eps), vector(0.0), p, np.array([1 - eps, eps]))
            assert distance == pytest.approx(expected, rel=1e-12)

    @given(seeds, sizes, sizes, sizes, powers)
    def test_metric(self, seed, n, m, k, p):
        x, y, z = gaussian(seed, n), 2 * gaussian(seed + 1, m), gaussian(seed + 2, k) ** 3
        W = lambda x, y, p=p: transport.wasserstein_1d(x, y, p)  # noqa: E731
        assert W(x, x[::-1]) == 0
        assert W(x, z) <= (W(x, y) + W(y, z)) * (1 + 1e-12)
        assert W(x + 3, x) == pytest.approx(3, rel=1e-12)
        assert W(-2 * x, -2 * y) == pytest.approx(2 * W(x, y), rel=1e-12)
        assert abs(x.mean() - y.mean()) <= W(x, y, 1) * (1 + 1e-12) + 1e-15
        assert W(x, y, 1) <= W(x, y) * (1 + 1e-12) <= W(x, y, math.inf) * (1 + 2e-12)

    @pytest.mark.parametrize("p", [1, 2, 10, math.inf])
    def test_one_law_written_in_two_ways(self, p):
        # repeated points against weights: levels that agree up to rounding would cost 1e-8 in W_2, and all in W_∞
        rng = np.random.default_rng(0)
        counts = rng.integers(1, 9, 300)
        points = rng.standard_normal(300)
        sample = rng.permutation(np.repeat(points, counts))
        assert transport.wasserstein_1d(points, sample, p, counts / counts.sum()) == 0
        assert transport.wasserstein_1d(sample, sample, p, np.full(len(sample), 1 / len(sample))) == 0
        split = np.concatenate([0.3 * counts, 0.7 * counts]) / counts.sum()
        assert transport.wasserstein_1d(np.tile(points, 2), points, p, split, counts / counts.sum()) == 0

    def test_small_masses_count(self):
        # 1e-14 of the mass goes a way of 1
        for mass in ([1e-14, 1 - 1e-14], [1 - 1e-14, 1e-14]):
            distance = transport.wasserstein_1d(vector(0, 1), vector(mass[1] > 0.5), 8, np.array(mass))
            assert distance == pytest.approx(1e-14 ** (1 / 8), rel=2e-3)

    def test_large_powers_and_scales(self):
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            assert transport.wasserstein_1d(vector(0, 1e200), vector(1e200, 3e200), 2) == pytest.approx(
                math.sqrt(2.5) * 1e200
            )
            assert transport.wasserstein_1d(vector(0, 0), vector(1e-200, 0), 5) == pytest.approx(1e-200 * 0.5**0.2)
            assert transport.wasserstein_1d(vector(0, 0), vector(3, 0), 1000) == pytest.approx(3 * 0.5**1e-3)

    def test_zero_weights_and_inputs_are_kept(self):
        x, a = np.array([3.0, 0.0, 9.0]), np.array([0.5, 0.5, 0.0])
        assert transport.wasserstein_1d(x, vector(0, 3), math.inf, a) == 0
        np.testing.assert_array_equal(x, [3, 0, 9])
        np.testing.assert_array_equal(a, [0.5, 0.5, 0])

    def test_noise_floor(self):
        # B6.15: two samples of n from N(0,1) are 2/√π ∫√(F(1-F)) dx /√n = 1.8220/√n apart, with a relative s.d. of ~0.4
        rng, n, runs = np.random.default_rng(0), 4096, 200
        found = [transport.wasserstein_1d(*rng.standard_normal((2, n))) * math.sqrt(n) for _ in range(runs)]
        assert np.mean(found) == pytest.approx(1.8220, abs=5 * np.std(found) / math.sqrt(runs))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("kernel", ["wasserstein_1d", "monotone_coupling"])
    @pytest.mark.parametrize(
        ("x", "y", "weights", "message"),
        [
            ([], [1], {}, "x must not be empty"),
            ([1], [], {}, "y must not be empty"),
            ([1, np.nan], [1], {}, "x must be finite"),
            ([1], [np.inf], {}, "y must be finite"),
            ([[1, 2]], [1], {}, "x must have 1 dimension"),
            ([1, 2], [1], {"x_weights": [1.5, -0.5]}, "x_weights must not be negative, got -0.5"),
            ([1, 2], [1], {"x_weights": [1, 1]}, "x_weights must sum to 1, got the sum 2"),
            ([1], [1, 2], {"y_weights": [0.5, 0.4999]}, "y_weights must sum to 1, got the sum 0.9999"),
            ([1], [1, 2], {"y_weights": [1]}, r"y_weights must have shape \(2\), got \(1,\)"),
            ([1, 2], [1, 2], {"x_weights": [1, np.nan]}, "x_weights must be finite"),
        ],
    )
    def test_bad_input(self, kernel, x, y, weights, message):
        with pytest.raises(ValueError, match=message):
            getattr(transport, kernel)(x, y, **weights)

    @pytest.mark.parametrize("p", [0.5, 0, -1, math.nan, -math.inf])
    def test_bad_power(self, p):
        with pytest.raises(ValueError, match="p must be at least 1"):
            transport.wasserstein_1d(vector(0.0), vector(1.0), p)
        with pytest.raises(ValueError, match="p must be at least 1"):
            transport.sliced_wasserstein(np.zeros((1, 1)), np.zeros((1, 1)), 1, p=p)


class TestMonotoneCoupling:
    @given(seeds, sizes, sizes, st.booleans(), st.booleans())
    @settings(max_examples=60)
    def test_increasing_with_the_right_marginals(self, seed, n, m, x_weighted, y_weighted):
        x, y = gaussian(seed, n).round(1), gaussian(seed + 1, m).round(1)
        a = probabilities(seed + 2, n) if x_weighted else np.full(n, 1 / n)
        b = probabilities(seed + 3, m) if y_weighted else np.full(m, 1 / m)
        plan = transport.monotone_coupling(x, y, a if x_weighted else None, b if y_weighted else None)
        assert len(plan.mass) <= n + m - 1 and (plan.mass > 0).all()
        np.testing.assert_allclose(np.bincount(plan.i, plan.mass, n), a, atol=1e-14)
        np.testing.assert_allclose(np.bincount(plan.j, plan.mass, m), b, atol=1e-14)
        assert (np.diff(x[plan.i]) >= 0).all() and (np.diff(y[plan.j]) >= 0).all()
        for p in (1, 2, 3.5):
            cost = plan.mass @ np.abs(x[plan.i] - y[plan.j]) ** p
            assert cost == pytest.approx(transport.wasserstein_1d(x, y, p, a, b) ** p, rel=1e-9, abs=1e-20)

    def test_is_the_optimal_assignment(self):
        x, y = gaussian(0, 30), gaussian(1, 30)
        plan = transport.monotone_coupling(x, y)
        rows, columns = scipy.optimize.linear_sum_assignment((x[:, None] - y) ** 2)
        np.testing.assert_array_equal(plan.j[np.argsort(plan.i)], columns)
        np.testing.assert_array_equal(np.sort(plan.i), rows)
        np.testing.assert_array_equal(plan.mass, 1 / 30)

    def test_displacement_interpolation(self):
        # W_p from the law at t to the ends is t W_p and (1 - t) W_p: a geodesic
        x, y = gaussian(0, 20), 3 + gaussian(1, 13)
        plan = transport.monotone_coupling(x, y)
        middle = 0.75 * x[plan.i] + 0.25 * y[plan.j]
        for p in (1, 2, math.inf):
            total = transport.wasserstein_1d(x, y, p)
            assert transport.wasserstein_1d(middle, x, p, plan.mass) == pytest.approx(0.25 * total, rel=1e-12)
            assert transport.wasserstein_1d(middle, y, p, plan.mass) == pytest.approx(0.75 * total, rel=1e-12)

    def test_an_atom_is_split(self):
        # Y.29: no map takes δ₀ to ½(δ₁ + δ₋₁), a coupling does
        plan = transport.monotone_coupling(vector(0), vector(1, -1))
        np.testing.assert_array_equal(plan.i, [0, 0])
        np.testing.assert_array_equal(plan.j, [1, 0])
        np.testing.assert_array_equal(plan.mass, [0.5, 0.5])


class TestSliced:
    @given(seeds, st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), powers)
    @settings(max_examples=40)
    def test_agrees_with_pot_on_its_directions(self, seed, n, m, d, p):
        X, Y = gaussian(seed, n, d), gaussian(seed + 1, m, d) + 1
        ours = transport.sliced_wasserstein(X, Y, 7, p=p, rng=np.random.default_rng(seed))
        directions = np.random.default_rng(seed).standard_normal((7, d))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        if p < math.inf:
            expected = ot.sliced_wasserstein_distance(X, Y, projections=directions.T, p=p)
            assert ours == pytest.approx(expected, rel=1e-9)
        assert ours == pytest.approx(
            transport.wasserstein_1d(X[:, 0], Y[:, 0], p)
            if d == 1
            else transport._power_mean(
                np.array([transport.wasserstein_1d(X @ t, Y @ t, p) for t in directions]), np.full(7, 1 / 7), p
            ),
            rel=1e-12,
        )

    @pytest.mark.parametrize("d", [2, 5, 30])
    def test_gaussians(self, d):
        # quantile-exact in each direction is out of reach; a translation is exact: E(θᵀa)² = |a|²/d, with the variance
        # |a|⁴ (3/(d(d + 2)) - 1/d²)
        X, a, n = gaussian(0, 40, d), np.arange(1.0, d + 1), 4000
        found = transport.sliced_wasserstein(X, X + a, n, rng=1) ** 2 / (a @ a)
        se = math.sqrt((3 / (d * (d + 2)) - 1 / d**2) / n)
        assert found == pytest.approx(1 / d, abs=5 * se)

    def test_chunks_make_no_difference(self):
        X, Y = gaussian(0, 3000, 3), gaussian(1, 2000, 3)
        directions = np.random.default_rng(5).standard_normal((900, 3))  # 838 projections fit into a chunk
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        expected = np.mean([transport.wasserstein_1d(X @ t, Y @ t, 2) ** 2 for t in directions]) ** 0.5
        assert transport.sliced_wasserstein(X, Y, 900, rng=5) == pytest.approx(expected, rel=1e-12)

    def test_below_the_full_distance(self):
        X, Y = gaussian(0, 50, 4), 1 + 2 * gaussian(1, 50, 4)
        full = ot.emd2([], [], squared(X, Y))
        assert transport.sliced_wasserstein(X, Y, 5000, rng=0) ** 2 <= full / 4 * 1.05
        assert transport.sliced_wasserstein(X, X[::-1], 10, rng=0) == 0

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("X", "Y", "n", "message"),
        [
            (np.zeros((2, 2)), np.zeros((2, 3)), 5, r"Y must have shape \(any, 2\), got \(2, 3\)"),
            (np.zeros(2), np.zeros((2, 3)), 5, "X must have 2 dimension"),
            (np.zeros((0, 2)), np.zeros((2, 2)), 5, "X must not be empty"),
            (np.zeros((2, 2)), np.full((2, 2), np.nan), 5, "Y must be finite"),
            (np.zeros((2, 2)), np.zeros((2, 2)), 0, "n_projections must be at least 1, got 0"),
        ],
    )
    def test_bad_input(self, X, Y, n, message):
        with pytest.raises(ValueError, match=message):
            transport.sliced_wasserstein(X, Y, n)


class TestGaussian:
    def test_one_dimension(self):
        # δ² + τ², B6.15
        distance = transport.gaussian_w2(np.array([2.0]), np.array([[1.0]]), np.array([0.0]), np.array([[4.0]]))
        assert distance == pytest.approx(math.sqrt(5), rel=1e-14)

    def test_inventory(self):
        # B5.14: tr(I + Σ - 2Σ^½) = 0.42229 for Σ = [[1, .8], [.8, 1]]; B9.11: 2.0921, with Σ^½ as the map
        zero, eye = np.zeros(2), np.eye(2)
        S = np.array([[1, 0.8], [0.8, 1]])
        assert transport.gaussian_w2(zero, eye, zero, S) ** 2 == pytest.approx(
            4 - 2 * (math.sqrt(1.8) + math.sqrt(0.2)), rel=1e-12
        )
        assert transport.gaussian_w2(zero, eye, zero, S) ** 2 == pytest.approx(0.42229, abs=5e-6)
        m, S = np.array([1.2, -0.6]), np.array([[1.4, 0.8], [0.8, 1.2]])
        assert transport.gaussian_w2(zero, eye, m, S) ** 2 == pytest.approx(2.0921, abs=5e-5)
        A, b = transport.gaussian_map(zero, eye, m, S)
        np.testing.assert_allclose(A, [[1.1234, 0.3714], [0.3714, 1.0306]], atol=5e-5)
        np.testing.assert_array_equal(b, m)

    @given(seeds, st.integers(1, 5), st.integers(0, 2), st.integers(0, 2))
    @settings(max_examples=60)
    def test_agrees_with_pot_and_the_trace(self, seed, d, deficit0, deficit1):
        m0, m1 = gaussian(seed, d), gaussian(seed + 1, d)
        S0, S1 = covariance(seed + 2, d, max(d - deficit0, 1)), covariance(seed + 3, d, max(d - deficit1, 1))
        distance = transport.gaussian_w2(m0, S0, m1, S1)
        assert distance == pytest.approx(transport.gaussian_w2(m1, S1, m0, S0), rel=1e-7)
        # tr (S0^½ S1 S0^½)^½ = Σ√λ(S0 S1), good to half the digits where the product is singular
        fidelity = np.sqrt(np.maximum(np.linalg.eigvals(S0 @ S1).real, 0)).sum()
        expected = ((m0 - m1) ** 2).sum() + np.trace(S0) + np.trace(S1) - 2 * fidelity
        assert distance**2 == pytest.approx(expected, abs=1e-6 * (1 + np.trace(S0) + np.trace(S1)))
        if not deficit0 and not deficit1:
            assert distance == pytest.approx(ot.gaussian.bures_wasserstein_distance(m0, m1, S0, S1), rel=1e-6)

    @given(seeds, st.integers(1, 6), st.integers(1, 6))
    def test_commuting(self, seed, d, rank):
        # Σ(√λ - √μ)²
        Q = np.linalg.qr(gaussian(seed, d, d)).Q
        roots = np.abs(gaussian(seed + 1, 2, d))
        roots[:, rank:] = 0
        S0, S1 = ((Q * r**2) @ Q.T for r in roots)
        zero = np.zeros(d)
        expected = np.linalg.norm(roots[0] - roots[1])
        assert transport.gaussian_w2(zero, S0, zero, S1) == pytest.approx(expected, rel=1e-6)

    def test_singular(self):
        # two segments at an angle: L = u, v columns, W² = |u|² + |v|² - 2|uᵀv|
        u, v = np.array([1.0, 2, 0]), np.array([0, 1.0, 3])
        zero = np.zeros(3)
        distance = transport.gaussian_w2(zero, np.outer(u, u), zero, np.outer(v, v))
        assert distance**2 == pytest.approx(5 + 10 - 4, rel=1e-12)
        # a point mass: W² = |m|² + tr S
        distance = transport.gaussian_w2(u, np.zeros((3, 3)), v, np.diag([1.0, 2, 0]))
        assert distance**2 == pytest.approx(1 + 1 + 9 + 3, rel=1e-14)
        assert transport.gaussian_w2(u, np.zeros((3, 3)), u, np.zeros((3, 3))) == 0

    @pytest.mark.parametrize("rank", [2, 6])
    def test_close_laws(self, rank):
        # the trace formula would give 1e-7 of noise; S1 = (1 + h)² S0 has W = h √tr S0
        S, zero = covariance(0, 6, rank), np.zeros(6)
        assert transport.gaussian_w2(zero, S, zero, S) < 1e-13
        for h in (1e-6, 1e-9):
            distance = transport.gaussian_w2(zero, S, zero, (1 + h) ** 2 * S)
            assert distance == pytest.approx(h * math.sqrt(np.trace(S)), rel=1e-4)

    @given(seeds, st.integers(1, 5))
    def test_metric(self, seed, d):
        laws = [(gaussian(seed + k, d), covariance(seed + 3 + k, d, 1 + d // 2)) for k in range(3)]
        W01, W12, W02 = (transport.gaussian_w2(*laws[i], *laws[j]) for i, j in ((0, 1), (1, 2), (0, 2)))
        assert W02 <= W01 + W12 + 1e-7

    @given(seeds, st.integers(1, 5), st.integers(0, 1))
    def test_map(self, seed, d, deficit):
        m0, m1, S0 = gaussian(seed, d), gaussian(seed + 1, d), covariance(seed + 2, d, d + 3)
        S1 = covariance(seed + 3, d, max(d - deficit, 1))
        A, b = transport.gaussian_map(m0, S0, m1, S1)
        np.testing.assert_array_equal(A, A.T)
        assert np.linalg.eigvalsh(A)[0] > -1e-12 * np.abs(A).max()
        condition = np.linalg.cond(S0)
        np.testing.assert_allclose(A @ S0 @ A, S1, atol=1e-13 * condition * np.abs(S1).max())
        np.testing.assert_allclose(A @ m0 + b, m1, atol=1e-12 * (1 + np.abs(A).max()))
        # its mean square displacement is W2²
        B = A - np.eye(d)
        cost = ((m0 - m1) ** 2).sum() + np.trace(B @ S0 @ B)
        assert cost == pytest.approx(transport.gaussian_w2(m0, S0, m1, S1) ** 2, rel=1e-9 * condition)

    def test_samples(self):
        # the assignment of n points costs more than W2², by sampling
        S, n = np.array([[1, 0.8], [0.8, 1]]), 500
        X, Z = gaussian(0, n, 2), gaussian(1, n, 2)
        A, b = transport.gaussian_map(np.zeros(2), np.eye(2), np.ones(2), S)
        moved = Z @ A + b
        np.testing.assert_allclose(np.cov(moved.T), A @ np.cov(Z.T) @ A, rtol=1e-10)
        exact = transport.gaussian_w2(np.zeros(2), np.eye(2), np.ones(2), S) ** 2
        assert transport.ot_exact(np.full(n, 1 / n), np.full(n, 1 / n), squared(X, moved)).cost == pytest.approx(
            exact, rel=0.15
        )

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (([0, 0], np.eye(2), [0, 0, 0], np.eye(3)), r"m1 must have shape \(2\), got \(3,\)"),
            (([0, 0], np.eye(3), [0, 0], np.eye(2)), r"S0 must have shape \(2, 2\), got \(3, 3\)"),
            (([0, 0], np.eye(2), [0, 0], np.ones(2)), "S1 must have 2 dimension"),
            (([0, 0], np.array([[1, 2], [0, 1]]), [0, 0], np.eye(2)), "S0 must be symmetric, got .* differ by 2"),
            (([0, 0], np.eye(2), [0, 0], np.diag([1, -1])), "S1 must be positive semi-definite, got the eigenvalue -1"),
            (([0, np.nan], np.eye(2), [0, 0], np.eye(2)), "m0 must be finite"),
        ],
    )
    def test_bad_input(self, arguments, message):
        for kernel in (transport.gaussian_w2, transport.gaussian_map):
            with pytest.raises(ValueError, match=message):
                kernel(*arguments)

    def test_no_map_from_a_singular_law(self):
        with pytest.raises(ValueError, match="S0 must be positive definite, got a covariance of rank 1 of 2"):
            transport.gaussian_map(np.zeros(2), np.ones((2, 2)), np.zeros(2), np.eye(2))


class TestExact:
    def test_weighted_plan_is_optimal_whatever_the_pairs_it_begins_with(self, monkeypatch):
        """Potentials that are noise point to the wrong pairs; those too cheap by its own potentials must come in."""
        rng = np.random.default_rng(0)
        a, b, C = rng.dirichlet(np.ones(40)), rng.dirichlet(np.ones(30)), rng.random((40, 30))
        noise = rng.standard_normal(40), rng.standard_normal(30), None, 0
        monkeypatch.setattr(transport, "_on_support", lambda *_: tuple(1e3 * x if np.ndim(x) else x for x in noise))
        plan = transport.ot_exact(a, b, C)
        assert plan.cost == pytest.approx(ot.emd2(a, b, C), rel=1e-9)
        assert (C - plan.f[:, None] - plan.g > -1e-9).all()

    @given(seeds, sizes, sizes, st.booleans())
    @settings(max_examples=40)
    def test_certificate_and_peer(self, seed, n, m, uniform):
        a, b = (
            (np.full(n, 1 / n), np.full(m, 1 / m)) if uniform else (probabilities(seed, n), probabilities(seed + 1, m))
        )
        C = gaussian(seed + 2, n, m) * 100
        plan = transport.ot_exact(a, b, C)
        assert (plan.P >= 0).all() and plan.residual < 1e-12
        np.testing.assert_allclose(plan.P.sum(axis=1), a, atol=1e-12)
        np.testing.assert_allclose(plan.P.sum(axis=0), b, atol=1e-12)
        # strong duality and complementary slackness
        slack = C - plan.f[:, None] - plan.g
        assert slack.min() > -1e-10 and np.vdot(slack, plan.P) < 1e-9
        assert abs(plan.gap) < 1e-9 and plan.cost - plan.gap == pytest.approx(a @ plan.f + b @ plan.g, abs=1e-10)
        low = C.min()  # the peer does not expect negative costs
        assert plan.cost == pytest.approx(ot.emd2(a, b, C - low) + low, abs=1e-9)

    @pytest.mark.parametrize("n", [1, 2, 60])
    def test_assignment(self, n):
        C = squared(gaussian(0, n, 3), gaussian(1, n, 3))
        uniform = np.full(n, 1 / n)
        plan = transport.ot_exact(uniform, uniform, C)
        assert plan.n_iter == 0 and np.count_nonzero(plan.P) == n and plan.residual < 1e-14
        assert plan.gap == pytest.approx(0, abs=1e-13)
        # as a linear programme: one weight differs by more than rounding
        a = uniform.copy()
        if n > 1:
            a[:2] += [1e-9, -1e-9]
            other = transport.ot_exact(a, uniform, C)
            assert np.count_nonzero(other.P) > n and other.cost == pytest.approx(plan.cost, abs=1e-8)
            assert abs(other.gap) < 1e-12

    def test_by_hand(self):
        # a quarter goes from the first point to the second, at a cost of 7
        plan = transport.ot_exact(vector(0.5, 0.5), vector(0.25, 0.75), np.array([[0, 7], [7, 0.0]]))
        np.testing.assert_allclose(plan.P, [[0.25, 0.25], [0, 0.5]], atol=1e-15)
        assert plan.cost == pytest.approx(1.75) and plan.f[0] - plan.f[1] == pytest.approx(7)

    @pytest.mark.parametrize("p", [1, 2, 3])
    def test_the_line(self, p):
        x, y, a, b = gaussian(0, 15), gaussian(1, 11), probabilities(2, 15), probabilities(3, 11)
        plan = transport.ot_exact(a, b, np.abs(x[:, None] - y) ** p)
        assert plan.cost ** (1 / p) == pytest.approx(transport.wasserstein_1d(x, y, p, a, b), rel=1e-9)

    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    def test_tiny_weights_and_other_units(self, scale):
        # HiGHS has absolute tolerances
        a, b = np.array([1e-9, 1 - 1e-9]), np.array([1 - 1e-9, 1e-9])
        plan = transport.ot_exact(a, b, scale * np.array([[0, 1], [1, 0.0]]))
        assert plan.cost == pytest.approx(scale * (1 - 2e-9), rel=1e-12) and plan.residual < 1e-15
        a, b, C = probabilities(0, 8), probabilities(1, 7), gaussian(2, 8, 7) ** 2
        assert transport.ot_exact(a, b, scale * C).cost == pytest.approx(scale * ot.emd2(a, b, C), rel=1e-9)

    def test_masses_of_many_sizes(self):
        # the equations of all n + m marginals contradict each other by rounding, which HiGHS can find infeasible
        t = np.linspace(0, 1, 80)
        a = np.exp(-((t - 0.25) ** 2) / 0.01) + 0.5 * np.exp(-((t - 0.75) ** 2) / 0.005)
        b = np.exp(-((t - 0.4) ** 2) / 0.005) + 1.5 * np.exp(-((t - 0.8) ** 2) / 0.003)
        a, b = a / a.sum(), b / b.sum()
        plan = transport.ot_exact(a, b, (t[:, None] - t) ** 2)
        assert plan.cost == pytest.approx(transport.wasserstein_1d(t, t, 2, a, b) ** 2, rel=1e-9)
        assert plan.residual < 1e-12

    def test_zero_weights_and_zero_costs(self):
        plan = transport.ot_exact(vector(0.0, 1.0), vector(0.5, 0.5, 0.0), np.arange(6.0).reshape(2, 3))
        np.testing.assert_allclose(plan.P, [[0, 0, 0], [0.5, 0.5, 0]], atol=1e-15)
        assert transport.ot_exact(vector(0.5, 0.5), vector(0.2, 0.8), np.zeros((2, 2))).cost == 0

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("a", "b", "C", "message"),
        [
            ([0.5, 0.5], [1], np.zeros((2, 2)), r"b must have shape \(2\), got \(1,\)"),
            ([1], [0.5, 0.5], np.zeros((2, 2)), r"a must have shape \(2\), got \(1,\)"),
            ([0.5, 0.5], [0.5, 0.6], np.zeros((2, 2)), "b must sum to 1, got the sum 1.1"),
            ([2, -1], [0.5, 0.5], np.zeros((2, 2)), "a must not be negative, got -1"),
            ([0.5, 0.5], [0.5, 0.5], np.full((2, 2), np.inf), "C must be finite"),
            ([1], [1], [0], "C must have 2 dimension"),
        ],
    )
    def test_bad_input(self, a, b, C, message):
        for call in (transport.ot_exact, lambda a, b, C: transport.sinkhorn(a, b, C, 0.1)):
            with pytest.raises(ValueError, match=message):
                call(a, b, C)


def grid_problem(n=200):
    """Two laws on a grid in [-5, 5] with tails down to 1e-22, and squared distances."""
    t = np.linspace(-5, 5, n)
    a = np.exp(-(t**2) / 2)
    b = 0.3 * np.exp(-2 * (t - 2) ** 2) + 0.7 * np.exp(-2 * (t + 2) ** 2)
    return a / a.sum(), b / b.sum(), (t[:, None] - t) ** 2


class TestSinkhorn:
    @pytest.mark.parametrize("reg", [0.05, 1.0, 30.0])
    def test_two_points(self, reg):
        # P₁₁/P₁₂ = e^{1/reg}, and ¼e^{(f + g)/reg} = P₁₁
        plan = transport.sinkhorn(vector(0.5, 0.5), vector(0.5, 0.5), np.array([[0, 1], [1, 0.0]]), reg)
        diagonal, other = 0.5 / (1 + math.exp(-1 / reg)), 0.5 / (1 + math.exp(1 / reg))
        np.testing.assert_allclose(plan.P, [[diagonal, other], [other, diagonal]], rtol=1e-12)
        assert plan.cost == pytest.approx(2 * other, rel=1e-12)
        assert plan.f.sum() + plan.g.sum() == pytest.approx(2 * reg * math.log(4 * diagonal), rel=1e-12)

    def test_gaussians_on_a_grid(self):
        # B9.9: cost (x - y)²/2, s₀ = 1.3, s₁ = 0.7, reg = 0.5: cov = ½(√(4s₀²s₁² + reg²) - reg) = 0.69372
        t = np.linspace(-9, 9, 241)
        a, b = (np.exp(-(t**2) / (2 * s**2)) for s in (1.3, 0.7))
        plan = transport.sinkhorn(a / a.sum(), b / b.sum(), (t[:, None] - t) ** 2 / 2, 0.5, tol=1e-12)
        exact = 0.5 * (math.sqrt(4 * 1.3**2 * 0.7**2 + 0.25) - 0.5)
        assert exact == pytest.approx(0.69372, abs=5e-6)
        assert t @ plan.P @ t == pytest.approx(exact, rel=1e-9)
        # the value ½(s₀² + s₁²) - cov + reg·I, I = -½ln(1 - ρ²), is that of the potentials
        information = -0.5 * math.log(1 - (exact / 0.91) ** 2)
        value = 0.5 * (1.3**2 + 0.7**2) - exact + 0.5 * information
        assert a @ plan.f / a.sum() + b @ plan.g / b.sum() == pytest.approx(value, rel=1e-9)

    @given(seeds, st.integers(1, 9), st.integers(1, 9), st.floats(-3, 2))
    @settings(max_examples=60)
    def test_form_marginals_and_certificate(self, seed, n, m, log_reg):
        a, b, C = probabilities(seed, n), probabilities(seed + 1, m), gaussian(seed + 2, n, m)
        reg = 10**log_reg * np.abs(C).max()
        plan = transport.sinkhorn(a, b, C, reg)
        assert plan.residual <= 1e-9 * (1 + 1e-5)
        np.testing.assert_allclose(plan.P.sum(axis=1), a, atol=1.1e-9)
        np.testing.assert_allclose(plan.P.sum(axis=0), b, atol=1.1e-9)
        gibbs = a[:, None] * b * np.exp((plan.f[:, None] + plan.g - C) / reg)
        np.testing.assert_allclose(gibbs, plan.P, rtol=1e-9, atol=1e-190)
        assert plan.cost == pytest.approx(np.vdot(C, plan.P), rel=1e-12)
        assert -1e-12 * np.abs(C).max() <= plan.gap <= 1e-7 * np.abs(C).max()
        # 0 ≤ bias ≤ reg min(H(a), H(b)), up to the residual
        exact, slack = transport.ot_exact(a, b, C).cost, 1e-8 * np.abs(C).max()
        assert exact - slack <= plan.cost <= exact + reg * min(entropy(a), entropy(b)) + slack

    @pytest.mark.parametrize("reg", [0.5, 0.05])
    @pytest.mark.parametrize("shape", [(40, 40), (25, 60), (60, 25)])
    def test_agrees_with_pot(self, reg, shape):
        a, b = probabilities(0, shape[0]), probabilities(1, shape[1])
        C = squared(gaussian(2, shape[0], 2), gaussian(3, shape[1], 2))
        ours = transport.sinkhorn(a, b, C, reg, tol=1e-12)
        theirs = ot.bregman.sinkhorn_log(a, b, C, reg, numItermax=20_000, stopThr=1e-12)
        np.testing.assert_allclose(ours.P, theirs, atol=1e-11)

    @pytest.mark.parametrize("reg", [1e-3, 2e-4])
    @pytest.mark.parametrize("d", [1, 2, None])
    def test_small_reg(self, reg, d):
        # Sinkhorn's iteration alone needs 1e3 to more than 1e5 steps here
        if d is None:
            a, b, C = grid_problem()
        else:
            x, y = gaussian(0, 200, d), 1.5 * gaussian(1, 200, d) + 1
            a, b, C = np.full(200, 1 / 200), np.full(200, 1 / 200), squared(x, y)
        reg *= C.max()
        plan = transport.sinkhorn(a, b, C, reg)
        assert plan.residual <= 1e-9 * (1 + 1e-5) and plan.n_iter < 3000
        assert -1e-14 * C.max() < plan.gap < 1e-9 * C.max()
        if d is None:
            t = np.linspace(-5, 5, 200)
            exact = transport.wasserstein_1d(t, t, 2, a, b) ** 2
        else:
            exact = transport.ot_exact(a, b, C).cost
        assert exact <= plan.cost <= exact + reg * entropy(a)
        assert plan.cost <= exact + 2 * reg  # in d dimensions the bias is about reg d/2

    def test_reg_to_zero(self):
        x, y = np.arange(12.0), 1.3 * np.arange(12.0) + 0.1
        uniform, C = np.full(12, 1 / 12), (x[:, None] - y) ** 2
        plans = [transport.sinkhorn(uniform, uniform, C, reg) for reg in (1e5, 10.0, 3.0, 1.0, 0.1)]
        costs = [plan.cost for plan in plans]
        assert costs == sorted(costs, reverse=True)
        np.testing.assert_allclose(plans[0].P, 1 / 144, rtol=0.01)  # independent
        # monotone: to swap two neighbours costs 2·1·1.3
        np.testing.assert_allclose(plans[-1].P, np.eye(12) / 12, atol=math.exp(-13))

    @pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
    def test_transpose_and_constants(self, shape):
        a, b, C = probabilities(0, shape[0]), probabilities(1, shape[1]), gaussian(2, *shape)
        plan, turned = transport.sinkhorn(a, b, C, 0.1), transport.sinkhorn(b, a, C.T, 0.1)
        np.testing.assert_allclose(turned.P.T, plan.P, atol=1e-9)
        moved = transport.sinkhorn(a, b, C + np.arange(shape[0])[:, None] - np.arange(shape[1]), 0.1, tol=1e-13)
        np.testing.assert_allclose(moved.P, plan.P, atol=1e-8)

    def test_zero_and_tiny_weights(self):
        a, b = np.array([0.4, 0, 0.6]), np.array([0, 1 - 1e-200, 1e-200, 0])
        C = gaussian(0, 3, 4)
        plan = transport.sinkhorn(a, b, C, 0.01)
        np.testing.assert_allclose(plan.P, a[:, None] * [0, 1, 0, 0], atol=1e-15)
        assert np.isfinite(plan.f).all() and np.isfinite(plan.g).all() and abs(plan.gap) < 1e-14
        # the equations for f and g hold also where there is no mass
        f = -0.01 * scipy.special.logsumexp((plan.g - C) / 0.01, b=b, axis=1)
        g = -0.01 * scipy.special.logsumexp((plan.f[:, None] - C) / 0.01, b=a[:, None], axis=0)
        np.testing.assert_allclose(plan.f, f, atol=1e-12)
        np.testing.assert_allclose(plan.g, g, atol=1e-12)

    def test_absorption(self):
        # two sites of weights .6, .4 and .4, .6: mass 0.2 moves at a cost of 1600, potentials drift by as much
        x = np.repeat([0.0, 40.0], 3)
        a = np.repeat([0.2, 0.4 / 3], 3)
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            plan = transport.sinkhorn(a, a[::-1].copy(), (x[:, None] - x) ** 2, 1.0)
        assert plan.cost == pytest.approx(0.2 * 1600, rel=1e-8)
        assert plan.residual <= 1e-9 * (1 + 1e-5) and np.ptp(plan.f) > 1000

    def test_larger_reg_first(self, monkeypatch):
        # close to an assignment, clusters hardly exchange mass: from potentials of zero 10 000 steps do not suffice
        rng = np.random.default_rng(147)
        (n, m), d = rng.integers(5, 150, 2), rng.integers(1, 4)
        x, y = rng.standard_normal((n, d)), 1.5 * rng.standard_normal((m, d)) + 1
        C, uniform = squared(x, y[:n] if m >= n else rng.standard_normal((n, d))), np.full(n, 1 / n)
        steps, scale = [], transport._scale

        def counted(*arguments):
            result = scale(*arguments)
            steps.append(result[-1])
            return result

        monkeypatch.setattr(transport, "_scale", counted)
        plan = transport.sinkhorn(uniform, uniform, C, 1e-3 * C.max())
        assert plan.residual <= 1e-9 * (1 + 1e-5) and plan.n_iter == sum(steps) < 1000 and len(steps) == 4
        exact = transport.ot_exact(uniform, uniform, C).cost
        assert exact <= plan.cost <= exact + 1e-3 * C.max() * math.log(n)

    def test_converged_at_the_last_step(self, recwarn):
        a, b, C = grid_problem(60)
        n_iter = transport.sinkhorn(a, b, C, 2.0).n_iter
        assert transport.sinkhorn(a, b, C, 2.0, max_iter=n_iter).n_iter == n_iter
        assert not recwarn
        with pytest.warns(ConvergenceWarning):
            transport.sinkhorn(a, b, C, 2.0, max_iter=n_iter - 1)

    def test_weights_near_the_smallest_float(self):
        # without a cut whole columns of the kernel would underflow
        a, b, C = np.array([0.4, 0.6, 1e-250]), np.array([1e-230, 0.5, 0.5]), gaussian(0, 3, 3)
        with np.errstate(divide="raise", invalid="raise", over="raise"):
            plan = transport.sinkhorn(a, b, C, 0.1)
        heavy = transport.sinkhorn(a[:2], b[1:], C[:2, 1:], 0.1)
        np.testing.assert_allclose(plan.P[:2, 1:], heavy.P, rtol=1e-12)
        assert np.isfinite(plan.f).all() and np.isfinite(plan.g).all()

    def test_far_costs(self):
        # potentials of ±500 reg: far beyond what a scaling can hold
        a, b, C = probabilities(0, 30), probabilities(1, 30), 1000 * gaussian(2, 30, 30) ** 2
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            plan = transport.sinkhorn(a, b, C, 10.0)
        assert plan.residual <= 1e-9 * (1 + 1e-5) and abs(plan.gap) < 1e-6
        gibbs = a[:, None] * b * np.exp((plan.f[:, None] + plan.g - C) / 10)
        np.testing.assert_allclose(gibbs, plan.P, atol=1e-13)

    def test_best_plan_so_far(self):
        a, b, C = grid_problem(60)
        with pytest.warns(ConvergenceWarning, match=r"marginals are off by \S+ after 7 iterations \(tol 1e-09\)"):
            plan = transport.sinkhorn(a, b, C, 0.05, max_iter=7)
        assert plan.n_iter == 7 and plan.residual > 1e-3
        assert plan.residual == pytest.approx(
            np.abs(plan.P.sum(axis=1) - a).sum() + np.abs(plan.P.sum(axis=0) - b).sum(), rel=1e-12
        )
        # the optimum lies between the two objectives
        best = transport.sinkhorn(a, b, C, 0.05, tol=1e-12)
        value = a @ best.f + b @ best.g
        lower = a @ plan.f + b @ plan.g - 0.05 * (plan.P.sum() - 1)
        assert lower < value < lower + plan.gap

    def test_one_iteration_and_many(self):
        a, b, C = grid_problem(60)
        errors = []
        for k in (1, 2, 4, 8, 16):
            with pytest.warns(ConvergenceWarning):
                errors.append(transport.sinkhorn(a, b, C, 0.05, max_iter=k).residual)
        assert errors == sorted(errors, reverse=True)
        assert transport.sinkhorn(a, b, np.zeros((60, 60)), 1.0, max_iter=1).residual < 1e-14

    def test_newton_step(self):
        # at the optimum moved by δ (mean zero), one step brings δ back up to its square
        a, b, C = probabilities(0, 6), probabilities(1, 9), gaussian(2, 6, 9)
        best = transport.sinkhorn(a, b, C, 0.3, tol=1e-14)
        errors = []
        for size in (1e-2, 1e-3):
            u = np.exp(size * gaussian(3, 6))
            v = b / (u @ best.P)
            P = u[:, None] * best.P * v
            better = transport._newton(u, v, best.P, a, b, np.inf)
            errors.append(np.abs(better[0] * (best.P @ better[1]) - a).sum())
            assert errors[-1] < size * np.abs(P.sum(axis=1) - a).sum()
            assert transport._newton(u, v, best.P, a, b, 0.0) is None
        assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"reg": 0}, "reg must be greater than 0, got 0"),
            ({"reg": -1}, "reg must be greater than 0, got -1"),
            ({"reg": np.nan}, "reg must be greater than 0"),
            ({"reg": 1, "tol": 0}, "tol must be greater than 0"),
            ({"reg": 1, "max_iter": 0}, "max_iter must be at least 1, got 0"),
        ],
    )
    def test_bad_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            transport.sinkhorn(vector(1.0), vector(1.0), np.zeros((1, 1)), **options)


@given(seeds, sizes, sizes)
def test_with_marginals(seed, n, m):
    # the change is at most twice what is missing
    a, b, P = probabilities(seed, n), probabilities(seed + 1, m), np.random.default_rng(seed).random((n, m))
    P /= P.sum()
    moved = transport._with_marginals(P, a, b)
    assert (moved >= 0).all() and transport._residual(moved, a, b) < 1e-14
    assert np.abs(moved - P).sum() <= 2 * transport._residual(P, a, b) + 1e-14
    feasible = np.outer(a, b)
    np.testing.assert_allclose(transport._with_marginals(feasible, a, b), feasible, rtol=1e-12)
