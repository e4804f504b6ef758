import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.signal
import sklearn.decomposition
import sklearn.utils.extmath
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import ConvergenceWarning, linalg

EPS = np.finfo(float).eps
BOOK = np.array([[1, 0, 0, 0, 2], [0, 0, 3, 0, 0], [0, 0, 0, 0, 0], [0, 4, 0, 0, 0]], dtype=float)
RATINGS = np.array([[5, np.nan, 3, 1], [4, 2, np.nan, np.nan], [np.nan, 5, 4, np.nan], [1, np.nan, 2, 3]])
GOLDEN = (1 + np.sqrt(5)) / 2

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 2**32 - 1)


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


class TestSVD:
    def test_exercise_of_the_book(self):
        # eigenvalues of XᵀX are 16, 9, 5, 0, 0 by inspection of its blocks
        dec = linalg.svd(BOOK)
        np.testing.assert_allclose(dec.s, [4, 3, np.sqrt(5), 0], atol=1e-14)
        np.testing.assert_allclose(
            dec.Vt[:3], [np.eye(5)[1], np.eye(5)[2], np.array([1, 0, 0, 0, 2]) / np.sqrt(5)], atol=1e-14
        )
        np.testing.assert_allclose(dec.U[:, :3].T, [np.eye(4)[3], np.eye(4)[1], np.eye(4)[0]], atol=1e-14)
        np.testing.assert_allclose(dec.energy, [16 / 30, 25 / 30, 1, 1], rtol=1e-14)

    def test_shear_has_golden_ratio(self):
        dec = linalg.svd(np.array([[1.0, 1.0], [0.0, 1.0]]))
        np.testing.assert_allclose(dec.s, [GOLDEN, 1 / GOLDEN], rtol=1e-14)

    @given(shapes, seeds)
    def test_factors_are_orthonormal_and_reproduce(self, shape, seed):
        A = gaussian(seed, *shape)
        dec = linalg.svd(A)
        identity = np.eye(min(shape))
        np.testing.assert_allclose(dec.U.T @ dec.U, identity, atol=1e-13)
        np.testing.assert_allclose(dec.Vt @ dec.Vt.T, identity, atol=1e-13)
        np.testing.assert_allclose(dec.reconstruct(), A, atol=1e-13)
        assert (np.diff(dec.s) <= 0).all()

    @given(shapes, seeds, st.data())
    def test_eckart_young(self, shape, seed, data):
        A = gaussian(seed, *shape)
        k = data.draw(st.integers(0, min(shape)))
        s = np.append(scipy.linalg.svdvals(A), 0.0)
        E = A - linalg.svd(A).reconstruct(k)
        assert np.linalg.norm(E, 2) == pytest.approx(s[k], abs=1e-13)
        assert np.linalg.norm(E) == pytest.approx(np.sqrt(np.sum(s[k:] ** 2)), abs=1e-13)

    @given(shapes, seeds)
    def test_signs_do_not_depend_on_the_sign_of_u_and_v(self, shape, seed):
        A = gaussian(seed, *shape)
        dec, flipped = linalg.svd(A), linalg.svd(-A)
        np.testing.assert_allclose(flipped.Vt, dec.Vt, atol=1e-10)
        assert (dec.Vt[np.arange(len(dec.s)), np.abs(dec.Vt).argmax(axis=1)] > 0).all()

    def test_sign_of_a_tie_is_that_of_the_first_entry(self):
        # right singular vectors (1, ±1)/√2: both entries are equally large
        A = np.diag([2.0, 1.0]) @ np.array([[1, -1], [1, 1]]) / np.sqrt(2)
        for noise in (0, 1e-15, -1e-15):
            assert (linalg.svd(A + noise * np.array([[0, 1], [1, 0]])).Vt[:, 0] > 0).all()

    def test_truncated_keeps_the_energy_of_the_whole(self):
        A = gaussian(0, 30, 20)
        np.testing.assert_allclose(linalg.svd(A, 5).energy, linalg.svd(A).energy[:5], rtol=1e-13)

    @pytest.mark.parametrize("shape", [(2000, 20), (20, 2000), (161, 20), (81, 40), (90, 40)])
    def test_leading_terms_of_long_matrices_keep_all_digits(self, shape):
        """s = 1, 10⁻⁹, 10⁻¹⁰, …: rounding turns the second pair by 10⁻⁷, while AᵀA has nothing left of it."""
        rng, n = np.random.default_rng(0), min(shape)
        U, V = (np.linalg.qr(rng.standard_normal((m, n))).Q for m in shape)
        s = np.append(1.0, 10.0 ** np.arange(-9.0, -8.0 - n, -1.0))
        dec = linalg.svd((U * s) @ V.T, rank=3)
        assert dec.U.shape == (shape[0], 3) and dec.Vt.shape == (3, shape[1])
        np.testing.assert_allclose(dec.s, s[:3], atol=1e-14)
        overlaps = np.abs([dec.U[:, 1] @ U[:, 1], dec.Vt[1] @ V[:, 1]])
        np.testing.assert_allclose(overlaps, 1, atol=1e-9)  # 1 - angle²/2
        np.testing.assert_allclose(dec.U.T @ dec.U, np.eye(3), atol=1e-14)
        np.testing.assert_allclose(dec.Vt @ dec.Vt.T, np.eye(3), atol=1e-14)

    def test_zero_matrix(self):
        dec = linalg.svd(np.zeros((3, 2)))
        assert (dec.energy == 1).all() and not dec.reconstruct().any()

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"A": np.array([[1.0, np.nan]])}, "A must be finite, got 1 NaN"),
            ({"A": np.zeros((0, 3))}, "A must not be empty"),
            ({"A": np.zeros(3)}, r"A must have 2 dimension\(s\), got an array of shape \(3,\)"),
            ({"A": "text"}, "A must be an array of real numbers"),
            ({"A": np.eye(2) * 1j}, "A must be an array of real numbers"),
            ({"A": np.eye(3), "rank": 0}, "rank must be between 1 and 3, got 0"),
            ({"A": np.eye(3), "rank": 4}, "rank must be between 1 and 3, got 4"),
            ({"A": np.eye(3), "rank": 1.5}, "rank must be an integer, got 1.5"),
            ({"A": np.eye(3), "rank": True}, "rank must be an integer, got True"),
            ({"A": np.eye(3), "method": "fast"}, "method must be one of 'exact', 'randomized', got 'fast'"),
            ({"A": np.eye(3), "method": "randomized"}, "rank must be given"),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            linalg.svd(**arguments)

    def test_bad_k(self):
        with pytest.raises(ValueError, match="k must be between 0 and 2, got 3"):
            linalg.svd(np.eye(2)).reconstruct(3)


