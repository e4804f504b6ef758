import itertools
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.special
import torch
import torchdiffeq
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import ode

ALPHA, OMEGA = 0.3, 2.0
SPIRAL = np.array([[-ALPHA, -OMEGA], [OMEGA, -ALPHA]])
LAMBDA = complex(-ALPHA, OMEGA)  # the spiral is z' = λz for z = x₁ + i x₂
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
METHODS = (*ode.FIXED, *ode.ADAPTIVE)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
ROTATION = np.array([[0.0, -1.0], [1.0, 0.0]])
seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)


def gaussian(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def spiral(t, x):
    """Of (..., 2), for numpy and torch alike."""
    return x @ (SPIRAL.T if isinstance(x, np.ndarray) else torch.tensor(SPIRAL.T, dtype=x.dtype, device=x.device))


def spiral_at(t):
    z = np.exp(LAMBDA * np.asarray(t))
    return np.stack([z.real, z.imag], axis=-1)


def bent(t, x):
    """Neither linear nor autonomous, of any shape: x' = cos(t) sin(x) - x/(2 + t)."""
    lib = np if isinstance(x, np.ndarray) else torch
    return math.cos(t) * lib.sin(x) - x / (2 + t)


def rotation(angle):
    return scipy.linalg.expm(angle * ROTATION)


def series(z, n, extra=()):
    """1 + z + … + zⁿ/n! + ..."""
    return sum(z**k / math.factorial(k) for k in range(n + 1)) + sum(c * z**k for k, c in extra)


# Two steps of dopri5 agree with exp to z⁵; its last coefficient is b₆a₆₅a₅₄a₄₃a₃₂a₂₁ + … = 1/600
STABILITY = {
    "euler": lambda z: series(z, 1),
    "midpoint": lambda z: series(z, 2),
    "heun": lambda z: series(z, 2),
    "rk4": lambda z: series(z, 4),
    "dopri5": lambda z: series(z, 5, [(6, 1 / 600)]),
}


def trees(tableau):
    """(order, weight of the tree, vector Φ of the stages) for all rooted trees of at most five vertices."""
    s = len(tableau.a)
    A = np.array([[*row, *[0.0] * (s - len(row))] for row in tableau.a])
    c, one = A @ np.ones(s), np.ones(s)
    Ac, Ac2, AAc = A @ c, A @ c**2, A @ A @ c
    return [
        (1, 1, one),
        (2, 2, c),
        (3, 3, c**2),
        (3, 6, Ac),
        (4, 4, c**3),
        (4, 8, c * Ac),
        (4, 12, Ac2),
        (4, 24, AAc),
        (5, 5, c**4),
        (5, 10, c**2 * Ac),
        (5, 15, c * Ac2),
        (5, 30, c * AAc),
        (5, 20, Ac**2),
        (5, 20, A @ c**3),
        (5, 40, A @ (c * Ac)),
        (5, 60, A @ Ac2),
        (5, 120, A @ AAc),
    ]


class TestTableaus:
    @pytest.mark.parametrize(("name", "order"), [*ORDERS.items(), ("dopri5", 5)])
    def test_order_conditions(self, name, order):
        # Butcher: order p if and only if b·Φ(tree) = 1/γ(tree) for every rooted tree of at most p vertices
        tableau = ode.TABLEAUS[name]
        np.testing.assert_allclose([sum(row) for row in tableau.a], tableau.c, rtol=1e-14)
        met = {p: [] for p in range(1, 6)}
        for p, gamma, phi in trees(tableau):
            met[p].append(abs(np.dot(tableau.b, phi) - 1 / gamma) < 1e-14)
        assert all(all(met[p]) for p in range(1, order + 1))
        assert order == 5 or not all(met[order + 1])

    def test_error_and_middle_of_dopri5(self):
        dopri5 = ode.TABLEAUS["dopri5"]
        embedded = np.subtract(dopri5.b, ode._DOPRI5_ERROR)
        for p, gamma, phi in trees(dopri5):
            if p <= 4:
                assert np.dot(embedded, phi) == pytest.approx(1 / gamma, abs=1e-15)
                assert np.dot(ode._DOPRI5_MIDDLE, phi) == pytest.approx(0.5**p / gamma, abs=1e-14)
        assert abs(np.dot(ode._DOPRI5_ERROR, trees(dopri5)[8][2])) > 1e-4

    def test_agrees_with_scipy(self):
        dopri5, theirs = ode.TABLEAUS["dopri5"], scipy.integrate.RK45
        for row, reference in zip(dopri5.a[:6], theirs.A, strict=True):
            np.testing.assert_array_equal([*row, *[0] * (5 - len(row))], reference)
        np.testing.assert_array_equal(dopri5.b[:6], theirs.B)
        np.testing.assert_array_equal(dopri5.c[:6], theirs.C)
        np.testing.assert_array_equal(np.abs(ode._DOPRI5_ERROR), np.abs(theirs.E))


class TestStabilityFunction:
    @pytest.mark.parametrize("method", STABILITY)
    @given(st.complex_numbers(max_magnitude=4))
    @settings(max_examples=30)
    def test_closed_form(self, method, z):
        # against the sum of |terms|, at most e⁴
        assert abs(ode.stability_function(method, z) - STABILITY[method](z)) < 1e-13

    @pytest.mark.parametrize("method", ode.FIXED)
    @given(st.complex_numbers(max_magnitude=2), st.floats(0.1, 3))
    @settings(max_examples=30)
    def test_is_one_step(self, method, rate, h):
        step = ode.odeint(lambda t, x: rate * x, np.array([1 + 0j]), [0, h], method)[1, 0]
        R = ode.stability_function(method, h * rate)
        assert abs(step - R) < 1e-13 * math.exp(abs(h * rate))

    def test_is_one_step_of_dopri5(self):
        x0, rate = np.array([1 + 0j]), -0.7 + 2j
        for h in (0.3, -0.3):
            step = ode.runge_kutta_step(ode.TABLEAUS["dopri5"], lambda t, x: rate * x, 0.0, x0, h)
            np.testing.assert_allclose(step, ode.stability_function("dopri5", h * rate), rtol=1e-14)

    def test_shape_is_kept(self):
        z = (gaussian(0, 3, 4) + 1j * gaussian(1, 3, 4)).reshape(3, 4)
        R = ode.stability_function("rk4", z)
        assert R.shape == (3, 4)
        np.testing.assert_allclose(R, series(z, 4), rtol=1e-12)

    @pytest.mark.parametrize(
        ("method", "limit"),
        [("euler", 2.0), ("midpoint", 2.0), ("heun", 2.0), ("rk4", 2.785293563405282), ("dopri5", 3.3065678)],
    )
    def test_real_limit(self, method, limit):
        # Hairer and Wanner, IV.2: where R(-z) = 1 (or -1 for Euler) again
        assert abs(ode.stability_function(method, -limit)) == pytest.approx(1, abs=1e-6)
        assert (
            abs(ode.stability_function(method, -0.99 * limit)) < 1 < abs(ode.stability_function(method, -1.01 * limit))
        )

    def test_effective_rates_of_the_spiral(self):
        # B4.16: h = 0.025
        h = 0.025
        for method, decay, frequency in (("euler", 0.25044, 2.01341), ("midpoint", 0.300345, None)):
            rate = np.log(ode.stability_function(method, h * LAMBDA)) / h
            assert -rate.real == pytest.approx(decay, abs=6e-6 if method == "euler" else 6e-7)
            assert frequency is None or rate.imag == pytest.approx(frequency, abs=6e-6)
        # |1 + hλ| = 1 at h = 2α/(α² + ω²); RK4 is stable up to h ≈ 1.4635
        assert abs(ode.stability_function("euler", 2 * ALPHA / (ALPHA**2 + OMEGA**2) * LAMBDA)) == pytest.approx(1)
        assert (
            abs(ode.stability_function("rk4", 1.4634 * LAMBDA))
            < 1
            < abs(ode.stability_function("rk4", 1.4636 * LAMBDA))
        )

    def test_bad_input(self):
        with pytest.raises(ValueError, match="method must be one of 'euler', .*'dopri5', got 'rk45'"):
            ode.stability_function("rk45", 0.1)


class TestFixedSteps:
    @pytest.mark.parametrize("method", ode.FIXED)
    @pytest.mark.parametrize("N", [1, 7, 40])
    def test_spiral(self, method, N):
        # a linear field multiplies by R(hλ) each step
        times = np.linspace(0, 5, N + 1)
        path = ode.odeint(spiral, np.array([1.0, 0.0]), times, method)
        z = STABILITY[method](5 / N * LAMBDA) ** np.arange(N + 1)
        np.testing.assert_allclose(path[:, 0] + 1j * path[:, 1], z, rtol=1e-12)

    @pytest.mark.parametrize(
        ("method", "errors"),
        [
            ("euler", [15.1, 0.399, 0.149, 3.0e-2]),
            ("midpoint", [0.527, 1.56e-2, 3.9e-3, 2.4e-4]),
            ("heun", [0.527, 1.56e-2, 3.9e-3, 2.4e-4]),
            ("rk4", [2.2e-2, 3.2e-5, 2.0e-6, 7.7e-9]),
        ],
    )
    def test_error_table(self, method, errors):
        # B4.16, T = 5, N = 10, 50, 100, 400
        for N, expected in zip((10, 50, 100, 400), errors, strict=True):
            end = ode.odeint(spiral, np.array([1.0, 0.0]), np.linspace(0, 5, N + 1), method)[-1]
            assert np.linalg.norm(end - spiral_at(5)) == pytest.approx(expected, rel=0.03)

    @pytest.mark.parametrize(("method", "order"), ORDERS.items())
    @pytest.mark.parametrize(
        ("f", "x0", "exact"),
        [
            (lambda t, x: x * np.cos(t), 1.0, lambda t: np.exp(np.sin(t))),
            (lambda t, x: -2 * t * x**2, 1.0, lambda t: 1 / (1 + t**2)),
            (lambda t, x: np.exp(t) * np.ones_like(x), 1.0, np.exp),
        ],
    )
    def test_order_in_time_and_space(self, method, order, f, x0, exact):
        errors = []
        for N in (80, 160):
            times = 0.2 + 1.3 * np.linspace(0, 1, N + 1)
            start = np.full(1, x0 * exact(0.2))
            errors.append(np.abs(ode.odeint(f, start, times, method)[-1, 0] - exact(1.5)))
        assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)

    @pytest.mark.parametrize("method", ode.FIXED)
    @given(seeds, shapes, st.integers(1, 6))
    @settings(max_examples=20)
    def test_torch_and_torchdiffeq_agree(self, method, seed, shape, n_steps):
        shape = shape or (1,)
        x0, times = gaussian(seed, *shape), np.cumsum(np.random.default_rng(seed).uniform(0.05, 0.5, n_steps + 1))
        path = ode.odeint(bent, x0, times, method)
        assert path.shape == (n_steps + 1, *shape) and path.dtype == np.float64
        np.testing.assert_array_equal(path[0], x0)
        tensors = ode.odeint(bent, torch.from_numpy(x0), times, method)
        np.testing.assert_allclose(tensors.numpy(), path, rtol=1e-12, atol=1e-13)
        name = {"heun": "heun2", "rk4": None}.get(method, method)
        if name is not None:  # its "rk4" is the 3/8 rule
            peer = torchdiffeq.odeint(
                lambda t, x: bent(float(t), x), torch.from_numpy(x0), torch.from_numpy(times), method=name
            )
            np.testing.assert_allclose(path, peer.numpy(), rtol=1e-10, atol=1e-12)

    def test_rk4_is_the_textbook_step(self):
        x0, t, h = gaussian(3, 4), 0.7, 0.3
        k1 = bent(t, x0)
        k2 = bent(t + h / 2, x0 + h / 2 * k1)
        k3 = bent(t + h / 2, x0 + h / 2 * k2)
        k4 = bent(t + h, x0 + h * k3)
        expected = x0 + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        np.testing.assert_allclose(ode.odeint(bent, x0, [t, t + h])[1], expected, rtol=1e-14)

    def test_known_slope_saves_an_evaluation(self):
        for method in ode.FIXED:
            calls = []
            f = lambda t, x: calls.append(t) or bent(t, x)  # noqa: B023, E731
            x0 = gaussian(0, 2)
            step = ode.runge_kutta_step(ode.TABLEAUS[method], f, 0.4, x0, -0.2)
            again = ode.runge_kutta_step(ode.TABLEAUS[method], f, 0.4, x0, -0.2, bent(0.4, x0))
            np.testing.assert_array_equal(step, again)
            stages = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]
            assert len(calls) == 2 * stages - 1


