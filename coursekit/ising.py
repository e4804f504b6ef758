"""The Ising model: spins x_i = ±1 with p(x) = exp(½ xᵀJx + hᵀx)/Z, exactly on small graphs, by Gibbs sampling on any.

J is symmetric with a zero diagonal, so each bond counts once: ½ xᵀJx = Σ_{i<j} J_ij x_i x_j. The temperature is part of
J and h, and E(x) = -½ xᵀJx - hᵀx.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int8
from scipy.special import expit, log_expit, logsumexp

from coursekit._validation import as_array, as_integer, as_number, one_of
from coursekit.mcmc import Chains

Seed = np.random.Generator | int | None
Field = float | Float[np.ndarray, " n"]
Couplings = Float[np.ndarray, "n n"]
Spins = Float[np.ndarray, "n_chains n"]
Blocks = Sequence[Sequence[int | np.integer] | np.ndarray] | None


# --- the model ----------------------------------------------------------------------------------------------


def grid_couplings(rows: int, cols: int, coupling: float = 1.0, *, periodic: bool = False) -> Float[np.ndarray, "n n"]:
    """Coupling matrix of a grid, sites numbered row by row; with `periodic` edges a torus.

    On a torus of two rows or columns neighbours are joined twice.
    Raises ValueError for a grid of no sites, or a torus of one row or column.
    Source: Chertkov §8.1.2, eq. (8.3).  Taught in: notebook 07_06b.
    """
    low = 2 if periodic else 1
    shape = as_integer("rows", rows, low=low), as_integer("cols", cols, low=low)
    site = np.arange(rows * cols).reshape(shape)
    J = np.zeros((site.size, site.size))
    for axis in (0, 1):
        here = site if periodic else site.take(range(shape[axis] - 1), axis=axis)
        np.add.at(J, (here, np.roll(site, -1, axis=axis)[: here.shape[0], : here.shape[1]]), coupling)
    return J + J.T


def energy(x: Float[np.ndarray, "... n"], J: Couplings, h: Field = 0.0) -> Float[np.ndarray, "..."] | float:
    """E(x) = -½ xᵀJx - hᵀx of each configuration along the last axis.

    Raises ValueError for a J that is not symmetric with zero diagonal, spins that are not ±1, or another length.
    Source: Chertkov §7.5.  Taught in: notebook 07_06b.
    """
    J, field = _model(J, h)
    x = _spins("x", x, ndim=range(1, 9), n=len(field))
    return -(x * (0.5 * (x @ J) + field)).sum(axis=-1)


@dataclass(frozen=True, eq=False)
class IsingLaw:
    """All 2ⁿ configurations with their probabilities."""

    states: Float[np.ndarray, "states n"]
    energy: Float[np.ndarray, " states"]
    log_z: float

    @cached_property
    def p(self) -> Float[np.ndarray, " states"]:
        """Probability of each state."""
        return np.exp(-self.energy - self.log_z)

    @property
    def magnetization(self) -> Float[np.ndarray, " n"]:
        """⟨x_i⟩."""
        return self.p @ self.states

    @property
    def correlation(self) -> Float[np.ndarray, "n n"]:
        """⟨x_i x_j⟩."""
        return (self.states.T * self.p) @ self.states


def exact(J: Couplings, h: Field = 0.0) -> IsingLaw:
    """The law of n ≤ 20 spins by enumeration; memory 8 n 2ⁿ bytes.

    State k has spin i up if bit i of k is set. Raises ValueError for more spins, and as `energy`.
    Source: Chertkov §8.1.2.  Taught in: notebook 07_06b.
    """
    J, field = _model(J, h)
    n = len(field)
    if n > 20:
        raise ValueError(f"J must have at most 20 spins to be enumerated, got {n}")
    states = 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1) - 1
    values = np.asarray(energy(states, J, field))
    return IsingLaw(states, values, float(logsumexp(-values)))


def _model(J, h):
    J = as_array("J", J, ndim=2)
    if J.shape[0] != J.shape[1] or (J != J.T).any() or J.diagonal().any():
        raise ValueError(f"J must be symmetric with zero diagonal, got shape {J.shape}")
    h = as_array("h", h, ndim=(0, 1))
    if h.ndim == 1 and len(h) != len(J):
        raise ValueError(f"h must be a number or have shape ({len(J)},), got {h.shape}")
    return J, np.broadcast_to(h, len(J))


def _spins(name, x, *, ndim, n=None):
    x = as_array(name, x, ndim=ndim)
    if n is not None and x.shape[-1] != n:
        raise ValueError(f"{name} must hold {n} spins along the last axis, got shape {x.shape}")
    if not (np.abs(x) == 1).all():
        raise ValueError(f"{name} must hold spins -1 or 1")
    return x


# --- Gibbs sampling -----------------------------------------------------------------------------------------


def color_classes(J: Couplings) -> list[np.ndarray]:
    """Classes of sites of which no two are coupled, found greedily in the order of the sites.

    The spins of a class are independent given the others, so that they can be drawn at once. Raises as `energy`.
    """
    J, _ = _model(J, 0.0)
    color = np.full(len(J), -1)
    for site in range(len(J)):
        taken = set(color[J[site] != 0])
        color[site] = next(c for c in range(len(J)) if c not in taken)
    return [np.flatnonzero(color == c) for c in range(color.max() + 1)]


def gibbs(
    J: Couplings,
    h: Field,
    x0: Spins,
    n_draws: int,
    *,
    blocks: Blocks = None,
    n_warmup: int = 0,
    record_every: int = 1,
    rng: Seed = None,
) -> Float[np.ndarray, "n_chains n_draws n"]:
    """Gibbs sampling: block after block, each spin from P(x_i = 1 | the others) = 1/(1 + e^{-2H_i}), H = Jx + h.

    Parameters
    ----------
    J : (n, n) symmetric, zero diagonal
    h : float or (n,)
    x0 : (n_chains, n) spins
    n_draws : int ≥ 1
        Recorded states of each chain.
    blocks : lists of sites, optional
        The spins of one block are drawn at once, from the fields before any of them changes. This keeps p as long as
        no two of them are coupled, as in `color_classes`, which are used by default; ``[[i] for i in order]`` is the
        sequential sweep, and one block of all sites the synchronous update, which has another stationary law.
    n_warmup, record_every : ints
        Sweeps before the first that counts, and from one recorded state to the next.
    rng : numpy Generator, int or None

    Raises ValueError as `energy`, and for a block that names a site that is not there.
    Source: Geman and Geman (1984); Chertkov §7.5, algorithm 1.  Taught in: notebook 07_06b.
    """
    J, field = _model(J, h)
    x, rng = _spins("x0", x0, ndim=2, n=len(field)).copy(), np.random.default_rng(rng)
    steps = [(block, 2 * J[:, block], 2 * field[block]) for block in _blocks(J, blocks)]

    def sweep():
        for block, coupling, bias in steps:
            up = rng.random((len(x), len(block))) < expit(x @ coupling + bias)
            x[:, block] = 2.0 * up - 1

    return _record(sweep, x, lambda: x, n_draws, n_warmup, record_every)


def gibbs_matrix(J: Couplings, h: Field = 0.0, *, blocks: Blocks = None) -> Float[np.ndarray, "states states"]:
    """Transition matrix of one sweep of `gibbs`, states as in `exact`, for n ≤ 12 spins.

    The mean over sites of the matrices with ``blocks=[[i]]`` is the random scan. Raises as `gibbs`.
    Source: Chertkov §7.5.  Taught in: notebook 07_06b.
    """
    J, field = _model(J, h)
    n = len(field)
    if n > 12:
        raise ValueError(f"J must have at most 12 spins for a matrix of all states, got {n}")
    x = exact(J, field).states
    K = np.eye(len(x))
    for block in _blocks(J, blocks):
        rest = np.setdiff1d(np.arange(n), block)
        local = 2 * (x @ J[:, block] + field[block])
        up = x[:, block] == 1
        log_move = log_expit(local) @ up.T + log_expit(-local) @ ~up.T
        same = x[:, rest] @ x[:, rest].T == len(rest)
        K = K @ np.where(same, np.exp(log_move), 0)
    return K


def _blocks(J, blocks):
    if blocks is None:
        return color_classes(J)
    n, blocks = len(J), [np.asarray(block) for block in blocks]
    for block in blocks:
        sites = set(block.ravel().tolist())
        if block.ndim != 1 or block.dtype.kind not in "iu" or len(sites) < block.size or sites - set(range(n)):
            raise ValueError(f"blocks must be lists of different sites from 0 to {n - 1}, got {block}")
    return blocks


def checkerboard_gibbs(
    coupling: float,
    field: float,
    x0: Float[np.ndarray, "n_chains rows cols"] | Int8[np.ndarray, "n_chains rows cols"],
    n_draws: int,
    *,
    n_warmup: int = 0,
    record_every: int = 1,
    rng: Seed = None,
) -> Int8[np.ndarray, "n_chains n_draws rows cols"]:
    """Gibbs sampling of the torus with one coupling and one field: all black sites at once, then all white ones.

    `gibbs` with the couplings `grid_couplings(rows, cols, coupling, periodic=True)`, but for large lattices: a sweep
    takes about twice the time of its random numbers. The draws are int8: n_chains n_draws rows cols bytes.

    Parameters
    ----------
    coupling, field : floats
    x0 : (n_chains, rows, cols) spins, rows and cols even

    The other parameters and the errors are those of `gibbs`.
    Source: Chertkov §7.5.  Taught in: notebook 07_06b.
    """
    x, rng = _spins("x0", x0, ndim=3).astype(np.int8), np.random.default_rng(rng)
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"x0 must have an even number of rows and columns, got {x.shape[1:]}")
    coupling, field = as_number("coupling", coupling), as_number("field", field)
    up = expit(2 * (coupling * np.arange(-4, 5, 2) + field))  # by the number of neighbours that are up
    # colour c stands in row i at the columns of parity (c + i): each half lattice is packed, rows stay rows
    n, rows, cols = len(x), x.shape[1], x.shape[2] // 2
    half = np.empty((2, n, rows, cols), np.int8)  # 1 up, 0 down
    views = [(color, row, x[:, row::2, (color + row) % 2 :: 2]) for color in (0, 1) for row in (0, 1)]
    for color, row, view in views:
        half[color, :, row::2] = view > 0
    tall, wide = np.empty((n, rows + 2, cols), np.int8), np.empty((n, rows, cols + 2), np.int8)
    around, u, p = np.empty_like(half[0]), np.empty(half[0].shape), np.empty(half[0].shape)

    def sweep():
        for color in (0, 1):
            other = half[1 - color]
            np.concatenate([other[:, -1:], other, other[:, :1]], axis=1, out=tall)
            np.concatenate([other[:, :, -1:], other, other[:, :, :1]], axis=2, out=wide)
            np.add(tall[:, :-2], tall[:, 2:], out=around)
            np.add(around, other, out=around)
            # by the parity of color + i the fourth neighbour has the next packed index or the one before
            around[:, 1 - color :: 2] += wide[:, 1 - color :: 2, 2:]
            around[:, color::2] += wide[:, color::2, :-2]
            up.take(around, out=p, mode="clip")  # without a mode, take buffers its output
            np.less(rng.random(out=u), p, out=half[color].view(bool))

    def unpack():
        for color, row, view in views:
            view[...] = 2 * half[color, :, row::2] - 1
        return x

    return _record(sweep, x, unpack, n_draws, n_warmup, record_every)


def single_flip(
    J: Couplings,
    h: Field,
    x0: Spins,
    n_draws: int,
    *,
    rule: Literal["metropolis", "heat_bath"] = "metropolis",
    n_warmup: int = 0,
    record_every: int = 1,
    rng: Seed = None,
) -> Chains:
    """Flip one spin at a time, chosen at random: with ΔE = 2 x_i H_i the energy that the flip costs, it is accepted
    with probability min(1, e^{-ΔE}) ("metropolis") or 1/(1 + e^{ΔE}) ("heat_bath", also called Glauber dynamics).

    The heat bath is Gibbs sampling in random order. Without couplings and fields Metropolis accepts every flip, and the
    chain has period 2.

    Parameters and errors as in `gibbs`, but counted in single moves, not sweeps.
    Source: Glauber (1963); Chertkov §7.5, algorithm 2.  Taught in: notebook 07_06b.
    """
    J, field = _model(J, h)
    one_of("rule", rule, ("metropolis", "heat_bath"))
    x, rng = _spins("x0", x0, ndim=2, n=len(field)).copy(), np.random.default_rng(rng)
    chain, accepted, n_moves = np.arange(len(x)), np.zeros(len(x)), -as_integer("n_warmup", n_warmup, low=0)

    def move():
        nonlocal n_moves
        site = rng.integers(len(field), size=len(x))
        spin = x[chain, site]
        cost = 2 * spin * (np.einsum("ij,ij->i", J[site], x) + field[site])
        flip = rng.standard_exponential(len(x)) > cost if rule == "metropolis" else rng.random(len(x)) < expit(-cost)
        x[chain, site] = np.where(flip, -spin, spin)
        n_moves += 1
        if n_moves > 0:
            accepted[:] += flip

    draws = _record(move, x, lambda: x, n_draws, n_warmup, record_every)
    return Chains(draws, accepted / n_moves)


def _record(sweep, x, current, n_draws, n_warmup, record_every):
    """Run the chain and keep every record_every-th state, which `current` returns."""
    n_draws, record_every = as_integer("n_draws", n_draws, low=1), as_integer("record_every", record_every, low=1)
    draws = np.empty((len(x), n_draws, *x.shape[1:]), x.dtype)
    for _ in range(as_integer("n_warmup", n_warmup, low=0)):
        sweep()
    for k in range(n_draws):
        for _ in range(record_every):
            sweep()
        draws[:, k] = current()
    return draws
