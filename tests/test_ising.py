import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import ising, mcmc

seeds = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 7)
CRITICAL = 0.5 * math.log(1 + math.sqrt(2))


def couplings(seed, n, scale=1.0):
    """A random symmetric matrix, about a third of its bonds absent, and fields."""
    rng = np.random.default_rng(seed)
    J = np.triu(scale * rng.standard_normal((n, n)) * (rng.random((n, n)) > 0.3), 1)
    return J + J.T, scale * rng.standard_normal(n)


def spins(seed, *shape):
    return 2.0 * np.random.default_rng(seed).integers(2, size=shape) - 1


def states(x):
    """Index of each configuration in the order of `exact`."""
    return ((x + 1) // 2).astype(int) @ 2 ** np.arange(x.shape[-1])


def within(measured, expected, error):
    assert np.abs((measured - expected) / error).max() < 5


class TestGridCouplings:
    def test_by_hand(self):
        # sites 0 1 2 / 3 4 5
        bonds = {(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)}
        J = ising.grid_couplings(2, 3, 0.7)
        expected = [[0.7 * ((min(i, j), max(i, j)) in bonds) for j in range(6)] for i in range(6)]
        np.testing.assert_array_equal(J, expected)

    @given(st.integers(3, 6), st.integers(3, 6))
    def test_torus(self, rows, cols):
        J = ising.grid_couplings(rows, cols, periodic=True)
        assert (J.sum(axis=0) == 4).all() and set(J.ravel()) == {0, 1} and (J == J.T).all()
        site = np.arange(rows * cols).reshape(rows, cols)
        assert J[site[0, 0], site[-1, 0]] == J[site[0, 0], site[0, -1]] == 1

    def test_torus_of_two_rows(self):
        J = ising.grid_couplings(2, 4, 0.5, periodic=True)
        assert J[0, 4] == 1.0 and J[0, 1] == 0.5 and J[0, 3] == 0.5

    @pytest.mark.parametrize(("rows", "cols", "periodic"), [(0, 3, False), (3, 0, False), (1, 3, True), (3, 1, True)])
    def test_bad_size(self, rows, cols, periodic):
        with pytest.raises(ValueError, match="must be at least"):
            ising.grid_couplings(rows, cols, periodic=periodic)


class TestEnergy:
    @given(seeds, SIZES)
    def test_sum_over_bonds(self, seed, n):
        J, h = couplings(seed, n)
        x = spins(seed, 2, 3, n)
        expected = -sum(J[i, j] * x[..., i] * x[..., j] for i, j in itertools.combinations(range(n), 2)) - x @ h
        np.testing.assert_allclose(ising.energy(x, J, h), expected, atol=1e-13 * (1 + n * n))

    def test_cost_of_a_flip(self):
        J, h = couplings(1, 6)
        x = spins(2, 6)
        for i in range(6):
            y = np.where(np.arange(6) == i, -x, x)
            cost = 2 * x[i] * (J[i] @ x + h[i])
            assert ising.energy(y, J, h) - ising.energy(x, J, h) == pytest.approx(cost, abs=1e-13)

    @pytest.mark.parametrize(
        ("x", "J", "h", "message"),
        [
            ([1.0, 0.0], np.zeros((2, 2)), 0.0, "x must hold spins -1 or 1"),
            ([1.0, 1.0, 1.0], np.zeros((2, 2)), 0.0, "x must hold 2 spins"),
            ([1.0, 1.0], np.array([[0.0, 1.0], [0.5, 0.0]]), 0.0, "J must be symmetric with zero diagonal"),
            ([1.0, 1.0], np.eye(2), 0.0, "J must be symmetric with zero diagonal"),
            ([1.0, 1.0], np.zeros((2, 3)), 0.0, "J must be symmetric with zero diagonal"),
            ([1.0, 1.0], np.zeros((2, 2)), np.zeros(3), r"h must be a number or have shape \(2,\)"),
            ([1.0, 1.0], np.zeros((2, 2)), np.nan, "h must be finite"),
            ([np.nan, 1.0], np.zeros((2, 2)), 0.0, "x must be finite"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, x, J, h, message):
        with pytest.raises(ValueError, match=message):
            ising.energy(np.array(x), J, h)


class TestExact:
    @given(st.integers(3, 10), st.floats(-2, 2))
    def test_ring(self, n, coupling):
        # Z = (2 cosh J)ⁿ + (2 sinh J)ⁿ; neighbours have correlation (t + tⁿ⁻¹)/(1 + tⁿ), t = tanh J
        J = np.roll(np.eye(n), 1, axis=1) * coupling
        law = ising.exact(J + J.T)
        t = math.tanh(coupling)
        assert law.log_z == pytest.approx(n * math.log(2 * math.cosh(coupling)) + math.log1p(t**n), abs=1e-11)
        assert law.correlation[0, 1] == pytest.approx((t + t ** (n - 1)) / (1 + t**n), abs=1e-11)
        np.testing.assert_allclose(law.magnetization, 0, atol=1e-13)

    def test_independent_spins(self):
        h = np.array([0.3, -1.0, 2.0])
        law = ising.exact(np.zeros((3, 3)), h)
        assert law.log_z == pytest.approx(np.log(2 * np.cosh(h)).sum(), rel=1e-14)
        np.testing.assert_allclose(law.magnetization, np.tanh(h), rtol=1e-14)
        np.testing.assert_allclose(law.correlation[0, 1], np.tanh(h[0]) * np.tanh(h[1]), rtol=1e-13)

    @pytest.mark.parametrize(
        ("coupling", "field", "log_z", "mean_energy", "magnetization"),
        [  # the free 3 × 3 grid, from the inventory
            (0.4, 0.0, 7.2676528, -2.1763591, 0.0),
            (0.4, 0.1, 7.4194581, -2.6512454, 0.3276081),
            (1.0, 0.1, 13.1513032, -12.1531561, 0.6853300),
            (0.0, 0.0, 9 * math.log(2), 0.0, 0.0),
        ],
    )
    def test_grid(self, coupling, field, log_z, mean_energy, magnetization):
        law = ising.exact(ising.grid_couplings(3, 3, coupling), field)
        values = law.log_z, law.p @ law.energy, law.magnetization.mean()
        np.testing.assert_allclose(values, (log_z, mean_energy, magnetization), atol=6e-8)

    @given(seeds, SIZES)
    def test_states(self, seed, n):
        J, h = couplings(seed, n)
        law = ising.exact(J, h)
        np.testing.assert_array_equal(states(law.states), np.arange(2**n))
        np.testing.assert_allclose(law.p.sum(), 1, rtol=1e-12)
        np.testing.assert_allclose(np.diag(law.correlation), 1, rtol=1e-12)

    def test_derivative_of_log_z(self):
        # ∂ log Z/∂h_i = ⟨x_i⟩
        J, h = couplings(3, 5)
        step = 1e-5 * np.eye(5)
        slope = [(ising.exact(J, h + e).log_z - ising.exact(J, h - e).log_z) / 2e-5 for e in step]
        np.testing.assert_allclose(slope, ising.exact(J, h).magnetization, atol=1e-9)

    def test_too_large(self):
        with pytest.raises(ValueError, match="at most 20 spins to be enumerated, got 21"):
            ising.exact(np.zeros((21, 21)))


class TestColorClasses:
    @given(seeds, SIZES)
    def test_independent_sets(self, seed, n):
        J, _ = couplings(seed, n)
        classes = ising.color_classes(J)
        assert sorted(np.concatenate(classes)) == list(range(n))
        assert all((J[np.ix_(c, c)] == 0).all() for c in classes)
        # greedy: no more colours than the largest degree and one
        assert len(classes) <= (J != 0).sum(axis=0).max() + 1

    def test_grid_has_two(self):
        assert len(ising.color_classes(ising.grid_couplings(4, 5))) == 2


class TestGibbsMatrix:
    @given(seeds, st.integers(1, 6))
    @settings(max_examples=40)
    def test_stationary(self, seed, n):
        J, h = couplings(seed, n)
        p = ising.exact(J, h).p
        for blocks in (None, [[i] for i in np.random.default_rng(seed).permutation(n)]):
            K = ising.gibbs_matrix(J, h, blocks=blocks)
            np.testing.assert_allclose(K.sum(axis=1), 1, rtol=1e-12)
            np.testing.assert_allclose(p @ K, p, atol=1e-15)

    def test_one_site(self):
        # from any state the spin is up with probability 1/(1 + e^{-2H}), whatever it was
        J, h = couplings(4, 3)
        x = ising.exact(J, h).states
        K = ising.gibbs_matrix(J, h, blocks=[[1]])
        for i, j in itertools.product(range(8), repeat=2):
            same = x[i, 0] == x[j, 0] and x[i, 2] == x[j, 2]
            expected = 1 / (1 + math.exp(-2 * x[j, 1] * (J[1] @ x[i] + h[1]))) if same else 0
            assert K[i, j] == pytest.approx(expected, rel=1e-13)

    def test_order_of_blocks(self):
        J, h = couplings(5, 4)
        first, second = (ising.gibbs_matrix(J, h, blocks=[[i]]) for i in (0, 1))
        np.testing.assert_allclose(ising.gibbs_matrix(J, h, blocks=[[0], [1]]), first @ second, rtol=1e-13)

    def test_random_scan_is_reversible_and_the_sweep_is_not(self):
        J = ising.grid_couplings(3, 3, 0.4)
        p = ising.exact(J).p
        single = [[i] for i in range(9)]
        scan = sum(ising.gibbs_matrix(J, blocks=[block]) for block in single) / 9
        palindrome = ising.gibbs_matrix(J, blocks=single + single[::-1])
        for K in (scan, palindrome):
            np.testing.assert_allclose(p[:, None] * K, (p[:, None] * K).T, atol=1e-16)
        sweep = p[:, None] * ising.gibbs_matrix(J, blocks=single)
        assert np.abs(sweep - sweep.T).max() > 1e-3

    def test_synchronous_update_has_another_law(self):
        # p(x) ∝ e^{hᵀx} Π 2 cosh H_i(x) is stationary for all spins at once; total variation from the inventory
        J = ising.grid_couplings(3, 3, 0.4)
        law = ising.exact(J)
        other = np.cosh(law.states @ J).prod(axis=1)
        other /= other.sum()
        K = ising.gibbs_matrix(J, blocks=[range(9)])
        np.testing.assert_allclose(other @ K, other, atol=1e-16)
        assert 0.5 * np.abs(other - law.p).sum() == pytest.approx(0.488, abs=5e-4)

    def test_too_large(self):
        with pytest.raises(ValueError, match="at most 12 spins"):
            ising.gibbs_matrix(np.zeros((13, 13)))


class TestGibbs:
    @pytest.mark.parametrize("blocks", [None, [[2], [0], [3], [1]], [[0, 1, 2, 3]], [[0, 1], [2, 3], [1]]])
    def test_frequencies_after_two_sweeps(self, blocks):
        J, h = couplings(6, 4, 0.7)
        m = 200_000
        x = ising.gibbs(J, h, np.tile([1.0, -1, -1, 1], (m, 1)), 2, blocks=blocks, rng=0)
        K = ising.gibbs_matrix(J, h, blocks=blocks)
        start = states(np.array([1.0, -1, -1, 1]))
        for k, p in enumerate((K[start], (K @ K)[start])):
            counts = np.bincount(states(x[:, k]), minlength=16)
            within(counts / m, p, np.sqrt(p * (1 - p) / m) + 1 / m)

    def test_records(self):
        J, h = couplings(7, 5)
        x0 = spins(8, 3, 5)
        full = ising.gibbs(J, h, x0, 12, rng=1)
        np.testing.assert_array_equal(ising.gibbs(J, h, x0, 3, n_warmup=3, record_every=3, rng=1), full[:, 5::3])
        assert full.shape == (3, 12, 5)
        np.testing.assert_array_equal(x0, spins(8, 3, 5))

    @pytest.mark.parametrize("blocks", [[[0, 5]], [[-1]], [[0.5]], [[[0, 1]]], [[0, 0]]])
    @pytest.mark.usefixtures("unchecked")
    def test_bad_blocks(self, blocks):
        J, h = couplings(7, 5)
        with pytest.raises(ValueError, match="blocks must be lists of different sites from 0 to 4"):
            ising.gibbs(J, h, spins(8, 3, 5), 1, blocks=blocks)

    @pytest.mark.parametrize(
        "sizes", [{"n_draws": 0}, {"n_draws": 1, "n_warmup": -1}, {"n_draws": 1, "record_every": 0}]
    )
    @pytest.mark.parametrize("sampler", [ising.gibbs, ising.single_flip])
    def test_bad_sizes(self, sampler, sizes):
        with pytest.raises(ValueError, match="must be at least"):
            sampler(np.zeros((2, 2)), 0.0, spins(0, 3, 2), **sizes)


class TestCheckerboard:
    @given(seeds, st.sampled_from([(2, 2), (2, 6), (4, 2), (4, 4), (6, 8)]), st.floats(-1, 1), st.floats(-1, 1))
    @settings(max_examples=60)
    def test_is_gibbs_on_the_torus(self, seed, shape, coupling, field):
        # both draw the black sites row by row from the same stream, then the white ones
        x0 = spins(seed, 3, *shape)
        x = ising.checkerboard_gibbs(coupling, field, x0, 3, n_warmup=1, record_every=2, rng=seed)
        rows, cols = np.indices(shape)
        blocks = [np.flatnonzero(((rows + cols) % 2 == color).ravel()) for color in (0, 1)]
        J = ising.grid_couplings(*shape, coupling, periodic=True)
        options = {"blocks": blocks, "n_warmup": 1, "record_every": 2, "rng": seed}
        expected = ising.gibbs(J, field, x0.reshape(3, -1), 3, **options)
        np.testing.assert_array_equal(x.reshape(3, 3, -1), expected)

    def test_small_torus(self):
        law = ising.exact(ising.grid_couplings(4, 4, 0.3, periodic=True), 0.05)
        m = 20_000
        x = ising.checkerboard_gibbs(0.3, 0.05, np.ones((m, 4, 4)), 1, n_warmup=60, rng=2)
        assert x.dtype == np.int8
        flat = x.reshape(m, 16).astype(float)
        values = ising.energy(flat, ising.grid_couplings(4, 4, 0.3, periodic=True), 0.05)
        within(values.mean(), law.p @ law.energy, values.std() / math.sqrt(m))
        within(flat.mean(), law.magnetization.mean(), flat.mean(axis=1).std() / math.sqrt(m))

    @pytest.mark.parametrize("coupling", [0.3, 0.6])
    def test_onsager(self, coupling):
        # energy of a bond of the infinite lattice, -coth(2J)[1 + (2/π)(2 tanh²2J - 1) K(k)], away from J_c, per 2 bonds
        k = 2 * math.sinh(2 * coupling) / math.cosh(2 * coupling) ** 2
        elliptic = scipy.integrate.quad(lambda a: 1 / math.sqrt(1 - (k * math.sin(a)) ** 2), 0, math.pi / 2)[0]
        bonds = (1 + 2 / math.pi * (2 * math.tanh(2 * coupling) ** 2 - 1) * elliptic) / math.tanh(2 * coupling)
        x = ising.checkerboard_gibbs(coupling, 0.0, np.ones((64, 32, 32)), 20, n_warmup=100, record_every=5, rng=3)
        measured = (x * (np.roll(x, 1, axis=2) + np.roll(x, 1, axis=3))).mean(axis=(1, 2, 3))
        within(measured.mean(), bonds, measured.std() / 8)
        magnetization = x.mean(axis=(1, 2, 3))
        expected = (1 - math.sinh(2 * coupling) ** -4) ** 0.125 if coupling > CRITICAL else 0.0
        # the start is ordered: what is left of it after 100 sweeps at J = 0.3 is far below the error
        within(magnetization.mean(), expected, magnetization.std() / 8)

    def test_correlation_time(self):
        # of |m| on the 4 × 4 torus at the critical coupling, from the sweep as an operator on all 65 536 states:
        # black sites first, so that E[f(next) | now] applies the white ones first. Notebook 07_06b quotes 3.920
        J = ising.grid_couplings(4, 4, CRITICAL, periodic=True)
        law = ising.exact(J)
        up = scipy.special.expit(2 * law.states @ J)
        index, black = np.arange(2**16), np.indices((4, 4)).sum(axis=0).ravel() % 2 == 0
        order = [*np.flatnonzero(~black), *np.flatnonzero(black)]
        f = np.abs(law.states.mean(axis=1))
        f -= law.p @ f
        g, tau = f, 1.0
        for _ in range(60):
            for i in order:
                g = up[:, i] * g[index | 1 << i] + (1 - up[:, i]) * g[index & ~(1 << i)]
            tau += 2 * (law.p @ (f * g)) / (law.p @ f**2)
        assert tau == pytest.approx(3.920, abs=5e-4)
        x = ising.checkerboard_gibbs(CRITICAL, 0.0, np.ones((50, 4, 4)), 4000, n_warmup=100, rng=4)
        # Sokal's error of an integrated time with a window of about 3τ; each chain subtracts its own mean
        error = tau * math.sqrt(2 * (6 * tau + 1) / (50 * 4000))
        assert abs(mcmc.iat(np.abs(x.mean(axis=(2, 3)))) - tau) < 5 * error + tau * (6 * tau + 1) / 4000

    def test_start_is_kept(self):
        x0 = spins(9, 2, 4, 4)
        ising.checkerboard_gibbs(0.4, 0.0, x0, 2, rng=0)
        np.testing.assert_array_equal(x0, spins(9, 2, 4, 4))
        integers = ising.checkerboard_gibbs(0.4, 0.0, x0.astype(np.int8), 2, rng=0)
        np.testing.assert_array_equal(integers, ising.checkerboard_gibbs(0.4, 0.0, x0, 2, rng=0))

    @pytest.mark.parametrize(
        ("x0", "message"),
        [
            (np.ones((1, 3, 4)), "even number of rows and columns"),
            (np.ones((1, 4, 5)), "even number of rows and columns"),
            (np.zeros((1, 4, 4)), "spins -1 or 1"),
            (np.ones((4, 4)), "x0 must have 3 dimension"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_start(self, x0, message):
        with pytest.raises(ValueError, match=message):
            ising.checkerboard_gibbs(0.4, 0.0, x0, 1)

    def test_bad_coupling(self):
        with pytest.raises(ValueError, match="coupling must be finite"):
            ising.checkerboard_gibbs(math.inf, 0.0, np.ones((1, 4, 4)), 1)


class TestSingleFlip:
    @pytest.mark.parametrize("rule", ["metropolis", "heat_bath"])
    def test_frequencies_after_two_moves(self, rule):
        J, h = couplings(10, 3, 0.7)
        law = ising.exact(J, h)
        flips = (law.states @ law.states.T == 1) / 3
        if rule == "metropolis":
            K = mcmc.metropolis_matrix(-law.energy, flips)
        else:
            K = sum(ising.gibbs_matrix(J, h, blocks=[[i]]) for i in range(3)) / 3
        m = 200_000
        chains = ising.single_flip(J, h, np.ones((m, 3)), 2, rule=rule, rng=4)
        for k, p in enumerate((K[7], (K @ K)[7])):
            counts = np.bincount(states(chains.draws[:, k]), minlength=8)
            within(counts / m, p, np.sqrt(p * (1 - p) / m) + 1 / m)

    @pytest.mark.parametrize("rule", ["metropolis", "heat_bath"])
    def test_accept_rate(self, rule):
        # in equilibrium the share of flips is 1 - Σ p_i K_ii for Metropolis and Σ p_i Σ_j q_ij p_j/(p_i + p_j)
        J, h = couplings(11, 3, 0.5)
        law = ising.exact(J, h)
        flips = (law.states @ law.states.T == 1) / 3
        ratio = law.p / law.p[:, None]
        accept = np.minimum(1, ratio) if rule == "metropolis" else ratio / (1 + ratio)
        expected = law.p @ (flips * accept).sum(axis=1)
        rate = ising.single_flip(J, h, np.ones((4000, 3)), 50, n_warmup=60, rule=rule, rng=5).accept_rate
        within(rate.mean(), expected, rate.std() / math.sqrt(4000))

    def test_free_spins_have_period_two(self):
        chains = ising.single_flip(np.zeros((4, 4)), 0.0, np.ones((5, 4)), 8, rng=6)
        assert (chains.accept_rate == 1).all()
        assert (chains.draws.prod(axis=2) == [-1, 1, -1, 1, -1, 1, -1, 1]).all()

    def test_records(self):
        J, h = couplings(12, 4)
        x0 = spins(13, 3, 4)
        full = ising.single_flip(J, h, x0, 20, rng=7)
        some = ising.single_flip(J, h, x0, 4, n_warmup=4, record_every=4, rng=7)
        np.testing.assert_array_equal(some.draws, full.draws[:, 7::4])
        flips = (np.diff(full.draws, axis=1) != 0).any(axis=2)
        np.testing.assert_allclose(some.accept_rate, flips[:, 3:].mean(axis=1))
        np.testing.assert_array_equal(x0, spins(13, 3, 4))

    @pytest.mark.usefixtures("unchecked")
    def test_unknown_rule(self):
        with pytest.raises(ValueError, match="rule must be one of 'metropolis', 'heat_bath', got 'glauber'"):
            ising.single_flip(np.zeros((2, 2)), 0.0, np.ones((1, 2)), 1, rule="glauber")
