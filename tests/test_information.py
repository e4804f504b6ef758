import decimal
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.spatial.distance
import scipy.special
import scipy.stats
import sklearn.calibration
import sklearn.metrics
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax, rel_entr
from sklearn.metrics.cluster import expected_mutual_information

from coursekit import information as info

LN2 = math.log(2)
seeds = st.integers(0, 2**32 - 1)
batches = st.sampled_from([(), (1,), (3,), (2, 4)])
COIN = np.array([0.5, 0.5])
SURE = np.array([1.0, 0.0])


def random_pmf(seed, *shape, zeros=0.3):
    """Dirichlet(½) along the last axis, some entries zero."""
    rng = np.random.default_rng(seed)
    p = rng.standard_gamma(0.5, shape) * (rng.random(shape) > zeros)
    p[..., 0] += 1e-3  # not all zero
    return p / p.sum(axis=-1, keepdims=True)


def random_spd(seed, *shape):
    """(..., d, d) of shape (..., d)."""
    A = np.random.default_rng(seed).standard_normal((*shape, shape[-1]))
    return A @ np.swapaxes(A, -1, -2) + 0.1 * np.eye(shape[-1])


def logs(p):
    return np.log(p, out=np.full(np.shape(p), -np.inf), where=np.asarray(p) > 0)


def bsc(p, q=0.5):
    """Joint pmf of the input Bernoulli(q) of a binary symmetric channel that flips with probability p, and output."""
    return np.array([[(1 - q) * (1 - p), (1 - q) * p], [q * p, q * (1 - p)]], dtype=float)


def h2(p):
    """In bits."""
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x)


class TestEntropy:
    @pytest.mark.parametrize(
        ("p", "base", "value"),
        [
            # B6.6
            ([0.25] * 4, 2, 2),
            ([0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3], 2, 0.627492),
            ([0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3], None, 0.434944),
            ([0.1] * 10, None, math.log(10)),
            # B6.19, in units of log 2 and of log 4
            ([0.5, 0.25, 0.15, 0.1], 2, 1.742738),
            ([0.5, 0.25, 0.125, 0.125], 4, 0.875),
            ([0, 1, 0], 2, 0),
            ([1], None, 0),
        ],
    )
    def test_exact(self, p, base, value):
        p = np.array(p, dtype=float)
        assert info.entropy(p, base) == pytest.approx(value, abs=5e-7)
        assert info.entropy_from_logs(logs(p), base) == pytest.approx(value, abs=5e-7)

    def test_digit_labels(self):
        # B6.6: MNIST, train and test
        counts = np.array([6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958])
        assert info.entropy(counts / counts.sum(), 2) == pytest.approx(3.319837, abs=5e-7)
        assert info.entropy_estimate(counts, 2).plug_in == pytest.approx(3.319837, abs=5e-7)

    def test_certain_is_positive_zero(self):
        for value in (info.entropy(SURE), info.entropy_from_logs(logs(SURE)), info.cross_entropy(SURE, SURE)):
            assert value == 0 and not np.signbit(value)

    @given(seeds, batches, st.integers(1, 6))
    def test_bounds_and_peers(self, seed, batch, k):
        p = random_pmf(seed, *batch, k)
        H = info.entropy(p)
        assert np.shape(H) == batch
        np.testing.assert_allclose(H, scipy.stats.entropy(p, axis=-1), atol=1e-14)
        np.testing.assert_allclose(info.entropy_from_logs(logs(p)), H, atol=1e-13)
        theirs = torch.distributions.Categorical(torch.from_numpy(p)).entropy()
        np.testing.assert_allclose(H, theirs, atol=1e-12)
        # log k - H = KL(p‖uniform)
        np.testing.assert_allclose(math.log(k) - H, info.kl(p, np.full(k, 1 / k)), atol=1e-13)

    @given(seeds, st.integers(2, 6), st.floats(0, 1))
    def test_concave(self, seed, k, weight):
        p, q = random_pmf(seed, 2, k)
        mixed = weight * p + (1 - weight) * q
        assert info.entropy(mixed) >= weight * info.entropy(p) + (1 - weight) * info.entropy(q) - 1e-13

    def test_from_logs_of_tiny_probabilities(self):
        # ε = e^{-700}: H = 700 ε + ε, the second from -(1 - ε) log(1 - ε)
        log_p = np.array([0.0, -700.0])
        assert info.entropy_from_logs(log_p) == pytest.approx(math.exp(-700) * 701, rel=1e-12, abs=0)

    def test_temperature(self):
        # B6.7: dH(p_T)/dT = Var_{p_T}(ln p)/T³
        z, T, h = np.random.default_rng(0).standard_normal(6), 1.7, 1e-5
        p = np.exp(log_softmax(z / T))
        derivative = (
            info.entropy_from_logs(log_softmax(z / (T + h))) - info.entropy_from_logs(log_softmax(z / (T - h)))
        ) / (2 * h)
        variance = p @ z**2 - (p @ z) ** 2
        assert derivative == pytest.approx(variance / T**3, rel=1e-7)

    def test_float32_softmax(self):
        z = np.random.default_rng(0).standard_normal((50, 1000)).astype(np.float32) * 5
        p32 = torch.softmax(torch.from_numpy(z), -1).numpy()
        p = np.exp(log_softmax(z.astype(float), axis=-1))
        np.testing.assert_allclose(info.entropy(p32), info.entropy(p), rtol=1e-5)
        # as good as its softmax, and normalised again
        log32 = torch.log_softmax(torch.from_numpy(z), -1).numpy()
        np.testing.assert_allclose(info.entropy_from_logs(log32), info.entropy(p), rtol=1e-5)
        uniform = info.entropy_from_logs(np.full(1000, np.float32(-math.log(1000))))
        assert uniform == pytest.approx(math.log(1000), rel=1e-14)
        # the identity between the three holds to rounding
        q32 = np.roll(p32, 1, axis=0)
        np.testing.assert_allclose(info.cross_entropy(p32, q32), info.entropy(p32) + info.kl(p32, q32), rtol=1e-13)


