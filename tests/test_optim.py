import itertools
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from coursekit import optim
from coursekit.autodiff import finite_difference

ROSENBROCK = optim.rosenbrock()
DATA = np.random.default_rng(5).standard_normal((30, 2)) + 0.3
seeds = st.integers(0, 2**32 - 1)


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def logistic_gradient(x):
    """Of mean log(1 + exp(-a·x)) + |x|²/20."""
    return -expit(-x @ DATA.T) @ DATA / len(DATA) + x / 10


def symmetric(seed, kappa=20.0, d=5):
    """A symmetric matrix with extreme eigenvalues 1 and κ, with its factors."""
    Q, eigenvalues = np.linalg.qr(gaussian(seed, d, d)).Q, np.linspace(1, kappa, d)
    H = Q * eigenvalues @ Q.T
    return (H + H.T) / 2, Q, eigenvalues


def radius(M):
    return np.abs(np.linalg.eigvals(M)).max(axis=-1)


METHODS = {
    "gd": lambda lr: optim.gradient_descent(lr),
    "momentum": lambda lr: optim.momentum(lr, 0.9),
    "nesterov": lambda lr: optim.nesterov(lr, 0.9),
    "adagrad": lambda lr: optim.adagrad(lr),
    "rmsprop": lambda lr: optim.rmsprop(lr),
    "rmsprop.9": lambda lr: optim.rmsprop(lr, 0.9),
    "adam": lambda lr: optim.adam(lr),
    "adam.5": lambda lr: optim.adam(lr, 0.5, 0.8, 1e-3),
}
PEERS = {
    "gd": lambda p, lr: torch.optim.SGD(p, lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9),
    "nesterov": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True),
    "adagrad": lambda p, lr: torch.optim.Adagrad(p, lr),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr),
    "rmsprop.9": lambda p, lr: torch.optim.RMSprop(p, lr, alpha=0.9),
    "adam": lambda p, lr: torch.optim.Adam(p, lr),
    "adam.5": lambda p, lr: torch.optim.Adam(p, lr, betas=(0.5, 0.8), eps=1e-3),
}


