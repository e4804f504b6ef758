import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torchdiffeq
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit import ode
from coursekit.neural_ode import SavedTensors, adjoint_gradient, sde_adjoint_gradient, sdeint

MODES = ("joint", "stored", "checkpoint")
STAGES = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
seeds = st.integers(0, 2**31 - 1)


def growth(method, z):
    """R(z) of the methods."""
    return sum(z**k / math.factorial(k) for k in range(ORDERS[method] + 1))


def normal(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameter(value):
    return torch.as_tensor(value, dtype=torch.float64).clone().requires_grad_()


def network(seed=0, d=2, width=5):
    """Parameters and a field with explicit time: tanh layers, and a part that oscillates."""
    params = [parameter(normal(seed + k, *shape)) for k, shape in enumerate([(d, width), (width,), (width, d)])]
    W, b, V = params
    return params, lambda t, x: torch.tanh(x @ W + b + math.sin(t)) @ V + math.cos(3 * t) * x / 2


def every_time(path):
    """A loss with a jump at every time, the first included."""
    weights = torch.linspace(1, 2, path.numel(), dtype=path.dtype, device=path.device).reshape(path.shape)
    return (weights * torch.sin(path)).mean()


def at_the_end(path):
    return path[-1].square().sum() / 2


def backprop(f, params, x0, t, loss, method="rk4"):
    """(loss, ∂L/∂params, dL/dx at every time) through `odeint` with its graph."""
    leaf = x0.clone().requires_grad_()
    path = [leaf]
    for start, end in itertools.pairwise(t):
        path.append(ode.odeint(f, path[-1], [start, end], method)[1])
    value = loss(torch.stack(path))
    gradients = torch.autograd.grad(value, [*path, *params], allow_unused=True, materialize_grads=True)
    return value.detach(), gradients[len(path) :], torch.stack(gradients[: len(path)])


def relative(ours, theirs):
    ours, theirs = (torch.cat([g.reshape(-1) for g in gs]) for gs in (ours, theirs))
    return ((ours - theirs).norm() / theirs.norm()).item()


class TestClosedForms:
    @pytest.mark.parametrize("method", ode.FIXED)
    @pytest.mark.parametrize("mode", MODES)
    def test_scalar(self, method, mode):
        # x' = θx, L = ½x(T)²: λ(t) = x(T)e^{θ(T - t)}, ∂L/∂x₀ = x₀e^{2θT}, ∂L/∂θ = T x₀²e^{2θT}
        theta, x0, T = -0.4, 1.5, 2.0
        errors, p = [], parameter(theta)
        for N in (40, 80):
            result = adjoint_gradient(
                lambda t, x: p * x,
                [p],
                torch.tensor(x0, dtype=torch.float64),
                np.linspace(0, T, N + 1),
                lambda path: path[-1] ** 2 / 2,
                mode=mode,
                method=method,
            )
            # λ_k = R(hθ)^{N - k} x_N: the transpose of the steps in all modes, as the field is linear
            R = growth(method, T / N * theta)
            np.testing.assert_allclose(result.adjoint, x0 * R ** (2 * N - np.arange(N + 1)), rtol=1e-12)
            assert result.loss.item() == pytest.approx((x0 * R**N) ** 2 / 2, rel=1e-12)
            assert result.grad_x0 == result.adjoint[0]
            errors.append(abs(result.grad_params[0].item() / (T * x0**2 * math.exp(2 * theta * T)) - 1))
        assert math.log2(errors[0] / errors[1]) > ORDERS[method] - 0.3

    @pytest.mark.parametrize("method", ode.FIXED)
    def test_exact_gradient_of_the_discrete_solution(self, method):
        # L = ½x₀²R^{2N}: ∂L/∂θ = N h R'(hθ) R^{2N - 1} x₀², R' of the order below
        theta, x0, h, N = parameter(0.7), torch.tensor(1.3, dtype=torch.float64), 0.15, 9
        result = adjoint_gradient(
            lambda t, x: theta * x, [theta], x0, h * np.arange(N + 1), at_the_end, mode="checkpoint", method=method
        )
        z = 0.7 * h
        slope = sum(z**k / math.factorial(k) for k in range(ORDERS[method]))
        expected = 1.3**2 * N * h * slope * growth(method, z) ** (2 * N - 1)
        assert result.grad_params[0].item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("mode", ["joint", "stored"])
    def test_quadrature_of_euler(self, mode):
        # ∂L/∂θ = h Σ_{k ≥ 1} x_kλ_k: "stored" has x_k = (1 + z)ᵏx₀, "joint" goes back by 1 - z
        theta, x0, h, N = parameter(0.7), 1.3, 0.15, 9
        result = adjoint_gradient(
            lambda t, x: theta * x,
            [theta],
            torch.tensor(x0, dtype=torch.float64),
            h * np.arange(N + 1),
            lambda path: path[-1],
            mode=mode,
            method="euler",
        )
        z, k = 0.7 * h, np.arange(1, N + 1)
        end = x0 * (1 + z) ** N
        x = x0 * (1 + z) ** k if mode == "stored" else end * (1 - z) ** (N - k)
        assert result.grad_params[0].item() == pytest.approx(h * np.sum(x * (1 + z) ** (N - k)), rel=1e-12)

    @pytest.mark.parametrize("mode", MODES)
    @given(seeds, st.integers(1, 4))
    @settings(max_examples=8)
    def test_linear_field(self, mode, seed, d):
        # x' = Ax, L = c·x(T): λ(t) = e^{Aᵀ(T - t)}c, and ∂L/∂A the adjoint of the Fréchet derivative of e^{AT}
        A, x0, c, T = parameter(normal(seed, d, d) / 2), normal(seed + 1, d), normal(seed + 2, d), 1.2
        t = np.linspace(0, T, 101)
        result = adjoint_gradient(lambda t, x: A @ x, [A], x0, t, lambda path: path[-1] @ c, mode=mode)
        M = A.detach().numpy()
        scale = 1e-6 * math.exp(1.2 * np.linalg.norm(M, 2)) * (1 + float(c.norm() * x0.norm()))
        for k in (0, 50, 100):
            np.testing.assert_allclose(result.adjoint[k], scipy.linalg.expm(M.T * (T - t[k])) @ c.numpy(), atol=scale)
        _, frechet = scipy.linalg.expm_frechet(M.T * T, T * np.outer(c, x0))
        np.testing.assert_allclose(result.grad_params[0], frechet, atol=scale)

    def test_spiral(self):
        # B4.19: |λ(0)|/|λ(T)| = e^{-αT} = 0.22313, turned by -ωT
        A = parameter([[-0.3, -2.0], [2.0, -0.3]])
        x0, target = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.2, -0.1], dtype=torch.float64)
        for mode in MODES:
            result = adjoint_gradient(
                lambda t, x: A @ x,
                [A],
                x0,
                np.linspace(0, 5, 201),
                lambda p: (p[-1] - target).square().sum() / 2,
                mode=mode,
            )
            start, end = (torch.view_as_complex(result.adjoint[k]) for k in (0, -1))
            assert abs(start / end) == pytest.approx(0.22313, abs=6e-6)
            assert torch.angle(start / end * np.exp(10j)).item() == pytest.approx(0, abs=1e-6)

    def test_explicit_time(self):
        # x' = θ cos(t) x: ln x(T)/x₀ = θ(sin T - sin t₀); L = x(T)
        theta, t0, T = parameter(0.8), 0.5, 2.5
        t = np.linspace(t0, T, 101)
        for mode in MODES:
            result = adjoint_gradient(
                lambda t, x: theta * math.cos(t) * x,
                [theta],
                torch.ones(1, dtype=torch.float64),
                t,
                lambda p: p[-1, 0],
                mode=mode,
            )
            integral = math.sin(T) - math.sin(t0)
            end = math.exp(0.8 * integral)
            assert result.grad_params[0].item() == pytest.approx(integral * end, rel=1e-7)
            np.testing.assert_allclose(result.adjoint[:, 0], np.exp(0.8 * (math.sin(T) - np.sin(t))), rtol=1e-8)