class TestDivergences:
    def test_zeros_and_infinities(self):
        assert info.kl(COIN, SURE) == info.cross_entropy(COIN, SURE) == math.inf
        assert info.kl(SURE, COIN) == pytest.approx(LN2, rel=1e-15)
        assert info.kl(SURE, COIN, 2) == pytest.approx(1, rel=1e-15)
        assert info.cross_entropy(SURE, COIN, 2) == pytest.approx(1, rel=1e-15)
        assert info.kl(SURE, SURE) == info.cross_entropy(SURE, SURE) == info.js(SURE, SURE) == 0
        assert info.js(SURE, SURE[::-1], 2) == pytest.approx(1, rel=1e-15)
        assert info.total_variation(SURE, SURE[::-1]) == 1
        np.testing.assert_array_equal(info.kl(np.stack([COIN, SURE]), SURE), [math.inf, 0])
        assert info.kl_from_logs(logs(COIN), logs(SURE)) == math.inf
        assert info.kl_from_logs(logs(SURE), logs(COIN)) == pytest.approx(LN2, rel=1e-15)

    def test_one_hot_targets(self):
        # H(p) = 0: cross-entropy and divergence are the negative log-likelihood (B6.14)
        q = random_pmf(0, 5, zeros=0)
        np.testing.assert_allclose(info.cross_entropy(np.eye(5), q), -np.log(q), rtol=1e-14)
        np.testing.assert_allclose(info.kl(np.eye(5), q), -np.log(q), rtol=1e-14)

    @given(seeds, batches, st.integers(1, 6))
    def test_identities_and_peers(self, seed, batch, k):
        p, q = random_pmf(seed, *batch, k), random_pmf(seed + 1, k, zeros=0)
        D = info.kl(p, q)
        assert np.shape(D) == batch and np.all(D >= 0)
        np.testing.assert_allclose(D, rel_entr(p, q).sum(axis=-1), atol=1e-13)
        np.testing.assert_allclose(info.kl(p, q, 2), scipy.stats.entropy(p, q, base=2, axis=-1), atol=1e-13)
        np.testing.assert_allclose(info.cross_entropy(p, q), info.entropy(p) + D, atol=1e-13)
        np.testing.assert_allclose(info.kl_from_logs(logs(p), logs(q)), D, rtol=1e-10, atol=1e-13)
        theirs = torch.distributions.kl_divergence(
            torch.distributions.Categorical(torch.from_numpy(p)), torch.distributions.Categorical(torch.from_numpy(q))
        )
        np.testing.assert_allclose(D, theirs, atol=1e-12)

    @given(seeds, batches, st.integers(1, 6), st.floats(0, 0.9))
    def test_js_and_total_variation(self, seed, batch, k, zeros):
        p, q = random_pmf(seed, *batch, k, zeros=zeros), random_pmf(seed + 1, k, zeros=zeros)
        J, V = info.js(p, q), info.total_variation(p, q)
        assert np.shape(J) == np.shape(V) == batch
        np.testing.assert_allclose(J, (info.kl(p, (p + q) / 2) + info.kl(q, (p + q) / 2)) / 2, rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(J, info.entropy((p + q) / 2) - (info.entropy(p) + info.entropy(q)) / 2, atol=1e-13)
        np.testing.assert_allclose(
            np.sqrt(J), scipy.spatial.distance.jensenshannon(*np.broadcast_arrays(p, q), axis=-1), atol=1e-7
        )
        np.testing.assert_array_equal(J, info.js(q, p))
        np.testing.assert_allclose(V, np.maximum(p - q, 0).sum(axis=-1), atol=1e-15)
        # Pinsker: TV² ≤ KL/2; Bretagnolle–Huber: TV² ≤ 1 - e^{-KL}; Lin: JS ≤ TV ln 2
        D = info.kl(p, q)
        np.testing.assert_array_less(V**2, np.minimum(D / 2, 1 - np.exp(-D)) + 1e-15)
        np.testing.assert_array_less(J, LN2 * V + 1e-15)

    @given(seeds, st.integers(2, 5))
    def test_data_processing_and_metrics(self, seed, k):
        p, q, r = random_pmf(seed, 3, k)
        W = random_pmf(seed + 1, k, 4)  # a channel: rows sum to 1
        for divergence in (info.kl, info.js, info.total_variation):
            assert divergence(p @ W, q @ W) <= divergence(p, q) + 1e-13
        for metric in (lambda a, b: math.sqrt(info.js(a, b)), info.total_variation):
            assert metric(p, r) <= metric(p, q) + metric(q, r) + 1e-13

    @pytest.mark.parametrize("ε", [1e-3, 1e-6, 1e-8])
    def test_close_laws_keep_their_digits(self, ε):
        # p = ½(1 ± x): KL(p‖½) = Σ_{j≥1} x^{2j}/(2j(2j - 1)), x exact in binary
        x = 2.0 ** round(math.log2(ε))
        p = np.array([0.5 + x / 2, 0.5 - x / 2])
        exact = x**2 / 2 + x**4 / 12 + x**6 / 30
        assert info.kl(p, COIN) == pytest.approx(exact, rel=1e-6, abs=0)
        # JS of ½(1 ± x) and ½(1 ∓ x): both means are the fair coin
        assert info.js(p, p[::-1]) == pytest.approx(exact, rel=1e-6, abs=0)
        assert info.mutual_information(bsc(0.5 - x / 2)) == pytest.approx(exact, rel=1e-6, abs=0)
        assert info.gaussian_kl(0.0, (1 + x) ** 2, 0.0, 1.0) == pytest.approx(x**2, rel=2 * x + 1e-6, abs=0)

    @pytest.mark.parametrize("exponent", [5, 12, 20])
    def test_close_laws_in_decimal_arithmetic(self, exponent):
        rng, x = np.random.default_rng(exponent), 2.0**-exponent
        for _ in range(10):
            p = rng.dirichlet(np.ones(10))
            q = p * (1 + x * rng.uniform(-1, 1, 10))
            q /= q.sum()
            with decimal.localcontext(prec=50):
                P, Q = ([decimal.Decimal(v) for v in law.tolist()] for law in (p, q))
                ratios = [a / b * (sum(Q) / sum(P)) for a, b in zip(P, Q, strict=True)]
                exact = float(sum(a * r.ln() for a, r in zip(P, ratios, strict=True)) / sum(P))
            assert info.kl(p, q) == pytest.approx(exact, rel=1e-14 / x, abs=0)
            assert info.kl_from_logs(np.log(p), np.log(q)) == pytest.approx(exact, rel=4e-14 / x, abs=0)

    def test_smallest_numbers(self):
        p, q = np.array([5e-324, 1.0]), np.array([0.0, 1.0])
        assert info.js(p, q) < 1e-300 and info.kl(p, q) == math.inf
        assert info.kl(np.array([1e-320, 1.0]), COIN) == pytest.approx(LN2)

    def test_from_logs_does_not_clip(self):
        # q = (1 - e^{-5000}, e^{-5000}): KL((½,½)‖q) = -ln 2 + 2500
        log_q = np.array([0.0, -5000.0])
        assert info.kl_from_logs(np.log(COIN), log_q) == pytest.approx(2500 - LN2, rel=1e-15)
        # p underflows as a float, and yet is not zero
        assert info.kl_from_logs(log_q, np.array([0.0, -np.inf])) == math.inf
        assert info.kl_from_logs(log_q, log_q) == 0
        assert info.kl_from_logs(np.array([0.0, -np.inf]), log_q) == 0

    @given(seeds, batches, st.integers(1, 6), st.floats(0, 60))
    def test_from_logs_is_not_negative(self, seed, batch, k, size):
        rng = np.random.default_rng(seed)
        a, b = (log_softmax(size * rng.standard_normal((*batch, k)), axis=-1) for _ in range(2))
        assert np.all(info.kl_from_logs(a, b) >= 0)
        exact = (np.exp(a) * (a - b)).sum(axis=-1)
        np.testing.assert_allclose(info.kl_from_logs(a, b), exact, rtol=1e-9, atol=1e-12)
        near = log_softmax(a + 1e-7 * rng.standard_normal(a.shape), axis=-1)
        # second order: half the variance of the difference
        d = near - a
        p = np.exp(a)
        mean = (p * d).sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(
            info.kl_from_logs(a, near), (p * (d - mean) ** 2).sum(axis=-1) / 2, atol=1e-20, rtol=1e-5
        )

    @pytest.mark.parametrize("function", [info.kl, info.cross_entropy, info.js, info.total_variation])
    def test_leading_axes_broadcast(self, function):
        p, q = random_pmf(0, 3, 1, 4, zeros=0), random_pmf(1, 2, 4, zeros=0)
        value = function(p, q)
        assert value.shape == (3, 2)
        for i, j in np.ndindex(3, 2):
            single = function(p[i, 0], q[j])
            assert isinstance(single, float) and single == pytest.approx(value[i, j], rel=1e-14)
        np.testing.assert_allclose(info.kl_from_logs(np.log(p), np.log(q)), info.kl(p, q), rtol=1e-10)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("function", [info.kl, info.cross_entropy, info.js, info.total_variation])
    def test_bad_input(self, function):
        with pytest.raises(ValueError, match="p must not be negative, got -0.5"):
            function([1.5, -0.5], COIN)
        with pytest.raises(ValueError, match="q must sum to 1 along the last axis, got 0.9999"):
            function(np.ones((3, 4)) / 4, [0.9, 0.0333, 0.0333, 0.0333])
        with pytest.raises(
            ValueError, match=r"p and q must have one length along the last axis, got \(2,\) and \(1,\)"
        ):
            function(COIN, [1.0])
        with pytest.raises(ValueError, match=r"leading axes of p and q must broadcast, got \(3, 2\) and \(2, 2\)"):
            function(np.full((3, 2), 0.5), np.full((2, 2), 0.5))
        with pytest.raises(ValueError, match="p must be finite"):
            function([np.nan, 1], COIN)


class TestBadInput:
    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: info.entropy(1.0), "p must have at least 1 dimension"),
            (lambda: info.entropy([]), "p must not be empty"),
            (lambda: info.entropy([2.0, 2.0]), "p must sum to 1 along the last axis, got 4"),
            (lambda: info.entropy([[0.5, 0.5], [0.5, 0.500002]]), "got 1"),
            (lambda: info.entropy([0.5, 0.5j]), "p must be an array of real numbers"),
            (lambda: info.entropy(COIN, 1), "base must be greater than 1, got 1"),
            (lambda: info.entropy(COIN, 0.5), "base must be greater than 1, got 0.5"),
            (lambda: info.entropy(COIN, "bits"), "base must be a number, got 'bits'"),
            (
                lambda: info.entropy_from_logs([0.0, 0.0]),
                r"exp\(log_p\) must sum to 1 .*, got a sum whose logarithm is 0.69",
            ),
            (lambda: info.entropy_from_logs([-np.inf, -np.inf]), r"exp\(log_p\) must sum to 1 .*, got .* is -inf"),
            (lambda: info.entropy_from_logs([0.0, np.nan]), "log_p must be finite"),
            (lambda: info.entropy_from_logs([0.0, np.inf]), "log_p must be finite"),
            (lambda: info.entropy_from_logs("x"), "log_p must be an array of real numbers"),
            (lambda: info.entropy_from_logs([[0.0], [0.0, 1.0]]), "log_p must be an array of real numbers"),
            (lambda: info.kl_from_logs([0.0], logs(COIN)), "log_p and log_q must have one length"),
            (lambda: info.kl_from_logs(logs(COIN), [0.0, 0.0]), r"exp\(log_q\) must sum to 1"),
            (lambda: info.mutual_information(COIN), "joint must have at least 2 dimension"),
            (lambda: info.mutual_information(np.eye(2)), "joint must sum to 1 along the last two axes, got 2"),
            (lambda: info.mutual_information([[1.5, -0.5]]), "joint must not be negative, got -0.5"),
            (lambda: info.conditional_entropy(np.eye(3)), "joint must sum to 1 along the last two axes, got 3"),
            (lambda: info.gaussian_kl(0.0, 1.0, 0.0, -2.0), "S1 must be positive definite, got the eigenvalue -2"),
            (lambda: info.gaussian_kl(0.0, 0.0, 0.0, 1.0), "S0 must be positive definite, got the eigenvalue 0"),
            (lambda: info.gaussian_entropy([[1.0, 2], [2, 1]]), "S must be positive definite, got the eigenvalue -1"),
            (lambda: info.gaussian_entropy([[1.0, 0.1], [0, 1]]), "S must be symmetric"),
            (lambda: info.gaussian_entropy(np.ones((2, 3))), r"S must be symmetric .*, got shape \(2, 3\)"),
            (lambda: info.gaussian_entropy(np.ones(2)), "S must have at least 2 dimension"),
            (lambda: info.gaussian_kl(np.zeros(3), np.eye(2), 0.0, 1.0), "m0 must have 2 entries as S0 has rows"),
            (
                lambda: info.gaussian_kl(0.0, np.eye(2), 0.0, 1.0),
                "m0 and S0 must be a vector and a matrix or two numbers",
            ),
            (lambda: info.gaussian_kl(np.zeros(2), np.eye(2), 0.0, 1.0), "m0 and m1 must have one length"),
            (
                lambda: info.gaussian_kl(np.zeros((3, 2)), np.eye(2), np.zeros(2), np.stack([np.eye(2)] * 2)),
                "leading axes of m0, S0, m1, S1 must broadcast",
            ),
            (lambda: info.entropy_estimate([0, 0]), "counts must hold at least one observation"),
            (lambda: info.entropy_estimate([[1, 2], [0, 0]]), "counts must hold at least one observation"),
            (lambda: info.entropy_estimate([1, -1]), "counts must be whole numbers .*, got -1"),
            (lambda: info.entropy_estimate([1.5, 1]), "counts must be whole numbers"),
            (lambda: info.expected_plug_in_entropy(COIN, 0), "n must be at least 1, got 0"),
            (lambda: info.expected_plug_in_entropy([0.5], 3), "p must sum to 1"),
            (lambda: info.mutual_information_estimate([1, 2]), "counts must have at least 2 dimension"),
            (lambda: info.mutual_information_estimate(np.zeros((2, 2))), "counts must hold at least one observation"),
            (lambda: info.independence_test(np.ones((2, 2, 2))), "counts must have 2 dimension"),
            (lambda: info.independence_test(np.eye(2), 0), "n_permutations must be at least 1"),
            (lambda: info.predictive_uncertainty(COIN), r"p must have at least 2 dimension"),
            (lambda: info.predictive_uncertainty([[0.5, 0.4]]), "p must sum to 1"),
            (lambda: info.classifier_information(logs(COIN), [0]), "log_p must have 2 dimension"),
            (
                lambda: info.classifier_information([logs(COIN)], [2]),
                r"y must be class numbers 0..1, got values from 2 to 2",
            ),
            (lambda: info.classifier_information([logs(COIN)], [-1]), "y must be class numbers 0..1"),
            (lambda: info.classifier_information([logs(COIN)], [0.5]), "y must be class numbers 0..1"),
            (lambda: info.classifier_information([logs(COIN)], [0, 1]), r"y must have shape \(1\), got \(2,\)"),
            (lambda: info.classifier_information([[0.0, 1.0]], [0]), r"exp\(log_p\) must sum to 1"),
            (lambda: info.fit_temperature([[0.0, 1.0]], [2]), "y must be class numbers 0..1"),
            (lambda: info.fit_temperature([[0.0, -np.inf]], [1]), "logits of the labels must be finite, got -inf"),
            (lambda: info.fit_temperature([[0.0, np.nan]], [0]), "logits must be finite"),
            (lambda: info.reliability([0.5], [2]), "correct must hold 0 and 1 only"),
            (lambda: info.reliability([0.5], [1, 0]), r"correct must have shape \(1\)"),
            (lambda: info.reliability([1.5], [1]), "confidence must be between 0 and 1, got 1.5"),
            (lambda: info.reliability([-0.1], [1]), "confidence must be between 0 and 1, got -0.1"),
            (lambda: info.reliability([0.5], [1], 0), "bins must be at least 1"),
            (lambda: info.reliability([0.5], [1], [0, 0.4]), "bins must be increasing edges around all confidences"),
            (lambda: info.reliability([0.5], [1], [0.6, 1]), "bins must be increasing edges"),
            (lambda: info.reliability([0.5], [1], [0, 0.5, 0.5, 1]), "bins must be increasing edges"),
            (lambda: info.reliability([0.5], [1], [0.5]), "bins must be increasing edges"),
        ],
    )
    def test_message(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestMutualInformation:
    @pytest.mark.parametrize("p", [0, 0.1, 0.11, 0.5, 0.9, 1])
    @pytest.mark.parametrize("q", [0, 0.3, 0.5, 1])
    def test_binary_symmetric_channel(self, p, q):
        # I = h₂(q(1 - p) + p(1 - q)) - h₂(p)
        joint = bsc(p, q)
        exact = h2(q * (1 - p) + p * (1 - q)) - h2(p)
        assert info.mutual_information(joint, 2) == pytest.approx(exact, abs=1e-15)
        assert info.conditional_entropy(joint, 2) == pytest.approx(h2(p), abs=1e-15)

    def test_noisy_coin(self):
        # B6.9
        assert info.mutual_information(bsc(0.1), 2) == pytest.approx(0.531004, abs=5e-7)
        assert info.mutual_information(bsc(0.11), 2) == pytest.approx(0.500084, abs=5e-7)

    def test_disease_and_test(self):
        # B6.1, rows D = 0, 1
        joint = np.array([[0.9702, 0.0198], [0.0005, 0.0095]])
        assert info.entropy(joint.sum(axis=1), 2) == pytest.approx(0.080793, abs=5e-7)
        assert info.conditional_entropy(joint.T, 2) == pytest.approx(0.032814, abs=5e-7)
        assert info.mutual_information(joint, 2) == pytest.approx(0.047979, abs=5e-7)

    @given(seeds, batches, st.integers(1, 4), st.integers(1, 4))
    def test_four_formulas(self, seed, batch, n, m):
        joint = random_pmf(seed, *batch, n * m).reshape(*batch, n, m)
        px, py = joint.sum(axis=-1), joint.sum(axis=-2)
        I = info.mutual_information(joint)  # noqa: E741
        assert np.shape(I) == batch and np.all(I >= 0)
        H_xy = info.entropy(joint.reshape(*batch, -1))
        H_x, H_y = info.entropy(px), info.entropy(py)
        np.testing.assert_allclose(I, H_x + H_y - H_xy, atol=1e-13)
        np.testing.assert_allclose(I, H_y - info.conditional_entropy(joint), atol=1e-13)
        np.testing.assert_allclose(I, H_x - info.conditional_entropy(np.swapaxes(joint, -1, -2)), atol=1e-13)
        product = (px[..., None] * py[..., None, :]).reshape(*batch, -1)
        np.testing.assert_allclose(I, info.kl(joint.reshape(*batch, -1), product), atol=1e-13)
        np.testing.assert_allclose(info.mutual_information(np.swapaxes(joint, -1, -2)), I, atol=1e-13)
        np.testing.assert_allclose(info.conditional_entropy(joint), H_xy - H_x, atol=1e-13)
        assert np.all(np.minimum(H_x, H_y) + 1e-13 >= I)

    @given(seeds, st.integers(1, 5))
    def test_special_cases(self, seed, k):
        p = random_pmf(seed, k)
        assert info.mutual_information(np.diag(p)) == pytest.approx(info.entropy(p), abs=1e-14)  # I(X;X) = H(X)
        assert info.mutual_information(np.outer(p, p)) == pytest.approx(0, abs=1e-25)
        # JS is the information between an outcome and the coin that chose its law
        q = random_pmf(seed + 1, k)
        assert info.mutual_information(np.stack([p, q]) / 2) == pytest.approx(info.js(p, q), rel=1e-12, abs=1e-16)

    def test_data_processing(self):
        rng = np.random.default_rng(0)
        joint = rng.dirichlet(np.ones(12), size=200).reshape(-1, 3, 4)
        W = rng.dirichlet(np.ones(5), size=(200, 4))
        assert np.all(info.mutual_information(joint @ W) <= info.mutual_information(joint) + 1e-14)

    def test_exclusive_or(self):
        # B6.8: X, Y fair and independent, Z = X ⊕ Y: I(X;Y) = 0, I(X;Y|Z) = 1 bit
        given_z = np.stack([np.eye(2), 1 - np.eye(2)]) / 2
        assert info.mutual_information(given_z.mean(axis=0)) == 0
        np.testing.assert_allclose(info.mutual_information(given_z, 2), 1, rtol=1e-15)

    def test_products_that_underflow(self):
        joint = np.array([[1.0, 0.0], [0.0, 1e-200]])
        # I(X;X) = H(X) ≈ -ε ln ε + ε, ε = 1e-200
        assert info.mutual_information(joint) == pytest.approx(1e-200 * (200 * math.log(10) + 1), rel=1e-12, abs=0)


class TestGaussian:
    def test_entropy(self):
        # B6.6
        assert info.gaussian_entropy(1.0) == pytest.approx(1.418939, abs=5e-7)
        assert info.gaussian_entropy(1.0, 2) == pytest.approx(2.047096, abs=1.5e-6)
        assert info.gaussian_entropy(1 / (2 * math.pi * math.e)) == pytest.approx(0, abs=1e-15)

    @given(seeds, batches, st.integers(1, 4))
    def test_entropy_peers(self, seed, batch, d):
        S = random_spd(seed, *batch, d)
        h = info.gaussian_entropy(S)
        assert np.shape(h) == batch
        theirs = torch.distributions.MultivariateNormal(torch.zeros(d, dtype=torch.float64), torch.from_numpy(S))
        np.testing.assert_allclose(h, theirs.entropy(), rtol=1e-10, atol=1e-10)
        A = np.random.default_rng(seed + 1).standard_normal((d, d)) + 3 * np.eye(d)
        moved = A @ S @ A.T
        shift = np.linalg.slogdet(A)[1]
        np.testing.assert_allclose(
            info.gaussian_entropy((moved + np.swapaxes(moved, -1, -2)) / 2), h + shift, atol=1e-9
        )

    @pytest.mark.parametrize(
        ("m0", "S0", "m1", "S1", "expected"),
        [
            # B6.11: P1 = N(0, 1), P2 = N(2, 1), P3 = N(0, 4)
            (0, 1, 2, 1, 2),
            (2, 1, 0, 1, 2),
            (0, 1, 0, 4, 0.318147),
            (0, 4, 0, 1, 0.806853),
            (2, 1, 0, 4, 0.818147),
            (0, 4, 2, 1, 2.806853),
            (0, 9, 0, 1, 2.9014),  # B6.15
        ],
    )
    def test_line(self, m0, S0, m1, S1, expected):
        value = info.gaussian_kl(float(m0), float(S0), float(m1), float(S1))
        assert value == pytest.approx(expected, abs=5e-5 if expected == 2.9014 else 5e-7)
        # ln(s₁/s₀) + (s₀² + δ²)/(2s₁²) - ½
        assert value == pytest.approx(math.log(S1 / S0) / 2 + (S0 + (m0 - m1) ** 2) / (2 * S1) - 0.5, rel=1e-14)
        p = scipy.stats.norm(m0, math.sqrt(S0))
        q = scipy.stats.norm(m1, math.sqrt(S1))
        integral = scipy.integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -30, 30, limit=200)[0]
        assert value == pytest.approx(integral, abs=1e-7)

    @given(seeds, batches, st.integers(1, 4))
    def test_peers(self, seed, batch, d):
        rng = np.random.default_rng(seed)
        m0, m1 = rng.standard_normal((*batch, d)), rng.standard_normal(d)
        S0, S1 = random_spd(seed + 1, d), random_spd(seed + 2, *batch, d)
        D = info.gaussian_kl(m0, S0, m1, S1)
        assert np.shape(D) == batch and np.all(D >= 0)
        normal = lambda m, S: torch.distributions.MultivariateNormal(torch.from_numpy(m), torch.from_numpy(S))  # noqa: E731
        theirs = torch.distributions.kl_divergence(
            normal(m0, np.broadcast_to(S0, (*batch, d, d)).copy()), normal(np.broadcast_to(m1, (*batch, d)).copy(), S1)
        )
        np.testing.assert_allclose(D, theirs, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(info.gaussian_kl(m0, S0, m1, S1, 2), D / LN2, rtol=1e-14)
        assert info.gaussian_kl(m1, S0, m1, S0) == pytest.approx(0, abs=1e-25)

    def test_invariant_under_affine_maps(self):
        rng = np.random.default_rng(0)
        m0, m1, S0, S1 = rng.standard_normal(3), rng.standard_normal(3), random_spd(1, 3), random_spd(2, 3)
        A = rng.standard_normal((3, 3)) + 3 * np.eye(3)
        sym = lambda S: (A @ S @ A.T + (A @ S @ A.T).T) / 2  # noqa: E731
        assert info.gaussian_kl(A @ m0, sym(S0), A @ m1, sym(S1)) == pytest.approx(
            info.gaussian_kl(m0, S0, m1, S1), rel=1e-10
        )

    def test_mutual_information_of_a_pair(self):
        # B6.8: KL(joint‖product) = -½ ln(1 - ρ²)
        rho = np.array([-0.9, 0.0, 1e-5, 0.5])
        S = np.eye(2) + rho[:, None, None] * (1 - np.eye(2))
        np.testing.assert_allclose(
            info.gaussian_kl(np.zeros(2), S, np.zeros(2), np.eye(2)), -np.log1p(-(rho**2)) / 2, rtol=1e-6, atol=1e-30
        )

    def test_extremes(self):
        # ½(r - 1 - ln r), r = S0/S1
        assert info.gaussian_kl(0.0, 1e-250, 0.0, 1.0) == pytest.approx((250 * math.log(10) - 1) / 2, rel=1e-14)
        assert info.gaussian_kl(0.0, 1e200, 0.0, 1e-200) == math.inf
        assert info.gaussian_kl(0.0, 1.0, 1e200, 1.0) == math.inf


def draws(p, n, repeats, seed=0):
    return np.random.default_rng(seed).multinomial(n, p, size=repeats)


class TestEntropyEstimate:
    def test_small_table(self):
        # counts (3, 1): H = ln 4 - ¾ ln 3; two outcomes seen, n = 4: bias ⅛; Var(-ln p) = ¾·¼ (ln 3)²
        estimate = info.entropy_estimate(np.array([3, 1, 0]))
        H = math.log(4) - 0.75 * math.log(3)
        assert estimate.plug_in == pytest.approx(H, rel=1e-15)
        assert estimate.miller_madow == pytest.approx(H + 1 / 8, rel=1e-15)
        assert estimate.std_error == pytest.approx(math.log(3) * math.sqrt(3 / 16 / 4), rel=1e-14)
        bits = info.entropy_estimate(np.array([3, 1, 0]), 2)
        for a, b in zip(
            (bits.plug_in, bits.miller_madow, bits.std_error), (H, H + 1 / 8, estimate.std_error), strict=True
        ):
            assert a == pytest.approx(b / LN2, rel=1e-14)

    @pytest.mark.parametrize("p", [[0.5, 0.5], [0.9, 0.1], [0.2, 0.3, 0.5, 0.0], [1.0, 0.0]])
    @pytest.mark.parametrize("n", [1, 2, 7])
    def test_expectation_by_enumeration(self, p, n):
        p = np.array(p)
        tables = np.stack(np.meshgrid(*[np.arange(n + 1)] * len(p), indexing="ij"), -1).reshape(-1, len(p))
        tables = tables[tables.sum(axis=1) == n]
        weights = scipy.stats.multinomial(n, p).pmf(tables)
        exact = weights @ scipy.stats.entropy(tables, axis=1)
        assert info.expected_plug_in_entropy(p, n) == pytest.approx(exact, abs=1e-14)
        assert info.expected_plug_in_entropy(p, n, 2) == pytest.approx(exact / LN2, abs=1e-14)

    def test_expectation_of_two_coins(self):
        # n = 2, fair: ln 2 with probability ½; n = 1: always 0
        np.testing.assert_allclose(info.expected_plug_in_entropy(np.stack([COIN, SURE]), 2), [LN2 / 2, 0], rtol=1e-14)
        assert info.expected_plug_in_entropy(COIN, 1) == 0

    def test_bias_expansion(self):
        # E Ĥ = H - (k - 1)/(2n) + (1 - Σ 1/p)/(12n²) + O(n⁻³)  (Harris 1975)
        p = np.array([0.5, 0.25, 0.15, 0.1])
        for n in (200, 400):
            rest = info.expected_plug_in_entropy(p, n) - (
                info.entropy(p) - 3 / (2 * n) + (1 - (1 / p).sum()) / (12 * n**2)
            )
            assert abs(rest) < 100 / n**3

    @given(seeds, st.integers(1, 5), st.integers(1, 30))
    def test_grows_with_n(self, seed, k, n):
        p = random_pmf(seed, k)
        a, b = info.expected_plug_in_entropy(p, n), info.expected_plug_in_entropy(p, n + 1)
        assert a <= b + 1e-13 and b <= info.entropy(p) + 1e-13

    def test_means_and_spread(self):
        p, n, repeats = np.array([0.5, 0.25, 0.15, 0.1]), 50, 20_000
        estimate = info.entropy_estimate(draws(p, n, repeats))
        assert estimate.plug_in.shape == estimate.miller_madow.shape == estimate.std_error.shape == (repeats,)
        spread = estimate.plug_in.std()
        assert abs(estimate.plug_in.mean() - info.expected_plug_in_entropy(p, n)) < 5 * spread / math.sqrt(repeats)
        # what remains of the bias: Harris' second order, and outcomes unseen (probability 0.9⁵⁰ = 0.5 % each 1/(2n))
        assert abs(estimate.miller_madow.mean() - info.entropy(p)) < 0.001 + 5 * spread / math.sqrt(repeats)
        assert estimate.std_error.mean() == pytest.approx(spread, rel=0.05)


class TestMutualInformationEstimate:
    def test_small_table(self):
        # [[2, 1], [0, 1]]: p = ½, ¼, 0, ¼; p_x = ¾, ¼, p_y = ½, ½
        estimate = info.mutual_information_estimate(np.array([[2, 1], [0, 1]]))
        terms = np.log([4 / 3, 2 / 3, 2])
        weights = np.array([0.5, 0.25, 0.25])
        I = weights @ terms  # noqa: E741
        assert estimate.plug_in == pytest.approx(I, rel=1e-14)
        assert estimate.miller_madow == pytest.approx(I + (2 + 2 - 3 - 1) / 8, rel=1e-14)
        assert estimate.std_error == pytest.approx(math.sqrt(weights @ (terms - I) ** 2 / 4), rel=1e-14)

    @given(
        hnp.arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.integers(0, 5)),
        st.sampled_from([None, 2]),
    )
    def test_peers(self, counts, base):
        counts[0, 0] += 1
        unit = 1 if base is None else math.log(base)
        estimate = info.mutual_information_estimate(counts, base)
        theirs = sklearn.metrics.mutual_info_score(None, None, contingency=counts)
        assert estimate.plug_in * unit == pytest.approx(theirs, abs=1e-12)
        # the sum of the corrections of three entropies
        parts = [
            info.entropy_estimate(c, base).miller_madow
            for c in (counts.sum(axis=0), counts.sum(axis=1), counts.ravel())
        ]
        assert estimate.miller_madow == pytest.approx(parts[0] + parts[1] - parts[2], abs=1e-12)

    def test_batch(self):
        counts = draws([0.25] * 4, 30, 6).reshape(2, 3, 2, 2)
        estimate = info.mutual_information_estimate(counts, 2)
        assert np.shape(estimate.plug_in) == np.shape(estimate.std_error) == (2, 3)
        single = info.mutual_information_estimate(counts[1, 2], 2)
        for name in ("plug_in", "miller_madow", "std_error"):
            assert getattr(estimate, name)[1, 2] == pytest.approx(getattr(single, name), rel=1e-12, abs=1e-15)

    def test_bias_and_spread(self):
        # independent, all cells possible: (r - 1)(c - 1)/(2n) too high; 2n I is χ² with (r - 1)(c - 1) degrees
        p = np.outer([0.3, 0.7], [0.2, 0.3, 0.5]).ravel()
        n, repeats = 2000, 4000
        estimate = info.mutual_information_estimate(draws(p, n, repeats).reshape(-1, 2, 3))
        se = math.sqrt(2 * 2) / (2 * n) / math.sqrt(repeats)
        assert abs(estimate.plug_in.mean() - 2 / (2 * n)) < 5 * se + 0.02 / (2 * n)
        assert abs(estimate.miller_madow.mean()) < 5 * se + 0.02 / (2 * n)
        dependent = np.array([0.4, 0.1, 0.2, 0.3])
        estimate = info.mutual_information_estimate(draws(dependent, n, repeats).reshape(-1, 2, 2))
        assert estimate.std_error.mean() == pytest.approx(estimate.plug_in.std(), rel=5 / math.sqrt(2 * repeats) + 0.01)