class TestMethods:
    @pytest.mark.parametrize("name", METHODS)
    @pytest.mark.parametrize(
        ("gradient", "start", "lr"), [(ROSENBROCK.gradient, [-1.2, 1.0], 2e-4), (logistic_gradient, [4.0, -3.0], 0.1)]
    )
    def test_agrees_with_torch(self, name, gradient, start, lr):
        path = optim.minimize(gradient, np.array(start), METHODS[name](lr), 100).x
        point = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        peer = PEERS[name]([point], lr)
        theirs = [np.array(start)]
        for _ in range(100):
            point.grad = torch.from_numpy(gradient(point.detach().numpy()))
            peer.step()
            theirs.append(point.detach().numpy().copy())
        np.testing.assert_allclose(path, theirs, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("name", METHODS)
    def test_batch_is_the_loop_over_runs(self, name):
        rates, starts = np.geomspace(1e-6, 1e-4, 20), gaussian(0, 7, 2)
        path = optim.minimize(ROSENBROCK.gradient, starts, METHODS[name](rates[:, None, None]), 60)
        assert path.x.shape == (61, 20, 7, 2) and (path.diverged == -1).all()
        for i, j in itertools.product(range(20), range(7)):
            alone = optim.minimize(ROSENBROCK.gradient, starts[j], METHODS[name](rates[i]), 60)
            np.testing.assert_array_equal(path.x[:, i, j], alone.x)

    def test_array_of_betas(self):
        betas = np.array([[0.0], [0.5], [0.9]])
        for method in (optim.momentum, optim.nesterov, optim.rmsprop):
            path = optim.minimize(ROSENBROCK.gradient, np.zeros(2), method(1e-4, betas), 30)
            for i, beta in enumerate(betas[:, 0]):
                alone = optim.minimize(ROSENBROCK.gradient, np.zeros(2), method(1e-4, beta), 30)
                np.testing.assert_array_equal(path.x[:, i], alone.x)

    @pytest.mark.parametrize("name", METHODS)
    def test_schedule(self, name):
        # a schedule only scales the k-th step: it is given k = 1, 2, …
        seen = []
        gradients = gaussian(1, 5, 3)
        halved, whole = METHODS[name](lambda k: seen.append(k) or 0.1 / k), METHODS[name](0.1)
        states = [method.init(gradients[0]) for method in (halved, whole)]
        for k, g in enumerate(gradients, 1):
            ours, states[0] = halved.update(g, states[0])
            constant, states[1] = whole.update(g, states[1])
            np.testing.assert_allclose(k * ours, constant, rtol=1e-14)
        assert seen == [1, 2, 3, 4, 5]

    def test_scheduled_momentum(self):
        beta = [0.1, 0.4, 0.7, 0.2]
        g = gaussian(0, 4, 1)
        method = optim.momentum(1.0, lambda k: beta[k - 1])
        state = method.init(g[0])
        for k in range(4):
            dx, state = method.update(g[k], state)
        # v₄ = g₄ + β₄(g₃ + β₃(g₂ + β₂ g₁)): β₁ has nothing to act on
        np.testing.assert_allclose(-dx, g[3] + 0.2 * (g[2] + 0.7 * (g[1] + 0.4 * g[0])), rtol=1e-14)

    def test_scheduled_rmsprop(self):
        method = optim.rmsprop(1.0, lambda k: 1 - 1 / k, eps=0)
        g, state = gaussian(0, 6, 2), 0
        state = method.init(g[0])
        for k in range(6):
            dx, state = method.update(g[k], state)
            # with β_k = 1 - 1/k the running mean is the mean of all
            np.testing.assert_allclose(dx, -g[k] / np.sqrt(np.mean(g[: k + 1] ** 2, axis=0)), rtol=1e-14)

    def test_nesterov_is_the_textbook_recursion(self):
        lr, beta = 1e-3, lambda k: (k - 1) / (k + 2)
        path = optim.minimize(ROSENBROCK.gradient, np.array([-1.2, 1.0]), optim.nesterov(lr, beta), 200).x
        x = y = np.array([-1.2, 1.0])
        for k in range(1, 201):
            before, x = x, y - lr * ROSENBROCK.gradient(y)
            y = x + beta(k) * (x - before)
            np.testing.assert_allclose(path[k], y, rtol=1e-11)

    @pytest.mark.parametrize(
        ("method", "first"),
        [
            (optim.adagrad(0.1, eps=0), 0.1),
            (optim.rmsprop(0.1, eps=0), 1.0),  # lr/√(1 - β) = 10 lr
            (optim.rmsprop(0.1, 0.9, eps=0), 0.1 * np.sqrt(10)),
            (optim.rmsprop(0.1, 0.999, eps=0), 0.1 * np.sqrt(1000)),
            (optim.adam(0.1, eps=0), 0.1),
            (optim.adam(0.1, 0.3, 0.6, eps=0), 0.1),
        ],
    )
    def test_size_of_the_first_step(self, method, first):
        g = np.array([[1e-8, -3.0, 1e8]])
        np.testing.assert_allclose(method.update(g, method.init(g))[0], -first * np.sign(g), rtol=1e-13)

    def test_eps_stands_outside_the_root(self):
        g = np.array([2.0])
        for method, root in (
            (optim.adagrad(1.0, eps=0.5), 2),
            (optim.rmsprop(1.0, 0.75, eps=0.5), 1),
            (optim.adam(1.0, eps=0.5), 2),
        ):
            np.testing.assert_allclose(method.update(g, method.init(g))[0], -2 / (root + 0.5), rtol=1e-14)

    def test_adagrad_steps_shrink_like_one_over_root_t(self):
        path = optim.minimize(np.ones_like, np.zeros(1), optim.adagrad(0.1, eps=0), 50).x[:, 0]
        np.testing.assert_allclose(np.diff(path), -0.1 / np.sqrt(np.arange(1, 51)), rtol=1e-12)

    @pytest.mark.parametrize(("lr", "beta", "curvature"), [*itertools.product([0.1, 0.01], [0.9, 0.99], [0.3, 7.0])])
    def test_rmsprop_ends_in_a_two_cycle(self, lr, beta, curvature):
        # B3.15: x = ±lr/2, whatever β and the curvature
        path = optim.minimize(lambda x: curvature * x, np.ones(1), optim.rmsprop(lr, beta, eps=0), 20_000).x[:, 0]
        np.testing.assert_allclose(np.abs(path[-2:]), lr / 2, rtol=1e-9)
        assert path[-1] * path[-2] < 0

    def test_longest_steps_of_adam(self):
        method = optim.adam(1.0, eps=1e-300)

        def last(history):
            state = method.init(np.zeros(1))
            for g in (*np.zeros(15_000), *history):
                dx, state = method.update(np.array([g]), state)
            return -dx[0]

        # B3.15: the supremum, reached by g ∝ (β₁/β₂)^age, and a spike after zeros
        supremum = 0.1 / np.sqrt(0.001 * (1 - 0.81 / 0.999))
        corrected = supremum * np.sqrt(1 - 0.999**15_400)  # after so many gradients
        assert supremum == pytest.approx(7.2703, abs=5e-5)
        geometric = (0.9 / 0.999) ** np.arange(400)[::-1]
        assert last(geometric) == pytest.approx(corrected, rel=1e-12)
        assert last([1.0]) == pytest.approx(3.1623, abs=5e-5)
        for bend in gaussian(0, 2, 400):
            assert last(geometric * (1 + 0.3 * bend)) < corrected

    def test_adam_does_not_see_the_scale_of_the_gradient(self):
        a, b = (
            optim.minimize(lambda x: scale * ROSENBROCK.gradient(x), -np.ones(2), optim.adam(0.01, eps=0), 100).x  # noqa: B023
            for scale in (1.0, 1e-6)
        )
        np.testing.assert_allclose(a, b, rtol=1e-9)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: optim.gradient_descent(0.0), "lr must be greater than 0, got 0"),
            (lambda: optim.gradient_descent(-1.0), "lr must be greater than 0, got -1"),
            (lambda: optim.momentum(np.nan, 0.5), "lr must be greater than 0, got nan"),
            (lambda: optim.adam(np.array([[0.1], [np.inf]])), "lr must be greater than 0"),
            (lambda: optim.adagrad(np.array([0.1, 0.0])), "lr must be greater than 0"),
            (lambda: optim.momentum(0.1, 1.0), "beta must be at least 0 and below 1, got 1"),
            (lambda: optim.nesterov(0.1, -0.1), "beta must be at least 0 and below 1, got -0.1"),
            (lambda: optim.rmsprop(0.1, 1.5), "beta must be at least 0 and below 1, got 1.5"),
            (lambda: optim.adam(0.1, 1.0), "beta1 must be at least 0 and below 1, got 1"),
            (lambda: optim.adam(0.1, 0.9, 1.0), "beta2 must be at least 0 and below 1, got 1"),
            (lambda: optim.adam(0.1, eps=-1.0), "eps must be at least 0, got -1"),
            (lambda: optim.rmsprop(0.1, eps=np.nan), "eps must be at least 0, got nan"),
            (lambda: optim.adagrad(0.1, eps=-1e-9), "eps must be at least 0, got -1e-09"),
            (lambda: optim.gradient_descent("fast"), "lr must be a number, an array or a schedule of numbers"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_a_schedule_is_checked_when_it_is_used(self):
        with pytest.raises(ValueError, match="lr must be greater than 0, got 0"):
            optim.minimize(ROSENBROCK.gradient, np.zeros(2), optim.gradient_descent(lambda k: 1e-3 * (k < 5)), 10)
        with pytest.raises(ValueError, match="beta must be at least 0 and below 1, got 1"):
            optim.minimize(ROSENBROCK.gradient, np.zeros(2), optim.momentum(1e-3, lambda k: k / 5), 10)


class TestRates:
    @given(seeds, st.floats(0.001, 0.12))
    @settings(max_examples=30)
    def test_gradient_descent_on_a_quadratic(self, seed, lr):
        H, Q, eigenvalues = symmetric(seed)
        start = gaussian(seed + 1, 5)
        path = optim.minimize(optim.quadratic(H).gradient, start, optim.gradient_descent(lr), 40)
        exact = [(Q * (1 - lr * eigenvalues) ** t) @ Q.T @ start for t in range(41)]
        scale = np.maximum(1, np.abs(1 - 20 * lr)) ** np.arange(41)[:, None]
        np.testing.assert_allclose(path.x / scale, exact / scale, atol=1e-12)

    def test_step_limit(self):
        f = optim.quadratic(np.diag([1.0, 20.0]))
        lr = np.array([2 - 1e-3, 2.0, 2 + 1e-3])[:, None] / f.smoothness
        x = optim.minimize(f.gradient, np.array([0.0, 1.0]), optim.gradient_descent(lr), 1000).x[-1, :, 1]
        np.testing.assert_allclose(x, np.array([1 - 1e-3, 1, 1 + 1e-3]) ** 1000, rtol=1e-10)

    @pytest.mark.parametrize(
        ("kappa", "rates"),
        # B3.13: gradient descent, heavy ball, Nesterov, Nesterov with the best parameters for quadratics
        [
            (10, (0.81818, 0.51949, 0.68377, 0.64079)),
            (100, (0.98020, 0.81818, 0.90000, 0.88472)),
            (1000, (0.99800, 0.93869, 0.96838, 0.96349)),
        ],
    )
    def test_spectral_radii(self, kappa, rates):
        curvature, root, wide = np.linspace(1, kappa, 4001), np.sqrt(kappa), np.sqrt(3 * kappa + 1)
        parameters = [
            ("momentum", 2 / (kappa + 1), 0.0),
            ("momentum", 4 / (root + 1) ** 2, ((root - 1) / (root + 1)) ** 2),
            ("nesterov", 1 / kappa, (root - 1) / (root + 1)),
            ("nesterov", 4 / (3 * kappa + 1), (wide - 2) / (wide + 2)),
        ]
        exact = [(kappa - 1) / (kappa + 1), (root - 1) / (root + 1), 1 - 1 / root, 1 - 2 / wide]
        ours = [radius(optim.iteration_matrix(method, curvature, lr, beta)).max() for method, lr, beta in parameters]
        np.testing.assert_allclose(exact, rates, atol=6e-6)
        np.testing.assert_allclose(ours, exact, atol=1e-6)  # double eigenvalues: good to √eps

    @pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize(
        ("method", "limit"), [("momentum", lambda b: 2 * (1 + b)), ("nesterov", lambda b: 2 * (1 + b) / (1 + 2 * b))]
    )
    def test_stability_limit(self, method, limit, beta):
        excess = lambda step: radius(optim.iteration_matrix(method, 1.0, step, beta)) - 1  # noqa: E731
        assert scipy.optimize.bisect(excess, 1.0, 4.0, xtol=1e-12) == pytest.approx(limit(beta), abs=1e-9)

    def test_determinants_and_underdamped_heavy_ball(self):
        curvature, lr, beta = np.array([0.5, 3.0])[:, None, None], np.array([0.1, 0.4])[:, None], np.array([0.2, 0.7])
        for method, det in (("momentum", beta + 0 * curvature * lr), ("nesterov", beta * (1 - lr * curvature))):
            M = optim.iteration_matrix(method, curvature, lr, beta)
            assert M.shape == (2, 2, 2, 2, 2)
            np.testing.assert_allclose(np.linalg.det(M), det, atol=1e-14)
        step = np.linspace((1 - np.sqrt(0.5)) ** 2, (1 + np.sqrt(0.5)) ** 2, 50)[1:-1]
        np.testing.assert_allclose(radius(optim.iteration_matrix("momentum", step, 1.0, 0.5)), np.sqrt(0.5), rtol=1e-12)

    @pytest.mark.parametrize("method", ["momentum", "nesterov"])
    def test_powers_of_the_matrix_are_the_path(self, method):
        curvature, lr, beta = 3.0, 0.2, 0.8
        path = optim.minimize(lambda x: curvature * x, np.ones(1), getattr(optim, method)(lr, beta), 30).x[:, 0]
        M = optim.iteration_matrix(method, curvature, lr, beta)
        x, before = np.transpose([np.linalg.matrix_power(M, k) @ [1, 1] for k in range(31)])
        np.testing.assert_allclose(path, x if method == "momentum" else x + beta * (x - before), atol=1e-13)

    def test_worst_case_of_gradient_descent(self):
        steps = np.array([1, 5, 20, 100])
        f = optim.huber(1 / (2 * steps[:, None] + 1))
        path = optim.minimize(f.gradient, np.ones((4, 1)), optim.gradient_descent(1.0), 100)
        reached = [f.value(path.x[T])[i] for i, T in enumerate(steps)]
        np.testing.assert_allclose(reached, 1 / (4 * steps + 2), rtol=1e-14)  # L R²/(4T + 2)
        np.testing.assert_allclose(reached, [0.166667, 0.0454545, 0.0121951, 0.00248756], rtol=3e-6)
        # and no other of these functions is worse
        everything = optim.huber(np.geomspace(1e-3, 2, 200)[:, None])
        path = optim.minimize(everything.gradient, np.ones((200, 1)), optim.gradient_descent(1.0), 100)
        bound = 1 / (4 * np.arange(101) + 2)
        assert (np.stack([everything.value(x) for x in path.x]) <= bound[:, None] * (1 + 1e-12)).all()

    def test_strongly_convex_rate(self):
        H, _, _ = symmetric(3)
        path = optim.minimize(optim.quadratic(H).gradient, gaussian(0, 5), optim.gradient_descent(2 / 21), 60)
        distance = np.linalg.norm(path.x, axis=-1)
        assert (distance[1:] <= distance[:-1] * 19 / 21 * (1 + 1e-12)).all()  # (κ - 1)/(κ + 1)
        assert distance[-1] / distance[-2] == pytest.approx(19 / 21, rel=1e-6)

    @pytest.mark.parametrize(
        ("f", "start"),
        [
            (optim.huber(np.geomspace(1e-3, 1, 100)[:, None]), np.ones((100, 1))),
            (optim.nesterov_worst(101, 101), np.zeros((1, 101))),
            (optim.quadratic(np.diag(np.geomspace(1e-4, 1, 30))), gaussian(0, 10, 30)),
        ],
    )
    def test_bound_of_nesterov(self, f, start):
        lr = 1 / f.smoothness
        path = optim.minimize(f.gradient, start, optim.nesterov(lr, lambda k: (k - 1) / (k + 2)), 150)
        distance2 = ((start - f.minimizer) ** 2).sum(axis=-1)
        for k, y in enumerate(path.x, 1):  # y is y_{k-1}: a gradient step from it leads to x_k
            excess = f.value(y - lr * f.gradient(y)) - f.value(f.minimizer)
            assert (excess <= 2 * f.smoothness * distance2 / (k + 1) ** 2).all()

    def test_sublinear_rate_on_a_quartic(self):
        lr, steps = 0.1, 20_000
        x = optim.minimize(lambda x: 4 * x**3, np.ones(1), optim.gradient_descent(lr), steps).x[-1, 0]
        # 1/x² grows by 8 lr + 48 lr² x² + … a step: f = x⁴ ~ 1/(8 lr t)², from below, up to O(log t/t)
        assert 1 + 8 * lr * steps < x**-2 < 1 + 8 * lr * steps + 12 * lr * np.log(steps)
        assert steps**2 * x**4 == pytest.approx(1 / (8 * lr) ** 2, rel=2e-3)

    def test_cycle_of_the_heavy_ball(self):
        f = optim.lessard()
        # on a cycle with only the second point in the third piece 9x_{k+1} = 13x_k - 4x_{k-1} - 25x_k + 24·[second]
        cycle = np.linalg.solve([[12, 9, 4], [4, 12, 9], [9, 4, 12]], [0, 24, 0])
        np.testing.assert_allclose(cycle, [-1.8024, 2.1159, 0.6465], atol=5e-5)
        path = optim.minimize(f.gradient, np.array([3.3]), optim.momentum(1 / 9, 4 / 9), 600).x[:, 0]
        phase = np.argmin(path[-3:])
        np.testing.assert_allclose(np.roll(path[-3:], -phase), cycle, atol=1e-12)
        for method in (optim.gradient_descent(2 / 26), optim.nesterov(1 / 25, 4 / 6)):
            assert abs(optim.minimize(f.gradient, np.array([3.3]), method, 600).x[-1, 0]) < 1e-12


FUNCTIONS = {
    "quadratic": (optim.quadratic(symmetric(0)[0]), 5),
    "huber": (optim.huber(0.7), 3),
    "nesterov_worst": (optim.nesterov_worst(4, 6), 6),
    "nesterov_worst_full": (optim.nesterov_worst(5, 5), 5),
    "lessard": (optim.lessard(), 1),
    "rosenbrock": (ROSENBROCK, 2),
}


class TestFunctions:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_gradient_is_the_derivative(self, name):
        f, d = FUNCTIONS[name]
        x = 1.5 * gaussian(0, 20, d)
        expected = [finite_difference(f.value, point) for point in x]
        np.testing.assert_allclose(f.gradient(x), expected, rtol=1e-7, atol=1e-7)
        assert f.value(x).shape == (20,)
        np.testing.assert_allclose(f.gradient(f.minimizer), 0, atol=1e-15)

    @pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "rosenbrock"])
    def test_constants(self, name):
        f, d = FUNCTIONS[name]
        x, y = 2 * gaussian(1, 2, 5000, d)
        slope, dg = x - y, f.gradient(x) - f.gradient(y)
        along = (dg * slope).sum(axis=-1)
        assert (along >= f.strong_convexity * (slope**2).sum(axis=-1) * (1 - 1e-9) - 1e-12).all()
        assert ((dg**2).sum(axis=-1) <= f.smoothness * along * (1 + 1e-9) + 1e-12).all()
        assert (f.value(x) >= f.value(f.minimizer) - 1e-12).all()

    def test_values(self):
        f = optim.huber(np.array([0.5]))
        np.testing.assert_allclose(f.value(np.array([[0.4], [-0.5], [2.0]])), [0.08, 0.125, 0.875])
        np.testing.assert_allclose(optim.huber(0.5).value(np.array([0.4, -2.0])), 0.955)
        H, _, _ = symmetric(2)
        f = optim.quadratic(H)
        assert f.smoothness == pytest.approx(20) and f.strong_convexity == pytest.approx(1)
        assert f.value(np.eye(5)[0]) == pytest.approx(H[0, 0] / 2)
        assert optim.quadratic(np.diag([1.0, 0.0])).strong_convexity == 0
        # the smallest eigenvalue of a singular matrix is a rounding error, of either sign
        assert all(optim.quadratic(np.outer(v, v)).strong_convexity >= 0 for v in gaussian(0, 20, 4))
        # continuous with its derivative where the pieces meet: 12.5 at 1, and 37.5 at 2
        np.testing.assert_allclose(optim.lessard().value(np.array([[1 - 1e-12], [1.0], [2 - 1e-12], [2.0]])), [
            12.5, 12.5, 38, 38,
        ])  # fmt: skip

    def test_symmetric_up_to_rounding(self):
        # off-diagonal entries of Q Λ Qᵀ that should vanish are rounding errors, of either sign
        optim.quadratic(np.array([[1.0, 1e-17], [-1e-17, 1.0]]))

    @pytest.mark.parametrize(("k", "d"), [(1, 1), (1, 3), (7, 7), (7, 20)])
    def test_nesterov_worst(self, k, d):
        f = optim.nesterov_worst(k, d)
        i = np.arange(1, d + 1)
        np.testing.assert_allclose(f.minimizer, np.where(i <= k, 1 - i / (k + 1), 0), atol=1e-15)
        assert f.value(f.minimizer) == pytest.approx(-(1 - 1 / (k + 1)) / 8, rel=1e-14)
        x = gaussian(0, d)
        chain = x[0] ** 2 + np.sum(np.diff(x[:k]) ** 2) + x[k - 1] ** 2 - 2 * x[0]
        assert f.value(x) == pytest.approx(chain / 8, rel=1e-13)
        hessian = finite_difference(f.gradient, np.zeros(d))
        assert f.smoothness == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-8) and f.smoothness < 1

    @pytest.mark.parametrize("method", ["gd", "momentum", "nesterov"])
    def test_lower_bound(self, method):
        for n in (1, 5, 20):
            f = optim.nesterov_worst(2 * n + 1, 2 * n + 1)
            x = optim.minimize(f.gradient, np.zeros(2 * n + 1), METHODS[method](1.0), n).x[-1]
            assert not x[n:].any()  # one more coordinate a gradient
            assert f.value(x) - f.value(f.minimizer) >= 3 * np.sum(f.minimizer**2) / (32 * (n + 1) ** 2)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: optim.quadratic(np.array([[1.0, 2.0], [0.0, 1.0]])), "H must be symmetric"),
            (lambda: optim.quadratic(np.ones((2, 3))), r"H must be symmetric, got shape \(2, 3\)"),
            (lambda: optim.quadratic(np.diag([1.0, -1.0])), "positive semi-definite, got the eigenvalue -1"),
            (lambda: optim.huber(0.0), "tau must be greater than 0, got 0"),
            (lambda: optim.huber(np.array([1.0, -1.0])), "tau must be greater than 0"),
            (lambda: optim.huber(np.nan), "tau must be greater than 0, got nan"),
            (lambda: optim.nesterov_worst(0, 3), "k must be between 1 and 3, got 0"),
            (lambda: optim.nesterov_worst(4, 3), "k must be between 1 and 3, got 4"),
            (lambda: optim.iteration_matrix("adam", 1.0, 1.0, 0.0), "method must be one of 'momentum', 'nesterov'"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestMinibatch:
    @pytest.mark.parametrize("replace", [True, False])
    def test_mean_and_covariance(self, replace):
        N, B, runs = 10, 4, 100_000
        G = gaussian(0, N, 2)
        estimate = optim.minibatch(lambda x, i: G[i], N, B, replace=replace, rng=1)(np.zeros((runs, 2)))
        S = (G - G.mean(axis=0)).T @ (G - G.mean(axis=0)) / N
        exact = S / B * (1 if replace else (N - B) / (N - 1))
        error = estimate - G.mean(axis=0)
        assert (np.abs(error.mean(axis=0)) < 5 * np.sqrt(np.diag(exact) / runs)).all()
        products = error[:, :, None] * error[:, None]
        assert (np.abs(products.mean(axis=0) - exact) < 5 * products.std(axis=0) / np.sqrt(runs)).all()

    def test_indices(self):
        seen = []
        for replace in (True, False):
            gradient = optim.minibatch(lambda x, i: seen.append(i) or x[..., None, :] + 0 * i[..., None], 6, 3,
                                       replace=replace, rng=0)  # fmt: skip
            x = gaussian(0, 4, 5, 2)
            np.testing.assert_allclose(gradient(x), x, rtol=1e-15)
            gradient(x)
        for first, second in (seen[:2], seen[2:]):
            assert first.shape == (4, 5, 3) and set(first.ravel()) == set(range(6))
            assert len(np.unique(first.reshape(20, 3), axis=0)) > 10  # every run has its own
            assert (first != second).any(axis=(1, 2)).all()
        assert any(len(set(batch)) < 3 for batch in seen[0].reshape(20, 3))
        assert all(len(set(batch)) == 3 for batch in seen[2].reshape(20, 3))

    def test_full_batch_is_the_gradient(self):
        G = gaussian(0, 50, 3)
        gradient = optim.minibatch(lambda x, i: G[i], 50, 50, replace=False, rng=0)
        np.testing.assert_allclose(gradient(np.zeros((7, 3))), np.tile(G.mean(axis=0), (7, 1)), atol=1e-16)

    def test_seed(self):
        def run(seed):
            gradient = optim.minibatch(lambda x, i: x[..., None, :] - DATA[i], 30, 2, rng=seed)
            return optim.minimize(gradient, np.zeros((3, 2)), optim.gradient_descent(0.1), 20).x

        np.testing.assert_array_equal(run(3), run(3))
        assert (run(3)[1:] != run(4)[1:]).any() and (run(3)[-1, 0] != run(3)[-1, 1]).all()

    @pytest.mark.parametrize(
        ("N", "B", "replace", "limit"), [(5, 6, False, "between 1 and 5"), (5, 0, True, "least 1")]
    )
    def test_bad_input(self, N, B, replace, limit):
        with pytest.raises(ValueError, match=f"batch_size must be .*{limit}"):
            optim.minibatch(lambda x, i: x, N, B, replace=replace)
        with pytest.raises(ValueError, match="n_samples must be at least 1"):
            optim.minibatch(lambda x, i: x, 0, 1)

    @pytest.mark.parametrize("h", [0.1, 0.6, 1.0, 1.5])
    def test_second_moment_of_sgd_on_a_parabola(self, h):
        # Y.20: f_i = (θ - c_i)²/2
        c, runs, steps = gaussian(8, 200), 20_000, 40
        c -= c.mean()
        gradient = optim.minibatch(lambda x, i: x[..., None, :] - c[i][..., None], 200, 1, rng=2)
        path = optim.minimize(gradient, np.full((runs, 1), 3.0), optim.gradient_descent(h), steps, 10)
        for k, e in zip(path.steps, path.x[..., 0], strict=True):
            decay = (1 - h) ** (2 * k)
            exact = decay * 9 + h**2 * np.mean(c**2) * (1 - decay) / (1 - (1 - h) ** 2)
            assert abs(np.mean(e**2) - exact) <= 5 * np.std(e**2) / np.sqrt(runs) + 1e-12

    def test_one_over_k_is_the_running_mean(self):
        c, seen = gaussian(0, 20), []
        gradient = optim.minibatch(lambda x, i: seen.append(i[0]) or x[:, None] - c[i][:, None], 20, 1, rng=0)
        path = optim.minimize(gradient, np.array([7.0]), optim.gradient_descent(lambda k: 1 / k), 100).x[1:, 0]
        np.testing.assert_allclose(path, np.cumsum(c[seen]) / np.arange(1, 101), atol=1e-13)


def l1(v):
    return np.abs(v).sum(axis=-1)


# projection, whether a point is feasible up to rounding, vertices in d dimensions
SETS = {
    "simplex": (
        lambda v, size: optim.project_simplex(v, size),
        lambda p, size: (p >= 0).all() and np.allclose(p.sum(axis=-1), size, rtol=1e-13, atol=0),
        lambda d: np.eye(d),
    ),
    "l1": (
        lambda v, size: optim.project_l1_ball(v, size),
        lambda p, size: (l1(p) <= size * (1 + 1e-13)).all(),
        lambda d: np.vstack([np.eye(d), -np.eye(d)]),
    ),
}
points = st.tuples(st.integers(1, 9), seeds, st.floats(-3, 3), st.sampled_from([1e-3, 1.0, 7.0]))


@pytest.mark.parametrize("name", SETS)
class TestProjections:
    @given(point=points)
    def test_properties(self, name, point):
        project, feasible, vertices = SETS[name]
        d, seed, exponent, size = point
        v, w = size * 10**exponent * gaussian(seed, 2, d)
        p, q = project(v, size), project(w, size)
        assert feasible(p, size)
        rounding = 1e-13 * (size + np.abs(v).max() + np.abs(w).max())
        np.testing.assert_allclose(project(p, size), p, atol=rounding)
        assert np.linalg.norm(p - q) <= np.linalg.norm(v - w) + rounding
        # (v - p)·(q - p) ≤ 0 for all q of the set: it is enough to try the vertices
        assert ((size * vertices(d) - p) @ (v - p) <= rounding * (size + np.abs(v).max())).all()

    def test_batch_is_the_loop(self, name):
        project = SETS[name][0]
        v = 2 * gaussian(0, 4, 5, 6)
        np.testing.assert_array_equal(project(v, 2.0), [[project(row, 2.0) for row in rows] for rows in v])

    def test_feasible_points_stay(self, name):
        project = SETS[name][0]
        p = np.random.default_rng(0).dirichlet(np.ones(6), 50)
        np.testing.assert_allclose(project(p, 1.0), p, atol=1e-15)
        if name == "l1":
            inside = 0.99 * p * np.sign(gaussian(0, 50, 6))
            np.testing.assert_array_equal(project(inside, 1.0), inside)

    def test_scales(self, name):
        project = SETS[name][0]
        # a large entry takes everything; what is far below the total is shared out evenly by the simplex
        for huge in (1e15, 1e17, 1e200):
            np.testing.assert_array_equal(project(np.array([huge, 3.0, -1.0]), 1.0), [1, 0, 0])
            np.testing.assert_allclose(project(np.array([huge, huge, 0.0]), 1.0), [0.5, 0.5, 0])
        np.testing.assert_array_equal(project(np.array([3.0, 0.0]), 1e-200), [1e-200, 0])
        tiny = np.array([1e-200, 0.0])
        np.testing.assert_array_equal(project(tiny, 1.0), [0.5, 0.5] if name == "simplex" else tiny)
        v = gaussian(0, 8)
        np.testing.assert_array_equal(project(v * 2.0**60, 2.0**60), project(v, 1.0) * 2.0**60)

    @pytest.mark.parametrize("seed", range(4))
    def test_agrees_with_slsqp(self, name, seed):
        v = gaussian(seed, 5)
        if name == "simplex":
            problem = {"bounds": [(0, None)] * 5, "constraints": {"type": "eq", "fun": lambda p: p.sum() - 1}}
            unfold = np.eye(5)
        else:  # p = p₊ - p₋ with both parts non-negative
            problem = {"bounds": [(0, None)] * 10, "constraints": {"type": "ineq", "fun": lambda p: 1 - p.sum()}}
            unfold = np.hstack([np.eye(5), -np.eye(5)])
        peer = scipy.optimize.minimize(
            lambda p: np.sum((unfold @ p - v) ** 2), np.full(unfold.shape[1], 0.1), method="SLSQP", tol=1e-14, **problem
        )
        np.testing.assert_allclose(SETS[name][0](v, 1.0), unfold @ peer.x, atol=1e-6)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("v", "size", "message"),
        [
            (np.array([1.0, np.nan]), 1.0, "v must be finite"),
            (np.ones(2), 0.0, "must be greater than 0, got 0"),
            (np.ones(2), np.inf, "must be greater than 0, got inf"),
            (np.float64(1.0), 1.0, "v must have"),
        ],
    )
    def test_bad_input(self, name, v, size, message):
        with pytest.raises(ValueError, match=message):
            SETS[name][0](v, size)

    def test_projected_gradient_descent(self, name):
        A, b = gaussian(0, 30, 8) + 1, gaussian(1, 30)
        H = A.T @ A
        mu, L = np.linalg.eigvalsh(H)[[0, -1]]
        project = SETS[name][0]
        path = optim.minimize(
            lambda x: x @ H - A.T @ b, np.full(8, 0.125), optim.gradient_descent(1 / L), 4000,
            projection=lambda v: project(v, 0.2),
        ).x  # fmt: skip
        end = path[-1]
        g = end @ H - A.T @ b
        # KKT: the gradient is largest and constant (up to sign) where the point is not zero
        outward = -np.sign(end) * g if name == "l1" else -g
        level = outward[end != 0].max()
        np.testing.assert_allclose(outward[end != 0], level, atol=1e-10)
        assert (end == 0).any() and ((np.abs(g) if name == "l1" else -g)[end == 0] < level).all()
        distance = np.linalg.norm(path[:300] - end, axis=-1)
        assert (distance[1:] <= (1 - mu / L) * distance[:-1] + 1e-14).all()


