"""Ising models and restricted Boltzmann machines."""

import numpy as np
import pytest
from comparison import Agreement, SameMean, Work
from scipy.special import expit
from sklearn.neural_network import BernoulliRBM

from coursekit.ising import checkerboard_gibbs
from coursekit.rbm import RBM

COUPLING, SWEEPS, STEPS = 0.4, 20, 10


def with_roll(x, rng):
    """The checkerboard as it is usually written: every site is proposed, half of them are kept."""
    black = np.indices(x.shape[1:]).sum(axis=0) % 2 == 0
    for _ in range(SWEEPS):
        for color in (black, ~black):
            field = sum(np.roll(x, shift, axis) for shift in (1, -1) for axis in (1, 2))
            new = np.where(rng.random(x.shape) < expit(2 * COUPLING * field), np.int8(1), np.int8(-1))
            x = np.where(color, new, x)
    return x


def same_lattices(ours, theirs):
    """Rows of a lattice are correlated over a few neighbours only: bands of 16 rows count as draws."""

    def observables(x):
        x = x.astype(float)
        bonds = 0.5 * x * (np.roll(x, 1, axis=1) + np.roll(x, 1, axis=2))
        bands = [y.reshape(-1, 16, y.shape[2]).mean(axis=(1, 2)) for y in (bonds, x)]
        return np.stack(bands, axis=1)

    SameMean(5)(observables(ours), observables(theirs))


@pytest.mark.parametrize(
    ("n_chains", "at", "sizes"),
    [(1, 64, (192, 256, 384, 512, 768)), (16, 256, (64, 96, 128, 192, 256))],
    ids=["one chain", "16 chains"],
)
def bench_checkerboard_gibbs(compare, n_chains, at, sizes):
    def make(n):
        rng, x = np.random.default_rng(n), np.ones((n_chains, n, n))
        u, spins = np.empty(x.size), x.astype(np.int8)

        def draw():
            for _ in range(SWEEPS):
                rng.random(out=u)

        return Work(
            ours=lambda: checkerboard_gibbs(COUPLING, 0.0, x, 1, record_every=SWEEPS, rng=rng)[:, 0],
            peers={"np.roll": lambda: with_roll(spins, rng)},
            floor=draw,
        )

    compare(
        f"{SWEEPS} checkerboard Gibbs sweeps of a square Ising lattice, {n_chains} chain{'s' * (n_chains > 1)}",
        make,
        sizes,
        at=at,
        unit="sites a side",
        agree=Agreement("mean bond and magnetisation, 5 s.e.", same_lattices),
        floor="drawing the uniforms",
        growth="n²",
    )


@pytest.mark.parametrize(("d", "m"), [(20, 20), (784, 100)])
def bench_block_gibbs(compare, d, m):
    rng = np.random.default_rng(0)
    machine = RBM(0.1 * rng.standard_normal((d, m)), np.zeros(d), np.zeros(m))
    peer = BernoulliRBM(m)
    peer.components_, peer.intercept_hidden_, peer.intercept_visible_ = machine.W.T, machine.c, machine.b
    peer.random_state_ = np.random.RandomState(0)

    def make(n):
        v0 = (rng.random((n, d)) < 0.5).astype(float)
        h0 = (rng.random((n, m)) < 0.5).astype(float)
        u, fields = (np.empty_like(v0), np.empty_like(h0)), (np.empty_like(v0), np.empty_like(h0))

        def theirs():
            v = v0
            for _ in range(STEPS):
                v = peer.gibbs(v)
            return v

        def floor():
            for _ in range(STEPS):
                for layer in u:
                    rng.random(out=layer)
                np.matmul(h0, machine.W.T, out=fields[0])
                np.matmul(v0, machine.W, out=fields[1])

        return Work(
            ours=lambda: machine.block_gibbs(v0, 1, record_every=STEPS, rng=rng)[0][:, 0],
            peers={"scikit-learn": theirs},
            floor=floor,
        )

    def same_machines(ours, theirs):
        SameMean(5)(*(np.column_stack([machine.free_energy(v.astype(float)), v.sum(axis=1)]) for v in (ours, theirs)))

    compare(
        f"{STEPS} steps of block Gibbs sampling, {d} visible and {m} hidden units",
        make,
        (250, 500, 1_000, 2_000, 4_000) if d < 100 else (25, 50, 100, 200, 400),
        unit="chains",
        agree=Agreement("mean free energy and activity, 5 s.e.", same_machines),
        floor="the matrix products and the uniforms",
        growth="n",
        reason="eight passes over each layer make units of fields; they are hidden by the products where there are "
        "hundreds of units, not for twenty.",
    )