class TestIndependenceTest:
    def test_null_mean_is_exact(self):
        # E[I] over tables of fixed margins, by the hypergeometric law of each cell (as in scikit-learn)
        counts = np.array([[5, 3, 0], [2, 4, 9], [1, 1, 1]])
        test = info.independence_test(counts, 20_000, rng=0)
        assert test.null.shape == (20_000,)
        exact = expected_mutual_information(counts, counts.sum())
        assert abs(test.null.mean() - exact) < 5 * test.null.std() / math.sqrt(20_000)
        assert test.mutual_information == pytest.approx(
            sklearn.metrics.mutual_info_score(None, None, contingency=counts)
        )

    def test_is_shuffling(self):
        x = np.repeat([0, 1, 2], [20, 25, 15])
        y = np.resize([0, 0, 1, 2, 1], 60)
        counts = np.histogram2d(x, y, bins=(3, 3))[0].astype(int)
        test = info.independence_test(counts, 5000, 2, rng=1)
        rng = np.random.default_rng(2)
        shuffled = [sklearn.metrics.mutual_info_score(x, rng.permutation(y)) / LN2 for _ in range(400)]
        assert scipy.stats.ks_2samp(test.null, shuffled).pvalue > 1e-4

    def test_fisher(self):
        # 2 × 2, margins (3, 3) and (3, 3): I is largest for the tables diag(3, 3) and its mirror image: 2/20
        test = info.independence_test(np.diag([3, 3]), 20_000, rng=0)
        assert abs(test.p_value - 0.1) < 5 * math.sqrt(0.1 * 0.9 / 20_000)
        assert test.mutual_information == pytest.approx(LN2)
        assert info.independence_test(np.diag([30, 30]), 99, rng=0).p_value == 0.01

    @pytest.mark.parametrize(
        "counts", [[[1]], [[3, 4]], [[3], [4]], [[3, 0], [4, 0]], [[0, 0], [1, 2]], [[0, 4, 0], [0, 0, 0]]]
    )
    def test_one_row_or_column(self, counts):
        test = info.independence_test(np.array(counts), 50, rng=0)
        np.testing.assert_allclose(test.null, 0, atol=1e-15)
        assert test.mutual_information == pytest.approx(0, abs=1e-15) and test.p_value == 1

    def test_empty_rows_do_not_matter(self):
        counts = np.array([[0, 0, 0], [2, 0, 3], [4, 0, 1]])
        a, b = info.independence_test(counts, 50, rng=3), info.independence_test(counts[1:, ::2], 50, rng=3)
        np.testing.assert_allclose(a.null, b.null, rtol=1e-12)
        assert a.p_value == b.p_value

    def test_rng(self):
        counts = np.array([[5, 3], [2, 4]])
        a, b = (info.independence_test(counts, 20, rng=r) for r in (7, np.random.default_rng(7)))
        np.testing.assert_array_equal(a.null, b.null)

    def test_uniform_p_value(self):
        # under independence P(p ≤ u) ≤ u
        tables = draws(np.outer([0.4, 0.6], [0.3, 0.3, 0.4]).ravel(), 40, 400).reshape(-1, 2, 3)
        p = np.array([info.independence_test(t, 99, rng=i).p_value for i, t in enumerate(tables)])
        for u in (0.05, 0.2, 0.5):
            assert (p <= u).mean() < u + 5 * math.sqrt(u * (1 - u) / 400)