class TestMinimize:
    def test_records(self):
        start = gaussian(0, 3, 2)
        kept = start.copy()
        run = lambda every: optim.minimize(ROSENBROCK.gradient, start, optim.adam(0.01), 60, every)  # noqa: E731
        full, sparse = run(1), run(15)
        np.testing.assert_array_equal(start, kept)
        np.testing.assert_array_equal(full.x[0], start)
        np.testing.assert_array_equal(sparse.steps, [0, 15, 30, 45, 60])
        np.testing.assert_array_equal(sparse.x, full.x[sparse.steps])
        assert full.diverged.shape == (3,)

    def test_one_gradient_a_step(self):
        calls = []
        path = optim.minimize(lambda x: calls.append(x.copy()) or x, np.ones(1), optim.gradient_descent(0.5), 6)
        np.testing.assert_array_equal(calls, path.x[:-1])

    def test_projection_comes_after_the_step(self):
        path = optim.minimize(
            lambda x: -np.ones_like(x),
            np.zeros(2),
            optim.momentum(1.0, 0.5),
            3,
            projection=lambda x: np.minimum(x, 1.2),
        )
        np.testing.assert_array_equal(path.x[:, 0], [0, 1, 1.2, 1.2])

    def test_divergence(self):
        # x ← -2x; the step 3·2^(t-1) is larger than any number at t = 1024
        with pytest.raises(FloatingPointError, match="the run diverged, the last at step 1024"):
            optim.minimize(lambda x: x, np.ones(1), optim.gradient_descent(3.0), 2000)

    @pytest.mark.parametrize("name", METHODS)
    def test_divergence_of_one_run(self, name):
        # the gradient of runs 1 and 3 becomes infinite or NaN at step 5 and 8
        count = itertools.count(1)

        def gradient(x):
            assert np.isfinite(x).all()  # lost runs stay where they were
            g, k = ROSENBROCK.gradient(x), next(count)
            if k >= 5:
                g[1, 0] = np.inf if k == 5 else 0.0  # and comes back
            if k >= 8:
                g[3, 1] = np.nan
            return g

        starts, method = gaussian(0, 5, 2), METHODS[name](1e-4)
        path = optim.minimize(gradient, starts, method, 20, 2)
        if name in ("adagrad", "rmsprop", "rmsprop.9", "adam", "adam.5"):
            assert path.diverged[1] == 5  # inf/inf
        np.testing.assert_array_equal(path.diverged, [-1, 5, -1, 8, -1])
        assert np.isnan(path.x[3:, 1]).all() and np.isfinite(path.x[:3, 1]).all()
        assert np.isnan(path.x[4:, 3]).all() and np.isfinite(path.x[:4, 3]).all()
        for i in (0, 2, 4):
            alone = optim.minimize(ROSENBROCK.gradient, starts[i], method, 20, 2)
            np.testing.assert_array_equal(path.x[:, i], alone.x)

    def test_overflow_in_a_batch(self):
        lr = np.array([0.5, 3.0, 1e200])[:, None]
        path = optim.minimize(lambda x: x, np.ones(1), optim.gradient_descent(lr), 1100, 1)
        np.testing.assert_array_equal(path.diverged, [-1, 1024, 2])
        assert path.x[1023, 1, 0] == -(2.0**1023) and np.isnan(path.x[1024:, 1]).all()
        with pytest.raises(FloatingPointError, match="all 2 runs diverged, the last at step 1024"):
            optim.minimize(lambda x: x, np.ones(1), optim.gradient_descent(lr[1:]), 1100)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"x0": np.array([np.nan, 1.0])}, "x0 must be finite"),
            ({"x0": np.float64(1.0)}, r"x0 must have .* shape \(\)"),
            ({"x0": "start"}, "x0 must be an array of real numbers"),
            ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
            ({"n_steps": 10.0}, "n_steps must be an integer, got 10.0"),
            ({"record_every": 0}, "record_every must be at least 1, got 0"),
            ({"record_every": 3}, "n_steps must be a multiple of record_every, got 10 and 3"),
            ({"grad": lambda x: x[..., 0]}, r"grad must return .* \(4, 2\), got \(4,\)"),
            ({"grad": lambda x: x[..., None]}, r"grad must return .* \(4, 2\), got \(4, 2, 1\)"),
            ({"optimizer": optim.adam(np.full(3, 0.1))}, r"hyper-parameters of shape \(3,\) .* shape \(4, 2\)"),
            ({"optimizer": optim.momentum(0.1, np.full((3, 1), 0.5))}, r"hyper-parameters of shape \(3, 1\)"),
            ({"x0": np.ones(1), "optimizer": optim.adam(np.full(3, 0.1))}, r"shape \(3,\) must .* shape \(1,\)"),
        ],
    )
    def test_bad_input(self, arguments, message):
        good = {"grad": lambda x: x, "x0": np.ones((4, 2)), "optimizer": optim.gradient_descent(0.1), "n_steps": 10}
        with pytest.raises(ValueError, match=message):
            optim.minimize(**good | arguments)


