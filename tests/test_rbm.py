import itertools
import math

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import ising
from coursekit.rbm import RBM

seeds = st.integers(0, 2**32 - 1)
LAYERS = st.integers(1, 5)


def machine(seed, d, m, scale=1.0):
    rng = np.random.default_rng(seed)
    return RBM(*(scale * rng.standard_normal(shape) for shape in ((d, m), d, m)))


def layer(n):
    """All states of n units; bit i of the index is unit i."""
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(float)


def joint(rbm):
    """Probabilities of all (v, h), by the definition."""
    d, m = rbm.W.shape
    energy = [[-rbm.b @ v - rbm.c @ h - v @ rbm.W @ h for h in layer(m)] for v in layer(d)]
    return scipy.special.softmax(-np.array(energy))


class TestLaw:
    @given(seeds, LAYERS, LAYERS)
    def test_energy(self, seed, d, m):
        rbm = machine(seed, d, m)
        for v, h in itertools.product(layer(d)[:4], layer(m)[:4]):
            expected = -sum(rbm.b[i] * v[i] for i in range(d)) - sum(rbm.c[j] * h[j] for j in range(m))
            expected -= sum(v[i] * rbm.W[i, j] * h[j] for i in range(d) for j in range(m))
            assert rbm.energy(v, h) == pytest.approx(expected, abs=1e-13)

    @given(seeds, LAYERS, LAYERS, st.floats(0.1, 20))
    @settings(max_examples=60)
    def test_marginals_and_conditionals(self, seed, d, m, scale):
        rbm = machine(seed, d, m, scale)
        p = joint(rbm)
        log_p = -rbm.free_energy(layer(d)) - rbm.log_z()
        np.testing.assert_allclose(np.exp(log_p), p.sum(axis=1), atol=1e-12)
        some = p.sum(axis=1) > 1e-200  # below, the definition has no digits left
        given_v = p[some] @ layer(m) / p[some].sum(axis=1, keepdims=True)
        np.testing.assert_allclose(rbm.hidden_probability(layer(d)[some]), given_v, atol=1e-11)
        some = p.sum(axis=0) > 1e-200
        given_h = p[:, some].T @ layer(d) / p[:, some].sum(axis=0)[:, None]
        np.testing.assert_allclose(rbm.visible_probability(layer(m)[some]), given_h, atol=1e-11)

    def test_broadcasting(self):
        rbm = machine(1, 4, 3)
        v, h = layer(4)[:12].reshape(3, 4, 4), layer(3)[[1, 5, 2]].reshape(3, 1, 3)
        expected = [[rbm.energy(v[i, j], h[i, 0]) for j in range(4)] for i in range(3)]
        np.testing.assert_allclose(rbm.energy(v, np.broadcast_to(h, (3, 4, 3))), expected, rtol=1e-13)
        assert rbm.free_energy(v).shape == (3, 4) and rbm.hidden_probability(v).shape == (3, 4, 3)

    def test_large_fields(self):
        # log(1 + e^x) must not overflow
        rbm = RBM(np.array([[3000.0]]), np.array([-1000.0]), np.array([-1000.0]))
        assert rbm.free_energy(np.array([1.0])) == pytest.approx(-1000)
        assert rbm.log_z() == pytest.approx(1000)


class TestLogZ:
    @given(seeds, LAYERS, LAYERS)
    def test_both_layers(self, seed, d, m):
        rbm = machine(seed, d, m)
        energy = -layer(d) @ rbm.W @ layer(m).T - (layer(d) @ rbm.b)[:, None] - layer(m) @ rbm.c
        assert rbm.log_z() == pytest.approx(scipy.special.logsumexp(-energy), abs=1e-12)
        assert RBM(rbm.W.T, rbm.c, rbm.b).log_z() == pytest.approx(rbm.log_z(), abs=1e-12)

    def test_independent_units(self):
        # more states than one chunk holds: Π (1 + e^b) Π (1 + e^c)
        rng = np.random.default_rng(2)
        b, c = rng.standard_normal(16), rng.standard_normal(30)
        expected = np.logaddexp(0, b).sum() + np.logaddexp(0, c).sum()
        assert RBM(np.zeros((16, 30)), b, c).log_z() == pytest.approx(expected, rel=1e-13)

    def test_rank_one(self):
        # W = w 1ᵀ without biases: the sum over v depends on the number k of hidden units that are on
        w, m = np.random.default_rng(3).standard_normal(17), 18
        k = np.arange(m + 1)
        terms = np.logaddexp(0, k[:, None] * w).sum(axis=1) + np.log(scipy.special.comb(m, k))
        expected = scipy.special.logsumexp(terms)
        assert RBM(np.tile(w[:, None], (1, m)), np.zeros(17), np.zeros(m)).log_z() == pytest.approx(expected, rel=1e-13)

    def test_too_large(self):
        with pytest.raises(ValueError, match="a layer of at most 20 units"):
            RBM(np.zeros((21, 30)), np.zeros(21), np.zeros(30)).log_z()