class TestRandomizedSVD:
    @pytest.mark.parametrize("shape", [(80, 30), (30, 80)])
    def test_exact_on_a_matrix_of_that_rank(self, shape):
        A = gaussian(1, shape[0], 6) @ gaussian(2, 6, shape[1])
        dec = linalg.svd(A, 6, method="randomized", rng=0)
        np.testing.assert_allclose(dec.reconstruct(), A, atol=1e-12 * np.linalg.norm(A))
        np.testing.assert_allclose(dec.s, scipy.linalg.svdvals(A)[:6], rtol=1e-12)

    def test_exact_where_the_spectrum_falls_by_many_orders(self):
        s = 10.0 ** -np.arange(0, 20)
        frames = [np.linalg.qr(gaussian(i, n, 20)).Q for i, n in enumerate((60, 40))]
        A = frames[0] * s @ frames[1].T
        error = np.linalg.norm(A - linalg.randomized_svd(A, 12, rng=0).reconstruct(), 2)
        assert error < 1e-12 + 20 * EPS

    @given(shapes, seeds, st.data())
    def test_never_better_than_the_optimum_and_orthonormal(self, shape, seed, data):
        A = gaussian(seed, *shape)
        k = data.draw(st.integers(1, min(shape)))
        dec = linalg.randomized_svd(A, k, oversample=2, n_iter=1, rng=seed)
        optimum = np.sqrt(np.sum(scipy.linalg.svdvals(A)[k:] ** 2))
        assert np.linalg.norm(A - dec.reconstruct()) >= optimum - 1e-12
        np.testing.assert_allclose(dec.U.T @ dec.U, np.eye(k), atol=1e-12)
        np.testing.assert_allclose(dec.Vt @ dec.Vt.T, np.eye(k), atol=1e-12)

    @pytest.mark.parametrize("n_iter", [0, 1, 2])
    def test_mean_error_is_within_its_bound(self, n_iter):
        # E err² / opt² - 1 ≤ Σ_{j>k} s_j^{4q+2} Σ_{i≤k} s_i^{-4q} / ((p-1) Σ_{j>k} s_j²), derived in notebook 01_02;
        # for q = 0 it is the k/(p-1) of Halko, Martinsson and Tropp, theorem 10.5
        k, p, s = 5, 6, 1 / np.arange(1.0, 41)
        A = np.linalg.qr(gaussian(3, 60, 40)).Q * s @ np.linalg.qr(gaussian(4, 40, 40)).Q.T
        optimum = np.sum(s[k:] ** 2)
        fits = [linalg.randomized_svd(A, k, oversample=p, n_iter=n_iter, rng=i) for i in range(200)]
        excess = np.array([(fit.squared_norm - np.sum(fit.s**2)) / optimum - 1 for fit in fits])
        bound = np.sum(s[k:] ** (4 * n_iter + 2)) * np.sum(s[:k] ** (-4.0 * n_iter)) / ((p - 1) * optimum)
        assert excess.mean() <= bound + 5 * excess.std() / np.sqrt(len(fits))
        assert excess.mean() > bound / 200  # and the bound says something

    def test_default_is_within_one_per_cent_on_a_slowly_falling_spectrum(self):
        s = 1 / np.sqrt(np.arange(1.0, 201))
        A = np.linalg.qr(gaussian(5, 400, 200)).Q * s @ np.linalg.qr(gaussian(6, 200, 200)).Q.T
        dec = linalg.svd(A, 20, method="randomized", rng=0)
        assert np.linalg.norm(A - dec.reconstruct()) < 1.01 * np.sqrt(np.sum(s[20:] ** 2))

    def test_agrees_with_scikit_learn(self):
        A = gaussian(7, 50, 8) @ gaussian(8, 8, 40) + 1e-6 * gaussian(9, 50, 40)
        _, s, _ = sklearn.utils.extmath.randomized_svd(A, 8, random_state=0)
        np.testing.assert_allclose(linalg.randomized_svd(A, 8, rng=0).s, s, rtol=1e-9)

    def test_same_seed_same_result(self):
        A = gaussian(0, 20, 10)
        assert (linalg.randomized_svd(A, 3, rng=5).U == linalg.randomized_svd(A, 3, rng=5).U).all()

    @pytest.mark.parametrize("numbers", [{"rank": 11}, {"rank": 3, "oversample": -1}, {"rank": 3, "n_iter": -1}])
    def test_bad_input(self, numbers):
        with pytest.raises(ValueError, match="must be"):
            linalg.randomized_svd(gaussian(0, 20, 10), **numbers)


