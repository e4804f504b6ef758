import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.linear_model
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import ConvergenceWarning, regression

SQUARE = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float)
XOR = np.array([0, 1, 1, 0])
# one binary feature: 10 samples with x = 0, of which 3 are of class 1, and 30 with x = 1, of which 24
BINARY = np.repeat([0.0, 1.0], [10, 30])[:, None]
BINARY_LABELS = np.repeat([1, 0, 1, 0], [3, 7, 24, 6])

shapes = st.tuples(st.integers(1, 12), st.integers(1, 5))
seeds = st.integers(0, 2**32 - 1)


def problem(seed, n, d):
    """Gaussian parameters (d,), features (n, d) and fair labels (n,)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(d), rng.standard_normal((n, d)), rng.integers(0, 2, n)


def overlapping(seed, n=60, d=3):
    """Features and labels that no hyperplane separates: each of the first points comes with both labels."""
    _, X, y = problem(seed, n, d)
    twice = d + 2  # more than d + 1, so that they span all directions
    return np.concatenate([X, X[:twice]]), np.concatenate([y, 1 - y[:twice]])


def with_ones(X):
    return np.column_stack([np.ones(len(X)), X])


def gradient_of_fit(fit, X, y, l2=0.0):
    """Gradient of the penalised loss with respect to (b, w) at the fit."""
    return regression.logistic_gradient(np.append(fit.b, fit.w), with_ones(X), y) + l2 * np.append(0.0, fit.w)


class TestLoss:
    @given(shapes, seeds)
    def test_is_ln_2_at_zero(self, shape, seed):
        _, X, y = problem(seed, *shape)
        assert regression.logistic_loss(np.zeros(shape[1]), X, y) == pytest.approx(math.log(2), rel=1e-15)

    def test_one_sample(self):
        # odds 3 : 1 for class 1, so the loss is ln 4/3 if right and ln 4 if wrong
        X, theta = np.array([[2.0]]), np.array([math.log(3) / 2])
        assert regression.logistic_loss(theta, X, np.array([1])) == pytest.approx(math.log(4 / 3), rel=1e-15)
        assert regression.logistic_loss(theta, X, np.array([0])) == pytest.approx(math.log(4), rel=1e-15)
        # and ŷ - y = -1/4 or 3/4, ŷ(1 - ŷ) = 3/16, times x = 2 and x² = 4
        np.testing.assert_allclose(regression.logistic_gradient(theta, X, np.array([1])), [-1 / 2], rtol=1e-15)
        np.testing.assert_allclose(regression.logistic_gradient(theta, X, np.array([0])), [3 / 2], rtol=1e-15)
        np.testing.assert_allclose(regression.logistic_hessian(theta, X, np.array([0])), [[3 / 4]], rtol=1e-15)

    def test_xor_is_stationary_at_zero(self):
        # ΦᵀΦ = ((4, 2, 2), (2, 2, 1), (2, 1, 2)): (0, 1, -1) has the eigenvalue 1; on its complement (7 ± √33)/2
        Phi, zero = with_ones(SQUARE), np.zeros(3)
        np.testing.assert_allclose(regression.logistic_gradient(zero, Phi, XOR), 0, atol=1e-17)
        np.testing.assert_allclose(
            np.linalg.eigvalsh(regression.logistic_hessian(zero, Phi, XOR)),
            [(7 - math.sqrt(33)) / 32, 1 / 16, (7 + math.sqrt(33)) / 32],
            rtol=1e-13,
        )

    @given(shapes, seeds)
    def test_gradient_and_hessian_are_those_of_torch(self, shape, seed):
        theta, X, y = problem(seed, *shape)

        def loss(parameters):
            return torch.nn.functional.binary_cross_entropy_with_logits(
                torch.tensor(X) @ parameters, torch.tensor(y * 1.0)
            )

        leaf = torch.tensor(theta, requires_grad=True)
        value = loss(leaf)
        value.backward()
        assert regression.logistic_loss(theta, X, y) == pytest.approx(value.item(), rel=1e-13)
        np.testing.assert_allclose(regression.logistic_gradient(theta, X, y), leaf.grad, atol=1e-13)
        hessian = torch.autograd.functional.hessian(loss, torch.tensor(theta))
        np.testing.assert_allclose(regression.logistic_hessian(theta, X, y), hessian, atol=1e-13)

    @given(shapes, seeds)
    def test_derivatives_are_limits_of_differences(self, shape, seed):
        theta, X, y = problem(seed, *shape)
        h = 1e-5 * np.eye(shape[1])  # runs: one for each direction; error about h²/6 · E|x|³ plus 1e-16/h
        slope = (regression.logistic_loss(theta + h, X, y) - regression.logistic_loss(theta - h, X, y)) / 2e-5
        np.testing.assert_allclose(regression.logistic_gradient(theta, X, y), slope, atol=1e-8)
        slope = (regression.logistic_gradient(theta + h, X, y) - regression.logistic_gradient(theta - h, X, y)) / 2e-5
        np.testing.assert_allclose(regression.logistic_hessian(theta, X, y), slope, atol=1e-8)

    @given(shapes, seeds, st.floats(0, 1))
    def test_is_convex_and_smooth(self, shape, seed, weight):
        theta, X, y = problem(seed, *shape)
        ends = np.stack([theta, -3 * theta[::-1]])
        values = regression.logistic_loss(ends, X, y)
        chord = np.array([weight, 1 - weight])
        assert regression.logistic_loss(chord @ ends, X, y) <= chord @ values + 1e-14
        # 0 ⪯ H(θ) ⪯ H(0) = XᵀX/4n
        H = regression.logistic_hessian(theta, X, y)
        assert np.linalg.eigvalsh(H)[0] >= -1e-14
        assert np.linalg.eigvalsh(X.T @ X / (4 * shape[0]) - H)[0] >= -1e-14

    @given(shapes, seeds, st.sampled_from([(3,), (2, 3), (1, 1, 2)]))
    def test_leading_axes_are_runs(self, shape, seed, runs):
        _, X, y = problem(seed, *shape)
        theta = np.random.default_rng(seed).standard_normal((*runs, shape[1]))
        for f, result in [
            (regression.logistic_loss, ()),
            (regression.logistic_gradient, (shape[1],)),
            (regression.logistic_hessian, (shape[1], shape[1])),
        ]:
            batch = f(theta, X, y)
            assert batch.shape == runs + result
            for index in np.ndindex(runs):
                np.testing.assert_allclose(batch[index], f(theta[index], X, y), rtol=1e-12, atol=1e-15)

    def test_extreme_logits_are_exact_and_silent(self):
        X, y = np.array([[1.0], [-1.0], [2.0]]), np.array([1, 0, 1])
        with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
            warnings.simplefilter("error")
            assert regression.logistic_loss(np.array([1e4]), X, y) == 0
            assert regression.logistic_loss(np.array([-1e4]), X, y) == pytest.approx(4e4 / 3, rel=1e-15)
            assert regression.logistic_gradient(np.array([1e4]), X, y) == 0
            np.testing.assert_allclose(regression.logistic_gradient(np.array([-1e4]), X, y), [-4 / 3], rtol=1e-15)
            assert regression.logistic_hessian(np.array([-1e4]), X, y) == 0
            # the gradient of a confident right answer keeps its digits: (e^-40 + e^-40 + 2 e^-80)/3 up to 1 + e^-40
            np.testing.assert_allclose(
                regression.logistic_gradient(np.array([40.0]), X, y), [-2 * math.exp(-40) / 3], rtol=1e-14
            )

    @pytest.mark.parametrize("dtype", [int, bool, float])
    def test_labels_of_any_type(self, dtype):
        theta, X, y = problem(0, 8, 2)
        expected = regression.logistic_gradient(theta, X, y)
        np.testing.assert_array_equal(regression.logistic_gradient(theta, X, y.astype(dtype)), expected)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"theta": np.zeros(3)}, r"theta must have shape \(..., 2\) to fit X, got \(3,\)"),
            ({"theta": 1.0}, r"theta must have 1 dimension"),
            ({"theta": np.array([0.0, np.inf])}, "theta must be finite, got 1 NaN or infinite"),
            ({"X": np.zeros(4)}, r"X must have 2 dimension\(s\), got an array of shape \(4,\)"),
            ({"X": np.zeros((0, 2))}, "X must not be empty"),
            ({"X": np.full((4, 2), np.nan)}, "X must be finite, got 8 NaN"),
            ({"y": np.zeros(3)}, r"y must have shape \(4\), got \(3,\)"),
            ({"y": np.zeros((4, 1))}, r"y must have 1 dimension"),
            ({"y": np.array([1, -1, 1, -1])}, "y must contain only the labels 0 and 1, got -1"),
            ({"y": np.array([0, 1, 0.5, 1])}, "y must contain only the labels 0 and 1, got 0.5"),
            ({"y": np.array([0, 1, np.nan, 1])}, "y must be finite, got 1 NaN"),
        ],
    )
    @pytest.mark.parametrize(
        "function", [regression.logistic_loss, regression.logistic_gradient, regression.logistic_hessian]
    )
    def test_bad_input(self, function, arguments, message):
        with pytest.raises(ValueError, match=message):
            function(**({"theta": np.zeros(2), "X": SQUARE, "y": XOR} | arguments))


class TestLogisticRegression:
    def test_xor_optimum_is_zero(self):
        fit = regression.logistic_regression(SQUARE, XOR)
        np.testing.assert_allclose(np.append(fit.w, fit.b), 0, atol=1e-15)
        assert fit.loss == pytest.approx(math.log(2), rel=1e-15)
        assert not fit.separable and fit.n_iter <= 1

    def test_binary_feature_reproduces_group_frequencies(self):
        fit = regression.logistic_regression(BINARY, BINARY_LABELS)
        assert fit.b == pytest.approx(math.log(3 / 7), rel=1e-13)
        np.testing.assert_allclose(fit.w + fit.b, [math.log(4)], rtol=1e-13)
        # the loss is the conditional entropy of the label
        entropy = (scipy.special.entr([0.3, 0.7]).sum() + 3 * scipy.special.entr([0.8, 0.2]).sum()) / 4
        assert fit.loss == pytest.approx(entropy, rel=1e-14)
        assert not fit.separable

    def test_steps_are_newtons_and_converge_quadratically(self):
        # the two groups decouple: each logit follows z - (σ(z) - p)/σ'(z). With e ≤ ln 2 its error squares at least,
        # as |σ''(ξ)|/2σ'(z) ≤ exp(e)/2 ≤ 1
        p = np.array([0.3, 0.8])
        z, target, errors = np.zeros(2), scipy.special.logit(p), []
        for n_iter in range(1, 4):
            z = z - (scipy.special.expit(z) - p) / (scipy.special.expit(z) * scipy.special.expit(-z))
            with pytest.warns(ConvergenceWarning, match=f"stopped after {n_iter} steps at a gradient of norm"):
                fit = regression.logistic_regression(BINARY, BINARY_LABELS, max_iter=n_iter)
            logits = fit.b + np.append(0.0, fit.w)
            np.testing.assert_allclose(logits, z, rtol=1e-12)
            assert fit.n_iter == n_iter
            errors.append(np.abs(logits - target).max())
        assert errors[0] < math.log(2) and errors[1] <= errors[0] ** 2 and errors[2] <= errors[1] ** 2
        assert regression.logistic_regression(BINARY, BINARY_LABELS).n_iter <= 7

    def test_reported_residual_is_the_gradient_that_is_left(self):
        # one step from 0 takes the intercept of a constant model to 4(p - 1/2) = 1.2 for p = 0.8
        y = np.repeat([1, 0], [8, 2])
        residual = 1 / (1 + math.exp(-1.2)) - 0.8
        with pytest.warns(ConvergenceWarning, match=f"{abs(residual):.1e}"):
            fit = regression.logistic_regression(np.ones((10, 1)), y, max_iter=1)
        assert fit.b == pytest.approx(1.2, rel=1e-14) and fit.w == 0

    @given(seeds, st.integers(1, 4), st.sampled_from([0.0, 1e-3, 1.0, 100.0]))
    def test_gradient_vanishes_at_the_solution(self, seed, d, l2):
        X, y = overlapping(seed, d=d)
        fit = regression.logistic_regression(X, y, l2)
        np.testing.assert_allclose(gradient_of_fit(fit, X, y, l2), 0, atol=1e-14)
        assert fit.loss == pytest.approx(regression.logistic_loss(np.append(fit.b, fit.w), with_ones(X), y), rel=1e-13)
        assert fit.n_iter <= 12

    @given(seeds)
    def test_swapped_labels_change_the_sign(self, seed):
        X, y = overlapping(seed)
        for l2 in (0.0, 0.1):
            fit, swapped = regression.logistic_regression(X, y, l2), regression.logistic_regression(X, 1 - y, l2)
            np.testing.assert_allclose(swapped.w, -fit.w, rtol=1e-10, atol=1e-12)
            assert swapped.b == pytest.approx(-fit.b, rel=1e-10, abs=1e-12)
            assert swapped.loss == pytest.approx(fit.loss, rel=1e-13)

    @given(seeds)
    def test_is_affinely_covariant_without_a_penalty(self, seed):
        # X A + c has the same logits for w' = A^-1 w and b' = b - cᵀw'
        X, y = overlapping(seed)
        rng = np.random.default_rng(seed)
        A = np.linalg.qr(rng.standard_normal((3, 3))).Q * [0.1, 1.0, 10.0] + 0.01
        c = rng.standard_normal(3)
        fit, moved = regression.logistic_regression(X, y), regression.logistic_regression(X @ A + c, y)
        np.testing.assert_allclose(A @ moved.w, fit.w, atol=1e-10)
        assert moved.b + c @ moved.w == pytest.approx(fit.b, abs=1e-10)
        assert moved.loss == pytest.approx(fit.loss, rel=1e-13)

    @given(seeds)
    def test_badly_scaled_and_shifted_features(self, seed):
        X, y = overlapping(seed)
        scale, shift = np.array([1e-6, 1e6, 1.0]), np.array([0.0, 1e10, 1e4])
        fit, moved = regression.logistic_regression(X, y), regression.logistic_regression(X * scale + shift, y)
        np.testing.assert_allclose(moved.w * scale, fit.w, atol=1e-9)  # the shift rounds features to 1e-12
        assert moved.loss == pytest.approx(fit.loss, rel=1e-10)

    @given(seeds, st.sampled_from([1e-12, 1e-3, 1.0]))
    def test_badly_scaled_features_with_a_penalty(self, seed, l2):
        X, y = overlapping(seed)
        scale = np.array([1e-6, 1e6, 1.0])
        fit = regression.logistic_regression(X * scale, y, l2)
        np.testing.assert_allclose(gradient_of_fit(fit, X * scale, y, l2)[1:] / scale, 0, atol=1e-13)

    def test_mean_square_penalty_of_one_step(self):
        # in the limit of a strong penalty w = -∇L(0)/l2 with b at its optimum; here mean y = 1/2, so b = 0
        X, y = np.array([[-2.0], [-1.0], [1.0], [3.0]]), np.array([0, 1, 0, 1])
        fit = regression.logistic_regression(X, y, 1e8)
        np.testing.assert_allclose(fit.w * 1e8, [np.mean(X[:, 0] * (y - 0.5))], rtol=1e-7)
        assert fit.b == pytest.approx(0, abs=1e-7)  # an intercept of order w

    def test_intercept_is_not_penalised(self):
        y = np.repeat([1, 0], [9, 1])
        fit = regression.logistic_regression(np.linspace(-1, 1, 10)[:, None], y, 1e12)
        assert fit.b == pytest.approx(math.log(9), rel=1e-9)

    def test_damping_where_full_steps_diverge(self):
        # four confident clusters, one sample of each mislabelled
        centres, counts = np.array([[34.8, 23.4], [0.0, -0.2], [-44.0, -2.5], [7.7, 11.9]]), [59, 2, 19, 4491]
        X = np.concatenate([np.repeat(centres, counts, axis=0), centres])
        y = np.concatenate([np.repeat([0, 0, 1, 1], counts), [1, 1, 0, 0]])
        theta, losses = np.zeros(3), []
        for _ in range(4):
            H, g = (f(theta, with_ones(X), y) for f in (regression.logistic_hessian, regression.logistic_gradient))
            theta = theta - np.linalg.solve(H, g)
            losses.append(regression.logistic_loss(theta, with_ones(X), y))
        assert losses[-1] > 1e3
        fit = regression.logistic_regression(X, y)
        np.testing.assert_allclose(gradient_of_fit(fit, X, y), 0, atol=1e-13)

    @given(seeds)
    def test_outliers_do_not_break_newton(self, seed):
        rng = np.random.default_rng(seed)
        X = rng.standard_t(1.0, (40, 2))
        X, y = np.concatenate([X, X[:6]]), np.concatenate([y := rng.integers(0, 2, 40), 1 - y[:6]])
        fit = regression.logistic_regression(X, y)
        np.testing.assert_allclose(gradient_of_fit(fit, X, y) / np.append(1.0, X.std(axis=0)), 0, atol=1e-13)

    @given(seeds)
    def test_dependent_columns_share_the_weight(self, seed):
        X, y = overlapping(seed, d=1)
        fit = regression.logistic_regression(X, y)
        # least norm in units of the standard deviations σ, 2σ, 0: w₁σ = w₂ 2σ; 0.3 is constant up to rounding
        constant = np.where(np.arange(len(X)) % 3, 0.3, 0.1 + 0.2)
        shared = regression.logistic_regression(np.column_stack([X, 1e4 - 2 * X, constant]), y)
        np.testing.assert_allclose(shared.w, [fit.w[0] / 2, -fit.w[0] / 4, 0], atol=1e-9)
        assert shared.loss == pytest.approx(fit.loss, rel=1e-12)

    @given(seeds)
    def test_ridge_shares_the_weight_by_scale(self, seed):
        # the penalty w₁² + w₂² with w₁ + 2w₂ = v is v²/5, at w = (v, 2v)/5
        X, y = overlapping(seed, d=1)
        fit = regression.logistic_regression(X, y, 0.01)
        shared = regression.logistic_regression(np.hstack([X, 2 * X]), y, 0.05)
        np.testing.assert_allclose(shared.w, fit.w * np.array([1, 2]) / 5, atol=1e-12)

    def test_more_features_than_samples_with_a_penalty(self):
        _, X, y = problem(1, 5, 20)
        fit = regression.logistic_regression(X, y, 0.1)
        np.testing.assert_allclose(gradient_of_fit(fit, X, y, 0.1), 0, atol=1e-15)
        assert fit.separable  # 5 points in general position span less than 20 dimensions

    @pytest.mark.parametrize("l2", [0.0, 1e-3, 0.5])
    def test_agrees_with_scikit_learn(self, l2):
        X, y = overlapping(2, n=200, d=4)
        fit = regression.logistic_regression(X, y, l2)
        C = np.inf if l2 == 0 else 1 / (len(X) * l2)
        peer = sklearn.linear_model.LogisticRegression(C=C, tol=1e-12, solver="newton-cholesky", max_iter=1000).fit(
            X, y
        )
        np.testing.assert_allclose(fit.w, peer.coef_[0], atol=1e-9)
        assert fit.b == pytest.approx(peer.intercept_[0], abs=1e-9)

    def test_no_other_minimum_is_lower(self):
        X, y = overlapping(3)
        fit = regression.logistic_regression(X, y)
        peer = scipy.optimize.minimize(
            regression.logistic_loss,
            np.zeros(4),
            (with_ones(X), y),
            jac=regression.logistic_gradient,
            method="BFGS",
            options={"gtol": 1e-9},
        )
        assert fit.loss <= peer.fun + 1e-15
        np.testing.assert_allclose(np.append(fit.b, fit.w), peer.x, atol=1e-7)

    @given(seeds, st.integers(1, 4))
    def test_separable_data_warn_and_give_a_separating_direction(self, seed, d):
        direction, X, _ = problem(seed, 30, d)
        y = X @ direction > 0.3
        with pytest.warns(ConvergenceWarning, match="separable: the likelihood has no maximum"):
            fit = regression.logistic_regression(X * 1e3 + 1e4, y)
        logits = (X * 1e3 + 1e4) @ fit.w + fit.b
        assert fit.separable and fit.n_iter == 0
        np.testing.assert_array_equal(logits > 0, y)
        assert np.mean(logits**2) == pytest.approx(1, rel=1e-9)
        assert fit.loss == pytest.approx(np.mean(np.log1p(np.exp(-np.abs(logits)))), rel=1e-9)

    def test_quasi_separable_direction(self):
        # on a line the classes touch at 1: b = -w, all margins of the touching points are 0
        X, y = np.array([[0.0], [1.0], [1.0], [3.0]]), np.array([0, 0, 1, 1])
        with pytest.warns(ConvergenceWarning, match="separable"):
            fit = regression.logistic_regression(X, y)
        np.testing.assert_allclose(X @ fit.w + fit.b, 2 * np.array([-1, 0, 0, 2]) / np.sqrt(5), atol=1e-12)

    def test_one_class(self):
        with pytest.warns(ConvergenceWarning, match="separable"):
            fit = regression.logistic_regression(SQUARE, np.ones(4))
        assert fit.separable and (SQUARE @ fit.w + fit.b > 0).all()

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"X": np.zeros((3, 2))}, r"y must have shape \(3\), got \(4,\)"),
            ({"X": SQUARE * np.nan}, "X must be finite, got 8 NaN"),
            ({"y": XOR + 1}, "y must contain only the labels 0 and 1, got 2"),
            ({"l2": -0.1}, "l2 must be at least 0, got -0.1"),
            ({"l2": np.nan}, "l2 must be at least 0, got nan"),
            ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            regression.logistic_regression(**({"X": SQUARE, "y": XOR} | arguments))


class TestIsSeparable:
    @pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-6, 0.0), (1e6, 0.0), (1.0, 1e4)])
    @pytest.mark.parametrize(("n", "d", "count"), [(4, 2, 14), (6, 2, 32), (6, 3, 52), (5, 1, 10), (4, 3, 16)])
    def test_number_of_dichotomies(self, n, d, count, scale, shift):
        # Cover (1965): of the 2^n labelings of points in general position, 2 Σ_{k≤d} C(n-1, k) are separable
        assert count == 2 * sum(math.comb(n - 1, k) for k in range(d + 1))
        X = SQUARE if (n, d) == (4, 2) else np.random.default_rng(n).standard_normal((n, d))
        X = X * np.geomspace(scale, 1 / scale, d) + shift
        labelings = [np.array(labels) for labels in itertools.product([0, 1], repeat=n)]
        assert sum(regression.is_separable(X, y) for y in labelings) == count

    @settings(max_examples=300)
    @given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 1)), min_size=1, max_size=8))
    def test_on_a_line(self, samples):
        # separable iff the classes meet in one point at most, and not all samples are at it with both labels
        x, y = np.array(samples).T
        if y.min() == y.max():
            expected = True
        else:
            zeros, ones = x[y == 0], x[y == 1]
            expected = bool((zeros.max() <= ones.min() or ones.max() <= zeros.min()) and np.ptp(x))
        for X in (x[:, None] * 1.0, x[:, None] * 1e-6, x[:, None] + 1e4, np.stack([x, 3 - 2 * x], axis=1) / 7):
            assert regression.is_separable(X, y) == expected

    @given(seeds, st.integers(1, 5))
    def test_duplicates_with_both_labels_are_not_separable(self, seed, d):
        _, X, y = problem(seed, 10, d)
        assert not regression.is_separable(np.concatenate([X, X]), np.concatenate([y, 1 - y]))

    @given(seeds)
    def test_duplicates_with_both_labels_and_one_point_off_their_plane(self, seed):
        # the plane of the duplicates has margin 0 for them, and separates the further point from nothing
        _, X, y = problem(seed, 10, 2)
        X = np.column_stack([np.concatenate([X, X, X[:1]]), np.append(np.zeros(20), 1.0)])
        y = np.concatenate([y, 1 - y, [1]])
        assert regression.is_separable(X, y)
        # two further points of different classes on the same side: no more
        assert not regression.is_separable(np.concatenate([X, X[-1:]]), np.append(y, 0))

    @pytest.mark.parametrize("gap", [1e-2, 1e-4, 1e-6, 1e-8])
    @pytest.mark.parametrize("rotation", [0.0, 0.3])
    def test_narrow_gap_and_narrow_overlap(self, gap, rotation):
        rng = np.random.default_rng(5)
        y = np.repeat([0, 1], 50)
        x = (2 * y - 1) * rng.uniform(0.5, 2, 100)
        X = np.column_stack([x, rng.standard_normal(100)])
        turn = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
        for side, expected in [(1, True), (-1, False)]:
            # pairs at two heights leave only nearly vertical lines
            pairs = np.array([[-gap, -2], [gap, -2], [-gap, 2], [gap, 2]]) * [side, 1]
            assert regression.is_separable(np.concatenate([X, pairs]) @ turn, np.append(y, [0, 1, 0, 1])) == expected

    @given(seeds, st.booleans())
    def test_constant_features(self, seed, label):
        assert regression.is_separable(np.full((4, 2), 0.1), np.full(4, label))
        assert not regression.is_separable(np.full((4, 2), 0.1), XOR)

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self):
        with pytest.raises(ValueError, match="y must contain only the labels 0 and 1, got -1"):
            regression.is_separable(SQUARE, 2 * XOR - 1)
        with pytest.raises(ValueError, match="X must be finite"):
            regression.is_separable(np.full((4, 2), np.inf), XOR)


def test_one_class_has_no_minimiser_even_with_a_penalty():
    X = np.random.default_rng(0).standard_normal((30, 2))
    with pytest.warns(ConvergenceWarning, match="only one class"):
        fit = regression.logistic_regression(X, np.ones(30), l2=0.1)
    assert fit.separable and fit.b > 0