class TestPredictiveUncertainty:
    def test_exact(self):
        # two members that contradict each other: all is disagreement; two that share a coin: all is noise
        a = info.predictive_uncertainty(np.stack([SURE, SURE[::-1]]), 2)
        assert (a.total, a.aleatoric, a.epistemic) == pytest.approx((1, 0, 1), abs=1e-15)
        b = info.predictive_uncertainty(np.stack([COIN] * 3), 2)
        assert (b.total, b.aleatoric, b.epistemic) == pytest.approx((1, 1, 0), abs=1e-15)

    @given(seeds, st.integers(1, 4), batches, st.integers(1, 5))
    def test_decomposition(self, seed, members, batch, k):
        p = random_pmf(seed, members, *batch, k)
        u = info.predictive_uncertainty(p)
        assert np.shape(u.total) == np.shape(u.aleatoric) == np.shape(u.epistemic) == batch
        np.testing.assert_allclose(u.total, u.aleatoric + u.epistemic, atol=1e-13)
        assert np.all(u.epistemic >= 0)
        # information between the outcome and the member, drawn uniformly
        joint = np.moveaxis(p, 0, -2) / members
        np.testing.assert_allclose(u.epistemic, info.mutual_information(joint), rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(u.total, info.entropy(p.mean(axis=0)), atol=1e-14)
        np.testing.assert_allclose(info.predictive_uncertainty(p, 2).epistemic * LN2, u.epistemic, rtol=1e-12)


def sampled_labels(log_p, seed=0):
    """y from the forecasts themselves: a calibrated classifier."""
    return (np.exp(log_p).cumsum(axis=1) > np.random.default_rng(seed).random((len(log_p), 1))).argmax(axis=1)


def some_logits(n=4000, k=5, size=2.0, seed=0):
    return size * np.random.default_rng(seed).standard_normal((n, k))


class TestClassifierInformation:
    def test_exact(self):
        # four images, two classes; forecasts (¾, ¼) right three times, wrong once
        log_p = np.log([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.25, 0.75]])
        c = info.classifier_information(log_p, np.array([0, 0, 1, 0]), 2)
        assert c.label_entropy == pytest.approx(h2(0.25))
        assert c.predictive_entropy == pytest.approx(h2(0.25))
        assert c.cross_entropy == pytest.approx((3 * math.log2(4 / 3) + 2) / 4)
        assert c.plug_in == pytest.approx(0, abs=1e-15)
        assert c.variational == pytest.approx(c.label_entropy - c.cross_entropy)
        # H(Y|Ŷ) = ½·0 + ½·1 bit; Fano: e = ¼, k = 2
        assert c.confusion == pytest.approx(h2(0.25) - 0.5)
        assert c.fano == pytest.approx(h2(0.25) - h2(0.25), abs=1e-15)

    def test_perfect_and_ignorant(self):
        y = np.arange(10) % 5
        perfect = info.classifier_information(logs(np.eye(5)[y]), y, 5)
        assert (perfect.plug_in, perfect.variational, perfect.confusion, perfect.fano) == pytest.approx((1, 1, 1, 1))
        ignorant = info.classifier_information(np.full((10, 5), -math.log(5)), y, 5)
        assert (ignorant.plug_in, ignorant.variational, ignorant.confusion) == pytest.approx((0, 0, 0), abs=1e-12)
        # e = 4/5: h₂(e) + e log 4 = log 5
        assert ignorant.fano == pytest.approx(0, abs=1e-12)
        wrong = info.classifier_information(logs(np.eye(5)[(y + 1) % 5]), y)
        assert wrong.variational == -math.inf and wrong.cross_entropy == math.inf
        assert wrong.plug_in == pytest.approx(math.log(5)) and wrong.confusion == pytest.approx(math.log(5))

    def test_calibrated(self):
        # E[-log p(Y)] = E[H_pred] if Y is drawn from the forecast
        log_p = log_softmax(some_logits(20_000), axis=1)
        y = sampled_labels(log_p)
        c = info.classifier_information(log_p, y)
        se = log_p[np.arange(len(y)), y].std() / math.sqrt(len(y))
        assert abs(c.cross_entropy - c.predictive_entropy) < 5 * se
        assert c.cross_entropy == pytest.approx(sklearn.metrics.log_loss(y, np.exp(log_p)))
        assert c.confusion == pytest.approx(sklearn.metrics.mutual_info_score(y, log_p.argmax(axis=1)))
        # an overconfident copy: the plug-in grows, the bound falls
        loud = info.classifier_information(log_softmax(10 * log_p, axis=1), y)
        assert loud.plug_in > c.plug_in and loud.variational < c.variational
        assert loud.confusion == pytest.approx(c.confusion)

    @given(seeds, st.integers(1, 30), st.integers(1, 4))
    def test_inequalities(self, seed, n, k):
        log_p = log_softmax(some_logits(n, k, seed=seed), axis=1)
        y = np.random.default_rng(seed).integers(k, size=n)
        c = info.classifier_information(log_p, y)
        assert c.fano <= c.confusion + 1e-12 and c.confusion <= c.label_entropy + 1e-12
        assert -1e-12 <= c.predictive_entropy <= math.log(k) + 1e-12
        assert c.plug_in - c.variational == pytest.approx(c.cross_entropy - c.predictive_entropy, abs=1e-12)