class TestSVDViaGram:
    @given(st.integers(3, 8), seeds)
    def test_agrees_where_the_condition_is_small(self, n, seed):
        A = gaussian(seed, 3 * n, n)
        np.testing.assert_allclose(linalg.svd_via_gram(A).s, scipy.linalg.svdvals(A), rtol=1e-10)
        np.testing.assert_allclose(linalg.svd_via_gram(A).reconstruct(), A, atol=1e-11)

    def test_loses_what_lies_below_root_epsilon(self):
        # Läuchli: 1 + e² rounds to 1, so AᵀA is the matrix of ones, of rank 1, while A has σ = √(3 + e²), e, e
        e = 1e-9
        A = np.array([[1, 1, 1], [e, 0, 0], [0, e, 0], [0, 0, e]])
        assert len(linalg.svd_via_gram(A).s) == 1
        np.testing.assert_allclose(linalg.svd(A).s, [np.sqrt(3), e, e], atol=1e-15)


def test_participation_ratio():
    assert linalg.participation_ratio(np.full(7, 3.0)) == pytest.approx(7)
    assert linalg.participation_ratio(np.array([5.0, 0, 0])) == 1
    assert linalg.participation_ratio(np.array([2.0, 1.0])) == pytest.approx(9 / 5)
    with pytest.raises(ValueError, match="not all zero"):
        linalg.participation_ratio(np.zeros(3))
    with pytest.raises(ValueError, match="non-negative"):
        linalg.participation_ratio(np.array([1.0, -1e-3]))