class TestAgainstBackPropagation:
    @pytest.mark.parametrize("method", ode.FIXED)
    @pytest.mark.parametrize("segment", [None, 1, 2, 3, 7, 100])
    @pytest.mark.parametrize("loss", [every_time, at_the_end, lambda path: path[2].sum() ** 2])
    def test_checkpoint_is_exact(self, method, segment, loss):
        params, f = network()
        x0, t = normal(9, 3, 2), np.cumsum(np.linspace(0.02, 0.2, 8))
        result = adjoint_gradient(f, params, x0, t, loss, mode="checkpoint", method=method, segment=segment)
        value, gradients, adjoint = backprop(f, params, x0, t, loss, method)
        np.testing.assert_allclose(result.loss, value, rtol=1e-14)
        np.testing.assert_allclose(result.adjoint, adjoint, rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(result.grad_x0, adjoint[0], rtol=1e-11, atol=1e-13)
        for ours, theirs, p in zip(result.grad_params, gradients, params, strict=True):
            assert ours.shape == p.shape
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("mode", ["joint", "stored"])
    @pytest.mark.parametrize("method", ode.FIXED)
    @pytest.mark.parametrize("loss", [at_the_end, lambda path: path[:: (len(path) - 1) // 4].square().mean()])
    def test_others_converge_at_the_order(self, mode, method, loss):
        params, f = network(3)
        x0, errors = normal(9, 2), []
        for N in (64, 128):
            # steps of unequal length
            t = np.linspace(0, 1, N + 1)
            t = 1.2 * t + 0.1 * np.sin(2 * np.pi * t)
            result = adjoint_gradient(f, params, x0, t, loss, mode=mode, method=method)
            _, gradients, adjoint = backprop(f, params, x0, t, loss, method)
            errors.append([relative(result.grad_params, gradients), relative([result.adjoint], [adjoint])])
        order = np.log2(np.divide(*errors))
        assert (order > ORDERS[method] - 0.5).all() and max(errors[1]) < 0.1

    @given(seeds, st.integers(1, 3), st.integers(1, 9), st.sampled_from(MODES))
    @settings(max_examples=20)
    def test_batch_is_the_sum(self, seed, batch, n_steps, mode):
        params, f = network(seed % 1000)
        x0, t = normal(seed, batch, 2), np.linspace(0, 0.5, n_steps + 1)
        whole = adjoint_gradient(f, params, x0, t, at_the_end, mode=mode)
        parts = [adjoint_gradient(f, params, x, t, at_the_end, mode=mode) for x in x0]
        np.testing.assert_allclose(whole.adjoint, torch.stack([p.adjoint for p in parts], dim=1), atol=1e-11)
        np.testing.assert_allclose(whole.loss, sum(p.loss for p in parts), rtol=1e-12)
        for k, gradient in enumerate(whole.grad_params):
            expected = sum(p.grad_params[k] for p in parts)
            np.testing.assert_allclose(gradient, expected, atol=1e-11 * (1 + expected.abs().max()))

    @pytest.mark.parametrize("mode", MODES)
    def test_hamiltonian_is_constant(self, mode):
        # autonomous field, terminal loss: H = λ·f(x) (B4.19)
        params, _ = network(5)
        f = lambda t, x: torch.tanh(x @ params[0] + params[1]) @ params[2] - x  # noqa: E731
        x0, t = normal(2, 2), np.linspace(0, 2, 201)
        result = adjoint_gradient(f, params, x0, t, at_the_end, mode=mode)
        with torch.no_grad():
            path = ode.odeint(f, x0, t)
            H = torch.stack([lam @ f(0.0, x) for lam, x in zip(result.adjoint, path, strict=True)])
        assert (H - H[-1]).abs().max() < 1e-6 * H.abs().max() and H.abs().max() > 0.01

    @pytest.mark.parametrize("mode", MODES)
    def test_finite_differences(self, mode):
        params, f = network(7)
        x0, t = normal(1, 2), np.linspace(0, 1, 101)
        result = adjoint_gradient(f, params, x0, t, every_time, mode=mode)
        with torch.no_grad():
            for p, gradient in zip([*params, x0], [*result.grad_params, result.grad_x0], strict=True):
                direction, ends = torch.ones_like(p), []
                for sign in (1, -1):
                    p += sign * 1e-5 * direction
                    ends.append(every_time(ode.odeint(f, x0, t)))
                    p -= sign * 1e-5 * direction
                assert ((ends[0] - ends[1]) / 2e-5).item() == pytest.approx(
                    (gradient * direction).sum().item(), rel=1e-4
                )

    def test_agrees_with_torchdiffeq(self):
        net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
        with torch.no_grad():
            for k, p in enumerate(net.parameters()):
                p.copy_(normal(k, *p.shape))

        class Field(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, t, x):
                return torch.cos(t) * self.net(x)

        x0, t = normal(8, 3, 2).requires_grad_(), torch.linspace(0, 1, 101, dtype=torch.float64)
        path = torchdiffeq.odeint_adjoint(Field(), x0, t, method="rk4")
        theirs = torch.autograd.grad(every_time(path), [x0, *net.parameters()])
        for mode in MODES:
            result = adjoint_gradient(lambda t, x: math.cos(t) * net(x), net.parameters(), x0, t, every_time, mode=mode)
            for ours, reference in zip([result.grad_x0, *result.grad_params], theirs, strict=True):
                np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", MODES)
class TestEdges:
    def test_no_parameters(self, mode):
        result = adjoint_gradient(
            lambda t, x: -x, [], torch.ones(2, dtype=torch.float64), np.linspace(0, 1, 51), at_the_end, mode=mode
        )
        assert result.grad_params == ()
        np.testing.assert_allclose(result.grad_x0, math.exp(-2), rtol=1e-7)

    def test_unused_parameter(self, mode):
        p, unused = parameter(0.5), parameter(torch.ones(2, 3))
        result = adjoint_gradient(lambda t, x: p * x, [unused, p], torch.ones(1), [0, 0.5, 1], at_the_end, mode=mode)
        assert (result.grad_params[0] == 0).all() and result.grad_params[0].shape == (2, 3)
        assert result.grad_params[1] > 0

    def test_field_without_x(self, mode):
        # x' = θt: x(T) = x₀ + θT²/2
        p = parameter(0.5)
        result = adjoint_gradient(
            lambda t, x: p * t * torch.ones_like(x),
            [p],
            torch.ones(1, dtype=torch.float64),
            np.linspace(0, 2, 5),
            lambda path: path[-1] * 3,
            mode=mode,
        )
        assert result.grad_params[0].item() == pytest.approx(6, rel=1e-12)
        np.testing.assert_allclose(result.adjoint, 3, rtol=1e-14)
        assert result.adjoint.shape == (5, 1)

    def test_field_without_parameters(self, mode):
        p = parameter(0.5)
        for field, start in ((lambda t, x: -x, math.exp(-1)), (lambda t, x: torch.ones_like(x), 1)):
            result = adjoint_gradient(
                field,
                [p],
                torch.ones(1, dtype=torch.float64),
                np.linspace(0, 1, 51),
                lambda path: path[-1, 0],
                mode=mode,
            )
            assert result.grad_params[0] == 0
            assert result.grad_x0.item() == pytest.approx(start, rel=1e-7)

    @pytest.mark.parametrize("method", ode.FIXED)
    def test_evaluations(self, mode, method):
        calls, N, s = [], 7, STAGES[method]
        p = parameter(0.5)
        f = lambda t, x: calls.append(t) or p * x  # noqa: E731
        result = adjoint_gradient(f, [p], torch.ones(1), np.linspace(0, 1, N + 1), at_the_end, mode=mode, method=method)
        # forward and back s a step; Hermite's cubic needs the slopes where a stage stands between the times
        extra = N + 1 if mode == "stored" and method in ("midpoint", "rk4") else 0
        assert result.n_evaluations == len(calls) == 2 * s * N + extra

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtype_and_device(self, mode, device, dtype):
        p = torch.tensor([0.5, -1.0], dtype=dtype, device=device, requires_grad=True)
        x0 = torch.ones(3, 2, dtype=dtype, device=device)
        result = adjoint_gradient(lambda t, x: p * x, [p], x0, torch.linspace(0, 1, 11), every_time, mode=mode)
        for tensor in (result.loss, result.grad_x0, result.adjoint, *result.grad_params):
            assert tensor.dtype == dtype and tensor.device == x0.device and not tensor.requires_grad
        assert result.loss.shape == () and result.adjoint.shape == (11, 3, 2) and result.grad_x0.shape == (3, 2)
        expected = torch.autograd.grad(
            every_time(torch.exp(torch.linspace(0, 1, 11)[:, None, None].to(x0) * p) * x0), p
        )[0]
        np.testing.assert_allclose(result.grad_params[0].cpu(), expected.cpu(), rtol=1e-4)

    def test_nothing_is_touched(self, mode):
        p, x0 = parameter(0.5), torch.ones(2, dtype=torch.float64, requires_grad=True)
        with torch.no_grad():  # the caller's setting does not matter
            adjoint_gradient(lambda t, x: p * x, [p], x0, [0, 1], at_the_end, mode=mode)
        assert p.grad is None and x0.grad is None and (x0 == 1).all()

    def test_loss_of_one_entry(self, mode):
        p = parameter(0.5)
        result = adjoint_gradient(lambda t, x: p * x, [p], torch.ones(1), [0, 1], lambda path: path[-1], mode=mode)
        assert result.loss.shape == () and result.adjoint[-1] == 1

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"loss": lambda path: path[-1]}, r"map the trajectory to a scalar tensor, got shape \(2,\)"),
            ({"loss": lambda path: path.detach().sum()}, "loss must"),
            ({"params": [torch.ones(1)]}, "params must be tensors that require gradients"),
            ({"params": [1.0]}, "params must be tensors that require gradients"),
            ({"method": "dopri5"}, "method must be one of 'euler', .*, got 'dopri5'"),
            ({"t": [0, 1, 1]}, r"t must increase, got t\[1\] = 1"),
            ({"t": [1]}, "at least two times"),
            ({"f": lambda t, x: x.sum()}, r"must have the shape \(2,\) of x, got \(\)"),
        ],
    )
    def test_bad_input(self, mode, options, message):
        defaults = {"f": lambda t, x: -x, "params": [], "x0": torch.ones(2), "t": [0, 1], "loss": at_the_end}
        with pytest.raises(ValueError, match=message):
            adjoint_gradient(**defaults | {"mode": mode} | options)

    def test_divergence(self, mode):
        with pytest.raises(FloatingPointError, match=r"not finite at t = 4 \(step 4\)"):
            adjoint_gradient(lambda t, x: 1e10 * x, [], torch.ones(1), range(9), at_the_end, mode=mode, method="euler")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "exact"}, "mode must be one of 'joint', 'stored', 'checkpoint', got 'exact'"),
        ({"mode": "joint", "segment": 2}, 'segment belongs to mode="checkpoint"'),
        ({"mode": "joint", "segment": 0}, 'segment belongs to mode="checkpoint"'),
        ({"mode": "stored", "segment": 2}, 'segment belongs to mode="checkpoint"'),
        ({"mode": "checkpoint", "segment": 0}, "segment must be at least 1, got 0"),
        ({"mode": "checkpoint", "segment": 1.5}, "segment must be an integer, got 1.5"),
    ],
)
def test_bad_modes(options, message):
    with pytest.raises(ValueError, match=message):
        adjoint_gradient(lambda t, x: -x, [], torch.ones(2), [0, 1], at_the_end, **options)


