"""Langevin ensembles against torchsde: ratios of times measured in turn, in one run, one thread.

The same Euler steps of the same double well, from the same start, last state kept; the second moments of both are
compared with each other first.
"""

import math
import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy is imported

import numpy as np
import torch
import torchsde
from _timing import in_turn
from rich.console import Console
from rich.table import Table

from coursekit.sde import langevin

DT, STEPS, D = 0.01, 200, 0.3


class DoubleWell(torch.nn.Module):
    """dX = -∇U dt + √(2D) dW with U = |x|⁴/4 - |x|²/2 in each coordinate, as torchsde wants it."""

    noise_type, sde_type = "diagonal", "ito"

    def f(self, t, x):
        return x - x**3

    def g(self, t, x):
        return torch.full_like(x, math.sqrt(2 * D))


def grad_U(x):
    return x * x * x - x


def main() -> None:
    table = Table("paths", "dimension", "ours (ms)", "torchsde (ms)", "theirs / ours", "our ⟨x²⟩", "their ⟨x²⟩")
    well, t = DoubleWell(), torch.tensor([0.0, DT * STEPS], dtype=torch.float64)
    rng = np.random.default_rng(0)
    for n, d, repeats in ((100, 1, 7), (1_000, 1, 7), (10_000, 1, 5), (1_000, 10, 5), (100_000, 1, 3)):
        x0 = np.zeros((n, d))

        def ours(x0=x0):
            return langevin(grad_U, x0, DT, STEPS, temperature=D, record_every=STEPS, rng=rng)[-1]

        def theirs(x0=x0):
            with torch.no_grad():
                return torchsde.sdeint(well, torch.from_numpy(x0), t, dt=DT, method="euler")[-1].numpy()

        squares = [run() ** 2 for run in (ours, theirs)]
        error = math.sqrt(sum(s.var() / s.size for s in squares))
        assert abs(squares[0].mean() - squares[1].mean()) < 5 * error
        mine, other, ratio = in_turn(ours, theirs, repeats)
        moments = (f"{s.mean():.3f} ± {math.sqrt(s.var() / s.size):.3f}" for s in squares)
        table.add_row(f"{n:,}", f"{d}", f"{1e3 * mine:.1f}", f"{1e3 * other:.1f}", f"{1 / ratio:.1f}", *moments)
    console = Console()
    console.print(f"{STEPS} Euler steps of overdamped Langevin dynamics")
    console.print(table)


if __name__ == "__main__":
    main()
