"""Ordinary differential equations."""

import numpy as np
import pytest
import scipy.integrate
import torch
import torchdiffeq
from comparison import Close, Work

from coursekit.neural_ode import adjoint_gradient
from coursekit.ode import odeint, solve_adaptive

RK4_STAGES = 4


def pendulums(lib):
    """The field of many pendulums, angles and velocities."""
    return lambda t, x: lib.stack([x[1], -lib.sin(x[0])])


def repeated(call, times):
    for _ in range(times):
        call()


def bench_rk4(compare):
    def make(n, n_steps=100):
        x0 = np.random.default_rng(n).standard_normal((2, n))
        t = np.linspace(0, 5, n_steps + 1)
        field, torch_field = pendulums(np), pendulums(torch)
        start, times = torch.from_numpy(x0), torch.from_numpy(t)
        return Work(
            ours=lambda: odeint(field, x0, t),
            # the 3/8 rule, of as many stages and of the same order
            peers={"torchdiffeq": lambda: torchdiffeq.odeint(torch_field, start, times, method="rk4")},
            floor=lambda: repeated(lambda: field(0.0, x0), RK4_STAGES * n_steps),
        )

    compare(
        "RK4 for pendulums from many starts: 100 steps",
        make,
        (2000, 4000, 8000, 16_000),
        unit="starts",
        agree=Close(rtol=0, atol=1e-5),
        floor="evaluating the field",
        growth="n",
    )


def dopri5(field, x0, end, n_times, tolerance):
    """The same method with the same control of the step, ours and scipy's."""
    t = np.linspace(0, end, n_times)
    flat = field if x0.ndim == 1 else lambda t, x: field(t, x.reshape(x0.shape)).ravel()
    n_evaluations = solve_adaptive(field, x0, 0, end, rtol=tolerance, atol=tolerance).n_evaluations

    def theirs():
        options = {"t_eval": t, "rtol": tolerance, "atol": tolerance}
        return scipy.integrate.solve_ivp(flat, (0, end), x0.ravel(), **options).y.T.reshape(-1, *x0.shape)

    return Work(
        ours=lambda: odeint(field, x0, t, "dopri5", rtol=tolerance, atol=tolerance),
        peers={"scipy": theirs},
        floor=lambda: repeated(lambda: field(0.0, x0), n_evaluations),
    )


def bench_dopri5_long(compare):
    def make(n):
        rotation = np.array([[0.0, 2.0], [-2.0, 0.0]])
        return dopri5(lambda t, x: x @ rotation, np.array([1.0, 0.0]), n, 5 * n + 1, 1e-6)

    compare(
        "dopri5 for a rotation of the plane, tolerance 1e-6",
        make,
        (10, 20, 40, 80, 160),
        unit="units of time",
        agree=Close(rtol=0, atol=1e-5),
        floor="evaluating the field",
        growth="n",
        reason="both take the same steps of the same method, and for two numbers a step is calls of numpy: about 55 µs "
        "in ours, 45 in scipy's, of which the six evaluations of the field take 7.",
    )


def bench_dopri5_wide(compare):
    def make(n):
        return dopri5(pendulums(np), np.random.default_rng(n).uniform(-1, 1, (2, n)), 5, 11, 1e-6)

    compare(
        "dopri5 for pendulums from many starts, tolerance 1e-6",
        make,
        (2000, 4000, 8000, 16_000),
        at=8000,
        unit="starts",
        agree=Close(rtol=0, atol=1e-5),
        floor="evaluating the field",
        growth="n",
        reason="our solution can be asked for any time, so it keeps value, slope and middle of every step and makes "
        "the polynomial of each; scipy's keeps what the times given need. That is eight times the memory, and new "
        "memory is slow: with 16,000 starts scipy takes 0.6 of our time, where the allocator holds on to memory 0.7.",
    )


class Network(torch.nn.Module):
    """The field of a neural ODE, which counts its evaluations."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            first, second, last = torch.nn.Linear(2, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 2)
        self.layers, self.calls = torch.nn.Sequential(first, torch.nn.Tanh(), second, torch.nn.Tanh(), last), 0

    def forward(self, t, x):
        self.calls += 1
        return self.layers(x)


class Forced(Network):
    """Driven periodically, so that steps do not become longer and longer."""

    def forward(self, t, x):
        return super().forward(t, x) + 2 * torch.cos(6 * torch.as_tensor(t))


def starts(n):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(n))


def times(n_steps):
    return 0.1 * torch.arange(n_steps + 1)


SIZES = pytest.mark.parametrize("n_starts", [1, 1000], ids=["one", "many"])


def of_network(n_starts):
    return f"network 2-64-64-2, {n_starts} start{'s' * (n_starts > 1)}"


@SIZES
def bench_neural_rk4(compare, n_starts):
    def make(n):
        field, x0, t = Network(), starts(n_starts), times(n)
        return Work(
            ours=lambda: odeint(field, x0, t).detach(),
            peers={"torchdiffeq": lambda: torchdiffeq.odeint(field, x0, t, method="rk4").detach()},
            floor=lambda: repeated(lambda: field(0.0, x0), RK4_STAGES * n),
        )

    compare(
        f"RK4 with the graph: {of_network(n_starts)}",
        make,
        (10, 20, 40, 80, 160) if n_starts == 1 else (10, 20, 40, 80),
        unit="steps",
        agree=Close(rtol=0, atol=1e-4),
        floor="evaluating the network",
        growth="n",
        kind="torch",
    )


@SIZES
def bench_neural_dopri5(compare, n_starts):
    tolerances = {"rtol": 1e-4, "atol": 1e-6}

    def make(n):
        field, x0, t = Forced(), starts(n_starts), times(10 * n)

        def ours():
            return odeint(field, x0, t, "dopri5", **tolerances).detach()

        ours()
        n_evaluations = field.calls
        return Work(
            ours,
            {"torchdiffeq": lambda: torchdiffeq.odeint(field, x0, t, method="dopri5", **tolerances).detach()},
            floor=lambda: repeated(lambda: field(0.0, x0), n_evaluations),
        )

    compare(
        f"dopri5 with the graph, rtol 1e-4, driven {of_network(n_starts)}",
        make,
        (5, 10, 20, 40) if n_starts == 1 else (3, 6, 12, 24),
        unit="units of time",
        agree=Close(rtol=0, atol=5e-3),
        floor="evaluating the network",
        growth="n",
        kind="torch",
    )


@SIZES
def bench_adjoint(compare, n_starts):
    def make(n):
        field, x0, t = Network(), starts(n_starts), times(n)
        params = list(field.parameters())

        def loss(path):
            return path[-1].square().sum()

        def theirs():
            return torch.autograd.grad(loss(torchdiffeq.odeint_adjoint(field, x0, t, method="rk4")), params)

        def forth_and_back():
            leaf = x0.clone().requires_grad_()
            for _ in range(RK4_STAGES * n):
                with torch.no_grad():
                    field(0.0, x0)
                torch.autograd.grad(field(0.0, leaf), (leaf, *params), x0)

        return Work(
            ours=lambda: adjoint_gradient(field, params, x0, t, loss).grad_params,
            peers={"torchdiffeq": theirs},
            floor=forth_and_back,
        )

    compare(
        f"gradient by the adjoint, RK4: {of_network(n_starts)}",
        make,
        (10, 20, 40, 80) if n_starts == 1 else (5, 10, 20, 40),
        unit="steps",
        agree=Close(rtol=0, atol=1e-3),
        floor="network forth, and again with its vjp",
        growth="n",
        kind="torch",
    )