class TestFitTemperature:
    def test_two_classes(self):
        # logits (0, a), the second class right in a fraction s: σ(a/T) = s, T = a/ln(s/(1 - s));
        # the standard error of β is that of logit(s)/a: 1/(a √(n s(1 - s)))
        a, n, right = 3.0, 50, 40
        logits = np.tile([0.0, a], (n, 1))
        y = (np.arange(n) < right).astype(int)
        fit = info.fit_temperature(logits, y)
        T = a / math.log(4)
        assert fit.temperature == pytest.approx(T, rel=1e-12)
        assert fit.std_error == pytest.approx(T**2 / (a * math.sqrt(n * 0.8 * 0.2)), rel=1e-10)

    def test_std_error_of_a_wrong_model(self):
        # margins 1 and 4, right in 90 % and 60 %: no temperature fits both, and Var(gradient) is not the curvature.
        # dloss/dβ of one example is a(σ(βa) - y), d²loss/dβ² = a²σ(1 - σ)
        a, y = np.repeat([1.0, 4.0], 50), np.tile(np.arange(50), 2) < np.repeat([45, 30], 50)
        fit = info.fit_temperature(np.column_stack([0 * a, a]), y.astype(int))
        s = scipy.special.expit(a / fit.temperature)
        gradient, curvature = a * (s - y), a**2 * s * (1 - s)
        assert gradient.sum() == pytest.approx(0, abs=1e-11)
        exact = fit.temperature**2 * math.sqrt(np.sum(gradient**2)) / curvature.sum()
        assert fit.std_error == pytest.approx(exact, rel=1e-10)
        assert abs(exact * math.sqrt(curvature.sum()) / fit.temperature**2 - 1) > 0.02  # the other formula differs

    @given(seeds, st.integers(2, 5), st.floats(-8, 8))
    @settings(max_examples=30)
    def test_minimum(self, seed, k, size):
        logits = math.exp(size) * some_logits(60, k, 1, seed)
        y = sampled_labels(log_softmax(logits * math.exp(-size), axis=1), seed)
        T = info.fit_temperature(logits, y).temperature
        assume(0 < T < np.inf)
        loss = lambda beta: -log_softmax(beta * logits, axis=1)[np.arange(60), y].mean()  # noqa: E731
        peer = scipy.optimize.minimize_scalar(lambda s: loss(math.exp(s) / T), bounds=(-1, 1), method="bounded")
        assert peer.fun >= loss(1 / T) - 1e-14 and abs(peer.x) < 1e-3

    @given(seeds, st.floats(0.01, 100), st.floats(-50, 50))
    @settings(max_examples=20)
    def test_equivariant(self, seed, factor, shift):
        logits = some_logits(100, 3, seed=seed)
        y = sampled_labels(log_softmax(logits, axis=1), seed)
        a, b = info.fit_temperature(logits, y), info.fit_temperature(factor * logits + shift, y)
        assert b.temperature == pytest.approx(factor * a.temperature, rel=1e-9)
        assert b.std_error == pytest.approx(factor * a.std_error, rel=1e-7)
        assert info.fit_temperature(log_softmax(logits, axis=1), y).temperature == pytest.approx(
            a.temperature, rel=1e-9
        )

    def test_recovers_the_temperature(self):
        logits = some_logits(5000)
        y = sampled_labels(log_softmax(logits, axis=1))
        fit = info.fit_temperature(7 * logits, y)
        assert abs(fit.temperature - 7) < 5 * fit.std_error < 1.5
        errors = []
        for seed in range(200):
            z = some_logits(200, seed=seed)
            fit = info.fit_temperature(z, sampled_labels(log_softmax(z, axis=1), 1000 + seed))
            errors.append((fit.temperature - 1) / fit.std_error)
        assert np.std(errors) == pytest.approx(1, abs=5 / math.sqrt(400) + 0.05)

    def test_ends(self):
        z = some_logits(50)
        fit = info.fit_temperature(z, z.argmax(axis=1))
        assert fit.temperature == 0 and math.isnan(fit.std_error)
        fit = info.fit_temperature(z, z.argmin(axis=1))
        assert fit.temperature == math.inf and math.isnan(fit.std_error)
        fit = info.fit_temperature(np.zeros((3, 2)), np.array([0, 1, 1]))
        assert fit.temperature == math.inf

    def test_impossible_classes(self):
        # -inf: that class plays no part
        logits, y = np.tile([0.0, 3.0], (50, 1)), (np.arange(50) < 40).astype(int)
        wide = np.column_stack([logits, np.full(50, -np.inf)])
        assert info.fit_temperature(wide, y).temperature == pytest.approx(
            info.fit_temperature(logits, y).temperature, rel=1e-13
        )

    def test_repeated_features(self):
        # B6.3: every feature counted k times multiplies the log-odds by k, and so the temperature
        z = some_logits(2000, 2)
        y = sampled_labels(log_softmax(z, axis=1))
        assert info.fit_temperature(15 * z, y).temperature == pytest.approx(
            15 * info.fit_temperature(z, y).temperature, rel=1e-10
        )