class TestSavedTensors:
    def test_by_hand(self):
        x, W, n = parameter(normal(0, 10)), parameter(normal(1, 10)), 80
        with SavedTensors() as saved:
            y = torch.tanh(x)  # keeps its result
            assert saved.now == saved.peak == n
            z = y * y  # keeps y again, in the same storage
            assert saved.now == n
            w = torch.exp(2 * z)  # its result; a product with a number keeps nothing
            assert saved.now == 2 * n
            out = (w * W).sum()  # w once more, and the leaf W, which does not count
            assert saved.now == saved.peak == 2 * n
        del y, z, w
        assert saved.now == 2 * n  # the graph of out holds them
        del out
        assert saved.now == 0 and saved.peak == 2 * n

    def test_gone_after_the_way_back(self):
        x = parameter(normal(0, 10))
        with SavedTensors() as saved:
            out = torch.tanh(torch.tanh(x)).sum()
        assert saved.now == 160
        out.backward()
        assert saved.now == 0 and saved.peak == 160
        np.testing.assert_allclose(x.grad, torch.autograd.grad(torch.tanh(torch.tanh(x)).sum(), x)[0])

    def test_parameters_do_not_count(self):
        W, x = parameter(normal(0, 5, 3)), normal(1, 4, 3)
        with SavedTensors() as saved:
            y = x @ W.T  # keeps x, whose derivative nobody asks for, and not the view Wᵀ
        assert saved.now == 4 * 3 * 8
        with SavedTensors() as other:
            z = x.requires_grad_() @ W.T
        assert other.now == 0 and y.shape == z.shape  # x is a leaf as well

    def test_one_after_the_other(self):
        x = parameter(normal(0, 10))
        with SavedTensors() as saved:
            for _ in range(5):
                torch.tanh(x).sum().backward()
        assert saved.now == 0 and saved.peak == 80
        with saved:
            a, b = torch.tanh(x), torch.exp(x)
        assert saved.now == saved.peak == 160
        del a, b
        assert saved.now == 0

    def test_outside_nothing_is_counted(self):
        saved, x = SavedTensors(), parameter(normal(0, 10))
        y = torch.tanh(x)
        assert saved.now == saved.peak == 0 and y.shape == (10,)

    @pytest.mark.parametrize("method", ode.FIXED)
    def test_of_the_modes(self, method):
        # f = tanh(Wx) keeps x and the tanh, 8d bytes each, at every stage; leaves and W do not count
        d, s = 3, STAGES[method]
        W, x0 = parameter(normal(0, d, d)), normal(1, d)
        f, loss = lambda t, x: torch.tanh(W @ x), lambda path: path[-1].sum()
        for N in (9, 36, 144):
            t = np.linspace(0, 1, N + 1)
            with SavedTensors() as saved:
                loss(ode.odeint(f, x0, t, method)).backward()
            assert saved.peak == 2 * s * N * 8 * d and saved.now == 0
            for mode in ("joint", "stored"):
                with SavedTensors() as saved:
                    adjoint_gradient(f, [W], x0, t, loss, mode=mode, method=method)
                assert saved.peak == 8 * d and saved.now == 0
            with SavedTensors() as saved:
                adjoint_gradient(f, [W], x0, t, loss, mode="checkpoint", method=method)
            # a segment of √N steps, less its first x, a leaf
            assert saved.peak == (2 * s * math.isqrt(N) - 1) * 8 * d and saved.now == 0