class TestPCA:
    def test_covariance_of_a_known_sample(self):
        # four points with covariance diag(4, 1)/2 (divisor n) after a turn by 45°
        turn = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
        X = np.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]]) @ turn.T + [3, 4]
        fit = linalg.pca(X)
        np.testing.assert_allclose(fit.mean, [3, 4], atol=1e-14)
        np.testing.assert_allclose(fit.singular_values**2 / 4, [2, 0.5], rtol=1e-13)
        np.testing.assert_allclose(fit.components[0], np.array([1, 1]) / np.sqrt(2), atol=1e-14)
        np.testing.assert_allclose(fit.explained_variance_ratio, [0.8, 0.2], rtol=1e-13)

    @given(st.integers(2, 10), st.integers(1, 10), seeds)
    def test_round_trip_and_rank(self, n, d, seed):
        X = gaussian(seed, n, d)
        fit = linalg.pca(X)
        np.testing.assert_allclose(fit.inverse_transform(fit.transform(X)), X, atol=1e-12)
        assert np.count_nonzero(fit.singular_values > 1e-10) == min(n - 1, d)
        assert fit.explained_variance_ratio.sum() == pytest.approx(1)

    def test_error_is_the_energy_left_out(self):
        X, new = gaussian(0, 40, 12), gaussian(1, 5, 12)
        full, three = linalg.pca(X), linalg.pca(X, 3)
        error = np.sum((three.inverse_transform(three.transform(new)) - new) ** 2, axis=1)
        np.testing.assert_allclose(error, np.sum(full.transform(new)[:, 3:] ** 2, axis=1), rtol=1e-12)

    def test_agrees_with_scikit_learn(self):
        X = gaussian(2, 30, 8)
        ours, theirs = linalg.pca(X, 4), sklearn.decomposition.PCA(4).fit(X)
        np.testing.assert_allclose(ours.explained_variance_ratio, theirs.explained_variance_ratio_, rtol=1e-12)
        np.testing.assert_allclose(np.abs(np.sum(ours.components * theirs.components_, axis=1)), 1, rtol=1e-12)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="two different rows"):
            linalg.pca(np.ones((5, 3)))
        with pytest.raises(ValueError, match="two different rows, got 1"):
            linalg.pca(np.arange(3.0)[None])
        with pytest.raises(ValueError, match="n_components must be between 1 and 3"):
            linalg.pca(gaussian(0, 5, 3), 4)
        with pytest.raises(ValueError, match=r"X must have shape \(any, 3\), got \(5, 2\)"):
            linalg.pca(gaussian(0, 5, 3)).transform(np.ones((5, 2)))


