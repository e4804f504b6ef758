"""linalg against its peers on 5 000 × 784 real digits: ratios of times measured in turn, in one run (make bench)."""

import statistics
import time

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.utils.extmath import randomized_svd

from coursekit import data, linalg

RANK = 50


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def ratio(ours, theirs, repeats=9):
    """Median over `repeats` of (time of ours / time of theirs), called in turn so that both meet the same machine."""
    ours(), theirs()
    return statistics.median(timed(ours)[0] / timed(theirs)[0] for _ in range(repeats))


def main() -> None:
    digits = data.mnist()
    X = np.concatenate([digits.X_train, digits.X_test]).reshape(-1, 784)
    X -= X.mean(axis=0)
    s = np.linalg.svd(X, compute_uv=False)
    optimum = np.sqrt(np.sum(s[RANK:] ** 2))

    def error(U, s, Vt):
        return np.linalg.norm(X - (U * s) @ Vt) / optimum

    def ours(seed=0):
        dec = linalg.svd(X, RANK, method="randomized", rng=seed)
        return dec.U, dec.s, dec.Vt

    our_error = np.mean([error(*ours(seed)) for seed in range(5)])
    table = Table("scikit-learn n_iter", "its error / optimum", "our error / optimum", "our time / its time")
    for n_iter in range(2, 8):
        theirs = lambda seed=0: randomized_svd(X, RANK, n_iter=n_iter, random_state=seed)  # noqa: B023, E731
        their_error = np.mean([error(*theirs(seed)) for seed in range(5)])
        table.add_row(str(n_iter), f"{their_error:.5f}", f"{our_error:.5f}", f"{ratio(ours, theirs):.2f}")
    console = Console()
    console.print(f"Randomized SVD of {X.shape[0]} × {X.shape[1]} digits, rank {RANK}")
    console.print(table)
    console.print("Compare with the row whose error is nearest to ours (scikit-learn's default here is n_iter = 7).")


if __name__ == "__main__":
    main()