class TestOdeint:
    @pytest.mark.parametrize("method", METHODS)
    def test_batch_is_the_loop(self, method):
        # adaptive steps are chosen for the whole batch, so there only up to the tolerance
        starts = gaussian(0, 3, 4, 2)
        times = np.linspace(0, 2, 9)
        path = ode.odeint(spiral, starts, times, method, rtol=1e-9, atol=1e-12)
        assert path.shape == (9, 3, 4, 2)
        for i, j in itertools.product(range(3), range(4)):
            alone = ode.odeint(spiral, starts[i, j], times, method, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(path[:, i, j], alone, atol=1e-7 if method in ode.ADAPTIVE else 1e-13)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize(
        "make",
        [list, tuple, np.array, lambda t: torch.tensor(t), lambda t: torch.tensor(t, dtype=torch.float64), np.float32],
    )
    def test_times(self, method, make):
        times = [0.0, 0.25, 1.0]  # are the same in float32
        path = ode.odeint(spiral, np.ones(2), make(times), method)
        np.testing.assert_array_equal(path, ode.odeint(spiral, np.ones(2), times, method))

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
    @pytest.mark.parametrize("device", DEVICES)
    def test_dtype_and_device_are_kept(self, method, dtype, device):
        x0 = torch.ones(3, 2, dtype=dtype, device=device)
        path = ode.odeint(lambda t, x: -x, x0, np.linspace(0, 1, 33), method, rtol=1e-4, atol=1e-6)
        assert path.dtype == dtype and path.device == x0.device and path.shape == (33, 3, 2)
        error = abs(path[-1] - math.exp(-1)).max()
        assert error < {"euler": 1e-2, "midpoint": 1e-3, "heun": 1e-3}.get(method, 1e-4)

    @pytest.mark.parametrize("method", METHODS)
    def test_numpy_types(self, method):
        rotate = lambda t, x: 1j * x  # noqa: E731
        path = ode.odeint(rotate, np.array([1j]), np.linspace(0, np.pi, 201), method, rtol=1e-9)
        assert path.dtype == np.complex128
        assert abs(path[-1, 0] + 1j) < (0.1 if method == "euler" else 1e-3)
        for start in (np.array([1, 2]), np.array([1, 2], dtype=np.float32)):
            path = ode.odeint(spiral, start, [0, 0.5], method)
            assert path.dtype == np.float64
            np.testing.assert_array_equal(path, ode.odeint(spiral, np.array([1.0, 2.0]), [0, 0.5], method))

    @pytest.mark.parametrize("method", METHODS)
    def test_scalar_state(self, method):
        for start in (np.array(2.0), torch.tensor(2.0, dtype=torch.float64)):
            path = ode.odeint(lambda t, x: -x, start, np.linspace(0, 1, 11), method)
            vector = ode.odeint(lambda t, x: -x, np.array([2.0]), np.linspace(0, 1, 11), method)
            assert path.shape == (11,)
            np.testing.assert_allclose(np.asarray(path), vector[:, 0], rtol=1e-13)

    @pytest.mark.parametrize("method", METHODS)
    def test_gradients(self, method):
        # the step lengths count as constants, so x(T; x₀, θ) is differentiated at the tolerance
        x0 = torch.tensor([[0.3, -1.0], [2.0, 0.5]], dtype=torch.float64, requires_grad=True)
        theta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        times = np.linspace(0, 1, 9)

        def end(x0, theta):
            return ode.odeint(lambda t, x: theta * torch.sin(x) + t, x0, times, method, rtol=1e-10, atol=1e-12)[-3:]

        torch.autograd.gradcheck(end, (x0, theta), eps=1e-5, atol=1e-6)

    def test_gradient_through_the_adaptive_solution(self):
        # x = x₀e^{θt}: ∂x/∂x₀ = e^{θt}, ∂x/∂θ = t x; between the steps as well
        for method in ode.ADAPTIVE:
            x0, theta = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.5, -0.7))
            times = [0.0, 0.37, 1.61, 2.0]
            path = ode.odeint(lambda t, x: theta * x, x0, times, method, rtol=1e-9, atol=1e-11)  # noqa: B023
            for k, t in enumerate(times):
                by_x0, by_theta = torch.autograd.grad(path[k], (x0, theta), retain_graph=True, materialize_grads=True)
                assert by_x0.item() == pytest.approx(math.exp(-0.7 * t), rel=1e-7)
                assert by_theta.item() == pytest.approx(1.5 * t * math.exp(-0.7 * t), rel=1e-6)

    @pytest.mark.parametrize("method", METHODS)
    def test_start_is_not_changed(self, method):
        for x0 in (np.ones(2), torch.ones(2)):
            path = ode.odeint(spiral, x0, [0, 1, 2], method)
            assert (x0 == 1).all() and (path[0] == 1).all() and not (path[1] == 1).all()

    def test_torch_is_not_imported(self):
        code = (
            "import sys, numpy as np\nfrom coursekit import ode\n"
            "ode.odeint(lambda t, x: -x, np.ones(2), [0, 1], 'dopri5')\nassert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: ode.odeint(spiral, np.ones(2), [0, 1], "rk45"), "method must be one of 'euler', .*, got 'rk45'"),
            (lambda: ode.odeint(spiral, np.ones(2), [0]), "at least two times, got 1"),
            (lambda: ode.odeint(spiral, np.ones(2), [0, 2, 1]), r"t must increase, got t\[1\] = 2 and t\[2\] = 1"),
            (lambda: ode.odeint(spiral, np.ones(2), [0, 1, 1], "dopri5"), r"t must increase, got t\[1\] = 1"),
            (lambda: ode.odeint(spiral, np.ones(2), [0, np.nan]), "t must be finite"),
            (lambda: ode.odeint(spiral, np.array([1, np.nan]), [0, 1]), "x0 must be finite"),
            (lambda: ode.odeint(spiral, np.array([1, np.inf + 0j]), [0, 1]), "x0 must be finite"),
            (lambda: ode.odeint(spiral, torch.tensor([1, torch.nan]), [0, 1]), "x0 must be finite"),
            (lambda: ode.odeint(spiral, torch.tensor([1, 2]), [0, 1]), "floating-point numbers, got torch.int64"),
            (lambda: ode.odeint(lambda t, x: x.sum(), np.ones(2), [0, 1]), r"shape \(2,\) of x, got \(\)"),
            (lambda: ode.odeint(lambda t, x: x[:, None], np.ones(2), [0, 1], "dopri5"), r"of x, got \(2, 1\)"),
            (lambda: ode.odeint(lambda t, x: x.sum(), torch.ones(2), [0, 1]), r"shape \(2,\) of x, got \(\)"),
            (lambda: ode.odeint(lambda t, x: x.numpy(), torch.ones(2), [0, 1]), "must return a tensor .* got ndarray"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    @pytest.mark.parametrize("lib", [np, torch])
    def test_divergence_names_the_step(self, lib):
        # x ← 10¹⁰⁰x: infinite after the fourth step (float32: 10⁴⁰, the first)
        f = lambda t, x: (1e100 - 1) * x  # noqa: E731
        with pytest.raises(FloatingPointError, match=r"not finite at t = 4 \(step 4\)"):
            ode.odeint(f, lib.ones(1, dtype=lib.float64), range(9), "euler")
        with pytest.raises(FloatingPointError, match=r"not finite at t = 1 \(step 1\)"):
            ode.odeint(lambda t, x: x * math.nan, lib.ones(1), range(9), "rk4")


def attempts(sol, calls, stages):
    """(t, h, accepted) of every attempted step, from the times at which the field was evaluated."""
    groups = np.array(calls[2:]).reshape(-1, stages)  # the first two choose the first step
    result, k = [], 0
    for group in groups:
        t = sol.t[k]
        h = group.max() - t
        accepted = k + 1 < len(sol.t) and abs(t + h - sol.t[k + 1]) < 1e-12
        k += accepted
        result.append((t, h, accepted))
    return result


STAGES = {"dopri5": 6, "rk4_doubling": 11}
# error estimate of one step of ∫ t⁴ dt, for every t: Σ eᵢcᵢ⁴ h⁵ for dopri5, (S₂ - S₁)/15 of Simpson's rule with
# S₁ - ∫ = h⁵/120 and S₂ - ∫ = h⁵/1920 for doubling. Both results are exact.
QUARTIC = {
    "dopri5": abs(np.dot(scipy.integrate.RK45.E, [*scipy.integrate.RK45.C**4, 1])),
    "rk4_doubling": 1 / 1920,
}


def burst(t, x):
    """Rotation at the rate 1 + 40 exp(-50 (t - 2)²)."""
    return (1 + 40 * math.exp(-50 * (t - 2) ** 2)) * (x @ ROTATION.T)


def burst_phase(t):
    return t + 40 * math.sqrt(math.pi / 200) * (math.erf(math.sqrt(50) * (t - 2)) + math.erf(math.sqrt(200)))


@pytest.mark.parametrize("method", ode.ADAPTIVE)
class TestAdaptive:
    @pytest.mark.parametrize("tol", [1e-3, 1e-5, 1e-7, 1e-9])
    def test_tolerance(self, method, tol):
        # the spiral contracts, so that the errors of the steps at most add up
        for options in ({"rtol": 0, "atol": tol}, {"rtol": tol, "atol": 0.01 * tol}):
            sol = ode.solve_adaptive(spiral, np.array([1.0, 0.0]), 0, 5, method=method, **options)
            allowed = math.sqrt(2) * tol * (len(sol.t) - 1)
            assert np.linalg.norm(sol.x - spiral_at(sol.t), axis=1).max() < allowed
            times = np.linspace(0, 5, 777)
            assert np.linalg.norm(sol(times) - spiral_at(times), axis=1).max() < allowed
            assert sol.t[0] == 0 and sol.t[-1] == 5 and (np.diff(sol.t) > 0).all()
            assert sol.x.shape == (len(sol.t), 2)

    def test_steps_follow_the_tolerance(self, method):
        # n ∝ tol^{-1/5}: a tenth of the steps for 10⁵ times the tolerance
        few, many = (
            len(ode.solve_adaptive(spiral, np.array([1.0, 0.0]), 0, 60, method=method, rtol=0, atol=tol).t) - 1
            for tol in (1e-6, 1e-11)
        )
        assert many / few == pytest.approx(10, rel=0.15)

    @pytest.mark.parametrize(("rtol", "atol"), [(0, 1e-8), (1e-8, 1e-8), (1e-8, 0)])
    def test_step_lengths(self, method, rtol, atol):
        # h ← 0.9 h (estimate)^{-1/5} with the root mean square over two components, of which one stands still
        calls, x0 = [], np.array([1.0, -3.0])
        f = lambda t, x: calls.append(t) or np.array([t**4, 0.0])  # noqa: E731
        sol = ode.solve_adaptive(f, x0, 0, 3, method=method, rtol=rtol, atol=atol)
        np.testing.assert_allclose(sol.x, np.stack([1 + sol.t**5 / 5, 0 * sol.t - 3], axis=1), rtol=1e-12)
        scale = atol + rtol * sol.x[1:, 0]  # of the longer end
        h = np.diff(sol.t)
        wanted = 0.9 * (QUARTIC[method] / scale / math.sqrt(2)) ** -0.2
        free = (wanted < 5 * h)[:-2]  # not where the growth is limited, and not into the last step
        assert free.sum() > 8 and sol.n_rejected == 0
        np.testing.assert_allclose(h[1:-1][free], wanted[:-2][free], rtol=1e-6)
        np.testing.assert_allclose(h[1:-1][~free], 5 * h[:-2][~free], rtol=1e-9)

    def test_first_step(self, method):
        # of x' = λx with |x₀| ≫ atol: h = (rtol/(100 max(|λ|, λ²)))^{1/5}
        for rate, rtol in ((-0.5, 1e-6), (-2.0, 1e-6), (-2.0, 1e-9)):
            calls = []
            f = lambda t, x: calls.append(t) or rate * x  # noqa: B023, E731
            sol = ode.solve_adaptive(f, np.array([3.0, -4.0]), 0, 10, method=method, rtol=rtol, atol=0)
            assert calls[1] == pytest.approx(0.01 / abs(rate))
            h = attempts(sol, calls, STAGES[method])[0][1]
            assert h == pytest.approx((0.01 * rtol / max(abs(rate), rate**2)) ** 0.2, rel=1e-9)

    def test_evaluations_and_rejections(self, method):
        calls = []
        f = lambda t, x: calls.append(t) or burst(t, x)  # noqa: E731
        sol = ode.solve_adaptive(f, np.array([1.0, 0.0]), 0, 4, method=method, rtol=0, atol=1e-6)
        taken = attempts(sol, calls, STAGES[method])
        assert sol.n_evaluations == len(calls) == 2 + STAGES[method] * (len(sol.t) - 1 + sol.n_rejected)
        assert sol.n_rejected == sum(not accepted for _, _, accepted in taken) > 0
        for (_, h, accepted), (t, after, _) in itertools.pairwise(taken):
            last = after == pytest.approx(4 - t, abs=1e-12)  # its length is what is left
            if not accepted:
                assert 0.2 * h * (1 - 1e-9) <= after <= 0.9 * h * (1 + 1e-9)
            elif not last:  # accepted: an estimate of at most 1
                assert 0.9 * h * (1 - 1e-9) <= after <= 5 * h * (1 + 1e-9)
        # a step that follows a rejection is not succeeded by a longer one
        shrunk = [
            (h, after)
            for (_, _, before), (_, h, accepted), (_, after, _) in zip(taken, taken[1:], taken[2:], strict=False)
            if not before and accepted
        ]
        assert shrunk and all(after <= h * (1 + 1e-9) for h, after in shrunk)

    @pytest.mark.parametrize("value", [1e9, math.nan])
    def test_hopeless_step_is_cut_to_a_fifth(self, method, value):
        calls = []
        f = lambda t, x: calls.append(t) or np.full(1, value if t > 0.5 else 0.0)  # noqa: E731
        with pytest.raises(FloatingPointError, match=r"no step from t = 0.5 meets the tolerance"):
            ode.solve_adaptive(f, np.ones(1), 0, 1, method=method, rtol=0, atol=1e-30)
        groups = np.array(calls[2:]).reshape(-1, STAGES[method])
        ends, first = groups.max(axis=1), groups[:, 0]  # the second stage, at h/5 or h/2
        h = (ends - first) / (1 - {"dopri5": 1 / 5, "rk4_doubling": 1 / 2}[method])
        again = (ends[:-1] > 0.5) & (ends[1:] > 0.5) & (h[:-1] > 1e-8)
        assert again.any()
        np.testing.assert_allclose(h[1:][again], 0.2 * h[:-1][again], rtol=1e-6)

    def test_burst(self, method):
        sol = ode.solve_adaptive(burst, np.array([1.0, 0.0]), 0, 4, method=method, rtol=0, atol=1e-8)
        angle = burst_phase(4)
        # lengths are kept, so errors at most add up
        bound = math.sqrt(2) * 1e-8 * (len(sol.t) - 1)
        assert np.linalg.norm(sol.x[-1] - [math.cos(angle), math.sin(angle)]) < bound
        steps, middle = np.diff(sol.t), (sol.t[1:] + sol.t[:-1]) / 2
        # the field there is 41 times as fast: h ∝ rate^{-6/5}
        assert 10 * np.median(steps[abs(middle - 2) < 0.05]) < np.median(steps[abs(middle - 2) > 1])

    def test_agrees_with_scipy(self, method):
        x0, times = gaussian(2, 5), np.linspace(0.5, 6, 40)
        path = ode.odeint(bent, x0, times, method, rtol=1e-10, atol=1e-12)
        peer = scipy.integrate.solve_ivp(bent, (0.5, 6), x0, "DOP853", times, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(path, peer.y.T, atol=1e-8)

    def test_agrees_with_torchdiffeq(self, method):
        x0, times = torch.from_numpy(gaussian(3, 2, 3)), torch.linspace(0, 4, 9, dtype=torch.float64)
        path = ode.odeint(bent, x0, times, method, rtol=1e-9, atol=1e-11)
        peer = torchdiffeq.odeint(lambda t, x: bent(float(t), x), x0, times, method="dopri8", rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(path, peer, atol=1e-7)

    @pytest.mark.parametrize("lib", ["numpy", "torch"])
    def test_scaled_start(self, method, lib):
        # relative tolerance: 8x₀ takes the same steps; absolute: 8x₀ with 8 atol
        x0 = np.array([1.0, 0.5])
        convert = np.asarray if lib == "numpy" else torch.from_numpy
        for one, eight in ((1e-6, 1e-6), (0, 0)):
            atol = 0 if one else 1e-6
            a = ode.solve_adaptive(spiral, convert(x0), 0, 5, method=method, rtol=one, atol=atol)
            b = ode.solve_adaptive(spiral, convert(8 * x0), 0, 5, method=method, rtol=eight, atol=8 * atol)
            np.testing.assert_array_equal(a.t, b.t)
            np.testing.assert_array_equal(8 * a.x, b.x)

    def test_numpy_and_torch_take_the_same_steps(self, method):
        x0 = gaussian(4, 3, 2)
        a = ode.solve_adaptive(bent, x0, 0, 3, method=method)
        b = ode.solve_adaptive(bent, torch.from_numpy(x0), 0, 3, method=method)
        np.testing.assert_allclose(a.t, b.t, rtol=1e-9)
        np.testing.assert_allclose(a.x, b.x, atol=1e-10)
        np.testing.assert_allclose(a([0.3, 2.2]), b([0.3, 2.2]), atol=1e-10)

    def test_dense_output_of_a_quartic(self, method):
        # the interpolant has degree four, and the step integrates t³ exactly
        sol = ode.solve_adaptive(lambda t, x: np.full(1, t**3), np.ones(1), -1, 2, method=method, rtol=1e-3)
        times = np.linspace(-1, 2, 57)
        np.testing.assert_allclose(sol(times)[:, 0], 0.75 + times**4 / 4, rtol=1e-12)

    def test_dense_output_in_the_middle_of_a_step(self, method):
        # of order four: halving a single step divides the largest error by 2⁵; values and slopes at the ends are exact
        errors = []
        for h in (0.08, 0.04):
            sol = ode.solve_adaptive(spiral, np.array([1.0, 0.0]), 0, h, method=method, rtol=0, atol=1)
            assert len(sol.t) == 2
            times = np.linspace(0, h, 101)
            errors.append(np.abs(sol(times) - spiral_at(times)).max())
            ends, d = sol([0, 1e-6 * h, (1 - 1e-6) * h, h]), 1e-6 * h
            np.testing.assert_allclose(ends[[0, 3]], sol.x, rtol=1e-14)
            np.testing.assert_allclose((ends[1] - ends[0]) / d, spiral(0, sol.x[0]), rtol=1e-4)
            np.testing.assert_allclose((ends[3] - ends[2]) / d, spiral(0, sol.x[1]), rtol=1e-4)
        assert math.log2(errors[0] / errors[1]) == pytest.approx(5, abs=0.15)

    def test_dense_output_at_the_steps(self, method):
        for x0 in (gaussian(0, 2, 3), torch.from_numpy(gaussian(0, 2, 3)), gaussian(0, 2) + 1j):
            sol = ode.solve_adaptive(lambda t, x: -x * t, x0, 0, 2, method=method)
            np.testing.assert_allclose(sol(sol.t), sol.x, rtol=1e-13)
            jumbled = [1.2, 0.3, 2.0, 0.3, 0.0]
            np.testing.assert_array_equal(sol(jumbled), np.stack([np.asarray(sol([time]))[0] for time in jumbled]))

    @pytest.mark.parametrize("lib", [np, torch])
    def test_blow_up(self, method, lib):
        # x' = x², x(0) = 1: x = 1/(1 - t)
        with pytest.raises(FloatingPointError, match="the solution blows up there") as error:
            ode.odeint(lambda t, x: x * x, lib.ones(1, dtype=lib.float64), [0, 2], method)
        assert float(re.search(r"t = (\S+) meets", str(error.value))[1]) == pytest.approx(1, abs=1e-4)

    def test_too_many_steps(self, method):
        # stability holds h near 3/10⁵
        with pytest.raises(FloatingPointError, match=r"t = 0.00\d+ of 10 after 100 steps: the problem may be stiff"):
            ode.solve_adaptive(lambda t, x: -1e5 * x, np.ones(1), 0, 10, method=method, max_steps=100)
        sol = ode.solve_adaptive(spiral, np.ones(2), 0, 5, method=method)
        n = len(sol.t) - 1 + sol.n_rejected
        ode.solve_adaptive(spiral, np.ones(2), 0, 5, method=method, max_steps=n)
        with pytest.raises(FloatingPointError, match="may be stiff"):
            ode.solve_adaptive(spiral, np.ones(2), 0, 5, method=method, max_steps=n - 1)

    @pytest.mark.parametrize("lib", [np, torch])
    def test_zero_field(self, method, lib):
        sol = ode.solve_adaptive(lambda t, x: 0 * x, lib.ones(2, dtype=lib.float64), 0, 7, method=method)
        np.testing.assert_array_equal(sol.x, 1)
        np.testing.assert_array_equal(sol([3, 7, 0.1]), 1)
        np.testing.assert_allclose(np.diff(sol.t)[1:-1], 5 * np.diff(sol.t)[:-2], rtol=1e-9)

    def test_ends_exactly(self, method):
        # t + (t₁ - t) need not be t₁ in floating point
        for t0, t1 in zip(-np.abs(gaussian(0, 40)), 1e-3 * np.abs(gaussian(1, 40)), strict=True):
            sol = ode.solve_adaptive(lambda t, x: 0 * x, np.ones(1), t0, t1, method=method)
            assert sol.t[0] == t0 and sol.t[-1] == t1
            assert np.diff(sol.t).min() > 0.9e-6  # the first; none of one rounding error

    def test_no_splinter_at_the_end(self, method):
        # without error the steps are 1, 5, 25, 125, … millionths; the half that is left after 156 joins the last one
        sol = ode.solve_adaptive(lambda t, x: 0 * x, np.ones(1), 0, 156.5e-6, method=method)
        np.testing.assert_allclose(np.diff(sol.t), [1e-6, 5e-6, 25e-6, 125.5e-6], rtol=1e-9)

    def test_start_at_zero(self, method):
        # x' = 1, and x' = (-x, 1): with a relative tolerance only, there is no scale at the start
        for atol in (1e-9, 0):
            path = ode.odeint(lambda t, x: np.ones_like(x), np.zeros(2), [0, 1, 2], method, atol=atol)
            np.testing.assert_allclose(path, [[0, 0], [1, 1], [2, 2]], rtol=1e-12)
            path = ode.odeint(lambda t, x: np.array([-x[0], 1]), np.array([1.0, 0]), [0, 1], method, atol=atol)
            np.testing.assert_allclose(path[-1], [math.exp(-1), 1], rtol=1e-5)

    @pytest.mark.parametrize("lib", [np, torch])
    def test_relative_tolerance_where_x_is_zero(self, method, lib):
        # 0/0: a component that stays at zero has no error
        x0 = lib.zeros(2, dtype=lib.float64)
        x0[0] = 1
        for start, end in ((x0, math.exp(-1)), (0 * x0, 0.0)):
            path = ode.odeint(lambda t, x: -x, start, [0, 1], method, rtol=1e-8, atol=0)
            np.testing.assert_allclose(path[-1], [end, 0], rtol=1e-6)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_field_that_is_not_finite(self, method, value):
        calls = []
        f = lambda t, x: calls.append(t) or np.full(2, value)  # noqa: E731
        with pytest.raises(FloatingPointError, match="t = 0"):
            ode.odeint(f, np.ones(2), [0, 1], method)
        assert len(calls) < 1000

    def test_not_finite_later(self, method):
        f = lambda t, x: np.full(2, math.nan if t > 0.5 else 1.0)  # noqa: E731
        with pytest.raises(FloatingPointError, match=r"no step from t = 0.5 meets"):
            ode.odeint(f, np.ones(2), [0, 1], method)

    def test_far_from_the_origin_of_time(self, method):
        path = ode.odeint(lambda t, x: -x, np.ones(2), [1e6, 1e6 + 1], method)
        np.testing.assert_allclose(path[-1], math.exp(-1), atol=1e-6)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rtol": 0, "atol": 0}, "rtol or atol must be positive, got 0 for both"),
            ({"rtol": -1}, "rtol must be at least 0, got -1"),
            ({"atol": math.nan}, "atol must be finite|atol must be at least 0"),
            ({"t1": 0}, "t must increase"),
            ({"t1": -1}, "t must increase"),
            ({"x0": np.array([np.nan])}, "x0 must be finite"),
            ({"f": lambda t, x: x[:1]}, r"shape \(2,\) of x, got \(1,\)"),
        ],
    )
    def test_bad_input(self, method, options, message):
        with pytest.raises(ValueError, match=message):
            ode.solve_adaptive(**{"f": spiral, "x0": np.ones(2), "t0": 0, "t1": 1, "method": method} | options)

    def test_times_outside(self, method):
        sol = ode.solve_adaptive(spiral, np.ones(2), 0, 1, method=method)
        for times in ([-0.1], [0.5, 1.1]):
            with pytest.raises(ValueError, match="times must lie between 0 and 1"):
                sol(times)


def test_unknown_adaptive_method():
    with pytest.raises(ValueError, match="method must be one of 'dopri5', 'rk4_doubling', got 'rk4'"):
        ode.solve_adaptive(spiral, np.ones(2), 0, 1, method="rk4")


class TestLeapfrog:
    @given(st.floats(-1.99, 1.99).filter(lambda dt: abs(dt) > 0.01), seeds, shapes)
    @settings(max_examples=40)
    def test_harmonic_oscillator(self, dt, seed, shape):
        # x_n = x₀ cos nφ + v₀ sin nφ/√(1 - dt²/4), cos φ = 1 - dt²/2
        shape = shape or (1,)
        x, v = gaussian(seed, *shape), gaussian(seed + 1, *shape)
        xs, vs = ode.leapfrog(lambda x: x, x, v, dt, 50)
        assert xs.shape == vs.shape == (51, *shape)
        root = math.sqrt(1 - dt**2 / 4)
        angle = 2 * math.asin(dt / 2) * np.arange(51).reshape(-1, *[1] * len(shape))
        scale = 1e-12 / root**2 * (abs(x) + abs(v)).max()
        np.testing.assert_allclose(xs, x * np.cos(angle) + v * np.sin(angle) / root, atol=scale)
        np.testing.assert_allclose(vs, v * np.cos(angle) - x * np.sin(angle) * root, atol=scale)
        # the modified energy is kept exactly
        energy = vs**2 / 2 + root**2 * xs**2 / 2
        np.testing.assert_allclose(energy - energy[0], 0, atol=10 * scale * (abs(x) + abs(v)).max())

    def test_by_hand(self):
        # one step of x'' = -x³ from (1, 0) with dt = ½: v½ = -¼, x₁ = 7/8, v₁ = -¼ - ¼ (7/8)³
        xs, vs = ode.leapfrog(lambda x: x**3, np.ones(1), np.zeros(1), 0.5, 1)
        np.testing.assert_array_equal(xs[:, 0], [1, 7 / 8])
        np.testing.assert_array_equal(vs[:, 0], [0, -1 / 4 - 343 / 2048])

    def test_unstable(self):
        # dt > 2: φ is imaginary, x_n = ± cosh nμ, cosh μ = dt²/2 - 1
        dt = 2.1
        xs, _ = ode.leapfrog(lambda x: x, np.ones(1), np.zeros(1), dt, 40)
        np.testing.assert_allclose(np.abs(xs[:, 0]), np.cosh(np.arange(41) * math.acosh(dt**2 / 2 - 1)), rtol=1e-11)

    def test_reversible(self):
        x, v = gaussian(0, 5, 3), gaussian(1, 5, 3)
        force = lambda x: np.sin(x) + x**3 / 10  # noqa: E731
        xs, vs = ode.leapfrog(force, x, v, 0.1, 100)
        for start, dt in ((-vs[-1], 0.1), (vs[-1], -0.1)):
            back, speeds = ode.leapfrog(force, xs[-1], start, dt, 100)
            np.testing.assert_allclose(back, xs[::-1], atol=1e-11)
            np.testing.assert_allclose(np.sign(dt) * -speeds, vs[::-1], atol=1e-11)

    def test_symplectic(self):
        # JᵀΩJ = Ω for the Jacobian of the map of (x, v), d = 2
        def step(z):
            gradient = lambda x: torch.stack([torch.sin(x[0]) + x[1], x[0] + x[1] ** 3])  # noqa: E731
            xs, vs = ode.leapfrog(gradient, z[:2], z[2:], 0.3, 7)
            return torch.cat([xs[-1], vs[-1]])

        J = torch.autograd.functional.jacobian(step, torch.tensor([0.3, -0.8, 0.5, 0.1], dtype=torch.float64)).numpy()
        big = np.kron(-ROTATION, np.eye(2))
        np.testing.assert_allclose(J.T @ big @ J, big, atol=1e-12)
        assert np.linalg.det(J) == pytest.approx(1, abs=1e-12)

    def test_order_and_energy(self):
        # pendulum against the fine solution of scipy
        peer = scipy.integrate.solve_ivp(
            lambda t, y: [y[1], -math.sin(y[0])], (0, 4), [2, 0], "DOP853", rtol=1e-12, atol=1e-12
        )
        errors, drifts = [], []
        for n in (100, 200):
            xs, vs = ode.leapfrog(np.sin, np.array([2.0]), np.array([0.0]), 4 / n, n)
            errors.append(abs(xs[-1, 0] - peer.y[0, -1]))
            drifts.append(np.ptp(vs**2 / 2 - np.cos(xs)))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.05)
        assert math.log2(drifts[0] / drifts[1]) == pytest.approx(2, abs=0.05)

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_torch(self, dtype, device):
        x, v = (torch.from_numpy(gaussian(k, 3, 2)).to(device, dtype) for k in (0, 1))
        calls = []
        xs, vs = ode.leapfrog(lambda x: calls.append(1) or x, x, v, 0.1, 20)
        assert len(calls) == 21 and xs.dtype == vs.dtype == dtype and xs.device == x.device
        expected = ode.leapfrog(lambda x: x, gaussian(0, 3, 2), gaussian(1, 3, 2), 0.1, 20)
        for ours, theirs in zip((xs, vs), expected, strict=True):
            np.testing.assert_allclose(ours.cpu(), theirs, atol=1e-5 if dtype == torch.float32 else 1e-13)

    def test_scalar_state(self):
        xs, vs = ode.leapfrog(lambda x: x, np.array(1.0), np.array(0.0), 0.1, 3)
        assert xs.shape == vs.shape == (4,)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (
                lambda: ode.leapfrog(np.sin, np.ones(2), np.ones(3), 0.1, 1),
                r"v must have the shape \(2,\) of x, got \(3,\)",
            ),
            (lambda: ode.leapfrog(np.sin, np.ones(2), np.ones(2), 0, 1), "dt must not be 0"),
            (lambda: ode.leapfrog(np.sin, np.ones(2), np.ones(2), np.nan, 1), "dt must be finite"),
            (lambda: ode.leapfrog(np.sin, np.ones(2), np.ones(2), 0.1, 0), "n_steps must be at least 1, got 0"),
            (lambda: ode.leapfrog(np.sum, np.ones(2), np.ones(2), 0.1, 1), r"must have the shape \(2,\) of x"),
            (lambda: ode.leapfrog(np.sin, np.array([np.nan]), np.ones(1), 0.1, 1), "x must be finite"),
            (lambda: ode.leapfrog(np.sin, np.ones(1), np.array([np.inf]), 0.1, 1), "v must be finite"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_divergence_names_the_step(self):
        # each step multiplies x and v by about 10¹⁰⁰: the force of x₃ ~ 10³⁰⁰ is infinite
        with pytest.raises(FloatingPointError, match=r"not finite at t = 1.5 \(step 3\)"):
            ode.leapfrog(lambda x: 1e100 * x, np.ones(1), np.zeros(1), 0.5, 5)


class TestLinearFlow:
    @given(seeds, st.integers(1, 5), shapes, st.booleans())
    @settings(max_examples=40)
    def test_agrees_with_expm(self, seed, n, batch, forced):
        A, x0, b = gaussian(seed, n, n), gaussian(seed + 1, *batch, n), gaussian(seed + 2, n)
        times = [0.7, -1.2, 0.0, 2.0]
        x = ode.linear_flow(A, x0, times, b if forced else None)
        assert x.shape == (4, *batch, n)
        for k, t in enumerate(times):
            E = scipy.linalg.expm(t * A)
            particular = np.linalg.solve(A, (E - np.eye(n)) @ b) if forced else 0  # A is regular almost surely
            scale = 1e-9 * np.linalg.cond(A) * (1 + np.linalg.norm(E))
            np.testing.assert_allclose(x[k], x0 @ E.T + particular, atol=scale)

    def test_example(self):
        # B2.18 (Example 2.3.2)
        A = np.array([[-1, 0.5, 0], [0, -0.5, 0.3], [0, 0, -0.2]])
        t = np.array([0, 0.5, 4.014, math.log(2) / 0.3, 20])
        x = ode.linear_flow(A, np.zeros(3), t, np.array([1, 0.5, -0.5]))
        slow, mid, fast = np.exp(-0.2 * t), np.exp(-0.5 * t), np.exp(-t)
        expected = [
            0.75 - 0.3125 * fast - 2 * mid + 1.5625 * slow,
            -0.5 - 2 * mid + 2.5 * slow,
            -2.5 * (1 - slow),
        ]
        np.testing.assert_allclose(x, np.stack(expected, axis=1), atol=1e-13)
        np.testing.assert_allclose(x[4], [0.77852739, -0.45430170, -2.45421090], atol=5e-9)
        assert x[2, 0] == pytest.approx(1.1756869, abs=5e-8) and x[3, 1] == pytest.approx(0.4449408, abs=5e-8)

    def test_jordan_block(self):
        # B2.18: x₂ = 2t, x₁ = t + t² at t = 3/2
        A = np.array([[0.0, 1], [0, 0]])
        np.testing.assert_allclose(
            ode.linear_flow(A, np.zeros(2), [1.5], np.array([1.0, 2])), [[3.75, 3.0]], rtol=1e-14
        )
        x = ode.linear_flow(A, np.array([1.0, 4.0]), [-2.0])
        np.testing.assert_allclose(x, [[-7, 4]], rtol=1e-14)

    def test_group(self):
        A, b, x0 = gaussian(0, 3, 3), gaussian(1, 3), gaussian(2, 6, 3)
        there = ode.linear_flow(A, x0, [0.8], b)[0]
        np.testing.assert_allclose(ode.linear_flow(A, there, [-0.8], b)[0], x0, atol=1e-12)
        np.testing.assert_allclose(ode.linear_flow(A, there, [0.5], b), ode.linear_flow(A, x0, [1.3], b), atol=1e-12)

    def test_start_is_not_changed(self):
        x0 = np.ones(2)
        ode.linear_flow(np.eye(2), x0, [1.0], np.ones(2))
        np.testing.assert_array_equal(x0, 1)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: ode.linear_flow(np.ones((2, 3)), np.ones(2), [1]), r"A must have shape \(2, 2\), got \(2, 3\)"),
            (lambda: ode.linear_flow(np.ones(2), np.ones(2), [1]), "A must have 2 dimension"),
            (lambda: ode.linear_flow(np.eye(2), np.ones(3), [1]), r"x0 must have 2 entries .*, got shape \(3,\)"),
            (
                lambda: ode.linear_flow(np.eye(2), np.ones((2, 3)), [1]),
                r"x0 must have 2 entries .*, got shape \(2, 3\)",
            ),
            (lambda: ode.linear_flow(np.eye(2), np.ones(2), 1.0), "t must have 1 dimension"),
            (lambda: ode.linear_flow(np.eye(2), np.ones(2), [1], np.ones(3)), r"b must have shape \(2\), got \(3,\)"),
            (lambda: ode.linear_flow(np.nan * np.eye(2), np.ones(2), [1]), "A must be finite"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_overflow(self):
        with pytest.raises(FloatingPointError, match=r"not finite at t = 2 \(step 1\)"):
            ode.linear_flow(np.array([[600.0]]), np.ones(1), [1.0, 2.0])


SWAP = np.array([[0.0, 1.0], [1.0, 0.0]])


def rotating(t):
    """B2.22 (a): R(wt)A₀R(-wt), w = 2, A₀ = [[0, 1], [1, 0]]."""
    return rotation(2 * t) @ SWAP @ rotation(-2 * t)


def rotating_flow(t1, t0=0.0):
    """In the rotating frame A is constant: U(t₁, t₀) = R(wt₁) e^{(A₀ - wJ)(t₁ - t₀)} R(-wt₀)."""
    return rotation(2 * t1) @ scipy.linalg.expm((SWAP - 2 * ROTATION) * (t1 - t0)) @ rotation(-2 * t0)


def qubit(t):
    """Y.1: -i(½σ_Z + cos t σ_X), anti-Hermitian."""
    return -1j * np.array([[0.5, math.cos(t)], [math.cos(t), -0.5]])


def growing(t):
    """Of trace t, with no structure."""
    return np.array([[t, math.sin(t), 0.3], [-1.0, 0.5, t**2], [math.cos(3 * t), 0.2, -0.5]])


class TestMagnus:
    @pytest.mark.parametrize(("order", "errors"), [(2, [1.57e-2, 3.90e-3, 9.74e-4]), (4, [3.31e-4, 2.11e-5, 1.33e-6])])
    def test_rotating_frame(self, order, errors):
        exact = rotating_flow(1.5)
        np.testing.assert_allclose(exact, [[0.88946513, -0.76598018], [0.17480408, 0.97373524]], atol=5e-9)
        for n, expected in zip((10, 20, 40), errors, strict=True):
            assert np.abs(ode.magnus(rotating, 0, 1.5, n, order) - exact).max() == pytest.approx(expected, rel=4e-3)

    @pytest.mark.parametrize(("order", "errors"), [(2, [3.14e-3, 7.84e-4]), (4, [1.62e-5, None])])
    def test_qubit(self, order, errors):
        fine = ode.magnus(qubit, 0, 2, 2000)
        for n, expected in zip((10, 20), errors, strict=True):
            U = ode.magnus(qubit, 0, 2, n, order)
            assert U.dtype == np.complex128
            np.testing.assert_allclose(U.conj().T @ U, np.eye(2), atol=1e-13)
            if expected is not None:
                assert np.linalg.norm(U - fine, 2) == pytest.approx(expected, rel=4e-3)
        assert abs(fine[1, 0]) ** 2 == pytest.approx(0.60813, abs=5e-6)

    @pytest.mark.parametrize("order", [2, 4])
    def test_agrees_with_solve_ivp(self, order):
        f = lambda t, x: (growing(t) @ x.reshape(3, 3)).ravel()  # noqa: E731
        peer = scipy.integrate.solve_ivp(f, (0.2, 1.7), np.eye(3).ravel(), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
        errors = [np.abs(ode.magnus(growing, 0.2, 1.7, n, order) - peer.reshape(3, 3)).max() for n in (40, 80)]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)

    @pytest.mark.parametrize("order", [2, 4])
    def test_determinant_composition_and_inverse(self, order):
        U = ode.magnus(growing, -0.5, 1.5, 16, order)
        # det U = exp ∫ tr A = exp ∫ t dt: both quadratures are exact for it
        assert np.linalg.det(U) == pytest.approx(math.exp((1.5**2 - 0.5**2) / 2), rel=1e-12)
        parts = ode.magnus(growing, 0.5, 1.5, 8, order) @ ode.magnus(growing, -0.5, 0.5, 8, order)
        np.testing.assert_allclose(parts, U, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(ode.magnus(growing, 1.5, -0.5, 16, order) @ U, np.eye(3), atol=1e-12)

    @pytest.mark.parametrize("order", [2, 4])
    def test_commuting(self, order):
        # A(t) = t J: the angle ∫ t dt is exact
        np.testing.assert_allclose(
            ode.magnus(lambda t: t * ROTATION, 0, 1.3, 3, order), rotation(1.3**2 / 2), atol=1e-14
        )

    @given(seeds, st.integers(1, 4), st.floats(-2, 2))
    @settings(max_examples=20)
    def test_constant(self, seed, n, t1):
        A = gaussian(seed, n, n)
        np.testing.assert_allclose(
            ode.magnus(lambda t: A, 0.5, t1, 3), scipy.linalg.expm((t1 - 0.5) * A), rtol=1e-9, atol=1e-11
        )

    def test_markus_yamabe(self):
        # B2.22 (c): eigenvalues -0.25 ± 0.66i at every time, and the solution e^{t/2}(-cos t, sin t)
        def A(t):
            c, s = math.cos(t), math.sin(t)
            return np.array([[-1 + 1.5 * c * c, 1 - 1.5 * s * c], [-1 - 1.5 * s * c, -1 + 1.5 * s * s]])

        U = ode.magnus(A, 0, 3, 300)
        np.testing.assert_allclose(U @ [-1, 0], math.exp(1.5) * np.array([-math.cos(3), math.sin(3)]), atol=1e-7)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: ode.magnus(rotating, 0, 1, 4, 3), "order must be 2 or 4, got 3"),
            (lambda: ode.magnus(rotating, 0, 1, 0), "n_steps must be at least 1, got 0"),
            (lambda: ode.magnus(rotating, 0, np.inf, 3), "t1 must be finite"),
            (
                lambda: ode.magnus(lambda t: np.ones((2, 3)), 0, 1, 4),
                r"square matrices of one size, got shapes \[\(2, 3\)\]",
            ),
            (lambda: ode.magnus(lambda t: np.ones(2), 0, 1, 4), r"got shapes \[\(2,\)\]"),
            (lambda: ode.magnus(lambda t: np.eye(1 + (t > 0.5)), 0, 1, 4), r"got shapes \[\(1, 1\), \(2, 2\)\]"),
            (lambda: ode.dyson(rotating, 0, 1, -1), "order must be at least 0, got -1"),
            (lambda: ode.dyson(rotating, 0, 1, 2, 0), "n_steps must be at least 1, got 0"),
            (lambda: ode.dyson(lambda t: np.ones(2), 0, 1, 2), r"got shapes \[\(2,\)\]"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_overflow(self):
        with pytest.raises(FloatingPointError, match="not finite at t = 3"):
            ode.magnus(lambda t: 400 * np.eye(1), 0, 3, 3)


class TestDyson:
    def test_rotating_frame(self):
        # B2.22: error of the sum of orders 1..8
        terms = ode.dyson(rotating, 0, 1.5, 8)
        exact, norm = rotating_flow(1.5), 1.5  # ‖A(t)‖ = 1
        table = [0.696, 0.304, 0.111, 0.0385, 0.0079, 0.0022, 3.7e-4, 7.5e-5]
        for k, expected in enumerate(table, 1):
            error = np.abs(terms[: k + 1].sum(axis=0) - exact).max()
            assert error == pytest.approx(expected, rel=0.03)
            assert error < math.exp(norm) * norm ** (k + 1) / math.factorial(k + 1)
        for k, term in enumerate(terms):
            assert np.linalg.norm(term, 2) <= norm**k / math.factorial(k) * (1 + 1e-12)

    def test_commuting(self):
        # A = tJ (Exercise 2.3.4): the terms are (T²/2)ᵏJᵏ/k!, I + T²/2 J - T⁴/8 I + …
        T = 1.3
        terms = ode.dyson(lambda t: t * ROTATION, 0, T, 5)
        expected = [(T**2 / 2) ** k / math.factorial(k) * np.linalg.matrix_power(ROTATION, k) for k in range(6)]
        np.testing.assert_allclose(terms, expected, atol=1e-11)
        np.testing.assert_allclose(terms[2], -(T**4) / 8 * np.eye(2), atol=1e-11)
        assert np.abs(terms[:3].sum(axis=0) - rotation(T**2 / 2)).max() == pytest.approx(0.0970, abs=5e-5)

    @pytest.mark.parametrize("ends", [(0, 2), (2, 0), (-1, 0.5)])
    def test_sum_is_the_propagator(self, ends):
        for A in (qubit, growing):
            terms = ode.dyson(A, *ends, 30)
            np.testing.assert_allclose(terms.sum(axis=0), ode.magnus(A, *ends, 800), atol=1e-9)

    def test_earlier_times_to_the_right(self):
        # A = X on [0, ½), Z on [½, 1]: the second term is X²/8 + Z²/8 + ZX/4
        X, Z = np.array([[0.0, 1], [0, 0]]), np.array([[1.0, 0], [0, 2]])
        smooth = lambda t: X * (1 - t) + Z * t  # noqa: E731
        # ∫₀¹ A(t)∫₀ᵗ A(s) ds dt = ∫ ((1-t)X + tZ)((t - t²/2)X + t²/2 Z) dt
        expected = X @ X / 8 + Z @ Z / 8 + X @ Z / 24 + Z @ X * 5 / 24
        np.testing.assert_allclose(ode.dyson(smooth, 0, 1, 2)[2], expected, atol=1e-11)

    def test_van_loan(self):
        # constant A: the k-th term is (A T)ᵏ/k!
        A = gaussian(0, 3, 3) + 1j * gaussian(1, 3, 3)
        terms = ode.dyson(lambda t: A, 1, -0.5, 6, 400)
        for k, term in enumerate(terms):
            expected = np.linalg.matrix_power(-1.5 * A, k) / math.factorial(k)
            np.testing.assert_allclose(term, expected, rtol=1e-7, atol=1e-8)

    @pytest.mark.parametrize("parity", [0, 1])
    def test_order(self, parity):
        # at least three in the step
        fine = ode.dyson(rotating, 0, 1.5, 4, 4000)
        errors = [np.abs(ode.dyson(rotating, 0, 1.5, 4, n + parity) - fine).max(axis=(1, 2))[1:] for n in (40, 80)]
        assert (np.log2(errors[0] / errors[1]) > 2.8).all()

    def test_no_terms(self):
        np.testing.assert_array_equal(ode.dyson(rotating, 0, 1, 0), np.eye(2)[None])


def test_a_field_of_another_precision_is_refused(unchecked):
    with pytest.raises(ValueError, match="must have the dtype torch.float32 of x, got torch.float64"):
        ode.odeint(lambda t, x: x.double(), torch.ones(2), [0, 1])