class TestWhiten:
    @pytest.mark.parametrize("method", ["pca", "zca", "cholesky"])
    @given(st.integers(1, 6), seeds)
    def test_covariance_is_the_identity(self, method, d, seed):
        X = gaussian(seed, 10 * d, d) @ gaussian(seed + 1, d, d) + 5
        result = linalg.whiten(X, method)
        scale = np.linalg.cond(X - X.mean(axis=0))
        np.testing.assert_allclose(result.Z.T @ result.Z / len(X), np.eye(d), atol=1e-13 * scale)
        np.testing.assert_allclose(result.transform(X), result.Z, atol=1e-12 * scale)

    def test_forms_of_the_three_maps(self):
        X = gaussian(0, 200, 4) @ gaussian(1, 4, 4)
        precision = np.linalg.inv(np.cov(X.T, bias=True))
        W = {method: linalg.whiten(X, method).W for method in ("pca", "zca", "cholesky")}
        for matrix in W.values():
            np.testing.assert_allclose(matrix @ matrix.T, precision, rtol=1e-9)
        np.testing.assert_allclose(W["zca"], scipy.linalg.sqrtm(precision), rtol=1e-9)
        np.testing.assert_allclose(W["cholesky"], np.linalg.cholesky(precision), atol=1e-9)
        gram = W["pca"].T @ W["pca"]  # Λ^-1
        np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-12 * np.abs(gram).max())

    def test_agrees_with_scikit_learn(self):
        X = gaussian(3, 50, 3)
        theirs = sklearn.decomposition.PCA(whiten=True).fit_transform(X) * np.sqrt(50 / 49)  # divisor n - 1 there
        np.testing.assert_allclose(np.abs(linalg.whiten(X).Z), np.abs(theirs), rtol=1e-10)

    def test_shrinkage(self):
        X = gaussian(4, 6, 9)
        result = linalg.whiten(X, "zca", shrinkage=0.5)
        expected = np.linalg.inv(np.cov(X.T, bias=True) + 0.5 * np.eye(9))
        np.testing.assert_allclose(result.W @ result.W, expected, atol=1e-12)

    def test_bad_input(self):
        with pytest.raises(ValueError, match="rank 19 of 50"):
            linalg.whiten(gaussian(0, 20, 50))
        constant = np.column_stack([gaussian(0, 30, 2), np.full(30, 1e6)])
        with pytest.raises(ValueError, match="rank 2 of 3"):
            linalg.whiten(constant)
        with pytest.raises(ValueError, match="shrinkage must be at least 0"):
            linalg.whiten(gaussian(0, 5, 2), shrinkage=-1.0)


