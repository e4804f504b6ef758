"""The gradient of a program of 1 000 operations against torch.autograd: ratios of times measured in turn, in one run.

Both run one thread in float64; the counted ratio is the same everywhere.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy and torch are imported

import numpy as np
import torch
from _timing import in_turn
from rich.console import Console
from rich.table import Table

from coursekit.autodiff import cost, grad

ROUNDS = 125  # of 8 operations each


def program(lib, W, X):
    for _ in range(ROUNDS):
        A = W @ X
        B = lib.tanh(A)
        C = lib.sin(B + X)
        X = C * B - lib.exp(-A)
    return lib.sum(X * X) if lib is np else (X * X).sum()


def main() -> None:
    torch.set_num_threads(1)
    table = Table(
        "matrices", "our time / torch's", "our time / that of the function in numpy", "operations, gradient / function"
    )
    for n in (8, 32, 64, 128):
        rng = np.random.default_rng(n)
        W, X = rng.standard_normal((n, n)) / (4 * n), rng.standard_normal((n, n)) / 4
        theirs_at = [torch.tensor(a, requires_grad=True) for a in (W, X)]

        def ours(W=W, X=X):
            return grad(lambda weights: program(np, *weights))((W, X))

        def theirs(at=theirs_at):
            return torch.autograd.grad(program(torch, *at), at)

        for mine, reference in zip(ours(), theirs(), strict=True):
            np.testing.assert_allclose(mine, reference.numpy(), rtol=1e-12, atol=1e-12 * np.abs(mine).max())
        plain = in_turn(ours, lambda W=W, X=X: program(np, W, X), 15)[2]
        function = cost(lambda weights: program(np, *weights), (W, X)).operations
        gradient = cost(grad(lambda weights: program(np, *weights)), (W, X)).operations
        table.add_row(f"{n} × {n}", f"{in_turn(ours, theirs, 15)[2]:.2f}", f"{plain:.1f}", f"{gradient / function:.2f}")
    console = Console()
    console.print(f"Gradient of a program of {8 * ROUNDS} operations (matrix products, elementwise functions)")
    console.print(table)


if __name__ == "__main__":
    main()