def binomial_mad(n, p):
    """De Moivre: E|S - np| = 2ν C(n, ν) pᵛ(1 - p)^{n - ν + 1}, ν = ⌊np⌋ + 1, in exact arithmetic."""
    nu = math.floor(n * p) + 1
    return float(2 * nu * math.comb(n, nu) * p**nu * (1 - p) ** (n - nu + 1))


class TestReliability:
    def test_exact(self):
        r = info.reliability(np.array([0.3, 0.4, 0.9, 1.0]), np.array([False, True, True, True]), 2)
        np.testing.assert_array_equal(r.edges, [0, 0.5, 1])
        np.testing.assert_array_equal(r.count, [2, 2])
        np.testing.assert_allclose(r.confidence, [0.35, 0.95])
        np.testing.assert_allclose(r.accuracy, [0.5, 1])
        np.testing.assert_allclose(r.std_error, [math.sqrt(0.3 * 0.7 + 0.4 * 0.6) / 2, math.sqrt(0.09) / 2])
        assert r.ece == pytest.approx((2 * 0.15 + 2 * 0.05) / 4)
        # S of (0.3, 0.4): 0, 1, 2 with .42, .46, .12, mean .7; of (0.9, 1): 1, 2 with .1, .9, mean 1.9
        low, high = 0.42 * 0.7 + 0.46 * 0.3 + 0.12 * 1.3, 0.1 * 0.9 + 0.9 * 0.1
        assert r.null_mean == pytest.approx((low + high) / 4)
        assert r.null_std == pytest.approx(math.sqrt(0.45 - low**2 + 0.09 - high**2) / 4)

    def test_last_edge_belongs_to_the_last_bin(self):
        # B6.5: the published figure loses every forecast of confidence 1
        r = info.reliability(np.array([0.0, 0.1, 0.95, 1.0, 1.0]), np.array([0, 0, 1, 0, 1]))
        np.testing.assert_array_equal(r.count, [2, 0, 0, 0, 0, 0, 0, 0, 0, 3])
        assert r.accuracy[-1] == pytest.approx(2 / 3) and np.isnan(r.accuracy[1]) and np.isnan(r.confidence[1])
        assert np.isnan(r.std_error[1])

    @pytest.mark.parametrize(
        ("n", "p"), [(1, Fraction(1, 3)), (10, Fraction(1, 2)), (500, Fraction(9, 10)), (2000, Fraction(1, 7))]
    )
    def test_null_of_equal_confidences(self, n, p):
        r = info.reliability(np.full(n, float(p)), np.ones(n, dtype=int))
        mad = binomial_mad(n, p)
        assert r.null_mean == pytest.approx(mad / n, rel=1e-10)
        assert r.null_std == pytest.approx(math.sqrt(n * p * (1 - p) - mad**2) / n, rel=1e-9)

    @given(seeds, st.integers(1, 60), st.integers(1, 6))
    def test_peers(self, seed, n, bins):
        rng = np.random.default_rng(seed)
        c = np.round(rng.random(n), rng.integers(1, 4))  # some on edges
        hit = rng.integers(2, size=n)
        r = info.reliability(c, hit, bins)
        accuracy, confidence = (
            sklearn.calibration.calibration_curve(hit, c, n_bins=bins) if hit.any() and not hit.all() else (None, None)
        )
        assert r.count.sum() == n
        full = r.count > 0
        if accuracy is not None:
            np.testing.assert_allclose(r.accuracy[full], accuracy)
            np.testing.assert_allclose(r.confidence[full], confidence)
        assert r.ece == pytest.approx(np.sum((r.count * np.abs(r.accuracy - r.confidence))[full]) / n)
        # a sum of means: the law of each bin by the library
        index = np.clip(np.searchsorted(r.edges, c) - 1, 0, bins - 1)
        mad = [
            scipy.stats.poisson_binom(c[index == b]).expect(lambda s, b=b: np.abs(s - c[index == b].sum()))
            for b in np.flatnonzero(full)
        ]
        assert r.null_mean == pytest.approx(sum(mad) / n, rel=1e-9, abs=1e-13)

    def test_null_law(self):
        rng = np.random.default_rng(0)
        c = rng.beta(5, 1, 300)
        hits = rng.random((4000, 300)) < c
        r = info.reliability(c, hits[0], 8)
        ece = np.array([info.reliability(c, h, 8).ece for h in hits[:300]])
        assert abs(ece.mean() - r.null_mean) < 5 * r.null_std / math.sqrt(300)
        assert ece.std() == pytest.approx(r.null_std, rel=5 / math.sqrt(600))
        index = np.searchsorted(r.edges[1:-1], c)
        accuracy = hits[:, index == 7].mean(axis=1)
        assert accuracy.std() == pytest.approx(r.std_error[7], rel=5 / math.sqrt(8000))

    def test_edges(self):
        c = np.random.default_rng(0).random(100)
        edges = np.quantile(c, [0, 0.25, 0.5, 0.75, 1])
        r = info.reliability(c, c > 0.5, edges)
        np.testing.assert_array_equal(r.count, [25, 25, 25, 25])
        listed = info.reliability(c, c > 0.5, [0.0, 0.5, 1.0])
        np.testing.assert_allclose(listed.accuracy, [0, 1])

    def test_certain(self):
        r = info.reliability(np.ones(1000), np.ones(1000, dtype=bool))
        assert r.ece == 0 and r.null_mean == pytest.approx(0, abs=1e-9) and r.null_std == 0