def increments(seed, n_steps, n_paths, T=1.0):
    return normal(seed, n_steps, n_paths) * math.sqrt(T / n_steps)


def coarsened(dB, factor):
    return dB.reshape(-1, factor, *dB.shape[1:]).sum(dim=1)


class TestSdeint:
    def test_geometric_brownian_motion(self):
        # a step multiplies by R(αh + σΔB) = 1 + z + z²/2, also where steps are unequal and the noise a matrix
        alpha, sigma, t = 0.3, 0.5, np.cumsum([0.1, 0.2, 0.05, 0.3])
        dB = normal(0, 3, 4, 2)
        x0 = normal(1, 4, 2)
        path = sdeint(lambda t, x: alpha * x, lambda t, x, w: sigma * x * w, x0, t, dB)
        z = alpha * torch.from_numpy(np.diff(t)).reshape(3, 1, 1) + sigma * dB
        expected = torch.cat([x0[None], x0 * torch.cumprod(1 + z + z**2 / 2, dim=0)])
        np.testing.assert_allclose(path, expected, rtol=1e-12)

    def test_strong_order(self):
        # ln R(z) = z - z³/6 + z⁴/8 + …: the relative error has the mean square
        # 15h²σ⁶T/36 + (hT(3σ⁴/8 - ασ²/2))² (E z³ = 3αhσ²h, E z⁶ = 15σ⁶h³, E z⁴ = 3σ⁴h²)
        alpha, sigma, M = 0.1, 0.5, 20_000
        fine, size = increments(0, 64, M), {}
        exact = torch.exp(alpha + sigma * fine.sum(dim=0))
        for N in (32, 64):
            x = sdeint(
                lambda t, x: alpha * x,
                lambda t, x, w: sigma * x * w,
                torch.ones(M, dtype=torch.float64),
                np.linspace(0, 1, N + 1),
                coarsened(fine, 64 // N),
            )[-1]
            square = (x / exact - 1) ** 2
            theory = (15 * sigma**6 / 36 + (3 * sigma**4 / 8 - alpha * sigma**2 / 2) ** 2) / N**2
            # the next order is 1/√N of it at most
            assert square.mean().item() == pytest.approx(
                theory, abs=5 * square.std().item() / math.sqrt(M) + theory / math.sqrt(N)
            )
            size[N] = square.mean().sqrt().item()
        assert math.log2(size[32] / size[64]) == pytest.approx(1, abs=0.1)

    def test_way_back_along_the_path(self):
        # Y.25: with the increments reversed and negated a step multiplies by R(-z), and R(z)R(-z) = 1 + z⁴/4
        alpha, sigma, M = 0.1, 0.5, 5000
        for N, rms in ((50, 1.0e-3), (200, 2.4e-4)):
            t, dB = np.linspace(0, 1, N + 1), increments(1, N, M)
            diffusion = lambda t, x, w: sigma * x * w  # noqa: E731
            end = sdeint(lambda t, x: alpha * x, diffusion, torch.ones(M, dtype=torch.float64), t, dB)[-1]
            start = sdeint(lambda t, x: -alpha * x, diffusion, end, t, -dB.flip(0))[-1]
            z = alpha / N + sigma * dB
            np.testing.assert_allclose(start, (1 + z**4 / 4).prod(dim=0), rtol=1e-12)
            assert (start - 1).square().mean().sqrt().item() == pytest.approx(rms, rel=0.1)

    def test_without_noise(self):
        params, f = network()
        x0, t = normal(2, 3, 2), np.cumsum(np.linspace(0.05, 0.2, 9))
        path = sdeint(f, lambda t, x, w: 0 * x, x0, t, normal(3, 8, 1))
        np.testing.assert_allclose(path.detach(), ode.odeint(f, x0, t, "heun").detach(), rtol=1e-13)
        path = sdeint(f, lambda t, x, w: x * w, x0, t, torch.zeros(8))
        np.testing.assert_allclose(path.detach(), ode.odeint(f, x0, t, "heun").detach(), rtol=1e-13)
        assert len(params) == 3

    def test_additive_noise(self):
        # two components from three noises: x = x₀ + σ Σ dB
        S, dB, x0 = normal(0, 2, 3), normal(1, 10, 5, 3), normal(2, 5, 2)
        path = sdeint(lambda t, x: torch.zeros_like(x), lambda t, x, w: w @ S.T, x0, np.cumsum(np.arange(1, 12)), dB)
        np.testing.assert_allclose(path, torch.cat([x0[None], x0 + torch.cumsum(dB @ S.T, dim=0)]), rtol=1e-11)

    def test_time_dependent_noise(self):
        # σ(t) = t: Heun takes the mean of σ at both ends
        t, dB = np.array([0.0, 0.5, 2.0]), torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
        path = sdeint(lambda t, x: 0 * x, lambda t, x, w: t * w, torch.zeros(1, dtype=torch.float64), t, dB)
        np.testing.assert_allclose(path[:, 0], [0, 0.5, 0.5 - 1.25], rtol=1e-14)

    def test_noise_that_does_not_commute(self):
        # Y.26: dX₁ = dB₁, dX₂ = X₁ ∘ dB₂ misses the areas within the steps, of variance h²/4 each; against steps of h/f
        # the variance of the difference is T(h - h/f)/4
        M, T, factor = 4000, 1.0, 16

        def end(dB):
            diffusion = lambda t, x, w: torch.stack([w[:, 0], x[:, 0] * w[:, 1]], dim=1)  # noqa: E731
            x0 = torch.zeros(M, 2, dtype=torch.float64)
            return sdeint(lambda t, x: torch.zeros_like(x), diffusion, x0, np.linspace(0, T, len(dB) + 1), dB)[-1]

        for N in (8, 16):
            fine = normal(N, N * factor, M, 2) * math.sqrt(T / (N * factor))
            difference = end(coarsened(fine, factor)) - end(fine)
            np.testing.assert_allclose(difference[:, 0], 0, atol=1e-13)
            square = difference[:, 1] ** 2
            expected = T * (T / N) * (1 - 1 / factor) / 4
            assert square.mean().item() == pytest.approx(expected, abs=5 * square.std().item() / math.sqrt(M))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (
                lambda: sdeint(lambda t, x: x, lambda t, x, w: x * w, torch.ones(1), [0, 1, 2], torch.ones(3, 1)),
                "dB must hold one increment a step, 2, got 3",
            ),
            (
                lambda: sdeint(lambda t, x: x, lambda t, x, w: x * w, torch.ones(1), [0, 0], torch.ones(1, 1)),
                "t must increase",
            ),
            (
                lambda: sdeint(lambda t, x: x.sum(), lambda t, x, w: w, torch.ones(2), [0, 1], torch.ones(1)),
                "must have the shape|scalar",
            ),
            (
                lambda: sdeint(lambda t, x: x, lambda t, x, w: w, torch.ones(2), [0, 1], torch.ones(1, 3, 2)),
                r"shape \(2,\) of x, got \(3, 2\)",
            ),
            (
                lambda: sde_adjoint_gradient(
                    lambda t, x: x, lambda t, x, w: x * w, [], torch.ones(1), [0, 1], torch.ones(2), at_the_end
                ),
                "one increment a step, 1, got 2",
            ),
            (
                lambda: sde_adjoint_gradient(
                    lambda t, x: x,
                    lambda t, x, w: x * w,
                    [],
                    torch.ones(1),
                    [0, 1],
                    torch.ones(1),
                    at_the_end,
                    mode="back",
                ),
                "mode must be one of",
            ),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_divergence(self):
        with pytest.raises(FloatingPointError, match=r"not finite at t = \d \(step \d\)"):
            sdeint(lambda t, x: 1e15 * x, lambda t, x, w: x * w, torch.ones(1), range(9), torch.ones(8))


def neural_sde(theta, M):
    """Y.26 (ii): b = θ₀ sin x + θ₁, σ = θ₂(1 + 0.3 cos x), one set of parameters a path."""
    params = [parameter(torch.full((M,), value)) for value in theta]
    a, b, c = params
    return params, lambda t, x: a * torch.sin(x) + b, lambda t, x, w: c * (1 + 0.3 * torch.cos(x)) * w


class TestSdeAdjoint:
    def test_geometric_brownian_motion(self):
        # Y.26 (i): ∂L/∂α = T x(T)², ∂L/∂σ = B(T) x(T)², λ(t)x(t) constant, for L = ½x(T)²
        M, T, x0 = 2000, 1.0, torch.ones(2000, dtype=torch.float64)
        fine, rms = increments(3, 128, M), {mode: [] for mode in MODES}
        exact = torch.exp(0.1 + 0.5 * fine.sum(dim=0)) ** 2
        for mode in MODES:
            for N in (64, 128):
                alpha, sigma = (parameter(torch.full((M,), v)) for v in (0.1, 0.5))
                dB = coarsened(fine, 128 // N)
                drift, diffusion = lambda t, x: alpha * x, lambda t, x, w: sigma * x * w  # noqa: B023
                t = np.linspace(0, T, N + 1)
                result = sde_adjoint_gradient(drift, diffusion, [alpha, sigma], x0, t, dB, at_the_end, mode=mode)
                with torch.no_grad():
                    path = sdeint(drift, diffusion, x0, t, dB)
                product = result.adjoint * path
                np.testing.assert_allclose(product, product[-1:].expand_as(product), rtol=1e-11)
                wanted = (T * exact, fine.sum(dim=0) * exact)
                rms[mode].append(
                    [(g - w).square().mean().sqrt().item() for g, w in zip(result.grad_params, wanted, strict=True)]
                )
                assert result.n_evaluations == 4 * N
            first, second = np.array(rms[mode])
            assert (abs(np.log2(first / second) - 1) < 0.25).all(), mode
            assert all(e < 0.03 * w.square().mean().sqrt() for e, w in zip(second, wanted, strict=True))

    def test_mean_gradient(self):
        # E ∂L/∂α = E ∂L/∂σ = 2.01375 at α = 0.1, σ = ½, T = 1
        M = 20_000
        alpha, sigma = (parameter(torch.full((M,), v)) for v in (0.1, 0.5))
        result = sde_adjoint_gradient(
            lambda t, x: alpha * x,
            lambda t, x, w: sigma * x * w,
            [alpha, sigma],
            torch.ones(M, dtype=torch.float64),
            np.linspace(0, 1, 65),
            increments(5, 64, M),
            at_the_end,
        )
        for gradient in result.grad_params:
            assert gradient.mean().item() == pytest.approx(2.01375, abs=5 * gradient.std().item() / math.sqrt(M) + 0.01)

    def test_checkpoint_is_back_propagation(self):
        params, drift, diffusion = neural_sde((-1, 0.3, 0.4), 5)
        t, dB = np.cumsum(np.linspace(0.02, 0.1, 12)), normal(0, 11, 5) / 4
        x0 = torch.full((5,), 0.7, dtype=torch.float64)
        result = sde_adjoint_gradient(drift, diffusion, params, x0, t, dB, every_time, mode="checkpoint")
        leaf = x0.clone().requires_grad_()
        path = sdeint(drift, diffusion, leaf, t, dB)
        value = every_time(path)
        theirs = torch.autograd.grad(value, [leaf, *params])
        np.testing.assert_allclose(result.loss, value.detach(), rtol=1e-14)
        for ours, reference in zip([result.grad_x0, *result.grad_params], theirs, strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-11, atol=1e-14)

    @pytest.mark.parametrize("mode", ["joint", "stored"])
    def test_others_converge(self, mode):
        # strong order 1 against the derivative of Heun's map; jumps at every eighth time
        M = 1000
        params, drift, diffusion = neural_sde((-1, 0.3, 0.4), M)
        x0, fine, rms = torch.full((M,), 0.7, dtype=torch.float64), increments(6, 128, M), []
        for N in (32, 128):
            loss = lambda path, N=N: path[:: N // 8].square().sum() / 2  # noqa: E731
            t, dB = np.linspace(0, 1, N + 1), coarsened(fine, 128 // N)
            result = sde_adjoint_gradient(drift, diffusion, params, x0, t, dB, loss, mode=mode)
            exact = sde_adjoint_gradient(drift, diffusion, params, x0, t, dB, loss, mode="checkpoint")
            pairs = zip([result.grad_x0, *result.grad_params], [exact.grad_x0, *exact.grad_params], strict=True)
            rms.append([(a - b).square().mean().sqrt().item() for a, b in pairs])
        assert (np.log2(np.divide(*rms)) > 2 - 0.4).all() and max(rms[1]) < 0.02

    def test_means_of_the_inventory(self):
        # Y.26 (ii): .1916 ± .0056, .3126 ± .0074, .2738 ± .0171 for L = ½x(T)²
        M = 4000
        params, drift, diffusion = neural_sde((-1, 0.3, 0.4), M)
        x0 = torch.full((M,), 0.7, dtype=torch.float64)
        result = sde_adjoint_gradient(
            drift, diffusion, params, x0, np.linspace(0, 1, 65), increments(7, 64, M), at_the_end
        )
        for gradient, mean, error in zip(
            result.grad_params, (0.1916, 0.3126, 0.2738), (0.0056, 0.0074, 0.0171), strict=True
        ):
            spread = math.hypot(error, gradient.std().item() / math.sqrt(M))
            assert gradient.mean().item() == pytest.approx(mean, abs=5 * spread)

    def test_parameter_gradients_of_one_path_sum(self):
        # a parameter that all paths share gets the sum
        dB, t, x0 = normal(0, 8, 3) / 3, np.linspace(0, 1, 9), normal(1, 3)
        many, drift, diffusion = neural_sde((-1, 0.3, 0.4), 3)
        one, shared, spread = neural_sde((-1, 0.3, 0.4), 1)
        for mode in MODES:
            apart = sde_adjoint_gradient(drift, diffusion, many, x0, t, dB, at_the_end, mode=mode)
            together = sde_adjoint_gradient(shared, spread, one, x0, t, dB, at_the_end, mode=mode)
            for a, b in zip(apart.grad_params, together.grad_params, strict=True):
                np.testing.assert_allclose(a.sum(), b[0], rtol=1e-11)


class TestLossesThatAreNone:
    """What a user writes by mistake, and what is said then."""

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (lambda path: 1.0, "got float"),
            (lambda path: path[-1], r"got shape \(2,\)"),
            (lambda path: torch.tensor(1.0), "depend on the trajectory"),
            (lambda path: torch.ones((), requires_grad=True) ** 2, "depend on the trajectory"),
        ],
    )
    def test_refused(self, loss, message, unchecked):
        with pytest.raises(ValueError, match=message):
            adjoint_gradient(lambda t, x: -x, [], torch.ones(2), [0, 1], loss)

    def test_states_of_integers_and_times_that_are_one_number(self, unchecked):
        with pytest.raises(ValueError, match="x0 must be a tensor of floating-point"):
            adjoint_gradient(lambda t, x: -x, [], torch.ones(2, dtype=torch.int64), [0, 1], torch.sum)
        with pytest.raises(ValueError, match="t must have 1 dimension"):
            adjoint_gradient(lambda t, x: -x, [], torch.ones(2), torch.tensor(1.0), torch.sum)


def test_a_loss_of_the_parameters_themselves_is_refused():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="through the trajectory only"):
        adjoint_gradient(lambda t, x: -w * x, [w], torch.ones(2), [0, 1], lambda path: path.sum() + (w**2).sum())


def test_a_way_back_that_is_lost_is_told():
    # z' = -μ(z - cos t) backwards over 2 with μ = 800: e^{1600}
    mu = torch.tensor(800.0, dtype=torch.float64, requires_grad=True)
    field = lambda t, z: -mu * (z - math.cos(t))  # noqa: E731
    problem = (field, [mu], torch.ones((), dtype=torch.float64), np.linspace(0, 2, 1001), lambda path: (path**2).mean())
    with pytest.raises(FloatingPointError, match="way back is lost"):
        adjoint_gradient(*problem)
    assert torch.isfinite(adjoint_gradient(*problem, mode="checkpoint").grad_params[0])


@pytest.mark.parametrize("mode", ["joint", "stored", "checkpoint"])
def test_complex_states(mode):
    # x' = i x: L = Re x(1) = Re(e^i x0) = cos(1) Re x0 - sin(1) Im x0, and torch's gradient is ∂L/∂Re + i ∂L/∂Im
    x0 = torch.tensor([0.3 + 0.4j], dtype=torch.complex128)
    result = adjoint_gradient(
        lambda t, x: 1j * x, [], x0, np.linspace(0, 1, 101), lambda p: p[-1].real.sum(), mode=mode
    )
    expected = complex(math.cos(1), -math.sin(1))
    assert abs(result.grad_x0[0].item() - expected) < 1e-9
