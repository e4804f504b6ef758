"""Solving and differentiating ODEs against torchdiffeq and scipy: ratios of times measured in turn, in one run.

All run one thread. The tables also give the evaluations of the field, which do not depend on the machine.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy and torch are imported

import numpy as np
import scipy.integrate
import torch
import torchdiffeq
from _timing import in_turn
from rich.console import Console
from rich.table import Table

from coursekit.neural_ode import adjoint_gradient
from coursekit.ode import odeint, solve_adaptive

SPIRAL = np.array([[-0.3, -2.0], [2.0, -0.3]])
N_STEPS, T = 50, 5.0


class Counted(torch.nn.Module):
    """The network as a field that counts its evaluations."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, t, x):
        self.calls += 1
        return self.net(x)


def calls(field, solve):
    field.calls = 0
    solve()
    return str(field.calls)


def rows(label, x0, repeats):
    """Ratios for the network 2-64-64-2 from the starts x0."""
    torch.manual_seed(0)
    widths = [torch.nn.Linear(2, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2)]
    field = Counted(torch.nn.Sequential(*widths))
    params = list(field.parameters())
    t = torch.linspace(0, T, N_STEPS + 1)
    loss = lambda path: path[-1].square().sum()  # noqa: E731
    # this is the 3/8 rule, of as many stages as ours: the results agree up to the errors of the methods
    solve = {"method": "rk4"}
    adaptive = {"rtol": 1e-4, "atol": 1e-6}

    def ours():
        return odeint(field, x0, t)

    def theirs():
        return torchdiffeq.odeint(field, x0, t, **solve)

    def our_gradient():
        return adjoint_gradient(field, params, x0, t, loss).grad_params

    def their_gradient():
        return torch.autograd.grad(loss(torchdiffeq.odeint_adjoint(field, x0, t, **solve)), params)

    def our_dopri5():
        return odeint(field, x0, t, "dopri5", **adaptive)

    def their_dopri5():
        return torchdiffeq.odeint(field, x0, t, method="dopri5", **adaptive)

    for name, mine, reference, tolerance in (
        (f"RK4, {N_STEPS} steps, with the graph", ours, theirs, 1e-4),
        ("RK4 and the adjoint, joint", our_gradient, their_gradient, 1e-2),
        ("dopri5, rtol 1e-4", our_dopri5, their_dopri5, 1e-3),
    ):
        for a, b in zip(mine(), reference(), strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())
        yield name, label, in_turn(mine, reference, repeats)[2], calls(field, mine), calls(field, reference)


def scipy_row(tol, repeats):
    counts = {"ours": 0, "theirs": 0}
    times = np.linspace(0, 20, 101)

    def field(who):
        def f(t, x):
            counts[who] += 1
            return x @ SPIRAL.T

        return f

    start = np.array([1.0, 0.0])
    ours = lambda: solve_adaptive(field("ours"), start, 0, 20, rtol=tol, atol=tol)(times)  # noqa: E731
    theirs = lambda: scipy.integrate.solve_ivp(field("theirs"), (0, 20), start, "RK45", times, rtol=tol, atol=tol)  # noqa: E731
    error = np.abs(ours() - theirs().y.T).max()
    assert error < 100 * tol, error
    evaluations = tuple(str(n) for n in counts.values())
    return (
        f"dopri5, tolerance {tol:.0e}",
        "numpy, linear spiral; scipy",
        in_turn(ours, theirs, repeats)[2],
        *evaluations,
    )


def main() -> None:
    torch.set_num_threads(1)
    table = Table("problem", "start; peer", "our time / the peer's", "our evaluations", "the peer's")
    starts = torch.randn(1000, 2, generator=torch.Generator().manual_seed(1))
    results = [
        *rows("one; torchdiffeq", torch.tensor([1.0, 0.0]), 25),
        *rows("1000; torchdiffeq", starts, 7),
        *(scipy_row(tol, 25) for tol in (1e-4, 1e-8)),
    ]
    for problem, start, value, *evaluations in results:
        table.add_row(problem, start, f"{value:.2f}", *evaluations)
    console = Console()
    console.print("Network 2-64-64-2, tanh, float32, on [0, 5]; one thread")
    console.print(table)


if __name__ == "__main__":
    main()