class TestRunsThatAreLost:
    def test_others_go_on_under_a_projection(self):
        # the first run meets NaN at once, the second shrinks to the minimum in the simplex
        grad = lambda x: np.where(np.arange(2)[:, None] == 0, np.nan, x - [0.2, 0.8])  # noqa: E731
        path = optim.minimize(
            grad, np.full((2, 2), 0.5), optim.gradient_descent(0.5), 60, projection=optim.project_simplex
        )
        assert path.diverged.tolist() == [1, -1] and np.isnan(path.x[1:, 0]).all()
        np.testing.assert_allclose(path.x[-1, 1], [0.2, 0.8], atol=1e-15)

    def test_no_warning_from_a_gradient_that_blows_up(self):
        with pytest.raises(FloatingPointError, match="step 1"), warnings.catch_warnings():
            warnings.simplefilter("error")
            optim.minimize(lambda x: np.exp(1000 * x) / 0.0, np.ones(1), optim.gradient_descent(1.0), 5)

    @pytest.mark.parametrize("make", [optim.adagrad, optim.rmsprop, optim.adam])
    def test_without_gradient_no_step_even_for_eps_0(self, make):
        optimizer = make(0.1, eps=0.0)
        dx, _ = optimizer.update(np.array([0.0, 2.0]), optimizer.init(np.zeros(2)))
        assert dx[0] == 0 and dx[1] < 0

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: optim.adam(0.1, beta1=lambda k: 0.9), "beta1 must be one number"),
            (lambda: optim.gradient_descent(1j), "lr must be a number"),
            (lambda: _one_step(optim.gradient_descent(lambda k: np.ones(2))), "lr must be one number at each step"),
            (lambda: _one_step(optim.gradient_descent(lambda k: None)), "lr must be greater than 0"),
            (lambda: optim.minimize(lambda x: x, 1.0, optim.adam(0.1), 1), "x0 must have at least 1 dimension"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


def _one_step(optimizer):
    return optim.minimize(lambda x: x, np.ones(2), optimizer, 1)