class TestToIsing:
    @given(seeds, LAYERS, LAYERS)
    def test_same_energy(self, seed, d, m):
        rbm = machine(seed, d, m)
        J, h, constant = rbm.to_ising()
        units = layer(d + m)
        expected = rbm.energy(units[:, :d], units[:, d:])
        np.testing.assert_allclose(ising.energy(2 * units - 1, J, h) - constant, expected, atol=1e-12)
        assert ising.exact(J, h).log_z + constant == pytest.approx(rbm.log_z(), abs=1e-11)
        assert (J[:d, :d] == 0).all() and (J[d:, d:] == 0).all()


class TestBlockGibbs:
    def test_frequencies(self):
        # the first pair is a draw of P(v | h) and P(h | v) from the hidden layer given v0; then one step more
        rbm = machine(4, 3, 2)
        p = joint(rbm)
        v_given_h, h_given_v = p / p.sum(axis=0), p / p.sum(axis=1, keepdims=True)
        n = 200_000
        v, h = rbm.block_gibbs(np.tile([1.0, 0, 1], (n, 1)), 2, rng=0)
        hidden = h_given_v[5]  # state 101
        for k in range(2):
            visible = v_given_h @ hidden
            expected = visible[:, None] * h_given_v
            index = v[:, k] @ [1, 2, 4], h[:, k] @ [1, 2]
            counts = np.histogram2d(*index, bins=(np.arange(9) - 0.5, np.arange(5) - 0.5))[0]
            error = np.sqrt(expected * (1 - expected) / n) + 1 / n
            assert (np.abs(counts / n - expected) / error).max() < 5
            hidden = expected.sum(axis=0)

    def test_means(self):
        rbm = machine(5, 6, 4)
        p = joint(rbm)
        n = 20_000
        v, h = rbm.block_gibbs(np.zeros((n, 6)), 1, n_warmup=100, rng=1)
        for draws, states, law in ((v, layer(6), p.sum(axis=1)), (h, layer(4), p.sum(axis=0))):
            mean = law @ states
            assert (np.abs(draws.mean(axis=(0, 1)) - mean) < 5 * np.sqrt(mean * (1 - mean) / n)).all()
        energy = rbm.energy(v, h)[:, 0]
        exact = (p * [[rbm.energy(a, b) for b in layer(4)] for a in layer(6)]).sum()
        assert abs(energy.mean() - exact) < 5 * energy.std() / math.sqrt(n)

    def test_records(self):
        rbm = machine(6, 5, 3)
        v0 = np.zeros((4, 5))
        full = rbm.block_gibbs(v0, 11, rng=2)
        some = rbm.block_gibbs(v0, 3, n_warmup=2, record_every=3, rng=2)
        for all_draws, draws in zip(full, some, strict=True):
            np.testing.assert_array_equal(draws, all_draws[:, 4::3])
        assert full[0].shape == (4, 11, 5) and full[1].shape == (4, 11, 3)
        assert set(np.unique(full[0])) | set(np.unique(full[1])) == {0.0, 1.0}
        assert not v0.any()

    @pytest.mark.parametrize(
        ("v0", "sizes", "message"),
        [
            (np.full((1, 2), 0.5), {}, "v0 must hold units 0 or 1"),
            (np.zeros((1, 3)), {}, r"v0 must have shape \(any, 2\)"),
            (np.zeros(2), {}, "v0 must have 2 dimension"),
            (np.zeros((1, 2)), {"n_draws": 0}, "n_draws must be at least 1"),
            (np.zeros((1, 2)), {"n_warmup": -1}, "n_warmup must be at least 0"),
            (np.zeros((1, 2)), {"record_every": 0}, "record_every must be at least 1"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, v0, sizes, message):
        with pytest.raises(ValueError, match=message):
            machine(7, 2, 3).block_gibbs(v0, **({"n_draws": 1} | sizes))


class TestBadInput:
    @pytest.mark.parametrize(
        ("W", "b", "c", "message"),
        [
            (np.zeros((2, 3)), np.zeros(3), np.zeros(3), r"b must have shape \(2\)"),
            (np.zeros((2, 3)), np.zeros(2), np.zeros(2), r"c must have shape \(3\)"),
            (np.zeros(3), np.zeros(1), np.zeros(3), "W must have 2 dimension"),
            (np.full((2, 3), np.nan), np.zeros(2), np.zeros(3), "W must be finite"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_parameters(self, W, b, c, message):
        with pytest.raises(ValueError, match=message):
            RBM(W, b, c)

    @pytest.mark.usefixtures("unchecked")
    def test_units(self):
        rbm = machine(8, 2, 3)
        with pytest.raises(ValueError, match="v must hold 2 units"):
            rbm.free_energy(np.zeros(3))
        with pytest.raises(ValueError, match="h must hold 3 units"):
            rbm.energy(np.zeros(2), np.zeros(2))
        with pytest.raises(ValueError, match="h must hold 3 units"):
            rbm.visible_probability(np.zeros(2))