class TestCompletion:
    seen = ~np.isnan(RATINGS)

    def test_rank_one_of_the_book(self):
        # independent oracle: least squares over the 8 parameters of u vᵀ from several starts
        fit = linalg.hard_impute(RATINGS, self.seen, 1, tol=1e-13)
        residual = lambda w: (np.outer(w[:4], w[4:]) - RATINGS)[self.seen]  # noqa: E731
        starts = np.random.default_rng(0).standard_normal((8, 8))
        best = min(
            (scipy.optimize.least_squares(residual, w, xtol=1e-14, ftol=1e-14) for w in starts), key=lambda r: r.cost
        )
        assert fit.objective[-1] == pytest.approx(2 * best.cost, rel=1e-9)
        np.testing.assert_allclose(fit.X, np.outer(best.x[:4], best.x[4:]), atol=1e-5)

    @given(seeds, st.integers(1, 3))
    @settings(deadline=None, max_examples=20)
    def test_objective_never_rises(self, seed, rank):
        R, seen = gaussian(seed, 6, 5), gaussian(seed + 1, 6, 5) > -0.5
        seen[0, 0] = True
        fit = linalg.hard_impute(R, seen, rank, tol=1e-4)
        assert np.diff(fit.objective).max(initial=0) < 1e-12
        assert np.linalg.matrix_rank(fit.X, tol=1e-9) <= rank

    def test_recovers_a_low_rank_matrix(self):
        rng = np.random.default_rng(0)
        R = rng.standard_normal((60, 2)) @ rng.standard_normal((2, 60))
        fit = linalg.hard_impute(R, rng.random((60, 60)) < 0.4, 2, tol=1e-9)
        assert np.linalg.norm(fit.X - R) < 1e-7 * np.linalg.norm(R)

    @pytest.mark.parametrize("penalty", [0.1, 1.0])
    def test_soft_impute_meets_the_optimality_conditions(self, penalty):
        # 0 ∈ P_Ω(X - R) + λ ∂‖X‖_*: G = P_Ω(R - X)/λ has spectral norm ≤ 1 and ⟨G, X⟩ = ‖X‖_*
        X = linalg.soft_impute(RATINGS, self.seen, penalty, tol=1e-12, max_iter=100_000).X
        G = np.where(self.seen, RATINGS - X, 0) / penalty
        assert np.linalg.norm(G, 2) == pytest.approx(1, abs=1e-7)
        assert np.sum(G * X) == pytest.approx(np.linalg.norm(X, "nuc"), rel=1e-8)

    def test_soft_impute_does_not_depend_on_the_start(self):
        starts = [None, *gaussian(0, 3, 4, 4)]
        fits = [linalg.soft_impute(RATINGS, self.seen, 1.0, start=start) for start in starts]
        for fit in fits[1:]:
            np.testing.assert_allclose(fit.X, fits[0].X, atol=1e-6)

    def test_warns_when_it_stops_early(self):
        with pytest.warns(ConvergenceWarning, match="stopped after 3 sweeps; the last one changed X by"):
            linalg.hard_impute(RATINGS, self.seen, 2, max_iter=3)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda seen: linalg.hard_impute(RATINGS, seen[:2], 1), "boolean mask of R's shape"),
            (lambda seen: linalg.hard_impute(RATINGS, seen.astype(int), 1), "boolean mask"),
            (lambda seen: linalg.hard_impute(RATINGS, np.zeros_like(seen), 1), "at least one True"),
            (lambda seen: linalg.hard_impute(RATINGS, np.ones_like(seen), 1), "observed part of R must be finite"),
            (lambda seen: linalg.hard_impute(RATINGS, seen, 5), "rank must be between 1 and 4"),
            (lambda seen: linalg.hard_impute(RATINGS, seen, 1, start=np.ones((2, 2))), "start must have shape"),
            (lambda seen: linalg.soft_impute(RATINGS, seen, 0.0), "penalty must be greater than 0"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call(self.seen)


class TestWoodbury:
    @given(st.integers(1, 8), st.integers(1, 4), seeds)
    def test_is_the_inverse(self, n, k, seed):
        A, U, C, V = np.eye(n) * 4, gaussian(seed, n, k) / n, gaussian(seed + 1, k, k) / k, gaussian(seed + 2, k, n) / n
        updated = A + U @ C @ V
        inverse = linalg.woodbury_inverse(np.linalg.inv(A), U, C, V)
        np.testing.assert_allclose(inverse @ updated, np.eye(n), atol=1e-12 * np.linalg.cond(updated))

    def test_sherman_morrison_by_hand(self):
        # (I + u vᵀ)^-1 = I - u vᵀ / (1 + vᵀu) with u = (1, 0), v = (1, 1): [[1/2, -1/2], [0, 1]]
        inverse = linalg.woodbury_inverse(np.eye(2), np.array([[1.0], [0.0]]), np.eye(1), np.array([[1.0, 1.0]]))
        np.testing.assert_allclose(inverse, [[0.5, -0.5], [0, 1]], atol=1e-15)

    def test_singular_c_is_no_obstacle(self):
        U = gaussian(0, 5, 2)
        C = np.array([[1.0, 0.0], [0.0, 0.0]])
        inverse = linalg.woodbury_inverse(np.eye(5), U, C, U.T)
        np.testing.assert_allclose(inverse, np.linalg.inv(np.eye(5) + U @ C @ U.T), atol=1e-13)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        e = np.eye(3)[:, :1]
        with pytest.raises(ValueError, match="singular to working precision"):
            linalg.woodbury_inverse(np.eye(3), -e, np.eye(1), e.T)
        with pytest.raises(ValueError, match="singular to working precision"):
            linalg.woodbury_inverse(np.eye(3) / 7, -e / 3, np.array([[21.0]]), e.T)  # 7 - 7, not exact in binary
        for seed in range(30):  # C = -(V A^-1 U)^-1 makes the sum singular, up to the rounding of C
            A, U, V = gaussian(seed, 20, 20), gaussian(seed + 100, 20, 3), gaussian(seed + 200, 3, 20)
            A_inv = np.linalg.inv(A)
            with pytest.raises(ValueError, match="singular to working precision"):
                linalg.woodbury_inverse(A_inv, U, -np.linalg.inv(V @ A_inv @ U), V)
        with pytest.raises(ValueError, match=r"A_inv must have shape \(3, 3\), got \(3, 2\)"):
            linalg.woodbury_inverse(np.ones((3, 2)), e, np.eye(1), e.T)
        with pytest.raises(ValueError, match=r"C must have shape \(1, 1\), got \(2, 2\)"):
            linalg.woodbury_inverse(np.eye(3), e, np.eye(2), e.T)
        with pytest.raises(ValueError, match="A_inv must be finite"):
            linalg.woodbury_inverse(np.full((3, 3), np.inf), e, np.eye(1), e.T)


class TestRandomMatrices:
    def test_goe_moments(self):
        n, draws = 30, 4000
        W = linalg.goe(n, draws, rng=0)
        np.testing.assert_array_equal(W, W.swapaxes(1, 2))
        # variances 2 on and 1 off the diagonal; a variance estimate over m normals has standard error σ²√(2/m)
        diagonal = W[:, np.arange(n), np.arange(n)]
        assert diagonal.var() == pytest.approx(2, abs=5 * 2 * np.sqrt(2 / diagonal.size))
        above = W[:, *np.triu_indices(n, 1)]
        assert above.var() == pytest.approx(1, abs=5 * np.sqrt(2 / above.size))
        # E[W²] = (n+1) I
        square = np.mean(np.sum(W**2, axis=2), axis=1)
        assert square.mean() == pytest.approx(n + 1, abs=5 * square.std() / np.sqrt(draws))
        assert linalg.goe(4, (2, 3), rng=0).shape == (2, 3, 4, 4)

    def test_spiked_wigner_above_the_transition(self):
        values, overlaps = [], []
        for i in range(20):
            A, v = linalg.spiked_wigner(300, 2.0, rng=i)
            assert np.linalg.norm(v) == pytest.approx(1)
            w, V = np.linalg.eigh(A)
            values.append(w[-1])
            overlaps.append((V[:, -1] @ v) ** 2)
        for sample, exact in ((values, 2.5), (overlaps, 0.75)):
            assert np.mean(sample) == pytest.approx(exact, abs=5 * np.std(sample, ddof=1) / np.sqrt(20))

    def test_laws_join_at_the_threshold(self):
        wigner = linalg.bbp_wigner(np.array([0.3, 1.0, 2.0]))
        np.testing.assert_allclose(wigner.eigenvalue, [2, 2, 2.5])
        np.testing.assert_allclose(wigner.overlap, [0, 0, 0.75])
        gamma = 0.25
        law = linalg.bbp_covariance(np.array([0.1, 0.5, 2.0]), gamma)
        np.testing.assert_allclose(law.eigenvalue, [2.25, 2.25, 3 * 1.125])
        np.testing.assert_allclose(law.overlap, [0, 0, (1 - 1 / 16) / (1 + 1 / 8)])

    def test_covariance_spike_against_simulation(self):
        n, d, ell, draws = 400, 100, 3.0, 30
        rng = np.random.default_rng(0)
        values, overlaps = [], []
        for _ in range(draws):
            X = rng.standard_normal((n, d))
            X[:, 0] *= np.sqrt(1 + ell)
            w, V = np.linalg.eigh(X.T @ X / n)
            values.append(w[-1])
            overlaps.append(V[0, -1] ** 2)
        law = linalg.bbp_covariance(ell, d / n)
        for sample, exact in ((values, law.eigenvalue), (overlaps, law.overlap)):
            assert np.mean(sample) == pytest.approx(exact, abs=5 * np.std(sample, ddof=1) / np.sqrt(draws))

    def test_semicircle_moments(self):
        # Catalan numbers: 1, 1, 2
        x = np.linspace(-2, 2, 200_001)
        for power, moment in ((0, 1), (2, 1), (4, 2)):
            assert np.trapezoid(x**power * linalg.semicircle_pdf(x), x) == pytest.approx(moment, abs=1e-6)

    @pytest.mark.parametrize("ratio", [0.1, 0.5, 3.0])
    @pytest.mark.parametrize("variance", [1.0, 2.5])
    def test_marchenko_pastur_moments(self, ratio, variance):
        # mass min(1, 1/γ), mean σ², second moment σ⁴(1 + γ); the substitution resolves the square roots at the edges
        low, high = linalg.marchenko_pastur_edges(ratio, variance)
        phi = np.linspace(0, np.pi, 20_001)
        x = (low + high) / 2 - (high - low) / 2 * np.cos(phi)
        density = linalg.marchenko_pastur_pdf(x, ratio, variance) * (high - low) / 2 * np.sin(phi)
        moments = [np.trapezoid(x**k * density, phi) for k in range(3)]
        np.testing.assert_allclose(moments, [min(1, 1 / ratio), variance, variance**2 * (1 + ratio)], rtol=1e-6)
        assert not linalg.marchenko_pastur_pdf(np.array([-1.0, low - 1e-9, high + 1e-9]), ratio, variance).any()

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            linalg.goe(0)
        with pytest.raises(ValueError, match="strength must be finite"):
            linalg.spiked_wigner(5, np.nan)
        with pytest.raises(ValueError, match="ratio must be greater than 0"):
            linalg.marchenko_pastur_pdf(np.ones(3), 0.0)


class TestConvolution:
    def test_matrix_by_hand(self):
        expected = [[1, 2, 3, 0, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3]]
        np.testing.assert_array_equal(linalg.conv_matrix(np.array([1.0, 2, 3]), 5), expected)

    @given(st.integers(1, 6), st.integers(0, 6), seeds)
    def test_is_correlation_and_its_adjoint_full_convolution(self, m, extra, seed):
        k, x, y = gaussian(seed, m), gaussian(seed + 1, m + extra), gaussian(seed + 2, extra + 1)
        A = linalg.conv_matrix(k, m + extra)
        np.testing.assert_allclose(A @ x, np.correlate(x, k, "valid"), atol=1e-13)
        np.testing.assert_allclose(A.T @ y, np.convolve(y, k, "full"), atol=1e-13)

    def test_image_of_the_book(self):
        # example 1.1.1, by hand; a true (flipped) convolution would give the negative
        x = np.array([[1.0, 2, 3, 0], [4, 5, 6, 1], [7, 8, 9, 0], [1, 0, 2, 3]])
        expected = [[-4, -4, 2], [-4, -4, 6], [7, 6, 6]]
        np.testing.assert_array_equal(linalg.correlate2d(x, np.diag([1.0, -1.0])), expected)

    def test_agrees_with_scipy_over_batches(self):
        x, k = gaussian(0, 2, 3, 7, 6), gaussian(1, 3, 2)
        result = linalg.correlate2d(x, k)
        assert result.shape == (2, 3, 5, 5)
        for i in np.ndindex(2, 3):
            np.testing.assert_allclose(result[i], scipy.signal.correlate2d(x[i], k, mode="valid"), atol=1e-13)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="n must be at least 3, got 2"):
            linalg.conv_matrix(np.ones(3), 2)
        with pytest.raises(ValueError, match="must not exceed the image"):
            linalg.correlate2d(np.ones((2, 5)), np.ones((3, 3)))
