"""Spin updates against drawing their random numbers, against the same sweep by np.roll, and block Gibbs against
scikit-learn: ratios of times measured in turn, in one run, one thread.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when numpy is imported

import numpy as np
from _timing import in_turn
from rich.console import Console
from rich.table import Table
from scipy.special import expit
from sklearn.neural_network import BernoulliRBM

from coursekit.ising import checkerboard_gibbs
from coursekit.rbm import RBM

J, SWEEPS, STEPS = 0.4, 100, 50


def with_roll(x, sweeps, rng):
    """The checkerboard as it is usually written: every site is proposed, half of them are kept."""
    rows, cols = np.indices(x.shape[1:])
    x = x.copy()
    for _ in range(sweeps):
        for color in (0, 1):
            field = sum(np.roll(x, shift, axis) for shift in (1, -1) for axis in (1, 2))
            new = np.where(rng.random(x.shape) < expit(2 * J * field), 1, -1)
            x = np.where((rows + cols) % 2 == color, new, x)
    return x


def check():
    """Both sweeps give the same mean product of neighbours, within five standard errors over independent chains."""
    rng = np.random.default_rng(0)
    x = np.ones((400, 16, 16))
    draws = checkerboard_gibbs(J, 0.0, x, 1, record_every=SWEEPS, rng=rng)[:, 0], with_roll(x, SWEEPS, rng)
    bonds = [(y * np.roll(y, 1, axis=1)).mean(axis=(1, 2)) for y in draws]
    error = np.sqrt(sum(b.var() / len(b) for b in bonds))
    assert abs(bonds[0].mean() - bonds[1].mean()) < 5 * error


def lattices(table):
    check()
    for n, size, repeats in ((1, 64, 31), (4, 64, 31), (1, 256, 11), (64, 32, 11), (64, 128, 3)):
        rng = np.random.default_rng(0)
        x = np.ones((n, size, size))
        u = np.empty(x.size)

        def ours(x=x, rng=rng):
            return checkerboard_gibbs(J, 0.0, x, 1, record_every=SWEEPS, rng=rng)

        def draw(u=u, rng=rng):
            for _ in range(SWEEPS):
                rng.random(out=u)

        mine, floor, ratio = in_turn(ours, draw, repeats)
        _, other, rolled = in_turn(ours, lambda x=x, rng=rng: with_roll(x, SWEEPS, rng), max(3, repeats // 3))
        name = f"{n} of {size} × {size}"
        nanoseconds = (f"{1e9 * t / (SWEEPS * x.size):.1f}" for t in (mine, floor, other))
        table.add_row(name, *nanoseconds, f"{ratio:.2f}", f"{1 / rolled:.1f}")


def machines(table):
    for n, d, m, repeats in ((1_000, 20, 20, 11), (1_000, 100, 50, 7), (100, 784, 100, 7)):
        rng = np.random.default_rng(0)
        machine = RBM(0.1 * rng.standard_normal((d, m)), np.zeros(d), np.zeros(m))
        peer = BernoulliRBM(m)
        peer.components_, peer.intercept_hidden_, peer.intercept_visible_ = machine.W.T, machine.c, machine.b
        peer.random_state_ = np.random.RandomState(0)
        v0 = (rng.random((n, d)) < 0.5).astype(float)

        def ours(machine=machine, v0=v0, rng=rng):
            return machine.block_gibbs(v0, 1, record_every=STEPS, rng=rng)[0][:, 0]

        def theirs(peer=peer, v0=v0):
            v = v0
            for _ in range(STEPS):
                v = peer.gibbs(v)
            return v

        energies = [machine.free_energy(np.asarray(run(), float)) for run in (ours, theirs)]
        error = np.sqrt(sum(e.var() / n for e in energies))
        assert abs(energies[0].mean() - energies[1].mean()) < 5 * error
        mine, other, ratio = in_turn(ours, theirs, repeats)
        table.add_row(
            f"{n:,} chains, {d} + {m} units", *(f"{1e6 * t / STEPS:.0f}" for t in (mine, other)), f"{1 / ratio:.2f}"
        )


def main() -> None:
    lattice = Table("lattices", "ours (ns)", "random numbers (ns)", "np.roll (ns)", "ours / random", "np.roll / ours")
    lattices(lattice)
    block = Table("machines", "ours (µs)", "scikit-learn (µs)", "theirs / ours")
    machines(block)
    console = Console()
    console.print("Checkerboard Gibbs sampling, time of one spin update")
    console.print(lattice)
    console.print("Block Gibbs sampling, time of one step of all chains")
    console.print(block)


if __name__ == "__main__":
    main()
